"""A rule on pixels against a slow flood fill that shares nothing with it, over thousands of random rules and maps."""

import json
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
from made import NEEDS_SCORE
from scipy import ndimage

from steel_seg.post import Rule, apply_rule, apply_rules, read_rules, write_rules

STEPS = {4: [(-1, 0), (1, 0), (0, -1), (0, 1)], 8: [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]}


def regions(pixels, connectivity):
    "The connected sets of a set of (row, column), one pixel at a time."
    left, found = set(pixels), []
    while left:
        region, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            region.add((y, x))
            for dy, dx in STEPS[connectivity]:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    todo.append((y + dy, x + dx))
        found.append(region)
    return found


def slow_rule(prob, rule, score=None):
    "What `Rule` says, step by step, over Python sets and fractions."
    h, w = prob.shape
    everywhere = {(y, x) for y in range(h) for x in range(w)}
    peak, nothing = max(int(prob[p]) for p in everywhere), np.zeros((h, w), bool)

    def kept(predicted):
        "Holes filled, small components gone."
        mask = {p for p in everywhere if predicted(int(prob[p]))}
        if rule.fill_holes:
            for region in regions(everywhere - mask, 4):
                if not any(y in (0, h - 1) or x in (0, w - 1) for y, x in region):
                    mask |= region
        return set().union(*(r for r in regions(mask, rule.connectivity) if len(r) >= rule.min_component))

    gate = rule.gate_by if rule.gate else "none"
    if gate == "peak" and peak < rule.gate:
        return nothing
    if gate == "score" and score < rule.gate:
        return nothing
    if gate == "sum" and peak + score < rule.gate:
        return nothing
    if gate == "product":
        mask = kept(lambda level: Fraction(level, 255) * Fraction(score, 255) >= Fraction(rule.thresh, 255))
    else:
        mask = kept(lambda level: level >= rule.thresh)
    if gate == "core":
        enough = len(kept(lambda level: level >= rule.gate)) >= max(1, rule.min_area)
    elif gate == "area":
        enough = len(mask) >= max(1, rule.min_area) * (rule.gate - (rule.gate - 1) * Fraction(score, 255))
    else:
        enough = len(mask) >= rule.min_area
    return np.array([[enough and (y, x) in mask for x in range(w)] for y in range(h)], bool).reshape(h, w)


def random_map(rng):
    "Small maps with rings, bridges and specks: noise of few levels, sometimes smooth, sometimes flat."
    h, w = rng.integers(1, 9), rng.integers(1, 12)
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 256, (h, w)).astype(np.uint8)
    if kind == 1:
        return np.array([0, 40, 120, 128, 200, 255], np.uint8)[rng.integers(0, 6, (h, w))]
    if kind == 2:
        return ((rng.random((h, w)) < 0.6) * 200).astype(np.uint8)
    return np.full((h, w), rng.choice([0, 128, 255]), np.uint8)


GATES = {
    "peak": (1, 128, 200, 201, 255),
    "score": (1, 128, 200, 201, 255),
    "sum": (1, 200, 256, 328, 510),
    "core": (1, 120, 130, 200, 255),
    "product": (1,),
    "area": (1, 2, 5, 40),
}


def random_rule(rng):
    gate_by = str(rng.choice(list(GATES)))
    return Rule(
        int(rng.choice([1, 41, 120, 128, 129, 200, 255])),
        int(rng.integers(0, 20)),
        bool(rng.integers(2)),
        int(rng.integers(0, 8)),
        int(rng.choice([4, 8])),
        int(rng.choice(GATES[gate_by])) * int(rng.random() < 0.7),
        gate_by,
    )


def needs_score(rule):
    return rule.gate > 0 and rule.gate_by in ("score", "sum", "product", "area")


def test_thousands_of_random_rules_agree_with_a_slow_flood_fill():
    rng = np.random.default_rng(0)
    seen = {
        "filled": 0,
        "component": 0,
        "kept": 0,
        "empty": 0,
        **{f"{by} {what}": 0 for by in GATES for what in ("changes", "keeps")},
    }
    for _ in range(6000):
        prob, rule = random_map(rng), random_rule(rng)
        score = int(rng.choice([0, 60, 128, 200, 254, 255])) if needs_score(rule) or rng.random() < 0.3 else None
        before, mask = prob.copy(), apply_rule(prob, rule, score)
        assert mask.dtype == bool and np.array_equal(prob, before)
        assert np.array_equal(mask, slow_rule(prob, rule, score)), (prob, rule, score)
        if not rule.gate:
            seen["filled"] += bool(mask[prob < rule.thresh].any())
            seen["component"] += bool(mask.any() and (~mask)[prob >= rule.thresh].any())
            seen["kept"] += bool(mask.any())
            seen["empty"] += bool(not mask.any() and (prob >= rule.thresh).any())
        else:
            plain = apply_rule(prob, replace(rule, gate=0))
            seen[f"{rule.gate_by} changes"] += not np.array_equal(mask, plain)
            seen[f"{rule.gate_by} keeps"] += bool(mask.any()) and np.array_equal(mask, plain)
    assert min(seen.values()) > 30, seen  # every branch was met often


def test_holes_and_components_agree_with_scipy_on_large_maps():
    rng = np.random.default_rng(1)
    for shape in ((256, 1600), (200, 200)):
        prob = ndimage.gaussian_filter(rng.random(shape), 3)
        prob = (255 * (prob - prob.min()) / np.ptp(prob)).astype(np.uint8)
        for thresh in (int(np.quantile(prob, q)) for q in (0.6, 0.75, 0.9)):
            filled = ndimage.binary_fill_holes(prob >= thresh)
            assert np.array_equal(apply_rule(prob, Rule(thresh, fill_holes=True)), filled)
            for connectivity in (4, 8):
                label, _ = ndimage.label(filled, np.ones((3, 3)) if connectivity == 8 else None)
                keep = np.bincount(label.ravel()) >= 100
                keep[0] = False
                assert keep.any() and not keep[1:].all()
                rule = Rule(thresh, fill_holes=True, min_component=100, connectivity=connectivity)
                assert np.array_equal(apply_rule(prob, rule), keep[label])


def test_applied_to_its_own_mask_a_rule_changes_nothing():
    "A filled mask has no holes, and what surrounds a dropped component reaches the border: no step undoes another."
    rng = np.random.default_rng(2)
    for _ in range(1000):
        prob, rule = random_map(rng), random_rule(rng)
        once = apply_rule(prob, rule, 255)
        twice = apply_rule(once.astype(np.uint8) * 255, rule, 255)
        assert np.array_equal(once, twice), (prob, rule)


def test_a_higher_threshold_or_size_never_adds_a_pixel():
    rng = np.random.default_rng(3)
    for _ in range(500):
        prob, rule, score = random_map(rng), random_rule(rng), int(rng.integers(256))
        mask = apply_rule(prob, rule, score)
        higher = min({"product": 1, "sum": 510}.get(rule.gate_by, 255), rule.gate + 60)
        for stricter in (
            dict(thresh=min(255, rule.thresh + 30)),
            dict(min_area=rule.min_area + 5),
            dict(min_component=rule.min_component + 3),
            dict(gate=higher),
        ):
            if rule.gate_by == "core" and "gate" in stricter and not rule.gate:
                continue  # a core takes the minimum area off the mask itself
            assert not (apply_rule(prob, replace(rule, **stricter), score) & ~mask).any(), (rule, stricter)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (5, 6)])
def test_flat_maps(shape):
    n = shape[0] * shape[1]
    for level in (0, 1, 254, 255):
        prob = np.full(shape, level, np.uint8)
        for rule in (Rule(255), Rule(255, n, True, n), Rule(255, gate=255)):
            assert apply_rule(prob, rule).all() == apply_rule(prob, rule).any() == (level == 255)
    full = np.full(shape, 255, np.uint8)
    assert apply_rule(full, Rule(1, min_area=n)).all() and not apply_rule(full, Rule(1, min_area=n + 1)).any()
    assert apply_rule(full, Rule(1, min_component=n)).all() and not apply_rule(full, Rule(1, min_component=n + 1)).any()


def test_what_equals_a_limit_passes():
    prob = np.zeros((4, 6), np.uint8)
    prob[1, 1:4] = 150, 160, 170

    def area(*args, score=None, **kwargs):
        return apply_rule(prob, Rule(*args, **kwargs), score).sum()

    assert [area(t) for t in (150, 151, 170, 171)] == [3, 2, 1, 0]
    assert [area(150, min_area=a) for a in (3, 4)] == [3, 0]
    assert [area(150, min_component=a) for a in (3, 4)] == [3, 0]
    assert [area(150, gate=g) for g in (170, 171)] == [3, 0]
    assert [area(150, gate=g, score=s) for g in (170, 171) for s in (None, 0, 255)] == [
        3,
        3,
        3,
        0,
        0,
        0,
    ]  # of the highest pixel, whatever score is given
    assert [area(150, gate=200, gate_by="score", score=s) for s in (200, 199, np.uint8(200), np.int64(199))] == [
        3,
        0,
        3,
        0,
    ]
    assert area(150, gate=1, gate_by="score", score=0) == 0 and area(150, gate=0, gate_by="score", score=0) == 3


def test_rules_go_to_their_own_channels():
    rng = np.random.default_rng(4)
    probs = rng.integers(0, 256, (3, 8, 9)).astype(np.uint8)
    rules = [Rule(100), Rule(200, 5, True), Rule(50, gate=200, gate_by="score")]
    both = apply_rules(probs, rules, [255, 255, 199])
    assert (
        both.dtype == bool
        and np.array_equal(both, np.stack([apply_rule(*x) for x in zip(probs, rules, [255, 255, 199])]))
        and not both[2].any()
    )
    for bad in ((probs, rules[:2]), (probs[0], rules), (probs, rules, [1, 2]), (probs[:2], rules)):
        with pytest.raises(ValueError):
            apply_rules(*bad)


def test_what_equals_a_gate_passes():
    prob = np.zeros((4, 6), np.uint8)
    prob[1, 1:4] = 150, 160, 170

    def area(*args, score=None, **kwargs):
        return int(apply_rule(prob, Rule(*args, **kwargs), score).sum())

    assert [area(150, gate=g, gate_by="peak", score=0) for g in (170, 171)] == [3, 0]
    assert [area(150, gate=g, gate_by="sum", score=np.uint8(200)) for g in (370, 371)] == [
        3,
        0,
    ]  # 170 + 200 does not wrap round
    assert [area(150, a, gate=160, gate_by="core") for a in (0, 1, 2, 3)] == [3, 3, 3, 0] and area(
        150, gate=171, gate_by="core"
    ) == 0
    assert area(160, 3, gate=150, gate_by="core") == 2  # the core may lie below the threshold
    assert [area(100, gate=1, gate_by="product", score=s) for s in (255, 170, 169, 160, 159, 150, 149, 0)] == [
        3,
        3,
        2,
        2,
        1,
        1,
        0,
        0,
    ]
    assert [area(150, 1, gate=3, gate_by="area", score=s) for s in (0, 255)] == [3, 3] and area(
        150, 1, gate=4, gate_by="area", score=0
    ) == 0
    assert [area(150, 0, gate=4, gate_by="area", score=s) for s in (86, 85, 84)] == [3, 3, 0]  # 4 - 3*85/255 is 3


def test_what_needs_a_score_says_so():
    prob = np.full((2, 3), 200, np.uint8)
    assert sorted(NEEDS_SCORE) == ["area", "product", "score", "sum"]
    for by in NEEDS_SCORE:
        rule = Rule(gate=1, gate_by=by)
        with pytest.raises(ValueError, match=f"gate_by='{by}' needs a score"):
            apply_rule(prob, rule)
        for scores in (None, (200, None)):
            with pytest.raises(ValueError, match=f"gate_by='{by}' needs a score"):
                apply_rules(np.stack([prob, prob]), [Rule(), rule], scores)
        assert apply_rules(np.stack([prob, prob]), [Rule(), rule], (None, 255)).all()  # the other class needs none
        assert apply_rule(prob, Rule(gate=0, gate_by=by)).all()
    for by in sorted(set(GATES) - set(NEEDS_SCORE)):
        assert apply_rule(prob, Rule(gate=200, gate_by=by)).all()
    for score in (-1, 256, 0.97, 200.0, float("nan"), "200", True):
        with pytest.raises(ValueError, match="score .*a probability p has the level"):
            apply_rule(prob, Rule(), score)


def test_a_file_from_before_gate_by_reads_as_it_meant(tmp_path):
    path = write_rules(tmp_path / "rule.json", [Rule(gate=200), Rule(140, 5)])
    found = json.loads(path.read_text())
    for rule in found["rules"]:
        assert rule.pop("gate_by") == "peak"
    path.write_text(json.dumps(found))
    assert read_rules(path)[0] == (Rule(gate=200, gate_by="peak"), Rule(140, 5)) and asdict(Rule())["gate_by"] == "peak"


@pytest.mark.parametrize(
    "prob",
    [
        np.zeros((3, 4)),
        np.zeros((3, 4), bool),
        np.zeros((1, 3, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((3, 4), np.int64),
    ],
)
def test_another_kind_of_map_is_refused(prob):
    with pytest.raises(ValueError, match="a map must be uint8"):
        apply_rule(prob, Rule())


@pytest.mark.parametrize(
    "field, value, word",
    [
        ("thresh", 0, "outside 1..255"),
        ("thresh", 256, "outside 1..255"),
        ("thresh", 0.5, "integer"),
        ("thresh", "128", "integer"),
        ("thresh", None, "integer"),
        ("thresh", True, "integer"),
        ("min_area", -1, "outside 0.."),
        ("min_area", 600.0, "integer"),
        ("min_area", float("nan"), "integer"),
        ("min_component", -3, "outside 0.."),
        ("min_component", [1], "integer"),
        ("connectivity", 6, "4 or 8"),
        ("connectivity", 2, "outside 4..8"),
        ("gate", 256, "outside 0..255"),
        ("gate", -1, "outside 0..255"),
        ("gate", 0.7, "integer"),
        ("gate_by", "vote", "one of peak, score"),
        ("gate_by", None, "one of"),
        ("gate_by", ["score"], "one of"),
        ("gate_by", "Score", "one of"),
        ("fill_holes", 1, "True or False"),
        ("fill_holes", "no", "True or False"),
        ("fill_holes", None, "True or False"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(tmp_path, field, value, word):
    with pytest.raises(ValueError, match=f"{field} .*{word}|{word}"):
        Rule(**{field: value})
    if isinstance(value, float) and value != value:
        return
    path = write_rules(tmp_path / "rule.json", [Rule(), Rule()])
    found = json.loads(path.read_text())
    found["rules"][1][field] = value
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"rule.json: rules\\[1\\]: {field} .*"):
        read_rules(path)


def test_rules_and_facts_come_back(tmp_path):
    rng = np.random.default_rng(5)
    rules = tuple(random_rule(rng) for _ in range(20))
    facts = {"score": 0.9, "classes": ["a", "ü"], "nested": {"low": 0.1}, "none": None}
    assert read_rules(write_rules(tmp_path / "rule.json", rules, **facts)) == (rules, facts)
    assert read_rules(write_rules(tmp_path / "rule.json", [Rule(np.uint8(200))])) == ((Rule(200),), {})


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "not valid JSON"),
        ("[]", "not a rule file"),
        ("{}", "not a rule file"),
        ('{"format": "steel_seg rules 1"}', "are expected"),
        ('{"format": "steel_seg rules 1", "rules": [], "facts": {}, "extra": 1}', "extra"),
        ('{"format": "steel_seg rules 1", "rules": {}, "facts": {}}', "not a list"),
        ('{"format": "steel_seg rules 1", "rules": [3], "facts": {}}', "not a rule"),
        ('{"format": "steel_seg rules 1", "rules": [{"min_aera": 3}], "facts": {}}', "min_aera"),
        ('{"format": "steel_seg rules 9", "rules": [], "facts": {}}', "not a rule file"),
    ],
)
def test_a_file_that_is_no_rule_file_is_told(tmp_path, text, word):
    (tmp_path / "rule.json").write_text(text)
    with pytest.raises(ValueError, match=f"rule.json.*{word}"):
        read_rules(tmp_path / "rule.json")


def test_an_absent_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_rules(tmp_path / "rule.json")
