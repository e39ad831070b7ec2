"""How noisy is a measured image? The standard deviation of white Gaussian noise, from y alone.

Small patches of a photograph lie near a space of few dimensions; white noise fills all of them. So
the smallest eigenvalues of the patches' covariance are the noise variance: sort the eigenvalues and
drop the largest until the mean of the rest equals their median (Chen, Zhu, Heng, "An efficient
statistical method for image noise level estimation", ICCV 2015). Patches span the channels, and
only patches without a hole count, so the same rule serves photographs, grey images, blurs, small
images and masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators.base import Operator

_PATCHES = ((5, 5), (4, 4), (3, 3), (2, 3), (2, 2), (1, 3))
_MOST = 200_000  # patches are thinned to about this many


@dataclass(frozen=True)
class NoiseEstimate:
    """An estimated standard deviation, in the units of y, and what it rests on.

    Attributes:
        std: Gaussian noise per value of y.
        patches: how many whole patches were used.
        how: one sentence for a report.
    """

    std: float
    patches: int
    how: str


def estimate_noise(
    y: Tensor, operator: Operator | None = None, *, smallest: float = 0.0
) -> NoiseEstimate:
    """Estimate the std of white Gaussian noise in a measured image.

    Within about 10 % on colour photographs of some size, and better on blurred ones. It takes fine
    random texture for noise: small grey images, where texture is all there is, can come out at
    several times the truth. It is blind to noise that a camera has smoothed away.

    Args:
        y: (B, C, H, W), real; the B images share one noise level.
        operator: tells which pixels were observed.
        smallest: a floor, such as the rounding of 8-bit files.

    Raises:
        InputError: y is not a real image, or too few neighbouring pixels of it were observed.
    """
    if y.is_complex() or y.ndim != 4 or y.shape[1] not in (1, 3) or min(y.shape[-2:]) < 8:
        what = f"{'complex ' if y.is_complex() else ''}shape {tuple(y.shape)}"
        raise InputError(
            f"the noise can only be estimated from images of at least 8x8 pixels, not from {what}:"
            " give noise="
        )
    seen = _observed(y, operator)
    for size in _PATCHES:
        patches = _whole_patches(y, seen, size)
        if patches.shape[0] >= _enough(patches.shape[1]):
            std = _noise_std(patches, y.shape[1])
            how = f"estimated from {patches.shape[0]} patches of {size[0]}x{size[1]} pixels"
            if std < smallest:
                std, how = smallest, how + ", raised to the rounding of the file"
            return NoiseEstimate(std, patches.shape[0], how)
    raise InputError(
        f"too few neighbouring pixels were observed ({float(seen.double().mean()):.1%} of "
        f"{y.shape[-1]}x{y.shape[-2]}) to estimate the noise: give noise="
    )


def _enough(dimension: int) -> int:
    """Patches that the eigenvalues of a covariance of this dimension need."""
    return dimension * min(dimension, 30)


def _observed(y: Tensor, operator: Operator | None) -> Tensor:
    """(B, H, W) bool: the pixels of y that were measured."""
    if operator is None:
        return torch.ones_like(y[:, 0], dtype=torch.bool)
    return (operator.restrict(torch.ones_like(y)) != 0).all(1)


def _whole_patches(y: Tensor, seen: Tensor, size: tuple[int, int]) -> Tensor:
    """The patches without a hole, (N, C * area), float64."""
    height, width = size
    whole = seen.unfold(1, height, 1).unfold(2, width, 1).flatten(3).all(-1)
    patches = y.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    index = whole.nonzero()
    index = index[:: max(1, -(-index.shape[0] // _MOST))]
    return patches[index[:, 0], index[:, 1], index[:, 2]].flatten(1).double()


def _noise_std(patches: Tensor, channels: int) -> float:
    """Three rounds: each keeps the patches that are no rougher than noise of the last estimate."""
    patches = patches - patches.unflatten(1, (channels, -1)).mean(2).repeat_interleave(
        patches.shape[1] // channels, 1
    )
    freedom = patches.shape[1] - channels
    roughness = patches.square().sum(1)
    variance = _noise_variance(patches, channels)
    for _ in range(3):
        quiet = roughness < variance * (freedom + 3 * math.sqrt(2 * freedom))
        if int(quiet.sum()) < _enough(patches.shape[1]):
            break
        variance = _noise_variance(patches[quiet], channels)
    return math.sqrt(max(variance, 0.0))


def _noise_variance(patches: Tensor, channels: int) -> float:
    values = torch.linalg.eigvalsh(torch.cov(patches.T))[channels:]  # ascending; means removed
    for count in range(len(values), 1, -1):
        kept = values[:count]
        if kept.mean() <= kept.quantile(0.5):
            return float(kept.mean())
    return float(values[0])
