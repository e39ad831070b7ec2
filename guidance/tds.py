"""The twisted diffusion sampler: a particle filter, the more particles the smaller its error.

L. Wu, B. Trippe, C. Naesseth, D. Blei, J. Cunningham, "Practical and asymptotically exact
conditional sampling in diffusion models", NeurIPS 2023, arXiv 2306.17775. K particles per draw; the
twist

    P_t(x_t) = N(y; A x0(x_t), N + r_t^2),    r_t^2 = 1 / (1 / spread^2 + (alpha / sigma)^2)

guides the proposal and its errors are weighed away:

    q(x_s | x_t) = N(m + k d, c^2),  p(x_s | x_t) = N(m, c^2),  d = (sigma^2 / alpha) grad log P_t
    log w = log p(x_s | x_t) - log q(x_s | x_t) + log P_s(x_s) - log P_t(x_t)

with m, c of the ancestral step and k = dm / dx0. The last twist is the likelihood of the result.
One filter gives one draw: particles of one filter share ancestors. Any r_t is valid, at the price
of the variance of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError
from posterior.guidance._consistency import estimate_variance
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.dps import check_variance
from posterior.operators.noise import GaussianNoise
from posterior.problem import Problem
from posterior.schedules import Level
from posterior.streams import Noise
from posterior.transitions import DDIM, fresh_noise


@dataclass(frozen=True, kw_only=True)
class TDS(Guidance):
    """Twisted diffusion sampling.

    Args:
        particles: K of one filter, i.e. of one draw.
        spread: standard deviation of x0 under a white prior, in the width of the twist.
        threshold: resample when the effective number of particles falls below this share of K;
            1 resamples always.

    A particle that meets something not finite weighs nothing from there on; a draw fails when no
    particle of its filter is left. `evidence` of the final state is the filter's estimate of
    log p(y).
    """

    particles: int = 64
    spread: float = 1.0
    threshold: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset(
        {"measurement", "network gradient", "operator gradient"}
    )
    when: ClassVar[str] = "small problems, as a reference: exact with many particles"
    paper: ClassVar[str] = "Wu et al., NeurIPS 2023, arXiv 2306.17775"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.particles < 1:
            raise InputError(f"particles must be an integer >= 1, got {self.particles!r}")
        if not self.spread > 0:
            raise InputError(f"spread must be > 0, got {self.spread!r}")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be in [0, 1], got {self.threshold!r}")
        if not isinstance(self.transition, DDIM) or self.transition.eta == 0:
            raise InputError("TDS weighs random steps: its transition is DDIM(eta) with eta > 0")

    def check(self, problem: Problem) -> None:
        """The likelihood must have a density."""
        check_variance(problem, "TDS")
        _, y, noise_model = problem.measured()
        if bool((torch.as_tensor(noise_model.variance(y)) == 0).any()):
            raise CapabilityError("TDS needs a likelihood: give noise > 0")

    def vjps(self, steps: int) -> int:
        """One a step and particle."""
        return self.particles * steps

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """Particles of the prior, with equal weights."""
        state = super().start(problem, level, noise)
        zero = torch.zeros(len(state["x"]), dtype=torch.float64, device=state["x"].device)
        # log_w: weights but for the twist of the current level; log_twist: that of the level before
        return {**state, "log_w": zero, "log_twist": zero, "log_evidence": zero}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Weigh by the twist, resample, propose."""
        assert isinstance(self.transition, DDIM)
        t, s = step.t, step.s
        operator, y, noise_model = problem.measured()
        estimate, pull = problem.prior.vjp(state["x"], t.t)
        a_x0, pull_operator = operator.vjp(estimate.x0)
        r = y - a_x0
        variance = noise_model.variance(y) + estimate_variance(t, self.spread)
        log_twist = _log_normal(r, variance)
        log_w = state["log_w"] + log_twist - state["log_twist"]
        to_covariance = t.sigma**2 / t.alpha if t.alpha > 0 else 0.0
        d = to_covariance * pull(pull_operator(r / variance))
        fine = rows.finite(estimate.x0) & rows.finite(d) & torch.isfinite(log_w)
        log_w = torch.where(fine, log_w, -math.inf)

        ancestor, log_w, log_evidence = self._resampled(log_w, state["log_evidence"], noise)
        x0, d = estimate.x0[ancestor], d[ancestor]
        log_twist = log_twist[ancestor]
        renoise = estimate.eps_renoise[ancestor]

        c = fresh_noise(t, s, self.transition.eta)
        if s.sigma == 0 or c == 0:  # the mean alone, unguided; its twist is the likelihood itself
            x_s = s.alpha * x0
            if s.sigma > 0:
                x_s = x_s + s.sigma * renoise
            else:
                last = _likelihood(problem, x_s)
                log_w = log_w + last - log_twist
                log_w = torch.where(torch.isfinite(log_w), log_w, -math.inf)
        else:
            kept = math.sqrt(max(s.sigma**2 - c**2, 0.0))
            k = s.alpha - kept * t.alpha / t.sigma  # eps follows from x0
            z = noise("move")
            x_s = s.alpha * x0 + kept * renoise + k * d + c * z
            shift = k * k * rows.dot(d, d) + 2 * c * k * rows.dot(d, z)
            log_w = log_w - (shift / (2 * c * c)).double()
        # what weighs nothing waits, finite, for the next resampling; a filter without weight fails
        dead = log_w == -math.inf
        lost = dead.reshape(-1, self.particles).all(1).repeat_interleave(self.particles)
        x_s = rows.where(~dead, x_s, state["x"])
        return {
            "x": rows.where(~lost, x_s, torch.nan * x_s),
            "x0": rows.where(~dead, x0, state["x0"]),
            "log_w": log_w,
            "log_twist": torch.where(dead, 0.0, log_twist),
            "log_evidence": log_evidence,
        }

    def _resampled(
        self, log_w: Tensor, log_evidence: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ancestors of every row, their weights, and the evidence so far.

        Systematic resampling, filter by filter: one uniform number places K evenly spaced arrows.
        """
        count = self.particles
        uniform = noise.uniform("resample", shape=())
        ancestors, weights, evidence = [], [], []
        for first in range(0, len(log_w), count):
            own = log_w[first : first + count]
            total = torch.logsumexp(own, 0)
            index = torch.arange(first, first + count, device=own.device)
            w = (own - total).exp()
            effective = 1 / w.square().sum()
            if bool(torch.isfinite(total)) and bool(
                (effective < self.threshold * count) | (self.threshold == 1)
            ):
                arrows = (torch.arange(count, device=own.device) + uniform[first]) / count
                index = first + _passed(w, arrows)
                evidence.append(log_evidence[first : first + count] + total - math.log(count))
                own = torch.zeros_like(own)
            else:
                evidence.append(log_evidence[first : first + count])
            ancestors.append(index)
            weights.append(own)
        return torch.cat(ancestors), torch.cat(weights), torch.cat(evidence)

    def finish(self, problem: Problem, state: State, noise: Noise) -> Tensor:
        """One particle of each filter, by its weight."""
        uniform = noise.uniform("choose", shape=())
        chosen = []
        for first in range(0, len(state["log_w"]), self.particles):
            own = state["log_w"][first : first + self.particles]
            w = torch.softmax(own, 0)
            chosen.append(first + int(_passed(w, uniform[first])))
        return state["x"][chosen]

    def evidence(self, state: State) -> Tensor:
        """The estimate of log p(y) by each filter, from its final state: (filters,)."""
        own = state["log_w"].reshape(-1, self.particles)
        before = state["log_evidence"].reshape(-1, self.particles)[:, 0]
        return before + torch.logsumexp(own, 1) - math.log(self.particles)


def _passed(w: Tensor, levels: Tensor) -> Tensor:
    """The particle at which the running sum of the weights passes each level; one with a weight."""
    last = torch.nonzero(w)[-1:].flatten()
    place = torch.searchsorted(w.cumsum(0), levels)
    return torch.minimum(place, last) if len(last) else place.clamp(max=len(w) - 1)


def _log_normal(r: Tensor, variance: float | Tensor) -> Tensor:
    """Log N(r; 0, variance) of each row, float64, per real component."""
    if isinstance(variance, Tensor):
        model = GaussianNoise(variance.sqrt().expand_as(r.real))
    else:
        model = GaussianNoise(math.sqrt(variance))
    return model.log_prob(r, torch.zeros_like(r)).double()


def _likelihood(problem: Problem, x: Tensor) -> Tensor:
    operator, y, noise_model = problem.measured()
    return noise_model.log_prob(y, operator(x)).double()
