"""Losses: numbers worked by hand, oracles that share no code, empty images, half precision."""
import math

import numpy as np
import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

from steel_seg.loss import bce, build_loss, soft_dice
from steel_seg.metric import dice

BOTH = build_loss("bce_dice")


def some(n=3, c=4, h=20, w=30, seed=0):
    "Logits and blocky masks; every third pair is empty."
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, 3, (n, c, h, w)).astype(np.float32), np.zeros((n, c, h, w), np.uint8)
    for k, pair in enumerate(y.reshape(n*c, h, w)):
        if k % 3:
            top, left = rng.integers(0, h - 5), rng.integers(0, w - 5)
            pair[top:top + 5, left:left + rng.integers(1, 6)] = 1
    return torch.from_numpy(z), torch.from_numpy(y)


def by_loop(z, y):
    "bce and soft Dice pixel by pixel in Python floats."
    ce, dices = [], []
    for zp, yp in zip(z.flatten(0, 1).tolist(), y.flatten(0, 1).tolist()):
        hit = prob = truth = 0
        for zr, yr in zip(zp, yp):
            for a, b in zip(zr, yr):
                p = 1/(1 + math.exp(-a))
                ce.append(-math.log(p if b else 1 - p))
                hit, prob, truth = hit + p*b, prob + p, truth + b
        dices.append(1 - (2*hit + 1)/(prob + truth + 1))
    return sum(ce)/len(ce), sum(dices)/len(dices)


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
    theirs = DiceLoss("multilabel", smooth=.5)  # added to overlap and half the sum, so it is our 1 (smp 0.6)
    for zp, yp in zip(z.flatten(0, 1), y.flatten(0, 1)):
        zp, yp = zp[None, None], yp[None, None]
        if yp.any(): assert soft_dice(zp, yp).item() == pytest.approx(theirs(zp, yp).item(), abs=1e-5)


def test_dice_is_per_image_and_class_not_over_the_batch():
    z, y = some()
    pairs = [soft_dice(a[None, None], b[None, None]).item() for a, b in zip(z.flatten(0, 1), y.flatten(0, 1))]
    assert soft_dice(z, y).item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_sure_logits_cost_what_the_metric_says():
    "With probabilities of 0 and 1 the loss is one minus the metric, but for the 1 above and below."
    z, y = some()
    hard = torch.where(z > 2, 30., -30.)
    pred, truth = (hard > 0).numpy(), y.numpy() > 0
    area, hit, n = (m.sum((2, 3)) for m in (pred, pred & truth, truth))
    assert soft_dice(hard, y).item() == pytest.approx((1 - (2*hit + 1)/(area + n + 1)).mean(), abs=1e-6)
    big = torch.full((1, 1, 100, 100), 30.)
    half = torch.zeros(1, 1, 100, 100, dtype=torch.uint8)
    half[..., :50] = 1
    assert soft_dice(big, half).item() == pytest.approx(1 - dice(10000, 5000, 5000), abs=1e-4)


def test_a_confident_false_alarm_on_an_empty_image_is_punished():
    empty = torch.zeros(2, 4, 64, 128, dtype=torch.uint8)
    clean = torch.full(empty.shape, -12.)
    alarm = clean.clone()
    alarm[:, :, 20:30, 40:60] = 12.  # 200 pixels in every pair
    assert BOTH(clean, empty) < .06
    assert soft_dice(alarm, empty).item() == pytest.approx(200/201, abs=1e-3)
    assert BOTH(alarm, empty) > 1
    theirs = DiceLoss("multilabel")
    assert theirs(alarm, empty) == 0  # smp's own leaves it out


def test_the_slope_of_a_false_alarm_points_down_and_does_not_vanish():
    empty = torch.zeros(1, 4, 64, 128, dtype=torch.uint8)
    for level in (1., 4., 8., 12.):  # probabilities .73 to .999994
        z = torch.full(empty.shape, -8.)
        z[:, 2] = level              # one whole class of the strip, the worst case for Dice
        z.requires_grad_(True)
        (slope,) = torch.autograd.grad(BOTH(z, empty), z)
        assert (slope > 0).all()     # a step against it lowers every pixel
        per_pixel = 1/empty.numel()  # what a wrong pixel weighs in a mean over all
        assert slope[:, 2].min() > .7*per_pixel
        (theirs,) = torch.autograd.grad(DiceLoss("multilabel")(z, empty), z)
        assert not theirs.any()


def test_training_the_logits_alone_takes_a_false_alarm_away():
    "From .98 everywhere on an empty image, where Dice alone stays."
    empty = torch.zeros(1, 1, 16, 32, dtype=torch.uint8)
    left = {}
    for name, loss in (("both", BOTH), ("dice", soft_dice)):
        z = torch.full(empty.shape, 4., requires_grad=True)
        step = torch.optim.SGD([z], lr=200.)
        for _ in range(40):
            step.zero_grad()
            loss(z, empty).backward()
            step.step()
        left[name] = z.sigmoid().max().item()
    assert left["both"] < .1 and left["dice"] > .9


def test_a_defect_that_is_missed_is_pulled_up():
    z, y = some()
    z = torch.full_like(z, -6.).requires_grad_(True)
    (slope,) = torch.autograd.grad(BOTH(z, y), z)
    assert (slope[y == 1] < 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z = torch.full((1, 1, 512, 512), 9.)   # the sum of probabilities, 262,112, is infinite in float16
    y = torch.zeros(z.shape, dtype=torch.uint8)
    y[..., :256] = 1
    for loss in (bce, soft_dice, BOTH):
        got = loss(z.to(dtype), y)
        assert got.dtype == torch.float32 and got.item() == loss(z, y).item()
    leaf = z.to(dtype).requires_grad_(True)
    BOTH(leaf, y).backward()
    assert leaf.grad.dtype == dtype and torch.isfinite(leaf.grad).all()


def test_autocast_changes_nothing():
    z, y = some()
    with torch.autocast("cpu", torch.bfloat16): inside = BOTH(z, y)
    assert inside.dtype == torch.float32 and inside.item() == BOTH(z, y).item()


def test_targets_may_be_uint8_bool_or_float():
    z, y = some()
    assert len({BOTH(z, t).item() for t in (y, y.bool(), y.float(), y.half())}) == 1


def test_extreme_logits_stay_finite():
    for z in (-1e4, 1e4):
        for t in (0, 1):
            leaf = torch.full((1, 1, 8, 8), z, requires_grad=True)
            got = BOTH(leaf, torch.full((1, 1, 8, 8), t, dtype=torch.uint8))
            got.backward()
            assert torch.isfinite(got) and torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 4, 8, 8), (2, 4, 1, 8), (2, 4, 8), (2, 4, 8, 9)])
def test_shapes_that_would_broadcast_are_refused(shape):
    for loss in (bce, soft_dice, BOTH):
        with pytest.raises(ValueError, match=r"one shape \(N,C,H,W\), got \(2, 4, 8, 8\) and"):
            loss(torch.zeros(2, 4, 8, 8), torch.zeros(shape))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'lovasz'; there are bce, bce_dice"): build_loss("lovasz")
