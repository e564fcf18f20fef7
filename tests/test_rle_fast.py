"""Every function of `rle_fast` gives what its counterpart in `rle` gives: string, mask, count or error message."""

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_rle import SAYS

from steel_seg.metric import dice, mask_counts
from steel_seg.rle import rle_area, rle_decode, rle_encode, rle_overlap, rle_runs
from steel_seg.rle_fast import (
    _pack,
    _unpack,
    decode,
    decode_masks,
    encode,
    encode_masks,
    encode_prob,
    string_counts,
    string_dice,
    table_areas,
    table_counts,
)

# A word holds 64 rows: heights just below and above one and two words; widths below and above a vector register.
SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (1, 1600),
    (1600, 1),
    (7, 8),
    (8, 7),
    (63, 5),
    (64, 5),
    (65, 5),
    (127, 3),
    (128, 3),
    (129, 33),
    (200, 65),
    (256, 40),
]
shapes = st.sampled_from(SHAPES) | st.tuples(st.integers(1, 140), st.integers(1, 40))


@st.composite
def levels(draw, shape=shapes):
    "A map of levels: speckle of any density, or a few boxes of a few levels; often with whole columns and rows."
    height, width = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return np.where(
            rng.random((height, width)) < draw(st.sampled_from([0, 0.01, 0.2, 0.5, 0.9, 1])),
            rng.integers(1, 256, (height, width)),
            0,
        ).astype(np.uint8)
    prob = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = rng.integers(height), rng.integers(width)
        prob[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = rng.choice(
            [0, 1, 2, 128, 255]
        )
    return prob


def said(f, *args):
    "What a call returns, or the kind and the text of its error."
    try:
        return f(*args)
    except Exception as e:
        return type(e), str(e)


def same(ours, theirs):
    "Whether two of what `said` gives are the same."
    if isinstance(theirs, np.ndarray):
        return isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    return ours == theirs


@settings(max_examples=300, deadline=None)
@given(levels(), st.integers(0, 255))
def test_encode_is_rle_encode(prob, thresh):
    mask = (prob > 0).astype(np.uint8)
    text = rle_encode(mask)
    for kind in (
        mask,
        prob > 0,
        mask * 2,
        mask * 255,
        np.asfortranarray(mask),
        np.repeat(np.repeat(mask, 2, 0), 3, 1)[::2, ::3],
        mask[::-1, ::-1].copy()[::-1, ::-1],
        mask.astype(int),
        mask.astype(np.float32),
        mask.tolist(),
    ):
        assert encode(kind) == text
    frozen = mask.copy()
    frozen.flags.writeable = False
    assert encode(frozen) == text
    for t in (thresh, 0, 1, 255):
        assert encode_prob(prob, t) == rle_encode(prob >= t) == encode_prob(np.asfortranarray(prob), np.uint8(t))
    assert encode_masks(np.stack([mask, prob > thresh])) == [text, rle_encode(prob > thresh)]


@settings(max_examples=200, deadline=None)
@given(levels())
def test_words_hold_the_mask_and_give_it_back(prob):
    words = _pack(prob, np.uint8(100))
    height, width = prob.shape
    assert words.shape == ((height + 63) // 64, width)
    for row in range(64 * len(words)):
        bit = (words[row // 64] >> np.uint64(row % 64)) & np.uint64(1)
        assert np.array_equal(bit, prob[row] >= 100 if row < height else np.zeros(width))
    mask = np.full(prob.shape, 9, np.uint8)
    _unpack(words, mask)
    assert np.array_equal(mask, prob >= 100)


@settings(max_examples=300, deadline=None)
@given(levels())
def test_a_mask_of_more_than_two_levels_is_refused(prob):
    "By both encoders, for every dtype that holds the levels."
    n_levels = len(np.union1d(prob, 0))
    for mask in (prob, prob.astype(np.int16) - 300 * (prob > 0), prob.astype(np.float32), np.asfortranarray(prob)):
        for function in (encode, rle_encode):
            if n_levels <= 2:
                assert decode(function(mask), mask.shape).sum() == (mask != 0).sum()
            else:
                with pytest.raises(ValueError, match="levels .*expected 0 and one more"):
                    function(mask)


@settings(max_examples=300, deadline=None)
@given(levels())
def test_decode_is_rle_decode(prob):
    text = rle_encode(prob > 0)
    mask, out = decode(text, prob.shape), np.full(prob.shape, 9, np.uint8)
    assert same(mask, rle_decode(text, prob.shape)) and mask.flags.c_contiguous and mask.flags.writeable
    assert decode(text, prob.shape, out) is out and np.array_equal(out, mask)
    stack = np.full((3, *prob.shape), 9, np.uint8)
    assert decode_masks([text, "", text], list(prob.shape), stack) is stack and np.array_equal(
        stack, [mask, 0 * mask, mask]
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_counts_are_those_of_the_pixels(data):
    shape = data.draw(shapes)
    p, t = data.draw(levels(shape)), data.draw(levels(shape))
    a, b = rle_encode(p > 0), rle_encode(t > 0)
    counts = tuple(int(n[0, 0]) for n in mask_counts(p[None, None], t[None, None]))
    assert counts == (rle_area(a), rle_overlap(a, b), rle_area(b))
    for end in (shape, None):
        assert string_counts(a, b, end) == counts and all(type(n) is int for n in string_counts(a, b, end))
        assert string_dice(a, b, end) == dice(*counts) and type(string_dice(a, b, end)) is float


def test_ten_thousand_strings_of_one_table():
    rng, shape = np.random.default_rng(1), (70, 9)
    masks = [(rng.random(shape) < rng.choice([0, 0, 0.01, 0.3, 1])).astype(np.uint8) for _ in range(10_000)]
    strings = [rle_encode(m) for m in masks]
    assert encode_masks(masks) == strings
    assert np.array_equal(decode_masks(strings, shape), masks)
    others = [strings[i] for i in rng.permutation(len(strings))]
    area, hit, truth = table_counts(strings, others, shape)
    assert area.dtype == hit.dtype == truth.dtype == np.int64 and area.shape == hit.shape == truth.shape == (10_000,)
    assert area.tolist() == [rle_area(s) for s in strings] == table_areas(strings, shape).tolist()
    assert truth.tolist() == [rle_area(s) for s in others]
    assert hit.tolist() == [rle_overlap(a, b) for a, b in zip(strings, others)]
    assert dice(area, hit, truth).tolist() == [string_dice(a, b, shape) for a, b in zip(strings, others)]
    assert [len(x) for x in table_counts([], [])] == [0, 0, 0]
    for kind in (np.array(strings[:99]), tuple(strings[:99]), iter(strings[:99])):
        assert table_areas(kind, shape).tolist() == area[:99].tolist()


def test_the_size_of_the_competition():
    rng = np.random.default_rng(0)
    speckle, checker = (
        (rng.random((256, 1600)) < 0.2).astype(np.uint8),
        (np.indices((256, 1600)).sum(0) % 2).astype(np.uint8),
    )  # checker: 204,800 runs
    stripes = np.zeros((256, 1600), np.uint8)
    stripes[::2] = 1  # as many, and each of one pixel: no mask of this size has a longer string
    for mask in (speckle, checker, stripes, 1 - stripes, np.ones_like(speckle)):
        text = encode(mask)
        assert text == rle_encode(mask) and np.array_equal(decode(text, mask.shape), mask)
        assert string_counts(text, encode(speckle), mask.shape) == (mask.sum(), (mask & speckle).sum(), speckle.sum())


@pytest.mark.parametrize("shape", [(10, 1000), (100, 1000), (1000, 1001), (3162, 3163)])
def test_the_room_for_a_string_is_enough_and_numbers_may_have_many_digits(shape):
    for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
        mask[0::2, -50:] = True
        mask[1::2, 0:60:2] = True
        text = encode(mask)
        assert text == rle_encode(mask) and np.array_equal(decode(text, shape), mask)


def test_a_mask_of_too_many_pixels_for_the_kernel_goes_through_numpy(monkeypatch):
    monkeypatch.setattr("steel_seg.rle_fast._MAX_PIXELS", 12)
    monkeypatch.setattr("steel_seg.rle_fast._encode", None)  # would fail
    mask = np.eye(4, dtype=np.uint8)
    assert encode(mask) == rle_encode(mask) == encode_prob(mask * 9, 9)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_a_mask_of_no_pixels(shape):
    assert encode(np.zeros(shape, bool)) == encode_prob(np.zeros(shape, np.uint8), 0) == ""
    assert decode("", shape).shape == shape
    assert said(decode, "1 1", shape) == said(rle_decode, "1 1", shape) and string_counts("", "", shape) == (0, 0, 0)


# ---- what is odd or malformed ----

ODD = [
    "",
    " ",
    "\n",
    "\t \r\n",
    " 3 2",
    "3 2 ",
    "3  2",
    "3 2\n",
    "3\n2 6 5",
    "3 2\r\n6 5",
    "03 002 006 5",
    "0" * 30 + "3 2",
    "3 2 5 1",
    "1 20",
    "20 1",
]
BAD = (
    [
        "3 2 " + w
        for w in (
            "+5 1",
            "5 1_0",
            "5 2.0",
            "5 2e0",
            "5 \uff15",
            "5\xa02",
            "5 2\x00",
            "5,2",
            "5 -1",
            "5 1 -",
            "0 5",
            "4 1",
            "2 1",
            "5 0",
            "15 7",
            "21 1",
            "? 1",
            "5 ?",
        )
    ]
    + ["3 " + "9" * n for n in (17, 18, 19, 20, 40, 5000)]
    + ["9" * n + " 1" for n in (17, 18, 19, 20, 40)]
    + [
        "3 1000000000000000000",
        "1 9223372036854775807",
        "1 18446744073709551617",
        "18446744073709551617 1",
        "9223372036854775807 9223372036854775807",
        "999999999999999999 999999999999999999",
        "1 340282366920938463463374607431768211457",
    ]
)
words = st.text("0123456789", min_size=1, max_size=3) | st.sampled_from(
    [
        "0",
        "1",
        "2",
        "-1",
        "+1",
        "1.0",
        "x",
        "\u0661",
        "\ud800",
        "9" * 18,
        "9" * 19,
        str(2**63),
        str(2**64 + 3),
        "1" * 41,
    ]
)
gaps = st.sampled_from([" "] * 8 + ["  ", "\n", "\t", "\r\n", "\x0b", "\xa0", ""])


@st.composite
def strings(draw):
    "Anything near a run-length string: a valid one, one with a changed character, numbers and junk, or any text."
    kind = draw(st.integers(0, 3))
    if kind == 3:
        return draw(st.text(max_size=12))
    if kind == 2:
        return "".join(w + g for w, g in draw(st.lists(st.tuples(words, gaps), max_size=8)))
    text = rle_encode(
        np.random.default_rng(draw(st.integers(0, 2**32))).random((4, 5)) < draw(st.sampled_from([0.1, 0.5]))
    )
    if kind == 0 or not text:
        return text
    at = draw(st.integers(0, len(text) - 1))
    return (
        text[:at]
        + draw(st.sampled_from(["", " ", "0", "9", "x", "-", "\n", "00", "99999999999999999999"]))
        + text[at + draw(st.integers(0, 1)) :]
    )


def slow_counts(a, b, shape):
    "Area, hit and truth by the functions of `rle`."
    return rle_area(a, shape), rle_overlap(a, b, shape), rle_area(b, shape)


def counts_in_a_table(a, b, shape):
    "The counts of a pair that stands between two others."
    return tuple(n.tolist() for n in table_counts(["1 1", a, ""], ["", b, "2 1"], shape))


def check_reading(text, other, shape):
    "One string, sound or not, through everything that reads."
    theirs = said(rle_decode, text, shape) if shape else None
    if shape:
        out = np.full(shape, 9, np.uint8)
        assert same(said(decode, text, shape), theirs) and same(said(decode, text, shape, out), theirs)
        assert np.array_equal(out, theirs if isinstance(theirs, np.ndarray) else np.full(shape, 9))
        assert same(
            said(decode_masks, ["1 1", text], shape),
            np.stack([rle_decode("1 1", shape), theirs]) if isinstance(theirs, np.ndarray) else theirs,
        )
    for pair in ((text, other), (other, text), (text, text)):
        theirs = said(slow_counts, *pair, shape)
        assert said(string_counts, *pair, shape) == theirs
        table = said(counts_in_a_table, *pair, shape)
        assert table == (
            ([1, theirs[0], 0], [0, theirs[1], 0], [0, theirs[2], 1]) if isinstance(theirs[0], int) else theirs
        )
        if not isinstance(theirs[0], int):
            assert said(string_dice, *pair, shape) == theirs and theirs[0] is ValueError
    assert said(lambda: int(table_areas([text], shape)[0])) == said(rle_area, text, shape)


@pytest.mark.parametrize("text", ODD + BAD + [text for text, _ in SAYS])
@pytest.mark.parametrize("shape", [(4, 5), None])
def test_odd_strings_are_read_and_malformed_ones_refused_as_rle_does(text, shape):
    check_reading(text, "3 2 6 5", shape)


@settings(max_examples=1000, deadline=None)
@given(strings(), strings(), st.sampled_from([(4, 5), (5, 4), (1, 20), (20, 1), None]))
@example("1 1\n", "", (4, 5))
def test_any_string_is_read_or_refused_as_rle_does(text, other, shape):
    check_reading(text, other, shape)


def test_ten_thousand_random_strings():
    rng, refused = random.Random(0), 0
    for _ in range(10_000):
        numbers = sorted(rng.sample(range(0, 24), rng.choice([2, 4, 6])))
        pieces = [n for a, b in zip(numbers[::2], numbers[1::2]) for n in (a, b - a)]
        if rng.random() < 0.3:
            pieces[rng.randrange(len(pieces))] = rng.choice([0, 1, 25, "x", "-3", 10**17, 10**18, 10**19, "", "07"])
        text = " ".join(map(str, pieces))
        theirs = said(rle_decode, text, (4, 5))
        refused += isinstance(theirs, tuple)
        assert same(said(decode, text, (4, 5)), theirs)
        assert said(string_counts, text, "3 9") == said(lambda a: (rle_area(a), rle_overlap(a, "3 9"), 9), text)
    assert 2000 < refused < 8000


@pytest.mark.parametrize("cell", [None, float("nan"), 3, b"1 1", ["1 1"], np.array([1, 1])])
def test_a_missing_cell_is_not_an_empty_mask(cell):
    for read in (
        lambda: decode(cell, (2, 2)),
        lambda: decode_masks(["", cell], (2, 2)),
        lambda: string_counts(cell, ""),
        lambda: string_dice("1 1", cell),
        lambda: table_counts([cell], ["1 1"]),
        lambda: table_counts(["", ""], ["1 1", cell]),
        lambda: table_areas([cell]),
    ):
        assert said(read) == said(rle_runs, cell)


def test_a_shape_of_more_pixels_than_an_int64_counts():
    assert string_counts("1 1 9 2", "9 9", (10**10, 10**10)) == (3, 2, 9)
    assert said(table_areas, ["9" * 19 + " 1"], (10**10, 10**10)) == said(rle_area, "9" * 19 + " 1", (10**10, 10**10))


def test_the_first_malformed_pair_is_the_one_that_is_named():
    with pytest.raises(ValueError, match="run 1 '1 x'"):
        table_counts(["1 1", "2 2", "1 y"], ["", "1 x", "1 z"])
    with pytest.raises(ValueError, match="2 predictions and 1 truths"):
        table_counts(["", ""], [""])


@pytest.mark.parametrize("shape", [4, (4,), (4, 5, 1), (4.0, 5), (-4, -5), "45", (4, None)])
def test_a_shape_is_height_and_width(shape):
    for read in (
        lambda: decode("1 1", shape),
        lambda: decode("", shape),
        lambda: decode_masks([], shape),
        lambda: string_counts("", "", shape),
        lambda: table_counts([], [], shape),
    ):
        assert said(read) == said(rle_decode, "1 1", shape)


@pytest.mark.parametrize(
    "mask",
    [np.zeros(4), np.zeros((1, 2, 2), bool), np.full((2, 2), 0.5), np.array([[np.nan, 0]]), np.array([["1", "0"]]), 3],
)
def test_what_is_no_mask_is_not_encoded(mask):
    assert said(encode, mask) == said(rle_encode, mask) and said(encode, mask)[0] is ValueError


@pytest.mark.parametrize(
    "prob, thresh, says",
    [
        (np.zeros((2, 2)), 1, "levels must be uint8, not float64"),
        (np.zeros((2, 2), bool), 1, "not bool"),
        (np.zeros((1, 2, 2), np.uint8), 1, "one class at a time"),
        (np.zeros((2, 2), np.uint8), 256, "threshold 256"),
        (np.zeros((2, 2), np.uint8), -1, "threshold -1"),
        (np.zeros((2, 2), np.uint8), 0.5, "threshold 0.5"),
    ],
)
def test_levels_and_thresholds_are_whole_numbers_up_to_255(prob, thresh, says):
    with pytest.raises(ValueError, match=says):
        encode_prob(prob, thresh)


def test_an_array_to_draw_into_must_be_one_that_can_be():
    good = np.full((4, 5), 9, np.uint8)
    frozen = good.copy()
    frozen.flags.writeable = False
    for out in (
        good.astype(bool),
        good.astype(int),
        good[:3],
        good.T,
        np.asfortranarray(good),
        np.repeat(good, 2, 1)[:, ::2],
        good[None],
        good.tolist(),
        frozen,
    ):
        with pytest.raises(ValueError, match=r"expected a writable uint8 array of \(4, 5\)"):
            decode("1 1", (4, 5), out)
        with pytest.raises(ValueError, match="expected a writable uint8 array of"):
            decode("", (4, 5), out)
        with pytest.raises(ValueError, match=r"array of \(2, 4, 5\)"):
            decode_masks(["1 1", ""], (4, 5), out)
    assert (good == 9).all() and (frozen == 9).all()
