"""Operators by name, as the command line writes them: `name` or `name:key=value,key=value`.

>>> parse("gaussian-blur:sigma=2.0")
>>> parse("inpaint:keep_fraction=0.3,seed=1")
>>> parse("inpaint:box=32x48,at=10x20")

A comma begins a new parameter only where `key=` follows it, so that paths may contain commas.
Pairs and quadruples are joined by `x`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posterior.errors import InputError, unknown_name
from posterior.operators.base import Operator
from posterior.operators.basic import ChannelMean, ComplexFromChannels, Identity
from posterior.operators.blur import Blur, GaussianBlur, MotionBlur
from posterior.operators.defocus import AnisotropicGaussianBlur, Defocus
from posterior.operators.fourier import SubsampledFourier
from posterior.operators.jpeg import JPEG
from posterior.operators.kernels import load_kernel
from posterior.operators.kspace_masks import EquispacedLines, PoissonDisc, RandomLines
from posterior.operators.mask import Mask
from posterior.operators.mosaic import BayerMosaic
from posterior.operators.phase import PhaseRetrieval
from posterior.operators.resize import SuperResolution
from posterior.operators.sensing import GaussianSensing, StructuredSensing
from posterior.operators.structure import Crop
from posterior.operators.tomography import FanBeamCT, ParallelBeamCT
from posterior.operators.tone import Camera, HDRClipping, LinearLight, Luma, Quantisation
from posterior.operators.varying_blur import SpaceVaryingBlur

Reader = Callable[[str], Any]


def _number(text: str) -> float:
    return float(text)


def _whole(text: str) -> int:
    return int(text)


def _sizes(text: str) -> int | tuple[int, ...]:
    values = tuple(int(part) for part in text.split("x"))
    return values[0] if len(values) == 1 else values


def _text(text: str) -> str:
    return text


def _flag(text: str) -> bool:
    return {"yes": True, "no": False}[text.lower()]


_READS: dict[Reader, str] = {
    _flag: "yes or no",
    _number: "a number",
    _whole: "a whole number",
    _sizes: "whole numbers, as 32 or 32x48",
}


@dataclass(frozen=True)
class Entry:
    """One line of `posterior operators`."""

    name: str
    parameters: Mapping[str, Reader]
    make: Callable[..., Operator]
    summary: str
    usage: str


def _inpaint(**given: Any) -> Operator:
    """The one of the masks whose parameters were given."""
    kinds = ("keep_fraction", "box", "outpaint", "keep", "edit")
    chosen = [kind for kind in kinds if kind in given]
    if len(chosen) != 1:
        raise InputError(f"inpaint needs exactly one of {', '.join(k + '=' for k in kinds)}")
    kind = chosen[0]
    for extra, belongs in (("seed", "keep_fraction"), ("at", "box")):
        if extra in given and kind != belongs:
            raise InputError(f"inpaint: {extra}= belongs to {belongs}=, not to {kind}=")
    if kind == "keep_fraction":
        return Mask.random(keep_fraction=given[kind], seed=given.get("seed", 0))
    if kind == "box":
        return Mask.box(size=given[kind], at=given.get("at"))
    if kind == "outpaint":
        return Mask.outpaint(margin=given[kind])
    return Mask(**{kind: given[kind]})


def _blur(*, kernel: str, key: str | None = None, normalise: bool = True, **given: Any) -> Operator:
    """Any kernel, from a file."""
    values = load_kernel(kernel, key=key, normalise=normalise)
    if values.ndim != 2:
        raise InputError(
            f"kernel file {kernel} must hold one kernel (height, width), not {tuple(values.shape)}"
        )
    return Blur(values, **given)


_SCAN: dict[str, Reader] = {
    "views": _whole,
    "arc": _number,
    "start": _number,
    "detectors": _whole,
    "spacing": _number,
    "pixel_size": _number,
}

_KSPACE = {"equispaced": EquispacedLines, "random": RandomLines, "poisson-disc": PoissonDisc}


def _fourier(*, acceleration: float, mask: str = "equispaced", **given: Any) -> Operator:
    """Fourier coefficients of a real image on one of the masks of MRI."""
    if mask not in _KSPACE:
        raise unknown_name("mask of subsampled-fourier", mask, _KSPACE)
    return SubsampledFourier(_KSPACE[mask](acceleration, **given))


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("identity", {}, Identity, "y = x: denoising", "identity"),
        Entry(
            "inpaint",
            {
                "keep_fraction": _number,
                "seed": _whole,
                "box": _sizes,
                "at": _sizes,
                "outpaint": _sizes,
                "keep": _text,
                "edit": _text,
            },
            _inpaint,
            "hidden pixels: random, a box, a frame, or a mask file (white = keep | edit)",
            "inpaint:keep_fraction=0.3",
        ),
        Entry(
            "gaussian-blur",
            {"sigma": _number, "boundary": _text},
            GaussianBlur,
            "Gaussian blur, sigma in pixels",
            "gaussian-blur:sigma=2.0",
        ),
        Entry(
            "blur",
            {
                "kernel": _text,
                "key": _text,
                "normalise": _flag,
                "center": _sizes,
                "correlation": _flag,
                "boundary": _text,
            },
            _blur,
            "any kernel, from an image, .npy, .npz or .mat; of sum 1 unless normalise=no",
            "blur:kernel=psf.png",
        ),
        Entry(
            "motion-blur",
            {"length": _number, "angle": _number, "boundary": _text},
            MotionBlur,
            "blur along a line, length in pixels, angle in degrees counter-clockwise",
            "motion-blur:length=15,angle=30",
        ),
        Entry(
            "super-resolution",
            {"factor": _whole, "kernel": _text},
            SuperResolution,
            "low resolution; kernel bicubic (as Pillow), average or bicubic-matlab",
            "super-resolution:factor=4",
        ),
        Entry(
            "defocus",
            {"radius": _number, "boundary": _text},
            Defocus,
            "out of focus: the mean over a disc, radius in pixels",
            "defocus:radius=4",
        ),
        Entry(
            "anisotropic-gaussian-blur",
            {
                "sigma_along": _number,
                "sigma_across": _number,
                "angle": _number,
                "boundary": _text,
            },
            AnisotropicGaussianBlur,
            "Gaussian blur with two widths in pixels; the first along the angle",
            "anisotropic-gaussian-blur:sigma_along=5,sigma_across=1,angle=30",
        ),
        Entry(
            "space-varying-blur",
            {"middle": _number, "corner": _number, "steps": _whole, "boundary": _text},
            SpaceVaryingBlur.defocus,
            "defocus whose radius changes from the middle to the corners",
            "space-varying-blur:middle=0,corner=4",
        ),
        Entry(
            "linear-light",
            {"curve": _text},
            LinearLight,
            "display values to light; then a blur, then camera: a blur of the light",
            "linear-light",
        ),
        Entry(
            "camera",
            {"exposure": _number, "response": _text},
            Camera,
            "light to display values: exposure, saturation, response srgb, rec709 or linear",
            "camera:exposure=2",
        ),
        Entry(
            "hdr-clipping",
            {"factor": _number},
            HDRClipping,
            "overexposed: clip(factor x, -1, 1)",
            "hdr-clipping:factor=2",
        ),
        Entry(
            "quantisation",
            {"levels": _whole},
            Quantisation,
            "few grey levels in every channel",
            "quantisation:levels=8",
        ),
        Entry(
            "jpeg",
            {"quality": _whole, "subsampling": _text, "rounding": _text},
            JPEG,
            "JPEG; --simulate encodes with Pillow, guidance follows a surrogate",
            "jpeg:quality=10",
        ),
        Entry(
            "luma",
            {"standard": _text},
            Luma,
            "grey: luma, weights of rec601 or rec709",
            "luma",
        ),
        Entry(
            "bayer-mosaic",
            {"pattern": _text},
            BayerMosaic,
            "one colour per pixel; pattern rggb, bggr, grbg or gbrg",
            "bayer-mosaic:pattern=rggb",
        ),
        Entry(
            "crop",
            {"size": _sizes, "at": _sizes, "image": _sizes},
            Crop,
            "a window of a larger image; image= its size, for outpainting",
            "crop:size=64x64,image=96x96",
        ),
        Entry(
            "channel-mean",
            {"channels": _whole},
            ChannelMean,
            "grey: the mean of the channels",
            "channel-mean",
        ),
        Entry(
            "complex-from-channels",
            {},
            ComplexFromChannels,
            "a complex image from 2C real channels",
            "complex-from-channels",
        ),
        Entry(
            "subsampled-fourier",
            {
                "acceleration": _number,
                "mask": _text,
                "center_fraction": _number,
                "seed": _whole,
            },
            _fourier,
            "one in so many Fourier coefficients; mask equispaced, random or poisson-disc",
            "subsampled-fourier:acceleration=4,mask=poisson-disc",
        ),
        Entry(
            "phase-retrieval",
            {"oversample": _number, "low": _number},
            PhaseRetrieval,
            "moduli of the Fourier coefficients, padded by oversample / 8 on each side",
            "phase-retrieval:oversample=2",
        ),
        Entry(
            "gaussian-sensing",
            {"ratio": _number, "seed": _whole},
            GaussianSensing,
            "random linear measurements, ratio of them to pixels; small images",
            "gaussian-sensing:ratio=0.25",
        ),
        Entry(
            "structured-sensing",
            {"ratio": _number, "transform": _text, "seed": _whole},
            StructuredSensing,
            "random signs, a fast transform (dct or hadamard), random coefficients of it",
            "structured-sensing:ratio=0.25",
        ),
        Entry(
            "parallel-beam-ct",
            _SCAN,
            ParallelBeamCT,
            "tomography, views over an arc of 180 degrees; lengths in pixels",
            "parallel-beam-ct:views=60",
        ),
        Entry(
            "fan-beam-ct",
            {"source_distance": _number, "detector_distance": _number, **_SCAN},
            FanBeamCT,
            "tomography from a point source, views over an arc of 360 degrees; lengths in pixels",
            "fan-beam-ct:views=120,source_distance=400,detector_distance=200",
        ),
    )
}
_ALIASES = {"mask": "inpaint"}


def parse(text: str) -> Operator:
    """The operator that `name:key=value,...` describes."""
    name, colon, rest = text.strip().partition(":")
    entry = _ENTRIES.get(_ALIASES.get(name, name))
    if entry is None:
        raise unknown_name("operator", name, _ENTRIES)
    given: dict[str, Any] = {}
    if colon and not rest:
        raise InputError(f"{text!r}: parameters are missing after the colon, e.g. {entry.usage}")
    for item in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", rest) if rest else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        key = key.replace("-", "_")
        if not equals or not value:
            raise InputError(f"{item!r} in {text!r} must be key=value, e.g. {entry.usage}")
        if key not in entry.parameters:
            raise unknown_name(f"parameter of {entry.name}", key, entry.parameters)
        if key in given:
            raise InputError(f"{key} is given twice in {text!r}")
        read = entry.parameters[key]
        try:
            given[key] = read(value)
        except (ValueError, KeyError):
            raise InputError(f"{entry.name}: {key} must be {_READS[read]}, not {value!r}") from None
    try:
        return entry.make(**given)
    except TypeError as error:
        if "required" not in str(error):
            raise
        missing = ", ".join(re.findall(r"'(\w+)'", str(error)))
        raise InputError(f"{entry.name} needs {missing}=, e.g. {entry.usage}") from None


def table() -> list[tuple[str, str, str]]:
    """(name, parameters, one line of description) for every operator that has a name."""
    return [
        (entry.name, ", ".join(entry.parameters) or "-", f"{entry.summary}; e.g. {entry.usage}")
        for entry in _ENTRIES.values()
    ]
