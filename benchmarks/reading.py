"""Rows of bench.py for what reading a data folder costs, against the same files in a plain loop of Pillow, OpenCV and
pandas.

Ours also checks what it reads: damaged files, orientation, bits a pixel, names, classes, run-lengths. So the
ratio of the first three is below 1, and the goal says how far.
"""

import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cv2
import pandas as pd
from PIL import Image

from steel_seg.data import check_folder, image_shapes, read_folder, read_image
from steel_seg.seen import image_mark, may_be_same, read_marks, write_marks
from steel_seg.synth import make_folder

DISTINCT, TIMES, SHAPE = 64, 49, (256, 1600)  # a quarter of the competition's 12,568 train images


@cache
def made():
    "A folder of drawn strips, and one where each of them is there many times under another name."
    home = tempfile.TemporaryDirectory()
    drawn = make_folder(Path(home.name) / "drawn", DISTINCT, 0, SHAPE, seed=0)
    many = Path(home.name) / "many"
    (many / "train_images").mkdir(parents=True)
    paths = sorted((drawn / "train_images").iterdir())
    for path in paths:
        for k in range(TIMES):
            (many / "train_images" / f"{k:02}_{path.name}").hardlink_to(path)
    labels = pd.read_csv(drawn / "train.csv", dtype=str)
    copies = [labels.assign(ImageId=f"{k:02}_" + labels.ImageId) for k in range(TIMES)]
    pd.concat(copies).to_csv(many / "train.csv", index=False)
    return SimpleNamespace(home=home, drawn=drawn, many=many, paths=paths, marks=Path(home.name) / "marks.csv")


def plain_sizes():
    sizes = {}
    for path in (made().many / "train_images").iterdir():
        with Image.open(path) as image:
            sizes[path.name] = image.size[::-1]
    return sizes


def plain_folder():
    return plain_sizes(), pd.read_csv(made().many / "train.csv", dtype=str)


def plain_images():
    return [cv2.imread(str(path)) for path in made().paths]


def check_headers():
    assert image_shapes(made().many / "train_images") == plain_sizes()


def check_read():
    folder, (sizes, table) = read_folder(made().many, n_classes=4), plain_folder()
    assert {i: folder.shape_of(i) for i in folder.images.image_id} == sizes
    masks = folder.masks.sort_values("row")
    assert masks.image_id.tolist() == table.ImageId.tolist()
    assert masks.rle.tolist() == table.EncodedPixels.tolist()
    assert (masks.channel + 1).astype(str).tolist() == table.ClassId.tolist()


def check_pixels():
    assert "error" not in set(check_folder(made().drawn, n_classes=4).severity)
    assert all(image.shape == (*SHAPE, 3) for image in plain_images())


def marks():
    write_marks(made().marks, {path.name: path for path in made().paths}, SHAPE)


def marks_of_whole_images():
    return {path.name: image_mark(read_image(path)) for path in made().paths}


def check_marks():
    marks()
    ours, whole = read_marks(made().marks), marks_of_whole_images()
    assert ours.keys() == whole.keys() and all(may_be_same(ours[name], whole[name]) for name in whole)


def rows():
    n = f"{DISTINCT * TIMES:,}"
    return [
        dict(
            what=f"reading: sizes of {n} images of 256x1600",
            against="Pillow's Image.open(path).size in a loop",
            goal=0.6,
            check=check_headers,
            ours=lambda: image_shapes(made().many / "train_images"),
            peer=plain_sizes,
        ),
        dict(
            what=f"reading: a folder of {n} images, checked",
            against="the same loop and pandas.read_csv",
            goal=0.3,
            check=check_read,
            ours=lambda: read_folder(made().many, n_classes=4),
            peer=plain_folder,
        ),
        dict(
            what=f"reading: check-data of {DISTINCT} images with their pixels",
            against="cv2.imread in a loop",
            goal=0.5,
            check=check_pixels,
            ours=lambda: check_folder(made().drawn, n_classes=4),
            peer=plain_images,
        ),
        dict(
            what=f"reading: marks of {DISTINCT} images, as a run begins, by threads",
            against="marks of the whole images, decoded one by one",
            goal=None,
            check=check_marks,
            ours=marks,
            peer=marks_of_whole_images,
        ),
    ]
