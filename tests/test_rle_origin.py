"""Labels that were not written for their strips are doubted, and honest ones are not: along the rows, counted from 0,
for another size, cut by a tool, a file without its end."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from PIL import Image

from steel_seg.data import DataWarning, check_folder, read_folder
from steel_seg.rle import rle_decode, rle_encode
from steel_seg.rle_origin import CELL_LIMITS, from_rows, rle_doubts
from steel_seg.submit import check_submission
from steel_seg.synth import make_folder

SHAPES = (64, 160), (128, 800), (64, 128), (64, 96)


def along_rows(rle, shape):
    return rle_encode(rle_decode(rle, shape).T)


def from_zero(rle, shape):
    numbers = [int(text) for text in rle.split()]
    numbers[::2] = [start - 1 for start in numbers[::2]]
    return " ".join(map(str, numbers)) if numbers[0] else rle


def resized(height, width):
    def change(rle, shape):
        size = int(width * shape[1]), int(height * shape[0])
        return rle_encode(cv2.resize(rle_decode(rle, shape), size, interpolation=cv2.INTER_NEAREST))

    return change


DAMAGE = {
    "written along the rows": along_rows,
    "counted from 0": from_zero,
    "half the size": resized(0.5, 0.5),
    "half the height": resized(0.5, 1),
    "three quarters": resized(0.75, 0.75),
}
SAYS = {"half the size": "height", "half the height": "height", "three quarters": "height"}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def strips(request, tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("strips") / "data", 60, 4, request.param, seed=5), request.param


def rewrite(folder, where, change):
    "A copy of a folder (its images linked) whose masks were changed; what is empty or too long is left out."
    where.mkdir()
    (where / "train_images").symlink_to(folder / "train_images")
    table = pd.read_csv(folder / "train.csv", keep_default_na=False)
    table["EncodedPixels"] = [change(rle) for rle in table.EncodedPixels]
    table[table.EncodedPixels != ""].to_csv(where / "train.csv", index=False)
    return where


@pytest.mark.parametrize("kind", DAMAGE)
def test_labels_of_other_strips_are_doubted_where_they_are_read(strips, tmp_path, kind):
    folder, shape = strips
    bad = rewrite(folder, tmp_path / "bad", lambda rle: DAMAGE[kind](rle, shape))
    words = SAYS.get(kind, kind)
    faults = check_folder(bad, n_classes=4, read_images=False)
    assert (faults.severity == "warning").all() and faults.file.eq("train.csv").all()
    assert words in faults.problem[0] and faults.row[0] == 0
    with pytest.warns(DataWarning, match=words):
        read_folder(bad, n_classes=4)


def test_a_command_says_it_in_one_line(tmp_path):
    shape = (64, 160)
    folder = make_folder(tmp_path / "data", 20, 0, shape, seed=5)
    bad = rewrite(folder, tmp_path / "bad", lambda rle: along_rows(rle, shape))
    code = "import sys; from steel_seg.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "decide", "--data", str(bad), "--run", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    said, mistake = done.stderr.splitlines()
    assert re.fullmatch(f"warning: {bad}: train.csv: .*along the rows.*", said)
    assert done.returncode == 2 and "steel_seg decide" in mistake  # there is no such run


def test_honest_labels_are_not_doubted(strips, recwarn):
    folder, _ = strips
    assert check_folder(folder, read_images=False).empty and read_folder(folder).warnings.empty
    assert not [w for w in recwarn if w.category is DataWarning]


def test_noise_and_textures_are_not_doubted():
    rng = np.random.default_rng(0)
    for shape in ((256, 1600), (64, 128), (40, 100)):
        for k in range(60):
            masks = rng.random((rng.integers(1, 6), *shape)) < (0.01, 0.06, 0.3, 0.5)[k % 4]
            masks[:, : rng.integers(shape[0] // 2), : rng.integers(shape[1] - 8)] = False
            assert rle_doubts([rle_encode(mask) for mask in masks], shape) == []
        # lines along the strip, and across it; with just a half or a quarter of the height nobody could tell
        for gap in (2, 3, 5, 7, shape[0] // 8 + 1, shape[0] // 4 + 1, shape[0] // 2 - 3):
            if gap * shape[0] == shape[1]:
                continue  # a texture that repeats after just one width cannot be told from one along the rows
            lines = np.zeros((2, *shape), np.uint8)
            lines[0, 1:-1:gap, 5:30] = 1
            lines[1, 4:30, ::gap] = 1
            assert rle_doubts([rle_encode(mask) for mask in lines] * 3, shape) == [], gap


def test_a_few_masks_along_the_rows_are_named(strips, tmp_path):
    folder, shape = strips
    table = pd.read_csv(folder / "train.csv", keep_default_na=False)
    longest = set(table.EncodedPixels.loc[table.EncodedPixels.str.len().nlargest(3).index])
    bad = rewrite(folder, tmp_path / "bad", lambda rle: along_rows(rle, shape) if rle in longest else rle)
    faults = check_folder(bad, n_classes=4, read_images=False)
    assert set(faults.row) == {0, *(table.index[table.EncodedPixels.isin(longest)] + 2)}
    mended = rewrite(
        bad, tmp_path / "good", lambda rle: from_rows(rle, shape) if rle not in set(table.EncodedPixels) else rle
    )
    assert check_folder(mended, n_classes=4, read_images=False).empty
    assert (mended / "train.csv").read_text() == (folder / "train.csv").read_text()


@pytest.mark.parametrize("limit", CELL_LIMITS)
def test_masks_cut_at_a_tools_limit_are_doubted(limit):
    rng = np.random.default_rng(limit)
    shape = (256, 8192)
    whole = [rle_encode(rng.random(shape) < p) for p in (0.02, 0.05, 0.05)]
    whole = [rle for rle in whole if len(rle) > limit]
    cut = []
    for rle in whole:
        text = rle[:limit].rstrip()
        cut.append(text if len(text.split()) % 2 == 0 else " ".join(text.split()[:-1]).ljust(limit, "0"))
    cut = [rle for rle in cut if len(rle) in (limit, limit - 1)]
    assert len(cut) >= 2
    doubts = [doubt for doubt in rle_doubts(cut, shape) if "cut" in doubt.problem]
    assert [doubt.mask for doubt in doubts] == list(range(len(cut)))
    assert all(f"after {limit:,} characters" in doubt.problem for doubt in doubts)
    assert not [doubt for doubt in rle_doubts(whole, shape) if "cut" in doubt.problem]


def test_a_file_without_its_end_is_a_warning(strips, tmp_path):
    folder, _ = strips
    where = rewrite(folder, tmp_path / "cut", lambda rle: rle)
    text = (where / "train.csv").read_text()
    (where / "train.csv").write_text(text.rstrip("\n"))
    faults = check_folder(where, n_classes=4, read_images=False)
    assert faults.problem.str.contains("no line end after the last row").tolist() == [True]
    assert faults.row[0] == len(text.splitlines())


def test_a_submission_along_the_rows_is_doubted(strips, tmp_path):
    folder, shape = strips
    table = pd.read_csv(folder / "test_truth.csv", keep_default_na=False)
    wide = np.zeros(shape, np.uint8)
    wide[5:20, 7:60] = 1
    for change, doubted in ((lambda mask: mask, False), (lambda mask: mask.T, True)):
        table["EncodedPixels"] = [rle_encode(change(wide)) if k % 4 == 0 else "" for k in range(len(table))]
        table.to_csv(tmp_path / "s.csv", index=False)
        faults = check_submission(tmp_path / "s.csv", folder / "sample_submission.csv", shape)
        assert faults.problem.str.contains("along the rows").any() == doubted


@pytest.mark.real
@pytest.mark.parametrize(
    "path, shape",
    [
        ("severstal-labels/train_partial.csv", (256, 1600)),
        ("severstal-sample/train.csv", (256, 1600)),
        ("neu-seg/train.csv", (200, 200)),
        ("severstal-submissions/public_test_a.csv", (256, 1600)),
    ],
)
def test_official_masks_raise_no_alarm_and_damaged_ones_do(path, shape):
    folder, name = path.split("/")
    rles = [rle for rle in pd.read_csv(real_data(folder) / name, keep_default_na=False).EncodedPixels if rle]
    assert rle_doubts(rles, shape) == []
    rng = np.random.default_rng(0)
    for n in (5, 20, 100):
        for _ in range(10):
            some = [rles[i] for i in rng.permutation(len(rles))[:n]]
            assert rle_doubts(some, shape) == []
    some = [rles[i] for i in rng.permutation(len(rles))[:300]]
    for kind, change in DAMAGE.items():
        if kind == "written along the rows" and shape[0] == shape[1]:
            continue  # a square strip has no longer side
        words = SAYS.get(kind, kind)
        damaged = [rle for rle in (change(rle, shape) for rle in some) if rle]
        assert words in rle_doubts(damaged, shape)[0].problem, kind


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_labels_were_drawn(tmp_path, suffix, orientation):
    "Images stored turned, with the tag that turns them back: the same pixels, size and labels as before."
    folder = make_folder(tmp_path / "data", 3, 1, (64, 96), seed=1)
    before = read_folder(folder)
    upright = {i: before.image(i) for i in [*before.images.image_id, *before.test.image_id]}
    turned = make_folder(tmp_path / "turned", 3, 1, (64, 96), seed=1)
    steps = {2: "m", 3: "rr", 4: "mrr", 5: "mr", 6: "r", 7: "mrrr", 8: "rrr"}.get(orientation, "")
    for path in [*turned.glob("t*_images/*")]:
        stored = upright[path.name]
        for step in steps:
            stored = stored[:, ::-1] if step == "m" else np.rot90(stored)
        tags = Image.Exif()
        tags[0x0112] = orientation
        path.unlink()
        lossless = {"lossless": True} if suffix == ".webp" else {}
        image = Image.fromarray(np.ascontiguousarray(stored))
        image.save(path.with_suffix(suffix), exif=tags, quality=100, **lossless)
    for name in ("train.csv", "sample_submission.csv"):
        text = (turned / name).read_text().replace(".jpg", suffix)
        (turned / name).write_text(text)
    after = read_folder(turned)
    assert after.shape == before.shape
    for image_id, image in upright.items():
        difference = after.image(image_id.replace(".jpg", suffix)).astype(int) - image
        assert abs(difference).max() <= (3 if suffix == ".jpg" else 0)
    said = check_folder(turned).problem.str.startswith(f"is turned by its EXIF orientation {orientation}")
    assert said.sum() == (4 if orientation > 1 and suffix != ".tif" else 0)  # every reader turns a TIFF
