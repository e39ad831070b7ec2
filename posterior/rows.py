"""Arithmetic over rows (the batch axis) whose result for one row does not depend on the others.

A row is a draw, and a draw must be the same bit for bit alone and in a batch of 64. Elementwise
`+ - * /` and `sqrt` are correctly rounded and safe; `exp`, `log`, `log1p`, `expm1`, `sin`, `cos`,
`tanh`, `erf`, `erfinv` and `softmax`, `logsumexp` over the last axis are safe as measured, but
`pow`, `sigmoid`, `exp2`, `atan2` and `silu` differ in the last bit between the vectorised body of a
tensor and its tail: write them with `exp` and `log`. Reductions and matrix products are not: torch
chooses their summation order by the shape of the whole tensor. Everything in the library that sums
over an event or multiplies rows by a matrix goes through this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from posterior.errors import CapabilityError

_BLOCK = 1024  # elements summed in one go
_PAD = 16  # the sizes of a product are padded to multiples of this


def expand(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A per-row value (B,) as (B, 1, ..., 1) beside `like` (B, *event); a number stays a number."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.reshape(-1, *([1] * (like.ndim - 1)))


def total(x: Tensor) -> Tensor:
    """Sum over the event: (B, *event) -> (B,).

    In two stages of fixed length, because torch splits one long sum over threads when, and only
    when, there is a single row.
    """
    x = x.flatten(1) if x.ndim > 1 else x[:, None]
    while x.shape[1] > 1:
        short = -x.shape[1] % _BLOCK if x.shape[1] > _BLOCK else 0
        if short:
            x = pad(x, (0, short))
        block = min(_BLOCK, x.shape[1])
        x = x.reshape(x.shape[0], x.shape[1] // block, block).sum(-1)
    return x[:, 0] if x.shape[1] else x.new_zeros(x.shape[0])


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Re<u, v> for each row: (B, *event), (B, *event) -> (B,), real."""
    if u.is_complex() or v.is_complex():
        u, v = torch.view_as_real(u + 0j), torch.view_as_real(v + 0j)
    return total(u * v)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each row: (B, *event) -> (B,), real."""
    return dot(x, x).sqrt()


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """Rows times a matrix: (B, d) @ (d, m) -> (B, m), differentiable in x.

    All three sizes are padded to multiples of 16 and the matrix is laid out contiguously: the
    tails of the matrix kernels, and their transposed forms, sum in an order that depends on the
    row's place (measured; a test gates it). The gradient is the same product with the transpose.
    """
    if matrix.requires_grad:
        raise CapabilityError("rows.matmul differentiates in the rows only, not in the matrix")
    if x.requires_grad and torch.is_grad_enabled():
        return _Product.apply(x, matrix)  # type: ignore[no-untyped-call]  # torch's
    return _product(x, matrix)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return _product(x, matrix)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        return matmul(grads[0], matrix.mH), None


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    count, (d, m) = x.shape[0], matrix.shape
    return (_padded(x, count, d) @ _padded(matrix.resolve_conj(), d, m))[:count, :m]


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    below, right = -rows % _PAD, -columns % _PAD
    return (pad(x, (0, right, 0, below)) if below or right else x).contiguous()


def power(x: Tensor, exponent: int) -> Tensor:
    """`x` to a whole power >= 0 by repeated squaring, element by element."""
    out = torch.ones_like(x)
    while exponent:
        if exponent & 1:
            out = out * x
        x, exponent = x * x, exponent >> 1
    return out


def largest(x: Tensor) -> Tensor:
    """The largest modulus in each row, of complex numbers that of a real or imaginary part.

    (B, *event) -> (B,); 0 for no elements, and not finite where an element is not.
    """
    parts = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return parts.abs().flatten(1).amax(1) if parts.numel() else parts.new_zeros(x.shape[0])


def finite(x: Tensor) -> Tensor:
    """Whether every element of a row is finite: (B, *event) -> (B,) bool."""
    if not (x.is_floating_point() or x.is_complex()):
        return torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    return torch.isfinite(largest(x))  # an eighth of the time of isfinite everywhere


def where(rows: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """`x` in the rows that are True, `other` elsewhere: (B,), (B, *event), (B, *event)."""
    if rows.device.type == "cpu" and bool(rows.all()):  # elsewhere a look would wait for the device
        return x
    return torch.where(rows.reshape(-1, *([1] * (x.ndim - 1))), x, other)
