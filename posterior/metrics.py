"""Scores of images against a reference, per image: (B, C, H, W) in [-1, 1] -> (B,).

Images are clipped to [-1, 1] first, as they are when written to a file, and then mapped to [0, 1]:
the scores are those of the files, before rounding. Nothing is cropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import InputError
from posterior.operators.base import Operator
from posterior.operators.noise import NoiseModel, as_noise_model

SSIM_SMALLEST = 11
"""Side of the smallest image that structural similarity (11x11 Gaussian window) is defined for."""


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all pixels and channels of [0, 1]; inf if equal.

    Args:
        image, reference: (B, C, H, W) in [-1, 1].
    """
    image, reference = _unit(image, reference)
    size = image[0].numel()
    return -10 * torch.log10(rows.total((image - reference) ** 2) / size)


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window 11x11, sigma 1.5), mean of channels.

    Args:
        image, reference: (B, C, H, W) in [-1, 1], at least 11x11.
    """
    image, reference = _unit(image, reference)
    if min(image.shape[-2:]) < SSIM_SMALLEST:
        raise InputError(
            f"structural similarity needs at least {SSIM_SMALLEST}x{SSIM_SMALLEST} pixels, got "
            f"{image.shape[-2]}x{image.shape[-1]}"
        )
    from torchmetrics.functional.image import structural_similarity_index_measure

    score = structural_similarity_index_measure(image, reference, data_range=1.0, reduction="none")
    assert isinstance(score, Tensor)
    return score.reshape(image.shape[0])


def residual(image: Tensor, operator: Operator, y: Tensor, noise: NoiseModel | float) -> Tensor:
    """Root mean square of (y - A(image)) / std over what was observed: about 1 for the truth.

    Args:
        image: (B, *event).
        operator: A.
        y: (B, *range).
        noise: in the units of y; a number is a Gaussian standard deviation.
    """
    return as_noise_model(noise).misfit(y, operator(image), operator)


def _unit(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.ndim != 4 or image.shape != reference.shape:
        raise InputError(
            f"scores compare two (B, C, H, W) of one shape, got {tuple(image.shape)} and "
            f"{tuple(reference.shape)}"
        )
    return tuple(((x.double().clamp(-1, 1) + 1) / 2) for x in (image, reference))  # type: ignore[return-value]
