"""The README's pictures, drawn from a run of `steel_seg demo`: python nbs/images/make.py [RUN]. Synthetic strips only."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from steel_seg.predicted import read_run
from steel_seg.data import class_id
from steel_seg.score import dice_at, rows_of
from steel_seg.surface import surface
from steel_seg.post import apply_rules, read_rules
from steel_seg.tune import Tuner
from steel_seg.viz import COMPARE, class_colours, compare, gallery, overlay, plot_history, plot_surface

here = Path(__file__).parent
run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
if not (run / "data").is_dir():
    sys.exit(f"{run}/data is not there: the pictures are drawn from synthetic strips only; run `make demo` first")
predicted = read_run(run)
folder, store, curves = predicted.folder, predicted.store, predicted.curves
rules, _ = read_rules(run / "rule.json")
scores = dice_at(curves, rules)


def save(fig, name):
    fig.savefig(here / name, dpi=90, bbox_inches="tight", facecolor="white", metadata={"Software": None})


def middle(c):
    "The id whose label of class c is of median area."
    t = curves.truth[:, c]
    return curves.image_ids[np.flatnonzero(t)[np.argsort(t[t > 0], kind="stable")[(t > 0).sum() // 2]]]


ids = [middle(c) for c in range(folder.n_classes) if curves.truth[:, c].any()]
save(gallery([overlay(folder.image(i), folder.mask(i)) for i in ids], [""] * len(ids), columns=2, colours=class_colours(folder.n_classes)), "data.png")

save(plot_history(pd.read_csv(run / "history.csv")), "train.png")

pairs = sorted(zip(*np.nonzero(curves.truth)), key=lambda p: scores[p])
pairs = [pairs[int(q * (len(pairs) - 1))] for q in (0.9, 0.6, 0.4, 0.1)]
views = [compare(folder.image(curves.image_ids[i]), folder.mask(curves.image_ids[i])[c], apply_rules(store.read(curves.image_ids[i]), rules)[c]) for i, c in pairs]
save(gallery(views, [f"class {class_id(c)}, Dice {scores[i, c]:.2f}" for i, c in pairs], columns=2, colours=COMPARE), "predict.png")

c = int(np.argmax((curves.truth > 0).sum(0)))
threshes, areas = np.arange(max(1, store.floor), 256, 2), np.unique(np.geomspace(1, np.prod(curves.shape), 60).astype(int))
save(plot_surface(surface(rows_of(curves, c, rules[c]), threshes, areas), threshes, areas, point=(rules[c].thresh, rules[c].min_area)).figure, "decide.png")

tuner = Tuner(predicted, rules=rules)
tuner.channel = c
tuner.image_id = curves.image_ids[pairs[1][0]]
(here / "tune.jpg").write_bytes(tuner.picture().data)
