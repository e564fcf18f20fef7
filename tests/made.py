"""Runs made of boxes and noise, and what the tests of the widgets have in common."""

import csv
from html.parser import HTMLParser

import cv2
import numpy as np
from ipywidgets import HTML

from steel_seg.post import GATE_KINDS, apply_rule
from steel_seg.rle import rle_encode
from steel_seg.store import ProbStore

NEEDS_SCORE = [name for name, kind in GATE_KINDS.items() if kind.needs_score]
HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "a&b<script>alert(2)<.png",
    "$^$x_{.png",
    '"><b>b<!--.png',
    "'x' ü 長い.png",
    "x" * 180 + ".png",
]
# Pieces of text from files; none of them may become a tag on a page.
ODD_PIECES = [
    "<b>",
    "<img src=x onerror=alert(1)>",
    "</div><script>",
    "&lt;i&gt;",
    "\"'><svg/onload=1>",
    "<!--",
    "<![CDATA[",
    "<?x",
    "javascript:",
    "ü\u202e",
    "$\\frac",
    "x" * 300,
    "&#60;u>",
]
CASES = {
    "strips": dict(n=9, shape=(64, 400), classes=4),
    "one image": dict(n=1, shape=(64, 400), classes=4),
    "no defect": dict(n=3, shape=(64, 400), classes=4, defects=False),
    "squares": dict(n=6, shape=(200, 200), classes=3),
    "hostile ids": dict(n=6, shape=(64, 400), classes=4, ids=HOSTILE),
}


def make_run(run, n, shape, classes, defects=True, ids=None, seed=0, predicted=None):
    """A run folder with its data: noise for steel, boxes for defects, and for probabilities the boxes blurred, under
    patches of noise."""
    rng, (h, w) = np.random.default_rng(seed), shape
    (run / "data" / "train_images").mkdir(parents=True)
    ids = sorted(ids or [f"{k:04}.png" for k in range(n)])
    rows, levels = [["ImageId_ClassId", "EncodedPixels"]], {}
    for k, image_id in enumerate(ids):
        steel = cv2.GaussianBlur(rng.integers(0, 255, shape, np.uint8), (0, 0), 2)
        (run / "data" / "train_images" / image_id).write_bytes(cv2.imencode(".png", steel)[1].tobytes())
        masks = np.zeros((classes, h, w), np.uint8)
        for c in {k % classes, (2 * k + 1) % classes} if defects and k % 4 != 3 else ():
            y, x = rng.integers(0, h // 2), rng.integers(0, w // 2)
            masks[c, y : y + h // 3, x : x + h // 2] = 1
        rows += [[f"{image_id}_{c + 1}", rle_encode(m)] for c, m in enumerate(masks)]
        noise = np.stack([cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 4) for _ in masks])
        soft = np.stack([cv2.GaussianBlur(m.astype(np.float32), (0, 0), 5) for m in masks])
        levels[image_id] = np.clip(255 * (0.8 * soft + 0.15 * noise / noise.std()), 0, 255).astype(np.uint8)
    with open(run / "data" / "train.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)
    store = ProbStore.create(run / "oof", ids[:predicted], classes, shape)
    for image_id in ids[:predicted]:
        store.write(image_id, levels[image_id])
    return run


def slow_dice(pred, truth):
    "By hand, from the definition."
    both = int((pred.astype(bool) & truth.astype(bool)).sum())
    total = int(pred.astype(bool).sum()) + int(truth.astype(bool).sum())
    return 1.0 if total == 0 else 2 * both / total


def slow_scores(predicted, rules):
    "(N,C), mask by mask."
    return np.array(
        [
            [
                slow_dice(apply_rule(p, r), m)
                for p, r, m in zip(predicted.store.read(i), rules, predicted.folder.mask(i))
            ]
            for i in predicted.store.image_ids
        ]
    )


def pixels(data):
    "A packed picture as (H,W,3) RGB."
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def parts(widget):
    "A widget and all that is in it."
    return [widget] + [p for child in getattr(widget, "children", ()) for p in parts(child)]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.update([tag, *(f"{tag} {name}" for name, _ in attrs)])

    def handle_comment(self, data):
        self.seen.add("comment")

    handle_decl = unknown_decl = handle_pi = handle_comment


OURS = {
    "div",
    "div style",
    "span",
    "span style",
    "small",
    "b",
    "table",
    "table style",
    "tr",
    "td",
    "td style",
    "th",
    "th style",
}


def only_our_tags(*widgets):
    for text in [p.value for w in widgets for p in parts(w) if isinstance(p, HTML)]:
        assert Tags(text).seen <= OURS, text
