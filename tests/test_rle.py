"""rle against what cannot share its mistakes: a loop over pixels, pycocotools, a slow check of malformed strings."""

import csv
import random

import numpy as np
import pytest
from conftest import real_data
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from steel_seg.rle import rle_area, rle_decode, rle_encode, rle_overlap, rle_runs, rle_union

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (13, 17), (256, 40)]


def slow_encode(mask):
    "One pixel at a time, down the columns, from 1."
    height, width = mask.shape
    runs, number, before = [], 0, False
    for col in range(width):
        for row in range(height):
            number += 1
            if mask[row, col]:
                if not before:
                    runs.append([number, 0])
                runs[-1][1] += 1
            before = bool(mask[row, col])
    return " ".join(f"{s} {n}" for s, n in runs)


def judge(text, height, width):
    "The pixels (row, col) that a string names, or None where it is malformed; one character and pixel at a time."
    words, word = [], ""
    for char in text + " ":
        if char in "0123456789":
            word += char
        elif char in (" ", "\t", "\n", "\r", "\x0b", "\x0c"):
            if word:
                words.append(word)
            word = ""
        else:
            return None
    numbers = []
    for word in words:
        word = word.lstrip("0")
        if len(word) > 18:
            return None
        numbers.append(int(word or "0"))
    if len(numbers) % 2:
        return None
    pixels, last = [], 0
    while numbers:
        start, length, *numbers = numbers
        if start < 1 or length < 1 or start + length - 1 > height * width:
            return None
        for number in range(start, start + length):
            if number <= last:
                return None
            last = number
            pixels.append(((number - 1) % height, (number - 1) // height))
    return pixels


def random_masks(n=40, seed=0):
    "Masks of every shape above, from empty to full."
    rng = np.random.default_rng(seed)
    for shape in SHAPES:
        yield np.zeros(shape, np.uint8)
        yield np.ones(shape, np.uint8)
        for _ in range(n):
            yield (rng.random(shape) < rng.random()).astype(np.uint8)


def coco_of(mask):
    "The mask as COCO's uncompressed counts (0s, 1s, 0s, ... down the columns), read by pycocotools."
    runs = rle_runs(rle_encode(mask), mask.shape)
    counts, at = [], 0
    for start, length in runs.tolist():
        counts += [start - at, length]
        at = start + length
    return coco.frPyObjects({"counts": counts + [mask.size - at], "size": list(mask.shape)}, *mask.shape)


def test_agrees_with_a_loop_over_pixels():
    for mask in random_masks(10):
        text = slow_encode(mask)
        assert rle_encode(mask) == text
        drawn = np.zeros_like(mask)
        for row, col in judge(text, *mask.shape):
            drawn[row, col] = 1
        assert np.array_equal(rle_decode(text, mask.shape), drawn) and np.array_equal(drawn, mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_agrees_with_pycocotools():
    before = None
    for mask in random_masks():
        theirs = coco_of(mask)
        assert np.array_equal(coco.decode(theirs), mask)
        assert coco.area(theirs) == rle_area(rle_encode(mask), mask.shape)
        if before is not None and before.shape == mask.shape:
            pair = [coco_of(before), theirs]
            both = coco.merge(pair, intersect=True)
            assert coco.area(both) == rle_overlap(rle_encode(before), rle_encode(mask), mask.shape)
            joined = rle_union([rle_encode(before), rle_encode(mask)], mask.shape)
            assert np.array_equal(rle_decode(joined, mask.shape), coco.decode(coco.merge(pair)))
        before = mask


def test_a_decoded_mask_is_a_plain_array_of_its_own():
    for text in ("", "1 20", "3 2 6 5 15 1"):
        mask = rle_decode(text, (4, 5))
        assert mask.dtype == np.uint8 and mask.shape == (4, 5) and mask.flags.c_contiguous and mask.flags.writeable
        assert set(np.unique(mask)) <= {0, 1}


def test_many_runs_and_every_kind_of_mask():
    checker = np.indices((256, 1600)).sum(0) % 2  # 204,800 runs
    text = rle_encode(checker)
    assert len(rle_runs(text, checker.shape)) == np.count_nonzero(np.diff(checker.T.ravel(), prepend=0) == 1)
    assert np.array_equal(rle_decode(text, checker.shape), checker)
    small = checker[:6, :7]
    for same in (
        small.astype(bool),
        small.astype(np.uint8) * 255,
        -small,
        small.astype(np.float32),
        np.asfortranarray(small),
        small.tolist(),
        np.repeat(small, 2, 1)[:, ::2],
    ):
        assert rle_encode(same) == slow_encode(small)


@pytest.mark.parametrize(
    "mask, says",
    [
        (np.zeros(4), r"\(4,\): expected \(height, width\)"),
        (np.zeros((1, 2, 2)), "one class at a time"),
        (np.full((2, 2), 0.5), "threshold"),
        (np.array([[np.nan, 0]]), "threshold"),
        (np.array([[np.inf, 0]]), "threshold"),
        (np.array([["1", "0"]]), "dtype <U1"),
    ],
)
def test_what_is_no_mask_is_not_encoded(mask, says):
    with pytest.raises(ValueError, match=says):
        rle_encode(mask)


@pytest.mark.parametrize("shape", [None, 4, (4,), (4, 5, 1), (4.0, 5), (-4, -5), "45", (4, None)])
def test_a_shape_is_height_and_width(shape):
    with pytest.raises(ValueError, match=r"expected \(height, width\)"):
        rle_decode("1 1", shape)


@pytest.mark.parametrize("cell", [None, float("nan"), 3, b"1 1", ["1 1"], np.array([1, 1])])
def test_a_missing_cell_is_not_an_empty_mask(cell):
    for read in (
        rle_runs,
        rle_area,
        lambda x: rle_decode(x, (2, 2)),
        lambda x: rle_overlap("1 1", x),
        lambda x: rle_overlap(x, "1 1"),
    ):
        with pytest.raises(ValueError, match='read missing cells as ""'):
            read(cell)


# What is said, on a 4x5 mask. The run's number counts from 1, its text is quoted.
SAYS = [
    ("3", r"run 1 '3': 1 numbers, an odd count"),
    ("3 2 6 5 15", r"run 3 '15': 5 numbers, an odd count"),
    ("x", "run 1 'x': 'x' is not a whole number"),
    ("3 2 6 x 15 1", "run 2 '6 x': 'x' is not a whole number"),
    ("3 2 -6 5", "run 2 '-6 5': '-6' is negative"),
    ("3 --2", "run 1 '3 --2': '--2' is not a whole number"),
    ("3 -", "'-' is not"),
    ("3 2\xa06 5", r"run 1 '3 2\\xa06': '2\\xa06' is not"),
    ("3 2\ud800", r"'2\\ud800' is not"),
    ("3 2 0 1", "run 2 '0 1' starts at 0"),
    ("3 2 6 0", "run 2 '6 0' has length 0"),
    ("0 0", "run 1 '0 0' starts at 0"),
    ("6 5 15 1 3 2", "run 3 '3 2' starts before run 2 '15 1'"),
    ("3 2 4 5", "run 2 '4 5' overlaps run 1 '3 2'"),
    ("3 2 3 2", "run 2 '3 2' overlaps run 1"),
    ("1 21", r"run 1 '1 21' leaves a \(4, 5\) mask: it ends at pixel 21 of 20"),
    ("3 2 20 2 30 1", r"run 2 '20 2' leaves a \(4, 5\) mask: it ends at pixel 21 of 20"),
    ("3 2 6 1000000000000000000", "run 2 '6 1000000000000000000': a number too large"),
    ("3 2 6 " + "7" * 100_000, r"run 2 '6 7+\.\.\.': a number too large"),
    ("1 " + "\u0661" * 100_000, "is not a whole number"),
]


@pytest.mark.parametrize("text, says", SAYS, ids=range(len(SAYS)))
def test_a_refusal_quotes_the_run_and_says_what_is_wrong(text, says):
    with pytest.raises(ValueError, match="^" + says if says.startswith("run") else says) as e:
        rle_runs(text, (4, 5))
    assert len(str(e.value)) < 250 and str(e.value).isascii()
    for read in (
        lambda: rle_decode(text, (4, 5)),
        lambda: rle_area(text, (4, 5)),
        lambda: rle_overlap("1 1", text, (4, 5)),
        lambda: rle_overlap(text, "", (4, 5)),
    ):
        with pytest.raises(ValueError, match=says):
            read()


def test_without_a_shape_only_the_end_goes_unchecked():
    assert rle_area("3 2 999999999999999999 999999999999999999") == 2 + 999999999999999999
    for text in (
        "3",
        "3 0",
        "0 3",
        "3 2 4 1",
        "6 1 3 1",
        "3 x",
        "3 1000000000000000000",
        "9223372036854775807 1",
        "18446744073709551617 1",
    ):
        with pytest.raises(ValueError, match="run"):
            rle_area(text)


# Ways to be malformed: each takes sound runs of a 6x7 mask and a place in them, and gives damaged text.
NOT_A_NUMBER = [
    "x",
    "",
    "+5",
    "-5",
    "-0",
    "1_0",
    "1.0",
    "1.",
    ".5",
    "1e3",
    "0x1",
    "1L",
    "nan",
    "inf",
    "None",
    "５",
    "٣",
    "²",
    "①",
    "Ⅷ",
    "1\x00",
    "\x00",
    "1\x1c2",
    "1\x852",
    "1\xa02",
    "1\u20032",
    "1\u20282",
    "1\ufeff",
    "1\u200b",
    "1,2",
    "1;",
    "'1'",
    '"1"',
    "1:2",
    "(1",
    "[1]",
    "1-2",
    "1\\n",
    "\ud800",
    "é",
    "#",
]
DAMAGE = {
    "odd count, one gone": lambda w, i, x: w[:i] + w[i + 1 :],
    "odd count, one extra": lambda w, i, x: w + [str(43 + x)],
    "no number": lambda w, i, x: w[:i] + [NOT_A_NUMBER[x % len(NOT_A_NUMBER)] or "?"] + w[i + 1 :],
    "a number with a tail": lambda w, i, x: w[:i] + [w[i] + "+-_.eExj,;:\x00\xa0\u2003５"[x % 15]] + w[i + 1 :],
    "zero": lambda w, i, x: w[:i] + ["0" * (1 + x % 5)] + w[i + 1 :],
    "negative": lambda w, i, x: w[:i] + ["-" + w[i]] + w[i + 1 :],
    "past the end": lambda w, i, x: w[:-1] + [str(44 - int(w[-2]) + x)],
    "starts past the end": lambda w, i, x: w + [str(43 + x), "1"],
    "unsorted": lambda w, i, x: w + w[:2] if x % 2 else w[-2:] + w[:-2] + w[-2:],
    "overlapping": lambda w, i, x: w[: 2 * (i // 2)] + w[2 * (i // 2) : 2 * (i // 2) + 2] * 2 + w[2 * (i // 2) + 2 :],
    "huge": lambda w, i, x: w[:i] + [str([10**18, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 10**400][x % 6])] + w[i + 1 :],
    "endless": lambda w, i, x: w[:i] + ["1" + "0" * (4300 + x)] + w[i + 1 :],
}


@st.composite
def sound_runs(draw):
    "Words of one to six sorted runs in 42 pixels, apart by at least 0."
    words, at = [], 1
    for _ in range(draw(st.integers(1, 6))):
        start = at + draw(st.integers(0, 4))
        length = draw(st.integers(1, 3))
        if start + length > 43:
            break
        words += [str(start), str(length)]
        at = start + length
    return words


@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("damage", DAMAGE)
@given(words=sound_runs(), place=st.integers(0, 11), x=st.integers(0, 100))
def test_damage_of_every_kind_is_refused(damage, words, place, x):
    rle_runs(" ".join(words), (6, 7))
    text = " ".join(DAMAGE[damage](words, place % len(words), x))
    with pytest.raises(ValueError, match="^run [0-9]+ "):
        rle_runs(text, (6, 7))
    with pytest.raises(ValueError, match="^run [0-9]+ "):
        rle_decode(text, (6, 7))


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet="0123456789 \t\n\r\v\f+-._ex\x00\x1c\xa0５", max_size=12),
        st.lists(st.integers(-1, 45), max_size=8).map(lambda x: " ".join(map(str, x))),
    )
)
def test_any_text_is_read_as_the_judge_reads_it_or_refused(text):
    pixels = judge(text, 6, 7)
    if pixels is None:
        with pytest.raises(ValueError):
            rle_decode(text, (6, 7))
    else:
        assert sorted(zip(*map(np.ndarray.tolist, np.nonzero(rle_decode(text, (6, 7)))))) == sorted(pixels)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), height=st.integers(1, 12), width=st.integers(1, 12))
def test_there_and_back_and_counts_equal_pixels(data, height, width):
    bits = st.lists(st.booleans(), min_size=height * width, max_size=height * width)
    a, b = (np.array(data.draw(bits)).reshape(height, width) for _ in "ab")
    x, y = rle_encode(a), rle_encode(b)
    assert np.array_equal(rle_decode(x, a.shape), a)
    assert rle_area(x) == rle_area(x, a.shape) == a.sum()
    assert rle_overlap(x, y) == rle_overlap(y, x, a.shape) == (a & b).sum()


def mutate(text, rng):
    "A string that a slip of hand or of disk might leave: a character, a word, or a number changed."
    words = text.split(" ")
    i, j = rng.randrange(len(words)), rng.randrange(len(words))
    at = rng.randrange(len(text) + 1)
    match rng.randrange(12):
        case 0:
            text = text[:at] + text[at + 1 :]
        case 1:
            text = text[:at] + rng.choice("0123456789 -+._,eE\t\n\x00\x1f\xa0５x") + text[at:]
        case 2:
            text = text[:at] + rng.choice("0123456789 -+._,eE\t\n\x00\x1f\xa0５x") + text[at + 1 :]
        case 3:
            text = text[:at]
        case 4:
            text = text[at:]
        case 5:
            text = " ".join(words[:i] + words[i + 1 :])
        case 6:
            text = " ".join(words[:i] + [words[i]] + words[i:])
        case 7:
            words[i], words[j] = words[j], words[i]
            text = " ".join(words)
        case 8:
            words[i] = str(int(words[i]) + rng.choice([-3, -2, -1, 1, 2, 3]))
            text = " ".join(words)
        case 9:
            words[i] = str(rng.choice([0, -1, 222, 2**31, 2**63, 2**64 + 3, 10**30]))
            text = " ".join(words)
        case 10:
            words[i] = rng.choice(
                ["nan", "1e1", "0x3", "+" + words[i], words[i] + ".0", words[i] + "_0", "０", "0" + words[i]]
            )
            text = " ".join(words)
        case 11:
            text = " ".join(words[2 * (i // 2) :] + words[: 2 * (i // 2)])
    return text


def test_of_ten_thousand_malformed_strings_none_is_accepted():
    shape, rng = (13, 17), random.Random(0)
    sound = [t for t in map(rle_encode, (m for m in random_masks(30) if m.shape == shape)) if t]
    malformed = valid = 0
    while malformed < 10_000:
        text = rng.choice(sound)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if text.strip() and all(w.isascii() and w.isdigit() for w in text.split(" ")):
                text = mutate(text, rng)
        pixels = judge(text, *shape)
        if pixels is None:
            malformed += 1
            with pytest.raises(ValueError):
                rle_runs(text, shape)
        else:
            valid += 1
            expected = np.zeros(shape, np.uint8)
            for row, col in pixels:
                expected[row, col] = 1
            assert np.array_equal(rle_decode(text, shape), expected)
            assert rle_area(text, shape) == len(pixels)
    assert valid > 1000  # the other half of the claim was tried too


@pytest.mark.real
def test_official_masks_come_back_byte_for_byte_with_the_official_areas():
    labels = real_data("severstal-labels")
    with open(labels / "image_level.csv", newline="") as f:
        areas = {row["ImageId"]: row for row in csv.DictReader(f)}
    seen = {}
    with open(labels / "train_partial.csv", newline="") as f:
        for row in csv.DictReader(f):
            text, image, c = row["EncodedPixels"], row["ImageId"], row["ClassId"]
            mask = rle_decode(text, (256, 1600))
            assert rle_encode(mask) == text, (image, c)
            assert rle_area(text, (256, 1600)) == int(mask.sum()) == int(areas[image][f"area_c{c}"]), (image, c)
            others = seen.setdefault(image, [])
            assert all(rle_overlap(text, other) == 0 for other in others), image  # no pixel carries two classes
            others.append(text)
    assert sum(map(len, seen.values())) == 4063
