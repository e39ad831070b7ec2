"""Denoising: two looks at one image are one look with less noise.

With y = x0 + n, n ~ N(0, tau^2 I), and x_t = alpha x0 + sigma eps, both are x0 in white noise, and
their mean, weighted by precision, is sufficient for x0:

    x_bar = (alpha tau^2 x_t + sigma^2 y) / (alpha^2 tau^2 + sigma^2) = x0 + rho eps'
    rho^2 = sigma^2 tau^2 / (alpha^2 tau^2 + sigma^2)

so that E[x0 | x_t, y] = E[x0 | x_bar] is what the prior says of x_bar at the level with
sigma / alpha = rho. Nothing is approximated but the time steps, whatever the prior. The problem is
that of B. Kawar, G. Vaksman, M. Elad, "Stochastic image denoising by sampling from the posterior
distribution", ICCV workshops 2021, arXiv 2101.09552, who solve it by Langevin steps on x_t whose
noise is part of that of y; here the noise of x_t is the sampler's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posterior.errors import CapabilityError
from posterior.estimates import Estimate, coefficients
from posterior.guidance.base import Guidance, State, Step
from posterior.operators.noise import GaussianNoise
from posterior.problem import Problem
from posterior.schedules import Schedule
from posterior.streams import Noise
from posterior.transitions import Multistep, Transition


@dataclass(frozen=True, kw_only=True)
class Denoising(Guidance):
    """Draws of the clean image from one in white Gaussian noise: exact, up to time steps.

    One network call a step and no gradient. It needs `operators.Identity()` and Gaussian noise
    above 0, of one standard deviation or of one per measurement.
    """

    transition: Transition = Multistep
    default_steps: int = 50

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "identity"})
    when: ClassVar[str] = "white Gaussian noise alone; exact, no gradient of the network"
    paper: ClassVar[str] = "Kawar et al., ICCV workshops 2021, arXiv 2101.09552"

    def check(self, problem: Problem) -> None:
        """The noise of a measurement must be that of a level."""
        _, _, model = problem.measured()
        std = torch.as_tensor(model.std) if isinstance(model, GaussianNoise) else None
        if std is None or std.ndim > 1 or not bool((std > 0).all()):
            raise CapabilityError(
                "Denoising needs Gaussian noise above 0, of one std for all entries of a"
                " measurement; MMPS takes other noise"
            )

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Weigh x_t and y, estimate, move."""
        _, y, model = problem.measured()
        schedule, x, t = problem.prior.schedule, state["x"], step.t
        variance = model.variance(y)  # tau^2, a number or (B, 1, ...)
        total = t.alpha**2 * variance + t.sigma**2  # of y - x_t / alpha, times alpha^2
        x_bar = (t.alpha * variance * x + t.sigma**2 * y) / total
        t_bar = _time(schedule, t.sigma * (variance / total) ** 0.5, len(x))
        alpha_bar, _ = coefficients(schedule, t_bar, x)
        x0 = problem.prior(alpha_bar * x_bar, t_bar).x0
        estimate = Estimate(x, t.t, schedule, x0)
        return {"x": self.move(problem, estimate, step, noise, state), "x0": x0}


def _time(schedule: Schedule, rho: float | Tensor, count: int) -> float | Tensor:
    """The time of a level, or (count,) of the levels of rows, with sigma / alpha = rho.

    A last level may be the least noise that the schedule has: less is told as that.
    """
    low, high = schedule.ratio_range
    if isinstance(rho, Tensor):
        return schedule.time_of_ratio(rho.flatten().double().clamp(low, high).expand(count))
    return schedule.time_of_ratio(min(max(rho, low), high))
