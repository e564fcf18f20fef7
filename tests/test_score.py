"""What counts say a rule scores, against the pixels of the masks it draws, over thousands of maps.

Every gate, fill, component size and connectivity.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from made import NEEDS_SCORE
from scipy import ndimage

from steel_seg.curves import Components, CurveCounter, Curves
from steel_seg.metric import dice, mask_counts
from steel_seg.post import GATE_KINDS, Rule, apply_rule
from steel_seg.score import Rows, dice_at, dice_rows, rows_of


def slow_components(levels, truth, connectivity):
    """Components of (N,C,H,W) maps: scipy's labels at every level that a map holds.

    Between two such levels nothing changes.
    """
    start, rows = [0], []
    for prob, mask in zip(levels.reshape(-1, *levels.shape[2:]), truth.reshape(-1, *levels.shape[2:])):
        found, low = [], 1
        for level in np.unique(prob[prob > 0]).tolist():
            labels, many = ndimage.label(prob >= level, np.ones((3, 3)) if connectivity == 8 else None)
            found += [((labels == k).sum(), low, level, (labels == k)[mask].sum()) for k in range(1, many + 1)]
            low = level + 1
        rows += sorted(found, key=lambda row: -row[0])
        start.append(len(rows))
    area, low, high, hit = np.array(rows, np.int64).reshape(-1, 4).T
    return Components(
        connectivity,
        1,
        np.array(start),
        low.astype(np.uint8),
        high.astype(np.uint8),
        area.astype(np.int32),
        hit.astype(np.int32),
    )


def slow_fill(levels):
    "The (N,C,H,W) maps whose mask at every level is the filled mask of the map given."
    filled = levels.copy()
    for prob, out in zip(levels.reshape(-1, *levels.shape[2:]), filled.reshape(-1, *levels.shape[2:])):
        for level in np.unique(prob[prob > 0]):
            out[ndimage.binary_fill_holes(prob >= level)] = level
    return filled


def slow_curves(levels, truth, floor, connectivity, fill=True):
    "Curves of (N,C,H,W) maps with their components, and those of the filled maps: counted one level at a time."
    area, hit = (
        np.stack([(seen & (levels >= t)).sum((2, 3)) for t in range(256)], 2).astype(np.int32)
        for seen in (np.ones_like(truth), truth)
    )
    return Curves(
        tuple(map(str, range(len(levels)))),
        area,
        hit,
        truth.sum((2, 3)).astype(np.int64),
        floor,
        levels.shape[2:],
        slow_components(levels, truth, connectivity),
        slow_curves(slow_fill(levels), truth, floor, connectivity, False) if fill else None,
    )


def kernel_curves(levels, truth, floor, connectivity):
    "The same from the kernels, as `curves_of` counts a store."
    counter = CurveCounter(
        tuple(map(str, range(len(levels)))), levels.shape[1], levels.shape[2:], floor, connectivity, fill_holes=True
    )
    for i, (level, mask) in enumerate(zip(levels, truth)):
        counter.add(str(i), level, mask.astype(np.uint8) if mask.any() else None)
    return counter.finish()


def random_maps(rng, kind, n=3, c=1):
    "Levels and truth of small images of one kind, as a store with a floor of 13 or 1 would hold them."
    floor = int(rng.choice([1, 13]))
    shape = {"pixel": (1, 1), "row": (1, int(rng.integers(2, 30))), "column": (int(rng.integers(2, 20)), 1)}.get(
        kind, tuple(rng.integers(3, 13, 2))
    )
    noise = rng.random((n, c, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1, 1), mode="nearest")
    smooth = (smooth - smooth.min()) / max(np.ptp(smooth), 1e-9)
    if kind == "sharp":
        levels = np.array([0, 3, 128, 240, 255])[np.digitize(smooth, [0.4, 0.5, 0.6, 0.75])]
    elif kind == "soft":
        levels = 255 * smooth
    elif kind == "rings":
        levels = np.array([20, 130, 200, 255])[rng.integers(0, 4, noise.shape)] * (noise < 0.65)
    elif kind == "empty":
        levels = noise * floor * 0.99  # nothing that the store keeps
    else:
        levels = 255 * noise
    levels = (levels * (rng.random((n, c, 1, 1)) < 0.9)).astype(np.uint8)
    truth = (smooth > 0.6) * (rng.random((n, c, 1, 1)) < 0.6) if rng.random() < 0.8 else np.zeros(noise.shape)
    return np.where(levels < floor, 0, levels).astype(np.uint8), truth.astype(bool), floor


KINDS = ("sharp", "soft", "noisy", "rings", "empty", "pixel", "row", "column")
GATE_VALUES = {
    "peak": (1, 131, 255),
    "score": (1, 130, 255),
    "sum": (1, 256, 400),
    "core": (13, 130, 201, 255),
    "product": (1,),
    "area": (1, 2, 5),
}


@pytest.fixture(scope="module")
def cases():
    "For each connectivity 64 sets of maps with their curves, from slow loops and from the kernels."
    rng = np.random.default_rng(0)
    found = {4: [], 8: []}
    for connectivity, kind, _ in itertools.product(found, KINDS, range(8)):
        levels, truth, floor = random_maps(rng, kind)
        found[connectivity].append(
            (
                levels,
                truth,
                slow_curves(levels, truth, floor, connectivity),
                kernel_curves(levels, truth, floor, connectivity),
            )
        )
    return found


def drawn(levels, truth, rules, scores):
    "Dice of the masks that `apply_rule` draws."
    masks = np.stack(
        [
            [
                apply_rule(prob, rule, None if scores is None else int(scores[i, c]))
                for c, (prob, rule) in enumerate(zip(probs, rules))
            ]
            for i, probs in enumerate(levels)
        ]
    )
    return dice(*mask_counts(masks, truth)), masks


def test_dice_from_counts_is_dice_of_the_masks_for_every_rule(cases):
    rng, seen, many = np.random.default_rng(1), {}, 0
    gates = [("peak", 0), *((by, gate) for by, values in GATE_VALUES.items() for gate in values)]
    for (by, gate), fill, smallest, connectivity, min_area in itertools.product(
        gates, (False, True), (0, 2, 6), (4, 8), (0, 1, 4, 30)
    ):
        for at in rng.choice(len(cases[connectivity]), 3, replace=False):
            levels, truth, curves, fast = cases[connectivity][at]
            rule = Rule(
                int(rng.choice([curves.floor, 60, 128, 129, 200, 254, 255])),
                min_area,
                fill,
                smallest,
                connectivity,
                gate,
                by,
            )
            scores = rng.choice(np.array([0, 1, 100, 127, 128, 200, 254, 255], np.uint8), truth.shape[:2])
            if by in ("peak", "core") and rng.random() < 0.5:
                scores = None
            want, masks = drawn(levels, truth, [rule], scores)
            found = dice_at(curves, [rule], scores)
            assert np.array_equal(found, want), (rule, scores, levels, truth)
            assert np.array_equal(dice_at(fast, [rule], scores), want), (rule, scores, levels, truth)
            rows = rows_of(curves, 0, rule, None if scores is None else scores[:, 0])
            assert np.array_equal(dice_rows(rows, rule.thresh, rule.min_area), want[:, 0])
            key = (by if gate else "none", fill, smallest > 1)
            seen.setdefault(key, set()).update(
                zip(masks.any((2, 3)).ravel().tolist(), truth.any((2, 3)).ravel().tolist())
            )
            many += len(levels)
    assert many > 7000 and len(seen) == 28 and all(len(x) == 4 for x in seen.values()), (
        many,
        seen,
    )  # predicted or not, present or not


def test_rows_mean_what_they_say(cases):
    "At every threshold and area, by the definition in the docstring of Rows, for a rule of each gate."
    rng = np.random.default_rng(2)
    for by, at in itertools.product(GATE_KINDS, range(0, 64, 7)):
        levels, truth, _, curves = cases[8][at]
        rule = Rule(
            fill_holes=bool(rng.integers(2)),
            min_component=int(rng.choice([0, 3])),
            gate=int(rng.choice(GATE_VALUES[by])),
            gate_by=by,
        )
        scores = rng.integers(0, 256, truth.shape[:2])
        rows = rows_of(curves, 0, rule, scores[:, 0])
        assert (rows.floor, rows.shape, len(rows)) == (curves.floor, curves.shape, len(curves)) and np.array_equal(
            rows.truth, curves.truth[:, 0]
        )
        for name in ("size", "area", "hit"):
            assert getattr(rows, name).dtype == np.int32 and getattr(rows, name).shape == (len(curves), 256)
        for thresh in rng.choice(np.arange(curves.floor, 256), 6, replace=False).tolist():
            for min_area in (0, 1, 2, 7, 50):
                kept = rows.size[:, thresh] >= max(1, min_area)
                want = [
                    dice(rows.area[i, thresh], rows.hit[i, thresh], rows.truth[i])
                    if kept[i]
                    else float(rows.truth[i] == 0)
                    for i in range(len(rows))
                ]
                assert dice_rows(rows, thresh, min_area).tolist() == want
                assert (
                    want
                    == drawn(levels, truth, [replace(rule, thresh=thresh, min_area=min_area)], scores)[0][:, 0].tolist()
                )
        some = rows.take([2, 0])
        assert isinstance(some, Rows) and np.array_equal(dice_rows(some, 200, 3), dice_rows(rows, 200, 3)[[2, 0]])


def test_a_plain_rule_and_a_core_copy_nothing(cases):
    levels, truth, _, curves = cases[8][0]
    rows = rows_of(curves, 0)
    assert (
        rows.size is rows.area and np.shares_memory(rows.area, curves.area) and np.shares_memory(rows.hit, curves.hit)
    )
    core = rows_of(curves, 0, Rule(gate=200, gate_by="core"))
    assert np.shares_memory(core.size, curves.area) and np.array_equal(core.size[:, 5], curves.area[:, 0, 200])
    filled = rows_of(curves, 0, Rule(fill_holes=True))
    assert np.shares_memory(filled.area, curves.filled.area)


def test_large_areas_do_not_overflow():
    "A full mask of 20,000 x 20,000 pixels at score 0 and 1,000 times the area."
    n = 20_000**2
    area = np.full((1, 1, 256), n, np.int32)
    curves = Curves(("a",), area, area, np.array([[n]]), 1, (20_000, 20_000))
    for score in (0, 1, 254, 255):
        rows = rows_of(curves, 0, Rule(gate=1000, gate_by="area"), [score])
        assert rows.size[0, 7] == n * 255 // (255 * 1000 - 999 * score)


def test_each_class_has_its_own_rule_and_scores():
    rng = np.random.default_rng(3)
    levels, truth, floor = random_maps(rng, "soft", n=5, c=3)
    curves = slow_curves(levels, truth, floor, 8)
    rules = [
        Rule(100, 3, gate=120, gate_by="score"),
        Rule(150, 2, True, gate=1, gate_by="product"),
        Rule(60, 4, min_component=3, gate=3, gate_by="area"),
    ]
    scores = rng.integers(0, 256, (5, 3)).astype(np.uint8)
    assert np.array_equal(dice_at(curves, rules, scores), drawn(levels, truth, rules, scores)[0])
    assert np.array_equal(dice_at(curves, rules, scores.tolist()), dice_at(curves, rules, scores))
    one = dice_at(curves.take([3]), rules, scores[[3]])
    assert np.array_equal(one[0], dice_at(curves, rules, scores)[3])


def test_what_is_not_known_is_refused():
    rng = np.random.default_rng(4)
    levels, truth, _ = random_maps(rng, "soft", n=4, c=2)
    levels = np.where(levels < 13, 0, levels).astype(np.uint8)
    curves = slow_curves(levels, truth, 13, 4)
    scores = np.full((4, 2), 200, np.uint8)
    plain = replace(curves, components=None, filled=None)
    for known, rule, word in (
        (plain, Rule(fill_holes=True), "do not show filled holes"),
        (plain, Rule(min_component=5), "do not show components"),
        (curves, Rule(min_component=5), "4-connected"),
        (curves, Rule(12), "level 12 is outside 13..255"),
        (curves, Rule(gate=12, gate_by="core"), "level 12 is outside 13..255"),
    ):
        with pytest.raises(ValueError, match=rf"rules\[1\]: .*{word}"):
            dice_at(known, [Rule(), rule], scores)
    for by in NEEDS_SCORE:
        rule = Rule(gate=1, gate_by=by)
        with pytest.raises(ValueError, match=f"gate_by='{by}' needs a score"):
            rows_of(curves, 1, rule)
        with pytest.raises(ValueError, match=rf"rules\[0\]: .*gate_by='{by}' needs a score"):
            dice_at(curves, [rule, Rule()])
        assert np.array_equal(
            dice_at(curves, [replace(rule, gate=0), Rule()]), dice_at(curves, [Rule(), Rule()])
        )  # off
    for bad in (
        scores / 255,
        scores[:3],
        scores[:, :1],
        scores.astype(np.int64) + 56,
        scores.astype(np.int64) - 201,
        scores > 0,
        scores[:, 0],
    ):
        with pytest.raises(ValueError, match="score"):
            dice_at(curves, [Rule(), Rule()], bad)
    for rules in ([Rule()], [Rule()] * 3, []):
        with pytest.raises(ValueError, match="rules for 2 classes"):
            dice_at(curves, rules)
    with pytest.raises(ValueError, match="256 is outside 13..255"):
        dice_rows(rows_of(curves, 0), 256, 0)
    assert dice_at(curves.take([]), [Rule(), Rule()]).shape == (0, 2)
