"""Editing by inversion: the source is taken up to noise, and down again under the target.

J. Song, C. Meng, S. Ermon, "Denoising diffusion implicit models", ICLR 2021, arXiv 2010.02502: the
deterministic sampler, run upwards under the source's prior, finds the noise of a source up to an
error of the order of the steps:

    x_{i+1} = DDIM_{i -> i+1}(x_i, eps(x_i))

eps is told the time of level i + 1 ("target" label; diffusers' inverse scheduler and the line of
null-text inversion) or that of level i ("source" label; the textbook's ODE).

Negative-prompt inversion (D. Miyake, A. Iohara, Y. Saito, T. Tanaka, arXiv 2305.16807) is the same
with the source's prompt as the negative prompt on the way down: with equal prompts it reconstructs
at any guidance scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from posterior.errors import unknown_name
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

Label = Literal["target", "source"]


@dataclass(frozen=True, kw_only=True)
class DDIMInversion(Inversion):
    """Invert the source by DDIM, denoise under the target's prior.

    Args:
        strength: the share of the levels that is climbed, in (0, 1].
        label: the time that the network is told on the way up.

    Two runs with different seeds are equal: nothing is random. `steps` are counted one way.
    """

    label: Label = "target"

    when: ClassVar[str] = "editing by inversion, the plain form"
    paper: ClassVar[str] = "Song et al., ICLR 2021, arXiv 2010.02502"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label not in get_args(Label):
            raise unknown_name("label", str(self.label), get_args(Label))

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Up under the source, down under the target."""
        x = state["x"]
        if not rises(step):
            estimate = problem.prior(x, step.t.t)
            return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}
        # asked at alpha = 0 a network gives x back as eps
        ahead = self.label == "target" and step.s.alpha > 0
        eps = source_prior(problem)(x, step.s.t if ahead else told(step).t).eps
        return {"x": ddim(x, eps, step.t, step.s), "x0": state["x0"]}


@dataclass(frozen=True, kw_only=True)
class NegativePromptInversion(DDIMInversion):
    """DDIM inversion for a prior that is guided away from the source's prompt.

    `posterior.edit` builds that prior; by hand it is `prior.given(target, negative=source, scale)`.
    """

    when: ClassVar[str] = "editing by inversion with a strong guidance scale"
    paper: ClassVar[str] = "Miyake et al., arXiv 2305.16807"
