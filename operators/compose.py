"""Operators made of operators: composition, and several measurements of the same x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator, Pull, Shape, common_units


class Compose(Operator):
    """(A @ B)(x) = A(B(x)), with the capabilities that both leave.

    The pseudo-inverse is B^+ A^+ where that is exact: where B has orthonormal rows or A orthonormal
    columns, up to a number.
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if not isinstance(outer, Operator) or not isinstance(inner, Operator):
            raise InputTypeError("only operators compose: wrap a function with from_callable")
        if outer.space == "latent" and inner.space == "image":
            raise CapabilityError(f"{outer!r} takes a latent, {inner!r} gives an image")
        self.outer, self.inner = outer, inner
        self.linear = outer.linear and inner.linear
        self.differentiable = outer.differentiable and inner.differentiable
        self.surrogate_gradient = outer.surrogate_gradient or inner.surrogate_gradient
        self.adjoint_gradient = outer.adjoint_gradient and inner.adjoint_gradient
        self.orthonormal_rows = outer.orthonormal_rows and inner.orthonormal_rows
        self.orthonormal_columns = outer.orthonormal_columns and inner.orthonormal_columns
        exact = inner.orthonormal_rows or outer.orthonormal_columns
        self.has_pinv = exact and outer.has_pinv and inner.has_pinv
        self.space = inner.space
        self.units = inner.units if outer.units == "kept" else outer.units

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def simulate(self, x: Tensor) -> Tensor:
        return self.outer.simulate(self.inner.simulate(x))

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        z, pull_inner = self.inner.vjp(x)
        y, pull_outer = self.outer.vjp(z)
        return y, lambda u: pull_inner(pull_outer(u))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def pinv(self, y: Tensor) -> Tensor:
        if not self.has_pinv:
            raise CapabilityError(f"{self!r} has no pseudo-inverse")
        return self.inner.pinv(self.outer.pinv(y))

    def normal(self, x: Tensor) -> Tensor:
        if not self.linear:
            return super().normal(x)
        z, pull = self.inner.vjp(x)
        return pull(self.outer.normal(z))

    def restrict(self, y: Tensor) -> Tensor:
        return self.outer.restrict(y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return self.inner.domain_shape(self.outer.domain_shape(y_shape))

    def range_shape(self, x_shape: Shape) -> Shape:
        if type(self.outer).range_shape is Operator.range_shape:
            return super().range_shape(x_shape)  # what the inner one gives may be complex
        return self.outer.range_shape(self.inner.range_shape(x_shape))

    def take(self, index: Sequence[int]) -> Compose:
        return Compose(self.outer.take(index), self.inner.take(index))

    def bind(self, event_shape: Shape) -> Compose:
        between = self.inner.range_shape((1, *event_shape))[1:]
        return Compose(self.outer.bind(between), self.inner.bind(event_shape))

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"


class Stack(Operator):
    """Several measurements of the same x as one tensor (B, m); `split` takes it apart again.

    Real measurements give real entries; complex ones complex entries if all are complex. A mixture
    is real: a complex number is then two entries, its real and imaginary part, so that Re<u, v> and
    the standard deviation of noise (per real component) mean the same in both forms.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        operators = tuple(operators)
        if not operators:
            raise InputError("Stack needs at least one operator")
        if not all(isinstance(op, Operator) for op in operators):
            raise InputTypeError("Stack takes a list of operators")
        if len({op.space for op in operators}) > 1:
            raise CapabilityError("Stack: all operators must take images, or all latents")
        self.operators = operators
        self.linear = all(op.linear for op in operators)
        self.differentiable = all(op.differentiable for op in operators)
        self.surrogate_gradient = any(op.surrogate_gradient for op in operators)
        self.space = operators[0].space
        self.units = common_units(operators)
        self._event: Shape | None = None
        self._layouts: dict[tuple[int, bool], set[_Layout]] = {}  # those seen, by (m, complex)

    def forward(self, x: Tensor) -> Tensor:
        return self._join([op(x) for op in self.operators], tuple(x.shape[1:]))

    def simulate(self, x: Tensor) -> Tensor:
        return self._join([op.simulate(x) for op in self.operators], tuple(x.shape[1:]))

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurements of the parts: [(B, *range_1), (B, *range_2), ...]."""
        layout = self._layout(tuple(y.shape), y.is_complex())
        out, start = [], 0
        for shape, is_complex in layout.parts:
            pairs = is_complex and not y.is_complex()
            size = math.prod(shape) * (2 if pairs else 1)
            part = y[:, start : start + size]
            start += size
            if pairs:
                part = torch.view_as_complex(part.reshape(y.shape[0], size // 2, 2).contiguous())
            out.append(part.reshape(y.shape[0], *shape))
        return out

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        pairs = [op.vjp(x) for op in self.operators]
        y = self._join([y for y, _ in pairs], tuple(x.shape[1:]))
        return y, lambda u: _sum(
            [pull(part) for (_, pull), part in zip(pairs, self.split(u), strict=True)]
        )

    def adjoint(self, y: Tensor) -> Tensor:
        if not self.linear:
            raise CapabilityError(f"{self!r} is not linear: it has no adjoint")
        return _sum([op.adjoint(p) for op, p in zip(self.operators, self.split(y), strict=True)])

    def normal(self, x: Tensor) -> Tensor:
        return _sum([op.normal(x) for op in self.operators])

    def restrict(self, y: Tensor) -> Tensor:
        return _flat([op.restrict(p) for op, p in zip(self.operators, self.split(y), strict=True)])

    def domain_shape(self, y_shape: Shape) -> Shape:
        events = {
            layout.event
            for key in self._layouts
            for layout in self._layouts[key]
            if key[0] == y_shape[1]
        }
        if self._event is not None:
            events = {self._event}
        if len(events) != 1:
            raise CapabilityError("a Stack knows the shape of x when it was called or bound once")
        return (y_shape[0], *events.pop())

    def range_shape(self, x_shape: Shape) -> Shape:
        with torch.no_grad():
            y = self.take([0])(torch.zeros(1, *x_shape[1:]))
        return (x_shape[0], y.shape[1])

    def take(self, index: Sequence[int]) -> Stack:
        out = Stack([op.take(index) for op in self.operators])
        out._layouts, out._event = self._layouts, self._event
        return out

    def bind(self, event_shape: Shape) -> Stack:
        out = Stack([op.bind(event_shape) for op in self.operators])
        out._event = tuple(event_shape)
        out.range_shape((1, *event_shape))  # remembers the layout
        return out

    def _join(self, parts: list[Tensor], event: Shape) -> Tensor:
        y = _flat(parts)
        layout = _Layout(event, tuple((tuple(p.shape[1:]), p.is_complex()) for p in parts))
        self._layouts.setdefault((y.shape[1], y.is_complex()), set()).add(layout)
        return y

    def _layout(self, y_shape: Shape, is_complex: bool) -> _Layout:
        if len(y_shape) != 2:
            raise InputError(f"the measurement of a Stack is (B, m), not {y_shape}")
        seen = self._layouts.get((y_shape[1], is_complex), set())
        if self._event is not None:
            seen = {layout for layout in seen if layout.event == self._event}
        if len(seen) != 1:
            what = "several shapes of x give" if seen else "no x so far has given"
            raise CapabilityError(
                f"{what} {y_shape[1]} numbers: bind the Stack to the shape of x first,"
                " stack.bind((C, H, W)), or call it"
            )
        return next(iter(seen))

    def __repr__(self) -> str:
        return f"Stack({list(self.operators)!r})"


@dataclass(frozen=True)
class _Layout:
    """The event shape of x, and (shape, is complex) of each part of y."""

    event: Shape
    parts: tuple[tuple[Shape, bool], ...]


def _flat(parts: list[Tensor]) -> Tensor:
    if not all(p.is_complex() for p in parts):
        parts = [torch.view_as_real(p.resolve_conj()) if p.is_complex() else p for p in parts]
    return torch.cat([p.reshape(p.shape[0], math.prod(p.shape[1:])) for p in parts], dim=1)


def _sum(parts: list[Tensor]) -> Tensor:
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    return out


class Bound(Operator):
    """A linear operator together with the shape of its x, for those that cannot tell it from y."""

    def __init__(self, operator: Operator, event_shape: Shape) -> None:
        self.operator, self.event_shape = operator, tuple(event_shape)
        self.linear, self.differentiable = operator.linear, operator.differentiable
        self.surrogate_gradient = operator.surrogate_gradient
        self.has_pinv, self.space = operator.has_pinv, operator.space
        self.units = operator.units
        self.orthonormal_rows = operator.orthonormal_rows
        self.orthonormal_columns = operator.orthonormal_columns

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)

    def simulate(self, x: Tensor) -> Tensor:
        return self.operator.simulate(x)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        return self.operator.vjp(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if type(self.operator).adjoint is not Operator.adjoint:
            return self.operator.adjoint(y)
        return super().adjoint(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.operator.pinv(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.operator.normal(x)

    def restrict(self, y: Tensor) -> Tensor:
        return self.operator.restrict(y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], *self.event_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return self.operator.range_shape(x_shape)

    def take(self, index: Sequence[int]) -> Bound:
        return Bound(self.operator.take(index), self.event_shape)

    def __repr__(self) -> str:
        return repr(self.operator)
