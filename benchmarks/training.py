"""A training item, from the file to the tensors that go to the device, against the item that public code for this
competition makes; and a step."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

from steel_seg.augment import train_transform
from steel_seg.cache import open_cache
from steel_seg.config import TrainConfig
from steel_seg.curves import curves_of
from steel_seg.data import read_folder
from steel_seg.dataset import StripDataset, epoch_batches, freed_memory_kept, make_loader
from steel_seg.loss import build_loss
from steel_seg.model import build_model, load_model, save_model
from steel_seg.predict import predict_oof, predict_probs
from steel_seg.store import to_level
from steel_seg.synth import make_folder
from steel_seg.train import folds_of, start_run

# 64 strips with the competition's mix of classes. As `make_folder` writes them they have 107 kB on average, the
# competition's 84 to 88:
# a larger file is more work for both sides, and nothing else of an item depends on it.
N, SHAPE = 64, (256, 1600)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class UsualItems(Dataset):
    """Colour image, four float masks decoded with numpy, albumentations to the end; the masks' usual shift by one pixel
    is put right."""

    def __init__(self, folder, transform):
        self.paths, self.transform = [str(p) for p in folder.images.path], transform
        rles = {(i, c): rle for i, c, rle in zip(folder.masks.image_id, folder.masks.channel, folder.masks.rle)}
        self.labels = [[rles.get((i, c)) for c in range(4)] for i in folder.images.image_id]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = cv2.cvtColor(cv2.imread(self.paths[i]), cv2.COLOR_BGR2RGB)
        masks = np.zeros((*SHAPE, 4), np.float32)
        for c, label in enumerate(self.labels[i]):
            if label is None:
                continue
            numbers = label.split(" ")
            mask = np.zeros(SHAPE[0] * SHAPE[1], np.uint8)
            for start, length in zip(map(int, numbers[0::2]), map(int, numbers[1::2])):
                mask[start - 1 : start - 1 + length] = 1
            masks[:, :, c] = mask.reshape(SHAPE, order="F")
        out = self.transform(image=image, mask=masks)
        return out["image"], out["mask"].permute(2, 0, 1)


def usual_transform(hflip=0.5, vflip=0.5, light=0.1):
    return A.Compose(
        [
            A.HorizontalFlip(p=hflip),
            A.VerticalFlip(p=vflip),
            A.RandomBrightnessContrast(0.1, 0.1, p=light),
            A.Normalize(MEAN, STD),
            A.ToTensorV2(),
        ]
    )


@cache
def made():
    "The folder, and the datasets of both sides."
    home = tempfile.TemporaryDirectory()
    folder = read_folder(make_folder(Path(home.name) / "strips", N, 0, SHAPE, seed=0), n_classes=4)
    decoded = open_cache(folder, home.name, progress=False)
    return SimpleNamespace(
        home=home,
        folder=folder,
        decoded=decoded,
        usual=UsualItems(folder, usual_transform()),
        files=StripDataset(folder, train_transform()),
        cached=StripDataset(folder, train_transform(), cache=decoded),
    )


def check(kind):
    """Our items with flips alone, normalised as the device does it, are the usual ones with the same flips; all four
    happen."""
    d, seen = made(), set()
    ours = StripDataset(d.folder, train_transform(brightness=0), cache=d.decoded if kind == "cached" else None)
    usual = {(h, v): UsualItems(d.folder, usual_transform(h, v, 0)) for h in (0, 1) for v in (0, 1)}
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    for i in range(N):
        item, plain = ours[1, i], d.folder.image(d.folder.images.image_id[i])
        flips = [
            (h, v)
            for h, v in usual
            if np.array_equal(item["image"][0].numpy(), plain[:: -1 if v else 1, :: -1 if h else 1])
        ]
        assert len(flips) == 1
        image, mask = usual[flips[0]][i]
        assert ((item["image"] / 255 - mean) / std - image).abs().max() < 1e-5 and torch.equal(
            item["mask"].float(), mask
        )
        seen.update(flips)
    assert len(seen) == 4


def items(kind):
    """Every item once, and each let go before the next: what is kept would need new memory each time, which is slow for
    both sides."""
    dataset = getattr(made(), kind)
    for i in range(N):
        dataset[i]


def batches(kind):
    if kind == "usual":
        return list_of(DataLoader(made().usual, 8))
    return list_of(make_loader(getattr(made(), kind), epoch_batches(range(N), 8, 0, 0, shuffle=False)))


def list_of(loader):
    "Run through a loader as a training does: each batch is let go when the next one comes."
    for _batch in loader:
        pass


def step(net, optimizer, loss_of, batch, device, half=None):
    "One step of a training, as our loop makes it, but for what is logged."
    image, mask = (batch[k].to(device, non_blocking=True) for k in ("image", "mask"))
    with torch.autocast(torch.device(device).type, half) if half else nullcontext():
        loss = loss_of(net(image), mask)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


class Steps:
    "Some steps of one net: from the loader, or on one batch that is on the device already."

    def __init__(self, encoder, batch_size, n, device="cpu", half=None, workers=0):
        torch.manual_seed(0)
        self.net = build_model("fpn", encoder).to(device, memory_format=torch.channels_last)
        self.optimizer, self.loss_of = torch.optim.AdamW(self.net.parameters(), 1e-6), build_loss("bce_dice")
        self.n, self.size, self.device, self.half, self.workers = n, batch_size, device, half, workers
        self.batches = [
            b for e in range(-(-n * batch_size // N) + 1) for b in epoch_batches(range(N), batch_size, 0, e)
        ][:n]
        self.ready = {k: v.to(device) for k, v in next(iter(self.loader())).items()}

    def loader(self):
        return make_loader(made().cached, self.batches, self.workers)

    def run(self, batches):
        for batch in batches:
            loss = step(self.net, self.optimizer, self.loss_of, batch, self.device, self.half)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return loss.item()

    def with_loader(self):
        return self.run(self.loader())

    def on_ready_batch(self):
        return self.run([self.ready] * self.n)

    def check(self):
        "The loader's first batch and the ready one are the same images, and so is the loss on them."
        first = next(iter(self.loader()))
        assert all(torch.equal(first[k].to(self.device), v) for k, v in self.ready.items())


class PlainSteps(Steps):
    """The plain loop: smp's net in float32 and torch's own order of the axes, three float channels, float masks, from a
    DataLoader."""

    def __init__(self, encoder, batch_size, n, device, workers=0):
        self.net, self.workers = smp.FPN(encoder, encoder_weights=None, classes=4).to(device), workers
        self.optimizer, self.loss_of = torch.optim.AdamW(self.net.parameters(), 1e-6), build_loss("bce_dice")
        self.n, self.size, self.device, self.half = n, batch_size, device, None

    def loader(self):
        order = np.resize(np.arange(N), self.n * self.size).tolist()
        return (
            {"image": image, "mask": mask}
            for image, mask in DataLoader(
                made().usual, self.size, sampler=order, num_workers=self.workers, pin_memory=self.device != "cpu"
            )
        )


def peak(steps):
    "Bytes at the highest, of one run through."
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    steps.with_loader()
    return torch.cuda.max_memory_allocated()


class Predictions:
    """A run of two untrained nets on many strips, and what is asked of it: every strip predicted out of fold with four
    flips, stored and counted."""

    def __init__(self, encoder, times, device="cpu", precision="no", batch_size=8):
        self.home, self.size, self.device, self.precision = tempfile.TemporaryDirectory(), batch_size, device, precision
        made_ = made().folder
        (home := Path(self.home.name) / "strips/train_images").mkdir(parents=True)
        for path in made_.images.path:
            for k in range(times):
                (home / f"{k}_{path.name}").hardlink_to(path)
        labels = pd.read_csv(made_.root / "train.csv", dtype=str)
        pd.concat([labels.assign(ImageId=f"{k}_" + labels.ImageId) for k in range(times)]).to_csv(
            home.parent / "train.csv", index=False
        )
        self.folder, self.run = read_folder(home.parent, n_classes=4), Path(self.home.name) / "run"
        start_run(
            self.run,
            TrainConfig(arch="fpn", encoder=encoder, encoder_weights=None, folds=2, precision=precision),
            self.folder,
        )
        fold = folds_of(self.run, self.folder, 2)
        for k in (0, 1):
            torch.manual_seed(k)
            net = build_model("fpn", encoder)
            for kind in ("best", "last"):
                save_model(
                    net,
                    self.run / f"fold_{k}" / kind,
                    {"fold": k, "train_ids": self.folder.images.image_id[fold != k].tolist()},
                )
        self.net = load_model(self.run / "fold_0/best", device).to(memory_format=torch.channels_last)
        self.ready = torch.from_numpy(
            np.stack([self.folder.image(i) for i in self.folder.images.image_id[:batch_size]])[:, None]
        ).to(device)

    def stored_and_counted(self):
        shutil.rmtree(self.run / "oof", ignore_errors=True)
        return curves_of(predict_oof(self.run, self.folder, "flips", progress=False, batch_size=self.size), self.folder)

    @torch.inference_mode()
    def bare(self):
        "As many forward passes, of one batch that is on the device."
        half = {"bf16": torch.bfloat16}.get(self.precision)
        for _ in range(len(self.folder) // self.size):
            for _ in range(4):
                with torch.autocast(self.device, half) if half else nullcontext():
                    out = self.net(self.ready)
        return float(out.float().mean())  # waits for all of it

    def check(self):
        "The first strip's counts are those of the masks that the net of its fold gives."
        curves, i = self.stored_and_counted(), self.folder.images.image_id[0]
        net = load_model(self.run / f"fold_{folds_of(self.run, self.folder, 2)[0]}/best", self.device)
        probs = predict_probs(
            net.to(memory_format=torch.channels_last),
            torch.from_numpy(self.folder.image(i))[None, None],
            "flips",
            self.precision,
        )
        near = np.array([(to_level(probs.cpu().numpy()[0]) >= t).sum((1, 2)) for t in (64, 128, 192)])
        found = curves.area[0][:, [64, 128, 192]].T
        assert np.abs(near - found).max() <= 1e-3 * SHAPE[0] * SHAPE[1], (
            near,
            found,
        )  # another batch size, other last bits


TINY_STEPS = 16


class TinySteps(Steps):
    "Steps of a tiny Unet on crops of 128x256, as the small recipe makes them, on one batch of noise."

    def __init__(self):
        torch.manual_seed(0)
        net = build_model("unet", "tu-test_resnet.r160_in1k", decoder_channels=[48, 32, 24, 16, 8])
        self.net = net.to(memory_format=torch.channels_last)
        self.optimizer, self.loss_of = torch.optim.AdamW(self.net.parameters(), 1e-6), build_loss("bce_dice")
        self.n, self.device, self.half = TINY_STEPS, "cpu", None
        image = torch.randint(0, 256, (8, 1, 128, 256), dtype=torch.uint8)
        mask = torch.randint(0, 2, (8, 4, 128, 256), dtype=torch.uint8)
        self.ready = {"image": image, "mask": mask}

    def timed(self, kept):
        "Seconds of a run through after a first one, and its loss."
        with freed_memory_kept() if kept else nullcontext():
            self.on_ready_batch()
            began = time.perf_counter()
            loss = self.on_ready_batch()
            return time.perf_counter() - began, loss


def in_fresh_process(kept):
    "What `timed` says in a process of its own: memory that was kept once is not all given back."
    done = subprocess.run([sys.executable, __file__, str(int(kept))], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def kept_and_not(rounds=3):
    "Milliseconds of a step, medians of processes in turn; the losses are the same to the bit."
    found = {True: [], False: []}
    for k in range(2 * rounds):
        found[k % 2 == 0].append(in_fresh_process(k % 2 == 0))
    assert len({loss for runs in found.values() for _, loss in runs}) == 1
    return [1e3 * np.median([seconds for seconds, _ in found[kept]]) / TINY_STEPS for kept in (True, False)]


def step_rows():
    "On the CPU, and on a GPU where there is one."
    cpu = cache(lambda: Steps("resnet18", 2, 2))
    out = [
        dict(
            what="training step, FPN + resnet18, 2 of 256x1600, CPU, with the loader",
            against="the same steps on one ready batch",
            goal=0.95,
            check=lambda: cpu().check(),
            ours=lambda: cpu().with_loader(),
            peer=lambda: cpu().on_ready_batch(),
        ),
        dict(
            what="training step, Unet + tiny ResNet, 8 of 128x256, CPU, freed memory kept",
            against="the same steps as glibc gives memory back",
            goal=1.1,
            found=kept_and_not,
        ),
    ]
    if torch.cuda.is_available():
        encoder = "se_resnext50_32x4d"
        ours = cache(lambda: Steps(encoder, 8, 40, "cuda", torch.bfloat16, workers=8))
        plain = cache(lambda: PlainSteps(encoder, 8, 40, "cuda", workers=8))
        predictions = cache(lambda: Predictions(encoder, 16, "cuda", "bf16"))
        name = torch.cuda.get_device_name()
        out += [
            dict(
                what=f"training step, FPN + se_resnext50, 8 of 256x1600, bf16, {name}",
                against="the same steps on one ready batch",
                goal=0.95,
                check=lambda: ours().check(),
                ours=lambda: ours().with_loader(),
                peer=lambda: ours().on_ready_batch(),
            ),
            dict(
                what="images a second of it",
                against="a plain fp32 NCHW smp loop",
                goal=3,
                check=lambda: None,
                ours=lambda: ours().with_loader(),
                peer=lambda: plain().with_loader(),
            ),
            dict(
                what="memory of it, batch 8",
                against="a plain fp32 NCHW smp loop",
                goal=1 / 0.6,
                size=lambda: peak(plain()) / peak(ours()),
            ),
            dict(
                what=f"prediction with four flips, store and curves, {16 * N} strips, bf16",
                against="the bare forward passes of one batch",
                goal=0.9,
                check=lambda: predictions().check(),
                ours=lambda: predictions().stored_and_counted(),
                peer=lambda: predictions().bare(),
            ),
        ]
    return out


def rows():
    # From JPEG two thirds of our time is libjpeg's, for the luminance alone. The usual item of 11.5 MB costs as much
    # again when it is put into a batch.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    against = "imread, cvtColor, numpy decode, albumentations 2.0.8 flips, light, Normalize, ToTensorV2"
    out = []
    for kind, name, goal in (("files", "from JPEG", 5), ("cached", "from the cache", 15)):
        out.append(
            dict(
                what=f"{N} training items, 256x1600, 4 masks, {name}",
                against=against,
                goal=goal,
                check=lambda k=kind: check(k),
                ours=lambda k=kind: items(k),
                peer=lambda: items("usual"),
            )
        )
        out.append(
            dict(
                what=f"the same in batches of 8, {name}",
                against="the same in a DataLoader, both without workers",
                goal=goal,
                check=lambda k=kind: check(k),
                ours=lambda k=kind: batches(k),
                peer=lambda: batches("usual"),
            )
        )
    return out + step_rows()


if __name__ == "__main__":  # by `in_fresh_process`
    torch.set_num_threads(1)
    print(json.dumps(TinySteps().timed(sys.argv[1] == "1")))
