"""Blurs: y = kernel * x per channel, a true convolution.

>>> GaussianBlur(sigma=2.0)
>>> MotionBlur(length=15, angle=30)
>>> Blur(kernel=my_kernel, boundary="circular")

Boundaries: "circular"; "reflect", the mirror at the centre of the border pixel (torch's and numpy's
"reflect", scipy's "mirror"); "valid", the outputs that need no pixel beyond the border.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.notices import warn
from posterior.operators._boundary import BOUNDARIES, convolution_matrix
from posterior.operators._convolution import Filter
from posterior.operators._rowwise import check_rows, take_rows
from posterior.operators._separable import Separable
from posterior.operators.base import (
    Operator,
    Shape,
    check_choice,
    check_image,
    check_number,
)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianBlur(Separable):
    """Blur by a sampled Gaussian, normalised, cut at 4 sigma (as scipy's `gaussian_filter`).

    Its pseudo-inverse is exact up to the numerical rank, and amplifies noise enormously.

    Args:
        sigma: standard deviation in pixels, > 0.
        boundary: "reflect", "circular" or "valid".
    """

    sigma: float
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        sigma = check_number("sigma", self.sigma, 0)
        if sigma == 0:
            raise InputError("sigma must be > 0, not 0")
        object.__setattr__(self, "sigma", sigma)
        check_choice("boundary", self.boundary, BOUNDARIES)

    @property
    def taps(self) -> Tensor:
        """The one-dimensional kernel, float64."""
        radius = int(4 * self.sigma + 0.5)
        t = torch.arange(-radius, radius + 1, dtype=torch.float64)
        taps = torch.exp(-0.5 * (t / self.sigma) ** 2)
        return taps / taps.sum()

    @property
    def kernel(self) -> Tensor:
        """The kernel (kh, kw), float64."""
        return torch.outer(self.taps, self.taps)

    def forward(self, x: Tensor) -> Tensor:
        if self.boundary != "circular":
            return super().forward(x)
        check_image(self, x)
        return self._circular.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y) if self.boundary == "circular" else super().adjoint(y)  # it is symmetric

    def axis_matrix(self, n: int) -> Tensor:
        return convolution_matrix(self.taps, n, self.boundary)

    def axis_domain(self, m: int) -> int:
        return m + self._lost

    def axis_range(self, n: int) -> int:
        if n <= self._lost:
            raise InputError(
                f"{self!r}: the kernel has {self._lost + 1} taps, the image only {n} pixels: "
                'take boundary="reflect"'
            )
        return n - self._lost

    @property
    def _circular(self) -> Filter:
        """The same along the axes, or by FFT where that costs less."""

        def build() -> Filter:
            radius = len(self.taps) // 2
            return Filter(self.kernel[None], ((radius, radius), (radius, radius)), "circular")

        return self._memo("circular", build)

    @property
    def _lost(self) -> int:
        return 2 * int(4 * self.sigma + 0.5) if self.boundary == "valid" else 0


class Convolution(Operator):
    """Base class of the blurs with a two-dimensional kernel; a subclass sets `_filter`."""

    linear = True
    units = "kept"
    adjoint_gradient = True

    _filter: Filter
    boundary: str

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        check_rows(self, "kernels", len(self._filter.kernel), x)
        self.range_shape(tuple(x.shape))
        return self._filter.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        check_image(self, y)
        check_rows(self, "kernels", len(self._filter.kernel), y)
        h, w = self.domain_shape(tuple(y.shape))[2:]
        return self._filter.adjoint(y, (h, w))

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y for circular boundaries; |transfer| below sqrt(eps) of its largest counts as 0."""
        if not self.has_pinv:
            raise CapabilityError(f"{self!r} has a pseudo-inverse for circular boundaries only")
        check_image(self, y)
        check_rows(self, "kernels", len(self._filter.kernel), y)
        return self._filter.circular(y, "pinv")

    def normal(self, x: Tensor) -> Tensor:
        if self.boundary != "circular":
            return self.adjoint(self(x))
        check_image(self, x)
        check_rows(self, "kernels", len(self._filter.kernel), x)
        return self._filter.circular(x, "normal")

    def domain_shape(self, y_shape: Shape) -> Shape:
        kh, kw = self._lost
        return (*y_shape[:2], y_shape[2] + kh, y_shape[3] + kw)

    def range_shape(self, x_shape: Shape) -> Shape:
        kh, kw = self._filter.kernel.shape[1:]
        if self.boundary != "circular" and (kh > x_shape[2] or kw > x_shape[3]):
            raise InputError(
                f"{self!r}: the kernel ({kh} x {kw}) is larger than the image "
                f"({x_shape[2]} x {x_shape[3]})"
            )
        lost_h, lost_w = self._lost
        return (*x_shape[:2], x_shape[2] - lost_h, x_shape[3] - lost_w)

    @property
    def _lost(self) -> tuple[int, int]:
        if self.boundary != "valid":
            return 0, 0
        kh, kw = self._filter.kernel.shape[1:]
        return kh - 1, kw - 1

    def _set(self, kernel: Tensor, center: tuple[int, int]) -> None:
        """The filter of kernels (K, kh, kw) with this centre, and what follows from it."""
        pads = [
            (size - 1 - c, c) for size, c in zip(kernel.shape[1:], center, strict=True)
        ]  # out[i] = sum_a k[a] x[i + c - a]
        if self.boundary == "valid":
            pads = [(0, 0), (0, 0)]
        object.__setattr__(self, "_filter", Filter(kernel, (pads[0], pads[1]), self.boundary))
        object.__setattr__(self, "has_pinv", self.boundary == "circular")


@dataclass(frozen=True, eq=False, repr=False)
class Blur(Convolution):
    """y[i] = sum_a kernel[a] x[i + centre - a]: convolution with any kernel, taken as it is.

    Args:
        kernel: (kh, kw); or one for each measurement, (B, kh, kw) or (B, 1, kh, kw). Not
            normalised: a sum other than 1 is warned of.
        boundary: "reflect", "circular" or "valid". A kernel larger than the image is an error
            except for "circular", where it wraps around.
        center: (row, column) of the kernel's origin; needed for even sizes, else the middle.
        correlation: y[i] = sum_a kernel[a] x[i - centre + a] instead, the kernel turned by half a
            turn, as some papers have it.
    """

    kernel: Tensor
    boundary: str = "reflect"
    center: tuple[int, int] | None = None
    correlation: bool = False

    def __post_init__(self) -> None:
        check_choice("boundary", self.boundary, BOUNDARIES)
        kernel = as_kernel(self.kernel)
        if kernel.ndim == 4:
            if kernel.shape[1] != 1:
                raise InputError(
                    f"kernel must be (kh, kw), (B, kh, kw) or (B, 1, kh, kw), not"
                    f" {tuple(kernel.shape)}: all channels share one kernel"
                )
            kernel = kernel[:, 0]
        object.__setattr__(self, "kernel", kernel)
        self._build()
        warn_of_sums(kernel)

    @staticmethod
    def part(kernel: Tensor, boundary: str) -> Blur:
        """With one of several kernels, whose sums are looked at together; odd sizes."""
        out = object.__new__(Blur)
        values = {"kernel": kernel, "boundary": boundary, "center": None, "correlation": False}
        for name, value in values.items():
            object.__setattr__(out, name, value)
        out._build()
        return out

    def _build(self) -> None:
        """The filter of the kernel."""
        stack = self.kernel if self.kernel.ndim == 3 else self.kernel[None]
        center = self._center(stack.shape[1:])
        if self.correlation:
            stack = stack.flip(-2, -1)
            center = (stack.shape[1] - 1 - center[0], stack.shape[2] - 1 - center[1])
        self._set(stack.contiguous(), center)

    def _center(self, size: Sequence[int]) -> tuple[int, int]:
        if self.center is None:
            if any(n % 2 == 0 for n in size) and self.boundary != "valid":
                raise InputError(
                    f"a kernel of even size ({size[0]} x {size[1]}) has no middle: give"
                    " center=(row, column)"
                )
            return size[0] // 2, size[1] // 2
        try:
            row, column = self.center
        except (TypeError, ValueError):
            raise InputTypeError(f"center must be (row, column), not {self.center!r}") from None
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            raise InputError(f"center {self.center} lies outside the kernel {tuple(size)}")
        return int(row), int(column)

    def take(self, index: Sequence[int]) -> Blur:
        if self.kernel.ndim == 2 or len(self.kernel) == 1:
            return self
        out = copy.copy(self)
        object.__setattr__(out, "kernel", take_rows(self.kernel, index))
        out._build()
        return out


@dataclass(frozen=True, eq=False, repr=False)
class MotionBlur(Convolution):
    """Blur along a line segment.

    `length` points at distance 1 along the segment, each spread over its four nearest pixels
    (bilinearly), with weights that sum to 1. At angle 0 and an odd length that is the mean of
    `length` pixels of a row.

    Args:
        length: of the segment in pixels, >= 1 (not necessarily whole).
        angle: in degrees, counter-clockwise from the horizontal, as seen on the screen.
        boundary: "reflect", "circular" or "valid".
    """

    length: float
    angle: float = 0.0
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", check_number("length", self.length, 1, 10_000))
        object.__setattr__(self, "angle", check_number("angle", self.angle, -math.inf))
        check_choice("boundary", self.boundary, BOUNDARIES)
        kernel = self.kernel
        self._set(kernel[None], (kernel.shape[0] // 2, kernel.shape[1] // 2))

    @property
    def kernel(self) -> Tensor:
        """The kernel (kh, kw), odd sizes, float64."""
        half = (self.length - 1) / 2
        t = torch.linspace(-half, half, math.ceil(self.length), dtype=torch.float64)
        if len(t) == 1:
            t = t * 0
        direction = math.radians(self.angle)
        # round: cos(90 degrees) is 6e-17, which would make the kernel wider by two empty columns
        right = torch.round(t * math.cos(direction), decimals=9)
        down = torch.round(-t * math.sin(direction), decimals=9)
        rh, rw = (math.ceil(float(v.abs().max())) for v in (down, right))
        kernel = torch.zeros(2 * rh + 1, 2 * rw + 1, dtype=torch.float64)
        for y, x in zip(down.tolist(), right.tolist(), strict=True):
            i, j = math.floor(y), math.floor(x)
            for di, wi in ((0, 1 - (y - i)), (1, y - i)):
                for dj, wj in ((0, 1 - (x - j)), (1, x - j)):
                    if wi * wj:
                        kernel[rh + i + di, rw + j + dj] += wi * wj
        return kernel / kernel.sum()


def as_kernel(kernel: object) -> Tensor:
    """A finite real kernel in float64: a tensor, array or nested list."""
    if isinstance(kernel, str) or kernel is None:
        raise InputTypeError(f"kernel must be a tensor, not {kernel!r}")
    try:
        tensor = torch.as_tensor(kernel).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"kernel must be a tensor: {error}") from None
    if tensor.is_complex():
        raise InputTypeError("kernel must be real")
    if not 2 <= tensor.ndim <= 4 or tensor.numel() == 0:
        raise InputError(f"kernel must be (kh, kw), or one for each row: not {tuple(tensor.shape)}")
    tensor = tensor.to("cpu", torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("kernel has NaN or infinite values")
    return tensor


_SUM = 1e-3
"""How far the sum of a kernel may be from 1: full scale is then off by a quarter of 1 / 255."""


def warn_of_sums(kernels: Tensor) -> None:
    """Warn where a kernel (..., kh, kw) does not sum to 1."""
    sums = kernels.sum((-2, -1)).flatten()
    off = sums[(sums - 1).abs() > _SUM]
    if len(off):
        warn(
            f"the kernel sums to {float(off[0]):.4g}, not to 1, so y is brighter or darker than x:"
            " divide it by its sum unless that is meant"
        )


__all__ = ["Blur", "Convolution", "GaussianBlur", "MotionBlur", "as_kernel", "warn_of_sums"]
