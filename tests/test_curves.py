"""Counts of a store, plain, by components, with holes filled: against drawn masks, in any order, stopped, resumed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from steel_seg.curves import Components, CurveCounter, Curves, curves_of, map_counts, read_curves, write_curves
from steel_seg.store import ProbStore

SHAPE = 24, 40
OPTIONS = [
    dict(),
    dict(connectivity=4),
    dict(connectivity=8, smallest=5),
    dict(fill_holes=True),
    dict(connectivity=8, fill_holes=True),
]


def images(rng, n=9, c=3, shape=SHAPE):
    "Levels and masks (n,c,*shape): empty, smooth, rough and full maps, with and without truth."
    levels = np.stack(
        [
            [
                rng.choice([0, 1, 1, 1])
                * np.clip(
                    ndimage.gaussian_filter(rng.normal(size=shape), rng.choice([0, 1, 3])) * rng.choice([40, 400])
                    + rng.choice([-60, 60]),
                    0,
                    255,
                )
                for _ in range(c)
            ]
            for _ in range(n)
        ]
    ).astype(np.uint8)
    masks = ((levels + rng.normal(0, 60, levels.shape) > 120) & (rng.random((n, c, 1, 1)) < 0.6)).astype(np.uint8)
    masks[0] = 0
    return levels, masks


def counted(levels, masks, floor=1, order=None, **options):
    ids = [f"{i}.jpg" for i in range(len(levels))]
    counter = CurveCounter(ids, levels.shape[1], levels.shape[2:], floor, **options)
    for i in range(len(ids)) if order is None else order:
        counter.add(ids[i], levels[i], masks[i] if masks[i].any() else None)
    return counter.finish()


def same(a, b):
    for name in ("image_ids", "floor", "shape"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("area", "hit", "truth"):
        assert np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
    assert (a.components is None) == (b.components is None) and (a.filled is None) == (b.filled is None)
    if a.components:
        assert (a.components.connectivity, a.components.smallest) == (b.components.connectivity, b.components.smallest)
        for name in ("start", "low", "high", "area", "hit"):
            assert np.array_equal(getattr(a.components, name), getattr(b.components, name)), name
    if a.filled:
        same(a.filled, b.filled)


def folder_for(store, masks):
    truth = masks.sum((2, 3), dtype=np.int64)
    return SimpleNamespace(
        root="here",
        n_classes=masks.shape[1],
        shape_of=lambda i: masks.shape[2:],
        shapes_of=lambda image_ids: masks.shape[2:],
        sha256="abc",
        images=pd.DataFrame({"image_id": store.image_ids}),
        truth_area=lambda: truth,
        mask=lambda i: masks[store.image_ids.index(i)],
    )


def stored(path, levels, floor=13):
    store = ProbStore.create(path, [f"{i}.jpg" for i in range(len(levels))], levels.shape[1], levels.shape[2:], floor)
    for i, level in zip(store.image_ids, levels):
        store.write(i, level)
    return store


@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (1, 70), (70, 1), (8, 8)])
@pytest.mark.parametrize("floor", [1, 13])
def test_every_count_is_that_of_a_drawn_mask(shape, floor):
    rng = np.random.default_rng(sum(shape) + floor)
    levels, masks = images(rng, 6, 2, shape)
    eight, four = (counted(levels, masks, floor, connectivity=k, fill_holes=True) for k in (8, 4))
    kept = levels * (levels >= floor)
    assert np.array_equal(eight.truth, masks.sum((2, 3)))
    for t in (floor, 14, 60, 120, 254, 255):
        for fill in (False, True):
            for curves, structure in ((eight, np.ones((3, 3))), (four, None)):
                for k in (0, 1, 2, 7, 40):
                    for c in range(2):
                        area, hit = curves.counts(c, fill, k, curves.components.connectivity)
                        for i in range(6):
                            mask = kept[i, c] >= t
                            if fill:
                                mask = ndimage.binary_fill_holes(mask)
                            labels, n = ndimage.label(mask, structure)
                            mask = mask & (np.bincount(labels.ravel(), minlength=n + 1) >= k)[labels]
                            assert (area[i, t], hit[i, t]) == (mask.sum(), (mask & (masks[i, c] > 0)).sum())


@pytest.mark.parametrize("options", OPTIONS)
def test_order_threads_and_parts_change_nothing(options, tmp_path):
    levels, masks = images(np.random.default_rng(1))
    want = counted(levels, masks, 13, **options)
    same(counted(levels, masks, 13, order=np.random.default_rng(2).permutation(9), **options), want)
    same(counted(levels, masks, 13, block=2, parts=tmp_path / "parts", **options), want)
    same(counted(levels[:0:-1], masks[:0:-1], 13, **options), replace_ids(want.take(np.arange(8, 0, -1))))
    store = stored(tmp_path / "oof", levels)
    for workers in (1, 4):
        same(curves_of(store, folder_for(store, masks), workers=workers, **options), want)
    same(read_curves(write_curves(tmp_path / "curves.npz", want)), want)


def replace_ids(curves):
    ids = tuple(f"{i}.jpg" for i in range(len(curves)))
    return replace(curves, image_ids=ids, filled=curves.filled and replace(curves.filled, image_ids=ids))


def test_take_agrees_with_counting_those_images():
    levels, masks = images(np.random.default_rng(3))
    curves = counted(levels, masks, connectivity=8, fill_holes=True)
    for rows in ([4], [7, 0, 3], np.arange(9) % 2 == 0, [5, 5, 1]):
        taken, at = curves.take(rows), np.arange(9)[rows]
        for c in range(3):
            for fill in (False, True):
                for of_taken, of_all in zip(taken.counts(c, fill, 6), curves.counts(c, fill, 6)):
                    assert np.array_equal(of_taken, of_all[at])


def test_parts_of_two_counters_are_joined_once_each(tmp_path):
    levels, masks = images(np.random.default_rng(4))
    ids = [f"{i}.jpg" for i in range(9)]

    def new():
        return CurveCounter(
            ids, 3, SHAPE, 13, connectivity=8, fill_holes=True, parts=tmp_path, block=2, made_of={"net": 1}
        )

    a, b = new(), new()  # as two processes would; both count images 2 and 3
    for i in (0, 1, 2, 3):
        a.add(ids[i], levels[i], masks[i])
    for i in (2, 3, 4, 5):
        b.add(ids[i], levels[i], masks[i])
    last = new()
    assert last.missing() == ids[6:]
    for i in (8, 6, 7):
        last.add(ids[i], levels[i], masks[i])
    same(last.finish(), counted(levels, masks, 13, connectivity=8, fill_holes=True))
    for other in (
        dict(made_of={"net": 2}),
        dict(smallest=3),
        dict(connectivity=4),
        dict(fill_holes=False),
        dict(floor=14),
    ):
        with pytest.raises(ValueError, match="remove it to count again"):
            CurveCounter(
                ids,
                3,
                SHAPE,
                **(dict(floor=13, connectivity=8, fill_holes=True, parts=tmp_path, made_of={"net": 1}) | other),
            )


@pytest.mark.kill
def test_a_killed_count_goes_on(tmp_path):
    "Killed at any moment, a count loses no part that it wrote, and gives the same in the end."
    rng = np.random.default_rng(5)
    levels, masks = images(rng, 60, 2, (64, 128))
    np.savez(tmp_path / "maps.npz", levels=levels, masks=masks)
    code = """if True:
        import sys, time, numpy as np
        from steel_seg.curves import CurveCounter
        maps = np.load(sys.argv[1] + "/maps.npz")
        levels, masks = maps["levels"], maps["masks"]
        options = dict(floor=13, connectivity=8, fill_holes=True)
        ids, parts = [str(i) for i in range(60)], sys.argv[1] + "/parts"
        counter = CurveCounter(ids, 2, levels.shape[2:], **options, parts=parts, block=3)
        warm = CurveCounter(["x"], 2, levels.shape[2:], **options)
        warm.add("x", levels[0], masks[0])  # compiled code is loaded
        print("begins", flush=True)
        for i in counter.missing(): counter.add(i, levels[int(i)], masks[int(i)]); time.sleep(.005)
        """
    kept = 0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counter = CurveCounter(
            [str(i) for i in range(60)],
            2,
            (64, 128),
            13,
            connectivity=8,
            fill_holes=True,
            parts=tmp_path / "parts",
            block=3,
        )
        n_kept = 60 - len(counter.missing())
        assert n_kept >= kept and n_kept % 3 == 0
        kept = n_kept
    assert kept > 0
    for i in counter.missing():
        counter.add(i, levels[int(i)], masks[int(i)])
    resumed, want = counter.finish(), counted(levels, masks, 13, connectivity=8, fill_holes=True)
    same(replace(resumed, image_ids=want.image_ids, filled=replace(resumed.filled, image_ids=want.image_ids)), want)


def test_what_does_not_fit_is_refused(tmp_path):
    levels, masks = images(np.random.default_rng(6))
    counter = CurveCounter(["a", "b"], 3, SHAPE)
    counter.add("a", levels[0], None)
    for bad, says in (
        (("a", levels[0], None), "counted already"),
        (("c", levels[0], None), "not one of the images"),
        (("b", levels[0, :2], None), "levels must be uint8"),
        (("b", levels[0] / 255, None), "levels must be uint8"),
        (("b", levels[0], masks[0, :2]), "masks must be"),
    ):
        with pytest.raises(ValueError, match=says):
            counter.add(*bad)
    with pytest.raises(ValueError, match="1 of 2 images are not counted, 'b'"):
        counter.finish()
    for bad, says in ((dict(connectivity=6), "None, 4 or 8"), (dict(image_ids=[]), "no images")):
        with pytest.raises(ValueError, match=says):
            CurveCounter(**(dict(image_ids=["a"], n_classes=1, shape=SHAPE) | bad))


def test_what_was_not_counted_is_said():
    levels, masks = images(np.random.default_rng(7))
    plain, full = counted(levels, masks), counted(levels, masks, connectivity=8, smallest=5, fill_holes=True)
    for ask, says in (
        (dict(fill_holes=True), "count them with fill_holes=True"),
        (dict(min_component=9), "count them with connectivity=8"),
    ):
        with pytest.raises(ValueError, match=says):
            plain.counts(0, **ask)
    for ask, says in (
        (dict(min_component=9, connectivity=4), "8-connected components"),
        (dict(min_component=4), "at least 5 pixels, 4 is asked for"),
        (dict(min_component=4, fill_holes=True), "smallest=4"),
    ):
        with pytest.raises(ValueError, match=says):
            full.counts(0, **ask)
    assert np.array_equal(full.counts(0, min_component=1)[0], full.area[:, 0])  # all components: the whole mask


def test_a_damaged_file_is_never_read_as_something_else(tmp_path):
    levels, masks = images(np.random.default_rng(8))
    curves, rng = counted(levels, masks, 13, connectivity=8, fill_holes=True), np.random.default_rng(9)
    path = write_curves(tmp_path / "curves.npz", curves)
    data, refused = path.read_bytes(), 0
    for k in range(200):
        torn = bytearray(data)
        if k % 4 == 0:
            torn = torn[: rng.integers(len(torn))]
        else:
            torn[rng.integers(len(torn))] ^= 1 << rng.integers(8)
        path.write_bytes(torn)
        try:
            back = read_curves(path)
        except ValueError as e:
            assert "curves.npz: no curves to be read there" in str(e)
            refused += 1
        else:
            same(back, curves)  # a bit that means nothing: a date, say
    assert refused > 120


@pytest.mark.parametrize(
    "wrong",
    [
        dict(start=np.array([0, 3, 99])),
        dict(start=np.array([0, 2, 1])),
        dict(low=np.uint8([9, 1, 1])),
        dict(area=np.int32([9999, 2, 1])),
        dict(hit=np.int32([9, 0, 0])),
        dict(high=np.uint8([5])),
        dict(area=np.array([3, 2, 1])),
    ],
)
def test_components_that_cannot_be_are_refused(wrong, tmp_path):
    nodes = dict(
        start=np.array([0, 2, 3]),
        low=np.uint8([1, 3, 1]),
        high=np.uint8([2, 7, 9]),
        area=np.int32([3, 2, 1]),
        hit=np.int32([0, 0, 0]),
    )
    area = np.zeros((1, 2, 256), np.int32)

    def make(nodes):
        return Curves(("a",), area, area, np.zeros((1, 2), np.int64), 1, (4, 5), Components(8, 1, **nodes))

    read_curves(write_curves(tmp_path / "good.npz", make(nodes)))
    with pytest.raises(ValueError, match="bad.npz: no curves to be read there"):
        read_curves(write_curves(tmp_path / "bad.npz", make(nodes | wrong)))


def test_a_store_that_changed_is_counted_anew(tmp_path):
    levels, masks = images(np.random.default_rng(10))
    store = stored(tmp_path / "a", levels)
    same(
        curves_of(store, folder_for(store, masks), parts=tmp_path / "parts"),
        curves_of(store, folder_for(store, masks), parts=tmp_path / "parts"),
    )
    other = stored(tmp_path / "b", levels[::-1])
    assert store.fingerprint() == ProbStore.open(tmp_path / "a").fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="remove it to count again"):
        curves_of(other, folder_for(other, masks), parts=tmp_path / "parts")


def test_a_count_is_numpys():
    rng = np.random.default_rng(11)
    for shape in ((64, 64), (5, 13), (1, 1), (7, 64), (0, 4)):
        for prob in (rng.integers(0, 256, shape), np.where(rng.random(shape) < 0.02, rng.integers(0, 256, shape), 0)):
            prob, truth = prob.astype(np.uint8), rng.random(shape) < 0.3
            for view, label in (
                (prob, truth),
                (prob[:, ::-1], truth.astype(float)),
                (prob.T, 7 * truth.T.astype(np.uint8)),
                (prob[1:, 1:], truth[1:, 1:]),
                (prob, None),
            ):
                area, hit = map_counts(view, label)
                for t in (0, 1, 2, 13, 128, 254, 255):
                    assert area[t] == (view >= t).sum() and hit[t] == (
                        0 if label is None else (label[view >= t] != 0).sum()
                    )
    for bad in (prob.astype(int), prob / 255):
        with pytest.raises(ValueError, match="uint8"):
            map_counts(bad, None)
    with pytest.raises(ValueError, match="differ in shape"):
        map_counts(prob, np.zeros((3, 4)))
