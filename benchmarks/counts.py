"""Curves, components, holes, surfaces and the store, against what people use for them."""

import tempfile
from functools import cache
from pathlib import Path

import cc3d
import higra
import numpy as np
from maps import SHAPE, pairs
from scipy import ndimage

from steel_seg.curves import Components, CurveCounter, Curves, map_counts
from steel_seg.flood import component_nodes, fill_levels, make_room
from steel_seg.post import Rule
from steel_seg.score import dice_at, rows_of
from steel_seg.store import ProbStore
from steel_seg.surface import component_surface, surface

LEVELS = np.arange(1, 256)
SIZES = np.unique(np.concatenate([[0], np.geomspace(16, 60000, 197).astype(int)]))
SIZES = np.concatenate([SIZES, 60000 + 100 * np.arange(1, 199 - len(SIZES))])  # 198 of them
ROOM = make_room(SHAPE)
maps = cache(pairs)


def one_map(prob, truth):
    "Dice (255,198) of one map where components smaller than each size are dropped."
    there = truth if truth.any() else None
    area, hit = map_counts(prob, there)
    nodes = component_nodes(
        prob, there, room=ROOM, area=area, smallest=16
    )  # no size but 0, which keeps all, is smaller
    curves = Curves(
        ("one",),
        area[None, None],
        hit[None, None],
        np.array([[hit[0]]], np.int64),
        1,
        SHAPE,
        Components(8, 16, np.array([0, len(nodes[0])]), *nodes),
    )
    return component_surface(curves, 0, LEVELS, SIZES)


def cc3d_map(prob, truth):
    "The same by labelling 255 masks; all sizes of a threshold at once, from its components in order of size."
    out, labelled, there = np.empty((255, len(SIZES))), int(truth.sum()), truth.any()
    for t in range(1, 256):
        labels, n = cc3d.connected_components(prob >= t, connectivity=8, return_N=True)
        area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
        hit = np.bincount(labels[truth > 0], minlength=n + 1)[1:] if there else np.zeros(n, int)
        order = np.argsort(-area)
        kept = np.searchsorted(-area[order], -np.maximum(1, SIZES), side="right")
        shown, found = (
            np.concatenate([[0], area[order].cumsum()])[kept],
            np.concatenate([[0], hit[order].cumsum()])[kept],
        )
        out[t - 1] = np.where(shown + labelled == 0, 1, 2 * found / np.maximum(1, shown + labelled))
    return out


def higra_map(prob, truth):
    "The max-tree of a map with the area and the hits of each node: what a table would be made from."
    graph = higra.get_8_adjacency_implicit_graph(prob.shape)
    tree, altitudes = higra.component_tree_max_tree(graph, prob)
    return (
        altitudes[tree.num_leaves() :],
        higra.attribute_area(tree)[tree.num_leaves() :],
        higra.accumulate_sequential(tree, truth.ravel().astype(np.float64), higra.Accumulators.sum)[
            tree.num_leaves() :
        ],
    )


def same_nodes(prob, truth):
    altitude, area, hit = higra_map(prob, truth)
    low, high, mine, both = component_nodes(prob, truth)
    keep = altitude > 0
    assert sorted(zip(altitude[keep].tolist(), area[keep].tolist(), hit[keep].tolist())) == sorted(
        zip(high.tolist(), mine.tolist(), both.tolist())
    )


def every(f, maps):
    return lambda: [f(*pair) for pair in maps]


def equal(f, g, maps):
    def check():
        for pair in maps:
            np.testing.assert_allclose(f(*pair), g(*pair), atol=1e-12)

    return check


def same_holes(maps):
    def check():
        for prob, _ in maps:
            filled = fill_levels(prob)
            for t in (1, 13, 60, 128, 200, 250):
                assert np.array_equal(filled >= t, ndimage.binary_fill_holes(prob >= t))

    return check


def same_counts(maps):
    def check():
        for prob, truth in maps:
            area, hit = map_counts(prob, truth if truth.any() else None)
            for t in LEVELS[::7]:
                assert (area[t], hit[t]) == ((prob >= t).sum(), truth[prob >= t].sum())

    return check


@cache
def full_size(n=12568, distinct=300):
    "Curves of n images with components of 16 pixels and more, counted on `distinct` images and repeated."
    flat = maps("sharp", 4 * distinct, 5)
    counter = CurveCounter([str(i) for i in range(distinct)], 4, SHAPE, 13, connectivity=8, smallest=16)
    for i in range(distinct):
        levels, masks = (np.stack(x) for x in zip(*flat[4 * i : 4 * i + 4]))
        counter.add(str(i), levels, masks)
    return counter.finish().take(np.arange(n) % distinct)


def surfaces():
    return [surface(rows_of(full_size(), c), LEVELS[12:], SIZES) for c in range(4)]


def component_surfaces():
    return [component_surface(full_size(), c, LEVELS[12:], np.maximum(16, SIZES)) for c in range(4)]


def one_pass():
    return [x.sum() for c in range(4) for x in full_size().counts(c)]


def node_pass():
    return [getattr(full_size().components, name).sum() for name in ("low", "high", "area", "hit")]


def same_surface():
    curves = full_size()
    for t, k in ((0, 0), (100, 60), (240, 150)):
        for table, rule in (
            (surfaces(), Rule(int(LEVELS[12 + t]), int(SIZES[k]))),
            (component_surfaces(), Rule(int(LEVELS[12 + t]), min_component=int(max(16, SIZES[k])))),
        ):
            np.testing.assert_allclose([x[t, k] for x in table], dice_at(curves, [rule] * 4).mean(0), atol=1e-10)


def store_ratio():
    "Raw bytes over bytes on disk of a store of sharp maps, which reads back what was written."
    flat = maps("sharp", 160, 7)
    with tempfile.TemporaryDirectory() as folder:
        store = ProbStore.create(Path(folder) / "oof", [str(i) for i in range(40)], 4, SHAPE)
        for i in range(40):
            store.write(str(i), np.stack([prob for prob, _ in flat[4 * i : 4 * i + 4]]))
        for i in range(40):
            levels = np.stack([prob for prob, _ in flat[4 * i : 4 * i + 4]])
            assert np.array_equal(store.read(str(i)), levels * (levels >= 13))
        return np.prod(store.shape) / sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file())


def rows():
    sharp, soft, noisy, noise = maps("sharp", 48, 1), maps("soft", 16, 2), maps("noisy", 16, 3), maps("uniform", 2, 4)
    some, into = sharp[:12], [np.empty(SHAPE, np.uint8) for _ in range(2)]

    def copy(prob, truth):
        np.copyto(into[0], prob), np.copyto(into[1], truth)

    def count(prob, truth):
        return map_counts(prob, truth if truth.any() else None)

    def nodes(prob, truth):
        return component_nodes(prob, truth, room=ROOM)

    pass_over = "one numpy sum over the same bytes"
    return [
        dict(
            what="whole-mask curves, 48 sharp maps in the competition's mix",
            against="np.copyto of prob and truth",
            goal=2,
            more=dict(at_most=True),
            check=same_counts(sharp),
            ours=every(count, sharp),
            peer=every(copy, sharp),
        ),
        dict(
            what="component table, 255 x 198, 12 sharp maps in the mix",
            against="cc3d, 255 masks",
            goal=1000,
            check=equal(one_map, cc3d_map, some),
            ours=every(one_map, some),
            peer=every(cc3d_map, some),
        ),
        dict(
            what="component table, 255 x 198, the largest of 48 sharp maps",
            against="cc3d, 255 masks",
            check=lambda: None,
            ours=every(one_map, [max(sharp, key=lambda p: (p[0] > 0).sum())]),
            peer=every(cc3d_map, [max(sharp, key=lambda p: (p[0] > 0).sum())]),
        ),
        dict(
            what="component table, 255 x 198, 2 maps of uniform noise",
            against="cc3d, 255 masks",
            goal=80,
            check=equal(one_map, cc3d_map, noise[:1]),
            ours=every(one_map, noise),
            peer=every(cc3d_map, noise),
        ),
        dict(
            what="component table, 255 x 198, 2 maps of uniform noise",
            against="higra max-tree with area and hits, no table",
            goal=12,
            check=lambda: same_nodes(*noise[0]),
            ours=every(one_map, noise),
            peer=every(higra_map, noise),
        ),
        dict(
            what="components, 2 maps of uniform noise",
            against="higra max-tree with area and hits",
            check=lambda: same_nodes(*noise[1]),
            ours=every(nodes, noise),
            peer=every(higra_map, noise),
        ),
        dict(
            what="holes at 255 thresholds, 48 sharp maps in the mix",
            against="scipy binary_fill_holes at one threshold",
            goal=1,
            check=same_holes(some),
            ours=lambda: [fill_levels(p, ROOM) for p, _ in sharp],
            peer=lambda: [ndimage.binary_fill_holes(p >= 128) for p, _ in sharp],
        ),
        dict(
            what="holes at 255 thresholds, 16 soft maps",
            against="scipy binary_fill_holes at one threshold",
            check=same_holes(soft[:4]),
            ours=lambda: [fill_levels(p, ROOM) for p, _ in soft],
            peer=lambda: [ndimage.binary_fill_holes(p >= 128) for p, _ in soft],
        ),
        dict(
            what="holes at 255 thresholds, 16 noisy maps",
            against="scipy binary_fill_holes at one threshold",
            check=same_holes(noisy[:4]),
            ours=lambda: [fill_levels(p, ROOM) for p, _ in noisy],
            peer=lambda: [ndimage.binary_fill_holes(p >= 128) for p, _ in noisy],
        ),
        dict(
            what="surface 243 x 198, 4 classes, 12,568 images, whole masks",
            against=pass_over,
            goal_ms=25,
            check=same_surface,
            ours=surfaces,
            peer=one_pass,
        ),
        dict(
            what="surface 243 x 198, 4 classes, 12,568 images, components",
            against=pass_over,
            goal_ms=80,
            check=lambda: None,
            ours=component_surfaces,
            peer=node_pass,
        ),
        dict(what="store of 160 sharp maps, bytes on disk", against="raw bytes", goal=60, size=store_ratio),
    ]
