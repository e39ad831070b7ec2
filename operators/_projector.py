"""Line integrals over pixels as a pair of sparse matrices, A and its transpose.

An image is constant on its pixels and a detector reads the mean of the line integrals over its
width, so that A[ray, pixel] is the mean length of that pixel in the beam of that detector. What a
pixel casts on the detector is a trapezoid in s,

    height  pixel_size / max(|cos|, |sin|) of the direction of the ray through its centre
    corners the shadows of its own four, in order: s1 <= s2 <= s3 <= s4

and the entry is the integral of the trapezoid over the bin, divided by the bin's width. For
parallel beams that is exact. For a fan, where the height is that of the pixel's central ray, it is
the separable footprint of Long, Fessler & Balter, "3D forward and back-projection for X-ray CT
using separable footprints", IEEE TMI 29, 2010; with a source 300 pixels away entries are off by
1e-4 of a pixel.

Why this and not lengths along thin rays (Siddon, Medical Physics 12, 1985) or interpolation along
them (Joseph, IEEE TMI 1, 1982): no pixel falls between two rays or on both sides of one, at any
spacing of the detectors; every view holds the whole mass of the image; and A^T y is smooth. The
price is 2.3 entries for each pixel and view, where Siddon has 1.3.

Why stored: it is built once, every beam geometry shares the two products, A^T has the very entries
of A, and a product of 10^7 entries takes about 12 ms on one core. In single precision that is 16
bytes an entry: 430 MB for 256 x 256 pixels and 180 views, and 2 GB for the 5 s of building it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_COLUMNS = 4  # images in one product: always as many, so that a row meets the same kernel
_NOTHING = 1e-9  # an entry below this part of a pixel is rounding: it would widen the footprint

Shadow = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Points (x, y) to (s on the detector, direction cosines of the ray through them)."""


@dataclass(frozen=True)
class Projector:
    """y = A x for rows of flattened images, and its exact transpose."""

    matrix: Tensor  # (rays, pixels), sparse by rows
    transpose: Tensor

    @staticmethod
    def of(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Projector:
        """From a sparse matrix by rows."""
        matrix = matrix.to(dtype)
        by_column = matrix.to_sparse_csc()
        transpose = _sparse(
            by_column.ccol_indices(),
            by_column.row_indices(),
            by_column.values(),
            matrix.shape[::-1],
        )
        return Projector(matrix.to(device), transpose.to(device))

    @staticmethod
    def by_rows(
        starts: Tensor,
        columns: Tensor,
        values: Tensor,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Projector:
        """From the entries of a sparse matrix by rows."""
        return Projector.of(_sparse(starts, columns, values, shape), dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        """(n, pixels) -> (n, rays), differentiable."""
        out: Tensor = _Product.apply(x, self.matrix, self.transpose)  # type: ignore[no-untyped-call]
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        """(n, rays) -> (n, pixels), differentiable."""
        out: Tensor = _Product.apply(y, self.transpose, self.matrix)  # type: ignore[no-untyped-call]
        return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.matrix, ctx.transpose = matrix, transpose
        out = [(matrix @ _columns(block))[:, : len(block)].T for block in torch.split(x, _COLUMNS)]
        return torch.cat(out).contiguous() if len(x) else x.new_zeros(0, matrix.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        back = _Product.apply(grads[0], ctx.transpose, ctx.matrix)  # type: ignore[no-untyped-call]
        return back, None, None


def _columns(block: Tensor) -> Tensor:
    """Up to four rows as four columns."""
    return torch.nn.functional.pad(block, (0, 0, 0, _COLUMNS - len(block))).T.contiguous()


def footprints(
    shadows: Iterator[Shadow],
    size: tuple[int, int],
    pixel_size: float,
    detectors: int,
    spacing: float,
    dtype: torch.dtype,
) -> Tensor:
    """The matrix (views * detectors, H * W), sparse by rows; computed in float64.

    Args:
        shadows: one for each view.
        size: (H, W), centred at the origin, x to the right, y upwards.
        pixel_size: side of a pixel.
        detectors: bins of one view, centred at s = 0.
        spacing: width of a bin.
        dtype: of the entries.
    """
    x, y = pixel_centres(size, pixel_size)
    half = pixel_size / 2
    edge = -detectors * spacing / 2
    pixels, values, counts = [], [], []
    for shadow in shadows:
        corners = torch.stack(
            [shadow(x + i, y + j)[0] for i in (-half, half) for j in (-half, half)]
        )
        s = (corners.sort(0).values - edge) / spacing  # in bins
        _, along_x, along_y = shadow(x, y)
        height = pixel_size / torch.maximum(along_x.abs(), along_y.abs())
        first = s[0].floor()
        reach = int((s[3] - first).max()) + 1
        area = torch.stack([_area(first + k, s) for k in range(reach + 1)])
        weight = height * (area[1:] - area[:-1])  # (bins, pixels): the k-th bin from the first
        which = first.long() + torch.arange(reach)[:, None]
        kept = ((weight > _NOTHING * pixel_size) & (which >= 0) & (which < detectors)).T
        bins, pixel = which.T[kept], kept.nonzero()[:, 0]
        order = bins.argsort(stable=True)  # by bin, and by pixel in a bin
        pixels.append(pixel[order].int())
        values.append(weight.T[kept][order].to(dtype))
        counts.append(bins.bincount(minlength=detectors))
    starts = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
    return _sparse(starts, torch.cat(pixels), torch.cat(values), (len(starts) - 1, len(x)))


def _area(t: Tensor, s: Tensor) -> Tensor:
    """The integral up to t of the trapezoid of height 1 with the corners s (4, pixels)."""
    tiny = torch.finfo(t.dtype).tiny
    rise = t.clamp(s[0], s[1]) - s[0]
    flat = t.clamp(s[1], s[2]) - s[1]
    fall = t.clamp(s[2], s[3]) - s[2]
    up = rise * rise / (2 * (s[1] - s[0]).clamp(min=tiny))
    return up + flat + fall - fall * fall / (2 * (s[3] - s[2]).clamp(min=tiny))


def pixel_centres(size: tuple[int, int], pixel_size: float) -> tuple[Tensor, Tensor]:
    """x to the right and y upwards of the H W pixels, row by row, float64; the middle is 0."""
    h, w = size
    x = (torch.arange(w, dtype=torch.float64) - (w - 1) / 2) * pixel_size
    y = ((h - 1) / 2 - torch.arange(h, dtype=torch.float64)) * pixel_size
    return x.repeat(h), y.repeat_interleave(w)


def from_scipy(matrix: Any) -> Tensor:
    """A scipy matrix as a sparse one of torch, by rows."""
    matrix = matrix.tocsr().sorted_indices()
    return _sparse(
        torch.from_numpy(matrix.indptr),
        torch.from_numpy(matrix.indices),
        torch.from_numpy(matrix.data),
        matrix.shape,
    )


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sparse by rows; 32-bit indices are what the products take without converting them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts.int(), columns.int(), values, tuple(shape), check_invariants=False
        )


__all__ = ["Projector", "Shadow", "footprints", "from_scipy", "pixel_centres"]
