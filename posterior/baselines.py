"""Classical restorations to stand beside the posterior mean, through scikit-image.

    super-resolution              bicubic interpolation
    inpainting                    biharmonic interpolation
    denoising                     non-local means
    any other linear operator     total variation, min 1/2 |A x - y|^2 + weight TV(x)
    blur, beside total variation  Wiener with a Laplacian prior

Each is told the operator and the noise level, as the posterior is; the few constants were set once,
on photographs, for the best PSNR. They work on (B, C, H, W) in [-1, 1] and on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from posterior import operators
from posterior.errors import InputError
from posterior.operators.base import Operator

Method = Callable[[Tensor, float], Tensor]

_TV_WEIGHT = 3.0  # times the noise variance, of each channel
_TV_STEPS = 60
_NOISELESS = 0.004  # rounding to 8 bits and a little more: the least noise that is assumed


class Baseline(NamedTuple):
    """A classical method for one operator: `restore(y, noise_std)` -> (B, C, H, W)."""

    name: str
    restore: Method


def baseline_for(operator: Operator) -> Baseline | None:
    """The classical method that fits the operator; None where there is none (non-linear ones)."""
    if isinstance(operator, operators.Identity):
        return Baseline("non-local means", lambda y, noise: non_local_means(y, noise))
    if isinstance(operator, operators.Masking):
        return Baseline("biharmonic inpainting", lambda y, noise: biharmonic(y, operator))
    if isinstance(operator, operators.SuperResolution):
        return Baseline("bicubic interpolation", lambda y, noise: bicubic(y, operator))
    if operator.linear and operator.space == "image":
        return Baseline("total variation", lambda y, noise: total_variation(y, operator, noise))
    return None


def bicubic(y: Tensor, operator: Operator) -> Tensor:
    """Keys' bicubic interpolation (a = -1/2, as in Pillow and MATLAB) to the size of x."""
    size = operator.domain_shape(tuple(y.shape))[-2:]
    return torch.nn.functional.interpolate(y, size, mode="bicubic", antialias=True)


def biharmonic(y: Tensor, operator: Operator) -> Tensor:
    """Fill the pixels that the mask hides by a biharmonic surface; leave the others."""
    from skimage.restoration import inpaint_biharmonic

    hidden = operator.restrict(torch.ones_like(y)).eq(0).any(1)

    def fill(image: Any, k: int) -> Any:
        return inpaint_biharmonic(image, hidden[k].numpy(), channel_axis=-1)

    return _per_image(y, fill)


def non_local_means(y: Tensor, noise: float) -> Tensor:
    """Non-local means (Buades et al. 2005) with the noise level known."""
    from skimage.restoration import denoise_nl_means

    std = max(noise, _NOISELESS)

    def denoise(image: Any, k: int) -> Any:
        # a single channel would be dropped with its axis
        grey = image.shape[-1] == 1
        done = denoise_nl_means(
            image[..., 0] if grey else image, h=0.6 * std, sigma=std, patch_size=5,
            patch_distance=7, channel_axis=None if grey else -1,
        )  # fmt: skip
        return done[..., None] if grey else done

    return _per_image(y, denoise)


def total_variation(
    y: Tensor, operator: Operator, noise: float, *, weight: float | None = None
) -> Tensor:
    """min_x 1/2 |A x - y|^2 + weight TV(x) by FISTA (Beck & Teboulle 2009).

    Args:
        y: (B, *range).
        operator: linear, its x an image.
        noise: Gaussian std in the units of y; `weight` is 3 std^2 by default.
        weight: of the total variation of each channel.
    """
    from skimage.restoration import denoise_tv_chambolle

    std = max(noise, _NOISELESS)
    weight = _TV_WEIGHT * std * std if weight is None else weight
    operator = operator.bind(tuple(operator.domain_shape(tuple(y.shape)))[1:])
    step = 1 / _squared_norm(operator, operator.domain_shape(tuple(y.shape)))

    def proximal(image: Any, k: int) -> Any:
        return denoise_tv_chambolle(
            image, weight=step * weight, eps=1e-5, max_num_iter=30, channel_axis=-1
        )

    with torch.no_grad():
        x = ahead = operator.adjoint(y) * step
        momentum = 1.0
        for _ in range(_TV_STEPS):
            gradient = operator.adjoint(operator(ahead) - y)
            new = _per_image(ahead - step * gradient, proximal)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - x)
            x, momentum = new, following
    return x


def wiener(y: Tensor, operator: Operator, noise: float, *, balance: float | None = None) -> Tensor:
    """Wiener deconvolution with a Laplacian prior, on a mirrored border.

    Args:
        y: (B, C, H, W), blurred.
        operator: a shift-invariant blur that keeps the size.
        noise: Gaussian std in the units of y.
        balance: noise variance over the variance of the Laplacian of x.
    """
    from skimage import restoration

    if tuple(operator.domain_shape(tuple(y.shape))) != tuple(y.shape):
        raise InputError("Wiener deconvolution needs a blur that keeps the size of the image")
    border = min(32, *(s - 1 for s in y.shape[-2:]))
    wide = torch.nn.functional.pad(y, (border,) * 4, mode="reflect")
    impulse = torch.zeros(1, y.shape[1], *wide.shape[-2:])
    centre = tuple(s // 2 for s in wide.shape[-2:])
    impulse[..., centre[0], centre[1]] = 1
    response = operator(impulse)[0, 0].double().numpy()
    ratio = 8 * max(noise, _NOISELESS) ** 2 if balance is None else balance

    def deconvolve(image: Any, k: int) -> Any:
        return np.stack(
            [
                restoration.wiener(image[..., c], response, ratio, clip=False)
                for c in range(image.shape[-1])
            ],
            axis=-1,
        )

    return _per_image(wide, deconvolve)[..., border:-border, border:-border]


def _per_image(images: Tensor, function: Callable[[Any, int], Any]) -> Tensor:
    """`function(image (H, W, C) float64, k)` for each of (B, C, H, W)."""
    done = [
        torch.from_numpy(np.ascontiguousarray(function(image.permute(1, 2, 0).numpy(), k)))
        for k, image in enumerate(images.detach().cpu().double())
    ]
    return torch.stack(done).permute(0, 3, 1, 2).to(images)


def _squared_norm(operator: Operator, shape: tuple[int, ...]) -> float:
    """A bound on the largest eigenvalue of A^T A, by the power method."""
    x = torch.ones(1, *shape[1:]) + torch.linspace(-0.1, 0.1, shape[-1])
    for _ in range(12):
        x = operator.take([0]).normal(x)
        size = float(x.norm())
        if size == 0:
            return 1.0
        x = x / size
    return 1.05 * size
