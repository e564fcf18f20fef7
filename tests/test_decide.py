"""Curves and decisions from counts against pixels and brute force over every threshold and every area."""
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import real_data

from steel_seg.curves import Curves, curves_of, map_counts, read_curves, write_curves
from steel_seg.data import read_folder
from steel_seg.decide import best_rule, choose_rules, decide, dice_at, nested_dice, nested_rules, surface
from steel_seg.metric import dice, mask_counts
from steel_seg.post import Rule, apply_rules, read_rules
from steel_seg.store import ProbStore


def random_maps(rng, n=6, c=2, shape=(5, 7), floor=0):
    "Levels and truth of small images, as a store with this floor would hold them; some maps empty, some truths too."
    levels = rng.integers(0, 256, (n, c, *shape))
    if rng.random() < .5: levels = np.array([0, 30, 60, 90, 130, 131, 200, 255])[rng.integers(0, 8, levels.shape)]  # many ties
    levels = (levels*(rng.random((n, c, 1, 1)) < .8)*(rng.random(levels.shape) < rng.random((n, c, 1, 1)))).astype(np.uint8)
    truth = (rng.random(levels.shape) < .4) & (rng.random((n, c, 1, 1)) < .5)
    if rng.random() < .5: levels = np.where(truth & (rng.random(levels.shape) < .7), np.maximum(levels, 140), levels)  # a net that knows something
    return np.where(levels < floor, 0, levels).astype(np.uint8), truth


def curves_from(levels, truth, floor=0):
    counts = [[map_counts(p, t if t.any() else None) for p, t in zip(ps, ts)] for ps, ts in zip(levels, truth)]
    area, hit = (np.array([[x[k] for x in row] for row in counts], np.int32) for k in (0, 1))
    return Curves(tuple(f"{i}.jpg" for i in range(len(levels))), area, hit, truth.sum((2, 3)).astype(np.int64), floor, levels.shape[2:])


def random_curves(rng, floor=0, **kwargs): return curves_from(*random_maps(rng, floor=floor, **kwargs), floor=floor)


def all_scores(curves, c):
    "Mean Dice of class c at every level 0..255 and every minimum area 0..H*W+1, one at a time."
    areas = np.arange(np.prod(curves.shape) + 2)
    keep = curves.area[:, c, :, None] >= areas  # (N,256,A)
    return dice(curves.area[:, c, :, None]*keep, curves.hit[:, c, :, None]*keep, curves.truth[:, c, None, None]).mean(0)


def longest(hits):
    "First and last of the longest run of True, the first of several."
    best, start = (0, 0, -1), None
    for i, hit in enumerate([*hits, False]):
        if hit and start is None: start = i
        if not hit and start is not None:
            if i - start > best[0]: best = (i - start, start, i - 1)
            start = None
    return best[1:]


# curves

def test_counts_equal_a_count_at_every_level():
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(rng.integers(1, 9, 2))
        prob = rng.integers(0, 256, shape).astype(np.uint8)
        truth = rng.random(shape) < .5
        for given in (truth, truth.astype(np.uint8), truth*255, None):
            area, hit = map_counts(prob, given)
            assert area.shape == hit.shape == (256,) and area.dtype == hit.dtype == np.int64
            assert area.tolist() == [int((prob >= t).sum()) for t in range(256)]
            assert hit.tolist() == [0 if given is None else int(((prob >= t) & truth).sum()) for t in range(256)]


def test_counts_of_other_arrays_are_refused():
    for prob, truth in ((np.zeros((2, 3)), None), (np.zeros((2, 3), np.int32), None), (np.zeros((2, 3), np.uint8), np.zeros((3, 2))), (np.zeros((2, 3), np.uint8), np.zeros((1, 3)))):
        with pytest.raises(ValueError): map_counts(prob, truth)


def stand_in(ids, truth):
    "As much of a StripFolder as curves_of asks for."
    ids = sorted(ids)
    return SimpleNamespace(root="data", n_classes=truth.shape[1], shape=truth.shape[2:], images=pd.DataFrame({"image_id": ids}), mask=dict(zip(ids, truth.astype(np.uint8))).__getitem__)


def test_curves_of_a_store_are_in_its_order_and_exact(tmp_path):
    rng = np.random.default_rng(1)
    levels, truth = random_maps(rng, n=9, c=3, floor=20)
    ids = [f"{i}.jpg" for i in range(9)]
    order = rng.permutation(9)
    store = ProbStore.create(tmp_path/"s", [ids[i] for i in order[:7]], 3, (5, 7), floor=20)
    folder = stand_in(ids, truth)
    for count, i in enumerate(order[:7]):
        with pytest.raises(ValueError, match=f"{7 - count} of 7 images are not finished, '{ids[i]}'"): curves_of(store, folder)
        store.write(ids[i], levels[i])
    curves = curves_of(store, folder, progress=True)
    want = curves_from(levels[order[:7]], truth[order[:7]], 20)
    assert curves.image_ids == store.image_ids and (curves.floor, curves.shape) == (20, (5, 7))
    for name in ("area", "hit", "truth"): assert np.array_equal(getattr(curves, name), getattr(want, name)) and getattr(curves, name).dtype == getattr(want, name).dtype


def test_a_store_that_does_not_fit_the_folder_is_told(tmp_path):
    truth = np.zeros((3, 2, 5, 7), bool)
    store = ProbStore.create(tmp_path/"s", ["a", "b", "x"], 2, (5, 7))
    with pytest.raises(ValueError, match="1 of 3 images are not in data, 'x'"): curves_of(store, stand_in(["a", "b", "c"], truth))
    with pytest.raises(ValueError, match="holds 2 classes"): curves_of(store, stand_in(["a", "b", "x"], truth[:, :1]))
    with pytest.raises(ValueError, match="holds 2 classes"): curves_of(store, stand_in(["a", "b", "x"], truth[..., :-1]))


def test_curves_come_back_from_a_file_and_nothing_else_does(tmp_path):
    curves, path = random_curves(np.random.default_rng(2), floor=30), tmp_path/"curves.npz"
    back = read_curves(write_curves(path, curves))
    for name in ("area", "hit", "truth"): assert np.array_equal(getattr(curves, name), getattr(back, name)) and getattr(curves, name).dtype == getattr(back, name).dtype
    assert (back.image_ids, back.floor, back.shape) == (curves.image_ids, 30, (5, 7)) and isinstance(back.image_ids[0], str)
    arrays = dict(np.load(path))
    for change in ({"area": arrays["area"].astype(float)}, {"hit": arrays["hit"][:, :1]}, {"truth": arrays["truth"][0]}, {"image_ids": arrays["image_ids"][1:]},
                   {"image_ids": np.array([{"a": 1}]*6, object)}, {"hit": arrays["area"] + 1}, {"truth": arrays["truth"] - 1}):
        np.savez(path, **{**arrays, **change})
        with pytest.raises(ValueError, match="curves.npz"): read_curves(path)
    for data in (b"", b"text", b"PK\x03\x04"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="curves.npz"): read_curves(path)
    with pytest.raises(ValueError, match="absent.npz"): read_curves(tmp_path/"absent.npz")


def test_a_flipped_bit_in_a_curves_file_raises_or_changes_nothing(tmp_path):
    rng = np.random.default_rng(3)
    curves, path = random_curves(rng, floor=30), tmp_path/"curves.npz"
    data, raised = write_curves(path, curves).read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try: back = read_curves(path)
        except ValueError as e:
            assert "curves.npz" in str(e)
            raised += 1
            continue
        for field in ("image_ids", "floor", "shape"): assert getattr(back, field) == getattr(curves, field)
        for field in ("area", "hit", "truth"): assert np.array_equal(getattr(back, field), getattr(curves, field))
    assert raised > 200


def test_taking_images_takes_their_rows():
    curves = random_curves(np.random.default_rng(3))
    for indices in ([4, 0, 0], np.array([False, True, True, False, False, True]), slice(1, 3), np.array([], int)):
        part = curves.take(indices)
        assert part.image_ids == tuple(np.array(curves.image_ids, object)[indices])
        for name in ("area", "hit", "truth"): assert np.array_equal(getattr(part, name), getattr(curves, name)[indices])


# the score of a rule

def test_dice_from_counts_is_dice_of_the_masks_that_the_rule_makes():
    rng = np.random.default_rng(4)
    gated = dropped = 0
    for _ in range(400):
        floor = int(rng.integers(0, 100))
        levels, truth = random_maps(rng, n=3, floor=floor)
        curves = curves_from(levels, truth, floor)
        rules = [Rule(int(rng.integers(max(1, floor), 256)), int(rng.integers(0, 20)), min_component=int(rng.integers(0, 2)), gate=int(rng.choice([0, 1, 100, 200, 254, 255]))) for _ in range(2)]
        masks = np.stack([apply_rules(p, rules) for p in levels])
        assert np.array_equal(dice_at(curves, rules), dice(*mask_counts(masks, truth)))
        plain = np.stack([apply_rules(p, [Rule(r.thresh) for r in rules]) for p in levels])
        dropped += (plain.any((2, 3)) & ~masks.any((2, 3))).sum()
        gated += (plain.any((2, 3)) & ~np.stack([apply_rules(p, [Rule(r.thresh, gate=r.gate) for r in rules]) for p in levels]).any((2, 3))).sum()
    assert min(gated, dropped) > 100


def test_what_counts_cannot_know_is_refused():
    curves = random_curves(np.random.default_rng(5), floor=40)
    for rules in ([Rule(fill_holes=True), Rule()], [Rule(), Rule(min_component=2)]):
        with pytest.raises(ValueError, match="apply_rule"): dice_at(curves, rules)
    for rules in ([Rule(39), Rule()], [Rule(), Rule(1)]):
        with pytest.raises(ValueError, match="40..255"): dice_at(curves, rules)
    with pytest.raises(ValueError, match="39 is outside 40"): surface(curves, 0, [128, 39], [0])
    with pytest.raises(ValueError, match="256 is outside"): surface(curves, 0, [256], [0])
    for rules in ([Rule()], [Rule()]*3):
        with pytest.raises(ValueError, match="for 2 classes"): dice_at(curves, rules)


def test_the_surface_is_the_mean_dice_at_every_point():
    rng = np.random.default_rng(6)
    for _ in range(20):
        curves = random_curves(rng, n=int(rng.integers(1, 9)))
        for c in (0, 1):
            assert np.allclose(surface(curves, c, np.arange(1, 256), np.arange(37)), all_scores(curves, c)[1:], rtol=0, atol=1e-12)
            areas = rng.integers(0, 40, 7)  # in any order, some twice
            assert np.allclose(surface(curves, c, [200, 3], areas), all_scores(curves, c)[[200, 3]][:, np.minimum(areas, 36)], rtol=0, atol=1e-12)


# the best rule

def test_the_best_rule_is_the_best_of_all_levels_and_areas_and_in_the_middle_of_its_tie():
    rng = np.random.default_rng(7)
    never = tied = 0
    for _ in range(250):
        floor = int(rng.choice([0, 1, 13, 100, 201, 255]))
        curves = random_curves(rng, floor=floor, n=int(rng.integers(1, 8)), c=1, shape=(int(rng.integers(1, 6)), int(rng.integers(1, 8))))
        scores, rule = all_scores(curves, 0)[max(1, floor):], best_rule(curves, 0)
        best = scores.max()
        assert dice_at(curves, [rule]).mean() == pytest.approx(best, abs=1e-12)
        assert rule.thresh >= floor
        if best <= (curves.truth == 0).mean() + 1e-12:
            assert rule == Rule(max(128, floor), np.prod(curves.shape) + 1)
            never += 1
            continue
        first, last = longest(scores.max(1) >= best - 1e-12)
        low, high = longest(scores[(first + last)//2] >= best - 1e-12)
        assert rule == Rule(max(1, floor) + (first + last)//2, (low + high)//2)
        tied += (last > first) and (high > low)
    assert never > 20 and tied > 50


def steps(*images):
    "Curves of one class from images given as (truth, (up to level, area, hit), ...): constant between those levels."
    area, hit = np.zeros((2, len(images), 1, 256), np.int32)
    for i, (_, *parts) in enumerate(images):
        for top, a, h in reversed(parts): area[i, 0, :top + 1], hit[i, 0, :top + 1] = a, h
    return Curves(tuple(map(str, range(len(images)))), area, hit, np.array([[truth] for truth, *_ in images]), 0, (10, 10))


def test_ties_worked_by_hand():
    # 2*4/(8+4) = 2*2/(2+4) = .67, and 2*3/(7+4) = .55 between them: two runs of levels tie, and the longer one counts
    assert best_rule(steps((4, (50, 8, 4), (60, 7, 3), (200, 2, 2))), 0) == Rule((61 + 200)//2, 2//2)
    assert best_rule(steps((4, (150, 8, 4), (160, 7, 3), (200, 2, 2))), 0) == Rule((1 + 150)//2, 8//2)
    # a false alarm of 3 pixels up to level 50: at the middle level 100 it is gone, and any area up to 9 is as good
    assert best_rule(steps((9, (200, 9, 9)), (0, (50, 3, 0))), 0) == Rule(100, 9//2)
    # up to level 150 the middle level still shows it: areas 4 to 9
    assert best_rule(steps((9, (200, 9, 9)), (0, (150, 3, 0))), 0) == Rule(100, (4 + 9)//2)
    # dropping below 5 loses one defect and one false alarm, so areas 0 to 4 and 5 to 40 tie: they are one range
    assert best_rule(steps((40, (255, 40, 40)), (4, (255, 4, 4)), (0, (255, 4, 0))), 0) == Rule(128, 40//2)
    # the same with a false alarm of 20 pixels in between: 0 to 4 or 21 to 40 for nothing lost, and the best is above it
    assert best_rule(steps((40, (255, 40, 40)), (4, (255, 4, 4)), (0, (255, 20, 0)), (0, (255, 4, 0))), 0) == Rule(128, (21 + 40)//2)


def test_best_rules_of_many_images_do_not_depend_on_the_size_of_a_block():
    """More images than fit one block of levels, so that the blocks' seams are crossed."""
    rng = np.random.default_rng(8)
    small = random_curves(rng, n=40, c=1, floor=13)
    many = small.take(rng.integers(0, 40, 12_568))
    tracemalloc.start()
    rule = best_rule(many, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dice_at(many, [rule]).mean() == pytest.approx(surface(many, 0, np.arange(13, 256), np.arange(37)).max(), abs=1e-12)
    assert peak < 200e6, f"{peak/1e6:.0f} MB"  # all levels at once take some 300 MB


def test_a_class_that_is_not_seen_is_never_predicted():
    rng = np.random.default_rng(9)
    levels, truth = random_maps(rng)
    truth[:, 1] = False
    for given in (levels, np.zeros_like(levels), np.full_like(levels, 255)):
        curves = curves_from(given, truth)
        rule = best_rule(curves, 1)
        assert rule == Rule(128, 36) and (dice_at(curves, (Rule(), rule))[:, 1] == 1).all()
    everywhere = curves_from(np.full_like(levels, 255), np.ones_like(truth))  # even a mask of all pixels is less than "never"
    assert best_rule(everywhere, 0).min_area <= 35 and (dice_at(everywhere, choose_rules(everywhere)) == 1).all()


def test_no_images_no_rule():
    with pytest.raises(ValueError, match="no images"): best_rule(random_curves(np.random.default_rng(0)).take([]), 0)


# nested, and the decision

def test_a_fold_does_not_choose_its_own_rule():
    rng = np.random.default_rng(10)
    changed = 0
    for _ in range(20):
        levels, truth = random_maps(rng, n=12)
        fold = rng.permutation(np.arange(12) % 3)
        rules = nested_rules(curves_from(levels, truth), fold)
        assert sorted(rules) == [0, 1, 2]
        for k in range(3):
            other_levels, other_truth = random_maps(rng, n=12)
            mine = (fold == k)[:, None, None, None]
            other = nested_rules(curves_from(np.where(mine, other_levels, levels), np.where(mine, other_truth, truth)), fold)
            assert other[k] == rules[k]
            changed += any(other[j] != rules[j] for j in range(3) if j != k)
    assert changed > 30  # the folds that do see the change choose otherwise


def test_the_nested_score_is_each_fold_under_the_others_rules():
    rng = np.random.default_rng(11)
    curves = random_curves(rng, n=11)
    fold = np.array([7, 7, 2, 2, 2, 7, -1, -1, 2, 7, -1])  # any numbers
    want = np.full((11, 2), np.nan)
    for i in range(11): want[i] = dice_at(curves.take([i]), choose_rules(curves.take([j for j in range(11) if fold[j] != fold[i]])))[0]
    assert np.array_equal(nested_dice(curves, fold), want) and np.array_equal(nested_dice(curves, fold.tolist()), want)
    for bad in (np.zeros(11), fold[:-1], fold[None]):
        with pytest.raises(ValueError): nested_dice(curves, bad)


def test_a_decision_says_the_same_twice_and_adds_up(tmp_path):
    curves = random_curves(np.random.default_rng(12), n=20)
    fold = np.arange(20) % 4
    decision, again = (decide(curves, fold, np.random.default_rng(3)) for _ in range(2))
    assert str(decision) == str(again) and decision.nested == again.nested and decision.optimistic == again.optimistic
    assert decision.rules == choose_rules(curves) and decision.fold_rules == nested_rules(curves, fold) and decision.images == 20
    assert decision.optimistic.value == pytest.approx(dice_at(curves, decision.rules).mean())
    assert decision.nested.value == pytest.approx(nested_dice(curves, fold).mean())
    assert decision.nested.low <= decision.nested.value <= decision.nested.high
    assert decision.optimistic.value >= max(decision.nested.value, decision.all_empty) - 1e-12
    assert decision.all_empty == dice_at(curves, [Rule(128, 36)]*2).mean()
    table = decision.table
    assert list(table.index) == ["all", "class 1", "class 2"] and list(table.columns) == ["score", "present", "empty", "pairs", "present_pairs", "optimistic"]
    assert table.score["all"] == pytest.approx(decision.nested.value) and table.optimistic["all"] == pytest.approx(decision.optimistic.value)
    assert table.score["class 2"] == pytest.approx(nested_dice(curves, fold)[:, 1].mean())
    first, *_ = str(decision).splitlines()
    assert first.startswith(str(decision.nested)) and "fresh" in first  # what to expect comes first
    rules, facts = read_rules(decision.save(tmp_path/"rule.json", data_sha256="ab", seed=3))
    assert rules == decision.rules and facts["data_sha256"] == "ab" and facts["images"] == 20
    assert facts["nested"] == vars(decision.nested) and facts["optimistic"]["high"] == decision.optimistic.high
    assert [Rule(**r) for r in facts["fold_rules"]["2"]] == list(decision.fold_rules[2])
    assert facts["table"][0]["row"] == "all" and facts["table"][2]["score"] == table.score["class 2"]


def test_two_images_and_one_class_are_enough():
    rng = np.random.default_rng(13)
    for _ in range(50):
        curves = random_curves(rng, n=2, c=1, shape=(1, 5), floor=13)
        decision = decide(curves, [0, 1], rng)
        assert len(decision.rules) == 1 and 0 <= decision.nested.value <= decision.optimistic.value + 1e-12
        for k in (0, 1): assert decision.fold_rules[k] == choose_rules(curves.take([1 - k]))
    with pytest.raises(ValueError): decide(curves.take([0]), [0], rng)


@pytest.mark.real
@pytest.mark.parametrize("name", ["severstal-sample", "neu-seg"])
def test_curves_and_decision_on_real_masks(name, tmp_path):
    """The store holds what a net might say of real masks; counts and the decision must be those of the pixels."""
    folder = read_folder(real_data(name))
    rng, ids = np.random.default_rng(14), list(folder.images.image_id[:25])
    store = ProbStore.create(tmp_path/"s", ids, folder.n_classes, folder.shape)
    for image_id in ids:
        mask = folder.mask(image_id)
        store.write(image_id, (mask*rng.integers(60, 256, mask.shape) + (1 - mask)*rng.integers(0, 140, mask.shape)*(rng.random(mask.shape) < .01)).astype(np.uint8))
    curves = curves_of(store, folder)
    assert np.array_equal(curves.truth, folder.truth_area()[:25]) and curves.shape == folder.shape
    decision = decide(curves, np.arange(len(ids)) % 5, rng)
    masks = np.stack([apply_rules(store.read(i), decision.rules) for i in ids])
    truth = np.stack([folder.mask(i) for i in ids])
    assert np.array_equal(dice_at(curves, decision.rules), dice(*mask_counts(masks, truth)))
    assert decision.optimistic.value > decision.all_empty + .1
