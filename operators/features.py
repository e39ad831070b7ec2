"""Features of an image as a measurement, so that an edit keeps them or takes another image's over.

With F (B, C, H, W) one layer of an extractor, M = H W, and y the layers' statistics one after the
other, |y - y*|^2 is the weighted sum over the layers of

    statistic          of a layer             its share of |y - y*|^2
    "maps"             F / (|F| sqrt(M))      mean over positions of the squared distance of the
                                              channels, normalised: perceptual distance (Zhang et
                                              al. 2018, without learned weights)
    "gram"             F F' / (2 C M)         style (Gatys et al. 2016), of images of any size
    "moments"          (mean, std) / sqrt(C)  style (Huang & Belongie 2017)
    "self-similarity"  cos(F_i, F_j) / M      structure (Shechtman & Irani 2007, Tumanyan et al.
                                              2022): mean over pairs of positions
    "embedding"        F / |F|, F (B, D)      2 - 2 cos

There is no noise in a feature: the noise that is named to a method is only a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from posterior.errors import InputError, InputTypeError, unknown_name
from posterior.operators._rowwise import by_row
from posterior.operators.base import Operator, check_count, check_image

Statistic = Literal["maps", "gram", "moments", "self-similarity", "embedding"]
Extractor = Callable[[Tensor], "Tensor | Sequence[Tensor]"]

_TINY = 1e-12  # under roots, which have no slope at 0


class FeatureMatch(Operator):
    """y = the statistics of an image's features.

    Args:
        statistic: see the module.
        extractor: images (1, C, H, W) -> one layer or several, differentiable; a module is frozen.
            Default: `SteerableFeatures()`.
        weights: one for each layer, >= 0; default: equal, 1 in all. 0 drops a layer.
        size: the image is brought to this many pixels on its shorter side first.
        mean, std: of each channel in [0, 1], by which the network wants its input normalised; None
            passes x on as it is, in [-1, 1]. Nothing is clamped: a clamp has no gradient.
    """

    def __init__(
        self,
        statistic: Statistic,
        extractor: Extractor | None = None,
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if statistic not in get_args(Statistic):
            raise unknown_name("statistic", str(statistic), get_args(Statistic))
        extractor = SteerableFeatures() if extractor is None else extractor
        if not callable(extractor):
            raise InputTypeError(f"extractor must be callable, not {type(extractor).__name__}")
        if isinstance(extractor, nn.Module):
            extractor.eval().requires_grad_(False)
        if weights is not None and not (weights and min(weights) >= 0 and sum(weights) > 0):
            raise InputError(f"weights are numbers >= 0, not all 0; got {weights}")
        if (mean is None) != (std is None):
            raise InputError("give mean and std together, as the network was trained with")
        self.statistic, self.extractor = statistic, extractor
        self.weights = None if weights is None else tuple(map(float, weights))
        self.size = None if size is None else check_count("size", size, 1)
        self.mean = None if mean is None else torch.tensor(list(mean), dtype=torch.float64)
        self.std = None if std is None else torch.tensor(list(std), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, m)."""
        check_image(self, x)
        return by_row(lambda row, _: self._measured(row), x)

    def _measured(self, x: Tensor) -> Tensor:
        found = self.extractor(self._prepared(x))
        layers = [found] if isinstance(found, Tensor) else list(found)
        weights = self.weights or (1 / len(layers),) * len(layers)
        if len(weights) != len(layers):
            raise InputError(f"{len(weights)} weights for {len(layers)} layers: give one each")
        parts = [
            math.sqrt(w) * _STATISTICS[self.statistic](self._checked(layer)).flatten(1)
            for w, layer in zip(weights, layers, strict=True)
            if w > 0
        ]
        return torch.cat(parts, 1).to(x.dtype)

    def _prepared(self, x: Tensor) -> Tensor:
        if self.size is not None:
            factor = self.size / min(x.shape[-2:])
            sides = [round(side * factor) for side in x.shape[-2:]]
            x = nnf.interpolate(x, sides, mode="bilinear", antialias=True, align_corners=False)
        if self.mean is None or self.std is None:
            return x
        mean, std = (v.to(x).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return ((x + 1) / 2 - mean) / std

    def _checked(self, layer: Tensor) -> Tensor:
        flat = self.statistic == "embedding"
        if layer.ndim != (2 if flat else 4) or layer.shape[0] != 1:
            wanted = "(1, D)" if flat else "(1, C, H, W)"
            raise InputError(
                f'statistic="{self.statistic}" takes layers {wanted}, the extractor gave'
                f" {tuple(layer.shape)}"
            )
        return layer

    def __repr__(self) -> str:
        name = getattr(self.extractor, "__name__", type(self.extractor).__name__)
        return f'FeatureMatch("{self.statistic}", {name})'


def _unit(f: Tensor) -> Tensor:
    """Along the channels, of length 1."""
    return f / (f.square().sum(1, keepdim=True) + _TINY).sqrt()


def _maps(f: Tensor) -> Tensor:
    return _unit(f) / math.sqrt(f[0, 0].numel())


def _gram(f: Tensor) -> Tensor:
    flat = f.flatten(2)
    return flat @ flat.mT / (2 * flat.shape[1] * flat.shape[2])


def _moments(f: Tensor) -> Tensor:
    flat = f.flatten(2)
    mean = flat.mean(2)
    variance = (flat - mean[..., None]).square().mean(2)
    return torch.cat([mean, (variance + _TINY).sqrt()], 1) / math.sqrt(f.shape[1])


def _self_similarity(f: Tensor) -> Tensor:
    flat = _unit(f).flatten(2)
    return flat.mT @ flat / flat.shape[2]


_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "maps": _maps,
    "gram": _gram,
    "moments": _moments,
    "self-similarity": _self_similarity,
    "embedding": _unit,
}


class SteerableFeatures(nn.Module):
    """Colours and oriented edges at several scales: an extractor without weights.

    At each scale the channels themselves, and for each direction a the magnitude of the first
    derivative cos(a) d/dx + sin(a) d/dy of a Gaussian (Freeman & Adelson 1991), rounded off at 0;
    then a binomial filter and half the size.

    Args:
        scales: layers.
        orientations: directions in [0, pi).
    """

    smooth: Tensor
    slope: Tensor

    def __init__(self, scales: int = 4, orientations: int = 4) -> None:
        super().__init__()
        self.scales = check_count("scales", scales, 1)
        count = check_count("orientations", orientations, 1)
        self.angles = [math.pi * k / count for k in range(count)]
        taps = torch.arange(-2.0, 3.0, dtype=torch.float64)
        smooth = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16
        self.register_buffer("smooth", smooth)
        self.register_buffer("slope", taps * smooth / (taps**2 * smooth).sum())

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> for each scale (B, C (1 + orientations), H / 2^k, W / 2^k)."""
        least = 3 * 2 ** (self.scales - 1)
        if min(x.shape[-2:]) < least:
            raise InputError(
                f"{self.scales} scales need an image of at least {least} pixels a side, not"
                f" {x.shape[-2]}x{x.shape[-1]}: take fewer scales"
            )
        layers = []
        for scale in range(self.scales):
            across = _filtered(_filtered(x, self.slope, -1), self.smooth, -2)
            down = _filtered(_filtered(x, self.slope, -2), self.smooth, -1)
            edges = [
                (math.cos(a) * across + math.sin(a) * down).square().add(1e-4).sqrt()
                for a in self.angles
            ]
            layers.append(torch.cat([x, *edges], 1))
            if scale < self.scales - 1:
                x = _filtered(_filtered(x, self.smooth, -1), self.smooth, -2)[..., ::2, ::2]
        return layers


def _filtered(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Each channel correlated with five taps along an axis, mirrored at the border."""
    along = (2, 2, 0, 0) if axis == -1 else (0, 0, 2, 2)
    shape = (1, 1, 1, 5) if axis == -1 else (1, 1, 5, 1)
    planes = nnf.pad(x, along, mode="reflect").flatten(0, 1)[:, None]
    return nnf.conv2d(planes, kernel.to(x).view(shape))[:, 0].unflatten(0, x.shape[:2])
