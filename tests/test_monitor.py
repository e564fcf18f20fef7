"""The monitor: what it says about a run is what the run's files say, whatever they hold, and what a real training did,
killed and all."""

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ipywidgets import HTML
from made import HOSTILE, make_run, only_our_tags, parts
from PIL import Image

from steel_seg.data import read_folder
from steel_seg.folds import make_folds, write_folds
from steel_seg.look.monitor import (
    Monitor,
    Progress,
    class_columns,
    example_line,
    example_thumb,
    latest_table,
    progress_lines,
    read_examples,
    read_progress,
    table_html,
)
from steel_seg.store import ProbStore
from steel_seg.synth import make_folder

CLASSES, EPOCHS = 4, 6


def make_training(
    run, shape=(64, 400), classes=CLASSES, ids=None, n=8, done=(6, 2), doing="training", old=False, **news
):
    "A run's data and files as training leaves them, with numbers that can be told from one another."
    make_run(run, n=n, shape=shape, classes=classes, ids=ids)
    folder, store = read_folder(run / "data", n_classes=classes), ProbStore.open(run / "oof")
    folds = make_folds(folder, len(done), 0)
    write_folds(run / "folds.csv", folds)
    config = {
        "config": {"epochs": EPOCHS, "folds": len(done)},
        "data": folder.sha256,
        "classes": classes,
        "shape": folder.shape,
    }
    (run / "config.json").write_text(json.dumps(config))
    fold = folds.set_index("image_id").fold[folder.images.image_id].to_numpy()
    for k, e in enumerate(done):
        where = run / f"fold_{k}"
        where.mkdir()
        nothing = folder.truth_area()[fold == k] == 0
        rows = [
            dict(
                fold=k,
                epoch=i + 1,
                step=9 * i + 9,
                lr=1e-3,
                loss=1 / (i + 1),
                val_loss=2 / (i + 1),
                score=0.5 + 0.1 * k + 0.01 * (i if i != 4 else 40),
                seconds=90.0,
            )
            for i in range(e)
        ]
        if not old:
            for i, row in enumerate(rows):
                row.update(
                    present=0.1 * k + 0.01 * i,
                    empty=0.9,
                    **{f"score_{c + 1}": 0.1 * c + 0.01 * i for c in range(classes)},
                )
            told = dict(
                fold=k,
                epochs=EPOCHS,
                steps=9,
                epoch=min(e + 1, EPOCHS),
                step=3,
                loss=0.25,
                seconds=30.0,
                doing="finished" if e == EPOCHS else doing,
            )
            told.update(all_empty=nothing.mean(), all_empty_by_class=nothing.mean(0).tolist(), **news)
            (where / "progress.json").write_text(json.dumps(told))
        if rows:
            pd.DataFrame(rows).to_csv(where / "history.csv", index=False)
        if rows and not old:
            mine = folder.images.image_id[fold == k].tolist()[:4]
            np.savez_compressed(
                where / "examples.npz",
                image_ids=np.array(mine),
                levels=np.stack([store.read(i) for i in mine]),
                epoch=e,
            )
        if e == EPOCHS:
            (where / "last").mkdir()
            (where / "last/steel_seg.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("monitor") / "run"
    make_training(run)
    return run


@pytest.fixture
def whole(made):
    "A run that is only read, its news just in."
    for path in made.glob("fold_*/progress.json"):
        os.utime(path)
    return made


@pytest.fixture
def run(whole, tmp_path):
    "A run to be changed."
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def said(monitor):
    return "\n".join(p.value for p in parts(monitor) if isinstance(p, HTML))


# --- what the files say


def test_epochs_are_those_of_all_stages(run):
    path = run / "config.json"
    made = json.loads(path.read_text())
    made["config"].update(epochs=20, stages=[{"epochs": 4, "crop": "32x32"}, {"epochs": 2, "lr": 1e-4}])
    path.write_text(json.dumps(made))
    first, second = read_progress(run).folds
    assert (first.state, first.epochs, second.epochs) == ("finished", 6, 6) and second.part == pytest.approx(
        (2 + 3 / 9) / 6
    )
    made["config"]["stages"] = [{"crop": "32x32"}, {"epochs": 2}]  # the first takes the configuration's own
    path.write_text(json.dumps(made))
    assert read_progress(run).folds[1].epochs == 22
    for strange in ("two", [1], [{"epochs": "x"}], [{"epochs": 0}]):
        made["config"]["stages"] = strange
        path.write_text(json.dumps(made))
        assert "waiting" in read_progress(run).note


def test_a_fold_that_stopped_early_is_finished(run):
    where = run / "fold_1"
    told = json.loads((where / "progress.json").read_text())
    (where / "progress.json").write_text(json.dumps({**told, "doing": "finished"}))
    assert read_progress(run).folds[1].state == "stopped"  # its last net is not there
    (where / "last").mkdir()
    (where / "last/steel_seg.json").write_text("{}")
    progress = read_progress(run)
    assert progress.finished and progress.folds[1].part == 1
    assert (
        progress_lines(progress)[0].endswith("finished")
        and "fold 1: finished, 2 epochs of 6: stopped early" in progress_lines(progress)[2]
    )


def test_numbers_are_those_of_the_files(whole):
    p = read_progress(whole)
    first, second = p.folds
    assert (first.state, first.done, first.best_epoch, first.part) == (
        "finished",
        6,
        5,
        1,
    ) and first.best == pytest.approx(0.9)
    assert (second.state, second.done, second.epoch, second.step, second.steps, second.loss) == (
        "training",
        2,
        3,
        3,
        9,
        0.25,
    )
    assert second.part == pytest.approx((2 + 3 / 9) / 6)
    assert second.left == pytest.approx(3 * 90 + 60)  # three epochs of 90 s, and of this one 60 s or 6 steps of 10 s
    table = latest_table(p)
    assert table.index.tolist() == ["fold 0, last epoch", "fold 1, last epoch", "nothing predicted"]
    assert table.loc["fold 0, last epoch"].to_dict() == pytest.approx(
        {
            "epoch": 6,
            "loss": 1 / 6,
            "validation loss": 2 / 6,
            "score": 0.55,
            "class 1": 0.05,
            "class 2": 0.15,
            "class 3": 0.25,
            "class 4": 0.35,
            "with a defect": 0.05,
            "without one": 0.9,
            "seconds": 90,
        }
    )
    folder, folds = (
        read_folder(whole / "data", n_classes=CLASSES),
        pd.read_csv(whole / "folds.csv").set_index("image_id").fold,
    )
    nothing = folder.truth_area() == 0
    for k in (0, 1):
        alone = latest_table(p, k).loc["nothing predicted"]
        mine = nothing[folds[folder.images.image_id].to_numpy() == k]
        assert (
            alone["score"] == pytest.approx(mine.mean())
            and alone["class 3"] == pytest.approx(mine[:, 2].mean())
            and (alone["with a defect"], alone["without one"]) == (0, 1)
        )
    assert latest_table(p, 0).score["fold 0, best epoch"] == pytest.approx(0.9)


def test_news_from_before_the_last_epoch_ended(run):
    """History is written at an epoch's end, news once a second: what they said of an epoch that is over is no longer
    true."""
    path = run / "fold_1/progress.json"
    path.write_text(
        json.dumps(dict(json.loads(path.read_text()), epoch=2, step=9, doing="scoring", batch=1, batches=3))
    )
    f = read_progress(run).folds[1]
    assert (f.state, f.epoch, f.step) == ("starting", 3, 0) and f.left == pytest.approx(4 * 90)
    assert "begins epoch 3 of 6, step 0 of 9" in progress_lines(read_progress(run))[2]


def test_time_left_without_an_epoch_goes_by_the_steps(run):
    (run / "fold_1/history.csv").unlink()
    (run / "fold_1/progress.json").write_text(
        json.dumps(dict(json.loads((run / "fold_1/progress.json").read_text()), epoch=1))
    )
    assert read_progress(run).folds[1].left == pytest.approx(5 * 90 + 60)


@pytest.mark.parametrize(
    "doing, age, dead, expected",
    [
        ("training", 5, False, "training"),
        ("scoring", 5, False, "scoring"),
        ("starting", 5, False, "starting"),
        ("training", 99, False, "training"),
        ("training", 101, False, "silent"),
        ("stopped", 5, False, "stopped"),
        ("training", 5, True, "stopped"),
        ("scoring", 9999, True, "stopped"),
        ("finished", 5, False, "stopped"),
        ("<b>", 5, False, "silent"),
    ],
)
def test_stopped_is_told_from_silent(run, doing, age, dead, expected):
    "A step takes 10 s here, so that 100 s without news are nothing unusual."
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pids = os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").exists() else ""
    path = run / "fold_1/progress.json"
    path.write_text(
        json.dumps(
            dict(json.loads(path.read_text()), doing=doing, pid=child.pid, host=socket.gethostname(), pids=pids, why="")
        )
    )
    if dead:
        child.kill()
        if age < 1000:
            child.wait()  # else a zombie: dead, and nobody has asked
        else:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and left as it is
    f = read_progress(run, now=path.stat().st_mtime + age).folds[1]
    child.kill(), child.wait(), child.stdin.close()
    assert f.state == expected and f.age == pytest.approx(age, abs=0.01)
    line = progress_lines(Progress(run, "", (f,), pd.DataFrame()))[1]
    assert (
        ("its process is gone" in line) == dead
        and ("no news for" in line) == (expected == "silent")
        and ("train again" in line) == (expected == "stopped")
    )


FILES = ["config.json", "folds.csv", "fold_1/history.csv", "fold_1/progress.json", "fold_1/examples.npz", "history.csv"]


def test_torn_and_strange_files_are_not_there_yet(run):
    """Every file in turn cut off at some place, empty, of another kind, or a folder: the rest can be read and put into
    words all the same."""
    shutil.copy(run / "fold_1/history.csv", run / "history.csv")
    rng = np.random.default_rng(0)
    strange = [
        b"",
        b"\0" * 50,
        b"[]",
        b"{}",
        b'"x"',
        b"fold,epoch\n<b>,1\n",
        b"\xff\xfe",
        b"PK\3\4",
        b"fold,epoch,lr,loss,val_loss,score\n1,1,x,x,x,x\n",
        b'{"doing": 5, "epoch": "x", "step": NaN, "steps": -1, "loss": [], "all_empty_by_class": [{}], "pid": 1e99}',
    ]
    for name in FILES:
        raw = (run / name).read_bytes()
        for data in (*[raw[: int(n)] for n in rng.integers(0, len(raw), 4)], raw[:-1], *strange):
            (run / name).write_bytes(data)
            p = read_progress(run)
            assert progress_lines(p) and (p.note or len(latest_table(p)) >= 1)
            assert not p.folds or [read_examples(run, k, CLASSES, (64, 400)) is None for k in (0, 1)] == [
                False,
                name.endswith("npz"),
            ]
        (run / name).unlink()
        (run / name).mkdir()
        assert progress_lines(read_progress(run)) and (
            name != "fold_1/examples.npz" or read_examples(run, 1, CLASSES, (64, 400)) is None
        )
        (run / name).rmdir()
        (run / name).write_bytes(raw)
    assert read_progress(run).folds[1].done == 2


def test_monitor_follows_through_torn_files(run):
    "All files of a fold cut off at once, and whole again."
    monitor = Monitor(run)
    raw = {name: (run / name).read_bytes() for name in FILES[2:5]}
    for name, data in raw.items():
        (run / name).write_bytes(data[:20])
    monitor.refresh()
    assert len(monitor.examples.all) == 4 and "fold 1: not begun" in said(monitor) and monitor.picture().data
    for name, data in raw.items():
        (run / name).write_bytes(data)
    monitor.refresh()
    assert len(monitor.examples.all) == 8 and "fold 1: trains, epoch 3 of 6" in said(monitor)


def test_no_pickle_is_opened(run):
    "An object array would have to be unpickled, and unpickling runs what is in it."

    class Trap:
        def __reduce__(self):
            return (Path.touch, (run / "sprung",))

    np.savez(run / "fold_1/examples.npz", image_ids=np.array(["a"]), levels=np.array([Trap()], dtype=object), epoch=2)
    assert read_examples(run, 1, CLASSES, (64, 400)) is None and len(Monitor(run).examples.all) == 4
    assert not (run / "sprung").exists()


def test_old_run_opens(tmp_path):
    "Trained before scores by class, progress and examples were kept."
    make_training(tmp_path / "run", old=True)
    monitor = Monitor(tmp_path / "run")
    assert [f.state for f in monitor.progress.folds] == ["finished", "silent"]
    assert "no scores by class" in said(monitor) and "none yet" in said(monitor)
    assert monitor.panel.curves["run"].layout.display is None and monitor.panel.curves["parts"].layout.display == "none"
    assert "score" in latest_table(monitor.progress) and class_columns(monitor.progress.history, CLASSES) == {}
    assert monitor.picture().data[:2] == b"\xff\xd8"


def test_history_of_the_run_stands_in_for_a_fold_that_has_none(run):
    pd.concat([pd.read_csv(run / f"fold_{k}/history.csv") for k in (0, 1)]).to_csv(run / "history.csv", index=False)
    before = read_progress(run).history
    (run / "fold_1/history.csv").unlink()
    pd.testing.assert_frame_equal(read_progress(run).history, before)


def test_run_that_is_not_there_is_waited_for(whole, tmp_path):
    monitor = Monitor(tmp_path / "run", whole / "data")
    assert "no such folder yet" in said(monitor) and monitor.picture().data[:2] == b"\xff\xd8"
    (tmp_path / "run").mkdir()
    monitor.refresh()
    assert "no config.json" in said(monitor)
    shutil.copytree(whole, tmp_path / "run", dirs_exist_ok=True)
    monitor.refresh()
    assert "fold 0: finished" in said(monitor) and len(monitor.examples.all) == 8 and monitor.files.folder is not None


# --- the widget


@pytest.mark.parametrize(
    "case",
    [
        dict(),
        dict(shape=(200, 200), classes=3),
        dict(n=2, done=(1, 0)),
        dict(done=(0, 0), doing="starting"),
        dict(ids=HOSTILE, n=6, doing="stopped", why="ValueError: <img src=x onerror=alert(1)>"),
    ],
)
def test_all_is_shown_and_nothing_slips_through(tmp_path, case):
    run = tmp_path / ("<b>run</b>" if "ids" in case else "run")
    folder = make_training(run, **case)
    monitor = Monitor(run)
    for fold in (None, 1):
        monitor.fold = fold
        only_our_tags(monitor)
        shown = monitor.examples.all
        for i, (e, _levels, image, truth) in shown.items():
            monitor.image_id = i
            assert fold in (None, e.fold) and (image == folder.image(i)).all() and (truth == folder.mask(i)).all()
            assert monitor.examples.page.chosen == list(shown).index(i)
        only_our_tags(monitor)
    assert Image.open(io.BytesIO(monitor.picture().data)).width > 900
    assert "<img" not in said(monitor)


def test_layers_are_those_of_the_levels(whole):
    monitor = Monitor(whole)
    panel, store = monitor.examples, ProbStore.open(whole / "oof")
    for i in list(panel.all)[:3]:
        monitor.image_id = i
        for show, c in (("all", None), ("class 2", 1)):
            panel.show, panel.least = show, 60
            panel._later.now(always=False)
            levels, truth = store.read(i), panel.all[i][3]
            levels, truth = (levels, truth) if c is None else (levels[c : c + 1], truth[c : c + 1])
            alpha = {
                name: np.array(
                    Image.open(io.BytesIO(getattr(panel.view, f"layer{panel.view.names.index(name)}"))).convert("RGBA")
                )[..., 3]
                > 0
                for name in ("labels", "probability", "difference")
            }
            assert (alpha["labels"] == truth.any(0)).all() and (alpha["probability"] == (levels.max(0) >= 60)).all()
            assert (alpha["difference"] == (truth.any(0) | (levels >= 128).any(0))).all()
    panel.page.chosen = 1
    assert monitor.image_id == list(panel.all)[1]
    panel._step(1)
    assert monitor.image_id == list(panel.all)[2]
    with pytest.raises(ValueError, match="no example 'x'"):
        monitor.image_id = "x"
    with pytest.raises(ValueError, match="show 'class 9': give all, class 1"):
        panel.show = "class 9"


def test_example_in_words():
    truth, levels = np.zeros((2, 3, 4, 4), np.uint8)
    truth[0, :2], truth[1, :1] = 1, 1
    levels[0, :2, :2], levels[2, 3] = 128, 255
    assert (
        example_line("i", 1, 7, levels, truth)
        == "i · fold 1 after epoch 7 · mean Dice 0.222 at level 128 · class 1: Dice 0.667 · class 2: missed, 4 px · "
        "class 3: false, 4 px"
    )
    assert example_line("i", 1, 7, levels, None) == "i · fold 1 after epoch 7 · highest level 255 of 255"
    assert example_line("i", 1, 7, 0 * levels, 0 * truth).endswith("clean, and nothing predicted")
    assert example_thumb(levels, None, None, 8).shape == (8, 8, 3)


def test_nothing_is_drawn_twice(run):
    """A look at unchanged files sends nothing; a new epoch of one fold changes curves and examples; news change a line
    alone."""
    monitor = Monitor(run)
    sent = []
    for w in (*monitor.panel.curves.values(), monitor.panel.table, monitor.examples.view, monitor.examples.page):
        w.observe(lambda change: sent.append(change.name))
    monitor.refresh(), monitor.refresh()
    assert sent == []
    path = run / "fold_1/progress.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), step=7)))
    monitor.refresh()
    assert sent == [] and "step 7 of 9" in said(monitor)
    h = pd.read_csv(run / "fold_1/history.csv")
    pd.concat([h, h.tail(1).assign(epoch=3, score=0.8)]).to_csv(run / "fold_1/history.csv", index=False)
    monitor.refresh()
    assert sent == ["value"] * 3 and monitor.progress.folds[1].best == 0.8  # two figures and the table
    np.savez_compressed(run / "fold_1/examples.npz", **{**np.load(run / "fold_1/examples.npz"), "epoch": 3})
    sent.clear()
    monitor.refresh()
    assert "value" not in sent and "page" in sent and "after epoch 3, 6" in said(monitor)


def test_it_looks_by_itself_and_ends_with_the_run(run):
    async def watch():
        monitor = Monitor(run, every=0.05)
        monitor.start()
        assert monitor.watching and monitor.box.value
        path = run / "fold_1/progress.json"
        path.write_text(json.dumps(dict(json.loads(path.read_text()), step=8)))
        await asyncio.sleep(0.4)
        assert monitor.progress.folds[1].step == 8
        monitor.box.value = False
        await asyncio.sleep(0)
        path.write_text(json.dumps(dict(json.loads(path.read_text()), step=9)))
        await asyncio.sleep(0.2)
        assert monitor.progress.folds[1].step == 8 and monitor._task is None
        monitor.start()
        h = pd.read_csv(run / "fold_0/history.csv").assign(fold=1)
        h.to_csv(run / "fold_1/history.csv", index=False)
        shutil.copytree(run / "fold_0/last", run / "fold_1/last")
        await asyncio.sleep(0.6)
        assert monitor.progress.finished and not monitor.watching and monitor._task is None and not monitor.box.value
        assert "finished" in said(monitor)
        monitor.start()
        assert not monitor.watching

    asyncio.run(watch())


def test_without_a_loop_it_does_not_watch(whole, capsys):
    monitor = Monitor(whole)
    bundle = monitor._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert not monitor.watching and bundle["image/jpeg"]


def test_a_look_that_fails_is_told_and_the_next_one_comes(whole, monkeypatch):
    async def watch():
        monitor = Monitor(whole, every=0.02)
        monkeypatch.setattr("steel_seg.look.monitor.read_progress", lambda *a: 1 / 0)
        monitor.start()
        await asyncio.sleep(0.1)
        assert "this look failed (ZeroDivisionError" in said(monitor) and monitor.watching
        monkeypatch.undo()
        await asyncio.sleep(0.3)
        assert "failed" not in said(monitor) and "fold 1: trains" in said(monitor)
        monitor.close()
        assert not monitor.watching

    asyncio.run(watch())


def test_what_does_not_fit_is_refused(whole, tmp_path):
    other = read_folder(
        make_folder(tmp_path / "other", n_train=4, n_test=0, shape=(64, 400), seed=1), n_classes=CLASSES
    )
    for args, message in [
        ((whole / "config.json",), "is a file: give the folder of a run"),
        ((whole, tmp_path / "no"), "no such data folder"),
        ((whole, other), "trains on other data than"),
        ((whole, tmp_path), "no such file|train.csv"),
    ]:
        with pytest.raises(ValueError, match=message):
            Monitor(*args)
    with pytest.raises(ValueError, match="no fold 2; give one of 0 to 1, or None for all"):
        Monitor(whole).fold = 2
    assert table_html(pd.DataFrame()) == ""


def test_torch_is_not_loaded():
    code = "import sys, steel_seg.look.monitor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# --- a real training beside it

TRAIN = """
import sys, time, torch
torch.set_num_threads(1)
from steel_seg.data import read_folder
from steel_seg.config import TrainConfig
from steel_seg.train import train_run
net = dict(arch="unet", encoder="tu-test_resnet.r160_in1k", encoder_weights=None, encoder_depth=3)
config = TrainConfig(**net, epochs=3, batch_size=4, lr=1e-2, folds=2, num_workers=0)
def hold(epoch, step): # in the second epoch: long enough for news of its second step, then for good
    if sys.argv[3] == "hold" and epoch == 1: time.sleep(600 if step else 1.5)
train_run(sys.argv[1], read_folder(sys.argv[2], n_classes=4), config, only=0, progress=False, on_step=hold)
"""


def until(monitor, true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, said(monitor)
        time.sleep(0.05)  # a busy machine takes a minute to import torch
        monitor.refresh()


def test_a_real_training_is_followed_killed_and_followed_again(tmp_path):
    data, run = make_folder(tmp_path / "mill", n_train=24, n_test=0, shape=(64, 128), seed=2), tmp_path / "run"
    monitor = Monitor(run, data)
    assert "no such folder yet" in said(monitor)

    def train(how):
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(run), str(data), how], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def fold():
        return monitor.progress.folds[0]

    child = train("hold")
    until(
        monitor,
        lambda: (
            monitor.progress.folds
            and (fold().state, fold().done, fold().epoch, fold().step) == ("training", 1, 2, 2)
            and monitor.examples.all
        ),
    )
    before = {i: levels.tobytes() for i, (_, levels, *_) in monitor.examples.all.items()}
    assert (
        fold().left > 0
        and len(fold().all_empty) == 5
        and "best so far" in said(monitor)
        and monitor.progress.folds[1].state == "waiting"
    )
    assert class_columns(monitor.progress.history, 4).keys() == {
        "score_1",
        "score_2",
        "score_3",
        "score_4",
        "present",
        "empty",
    }
    child.send_signal(signal.SIGKILL)
    child.wait()
    monitor.refresh()
    assert (
        fold().state == "stopped"
        and "its process is gone" in said(monitor)
        and "train again to resume" in said(monitor)
    )
    child = train("through")
    until(monitor, lambda: fold().state != "stopped")
    until(monitor, lambda: fold().state == "finished")
    assert child.wait(300) == 0
    monitor.refresh()
    assert fold().done == 3 and "fold 0: finished, 3 epochs" in said(monitor) and monitor.files.folder is not None
    assert {e.epoch for e, *_ in monitor.examples.all.values()} == {3} and monitor.examples.all.keys() == before.keys()
    assert any(levels.tobytes() != before[i] for i, (_, levels, *_) in monitor.examples.all.items())
    assert not monitor.progress.finished  # fold 1 was not asked for
