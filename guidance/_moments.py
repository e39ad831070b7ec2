"""The guided estimate E[x0 | x_t, y] by matching two moments of p(x0 | x_t).

By Tweedie's formulas x0 given x_t has mean x0(x_t) and covariance C = (sigma^2 / alpha) J,
J = dx0/dx_t. Taken for Gaussian, with y = A x0 + n, n ~ N(0, N), and r = y - A x0(x_t),

    E[x0 | x_t, y] = x0 + C A' u,   (N + A C A') u = r

solved in the Krylov space of r, one vector-Jacobian product through the network a dimension. Exact
for Gaussian priors. MMPS takes a few dimensions; DPS's own likelihood is the first of them.

For a linear A the space can be turned towards the solution at no product with the network:
N + v A A' with a number v for C is solved by conjugate gradients first, a few products with A and
A'. A blur passes some frequencies a thousand times better than others, and this knows it; where
A A' is a multiple of I, as for masks, and the noise that of one variance, it changes nothing.

C is a covariance, but sigma^2 / alpha J of a network is symmetric and positive only roughly: what
is solved is the projected system's symmetric positive part, which has N as its lower bound.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posterior import rows
from posterior.guidance._consistency import estimate_variance
from posterior.guidance._solve import conjugate_gradients, galerkin
from posterior.operators.base import Operator
from posterior.problem import Problem
from posterior.schedules import Level

# v stands for x0 with this std, as a part of the prior's range (or of [-1, 1]): of 0.015 to 0.2 the
# best on tuning photographs
_SPREAD = 0.1


def guided_correction(
    problem: Problem,
    x0: Tensor,
    t: Level,
    pull: Callable[[Tensor], Tensor],
    iterations: int,
    inner_steps: int = 0,
) -> Tensor:
    """C A' u, what the measurement adds to x0, per row; nan where something is not finite.

    Args:
        x0: E[x0 | x_t], (B, *event).
        t: the level of x_t.
        pull: u -> J' u.
        iterations: dimensions of the space in which the system is solved.
        inner_steps: of conjugate gradients that precondition it, for linear A; 0 for none.
    """
    operator, y, noise_model = problem.measured()
    a_x0, pull_operator = operator.vjp(x0)
    r = y - a_x0
    variance = noise_model.variance(y)  # diagonal of N
    # where alpha = 0, x_t says nothing of x0 and J nothing of C
    to_covariance = t.sigma**2 / t.alpha if t.alpha > 0 else 0.0
    # in units in which all entries of y have one variance
    weight, mean = precise_first(variance, r)

    def product(p: Tensor) -> tuple[Tensor, Tensor]:
        q = to_covariance * pull(pull_operator(weight * p))  # C A' p
        return weight * jvp(operator, x0, a_x0, q), q

    def white(p: Tensor) -> Tensor:
        return rows.expand(mean, p) * p + v * weight * operator(pull_operator(weight * p))

    def precondition(p: Tensor) -> Tensor:
        solution = conjugate_gradients(white, p, iterations=inner_steps)
        # a row in which it cannot even begin goes without
        return solution.flagged(rows.where(solution.iterations == 0, p, solution.x))

    low, high = problem.prior.range or (-1.0, 1.0)
    v = estimate_variance(t, _SPREAD * (high - low))
    return galerkin(
        product,
        weight * r,
        mean,
        iterations=iterations,
        precondition=precondition if inner_steps > 0 and operator.linear else None,
    )


def precise_first(variance: float | Tensor, y: Tensor) -> tuple[float | Tensor, Tensor]:
    """The weights (B, *shape of y) that give all entries of y one variance, and that (B,)."""
    count = y.shape[0]
    if not isinstance(variance, Tensor):
        return 1.0, torch.full((count,), variance, dtype=y.real.dtype, device=y.device)
    mean = (rows.total(variance) / variance[0].numel()).expand(count)
    if variance[0].numel() == 1:
        return 1.0, mean
    weight = rows.expand(mean, variance) / variance
    return torch.where(variance > 0, weight, 1).sqrt(), mean


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
