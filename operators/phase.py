"""Phase retrieval: the moduli of Fourier coefficients, without their phases.

    PhaseRetrieval      y = |F pad(u)|                        (B, C, H, W) -> (B, C, H + 2p, W + 2q)
    CodedDiffraction    y_l = |F (D_l u)|,  l = 1 ... L       (B, C, H, W) -> (B, C L, H, W)

with F the centred orthonormal DFT of the padded size and u = (x - low) / (1 - low): images in
[-1, 1] become densities in [0, 1] for low = -1, and stay what they are for low = 0. `squared=True`
gives the intensities |.|^2 in place of the moduli.

The modulus is not differentiable at 0; its gradient there is 0.

Several images have the same y. Phase retrieval: u times a phase (real u: its sign), u turned by
180 degrees (and conjugated), u moved within the padding. low = -1 settles the sign, as densities
are positive; nothing settles the turn, and draws are to be compared up to it. The known patterns of
coded diffraction leave the phase only.

The DPS code (Chung et al., ICLR 2023) is `PhaseRetrieval(oversample=2.0, low=0)`, the DAPS code
(Zhang et al., CVPR 2025) is low = -1, our default; both at 256 x 256. Methods: those that need a
gradient, none that need a linear operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators._rowwise import Memo, by_row, together
from posterior.operators.base import (
    Operator,
    Shape,
    check_count,
    check_image,
    check_number,
    differentiable_by,
)
from posterior.operators.fourier import checkerboard
from posterior.streams import Noise, check_seed

_AXES = (-2, -1)


@dataclass(frozen=True, eq=False, repr=False)
class PhaseRetrieval(Operator):
    """y = |F pad(u)|: Fourier phase retrieval with oversampling.

    Args:
        oversample: zeros are padded to int(oversample n / 8) pixels on each of the sides of an axis
            of n pixels, the convention of DPS and DAPS: 2.0 makes 1.5 n of n, 4.0 makes 2 n.
        squared: intensities |.|^2 instead of moduli.
        low: the value of x where u is 0; u is 1 where x is. Complex x need low = 0.
    """

    oversample: float = 2.0
    squared: bool = False
    low: float = -1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "oversample", check_number("oversample", self.oversample, 0))
        object.__setattr__(self, "low", _check_low(self.low))

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        size = (self._padded(x.shape[2]), self._padded(x.shape[3]))
        signs = checkerboard(size, x)
        # moduli do not see where in the padded frame the image stands, nor a shift before F
        u = _density(self, x, self.low)
        if signs is not None:
            u = u * signs[: x.shape[2], : x.shape[3]]

        def transform(u: Tensor) -> Tensor:
            def f(rows: Tensor) -> Tensor:
                return torch.fft.fft2(rows, s=size, norm="ortho")

            return together(("fft2 padded", size), f, u)

        def transpose(z: Tensor) -> Tensor:
            def f(rows: Tensor) -> Tensor:
                image = torch.fft.ifft2(rows, norm="ortho")[..., : x.shape[2], : x.shape[3]]
                return image if x.is_complex() else image.real

            return together(("ifft2 cut", x.shape[2:], x.is_complex()), f, z)

        y = _modulus(differentiable_by(transform, transpose, u), self.squared)
        return y if signs is not None else torch.fft.fftshift(y, dim=_AXES)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (*y_shape[:2], *(self._unpadded(n) for n in y_shape[2:]))

    def range_shape(self, x_shape: Shape) -> Shape:
        return (*x_shape[:2], *(self._padded(n) for n in x_shape[2:]))

    def _padded(self, n: int) -> int:
        return n + 2 * int(self.oversample / 8.0 * n)

    def _unpadded(self, padded: int) -> int:
        near = int(padded / (1 + self.oversample / 4))
        for n in range(near, near + 3):  # at most 2 pixels are lost to rounding
            if self._padded(n) == padded:
                return n
        raise InputError(f"{self!r} does not give {padded} pixels along an axis")


@dataclass(frozen=True, eq=False, repr=False)
class CodedDiffraction(Operator):
    """y_l = |F (D_l u)|: moduli behind L known random patterns.

    The values of the patterns are 1, i, -1 or -i, each with probability 1/4, a pure function of
    (seed, size). Candes, Li, Soltanolkotabi, "Phase retrieval from coded diffraction patterns",
    ACHA 2015.

    Args:
        patterns: L.
        seed: of the patterns.
        squared, low: as in `PhaseRetrieval`.
    """

    patterns: int = 4
    seed: int = 0
    squared: bool = False
    low: float = -1.0
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", check_count("patterns", self.patterns, 1))
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "low", _check_low(self.low))

    def codes(self, height: int, width: int) -> Tensor:
        """The patterns D, complex128 (L, H, W)."""
        noise = Noise.single(self.seed, (height, width), rows=self.patterns)
        quarter = (4 * noise.uniform("diffraction")).long()
        return torch.tensor([1, 1j, -1, -1j], dtype=torch.complex128)[quarter]

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        height, width = x.shape[2:]
        dtype = torch.complex128 if x.real.dtype == torch.float64 else torch.complex64
        signs = checkerboard((height, width), x)

        def build() -> Tensor:
            codes = self.codes(height, width).to(x.device, dtype)
            return codes if signs is None else codes * signs

        codes = self._memo((height, width, dtype, x.device), build)

        # of all rows at once: factors of 1, i, -1, -i do not round, nor does the order of a sum of
        # patterns hang on the batch, one after the other
        def transform(u: Tensor) -> Tensor:
            def f(rows: Tensor) -> Tensor:
                return torch.fft.fft2(rows, norm="ortho")

            return together("fft2", f, u[:, :, None] * codes)

        def transpose(z: Tensor) -> Tensor:
            back = together("ifft2", lambda rows: torch.fft.ifft2(rows, norm="ortho"), z)
            first, *others = (back * codes.conj()).unbind(2)
            for other in others:
                first = first + other
            return first if x.is_complex() else first.real

        z = differentiable_by(transform, transpose, _density(self, x, self.low))
        y = _modulus(z, self.squared).flatten(1, 2)
        return y if signs is not None else torch.fft.fftshift(y, dim=_AXES)

    def domain_shape(self, y_shape: Shape) -> Shape:
        if y_shape[1] % self.patterns:
            raise InputError(f"{self!r} gives a multiple of {self.patterns} channels: {y_shape}")
        return (y_shape[0], y_shape[1] // self.patterns, *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], x_shape[1] * self.patterns, *x_shape[2:])


def _check_low(low: float) -> float:
    low = check_number("low", low, -float("inf"))
    if not low < 1:
        raise InputError(f"low must be < 1, the value where the density is 1, not {low:g}")
    return low


def _density(who: object, x: Tensor, low: float) -> Tensor:
    """u = (x - low) / (1 - low)."""
    if low == 0:
        return x
    if x.is_complex():
        raise InputError(f"{who!r} of a complex image: give low=0")
    return (x - low) / (1 - low)


class _Modulus(torch.autograd.Function):
    """|z| or |z|^2 of complex z for autograd; the gradient of |z| at 0 is 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, squared: bool) -> Tensor:
        if squared:
            squares = torch.view_as_real(z).square()
            y = squares[..., 0] + squares[..., 1]
        else:
            y = by_row(lambda row, _: row.abs(), z)
        ctx.save_for_backward(z, y)
        ctx.squared = squared
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # of products and quotients of real numbers alone, which round the same in any batch
        z, y = ctx.saved_tensors
        return (2 * grads[0] if ctx.squared else grads[0] / y.masked_fill(y == 0, 1)) * z, None


def _modulus(z: Tensor, squared: bool) -> Tensor:
    y: Tensor = _Modulus.apply(z, squared)  # type: ignore[no-untyped-call]  # torch's
    return y
