"""The browser without a screen: tables, orders, pictures and files against slow loops over masks and levels."""

import asyncio
import io
import os
import signal
import time
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from ipywidgets import HTML, BoundedIntText, Button, Dropdown, IntSlider, Text
from made import CASES, HOSTILE, ODD_PIECES, Tags, make_run, only_our_tags, parts, pixels, slow_dice, slow_scores
from PIL import Image

import steel_seg.look.browse as browse
import steel_seg.look.thumbs as thumbs_module
import steel_seg.relabel as relabel
from steel_seg.data import read_folder
from steel_seg.image_table import (
    find_twins,
    image_table,
    least_disagreement,
    mask_disagreement,
    suspicion,
    worst_first,
)
from steel_seg.look.browse import Browser, image_facts
from steel_seg.look.parts import legend_html
from steel_seg.look.thumbs import Thumbs, _shrink
from steel_seg.open_run import make_up_run, open_run
from steel_seg.post import Rule, apply_rules
from steel_seg.relabel import REASONS, Flag, read_queue, write_queue
from steel_seg.store import FLOOR
from steel_seg.synth import make_folder
from steel_seg.viz import COMPARE


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    "A folder of twelve strips, two runs on it with folds and components, and twins with and without the same labels."
    here = tmp_path_factory.mktemp("twelve")
    make_folder(here / "mill", n_train=12, n_test=0, shape=(64, 400), seed=4)
    images, rows = (
        here / "mill" / "train_images",
        pd.read_csv(here / "mill" / "train.csv", dtype=str, keep_default_na=False),
    )
    marked = rows[rows.EncodedPixels != ""].ImageId.unique().tolist()
    for n, i in enumerate(marked[:2]):
        (images / f"twin{n}.jpg").write_bytes((images / i).read_bytes())
    rows = pd.concat([rows, rows[rows.ImageId == marked[0]].assign(ImageId="twin0.jpg")])  # the other twin has no label
    rows.to_csv(here / "mill" / "train.csv", index=False)
    folder = read_folder(here / "mill", n_classes=4)
    return (
        folder,
        make_up_run(here / "a", folder, np.random.default_rng(0), folds=3),
        make_up_run(here / "b", folder, np.random.default_rng(1)),
        marked[:2],
    )


# --- numbers


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_what_masks_say(runs, name):
    data = open_run(runs[name])
    rules = [Rule(90 + 30 * k, min_area=(0, 300)[k % 2]) for k in range(data.folder.n_classes)]
    table, scores = image_table(data, rules), slow_scores(data, rules)
    assert tuple(table.index) == tuple(data.folder.images.image_id) and table.index.is_unique
    assert table.loss.sum() == pytest.approx(1 - scores.mean())
    for n, i in enumerate(data.store.image_ids):
        truth, pred, row = data.folder.mask(i) > 0, apply_rules(data.store.read(i), rules) > 0, table.loc[i]
        assert row.dice == pytest.approx(scores[n].mean()) and row.loss == pytest.approx(
            (1 - scores[n]).sum() / scores.size
        )
        assert row.classes == "+".join(str(k + 1) for k, m in enumerate(truth) if m.any())
        assert (row.labelled, row.predicted) == (truth.sum(), pred.sum())
        assert row.false_alarms == sum(bool(p.any()) and not t.any() for p, t in zip(pred, truth))
        assert row.missed == sum(bool(t.any()) and not (p & t).any() for p, t in zip(pred, truth))
        for k in range(len(rules)):
            assert [row[f"{c} {k + 1}"] for c in ("labelled", "predicted", "dice")] == [
                truth[k].sum(),
                pred[k].sum(),
                pytest.approx(scores[n, k]),
            ]


def test_rules_that_were_not_counted_are_scored_by_masks(runs):
    data, rules = open_run(runs["squares"]), [Rule(80, fill_holes=True), Rule(90, min_component=40), Rule()]
    assert data.curves.filled is None
    assert image_table(data, rules).dice.to_numpy() == pytest.approx(slow_scores(data, rules).mean(1))


@pytest.mark.parametrize("name", CASES)
def test_suspicion_is_that_of_the_pixels(runs, name):
    data = open_run(runs[name])
    masks = {i: data.folder.mask(i) > 0 for i in data.store.image_ids}
    sizes = [[m[k].sum() for m in masks.values() if m[k].any()] for k in range(data.folder.n_classes)]
    slow = np.zeros((len(masks), len(sizes)))
    for n, (i, mask) in enumerate(masks.items()):
        for k, y in enumerate(mask):
            p = data.store.read(i)[k].astype(float) / 255
            if y.any():
                slow[n, k] = 1 - 2 * p[y].sum() / (p.sum() + y.sum())
            elif (p >= 128 / 255).any():
                slow[n, k] = p[p >= 128 / 255].mean() * min(
                    1, (p >= 128 / 255).sum() / (np.median(sizes[k]) if sizes[k] else 1)
                )
    assert suspicion(data.curves) == pytest.approx(slow, abs=1e-12)
    assert (suspicion(data.curves) > 0).any()


def test_suspicion_above_a_high_floor(runs):
    curves = open_run(runs["strips"]).curves
    high = replace(curves, floor=150)
    assert (suspicion(high)[curves.truth > 0] == suspicion(curves)[curves.truth > 0]).all()
    empty = (curves.truth == 0) & (curves.area[:, :, 150] > 0)
    n, k = np.argwhere(empty)[0]
    sure = curves.area[n, k, 150]
    levels = 150 * int(sure) + curves.area[n, k, 151:].sum()
    assert suspicion(high)[n, k] == pytest.approx(
        levels / 255 / sure * min(1, sure / np.median(curves.truth[curves.truth[:, k] > 0, k]))
    )


def test_two_runs_disagree_at_least_as_much_as_their_counts_say(twelve):
    folder, a, b, _ = twelve
    rules, table, exact = (Rule(),) * 4, image_table(a, other=b), mask_disagreement(a, b)
    for i in a.store.image_ids:
        pred, theirs = (apply_rules(x.store.read(i), rules) for x in (a, b))
        slow = 1 - np.mean([slow_dice(p, q) for p, q in zip(pred, theirs)])
        assert exact[i] == pytest.approx(slow) and 0 <= table.disagreement[i] <= slow + 1e-12
    assert (image_table(a, other=a).disagreement == 0).all() and table.disagreement.max() > 0.2
    area = np.array([[100, 100, 0, 50]])
    assert least_disagreement(
        area, np.array([[100, 0, 0, 0]]), np.array([[100, 100, 0, 0]]), np.array([[0, 0, 0, 0]])
    ).tolist() == [[1, 0, 0, 1]]


def test_twins(twelve):
    folder, a, _, (same, other) = twelve
    twins = find_twins(folder)
    assert twins.duplicate[[other, "twin1.jpg", same, "twin0.jpg"]].tolist() == [1, 1, 2, 2]
    assert (
        twins.labels_differ[twins.labels_differ].index.tolist() == sorted([other, "twin1.jpg"])
        and (twins.duplicate > 0).sum() == 4
    )
    widget = Browser(a)
    assert "duplicate" not in widget.table
    widget.sort = "suspicion"
    assert set(widget.ids[:2]) == {other, "twin1.jpg"} and widget.table.suspicion.max() > 1
    assert "labels differ" in widget.parts.large.plain and widget.ids[1] in widget.parts.large.plain
    widget.only, widget.sort = "duplicates", "duplicate"
    assert [set(widget.ids[:2]), set(widget.ids[2:])] == [{other, "twin1.jpg"}, {same, "twin0.jpg"}]
    assert list(Browser(folder).table) and "suspicion" not in Browser(folder).table


# --- lists


def lists(data, rules):
    "By hand: for every image its labelled classes, predicted classes, missed classes."
    out = {}
    for i in data.folder.images.image_id:
        truth, pred = data.folder.mask(i) > 0, apply_rules(data.store.read(i), rules) > 0
        out[i] = [
            {k for k in range(len(truth)) if f(truth[k], pred[k])}
            for f in (
                lambda t, p: t.any(),
                lambda t, p: p.any() and not t.any(),
                lambda t, p: t.any() and not (t & p).any(),
            )
        ]
    return out


@pytest.mark.parametrize("name", ["strips", "squares", "no defect"])
def test_filters(runs, name):
    widget = Browser(runs[name], rules=[Rule(190)] * CASES[name]["classes"])
    known = lists(widget.opened, widget.rules)
    n_matches = 0
    for show in widget.parts.list.menus["show"].options:
        for only in ("all", "false alarm", "missed"):
            widget.show, widget.only = show, only
            classes = {int(show[6:]) - 1} if show.startswith("class") else set(range(4))
            wanted = {
                i
                for i, (labelled, false, missed) in known.items()
                if (
                    not (show == "clean" and labelled)
                    and (only != "all" or show in ("all", "clean") or labelled & classes)
                    and (only != "false alarm" or false & classes)
                    and (only != "missed" or missed & classes)
                )
            }
            assert set(widget.ids) == wanted, (show, only)
            assert widget.image_id == (widget.ids[0] if wanted else "")
            n_matches += len(wanted)
    assert n_matches


def test_folds(twelve):
    widget = Browser(twelve[1])
    seen = []
    for k in range(3):
        widget.fold = k
        assert set(widget.ids) == {i for i, f in zip(twelve[1].store.image_ids, twelve[1].fold) if f == k}
        seen += widget.ids
    assert sorted(seen) == sorted(widget.folder.images.image_id) and "fold 2" in widget.parts.large.plain
    with pytest.raises(ValueError, match="fold 3: give one of None, 0, 1, 2"):
        widget.fold = 3


def test_orders(runs):
    own = pd.DataFrame({"image_id": [f"{k:04}.png" for k in (3, 0, 7)], "light": [0.5, 2, -1], "who": ["b", None, "a"]})
    widget = Browser(runs["strips"], columns=own)
    scores = dict(zip(widget.opened.store.image_ids, slow_scores(widget.opened, widget.rules)))
    assert widget.sort == "dice" and [scores[i].mean() for i in widget.ids] == sorted(s.mean() for s in scores.values())
    widget.show = "class 2"
    assert [scores[i][1] for i in widget.ids] == sorted(scores[i][1] for i in widget.ids) and len(widget.ids) == 7
    widget.rising = False
    assert [scores[i][1] for i in widget.ids] == sorted((scores[i][1] for i in widget.ids), reverse=True)
    widget.show, widget.sort = "all", "labelled"
    area = dict(zip(widget.folder.images.image_id, widget.folder.truth_area().sum(1)))
    assert not widget.rising and [area[i] for i in widget.ids] == sorted(area.values(), reverse=True)
    widget.sort = "light"
    assert widget.ids[:3] == ("0000.png", "0003.png", "0007.png")
    widget.rising = True
    assert widget.ids[:3] == ("0007.png", "0003.png", "0000.png")  # what has none comes last either way
    widget.sort, widget.rising = "who", True
    assert widget.ids[:2] == ("0007.png", "0003.png")
    widget.sort = "id"
    assert widget.rising and list(widget.ids) == sorted(widget.ids)
    for name in widget.table.columns:
        widget.sort = name
        assert sorted(widget.ids) == sorted(scores)


def test_ties_go_by_size_and_order():
    rng = np.random.default_rng(0)
    scores, size = rng.integers(0, 4, 60) / 3, rng.integers(0, 3, 60)
    assert worst_first(scores, size).tolist() == sorted(range(60), key=lambda n: (scores[n], -size[n], n))


@pytest.mark.parametrize(
    "columns,says",
    [
        (pd.DataFrame({"dice": [1.0]}, index=["0000.png"]), "'dice' is a name of the browser's own"),
        (pd.DataFrame({"a": [1, 2]}, index=["0000.png"] * 2), "two rows for image '0000.png'"),
        (pd.DataFrame({"a": [1]}, index=["nobody"]), "no row is of an image of this folder"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"], index=["0000.png"]), "two have the same name"),
    ],
)
def test_columns_that_do_not_fit(runs, columns, says):
    with pytest.raises(ValueError, match=says):
        Browser(runs["strips"], columns=columns)


def test_stepping_pages_and_keys(tmp_path):
    folder = read_folder(make_folder(tmp_path / "mill", n_train=120, n_test=0, shape=(32, 200), seed=1), n_classes=4)
    widget = Browser(folder)
    pages, picker, page = widget.parts.pages, widget.parts.picker, widget.parts.pages.gallery

    def press(part, key):
        part._handle_custom_msg({"key": key}, [])

    assert len(page.captions) == 50 and all(page.pictures) and page.chosen == 0 and pages.message.value == "Page 1 of 3"
    (
        press(page, "n"),
        press(page, "ArrowRight"),
        press(widget.parts.large.view, "n"),
        press(page, "ArrowLeft"),
        press(page, "x"),
    )
    assert widget.image_id == widget.ids[2] and page.chosen == 2 and picker.number.value == 3
    page.chosen = 49  # a click
    assert widget.image_id == widget.ids[49]
    press(page, "n")
    assert (
        widget.image_id == widget.ids[50] and (pages.page, page.chosen) == (1, 0) and page.captions[0] == widget.ids[50]
    )
    press(page, "p")
    assert widget.image_id == widget.ids[49] and (pages.page, page.chosen) == (0, 49)
    pages.on.click(), pages.on.click()
    assert widget.image_id == widget.ids[100] and len(page.captions) == 20 and pages.on.disabled
    press(page, "f")
    assert page.marks == [True] + [False] * 19 and widget.queue.image_id.tolist() == [widget.ids[100]]
    press(page, "f")
    assert not any(page.marks) and widget.flags == ()
    picker.text.value = widget.ids[7]
    assert (pages.page, page.chosen, widget.parts.box.image_id) == (0, 7, widget.ids[7])
    widget.image_id = widget.ids[-1]
    press(page, "n")
    assert widget.image_id == widget.ids[-1]


def test_new_rules_leave_us_where_we_are(runs):
    widget = Browser(runs["strips"])
    widget.show = "class 2"
    widget.press("n")
    here, before = widget.image_id, widget.parts.large.view.layer3
    widget.rules = (Rule(60),) * 4
    assert widget.image_id == here and widget.parts.large.view.layer3 != before
    scores = dict(zip(widget.folder.images.image_id, slow_scores(widget.opened, widget.rules)))
    assert [scores[i][1] for i in widget.ids] == sorted(scores[i][1] for i in widget.ids)
    assert widget.parts.pages.gallery.captions[widget.ids.index(here)] == f"{scores[here][1]:.3f} · {here}"


# --- pictures


def layer(widget, name):
    "A layer as (H,W,4)."
    view = widget.parts.large.view
    return np.array(Image.open(io.BytesIO(getattr(view, f"layer{view.names.index(name)}"))).convert("RGBA"))


@pytest.mark.parametrize("name", ["strips", "squares", "hostile ids", "no defect"])
def test_layers_show_these_pixels_and_no_others(runs, name):
    other = make_up_run(
        runs[name].parent / "other",
        read_folder(runs[name] / "data", n_classes=CASES[name]["classes"]),
        np.random.default_rng(0),
    )
    widget = Browser(runs[name], other=other)
    data = widget.opened
    for i in widget.ids:
        widget.image_id = i
        truth, levels, theirs = data.folder.mask(i) > 0, data.store.read(i), other.store.read(i)
        pred = levels >= 128
        assert np.array_equal(layer(widget, "image")[..., 0], data.folder.image(i))
        for which, wanted in (("labels", truth), ("prediction", pred), ("other run", theirs >= 128)):
            assert np.array_equal(layer(widget, which)[..., 3] > 0, wanted.any(0)), which
        diff = layer(widget, "difference")
        kinds = [((truth & pred).any(0), "hit"), ((truth & ~pred).any(0), "missed"), ((pred & ~truth).any(0), "false")]
        painted = np.zeros((*diff.shape[:2], 3), int)
        for mask, kind in kinds:
            painted[mask] = COMPARE[kind]
        assert np.array_equal(diff[..., 3] > 0, painted.any(2)) and np.array_equal(
            diff[..., :3][painted.any(2)], painted[painted.any(2)]
        )
        for widget.channel in (None, 1):
            for widget.level in (FLOOR, 120):
                some = levels.max(0) if widget.channel is None else levels[1]
                assert np.array_equal(layer(widget, "probability")[..., 3] > 0, some >= widget.level)
        if name == "strips":  # of one class, the difference is of that class
            widget.show = "class 2"
            widget.image_id = i
            assert np.array_equal(layer(widget, "difference")[..., 3] > 0, truth[1] | pred[1])
            widget.show = "all"


def test_thumbnails_show_every_defect(runs):
    data = open_run(runs["strips"])
    thumbs = Thumbs(data.folder, data)
    (h, w), (hh, ww) = thumbs.room, data.folder.shape
    for i in data.store.image_ids:
        truth, pred = data.folder.mask(i) > 0, data.store.read(i) >= 128
        plain = pixels(thumbs.draw(thumbs.key(i, "image")))
        assert plain.shape == (h, w, 3) and np.ptp(plain, axis=2).max() < 12
        for paint, wanted in (
            ("labels", truth.any(0)),
            ("prediction", pred.any(0)),
            ("difference", (truth | pred).any(0)),
        ):
            tinted = np.ptp(pixels(thumbs.draw(thumbs.key(i, paint, rules=(Rule(),) * 4))), axis=2) > 40
            slow = np.zeros((h, w), bool)
            for y, x in np.argwhere(wanted):
                slow[int((y + 0.5) * h / hh), int((x + 0.5) * w / ww)] = True
            grown, core = (
                f(slow.astype(np.uint8), np.ones((5, 5))) > 0 for f in (cv2.dilate, cv2.erode)
            )  # JPEG blurs what is at an edge
            small = _shrink(wanted, thumbs.room)
            assert (slow <= small).all() and (small <= cv2.dilate(slow.astype(np.uint8), np.ones((3, 3)))).all()
            assert (
                (tinted & ~grown).mean() < 0.005
                and core.any() == (slow.sum() > 100)
                and (tinted & core).sum() >= 0.95 * core.sum()
            ), paint
    speck = np.zeros((hh, ww), bool)
    speck[33, 217] = True
    assert _shrink(speck, thumbs.room).sum() >= 1


def test_a_new_rule_reads_no_steel_and_old_thumbnails_stay(runs, monkeypatch):
    widget = Browser(runs["strips"])
    first = list(widget.parts.pages.gallery.pictures)
    monkeypatch.setattr(thumbs_module, "decode_image", lambda *a: pytest.fail("the steel was read again"))
    widget.rules = (Rule(60),) * 4
    assert widget.parts.pages.gallery.pictures != first
    widget.rules = (Rule(),) * 4
    monkeypatch.setattr(Thumbs, "_masks", lambda *a: pytest.fail("drawn again"))
    assert sorted(widget.parts.pages.gallery.pictures) == sorted(first)
    widget.parts.thumbs.most = 3
    monkeypatch.undo()
    widget.paint = "labels"
    assert len(widget.parts.thumbs._kept) <= 3 and all(widget.parts.pages.gallery.pictures)


def test_a_page_fills_while_the_loop_runs_and_only_the_last_one_counts(runs, monkeypatch):
    slow = Thumbs.draw
    monkeypatch.setattr(Thumbs, "draw", lambda self, key: (time.sleep(0.05), slow(self, key))[1])

    async def look():
        widget = Browser(runs["strips"])
        start = list(widget.parts.pages.gallery.pictures)
        widget.paint = "labels"
        widget.paint = "prediction"
        task = widget.parts.pages.drawn
        widget.press("n")
        chosen = widget.parts.pages.gallery.chosen
        await task
        return start, chosen, widget

    start, chosen, widget = asyncio.run(look())
    page = widget.parts.pages.gallery
    assert start == [b""] * 9 and chosen == page.chosen == 1
    assert page.pictures == [widget.parts.thumbs.kept(widget.parts.look(i)[0]) for i in widget.ids] and all(
        page.pictures
    )


def test_a_key_held_down_leaves_no_backlog(runs, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        browse.LargeView, "draw", lambda self, real=browse.LargeView.draw: drawn.append(self.image_id) or real(self)
    )

    async def hold():
        widget = Browser(runs["strips"])
        await asyncio.sleep(0.3)
        drawn.clear()
        for _ in range(20):
            widget.press("n")
        widget.press("p")
        at_once = list(drawn)
        widget.press("f")
        await asyncio.sleep(0.3)
        return widget, at_once

    widget, at_once = asyncio.run(hold())
    assert (
        at_once == [widget.ids[1]]
        and drawn == [widget.ids[1], widget.ids[7]]
        and widget.queue.image_id.tolist() == [widget.ids[7]]
    )


def test_an_image_that_cannot_be_read_says_so(tmp_path):
    widget = Browser(make_run(tmp_path / "run", **CASES["strips"]))
    (tmp_path / "run" / "data" / "train_images" / widget.ids[1]).write_bytes(b"\x89PNG")
    widget.press("n")
    assert "cannot" in widget.parts.large.plain or "truncated" in widget.parts.large.plain
    assert widget.parts.large.view.layout.display == "none" and len(widget.picture().data) > 5000
    widget.press("n")
    assert widget.parts.large.view.layout.display is None


def test_images_without_a_prediction_say_so_and_come_last(tmp_path):
    widget = Browser(make_run(tmp_path / "run", predicted=5, **CASES["strips"]))
    assert set(widget.ids[5:]) == set(widget.folder.images.image_id[5:]) and widget.table.dice.isna().sum() == 4
    widget.image_id = widget.ids[-1]
    assert "not predicted" in widget.parts.large.plain and "Dice" not in widget.parts.large.plain
    assert widget.parts.large.view.layer3 == widget.parts.large.view.layer2 == b"" != widget.parts.large.view.layer1
    widget.press("f")
    assert np.isnan(widget.queue.dice[0])
    for name in ("predicted", "false_alarms", "suspicion", "loss"):
        widget.sort = name
        assert set(widget.ids[5:]) == set(widget.folder.images.image_id[5:])


@pytest.mark.parametrize("name", CASES)
def test_every_control_has_a_label_and_all_images_can_be_seen(runs, name):
    for widget in (Browser(runs[name]), Browser(runs[name] / "data")):
        controls = [p for p in parts(widget) if isinstance(p, (Dropdown, Text, Button, BoundedIntText, IntSlider))]
        assert len(controls) > 10 and all(p.description for p in controls)
        assert "class 1" in widget.parts.large.legend.value
        for _ in range(len(widget.ids)):
            widget.parts.picker.on.click()
        assert widget.image_id == widget.ids[-1]
        only_our_tags(widget)


@pytest.mark.parametrize("name", CASES)
def test_a_picture_stands_in_for_the_widget(runs, name):
    for widget in (Browser(runs[name]), Browser(runs[name] / "data")):
        bundle = widget._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "application/vnd.jupyter.widget-view+json", "image/jpeg"}
        h, w, _ = pixels(widget.picture().data).shape
        assert w == 1000 and 150 < h < 1300 and len(widget.picture().data) < 500_000


def test_an_empty_list_is_said(runs):
    for widget in (Browser(runs["no defect"] / "data"), Browser(runs["no defect"])):
        widget.show = "class 2"
        assert (widget.ids, widget.image_id, widget.parts.large.view.layout.display) == ((), "", "none")
        assert "no image fits" in widget.parts.large.plain and widget.parts.pages.gallery.captions == []
        for key in "npf":
            widget.press(key)
        assert widget.flags == ()
        widget.picture()
        widget.show = "clean"
        assert len(widget.ids) == 3 and widget.parts.large.view.layout.display is None


def test_what_is_refused_changes_nothing(runs):
    plain, full = Browser(runs["strips"] / "data"), Browser(runs["strips"])
    for widget, name, value, says in [
        (plain, "show", "class 5", "'class 4'"),
        (plain, "sort", "size", "give one of 'id'"),
        (plain, "sort", "dice", "give a run"),
        (plain, "only", "missed", "give a run"),
        (plain, "rules", (Rule(),) * 4, "give a run"),
        (plain, "image_id", "x", "no image 'x'"),
        (plain, "paint", "prediction", "image, labels"),
        (full, "rules", (Rule(),) * 3, "3 rules for 4 classes"),
        (full, "rules", (), "0 rules for 4"),
        (full, "level", 0, "1..255"),
        (full, "channel", 4, "0 to 3"),
        (full, "fold", 0, "fold 0"),
        (full, "flags", ("x",), "not a Flag"),
    ]:
        before = getattr(widget, name)
        with pytest.raises(ValueError, match=says):
            setattr(widget, name, value)
        assert getattr(widget, name) == before
    with pytest.raises(ValueError, match="give the run first"):
        Browser(runs["strips"] / "data", runs["strips"])
    with pytest.raises(ValueError, match="give a run as well"):
        Browser(runs["strips"] / "data", rules=[Rule()] * 4)


# --- flags


def odd_texts(n=200):
    pieces = [
        *ODD_PIECES,
        "=1+1",
        "'",
        "\r\n",
        "\n",
        ",",
        "\t",
        "@",
        "-",
        "\ufeff",
        "\x00",
        "＝",
        " ",
    ]
    rng = np.random.default_rng(0)
    return [*pieces, *("".join(rng.choice(pieces, rng.integers(1, 5))) for _ in range(n - len(pieces)))]


def test_text_from_outside_never_becomes_a_tag(runs):
    texts, ids = odd_texts(), sorted(HOSTILE)
    widget = Browser(
        runs["hostile ids"],
        columns=pd.DataFrame({t: np.arange(6) for t in texts[:60]} | {"<i>kind</i>": texts[:6]}, index=ids),
    )
    truth = np.zeros((2, 2, 2), int)
    for n, text in enumerate(texts):
        box = widget.parts.box
        widget.image_id, box.reason = ids[n % 6], text
        box.flag()
        widget.parts.large.plain = image_facts(text, truth)
        widget.parts.large.note = browse.note(widget.table, widget.image_id) + text
        widget.parts.large.draw()
        widget.parts.picker.text.value = text
        only_our_tags(widget)
        assert Tags(legend_html({text: (1, 2, 3)})).seen <= {"span", "span style"}
        assert not text.strip() or any(f.reason == text for f in widget.flags)
    for name in (*texts[:60], "<i>kind</i>"):
        widget.sort = name
        only_our_tags(widget)
    widget.only = "flagged"
    only_our_tags(widget)
    assert any(isinstance(p, HTML) and "&lt;" in p.value for p in parts(widget)) and len(widget.picture().data) > 10_000


def test_a_queue_comes_back_to_the_letter(tmp_path):
    texts = odd_texts(400)
    rng = np.random.default_rng(1)
    flags = [
        Flag(a, ("", "3")[n % 2], b, float(rng.random()), np.nan if n % 3 else float(rng.random()) * 1e-9, c)
        for n, (a, b, c) in enumerate(zip(texts, texts[::-1], texts[7:] + texts[:7]))
    ]
    back = read_queue(write_queue(tmp_path / "q.csv", flags))
    assert list(back) == list(Flag._fields)
    for flag, row in zip(flags, back.itertuples(index=False)):
        assert [repr(x) for x in flag] == [repr(x) for x in row]
    assert len(back) == 400 and read_queue(write_queue(tmp_path / "again.csv", back)).equals(back)
    text = (tmp_path / "q.csv").read_bytes().decode("utf-8-sig")
    cells = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)  # as a spreadsheet sees it
    assert not any(
        c.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
        for c in cells[["image_id", "class_id", "reason", "when"]].to_numpy().ravel()
    )
    assert len(read_queue(write_queue(tmp_path / "none.csv", []))) == 0
    for broken, says in [
        ("", "empty file"),
        ("a,b\n", "not a list of flags"),
        (text.splitlines()[0] + "\na,b\n", "row 2: 2 fields, not 6"),
        (text.splitlines()[0] + "\na,1,x,much,1,\n", "row 2"),
    ]:
        (tmp_path / "bad.csv").write_text(broken)
        with pytest.raises(ValueError, match=f"bad.csv.*{says}"):
            read_queue(tmp_path / "bad.csv")


def test_flags_are_saved_at_once_and_taken_up_again(runs, tmp_path):
    path = tmp_path / "deep" / "q.csv"
    widget = Browser(runs["strips"], queue=path)
    widget.press("f")
    assert read_queue(path).equals(widget.queue) and widget.queue.reason.tolist() == [REASONS[0]]
    row = widget.table.loc[widget.image_id]
    assert widget.queue.loc[0, ["class_id", "suspicion", "dice"]].tolist() == ["", row.suspicion, row.dice]
    assert abs(pd.Timestamp.now("UTC") - pd.Timestamp(widget.queue.when[0])).total_seconds() < 60
    widget.press("n")
    box = widget.parts.box
    box.why.value, box.which.value = "wrong class", "class 2"
    box.on.click()
    row = widget.table.loc[widget.image_id]
    assert widget.queue.loc[1, ["class_id", "reason", "suspicion", "dice"]].tolist() == [
        "2",
        "wrong class",
        row["suspicion 2"],
        row["dice 2"],
    ]
    assert "flagged: wrong class (class 2)" in box.message.value
    box.why.value = "=not a formula"
    box.on.click()  # again: changed, not added
    assert len(widget.flags) == 2
    again = Browser(runs["strips"], queue=path)
    assert again.flags == widget.flags and sum(again.parts.pages.gallery.marks) == 2
    again.only = "flagged"
    assert set(again.ids) == set(widget.queue.image_id)
    again.press("f")
    assert len(again.ids) == 1 and again.image_id == again.ids[0] and len(read_queue(path)) == 1
    again.press("f")
    assert again.ids == () and len(read_queue(path)) == 0
    again.only, box.reason = "all", "  "
    widget.press("n")
    widget.press("f")
    assert len(widget.flags) == 2 and "give a reason" in box.message.value
    assert read_queue(widget.save(tmp_path / "copy.csv")).equals(widget.queue)


def test_flags_of_other_images_are_kept(runs, tmp_path):
    write_queue(tmp_path / "q.csv", [Flag("elsewhere.jpg", "", "x", np.nan, np.nan, "")])
    widget = Browser(runs["strips"], queue=tmp_path / "q.csv")
    widget.press("f")
    assert read_queue(tmp_path / "q.csv").image_id.tolist() == ["elsewhere.jpg", widget.image_id]


def test_a_queue_that_cannot_be_written_says_so_and_keeps_the_flag(runs, tmp_path, monkeypatch):
    widget = Browser(runs["strips"], queue=tmp_path / "q.csv")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(relabel, "write_text", refuse)
    widget.press("f")
    assert (
        "not saved" in widget.parts.box.message.value
        and "Permission denied" in widget.parts.box.message.value
        and len(widget.queue) == 1
    )


@pytest.mark.kill
def test_a_kill_at_any_moment_leaves_a_whole_queue(tmp_path):
    path, rng, seen = tmp_path / "q.csv", np.random.default_rng(0), set()
    for _ in range(12):
        child = os.fork()
        if not child:
            n = 0
            while True:
                n += 1
                write_queue(
                    path, [Flag(f"{k}.jpg", "", f"round {n} of {os.getpid()}", 0.5, np.nan, "") for k in range(500)]
                )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (path.exists() and f"of {child}" in path.read_text("utf-8-sig")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        back = read_queue(path)
        assert len(back) == 500 and back.reason.nunique() == 1
        seen.add(back.reason[0])
    assert len(seen) == 12


def test_a_run_that_may_only_be_read(tmp_path):
    run = make_run(tmp_path / "run", **CASES["squares"])
    Browser(run)
    everything = [run, *run.rglob("*")]
    before = {p: p.stat().st_mtime_ns for p in everything}
    for p in everything:
        p.chmod(0o555 if p.is_dir() else 0o444)
    try:
        widget = Browser(run)
        widget.sort = "suspicion"
        widget.press("f")
        assert len(widget.queue) == 1 and {p: p.stat().st_mtime_ns for p in [run, *run.rglob("*")]} == before
    finally:
        for p in everything:
            p.chmod(0o755 if p.is_dir() else 0o644)


# --- all together


def test_only_what_is_shown_is_read(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", n=120, shape=(32, 200), classes=4)
    data, read = open_run(run), []
    real = type(data.store).read
    monkeypatch.setattr(type(data.store), "read", lambda self, i: read.append(i) or real(self, i))
    widget = Browser(data)
    assert set(read) == set(widget.ids[:50]) and len(read) <= 53
    read.clear()
    widget.sort = "labelled"
    widget.sort, widget.level = "suspicion", 99
    widget.press("n")
    page = set(widget.parts.pages.page_ids)
    read.clear()
    widget.sort = "labelled"
    widget.sort = "suspicion"  # the page is in memory; one image is shown large
    assert set(widget.parts.pages.page_ids) == page and len(read) <= 6


@pytest.mark.real
@pytest.mark.parametrize("name,classes", [("severstal-sample", 4), ("neu-seg", 3)])
def test_real_folders(name, classes):
    widget = Browser(real_data(name))
    widget.show = f"class {classes}"
    truth = widget.folder.mask(widget.image_id)
    assert len(truth) == classes and truth[-1].any()
    assert np.array_equal(layer(widget, "labels")[..., 3] > 0, truth.any(0))
    assert len(widget.picture().data) > 20_000 and all(widget.parts.pages.gallery.pictures)
