"""The colour filter of a camera: one colour for each pixel.

>>> BayerMosaic()                       # y (B, 1, H, W); to restore x from it is to demosaic
>>> BayerMosaic("gbrg") @ GaussianBlur(1.0)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators._rowwise import Memo
from posterior.operators.base import Operator, Shape, check_choice, check_image

PATTERNS = ("rggb", "bggr", "grbg", "gbrg")


@dataclass(frozen=True, eq=False, repr=False)
class BayerMosaic(Operator):
    """y[i, j] = x[c, i, j], c the colour of the filter there: (B, 3, H, W) -> (B, 1, H, W).

    A choice of entries of x: A A^T = 1, and adjoint and pseudo-inverse put the values back in their
    channel and 0 elsewhere. The values of x are taken as they are; a sensor counts light, so raw
    files fit `BayerMosaic() @ LinearLight()`, which is not linear. Bayer, US patent 3971065 (1976).

    Args:
        pattern: the colours of the upper left 2 x 2 pixels, row by row, repeated over the image:
            "rggb", "bggr", "grbg" or "gbrg".
    """

    pattern: str = "rggb"
    _memo: Memo = field(default_factory=Memo, init=False)

    linear = True
    units = "kept"
    has_pinv = True
    orthonormal_rows = True

    def __post_init__(self) -> None:
        check_choice("pattern", self.pattern, PATTERNS)

    def channels(self, height: int, width: int) -> Tensor:
        """The channel that each pixel sees, int64 (1, 1, H, W)."""
        cell = torch.tensor(["rgb".index(colour) for colour in self.pattern]).reshape(2, 2)
        tiled = cell.repeat(-(-height // 2), -(-width // 2))
        return tiled[None, None, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        if x.shape[1] != 3:
            raise InputError(f"{self!r} needs 3 channels, not {x.shape[1]}")
        return x.gather(1, self._channels(x))

    def adjoint(self, y: Tensor) -> Tensor:
        check_image(self, y)
        if y.shape[1] != 1:
            raise InputError(f"{self!r} gives one channel, not {y.shape[1]}")
        x = y.new_zeros(self.domain_shape(tuple(y.shape)))
        return x.scatter(1, self._channels(y), y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], 3, *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], 1, *x_shape[2:])

    def _channels(self, like: Tensor) -> Tensor:
        h, w = like.shape[2:]
        index = self._memo((h, w, like.device), lambda: self.channels(h, w).to(like.device))
        return index.expand(like.shape[0], -1, -1, -1)


__all__ = ["BayerMosaic"]
