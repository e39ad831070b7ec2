"""Haze: light is lost on its way to the camera, and the light of the air is added.

    y = t x + a (1 - t),   t = exp(-scattering depth)

with the airlight a, the colour of a point infinitely far away, in the units of x. The law is the
same for densities in [0, 1] and for images in [-1, 1].

>>> fog = Haze(depth, scattering=0.8, airlight=0.7)
>>> posterior.sample(prior, fog, y, noise=0.02)
>>> posterior.sample(prior, fog.direct, fog.without_airlight(y), noise=0.02)  # linear methods too

Affine, not linear, but for a = 0: `linear` is False as for any operator with an offset, and
`direct` with `without_airlight` say the same measurement without one.

H. Koschmieder, 1924; S. G. Narasimhan, S. K. Nayar, "Vision and the atmosphere", IJCV 48, 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators._rowwise import Memo, check_rows, take_rows
from posterior.operators.base import Operator, Pull, Shape, check_image, check_number


@dataclass(frozen=True, eq=False, repr=False)
class Haze(Operator):
    """y = t x + a (1 - t), t = exp(-scattering depth).

    Args:
        depth: distance of what each pixel shows, >= 0: (H, W), (1, H, W), or one map for each
            measurement (B, 1, H, W).
        scattering: beta > 0, lost per unit of depth.
        airlight: a, one number or one for each channel; 1 is white.
    """

    depth: Tensor
    scattering: float = 1.0
    airlight: float | Sequence[float] = 1.0
    _memo: Memo = field(default_factory=Memo, init=False)

    units = "kept"

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", _as_depth(self.depth))
        scattering = check_number("scattering", self.scattering, 0)
        if scattering == 0:
            raise InputError("scattering must be > 0: there would be no haze")
        object.__setattr__(self, "scattering", scattering)
        airlight: Any = self.airlight
        if isinstance(airlight, (list, tuple, Tensor)):
            airlight = tuple(check_number("airlight", a, -float("inf")) for a in airlight)
            if not airlight:
                raise InputError("airlight: give one number, or one for each channel")
        else:
            airlight = check_number("airlight", airlight, -float("inf"))
        object.__setattr__(self, "airlight", airlight)
        clear = not any(self._airlight)
        object.__setattr__(self, "linear", clear)
        object.__setattr__(self, "has_pinv", clear)

    @property
    def direct(self) -> Haze:
        """x t: the light from the scene alone, linear."""
        return replace(self, airlight=0.0)

    def without_airlight(self, y: Tensor) -> Tensor:
        """y - a (1 - t), a measurement by `direct` with the same noise."""
        return y - self._parts(y)[1]

    def forward(self, x: Tensor) -> Tensor:
        through, added = self._parts(x)
        return x * through if self.linear else x * through + added

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        through, _ = self._parts(x)
        return self(x), lambda u: u * through

    def adjoint(self, y: Tensor) -> Tensor:
        self._check_linear()
        return y * self._parts(y)[0]

    def pinv(self, y: Tensor) -> Tensor:
        """y / t, and 0 where no light gets through."""
        self._check_linear()
        through, _ = self._parts(y)
        return torch.where(through > 0, y / through, 0)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        return x_shape

    def take(self, index: Sequence[int]) -> Haze:
        if len(self.depth) == 1:
            return self
        return replace(self, depth=take_rows(self.depth, index))

    @property
    def _airlight(self) -> tuple[float, ...]:
        return (self.airlight,) if isinstance(self.airlight, float) else tuple(self.airlight)

    def _check_linear(self) -> None:
        if not self.linear:
            raise CapabilityError(
                f"{self!r} is affine, not linear: take .direct, and .without_airlight(y)"
            )

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """t (1 or B, 1, H, W) and a (1 - t) (.., 1 or C, H, W), for x."""
        check_image(self, x)
        if self.depth.shape[2:] != x.shape[2:]:
            have = " x ".join(map(str, self.depth.shape[2:]))
            raise InputError(f"the depths are {have}, the image {x.shape[2]} x {x.shape[3]}")
        if len(self._airlight) not in (1, x.shape[1]):
            raise InputError(
                f"{self!r}: airlight for {len(self._airlight)} channels, not {x.shape[1]}"
            )
        check_rows(self, "depths", len(self.depth), x)
        dtype = x.real.dtype

        def build() -> tuple[Tensor, Tensor]:
            through = (-self.scattering * self.depth).exp()
            airlight = torch.tensor(self._airlight, dtype=torch.float64)[:, None, None]
            added = airlight * (1 - through)
            return through.to(x.device, dtype), added.to(x.device, dtype)

        return self._memo((dtype, x.device), build)


def _as_depth(depth: object) -> Tensor:
    """Depths as float64 (1 or B, 1, H, W)."""
    try:
        values = torch.as_tensor(depth).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(f"depth must be a tensor, not {type(depth).__name__}") from None
    if values.is_complex():
        raise InputTypeError("depth must be real")
    shape = tuple(values.shape)
    if values.ndim == 2:
        values = values[None, None]
    elif values.ndim == 3 and shape[0] == 1:
        values = values[None]
    elif values.ndim != 4 or shape[1] != 1:
        raise InputError(f"depth must be (H, W), (1, H, W) or (B, 1, H, W), not {shape}")
    if values.numel() == 0:
        raise InputError(f"depth is empty: {shape}")
    values = values.to("cpu", torch.float64, copy=True)
    if not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise InputError("depth must be finite and >= 0")
    return values


__all__ = ["Haze"]
