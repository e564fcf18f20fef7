"""Augmentation: albumentations' pixels, every window, labels that move with their pixels, independent draws."""

import albumentations as A
import cv2
import numpy as np
import pytest

from steel_seg.augment import BLACK, augment, item_seed, train_transform, window_of

RARE = dict(hflip=0, vflip=0, brightness=0)
H, W = 12, 40


def strip(rng, shape=(H, W), labels=()):
    "Noise that is nowhere black, and a mask with rectangles (channel, y, x, h, w)."
    image, mask = rng.integers(40, 255, shape).astype(np.uint8), np.zeros((4, *shape), np.uint8)
    for c, y, x, h, w in labels:
        mask[c, y : y + h, x : x + w] = 1
    return image, mask


@pytest.mark.parametrize("seed", range(8))
def test_flips_and_light_are_albumentations(seed):
    "The same pixels as its three transforms in the same order, with the parameters that were drawn."
    rng = np.random.default_rng(seed)
    image, mask = strip(rng, (33, 70), [(0, 3, 4, 9, 20), (3, 20, 50, 13, 20)])
    draws = np.random.default_rng(seed)
    *_, hflip, vflip, light = draws.random(6)
    brightness, contrast = draws.uniform(-0.2, 0.2, 2) if light < 0.5 else (0, 0)
    steps = [A.HorizontalFlip(p=1)] * int(hflip < 0.5) + [A.VerticalFlip(p=1)] * int(vflip < 0.5)
    if light < 0.5:
        steps.append(
            A.RandomBrightnessContrast(
                brightness_limit=(brightness, brightness), contrast_limit=(contrast, contrast), p=1
            )
        )
    theirs = A.Compose(steps)(image=image, mask=mask.transpose(1, 2, 0))
    ours = augment(train_transform(0.5, 0.5, 0.5, 0.2), image, mask, seed)
    np.testing.assert_array_equal(ours[0], theirs["image"])
    np.testing.assert_array_equal(ours[1], theirs["mask"].transpose(2, 0, 1))


def test_draws_are_independent():
    "Each of eight outcomes of two flips and a light is as frequent as expected; chi-square of 7 degrees at 1e-4 is 29."
    image, mask = strip(np.random.default_rng(0))
    t, counts = train_transform(0.5, 0.5, 0.5, 0.2), np.zeros(8)
    for s in range(4000):
        *_, hflip, vflip, light = np.random.default_rng(item_seed(0, 0, s)).random(6) < 0.5
        a, _ = augment(t, image, mask, item_seed(0, 0, s))
        back = a[:, ::-1] if hflip else a
        back = back[::-1] if vflip else back
        assert (back == image).all() == (not light) or light
        counts[4 * hflip + 2 * vflip + light] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 29


def test_nothing_is_changed_in_place_and_results_are_own():
    image, mask = strip(np.random.default_rng(0), labels=[(1, 2, 3, 4, 5)])
    before = image.copy(), mask.copy()
    for t in (
        train_transform(**RARE),
        train_transform(1, 0, 1),
        train_transform(**RARE, crop="6x10"),
        train_transform(**RARE, blackout=1),
        train_transform(**RARE, black_bars=1),
    ):
        a, m = augment(t, image, mask, 3)
        assert a.flags.c_contiguous and m.flags.c_contiguous and a.dtype == m.dtype == np.uint8
        a[:], m[:] = 7, 7
        assert (image == before[0]).all() and (mask == before[1]).all()


@pytest.mark.parametrize("crop", ["6x10", (6, 10), [6, 10]])
def test_every_window_comes_and_has_one_size(crop):
    "Without labels all (H-h+1)(W-w+1) windows, uniformly; image and mask are cut alike."
    image, _ = strip(np.random.default_rng(9))
    seen = {}
    for s in range(8000):
        a, m = augment(train_transform(**RARE, crop=crop), image, np.stack([image, image]) % 2, s)
        assert a.shape == (6, 10) and (m[0] == a % 2).all()
        y, x = np.divmod(
            int(np.flatnonzero((np.lib.stride_tricks.sliding_window_view(image, (6, 10)) == a).all((2, 3)))[0]), W - 9
        )
        seen[y, x] = seen.get((y, x), 0) + 1
    assert len(seen) == (H - 5) * (W - 9)


def test_crop_holds_a_label_as_often_as_asked():
    image, mask = strip(np.random.default_rng(1), (20, 400), [(2, 0, 390, 3, 5)])
    for p, low, high in ((1, 1, 1), (0.5, 0.45, 0.6), (0, 0, 0.12)):
        share = np.mean(
            [
                augment(train_transform(**RARE, crop="20x40", crop_on_mask=p), image, mask, s)[1].any()
                for s in range(600)
            ]
        )
        assert low <= share <= high, (p, share)


def test_a_small_label_is_not_lost_beside_a_large_one():
    "One pixel of class 1, thousands of class 3: half of the crops on a label hold the pixel, anywhere in the crop."
    image, mask = strip(np.random.default_rng(1), (8, 600), [(2, 0, 0, 8, 400)])
    mask[0, 4, 580] = 1
    found = [augment(train_transform(**RARE, crop="8x30", crop_on_mask=1), image, mask, s)[1] for s in range(600)]
    assert all(m.any() for m in found) and 0.42 < np.mean([m[0].any() for m in found]) < 0.58
    assert {int(np.flatnonzero(m[0].any(0))[0]) for m in found if m[0].any()} >= set(range(10, 30))


def test_windows_with_much_black_are_not_drawn():
    image, mask = strip(np.random.default_rng(2), (8, 100))
    image[:, 60:] = np.random.default_rng(3).integers(0, BLACK + 1, (8, 40))
    starts = []
    for s in range(400):
        a, _ = augment(train_transform(**RARE, crop="8x20", crop_black=0.25), image, mask, s)
        assert (a <= BLACK).mean() <= 0.25
        starts.append(int((a > BLACK).all(0).sum()))
    assert min(starts) == 15 and (np.array(starts) == 20).mean() > 0.8
    free = [
        (augment(train_transform(**RARE, crop="8x20", crop_black=1), image, mask, s)[0] <= BLACK).all()
        for s in range(300)
    ]
    assert 0.1 < np.mean(free) < 0.5
    image[:] = 0  # nothing else is there: no error
    assert augment(train_transform(**RARE, crop="8x20", crop_black=0), image, mask, 0)[0].shape == (8, 20)


def test_a_label_in_the_black_is_still_held():
    "A window that is asked to hold a label keeps that, and has as little black as asked where it can."
    image, mask = strip(np.random.default_rng(2), (8, 100), [(0, 2, 58, 2, 2)])
    image[:, 60:] = 0
    for s in range(100):
        a, m = augment(train_transform(**RARE, crop="8x20", crop_on_mask=1, crop_black=0.2), image, mask, s)
        assert m[0].any() and (a == 0).mean() <= 0.2


def test_blackout_takes_label_and_pixels():
    image, mask = strip(np.random.default_rng(4), labels=[(0, 2, 3, 4, 5), (3, 6, 20, 3, 9)])
    a, m = augment(train_transform(**RARE, blackout=1), image, mask, 0)
    assert not m.any() and (a[mask.any(0)] == 0).all() and (a[~mask.any(0)] == image[~mask.any(0)]).all()
    share = np.mean([augment(train_transform(**RARE, blackout=0.3), image, mask, s)[1].any() for s in range(500)])
    assert 0.62 < share < 0.78
    clean = augment(train_transform(**RARE, blackout=1), image, np.zeros_like(mask), 0)
    assert (clean[0] == image).all()


def test_bars_cover_an_end():
    image, mask = strip(np.random.default_rng(5), (8, 200), [(1, 0, 0, 8, 200)])
    ends, widths = set(), []
    for s in range(300):
        a, m = augment(train_transform(**RARE, black_bars=1), image, mask, s)
        black = (a == 0).all(0)
        n = int(black.sum())
        assert black[:n].all() or black[-n:].all()
        assert (m[1].any(0) == ~black).all() and (a[:, ~black] == image[:, ~black]).all()
        ends.add(bool(black[0])), widths.append(n)
    assert ends == {True, False} and 10 <= min(widths) < 20 and 70 < max(widths) <= 80


def test_probabilities_do_not_shift_each_other():
    "The flips of a seed are the same whether bars are drawn or not."
    image, mask = strip(np.random.default_rng(6))
    for s in range(50):
        a, _ = augment(train_transform(0.5, 0.5, 0), image, mask, s)
        b, _ = augment(train_transform(0.5, 0.5, 0, blackout=0.7), image, mask, s)
        assert (a == b).all()


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(hflip=-0.1), "hflip=-0.1 is not in 0 to 1"),
        (dict(crop="12"), "write height x width"),
        (dict(crop=(0, 5)), "is no size"),
        (dict(crop_black=2), "crop_black=2"),
        (dict(blackout=1.5), "blackout=1.5"),
        (dict(black_bars=-1), "black_bars=-1"),
    ],
)
def test_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        train_transform(**wrong)


def test_a_crop_that_does_not_fit():
    image, mask = strip(np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"crop of 13x10 does not fit into an image of {H}x{W}"):
        augment(train_transform(crop="13x10"), image, mask, 0)
    assert window_of(None) is None and window_of("256X512") == (256, 512)


def test_compose_of_ones_own():
    "Any size may come out; another type may not."
    image, mask = strip(np.random.default_rng(0), labels=[(0, 1, 1, 5, 5)])
    a, m = augment(A.Compose([A.Resize(24, 80, interpolation=cv2.INTER_NEAREST)]), image, mask, 0)
    assert a.shape == (24, 80) and m.shape == (4, 24, 80) and m[0].sum() == 100
    with pytest.raises(ValueError, match="the transform must return"):
        augment(A.Compose([A.ToFloat()]), image, mask, 0)


def test_item_seed_has_four_parts():
    assert len({item_seed(*x) for x in np.ndindex(4, 5, 6, 3)}) == 360
    assert item_seed(1, 2, 3) == item_seed(1, 2, 3, 0)
