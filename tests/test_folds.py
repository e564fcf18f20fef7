"""Folds are alike, whole, the same for the same seed, and never split twins."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steel_seg.data import read_folder, same_bytes
from steel_seg.folds import make_folds, read_folds, write_folds
from steel_seg.synth import make_folder


class Folder:
    "As much of a StripFolder as folds ask for: ids, files and class sets."

    def __init__(self, sets, paths):
        self.images = pd.DataFrame({"image_id": [f"{n:05d}.jpg" for n in range(len(sets))], "path": paths})
        self.sets = list(sets)

    def __len__(self):
        return len(self.sets)

    def class_sets(self):
        return pd.Series(self.sets, dtype=object)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Files with bytes of their own, to give to images; the k-th may be given twice for twins."
    root = tmp_path_factory.mktemp("files")
    for n in range(400):
        (root / str(n)).write_text(str(n))
    return [root / str(n) for n in range(400)]


@pytest.fixture(scope="module")
def synth(tmp_path_factory):
    return read_folder(make_folder(tmp_path_factory.mktemp("folds") / "strips", 150, 0, (32, 32), seed=3))


def spread(fold, member, k):
    "Largest minus smallest number of members over the folds."
    return np.ptp(np.bincount(np.asarray(fold)[np.asarray(member, bool)], minlength=k))


SETS = ["", "", "", "", "3", "3", "3", "1", "4", "3+4", "2", "1+3", "1+2", "1+2+3"]


@given(sets=st.lists(st.sampled_from(SETS), min_size=12, max_size=400), k=st.integers(2, 10), seed=st.integers(0, 10))
@settings(max_examples=80, deadline=None)
def test_folds_are_alike(files, sets, k, seed):
    fold = make_folds(Folder(sets, files[: len(sets)]), k, seed).fold
    assert set(fold) == set(range(k))
    for s in set(sets) - {""}:
        assert spread(fold, [x == s for x in sets], k) <= 1
    for c in "1234":
        assert spread(fold, [c in x for x in sets], k) <= 4  # at most the number of sets that show it
    if sets.count("") >= 9 * k:
        assert spread(fold, [True] * len(sets), k) <= 1  # nine other sets, so enough clean images to even out


def test_the_competitions_mix_in_five_folds(files):
    # class sets of the training set, a tenth of each
    set_counts = {"": 160, "3": 130, "1": 21, "4": 14, "3+4": 8, "2": 5, "1+3": 3, "1+2": 1, "2+3": 1}
    sets = [s for s, n in set_counts.items() for _ in range(n)]
    fold = make_folds(Folder(sets, files[: len(sets)]), 5, 0).fold
    assert spread(fold, [True] * len(sets), 5) <= 1
    assert [int(spread(fold, [c in s for s in sets], 5)) <= 1 for c in "1234"] == [True] * 4


@given(sets=st.lists(st.sampled_from(SETS), min_size=20, max_size=80), k=st.integers(2, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_twins_share_a_fold(files, sets, k, data):
    file_numbers = st.integers(0, max(k, len(sets) // 2))
    file_of_image = data.draw(st.lists(file_numbers, min_size=len(sets), max_size=len(sets)))
    folder = Folder(sets, [files[n] for n in file_of_image])
    if len(set(file_of_image)) < k:
        with pytest.raises(ValueError, match="would be empty"):
            make_folds(folder, k, 0)
        return
    fold = make_folds(folder, k, 0).fold
    assert (fold.groupby(np.array(file_of_image)).nunique() == 1).all() and set(fold) == set(range(k))


def test_a_lump_of_copies_is_dealt_first(files):
    # four copies of one image, eight others of its class, four clean
    folder = Folder(["3"] * 12 + [""] * 4, files[:1] * 4 + files[1:13])
    for seed in range(20):
        fold = make_folds(folder, 3, seed).fold
        assert spread(fold, [True] * 12 + [False] * 4, 3) == 0 and spread(fold, [True] * 16, 3) == 1


def test_twins_of_synth_share_a_fold(synth):
    twin = same_bytes(synth.images.path)
    assert len(set(twin)) < len(synth)
    for seed in range(5):
        assert make_folds(synth, 4, seed).fold.groupby(twin).nunique().max() == 1


def test_a_fold_is_a_function_of_the_data_and_the_seed(synth, tmp_path):
    folds = make_folds(synth, 4, 7)
    assert folds.equals(make_folds(synth, 4, 7)) and not folds.equals(make_folds(synth, 4, 8))
    assert folds.image_id.equals(synth.images.image_id) and folds.columns.tolist() == ["image_id", "fold"]
    root = Path(shutil.copytree(synth.root, tmp_path / "strips"))
    lines = (root / "train.csv").read_text().splitlines(keepends=True)
    (root / "train.csv").write_text(lines[0] + "".join(np.random.default_rng(0).permutation(lines[1:])))
    assert folds.equals(make_folds(read_folder(root), 4, 7))


def test_k_is_between_two_and_the_images(files):
    folder = Folder(["", "1", "3", "3", "3"], files[:4] + files[3:4])  # five images, two of them twins
    for k in (-1, 0, 1):
        with pytest.raises(ValueError, match="needs 2 or more"):
            make_folds(folder, k, 0)
    for k in (5, 6):
        with pytest.raises(ValueError, match="4 different images"):
            make_folds(folder, k, 0)
    assert sorted(np.bincount(make_folds(folder, 4, 0).fold)) == [1, 1, 1, 2]


def test_the_table_survives_the_disk(tmp_path):
    ids = ["000123", "1e5.jpg", "NA", 'a "b", c.jpg', "ä.jpg"]
    folds = pd.DataFrame({"image_id": ids, "fold": [0, 1, 2, 0, 1]})
    path = write_folds(tmp_path / "run" / "folds.csv", folds)
    assert read_folds(path, ids).equals(folds)
    assert read_folds(path, ids[::-1]).fold.tolist() == [1, 0, 2, 1, 0]  # in the order asked for


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "empty file"),
        ("image_id,fold\n", "3 images have no fold"),
        ("fold,image_id\n0,a\n", "row 1: columns"),
        ("image_id,fold\na,0\nb,1\n", "1 images have no fold, the first is 'c'"),
        ("image_id,fold\na,0\nb,1\na,1\nc,0\n", "row 4: image 'a' is there twice"),
        ("image_id,fold\na,0\n\nx,1\n", "row 4: image 'x' is not in the data"),
        ("image_id,fold\na,0\nb,1\nc,x\n", "row 4: 'c,x'"),
        ("image_id,fold\na,0\nb,1\nc,1.0\n", "row 4"),
        ("image_id,fold\na,0\nb,1\nc,\n", "row 4"),
        ("image_id,fold\na,0\nb,1\nc\n", "row 4"),
        ("image_id,fold\na,0\nb,1\nc,3\n", "without a gap"),
        ("image_id,fold\na,1\nb,2\nc,3\n", "without a gap"),
        ("image_id,fold\na,0\nb,0\nc,0\n", "two or more"),
        ('image_id,fold\na,0\n"b,1\nc,1\n', "row 3: a quote"),
        (b"image_id,fold\na,0\nb\xff,1\nc,1\n", "row 3: not UTF-8"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, text, says):
    path = tmp_path / "folds.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="folds.csv") as e:
        read_folds(path, ["a", "b", "c"])
    assert says in str(e.value)


def test_no_table_is_said(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_folds(tmp_path / "folds.csv", ["a"])


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_refused(tmp_path, data):
    (tmp_path / "folds.csv").write_bytes(data)
    with pytest.raises(ValueError, match="folds.csv"):
        read_folds(tmp_path / "folds.csv", ["a", "b"])


@pytest.mark.real
@pytest.mark.parametrize("name, k", [("severstal-sample", 2), ("severstal-sample", 5), ("neu-seg", 5)])
def test_real_folds_are_alike(name, k):
    folder = read_folder(real_data(name))
    fold, sets = make_folds(folder, k, 0).fold, folder.class_sets()
    assert spread(fold, [True] * len(folder), k) <= 1
    for s in set(sets):
        assert spread(fold, sets == s, k) <= 2
    for c in range(folder.n_classes):
        assert spread(fold, folder.truth_area()[:, c] > 0, k) <= 2
