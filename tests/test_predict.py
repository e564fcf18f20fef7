"""Prediction: no image is predicted by a model that saw it, a store is never a mixture, stopping changes no level."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from steel_seg.cli import main
from steel_seg.config import TrainConfig
from steel_seg.curves import curves_of
from steel_seg.data import read_folder
from steel_seg.folds import read_folds, write_folds
from steel_seg.model import load_model
from steel_seg.predict import (
    _levels,
    count_oof,
    predict_oof,
    predict_probs,
    predict_test,
    prefilter_text,
    read_prefilter,
)
from steel_seg.store import ProbStore, run_prefilter_line, to_level
from steel_seg.synth import make_folder
from steel_seg.train import train_fold, train_run

# 36×70: no multiple of the encoder's 8, so that padding takes part.
TINY = TrainConfig(
    arch="unet",
    encoder="tu-test_resnet.r160_in1k",
    encoder_weights=None,
    encoder_depth=3,
    epochs=2,
    batch_size=4,
    lr=1e-2,
    folds=3,
    num_workers=0,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(
        make_folder(tmp_path_factory.mktemp("data") / "strips", n_train=30, n_test=7, shape=(36, 70), seed=8)
    )


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    train_run(run, folder, TINY, progress=False)
    return run


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def best(run, k):
    return load_model(run / f"fold_{k}/best").to(memory_format=torch.channels_last)


def batch(folder, ids):
    return torch.from_numpy(np.stack([folder.image(i) for i in ids])[:, None])


def stored(probs, floor=13):
    levels = to_level(probs.numpy())
    return np.where(levels >= floor, levels, 0)


# ---- one batch


@pytest.mark.parametrize("tta, axes", [("hflip", (3,)), ("flips", (2,)), ("flips", (3,)), ("flips", (2, 3))])
def test_flipped_image_gives_flipped_probabilities(trained, folder, tta, axes):
    model = load_model(trained / "fold_0/best")
    images = batch(folder, folder.images.image_id[:4])
    probs = predict_probs(model, images, tta)
    assert probs.shape == (4, 4, 36, 70) and probs.dtype == torch.float32
    np.testing.assert_allclose(
        predict_probs(model, images.flip(axes), tta).numpy(), probs.flip(axes).numpy(), rtol=0, atol=1e-6
    )
    assert (
        predict_probs(model, images.flip(axes), "none") - predict_probs(model, images, "none").flip(axes)
    ).abs().max() > 1e-3


def test_tta_is_the_mean_of_probabilities(trained, folder):
    model = load_model(trained / "fold_0/best")
    images = batch(folder, folder.images.image_id[:2])
    with torch.inference_mode():
        all_four = [model(images.flip(a)).sigmoid().flip(a) for a in ((), (3,), (2,), (2, 3))]
    for tta, terms in (("none", all_four[:1]), ("hflip", all_four[:2]), ("flips", all_four)):
        np.testing.assert_allclose(
            predict_probs(model, images, tta).numpy(), torch.stack(terms).mean(0).numpy(), rtol=0, atol=1e-6
        )


def test_mode_is_left_and_not_used(trained, folder):
    "Batch norm in training mode would make an image's prediction depend on its neighbours."
    model = load_model(trained / "fold_0/best")
    images = batch(folder, folder.images.image_id[:2])
    quiet = predict_probs(model, images)
    model.train()
    assert torch.equal(predict_probs(model, images), quiet)
    assert model.training and model.net.training


# ---- out of fold


def test_every_image_by_the_model_that_has_not_seen_it(run, folder):
    store = predict_oof(run, folder, progress=False, batch_size=4)
    assert store.finished().all() and store.image_ids == tuple(folder.images.image_id)
    assert store.meta["kind"] == "oof" and store.meta["data"] == folder.sha256
    folds = read_folds(run / "folds.csv", folder.images.image_id)
    differs = 0
    for k in range(3):
        ids = folds.image_id[folds.fold == k].tolist()
        models = [best(run, j) for j in range(3)]
        assert not set(models[k].meta["train_ids"]) & set(ids)
        for i in range(0, len(ids), 4):
            by_model = [stored(predict_probs(m, batch(folder, ids[i : i + 4]))) for m in models]
            for n, image_id in enumerate(ids[i : i + 4]):
                assert np.array_equal(store.read(image_id), by_model[k][n])
                differs += not np.array_equal(by_model[k - 1][n], by_model[k][n])
    assert differs > 20  # the three models can be told apart


def test_leak_is_refused(run, folder):
    "An image moved into a fold whose model trained on it."
    folds = read_folds(run / "folds.csv", folder.images.image_id)
    row = folds.index[folds.fold == 2][3]
    write_folds(run / "folds.csv", folds.assign(fold=folds.fold.where(folds.index != row, 1)))
    with pytest.raises(
        ValueError,
        match=rf"fold_1/best was trained on {folds.image_id[row]}, which folds.csv puts into fold 1 \(1 such image",
    ):
        predict_oof(run, folder, progress=False)
    assert not (run / "oof").exists()


def test_leak_by_swapped_models_is_refused(run, folder):
    (run / "fold_0").rename(run / "x")
    (run / "fold_1").rename(run / "fold_0")
    (run / "x").rename(run / "fold_1")
    with pytest.raises(ValueError, match="fold_0/best was trained on .*would not be out of fold"):
        predict_oof(run, folder, progress=False)


class Stop(Exception):
    pass


def stop_after(monkeypatch, n):
    write = ProbStore.write

    def stopping(store, *args):
        nonlocal n
        if n == 0:
            raise Stop
        n -= 1
        write(store, *args)

    monkeypatch.setattr(ProbStore, "write", stopping)


@pytest.mark.parametrize("predict, name", [(predict_oof, "oof"), (predict_test, "test")])
def test_stopped_store_is_unfinished_and_gone_on_with(run, folder, tmp_path, monkeypatch, predict, name):
    whole = predict(run, folder, progress=False, batch_size=4)
    whole = {i: whole.read(i) for i in whole.image_ids}
    shutil.rmtree(run / name)
    stop_after(monkeypatch, 5)
    with pytest.raises(Stop):
        predict(run, folder, progress=False, batch_size=4)
    monkeypatch.undo()
    half = ProbStore.open(run / name)
    assert half.finished().sum() == 5
    with pytest.raises(ValueError, match=f"{half.missing()[0]}.* is not finished"):
        half.read(half.missing()[0])
    store = predict(run, folder, progress=False, batch_size=4)
    assert store.finished().all()
    assert all(np.array_equal(store.read(i), levels) for i, levels in whole.items())


def test_finished_store_is_only_read(run, folder, monkeypatch):
    store = predict_oof(run, folder, progress=False)
    stop_after(monkeypatch, 0)
    monkeypatch.setattr("steel_seg.predict.load_model", None)
    assert np.array_equal(predict_oof(run, folder, progress=False).finished(), store.finished())


def test_unreadable_image_is_named(run, folder, tmp_path):
    shutil.copytree(folder.root, tmp_path / "copy")
    copy = read_folder(tmp_path / "copy")
    victim = copy.images.path[4]
    data = victim.read_bytes()
    victim.write_bytes(b"x" * len(data))
    with pytest.raises(ValueError, match=victim.name):
        predict_oof(run, copy, progress=False)


def test_levels_are_made_on_the_device_as_to_level_makes_them():
    halves = np.arange(511, dtype=np.float32) / 510
    near = np.concatenate(
        [np.nextafter(halves, x, dtype=np.float32) for x in (-1, 2)]
        + [halves, np.random.default_rng(0).random(9000, np.float32)]
    )
    near = near[(near >= 0) & (near <= 1)].reshape(1, 1, 1, -1)
    assert np.array_equal(_levels(torch.from_numpy(near)).numpy(), to_level(near))
    for bad in (np.nan, -1e-3, 1.001):
        with pytest.raises(ValueError, match="outside 0..1"):
            _levels(torch.tensor([[[[0.5, bad]]]]))


def test_many_threads_keep_what_one_keeps(trained, folder, tmp_path, monkeypatch):
    "As beside a GPU: images are read and kept by several threads, in any order."
    kept = []
    for n in (1, 6):
        run = tmp_path / f"run{n}"
        shutil.copytree(trained, run)
        monkeypatch.setattr("steel_seg.predict._io_threads", lambda device, n=n: ThreadPoolExecutor(n))
        store = predict_oof(run, folder, progress=False, batch_size=5)
        kept.append({i: store.read(i) for i in store.image_ids})
        counted = count_oof(run, folder, progress=False, batch_size=5)
        assert np.array_equal(counted.area, curves_of(store, folder).area)
    assert all(np.array_equal(kept[1][i], x) for i, x in kept[0].items())


# ---- test images


def test_mean_of_the_folds_before_rounding(run, folder):
    store = predict_test(run, folder, progress=False, batch_size=3)
    ids = folder.test.image_id.tolist()
    assert store.image_ids == tuple(ids)
    models = [best(run, k) for k in range(3)]
    rounded_first = 0
    for i in range(0, 7, 3):
        probs = [predict_probs(m, batch(folder, ids[i : i + 3])) for m in models]
        mean = (probs[0] + probs[1] + probs[2]) / 3
        found = np.stack([store.read(j) for j in ids[i : i + 3]]).astype(int)
        levels = mean.numpy() * 255
        close = np.abs(found - levels) <= 0.5 + 1e-3
        assert (close | (levels < 13) & (found == 0)).all()
        rounded_first += (np.rint(np.mean([to_level(p.numpy()) for p in probs], 0)) != to_level(mean.numpy())).sum()
    assert rounded_first > 0  # rounding first would have shown


# ---- refused


def test_other_models_data_or_tta_are_refused(run, folder, tmp_path):
    predict_oof(run, folder, progress=False)
    predict_test(run, folder, progress=False)
    for predict in (predict_oof, predict_test):
        with pytest.raises(ValueError, match=r"tta was 'hflip', is now 'flips'. Remove .* to predict again"):
            predict(run, folder, tta="flips", progress=False)
    shutil.rmtree(run / "fold_2")
    train_fold(run, folder, 2, progress=False)
    predict_oof(run, folder, progress=False)  # the same training gives the same models
    with pytest.raises(ValueError, match="is not one of none, hflip, flips"):
        predict_oof(run, folder, tta="mirror", progress=False)
    other = tmp_path / "other"
    train_run(other, folder, replace(TINY, seed=3), progress=False)
    shutil.copytree(run / "oof", other / "oof")
    with pytest.raises(ValueError, match="predicted with something else: fold_0 was .*, is now .* Remove"):
        predict_oof(other, folder, progress=False)
    strips = read_folder(make_folder(tmp_path / "strips", n_train=30, n_test=2, shape=(36, 70), seed=9))
    with pytest.raises(ValueError, match="was trained on other data"):
        predict_test(run, strips, progress=False)


def test_unfinished_training_is_refused(run, folder):
    shutil.rmtree(run / "fold_1/last")
    for predict in (predict_oof, predict_test):
        with pytest.raises(ValueError, match="fold_1 is not trained to its end: run `steel_seg train` again"):
            predict(run, folder, progress=False)


def test_no_test_images(run, folder, tmp_path):
    with pytest.raises(ValueError, match="has no test images"):
        predict_test(run, replace(folder, test=pd.DataFrame(columns=["image_id", "path"])), progress=False)


# ---- images that a classifier leaves out


def write_scores(path, image_ids, left_out, n_classes=4, low=0.001):
    "A classifier's csv by hand: `low` in all classes of the images that are left out, .5 in class 2 of the others."
    rows = [[i, *[low] * n_classes] if i in left_out else [i, low, 0.5, *[low] * (n_classes - 2)] for i in image_ids]
    path.parent.mkdir(exist_ok=True)
    columns = ["image_id", *(f"class_{c + 1}" for c in range(n_classes))]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


@pytest.fixture
def classifier(folder, tmp_path):
    "A run of a classifier that leaves out every third training image and three of seven test images; a csv each."
    ids, test = folder.images.image_id.tolist(), folder.test.image_id.tolist()
    write_scores(tmp_path / "classifier/oof_scores.csv", ids, ids[::3])
    write_scores(tmp_path / "classifier/test_scores.csv", test, [test[0], test[3], test[6]])
    return tmp_path / "classifier"


@pytest.fixture
def seen_by_nets(monkeypatch):
    "How many images went through each call of a net."
    from steel_seg import predict as module

    sizes, real = [], module.predict_both

    def counting(model, images, *args):
        sizes.append(len(images))
        return real(model, images, *args)

    monkeypatch.setattr(module, "predict_both", counting)
    return sizes


def reading(folder, monkeypatch):
    "The folder, and the ids of the images that are read from now on."
    read, real = [], type(folder).image

    def noted(self, image_id):
        read.append(image_id)
        return real(self, image_id)

    monkeypatch.setattr(type(folder), "image", noted)
    return read


def test_left_out_images_are_never_read_and_are_empty(run, folder, classifier, seen_by_nets, monkeypatch):
    "The others are predicted as in batches of their own, by the model that has not seen them."
    prefilter = read_prefilter(classifier, folder)
    read = reading(folder, monkeypatch)
    store = predict_oof(run, folder, progress=False, batch_size=4, prefilter=prefilter)
    left_out = set(folder.images.image_id[::3])
    assert prefilter.oof.image_ids == left_out and len(left_out) == 10
    assert sum(seen_by_nets) == 20 and sorted(read) == sorted(set(folder.images.image_id) - left_out)
    assert store.finished().all() and not any(store.read(i).any() for i in left_out)
    folds = read_folds(run / "folds.csv", folder.images.image_id)
    for k in range(3):
        ids = [i for i in folds.image_id[folds.fold == k] if i not in left_out]
        for i in range(0, len(ids), 4):
            levels = stored(predict_probs(best(run, k), batch(folder, ids[i : i + 4])))
            assert all(np.array_equal(store.read(j), x) for j, x in zip(ids[i : i + 4], levels))
    facts = store.meta["prefilter"]
    assert facts == dict(run="classifier", sha256=prefilter.oof.sha256, below=0.02, images=10)
    seen_by_nets.clear()
    test = predict_test(run, folder, progress=False, prefilter=prefilter)
    assert sum(seen_by_nets) == 4 * 3  # four images by three models
    assert [bool(test.read(i).any()) for i in folder.test.image_id][::3] == [False] * 3


def test_counts_are_those_of_the_store_with_empty_maps(run, folder, classifier):
    prefilter = read_prefilter(classifier, folder)
    counted = count_oof(run, folder, progress=False, batch_size=4, prefilter=prefilter)
    store = predict_oof(run, folder, progress=False, batch_size=4, prefilter=prefilter)
    stored_curves = curves_of(store, folder)
    for name in ("area", "hit", "truth"):
        assert np.array_equal(getattr(counted, name), getattr(stored_curves, name))
    assert counted.area[::3, :, 1:].sum() == 0 < counted.area[..., 1:].sum()  # at level 0 every pixel counts
    line = "10 of 30 images were not segmented: every class below 0.02 by classifier"
    assert run_prefilter_line(run) == line and run_prefilter_line(run, "test") == ""
    shutil.rmtree(run / "oof")
    assert run_prefilter_line(run) == line  # of the counts
    with pytest.raises(ValueError, match="holds parts of other predictions"):
        count_oof(run, folder, progress=False)


@pytest.mark.parametrize("after", [3, 12])
def test_stopped_with_a_prefilter_and_gone_on_with(run, folder, classifier, monkeypatch, after):
    "Among the empty maps, or among those of the nets; the same levels in the end."
    prefilter = read_prefilter(classifier, folder)
    whole = predict_oof(run, folder, progress=False, batch_size=4, prefilter=prefilter)
    whole = {i: whole.read(i) for i in whole.image_ids}
    shutil.rmtree(run / "oof")
    stop_after(monkeypatch, after)
    with pytest.raises(Stop):
        predict_oof(run, folder, progress=False, batch_size=4, prefilter=prefilter)
    monkeypatch.undo()
    assert ProbStore.open(run / "oof").finished().sum() == after
    again = read_prefilter(classifier, folder)
    store = predict_oof(run, folder, progress=False, batch_size=4, prefilter=again)
    assert store.finished().all() and all(np.array_equal(store.read(i), levels) for i, levels in whole.items())


def test_another_prefilter_is_refused(run, folder, classifier):
    prefilter = read_prefilter(classifier, folder)
    predict_test(run, folder, progress=False)
    with pytest.raises(ValueError, match="prefilter was None, is now .*classifier.* Remove"):
        predict_test(run, folder, progress=False, prefilter=prefilter)
    predict_oof(run, folder, progress=False, prefilter=prefilter)
    with pytest.raises(ValueError, match="prefilter was .*classifier.*, is now None. Remove"):
        predict_oof(run, folder, progress=False)
    with pytest.raises(ValueError, match="prefilter was .*0.02.*, is now .*0.0?3"):
        predict_oof(run, folder, progress=False, prefilter=read_prefilter(classifier, folder, 0.03))
    ids = folder.images.image_id.tolist()
    write_scores(classifier / "oof_scores.csv", ids, ids[::3], low=0.002)  # other numbers, the same images
    with pytest.raises(ValueError, match="prefilter was"):
        predict_oof(run, folder, progress=False, prefilter=read_prefilter(classifier, folder))


def test_a_class_table_has_zeros_for_images_that_are_left_out(folder, classifier, tmp_path):
    run = tmp_path / "headed"
    train_run(run, folder, replace(TINY, class_head=0.1, epochs=1, folds=2), progress=False)
    predict_oof(run, folder, progress=False, prefilter=read_prefilter(classifier, folder))
    table = pd.read_csv(run / "oof_scores.csv").set_index("image_id")
    assert table.index.tolist() == folder.images.image_id.tolist()
    assert (table.iloc[::3] == 0).all(axis=None) and (table.drop(table.index[::3]) > 0).all(axis=None)


def test_numbers_are_known_before_it_starts(folder, classifier):
    "What is saved and lost, by a loop over the labels."
    text = prefilter_text(read_prefilter(classifier, folder), folder)
    masks = pixels = images = all_masks = all_pixels = all_images = 0
    for n, image_id in enumerate(folder.images.image_id):
        of_classes = [int(m.sum()) for m in (folder.mask(image_id) > 0)]
        all_masks += sum(a > 0 for a in of_classes)
        all_pixels += sum(of_classes)
        all_images += any(of_classes)
        if n % 3 == 0:
            masks += sum(a > 0 for a in of_classes)
            pixels += sum(of_classes)
            images += any(of_classes)
    assert 0 < masks < all_masks and images < masks + 1
    saved, lost, unchecked = text.splitlines()
    assert saved.endswith("below 0.02 by classifier: 10 of 30 training images and 3 of 7 test images")
    assert lost.endswith(
        f"{masks} of {all_masks} masks, {pixels:,} of {all_pixels:,} pixels, on {images} of {all_images} images"
    )
    assert unchecked == "classifier has no nets to check: its scores are taken to be out of fold"


def test_a_probability_below_the_first_level_still_counts(folder, tmp_path):
    "`.0015` is level 0 like `.0005`; a prefilter tells them apart."
    ids, test = folder.images.image_id.tolist(), folder.test.image_id.tolist()
    write_scores(tmp_path / "c/test_scores.csv", test, test[:1], low=0.0005)
    write_scores(tmp_path / "c/oof_scores.csv", ids, ids[:5], low=0.0015)
    assert len(read_prefilter(tmp_path / "c", folder, 0.002).oof.image_ids) == 5
    assert len(read_prefilter(tmp_path / "c", folder, 0.001).oof.image_ids) == 0


def test_a_classifier_that_saw_what_it_scores_is_refused(trained, folder, classifier, tmp_path):
    "With nets its scores are checked like those of a run: folds that were swapped are a leak, named by image."
    judge = tmp_path / "judge"
    shutil.copytree(trained, judge)
    for name in ("oof_scores.csv", "test_scores.csv"):
        shutil.copy(classifier / name, judge / name)
    prefilter = read_prefilter(judge, folder)
    assert prefilter.checked and "to check" not in prefilter_text(prefilter, folder)
    folds = read_folds(judge / "folds.csv", folder.images.image_id)
    row = folds.index[folds.fold == 2][3]
    write_folds(judge / "folds.csv", folds.assign(fold=folds.fold.where(folds.index != row, 1)))
    with pytest.raises(ValueError, match=rf"judge/fold_1/best was trained on {folds.image_id[row]}"):
        read_prefilter(judge, folder)
    write_folds(judge / "folds.csv", folds)
    shutil.rmtree(judge / "fold_1/last")
    with pytest.raises(ValueError, match="judge/fold_1 is not trained to its end"):
        read_prefilter(judge, folder)


def test_prefilters_that_cannot_be_are_refused(run, folder, classifier, tmp_path):
    shutil.copy(classifier / "oof_scores.csv", run / "oof_scores.csv")
    shutil.copy(classifier / "test_scores.csv", run / "test_scores.csv")
    with pytest.raises(ValueError, match="cannot be its own prefilter"):
        predict_oof(run, folder, progress=False, prefilter=read_prefilter(run, folder))
    with pytest.raises(ValueError, match="no such run folder"):
        read_prefilter(tmp_path / "absent", folder)
    for below in (0, -0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="a probability above 0"):
            read_prefilter(classifier, folder, below)
    with pytest.raises(ValueError, match="take a lower value"):
        read_prefilter(classifier, folder, 0.9)
    ids = folder.images.image_id.tolist()
    write_scores(classifier / "oof_scores.csv", ids[1:], ids[::3])
    with pytest.raises(ValueError, match="oof_scores.csv: no row for 1 of 30 images"):
        read_prefilter(classifier, folder)
    (classifier / "test_scores.csv").unlink()
    write_scores(classifier / "oof_scores.csv", ids, ids[::3])
    with pytest.raises(ValueError, match="has no test_scores.csv"):
        read_prefilter(classifier, folder)


def test_the_chain_says_what_was_not_segmented(run, folder, classifier, capsys):
    "predict first says what is saved and lost; decide, its report, rule and submission repeat what was left out."
    chain = ["--data", str(folder.root), "--run", str(run)]
    assert main(["predict", *chain, "--tta", "none", "--prefilter", str(classifier), "--below", ".02"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("not segmented, as every class is below 0.02 by classifier: 10 of 30 training images")
    assert out[1].startswith("defects lost with these training images: ")
    line = "of {} images were not segmented: every class below 0.02 by classifier"
    assert main(["decide", *chain]) == 0
    assert "10 " + line.format(30) in capsys.readouterr().out
    assert "10 " + line.format(30) in (run / "report.html").read_text()
    assert main(["submit", *chain]) == 0
    assert "3 " + line.format(7) in capsys.readouterr().out
    submitted = pd.read_csv(run / "submission.csv")
    names = submitted.iloc[:, 0][submitted.EncodedPixels.notna() & (submitted.EncodedPixels != "1 1")]
    assert not [name for name in names if name.startswith(tuple(folder.test.image_id[::3]))]
