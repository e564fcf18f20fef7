"""Pictures: nothing outside a mask changes, colours can be counted and told apart, figures show their data."""

from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from steel_seg.viz import (
    COMPARE,
    PALETTE,
    class_colours,
    compare,
    gallery,
    legend,
    overlay,
    plot_classes,
    plot_history,
    plot_scores,
    plot_surface,
    to_png,
)


def strip(shape=(40, 120), classes=4, seed=0):
    "A random image with a block of each class, two of them apart from one another."
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 256, shape, dtype=np.uint8), np.zeros((classes, *shape), np.uint8)
    for k in range(classes):
        mask[k, 5 : 5 + 4 * (k + 1), 20 * k + 2 : 20 * k + 15] = 1
    return image, mask


@pytest.mark.parametrize("classes", [1, 3, 4, 9])
def test_overlay_leaves_the_rest_alone(classes):
    image, mask = strip((40, 200), classes)
    kept = image.copy(), mask.copy()
    rgb = overlay(image, mask)
    assert rgb.shape == (*image.shape, 3) and rgb.dtype == np.uint8
    outside = ~mask.any(0)
    assert (rgb[outside] == image[outside][:, None]).all()
    assert np.array_equal(image, kept[0]) and np.array_equal(mask, kept[1])
    assert (rgb[~outside] != image[~outside][:, None]).any(1).mean() > 0.95


def test_overlay_is_a_blend_with_a_crisp_outline_inside_the_mask():
    image, mask = np.full((64, 64), 100, np.uint8), np.zeros((2, 64, 64), np.uint8)
    mask[1, 10:40, 20:50] = 7  # any nonzero value is a defect
    rgb = overlay(image, mask, alpha=0.25)
    assert rgb[25, 35].tolist() == np.rint(0.75 * 100 + 0.25 * PALETTE[1].astype(float)).astype(int).tolist()
    edge = (rgb == PALETTE[1]).all(2)
    ring = np.zeros((64, 64), bool)
    ring[10:40, 20:50], ring[11:39, 21:49] = True, False
    assert np.array_equal(edge, ring)
    assert not (overlay(image, mask, alpha=0.25, contour=False) == PALETTE[1]).all(2).any()
    assert np.array_equal(overlay(image, mask, alpha=0, contour=False), np.repeat(image[..., None], 3, 2))
    assert np.array_equal(overlay(image, mask[1]), overlay(image, mask[1:]))  # (H,W) is painted as class 1


def test_overlay_at_the_image_border_and_of_one_pixel():
    image = np.zeros((5, 7), np.uint8)
    assert (overlay(image, np.ones((1, 5, 7), np.uint8), alpha=0)[0] == PALETTE[0]).all(), "no outline at the border"
    one = np.zeros((3, 5, 7), np.uint8)
    one[2, 4, 6] = 1
    rgb = overlay(image, one)
    assert rgb[4, 6].tolist() == PALETTE[2].tolist() and rgb.any(2).sum() == 1


def test_empty_masks_change_nothing():
    image, mask = strip()
    grey = np.repeat(image[..., None], 3, 2)
    assert np.array_equal(overlay(image, np.zeros_like(mask)), grey)
    assert np.array_equal(compare(image, np.zeros_like(image), np.zeros_like(image)), grey)
    assert np.array_equal(overlay(grey, mask), overlay(image, mask)), "an RGB image is painted as a grey one"


@pytest.mark.parametrize("alpha, contour", [(1, False), (1, True), (0.5, True)])
def test_compare_counts(alpha, contour):
    rng = np.random.default_rng(1)
    truth, pred = rng.random((50, 90)) < 0.4, rng.random((50, 90)) < 0.3
    rgb = compare(np.zeros((50, 90), np.uint8), truth, pred, alpha, contour)
    want = {"hit": truth & pred, "missed": truth & ~pred, "false": pred & ~truth}
    for name, where in want.items():
        colour = np.array(COMPARE[name]) * (1 if alpha == 1 else 0.5)
        full = (abs(rgb - colour) <= 0.5).all(2) | (rgb == COMPARE[name]).all(2)  # blended, or outline
        assert np.array_equal(full, where), name
    assert (rgb[~(truth | pred)] == 0).all()


def test_compare_swaps_missed_and_false_with_its_arguments():
    image, mask = strip()
    a, b = compare(image, mask[0], mask[1], 1), compare(image, mask[1], mask[0], 1)
    assert (a[mask[0] > 0] == COMPARE["missed"]).all() and (b[mask[0] > 0] == COMPARE["false"]).all()


# Machado, Oliveira & Fernandes 2009, severity 1: how linear RGB looks to people with each colour vision
VISION = {
    "normal": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISION)
def test_colours_can_be_told_apart(vision):
    "CIELAB distance of any two colours, as seen; a difference of about 2.3 is just noticeable side by side."

    def apart(colours):
        c = np.array(colours) / 255
        seen = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ np.array(VISION[vision]).T
        seen = seen.clip(0, 1)
        srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = cv2.cvtColor(srgb.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]
        return min(np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i])

    assert apart(list(COMPARE.values())) > 30
    assert apart(PALETTE) > 15


def test_png_bytes_are_the_image():
    rng = np.random.default_rng(0)
    for shape in (1, 1), (48, 64), (30, 40, 3):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        data = to_png(image)
        assert data.startswith(b"\x89PNG")
        back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(back if image.ndim == 2 else back[..., ::-1], image)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_gallery_keeps_every_picture_in_shape(columns):
    images = [np.zeros(s, np.uint8) for s in [(256, 1600), (200, 200), (48, 64), (64, 400)]]
    fig = gallery(images, [f"strip {i}" for i in range(4)], columns, colours=class_colours(4))
    assert [ax.get_title(loc="left") for ax in fig.axes[:4]] == [f"strip {i}" for i in range(4)]
    boxes = [ax.get_position() for ax in fig.axes]
    width, height = fig.get_size_inches()
    for image, box in zip(images, boxes):
        assert abs(box.width * width / (box.height * height) / (image.shape[1] / image.shape[0]) - 1) < 1e-6
    assert all(b.x0 >= 0 and b.x1 <= 1 + 1e-9 and b.y0 >= -1e-9 and b.y1 <= 1 for b in boxes)
    for i, a in enumerate(boxes):
        assert not any(a.overlaps(b) for b in boxes[:i])
    assert [t.get_text() for t in fig.axes[4].get_legend().get_texts()] == ["class 1", "class 2", "class 3", "class 4"]
    assert len(gallery(images[:1]).axes) == 1


def test_legend_names_the_colours_of_compare():
    box = legend(gallery([np.zeros((9, 9), np.uint8)]).axes[0])
    assert [t.get_text() for t in box.get_texts()] == ["hit", "missed", "false"]
    assert [tuple(round(255 * v) for v in p.get_facecolor()[:3]) for p in box.get_patches()] == list(COMPARE.values())


def test_surface_shows_the_values_and_the_point():
    surface = np.random.default_rng(0).random((5, 4))
    threshes, areas = [20, 60, 120, 180, 240], [0, 100, 1000, 409601]
    ax = plot_surface(surface, threshes, areas, point=(180, 100))
    assert np.array_equal(ax.images[0].get_array().T, surface)
    x, y = ax.lines[-1].get_data()
    assert (np.ravel(x)[0], np.ravel(y)[0]) == (3, 1), "the point is not where its threshold and area are"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.08", "0.24", "0.47", "0.71", "0.94"]
    assert "409,601" in [t.get_text() for t in ax.get_yticklabels()]
    assert "level 180" in ax.get_title(loc="left")
    own = plt.Figure().subplots()
    assert plot_surface(np.full((1, 1), np.nan), [128], [0], ax=own) is own
    assert plot_surface(np.full((3, 2), 0.5), [1, 2, 3], [0, 1]).images  # flat: no contours to draw


def history(folds=2, epochs=4):
    return pd.DataFrame(
        [
            {
                "fold": f,
                "epoch": e,
                "loss": 1 / (e + 1),
                "val_loss": 2 / (e + 1),
                "score": 0.8 + 0.01 * e + 0.1 * f,
                "lr": 1e-3,
            }
            for f in range(folds)
            for e in range(epochs)
        ]
    )


def test_history_has_a_line_a_fold():
    fig = plot_history(history(3, 5))
    loss, score, lr = fig.axes
    assert len(loss.lines) == 6 and len(score.lines) == 3 and len(lr.lines) == 3
    assert score.lines[2].get_ydata().tolist() == pytest.approx([1.0, 1.01, 1.02, 1.03, 1.04])
    assert len({to_rgb(line.get_color()) for line in score.lines}) == 3
    assert len(plot_history(history(1, 1)).axes) == 3


def test_stages_are_told_apart():
    "Losses of two stages are not joined, for they may be of two kinds; an upright line stands between."
    staged = history(2, 5).assign(stage=lambda h: 1 + (h.epoch >= 3))
    loss, score, lr = plot_history(staged).axes

    def upright(ax):
        return [line.get_xdata() for line in ax.lines if list(line.get_xdata()) == [2.5, 2.5]]

    assert all(len(upright(ax)) == 1 for ax in (loss, score, lr))
    assert sorted(len(line.get_xdata()) for line in loss.lines if line.get_xdata()[0] != 2.5) == [2] * 4 + [3] * 4
    assert len(score.lines) == 3 and len(plot_classes(staged, {"score": "all"}).axes[0].lines) == 3
    early = staged.assign(stage=1 + (staged.epoch >= 3 - staged.fold))  # each fold at another time
    assert len(plot_history(early).axes[1].lines) == 4
    one = plot_history(history(1, 4).assign(stage=1)).axes
    assert [len(ax.lines) for ax in one] == [2, 1, 1]


def test_scores_have_bars_intervals_and_numbers():
    scores = {"all": SimpleNamespace(value=0.9, low=0.88, high=0.93), "class 1": 0.5, "class 2": float("nan")}
    ax = plot_scores(scores, {"all": 0.856})
    assert [round(p.get_width(), 6) for p in ax.patches] == [0.9, 0.5]
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.9000  (0.8800 to 0.9300)", "0.5000", "none"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all", "class 1", "class 2"]
    assert plot_scores(pd.Series({"all": 0.3})).patches[0].get_width() == pytest.approx(0.3)


def test_figures_are_not_kept_open():
    before = plt.get_fignums()
    (
        plot_history(history()),
        plot_scores({"all": 0.5}),
        gallery([np.zeros((9, 9), np.uint8)]),
        plot_surface(np.zeros((2, 2)), [1, 2], [0, 1]),
    )
    assert plt.get_fignums() == before


IMAGE = np.zeros((8, 9), np.uint8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: overlay(IMAGE / 255, IMAGE), "must be uint8"),
        (lambda: overlay(IMAGE[None], IMAGE), r"\(H,W\) or \(H,W,3\)"),
        (lambda: overlay(IMAGE, IMAGE.T), r"does not fit an image of \(8, 9\)"),
        (lambda: overlay(IMAGE, IMAGE, alpha=1.5), "alpha 1.5"),
        (lambda: compare(IMAGE, IMAGE, IMAGE[None]), "pred of shape"),
        (lambda: compare(IMAGE, IMAGE[:4], IMAGE), "truth of shape"),
        (lambda: to_png(IMAGE > 0), "must be uint8"),
        (lambda: gallery([]), "at least one image"),
        (lambda: gallery([IMAGE], columns=0), "columns 0"),
        (lambda: gallery([IMAGE], ["a", "b"]), "1 images, but 2 titles"),
        (lambda: plot_surface(np.zeros((2, 3)), [1, 2, 3], [0, 1]), "does not fit"),
        (lambda: plot_history(history().drop(columns="score")), "no column 'score'"),
        (lambda: plot_scores({}), "no scores"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
