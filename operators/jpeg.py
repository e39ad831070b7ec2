"""JPEG: the decoded image of the file that a JPEG encoder makes of x.

Two things go by this name, and each is used where it is right:

    simulate   Pillow's encoder and decoder, the real thing; what a simulation degrades with
    forward    the same in torch, with a gradient; what guidance compares y with

>>> jpeg = JPEG(quality=10)
>>> y = jpeg.simulate(x)       # or a photograph.jpg as it is: y is the decoded image
>>> value, pull = jpeg.vjp(x)

The steps (ITU-T T.81 and T.871; the details of libjpeg where they are free): 8 bits; YCbCr; for
"4:2:0" means of 2 x 2 pixels of both chroma planes; blocks of 8 x 8, the last ones continued by
their border pixels; DCT; rounding to multiples of a quantisation table; the inverse DCT; chroma
planes enlarged with weights (3, 1) / 4 along both axes; RGB. `forward` makes libjpeg's roundings in
all of these, but its cosine transforms are exact where libjpeg's are in integers: the result is
that of Pillow to a level or two of 255, except in a block where a coefficient lay on the edge
between two multiples and fell on the other side.

Gradient, by `rounding`:

    "straight-through"   every rounding counts as the identity (Bengio, Leonard, Courville, arXiv
                         1308.3432), a clip to 0 .. 255 as itself. So pull(r) is r, with its colour
                         averaged where chroma was; what DDRM for JPEG does by hand (Kawar, Song,
                         Ermon, Elad, arXiv 2209.11888). `forward` is exact; not its derivative.
    "smooth"             the rounding of coefficients becomes t - sin(2 pi t) / (2 pi), nothing else
                         is rounded or clipped, and `vjp` is the true derivative of that `forward`.
                         Only about right: a coefficient is off by up to 1 / (2 pi) = 0.16 steps.
                         (After Shin and Song, "JPEG-resistant adversarial images", 2017, whose
                         cubic has jumps.)

Not linear, no pseudo-inverse. Methods: those that take a gradient of the operator, and the
derivative-free ones. A JPEG file has no noise but its rounding, and `forward` reproduces it at the
true x; a small noise such as 0.02 says how closely y is to be matched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators._rowwise import Memo, by_row
from posterior.operators.base import Operator, Shape, check_choice, check_count, check_image

SUBSAMPLING = ("4:2:0", "4:4:4")
ROUNDING = ("straight-through", "smooth")

# ITU-T T.81, tables K.1 and K.2
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
_BITS = 65536  # libjpeg's colour constants have 16 binary digits


def quantisation_tables(quality: int) -> tuple[Tensor, Tensor]:
    """The tables of luminance and chrominance (8, 8) of libjpeg's `quality`, int64."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luminance, chrominance = (
        ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255)
        for table in (_LUMINANCE, _CHROMINANCE)
    )
    return luminance, chrominance


@dataclass(frozen=True, eq=False, repr=False)
class JPEG(Operator):
    """The decoded JPEG of x, (B, 1 or 3, H, W): `simulate` by Pillow, `forward` with a gradient.

    Args:
        quality: 1 to 100, as in Pillow and libjpeg.
        subsampling: of colour, "4:2:0" (Pillow's default) or "4:4:4" (none).
        rounding: "straight-through" or "smooth", the gradient of guidance; see the module.
    """

    quality: int
    subsampling: str = "4:2:0"
    rounding: str = "straight-through"
    _memo: Memo = field(default_factory=Memo, init=False)

    units = "image"

    def __post_init__(self) -> None:
        quality = check_count("quality", self.quality, 1)
        if quality > 100:
            raise InputError(f"quality must be between 1 and 100, not {quality}")
        object.__setattr__(self, "quality", quality)
        check_choice("subsampling", self.subsampling, SUBSAMPLING)
        check_choice("rounding", self.rounding, ROUNDING)
        object.__setattr__(self, "surrogate_gradient", self.rounding == "straight-through")

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        codec = self._memo(
            (x.dtype, x.device),
            lambda: _Codec.of(self.quality, self.rounding == "smooth", x),
        )
        halved = self.subsampling == "4:2:0"
        return by_row(lambda row, _: codec.decoded(row, halved), x)

    def simulate(self, x: Tensor) -> Tensor:
        """Encoded and decoded by Pillow."""
        self._check(x)
        return by_row(lambda row, _: self._by_pillow(row), x)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        return x_shape

    def __repr__(self) -> str:
        words = super().__repr__().removesuffix(")")
        shown = "" if self.rounding == "smooth" else ", rounding='straight-through'"
        return f"{words}{shown})"  # what guidance follows is always said

    def _check(self, x: Tensor) -> None:
        check_image(self, x)
        if x.is_complex() or x.shape[1] not in (1, 3):
            raise InputError(f"{self!r} needs real grey or RGB images, not {tuple(x.shape)}")

    def _by_pillow(self, row: Tensor) -> Tensor:
        import numpy as np
        from PIL import Image

        levels = _levels(row)[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy()
        image = Image.fromarray(levels if row.shape[1] == 3 else levels[:, :, 0])
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=self.quality, subsampling=self.subsampling)
        with Image.open(file) as decoded:
            back = torch.from_numpy(np.array(decoded)).reshape(levels.shape)
        return back.permute(2, 0, 1)[None].to(row.device, row.dtype) / 127.5 - 1


def _levels(x: Tensor) -> Tensor:
    """The nearest of 0 .. 255."""
    return ((x + 1) * 127.5).clamp(0, 255).round()


class _StraightThrough(torch.autograd.Function):
    """f(t) with the gradient of t."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return f(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _straight_through(t: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    return _StraightThrough.apply(t, f)  # type: ignore[no-untyped-call]  # torch's


def _whole(t: Tensor, bias: float | Tensor = 0.5) -> Tensor:
    """floor(t + bias): rounding for 1/2."""
    return _straight_through(t, lambda v: (v + bias).floor())


def _nearest(t: Tensor) -> Tensor:
    """The nearest integer, halves away from 0, whatever the rounding errors of the transform.

    Sums of pixels often lie on halves exactly; without the margin they would fall as they like.
    """
    return _straight_through(t, lambda v: v.sign() * (v.abs() + (0.5 + 1e-3)).floor())


def _wavy(t: Tensor) -> Tensor:
    """Steps without edges: flat at the integers, steepest between them."""
    return t - torch.sin(2 * math.pi * t) / (2 * math.pi)


@dataclass(frozen=True)
class _Codec:
    """The path of one image (1, C, H, W) through encoder and decoder.

    Args:
        smooth: wavy rounding of the coefficients, and no other rounding and no clip.
        cosines: (8, 8), cos((2 x + 1) u pi / 16) at [u, x].
        scales: (8, 8), the DCT's factors c_u c_v / 4.
        tables: quantisation of luminance and chrominance, (8, 8) each.
    """

    smooth: bool
    cosines: Tensor
    scales: Tensor
    tables: tuple[Tensor, Tensor]

    @staticmethod
    def of(quality: int, smooth: bool, like: Tensor) -> _Codec:
        n = torch.arange(8, dtype=torch.float64)
        cosines = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16)
        weight = torch.ones_like(n)
        weight[0] = math.sqrt(0.5)
        scales = torch.outer(weight, weight) / 4
        scales[0, 0] = 1 / 8  # exactly: the mean of a flat block lies on edges of the rounding
        luminance, chrominance = (
            t.to(like.device, like.dtype) for t in quantisation_tables(quality)
        )
        cosines, scales = (m.to(like.device, like.dtype) for m in (cosines, scales))
        return _Codec(smooth, cosines, scales, (luminance, chrominance))

    def decoded(self, x: Tensor, halved: bool) -> Tensor:
        """x in [-1, 1], also on the way out; `halved` for 4:2:0."""
        planes = (x + 1) * 127.5
        if not self.smooth:
            planes = _straight_through(planes.clamp(0, 255), torch.round)
        if x.shape[1] == 1:
            return self._compressed(planes, 0) / 127.5 - 1
        luma, blue, red = self._to_ycc(planes)
        luma = self._compressed(luma, 0)
        blue, red = (self._chroma(plane, halved) - 128 for plane in (blue, red))
        return self._to_rgb(luma, blue, red) / 127.5 - 1

    def _whole(self, t: Tensor, bias: float | Tensor = 0.5) -> Tensor:
        return t if self.smooth else _whole(t, bias)

    def _clipped(self, t: Tensor) -> Tensor:
        return t if self.smooth else t.clamp(0, 255)

    def _to_ycc(self, rgb: Tensor) -> list[Tensor]:
        out = []
        for weights, bias in (
            ((19595, 38470, 7471), 0.5),  # 0.299, 0.587, 0.114
            ((-11059, -21709, 32768), 0.5 - 1 / _BITS),  # libjpeg keeps 255.5 below 256
            ((32768, -27439, -5329), 0.5 - 1 / _BITS),
        ):
            mixed = sum(w / _BITS * rgb[:, c : c + 1] for c, w in enumerate(weights))
            assert isinstance(mixed, Tensor)
            out.append(self._whole(mixed if bias == 0.5 else mixed + 128, bias))
        return out

    def _to_rgb(self, luma: Tensor, blue: Tensor, red: Tensor) -> Tensor:
        green = self._whole(-0.344136286 * blue - 0.714136286 * red)
        more_red, more_blue = self._whole(1.402 * red), self._whole(1.772 * blue)
        return self._clipped(torch.cat([luma + more_red, luma + green, luma + more_blue], dim=1))

    def _chroma(self, plane: Tensor, halved: bool) -> Tensor:
        if not halved:
            return self._compressed(plane, 1)
        h, w = plane.shape[2:]
        small_h, small_w = -(-h // 2), -(-w // 2)
        # columns are continued before the means are taken, rows after
        wide = _continued(plane, h % 2, -w % 16)
        four = wide[:, :, ::2] + wide[:, :, 1::2]
        four = four[..., ::2] + four[..., 1::2]
        alternating = torch.tensor([0.25, 0.5], dtype=plane.dtype, device=plane.device)
        mean = self._whole(four / 4, alternating.repeat(four.shape[-1] // 2))
        small = self._compressed(mean, 1)[:, :, :small_h, :small_w]
        return self._doubled(small)[:, :, :h, :w]

    def _doubled(self, plane: Tensor) -> Tensor:
        """Twice as large, by weights of 3/4 and 1/4; planes up to 2 wide repeat their pixels."""
        if plane.shape[3] <= 2:
            return plane.repeat_interleave(2, 2).repeat_interleave(2, 3)
        above = torch.cat([plane[:, :, :1], plane[:, :, :-1]], dim=2)
        below = torch.cat([plane[:, :, 1:], plane[:, :, -1:]], dim=2)
        tall = torch.stack([3 * plane + above, 3 * plane + below], dim=3).flatten(2, 3)
        left = torch.cat([tall[..., :1], tall[..., :-1]], dim=3)
        right = torch.cat([tall[..., 1:], tall[..., -1:]], dim=3)
        one, other = 3 * tall + left, 3 * tall + right
        both = self._whole(one / 16, 8 / 16), self._whole(other / 16, 7 / 16)
        return torch.stack(both, dim=4).flatten(3, 4)

    def _compressed(self, plane: Tensor, table: int) -> Tensor:
        """A plane of levels (1, 1, h, w), quantised in blocks, as levels again."""
        h, w = plane.shape[2:]
        whole = _continued(plane - 128, -h % 8, -w % 8)
        rows, columns = whole.shape[2] // 8, whole.shape[3] // 8
        blocks = whole.reshape(rows, 8, columns, 8).transpose(1, 2)
        steps = self.tables[table]
        coefficient = self.cosines @ blocks @ self.cosines.T * self.scales / steps
        kept = _wavy(coefficient) if self.smooth else _nearest(coefficient)
        blocks = self.cosines.T @ (kept * steps * self.scales) @ self.cosines
        back = blocks.transpose(1, 2).reshape(1, 1, 8 * rows, 8 * columns)[:, :, :h, :w]
        return self._clipped(self._whole(back + 128))


def _continued(plane: Tensor, below: int, right: int) -> Tensor:
    """The last row and column repeated. By `cat`, whose gradient sums in a fixed order."""
    if below:
        plane = torch.cat([plane, plane[:, :, -1:].expand(-1, -1, below, -1)], dim=2)
    if right:
        plane = torch.cat([plane, plane[..., -1:].expand(-1, -1, -1, right)], dim=3)
    return plane


__all__ = ["JPEG", "quantisation_tables"]
