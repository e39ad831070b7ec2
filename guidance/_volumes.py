"""Total variation along the slices of a volume, one ADMM round at a time.

The network knows slices, not how they follow each other. DDS for volumes ties them by the total
variation of D X, the differences of neighbouring slices (Chung et al., CVPR 2023, arXiv 2211.10655;
ICLR 2024, arXiv 2303.05754):

    argmin_X  1/2 (Y - A X)' W (Y - A X) + a / 2 |X - X0|^2 + lambda |D X|_1

X0 is the estimate of the slices. With d in the place of D X and rho u as its multiplier, a round is

    X <- X0 + delta,  (A' W A + a I + rho D'D) delta = A' W (Y - A X0) + rho D' (d - u - D X0)
    d <- soft(D X + u, lambda / rho)
    u <- u + D X - d

delta by conjugate gradients from 0, one system for a whole volume, since D couples its slices. d
and rho u start at 0 and are kept from one noise level to the next, where X0 has moved on: one round
a level then follows the minimiser, which many rounds at one level would reach.

    published  W = I, a = 0: X0 acts as the start of the iterations only, and noise is not modelled
    ours       W = N^-1, a = 1 / v. Take the volume's prior for the product of those of its slices
               and of exp(-lambda |D X|_1), independent Laplace differences. Given x_t the slices'
               part is taken for N(X0, v I), as DDS does without lambda; times N(Y; A X, N) it has
               minus the objective as its logarithm. X is then the mode, where DDS has the mean.
               (The noise of x_t is not averaged over in the Laplace factor.)

So lambda has the unit 1 / x in our form: 1 / lambda is the mean size of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior import volumes
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.guidance._solve import conjugate_gradients
from posterior.operators.base import Operator


@dataclass(frozen=True, kw_only=True)
class SliceTV:
    """lambda |D X|_1, for `DDS(tv=SliceTV(weight=...))`.

    Args:
        weight: lambda >= 0; 1 / weight is the mean difference of neighbouring slices, in x's units.
        rho: penalty of the split, > 0. It changes how fast the rounds converge, not to what, but a
            run makes one round a level. None is lambda sqrt(a): the threshold lambda / rho is then
            sqrt(v), the standard deviation that X0 is given, at every level; lambda^2 where a = 0.
        circular: D wraps round and ties the last slice to the first, as published. A stack of
            slices of a body is not periodic, so by default it does not.
        axis: that of the slices in the event, see `posterior.volumes`.
    """

    weight: float
    rho: float | None = None
    circular: bool = False
    axis: int = 1

    def __post_init__(self) -> None:
        for name in ("weight", "rho"):
            value = getattr(self, name)
            if value is None and name == "rho":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputTypeError(f"{name} must be a number, not {type(value).__name__}")
            if not 0 <= value < math.inf:
                raise InputError(f"{name} must be >= 0 and finite, got {value!r}")
        if self.rho == 0:
            raise InputError("rho must be > 0: with 0 the total variation never acts")
        volumes.check_axis(self.axis)

    def check(self, event: tuple[int, ...]) -> None:
        """Raise `CapabilityError` unless an x of this shape has slices to compare."""
        if len(event) < 4:
            raise CapabilityError(
                f"tv= needs volumes (C, D, H, W), x has shape {event}: a prior of images becomes "
                "one of volumes by priors.Slices, an operator by operators.Slicewise"
            )
        if self.axis >= len(event):
            raise CapabilityError(f"tv= has axis={self.axis}, x of shape {event} does not")
        if event[self.axis] < 2:
            raise CapabilityError(
                f"tv= compares neighbouring slices: x of shape {event} has one on axis {self.axis}"
            )

    def difference(self, x: Tensor) -> Tensor:
        """D x: x[z + 1] - x[z], for the last z too where circular."""
        axis = self.axis + 1
        if self.circular:
            return x.roll(-1, axis) - x
        return x.narrow(axis, 1, x.shape[axis] - 1) - x.narrow(axis, 0, x.shape[axis] - 1)

    def transpose(self, d: Tensor) -> Tensor:
        """D' d."""
        axis = self.axis + 1
        if self.circular:
            return d.roll(1, axis) - d
        zero = torch.zeros_like(d.narrow(axis, 0, 1))
        return torch.cat([zero, d], axis) - torch.cat([d, zero], axis)

    def start(self, x: Tensor) -> dict[str, Tensor]:
        """d and the multiplier rho u before the first round."""
        zero = torch.zeros_like(self.difference(x))
        return {"d": zero, "multiplier": zero}

    def round(
        self,
        operator: Operator,
        y: Tensor,
        x0: Tensor,
        split: dict[str, Tensor],
        *,
        weight: float | Tensor,
        anchor: float,
        iterations: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """X, and the next d and multiplier.

        Args:
            operator: linear.
            y: (B, *range).
            x0: (B, *event).
            split: d and multiplier, as `start` gives them.
            weight: W, a number or broadcasting against y.
            anchor: a.
            iterations: of conjugate gradients.
        """
        d, rho = split["d"], self._penalty(anchor)
        u = split["multiplier"] / rho if rho > 0 else split["multiplier"]
        data = _data(operator, weight)

        def product(p: Tensor) -> Tensor:
            return data(p) + anchor * p + rho * self.transpose(self.difference(p))

        right = operator.adjoint(weight * (y - operator(x0)))
        right = right + rho * self.transpose(d - u - self.difference(x0))
        solution = conjugate_gradients(product, right, iterations=iterations)
        x = x0 + solution.flagged(solution.x)
        moved = self.difference(x) + u
        d = _soft(moved, self.weight / rho if self.weight > 0 else 0.0)
        return x, {"d": d, "multiplier": rho * (moved - d)}

    def _penalty(self, anchor: float) -> float:
        """rho; 0, no coupling at all, only where it was not given and the weight is 0."""
        if self.rho is not None:
            return float(self.rho)
        return self.weight * (math.sqrt(anchor) if anchor > 0 else self.weight)


def _data(operator: Operator, weight: float | Tensor) -> Callable[[Tensor], Tensor]:
    """p -> A' W A p."""
    if isinstance(weight, Tensor):
        return lambda p: operator.adjoint(weight * operator(p))
    return lambda p: weight * operator.normal(p)


def _soft(x: Tensor, threshold: float) -> Tensor:
    """The minimiser of 1/2 (d - x)^2 + threshold |d|."""
    return x.sign() * (x.abs() - threshold).clamp(min=0)
