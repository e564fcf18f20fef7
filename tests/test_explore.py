"""A data folder explored: figures against masks made one by one, near-duplicates against copies, no tag from a file."""

import csv
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from ipywidgets import BoundedIntText, Button, Dropdown, Text, ToggleButtons
from made import CASES, HOSTILE, ODD_PIECES, Tags, make_run, only_our_tags, parts, pixels

import steel_seg.folder_facts as folder_facts
import steel_seg.look.explore as explore
from steel_seg import near_duplicates as nearly
from steel_seg.data import check_folder, read_folder
from steel_seg.look.explore import DataBrowser, FaultList, ImagePages, Labelled, Table, TwinList
from steel_seg.rle import rle_encode


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: read_folder(make_run(tmp_path_factory.mktemp("mill") / "run", **case) / "data")
        for name, case in CASES.items()
    }


def all_masks(folder):
    return np.stack([folder.mask(i) for i in folder.images.image_id]) > 0


def write_folder(root, images, masks=None, classes=2):
    "A folder of these images (id to array, or to the bytes of a file) and masks (id to (C,H,W))."
    (root / "train_images").mkdir(parents=True)
    rows = [["ImageId_ClassId", "EncodedPixels"]]
    for i, image in images.items():
        data = image if isinstance(image, bytes) else cv2.imencode(i[-4:], image)[1].tobytes()
        (root / "train_images" / i).write_bytes(data)
        mask = (masks or {}).get(i)
        rows += [[f"{i}_{c + 1}", "" if mask is None else rle_encode(mask[c])] for c in range(classes)]
    with open(root / "train.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)
    return root


def steel(seed, shape=(128, 400)):
    "Texture that no other seed has, under a light that all share."
    rng = np.random.default_rng(seed)
    fine = sum(cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), s) * 20 * s for s in (1, 3, 8))
    image = 120 + fine + np.linspace(-40, 40, shape[1])
    image[:, :30] = 0  # the edge of the strip
    return np.clip(image, 0, 255).astype(np.uint8)


# --- numbers


@pytest.mark.parametrize("name", CASES)
def test_counts_sizes_and_places_are_those_of_the_masks(folders, name):
    folder = folders[name]
    masks = all_masks(folder)
    there, n = masks.any((2, 3)), len(masks)
    counts, together, sizes, heat = (
        folder_facts.class_counts(folder),
        folder_facts.co_occurrence(folder),
        folder_facts.area_quantiles(folder),
        folder_facts.label_places(folder),
    )
    assert counts.images.tolist() == [n, (~there.any(1)).sum(), (there.sum(1) >= 2).sum(), *there.sum(0)]
    assert counts.pixels.tolist()[3:] == masks.sum((0, 2, 3)).tolist() and counts.pixels["all"] == masks.sum()
    assert counts.predict_nothing["all"] == pytest.approx(np.mean(~there)) and counts.share["clean"] == pytest.approx(
        np.mean(~there.any(1))
    )
    for a in range(folder.n_classes):
        for b in range(folder.n_classes):
            assert together.iat[a, b] == (there[:, a] & there[:, b]).sum()
        mine = masks[there[:, a], a]
        assert np.allclose(heat[a], mine.mean(0) if len(mine) else 0, atol=1e-6)
        areas = mine.sum((1, 2))
        if len(areas):
            assert sizes.iloc[a].tolist() == [len(areas), *np.quantile(areas, [0.02, 0.5, 0.98])]
        else:
            assert sizes.images.iat[a] == 0 and sizes.iloc[a, 1:].isna().all()


@pytest.mark.parametrize("show", ["all", "clean", "two or more classes", "class 1", "class 4"])
def test_images_chosen_are_those_that_fit_and_sorted(folders, show):
    folder = folders["strips"]
    pages = ImagePages(folder)
    pages.show = show
    masks = dict(zip(folder.images.image_id, all_masks(folder)))
    there = {i: m.any((1, 2)) for i, m in masks.items()}
    fits = {
        "all": lambda t: True,
        "clean": lambda t: not t.any(),
        "two or more classes": lambda t: t.sum() > 1,
        "class 1": lambda t: t[0],
        "class 4": lambda t: t[3],
    }[show]
    assert list(pages.ids) == [i for i in masks if fits(there[i])]

    def size(i):
        return masks[i][int(show[-1]) - 1].sum() if show.startswith("class") else masks[i].sum()

    for sort, sign in ("largest first", -1), ("smallest first", 1):
        pages.sort = sort
        areas = [sign * int(size(i)) for i in pages.ids]
        assert areas == sorted(areas)


def test_labels_that_moved_along_do_not_differ():
    rng = np.random.default_rng(0)
    for x, y in [(0, 0), (3, 0), (0, -4), (-5, 2), (7, 6)]:
        mask = rng.integers(0, 2, (3, 20, 30)).astype(np.uint8)
        other = np.roll(mask, (y, x), (1, 2))
        assert (
            not nearly.label_difference(mask, other, x, y).any()
            and not nearly.label_difference(other, mask, -x, -y).any()
        )
        other[2, 10, 15] ^= 1
        assert np.argwhere(nearly.label_difference(mask, other, x, y)).tolist() == [[10 - y, 15 - x]]


# --- near-duplicates


def test_near_duplicates_are_the_copies_and_nothing_else(tmp_path):
    images = {f"{k:02}.png": steel(k) for k in range(60)}
    masks = {"03.png": np.zeros((2, 128, 400), np.uint8)}
    masks["03.png"][1, 20:40, 100:150] = 1

    def jpeg(image, q):
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, q])[1], cv2.IMREAD_GRAYSCALE)

    lighter = np.clip(images["10.png"] * 1.1 + 10, 0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 4, (128, 400))
    copies = {
        "a.png": ("03.png", images["03.png"]),
        "b.png": ("10.png", lighter),
        "c.png": ("20.png", np.roll(images["20.png"], 2, 1)),
        "d.png": ("30.png", np.clip(images["30.png"] + noise, 0, 255).astype(np.uint8)),
        "e.png": ("40.png", jpeg(images["40.png"], 50)),
        "f.png": ("40.png", jpeg(images["40.png"], 30)),
    }
    other = {
        "mirrored.png": images["50.png"][:, ::-1],
        "torn.png": cv2.imencode(".png", images["51.png"])[1].tobytes()[:400],
    }
    (root := tmp_path / "mill").mkdir()
    write_folder(root, {**images, **{i: image for i, (_, image) in copies.items()}, **other}, masks)
    found = nearly.near_duplicates(read_folder(root))
    groups = {frozenset(g) for _, rows in found.groupby("group") for g in [{*rows["first"], *rows["second"]}]}
    assert groups == {
        frozenset(p)
        for p in [
            ("03.png", "a.png"),
            ("10.png", "b.png"),
            ("20.png", "c.png"),
            ("30.png", "d.png"),
            ("40.png", "e.png", "f.png"),
        ]
    }
    assert len(found) == 6 and found.group.nunique() == 5
    same = found[found.same_bytes]
    assert same[["first", "second", "likeness", "differ"]].values.tolist() == [
        ["03.png", "a.png", 1.0, 20 * 50]
    ] and found.index[found.same_bytes].tolist() == [0]
    assert found.set_index("second").loc["c.png", ["right", "down"]].tolist() == [2, 0]
    assert not found[~found.same_bytes & (found.second != "c.png")][["right", "down"]].to_numpy().any()


def test_flat_and_single_images_have_no_twins(tmp_path):
    flat = {f"{k}.png": np.full((64, 200), k, np.uint8) for k in range(3)}
    assert len(nearly.near_duplicates(read_folder(write_folder(tmp_path / "flat", flat)))) == 0
    one = read_folder(write_folder(tmp_path / "one", {"a.png": steel(0)}))
    twins = TwinList(one)
    twins.look_for()
    assert len(twins.pairs) == 0 and "No image is there twice" in twins.text.value and twins.picture().data


def test_the_shift_of_two_pictures_is_found():
    image = steel(5)
    for x, y in [(0, 0), (9, 0), (-12, 5), (3, -7)]:
        r, *shift = nearly.likeness(image[20:100, 60:360], image[20 - y : 100 - y, 60 - x : 360 - x])
        assert shift == [x, y] and r > 0.99
    assert abs(nearly.likeness(image, steel(6))[0]) < 0.3


# --- the widgets


@pytest.mark.parametrize("name", CASES)
def test_every_view_opens_and_escapes_and_has_a_picture(folders, name):
    browser = DataBrowser(folders[name])
    for view in browser.views:
        browser.view = view
        if view == "near-duplicates":
            browser.part(view).work.button.click()
        if view == "images":
            for i in folders[name].images.image_id:
                browser.image_id = i
                assert browser.part(view).large.image_id == i
                only_our_tags(browser)
        only_our_tags(browser)
        for control in (
            p for p in parts(browser) if isinstance(p, (Dropdown, Text, Button, BoundedIntText, ToggleButtons))
        ):
            assert control.description
        if name in ("one image", "squares") or view not in (
            "classes",
            "sizes",
            "places",
        ):  # a figure takes a while to draw
            height, width = pixels(browser.picture().data).shape[:2]
            assert width <= 1250 and height <= 1100


def test_large_view_shows_the_labels(folders):
    folder = folders["strips"]
    view = Labelled(folder)
    for i, masks in zip(folder.images.image_id, all_masks(folder)):
        view.image_id = i
        view.view.shown = ("image", "labels")
        assert np.array_equal(np.ptp(view.flat().astype(int), axis=2) > 0, masks.any(0))
        assert all(f"class {c + 1}: {m.sum():,} px" in view.text.value for c, m in enumerate(masks) if m.any())


def test_pages_turn_and_the_gallery_keys_and_picker_agree(folders):
    pages = ImagePages(folders["strips"], size=4)
    seen = []
    for _ in range(3):
        seen += pages.page()[0]
        assert [c.split(" · ")[0] for c in pages.gallery.captions] == list(pages.page()[0])
        pages.on.click()
    assert seen == list(pages.ids) and pages.on.disabled
    pages.gallery._handle_custom_msg({"key": "p"}, [])  # as if it came from the browser
    assert pages.image_id == pages.ids[7] and pages.gallery.chosen == 3 and pages.where.value == "page 2 of 3"
    pages.gallery.chosen = 0
    assert pages.image_id == pages.ids[4] == pages.large.image_id
    pages.show = "clean"
    assert pages.image_id == pages.ids[0] and len(pages.gallery.pictures) == len(pages.ids)


def test_an_unreadable_image_is_said_and_not_raised(tmp_path):
    whole = cv2.imencode(".png", steel(1))[1].tobytes()
    folder = read_folder(write_folder(tmp_path / "mill", {"a.png": steel(0), "<b>torn.png": whole[: len(whole) // 2]}))
    pages = ImagePages(folder)
    pages.image_id = "<b>torn.png"
    assert "truncated" in pages.large.text.value and len(pages.gallery.pictures) == 2
    only_our_tags(pages)
    faults = FaultList(folder)
    assert len(faults.table) == 0
    faults.work.button.click()
    assert faults.table.problem.str.contains("truncated").sum() == 1 and not faults.work.button.disabled
    faults.fault = 0
    assert faults.large.image_id == "<b>torn.png"
    only_our_tags(faults)
    assert faults.picture().data


def test_faults_are_those_of_check_folder(tmp_path):
    folder = write_folder(
        tmp_path / "mill",
        {f"{k}.png": steel(k) for k in range(3)}
        | {"twin.png": steel(0), "colour.png": np.dstack([steel(1), steel(2), steel(3)])},
        {"twin.png": np.ones((2, 128, 400), np.uint8)},
    )
    (folder / "train_images" / "notes.txt").write_text("x")
    faults = FaultList(read_folder(folder))
    pd.testing.assert_frame_equal(faults.table, check_folder(folder, read_images=False))
    faults.read_images()
    assert set(faults.table.problem) == set(check_folder(folder).problem) and len(faults.table) == len(
        check_folder(folder)
    )
    assert [r[5] for r in faults.rows.rows] == faults.shown.problem.tolist()
    faults.severity = "error"
    assert len(faults.shown) == len(faults.rows.rows) == 0 and faults.rows.layout.display == "none"
    with pytest.raises(ValueError, match="fault 0: 0 are listed"):
        faults.fault = 0


def test_a_refused_folder_shows_why(tmp_path):
    root = write_folder(tmp_path / "mill", {"a.png": steel(0)})
    with open(root / "train.csv", "a") as f:
        f.write("<img src=x>.png_1,1 2\na.png_2,5 5\n")
    browser = DataBrowser(root)
    assert browser.views == ("faults",) and "cannot be used" in browser.text.value
    assert set(browser.part("faults").table.severity) == {"error"} and browser.picture().data
    only_our_tags(browser)
    with pytest.raises(ValueError, match="give 'faults'"):
        browser.view = "images"
    with pytest.raises(ValueError, match="no such folder"):
        DataBrowser(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused_and_changes_nothing(folders):
    browser = DataBrowser(folders["strips"])
    browser.show, browser.image_id = "class 1", folders["strips"].images.image_id[0]
    for name, value in [("view", "x"), ("show", "class 9"), ("sort", "x"), ("image_id", "x"), ("severity", "x")]:
        before = getattr(browser, name)
        with pytest.raises(ValueError, match="'x'|'class 9'"):
            setattr(browser, name, value)
        assert getattr(browser, name) == before
    assert browser.part("images").show == browser.show == "class 1"
    browser.part("images").menu.value = "clean"
    assert browser.show == "clean"


def test_text_from_files_never_becomes_a_tag(folders):
    rng = np.random.default_rng(0)
    faults, twins = FaultList(folders["strips"]), TwinList(folders["strips"])
    strings = ["".join(rng.choice(ODD_PIECES, rng.integers(1, 5))) for _ in range(200)]
    faults.table = pd.DataFrame([(s, k, s, s, "error", s) for k, s in enumerate(strings)], columns=faults.table.columns)
    faults._list()
    only_our_tags(faults)
    assert [r[5] for r in faults.rows.rows] == strings and faults.picture().data
    for text in strings:
        faults.work.line.value = ""
        explore._Bars(faults.work.line).write(text)
        assert not Tags(faults.work.line.value).seen - {"div", "div style"}
    assert "innerHTML" not in Table._esm + twins.large[0].view._esm  # cells are filled as text


def test_hostile_ids_in_pairs(tmp_path):
    images = {i: steel(k // 2) for k, i in enumerate(HOSTILE)}
    twins = TwinList(read_folder(write_folder(tmp_path / "mill", images)))
    twins.look_for()
    assert len(twins.pairs) == 3
    for k in range(3):
        twins.pair = k
        only_our_tags(twins)
        assert twins.picture().data


def test_exploring_loads_no_torch():
    code = "import sys, steel_seg.look.explore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.real
@pytest.mark.parametrize("name,classes", [("severstal-sample", 4), ("neu-seg", 3)])
def test_real_folders(name, classes):
    browser = DataBrowser(real_data(name))
    counts = folder_facts.class_counts(browser.folder)
    assert len(counts) == 3 + classes and (counts.images[3:] > 0).all()
    browser.view, browser.show = "images", f"class {classes}"
    assert browser.picture().data and len(browser.part("images").ids) == counts.images.iloc[-1]


@pytest.mark.real
def test_real_strips_are_no_twins_of_one_another():
    folder = read_folder(real_data("severstal-sample"))
    assert len(nearly.near_duplicates(folder, least=0.3)) == 0
    doctored = nearly.near_duplicates(
        read_folder(real_data("neu-seg"))
    )  # images into which a patch of another was pasted, and two that overlap
    assert {("test_000572.jpg", "test_000684.jpg"), ("test_000411.jpg", "test_000413.jpg")} <= set(
        zip(doctored["first"], doctored["second"])
    ) and len(doctored) < 40
