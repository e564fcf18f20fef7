"""Damaged files by the thousand: refused in one clear error, or read as their own text says, with nothing lost unsaid.

More of them, and their counts: `python tests/test_mutated.py csv 2000`, `python tests/test_mutated.py images 1000`.
"""

import faulthandler
import io
import itertools
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import real_data
from PIL import Image

from steel_seg.data import check_folder, decode_image, read_folder
from steel_seg.submit import check_submission
from steel_seg.synth import make_folder
from steel_seg.tiff_strips import tiff_fault

SHAPE = 32, 64
MOST_SECONDS = 5
MOST_KB = 300_000  # of memory, more than before


@contextmanager
def at_most(seconds):
    "Raises `TimeoutError` where the block takes longer."

    def late(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- csv: the damage


def a_place(rng, data):
    return int(rng.integers(0, len(data) + 1))


def a_line(rng, lines):
    return int(rng.integers(0, len(lines)))


def by_line(change):
    "A damage of one line, chosen by chance; the header is one as well."

    def damage(rng, data):
        lines = data.split(b"\n")
        k = a_line(rng, lines)
        lines[k : k + 1] = change(rng, lines[k], lines)
        return b"\n".join(lines)

    return damage


def some_bytes(rng, data):
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def put_in(*pieces):
    def damage(rng, data):
        place = a_place(rng, data)
        return data[:place] + pieces[int(rng.integers(len(pieces)))] + data[place:]

    return damage


def shifted(rng, line, lines):
    fields = line.split(b",")
    k = int(rng.integers(1, len(fields) + 1))
    return [b",".join(fields[k:] + fields[:k])]


def swapped(rng, data):
    lines = data.split(b"\n")
    a, b = a_line(rng, lines), a_line(rng, lines)
    lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def other_number(*texts):
    "A number of a line becomes another text."

    def change(rng, line, lines):
        numbers = list(re.finditer(rb"(?<![\w.])[0-9]+(?![\w.])", line))
        if not numbers:
            return [line]
        m = numbers[int(rng.integers(len(numbers)))]
        return [line[: m.start()] + texts[int(rng.integers(len(texts)))].replace(b"N", m[0]) + line[m.end() :]]

    return change


def with_column(rng, data):
    "A third party's column with notes in it."
    lines = data.rstrip(b"\n").split(b"\n")
    notes = [b"", b'"', b'""', b'"a', b'b"', b"note", b'"two\nlines"', b"1 2", b" "]
    rows = [line + b"," + notes[int(rng.integers(len(notes)))] for line in lines[1:]]
    return b"\n".join([lines[0] + b",note", *rows]) + b"\n"


CSV = {
    "bytes changed": some_bytes,
    "cut": lambda rng, data: data[: a_place(rng, data)],
    "the beginning cut": lambda rng, data: data[a_place(rng, data) :],
    "a part left out": lambda rng, data: data[: (a := a_place(rng, data))] + data[a + int(rng.integers(1, 60)) :],
    "a part again": lambda rng, data: data[: (a := a_place(rng, data))] + data[max(0, a - int(rng.integers(1, 60))) :],
    "a line doubled": by_line(lambda rng, line, lines: [line, line]),
    "a line left out": by_line(lambda rng, line, lines: []),
    "lines swapped": swapped,
    "fields shifted": by_line(shifted),
    "a field more": by_line(lambda rng, line, lines: [line + b",1"]),
    "quotes": put_in(b'"', b'""', b"'", b'"\n', b',"'),
    "two quotes": lambda rng, data: put_in(b'"')(rng, put_in(b'"')(rng, data)),
    "fields quoted": lambda rng, data: re.sub(rb"([^,\n]+)", rb'"\1"', data),
    "another column": with_column,
    "separators": put_in(b",", b";", b"\t", b"|", b" "),
    "all separators": lambda rng, data: data.replace(b",", (b";", b"\t", b"|", b" ", b", ")[int(rng.integers(5))]),
    "separator stated": lambda rng, data: (
        b"sep=" + (b",", b";", b'"', b" ", b"\0", b"\xff", b"1")[int(rng.integers(7))] + b"\n" + data
    ),
    "encodings": lambda rng, data: data.decode("latin-1").encode(
        ("utf-16", "utf-16-le", "utf-32", "utf-7")[int(rng.integers(4))]
    ),
    "letters of another alphabet": put_in(
        "é".encode(), "é".encode("latin-1"), "\u00a0".encode(), "\u200b".encode(), "٣".encode()
    ),
    "CRLF": lambda rng, data: data.replace(b"\n", b"\r\n"),
    "some CRLF": lambda rng, data: b"".join(
        p + (b"\r\n", b"\n", b"\r", b"\n\r")[int(rng.integers(4))] for p in data.split(b"\n")[:-1]
    ),
    "CR": lambda rng, data: data.replace(b"\n", b"\r"),
    "line ends": put_in(b"\r", b"\n", b"\r\n", b"\x0b", b"\x0c", b"\x85", "\u2028".encode()),
    "NUL": put_in(b"\0", b"\0" * 9),
    "BOM": lambda rng, data: b"\xef\xbb\xbf" + data,
    "two BOM": lambda rng, data: b"\xef\xbb\xbf\xef\xbb\xbf" + data,
    "BOM inside": put_in(b"\xef\xbb\xbf"),
    "huge numbers": by_line(
        other_number(b"9" * 18, b"9" * 19, b"9" * 400, b"18446744073709551617", b"4294967297", b"999")
    ),
    "negative numbers": by_line(other_number(b"-N", b"-1", b"- N", b"+N")),
    "decimals": by_line(other_number(b"N.0", b"N.5", b"N,0", b"1e2", b"N_0", b"0xN", b"0N", b".N")),
    "class 0": by_line(lambda rng, line, lines: [re.sub(rb"([,_])[1-4],", rb"\g<1>0,", line)]),
    "a run past the end": by_line(lambda rng, line, lines: [line + b" 2048 2"]),
    "another number": by_line(lambda rng, line, lines: [line + b" 3"]),
    "numbers left out": by_line(other_number(b"")),
    "no run": by_line(lambda rng, line, lines: [line.rpartition(b",")[0] + b","]),
    "empty lines": by_line(lambda rng, line, lines: [line, b"", b"  "[: int(rng.integers(3))]]),
    "blanks": put_in(b" ", b"  ", b"\t"),
    "case": by_line(lambda rng, line, lines: [line.swapcase()]),
    "case of all": lambda rng, data: data.upper(),
    "suffix": by_line(lambda rng, line, lines: [line.replace(b".jpg", b".JPG")]),
    "a path": by_line(lambda rng, line, lines: [b"train_images/" + line]),
    "nothing": lambda rng, data: b"",
}


# --- csv: an own reader, that shares nothing with the package's


def plain_rows(data):
    "What a plain reader makes of a csv: {line: (image id, ClassId, run-lengths)}; None where it is no such file."
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    lines = [(n, line) for n, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip(" \t\r\n\0") != ""]
    stated = re.fullmatch("(?i)sep=(.)", lines[0][1]) if lines else None
    lines = lines[1:] if stated else lines
    if not lines:
        return None
    separator = stated[1] if stated else next((s for s in ",;\t" if s in lines[0][1]), ",")
    (_, header), *lines = [(n, [field.strip('"') for field in line.split(separator)]) for n, line in lines]
    rows = {}
    for n, fields in lines:
        record = dict(zip(header, fields))
        if len(fields) != len(header):
            continue
        if {"ImageId", "ClassId", "EncodedPixels"} <= set(header):
            rows[n] = record["ImageId"], record["ClassId"], record["EncodedPixels"]
        elif {"ImageId_ClassId", "EncodedPixels"} <= set(header):
            rows[n] = *record["ImageId_ClassId"].rsplit("_", 1), record["EncodedPixels"]
    return rows


def pixels(rle):
    "The marked pixels of run-lengths, one by one; None where they are none."
    words = rle.split()
    if len(words) % 2 or not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        return None
    numbers = [int(word) for word in words]
    return [p for start, length in zip(numbers[::2], numbers[1::2]) for p in range(start, start + length)]


def as_files(rows):
    "Rows whose image ids have characters that cannot be seen, by the names of the files."
    return {n: (re.sub("[\u200b\ufeff]", "", row[0]).replace("\u00a0", " "), *row[1:]) for n, row in rows.items()}


def lost(data, folder):
    "Rows of a csv that the folder does not have, or has in another form, and does not say so; and rows it made up."
    rows = plain_rows(data)
    if rows is None:
        return ["a file that no plain reader can read was taken"]
    said = set(folder.warnings.row)
    if folder.warnings.problem.str.contains("look like the names of files").any():
        rows = as_files(rows)
    masks = {m.row: (m.image_id, m.channel + 1, pixels(m.rle)) for m in folder.masks.itertuples()}
    for row in folder.warnings.row[folder.warnings.problem.str.contains("cell in quotes holds")]:
        said.update(range(row, min((n for n in masks if n > row), default=10**6)))
    wrong, text_lines = [], re.split("\r\n|\r|\n", data.decode("utf-8-sig"))
    for n, (image_id, class_text, rle) in rows.items():
        if n in said or not (rle.strip() or n in masks):
            continue
        class_id = re.sub(r"\.0+$", "", class_text)
        if n not in masks or masks[n] != (image_id, int(class_id) if class_id.isdigit() else class_id, pixels(rle)):
            wrong.append(f"row {n}: {image_id!r} {class_text!r} {rle!r} became {masks.get(n)}")
    quoted = [n for n in masks if n not in rows and '"' in text_lines[n - 1]]  # over several lines
    wrong += [f"row {n} is not in the file: {masks[n]}" for n in set(masks) - set(rows) - set(quoted)]
    return wrong


# --- csv: the trial


def csv_folders(root):
    "Small folders in both layouts, with and without a sample."
    folders = [make_folder(root / layout, 12, 3, SHAPE, layout, seed=4) for layout in ("today", "2019")]
    bare = Path(shutil.copytree(folders[0], root / "bare"))
    (bare / "sample_submission.csv").unlink()
    shutil.rmtree(bare / "test_images")
    return [*folders, bare]


def mutated(rng, damages, data):
    "A file after one to three damages, and their names."
    names = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 2, 3]))):
        name = list(damages)[int(rng.integers(len(damages)))]
        names.append(name)
        data = damages[name](rng, data) if data else data
    return data, " + ".join(names)


def read_verdict(folder, data):
    "What became of a folder whose train.csv has these bytes: refused, the same as its text, with a warning, or wrong."
    faults = check_folder(folder, read_images=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            strips = read_folder(folder)
        except ValueError as e:
            message = str(e)
            clear = "train.csv" in message and len(message) < 3000 and (faults.severity == "error").any()
            return "refused" if clear else f"WRONG: a message that says little: {message[:300]}"
    if (faults.severity == "error").any():
        return "WRONG: check_folder lists an error, and read_folder takes it"
    if wrong := lost(data, strips):
        return f"WRONG: {'; '.join(wrong[:3])}"
    return "accepted with a warning" if len(strips.warnings) else "accepted"


def csv_trial(root, n, seed=0):
    "The counts of the verdicts of `n` damaged csv files, and what went wrong, by damage."
    counts, wrong = Counter(), []
    folders = csv_folders(root)
    names = "train.csv", "sample_submission.csv"
    files = [(folder, name) for folder in folders for name in names if (folder / name).exists()]
    for k, (folder, name) in zip(range(n), itertools.cycle([*files, *files[::2]])):
        rng = np.random.default_rng([seed, k])
        whole = (folder / name).read_bytes()
        data, damage = mutated(rng, CSV, whole)
        (folder / name).write_bytes(data)
        try:
            with at_most(MOST_SECONDS):
                verdict = read_verdict(folder, data) if name == "train.csv" else sample_verdict(folder, data)
        except Exception as e:
            verdict = f"WRONG: {type(e).__name__}: {e}"
        finally:
            (folder / name).write_bytes(whole)
        counts[f"{name} {verdict.split(':')[0]}"] += 1
        if verdict.startswith("WRONG"):
            wrong.append(f"{k} {folder.name}/{name} [{damage}] {verdict}")
    return counts, wrong


def sample_verdict(folder, data):
    "What became of a submission of these bytes, and of a folder with such a sample."
    path = folder / "sample_submission.csv"
    faults = check_submission(path, shape=SHAPE)
    check_folder(folder, read_images=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_folder(folder)
        except ValueError as e:
            if "sample_submission.csv" not in str(e):
                return f"WRONG: a message that says little: {str(e)[:300]}"
    if (faults.severity == "error").any():
        return "refused"
    rows = plain_rows(data)
    bad = rows is None or [n for n, row in rows.items() if pixels(row[-1]) is None or not re.fullmatch("[1-4]", row[1])]
    if bad and not len(faults):
        return f"WRONG: a submission with bad rows is taken: {bad}"
    return "accepted with a warning" if len(faults) else "accepted"


# --- images: the damage


def steel(rng, deep):
    smooth = cv2.GaussianBlur(rng.normal(110, 60, SHAPE), (0, 0), 1.5).clip(0, 255).astype(np.uint8)
    return smooth.astype(np.uint16) * 200 + rng.integers(0, 99, SHAPE).astype(np.uint16) if deep else smooth


def pillow_bytes(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "strip " * 9

IMAGES = {
    ".jpg": lambda rng: pillow_bytes(steel(rng, False), "JPEG", quality=90),
    "_exif.jpg": lambda rng: pillow_bytes(steel(rng, False), "JPEG", exif=EXIF),
    ".png": lambda rng: pillow_bytes(steel(rng, False), "PNG"),
    "_deep.png": lambda rng: pillow_bytes(steel(rng, True), "PNG"),
    ".bmp": lambda rng: pillow_bytes(steel(rng, False), "BMP"),
    ".webp": lambda rng: pillow_bytes(np.stack([steel(rng, False)] * 3, 2), "WEBP", lossless=bool(rng.integers(2))),
    ".tif": lambda rng: pillow_bytes(steel(rng, False), "TIFF"),
    "_deflate.tif": lambda rng: pillow_bytes(steel(rng, False), "TIFF", compression="tiff_adobe_deflate"),
    "_deep_deflate.tif": lambda rng: pillow_bytes(steel(rng, True), "TIFF", compression="tiff_adobe_deflate"),
    "_lzw.tif": lambda rng: pillow_bytes(steel(rng, False), "TIFF", compression="tiff_lzw"),
    "_deep_lzw.tif": lambda rng: pillow_bytes(steel(rng, True), "TIFF", compression="tiff_lzw"),
    "_packbits.tif": lambda rng: pillow_bytes(steel(rng, False), "TIFF", compression="packbits"),
    "_jpeg.tif": lambda rng: pillow_bytes(steel(rng, False), "TIFF", compression="jpeg"),
}
CHECKED = ".png", "_deep.png"  # checksums of everything: no changed pixel passes; the tags of a TIFF have none


def other_size(rng, data):
    "A header that lies about the size, in any of the forms that a size is written in."
    sides = [side.to_bytes(n, order) for side in SHAPE for n in (2, 4) for order in ("little", "big")]
    places = [m.start() for side in sides for m in re.finditer(re.escape(side), data[:700] + data[-300:])]
    if not places:
        return data
    place = int(rng.choice(places))
    new = int(rng.choice([0, 1, 31, 33, 65, 4096, 16383, 30000, 65535, 2**20, 2**31 - 1]))
    size = new.to_bytes(4, ("little", "big")[int(rng.integers(2))])
    data = data[:place] + (size if new > 65535 else size.strip(b"\0").ljust(2, b"\0")) + data[place + 4 :]
    if data[:4] == b"\x89PNG":
        data = data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]
    return data


def noise(rng, data):
    place = int(rng.integers(len(data)))
    return data[:place] + rng.bytes(int(rng.integers(1, 60))) + data[place + int(rng.integers(0, 60)) :]


IMAGE_DAMAGE = {
    "bytes changed": some_bytes,
    "a bit changed": lambda rng, data: (
        data[: (a := int(rng.integers(len(data))))] + bytes([data[a] ^ 1 << int(rng.integers(8))]) + data[a + 1 :]
    ),  # fmt: skip  # noqa: E501
    "cut": lambda rng, data: data[: a_place(rng, data)],
    "a part left out": CSV["a part left out"],
    "a part again": CSV["a part again"],
    "noise": noise,
    "header": lambda rng, data: some_bytes(rng, data[:120]) + data[120:],
    "end": lambda rng, data: data[:-120] + some_bytes(rng, data[-120:]),
    "another size": other_size,
    "EXIF garbage": lambda rng, data: data[:2] + b"\xff\xe1\x00\x28Exif\0\0" + rng.bytes(32) + data[2:],
    "more behind it": lambda rng, data: data + rng.bytes(50),
    "another file": lambda rng, data: (
        (b"GIF89a", b"%PDF-1.4\n", b"PK\x03\x04", b"<html>", b"II*\0", b"BM", b"\x89PNG\r\n\x1a\n", b"")[
            int(rng.integers(8))
        ]
        + rng.bytes(90)
    ),  # fmt: skip  # noqa: E501
}


def image_verdict(folder, image_id, sound, kind):
    "What became of a folder with this damaged image."
    faults = check_folder(folder)
    listed = (faults.severity == "error") & (faults.image_id == image_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            strips = read_folder(folder)
            shape = strips.shape_of(image_id)
            image = strips.image(image_id)
        except ValueError as e:
            if image_id not in str(e):
                return f"WRONG: a message without the file: {str(e)[:200]}"
            return "refused" if listed.any() else f"WRONG: refused, and not listed: {str(e)[:200]}"
    if listed.any():
        return f"WRONG: listed as an error, and read: {faults.problem[listed].iloc[0]}"
    if image.shape != shape or image.dtype != np.uint8:
        return f"WRONG: {image.dtype} of {image.shape} where the header says {shape}"
    if image.shape == sound.shape and (image == sound).all():
        return "the same pixels"
    return "WRONG: other pixels in silence" if kind in CHECKED else "other pixels"


def image_trial(root, n, seed=0):
    "The counts of the verdicts of `n` damaged images, and what went wrong."
    root.mkdir(parents=True, exist_ok=True)
    (root / "train_images").mkdir()
    counts, wrong = Counter(), []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        kind = list(IMAGES)[k % len(IMAGES)]
        image_id = f"a{kind}"
        path = root / "train_images" / image_id
        whole = IMAGES[kind](rng)
        (root / "train.csv").write_text(f"ImageId,ClassId,EncodedPixels\n{image_id},1,1 1\n")
        path.write_bytes(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sound = read_folder(root).image(image_id)
        data, damage = mutated(rng, IMAGE_DAMAGE, whole)
        path.write_bytes(data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with at_most(MOST_SECONDS):
                verdict = image_verdict(root, image_id, sound, kind)
        except Exception as e:
            verdict = f"WRONG: {type(e).__name__}: {e}"
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if more > MOST_KB:
            verdict = f"WRONG: {more // 1024} MB of memory ({verdict})"
        path.unlink()
        counts[f"{kind} {verdict.split(':')[0]}"] += 1
        if verdict.startswith("WRONG"):
            wrong.append(f"{k} {kind} [{damage}] {verdict}")
    counts["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return counts, wrong


def test_a_damaged_image_is_refused_or_read_and_brings_nothing_down():
    command = [sys.executable, __file__, "images", "160"]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "WRONG" not in run.stdout, run.stdout
    assert "refused" in run.stdout and "the same pixels" in run.stdout


@pytest.mark.parametrize("deep", [False, True])
def test_a_changed_bit_in_a_packed_strip_of_a_tiff_is_no_image(tmp_path, deep):
    rng = np.random.default_rng(5)
    whole = pillow_bytes(steel(rng, deep), "TIFF", compression="tiff_adobe_deflate")
    with Image.open(io.BytesIO(whole)) as image:
        (begin,), (length,) = image.tag_v2[273], image.tag_v2[279]
    path, flags = tmp_path / "a.tif", cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    path.write_bytes(whole)
    sound = cv2.imdecode(np.frombuffer(whole, np.uint8), flags)
    assert (decode_image(path, flags) == sound).all()
    for place in range(begin, begin + length):  # 1 in 50 changes the end of the data, and nothing complains
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        image = None if tiff_fault(bytes(data)) else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        assert image is None or (image == sound).all()  # a bit without a meaning
    for place in rng.integers(begin + 2, begin + length - 9, 30):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.with_name(f"{place}.tif").write_bytes(data)
        with pytest.raises(ValueError, match=f"{place}.tif: damaged, its pixels cannot be trusted: strip 1 of 1"):
            decode_image(path.with_name(f"{place}.tif"), flags)


@pytest.mark.parametrize("packing", ["tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate", "raw"])
@pytest.mark.parametrize("options", [{}, {"tiffinfo": {278: 8}}, {"tiffinfo": {317: 2}}])
def test_a_sound_tiff_is_no_false_alarm(packing, options):
    rng = np.random.default_rng(6)
    for shape in ((64, 160), (67, 131), (1, 40), (300, 1), (700, 900)):
        smooth = cv2.GaussianBlur(rng.normal(110, 60, shape), (0, 0), 1.5).clip(0, 255).astype(np.uint8)
        images = [smooth, np.stack([smooth, smooth[::-1], smooth], 2), smooth > 110, np.zeros(shape, np.uint8)]
        for pixels in images if packing == "jpeg" else [*images, smooth.astype(np.uint16) * 255]:
            predicted = 317 in options.get("tiffinfo", {})
            if (pixels.dtype == bool and (packing == "jpeg" or predicted)) or (packing == "jpeg" and predicted):
                continue  # TIFF has no such thing
            assert tiff_fault(pillow_bytes(pixels, "TIFF", compression=packing, **options)) is None


@pytest.mark.real
@pytest.mark.parametrize("folder", ["severstal-sample", "neu-seg"])
def test_real_folders_give_no_false_alarm(folder):
    root = real_data(folder)
    assert check_folder(root).empty
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_folder(root).warnings.empty


def test_a_damaged_csv_is_refused_or_read_as_its_text_says(tmp_path):
    counts, wrong = csv_trial(tmp_path, 300)
    assert not wrong, "\n".join(wrong)
    assert counts["train.csv refused"] > 50 and counts["train.csv accepted"] > 5


if __name__ == "__main__":
    faulthandler.enable()
    kind, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
    with tempfile.TemporaryDirectory() as root:
        counts, wrong = {"csv": csv_trial, "images": image_trial}[kind](Path(root) / "trial", n, seed)
    print(*wrong, sep="\n")
    print(*sorted(counts.items()), sep="\n")
