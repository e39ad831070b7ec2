"""What the networks of ADM and EDM share: the embedding of time, and attention over pixels."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor

Order = Literal["head", "kind", "channel"]


def sinusoids(time: Tensor, width: int, last: bool = False) -> Tensor:
    """cos and sin of time at frequencies 1 to 1/10000, evenly in the logarithm: (B,) -> (B, width).

    Args:
        time: (B,), in the dtype to compute in.
        width: even, or the last column is zero.
        last: 1/10000 itself is the last frequency; otherwise it would be the next one.
    """
    half = width // 2
    steps = torch.arange(half, dtype=time.dtype, device=time.device)
    frequencies = torch.exp(-math.log(10000) * steps / (half - 1 if last else half))
    angle = time[:, None] * frequencies
    return nnf.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, width % 2))


def attend(qkv: Tensor, heads: int, order: Order) -> Tensor:
    """Softmax attention of pixels: (B, pixels, 3 C) -> (B, pixels, C).

    Args:
        qkv: queries, keys and values of all heads in the last axis.
        heads: their number.
        order: how that axis is laid out: by "head", each with its q, k and v; by "kind", all
            heads' q, then k, then v; or by head with q, k, v of a "channel" side by side.
    """
    batch, pixels, width = qkv.shape
    each = width // (3 * heads)
    if order == "head":
        parts = qkv.view(batch, pixels, heads, 3, each).permute(3, 0, 2, 1, 4)
    elif order == "kind":
        parts = qkv.view(batch, pixels, 3, heads, each).permute(2, 0, 3, 1, 4)
    else:
        parts = qkv.view(batch, pixels, heads, each, 3).permute(4, 0, 2, 1, 3)
    q, k, v = parts.unbind(0)  # (B, heads, pixels, each)
    out = nnf.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(batch, pixels, heads * each)


def pixels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C); a view where x is channels-last."""
    return x.flatten(2).transpose(1, 2)


def image_like(tokens: Tensor, x: Tensor) -> Tensor:
    """(B, H W, C) -> (B, C, H, W) of the size of x, channels last."""
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class UNetSizes(Protocol):
    """What the architectures of both have in common."""

    @property
    def channels(self) -> int:
        """Of an image."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""

    @property
    def blocks(self) -> int:
        """Residual blocks of a level on the way down; one more on the way up."""

    @property
    def attention(self) -> tuple[bool, ...]:
        """Whether a level attends."""


def held(sizes: UNetSizes, dtype: torch.dtype) -> int:
    """Memory per element of an image that the graph of a gradient holds, in bytes.

    Counted (and measured to hold within 20 %): a residual block keeps 3 tensors of its input's
    width and 3 of its output's, attention 6 of its width.
    """
    pixels = 0.0
    for level, (width, attends) in enumerate(zip(sizes.widths, sizes.attention, strict=True)):
        down, up = sizes.blocks, sizes.blocks + 1  # on the way up with the kept one beside
        each = 6 * down + 9 * up + (6 * (down + up) if attends else 0)
        if level:  # the blocks between two levels work at the finer one in part
            pixels += (4 * width + 2 * sizes.widths[level - 1]) / 4 ** (level - 1)
        pixels += width * each / 4**level
    deepest = sizes.widths[-1] / 4 ** (len(sizes.widths) - 1)
    pixels += 18 * deepest + 3 * sizes.widths[0]
    return round(pixels * dtype.itemsize / sizes.channels)
