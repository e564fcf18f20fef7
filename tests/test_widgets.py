"""The widgets without a browser: what they show is checked against masks made here, one pixel at a time where it matters."""
import base64
import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from in_step import ROOT
from ipywidgets import HTML, BoundedIntText, Button, Dropdown, SelectionSlider, Text

import steel_seg.predicted as predicted_module
from steel_seg.predicted import read_run
from steel_seg.view import Picker, legend_html, view_box
from steel_seg.browse import Browser
from steel_seg.data import read_folder
from steel_seg.post import Rule, apply_rule, read_rules, write_rules
from steel_seg.rle import rle_encode
from steel_seg.store import ProbStore
from steel_seg.tune import Tuner, area_steps, scores_html

HOSTILE = ["<img src=x onerror=alert(1)>.png", "a&b<script>alert(2)<.png", "$^$x_{.png", "\"><b>b<!--.png", "'x' ü 長い.png", "x" * 180 + ".png"]
CASES = {
    "strips": dict(n=9, shape=(64, 400), classes=4),
    "one image": dict(n=1, shape=(64, 400), classes=4),
    "no defect": dict(n=3, shape=(64, 400), classes=4, defects=False),
    "squares": dict(n=6, shape=(200, 200), classes=3),
    "hostile ids": dict(n=6, shape=(64, 400), classes=4, ids=HOSTILE),
}


def make_run(run, n, shape, classes, defects=True, ids=None, seed=0, predicted=None):
    "A run folder with its data: noise for steel, boxes for defects, and for probabilities the boxes blurred, under patches of noise."
    rng, (h, w) = np.random.default_rng(seed), shape
    (run / "data" / "train_images").mkdir(parents=True)
    ids = sorted(ids or [f"{k:04}.png" for k in range(n)])
    rows, levels = [["ImageId_ClassId", "EncodedPixels"]], {}
    for k, image_id in enumerate(ids):
        steel = cv2.GaussianBlur(rng.integers(0, 255, shape, np.uint8), (0, 0), 2)
        (run / "data" / "train_images" / image_id).write_bytes(cv2.imencode(".png", steel)[1].tobytes())
        masks = np.zeros((classes, h, w), np.uint8)
        for c in {k % classes, (2 * k + 1) % classes} if defects and k % 4 != 3 else ():
            y, x = rng.integers(0, h // 2), rng.integers(0, w // 2)
            masks[c, y : y + h // 3, x : x + h // 2] = 1
        rows += [[f"{image_id}_{c + 1}", rle_encode(m)] for c, m in enumerate(masks)]
        noise = np.stack([cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 4) for _ in masks])
        soft = np.stack([cv2.GaussianBlur(m.astype(np.float32), (0, 0), 5) for m in masks])
        levels[image_id] = np.clip(255 * (0.8 * soft + 0.15 * noise / noise.std()), 0, 255).astype(np.uint8)
    with open(run / "data" / "train.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)
    store = ProbStore.create(run / "oof", ids[:predicted], classes, shape)
    for image_id in ids[:predicted]:
        store.write(image_id, levels[image_id])
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {name: make_run(tmp_path_factory.mktemp("run") / "run", **case) for name, case in CASES.items()}


@pytest.fixture
def run(tmp_path):
    "A run to be changed."
    return make_run(tmp_path / "run", **CASES["strips"])


def slow_dice(pred, truth):
    "By hand, from the definition."
    both = int((pred.astype(bool) & truth.astype(bool)).sum())
    total = int(pred.astype(bool).sum()) + int(truth.astype(bool).sum())
    return 1.0 if total == 0 else 2 * both / total


def slow_scores(predicted, rules):
    "(N,C), mask by mask."
    return np.array([[slow_dice(apply_rule(p, r), m) for p, r, m in zip(predicted.store.read(i), rules, predicted.folder.mask(i))] for i in predicted.store.image_ids])


def pixels(data):
    "A packed picture as (H,W,3) RGB."
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def parts(widget):
    "A widget and all that is in it."
    return [widget] + [p for child in getattr(widget, "children", ()) for p in parts(child)]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.update([tag, *(f"{tag} {name}" for name, _ in attrs)])

    def handle_comment(self, data):
        self.seen.add("comment")

    handle_decl = unknown_decl = handle_pi = handle_comment


OURS = {"div", "div style", "span", "span style", "small", "b", "table", "table style", "tr", "td", "td style", "th", "th style"}


def only_our_tags(*widgets):
    for text in [p.value for w in widgets for p in parts(w) if isinstance(p, HTML)]:
        assert Tags(text).seen <= OURS, text


# --- the tuner


@pytest.mark.parametrize("name", CASES)
def test_score_is_that_of_masks_made_one_by_one(runs, name):
    tuner = Tuner(runs[name])
    start = slow_scores(tuner.predicted, tuner.rules)
    truth = np.array([[m.any() for m in tuner.predicted.folder.mask(i)] for i in tuner.predicted.store.image_ids])
    last = len(tuner.rules) - 1
    for channel, thresh, least in [(0, 100, 0), (last, 60, 450), (last, 200, 10), (0, 13, tuner.sliders.min_area.options[-1][1])]:
        tuner.channel = channel
        tuner.sliders.thresh.value = thresh
        if least not in [a for _, a in tuner.sliders.min_area.options]:
            tuner.rule = replace(tuner.rule, min_area=least)
        tuner.sliders.min_area.value = least
        assert tuner.rules[channel] == tuner.rule == Rule(thresh, least)
        now, table = slow_scores(tuner.predicted, tuner.rules), tuner.table
        assert table.score["all"] == pytest.approx(now.mean(), abs=1e-12)
        assert table.change["all"] == pytest.approx(now.mean() - start.mean(), abs=1e-12)
        assert table.score[f"class {channel + 1}"] == pytest.approx(now[:, channel].mean(), abs=1e-12)
        assert table.present["all"] == pytest.approx(now[truth].mean() if truth.any() else np.nan, abs=1e-12, nan_ok=True)
        assert f"{now.mean():.4f}" in tuner.scores.value and f"{now[:, channel].mean():.4f}" in tuner.scores.value


@pytest.mark.parametrize("name", CASES)
def test_painted_pixels_are_those_of_truth_and_prediction(runs, name):
    tuner = Tuner(runs[name])
    for channel in range(len(tuner.rules)):
        tuner.channel = channel
        tuner.picker.go(0)
        for thresh in (40, 200):
            tuner.sliders.thresh.value = thresh
            i, data = tuner.image_id, tuner.predicted
            truth, pred = data.folder.mask(i)[channel] > 0, data.store.read(i)[channel] >= thresh
            shown = pixels(tuner.view.panels.images["hit, missed, false"].value)
            assert np.array_equal(np.ptp(shown, axis=2) > 0, truth | pred)
            assert np.array_equal(pixels(tuner.view.panels.images["image"].value), np.repeat(data.folder.image(i)[..., None], 3, 2))
            assert f"{(truth & pred).sum():,} hit, {(truth & ~pred).sum():,} missed, {(pred & ~truth).sum():,} false" in tuner.view.text.value


def test_a_move_changes_the_picture_and_only_this_class(runs):
    tuner = Tuner(runs["strips"])
    tuner.channel = 1
    tuner.picker.go(10**6)
    elements, image, before = list(tuner.view.panels.images.values()), tuner.image_id, tuner.view.panels.images["hit, missed, false"].value
    tuner.sliders.thresh.value = 60
    assert tuner.view.panels.images["hit, missed, false"].value != before
    assert tuner.rules == (Rule(), Rule(60), Rule(), Rule()) and tuner.image_id == image
    assert list(tuner.view.panels.images.values()) == elements
    tuner.reset.click()
    assert tuner.view.panels.images["hit, missed, false"].value == before and tuner.rules == (Rule(),) * 4
    assert (tuner.sliders.thresh.value, tuner.table.change["all"]) == (128, 0)


def test_a_move_reads_no_file(runs, monkeypatch):
    tuner = Tuner(runs["strips"])
    read = []
    monkeypatch.setattr(ProbStore, "read", lambda self, i: read.append(i))
    monkeypatch.setattr(type(tuner.predicted.folder), "image", lambda self, i: read.append(i))
    for thresh in range(20, 250, 5):
        tuner.sliders.thresh.value = thresh
    assert not read
    tuner.channel = 2
    assert not read


def test_rules_from_code_move_the_sliders(runs):
    tuner = Tuner(runs["strips"])
    tuner.rules = (Rule(77, 743), Rule(200, 64 * 400 + 1, gate=210), Rule(), Rule())
    assert (tuner.sliders.thresh.value, tuner.sliders.min_area.value, tuner.sliders.min_area.label) == (77, 743, "743 px")
    assert tuner.sliders.thresh.label == "77 (.30)"
    tuner.channel = 1
    assert (tuner.sliders.thresh.value, tuner.sliders.min_area.label) == (200, "never")
    tuner.sliders.thresh.value = 190  # what has no slider stays
    assert tuner.rule == Rule(190, 64 * 400 + 1, gate=210)
    tuner.channel = 0
    assert tuner.rule == Rule(77, 743) and tuner.menu.value == 0
    tuner.menu.value = 3
    assert tuner.channel == 3 and tuner.rule == Rule()


def test_rules_that_counts_cannot_score_are_scored_by_masks(runs):
    tuner = Tuner(runs["strips"], rules=[Rule(100, fill_holes=True), Rule(90, min_component=40), Rule(), Rule()])
    tuner.sliders.thresh.value = 80
    assert tuner.table.score["all"] == pytest.approx(slow_scores(tuner.predicted, tuner.rules).mean(), abs=1e-12)


def test_images_come_worst_first(runs):
    tuner = Tuner(runs["strips"])
    for channel in range(4):
        tuner.channel = channel
        tuner.sliders.thresh.value = 90
        of = dict(zip(tuner.predicted.store.image_ids, slow_scores(tuner.predicted, tuner.rules)[:, channel]))
        scores = [of[i] for i in tuner.picker.ids]
        assert scores == sorted(scores) and len(scores) == len(of)
        assert tuner.image_id == tuner.picker.image_id


def test_what_is_refused_changes_nothing(runs):
    tuner = Tuner(runs["strips"])
    before = tuner.rules, tuner.channel, tuner.image_id
    for name, value, says in [
        ("channel", 4, "4 classes, 0 to 3"),
        ("channel", -1, "0 to 3"),
        ("image_id", "nobody.png", "no image 'nobody.png'"),
        ("image_id", "", "no image ''"),
        ("rules", (Rule(),) * 3, "3 rules for 4 classes"),
        ("rules", (Rule(5),) * 4, "below the store's floor 13"),
        ("rules", ("x",) * 4, "'x' is not a Rule"),
    ]:
        with pytest.raises(ValueError, match=says):
            setattr(tuner, name, value)
        assert (tuner.rules, tuner.channel, tuner.image_id) == before, name


def test_saved_rules_are_read_by_the_kit_and_start_the_next_tuner(run):
    tuner = Tuner(run)
    tuner.sliders.thresh.value = 99
    rules, facts = read_rules(tuner.save(run / "rule.json"))
    assert rules == tuner.rules == (Rule(99), Rule(), Rule(), Rule())
    assert facts["scores"]["all"] == pytest.approx(tuner.table.score["all"]) and facts["images"] == 9
    assert facts["data_sha256"] == tuner.predicted.folder.sha256 and "optimistic" in facts["chosen"]
    again = Tuner(run)
    assert again.rules == rules and again.table.change["all"] == 0
    assert Tuner(run, rules=[Rule(140)] * 4).rule == Rule(140)


def test_slider_stops():
    steps = area_steps(256 * 1600, also=[743])
    assert steps[:3] == [0, 10, 11] and steps[-1] == 256 * 1600 + 1 and {743, 600, 1000, 2000} <= set(steps)
    assert all(b <= 1.2 * a for a, b in zip(steps[1:], steps[2:]))
    assert area_steps(4) == [0, 5]


# --- the browser


def test_lists_by_class(runs):
    folder = read_folder(runs["strips"] / "data")
    marked = {i: {c for c in range(4) if folder.mask(i)[c].any()} for i in folder.images.image_id}
    widget = Browser(folder)
    for show, wanted in [("all", lambda s: True), ("clean", lambda s: not s)] + [(f"class {c + 1}", lambda s, c=c: c in s) for c in range(4)]:
        widget.menu.value = show
        assert list(widget.ids) == [i for i in marked if wanted(marked[i])]
        assert widget.image_id == widget.ids[0] and widget.picker.number.value == 1


def test_stepping(runs):
    widget = Browser(runs["strips"] / "data")
    seen = [widget.image_id]
    while not widget.picker.on.disabled:
        widget.picker.on.click()
        seen.append(widget.image_id)
    assert tuple(seen) == widget.ids and widget.picker.number.value == 9
    widget.picker.on.click()
    assert widget.image_id == seen[-1]
    widget.picker.back.click()
    assert widget.image_id == seen[-2]
    widget.picker.number.value = 3
    assert widget.image_id == widget.picker.text.value == seen[2]
    widget.picker.text.value = seen[4]
    assert widget.image_id == seen[4] and widget.picker.number.value == 5
    widget.picker.text.value = "nobody"
    assert widget.image_id == widget.picker.text.value == seen[4] and "nobody" in widget.picker.said.value


def test_worst_first_by_class_and_over_classes(runs):
    widget = Browser(runs["strips"] / "data", runs["strips"])
    scores = dict(zip(widget.folder.images.image_id, slow_scores(widget.predicted, widget.rules)))
    widget.sort = "worst first"
    means = [scores[i].mean() for i in widget.ids]
    assert means == sorted(means) and f"mean Dice {means[0]:.3f}" in widget.text.value
    widget.show = "class 2"
    dices = [scores[i][1] for i in widget.ids]
    assert len(dices) == 7 and dices == sorted(dices)
    widget.picker.on.click()
    here = widget.image_id
    widget.rules = (Rule(60),) * 4
    assert widget.image_id == here
    scores = dict(zip(widget.folder.images.image_id, slow_scores(widget.predicted, widget.rules)))
    assert [scores[i][1] for i in widget.ids] == sorted(scores[i][1] for i in widget.ids)


def test_layers_show_labels_and_prediction(runs):
    widget = Browser(runs["squares"] / "data", runs["squares"])
    for widget.image_id in widget.ids:
        painted = {name: np.ptp(pixels(image.value), axis=2) > 0 for name, image in widget.panels.images.items()}
        assert not painted["image"].any()
        assert np.array_equal(painted["labels"], widget.folder.mask(widget.image_id).any(0))
        assert np.array_equal(painted["prediction"], (widget.predicted.store.read(widget.image_id) >= 128).any(0))
    before = widget.panels.images["prediction"].value
    widget.rules = (Rule(200),) * 3
    assert widget.panels.images["prediction"].value != before


def test_images_without_a_prediction_say_so_and_come_last(tmp_path):
    widget = Browser(None, make_run(tmp_path / "run", predicted=5, **CASES["strips"]))
    widget.sort = "worst first"
    assert set(widget.ids[5:]) == set(widget.folder.images.image_id[5:])
    widget.image_id = widget.ids[-1]
    assert "not predicted" in widget.text.value and "Dice" not in widget.text.value
    assert widget.panels.images["prediction"].value != widget.panels.images["labels"].value


def test_an_empty_list_is_said(runs):
    for widget in (Browser(runs["no defect"] / "data"), Browser(runs["no defect"] / "data", runs["no defect"])):
        widget.show = "class 2"
        assert (widget.ids, widget.image_id, widget.panels.layout.display) == ((), "", "none")
        assert "holds no image of class 2" in widget.text.value
        widget.picker.on.click()
        widget.picture()
        widget.show = "clean"
        assert len(widget.ids) == 3 and widget.panels.layout.display is None


def test_browser_refuses(runs):
    plain = Browser(runs["strips"] / "data")
    for name, value, says in [("show", "class 5", "class 1"), ("sort", "size", "worst first"), ("sort", "worst first", "give a run"), ("rules", (Rule(),) * 4, "give a run"), ("image_id", "x", "no image 'x'")]:
        with pytest.raises(ValueError, match=says):
            setattr(plain, name, value)
    assert (plain.show, plain.sort, plain.rules, plain.image_id) == ("all", "id", (), "0000.png") and plain.sorting.disabled


# --- both


def both(run):
    return Tuner(run), Browser(run / "data", run), Browser(run / "data")


@pytest.mark.parametrize("name", CASES)
def test_a_picture_stands_in_for_the_widget(runs, name):
    for widget in both(runs[name]):
        bundle = widget._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "application/vnd.jupyter.widget-view+json", "image/jpeg"}
        data = base64.b64decode(bundle["image/jpeg"])
        h, w, _ = pixels(data).shape
        assert 900 < w < 1100 and 150 < h < 1200 and len(data) < 500_000


@pytest.mark.parametrize("name", CASES)
def test_every_control_has_a_label_and_all_images_can_be_seen(runs, name):
    for widget in both(runs[name]):
        for control in (p for p in parts(widget) if isinstance(p, (Dropdown, Text, Button, BoundedIntText, SelectionSlider))):
            assert control.description
        assert any("hit" in p.value or "class 1" in p.value for p in parts(widget) if isinstance(p, HTML))
        for _ in range(len(widget.picker.ids)):
            widget.picker.on.click()
        assert widget.image_id == widget.picker.ids[-1]
        only_our_tags(widget)


def test_text_from_files_never_becomes_a_tag(runs):
    pieces = ["<b>", "<img src=x onerror=alert(1)>", "</div><script>", "&lt;i&gt;", "\"'><svg/onload=1>", "<!--", "<![CDATA[", "<?x", "javascript:", "ü\u202e", "$\\frac", "x" * 300, "&#60;u>"]
    rng = np.random.default_rng(0)
    strings = ["".join(rng.choice(pieces, rng.integers(1, 5))) for _ in range(200)]
    picker = Picker(strings)
    picker.ids = tuple(dict.fromkeys(strings))
    for text in strings:
        picker.image_id = text
        only_our_tags(picker)
        picker.text.value = text + "<i>"
        assert "no image" in picker.said.value
        only_our_tags(picker)
        row = dict(score=0.5, change=0.0, present=0.5, empty=np.nan, pairs=2, present_pairs=1)
        assert Tags(scores_html(pd.DataFrame([row], index=[text])) + legend_html({text: (1, 2, 3)})).seen <= OURS
    tuner, browser, _ = both(runs["hostile ids"])
    for i in HOSTILE:
        tuner.image_id = browser.image_id = i
        only_our_tags(tuner, browser)
        assert not Tags(tuner.view.text.value).seen - {"div", "div style"}
    tuner.image_id = next(i for i in HOSTILE if "$" in i)  # to matplotlib this would be a formula, and a wrong one
    assert len(tuner.picture().data) > 10_000


def test_pictures_fit_the_screen():
    for h, w in [(256, 1600), (200, 200), (64, 400), (1600, 256), (1, 1), (2048, 4096)]:
        for n in (1, 2, 3):
            width, height, stacked = view_box((h, w), n)
            assert 1 <= width and (width if stacked else n * (width + 8)) <= 1150 and 1 <= height
            assert (n * height if stacked else height) <= 660
            assert width / height == pytest.approx(w / h, rel=0.05)


# --- what is kept beside a run


def test_curves_are_counted_once(run, monkeypatch):
    counted = []
    monkeypatch.setattr(predicted_module, "curves_of", lambda *a, real=predicted_module.curves_of, **k: counted.append(1) or real(*a, **k))
    first = read_run(run).curves
    again = read_run(run).curves
    assert len(counted) == 1 and (run / "curves.npz").is_file()
    assert all(np.array_equal(getattr(first, k), getattr(again, k)) for k in ("image_ids", "area", "hit", "truth", "floor", "shape"))

    later = (run / "curves.npz").stat().st_mtime_ns + 10**9
    os.utime(next((run / "oof").rglob("*.log")), ns=(later, later))  # the store was written to since
    read_run(run)
    assert len(counted) == 2
    os.utime(run / "curves.npz", ns=(later + 1, later + 1))
    read_run(run)
    assert len(counted) == 2
    (run / "curves.npz").write_bytes(b"half of")  # torn
    read_run(run)
    assert len(counted) == 3


def test_new_labels_are_counted_even_with_an_old_date(run):
    before = read_run(run).curves.truth
    path = run / "data" / "train.csv"
    rows = list(csv.reader(open(path, encoding="utf-8")))
    rows[1][1] = rle_encode(np.ones((64, 400)))
    csv.writer(open(path, "w", newline="", encoding="utf-8")).writerows(rows)
    os.utime(path, ns=(10**18, 10**18))
    after = read_run(run).curves.truth
    assert after[0, 0] == 64 * 400 != before[0, 0] and np.array_equal(after.ravel()[1:], before.ravel()[1:])


def test_a_run_that_cannot_be_written_is_read(run, monkeypatch):
    def refuse(*args):
        raise PermissionError("read-only")

    monkeypatch.setattr(predicted_module, "write_curves", refuse)
    assert len(read_run(run).curves) == 9 and not (run / "curves.npz").exists()


def test_a_run_is_not_shown_on_other_data(run, tmp_path):
    folder = read_folder(run / "data")
    (run / "config.json").write_text(json.dumps({"data": folder.sha256}))
    predicted = read_run(run)
    (run / "config.json").write_text(json.dumps({"data": "0" * 64}))
    with pytest.raises(ValueError, match="trained on other data"):
        Tuner(run)
    other = make_run(tmp_path / "other", **{**CASES["strips"], "n": 5, "seed": 1})
    with pytest.raises(ValueError, match="is not the data of these predictions"):
        Browser(read_folder(other / "data"), predicted)
    (other / "data").rename(other / "elsewhere")
    with pytest.raises(ValueError, match="give the data folder"):
        Tuner(other)
    assert len(Tuner(other, other / "elsewhere").picker.ids) == 5
    write_rules(other / "rule.json", [Rule()] * 3)
    with pytest.raises(ValueError, match="3 rules for 4 classes"):
        Tuner(other, other / "elsewhere")


def test_widgets_load_no_torch():
    code = "import sys, steel_seg.tune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["41_browse.ipynb", "42_tune.ipynb"])
def test_notebooks_hold_pictures_and_no_live_view(name):
    cells = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]
    kinds = [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert "image/jpeg" in kinds and not any("widget" in kind for kind in kinds)


@pytest.mark.real
@pytest.mark.parametrize("name,classes", [("severstal-sample", 4), ("neu-seg", 3)])
def test_real_folders(name, classes):
    widget = Browser(real_data(name))
    widget.show = f"class {classes}"
    truth = widget.folder.mask(widget.image_id)
    assert len(truth) == classes and truth[-1].any()
    assert np.array_equal(np.ptp(pixels(widget.panels.images["labels"].value), axis=2) > 0, truth.any(0))
    assert len(widget.picture().data) > 20_000
