"""DDCM, the virtual inversion of InfEdit: only the difference of two prompts is integrated.

S. Xu, Y. Huang, J. Pan, Z. Ma, J. Chai, "Inversion-free image editing with natural language", CVPR
2024, arXiv 2312.04965, without its attention control. The source's noise is known exactly, so the
source needs no inversion. With D and D' the denoisers under target and source, both at states that
share their noise z:

    x0    = source + D(x_t) - D'(x'_t)
    x_s   = alpha_s x0     + sqrt(sigma_s^2 - c^2) eps  + c z,      c^2 = eta sigma_s^2
    x'_s  = alpha_s source + sqrt(sigma_s^2 - c^2) eps' + c z

eps' = (x'_t - alpha_t source) / sigma_t, and eps is eps' plus the difference of the predictions.
With equal prompts the source comes back exactly, whatever the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from posterior.errors import InputError
from posterior.guidance._editing import PartWay, between, moves, source_prior
from posterior.guidance.base import State, Step
from posterior.problem import Problem
from posterior.schedules import Level
from posterior.streams import Noise


@dataclass(frozen=True, kw_only=True)
class DDCM(PartWay):
    """InfEdit's sampler: for few-step models above all.

    Args:
        eta: the share of fresh noise; 1 is the multistep sampler of consistency models, in which
            the old noise is forgotten. (Not the eta of DDIM.)
        strength: the share of the steps that is made, in (0, 1].
    """

    eta: float = 1.0
    spacing: str = "trailing"
    default_steps: int = 12

    needs: ClassVar[frozenset[str]] = frozenset({"source", "source prior"})
    own_rule: ClassVar[bool] = True
    when: ClassVar[str] = "editing without inversion, few-step models"
    paper: ClassVar[str] = "Xu et al., CVPR 2024, arXiv 2312.04965"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta must be in [0, 1], got {self.eta!r}")

    def nfe(self, steps: int) -> int:
        """Two for each step that is made: target and source."""
        return 2 * moves(steps, self.strength)

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """Both states are the source with the same noise."""
        state = super().start(problem, level, noise)
        return {**state, "source": state["x"]}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Two estimates, their difference, and two moves with one noise."""
        t, s = step.t, step.s
        source = problem.source
        assert source is not None
        target = problem.prior(state["x"], t.t)
        known = source_prior(problem)(state["source"], t.t)
        x0 = source + target.x0 - known.x0
        if s.sigma == 0:
            return {"x": x0, "x0": x0, "source": source}
        eps_source = (state["source"] - t.alpha * source) / t.sigma
        eps = target.eps - known.eps + eps_source
        kept, fresh = math.sqrt(1 - self.eta) * s.sigma, math.sqrt(self.eta) * noise("move")
        return {
            "x": between(x0, fresh, s) + kept * eps,
            "x0": x0,
            "source": between(source, fresh, s) + kept * eps_source,
        }
