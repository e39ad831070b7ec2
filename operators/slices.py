"""An operator for images, applied to every slice of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posterior import volumes
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator, Pull, Shape


class Slicewise(Operator):
    """A on each of the D slices: (B, C, D, H, W) -> (B, *range), D in it where it was in x.

    >>> Slicewise(GaussianBlur(2.0))
    >>> Slicewise(Mask(keep=patterns), per_slice=True)    # patterns (D, 1, H, W)

    Where y has fewer axes than x, as the (m,) of a matrix, the slices stand on its last axis if
    theirs is not there: (B, m, D) for the default axis.

    Args:
        operator: A, for x of the shape of a slice. It keeps its capabilities.
        axis: that of the slices in the event of x, see `posterior.volumes`.
        per_slice: per-measurement parameters of A are one for each slice, the same in all
            measurements, instead of one for each measurement, the same in all its slices.
    """

    def __init__(self, operator: Operator, axis: int = 1, *, per_slice: bool = False) -> None:
        if not isinstance(operator, Operator):
            raise InputTypeError("Slicewise takes an operator: wrap a function with from_callable")
        self.operator, self.axis = operator, volumes.check_axis(axis)
        self.per_slice = per_slice
        self.linear, self.differentiable = operator.linear, operator.differentiable
        self.surrogate_gradient = operator.surrogate_gradient
        self.has_pinv, self.space = operator.has_pinv, operator.space
        self.units = operator.units
        self.orthonormal_rows = operator.orthonormal_rows
        self.orthonormal_columns = operator.orthonormal_columns
        self._same = operator.take([0]) is operator  # A has no parameters that differ by row

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._each(self.operator, x)

    def simulate(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._each(self.operator.simulate, x)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        self._check(x)
        pairs = [self.operator.vjp(part) for part in self._parts(x)]
        y = self._join([y for y, _ in pairs], x)
        return y, lambda u: self._join(
            [pull(part) for (_, pull), part in zip(pairs, self._parts(u), strict=True)], u
        )

    def adjoint(self, y: Tensor) -> Tensor:
        if not self.linear:
            raise CapabilityError(f"{self!r} is not linear: it has no adjoint")
        return self._each(self.operator.adjoint, y)

    def pinv(self, y: Tensor) -> Tensor:
        if not self.has_pinv:
            raise CapabilityError(f"{self!r} has no pseudo-inverse")
        return self._each(self.operator.pinv, y)

    def normal(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._each(self.operator.normal, x)

    def restrict(self, y: Tensor) -> Tensor:
        return self._each(self.operator.restrict, y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return self._shape(self.operator.domain_shape, y_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return self._shape(self.operator.range_shape, x_shape)

    def take(self, index: Sequence[int]) -> Slicewise:
        if self._same or self.per_slice:
            return self
        return Slicewise(self.operator.take(index), self.axis)

    def bind(self, event_shape: Shape) -> Slicewise:
        bound = self.operator.bind(volumes.slice_shape(tuple(event_shape), self.axis))
        return Slicewise(bound, self.axis, per_slice=self.per_slice)

    def __repr__(self) -> str:
        axis = "" if self.axis == 1 else f", axis={self.axis}"
        return f"Slicewise({self.operator!r}{axis}{', per_slice=True' if self.per_slice else ''})"

    def _check(self, x: Tensor) -> None:
        if x.ndim < self.axis + 2:
            raise InputError(f"{self!r} takes volumes with an axis {self.axis}: {tuple(x.shape)}")

    def _axis(self, ndim: int) -> int:
        """The axis of the slices in an event of so many axes."""
        return min(self.axis, ndim - 1)

    def _each(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self._join([f(part) for part in self._parts(x)], x)

    def _parts(self, x: Tensor) -> list[Tensor]:
        """The slices as rows for A, so that rows meet their parameters."""
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise InputError(f"{self!r} takes and gives volumes, not {tuple(x.shape)}")
        stack = volumes.slices(x, self._axis(x.ndim - 1))
        if self._same:
            return [stack.flatten(0, 1)]
        return list(stack.unbind(0 if self.per_slice else 1))

    def _join(self, parts: list[Tensor], x: Tensor) -> Tensor:
        """Volumes from what A made of the parts of x."""
        if self._same:
            depth = x.shape[1 + self._axis(x.ndim - 1)]
            stack = parts[0].unflatten(0, (x.shape[0], depth))
        else:
            stack = torch.stack(parts, 0 if self.per_slice else 1)
        return volumes.volume(stack, self._axis(stack.ndim - 1))

    def _shape(self, of: Callable[[Shape], Shape], shape: Shape) -> Shape:
        axis = self._axis(len(shape) - 1)
        event = shape[1:]
        out = of((shape[0], *volumes.slice_shape(event, axis)))[1:]
        return (shape[0], *volumes.volume_shape(out, event[axis], self._axis(len(out) + 1)))
