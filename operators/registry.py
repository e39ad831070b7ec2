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
from posterior.operators.blur import GaussianBlur, MotionBlur
from posterior.operators.mask import Mask
from posterior.operators.resize import SuperResolution

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


_READS: dict[Reader, str] = {
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
        except ValueError:
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
