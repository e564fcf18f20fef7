"""A submission is as the sample asks, every fault in one is named by its row, and its score is the competition's."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import real_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steel_seg.data import FAULT_COLUMNS, read_folder, read_table
from steel_seg.rle import rle_decode, rle_encode
from steel_seg.submit import check_submission, read_submission, score_submission, write_sample, write_submission
from steel_seg.synth import make_folder

SHAPE = (32, 64)
HERE = [HealthCheck.function_scoped_fixture]


def errors(table):
    return table[table.severity == "error"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "The same synthetic test set in both layouts."
    root = tmp_path_factory.mktemp("submit")
    return {layout: make_folder(root / layout, 0, 40, SHAPE, layout, seed=6) for layout in ("today", "2019")}


def truth_masks(root, n_classes=4, shape=SHAPE):
    "The masks of test_truth.csv as a dictionary."
    table, _ = read_table(root / "test_truth.csv")
    masks = {i: np.zeros((n_classes, *shape), bool) for i in table.image_id}
    for m in table.itertuples():
        masks[m.image_id][m.channel] = rle_decode(m.rle, shape)
    return masks


def write_table(path, rows, layout):
    "A csv of (image_id, class, rle) rows."
    lines = [f"{i},{k},{r}" if layout == "today" else f"{i}_{k},{r}" for i, k, r in rows]
    Path(path).write_text(
        "\n".join(["ImageId,ClassId,EncodedPixels" if layout == "today" else "ImageId_ClassId,EncodedPixels", *lines])
        + "\n"
    )
    return path


# --- writing


@pytest.mark.parametrize("layout", ["today", "2019"])
def test_what_is_written_reads_back(folders, tmp_path, layout):
    root, masks = folders[layout], truth_masks(folders[layout])
    path = write_submission(tmp_path / "new" / "submission.csv", root / "sample_submission.csv", masks.get)
    assert path.read_text() == (root / "test_truth.csv").read_text()  # same rows, order, columns
    table, found = read_submission(path)
    assert found == layout and any(table.rle)
    for m in table.itertuples():
        assert (rle_decode(m.rle, SHAPE) == masks[m.image_id][m.channel]).all()


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=HERE)
def test_rows_and_columns_are_the_samples(folders, tmp_path, data):
    layout = data.draw(st.sampled_from(["today", "2019"]))
    header, *lines = (folders[layout] / "sample_submission.csv").read_text().splitlines()
    lines = data.draw(st.permutations(lines))
    columns = data.draw(st.permutations(range(header.count(",") + 1)))

    def turn(line):
        return ",".join(line.split(",")[c] for c in columns)

    (tmp_path / "sample.csv").write_bytes(
        (
            "\ufeff" * data.draw(st.booleans())
            + data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join([turn(header), *map(turn, lines)])
        ).encode()
    )
    masks = truth_masks(folders[layout])
    path = write_submission(tmp_path / "submission.csv", tmp_path / "sample.csv", masks.get)
    cell = turn(header).split(",").index("EncodedPixels")

    def strip(line):
        return [f for c, f in enumerate(line.split(",")) if c != cell]

    assert [strip(line) for line in path.read_text().splitlines()] == [strip(turn(line)) for line in (header, *lines)]
    assert errors(check_submission(path, folders[layout] / "sample_submission.csv", SHAPE)).empty
    assert score_submission(path, folders[layout] / "test_truth.csv", SHAPE)["score"] == 1


def test_a_mask_is_asked_for_once_an_image_and_checked(folders, tmp_path):
    sample, target = folders["2019"] / "sample_submission.csv", tmp_path / "s.csv"
    asked = []
    write_submission(target, sample, lambda i: (asked.append(i), np.zeros((4, *SHAPE), bool))[1])
    assert len(asked) == len(set(asked)) == 40
    before = target.read_bytes()
    for masks, says in (
        (lambda i: np.zeros(SHAPE), "expected (4, height, width)"),
        (lambda i: np.zeros((3, *SHAPE)), "expected (4, height, width)"),
        (lambda i: np.zeros((4, 32, 60 + (i == asked[-1]))), "expected (4, 32, 60)"),
        (lambda i: np.full((4, *SHAPE), 0.5), "threshold"),
    ):
        with pytest.raises(ValueError) as e:
            write_submission(target, sample, masks)
        assert says in str(e.value)
        assert target.read_bytes() == before and len(list(tmp_path.iterdir())) == 1  # whole or not at all


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "empty file"),
        ("ImageId_ClassId,EncodedPixels\n", "no rows"),
        ("a,b\n1,2\n", "wrong columns"),
        ("ImageId_ClassId,EncodedPixels\na_1,1 1\na_1,1 1\n", "row 3"),
        ("ImageId_ClassId,EncodedPixels\na_0,1 1\n", "unknown class"),
        ("ImageId_ClassId,EncodedPixels,extra\na_1,1 1,\n", "column 'extra'"),
    ],
)
def test_a_faulty_sample_is_refused(tmp_path, text, says):
    (tmp_path / "sample.csv").write_text(text)
    with pytest.raises(ValueError, match="sample.csv") as e:
        write_submission(tmp_path / "s.csv", tmp_path / "sample.csv", lambda i: np.zeros((1, 4, 4)))
    assert says in str(e.value) and not (tmp_path / "s.csv").exists()


def test_a_sample_is_made(tmp_path):
    assert (
        write_sample(tmp_path / "s.csv", ["b", "a"], 2, "today").read_text()
        == "ImageId,ClassId,EncodedPixels\nb,1,1 1\nb,2,1 1\na,1,1 1\na,2,1 1\n"
    )
    assert (
        write_sample(tmp_path / "s.csv", ["b", 'x,"y"'], 1, "2019").read_text()
        == 'ImageId_ClassId,EncodedPixels\nb_1,1 1\n"x,""y""_1",1 1\n'
    )
    assert read_submission(tmp_path / "s.csv")[0].image_id.tolist() == ["b", 'x,"y"']
    for args, says in (
        ((["a", "a"], 2, "2019"), "occurs twice"),
        ((["a"], 0, "2019"), "at least one"),
        ((["a"], 2, "2020"), "layout '2020'"),
    ):
        with pytest.raises(ValueError) as e:
            write_sample(tmp_path / "s.csv", *args)
        assert says in str(e.value)


# --- checking: every kind of damage to one row of a submission

SIZE = 256 * 1600
RLES = {
    "odd count": "1 3 7",
    "no number": "1 x",
    "a float": "1.0 2",
    "zero start": "0 4",
    "zero length": "5 0",
    "negative": "-5 3",
    "unsorted": "90 2 40 2",
    "overlap": "40 9 45 2",
    "past the end": f"{SIZE - 1} 3",
    "start past the end": f"{SIZE + 1} 1",
    "too large": "9" * 25 + " 1",
    "nan": "nan",
    "brackets": "[1 2]",
    "commas": '"1,2"',
    "arabic digits": "١ ٢",
}


def with_rle(rle, image_id, k, _):
    return image_id, k, rle


ROWS = {
    "unknown class": lambda i, k, r: (i, "5", r),
    "class 0": lambda i, k, r: (i, "0", r),
    "class in words": lambda i, k, r: (i, "two", r),
    "no class": lambda i, k, r: (i, "", r),
    "extra image": lambda i, k, r: ("new.jpg", k, r),
    "no image id": lambda i, k, r: ("", k, r),
    "a path": lambda i, k, r: ("test_images/" + i, k, r),
    "upper case": lambda i, k, r: (i.upper(), k, r),
    **{name: partial(with_rle, rle) for name, rle in RLES.items()},
}
LINES = {
    "a field more": lambda line: line + ",",
    "a field less": lambda line: line.replace(",", " "),
    "a stray quote": lambda line: f'"{line[:4]}"{line[4:]}',
    "not UTF-8": lambda line: line[:3] + "\udce4" + line[3:],
}


def join(i, k, r, layout):
    return f"{i},{k},{r}" if layout == "today" else f"{i}_{k},{r}"


def parts(line, layout):
    key, rle = line.rsplit(",", 1)
    return (*key.rsplit("," if layout == "today" else "_", 1), rle)


def damage(lines, n, kind, layout):
    "Lines with line n (0-based, not the header) damaged in one way."
    new = LINES[kind](lines[n]) if kind in LINES else join(*ROWS[kind](*parts(lines[n], layout)), layout)
    return "\n".join([*lines[:n], new, *lines[n + 1 :]]).encode("utf-8", "surrogateescape")


def only_that_row(faults, row, name):
    "The damaged row is named, and nothing else but that its pair is missing now."
    bad = errors(faults)
    assert row in bad[bad.file == name].row.values
    assert bad[(bad.file != name) | (bad.row != row)].problem.str.contains("missing").all()
    assert len(bad) <= 5  # the pair itself, and three of an image that is made up by a wrong id


@pytest.mark.parametrize("with_sample", [True, False], ids=["sample", "alone"])
@pytest.mark.parametrize("kind", [*ROWS, *LINES])
@pytest.mark.parametrize("layout", ["today", "2019"])
def test_a_damaged_row_is_named(tmp_path, layout, kind, with_sample):
    rows = [(f"{i:03d}.jpg", str(k), "7 3 30 5" if (i + k) % 3 == 0 else "") for i in range(12) for k in range(1, 5)]
    sample = write_sample(tmp_path / "sample.csv", dict.fromkeys(i for i, _, _ in rows), 4, layout)
    lines = (
        write_table(tmp_path / "s.csv", [(i, k, f"{50 * int(k)} 9" if r else "") for i, k, r in rows], layout)
        .read_text()
        .splitlines()
    )
    assert check_submission(tmp_path / "s.csv", sample).empty and check_submission(tmp_path / "s.csv").empty
    for n in (1, 23, 48):
        (tmp_path / "s.csv").write_bytes(damage(lines, n, kind, layout))
        only_that_row(check_submission(tmp_path / "s.csv", sample if with_sample else None), n + 1, "s.csv")


@pytest.mark.parametrize("layout", ["today", "2019"])
def test_missing_and_repeated_rows_are_named(tmp_path, layout):
    sample = write_sample(tmp_path / "sample.csv", ["a.jpg", "b.jpg", "c.jpg"], 4, layout)
    lines = sample.read_text().splitlines()
    gone = tmp_path / "gone.csv"
    for n in range(1, 13):
        gone.write_text("\n".join(lines[:n] + lines[n + 1 :]))
        (fault,) = errors(check_submission(gone, sample)).itertuples()
        assert (fault.file, fault.row, join(fault.image_id, fault.class_id, "1 1", layout)) == (
            "sample.csv",
            n + 1,
            lines[n],
        )
        (fault,) = errors(check_submission(gone)).itertuples()
        assert (fault.file, fault.row, join(fault.image_id, fault.class_id, "1 1", layout)) == (
            "gone.csv",
            {1: 2, 5: 6, 9: 10}.get(n, (n - 1) // 4 * 4 + 2),
            lines[n],
        )
        gone.write_text("\n".join(lines + [lines[n]]))
        for s in (sample, None):
            (fault,) = errors(check_submission(gone, s)).itertuples()
            assert (fault.file, fault.row) == ("gone.csv", 14) and f"as in row {n + 1}" in fault.problem
    gone.write_text("\n".join(lines[:5] + lines[9:]))  # all four of b.jpg
    assert errors(check_submission(gone, sample)).row.tolist() == [6, 7, 8, 9]
    assert errors(check_submission(gone)).empty  # without a sample nobody knows of b.jpg


@pytest.mark.parametrize(
    "text, says",
    [
        (b"", "empty file"),
        (b"\n\n", "empty file"),
        (b"ImageId_ClassId,EncodedPixels\n", "no rows"),
        (b"ImageId_ClassId,Pixels\na.jpg_1,\n", "wrong columns"),
        (b"a.jpg_1,\na.jpg_2,\n", "wrong columns"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not a csv: PNG image"),
        ("ImageId_ClassId,EncodedPixels\na.jpg_1,\n".encode("utf-16"), "not UTF-8"),
        (b"PK\3\4", "not a readable zip archive"),
        (b"ImageId_ClassId;EncodedPixels\na.jpg_1;\n", "wrong columns"),
        (b"ImageId_ClassId\tEncodedPixels\n", "wrong columns"),
    ],
)
def test_what_is_no_submission_is_one_fault(tmp_path, text, says):
    sample = write_sample(tmp_path / "sample.csv", ["a.jpg"], 2, "2019")
    (tmp_path / "s.csv").write_bytes(text)
    for s in (sample, None):
        faults = check_submission(tmp_path / "s.csv", s)
        assert len(faults) == 1 and says in faults.problem[0] and faults.severity[0] == "error"
    assert check_submission(tmp_path / "no.csv").problem.tolist() == ["no such file"]
    assert errors(check_submission(sample, tmp_path / "s.csv")).file.tolist() == ["s.csv"]  # a sample that is none


def test_columns_are_the_layouts_and_no_more(tmp_path):
    sample = write_sample(tmp_path / "sample.csv", ["a.jpg"], 2, "2019")
    write_table(tmp_path / "s.csv", [("a.jpg", 1, ""), ("a.jpg", 2, "")], "today")
    (fault,) = check_submission(tmp_path / "s.csv", sample).itertuples()
    assert fault.row == 1 and "another layout" in fault.problem
    (tmp_path / "s.csv").write_text(",ImageId_ClassId,EncodedPixels\n0,a.jpg_1,\n1,a.jpg_2,\n")  # pandas' index
    (fault,) = check_submission(tmp_path / "s.csv", sample).itertuples()
    assert fault.row == 1 and "column ''" in fault.problem and fault.severity == "error"
    (tmp_path / "s.csv").write_text("EncodedPixels,ImageId_ClassId\n,a.jpg_2\n,a.jpg_1\n")  # any order will do
    assert check_submission(tmp_path / "s.csv", sample).empty


def test_two_classes_on_one_pixel_are_a_warning(tmp_path):
    write_table(tmp_path / "s.csv", [("a", 1, "10 5"), ("a", 2, "14 3"), ("b", 1, "10 5"), ("b", 2, "15 3")], "2019")
    (fault,) = check_submission(tmp_path / "s.csv").itertuples()
    assert (fault.row, fault.severity, fault.image_id) == (3, "warning", "a") and "1 pixels" in fault.problem


def test_shape_and_number_of_classes(tmp_path):
    write_table(tmp_path / "s.csv", [("a", k, f"{SIZE + 1} 1" if k == 3 else "") for k in (1, 2, 3)], "today")
    assert errors(check_submission(tmp_path / "s.csv")).row.tolist() == [4]
    assert (
        check_submission(tmp_path / "s.csv", shape=(512, 1600)).empty
        and check_submission(tmp_path / "s.csv", shape=None).empty
    )
    assert errors(check_submission(tmp_path / "s.csv", shape=None, n_classes=2)).row.tolist() == [4]
    assert errors(check_submission(tmp_path / "s.csv", shape=None, n_classes=4)).class_id.tolist() == ["4"]
    sample = write_sample(tmp_path / "sample.csv", ["a"], 2, "today")
    assert [p.split(":")[1] for p in check_submission(tmp_path / "s.csv", sample, None).problem] == [
        " there are 2 classes"
    ]


@given(
    garbage=st.one_of(
        st.binary(max_size=300),
        st.text(alphabet='0123456789 ,_"\n\r.ab', max_size=300).map(
            lambda s: ("ImageId_ClassId,EncodedPixels\n" + s).encode()
        ),
    )
)
@settings(max_examples=80, deadline=None, suppress_health_check=HERE)
def test_garbage_gives_a_table_of_faults(tmp_path, garbage):
    bad, sample = tmp_path / "s.csv", write_sample(tmp_path / "sample.csv", ["x.jpg", "y.jpg"], 2, "2019")
    bad.write_bytes(garbage)
    faults = check_submission(bad, sample)
    assert len(errors(faults)) >= 1 and faults.columns.tolist() == FAULT_COLUMNS
    assert check_submission(bad).columns.tolist() == FAULT_COLUMNS
    assert len(errors(check_submission(sample, bad))) >= 1
    with pytest.raises(ValueError, match="s.csv"):
        score_submission(bad, sample)
    with pytest.raises(ValueError, match="s.csv"):
        score_submission(sample, bad)


# --- scoring


def test_worked_by_hand(tmp_path):
    # a: class 1 is 4 predicted, 2 true, 2 hit: 2*2/6; class 2 missed: 0.
    # b: class 1 false alarm: 0; class 2 empty: 1. Sum 5/3 of 4.
    pred = write_table(tmp_path / "p.csv", [("a", 1, "1 4"), ("a", 2, ""), ("b", 1, "7 1"), ("b", 2, "")], "2019")
    truth = write_table(tmp_path / "t.csv", [("a", 1, "2 2"), ("a", 2, "9 1")], "today")
    result = score_submission(pred, truth, (4, 6))
    assert (
        result["score"] == pytest.approx(5 / 12)
        and result["per_class"] == pytest.approx({1: 1 / 3, 2: 1 / 2})
        and result["pairs"] == 4
    )
    assert result["table"].loc["all", "present"] == pytest.approx(1 / 3) and result["table"].loc["all", "empty"] == 0.5
    assert result["table"].loc["class 1", "score"] == result["per_class"][1]


@pytest.mark.parametrize("a", ["today", "2019"])
@pytest.mark.parametrize("b", ["today", "2019"])
def test_truth_scores_one_and_silence_the_share_of_empty_pairs(folders, tmp_path, a, b):
    truth = folders[b] / "test_truth.csv"
    assert score_submission(folders[a] / "test_truth.csv", truth, SHAPE)["score"] == 1
    silent = write_submission(tmp_path / "s.csv", folders[a] / "sample_submission.csv", lambda i: np.zeros((4, *SHAPE)))
    empty = (read_table(truth)[0].rle == "").mean()
    assert 0 < empty < 1 and score_submission(silent, truth, SHAPE)["score"] == pytest.approx(empty)


pair = st.lists(st.integers(0, 1), min_size=12, max_size=12).map(lambda bits: np.array(bits).reshape(3, 4))


@given(
    data=st.data(),
    n=st.integers(1, 4),
    c=st.integers(1, 3),
    layouts=st.tuples(*[st.sampled_from(["today", "2019"])] * 2),
    defects_only=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=HERE)
def test_the_score_is_that_of_the_drawn_masks(tmp_path, data, n, c, layouts, defects_only):
    drawn = [
        [[data.draw(st.one_of(st.just(np.zeros((3, 4), int)), pair)) for _ in range(c)] for _ in range(n)]
        for _ in range(2)
    ]
    want = np.mean(
        [
            1.0 if p.sum() + t.sum() == 0 else 2 * (p & t).sum() / (p.sum() + t.sum())
            for ps, ts in zip(*drawn)
            for p, t in zip(ps, ts)
        ]
    )
    rows = [
        [(f"{i}.jpg", k + 1, rle_encode(mask)) for i, masks in enumerate(side) for k, mask in enumerate(masks)]
        for side in drawn
    ]
    if defects_only and layouts[1] == "today":
        rows[1] = [r for r in rows[1] if r[2]] or rows[1]
    pred, truth = (
        write_table(tmp_path / f"{w}.csv", data.draw(st.permutations(r)), layout)
        for w, r, layout in zip("pt", rows, layouts)
    )
    result = score_submission(pred, truth, (3, 4))
    assert result["score"] == pytest.approx(want) and result["pairs"] == n * c
    assert np.mean([*result["per_class"].values()]) == pytest.approx(want)


COMPLETE = [("a", 1, ""), ("a", 2, "3 1"), ("b", 1, "1 1"), ("b", 2, "")]


@pytest.mark.parametrize(
    "pred, truth, layout, says",
    [
        (COMPLETE, [("z", 1, "1 1")], "today", "t.csv row 2 (z): missing"),
        (COMPLETE, [("a", 3, "1 1")], "today", "t.csv row 2 (a): missing"),
        (COMPLETE[:2], COMPLETE, "2019", "t.csv row 4 (b): missing"),
        (COMPLETE[:2], COMPLETE, "today", "t.csv row 4 (b): missing"),
        (COMPLETE, COMPLETE[:2], "2019", "p.csv row 4 (b): extra"),
        (COMPLETE, COMPLETE[:2], "today", "p.csv row 4 (b): extra"),
        (COMPLETE, COMPLETE[:3], "2019", "p.csv row 5 (b): extra"),
        (COMPLETE[:3], [("b", 1, "1 1")], "today", "p.csv row 4 (b): missing"),
        (COMPLETE + COMPLETE[:1], COMPLETE, "2019", "p.csv row 6 (a): the same image and class as in row 2"),
        (COMPLETE, COMPLETE + COMPLETE[:1], "today", "t.csv row 6 (a): the same"),
        (COMPLETE, [("a", 2, "3")], "today", "t.csv row 2 (a): malformed RLE"),
        ([("a", 1, "3 1 3 1")], [("a", 1, "")], "2019", "p.csv row 2 (a): malformed RLE"),
        ([("a", 1, "13 1")], [("a", 1, "")], "2019", "p.csv row 2 (a): malformed RLE"),
        ([("a", 0, "")], [("a", 1, "")], "2019", "p.csv row 2 (a): unknown class '0'"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, pred, truth, layout, says):
    write_table(tmp_path / "p.csv", pred, "2019"), write_table(tmp_path / "t.csv", truth, layout)
    with pytest.raises(ValueError) as e:
        score_submission(tmp_path / "p.csv", tmp_path / "t.csv", (3, 4))
    assert says in str(e.value)


def test_two_files_of_one_name_are_told_apart(tmp_path):
    for d in "ab":
        (tmp_path / d).mkdir()
    a = write_table(tmp_path / "a" / "s.csv", [("x", 1, "")], "2019")
    b = write_table(tmp_path / "b" / "s.csv", [("x", 1, ""), ("y", 1, "")], "2019")
    (fault,) = check_submission(a, b).itertuples()
    assert fault.file == str(b)
    with pytest.raises(ValueError, match="b/s.csv row 3"):
        score_submission(a, b)


# --- real data


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "A real submission for the public test set, its lines, and a sample made from its ids."
    path = real_data("severstal-submissions") / "public_test_a.csv"
    sample = write_sample(
        tmp_path_factory.mktemp("real") / "sample.csv", read_submission(path)[0].image_id.unique(), 4, "2019"
    )
    return path, path.read_text().splitlines(), sample


@pytest.mark.real
def test_a_real_submission_passes(real):
    path, lines, sample = real
    assert len(lines) == 7205 and check_submission(path, sample).empty and check_submission(path).empty


@pytest.mark.real
@pytest.mark.parametrize("kind", [*ROWS, *LINES])
def test_a_real_submission_with_one_damaged_row(real, tmp_path, kind):
    _, lines, sample = real
    n = int(np.random.default_rng(len(kind)).integers(1, len(lines)))
    (tmp_path / "s.csv").write_bytes(damage(lines, n, kind, "2019"))
    only_that_row(check_submission(tmp_path / "s.csv", sample), n + 1, "s.csv")


@pytest.mark.real
def test_a_real_submission_with_rows_missing_repeated_and_overlapping(real, tmp_path):
    _, lines, sample = real
    (tmp_path / "s.csv").write_text("\n".join([*lines[:100], *lines[101:], lines[7], ""]))
    assert check_submission(tmp_path / "s.csv", sample)[["file", "row"]].values.tolist() == [
        ["s.csv", 7205],
        ["sample.csv", 101],
    ]
    n = next(
        n for n, line in enumerate(lines) if n > 500 and line.split(",")[0].endswith("_3") and not line.endswith(",")
    )
    first = lines[n].split(",")[1].split()[0]
    lines = [*lines[: n + 1], lines[n + 1].split(",")[0] + f",{first} 1", *lines[n + 2 :]]
    (tmp_path / "s.csv").write_text("\n".join([*lines, ""]))
    assert check_submission(tmp_path / "s.csv", sample)[["row", "severity"]].values.tolist() == [[n + 2, "warning"]]


@pytest.mark.real
def test_official_masks_score_as_drawn(tmp_path):
    root = real_data("severstal-sample")
    folder = read_folder(root)
    rng = np.random.default_rng(0)

    def shifted(i):  # the truth, moved by some pixels, and a false alarm here and there
        mask = np.roll(folder.mask(i), rng.integers(0, 9, 2), axis=(1, 2))
        mask[rng.integers(4), 5, :40] = 1
        return mask

    masks = {i: shifted(i) for i in folder.images.image_id}
    for layout, truth in (("today", "train.csv"), ("2019", "train_2019.csv")):
        sample = write_sample(tmp_path / "sample.csv", folder.images.image_id, 4, layout)
        path = write_submission(tmp_path / "s.csv", sample, masks.get)
        d = [
            1.0 if not p.any() and not t.any() else 2 * (p & t).sum() / (p.sum() + t.sum())
            for i in masks
            for p, t in zip(masks[i], folder.mask(i))
        ]
        assert score_submission(path, root / truth, folder.shape)["score"] == pytest.approx(np.mean(d))
        assert 0 < np.mean(d) < 1
