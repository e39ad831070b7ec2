"""Images to learn from: a folder read whole, checked and brought to one scale; random patches.

x is what the network sees. Images of 8 or 16 bits have x = -1 at 0 and x = 1 at full scale. Other
numbers are divided by the largest absolute value in the folder, or `low, high` is given and x = -1
at low, x = 1 at high:

    x = (2 v - low - high) / (high - low)

which covers all of it (low = -high is a plain division). A complex image is two channels, real part
first, as `operators.ComplexFromChannels` takes them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from posterior.errors import FileProblem, InputError, unknown_name
from posterior.images import SUFFIXES, read_image

Array = np.ndarray[Any, Any]
Kind = Literal["integer", "real", "complex"]

AUGMENTATIONS = ("none", "flips", "turns", "photo")
"""Each does what those before it do: nothing; left-right; quarter turns; scales and exposure."""

_EVERY = 10  # one file of so many is held out
_MOST_CHANNELS = 4  # the last axis of (H, W, C); anything longer is a width


@dataclass(frozen=True)
class TrainingImages:
    """The images of a folder.

    Attributes:
        training: (H, W, C) each, of any size: float32 x, or uint8 where x = v / 127.5 - 1.
        held_out: the same; not trained on.
        kind: what the files hold: 8 or 16-bit integers, other real numbers, complex numbers.
        low, high: the values v with x = -1 and x = 1, in the units of the files, or as parts of
            full scale where `full_scale`.
        bounded: x lies within [-1, 1], of these and of all such images.
        clipped: the part of all values that lay outside [low, high] and was moved to its ends.
    """

    training: list[Array]
    held_out: list[Array]
    kind: Kind
    low: float
    high: float
    full_scale: bool
    bounded: bool
    clipped: float

    @property
    def channels(self) -> int:
        """Channels of x."""
        return int(self.training[0].shape[2])

    @property
    def smallest(self) -> int:
        """The shortest side of all images."""
        return min(min(image.shape[:2]) for image in (*self.training, *self.held_out))

    @property
    def rms(self) -> float:
        """Root mean square of x over the training images: `sigma_data`.

        About zero, not about the mean: then the target of the raw network of EDM has mean square 1
        at every noise level, wherever the mean of the images is.
        """
        squares = sum(float(np.square(as_x(i), dtype=np.float64).sum()) for i in self.training)
        return math.sqrt(squares / sum(i.size for i in self.training))

    def describe(self) -> dict[str, Any]:
        """What a file of weights says about the data, JSON values."""
        return {
            "training_images": len(self.training),
            "held_out_images": len(self.held_out),
            "kind": self.kind,
            "low": self.low,
            "high": self.high,
            "unit": "full scale" if self.full_scale else "value",
            "clipped": self.clipped,
        }


def read_folder(
    folder: str | os.PathLike[str], value_range: tuple[float, float] | None = None
) -> TrainingImages:
    """Every image of a folder (not of folders in it), in the order of the names.

    Files are PNG, JPEG, TIFF and WebP (alpha is ignored), and `.npy`: (H, W) grey, (H, W, C) with
    C <= 4, stacks (N, H, W) and (N, H, W, C), real or complex (H, W) and (N, H, W). One file in
    ten, at least one, is held out; of a single stack the middle tenth.

    Args:
        folder: where they are.
        value_range: the values for x = -1 and x = 1; what lies outside is clipped, complex numbers
            excepted (for them low = -high).

    Raises:
        FileProblem: no such folder, a file that cannot be read.
        InputError: fewer than two images, different kinds or numbers of channels, NaN, constants.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileProblem(f"there is no folder {folder}")
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    names: list[str] = []
    images: list[Array] = []
    sources: list[int] = []
    seen: dict[tuple[Kind, int], str] = {}
    for number, path in enumerate(files):
        kind, stack = _read(path)
        seen.setdefault((kind, int(stack.shape[3])), path.name)
        if len(seen) > 1:
            raise _mixture(seen)
        names += [path.name if len(stack) == 1 else f"{path.name}[{k}]" for k in range(len(stack))]
        images += list(stack)
        sources += [number] * len(stack)
    if len(images) < 2:
        raise InputError(
            f"{folder} holds {len(images)} images ({', '.join(SUFFIXES)}), training needs at least "
            "two: one to learn from and one to be judged by"
        )
    _check_varied(names, images)
    ((kind, _),) = seen
    low, high, full_scale = _scale(kind, images, value_range)
    clip = value_range is not None and kind != "complex"
    outside = sum(int(((i < low) | (i > high)).sum()) for i in images) if clip else 0
    clipped = outside / sum(i.size for i in images)
    for k, image in enumerate(images):  # one by one, so that the originals are let go
        images[k] = _scaled(image, low, high, full_scale, clip)
    if clip:
        _check_varied(names, images, f" within [{low:g}, {high:g}]")
    away = _held_out(sources)
    return TrainingImages(
        [image for k, image in enumerate(images) if k not in away],
        [image for k, image in enumerate(images) if k in away],
        kind,
        low,
        high,
        full_scale,
        full_scale or clip,
        clipped,
    )


def as_x(image: Array) -> Array:
    """uint8 as x in [-1, 1], float32; x as it is."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return image


class Patches:
    """Random square patches, larger images more often (as the square root of their pixels).

    Args:
        images: (H, W, C), float32 x or uint8.
        augment: "none"; "flips" (left-right, half of the time); "turns" (and two times in five a
            quarter, half or three quarter turn); "photo" (and half of the time darker, by the same
            factor or slightly different ones for the channels; of images in [-1, 1] with black at
            -1. `rescaled` goes with it).
        weights: how often each image is drawn, instead.
    """

    def __init__(
        self, images: Sequence[Array], augment: str = "flips", weights: Array | None = None
    ) -> None:
        if augment not in AUGMENTATIONS:
            raise unknown_name("augmentation", augment, AUGMENTATIONS)
        self.images = images
        self.strength = AUGMENTATIONS.index(augment)
        if weights is None:
            weights = np.sqrt([image.shape[0] * image.shape[1] for image in images])
        self.chance = weights / weights.sum()

    def draw(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        """x, (count, C, size, size)."""
        out = np.empty((count, size, size, self.images[0].shape[2]), np.float32)
        for row, index in enumerate(rng.choice(len(self.images), count, p=self.chance)):
            image = self.images[index]
            top = rng.integers(image.shape[0] - size + 1)
            left = rng.integers(image.shape[1] - size + 1)
            patch = image[top : top + size, left : left + size]
            if self.strength >= 1 and rng.random() < 0.5:
                patch = patch[:, ::-1]
            if self.strength >= 2 and rng.random() < 0.4:
                patch = np.rot90(patch, int(rng.integers(1, 4)))
            out[row] = as_x(patch)
            if self.strength >= 3 and rng.random() < 0.5:  # gains <= 1 so that nothing clips
                gain = 1 - 0.3 * rng.random() - 0.1 * rng.random(patch.shape[2])
                out[row] = (out[row] + 1) * gain - 1
        return torch.from_numpy(out).permute(0, 3, 1, 2)


def rescaled(images: Sequence[Array], smallest: int, ratio: float = 0.8) -> Iterator[Array]:
    """Each image (H, W, C) at up to seven scales, each `ratio` of the one before.

    Scales whose shorter side would be below `smallest` are left out.
    """
    for image in images:
        yield image
        for k in range(1, 7):
            size = [round(side * ratio**k) for side in image.shape[:2]]
            if min(size) < smallest:
                break
            x = torch.from_numpy(as_x(image)).permute(2, 0, 1)[None]
            small = nnf.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
            out: Array = small[0].permute(1, 2, 0).numpy()
            yield np.rint((out + 1) * 127.5).astype(np.uint8) if image.dtype == np.uint8 else out


def centre(image: Array, size: int) -> Tensor:
    """The central patch of an image (H, W, C) as x, (C, size, size)."""
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    patch = as_x(image[top : top + size, left : left + size])
    return torch.from_numpy(np.ascontiguousarray(patch.transpose(2, 0, 1)))


# Reading -----------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Kind, Array]:
    """The images of one file, (N, H, W, C): uint8, uint16 or float32; and what they were."""
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    pixels, info = read_image(path)
    whole = ((pixels.double() + 1) / 2 * (2**info.bits - 1)).round().permute(1, 2, 0).numpy()
    return "integer", whole.astype(np.uint8 if info.bits == 8 else np.uint16)[None]


def _read_npy(path: Path) -> tuple[Kind, Array]:
    try:
        stored = np.load(path, allow_pickle=False)
    except Exception as problem:
        raise FileProblem(f"{path} is not a readable .npy file: {problem}") from None
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "uifc":
        what = getattr(stored, "dtype", "several arrays")
        raise FileProblem(f"{path} holds {what}: images are integers, floats or complex numbers")
    kind: Kind = "real"
    shape = stored.shape
    if stored.dtype.kind == "c":
        kind = "complex"
        if stored.ndim == 2:
            stored = stored[None]
        stored = np.stack([stored.real, stored.imag], -1)
    elif stored.dtype in (np.uint8, np.uint16):
        kind = "integer"
    if stored.ndim == 2:
        stored = stored[None]
    if stored.ndim == 3:
        is_image = kind != "complex" and stored.shape[2] <= _MOST_CHANNELS
        stored = stored[None] if is_image else stored[..., None]
    if stored.ndim != 4 or stored.shape[3] > _MOST_CHANNELS or 0 in stored.shape:
        raise FileProblem(
            f"{path} has shape {shape}: images are (H, W), (H, W, C), (N, H, W) or "
            f"(N, H, W, C) with C <= {_MOST_CHANNELS}, complex ones (H, W) or (N, H, W)"
        )
    if kind != "integer":
        with np.errstate(over="ignore"):
            stored = stored.astype(np.float32)
        if not np.isfinite(stored).all():
            raise InputError(f"{path} holds NaN or infinite values")
    return kind, stored


def _mixture(seen: dict[tuple[Kind, int], str]) -> InputError:
    (one, first), (other, second) = seen.items()
    if one[0] != other[0]:
        what = {
            "integer": "8 or 16-bit integers",
            "real": "real numbers",
            "complex": "complex ones",
        }
        text = f"{first} holds {what[one[0]]} and {second} {what[other[0]]}"
    else:
        text = f"{first} has {one[1]} channels and {second} has {other[1]}"
    return InputError(f"{text}: one prior learns one kind of image, put them in different folders")


def _check_varied(names: Sequence[str], images: Sequence[Array], where: str = "") -> None:
    constant = [n for n, i in zip(names, images, strict=True) if not np.ptp(i, axis=(0, 1)).any()]
    if constant:
        rest = f" and {len(constant) - 1} more are" if constant[1:] else " is"
        raise InputError(f"{constant[0]}{rest} constant{where}: leave such images out")


def _scale(
    kind: Kind, images: Sequence[Array], wanted: tuple[float, float] | None
) -> tuple[float, float, bool]:
    """(low, high, whether they are parts of full scale)."""
    if wanted is None:
        if kind == "integer":
            return 0.0, 1.0, True
        # of complex numbers the magnitude
        size = (np.abs(i) if kind == "real" else np.hypot(i[..., 0], i[..., 1]) for i in images)
        largest = max(float(part.max()) for part in size)
        return -largest, largest, False
    low, high = map(float, wanted)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"value_range is (low, high) with low < high, got ({low:g}, {high:g})")
    if kind == "complex" and low != -high:
        raise InputError(
            f"complex images have no other range than (-m, m), got ({low:g}, {high:g}): another "
            "would change their phase"
        )
    return low, high, False


def _scaled(image: Array, low: float, high: float, full_scale: bool, clip: bool) -> Array:
    """Values as x, float32; uint8 stay what they are where that is the same."""
    if full_scale:
        if image.dtype == np.uint8:
            return image
        high = float(np.iinfo(image.dtype).max)
    slope = 2 / (high - low)
    x = image.astype(np.float32) * np.float32(slope) - np.float32((low + high) / (high - low))
    return np.clip(x, -1, 1) if clip else x


def _held_out(sources: Sequence[int]) -> frozenset[int]:
    """Which images (the file of each is given) are kept for the score."""
    files = sources[-1] + 1
    if files == 1:
        tenth = max(1, len(sources) // _EVERY)
        first = (len(sources) - tenth) // 2
        return frozenset(range(first, first + tenth))
    chosen = range(min(files, _EVERY) // 2, files, _EVERY)
    return frozenset(k for k, source in enumerate(sources) if source in chosen)
