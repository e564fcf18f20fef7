"""Optimisers against literal formulas, schedules against torch's, and states that go through a file."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from steel_seg.model import build_model
from steel_seg.optim import (
    OPTIMISERS,
    SCHEDULES,
    Lookahead,
    Ralamb,
    beta1_at,
    build_optimizer,
    optimizer_parts,
    rate_at,
    restore_optimizer,
    set_rate,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def literal_ralamb(w, grads, lr, decay, b1=0.9, b2=0.999, eps=1e-8):
    "The formulas of the papers, one number at a time, in numpy."
    m, v, longest = np.zeros_like(w), np.zeros_like(w), 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        length, step = longest - 2 * t * b2**t / (1 - b2**t), m / (1 - b1**t)
        if length > 5:
            r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
            step = r * step / (np.sqrt(v / (1 - b2**t)) + eps)
        step = step + decay * w
        size, far = min(10, math.sqrt((w**2).sum())), math.sqrt((step**2).sum())
        w = w - lr * step * (size / far if size and far else 1)
    return w


@pytest.mark.parametrize("size", [0, 1, 100])
@pytest.mark.parametrize("decay", [0, 0.1])
def test_ralamb_is_its_formula(size, decay):
    rng = np.random.default_rng(size)
    w, grads = size * rng.normal(size=(3, 4)), rng.normal(size=(12, 3, 4))
    p = torch.nn.Parameter(torch.tensor(w))
    opt = Ralamb([p], lr=0.01, weight_decay=decay)
    for g in grads:
        p.grad = torch.tensor(g)
        opt.step()
    np.testing.assert_allclose(p.detach().numpy(), literal_ralamb(w, grads, 0.01, decay), rtol=1e-9, atol=1e-12)


def test_ralamb_step_is_radams_direction():
    "Without decay each tensor moves along torch's RAdam from the same past, in another length."
    torch.manual_seed(0)
    start = torch.randn(5)
    a, b = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours, theirs = Ralamb([a], lr=1e-9), torch.optim.RAdam([b], lr=1e-2)
    for _ in range(9):
        a.grad = torch.randn(5)
        b.grad, before_a, before_b = a.grad.clone(), a.detach().double().clone(), b.detach().clone()
        for group in ours.param_groups:
            group["lr"] = 1e-2
        ours.step(), theirs.step()
        da, db = a.detach() - before_a, b.detach() - before_b
        assert torch.nn.functional.cosine_similarity(da.float(), db, dim=0) > 0.9999
        assert da.norm().item() == pytest.approx(1e-2 * before_a.norm().item(), rel=1e-3)


def test_lookahead_over_adam_by_hand():
    torch.manual_seed(1)
    start, grads = torch.randn(4), torch.randn(11, 4)
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours, adam, slow = (
        Lookahead(torch.optim.Adam([p], lr=0.1), k=4, alpha=0.3),
        torch.optim.Adam([q], lr=0.1),
        start.clone(),
    )
    for t, g in enumerate(grads, 1):
        p.grad, q.grad = g.clone(), g.clone()
        ours.step(), adam.step()
        if t % 4 == 0:
            slow = slow + 0.3 * (q.detach() - slow)
            q.data.copy_(slow)
        torch.testing.assert_close(p, q)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_model("unet", "tu-test_resnet.r160_in1k", encoder_depth=3)


def test_groups_hold_every_parameter_once(net):
    opt = build_optimizer("adamw", net, 1e-3, weight_decay=0.1, encoder_lr=0.25)
    held = [id(p) for g in opt.param_groups for p in g["params"]]
    assert sorted(held) == sorted(map(id, net.parameters()))
    encoder = {id(p) for p in net.net.encoder.parameters()}
    for g in opt.param_groups:
        assert {id(p) in encoder for p in g["params"]} == {g["scale"] == 0.25}
        assert {p.ndim > 1 for p in g["params"]} == {g["weight_decay"] == 0.1}
        assert g["lr"] == 1e-3 * g["scale"]
    set_rate(opt, 2.0, beta1=0.9)
    assert {g["lr"] for g in opt.param_groups} == {2.0, 0.5} and {g["betas"] for g in opt.param_groups} == {
        (0.9, 0.999)
    }


def test_encoder_lr_of_nothing_leaves_the_encoder(net):
    opt = build_optimizer("adamw", net, 1e-2, encoder_lr=0)
    before = [p.detach().clone() for p in net.net.encoder.parameters()]
    net(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).square().mean().backward()
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.net.encoder.parameters()))


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("lookahead", [0, 3])
def test_state_through_json_and_accelerate(name, lookahead):
    "Saved as in training: wrapped by accelerate, between two updates of the slow weights; read into a new optimiser."
    accelerator, x = (
        Accelerator(cpu=True),
        torch.randint(0, 255, (2, 1, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8),
    )

    def fresh():
        torch.manual_seed(0)
        model = build_model("unet", "tu-test_resnet.r160_in1k", encoder_depth=2).to(memory_format=torch.channels_last)
        # with a save's contiguous tensors the layout has to come back too
        return model, accelerator.prepare(build_optimizer(name, model, 0.01, encoder_lr=0.5, lookahead=lookahead))

    def go(model, opt, steps):
        for step in steps:
            set_rate(opt, 0.01 / (1 + step), beta1=0.8 + step / 100)
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()

    (calm, one), (first, two), (second, three) = fresh(), fresh(), fresh()
    go(calm, one, range(7))
    go(first, two, range(4))
    tensors, rest = optimizer_parts(two.state_dict())
    second.load_state_dict(first.state_dict())
    restore_optimizer(
        three,
        {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()},
        json.loads(json.dumps(rest)),
    )
    go(second, three, range(4, 7))
    assert all(torch.equal(a, b) for a, b in zip(calm.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_are_sound(schedule, total, warmup):
    rates = [rate_at(s, total, 3.0, schedule, warmup, scores=[1.0] * 5) for s in range(total)]
    assert all(0 < r <= 3.0 + 1e-12 for r in rates)
    assert all(
        beta1_at(s, total, schedule, warmup) is None
        or 0.85 - 1e-9 <= beta1_at(s, total, schedule, warmup) <= 0.95 + 1e-9
        for s in range(total)
    )
    top = int(np.argmax(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("total, pct", [(10, 0.3), (33, 0.25), (100, 0.05)])
def test_one_cycle_is_torchs(total, pct):
    p = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.Adam([p], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.3, total_steps=total, pct_start=pct)
    for step in range(total):
        assert rate_at(step, total, 0.3, "one_cycle", pct) == pytest.approx(opt.param_groups[0]["lr"], rel=1e-9)
        assert beta1_at(step, total, "one_cycle", pct) == pytest.approx(opt.param_groups[0]["betas"][0], rel=1e-9)
        opt.step()
        if step < total - 1:
            theirs.step()


def test_cosine_is_torchs():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)
    for step in range(40):
        assert rate_at(step, 40, 0.3, "cosine", warmup=0) == pytest.approx(opt.param_groups[0]["lr"], rel=1e-6)
        opt.step(), theirs.step()


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience):
    scores = np.random.default_rng(patience).random(80).round(1).tolist()
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        opt, mode="max", factor=0.7, patience=patience, threshold=0, eps=0
    )
    for e, score in enumerate(scores):
        assert rate_at(e, 80, 0.3, "plateau", 0, scores=scores[:e], patience=patience, factor=0.7) == pytest.approx(
            opt.param_groups[0]["lr"], rel=1e-9
        )
        theirs.step(score)


def test_flat_cosine_is_flat_and_then_falls():
    rates = [rate_at(s, 100, 1.0, "flat_cosine", warmup=0.1, flat=0.6) for s in range(100)]
    assert rates[10:61] == [1.0] * 51 and rates[80] == pytest.approx(0.5) and rates[99] < 0.01


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(name="sgd"), "there are adam, adamw"),
        (dict(lr=math.nan), "lr=nan"),
        (dict(weight_decay=-1), "weight_decay=-1"),
        (dict(lookahead=-1), "lookahead=-1"),
    ],
)
def test_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        build_optimizer(**{"name": "adam", "model": SimpleNamespace(), "lr": 1e-3, **wrong})
    with pytest.raises(ValueError, match="k=0"):
        Lookahead(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1), k=0)
