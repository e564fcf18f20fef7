"""metric against smp's f1_score, numbers worked by hand, and a simulation whose true score is known."""

import numpy as np
import pytest

from steel_seg.metric import Interval, bootstrap_ci, dice, mask_counts, paired_difference, score_table


def random_pairs(seed, shape=(12, 4, 9, 11)):
    "Predictions and labels where empty, full, missed and falsely alarmed pairs all occur."
    rng = np.random.default_rng(seed)

    def density():
        return rng.choice([0, 0, 0.1, 0.5, 1], (*shape[:2], 1, 1))

    return rng.random(shape) < density(), rng.random(shape) < density()


def strips(rng, n, skill=0.6):
    "Dice (n,4) whose rows hang together, as the classes of one strip do, and labels (n,4)."
    truth = rng.random((n, 4)) < 0.3
    hard = rng.random((n, 1))
    return np.where(truth, skill * (1 - hard) + 0.2 * rng.random((n, 4)), rng.random((n, 4)) > 0.2 * hard), truth


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_smp(seed):
    import torch
    from segmentation_models_pytorch import metrics

    pred, truth = random_pairs(seed)
    d = dice(*mask_counts(pred, truth))
    stats = metrics.get_stats(torch.tensor(pred).long(), torch.tensor(truth).long(), mode="multilabel")
    assert np.allclose(d, metrics.f1_score(*stats, reduction=None, zero_division=1).numpy(), atol=1e-6)
    assert np.isclose(
        d.mean(), float(metrics.f1_score(*stats, reduction="macro-imagewise", zero_division=1)), atol=1e-6
    )
    assert not np.isclose(
        d.mean(), float(metrics.f1_score(*stats, reduction="micro", zero_division=1)), atol=0.01
    )  # batch Dice is another number
    kinds = [(pred[t].any(), truth[t].any()) for t in np.ndindex(pred.shape[:2])]
    assert len(set(kinds)) == 4


def test_counts_agree_with_a_loop_over_pixels():
    pred, truth = random_pairs(9, (3, 2, 4, 5))
    area, hit, labelled = mask_counts(pred.astype(np.uint8) * 255, truth.astype(np.int32) * -3)
    assert area.dtype == hit.dtype == labelled.dtype == np.int64 and area.shape == (3, 2)
    for n, c in np.ndindex(3, 2):
        pixels = [(bool(pred[n, c, y, x]), bool(truth[n, c, y, x])) for y in range(4) for x in range(5)]
        assert (area[n, c], hit[n, c], labelled[n, c]) == (
            sum(p for p, _ in pixels),
            sum(p and t for p, t in pixels),
            sum(t for _, t in pixels),
        )


@pytest.mark.parametrize(
    "area, hit, truth, expected",
    [
        (80, 60, 100, 120 / 180),
        (1, 1, 1, 1),
        (3, 2, 3, 4 / 6),
        (0, 0, 0, 1),
        (1, 0, 0, 0),
        (0, 0, 1, 0),
        (409600, 548, 548, 1096 / 410148),
        (np.uint8(255), np.uint8(200), np.uint8(250), 400 / 505),
        (np.int32(2**31 - 1), np.int32(2**31 - 1), np.int32(2**31 - 1), 1),
    ],
)
def test_dice_worked_by_hand(area, hit, truth, expected):
    assert dice(area, hit, truth) == pytest.approx(expected, abs=1e-15)
    assert isinstance(dice(area, hit, truth), np.float64)


def test_dice_broadcasts():
    area = np.array([[0, 10], [20, 30]])
    assert np.array_equal(dice(area, 0, [0, 5]), [[1, 0], [0, 0]])
    assert dice(area[..., None], 0, np.zeros(7)).shape == (2, 2, 7)
    assert dice(np.zeros((0, 4)), 0, 0).shape == (0, 4)


@pytest.mark.parametrize(
    "area, hit, truth, says",
    [
        (5, 6, 9, r"at \(\): area 5, hit 6, truth 9"),
        (9, 6, 5, "hit 6, truth 5"),
        ([1, -1], 0, 0, r"at \(1,\): area -1"),
        (1, -1, 1, "hit -1"),
        (1, 0, -1, "truth -1"),
        (np.nan, 0, 0, "area nan"),
        (1, np.nan, 1, "hit nan"),
        (np.inf, 0, 0, "area inf"),
        (np.zeros(3), np.zeros(2), 0, r"do not fit: \(3,\), \(2,\), \(\)"),
    ],
)
def test_impossible_counts_are_refused(area, hit, truth, says):
    with pytest.raises(ValueError, match=says):
        dice(area, hit, truth)


@pytest.mark.parametrize(
    "pred, truth, says",
    [
        (np.zeros((2, 4, 3, 3)), np.zeros((2, 3, 3, 3)), r"\(2, 4, 3, 3\) and \(2, 3, 3, 3\)"),
        (np.zeros((4, 3, 3)), np.zeros((4, 3, 3)), "images, classes, height, width"),
        (np.full((1, 1, 2, 2), 0.5), np.zeros((1, 1, 2, 2)), "pred of float64.*threshold"),
        (np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), np.nan), "truth of float64"),
    ],
)
def test_what_are_no_masks_is_not_counted(pred, truth, says):
    with pytest.raises(ValueError, match=says):
        mask_counts(pred, truth)


def test_table_worked_by_hand():
    d = np.array([[2 / 3, 1, 1], [0, 0, 1], [1, 1, 0]])
    truth = np.array([[100, 0, 0], [0, 50, 0], [0, 0, 0]])
    table = score_table(d, truth)
    assert table.index.tolist() == ["all", "class 1", "class 2", "class 3"]
    assert table.columns.tolist() == ["score", "present", "empty", "pairs", "present_pairs"]
    expected = [
        [17 / 27, 1 / 3, 5 / 7, 9, 2],
        [5 / 9, 2 / 3, 1 / 2, 3, 1],
        [2 / 3, 0, 1, 3, 1],
        [2 / 3, np.nan, 2 / 3, 3, 0],
    ]
    assert np.allclose(table.to_numpy(float), expected, equal_nan=True)
    assert table.pairs.dtype == table.present_pairs.dtype == "int64"
    assert np.isnan(score_table([[0.5]], [[3]]).loc["all", "empty"])


@pytest.mark.parametrize(
    "d, truth, says",
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), r"\(3, 2\) and truth of shape \(3, 4\)"),
        (np.zeros(3), np.zeros(3), r"expected \(images, classes\)"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "not empty"),
        ([[0.5, np.nan]], [[1, 1]], r"a Dice of nan at \(0, 1\)"),
        ([[1.5]], [[1]], "a Dice of 1.5"),
        ([[-0.5]], [[1]], "a Dice of -0.5"),
        ([[0.5]], [[-1]], "negative"),
        ([[0.5]], [[np.nan]], "NaN"),
    ],
)
def test_a_table_of_nonsense_is_refused(d, truth, says):
    with pytest.raises(ValueError, match=says):
        score_table(d, truth)


def test_empty_submission_scores_the_share_of_clean_pairs():
    pred, truth = random_pairs(3)
    d = dice(*mask_counts(np.zeros_like(pred), truth))
    assert d.mean() == (~truth.any(axis=(2, 3))).mean() == dice(0, 0, truth.sum(axis=(2, 3))).mean()


def test_same_seed_same_interval_and_it_holds_the_value():
    d, _ = strips(np.random.default_rng(0), 300)
    one, again, other = (bootstrap_ci(d, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one == again != other
    assert one.low < one.value < one.high and one.value == pytest.approx(d.mean(), abs=1e-12) and one.level == 0.95
    wide = bootstrap_ci(d, np.random.default_rng(1), level=0.99)
    assert wide.low < one.low and one.high < wide.high
    assert str(Interval(0.5, 0.25, -0.0625, 0.9)) == "0.5000 (0.2500 to -0.0625)"


def test_interval_is_the_slow_bootstraps():
    "A loop that draws whole rows and means over pairs, with its own draws: bounds agree within their noise."
    d, _ = strips(np.random.default_rng(4), 200)
    rng = np.random.default_rng(5)
    means = [d[rng.choice(200, 200)].mean() for _ in range(4000)]
    ours = bootstrap_ci(d, np.random.default_rng(6), n_boot=4000)
    width = ours.high - ours.low
    assert (
        abs(np.quantile(means, 0.025) - ours.low) < 0.08 * width
        and abs(np.quantile(means, 0.975) - ours.high) < 0.08 * width
    )
    pairs = bootstrap_ci(d.ravel(), np.random.default_rng(6), n_boot=4000)  # pairs as if they were images: too narrow
    assert pairs.high - pairs.low < 0.95 * width


def test_ninety_five_percent_intervals_hold_the_true_score_about_that_often():
    rng = np.random.default_rng(0)
    true = strips(rng, 400_000)[0].mean()
    held = [i.low <= true <= i.high for i in (bootstrap_ci(strips(rng, 150)[0], rng, n_boot=400) for _ in range(400))]
    assert 0.92 <= np.mean(held) <= 0.98


def test_blocks_of_draws_change_nothing_but_memory():
    import tracemalloc

    d = np.random.default_rng(0).random((1000, 3))
    means = d.mean(1)[np.random.default_rng(7).integers(1000, size=(2500, 1000))].mean(1)  # as one block
    interval = bootstrap_ci(d, np.random.default_rng(7), n_boot=2500, level=0.9)
    assert np.allclose([interval.low, interval.high], np.quantile(means, [0.05, 0.95]), rtol=1e-12)
    d = np.random.default_rng(0).random((12_568, 4))
    tracemalloc.start()
    try:
        interval = bootstrap_ci(d, np.random.default_rng(0))
        assert (
            tracemalloc.get_traced_memory()[1] < 50e6
        )  # all draws at once would be 200 MB of indices and as much again
    finally:
        tracemalloc.stop()
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 * d.mean(1).std() / 12_568**0.5, rel=0.08
    )  # the normal approximation


def test_a_model_differs_from_itself_by_exactly_nothing():
    d, _ = strips(np.random.default_rng(0), 97)
    assert paired_difference(d, d, np.random.default_rng(0)) == Interval(0.0, 0.0, 0.0, 0.95)
    same = bootstrap_ci(np.full((7, 3), 0.1), np.random.default_rng(0))
    assert same.low <= same.value <= same.high < same.low + 1e-15
    few = bootstrap_ci(np.array([0, 0, 0, 1.0]), np.random.default_rng(1), n_boot=1)  # one resample, of another mean
    assert few.low <= few.value == 0.25 <= few.high and few.low < few.high


def test_paired_is_narrower_than_unpaired():
    a, truth = strips(np.random.default_rng(0), 400)
    b = np.where(truth, np.clip(a - 0.03 + np.random.default_rng(1).normal(0, 0.02, a.shape), 0, 1), a)
    rng = np.random.default_rng(2)
    paired = paired_difference(a, b, rng)
    alone = [bootstrap_ci(x, rng) for x in (a, b)]
    unpaired = np.hypot(*(i.high - i.low for i in alone))  # of a difference of independent scores
    assert paired.high - paired.low < 0.3 * unpaired
    assert (
        paired.value == pytest.approx(a.mean() - b.mean(), abs=1e-12)
        and paired.low > 0
        and alone[1].high > alone[0].low
    )
    back = paired_difference(b, a, rng)
    assert back.value == -paired.value and back.high < 0


def test_one_class_and_its_mean_are_the_same_thing():
    d, _ = strips(np.random.default_rng(0), 50)
    assert bootstrap_ci(d[:, 0], np.random.default_rng(0)) == bootstrap_ci(d[:, :1], np.random.default_rng(0))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda d, rng: bootstrap_ci(d[:0], rng), "not empty"),
        (lambda d, rng: bootstrap_ci(d[:1], rng), "at least two"),
        (lambda d, rng: bootstrap_ci(d + 1, rng), "within 0..1"),
        (lambda d, rng: bootstrap_ci(d[None], rng), r"shape \(1, 5, 4\)"),
        (lambda d, rng: bootstrap_ci(d, 7), "default_rng"),
        (lambda d, rng: bootstrap_ci(d, rng, level=95), "level 95"),
        (lambda d, rng: bootstrap_ci(d, rng, n_boot=0), "n_boot 0"),
        (lambda d, rng: paired_difference(d, d[:3], rng), r"\(5, 4\) and \(3, 4\)"),
    ],
)
def test_what_has_no_interval_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(np.full((5, 4), 0.5), np.random.default_rng(0))
