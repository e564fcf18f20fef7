"""Augmentation and loading: what happens to image i in epoch e is a function of (seed, e, i) alone."""

import pickle
import random
from collections import Counter
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import real_data
from hypothesis import given, settings
from hypothesis import strategies as st

from steel_seg.augment import augment, item_seed, train_transform
from steel_seg.cache import open_cache
from steel_seg.data import read_folder
from steel_seg.dataset import SAMPLERS, StripDataset, epoch_batches, epoch_mix, epoch_order, image_groups, make_loader
from steel_seg.rle import rle_encode
from steel_seg.synth import make_folder

# A loader whose worker failed may warn from its queue's thread, as late as in the next test (torch 2.14, Python 3.11).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class OneStrip:
    "Stands in for a folder: n images that are all alike, so that two items differ only by what augmentation did."

    shape, n_classes, window = (16, 64), 4, None

    def with_window(self, window):
        return self

    def __init__(self, n=128):
        self.images = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(n)]})

    def labels(self, image_id):
        return [(1, rle_encode(self.mask("")[1]))]

    def shape_of(self, image_id):
        return self.shape

    def image(self, image_id):
        return np.arange(16 * 64, dtype=np.uint16).reshape(16, 64).astype(np.uint8)

    def mask(self, image_id):
        mask = np.zeros((4, 16, 64), np.uint8)
        mask[1, 2:5, 3:20] = 1
        return mask


def strong():
    "Flips and light in every image, with continuous parameters."
    return train_transform(brightness=1, limit=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(make_folder(tmp_path_factory.mktemp("data") / "f", n_train=10, n_test=0, shape=(32, 96), seed=4))


def run(dataset, batches, workers):
    "All items that a loader gives, joined."
    got = list(make_loader(dataset, batches, workers))
    return {k: torch.cat([b[k] for b in got]) for k in got[0]}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def draws(items):
    return [(i.numpy().tobytes(), m.numpy().tobytes()) for i, m in zip(items["image"], items["mask"])]


# -- the promise


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
def test_128_of_128_draws_differ_and_no_number_of_workers_changes_one():
    data = StripDataset(OneStrip(), strong(), seed=1)
    seen = set()
    for epoch in (0, 1):
        batches = epoch_batches(range(128), 8, seed=1, epoch=epoch)
        alone = run(data, batches, 0)
        assert len(set(draws(alone))) == 128
        seen |= set(draws(alone))
        for workers in (1, 2, 3):
            assert same(run(data, batches, workers), alone), f"{workers} workers, epoch {epoch}"
    assert len(seen) == 256  # the second epoch repeats nothing of the first


def test_the_seeds_of_128_images_over_two_epochs_and_two_runs_are_512_numbers():
    assert len({item_seed(s, e, i) for s in (0, 1) for e in (0, 1) for i in range(128)}) == 512


def test_item_seeds_are_fixed_numbers():
    "Another machine, or the next version, must resume the same run."
    assert [item_seed(0, 0, 0), item_seed(0, 0, 1)] == [2764884783, 1757316590]
    assert [item_seed(0, 1, 0), item_seed(1, 0, 0), item_seed(0, 0, 0, 1)] == [1901757762, 222344036, 3785350343]
    assert item_seed(np.int64(1), np.int32(0), np.uint8(0)) == item_seed(1, 0, 0)


def test_item_seeds_do_not_line_up():
    "seed + epoch*n + i has (0,1,0) equal to (0,0,n); and neighbours share no bits more than strangers do."
    grid = np.array([[[item_seed(s, e, i) for i in range(40)] for e in range(40)] for s in range(10)], dtype=np.uint64)
    assert len(np.unique(grid)) == grid.size
    for axis in range(3):
        n = grid.shape[axis]
        pairs = zip(grid.take(range(1, n), axis).ravel().tolist(), grid.take(range(n - 1), axis).ravel().tolist())
        changed = np.array([(a ^ b).bit_count() for a, b in pairs])
        assert abs(changed.mean() - 16) < 0.2  # half of 32 bits
    assert 0 <= grid.min() < 2**20 and 2**32 - 2**20 < grid.max() < 2**32


def test_a_resume_in_mid_epoch_gives_the_rest():
    data = StripDataset(OneStrip(), strong(), seed=1)
    batches = epoch_batches(range(128), 8, seed=1, epoch=3)
    full = list(make_loader(data, batches, 2))
    fresh = StripDataset(OneStrip(), strong(), seed=1)  # a new process knows nothing of the old one's draws
    rest = list(make_loader(fresh, epoch_batches(range(128), 8, seed=1, epoch=3)[5:], 1))
    assert len(rest) == 11 and all(same(a, b) for a, b in zip(full[5:], rest, strict=True))


def test_an_item_does_not_depend_on_the_items_before_it(folder):
    data = StripDataset(folder, strong(), seed=2)
    items = [(e, i) for e in range(3) for i in range(len(folder))]
    first = {it: data[it] for it in items}
    random.Random(0).shuffle(items)
    for it in items:
        np.random.seed(it[1])
        random.seed(it[0])
        torch.manual_seed(it[1])  # nor on any global state
        assert same({k: v for k, v in data[it].items() if k != "index"}, first[it])


def test_another_seed_is_another_run():
    a, b = (
        draws(run(StripDataset(OneStrip(), strong(), seed=s), epoch_batches(range(128), 8, 0, 0, shuffle=False), 0))
        for s in (1, 2)
    )
    assert not set(a) & set(b)


# -- one image


def test_flips_are_independent_of_each_other_and_of_the_light():
    "With Compose.set_random_seed both flips happened together in 2,000 of 2,000, and light only on flipped images."
    t, code = train_transform(brightness=0.3), np.arange(60, 66, dtype=np.uint8).reshape(2, 3)
    mask = np.stack([code == code[0, 0]]).astype(np.uint8)
    seen = Counter()
    for s in range(2000):
        image, m = augment(t, code, mask, item_seed(0, 0, s))
        top, left = map(int, np.argwhere(m[0])[0])
        seen[top, left, sorted(image.ravel()) != sorted(code.ravel())] += 1
    for (top, left, lit), n in seen.items():
        expected = 2000 / 4 * (0.3 if lit else 0.7)
        assert abs(n - expected) < 5 * expected**0.5, (top, left, lit, n)
    assert len(seen) == 8


def test_the_recipes_rates():
    t, n = train_transform(), 3000
    code, mask = np.arange(60, 66, dtype=np.uint8).reshape(2, 3), np.zeros((1, 2, 3), np.uint8)
    out = [augment(t, code, mask, s)[0] for s in range(n)]
    lit = sum(sorted(o.ravel()) != sorted(code.ravel()) for o in out)
    assert abs(lit / n - 0.1) < 0.025
    grey = np.full((8, 8), 100, np.uint8)
    levels = {
        int(augment(train_transform(brightness=1), grey, np.zeros((1, 8, 8), np.uint8), s)[0][0, 0]) for s in range(400)
    }
    assert 64 <= min(levels) < 75 and 125 < max(levels) <= 136  # 100*(1±.1) ± 25.5


@pytest.mark.parametrize("c,h,w", [(4, 5, 7), (1, 5, 7), (3, 1, 9), (2, 9, 1), (7, 4, 4)])
def test_the_mask_goes_where_the_image_goes(c, h, w):
    image = np.arange(h * w, dtype=np.uint8).reshape(h, w)
    mask = np.stack([image % (k + 2) == 0 for k in range(c)]).astype(np.uint8)
    t = train_transform(brightness=0)
    for s in range(30):
        out, m = augment(t, image, mask, s)
        assert out.shape == (h, w) and m.shape == (c, h, w) and out.dtype == m.dtype == np.uint8
        assert all(np.array_equal(m[k], out % (k + 2) == 0) for k in range(c))
        assert np.array_equal(np.sort(out.ravel()), np.sort(image.ravel()))


def test_the_input_is_left_alone_and_the_output_is_its_own():
    image, mask = np.full((8, 8), 90, np.uint8), np.ones((2, 8, 8), np.uint8)
    for t in (strong(), A.Compose([]), train_transform(0, 0, 0)):
        out, m = augment(t, image, mask, 3)
        out[:], m[:] = 1, 7
        assert (image == 90).all() and (mask == 1).all()
        assert out.flags.c_contiguous and m.flags.c_contiguous


def test_other_transforms_and_nested_ones_are_as_reproducible():
    either = A.OneOf([A.GaussNoise(p=1), A.RandomGamma(p=1)], p=0.9)
    t = A.Compose([either, A.Affine(rotate=(-20, 20), p=1), A.RandomCrop(16, 32), A.CoarseDropout(p=0.5)])
    image, mask = OneStrip().image(""), OneStrip().mask("")
    image, mask = np.tile(image, (2, 1)), np.tile(mask, (1, 2, 1))
    first = [augment(t, image, mask, s) for s in range(40)]
    assert len({a.tobytes() for a, _ in first}) == 40
    for s, (a, m) in reversed(list(enumerate(first))):
        b, n = augment(t, image, mask, s)
        assert np.array_equal(a, b) and np.array_equal(m, n) and a.shape == (16, 32) and set(np.unique(m)) <= {0, 1}


def test_what_is_no_grey_uint8_image_is_refused():
    t, image, mask = strong(), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    for bad in (
        (image / 255, mask),
        (image[None], mask),
        (image, mask[0]),
        (image, mask[:, :4]),
        (image, mask.astype(bool)),
    ):
        with pytest.raises(ValueError, match="augment takes"):
            augment(t, *bad, 0)
    with pytest.raises(ValueError, match="the transform must return"):
        augment(A.Compose([A.ToFloat()]), image, mask, 0)


# -- the folder behind it


def test_an_item_is_the_image_and_its_mask(folder):
    data = StripDataset(folder)
    assert len(data) == 10
    for i, image_id in enumerate(folder.images.image_id):
        item = data[i]
        assert item["image"].dtype == item["mask"].dtype == torch.uint8 and item["index"] == i
        assert np.array_equal(item["image"][0].numpy(), folder.image(image_id))
        assert np.array_equal(item["mask"].numpy(), folder.mask(image_id))
        assert same({k: data[9, i][k] for k in ("image", "mask")}, item)
    for bad in (-1, 10, (0, 10)):
        with pytest.raises(IndexError):
            data[bad]
    assert len(list(data)) == 10  # a plain loop ends


@pytest.mark.parametrize(
    "workers,rows", [(0, (1, 2, 3)), (1, (2,))]
)  # torch waits 5 s for each worker of a loader that failed
def test_a_spoiled_image_stops_the_run_by_name(tmp_path, workers, rows):
    folder = read_folder(make_folder(tmp_path / "f", n_train=4, n_test=0, shape=(32, 96), seed=0))
    paths = folder.images.path
    cv2.imwrite(str(paths[1]), np.zeros((32, 95), np.uint8))
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    paths[3].unlink()
    data = StripDataset(folder, train_transform())
    for i in rows:
        says = {1: "is 32x95", 2: "not a readable image", 3: "cannot be read"}[i]
        with pytest.raises(ValueError, match=f"{paths[i].name}.*{says}"):
            run(data, [[(0, 0), (0, i)]], workers)


class Threads(StripDataset):
    "Says how many threads OpenCV has where an item is made."

    def __getitems__(self, items):
        return {"threads": torch.tensor([cv2.getNumThreads()] * len(items))}


def test_workers_keep_opencv_to_one_thread_and_the_global_generator_is_left_alone():
    before, state = cv2.getNumThreads(), torch.get_rng_state()
    for workers in (0, 2):
        got = run(Threads(OneStrip(8)), epoch_batches(range(8), 2, 0, 0), workers)["threads"]
        assert not workers or set(got.tolist()) == {1}
    assert cv2.getNumThreads() == before
    assert torch.equal(torch.get_rng_state(), state)


# -- epochs


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 9),
    world=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    drop=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_epochs_share_out_the_images(n, size, world, seed, epoch, shuffle, drop):
    indices = [3 * i + 1 for i in range(n)]

    def batches(size, rank, world):
        return epoch_batches(indices, size, seed, epoch, shuffle, drop, rank, world)

    if drop and n < world:
        with pytest.raises(ValueError, match=f"{n} images cannot feed {world} processes"):
            batches(size, 0, world)
        return
    ranks = [batches(size, r, world) for r in range(world)]
    flat = [i for b in ranks for s in b for e, i in s if e == epoch]
    assert len(flat) == sum(len(s) for b in ranks for s in b) and all(s for b in ranks for s in b)
    assert len(set(flat)) == len(flat) and set(flat) <= set(indices)
    if drop:
        assert len({len(b) for b in ranks}) == 1 and len(flat) == (n // (size * world) * size * world or n)
        assert n < size * world or all(len(s) == size for b in ranks for s in b)
    else:
        assert len(flat) == n
    one = batches(size * world, 0, 1)
    for s, step in enumerate(one):
        assert {it for b in ranks if s < len(b) for it in b[s]} == set(step)
    if not shuffle:
        assert [i for s in one for _, i in s] == indices[: len([1 for s in one for _ in s])]


def test_shuffling_is_fair_and_differs_between_epochs_and_seeds():
    orders = {
        (s, e): tuple(i for b in epoch_batches(range(100), 10, s, e) for _, i in b) for s in range(5) for e in range(20)
    }
    assert len(set(orders.values())) == 100 and all(sorted(o) == list(range(100)) for o in orders.values())
    place = np.mean([np.argsort(o) for o in orders.values()], axis=0)  # of each image, over 100 epochs
    assert abs(place - 49.5).max() < 5 * 28.9 / 10


def test_epochs_that_cannot_be_are_refused():
    for bad, says in (
        ((range(0), 2, 0, 0), "0 images"),
        (([1, 2, 1], 2, 0, 0), "twice"),
        ((range(4), 0, 0, 0), "batch_size 0"),
        ((range(4), 2, 0, 0, True, True, 2, 2), "rank 2 of 2"),
    ):
        with pytest.raises(ValueError, match=says):
            epoch_batches(*bad)


# -- a cache, a second folder, repeats


@pytest.mark.parametrize("workers", [0, 2])
def test_items_from_the_cache_are_those_from_the_files(folder, tmp_path, workers):
    extra = read_folder(make_folder(tmp_path / "extra", n_train=6, n_test=0, shape=(32, 96), seed=9), n_classes=4)
    caches = dict(
        cache=open_cache(folder, tmp_path / "c", progress=False),
        extra_cache=open_cache(extra, tmp_path / "c", progress=False),
    )
    for transform in (None, strong()):
        files, decoded = (StripDataset(folder, transform, 3, extra=extra, **more) for more in ({}, caches))
        batches = epoch_batches(range(16), 4, 0, 2) + [[(5, 0), (5, 0, 1), (5, 15, 7)]]
        a = run(files, batches, 0)
        assert same(a, run(decoded, batches, workers)) and same(
            a, run(pickle.loads(pickle.dumps(decoded)), batches, workers)
        )
        assert a["index"].tolist() == [item[1] for b in batches for item in b]
    for i in range(6):
        _, image_id = decoded[10 + i], extra.images.image_id[i]
        assert decoded.image_ids[10 + i] == image_id and len(decoded) == 16
        plain = StripDataset(folder, extra=extra)[10 + i]
        assert np.array_equal(plain["image"][0].numpy(), extra.image(image_id)) and np.array_equal(
            plain["mask"].numpy(), extra.mask(image_id)
        )
    with pytest.raises(IndexError, match="image 16 of 16"):
        decoded[16]
    with pytest.raises(ValueError, match="holds other images than .*f;"):
        StripDataset(folder, cache=caches["extra_cache"])


class Marked(OneStrip):
    "Images with 0, 1, 2 and 3 of four classes marked."

    marked = [], [2], [0, 3], [0, 1, 3]

    def __init__(self):
        self.images = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(4)]})

    def labels(self, image_id):
        return [(c, rle_encode(self.mask(image_id)[c])) for c in self.marked[int(image_id[0])]]

    def mask(self, image_id):
        mask = np.zeros((4, 16, 64), np.uint8)
        for c in self.marked[int(image_id[0])]:
            mask[c, c : c + 2, 10 * c + 1 : 10 * c + 9] = 1
        return mask


@pytest.mark.parametrize(
    "transform",
    [
        strong(),
        train_transform(crop=(8, 16)),
        train_transform(crop=(8, 16), crop_on_mask=1, blackout=0.3),
        train_transform(blackout=1, black_bars=1),
        A.Compose([]),
        A.Compose([A.HorizontalFlip(), A.CropNonEmptyMaskIfExists(8, 32)]),
        A.Compose([A.CoarseDropout(p=1, fill_mask=1)]),
    ],
)
def test_an_item_is_what_augment_makes_of_image_and_whole_mask(transform):
    "Though only marked channels are drawn and augmented. A transform of one's own may write to empty ones as well."
    folder = Marked()
    data, items = (
        StripDataset(folder, transform, seed=6),
        [(e, i, d) for e in range(12) for i in range(4) for d in range(2)],
    )
    got = run(data, [items[k : k + 7] for k in range(0, len(items), 7)], 0)
    for (e, i, d), image, mask in zip(items, got["image"], got["mask"], strict=True):
        wanted = augment(transform, folder.image(""), folder.mask(f"{i}.jpg"), item_seed(6, e, i, d))
        assert np.array_equal(image[0].numpy(), wanted[0]) and np.array_equal(mask.numpy(), wanted[1])


def test_an_extra_folder_must_fit(folder, tmp_path):
    other = make_folder(tmp_path / "small", n_train=6, n_test=0, shape=(32, 64), seed=9)
    with pytest.raises(ValueError, match="small: images of 32x64, the first folder has 32x96"):
        StripDataset(folder, extra=read_folder(other, n_classes=4))
    more = read_folder(folder.root, n_classes=5)
    with pytest.raises(ValueError, match=r"5 classes, .* read_folder\(.., n_classes=4\)"):
        StripDataset(folder, extra=more)


def test_an_item_is_its_own(folder, tmp_path):
    "Writing to one item, or one batch, changes no other, nor the cache."
    data = StripDataset(folder, cache=open_cache(folder, tmp_path, progress=False))
    first = {k: v.clone() for k, v in data[3].items() if k != "index"}
    item, (batch,) = data[3], list(make_loader(data, [[(0, 3), (0, 4)]]))
    for x in (item, batch):
        x["image"][:] = 7
        x["mask"][:] = 7
    assert same(first, {k: data[3][k] for k in first})


def test_repeats_in_an_epoch_are_augmented_differently():
    data = StripDataset(OneStrip(1), strong(), seed=1)
    assert len(set(draws(run(data, [[(0, 0, d) for d in range(64)], [(1, 0, d) for d in range(64)]], 0)))) == 128
    assert same(run(data, [[(2, 0, 0)]], 0), run(data, [[(2, 0)]], 0))


def test_a_transform_with_two_sizes_is_refused():
    data = StripDataset(OneStrip(), A.Compose([A.RandomCrop(16, 32, p=0.5)]))
    with pytest.raises(ValueError, match=r"^\d+\.jpg: the transform gives 16x\d\d, and 16x\d\d for another image"):
        run(data, epoch_batches(range(40), 40, 0, 0), 0)
    crop = run(StripDataset(OneStrip(), A.Compose([A.RandomCrop(8, 32)])), epoch_batches(range(40), 8, 0, 0), 2)
    assert crop["image"].shape == (40, 1, 8, 32) and crop["mask"].shape == (40, 4, 8, 32)


# -- samplers

RECIPE = np.repeat([-1, 0, 1, 2, 3], [5330, 805, 219, 4274, 683])[np.random.default_rng(0).permutation(11_311)]
GROUPED = ("upsample", "downsample", "balanced")


def times(order, n):
    return np.bincount([i for i, _ in order], minlength=n)


def test_groups_are_those_of_a_slow_loop(tmp_path):
    folder = read_folder(make_folder(tmp_path / "f", n_train=60, n_test=0, shape=(32, 96), seed=2), n_classes=4)
    sets = [{c for j, c in zip(folder.masks.image_id, folder.masks.channel) if j == i} for i in folder.images.image_id]
    n = [sum(c in s for s in sets) for c in range(4)]
    assert image_groups(folder).tolist() == [min(s, key=lambda c: (n[c], c)) if s else -1 for s in sets]
    tied = SimpleNamespace(truth_area=lambda: np.array([[0, 3, 3], [0, 3, 3], [1, 1, 0], [0, 0, 0]]))
    assert image_groups(tied).tolist() == [2, 2, 0, -1]  # class 3 is in two images, class 2 in three
    tied = SimpleNamespace(truth_area=lambda: np.array([[0, 3, 3], [0, 3, 3]]))
    assert image_groups(tied).tolist() == [1, 1]


def test_the_recipes_epochs_have_the_lengths_that_its_author_recorded():
    got = {s: epoch_order(range(11_311), s, 0, 0, RECIPE) for s in ("as_is", *GROUPED)}
    assert {s: len(o) for s, o in got.items()} == {
        "as_is": 11_311,
        "upsample": 26_650,
        "downsample": 1_095,
        "balanced": 11_311,
    }
    shown = {s: np.bincount(RECIPE[[i for i, _ in o]] + 1) for s, o in got.items()}
    assert shown["upsample"].tolist() == [5330] * 5 and shown["downsample"].tolist() == [219] * 5
    assert shown["balanced"].max() - shown["balanced"].min() == 1
    batches = epoch_batches(range(11_311), 8, 0, 0, sampler="balanced", groups=RECIPE)
    assert len(batches) == 1413 and {len(b) for b in batches} == {8}
    for b in batches:
        assert set(np.bincount(RECIPE[[item[1] for item in b]] + 1, minlength=5)) <= {1, 2}  # 8 over 5 groups


folds = st.lists(st.integers(-1, 3), min_size=1, max_size=60)


@given(
    groups=folds,
    sampler=st.sampled_from(GROUPED),
    seed=st.integers(0, 5),
    first=st.integers(0, 7),
    size=st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_groups_get_their_share_and_images_of_a_group_differ_by_at_most_one(groups, sampler, seed, first, size):
    groups, n = np.array(groups + [-1, 3]), len(groups)  # the last two are not in this fold
    there, counts = np.unique(groups[:n], return_counts=True)
    total = np.zeros(n, int)
    for epoch in range(first + 3):
        order = epoch_order(range(n), sampler, seed, epoch, groups)
        shown = times(order, n)
        total += shown
        per_group = [shown[groups[:n] == g].sum() for g in there]
        if sampler == "balanced":
            assert len(order) == n and max(per_group) - min(per_group) <= 1
        else:
            assert per_group == [(max if sampler == "upsample" else min)(counts)] * len(there)
        if sampler == "downsample":
            assert shown.max() == 1
        for so_far in (shown, total):  # in this epoch, and in all up to it
            for g in there:
                assert np.ptp(so_far[groups[:n] == g]) <= 1
        assert sorted(order) == sorted((i, d) for i in range(n) for d in range(shown[i]))  # draws are 0, 1, ..
        seen = Counter()
        for i, d in order:
            assert d == seen[i]
            seen[i] += 1
    if sampler == "balanced":  # any piece holds of each group as many as of the others, or one more
        for k in range(0, n - size + 1):
            piece = Counter({int(g): 0 for g in there}) + Counter()
            held = [sum(groups[i] == g for i, _ in order[k : k + size]) for g in there]
            assert max(held) - min(held) <= 1, piece


@given(
    n=st.integers(1, 60),
    m=st.integers(1, 30),
    share=st.floats(0.02, 0.9),
    seed=st.integers(0, 3),
    size=st.integers(1, 16),
)
@settings(max_examples=200, deadline=None)
def test_pseudo_labelled_images_have_a_fixed_share_of_every_batch(n, m, share, seed, size):
    pseudo, total = range(100, 100 + m), np.zeros(m, int)
    more = max(1, round(n * share / (1 - share)))
    for epoch in range(4):
        order = epoch_order(range(n), "pseudo", seed, epoch, pseudo=pseudo, share=share)
        assert len(order) == n + more and abs(more / len(order) - share) <= max(1 / len(order), 1 / (n + 1))
        shown = times(order, 100 + m)
        assert (shown[:n] == 1).all() and shown[n:100].sum() == 0
        total += shown[100:]
        assert np.ptp(shown[100:]) <= 1 and np.ptp(total) <= 1
        theirs = np.array([i >= 100 for i, _ in order])
        for k in range(0, len(order) - size + 1):
            assert abs(theirs[k : k + size].sum() - size * more / len(order)) < 1
    plain = [i for i, _ in epoch_order(range(n), "as_is", seed, 3)]
    assert [i for i, _ in order if i < 100] == plain  # the labelled ones as without them


@given(
    groups=folds,
    sampler=st.sampled_from(sorted(SAMPLERS)),
    size=st.integers(1, 5),
    world=st.integers(1, 3),
    drop=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_batches_of_any_sampler_are_its_order_cut(groups, sampler, size, world, drop):
    more = dict(groups=groups, pseudo=range(200, 207) if sampler == "pseudo" else ())
    order = [(1, i, d) if d else (1, i) for i, d in epoch_order(range(len(groups)), sampler, 4, 1, **more)]
    if drop and len(order) < world:
        return
    ranks = [epoch_batches(range(len(groups)), size, 4, 1, True, drop, r, world, sampler, **more) for r in range(world)]
    assert not drop or len({len(b) for b in ranks}) == 1
    steps = max(map(len, ranks))
    flat = [item for s in range(steps) for b in ranks if s < len(b) for item in b[s]]
    assert flat == order[: len(flat)] and (
        len(flat) == len(order) or drop and (len(flat) == len(order) // (size * world) * size * world or not flat)
    )


def test_as_is_is_the_order_that_runs_had_before_there_were_samplers():
    rng = np.random.default_rng(item_seed(7, 3, -1))
    assert [i for b in epoch_batches(range(30), 5, 7, 3) for _, i in b] == rng.permutation(30).tolist()


def test_epochs_and_seeds_differ():
    for sampler in ("as_is", *GROUPED):
        orders = {tuple(epoch_order(range(40), sampler, s, e, np.arange(40) % 3)) for s in range(3) for e in range(4)}
        assert len(orders) == 12, sampler
    first = [
        {i for i, _ in epoch_order(range(40), "downsample", 0, e, np.repeat([0, 1], [30, 10])) if i < 30}
        for e in range(3)
    ]
    assert all(len(f) == 10 for f in first) and set.union(*first) == set(range(30))  # three epochs see all 30


def test_orders_that_cannot_be_are_refused():
    g = [0, 0, 1]
    for bad, says in (
        ((range(3), "equal"), "sampler 'equal' is not one of as_is, upsample, downsample, balanced, pseudo"),
        ((range(3), "balanced"), "image_groups"),
        ((range(4), "upsample", 0, 0, g), "image_groups"),
        (([], "as_is"), "no images"),
        (([0, 0], "downsample", 0, 0, g), "twice"),
        ((range(3), "pseudo"), "with 0 pseudo"),
        ((range(3), "as_is", 0, 0, g, [3]), "with 1 pseudo"),
        ((range(3), "pseudo", 0, 0, g, [2, 3]), "twice"),
        ((range(3), "pseudo", 0, 0, g, [3], 1.0), "share 1.0"),
        ((range(3), "pseudo", 0, 0, g, [3], 0), "share 0"),
    ):
        with pytest.raises(ValueError, match=says):
            epoch_order(*bad)
    with pytest.raises(ValueError, match="decides the order itself"):
        epoch_batches(range(3), 2, 0, 0, shuffle=False, sampler="balanced", groups=g)


def test_the_mix_in_words():
    areas = np.zeros((11_311, 4), int)
    areas[RECIPE >= 0, RECIPE[RECIPE >= 0]] = 600

    class Folder:
        n_classes = 4

        def __len__(self):
            return len(areas)

        def truth_area(self):
            return areas

    def mix(sampler, **more):
        return epoch_mix(epoch_order(range(11_311), sampler, groups=RECIPE, **more), Folder(), 8)

    assert mix("as_is") == (
        "an epoch has 11,311 images in 1,413 batches of 8: none 5,330 (47%), class 1 805 (7%), class 2 219 (2%), "
        "class 3 4,274 (38%), class 4 683 (6%)"
    )
    assert mix("upsample").splitlines() == [
        "an epoch has 26,650 images in 3,331 batches of 8: none 5,330 (20%), class 1 5,330 (20%), "
        "class 2 5,330 (20%), class 3 5,330 (20%), class 4 5,330 (20%)",
        "different images: none 5,330 (1x), class 1 805 (6-7x), class 2 219 (24-25x), class 3 4,274 (1-2x), "
        "class 4 683 (7-8x)",
    ]
    assert mix("pseudo", pseudo=range(11_311, 17_000)).endswith("class 4 683 (4%), pseudo-labelled 4,848 (30%)")
    assert epoch_mix([(0, 0), (1, 0)], Folder()).startswith("an epoch has 2 images: ")


# -- real strips


@pytest.mark.real
@pytest.mark.parametrize("name,shape", [("severstal-sample", (4, 256, 1600)), ("neu-seg", (3, 200, 200))])
def test_real_strips_go_through(name, shape):
    folder = read_folder(real_data(name))
    data = StripDataset(folder, train_transform(), seed=0)
    batches = epoch_batches(range(len(folder)), 4, 0, 0)[:4]
    a, b = run(data, batches, 0), run(data, batches, 2)
    assert same(a, b) and a["mask"].shape == (16, *shape) and a["image"].shape == (16, 1, *shape[1:])
    areas = folder.truth_area()[a["index"].numpy()]
    assert np.array_equal(a["mask"].sum((2, 3)).numpy(), areas) and areas.any()  # a flip moves pixels and loses none
