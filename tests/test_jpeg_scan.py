"""A JPEG with a damaged scan is refused where its decoder complains, and a sound one never is."""

import os
import resource
import zlib

import cv2
import numpy as np
import pytest
from conftest import real_data
from PIL import Image

from steel_seg.data import check_folder, read_folder, read_image
from steel_seg.jpeg_scan import jpeg_fault
from steel_seg.synth import make_folder

RNG = np.random.default_rng(0)


def complaint(data):
    "What libjpeg prints on the terminal when OpenCV decodes a file, or that there is no image."
    read, write = os.pipe()
    terminal = os.dup(2)
    os.dup2(write, 2)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    finally:
        os.dup2(terminal, 2)
        os.close(write)
        os.close(terminal)
    with os.fdopen(read) as f:
        return f.read() or ("no image" if image is None else "")


def pictures():
    "Files of several sizes, kinds and writers."
    for shape in ((64, 160), (67, 131), (8, 8), (1, 40), (200, 200)):
        steel = cv2.GaussianBlur(RNG.normal(110, 60, shape), (0, 0), 1.5).clip(0, 255).astype(np.uint8)
        colour = np.stack([steel, steel[::-1], steel[:, ::-1]], 2)
        for image in (steel, colour):
            for quality in (20, 75, 100):
                for interval in (0, 1, 5):
                    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
                    yield cv2.imencode(".jpg", image, options)[1].tobytes()


def damaged(data):
    "The same file with its scan damaged in several ways."
    begin = data.rfind(b"\xff\xda") + 14
    place = int(RNG.integers(begin, max(begin + 1, len(data) - 12)))
    n = int(RNG.integers(1, 10))
    noise = RNG.integers(0, 256, n).astype(np.uint8).tobytes()
    yield data[:place] + b"\xff\xd9"
    yield data[:place] + data[place + n :]
    yield data[:place] + noise + data[place + n :]
    yield data[:place] + noise + data[place:]
    yield data[:place] + bytes([data[place] ^ 1 << int(RNG.integers(8))]) + data[place + 1 :]


def test_what_the_decoder_complains_about_is_found_and_sound_files_are_not():
    complaints = 0
    for data in pictures():
        assert jpeg_fault(data) is None and not complaint(data)
        for bad in damaged(data):
            if complaint(bad):
                complaints += 1
                assert jpeg_fault(bad) is not None
    assert complaints > 100


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_files_of_pillow_are_sound(tmp_path, options, mode):
    image = Image.fromarray(RNG.integers(0, 256, (53, 77, 3)).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "a.jpg", **options)
    data = (tmp_path / "a.jpg").read_bytes()
    assert jpeg_fault(data) is None
    assert jpeg_fault(data[: len(data) * 3 // 4] + b"\xff\xd9")


def test_no_bytes_crash_it():
    whole = next(pictures())
    for k in range(3000):
        data = bytearray(whole)
        for _ in range(RNG.integers(1, 4)):
            data[RNG.integers(2, len(data))] = RNG.integers(256)
        cut = len(data) if k % 2 else int(RNG.integers(2, len(data)))
        assert jpeg_fault(bytes(data[:cut])) is None or isinstance(jpeg_fault(bytes(data[:cut])), str)


def test_a_damaged_image_is_an_error_where_it_is_checked_and_where_it_is_read(tmp_path):
    folder = make_folder(tmp_path / "data", 4, 1, (64, 160), seed=3)
    paths = [*folder.glob("train_images/*.jpg"), *folder.glob("test_images/*.jpg")]
    for path in paths[1::2]:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    faults = check_folder(folder)
    errors = faults[faults.severity == "error"]
    assert sorted(errors.file) == sorted(f"{path.parent.name}/{path.name}" for path in paths[1::2])
    assert errors.problem.str.contains("damaged, its pixels cannot be trusted: the data end after").all()
    strips = read_folder(folder)  # it looks at headers only
    for path in paths[1::2]:
        with pytest.raises(ValueError, match=f"{path.name}: damaged"):
            strips.image(path.name)
        with pytest.raises(ValueError, match=f"{path.name}: damaged"):
            read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_header_that_lies_is_not_decoded_to_a_grey_gigabyte(tmp_path, suffix):
    steel = RNG.integers(0, 256, (64, 160)).astype(np.uint8)
    data = bytearray(cv2.imencode(suffix, steel)[1])
    if suffix == ".jpg":
        place = data.find(b"\xff\xc0") + 5
        data[place : place + 4] = (30_000).to_bytes(2, "big") * 2
    else:
        data[16:24] = (30_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / f"a{suffix}").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"a{suffix}: "):
        read_image(tmp_path / f"a{suffix}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB; the image would have 900 MB


@pytest.mark.real
@pytest.mark.parametrize("folder", ["severstal-sample", "neu-seg"])
def test_real_images_are_sound(folder):
    paths = [*real_data(folder).glob("t*_images/*.jpg")]
    assert len(paths) > 20 and not [path for path in paths if jpeg_fault(path.read_bytes())]
