"""The contract of a measurement operator y = A(x).

x is real, (B, *event); y is one tensor with the same batch axis, real or complex. Inner products
are Re<u, v>, so "linear" means real-linear and `adjoint` is the transpose for that product. Noise
is never part of an operator. Device and dtype follow the input; inputs are never modified.

A row of the result depends on that row of the input only, bit for bit: an operator whose arithmetic
does not give that by itself (FFTs, matrix products, convolutions) calls it by `_rowwise.by_row` or
`_rowwise.together`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError, unknown_name

Pull = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
Units = Literal["own", "kept", "image"]


class Operator(ABC):
    """y = A(x). A subclass writes `forward`, and what it can do better than the defaults.

    Attributes:
        linear: A is real-linear; `adjoint` and `normal` work.
        differentiable: `vjp` works; False for black boxes.
        surrogate_gradient: `vjp` is a useful direction, not the derivative: that of a staircase, as
            rounding is one, is 0 almost everywhere.
        has_pinv: `pinv` works.
        adjoint_gradient: autograd goes back through `forward` by `adjoint`, and the other way
            round; what happens within is not recorded. For linear operators whose parameters never
            need a gradient.
        orthonormal_rows: A A^T = c I for some number c > 0.
        orthonormal_columns: A^T A = c I for some number c > 0.
        space: whether A takes an image or the latent of a latent model.
        units: which numbers y has: "kept", those of x, as a blur; "image", those of an image in
            [-1, 1], whatever x has; "own", others. Reports read a noise by it.
    """

    linear: bool = False
    differentiable: bool = True
    surrogate_gradient: bool = False
    has_pinv: bool = False
    adjoint_gradient: bool = False
    orthonormal_rows: bool = False
    orthonormal_columns: bool = False
    space: Literal["image", "latent"] = "image"
    units: Units = "own"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Whoever writes `adjoint` or `pinv` gets a y that was looked at, as `forward` gets x."""
        super().__init_subclass__(**kwargs)
        for name in ("adjoint", "pinv"):
            if name in cls.__dict__:
                setattr(cls, name, _with_checked_y(name, cls.__dict__[name]))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x): (B, *event) -> (B, *range)."""

    def __call__(self, x: Tensor) -> Tensor:
        """A(x): (B, *event) -> (B, *range)."""
        check_tensor("x", x)
        if self.adjoint_gradient and x.requires_grad and torch.is_grad_enabled():
            return differentiable_by(self.forward, self.adjoint, x)
        return self.forward(x)

    def simulate(self, x: Tensor) -> Tensor:
        """What the measuring device itself makes of x, without noise: (B, *event) -> (B, *range).

        A(x), except where `forward` stands in for a device that cannot be differentiated, as the
        encoder of `JPEG`. Simulations degrade with this, guidance never calls it.
        """
        return self(x)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        """A(x) and pull(u) = (dA/dx)^T u for Re<u, v>; pull may be called many times."""
        if not self.differentiable:
            raise CapabilityError(f"{self!r} has no gradient: use a derivative-free method")
        if self.linear and type(self).adjoint is not Operator.adjoint:
            return self(x), self.adjoint
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = self(leaf)
        return y.detach(), lambda u: _pull(y, leaf, u)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, the transpose for Re<u, v>: (B, *range) -> (B, *event).

        By default the vector-Jacobian product of `forward`, which is exact for a linear map.
        """
        if not self.linear:
            raise CapabilityError(f"{self!r} is not linear: it has no adjoint")
        check_tensor("y", y)
        x = torch.zeros(self.domain_shape(tuple(y.shape)), dtype=y.real.dtype, device=y.device)
        with torch.enable_grad():
            out = self(x.requires_grad_())
        if out.shape != y.shape or (y.is_complex() and not out.is_complex()):
            raise InputError(
                f"{self!r} gives {out.dtype} {tuple(out.shape)}, y is {y.dtype} {tuple(y.shape)}"
            )
        return _pull(out, x, y.to(out.dtype))

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the least-squares solution of least norm."""
        raise CapabilityError(f"{self!r} has no pseudo-inverse")

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        if not self.linear:
            raise CapabilityError(f"{self!r} is not linear: it has no normal operator")
        y, pull = self.vjp(x)
        return pull(y)

    def restrict(self, y: Tensor) -> Tensor:
        """Zero in the entries of y that A never fills, such as the hidden pixels of a mask."""
        return y

    def domain_shape(self, y_shape: Shape) -> Shape:
        """The shape of x, batch axis included, that gives y of this shape."""
        raise CapabilityError(f"{self!r} cannot tell the shape of x from that of y: give shape=")

    def range_shape(self, x_shape: Shape) -> Shape:
        """The shape of A(x), batch axis included."""
        with torch.no_grad():
            y = self.take([0])(torch.zeros(1, *x_shape[1:]))
        return (x_shape[0], *y.shape[1:])

    def take(self, index: Sequence[int]) -> Operator:
        """The operator of the measurements `index`: selects per-measurement parameters."""
        return self

    def bind(self, event_shape: Shape) -> Operator:
        """The operator for x of shape (B, *event_shape): lets `adjoint` know the shape of x.

        Only operators that cannot tell the shape of x from that of y change.
        """
        if self.linear and type(self).domain_shape is Operator.domain_shape:
            from posterior.operators.compose import Bound

            return Bound(self, event_shape)
        return self

    def __matmul__(self, other: object) -> Operator:
        """(A @ B)(x) = A(B(x))."""
        from posterior.operators.compose import Compose

        if not isinstance(other, Operator):
            return NotImplemented
        return Compose(self, other)

    def __repr__(self) -> str:
        """The call that makes the operator, tensors by their shape."""
        fields: dict[str, dataclasses.Field[object]] = getattr(self, "__dataclass_fields__", {})
        shown = [
            f"{f.name}={_show(getattr(self, f.name))}"
            for f in fields.values()
            if f.init and f.repr and not _is_default(f, getattr(self, f.name))
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _with_checked_y(
    name: str, back: Callable[[Any, Tensor], Tensor]
) -> Callable[[Any, Tensor], Tensor]:
    """A method that takes y, `adjoint` or `pinv`, after `check_tensor`."""
    is_adjoint = name == "adjoint"

    @functools.wraps(back)
    def checked(self: Any, y: Tensor) -> Tensor:
        check_tensor("y", y)
        if is_adjoint and self.adjoint_gradient and y.requires_grad and torch.is_grad_enabled():
            return differentiable_by(self.adjoint, self.forward, y)
        return back(self, y)

    return checked


class _Linear(torch.autograd.Function):
    """f(x) for a linear f with the transpose g: nothing is saved, the gradient is g."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.f, ctx.g = f, g
        return f(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return differentiable_by(ctx.g, ctx.f, grads[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return differentiable_by(ctx.f, ctx.g, tangents[0])


def differentiable_by(
    f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """f(x), whose gradient is the transpose g and that of g is f; nothing within is recorded."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return f(x)
    y: Tensor = _Linear.apply(x, f, g)  # type: ignore[no-untyped-call]  # torch's
    return y


def common_units(operators: Sequence[Operator]) -> Units:
    """The units of measurements side by side."""
    units = {op.units for op in operators}
    return units.pop() if len(units) == 1 else "own"


def _pull(y: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """(dy/dx)^T u; zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(y, x, u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if g is None else g


def _is_default(field: dataclasses.Field[object], value: object) -> bool:
    default = field.default
    if default is value:
        return True
    plain = isinstance(default, (bool, str, float)) and not isinstance(value, Tensor)
    return plain and bool(default == value)


def _show(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}"
    if callable(value) and not isinstance(value, Operator):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return f"{value:g}" if isinstance(value, float) else repr(value)


def check_tensor(what: str, x: object) -> None:
    """A floating point or complex tensor with a batch axis, and with values."""
    if not isinstance(x, Tensor):
        raise InputTypeError(f"{what} must be a torch tensor, not {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()):
        raise InputTypeError(f"{what} must be floating point or complex, not {x.dtype}")
    if x.is_meta:
        raise InputError(f"{what} is on the meta device: it has no values")
    if x.ndim == 0:
        raise InputError(f"{what} needs a batch axis: (B, *event)")


_PRECISE = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def check_image(who: object, x: Tensor) -> None:
    """A batch of images (B, C, H, W) in single or double precision."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise InputError(f"{who!r} needs images (B, C, H, W), not {tuple(x.shape)}")
    if x.dtype not in _PRECISE:
        raise InputTypeError(f"{who!r} needs single or double precision, not {x.dtype}")


def check_number(what: str, value: Any, low: float, high: float = float("inf")) -> float:
    """A finite number with low <= value <= high, as a float."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise InputTypeError(f"{what} must be a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        if low == -math.inf:
            raise InputError(f"{what} must be finite, not {number:g}")
        bounds = f">= {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise InputError(f"{what} must be {bounds}, not {number:g}")
    return number


def check_count(what: str, value: object, low: int) -> int:
    """An integer >= low; 4.0 is one, 4.5 is not."""
    number = check_number(what, value, low)
    if number != int(number):
        raise InputError(f"{what} must be a whole number, not {number:g}")
    return int(number)


def check_size(size: object) -> tuple[int, int]:
    """(H, W) from that, or from one number for both."""
    if not isinstance(size, (tuple, list)):
        size = (size, size)
    if len(size) != 2:
        raise InputError(f"size takes one or two numbers, not {len(size)}")
    return check_count("size", size[0], 1), check_count("size", size[1], 1)


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """One of some words; a near miss is pointed out."""
    if value not in choices:
        if not isinstance(value, str):
            raise InputTypeError(f"{what} must be one of {', '.join(choices)}, not {value!r}")
        raise unknown_name(what, value, choices)
