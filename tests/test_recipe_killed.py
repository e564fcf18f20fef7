"""A whole recipe that is killed again and again ends as the one that was left alone: `make test-long`, some minutes."""

import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from test_recipe_command import TINY, start

from steel_seg import cli
from steel_seg.synth import make_folder

pytestmark = [pytest.mark.long, pytest.mark.kill]

STAGES = ("train", "predict", "pseudo", "blend", "decide", "submit", "choose")
WHOLE = {
    **TINY,
    "phases": {"p": {"epochs": 50}, "q": {"epochs": 2, "sampler": "pseudo"}},
    "train": {**TINY["train"], "batch_size": 4, "lr": 5e-3},
    "classifier": {"encoder": "tu-test_resnet.r160_in1k", "encoder_weights": None, "epochs": 2, "num_workers": 0},
    "keep": "all",
    "gate": "score",
    "blend": {"weights": "equal"},
    "choose": True,
}


def arguments(data, run, config):
    return ["recipe", "--data", str(data), "--run", str(run), "--config", str(config), "-j", "2"]


def at_work(run, stage):
    "The jobs of a stage that have begun and not ended, by the names of their logs."
    begun = {log.stem for log in run.glob(f"logs/{stage}/*.log")}
    ended = {done.parent.name for done in run.glob(f"done/{stage}/*/all")}
    ended |= {f"{done.parent.name}.{done.name}" for done in run.glob(f"done/{stage}/*/fold_*")}
    return begun - ended


def kill_in(stage, command, run, seconds):
    "Start the recipe, and kill every process of it, as a power cut would, while a job of the stage is at work."
    before = at_work(run, stage)  # what was killed earlier
    process = start(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + seconds
    while not at_work(run, stage) - before:
        assert process.poll() is None, f"ended before {stage}"
        assert time.monotonic() < deadline, f"{stage} did not begin"
        time.sleep(0.05)
    time.sleep(2)  # most of it is to load the package
    all_of_it = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in all_of_it:
        one.kill()
    psutil.wait_procs(all_of_it, 30)
    process.wait()
    assert at_work(run, stage) - before, f"killed too late for {stage}"


def results(run):
    "The files that a recipe is run for."
    tables = [run / "gains.csv", *run.glob("*/ledger.csv")]
    paths = sorted([*run.glob("*/submission*.csv"), *run.glob("*/rule.json"), *run.glob("*/choose.csv"), *tables])
    return {path.relative_to(run): path.read_bytes() for path in paths}


def test_killed_in_every_stage_it_ends_with_the_same_submissions(tmp_path):
    data, config = tmp_path / "data", tmp_path / "tiny.json"
    make_folder(data, n_train=32, n_test=8, shape=(64, 96), seed=2)
    config.write_text(json.dumps(WHOLE))
    calm, killed = tmp_path / "calm/run", tmp_path / "killed/run"
    assert cli.main(arguments(data, calm, config)) == 0
    for stage in STAGES:
        kill_in(stage, arguments(data, killed, config), killed, seconds=1200)
    assert cli.main(arguments(data, killed, config)) == 0
    expected, found = results(calm), results(killed)
    assert found == expected
    (first,) = [text for path, text in expected.items() if path == Path("submissions/submission_1.csv")]
    assert any(line.split(b",")[-2].strip() for line in first.splitlines()[1:]), "a submission without a mask"


def test_a_changed_blend_weight_reruns_what_follows_it(tmp_path):
    data, config, run = tmp_path / "data", tmp_path / "tiny.json", tmp_path / "run"
    make_folder(data, n_train=16, n_test=2, shape=(64, 64), seed=2)
    short = {**WHOLE, "phases": {"p": {"epochs": 1}}, "classifier": None, "gate": "none"}
    config.write_text(json.dumps(short))
    assert cli.main(arguments(data, run, config)) == 0
    nets = {path: path.stat().st_mtime_ns for path in run.glob("?.p/fold_*/**/*")}
    config.write_text(json.dumps({**short, "blend": {"weights": "3,1"}}))
    times = {path: path.stat().st_mtime_ns for path in run.glob("done/*/*/*")}
    assert cli.main(arguments(data, run, config)) == 0
    again = {f"{path.parts[-3]} {path.parts[-2]}" for path, at in times.items() if path.stat().st_mtime_ns != at}
    assert again == {"blend blend", "gains recipe", "decide blend", "submit blend", "choose recipe"}
    assert nets == {path: path.stat().st_mtime_ns for path in run.glob("?.p/fold_*/**/*")}
    assert json.loads((run / "blend/config.json").read_text())["blend"]["shares"] == [3, 1]
