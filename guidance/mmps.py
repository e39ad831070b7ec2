"""Moment matching posterior sampling.

F. Rozet, G. Andry, F. Lanusse, G. Louppe, "Learning diffusion priors from observations by
expectation maximization", NeurIPS 2024, arXiv 2405.13712. The estimate is replaced by
E[x0 | x_t, y] under the Gaussian with the mean and covariance that Tweedie's formulas give x0 (see
`_moments`), and any transition moves on from there:

    x0 <- x0 + C A' (N + A C A')^-1 (y - A x0),    C = (sigma^2 / alpha) dx0/dx_t

Exact for Gaussian priors, up to time steps, when the system is solved; a reference for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posterior.errors import InputError
from posterior.guidance._moments import guided_correction
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.dps import check_variance
from posterior.problem import Problem
from posterior.streams import Noise


@dataclass(frozen=True, kw_only=True)
class MMPS(Guidance):
    """Moment matching: the whole covariance of x0 given x_t, without ever forming it.

    Args:
        iterations: of the linear solver, one backward pass through the network each; 0 ignores the
            measurement. They are those of conjugate gradients, made safe against a network's
            Jacobian, which is not exactly symmetric (`_solve.galerkin`).
        inner_steps: of conjugate gradients with a linear operator alone, two products with A each,
            that precondition every iteration; 0 for the published method.

    The corrected estimate is cut to the prior's range, in which the mean that it stands for lies:
    with the photo prior some draws of a deblurring ran away from it otherwise.
    """

    iterations: int = 3
    inner_steps: int = 10
    default_steps: int = 50  # as dear as 100 steps of DPS

    needs: ClassVar[frozenset[str]] = frozenset(
        {"measurement", "network gradient", "operator gradient"}
    )
    when: ClassVar[str] = "linear operators; three backward passes a step, few steps"
    paper: ClassVar[str] = "Rozet et al., NeurIPS 2024, arXiv 2405.13712"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "inner_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be an integer >= 0, got {getattr(self, name)!r}")

    def check(self, problem: Problem) -> None:
        """The noise must have a variance in every entry of y, or none anywhere."""
        check_variance(problem, "MMPS")

    def vjps(self, steps: int) -> int:
        """`iterations` a step."""
        return self.iterations * steps

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, match the moments, move."""
        if self.iterations == 0:
            return super().advance(problem, state, step, noise)
        estimate, pull = problem.prior.vjp(state["x"], step.t.t)
        x0 = estimate.x0 + guided_correction(
            problem, estimate.x0, step.t, pull, self.iterations, self.inner_steps
        )
        if problem.prior.range is not None:
            x0 = x0.clamp(*problem.prior.range)  # a mean lies there; a network's covariance may not
        return {"x": self.move(problem, estimate.with_x0(x0), step, noise, state), "x0": x0}
