"""Two submissions out of several runs: the draws against a slow loop and closed forms, planted copies, and the command
from decided runs to two checked files."""

import json
import re
import shutil
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from made import make_run

from steel_seg import cli
from steel_seg.data import read_folder
from steel_seg.metric import paired_difference
from steel_seg.open_run import make_up_run
from steel_seg.post import Rule, read_rules, write_rules
from steel_seg.store import ProbStore
from steel_seg.synth import make_folder
from steel_seg.two_submissions import (
    choose_two,
    expected_maxima,
    fresh_means,
    optimism,
    read_choice,
    redrawn_means,
    run_dice,
    run_scores,
)


def rng(seed=0):
    return np.random.default_rng(seed)


# draws


def test_draws_are_those_of_a_slow_loop():
    values, size = rng(1).random((3, 17)), 11
    slow, own = [], rng(5)
    for _ in range(4):
        again = own.integers(17, size=17)
        picked = own.integers(17, size=(6, size))
        slow.append([[sum(run[again[k]] for k in row) / size for run in values] for row in picked])
    np.testing.assert_allclose(redrawn_means(values, size, rng(5), 4, 6), slow, atol=1e-12)


def test_blocks_leave_no_seam_and_bound_the_memory():
    values, size = rng(1).random((4, 12_568)), 5506
    tracemalloc.start()
    means = fresh_means(values, size, rng(2), 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6, f"{peak / 1e6:.0f} MB"  # all draws at once take more
    picked, n_block = rng(2), 2**21 // 12_568
    for k in range(0, 1000, n_block):
        last = picked.integers(12_568, size=(min(n_block, 1000 - k), size))
    np.testing.assert_allclose(means[-1], values[:, last[-1]].mean(1), atol=1e-12)


def test_the_maximum_of_two_normals_has_a_closed_form():
    "Independent with one mean and spread: mean + spread / sqrt(pi). Correlated: spread of the difference / sqrt(2 pi)."
    n, size = 4000, 500
    for correlation in (0, 0.7):
        own, common = rng(3).normal(size=(2, n)), rng(4).normal(size=n)
        pair = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * common
        pair = 0.5 + pair - pair.mean(1, keepdims=True)
        spread = (pair[1] - pair[0]).std() / np.sqrt(size)
        assert spread == pytest.approx(np.sqrt(2 * (1 - correlation) / size), rel=0.05)
        means = fresh_means(pair, size, rng(6), 20_000)
        found = expected_maxima(means)
        assert found[0, 1] - found[0, 0] / 2 - found[1, 1] / 2 == pytest.approx(spread / np.sqrt(2 * np.pi), rel=0.02)
        assert found[0, 1] == found[1, 0]


def test_with_a_redraw_of_the_images_two_variances_add_up():
    pair = rng(3).normal(size=(2, 200))
    pair -= pair.mean(1, keepdims=True)
    fresh = redrawn_means(pair, 800, rng(1), 3000, 2).reshape(-1, 2)
    spread = (pair[1] - pair[0]).std() * np.sqrt(1 / 200 + 1 / 800)
    assert np.maximum(0, fresh[:, 1] - fresh[:, 0]).mean() == pytest.approx(spread / np.sqrt(2 * np.pi), rel=0.06)


# the choice


def scores_of(n=1500, seed=0):
    "A best run, a near-copy of it, one that is worse but errs elsewhere, and one that is far behind."
    own = 0.08 * rng(seed).normal(size=(3, n))
    own -= own.mean(1, keepdims=True)
    copy = own[0] - 0.01 * (np.arange(n) % 10 == 0)
    return np.clip([0.8 + own[0], 0.8 + copy, 0.797 + own[1], 0.7 + own[2]], 0, 1)


def test_a_near_copy_has_the_second_best_score_and_adds_less_than_a_worse_but_different_run():
    choice = choose_two(["best", "copy", "other", "poor"], scores_of(), 700, rng())
    table = choice.table
    assert list(table.index) == ["best", "copy", "other", "poor"]
    assert (choice.first, choice.second) == ("best", "other")
    assert table.gain["copy"] < 1e-5 < 5e-4 < table.gain["other"]
    assert table.maximum["other"] == pytest.approx(table.score["best"] + table.gain["other"])
    assert table.correlation["copy"] > 0.99 > 0.2 > table.correlation["other"]
    assert "inside the noise of it, so perhaps as good: other\n" in str(choice)


def test_copies_of_the_first_add_nothing_to_the_last_bit():
    best, _, other, _ = scores_of()
    for n_copies in (1, 3, 8):  # a matrix product may sum columns in other orders
        names = [*(f"copy {k}" for k in range(n_copies)), "other", "best"]
        table = choose_two(names, np.array([*[best] * n_copies, other, best]), 300, rng()).table
        copies = table.drop("other")[1:]
        assert (copies[["gain", "gain_low", "gain_high", "difference", "difference_high"]] == 0).all(axis=None)
        assert (copies.better == 0.5).all() and table.submission["other"] == 2


def test_only_copies_leave_nothing_to_choose():
    choice = choose_two(["a", "b", "c"], scores_of()[[0, 0, 0]], 300, rng())
    assert (choice.first, choice.second) == ("a", "b") and "that is nothing" in str(choice)
    assert choice.table.optimism.iloc[0] == 0


def test_differences_are_paired_and_the_score_is_the_mean():
    scores = scores_of()
    table = choose_two(list("abcd"), scores, 300, rng(8)).table
    np.testing.assert_allclose(table.score[list("abcd")], scores.mean(1), atol=1e-12)
    expected = paired_difference(scores[2], scores[0], rng(rng(8).integers(2**32)))
    assert tuple(table.loc["c", ["difference", "difference_low", "difference_high"]]) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-12
    )


def test_nothing_depends_on_the_order_or_the_names_of_the_runs():
    scores, order = scores_of(), [2, 0, 3, 1]
    a = choose_two(list("abcd"), scores, 300, rng())
    b = choose_two([list("abcd")[k] for k in order], scores[order], 300, rng())
    pd.testing.assert_frame_equal(a.table, b.table, check_exact=True)
    pd.testing.assert_frame_equal(a.pairs, b.pairs, check_exact=True)
    c = choose_two(list("wxyz"), scores, 300, rng()).table
    np.testing.assert_array_equal(a.table.to_numpy(), c.to_numpy())


def test_equal_runs_that_were_picked_are_known_to_be_too_good():
    "Twenty runs that differ by luck only: the best is too high, and the estimate is within a factor of 1.5."
    true, found = [], []
    for seed in range(30):
        scores = np.clip(0.8 + 0.05 * rng(seed).normal(size=(20, 300)), 0, 1)
        true.append(scores.mean(1).max() - 0.8)
        found.append(optimism(scores, rng(seed), 200))
    assert 1 / 1.5 < np.mean(found) / np.mean(true) < 1.05


def test_public_scores_warn_and_never_choose():
    scores, names = scores_of(), ["best", "copy", "other", "poor"]
    plain = choose_two(names, scores, 700, rng())
    for public, words in (
        ({"best": 0.81, "other": 0.80}, "the board agrees"),
        ({"best": 0.80, "other": 0.802, "copy": 0.7}, "only the board speaks for other.*inside that noise.*told apart"),
        ({"best": 0.80, "poor": 0.99}, "only the board speaks for poor.*beyond that noise.*it is lower"),
    ):
        warned = choose_two(names, scores, 700, rng(), public, public_images=200)
        pd.testing.assert_frame_equal(warned.table[plain.table.columns], plain.table)
        assert re.search(words, str(warned)) and ("among the best 19" in str(warned)) == ("board speaks" in words)
    error = (scores[2] - scores[0]).std() / np.sqrt(200)
    assert warned.table.public_error.isna()["other"] and np.isfinite(warned.table.public_error["poor"])
    again = choose_two(names, scores, 700, rng(), {"best": 0.8, "other": 0.9}, public_images=200)
    assert again.table.public_error["other"] == pytest.approx(error)
    default = choose_two(names, scores, 700, rng(), {"best": 0.8, "other": 0.9}).table.public_error["other"]
    assert default == pytest.approx((scores[2] - scores[0]).std() / np.sqrt(round(700 * 1801 / 5506)))


# from run folders


def steel_seg(capsys, *argv):
    "Exit code, stdout and the last line of stderr."
    code = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err.strip().splitlines()[-1] if err.strip() else ""


def write_store(path, folder, image_ids, levels_of):
    store = ProbStore.create(path, image_ids, folder.n_classes, folder.shape)
    for image_id in image_ids:
        store.write(image_id, levels_of(image_id))


def predict_test(run, folder, seed):
    "Made-up predictions of the test images: a box somewhere."
    own = rng(seed)

    def levels(image_id):
        maps = np.zeros((folder.n_classes, *folder.shape), np.uint8)
        maps[own.integers(folder.n_classes), 10:50, 20 : 60 + 10 * seed] = 220
        return maps

    write_store(run / "test", folder, list(folder.test.image_id), levels)


def near_copy(source, run, folder):
    "A run like another, but blind to all classes of every eighth image."
    run.mkdir()
    shutil.copy(source / "folds.csv", run)
    store, ids = ProbStore.open(source / "oof"), list(folder.images.image_id)
    write_store(run / "oof", folder, ids, lambda i: store.read(i) // (1 + 9 * (ids.index(i) % 8 == 0)))


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    "A data folder and three decided runs with submissions: `a`, a near-copy of it, and another net `c`."
    top = tmp_path_factory.mktemp("choose")
    data = make_folder(top / "data", n_train=60, n_test=5, shape=(64, 128), seed=4)
    folder = read_folder(data)
    make_up_run(top / "a", folder, rng(1))
    near_copy(top / "a", top / "b", folder)
    make_up_run(top / "c", folder, rng(2))
    for seed, name in enumerate("abc"):
        predict_test(top / name, folder, seed)
        for command in ("decide", "submit"):
            assert cli.main([command, "--data", str(data), "--run", str(top / name)]) == 0
    return top


@pytest.fixture
def copied(decided, tmp_path):
    "The same folders, to be changed."
    return shutil.copytree(decided, tmp_path / "copied")


def test_scores_are_those_that_decide_stated(decided):
    folder = read_folder(decided / "data")
    runs = [decided / name for name in "abc"]
    scores = run_scores(runs, folder)
    stated = [read_rules(run / "rule.json")[1]["nested"]["value"] for run in runs]
    np.testing.assert_allclose(scores.mean(1), stated, atol=1e-12)
    assert scores.shape == (3, 60)


def test_from_decided_runs_to_two_files(capsys, decided, tmp_path):
    runs, out = [decided / name for name in "bca"], tmp_path / "final"
    argv = ["choose", *runs, "--data", decided / "data", "--seed", "3", "--out", out, "--json"]
    code, text, _ = steel_seg(capsys, *argv)
    found = json.loads(text.splitlines()[-1])
    assert code == 0 and found["images"] == 5
    order = [row["run"] for row in found["table"]]
    assert found["first"] == str(decided / order[0])
    assert [row["submission"] for row in found["table"]].count(None) == 1
    for k, run in enumerate((found["first"], found["second"]), 1):
        assert (out / f"submission_{k}.csv").read_bytes() == (decided / run / "submission.csv").read_bytes()
    assert found["submissions"] == [str(out / "submission_1.csv"), str(out / "submission_2.csv")]
    assert all(line in text for line in found["lines"])

    table = read_choice(out / "choose.csv")
    assert list(table.index) == order and table.images.eq(5).all()
    page = (decided / "a" / "report.html").read_text()
    assert page.count("<h2>Two submissions</h2>") == 1 and f"{table.score.iloc[0]:.4f}" in page

    kept = {p: p.read_bytes() for p in [*out.iterdir(), *(run / "report.html" for run in runs)]}
    assert steel_seg(capsys, *argv)[1] == text
    assert {p: p.read_bytes() for p in kept} == kept
    # a report that is written again shows it too
    assert cli.main(["decide", "--data", str(decided / "data"), "--run", str(decided / "a")]) == 0
    assert (decided / "a" / "report.html").read_text().count("<h2>Two submissions</h2>") == 1


def test_the_planted_copy_is_not_the_second(capsys, decided):
    runs = [decided / name for name in "abc"]
    code, text, _ = steel_seg(capsys, "choose", *runs, "--data", decided / "data", "--images", "40", "--json")
    found = json.loads(text.splitlines()[-1])
    gain = {row["run"]: row["gain"] for row in found["table"]}
    assert code == 0 and found["images"] == 40
    assert {found["first"], found["second"]} == {str(decided / "a"), str(decided / "c")}
    assert gain["b"] < max(gain["a"], gain["c"])


def test_what_is_missing_is_named_and_nothing_is_copied(capsys, copied, tmp_path):
    runs, out = [copied / name for name in "ac"], tmp_path / "final"
    argv = ["choose", *runs, "--data", copied / "data", "--out", out, "--json"]
    (copied / "c" / "submission.csv").unlink()
    code, text, _ = steel_seg(capsys, *argv)
    assert code == 1 and f"steel_seg submit --data {copied / 'data'} --run {copied / 'c'}\n" in text
    assert [p.name for p in out.iterdir()] == ["choose.csv"]
    # a submission with a fault is not copied either
    lines = (copied / "a" / "submission.csv").read_text().splitlines()
    (copied / "c" / "submission.csv").write_text("\n".join(lines[:-1]) + "\n")
    code, text, _ = steel_seg(capsys, *argv)
    assert code == 1 and "missing: submission.csv has no row" in text and "nothing was copied" in text
    assert [p.name for p in out.iterdir()] == ["choose.csv"]


def test_public_scores_from_a_csv(capsys, decided, tmp_path):
    runs = [decided / name for name in "abc"]
    argv = ["choose", *runs, "--data", decided / "data", "--public", tmp_path / "public.csv", "--json"]
    (tmp_path / "public.csv").write_text("run,public\nb,0.93\na,0.91\nc,0.90\nan older one,0.95\n")
    code, text, _ = steel_seg(capsys, *argv, "--public-images", "20")
    found = json.loads(text.splitlines()[-1])
    assert code == 0 and any("only the board speaks for b" in line for line in found["lines"])
    scores = run_scores(runs, read_folder(decided / "data"))
    row = next(row for row in found["table"] if row["run"] == "b")
    first = "abc".index(found["table"][0]["run"])
    assert row["public_error"] == pytest.approx((scores[1] - scores[first]).std() / np.sqrt(20))
    (tmp_path / "public.csv").write_text("run,public\nb,93\n")
    code, _, err = steel_seg(capsys, *argv)
    assert code == 2 and "public.csv row 2: '93' is not a score" in err


def no_rule(run):
    (run / "rule.json").unlink()


def tuned_by_hand(run):
    _, facts = read_rules(run / "rule.json")
    write_rules(run / "rule.json", [Rule()] * 4, score=0.9, data_sha256=facts["data_sha256"])


def of_unknown_data(run):
    rules, facts = read_rules(run / "rule.json")
    del facts["data_sha256"]
    write_rules(run / "rule.json", rules, **facts)


def other_predictions(run):
    store = ProbStore.open(run / "oof")
    levels = {i: store.read(i) // 2 for i in store.image_ids}
    shutil.rmtree(run / "oof")
    store = ProbStore.create(run / "oof", list(levels), *(store.shape[1], store.shape[2:]))
    for image_id, half in levels.items():
        store.write(image_id, half)


def other_folds(run):
    folds = pd.read_csv(run / "folds.csv")
    folds.assign(fold=(np.arange(len(folds)) % 3)).to_csv(run / "folds.csv", index=False)


def stated_otherwise(run):
    text = (run / "rule.json").read_text()
    (run / "rule.json").write_text(re.sub(r'("nested": \{\s*"value": )[\d.]+', r"\g<1>0.5", text))


REFUSED = {
    no_rule: "has no rule.json",
    of_unknown_data: "was not decided on the data in",
    tuned_by_hand: "has no rules of each fold with their score, as after tuning by hand",
    other_predictions: "oof/ changed after it was decided",
    other_folds: "folds.csv changed after it was decided",
    stated_otherwise: "states a nested score of 0.500000",
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_run_that_is_not_what_was_decided_is_refused_by_name(capsys, copied, change):
    (copied / "a" / "choose.csv").unlink(missing_ok=True)  # of another test
    change(copied / "c")
    code, out, err = steel_seg(capsys, "choose", copied / "a", copied / "c", "--data", copied / "data")
    assert code == 2 and REFUSED[change] in err and str(copied / "c") in err and out == ""
    assert f"run `steel_seg decide --data {copied / 'data'} --run {copied / 'c'}` first" in err
    assert not (copied / "a" / "choose.csv").exists()


def test_a_run_of_other_data_or_other_images_is_refused_by_name(capsys, copied, tmp_path):
    other = make_run(tmp_path / "other", n=8, shape=(64, 128), classes=4)
    (other / "folds.csv").write_text("image_id,fold\n" + "".join(f"{k:04}.png,{k % 2}\n" for k in range(8)))
    assert cli.main(["decide", "--data", str(other / "data"), "--run", str(other)]) == 0
    code, _, err = steel_seg(capsys, "choose", copied / "a", other, "--data", copied / "data")
    assert code == 2 and f"{other}: was not decided on the data in {copied / 'data'}" in err

    few, folder = tmp_path / "few", read_folder(copied / "data")
    ids = list(folder.images.image_id)[:40]
    make_up_run(few, folder, rng(5), ids)
    (few / "folds.csv").write_text("image_id,fold\n" + "".join(f"{i},{k % 2}\n" for k, i in enumerate(ids)))
    assert cli.main(["decide", "--data", str(copied / "data"), "--run", str(few)]) == 0
    code, _, err = steel_seg(capsys, "choose", copied / "a", few, "--data", copied / "data")
    assert code == 2 and f"{few}: predicts 40 images, {copied / 'a'} 60" in err


def test_one_run_and_the_same_run_twice_are_refused(capsys, decided):
    code, _, err = steel_seg(capsys, "choose", decided / "a", "--data", decided / "data")
    assert code == 2 and "give two or more" in err
    code, _, err = steel_seg(capsys, "choose", decided / "a", decided / "b" / ".." / "a", "--data", decided / "data")
    assert code == 2 and "is given twice" in err
    code, _, err = steel_seg(
        capsys, "choose", decided / "a", decided / "c", "--data", decided / "data", "--images", "0"
    )
    assert code == 2 and "0 fresh images" in err


def test_a_run_with_a_gate_needs_its_classifier(capsys, copied):
    "Levels that know the truth: the gate is worth something, so the nested score differs from that without it."
    folder, run = read_folder(copied / "data"), copied / "c"
    p = np.where(folder.truth_area() > 0, 0.9, 0.1)
    table = pd.DataFrame({"image_id": folder.images.image_id} | {f"p{k + 1}": p[:, k] for k in range(4)})
    table.to_csv(copied / "classifier.csv", index=False)
    table.assign(p1=0.5, p2=0.5, p3=0.5, p4=0.5).to_csv(copied / "other.csv", index=False)
    where = ["--data", str(copied / "data"), "--run", str(run), "--scores", str(copied / "classifier.csv")]
    assert cli.main(["decide", *where, "--gate", "score"]) == 0
    plain = run_scores([copied / "a"], folder)
    capsys.readouterr()

    argv = ["choose", copied / "a", run, "--data", copied / "data"]
    code, _, err = steel_seg(capsys, *argv)
    assert code == 2 and f"{run}/rule.json needs a classifier (gate by score)" in err and "classifier.csv" in err
    code, _, err = steel_seg(capsys, *argv, "--scores", copied / "other.csv")
    assert code == 2 and "give the csv that it was decided with, classifier.csv" in err
    for given in (["--scores", copied / "other.csv", "--scores", copied / "classifier.csv"], []):
        if not given:  # the file that `predict` leaves in a run
            shutil.copy(copied / "classifier.csv", run / "oof_scores.csv")
        code, text, err = steel_seg(capsys, *argv, *given, "--json")
        assert code == 0, err
        found = {row["run"]: row["score"] for row in json.loads(text.splitlines()[-1])["table"]}
        stated = read_rules(run / "rule.json")[1]["nested"]["value"]
        assert found == pytest.approx({"a": plain.mean(), "c": stated})
    _, dice = run_dice(run, folder)
    assert dice.shape == (60, 4)
