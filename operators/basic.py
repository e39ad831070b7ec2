"""Operators without arithmetic to speak of: identity, grey, complex images from real channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators.base import Operator, Shape, check_count, check_image


@dataclass(frozen=True, eq=False, repr=False)
class Identity(Operator):
    """y = x: denoising."""

    linear = True
    units = "kept"
    has_pinv = True
    adjoint_gradient = True
    orthonormal_rows = True
    orthonormal_columns = True

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.clone()

    def pinv(self, y: Tensor) -> Tensor:
        return y.clone()

    def normal(self, x: Tensor) -> Tensor:
        return x.clone()

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        return x_shape


@dataclass(frozen=True, eq=False, repr=False)
class ChannelMean(Operator):
    """Grey: the mean of the channels, (B, C, H, W) -> (B, 1, H, W).

    Args:
        channels: C.
    """

    channels: int = 3

    linear = True
    units = "kept"
    has_pinv = True
    adjoint_gradient = True
    orthonormal_rows = True  # A A^T = 1 / C

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_count("channels", self.channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        if x.shape[1] != self.channels:
            raise InputError(f"{self!r} needs {self.channels} channels, not {x.shape[1]}")
        total = x[:, :1]
        for c in range(1, self.channels):  # one addition after the other: the same for any batch
            total = total + x[:, c : c + 1]
        return total / self.channels

    def adjoint(self, y: Tensor) -> Tensor:
        return self.pinv(y) / self.channels

    def pinv(self, y: Tensor) -> Tensor:
        """The grey value in every channel."""
        if y.ndim != 4 or y.shape[1] != 1:
            raise InputError(f"{self!r} gives one channel, not {tuple(y.shape)}")
        return y.repeat(1, self.channels, 1, 1)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], self.channels, *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], 1, *x_shape[2:])


@dataclass(frozen=True, eq=False, repr=False)
class ComplexFromChannels(Operator):
    """A complex image from real channels, (B, 2C, ...) -> (B, C, ...); composes on the right.

    The first C channels are the real parts, the last C the imaginary parts. An isometry: adjoint,
    inverse and pseudo-inverse are the same map.
    """

    linear = True
    has_pinv = True
    adjoint_gradient = True
    orthonormal_rows = True
    orthonormal_columns = True

    def forward(self, x: Tensor) -> Tensor:
        if x.is_complex():
            raise InputError(f"{self!r} takes real channels, not {x.dtype}")
        if x.ndim < 2 or x.shape[1] % 2:
            raise InputError(
                f"{self!r} needs an even number of channels, real parts first: not {tuple(x.shape)}"
            )
        real, imag = x.chunk(2, dim=1)
        return torch.complex(real, imag)

    def adjoint(self, y: Tensor) -> Tensor:
        """The real parts, then the imaginary parts."""
        if y.ndim < 2:
            raise InputError(f"{self!r} gives (B, C, ...), y is {tuple(y.shape)}")
        return torch.cat([y.real, y.imag if y.is_complex() else torch.zeros_like(y)], dim=1)

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        return x.clone()

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], 2 * y_shape[1], *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], x_shape[1] // 2, *x_shape[2:])
