"""Surfaces against every point on its own: dice_rows for whole masks, labelled masks for components."""

import numpy as np
import pytest
from scipy import ndimage

from steel_seg.curves import Components, Curves
from steel_seg.flood import map_counts
from steel_seg.metric import dice
from steel_seg.post import Rule, apply_rule
from steel_seg.score import Rows, dice_rows, rows_of
from steel_seg.surface import component_surface, moments, surface

EIGHT = np.ones((3, 3), int)
FOUR = ndimage.generate_binary_structure(2, 1)


def random_rows(rng, n):
    "Counts that fall as the level rises; some maps empty, some truths too; the size is the area or something smaller."
    truth = rng.integers(0, 30, n) * (rng.random(n) < 0.6)

    def fall(top):
        return -np.sort(-(rng.integers(0, top[:, None] + 1, (n, 256)) * (rng.random((n, 1)) < 0.8)), axis=1)

    hit = fall(truth)
    area = hit + fall(np.full(n, 20))
    size = rng.choice([0, 1, 2])
    size = (area, area // 3, np.broadcast_to(area[:, 90:91], area.shape))[size]
    return Rows(
        size.astype(np.int32) if rng.random() < 0.5 else size,
        area.astype(np.int32),
        hit.astype(np.int32),
        truth.astype(np.int64),
        int(rng.choice([0, 13, 100])),
        (5, 10),
    )


def random_weight(rng, n):
    weight = (None, rng.integers(0, 4, n), rng.random(n) * (rng.random(n) < 0.7))[rng.integers(3)]
    if weight is not None:
        weight[rng.integers(n)] += 1
    return weight


def random_grid(rng, floor):
    return rng.integers(max(1, floor), 256, rng.integers(1, 7)), rng.integers(0, 54, rng.integers(1, 9))


def test_the_surface_is_the_mean_dice_at_every_point():
    rng = np.random.default_rng(0)
    for _ in range(150):
        n = int(rng.integers(1, 12))
        rows, weight = random_rows(rng, n), random_weight(rng, n)
        threshes, areas = random_grid(rng, rows.floor)
        want = [[np.average(dice_rows(rows, t, a), weights=weight) for a in areas] for t in threshes]
        found = surface(rows, threshes, areas, weight)
        assert found.shape == (len(threshes), len(areas)) and np.allclose(found, want, rtol=0, atol=1e-12)


def test_every_level_and_area_at_once():
    rng = np.random.default_rng(1)
    for _ in range(10):
        rows = random_rows(rng, 5)
        levels, areas = np.arange(max(1, rows.floor), 256), np.arange(52)
        want = [[dice_rows(rows, t, a).mean() for a in areas] for t in levels[::10]]
        assert np.allclose(surface(rows, levels, areas)[::10], want, rtol=0, atol=1e-12)


def test_moments_are_those_of_the_dice_image_by_image():
    rng = np.random.default_rng(2)
    for _ in range(100):
        n = int(rng.integers(1, 12))
        rows, weight, against = random_rows(rng, n), random_weight(rng, n), rng.random(n)
        threshes, areas = random_grid(rng, rows.floor)
        found = moments(rows, threshes, areas, against, weight)
        assert found.shape == (3, len(threshes), len(areas))
        for j, t in enumerate(threshes):
            for k, a in enumerate(areas):
                d = dice_rows(rows, t, a)
                want = [np.average(x, weights=weight) for x in (d, d * d, d * against)]
                assert np.allclose(found[:, j, k], want, rtol=0, atol=1e-12)


def test_rows_of_any_rule_have_a_surface():
    """Views with odd strides, and a size that is not the area."""
    rng = np.random.default_rng(3)
    levels, truth = random_maps(rng, 8, 2)
    curves, scores = curves_from(levels, truth), rng.integers(0, 256, 8)
    for rule in (
        Rule(),
        Rule(gate=120, gate_by="peak"),
        Rule(gate=200, gate_by="score"),
        Rule(gate=90, gate_by="core"),
        Rule(gate=1, gate_by="product"),
        Rule(gate=300, gate_by="sum"),
        Rule(gate=5, gate_by="area"),
    ):
        rows = rows_of(curves, 1, rule, scores)
        want = [[dice_rows(rows, t, a).mean() for a in (0, 3, 9, 100)] for t in (40, 90, 200)]
        assert np.allclose(surface(rows, [40, 90, 200], [0, 3, 9, 100]), want, rtol=0, atol=1e-12)


def random_maps(rng, n, c, shape=(6, 9)):
    "Levels and truth of small images, some empty; few different levels, so that components last over several."
    levels = np.array([0, 30, 60, 90, 130, 131, 200, 255])[rng.integers(0, 8, (n, c, *shape))] * (
        rng.random((n, c, 1, 1)) < 0.8
    )
    truth = (rng.random(levels.shape) < 0.4) & (rng.random((n, c, 1, 1)) < 0.6)
    return levels.astype(np.uint8), truth


def components_by_labels(levels, truth, connectivity, smallest):
    "Components by labelling every level: the same pixels at the next level are the same component."
    start, rows = [0], []
    for prob, mask in zip(levels.reshape(-1, *levels.shape[2:]), truth.reshape(-1, *levels.shape[2:])):
        found = {}
        for t in range(256):
            labels, count = ndimage.label(prob >= t, EIGHT if connectivity == 8 else FOUR)
            for k in range(1, count + 1):
                pixels = frozenset(np.flatnonzero(labels == k).tolist())
                low, _ = found.get(pixels, (t, t))
                found[pixels] = (low, t)
        mine = [
            (low, high, len(p), int(mask.ravel()[list(p)].sum()))
            for p, (low, high) in found.items()
            if len(p) >= smallest
        ]
        rows += sorted(mine, key=lambda r: -r[2])
        start.append(len(rows))
    low, high, area, hit = np.array(rows, np.int64).reshape(-1, 4).T
    return Components(
        connectivity,
        smallest,
        np.array(start),
        low.astype(np.uint8),
        high.astype(np.uint8),
        area.astype(np.int32),
        hit.astype(np.int32),
    )


def curves_from(levels, truth, floor=0, components=None, filled=None):
    counts = [[map_counts(p, t) for p, t in zip(ps, ts)] for ps, ts in zip(levels, truth)]
    area, hit = (np.array([[x[k] for x in row] for row in counts], np.int32) for k in (0, 1))
    return Curves(
        tuple(map(str, range(len(levels)))),
        area,
        hit,
        truth.sum((2, 3)).astype(np.int64),
        floor,
        levels.shape[2:],
        components,
        filled,
    )


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("smallest", [1, 4])
def test_component_surfaces_are_those_of_labelled_masks(connectivity, smallest):
    rng = np.random.default_rng(4 + connectivity + smallest)
    for _ in range(6):
        n = int(rng.integers(1, 6))
        levels, truth = random_maps(rng, n, 2)
        curves, weight = (
            curves_from(levels, truth, components=components_by_labels(levels, truth, connectivity, smallest)),
            random_weight(rng, n),
        )
        threshes, sizes = rng.permutation([1, 31, 60, 91, 131, 201]), rng.permutation([smallest, smallest + 2, 9, 60])
        found = component_surface(curves, 1, threshes, sizes, weight=weight)
        for j, t in enumerate(threshes):
            for k, size in enumerate(sizes):
                masks = [
                    apply_rule(p, Rule(int(t), min_component=int(size), connectivity=connectivity))
                    for p in levels[:, 1]
                ]
                d = dice(
                    [m.sum() for m in masks],
                    [(m & g).sum() for m, g in zip(masks, truth[:, 1])],
                    truth[:, 1].sum((1, 2)),
                )
                assert found[j, k] == pytest.approx(np.average(d, weights=weight), abs=1e-12)


def test_component_surfaces_of_filled_maps_and_of_subsets():
    rng = np.random.default_rng(7)
    levels, truth = random_maps(rng, 5, 1)
    fill = np.zeros_like(levels)
    for t in range(1, 256):
        fill[:, 0][np.stack([ndimage.binary_fill_holes(p >= t) for p in levels[:, 0]])] = t
    filled = curves_from(fill, truth, components=components_by_labels(fill, truth, 8, 1))
    curves = curves_from(levels, truth, components=components_by_labels(levels, truth, 8, 1), filled=filled)
    threshes, sizes, weight = [31, 91, 200], [0, 2, 5], [1, 0, 0, 2, 0]
    assert np.array_equal(
        component_surface(curves, 0, threshes, sizes, fill_holes=True), component_surface(filled, 0, threshes, sizes)
    )
    part = curves.take([0, 3, 3])
    assert np.allclose(
        component_surface(curves, 0, threshes, sizes, True, weight),
        component_surface(part, 0, threshes, sizes, True),
        rtol=0,
        atol=1e-12,
    )


def test_grids_and_weights_that_cannot_be_are_refused():
    rng = np.random.default_rng(8)
    levels, truth = random_maps(rng, 4, 1)
    curves = curves_from(levels, truth, 20, components_by_labels(levels, truth, 8, 3))
    rows = rows_of(curves, 0)
    for make in (
        lambda *args: surface(rows, *args),
        lambda t, a, *w: moments(rows, t, a, np.zeros(4), *w),
        lambda *args: component_surface(curves, 0, *args[:2], False, *args[2:]),
    ):
        for t in (19, 256, 0):
            with pytest.raises(ValueError, match=f"{t} is outside 20..255"):
                make([128, t], [5])
        for weight in ([0] * 4, [1, 1, 1, -1], [1, 1, 1, np.nan]):
            with pytest.raises(ValueError, match="at least one must be above 0"):
                make([128], [5], weight)
        with pytest.raises(ValueError, match="for 4 images"):
            make([128], [5], [1] * 3)
        assert make([], [5]).shape[-2:] == (0, 1) and make([128], []).shape[-2:] == (1, 0)
    with pytest.raises(ValueError, match="at least 3 pixels, 2 is asked for"):
        component_surface(curves, 0, [128], [9, 2])
    with pytest.raises(ValueError, match="filled"):
        component_surface(curves, 0, [128], [9], fill_holes=True)
    with pytest.raises(ValueError, match="shape"):
        moments(rows, [128], [0], np.zeros(3))
