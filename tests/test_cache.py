"""The file of decoded images: the same pixels as the JPEGs, whole or not there, damage told by name."""

import json
import multiprocessing
import os
import pickle
import shutil
import threading
from collections import namedtuple
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import real_data
from safetensors import safe_open

import steel_seg.cache as module
from steel_seg.cache import ImageCache, open_cache
from steel_seg.data import read_folder
from steel_seg.synth import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(
        make_folder(tmp_path_factory.mktemp("data") / "f", n_train=70, n_test=1, shape=(32, 40), seed=3)
    )  # more than wait at a time


def pixels(folder):
    return np.stack([cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in folder.images.path])


def test_it_holds_the_decoded_images_and_any_safetensors_opens_it(folder, tmp_path):
    cache, wanted = open_cache(folder, tmp_path / "new" / "place", progress=False), pixels(folder)
    assert (
        len(cache) == 70
        and set(cache.shapes) == {(32, 40)}
        and np.array_equal(np.stack([cache[i] for i in range(70)]), wanted)
    )
    with safe_open(cache.path, "numpy") as f:
        assert (
            np.array_equal(f.get_tensor("images"), wanted)
            and json.loads(f.metadata()["image_ids"]) == folder.images.image_id.tolist()
        )
    raw = cache.path.read_bytes()
    start = len(raw) - wanted.size
    assert start % 4096 == 0 and raw[start:] == wanted.tobytes()
    assert [p.name for p in cache.path.parent.iterdir()] == [cache.path.name]  # nothing is left beside it
    for bad in (-1, 70):
        with pytest.raises(IndexError, match=f"image {bad} of 70"):
            cache[bad]
    with pytest.raises(ValueError, match="read-only"):
        cache[0][0, 0] = 1


def test_another_build_gives_the_same_bytes(folder, tmp_path):
    assert (
        open_cache(folder, tmp_path / "a", False).path.read_bytes()
        == open_cache(folder, tmp_path / "b", False).path.read_bytes()
    )


def test_images_name_the_file_and_labels_do_not(folder, tmp_path):
    shutil.copytree(folder.root, tmp_path / "copy")
    csv = tmp_path / "copy" / "train.csv"
    csv.write_text("\n".join(csv.read_text().splitlines()[:-1]) + "\n")
    relabelled = read_folder(tmp_path / "copy", n_classes=folder.n_classes)
    assert relabelled.sha256 != folder.sha256
    path = open_cache(folder, tmp_path / "c", False).path
    assert open_cache(relabelled, tmp_path / "c", False).path == path
    image = relabelled.images.path[5]
    image.write_bytes(image.read_bytes() + b"\0")
    assert open_cache(read_folder(tmp_path / "copy", n_classes=folder.n_classes), tmp_path / "c", False).path != path
    relabelled.images.path[5].unlink()
    assert len(open_cache(read_folder_without(tmp_path / "copy", folder, 5), tmp_path / "c", False)) == 69


def read_folder_without(root, folder, row):
    csv, gone = root / "train.csv", folder.images.image_id[row]
    csv.write_text("\n".join(line for line in csv.read_text().splitlines() if not line.startswith(gone)) + "\n")
    return read_folder(root, n_classes=folder.n_classes)


# -- damage


def damaged(cache, change, tmp_path):
    "A copy of the file with a change made to it."
    content = bytearray(cache.path.read_bytes())
    path = tmp_path / cache.path.name
    path.write_bytes(change(content))
    return path


def flip(place):
    def change(content):
        content[place] ^= 16
        return content

    return change


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda c: b"", "the header"),
        (lambda c: c[:5], "the header"),
        (lambda c: c[:100], "the header"),
        (lambda c: b"\xff" * len(c), "the header"),
        (lambda c: c[:-1], "bytes, but its header says"),
        (lambda c: c + b"\0", "bytes, but its header says"),
        (lambda c: c[:5000], "bytes, but its header says"),
        (lambda c: c.replace(b"images 1", b"images 2"), "the header"),
        (lambda c: c.replace(b'"U8"', b'"I8"'), "the header"),
        (lambda c: c.replace(b"[70, 32, 40]", b"[70, 40, 32]"), "holds other images"),
        (lambda c: c.replace(b".jpg", b".png", 1), "holds other images"),
        (flip(-1), "SHA-256"),
        (flip(-70 * 32 * 40), "SHA-256"),
    ],
)
def test_damage_is_told_with_the_file_and_what_to_do(folder, tmp_path, change, says):
    cache = open_cache(folder, tmp_path / "c", progress=False)
    path = damaged(cache, change, tmp_path)
    with pytest.raises(ValueError, match=says) as e:
        open_cache(folder, tmp_path, progress=False)
    assert str(path) in str(e.value) and "Remove this file" in str(e.value)
    path.unlink()
    assert np.array_equal(open_cache(folder, tmp_path, progress=False)[69], cache[69])


def test_pixels_are_read_only_when_asked(folder, tmp_path):
    path = damaged(open_cache(folder, tmp_path / "c", progress=False), flip(-1), tmp_path)
    assert open_cache(folder, tmp_path, verify=False).path == ImageCache(path, verify=False).path == path
    with pytest.raises(ValueError, match="SHA-256"):
        ImageCache(path)


def test_an_image_that_cannot_be_read_stops_the_build_and_leaves_nothing(folder, tmp_path):
    shutil.copytree(folder.root, tmp_path / "copy")
    broken = read_folder(tmp_path / "copy")
    image = broken.images.path[66]
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{image.name}.*truncated"):
        open_cache(broken, tmp_path / "c", progress=False)
    assert not list((tmp_path / "c").iterdir())


def test_a_full_disk_is_told_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    disk = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(9e9, 9e9, 1e8 + 40_000))
    monkeypatch.setattr(module, "_decoded", None)
    torn = tmp_path / f".images-{module._key(folder)[:16]}.safetensors.0a1b.tmp"
    torn.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"need 0.00 GB and 0.10 GB are free. Make room.*images-.*\.tmp"):
        open_cache(folder, tmp_path, progress=False)
    large = replace(folder, shape=(25600, 16000))
    with pytest.raises(ValueError, match="need 28.67 GB"):
        open_cache(large, tmp_path, progress=False)  # 70 images


# -- several processes


def build(root, where, gate):
    folder = read_folder(root)
    gate.wait(30)
    os._exit(0 if np.array_equal(np.stack(list(open_cache(folder, where, progress=False))), pixels(folder)) else 1)


def test_two_that_build_at_once_both_end_with_the_same_file(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(2)
    both = [context.Process(target=build, args=(folder.root, tmp_path, gate)) for _ in range(2)]
    for p in both:
        p.start()
    for p in both:
        p.join(60)
    assert [p.exitcode for p in both] == [0, 0] and len(list(tmp_path.iterdir())) == 1


def test_nobody_sees_half_a_file(folder, tmp_path, monkeypatch):
    "While the last image is being decoded there is no file of that name; one that opens then builds its own."
    slow, go_on, last = threading.Event(), threading.Event(), folder.images.image_id.iloc[-1]

    class Slow(type(folder)):
        def image(self, image_id):
            if image_id == last:
                slow.set()
                assert go_on.wait(30)
            return super().image(image_id)

    slowly = Slow(**{k: getattr(folder, k) for k in folder.__dataclass_fields__})
    got = []
    thread = threading.Thread(target=lambda: got.append(open_cache(slowly, tmp_path, progress=False)))
    thread.start()
    assert slow.wait(30) and all(p.name.startswith(".") for p in tmp_path.iterdir())
    early = open_cache(folder, tmp_path, progress=False)
    go_on.set()
    thread.join(30)
    assert len(got) == 1 and got[0].path == early.path and len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(
        np.stack(list(early)), np.stack(list(got[0]))
    )  # the file that was replaced stays readable to who has it open


def test_a_pickle_is_a_path_and_notices_another_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = open_cache(folder, "c", progress=False)
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    monkeypatch.chdir(folder.root)
    assert np.array_equal(pickle.loads(sent)[69], cache[69])
    cache.path.write_bytes(cache.path.read_bytes().replace(cache.sha256.encode(), b"0" * 64))
    with pytest.raises(ValueError, match="replaced by another file"):
        pickle.loads(sent)
    cache.path.unlink()
    with pytest.raises(ValueError, match="no such file"):
        pickle.loads(sent)


@pytest.mark.real
@pytest.mark.parametrize("name", ["severstal-sample", "neu-seg"])
def test_real_strips(name, tmp_path):
    folder = read_folder(real_data(name))
    folder = replace(folder, images=folder.images[:100])
    cache = open_cache(folder, tmp_path, progress=False)
    for i in range(0, len(cache), 7):
        assert np.array_equal(cache[i], folder.image(folder.images.image_id[i]))
