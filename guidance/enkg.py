"""Ensemble Kalman diffusion guidance: black-box operators, no gradient of anything.

H. Zheng, W. Chu, A. Wang, N. Kovachki, R. Baptista, Y. Yue, "Ensemble Kalman diffusion guidance: a
derivative-free method for inverse problems", 2024, arXiv 2409.20175. J particles x_j move together.
At each level t, `updates` times,

    x0_j = ODE(x_j),  Y_j = A(x0_j),  e_j = N^-1 (Y_j - y)
    C_jk = <e_j, Y_k - mean Y> / J
    x_j <- x_j - gamma / |C|_F  sum_k C_jk (x_k - mean x)

and then one Euler step of the probability flow. For linear A the sum is C_xY e_j, with C_xY the
covariance of the ensemble. Of the noise's N only the entries' shares count (published for a black
hole's closures; the other problems there have even noise): the step has a tuned length, so that
the noise level is not known to it. It stays in the span of the ensemble, J - 1 directions, which it
shrinks: **the spread of an ensemble is too narrow**, and its particles are exchangeable, not
independent.

A particle whose evaluation fails (nan) is left out of the ensemble's statistics and not corrected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posterior import grids, rows
from posterior.errors import InputError, unknown_name
from posterior.guidance.base import Guidance, State, Step
from posterior.problem import Problem
from posterior.schedules import CLEAN, Level, Schedule
from posterior.streams import Noise
from posterior.transitions import Euler, Transition, ode_estimate

_ODE_END = 0.002  # sigma / alpha before the last Euler step, which is clean


@dataclass(frozen=True, kw_only=True)
class EnKG(Guidance):
    """Ensemble Kalman guidance; the draws are the first particles of an ensemble.

    Args:
        particles: J, of one ensemble.
        gamma: length of a correction. It wants to be small when y has few entries: of four the
            default already leaves a fifth of the variance (docs/limits.md).
        rho: in [0, 1]; the length is then (1 - rho) gamma, falling linearly to 0 at the clean end,
            plus rho. None keeps gamma.
        updates: corrections at each level.
        ode_steps: most Euler steps from x_j to x0_j; a quarter of the levels that are left, plus
            one, where that is less.
        first, last: shares of the levels at either end that are not corrected.
    """

    transition: Transition = Euler
    default_steps: int = 80
    particles: int = 128
    gamma: float = 0.1
    rho: float | None = None
    updates: int = 1
    ode_steps: int = 20
    first: float = 0.05
    last: float = 0.05

    needs: ClassVar[frozenset[str]] = frozenset({"measurement"})
    own_rule: ClassVar[bool] = True
    when: ClassVar[str] = "black boxes: the operator is only evaluated, never differentiated"
    paper: ClassVar[str] = "Zheng et al. 2024, arXiv 2409.20175"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("particles", 2), ("updates", 0), ("ode_steps", 1)):
            value = getattr(self, name)
            if value < low:
                raise InputError(f"{name} must be an integer >= {low}, got {value!r}")
        if not 0 < self.gamma < math.inf:
            raise InputError(f"gamma must be > 0, got {self.gamma!r}")
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise InputError(f"rho must be in [0, 1] or None, got {self.rho!r}")
        for name in ("first", "last"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")

    @staticmethod
    def preset(name: str) -> EnKG:
        """Published settings: "code/ffhq", "code/navier-stokes" or "code/black-hole"."""
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        particles, gamma, rho, updates, ends = PRESETS[name]
        return EnKG(
            particles=particles,
            gamma=gamma,
            rho=rho,
            updates=updates,
            first=ends,
            last=ends,
        )

    @property
    def yields(self) -> int:
        """Every particle is a draw."""
        return self.particles

    def nfe(self, steps: int) -> int:
        """Per ensemble: the corrections' ODE steps and one Euler step a level, times J."""
        corrections = sum(
            self.updates * self._ode_length(i, steps)
            for i in range(steps)
            if self._corrects(i, steps)
        )
        return self.particles * (corrections + steps)

    def visits(self, falling: list[Level]) -> list[Level]:
        """All levels, some of which must correct."""
        steps = len(falling) - 1
        if self.updates and not any(self._corrects(i, steps) for i in range(steps)):
            raise InputError(
                f"EnKG corrects at none of {steps} steps: take more of them, or less first= and"
                " last="
            )
        return falling

    def _gamma(self, index: int, steps: int) -> float:
        if self.rho is None:
            return self.gamma
        left = (steps - index) / steps
        return (1 - self.rho) * self.gamma * left + self.rho

    def _corrects(self, index: int, steps: int) -> bool:
        return self.first * steps < index < steps - math.floor(self.last * steps)

    def _ode_length(self, index: int, steps: int) -> int:
        return min(1 + (steps - index) // 4, self.ode_steps)

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Correct the ensemble, follow the flow."""
        x = state["x"]
        if self._corrects(step.index, step.steps):
            levels = _ode_levels(
                problem.prior.schedule, step.t, self._ode_length(step.index, step.steps)
            )
            gamma = self._gamma(step.index, step.steps)
            for _ in range(self.updates):
                x0 = ode_estimate(x, levels, problem.prior)
                x = self._corrected(problem, x, x0, gamma)
        estimate = problem.prior(x, step.t.t)
        return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}

    def _corrected(self, problem: Problem, x: Tensor, x0: Tensor, gamma: float) -> Tensor:
        """The corrected particles, ensemble by ensemble, so that each sees products of one size."""
        operator, y, noise_model = problem.measured()
        outputs = operator(x0)
        e = _weighed(outputs - y, noise_model.variance(y))
        parts = []
        for first in range(0, len(x), self.particles):
            own = slice(first, first + self.particles)
            parts.append(self._move(x[own], outputs[own], e[own], gamma))
        return torch.cat(parts)

    @staticmethod
    def _move(x: Tensor, outputs: Tensor, e: Tensor, gamma: float) -> Tensor:
        alive = rows.finite(outputs)
        count = int(alive.sum())
        if count < 2:
            return x
        flat = x[alive].flatten(1)
        e, spread = _flat(e[alive]), _flat(outputs[alive])
        spread = spread - spread.mean(0, keepdim=True)
        c = e @ spread.T / count
        size = c.norm()
        if not bool(torch.isfinite(size)) or float(size) == 0:
            return x
        d = c @ (flat - flat.mean(0, keepdim=True))
        out = x.clone()
        out[alive] = (flat - gamma / size * d).reshape(-1, *x.shape[1:])
        return out


def _weighed(r: Tensor, variance: float | Tensor) -> Tensor:
    """N^-1 r, up to a factor for each row; r itself in a row where some entry has no noise."""
    if not isinstance(variance, Tensor) or variance[0].numel() == 1:
        return r
    least = variance.flatten(1).amin(1).expand(len(r))
    return rows.where(least > 0, rows.expand(least, r) / variance * r, r)


def _flat(y: Tensor) -> Tensor:
    """Rows (J, m) of real numbers."""
    return torch.view_as_real(y.resolve_conj()).flatten(1) if y.is_complex() else y.flatten(1)


def _ode_levels(schedule: Schedule, t: Level, count: int) -> list[Level]:
    """`count` levels from t down to 0.002, and the clean one."""
    if count == 1:
        return [t, CLEAN]
    levels = grids.descent(schedule, t, _ODE_END, count - 1)
    return levels if levels[-1] == CLEAN else [*levels, CLEAN]


PRESETS: dict[str, tuple[int, float, float | None, int, float]] = {
    "code/ffhq": (1024, 2.0, None, 2, 0.05),
    "code/navier-stokes": (2048, 2.0, None, 2, 0.05),
    "code/black-hole": (1024, 3.5, 1e-3, 1, 0.1),
}
"""Name -> J, gamma, rho, corrections a level, share of levels left alone at either end."""
