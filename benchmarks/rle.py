"""Run-length strings: encode, decode and Dice against pycocotools, and a table of them against the usual numpy."""

import warnings

import cv2
import numpy as np
from maps import SHAPE, SHARE, truth_map
from pycocotools import mask as coco

from steel_seg.metric import dice
from steel_seg.rle import rle_decode, rle_encode
from steel_seg.rle_fast import decode, encode, encode_prob, string_dice, table_counts

warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools under numpy 2


def kinds():
    "Masks from nothing to noise: 0, 343, some 2,800 and some 65,000 runs."
    rng = np.random.default_rng(0)
    empty = np.zeros(SHAPE, np.uint8)
    blob, scratches = empty.copy(), empty.copy()
    cv2.ellipse(blob, (700, 120), (171, 90), 0, 0, 360, 1, -1)
    for _ in range(30):
        x, y, to = int(rng.integers(1505)), int(rng.integers(256)), int(rng.integers(256))
        cv2.line(scratches, (x, y), (x + 95, to), 1, 2)
    return {
        "empty": empty,
        "blob": blob,
        "30 scratches": scratches,
        "20% speckle": (rng.random(SHAPE) < 0.2).astype(np.uint8),
    }


def near(mask):
    "A mask that a net might have drawn for this one: some pixels off."
    return np.roll(mask, (3, 5), (0, 1))


def check_encode(mask):
    theirs = coco.decode(coco.encode(np.asfortranarray(mask)))
    assert encode(mask) == rle_encode(mask) == encode_prob(mask * 100, 100) and np.array_equal(
        theirs, decode(encode(mask), SHAPE)
    )


def check_decode(rle, theirs):
    assert np.array_equal(decode(rle, SHAPE), coco.decode(theirs)) and np.array_equal(
        decode(rle, SHAPE), rle_decode(rle, SHAPE)
    )


def check_dice(a, b, theirs_a, theirs_b):
    shared = coco.area(coco.merge([theirs_a, theirs_b], intersect=True))
    assert string_dice(a, b, SHAPE) == dice(coco.area(theirs_a), shared, coco.area(theirs_b))


def usual_decode(rle, shape):
    "What most public code for this competition does, with its shift by one pixel put right."
    numbers = rle.split()
    starts, lengths = (np.asarray(x, dtype=int) for x in (numbers[0::2], numbers[1::2]))
    starts = starts - 1
    mask = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    for low, high in zip(starts, starts + lengths):
        mask[low:high] = 1
    return mask.reshape(shape, order="F")


def usual_dice(pred, truth):
    "And how it is scored then."
    p, t = usual_decode(pred, SHAPE), usual_decode(truth, SHAPE)
    if p.sum() == 0 and t.sum() == 0:
        return 1.0
    return 2 * (p * t).sum() / (p.sum() + t.sum())


def table(n):
    """n pairs of strings, a prediction and a truth: of every class as many with a defect as the competition has, drawn
    from 200 different ones."""
    rng = np.random.default_rng(0)
    masks = [[truth_map(rng, c) for _ in range(50)] for c in range(4)]
    pairs = [[(rle_encode(near(m)), rle_encode(m)) for m in row] for row in masks]
    there = [rng.random() < SHARE[k % 4] for k in range(n)]
    return zip(*(pairs[k % 4][rng.integers(50)] if yes else ("", "") for k, yes in enumerate(there)))


def rows():
    out, part, n = [], 1000, 50272

    def add(what, against, goal, check, ours, peer, **more):
        return out.append(dict(what=what, against=against, goal=goal, check=check, ours=ours, peer=peer, **more))

    for (kind, mask), goals in zip(kinds().items(), ((3, 10, 1.5), (3, 8, 1.5), (2, 4, 1.5), (1.5, 2, 1.5))):
        a, b, columns = encode(mask), encode(near(mask)), np.asfortranarray(mask)
        theirs, others = coco.encode(columns), coco.encode(np.asfortranarray(near(mask)))
        add(
            f"encode, {kind}",
            "pycocotools encode, F-order given, no string made",
            goals[0],
            lambda m=mask: check_encode(m),
            lambda m=mask: encode(m),
            lambda m=columns: coco.encode(m),
        )
        add(
            f"decode, {kind}",
            "pycocotools decode",
            goals[1],
            lambda a=a, x=theirs: check_decode(a, x),
            lambda a=a: decode(a, SHAPE),
            lambda x=theirs: coco.decode(x),
        )
        add(
            f"dice of two strings, {kind}",
            "pycocotools iou of ready objects, our parsing included",
            goals[2],
            lambda a=a, b=b, x=theirs, y=others: check_dice(a, b, x, y),
            lambda a=a, b=b: string_dice(a, b, SHAPE),
            lambda x=theirs, y=others: coco.iou([x], [y], [0]),
        )
    preds, truths = map(list, table(n))

    def ours():
        return dice(*table_counts(preds, truths, SHAPE))

    def usual():
        return [usual_dice(p, t) for p, t in zip(preds[:part], truths[:part])]

    def check():
        np.testing.assert_array_equal(ours()[:part], usual())

    add(
        f"score {n:,} pairs of strings",
        f"both decoded with the usual numpy, {part:,} pairs measured and scaled",
        100,
        check,
        ours,
        usual,
        scale=n / part,
    )
    return out
