"""Pseudo labels: the rules against slow loops, no way for a true label to reach the net that is scored on it, and the
whole round from the command line."""

import json
import os
import shutil
import signal
from collections import deque
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_train import TINY, processes  # noqa: F401 (fixture)

from steel_seg import cli
from steel_seg.config import TrainConfig
from steel_seg.data import check_folder, read_folder
from steel_seg.folds import make_folds, read_folds, write_folds
from steel_seg.metric import dice, mask_counts
from steel_seg.post import Rule, apply_rules
from steel_seg.predict import predict_unlabelled, predict_unlabelled_scores
from steel_seg.pseudo_folder import (
    Request,
    is_made,
    make_pseudo,
    open_sources,
    plan_pseudo,
    pseudo_verdict,
    read_ledger,
    read_pseudo,
    read_seen,
    unlabelled_path,
    write_pseudo,
    write_seen,
)
from steel_seg.pseudo_rules import KEEPS, ImageLevels, Keep, grow, pseudo_label
from steel_seg.rle import rle_decode
from steel_seg.seen import seen_ids
from steel_seg.store import ProbStore
from steel_seg.synth import make_folder
from steel_seg.train import start_run, train_fold, train_run

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = replace(TINY, epochs=1, save_every=0)


# ---- the rules


def slow_grow(levels, low, high, connectivity):
    "A flood from every pixel at the high level, over pixels at the low level."
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y or x) and (connectivity == 8 or not (y and x))]
    grown, (h, w) = np.zeros(levels.shape, bool), levels.shape
    queue = deque(zip(*np.nonzero(levels >= high)))
    while queue:
        y, x = queue.popleft()
        if not (0 <= y < h and 0 <= x < w) or grown[y, x] or levels[y, x] < low:
            continue
        grown[y, x] = True
        queue += [(y + dy, x + dx) for dy, dx in steps]
    return grown


@pytest.mark.parametrize("connectivity", [4, 8])
def test_grow_is_a_flood(connectivity):
    rng = np.random.default_rng(0)
    for low, high in rng.integers(1, 256, (60, 2)):
        low, high = sorted((int(low), int(high)))
        levels = rng.integers(0, 256, (12, 17)).astype(np.uint8)
        np.testing.assert_array_equal(grow(levels, low, high, connectivity), slow_grow(levels, low, high, connectivity))


def slow_label(image, rules, mean_rules, keep):
    "What `pseudo_label` decides, from its description and not from its code: (mask, taken)."
    mask = apply_rules(image.mean, mean_rules)
    if keep.how == "all":
        return mask, True
    if keep.how == "pixels":
        low, high = np.ceil([255 * keep.low, 255 * keep.high])
        mask = np.stack([slow_grow(m, low, high, 8) for m in image.mean])
        for c, rule in enumerate(mean_rules):
            mask[c] &= mask[c].sum() >= rule.min_area
        return mask, all(mask[c].any() or image.mean[c].max() < low for c in range(len(mask)))
    for c in range(len(mask)):
        p = image.mean[c].max() / 255
        if not (p > keep.sure and mask[c].any() or p < 1 - keep.sure and not mask[c].any()):
            return mask, False
    of_runs = [apply_rules(levels, own) for levels, own in zip(image.levels, rules)]
    for a in of_runs:
        for b in of_runs:
            for c in range(len(mask)):
                total = a[c].sum() + b[c].sum()
                if total and 2 * (a[c] & b[c]).sum() / total < keep.agree:
                    return mask, False
    return mask, True


@pytest.mark.parametrize("how", KEEPS)
def test_labels_are_those_of_the_description(how):
    "Made-up runs, three of them, that agree and are sure more or less often."
    rng, taken = np.random.default_rng(1), 0
    for _ in range(300):
        levels = np.zeros((3, 2, 10, 14), np.uint8)
        for c in range(2):
            if rng.random() < 0.5:
                y, x = rng.integers(0, 5, 2)
                for r in range(3):
                    dy, dx = rng.integers(0, 2, 2)
                    levels[r, c, y + dy : y + dy + 5, x + dx : x + dx + 8] = rng.choice([254, 250, 240, 130])
            elif rng.random() < 0.3:
                levels[:, c, 2, 2] = rng.integers(0, 60)
        mean = np.rint(levels.mean(0)).astype(np.uint8)
        rules = [[Rule(thresh=int(t), min_area=int(a)) for t, a in rng.integers(20, 40, (2, 2))] for _ in range(3)]
        mean_rules = [Rule(thresh=100, min_area=int(a)) for a in rng.integers(1, 40, 2)]
        keep = Keep(how, sure=rng.choice([0.9, 0.95]), agree=rng.choice([0.5, 0.8]))
        image = ImageLevels(list(levels), [None] * 3, mean, None)
        label, (mask, take) = pseudo_label(image, rules, mean_rules, keep), slow_label(image, rules, mean_rules, keep)
        np.testing.assert_array_equal(label.mask, mask)
        assert (label.reason == "") == take, label
        taken += take
    assert taken == 300 if how == "all" else 30 < taken < 270


# ---- trained nets, each fold's labels by nets that did not see it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(
        make_folder(tmp_path_factory.mktemp("data") / "strips", n_train=24, n_test=5, shape=(32, 64), seed=5)
    )


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("first") / "run"
    train_run(run, folder, replace(ONE, class_head=0.5), progress=False)
    return run


def predict_and_make(out, request, folder, **options):
    "What the command does."
    plan = plan_pseudo(request, folder)
    for source in plan.sources.runs:
        for k in range(plan.sources.n_folds):
            predict_unlabelled(source.run, plan.unlabelled, k, request.tta, progress=False)
    for k in range(plan.sources.n_folds if request.classifier else 0):
        predict_unlabelled_scores(request.classifier, plan.unlabelled, k, request.tta, progress=False)
    return make_pseudo(out, plan, progress=False, **options)


@pytest.fixture(scope="module")
def labels(folder, run, tmp_path_factory):
    "Labels of round 1, all images."
    out = tmp_path_factory.mktemp("labels") / "labels"
    predict_and_make(out, Request((run,), keep=Keep("all")), folder)
    return out


def held_out(run, folder, k):
    folds = read_folds(run / "folds.csv", folder.images.image_id)
    return set(folds.image_id[folds.fold == k])


def test_labels_of_a_fold_are_those_of_its_net(folder, run, labels):
    for k in (0, 1):
        made = read_folder(labels / f"fold_{k}", n_classes=4)
        store = ProbStore.open(unlabelled_path(run, folder, k))
        assert made.images.image_id.tolist() == folder.test.image_id.tolist()
        assert "error" not in check_folder(made.root, 4).severity.tolist()
        for image_id in made.images.image_id:
            np.testing.assert_array_equal(made.mask(image_id), apply_rules(store.read(image_id), [Rule()] * 4))
        assert read_seen(labels / f"fold_{k}") == seen_ids(run / f"fold_{k}/best")
        assert not read_seen(labels / f"fold_{k}") & held_out(run, folder, k)
    both = [ProbStore.open(unlabelled_path(run, folder, k)) for k in (0, 1)]
    assert any((both[0].read(i) != both[1].read(i)).any() for i in folder.test.image_id), "two nets, two labels"


def test_a_folds_own_rule_makes_its_labels(folder, run, labels, tmp_path):
    "rule.json chooses a rule for each fold without the fold's images; the labels are made with it."
    from steel_seg.post import write_rules

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    of_fold = {0: Rule(thresh=20), 1: Rule(thresh=200)}
    facts = {k: [{"thresh": rule.thresh}] * 4 for k, rule in of_fold.items()}
    write_rules(copy / "rule.json", [Rule(thresh=128)] * 4, fold_rules=facts)
    predict_and_make(tmp_path / "labels", Request((copy,), keep=Keep("all")), folder)
    for k, rule in of_fold.items():
        made = read_folder(tmp_path / f"labels/fold_{k}", n_classes=4)
        store = ProbStore.open(unlabelled_path(copy, folder, k))
        for image_id in made.images.image_id:
            np.testing.assert_array_equal(made.mask(image_id), apply_rules(store.read(image_id), [rule] * 4))


def test_two_runs_and_their_mean(folder, run, tmp_path):
    "Weights of a blend reach the labels, and the class heads their mean."
    other = tmp_path / "other"
    start = replace(ONE, class_head=0.5, lr=3e-3)
    train_run(other, folder, start, progress=False)
    blend = tmp_path / "blend"
    blend.mkdir()
    record = {"runs": [str(run), str(other)], "weights": [0.75, 0.25], "mean": "probability"}
    (blend / "config.json").write_text(json.dumps({"blend": record, "data": folder.sha256}))
    predict_and_make(tmp_path / "labels", Request((blend,), keep=Keep("all")), folder)
    made = read_folder(tmp_path / "labels/fold_1", n_classes=4)
    for image_id in made.images.image_id:
        a, b = (ProbStore.open(unlabelled_path(r, folder, 1)).read(image_id).astype(float) for r in (run, other))
        np.testing.assert_array_equal(made.mask(image_id), np.rint(0.75 * a + 0.25 * b) >= 128)
    assert [r["weight"] for r in read_pseudo(tmp_path / "labels").made["runs"]] == [0.75, 0.25]


def test_the_ledger_knows_the_truth(folder, labels):
    "test_truth.csv beside the test images: Dice of the labels, by a slow loop."
    row = read_ledger(labels / "ledger.csv").iloc[0]
    assert (row["round"], row.images, row.taken, row.left_out) == (1, 5, 5, 0)
    truth = pd.read_csv(folder.root / "test_truth.csv", keep_default_na=False)
    scores = []
    for k in (0, 1):
        made = read_folder(labels / f"fold_{k}", n_classes=4)
        for image_id, class_id, rle in truth.itertuples(index=False):
            pair = made.mask(image_id)[class_id - 1], rle_decode(rle, folder.shape)
            scores.append(float(dice(*(n[0, 0] for n in mask_counts(pair[0][None, None], pair[1][None, None])))))
    assert row.truth_taken == pytest.approx(np.mean(scores)) and np.isnan(row.truth_left_out)


def test_images_left_out_are_listed(folder, run, labels, tmp_path):
    "Unlabelled strips from elsewhere; the nets of one epoch are sure of nothing, so limits are wide."
    strips = tmp_path / "strips"
    shutil.copytree(folder.root / "test_images", strips)
    shutil.copy(folder.images.path[0], strips / "copy.jpg")
    (strips / "broken.png").write_bytes(b"x")
    plan = plan_pseudo(Request((run,), strips, Keep("pixels", low=0.99, high=0.99)), folder)
    assert not is_made(tmp_path / "labels", plan)
    request = Request((run,), strips, Keep("pixels", low=0.99, high=0.99))
    row = predict_and_make(tmp_path / "labels", request, folder).iloc[0]
    rows = pd.read_csv(tmp_path / "labels/left_out.csv", dtype=str, keep_default_na=False)
    assert rows[rows.fold == "all"].reason.to_dict() == {0: "unreadable", 1: "labelled copy"}
    assert row.left_out == 2 + (rows.fold != "all").sum() / 2 and row.taken + row.left_out == row.images == 7
    with pytest.raises(ValueError, match="fold 0: no image can be taken with --keep confident"):
        predict_and_make(tmp_path / "none", replace(request, keep=Keep(sure=1.0)), folder)
    assert not (tmp_path / "none").exists()


def test_a_fold_without_labels_is_trained_on_true_labels_alone(folder, run, tmp_path):
    "Where it is allowed: the net of each fold is that of a run without pseudo labels."
    none = Request((run,), keep=Keep(sure=1.0))
    row = predict_and_make(tmp_path / "none", none, folder, allow_empty=True).iloc[0]
    assert (row.taken, row.left_out) == (0, row.images)
    assert is_made(tmp_path / "none", plan_pseudo(none, folder))
    said, plain = tmp_path / "said", tmp_path / "plain"
    train_run(said, folder, with_labels(tmp_path / "none"), progress=False)
    train_run(plain, folder, ONE, progress=False)
    for k in (0, 1):
        nets = [load_file(where / f"fold_{k}/last/model.safetensors") for where in (said, plain)]
        assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[1])
    assert len(read_ledger(said / "ledger.csv")) == 1
    (tmp_path / "none/fold_0/seen_ids.csv").write_text("image_id\n")
    with pytest.raises(ValueError, match="seen_ids.csv was changed"):
        train_run(tmp_path / "other", folder, with_labels(tmp_path / "none"), progress=False)


# ---- a classifier beside them

JUDGE = TrainConfig(
    task="classify",
    encoder="test_resnet.r160_in1k",
    encoder_weights=None,
    epochs=1,
    batch_size=4,
    folds=2,
    num_workers=0,
)


@pytest.fixture(scope="module")
def judge(folder, tmp_path_factory):
    "A run of classifiers with the folds of the run."
    judge = tmp_path_factory.mktemp("judge") / "judge"
    train_run(judge, folder, JUDGE, progress=False)
    return judge


def test_a_classifier_says_which_images_are_sure(folder, run, judge, tmp_path):
    "Its probabilities, fold by fold; a limit between them parts the images."
    request = Request((run,), keep=Keep("confident"), classifier=judge)
    plan = plan_pseudo(request, folder)
    image_ids = folder.test.image_id.tolist()
    probs = []
    for k in (0, 1):
        path = predict_unlabelled_scores(judge, folder, k, progress=False)
        table = pd.read_csv(path).set_index("image_id").loc[image_ids]
        probs.append(np.round(table.to_numpy(float) * 255) / 255)
    certainty = [np.maximum(p, 1 - p).min(1) for p in probs]  # of the least certain class of each image
    sure = float(np.median(np.concatenate(certainty)))
    request = replace(request, keep=Keep("confident", sure=sure, agree=0))
    row = predict_and_make(tmp_path / "labels", request, folder, allow_empty=True).iloc[0]
    assert row.keep == f"confident, sure by {judge}"
    left_out = pd.read_csv(tmp_path / "labels/left_out.csv", dtype={"fold": str})
    for k in (0, 1):
        of_fold = left_out[left_out.fold == str(k)]
        unsure = {i for i, c in zip(image_ids, certainty[k]) if c <= sure}
        assert set(of_fold.image_id[of_fold.reason == "unsure"]) == unsure
        assert set(of_fold.reason) <= {"unsure", "no mask", "a mask"}
        assert seen_ids(judge / f"fold_{k}/best") <= read_seen(tmp_path / f"labels/fold_{k}")
    assert 0 < (left_out.reason == "unsure").sum() < 2 * len(image_ids)
    assert plan.made != plan_pseudo(replace(request, classifier=None), folder).made
    with pytest.raises(ValueError, match="holds labels of other runs"):
        is_made(tmp_path / "labels", plan_pseudo(replace(request, classifier=None), folder))


def test_a_classifier_that_has_seen_the_fold_or_is_none_is_refused(folder, run, judge, tmp_path):
    copy, first = tmp_path / "copy", min(held_out(run, folder, 1))
    shutil.copytree(judge, copy)
    plant(copy, 1, first)
    with pytest.raises(ValueError, match=f"fold_1/best has seen {first}, which folds.csv puts into fold 1"):
        plan_pseudo(Request((run,), classifier=copy), folder)
    folds, _ = swapped_folds(folder)
    write_folds(tmp_path / "other/folds.csv", folds)
    train_run(tmp_path / "other", folder, JUDGE, progress=False)
    with pytest.raises(ValueError, match="run/folds.csv and .*other/folds.csv differ: .* is in other folds"):
        plan_pseudo(Request((run,), classifier=tmp_path / "other"), folder)
    with pytest.raises(ValueError, match="run is no classifier: --classifier takes"):
        plan_pseudo(Request((run,), classifier=run), folder)
    with pytest.raises(ValueError, match="is a classifier and makes no masks"):
        plan_pseudo(Request((judge,)), folder)


# ---- training on them


def with_labels(labels, **changes):
    return replace(ONE, sampler="pseudo", pseudo=str(labels), pseudo_share=0.3, **changes)


@pytest.fixture(scope="module")
def second(folder, run, labels, tmp_path_factory):
    "A run trained on the labels of round 1."
    second = tmp_path_factory.mktemp("second") / "run"
    train_run(second, folder, with_labels(labels), progress=False)
    return second


def test_nets_remember_what_was_seen(folder, run, second, labels):
    "Their own images and those behind their labels; here the same, since the folds are the same."
    for k in (0, 1):
        meta = json.loads((second / f"fold_{k}/best/steel_seg.json").read_text())["meta"]
        assert set(meta["seen_ids"]) == set(meta["train_ids"]) | read_seen(labels / f"fold_{k}")
        assert not set(meta["seen_ids"]) & held_out(second, folder, k)
    facts = json.loads((second / "config.json").read_text())
    assert facts["pseudo_round"] == 1 and (second / "ledger.csv").read_text() == (labels / "ledger.csv").read_text()


def test_each_fold_trains_on_its_own_labels(folder, run, labels, tmp_path):
    "Other labels for fold 1 change the net of fold 1 alone."
    from test_train import weights

    changed = tmp_path / "labels"
    shutil.copytree(labels, changed)
    text = (changed / "fold_1/train.csv").read_text().splitlines()
    rows = [
        line if k == 0 else line.split(",")[0] + ",1 900" * line.split(",")[0].endswith("_3")
        for k, line in enumerate(text)
    ]
    rows = [line if "," in line else line + "," for line in rows]
    (changed / "fold_1/train.csv").write_text("\n".join(rows) + "\n")
    made = read_pseudo(labels)
    write_pseudo(changed, made.round, made.made, 4, [0, 0])
    runs = [tmp_path / name for name in "ab"]
    for place, of_run in zip((labels, changed), runs):
        train_run(of_run, folder, with_labels(place), progress=False)
    assert weights(runs[0], fold=0) == weights(runs[1], fold=0) and weights(runs[0], fold=1) != weights(runs[1], fold=1)


def test_a_new_run_takes_the_folds_of_its_labels(folder, run, labels, tmp_path):
    "Another seed would make other folds, and be refused; the folder of labels has the right ones."
    start_run(tmp_path / "run", with_labels(labels, seed=9), folder)
    assert (tmp_path / "run/folds.csv").read_bytes() == (run / "folds.csv").read_bytes()
    start_run(tmp_path / "plain", replace(ONE, seed=9), folder)
    assert (tmp_path / "plain/folds.csv").read_bytes() != (run / "folds.csv").read_bytes()


def test_round_two_takes_runs_of_round_one(folder, second, labels, tmp_path):
    ledger = predict_and_make(tmp_path / "two", Request((second,), keep=Keep("all")), folder)
    assert ledger["round"].tolist() == [1, 2] and read_pseudo(tmp_path / "two").round == 2
    assert ledger.runs[1] == str(second)
    third = tmp_path / "third"
    start_run(third, with_labels(tmp_path / "two"), folder)
    assert json.loads((third / "config.json").read_text())["pseudo_round"] == 2
    assert len(read_ledger(third / "ledger.csv")) == 2


# ---- planted leaks: each is refused by the image's name, before anything is trained


def swapped_folds(folder):
    "The folds of the runs, with the first image of each fold in the other one; and the one that goes to fold 0."
    folds = make_folds(folder, 2, ONE.seed)
    a, b = (folds.index[folds.fold == k][0] for k in (0, 1))
    folds.loc[[a, b], "fold"] = [1, 0]
    return folds, folds.image_id[b]


def test_labels_of_a_run_with_other_folds_are_refused(folder, labels, tmp_path):
    run = tmp_path / "run"
    folds, first = swapped_folds(folder)
    write_folds(run / "folds.csv", folds)
    with pytest.raises(
        ValueError, match=f"fold_0: its labels come from nets that were trained on {first}, which .*run/folds.csv"
    ):
        train_run(run, folder, with_labels(labels), progress=False)
    assert not (run / "config.json").exists() and not (run / "fold_0").exists()


def test_folds_that_changed_after_the_start_are_refused(folder, labels, tmp_path):
    "The run was begun with the right folds; then folds.csv was replaced."
    run = tmp_path / "run"
    start_run(run, with_labels(labels), folder)
    folds, first = swapped_folds(folder)
    write_folds(run / "folds.csv", folds)
    with pytest.raises(ValueError, match=f"trained on {first}"):
        train_fold(run, folder, 0, progress=False)


def test_swapped_labels_are_refused(folder, labels, tmp_path):
    "The labels of fold 1 in the place of those of fold 0: they come from the net that was trained on fold 0."
    swapped = tmp_path / "labels"
    shutil.copytree(labels, swapped)
    for old, new in (("fold_0", "x"), ("fold_1", "fold_0"), ("x", "fold_1")):
        (swapped / old).rename(swapped / new)
    with pytest.raises(ValueError, match="fold_0 holds the labels made for fold 1"):
        train_run(tmp_path / "run", folder, with_labels(swapped), progress=False)
    # Even with a pseudo.json that was made to fit, the images that the nets have seen say it.
    made = read_pseudo(labels)
    write_pseudo(swapped, made.round, made.made, 4, [0, 0])
    first = min(held_out_by_folds(folder, 0))
    with pytest.raises(ValueError, match=f"trained on {first}"):
        train_run(tmp_path / "run", folder, with_labels(swapped), progress=False)


def held_out_by_folds(folder, k):
    folds = make_folds(folder, 2, ONE.seed)
    return set(folds.image_id[folds.fold == k])


def plant(run, k, image_id):
    "The best net of fold k says that it began from something that has seen an image."
    path = run / f"fold_{k}/best/steel_seg.json"
    text = json.loads(path.read_text())
    text["meta"]["seen_ids"] = sorted({*text["meta"].get("seen_ids", []), *text["meta"]["train_ids"], image_id})
    path.write_text(json.dumps(text))


def test_nets_that_saw_the_fold_in_an_earlier_life_make_no_labels(folder, run, tmp_path):
    "init_from or pseudo labels of an earlier round: the net's own images are right, and it has seen one more."
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    first = min(held_out(run, folder, 1))
    plant(copy, 1, first)
    with pytest.raises(ValueError, match=f"fold_1/best has seen {first}, which folds.csv puts into fold 1"):
        plan_pseudo(Request((copy,)), folder)


def test_labels_by_nets_that_saw_the_fold_in_an_earlier_life_are_refused(folder, labels, tmp_path):
    "The same, found when a net is trained on labels that such nets have made."
    leaky = tmp_path / "labels"
    shutil.copytree(labels, leaky)
    first = min(held_out_by_folds(folder, 1))
    write_seen(leaky / "fold_1", read_seen(leaky / "fold_1") | {first})
    with pytest.raises(ValueError, match="seen_ids.csv was changed"):
        train_run(tmp_path / "run", folder, with_labels(leaky), progress=False)
    made = read_pseudo(labels)
    write_pseudo(leaky, made.round, made.made, 4, [0, 0])
    with pytest.raises(ValueError, match=f"fold_1: its labels come from nets that were trained on {first}"):
        train_run(tmp_path / "run", folder, with_labels(leaky), progress=False)
    assert not (tmp_path / "run/config.json").exists()


def test_runs_with_different_folds_make_no_labels_together(folder, run, tmp_path):
    other = tmp_path / "other"
    folds, _ = swapped_folds(folder)
    write_folds(other / "folds.csv", folds)
    train_run(other, folder, ONE, progress=False)
    with pytest.raises(ValueError, match="run/folds.csv and .*other/folds.csv differ: .* is in other folds"):
        open_sources([run, other], folder)


def test_labels_whose_images_are_gone_are_refused(folder, labels, tmp_path):
    for name, remove, message in (
        ("no images", lambda where: [path.unlink() for path in where.iterdir()], "holds other labels than were made"),
        ("no folder", shutil.rmtree, "fold_1: cannot be used"),
    ):
        shutil.copytree(labels, tmp_path / name)
        remove(tmp_path / name / "fold_1/train_images")
        with pytest.raises(ValueError, match=message):
            train_run(tmp_path / f"run, {name}", folder, with_labels(tmp_path / name), progress=False)


def test_a_part_of_the_folder_or_one_without_its_record_is_refused(folder, labels, tmp_path):
    "Both look like plain data folders, and would be read without a check."
    with pytest.raises(ValueError, match="fold_1 holds the labels of one fold: give"):
        train_run(tmp_path / "a", folder, with_labels(labels / "fold_1"), progress=False)
    bare = tmp_path / "bare"
    shutil.copytree(labels, bare)
    (bare / "pseudo.json").unlink()
    with pytest.raises(ValueError, match="pseudo.json is missing"):
        train_run(tmp_path / "b", folder, with_labels(bare), progress=False)


# ---- killed, and what a round was worth


def _predict(run, folder, k, told):
    import torch

    import steel_seg.predict as module

    torch.set_num_threads(1)
    real = module._Keeper.__call__

    def keep(self, image_id, levels, classes):
        real(self, image_id, levels, classes)
        if k == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    module._Keeper.__call__ = keep
    for fold in (0, 1):
        k = fold
        predict_unlabelled(run, folder, fold, progress=False, batch_size=1)


@pytest.mark.kill
def test_a_killed_prediction_goes_on(folder, run, labels, processes, tmp_path):
    "Killed after the first image of fold 1: what was there stays, and the labels are those of a calm run."
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "unlabelled")
    child = processes.Process(target=_predict, args=(copy, folder, 0, None))
    child.start()
    child.join(100)
    assert child.exitcode == -signal.SIGKILL
    stores = [ProbStore.open(unlabelled_path(copy, folder, k)) for k in (0, 1)]
    assert [len(store.missing()) for store in stores] == [0, 4]
    before = [p.stat().st_mtime_ns for p in stores[0].path.rglob("c.*")]
    predict_and_make(tmp_path / "labels", Request((copy,), keep=Keep("all")), folder)
    assert [p.stat().st_mtime_ns for p in stores[0].path.rglob("c.*")] == before
    for k in (0, 1):
        assert (tmp_path / f"labels/fold_{k}/train.csv").read_bytes() == (labels / f"fold_{k}/train.csv").read_bytes()


def test_made_once(folder, run, labels, tmp_path):
    "The same again finds its work done; other settings are not mixed in."
    plan = plan_pseudo(Request((run,), keep=Keep("all")), folder)
    before = {p: p.stat().st_mtime_ns for p in labels.rglob("*")}
    make_pseudo(labels, plan, progress=False)
    assert {p: p.stat().st_mtime_ns for p in labels.rglob("*")} == before
    with pytest.raises(ValueError, match="holds labels of other runs, images or settings"):
        is_made(labels, plan_pseudo(Request((run,), keep=Keep("pixels")), folder))


def test_a_verdict_is_right_as_often_as_it_says():
    "No difference is called one in some 5% of rounds; a clear one is found."
    rng, words = np.random.default_rng(0), []
    for _ in range(200):
        before = rng.uniform(0.3, 0.8, (150, 4))
        words.append(pseudo_verdict(before, before + rng.normal(0, 0.05, before.shape), rng).words)
    assert 180 <= words.count("cannot be told apart: stop") <= 197
    for gain, said in ((0.02, "helps"), (-0.02, "harms: stop")):
        after = before + rng.normal(gain, 0.05, before.shape)
        verdict = pseudo_verdict(before, after, rng)
        assert verdict.words == said and verdict.difference.value == pytest.approx((after - before).mean())


def test_a_round_from_the_command_line(tmp_path, capsys):
    "train, predict, decide; pseudo; train on its labels, predict, decide; the verdict in the ledger and the report."
    data, config = tmp_path / "data", tmp_path / "config.json"

    def says(*line):
        assert cli.main([str(x) for x in line]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    says("synth", data, "--n-train", 16, "--n-test", 4, "--shape", "32x64", "--seed", 3)
    config.write_text(replace(ONE, epochs=1).to_json())
    first, second, labels = (tmp_path / name for name in ("first", "second", "labels"))

    def chain(run, *options):
        where = ["--data", data, "--run", run]
        says("train", *where, "--config", config, *options)
        says("predict", *where, "--tta", "none")
        says("decide", *where)

    chain(first)
    out = says("pseudo", first, "--data", data, "--out", labels, "--keep", "all", "--tta", "none")
    assert "round 1" in out and f"--pseudo {labels}" in out and f"masks by {first}/rule.json" in out
    chain(second, "--sampler", "pseudo", "--pseudo", labels)
    assert "not judged yet" in (second / "report.html").read_text()
    last = says("pseudo-ledger", first, second, "--data", data, "--json").splitlines()[-1]
    verdict = json.loads(last)
    table = read_ledger(second / "ledger.csv")
    assert table.verdict.tolist() == [verdict["verdict"]]
    assert read_ledger(labels / "ledger.csv").verdict.tolist() == [""]  # each net has a verdict of its own
    scores = [json.loads((r / "rule.json").read_text())["facts"]["nested"]["value"] for r in (first, second)]
    assert [table.before[0], table.after[0]] == pytest.approx(scores)
    report = (second / "report.html").read_text()
    assert "not judged yet" not in report and verdict["verdict"] in report and report.count("<h2>Pseudo labels") == 1
    assert cli.main(["pseudo-ledger", str(second), str(first), "--data", str(data)]) == 2
    assert "first has no ledger.csv" in capsys.readouterr().err
