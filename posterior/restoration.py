"""The front door for images: a file or an array in, several restorations and their spread out.

`prepare` reads and checks everything and says what a run will cost; `Plan.run` does it; `restore`
is both in one call.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from posterior import metrics as scores
from posterior.arguments import count
from posterior.baselines import baseline_for
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.guidance.base import Guidance
from posterior.guidance.registry import resolve
from posterior.image_samples import ImageSamples
from posterior.images import ImageInfo
from posterior.noise_estimation import estimate_noise
from posterior.operators import (
    ChannelMean,
    Compose,
    GaussianNoise,
    Mask,
    Masking,
    Operator,
    SuperResolution,
    Tomography,
    as_noise_model,
)
from posterior.operators.noise import NoiseModel
from posterior.priors.base import Prior
from posterior.problem import Problem
from posterior.sampler import Callback, describe_noise, sample
from posterior.science_files import ScienceFile
from posterior.science_files import write as write_science
from posterior.sheet import full_scale_std, write_sheet
from posterior.values import image_and_notes

_TIMED = 192  # pixels on a side of the part on which a network is timed
CROP = re.compile(r"(\d+)(?:x(\d+))?(?:\+(\d+)\+(\d+))?")
"""N, WxH or WxH+X+Y."""
SIMULATED_NOISE = 0.04
"""Gaussian std in [-1, 1] (0.02 of full scale) that `simulate=True` adds when none is named."""


@dataclass(frozen=True)
class Restoration(ImageSamples):
    """`ImageSamples` of a restored image, with what they were made from and how they score.

    `draws` is (n, B, C, H, W) in [-1, 1], grey for a grey image, and two channels for a complex
    one; the B images of a volume are its slices.

    Attributes:
        degraded: the measurement as an image (B, C, h, w) in [-1, 1]; None where y is not one and
            cannot be shown as one.
        original: the clean image (B, C, H, W) that was degraded, with simulate=True.
        baseline: the classical restoration of the same measurement, with simulate=True.
        metrics: with simulate=True: `mean`, `degraded` and `baseline`, each with `psnr` (dB) and
            `ssim`, and `draws`; numbers, or one per image for a batch.
        info: what kind of file the image was.
        title: operator and noise in a few words.
    """

    degraded: Tensor | None = None
    original: Tensor | None = None
    baseline: Tensor | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    white_name: ClassVar[str] = "std_white"

    def _report_lines(self) -> list[str]:
        return [*super()._report_lines(), *_metric_lines(self.metrics)]

    def summary(self) -> dict[str, Any]:
        """The report as JSON values: that of `Samples`, `metrics` and `image`."""
        summary = super().summary()
        science, scale = self.info.science, self.info.scale
        if science is not None and scale is not None:
            summary["image"]["values"] = {
                "format": science.format,
                "low": scale.low,
                "high": scale.high,
                "metadata": dict(science.metadata),
            }
        return {**summary, "metrics": dict(self.metrics)}

    @property
    def has_spread(self) -> bool:
        """There are two good draws of every measurement, so `std` is defined."""
        return bool((self.good.sum(0) >= 2).all())

    def sheet(self, path: str | os.PathLike[str], measurement: int = 0) -> Path:
        """Write the contact sheet of one measurement: a PNG for a slide."""
        return write_sheet(self, Path(path), measurement)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write images, contact sheet, samples.safetensors and report.json, all or nothing.

        The images are degraded.png, mean.png, std.png (with two draws or more) and draw-0.png
        ..., with the bits and alpha of the input; a batch gets one folder per image. White in
        std.png is the value `std_white` of report.json, as a part of full scale.

        A science file (and `.npy` of values) also gets mean, std and draw-0 ... in its format, its
        units and its geometry; std is per real component. A volume gets these, and the sheet of
        its middle slice.

        Args:
            folder: made if missing.
            overwrite: replace a folder that holds nothing but an earlier result.

        Raises:
            FileProblem: the folder is not empty, or cannot be written.
        """
        return super().save(folder, overwrite)

    def _write_folder(self, folder: Path) -> list[float | None]:
        """As of pictures; of values first their files, and of a volume the middle sheet alone."""
        if self.info.science is not None:
            self._write_values(folder)
            slices = self.draws.shape[1]
            if slices > 1:
                self.sheet(folder / "sheet.png", slices // 2)
                return []
        return super()._write_folder(folder)

    def _write_values(self, folder: Path) -> None:
        """The statistics and draws as files of the kind that the input was."""
        science, scale = self.info.science, self.info.scale
        assert science is not None
        assert scale is not None
        results = {"mean": scale.values(self.mean)}
        if self.has_spread:
            results["std"] = scale.spread(self.std)
        simulated = None if self.original is None else self.degraded
        if simulated is not None and simulated.shape == self.mean.shape:  # else: other geometry
            results["degraded"] = scale.values(simulated)
        for k in range(self.draws.shape[0]):
            results[f"draw-{k}"] = scale.values(self.draws[k])
        for name, values in results.items():
            write_science(folder / f"{name}{science.result_suffix}", values, science)

    def _write_images(self, folder: Path, b: int) -> float | None:
        if self.degraded is not None:
            self._write_image(folder / "degraded.png", self.degraded[b])
        self._write_image(folder / "mean.png", self.mean[b])
        for k in range(self.draws.shape[0]):
            self._write_image(folder / f"draw-{k}.png", self.draws[k, b])
        if not self.has_spread:
            return None
        return self._write_scaled(folder / "std.png", full_scale_std(self.std[b]))


@dataclass(frozen=True)
class Plan:
    """A restoration that was read and checked, ready to run.

    Attributes:
        prior, operator, y, noise: the problem; `operator` maps what the prior makes to y.
        image_operator: the same for images with the channels of the input.
        method: resolved; `why` it was chosen.
        steps: noise levels to visit.
        n, seed: draws per measurement, and their seed.
        clean: the original (B, C, H, W), or None.
        notes: what the report should say.
    """

    prior: Prior
    operator: Operator
    image_operator: Operator
    y: Tensor
    noise: NoiseModel
    method: Guidance
    why: str
    steps: int
    n: int
    seed: int | Sequence[int]
    event: tuple[int, ...]
    info: ImageInfo
    clean: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        """Draws or ensembles over all measurements."""
        return -(-self.n // self.method.yields) * self.y.shape[0]

    @property
    def nfe(self) -> int:
        """Network evaluations of the whole run."""
        return self.groups * self.method.nfe(self.steps) * self.prior.evaluations

    @property
    def vjps(self) -> int:
        """Backward passes through the network of the whole run."""
        return self.groups * self.method.vjps(self.steps) * self.prior.evaluations

    def seconds(self) -> float:
        """How long the run will take, from timing one network call (and one backward pass).

        A prior of images of any size is timed on a part of them and scaled by the pixels.
        """
        level = self.method.grid(self.prior.schedule, self.steps)[self.steps // 2]
        event = self.event
        if self.prior.event_shape is None and len(event) == 3:
            event = (event[0], min(event[1], _TIMED), min(event[2], _TIMED))
        x, prior = torch.zeros(1, *event, device=self.prior.device), self.prior.take([0])
        per_call = math.prod(self.event) / math.prod(event) / prior.evaluations
        forward = _timed(lambda: prior(x, level.t)) * per_call
        if not self.vjps:
            return forward * self.nfe

        def both() -> None:
            estimate, pull = prior.vjp(x, level.t)
            pull(estimate.x0)

        backward = max(_timed(both) * per_call - forward, 0.0)
        return forward * self.nfe + backward * self.vjps

    def run(
        self,
        *,
        max_batch: int | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> Restoration:
        """Sample, and score where the original is known."""
        classical = None if self.clean is None else self._classical()  # fails before the draws
        samples = sample(
            self.prior,
            self.operator,
            self.y,
            noise=self.noise,
            method=self.method,
            steps=self.steps,
            n=self.n,
            seed=self.seed,
            shape=self.event,
            max_batch=max_batch,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
            resume=resume,
        )
        draws = samples.draws.cpu()
        if self.grey:
            draws = draws.mean(2, keepdim=True)
        notes = [*samples.provenance.get("notes", []), *self.notes]
        out = Restoration(
            draws,
            samples.diagnostics,
            {**samples.provenance, "why": self.why, "notes": notes},
            samples.latents,
            degraded=self._shown(),
            original=None if self.clean is None else self.clean.cpu(),
            info=self.info,
            title=f"{self.image_operator!r}, noise "
            + _in_words(self.noise, self.image_operator).split(" = ")[-1],
        )
        return out if classical is None else self._scored(out, *classical)

    @property
    def grey(self) -> bool:
        """The image is grey, the prior makes RGB."""
        return self.operator is not self.image_operator

    def _shown(self) -> Tensor | None:
        """y as an image; for others filtered back-projection, pseudo-inverse or adjoint."""
        y = self.y
        if isinstance(self.image_operator, Tomography):
            return self.image_operator.fbp(y).cpu()  # a sinogram has the axes of an image
        if y.ndim == 4 and y.shape[1] in (1, 2, 3) and not y.is_complex():
            return y.cpu()
        if self.image_operator.has_pinv:
            return self.image_operator.pinv(y).cpu()
        return self.image_operator.adjoint(y).cpu() if self.image_operator.linear else None

    def _classical(self) -> tuple[str | None, Tensor | None]:
        """The name of the classical method that fits, and its restoration."""
        baseline = baseline_for(self.image_operator)
        if baseline is None:
            return None, None
        return baseline.name, baseline.restore(self.y.cpu(), self._noise_std())

    def _scored(self, out: Restoration, name: str | None, classical: Tensor | None) -> Restoration:
        clean = self.clean
        assert clean is not None
        clean = clean.cpu()
        found: dict[str, Any] = {"mean": _scores(out.mean, clean)}
        residual = self.noise.misfit(
            self.y.cpu(), self.image_operator(out.mean), self.image_operator
        )
        found["mean"]["residual"] = _plain(residual)
        if out.degraded is not None:
            found["degraded"] = _scores(_enlarged(out.degraded, clean), clean)
        each = torch.stack([scores.psnr(draw, clean) for draw in out.draws])
        found["draws"] = {"psnr": [_plain(row) for row in each]}
        found["baseline"] = {"name": name}
        if classical is not None:
            found["baseline"] |= _scores(classical, clean)
        return replace(out, baseline=classical, metrics=found)

    def _noise_std(self) -> float:
        """Root mean square noise, for methods that know one number."""
        y = self.y.cpu()
        variance = torch.as_tensor(self.noise.variance(y))
        return math.sqrt(float(variance.double().mean()))


def restore(
    image: object,
    operator: Operator | str | Sequence[Operator | str],
    noise: NoiseModel | float | None = None,
    prior: Prior | str | os.PathLike[str] = "photo",
    method: Guidance | str = "auto",
    n: int = 4,
    seed: int | Sequence[int] = 0,
    simulate: bool = False,
    *,
    steps: int | None = None,
    crop: str | int | None = None,
    device: str | torch.device | None = None,
    value_range: tuple[float, float] | None = None,
    slices: str | int | None = None,
    max_batch: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Restoration:
    """Restore an image: n draws from the posterior of what was there before it was degraded.

    Args:
        image: a path (PNG, JPEG, TIFF, WebP, .npy; NIfTI, DICOM, FITS, HDF5, NetCDF), a numpy array
            (H, W) or (H, W, C) (uint8, uint16, or float in [-1, 1]; complex (H, W)), or a tensor
            (C, H, W) or (B, C, H, W) in [-1, 1]. It is the degraded image, unless `simulate`. A
            volume is restored slice by slice.
        operator: how it was degraded: an operator, a text such as "gaussian-blur:sigma=2.0", or a
            list of them, first applied first. What a mask hides is ignored, whatever colour it has.
        noise: its standard deviation in the library's units, where black is -1 and white is 1 (so
            0.04 is 0.02 of full scale), or a noise model. None estimates it from the image and
            says so; with `simulate` None means 0.04.
        prior: "photo", anything that `posterior.load_prior` takes, or a prior. A grey image under
            a prior for RGB is taken as the mean of the channels.
        method: a guidance object, its name, or "auto".
        n: draws.
        seed: any integer.
        simulate: degrade the image first (operator and noise), then restore and score.
        steps: noise levels to visit; default: the method's.
        crop: restore only a part, "256", "256x192" (centred) or "256x192+10+20" (left, top).
        device: where the prior runs, such as "cuda"; default: where it is, the CPU for a name. A
            prior object is moved.
        value_range: of science files, .npy files and arrays, the values (low, high) that are -1
            and 1; default: those that the prior was trained on, else the extremes of the file.
        slices: of a volume, "90" or "80:100" (the last one excluded).
        max_batch, callback, progress, checkpoint, resume: see `posterior.sample`.

    Returns:
        A `Restoration`: `Samples` with `.degraded`, `.metrics`, `.sheet(path)` and a `.save(dir)`
        that writes images.

    Raises:
        PosteriorError: the subclass says which argument is at fault; nothing was run or written.
    """
    plan = prepare(
        image, operator, noise, prior, method, n, seed, simulate,
        steps=steps, crop=crop, device=device, value_range=value_range, slices=slices,
    )  # fmt: skip
    return plan.run(
        max_batch=max_batch,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )


def prepare(
    image: object,
    operator: Operator | str | Sequence[Operator | str],
    noise: NoiseModel | float | None = None,
    prior: Prior | str | os.PathLike[str] = "photo",
    method: Guidance | str = "auto",
    n: int = 4,
    seed: int | Sequence[int] = 0,
    simulate: bool = False,
    *,
    steps: int | None = None,
    crop: str | int | None = None,
    device: str | torch.device | None = None,
    value_range: tuple[float, float] | None = None,
    slices: str | int | None = None,
) -> Plan:
    """Everything of `restore` up to the first network call; see there."""
    n = count("n", n, 1)
    steps = None if steps is None else count("steps", steps, 1)
    applied = as_operator(operator)
    noise_model = None if noise is None else as_noise_model(noise)
    prior = as_prior(prior, device)
    pixels, info, notes = image_and_notes(image, prior, value_range, slices)
    if crop is not None:
        size = (pixels.shape[-2], pixels.shape[-1])
        pixels, info, applied = _cropped(pixels, info, applied, parse_crop(crop, size), simulate)
    pixels = pixels.to(prior.device)

    clean = None
    if simulate:
        clean = pixels
        if noise_model is None:
            noise_model = GaussianNoise(SIMULATED_NOISE)
            notes.append(f"no noise was named: added {_in_words(noise_model, applied)}")
        y = noise_model.sample(applied.simulate(clean), seed)
    else:
        y = pixels
    y = applied.restrict(y)
    event = tuple(clean.shape[1:]) if clean is not None else _event(applied, y)
    applied = applied.bind(event)
    if info.science is not None:
        info = replace(info, science=_results_like(info.science, applied, event))
    total, event = _for_prior(prior, applied, event)

    if noise_model is None:
        rounding = 2 / (2**info.bits - 1) / math.sqrt(12)
        estimate = estimate_noise(y, applied, smallest=rounding)
        noise_model = GaussianNoise(estimate.std)
        notes.append(f"noise std {_in_words(noise_model, applied)}: {estimate.how}")
    if total is not applied:
        notes.append("grey image: the mean of the channels of RGB draws")
    noise_model.check(y)

    chosen, why = resolve(method, Problem(prior, total, y, noise_model))
    return Plan(
        prior=prior,
        operator=total,
        image_operator=applied,
        y=y,
        noise=noise_model,
        method=chosen,
        why=why,
        steps=chosen.default_steps if steps is None else steps,
        n=n,
        seed=seed,
        event=event,
        info=info,
        clean=clean,
        notes=tuple(notes),
    )


def as_operator(operator: Operator | str | Sequence[Operator | str]) -> Operator:
    """An operator, its description, or a list of either (first applied first) as one operator."""
    from posterior.operators import parse

    if isinstance(operator, Operator):
        return operator
    if isinstance(operator, str):
        return parse(operator)
    if isinstance(operator, Sequence) and operator:
        total = as_operator(operator[0])
        for following in operator[1:]:
            total = as_operator(following) @ total
        return total
    raise InputTypeError(
        'operator must be an operator, a text such as "gaussian-blur:sigma=2", or a list of them, '
        f"not {operator!r}"
    )


def as_prior(prior: object, device: str | torch.device | None = None) -> Prior:
    """A prior, or the one of that name; on a device, if one is given."""
    if isinstance(prior, Prior):
        return prior if device is None else prior.to(device)
    if isinstance(prior, (str, os.PathLike)):
        import posterior

        return posterior.load_prior(prior, device=device)
    raise InputTypeError(
        f'prior must be a name such as "photo" or a prior object, not {type(prior).__name__}; of a'
        " diffusers pipeline, posterior.prior_from_pipeline(pipe) is one"
    )


# Units -------------------------------------------------------------------------------------------


def _in_words(noise: NoiseModel, operator: Operator) -> str:
    """The noise of images in [-1, 1]: "0.04 in [-1, 1] = 0.02 of full scale"."""
    return describe_noise(noise, operator, (-1.0, 1.0)) or repr(noise)


# Shapes ------------------------------------------------------------------------------------------


def parse_crop(crop: object, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of "N", "WxH" or "WxH+X+Y" in an image of `size` = (H, W).

    Raises:
        InputError: it does not say a crop, or one that leaves the image.
    """
    match = CROP.fullmatch(str(crop).strip())
    if not match or isinstance(crop, bool):
        raise InputError(
            f"crop is N, WxH or WxH+X+Y in pixels, such as 256x192+10+20, not {crop!r}"
        )
    width = int(match[1])
    height = int(match[2]) if match[2] else width
    top = int(match[4]) if match[4] else (size[0] - height) // 2
    left = int(match[3]) if match[3] else (size[1] - width) // 2
    outside = top < 0 or left < 0 or top + height > size[0] or left + width > size[1]
    if outside or not width or not height:
        raise InputError(f"crop {crop} does not lie inside the {size[1]}x{size[0]} image")
    return top, left, height, width


def _cropped(
    pixels: Tensor,
    info: ImageInfo,
    operator: Operator,
    box: tuple[int, int, int, int],
    simulate: bool,
) -> tuple[Tensor, ImageInfo, Operator]:
    top, left, height, width = box
    size = (pixels.shape[-2], pixels.shape[-1])

    def cut(x: Tensor) -> Tensor:
        return x[..., top : top + height, left : left + width]

    def cut_masks(part: Operator, whole: tuple[int, ...]) -> tuple[Operator, tuple[int, ...]]:
        """The operator for the part, and the size of its x; `whole` is that of its uncut y."""
        if isinstance(part, Compose):
            outer, between = cut_masks(part.outer, whole)
            inner, before = cut_masks(part.inner, between)
            return Compose(outer, inner), before
        if isinstance(part, Mask):  # as large as what is cut, wherever it stands
            same = part.keep.shape[-2:] == size
            return (Mask(keep=cut(part.keep)) if same else part), whole
        if isinstance(part, Masking) and whole == size and not simulate:
            return Mask(keep=cut(part.pattern(*size))), whole  # the one that hid these pixels
        try:
            return part, tuple(part.domain_shape((1, pixels.shape[1], *whole)))[-2:]
        except CapabilityError:
            return part, whole

    alpha = None if info.alpha is None else cut(info.alpha)
    science = info.science and info.science.window(top, left, height, width)
    info = replace(info, alpha=alpha, science=science)
    return cut(pixels), info, cut_masks(operator, size)[0]


def _event(operator: Operator, y: Tensor) -> tuple[int, ...]:
    """The shape of the image behind a degraded one."""
    try:
        event = tuple(operator.domain_shape(tuple(y.shape)))[1:]
    except CapabilityError:
        event = tuple(y.shape[1:])
    expected = tuple(operator.range_shape((y.shape[0], *event)))
    if expected != tuple(y.shape):
        raise InputError(
            f"{operator!r} does not give images of shape {tuple(y.shape[1:])}: is this image "
            "still to be degraded? then simulate"
        )
    return event


def _results_like(science: ScienceFile, operator: Operator, event: tuple[int, ...]) -> ScienceFile:
    """What results are written like: the file, or with smaller voxels of the same field of view."""
    height, width = science.values.shape[1:]
    if event[1:] == (height, width):
        return science
    factor = math.prod(
        part.factor for part in _parts(operator) if isinstance(part, SuperResolution)
    )
    if event[1:] == (height * factor, width * factor):
        return science.enlarged(event[1], event[2])
    raise InputError(
        f"{science.path} has a geometry, and {operator!r} does not say which part of space its "
        "larger image covers: pass the values as an array"
    )


def _parts(operator: Operator) -> list[Operator]:
    if isinstance(operator, Compose):
        return [*_parts(operator.outer), *_parts(operator.inner)]
    return [operator]


def _for_prior(
    prior: Prior, operator: Operator, event: tuple[int, ...]
) -> tuple[Operator, tuple[int, ...]]:
    """The operator for what the prior makes, and the shape of that."""
    if prior.codec is not None:
        decoder = prior.codec.decoder
        assert isinstance(decoder, Operator)
        return operator, tuple(decoder.domain_shape((1, *event)))[1:]
    try:
        prior.check_event(event)
    except InputError as problem:
        colour = (3, *event[1:])
        if event[0] == 1:
            try:
                prior.check_event(colour)
            except InputError:
                pass
            else:
                return operator @ ChannelMean(), colour
        hint = _of_channels(prior, event)
        if hint is None:
            raise
        raise InputError(f"{problem}: {hint}") from None
    return operator, event


def _of_channels(prior: Prior, event: tuple[int, ...]) -> str | None:
    """What to do about an image whose channels are not those of the prior."""
    for channels, hint in (
        (1, "the prior makes grey images, convert the image to grey"),
        (2, "the prior makes complex images, give complex numbers, .npy (H, W)"),
        (3, "the prior makes RGB images, give grey or RGB"),
    ):
        if channels != event[0]:
            try:
                prior.check_event((channels, *event[1:]))
            except InputError:
                continue
            return hint
    return None


# Scores ------------------------------------------------------------------------------------------


def _scores(image: Tensor, clean: Tensor) -> dict[str, Any]:
    found = {"psnr": _plain(scores.psnr(image, clean))}
    if min(clean.shape[-2:]) >= scores.SSIM_SMALLEST:
        found["ssim"] = _plain(scores.ssim(image, clean))
    return found


def _enlarged(image: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour to the size of `like`, for the score of a small or cut measurement."""
    if image.shape == like.shape:
        return image
    image = image.expand(-1, like.shape[1], -1, -1)
    return torch.nn.functional.interpolate(image, like.shape[-2:], mode="nearest-exact")


def _plain(values: Tensor) -> float | list[float]:
    numbers = [float(v) for v in values]
    return numbers[0] if len(numbers) == 1 else numbers


def _average(value: float | list[float]) -> float:
    return statistics.fmean(value) if isinstance(value, list) else value


def _metric_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, label in (("degraded", "degraded"), ("baseline", ""), ("mean", "posterior mean")):
        part = found.get(key)
        if not part:
            continue
        if part.get("psnr") is None:
            lines.append("no classical baseline fits this operator")
            continue
        ssim = f", SSIM {_average(part['ssim']):.3f}" if "ssim" in part else ""
        lines.append(f"{label or part['name']}: PSNR {_average(part['psnr']):.2f} dB{ssim}")
    return lines


def _timed(call: Any) -> float:
    call()  # the first one warms up
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
