"""A folder is read in either layout, and whatever is done to it is named by file and row."""

import re
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from steel_seg.class_scores import read_class_probs
from steel_seg.data import (
    FAULT_COLUMNS,
    DataWarning,
    channel_of,
    check_folder,
    class_id,
    csv_rows,
    read_folder,
    read_image,
    read_table,
    same_bytes,
)
from steel_seg.rle import rle_encode
from steel_seg.submit import check_submission
from steel_seg.synth import make_folder

SHAPE = (32, 64)
SLOW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "The same synthetic strips in both layouts."
    root = tmp_path_factory.mktemp("data")
    return {layout: make_folder(root / layout, 24, 3, SHAPE, layout, seed=4) for layout in ("today", "2019")}


@pytest.fixture
def today(folders, tmp_path):
    "A copy that a test may damage."
    return Path(shutil.copytree(folders["today"], tmp_path / "strips"))


def errors(table):
    return table[table.severity == "error"]


# --- reading


def test_both_layouts_are_one_table(folders):
    a, b = read_folder(folders["today"]), read_folder(folders["2019"])
    assert (a.layout, b.layout) == ("today", "2019")
    assert a.images.image_id.equals(b.images.image_id) and a.test.image_id.equals(b.test.image_id)
    keys = ["image_id", "channel", "rle"]
    assert a.masks[keys].sort_values(keys[:2]).values.tolist() == b.masks[keys].sort_values(keys[:2]).values.tolist()
    assert len(a.masks) > 5 and (a.truth_area() == b.truth_area()).all() and a.class_sets().equals(b.class_sets())
    assert a.shape == b.shape == SHAPE and a.n_classes == b.n_classes == 4
    assert len(a.warnings) == len(b.warnings) == 0
    assert a.sha256 != b.sha256  # other bytes in train.csv


def test_mask_area_and_class_set_agree(folders):
    folder = read_folder(folders["today"])
    for n, image_id in enumerate(folder.images.image_id):
        mask = folder.mask(image_id)
        assert mask.shape == (4, *SHAPE) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        assert mask.sum(axis=(1, 2)).tolist() == folder.truth_area()[n].tolist()
        assert "+".join(str(class_id(c)) for c in range(4) if mask[c].any()) == folder.class_sets()[n]
        for c, rle in folder.masks[folder.masks.image_id == image_id][["channel", "rle"]].values:
            assert rle_encode(mask[c]) == rle


def test_masks_say_their_line_in_the_csv(folders):
    for layout, root in folders.items():
        lines = (root / "train.csv").read_text().splitlines()
        for m in read_folder(root).masks.itertuples():
            assert m.image_id in lines[m.row - 1] and lines[m.row - 1].endswith("," + m.rle), layout


def test_the_hash_follows_csv_and_images(today):
    before = read_folder(today).sha256
    assert read_folder(today).sha256 == before
    (today / "train_images" / read_folder(today).images.image_id[0]).unlink()
    lines = (today / "train.csv").read_text().splitlines(keepends=True)
    (today / "train.csv").write_text(
        lines[0]
        + "".join(x for x in lines[1:] if x.split(",")[0] in {p.name for p in (today / "train_images").iterdir()})
    )
    without = read_folder(today).sha256
    (today / "train.csv").write_text((today / "train.csv").read_text() + "\n")
    assert len({before, without, read_folder(today).sha256}) == 3


def test_ids_and_strings_stay_text(tmp_path):
    ids = [
        "000123",
        "1e5.jpg",
        "NA",
        "nan.png",
        "None",
        "true",
        "-0",
        "1_2",
        " a",
        'with "quotes", comma.jpg',
        "ärger.jpg",
        "0x10",
        "inf",
    ]
    for layout in ("today", "2019"):
        frame = pd.DataFrame(
            [(i, str(k), rle) for i in ids for k, rle in ((1, "1 3"), (2, ""))],
            columns=["ImageId", "ClassId", "EncodedPixels"],
        )
        if layout == "2019":
            frame = pd.DataFrame(
                {"ImageId_ClassId": frame.ImageId + "_" + frame.ClassId, "EncodedPixels": frame.EncodedPixels}
            )
        for write in ({}, {"quoting": 1}, {"lineterminator": "\r\n"}, {"encoding": "utf-8-sig"}):
            frame.to_csv(tmp_path / "t.csv", index=False, **write)
            table, found = read_table(tmp_path / "t.csv")
            assert found == layout and table.image_id.tolist() == [i for i in ids for _ in range(2)]
            assert table.channel.tolist() == [0, 1] * len(ids) and table.rle.tolist() == ["1 3", ""] * len(ids)


def test_columns_stand_in_any_order(folders, tmp_path):
    frame = pd.read_csv(folders["today"] / "train.csv", dtype=str, keep_default_na=False)
    a, _ = read_table(folders["today"] / "train.csv")
    frame[["EncodedPixels", "ImageId", "ClassId"]].to_csv(tmp_path / "t.csv", index=False)
    assert read_table(tmp_path / "t.csv")[0].equals(a)


def test_rows_are_the_lines_of_an_editor(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b'ImageId,ClassId,EncodedPixels\r\n\r\na,1,1 2\r\n  \r\n"b",2,"1\n2"\r\nc,1,\r\n\n\nd,4,7 1'
    )
    assert read_table(tmp_path / "t.csv")[0].row.tolist() == [3, 5, 7, 10]


def test_a_long_mask_is_read_whole(tmp_path):
    mask = np.indices((512, 512)).sum(axis=0) % 2  # a chessboard: 131,072 runs, over the csv module's limit of a field
    (tmp_path / "t.csv").write_text(f"ImageId,ClassId,EncodedPixels\na,1,{rle_encode(mask)}\n")
    assert len(read_table(tmp_path / "t.csv")[0].rle[0]) > 500_000


def test_class_ids():
    assert [channel_of(class_id(c)) for c in range(999)] == list(range(999))
    for bad in (0, -1, 1000, "01", "1.0", " 1", "1\n", "²", "", "x", None, 1.0):
        with pytest.raises(ValueError, match="unknown class"):
            channel_of(bad)
    with pytest.raises(ValueError, match="there are 4 classes"):
        channel_of(5, 4)
    with pytest.raises(ValueError, match="count from 0"):
        class_id(-1)


def test_suffixes_in_any_case_and_size_from_the_data(tmp_path):
    (tmp_path / "train_images").mkdir()
    for name in ("a.JPG", "b.Jpeg", "c.png", "d.PNG"):
        cv2.imwrite(str(tmp_path / "train_images" / name), np.full((20, 30), 7, np.uint8))
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.JPG,2,1 600\n")
    folder = read_folder(tmp_path)
    assert (folder.images.image_id.tolist(), folder.shape, folder.n_classes) == (
        ["a.JPG", "b.Jpeg", "c.png", "d.PNG"],
        (20, 30),
        2,
    )
    assert folder.truth_area().tolist() == [[0, 600], [0, 0], [0, 0], [0, 0]]
    assert read_folder(tmp_path, n_classes=5).mask("b.Jpeg").shape == (5, 20, 30)
    (tmp_path / "sample_submission.csv").write_text(
        "ImageId,ClassId,EncodedPixels\nz.jpg,1,1 1\nz.jpg,2,1 1\nz.jpg,3,1 1\n"
    )
    assert read_folder(tmp_path).n_classes == 3  # a class that no train image shows


def test_reading_looks_at_headers_and_leaves_pixels_to_check(today, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *a: pytest.fail("decoded"))
    assert len(read_folder(today)) == 24 and len(check_folder(today, read_images=False)) == 0


# --- one fault at a time


def _csv(root, old, new, n=1):
    text = (root / "train.csv").read_text()
    assert old in text
    (root / "train.csv").write_text(text.replace(old, new, n))


def _image(root, n=0):
    return sorted((root / "train_images").iterdir())[n]


def _cut(root):
    p = _image(root)
    p.write_bytes(p.read_bytes()[:-300])
    return f"train_images/{p.name}"


def _header_only(root):
    p = _image(root)
    p.write_bytes(p.read_bytes()[:30])
    return f"train_images/{p.name}"


def _void(root):
    p = _image(root)
    p.write_bytes(b"")
    return f"train_images/{p.name}"


def _html(root):
    p = _image(root)
    p.write_bytes(b"<html>404 not found</html>")
    return f"train_images/{p.name}"


def _other_size(root):
    p = _image(root)
    cv2.imwrite(str(p), np.zeros((64, 32, 3), np.uint8))
    return f"train_images/{p.name}"


def _colour(root):
    p = _image(root)
    image = np.full((*SHAPE, 3), 90, np.uint8)
    image[..., 2] = 120
    cv2.imwrite(str(p), image)
    return f"train_images/{p.name}"


def _deep(root):
    cv2.imwrite(str(root / "train_images" / "zz.png"), np.full(SHAPE, 9999, np.uint16))
    return "train_images/zz.png"


def _test_cut(root):
    p = sorted((root / "test_images").iterdir())[0]
    p.write_bytes(p.read_bytes()[:-300])
    return f"test_images/{p.name}"


def _thumbs(root):
    (root / "train_images" / "Thumbs.db").write_bytes(b"x")
    return "train_images/Thumbs.db"


def _subfolder(root):
    (root / "train_images" / "more.jpg").mkdir()
    return "train_images/more.jpg"


def _twin(root):
    masks = read_folder(root).masks
    marked, other = masks.image_id[0], next(i for i in masks.image_id if i != masks.image_id[0])
    shutil.copy(root / "train_images" / marked, root / "train_images" / other)
    return f"train_images/{max(marked, other)}"


@pytest.mark.parametrize(
    "damage, severity, says",
    [
        (_cut, "error", "truncated"),
        (_header_only, "error", "not a readable JPEG, PNG, BMP, TIFF or WebP"),
        (_void, "error", "empty file"),
        (_html, "error", "not a readable JPEG, PNG, BMP, TIFF or WebP"),
        (_other_size, "warning", "is 64x32 (height x width), 23 others are 32x64"),
        (_test_cut, "error", "truncated"),
        (_colour, "warning", "not grey: channels differ by up to 3"),
        (_thumbs, "warning", "not an image"),
        (_subfolder, "warning", "not an image"),
        (_twin, "warning", "the same bytes as"),
    ],
)
def test_a_damaged_image_is_named(today, damage, severity, says):
    file = damage(today)
    faults = check_folder(today)
    assert faults[["file", "row", "severity"]].values.tolist() == [[file, 0, severity]]
    assert says in faults.problem[0]


@pytest.mark.parametrize(
    "kind, suffix, options",
    [
        ("BMP", ".bmp", {}),
        ("BMP", ".jpg", {}),
        ("TIFF", ".TIF", {}),
        ("TIFF", ".tiff", {"compression": "tiff_lzw"}),
        ("WEBP", ".webp", {"lossless": True}),
        ("WEBP", ".png", {"lossless": True}),
        ("PNG", ".bmp", {}),
    ],
)
def test_images_as_cameras_write_them_are_known_by_their_contents(today, kind, suffix, options):
    before = read_folder(today)
    pixels = {i: before.image(i) for i in before.images.image_id}
    for i, image in pixels.items():
        (today / "train_images" / i).unlink()
        Image.fromarray(image).save(today / "train_images" / (Path(i).stem + suffix), kind, **options)
    text = (today / "train.csv").read_text()
    (today / "train.csv").write_text(text.replace(".jpg", suffix))
    after = read_folder(today)
    assert check_folder(today).equals(check_folder(today, read_images=False)) and after.shape == before.shape
    for i, image in pixels.items():
        name = Path(i).stem + suffix
        assert (after.image(name) == image).all() and (after.mask(name) == before.mask(i)).all()
        path = today / "train_images" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=name):
            after.image(name)


def test_a_file_of_several_images_is_refused(today):
    first, second = (Image.fromarray(np.full(SHAPE, level, np.uint8)) for level in (90, 120))
    first.save(today / "train_images/z.tif", save_all=True, append_images=[second])
    faults = check_folder(today)
    assert faults.file.tolist() == ["train_images/z.tif"] and "2 images in one file" in faults.problem[0]


def test_images_of_more_than_8_bits_are_read_through_a_window_that_is_said(today):
    _deep(today)
    folder = read_folder(today)
    assert folder.warnings.problem[0].startswith("1 of 25 images have more than 8 bits a pixel")
    with pytest.warns(DataWarning, match="through the window 0:16383, found from these levels") as said:
        assert folder.image("zz.png").max() == 9999 >> 6
        assert folder.image(folder.images.image_id[0]).max() > 0
    assert len(said) == 1
    faults = check_folder(today)
    assert faults[["file", "severity"]].values.tolist() == [["train_images", "warning"]]
    assert "1 of 1 levels are left. Images of 8 bits are read as they are" in faults.problem[0]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda r: shutil.rmtree(r), "no such folder"),
        (lambda r: (r / "train.csv").unlink(), "no such file"),
        (lambda r: shutil.rmtree(r / "train_images"), "no such folder"),
        (lambda r: [p.unlink() for p in (r / "train_images").iterdir()], "no image in it"),
        (lambda r: (r / "train.csv").write_bytes(b""), "empty file"),
        (lambda r: (r / "train.csv").write_bytes(b"\xef\xbb\xbf\r\n \n"), "empty file"),
        (lambda r: (r / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n"), "no rows under the header"),
        (
            lambda r: (r / "train.csv").write_text("ImageId,EncodedPixels\na.jpg,1 1\n"),
            "wrong columns 'ImageId,EncodedPixels'",
        ),
        (lambda r: (r / "train.csv").write_text("ImageId,ImageId,ClassId,EncodedPixels\na,a,1,1 1\n"), "wrong columns"),
        (lambda r: _csv(r, ",", "|", -1), "wrong columns 'ImageId|ClassId|EncodedPixels'"),
        (lambda r: (r / "train.csv").write_bytes((r / "train.csv").read_text().encode("utf-16")), "not UTF-8"),
        (lambda r: ((r / "train.csv").unlink(), (r / "train.csv").mkdir()), "cannot be read"),
    ],
)
def test_a_folder_that_is_none_is_refused_in_one_line(today, make, says):
    make(today)
    faults = check_folder(today)
    assert len(faults) == 1 and says in faults.problem[0] and faults.severity[0] == "error"
    with pytest.raises(ValueError, match="1 error\n"):
        read_folder(today)


FORMS = {
    "semicolons": lambda text: text.replace(",", ";"),
    "semicolons, named by Excel": lambda text: "sep=;\n" + text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "quotes, CRLF and a byte order mark": lambda text: (
        "\ufeff" + re.sub("([^,\n]+)", r'"\1"', text).replace("\n", "\r\n")
    ),
    "classes as floats": lambda text: re.sub(r"(,[1-4]),", r"\1.0,", text),
    "pandas, clean images joined": None,
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_in_a_form_that_can_be_read_in_one_way_only(folders, today, form):
    text = (today / "train.csv").read_text()
    if FORMS[form] is None:
        images = pd.DataFrame({"ImageId": read_folder(today).images.image_id})
        images.merge(pd.read_csv(today / "train.csv"), how="left").to_csv(today / "train.csv", index=False)
        assert ",1.0," in (today / "train.csv").read_text()
    else:
        (today / "train.csv").write_bytes(FORMS[form](text).encode())
    a, b = read_folder(folders["today"]), read_folder(today)
    by = ["image_id", "channel", "rle"]
    assert b.masks[by].sort_values(by).values.tolist() == a.masks[by].sort_values(by).values.tolist()
    assert b.images.image_id.tolist() == a.images.image_id.tolist() and b.n_classes == a.n_classes
    assert check_folder(today).equals(check_folder(folders["today"]))


@pytest.mark.parametrize("form", ["semicolons", "tabs", "classes as floats"])
def test_a_submission_in_such_a_form_is_refused_as_kaggle_does(folders, tmp_path, form):
    sample = folders["today"] / "sample_submission.csv"
    (tmp_path / "s.csv").write_text(FORMS[form](sample.read_text()))
    says = {"semicolons": "separated by ';'", "tabs": "separated by '\\t'"}.get(form, "unknown class '1.0'")
    faults = check_submission(tmp_path / "s.csv", sample, SHAPE)
    assert faults.problem.str.contains(says, regex=False).any() and (faults.severity == "error").any()


def test_a_clean_image_that_is_listed_and_not_there_is_an_error(today):
    with open(today / "train.csv", "a") as f:
        f.write("x.jpg,,\n")
    faults = check_folder(today)
    assert faults.problem.tolist() == ["no image 'x.jpg' in train_images"] and faults.severity[0] == "error"


def test_scores_of_a_spreadsheet_with_decimal_commas(tmp_path):
    (tmp_path / "points.csv").write_text("image_id,p1,p2\na.jpg,0.5,0.25\nb.jpg,1,0.125\n")
    (tmp_path / "commas.csv").write_text("image_id;p1;p2\r\na.jpg;0,5;0,25\r\nb.jpg;1;0,125\r\n")
    points, commas = (
        read_class_probs(tmp_path / f"{name}.csv", ["a.jpg", "b.jpg"], 2) for name in ("points", "commas")
    )
    assert points.tolist() == commas.tolist() == [[0.5, 0.25], [1, 0.125]]


@pytest.mark.parametrize("where", ["csv", "files"])
def test_names_that_look_the_same_are_the_same(tmp_path, where):
    "An umlaut as one character or two, a space that does not break, a character that is not seen."
    names = ["Prüfung 1.png", "Prüfung 2.png", "Maß.png"]
    odd = [unicodedata.normalize("NFD", names[0]), names[1].replace(" ", "\u00a0"), names[2].replace(".", "\u200b.")]
    in_csv, on_disk = (odd, names) if where == "csv" else (names, odd)
    (tmp_path / "train_images").mkdir()
    for name in on_disk:
        cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 12), 90, np.uint8))
        (tmp_path / "a.png").rename(tmp_path / "train_images" / name)
    rows = [f"{name},1,{k + 1} 2" for k, name in enumerate(in_csv)]
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
    folder = read_folder(tmp_path)
    assert {i: folder.labels(i) for i in on_disk} == {i: [(0, f"{k + 1} 2")] for k, i in enumerate(on_disk)}
    assert folder.warnings.problem.str.contains("3 image ids look like the names of files").tolist() == [True]


def test_class_sets_are_sorted_whatever_the_rows(today):
    clean = [i for i, s in zip(read_folder(today).images.image_id, read_folder(today).class_sets()) if s == ""][0]
    with open(today / "train.csv", "a") as f:
        f.write(f"{clean},4,1 1\n{clean},1,9 1\n{clean},3,5 1\n")
    folder = read_folder(today)
    assert folder.class_sets()[folder.images.image_id == clean].item() == "1+3+4"
    assert [c for c, _ in folder.labels(clean)] == [0, 2, 3]
    with pytest.raises(ValueError, match="no train image 'none.jpg'"):
        folder.labels("none.jpg")


def test_two_unknown_classes_are_two_faults(today):
    a = read_folder(today).images.image_id[0]
    (today / "train.csv").write_text(f"ImageId,ClassId,EncodedPixels\n{a},x,1 2\n{a},y,2 2\n")
    assert check_folder(today, 4).row.tolist() == [2, 3]


def test_the_rows_of_one_image(today):
    masks = read_folder(today).masks
    a, b = masks.iloc[0], masks.iloc[1]
    n = len((today / "train.csv").read_text().splitlines())
    other = next(k for k in range(1, 5) if k not in masks.channel[masks.image_id == a.image_id].values + 1)
    with open(today / "train.csv", "a") as f:
        f.write(
            f"{a.image_id},{other},{a.rle}\n{b.image_id},{class_id(b.channel)},{b.rle}\n"
            f"No.jpg,1,\n{a.image_id.upper()},1,5 1\n"
        )
    faults = check_folder(today)
    assert faults[["row", "severity"]].values.tolist() == [
        [n + 1, "warning"],
        [n + 2, "error"],
        [n + 3, "error"],
        [n + 4, "error"],
    ]
    for problem, says in zip(
        faults.problem,
        (
            f"{sum(map(int, a.rle.split()[1::2]))} pixels carry class",
            f"the same image and class as in row {b.row}",
            "no image 'No.jpg'",
            f"but there is {a.image_id!r}",
        ),
    ):
        assert says in problem


def test_2019_has_a_row_for_every_pair(folders, tmp_path):
    root = Path(shutil.copytree(folders["2019"], tmp_path / "strips"))
    lines = (root / "train.csv").read_text().splitlines(keepends=True)
    clean = [i for i, s in zip(*(lambda f: (f.images.image_id, f.class_sets()))(read_folder(root))) if s == ""]
    gone = lines[1 + 4 * 5 + 2]  # the third class of the sixth image
    (root / "train.csv").write_text("".join(x for x in lines if x != gone and not x.startswith(clean[-1])))
    faults = check_folder(root)
    assert (faults.severity == "error").all() and len(faults) == 2
    assert faults[faults.image_id == clean[-1]].problem.str.contains("no row for this image").all()
    one = faults[faults.image_id != clean[-1]].iloc[0]
    assert (one.image_id, one.class_id) == tuple(gone.split(",")[0].rsplit("_", 1)) and one.row > 0


def test_a_class_beyond_the_sample_is_pointed_at(today):
    _csv(today, ",3,", ",5,")
    assert read_folder(today).n_classes == 5
    assert check_folder(today).problem.tolist() == ["class 5 is not in sample_submission.csv"]
    row = check_folder(today).row[0]
    assert errors(check_folder(today, n_classes=4)).row.tolist() == [row]


def test_sample_and_test_images_are_held_against_each_other(today):
    gone = today / "test_images" / (today / "sample_submission.csv").read_text().splitlines()[1].split(",")[0]
    gone.rename(gone.with_name("new.jpg"))
    faults = check_folder(today)
    assert faults.image_id.tolist() == [gone.name, "new.jpg"] and (faults.severity == "warning").all()
    assert faults.file.tolist() == ["sample_submission.csv", "test_images/new.jpg"] and faults.row.tolist() == [2, 0]
    assert len(read_folder(today).warnings) == 2  # kept, not dropped


def test_read_image_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="nothing.jpg: cannot be read"):
        read_image(tmp_path / "nothing.jpg")
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="a.jpg: not a readable image"):
        read_image(tmp_path / "a.jpg")


def test_grey_is_grey(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    Image.fromarray(np.stack([image] * 3, axis=2)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == image).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    image = np.random.default_rng(1).integers(0, 256, (40, 56), dtype=np.uint8)
    whole = cv2.imencode(suffix, image)[1].tobytes()
    f = tmp_path / f"a{suffix}"
    for cut in [*range(0, 40), *range(40, len(whole) - 13, 97), len(whole) - 13]:
        f.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f.name):
            read_image(f)
    f.write_bytes(whole)
    assert read_image(f).shape == (40, 56)


def test_a_cut_file_is_refused_where_opencv_is_lenient(tmp_path, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (40, 56), dtype=np.uint8)
    jpeg, png = (cv2.imencode(s, image)[1].tobytes() for s in (".jpg", ".png"))
    preview = (
        b"\xff\xe1" + (2 + 60).to_bytes(2, "big") + b"a preview image that ends: \xff\xd9".ljust(60)
    )  # as Exif keeps one
    jpeg = jpeg[:2] + preview + jpeg[2:]
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.zeros((40, 56), np.uint8))  # as OpenCV 4 answers
    for name, data in (("a.jpg", jpeg), ("a.png", png)):
        (tmp_path / name).write_bytes(data)
        assert read_image(tmp_path / name).shape == (40, 56)
        (tmp_path / name).write_bytes(data[:-20])
        with pytest.raises(ValueError, match=f"{name}: truncated"):
            read_image(tmp_path / name)


def test_same_bytes(tmp_path):
    data = [b"a" * 10_000, b"b" + b"a" * 9_999, b"a" * 10_000, b"", b"", b"a" * 9_999]
    for n, d in enumerate(data):
        (tmp_path / str(n)).write_bytes(d)
    number = same_bytes([tmp_path / str(n) for n in range(6)])
    assert [[bool(a == b) for b in number] for a in number] == [[a == b for b in data] for a in data]


# --- damage by the hundred


def _damages(image_id, k, rle):
    "What may happen to a row (its id, class and RLE), as (name, fields of the row)."
    size = SHAPE[0] * SHAPE[1]
    yield from (
        (f"class {c!r}", (image_id, c, rle)) for c in ("0", "9", "x", "", "1.5", "-1", f" {k}", "1e9", "5" * 40)
    )
    yield from (
        (f"rle {r!r}", (image_id, k, r))
        for r in (
            "1",
            "1 2 3",
            "1 x",
            "0 1",
            "1 0",
            "-1 2",
            "5 1 1 1",
            "1 3 3 1",
            f"{size} 2",
            f"{size + 1} 1",
            "1.0 2",
            "1,2",
            "+1 2",
            "١ 1",
            "9" * 30 + " 1",
            "1 " + "9" * 19,
            "nan",
            "[1 2]",
        )
    )
    yield from (
        (f"id {i!r}", (i, k, rle))
        for i in ("", "no.jpg", "../" + image_id, "a\\" + image_id, image_id + " ", image_id[:-4], "..", "\0")
    )


@pytest.mark.parametrize("layout", ["today", "2019"])
@given(data=st.data())
@SLOW
def test_the_damaged_row_is_named(folders, tmp_path, layout, data):
    root = tmp_path / layout
    if not root.exists():
        shutil.copytree(folders[layout], root)
    lines = (folders[layout] / "train.csv").read_text().splitlines()
    n = data.draw(st.integers(1, len(lines) - 1), label="line")
    key, rle = lines[n].rsplit(",", 1)
    image_id, k = key.rsplit("," if layout == "today" else "_", 1)
    name, fields = data.draw(st.sampled_from(list(_damages(image_id, k, rle))), label="damage")
    quoted = ['"' + f.replace('"', '""') + '"' for f in fields]
    joined = ",".join(quoted) if layout == "today" else f'"{fields[0]}_{fields[1]}",{quoted[2]}'
    damaged = [*lines[:n], joined, *lines[n + 1 :]]
    blanks = data.draw(st.lists(st.integers(0, len(lines)), max_size=3), label="blank lines before")
    for b in sorted(blanks, reverse=True):
        damaged.insert(b, "")
    row = n + 1 + sum(b <= n for b in blanks)
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    (root / "train.csv").write_bytes((data.draw(st.sampled_from(["", "\ufeff"])) + end.join(damaged)).encode())
    found = errors(check_folder(root, n_classes=4, read_images=False))
    assert row in found.row.values, name
    rest = found[found.row != row]  # in 2019's layout the pair that was there is missing now
    assert rest.empty or layout == "2019" and rest.problem.str.contains("no row for").all(), rest.problem.tolist()
    with pytest.raises(ValueError, match=f"row {row}[ :]"):
        read_folder(root, n_classes=4)


@pytest.mark.parametrize("layout", ["today", "2019"])
@pytest.mark.parametrize(
    "harm, says",
    [
        (lambda line: line + ",x", "fields where the header has"),
        (lambda line: line.replace(",", ""), "fields where the header has"),
        (lambda line: '"' + line[:3] + '"' + line[3:], "not csv"),
        (lambda line: line[:2] + "\udcff" + line[2:], "not UTF-8"),
    ],
)
def test_a_row_that_is_no_row_is_named(folders, tmp_path, layout, harm, says):
    root = Path(shutil.copytree(folders[layout], tmp_path / layout))
    lines = (root / "train.csv").read_text().splitlines()
    for n in (1, len(lines) // 2, len(lines) - 1):
        (root / "train.csv").write_bytes(
            "\n".join([*lines[:n], harm(lines[n]), *lines[n + 1 :]]).encode("utf-8", "surrogateescape")
        )
        found = errors(check_folder(root, read_images=False))
        assert says in found[found.row == n + 1].problem.iloc[0]
        assert found[found.row != n + 1].problem.str.contains("no row for").all()


def test_an_open_quote_is_named_where_it_opens(folders, tmp_path):
    root = Path(shutil.copytree(folders["today"], tmp_path / "strips"))
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join([*lines[:4], '"' + lines[4], *lines[5:]]))
    found = errors(check_folder(root, read_images=False))
    assert found.row.tolist() == [5] and "never closed" in found.problem.iloc[0]


@given(
    garbage=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda s: ("ImageId,ClassId,EncodedPixels\n" + s).encode("utf-8", "replace")),
        st.text(alphabet='0123456789 ,_"\n\r.ajpg/', max_size=300).map(
            lambda s: ("ImageId_ClassId,EncodedPixels\n" + s).encode()
        ),
    )
)
@SLOW
def test_garbage_gives_a_table_of_faults(folders, tmp_path, garbage):
    root = tmp_path / "strips"
    if not root.exists():
        shutil.copytree(folders["today"], root)
    (root / "train.csv").write_bytes(garbage)
    faults = check_folder(root, read_images=False)
    assert faults.columns.tolist() == FAULT_COLUMNS and faults.severity.isin(["error", "warning"]).all()
    assert len(errors(faults)) >= 1 and (faults.row >= 0).all()  # no random text is a whole csv of these images
    assert (faults.row <= 1 + garbage.count(b"\n") + garbage.count(b"\r")).all()
    assert faults.to_json() and faults.to_csv()
    with pytest.raises(ValueError):
        read_folder(root)


@given(
    garbage=st.binary(max_size=400),
    head=st.sampled_from(
        [b"", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00", b"BM"]
    ),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_garbage_image_is_named(folders, tmp_path, garbage, head):
    root = tmp_path / "strips"
    if not root.exists():
        shutil.copytree(folders["today"], root)
    p = _image(root, 3)
    p.write_bytes(head + garbage)
    found = errors(check_folder(root))
    assert found.file.tolist() == [f"train_images/{p.name}"]


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_a_record_or_a_problem(tmp_path, data):
    f = tmp_path / "g.csv"
    f.write_bytes(data)
    rows, problems = csv_rows(f)
    at = [row for row, _ in rows] + [row for row, _ in problems]
    assert len(at) == len(set(at)) and (at or not data.strip())


# --- real data


@pytest.mark.real
def test_the_real_strips_read_alike_in_both_layouts(tmp_path):
    root = real_data("severstal-sample")
    a = read_folder(root)
    assert (len(a), len(a.masks), a.shape, a.n_classes, len(a.test)) == (25, 24, (256, 1600), 4, 1)
    for name in ("train_images", "test_images", "sample_submission.csv"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copy(root / "train_2019.csv", tmp_path / "train.csv")
    b = read_folder(tmp_path)
    keys = ["image_id", "channel", "rle"]
    assert (a.layout, b.layout) == ("today", "2019") and a.masks[keys].equals(b.masks[keys])
    assert a.class_sets().equals(b.class_sets()) and (a.truth_area() == b.truth_area()).all()
    assert len(check_folder(root)) == 0 and len(check_folder(tmp_path)) == 0


@pytest.mark.real
def test_real_grey_is_each_of_the_three_channels():
    folder = read_folder(real_data("severstal-sample"))
    for image_id, path in zip(folder.images.image_id, folder.images.path):
        assert (cv2.imread(str(path), cv2.IMREAD_COLOR) == folder.image(image_id)[..., None]).all()


@pytest.mark.real
def test_neu_takes_the_same_path():
    root = real_data("neu-seg")
    folder = read_folder(root)
    assert (len(folder), folder.n_classes, folder.shape, len(folder.test)) == (564, 3, (200, 200), 0)
    assert len(errors(check_folder(root))) == 0
    assert "" not in set(folder.class_sets())


@pytest.mark.real
def test_official_areas_are_ours():
    root = real_data("severstal-labels")
    table, layout = read_table(root / "train_partial.csv")
    area = pd.read_csv(root / "image_level.csv", index_col=0)
    assert layout == "today" and len(table) == 4063
    for m in table.itertuples():
        assert sum(map(int, m.rle.split()[1::2])) == area.loc[m.image_id, f"area_c{class_id(m.channel)}"]
