"""A recipe as one command: what runs and why, what a kill and a changed setting leave, and a cluster."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from steel_seg import cli
from steel_seg.config import TrainConfig
from steel_seg.data import parse_shape
from steel_seg.engine import Places, run_engine
from steel_seg.recipe import SIZES, Step, keys_of, steps_of
from steel_seg.state import load_state
from steel_seg.synth import make_folder

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
NET = {"arch": "fpn", "decoder": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}}
TINY = {
    "nets": {"a": NET, "b": {**NET, "encoder_depth": 4}},
    "phases": {"p": {"epochs": 3}},
    "train": {
        "encoder": "tu-test_resnet.r160_in1k",
        "encoder_weights": None,
        "batch_size": 1,
        "lr": 1e-2,
        "num_workers": 0,
        "save_every": 1,
    },
    "folds": 2,
    "classifier": None,
    "gate": "none",
    "blend": None,
    "choose": False,
}
LONG = {**TINY, "nets": {"a": NET}, "phases": {"p": {"epochs": 24}}}  # for a kill in the middle on a busy machine
# What one net needs, and what is made of both.
OF_A = ["train a.p, fold 0", "train a.p, fold 1", "predict a.p", "decide a.p", "submit a.p"]
ALL = sorted([*OF_A, *(job.replace("a.p", "b.p") for job in OF_A), "gains recipe"])


def snapshot(folder):
    "Every file of a folder with its time."
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


# ---- the engine, with commands that take no time


def two_steps(option="--help"):
    first = Step("pseudo", "labels", ("synth", option), settings={"lr": 1}, makes=("labels",))
    other = Step("pseudo", "other", ("synth", "--help"))
    last = Step("submit", "end", ("check", "--help"), needs=(first.id, other.id))
    return first, other, last


def titles(outcome):
    return sorted(job.title for job in outcome.jobs)


def engine(root, steps, **options):
    return run_engine(root, steps, keys_of(steps, "data"), Places(root), say=lambda line: None, **options)


def test_changed_setting_runs_what_depends_on_it(tmp_path):
    steps = two_steps()
    assert titles(engine(tmp_path, steps)) == ["pseudo labels", "pseudo other", "submit end"]
    assert titles(engine(tmp_path, steps)) == []
    changed = (replace(steps[0], settings={"lr": 2}), *steps[1:])
    planned = engine(tmp_path, changed, dry_run=True)
    assert [(j.title, j.reason) for j in planned.jobs] == [
        ("pseudo labels", "lr was 1, is now 2"),
        ("submit end", "follows pseudo/labels"),
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/made").write_text("with lr 1")
    done = engine(tmp_path, changed)
    assert titles(done) == titles(planned)
    assert not (tmp_path / "labels").exists() and len(list((tmp_path / "old").glob("*/labels/made"))) == 1
    engine(tmp_path, steps)
    assert (tmp_path / "labels/made").read_text() == "with lr 1"


def test_failed_job_is_one_line_and_the_rest_goes_on_later(tmp_path):
    steps = two_steps(option="--n-train=3")
    outcome = engine(tmp_path, steps)
    (line,) = outcome.failed
    assert line.startswith("pseudo labels failed with exit code 2: steel_seg synth: ")
    log = Path(line.split("its log: ")[1].rstrip(")"))
    assert "the following arguments are required: out" in log.read_text()
    assert titles(engine(tmp_path, two_steps())).count("submit end") == 1


def test_cluster_takes_it_through_an_executor_plugin(tmp_path):
    "Each job is submitted as a script; here the submit command is a shell that runs it at once."
    submit = tmp_path / "submit"
    submit.write_text('#!/bin/sh\necho "$1" >> "$(dirname "$0")/submitted"\nsh "$1" > /dev/null 2>&1\necho 1\n')
    submit.chmod(0o755)
    options = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(submit)]
    steps = two_steps()[:1]
    outcome = engine(tmp_path / "run", steps, options=[*options, "--seconds-between-status-checks", "1"])
    assert titles(outcome) == ["pseudo labels"] and not outcome.failed
    assert len((tmp_path / "submitted").read_text().splitlines()) == 1
    assert "usage" in (tmp_path / "run/logs/pseudo/labels.log").read_text()


def test_error_of_the_engine_is_one_message(tmp_path):
    with pytest.raises(ValueError, match="snakemake ended with exit code 2: .*its logs"):
        engine(tmp_path, two_steps(), options=["--no-such-option"])


def test_without_snakemake_the_extra_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("steel_seg.engine.find_spec", lambda name: None if name == "snakemake" else find(name))
    with pytest.raises(ValueError, match=r"pip install 'steel_seg\[recipe\]'"):
        engine(tmp_path, two_steps())


def test_package_ships_the_workflow():
    text = (ROOT / "setup.py").read_text()
    assert '"workflow/Snakefile"' in text and (ROOT / "steel_seg/workflow/Snakefile").is_file()


# ---- a recipe of two nets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    top = tmp_path_factory.mktemp("recipe")
    (top / "tiny.json").write_text(json.dumps(TINY))
    (top / "long.json").write_text(json.dumps(LONG))
    return top, make_folder(top / "data", n_train=16, n_test=2, shape=(64, 64), seed=2)


def arguments(made, *more, run="run", config="tiny.json"):
    top, data = made
    return ["recipe", "--data", str(data), "--run", str(top / run), "--config", str(top / config), *more]


@pytest.fixture(scope="module")
def ended(made):
    "The same, with its recipe run to the end; where a test before this one did that, nothing is left to run."
    assert cli.main(arguments(made)) == 0
    return made


def command(capsys, *argv):
    code = cli.main([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, out, err


def start(command, stderr=subprocess.PIPE):
    "A command as a process of its own."
    code = "import sys; from steel_seg.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.DEVNULL, stderr=stderr)


def test_dry_run_says_what_would_run_and_why(capsys, made):
    before = snapshot(ROOT / "steel_seg")
    code, result, out, _ = command(capsys, *arguments(made, "--dry-run"))
    assert code == 0 and sorted(result["jobs"]) == ALL
    assert "train a.p, fold 0: not done yet" in out and "11 jobs would run" in out
    assert not (made[0] / "run/a.p").exists() and snapshot(ROOT / "steel_seg") == before


def test_killed_in_an_epoch_it_goes_on_and_ends_the_same(capsys, made):
    top, _ = made
    command_line = arguments(made, run="killed", config="long.json")
    process = start(command_line)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # until some steps of the first epoch are over, and not all
        states = list((top / "killed").glob("*/fold_*/state.safetensors"))
        if states:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and err.splitlines()[-1].startswith("steel_seg recipe: stopped")
    half = states[0].parent
    assert not (half / "last").exists(), "killed too late"

    code, result, out, err = command(capsys, *command_line)
    assert code == 0, err
    assert sorted(result["jobs"]) == sorted([*OF_A, "gains recipe"]) and (half / "last").exists()

    # The same fold without a kill, by the command that the job runs.
    where = ["--data", str(made[1]), "--run", str(top / "calm")]
    config = top / "killed/settings" / f"{half.parent.name}.json"
    assert cli.main(["train", *where, "--config", str(config), "--fold", half.name[5:]]) == 0
    calm = top / "calm" / half.name
    for name in ("last", "best"):
        assert (half / name / "model.safetensors").read_bytes() == (calm / name / "model.safetensors").read_bytes()
    tensors, of_calm = (load_state(fold / "state.safetensors")[0] for fold in (half, calm))
    assert tensors.keys() == of_calm.keys() and all(torch.equal(t, of_calm[name]) for name, t in tensors.items())


def test_what_it_made(capsys, made):
    top, _ = made
    code, result, out, err = command(capsys, *arguments(made))
    assert code == 0, err
    assert sorted(result["jobs"]) == ALL
    table = pd.read_csv(top / "run/gains.csv")
    assert sorted(table.step) == ["+ rule, instead of level 128", "a, p", "b, p"]
    assert (table.low[2] <= table.difference[2]) and (table.difference[2] <= table.high[2])
    page = (top / "run/report.html").read_text()
    assert "What each step added" in page and "<svg" in page
    assert len(result["submissions"]) == 2 and all(Path(path).exists() for path in result["submissions"])


def test_second_run_has_nothing_to_do(capsys, ended):
    times = snapshot(ended[0] / "run/a.p")
    code, result, _, _ = command(capsys, *arguments(ended))
    assert code == 0 and result["jobs"] == []
    assert snapshot(ended[0] / "run/a.p") == times and times


def test_changed_net_reruns_its_jobs_and_what_is_made_of_it(capsys, ended):
    top, _ = ended
    nets = {**TINY["nets"], "b": {**TINY["nets"]["b"], "lr": 5e-3}}
    (top / "other.json").write_text(json.dumps({**TINY, "nets": nets}))
    code, result, out, _ = command(capsys, *arguments(ended, "--dry-run", config="other.json"))
    assert code == 0 and sorted(result["jobs"]) == sorted(set(ALL) - set(OF_A))
    assert "train b.p, fold 0: lr was 0.01, is now 0.005" in out and "predict b.p: follows train/b.p" in out
    for name, changes in (("workers", {"num_workers": 1}), ("save", {"save_every": 3})):
        (top / f"{name}.json").write_text(json.dumps({**TINY, "train": {**TINY["train"], **changes}}))
        assert command(capsys, *arguments(ended, "--dry-run", config=f"{name}.json"))[1]["jobs"] == []
    assert command(capsys, *arguments(ended, "--dry-run"))[1]["jobs"] == []


def test_mistakes_are_one_line(capsys, made):
    top, _ = made
    for text, message in (
        ('{"nets": {"a": {"arch": "deeplab"}}}', "a.p: arch='deeplab' is not one of"),
        ('{"fold": 3}', "unknown: fold"),
    ):
        values = {**TINY, **json.loads(text)}
        (top / "bad.json").write_text(json.dumps(values))
        assert cli.main(arguments(made, config="bad.json")) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1


def test_graph_is_drawn(capsys, made):
    graph = made[0] / "graph.mmd"
    command(capsys, *arguments(made, "--dry-run", "--graph", str(graph)))
    assert "train/a.p × 2" in graph.read_text()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_images, shape", [(12, (64, 96)), (564, (200, 200)), (12_568, (256, 1600))])
def test_every_size_can_be_trained_on_any_folder(size, n_images, shape):
    steps = steps_of(SIZES[size](n_images, shape))
    for step in steps:
        if step.settings is not None:
            config = TrainConfig.from_json(step.settings)
            assert config.crop is None or all(side <= whole for side, whole in zip(parse_shape(config.crop), shape))
    assert {step.kind for step in steps} == {
        *("train", "predict", "decide", "pseudo", "ledger", "blend", "submit", "gains", "choose")
    }


def test_plan_calls_this_package():
    from steel_seg.engine import PROGRAM

    done = subprocess.run(f"{PROGRAM} --help", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "recipe" in done.stdout
