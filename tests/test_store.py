"""The probs store: what its record calls finished is right, whatever happens to its writers; everything else raises."""

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from steel_seg.store import ProbStore, to_level

SHAPE = (48, 200)


def levels_of(row, n_classes=3):
    "The map that image number `row` has in these tests, the same in every process."
    rng = np.random.default_rng(row)
    levels = np.zeros((n_classes, *SHAPE), np.uint8)
    c, y, x = rng.integers(n_classes), rng.integers(20), rng.integers(100)
    levels[c, y : y + 20, x : x + 60] = rng.integers(30, 256, (20, 60))
    return levels


def make(path, n=20, **kwargs):
    return ProbStore.create(path, [f"{i:03}.jpg" for i in range(n)], 3, SHAPE, **kwargs)


def test_levels_are_the_nearest_of_256():
    prob = np.random.default_rng(0).random((3, 50, 50))
    for dtype in (np.float64, np.float32, np.float16):
        p = prob.astype(dtype)
        level = to_level(p)
        assert level.dtype == np.uint8 and level.shape == p.shape
        assert np.abs(level - p.astype(float) * 255).max() <= 0.5 + 1e-4
    assert to_level(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize(
    "bad",
    [np.array([1.01]), np.array([-0.01]), np.array([np.nan]), np.array([np.inf]), np.array([1]), np.array([True])],
)
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError):
        to_level(bad)


def test_round_trip_in_any_order_of_writing(tmp_path):
    store = make(tmp_path / "s", floor=0)
    for i in np.random.default_rng(0).permutation(20):
        store.write(store.image_ids[i], levels_of(i))
    again = ProbStore.open(tmp_path / "s")
    assert again.finished().all() and again.missing() == [] and again.shape == (20, 3, *SHAPE)
    for i, image_id in enumerate(again.image_ids):
        assert np.array_equal(again.read(image_id), levels_of(i))


def test_levels_at_or_above_the_floor_stay_and_the_others_are_zero(tmp_path):
    store = make(tmp_path / "s", floor=77)
    levels = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    before = levels.copy()
    store.write("000.jpg", levels)
    assert np.array_equal(levels, before)  # the caller's array is left alone
    assert np.array_equal(store.read("000.jpg"), np.where(levels >= 77, levels, 0))


def test_any_zarr_reads_the_same(tmp_path):
    store = make(tmp_path / "s", meta={"model": "fpn", "scores": [np.float64(0.5), float("nan")]})
    for i in (3, 17):
        store.write(store.image_ids[i], levels_of(i))
    group = zarr.open(tmp_path / "s", mode="r")
    probs = group["probs"]
    assert probs.dtype == np.uint8 and probs.shape == store.shape and probs.chunks == (1, 3, *SHAPE)
    for i in (3, 17):
        assert np.array_equal(probs[i], store.read(store.image_ids[i]))
    assert group.attrs["image_ids"] == list(store.image_ids) and group.attrs["floor"] == 13
    assert ProbStore.open(tmp_path / "s").meta == {"model": "fpn", "scores": [0.5, None]}
    assert probs[4].max() == 0  # never written: zarr has no word for it,
    with pytest.raises(ValueError, match="'004.jpg' is not finished"):
        store.read("004.jpg")  # and the store has


def test_an_empty_map_is_finished_when_it_was_written(tmp_path):
    store = make(tmp_path / "s")
    store.write("000.jpg", np.zeros((3, *SHAPE), np.uint8))
    assert ProbStore.open(tmp_path / "s").read("000.jpg").max() == 0
    assert store.missing() == [f"{i:03}.jpg" for i in range(1, 20)]


@pytest.mark.parametrize(
    "kwargs, word",
    [
        (dict(image_ids=[]), "at least one"),
        (dict(image_ids=["a", "a"]), "twice"),
        (dict(image_ids=["a", 3]), "not 3"),
        (dict(image_ids=["a", ""]), "non-empty"),
        (dict(n_classes=0), "at least 1"),
        (dict(n_classes=1.5), "integers"),
        (dict(shape=(4,)), "integers"),
        (dict(shape=(4, 5, 6)), "integers"),
        (dict(shape=(4, 0)), "at least 1"),
        (dict(floor=256), "not a level"),
        (dict(floor=-1), "not a level"),
        (dict(floor=0.05), "integers"),
        (dict(shape=7), "integers"),
    ],
)
def test_a_store_that_makes_no_sense_is_refused_and_leaves_nothing(tmp_path, kwargs, word):
    with pytest.raises(ValueError, match=word):
        ProbStore.create(tmp_path / "s", **{"image_ids": ["a"], "n_classes": 1, "shape": (4, 6)} | kwargs)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_told(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        ProbStore.open(tmp_path / "s")
    with pytest.raises(ValueError, match="no probs store there"):
        ProbStore.open(tmp_path)
    zarr.create_group(store=tmp_path / "z", zarr_format=3)
    with pytest.raises(ValueError, match="its format is None"):
        ProbStore.open(tmp_path / "z")
    make(tmp_path / "s")
    with pytest.raises(ValueError, match="mode 'w'"):
        ProbStore.open(tmp_path / "s", mode="w")
    attributes = json.loads((tmp_path / "s" / "zarr.json").read_text())["attributes"]
    for change in ({"image_ids": ["a", "b"]}, {"image_ids": None}, {"floor": None}):
        (tmp_path / "s" / "zarr.json").write_text(json.dumps({"attributes": attributes | change}))
        with pytest.raises(ValueError):
            ProbStore.open(tmp_path / "s")
    (tmp_path / "s" / "zarr.json").write_text(
        json.dumps({"attributes": {k: v for k, v in attributes.items() if k != "meta"}})
    )
    with pytest.raises(ValueError, match="lacks something \\('meta'"):
        ProbStore.open(tmp_path / "s")
    (tmp_path / "s" / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match="its format is None"):
        ProbStore.open(tmp_path / "s")
    (tmp_path / "s" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="zarr.json: not valid JSON"):
        ProbStore.open(tmp_path / "s")


def test_an_existing_path_is_never_written_over(tmp_path):
    store = make(tmp_path / "s")
    store.write("000.jpg", levels_of(0))
    with pytest.raises(ValueError, match="continue it with"):
        make(tmp_path / "s")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="exists"):
        make(tmp_path / "file")
    assert np.array_equal(store.read("000.jpg"), levels_of(0))


def test_of_two_processes_that_make_the_same_store_one_is_told(tmp_path, monkeypatch):
    store = make(tmp_path / "s")
    store.write("000.jpg", levels_of(0))
    exists = Path.exists
    with monkeypatch.context() as m:
        m.setattr(Path, "exists", lambda self: self.name != "s" and exists(self))  # what the slower one saw
        with pytest.raises(ValueError, match="another process made it"):
            make(tmp_path / "s")
    assert np.array_equal(ProbStore.open(tmp_path / "s").read("000.jpg"), levels_of(0)) and [
        p.name for p in tmp_path.iterdir()
    ] == ["s"]


def test_wrong_writes_are_refused_and_change_nothing(tmp_path):
    store = make(tmp_path / "s")
    good = levels_of(0)
    for bad in (good[:2], good[0], good.astype(np.int64), good / 255, good[:, :, :-1], None):
        with pytest.raises(ValueError, match="must be uint8"):
            store.write("000.jpg", bad)
    with pytest.raises(ValueError, match="no image 'x.jpg'"):
        store.write("x.jpg", good)
    with pytest.raises(ValueError, match="open for reading"):
        ProbStore.open(tmp_path / "s").write("000.jpg", good)
    store.write("000.jpg", good)
    for writer in (store, ProbStore.open(tmp_path / "s", mode="a")):
        with pytest.raises(ValueError, match="finished already"):
            writer.write("000.jpg", levels_of(1))
    assert np.array_equal(store.read("000.jpg"), good) and store.finished().sum() == 1


def test_every_flipped_byte_of_a_chunk_raises(tmp_path):
    store = make(tmp_path / "s")
    store.write("002.jpg", levels_of(2))
    chunk = tmp_path / "s" / "probs" / "c.2.0.0.0"
    data = chunk.read_bytes()
    for i in np.unique(np.linspace(0, len(data) - 1, 60).astype(int)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << (i % 8)
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match="'002.jpg'"):
            store.read("002.jpg")
    for damaged in (data[:-1], b"", data + b"\0"):
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match="'002.jpg'"):
            store.read("002.jpg")
    chunk.unlink()
    with pytest.raises(ValueError, match="'002.jpg'"):
        store.read("002.jpg")
    chunk.write_bytes(data)
    assert np.array_equal(store.read("002.jpg"), levels_of(2))


def test_a_line_cut_at_any_byte_does_not_count(tmp_path):
    store = make(tmp_path / "s")
    for i in (1, 12):
        store.write(store.image_ids[i], levels_of(i))
    (log,) = (tmp_path / "s" / "probs" / "finished").iterdir()
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        log.write_bytes(whole[:cut])
        reader = ProbStore.open(tmp_path / "s", mode="a")
        assert reader.finished().nonzero()[0].tolist() == ([1] if cut >= first else [])
        with pytest.raises(ValueError, match="is not finished"):
            reader.read("012.jpg")
    reader.write("012.jpg", levels_of(12))  # the log still ends in half a line: a new writer does not touch it
    assert ProbStore.open(tmp_path / "s").finished().nonzero()[0].tolist() == [1, 12]
    assert np.array_equal(ProbStore.open(tmp_path / "s").read("012.jpg"), levels_of(12))


@pytest.mark.parametrize(
    "line", [b"99 00000000 5\n", b"x\n", b"1 0000 5\n", b"\0\0\0\n", b"\n", b"1 00000000 5 \n", b"-1 00000000 5\n"]
)
def test_a_damaged_line_is_told(tmp_path, line):
    make(tmp_path / "s")
    (tmp_path / "s" / "probs" / "finished" / "w.log").write_bytes(line)
    with pytest.raises(ValueError, match="w.log: damaged at byte 0"):
        ProbStore.open(tmp_path / "s").finished()


def test_a_line_about_another_chunk_raises(tmp_path):
    store = make(tmp_path / "s")
    for i in (1, 2):
        store.write(store.image_ids[i], levels_of(i))
    (log,) = (tmp_path / "s" / "probs" / "finished").iterdir()
    log.write_bytes(log.read_bytes().replace(b"1 ", b"3 ", 1).replace(b"\n2 ", b"\n1 ", 1))
    reader = ProbStore.open(tmp_path / "s")
    for image_id in ("001.jpg", "003.jpg"):
        with pytest.raises(ValueError, match=image_id):
            reader.read(image_id)


def test_a_reader_sees_the_store_grow(tmp_path):
    store, reader = make(tmp_path / "s"), ProbStore.open(tmp_path / "s")
    for i in range(5):
        with pytest.raises(ValueError, match=f"not finished \\({i} of 20 are"):
            reader.read(store.image_ids[i])
        store.write(store.image_ids[i], levels_of(i))
        assert np.array_equal(reader.read(store.image_ids[i]), levels_of(i))
        assert reader.finished().sum() == i + 1


def _write_rows(path, rows):
    store = ProbStore.open(path, mode="a")
    for i in rows:
        store.write(store.image_ids[i], levels_of(i))


def test_processes_write_into_one_store_each_with_its_own_log(tmp_path):
    make(tmp_path / "s", n=60)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_rows, args=(tmp_path / "s", range(k, 60, 3))) for k in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    store = ProbStore.open(tmp_path / "s")
    assert store.finished().all() and len(list((tmp_path / "s" / "probs" / "finished").iterdir())) == 3
    for i, image_id in enumerate(store.image_ids):
        assert np.array_equal(store.read(image_id), levels_of(i))


def test_threads_write_into_one_store_each_with_its_own_log(tmp_path, monkeypatch):
    store, together = make(tmp_path / "s", n=60), threading.Barrier(4)
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda f: (time.sleep(0.001), fsync(f))
    )  # so that they do meet in the middle of a line

    def write(k):
        together.wait()
        for i in range(k, 60, 4):
            store.write(store.image_ids[i], levels_of(i))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    again = ProbStore.open(tmp_path / "s")
    assert store.finished().all() and again.finished().all() and store.fingerprint() == again.fingerprint()
    assert len(list((tmp_path / "s" / "probs" / "finished").iterdir())) == 4
    for i, image_id in enumerate(again.image_ids):
        assert np.array_equal(again.read(image_id), levels_of(i))


def test_a_store_that_is_carried_into_a_forked_process_gets_its_own_log(tmp_path):
    store = make(tmp_path / "s")
    store.write("000.jpg", levels_of(0))
    child = multiprocessing.get_context("fork").Process(target=lambda: store.write("001.jpg", levels_of(1)))
    child.start()
    child.join()
    assert child.exitcode == 0 and len(list((tmp_path / "s" / "probs" / "finished").iterdir())) == 2
    assert np.array_equal(store.read("001.jpg"), levels_of(1))


def _write_and_wait(path, rows):
    _write_rows(path, rows)
    time.sleep(600)


@pytest.mark.kill
def test_no_kill_loses_a_finished_image_or_makes_one_up(tmp_path):
    rng, context, path = np.random.default_rng(0), multiprocessing.get_context("fork"), tmp_path / "s"
    truth, before = [levels_of(i) for i in range(200)], 0
    reader = make(path, n=200)
    while before < 200:
        rows = np.flatnonzero(~reader.finished())[: rng.integers(1, 12)]
        writer = context.Process(target=_write_and_wait, args=(path, rows))
        writer.start()
        target = before + rng.integers(len(rows) + 1)  # by progress, not by the clock: the machine may be busy
        while writer.is_alive() and reader.finished().sum() < target:
            time.sleep(0.0003)
        time.sleep(rng.uniform(0, 0.003))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL, "the writer failed by itself"
        reader = ProbStore.open(path)
        finished = reader.finished()
        assert finished.sum() >= max(before, target)  # a finished image stays finished
        before = finished.sum()
        for i in np.flatnonzero(finished):
            assert np.array_equal(reader.read(reader.image_ids[i]), truth[i])
        for image_id in reader.missing():
            with pytest.raises(ValueError, match="is not finished"):
                reader.read(image_id)


def _write_until(path, image_id, step):
    "Write one image, and be killed just before the given one of the calls that touch the disk."
    calls = iter(range(100))

    def dying(f):
        return lambda *args, **kwargs: (
            os.kill(os.getpid(), signal.SIGKILL) if next(calls) == step else f(*args, **kwargs)
        )

    os.fsync, os.replace, os.open = dying(os.fsync), dying(os.replace), dying(os.open)
    ProbStore.open(path, mode="a").write(image_id, levels_of(7))


@pytest.mark.kill
def test_a_kill_between_any_two_steps_of_a_write_leaves_the_image_unfinished_and_to_be_written(tmp_path):
    for step in range(20):
        path = tmp_path / str(step)
        store = make(path)
        writer = multiprocessing.get_context("fork").Process(target=_write_until, args=(path, "007.jpg", step))
        writer.start()
        writer.join()
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
        if store.finished()[7]:
            assert np.array_equal(store.read("007.jpg"), levels_of(7))  # the line was out already
        else:
            with pytest.raises(ValueError, match="is not finished"):
                store.read("007.jpg")
            ProbStore.open(path, mode="a").write("007.jpg", levels_of(8))
            assert np.array_equal(store.read("007.jpg"), levels_of(8))
    assert step >= 5


def test_the_chunk_is_on_disk_before_the_line_about_it(tmp_path, monkeypatch):
    """What a kill cannot show and a power cut would: the order of the syncs."""
    store, steps = make(tmp_path / "s"), []

    def name_of(fd):
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name.split("-")[0].split(".")

    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(("sync", name_of(fd))), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (steps.append(("rename", Path(b).name.split(".")[:2])), replace(a, b))
    )
    store.write("007.jpg", levels_of(7))
    kinds = [(what, name[1] if name[0] == "" else name[0]) for what, name in steps]
    assert kinds == [
        ("sync", "c"),
        ("rename", "c"),
        ("sync", "probs"),
        ("sync", str(os.getpid())),
        ("sync", "finished"),
    ]
