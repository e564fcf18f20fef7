"""`make bench-full`: the whole of a competition-sized run, 12,568 images of 4 x 256 x 1600, from a store on disk to a
decision.

The maps repeat a few hundred drawn ones. Prints the time of each step and the peak of memory.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from maps import SHAPE, pairs

from steel_seg.curves import curves_of, read_curves, write_curves
from steel_seg.decide import decide
from steel_seg.store import ProbStore


class Steps:
    "Prints what each step took."

    def __init__(self):
        self.start = self.first = time.perf_counter()

    def done(self, what):
        now, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{now - self.start:8.1f} s   peak of memory so far {peak:5.2f} GB   {what}", flush=True)
        self.start = time.perf_counter()


def repeated(n, distinct, kind):
    "Levels and masks by image id, and what stands for a data folder."
    flat = pairs(kind, 4 * distinct, 11)
    levels, masks = (np.stack(x).reshape(distinct, 4, *SHAPE) for x in zip(*flat))
    ids = [f"{i:05}.jpg" for i in range(n)]
    truth = masks.sum((2, 3), dtype=np.int64)[np.arange(n) % distinct]
    folder = SimpleNamespace(
        root="repeated maps",
        n_classes=4,
        shape=SHAPE,
        sha256="repeated",
        images=pd.DataFrame({"image_id": ids}),
        truth_area=lambda: truth,
        mask=lambda i: masks[int(i[:5]) % distinct],
        shape_of=lambda _: SHAPE,
        shapes_of=lambda _: SHAPE,
    )
    return levels, folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12568)
    parser.add_argument("--distinct", type=int, default=100)
    parser.add_argument("--kind", default="sharp", choices=("sharp", "soft", "noisy"))
    parser.add_argument("--smallest", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the store and the curves, used again if it is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder_of, steps = args.keep or Path(temp), Steps()
        levels, folder = repeated(args.images, args.distinct, args.kind)
        steps.done(f"{args.distinct} images drawn, on {os.cpu_count()} cores")
        path = folder_of / "oof"
        store = ProbStore.open(path, "a") if path.exists() else ProbStore.create(path, folder.images.image_id, 4, SHAPE)
        for i in store.missing():
            store.write(i, levels[int(i[:5]) % args.distinct])
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        steps.done(f"written to a store: {np.prod(store.shape) / 2**30:.1f} GiB as {size / 2**20:.0f} MiB")
        del levels
        curves_of(store, folder)
        steps.done("whole-mask curves")
        curves = curves_of(store, folder, connectivity=8, smallest=args.smallest)
        steps.done(f"curves with components from {args.smallest} px: {len(curves.components.low):,}")
        del curves
        curves = curves_of(
            store, folder, connectivity=8, smallest=args.smallest, fill_holes=True, parts=folder_of / "parts"
        )
        steps.done(
            "curves with components and filled holes, kept in parts: "
            f"{len(curves.components.low) + len(curves.filled.components.low):,} components"
        )
        file = write_curves(folder_of / "curves.npz", curves)
        steps.done(f"written to a file of {file.stat().st_size / 2**20:.0f} MiB")
        del curves
        curves = read_curves(file)
        steps.done("read from it")
        print(decide(curves, np.arange(args.images) % 5, np.random.default_rng(0)))
        steps.done("decision, 5 folds nested")


if __name__ == "__main__":
    main()
