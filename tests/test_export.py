"""Masks to COCO, labelme, pictures and csv, and back: no pixel changes, but for polygons, and those are counted."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from steel_seg import cli
from steel_seg.coco import segmentation_rle
from steel_seg.data import read_folder
from steel_seg.exporting import (
    FORMATS,
    coco_polygons,
    components,
    export_masks,
    label_source,
    labelme_polygons,
    run_source,
)
from steel_seg.importing import import_folder
from steel_seg.labelme import LabelmeShape, shape_mask
from steel_seg.open_run import make_up_run, masks_of, open_run
from steel_seg.post import Rule, write_rules
from steel_seg.relabel import Flag, write_queue
from steel_seg.rle import rle_decode, rle_encode

SHAPE = 20, 33


def make_folder(root, seed, n=4, classes=3, overlap=False):
    "A data folder of noise, with masks of any shape: single pixels, holes, whole images."
    rng = np.random.default_rng(seed)
    (root / "train_images").mkdir(parents=True)
    rows = ["ImageId,ClassId,EncodedPixels"]
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, SHAPE, np.uint8)).save(root / f"train_images/{i}.png")
        labels = rng.integers(0, classes + 1, SHAPE) * (rng.random(SHAPE) < rng.random())
        labels = labels if i else np.full(SHAPE, classes)
        for k in range(1, classes + 1):
            mask = (labels == k) | (overlap & (labels == 1))
            if mask.any():
                rows.append(f"{i}.png,{k},{rle_encode(mask)}")
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return read_folder(root)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_there_and_back_no_pixel_changes(tmp_path, to, seed):
    folder = make_folder(tmp_path / "data", seed)
    made = export_masks(label_source(folder), tmp_path / "out", to)
    import_folder(folder.root / "train_images", made.path, tmp_path / "again")
    again = read_folder(tmp_path / "again")
    assert (tmp_path / "again/train.csv").read_bytes() == (folder.root / "train.csv").read_bytes()
    assert again.sha256 == folder.sha256 and made.changed == 0
    assert (made.masks, made.pixels) == (len(folder.masks), folder.truth_area().sum())


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "png"])
def test_classes_that_overlap_stay_as_they_are(tmp_path, to):
    folder = make_folder(tmp_path / "data", 5, overlap=True)
    import_folder(
        folder.root / "train_images", export_masks(label_source(folder), tmp_path / "out", to).path, tmp_path / "b"
    )
    assert read_folder(tmp_path / "b").sha256 == folder.sha256


def test_a_label_map_has_no_place_for_two_classes(tmp_path):
    folder = make_folder(tmp_path / "data", 5, overlap=True)
    with pytest.raises(ValueError, match="pixels of class 2 have another class too.*png-classes or coco"):
        export_masks(label_source(folder), tmp_path / "out", "png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["masks", "polygons"])
def test_pycocotools_reads_what_is_written(tmp_path, form):
    folder = make_folder(tmp_path / "data", 2)
    made = export_masks(label_source(folder), tmp_path / "coco.json", "coco", form)
    coco = COCO(str(made.path))
    differ = 0
    for image in coco.loadImgs(coco.getImgIds()):
        drawn = np.zeros((3, *SHAPE), bool)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            drawn[annotation["category_id"] - 1] |= coco.annToMask(annotation) > 0
            x, y, width, height = annotation["bbox"]
            rows, cols = np.nonzero(coco.annToMask(annotation)) if form == "masks" else ([y], [x])
            assert min(cols) >= x and max(cols) < x + width and min(rows) >= y and max(rows) < y + height
        differ += int((drawn != folder.mask(image["file_name"])).sum())
    assert differ == 0 if form == "masks" else differ <= made.changed


solid = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(solid)
def test_outlines_give_every_pixel_but_holes(drawn):
    height, width, seed, density = drawn
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    for part in components(mask):
        other = np.pad(~part, 1, constant_values=True).astype(np.uint8)
        holes = ~components(other, 4)[0][1:-1, 1:-1] & ~part  # what no path from the border reaches, side by side
        in_coco = rle_decode(segmentation_rle(coco_polygons(part), mask.shape).rle, mask.shape) > 0
        polygons = labelme_polygons(part)
        shapes = [LabelmeShape("", "a", "polygon", points, None) for points in polygons]
        in_labelme = np.any([shape_mask(shape, mask.shape) for shape in shapes], axis=0)
        for got in (in_coco, in_labelme):
            assert (got >= part).all() and (got[~part & ~holes] == 0).all()


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    folder = make_folder(root / "data", 1, n=6)
    run = make_up_run(root / "run", folder, np.random.default_rng(0))
    rules = (Rule(thresh=120), Rule(thresh=140), Rule(thresh=128, min_area=20))
    write_rules(root / "run/rule.json", rules)
    return folder, root / "run", run, rules


def test_the_masks_of_a_run_are_those_of_its_rule(decided, tmp_path):
    folder, path, run, rules = decided
    source = run_source(path, folder)
    export_masks(source, tmp_path / "out.json", "coco")
    import_folder(folder.root / "train_images", tmp_path / "out.json", tmp_path / "data")
    again = read_folder(tmp_path / "data", n_classes=3)
    for image_id in folder.images.image_id:
        assert (again.mask(image_id) == masks_of(open_run(run), image_id, rules)).all()


def main(*argv):
    return cli.main([str(a) for a in argv])


def test_from_the_queue_to_corrected_labels(decided, tmp_path, capsys):
    "The images of the queue go to labelme; one mask is taken away there, and everything else stays."
    folder, run, *_ = decided
    flags = [Flag(f"{i}.png", "1", "not a defect", np.nan, np.nan, "") for i in (1, 4)]
    queue = write_queue(tmp_path / "queue.csv", flags)
    out = tmp_path / "labelme"
    command = ["export", "--data", folder.root, "--to", "labelme", "--queue", queue, "--images", tmp_path / "images"]
    assert main(*command, "--out", out) == 0
    content = json.loads((out / "4.json").read_text())
    assert content["flags"] == {"not a defect (class 1)": True}
    assert (out / content["imagePath"]).resolve() == (tmp_path / "images/4.png").resolve()
    content["shapes"] = [shape for shape in content["shapes"] if shape["label"] != "class 1"]
    (out / "4.json").write_text(json.dumps(content))
    assert main("import", "--base", folder.root, "--labels", out, "--out", tmp_path / "new") == 0
    assert "kept: 4 images as in" in capsys.readouterr().out
    again = read_folder(tmp_path / "new")
    for image_id in folder.images.image_id:
        expected = [pair for pair in folder.labels(image_id) if image_id != "4.png" or pair[0] != 0]
        assert again.labels(image_id) == expected


def test_a_submission_is_exported(decided, tmp_path, capsys):
    folder, run, *_ = decided
    assert main("submit", "--data", folder.root, "--run", run) == 0
    command = ["export", "--data", folder.root, "--masks", run / "submission.csv", "--to", "csv", "--json"]
    assert main(*command, "--out", tmp_path / "a.csv") == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main("export", "--data", folder.root, "--run", run, "--to", "csv", "--out", tmp_path / "b.csv") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes() and made["images"] == 6


@pytest.mark.parametrize(
    "options, says",
    [
        (["--to", "csv", "--as", "polygons"], "csv has masks only"),
        (["--to", "csv", "--part", "oof"], "give --run too"),
        (["--to", "coco", "--run", "nowhere"], "not decided yet"),
        (["--to", "coco", "--queue", "nowhere.csv"], "no such file"),
        (["--to", "coco", "--masks", "nowhere.csv"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(decided, tmp_path, capsys, options, says):
    assert main("export", "--data", decided[0].root, "--out", tmp_path / "out", *options) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())
