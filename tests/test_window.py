"""Images of more than 8 bits a pixel: which window is found, and that a run reads everything through its own."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_train import TINY, weights

from steel_seg import cli, data
from steel_seg.cache import open_cache
from steel_seg.data import DataWarning, check_folder, read_folder
from steel_seg.dataset import StripDataset, epoch_batches, make_loader
from steel_seg.look.browse import open_data
from steel_seg.look.monitor import Monitor
from steel_seg.look.preview import AugmentPreview
from steel_seg.look.thumbs import Thumbs
from steel_seg.near_duplicates import near_duplicates
from steel_seg.open_run import open_run
from steel_seg.predict import predict_oof, predict_test, predict_unlabelled
from steel_seg.pseudo_folder import unlabelled_images
from steel_seg.state import load_state, save_state
from steel_seg.store import ProbStore
from steel_seg.synth import make_folder
from steel_seg.train import read_config, start_run, train_run
from steel_seg.window import Window, run_window

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = replace(TINY, epochs=1, save_every=0)


def rewrite(root, change, suffix=".png", ids=None):
    "Put change(image) in place of every image of a folder (of those in `ids`), with this suffix in all files."
    for path in sorted(Path(root).glob("*_images/*")):
        if ids is None or path.name in ids:
            image = change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
            path.unlink()
            cv2.imwrite(str(path.with_suffix(suffix)), image)
            for csv in Path(root).glob("*.csv"):
                csv.write_text(csv.read_text().replace(path.name, path.with_suffix(suffix).name))
    return Path(root)


def grey(image):
    "A strip of 8 bits that has a brightest pixel."
    image = image if image.ndim == 2 else image[..., 0]
    image[0, 0] = 255
    return image


def with_bits(bits, left=False):
    "A function that gives strips of 8 bits as many bits, the lowest at random; `left`: in the upper bits of 16."
    rng = np.random.default_rng(bits)

    def change(image):
        image = image.astype(np.uint16) << (bits - 8)
        image += rng.integers(0, 2 ** (bits - 8), image.shape, dtype=np.uint16)
        return image << (16 - bits) if left else image

    return change


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    "A folder of 8 bits."
    root = tmp_path_factory.mktemp("eight") / "strips"
    return rewrite(make_folder(root, n_train=16, n_test=4, shape=(32, 64), seed=5), grey)


@pytest.fixture
def copied(eight, tmp_path):
    "A copy of it."
    return Path(shutil.copytree(eight, tmp_path / "strips"))


@pytest.fixture(scope="module")
def twelve(eight, tmp_path_factory):
    "The same strips with 12 bits in files of 16."
    root = tmp_path_factory.mktemp("twelve") / "strips"
    return rewrite(shutil.copytree(eight, root), with_bits(12))


@pytest.fixture(scope="module")
def runs(eight, twelve, tmp_path_factory):
    "A run of each, trained and predicted."
    where = tmp_path_factory.mktemp("runs")
    for name, root in (("eight", eight), ("twelve", twelve)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            train_run(where / name, read_folder(root), replace(ONE, num_workers=0), progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a run knows its window
            predict_oof(where / name, read_folder(root), progress=False)
            predict_test(where / name, read_folder(root), progress=False)
    return where


@pytest.fixture
def trained(runs, tmp_path):
    "A copy of the run of 12 bits."
    return Path(shutil.copytree(runs / "twelve", tmp_path / "run"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_strips_come_back_from_any_bits(eight, copied, bits, left, suffix):
    before, after = read_folder(eight), read_folder(rewrite(copied, with_bits(bits, left), suffix))
    with pytest.warns(DataWarning) as said:
        for image_id in (*before.images.image_id, *before.test.image_id):
            seen = after.image(Path(image_id).stem + suffix)
            assert seen.dtype == np.uint8 and np.array_equal(seen, before.image(image_id))
    assert len(said) == 1 and f"window {after.window}, found" in str(said[0].message)
    assert after.window == Window(0, 2**16 - 2 ** (16 - bits) if left else 2**bits - 1)
    faults = check_folder(copied)
    assert faults.severity.tolist() == ["warning"] * 2 and all("levels are left" in text for text in faults.problem)


def test_colours_of_16_bits_are_known_by_their_headers(copied):
    rewrite(copied, lambda image: np.dstack([with_bits(12)(image)] * 3), ".tif")
    folder = read_folder(copied)
    assert len(folder.deep) == 20
    with pytest.warns(DataWarning, match="window 0:4095"):
        assert folder.image(folder.images.image_id[0]).max() == 255


@pytest.mark.parametrize(
    "change, kind",
    [
        (lambda image: image / np.float32(255), "float32"),
        (lambda image: image / 255, "float64"),
        (lambda image: image.astype(np.int16), "int16"),
        (lambda image: image.astype(np.int32), "int32"),
    ],
)
def test_pixels_that_are_no_levels_are_refused_by_name(copied, change, kind):
    name = sorted(path.name for path in (copied / "train_images").iterdir())[3]
    rewrite(copied, change, ".tif", [name])
    file = f"train_images/{Path(name).stem}.tif"
    with pytest.raises(ValueError, match=f"1 error\n  {file} .*(its pixels are {kind}|not a readable)"):
        read_folder(copied)
    assert check_folder(copied).file.tolist() == [file]


def test_a_folder_of_8_bits_counts_no_levels(eight, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "count_levels", lambda *a, **k: pytest.fail("levels were counted"))
    folder = read_folder(eight, window="5:9")
    first = folder.images.image_id[0]
    assert folder.deep == frozenset() and np.array_equal(folder.image(first), read_folder(eight).image(first))
    with pytest.warns(DataWarning, match="no image has more than 8 bits a pixel, so the window 0:4095 changes nothing"):
        start_run(tmp_path / "run", replace(ONE, window="0:4095"), folder)
    assert len(check_folder(eight)) == 0


def test_images_of_8_bits_stay_as_they_are_among_deep_ones(eight, copied):
    some = read_folder(eight).images.image_id[:3].tolist()
    rewrite(copied, with_bits(14), ids=some)
    before, after = read_folder(eight), read_folder(copied)
    with pytest.warns(DataWarning, match="3 of 16 images .* window 0:16383.*Images of 8 bits are read as they are"):
        for image_id in before.images.image_id:
            assert np.array_equal(after.image(image_id), before.image(image_id))


def test_a_damaged_image_does_not_hide_the_window_of_the_others(twelve, tmp_path):
    root = Path(shutil.copytree(twelve, tmp_path / "strips"))
    folder = read_folder(root)
    path = folder.images.path[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(DataWarning, match="window 0:4095"):
        assert folder.image(folder.images.image_id[1]).max() == 255
    with pytest.raises(ValueError, match=folder.images.image_id[0]):
        folder.image(folder.images.image_id[0])


def test_workers_do_not_look_for_the_window_again(twelve):
    with pytest.warns(DataWarning):
        images = StripDataset(read_folder(twelve))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = make_loader(images, epoch_batches(range(2), 2, 0, 0), 1)
    assert batch["image"].max() == 255


def test_training_on_12_bits_is_training_on_the_same_strips_of_8_bits(runs):
    assert read_config(runs / "twelve")[0].window == "0:4095" and read_config(runs / "eight")[0].window is None
    for fold in (0, 1):
        assert weights(runs / "eight", fold=fold) == weights(runs / "twelve", fold=fold)
    for part in ("oof", "test"):
        deep, plain = (ProbStore.open(runs / name / part) for name in ("twelve", "eight"))
        assert deep.image_ids == plain.image_ids and deep.fingerprint() == plain.fingerprint()


def test_a_run_predicts_through_its_own_window(twelve, runs, tmp_path):
    folder, other = read_folder(twelve), tmp_path / "stated"
    with pytest.warns(DataWarning, match="train_images: .* above the window 0:1000, .*: check the window"):
        train_run(other, folder, replace(ONE, window="0:1000"), progress=False)
    assert run_window(other) == Window(0, 1000)
    with pytest.warns(DataWarning, match="test_images: .* of their pixels are above the window 0:1000"):
        store = predict_test(other, folder, progress=False)
    direct = replace(folder, stated=Window(0, 1000))
    again = tmp_path / "again"
    shutil.copytree(other, again)
    shutil.rmtree(again / "test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert predict_test(again, direct, progress=False).fingerprint() == store.fingerprint()
    assert store.fingerprint() != ProbStore.open(runs / "twelve" / "test").fingerprint()


def test_other_images_do_not_change_the_window_of_a_run(twelve, trained, tmp_path):
    root = Path(shutil.copytree(twelve, tmp_path / "strips"))
    rewrite(root, lambda image: image * 16, ids=[path.name for path in (root / "test_images").iterdir()])
    folder = read_folder(root)
    shutil.rmtree(trained / "test")
    with pytest.warns(DataWarning, match="test_images: .* above the window 0:4095, up to level 65,"):
        predict_test(trained, folder, progress=False)
    assert run_window(trained) == Window(0, 4095)
    assert np.unique(open_run(trained, folder).folder.image(folder.test.image_id[0])).size < 20


def test_unlabelled_images_are_read_through_the_window_of_the_run(twelve, trained, eight, tmp_path):
    images = tmp_path / "more"
    shutil.copytree(twelve / "test_images", images)
    folder, _ = unlabelled_images(read_folder(twelve), images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = predict_unlabelled(trained, folder, 0, progress=False)
    assert folder.deep.issuperset(folder.test.path)
    plain, _ = unlabelled_images(read_folder(twelve), eight / "test_images")
    with pytest.warns(DataWarning, match="4 images have 8 bits a pixel, and the train images more than 8"):
        levels = predict_unlabelled(trained, plain, 0, progress=False)
    first = store.image_ids[0]
    assert np.array_equal(levels.read(first), store.read(first))  # the same strips


def test_resuming_keeps_the_window(twelve, trained):
    folder = read_folder(twelve)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (ONE, replace(ONE, window="0:4095"), replace(ONE, num_workers=1)):
            start_run(trained, same, folder)
            assert run_window(trained) == Window(0, 4095)
    with pytest.raises(ValueError, match="window was '0:4095', is now '0:1023'"):
        start_run(trained, replace(ONE, window="0:1023"), folder)


def forget_window(run):
    "Make a run what it was before there were windows."
    made = json.loads((run / "config.json").read_text())
    del made["config"]["window"]
    (run / "config.json").write_text(json.dumps(made))
    tensors, facts = load_state(run / "fold_0/state.safetensors")
    del facts["made"]["window"]
    save_state(run / "fold_0/state.safetensors", tensors, facts)


@pytest.mark.parametrize("name", ["eight", "twelve"])
def test_a_run_from_before_there_were_windows_goes_on(name, eight, twelve, tmp_path):
    folder, run, two = read_folder({"eight": eight, "twelve": twelve}[name]), tmp_path / "run", replace(ONE, epochs=2)
    as_before = folder.with_window("0:65535")

    def stop(epoch, step):
        if epoch == 1:
            raise KeyboardInterrupt

    for where, on_step in ((tmp_path / "calm", None), (run, stop)):
        try:
            train_run(where, as_before, two, only=0, progress=False, on_step=on_step)
        except KeyboardInterrupt:
            forget_window(where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_run(run, folder, two, only=0, progress=False)
    assert weights(run) == weights(tmp_path / "calm")
    assert run_window(run) == Window(0, 65535)


def test_a_run_begins_with_the_window_of_the_one_before(twelve, trained, tmp_path):
    folder = read_folder(twelve)
    made = json.loads((trained / "config.json").read_text())
    made["config"]["window"] = "0:8000"
    (trained / "config.json").write_text(json.dumps(made))
    start_run(tmp_path / "next", replace(ONE, init_from=str(trained)), folder)
    assert run_window(tmp_path / "next") == Window(0, 8000)


def test_pseudo_labels_are_read_through_the_window_of_the_run(twelve, eight, tmp_path):
    labels = Path(shutil.copytree(twelve, tmp_path / "labels"))
    shutil.rmtree(labels / "test_images")
    (labels / "sample_submission.csv").unlink()
    names = {path.name: f"x{path.name}" for path in (labels / "train_images").iterdir()}
    for old, new in names.items():
        (labels / "train_images" / old).rename(labels / "train_images" / new)
        (labels / "train.csv").write_text((labels / "train.csv").read_text().replace(old, new))
    for name, root in (("deep", twelve), ("plain", eight)):
        if name == "plain":
            for path in (labels / "train_images").iterdir():
                shutil.copy(eight / "train_images" / path.name[1:], path)
        config = replace(ONE, sampler="pseudo", pseudo=str(labels), window="0:4095" if name == "deep" else None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train_run(tmp_path / name, read_folder(root), config, only=0, progress=False)
    assert weights(tmp_path / "deep") == weights(tmp_path / "plain")


def test_decoded_images_of_another_window_are_not_taken(twelve, tmp_path):
    folder = read_folder(twelve)
    caches = [open_cache(folder.with_window(window), tmp_path, progress=False) for window in ("0:4095", "0:1023")]
    assert caches[0].path != caches[1].path
    for cache, window in zip(caches, ("0:4095", "0:1023")):
        assert np.array_equal(cache[3], folder.with_window(window).image(folder.images.image_id[3]))


def test_widgets_show_what_the_run_sees(twelve, eight, trained):
    made = json.loads((trained / "config.json").read_text())
    made["config"]["window"] = "0:2000"
    (trained / "config.json").write_text(json.dumps(made))
    folder = read_folder(twelve)
    first = folder.images.image_id[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no window is looked for
        seen = folder.with_window("0:2000").image(first)
        shown, opened = open_data(trained, folder)
        assert np.array_equal(shown.image(first), seen) and opened.folder is shown
        files = Monitor(trained, folder)
        assert np.array_equal(files.files.strip(first)[0], seen)
        assert np.array_equal(AugmentPreview(folder, read_config(trained)[0]).folder.image(first), seen)
        assert np.array_equal(Thumbs(shown)._steel(first)[..., 0], seen)  # so small that nothing is reduced
    with pytest.warns(DataWarning, match="window 0:4095"):
        alike = Thumbs(read_folder(twelve))._steel(first)
    assert np.array_equal(alike, Thumbs(read_folder(eight))._steel(first))


def test_copies_of_other_depth_are_found(eight, copied):
    folder = read_folder(eight)
    path = folder.images.path[2]
    deep = with_bits(12)(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    cv2.imwrite(str(copied / "train_images" / "twin.png"), deep)
    with pytest.warns(DataWarning, match="window 0:4095"):
        pairs = near_duplicates(read_folder(copied))
    assert any({"twin.png", path.name} == {*pair} for pair in pairs[["first", "second"]].itertuples(index=False))


@pytest.mark.parametrize("window", ["5:5", "9:5", "a:b", "0:70000", "-1:3", "0:4095:1"])
@pytest.mark.parametrize("command", ["train", "check-data"])
def test_a_window_that_cannot_be_is_refused_in_one_line(twelve, tmp_path, capsys, command, window):
    where = ["--data", twelve, "--run", tmp_path / "run"] if command == "train" else [twelve]
    try:
        code = cli.main([command, *map(str, where), f"--window={window}"])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and f"{window!r} is not a window of levels: write LOW:HIGH" in said
    assert not (tmp_path / "run").exists()


def test_check_data_says_what_a_stated_window_leaves(twelve, capsys):
    assert cli.main(["check-data", str(twelve), "--window", "0:1023"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "window 0:1023. 217 of" in lines[0] and "of the pixels are above it" in lines[0]
    assert any("of the pixels are above the window 0:1023, up to" in line for line in lines[1:])


def test_a_submission_for_tiff_images_is_checked_against_their_size(copied, capsys):
    rewrite(copied, with_bits(12), ".tif")
    names = sorted(path.name for path in (copied / "test_images").iterdir())
    submission = copied / "submission.csv"
    submission.write_text("\n".join(["ImageId,EncodedPixels,ClassId", f"{names[0]},2049 1,1"]))
    assert cli.main(["check", str(submission)]) == 1
    assert "(images of 32x64)" in capsys.readouterr().out
