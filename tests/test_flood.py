"""Components and filled holes of a map, level by level, against scipy on masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from steel_seg.flood import component_nodes, fill_levels, make_room

EIGHT = np.ones((3, 3))


def of_scipy(prob, truth, t, connectivity):
    "(area, hit) of every component of prob >= t, sorted."
    labels, n = ndimage.label(prob >= t, EIGHT if connectivity == 8 else None)
    area = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    hit = (
        np.zeros(n, int)
        if truth is None
        else np.bincount(labels.ravel(), truth.ravel() != 0, minlength=n + 1)[1:].astype(int)
    )
    return sorted(zip(area.tolist(), hit.tolist()))


def check(prob, truth, room=None, levels=None):
    "Everything that the kernels say of one map, against scipy at every level that matters."
    levels = (
        np.unique(np.concatenate([[1, 255], prob.ravel(), prob.ravel().astype(int) + 1])).astype(int)
        if levels is None
        else levels
    )
    levels = levels[(levels >= 1) & (levels <= 255)]
    before = prob.copy()
    filled = fill_levels(prob, room)
    assert filled.dtype == np.uint8 and (filled >= prob).all()
    for t in levels:
        assert np.array_equal(filled >= t, ndimage.binary_fill_holes(prob >= t)), t
    for image in (prob, filled):
        for connectivity in (4, 8):
            low, high, area, hit = component_nodes(image, truth, connectivity, room=room)
            assert (low >= 1).all() and (low <= high).all() and (np.diff(area) <= 0).all()
            for t in levels:
                now = (low <= t) & (t <= high)
                assert sorted(zip(area[now].tolist(), hit[now].tolist())) == of_scipy(image, truth, t, connectivity), (
                    connectivity,
                    t,
                )
    assert np.array_equal(prob, before)


def sharp(rng, shape):
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 4)
    return np.rint(255 / (1 + np.exp(-30 * (smooth / max(smooth.std(), 1e-9) - 1.2)))).astype(np.uint8)


def soft(rng, shape):
    return np.clip(80 + 60 * ndimage.gaussian_filter(rng.normal(size=shape), 2) / 0.14, 0, 255).astype(np.uint8)


def spiral(rng, shape):
    "One winding wall, each turn of another height, so that water has a long way round."
    out, (h, w) = np.zeros(shape, np.uint8), shape
    for k in range(0, min(h, w) // 2, 2):
        out[k, k : w - k] = out[h - 1 - k, k : w - k] = out[k : h - k, k] = out[k : h - k, w - 1 - k] = rng.integers(
            1, 256
        )
        out[k + 1 if k + 1 < h else k, k] = rng.integers(0, 30)
    return out


def steps(rng, shape):
    return (np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 256).astype(np.uint8)


def checkers(rng, shape):
    return np.where(np.indices(shape).sum(0) % 2, 255, 254).astype(np.uint8)


def noise(rng, shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def few_levels(rng, shape):
    return rng.choice(np.uint8([0, 0, 0, 1, 254, 255]), shape)


def flat(rng, shape):
    return np.full(shape, rng.integers(0, 256), np.uint8)


@pytest.mark.parametrize("kind", [sharp, soft, spiral, steps, checkers, noise, few_levels, flat])
@pytest.mark.parametrize("shape", [(40, 70), (33, 31), (1, 90), (90, 1), (1, 1), (2, 2), (3, 64)])
def test_every_level_is_scipys(kind, shape):
    rng = np.random.default_rng(sum(shape))
    prob = kind(rng, shape)
    for truth in (None, rng.random(shape) < 0.3, 255 * (prob > 100).astype(np.uint8), np.zeros(shape, np.uint8)):
        check(prob, truth, levels=np.unique(rng.integers(1, 256, 12)) if prob.size > 500 else None)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 100, 255])
    ),
    st.integers(0, 2**32 - 1),
)
def test_small_maps_of_any_kind(prob, seed):
    check(prob, np.random.default_rng(seed).random(prob.shape) < 0.5)


def test_a_room_is_used_again_and_again():
    "What a map leaves behind in the room must not show in the next."
    rng = np.random.default_rng(3)
    room = make_room((24, 37))
    for kind in (noise, sharp, flat, few_levels, soft, spiral) * 3:
        prob = kind(rng, (24, 37))
        truth = None if rng.random() < 0.3 else rng.random((24, 37)) < 0.4
        for connectivity in (8, 4):
            mine, fresh = (
                component_nodes(prob, truth, connectivity, room=room),
                component_nodes(prob, truth, connectivity),
            )
            assert all(np.array_equal(a, b) for a, b in zip(mine, fresh))
        assert np.array_equal(fill_levels(prob, room), fill_levels(prob))


def test_small_components_are_left_out():
    prob = soft(np.random.default_rng(4), (50, 80))
    every, large = (np.array(component_nodes(prob, smallest=k)) for k in (1, 9))
    assert len(large[0]) < len(every[0]) and sorted(map(tuple, every.T[every[2] >= 9])) == sorted(map(tuple, large.T))


def test_any_layout_of_memory():
    prob = noise(np.random.default_rng(5), (30, 44))
    for view in (prob[::-1], prob[:, ::-1], prob[3:, 5:], prob.T, np.asfortranarray(prob)):
        assert np.array_equal(fill_levels(view), fill_levels(view.copy()))
        assert all(
            np.array_equal(a, b)
            for a, b in zip(component_nodes(view, view > 200), component_nodes(view.copy(), (view > 200).copy()))
        )


def test_the_competitions_size():
    rng = np.random.default_rng(6)
    prob = sharp(rng, (256, 1600))
    check(prob, prob > 90, levels=np.array([13, 128, 250]))


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3, 4), np.uint8), np.zeros((3, 4)), np.zeros((3, 4), np.int32), np.zeros(3, np.uint8)]
)
def test_another_kind_of_array_is_refused(bad):
    for f in (fill_levels, component_nodes):
        with pytest.raises(ValueError, match="must be uint8"):
            f(bad)


def test_a_room_of_another_shape_is_refused():
    room = make_room((5, 9))
    for f in (lambda p: fill_levels(p, room), lambda p: component_nodes(p, room=room)):
        with pytest.raises(ValueError, match="room"):
            f(np.full((6, 9), 7, np.uint8))
    with pytest.raises(ValueError, match="differ in shape"):
        component_nodes(np.zeros((4, 5), np.uint8), np.zeros((5, 4)))
