"""FlowEdit: an ODE from the source to the edit, without noise in its state.

V. Kulikov, M. Kleiner, I. Huberman-Spiegelglas, T. Michaeli, "FlowEdit: inversion-free text-based
editing using pre-trained flow models", ICCV 2025, arXiv 2412.08629. In the time of a rectified
flow, x_t = (1 - t) x0 + t n with velocity v = n - x0, from t down to t':

    x'_t = (1 - t) source + t n              n fresh, several times if wanted
    x_t  = z + x'_t - source
    z   <- z + (t' - t) (v(x_t) - v'(x'_t))         v under the target, v' under the source

z - source shrinks with the signal by itself, so that x_t is a state of the target: from it ordinary
sampling may go on. As x_t - x'_t is that too, v - v' = (z - source - (D(x_t) - D'(x'_t))) / t with
the denoisers. Any schedule is a rectified flow in x / (alpha + sigma), with t = sigma / (alpha +
sigma), so that the method runs with every prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from posterior.errors import InputError
from posterior.guidance._editing import PartWay, between, moves, source_prior
from posterior.guidance.base import State, Step
from posterior.problem import Problem
from posterior.schedules import Level
from posterior.streams import Noise
from posterior.transitions import Euler, Transition


@dataclass(frozen=True, kw_only=True)
class FlowEdit(PartWay):
    """Integrate the difference of two velocities.

    Args:
        strength: the share of the steps that is made; 33 of 50 as published for Stable Diffusion 3,
            24 of 28 for FLUX.
        average: velocity differences that are averaged in a step (n_avg).
        plain: the last moves, so many, are ordinary sampling under the target (n_min).
    """

    strength: float = 0.66
    average: int = 1
    plain: int = 0
    transition: Transition = Euler
    spacing: str = "uniform"
    default_steps: int = 50

    needs: ClassVar[frozenset[str]] = frozenset({"source", "source prior"})
    when: ClassVar[str] = "editing without inversion, flow models"
    paper: ClassVar[str] = "Kulikov et al., ICCV 2025, arXiv 2412.08629"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average < 1:
            raise InputError(f"average must be an integer >= 1, got {self.average!r}")
        if self.plain < 0:
            raise InputError(f"plain must be an integer >= 0, got {self.plain!r}")

    def nfe(self, steps: int) -> int:
        """Two for each difference of velocities, one for each plain move."""
        made = moves(steps, self.strength)
        plain = min(self.plain, made)
        ordinary = plain + self.transition.evaluations * max(plain - 1, 0)
        return 2 * self.average * (made - plain) + ordinary

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """The source itself: z carries no noise."""
        assert problem.source is not None
        return {"x": problem.source, "x0": problem.source}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Differences of velocities at states with one noise, averaged; Euler."""
        t, s = step.t, step.s
        source, z = problem.source, state["x"]
        assert source is not None
        left = step.steps - step.index
        scale = t.alpha + t.sigma  # from the flow's states to the schedule's
        if left <= self.plain:
            first = step.index == 0 or left == self.plain
            x_t = between(source, noise("source"), t) + scale * (z - source) if first else z
            estimate = problem.prior(x_t, t.t)
            if first:  # before it z moved, which is no estimate
                step = replace(step, before=None)
            return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}
        difference = torch.zeros_like(z)
        for j in range(self.average):
            x_source = between(source, noise("source", j), t)
            x_target = x_source + scale * (z - source)
            target = problem.prior(x_target, t.t).x0
            difference = difference + target - source_prior(problem)(x_source, t.t).x0
        here, there = t.sigma / scale, s.sigma / (s.alpha + s.sigma)
        velocity = (z - source - difference / self.average) / here
        z = z + (there - here) * velocity
        return {"x": z, "x0": z}
