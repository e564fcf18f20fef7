"""Probability maps as nets of different confidence draw them, with the competition's mix of classes and sizes."""

import cv2
import numpy as np

SHAPE = 256, 1600
SHARE = np.array([897, 247, 5150, 801]) / 12568  # of images that show a class
MEDIAN, SPREAD = (
    (3336, 2916, 11966, 25453),
    (0.83, 0.62, 1.22, 0.92),
)  # pixels of a mask and the deviation of their logarithm, of the official labels


def truth_map(rng, channel, shape=SHAPE):
    "(H,W) uint8: a few polygons, together as large as the masks of the class are."
    mask, parts, total = (
        np.zeros(shape, np.uint8),
        rng.integers(1, 5),
        MEDIAN[channel] * rng.lognormal(0, SPREAD[channel]),
    )
    for _ in range(parts):
        area = total / parts
        centre, angles = rng.uniform((0, 0), shape[::-1]), np.sort(rng.uniform(0, 2 * np.pi, 14))
        radius = np.sqrt(area / np.pi) * rng.uniform(0.6, 1.4, 14)
        stretch = np.array([1.6, 1 / 1.6]) if channel == 2 else np.array([0.8, 1.25])
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] * stretch
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask


def prob_map(rng, truth, kind):
    """(H,W) uint8: what a net of this kind says of a truth: "sharp" (sure of itself, 0 nearly everywhere), "soft" and
    "noisy"
    (hardly a pixel is 0), or "uniform" noise that has nothing to do with the truth and is the worst a kernel can
    meet."""
    h, w = truth.shape
    if kind == "uniform":
        return rng.integers(0, 256, truth.shape).astype(np.uint8)

    def grain(step):
        return cv2.resize(
            rng.normal(size=(h // step, w // step)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC
        )

    alarm = truth if truth.any() or rng.random() > 0.08 else truth_map(rng, 0)  # now and then a false one
    inside = (
        cv2.distanceTransform(alarm, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - alarm, cv2.DIST_L2, 3)
        if alarm.any()
        else np.full(truth.shape, -99, np.float32)
    )
    low, slope, blur = {"sharp": (-8.5, 0.5, 0.5), "soft": (-5.5, 0.4, 0.4), "noisy": (-4, 0.4, 0.5)}[kind]
    logit = np.clip(slope * inside, low, 5) + blur * grain(8) + 0.6 * blur * grain(2)
    if kind == "noisy":
        logit = logit + rng.normal(0, 0.5, truth.shape)
    return np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)


def pairs(kind, n, seed, shape=SHAPE):
    "n of (prob, truth) in the competition's mix: of every class one of four maps, and truth where the class is there."
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n):
        c = k % 4
        there = rng.random() < SHARE[c]
        truth = truth_map(rng, c, shape) if there else np.zeros(shape, np.uint8)
        if kind == "uniform":
            truth = (rng.random(shape) < 0.3).astype(np.uint8)
        out.append((prob_map(rng, truth, kind), truth))
    return out
