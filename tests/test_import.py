"""Labels in any form to a data folder: every mask as it was, everything else said, nothing left behind by an error."""

import base64
import io
import json
import random
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from conftest import real_data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

from steel_seg import cli
from steel_seg.coco import counts_of_rle, packed_counts, polygon_rle, segmentation_rle, unpacked_counts
from steel_seg.data import check_folder, read_folder
from steel_seg.folds import make_folds
from steel_seg.importing import ImportOptions, class_names, import_folder
from steel_seg.mask_files import voc_colours
from steel_seg.rle import rle_decode, rle_encode

SHAPE = 24, 60
NAMES = ["pit", "scratch"]


def truth(n=6, seed=0):
    "Image id -> (H,W) ClassIds: blocks of two classes, every third image clean."
    rng = np.random.default_rng(seed)
    labels = {f"strip_{i}.bmp": np.zeros(SHAPE, np.uint8) for i in range(n)}
    for i, mask in enumerate(labels.values()):
        for k in (1, 2) if i % 3 else ():
            y, x = rng.integers(0, 12), rng.integers(0, 24)
            mask[y : y + 10, 30 * (k - 1) + x : 30 * (k - 1) + x + 6] = k
    return labels


TRUTH = truth()


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    for image_id in TRUTH:
        Image.fromarray(rng.integers(60, 120, SHAPE, np.uint8)).save(tmp_path / "images" / image_id)
    return tmp_path / "images"


def stem(image_id):
    return image_id.partition(".")[0]


def png(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path)


def as_map(root):
    for image_id, mask in TRUTH.items():
        png(root / f"{stem(image_id)}.png", mask)


def as_palette(root):
    for image_id, mask in TRUTH.items():
        image = Image.fromarray(mask)
        image.putpalette([part for colour in voc_colours(256) for part in colour])
        png(root / f"{stem(image_id)}_mask.png", image)


def as_colours(root):
    "As CVAT writes them: colours, and which is which in a file beside them."
    for image_id, mask in TRUTH.items():
        png(root / "SegmentationClass" / f"{stem(image_id)}.png", np.array(voc_colours(3), np.uint8)[mask])
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "pit:128,0,0::", "scratch:0,128,0::"]
    (root / "labelmap.txt").write_text("\n".join(lines))


def as_folders(root):
    for image_id, mask in TRUTH.items():
        for k, name in enumerate(NAMES, 1):
            png(root / name / f"{stem(image_id)}.png", 255 * (mask == k).astype(np.uint8))


def as_suffixes(root):
    for image_id, mask in TRUTH.items():
        for k, name in enumerate(NAMES, 1):
            png(root / f"{stem(image_id)}_{name}.png", (mask == k))


def as_coco_file(root):
    root.mkdir()
    images, annotations = [], []
    for n, (image_id, mask) in enumerate(TRUTH.items(), 100):
        images.append({"id": n, "file_name": f"some/{image_id}", "height": SHAPE[0], "width": SHAPE[1]})
        for k in (1, 2):
            counts = pycoco.encode(np.asfortranarray((mask == k).astype(np.uint8)))
            if (mask == k).any():
                segmentation = {"size": list(SHAPE), "counts": counts["counts"].decode()}
                if n % 2:
                    segmentation["counts"] = unpacked_counts(segmentation["counts"])
                annotations.append(
                    {"image_id": n, "category_id": 10 * k, "segmentation": segmentation, "iscrowd": n % 2}
                )
    categories = [{"id": 20, "name": "scratch"}, {"id": 10, "name": "pit"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))


def as_labelme(root):
    root.mkdir()
    for image_id, mask in TRUTH.items():
        shapes = []
        for k, name in enumerate(NAMES, 1):
            if (mask == k).any():
                rows, cols = np.nonzero(mask == k)
                box = [[int(cols.min()), int(rows.min())], [int(cols.max()), int(rows.max())]]
                shape = {"label": name, "points": box, "shape_type": "rectangle"}
                if k == 2:
                    data = io.BytesIO()
                    part = (mask == k)[box[0][1] : box[1][1] + 1, box[0][0] : box[1][0] + 1]
                    Image.fromarray(part).save(data, format="PNG")
                    shape |= {"shape_type": "mask", "mask": base64.b64encode(data.getvalue()).decode()}
                shapes.append(shape)
        content = {"shapes": shapes, "imagePath": f"..\\images\\{image_id}", "imageHeight": 24, "imageWidth": 60}
        (root / f"{stem(image_id)}.json").write_text(json.dumps({**content, "imageData": None, "version": "5"}))


def csv_text(separator=",", header=("file", "label", "rle")):
    lines = [separator.join(header)]
    for image_id, mask in TRUTH.items():
        lines += [
            separator.join([image_id, name, rle_encode(mask == k)])
            for k, name in enumerate(NAMES, 1)
            if (mask == k).any()
        ]
    return "\n".join(lines) + "\n"


def as_csv(root):
    root.mkdir()
    (root / "labels.csv").write_text(csv_text(";"))


def as_packed_csv(root):
    root.mkdir()
    with zipfile.ZipFile(root / "labels.csv", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.csv", csv_text())


FORMS = {
    as_map: dict(classes=tuple(NAMES)),
    as_palette: dict(classes=tuple(NAMES)),
    as_colours: {},
    as_folders: {},
    as_suffixes: {},
    as_coco_file: {},
    as_labelme: {},
    as_csv: {},
    as_packed_csv: {},
}


def source_of(root):
    files = list(root.glob("*.csv"))
    return files[0] if files else root


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_folder(images, tmp_path, form):
    form(tmp_path / "labels")
    made = import_folder(images, source_of(tmp_path / "labels"), tmp_path / "data", ImportOptions(**FORMS[form]))
    folder = read_folder(tmp_path / "data", n_classes=2)
    assert made.names == NAMES == class_names(folder.root, 2)
    for image_id, mask in TRUTH.items():
        assert (folder.mask(image_id) == [mask == 1, mask == 2]).all()
        assert (folder.image(image_id) == cv2.imread(str(images / image_id), cv2.IMREAD_GRAYSCALE)).all()
    assert check_folder(folder.root).empty
    assert made.records == sum(made.masks.values()) + sum(note.records for note in made.notes)


def test_of_a_csv_with_a_row_for_each_defect_the_union_is_taken(images, tmp_path):
    (tmp_path / "t.csv").write_text(
        "ImageId,ClassId,EncodedPixels\nstrip_0.bmp,1,1 5\nstrip_0.bmp,1.0,4 6\nstrip_0,2,50 1\n"
    )
    made = import_folder(images, tmp_path / "t.csv", tmp_path / "data")
    assert read_folder(tmp_path / "data").labels("strip_0.bmp") == [(0, "1 9"), (1, "50 1")]
    assert any(note.what == "joined" and note.places == ["strip_0.bmp class 1"] for note in made.notes)


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_images_are_linked_or_copied_and_never_changed(images, tmp_path, link):
    as_map(tmp_path / "labels")
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    import_folder(images, tmp_path / "labels", tmp_path / "data", ImportOptions(link=link))
    shutil.rmtree(tmp_path / "labels")
    target = tmp_path / "data/train_images/strip_0.bmp"
    assert target.is_symlink() == (link == "symbolic")
    assert target.samefile(images / "strip_0.bmp") == (link != "copy")
    shutil.rmtree(tmp_path / "data")
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_masks_beside_their_images(tmp_path):
    for image_id, mask in TRUTH.items():
        png(tmp_path / "both" / f"{stem(image_id)}.jpg", np.full(SHAPE, 90, np.uint8))
        png(tmp_path / "both" / f"{stem(image_id)}_label.bmp", 255 * (mask > 0).astype(np.uint8))
    made = import_folder(tmp_path / "both", tmp_path / "both", tmp_path / "data")
    assert made.images == len(TRUTH) and made.masks == {"class 1": sum(mask.any() for mask in TRUTH.values())}


def test_masks_in_folders_like_their_images(tmp_path):
    for part in ("roll_1", "roll_2"):
        png(tmp_path / "images" / part / "a.png", np.full(SHAPE, 90, np.uint8))
        png(tmp_path / "labels" / part / "a.png", TRUTH["strip_1.bmp"])
    import_folder(tmp_path / "images", tmp_path / "labels", tmp_path / "data")
    folder = read_folder(tmp_path / "data")
    assert folder.images.image_id.tolist() == ["roll_1_a.png", "roll_2_a.png"] and len(folder.masks) == 4


def write_json(path, content):
    path.write_text(json.dumps(content))


def coco_with(tmp_path, **changes):
    as_coco_file(tmp_path / "labels")
    content = json.loads((tmp_path / "labels/instances.json").read_text())
    for key, change in changes.items():
        content[key] = change(content[key])
    write_json(tmp_path / "labels/instances.json", content)


def map_with(tmp_path, change):
    as_map(tmp_path / "labels")
    path = tmp_path / "labels/strip_1.png"
    png(path, change(np.asarray(Image.open(path)).copy()))


def with_value(value):
    def change(mask):
        mask[0, 0] = value
        return mask

    return change


REFUSED = {
    "255 beside classes": (lambda t: map_with(t, with_value(255)), "Say --ignore 255"),
    "grey by chance": (lambda t: map_with(t, with_value(77)), "--values 1=NAME 2=NAME 77=NAME"),
    "another size": (lambda t: map_with(t, lambda mask: mask.T), "is 60x24, and its image strip_1.bmp is 24x60"),
    "colours": (lambda t: map_with(t, lambda m: np.array(voc_colours(3), np.uint8)[m]), "'#800000=NAME'"),
    "no mask for an image": (
        lambda t: (as_map(t / "labels"), (t / "labels/strip_1.png").unlink()),
        "--unlabelled clean",
    ),
    "no masks": (lambda t: (t / "labels").mkdir(), "Datumaro converts"),
    "names of nothing": (lambda t: png(t / "labels/x.png", TRUTH["strip_1.bmp"]), "has the name of an image"),
    "COCO of other sizes": (
        lambda t: coco_with(t, images=lambda images: [{**image, "height": 25} for image in images]),
        "the file says 25x60",
    ),
    "COCO without categories": (lambda t: coco_with(t, categories=lambda c: []), "which no category has"),
    "COCO of no numbers": (
        lambda t: coco_with(t, annotations=lambda a: [{**a[0], "segmentation": [[1, 2, 3, 4, 5, "6"]]}]),
        "not a list of numbers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_in_doubt_is_refused_and_leaves_nothing(images, tmp_path, case):
    make, says = REFUSED[case]
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as e:
        import_folder(images, tmp_path / "labels", tmp_path / "data")
    assert says in str(e.value), e.value
    assert sorted(tmp_path.rglob("*")) == before


def test_a_jpeg_of_a_mask_is_refused(images, tmp_path):
    for image_id, mask in TRUTH.items():
        path = tmp_path / "labels" / f"{stem(image_id)}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), 255 * (mask > 0).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])
    with pytest.raises(ValueError, match="JPEG blurs the edges"):
        import_folder(images, tmp_path / "labels", tmp_path / "data")


def test_turned_images_need_turned_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((60, 24), 90, np.uint8)).save(tmp_path / "images/a.jpg", exif=exif)
    png(tmp_path / "good/a.png", TRUTH["strip_1.bmp"])
    png(tmp_path / "bad/a.png", TRUTH["strip_1.bmp"].T.copy())
    import_folder(tmp_path / "images", tmp_path / "good", tmp_path / "data")
    with pytest.raises(ValueError, match="as its EXIF orientation turns it"):
        import_folder(tmp_path / "images", tmp_path / "bad", tmp_path / "data2")


def test_the_command(images, tmp_path, capsys):
    as_colours(tmp_path / "labels")
    png(tmp_path / "test/t.png", np.zeros(SHAPE, np.uint8))
    command = ["import", "--images", images, "--labels", tmp_path / "labels", "--out", tmp_path / "data", "--json"]
    assert cli.main([str(a) for a in [*command, "--test-images", tmp_path / "test"]]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["names"], result["tests"], result["records"]) == (NAMES, 1, 8)
    assert cli.main([str(a) for a in command]) == 2
    assert "exists: give another --out" in capsys.readouterr().err
    sample = (tmp_path / "data/sample_submission.csv").read_text().splitlines()
    assert sample == ["ImageId,ClassId,EncodedPixels", "t.png,1,1 1", "t.png,2,1 1"]


def test_check_data_gives_the_command_that_mends(images, tmp_path, capsys):
    data = tmp_path / "raw"
    shutil.copytree(images, data / "train_images")
    as_map(data / "train_masks")

    def said():
        code = cli.main(["check-data", str(data)])
        return code, capsys.readouterr().out

    for labels, text in (
        ("train_masks", None),
        ("train.csv", csv_text()),
        ("train.csv", "ImageId,ClassId,EncodedPixels\nstrip_0.bmp,1,1 5\nstrip_0.bmp,1,4 6\n"),
    ):
        if text:
            (data / "train.csv").write_text(text)
        code, out = said()
        command = out.split("`")[1]
        assert code == 1 and f"--labels {data}/{labels}" in command
        made = tmp_path / f"made_{code}_{len(text or '')}"
        assert cli.main(command.replace("NEW_FOLDER", str(made)).split()[1:]) == 0
        assert cli.main(["check-data", str(made)]) == 0
        capsys.readouterr()


@pytest.mark.parametrize("packed", ["train.csv.zip", "train.csv.gz", "train.csv"])
def test_a_packed_train_csv_is_the_same_data(images, tmp_path, packed):
    import gzip

    as_map(tmp_path / "labels")
    import_folder(images, tmp_path / "labels", tmp_path / "data")
    before, path = read_folder(tmp_path / "data"), tmp_path / "data/train.csv"
    content = path.read_bytes()
    path.unlink()
    target = path.with_name(packed)
    if packed.endswith("gz"):
        target.write_bytes(gzip.compress(content))
    else:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.csv", content)
    after = read_folder(tmp_path / "data")
    assert (after.sha256, after.masks.equals(before.masks)) == (before.sha256, True)


# COCO against pycocotools

sizes = st.tuples(st.integers(1, 30), st.integers(1, 30))
numbers = st.one_of(st.integers(-40, 80), st.floats(-40, 80, width=32), st.integers(-80, 160).map(lambda n: n / 2))


@settings(max_examples=400, deadline=None)
@given(sizes, st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_polygons_are_drawn_as_pycocotools_draws_them(shape, points):
    polygon = [float(n) for point in points for n in point]
    (packed,) = pycoco.frPyObjects([polygon], *shape)
    assert (rle_decode(polygon_rle(polygon, shape), shape) == pycoco.decode(packed)).all()


@settings(max_examples=200, deadline=None)
@given(sizes, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_counts_are_those_of_pycocotools(shape, seed, density):
    mask = (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)
    packed = pycoco.encode(np.asfortranarray(mask))["counts"].decode()
    rle = rle_encode(mask)
    assert packed_counts(counts_of_rle(rle, shape)) == packed
    assert segmentation_rle({"size": list(shape), "counts": packed}, shape).rle == rle
    assert segmentation_rle({"size": list(shape), "counts": unpacked_counts(packed)}, shape).rle == rle


# Damaged files


def _mutated_json(rng, value, depth=0):
    "A JSON value with one thing wrong in it."
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        value = dict(value)
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = _mutated_json(rng, value[key], depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = rng.randrange(len(value))
        value = list(value)
        action = rng.random()
        if action < 0.1:
            del value[i]
        elif action < 0.2:
            value.append(value[i])
        else:
            value[i] = _mutated_json(rng, value[i], depth + 1)
        return value
    odd = (
        None,
        True,
        -1,
        0,
        7,
        1.5,
        1e300,
        10**30,
        float("nan"),
        "",
        "x",
        "1",
        [],
        {},
        [[]],
        [[1]],
        "\u0000",
        "../../a",
    )
    return rng.choice(odd)


def _mutated_bytes(rng, data):
    "Bytes with a few of them changed, cut out, repeated, or the rest missing."
    data = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        i, n = rng.randrange(len(data)), rng.randrange(1, 12)
        action = rng.randrange(4)
        if action == 0:
            data[i] = rng.randrange(256)
        elif action == 1:
            del data[i : i + n]
        elif action == 2:
            data[i:i] = data[i : i + n]
        else:
            data[i : i + n] = bytes(rng.choice(b',;\n"0123456789 ab.-') for _ in range(n))
        data = data or bytearray(b"\n")
    return bytes(data[: rng.randrange(len(data)) + 1]) if rng.random() < 0.15 else bytes(data)


def _mutate(rng, path):
    if path.suffix == ".json" and rng.random() < 0.75:
        content = json.loads(path.read_text())
        for _ in range(rng.randrange(1, 3)):
            content = _mutated_json(rng, content)
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(_mutated_bytes(rng, path.read_bytes()))


@pytest.mark.parametrize("form", [as_map, as_colours, as_coco_file, as_labelme, as_csv, as_packed_csv])
def test_a_damaged_source_is_refused_or_everything_is_said(images, tmp_path, form, capsys):
    "No traceback, no hang; where a folder is made, what was read is what was written, joined or left out."
    rng, refused = random.Random(form.__name__), 0
    form(tmp_path / "whole")
    for n in range(34):  # 204 in all
        source, out = tmp_path / f"labels_{n}", tmp_path / f"data_{n}"
        shutil.copytree(tmp_path / "whole", source)
        _mutate(rng, rng.choice(sorted(path for path in source.rglob("*") if path.is_file())))
        command = ["import", "--images", images, "--labels", source_of(source), "--out", out, "--unlabelled", "clean"]
        code = cli.main([str(a) for a in [*command, "--json"]])
        said = capsys.readouterr()
        assert code in (0, 2)
        if code:
            refused += 1
            assert not out.exists() and len(said.err.splitlines()) == 1
            continue
        result = json.loads(said.out.splitlines()[-1])
        written = sum(result["masks"].values())
        assert result["records"] == written + sum(note["records"] for note in result["notes"])
        folder = read_folder(out)
        assert len(folder.masks) == written and set(folder.masks.image_id) <= set(TRUTH)
    assert 3 <= refused <= 34


@pytest.mark.real
def test_neu_seg_from_mask_pictures_is_the_same_data(tmp_path):
    root = real_data("neu-seg")
    folder = read_folder(root)
    for image_id in folder.images.image_id:
        labels = np.zeros(folder.shape, np.uint8)
        for channel, mask in enumerate(folder.mask(image_id)):
            labels[mask > 0] = channel + 1
        png(tmp_path / "masks" / f"{stem(image_id)}.png", labels)
    import_folder(root / "train_images", tmp_path / "masks", tmp_path / "data")
    again = read_folder(tmp_path / "data")
    # All that training reads: the images in their order, their masks as strings, and the folds.
    assert again.images.image_id.tolist() == folder.images.image_id.tolist()
    assert all(again.labels(image_id) == folder.labels(image_id) for image_id in folder.images.image_id)
    assert all(a.samefile(b) for a, b in zip(again.images.path, folder.images.path))
    assert again.shape == folder.shape and again.n_classes == folder.n_classes
    assert make_folds(again, 5, 0).equals(make_folds(folder, 5, 0))
