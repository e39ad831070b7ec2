"""Operators on the values of single pixels: grey, clipping, quantisation, and a camera's exposure.

    Luma           y = sum_c w_c x_c                        (B, 3, H, W) -> (B, 1, H, W)
    HDRClipping    y = clip(factor x, -1, 1)
    Quantisation   y = the nearest of `levels` values, evenly spaced on [-1, 1]
    LinearLight    y = decode((x + 1) / 2)                  display values to light in [0, 1]
    Camera         y = 2 encode(clip(exposure x, 0, 1)) - 1    light to display values

A blur happens in the light that reaches the sensor, before saturation and the response curve:

>>> Camera(exposure=2) @ MotionBlur(length=15) @ LinearLight()
>>> nonlinear_blur(MotionBlur(length=15), exposure=2)                      # the same

(The "non-linear blur" of the DPS and DAPS benchmarks is another one, a trained network.)

Where a clip saturates the gradient is 0: a method learns nothing from a saturated pixel that A also
saturates, and nothing pulls one back that A saturates wrongly.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators._rowwise import by_row
from posterior.operators.base import (
    Operator,
    Pull,
    Shape,
    check_choice,
    check_count,
    check_image,
    check_number,
)

WEIGHTS = {"rec601": (0.299, 0.587, 0.114), "rec709": (0.2126, 0.7152, 0.0722)}
"""Luma weights of red, green and blue, ITU-R BT.601 and BT.709."""


@dataclass(frozen=True, eq=False, repr=False)
class Luma(Operator):
    """Colour to grey: the weighted sum of red, green and blue.

    Linear in the values as they are, gamma-encoded, as in television and in every image library.

    Args:
        standard: "rec601" (Pillow, JPEG, OpenCV) or "rec709" (scikit-image, HDTV).
    """

    standard: str = "rec601"

    linear = True
    units = "kept"
    has_pinv = True
    orthonormal_rows = True  # A A^T = |w|^2

    def __post_init__(self) -> None:
        check_choice("standard", self.standard, list(WEIGHTS))

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        if x.shape[1] != 3:
            raise InputError(f"{self!r} needs 3 channels, not {x.shape[1]}")
        red, green, blue = WEIGHTS[self.standard]
        return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]

    def adjoint(self, y: Tensor) -> Tensor:
        if y.ndim != 4 or y.shape[1] != 1:
            raise InputError(f"{self!r} gives one channel, not {tuple(y.shape)}")
        return torch.cat([w * y for w in WEIGHTS[self.standard]], dim=1)

    def pinv(self, y: Tensor) -> Tensor:
        """w y / |w|^2: of the colours with this luma, the one nearest to mid-grey."""
        return self.adjoint(y / sum(w * w for w in WEIGHTS[self.standard]))

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], 3, *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], 1, *x_shape[2:])


class Pointwise(Operator):
    """Base class of y = f(x), value by value; a subclass writes f and its derivative."""

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """f(x), elementwise."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """f'(x), or what stands for it, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        if x.is_complex():
            raise InputError(f"{self!r} needs real images, not {x.dtype}")
        return by_row(lambda row, _: self.value(row), x)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        y = self(x.detach())
        slope = by_row(lambda row, _: self.slope(row), x.detach())
        return y, lambda u: slope * u

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        return x_shape


@dataclass(frozen=True, eq=False, repr=False)
class HDRClipping(Pointwise):
    """y = clip(factor x, -1, 1): an exposure with too little range, in display values.

    The "high dynamic range" task of RED-diff and DAPS is factor = 2.

    Args:
        factor: > 0; above 1 the values with |x| > 1 / factor are lost.
    """

    factor: float = 2.0

    units = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _positive("factor", self.factor))

    def value(self, x: Tensor) -> Tensor:
        return (self.factor * x).clamp(-1, 1)

    def slope(self, x: Tensor) -> Tensor:
        return self.factor * ((self.factor * x).abs() <= 1).to(x.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Quantisation(Pointwise):
    """y = the nearest of `levels` values -1, -1 + 2 / (levels - 1), ..., 1; halves go to even ones.

    The derivative of rounding is 0. `vjp` takes 1 in its place within [-1, 1] and 0 outside, the
    straight-through surrogate (Bengio, Leonard, Courville, arXiv 1308.3432): what guidance follows
    is A^T r of the identity. `forward` rounds exactly. The error of rounding is at most half a
    step; sqrt(1/12) of a step, 0.58 / (levels - 1), is a fair `noise`.

    Args:
        levels: >= 2; 256 is 8 bits.
    """

    levels: int

    surrogate_gradient = True
    units = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_count("levels", self.levels, 2))

    def value(self, x: Tensor) -> Tensor:
        half = (self.levels - 1) / 2
        return ((x.clamp(-1, 1) + 1) * half).round() / half - 1

    def slope(self, x: Tensor) -> Tensor:
        return (x.abs() <= 1).to(x.dtype)


@dataclass(frozen=True)
class Curve:
    """A transfer function of light s: slope s up to the toe, a s^p - (a - 1) above."""

    slope: float
    toe: float
    a: float
    p: float

    def encode(self, s: Tensor) -> Tensor:
        return torch.where(s <= self.toe, self.slope * s, self.a * self._power(s) - (self.a - 1))

    def encode_slope(self, s: Tensor) -> Tensor:
        rate = self.a * self.p * self._power(s) / s.clamp(min=self.toe)
        return torch.where(s <= self.toe, self.slope, rate)

    def decode(self, v: Tensor) -> Tensor:
        return torch.where(v <= self.slope * self.toe, v / self.slope, self._root(v))

    def decode_slope(self, v: Tensor) -> Tensor:
        base = (v.clamp(min=self.slope * self.toe) + (self.a - 1)) / self.a
        rate = self._root(v) / (self.p * self.a * base)
        return torch.where(v <= self.slope * self.toe, 1 / self.slope, rate)

    def _power(self, s: Tensor) -> Tensor:
        # by exp and log, which do not depend on an element's place in the tensor, as pow does
        return torch.exp(self.p * s.clamp(min=self.toe).log())

    def _root(self, v: Tensor) -> Tensor:
        base = (v.clamp(min=self.slope * self.toe) + (self.a - 1)) / self.a
        return torch.exp(base.log() / self.p)


CURVES = {
    "srgb": Curve(12.92, 0.0031308, 1.055, 1 / 2.4),  # IEC 61966-2-1
    "rec709": Curve(4.5, 0.018, 1.099, 0.45),  # ITU-R BT.709
    "linear": Curve(1.0, 1.0, 1.0, 1.0),
}
"""No pure power among them: its slope is infinite at black."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearLight(Pointwise):
    """Display values in [-1, 1] to light, black 0 and white 1.

    Beyond the range the straight toe and the power law go on, so nothing saturates here.

    Args:
        curve: "srgb", "rec709" or "linear": how x was encoded.
    """

    curve: str = "srgb"

    def __post_init__(self) -> None:
        check_choice("curve", self.curve, list(CURVES))

    def value(self, x: Tensor) -> Tensor:
        return CURVES[self.curve].decode((x + 1) / 2)

    def slope(self, x: Tensor) -> Tensor:
        return CURVES[self.curve].decode_slope((x + 1) / 2) / 2


@dataclass(frozen=True, eq=False, repr=False)
class Camera(Pointwise):
    """Light on a sensor to display values in [-1, 1]: exposure, saturation, response curve.

    Args:
        exposure: the factor of the light, > 0; 2 is one stop more, and light above 1/2 saturates.
        response: "srgb", "rec709" or "linear".
    """

    exposure: float = 1.0
    response: str = "srgb"

    units = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "exposure", _positive("exposure", self.exposure))
        check_choice("response", self.response, list(CURVES))

    def value(self, x: Tensor) -> Tensor:
        return 2 * CURVES[self.response].encode((self.exposure * x).clamp(0, 1)) - 1

    def slope(self, x: Tensor) -> Tensor:
        light = self.exposure * x
        rate = 2 * self.exposure * CURVES[self.response].encode_slope(light)
        return torch.where((light >= 0) & (light <= 1), rate, 0.0)


def nonlinear_blur(blur: Operator, exposure: float = 1.0, curve: str = "srgb") -> Operator:
    """Camera(exposure, curve) @ blur @ LinearLight(curve): a blur in linear light.

    Bright lights leave streaks that saturate, as in photographs and unlike in a blur of x.

    Args:
        blur: any linear operator on images.
        exposure: see `Camera`.
        curve: encoding of x and response of the camera, "srgb", "rec709" or "linear".
    """
    if not isinstance(blur, Operator):
        raise InputTypeError("nonlinear_blur takes an operator, such as MotionBlur(length=15)")
    if not blur.linear:
        raise CapabilityError(f"light adds up: blur must be linear, {blur!r} is not")
    return Camera(exposure, curve) @ blur @ LinearLight(curve)


def _positive(what: str, value: object) -> float:
    number = check_number(what, value, 0)
    if number == 0:
        raise InputError(f"{what} must be > 0, not 0")
    return number


__all__ = ["Camera", "HDRClipping", "LinearLight", "Luma", "Quantisation", "nonlinear_blur"]
