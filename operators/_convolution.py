"""Two-dimensional convolution of an image with one kernel, and its exact transpose.

A small kernel that is a product of two one-dimensional ones runs along the axes, but over small
circular images. One of few entries other than 0, such as a line, adds up so many shifted images (on
CPUs; elsewhere each would be a kernel launch); a library's convolution does the same for many
images at once, in the same order of summation. Any other goes by FFT. There a kernel only ever
meets an image that was continued by its boundary rule beforehand; what the FFT wraps around is cut
away. The transpose runs the same steps backwards. Rounding: about 1e-7 of the largest pixel in
float32, 1e-16 in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.functional import pad as padded_by

from posterior.operators._boundary import gather_matrix, padded_index
from posterior.operators._rowwise import Memo, by_row, together
from posterior.operators._separable import Bands, both_axes

Pad = tuple[int, int]

_SHORT = 64  # taps, up to which two products along the axes cost less than an FFT
_FEW = 32  # entries other than 0, up to which adding shifted images costs less than an FFT
_BAND = 1 << 17  # numbers that are added to at a time: with what is added, they fit in a cache
_LANES = 16  # numbers in a vector
_VECTORS = torch.backends.cpu.get_cpu_capability().startswith("AVX")
_DENSE = 0.2  # of the entries other than 0, from which on leaving out the rest no longer pays
_LINE = 64  # a multiple of the numbers that any processor multiplies at once
_FFT = 192**2  # pixels, up to which an FFT costs less than two products along the axes
_EXACT = 1e-14  # a kernel this close to a product is one: rounding of its float64 entries


@dataclass(frozen=True)
class Filter:
    """y[i] = sum_a kernel[a] x[i stride + lead - a], lead = size - 1 - pad before, along both axes.

    Args:
        kernel: (K, kh, kw) float64, one kernel for all rows (K = 1) or one for each (K = B).
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
        if len(self.kernel) > 1:
            return self._each(lambda one, row: one.forward(row), x)
        image = (x.shape[2], x.shape[3])
        if self._runs_along_axes(image):
            along_h, along_w = self._bands(x, image, transposed=False)
            return by_row(lambda row, _: both_axes(row, along_h, along_w), x)
        entries = self._entries(x)
        if entries is not None:
            return self._by_shifts("shifted", lambda rows: self._shifted(rows, entries), x)
        transfer, size = self._transfer(x, image), self._fft_size(image)
        kh, kw = self.kernel.shape[1:]
        h, w = self._padded(image)

        def f(rows: Tensor) -> Tensor:
            full = _multiply(self._continued(rows), transfer, size)
            if self.boundary == "circular":
                return full
            return full[:, :, kh - 1 : h : self.stride, kw - 1 : w : self.stride].contiguous()

        return _by_part(f)(x)

    def adjoint(self, y: Tensor, image: tuple[int, int]) -> Tensor:
        """The transpose, for x of size `image`: (B, C, h, w) -> (B, C, H, W)."""
        if len(self.kernel) > 1:
            return self._each(lambda one, row: one.adjoint(row, image), y)
        if self._runs_along_axes(image):
            along_h, along_w = self._bands(y, image, transposed=True)
            return by_row(lambda row, _: both_axes(row, along_h, along_w), y)
        entries = self._entries(y)
        if entries is not None:
            return self._by_shifts(
                "shifted back", lambda rows: self._shifted_back(rows, image, entries), y
            )
        transfer, size = self._transfer(y, image, transposed=True), self._fft_size(image)
        kh, kw = self.kernel.shape[1:]
        h, w = self._padded(image)

        def f(rows: Tensor) -> Tensor:
            if self.boundary == "circular":
                return _multiply(rows, transfer, size)
            full = rows.new_zeros(*rows.shape[:2], *size)
            full[:, :, kh - 1 :: self.stride, kw - 1 :: self.stride][
                :, :, : rows.shape[2], : rows.shape[3]
            ] = rows
            padded = _multiply(full, transfer, size)[:, :, :h, :w]
            return self._folded(padded, image)

        return _by_part(f)(y)

    def circular(self, x: Tensor, response: str) -> Tensor:
        """A circular convolution's other functions of the transfer function t, by name.

        "normal" |t|^2; "pinv" 1 / t, and 0 where |t| is below sqrt(eps) of its largest value.
        """
        if len(self.kernel) > 1:
            return self._each(lambda one, row: one.circular(row, response), x)
        size = (x.shape[2], x.shape[3])
        transfer = self._transfer(x, size)
        if response == "normal":
            other = transfer.abs().square().to(transfer.dtype)
        else:
            power = transfer.abs()
            cut = torch.finfo(power.dtype).eps ** 0.5 * power.amax((-2, -1), keepdim=True)
            other = torch.where(power > cut, 1 / transfer, 0)
        return _by_part(lambda rows: _multiply(rows, other, size))(x)

    def _each(self, apply: Callable[[Filter, Tensor], Tensor], x: Tensor) -> Tensor:
        """Row b by kernel b alone, in the way that is best for that one."""

        def build() -> list[Filter]:
            return [
                Filter(one, self.pads, self.boundary, self.stride)
                for one in torch.split(self.kernel, 1)
            ]

        filters = self._memo("each", build)
        return torch.cat([apply(f, row) for f, row in zip(filters, x.split(1), strict=True)])

    def _by_shifts(self, what: str, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`f` that sums shifted images: of many images by `_direct`, which has the same bits.

        Few images on several threads go by themselves: threads share lines out at any place, where
        the end of a vector may round otherwise.
        """
        direct = self._is_direct(x)
        if not direct and (torch.get_num_threads() > 1 or x.numel() > 2 * _BAND):
            return by_row(lambda row, _: f(row), x)
        return together((what, self.kernel.shape[1:], self.pads, self.boundary), f, x, large=direct)

    def _entries(self, x: Tensor) -> list[tuple[int, int, float]] | None:
        """(row, column, kernel there) of the entries other than 0; None where an FFT is better."""
        if x.device.type != "cpu" or self.stride > 1 or self.boundary == "circular":
            return None  # nothing is added to a circular image before its FFT

        def build() -> list[tuple[int, int, float]] | None:
            places = self.kernel[0].nonzero().tolist()
            if len(places) > _FEW:
                return None
            return [(a, b, float(self.kernel[0, a, b])) for a, b in places]

        return self._memo("entries", build)

    def _shifted(self, x: Tensor, entries: list[tuple[int, int, float]]) -> Tensor:
        """y = sum_a kernel[a] x shifted by a, x continued.

        All images are one line of numbers. An output counts from the first pixel under its taps; at
        the right and lower end of an image the taps reach into the next, and that is cut away.
        """
        padded = self._continued(x).contiguous()
        if self._is_direct(x):
            return _direct(padded, self._taps(True))
        height, width = padded.shape[2:]
        kh, kw = self.kernel.shape[1:]
        last = (kh - 1) * width + kw - 1  # of the pixels under the taps
        shifts = [(last - a * width - b, weight) for a, b, weight in entries]
        y = _sum_of_shifts(padded.flatten(), shifts, last).view(padded.shape)
        return y[:, :, : height - kh + 1, : width - kw + 1].contiguous()

    def _shifted_back(
        self, y: Tensor, image: tuple[int, int], entries: list[tuple[int, int, float]]
    ) -> Tensor:
        """The transpose of `_shifted`: zeros stand where that cuts away, and before it all."""
        kh, kw = self.kernel.shape[1:]
        if self._is_direct(y):
            padded = padded_by(y, (kw - 1, kw - 1, kh - 1, kh - 1))
            return self._folded(_direct(padded, self._taps(False)), image)
        size = (*y.shape[:2], *self._padded(image))
        last = (kh - 1) * size[3] + kw - 1
        line = y.new_zeros(last + math.prod(size))
        line[last:].view(size)[:, :, : y.shape[2], : y.shape[3]] = y
        shifts = [(a * size[3] + b, weight) for a, b, weight in entries]
        return self._folded(_sum_of_shifts(line, shifts, last)[: math.prod(size)].view(size), image)

    def _is_direct(self, x: Tensor) -> bool:
        """Whether x fills the lanes of a vector, where libraries keep one image in each.

        They do not leave out the entries that are 0.
        """
        if x.dtype != torch.float32 or x.shape[0] * x.shape[1] <= _LANES // 2:
            return False
        entries, dense = self.kernel.count_nonzero, _DENSE * self.kernel.numel()
        return _VECTORS and self._memo("dense", lambda: bool(entries() >= dense))

    def _taps(self, turned: bool) -> Tensor:
        """The kernel, (1, 1, kh, kw) float32, turned by 180 degrees or not."""
        flips = (1, 2) if turned else ()
        return self._memo(("taps", turned), lambda: self.kernel.flip(flips).float()[:, None])

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
            return padded_by(x, (left, right, top, bottom), mode="reflect")
        rows = padded_index(x.shape[2], top, bottom, self.boundary).to(x.device)
        columns = padded_index(x.shape[3], left, right, self.boundary).to(x.device)
        return x[:, :, rows][:, :, :, columns]

    def _folded(self, padded: Tensor, image: tuple[int, int]) -> Tensor:
        """The transpose of `_continued`."""
        if self.boundary != "reflect":
            return padded.contiguous()
        if self._mirrors_once(image):
            (top, _), (left, _) = self.pads
            return _fold(_fold(padded, 2, top, image[0]), 3, left, image[1]).contiguous()

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

        along = self._memo(("fold", image, padded.dtype, padded.device), folds)
        return by_row(lambda row, _: both_axes(row, *along), padded)

    def _mirrors_once(self, image: tuple[int, int] | torch.Size) -> bool:
        """Whether no pixel beyond the border is farther from it than the image is wide."""
        return all(max(pad) < n for n, pad in zip(image, self.pads, strict=True))

    def _runs_along_axes(self, image: tuple[int, int]) -> bool:
        """Whether the kernel is a product, and no FFT of the image as it is would cost less."""
        if self._separable() is None:
            return False
        large = image[0] * image[1] > _FFT or any(n != _fast(n) for n in image)
        return self.boundary != "circular" or large

    def _separable(self) -> tuple[Tensor, Tensor] | None:
        """The taps along h and along w, float64, whose product the kernel is; None if none."""

        def build() -> tuple[Tensor, Tensor] | None:
            if max(self.kernel.shape[1:]) > _SHORT:
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
        """The transfer function (h, w // 2 + 1), or its conjugate."""
        h, w = self._fft_size(image)
        dtype = torch.complex128 if x.real.dtype == torch.float64 else torch.complex64

        def build() -> Tensor:
            kh, kw = self.kernel.shape[1:]
            origin = (self.pads[0][1], self.pads[1][1]) if self.boundary == "circular" else (0, 0)
            row = (torch.arange(kh) - origin[0]) % h
            column = (torch.arange(kw) - origin[1]) % w
            place = (row[:, None] * w + column).flatten()  # wraps where a kernel is larger
            flat = torch.zeros(h * w, dtype=torch.float64)
            flat.scatter_add_(0, place, self.kernel.flatten())
            transfer = torch.fft.rfft2(flat.reshape(h, w)).to(x.device, dtype)
            return transfer.conj().resolve_conj() if transposed else transfer

        return self._memo(("transfer", transposed, h, w, dtype, x.device), build)


def _sum_of_shifts(line: Tensor, shifts: list[tuple[int, float]], last: int) -> Tensor:
    """sum_k weight_k line[n + shift_k], as long as the line; 0 for its `last` numbers, unreached.

    Band by band: what is added to, and what is added, stay in a cache over all shifts. They come in
    the order in which a convolution takes its taps.
    """
    shifts = sorted(shifts)
    total = torch.zeros_like(line)
    count = len(line) - last
    for start in range(0, count, _BAND):
        band = total[start : min(start + _BAND, count)]
        for shift, weight in shifts:
            band.add_(line[start + shift : start + shift + len(band)], alpha=weight)
    return total


def _direct(x: Tensor, taps: Tensor) -> Tensor:
    """y[i] = sum_a taps[a] x[i + a], of every image."""
    images = x.shape[0] * x.shape[1]
    weight = taps.expand(images, *taps.shape[1:])
    y = conv2d(x.reshape(1, images, *x.shape[2:]), weight, groups=images)
    return y.view(*x.shape[:2], *y.shape[2:])


def _fold(x: Tensor, axis: int, before: int, n: int) -> Tensor:
    """What stands beyond the border of n pixels is added, in x, to the pixels that it mirrors."""
    after = x.shape[axis] - before - n
    out = x.narrow(axis, before, n)
    if before:
        out.narrow(axis, 1, before).add_(x.narrow(axis, 0, before).flip(axis))
    if after:
        out.narrow(axis, n - 1 - after, after).add_(x.narrow(axis, before + n, after).flip(axis))
    return out


def _multiply(image: Tensor, transfer: Tensor, size: tuple[int, int]) -> Tensor:
    """The circular convolution on a grid of this size, of real images (B, C, h, w)."""
    spectrum = together(("rfft2", size), lambda rows: torch.fft.rfft2(rows, s=size), image)
    # row by row: a complex product rounds by where in a vector, or in a thread's part, it stands;
    # not so in whole vectors on one thread
    vectors = transfer.numel() % _LINE == 0 and transfer.device.type == "cpu"
    rows = len(spectrum) if vectors and torch.get_num_threads() == 1 else 1
    for b in range(0, len(spectrum), rows):
        spectrum[b : b + rows].mul_(transfer)
    return together(("irfft2", size), lambda rows: torch.fft.irfft2(rows, s=size), spectrum)


def _by_part(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`f` of real images, for complex ones too."""

    def real(x: Tensor) -> Tensor:
        large = x.device.type == "cpu" and x.numel() > 2 * _BAND  # too much for a cache
        return by_row(lambda row, _: f(row), x) if large else f(x)

    def parts(x: Tensor) -> Tensor:
        if x.is_complex():
            return torch.complex(real(x.real.contiguous()), real(x.imag.contiguous()))
        return real(x)

    return parts


def _fast(n: int) -> int:
    """The next multiple of 8 whose only prime factors are 2, 3, 5 and 7."""
    n += -n % 8
    while True:
        rest = n
        for p in (2, 3, 5, 7):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 8
