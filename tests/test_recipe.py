"""The recipe's training: every option does something and survives a kill; stages, means of weights, memory, several
processes."""

import json
import os
import shutil
import signal
import socket
import time
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_train import TINY, Stop, assert_same, calm, folder, processes, stop_at, weights  # noqa: F401 (fixtures)

from steel_seg import cli
from steel_seg.config import TrainConfig, field_help
from steel_seg.dataset import StripDataset, epoch_batches, make_loader
from steel_seg.evaluate import evaluate
from steel_seg.model import SegModel, load_model
from steel_seg.optim import rate_at
from steel_seg.post import Rule, write_rules
from steel_seg.predict import predict_oof
from steel_seg.state import load_state, mean_tensors
from steel_seg.store import ProbStore
from steel_seg.synth import make_folder
from steel_seg.train import fitting_batch, start_run, train_fold, train_run

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = replace(TINY, epochs=1, save_every=0)
UNET = dict(arch="unet", encoder_depth=3, decoder=None)
OPTIONS = {
    "unet": UNET,
    "unetplusplus": dict(arch="unetplusplus", encoder_depth=3, decoder=None),
    "pspnet": dict(arch="pspnet", encoder_depth=3, decoder=None),
    "deeplabv3plus": dict(arch="deeplabv3plus", encoder_depth=5, decoder=None),
    "manet": dict(arch="manet", encoder_depth=4, decoder=None),
    "scse": dict(**UNET, attention="scse"),
    "in_channels": dict(in_channels=3),
    "class_head": dict(class_head=0.5),
    **{
        loss: dict(loss=loss)
        for loss in ("bce", "weighted_bce", "dice", "lovasz", "symmetric_lovasz", "focal", ".7*bce + .3*lovasz")
    },
    "loss_args": dict(loss="lovasz", loss_args={"per": "class"}),
    **{name: dict(optimizer=name) for name in ("adam", "radam", "ralamb", "over9000")},
    "lookahead": dict(lookahead=2, epochs=2),
    "encoder_lr": dict(encoder_lr=0.1),
    "weight_decay": dict(weight_decay=0.5),
    **{name: dict(schedule=name, warmup=0.3) for name in ("flat_cosine", "one_cycle", "plateau", "constant")},
    "accumulate": dict(accumulate=5),
    "clip": dict(clip=0.01),
    **{name: dict(sampler=name) for name in ("upsample", "downsample", "balanced")},
    "crop": dict(crop="32x32"),
    "blackout": dict(blackout=1),
    "black_bars": dict(black_bars=1),
    "ema": dict(ema=0.9),
    "stages": dict(stages=[{"crop": "32x32"}, {"loss": "lovasz", "lr": 1e-3}]),
    "bf16": dict(precision="bf16"),
}


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    train_run(run, folder, ONE, only=0, progress=False)
    return run


@pytest.mark.parametrize("name", OPTIONS)
def test_option_does_something(name, plain, folder, tmp_path):
    "It trains to its end, gives finite numbers and a model that loads, and other weights than without the option."
    run = tmp_path / "run"
    history = train_run(run, folder, replace(ONE, **OPTIONS[name]), only=0, progress=False)
    assert np.isfinite(history[["loss", "val_loss", "score", "lr"]]).all(axis=None)
    model = load_model(run / "fold_0/last")
    assert model(torch.from_numpy(folder.image(folder.images.image_id[0]))[None, None]) is not None
    assert weights(run) != weights(plain)


@pytest.mark.parametrize(
    "how", [dict(checkpointing=True), dict(compile="eager"), dict(cache="CACHE"), dict(fit_batch=True)]
)
def test_option_changes_nothing(how, plain, folder, tmp_path):
    "These say how a run is made: the weights are the same to the bit."
    how = {k: str(tmp_path / "cache") if v == "CACHE" else v for k, v in how.items()}
    train_run(tmp_path / "run", folder, replace(ONE, **how), only=0, progress=False)
    assert weights(tmp_path / "run") == weights(plain)
    assert "cache" not in how or any((tmp_path / "cache").iterdir())


def test_every_field_was_tried():
    "A new field of TrainConfig has to be tried somewhere here."
    tried = {k for options in OPTIONS.values() for k in options} | {"checkpointing", "compile", "cache", "fit_batch"}
    elsewhere = {
        "encoder",
        "encoder_weights",
        "loss_args",
        "window",
        "lr",
        "flat",
        "patience",
        "factor",
        "epochs",
        "batch_size",
        "pseudo",
        "pseudo_share",
        "init_from",  # in test_train
        "task",  # in test_classify
        "hflip",
        "vflip",
        "brightness",
        "limit",
        "crop_on_mask",
        "crop_black",
        "average",
        "early_stop",
        "rule",
        "folds",
        "seed",
        "num_workers",
        "save_every",
    }
    assert {f.name for f in fields(TrainConfig)} == tried | elsewhere
    assert set(field_help()) == tried | elsewhere and all(len(text) > 10 for text in field_help().values())


def test_one_line_says_it_all(folder, tmp_path, capsys):
    "One command line with most of the options at once."
    line = [
        "train",
        "--data",
        folder.root,
        "--run",
        tmp_path / "run",
        "--fold",
        0,
        "--arch",
        "unet",
        "--encoder",
        TINY.encoder,
        "--encoder-weights",
        "none",
        "--encoder-depth",
        3,
        "--attention",
        "scse",
        "--class-head",
        0.3,
        "--loss",
        "bce + .5*lovasz",
        "--loss-args",
        '{"per": "image"}',
        "--optimizer",
        "radam",
        "--lookahead",
        3,
        "--encoder-lr",
        0.3,
        "--schedule",
        "flat_cosine",
        "--sampler",
        "balanced",
        "--crop",
        "32x32",
        "--crop-on-mask",
        0.5,
        "--blackout",
        0.2,
        "--black-bars",
        0.2,
        "--ema",
        0.9,
        "--average",
        2,
        "--early-stop",
        3,
        "--batch-size",
        4,
        "--accumulate",
        2,
        "--num-workers",
        0,
        "--folds",
        2,
        "--checkpointing",
        "--cache",
        tmp_path / "cache",
        "--no-fit-batch",
        "--stages",
        '[{"epochs": 1}, {"epochs": 2, "crop": null, "lr": 1e-4, "loss": "lovasz"}]',
    ]
    assert cli.main([str(x) for x in line]) == 0
    out = capsys.readouterr().out
    assert "stage 1 of 2" in out and "stage 2 of 2" in out and "class 3" in out and "the mean of epochs" in out
    assert pd.read_csv(tmp_path / "run/history.csv").stage.tolist() == [1, 2, 2]


def test_ten_folds_go_from_train_to_submit(tmp_path, capsys):
    """Every image is predicted by the one net of ten that has not seen it, and what comes out is a submission without a
    fault."""
    data, run = tmp_path / "data", tmp_path / "run"

    def says(*line):
        assert cli.main([str(x) for x in line]) == 0
        return capsys.readouterr().out

    says("synth", data, "--n-train", 20, "--n-test", 2, "--shape", "32x64", "--seed", 10)
    says(
        "train",
        "--data",
        data,
        "--run",
        run,
        "--encoder",
        TINY.encoder,
        "--encoder-weights",
        "none",
        "--encoder-depth",
        3,
        "--decoder",
        json.dumps(TINY.decoder),
        "--arch",
        TINY.arch,
        "--folds",
        10,
        "--batch-size",
        16,
        "--num-workers",
        0,
        "--class-head",
        0.3,
        "--epochs",
        1,
    )
    for command in ("predict", "decide", "submit"):
        says(command, "--data", data, "--run", run)
    assert sorted(p.parent.name for p in run.glob("fold_*/last")) == [f"fold_{k}" for k in range(10)]
    assert ProbStore.open(run / "oof").finished().all() and len(pd.read_csv(run / "oof_scores.csv")) == 20
    assert "0 errors" in says("check", run / "submission.csv", "--sample", data / "sample_submission.csv")


# ---- stages, rates, means


def test_a_stage_goes_on_from_the_last_weights(folder, tmp_path):
    "Two stages by hand: the second begins with the first one's last net, its own rate and an optimiser without a past."
    both = replace(ONE, stages=[{"epochs": 2}, {"lr": 1e-3, "loss": "lovasz"}])
    seen = []
    start_run(tmp_path / "run", both, folder)
    with pytest.raises(Stop):
        train_fold(
            tmp_path / "run",
            folder,
            0,
            progress=False,
            on_step=lambda e, s: (seen.append((e, s)), (_ for _ in ()).throw(Stop) if e == 2 else None),
        )
    tensors, at = load_state(tmp_path / "run/fold_0/state.safetensors")
    assert (at["stage"], at["stage_epoch"], at["epoch"], at["scores"]) == (1, 0, 2, [])
    assert not [n for n in tensors if n.startswith("optimizer.")], "the new optimiser has seen nothing yet"
    first = tmp_path / "first"
    train_run(first, folder, replace(ONE, epochs=2), only=0, progress=False)
    ended = load_model(first / "fold_0/last").state_dict()
    assert all(torch.equal(tensors["model." + n], t) for n, t in ended.items())
    history = train_fold(tmp_path / "run", folder, 0, progress=False)
    assert history.stage.tolist() == [1, 1, 2] and history.epoch.tolist() == [1, 2, 3]
    assert history.lr.iloc[2] == pytest.approx(rate_at(2, 3, 1e-3, "cosine", TINY.warmup), rel=1e-12)


def test_plateau_follows_the_scores(folder, tmp_path):
    config = replace(ONE, schedule="plateau", warmup=0, patience=0, factor=0.5, epochs=5, lr=1e-5)
    history = train_run(tmp_path / "run", folder, config, only=0, progress=False)
    rate, best, expected = 1e-5, -1.0, []
    for score in history.score:
        expected.append(rate)
        if score <= best:
            rate *= 0.5
        best = max(best, score)
    assert history.lr.tolist() == pytest.approx(expected) and rate < 1e-5


def test_early_stop_ends_a_stage(folder, tmp_path):
    "At a rate of nothing no epoch is better than the first: a stage of nine ends after three."
    config = replace(ONE, lr=1e-30, weight_decay=0, stages=[{"epochs": 9, "early_stop": 2}, {"epochs": 2}])
    history = train_run(tmp_path / "run", folder, config, only=0, progress=False)
    best = int(np.argmax(history.score[history.stage == 1]))
    assert (history.stage == 1).sum() == best + 3 < 9 and (history.stage == 2).sum() == 2


def test_the_mean_of_the_best_is_scored(folder, tmp_path):
    run = tmp_path / "run"
    train_run(run, folder, replace(TINY, average=2, epochs=4), only=0, progress=False)
    at = load_state(run / "fold_0/state.safetensors")[1]
    history = pd.read_csv(run / "fold_0/history.csv")
    two = sorted(history.sort_values("score", ascending=False, kind="stable").epoch[:2])
    assert at["mean"]["epochs"] == two
    best = load_model(run / "fold_0/best")
    assert best.meta["score"] == pytest.approx(max(at["mean"]["score"], history.score.max()))
    assert ("mean_of_epochs" in best.meta) == (at["mean"]["score"] > history.score.max())


def test_mean_of_the_best_wins_where_it_is_better(folder, tmp_path, monkeypatch):
    "All epochs are told to be worth the same, the mean more: best/ is the mean of the epochs' weights."
    run, states, scores = tmp_path / "run", [], iter([0.5, 0.5, 0.5, 0.6])
    real = evaluate
    monkeypatch.setattr(
        "steel_seg.train.evaluate",
        lambda net, *a, **k: (
            states.append({n: t.clone() for n, t in net.state_dict().items()}),
            {**real(net, *a, **k), "score": next(scores)},
        )[1],
    )
    train_run(run, folder, replace(TINY, average=3), only=0, progress=False)
    found, expected = load_model(run / "fold_0/best"), mean_tensors(states[:3])
    assert found.meta["mean_of_epochs"] == [1, 2, 3] and found.meta["score"] == 0.6
    assert all(torch.equal(t, expected[n]) for n, t in found.state_dict().items())


def test_the_running_mean_is_what_is_scored(folder, tmp_path):
    run = tmp_path / "run"
    history = train_run(run, folder, replace(TINY, ema=0.9), only=0, progress=False)
    fold = pd.read_csv(run / "folds.csv").fold.to_numpy()
    from accelerate import Accelerator

    from steel_seg.loss import build_loss

    loader = make_loader(
        StripDataset(folder), epoch_batches(np.flatnonzero(fold == 0), 4, 0, 0, shuffle=False, drop_last=False)
    )
    found = evaluate(load_model(run / "fold_0/last"), loader, build_loss("bce_dice"), Accelerator())
    assert found["score"] == pytest.approx(history.score.iloc[-1]) and found["val_loss"] == pytest.approx(
        history.val_loss.iloc[-1], rel=1e-5
    )
    # The net itself is as without the mean, which only looks on.
    train_run(tmp_path / "bare", folder, TINY, only=0, progress=False)
    assert history.loss.tolist() == pd.read_csv(tmp_path / "bare/history.csv").loss.tolist()
    assert weights(run) != weights(tmp_path / "bare")


def test_epochs_are_scored_under_the_rule(folder, tmp_path):
    "A rule that empties everything: each epoch scores the share of empty pairs, whatever the net."
    path = write_rules(tmp_path / "rule.json", [Rule(min_area=10**6)] * 4)
    history = train_run(tmp_path / "run", folder, replace(TINY, rule=str(path)), only=0, progress=False)
    fold = pd.read_csv(tmp_path / "run/folds.csv").set_index("image_id").fold[folder.images.image_id].to_numpy()
    empty = (folder.truth_area()[fold == 0] == 0).mean()
    assert history.score.tolist() == pytest.approx([empty] * 3)
    write_rules(path, [Rule(min_area=5)] * 4)
    with pytest.raises(ValueError, match="belongs to another training: rules"):
        train_fold(tmp_path / "run", folder, 0, progress=False)
    gated = write_rules(tmp_path / "gated.json", [Rule(gate=128, gate_by="score")] * 4)
    with pytest.raises(ValueError, match="asks a classifier .*class_head above 0"):
        train_run(tmp_path / "gated", folder, replace(TINY, rule=str(gated)), progress=False)
    history = train_run(
        tmp_path / "with_head", folder, replace(ONE, rule=str(gated), class_head=1), only=0, progress=False
    )
    assert history.score.notna().all()


# ---- memory


def test_step_in_parts_has_the_same_images(folder, tmp_path, monkeypatch):
    """Three images at once do not fit: steps, images and (but for batch norm) the loss stay what they were; the found
    size survives a kill."""
    real, seen = SegModel.forward, []

    def small(self, images):
        if self.training and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.training:
            seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(SegModel, "forward", small)
    config = replace(ONE, batch_size=5, accumulate=1, fit_batch=True, epochs=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_run(tmp_path / "asked_not", folder, replace(config, fit_batch=False), only=0, progress=False)
    train_run(tmp_path / "run", folder, config, only=0, progress=False)
    assert seen[0] == 2 and seen[1:] == [2, 2, 1] * 8  # the attempt, and then 4 steps an epoch
    monkeypatch.undo()
    train_run(tmp_path / "whole", folder, replace(config, fit_batch=False), only=0, progress=False)
    parts, whole = (pd.read_csv(tmp_path / name / "history.csv") for name in ("run", "whole"))
    assert parts.step.tolist() == whole.step.tolist() and np.allclose(parts.loss, whole.loss, rtol=0.1)


def test_one_image_too_many_is_said(folder):
    def never(n):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(ValueError, match="one image does not fit into memory"):
        fitting_batch(never, 8)
    with pytest.raises(ZeroDivisionError):  # only memory is a reason to try again
        fitting_batch(lambda n: 1 / 0, 8)


# ---- pseudo labels


def test_pseudo_labels_are_trained_on_and_never_scored(folder, tmp_path):
    extra = make_folder(tmp_path / "extra", n_train=12, n_test=0, shape=(32, 64), seed=77)
    for p in (extra / "train_images").iterdir():
        p.rename(p.with_name("pseudo_" + p.name))
    (extra / "train.csv").write_text(
        "\n".join(
            "pseudo_" + line if k else line for k, line in enumerate((extra / "train.csv").read_text().splitlines())
        )
        + "\n"
    )
    config = replace(ONE, sampler="pseudo", pseudo=str(extra), pseudo_share=0.25)
    history = train_run(tmp_path / "run", folder, config, only=0, progress=False)
    fold = pd.read_csv(tmp_path / "run/folds.csv").fold
    news = json.loads((tmp_path / "run/fold_0/progress.json").read_text())
    assert news["images"] == (fold == 0).sum() and history.score.notna().all()
    with pytest.raises(ValueError, match="holds .* that .* has labels for"):
        train_run(tmp_path / "twice", folder, replace(config, pseudo=str(folder.root)), progress=False)


# ---- killed

RICH = replace(
    TINY,
    class_head=0.5,
    optimizer="over9000",
    encoder_lr=0.5,
    sampler="balanced",
    blackout=0.3,
    black_bars=0.3,
    ema=0.9,
    average=2,
    loss="bce + .3*lovasz",
    stages=[
        {"epochs": 2, "crop": "32x32", "schedule": "one_cycle"},
        {"epochs": 2, "schedule": "plateau", "patience": 0, "early_stop": 2},
    ],
)


def test_rich_run_stopped_and_resumed(folder, tmp_path):
    "Everything that has a state at once, stopped in both stages and between them."
    calm, run = tmp_path / "calm", tmp_path / "run"
    train_run(calm, folder, RICH, only=0, progress=False)
    start_run(run, replace(RICH, save_every=2), folder)
    for place in ((0, 1), (1, 2), (2, 0), (3, 1)):
        stop_at(run, folder, *place)
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)


def _train(run, folder, told):
    torch.set_num_threads(1)
    train_fold(run, folder, 0, progress=False, on_step=lambda *now: told.send(now))


@pytest.mark.kill
def test_killed_at_twenty_random_moments(calm, folder, processes, tmp_path):
    "kill -9 some random time after a random step, then on to the end: 20 of 20 with the bits of the calm run."
    rng, stood = np.random.default_rng(11), []
    for n in range(60):
        if len(stood) == 20:
            break
        run = tmp_path / str(n)
        start_run(run, TINY, folder)
        hears, told = processes.Pipe(duplex=False)
        child = processes.Process(target=_train, args=(run, folder, told))
        child.start()
        told.close()
        for _ in range(int(rng.integers(1, 9))):
            hears.recv()
        time.sleep(rng.uniform(0, 0.15))  # a step takes some 20 ms, a save 40, an epoch's end 80
        child.kill()
        child.join(60)
        if child.exitcode == 0:
            continue  # it was quicker: nobody was killed
        assert child.exitcode == -signal.SIGKILL
        state = run / "fold_0/state.safetensors"
        at = load_state(state)[1] if state.exists() else {"epoch": 0, "step": 0}
        stood.append((at["epoch"], at["step"]))
        train_fold(run, folder, 0, progress=False)
        assert_same(calm, run)
        shutil.rmtree(run)
    assert len(stood) == 20 and len(set(stood)) >= 5, f"the kills fell too close together: {stood}"


# ---- several processes


def _port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(rank, port, run, folder, config, die_at=None, predict=False):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)

    def on_step(*now):
        if die_at == (rank, *now):
            os.kill(os.getpid(), signal.SIGKILL)

    if predict:
        predict_oof(run, folder, progress=False, batch_size=4)
    else:
        train_run(run, folder, config, only=0, progress=False, on_step=on_step)
    torch.distributed.destroy_process_group()


def _together(processes, *args, **kwargs):
    "Both ranks; when one dies the other is killed too, as a launcher does. Exit codes."
    port = _port()
    ranks = [processes.Process(target=_rank, args=(r, port, *args), kwargs=kwargs) for r in (0, 1)]
    for p in ranks:
        p.start()
    end = time.monotonic() + 120
    while any(p.is_alive() for p in ranks) and not any(p.exitcode for p in ranks) and time.monotonic() < end:
        time.sleep(0.02)
    for p in ranks:
        if any(q.exitcode for q in ranks):
            p.kill()
        p.join(60)
    return [p.exitcode for p in ranks]


WIDE = replace(
    TINY, decoder=None, arch="unet", encoder_depth=3, batch_size=2, accumulate=1, epochs=2
)  # Unet has no dropout, whose draws differ between processes


@pytest.fixture(scope="module")
def pair(folder, processes, tmp_path_factory):
    run = tmp_path_factory.mktemp("pair") / "run"
    assert _together(processes, run, folder, WIDE) == [0, 0]
    return run


def test_two_processes_have_the_loss_of_one(pair, folder, tmp_path):
    "The same global batch: two processes with batches of 2, one with 2 and two forward passes a step."
    alone = train_run(tmp_path / "one", folder, replace(WIDE, accumulate=2), only=0, progress=False)
    together = pd.read_csv(pair / "history.csv")
    assert together.step.tolist() == alone.step.tolist()
    np.testing.assert_allclose(together.loss, alone.loss, rtol=2e-4)
    np.testing.assert_allclose(together.lr, alone.lr, rtol=1e-12)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.kill
def test_a_killed_process_of_two(who, pair, folder, processes, tmp_path):
    run = tmp_path / "run"
    assert -signal.SIGKILL in _together(processes, run, folder, WIDE, die_at=(who, 1, 2))
    at = load_state(run / "fold_0/state.safetensors")[1]
    assert at["epoch"] == 1
    assert _together(processes, run, folder, WIDE) == [0, 0]
    assert weights(run) == weights(pair)
    assert (
        pd.read_csv(run / "history.csv")
        .drop(columns="seconds")
        .equals(pd.read_csv(pair / "history.csv").drop(columns="seconds"))
    )


def test_two_processes_predict_what_one_does(folder, processes, tmp_path):
    "One writes; levels and class probabilities are those of one process, also when half of them were there."
    run, config = tmp_path / "one", replace(ONE, class_head=1)
    train_run(run, folder, config, progress=False)
    shutil.copytree(run, tmp_path / "two")
    one = predict_oof(run, folder, progress=False, batch_size=4)
    assert _together(processes, tmp_path / "two", folder, config, predict=True) == [0, 0]
    two = ProbStore.open(tmp_path / "two/oof")
    assert not two.missing() and all((one.read(i) == two.read(i)).all() for i in folder.images.image_id)
    assert (run / "oof_scores.csv").read_text() == (tmp_path / "two/oof_scores.csv").read_text()
    scores = pd.read_csv(run / "oof_scores.csv")
    assert (
        scores.image_id.tolist() == folder.images.image_id.tolist()
        and scores.drop(columns="image_id").stack().between(0, 1).all()
    )
    # A kill took the csv's last lines: they are made again, and the store stays.
    text = (run / "oof_scores.csv").read_text()
    (run / "oof_scores.csv").write_text("\n".join(text.splitlines()[:20]) + "\n")
    predict_oof(run, folder, progress=False, batch_size=4)
    assert (run / "oof_scores.csv").read_text() == text
