"""Rows of bench.py for blends: the mean of three runs, and stores read and averaged, against numpy and zarr."""

import tempfile
from pathlib import Path

import numpy as np
import zarr
from maps import SHAPE, pairs

from steel_seg.blend import mean_levels
from steel_seg.store import ProbStore

RUNS, IMAGES = 3, 12


def made_stores(top):
    "Stores of three runs: sharp maps of the same images."
    stores = []
    for run in range(RUNS):
        maps = np.stack([prob for prob, _ in pairs("sharp", 4 * IMAGES, seed=run)]).reshape(IMAGES, 4, *SHAPE)
        store = ProbStore.create(top / str(run), [str(i) for i in range(IMAGES)], 4, SHAPE)
        for image_id, levels in zip(store.image_ids, maps):
            store.write(image_id, levels)
        stores.append(store)
    return stores


def rows():
    folder = tempfile.TemporaryDirectory()
    stores = made_stores(Path(folder.name))
    levels = [[store.read(image_id) for store in stores] for image_id in stores[0].image_ids]
    shares = (1,) * RUNS

    def ours_from_stores(_keep=folder):
        return [mean_levels([store.read(i) for store in stores], shares) for i in stores[0].image_ids]

    def zarr_and_numpy():
        arrays = [zarr.open_array(store.path / "probs", mode="r") for store in stores]
        return [np.rint(np.mean([a[i] for a in arrays], axis=0)).astype(np.uint8) for i in range(IMAGES)]

    def ours():
        return [mean_levels(of_image, shares) for of_image in levels]

    def plain_mean():
        return [np.rint(np.mean(of_image, axis=0)).astype(np.uint8) for of_image in levels]

    def same(x, y):
        assert all(np.array_equal(a, b) for a, b in zip(x(), y(), strict=True))

    def row(where, against, ours, peer):
        what = f"mean of {RUNS} runs, {IMAGES} images of 4 classes, {where}"
        return dict(what=what, against=against, check=lambda: same(ours, peer), ours=ours, peer=peer)

    return [
        row("in memory", "numpy mean and rint", ours, plain_mean),
        row("from stores", "zarr and numpy mean", ours_from_stores, zarr_and_numpy),
    ]
