"""The tuner without a browser: what it shows is checked against masks made one by one and against the choosers."""

import asyncio
import json

import numpy as np
import pandas as pd
import pytest
from made import CASES, HOSTILE, Tags, make_run, only_our_tags, pixels, slow_dice, slow_scores

import steel_seg.look.tune as tune
from steel_seg.decide import choose_rules, nested_dice
from steel_seg.folds import write_folds
from steel_seg.look.tune import Tuner, draw_surface, scores_html
from steel_seg.post import Rule, apply_rules, read_rules
from steel_seg.score import dice_at
from steel_seg.store import ProbStore
from steel_seg.trial import area_steps, change_rules, score_changes, subset_names, surface_of, verdict


@pytest.fixture
def run(tmp_path):
    "A run to be changed, with folds."
    run = make_run(tmp_path / "run", **CASES["strips"])
    ids = ProbStore.open(run / "oof").image_ids
    write_folds(run / "folds.csv", pd.DataFrame({"image_id": ids, "fold": np.arange(len(ids)) % 3}))
    return run


def truth_of(tuner):
    return np.array([[m.any() for m in tuner.opened.folder.mask(i)] for i in tuner.opened.store.image_ids])


MOVES = [
    [("thresh", 100)],
    [("thresh", 60), ("min_area", 450)],
    [("thresh", 40), ("min_component", 30)],
    [("thresh", 70), ("fill_holes", True), ("min_component", 100), ("min_area", 300)],
    [("gate_by", "peak"), ("gate", 180), ("thresh", 30)],
    [("gate_by", "core"), ("gate", 150), ("thresh", 30), ("min_area", 200)],
]


@pytest.mark.parametrize("name", CASES)
def test_score_is_that_of_masks_made_one_by_one(runs, name):
    tuner = Tuner(runs[name])
    start, truth = slow_scores(tuner.opened, tuner.rules), truth_of(tuner)
    for n, moves in enumerate(MOVES):
        tuner.rules, tuner.channel = tuner.kept, None if n % 2 else len(tuner.rules) - 1
        for field, value in moves:
            control = getattr(tuner.sliders, field)
            if field in ("min_area", "min_component", "gate") and value not in [v for _, v in control.options]:
                tuner.move(field, value)
            else:
                control.value = value
        now, table = slow_scores(tuner.opened, tuner.rules), tuner.table
        assert table.score["all"] == pytest.approx(now.mean(), abs=1e-12)
        assert table.change["all"] == pytest.approx(now.mean() - start.mean(), abs=1e-12)
        for c, row in enumerate(table.index[1:]):
            assert table.score[row] == pytest.approx(now[:, c].mean(), abs=1e-12)
            assert (table.gained[row], table.lost[row]) == (
                (now[:, c] > start[:, c] + 1e-12).sum(),
                (now[:, c] < start[:, c] - 1e-12).sum(),
            )
        assert table.present["all"] == pytest.approx(
            now[truth].mean() if truth.any() else np.nan, abs=1e-12, nan_ok=True
        )
        assert f"{now.mean():.4f}" in tuner.score_table.value


def test_intervals_are_those_of_the_mean():
    rng = np.random.default_rng(0)
    now, kept = rng.random((300, 3)), rng.random((300, 3))
    rows = rng.random(300) < 0.6
    table = score_changes(now, kept, rng.integers(0, 2, (300, 3)), rows)
    for name, d in [("all", now[rows].mean(1)), ("class 2", now[rows, 1])]:
        wide = 1.959963984540054 * d.std() / np.sqrt(len(d))
        assert [table.at[name, k] for k in ("low", "high")] == pytest.approx(
            [d.mean() - wide, d.mean() + wide], abs=1e-9
        )
    moved = (now - kept)[rows].mean(1)
    wide = 1.959963984540054 * moved.std() / np.sqrt(len(moved))
    assert [table.at["all", k] for k in ("change_low", "change_high")] == pytest.approx(
        [moved.mean() - wide, moved.mean() + wide], abs=1e-9
    )


def test_a_change_is_called_by_its_interval():
    d = np.full((400, 1), 0.5)
    better, unsure = d.copy(), d.copy()
    better[:100] += 0.2
    unsure[:2] += [[0.3], [-0.2]]
    truth = np.ones((400, 1), int)
    assert "better than the kept rule, beyond chance" in verdict(score_changes(better, d, truth), "all")
    assert "worse than the kept rule, beyond chance" in verdict(score_changes(d, better, truth), "all")
    assert "cannot tell the two apart. 1 images gain, 1 lose" in verdict(score_changes(unsure, d, truth), "all")
    few = d.copy()
    few[:5] += [[0.2], [0.21], [0.2], [0.19], [0.2]]
    assert "too few images have moved to tell. 5 images gain, 0 lose" in verdict(score_changes(few, d, truth), "all")
    assert verdict(score_changes(d, d, truth), "class 1") == "The same as the kept rule on every image."


@pytest.mark.parametrize("name", CASES)
def test_painted_pixels_are_those_of_truth_and_prediction(runs, name):
    tuner = Tuner(runs[name])
    tuner.view.strip.shown = tuner.view.layers
    n = len(tuner.rules)
    for channel in (None, *range(n)):
        tuner.channel = channel
        tuner.picker.go(0)
        for thresh in (40, 200):
            tuner.move("thresh", thresh)
            some, i, data = slice(None) if channel is None else [channel], tuner.image_id, tuner.opened
            truth = data.folder.mask(i)[some] > 0
            pred = apply_rules(data.store.read(i), tuner.rules)[some]
            painted = {k: layer(tuner.view.strip, k) for k in tuner.view.layers}
            assert np.array_equal(painted["labels"], truth.any(0))
            assert np.array_equal(painted["prediction"], pred.any(0))
            assert np.array_equal(painted["difference"], (truth | pred).any(0))
            assert np.array_equal(painted["probability"], (data.store.read(i)[some] >= data.store.floor).any(0))
            assert np.array_equal(pixels(tuner.view.strip.layer0), np.repeat(data.folder.image(i)[..., None], 3, 2))
            if channel is not None:
                assert (
                    f"{(truth & pred).sum():,} hit, {(truth & ~pred).sum():,} missed, {(pred & ~truth).sum():,} false"
                    in tuner.view.strip.caption
                )


def layer(strip, name):
    "Where a layer is not transparent."
    import io

    from PIL import Image

    data = getattr(strip, f"layer{strip.names.index(name)}")
    return np.array(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3] > 0


def test_a_move_reads_no_file_and_keeps_the_other_classes(runs, monkeypatch):
    tuner = Tuner(runs["strips"])
    tuner.channel = 1
    read, image, before = [], tuner.image_id, tuner.view.strip.layer4
    monkeypatch.setattr(ProbStore, "read", lambda self, i: read.append(i))
    monkeypatch.setattr(type(tuner.opened.folder), "image", lambda self, i: read.append(i))
    for thresh in range(20, 250, 5):
        tuner.sliders.thresh.value = thresh
    assert not read and tuner.image_id == image
    assert tuner.rules == (Rule(), Rule(245), Rule(), Rule())
    tuner.take_back()
    assert tuner.rules == (Rule(),) * 4 and tuner.view.strip.layer4 == before and tuner.sliders.thresh.value == 128


def test_undo_goes_back_step_by_step(runs):
    tuner = Tuner(runs["strips"])
    steps = [tuner.rules]
    for field, values in [
        ("thresh", (100, 90, 80)),
        ("min_area", (50, 60)),
        ("fill_holes", (True,)),
        ("thresh", (70,)),
    ]:
        for value in values:
            tuner.move(field, value)
        steps.append(tuner.rules)
    tuner.rules = (Rule(33),) * 4  # from code
    tuner.choose("best")
    tuner.take_back()
    assert tuner.rules == (Rule(33),) * 4
    for was in reversed(steps):
        tuner.take_back()
        assert tuner.rules == was
    assert tuner.undo.disabled
    tuner.take_back()
    assert tuner.rules == steps[0]


def test_moves_of_one_slider_in_another_class_are_another_step(runs):
    tuner = Tuner(runs["strips"])
    tuner.channel = 0
    tuner.move("thresh", 100)
    tuner.channel = 1
    tuner.move("thresh", 90)
    tuner.take_back()
    assert tuner.rules == (Rule(100), Rule(), Rule(), Rule())


def test_rules_set_from_code_are_a_step_of_their_own(runs):
    tuner = Tuner(runs["strips"])
    tuner.move("thresh", 100)
    tuner.rules = (Rule(50),) * 4
    tuner.move("thresh", 60)
    tuner.take_back()
    assert tuner.rules == (Rule(50),) * 4
    tuner.take_back()
    assert tuner.rules == (Rule(100),) * 4


def test_kept_rules_are_what_changes_are_counted_against(runs):
    tuner = Tuner(runs["strips"])
    tuner.move("thresh", 60)
    low = tuner.rules
    tuner.keep.click()
    assert tuner.kept == low and tuner.table.change["all"] == 0
    tuner.move("thresh", 150)
    high = tuner.rules
    change = tuner.table.change["all"]
    assert change == pytest.approx(
        slow_scores(tuner.opened, high).mean() - slow_scores(tuner.opened, low).mean(), abs=1e-12
    )
    tuner.swap.click()
    assert (tuner.rules, tuner.kept) == (low, high) and tuner.table.change["all"] == pytest.approx(-change, abs=1e-12)


def test_next_changed_visits_what_the_last_step_changed(runs):
    tuner = Tuner(runs["strips"])
    tuner.channel = 2
    tuner.move("thresh", 100)
    before = slow_scores(tuner.opened, tuner.rules)
    tuner.move("min_area", 300)
    tuner.move("min_area", 900)
    change = dict(zip(tuner.opened.store.image_ids, abs(slow_scores(tuner.opened, tuner.rules) - before)[:, 2]))
    wanted = sorted((i for i in change if change[i] > 0), key=lambda i: -change[i])
    assert wanted
    seen = []
    for _ in wanted:
        tuner.next_changed()
        seen.append(tuner.image_id)
    assert sorted(seen) == sorted(wanted) and [change[i] for i in seen] == [change[i] for i in wanted]
    tuner.take_back()
    assert set(tuner.trial.most_changed(2, np.ones(9, bool))) == set(wanted)


def test_images_come_worst_first(runs):
    tuner = Tuner(runs["strips"])
    for channel in (None, *range(4)):
        tuner.channel = channel
        tuner.move("thresh", 90)
        scores = slow_scores(tuner.opened, tuner.rules)
        of = dict(zip(tuner.opened.store.image_ids, scores.mean(1) if channel is None else scores[:, channel]))
        found = [of[i] for i in tuner.picker.ids]
        assert found == sorted(found) and len(found) == len(of)
        first = tuner.picker.ids[0]
        tuner.picker.go(0)
        tuner.picker.on.click()
        assert tuner.image_id == tuner.picker.ids[1] != first


def test_random_images_are_those_of_the_seed(runs):
    walks = []
    for _ in range(2):
        tuner = Tuner(runs["strips"], rng=np.random.default_rng(5))
        walk = []
        for _ in range(12):
            tuner.random.click()
            walk.append(tuner.image_id)
        walks.append(walk)
    assert walks[0] == walks[1] and len(set(walks[0])) > 3


def test_parts_of_the_images_are_scored_by_themselves(run):
    tuner = Tuner(run)
    names, truth = subset_names(tuner.opened.curves.truth, tuner.opened.fold), truth_of(tuner)
    assert (
        names
        == ["all", "fold 0", "fold 1", "fold 2", "with a defect", "clean", "class 1", "class 2", "class 3", "class 4"]
        == list(tuner.part.options)
    )
    tuner.move("thresh", 70)
    now, rows = (
        slow_scores(tuner.opened, tuner.rules),
        {
            "fold 1": np.arange(9) % 3 == 1,
            "clean": ~truth.any(1),
            "class 3": truth[:, 2],
            "with a defect": truth.any(1),
        },
    )
    for name, mine in rows.items():
        tuner.part.value = name
        assert tuner.table.score["all"] == pytest.approx(now[mine].mean(), abs=1e-12) and set(tuner.picker.ids) == set(
            np.array(tuner.opened.store.image_ids)[mine]
        )
        tuner.choose("best")
        assert tuner.rules == choose_rules(tuner.opened.curves.take(mine), "best", tuner.rules)
        tuner.take_back()


@pytest.mark.parametrize("how", ["best", "plateau"])
def test_the_buttons_choose_for_the_class_shown_or_for_all(run, how):
    tuner = Tuner(run)
    wanted = choose_rules(tuner.opened.curves, how)
    tuner.channel = 2
    getattr(tuner, how).click()
    assert tuner.rules == (Rule(), Rule(), wanted[2], Rule())
    tuner.channel = None
    getattr(tuner, how).click()
    assert tuner.rules == wanted


def test_nested_scores_are_of_the_kind_of_rule_that_is_set(run):
    tuner = Tuner(run)
    for moves in ([], [("fill_holes", True), ("min_component", 20)], [("gate_by", "peak"), ("gate", 150)]):
        for move in moves:
            tuner.move(*move)
        tuner.settle()
        curves, fold = tuner.opened.curves, tuner.opened.fold
        for how in ("best", "plateau"):
            np.testing.assert_array_equal(
                tuner.expect.nested[how][0], nested_dice(curves, fold, how=how, base_rule=tuner.rules)
            )
            assert f"{how}: {tuner.expect.nested[how][0].mean():.4f}" in tuner.expect.value
        assert f"{tuner.expect.nested['plateau'][0][:, 1].mean():.4f}" in tuner.score_table.value
        before = tuner.expect.nested
        tuner.move("thresh", tuner.rules[0].thresh - 1)  # a threshold changes nothing about the kind
        assert tuner.expect.nested is before
    assert tuner.rule.facts["nested"]["plateau"]["class 2"] == pytest.approx(
        tuner.expect.nested["plateau"][0][:, 1].mean()
    )


def test_without_folds_no_nested_score_is_claimed(runs):
    tuner = Tuner(runs["strips"])
    assert not tuner.expect.nested and "No folds.csv" in tuner.expect.value and "…" not in tuner.score_table.value


def test_what_takes_long_waits_for_the_hand_and_runs_beside_it(run):
    async def by_hand():
        tuner = Tuner(run)
        picture, order = tuner.surface.picture, tuner.picker.ids
        assert not tuner.expect.nested and "being calculated" in tuner.expect.value
        for thresh in (100, 80, 60):
            tuner.sliders.thresh.value = thresh
        assert tuner.picker.ids == order  # the list waits
        tuner.move("fill_holes", True)
        assert tuner.surface.picture == picture
        for _ in range(200):
            await asyncio.sleep(0.05)
            if tuner.expect.nested and tuner.surface.picture != picture:
                break
        return tuner

    tuner = asyncio.run(by_hand())
    np.testing.assert_array_equal(
        tuner.expect.nested["best"][0],
        nested_dice(tuner.opened.curves, tuner.opened.fold, how="best", base_rule=Rule(fill_holes=True)),
    )
    scores = slow_scores(tuner.opened, tuner.rules).mean(1)
    assert list(tuner.picker.ids) == sorted(
        tuner.picker.ids, key=lambda i: scores[tuner.opened.store.image_ids.index(i)]
    )


# --- the surface


@pytest.mark.parametrize("over", ["min_area", "min_component"])
@pytest.mark.parametrize("channel", [None, 2])
def test_surface_points_are_scores_of_rules(runs, over, channel):
    tuner = Tuner(runs["strips"])
    rules = (Rule(fill_holes=True),) * 4
    scores, levels, sizes = surface_of(tuner.opened.curves, channel, rules, over)
    for t, a in [(0, 0), (40, 30), (100, 60), (len(levels) - 1, len(sizes) - 1)]:
        moved = [change_rules(change_rules(rules, None, "thresh", int(levels[t])), None, over, int(sizes[a]))][0]
        d = dice_at(tuner.opened.curves, moved)
        assert scores[t, a] == pytest.approx(d.mean() if channel is None else d[:, channel].mean(), abs=1e-12)


def test_places_on_the_surface_and_back(runs):
    tuner = Tuner(runs["strips"])
    scores, levels, sizes = surface_of(tuner.opened.curves, 1, tuner.rules)
    picture = draw_surface(scores, levels, sizes)
    for t in (0, 1, 57, len(levels) - 1):
        for a in (0, 1, 44, len(sizes) - 1):
            assert picture.rule_at(*picture.place(levels[t], sizes[a])) == (levels[t], sizes[a])
    assert picture.rule_at(0.01, 0.5) is None and picture.rule_at(0.5, 0.99) is None
    # The place is on the picture where matplotlib drew that cell: the darkest and the brightest cell look so.
    peaked = np.zeros_like(scores)
    peaked[30:40, 50:60] = 1
    drawn = draw_surface(peaked, levels, sizes)
    shown = pixels(drawn.png)

    def brightness(t, a):
        x, y = drawn.place(levels[t], sizes[a])
        return shown[int(y * shown.shape[0]), int(x * shown.shape[1])].sum()

    assert brightness(35, 55) > brightness(20, 55) + 100 and brightness(35, 55) > brightness(35, 40) + 100


def test_a_click_on_the_surface_goes_there(runs):
    tuner = Tuner(runs["strips"])
    tuner.channel = 2
    tuner.surface.clicked = tuner.surface.drawn.place(101, tuner.surface.drawn.sizes[40])
    assert (tuner.rule[2].thresh, tuner.rule[2].min_area) == (101, tuner.surface.drawn.sizes[40]) and tuner.rules[
        0
    ] == Rule()
    x, y = tuner.surface.drawn.place(101, tuner.surface.drawn.sizes[40])
    assert any(m["shape"] == "dot" and (m["x"], m["y"]) == (x, y) for m in tuner.surface.marks)
    before = tuner.rules
    tuner.surface.clicked = (0.001, 0.5)
    assert tuner.rules == before
    tuner.over = "min_component"
    tuner.surface.clicked = tuner.surface.drawn.place(60, tuner.surface.drawn.sizes[-1])
    assert tuner.rule[2].min_component == 64 * 400
    np.testing.assert_allclose(
        tuner.table.score["class 3"], slow_scores(tuner.opened, tuner.rules)[:, 2].mean(), atol=1e-12
    )


# --- controls


def test_rules_from_code_move_the_controls(runs):
    tuner = Tuner(runs["strips"])
    tuner.channel = 0
    tuner.rules = (Rule(77, 743, True, 31), Rule(200, 64 * 400 + 1, gate=210), Rule(gate=140, gate_by="core"), Rule())
    s = tuner.sliders
    assert (
        s.thresh.value,
        s.min_area.label,
        s.min_component.label,
        s.fill_holes.value,
        s.gate_by.value,
        s.gate.label,
    ) == (77, "743 px", "31 px", True, "", "off")
    assert s.thresh.label == "77 (.30)"
    tuner.channel = 1
    assert (s.thresh.value, s.min_area.label, s.fill_holes.value, s.gate_by.value, s.gate.value) == (
        200,
        "never",
        False,
        "peak",
        210,
    )
    s.thresh.value = 190
    assert tuner.rules[1] == Rule(190, 64 * 400 + 1, gate=210)
    s.gate_by.value = ""
    assert tuner.rules[1] == Rule(190, 64 * 400 + 1)
    tuner.menu.value = 2
    assert (tuner.channel, s.gate_by.value, s.gate.value) == (2, "core", 140)
    tuner.menu.value = -1
    assert tuner.channel is None
    s.thresh.value = 55
    assert [r.thresh for r in tuner.rules] == [55] * 4 and tuner.rules[2].gate_by == "core"


def test_gates_that_need_a_classifier_are_offered_with_its_scores(run, tmp_path):
    ids = ProbStore.open(run / "oof").image_ids
    p = np.random.default_rng(0).random((len(ids), 4))
    pd.DataFrame(p, columns=[f"p_{k}" for k in range(1, 5)]).assign(image_id=ids).to_csv(
        tmp_path / "scores.csv", index=False
    )
    assert {v for _, v in Tuner(run).sliders.gate_by.options} == {"", "peak", "core"}
    tuner = Tuner(run, scores=tmp_path / "scores.csv")
    assert {v for _, v in tuner.sliders.gate_by.options} == {"", "peak", "core", "score", "sum", "product", "area"}
    levels = np.rint(255 * p).astype(int)
    for by, gate in [("score", 140), ("sum", 300), ("product", None), ("area", 8)]:
        tuner.sliders.gate_by.value = by
        if gate:
            tuner.sliders.gate.value = gate
        d = np.array([[slow_pair(tuner, i, c, levels[n, c]) for c in range(4)] for n, i in enumerate(ids)])
        assert tuner.table.score["all"] == pytest.approx(d.mean(), abs=1e-12), by
        assert (
            tuner.view.masks[0].sum()
            == apply_rules(tuner.opened.store.read(tuner.image_id), tuner.rules, levels[ids.index(tuner.image_id)])[
                0
            ].sum()
        )


def slow_pair(tuner, image_id, c, score):
    from steel_seg.post import apply_rule

    return slow_dice(
        apply_rule(tuner.opened.store.read(image_id)[c], tuner.rules[c], int(score)),
        tuner.opened.folder.mask(image_id)[c],
    )


def test_a_large_run_is_counted_when_asked(run, monkeypatch):
    monkeypatch.setattr(tune, "_QUICK", 0)
    tuner = Tuner(run)
    assert (
        tuner.sliders.min_component.disabled and tuner.sliders.fill_holes.disabled and not tuner.sliders.thresh.disabled
    )
    with pytest.raises(ValueError, match="count them with"):
        tuner.move("fill_holes", True)
    assert tuner.rules == (Rule(),) * 4
    offer = tuner.counter.children[0]
    row = offer.children[0].children
    row[1].click()
    assert not offer.children and not tuner.sliders.fill_holes.disabled and row[2].value == 9
    tuner.sliders.fill_holes.value = True
    tuner.sliders.min_component.value = 30
    tuner.over = "min_component"
    assert tuner.table.score["all"] == pytest.approx(slow_scores(tuner.opened, tuner.rules).mean(), abs=1e-12)
    assert not tune.Tuner(run).opened.curves.lacks(True, 2)  # kept beside the run


def test_what_is_refused_changes_nothing(runs):
    tuner = Tuner(runs["strips"])
    before = tuner.rules, tuner.kept, tuner.channel, tuner.image_id, tuner.subset, tuner.over
    for name, value, says in [
        ("channel", 4, "4 classes, 0 to 3"),
        ("channel", -1, "0 to 3"),
        ("image_id", "nobody.png", "no image 'nobody.png'"),
        ("image_id", "", "no image ''"),
        ("rules", (Rule(),) * 3, "3 rules for 4 classes"),
        ("rules", (Rule(5),) * 4, "below the store's floor 13"),
        ("rules", ("x",) * 4, "'x' is not a Rule"),
        ("rules", (Rule(connectivity=4, min_component=9),) * 4, "connectivity=4"),
        ("kept", (Rule(gate=9, gate_by="score"),) * 4, "needs a classifier"),
        ("subset", "fold 0", "no part of the images"),
        ("over", "gate", "give 'min_area' or 'min_component'"),
    ]:
        with pytest.raises(ValueError, match=says):
            setattr(tuner, name, value)
        assert (tuner.rules, tuner.kept, tuner.channel, tuner.image_id, tuner.subset, tuner.over) == before, name


# --- the result


def test_saved_rules_are_read_by_the_kit_and_start_the_next_tuner(run):
    tuner = Tuner(run)
    tuner.channel = 0
    tuner.sliders.thresh.value = 99
    rules, facts = read_rules(tuner.rule.save(run / "rule.json"))
    assert rules == tuner.rules == (Rule(99), Rule(), Rule(), Rule())
    assert facts["score"] == facts["scores"]["all"] == pytest.approx(tuner.table.score["all"]) and facts["images"] == 9
    assert facts["interval"][0] < facts["score"] < facts["interval"][1] and set(facts["nested"]) == {"best", "plateau"}
    assert facts["data_sha256"] == tuner.opened.folder.sha256 and "optimistic" in facts["chosen"]
    again = Tuner(run)
    assert again.rules == rules and again.table.change["all"] == 0
    assert Tuner(run, rules=[Rule(140)] * 4).rules[0] == Rule(140)


def test_the_save_button_loses_nothing(run):
    tuner = Tuner(run)
    assert tuner.path.value == str(run / "rule.json")
    tuner.save_button.click()
    assert "saved as" in tuner.said.value and read_rules(run / "rule.json")[0] == (Rule(),) * 4
    tuner.move("thresh", 99)
    tuner.save_button.click()
    assert (
        read_rules(run / "rule.json")[0] == (Rule(99),) * 4
        and read_rules(run / "rule.previous.json")[0] == (Rule(),) * 4
    )
    for path, says in [
        (run / "nowhere" / "rule.json", "no such folder"),
        (run / "rule.txt", "ends in .json"),
        ("<script>.txt", "&lt;script&gt;"),
        (run, "ends in .json"),
    ]:
        tuner.path.value = str(path)
        tuner.save_button.click()
        assert "not saved" in tuner.said.value and says in tuner.said.value
        only_our_tags(tuner)
    assert sorted(p.name for p in run.glob("*rule*")) == ["rule.json", "rule.previous.json"]


def test_a_rule_is_saved_whole_or_not_at_all(run, monkeypatch):
    tuner = Tuner(run)
    tuner.save(run / "rule.json")
    before = (run / "rule.json").read_bytes()
    monkeypatch.setattr("steel_seg.post.write_json", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    tuner.save_button.click()
    assert "not saved: disk full" in tuner.said.value and (run / "rule.json").read_bytes() == before


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_there_without_a_front_end(runs, name):
    tuner = Tuner(runs[name])
    tuner.channel = len(tuner.rules) - 1
    bundle = tuner._repr_mimebundle_()
    assert len(tuner.picture().data) > 10_000 and "image/jpeg" in bundle and json.dumps(bundle)
    assert "Tuner(class" in repr(tuner)


def test_no_tag_of_a_name_gets_through(runs):
    rng = np.random.default_rng(1)
    pieces = [
        "<b>",
        "</td>",
        "<script>alert(1)</script>",
        "&lt;",
        "'\"",
        "<!--",
        "-->",
        "<img src=x onerror=alert(1)>",
        "ü",
        "$^$",
        "\\",
        "]]>",
        "<svg/onload=1>",
        "x" * 50,
    ]
    row = dict(
        score=0.5,
        low=0.4,
        high=0.6,
        change=0.1,
        change_low=0.0,
        change_high=0.2,
        present=0.5,
        empty=np.nan,
        pairs=2,
        present_pairs=1,
        gained=1,
        lost=0,
    )
    for _ in range(200):
        text = "".join(rng.choice(pieces, rng.integers(1, 5)))
        assert Tags(scores_html(pd.DataFrame([row], index=[text]), {text: 0.5}, text)).seen <= {
            "table",
            "table style",
            "tr",
            "td",
            "td style",
            "th",
            "th style",
        }
    tuner = Tuner(runs["hostile ids"])
    for i in HOSTILE:
        tuner.image_id = i
        only_our_tags(tuner)
    tuner.image_id = next(i for i in HOSTILE if "$" in i)  # to matplotlib this would be a formula, and a wrong one
    assert len(tuner.picture().data) > 10_000


def test_slider_stops():
    steps = area_steps(256 * 1600, also=[743])
    assert steps[:3] == [0, 10, 11] and steps[-1] == 256 * 1600 + 1 and {743, 600, 1000, 2000} <= set(steps)
    assert all(b <= 1.2 * a for a, b in zip(steps[1:], steps[2:]))
    assert area_steps(4) == [0, 5]
