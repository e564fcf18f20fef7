"""What widgets are made of, in JupyterLab, Notebook 7 and Voilà, with real keys and a real mouse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from in_step import ROOT
from live import FrontEnd
from made import HOSTILE, make_run

PARTS = """
import numpy as np
from steel_seg.synth import make_strip
from steel_seg.look.parts import Gallery, MarkedPicture, Picker, StripView
from steel_seg.viz import compare_layer, mask_layer, to_png
strip = make_strip(np.random.default_rng(5), shape=(64, 400), classes=(0, 2))
"""
VIEW = """
view = StripView(strip.image.shape, ("image", "labels", "difference"), title="strip 5")
layers = [compare_layer(strip.labels, np.roll(strip.labels, k, 2)) for k in range(20)]
view.show({"image": strip.image, "labels": mask_layer(strip.labels), "difference": layers[5]})
view"""
GALLERY = """
page, heard = Gallery(10, hears=("n", "d", "x", "ArrowRight")), []
page.on_key(heard.append)
thumbs = [to_png(np.roll(strip.image, 8*k, 1)[:, :100]) for k in range(50)]
page.show(thumbs, [f"strip {k}" for k in range(50)], [k % 7 == 0 for k in range(50)])
page"""
MARKED = """
dot = lambda x, y: {"x": x, "y": y, "name": "now", "colour": "#d55e00", "shape": "dot"}
marked = MarkedPicture(picture=to_png(strip.image), marks=(dot(.5, .2), {**dot(.1, .9), "name": "best",
  "shape": "ring"}), title="surface", width=800)
marked"""
PICKER = """
picker = Picker([f"{k:04}.png" for k in range(12568)], note=", worst first")
picker.ids = tuple(f"{k:04}.png" for k in range(100))
picker.image_id = "0003.png"
picker"""


@pytest.fixture(scope="module")
def nb(lab):
    "One notebook with one of each."
    return lab.open([PARTS, VIEW, GALLERY, MARKED, PICKER], name="parts")


@pytest.fixture(autouse=True)
def fine(request):
    "Whatever a test does to the notebook, nothing goes wrong in the browser, and nothing is fetched."
    yield
    if "nb" in request.fixturenames:
        request.getfixturevalue("nb").fine()


def frame_of(nb):
    frame = nb.page.locator(".steel-frame")
    nb.run("view.zoom, view.left, view.top, view.shown = 1, 0, 0, view.names")
    frame.scroll_into_view_if_needed()
    return frame


def seen(nb, alt):
    "Whether a layer can be seen: its element is shown and holds a picture."
    return nb.page.locator(f".steel-frame img[alt='{alt}']").evaluate(
        "i => i.style.display !== 'none' && i.style.visibility !== 'hidden' && i.naturalWidth > 0"
    )


# --- a strip in layers


def test_layers_are_switched_by_box_and_by_digit(nb):
    frame = frame_of(nb)
    assert all(seen(nb, name) for name in ("image", "labels", "difference"))
    nb.page.get_by_label("labels").uncheck()
    nb.until("view.shown == ('image', 'difference')")
    assert not seen(nb, "labels") and seen(nb, "difference")
    frame.press("3")
    nb.until("view.shown == ('image',)")
    frame.press("2")
    nb.until("view.shown == ('image', 'labels')")
    assert (
        seen(nb, "labels")
        and nb.page.get_by_label("labels").is_checked()
        and not nb.page.get_by_label("difference").is_checked()
    )
    frame.press("4")  # there is no fourth
    nb.run("view.shown = ('difference',)")
    nb.page.wait_for_function("document.querySelector('.steel-frame img[alt=image]').style.display === 'none'")
    assert seen(nb, "difference") and not seen(nb, "labels")


def test_keys_and_wheel_zoom(nb):
    frame = frame_of(nb)
    frame.press("+")
    nb.until("view.zoom == 1.25")
    assert "1.3×" in nb.page.locator(".steel-tools").inner_text()
    frame.press("-")
    nb.until("view.zoom == 1 and view.left == view.top == 0")
    box = frame.bounding_box()
    at = box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"]
    nb.page.mouse.click(*at)
    nb.page.mouse.wheel(0, -100)
    nb.until("view.zoom == 1.25")
    left, top = nb.value("[view.left, view.top]")
    assert left + 0.8 / 1.25 == pytest.approx(0.8, abs=0.01) and top + 0.5 / 1.25 == pytest.approx(
        0.5, abs=0.01
    )  # what is under the pointer stays there
    for _ in range(20):
        nb.page.mouse.wheel(0, -100)
    nb.until("view.zoom == 16")
    assert "scale(16)" in nb.page.locator(".steel-stack").get_attribute("style")
    frame.press("0")
    nb.until("view.zoom == 1 and view.left == view.top == 0")


def test_the_wheel_scrolls_the_page_until_the_picture_was_clicked(nb):
    frame = frame_of(nb)
    nb.page.locator(".steel-gallery").focus()
    box = frame.bounding_box()
    nb.page.mouse.move(box["x"] + 50, box["y"] + 50)
    nb.page.mouse.wheel(0, -100)
    nb.page.wait_for_timeout(100)
    assert nb.value("view.zoom") == 1


def test_dragging_pans_no_further_than_the_picture(nb):
    frame = frame_of(nb)
    nb.run("view.zoom, view.left, view.top = 4, .3, .3")
    nb.page.wait_for_function("document.querySelector('.steel-stack').style.transform.startsWith('scale(4)')")
    box = frame.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(dx):
        return (
            nb.page.mouse.move(x, y),
            nb.page.mouse.down(),
            nb.page.mouse.move(x + dx, y, steps=5),
            nb.page.mouse.up(),
        )

    drag(-200)
    nb.until(f"abs(view.left - (.3 + 200/{box['width']}/4)) < .01")
    assert nb.value("view.top") == pytest.approx(0.3, abs=0.01)
    for _ in range(4):
        drag(500)
    nb.until("view.left == 0")
    nb.page.mouse.move(x, y)  # no button is down
    assert nb.value("view.left") == 0


def test_contrast_is_a_filter_of_the_lowest_layer(nb):
    frame_of(nb)
    nb.page.get_by_label("Contrast").fill("2.5")
    nb.until("view.contrast == 2.5")
    filters = nb.page.locator(".steel-stack img").evaluate_all("all => all.map(i => i.style.filter)")
    assert filters == ["contrast(2.5) brightness(1)", "", ""]
    nb.page.get_by_label("Contrast").dblclick()
    nb.until("view.contrast == 1")


def test_a_layer_changes_in_place_and_is_never_blank(nb):
    frame_of(nb)
    nb.page.evaluate("""() => {
      const img = window.steelImg = document.querySelector(".steel-frame img[alt=difference]");
      window.steelSeen = { sources: 0, blank: 0 };
      const gone = () => img.style.visibility === "hidden" || !img.isConnected || !img.complete || !img.naturalWidth;
      const look = () => { if (gone()) steelSeen.blank++ };
      new MutationObserver(all => { steelSeen.sources += all.filter(m => m.attributeName === "src").length; look() })
        .observe(img.parentNode, { subtree: true, attributes: true, childList: true });
      const each = () => { look(); if (window.steelImg) requestAnimationFrame(each) };
      each();
    }""")
    nb.run("import time\nfor layer in layers:\n    view.show({'difference': layer}); time.sleep(.03)")
    last = nb.page.evaluate(
        "() => new Promise(f => setTimeout(f, 300)).then(() => [steelImg === document.querySelector('.steel-frame "
        "img[alt=difference]'), steelSeen.blank, steelSeen.sources])"
    )
    nb.page.evaluate("window.steelImg = null")
    same, blank, sources = last
    assert same and blank == 0 and sources >= 10
    nb.run("view.show({'difference': None})")
    nb.page.wait_for_function(
        "document.querySelector('.steel-frame img[alt=difference]').style.visibility === 'hidden'"
    )
    nb.run("view.show({'difference': layers[5]})")
    nb.page.wait_for_function("document.querySelector('.steel-frame img[alt=difference]').style.visibility === ''")


# --- a page of thumbnails


def test_fifty_thumbnails_and_a_choice(nb):
    cells = nb.page.locator(".steel-gallery button")
    assert cells.count() == 50
    nb.page.wait_for_function(
        "[...document.querySelectorAll('.steel-gallery img')].every(i => i.complete && i.naturalWidth)"
    )
    assert nb.page.locator(".steel-gallery .steel-mark").count() == 8
    cells.nth(17).click()
    nb.until("page.chosen == 17")
    assert nb.page.locator(".steel-chosen").all_inner_texts() == ["strip 17"]
    nb.run("page.chosen = 3; page.mark([k == 3 for k in range(50)])")
    nb.page.wait_for_function(
        "document.querySelector('.steel-chosen').innerText.includes('strip 3') && "
        "document.querySelectorAll('.steel-mark').length === 1"
    )
    nb.run("page.show(thumbs[:2], ['a', 'b'])")
    nb.page.wait_for_function(
        "document.querySelectorAll('.steel-gallery button').length === 2 && !document.querySelector('.steel-chosen')"
    )
    nb.run("page.show(thumbs, [f'strip {k}' for k in range(50)])")
    nb.page.wait_for_function("document.querySelectorAll('.steel-gallery button').length === 50")


def test_keys_are_heard_by_the_widget_and_not_by_jupyterlab(nb):
    def count():
        return nb.page.evaluate("jupyterapp.shell.currentWidget.content.widgets.length")

    before = count()
    nb.run("heard.clear()")
    nb.page.locator(".steel-gallery button").nth(4).click()  # and so the page has the focus
    for key in ("d", "d", "x", "n", "ArrowRight", "q", "Control+d"):
        nb.page.keyboard.press(key)
    nb.until("len(heard) == 5")
    assert nb.value("heard") == ["d", "d", "x", "n", "ArrowRight"]
    for key in ("a", "b", "z", "d", "d", "x"):  # to JupyterLab: cell above, below, undo, delete, cut
        nb.page.locator(".steel-frame").press(key)
    nb.page.wait_for_timeout(100)
    assert count() == before


# --- a picture with markers


def test_a_click_says_where_it_was(nb):
    img = nb.page.locator(".steel-marked img")
    img.scroll_into_view_if_needed()
    box = img.bounding_box()
    for x, y in [(0.25, 0.5), (0.9, 0.1), (0.02, 0.97)]:
        img.click(position={"x": x * box["width"], "y": y * box["height"]})
        nb.until(f"np.allclose(marked.clicked, ({x}, {y}), atol=.01)")
    dot = nb.page.locator(
        ".steel-marked i"
    ).first.bounding_box()  # a marker lies where it says, and a click goes through it
    assert (dot["x"] + dot["width"] / 2 - box["x"]) / box["width"] == pytest.approx(0.5, abs=0.01)
    assert (dot["y"] + dot["height"] / 2 - box["y"]) / box["height"] == pytest.approx(0.2, abs=0.01)
    img.click(position={"x": 0.5 * box["width"], "y": 0.2 * box["height"]})
    nb.until("np.allclose(marked.clicked, (.5, .2), atol=.01)")


def test_markers_move_and_the_picture_stays(nb):
    source = "document.querySelector('.steel-marked img').src"
    before = nb.page.evaluate(source)
    nb.run(
        "sent = []\nreal = marked.comm.send\nmarked.comm.send = lambda data=None, *a, **k: "
        "(sent.append(sorted(data.get('state', {}))), real(data, *a, **k))"
    )
    for k in range(10):
        nb.run(f"marked.marks = (dot({k / 10}, .5),)")
    nb.page.wait_for_function(
        "document.querySelectorAll('.steel-marked i').length === 1 && document.querySelector('.steel-marked "
        "i').style.left === '90%'"
    )
    assert nb.page.evaluate(source) == before
    sent = nb.value("sent")
    nb.run("del marked.comm.send")
    assert len(sent) == 10 and all(state == ["marks"] for state in sent)


# --- a way through a list


def test_an_id_is_typed(nb):
    field = nb.page.get_by_label("Image id")
    field.fill("0042.png"), field.press("Enter")
    nb.until("picker.image_id == '0042.png' and picker.number.value == 43")
    field.fill("<b>nobody</b>"), field.press("Enter")
    nb.page.get_by_text("no image '<b>nobody</b>'").wait_for()
    assert nb.value("picker.image_id") == "0042.png" and field.input_value() == "0042.png"
    field.fill("12000.png"), field.press("Enter")
    nb.page.get_by_text("of 100, worst first (this one is not among them)").wait_for()


def test_stepping_and_numbers(nb):
    nb.run("picker.image_id = '0003.png'")
    nb.page.get_by_role("button", name="Next").click()
    nb.until("picker.image_id == '0004.png'")
    nb.page.get_by_role("button", name="Previous").click()
    nb.until("picker.image_id == '0003.png'")
    number = nb.page.get_by_role("spinbutton", name="Number")
    number.fill("100"), number.press("Enter")
    nb.until("picker.image_id == '0099.png'")
    nb.page.wait_for_function(
        "[...document.querySelectorAll('button')].some(b => b.innerText.includes('Next') && b.disabled)"
    )


# --- what is true of all


def test_it_fits_a_screen_of_1280(nb):
    wide = nb.page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.scrollWidth - o.clientWidth)"
    )
    assert max(wide) <= 1
    edges = nb.page.evaluate(
        "[...document.querySelectorAll('.steel-frame, .steel-gallery, .steel-marked, .steel-tools, "
        ".widget-text')].map(e => e.getBoundingClientRect().right)"
    )
    assert len(edges) >= 5 and max(edges) <= 1280


def test_text_stays_text(lab):
    hostile = [*HOSTILE, "<script>alert(3)</script>", "</span><iframe src='javascript:alert(4)'>"]
    nb = lab.open(
        [
            PARTS,
            f"hostile = {hostile!r}",
            "view = StripView(strip.image.shape, hostile[:6], title=hostile[0])\nview.show({hostile[0]: "
            "strip.image})\nview",
            "page = Gallery(3)\npage.show([to_png(strip.image)]*len(hostile), hostile, [True]*len(hostile))\npage",
            "marked = MarkedPicture(picture=to_png(strip.image), title=hostile[0], marks=tuple({'x': .5, 'y': .5, "
            "'name': t, 'colour': 'red', 'shape': 'dot'} for t in hostile))\nmarked",
            "picker = Picker(hostile, note=hostile[0])\npicker.ids = tuple(hostile)\npicker",
        ]
    )
    tags = nb.page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output *')].map(e => e.tagName.toLowerCase())"
    )
    assert {"button", "img", "label"} <= set(tags) and not set(tags) & {"script", "iframe", "svg", "object", "embed"}
    assert nb.page.locator(".steel-gallery span").all_text_contents() == hostile
    assert nb.page.locator(".steel-frame").get_attribute("aria-label") == hostile[0]
    for k, text in enumerate(hostile):
        nb.run(f"picker.go({k})")
        nb.page.wait_for_function(
            "text => [...document.querySelectorAll('.widget-text input')].some(i => i.value === text)", arg=text
        )
        nb.page.get_by_label("Image id").fill(text + "<i>?"), nb.page.get_by_label("Image id").press("Enter")
        nb.page.get_by_text("no image").wait_for()
    own = nb.page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output *')].filter(e => [...e.attributes].some(a => "
        "a.name.startsWith('on')) || (e.tagName === 'IMG' && e.getAttribute('src') === 'x')).map(e => e.outerHTML)"
    )
    assert not own, own
    wide = nb.page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.scrollWidth - o.clientWidth)"
    )
    assert max(wide) <= 1, wide  # a name of 180 letters pushes nothing aside
    nb.fine()  # an alert would be an error


def test_a_saved_notebook_holds_no_widget_state(lab):
    nb = lab.open([PARTS, VIEW], name="saved")
    nb.menu("docmanager:save")
    saved = json.loads(nb.path.read_text(encoding="utf-8"))
    assert saved["cells"][1]["outputs"] and "widgets" not in saved["metadata"]
    assert nb.path.stat().st_size < 20_000  # and no layer of a picture
    nb.close()
    lab.opened.remove(nb)
    again = lab.look(nb.path, run=False)
    again.page.get_by_text("Error displaying widget").or_(again.page.get_by_text("Loading widget")).or_(
        again.page.get_by_text("StripView(")
    ).first.wait_for()
    again.menu("docmanager:save")
    assert "widgets" not in json.loads(nb.path.read_text(encoding="utf-8"))["metadata"]
    again.run_all()
    again.page.locator(".steel-frame img[alt=difference]").wait_for()
    assert not again.fetched


@pytest.mark.parametrize("front", ["notebook7", "voila"])
def test_the_same_parts_elsewhere(request, front):
    end: FrontEnd = request.getfixturevalue(front)
    nb = end.open([PARTS, VIEW, PICKER])
    nb.page.wait_for_function(
        "[...document.querySelectorAll('.steel-frame img')].length === 3 && "
        "[...document.querySelectorAll('.steel-frame img')].every(i => i.naturalWidth)"
    )
    nb.page.locator(".steel-frame").press("2")
    nb.page.wait_for_function("document.querySelector('.steel-frame img[alt=labels]').style.display === 'none'")
    nb.page.get_by_role("button", name="Next").click()
    nb.page.wait_for_function(
        "[...document.querySelectorAll('.widget-text input')].some(i => i.value === '0004.png')"
    )  # there and back through the kernel
    nb.fine()


# --- the tuner as an app


def app(voila, name, **environ):
    "A copy of the app's notebook, with these variables set in its first cell."
    cells = json.loads((ROOT / "nbs/app.ipynb").read_text(encoding="utf-8"))
    first = {
        **cells["cells"][-1],
        "id": "first",
        "source": f"import os\nos.environ.pop('STEEL_SEG_RUN', None)\nos.environ.update({environ!r})",
    }
    path = voila.server.root / name
    path.write_text(json.dumps({**cells, "cells": [first, *cells["cells"]]}), encoding="utf-8")
    return voila.look(path)


def test_the_app_shows_something_without_a_run(voila):
    nb = app(voila, "made_up.ipynb")
    image = ".steel-tuner .steel-frame img[alt='difference']"
    nb.page.wait_for_function(f'document.querySelector("{image}")?.naturalWidth > 0')
    assert (
        "All of this is made up" in nb.page.locator("body").inner_text()
        and "from steel_seg" not in nb.page.locator("body").inner_text()
    )
    nb.slider("Threshold").focus()
    found = [nb.latency("ArrowRight", ".steel-tuner .steel-scores", image) for _ in range(5)]
    assert any(f["text"] for f in found) and any(f["image"] for f in found)
    nb.page.get_by_role("button", name="Save rule").click()
    assert nb.page.evaluate("document.documentElement.scrollWidth") <= 1280
    if os.environ.get("STEEL_SEG_SHOTS"):
        nb.shot(Path(os.environ["STEEL_SEG_SHOTS"]) / "app.png")
    nb.fine()


def test_the_app_shows_a_run_or_says_what_is_wrong_with_it(voila, tmp_path):
    run = make_run(tmp_path / "run", n=4, shape=(64, 400), classes=4, ids=HOSTILE[:4])
    nb = app(voila, "run.ipynb", STEEL_SEG_RUN=str(run))
    nb.page.locator(".steel-tuner .steel-frame").wait_for()
    assert f"The run {run}." in nb.page.locator("body").inner_text()
    nb.fine()
    nb = app(voila, "none.ipynb", STEEL_SEG_RUN=str(tmp_path / "<img src=x onerror=alert(1)>"))
    nb.page.get_by_text("There is nothing to show").wait_for()
    assert "<img src=x onerror=alert(1)>" in nb.page.locator("body").inner_text()
    nb.fine()


def test_icons_of_buttons_are_there_without_a_network():
    style = (ROOT / "nbs/voila/templates/steel/index.html.j2").read_text(encoding="utf-8")
    used = {
        icon
        for path in (ROOT / "steel_seg").rglob("*.py")
        for icon in re.findall(r'icon="([\w-]+)"', path.read_text(encoding="utf-8"))
    }
    assert used and not {icon for icon in used if f".fa-{icon}::before" not in style}


def test_latency_and_drags_are_measured(lab):
    "The harness itself: what is slow is measured as slow, and a drag ends where the keys end."
    nb = lab.open(
        [
            """
import time
from ipywidgets import HTML, SelectionSlider, VBox
slow, said = SelectionSlider(options=range(100), value=50, description="Slow"), HTML()
said.add_class("said")
slow.observe(lambda change: (time.sleep(.15), setattr(said, "value", f"<b>{change.new}</b>")), "value")
VBox([slow, said])"""
        ]
    )
    nb.slider("Slow").focus()
    assert nb.latency("ArrowRight", ".said")["text"] > 150
    assert nb.latency("q", ".said", within=200) == {"text": None, "image": None}
    drag = nb.drag(["ArrowRight"] * 20 + ["ArrowLeft"] * 5, ".said", quiet=3000)
    assert drag["settle"] > 0 and 0 < drag["changes"] <= 25
    nb.page.wait_for_function("document.querySelector('.said').innerText === '66'")
    assert nb.value("slow.value") == 66
    nb.fine()


def test_without_a_browser_tests_skip_but_not_in_ci(tmp_path):
    "In a process of its own, where no program is on the PATH."
    (tmp_path / "test_it.py").write_text("from live import browser, browser_home\ndef test_it(browser): pass\n")
    (tmp_path / "conftest.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n")
    env = {**os.environ, "PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}
    for name in ("CI", "STEEL_SEG_BROWSER"):
        env.pop(name, None)

    def run(**more):
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rsE", "-p", "no:cacheprovider", str(tmp_path)],
            env={**env, **more},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    skipped, failed = run(), run(CI="1")
    assert skipped.returncode == 0 and "1 skipped" in skipped.stdout and "STEEL_SEG_BROWSER" in skipped.stdout, (
        skipped.stdout
    )
    assert failed.returncode == 1 and "1 error" in failed.stdout and "no Chromium or Chrome" in failed.stdout, (
        failed.stdout
    )


def test_errors_and_fetches_are_noticed(lab):
    "The harness itself: what it is there to find, it finds."
    nb = lab.open(["1"])
    nb.page.evaluate(
        "console.error('so it is'); fetch('http://steel.example/x').catch(() => 0); setTimeout(() => { throw new "
        "Error('thrown') }); alert('hey')"
    )
    nb.page.wait_for_timeout(100)
    text = " ".join(nb.errors)
    assert all(word in text for word in ("so it is", "thrown", "alert: hey")) and nb.fetched == [
        "http://steel.example/x"
    ]
    with pytest.raises(AssertionError):
        nb.fine()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        nb.run("1/0")
    with pytest.raises(RuntimeError, match="no such thing"):
        lab.open(["raise ValueError('no such thing')"])
