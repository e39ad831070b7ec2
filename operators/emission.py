"""Emission tomography (PET, SPECT): counts along lines through a radioactive body.

    y = s A a + r,   a = (x - low) / (1 - low)

with the activity a, a projector A, the counts s of a unit of line integral (time, efficiency and,
for PET, the attenuation of each line) and the expected scattered and random counts r. y is in
counts, so its noise is `PoissonNoise(rate=1, low=0, peak=1)`.

>>> pet = Emission(ParallelBeamCT(views=60), sensitivity=2.0, background=1.0)
>>> posterior.sample(prior, pet, y, noise=PoissonNoise(rate=1, low=0, peak=1))

Shepp & Vardi, "Maximum likelihood reconstruction for emission tomography", IEEE TMI 1, 1982.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator, Pull, Shape, check_number


@dataclass(frozen=True, eq=False, repr=False)
class Emission(Operator):
    """y = sensitivity A((x - low) / (1 - low)) + background; affine, so `linear` is False.

    Args:
        operator: A, linear: a scanner.
        sensitivity: counts of a unit of line integral where x = 1 has activity 1, >= 0; a number,
            or a tensor of the shape of A x without its batch axis, such as exp(-attenuation).
        background: expected scattered and random counts, >= 0, in the same forms.
        low: the x without activity: -1 for images in [-1, 1], 0 for [0, 1].
    """

    operator: Operator
    sensitivity: float | Tensor = 1.0
    background: float | Tensor = 0.0
    low: float = -1.0

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise InputTypeError("Emission takes an operator, such as ParallelBeamCT")
        if not self.operator.linear:
            raise CapabilityError(f"Emission needs a linear operator, not {self.operator!r}")
        for name in ("sensitivity", "background"):
            object.__setattr__(self, name, _counts(name, getattr(self, name)))
        if not bool(torch.as_tensor(self.sensitivity).any()):
            raise InputError("sensitivity is 0: nothing would be measured")
        low = check_number("low", self.low, -math.inf)
        if low >= 1:
            raise InputError(f"low must be < 1, not {low:g}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "space", self.operator.space)

    def forward(self, x: Tensor) -> Tensor:
        return self._seen(self.operator((x - self.low) / (1 - self.low)))

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        through, pull = self.operator.vjp((x - self.low) / (1 - self.low))
        s = self._like(self.sensitivity, through)
        return self._seen(through), lambda u: pull(s * u) / (1 - self.low)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return self.operator.domain_shape(y_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return self.operator.range_shape(x_shape)

    def take(self, index: Sequence[int]) -> Emission:
        return replace(self, operator=self.operator.take(index))

    def bind(self, event_shape: Shape) -> Emission:
        return replace(self, operator=self.operator.bind(event_shape))

    def _seen(self, through: Tensor) -> Tensor:
        if through.is_complex():
            raise InputError(f"{self!r} counts: its projections must be real")
        s, r = (self._like(v, through) for v in (self.sensitivity, self.background))
        return s * through + r

    def _like(self, value: float | Tensor, through: Tensor) -> float | Tensor:
        if not isinstance(value, Tensor):
            return value
        if value.shape != through.shape[1:]:
            raise InputError(
                f"{self!r}: counts of shape {tuple(value.shape)}, a row of y has"
                f" {tuple(through.shape[1:])}"
            )
        return value.to(through)


def _counts(what: str, value: float | Tensor) -> float | Tensor:
    """A number or finite real tensor >= 0; one element is a number."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return check_number(what, value, 0)
    if value.is_complex():
        raise InputTypeError(f"{what} must be real")
    values = value.detach().to("cpu", torch.float64, copy=True)
    if values.numel() == 0 or not bool((torch.isfinite(values) & (values >= 0)).all()):
        raise InputError(f"{what} must be finite and >= 0")
    return values


__all__ = ["Emission"]
