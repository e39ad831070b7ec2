"""The contract of a measurement operator y = A(x).

x is real, (B, *event); y is one tensor with the same batch axis, real or complex. Inner products
are Re<u, v>, so "linear" means real-linear and `adjoint` is the transpose for that product. Noise
is never part of an operator. Device and dtype follow the input; inputs are never modified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from posterior.errors import CapabilityError

Pull = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]


class Operator(ABC):
    """y = A(x). A subclass writes `forward`, and what it can do better than the defaults.

    Attributes:
        linear: A is real-linear; `adjoint` and `normal` work.
        differentiable: `vjp` works; False for black boxes.
        has_pinv: `pinv` works.
        space: whether A takes an image or the latent of a latent model.
    """

    linear: bool = False
    differentiable: bool = True
    has_pinv: bool = False
    space: Literal["image", "latent"] = "image"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x): (B, *event) -> (B, *range)."""

    def __call__(self, x: Tensor) -> Tensor:
        """A(x): (B, *event) -> (B, *range)."""
        return self.forward(x)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        """A(x) and pull(u) = (dA/dx)^T u for Re<u, v>; pull may be called many times."""
        if not self.differentiable:
            raise CapabilityError(f"{self!r} has no gradient: use a derivative-free method")
        if self.linear:
            return self(x), self.adjoint
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = self.forward(leaf)

        def pull(u: Tensor) -> Tensor:
            return torch.autograd.grad(y, leaf, u, retain_graph=True)[0]

        return y.detach(), pull

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, the transpose for Re<u, v>: (B, *range) -> (B, *event).

        By default the vector-Jacobian product of `forward`, which is exact for a linear map.
        """
        if not self.linear:
            raise CapabilityError(f"{self!r} is not linear: it has no adjoint")
        dtype = y.real.dtype if y.is_complex() else y.dtype
        with torch.enable_grad():
            x = torch.zeros(
                self.domain_shape(tuple(y.shape)), dtype=dtype, device=y.device, requires_grad=True
            )
            out = self.forward(x)
        return torch.autograd.grad(out, x, y)[0]

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the least-squares solution of least norm."""
        raise CapabilityError(f"{self!r} has no pseudo-inverse")

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return self.adjoint(self(x))

    def domain_shape(self, y_shape: Shape) -> Shape:
        """The shape of x, batch axis included, that gives y of this shape."""
        raise CapabilityError(f"{self!r} cannot tell the shape of x from that of y: give shape=")

    def range_shape(self, x_shape: Shape) -> Shape:
        """The shape of A(x), batch axis included."""
        with torch.no_grad():
            return tuple(self(torch.zeros(x_shape)).shape)

    def take(self, index: Sequence[int]) -> Operator:
        """The operator of the measurements `index`: selects per-measurement parameters."""
        return self

    def __matmul__(self, other: Operator) -> Operator:
        """(A @ B)(x) = A(B(x))."""
        from posterior.operators.compose import Compose

        return Compose(self, other)
