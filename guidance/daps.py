"""Decoupled annealing posterior sampling.

B. Zhang, W. Chu, J. Berner, C. Meng, A. Anandkumar, Y. Song, "Improving diffusion inverse problem
solving with decoupled noise annealing", CVPR 2025, arXiv 2407.01521. At each level

    x0hat  = ODE(x_t)                               the probability flow, K Euler steps
    x0y    ~ p(y | x0) N(x0; x0hat, w^2 I)          by a Markov chain from x0hat, or exactly
    x_s    = alpha_s x0y + sigma_s z                nothing of x_t is kept

    published   w = sigma / alpha, a tuned data standard deviation tau, Langevin. It over-disperses:
                with no data and N(0, 1) as prior its output has a variance of about 2.1, not 1
    ours        x0hat the mean (K = 1), w^2 its squared error in photographs at that level, or
                under a white prior 1 / (1 / spread^2 + (alpha / sigma)^2), tau the noise's own, and
                for linear operators an exact inner draw (perturb, then solve by conjugate
                gradients). With N(m, spread^2 I) as prior, and `spread` given, the chain leaves
                the exact posterior invariant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from posterior import grids, rows
from posterior.errors import CapabilityError, InputError, InputTypeError, unknown_name
from posterior.guidance import _kernels
from posterior.guidance._consistency import (
    consistent,
    estimate_variance,
    noise_weight,
    perturbation,
    photograph_variance,
)
from posterior.guidance.base import Guidance, State, Step
from posterior.operators.noise import GaussianNoise
from posterior.problem import Problem
from posterior.schedules import CLEAN, Level, Schedule
from posterior.streams import Noise
from posterior.transitions import Anew, Transition, move, ode_estimate

Kernel = Literal["exact", "langevin", "hamiltonian", "metropolis"]


@dataclass(frozen=True, kw_only=True)
class DAPS(Guidance):
    """Decoupled annealing.

    Args:
        ode_steps: K, Euler steps from x_t to x0hat; 1 gives the mean E[x0 | x_t].
        ode_end: sigma / alpha at which the ODE stops; 0 goes on to the clean end.
        ends: the published grid instead of `spacing`: sigma / alpha from the first of these, or the
            prior's largest, down towards the second, which is left out for the clean level; even in
            the seventh root.
        spread: standard deviation of x0 under a white prior; inf gives the published width. None
            takes w from a law of photographs in pixels, scaled to the range of the prior
            (`docs/methods.md`): give a number for latents, or anything that is no image.
        kernel: "exact" (linear operator, Gaussian noise), "langevin", "hamiltonian" (both need the
            operator's gradient) or "metropolis" (needs none).
        inner_steps: of the kernel; conjugate gradients for "exact". None is 10, and 100 for
            "metropolis".
        rate: step length of the kernel at the first level, relative to the smaller of the two
            variances, w^2 and tau^2, for the gradient kernels the latter over |A|^2 where A is
            linear and |A| > 1; or absolute, `absolute_rate`, and then to be given. None is 0.1, and
            for "metropolis" 2.38^2 / d in d dimensions (Roberts, Gelman & Gilks 1997), which still
            takes some d steps to cross the width: give it more `inner_steps` in many dimensions.
        decay: the rate falls linearly with the level's number to this share of it.
        momentum: of "hamiltonian".
        tau: standard deviation of the data that the sampler assumes; None takes the noise's own.
        data_factor: of the gradient of the log-likelihood; the published code has 2 where the
            Gaussian has 1.
    """

    transition: Transition = Anew
    ode_steps: int = 1
    ode_end: float = 0.0
    ends: tuple[float, float] | None = None
    spread: float | None = None
    kernel: Kernel = "exact"
    inner_steps: int | None = None
    rate: float | None = None
    absolute_rate: bool = False
    decay: float = 1.0
    momentum: float = 0.5
    tau: float | None = None
    data_factor: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"measurement"})
    own_rule: ClassVar[bool] = True
    when: ClassVar[str] = "multimodal posteriors; no gradient of the network"
    paper: ClassVar[str] = "Zhang et al., CVPR 2025, arXiv 2407.01521"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel not in get_args(Kernel):
            raise unknown_name("kernel", str(self.kernel), get_args(Kernel))
        for name, low in (("ode_steps", 1), ("inner_steps", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} must be an integer >= {low}, got {value!r}")
        for name in ("decay", "data_factor"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be > 0, got {getattr(self, name)!r}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum!r}")
        for name in ("spread", "rate", "tau"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be > 0 or None, got {value!r}")
        if self.absolute_rate and self.rate is None:
            raise InputError("absolute_rate=True needs a rate")
        if self.ends is not None:
            object.__setattr__(self, "ends", _checked_ends(self.ends))
        if self.ode_end < 0:
            raise InputError(f"ode_end must be >= 0, got {self.ode_end!r}")

    @staticmethod
    def preset(name: str) -> DAPS:
        """The settings of the published code, e.g. "code/ffhq/super-resolution"; see `PRESETS`.

        200 levels from sigma = 100, or the prior's largest, to 0.1, 5 ODE steps each, tau = 0.01,
        the width sigma, and the code's factor 2; Langevin, or with "/hmc" after the name the damped
        Hamiltonian chain. The code's settings for latents, which go with a clamped gradient of the
        decoder, are not here.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        steps, rate, decay, momentum = PRESETS[name]
        return DAPS(
            ode_steps=5,
            ode_end=0.01,
            ends=(100.0, 0.1),
            spread=math.inf,
            kernel="langevin" if momentum is None else "hamiltonian",
            inner_steps=steps,
            rate=rate,
            absolute_rate=True,
            decay=decay,
            momentum=0.5 if momentum is None else momentum,
            tau=0.01,
            data_factor=2.0,
            default_steps=200,
        )

    def check(self, problem: Problem) -> None:
        """The kernel must be one that the operator and the noise allow."""
        operator, y, noise_model = problem.measured()
        if self.kernel == "exact":
            if not operator.linear or not isinstance(noise_model, GaussianNoise):
                raise CapabilityError(
                    'DAPS(kernel="exact") needs a linear operator and Gaussian noise; take'
                    ' kernel="langevin", or "metropolis" for a black box'
                )
            noise_weight(1.0, self._variance(problem), "DAPS")
            return
        if self.kernel != "metropolis" and not operator.differentiable:
            raise CapabilityError(
                f'DAPS(kernel="{self.kernel}") needs the gradient of the operator, which'
                f' {operator!r} does not have: take kernel="metropolis"'
            )
        if bool((torch.as_tensor(noise_model.variance(y)) == 0).any()) and self.tau is None:
            raise CapabilityError("DAPS divides by the noise: give noise > 0, or tau=")

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels between `ends`, as far as the schedule has them."""
        if self.ends is None:
            return super().grid(schedule, steps)
        high, low = self.ends
        first = schedule.level_of_ratio(min(high, schedule.ratio_range[1]))
        return self.visits([*grids.descent(schedule, first, low, steps)[:-1], CLEAN])

    def nfe(self, steps: int) -> int:
        """`ode_steps` a step (1 where x_t lies below `ode_end` already)."""
        return self.ode_steps * steps

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """Noise; with a linear operator and a gradient kernel also |A|^2 of each row, "gain"."""
        state = super().start(problem, level, noise)
        operator, _, _ = problem.measured()
        if self.kernel in ("langevin", "hamiltonian") and operator.linear:
            state["gain"] = _kernels.largest_eigenvalue(operator.normal, noise("power"))
        return state

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate along the flow, draw given y, renoise."""
        schedule, s = problem.prior.schedule, step.s
        levels = grids.descent(schedule, step.t, self.ode_end, self.ode_steps)
        x0hat = ode_estimate(state["x"], levels, problem.prior) / levels[-1].alpha
        x0y = self._draw(problem, x0hat, step, noise, state.get("gain"))
        x = move(x0y, x0y, s, s.sigma, noise("move") if s.sigma > 0 else None)
        return {**state, "x": x, "x0": x0y}

    def _variance(self, problem: Problem) -> float | Tensor:
        """The data variance that the sampler assumes."""
        _, y, noise_model = problem.measured()
        return noise_model.variance(y) if self.tau is None else self.tau**2

    def _length(self, d: int) -> tuple[int, float]:
        """Inner steps and rate in d dimensions."""
        steps, rate = (100, 2.38**2 / d) if self.kernel == "metropolis" else (10, 0.1)
        return (
            steps if self.inner_steps is None else self.inner_steps,
            rate if self.rate is None else self.rate,
        )

    def _draw(
        self, problem: Problem, centre: Tensor, step: Step, noise: Noise, gain: Tensor | None
    ) -> Tensor:
        """x0y ~ p(y | x0) N(x0; centre, w^2)."""
        operator, y, noise_model = problem.measured()
        if self.spread is None:
            v = photograph_variance(step.t, problem.prior.range)
        else:
            v = estimate_variance(step.t, self.spread)
        variance = self._variance(problem)
        inner_steps, rate = self._length(centre[0].numel())
        if self.kernel == "exact":
            weight = noise_weight(v, variance, "DAPS")
            start = centre + math.sqrt(v) * noise("prior")
            z = noise("data", 0, shape=y.shape[1:])
            if y.is_complex():
                z = torch.complex(z, noise("data", 1, shape=y.shape[1:]))
            r = y + perturbation(z, variance) - operator(start)
            return start + consistent(operator, r, weight, iterations=inner_steps)

        decayed = 1 - (1 - self.decay) * step.index / (step.steps + 1)
        h: float | Tensor = rate * decayed
        if not self.absolute_rate:
            least = _least(variance, y) if isinstance(variance, Tensor) else variance
            if gain is not None:
                least = least / gain.clamp(min=1)
            h = h * (least.clamp(max=v) if isinstance(least, Tensor) else min(least, v))
        if self.kernel == "metropolis":

            def log_density(x: Tensor) -> Tensor:
                if self.tau is None:
                    data = noise_model.log_prob(y, operator(x))
                else:
                    misfit = y - operator(x)
                    data = -0.5 * rows.dot(misfit, misfit) / self.tau**2
                away = x - centre
                return self.data_factor * data - 0.5 * rows.dot(away, away) / v

            return _kernels.metropolis(centre, log_density, h, inner_steps, noise)

        def gradient(x: Tensor) -> Tensor:
            a_x, pull = operator.vjp(x)
            return self.data_factor * pull((y - a_x) / variance) + (centre - x) / v

        if self.kernel == "langevin":
            return _kernels.langevin(centre, gradient, h, inner_steps, noise)
        return _kernels.hamiltonian(centre, gradient, h, inner_steps, noise, self.momentum)


def _checked_ends(ends: object) -> tuple[float, float]:
    try:
        high, low = map(float, ends)  # type: ignore[call-overload]  # in try
    except (TypeError, ValueError):
        raise InputTypeError(f"ends are two numbers (noisiest, cleanest), not {ends!r}") from None
    if not 0 < low < high < math.inf:
        raise InputError(f"ends must be sigma / alpha (noisiest, cleanest) > 0, got {ends!r}")
    return high, low


def _least(variance: Tensor, y: Tensor) -> Tensor:
    """The smallest variance of each measurement, (B,)."""
    return variance.expand(y.shape).flatten(1).amin(1)


PRESETS: dict[str, tuple[int, float, float, float | None]] = {
    "code/ffhq/super-resolution": (100, 1e-4, 0.01, None),
    "code/ffhq/inpaint-box": (100, 5e-5, 0.01, None),
    "code/ffhq/inpaint-random": (100, 1e-4, 0.01, None),
    "code/ffhq/gaussian-blur": (100, 1e-4, 0.01, None),
    "code/ffhq/motion-blur": (100, 5e-5, 0.01, None),
    "code/ffhq/phase-retrieval": (100, 5e-5, 0.01, None),
    "code/ffhq/nonlinear-blur": (200, 1e-5, 0.01, None),
    "code/ffhq/hdr": (100, 2e-5, 0.01, None),
    "code/ffhq/super-resolution/hmc": (12, 1.04e-4, 0.012, 0.9),
    "code/ffhq/inpaint-box/hmc": (84, 1.15e-5, 0.014, 0.003),
    "code/ffhq/inpaint-random/hmc": (11, 3.56e-5, 0.015, 0.8),
    "code/ffhq/gaussian-blur/hmc": (82, 4.04e-5, 0.011, 0.1),
    "code/ffhq/motion-blur/hmc": (96, 3.69e-5, 0.01, 0.11),
    "code/ffhq/phase-retrieval/hmc": (62, 9.75e-6, 0.019, 0.73),
    "code/ffhq/nonlinear-blur/hmc": (85, 1.2e-5, 0.012, 0.46),
    "code/ffhq/hdr/hmc": (100, 2.18e-5, 0.013, 0.23),
}
"""Name -> steps of the kernel, first step length, its decay, momentum (None: Langevin)."""
