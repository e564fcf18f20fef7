"""The whole chain as a user runs it, on small folders: the files agree, and a second run finds its work done."""

import json

import numpy as np
import pytest

from steel_seg import cli
from steel_seg.curves import read_curves
from steel_seg.data import read_folder
from steel_seg.decide import dice_at
from steel_seg.folds import read_folds
from steel_seg.post import apply_rules, read_rules
from steel_seg.rle import rle_encode
from steel_seg.store import ProbStore
from steel_seg.submit import read_submission
from steel_seg.synth import make_folder


def demo(capsys, monkeypatch, data, run):
    "The demo with a training that is cut short; its result and what it printed."
    monkeypatch.setattr(cli, "DEMO_PIXELS", 3e5)
    assert cli.main(["demo", "--data", str(data), "--run", str(run), "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    return json.loads(out[-1]), out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with test images and one without, in different layouts and sizes."
    top = tmp_path_factory.mktemp("made")
    return {
        "today": make_folder(top / "today", n_train=20, n_test=4, shape=(64, 128), seed=2),
        "2019": make_folder(top / "2019", n_train=16, n_test=0, shape=(50, 90), layout="2019", seed=3),
    }


@pytest.mark.parametrize("layout", ["today", "2019"])
def test_chain(capsys, monkeypatch, tmp_path, made, layout):
    run = tmp_path / "run"
    found, _ = demo(capsys, monkeypatch, made[layout], run)
    folder = read_folder(made[layout])
    assert found["errors"] == 0 and found["oof"] == (layout == "2019")
    assert found["all_empty"] == pytest.approx((folder.truth_area() == 0).mean())

    # The rules that were written score on the curves what was printed, and the nested interval holds its value.
    rules, facts = read_rules(run / "rule.json")
    curves = read_curves(run / "curves.npz")
    assert curves.image_ids == tuple(folder.images.image_id)
    assert dice_at(curves, rules).mean() == pytest.approx(found["optimistic"]["value"], abs=1e-12)
    assert found["nested"]["low"] <= found["nested"]["value"] <= found["nested"]["high"]
    assert facts["data_sha256"] == folder.sha256
    assert sorted(read_folds(run / "folds.csv", folder.images.image_id).fold.unique()) == [0, 1]

    # The submission holds what the rules make of the store, pixel for pixel.
    store = ProbStore.open(run / ("oof" if found["oof"] else "test"))
    table, written = read_submission(run / "submission.csv")
    assert written == layout and len(table) == folder.n_classes * len(store.image_ids)
    for image_id, channel, rle in zip(table.image_id, table.channel, table.rle):
        assert rle == rle_encode(apply_rules(store.read(image_id), rules)[channel])
    if found["oof"]:
        assert found["submission_score"] == pytest.approx(found["optimistic"]["value"], abs=1e-12)

    page = (run / "report.html").read_text()
    assert "<img" in page and 'src="http' not in page and f"{found['nested']['value']:.4f}" in page


def test_second_run_finds_its_work_done(capsys, monkeypatch, tmp_path, made):
    run = tmp_path / "run"
    first, _ = demo(capsys, monkeypatch, made["2019"], run)
    kept = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and {"fold_0", "fold_1", "oof"} & set(p.parts)}
    times = {p: p.stat().st_mtime_ns for p in kept if p.suffix == ".safetensors" or "oof" in p.parts}
    second, out = demo(capsys, monkeypatch, made["2019"], run)
    assert second == first
    assert {p: p.read_bytes() for p in kept} == kept
    assert {p: p.stat().st_mtime_ns for p in times} == times and times
    assert sum("finished before" in line for line in out) == 2


def test_other_data_is_refused(capsys, monkeypatch, tmp_path, made):
    run = tmp_path / "run"
    demo(capsys, monkeypatch, made["2019"], run)
    assert cli.main(["demo", "--data", str(made["today"]), "--run", str(run)]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steel_seg")]
    assert len(err) == 1 and str(run) in err[0]


def test_commands_one_by_one(capsys, tmp_path, made):
    "The five commands of the README, with a configuration file and an option that overrides it."
    data, run, config = made["today"], tmp_path / "run", tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "arch": "fpn",
                "encoder": "tu-test_resnet.r160_in1k",
                "encoder_weights": None,
                "epochs": 9,
                "folds": 2,
                "batch_size": 5,
                "num_workers": 0,
            }
        )
    )
    narrow = json.dumps({"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32})
    where = ["--data", str(data), "--run", str(run)]
    assert cli.main(["train", *where, "--config", str(config), "--epochs", "1", "--decoder", narrow, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["best"]) == {"0", "1"}
    for command in ("predict", "decide", "submit"):
        assert cli.main([command, *where]) == 0, capsys.readouterr().err
    assert cli.main(["check", str(run / "submission.csv"), "--sample", str(data / "sample_submission.csv")]) == 0
    assert cli.main(["score", str(run / "submission.csv"), str(data / "test_truth.csv"), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["score"] <= 1
    assert json.loads((run / "config.json").read_text())["config"]["epochs"] == 1


def test_same_seed_same_decision(capsys, monkeypatch, tmp_path, made):
    a, _ = demo(capsys, monkeypatch, made["2019"], tmp_path / "a")
    b, _ = demo(capsys, monkeypatch, made["2019"], tmp_path / "b")
    assert a["nested"] == b["nested"] and a["submission_score"] == b["submission_score"]
    levels = [
        np.stack([ProbStore.open(tmp_path / r / "oof").read(i) for i in ProbStore.open(tmp_path / r / "oof").image_ids])
        for r in "ab"
    ]
    np.testing.assert_array_equal(*levels)
