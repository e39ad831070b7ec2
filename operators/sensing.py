"""Compressed sensing: few random linear measurements of an image.

    GaussianSensing      y = G x,  G_ij ~ N(0, 1 / m)             dense, m x n
    StructuredSensing    y = (n / m)^1/2 P T D x                  fast, n log n

D are random signs, T an orthonormal transform (2-D DCT-II or Walsh-Hadamard) and P keeps m of the n
coefficients, chosen at random. Both keep the norm of x in the mean, |y|^2 ~ |x|^2. n = H W, each
channel by itself, the same matrix for all; m = round(ratio n), at least 1.

>>> GaussianSensing(ratio=0.25, seed=0)          # (B, C, H, W) -> (B, C, m), up to about 64 x 64
>>> StructuredSensing(ratio=0.25, seed=0)        # any size

A A^T = (n / m) I for the structured ones, so A^+ = (m / n) A^T. Gaussian matrices have full row
rank, A^+ = G^T (G G^T)^-1; the inverse is computed in double precision, on first use.

Baraniuk, Davenport, DeVore, Wakin, "A simple proof of the restricted isometry property for random
matrices", Constr. Approx. 2008; Krahmer & Ward, "New and improved Johnson-Lindenstrauss embeddings
via the restricted isometry property", SIAM J. Math. Anal. 2011 (random signs, then a randomly
subsampled orthonormal transform).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.operators import _transforms
from posterior.operators._rowwise import Memo, by_row
from posterior.operators.base import (
    Operator,
    Pull,
    Shape,
    check_choice,
    check_image,
    check_number,
)
from posterior.operators.mask import warn_of_few
from posterior.operators.matrix import MatrixOperator
from posterior.streams import Noise, check_seed

_MOST = 2**28  # entries of a dense matrix: 1 GiB as they are kept, three times that in use
_CHUNK = 2**20  # entries that are drawn at a time
_TRANSFORMS = ("dct", "hadamard")

Self = TypeVar("Self", bound="_Sensing")


class _Sensing(Operator):
    """What both have in common: y (B, C, m), which does not tell (H, W)."""

    ratio: float
    seed: int
    event_shape: Shape | None
    _memo: Memo

    linear = True
    has_pinv = True

    def _check(self) -> None:
        ratio = check_number("ratio", self.ratio, 0, 1)
        if ratio == 0:
            raise InputError("ratio must be > 0: nothing would be measured")
        object.__setattr__(self, "ratio", ratio)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.event_shape is not None:
            object.__setattr__(self, "event_shape", tuple(self.event_shape))
        warn_of_few(self, ratio)

    def bind(self: Self, event_shape: Shape) -> Self:
        out = copy.copy(self)  # with the same memo: what is built for one serves the other
        object.__setattr__(out, "event_shape", tuple(event_shape))
        return out

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        return self(x), lambda u: self._back("adjoint", u, tuple(x.shape[1:]))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._back("adjoint", y, self.domain_shape(tuple(y.shape))[1:])

    def pinv(self, y: Tensor) -> Tensor:
        return self._back("pinv", y, self.domain_shape(tuple(y.shape))[1:])

    def domain_shape(self, y_shape: Shape) -> Shape:
        if self.event_shape is None:
            raise CapabilityError(f"{self!r} cannot tell the shape of x: bind((C, H, W)) it first")
        return (y_shape[0], *self.event_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (*x_shape[:2], self._count(math.prod(x_shape[2:])))

    def _count(self, n: int) -> int:
        return max(1, round(self.ratio * n))

    def _check_y(self, y: Tensor, event: Shape) -> None:
        expected = self.range_shape((y.shape[0], *event))
        if tuple(y.shape) != expected:
            raise InputError(f"{self!r} gives {expected} for x of {event}, y is {tuple(y.shape)}")

    @abstractmethod
    def _back(self, which: str, y: Tensor, event: Shape) -> Tensor:
        """The adjoint or the pseudo-inverse, by name."""


@dataclass(frozen=True, eq=False, repr=False)
class GaussianSensing(_Sensing):
    """y = G x with a dense matrix of independent N(0, 1 / m) numbers, each channel by itself.

    Args:
        ratio: m / n, in (0, 1].
        seed: of the matrix, a pure function of (seed, n, m).
        event_shape: (C, H, W), what `adjoint` and `pinv` return; the sampler binds it by itself.

    Raises `InputError` for more than 2^28 entries (1 GiB, three times that in use): 128 x 128
    pixels at a ratio of 1; larger images by `StructuredSensing`.
    """

    ratio: float
    seed: int = 0
    event_shape: Shape | None = None
    _memo: Memo = field(default_factory=lambda: Memo(4), init=False)

    def __post_init__(self) -> None:
        self._check()

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        n = math.prod(x.shape[2:])
        flat = x.reshape(x.shape[0] * x.shape[1], n)
        return self._matrix(n)(flat).reshape(*x.shape[:2], self._count(n))

    def normal(self, x: Tensor) -> Tensor:
        return self._back("adjoint", self(x), tuple(x.shape[1:]))

    def _back(self, which: str, y: Tensor, event: Shape) -> Tensor:
        self._check_y(y, event)
        n, flat = math.prod(event[1:]), y.reshape(-1, y.shape[2])
        if which == "pinv":
            double = torch.complex128 if y.is_complex() else torch.float64
            flat = self._inverse(n)(flat.to(double)).to(y.dtype)
        return self._matrix(n).adjoint(flat).reshape(y.shape[0], *event)

    def _inverse(self, n: int) -> MatrixOperator:
        """(G G^T)^-1."""

        def build() -> MatrixOperator:
            matrix = self._matrix(n).matrix.double()
            return MatrixOperator(torch.cholesky_inverse(torch.linalg.cholesky(matrix @ matrix.T)))

        return self._memo(("inverse", n), build)

    def _matrix(self, n: int) -> MatrixOperator:
        m = self._count(n)
        if m * n > _MOST:
            raise InputError(
                f"{self!r} of {n} pixels has {m} x {n} entries, {4 * m * n / 2**30:.1f} GiB, more"
                " than the 1 GiB allowed: use StructuredSensing"
            )
        return self._memo(n, lambda: MatrixOperator(_gaussian(self.seed, m, n)))


def _gaussian(seed: int, m: int, n: int) -> Tensor:
    """Independent N(0, 1 / m), float32 (m, n): the same numbers serve both precisions."""
    matrix = torch.empty(m, n)
    step = max(1, _CHUNK // n)
    for first in range(0, m, step):
        rows = range(first, min(m, first + step))
        noise = Noise((seed,) * len(rows), tuple(rows), (0,) * len(rows), (n,), torch.float64)
        matrix[first : first + step] = noise("sensing") / math.sqrt(m)
    return matrix


@dataclass(frozen=True, eq=False, repr=False)
class StructuredSensing(_Sensing):
    """y = (n / m)^1/2 P T D x: random signs, a fast transform, random coefficients of it.

    Args:
        ratio: m / n, in (0, 1].
        transform: "dct", the two-dimensional DCT-II, any size; or "hadamard", for H W a power of 2.
        seed: of signs and coefficients, pure functions of (seed, n).
        event_shape: (C, H, W), what `adjoint` and `pinv` return; the sampler binds it by itself.
    """

    ratio: float
    transform: str = "dct"
    seed: int = 0
    event_shape: Shape | None = None
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False)

    orthonormal_rows = True  # A A^T = n / m

    def __post_init__(self) -> None:
        self._check()
        check_choice("transform", self.transform, _TRANSFORMS)

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        index, signs = self._parts(x, (x.shape[2], x.shape[3]))
        n = signs.numel()
        coefficients = self._transform(x * signs).flatten(2)
        return coefficients[:, :, index] * math.sqrt(n / len(index))

    def _back(self, which: str, y: Tensor, event: Shape) -> Tensor:
        self._check_y(y, event)
        index, signs = self._parts(y, (event[1], event[2]))
        n, m = signs.numel(), len(index)
        coefficients = y.new_zeros(*y.shape[:2], n)
        scale = n / m if which == "adjoint" else m / n
        coefficients[:, :, index] = y * math.sqrt(scale)
        return self._transform(coefficients.reshape(y.shape[0], *event), back=True) * signs

    def _transform(self, x: Tensor, back: bool = False) -> Tensor:
        """T or T^T."""
        if self.transform == "hadamard":
            return _transforms.hadamard(x.flatten(2)).reshape(x.shape)
        if x.is_complex():
            return torch.complex(self._transform(x.real, back), self._transform(x.imag, back))
        along = _transforms.idct if back else _transforms.dct
        return by_row(lambda row, b: along(along(row).mT).mT, x)

    def _parts(self, like: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The kept coefficients (m,), in increasing order, and the signs (H, W)."""
        n = size[0] * size[1]
        if self.transform == "hadamard" and n & (n - 1):
            raise InputError(
                f"{self!r}: {size[0]} x {size[1]} pixels are no power of 2: use transform='dct'"
            )
        dtype = like.real.dtype

        def build() -> tuple[Tensor, Tensor]:
            noise = Noise.single(self.seed, (n,))
            first = noise.uniform("coefficients")[0].argsort(stable=True)[: self._count(n)]
            signs = torch.where(noise.uniform("signs")[0] < 0.5, -1.0, 1.0).reshape(size)
            return first.sort().values.to(like.device), signs.to(like.device, dtype)

        return self._memo((size, dtype, like.device), build)
