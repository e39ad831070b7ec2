"""Super-resolution: the low-resolution image y of x.

>>> SuperResolution(factor=4)                     # antialiased bicubic, as Pillow's
>>> SuperResolution(factor=4, kernel="average")   # mean of blocks
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.operators._boundary import padded_index
from posterior.operators._convolution import Filter
from posterior.operators._separable import Separable
from posterior.operators.base import check_choice, check_count, check_image
from posterior.operators.blur import as_kernel, warn_of_sums

KERNELS = ("average", "bicubic", "bicubic-matlab")


@dataclass(frozen=True, eq=False, repr=False)
class SuperResolution(Separable):
    """Downsampling by a whole factor; x must be a multiple of it in height and width.

    Args:
        factor: >= 1.
        kernel: "bicubic": antialiased cubic convolution, a = -0.5, its support widened by the
            factor; beyond the border the weights are cut and renormalised, as Pillow does.
            "bicubic-matlab": the same, but the image is mirrored at its outer edge, as MATLAB's
            `imresize` does. "average": the mean of factor x factor blocks.
            A tensor (kh, kw): y[i] is the convolution of x with it (mirrored at the centre of the
            border pixel), read where the kernel's middle lies on the centre of the block of output
            i; where the parities of kernel and factor differ, half a pixel towards the top left.
    """

    factor: int
    kernel: str | Tensor = "bicubic"
    _filter: Filter | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        factor = check_count("factor", self.factor, 1)
        object.__setattr__(self, "factor", factor)
        if isinstance(self.kernel, str) or self.kernel is None:
            check_choice("kernel", self.kernel, KERNELS)
            object.__setattr__(self, "orthonormal_rows", self.kernel == "average")
            return
        kernel = as_kernel(self.kernel)
        if kernel.ndim != 2:
            raise InputError(f"kernel must be (kh, kw), not {tuple(kernel.shape)}")
        warn_of_sums(kernel)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "has_pinv", False)
        pads = []
        for size in kernel.shape:
            before = -((factor - size) // 2)  # output i reads from pixel i factor - before
            pads.append((before, size - factor - before))
        object.__setattr__(
            self, "_filter", Filter(kernel[None], (pads[0], pads[1]), "reflect", factor)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self._filter is None:
            return super().forward(x)
        check_image(self, x)
        self.range_shape(tuple(x.shape))
        return self._filter.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._filter is None:
            return super().adjoint(y)
        check_image(self, y)
        h, w = self.domain_shape(tuple(y.shape))[2:]
        return self._filter.adjoint(y, (h, w))

    def normal(self, x: Tensor) -> Tensor:
        return super().normal(x) if self._filter is None else self.adjoint(self(x))

    def pinv(self, y: Tensor) -> Tensor:
        if not self.has_pinv:
            raise CapabilityError(f"{self!r} has no pseudo-inverse: take a named kernel")
        return super().pinv(y)

    def axis_matrix(self, n: int) -> Tensor:
        if self.kernel == "average":
            eye = torch.eye(n // self.factor, dtype=torch.float64)
            return eye.repeat_interleave(self.factor, dim=1) / self.factor
        return _cubic_matrix(n, self.factor, mirrored=self.kernel == "bicubic-matlab")

    def axis_domain(self, m: int) -> int:
        return m * self.factor

    def axis_range(self, n: int) -> int:
        if n % self.factor:
            raise InputError(
                f"{self!r}: {n} pixels are not a multiple of the factor: crop to"
                f" {n - n % self.factor}"
            )
        if isinstance(self.kernel, Tensor) and max(self.kernel.shape) > n + self.factor:
            raise InputError(f"{self!r}: the kernel is larger than the image ({n} pixels)")
        return n // self.factor


def _cubic_matrix(n: int, factor: int, mirrored: bool) -> Tensor:
    """The weights (n // factor, n) of an axis, float64; every row sums to 1."""
    m = n // factor
    if factor == 1:
        return torch.eye(n, dtype=torch.float64)
    reach = 2 * factor
    position = torch.arange(-reach, n + reach)
    centre = (torch.arange(m, dtype=torch.float64)[:, None] + 0.5) * factor
    weights = _cubic((position + 0.5 - centre) / factor)
    if mirrored:
        index = padded_index(n, reach, reach, "symmetric")
        weights = torch.zeros(m, n, dtype=torch.float64).index_add_(1, index, weights)
    else:
        weights = weights[:, reach : reach + n]
    return weights / weights.sum(1, keepdim=True)


def _cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (IEEE ASSP 29, 1981)."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
