"""From one noise level to another: the step rules, and the ODE estimate of x0.

All are one formula, from level t to level s with r = sigma / alpha:

    x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z,    z ~ N(0, I)

    DDIM(eta)    c = eta sigma_s sqrt(1 - (r_s / r_t)^2)    Song et al. 2021a, eq. 12 and 16
      eta = 1    ancestral DDPM with the posterior variance  Ho et al. 2020
      eta = 0    Euler of the probability flow in r          Song et al. 2021b, Karras et al. 2022
    Renoise(eta) c = eta sigma_s                             Chung et al. 2024; eta = 1 forgets eps
    DPMSolver2M  x0 is extrapolated from the last two moves  Lu et al. 2022

Written in r the rules hold for variance-preserving, exploding and flow schedules alike. With
c <= sigma_s each keeps the marginals: if x0 and eps are the truth, x_s has the law of level s.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, SupportsFloat

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Estimate
from posterior.schedules import Level

Denoiser = Callable[[Tensor, float], Estimate]
Draw = Callable[[str], Tensor]


def move(
    x0: Tensor, eps: Tensor, s: Level, c: float, z: Tensor | None, spread: float | Tensor = -1.0
) -> Tensor:
    """x_s from x0, eps and fresh noise z; `spread` replaces c as the factor of z (>= 0)."""
    x = s.alpha * x0
    kept = math.sqrt(max(s.sigma**2 - c**2, 0.0))
    if kept > 0:
        x = x + kept * eps
    if z is not None:
        x = x + (spread if isinstance(spread, Tensor) or spread >= 0 else c) * z
    return x


def fresh_noise(t: Level, s: Level, eta: float = 1.0) -> float:
    """DDIM's c: eta sigma_s sqrt(1 - (r_s / r_t)^2); 0 when the step goes up."""
    if s.sigma == 0 or s.ratio >= t.ratio:
        return 0.0
    return eta * s.sigma * math.sqrt(1 - (s.ratio / t.ratio) ** 2)


def _number(eta: object) -> float:
    try:
        if not isinstance(eta, bool) and isinstance(eta, SupportsFloat):
            return float(eta)
    except (TypeError, ValueError):  # several numbers
        pass
    raise InputTypeError(f"eta must be a number, got {eta!r}")


class Before(NamedTuple):
    """What the move before this one went by: its estimate of x0, and the level it came from."""

    x0: Tensor
    t: Level


class Transition(ABC):
    """A step rule: the next state from the estimate at t."""

    evaluations = 0  # network evaluations that the rule itself adds per step

    @abstractmethod
    def __call__(
        self,
        estimate: Estimate,
        t: Level,
        s: Level,
        noise: Draw,
        denoiser: Denoiser,
        before: Before | None = None,
    ) -> Tensor:
        """x_s.

        `noise("move")` gives z; `denoiser(x, t)` evaluates the prior once more; `before` is None in
        the first move.
        """


@dataclass(frozen=True)
class DDIM(Transition):
    """DDIM(eta): eta = 1 is ancestral DDPM, eta = 0 the Euler step of the flow in sigma / alpha."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", _number(self.eta))
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta must be in [0, 1], got {self.eta}")

    def __call__(
        self,
        estimate: Estimate,
        t: Level,
        s: Level,
        noise: Draw,
        denoiser: Denoiser,
        before: Before | None = None,
    ) -> Tensor:
        """x_s; see the module."""
        c = fresh_noise(t, s, self.eta)
        if s.sigma == 0:
            return s.alpha * estimate.x0
        return move(estimate.x0, estimate.eps_renoise, s, c, noise("move") if c > 0 else None)


@dataclass(frozen=True)
class LearnedVariance(Transition):
    """The ancestral step with the network's own variance of x_s (Nichol & Dhariwal 2021, eq. 15).

    log v = (1 + u) / 2 log beta + (1 - u) / 2 log beta~ with u the network's second output,
    beta~ = c^2 the variance given x0 and beta = beta~ sigma_t^2 / sigma_s^2 that without. Both are
    those of this very step, so that the rule holds on respaced grids as on the full table.

    With required=False a prior without a learned variance gets the posterior variance, i.e. DDPM.
    """

    required: bool = True

    def __call__(
        self,
        estimate: Estimate,
        t: Level,
        s: Level,
        noise: Draw,
        denoiser: Denoiser,
        before: Before | None = None,
    ) -> Tensor:
        """x_s; needs a prior that has learned its variance."""
        if estimate.variance_share is None and not self.required:
            return DDPM(estimate, t, s, noise, denoiser)
        if estimate.variance_share is None:
            raise CapabilityError("this prior has no learned variance: use DDPM, i.e. DDIM(eta=1)")
        if s.sigma == 0:
            return s.alpha * estimate.x0
        c = fresh_noise(t, s)
        widening = math.log(t.sigma / s.sigma) / 2
        spread = c * torch.exp((1 + estimate.variance_share) * widening)  # sqrt(v)
        return move(estimate.x0, estimate.eps_renoise, s, c, noise("move"), spread)


@dataclass(frozen=True)
class Renoise(Transition):
    """New noise with the share eta of the level, whatever the step: c = eta sigma_s.

    eta = 1 keeps the estimate only; smaller shares (Chung et al. 2024, DDS) mix in the old eps.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", _number(self.eta))
        if not 0 < self.eta <= 1:
            raise InputError(f"eta must be in (0, 1], got {self.eta}")

    def __call__(
        self,
        estimate: Estimate,
        t: Level,
        s: Level,
        noise: Draw,
        denoiser: Denoiser,
        before: Before | None = None,
    ) -> Tensor:
        """x_s; see the module."""
        if s.sigma == 0:
            return s.alpha * estimate.x0
        # eta = 1 does not need eps, which does not exist where sigma_t = 0
        eps = estimate.x0 if self.eta == 1 else estimate.eps_renoise
        return move(estimate.x0, eps, s, self.eta * s.sigma, noise("move"))


@dataclass(frozen=True)
class Heun(Transition):
    """Heun's second-order step of the flow in r (Karras et al. 2022, algorithm 1).

    With x~ = x / alpha the flow is dx~/dr = eps. Euler's step is DDIM(0); the corrector averages
    eps at both ends. The last step to r = 0, and one that comes from alpha = 0, stay Euler's. The
    second estimate is the prior's own: methods that steer by a measurement refuse it.
    """

    evaluations = 1

    def __call__(
        self,
        estimate: Estimate,
        t: Level,
        s: Level,
        noise: Draw,
        denoiser: Denoiser,
        before: Before | None = None,
    ) -> Tensor:
        """x_s; evaluates the prior a second time, at s."""
        x_s = DDIM(0.0)(estimate, t, s, noise, denoiser)
        if s.sigma == 0 or t.alpha == 0:
            return x_s
        eps_s = denoiser(x_s, s.t).eps_renoise
        return x_s + s.alpha * (s.ratio - t.ratio) / 2 * (eps_s - estimate.eps_renoise)


@dataclass(frozen=True)
class DPMSolver2M(Transition):
    """Second order at one evaluation a step: DPM-Solver++(2M), eta = 0, and its SDE form, eta > 0.

    Lu et al. 2022, "DPM-Solver++", arXiv 2211.01095. With h = log r_t / r_s

        x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) x0' + c z
        x0' = x0 + min(h / h_before, 1) / 2 (x0 - x0_before)      c = sigma_s sqrt(1 - e^(-2 eta h))

    The bound of 1 is ours: it keeps the order, and without it the last moves of grids even in t
    (h three times and more h_before) throw x off. The first move is of first order, and so are
    methods that move x after the rule has (DPS in its published forms, MCG, Blended).

    eta is the factor of g^2 of the SDE (Karras et al. 2022, eq. 6): 1 is the noise of DDPM, more
    renews x more often, and any has the right marginals as the steps grow. Methods whose estimate
    errs do better with more, for every renewal lets the prior correct them.

    DDPM's draws are too much alike in few steps: of N(0, v) 25 steps of the Karras grid give 0.55
    to 0.65 v, this 1.05 to 1.1 v, 50 steps 0.7 to 0.8 and 1.02 to 1.04, 100 steps 0.85 to 0.9 and
    1.00 to 1.01. On grids even in t both are narrower where v is small.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", _number(self.eta))
        if not 0 <= self.eta < math.inf:
            raise InputError(f"eta must be >= 0 and finite, got {self.eta}")

    def __call__(
        self,
        estimate: Estimate,
        t: Level,
        s: Level,
        noise: Draw,
        denoiser: Denoiser,
        before: Before | None = None,
    ) -> Tensor:
        """x_s; see the class."""
        if s.sigma == 0:
            return s.alpha * estimate.x0
        falls = s.ratio < t.ratio
        shrinks = (s.ratio / t.ratio) ** self.eta if falls else 1.0  # e^(-eta h)
        c = s.sigma * math.sqrt(1 - shrinks**2)
        x_s = move(estimate.x0, estimate.eps_renoise, s, c, noise("move") if c > 0 else None)
        if before is None or not falls or before.t.ratio <= t.ratio:
            return x_s
        h, h_before = math.log(t.ratio / s.ratio), math.log(before.t.ratio / t.ratio)
        weight = s.alpha * (1 - shrinks * s.ratio / t.ratio) * min(h / h_before, 1.0) / 2
        return x_s + weight * (estimate.x0 - before.x0)


DDPM = DDIM(eta=1.0)
Euler = DDIM(eta=0.0)
Anew = Renoise(eta=1.0)
Multistep = DPMSolver2M(eta=1.0)


def ode_estimate(
    x: Tensor, levels: Sequence[Level], denoiser: Denoiser, rule: Transition = Euler
) -> Tensor:
    """x0 by following the probability flow from x at levels[0] down to levels[-1]."""
    for t, s in itertools.pairwise(levels):
        x = rule(denoiser(x, t.t), t, s, _no_noise, denoiser)
    return x


def _no_noise(name: str) -> Tensor:
    raise CapabilityError("the ODE estimate of x0 is deterministic: use Euler or Heun")
