"""Measure the photo prior on the held-out photographs of `manifest.json`.

    python examples/photo_prior/quality.py denoise  # beside colour BM3D (`pip install bm3d`)
    python examples/photo_prior/quality.py draws --sheet draws.jpg
    python examples/photo_prior/quality.py speed

`denoise` gives the PSNR of D(y; sigma) and of colour BM3D (Dabov et al. 2007) for the same crops
and the same noise. `draws` compares unconditional 64x64 draws with held-out crops, and with the
training patches whose law the prior learns, by two statistics of natural images: the slope of the
radial power spectrum and the kurtosis of gradients. The package
`bm3d` is free for benchmarks only and no dependency of this project; its figures are cached.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fetch import MANIFEST, cache_folder
from PIL import Image
from torch import Tensor
from train import LEVELS, load_photo, photo_patches

from posterior.priors.photo import PhotoNet
from posterior.training import denoise

WEIGHTS = Path(__file__).parents[2] / "posterior" / "priors" / "weights" / "photo.safetensors"
Array = npt.NDArray[Any]


def held_out() -> list[dict[str, Any]]:
    """The test photographs, one entry for each group of views of one scene."""
    chosen: dict[str, dict[str, Any]] = {}
    for entry in json.loads(MANIFEST.read_text()):
        if entry["split"] == "test":
            chosen.setdefault(entry.get("group", entry["id"]), entry)
    return list(chosen.values())


def crops(size: int = 256) -> list[tuple[str, Array]]:
    """Central crops (size, size, 3) uint8 of the test photographs: two where they fit."""
    result = []
    for entry in held_out():
        photo = load_photo(entry)
        count = 2 if photo.width >= 2 * size else 1
        left, top = (photo.width - count * size) // 2, (photo.height - size) // 2
        for k in range(count):
            box = (left + k * size, top, left + (k + 1) * size, top + size)
            result.append((f"{entry['id']}/{k}", np.asarray(photo.crop(box))))
    return result


def psnr(estimate: Array, truth: Array) -> float:
    """PSNR in dB of images in [0, 1]; the estimate is clipped to that range first."""
    return float(-10 * math.log10(np.mean((np.clip(estimate, 0, 1) - truth) ** 2)))


def bm3d_score(key: str, noisy: Array, truth: Array, level: int) -> float:
    """PSNR of colour BM3D at the true noise level, from the cache if it is there."""
    file = cache_folder() / "bm3d.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    if key not in known:
        from bm3d import bm3d_rgb

        known[key] = psnr(bm3d_rgb(noisy, level / 255), truth)
        file.write_text(json.dumps(known, indent=1))
    return known[key]


def run_denoise(net: PhotoNet | None) -> None:
    """Print a table of mean PSNR; errors are standard errors over photographs."""
    ours: dict[int, dict[str, list[float]]] = {level: defaultdict(list) for level in LEVELS}
    theirs: dict[int, dict[str, list[float]]] = {level: defaultdict(list) for level in LEVELS}
    all_crops = crops()
    for number, (name, image) in enumerate(all_crops):
        truth = image.astype(np.float64) / 255
        for level in LEVELS:
            noise = np.random.default_rng([number, level]).standard_normal(truth.shape)
            noisy = truth + level / 255 * noise
            photo = name.split("/")[0]
            theirs[level][photo].append(bm3d_score(f"{name}/{level}", noisy, truth, level))
            if net is not None:
                y = torch.from_numpy(2 * noisy - 1).float().permute(2, 0, 1)[None]
                x = denoise(net, y, torch.tensor([2 * level / 255]))[0].permute(1, 2, 0)
                ours[level][photo].append(psnr((x.double().numpy() + 1) / 2, truth))
    print(f"{len(all_crops)} crops of 256x256 from {len(theirs[LEVELS[0]])} photographs")
    if net is None:
        return
    print("| noise std of 255 | prior, dB | colour BM3D, dB | difference | standard error | wins |")
    print("|---|---|---|---|---|---|")
    for level in LEVELS:
        a = [statistics.mean(values) for values in ours[level].values()]
        b = [statistics.mean(values) for values in theirs[level].values()]
        gap = [p - q for p, q in zip(a, b, strict=True)]
        error = statistics.stdev(gap) / math.sqrt(len(gap))
        print(
            f"| {level} | {statistics.mean(a):.2f} | {statistics.mean(b):.2f} "
            f"| {statistics.mean(gap):+.2f} | {error:.2f} | {sum(g > 0 for g in gap)}/{len(gap)} |"
        )
    print("difference by photograph:")
    for photo in ours[LEVELS[0]]:
        row = [
            statistics.mean(ours[level][photo]) - statistics.mean(theirs[level][photo])
            for level in LEVELS
        ]
        print(f"  {photo:22s}", " ".join(f"{value:+.2f}" for value in row))


@torch.inference_mode()
def heun(net: PhotoNet, count: int, size: int, steps: int, seed: int) -> Tensor:
    """Draws by EDM's deterministic sampler (Karras et al. 2022, algorithm 1, grid of eq. 5)."""
    config, rho = net.config, 7.0
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = config.sigma_max ** (1 / rho), config.sigma_min ** (1 / rho)
    grid = [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]
    generator = torch.Generator().manual_seed(seed)
    x: Tensor = grid[0] * torch.randn(count, 3, size, size, generator=generator)
    for now, after in pairwise(grid):
        slope = (x - denoise(net, x, torch.full((count,), now))) / now
        guess = x + (after - now) * slope
        if after > 0:
            end = (guess - denoise(net, guess, torch.full((count,), after))) / after
            guess = x + (after - now) * (slope + end) / 2
        x = guess
    return x.clamp(-1, 1)


def spectrum_slope(images: Array) -> Array:
    """Slope of log power over log frequency of the luminance, for each image (N, H, W)."""
    side = images.shape[-1]
    window = np.outer(np.hanning(side), np.hanning(side))
    centred = images - images.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(centred * window)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))) * side
    radii = np.arange(3, int(0.4 * side))
    radial = np.stack(
        [power[:, (frequency >= r - 0.5) & (frequency < r + 0.5)].mean(1) for r in radii], 1
    )
    return np.polyfit(np.log(radii), np.log(radial + 1e-12).T, 1)[0]  # type: ignore[no-any-return]


def gradient_kurtosis(images: Array) -> float:
    """Kurtosis (3 for a normal law) of horizontal and vertical differences of all the images."""
    steps = np.concatenate([np.diff(images, axis=axis).ravel() for axis in (1, 2)])
    return float(np.mean(steps**4) / np.mean(steps**2) ** 2)


def run_draws(net: PhotoNet, count: int, steps: int, sheet: Path | None) -> None:
    """Print both statistics for draws and held-out crops; save a sheet of draws."""
    start = time.perf_counter()
    draws = torch.cat([heun(net, 16, 64, steps, seed) for seed in range(count // 16)])
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(0)
    real = []
    photos = [load_photo(entry) for entry in held_out()]
    for k in range(4 * count):
        photo = photos[k % len(photos)]
        factor = float(rng.choice([1.0, 0.64, 0.41]))
        photo = photo.resize((round(photo.width * factor), round(photo.height * factor)))
        left, top = int(rng.integers(photo.width - 63)), int(rng.integers(photo.height - 63))
        real.append(np.asarray(photo.crop((left, top, left + 64, top + 64))))
    learned = photo_patches().draw(8 * count, 64, rng)
    sets = {
        "draws": draws.double().permute(0, 2, 3, 1).numpy(),
        "held-out crops": np.stack(real) / 127.5 - 1,
        "training patches": learned.double().permute(0, 2, 3, 1).numpy(),
    }
    print(f"{count} draws of 64x64, Heun with {steps} steps, {seconds:.0f} s")
    print("| | n | spectrum slope | gradient kurtosis | mean | std |\n|---|---|---|---|---|---|")
    for name, images in sets.items():
        grey = images @ np.array([0.299, 0.587, 0.114])
        slopes = spectrum_slope(grey)
        resampled = [
            gradient_kurtosis(grey[rng.integers(len(grey), size=len(grey))]) for _ in range(100)
        ]
        print(
            f"| {name} | {len(grey)} "
            f"| {slopes.mean():.2f} ± {slopes.std(ddof=1) / math.sqrt(len(slopes)):.2f} "
            f"| {gradient_kurtosis(grey):.1f} ± {np.std(resampled):.1f} "
            f"| {images.mean():.2f} | {images.std():.2f} |"
        )
    if sheet is not None:
        columns, gap = 8, 4
        rows = min(6, count // columns)
        pixels = ((draws[: rows * columns] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        page = Image.new("RGB", (columns * (64 + gap) - gap, rows * (64 + gap) - gap), "white")
        for k, image in enumerate(pixels):
            page.paste(
                Image.fromarray(image), (k % columns * (64 + gap), k // columns * (64 + gap))
            )
        page.save(sheet, quality=92)
        print(f"sheet of {rows * columns} draws: {sheet}")


@torch.inference_mode()
def run_speed(net: PhotoNet) -> None:
    """Print the median time of a 256x256 forward."""
    x = torch.randn(1, 3, 256, 256)
    for name, enabled in (("bfloat16 autocast", True), ("float32", False)):
        times = []
        for _ in range(12):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                net(x, torch.zeros(1))
            times.append(time.perf_counter() - start)
        print(
            f"256x256 forward, {name}: median {statistics.median(times[2:]):.3f} s, "
            f"best {min(times):.3f} s, {torch.get_num_threads()} threads"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the photo prior.")
    parser.add_argument("what", choices=("denoise", "bm3d", "draws", "speed"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    net = PhotoNet.from_file(args.weights)
    if args.what == "bm3d":
        run_denoise(None)
    elif args.what == "denoise":
        with torch.inference_mode():
            run_denoise(net)
    elif args.what == "draws":
        run_draws(net, args.draws, args.steps, args.sheet)
    else:
        run_speed(net)


if __name__ == "__main__":
    main()
