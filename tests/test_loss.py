"""Losses: numbers worked by hand, oracles that share no code, empty images, half precision."""

import json
import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss, SoftBCEWithLogitsLoss
from torchvision.ops import sigmoid_focal_loss

from steel_seg.loss import bce, build_loss, class_loss, focal, lovasz, soft_dice, symmetric_lovasz, weighted_bce
from steel_seg.metric import dice

BOTH = build_loss("bce_dice")
EVERY = {  # each term, and its other settings
    "bce": bce,
    "dice": soft_dice,
    "both": BOTH,
    "weighted": weighted_bce,
    "each": build_loss("weighted_bce", {"pos_weight": [2, 2, 1, 1.5]}),
    "focal": focal,
    "focal .5": build_loss("focal", {"gamma": 0.5, "alpha": 0.25}),
    "lovasz": lovasz,
    "class": build_loss("lovasz", {"per": "class"}),
    "symmetric": symmetric_lovasz,
    "symmetric class": build_loss("symmetric_lovasz", {"per": "class"}),
    "sum": build_loss("0.7*bce + 0.3*lovasz"),
}
every = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)


def some(n=3, c=4, h=20, w=30, seed=0):
    "Logits and blocky masks; every third pair is empty."
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, 3, (n, c, h, w)).astype(np.float32), np.zeros((n, c, h, w), np.uint8)
    for k, pair in enumerate(y.reshape(n * c, h, w)):
        if k % 3:
            top, left = rng.integers(0, h - 5), rng.integers(0, w - 5)
            pair[top : top + 5, left : left + rng.integers(1, 6)] = 1
    return torch.from_numpy(z), torch.from_numpy(y)


def by_loop(z, y):
    "bce and soft Dice pixel by pixel in Python floats."
    ce, dices = [], []
    for zp, yp in zip(z.flatten(0, 1).tolist(), y.flatten(0, 1).tolist()):
        hit = prob = truth = 0
        for zr, yr in zip(zp, yp):
            for a, b in zip(zr, yr):
                p = 1 / (1 + math.exp(-a))
                ce.append(-math.log(p if b else 1 - p))
                hit, prob, truth = hit + p * b, prob + p, truth + b
        dices.append(1 - (2 * hit + 1) / (prob + truth + 1))
    return sum(ce) / len(ce), sum(dices) / len(dices)


def test_both_agree_with_a_slow_loop():
    z, y = some()
    ce, d = by_loop(z, y)
    assert bce(z, y).item() == pytest.approx(ce, rel=1e-5)
    assert soft_dice(z, y).item() == pytest.approx(d, rel=1e-5)
    assert BOTH(z, y).item() == pytest.approx(ce + d, rel=1e-5)
    assert build_loss("bce")(z, y).item() == bce(z, y).item()


def test_bce_agrees_with_smp():
    z, y = some(seed=1)
    assert bce(z, y).item() == pytest.approx(SoftBCEWithLogitsLoss()(z, y.float()).item(), rel=1e-6)


def test_dice_agrees_with_smp_on_one_pair_that_is_not_empty():
    z, y = some(seed=2)
    theirs = DiceLoss("multilabel", smooth=0.5)  # added to overlap and half the sum, so it is our 1 (smp 0.6)
    for zp, yp in zip(z.flatten(0, 1), y.flatten(0, 1)):
        zp, yp = zp[None, None], yp[None, None]
        if yp.any():
            assert soft_dice(zp, yp).item() == pytest.approx(theirs(zp, yp).item(), abs=1e-5)


def test_dice_is_per_image_and_class_not_over_the_batch():
    z, y = some()
    pairs = [soft_dice(a[None, None], b[None, None]).item() for a, b in zip(z.flatten(0, 1), y.flatten(0, 1))]
    assert soft_dice(z, y).item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_sure_logits_cost_what_the_metric_says():
    "With probabilities of 0 and 1 the loss is one minus the metric, but for the 1 above and below."
    z, y = some()
    hard = torch.where(z > 2, 30.0, -30.0)
    pred, truth = (hard > 0).numpy(), y.numpy() > 0
    area, hit, n = (m.sum((2, 3)) for m in (pred, pred & truth, truth))
    assert soft_dice(hard, y).item() == pytest.approx((1 - (2 * hit + 1) / (area + n + 1)).mean(), abs=1e-6)
    big = torch.full((1, 1, 100, 100), 30.0)
    half = torch.zeros(1, 1, 100, 100, dtype=torch.uint8)
    half[..., :50] = 1
    assert soft_dice(big, half).item() == pytest.approx(1 - dice(10000, 5000, 5000), abs=1e-4)


def test_a_confident_false_alarm_on_an_empty_image_is_punished():
    empty = torch.zeros(2, 4, 64, 128, dtype=torch.uint8)
    clean = torch.full(empty.shape, -12.0)
    alarm = clean.clone()
    alarm[:, :, 20:30, 40:60] = 12.0  # 200 pixels in every pair
    assert BOTH(clean, empty) < 0.06
    assert soft_dice(alarm, empty).item() == pytest.approx(200 / 201, abs=1e-3)
    assert BOTH(alarm, empty) > 1
    theirs = DiceLoss("multilabel")
    assert theirs(alarm, empty) == 0  # smp's own leaves it out


def test_the_slope_of_a_false_alarm_points_down_and_does_not_vanish():
    empty = torch.zeros(1, 4, 64, 128, dtype=torch.uint8)
    for level in (1.0, 4.0, 8.0, 12.0):  # probabilities .73 to .999994
        z = torch.full(empty.shape, -8.0)
        z[:, 2] = level  # one whole class of the strip, the worst case for Dice
        z.requires_grad_(True)
        (slope,) = torch.autograd.grad(BOTH(z, empty), z)
        assert (slope > 0).all()  # a step against it lowers every pixel
        per_pixel = 1 / empty.numel()  # what a wrong pixel weighs in a mean over all
        assert slope[:, 2].min() > 0.7 * per_pixel
        (theirs,) = torch.autograd.grad(DiceLoss("multilabel")(z, empty), z)
        assert not theirs.any()


def test_training_the_logits_alone_takes_a_false_alarm_away():
    "From .98 everywhere on an empty image, where Dice alone stays."
    empty = torch.zeros(1, 1, 16, 32, dtype=torch.uint8)
    left = {}
    for name, loss in (("both", BOTH), ("dice", soft_dice)):
        z = torch.full(empty.shape, 4.0, requires_grad=True)
        step = torch.optim.SGD([z], lr=200.0)
        for _ in range(40):
            step.zero_grad()
            loss(z, empty).backward()
            step.step()
        left[name] = z.sigmoid().max().item()
    assert left["both"] < 0.1 and left["dice"] > 0.9


def test_a_defect_that_is_missed_is_pulled_up():
    z, y = some()
    z = torch.full_like(z, -6.0).requires_grad_(True)
    (slope,) = torch.autograd.grad(BOTH(z, y), z)
    assert (slope[y == 1] < 0).all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    z = torch.full((1, 4, 256, 512), 9.0)  # the sum of probabilities, 131,056, is infinite in float16
    y = torch.zeros(z.shape, dtype=torch.uint8)
    y[..., :256] = 1
    leaf = z.to(dtype).requires_grad_(True)
    got = loss(leaf, y)
    assert got.dtype == torch.float32 and got.item() == loss(z, y).item()
    got.backward()
    assert leaf.grad.dtype == dtype and torch.isfinite(leaf.grad).all()


@every
def test_autocast_changes_nothing(loss):
    z, y = some()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(z, y)
    assert inside.dtype == torch.float32 and inside.item() == loss(z, y).item()


@every
def test_float64_stays_float64_and_agrees_with_float32(loss):
    z, y = some()
    exact = loss(z.double(), y)
    assert exact.dtype == torch.float64 and loss(z, y).item() == pytest.approx(exact.item(), rel=1e-5)


@every
def test_targets_may_be_uint8_bool_or_float(loss):
    z, y = some()
    assert len({loss(z, t).item() for t in (y, y.bool(), y.float(), y.half())}) == 1


@every
def test_extreme_logits_stay_finite(loss):
    for z in (-1e4, 1e4):
        for t in (0, 1):
            leaf = torch.full((1, 4, 8, 8), z, requires_grad=True)
            got = loss(leaf, torch.full((1, 4, 8, 8), t, dtype=torch.uint8))
            got.backward()
            assert torch.isfinite(got) and torch.isfinite(leaf.grad).all()
            if (z > 0) == (t == 1):
                assert got < 2e-2  # Dice adds 1 to both sums; nothing else is left
            else:
                assert got > 0.9


@every
def test_a_logit_that_is_no_number_is_not_hidden(loss):
    z, y = some()
    z[1, 2, 3, 4] = math.nan
    assert loss(z, y).isnan()


@every
def test_slopes_by_small_steps(loss):
    "In float64; the pairs: part true, empty, all true, one pixel true."
    g = torch.Generator().manual_seed(3)
    z = torch.randn(2, 4, 3, 4, generator=g, dtype=torch.float64) * 2
    y = (torch.rand(2, 4, 3, 4, generator=g) < 0.4).to(torch.uint8)
    y[0, 1], y[0, 2], y[:, 3] = 0, 1, 0
    y[1, 1, 1, 1] = 1
    assert torch.autograd.gradcheck(lambda x: loss(x, y), z.requires_grad_(True), eps=1e-6, atol=1e-7)


@every
def test_a_step_down_the_slope_helps_and_points_the_right_way(loss):
    z, y = some(seed=4)
    z.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(z, y), z)
    assert (slope[y == 0] >= 0).all() and (slope[y == 1] <= 0).all() and slope.any()
    step = 1e-3 / slope.abs().max()
    assert loss(z - step * slope, y) < loss(z, y)


@every
def test_no_loss_looks_at_a_value_on_its_way(loss):
    "On the meta device there are none, so a .item() or a boolean mask, which would wait for a GPU, raises."
    z = torch.empty(2, 4, 8, 16, device="meta", requires_grad=True)
    got = loss(z, torch.empty(2, 4, 8, 16, dtype=torch.uint8, device="meta"))
    got.backward()
    assert got.shape == () and z.grad.shape == z.shape
    with pytest.raises(Exception, match="meta"):
        z[z > 0].sum()


@every
def test_scored_in_inference_mode_and_trained_afterwards(loss):
    z, y = some()
    with torch.inference_mode():
        before = loss(z, y).item()
    leaf = z.clone().requires_grad_(True)
    loss(leaf, y).backward()
    assert leaf.grad.any() and loss(z, y).item() == before


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 4, 8, 8), (2, 4, 1, 8), (2, 4, 8), (2, 4, 8, 9)])
def test_shapes_that_would_broadcast_are_refused(shape):
    for loss in EVERY.values():
        with pytest.raises(ValueError, match=r"one shape \(N,C,H,W\), got \(2, 4, 8, 8\) and"):
            loss(torch.zeros(2, 4, 8, 8), torch.zeros(shape))


# weighted_bce and focal


def test_weighted_bce_agrees_with_a_slow_loop_and_smp():
    z, y = some(n=2, h=10, w=12)
    weights = [2, 0.5, 1, 3]
    costs = []
    for zi, yi in zip(z.tolist(), y.tolist()):
        for zp, yp, w in zip(zi, yi, weights):
            costs += [
                -w * math.log(1 / (1 + math.exp(-a))) if b else -math.log(1 - 1 / (1 + math.exp(-a)))
                for zr, yr in zip(zp, yp)
                for a, b in zip(zr, yr)
            ]
    got = weighted_bce(z, y, pos_weight=weights).item()
    assert got == pytest.approx(sum(costs) / len(costs), rel=1e-5)
    assert got == pytest.approx(
        SoftBCEWithLogitsLoss(pos_weight=torch.tensor(weights).view(4, 1, 1))(z, y.float()).item(), rel=1e-6
    )
    assert weighted_bce(z, y).item() == weighted_bce(z, y, [2, 2, 2, 2]).item() == weighted_bce(z, y, 2).item()
    assert weighted_bce(z, y, 1).item() == bce(z, y).item()


def test_weight_moves_the_cheapest_answer_by_its_logarithm():
    y = torch.tensor([1, 0, 0, 0, 0], dtype=torch.uint8).view(1, 1, 1, 5)  # one of five look-alikes is defect
    for w in (1.0, 2.0, 10.0):
        same = torch.full(y.shape, math.log(w * 0.2 / 0.8), requires_grad=True)
        (slope,) = torch.autograd.grad(weighted_bce(same, y, w), same)
        assert slope.sum().item() == pytest.approx(0, abs=1e-6)


def test_another_number_of_classes_is_said():
    with pytest.raises(ValueError, match=r"pos_weight=\(1, 2\) is for 2 classes, the logits have 4"):
        build_loss("weighted_bce", {"pos_weight": [1, 2]})(*some())


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal_agrees_with_smp_and_torchvision(gamma):
    z, y = some(seed=5)
    assert focal(z, y, gamma=gamma).item() == pytest.approx(
        FocalLoss("multilabel", gamma=gamma)(z, y.float()).item(), rel=1e-5
    )
    for alpha in (0.25, 0.9):
        theirs = sigmoid_focal_loss(z, y.float(), alpha=alpha, gamma=gamma, reduction="mean")
        assert focal(z, y, gamma=gamma, alpha=alpha).item() == pytest.approx(theirs.item(), rel=1e-5)
        assert focal(z, y, gamma=gamma, alpha=alpha).item() == pytest.approx(
            FocalLoss("multilabel", gamma=gamma, alpha=alpha)(z, y.float()).item(), rel=1e-5
        )


def test_focal_on_an_empty_image():
    "A sure false pixel costs what it does in bce, one at .1 a hundredth."
    empty = torch.zeros(1, 1, 1, 1)
    sure, doubt = torch.full_like(empty, 12.0), torch.full_like(empty, -math.log(9))
    assert focal(sure, empty).item() == pytest.approx(bce(sure, empty).item(), rel=1e-4)
    assert focal(doubt, empty).item() == pytest.approx(bce(doubt, empty).item() / 100, rel=1e-5)


# the Lovász hinges


def sets(z, y, per):
    "The (logits, truth) lists of each set, in Python numbers."
    if per == "image":
        z, y = z.flatten(2).flatten(0, 1), y.flatten(2).flatten(0, 1)
    else:
        z, y = z.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1)
    return list(zip(z.double().tolist(), y.tolist()))


def jaccard_loss(wrong, truth):
    "From the sets themselves: the prediction has the true pixels that are not wrong and the others that are."
    pred = truth ^ wrong
    return 1 - len(pred & truth) / len(pred | truth) if pred | truth else 0.0


def along(order, errors, truth):
    "Errors times what each pixel adds to the Jaccard loss, in this order."
    total, wrong, last = 0.0, set(), 0.0
    for i in order:
        wrong.add(i)
        now = jaccard_loss(wrong, truth)
        total, last = total + errors[i] * (now - last), now
    return total


def hinge_by_sets(z, y):
    errors = [max(0.0, 1 - a if b else 1 + a) for a, b in zip(z, y)]
    return along(sorted(range(len(z)), key=lambda i: -errors[i]), errors, {i for i, b in enumerate(y) if b})


@pytest.mark.parametrize("per", ["image", "class"])
def test_lovasz_agrees_with_the_definition_by_sets(per):
    z, y = some(n=2, c=3, h=6, w=9, seed=6)
    y[0, 1], y[:, 2] = 1, 0  # one pair all true, one class empty in the whole batch
    found = [hinge_by_sets(*s) for s in sets(z, y, per)]
    assert lovasz(z, y, per=per).item() == pytest.approx(np.mean(found), rel=1e-5)
    other = [hinge_by_sets(*s) for s in sets(-z, 1 - y, per)]
    assert symmetric_lovasz(z, y, per=per).item() == pytest.approx((np.mean(found) + np.mean(other)) / 2, rel=1e-5)


def test_no_other_order_gives_more():
    "What makes it convex: the sorted order is the greatest of all 120, for every truth of five pixels."
    z = [0.3, -1.2, 2.1, -0.4, 0.9]
    for y in product((0, 1), repeat=5):
        errors, truth = [max(0.0, 1 - a if b else 1 + a) for a, b in zip(z, y)], {i for i, b in enumerate(y) if b}
        most = max(along(order, errors, truth) for order in permutations(range(5)))
        assert lovasz(
            torch.tensor(z, dtype=torch.float64).view(1, 1, 1, 5), torch.tensor(y).view(1, 1, 1, 5)
        ).item() == pytest.approx(most, rel=1e-9)


def test_convex_along_any_line():
    z, y = some(seed=7)
    w = some(seed=8)[0]
    for loss in (lovasz, symmetric_lovasz, EVERY["class"]):
        on = [loss((1 - t) * z.double() + t * w.double(), y).item() for t in np.linspace(0, 1, 21)]
        assert (np.diff(on, 2) > -1e-9).all()


def test_whole_errors_give_twice_the_jaccard_loss():
    "Logits of 1 and -1 have errors of 0 or 2, so the extension is the Jaccard loss itself."
    g = torch.Generator().manual_seed(9)
    pred, y = (torch.rand(3, 4, 7, 8, generator=g) < 0.5 for _ in range(2))
    pred[0, 1], y[0, 1:3] = 0, 0  # one pair where neither has a pixel, one false alarm
    j = [
        1 - (p & t).sum().item() / n if (n := (p | t).sum().item()) else 0
        for p, t in zip(pred.flatten(0, 1), y.flatten(0, 1))
    ]
    assert lovasz(pred * 2.0 - 1, y).item() == pytest.approx(2 * np.mean(j), rel=1e-5)


def test_lovasz_agrees_with_smp_where_the_sets_are_the_same():
    z, y = some(seed=10)
    n, c, h, w = z.shape
    theirs = LovaszLoss("multilabel", per_image=True)
    assert lovasz(z, y).item() == pytest.approx(
        theirs(z.reshape(n * c, 1, h, w), y.reshape(n * c, 1, h, w)).item(), rel=1e-4
    )
    by_class = theirs(z.transpose(0, 1), y.transpose(0, 1))
    assert lovasz(z, y, per="class").item() == pytest.approx(by_class.item(), rel=1e-4)
    assert lovasz(z[:, :1], y[:, :1], per="class").item() == pytest.approx(
        LovaszLoss("multilabel")(z[:, :1], y[:, :1]).item(), rel=1e-4
    )
    assert abs(lovasz(z, y).item() - theirs(z, y).item()) > 0.01  # all classes of an image in one set


def test_lovasz_slopes_are_exact_on_a_whole_strip_in_float32():
    "Hundreds of thousands of false pixels: what one adds is less than float32 can hold of the Jaccard loss itself."
    n = 256 * 1600
    rng = np.random.default_rng(11)
    y = np.zeros(n, np.uint8)
    y[rng.permutation(n)[:1000]] = 1
    z = (rng.permutation(n) - n // 2) / 2**16 + y / 2**17  # exact in float32, no two errors alike
    errors = 1 - z * (2.0 * y - 1)
    order = np.argsort(-errors)
    hit = np.cumsum(y[order])
    loss = 1 - (1000 - hit) / (1000 + np.arange(1, n + 1) - hit)
    slope = np.empty(n)
    slope[order] = np.diff(loss, prepend=0) * (errors[order] > 0)
    slope *= 1 - 2.0 * y

    def off(loss):
        leaf = torch.tensor(z, dtype=torch.float32).view(1, 1, 256, 1600).requires_grad_(True)
        (found,) = torch.autograd.grad(loss(leaf, torch.from_numpy(y).view(1, 1, 256, 1600)), leaf)
        found = found.double().numpy().ravel()
        assert not found[slope == 0].any()
        return np.abs(found / np.where(slope == 0, 1, slope) - 1)[slope != 0].max()

    assert off(lovasz) < 1e-5
    assert off(LovaszLoss("binary")) > 0.5  # the published way, by differences


def test_lovasz_on_an_empty_pair_is_the_greatest_error():
    z, _ = some(seed=12)
    empty = torch.zeros(z.shape, dtype=torch.uint8)
    errors = (1 + z).clamp(min=0)
    assert lovasz(z, empty).item() == pytest.approx(errors.amax((2, 3)).mean().item(), rel=1e-5)
    assert lovasz(z, empty, per="class").item() == pytest.approx(errors.amax((0, 2, 3)).mean().item(), rel=1e-5)
    assert symmetric_lovasz(z, empty).item() == pytest.approx(
        (errors.amax((2, 3)) + errors.mean((2, 3))).mean().item() / 2, rel=1e-5
    )
    for loss in (lovasz, symmetric_lovasz):
        assert loss(torch.full_like(z, -1), empty) == 0


def test_lovasz_on_an_empty_pair_pulls_the_worst_pixel_and_the_symmetric_form_all_that_are_wrong():
    z = some(n=1, c=1, seed=13)[0].requires_grad_(True)
    empty = torch.zeros(z.shape, dtype=torch.uint8)
    (one,) = torch.autograd.grad(lovasz(z, empty), z)
    assert one.flatten()[z.argmax()] == 1 and one.count_nonzero() == 1
    (many,) = torch.autograd.grad(symmetric_lovasz(z, empty), z)
    expected = 0.5 / z.numel() * (z > -1)
    expected.view(-1)[z.argmax()] += 0.5
    assert torch.allclose(many, expected)


def test_an_empty_image_shares_the_set_of_its_class():
    "per='class': three pixels by hand, the third a false one of an empty image: errors 2 (miss), 1.5, .5; 17/12."
    z, y = torch.tensor([0.5, -1.0, 0.5, -9.0]).view(2, 1, 1, 2), torch.tensor([1, 1, 0, 0]).view(2, 1, 1, 2)
    assert lovasz(z, y, per="class").item() == pytest.approx(17 / 12, rel=1e-6)
    assert lovasz(z, y).item() == pytest.approx(
        (2 * 0.5 + 0.5 * 0.5 + 1.5) / 2, rel=1e-6
    )  # apart: 2 and .5 at a half each; the greatest, 1.5


def test_lovasz_per_image_is_a_mean_over_pairs():
    z, y = some()
    for loss in (lovasz, symmetric_lovasz):
        pairs = [loss(a[None, None], b[None, None]).item() for a, b in zip(z.flatten(0, 1), y.flatten(0, 1))]
        assert loss(z, y).item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_equal_errors_are_taken_in_one_order():
    z, y = torch.full((2, 4, 16, 32), 2.0), some(n=2, h=16, w=32)[1]

    def slope():
        leaf = z.clone().requires_grad_(True)
        return torch.autograd.grad(symmetric_lovasz(leaf, y), leaf)[0]

    first = slope()
    assert torch.equal(first, slope())
    z, y = z[1:], y[1:]
    assert torch.equal(first[1:], slope() / 2)  # and the company of another image changes nothing


def test_training_the_logits_alone_by_lovasz():
    "A false alarm of 24 pixels goes: two steps for each pixel with the hinge, all at once with bce."
    empty = torch.zeros(1, 1, 16, 32, dtype=torch.uint8)

    def steps(loss):
        z = torch.full(empty.shape, -4.0)
        z.view(-1)[:24] = 2.0
        z.requires_grad_(True)
        for k in range(1000):
            if z.max() <= 0:
                return k
            (slope,) = torch.autograd.grad(loss(z, empty), z)
            with torch.no_grad():
                z -= slope / slope.abs().max()
        return math.inf

    assert 48 <= steps(lovasz) <= 72 and steps(bce) <= 4


# the class head


def test_class_loss_agrees_with_a_slow_loop():
    z, y = some(seed=14)
    logits = z[:, :, 0, 0]
    costs = []
    for i, c in product(range(3), range(4)):
        p, there = 1 / (1 + math.exp(-logits[i, c].item())), bool(y[i, c].any())
        costs.append(-math.log(p if there else 1 - p))
    assert class_loss(logits, y).item() == pytest.approx(np.mean(costs), rel=1e-5)
    assert len({class_loss(logits, t).item() for t in (y, y.bool(), y.float(), y.half())}) == 1


def test_class_loss_on_empty_images_pulls_down():
    z = torch.full((2, 4), 3.0, requires_grad=True)
    got = class_loss(z, torch.zeros(2, 4, 8, 8, dtype=torch.uint8))
    got.backward()
    assert got.item() == pytest.approx(math.log(1 + math.exp(3)), rel=1e-6) and (z.grad > 0).all()


def test_class_loss_in_half_precision_float64_and_without_values():
    y = some()[1]
    z = torch.linspace(-30, 30, 12).view(3, 4)
    for dtype in (torch.float16, torch.bfloat16):
        got = class_loss(z.to(dtype), y)
        assert got.dtype == torch.float32 and got.item() == class_loss(z.to(dtype).float(), y).item()
        with torch.autocast("cpu", dtype):
            assert class_loss(z.to(dtype), y).item() == got.item()
    assert torch.isfinite(class_loss(torch.full((3, 4), 1e4), y))
    assert torch.autograd.gradcheck(lambda x: class_loss(x, y), z.double().requires_grad_(True))
    class_loss(torch.empty(3, 4, device="meta", requires_grad=True), torch.empty(3, 4, 8, 8, device="meta")).backward()


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4, 3), (3,), (3, 4, 1)])
def test_class_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(N,C\) for a target \(N,C,H,W\) or \(N,C\), got"):
        class_loss(torch.zeros(shape), some()[1])


# by name


@pytest.mark.parametrize(
    "name, parts",
    [
        ("bce", [(1, bce)]),
        ("dice", [(1, soft_dice)]),
        ("lovasz", [(1, lovasz)]),
        ("weighted_bce", [(1, weighted_bce)]),
        ("focal", [(1, focal)]),
        ("symmetric_lovasz", [(1, symmetric_lovasz)]),
        ("bce_dice", [(1, bce), (1, soft_dice)]),
        ("bce + dice", [(1, bce), (1, soft_dice)]),
        ("bce+dice", [(1, bce), (1, soft_dice)]),
        ("0.7*bce + 0.3*lovasz", [(0.7, bce), (0.3, lovasz)]),
        (" 2 * dice+ focal ", [(2, soft_dice), (1, focal)]),
        (".5*bce_dice + 1e-3*lovasz", [(0.5, bce), (0.5, soft_dice), (1e-3, lovasz)]),
    ],
)
def test_a_name_is_a_weighted_sum(name, parts):
    z, y = some()
    assert build_loss(name)(z, y).item() == pytest.approx(sum(w * loss(z, y).item() for w, loss in parts), rel=1e-6)


def test_the_recipes_own_name_gives_the_numbers_it_gave():
    z, y = some()
    assert BOTH(z, y).item() == (bce(z, y) + soft_dice(z, y)).item() == build_loss("bce + dice")(z, y).item()
    assert build_loss("bce")(z, y).item() == bce(z, y).item()


@pytest.mark.parametrize(
    "name, said",
    [
        ("jaccard", "no term is called 'jaccard'"),
        ("bce + lovas", "no term is called 'lovas'"),
        ("BCE", "no term is called 'BCE'"),
        ("", "a term is missing"),
        ("  ", "a term is missing"),
        ("bce +", "a term is missing"),
        ("2*", "a term is missing"),
        ("0*bce", "the weight '0'"),
        ("-1*bce", "the weight '-1'"),
        ("nan*bce", "the weight 'nan'"),
        ("inf*bce", "the weight 'inf'"),
        ("*bce", "the weight ''"),
        ("two*bce", "the weight 'two'"),
        ("2*3*bce", "the weight '2*3'"),
        ("bce*2", "the weight 'bce'"),
        ("bce - dice", "no term is called 'bce - dice'"),
        ("bce + bce", "bce is in it twice"),
        ("bce_dice + dice", "dice is in it twice"),
        (None, "not text"),
        (3, "not text"),
    ],
)
def test_a_wrong_name_is_answered_with_the_known_ones(name, said):
    with pytest.raises(ValueError) as e:
        build_loss(name)
    assert said in str(e.value) and "bce, weighted_bce, dice, focal, lovasz, symmetric_lovasz and bce_dice" in str(
        e.value
    )


def test_settings_go_to_the_terms_that_take_them():
    z, y = some()
    args = json.loads('{"gamma": 1, "alpha": null, "per": "class", "pos_weight": [2, 2, 1, 1.5]}')
    got = build_loss("weighted_bce + focal + lovasz + 2*symmetric_lovasz", args)(z, y).item()
    want = (
        weighted_bce(z, y, [2, 2, 1, 1.5])
        + focal(z, y, gamma=1)
        + lovasz(z, y, per="class")
        + 2 * symmetric_lovasz(z, y, per="class")
    )
    assert got == pytest.approx(want.item(), rel=1e-6) and got != pytest.approx(
        build_loss("weighted_bce + focal + lovasz + 2*symmetric_lovasz")(z, y).item(), rel=1e-3
    )
    assert build_loss("focal", {})(z, y) == build_loss("focal", None)(z, y) == focal(z, y)


def test_a_list_that_changes_later_changes_nothing():
    z, y = some()
    weights = [2, 2, 1, 1.5]
    loss = build_loss("weighted_bce", {"pos_weight": weights})
    before, weights[0] = loss(z, y).item(), 100
    assert loss(z, y).item() == before


@pytest.mark.parametrize(
    "name, args, said",
    [
        ("bce", {"gamma": 2}, "'bce' has no setting 'gamma'; it has none"),
        ("focal + lovasz", {"pos_weight": 2}, "no setting 'pos_weight'; it has gamma, alpha, per"),
        ("focal", {"Gamma": 2}, "no setting 'Gamma'; it has gamma, alpha"),
        ("focal", {2: 2}, "no setting 2"),
        ("focal", [2], "are a dict"),
        ("focal", "gamma", "are a dict"),
        ("lovasz", {"per": "batch"}, "per='batch' is not"),
        ("lovasz", {"per": None}, "per=None"),
        ("lovasz", {"per": ["image"]}, r"per=['image']"),
        ("focal", {"gamma": -1}, "gamma=-1 is not"),
        ("focal", {"gamma": math.nan}, "gamma=nan"),
        ("focal", {"gamma": True}, "gamma=True"),
        ("focal", {"gamma": "2"}, "gamma='2'"),
        ("focal", {"gamma": None}, "gamma=None"),
        ("focal", {"alpha": 0}, "alpha=0"),
        ("focal", {"alpha": 1}, "alpha=1"),
        ("focal", {"alpha": 25}, "alpha=25"),
        ("weighted_bce", {"pos_weight": 0}, "pos_weight=0 is not"),
        ("weighted_bce", {"pos_weight": []}, "pos_weight=[] is not"),
        ("weighted_bce", {"pos_weight": [1, -2]}, "pos_weight=[1, -2]"),
        ("weighted_bce", {"pos_weight": [1, "2"]}, "is not a number from"),
        ("weighted_bce", {"pos_weight": math.inf}, "pos_weight=inf"),
        ("weighted_bce", {"pos_weight": None}, "pos_weight=None"),
    ],
)
def test_wrong_settings_are_said_before_the_first_step(name, args, said):
    with pytest.raises(ValueError) as e:
        build_loss(name, args)
    assert said in str(e.value)


def test_settings_are_checked_when_called_by_hand_as_well():
    z, y = some()
    for call in (
        lambda: lovasz(z, y, per="batch"),
        lambda: symmetric_lovasz(z, y, per=0),
        lambda: focal(z, y, gamma=-1),
        lambda: weighted_bce(z, y, pos_weight=-1),
    ):
        with pytest.raises(ValueError, match="is not"):
            call()
