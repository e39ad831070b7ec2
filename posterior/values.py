"""Images of physical values: counts, Hounsfield units, kelvin, complex signals.

Pictures have a black and a white; values need to be told theirs. With (low, high) = value range

    x = (2 v - low - high) / (high - low)

so `low` is -1 and `high` is 1, as in `posterior train-prior`. The range is the caller's; else that
of the data the prior was trained on, where it knows one; else the extremes of the file. Complex
values are two channels, real part first, and have the range (-m, m): no other keeps their phase.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posterior.errors import FileProblem, InputError
from posterior.images import ImageInfo, as_images
from posterior.priors.base import Prior
from posterior.science_files import Array, ScienceFile, format_of, from_array, read, result_name

_BEYOND = 0.25  # of full scale: as far as noise is let out of the range of a bounded prior


@dataclass(frozen=True)
class ValueScale:
    """The values at x = -1 and x = 1."""

    low: float
    high: float

    def x(self, values: Array) -> Tensor:
        """Values (D, H, W) as x (D, C, H, W), float32, C = 1 or, of complex ones, 2."""
        parts = [values.real, values.imag] if np.iscomplexobj(values) else [values]
        stacked = (2 * np.stack(parts, 1) - self.low - self.high) / (self.high - self.low)
        return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32))

    def values(self, x: Tensor) -> Array:
        """x (D, C, H, W) as values (D, H, W)."""
        return _joined((x.double() * (self.high - self.low) + self.low + self.high) / 2)

    def spread(self, std: Tensor) -> Array:
        """A standard deviation of x as one of values; per real component of complex ones."""
        return _joined(std.double() * (self.high - self.low) / 2)


def image_and_notes(
    image: object,
    prior: Prior,
    value_range: tuple[float, float] | None = None,
    slices: str | int | None = None,
) -> tuple[Tensor, ImageInfo, list[str]]:
    """An image for `restore` as x (B, C, H, W), what it was, and what should be said of it.

    Values are science files; `.npy` files of complex numbers; other `.npy` files if a range is
    given or the prior knows one; arrays of complex numbers, or any with a range. The rest are
    pictures, see `as_images`.

    Raises:
        FileProblem: the file cannot be read, or its values lie far outside the range.
        InputError: value_range or slices where they have no meaning, a range that is none.
    """
    known = _range_of(prior)
    file = _values(image, value_range is not None or slices is not None, known is not None)
    if file is None:
        if value_range is not None or slices is not None:
            raise InputError("value_range and slices are of science files, .npy files and arrays")
        pixels, info = as_images(image)
        if known is not None and isinstance(image, (str, os.PathLike)):
            _check_picture(image, info, known)
        return pixels, info, []
    if slices is not None:
        file = file.slices(str(slices))
    scale, whence = _scale(file, value_range, known)
    _check_inside(file, scale, prior, whence)
    unit = file.metadata.get("units") or file.metadata.get("BUNIT") or ""
    notes = [
        f"{file.format} values {scale.low:g} to {scale.high:g} {unit}".rstrip()
        + f" are black to white ({whence}), a full scale of {scale.high - scale.low:g}"
    ]
    if file.values.shape[0] > 1:
        notes.append(f"a volume: its {file.values.shape[0]} slices are restored one by one")
    if file.format == "DICOM":
        notes.append("results are NIfTI: a draw of a model must not pass for an acquisition")
    info = ImageInfo(
        mode=f"{file.format} of {file.values.dtype}",
        name=result_name(image) if isinstance(image, (str, os.PathLike)) else "image",
        science=file,
        scale=scale,
    )
    return scale.x(file.values), info, notes


def _values(image: object, asked: bool, prior_knows: bool) -> ScienceFile | None:
    """The file of values that an image is, or None for a picture."""
    if isinstance(image, np.ndarray):
        return from_array(image) if asked or np.iscomplexobj(image) else None
    if not isinstance(image, (str, os.PathLike)):
        return None
    if format_of(image) is not None:
        return read(image)
    if Path(image).suffix.lower() == ".npy" and (asked or prior_knows or _is_complex(image)):
        return read(image)
    return None


def _is_complex(path: str | os.PathLike[str]) -> bool:
    try:
        return np.iscomplexobj(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception:  # what is wrong with it is said where it is read
        return False


def _range_of(prior: Prior) -> tuple[float, float] | None:
    """The values that a trained prior has for x = -1 and 1; None if it knows pictures."""
    notes = getattr(prior, "notes", None)
    if not isinstance(notes, Mapping) or "data" not in notes:
        return None
    try:
        data: Any = json.loads(notes["data"])
        low, high = float(data["low"]), float(data["high"])
    except (ValueError, KeyError, TypeError):
        return None
    return (low, high) if data.get("unit") == "value" and low < high else None


def _scale(
    file: ScienceFile,
    given: tuple[float, float] | None,
    known: tuple[float, float] | None,
) -> tuple[ValueScale, str]:
    if given is not None:
        low, high = _checked(given)
        whence = "as given"
    elif known is not None:
        (low, high), whence = known, "those of the prior's training images"
    else:
        (low, high), whence = file.extremes, "the extremes of the file; value_range sets others"
        if low == high:
            raise FileProblem(f"{file.path} is constant ({low:g}): give value_range=(low, high)")
    if np.iscomplexobj(file.values) and low != -high:
        raise InputError(
            f"complex values have no other range than (-m, m), got ({low:g}, {high:g}): another "
            "would change their phase"
        )
    return ValueScale(low, high), whence


def _checked(given: object) -> tuple[float, float]:
    try:
        low, high = map(float, given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise InputError(f"value_range is (low, high), not {given!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"value_range is (low, high) with low < high, got ({low:g}, {high:g})")
    return low, high


def _check_inside(file: ScienceFile, scale: ValueScale, prior: Prior, whence: str) -> None:
    """A prior that is bounded cannot explain values far outside: better said before the run."""
    if prior.range is None:
        return
    low, high = file.extremes
    room = _BEYOND * (scale.high - scale.low)
    if low < scale.low - room or high > scale.high + room:
        raise FileProblem(
            f"{file.path}: the values run from {low:.4g} to {high:.4g}, far outside "
            f"{scale.low:g} to {scale.high:g} ({whence}): give value_range=(low, high)"
        )


def _check_picture(
    path: str | os.PathLike[str], info: ImageInfo, known: tuple[float, float]
) -> None:
    if known not in ((0.0, 1.0), (0.0, 2.0**info.bits - 1)):
        raise InputError(
            f"{os.fspath(path)} is a picture, and the prior was trained on values from "
            f"{known[0]:g} to {known[1]:g}: save the values as .npy"
        )


def _joined(channels: Tensor) -> Array:
    array: Array = channels.detach().cpu().numpy()
    if array.shape[1] == 1:
        return array[:, 0]
    joined: Array = array[:, 0] + 1j * array[:, 1]
    return joined
