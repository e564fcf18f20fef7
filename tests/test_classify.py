"""A classifier as a run of its own: its net, its labels, its training, and what is made of its scores."""

import copy
import json
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from test_train import _die_at, assert_same, processes, stop_at  # noqa: F401 (a fixture)
from timm.layers.cbam import CbamModule
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from steel_seg.augment import train_transform
from steel_seg.class_report import open_class_run
from steel_seg.class_scores import (
    average_precision,
    best_f1,
    error_columns,
    f1_at,
    log_loss,
    most_wrong,
    precision_recall,
    read_class_probs,
)
from steel_seg.cli import main
from steel_seg.config import TrainConfig, field_help
from steel_seg.data import read_folder
from steel_seg.dataset import StripDataset, epoch_batches, make_loader
from steel_seg.folds import write_folds
from steel_seg.loss import class_loss
from steel_seg.model import ClassModel, build_classifier, checkpoint_encoder, load_model, save_model, verify_model
from steel_seg.open_run import open_run
from steel_seg.predict import count_oof, predict_oof, predict_scores, predict_test
from steel_seg.synth import make_folder
from steel_seg.train import start_run, train_fold, train_run

ENCODER = "test_resnet.r160_in1k"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "40 small strips, 18 labels, all four classes in both folds, and 3 test images."
    return read_folder(
        make_folder(tmp_path_factory.mktemp("data") / "strips", n_train=40, n_test=3, shape=(32, 64), seed=5)
    )


def strips(n=2, h=32, w=64):
    return torch.randint(0, 256, (n, 1, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def class_logits(model, images):
    with torch.no_grad():
        masks, classes = model(images)
    assert masks is None
    return classes


def residual_blocks(model):
    return [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]


# ---- the net


@pytest.mark.parametrize(
    "encoder, blocks", [("resnet34", 16), ("tu-resnet18", 8), (ENCODER, 4), ("resnext50_32x4d", 16)]
)
def test_every_residual_block_has_cbam(encoder, blocks):
    torch.manual_seed(0)
    model = build_classifier(encoder, attention="cbam")
    found = residual_blocks(model)
    assert len(found) == blocks and all(isinstance(block.se, CbamModule) for block in found)
    assert not any(isinstance(m, CbamModule) for m in build_classifier(encoder).modules())


@pytest.mark.parametrize("encoder, blocks", [("resnet34", 16), (ENCODER, 4)])
def test_the_attention_is_alive_from_the_second_step_on(encoder, blocks):
    "Its weights are trained, its gradients are not 0, and each block's attention changes the output."
    torch.manual_seed(2)  # with 0 all hidden units of one block's channel attention (3 or 4) are dead from the start
    model, truth = build_classifier(encoder, attention="cbam"), torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".se." in name}
    assert len(before) == 5 * blocks  # two layers for the channels, and one with its norm for the places
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(strips())[1], truth).backward()
        optimizer.step()
    own = dict(model.named_parameters())
    for name, old in before.items():
        assert own[name].grad.abs().sum() > 0 and not torch.equal(own[name], old), name
    model.eval()
    logits = class_logits(model, strips())
    for k in range(blocks):
        without = copy.deepcopy(model)
        residual_blocks(without)[k].se = nn.Identity()
        assert (class_logits(without, strips()) - logits).abs().max() > 1e-4


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(attention="CBAM"), "attention='CBAM' with a classifier: it is None or \"cbam\", in small letters"),
        (dict(attention="scse"), "attention='scse'"),
        (dict(encoder="test_efficientnet.r160_in1k", attention="cbam"), "made of timm's residual blocks"),
        (dict(encoder="convnext_atto", attention="cbam"), "made of timm's residual blocks"),
        (dict(encoder="resnet43"), "no encoder of timm is called 'resnet43'; similar names: resnet34"),
        (dict(encoder="se_resnext50_32x4d"), "similar names: seresnext50_32x4d"),
        (dict(in_channels=2), "in_channels is 2"),
        (dict(n_classes=0), "n_classes is 0"),
        (dict(std=0), "std above 0"),
        (dict(block_args={}), "block_args: cannot be set"),
        (dict(depth=3), "no classifier over"),
        (dict(encoder_weights="ssl"), "names its weights itself"),
        (dict(encoder_weights="no/such/file.pth"), "no such file or folder"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        build_classifier(**{"encoder": ENCODER, **wrong})


@pytest.mark.parametrize("encoder", [ENCODER, "test_efficientnet.r160_in1k", "test_convnext.r160_in1k", "regnety_002"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_a_logit_for_each_class(encoder, channels):
    torch.manual_seed(0)
    model = build_classifier(encoder, 3, channels).eval()
    for h, w in ((32, 200), (37, 61), (64, 64)):
        assert class_logits(model, strips(2, h, w)).shape == (2, 3)
    one_by_one = torch.cat([class_logits(model, image[None]) for image in strips()])
    torch.testing.assert_close(class_logits(model, strips()), one_by_one)


def test_grey_levels_are_normalised_and_bytes_and_floats_are_the_same():
    torch.manual_seed(0)
    model = build_classifier(ENCODER, in_channels=3, mean=0.25, std=0.5).eval()
    x = (strips().float() / 255 - 0.25) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(class_logits(model, strips()), model.net(x.expand(-1, 3, -1, -1)))
    assert torch.equal(class_logits(model, strips()), class_logits(model, strips().float()))


def test_saved_and_loaded_it_is_the_same_net(tmp_path):
    torch.manual_seed(0)
    model = build_classifier("tu-" + ENCODER, 3, attention="cbam", global_pool="catavgmax", drop_rate=0.1).eval()
    model.to(memory_format=torch.channels_last)
    again = load_model(save_model(model, tmp_path / "net", {"fold": 1, "train_ids": ["a.jpg"]}))
    assert isinstance(again, ClassModel) and again.meta == {"fold": 1, "train_ids": ["a.jpg"]}
    assert again.spec == model.spec and again.spec["task"] == "classify" and not again.training
    again.to(memory_format=torch.channels_last)
    assert torch.equal(class_logits(again, strips()), class_logits(model, strips()))


def test_a_damaged_or_missing_file_is_named(tmp_path):
    folder = save_model(build_classifier(ENCODER), tmp_path / "net")
    assert set(verify_model(folder)) == {"model.safetensors", "steel_seg.json"}
    for name in ("model.safetensors", "steel_seg.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_model(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            load_model(folder)
        (folder / name).write_bytes(good)
    load_model(folder)


def test_weights_of_a_file_and_pretrained_ones_without_cbam(tmp_path, monkeypatch):
    "timm's own loader is given a file in place of the hub; CBAM keeps the weights it began with."
    import timm

    from steel_seg import model as model_module

    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", num_classes=1000)  # three channels and a classifier, as on the hub
    for p in theirs.parameters():
        nn.init.normal_(p)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")}}
    monkeypatch.setattr(model_module, "_pretrained", lambda encoder, weights: overlay)
    for weights in ("imagenet", str(tmp_path / "model.safetensors")):
        net = build_classifier(ENCODER, attention="cbam", encoder_weights=weights).net
        own = net.encoder.state_dict()
        torch.testing.assert_close(own["conv1.0.weight"], theirs.conv1[0].weight.sum(1, keepdim=True).detach())
        for name, t in theirs.state_dict().items():
            if name != "conv1.0.weight" and not name.startswith("fc."):
                assert torch.equal(own[name], t), name
        assert own["layer1.0.se.channel.fc1.weight"].abs().max() > 0  # of its own: the file has none


def test_blocks_computed_again_give_the_same_gradients():
    torch.manual_seed(0)
    model = build_classifier(ENCODER, attention="cbam")
    less = copy.deepcopy(model)
    checkpoint_encoder(less)
    for net in (model, less):
        net(strips(4))[1].square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), less.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert all(map(torch.equal, model.buffers(), less.buffers()))


# ---- the configuration

TINY = TrainConfig(
    task="classify",
    encoder=ENCODER,
    encoder_weights=None,
    attention="cbam",
    epochs=3,
    batch_size=4,
    accumulate=2,
    lr=1e-2,
    folds=2,
    num_workers=0,
    save_every=1,
    brightness=0.5,
)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(task="classifier"), "task='classifier' is not one of segment, classify"),
        (dict(attention="CBAM"), "attention='CBAM' is not none or cbam, as task='classify' takes it"),
        (dict(attention="scse"), "attention='scse' is not none or cbam"),
        (dict(task="segment"), "attention='cbam' is not none or scse"),
        (dict(arch="unet"), "arch='unet' is only for task='segment'"),
        (dict(encoder_depth=4), "encoder_depth=4 is only for"),
        (dict(class_head=0.5), "class_head=0.5 is only for"),
        (dict(loss="lovasz"), "loss='lovasz' is only for"),
        (dict(rule="rule.json"), "rule='rule.json' is only for"),
        (dict(stages=[{}, {"loss": "lovasz"}]), "stage 2: loss='lovasz' is only for"),
        (dict(encoder="se_resnext50_32x4d"), "similar names: seresnext50_32x4d"),
        (dict(decoder={"num_classes": 2}), "num_classes: cannot be set"),
    ],
)
def test_a_configuration_says_what_a_classifier_cannot_have(wrong, says):
    with pytest.raises(ValueError, match=says):
        replace(TINY, **wrong)


def test_a_configuration_without_a_task_is_of_masks():
    assert TrainConfig.from_json("{}").task == "segment"
    assert TrainConfig.from_json(TINY.to_json()) == TINY
    assert "classify" in field_help()["task"] and "cbam" in field_help()["attention"]


# ---- labels


def test_labels_need_no_mask_unless_a_defect_may_be_lost(folder, monkeypatch):
    from steel_seg import dataset

    def never(*args, **kwargs):
        raise AssertionError("a mask was decoded")

    monkeypatch.setattr(dataset, "decode", never)
    flips = train_transform(brightness=0.5)
    for transform in (None, flips):
        data = StripDataset(folder, transform, seed=3, labels_only=True)
        batches = make_loader(data, epoch_batches(range(len(folder)), 4, 0, 0, drop_last=False))
        for batch in batches:
            np.testing.assert_array_equal(batch["label"], folder.truth_area()[batch["index"]] > 0)
    labelled = int(np.flatnonzero(folder.truth_area().any(1))[0])
    for change in ({"crop": "16x32"}, {"blackout": 0.1}, {"black_bars": 0.1}):
        data = StripDataset(folder, train_transform(**change), labels_only=True)
        with pytest.raises(AssertionError, match="a mask was decoded"):
            data[labelled]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"crop": "16x32"},
        {"blackout": 0.5},
        {"black_bars": 1.0, "crop": "32x48"},
        {"crop": "32x16", "blackout": 0.3},
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_label_is_what_the_transformed_mask_shows(folder, change, num_workers):
    transform = train_transform(**change)
    items = epoch_batches(range(len(folder)), 5, 0, 3, drop_last=False)
    images, labels, shown = [], [], []
    for labels_only in (True, False):
        loader = make_loader(StripDataset(folder, transform, 7, labels_only=labels_only), items, num_workers)
        for batch in loader:
            images.append(batch["image"])
            (labels if labels_only else shown).append(batch["label" if labels_only else "mask"])
    half = len(images) // 2
    assert all(map(torch.equal, images[:half], images[half:]))
    labels, shown = torch.cat(labels), torch.cat(shown).flatten(2).any(2)
    assert torch.equal(labels.bool(), shown) and labels.dtype == torch.uint8
    lost = (folder.truth_area() > 0).sum() - int(shown.sum())
    assert (lost > 0) == bool(change)


def test_labels_of_pseudo_rows_follow_those_of_the_folder(folder, tmp_path):
    extra = read_folder(make_folder(tmp_path / "extra", n_train=9, n_test=0, shape=(32, 64), seed=8), n_classes=4)
    data = StripDataset(folder, extra=extra, labels_only=True)
    for i in range(len(extra)):
        item = data[len(folder) + i]
        np.testing.assert_array_equal(item["label"], extra.truth_area()[i] > 0)
        assert item["image"].shape == (1, 32, 64) and set(item) == {"image", "label", "index"}


def test_the_loss_is_the_same_for_masks_and_their_labels():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(5, 4, 8, 8, generator=generator) > 0.98).byte()
    logits, labels = torch.randn(5, 4, generator=generator), masks.flatten(2).any(2).byte()
    by_hand = nn.functional.binary_cross_entropy(logits.sigmoid(), labels.float())
    torch.testing.assert_close(class_loss(logits, labels), by_hand)
    assert torch.equal(class_loss(logits, labels), class_loss(logits, masks))
    with pytest.raises(ValueError, match=r"\(N,C,H,W\) or \(N,C\)"):
        class_loss(logits, labels[0])


# ---- what is known of scores


def test_precision_and_recall_against_a_slow_loop():
    rng = np.random.default_rng(3)
    for round_to in (6, 1):  # few and many equal scores
        score, label = rng.random(80).round(round_to), rng.random(80) < 0.3
        curve, area, before = precision_recall(score, label), 0.0, 0.0
        assert curve.thresh.tolist() == sorted(set(score.tolist()), reverse=True)
        for row in curve.itertuples():
            hits = sum(1 for s, present in zip(score, label) if s >= row.thresh and present)
            predicted = sum(1 for s in score if s >= row.thresh)
            assert (row.precision, row.recall) == pytest.approx((hits / predicted, hits / sum(label)))
            area, before = area + hits / predicted * (hits / sum(label) - before), hits / sum(label)
        assert average_precision(score, label) == pytest.approx(area)
        f1 = 2 * curve.precision * curve.recall / (curve.precision + curve.recall).clip(1e-9)
        assert f1.max() == pytest.approx(best_f1(score, label)[1])


def test_log_loss_is_that_of_torch():
    rng = np.random.default_rng(0)
    probs, labels = rng.random((50, 3)), rng.random((50, 3)) < 0.4
    of_torch = nn.functional.binary_cross_entropy(torch.tensor(probs), torch.tensor(labels, dtype=torch.float64))
    assert log_loss(probs, labels).mean() == pytest.approx(of_torch.item())
    assert np.isfinite(log_loss([[0.0]], [[1]])).all()


def test_the_most_wrong_pairs_come_first_and_right_ones_not_at_all():
    rng = np.random.default_rng(1)
    probs, labels, ids = rng.random((30, 4)), rng.random((30, 4)) < 0.2, [f"{i}.jpg" for i in range(30)]
    table, columns = most_wrong(probs, labels, ids, 1000), error_columns(probs, labels, ids)
    distance = (table.probability - table.truth).abs()
    assert distance.is_monotonic_decreasing and distance.min() > 0.5
    assert len(table) == (np.abs(probs - labels) > 0.5).sum()
    first = table.iloc[0]
    assert columns["classifier error"].idxmax() == first.image_id
    assert columns.loc[first.image_id, f"classifier error {first.class_id}"] == distance[0]


# ---- training


@pytest.fixture(scope="module")
def calm(folder, tmp_path_factory):
    "A run in which nothing happened: both folds, trained in one go."
    run = tmp_path_factory.mktemp("calm") / "run"
    train_run(run, folder, TINY, progress=False)
    return run


def test_history_is_what_the_last_net_says_of_its_fold(calm, folder):
    history = pd.read_csv(calm / "fold_0/history.csv")
    fold, model = pd.read_csv(calm / "folds.csv").fold, load_model(calm / "fold_0/last")
    assert model.spec["attention"] == "cbam" and len(residual_blocks(model)) == 4
    held_out = folder.images.image_id[fold == 0]
    images = torch.from_numpy(np.stack([folder.image(i) for i in held_out])[:, None])
    probs, labels = class_logits(model, images).sigmoid().numpy(), folder.truth_area()[fold == 0] > 0
    last, known = history.iloc[-1], []
    for c in range(4):
        if labels[:, c].any():
            by_loop = max(f1_at(probs[:, c], labels[:, c], t) for t in probs[:, c])
            assert last[f"score_{c + 1}"] == pytest.approx(by_loop, abs=1e-6)
            known.append(by_loop)
        else:
            assert np.isnan(last[f"score_{c + 1}"])
    assert last.score == pytest.approx(np.mean(known), abs=1e-6)
    assert last.val_loss == pytest.approx(log_loss(probs, labels).mean(), rel=1e-4)
    best = json.loads((calm / "fold_0/best/steel_seg.json").read_text())["meta"]
    assert (best["epoch"], best["score"]) == (history.epoch[history.score.idxmax()], history.score.max())


def test_stopped_and_resumed_it_ends_with_the_same_bits(calm, folder, tmp_path):
    run = tmp_path / "run"
    start_run(run, TINY, folder)
    for place in ((0, 1), (2, 1)):
        stop_at(run, folder, *place)
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)


@pytest.mark.kill
def test_killed_and_resumed_it_ends_with_the_same_bits(calm, folder, processes, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    start_run(run, TINY, folder)
    child = processes.Process(target=_die_at, args=(12, run, folder))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (run / "fold_0/last").exists()
    train_fold(run, folder, 0, progress=False)
    assert_same(calm, run)


def test_stages_ema_a_mean_of_nets_and_pseudo_labels(folder, tmp_path):
    pseudo = make_folder(tmp_path / "pseudo", n_train=12, n_test=0, shape=(32, 64), seed=9)
    for path in sorted((pseudo / "train_images").iterdir()):
        path.rename(path.with_name("p" + path.name))
    table = pd.read_csv(pseudo / "train.csv")
    table["ImageId"] = "p" + table.ImageId
    table.to_csv(pseudo / "train.csv", index=False)
    stages = [{"crop": "32x32", "blackout": 0.2, "epochs": 1}, {"sampler": "pseudo"}, {"sampler": "balanced"}]
    config = replace(TINY, stages=stages, epochs=2, ema=0.9, average=2, pseudo=str(pseudo), fit_batch=True)
    history = train_run(tmp_path / "run", folder, config, only=0, progress=False)
    assert history.stage.tolist() == [1, 2, 2, 3, 3] and history.loss.notna().all()
    assert history.score.between(0, 1).all() and (tmp_path / "run/fold_0/last").exists()


def test_a_whole_run_decodes_no_mask(folder, tmp_path, monkeypatch):
    from steel_seg import dataset

    def never(*args, **kwargs):
        raise AssertionError("a mask was decoded")

    monkeypatch.setattr(dataset, "decode", never)
    train_run(tmp_path / "run", folder, replace(TINY, epochs=1), only=0, progress=False)


def test_a_fold_without_a_defect_is_refused_before_the_run_exists(folder, tmp_path):
    run, clean = tmp_path / "run", ~folder.truth_area().any(1)
    run.mkdir()
    write_folds(run / "folds.csv", pd.DataFrame({"image_id": folder.images.image_id, "fold": clean.astype(int)}))
    with pytest.raises(ValueError, match="no image of fold 1 shows a defect.*use fewer folds"):
        train_run(run, folder, TINY, progress=False)
    assert not (run / "config.json").exists()


def test_one_run_cannot_change_its_task(calm, folder):
    with pytest.raises(ValueError, match="task was 'classify', is now 'segment'"):
        start_run(calm, replace(TINY, task="segment", attention=None, encoder="tu-" + ENCODER), folder)


# ---- predictions, and what is made of them


@pytest.fixture(scope="module")
def predicted(calm, folder):
    predict_scores(calm, folder, progress=False)
    predict_scores(calm, folder, "test", progress=False)
    return calm


def test_scores_are_out_of_fold(predicted, folder):
    "Each image by the net that did not see it, as the mean of the image and its mirror image."
    probs = read_class_probs(predicted / "oof_scores.csv", folder.images.image_id, 4)
    fold = pd.read_csv(predicted / "folds.csv").fold
    for k in (0, 1):
        model = load_model(predicted / f"fold_{k}/best")
        ids = folder.images.image_id[fold == k]
        images = torch.from_numpy(np.stack([folder.image(i) for i in ids])[:, None])
        by_hand = (class_logits(model, images).sigmoid() + class_logits(model, images.flip(3)).sigmoid()) / 2
        np.testing.assert_allclose(probs[fold == k], by_hand, atol=2e-6)
    test = read_class_probs(predicted / "test_scores.csv", folder.test.image_id, 4)
    assert test.shape == (3, 4) and not (predicted / "oof").exists() and not (predicted / "test").exists()


def test_scores_of_other_nets_are_not_continued(predicted, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(predicted, run)
    with pytest.raises(ValueError, match="tta was 'hflip', is now 'none'"):
        predict_scores(run, folder, tta="none", progress=False)
    (run / "oof_scores.json").unlink()
    with pytest.raises(ValueError, match="its origin is not known"):
        predict_scores(run, folder, progress=False)
    (run / "oof_scores.csv").unlink()
    predict_scores(run, folder, progress=False)
    assert (run / "oof_scores.csv").read_bytes() == (predicted / "oof_scores.csv").read_bytes()


def test_a_leak_is_refused(predicted, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(predicted, run)
    folds = pd.read_csv(run / "folds.csv")
    a, b = folds.index[folds.fold == 0][0], folds.index[folds.fold == 1][0]
    folds.loc[[a, b], "fold"] = [1, 0]
    write_folds(run / "folds.csv", folds)
    (run / "oof_scores.csv").unlink()
    with pytest.raises(ValueError, match="would not be out of fold"):
        predict_scores(run, folder, progress=False)


@pytest.mark.parametrize(
    "what", ["open_run", "predict_oof", "count_oof", "predict_test", "decide", "submit", "count-only"]
)
def test_what_needs_masks_says_so(predicted, folder, what, capsys):
    if what in ("decide", "submit", "count-only"):
        command = ["predict", "--count-only"] if what == "count-only" else [what]
        assert main([*command, "--data", str(folder.root), "--run", str(predicted)]) == 2
        message = capsys.readouterr().err
    else:
        call = {"open_run": open_run, "predict_oof": predict_oof, "count_oof": count_oof, "predict_test": predict_test}
        with pytest.raises(ValueError) as caught:
            call[what](predicted, folder)
        message = str(caught.value)
    assert "masks" in message and message.count("\n") <= 1


def test_the_browser_opens_the_images_that_it_is_most_wrong_about(predicted, folder):
    from steel_seg.look.browse import Browser

    errors = open_class_run(predicted, folder).errors
    browser = Browser(folder, columns=errors)
    browser.sort, browser.rising = "classifier error", False
    assert browser.image_id == errors["classifier error"].idxmax()
    wrong = most_wrong(open_class_run(predicted, folder).probs, folder.truth_area(), folder.images.image_id.tolist(), 1)
    if len(wrong):
        assert browser.image_id == wrong.image_id[0]
    browser.show = "class 3"
    third = errors["classifier error 3"][folder.truth_area()[:, 2] > 0]
    assert errors["classifier error 3"][browser.image_id] == third.max()


def test_the_monitor_shows_f1_and_no_maps(calm, folder):
    from steel_seg.look.monitor import Monitor

    monitor = Monitor(calm, folder)
    assert monitor.progress.task == "classify" and monitor.examples is None
    assert "the score is the mean F1 of the classes" in monitor.lines()[0]
    assert len(monitor.picture().data) > 10_000


def test_from_the_command_line_to_a_gate_by_score(folder, tmp_path, capsys):
    "Train, predict, decide with the classifier's run as --scores, submit with it."
    data, classifier, run = str(folder.root), tmp_path / "classifier", tmp_path / "masks"
    small = ["--epochs", "1", "--batch-size", "4", "--folds", "2", "--num-workers", "0", "--encoder-weights", "none"]

    def done(*words):
        assert main([*map(str, words)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    of_classes = ["--task", "classify", "--encoder", ENCODER, "--attention", "cbam"]
    said = done("train", "--data", data, "--run", classifier, *of_classes, *small)
    assert "fold 1: best mean F1 0." in said and "is kept in" in said
    said = done("predict", "--data", data, "--run", classifier)
    assert all(f"{name}: " in said for name in ("report", "oof_scores", "test_scores"))
    assert "Precision and recall" in (classifier / "report.html").read_text()
    thin = ["--arch", "fpn", "--encoder", "tu-" + ENCODER, "--encoder-depth", "4"]
    done("train", "--data", data, "--run", run, *thin, *small)
    done("predict", "--data", data, "--run", run)
    table = done("decide", "--data", data, "--run", run, "--scores", classifier, "--gate", "score")
    assert "score" in table
    done("submit", "--data", data, "--run", run, "--scores", classifier)
    assert (run / "submission.csv").exists()
    gated = tmp_path / "gated"
    shutil.copytree(run, gated, ignore=shutil.ignore_patterns("oof", "test", "curves.npz"))
    said = done("predict", "--data", data, "--run", gated, "--prefilter", classifier, "--below", ".4")
    assert f"every class is below 0.4 by {classifier.name}" in said
    left_out = int(re.search(r"classifier: ([\d,]+) of", said)[1])
    gains = ("gains", "--data", data, "--chain", gated, "--out", tmp_path / "gains.csv")
    done(*gains, "--scores", classifier, "--below", ".4")
    first = pd.read_csv(tmp_path / "gains.csv").iloc[0]
    assert first.step == f"prefilter, {left_out} of {len(folder)} images left out"
    lost = int(re.search(r"lost with these training images: ([\d,]+) of", said)[1])
    assert first.difference == pytest.approx(-lost / len(folder) / folder.n_classes)
    assert main([*map(str, gains), "--below", ".4"]) == 2
    assert "--below needs --scores" in capsys.readouterr().err
    assert main(["predict", "--data", data, "--run", str(classifier), "--prefilter", str(classifier)]) == 2
    assert "leave out --prefilter" in capsys.readouterr().err
    assert main(["submit", "--data", data, "--run", str(run), "--scores", str(tmp_path)]) == 2
    assert "has no test_scores.csv" in capsys.readouterr().err
