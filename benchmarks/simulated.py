"""A run of competition size that nobody trained: 12,568 strips of 256 x 1600 with their predictions, counts and folds.

    python benchmarks/simulated.py [FOLDER]     # made once, a few minutes, 1.2 GB; then used again

Some 200 strips are drawn, and each is there many times under another name, so nothing about its score means anything.
What a widget has to carry is of the right size: images, masks, a store, counts with components and filled holes.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from maps import prob_map

from steel_seg.curves import CurveCounter, write_curves
from steel_seg.data import read_folder
from steel_seg.files import whole
from steel_seg.folds import write_folds
from steel_seg.store import ProbStore
from steel_seg.synth import make_folder


def simulated_run(
    path="runs/simulated",  # made where it does not exist
    n=12568,
    distinct=200,
    shape=(256, 1600),
    seed=0,
) -> Path:  # a run folder with data/, oof/, folds.csv and curves.npz
    path, rng = Path(path), np.random.default_rng(seed)
    if path.exists():
        return path
    with whole(path) as temp:
        drawn = read_folder(
            make_folder(temp / "drawn", n_train=distinct, n_test=0, shape=shape, seed=seed, progress=True), n_classes=4
        )
        originals, ids = drawn.images.image_id.tolist(), [f"{i:05}.jpg" for i in range(n)]
        (temp / "data" / "train_images").mkdir(parents=True)
        for i, image_id in enumerate(ids):
            os.link(drawn.images.path[i % distinct], temp / "data" / "train_images" / image_id)
        rles = {i: m for i, m in drawn.masks.groupby("image_id")}
        rows = [
            (image_id, c + 1, rle)
            for i, image_id in enumerate(ids)
            if originals[i % distinct] in rles
            for c, rle in zip(*(rles[originals[i % distinct]][k] for k in ("channel", "rle")))
        ]
        pd.DataFrame(rows, columns=["ImageId", "ClassId", "EncodedPixels"]).to_csv(
            temp / "data" / "train.csv", index=False
        )
        write_folds(temp / "folds.csv", pd.DataFrame({"image_id": ids, "fold": np.arange(n) % 5}))
        levels = [np.stack([prob_map(rng, m, "sharp") for m in drawn.mask(i)]) for i in originals]
        store = ProbStore.create(temp / "oof", ids, 4, shape)
        for i, image_id in enumerate(ids):
            store.write(image_id, levels[i % distinct])
        counter = CurveCounter(originals, 4, shape, store.floor, connectivity=8, fill_holes=True)
        for i, prob in zip(originals, levels):
            counter.add(i, prob * (prob >= store.floor), drawn.mask(i))
        curves = counter.finish().take(np.arange(n) % distinct)
        object.__setattr__(curves, "image_ids", tuple(ids))
        object.__setattr__(curves.filled, "image_ids", tuple(ids))
        write_curves(temp / "curves.npz", curves)
    return path


if __name__ == "__main__":
    print(simulated_run(*sys.argv[1:2]))
