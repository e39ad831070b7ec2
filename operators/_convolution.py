"""Two-dimensional convolution of an image with one kernel, and its exact transpose, by FFT.

Inside, a kernel only ever meets an image that was continued by its boundary rule beforehand; what
the FFT wraps around is cut away. The transpose runs the same steps backwards. Rounding: about 1e-7
of the largest pixel in float32, 1e-16 in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.operators._boundary import gather_matrix, padded_index
from posterior.operators._rowwise import Memo, by_row
from posterior.operators._separable import Bands, both_axes

Pad = tuple[int, int]


@dataclass(frozen=True)
class Filter:
    """y[i] = sum_a kernel[a] x[i stride + lead - a], lead = size - 1 - pad before, along both axes.

    Args:
        kernel: (K, kh, kw) float64, one kernel for all rows (K = 1) or one for each.
        pads: pixels that x is continued by, ((top, bottom), (left, right)).
        boundary: how it is continued.
        stride: every so many outputs are kept.
    """

    kernel: Tensor
    pads: tuple[Pad, Pad]
    boundary: str
    stride: int = 1
    _memo: Memo = field(default_factory=lambda: Memo(16), repr=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, (H + pads - kh) // stride + 1, ...)."""
        rows_h, columns_w = (i.to(x.device) for i in self._indices(x))
        transfer = self._transfer(x, x.shape[2:])
        size = self._fft_size(x.shape[2:])
        kh, kw = self.kernel.shape[1:]

        def one(row: Tensor, b: int) -> Tensor:
            padded = row[:, :, rows_h][:, :, :, columns_w]
            full = _multiply(padded, transfer[b % len(transfer)], size)
            if self.boundary == "circular":
                return full
            h, w = padded.shape[2:]
            return full[:, :, kh - 1 : h : self.stride, kw - 1 : w : self.stride]

        return by_row(_by_part(one), x)

    def adjoint(self, y: Tensor, image: tuple[int, int]) -> Tensor:
        """The transpose, for x of size `image`: (B, C, h, w) -> (B, C, H, W)."""
        transfer = self._transfer(y, image).conj()
        size = self._fft_size(image)
        kh, kw = self.kernel.shape[1:]
        h, w = (n + sum(pad) for n, pad in zip(image, self.pads, strict=True))
        along_h, along_w = self._folds(y, image)

        def one(row: Tensor, b: int) -> Tensor:
            if self.boundary == "circular":
                return _multiply(row, transfer[b % len(transfer)], size)
            full = row.new_zeros(*row.shape[:2], h, w)
            full[:, :, kh - 1 :: self.stride, kw - 1 :: self.stride][
                :, :, : row.shape[2], : row.shape[3]
            ] = row
            padded = _multiply(full, transfer[b % len(transfer)], size)[:, :, :h, :w]
            return both_axes(padded.contiguous(), along_h, along_w)

        return by_row(_by_part(one), y)

    def circular(self, x: Tensor, response: str) -> Tensor:
        """A circular convolution's other functions of the transfer function t, by name.

        "normal" |t|^2; "pinv" 1 / t, and 0 where |t| is below sqrt(eps) of its largest value.
        """
        size = (x.shape[2], x.shape[3])
        transfer = self._transfer(x, size)
        if response == "normal":
            other = transfer.abs().square().to(transfer.dtype)
        else:
            power = transfer.abs()
            cut = torch.finfo(power.dtype).eps ** 0.5 * power.amax((-2, -1), keepdim=True)
            other = torch.where(power > cut, 1 / transfer, 0)
        return by_row(_by_part(lambda row, b: _multiply(row, other[b % len(other)], size)), x)

    def _fft_size(self, image: tuple[int, int] | torch.Size) -> tuple[int, int]:
        if self.boundary == "circular":
            return image[0], image[1]
        h, w = (_fast(n + sum(pad)) for n, pad in zip(image, self.pads, strict=True))
        return h, w

    def _indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.boundary == "circular":
            return torch.arange(x.shape[2]), torch.arange(x.shape[3])
        (top, bottom), (left, right) = self.pads
        return (
            padded_index(x.shape[2], top, bottom, self.boundary),
            padded_index(x.shape[3], left, right, self.boundary),
        )

    def _folds(self, y: Tensor, image: tuple[int, int]) -> tuple[Bands, Bands]:
        def fold(n: int, pad: Pad) -> Bands:
            index = padded_index(n, *pad, self.boundary)
            return Bands.of(gather_matrix(index, n).T, y.real.dtype, y.device)

        def build() -> tuple[Bands, Bands]:
            pads = ((0, 0), (0, 0)) if self.boundary == "circular" else self.pads
            return fold(image[0], pads[0]), fold(image[1], pads[1])

        return self._memo(("fold", image, y.real.dtype, y.device), build)

    def _transfer(self, x: Tensor, image: tuple[int, int] | torch.Size) -> Tensor:
        """The transfer function (K, h, w // 2 + 1) of every kernel."""
        h, w = self._fft_size(image)
        dtype = torch.complex128 if x.real.dtype == torch.float64 else torch.complex64

        def build() -> Tensor:
            kh, kw = self.kernel.shape[1:]
            origin = (self.pads[0][1], self.pads[1][1]) if self.boundary == "circular" else (0, 0)
            row = (torch.arange(kh) - origin[0]) % h
            column = (torch.arange(kw) - origin[1]) % w
            place = (row[:, None] * w + column).flatten()  # wraps where a kernel is larger
            out = []
            for kernel in self.kernel:
                flat = torch.zeros(h * w, dtype=torch.float64)
                flat.scatter_add_(0, place, kernel.flatten())
                out.append(torch.fft.rfft2(flat.reshape(h, w)))
            return torch.stack(out).to(x.device, dtype)

        return self._memo(("transfer", h, w, dtype, x.device), build)


def _multiply(image: Tensor, transfer: Tensor, size: tuple[int, int]) -> Tensor:
    """The circular convolution on a grid of this size, of a real image (1, C, h, w)."""
    result: Tensor = torch.fft.irfft2(torch.fft.rfft2(image, s=size) * transfer, s=size)
    return result


def _by_part(f: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """`f` of a real image, for complex ones too."""

    def parts(row: Tensor, b: int) -> Tensor:
        if row.is_complex():
            return torch.complex(f(row.real.contiguous(), b), f(row.imag.contiguous(), b))
        return f(row, b)

    return parts


def _fast(n: int) -> int:
    """The next even length whose only prime factors are 2, 3 and 5."""
    n += n % 2
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 2
