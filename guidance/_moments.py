"""The guided estimate E[x0 | x_t, y] by matching two moments of p(x0 | x_t).

By Tweedie's formulas x0 given x_t has mean x0(x_t) and covariance C = (sigma^2 / alpha) J,
J = dx0/dx_t. Taken for Gaussian, with y = A x0 + n, n ~ N(0, N), and r = y - A x0(x_t),

    E[x0 | x_t, y] = x0 + C A' u,   (N + A C A') u = r

solved by conjugate gradients, one vector-Jacobian product through the network each. Exact for
Gaussian priors. MMPS makes a few iterations; DPS's own likelihood is the first one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posterior import rows
from posterior.guidance._solve import Matvec, conjugate_gradients
from posterior.operators.base import Operator
from posterior.problem import Problem
from posterior.schedules import Level


def guided_correction(
    problem: Problem,
    x0: Tensor,
    t: Level,
    pull: Callable[[Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """C A' u, what the measurement adds to x0, per row; 0 where nothing can be solved.

    Args:
        x0: E[x0 | x_t], (B, *event).
        t: the level of x_t.
        pull: u -> J' u.
        iterations: of conjugate gradients.
    """
    operator, y, noise_model = problem.measured()
    a_x0, pull_operator = operator.vjp(x0)
    r = y - a_x0
    variance = noise_model.variance(y)  # diagonal of N
    # where alpha = 0, x_t says nothing of x0 and J nothing of C
    to_covariance = t.sigma**2 / t.alpha if t.alpha > 0 else 0.0

    def product(p: Tensor) -> tuple[Tensor, Tensor]:
        q = to_covariance * pull(pull_operator(p))  # C A' p
        return variance * p + jvp(operator, x0, a_x0, q), q

    solution = conjugate_gradients(
        product, r, iterations=iterations, precondition=precise_first(variance)
    )
    correction = torch.zeros_like(x0) if solution.companion is None else solution.companion
    return solution.flagged(correction)


def precise_first(variance: float | Tensor) -> Matvec | None:
    """A preconditioner that weighs precise entries of y up; None where all have one variance."""
    if not isinstance(variance, Tensor) or variance[0].numel() == 1:
        return None
    mean = rows.total(variance) / variance[0].numel()
    weight = rows.expand(mean, variance) / variance
    return lambda v: v * weight


def jvp(operator: Operator, x0: Tensor, a_x0: Tensor, direction: Tensor) -> Tensor:
    """dA(x0)/dx0 direction; a forward difference where A is not linear."""
    if operator.linear:
        return operator(direction)
    # a displacement of 1 % of x0's root mean square: exact enough for a step length
    size = rows.norm(direction)
    reach = 0.01 * rows.norm(x0).clamp(min=1e-3)
    factor = rows.expand(torch.where(size > 0, reach / size, 0.0), direction)
    difference = operator(x0 + factor * direction) - a_x0
    inverse = rows.expand(torch.where(size > 0, size / reach, 0.0), difference)
    return difference * inverse
