"""What every operator must satisfy. A new operator writes a factory in `CASES` and gets it all.

A case makes an operator for images of C channels and H x W pixels; `batch` is the number of rows
that its per-measurement parameters are for (1: any).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior import streams
from posterior.operators import (
    Blur,
    ChannelMean,
    ComplexFromChannels,
    GaussianBlur,
    Identity,
    Mask,
    MotionBlur,
    Operator,
    Stack,
    SuperResolution,
    from_callable,
    from_matrix,
)


def normal(shape: tuple[int, ...], name: str = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    """Reproducible standard normal numbers."""
    return streams.normal(0, name, torch.zeros(shape, dtype=dtype))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[int, int, int], Operator]  # (C, H, W) -> operator
    channels: int = 2
    multiple: int = 1  # of height and width
    smallest: int = 1
    batch: int = 3


def _matrix(c: int, h: int, w: int, m: int, dtype: torch.dtype) -> Tensor:
    return normal((m, c * h * w), "matrix", dtype)


def _keep(h: int, w: int) -> Tensor:
    keep = (normal((3, 1, h, w), "mask") > 0).double()
    keep[:, :, 0, 0] = 1
    return keep


def _complex(c: int, h: int, w: int) -> Operator:
    return Blur(normal((3, 3), "k"), "circular") @ ComplexFromChannels()


F, C = torch.float64, torch.complex128
LINEAR = [
    Case("identity", lambda c, h, w: Identity()),
    Case("mask", lambda c, h, w: Mask(keep=_keep(h, w)[0])),
    Case("mask per measurement", lambda c, h, w: Mask(edit=1 - _keep(h, w))),
    Case("mask random", lambda c, h, w: Mask.random(keep_fraction=0.4, seed=3)),
    Case("mask random seeds", lambda c, h, w: Mask.random(keep_fraction=0.4, seed=[3, 4, 5])),
    Case("mask box", lambda c, h, w: Mask.box(size=(h - 1, w // 2)), smallest=2),
    Case("outpaint", lambda c, h, w: Mask.outpaint(margin=(1, 0, 1, 1)), smallest=3),
    *(
        Case(f"gaussian {b}", lambda c, h, w, b=b: GaussianBlur(0.7, b), smallest=7)
        for b in ("reflect", "circular", "valid")
    ),
    Case("gaussian wide", lambda c, h, w: GaussianBlur(3.0)),
    *(
        Case(f"motion {b}", lambda c, h, w, b=b: MotionBlur(5, 30, b), smallest=7)
        for b in ("reflect", "circular", "valid")
    ),
    *(
        Case(f"blur {b}", lambda c, h, w, b=b: Blur(normal((3, 5), "k"), b), smallest=5)
        for b in ("reflect", "circular", "valid")
    ),
    *(
        Case(
            f"blur even {b}",
            lambda c, h, w, b=b: Blur(normal((4, 2), "k"), b, (3, 0), correlation=True),
            smallest=4,
        )
        for b in ("reflect", "circular", "valid")
    ),
    Case("blur wraps", lambda c, h, w: Blur(normal((9, 11), "k"), "circular")),
    Case("blur per measurement", lambda c, h, w: Blur(normal((3, 1, 3, 3), "k")), smallest=3),
    Case("blur per measurement circular", lambda c, h, w: Blur(normal((3, 3, 3), "k"), "circular")),
    *(
        Case(f"super {k}", lambda c, h, w, k=k: SuperResolution(3, k), multiple=3)
        for k in ("average", "bicubic", "bicubic-matlab")
    ),
    Case("super kernel", lambda c, h, w: SuperResolution(2, normal((4, 5), "k")), 2, 2, 6),
    Case("channel mean", lambda c, h, w: ChannelMean(c), 3),
    Case("matrix", lambda c, h, w: from_matrix(_matrix(c, h, w, 7, F), (c, h, w))),
    Case("matrix complex", lambda c, h, w: from_matrix(_matrix(c, h, w, 3, C), (c, h, w))),
    Case(
        "matrix complex domain",
        lambda c, h, w: (
            from_matrix(_matrix(c // 2, h, w, 3, C), (c // 2, h, w), complex_domain=True)
            @ ComplexFromChannels()
        ),
    ),
    Case("complex channels", lambda c, h, w: ComplexFromChannels()),
    Case("complex blur", _complex, smallest=3),
    Case(
        "mask of average", lambda c, h, w: Mask.box(size=1) @ SuperResolution(2, "average"), 2, 2, 4
    ),
    Case("blur, then grey", lambda c, h, w: ChannelMean(c) @ GaussianBlur(1.0), 3),
    Case("stack", lambda c, h, w: Stack([GaussianBlur(1.0), ChannelMean(c)]).bind((c, h, w))),
    Case(
        "stack mixed",
        lambda c, h, w: Stack([_complex(c, h, w), Identity()]).bind((c, h, w)),
        smallest=3,
    ),
    Case(
        "stack per measurement",
        lambda c, h, w: Stack([Mask(keep=_keep(h, w)), Identity()]).bind((c, h, w)),
    ),
    Case(
        "callable linear",
        lambda c, h, w: from_callable(lambda x: x.cumsum(-1), linear=True).bind((c, h, w)),
    ),
    Case(
        "callable pair",
        lambda c, h, w: from_callable(lambda x: 2 * x.flip(-1), adjoint=lambda y: 2 * y.flip(-1)),
    ),
]
NONLINEAR = [
    Case("callable", lambda c, h, w: from_callable(lambda x: x.tanh() ** 2, differentiable=True)),
    Case(
        "callable of blur",
        lambda c, h, w: (
            from_callable(lambda x: (x * x).sum(-1), differentiable=True) @ GaussianBlur(0.5)
        ),
    ),
    Case(
        "stack nonlinear",
        lambda c, h, w: Stack(
            [Identity(), from_callable(lambda x: x.sin(), differentiable=True)]
        ).bind((c, h, w)),
    ),
]
BLACK = [Case("black box", lambda c, h, w: from_callable(lambda x: x.abs().numpy()))]
ALL = LINEAR + NONLINEAR + BLACK
