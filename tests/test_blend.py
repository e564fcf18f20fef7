"""Blends against slow loops, what is refused, what a killed blend does, and a blend through all that reads a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from steel_seg import cli
from steel_seg.blend import made_of, mean_levels, open_parts, read_blend, whole_shares
from steel_seg.blend_weights import (
    blend_runs,
    blend_table,
    blended_dice,
    diversity,
    find_weights,
    nested_weights,
    read_tables,
    sample_pixels,
)
from steel_seg.curves import curves_of
from steel_seg.data import read_folder
from steel_seg.decide import nested_dice
from steel_seg.files import read_json, write_json
from steel_seg.folds import read_folds, write_folds
from steel_seg.image_table import mask_disagreement
from steel_seg.look.browse import Browser
from steel_seg.look.tune import Tuner
from steel_seg.open_run import make_up_run, open_run
from steel_seg.post import Rule, write_rules
from steel_seg.progress import progress_lines, read_progress
from steel_seg.store import FLOOR, ProbStore
from steel_seg.synth import make_folder

ALL = ("oof", "test")


def made_up(run, folder, seed):
    "A made-up run with the folds of seed 0, and levels for the test images: those of other images."
    make_up_run(run, folder, np.random.default_rng(seed), folds=3, steps=False)
    if seed:
        shutil.copy(run.parent / "a" / "folds.csv", run / "folds.csv")
    oof = ProbStore.open(run / "oof")
    test = ProbStore.create(run / "test", list(folder.test.image_id), folder.n_classes, folder.shape)
    for image_id, of_other in zip(test.image_ids, oof.image_ids):
        test.write(image_id, oof.read(of_other)[:, ::-1])
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(make_folder(tmp_path_factory.mktemp("blend") / "data", 30, 4, (64, 128), seed=4))


@pytest.fixture(scope="module")
def runs(folder):
    return [made_up(folder.root.parent / name, folder, seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def sample(runs, folder):
    return sample_pixels(open_parts(runs, folder), folder, np.random.default_rng(0))


def slow_mean(levels, weights, mean):
    "In float64, pixel by pixel, with scipy."
    out = np.empty(levels[0].shape)
    for at in np.ndindex(out.shape):
        of_runs = [float(x[at]) for x in levels]
        if mean == "logit":
            middle = [(FLOOR - 0.5) / 2 if t < FLOOR else 254.75 if t == 255 else t for t in of_runs]
            of_runs = [logit(t / 255) for t in middle]
        value = sum(w * t for w, t in zip(weights, of_runs)) / sum(weights)
        out[at] = 255 * expit(value) if mean == "logit" else value
    return out


@pytest.mark.parametrize("mean", ["probability", "logit"])
@pytest.mark.parametrize("weights", ["equal", (0.5, 0.3, 0.2)])
def test_stores_hold_the_mean(runs, folder, tmp_path, mean, weights):
    blend_runs(runs, folder, tmp_path / "out", weights, mean)
    numbers = (1, 1, 1) if weights == "equal" else weights
    for kind in ALL:
        blended, *of_runs = (ProbStore.open(run / kind) for run in (tmp_path / "out", *runs))
        assert blended.image_ids == of_runs[0].image_ids and blended.floor == FLOOR
        for image_id in blended.image_ids[::9]:
            levels = [store.read(image_id) for store in of_runs]
            slow = slow_mean([x[:, ::5, ::5] for x in levels], numbers, mean)
            found = blended.read(image_id)[:, ::5, ::5]
            assert (np.abs(found - slow)[slow >= FLOOR + 0.5] <= 0.5 + 1e-9).all()
            assert (found[slow < FLOOR - 0.5] == 0).all()


def test_equal_mean_is_the_rounded_float_mean():
    rng = np.random.default_rng(1)
    for k in (2, 3, 5):
        levels = rng.integers(0, 256, (k, 2, 20, 30), dtype=np.uint8)
        assert np.array_equal(mean_levels(levels, (1,) * k), np.rint(levels.astype(float).sum(0) / k))


def test_order_of_runs_does_not_matter():
    rng = np.random.default_rng(2)
    levels = rng.integers(0, 256, (3, 4, 40, 50), dtype=np.uint8)
    shares, order = np.array([5, 3, 2]), np.array([2, 0, 1])
    assert np.array_equal(mean_levels(levels, shares), mean_levels(levels[order], shares[order]))


@pytest.mark.parametrize("seed", range(20))
def test_shares_keep_the_proportions(seed):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(rng.integers(2, 9)))
    shares = np.array(whole_shares(weights))
    assert np.allclose(shares / shares.sum(), weights, atol=0.004) and np.gcd.reduce(shares) == 1
    hundredths = np.rint(100 * weights)
    shares = np.array(whole_shares(hundredths))
    assert np.allclose(shares / shares.sum(), hundredths / hundredths.sum(), rtol=0, atol=1e-12)


def test_the_sample_counts_what_the_store_would(runs, folder, sample, tmp_path):
    for mean in ("probability", "logit"):
        blend_runs(runs, folder, tmp_path / mean, (3, 1, 0), mean)
        counted, of_sample = curves_of(ProbStore.open(tmp_path / mean / "oof"), folder), sample.curves((3, 1, 0), mean)
        assert np.array_equal(counted.area, of_sample.area) and np.array_equal(counted.hit, of_sample.hit)


def test_found_weights_are_not_below_equal_ones_where_they_were_found(sample):
    from steel_seg.decide import choose_rules
    from steel_seg.score import dice_at

    def own_score(shares, rows):
        curves = sample.curves(shares, rows=rows)
        return dice_at(curves, choose_rules(curves)).mean()

    for k in range(3):
        rows = np.flatnonzero(sample.fold != k)
        assert own_score(find_weights(sample, rows=rows), rows) >= own_score((1, 1, 1), rows)


def test_a_fold_has_no_part_in_its_weights_and_rules(runs, folder, sample, tmp_path):
    "Other predictions for the images of fold 1 in one of the runs: the weights of fold 1 stay, its rules too."
    shutil.copytree(runs[0], tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "oof")
    store = ProbStore.open(runs[0] / "oof")
    changed = ProbStore.create(tmp_path / "a" / "oof", store.image_ids, folder.n_classes, folder.shape)
    fold = read_folds(runs[0] / "folds.csv", store.image_ids).fold.to_numpy()
    for image_id, k in zip(store.image_ids, fold):
        changed.write(image_id, 255 - store.read(image_id) if k == 1 else store.read(image_id))
    parts = open_parts([tmp_path / "a", *runs[1:]], folder)
    other = sample_pixels(parts, folder, np.random.default_rng(0))
    weights, of_other = nested_weights(sample), nested_weights(other)
    assert weights[1] == of_other[1]
    assert weights != of_other
    from steel_seg.decide import nested_rules

    rules = [nested_rules(x.curves(weights[1]), x.fold)[1] for x in (sample, other)]
    assert rules[0] == rules[1]


def test_the_table_is_made_of_nested_scores(sample):
    by_fold = nested_weights(sample)
    table = blend_table(sample, by_fold, "probability", "abc", np.random.default_rng(0))
    slow = np.empty(sample.truth.shape)
    for k, shares in by_fold.items():
        slow[sample.fold == k] = nested_dice(sample.curves(shares), sample.fold)[sample.fold == k]
    assert table.score["this blend"] == slow.mean()
    assert table.score["equal weights"] == nested_dice(sample.curves((1, 1, 1)), sample.fold).mean()
    assert table.gain["b alone"] == pytest.approx(
        slow.mean() - nested_dice(sample.curves((0, 1, 0)), sample.fold).mean()
    )


def test_to_leave_out_a_run_without_weight_costs_nothing(sample):
    table = blend_table(sample, {k: (2, 1, 0) for k in range(3)}, "logit", "abc", np.random.default_rng(0))
    assert table.gain["without c"] == table.low["without c"] == table.high["without c"] == 0
    assert table.verdict["without c"] == "the same" and table.gain["without a"] != 0


def test_diversity_from_whole_masks(runs, folder, sample):
    masks = [np.array([ProbStore.open(run / "oof").read(i) >= 128 for i in sample.image_ids]) for run in runs]
    for row in diversity(sample, "abc").itertuples():
        x, y = masks["abc".index(row.run)], masks["abc".index(row.other)]
        assert row.pixels_differ == (x ^ y).sum() / (x | y).sum()
        assert row.pairs_differ == (x.any((2, 3)) != y.any((2, 3))).mean()
        losses = [1 - blended_dice(sample, [int(name == n) for n in "abc"]).ravel() for name in (row.run, row.other)]
        assert row.loss_correlation == pytest.approx(np.corrcoef(losses)[0, 1])


def test_a_sample_is_drawn_by_its_seed(runs, folder, tmp_path):
    ids = [sample_pixels(open_parts(runs, folder), folder, np.random.default_rng(s), 12).image_ids for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 12
    done = [blend_runs(runs[:2], folder, tmp_path / str(n), "find", seed=3, most=20) for n in range(2)]
    assert done[0].record == done[1].record and done[0].table.equals(done[1].table)


def test_found_weights_may_be_equal_ones(runs, folder, tmp_path, capsys):
    shutil.copytree(runs[0], tmp_path / "copy")
    command = [
        "blend",
        runs[0],
        tmp_path / "copy",
        "--data",
        folder.root,
        "--out",
        tmp_path / "out",
        "--weights",
        "find",
    ]
    assert cli.main([str(part) for part in command]) == 0
    assert "found weights: equal ones" in capsys.readouterr().out
    oof = [ProbStore.open(run / "oof") for run in (runs[0], tmp_path / "out")]
    assert oof[0].fingerprint() == oof[1].fingerprint()  # the mean of a run with itself is the run


# ---- what is refused


def in_another_fold(run, folder):
    folds = read_folds(run / "folds.csv", folder.images.image_id)
    folds.loc[2, "fold"] = (folds.loc[2, "fold"] + 1) % 3
    write_folds(run / "folds.csv", folds)
    return [f"{folds.image_id[2]!r} is in fold", "folds.csv differ", "1 images differ"]


def with_copied_folds(run, folder):
    "The nets were trained with other folds than the folds.csv that lies there now says."
    folds = read_folds(run / "folds.csv", folder.images.image_id)
    image_id = folds.image_id[folds.fold == 2].iloc[-1]
    for k in range(3):
        meta = {"train_ids": folds.image_id[folds.fold != k].tolist(), "seen_ids": [image_id]}
        write_json(run / f"fold_{k}/best/steel_seg.json", {"meta": meta})
    return ["fold_2/best was trained on", repr(image_id), "puts into fold 2 (1 such images)"]


def of_other_data(run, folder):
    write_json(run / "config.json", {"data": "0" * 64})
    return ["was made of other data", "0" * 64]


def with_other_images(run, folder):
    shutil.rmtree(run / "oof")
    ids = [*folder.images.image_id[:-1], "zzz.jpg"]
    store = ProbStore.create(run / "oof", ids, folder.n_classes, folder.shape)
    for image_id in ids:
        store.write(image_id, np.zeros(store.shape[1:], np.uint8))
    return ["predicted different images", f"{folder.images.image_id.iloc[-1]!r} is in"]


def with_other_classes(run, folder):
    shutil.rmtree(run / "oof")
    store = ProbStore.create(run / "oof", list(folder.images.image_id), 2, folder.shape)
    for image_id in store.image_ids:
        store.write(image_id, np.zeros(store.shape[1:], np.uint8))
    return ["(classes, height, width) are", "(2, 64, 128)"]


def unfinished(run, folder):
    log = next((run / "oof" / "probs" / "finished").glob("*.log"))
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
    return ["2 of 30 images are not finished"]


def with_other_test_images(run, folder):
    shutil.rmtree(run / "test")
    store = ProbStore.create(run / "test", ["x.jpg"], folder.n_classes, folder.shape)
    store.write("x.jpg", np.zeros(store.shape[1:], np.uint8))
    return ["predicted different images", "/test"]


def without_predictions(run, folder):
    shutil.rmtree(run / "oof")
    return ["there is no oof", "predict it first"]


PLANTED = [
    in_another_fold,
    with_copied_folds,
    of_other_data,
    with_other_images,
    with_other_classes,
    unfinished,
    with_other_test_images,
    without_predictions,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_difference_is_refused_by_name(runs, folder, tmp_path, capsys, plant):
    shutil.copytree(runs[1], tmp_path / "planted")
    words = [*plant(tmp_path / "planted", folder), str(tmp_path / "planted")]
    command = ["blend", runs[0], tmp_path / "planted", "--data", folder.root, "--out", tmp_path / "out"]
    assert cli.main([str(part) for part in command]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "weights, message",
    [("1,2,3", "for 2 runs"), ("0,0", "one above 0"), ("-1,2", "one above 0"), ("best", "'best' is not equal, find")],
)
def test_weights_that_do_not_fit(runs, folder, tmp_path, capsys, weights, message):
    command = ["blend", *runs[:2], "--data", folder.root, "--out", tmp_path / "out", f"--weights={weights}"]
    try:
        code = cli.main([str(part) for part in command])
    except SystemExit as e:
        code = e.code
    assert code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else(runs, folder, tmp_path):
    shutil.copytree(runs[2], tmp_path / "c")
    before = sorted(p.name for p in (tmp_path / "c").iterdir())
    with pytest.raises(ValueError, match="no blend"):
        blend_runs(runs[:2], folder, tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == before
    blend_runs(runs[:2], folder, tmp_path / "ab")
    for change in (dict(mean="logit"), dict(weights=(1, 2)), dict(weights="find")):
        with pytest.raises(ValueError, match="holds another blend"):
            blend_runs(runs[:2], folder, tmp_path / "ab", **change)
    with pytest.raises(ValueError, match="predictions of its runs are others"):
        blend_runs(runs[1:], folder, tmp_path / "ab")


# ---- killed and started again

KILLED = """
import os, sys
from steel_seg import cli
from steel_seg.store import ProbStore
whole_write, left = ProbStore.write, int(sys.argv[1])
def write(store, image_id, levels):
    global left
    if not left:
        os._exit(9)
    left -= 1
    whole_write(store, image_id, levels)
ProbStore.write = write
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("writes", [0, 7, 32])
def test_killed_and_started_again_it_goes_on(runs, folder, tmp_path, capsys, writes):
    "Killed before the first image, among the training images, and among the test images."
    options = ["--data", str(folder.root), "--weights", "find", "--sample", "20"]
    command = ["blend", *map(str, runs[:2]), *options, "--out", str(tmp_path / "killed")]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(writes), *command], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    before = {kind: (tmp_path / "killed" / kind).exists() for kind in ALL}
    assert before == {"oof": True, "test": writes > 30}
    chunks = {}
    for store in [ProbStore.open(tmp_path / "killed" / kind) for kind in ALL if before[kind]]:
        paths = [store.path / f"probs/c.{row}.0.0.0" for row in np.flatnonzero(store.finished())]
        chunks |= {path: path.stat().st_mtime_ns for path in paths}
    assert writes - 1 <= len(chunks) <= writes  # one of two threads may have been killed with its image
    assert cli.main(command) == 0
    assert all(p.stat().st_mtime_ns == t for p, t in chunks.items())
    assert cli.main([*command[:-1], str(tmp_path / "whole")]) == 0
    for kind in ALL:
        a, b = (ProbStore.open(tmp_path / run / kind) for run in ("killed", "whole"))
        assert a.fingerprint() == b.fingerprint() and not a.missing()
    for name in ("config.json", "folds.csv", "blend.csv", "blend_pairs.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---- a blend is a run


@pytest.fixture(scope="module")
def blend(runs, folder):
    out = folder.root.parent / "ab"
    blend_runs(runs[:2], folder, out)
    return out


def test_its_record(blend, runs, folder):
    made = read_json(blend / "config.json")
    assert (made["data"], made["classes"], made["shape"], made["images"]) == (folder.sha256, 4, [64, 128], 30)
    assert made["versions"]["numpy"] == np.__version__
    record = made["blend"]
    assert [Path(run).name for run in record["runs"]] == ["a", "b"] and record["weights"] == [0.5, 0.5]
    assert (record["mean"], record["how"]) == ("probability", "equal") and "config" not in made
    assert (blend / "folds.csv").read_bytes() == (runs[0] / "folds.csv").read_bytes()


def test_decide_and_submit(blend, folder, capsys):
    chain = ["--data", str(folder.root), "--run", str(blend)]
    assert cli.main(["decide", *chain, "--json"]) == 0
    decided = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cli.main(["submit", *chain, "--json"]) == 0
    submitted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert submitted["errors"] == 0 and not submitted["oof"]
    page = Path(decided["report"]).read_text()
    assert "<h2>Blend</h2>" in page and "b alone" in page and "2 runs, mean of probability" in page
    opened = open_run(blend, folder)
    scores = nested_dice(opened.curves, opened.fold)
    table, _ = read_tables(blend) or pytest.fail("the tables are missing")
    assert table.score["this blend"] == pytest.approx(scores.mean(), abs=1e-12)


def test_widgets_take_it_and_compare_it_with_its_part(blend, runs, folder):
    tuner = Tuner(blend, folder)
    assert len(tuner.rules) == 4 and tuner.opened.store.path == blend / "oof"
    for run, other in ((blend, runs[0]), (runs[0], blend), (runs[0], runs[2])):
        browser = Browser(run, folder, rules=[Rule(thresh=128)] * 4, other=other)
        whole = mask_disagreement(open_run(run, folder), open_run(other, folder), [Rule(thresh=128)] * 4)
        bound = browser.table["disagreement"]
        assert list(bound.index) == list(whole.index) and (bound <= whole + 1e-12).all() and bound.max() > 0
        browser.sort = "disagreement"
        assert browser.ids[0] == bound.idxmax()


def test_the_other_run_of_a_browser_brings_its_own_classifier(blend, runs, folder, tmp_path):
    shutil.copytree(runs[2], tmp_path / "c")
    table = pd.DataFrame({"image_id": folder.images.image_id, **{f"class_{c}": 0.9 for c in range(1, 5)}})
    table.to_csv(tmp_path / "c" / "oof_scores.csv", index=False)
    write_rules(tmp_path / "c" / "rule.json", [Rule(thresh=128, gate_by="score", gate=100)] * 4)
    gated = Browser(blend, folder, other=tmp_path / "c").table["disagreement"]
    (tmp_path / "c" / "rule.json").unlink()
    assert gated.equals(Browser(blend, folder, other=tmp_path / "c").table["disagreement"])


def test_a_blend_of_blends(blend, runs, folder, tmp_path, capsys):
    command = ["blend", blend, runs[2], "--data", folder.root, "--out", tmp_path / "abc", "--weights", "2,1", "--json"]
    assert cli.main([str(part) for part in command]) == 0
    out = capsys.readouterr().out
    assert "a blend, mean of probability, weights equal" in out and "0.500 (0.333 of the whole)" in out
    result = json.loads(out.splitlines()[-1])
    assert result["weights"] == pytest.approx([2 / 3, 1 / 3]) and result["table"]["this blend"]["gain"] is None
    assert len(made_of(read_blend(tmp_path / "abc") or {})) == 5
    of_blend, of_c, found = (ProbStore.open(run / "test") for run in (blend, runs[2], tmp_path / "abc"))
    for image_id in found.image_ids:
        slow = np.rint((2.0 * of_blend.read(image_id) + of_c.read(image_id)) / 3)
        assert np.array_equal(found.read(image_id), slow * (slow >= FLOOR))


def test_class_scores_are_averaged_where_all_have_them(runs, folder, tmp_path):
    for name, seed, kinds in (("a", 0, ALL), ("b", 1, ALL[:1])):
        shutil.copytree(runs[seed], tmp_path / name)
        for kind in kinds:
            ids = ProbStore.open(runs[seed] / kind).image_ids
            probs = np.random.default_rng(seed).random((len(ids), 4))
            table = pd.DataFrame(probs, columns=[f"class_{c}" for c in range(1, 5)])
            table.insert(0, "image_id", ids)
            table[::-1].to_csv(tmp_path / name / f"{kind}_scores.csv", index=False)
    done = blend_runs([tmp_path / "a", tmp_path / "b"], folder, tmp_path / "ab", weights=(3, 1))
    assert done.notes == (f"no test_scores.csv: {tmp_path / 'b'} has none",)
    of_a, of_b, found = (
        pd.read_csv(tmp_path / name / "oof_scores.csv", index_col=0).sort_index() for name in ("a", "b", "ab")
    )
    assert np.allclose(found, (3 * of_a + of_b) / 4, atol=1e-6) and not (tmp_path / "ab/test_scores.csv").exists()


def test_what_a_blend_cannot_do_is_said(blend, folder, capsys):
    for command in ("train", "predict"):
        assert cli.main([command, "--data", str(folder.root), "--run", str(blend)]) == 2
        err = capsys.readouterr().err
        assert "is a blend of" in err and "has no nets of its own" in err and len(err.splitlines()) == 1
    lines = progress_lines(read_progress(blend))
    assert len(lines) == 1 and "it is a blend of" in lines[0] and "nothing is trained in it" in lines[0]


def test_it_needs_no_torch(blend):
    code = "import sys, steel_seg.blend_weights; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0
