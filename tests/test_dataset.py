"""Augmentation and loading: what happens to image i in epoch e is a function of (seed, e, i), whoever does it and when."""
import random
from collections import Counter

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import real_data
from hypothesis import given, settings, strategies as st

from steel_seg.augment import augment, item_seed, train_transform
from steel_seg.data import read_folder
from steel_seg.dataset import StripDataset, epoch_batches, make_loader
from steel_seg.synth import make_folder

# A loader whose worker failed may complain from its queue's thread, as late as in the next test (torch 2.14, Python 3.11).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class OneStrip:
    "Stands in for a folder: n images that are all alike, so that two items differ only by what augmentation did."
    def __init__(self, n=128):
        self.images = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(n)]})

    def image(self, image_id): return np.arange(16*64, dtype=np.uint16).reshape(16, 64).astype(np.uint8)

    def mask(self, image_id):
        mask = np.zeros((4, 16, 64), np.uint8)
        mask[1, 2:5, 3:20] = 1
        return mask


def strong():
    "Flips and light in every image, with continuous parameters."
    return train_transform(brightness=1, limit=.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return read_folder(make_folder(tmp_path_factory.mktemp("data")/"f", n_train=10, n_test=0, shape=(32, 96), seed=4))


def run(dataset, batches, workers):
    "All items that a loader gives, joined."
    got = list(make_loader(dataset, batches, workers))
    return {k: torch.cat([b[k] for b in got]) for k in got[0]}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


def draws(items): return [(i.numpy().tobytes(), m.numpy().tobytes()) for i, m in zip(items["image"], items["mask"])]


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
        for workers in (1, 2, 3): assert same(run(data, batches, workers), alone), f"{workers} workers, epoch {epoch}"
    assert len(seen) == 256  # the second epoch repeats nothing of the first


def test_the_seeds_of_128_images_over_two_epochs_and_two_runs_are_512_numbers():
    assert len({item_seed(s, e, i) for s in (0, 1) for e in (0, 1) for i in range(128)}) == 512


def test_item_seeds_are_fixed_numbers():
    "Another machine, or the next version, must resume the same run."
    assert [item_seed(0, 0, 0), item_seed(0, 0, 1)] == [1137086854, 244602362]
    assert [item_seed(0, 1, 0), item_seed(1, 0, 0)] == [3492848626, 1411450048]
    assert item_seed(np.int64(1), np.int32(0), np.uint8(0)) == item_seed(1, 0, 0)


def test_item_seeds_do_not_line_up():
    "seed + epoch*n + i has (0,1,0) equal to (0,0,n); and neighbours share no bits more than strangers do."
    grid = np.array([[[item_seed(s, e, i) for i in range(40)] for e in range(40)] for s in range(10)], dtype=np.uint64)
    assert len(np.unique(grid)) == grid.size
    for axis in range(3):
        n = grid.shape[axis]
        pairs = zip(grid.take(range(1, n), axis).ravel().tolist(), grid.take(range(n - 1), axis).ravel().tolist())
        changed = np.array([(a ^ b).bit_count() for a, b in pairs])
        assert abs(changed.mean() - 16) < .2  # half of 32 bits
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
        np.random.seed(it[1]); random.seed(it[0]); torch.manual_seed(it[1])  # nor on any global state
        assert same({k: v for k, v in data[it].items() if k != "index"}, first[it])


def test_another_seed_is_another_run():
    a, b = (draws(run(StripDataset(OneStrip(), strong(), seed=s), epoch_batches(range(128), 8, 0, 0, shuffle=False), 0)) for s in (1, 2))
    assert not set(a) & set(b)


# -- one image

def test_flips_are_independent_of_each_other_and_of_the_light():
    "With Compose.set_random_seed both flips happened together in 2,000 of 2,000, and light only on flipped images."
    t, code = train_transform(brightness=.3), np.arange(60, 66, dtype=np.uint8).reshape(2, 3)
    mask = np.stack([code == code[0, 0]]).astype(np.uint8)
    seen = Counter()
    for s in range(2000):
        image, m = augment(t, code, mask, item_seed(0, 0, s))
        top, left = map(int, np.argwhere(m[0])[0])
        seen[top, left, sorted(image.ravel()) != sorted(code.ravel())] += 1
    for (top, left, lit), n in seen.items():
        expected = 2000/4*(.3 if lit else .7)
        assert abs(n - expected) < 5*expected**.5, (top, left, lit, n)
    assert len(seen) == 8


def test_the_recipes_rates():
    t, n = train_transform(), 3000
    code, mask = np.arange(60, 66, dtype=np.uint8).reshape(2, 3), np.zeros((1, 2, 3), np.uint8)
    out = [augment(t, code, mask, s)[0] for s in range(n)]
    lit = sum(sorted(o.ravel()) != sorted(code.ravel()) for o in out)
    assert abs(lit/n - .1) < .025
    grey = np.full((8, 8), 100, np.uint8)
    levels = {int(augment(train_transform(brightness=1), grey, np.zeros((1, 8, 8), np.uint8), s)[0][0, 0]) for s in range(400)}
    assert 64 <= min(levels) < 75 and 125 < max(levels) <= 136  # 100*(1±.1) ± 25.5


@pytest.mark.parametrize("c,h,w", [(4, 5, 7), (1, 5, 7), (3, 1, 9), (2, 9, 1), (7, 4, 4)])
def test_the_mask_goes_where_the_image_goes(c, h, w):
    image = np.arange(h*w, dtype=np.uint8).reshape(h, w)
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
    either = A.OneOf([A.GaussNoise(p=1), A.RandomGamma(p=1)], p=.9)
    t = A.Compose([either, A.Affine(rotate=(-20, 20), p=1), A.RandomCrop(16, 32), A.CoarseDropout(p=.5)])
    image, mask = OneStrip().image(""), OneStrip().mask("")
    image, mask = np.tile(image, (2, 1)), np.tile(mask, (1, 2, 1))
    first = [augment(t, image, mask, s) for s in range(40)]
    assert len({a.tobytes() for a, _ in first}) == 40
    for s, (a, m) in reversed(list(enumerate(first))):
        b, n = augment(t, image, mask, s)
        assert np.array_equal(a, b) and np.array_equal(m, n) and a.shape == (16, 32) and set(np.unique(m)) <= {0, 1}


def test_what_is_no_grey_uint8_image_is_refused():
    t, image, mask = strong(), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    for bad in ((image/255, mask), (image[None], mask), (image, mask[0]), (image, mask[:, :4]), (image, mask.astype(bool))):
        with pytest.raises(ValueError, match="augment takes"): augment(t, *bad, 0)
    with pytest.raises(ValueError, match="the transform must return"): augment(A.Compose([A.ToFloat()]), image, mask, 0)


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
        with pytest.raises(IndexError): data[bad]
    assert len(list(data)) == 10  # a plain loop ends


@pytest.mark.parametrize("workers", [0, 2])
def test_a_spoiled_image_stops_the_run_by_name(tmp_path, workers):
    folder = read_folder(make_folder(tmp_path/"f", n_train=4, n_test=0, shape=(32, 96), seed=0))
    paths = folder.images.path
    cv2.imwrite(str(paths[1]), np.zeros((32, 95), np.uint8))
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    paths[3].unlink()
    data = StripDataset(folder, train_transform())
    for i, says in ((1, "32x95"), (2, ""), (3, "")):
        with pytest.raises(ValueError, match=f"{paths[i].name}.*{says}"): run(data, [[(0, 0), (0, i)]], workers)


class Threads(StripDataset):
    "Says how many threads OpenCV has where an item is made."
    def __getitem__(self, item): return {"threads": cv2.getNumThreads()}


def test_workers_keep_opencv_to_one_thread_and_the_global_generator_is_left_alone():
    before, state = cv2.getNumThreads(), torch.get_rng_state()
    for workers in (0, 2):
        got = run(Threads(OneStrip(8)), epoch_batches(range(8), 2, 0, 0), workers)["threads"]
        assert not workers or set(got.tolist()) == {1}
    assert cv2.getNumThreads() == before
    assert torch.equal(torch.get_rng_state(), state)


# -- epochs

@given(n=st.integers(1, 60), size=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(0, 3), epoch=st.integers(0, 3),
       shuffle=st.booleans(), drop=st.booleans())
@settings(max_examples=300, deadline=None)
def test_epochs_share_out_the_images(n, size, world, seed, epoch, shuffle, drop):
    indices = [3*i + 1 for i in range(n)]
    def batches(size, rank, world): return epoch_batches(indices, size, seed, epoch, shuffle, drop, rank, world)
    if drop and n < world:
        with pytest.raises(ValueError, match=f"{n} images cannot feed {world} processes"): batches(size, 0, world)
        return
    ranks = [batches(size, r, world) for r in range(world)]
    flat = [i for b in ranks for s in b for e, i in s if e == epoch]
    assert len(flat) == sum(len(s) for b in ranks for s in b) and all(s for b in ranks for s in b)
    assert len(set(flat)) == len(flat) and set(flat) <= set(indices)
    if drop:
        assert len({len(b) for b in ranks}) == 1 and len(flat) == (n//(size*world)*size*world or n)
        assert n < size*world or all(len(s) == size for b in ranks for s in b)
    else: assert len(flat) == n
    one = batches(size*world, 0, 1)
    for s, step in enumerate(one): assert {it for b in ranks if s < len(b) for it in b[s]} == set(step)
    if not shuffle: assert [i for s in one for _, i in s] == indices[:len([1 for s in one for _ in s])]


def test_shuffling_is_fair_and_differs_between_epochs_and_seeds():
    orders = {(s, e): tuple(i for b in epoch_batches(range(100), 10, s, e) for _, i in b) for s in range(5) for e in range(20)}
    assert len(set(orders.values())) == 100 and all(sorted(o) == list(range(100)) for o in orders.values())
    place = np.mean([np.argsort(o) for o in orders.values()], axis=0)  # of each image, over 100 epochs
    assert abs(place - 49.5).max() < 5*28.9/10


def test_epochs_that_cannot_be_are_refused():
    for bad, says in (((range(0), 2, 0, 0), "0 images"), (([1, 2, 1], 2, 0, 0), "twice"), ((range(4), 0, 0, 0), "batch_size 0"),
                      ((range(4), 2, 0, 0, True, True, 2, 2), "rank 2 of 2")):
        with pytest.raises(ValueError, match=says): epoch_batches(*bad)


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
