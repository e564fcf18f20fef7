"""The preview of a training's augmentation: the very pixels of its dataset, and masks that follow."""

import subprocess
import sys
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
from conftest import real_data
from ipywidgets import BoundedIntText, Button, Dropdown, Text
from made import CASES, HOSTILE, make_run, only_our_tags, parts, pixels

from steel_seg.augment import augment, train_transform
from steel_seg.data import read_folder
from steel_seg.look.preview import AugmentPreview, epoch_versions, transform_of, what_happened


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: read_folder(make_run(tmp_path_factory.mktemp("mill") / "run", **case) / "data")
        for name, case in CASES.items()
    }


def test_versions_are_what_training_sees(folders):
    from steel_seg.config import TrainConfig
    from steel_seg.dataset import StripDataset

    folder, config = folders["strips"], TrainConfig(hflip=0.4, vflip=0.6, brightness=0.7, limit=0.3, seed=11)
    dataset = StripDataset(folder, train_transform(0.4, 0.6, 0.7, 0.3), seed=11)
    preview = AugmentPreview(folder, config)
    assert preview.seed == 11
    for row, epoch in [(0, 0), (4, 3), (8, 100)]:
        preview.image_id, preview.epoch = folder.images.image_id[row], epoch
        for k, (image, mask) in enumerate(preview.versions[1:]):
            item = dataset[epoch + k, row]
            assert np.array_equal(image, item["image"][0].numpy()) and np.array_equal(mask, item["mask"].numpy())


def test_words_say_what_happened(folders):
    folder = folders["strips"]
    image = folder.image(folder.images.image_id[0])
    seen = set()
    for (new, mask), _epoch in zip(
        epoch_versions(folder, train_transform(0.5, 0.5, 0.5, 0.2), folder.images.image_id[0], 3, range(40)), range(40)
    ):
        says = what_happened(image, new)
        flip = {"left-right": np.s_[:, ::-1], "upside down": np.s_[::-1], "turned by 180°": np.s_[::-1, ::-1]}.get(
            says.split(";")[0], np.s_[:]
        )
        assert np.array_equal(
            mask, folder.mask(folder.images.image_id[0])[(slice(None), *(flip if isinstance(flip, tuple) else (flip,)))]
        )
        assert ("light" in says) != np.array_equal(new, image[flip])
        seen.add(says.split(";")[0].split(" ")[0])
    assert seen == {"left-right", "upside", "turned", "as", "mean"}
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    assert what_happened(image, noisy) == "changed" and what_happened(image, noisy[:9]) == "changed, 9 x 400 pixels"
    assert what_happened(image, image[:9]) == "columns 0 to 399, rows 0 to 8"


@pytest.mark.parametrize("name", CASES)
def test_every_image_can_be_seen_and_escapes(folders, name):
    preview = AugmentPreview(folders[name])
    truth = folders[name].truth_area().any(1)
    assert preview.image_id == preview.picker.ids[int(truth.argmax())]
    preview.picker.go(0)
    for i in folders[name].images.image_id:
        assert preview.image_id == i and len(preview.gallery.pictures) == 8 and len(preview.versions) == 8
        only_our_tags(preview)
        preview.picker.on.click()
    height, width = pixels(preview.picture().data).shape[:2]
    assert width <= 1250 and height <= 1100
    for control in (p for p in parts(preview) if isinstance(p, (Dropdown, Text, Button, BoundedIntText))):
        assert control.description


def test_large_view_shows_the_chosen_version(folders):
    preview = AugmentPreview(folders["strips"], seed=2)
    for k, (image, mask) in enumerate(preview.versions):
        preview.chosen = k
        assert np.array_equal(np.ptp(preview.large.view.flat().astype(int), axis=2) > 0, mask.any(0))
        preview.large.view.shown = ("image",)
        assert np.array_equal(preview.large.view.flat()[..., 0], image)
        preview.large.view.shown = preview.large.view.names
        assert preview.gallery.chosen == k and (f"epoch {k - 1}" in preview.large.text.value or k == 0)


def test_the_button_goes_on_and_the_same_epoch_comes_back(folders):
    preview = AugmentPreview(
        folders["strips"], SimpleNamespace(hflip=0.5, vflip=0.5, brightness=1, limit=0.3), seed=4, count=3
    )
    first = preview.versions
    preview.redraw.click()
    assert preview.epoch == 3 and not all(np.array_equal(a[0], b[0]) for a, b in zip(first[1:], preview.versions[1:]))
    preview.first.value = 0
    assert all(np.array_equal(a, b) for x, y in zip(first, preview.versions) for a, b in zip(x, y))
    assert "seed 4, epochs 0 to 2" in preview.says.value


def test_each_epoch_is_shown_as_its_stage_sees_it(folders):
    from steel_seg.config import TrainConfig
    from steel_seg.dataset import StripDataset

    folder = folders["strips"]
    config = TrainConfig(
        seed=3, stages=[{"crop": "32x64", "blackout": 1, "epochs": 2}, {"crop": "16x32", "epochs": 1}, {"epochs": 4}]
    )
    preview = AugmentPreview(folder, config)
    assert "stage 1 from epoch 0, stage 2 from epoch 2, stage 3 from epoch 3" in preview.says.value
    row = folder.images.image_id.tolist().index(preview.image_id)
    for epoch, (image, mask) in enumerate(preview.versions[1:]):
        stage = config.plan()[(0, 0, 1, 2, 2, 2, 2)[epoch]]
        item = StripDataset(folder, stage.transform(), seed=3)[epoch, row]
        assert np.array_equal(image, item["image"][0].numpy()) and np.array_equal(mask, item["mask"].numpy()), epoch
    preview.epoch = 100
    assert {x[0].shape for x in preview.versions[1:]} == {folder.shape}
    assert "stage" not in AugmentPreview(folder, TrainConfig()).says.value


def test_other_pipelines(folders):
    preview = AugmentPreview(folders["strips"], A.Compose([A.RandomCrop(32, 64)]))
    assert (
        {x[0].shape for x in preview.versions[1:]} == {(32, 64)}
        and tuple(preview.large.view.size) == (64, 32)
        and preview.picture().data
    )
    with pytest.raises(ValueError, match="lacks vflip, brightness, limit"):
        AugmentPreview(folders["strips"], SimpleNamespace(hflip=1))
    assert (
        "must return" in AugmentPreview(folders["strips"], A.Compose([A.ToFloat()])).says.value
    )  # said where the picture would be
    image = folders["strips"].image(folders["strips"].images.image_id[0])
    out, _ = augment(transform_of(), image, folders["strips"].mask(folders["strips"].images.image_id[0]), 0)
    assert out.shape == image.shape


def test_bad_input_is_refused(folders):
    preview = AugmentPreview(folders["no defect"])
    for name, value, says in [
        ("show", "class 9", "show 'class 9'"),
        ("image_id", "x", "no train image 'x'"),
        ("epoch", -1, "count from 0"),
        ("chosen", 8, "1 to 7 are its epochs"),
    ]:
        with pytest.raises(ValueError, match=says):
            setattr(preview, name, value)
    with pytest.raises(ValueError, match="count 0"):
        AugmentPreview(folders["no defect"], count=0)
    preview.show = "class 2"
    assert preview.image_id == "" and "no image has class 2" in preview.says.value and preview.picture().data
    preview.show = "clean"
    assert len(preview.picker.ids) == 3 and preview.image_id


def test_an_unreadable_image_is_said(tmp_path):
    run = make_run(tmp_path / "run", n=2, shape=(64, 400), classes=2, ids=["a.png", HOSTILE[0]])
    torn = run / "data" / "train_images" / HOSTILE[0]
    torn.write_bytes(torn.read_bytes()[:3000])
    preview = AugmentPreview(run / "data")
    preview.image_id = HOSTILE[0]
    assert "truncated" in preview.says.value and preview.gallery.captions == [] and preview.picture().data
    only_our_tags(preview)
    preview.image_id = "a.png"
    assert len(preview.gallery.captions) == 8


def test_previewing_is_imported_without_torch():
    code = "import sys, steel_seg.look.preview; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.real
@pytest.mark.parametrize("name", ["severstal-sample", "neu-seg"])
def test_real_folders(name):
    preview = AugmentPreview(real_data(name))
    assert preview.versions[0][1].any() and len(preview.gallery.pictures) == 8
    small = cv2.imdecode(np.frombuffer(preview.gallery.pictures[0], np.uint8), cv2.IMREAD_COLOR)
    assert small.shape[1] <= 560
