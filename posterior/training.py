"""Train a small diffusion prior on a folder of images, on a CPU: `posterior train-prior`.

The network is that of the bundled prior (`posterior.priors.photo`). Loss: EDM's denoising loss with
its weighting (Karras et al. 2022, eq. 8 and table 1), which is a plain squared error of the raw
network F, divided per noise level by its own running mean (the learned uncertainty of Karras et al.
2024, eq. 21, as a table). Optimiser: Muon (Jordan et al. 2024), momentum whose matrices are made
orthogonal. The learning rate falls to zero along a cosine of the wall clock (or of the steps), so a
run ends on time with annealed weights; what is kept is the exponential average of the weights.

Noise levels are in units of the data: `sigma_data` is measured, and everything that EDM states for
its 0.5 is multiplied by sigma_data / 0.5.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from posterior.arguments import count as whole_number
from posterior.errors import FileProblem, InputError, ResumeError, TrainingError
from posterior.fingerprints import fingerprint
from posterior.folders import replacing
from posterior.priors.bundled import PhotoPrior
from posterior.priors.photo import PhotoConfig, PhotoNet, compute_dtype
from posterior.streams import check_seed
from posterior.training_data import Patches, TrainingImages, centre, read_folder, rescaled

LEVELS = (0.1, 0.3, 1.0)
"""Noise standard deviations of the score, times sigma_data."""

SAVE_EVERY = 120.0  # seconds
SCORE_EVERY = 600.0
_FORMAT = "posterior.training/1"
_BINS = 16  # of log sigma, for the uncertainty
_WARM = 200  # steps in which the rate rises; a tenth of a shorter run
_FAR = 4.0  # a batch whose loss is this many times the usual one counts as no more
_MOST_FAR = 50  # such batches in a row: the training has diverged


class Source(Protocol):
    """Where batches come from."""

    def draw(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        """x, (count, C, size, size); all randomness from `rng`."""


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, on what batches.

    Attributes:
        minutes: wall clock, scoring included; or None.
        steps: number of steps; or None.
        sizes: sides of the patches of a batch, and of every fourth one on average.
        pixels: of one batch.
        rate: the peak step of a row of a kernel.
        seed: of weights, patches and noise.
        levels: mean and standard deviation of ln sigma for most of the noise levels, where
            sigma_data = 0.5.
    """

    minutes: float | None
    steps: int | None
    sizes: tuple[int, int]
    pixels: int = 16 * 64 * 64
    rate: float = 0.02
    seed: int = 0
    levels: tuple[float, float] = (-1.7, 0.85)

    def done(self, step: int, spent: float) -> float:
        """The part of the run that lies behind, after so many steps and seconds."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return spent / (60 * self.minutes)


def draw_sigmas(
    count: int,
    config: PhotoConfig,
    rng: np.random.Generator,
    levels: tuple[float, float] = Recipe.levels,
) -> Tensor:
    """Noise levels of one batch (count,), each part stratified; for sigma_data = 0.5:

    75 % log-normal by `levels`, around 0.18 (where denoising is judged), 20 % log-uniform in
    [0.4, 30] (where draws take shape), 5 % log-uniform over the whole range.
    """

    def stratified(share: int) -> Tensor:
        return torch.from_numpy((np.arange(share) + rng.random(share)) / share)

    high, whole = math.ceil(0.2 * count - rng.random()), math.ceil(0.05 * count - rng.random())
    high = min(high, count - whole)
    normal = torch.special.ndtri(stratified(count - high - whole).clamp(1e-6, 1 - 1e-6))
    low, span = math.log(config.sigma_min), math.log(config.sigma_max / config.sigma_min)
    unit = config.sigma_data / 0.5
    parts = (
        unit * torch.exp(levels[0] + levels[1] * normal),
        unit * 0.4 * (30 / 0.4) ** stratified(high),
        torch.exp(low + span * stratified(whole)),
    )
    return torch.cat(parts).clamp(config.sigma_min, config.sigma_max).float()


def network(net: PhotoNet, x: Tensor, sigma: Tensor) -> Tensor:
    """Raw F at noisy images x (B, C, H, W) and levels (B,), in bfloat16 inside where that pays."""
    c_in = (sigma**2 + net.config.sigma_data**2).rsqrt().view(-1, 1, 1, 1)
    dtype = compute_dtype(x.device)
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        out: Tensor = net(x * c_in, sigma.log() / 4)
    return out.float()


def denoise(net: PhotoNet, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; sigma) (Karras et al. 2022, eq. 7)."""
    s, data = sigma.view(-1, 1, 1, 1), net.config.sigma_data
    total = s**2 + data**2
    return data**2 / total * x + s * data * total.rsqrt() * network(net, x, sigma)


def denoising_losses(net: PhotoNet, x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mean square error of F for each row (B,): about 1 for F = 0, the best linear denoiser.

    Args:
        x: clean (B, C, H, W).
        noise: standard normal, the same shape.
        sigma: (B,).
    """
    s, data = sigma.view(-1, 1, 1, 1), net.config.sigma_data
    # (x - c_skip (x + s noise)) / c_out, written without cancellation
    target = (s * x - data**2 * noise) / (data * (s**2 + data**2).sqrt())
    return (network(net, x + s * noise, sigma) - target).square().mean((1, 2, 3))


def orthogonal(matrices: Tensor, steps: int = 5, half: bool = False) -> Tensor:
    """The orthogonal factor of each matrix (B, m, n), m <= n, roughly: singular values near 1.

    The quintic Newton-Schulz iteration of Muon (Jordan et al. 2024), X <- (a + b A + c A^2) X with
    A = X X^T, on the small Gram matrices: every factor is a polynomial of the first A, so they
    commute and only the last product is of size (m, n). With `half` it is X itself in bfloat16,
    whose rounding would make a Gram matrix that is handed on indefinite: three times the work, for
    matrices that are nearly square and a machine that does it five times as fast.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)
    if half:
        x = x.bfloat16()
        for _ in range(steps):
            gram = x @ x.mT
            x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
        return x.float()
    gram = x @ x.mT
    factor = eye = torch.eye(gram.shape[-1])
    for _ in range(steps):
        p = 3.4445 * eye - 4.775 * gram + 2.0315 * gram @ gram
        factor = p @ factor
        gram = p @ gram @ p
    return factor @ x


class Muon:
    """Muon for convolution kernels (Jordan et al. 2024), Adam for everything else.

    With `linear` Muon takes the matrices of linear layers too, as transformers want it.
    """

    def __init__(
        self, net: nn.Module, momentum: float = 0.95, decay: float = 0.1, linear: bool = False
    ) -> None:
        matrices = {m.weight for m in net.modules() if linear and isinstance(m, nn.Linear)}
        self.kernels = [p for p in net.parameters() if p.ndim == 4 or p in matrices]
        self.means = [torch.zeros_like(p).flatten(1) for p in self.kernels]
        self.momentum, self.decay = momentum, decay
        self.half = linear and compute_dtype(torch.device("cpu")) is not None
        kernels = set(self.kernels)
        others = [p for p in net.parameters() if p not in kernels]
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
            unit = orthogonal(stack if m <= n else stack.mT, half=self.half)
            if m > n:
                unit = unit.mT * (m / n) ** 0.5
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


class Trainer:
    """A network on its way: weights, their average, optimiser, random numbers.

    With `recipe.steps` the same seed gives the same weights, bit for bit on one machine and thread
    count, in one go or resumed. With `recipe.minutes` the rate depends on the clock.

    Attributes:
        step, spent: steps and seconds behind.
        loss: running mean of the losses of F over all noise levels drawn (1 for a linear denoiser).
    """

    def __init__(self, net: PhotoNet, source: Source, recipe: Recipe) -> None:
        self.net = _channels_last(net).train().requires_grad_(True)
        self.source, self.recipe = source, recipe
        self.optimiser = Muon(net)
        self.average = [p.detach().clone() for p in net.parameters()]
        self.uncertainty = torch.ones(_BINS)  # running mean loss per bin of log sigma
        self.rng = np.random.default_rng(recipe.seed % 2**64)
        self.step, self.spent, self.loss = 0, 0.0, 1.0
        self._far = 0

    def advance(self, begin: float) -> None:
        """One step of a run whose clock (`time.monotonic`) stood at `begin` when it began."""
        config, recipe, rng = self.net.config, self.recipe, self.rng
        size = recipe.sizes[1] if rng.random() < 0.25 else recipe.sizes[0]
        count = max(1, recipe.pixels // size**2)
        x = self.source.draw(count, size, rng)
        sigma = draw_sigmas(count, config, rng, recipe.levels)
        noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
        losses = denoising_losses(self.net, x, noise, sigma)
        span = math.log(config.sigma_max / config.sigma_min)
        where = ((sigma / config.sigma_min).log() / span * _BINS).long().clamp(0, _BINS - 1)
        loss = (losses / self.uncertainty[where]).mean()  # about 1 as a rule
        self._check(loss.item())
        (loss / max(1.0, loss.item() / _FAR)).backward()  # one batch must not undo many others
        losses = losses.detach()
        moved = self.uncertainty[where].lerp(losses.clamp(max=10), 0.02).clamp(min=1e-3)
        self.uncertainty.index_copy_(0, where, moved)

        self.spent = time.monotonic() - begin
        behind = min(1.0, recipe.done(self.step, self.spent))
        warm = min(1.0, max((self.step + 1) / _WARM, 10 * behind))
        self.optimiser.step(recipe.rate * warm * 0.5 * (1 + math.cos(math.pi * behind)))
        self.step += 1
        keep = min(0.998, 1 - 4 / (self.step + 4))  # spans the last quarter, at most 500 steps
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.net.parameters()), 1 - keep)
        self.loss += (losses.mean().item() - self.loss) / min(self.step, 200)

    @torch.no_grad()
    def averaged(self) -> PhotoNet:
        """A copy of the network with the averaged parameters, in eval mode."""
        net = copy.deepcopy(self.net).eval().requires_grad_(False)
        for p, mean in zip(net.parameters(), self.average, strict=True):
            p.copy_(mean)
        return net

    def save(self, path: Path, identity: dict[str, str]) -> None:
        """Write a checkpoint of plain values and tensors, whole or not at all."""
        state = {
            "format": _FORMAT,
            "identity": identity,
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state(),
            "average": self.average,
            "uncertainty": self.uncertainty,
            "rng": json.dumps(self.rng.bit_generator.state),
            "step": self.step,
            "spent": self.spent,
            "loss": self.loss,
            "far": self._far,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path, identity: dict[str, str]) -> None:
        """Continue from a checkpoint; `ResumeError` where it is of another run."""
        if not path.is_file():
            raise FileProblem(f"there is nothing to continue: {path} does not exist")
        try:
            state = torch.load(path, weights_only=True)
            theirs = state["identity"] if state["format"] == _FORMAT else None
        except Exception as problem:
            raise FileProblem(f"{path} is not the checkpoint of a training: {problem}") from None
        if theirs is None:
            raise FileProblem(f"{path} is not the checkpoint of a training of this version")
        differ = [name for name, value in identity.items() if value != theirs.get(name)]
        if differ:
            raise ResumeError(f"{path} holds another run; what differs: {', '.join(differ)}")
        self.net.load_state_dict(state["net"])
        self.optimiser.restore(state["optimiser"])
        self.average, self.uncertainty = state["average"], state["uncertainty"]
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step, self.spent, self.loss = state["step"], state["spent"], state["loss"]
        self._far = state["far"]

    def _check(self, loss: float) -> None:
        self._far = 0 if loss < _FAR else self._far + 1
        if not math.isfinite(loss) or self._far >= _MOST_FAR:
            raise TrainingError(
                f"the training has diverged after {self.step} steps: start again with a lower rate="
                f" than {self.recipe.rate:g}"
            )


def train(
    trainer: Trainer,
    save: Callable[[Trainer], None],
    score: Callable[[Trainer], None],
    progress: bool | None = None,
) -> None:
    """Run to the end of the recipe.

    Args:
        trainer: where to begin; holds the result.
        save: called every two minutes and at the end.
        score: called every ten minutes and at the end, after `save`.
        progress: show a bar on stderr; default: only on a terminal.
    """
    recipe = trainer.recipe
    begin = time.monotonic() - trainer.spent  # scoring counts as well: the end is hard
    saved = scored = trainer.spent
    show = sys.stderr.isatty() if progress is None else progress
    form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, disable=not show, leave=False, bar_format=form) as bar:
        behind = recipe.done(trainer.step, trainer.spent)
        while behind < 1:
            trainer.advance(begin)
            behind = min(1.0, recipe.done(trainer.step, trainer.spent))
            bar.set_postfix_str(f"step {trainer.step}, loss {trainer.loss:.3f}", refresh=False)
            bar.update(behind - bar.n)
            last = behind >= 1
            if last or trainer.spent - saved > SAVE_EVERY:
                saved = trainer.spent
                with tqdm.external_write_mode():
                    save(trainer)
                    if last or trainer.spent - scored > SCORE_EVERY:
                        scored = trainer.spent
                        score(trainer)


# A folder of images -> a prior -------------------------------------------------------------------


class Score:
    """PSNR of D on central patches of held-out images, all pixels together, at `LEVELS`.

    The peak is 2, the width of [-1, 1].
    """

    def __init__(self, images: TrainingImages, config: PhotoConfig) -> None:
        chosen = np.unique(np.linspace(0, len(images.held_out) - 1, 16).round().astype(int))
        size = min(192, images.smallest)
        self.crops = torch.stack([centre(images.held_out[k], size) for k in chosen])
        self.limits = (-math.inf, math.inf) if config.range is None else config.range

    @torch.inference_mode()
    def __call__(self, net: PhotoNet) -> list[dict[str, float]]:
        """For each level its sigma, and the PSNR of D and of the best linear denoiser c_skip y."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for level in LEVELS:
            sigma = level * net.config.sigma_data
            noise = torch.randn(self.crops.shape, generator=generator)
            y = self.crops + sigma * noise
            rows = torch.tensor([sigma])
            x = torch.cat([denoise(net, row[None], rows) for row in y])
            linear = y / (1 + level**2)
            found.append({"sigma": sigma, "psnr": self._psnr(x), "linear": self._psnr(linear)})
        return found

    def _psnr(self, x: Tensor) -> float:
        error = (x.clamp(*self.limits) - self.crops).double().square().mean().item()
        return 10 * math.log10(4 / error)


@dataclass(frozen=True)
class Training:
    """A training that is ready to begin: `prepare` has read and checked everything.

    Attributes:
        out: the weights to write; `sheet` and `checkpoint` lie beside it.
    """

    out: Path
    images: TrainingImages
    trainer: Trainer
    augment: str
    identity: dict[str, str]

    @property
    def sheet(self) -> Path:
        """A row of held-out patches over two rows of draws."""
        return self.out.with_suffix(".draws.png")

    @property
    def checkpoint(self) -> Path:
        """The state of the run, for `resume=`; of no use once the result pleases."""
        return self.out.with_suffix(".checkpoint.pt")

    def summary(self) -> list[str]:
        """What will be learned from what, in lines."""
        images, net, recipe = self.images, self.trainer.net, self.trainer.recipe
        c = images.channels
        kind = "complex, 2 channels" if images.kind == "complex" else f"{c} channel{'s' * (c > 1)}"
        unit = " of full scale" if images.full_scale else ""
        clipped = f"; {images.clipped:.2%} of the values are clipped" if images.clipped else ""
        dtype = compute_dtype(torch.device("cpu")) or torch.float32
        small, large = recipe.sizes
        sizes = f"{small}x{small}" + (f" and {large}x{large}" if large > small else "")
        return [
            f"{len(images.training)} images to learn from, {len(images.held_out)} held out, {kind}",
            f"x = -1 at {images.low:g} and x = 1 at {images.high:g}{unit}, root mean square "
            f"{net.config.sigma_data:.3g}{clipped}",
            f"patches of {sizes}, augmented by {self.augment}; "
            f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million weights, "
            f"{str(dtype).removeprefix('torch.')}",
        ]

    def run(
        self, progress: bool | None = None, say: Callable[[str], None] = lambda text: None
    ) -> PhotoPrior:
        """Train, write weights, checkpoint and sheet, and return the prior.

        Raises:
            TrainingError: the training diverged.
            FileProblem: a file cannot be written.
        """
        score = Score(self.images, self.trainer.net.config)
        scores: list[dict[str, float]] = []

        def save(trainer: Trainer) -> None:
            trainer.save(self.checkpoint, self.identity)
            self._write(trainer, scores)

        def judge(trainer: Trainer) -> None:
            scores[:] = score(trainer.averaged())
            self._write(trainer, scores)
            levels = ", ".join(
                f"{s['psnr']:.2f} dB at {s['sigma']:.2g} (linear {s['linear']:.2f})" for s in scores
            )
            minutes = f"{trainer.spent / 60:.1f} min"
            say(f"step {trainer.step}, {minutes}: held-out PSNR by noise std: {levels}")

        train(self.trainer, save, judge, progress)
        if not scores:  # continued at its end
            judge(self.trainer)
        _write_draws(self, progress)
        return PhotoPrior.load(self.out)

    def _write(self, trainer: Trainer, scores: list[dict[str, float]]) -> None:
        from posterior import __version__

        with replacing(self.out) as temporary:
            trainer.averaged().save(
                temporary,
                training="posterior train-prior",
                version=__version__,
                steps=str(trainer.step),
                minutes=f"{trainer.spent / 60:.1f}",
                seed=str(trainer.recipe.seed),
                patches=json.dumps(trainer.recipe.sizes),
                augment=self.augment,
                data=json.dumps(self.images.describe()),
                held_out=json.dumps(scores),
            )


def prepare(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    width: int = 48,
    augment: str = "flips",
    value_range: tuple[float, float] | None = None,
    pixels: int = 16 * 64 * 64,
    rate: float = 0.02,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> Training:
    """Read the images and check everything; trains and writes nothing: `prepare(...).run()` does.

    Args:
        images: a folder, see `training_data.read_folder`.
        out: the weights, `.safetensors`, half precision, for `posterior.load_prior`.
        minutes: how long, by the wall clock; default 60, unless `steps` is given.
        steps: how many steps instead; such a run can be repeated exactly.
        size: side of the patches; default 64, or the shortest side of the images if that is less. A
            quarter of the batches has patches twice as large, as far as the images allow.
        width: channels at half the resolution, a multiple of 12; the bundled prior has 96.
        augment: "none", "flips", "turns" or "photo", see `training_data.Patches`.
        value_range: the values for x = -1 and x = 1; default: 8 and 16-bit integers by their full
            scale, anything else divided by the largest absolute value.
        pixels: of one batch.
        rate: peak of the learning rate.
        seed: any integer.
        resume: continue from the checkpoint beside `out`. Images and options must be the same, but
            for `minutes`, `steps` and `rate`.
        overwrite: replace earlier results.

    Raises:
        InputError, InputTypeError, FileProblem, ResumeError.
    """
    out = Path(out)
    recipe_steps = None if steps is None else whole_number("steps", steps, 1)
    width = whole_number("width", width, 12)
    pixels = whole_number("pixels", pixels, 1)
    seed = check_seed(seed)
    if steps is not None and minutes is not None:
        raise InputError("give minutes or steps, not both")
    if steps is None:
        minutes = 60.0 if minutes is None else float(minutes)
        if not 0 < minutes < math.inf:
            raise InputError(f"minutes must be positive, got {minutes:g}")
    if not 0 < rate < math.inf:
        raise InputError(f"the rate must be positive, got {rate:g}")
    if width % 12:
        raise InputError(f"width must be a multiple of 12, got {width}")
    if resume and overwrite:
        raise InputError("resume continues earlier results and overwrite replaces them: choose one")
    _check_out(out, Path(images), resume or overwrite)

    found = read_folder(images, value_range)
    if augment == "photo" and not found.bounded:
        raise InputError(
            "the augmentation 'photo' darkens images, which needs to know where black is: give "
            "value_range=(low, high), or take another"
        )
    config = _config(found, width)
    sizes = _sizes(found, config, size)
    source = Patches(found.training, augment)
    if augment == "photo":
        source = Patches(list(rescaled(found.training, sizes[1])), augment)
    recipe = Recipe(minutes, recipe_steps, sizes, pixels, rate, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        net = PhotoNet(config)
    trainer = Trainer(net, source, recipe)
    parts = {
        "images": [found.training, found.held_out],
        "value range": [found.low, found.high, found.bounded],
        "width": width,
        "size": list(sizes),
        "batch": pixels,
        "augmentation": augment,
        "seed": seed,
    }
    identity = {name: fingerprint(part) for name, part in parts.items()}
    training = Training(out, found, trainer, augment, identity)
    if resume:
        trainer.load(training.checkpoint, identity)
    return training


def _check_out(out: Path, images: Path, may_exist: bool) -> None:
    if out.suffix != ".safetensors":
        raise InputError(f"the weights are written as .safetensors, not as {out.name}")
    if images.is_dir() and out.parent.resolve() == images.resolve():
        raise InputError(f"{out} lies among the images: write it into another folder")
    for path in (out, out.with_suffix(".draws.png"), out.with_suffix(".checkpoint.pt")):
        if path.exists() and not may_exist:
            raise FileProblem(
                f"{path} exists: continue it with resume=, replace it with overwrite=, or choose "
                "another name"
            )
        if path.exists() and not path.is_file():
            raise FileProblem(f"{path} is not a file")
    if not out.parent.is_dir():
        raise FileProblem(f"there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise FileProblem(f"{out.parent} is not writable")


def _config(images: TrainingImages, width: int) -> PhotoConfig:
    """The network for the data: four resolutions, or three for images of less than 32 pixels."""
    levels = 4 if images.smallest >= 32 else 3
    default = PhotoConfig()
    ratio = images.rms / default.sigma_data
    config = PhotoConfig(
        channels=tuple(c * width // default.channels[0] for c in default.channels[:levels]),
        encoder=default.encoder[:levels],
        decoder=default.decoder[:levels],
        sigma_data=images.rms,
        sigma_min=ratio * default.sigma_min,
        sigma_max=ratio * default.sigma_max,
        image_channels=images.channels,
        range=(-1.0, 1.0) if images.bounded else None,
    )
    least = 2 * 2**levels
    if images.smallest < least:
        raise InputError(
            f"the smallest image has {images.smallest} pixels on its shorter side, training needs "
            f"at least {least}"
        )
    return config


def _sizes(images: TrainingImages, config: PhotoConfig, size: int | None) -> tuple[int, int]:
    least = 2 * 2 ** len(config.channels)
    small = min(64, images.smallest) if size is None else whole_number("size", size, least)
    if small > images.smallest:
        raise InputError(
            f"size {small} is larger than the smallest image, which has {images.smallest} pixels "
            "on its shorter side"
        )
    return small, min(2 * small, images.smallest)


def _write_draws(training: Training, progress: bool | None) -> None:
    """A sheet of tiles of the patch size: eight held-out patches above sixteen draws.

    Complex images are shown by their magnitude, others than grey and RGB by their first channel.
    Where x has no range, black and white are the extremes of the held-out tiles.
    """
    from posterior.images import write_image
    from posterior.sampler import sample

    images, recipe = training.images, training.trainer.recipe
    size = recipe.sizes[0]
    prior = PhotoPrior.load(training.out)
    prior.rows = 8  # faster for small patches
    shape = (images.channels, size, size)
    draws = sample(prior, n=16, shape=shape, steps=50, seed=recipe.seed, progress=progress).draws
    rng = np.random.default_rng(recipe.seed % 2**64)
    truth = Patches(images.held_out, "none").draw(8, size, rng)
    tiles, low, high = _shown(torch.cat([truth, draws[:, 0]]), images.kind), -1.0, 1.0
    if not images.bounded:
        low, high = float(tiles[:8].min()), float(tiles[:8].max())
    tiles = (2 * tiles - low - high) / (high - low)
    sheet = torch.ones(tiles.shape[1], 3 * size + 8, 8 * size)
    for k, tile in enumerate(tiles):
        row, column = divmod(k, 8)
        top, left = row * size + 8 * (row > 0), column * size
        sheet[:, top : top + size, left : left + size] = tile
    write_image(training.sheet, sheet)


def _shown(x: Tensor, kind: str) -> Tensor:
    """x (B, C, H, W) as pictures (B, 1 or 3, H, W)."""
    if kind == "complex":
        return x.square().sum(1, keepdim=True).sqrt()
    return x if x.shape[1] in (1, 3) else x[:, :1]


def _channels_last(net: PhotoNet) -> PhotoNet:
    moved: PhotoNet = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
