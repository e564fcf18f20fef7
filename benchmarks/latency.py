"""How soon a widget answers a key in JupyterLab, against a bare slider of ipywidgets that only echoes its value through
the kernel.

    python benchmarks/latency.py [--images 12568] [--run FOLDER]     # the tuner on a simulated run

Both stand in one notebook of one browser and take turns. A key press is a real one; its clock starts at the page's own
keydown and stops when
the text has changed and, where there is a picture, when the new one is unpacked. A drag is a hundred key presses with 5
ms between them.
"""

import argparse
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from live import FrontEnd, Server, open_browser  # noqa: E402

ECHO = """
from ipywidgets import HTML, SelectionSlider, VBox
echo, said = SelectionSlider(options=[(f"{t} ({t/255:.2f})", t) for t in range(13, 256)], value=128,
  description="Echo"), HTML()
said.add_class("echo-said")
echo.observe(lambda change: setattr(said, "value", f"<b>{change.new}</b>"), "value")
VBox([echo, said])"""
TUNER = """
from steel_seg.look.tune import Tuner
t = Tuner({run!r}, {folder!r})
t"""


@contextmanager
def notebook(cells, timeout=300):
    "A notebook with these cells in JupyterLab in a browser, all run."
    with tempfile.TemporaryDirectory() as temp:
        for name in ("root", "state", "browser"):
            Path(temp, name).mkdir()
        server = Server("lab", Path(temp, "root"), Path(temp, "state"))
        try:
            with open_browser(Path(temp, "browser")) as context:
                front = FrontEnd("lab", server, context)
                yield front.open(cells, timeout=timeout)
                front.close()
        finally:
            server.close()


def turns(nb, slider, text, image=None, n=10, key="ArrowRight"):
    """n key presses on a slider (label): ms until the text, ms until text and picture had changed, and whether the
    picture did; for those that changed the text."""
    found = []
    nb.slider(slider).focus()
    for _ in range(n):
        ms = nb.latency(key, text, image)
        if ms["text"] is not None:
            found.append((ms["text"], max(ms["text"], ms["image"] or 0), ms["image"] is not None))
    return found


def measure_latency(
    nb,  # an opened notebook that holds the cell ECHO
    slider: str,  # label of the slider that is measured
    text: str,  # selector of the text that follows it
    image: str | None = None,  # selector of the picture that follows it
    n: int = 60,  # key presses of each
    moves: int = 100,  # of a drag
    # ms: median and 95th percentile of `echo` and `ours`, `settle` after a drag, their ratios; how many presses changed
    # text and picture
) -> dict:
    """Key press to changed text and picture, echo and widget in turn, ten presses each, then five drags of each, by
    their medians."""
    echo, ours = [], []
    turns(nb, "Echo", ".echo-said", n=5), turns(nb, slider, text, image, n=5)  # warm
    for start in range(0, n, 10):  # there and back
        some, key = min(10, n - start), "ArrowLeft" if start // 10 % 2 else "ArrowRight"
        echo += turns(nb, "Echo", ".echo-said", n=some, key=key)
        ours += turns(nb, slider, text, image, n=some, key=key)
    if not ours or not echo:
        raise RuntimeError(f"no key press changed {text if echo else '.echo-said'}")
    keys = (["ArrowRight"] * (moves // 4) + ["ArrowLeft"] * (moves // 4)) * 2
    plain, drag = [], []
    for _ in range(5):  # where in its round trip the last key finds the one before it is chance
        nb.slider("Echo").focus()
        plain.append(nb.drag(keys + ["ArrowRight"] * 2, ".echo-said"))
        nb.slider(slider).focus()
        drag.append(nb.drag(keys + ["ArrowRight"] * 2, text, image))
    plain, drag = ({k: float(np.median([d[k] for d in each])) for k in each[0]} for each in (plain, drag))
    e, t, o = (np.array(x) for x in ([x[0] for x in echo], [x[0] for x in ours], [x[1] for x in ours]))

    def p95(x):
        return float(np.percentile(x, 95))

    def median(x):
        return float(np.median(x))

    return dict(
        echo=median(e),
        echo_p95=p95(e),
        text=median(t),
        ours=median(o),
        ours_p95=p95(o),
        median_ratio=median(o) / median(e),
        p95_ratio=p95(o) / p95(e),
        settle=drag["settle"],
        echo_settle=plain["settle"],
        settle_ratio=drag["settle"] / median(e),
        drag_changes=drag["changes"],
        presses=n,
        changed=len(ours),
        pictures=sum(x[2] for x in ours),
    )


@cache
def tuner(run=None, folder=None):
    "The tuner on a run of competition size: its threshold, which moves whole masks, and its smallest component."
    from simulated import simulated_run

    run = Path(run or simulated_run()).resolve()
    where = ".steel-tuner .steel-scores tr:nth-child(2)", ".steel-tuner .steel-frame img[alt='difference']"
    with notebook(
        [
            "import os; os.environ['OMP_NUM_THREADS'] = '1'",
            ECHO,
            TUNER.format(run=str(run), folder=folder and str(folder)),
        ]
    ) as nb:
        nb.page.locator(where[1]).wait_for(state="attached")
        found = {"whole masks": measure_latency(nb, "Threshold", *where)}
        nb.run(
            "from dataclasses import replace\nt.rules = tuple(replace(rule, min_component=400) for rule in t.rules)"
        )  # where a step changes something
        nb.page.wait_for_timeout(3000)
        return {**found, "components": measure_latency(nb, "Min component", *where)}


def rows():
    "For benchmarks/bench.py: each a ratio to the echo, measured in one browser."
    for rule in ("whole masks", "components"):
        for key, what, goal in [
            ("median_ratio", "median", 1.5),
            ("p95_ratio", "95th percentile", 2),
            ("settle_ratio", "at rest after 100 quick moves", 2),
        ]:
            ours, peer = {
                "median_ratio": ("ours", "echo"),
                "p95_ratio": ("ours_p95", "echo_p95"),
                "settle_ratio": ("settle", "echo"),
            }[key]
            yield dict(
                what=f"tuner, 12,568 images, {rule}: {what}",
                against="ipywidgets, a slider that echoes its value",
                goal=goal,
                at_most=True,
                found=lambda rule=rule, ours=ours, peer=peer: (tuner()[rule][ours], tuner()[rule][peer]),
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder; without it one of 12,568 images is simulated")
    parser.add_argument("--data", type=Path, help="its data folder, where it is not data/ in the run")
    args = parser.parse_args()
    for rule, found in tuner(args.run, args.data).items():
        print(f"{rule}:\n" + "\n".join(f"  {k:13} {v:9.2f}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
