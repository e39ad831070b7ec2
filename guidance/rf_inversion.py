"""RF-Inversion: inversion and editing with a controller towards noise, then towards the source.

L. Rout, Y. Chen, N. Ruiz, C. Caramanis, S. Shakkottai, W.-S. Chu, "Semantic image inversion and
editing using rectified stochastic differential equations", ICLR 2025, arXiv 2410.10792. In the time
of a rectified flow the controllers are straight lines, to one sample n of the noise on the way up
and to the source on the way down:

    up    v <- v + gamma ((n - x) / (1 - t) - v)
    down  v <- v + eta   ((x - source) / t - v)

which mixes n into the noise that is seen in x, and the source into the estimate of x0, at fixed x:

    up    eps <- (1 - gamma) eps + gamma n
    down  x0  <- (1 - eta)   x0  + eta source

So written they hold for every schedule. One level serves label, controller and step, which the
published code mixes up on the way up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posterior.errors import InputError
from posterior.guidance._editing import (
    Inversion,
    ddim,
    rises,
    source_prior,
    told,
)
from posterior.guidance.base import State, Step
from posterior.problem import Problem
from posterior.streams import Noise


@dataclass(frozen=True, kw_only=True)
class RFInversion(Inversion):
    """Controlled inversion, controlled editing.

    Args:
        gamma: in [0, 1]; 0 inverts plainly, 1 goes straight to the noise.
        eta: in [0, 1]; 1 goes straight back to the source.
        stop: the part of the way down, in steps, during which eta acts.
        strength: the share of the levels that is climbed, in (0, 1].
    """

    gamma: float = 0.5
    eta: float = 0.9
    stop: float = 0.25
    spacing: str = "uniform"
    default_steps: int = 28

    when: ClassVar[str] = "editing by controlled inversion, flow models"
    paper: ClassVar[str] = "Rout et al., ICLR 2025, arXiv 2410.10792"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "eta", "stop"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be in [0, 1], got {value!r}")

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Up towards one sample of the noise, down towards the source."""
        x, half = state["x"], step.steps // 2
        if rises(step):
            eps = source_prior(problem)(x, told(step).t).eps
            mixed = (1 - self.gamma) * eps + self.gamma * noise.at(0)("controller")
            return {"x": ddim(x, mixed, step.t, step.s), "x0": state["x0"]}
        estimate = problem.prior(x, step.t.t)
        if step.index - half < self.stop * half:
            assert problem.source is not None
            x0 = (1 - self.eta) * estimate.x0 + self.eta * problem.source
            estimate = estimate.with_x0(x0)
        return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}
