"""Synthetic folders: same seed same bytes, the competition's frequencies and areas, labels that fit, refused input."""

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import real_data

from steel_seg.rle import rle_decode
from steel_seg.synth import (
    AREAS,
    CLASS_SETS,
    COPY_EVERY,
    _draw_area,
    _draw_classes,
    _name,
    _source,
    make_folder,
    make_strip,
)

SMALL = (48, 64)


def digest(folder):
    "SHA-256 over every file of a folder, names and bytes."
    h = hashlib.sha256()
    for p in sorted(p for p in folder.rglob("*") if p.is_file()):
        h.update(str(p.relative_to(folder)).encode() + b"\0" + p.read_bytes())
    return h.hexdigest()


def table(folder, name="train.csv"):
    "{(image, ClassId): rle} of the rows that hold a mask, in either layout; and the number of rows."
    t = pd.read_csv(folder / name, keep_default_na=False, dtype=str)
    if "ImageId_ClassId" in t:
        t[["ImageId", "ClassId"]] = t.ImageId_ClassId.str.rsplit("_", n=1, expand=True)
    return {(r.ImageId, r.ClassId): r.EncodedPixels for r in t.itertuples() if r.EncodedPixels}, len(t)


def test_same_seed_same_bytes(tmp_path):
    a, b = (make_folder(tmp_path / k, 12, 3, SMALL, seed=4) for k in "ab")
    assert digest(a) == digest(b)
    c = make_folder(tmp_path / "c", 12, 3, SMALL, seed=5)

    def content(folder):
        return {p.read_bytes() for p in folder.rglob("*.jpg")}

    assert len(content(a)) == 15 and not content(a) & content(c)


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = make_folder(tmp_path / "few", 5, 1, SMALL, seed=9), make_folder(tmp_path / "many", 30, 4, SMALL, seed=9)
    for part in "train_images", "test_images":
        files = sorted((few / part).iterdir())
        assert files and all((many / part / p.name).read_bytes() == p.read_bytes() for p in files)
    masks, more = table(few)[0], table(many)[0]
    names = {p.name for p in (few / "train_images").iterdir()}
    assert masks == {k: v for k, v in more.items() if k[0] in names}


def test_both_layouts_describe_the_same_masks(tmp_path):
    today, old = (make_folder(tmp_path / k, 30, 3, SMALL, layout=k, seed=2) for k in ("today", "2019"))
    (a, rows_a), (b, rows_b) = table(today), table(old)
    assert a and a == b
    assert rows_a == len(a) and rows_b == 4 * 30
    assert (today / "train.csv").read_text().startswith("ImageId,ClassId,EncodedPixels\n")
    assert (old / "train.csv").read_text().startswith("ImageId_ClassId,EncodedPixels\n")
    for folder in today, old:
        truth, rows = table(folder, "test_truth.csv")
        sample, sample_rows = table(folder, "sample_submission.csv")
        assert rows == sample_rows == 4 * 3 and set(sample.values()) == {"1 1"} and set(truth) <= set(sample)
        assert (folder / "test_truth.csv").read_text().split("\n")[0] == (
            folder / "sample_submission.csv"
        ).read_text().split("\n")[0]
    assert [p.read_bytes() for p in sorted((today / "train_images").iterdir())] == [
        p.read_bytes() for p in sorted((old / "train_images").iterdir())
    ]


def test_rows_decode_to_the_strip_of_that_image(tmp_path):
    folder = make_folder(tmp_path / "a", 8, 0, SMALL, seed=6)
    found = table(folder)[0]
    assert found
    for i in range(8):
        strip = make_strip(np.random.default_rng([6, 0, i, 0]), SMALL)
        for k in range(4):
            rle = found.get((_name(6, 0, i), str(k + 1)), "")
            assert np.array_equal(rle_decode(rle, SMALL), strip.labels[k])


def test_copies_are_byte_identical_and_some_are_labelled_again(tmp_path):
    n, seed = 2 * COPY_EVERY, 3
    folder = make_folder(tmp_path / "a", n, 0, SMALL, seed=seed)
    found, read = table(folder)[0], lambda i: (folder / "train_images" / _name(seed, 0, i)).read_bytes()

    def masks(i):
        return [found.get((_name(seed, 0, i), str(k)), "") for k in range(1, 5)]

    first, second = COPY_EVERY - 1, 2 * COPY_EVERY - 1
    for copy in first, second:
        source, again = _source(seed, copy)
        assert source < copy and again == (copy == second)
        assert read(copy) == read(source)
    assert masks(first) == masks(_source(seed, first)[0])
    assert masks(second) != masks(_source(seed, second)[0])
    assert [bool(m) for m in masks(second)] == [bool(m) for m in masks(_source(seed, second)[0])]
    both = np.stack([rle_decode(m, SMALL) for m in masks(second)])
    assert both.sum(0).max() == 1
    assert len({read(i) for i in range(n)}) == n - 2


def test_files_are_grey_jpegs_as_the_competitions(tmp_path):
    folder = make_folder(tmp_path / "a", 2, 1, (64, 100))
    for path in [*(folder / "train_images").iterdir(), *(folder / "test_images").iterdir()]:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image.shape == (64, 100, 3)
        assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()
        data = path.read_bytes()
        at = (
            data.index(b"\xff\xdb") + 5
        )  # the first quantisation table: libjpeg's at quality 90 begins 3, 2, 2, 3, 2, 2, 3, 3 in zigzag order
        assert list(data[at : at + 8]) == [3, 2, 2, 3, 2, 2, 3, 3]
    assert sorted(p.name for p in folder.iterdir()) == [
        "sample_submission.csv",
        "test_images",
        "test_truth.csv",
        "train.csv",
        "train_images",
    ]


def test_names_do_not_collide():
    names = {_name(seed, split, i) for seed in (0, 1) for split in (0, 1) for i in range(20000)}
    assert len(names) == 80000 and all(len(n) == 13 for n in names)


@pytest.mark.parametrize("shape", [(32, 32), SMALL, (64, 400), (200, 200), (400, 32), (256, 1600)])
def test_any_size_holds_what_was_asked_for(shape):
    for seed, classes in enumerate([(), (0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)]):
        s = make_strip(np.random.default_rng(seed), shape, classes)
        assert s.image.shape == shape and s.image.dtype == np.uint8
        assert s.labels.shape == s.defects.shape == (4, *shape) and s.labels.dtype == s.defects.dtype == np.uint8
        assert set(np.unique(s.labels)) <= {0, 1} and set(np.unique(s.defects)) <= {0, 1}
        assert [k for k in range(4) if s.labels[k].any()] == list(classes)
        assert [k for k in range(4) if s.defects[k].any()] == list(classes)
        assert s.labels.sum(0).max() <= 1, "a pixel has two classes"
        assert s.image.std() > 2


def test_labels_are_loose_and_hold_most_of_the_damage():
    for k in range(4):
        strips = [make_strip(np.random.default_rng([k, i]), (64, 400), [k]) for i in range(40)]
        held = np.array([(s.labels & s.defects).sum() / s.defects.sum() for s in strips])
        assert held.mean() > 0.93 and np.quantile(held, 0.1) > 0.75
        assert held.min() < 1, "not one label cuts across its defect"
        filled = np.median([(s.labels & s.defects)[k].sum() / s.labels[k].sum() for s in strips])
        assert filled < 0.9, "labels fit as no annotator's would"


@pytest.mark.parametrize("shape, n", [(SMALL, 80), ((64, 400), 60), ((128, 800), 25)])
def test_areas_are_the_competitions_share_of_a_strip(shape, n):
    full = 256 * 1600 / (shape[0] * shape[1])
    for k in range(4):
        area = [make_strip(np.random.default_rng([3, k, i]), shape, [k]).labels[k].sum() * full for i in range(n)]
        assert 0.5 < np.median(area) / AREAS[k][4] < 2, (k, np.median(area))


def test_damage_can_be_seen():
    "Inside its label, a defect differs from the steel around it by more than the steel does from itself."
    for k in range(4):
        seen = []
        for i in range(30):
            s = make_strip(np.random.default_rng([7, k, i]), (64, 400), [k])
            image, hurt = s.image.astype(float), s.defects[k] > 0
            near = cv2.dilate(hurt.astype(np.uint8), np.ones((9, 9))) > 0
            plain = near & ~hurt & (image > 3)
            if plain.sum() < 8:
                continue
            seen.append(abs(image[hurt] - image[plain].mean()).mean() / (image[plain].std() + 1))
        assert np.median(seen) > 1.5, (k, np.median(seen))


def test_a_blank_class_is_not_planted_by_chance():
    "Over clean strips, chalk and stains never count as a label."
    for i in range(20):
        s = make_strip(np.random.default_rng(i), (64, 200), ())
        assert not s.labels.any() and not s.defects.any()


def test_some_strips_are_narrower_than_the_view():
    bars = [(make_strip(np.random.default_rng(i), SMALL, ()).image.max(0) <= 2).mean() for i in range(150)]
    assert 0.03 < np.mean(np.array(bars) > 0.02) < 0.25


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"shape": (31, 64)}, "31×64 pixels cannot be drawn"),
        ({"shape": (64.5, 64)}, "64.5×64 pixels cannot be drawn"),
        ({"classes": [0, 4]}, "channel 4 is not one of"),
        ({"classes": ["1"]}, "channel '1' is not one of"),
        ({"classes": [-1]}, "channel -1 is not one of"),
    ],
)
def test_make_strip_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_strip(np.random.default_rng(0), **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layout": "2020"}, "layout '2020' is not known"),
        ({"n_train": -1}, "must not be negative"),
        ({"seed": -1}, "must not be negative"),
        ({"shape": (8, 8)}, "8×8 pixels cannot be drawn"),
    ],
)
def test_make_folder_refuses_and_leaves_nothing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_folder(tmp_path / "a", **{"n_train": 1, "n_test": 0, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_make_folder_never_replaces_what_is_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="already there"):
        make_folder(tmp_path / "a", 1, 0, SMALL)
    assert (tmp_path / "a" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (make_folder(tmp_path / "empty", 1, 0, SMALL) / "train.csv").is_file()


@pytest.mark.real
def test_frequencies_and_areas_are_the_competitions():
    t = pd.read_csv(real_data("severstal-labels") / "image_level.csv")
    real = t[[f"c{k}" for k in range(1, 5)]].to_numpy()
    counts = pd.Series([tuple(np.flatnonzero(r).tolist()) for r in real]).value_counts().to_dict()
    assert counts == CLASS_SETS
    rng, n = np.random.default_rng(0), 8000
    drawn = [_draw_classes(rng) for _ in range(n)]
    assert abs(np.mean([d == () for d in drawn]) - (real.sum(1) == 0).mean()) < 0.02
    for k in range(4):
        assert abs(np.mean([k in d for d in drawn]) - real[:, k].mean()) < 0.02
        area = t[f"area_c{k + 1}"][real[:, k] == 1]
        assert np.allclose(
            np.quantile(area, (0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1)), AREAS[k], rtol=0.01, atol=1
        )
        asked = [_draw_area(rng, k, (256, 1600)) for _ in range(2000)]
        assert abs(np.median(np.log(asked)) - np.median(np.log(area))) < 0.15
        got = [make_strip(rng, (64, 400), [k]).labels[k].sum() * 16 for _ in range(120)]
        assert abs(np.median(np.log(got)) - np.median(np.log(area))) < 0.35, "drawn labels miss the area asked for"
        assert 0.6 < np.std(np.log(got)) / np.std(np.log(area)) < 1.5


@pytest.mark.real
def test_strips_are_as_bright_and_as_rough_as_real_ones():
    files = sorted((real_data("severstal-sample") / "train_images").iterdir())
    real = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in files]
    made = [make_strip(np.random.default_rng([1, i])).image for i in range(40)]

    def look(image):
        "Level; relative to it: contrast, grain, and how alike the grain of two neighbours is."
        g = image[:, image.mean(0) > 6].astype(np.float32)
        fine = g - cv2.GaussianBlur(g, (0, 0), 2)
        return (
            g.mean(),
            g.std() / g.mean(),
            np.median(abs(fine)) / g.mean(),
            (fine[:, 1:] * fine[:, :-1]).mean() / (fine**2).mean(),
        )

    a, b = (np.median([look(i) for i in images], 0) for images in (real, made))
    assert (abs(b / a - 1) < 0.35).all(), (a, b)
