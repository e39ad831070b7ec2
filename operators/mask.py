"""Inpainting: y shows the kept pixels of x; hidden pixels are 0.

>>> Mask(keep=tensor)                      # 1 = observed
>>> Mask(edit="strokes.png")               # white = to repaint
>>> Mask.random(keep_fraction=0.3, seed=0)
>>> Mask.box(size=32)                      # a hole in the middle
>>> Mask.outpaint(margin=16)               # an unknown frame around a known middle
"""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posterior.errors import FileProblem, InputError, InputTypeError
from posterior.notices import warn
from posterior.operators._files import is_array_file, read_array
from posterior.operators._rowwise import Memo, check_rows, take_rows
from posterior.operators.base import (
    Operator,
    Shape,
    check_count,
    check_image,
    check_number,
    check_tensor,
)
from posterior.streams import Noise, check_seed

_forms = Memo(8)
_latest: tuple[object, torch.Size, torch.dtype, torch.device, Tensor, Tensor] | None = None


class Masking(Operator):
    """Base class: a subclass says which pixels are observed.

    NaN in hidden pixels do not matter to any of its methods. Only where autograd records the call
    itself, A(x) of an x that requires a gradient, they stay in y: `torch.where` would take 3 to 20
    times as long as the product there. The gradient is that of kept pixels in either case.
    """

    linear = True
    units = "kept"
    has_pinv = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Whoever writes another `forward` is called as any operator."""
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.__call__ = Operator.__call__  # type: ignore[method-assign]

    @abstractmethod
    def pattern(self, height: int, width: int) -> Tensor:
        """The observed pixels, bool (1 or B, 1, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        global _latest  # the last forms by hand: the look-up is a tenth of a small image's time
        last = _latest
        if last is None or not (
            last[0] is self
            and isinstance(x, Tensor)
            and last[1] == x.shape
            and last[2] is x.dtype
            and last[3] == x.device
        ):
            check_tensor("x", x)
            # the operator is kept with its forms, so that no other can have its id
            key = (id(self), x.shape, x.dtype, x.device)
            _, ones, bits = _forms(key, lambda: (self, *self._forms_for(x)))
            last = _latest = (self, *key[1:], ones, bits)
        return _kept(x, last[4], last[5])

    __call__ = forward  # which has the checks, and whose gradient is torch's own

    def _forms_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mask as numbers for x, and as bits for x or for its real and imaginary parts."""
        check_image(self, x)
        keep = self.pattern(x.shape[2], x.shape[3])
        check_rows(self, "masks", len(keep), x)
        keep, dtype = keep.to(x.device), x.real.dtype
        bits = -keep.to(torch.int64 if dtype == torch.float64 else torch.int32)
        return keep.to(dtype), bits[..., None] if x.is_complex() else bits

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def restrict(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        self.pattern(x_shape[2], x_shape[3])
        return x_shape


def _kept(x: Tensor, ones: Tensor, bits: Tensor) -> Tensor:
    """x where the mask is 1, otherwise 0, whatever x is there (a product would keep NaN).

    Bit by bit, x & 11...1 or x & 00...0, in a quarter of the time of `torch.where`. Where a
    gradient is recorded it is the product, whose autograd is torch's own and the quickest.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return x * ones
    dtype = x.dtype
    if dtype.is_complex:
        parts = torch.view_as_real(x.resolve_conj())
        return torch.view_as_complex((parts.view(bits.dtype) & bits).view(parts.dtype))
    return (x.view(bits.dtype) & bits).view(dtype)


class Mask(Masking):
    """y = keep * x with a given mask, the same for all channels.

    Args:
        keep: 1 = observed, 0 = hidden; (H, W), (1, H, W), or one for each measurement
            (B, 1, H, W); or a Pillow image, white = 1 (threshold at one half); or the path of a
            file: an image, or an array of zeros and ones, .npy, or .npz and .mat with one array.
        edit: the opposite, 1 = to repaint. Exactly one of the two is given.
    """

    def __init__(
        self,
        *,
        keep: object = None,
        edit: object = None,
    ) -> None:
        if (keep is None) == (edit is None):
            raise InputError(
                "Mask needs exactly one of keep= (1 = observed) and edit= (1 = repaint)"
            )
        name, given = ("keep", keep) if edit is None else ("edit", edit)
        pattern = _as_pattern(name, given)
        if name == "edit":
            pattern = ~pattern
        if not bool(pattern.flatten(1).any(1).all()):
            raise InputError(f"Mask({name}=): nothing is observed; is white the other way round?")
        if name == "edit" and bool(pattern.all()):
            warn("Mask(edit=) marks nothing to repaint; is white the other way round?")
        self.keep = pattern  # (1 or B, 1, H, W), bool
        warn_of_few(self, float(pattern.double().mean((1, 2, 3)).min()))

    @staticmethod
    def random(*, keep_fraction: float, seed: int | Sequence[int] = 0) -> RandomMask:
        """Random pixels are observed, whatever the size of x; see `RandomMask`."""
        return RandomMask(keep_fraction, tuple(seed) if isinstance(seed, Sequence) else seed)

    @staticmethod
    def box(*, size: int | tuple[int, int], at: tuple[int, int] | None = None) -> BoxMask:
        """A rectangular hole; see `BoxMask`."""
        return BoxMask(size, at)

    @staticmethod
    def outpaint(*, margin: int | tuple[int, ...]) -> OutpaintMask:
        """An unknown frame around a known middle; see `OutpaintMask`."""
        return OutpaintMask(margin)

    def pattern(self, height: int, width: int) -> Tensor:
        if self.keep.shape[2:] != (height, width):
            have = " x ".join(map(str, self.keep.shape[2:]))
            raise InputError(f"the mask is {have}, the image {height} x {width}")
        return self.keep

    def take(self, index: Sequence[int]) -> Mask:
        if len(self.keep) == 1:
            return self
        out = copy.copy(self)
        out.keep = take_rows(self.keep, index)
        return out

    def __repr__(self) -> str:
        kept = self.keep.double().mean().item()
        return f"Mask({' x '.join(map(str, self.keep.shape[2:]))}, {100 * kept:.1f} % observed)"


class LatentMask(Mask):
    """A mask of latents, for the prior of a latent model; see `Mask`."""

    space = "latent"

    @staticmethod
    def of_pixels(keep: Tensor, factor: tuple[int, int]) -> LatentMask:
        """Latents are kept where all the pixels that they stand for are.

        Args:
            keep: bool (1 or B, 1, H, W).
            factor: pixels of a latent, vertically and horizontally.

        Raises:
            InputError: not a single latent is kept.
        """
        count, _, height, width = keep.shape
        tall, wide = factor
        blocks = keep.reshape(count, 1, height // tall, tall, width // wide, wide)
        whole = blocks.all(5).all(3)
        if not bool(whole.flatten(1).any(1).all()):
            raise InputError(
                f"no latent is kept whole: keep regions of at least {tall}x{wide} pixels"
            )
        return LatentMask(keep=whole)


@dataclass(frozen=True, eq=False, repr=False)
class RandomMask(Masking):
    """round(keep_fraction H W) pixels, at least one, are observed, chosen by the seed.

    A pure function of (seed, size).

    Args:
        keep_fraction: in (0, 1].
        seed: any integer; or one for each measurement.
    """

    keep_fraction: float
    seed: int | tuple[int, ...] = 0
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        fraction = check_number("keep_fraction", self.keep_fraction, 0, 1)
        if fraction == 0:
            raise InputError("keep_fraction must be > 0: nothing would be observed")
        object.__setattr__(self, "keep_fraction", fraction)
        if isinstance(self.seed, tuple):
            if not self.seed:
                raise InputError("seed: give at least one")
            object.__setattr__(self, "seed", tuple(check_seed(s) for s in self.seed))
        else:
            object.__setattr__(self, "seed", check_seed(self.seed))
        warn_of_few(self, fraction)

    def pattern(self, height: int, width: int) -> Tensor:
        return self._memo((height, width), lambda: self._make(height, width))

    def _make(self, height: int, width: int) -> Tensor:
        seeds = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        size = height * width
        zeros = (0,) * len(seeds)
        count = max(1, round(self.keep_fraction * size))
        keep = random_positions(Noise(seeds, zeros, zeros, (size,)), count, size)
        return keep.reshape(-1, 1, height, width)

    def take(self, index: Sequence[int]) -> RandomMask:
        if not isinstance(self.seed, tuple) or len(self.seed) == 1:
            return self
        which = take_rows(torch.arange(len(self.seed)), index).tolist()
        out = copy.copy(self)
        object.__setattr__(out, "seed", tuple(self.seed[i] for i in which))
        object.__setattr__(out, "_memo", Memo())
        return out


def random_positions(noise: Noise, count: int, size: int) -> Tensor:
    """`count` of `size` positions for each row, without replacement: bool (rows, size)."""
    u = noise.uniform("mask", shape=(size,))
    first = u.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(u, dtype=torch.bool).scatter_(1, first, True)


@dataclass(frozen=True, eq=False, repr=False)
class BoxMask(Masking):
    """Everything but a rectangle is observed.

    Args:
        size: of the hole in pixels, one side or (height, width).
        at: (row, column) of its upper left pixel; None centres it.
    """

    size: int | tuple[int, int]
    at: tuple[int, int] | None = None
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        h, w = _pair("size", self.size, 1)
        object.__setattr__(self, "size", (h, w))
        if self.at is not None:
            object.__setattr__(self, "at", _pair("at", self.at, 0))

    def pattern(self, height: int, width: int) -> Tensor:
        return self._memo((height, width), lambda: self._make(height, width))

    def _make(self, height: int, width: int) -> Tensor:
        h, w = _pair("size", self.size, 1)
        top, left = self.at or ((height - h) // 2, (width - w) // 2)
        if top < 0 or left < 0 or top + h > height or left + w > width:
            raise InputError(f"{self!r}: the hole leaves the image of {height} x {width}")
        if (h, w) == (height, width):
            raise InputError(f"{self!r}: the hole is the whole image, nothing is observed")
        keep = torch.ones(1, 1, height, width, dtype=torch.bool)
        keep[:, :, top : top + h, left : left + w] = False
        warn_of_few(self, 1 - h * w / (height * width))
        return keep


@dataclass(frozen=True, eq=False, repr=False)
class OutpaintMask(Masking):
    """The middle is observed, a frame around it is to be invented.

    Args:
        margin: width of the frame in pixels: one, (vertical, horizontal) or
            (top, bottom, left, right).
    """

    margin: int | tuple[int, ...]
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        margin = self.margin if isinstance(self.margin, (tuple, list)) else (self.margin,)
        if len(margin) not in (1, 2, 4):
            raise InputError(f"margin takes 1, 2 or 4 numbers, not {len(margin)}")
        m = tuple(check_count("margin", v, 0) for v in margin)
        full = m if len(m) == 4 else (m[0], m[0], m[-1], m[-1])
        object.__setattr__(self, "margin", full)

    def pattern(self, height: int, width: int) -> Tensor:
        return self._memo((height, width), lambda: self._make(height, width))

    def _make(self, height: int, width: int) -> Tensor:
        assert isinstance(self.margin, tuple)
        top, bottom, left, right = self.margin
        if top + bottom >= height or left + right >= width:
            raise InputError(f"{self!r}: nothing of {height} x {width} pixels is observed")
        keep = torch.zeros(1, 1, height, width, dtype=torch.bool)
        keep[:, :, top : height - bottom, left : width - right] = True
        warn_of_few(self, float(keep.double().mean()))
        return keep


_FEW = 0.01


def warn_of_few(who: object, fraction: float) -> None:
    """Warn where less than 1 % is observed."""
    if fraction < _FEW:
        warn(
            f"{who!r} observes {100 * fraction:.2g} % only: the draws are then nearly those of the"
            " prior"
        )


def _pair(what: str, value: object, low: int) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise InputError(f"{what} takes one or two numbers, not {len(value)}")
        return check_count(what, value[0], low), check_count(what, value[1], low)
    count = check_count(what, value, low)
    return count, count


def _as_pattern(name: str, given: object) -> Tensor:
    """A mask of zeros and ones as bool (1 or B, 1, H, W)."""
    if isinstance(given, (str, os.PathLike)):
        path = os.fspath(given)
        if not is_array_file(path):
            return _read(path)[None, None]
        given = read_array("mask", path)
    if hasattr(given, "getbands"):
        return _lighter(given)[None, None]
    if not isinstance(given, Tensor):
        try:
            given = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise InputTypeError(
                f"Mask({name}=) must be a tensor or the path of an image, not"
                f" {type(given).__name__}"
            ) from None
    mask = given.detach().cpu()
    shape = tuple(mask.shape)
    if mask.ndim == 2:
        mask = mask[None, None]
    elif mask.ndim == 3 and shape[0] == 1:
        mask = mask[None]
    elif mask.ndim != 4 or shape[1] != 1:
        raise InputError(f"Mask({name}=) must be (H, W), (1, H, W) or (B, 1, H, W), not {shape}")
    if mask.numel() == 0:
        raise InputError(f"Mask({name}=) is empty: {shape}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"Mask({name}=) must be zeros and ones: threshold it first")
    return mask.bool().clone()


def _lighter(image: Any) -> Tensor:
    """A Pillow image as bool (H, W): lighter than half; transparent pixels are black."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        return torch.from_numpy(np.array(image.convert("I")) >= 2**15)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return torch.from_numpy(np.array(image.convert("L")) >= 128)


def _read(path: str) -> Tensor:
    """An image file as bool (H, W)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return _lighter(file)
    except FileNotFoundError:
        raise FileProblem(f"mask file {path} does not exist") from None
    except UnidentifiedImageError:
        raise FileProblem(f"mask file {path} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise FileProblem(f"mask file {path} cannot be read: {error}") from None
