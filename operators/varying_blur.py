"""Blur that changes over the image: the efficient filter flow.

>>> SpaceVaryingBlur.defocus(middle=1, corner=4)            # sharp in the middle
>>> SpaceVaryingBlur(kernels)                               # (R, S, kh, kw): a grid of kernels
>>> SpaceVaryingBlur(kernels, weights=maps)                 # (K, kh, kw) and (K, H, W)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posterior.errors import InputError, InputTypeError
from posterior.operators._boundary import BOUNDARIES
from posterior.operators._rowwise import Memo
from posterior.operators.base import Operator, Shape, check_choice, check_count, check_number
from posterior.operators.blur import Blur, as_kernel, warn_of_sums
from posterior.operators.defocus import Defocus

LAYOUTS = ("grid", "radial")


@dataclass(frozen=True, eq=False, repr=False)
class SpaceVaryingBlur(Operator):
    """y = sum_k kernel_k * (w_k x): every point is spread by a blend of the kernels, by its place.

    The image of a single bright point at i is sum_k w_k(i) kernel_k, shifted to i: the scattering
    form of Hirsch, Sra, Schoelkopf, Harmeling, "Efficient filter flow for space-variant multiframe
    blind deconvolution" (CVPR 2010, equation 6). It keeps the light of every point; a flat image
    stays flat where the kernels change slowly only. One convolution for each kernel.

    No pseudo-inverse. Methods: all that take linear operators without one.

    Args:
        kernels: of odd sizes. "grid": (R, S, kh, kw), standing in R rows and S columns from border
            to border. Else (K, kh, kw), or a list of K kernels (kh, kw) of any odd sizes.
        weights: "grid"; "radial", the first kernel in the middle of the image, the last in its
            corners, the others at equal distances between; or maps (K, H, W), taken as they are.
            Those of "grid" and "radial" fall from 1 to 0 as the square of a cosine between
            neighbours, and sum to 1 everywhere.
        boundary: "reflect", "circular" or "valid". What lies beyond the border was weighed before
            it was mirrored or repeated.
    """

    kernels: Tensor
    weights: str | Tensor = "grid"
    boundary: str = "reflect"
    _blurs: tuple[Blur, ...] = field(default=(), init=False)
    _memo: Memo = field(default_factory=Memo, init=False)

    linear = True
    units = "kept"

    def __post_init__(self) -> None:
        check_choice("boundary", self.boundary, BOUNDARIES)
        kernels = _stacked(self.kernels)
        if isinstance(self.weights, str):
            check_choice("weights", self.weights, LAYOUTS)
        else:
            object.__setattr__(self, "weights", _as_maps(self.weights))
        axes = 4 if isinstance(self.weights, str) and self.weights == "grid" else 3
        if kernels.ndim != axes:
            wanted = "(R, S, kh, kw) for weights='grid'" if axes == 4 else "(K, kh, kw)"
            raise InputError(f"kernels must be {wanted}, not {tuple(kernels.shape)}")
        flat = kernels.flatten(0, -3)
        if isinstance(self.weights, Tensor) and len(self.weights) != len(flat):
            raise InputError(f"{len(flat)} kernels, but {len(self.weights)} maps of weights")
        object.__setattr__(self, "kernels", kernels)
        object.__setattr__(self, "_blurs", tuple(Blur.part(k, self.boundary) for k in flat))
        if isinstance(self.weights, str):  # maps of one's own may make up for the sums
            warn_of_sums(flat)

    @staticmethod
    def defocus(
        *, middle: float, corner: float, steps: int = 5, boundary: str = "reflect"
    ) -> SpaceVaryingBlur:
        """Field curvature: the radius of defocus grows from the middle to the corners.

        Args:
            middle: radius in pixels in the middle of the image; up to half a pixel is sharp.
            corner: radius in the corners.
            steps: how many kernels, >= 2.
            boundary: as above.
        """
        steps = check_count("steps", steps, 2)
        radii = [check_number("radius", r, 0, 1000) for r in (middle, corner)]
        part = [k / (steps - 1) for k in range(steps)]
        kernels = [Defocus(max(radii[0] * (1 - t) + radii[1] * t, 0.5)).kernel for t in part]
        return SpaceVaryingBlur(_stacked(kernels), "radial", boundary)

    def maps(self, height: int, width: int) -> Tensor:
        """The weights (K, H, W), float64."""
        if isinstance(self.weights, Tensor):
            if self.weights.shape[1:] != (height, width):
                have = " x ".join(map(str, self.weights.shape[1:]))
                raise InputError(f"the weights are {have}, the image {height} x {width}")
            return self.weights
        if self.weights == "grid":
            rows, columns = self.kernels.shape[:2]
            along_h, along_w = (
                _bumps(torch.linspace(0, 1, n, dtype=torch.float64), count)
                for n, count in ((height, rows), (width, columns))
            )
            return (along_h[:, None, :, None] * along_w[None, :, None, :]).flatten(0, 1)
        down, right = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
        distance = (down[:, None].square() + right[None].square()).sqrt()
        return _bumps(distance / max(float(distance.max()), 1e-9), len(self.kernels))

    def forward(self, x: Tensor) -> Tensor:
        self.range_shape(tuple(x.shape))
        parts = zip(self._blurs, self._maps(x, tuple(x.shape)), strict=True)
        return _sum(blur(weight * x) for blur, weight in parts)

    def adjoint(self, y: Tensor) -> Tensor:
        shape = self.domain_shape(tuple(y.shape))
        parts = zip(self._blurs, self._maps(y, shape), strict=True)
        return _sum(weight * blur.adjoint(y) for blur, weight in parts)

    def domain_shape(self, y_shape: Shape) -> Shape:
        _check_axes(self, y_shape)
        return self._blurs[0].domain_shape(y_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        _check_axes(self, x_shape)
        return self._blurs[0].range_shape(x_shape)

    def _maps(self, like: Tensor, shape: Shape) -> Tensor:
        """Kept for each (size, dtype, device)."""
        h, w = shape[2:]
        return self._memo(
            (h, w, like.real.dtype, like.device),
            lambda: self.maps(h, w).to(like.device, like.real.dtype),
        )


def _check_axes(who: Operator, shape: Shape) -> None:
    if len(shape) != 4:
        raise InputError(f"{who!r} needs images (B, C, H, W), not {tuple(shape)}")


def _bumps(position: Tensor, count: int) -> Tensor:
    """Weights (count, *position) of nodes that stand evenly on [0, 1]; they sum to 1."""
    at = position * (count - 1)
    nodes = torch.arange(count, dtype=torch.float64).reshape(-1, *[1] * position.ndim)
    return torch.cos((at - nodes).abs().clamp(max=1) * (math.pi / 2)).square()


def _sum(parts: Any) -> Tensor:
    total: Tensor | None = None
    for part in parts:  # one addition after the other: the same for any batch
        total = part if total is None else total + part
    assert total is not None
    return total


def _stacked(kernels: object) -> Tensor:
    """One tensor, (K, kh, kw) or (R, S, kh, kw); smaller kernels of a list in the middle of 0."""
    if isinstance(kernels, Sequence) and not isinstance(kernels, str):
        each = [as_kernel(kernel) for kernel in kernels]
        if not each or any(kernel.ndim != 2 for kernel in each):
            raise InputError("kernels: a list of kernels (kh, kw), or one tensor")
        kh, kw = (max(kernel.shape[axis] for kernel in each) for axis in (0, 1))
        stack = torch.zeros(len(each), kh, kw, dtype=torch.float64)
        for out, kernel in zip(stack, each, strict=True):
            _check_odd(kernel)
            h, w = kernel.shape
            top, left = (kh - h) // 2, (kw - w) // 2
            out[top : top + h, left : left + w] = kernel
    else:
        stack = as_kernel(kernels)
    _check_odd(stack)
    return stack


def _check_odd(kernel: Tensor) -> None:
    if any(n % 2 == 0 for n in kernel.shape[-2:]):
        raise InputError(f"kernels must have odd sizes, not {tuple(kernel.shape[-2:])}")


def _as_maps(weights: object) -> Tensor:
    if not isinstance(weights, Tensor):
        raise InputTypeError(f"weights must be 'grid', 'radial' or a tensor, not {weights!r}")
    maps = weights.detach().to("cpu", torch.float64).clone()
    if maps.ndim != 3 or not bool(torch.isfinite(maps).all()):
        raise InputError(f"weights must be finite maps (K, H, W), not {tuple(maps.shape)}")
    return maps


__all__ = ["SpaceVaryingBlur"]
