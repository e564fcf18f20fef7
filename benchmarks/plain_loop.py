"""Our training beside a plain smp loop on a folder of real strips: the same encoder, images, folds, batch and number of
steps.

    python benchmarks/plain_loop.py DATA OUT [--folds 0 1 2 3 4] [--epochs 20] [--only plain|ours]

Each side is kept under OUT, fold by fold, so a stopped comparison continues. DATA is a folder in the competition's
layout; settings and epochs fit NEU-Seg: 564 hot-rolled strips of 200 x 200, 3 classes, of which a fold takes 560 steps,
half an hour of one core for each side.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from steel_seg.data import read_folder
from steel_seg.files import versions, whole, write_json
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


def config(epochs, folds, seed=0):
    """Ours, at the same number of steps: AdamW with one cycle, the Dice of every image, a running mean of the weights,
    more light."""
    from steel_seg.config import TrainConfig

    return TrainConfig(
        arch="fpn",
        encoder=ENCODER,
        encoder_weights=None,
        batch_size=BATCH,
        epochs=epochs,
        folds=folds,
        seed=seed,
        num_workers=0,
        lr=4e-3,
        schedule="one_cycle",
        warmup=0.25,
        ema=0.98,
        brightness=0.3,
    )


def score(levels, truth):
    "Dice of every pair at probability .5."
    return dice(*mask_counts(levels >= 128, truth))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--folds", type=int, nargs="+")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=("plain", "ours"))
    args = parser.parse_args()
    folder = read_folder(args.data)
    fold = make_folds(folder, args.k, 0).fold.to_numpy()
    folds = args.folds or list(range(args.k))
    for k in folds:
        path = args.out / f"plain_{k}.npz"
        if args.only == "ours" or path.exists():
            continue
        began = time.perf_counter()
        levels = plain(folder, np.flatnonzero(fold != k), np.flatnonzero(fold == k), args.epochs)
        with whole(path) as temp, open(temp, "wb") as f:
            np.savez_compressed(f, levels=levels)
        print(f"plain, fold {k}: {time.perf_counter() - began:.0f} s", flush=True)
    if args.only == "plain":
        return
    ours(args, folder, fold, folds)


def ours(args, folder, fold, folds):
    from steel_seg.model import load_model
    from steel_seg.predict import predict_probs
    from steel_seg.train import train_run

    began = time.perf_counter()
    train_run(args.out / "run", folder, config(args.epochs, args.k), only=folds)
    print(f"ours: {time.perf_counter() - began:.0f} s")
    if args.only:
        return
    ids, rows = folder.images.image_id.to_numpy(), [np.flatnonzero(fold == k) for k in folds]

    def predicted(k, mine, tta):
        "The last net, as the plain loop keeps it: which epoch is best was not asked of the images that are scored."
        model = load_model(args.out / f"run/fold_{k}/last")
        batches = [
            torch.from_numpy(np.stack([folder.image(i) for i in ids[mine[j : j + BATCH]]])[:, None])
            for j in range(0, len(mine), BATCH)
        ]
        return to_level(torch.cat([predict_probs(model, b, tta) for b in batches]).numpy())

    levels = {
        "plain smp loop": np.concatenate([np.load(args.out / f"plain_{k}.npz")["levels"] for k in folds]),
        "ours": np.concatenate([predicted(k, mine, "none") for k, mine in zip(folds, rows)]),
        "ours, four flips": np.concatenate([predicted(k, mine, "flips") for k, mine in zip(folds, rows)]),
    }
    report(args, folder, ids[np.concatenate(rows)], levels, len(folds))


def report(args, folder, ids, levels, n_folds):
    truth = np.stack([folder.mask(i) for i in ids])
    there, base, found = truth.any((2, 3)), None, []
    for name, x in levels.items():
        d = score(x, truth)
        base = d if base is None else base
        row = dict(what=name, all=d.mean(), present=d[there].mean())
        if d is not base:
            for of, better in (("all", (d - base).mean(1)), ("present", (d - base)[there])):
                gain = mean_interval(better)
                row.update({f"{of}_gain": gain.value, f"{of}_low": gain.low, f"{of}_high": gain.high})
        found.append(row)
        gain = (
            "".join(
                f"   {of} {row[f'{of}_gain']:+.4f} ({row[f'{of}_low']:+.4f} to {row[f'{of}_high']:+.4f})"
                for of in ("all", "present")
            )
            if "all_gain" in row
            else ""
        )
        print(f"{name:18} all pairs {row['all']:.4f}   present {row['present']:.4f}{gain}")
    steps = math.floor(len(folder.images) * (1 - 1 / args.k) / BATCH) * args.epochs
    write_json(
        args.out / "result.json",
        dict(
            rows=found,
            images=len(ids),
            folds=n_folds,
            of=args.k,
            epochs=args.epochs,
            about_steps=steps,
            versions=versions(),
        ),
    )


if __name__ == "__main__":
    main()
