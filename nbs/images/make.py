"""The README's pictures, drawn from a run of `steel_seg demo`: python nbs/images/make.py [RUN]. Synthetic strips only.

The widgets are pictured in JupyterLab by a headless Chromium; where there is none their pictures stay as they are.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from steel_seg.data import class_id
from steel_seg.open_run import open_run
from steel_seg.post import apply_rules, read_rules
from steel_seg.score import dice_at, rows_of
from steel_seg.surface import surface
from steel_seg.viz import COMPARE, class_colours, compare, gallery, overlay, plot_history, plot_surface

here = Path(__file__).parent
run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
if not (run / "data").is_dir():
    sys.exit(f"{run}/data is not there: the pictures are drawn from synthetic strips only; run `make demo` first")
opened = open_run(run)
folder, store, curves = opened.folder, opened.store, opened.curves
rules, _ = read_rules(run / "rule.json")
scores = dice_at(curves, rules)


def save(fig, name):
    fig.savefig(here / name, dpi=90, bbox_inches="tight", facecolor="white", metadata={"Software": None})


def middle(c):
    "The id whose label of class c is of median area."
    t = curves.truth[:, c]
    return curves.image_ids[np.flatnonzero(t)[np.argsort(t[t > 0], kind="stable")[(t > 0).sum() // 2]]]


ids = [middle(c) for c in range(folder.n_classes) if curves.truth[:, c].any()]
save(
    gallery(
        [overlay(folder.image(i), folder.mask(i)) for i in ids],
        [""] * len(ids),
        columns=2,
        colours=class_colours(folder.n_classes),
    ),
    "data.png",
)

save(plot_history(pd.read_csv(run / "history.csv")), "train.png")

pairs = sorted(zip(*np.nonzero(curves.truth)), key=lambda p: scores[p])
pairs = [pairs[int(q * (len(pairs) - 1))] for q in (0.9, 0.6, 0.4, 0.1)]
views = [
    compare(
        folder.image(curves.image_ids[i]),
        folder.mask(curves.image_ids[i])[c],
        apply_rules(store.read(curves.image_ids[i]), rules)[c],
    )
    for i, c in pairs
]
save(
    gallery(views, [f"class {class_id(c)}, Dice {scores[i, c]:.2f}" for i, c in pairs], columns=2, colours=COMPARE),
    "predict.png",
)

c = int(np.argmax((curves.truth > 0).sum(0)))
threshes, areas = (
    np.arange(max(1, store.floor), 256, 2),
    np.unique(np.geomspace(1, np.prod(curves.shape), 60).astype(int)),
)
save(
    plot_surface(
        surface(rows_of(curves, c, rules[c]), threshes, areas),
        threshes,
        areas,
        point=(rules[c].thresh, rules[c].min_area),
    ).figure,
    "decide.png",
)

# The widgets as they look in JupyterLab. Tests drive the same browser.
sys.path.insert(0, str(here.parents[1] / "tests"))
from live import FrontEnd, NoBrowser, Server, open_browser  # noqa: E402

SHOTS = {
    "tuner": [
        "from steel_seg.look.tune import Tuner\ntuner = Tuner('runs/demo')\ntuner.channel = "
        f"{c}\ntuner.move('thresh', 60)\ntuner.move('min_area', 300)\ntuner.image_id = "
        f"{curves.image_ids[pairs[1][0]]!r}\ntuner.settle()\ntuner"
    ],
    "browser": [
        "from steel_seg.look.browse import Browser\nbrowser = Browser('runs/demo')\nbrowser.sort, browser.rising "
        "= 'loss', False\nbrowser"
    ],
}
with tempfile.TemporaryDirectory() as temp:
    for name in ("root", "state", "browser"):
        Path(temp, name).mkdir()
    Path(temp, "root", "runs").mkdir()
    Path(temp, "root", "runs", "demo").symlink_to(
        run.resolve()
    )  # a picture should not show where this machine keeps it
    try:
        with open_browser(Path(temp, "browser")) as context:
            server = Server("lab", Path(temp, "root"), Path(temp, "state"))
            try:
                for name, cells in SHOTS.items():
                    nb = FrontEnd("lab", server, context).open(cells)
                    nb.page.set_viewport_size({"width": 1180, "height": 1300})
                    nb.page.wait_for_timeout(4000)  # what waits for the hand to rest
                    nb.page.locator(".jp-OutputArea-output .jupyter-widgets").first.screenshot(
                        path=str(here / f"{name}.jpg"), type="jpeg", quality=85
                    )
                    nb.close()
            finally:
                server.close()
    except NoBrowser as e:
        sys.exit(f"{e}: the widgets' pictures are as they were")
