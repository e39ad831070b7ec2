"""Manifold constrained gradient.

H. Chung, B. Sim, D. Ryu, J. C. Ye, "Improving diffusion models for inverse problems using manifold
constraints", NeurIPS 2022, arXiv 2206.00941. A gradient through the network, then a projection onto
the measurement at the level of the next state, with A^+ A the projector onto what is observed:

    x'  = move(x0) - zeta grad_{x_t} ||y - A x0(x_t)||
    x_s = (I - A^+ A) x' + A^+ y_s,     y_s = alpha_s y + sigma_s A z'

The method is meant for (nearly) noise-free data: the output satisfies A x = y exactly, so noise in
y stays in the result, where the posterior would shrink it. The published code noises y to the level
of x_t instead of x_s, so that its last state keeps noise: `late` does the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from posterior.errors import InputError, unknown_name
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.dps import default_zeta, estimate_with_gradient, unit_rows
from posterior.problem import Problem
from posterior.schedules import Level
from posterior.streams import Noise
from posterior.transitions import LearnedVariance


@dataclass(frozen=True, kw_only=True)
class MCG(Guidance):
    """Gradient and projection.

    Args:
        scale: zeta; None is our default, `dps.default_zeta`, by dimension and number of steps. 0 is
            plain projection sampling, without a gradient.
        clamp: clamp x0 to the prior's range inside the graph, as the published code does.
        late: noise y to the level of x_t, as the published code does.
    """

    scale: float | None = None
    clamp: bool = False
    late: bool = False

    needs: ClassVar[frozenset[str]] = frozenset(
        {"measurement", "network gradient", "operator gradient", "linear", "pinv"}
    )
    when: ClassVar[str] = "noise-free data of an operator with a pseudo-inverse: A x = y exactly"
    paper: ClassVar[str] = "Chung et al., NeurIPS 2022, arXiv 2206.00941"

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = self.scale
        if scale is not None and not 0 <= scale < math.inf:
            raise InputError(f"scale must be a number >= 0 or None, got {scale!r}")

    @staticmethod
    def preset(name: str) -> MCG:
        """The settings of the published code: "code/inpainting"."""
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        return MCG(
            scale=PRESETS[name],
            clamp=True,
            late=True,
            transition=LearnedVariance(required=False),
            spacing="trailing",
            default_steps=1000,
        )

    def vjps(self, steps: int) -> int:
        """One backward pass a step; none when scale = 0."""
        return 0 if self.scale == 0 else steps

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate with gradient, move, step along the manifold, project."""
        x, s = state["x"], step.s
        operator, y, _ = problem.measured()
        estimate, pull = estimate_with_gradient(
            problem.prior, x, step.t.t, gradient=self.scale != 0, clamp=self.clamp
        )
        x_s = self.move(problem, estimate, step, noise, state)
        if pull is not None:
            a_x0, pull_operator = operator.vjp(estimate.x0)
            ascent = pull(pull_operator(unit_rows(y - a_x0)))
            zeta = default_zeta(x, step.steps) if self.scale is None else self.scale
            x_s = x_s + zeta * ascent
        known = step.t if self.late else s
        return {"x": projected(problem, x_s, known, noise), "x0": estimate.x0}


def projected(problem: Problem, x: Tensor, level: Level, noise: Noise) -> Tensor:
    """The nearest x with A x = y brought to the level, alpha y + sigma A z."""
    operator, y, _ = problem.measured()
    target = level.alpha * y
    if level.sigma > 0:
        target = target + level.sigma * operator(noise("known"))
    return x + operator.pinv(target - operator(x))


PRESETS: dict[str, float] = {"code/inpainting": 1.0}
"""Name -> zeta."""
