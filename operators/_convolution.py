"""Two-dimensional convolution of an image with one kernel, and its exact transpose.

A small kernel that is a product of two one-dimensional ones runs along the axes, any other by FFT.
There a kernel only ever meets an image that was continued by its boundary rule beforehand; what the
FFT wraps around is cut away. The transpose runs the same steps backwards. Rounding: about 1e-7 of
the largest pixel in float32, 1e-16 in float64.
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

_SHORT = 64  # taps, up to which two products along the axes cost less than an FFT
_EXACT = 1e-14  # a kernel this close to a product is one: rounding of its float64 entries


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
        image = (x.shape[2], x.shape[3])
        if self._separable():
            along_h, along_w = self._bands(x, image, transposed=False)
            return by_row(lambda row, _: both_axes(row, along_h, along_w), x)
        transfer, size = self._transfer(x, image), self._fft_size(image)
        kh, kw = self.kernel.shape[1:]
        h, w = self._padded(image)

        def one(row: Tensor, b: int) -> Tensor:
            full = _multiply(self._continued(row), transfer[b % len(transfer)], size)
            if self.boundary == "circular":
                return full
            return full[:, :, kh - 1 : h : self.stride, kw - 1 : w : self.stride]

        return by_row(_by_part(one), x)

    def adjoint(self, y: Tensor, image: tuple[int, int]) -> Tensor:
        """The transpose, for x of size `image`: (B, C, h, w) -> (B, C, H, W)."""
        if self._separable():
            along_h, along_w = self._bands(y, image, transposed=True)
            return by_row(lambda row, _: both_axes(row, along_h, along_w), y)
        transfer, size = self._transfer(y, image, transposed=True), self._fft_size(image)
        kh, kw = self.kernel.shape[1:]
        h, w = self._padded(image)

        def one(row: Tensor, b: int) -> Tensor:
            if self.boundary == "circular":
                return _multiply(row, transfer[b % len(transfer)], size)
            full = row.new_zeros(*row.shape[:2], *size)
            full[:, :, kh - 1 :: self.stride, kw - 1 :: self.stride][
                :, :, : row.shape[2], : row.shape[3]
            ] = row
            padded = _multiply(full, transfer[b % len(transfer)], size)[:, :, :h, :w]
            return self._folded(padded, image)

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
        h, w = (_fast(n) for n in self._padded(image))
        return h, w

    def _padded(self, image: tuple[int, int] | torch.Size) -> tuple[int, int]:
        h, w = (n + sum(pad) for n, pad in zip(image, self.pads, strict=True))
        return h, w

    def _continued(self, x: Tensor) -> Tensor:
        """x beyond its border."""
        (top, bottom), (left, right) = self.pads
        if self.boundary != "reflect":
            return x
        if self._mirrors_once(x.shape[2:]):
            return torch.nn.functional.pad(x, (left, right, top, bottom), mode="reflect")
        rows = padded_index(x.shape[2], top, bottom, self.boundary).to(x.device)
        columns = padded_index(x.shape[3], left, right, self.boundary).to(x.device)
        return x[:, :, rows][:, :, :, columns]

    def _folded(self, padded: Tensor, image: tuple[int, int]) -> Tensor:
        """The transpose of `_continued`."""
        if self.boundary != "reflect":
            return padded
        if self._mirrors_once(image):
            (top, _), (left, _) = self.pads
            return _fold(_fold(padded, 2, top, image[0]), 3, left, image[1])

        def folds() -> tuple[Bands, Bands]:
            h, w = (
                Bands.of(
                    gather_matrix(padded_index(n, *pad, self.boundary), n).T,
                    padded.dtype,
                    padded.device,
                )
                for n, pad in zip(image, self.pads, strict=True)
            )
            return h, w

        key = ("fold", image, padded.dtype, padded.device)
        return both_axes(padded.contiguous(), *self._memo(key, folds))

    def _mirrors_once(self, image: tuple[int, int] | torch.Size) -> bool:
        """Whether no pixel beyond the border is farther from it than the image is wide."""
        return all(max(pad) < n for n, pad in zip(image, self.pads, strict=True))

    def _separable(self) -> tuple[Tensor, Tensor] | None:
        """The taps along h and along w, float64, whose product the kernel is; None if it is none.

        One kernel for all rows only.
        """

        def build() -> tuple[Tensor, Tensor] | None:
            if len(self.kernel) > 1 or max(self.kernel.shape[1:]) > _SHORT:
                return None
            u, s, vh = torch.linalg.svd(self.kernel[0], full_matrices=False)
            if len(s) > 1 and s[1] > _EXACT * s[0]:
                return None
            return u[:, 0] * s[0], vh[0]

        return self._memo("separable", build)

    def _bands(self, x: Tensor, image: tuple[int, int], transposed: bool) -> tuple[Bands, Bands]:
        """The matrices of the two axes."""

        def matrix(taps: Tensor, n: int, pad: Pad) -> Tensor:
            index = padded_index(n, *pad, self.boundary)
            under = index.unfold(0, len(taps), self.stride)  # (m, taps): pixels under the taps
            matrix = torch.zeros(len(under), n, dtype=torch.float64)
            matrix.scatter_add_(1, under, taps.flip(0).expand(under.shape).contiguous())
            return matrix.T if transposed else matrix

        def build() -> tuple[Bands, Bands]:
            taps = self._separable()
            assert taps is not None
            h, w = (
                Bands.of(matrix(t, n, pad), x.real.dtype, x.device)
                for t, n, pad in zip(taps, image, self.pads, strict=True)
            )
            return h, w

        return self._memo(("bands", transposed, image, x.real.dtype, x.device), build)

    def _transfer(
        self, x: Tensor, image: tuple[int, int] | torch.Size, transposed: bool = False
    ) -> Tensor:
        """The transfer function (K, h, w // 2 + 1) of every kernel, or its conjugate."""
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
            transfer = torch.stack(out).to(x.device, dtype)
            return transfer.conj().resolve_conj() if transposed else transfer

        return self._memo(("transfer", transposed, h, w, dtype, x.device), build)


def _fold(x: Tensor, axis: int, before: int, n: int) -> Tensor:
    """What stands beyond the border of n pixels is added to the pixels that it mirrors."""
    after = x.shape[axis] - before - n
    out = x.narrow(axis, before, n).clone(memory_format=torch.contiguous_format)
    if before:
        out.narrow(axis, 1, before).add_(x.narrow(axis, 0, before).flip(axis))
    if after:
        out.narrow(axis, n - 1 - after, after).add_(x.narrow(axis, before + n, after).flip(axis))
    return out


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
