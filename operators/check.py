"""`operators.check(op)`: prints and returns what is wrong with an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posterior import rows, streams
from posterior.errors import InputTypeError
from posterior.operators.base import Operator, check_count

_DOT = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative to |A u| |v|


def check(
    operator: Operator,
    shape: Sequence[int] = (1, 3, 64, 64),
    seed: int = 0,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    verbose: bool = True,
) -> list[str]:
    """What is wrong with `operator` for x of this shape (B, *event): an empty list means nothing.

    Looks at: the result (finite, batch axis, dtype and device of x, x untouched, same twice),
    `range_shape`, rows (alone = in a batch, `take`), the claims: linear (superposition, the dot
    test of `adjoint` and `normal`), differentiable (`vjp` against differences, unless it is a
    surrogate), has_pinv (A A^+ A = A).

    Args:
        operator: what to look at.
        shape: of x; its rows are repeated to three where one row stands for any.
        seed: of the random x.
        dtypes: precisions to try.
        verbose: print the findings.
    """
    if not isinstance(operator, Operator):
        raise InputTypeError(f"check takes an Operator, not {type(operator).__name__}")
    if not isinstance(shape, (tuple, list)):
        raise InputTypeError(f"shape is that of x, such as (1, 3, 64, 64), not {shape!r}")
    sizes = tuple(check_count("shape", size, 1) for size in shape)
    wrong: list[str] = []
    for dtype in dtypes:
        x = streams.normal(seed, "check", torch.zeros(sizes, dtype=dtype))
        found = _Check(operator.bind(sizes[1:]), x, seed).run()
        wrong += [f"{str(dtype).split('.')[-1]}: {what}" for what in found]
    if verbose:
        print(f"{operator!r}: " + ("nothing wrong" if not wrong else f"{len(wrong)} findings"))
        for what in wrong:
            print(f"  {what}")
    return wrong


class _Check:
    """One precision's round."""

    def __init__(self, operator: Operator, x: Tensor, seed: int) -> None:
        self.op, self.x, self.seed = operator, x, seed
        self.wrong: list[str] = []

    def run(self) -> list[str]:
        if not self.attempt("A(x)", self.values):
            return self.wrong
        self.attempt("rows", self.independent_rows)
        self.attempt("range_shape", self.shapes)
        if self.op.linear:
            self.attempt("linear", self.superposition)
            self.attempt("adjoint", self.transpose)
            self.attempt("normal", self.normal)
        if self.op.differentiable and not self.op.surrogate_gradient:
            self.attempt("vjp", self.gradient)
        if self.op.has_pinv:
            self.attempt("pinv", self.pseudo_inverse)
        return self.wrong

    def attempt(self, what: str, step: Callable[[], None]) -> bool:
        before = len(self.wrong)
        try:
            step()
        except Exception as error:  # a finding like any other
            self.wrong.append(f"{what} raises {type(error).__name__}: {error}")
        return len(self.wrong) == before

    def normal_like(self, name: str, like: Tensor) -> Tensor:
        return streams.normal(self.seed, name, like)

    def values(self) -> None:
        before = self.x.clone()
        y = self.op(self.x)
        if not torch.equal(before, self.x):
            self.wrong.append("A(x) changes x in place")
        if not isinstance(y, Tensor) or y.ndim == 0 or y.shape[0] != self.x.shape[0]:
            self.wrong.append(f"A(x) must be one tensor with the batch axis of x, not {_what(y)}")
            return
        if y.real.dtype != self.x.dtype:
            self.wrong.append(f"A(x) is {y.dtype} for x of {self.x.dtype}: dtype follows the input")
        if y.device != self.x.device:
            self.wrong.append(f"A(x) is on {y.device}, x on {self.x.device}")
        if not bool(torch.isfinite(y).all()):
            self.wrong.append("A(x) has NaN or infinite values")
        if not torch.equal(_bits(y), _bits(self.op(self.x))):
            self.wrong.append(
                "A(x) differs when it is called twice: noise is not an operator's part"
            )

    def independent_rows(self) -> None:
        x = (
            self.x
            if self.x.shape[0] > 1
            else self.normal_like("rows", self.x.repeat(3, *_ones(self.x)))
        )
        together = self.op(x)
        for b in range(x.shape[0]):
            alone = self.op.take([b])(x[b : b + 1].clone())
            if not torch.equal(_bits(alone), _bits(together[b : b + 1])):
                size = float((alone - together[b : b + 1]).abs().max())
                self.wrong.append(f"row {b} alone differs from row {b} in a batch, by {size:.1e}")
                return

    def shapes(self) -> None:
        y = self.op(self.x)
        told = tuple(self.op.range_shape(tuple(self.x.shape)))
        if told != tuple(y.shape):
            self.wrong.append(f"range_shape says {told}, A(x) is {tuple(y.shape)}")
        if self.op.linear:
            back = tuple(self.op.domain_shape(tuple(y.shape)))
            if back != tuple(self.x.shape):
                self.wrong.append(f"domain_shape says {back}, x is {tuple(self.x.shape)}")

    def superposition(self) -> None:
        other = self.normal_like("other", self.x)
        left = self.op(2.5 * self.x - other)
        right = 2.5 * self.op(self.x) - self.op(other)
        self.compare("A(2.5 x - z) and 2.5 A(x) - A(z)", left, right, "A is not linear")

    def transpose(self) -> None:
        y = self.op(self.x)
        v = self.normal_like("v", y)
        back = self.op.adjoint(v)
        if back.shape != self.x.shape or back.dtype != self.x.dtype:
            self.wrong.append(
                f"adjoint gives {_what(back)}, x is {_what(self.x)}: the transpose maps y to x"
            )
            return
        left, right = rows.dot(y, v), rows.dot(self.x, back)
        error = (left - right).abs() / (rows.norm(y) * rows.norm(v)).clamp(min=1e-30)
        if float(error.max()) > _DOT[self.x.dtype]:
            self.wrong.append(
                f"adjoint is not the transpose: <A u, v> = {float(left[0]):.6g}, <u, A^T v> ="
                f" {float(right[0]):.6g}, relative error {float(error.max()):.1e}"
            )

    def normal(self) -> None:
        self.compare(
            "normal(x) and adjoint(A(x))",
            self.op.normal(self.x),
            self.op.adjoint(self.op(self.x)),
            "normal is not A^T A",
        )

    def gradient(self) -> None:
        if self.x.dtype != torch.float64:
            return
        y, pull = self.op.vjp(self.x)
        if not torch.equal(_bits(y), _bits(self.op(self.x))):
            size = float((y - self.op(self.x)).abs().max())
            self.wrong.append(f"the value that vjp gives differs from A(x), by {size:.1e}")
        v, direction = self.normal_like("v", y), self.normal_like("direction", self.x)
        step = 1e-5
        difference = self.op(self.x + step * direction) - self.op(self.x - step * direction)
        left = rows.dot(difference / (2 * step), v)
        right = rows.dot(direction, pull(v))
        scale = rows.norm(difference / (2 * step)) * rows.norm(v)
        error = (left - right).abs() / scale.clamp(min=1e-30)
        if float(error.max()) > 1e-5:
            self.wrong.append(
                f"vjp disagrees with differences: {float(right[0]):.6g} against"
                f" {float(left[0]):.6g}, relative error {float(error.max()):.1e}"
            )

    def pseudo_inverse(self) -> None:
        y = self.op(self.x)
        again = self.op(self.op.pinv(y))
        tolerance = 10 * torch.finfo(self.x.dtype).eps ** 0.5
        self.compare("A A^+ A x and A x", again, y, "pinv is not a pseudo-inverse", tolerance)

    def compare(
        self, what: str, left: Tensor, right: Tensor, meaning: str, tolerance: float | None = None
    ) -> None:
        if left.shape != right.shape:
            self.wrong.append(f"{what} differ in shape: {_what(left)}, {_what(right)}")
            return
        if tolerance is None:
            tolerance = _DOT[self.x.dtype]
        size = rows.norm(right).clamp(min=1e-30)
        error = float((rows.norm(left - right) / size).max())
        if not error <= tolerance:
            self.wrong.append(f"{what} differ by {error:.1e}, relatively: {meaning}")


def _ones(x: Tensor) -> tuple[int, ...]:
    return (1,) * (x.ndim - 1)


def _bits(x: Tensor) -> Tensor:
    """Equal where the values are, NaN included."""
    return torch.nan_to_num(torch.view_as_real(x) if x.is_complex() else x, nan=1.2345e30)


def _what(x: object) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
