"""The sampler of the home library: its levels, start and step rule, as a method of ours.

`prior.home()` gives the object, and

    posterior.sample(prior.given("a cat", scale=7.5), method=prior.home(), steps=50)

then samples as the pipeline would. The levels are asked of the scheduler itself, set to as many
steps; each class says what its scheduler does between them. Schedulers of higher order that keep
earlier outputs (PNDM, DPM-Solver++, UniPC, ...) have no counterpart here and are refused.

    DDIM             transitions.DDIM(eta); x0 may be clipped, eps is that of the network
    DDPM             ancestral, with the small, large or learned variance; eps follows a clipped x0
    Euler, Heun      transitions.Euler and Heun: the same flow in sigma / alpha
    Euler ancestral  transitions.DDPM
    LCM              the consistency function, then new noise (Luo et al. 2023, algorithm 3)
    consistency      the consistency function, then new noise (Song et al. 2023, algorithm 1)
    flow Euler       transitions.Euler, the same step in sigma; stochastic: x0, then new noise
    SDE-VE           Langevin corrections, then the large variance (Song et al. 2021, algorithm 4)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError
from posterior.estimates import Estimate
from posterior.guidance.base import Guidance, State, Step
from posterior.priors.pipelines.schedule import new_scheduler
from posterior.problem import Problem
from posterior.schedules import CLEAN, Level, Schedule
from posterior.streams import Noise
from posterior.transitions import DDIM, DDPM, Anew, Euler, Heun, LearnedVariance, Transition


@dataclass(frozen=True, kw_only=True, repr=False)
class Home(Guidance):
    """The sampler of a diffusers scheduler.

    Args:
        scheduler: its class.
        config: its config.
    """

    scheduler: type
    config: Mapping[str, Any]

    when: ClassVar[str] = "draws from the prior as its home library does; no measurement"
    paper: ClassVar[str] = "the model's own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config.get("thresholding"):
            raise CapabilityError(
                f"{self.scheduler.__name__} with dynamic thresholding is not reproduced; the prior"
                " itself samples with any other method"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.scheduler.__name__}, {self.transition!r})"

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels that the scheduler visits, and the one where it ends."""
        scheduler = new_scheduler(self.scheduler, self.config, steps)
        times = [float(index) + 1 for index in scheduler.timesteps]
        count = int(self.config["num_train_timesteps"])
        return [*(schedule.level(time / count) for time in times), self._end(schedule)]

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """Noise of the scheduler's own standard deviation, or the source brought to the level."""
        if problem.source is not None:
            return super().start(problem, level, noise)
        x = self._start(level) * noise("start")
        return {"x": x, "x0": x}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, adjust as the scheduler does, move."""
        estimate = self._adjusted(problem.prior(state["x"], step.t.t), step)
        target = self._target(step, problem.prior.schedule)
        x = self.move(problem, estimate, replace(step, s=target), noise, state)
        return {"x": x, "x0": estimate.x0}

    def _end(self, schedule: Schedule) -> Level:
        """The level where a run ends."""
        return CLEAN

    def _start(self, level: Level) -> float:
        """Standard deviation of the noise at the first level."""
        return 1.0

    def _target(self, step: Step, schedule: Schedule) -> Level:
        """The level that a step goes to."""
        return step.s

    def _adjusted(self, estimate: Estimate, step: Step) -> Estimate:
        return estimate

    def _clipped(self, x0: Tensor) -> Tensor:
        if not self.config.get("clip_sample"):
            return x0
        bound = self.config["clip_sample_range"]
        return x0.clamp(-bound, bound)


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeDDIM(Home):
    """DDIM of eta, as the scheduler's config has it.

    The scheduler goes from index i to i - N // steps and then takes the result for one of the next
    index that it visits, which is another where its spacing is uneven; so does this.
    """

    default_steps: int = 50

    def _end(self, schedule: Schedule) -> Level:
        if self.config["set_alpha_to_one"]:
            return CLEAN
        return schedule.level(1 / int(self.config["num_train_timesteps"]))

    def _target(self, step: Step, schedule: Schedule) -> Level:
        count = int(self.config["num_train_timesteps"])
        index = round(step.t.t * count) - 1 - count // step.steps
        return schedule.level((index + 1) / count) if index >= 0 else self._end(schedule)

    def _adjusted(self, estimate: Estimate, step: Step) -> Estimate:
        return replace(estimate, x0=self._clipped(estimate.x0), renoise=estimate.eps_renoise)


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeDDPM(Home):
    """Ancestral sampling with the variance that the scheduler's config names."""

    transition: Transition = field(default_factory=lambda: LearnedVariance(required=False))
    default_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config["variance_type"] == "learned":
            raise CapabilityError("variance_type='learned' is not reproduced; 'learned_range' is")

    def _adjusted(self, estimate: Estimate, step: Step) -> Estimate:
        kind = self.config["variance_type"]
        if self.config.get("clip_sample"):
            estimate = estimate.with_x0(self._clipped(estimate.x0))
        if kind == "learned_range":
            return estimate
        large = kind.startswith("fixed_large")
        return replace(estimate, variance_share=torch.ones_like(estimate.x0) if large else None)


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeEuler(Home):
    """Euler, Euler ancestral and Heun in sigma / alpha, from levels given as sigmas."""

    transition: Transition = Euler
    default_steps: int = 50

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels of the scheduler's sigmas."""
        scheduler = new_scheduler(self.scheduler, self.config, steps)
        sigmas = [float(sigma) for sigma in scheduler.sigmas]
        sigmas = [b for a, b in zip([math.nan, *sigmas], sigmas, strict=False) if a != b]
        low, high = schedule.ratio_range
        levels = [
            CLEAN if sigma == 0 else schedule.level_of_ratio(_within(sigma, low, high))
            for sigma in sigmas
        ]
        self._check_times(levels, scheduler.timesteps)
        return levels

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """One step; a run that ends above clean leaves the scheduler's state, x / alpha."""
        new = super().advance(problem, state, step, noise)
        if step.index == step.steps - 1:
            new["x"] = new["x"] / step.s.alpha
        return new

    def _check_times(self, levels: list[Level], times: Tensor) -> None:
        """The network must be told the time of the level that it sees."""
        count = int(self.config["num_train_timesteps"])
        seen = dict.fromkeys(float(time) for time in times)
        for level, time in zip(levels, seen, strict=False):
            if abs(max(level.t * count - 1, 0) - time) > 0.01:
                raise CapabilityError(
                    f"{self.scheduler.__name__} tells the network time {time:g} at a noise level"
                    f" of time {level.t * count - 1:g}: this setting is not reproduced"
                )

    def _start(self, level: Level) -> float:
        # the scheduler's state is x / alpha, with sqrt(r^2 + 1) r or r as its first scale
        return 1.0 if self.config["timestep_spacing"] == "leading" else level.sigma


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeEDM(HomeEuler):
    """Euler's steps of an EDM scheduler."""

    def _check_times(self, levels: list[Level], times: Tensor) -> None:
        """The time is a function of sigma alone."""

    def _start(self, level: Level) -> float:
        return math.sqrt(level.sigma**2 + 1)


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeLCM(Home):
    """Multistep consistency sampling.

    The consistency function is c_skip x_t + c_out x0, with s the time in scaled steps and

        c_skip = d^2 / (s^2 + d^2),  c_out = s / sqrt(s^2 + d^2),  d = 1/2.
    """

    transition: Transition = Anew
    default_steps: int = 4

    def _adjusted(self, estimate: Estimate, step: Step) -> Estimate:
        index = round(step.t.t * int(self.config["num_train_timesteps"])) - 1
        s = index * self.config["timestep_scaling"]
        skip, out = 0.25 / (s**2 + 0.25), s / math.sqrt(s**2 + 0.25)
        return estimate.with_x0(out * self._clipped(estimate.x0) + skip * estimate.x_t)


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeConsistency(Home):
    """Multistep consistency sampling of images: x0, then noise of sqrt(sigma^2 - sigma_min^2)."""

    transition: Transition = Anew
    default_steps: int = 1

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels of the scheduler's sigmas."""
        sigmas = new_scheduler(self.scheduler, self.config, steps).sigmas[:-1]
        low, high = schedule.ratio_range
        return [*(schedule.level_of_ratio(_within(float(r), low, high)) for r in sigmas), CLEAN]

    def _start(self, level: Level) -> float:
        return level.sigma

    def _target(self, step: Step, schedule: Schedule) -> Level:
        square = max(step.s.sigma**2 - self.config["sigma_min"] ** 2, 0)
        return step.s._replace(sigma=self.config["s_noise"] * math.sqrt(square))

    def _adjusted(self, estimate: Estimate, step: Step) -> Estimate:
        clip = self.config["clip_denoised"]
        return estimate.with_x0(estimate.x0.clamp(-1, 1)) if clip else estimate


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeSDEVE(Home):
    """Predictor-corrector sampling of a score-SDE model of variance-exploding noise.

    A corrector adds e s(x) + sqrt(2 e) z with e = 2 (snr |z| / |s(x)|)^2, norms by row. Images are
    u = (x + 1) / 2 at home, whose noise has mean zero; so has x, up to a shift by -1.
    """

    transition: Transition = field(default_factory=LearnedVariance)
    default_steps: int = 2000

    @property
    def corrections(self) -> int:
        """Langevin steps at each level."""
        return int(self.config["correct_steps"])

    def nfe(self, steps: int) -> int:
        """One evaluation for the prediction and one for each correction."""
        return steps * (1 + self.corrections)

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """Sigma evenly in its logarithm, from the largest to the smallest, then clean."""
        if steps < 2:
            raise InputError("a score-SDE scheduler needs at least 2 steps")
        times = [max(k / (steps - 1), 1e-30) for k in reversed(range(steps))]
        return [*(schedule.level(t) for t in times), CLEAN]

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """Noise of mean zero in u, -1 in x."""
        if problem.source is not None:
            return super().start(problem, level, noise)
        x = level.sigma * noise("start") - 1
        return {"x": x, "x0": x}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Correct at t, then predict s."""
        x = state["x"]
        for k in range(self.corrections):
            score, z = problem.prior(x, step.t.t).score, noise("correct", k)
            size = rows.expand(2 * (self.config["snr"] * rows.norm(z) / rows.norm(score)) ** 2, x)
            x = x + size * score + torch.sqrt(2 * torch.as_tensor(size)) * z
        return super().advance(problem, {**state, "x": x}, step, noise)

    def _adjusted(self, estimate: Estimate, step: Step) -> Estimate:
        return replace(estimate, variance_share=torch.ones_like(estimate.x0))


@dataclass(frozen=True, kw_only=True, repr=False)
class HomeFlow(Home):
    """Euler's steps of a flow; or with stochastic_sampling its x0 and new noise.

    A shift S moves the levels to S s / (1 + (S - 1) s) (Esser et al. 2024, eq. 23). A dynamic one
    depends on the length of the image's sequence of patches: mu is linear in it, and S is exp(mu),
    or mu itself where time_shift_type is "linear".

    Args:
        size: (height, width) of x, for a dynamic shift.
        patch: the side of a patch.
        even: start from s = 1, ..., 1 / steps, and not from the scheduler's own levels.
    """

    transition: Transition = Euler
    default_steps: int = 28
    size: tuple[int, int] | None = None
    patch: int = 1
    even: bool = False

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels of the scheduler's sigmas."""
        options: dict[str, Any] = {}
        if self.even:
            options["sigmas"] = [1 - k / steps for k in range(steps)]
        if self.dynamic:
            options["mu"] = self._mu()
        scheduler = new_scheduler(self.scheduler, self.config, steps, **options)
        sigmas = [min(float(sigma), 1.0) for sigma in scheduler.sigmas[:-1]]  # the last is 0
        return [*(schedule.level_of_ratio(_flow_ratio(sigma)) for sigma in sigmas), CLEAN]

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """Noise, or the source brought to the level; of the size that the levels are for."""
        state = super().start(problem, level, noise)
        height, width = state["x"].shape[-2:]
        if self.dynamic and self.size is not None and self._tokens(height, width) != self._tokens():
            shape = tuple(state["x"].shape[1:])
            raise InputError(
                f"the levels depend on the size, and these are for {self.size[0]}x{self.size[1]},"
                f" not {height}x{width}: take prior.home(shape={shape})"
            )
        return state

    @property
    def dynamic(self) -> bool:
        """Whether the shift depends on the size of x."""
        return bool(self.config.get("use_dynamic_shifting"))

    def _mu(self) -> float:
        if self.size is None:
            raise InputError(f"{self.scheduler.__name__} shifts by the size of x: give size=")
        low, high = self.config["base_image_seq_len"], self.config["max_image_seq_len"]
        base, top = self.config["base_shift"], self.config["max_shift"]
        return float(base + (top - base) * (self._tokens() - low) / (high - low))

    def _tokens(self, *size: int) -> int:
        """The number of patches of x of that size, (height, width)."""
        height, width = size or self.size or (0, 0)
        return (height // self.patch) * (width // self.patch)


def _flow_ratio(sigma: float) -> float:
    """Sigma / alpha of a flow, alpha = 1 - sigma."""
    return sigma / (1 - sigma) if sigma < 1 else math.inf


_KINDS: dict[str, type[Home]] = {
    "DDIMScheduler": HomeDDIM,
    "DDPMScheduler": HomeDDPM,
    "EulerDiscreteScheduler": HomeEuler,
    "EulerAncestralDiscreteScheduler": HomeEuler,
    "HeunDiscreteScheduler": HomeEuler,
    "EDMEulerScheduler": HomeEDM,
    "FlowMatchEulerDiscreteScheduler": HomeFlow,
    "LCMScheduler": HomeLCM,
    "CMStochasticIterativeScheduler": HomeConsistency,
    "ScoreSdeVeScheduler": HomeSDEVE,
}
_RULES: dict[str, Transition] = {
    "EulerAncestralDiscreteScheduler": DDPM,
    "HeunDiscreteScheduler": Heun(),
}


def home_of(scheduler: Any, eta: float | None = None, steps: int | None = None) -> Home:
    """The home sampler of a scheduler.

    Args:
        scheduler: of diffusers.
        eta: of a DDIM scheduler, 0 by default; others have none.
        steps: moves of a run that does not say how many.
    """
    cls = type(scheduler)
    if cls.__name__ not in _KINDS:
        other = "FlowMatchEulerDiscrete" if cls.__name__.startswith("FlowMatch") else "DDIM"
        raise CapabilityError(
            f"the steps of {cls.__name__} are not reproduced. Take one of the same model, for"
            f" example pipe.scheduler = {other}Scheduler.from_config(pipe.scheduler.config); known:"
            f" {', '.join(_KINDS)}"
        )
    if eta is not None and cls.__name__ != "DDIMScheduler":
        raise InputError(f"eta= belongs to a DDIM scheduler; this one is {cls.__name__}")
    options: dict[str, Any] = {"scheduler": cls, "config": dict(scheduler.config)}
    if cls.__name__ == "DDIMScheduler":
        options["transition"] = DDIM(0.0 if eta is None else eta)
    elif cls.__name__ in _RULES:
        options["transition"] = _RULES[cls.__name__]
    elif scheduler.config.get("stochastic_sampling"):
        options["transition"] = Anew
    if steps is not None:
        options["default_steps"] = steps
    return _KINDS[cls.__name__](**options)


def _within(sigma: float, low: float, high: float) -> float:
    """A single-precision sigma at an end of the range, moved back into it."""
    if low * (1 - 1e-5) <= sigma <= high * (1 + 1e-5):
        return min(max(sigma, low), high)
    return sigma
