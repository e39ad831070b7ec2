"""Linear operators that act on rows and columns of an image apart: y = M_h x M_w^T per channel.

An axis of length n has one matrix (m, n), made in float64 and kept per (n, dtype, device). Most are
banded, some across the border, so a product runs over blocks of outputs and the inputs they touch.
The pseudo-inverse of a Kronecker product is that of its factors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.operators._rowwise import Memo, by_row
from posterior.operators.base import Operator, Shape, check_image

_NARROW = 64  # non-zero entries in a row, up to which small blocks save more than they cost,
_LONG = 64  # for axes longer than this
_BLOCKS = {True: 32, False: 128}  # outputs per block, of narrow bands and of others


@dataclass(frozen=True)
class Bands:
    """The matrix K of y = K x along an axis, as blocks of outputs.

    A block is (first input, end of inputs, K there (outputs, inputs)); a first input below 0 counts
    from the end, and the band goes on at 0.
    """

    blocks: tuple[tuple[int, int, Tensor], ...]

    @staticmethod
    def of(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Bands:
        """The non-zero columns of every block of rows of `matrix` (m, n)."""
        narrow = max(matrix.shape) > _LONG and int((matrix != 0).sum(1).max()) <= _NARROW
        blocks = []
        for part in torch.split(matrix, _BLOCKS[narrow]):
            low, high = _extent(part.abs().amax(0).nonzero()[:, 0], matrix.shape[1])
            columns = torch.arange(low, high)  # from the end where negative
            blocks.append((low, high, part[:, columns].to(device, dtype).contiguous()))
        return Bands(tuple(blocks))

    def along_w(self, x: Tensor) -> Tensor:
        """(..., H, n) -> (..., H, m)."""
        flat = x.reshape(-1, x.shape[-1])
        parts = [_stretch(flat, 1, low, high) @ block.T for low, high, block in self.blocks]
        return _joined(parts, 1).reshape(*x.shape[:-1], -1)

    def along_h(self, x: Tensor) -> Tensor:
        """(..., n, W) -> (..., m, W)."""
        axis = x.ndim - 2
        return _joined(
            [block @ _stretch(x, axis, low, high) for low, high, block in self.blocks], axis
        )


def _extent(touched: Tensor, n: int) -> tuple[int, int]:
    """The shortest stretch of n inputs, around the end if need be, with all those touched."""
    if len(touched) == 0:
        return 0, 1
    gaps = torch.diff(touched, append=touched[:1] + n)
    widest = int(gaps.argmax())
    if int(gaps[-1]) == int(gaps[widest]):
        return int(touched[0]), int(touched[-1]) + 1
    return int(touched[widest + 1]) - n, int(touched[widest]) + 1


def _stretch(x: Tensor, axis: int, low: int, high: int) -> Tensor:
    """x[low:high] along an axis."""
    if low >= 0:
        return x.narrow(axis, low, high - low)
    n = x.shape[axis]
    return torch.cat([x.narrow(axis, n + low, -low), x.narrow(axis, 0, high)], axis)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def both_axes(x: Tensor, along_h: Bands, along_w: Bands) -> Tensor:
    """One image (1, C, H, W), columns after rows; complex images part by part."""
    if x.is_complex():
        return torch.complex(
            both_axes(x.real.contiguous(), along_h, along_w),
            both_axes(x.imag.contiguous(), along_h, along_w),
        )
    return along_h.along_h(along_w.along_w(x))


def pseudo_inverse(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """M^+; singular values below sqrt(eps of the dtype) of the largest count as zero.

    The square root balances what the cut loses against the rounding that it would let through.
    """
    inverse: Tensor = torch.linalg.pinv(matrix, rtol=torch.finfo(dtype).eps ** 0.5)
    return inverse


@dataclass(frozen=True, eq=False, repr=False)
class Separable(Operator):
    """Base class: a subclass writes `axis_matrix` and the two shapes."""

    _memo: Memo = field(default_factory=lambda: Memo(32), init=False)

    linear = True
    units = "kept"
    has_pinv = True
    adjoint_gradient = True

    @abstractmethod
    def axis_matrix(self, n: int) -> Tensor:
        """The matrix (m, n) of an axis of n pixels, float64; raises where n cannot be."""

    @abstractmethod
    def axis_domain(self, m: int) -> int:
        """The length of an axis of x that gives m pixels."""

    @abstractmethod
    def axis_range(self, n: int) -> int:
        """The length of an axis of A(x) for n pixels; raises where n cannot be."""

    def forward(self, x: Tensor) -> Tensor:
        return self._apply("forward", lambda m, _: m, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply("adjoint", lambda m, _: m.T, y, inverse=True)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y; a singular value of an axis below sqrt(eps) of its largest counts as zero."""
        return self._apply("pinv", pseudo_inverse, y, inverse=True)

    def normal(self, x: Tensor) -> Tensor:
        return self._apply("normal", lambda m, _: m.T @ m, x)

    def domain_shape(self, y_shape: Shape) -> Shape:
        h, w = (self.axis_domain(m) for m in y_shape[2:])
        return (*y_shape[:2], h, w)

    def range_shape(self, x_shape: Shape) -> Shape:
        h, w = (self.axis_range(n) for n in x_shape[2:])
        return (*x_shape[:2], h, w)

    def _apply(
        self,
        what: str,
        make: Callable[[Tensor, torch.dtype], Tensor],
        x: Tensor,
        inverse: bool = False,
    ) -> Tensor:
        check_image(self, x)
        dtype = x.real.dtype

        def bands(n: int) -> Bands:
            n = self.axis_domain(n) if inverse else n
            self.axis_range(n)
            return self._memo(
                (what, n, dtype, x.device),
                lambda: Bands.of(make(self.axis_matrix(n), dtype), dtype, x.device),
            )

        along_h, along_w = bands(x.shape[2]), bands(x.shape[3])
        return by_row(lambda row, _: both_axes(row, along_h, along_w), x)
