"""Blended diffusion: what is measured is put back, noised, after every move.

O. Avrahami, D. Lischinski, O. Fried, "Blended diffusion for text-driven editing of natural images",
CVPR 2022, arXiv 2111.14818, and, on latents, O. Avrahami, O. Fried, D. Lischinski, "Blended latent
diffusion", SIGGRAPH 2023, arXiv 2206.02779. With A a mask of what is kept and y the source there:

    x_s <- x_s + A+ (alpha_s y + sigma_s A z - A x_s)

For a mask that is (1 - keep) x_s + keep (alpha_s source + sigma_s z); any linear A with a
pseudo-inverse will do. A single pass does not know the correlation of what is kept with what is
painted (as MCG, DPS and MMPS do through the network's gradient): seams show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posterior.guidance._editing import PartWay
from posterior.guidance.base import State, Step
from posterior.guidance.mcg import projected
from posterior.problem import Problem
from posterior.streams import Noise


@dataclass(frozen=True, kw_only=True)
class Blended(PartWay):
    """Sample under the target's prior and put what is measured back at every level.

    Args:
        strength: the share of the steps that is made, in (0, 1]; below 1 the run starts from the
            noised source, which must then be given.
    """

    spacing: str = "uniform"
    default_steps: int = 50

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "linear", "pinv"})
    when: ClassVar[str] = "editing with a mask; no gradient of the network"
    paper: ClassVar[str] = "Avrahami et al., CVPR 2022, arXiv 2111.14818; SIGGRAPH 2023, 2206.02779"

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, move, put back."""
        estimate = problem.prior(state["x"], step.t.t)
        x_s = self.move(problem, estimate, step, noise, state)
        return {"x": projected(problem, x_s, step.s, noise), "x0": estimate.x0}
