"""FlowChef: the estimate is steered, the velocity is frozen, the network gives no gradient.

M. Patel, S. Wen, D. N. Metaxas, Y. Yang, "FlowChef: steering of rectified flow models for
controlled generations", ICCV 2025, arXiv 2412.00100. In the time of a rectified flow, from t to t':

    x0 = x - t v
    x0 <- x0 - s A' (A x0 - y)          K times: the step of DPS with 1 for the network's Jacobian
    x_t' = x0 + t' v

The loss is half the squared residual of one draw. The published code takes the mean over all
elements of a batch and a step of its own for each model; here the step is that of gradient descent
on the loss, so that A = I or a mask with s = 1 puts y in place. For flows; other schedules are
flows in x / (alpha + sigma).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posterior.errors import InputError
from posterior.guidance._editing import PartWay, moves
from posterior.guidance.base import State, Step
from posterior.problem import Problem
from posterior.streams import Noise


@dataclass(frozen=True, kw_only=True)
class FlowChef(PartWay):
    """Gradient descent on the estimate, frozen velocity.

    Args:
        step: s of a gradient step, >= 0; for linear A below 2 / |A|^2.
        inner_steps: K.
        strength: the share of the steps that is made, in (0, 1]; below 1 from the noised source.
    """

    step: float = 1.0
    inner_steps: int = 1
    spacing: str = "uniform"
    default_steps: int = 100

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "operator gradient"})
    own_rule: ClassVar[bool] = True
    when: ClassVar[str] = "flow models; no gradient of the network"
    paper: ClassVar[str] = "Patel et al., ICCV 2025, arXiv 2412.00100"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.step < float("inf"):
            raise InputError(f"step must be a number >= 0, got {self.step!r}")
        if self.inner_steps < 1:
            raise InputError(f"inner_steps must be an integer >= 1, got {self.inner_steps!r}")

    def nfe(self, steps: int) -> int:
        """One for each step that is made."""
        return moves(steps, self.strength)

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, descend on the estimate, move with the old velocity."""
        t, s = step.t, step.s
        operator, y, _ = problem.measured()
        x0 = problem.prior(state["x"], t.t).x0
        scale, next_scale = t.alpha + t.sigma, s.alpha + s.sigma
        velocity = (state["x"] / scale - x0) / (t.sigma / scale)
        for _ in range(self.inner_steps):
            a_x0, pull = operator.vjp(x0)
            x0 = x0 + self.step * pull(y - a_x0)
        return {"x": next_scale * x0 + s.sigma * velocity, "x0": x0}
