"""Training: the loop does what a plain one does, a kill loses nothing, and a wrong or damaged state is refused."""

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from steel_seg.augment import train_transform
from steel_seg.config import TrainConfig
from steel_seg.curves import CurveCounter
from steel_seg.data import read_folder
from steel_seg.dataset import StripDataset, epoch_batches, make_loader
from steel_seg.decide import choose_rules
from steel_seg.evaluate import BY_BEST_RULE, by_rules, evaluate
from steel_seg.folds import make_folds, write_folds
from steel_seg.loss import build_loss
from steel_seg.metric import dice, mask_counts
from steel_seg.model import build_model, load_model, save_model
from steel_seg.optim import rate_at
from steel_seg.post import Rule, apply_rules
from steel_seg.predict import count_oof, predict_oof
from steel_seg.seen import seen_ids
from steel_seg.state import load_state, save_state
from steel_seg.synth import make_folder
from steel_seg.train import all_empty_scores, read_config, start_run, step_seed, train_fold, train_run

# 20 training images a fold: 5 batches, so the last of 3 steps has one batch where the others have two. FPN has dropout.
THIN = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
TINY = TrainConfig(
    arch="fpn",
    encoder="tu-test_resnet.r160_in1k",
    encoder_weights=None,
    encoder_depth=4,
    decoder=THIN,
    epochs=3,
    batch_size=4,
    accumulate=2,
    lr=1e-2,
    folds=2,
    num_workers=0,
    save_every=1,
    brightness=0.5,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(
        make_folder(tmp_path_factory.mktemp("data") / "strips", n_train=40, n_test=3, shape=(32, 64), seed=5)
    )


@pytest.fixture(scope="module")
def calm(folder, tmp_path_factory):
    "A run in which nothing happened: fold 0, trained in one go."
    run = tmp_path_factory.mktemp("calm") / "run"
    train_run(run, folder, TINY, only=0, progress=False)
    return run


def weights(run, name="last", fold=0):
    return hashlib.sha256((run / f"fold_{fold}" / name / "model.safetensors").read_bytes()).hexdigest()


def assert_same(a, b):
    "Bit for bit: last and best net, everything in the state, and every column of the history that is no clock."
    assert weights(a) == weights(b) and weights(a, "best") == weights(b, "best")
    histories = [pd.read_csv(run / "fold_0/history.csv", dtype=str).drop(columns="seconds") for run in (a, b)]
    pd.testing.assert_frame_equal(*histories)
    states = [load_state(run / "fold_0/state.safetensors")[0] for run in (a, b)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


# ---- configuration


def test_config_round_trip():
    assert TrainConfig.from_json(TINY.to_json()) == TINY
    assert TrainConfig.from_json("{}") == TrainConfig()
    thin = replace(TINY, decoder={"decoder_channels": [16, 8, 8]})
    assert (
        TrainConfig.from_json(thin.to_json())
        == thin
        == replace(TINY, decoder='{"decoder_channels": [16, 8, 8]}')
        == replace(TINY, decoder={"decoder_channels": (16, 8, 8)})
    )
    assert TrainConfig(lr=1) == TrainConfig(lr=1.0) and isinstance(TrainConfig(lr=1).lr, float)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(arch="deeplab"), "arch='deeplab' is not one of unet"),
        (dict(loss="jaccard"), "jaccard"),
        (dict(precision="fp8"), "precision='fp8'"),
        (dict(encoder=""), "encoder is empty"),
        (dict(encoder_weights=3), "encoder_weights=3 is of type int"),
        (dict(in_channels=2), "in_channels=2"),
        (dict(encoder_depth=6), "encoder_depth=6 is not in 1 to 5"),
        (dict(epochs=0), "epochs=0 is not 1 or more"),
        (dict(epochs=True), "epochs=True is of type bool"),
        (dict(batch_size="8"), "batch_size='8' is of type str"),
        (dict(lr=-1e-3), "lr=-0.001 is not above 0"),
        (dict(lr=math.inf), "lr=inf is not a finite number"),
        (dict(weight_decay=-1), "weight_decay=-1.0"),
        (dict(warmup=1.5), "warmup=1.5 is not in 0 to 1"),
        (dict(folds=1), "folds=1"),
        (dict(seed=-1), "seed=-1"),
        (dict(num_workers=-1), "num_workers=-1"),
        (dict(accumulate=0), "accumulate=0"),
        (dict(hflip=2), "hflip=2.0"),
        (dict(clip=-1), "clip=-1.0"),
        (dict(save_every=-5), "save_every=-5"),
        (dict(lr=None), "lr=None is of type NoneType"),
        (dict(decoder=[16]), "decoder=[16] is of type list"),
        (dict(decoder="{"), "decoder is not valid JSON"),
        (dict(decoder={"x": {1}}), "cannot be written as JSON"),
    ],
)
def test_config_refuses(wrong, says):
    with pytest.raises(ValueError) as e:
        TrainConfig(**wrong)
    assert says in str(e.value)


def test_config_names_unknown_keys():
    with pytest.raises(ValueError, match="unknown in the configuration: batchsize, learning_rate. Known: task, arch,"):
        TrainConfig.from_json('{"learning_rate": 1, "epochs": 2, "batchsize": 3}')
    with pytest.raises(ValueError, match="not valid JSON"):
        TrainConfig.from_json("{epochs: 2}")
    with pytest.raises(ValueError, match="a JSON list, not an object"):
        TrainConfig.from_json("[1]")


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_rate_rises_then_falls(total, warmup):
    config = TrainConfig(lr=3.0, warmup=warmup)
    rates = [rate_at(s, total, config.lr, warmup=config.warmup) for s in range(total)]
    top = int(np.argmax(rates))
    assert all(0 < r <= 3.0 for r in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top in (round(warmup * total), total - 1)
    if warmup == 0:
        np.testing.assert_allclose(rates, [1.5 * (1 + math.cos(math.pi * s / total)) for s in range(total)])


# ---- the loop


def test_loop_is_the_plain_loop(calm, folder):
    "An oracle that shares no line with the loop: torch alone, all batches of a step in one backward pass."
    config, facts = read_config(calm)
    ids = folder.images.image_id.to_numpy()
    fold = pd.read_csv(calm / "folds.csv").set_index("image_id").fold[ids].to_numpy()
    torch.manual_seed(step_seed(config.seed, "weights", 0))
    net = build_model("fpn", config.encoder, 4, encoder_depth=4, **THIN, mean=facts["mean"], std=facts["std"]).to(
        memory_format=torch.channels_last
    )
    decayed = {True: [], False: []}
    for p in net.parameters():
        decayed[p.ndim > 1].append(p)
    opt = torch.optim.AdamW(
        [dict(params=decayed[True], weight_decay=config.weight_decay), dict(params=decayed[False], weight_decay=0)]
    )
    data, loss_of = StripDataset(folder, train_transform(0.5, 0.5, 0.5, 0.1), config.seed), build_loss("bce_dice")
    for epoch in range(3):
        batches = epoch_batches(np.flatnonzero(fold), 4, config.seed, epoch)
        assert len(batches) == 5
        for step, several in enumerate((batches[:2], batches[2:4], batches[4:])):
            for group in opt.param_groups:
                group["lr"] = rate_at(epoch * 3 + step, 9, config.lr, warmup=config.warmup)
            opt.zero_grad()
            torch.manual_seed(step_seed(config.seed, epoch, step, 0))
            for batch in several:
                items = [data[i] for i in batch]
                loss = loss_of(
                    net(torch.stack([x["image"] for x in items])), torch.stack([x["mask"] for x in items])
                ) / len(several)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            opt.step()
    found = load_model(calm / "fold_0/last").state_dict()
    assert all(torch.equal(t, found[name]) for name, t in net.state_dict().items())


def test_loss_falls_and_models_know_their_images(calm, folder):
    history = pd.read_csv(calm / "fold_0/history.csv")
    assert list(history.columns) == [
        "fold",
        "epoch",
        "step",
        "lr",
        "loss",
        "val_loss",
        "score",
        "seconds",
        "present",
        "empty",
        "score_1",
        "score_2",
        "score_3",
        "score_4",
        "stage",
    ]
    assert history.epoch.tolist() == [1, 2, 3] and history.step.tolist() == [3, 6, 9]
    assert history.loss.iloc[-1] < 0.8 * history.loss.iloc[0]
    folds = pd.read_csv(calm / "folds.csv")
    top = history.loc[history.score.idxmax()]
    for name, row in (("best", top), ("last", history.iloc[-1])):
        meta = load_model(calm / "fold_0" / name).meta
        assert (meta["fold"], meta["epoch"], meta["score"]) == (0, row.epoch, row.score)
        assert meta["train_ids"] == folds.image_id[folds.fold != 0].tolist() and meta["data"] == folder.sha256


def rules_by_hand(levels, truth, shape):
    "What `decide` chooses by default, from levels (N,C,H,W) through the counter of stores."
    names = [str(k) for k in range(len(levels))]
    counter = CurveCounter(names, levels.shape[1], shape)
    for name, level, mask in zip(names, levels, truth):
        counter.add(name, level, mask)
    return choose_rules(counter.finish())


@pytest.mark.parametrize("how", ["best rule", "level 128"])
def test_score_is_the_competitions(calm, folder, how):
    "Counts of batches against masks in numpy, at a batch size that does not divide the images."
    model = load_model(calm / "fold_0/last")
    with torch.no_grad():
        model.net.segmentation_head[0].bias[[0, 3]] -= 3  # so that some pairs are empty on both sides
    rows = list(range(33))
    items = [StripDataset(folder)[i] for i in rows]
    with torch.inference_mode():
        prob = torch.cat([model(x["image"][None]) for x in items]).sigmoid().numpy()
    levels, truth = np.rint(prob * 255).astype(np.uint8), np.stack([x["mask"] for x in items])
    rules = [Rule()] * 4 if how == "level 128" else rules_by_hand(levels, truth, folder.shape)
    d = dice(*mask_counts(np.stack([apply_rules(level, rules) for level in levels]), truth))
    model.train()
    loader = make_loader(StripDataset(folder), epoch_batches(rows, 5, 0, 0, shuffle=False, drop_last=False))
    seen, scoring = [], by_rules(rules) if how == "level 128" else BY_BEST_RULE
    found = evaluate(model, loader, build_loss("bce"), Accelerator(), lambda *now: seen.append(now), scoring)
    assert model.training and seen == [(n, 7) for n in range(1, 8)]
    there = truth.any((2, 3))
    assert (truth.any() and d[there].max() > 0) or how == "best rule"
    assert found["score"] == pytest.approx(d.mean(), abs=1e-12)
    assert (found["present"], found["empty"]) == pytest.approx((d[there].mean(), d[~there].mean()), abs=1e-12)
    assert [found[f"score_{k}"] for k in (1, 2, 3, 4)] == pytest.approx(d.mean(0).tolist(), abs=1e-12)
    assert found["val_loss"] == pytest.approx(-np.where(truth, np.log(prob), np.log1p(-prob)).mean(), rel=1e-4)


class Shows(torch.nn.Module):
    "The logits of each image, by its first pixels: they stand for what a net has learnt."

    def __init__(self, logits_of):
        super().__init__()
        self.logits_of = logits_of

    def forward(self, images):
        return torch.stack([self.logits_of[image.numpy().tobytes()] for image in images])


def test_an_epoch_that_ranks_pixels_is_kept_before_one_that_shows_nothing(folder, tmp_path, monkeypatch):
    """Epoch 1 shows nothing; the maps of epoch 2 stay below level 128, with every defect above all steel; epoch 3 is
    as 1. At level 128 all of them score the share of empty pairs, and the first of equals would be kept."""
    faint, blank, real = {}, {}, evaluate
    for image_id in folder.images.image_id:
        key = folder.image(image_id).tobytes()
        faint[key] = torch.from_numpy(folder.mask(image_id)) * 2.3 - 2.5
        blank[key] = torch.full_like(faint[key], -9.0)
    nets = iter([Shows(blank), Shows(faint), Shows(blank)])
    monkeypatch.setattr("steel_seg.train.evaluate", lambda net, *a: real(next(nets), *a))
    run = tmp_path / "run"
    history = train_run(run, folder, TINY, only=0, progress=False)
    empty = all_empty_scores(run, folder)[0]
    assert history.score.tolist() == pytest.approx([empty, 1, empty])
    assert history.present.tolist() == pytest.approx([0, 1, 0]) and history["empty"].tolist() == pytest.approx(
        [1, 1, 1]
    )
    assert load_model(run / "fold_0/best").meta["epoch"] == 2
    assert load_model(run / "fold_0/last").meta["epoch"] == 3


def test_a_state_that_was_scored_otherwise_is_refused(calm, folder, tmp_path):
    "Scores at level 128 and under the best rule do not mix, neither from an earlier version nor by a changed scoring."
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    tensors, at = load_state(run / "fold_0/state.safetensors")
    save_state(run / "fold_0/state.safetensors", tensors, {**at, "format": 2})
    with pytest.raises(ValueError, match="earlier version of steel_seg, which scored epochs in another way"):
        train_fold(run, folder, 0, progress=False)
    made = {**at["made"], "scoring": "at level 128"}
    save_state(run / "fold_0/state.safetensors", tensors, {**at, "made": made})
    with pytest.raises(ValueError, match="scoring was 'at level 128', is now 'by the best rule of each epoch'"):
        train_fold(run, folder, 0, progress=False)


def test_the_score_of_nothing_is_printed_beside(calm, folder, tmp_path, capsys):
    empty = f"{all_empty_scores(calm, folder)[0]:.4f}"
    start_run(tmp_path / "run", replace(TINY, epochs=1), folder)
    train_fold(tmp_path / "run", folder, 0)
    assert f"scored on 20 images, where predicting nothing scores {empty}" in capsys.readouterr().out
    train_fold(calm, folder, 0)
    assert f"of 3, predicting nothing {empty}" in capsys.readouterr().out


def test_workers_do_not_matter(calm, folder, tmp_path):
    train_run(tmp_path / "run", folder, replace(TINY, num_workers=2, save_every=0), only=0, progress=False)
    assert_same(calm, tmp_path / "run")


def test_seed_matters(calm, folder, tmp_path):
    "Other weights at the start, other order: other folds are excluded by bringing the folds along."
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(calm / "folds.csv", run)
    train_run(run, folder, replace(TINY, seed=1), only=[0], progress=False)
    assert (run / "folds.csv").read_bytes() == (calm / "folds.csv").read_bytes()
    assert weights(run) != weights(calm)


def test_precisions_follow_each_other(folder, tmp_path):
    "accelerate allows one precision a process; a notebook may want two."
    for precision in ("bf16", "no"):
        config = replace(TINY, precision=precision, epochs=1)
        history = train_run(tmp_path / precision, folder, config, only=0, progress=False)
        assert (
            history.loss.notna().all()
            and load_model(tmp_path / precision / "fold_0/best").meta["precision"] == precision
        )
    assert weights(tmp_path / "bf16") != weights(tmp_path / "no")


def test_loss_that_is_no_number_stops(folder, tmp_path):
    config = replace(TINY, lr=1e30, clip=0, warmup=0)
    with pytest.raises(ValueError, match=r"fold 0: the loss is (nan|inf) at epoch 1, step \d, lr .*lower lr"):
        train_run(tmp_path / "run", folder, config, progress=False)
    for f in (tmp_path / "run").glob("fold_*/state.safetensors"):
        assert math.isfinite(load_state(f)[1]["loss"])


# ---- killed and resumed


class Stop(Exception):
    pass


def stop_at(run, folder, *place, progress=False):
    "Train fold 0 up to a step of an epoch, and stop there by an error."

    def stop(*now):
        if now == place:
            raise Stop

    with pytest.raises(Stop):
        train_fold(run, folder, 0, progress=progress, on_step=stop)


@pytest.mark.parametrize("save_every", [0, 1, 2])
def test_stopped_and_resumed(calm, folder, tmp_path, save_every):
    "Stopped by an error in the middle of the first and of the last epoch; saves may be further apart than stops."
    run = tmp_path / "run"
    start_run(run, replace(TINY, save_every=save_every), folder)
    for place in ((0, 1), (2, 1)):
        stop_at(run, folder, *place)
        at = (
            load_state(run / "fold_0/state.safetensors")[1]
            if (run / "fold_0/state.safetensors").exists()
            else {"epoch": 0, "step": 0}
        )
        assert (at["epoch"], at["step"]) == (place[0], {0: 0, 1: 2, 2: 2}[save_every])
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)


def _die_at(n, run, folder):
    "Train, and kill this process at its n-th event: a step done, a file synced, a name changed."
    torch.set_num_threads(1)
    count = [0]

    def event(*args, **kwargs):
        count[0] += 1
        if count[0] == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(f):
        def inner(*args, **kwargs):
            event()
            return f(*args, **kwargs)

        return inner

    os.fsync, os.replace, Path.rename = counted(os.fsync), counted(os.replace), counted(Path.rename)
    train_fold(run, folder, 0, progress=False, on_step=event)


@pytest.fixture(scope="module")
def processes():
    "Children come from a server that has imported torch once, has run `warm.py` and has used no thread of torch."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield context


@pytest.mark.kill
def test_killed_again_and_again(calm, folder, processes, tmp_path):
    "Five kills at seeded moments, most of them between the renames of a save; in the end the bits of the calm run."
    run, rng, seen = tmp_path / "run", np.random.default_rng(5), []
    start_run(run, TINY, folder)
    for n in rng.integers(10, 32, 5):
        child = processes.Process(target=_die_at, args=(int(n), run, folder))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        state = run / "fold_0/state.safetensors"
        at = load_state(state)[1] if state.exists() else {"epoch": 0, "step": 0}
        seen.append((at["epoch"], at["step"]))
    assert seen == sorted(seen) and len(set(seen)) >= 3, seen
    assert any(step for _, step in seen), "no kill fell into the middle of an epoch"
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)
    assert not [p for p in (run / "fold_0").rglob(".*")], "a killed write left something behind"


def test_stopped_between_state_and_folders(calm, folder, tmp_path, monkeypatch):
    "A state that is ahead of best/ and last/: the next call writes them, and trains nothing."
    run = tmp_path / "run"
    start_run(run, TINY, folder)
    monkeypatch.setattr("steel_seg.train._publish", lambda training: None)
    with pytest.raises(FileNotFoundError):
        train_fold(run, folder, 0, progress=False)
    assert not (run / "fold_0/best").exists() and not (run / "fold_0/last").exists()
    monkeypatch.undo()
    steps = []
    train_fold(run, folder, 0, progress=False, on_step=lambda *now: steps.append(now))
    assert steps == []
    assert_same(calm, run)


def test_finished_fold_is_skipped_and_mended(calm, folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    shutil.rmtree(run / "fold_0/best")
    config = json.loads((run / "fold_0/last/steel_seg.json").read_text())
    config["meta"]["epoch"] = 2  # as if from an older save
    (run / "fold_0/last/steel_seg.json").write_text(json.dumps(config))
    (run / "history.csv").unlink()
    train_run(run, folder, TINY, only=0)
    assert "fold 0: finished before, best score" in capsys.readouterr().out
    for f in ("fold_0/best/manifest.json", "fold_0/last/manifest.json", "history.csv", "fold_0/state.safetensors"):
        assert (run / f).read_bytes() == (calm / f).read_bytes(), f


# ---- refused


def test_every_flipped_bit_is_noticed(tmp_path):
    "One bit of every byte of a small state, and every shorter file; what is accepted must be what was saved."
    tensors = {"model.w": torch.tensor([1.0, -2.0]), "optimizer.0.step": torch.tensor(3.0), "best.n": torch.tensor(5)}
    f = save_state(tmp_path / "state.safetensors", tensors, {"epoch": 1, "loss": 0.25})
    raw, accepted = f.read_bytes(), 0
    for i, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(raw))):
        flipped = bytearray(raw)
        flipped[i] ^= 1 << int(bit)
        f.write_bytes(flipped)
        try:
            found, facts = load_state(f)
        except ValueError as e:
            assert "state.safetensors is damaged" in str(e) and "train this fold again" in str(e)
        else:
            accepted += 1
            assert facts == {"epoch": 1, "loss": 0.25} and found.keys() == tensors.keys()
            assert all(torch.equal(t, found[k]) for k, t in tensors.items())
    assert accepted < len(raw) // 20  # a blank in the header may become another
    for n in range(0, len(raw), 3):
        f.write_bytes(raw[:n])
        with pytest.raises(ValueError, match="is damaged"):
            load_state(f)


def test_damaged_state_stops_training(calm, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    state = run / "fold_0/state.safetensors"
    raw = bytearray(state.read_bytes())
    raw[-5000] ^= 64
    state.write_bytes(raw)
    with pytest.raises(
        ValueError, match="state.safetensors is damaged .*remove the folder .*fold_0 to train this fold again"
    ):
        train_fold(run, folder, 0, progress=False)
    state.unlink()
    with pytest.raises(ValueError, match="has best/ and no state.safetensors"):
        train_fold(run, folder, 0, progress=False)
    shutil.rmtree(run / "fold_0")
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)


def test_other_plan_is_refused(calm, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(calm, run)
    with pytest.raises(ValueError, match="epochs was 3, is now 4; hflip was 0.5, is now 0.0. Use another run folder"):
        start_run(run, replace(TINY, epochs=4, hflip=0), folder)
    start_run(run, replace(TINY, num_workers=1, save_every=0), folder)  # how, not what
    assert read_config(run)[0].num_workers == 1
    folds = make_folds(folder, 2, 99)
    write_folds(run / "folds.csv", folds)
    with pytest.raises(ValueError, match="belongs to another training: train images was"):
        train_fold(run, folder, 0, progress=False)
    write_folds(run / "folds.csv", folds.assign(fold=folds.index % 3))
    with pytest.raises(ValueError, match="has 3 folds, the configuration 2"):
        train_run(run, folder, TINY, progress=False)
    with pytest.raises(ValueError, match="fold 2: the run has folds 0 to 1"):
        train_fold(calm, folder, 2)


def test_other_data_is_refused(calm, folder, tmp_path):
    other = read_folder(make_folder(tmp_path / "other", n_train=40, n_test=1, shape=(32, 64), seed=6))
    with pytest.raises(ValueError, match="data was '.*', is now '.*'"):
        train_run(calm, other, TINY, progress=False)
    shutil.copytree(folder.root, tmp_path / "same")
    changed = next((tmp_path / "same/train_images").iterdir())
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="data was '.*', is now '.*'"):
        train_fold(calm, read_folder(tmp_path / "same"), 0, progress=False)


# ---- begun from another run


def part_of(folder, path, image_ids):
    "The data folder with some of its training images only."
    shutil.copytree(folder.root, path)
    for image in (path / "train_images").iterdir():
        if image.name not in image_ids:
            image.unlink()
    rows = pd.read_csv(path / "train.csv", dtype=str)
    rows[rows.ImageId.isin(image_ids)].to_csv(path / "train.csv", index=False)
    return read_folder(path)


def begun_from(run, **changes):
    return replace(TINY, **{"init_from": str(run), "epochs": 1, "seed": 7, **changes})


@pytest.fixture(scope="module")
def chain(calm, folder, tmp_path_factory):
    """(second run, image): the second run began from the first. Its data lacks an image that the first was trained
    on, and its folds are else the same."""
    where = tmp_path_factory.mktemp("chain")
    folds = pd.read_csv(calm / "folds.csv")
    lost = folds.image_id[folds.fold == 1].iloc[3]
    folds = folds[folds.image_id != lost]
    (where / "second").mkdir()
    write_folds(where / "second/folds.csv", folds)
    data = part_of(folder, where / "data", set(folds.image_id))
    train_run(where / "second", data, begun_from(calm), only=0, progress=False)
    return where / "second", lost


def with_image_in_fold_0(calm, run, image_id):
    "A new run whose folds.csv is that of the first, with one image moved."
    run.mkdir()
    folds = pd.read_csv(calm / "folds.csv")
    write_folds(run / "folds.csv", folds.assign(fold=folds.fold.where(folds.image_id != image_id, 0)))


def test_a_run_begins_with_the_weights_of_another(calm, folder, tmp_path):
    "A step of 1e-30 moves no weight: after an epoch the parameters are still those of the first run's best net."
    train_run(tmp_path / "run", folder, begun_from(calm, lr=1e-30), only=0, progress=False)
    first = load_model(calm / "fold_0/best")
    net = load_model(tmp_path / "run/fold_0/last")
    assert all(torch.equal(p, first.get_parameter(name)) for name, p in net.named_parameters())
    assert (tmp_path / "run/folds.csv").read_bytes() == (calm / "folds.csv").read_bytes()  # another seed, same folds
    other = train_run(tmp_path / "new", folder, replace(begun_from(calm), init_from=None), only=0, progress=False)
    assert other.score.notna().all() and weights(tmp_path / "new") != weights(tmp_path / "run")


def test_mean_and_deviation_go_with_the_net(calm, chain):
    first, second = read_config(calm)[1], read_config(chain[0])[1]
    assert (second["mean"], second["std"]) == (first["mean"], first["std"]) and second["data"] != first["data"]


def test_a_chain_remembers(calm, chain, folder, tmp_path):
    second, lost = chain
    of_first, of_second = seen_ids(calm / "fold_0/best"), seen_ids(second / "fold_0/best")
    assert lost in of_first and of_first == of_second
    for name in ("best", "last"):
        meta = load_model(second / "fold_0" / name).meta
        assert lost not in meta["train_ids"] and meta["seen_ids"] == sorted(of_first)
    third = tmp_path / "third"
    with_image_in_fold_0(calm, third, "no image")
    train_run(third, folder, begun_from(second, epochs=1), only=0, progress=False)
    assert seen_ids(third / "fold_0/best") == of_first
    assert load_model(third / "fold_0/best").meta["began_from"]["model"] == str(second / "fold_0/best")


def test_a_leak_through_a_chain_is_refused_at_training(calm, chain, folder, tmp_path):
    "The second run never had the image, the first did; the third leaves it out."
    second, lost = chain
    third = tmp_path / "third"
    with_image_in_fold_0(calm, third, lost)
    with pytest.raises(ValueError) as e:
        train_run(third, folder, begun_from(second), only=0, progress=False)
    way = f"{second}/fold_0/best began from {calm}/fold_0/best, which was trained on {lost} (1 such images)"
    assert f"{third}/fold_0 leaves out {lost}, but {way}" in str(e.value)
    assert "copy its folds.csv there" in str(e.value) and not (third / "fold_0").exists()


def test_a_leak_through_a_chain_is_refused_at_prediction(calm, chain, folder, tmp_path):
    "A net of the second run is put into a run whose fold 0 has the image that the first net was trained on."
    second, lost = chain
    third = tmp_path / "third"
    with_image_in_fold_0(calm, third, lost)
    train_run(third, folder, replace(TINY, epochs=1), progress=False)
    shutil.rmtree(third / "fold_0/best")
    shutil.copytree(second / "fold_0/best", third / "fold_0/best")
    for predict in (predict_oof, count_oof):
        with pytest.raises(ValueError) as e:
            predict(third, folder, progress=False)
        way = f"{third}/fold_0/best began from {calm}/fold_0/best, which was trained on {lost}"
        assert f"{way}, which folds.csv puts into fold 0 (1 such images)" in str(e.value)
    assert not (third / "oof").exists()


def test_a_begun_run_is_resumed_with_the_same_net_or_not_at_all(calm, folder, tmp_path):
    "Stopped and resumed it has the bits of an unbroken run; with another first net it is refused."
    config = begun_from(tmp_path / "first", epochs=2)
    shutil.copytree(calm, tmp_path / "first")
    train_run(tmp_path / "unbroken", folder, config, only=0, progress=False)
    run = start_run(tmp_path / "run", config, folder)
    for place in ((0, 0), (1, 1)):
        stop_at(run, folder, *place)
    best = tmp_path / "first/fold_0/best"
    net = load_model(best)
    save_model(net, best, {**net.meta, "epoch": 99})
    with pytest.raises(ValueError, match="first net was '.*', is now '.*'"):
        train_fold(run, folder, 0, progress=False)
    save_model(net, best, net.meta)
    train_fold(run, folder, 0, progress=False)
    assert_same(tmp_path / "unbroken", run)


@pytest.mark.kill
def test_a_begun_run_survives_kills(calm, folder, processes, tmp_path):
    config = begun_from(calm, epochs=2)
    train_run(tmp_path / "unbroken", folder, config, only=0, progress=False)
    run = start_run(tmp_path / "run", config, folder)
    for n in (3, 9):
        child = processes.Process(target=_die_at, args=(n, run, folder))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
    train_fold(run, folder, 0, progress=False)
    assert_same(tmp_path / "unbroken", run)


def test_what_cannot_be_begun_from_is_refused(calm, folder, tmp_path):
    "A fold that is not finished, another encoder, two beginnings, and a folder that is no run; no run is left behind."
    with pytest.raises(ValueError, match="fold_1 is not trained to its end, so fold 1 cannot begin from it"):
        train_run(tmp_path / "unfinished", folder, begun_from(calm), only=1, progress=False)
    (tmp_path / "blend").mkdir()
    (tmp_path / "blend/config.json").write_text(json.dumps({"blend": {"runs": ["a", "b"]}, "classes": 4}))
    for name, config, says in (
        ("deeper", begun_from(calm, encoder_depth=5), "depth 4, here tu-test_resnet.r160_in1k of depth 5"),
        (
            "other",
            begun_from(calm, encoder="resnet18"),
            "does not fit the encoder.*there tu-test_resnet.*here resnet18",
        ),
        ("two", begun_from(calm, encoder_weights=str(calm / "fold_0/best")), "are two beginnings for one encoder"),
        ("none", begun_from(tmp_path / "no"), "no such run, model folder or file of weights"),
        ("no file", replace(TINY, encoder_weights="no/file.pth"), "no such file or folder"),
        ("run", replace(TINY, encoder_weights=str(calm)), "is a run: give one of its nets, such as .*fold_0/best"),
        ("fold", begun_from(calm / "fold_0"), "the state of a training.*give .*fold_0/best"),
        ("of_blend", begun_from(tmp_path / "blend"), "blend is a blend of a, b and has no nets of its own"),
    ):
        with pytest.raises(ValueError, match=says):
            train_run(tmp_path / name, folder, config, only=0, progress=False)
        assert not (tmp_path / name / "config.json").exists()


# ---- begun from one net, or with another kind of net


@pytest.fixture(scope="module")
def other_line(tmp_path_factory):
    "Other strips with the names of the first folder's, one class, fewer images."
    where = make_folder(tmp_path_factory.mktemp("line") / "strips", n_train=24, n_test=2, shape=(32, 64), seed=5)
    images = sorted((where / "train_images").iterdir())
    pixels = np.random.default_rng(3).integers(60, 140, (24, 32, 64), dtype=np.uint8)
    for path, image in zip(images, pixels):
        cv2.imwrite(str(path), image)
    rows = [f"{path.name},1,{100 + k} 40" for k, path in enumerate(images) if k % 2]
    (where / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n")
    (where / "sample_submission.csv").unlink()
    return read_folder(where)


def of_first_step(run):
    "The net of a fold that was trained with steps of 1e-30."
    return load_model(run / "fold_0/last").net.state_dict()


@pytest.mark.parametrize("form", ["run", "model folder", "its file", "file"])
def test_another_line_with_other_classes_keeps_the_decoder(form, calm, folder, other_line, tmp_path, capsys):
    "Only the last layer begins at random; it is said, kept, and the same with the same seed."
    assert set(other_line.images.image_id) < set(folder.images.image_id) and other_line.n_classes == 1
    net = load_model(calm / "fold_0/best").net.state_dict()
    torch.save({"state_dict": {f"module.{n}": t for n, t in net.items()}}, tmp_path / "net.ckpt")
    paths = {
        "run": calm,
        "model folder": calm / "fold_0/best",
        "its file": calm / "fold_0/best/model.safetensors",
        "file": tmp_path / "net.ckpt",
    }
    config = begun_from(paths[form], lr=1e-30)
    for name in ("a", "b"):
        train_run(tmp_path / name, other_line, config, only=0, progress=name == "a")
    begun = of_first_step(tmp_path / "a")
    named = {n for n, _ in load_model(calm / "fold_0/best").net.named_parameters()}
    assert all(torch.equal(begun[n], net[n]) for n in named if not n.startswith("segmentation_head"))
    assert begun["segmentation_head.0.weight"].shape[0] == 1
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    said = capsys.readouterr().out
    assert "fold 0 begins from " in said and "it takes the encoder (" in said and "decoder (" in said
    assert "begins at random: segmentation_head (segmentation_head.0.weight is (4, " in said
    kept = json.loads((tmp_path / "a/fold_0/began_from.json").read_text())
    assert set(kept["taken"]) == {"encoder", "decoder"} and list(kept["random"]) == ["segmentation_head"]
    assert ("is not known" in said) == (form == "file")


def test_another_architecture_and_a_class_head_are_said(calm, folder, tmp_path, capsys):
    for name, changes, says in (
        ("head", dict(class_head=0.1), "begins at random: classification_head (not in the file)"),
        ("three", dict(in_channels=3), "has 1 input channels there and 3 here: its channel is spread over 3"),
        ("unet", dict(arch="unet", decoder=None), "begins at random: decoder (not in the file); segmentation_head ("),
    ):
        run = start_run(tmp_path / name, begun_from(calm, **changes), folder)
        stop_at(run, folder, 0, 0, progress=True)
        assert says in capsys.readouterr().out
    assert (tmp_path / "unet/folds.csv").read_bytes() == (calm / "folds.csv").read_bytes()


def test_an_encoder_of_a_net_is_not_blind_to_what_it_has_seen(calm, folder, tmp_path):
    "The encoder of fold 0 may be used for fold 0 of the same folds, and for no other."
    config = replace(begun_from(None), init_from=None, encoder_weights=str(calm / "fold_0/best"))
    (tmp_path / "run").mkdir()
    shutil.copy(calm / "folds.csv", tmp_path / "run")
    history = train_run(tmp_path / "run", folder, config, only=0, progress=False)
    assert history.fold.tolist() == [0] and read_config(tmp_path / "run")[0].encoder_weights == config.encoder_weights
    with pytest.raises(ValueError, match="fold_1 leaves out .*fold_0/best was trained on .*`--init-from"):
        train_run(tmp_path / "run", folder, config, only=1, progress=False)
    (tmp_path / "both").mkdir()
    shutil.copy(calm / "folds.csv", tmp_path / "both")
    with pytest.raises(ValueError, match="fold_1 leaves out"):
        train_run(tmp_path / "both", folder, config, progress=False)
    assert not (tmp_path / "both/fold_0").exists()  # said before the first fold is trained


def test_a_namesake_is_no_leak_and_nothing_is_forgotten(calm, folder, other_line, tmp_path):
    "On other strips of the same names a net goes on; back on the first ones it remembers them."
    second = tmp_path / "second"
    train_run(second, other_line, begun_from(calm / "fold_0/best"), progress=False)
    meta = load_model(second / "fold_0/best").meta
    of_first, here = seen_ids(calm / "fold_0/best"), set(other_line.images.image_id)
    assert not set(meta["seen_ids"]) & set(other_line.images.image_id) - set(meta["train_ids"])
    assert {name for name, _ in meta["seen_others"]} == of_first & here
    assert len(predict_oof(second, other_line, progress=False).image_ids) == 24
    folds = pd.read_csv(calm / "folds.csv").assign(fold=1)
    folds.loc[folds.image_id.isin(sorted(of_first & here - set(meta["train_ids"]))[:3]), "fold"] = 0
    (tmp_path / "third").mkdir()
    write_folds(tmp_path / "third/folds.csv", folds)
    with pytest.raises(ValueError, match=r"fold_0 leaves out .*was trained on .*\(3 such images\)"):
        train_run(tmp_path / "third", folder, begun_from(second / "fold_0/best"), only=0, progress=False)


def test_images_that_were_saved_again_are_the_same(calm, folder, tmp_path):
    shutil.copytree(folder.root, tmp_path / "again")
    for path in (tmp_path / "again/train_images").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), 0), [cv2.IMWRITE_JPEG_QUALITY, 70])
    again = read_folder(tmp_path / "again")
    assert again.sha256 != folder.sha256
    with pytest.raises(ValueError, match="fold_1 leaves out .*fold_0/best was trained on"):
        (tmp_path / "run").mkdir()
        shutil.copy(calm / "folds.csv", tmp_path / "run")
        train_run(tmp_path / "run", again, begun_from(calm / "fold_0/best"), only=1, progress=False)


def test_a_run_begun_from_a_file_is_resumed(calm, folder, tmp_path, capsys):
    "To the same bits; also when the file is gone, but not for a new fold, nor when it was changed."
    net = load_model(calm / "fold_0/best").net.state_dict()
    file, config = tmp_path / "net.pth", begun_from(tmp_path / "net.pth", epochs=2)
    torch.save(net, file)
    train_run(tmp_path / "unbroken", folder, config, only=0, progress=False)
    run = start_run(tmp_path / "run", config, folder)
    stop_at(run, folder, 0, 0)
    torch.save({n: t + 1 for n, t in net.items()}, file)
    with pytest.raises(ValueError, match="net.pth was changed since this run was begun with it"):
        train_run(run, folder, config, progress=False)
    file.unlink()
    capsys.readouterr()
    with pytest.raises(ValueError, match="net.pth: no such file"):
        train_run(run, folder, config)
    assert "begins from" not in capsys.readouterr().out
    assert_same(tmp_path / "unbroken", run)
    assert read_config(run)[1]["began_from"]["path"] == str(file)


# ---- for those who watch


def test_examples_are_what_the_last_net_says(calm, folder):
    with np.load(calm / "fold_0/examples.npz", allow_pickle=False) as f:
        ids, levels, epoch = f["image_ids"].tolist(), f["levels"], int(f["epoch"])
    folds = pd.read_csv(calm / "folds.csv").set_index("image_id").fold
    assert epoch == 3 and levels.dtype == np.uint8 and len(ids) == len(set(ids)) == 4 and (folds[ids] == 0).all()
    model = load_model(calm / "fold_0/last")
    with torch.inference_mode():
        prob = torch.cat([model(torch.from_numpy(folder.image(i))[None, None]) for i in ids]).sigmoid().numpy()
    expected = np.rint(prob * 255)
    assert (
        np.abs(levels - np.where(expected < 13, 0, expected)).max()
        <= 1 + 12 * ((expected == 13) | (expected == 12)).any()
    )
    shown = {c for i in ids for c in np.flatnonzero(folder.mask(i).any((1, 2)))}
    assert shown == set(folder.masks.channel[folder.masks.image_id.map(folds) == 0])


def test_progress_is_told_and_so_is_the_end(calm, folder, tmp_path):
    run, told = tmp_path / "run", []

    def read():
        return json.loads((run / "fold_0/progress.json").read_text())

    start_run(run, TINY, folder)

    def on_step(*now):
        told.append(read())
        if now == (1, 1):
            raise Stop("out of\ncoffee")

    with pytest.raises(Stop):
        train_fold(run, folder, 0, progress=False, on_step=on_step)
    assert told[0]["doing"] in ("starting", "training") and told[0]["pid"] == os.getpid()
    end = read()
    assert (end["doing"], end["why"], end["epoch"], end["step"], end["epochs"], end["steps"]) == (
        "stopped",
        "Stop: out of\ncoffee",
        2,
        2,
        3,
        3,
    )
    assert end["images"] == 20 and end["seconds"] > 0
    area = folder.truth_area()[
        pd.read_csv(run / "folds.csv").set_index("image_id").fold[folder.images.image_id].to_numpy() == 0
    ]
    assert end["all_empty"] == pytest.approx((area == 0).mean()) and end["all_empty_by_class"] == pytest.approx(
        (area == 0).mean(0).tolist()
    )
    train_fold(run, folder, 0, progress=False)
    assert read()["doing"] == "finished" and read()["step"] == 3 and "why" not in read()
    assert_same(calm, run)
    before = (run / "fold_0/progress.json").read_bytes()
    train_fold(run, folder, 0, progress=False)
    assert (run / "fold_0/progress.json").read_bytes() == before, "a finished fold has no news"


def test_news_come_once_a_second(calm, folder, tmp_path, monkeypatch):
    """Steps of .3 s by the clock that is asked: of all the news of a fold, every fourth is written; loss and examples
    as in the calm run."""
    clock, written, replace_ = [0.0], [], os.replace
    monkeypatch.setattr("steel_seg.train.time.monotonic", lambda: clock.__setitem__(0, clock[0] + 0.3) or clock[0])
    monkeypatch.setattr(
        os,
        "replace",
        lambda a, b: (written.append(clock[0]) if str(b).endswith("progress.json") else None, replace_(a, b)),
    )
    run = tmp_path / "run"
    train_run(run, folder, TINY, only=0, progress=False)
    assert 4 <= len(written) < 12 and min(np.diff(written)[:-1]) >= 1  # the end is told at once
    assert_same(calm, run)
    assert (
        np.load(run / "fold_0/examples.npz")["levels"].tobytes()
        == np.load(calm / "fold_0/examples.npz")["levels"].tobytes()
    )


def test_training_goes_on_where_news_cannot_be_written(calm, folder, tmp_path):
    run = tmp_path / "run"
    start_run(run, TINY, folder)
    for name in ("progress.json", "examples.npz"):
        (run / "fold_0" / name / "in the way").mkdir(parents=True)
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)


def test_run_of_before_goes_on(calm, folder, tmp_path):
    "A state whose history has no scores by class, and a fold without the files for those who watch."
    run = tmp_path / "run"
    start_run(run, TINY, folder)
    with pytest.raises(Stop):
        train_fold(
            run, folder, 0, progress=False, on_step=lambda *now: (_ for _ in ()).throw(Stop) if now == (1, 1) else None
        )
    state = run / "fold_0/state.safetensors"
    tensors, at = load_state(state)
    more = ["present", "empty", "score_1", "score_2", "score_3", "score_4"]
    for row in at["history"]:
        for name in more:
            del row[name]
    save_state(state, tensors, at)
    for name in ("progress.json", "examples.npz", "history.csv"):
        (run / "fold_0" / name).unlink()
    history = train_fold(run, folder, 0, progress=False)
    assert history[more].isna().all(axis=1).tolist() == [True, False, False] and history.notna().drop(columns=more).all(
        axis=None
    )
    assert weights(run) == weights(calm)


# ---- several processes


def _rank(rank, port, run, folder):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    train_run(run, folder, replace(TINY, batch_size=2, epochs=2), only=0, progress=False)
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_fold(folder, processes, tmp_path):
    "Both end, one writes, and the score is that of all images of the fold."
    run = tmp_path / "run"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = [processes.Process(target=_rank, args=(r, port, run, folder)) for r in (0, 1)]
    for p in ranks:
        p.start()
    for p in ranks:
        p.join(120)
        assert p.exitcode == 0
    history = pd.read_csv(run / "history.csv")
    fold = pd.read_csv(run / "folds.csv").fold.to_numpy()
    loader = make_loader(
        StripDataset(folder), epoch_batches(np.flatnonzero(fold == 0), 2, 0, 0, shuffle=False, drop_last=False)
    )
    found = evaluate(load_model(run / "fold_0/last"), loader, build_loss("bce_dice"), Accelerator())
    assert history.val_loss.iloc[-1] == pytest.approx(found.pop("val_loss"), rel=1e-4)
    for name, value in found.items():
        assert history[name].iloc[-1] == pytest.approx(value, abs=1e-6), name
    news = json.loads((run / "fold_0/progress.json").read_text())
    assert news["doing"] == "finished" and news["pid"] == ranks[0].pid
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    with pytest.raises(ValueError, match="processes was 2, is now 1"):
        train_fold(run, folder, 0, progress=False)
