"""Blurs of a lens, each one kernel for the whole image: out of focus, and Gaussian along two axes.

>>> Defocus(radius=4.5)
>>> AnisotropicGaussianBlur(sigma_along=5, sigma_across=1, angle=30)

Both are true convolutions with the boundaries of `blur`; the pseudo-inverse exists for "circular".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators._boundary import BOUNDARIES
from posterior.operators.base import check_choice, check_number
from posterior.operators.blur import Convolution


@dataclass(frozen=True, eq=False, repr=False)
class Defocus(Convolution):
    """Out of focus: the mean over a disc, the geometric image of a point through a round aperture.

    A pixel of the kernel weighs as the part of its area that lies inside the disc, so the kernel
    changes smoothly with the radius; up to half a pixel it is a single 1.

    Args:
        radius: of the disc in pixels, > 0.
        boundary: "reflect", "circular" or "valid".
    """

    radius: float
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", _positive("radius", self.radius))
        check_choice("boundary", self.boundary, BOUNDARIES)
        kernel = self.kernel
        self._set(kernel[None], (kernel.shape[0] // 2, kernel.shape[1] // 2))

    @property
    def kernel(self) -> Tensor:
        """The kernel (k, k), odd, float64."""
        half = max(math.ceil(self.radius - 0.5), 0)
        edges = torch.arange(-half, half + 2, dtype=torch.float64) - 0.5  # of the pixels
        corner = _disc_up_to(edges[:, None], edges[None], self.radius)
        area = corner[1:, 1:] - corner[1:, :-1] - corner[:-1, 1:] + corner[:-1, :-1]
        area = area.clamp(min=0)  # a corner outside the disc is a difference of equal numbers
        return area / area.sum()


@dataclass(frozen=True, eq=False, repr=False)
class AnisotropicGaussianBlur(Convolution):
    """Blur by a sampled Gaussian with two widths, normalised, cut at 4 standard deviations.

    Args:
        sigma_along: standard deviation in pixels along `angle`, > 0.
        sigma_across: at right angles to it, > 0.
        angle: in degrees, counter-clockwise from the horizontal, as seen on the screen.
        boundary: "reflect", "circular" or "valid".
    """

    sigma_along: float
    sigma_across: float
    angle: float = 0.0
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        for name in ("sigma_along", "sigma_across"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        object.__setattr__(self, "angle", check_number("angle", self.angle, -math.inf))
        check_choice("boundary", self.boundary, BOUNDARIES)
        kernel = self.kernel
        self._set(kernel[None], (kernel.shape[0] // 2, kernel.shape[1] // 2))

    @property
    def kernel(self) -> Tensor:
        """The kernel (kh, kw), odd sizes, float64."""
        c, s = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        down = math.hypot(self.sigma_along * s, self.sigma_across * c)
        right = math.hypot(self.sigma_along * c, self.sigma_across * s)
        rows, columns = (
            torch.arange(-n, n + 1, dtype=torch.float64)
            for n in (int(4 * down + 0.5), int(4 * right + 0.5))
        )
        along = columns[None] * c - rows[:, None] * s  # rows count downwards
        across = columns[None] * s + rows[:, None] * c
        square = (along / self.sigma_along).square() + (across / self.sigma_across).square()
        kernel = torch.exp(-0.5 * square)
        return kernel / kernel.sum()


def _disc_up_to(x: Tensor, y: Tensor, r: float) -> Tensor:
    """The area of a disc round 0 inside the rectangle from 0 to (x, y), with the sign of x y.

    The integral over t from 0 to |x| of min(|y|, sqrt(r^2 - t^2)).
    """
    sign = x.sign() * y.sign()
    x, y = x.abs().clamp(max=r), y.abs().clamp(max=r)

    def below_arc(t: Tensor) -> Tensor:
        return 0.5 * (t * (r * r - t * t).clamp(min=0).sqrt() + r * r * (t / r).asin())

    flat = torch.minimum(x, (r * r - y * y).clamp(min=0).sqrt())  # up to here y is the smaller
    return sign * (y * flat + below_arc(x) - below_arc(flat))


def _positive(what: str, value: object) -> float:
    number = check_number(what, value, 0, 1000)
    if number == 0:
        raise InputError(f"{what} must be > 0, not 0")
    return number


__all__ = ["AnisotropicGaussianBlur", "Defocus"]
