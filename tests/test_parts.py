"""What the widgets are made of and what is kept beside a run, without a browser."""

import base64
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from in_step import ROOT
from ipywidgets import HTML, BoundedIntText, Button, Dropdown, SelectionSlider, Text
from made import CASES, HOSTILE, ODD_PIECES, OURS, Tags, make_run, only_our_tags, parts, pixels

import steel_seg.open_run as predicted_module
from steel_seg.data import read_folder
from steel_seg.look.parts import Picker, legend_html, view_box
from steel_seg.look.tune import Tuner
from steel_seg.open_run import open_run
from steel_seg.post import Rule, write_rules
from steel_seg.rle import rle_encode


@pytest.fixture
def run(tmp_path):
    "A run to be changed."
    return make_run(tmp_path / "run", **CASES["strips"])


# --- what it is made of


@pytest.mark.parametrize("name", CASES)
def test_a_picture_stands_in_for_the_widget(runs, name):
    bundle = Tuner(runs[name])._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "application/vnd.jupyter.widget-view+json", "image/jpeg"}
    data = base64.b64decode(bundle["image/jpeg"])
    h, w, _ = pixels(data).shape
    assert 900 < w < 1200 and 150 < h < 1200 and len(data) < 500_000


@pytest.mark.parametrize("name", CASES)
def test_every_control_has_a_label_and_all_images_can_be_seen(runs, name):
    widget = Tuner(runs[name])
    for control in (
        p for p in parts(widget) if isinstance(p, (Dropdown, Text, Button, BoundedIntText, SelectionSlider))
    ):
        assert control.description
    assert any("hit" in p.value or "class 1" in p.value for p in parts(widget) if isinstance(p, HTML))
    for _ in range(len(widget.picker.ids)):
        widget.picker.on.click()
    assert widget.image_id == widget.picker.ids[-1]
    only_our_tags(widget)


def test_text_from_files_never_becomes_a_tag(runs):
    rng = np.random.default_rng(0)
    strings = ["".join(rng.choice(ODD_PIECES, rng.integers(1, 5))) for _ in range(200)]
    picker = Picker(strings)
    picker.ids = tuple(dict.fromkeys(strings))
    for text in strings:
        picker.image_id = text
        only_our_tags(picker)
        picker.text.value = text + "<i>"
        assert "no image" in picker.message.value
        only_our_tags(picker)
        assert Tags(legend_html({text: (1, 2, 3)})).seen <= OURS
    tuner = Tuner(runs["hostile ids"])
    for i in HOSTILE:
        tuner.image_id = i
        only_our_tags(tuner)
        assert tuner.view.strip.caption.startswith(i)  # as text: the page never reads it as HTML
    tuner.image_id = next(i for i in HOSTILE if "$" in i)  # to matplotlib this would be a formula, and a wrong one
    assert len(tuner.picture().data) > 10_000


def test_pictures_fit_the_screen():
    for h, w in [(256, 1600), (200, 200), (64, 400), (1600, 256), (1, 1), (2048, 4096)]:
        for n in (1, 2, 3):
            width, height, stacked = view_box((h, w), n)
            assert width >= 1 and (width if stacked else n * (width + 8)) <= 1150 and height >= 1
            assert (n * height if stacked else height) <= 660
            assert width / height == pytest.approx(w / h, rel=0.05)


# --- what is kept beside a run


def test_curves_are_counted_once(run, monkeypatch):
    counted = []
    monkeypatch.setattr(
        predicted_module,
        "curves_of",
        lambda *a, real=predicted_module.curves_of, **k: counted.append(1) or real(*a, **k),
    )
    first = open_run(run).curves
    again = open_run(run).curves
    assert len(counted) == 1 and (run / "curves.npz").is_file()
    assert all(
        np.array_equal(getattr(first, k), getattr(again, k))
        for k in ("image_ids", "area", "hit", "truth", "floor", "shape")
    )

    later = (run / "curves.npz").stat().st_mtime_ns + 10**9
    os.utime(next((run / "oof").rglob("*.log")), ns=(later, later))  # the store was written to since
    open_run(run)
    assert len(counted) == 2
    os.utime(run / "curves.npz", ns=(later + 1, later + 1))
    open_run(run)
    assert len(counted) == 2
    (run / "curves.npz").write_bytes(b"half of")  # torn
    open_run(run)
    assert len(counted) == 3


def test_new_labels_are_counted_even_with_an_old_date(run):
    before = open_run(run).curves.truth
    path = run / "data" / "train.csv"
    with open(path, encoding="utf-8") as f:
        rows = list(csv.reader(f))
    rows[1][1] = rle_encode(np.ones((64, 400)))
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)
    os.utime(path, ns=(10**18, 10**18))
    after = open_run(run).curves.truth
    assert after[0, 0] == 64 * 400 != before[0, 0] and np.array_equal(after.ravel()[1:], before.ravel()[1:])


def test_a_run_that_cannot_be_written_is_read(run, monkeypatch):
    def refuse(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr(predicted_module, "write_curves", refuse)
    assert len(open_run(run).curves) == 9 and not (run / "curves.npz").exists()


def test_a_run_is_not_shown_on_other_data(run, tmp_path):
    folder = read_folder(run / "data")
    (run / "config.json").write_text(json.dumps({"data": folder.sha256}))
    predicted = open_run(run)
    (run / "config.json").write_text(json.dumps({"data": "0" * 64}))
    with pytest.raises(ValueError, match="trained on other data"):
        Tuner(run)
    other = make_run(tmp_path / "other", **{**CASES["strips"], "n": 5, "seed": 1})
    with pytest.raises(ValueError, match="is not the data of these predictions"):
        open_run(predicted, read_folder(other / "data"))
    (other / "data").rename(other / "elsewhere")
    with pytest.raises(ValueError, match="give the data folder"):
        Tuner(other)
    assert len(Tuner(other, other / "elsewhere").picker.ids) == 5
    write_rules(other / "rule.json", [Rule()] * 3)
    with pytest.raises(ValueError, match="3 rules for 4 classes"):
        Tuner(other, other / "elsewhere")


def test_widgets_load_no_torch():
    code = "import sys, steel_seg.look.tune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        "53_browse.ipynb",
        "57_tune.ipynb",
        "54_explore.ipynb",
        "55_preview.ipynb",
        "56_monitor.ipynb",
        "60_folder.ipynb",
        "61_training.ipynb",
        "62_errors.ipynb",
        "63_rule.ipynb",
    ],
)
def test_notebooks_hold_pictures_and_no_live_view(name):
    cells = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]
    kinds = [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert "image/jpeg" in kinds and not any("widget" in kind for kind in kinds)
