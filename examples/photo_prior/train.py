"""Train the bundled photo prior on the photographs of `manifest.json`, one slice at a time.

    python examples/photo_prior/fetch.py
    python examples/photo_prior/train.py --minutes 90
    python examples/photo_prior/train.py --minutes 120 --warm-start WEIGHTS.safetensors
    python examples/photo_prior/train.py ... --encoder 3 2 2 1 --decoder 6 3 2 0  # more blocks

Network, loss, optimiser and schedule are those of `posterior.training` (`posterior train-prior`);
what is said here is which photographs, at which scales and how often, and how they are scored.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch import MANIFEST, cache_folder, image_path
from PIL import Image

from posterior.fingerprints import fingerprint
from posterior.priors.photo import PhotoConfig, PhotoNet
from posterior.training import Recipe, Trainer, denoise, train
from posterior.training_data import Patches

LEVELS = (15, 25, 50)  # noise std of the score, of 255


def load_photo(entry: dict[str, Any]) -> Image.Image:
    """The photograph of a manifest entry, reduced by `reduce` (soft or noisy originals)."""
    image = Image.open(image_path(entry)).convert("RGB")
    factor = entry["reduce"]
    return image.resize(
        (round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS
    )


def photo_patches(smallest: int = 128, ratio: float = 0.8, scales: int = 7) -> Patches:
    """Random patches of the training photographs at many scales; large and busy ones more often."""
    images: list[np.ndarray] = []  # (H, W, 3) uint8
    weights = []
    for entry in json.loads(MANIFEST.read_text()):
        if entry["split"] != "train":
            continue
        photo = load_photo(entry)
        for k in range(scales):
            size = round(photo.width * ratio**k), round(photo.height * ratio**k)
            if min(size) < smallest:
                break
            filter_ = Image.Resampling.LANCZOS if k % 2 else Image.Resampling.BICUBIC
            image = np.asarray(photo.resize(size, filter_))
            images.append(image)
            slope = np.abs(np.diff(image.astype(np.float32), axis=1)).mean()
            weights.append(math.sqrt(image.size * slope))
    return Patches(images, "photo", np.array(weights))


class Score:
    """Mean PSNR of D on a small fixed set of tuning crops, per noise level."""

    def __init__(self, size: int = 192) -> None:
        self.crops = []
        for entry in json.loads(MANIFEST.read_text()):
            if entry["split"] == "tune":
                photo = load_photo(entry)
                left, top = (photo.width - size) // 2, (photo.height - size) // 2
                crop = np.asarray(photo.crop((left, top, left + size, top + size)), np.float32)
                self.crops.append(torch.from_numpy(crop).permute(2, 0, 1)[None] / 127.5 - 1)

    @torch.inference_mode()
    def __call__(self, net: PhotoNet) -> dict[int, float]:
        generator = torch.Generator().manual_seed(0)
        result = {}
        for level in LEVELS:
            sigma = 2 * level / 255
            scores = []
            for x in self.crops:
                y = x + sigma * torch.randn(x.shape, generator=generator)
                error = (denoise(net, y, torch.tensor([sigma])).clamp(-1, 1) - x).square().mean()
                scores.append(-10 * math.log10(error.item() / 4))
            result[level] = sum(scores) / len(scores)
        return result


def begin(
    warm_start: Path | None, encoder: list[int] | None, decoder: list[int] | None
) -> PhotoNet:
    """The network to train: new or from weights, whose stages may get blocks appended.

    An appended block begins near the identity, so nothing that was learned is lost.
    """
    old = PhotoNet.from_file(warm_start) if warm_start else None
    config = old.config if old else PhotoConfig()
    net = PhotoNet(
        replace(
            config,
            encoder=tuple(encoder or config.encoder),
            decoder=tuple(decoder or config.decoder),
        )
    )
    if old:
        unknown = net.load_state_dict(old.state_dict(), strict=False).unexpected_keys
        if unknown:
            raise SystemExit(f"{warm_start} has more blocks than asked for: {unknown[0]}")
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one slice of the photo prior.")
    parser.add_argument("--minutes", type=float, default=90, help="length of this slice")
    parser.add_argument("--rate", type=float, default=0.02, help="peak step of a row of a kernel")
    parser.add_argument("--warm-start", type=Path, help="weights (.safetensors) to begin from")
    for way in ("encoder", "decoder"):
        parser.add_argument(f"--{way}", type=int, nargs=4, help="residual blocks per resolution")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted slice")
    parser.add_argument("--pixels", type=int, default=16 * 64 * 64, help="pixels of one batch")
    parser.add_argument("--sizes", type=int, nargs=2, default=(64, 128), help="of 3/4, 1/4 batches")
    parser.add_argument("--levels", type=float, nargs=2, default=Recipe.levels, help="of ln sigma")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    folder = cache_folder() / "training"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    patches, tuning = photo_patches(), Score()
    sample = patches.draw(512, 64, np.random.default_rng(args.seed))
    pixels = sum(image.shape[0] * image.shape[1] for image in patches.images)
    net = begin(args.warm_start, args.encoder, args.decoder)
    recipe = Recipe(
        args.minutes, None, tuple(args.sizes), args.pixels, args.rate, args.seed, tuple(args.levels)
    )
    trainer = Trainer(net, patches, recipe)
    checkpoint = folder / "checkpoint.pt"
    identity = {"config": fingerprint(net.config)}
    if args.resume:
        trainer.load(checkpoint, identity)
    print(
        f"{len(patches.images)} images, {pixels / 1e6:.0f} Mpixel, data std {sample.std():.3f}"
        f" mean {sample.mean():.3f}\n"
        f"{sum(p.numel() for p in net.parameters())} parameters, {net.config}",
        flush=True,
    )

    def save(trainer: Trainer) -> None:
        trainer.averaged().save(
            folder / "photo.safetensors",
            steps=str(trainer.step),
            minutes=f"{trainer.spent / 60:.1f}",
            licence="MIT",
            training="examples/photo_prior/train.py",
        )
        trainer.save(checkpoint, identity)
        print(
            f"step {trainer.step} {trainer.spent / 60:.1f} min loss {trainer.loss:.3f} levels "
            + " ".join(f"{value:.3f}" for value in trainer.uncertainty.tolist()),
            flush=True,
        )

    def score(trainer: Trainer) -> None:
        psnr = tuning(trainer.averaged())
        line = {"step": trainer.step, "minutes": trainer.spent / 60, "psnr": psnr}
        with (folder / "scores.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"tune PSNR at step {trainer.step}: "
            + ", ".join(f"{level}: {value:.2f}" for level, value in psnr.items()),
            flush=True,
        )

    train(trainer, save, score, progress=False)


if __name__ == "__main__":
    main()
