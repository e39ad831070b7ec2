"""A user's function as an operator.

>>> A = from_callable(my_simulator)                        # black box: derivative-free methods
>>> A = from_callable(my_torch_function, differentiable=True)
>>> A = from_callable(my_simulator, executor=ProcessPoolExecutor())
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators._rowwise import by_row
from posterior.operators.base import Operator, Pull, Shape, check_choice


@dataclass(frozen=True, eq=False, repr=False)
class BlackBox(Operator):
    """y = f(x), row by row; see `from_callable`."""

    f: Callable[[Tensor], Any]
    on_error: str = "nan"
    batched: bool = False
    range_event: Shape | None = None
    _executor: Executor | None = None
    _seen: dict[Shape, tuple[Shape, torch.dtype]] = field(default_factory=dict)

    def forward(self, x: Tensor) -> Tensor:
        if self.batched:
            y = self._tensor(self.f(x), x)
            if y.ndim == 0 or y.shape[0] != x.shape[0]:
                raise InputError(f"{self!r}: {x.shape[0]} rows in, {tuple(y.shape)} out")
        else:
            y = self._join(x, self._rows(x))
        self._seen[tuple(x.shape[1:])] = (tuple(y.shape[1:]), y.dtype)
        return y

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        if not self.differentiable:
            raise CapabilityError(
                f"{self!r} has no gradient: use a derivative-free method, or give"
                " from_callable(f, differentiable=True) if f is made of torch operations"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = self(leaf)
        if not y.requires_grad:
            raise CapabilityError(
                f"{self!r} is declared differentiable, but its result does not depend on x by"
                " torch operations: compute in torch, or leave out differentiable="
            )
        return y.detach(), lambda u: torch.autograd.grad(y, leaf, u, retain_graph=True)[0]

    def range_shape(self, x_shape: Shape) -> Shape:
        if self.range_event is not None:
            return (x_shape[0], *self.range_event)
        if tuple(x_shape[1:]) in self._seen:
            return (x_shape[0], *self._seen[tuple(x_shape[1:])][0])
        return super().range_shape(x_shape)

    def __repr__(self) -> str:
        name = getattr(self.f, "__qualname__", type(self.f).__name__)
        return f"from_callable({name})"

    def _rows(self, x: Tensor) -> list[Tensor | Exception]:
        """What f makes of every row (1, *event), or the exception that it raised."""
        one_by_one = [row.clone() for row in torch.split(x, 1)]
        calls: list[Callable[[], Any]]
        if self._executor is None:
            calls = [lambda row=row: self.f(row) for row in one_by_one]  # type: ignore[misc]
        else:
            calls = [self._executor.submit(self.f, row).result for row in one_by_one]
        out: list[Tensor | Exception] = []
        # seen on a terminal only, and only where one evaluation of all rows takes long
        bar = tqdm(calls, desc=repr(self), delay=5, leave=False, disable=not sys.stderr.isatty())
        for row, call in zip(one_by_one, bar, strict=True):
            try:
                value = self._tensor(call(), row)
            except Exception as error:
                if self.on_error == "raise" or isinstance(error, (InputTypeError, InputError)):
                    raise
                out.append(error)
                continue
            if value.ndim == 0 or value.shape[0] != 1:
                raise InputError(
                    f"{self!r} is called with one row, (1, *event), and must return one row,"
                    f" (1, *range): it returned {tuple(value.shape)}"
                )
            out.append(value)
        return out

    def _join(self, x: Tensor, rows: list[Tensor | Exception]) -> Tensor:
        good = [row for row in rows if isinstance(row, Tensor)]
        event = tuple(x.shape[1:])
        if good:
            shape, dtype = tuple(good[0].shape[1:]), good[0].dtype
        elif event in self._seen:
            shape, dtype = self._seen[event]
        elif self.range_event is not None:
            shape, dtype = self.range_event, x.dtype
        elif rows:
            error = next(row for row in rows if isinstance(row, Exception))
            raise InputError(
                f"{self!r} failed on every row ({type(error).__name__}: {error}), so the shape of"
                " its result is unknown: correct f, or give range_shape="
            ) from error
        else:
            raise InputError(f"{self!r}: no rows, and the shape of its result is unknown")
        if any(tuple(row.shape[1:]) != shape for row in good):
            raise InputError(f"{self!r} gives rows of different shapes")
        bad = torch.full((1, *shape), torch.nan, dtype=dtype, device=x.device)
        if not rows:
            return bad[:0]
        return torch.cat([row if isinstance(row, Tensor) else bad for row in rows])

    def _tensor(self, value: object, like: Tensor) -> Tensor:
        """What f returned as a tensor in the precision of x."""
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise InputTypeError(
                    f"{self!r} must return a tensor, not {type(value).__name__}"
                ) from None
        dtype = like.real.dtype
        if value.is_complex():
            dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        return value.to(like.device, dtype)


@dataclass(frozen=True, eq=False, repr=False)
class BlackBoxPair(BlackBox):
    """A linear black box whose transpose is another function."""

    transpose: Callable[[Tensor], Any] | None = None

    linear = True

    def adjoint(self, y: Tensor) -> Tensor:
        transpose = self.transpose
        assert transpose is not None
        return by_row(lambda row, _: self._tensor(transpose(row), row), y)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        return self(x), self.adjoint


def from_callable(
    f: Callable[[Tensor], Any],
    executor: Executor | None = None,
    on_error: str = "nan",
    differentiable: bool = False,
    *,
    linear: bool = False,
    adjoint: Callable[[Tensor], Any] | None = None,
    batched: bool = False,
    range_shape: Sequence[int] | None = None,
) -> BlackBox:
    """Any function as y = f(x), by default a black box without gradient.

    f is called with one row at a time, (1, *event), and returns (1, *range), a tensor, an array or
    nested lists; so a row never depends on its neighbours.

    Args:
        f: the forward model. A report records it by its name only.
        executor: maps f over the rows (`concurrent.futures`; f must be picklable for processes).
            With it or without, a slow f shows a progress bar over the rows on a terminal.
        on_error: "nan": a row for which f raises becomes NaN (its particle is dropped); "raise".
        differentiable: f is made of torch operations; gradients by automatic differentiation.
        linear: f is real-linear and made of torch operations: `adjoint` by the same way.
        adjoint: the transpose of a linear f, (1, *range) -> (1, *event); f may then be anything.
        batched: f takes all rows at once, (B, *event); that a row does not depend on its
            neighbours, and on_error, are then up to f.
        range_shape: shape of one result, needed only where f may fail on every row of a batch.
    """
    if not callable(f):
        raise InputTypeError(f"from_callable takes a function, not {type(f).__name__}")
    if adjoint is not None and not callable(adjoint):
        raise InputTypeError(f"adjoint must be a function, not {type(adjoint).__name__}")
    check_choice("on_error", on_error, ("nan", "raise"))
    if executor is not None and (differentiable or (linear and adjoint is None)):
        raise InputError("gradients do not cross an executor: leave executor= out")
    if executor is not None and batched:
        raise InputError("batched=True calls f once, an executor maps it over rows: choose one")
    shape = None if range_shape is None else tuple(range_shape)
    if adjoint is not None:
        return BlackBoxPair(f, on_error, batched, shape, executor, transpose=adjoint)
    out = BlackBox(f, on_error, batched, shape, executor)
    object.__setattr__(out, "linear", bool(linear))
    object.__setattr__(out, "differentiable", bool(differentiable) or bool(linear))
    return out
