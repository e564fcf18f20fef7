"""Decisions against brute force over every threshold and every area, and against slow twins of each way of choosing."""

import tracemalloc

import numpy as np
import pytest
from conftest import real_data

from steel_seg.curves import Curves, curves_of
from steel_seg.data import read_folder
from steel_seg.decide import (
    CHOOSERS,
    best_rule,
    choose_rules,
    compare_rules,
    decide,
    fold_choices,
    nested_dice,
    nested_rules,
    smooth_surface,
)
from steel_seg.flood import map_counts
from steel_seg.metric import dice, mask_counts, paired_difference
from steel_seg.post import Rule, apply_rules, read_rules
from steel_seg.score import dice_at, dice_rows, rows_of
from steel_seg.store import ProbStore
from steel_seg.surface import surface


def random_maps(rng, n=6, c=2, shape=(5, 7), floor=0):
    "Levels and truth of small images, as a store with this floor would hold them; some maps empty, some truths too."
    levels = rng.integers(0, 256, (n, c, *shape))
    if rng.random() < 0.5:
        levels = np.array([0, 30, 60, 90, 130, 131, 200, 255])[rng.integers(0, 8, levels.shape)]  # many ties
    levels = (levels * (rng.random((n, c, 1, 1)) < 0.8) * (rng.random(levels.shape) < rng.random((n, c, 1, 1)))).astype(
        np.uint8
    )
    truth = (rng.random(levels.shape) < 0.4) & (rng.random((n, c, 1, 1)) < 0.5)
    if rng.random() < 0.5:
        levels = np.where(
            truth & (rng.random(levels.shape) < 0.7), np.maximum(levels, 140), levels
        )  # a net that knows something
    return np.where(levels < floor, 0, levels).astype(np.uint8), truth


def curves_from(levels, truth, floor=0):
    counts = [[map_counts(p, t if t.any() else None) for p, t in zip(ps, ts)] for ps, ts in zip(levels, truth)]
    area, hit = (np.array([[x[k] for x in row] for row in counts], np.int32) for k in (0, 1))
    return Curves(
        tuple(f"{i}.jpg" for i in range(len(levels))),
        area,
        hit,
        truth.sum((2, 3)).astype(np.int64),
        floor,
        levels.shape[2:],
    )


def random_curves(rng, floor=0, **kwargs):
    return curves_from(*random_maps(rng, floor=floor, **kwargs), floor=floor)


def all_scores(curves, c):
    "Mean Dice of class c at every level 0..255 and every minimum area 0..H*W+1, one at a time."
    areas = np.arange(np.prod(curves.shape) + 2)
    keep = curves.area[:, c, :, None] >= areas  # (N,256,A)
    return dice(
        curves.area[:, c, :, None] * keep, curves.hit[:, c, :, None] * keep, curves.truth[:, c, None, None]
    ).mean(0)


def longest(hits):
    "First and last of the longest run of True, the first of several."
    best, start = (0, 0, -1), None
    for i, hit in enumerate([*hits, False]):
        if hit and start is None:
            start = i
        if not hit and start is not None:
            if i - start > best[0]:
                best = (i - start, start, i - 1)
            start = None
    return best[1:]


# the best rule


def test_the_best_rule_is_the_best_of_all_levels_and_areas_and_in_the_middle_of_its_tie():
    rng = np.random.default_rng(7)
    never = tied = 0
    for _ in range(250):
        floor = int(rng.choice([0, 1, 13, 100, 201, 255]))
        curves = random_curves(
            rng, floor=floor, n=int(rng.integers(1, 8)), c=1, shape=(int(rng.integers(1, 6)), int(rng.integers(1, 8)))
        )
        scores, rule = all_scores(curves, 0)[max(1, floor) :], Rule(*best_rule(rows_of(curves, 0)))
        best = scores.max()
        assert dice_at(curves, [rule]).mean() == pytest.approx(best, abs=1e-12)
        assert rule.thresh >= floor
        if best <= (curves.truth == 0).mean() + 1e-12:
            assert rule == Rule(max(128, floor), np.prod(curves.shape) + 1)
            never += 1
            continue
        first, last = longest(scores.max(1) >= best - 1e-12)
        low, high = longest(scores[(first + last) // 2] >= best - 1e-12)
        assert rule == Rule(max(1, floor) + (first + last) // 2, (low + high) // 2)
        tied += (last > first) and (high > low)
    assert never > 20 and tied > 50


def steps(*images):
    "Curves of one class from images given as (truth, (up to level, area, hit), ...): constant between those levels."
    area, hit = np.zeros((2, len(images), 1, 256), np.int32)
    for i, (_, *parts) in enumerate(images):
        for top, a, h in reversed(parts):
            area[i, 0, : top + 1], hit[i, 0, : top + 1] = a, h
    return Curves(
        tuple(map(str, range(len(images)))), area, hit, np.array([[truth] for truth, *_ in images]), 0, (10, 10)
    )


def test_ties_worked_by_hand():
    # 2*4/(8+4) = 2*2/(2+4) = .67, and 2*3/(7+4) = .55 between them: two runs of levels tie, and the longer one counts
    assert best_rule(rows_of(steps((4, (50, 8, 4), (60, 7, 3), (200, 2, 2))), 0)) == ((61 + 200) // 2, 2 // 2)
    assert best_rule(rows_of(steps((4, (150, 8, 4), (160, 7, 3), (200, 2, 2))), 0)) == ((1 + 150) // 2, 8 // 2)
    # a false alarm of 3 pixels up to level 50: at the middle level 100 it is gone, and any area up to 9 is as good
    assert best_rule(rows_of(steps((9, (200, 9, 9)), (0, (50, 3, 0))), 0)) == (100, 9 // 2)
    # up to level 150 the middle level still shows it: areas 4 to 9
    assert best_rule(rows_of(steps((9, (200, 9, 9)), (0, (150, 3, 0))), 0)) == (100, (4 + 9) // 2)
    # dropping below 5 loses one defect and one false alarm, so areas 0 to 4 and 5 to 40 tie: they are one range
    assert best_rule(rows_of(steps((40, (255, 40, 40)), (4, (255, 4, 4)), (0, (255, 4, 0))), 0)) == (128, 40 // 2)
    # the same with a false alarm of 20 pixels in between: 0 to 4 or 21 to 40 for nothing lost, and the best is above it
    assert best_rule(rows_of(steps((40, (255, 40, 40)), (4, (255, 4, 4)), (0, (255, 20, 0)), (0, (255, 4, 0))), 0)) == (
        128,
        (21 + 40) // 2,
    )


def test_best_rules_of_many_images_do_not_depend_on_the_size_of_a_block():
    """More images than fit one block of levels, so that the blocks' seams are crossed."""
    rng = np.random.default_rng(8)
    small = random_curves(rng, n=40, c=1, floor=13)
    many = small.take(rng.integers(0, 40, 12_568))
    tracemalloc.start()
    rule = Rule(*best_rule(rows_of(many, 0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dice_at(many, [rule]).mean() == pytest.approx(
        surface(rows_of(many, 0), np.arange(13, 256), np.arange(37)).max(), abs=1e-12
    )
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"  # all levels at once take some 300 MB


def test_a_class_that_is_not_seen_is_never_predicted():
    rng = np.random.default_rng(9)
    levels, truth = random_maps(rng)
    truth[:, 1] = False
    for given in (levels, np.zeros_like(levels), np.full_like(levels, 255)):
        curves = curves_from(given, truth)
        rule = Rule(*best_rule(rows_of(curves, 1)))
        assert rule == Rule(128, 36) and (dice_at(curves, (Rule(), rule))[:, 1] == 1).all()
    everywhere = curves_from(
        np.full_like(levels, 255), np.ones_like(truth)
    )  # even a mask of all pixels is less than "never"
    assert (
        best_rule(rows_of(everywhere, 0))[1] <= 35
        and (dice_at(everywhere, choose_rules(everywhere, "best")) == 1).all()
    )


def test_no_images_no_rule():
    with pytest.raises(ValueError, match="no images"):
        best_rule(rows_of(random_curves(np.random.default_rng(0)).take([]), 0))


def test_weights_stand_for_copies_of_images():
    rng = np.random.default_rng(20)
    for _ in range(40):
        curves = random_curves(rng, n=7, c=2)
        counts = rng.multinomial(7, np.full(7, 1 / 7))
        copies = curves.take(np.repeat(np.arange(7), counts))
        for c in (0, 1):
            assert best_rule(rows_of(curves, c), counts) == best_rule(rows_of(copies, c))


# the other ways of choosing


def wide_curves(rng, n=30, c=3, floor=0):
    "Images with room for areas, and a net that knows something: smooth ways need a hill to find."
    shape = (16, 40)
    truth = np.zeros((n, c, *shape), bool)
    levels = rng.integers(0, 40, (n, c, *shape))
    for i in range(n):
        for k in range(c):
            y, x, h, w = rng.integers(0, 10), rng.integers(0, 30), rng.integers(2, 7), rng.integers(3, 11)
            if rng.random() < 0.5:
                truth[i, k, y : y + h, x : x + w] = True
            if rng.random() < 0.9:
                levels[i, k, y : y + h, x : x + w] += rng.integers(30, 215) * truth[i, k, y : y + h, x : x + w]
            y, x = rng.integers(0, 13), rng.integers(0, 36)
            if rng.random() < 0.4:
                levels[i, k, y : y + 3, x : x + 4] = rng.integers(20, 200)
    return curves_from(np.where(levels < floor, 0, levels).astype(np.uint8), truth, floor)


def chooser_grid(floor):
    areas, a = [], 1.0
    while not areas or areas[-1] <= 16 * 40:
        areas.append(min(int(np.ceil(a)), 16 * 40 + 1))
        a *= np.exp(0.065)
    return list(range(max(1, floor), 256, 2)), areas


def smoothed_by_loops(scores, images, level_step, area_step):
    wider = (1000 / images) ** 0.1

    def once(x):
        out = np.empty_like(x)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                across = np.exp(-0.5 * ((np.arange(x.shape[0]) - i) * level_step / 20 / wider) ** 2)
                along = np.exp(-0.5 * ((np.arange(x.shape[1]) - j) * area_step / 0.65 / wider) ** 2)
                out[i, j] = (across[:, None] * along * x).sum() / (across.sum() * along.sum())
        return out

    return once(scores) + once(scores - once(scores))


def test_smoothing_is_a_weighted_mean_and_what_it_took_given_back():
    rng = np.random.default_rng(21)
    for shape, images in (((9, 14), 1000), ((9, 14), 60), ((1, 5), 1), ((6, 1), 30_000), ((1, 1), 5)):
        x = rng.random(shape)
        assert np.allclose(smooth_surface(x, images, 3, 0.2), smoothed_by_loops(x, images, 3, 0.2), rtol=0, atol=1e-12)


def test_plateau_and_pooled_are_the_top_of_the_smoothed_surface():
    rng = np.random.default_rng(22)
    for floor in (0, 13, 60):
        curves = wide_curves(rng, floor=floor)
        levels, areas = chooser_grid(floor)
        gain = [surface(rows_of(curves, c), levels, areas) - (curves.truth[:, c] == 0).mean() for c in range(3)]
        share = 30 / 30
        for how, mixed in (("plateau", gain), ("pooled", [g + share * (sum(gain) - g) for g in gain])):
            for rule, m in zip(choose_rules(curves, how), mixed):
                s = smooth_surface(m, 30, 2, 0.065)
                t, a = np.unravel_index(s.argmax(), s.shape)
                assert rule == Rule(levels[t], areas[a])


def test_other_classes_weigh_as_thirty_images():
    rng = np.random.default_rng(23)
    curves = wide_curves(rng)
    one = curves.take(slice(None))
    one = Curves(one.image_ids, one.area[:, :1], one.hit[:, :1], one.truth[:, :1], one.floor, one.shape)
    assert choose_rules(one) == choose_rules(one, "plateau")  # no other class, nothing to pool
    many = curves.take(np.tile(np.arange(30), 2000))
    for a, b in zip(choose_rules(many), choose_rules(many, "plateau")):
        assert abs(a.thresh - b.thresh) <= 2 and abs(np.log(a.min_area / b.min_area)) < 0.1  # 30 of 60,000
    assert choose_rules(curves) != choose_rules(curves, "plateau")


def test_the_middle_is_within_a_standard_error_of_the_best():
    rng = np.random.default_rng(24)
    for _ in range(5):
        curves = wide_curves(rng, c=2)
        levels, areas = chooser_grid(0)
        for c, rule in enumerate(choose_rules(curves, "middle")):
            rows = rows_of(curves, c)
            raw = surface(rows, levels, areas)
            t, a = np.unravel_index(raw.argmax(), raw.shape)
            best, members = dice_rows(rows, levels[t], areas[a]), []
            for i, level in enumerate(levels):
                for j, area in enumerate(areas):
                    d = best - dice_rows(rows, level, area)
                    if d.mean() <= d.std() / np.sqrt(len(d)) + 1e-12:
                        members.append((i, j))
            at = np.array(members)
            far = ((at[:, 0] - at[:, 0].mean()) * 2 / 20) ** 2 + ((at[:, 1] - at[:, 1].mean()) * 0.065 / 0.65) ** 2
            near = at[far <= far.min() + 1e-9]
            assert any((rule.thresh, rule.min_area) == (levels[i], areas[j]) for i, j in near)


def test_bagged_is_the_mean_of_resampled_bests():
    curves = wide_curves(np.random.default_rng(25), c=1)
    levels, areas = chooser_grid(0)
    rng, found = np.random.default_rng(9), []
    for _ in range(50):
        drawn = np.repeat(np.arange(30), rng.multinomial(30, np.full(30, 1 / 30)))
        raw = surface(rows_of(curves.take(drawn), 0), levels, areas)
        t, a = np.unravel_index(raw.argmax(), raw.shape)
        found.append((levels[t], np.log(areas[a])))
    level, area = np.mean(found, axis=0)
    (rule,) = choose_rules(curves, "bagged", rng=np.random.default_rng(9))
    assert abs(rule.thresh - level) <= 1.5 and abs(np.log(rule.min_area) - area) < 0.5 / rule.min_area


@pytest.mark.parametrize("how", CHOOSERS)
def test_every_way_is_deterministic_stays_above_the_floor_and_knows_when_to_predict_nothing(how):
    rng = np.random.default_rng(26)

    def choose(curves):
        return choose_rules(curves, how, rng=np.random.default_rng(1))

    for floor in (0, 1, 13, 100, 254, 255):
        curves = random_curves(rng, floor=floor, n=8, c=2)
        rules = choose(curves)
        assert rules == choose(curves) and len(rules) == 2 and all(r.thresh >= max(1, floor) for r in rules)
        empty = (curves.truth == 0).mean(0)
        for c, rule in enumerate(rules):
            if all_scores(curves, c)[max(1, floor) :].max() <= empty[c] + 1e-12:
                assert rule == Rule(max(128, floor), 36)
    levels, truth = random_maps(rng, n=8)
    truth[:, 1] = False
    for given in (levels, np.zeros_like(levels), np.full_like(levels, 255)):
        assert choose(curves_from(given, truth))[1] == Rule(128, 36)
    with pytest.raises(ValueError, match="no images"):
        choose(curves_from(levels, truth).take([]))


def test_ways_that_are_not_there_are_refused():
    curves = random_curves(np.random.default_rng(27))
    with pytest.raises(ValueError, match="'luck'; there are pooled, plateau, best, middle, bagged"):
        choose_rules(curves, "luck")
    with pytest.raises(ValueError, match="pass rng"):
        choose_rules(curves, "bagged")
    with pytest.raises(ValueError, match="1 templates for 2 classes"):
        choose_rules(curves, base_rule=[Rule()])
    with pytest.raises(ValueError, match="class_levels of shape"):
        choose_rules(curves, class_levels=np.zeros((6, 3), int))
    with pytest.raises(ValueError, match="needs a score"):
        choose_rules(curves, base_rule=Rule(gate=1, gate_by="product"))


def test_a_template_is_kept_and_chosen_under():
    rng = np.random.default_rng(28)
    curves = wide_curves(rng, c=2)
    scores = rng.integers(0, 256, (30, 2))
    templates = (Rule(gate=100, gate_by="score"), Rule(gate=1, gate_by="product"))
    for how in CHOOSERS:
        rules = choose_rules(curves, how, templates, scores, np.random.default_rng(0))
        assert [(r.gate, r.gate_by) for r in rules] == [(100, "score"), (1, "product")]
    best = choose_rules(curves, "best", templates, scores)
    for c, rule in enumerate(best):
        rows = rows_of(curves, c, templates[c], scores[:, c])
        assert (
            dice_rows(rows, rule.thresh, rule.min_area).mean()
            >= surface(rows, range(1, 256, 3), range(0, 641, 20)).max() - 1e-12
        )
    decision = decide(
        curves, np.arange(30) % 3, np.random.default_rng(0), base_rule=templates, class_levels=scores, resamples=5
    )
    assert decision.rules == choose_rules(curves, base_rule=templates, class_levels=scores)
    assert decision.optimistic.value == pytest.approx(dice_at(curves, decision.rules, scores).mean())
    assert decision.nested.value == pytest.approx(
        nested_dice(curves, np.arange(30) % 3, base_rule=templates, class_levels=scores).mean()
    )


# nested, and the decision


@pytest.mark.parametrize("how", CHOOSERS)
@pytest.mark.parametrize("must_gain", [False, True])
def test_a_fold_does_not_choose_its_own_rule(how, must_gain):
    rng = np.random.default_rng(10)
    changed = 0

    def nested(curves, fold):
        return nested_rules(curves, fold, how, rng=np.random.default_rng(2), must_gain=must_gain)

    for _ in range(20 if how == "best" else 6):
        levels, truth = random_maps(rng, n=12)
        fold = rng.permutation(np.arange(12) % 3)
        rules = nested(curves_from(levels, truth), fold)
        assert sorted(rules) == [0, 1, 2]
        if how != "bagged" and not must_gain:
            assert rules[1] == choose_rules(curves_from(levels, truth).take(fold != 1), how)
        for k in range(3):
            other_levels, other_truth = random_maps(rng, n=12)
            mine = (fold == k)[:, None, None, None]
            other = nested(curves_from(np.where(mine, other_levels, levels), np.where(mine, other_truth, truth)), fold)
            assert other[k] == rules[k]
            changed += any(other[j] != rules[j] for j in range(3) if j != k)
    # The folds that do see the change choose otherwise.
    assert changed > (30 if how == "best" and not must_gain else 6)


@pytest.mark.parametrize("how", ["best", "pooled"])
def test_the_nested_score_is_each_fold_under_the_others_rules(how):
    rng = np.random.default_rng(11)
    curves = random_curves(rng, n=11)
    fold = np.array([7, 7, 2, 2, 2, 7, -1, -1, 2, 7, -1])  # any numbers
    want = np.full((11, 2), np.nan)
    for i in range(11):
        want[i] = dice_at(
            curves.take([i]), choose_rules(curves.take([j for j in range(11) if fold[j] != fold[i]]), how)
        )[0]
    for folds in (fold, fold.tolist()):
        assert np.array_equal(nested_dice(curves, folds, how=how, must_gain=False), want)
    for bad in (np.zeros(11), fold[:-1], fold[None]):
        with pytest.raises(ValueError):
            nested_dice(curves, bad)


def slow_gain(curves, fold, how):
    "What the rules of the other folds gain over predicting nothing, image by image; of one fold, in five parts."
    part = fold if len(set(fold)) > 1 else np.concatenate([[k] * len(p) for k, p in enumerate(np.array_split(fold, 5))])
    gains = np.zeros((len(fold), 2))
    for i in range(len(fold)):
        rules = choose_rules(curves.take(part != part[i]), how)
        gains[i] = dice_at(curves.take([i]), rules)[0] - (curves.truth[i] == 0)
    return gains.mean(0)


@pytest.mark.parametrize("how", ["best", "pooled"])
@pytest.mark.parametrize("folds", [2, 3])
def test_a_class_that_gains_nothing_on_other_images_is_never_predicted(how, folds):
    rng, dropped = np.random.default_rng(15), 0
    for _ in range(12):
        curves = random_curves(rng, n=24)
        fold = np.sort(rng.permutation(np.arange(24) % folds))
        never = Rule(128, int(np.prod(curves.shape)) + 1)
        for left_out in (None, *range(folds)):
            images = np.ones(24, bool) if left_out is None else fold != left_out
            gain = slow_gain(curves.take(images), fold[images], how)
            choices = fold_choices(curves, fold, how)
            assert choices.gain(left_out) == pytest.approx(gain, abs=1e-12)
            chosen = choose_rules(curves.take(images), how)
            with_others = gain + min(1, 10 / images.sum()) * gain[::-1]
            want = [rule if a > 0 or b > 1e-12 else never for rule, a, b in zip(chosen, gain, with_others)]
            assert choices.rules(left_out) == tuple(want)
            dropped += sum(a != b for a, b in zip(chosen, want))
        decision = decide(curves, fold, np.random.default_rng(0), how, resamples=2)
        assert decision.rules == choices.rules() and decision.fold_rules == choices.fold_rules()
        for c, (name, row) in enumerate(decision.choice.iterrows()):
            line = next(line for line in str(decision).splitlines() if line.startswith(name))
            if decision.rules[c] != choices.chosen()[c]:
                assert row.never_predict and row.dropped_thresh == choices.chosen()[c].thresh
                assert "on images that did not choose it" in line
            else:
                assert np.isnan(row.dropped_thresh)
    assert dropped > 3


def test_two_folds_whose_nets_differ_are_not_worth_a_rule():
    """The rules look good on the images that chose them. On the other fold, whose levels are higher, they lose.

    Before the step the nested score was below that of predicting nothing.
    """
    rng, n = np.random.default_rng(16), 40
    fold = np.arange(n) % 2
    truth = np.zeros((n, 1, 6, 8), bool)
    truth[:8, 0, :3] = True
    levels = np.where(truth, 90, np.where(rng.random(truth.shape) < 0.9, 60, 0)).astype(np.uint8)
    levels[fold == 1] = np.minimum(levels[fold == 1].astype(int) + 40, 255) * (levels[fold == 1] > 0)
    curves = curves_from(levels, truth)
    without = nested_dice(curves, fold, how="best", must_gain=False).mean()
    decision = decide(curves, fold, np.random.default_rng(0), how="best", resamples=2)
    assert without < decision.all_empty <= decision.nested.value
    assert decision.rules[0].min_area > 48 and decision.choice.gain.iloc[0] < 0
    assert "less than predicting nothing" in str(decision)


def test_two_sets_of_rules_are_compared_on_the_same_images():
    curves = wide_curves(np.random.default_rng(29), c=2)
    a, b = (Rule(100, 10),) * 2, (Rule(200), Rule(90, 30))
    assert compare_rules(curves, a, b, np.random.default_rng(4)) == paired_difference(
        dice_at(curves, a), dice_at(curves, b), np.random.default_rng(4)
    )
    assert compare_rules(curves, a, a, np.random.default_rng(4)).value == 0


@pytest.mark.parametrize("how", ["pooled", "best", "bagged"])
def test_a_decision_says_the_same_twice_and_adds_up(how, tmp_path):
    curves = random_curves(np.random.default_rng(12), n=20)
    fold = np.arange(20) % 4
    decision, again = (decide(curves, fold, np.random.default_rng(3), how, resamples=20) for _ in range(2))
    assert (
        str(decision) == str(again)
        and decision.nested == again.nested
        and decision.optimistic == again.optimistic
        and decision.choice.equals(again.choice)
    )
    if how != "bagged":
        assert decision.fold_rules == nested_rules(curves, fold, how)
        for rule, chosen, never in zip(decision.rules, choose_rules(curves, how), decision.choice.never_predict):
            assert rule == chosen or never
    assert decision.images == 20 and decision.how == how
    assert decision.optimistic.value == pytest.approx(dice_at(curves, decision.rules).mean())
    assert decision.nested.value == pytest.approx(nested_dice(curves, fold, decision.fold_rules).mean())
    assert decision.nested.low <= decision.nested.value <= decision.nested.high
    if how == "best":
        assert decision.optimistic.value >= max(decision.nested.value, decision.all_empty) - 1e-12
    assert decision.all_empty == dice_at(curves, [Rule(128, 36)] * 2).mean()
    table = decision.table
    assert list(table.index) == ["all", "class 1", "class 2"] and list(table.columns) == [
        "score",
        "present",
        "empty",
        "pairs",
        "present_pairs",
        "optimistic",
    ]
    assert table.score["all"] == pytest.approx(decision.nested.value) and table.optimistic["all"] == pytest.approx(
        decision.optimistic.value
    )
    assert table.score["class 2"] == pytest.approx(nested_dice(curves, fold, decision.fold_rules)[:, 1].mean())
    first, *_ = str(decision).splitlines()
    assert first.startswith(str(decision.nested)) and "fresh" in first  # what to expect comes first
    rules, facts = read_rules(decision.save(tmp_path / "rule.json", data_sha256="ab", seed=3))
    assert rules == decision.rules and facts["data_sha256"] == "ab" and facts["images"] == 20 and facts["how"] == how
    assert facts["nested"] == vars(decision.nested) and facts["optimistic"]["high"] == decision.optimistic.high
    assert [Rule(**r) for r in facts["fold_rules"]["2"]] == list(decision.fold_rules[2])
    assert facts["table"][0]["row"] == "all" and facts["table"][2]["score"] == table.score["class 2"]
    assert [c["row"] for c in facts["choice"]] == ["class 1", "class 2"]


def test_a_decision_says_how_unstable_the_choice_is():
    curves = wide_curves(np.random.default_rng(30), c=3)
    curves.truth[:, 2] = 0  # a class that is not seen
    curves.hit[:, 2] = 0
    choice = decide(curves, np.arange(30) % 3, np.random.default_rng(0), "plateau", resamples=40).choice
    rng, drawn = np.random.default_rng(0), []
    for _ in range(60):
        rule = choose_rules(curves.take(rng.integers(30, size=30)), "plateau")[0]
        drawn.append((rule.thresh, rule.min_area))
    for c in ("class 1", "class 2"):
        assert (
            choice.thresh_low[c] <= choice.thresh[c] <= choice.thresh_high[c]
            and choice.min_area_low[c] <= choice.min_area[c] <= choice.min_area_high[c]
        )
        assert 0 <= choice.never[c] < 0.3 and not choice.never_predict[c]
    low, high = np.quantile(np.array(drawn)[:, 0], [0.05, 0.95])  # other draws of the same kind spread alike
    width = choice.thresh_high["class 1"] - choice.thresh_low["class 1"]
    assert 0.5 * (high - low) < width < 2.5 * (high - low)
    assert choice.never["class 3"] == 1 and choice.never_predict["class 3"]
    assert "class 3: never predicted" in str(decide(curves, np.arange(30) % 3, np.random.default_rng(0), resamples=3))


def test_two_images_and_one_class_are_enough():
    rng = np.random.default_rng(13)
    for how in CHOOSERS:
        for _ in range(20):
            curves = random_curves(rng, n=2, c=1, shape=(1, 5), floor=13)
            decision = decide(curves, [0, 1], rng, how, resamples=3)
            assert len(decision.rules) == 1 and 0 <= decision.nested.value <= 1 and str(decision)
            if how != "bagged":
                for k in (0, 1):  # one image is left: nothing says what a rule gains, and it is kept
                    assert decision.fold_rules[k] == choose_rules(curves.take([1 - k]), how)
        with pytest.raises(ValueError):
            decide(curves.take([0]), [0], rng, how)


@pytest.mark.real
@pytest.mark.parametrize("name", ["severstal-sample", "neu-seg"])
def test_curves_and_decision_on_real_masks(name, tmp_path):
    """The store holds what a net might say of real masks; counts and the decision must be those of the pixels."""
    folder = read_folder(real_data(name))
    rng, ids = np.random.default_rng(14), list(folder.images.image_id[:25])
    store = ProbStore.create(tmp_path / "s", ids, folder.n_classes, folder.shape)
    for image_id in ids:
        mask = folder.mask(image_id)
        store.write(
            image_id,
            (
                mask * rng.integers(60, 256, mask.shape)
                + (1 - mask) * rng.integers(0, 140, mask.shape) * (rng.random(mask.shape) < 0.01)
            ).astype(np.uint8),
        )
    curves = curves_of(store, folder)
    assert np.array_equal(curves.truth, folder.truth_area()[:25]) and curves.shape == folder.shape
    decision = decide(curves, np.arange(len(ids)) % 5, rng)
    masks = np.stack([apply_rules(store.read(i), decision.rules) for i in ids])
    truth = np.stack([folder.mask(i) for i in ids])
    assert np.array_equal(dice_at(curves, decision.rules), dice(*mask_counts(masks, truth)))
    assert decision.optimistic.value > decision.all_empty + 0.1
