"""Train the bundled photo prior on the photographs of `manifest.json`, one slice at a time.

    python examples/photo_prior/fetch.py
    python examples/photo_prior/train.py --minutes 90
    python examples/photo_prior/train.py --minutes 120 --warm-start WEIGHTS.safetensors

Loss: EDM's denoising loss with its weighting (Karras et al. 2022, eq. 8 and table 1), which is a
plain squared error of the raw network F, divided per noise level by its own running mean (the
learned uncertainty of Karras et al. 2024, eq. 21, as a table). Optimiser: Muon (Jordan et al.
2024), i.e. momentum whose matrices are made orthogonal: on this network it needs about a tenth of
the steps of Adam. The learning rate falls to zero along a cosine of the *wall clock*, so a slice
always ends on time with annealed weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch import MANIFEST, cache_folder, image_path
from PIL import Image
from torch import Tensor

from posterior.priors.photo import PhotoConfig, PhotoNet

LEVELS = (15, 25, 50)  # noise std of the score, of 255


def load_photo(entry: dict[str, Any]) -> Image.Image:
    """The photograph of a manifest entry, reduced by `reduce` (soft or noisy originals)."""
    image = Image.open(image_path(entry)).convert("RGB")
    factor = entry["reduce"]
    return image.resize(
        (round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS
    )


class Patches:
    """Random patches of the training photographs at many scales, augmented."""

    def __init__(self, smallest: int = 128, ratio: float = 0.8, scales: int = 7) -> None:
        self.images: list[np.ndarray] = []  # (H, W, 3) uint8
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
                self.images.append(image)
                slope = np.abs(np.diff(image.astype(np.float32), axis=1)).mean()
                weights.append(math.sqrt(image.size * slope))  # large and busy ones more often
        self.chance = np.array(weights) / sum(weights)

    def draw(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        """(count, 3, size, size) in [-1, 1]: crop, flip, turn, exposure, tint."""
        out = np.empty((count, size, size, 3), np.float32)
        for row, index in enumerate(rng.choice(len(self.images), count, p=self.chance)):
            image = self.images[index]
            top = rng.integers(image.shape[0] - size + 1)
            left = rng.integers(image.shape[1] - size + 1)
            patch = image[top : top + size, left : left + size]
            if rng.random() < 0.5:
                patch = patch[:, ::-1]
            if rng.random() < 0.4:
                patch = np.rot90(patch, int(rng.integers(1, 4)))
            out[row] = patch
            if rng.random() < 0.5:  # gains <= 1 so that nothing clips
                gain = 1 - 0.3 * rng.random() - 0.1 * rng.random(3)
                out[row] *= gain
        return torch.from_numpy(out).permute(0, 3, 1, 2) / 127.5 - 1


def draw_sigmas(count: int, config: PhotoConfig, rng: np.random.Generator) -> Tensor:
    """Noise levels of one batch, each part stratified.

    75 % log-normal around 0.18 (where denoising is judged), 20 % log-uniform in [0.4, 30] (where
    draws take shape), 5 % log-uniform over the whole range.
    """

    def stratified(share: int) -> Tensor:
        return torch.from_numpy((np.arange(share) + rng.random(share)) / share)

    high, whole = math.ceil(0.2 * count - rng.random()), math.ceil(0.05 * count - rng.random())
    normal = torch.special.ndtri(stratified(count - high - whole).clamp(1e-6, 1 - 1e-6))
    low, span = math.log(config.sigma_min), math.log(config.sigma_max / config.sigma_min)
    parts = (
        torch.exp(-1.7 + 0.85 * normal),
        0.4 * (30 / 0.4) ** stratified(high),
        torch.exp(low + span * stratified(whole)),
    )
    return torch.cat(parts).clamp(config.sigma_min, config.sigma_max).float()


def network(net: PhotoNet, x: Tensor, sigma: Tensor) -> Tensor:
    """Raw F at noisy images x (B, 3, H, W) and levels (B,), in bfloat16 inside."""
    c_in = (sigma**2 + net.config.sigma_data**2).rsqrt().view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = net(x * c_in, sigma.log() / 4)
    return out.float()


def denoise(net: PhotoNet, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; sigma) (Karras et al. 2022, eq. 7)."""
    s, data = sigma.view(-1, 1, 1, 1), net.config.sigma_data
    total = s**2 + data**2
    return data**2 / total * x + s * data * total.rsqrt() * network(net, x, sigma)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal factor of each matrix (B, m, n), m <= n, roughly: singular values near 1.

    The quintic Newton-Schulz iteration of Muon (Jordan et al. 2024), X <- (a + b A + c A^2) X with
    A = X X^T, on the small Gram matrices: every factor is a polynomial of the first A, so they
    commute and only the last product is of size (m, n).
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    gram = x @ x.mT
    factor = eye = torch.eye(gram.shape[-1])
    for _ in range(steps):
        p = 3.4445 * eye - 4.775 * gram + 2.0315 * gram @ gram
        factor = p @ factor
        gram = p @ gram @ p
    return factor @ x


class Muon:
    """Muon for convolution kernels (Jordan et al. 2024), Adam for everything else."""

    def __init__(self, net: PhotoNet, momentum: float = 0.95, decay: float = 0.1) -> None:
        self.kernels = [p for p in net.parameters() if p.ndim == 4]
        self.means = [torch.zeros_like(p).flatten(1) for p in self.kernels]
        self.momentum, self.decay = momentum, decay
        others = [p for p in net.parameters() if p.ndim != 4]
        self.adam = torch.optim.Adam(others, lr=0.0, betas=(0.9, 0.99))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update; each row of a kernel moves by about `rate`."""
        by_shape = defaultdict(list)
        for p, mean in zip(self.kernels, self.means, strict=True):
            if p.grad is not None:
                g = p.grad.flatten(1)
                mean.lerp_(g, 1 - self.momentum)
                by_shape[g.shape].append((p, g.lerp(mean, self.momentum)))
        for (m, n), members in by_shape.items():
            stack = torch.stack([direction for _, direction in members])
            unit = orthogonal(stack) if m <= n else orthogonal(stack.mT).mT * (m / n) ** 0.5
            for (p, _), u in zip(members, unit, strict=True):
                p.mul_(1 - self.decay * rate).add_(u.view_as(p), alpha=-rate)
                p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = 0.05 * rate
        self.adam.step()
        self.adam.zero_grad()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"means": self.means, "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.means = state["means"]
        self.adam.load_state_dict(state["adam"])


@torch.no_grad()
def averaged(net: PhotoNet, average: list[Tensor]) -> PhotoNet:
    """A copy of the network with the averaged parameters."""
    copy = PhotoNet(net.config).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for p, mean in zip(copy.parameters(), average, strict=True):
        p.copy_(mean)
    return copy  # type: ignore[no-any-return]


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one slice of the photo prior.")
    parser.add_argument("--minutes", type=float, default=90, help="length of this slice")
    parser.add_argument("--rate", type=float, default=0.02, help="peak step of a row of a kernel")
    parser.add_argument("--warm-start", type=Path, help="weights (.safetensors) to begin from")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted slice")
    parser.add_argument("--pixels", type=int, default=16 * 64 * 64, help="pixels of one batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    folder = cache_folder() / "training"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    patches, score = Patches(), Score()
    pixels = sum(image.shape[0] * image.shape[1] for image in patches.images)
    sample = patches.draw(512, 64, rng)
    config = PhotoConfig(sigma_data=0.5)
    print(
        f"{len(patches.images)} images, {pixels / 1e6:.0f} Mpixel, data std {sample.std():.3f}"
        f" mean {sample.mean():.3f}",
        flush=True,
    )

    net = PhotoNet.from_file(args.warm_start) if args.warm_start else PhotoNet(config)
    net = net.to(memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
    config = net.config
    optimiser = Muon(net)
    average = [p.detach().clone() for p in net.parameters()]
    uncertainty = torch.ones(16)  # running mean loss per bin of log sigma
    step, spent = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if args.resume:
        state = torch.load(checkpoint, weights_only=False)
        net.load_state_dict(state["net"])
        optimiser.restore(state["optimiser"])
        average, uncertainty = state["average"], state["uncertainty"]
        step, spent, rng = state["step"], state["spent"], state["rng"]
    first = step
    print(f"{sum(p.numel() for p in net.parameters())} parameters, {config}", flush=True)

    span = math.log(config.sigma_max / config.sigma_min)
    begin = time.monotonic() - spent  # scoring counts as well: the end is hard
    total = 60 * args.minutes
    saved = scored = spent
    running = 0.0
    while spent < total:
        size = 128 if rng.random() < 0.25 else 64
        count = max(1, args.pixels // size**2)
        x = patches.draw(count, size, rng)
        sigma = draw_sigmas(count, config, rng)
        noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
        s, data = sigma.view(-1, 1, 1, 1), config.sigma_data
        # (x - c_skip (x + s noise)) / c_out, written without cancellation
        target = (s * x - data**2 * noise) / (data * (s**2 + data**2).sqrt())
        losses = (network(net, x + s * noise, sigma) - target).square().mean((1, 2, 3))
        where = ((sigma / config.sigma_min).log() / span * 16).long().clamp(0, 15)
        loss = (losses / uncertainty[where]).mean()
        if loss.item() < 4:  # about 1 as a rule; a batch far off would undo many others
            loss.backward()
        uncertainty.index_copy_(
            0, where, uncertainty[where].lerp(losses.detach().clamp(max=2), 0.02)
        ).clamp_(min=1e-3)

        spent = time.monotonic() - begin
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, spent / total)))
        rate = args.rate * min(1.0, (step - first + 1) / 200) * cosine
        optimiser.step(rate)
        step += 1
        with torch.no_grad():
            keep = min(0.998, 1 - 4 / (step + 4))  # spans the last quarter, at most 500 steps
            torch._foreach_lerp_(average, list(net.parameters()), 1 - keep)
        running += loss.item()
        if step % 200 == 0:
            print(
                f"step {step} {spent / 60:.1f} min rate {rate:.5f} loss {running / 200:.3f} levels "
                + " ".join(f"{value:.3f}" for value in uncertainty.tolist()),
                flush=True,
            )
            running = 0.0
        last = spent >= total
        if last or spent - saved > 300:
            saved = spent
            copy = averaged(net, average)
            copy.save(
                folder / "photo.safetensors",
                steps=str(step),
                minutes=f"{spent / 60:.1f}",
                licence="MIT",
                training="examples/photo_prior/train.py",
            )
            state = {
                "net": net.state_dict(),
                "optimiser": optimiser.state(),
                "average": average,
                "uncertainty": uncertainty,
                "step": step,
                "spent": spent,
                "rng": rng,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            if last or spent - scored > 600:
                scored = spent
                psnr = score(copy)
                line = {"step": step, "minutes": spent / 60, "psnr": psnr}
                with (folder / "scores.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(
                    f"tune PSNR at step {step}: "
                    + ", ".join(f"{level}: {value:.2f}" for level, value in psnr.items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
