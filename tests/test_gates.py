"""Gates compared and thresholds of classifiers, against brute force over every setting and every cut."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from made import NEEDS_SCORE

from steel_seg.class_scores import best_f1, f1_at, f1_folds, f1_intervals, f1_table, nested_f1, read_class_levels
from steel_seg.curves import Curves, map_counts
from steel_seg.decide import choose_rules, decide, fold_choices
from steel_seg.gates import area_values, compare_gates, decide_gate, gate_choices, gate_rules, gate_values
from steel_seg.metric import paired_difference
from steel_seg.post import GATE_KINDS, Rule
from steel_seg.score import dice_at, dice_rows, rows_of


def random_case(rng, n=14, c=2, shape=(4, 9), floor=13):
    "Curves of maps that know something, scores that know something else, folds of uneven size."
    truth = (rng.random((n, c, *shape)) < 0.4) * (rng.random((n, c, 1, 1)) < 0.5)
    levels = np.where(
        truth & (rng.random(truth.shape) < 0.8),
        rng.integers(60, 256, truth.shape),
        rng.integers(0, 200, truth.shape) * (rng.random(truth.shape) < 0.3 * (rng.random((n, c, 1, 1)) < 0.6)),
    )
    levels = np.where(levels < floor, 0, levels).astype(np.uint8)
    counts = [[map_counts(p, t) for p, t in zip(ps, ts)] for ps, ts in zip(levels, truth)]
    area, hit = (np.array([[x[k] for x in row] for row in counts], np.int32) for k in (0, 1))
    curves = Curves(tuple(map(str, range(n))), area, hit, truth.sum((2, 3)).astype(np.int64), floor, shape)
    scores = np.clip(np.where(truth.any((2, 3)), 170, 80) + rng.normal(0, 60, (n, c)), 0, 255).astype(np.uint8)
    return curves, scores, rng.permutation(np.arange(n) % 4 % 3)


GRID = {
    None: (0,),
    "peak": (0, 100, 180, 240),
    "score": (0, 60, 100, 140, 255),
    "sum": (0, 150, 260, 400),
    "core": (0, 20, 150, 220),
    "product": (1,),
    "area": (1, 2, 6),
}
HOWS = ["pooled", "best"]


def mean_under_gate(curves, c, by, gate, levels, images):
    "The highest mean Dice of class c over some images that any threshold and area reaches under a gate: brute force."
    rows = rows_of(curves, c, Rule(gate=gate, gate_by=by), levels[:, c])
    return max(
        dice_rows(rows, t, a)[images].mean()
        for t in range(max(1, curves.floor), 256, 4)
        for a in area_values(curves.shape)
    )


@pytest.mark.parametrize("by", [by for by in GRID if by])
def test_the_gate_chosen_as_best_is_the_best_of_all_on_the_images_that_choose(by):
    rng, changed = np.random.default_rng(0), 0
    for _ in range(2):
        curves, scores, fold = random_case(rng)
        choices = gate_choices(curves, fold, by, "best", class_levels=scores, gates=GRID[by], must_gain=False)
        for left_out in (None, *sorted(set(fold.tolist()))):
            images = np.ones(len(fold), bool) if left_out is None else fold != left_out
            rules = choices.rules(left_out)
            changed += rules != choices.rules()
            for c, rule in enumerate(rules):
                every = [mean_under_gate(curves, c, by, gate, scores, images) for gate in GRID[by]]
                assert every[GRID[by].index(rule.gate)] == pytest.approx(max(every), abs=1e-12)
                assert rule.gate_by == by
                if every[0] >= max(every) - 1e-12:
                    assert rule.gate == GRID[by][0]  # no gate where none gains
    assert changed or by == "product"


@pytest.mark.parametrize("how", ["pooled", "plateau", "best", "middle"])
@pytest.mark.parametrize("by", [by for by in GRID if by])
def test_threshold_and_area_are_chosen_under_the_gate_as_without_one(by, how):
    rng = np.random.default_rng(3)
    curves, scores, fold = random_case(rng, n=20)
    choices = gate_choices(curves, fold, by, how, class_levels=scores, gates=GRID[by])
    for left_out in (None, 0, 1, 2):
        images = np.ones(len(fold), bool) if left_out is None else fold != left_out
        rules = choices.chosen(left_out)
        assert rules == choose_rules(curves.take(images), how, rules, scores[images])
    if by != "product":  # the first gate changes nothing: then all is as without a gate
        ungated = gate_choices(curves, fold, by, how, class_levels=scores, gates=GRID[by][:1])
        of_none = fold_choices(curves, fold, how)
        for left_out in (None, 0, 1, 2):
            assert [(r.thresh, r.min_area) for r in ungated.rules(left_out)] == [
                (r.thresh, r.min_area) for r in of_none.rules(left_out)
            ]


def test_of_a_tie_the_middle():
    """Two kinds of image: a defect of 10 pixels found at 200, and no defect but a false alarm of 10 at 200.

    Only the score tells them apart.
    """
    area = np.zeros((4, 1, 256), np.int32)
    area[:, 0, 1:201] = 10
    area[:, 0, 0] = 50
    hit = area * np.array([1, 0, 1, 0])[:, None, None].astype(np.int32)
    hit[::2, 0, 0] = 10
    curves = Curves(tuple("abcd"), area, hit, np.array([[10], [0], [10], [0]]), 13, (1, 50))
    scores = np.array([[200], [100], [200], [100]])
    gates = (0, 50, 100, 101, 120, 140, 180, 200, 201)
    choices = gate_choices(curves, [0, 0, 1, 1], "score", "best", class_levels=scores, gates=gates)
    for rules in (choices.chosen(), choices.chosen(0), choices.chosen(1)):
        assert rules == (Rule(106, 5, gate=140, gate_by="score"),)  # gates 101..200, levels 13..200, areas 0..10
    with pytest.raises(ValueError, match="at least two folds"):
        gate_choices(curves, [0] * 4, "score", class_levels=scores)
    with pytest.raises(ValueError, match="fold has shape"):
        gate_choices(curves, [0, 1], "score", class_levels=scores)
    for by in NEEDS_SCORE:
        with pytest.raises(ValueError, match=f"gate_by='{by}' needs a score"):
            gate_choices(curves, [0, 0, 1, 1], by)
    with pytest.raises(ValueError, match="integers"):
        gate_choices(curves, [0, 0, 1, 1], "score", class_levels=scores / 255).rules()


@pytest.mark.parametrize("how", HOWS)
def test_the_table_is_what_its_rules_score(how):
    rng = np.random.default_rng(1)
    for _ in range(2):
        curves, scores, fold = random_case(rng, n=20)
        table = compare_gates(curves, fold, scores, np.random.default_rng(7), how, n_boot=200)
        assert list(dict.fromkeys(table.index.get_level_values(0))) == ["none", *GATE_KINDS] and list(
            table.loc["none"].index
        ) == ["all", "class 1", "class 2"]
        nested = {}
        for by in (None, *GATE_KINDS):
            name, nested[by] = by or "none", np.empty(curves.truth.shape)
            choices = gate_choices(curves, fold, by, how, class_levels=scores)
            best, others = choices.rules(), choices.fold_rules()
            assert gate_rules(table, name) == best
            for k in set(fold.tolist()):
                nested[by][fold == k] = dice_at(curves.take(fold == k), others[k], scores[fold == k])
            for row, classes in (("all", slice(None)), ("class 1", [0]), ("class 2", [1])):
                shown = table.loc[(name, row)]
                assert shown.optimistic == pytest.approx(dice_at(curves, best, scores)[:, classes].mean(), abs=1e-12)
                assert shown.nested == pytest.approx(nested[by][:, classes].mean(), abs=1e-12)
                assert (
                    shown.difference == pytest.approx(shown.nested - table.nested["none", row], abs=1e-12)
                    and shown.low <= shown.difference <= shown.high
                )
                interval = paired_difference(
                    nested[by][:, classes], nested[None][:, classes], np.random.default_rng(7), 200
                )
                assert abs(interval.low - shown.low) < 0.03 and abs(interval.high - shown.high) < 0.03
            for c in (0, 1):
                gates = [rules[c].gate for rules in others.values()]
                assert (table.gate_low[name, f"class {c + 1}"], table.gate_high[name, f"class {c + 1}"]) == (
                    min(gates),
                    max(gates),
                )
        again = compare_gates(curves, fold, scores, np.random.default_rng(7), how, n_boot=200)
        pd.testing.assert_frame_equal(table, again)
        mixed = gate_rules(table, ["sum", "none"], Rule(fill_holes=True))
        assert mixed == (
            replace(gate_rules(table, "sum")[0], fill_holes=True),
            replace(gate_rules(table, "none")[1], fill_holes=True),
        )
    for bad in ("vote", ["sum"], ["sum", "vote"]):
        with pytest.raises(ValueError, match="needs one of none, peak, score"):
            gate_rules(table, bad)
    with pytest.raises(ValueError, match="class_levels of shape"):
        compare_gates(curves, fold, scores[:, 0], rng)
    with pytest.raises(ValueError, match="default_rng"):
        compare_gates(curves, fold, None, 7)


@pytest.mark.parametrize("how", HOWS)
def test_the_table_and_the_decision_say_the_same(how):
    """No gate is what `decide` does, and a gate is what `decide_gate` does, for every way of choosing.

    The table once compared with a base that nobody would use: the best point of a grid, where `decide` takes `pooled`.
    """
    curves, scores, fold = random_case(np.random.default_rng(5), n=40)
    table = compare_gates(curves, fold, scores, np.random.default_rng(0), how, n_boot=10)
    decision = decide(curves, fold, np.random.default_rng(0), how, resamples=2)
    assert table.nested["none", "all"] == pytest.approx(decision.nested.value, abs=1e-12)
    assert table.optimistic["none", "all"] == pytest.approx(decision.optimistic.value, abs=1e-12)
    assert gate_rules(table, "none") == decision.rules
    for by in GATE_KINDS:
        decision = decide_gate(curves, fold, np.random.default_rng(0), by, scores, how=how, resamples=2)
        assert decision.how == how
        assert table.nested[by, "all"] == pytest.approx(decision.nested.value, abs=1e-12)
        assert gate_rules(table, by) == decision.rules


def test_ways_of_choosing_differ_under_a_gate():
    curves, scores, fold = random_case(np.random.default_rng(6), n=40)
    chosen = {how: gate_choices(curves, fold, "score", how, class_levels=scores).rules() for how in HOWS}
    assert chosen["pooled"] != chosen["best"]


def test_a_fold_has_no_say_in_its_own_setting():
    rng = np.random.default_rng(2)
    curves, scores, fold = random_case(rng, n=20)
    for by in GRID:
        for how in HOWS:
            before = gate_choices(curves, fold, by, how, class_levels=scores).rules(1)
            area, hit, given = curves.area.copy(), curves.hit.copy(), scores.copy()
            in_fold = fold == 1
            area[in_fold, :, 1:], hit[in_fold], given[in_fold] = 0, 0, rng.permutation(given[in_fold])
            changed = replace(curves, area=area, hit=hit)
            assert gate_choices(changed, fold, by, how, class_levels=given).rules(1) == before


def test_fills_and_components_of_the_rule_are_kept():
    """The filled maps of these curves are those of another case.

    What is chosen on them is what is chosen on that case, except for the peak, which is the raw map's.
    """
    rng = np.random.default_rng(8)
    raw, scores, fold = random_case(rng)
    other, _, _ = random_case(rng)
    other = replace(other, truth=raw.truth, hit=np.minimum(other.hit, raw.truth[..., None]).astype(np.int32))
    both = replace(raw, filled=other)
    for by in GRID:
        of_filled = gate_choices(both, fold, by, base_rule=Rule(fill_holes=True), class_levels=scores).rules()
        assert all(rule.fill_holes for rule in of_filled)
        if by not in ("peak", "sum"):
            of_other = gate_choices(other, fold, by, class_levels=scores).rules()
            assert tuple(replace(rule, fill_holes=False) for rule in of_filled) == of_other


def test_values_to_try():
    for by in GATE_KINDS:
        for floor in (0, 1, 13, 100):
            values = gate_values(by, floor)
            assert list(values) == sorted(set(values))
            for gate in values:
                Rule(gate=gate, gate_by=by)  # all are allowed
            if by == "core":
                assert all(g == 0 or g >= floor for g in values)
    for shape in ((1, 1), (1, 7), (256, 1600)):
        areas = area_values(shape)
        assert (
            areas[0] == 0
            and areas[-1] == shape[0] * shape[1] + 1
            and (np.diff(areas) > 0).all()
            and areas.dtype == np.int64
        )


# classifiers


def slow_f1(score, label, thresh):
    tp = sum(1 for s, y in zip(score, label) if s >= thresh and y)
    wrong = sum(1 for s, y in zip(score, label) if (s >= thresh) != bool(y))
    return 2 * tp / (2 * tp + wrong) if tp + wrong else float("nan")


def test_the_best_f1_is_the_best_of_all_cuts():
    rng = np.random.default_rng(3)
    for _ in range(500):
        n = int(rng.integers(1, 25))
        score = (
            rng.integers(0, 256, n).astype(np.uint8)
            if rng.random() < 0.4
            else rng.choice([0, 0.1, 0.2, 0.2001, 0.5, 1.0], n)
            if rng.random() < 0.5
            else rng.random(n)
        )
        label = rng.random(n) < 0.4
        label[rng.integers(n)] = True
        thresh, f1 = best_f1(score, label)
        cuts = np.unique(score)
        every = [slow_f1(score, label, t) for t in cuts]
        assert (
            f1 == pytest.approx(max(every), abs=1e-15)
            and f1 == pytest.approx(slow_f1(score, label, thresh), abs=1e-15)
            and f1_at(score, label, thresh) == f1
        )
        gaps = np.diff(np.concatenate([[0], cuts.astype(float)]))
        widest = max(gap for gap, one in zip(gaps, every) if one >= max(every) - 1e-15)
        high = cuts[cuts >= thresh].min()
        assert high - max([0, *cuts[cuts < thresh].tolist()]) == pytest.approx(widest)  # it lies in the widest gap
        assert isinstance(thresh, int if score.dtype.kind == "u" else float)
        assert (high + (high - widest)) / 2 == pytest.approx(thresh, abs=0.5 if score.dtype.kind == "u" else 1e-12)


def test_f1_of_nothing():
    assert (
        np.isnan(f1_at([0.1, 0.2], [0, 0], 0.5))
        and f1_at([0.1, 0.9], [0, 0], 0.5) == 0
        and f1_at([0.1, 0.2], [0, 1], 0.5) == 0
    )
    for score, label, word in (
        ([0.1, 0.2], [0, 0], "none of 2 images"),
        ([0.1], [1, 0], "shape"),
        ([np.nan, 1], [1, 0], "at least 0"),
        ([-0.1, 1], [1, 0], "at least 0"),
        ([[0.1]], [[1]], "shape"),
        ([True], [1], "at least 0"),
    ):
        with pytest.raises(ValueError, match=word):
            best_f1(score, label)


def test_intervals_are_of_resampled_images():
    rng = np.random.default_rng(4)
    label = rng.random(60) < 0.1
    score = np.clip(np.where(label, 0.6, 0.3) + rng.normal(0, 0.2, 60), 0, 1)
    thresh, f1 = f1_intervals(score, label, np.random.default_rng(5), n_boot=200)
    assert (
        (thresh.value, f1.value) == best_f1(score, label)
        and thresh.low <= thresh.value <= thresh.high
        and f1.low <= f1.value <= f1.high
    )
    drawn, resampled = np.random.default_rng(5), []
    while len(resampled) < 200:
        i = drawn.integers(60, size=60)
        if label[i].any():
            resampled.append((best_f1(score[i], label[i])[0], slow_f1(score[i], label[i], thresh.value)))
    assert np.allclose(np.quantile(resampled, [0.025, 0.975], axis=0), [[thresh.low, f1.low], [thresh.high, f1.high]])
    with pytest.raises(ValueError, match="default_rng"):
        f1_intervals(score, label, 5)


def test_fold_to_fold():
    rng = np.random.default_rng(6)
    label, fold = rng.random(80) < 0.3, rng.permutation(np.arange(80) % 4)
    label[fold == 2] = False
    score = np.clip(np.where(label, 0.6, 0.35) + rng.normal(0, 0.2, 80), 0, 1)
    table, predicted = f1_folds(score, label, fold), np.zeros(80, bool)
    for k in range(4):
        in_fold, row = fold == k, table.loc[k]
        assert row.others == best_f1(score[~in_fold], label[~in_fold])[0] and row.present == label[in_fold].sum()
        predicted[in_fold] = score[in_fold] >= row.others
        if k == 2:
            assert np.isnan(row.own) and np.isnan(row.own_f1)
        else:
            assert (
                (row.own, row.own_f1) == best_f1(score[in_fold], label[in_fold])
                and row.others_f1 == pytest.approx(slow_f1(score[in_fold], label[in_fold], row.others))
                and row.own_f1 >= row.others_f1
            )
    assert (
        nested_f1(score, label, fold) == pytest.approx(slow_f1(predicted.astype(int), label, 1))
        and nested_f1(score, label, fold) <= best_f1(score, label)[1]
    )
    with pytest.raises(ValueError, match="none of 60"):
        f1_folds(score, label & (fold == 1), fold)
    whole = f1_table(
        np.stack([score, 1 - score], 1), np.stack([label, ~label], 1), fold, np.random.default_rng(1), n_boot=20
    )
    assert (
        list(whole.index) == ["class 1", "class 2", "mean"]
        and whole.nested["mean"] == pytest.approx(whole.nested[:2].mean())
        and whole.present["class 1"] == label.sum()
    )
    assert whole.half["class 1"] == slow_f1(score, label, 0.5) and whole.nested["class 1"] == nested_f1(
        score, label, fold
    )
    levels = np.rint(255 * score).astype(np.uint8)
    assert f1_table(levels[:, None], label[:, None], fold, np.random.default_rng(1), n_boot=20).half[
        "class 1"
    ] == slow_f1(levels, label, 128)


# scores from a file


def test_scores_come_back_as_levels(tmp_path):
    rng = np.random.default_rng(7)
    ids, p = [f"{i}.jpg" for i in range(30)], rng.random((30, 3))
    path = tmp_path / "scores.csv"
    for columns in (
        ["image_id", "class_3", "class_1", "class_2"],
        ["3", "1", "2", "ImageId"],
        ["ImageId", "note", "3", "1", "2"],
    ):
        order = rng.permutation(30)
        frame = pd.DataFrame(
            {
                **{c: p[:, int(c[-1]) - 1] for c in columns if c[-1].isdigit()},
                **{c: ids for c in columns if "mage" in c},
                "note": "x",
            }
        )[columns]
        frame.iloc[order].to_csv(path, index=False)
        asked = rng.permutation(30)[:11]
        levels = read_class_levels(path, [ids[i] for i in asked], 3)
        assert levels.dtype == np.uint8 and np.array_equal(levels, np.rint(255 * p[asked]).astype(np.uint8))
    assert read_class_levels(path, [], 3).shape == (0, 3)


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "empty file"),
        ("image_id,1\na,.5\n", "needs 1, 2 with any one prefix"),
        ("name,1,2\na,.5,.5\n", "needs image_id or ImageId once"),
        ("image_id,ImageId,1,2\na,a,.5,.5\n", "needs image_id or ImageId once"),
        ("image_id,1,1,2\na,0,0,0\n", "no name twice"),
        ("image_id,1,2,3\na,0,0,0\n", "3 columns begin with '', but there are 2 classes"),
        ("image_id,a1,a2,b1,b2\na,0,0,0,0\n", "begin with 'a' or 'b': choose one by the prefix"),
        ("image_id,1,2\na,0,0\na,0,0\n", "row 3: 'a' has a row before"),
        ("image_id,1,2\na,0,0\nb,0\n", "row 3: 2 values for 3 columns"),
        ("image_id,1,2\na,0,0\nb,0,1.01\n", "row 3, column 2: '1.01' is not a probability"),
        ("image_id,1,2\na,,0\n", "row 2, column 1: '' is not"),
        ("image_id,1,2\na,nan,0\n", "row 2, column 1: 'nan'"),
        ("image_id,1,2\na,-1e-9,0\n", "row 2, column 1"),
        ("image_id,1,2\nb,0,0\n", "no row for 1 of 1 images, 'a'"),
        ("image_id,0,1,2\na,0,0,0\n", "3 columns begin"),
        ("image_id,1,2\na,200,3\n", "'200' is not a probability"),
    ],
)
def test_a_file_of_scores_that_is_wrong_is_told_by_row(tmp_path, text, word):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(ValueError, match=f"scores.csv.*{word}"):
        read_class_levels(tmp_path / "scores.csv", ["a"], 2)


def test_no_file_of_scores(tmp_path):
    with pytest.raises(ValueError, match="scores.csv: no such file"):
        read_class_levels(tmp_path / "scores.csv", ["a"], 2)
    (tmp_path / "scores.csv").write_text("image_id,a1,a2,b1,b2\na,0,0,1,1\n")
    assert read_class_levels(tmp_path / "scores.csv", ["a"], 2, "b").tolist() == [[255, 255]]
    with pytest.raises(ValueError, match="needs c1, c2"):
        read_class_levels(tmp_path / "scores.csv", ["a"], 2, "c")


@pytest.mark.real
def test_real_classifiers():
    path = real_data("severstal-classifier") / "validation_probabilities.csv"
    frame = pd.read_csv(path)
    levels = read_class_levels(path, frame.ImageId, 4, "effnetb2_")
    assert levels.shape == (1672, 4) and np.array_equal(
        levels, np.rint(255 * frame[[f"effnetb2_{k}" for k in range(1, 5)]].to_numpy())
    )
    for c in range(4):
        score, label = frame[f"resnet50_{c + 1}"].to_numpy(), frame[f"label_{c + 1}"].to_numpy() > 0
        predicted = score >= np.unique(score)[:, None]
        assert best_f1(score, label)[1] == (2 * (predicted & label).sum(1) / (predicted.sum(1) + label.sum())).max()


@pytest.mark.real
def test_every_gate_with_a_real_classifier():
    "The labels and probabilities are real; the maps are made up for these labels."
    path = real_data("severstal-classifier") / "validation_probabilities.csv"
    frame = pd.read_csv(path)[::4]
    shown = frame.filter(regex="^label_").to_numpy() > 0
    levels = read_class_levels(path, frame.ImageId, 4, "resnet50_")
    rng = np.random.default_rng(0)
    alarm = rng.random(shown.shape) < 0.15
    peak = np.where(shown, rng.integers(120, 256, shown.shape), np.where(alarm, rng.integers(60, 200, shown.shape), 0))
    area = (np.arange(256) <= peak[..., None]) * 500 * (peak[..., None] > 0)
    truth = np.where(shown, 500, 0)
    hit = np.minimum(area * 0.9, truth[..., None])
    area[..., 0], hit[..., 0] = 4000, truth
    curves = Curves(tuple(frame.ImageId), area.astype(np.int32), hit.astype(np.int32), truth, 13, (40, 100))
    fold = np.arange(len(frame)) % 5
    table = compare_gates(curves, fold, levels, np.random.default_rng(0), n_boot=200).xs("all", level="row")
    assert list(table.index) == ["none", *GATE_KINDS]
    assert table.nested["none"] == pytest.approx(
        decide(curves, fold, np.random.default_rng(0), resamples=1).nested.value, abs=1e-12
    )
    for by in ("score", "sum", "product"):
        assert table.low[by] > 0  # false alarms that have nothing to do with the classifier's mistakes
    assert table.low["peak"] <= table.difference["peak"] <= table.high["peak"]
