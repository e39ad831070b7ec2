"""PostEdit: editing by posterior sampling from a random-mask measurement of the source.

F. Tian, Y. Li, Y. Yan, S. Guan, Y. Ge, X. Yang, "PostEdit: posterior sampling for efficient
zero-shot image editing", ICLR 2025, arXiv 2410.04844. The prior is conditioned on what the edit
should show; the source z_in, its measurement y = B z_in + 0.05 n (B a random mask) and a fusion
keep the rest. From a state noised to the first level, at each level

    x0hat = E[x0 | x_t]
    x     ~ exp(-|B x - y|^2 / (2 tau^2) - |x - x0hat|^2 / (2 sigma_t^2))   M Langevin steps, from
                                                                           x0hat
    x_s   = alpha_s ((1 - w) x + w z_in) + sigma_s z

and the result is the last x0hat, uncorrected. The Langevin steps run on a quadratic, entry by
entry: an autoregression, whose state after M steps is known in law; `closed` draws that at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from posterior import rows
from posterior.errors import InputError
from posterior.guidance import _kernels
from posterior.guidance.base import Guidance, State, Step
from posterior.operators.base import check_number
from posterior.operators.mask import random_positions
from posterior.problem import Problem
from posterior.schedules import CLEAN, Discrete, Level, Schedule
from posterior.streams import Noise

_TABLE = Discrete.scaled_linear()  # Stable Diffusion's, in which the published times are counted
_FIRST, _LAST = 501, 1


@dataclass(frozen=True, kw_only=True)
class PostEdit(Guidance):
    """PostEdit. The settings are the published ones.

    Args:
        keep_fraction: of the positions (the last two axes), the same in all channels, that are
            measured in the source.
        fusion: w, the share of the source in every re-noised state; higher keeps more.
        inner_steps: M of the Langevin chain.
        rate, decay: its first step length, which falls linearly to `decay` times that.
        tau: standard deviation of the data that the chain assumes.
        source_noise: standard deviation of the noise that is added to the measured source.
        closed: draw the state after M steps from its law instead of taking the steps.

    A latent consistency model takes the guidance scale as an input, at one network call a step; the
    published code guides it by two calls without that input.

    The levels are those of Stable Diffusion's table at index 501, 401, ..., 101 for five steps,
    evenly for others, matched by sigma / alpha under other schedules.
    """

    default_steps: int = 5
    keep_fraction: float = 0.5
    fusion: float = 0.25
    inner_steps: int = 200
    rate: float = 1e-5
    decay: float = 0.01
    tau: float = 0.01
    source_noise: float = 0.05
    closed: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    own_rule: ClassVar[bool] = True
    when: ClassVar[str] = "editing: pass source=, and condition the prior on the target"
    paper: ClassVar[str] = "Tian et al., ICLR 2025, arXiv 2410.04844"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep_fraction", "fusion"):
            check_number(name, getattr(self, name), 0, 1)
        if self.inner_steps < 0:
            raise InputError(f"inner_steps must be an integer >= 0, got {self.inner_steps!r}")
        for name in ("rate", "decay", "tau", "source_noise"):
            if check_number(name, getattr(self, name), 0) == 0 and name != "source_noise":
                raise InputError(f"{name} must be > 0")
        if self.rate >= 2 * self.tau**2:
            raise InputError(
                f"rate={self.rate:g} is too long a step for tau={self.tau:g}, the chain diverges:"
                f" rate must be below 2 tau^2 = {2 * self.tau**2:g}"
            )

    def nfe(self, steps: int) -> int:
        """One a step."""
        return steps

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """From index 501 of Stable Diffusion's table in equal strides towards index 1."""
        times = [(_FIRST - k * (_FIRST - _LAST) / steps + 1) / len(_TABLE) for k in range(steps)]
        low, high = schedule.ratio_range
        ratios = [min(max(_TABLE.level(t).ratio, low), high) for t in times]
        return [*map(schedule.level_of_ratio, ratios), CLEAN]

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """The source at the first level; its mask and measurement."""
        state = super().start(problem, level, noise)
        source = state["x0"]
        area = math.prod(source.shape[-2:]) if source.ndim > 2 else source.shape[-1]
        kept = random_positions(noise, round(self.keep_fraction * area), area)
        shape = source.shape[-2:] if source.ndim > 2 else source.shape[-1:]
        ones = [1] * (source.ndim - 1 - len(shape))
        mask = kept.reshape(-1, *ones, *shape).to(source.dtype).expand_as(source).clone()
        y = mask * (source + self.source_noise * noise("measurement"))
        return {**state, "mask": mask, "y": y}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, draw given the measured source, fuse, renoise."""
        t, s = step.t, step.s
        estimate = problem.prior(state["x"], t.t)
        carried = {"mask": state["mask"], "y": state["y"]}
        if s.sigma == 0:
            return {"x": estimate.x0, "x0": estimate.x0, **carried}
        x = self._draw(estimate.x0, state, step, noise)
        assert problem.source is not None
        fused = (1 - self.fusion) * x + self.fusion * problem.source
        return {"x": s.alpha * fused + s.sigma * noise("move"), "x0": estimate.x0, **carried}

    def _draw(self, x0hat: Tensor, state: State, step: Step, noise: Noise) -> Tensor:
        """The state of the Langevin chain after M steps from x0hat."""
        mask, y = state["mask"], state["y"]
        h = self.rate * (1 - (1 - self.decay) * step.index / step.steps)
        # the published code takes sigma of the variance-preserving form, sigma^2 <= 1
        prior_variance = 1 / (1 + 1 / step.t.ratio**2)
        precision = mask / self.tau**2 + 1 / prior_variance

        if not self.closed:

            def gradient(x: Tensor) -> Tensor:
                return mask * (y - x) / self.tau**2 + (x0hat - x) / prior_variance

            return _kernels.langevin(x0hat, gradient, h, self.inner_steps, noise)
        # x <- a x + (1 - a) m + sqrt(2 h) z with a = 1 - h precision, m the mode
        mode = (mask * y / self.tau**2 + x0hat / prior_variance) / precision
        a = 1 - h * precision
        left = rows.power(a, self.inner_steps)
        # 2 h (1 - a^2M) / (1 - a^2), with 1 - a^2 by factors: a may round to 1
        spent = 2 * (1 - left * left) / (precision * (2 - h * precision))
        return mode + left * (x0hat - mode) + spent.clamp(min=0).sqrt() * noise("kernel")
