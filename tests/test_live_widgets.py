"""The widgets whole, in JupyterLab and Notebook 7: what keys and mouse do to the page, to the kernel and to files."""

import csv
import html
import json
import os
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from made import HOSTILE
from test_monitor import make_training

from steel_seg.data import read_folder
from steel_seg.post import Rule, read_rules
from steel_seg.relabel import read_queue
from steel_seg.trial import level_text

SCORES, IMAGE, SURFACE = (
    ".steel-tuner .steel-scores",
    ".steel-tuner .steel-frame img[alt='difference']",
    ".steel-tuner .steel-marked img",
)
TUNER = """
import numpy as np
from steel_seg.open_run import pair_dice
from steel_seg.look.tune import Tuner
{name}tuner = Tuner({run!r})
{name}first = {name}tuner.rules
{name}tuner"""
BROWSER = """
from steel_seg.look.browse import Browser
{name}browser = Browser({run!r}, queue={queue!r})
{name}browser"""
DATA = """
from steel_seg.look.explore import DataBrowser
{name}data = DataBrowser({data!r})
{name}data"""
PREVIEW = """
from steel_seg.look.preview import AugmentPreview
{name}preview = AugmentPreview({data!r})
{name}preview"""
MONITOR = """
from steel_seg.look.monitor import Monitor
{name}monitor = Monitor({run!r}, every=.2)
{name}monitor"""


def make_all(run, ids=None, name=""):
    "A run with folds and a training's files, and what the cells above are to be told. The first image is there twice."
    make_training(run, n=8, ids=ids)
    images = shutil.copytree(run / "data", run / "twin") / "train_images"
    first = sorted(images.iterdir())[0]
    twin = f"twin of {first.name[-40:]}"
    shutil.copyfile(first, images / twin)
    with open(run / "twin/train.csv", "a", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([f"{twin}_{c}", ""] for c in range(1, 5))  # without a label
    return {"name": name, "run": str(run), "data": str(run / "twin"), "queue": str(run / "flags.csv")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("live") / "run")


@pytest.fixture(scope="module")
def tuner(lab, run):
    return lab.open([TUNER.format(**run)], name="tuner")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("hostile") / "<b>run & co", ids=HOSTILE, name="bad_")


@pytest.fixture(scope="module")
def others(lab, run, hostile):
    """All but the tuner, a cell each, in this order; then all five of the run with hostile names. One notebook, for a
    kernel that loads torch takes seconds."""
    bad = [cell.format(**hostile) for cell in (TUNER, BROWSER, DATA, PREVIEW, MONITOR)]
    return lab.open([*(cell.format(**run) for cell in (BROWSER, DATA, PREVIEW, MONITOR)), *bad], name="others")


@pytest.fixture(autouse=True)
def fine(request):
    "Whatever a test does to a notebook, nothing goes wrong in the browser, and nothing is fetched."
    yield
    for name in {"tuner", "others"} & set(request.fixturenames):
        request.getfixturevalue(name).fine()


def cell(nb, k):
    return nb.page.locator(".jp-CodeCell").nth(k)


def plain(text):
    "HTML as its text."
    return html.unescape(re.sub("<[^>]*>", "", text))


CUT = """() => { // elements that reach beyond their output, or that a box cuts off
  const seen = [], say = (what, e) => seen.push(`${what}: ${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`);
  for (const out of document.querySelectorAll(".jp-OutputArea-output")) {
    const right = out.getBoundingClientRect().right;
    if (out.scrollWidth > out.clientWidth + 1) say("scrolls", out);
    const parts = "td, th, button, select, input, label, img, .widget-readout, .widget-html-content *";
    for (const e of out.querySelectorAll(parts)) {
      const box = e.getBoundingClientRect();
      if (box.width && box.right > right + 1 && !e.closest(".noUi-target")) say("beyond", e);
    }
  }
  return seen;
}"""


def fits(nb):
    "Nothing is cut off, with JupyterLab's file browser closed and open, on a screen 1280 pixels wide."
    width = "document.querySelector('.jp-OutputArea-output').clientWidth"
    try:
        for turn, means in ("collapse", "> 1050"), ("expand", "< 900"):
            nb.page.evaluate(f"jupyterapp.shell.{turn}Left()")
            nb.page.wait_for_function(f"{width} {means}")
            if os.environ.get("STEEL_SEG_SHOTS"):
                nb.shot(Path(os.environ["STEEL_SEG_SHOTS"]) / f"{nb.path.stem}_{turn}.png")
            cut = nb.page.evaluate(CUT)
            assert not cut, (turn, cut)
        assert nb.page.evaluate(width) > 800  # or else this is not what it says
    finally:
        nb.page.evaluate("jupyterapp.shell.collapseLeft()")
        nb.page.wait_for_function(f"{width} > 1050")


def saved(nb, cells):
    "The notebook's cells as saved: each with its picture, none with the state of a widget."
    nb.menu("docmanager:save")
    book = json.loads(nb.path.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"]
    kinds = [set(out["data"]) for c in book["cells"] for out in c["outputs"]]
    assert kinds == [{"image/jpeg", "text/plain", "application/vnd.jupyter.widget-view+json"}] * cells
    assert nb.path.stat().st_size < 300_000 * cells


# --- the tuner


@pytest.fixture
def start(tuner):
    "The tuner as it was opened."
    tuner.run(
        "tuner.channel = 0\ntuner.channel, tuner.subset, tuner.over, tuner.rules, tuner.kept = None, 'all', "
        "'min_area', first, first\ntuner.settle()\ntuner.picker.go(0)"
    )
    for label, value in (("Threshold", level_text(128)), ("Minimum area", "0 px")):
        readout(tuner, label).get_by_text(value, exact=True).wait_for()
    tuner.page.get_by_text("The same as the kept rule on every image.").wait_for()
    tuner.page.locator(".steel-tuner").get_by_text(f"{tuner.value('tuner.image_id')} · ").wait_for()
    return tuner


def readout(nb, label):
    return nb.page.locator(".widget-slider", has=nb.page.get_by_text(label, exact=True)).locator(".widget-readout")


def test_nested_scores_come_by_themselves(tuner):
    last = f"[...document.querySelectorAll('{SCORES} tr:not(:first-child) td:last-child')].map(e => e.textContent)"
    tuner.page.wait_for_function(f"{last}.length === 5 && {last}.every(t => /^0\\.\\d{{4}}$/.test(t))")
    nested = tuner.value("tuner.rule.facts['nested']['plateau']")
    assert tuner.page.evaluate(last) == [
        f"{nested[row]:.4f}" for row in ("all", "class 1", "class 2", "class 3", "class 4")
    ]
    tuner.page.get_by_text("expected on fresh images").wait_for()


def test_a_key_moves_score_and_picture(start):
    nb = start
    nb.page.evaluate(
        """image => {
      const img = document.querySelector(image), seen = window.steelSeen = { img, blank: 0, sources: 0 };
      const look = () => { if (!img.isConnected || !img.complete || !img.naturalWidth ||
      getComputedStyle(img).visibility === "hidden" || getComputedStyle(img).display === "none") seen.blank++ };
      new MutationObserver(all => { seen.sources += all.filter(m => m.attributeName === "src").length; look()
      }).observe(img.parentNode, { subtree: true, attributes: true, childList: true });
      const each = () => { look(); if (seen.img) requestAnimationFrame(each) };
      each();
    }""",
        IMAGE,
    )
    nb.slider("Threshold").focus()
    found = [nb.latency("ArrowLeft", SCORES, IMAGE) for _ in range(6)]
    same, blank, sources = nb.page.evaluate(
        "image => { const s = steelSeen, same = s.img === document.querySelector(image); s.img = null; return "
        "[same, s.blank, s.sources] }",
        IMAGE,
    )
    assert all(f["text"] for f in found), found
    assert sum(f["image"] is not None for f in found) >= 3, found
    assert same and blank == 0 and sources >= 3
    assert nb.value("tuner.rules[0].thresh") == 122 and readout(nb, "Threshold").inner_text() == level_text(122)


def test_a_hundred_quick_keys_settle_on_the_last(start):
    nb = start
    nb.slider("Threshold").focus()
    drag = nb.drag(["ArrowRight"] * 70 + ["ArrowLeft"] * 30, SCORES, IMAGE)
    assert drag["changes"] > 1
    nb.until("[r.thresh for r in tuner.rules] == [168]*4")
    assert readout(nb, "Threshold").inner_text() == level_text(168)
    nb.run(
        "fresh = Tuner(tuner.opened, rules=first)\nfresh.rules = tuner.rules\nfresh.image_id = "
        "tuner.image_id\nfresh.settle()"
    )
    expected = plain(nb.value("fresh.score_table.value"))
    assert "Against the kept rule" in expected
    nb.page.wait_for_function(f"expected => document.querySelector('{SCORES}').textContent === expected", arg=expected)
    assert nb.value("fresh.view.line") in nb.page.locator(".steel-tuner").inner_text()
    assert nb.value("tuner.view.strip.layer4 == fresh.view.strip.layer4")
    nb.page.get_by_role("button", name="Undo").click()  # all of it was one step
    nb.until("tuner.rules == first")


def test_menus_and_boxes(start):
    nb = start
    menu = nb.page.get_by_label("Class", exact=True)
    menu.press("ArrowDown"), menu.press("ArrowDown")
    nb.until("tuner.channel == 1")
    nb.page.wait_for_function(
        f"[...document.querySelectorAll('{SCORES} tr')].filter(r => r.cells[0].style.fontWeight === 'bold').map(r "
        "=> r.cells[0].textContent).join() === 'class 2'"
    )
    nb.page.get_by_label("Fill holes").click()
    nb.until("[r.fill_holes for r in tuner.rules] == [False, True, False, False]")
    nb.page.get_by_label("Gate", exact=True).select_option("highest pixel")
    nb.until("(tuner.rules[1].gate_by, tuner.rules[1].gate, tuner.rules[0].gate) == ('peak', 128, 0)")
    nb.page.wait_for_function(
        "![...document.querySelectorAll('.widget-slider')].find(s => s.textContent.includes('Gate "
        "at')).querySelector('.noUi-target').hasAttribute('disabled')"
    )
    assert readout(nb, "Gate at").inner_text() == level_text(128)
    nb.slider("Gate at").press("ArrowRight")
    nb.until("tuner.rules[1].gate == 129")
    nb.page.get_by_label("Images", exact=True).select_option("with a defect")
    nb.until("tuner.subset == 'with a defect'")
    n = nb.value("int((tuner.opened.curves.truth > 0).any(1).sum())")
    assert 0 < n < 8
    nb.page.wait_for_function(
        f"n => document.querySelector('{SCORES} tr:nth-child(3) td:nth-child(6)').textContent.endsWith(` of ${{n}}`)",
        arg=n,
    )
    nb.page.get_by_text(f"of {n}", exact=True).wait_for()  # images to step through
    picture = nb.page.evaluate(f"document.querySelector('{SURFACE}').src")
    nb.page.get_by_label("Surface over").select_option("smallest component")
    nb.until("tuner.over == 'min_component'")
    nb.page.wait_for_function(f"was => document.querySelector('{SURFACE}').src !== was", arg=picture)


def test_best_undo_keep_and_swap(start):
    nb = start

    def press(name):
        return nb.page.get_by_role("button", name=re.compile(f"{name}$")).click()

    press("Best")
    nb.run("fresh = Tuner(tuner.opened, rules=first)\nfresh.choose('best')")
    nb.until("tuner.rules == fresh.rules != first")
    nb.page.get_by_text("Against the kept rule, all").wait_for()
    press("Undo")
    nb.until("tuner.rules == first")
    nb.page.get_by_text("The same as the kept rule on every image.").wait_for()
    press("Best")
    nb.page.get_by_text("Against the kept rule, all").wait_for()
    press("Keep to compare")
    nb.until("tuner.kept == tuner.rules == fresh.rules")
    nb.page.get_by_text("The same as the kept rule on every image.").wait_for()
    nb.slider("Threshold").press("ArrowRight")
    nb.until("tuner.rules != tuner.kept")
    shown = readout(nb, "Threshold").inner_text()
    nb.run("moved = tuner.rules")
    press("Swap")
    nb.until("tuner.rules == fresh.rules and tuner.kept == moved")
    now = level_text(nb.value("fresh.rules[0].thresh"))
    assert now != shown
    readout(nb, "Threshold").get_by_text(now, exact=True).wait_for()


def test_a_click_on_the_surface_goes_there_and_sends_a_marker_alone(start):
    nb = start
    source = nb.page.evaluate(f"document.querySelector('{SURFACE}').src")
    nb.run(
        "sent, real = [], tuner.surface.comm.send\ntuner.surface.comm.send = lambda data=None, *a, **k: "
        "(sent.extend((data or {}).get('state', ())), real(data, *a, **k))"
    )
    box = nb.page.locator(SURFACE).bounding_box()
    for x, y in (0.35, 0.3), (0.6, 0.6):
        nb.page.locator(SURFACE).click(position={"x": x * box["width"], "y": y * box["height"]})
        nb.until(f"np.allclose(tuner.surface.clicked, ({x}, {y}), atol=.005)")
        nb.until(
            "{(r.thresh, r.min_area) for r in tuner.rules} == {tuner.surface.drawn.rule_at(*tuner.surface.clicked)}"
        )
        thresh, area, px, py = nb.value(
            "(tuner.rules[0].thresh, tuner.rules[0].min_area, *tuner.surface.drawn.place(tuner.rules[0].thresh, "
            "tuner.rules[0].min_area))"
        )
        assert abs(px - x) < 0.01 and abs(py - y) < 0.01
        nb.page.wait_for_function(
            "at => [...document.querySelectorAll('.steel-tuner .steel-marked i')].filter(i => i.title.endsWith(', "
            "now') && Math.abs(parseFloat(i.style.left) - at[0]) < .01 && Math.abs(parseFloat(i.style.top) - "
            "at[1]) < .01).length === 4",
            arg=[100 * px, 100 * py],
        )
        assert (
            readout(nb, "Threshold").inner_text() == level_text(thresh)
            and readout(nb, "Minimum area").inner_text() == f"{area:,} px"
        )
    nb.run("tuner.settle(); del tuner.surface.comm.send")
    assert set(nb.value("sent")) <= {"marks", "clicked"} and "marks" in nb.value("sent")
    assert nb.page.evaluate(f"document.querySelector('{SURFACE}').src") == source


def test_images_that_a_move_changed_and_ids_that_are_typed(start):
    nb = start
    field = nb.page.get_by_label("Image id")
    nb.slider("Threshold").focus()
    for _ in range(5):
        nb.page.keyboard.press("ArrowRight")
    nb.until("tuner.rules[0].thresh == 133")
    nb.run("move = abs((pair_dice(tuner.opened, tuner.rules) - pair_dice(tuner.opened, first)).mean(1))")
    ids = nb.value("[tuner.opened.curves.image_ids[i] for i in (-move).argsort(kind='stable')[:3]]")
    assert len(set(nb.value("move[(-move).argsort()[:3]].tolist()"))) == 3  # no ties
    for wanted in ids:
        before = nb.page.evaluate(f'document.querySelector("{IMAGE}").src')
        nb.page.get_by_role("button", name="Next changed").click()
        nb.page.wait_for_function(
            "id => [...document.querySelectorAll('.widget-text input')].some(i => i.value === id)", arg=wanted
        )
        nb.page.wait_for_function(f'was => document.querySelector("{IMAGE}").src !== was', arg=before)
        nb.page.locator(".steel-tuner").get_by_text(f"{wanted} · ").wait_for()
    field.fill("0005.png"), field.press("Enter")
    nb.until("tuner.image_id == '0005.png'")
    nb.page.locator(".steel-tuner").get_by_text("0005.png · ").wait_for()
    field.fill("0099.png"), field.press("Enter")
    nb.page.get_by_text("no image '0099.png'").wait_for()
    assert nb.value("tuner.image_id") == "0005.png"


def test_save_writes_the_rules_and_says_so(start, run, tmp_path):
    nb = start
    nb.slider("Threshold").press("ArrowRight")
    nb.until("tuner.rules[0].thresh == 129")
    path, where = tmp_path / "rule.json", nb.page.get_by_label("Save as")
    was = where.input_value()
    assert was == str(Path(run["run"]) / "rule.json")
    where.fill(str(path))
    nb.page.get_by_role("button", name="Save rule").click()
    nb.page.get_by_text(f"saved as {path}").wait_for()
    assert read_rules(path)[0] == (Rule(129),) * 4
    where.fill(str(tmp_path / "none" / "rule.json"))
    nb.page.get_by_role("button", name="Save rule").click()
    nb.page.get_by_text("not saved: ").wait_for()
    assert not (tmp_path / "none").exists()
    where.fill(was)


def test_keys_on_controls_are_not_jupyterlabs(start):
    """Elsewhere in a notebook a inserts a cell, d d deletes one, x cuts, z undoes, m makes text of it, arrows go to
    another."""
    nb = start
    before = nb.page.evaluate("jupyterapp.shell.currentWidget.content.activeCell.id")
    for where in (
        nb.slider("Threshold"),
        nb.page.get_by_role("button", name="Best"),
        nb.page.get_by_label("Fill holes"),
        nb.page.get_by_label("Class", exact=True),
    ):
        for key in ("a", "b", "d", "d", "x", "z", "m", "ArrowDown", "ArrowUp"):
            where.press(key)
    assert cells_of(nb) == 1 and nb.page.evaluate(
        "[jupyterapp.shell.currentWidget.content.activeCell.id, "
        "jupyterapp.shell.currentWidget.content.activeCell.model.type]"
    ) == [before, "code"]
    nb.page.evaluate("jupyterapp.shell.currentWidget.context.model.dirty = true")
    nb.slider("Threshold").press("Control+s")  # JupyterLab's, wherever it is pressed
    nb.page.wait_for_function("!jupyterapp.shell.currentWidget.context.model.dirty")


def test_the_tuner_fits(start):
    fits(start)


# --- the browser


def cells_of(nb):
    return nb.page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length")


def test_thumbnails_appear_and_one_is_shown_large(others):
    nb, here = others, cell(others, 0)
    nb.page.wait_for_function(
        "(all => all.length === 8 && all.every(i => i.naturalWidth && i.style.visibility === "
        "''))([...document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('.steel-gallery img')])"
    )
    image = here.locator(".steel-frame img[alt='image']")
    before, wanted = image.get_attribute("src"), nb.value("browser.ids[2]")
    here.locator(".steel-gallery button").nth(2).click()
    nb.until(f"browser.image_id == {wanted!r}")
    here.get_by_text(f"{wanted} · mean Dice").wait_for()
    nb.page.wait_for_function(
        "was => document.querySelectorAll('.jp-CodeCell')[0].querySelector('.steel-frame img').src !== was", arg=before
    )
    assert here.locator(".steel-chosen").all_inner_texts() == [
        f"{nb.value('float(browser.table.dice[browser.ids[2]])'):.3f} · {wanted}"
    ]


def test_keys_of_the_browser_are_not_jupyterlabs(others, run):
    nb, here, page = others, cell(others, 0), others.page
    before, ids = cells_of(nb), nb.value("browser.ids")
    here.locator(".steel-gallery button").first.click()
    nb.until(f"browser.image_id == {ids[0]!r}")
    for key, at in ("n", 1), ("n", 2), ("p", 1), ("ArrowRight", 2), ("ArrowLeft", 1):
        page.keyboard.press(key)
        nb.until(f"browser.image_id == {ids[at]!r}")
    page.keyboard.press("f")
    nb.until(f"[f.image_id for f in browser.flags] == [{ids[1]!r}]")
    assert here.locator(".steel-gallery .steel-mark").all_inner_texts()[0].endswith(ids[1])
    assert read_queue(run["queue"]).image_id.tolist() == [ids[1]]
    frame = here.locator(".steel-frame")
    for key in (
        "n",
        "x",
        "a",
        "b",
        "d",
        "d",
        "z",
        "m",
        "y",
    ):  # n is ours; the rest would cut, insert, delete, undo, turn into text
        frame.press(key)
    nb.until(f"browser.image_id == {ids[2]!r}")
    for key in ("a", "b", "d", "d", "x", "z", "m", "y"):
        here.locator(".steel-gallery").press(key)
    assert cells_of(nb) == before and page.evaluate(
        "jupyterapp.shell.currentWidget.content.widgets.every(w => w.model.type === 'code')"
    )
    here.locator(".steel-gallery").press("p")
    nb.until(f"browser.image_id == {ids[1]!r}")
    here.locator(".steel-gallery").press("f")
    nb.until("browser.flags == ()")


def test_layers_are_switched_by_digits(others):
    nb, here = others, cell(others, 0)
    frame, seen = (
        here.locator(".steel-frame"),
        lambda: here.locator(".steel-frame img").evaluate_all(
            "all => all.filter(i => i.style.display !== 'none').map(i => i.alt)"
        ),
    )
    assert seen() == ["image", "difference"]
    frame.press("2"), frame.press("5")
    nb.until("browser.parts.large.view.shown == ('image', 'labels')")
    assert seen() == ["image", "labels"]
    frame.press("2"), frame.press("5")
    nb.until("browser.parts.large.view.shown == ('image', 'difference')")
    assert seen() == ["image", "difference"]


def test_menus_change_the_list(others):
    nb, here = others, cell(others, 0)

    def captions():
        return here.locator(".steel-gallery span").all_text_contents()

    everything = captions()
    here.get_by_label("Show", exact=True).select_option("class 2")
    nb.until("browser.show == 'class 2'")
    folder = read_folder(nb.value("str(browser.folder.root)"), n_classes=4)
    wanted = {i for i, area in zip(folder.images.image_id, folder.truth_area()) if area[1]}
    assert 0 < len(wanted) < 8
    nb.page.wait_for_function(
        "document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('.steel-gallery button').length === "
        f"{len(wanted)}"
    )
    assert {c.split(" · ")[1] for c in captions()} == wanted
    here.get_by_label("Order").select_option("highest first")
    nb.until("not browser.rising")
    here.get_by_text(f"of {len(wanted)}", exact=True).wait_for()
    nb.page.wait_for_function(
        "(all => all.every((x, i) => !i || x <= all[i - "
        "1]))([...document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('.steel-gallery span')].map(s => "
        "parseFloat(s.textContent)))"
    )
    here.get_by_label("Thumbnails show").select_option("labels")
    nb.until("browser.paint == 'labels' and all(browser.parts.pages.gallery.pictures)")
    here.get_by_label("Order").select_option("lowest first")
    here.get_by_label("Show", exact=True).select_option("all")
    nb.page.wait_for_function(
        "wanted => [...document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('.steel-gallery "
        "span')].map(s => s.textContent).join() === wanted",
        arg=",".join(everything),
    )


def test_a_reason_lands_in_the_file(others, run):
    nb, here = others, cell(others, 0)
    reason = here.get_by_label("Reason")
    for text in ("label too loose", '=<img src=x onerror=alert(1)>, "so" & more'):
        reason.fill(text), reason.press("Enter")
        nb.until(f"browser.parts.box.reason == {text!r}")
        here.get_by_label("Concerns").select_option("class 3")
        here.get_by_role("button", name=re.compile("Flag$")).click()
        here.get_by_text(f"flagged: {text} (class 3)").wait_for()
        queue = read_queue(run["queue"])
        assert queue[["image_id", "class_id", "reason"]].to_numpy().tolist() == [
            [nb.value("browser.image_id"), "3", text]
        ]
    here.get_by_role("button", name="Take flag off").click()
    nb.until("browser.flags == ()")
    assert len(read_queue(run["queue"])) == 0


# --- a folder without a model


def test_every_view_of_a_folder_opens_by_its_button(others):
    nb, here = others, cell(others, 1)

    def show(name):
        return here.get_by_role("button", name=name, exact=True).click()

    for name in ("Sizes", "Places", "Classes"):
        show(name)
        nb.until(f"data.view == {name.lower()!r}")
        nb.page.wait_for_function(
            "(all => all.length === 1 && all[0].naturalWidth > "
            "500)([...document.querySelectorAll('.jp-CodeCell')[1].querySelectorAll('.widget-image')])"
        )
        assert nb.page.evaluate(
            "fetch(document.querySelectorAll('.jp-CodeCell')[1].querySelector('.widget-image').src).then(r => "
            "r.arrayBuffer()).then(b => b.byteLength)"
        ) == nb.value(f"len(data.part({name.lower()!r}).value)")
    show("Images")
    here.locator(".steel-gallery button").nth(8).wait_for()
    here.locator(".steel-gallery button").nth(4).click()
    nb.until("data.image_id == data.part('images').ids[4]")
    here.get_by_text(f"{nb.value('data.image_id')} · class").last.wait_for()
    show("Faults")
    rows = here.locator(".steel-table tbody tr")
    before = rows.count()
    here.get_by_role("button", name="Read all images").click()
    here.get_by_text("every image was decoded").wait_for()
    rows.nth(before).wait_for()  # the file that is there twice
    assert rows.count() > before
    row = here.locator(".steel-table tbody tr", has_text="same bytes").first
    row.click()
    nb.until("'same bytes' in data.part('faults').shown.problem[data.part('faults').fault]")
    image_id = nb.value("data.part('faults').large.image_id")
    assert image_id and image_id in row.inner_text()
    here.get_by_text(f"{image_id} · ").last.wait_for()
    show("Near-duplicates")
    here.get_by_role("button", name="Look for near-duplicates").click()
    here.get_by_text("1 pair in 1 groups of 2 images").wait_for()
    nb.page.wait_for_function(
        "(all => all.length === 2 && all.every(i => "
        "i.naturalWidth))([...document.querySelectorAll('.jp-CodeCell')[1].querySelectorAll('.steel-frame "
        "img[alt=image]')])"
    )
    assert set(nb.value("[one.image_id for one in data.part('near-duplicates').large]")) == {
        "0000.png",
        "twin of 0000.png",
    }


# --- what augmentation does


PICTURES = """async () => {
  const images = document.querySelectorAll(".jp-CodeCell")[2].querySelectorAll(".steel-gallery img");
  const bytes = async i => [...new Uint8Array(await (await fetch(i.src)).arrayBuffer())];
  return Promise.all([...images].map(async i => (await bytes(i)).reduce((h, b) => (31*h + b) % 1e9, 7)));
}"""


def test_next_epochs_are_other_pictures(others):
    nb, here = others, cell(others, 2)
    loaded = (
        "(all => all.length === 8 && all.every(i => "
        "i.naturalWidth))([...document.querySelectorAll('.jp-CodeCell')[2].querySelectorAll('.steel-gallery img')])"
    )
    nb.page.wait_for_function(loaded)
    before, large = nb.page.evaluate(PICTURES), here.locator(".steel-frame img[alt='image']").get_attribute("src")
    here.get_by_role("button", name="Next epochs").click()
    here.get_by_text("epochs 7 to 13").wait_for()
    nb.page.wait_for_function(
        "was => document.querySelectorAll('.jp-CodeCell')[2].querySelector('.steel-frame img').src !== was", arg=large
    )
    nb.page.wait_for_function(
        "(all => all.length === 8 && all[1].startsWith('epoch 7: ') && all[7].startsWith('epoch 13: "
        "'))([...document.querySelectorAll('.jp-CodeCell')[2].querySelectorAll('.steel-gallery span')].map(s => "
        "s.textContent))"
    )
    end = time.monotonic() + 30
    while (after := nb.page.evaluate(PICTURES))[1:] == before[1:]:
        assert time.monotonic() < end
    assert after[0] == before[0]
    here.locator(".steel-gallery button").nth(3).click()
    here.get_by_text(f"{nb.value('preview.image_id')} · epoch 9: ").wait_for()
    nb.page.keyboard.press("r")
    nb.until("preview.epoch == 14")
    nb.page.keyboard.press("n")
    nb.until("preview.picker.at == 1")


# --- a run as it trains


def test_the_monitor_follows_the_files(lab, others, run):
    nb, here, folder = others, cell(others, 3), Path(run["run"]) / "fold_1"
    curves = "document.querySelectorAll('.jp-CodeCell')[3].querySelector('.widget-image')"
    box = here.get_by_label("Look again every 0.2 s")
    here.get_by_text("8 of 12 epochs").wait_for()
    assert box.is_checked()
    nb.page.evaluate(f"window.steelCurves = {curves}")

    def write(done, step, doing, loss):
        "What a training writes at such a moment: the history first."
        rows = pd.read_csv(folder / "history.csv")
        while len(rows) < done:
            rows.loc[len(rows)] = {
                **rows.iloc[-1],
                "epoch": len(rows) + 1,
                "score": 0.7 + 0.01 * len(rows),
                "loss": loss,
            }
        news = {
            **json.loads((folder / "progress.json").read_text()),
            "epoch": min(done + 1, 6),
            "step": step,
            "doing": doing,
            "loss": loss,
        }
        for name, text in ("history.csv", rows.to_csv(index=False)), ("progress.json", json.dumps(news)):
            (folder / "new").write_text(text)
            os.replace(folder / "new", folder / name)

    write(2, 4, "training", 0.4321)
    here.get_by_text("trains, epoch 3 of 6, step 4 of 9 · loss 0.4321 so far").wait_for()
    source = nb.page.evaluate(f"{curves}.src")
    write(3, 0, "training", 0.1234)
    here.get_by_text("9 of 12 epochs").wait_for()
    here.locator("td", has_text="0.1234").wait_for()
    nb.page.wait_for_function(
        f"was => {curves}.src !== was && {curves}.naturalWidth > 900 && {curves} === steelCurves", arg=source
    )
    assert (
        nb.value("monitor.progress.folds[1].best") == pytest.approx(0.72)
        and "best so far 0.7200 in epoch 3" in here.inner_text()
    )
    source = nb.page.evaluate(f"{curves}.src")
    (folder / "last").mkdir()
    (folder / "last/steel_seg.json").write_text("{}")
    write(6, 9, "finished", 0.05)
    here.get_by_text("run: finished").wait_for()
    nb.page.wait_for_function(f"was => {curves}.src !== was && {curves} === steelCurves", arg=source)
    nb.until("not monitor.watching and monitor._task is None")
    assert not box.is_checked()
    menu = here.get_by_label("Show", exact=True)
    menu.select_option("fold 0")
    here.get_by_text("fold 1: ").wait_for(state="detached")
    menu.select_option("all folds")
    here.get_by_text("fold 1: finished").wait_for()


def test_the_others_fit(others):
    nb = others
    for view in nb.value("data.views"):
        nb.run(f"data.view = {view!r}")
        nb.page.wait_for_function(
            "view => "
            "[...document.querySelectorAll('.jp-CodeCell')[1].querySelectorAll('.widget-toggle-button.mod-active')]"
            ".map(b => b.textContent.trim().toLowerCase()).join() === view",
            arg=view,
        )
        fits(nb)


# --- names that would be tags


def test_hostile_names_stay_text(others, hostile):
    nb, where = others, [cell(others, k) for k in range(4, 9)]
    where[0].locator(".widget-slider", has_text="Threshold").locator(".noUi-handle").press("ArrowRight")
    nb.until("bad_tuner.rules != bad_first")
    for image_id in HOSTILE:
        nb.run(f"for w in (bad_tuner, bad_browser, bad_preview): w.image_id = {image_id!r}")
        for k in (0, 1, 3):
            where[k].get_by_text(f"{image_id} · ").first.wait_for()
    reason = where[1].get_by_label("Reason")
    reason.fill(HOSTILE[0]), reason.press("Enter")
    where[1].get_by_role("button", name=re.compile("Flag$")).click()
    where[1].get_by_text(f"flagged: {HOSTILE[0]}").wait_for()
    where[0].get_by_role("button", name="Save rule").click()
    where[0].get_by_text(f"saved as {hostile['run']}/rule.json").wait_for()
    for view in ("images", "near-duplicates", "faults"):
        nb.run(
            f"bad_data.view = {view!r}\nif {view!r} == 'near-duplicates': bad_data.part('near-duplicates').look_for()"
        )
        if view != "faults":
            where[2].locator(".steel-frame img[alt=image]").first.wait_for()
        tags = nb.page.evaluate(
            "[...document.querySelectorAll('.jp-OutputArea-output *')].map(e => e.tagName.toLowerCase())"
        )
        assert {"button", "img", "label", "td"} <= set(tags) and not set(tags) & {
            "script",
            "iframe",
            "object",
            "embed",
            "svg",
        }
        own = nb.page.evaluate(
            "[...document.querySelectorAll('.jp-OutputArea-output *')].filter(e => [...e.attributes].some(a => "
            "a.name.startsWith('on')) || (e.tagName === 'IMG' && e.getAttribute('src') === 'x') || (e.tagName === "
            "'B' && e.closest('.steel-gallery, .steel-table, .steel-frame'))).map(e => e.outerHTML)"
        )
        assert not own, own
        fits(nb)
    nb.fine()  # an alert would be an error


# --- what is kept of them


def test_saved_notebooks_hold_no_widget_state(tuner, others):
    "After all that was done to them; the one that is saved must be the one in front."
    for nb, cells in (tuner, 1), (others, 9):
        saved(nb, cells)


# --- the same in Notebook 7


def test_tuner_and_browser_in_notebook_7(notebook7, tmp_path):
    run = make_all(tmp_path / "run")
    nb = notebook7.open([TUNER.format(**run), BROWSER.format(**run)])
    nb.slider("Threshold").focus()
    found = [nb.latency("ArrowLeft", SCORES, IMAGE) for _ in range(4)]
    assert all(f["text"] for f in found) and any(f["image"] for f in found)
    nb.until("tuner.rules[0].thresh == 124")
    gallery = nb.page.locator(".steel-gallery")
    nb.page.wait_for_function(
        "(all => all.length === 8 && all.every(i => "
        "i.naturalWidth))([...document.querySelectorAll('.steel-gallery img')])"
    )
    gallery.locator("button").nth(3).click()
    nb.page.keyboard.press("n"), nb.page.keyboard.press("f")
    nb.until("[f.image_id for f in browser.flags] == [browser.ids[4]]")
    before = cells_of(nb)
    for key in ("a", "b", "d", "d", "x"):
        gallery.press(key)
    nb.page.get_by_text(f"{nb.value('browser.ids[4]')} · mean Dice").wait_for()
    assert cells_of(nb) == before == 2
    nb.fine()
