"""The command line: results as JSON, faults as exit code 1, a mistake of the user as one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steel_seg import cli

COMMANDS = [
    "synth",
    "check-data",
    "import",
    "export",
    "train",
    "pseudo",
    "pseudo-ledger",
    "predict",
    "blend",
    "decide",
    "submit",
    "choose",
    "check",
    "score",
    "demo",
    "gains",
    "recipe",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "data"
    assert cli.main(["synth", str(root), "--n-train", "16", "--n-test", "4", "--shape", "64x128", "--seed", "5"]) == 0
    return root


def run(capsys, *argv):
    "Exit code, lines of stdout, stderr."
    try:
        code = cli.main([str(a) for a in argv])
    except SystemExit as e:
        code = e.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and any("--json" in line for line in out)


def test_every_config_field_is_an_option(capsys):
    from dataclasses import fields

    from steel_seg.config import TrainConfig

    _, out, _ = run(capsys, "train", "--help")
    for f in fields(TrainConfig):
        assert any("--" + f.name.replace("_", "-") in line for line in out), f.name


def test_lists_that_the_commands_repeat_are_those_of_the_modules():
    from steel_seg import exporting, importing
    from steel_seg.decide import CHOOSERS
    from steel_seg.post import GATE_KINDS
    from steel_seg.pseudo_rules import KEEPS, Keep

    assert tuple(exporting.FORMATS) == cli._FORMATS and cli._LINKS == importing.LINKS
    assert cli._CLASS_FROM == importing.CLASS_FROM and cli._RLE_FORMS == importing.RLE_FORMS
    assert cli._UNLABELLED == importing.UNLABELLED
    assert tuple(CHOOSERS) == cli._CHOOSERS and tuple(GATE_KINDS) == cli._GATES and tuple(KEEPS) == cli._KEEPS
    parser = cli._Parser(prog="example")
    cli._add_pseudo(parser)
    args = parser.parse_args(["run", "--data", "d", "--out", "o"])
    assert Keep(args.keep, args.sure, args.agree, args.high, args.low) == Keep()


def test_of_several_processes_the_first_one_prints(capsys, monkeypatch, data):
    command = ["check-data", data, "--headers-only"]
    assert len(run(capsys, *command)[1]) == 1
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, *command)[:2] == (0, [])
    monkeypatch.delenv("RANK")
    assert len(run(capsys, *command)[1]) == 1  # stdout is as it was


def test_as_a_program(data):
    "The installed program, in its own process: JSON last, nothing on stderr."
    truth = data / "test_truth.csv"
    done = subprocess.run(
        [Path(sys.executable).with_name("steel_seg"), "score", truth, truth, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1])["score"] == 1


def test_all_empty_scores_the_share_of_empty_pairs(capsys, data):
    truth = data / "test_truth.csv"
    lines = truth.read_text().splitlines()
    empty = data.parent / "empty.csv"
    empty.write_text("\n".join([lines[0]] + [line.rsplit(",", 1)[0] + "," for line in lines[1:]]) + "\n")
    share = sum(line.endswith(",") for line in lines[1:]) / (len(lines) - 1)
    code, out, _ = run(capsys, "score", empty, truth, "--json")
    found = json.loads(out[-1])
    assert code == 0 and found["score"] == pytest.approx(share) and 0 < share < 1
    assert found["pairs"] == len(lines) - 1 and set(found["per_class"]) == {"1", "2", "3", "4"}


def test_check_data_names_the_row(capsys, data, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    lines = (copy / "train.csv").read_text().splitlines()
    lines[2] = lines[2].rsplit(",", 1)[0] + ",5 3 6 1"
    (copy / "train.csv").write_text("\n".join(lines) + "\n")
    code, out, _ = run(capsys, "check-data", copy, "--json")
    found = json.loads(out[-1])
    assert code == 1 and found["errors"] == 1
    assert found["faults"][0]["row"] == 3 and "overlaps" in found["faults"][0]["problem"]
    assert run(capsys, "check-data", data)[0] == 0


def test_check_finds_what_is_missing(capsys, data, tmp_path):
    sample = data / "sample_submission.csv"
    lines = sample.read_text().splitlines()
    short = tmp_path / "short.csv"
    short.write_text("\n".join(lines[:-1]) + "\n")
    assert run(capsys, "check", sample, "--sample", sample)[0] == 0
    code, out, _ = run(capsys, "check", short, "--sample", sample, "--json")
    assert code == 1 and json.loads(out[-1])["errors"] >= 1


def test_check_takes_the_size_from_images_beside(capsys, data, tmp_path):
    "64x128 images lie beside the sample; a run past pixel 8192 leaves them, though it would fit 256x1600."
    sample = data / "sample_submission.csv"
    lines = sample.read_text().splitlines()
    header = lines[0].split(",")
    cells = dict(zip(header, lines[1].split(",")))
    cells["EncodedPixels"] = "8190 9"
    late = tmp_path / "late.csv"
    late.write_text("\n".join([lines[0], ",".join(cells[h] for h in header)] + lines[2:]) + "\n")
    code, out, _ = run(capsys, "check", late, "--sample", sample)
    assert code == 1 and any("late.csv:2" in line for line in out)
    assert run(capsys, "check", late, "--sample", sample, "--shape", "256x1600")[0] == 0


MISTAKES = {
    "no such data": ["train", "--data", "{d}/none", "--run", "{d}/run"],
    "no such csv": ["score", "{d}/none.csv", "{d}/none.csv"],
    "a folder as csv": ["score", "{d}", "{d}"],
    "empty csv": ["score", "{d}/empty.csv", "{d}/empty.csv"],
    "not a shape": ["synth", "{d}/new", "--shape", "256"],
    "unknown command": ["teach"],
    "no command": [],
    "unknown option": ["check", "{d}/empty.csv", "--sampel", "x"],
    "no run": ["decide", "--data", "{data}", "--run", "{d}/none"],
    "no rule": ["submit", "--data", "{data}", "--run", "{d}/none"],
    "nothing to choose from": ["choose", "--data", "{data}", "{d}/none", "{d}/r0"],
    "nothing trained": ["predict", "--data", "{data}", "--run", "{d}/none"],
    "unknown net": ["train", "--data", "{data}", "--run", "{d}/r1", "--arch", "unet3"],
    "unknown field": ["train", "--data", "{data}", "--run", "{d}/r2", "--config", "{d}/odd.json"],
    "config not JSON": ["train", "--data", "{data}", "--run", "{d}/r3", "--config", "{d}/bad.json"],
    "config not an object": ["train", "--data", "{data}", "--run", "{d}/r4", "--config", "{d}/list.json"],
    "folder in the way": ["synth", "{data}"],
    "check-data nowhere": ["check-data", "{d}/none"],
    "shape of nothing": ["synth", "{d}/new", "--shape", "0x5"],
    "negative count": ["synth", "{d}/new2", "--n-train", "-4"],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(capsys, data, tmp_path, name):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "odd.json").write_text('{"learning_rate": 1}')
    (tmp_path / "list.json").write_text("[1]")
    argv = [a.format(d=tmp_path, data=data) for a in MISTAKES[name]]
    code, _, err = run(capsys, *argv)
    assert code == 2, (code, err)
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("steel_seg"), err
    assert "Traceback" not in err and len(lines[0]) < 1000
