"""Images of several sizes: each keeps its own from the folder to the submission; long scans are predicted in tiles."""

import shutil
import warnings
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from made import slow_dice

from steel_seg.augment import train_transform
from steel_seg.blend import blend_record, open_parts, write_blend
from steel_seg.blend_weights import sample_pixels
from steel_seg.cache import open_cache
from steel_seg.config import TrainConfig
from steel_seg.curves import curves_of
from steel_seg.data import check_folder, read_folder
from steel_seg.dataset import StripDataset, make_loader
from steel_seg.evaluate import in_tiles, loss_of_batch
from steel_seg.loss import build_loss
from steel_seg.model import load_model
from steel_seg.open_run import make_up_run, open_run
from steel_seg.post import Rule, apply_rules
from steel_seg.predict import predict_both, predict_oof, predict_test
from steel_seg.rle import rle_encode
from steel_seg.score import dice_at
from steel_seg.store import ProbStore
from steel_seg.submit import check_submission, score_submission, write_submission
from steel_seg.synth import make_folder
from steel_seg.train import train_run

SIZES = [(40, 90), (64, 48), (33, 160), (50, 50), (36, 71)]
TINY = TrainConfig(
    arch="unet",
    encoder="tu-test_resnet.r160_in1k",
    encoder_weights=None,
    encoder_depth=3,
    epochs=2,
    batch_size=4,
    lr=1e-2,
    folds=2,
    num_workers=0,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tiles"
    return read_folder(make_folder(root, n_train=20, n_test=6, shape=SIZES, seed=3))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    train_run(run, folder, replace(TINY, crop="32x64"), progress=False)
    predict_oof(run, folder, progress=False)
    predict_test(run, folder, progress=False)
    return run


def test_a_folder_knows_the_size_of_each_image(folder):
    assert len(check_folder(folder.root)) == 0
    assert folder.shape == (64, 160) and isinstance(folder.shapes, dict)
    for image_id in [*folder.images.image_id, *folder.test.image_id]:
        assert folder.image(image_id).shape == folder.shape_of(image_id) == folder.shapes[image_id]
    drawn = np.array([folder.mask(i).sum((1, 2)) for i in folder.images.image_id])
    assert np.array_equal(drawn, folder.truth_area())
    assert {folder.shape_of(i) for i in folder.images.image_id} == set(SIZES)
    assert "5 sizes from 50x50 to 33x160" in repr(folder)


def test_a_run_past_its_own_image_is_an_error_though_another_image_is_larger(folder, tmp_path):
    (tmp_path / "train_images").mkdir()
    for name, shape in (("small.png", (10, 20)), ("large.png", (50, 60))):
        cv2.imwrite(str(tmp_path / "train_images" / name), np.zeros(shape, np.uint8))
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\nlarge.png,1,300 9\nsmall.png,1,198 4\n")
    with pytest.raises(
        ValueError, match=r"row 3 \(small.png\): .*leaves a \(10, 20\) mask: it ends at pixel 201 of 200"
    ):
        read_folder(tmp_path)


def test_one_odd_image_in_many_is_a_warning(tmp_path):
    root = make_folder(tmp_path / "strips", n_train=12, n_test=12, shape=(32, 64), seed=1)
    odd = sorted((root / "test_images").iterdir())[3]
    cv2.imwrite(str(odd), np.zeros((32, 70), np.uint8))
    faults = check_folder(root)
    assert faults.file.tolist() == [f"test_images/{odd.name}"] and faults.severity.tolist() == ["warning"]
    assert "is 32x70 (height x width), 11 others are 32x64" in faults.problem[0]
    assert read_folder(root).shape == (32, 64)  # that of the training images
    assert read_folder(root).shape_of(odd.name) == (32, 70)


def rules_to_try():
    rng = np.random.default_rng(0)
    for _ in range(12):
        yield tuple(
            Rule(
                thresh=int(rng.integers(20, 250)),
                min_area=int(rng.choice([0, 5, 60, 400])),
                min_component=int(rng.choice([0, 9, 40])),
                fill_holes=bool(rng.random() < 0.5),
            )
            for _ in range(4)
        )


def test_counts_agree_with_drawn_masks_for_every_size(folder, tmp_path):
    opened = make_up_run(tmp_path / "run", folder, np.random.default_rng(1))
    curves = curves_of(opened.store, folder, connectivity=8, fill_holes=True)
    for rules in rules_to_try():
        slow = []
        for image_id in opened.store.image_ids:
            levels = opened.store.read(image_id)
            assert levels.shape[1:] == folder.shape_of(image_id)
            slow.append([slow_dice(p, m) for p, m in zip(apply_rules(levels, rules), folder.mask(image_id))])
        assert np.allclose(dice_at(curves, rules), slow, atol=1e-12)


def test_a_submission_has_masks_of_each_images_own_size(folder, trained, tmp_path):
    store, rules = ProbStore.open(trained / "test"), (Rule(thresh=100),) * 4
    sample = folder.root / "sample_submission.csv"
    path = write_submission(
        tmp_path / "s.csv", sample, lambda image_id: apply_rules(store.read(image_id), rules), folder.shapes
    )
    assert not (check_submission(path, sample, folder.shapes).severity == "error").any()
    truth = pd.read_csv(folder.root / "test_truth.csv")
    scored = score_submission(path, folder.root / "test_truth.csv", folder.shapes)
    assert scored["pairs"] == len(folder.test) * 4 and len(truth)
    with pytest.raises(ValueError, match="expected"):
        write_submission(tmp_path / "t.csv", sample, lambda i: np.zeros((4, 40, 90), bool), folder.shapes)
    past = path.read_text().splitlines()
    image_id = past[1].split(",")[0]
    height, width = folder.shape_of(image_id)
    past[1] = f"{image_id},1,{height * width} 2"
    (tmp_path / "past.csv").write_text("\n".join(past) + "\n")
    assert "leaves a" in check_submission(tmp_path / "past.csv", sample, folder.shapes).problem[0]


@pytest.mark.parametrize("crop", [None, "32x64", "64x100"])
def test_a_batch_holds_the_whole_of_what_is_seen_and_says_how_much(folder, crop):
    transform = train_transform(crop=crop, crop_on_mask=1.0, hflip=0.5, brightness=0)
    data = StripDataset(folder, transform, seed=4)
    items = [(epoch, i) for epoch in range(3) for i in range(len(folder))]
    for k in range(0, len(items), 7):
        batch = data.__getitems__(items[k : k + 7])
        sizes = batch["size"].tolist()
        wanted = (32, 64) if crop == "32x64" else (64, 100) if crop else tuple(np.max(sizes, 0))
        assert batch["image"].shape[2:] == wanted
        for n, (h, w) in enumerate(sizes):
            assert batch["mask"][n].sum() == batch["mask"][n, :, :h, :w].sum()  # beyond an image nothing is marked
            height, width = folder.shape_of(data.image_ids[items[k + n][1]])
            assert (h, w) == ((min(wanted[0], height), min(wanted[1], width)) if crop else (height, width))


def test_batches_do_not_depend_on_workers_or_cache(folder, tmp_path):
    cache = open_cache(folder, tmp_path, progress=False)
    batches = [[(2, i) for i in range(k, k + 5)] for k in range(0, 20, 5)]
    seen = []
    for workers, source in ((0, None), (2, None), (2, cache)):
        data = StripDataset(folder, train_transform(crop="48x64"), seed=1, cache=source)
        seen.append(list(make_loader(data, batches, workers)))
    for other in seen[1:]:
        for a, b in zip(seen[0], other):
            assert all(torch.equal(a[name], b[name]) for name in ("image", "mask", "index", "size"))


@pytest.mark.parametrize("loss", ["bce", "dice", "lovasz", "0.5*focal + symmetric_lovasz", "weighted_bce"])
def test_no_loss_sees_what_lies_beyond_an_image(folder, loss):
    batch, loss_of = StripDataset(folder).__getitems__(range(8)), build_loss(loss)
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(batch["mask"].shape, generator=rng).requires_grad_()
    value = loss_of_batch(loss_of, logits, batch["mask"], batch["size"])
    value.backward()
    one_by_one = []
    for n, (h, w) in enumerate(batch["size"].tolist()):
        one_by_one.append(loss_of(logits[n : n + 1, :, :h, :w], batch["mask"][n : n + 1, :, :h, :w]).item())
        beyond = logits.grad[n].clone()
        beyond[:, :h, :w] = 0
        assert not beyond.any()
    assert value.item() == pytest.approx(np.mean(one_by_one), rel=1e-5)


def test_a_stopped_training_ends_as_one_that_was_left_alone(folder, tmp_path):
    class Stop(Exception):
        pass

    def stop(epoch, step):
        if (epoch, step) == (1, 1):
            raise Stop

    config = replace(TINY, save_every=1, crop="40x80")
    train_run(tmp_path / "whole", folder, config, progress=False)
    with pytest.raises(Stop):
        train_run(tmp_path / "stopped", folder, config, progress=False, on_step=stop)
    train_run(tmp_path / "stopped", folder, config, progress=False)
    for k in range(2):
        a, b = (load_model(tmp_path / run / f"fold_{k}/last").state_dict() for run in ("whole", "stopped"))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_prediction_does_not_depend_on_the_other_images(folder, trained):
    store = ProbStore.open(trained / "test")
    models = [load_model(trained / f"fold_{k}/best") for k in range(2)]
    for image_id in folder.test.image_id:
        image = torch.from_numpy(folder.image(image_id))[None, None]
        alone = torch.stack([predict_both(model, image)[0][0] for model in models]).mean(0)
        levels = np.rint(255 * alone.numpy())
        apart = store.read(image_id).astype(int) - np.where(levels >= store.floor, levels, 0)
        assert np.abs(apart[(levels > store.floor + 1) | (levels < store.floor - 1)]).max(initial=0) <= 1


def test_a_blend_and_its_weights_take_images_of_several_sizes(folder, tmp_path):
    for seed, name in enumerate("ab"):
        make_up_run(tmp_path / name, folder, np.random.default_rng(seed))
    shutil.copy(tmp_path / "a" / "folds.csv", tmp_path / "b" / "folds.csv")
    parts = open_parts([tmp_path / "a", tmp_path / "b"], folder)
    write_blend(tmp_path / "blend", parts, folder, blend_record(parts, [1, 1], "probability", "equal"))
    opened = open_run(tmp_path / "blend", folder)
    a, b = (ProbStore.open(tmp_path / name / "oof") for name in "ab")
    for image_id in opened.store.image_ids:
        mean = np.rint((a.read(image_id).astype(float) + b.read(image_id)) / 2)
        assert np.array_equal(opened.store.read(image_id), np.where(mean >= opened.store.floor, mean, 0))
    sampled = sample_pixels(parts, folder, np.random.default_rng(0)).curves((1, 1))
    counted = curves_of(opened.store, folder)
    assert np.array_equal(sampled.area, counted.area) and np.array_equal(sampled.hit, counted.hit)


def test_a_coil_is_predicted_in_tiles_without_a_seam(trained):
    model = load_model(trained / "fold_0/best")
    rng = np.random.default_rng(0)
    coil = cv2.GaussianBlur(rng.integers(0, 255, (64, 3000), np.uint8), (0, 0), 3)
    images = torch.from_numpy(coil)[None, None]
    forward = partial(predict_both, model, tta="none")
    whole, tiled = forward(images)[0], in_tiles(forward, images, most_pixels=64 * 1024)[0]
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 0.02
    step = (tiled[..., 1:] - tiled[..., :-1]).abs().amax((0, 1, 2))
    usual = (whole[..., 1:] - whole[..., :-1]).abs().amax((0, 1, 2))
    assert (step - usual).abs().max() < 0.01  # no jump where a tile begins or ends


def test_a_coil_goes_from_the_folder_to_the_submission(folder, trained, tmp_path):
    (tmp_path / "test_images").mkdir()
    rng = np.random.default_rng(0)
    coil = cv2.GaussianBlur(rng.integers(0, 255, (256, 20_000), np.uint8), (0, 0), 3)
    cv2.imwrite(str(tmp_path / "test_images" / "coil.png"), coil)
    test = pd.DataFrame([("coil.png", tmp_path / "test_images" / "coil.png")], columns=["image_id", "path"])
    with_coil = replace(folder, test=test, other_shapes={**folder.other_shapes, "coil.png": coil.shape})
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "folds.csv", "fold_0", "fold_1"):
        (run / name).symlink_to(trained / name)
    store = predict_test(run, with_coil, tta="none", progress=False)
    assert store.read("coil.png").shape == (4, 256, 20_000)
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageId,ClassId,EncodedPixels\n" + "".join(f"coil.png,{k},1 1\n" for k in (1, 2, 3, 4)))
    rules = (Rule(thresh=120),) * 4
    out = write_submission(tmp_path / "s.csv", sample, lambda i: apply_rules(store.read(i), rules), with_coil.shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faults = check_submission(out, sample, with_coil.shapes)
    assert not (faults.severity == "error").any()
    by_row = pd.read_csv(out, keep_default_na=False).EncodedPixels
    assert by_row.tolist() == [rle_encode(m) for m in apply_rules(store.read("coil.png"), rules)]
