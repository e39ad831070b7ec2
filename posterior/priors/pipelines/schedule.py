"""What a diffusers scheduler says about the network: its noise levels, time and parametrisation.

A scheduler keeps two things in one: the noise levels that the network was trained with, and the way
its home library walks down them. This module reads the first; `posterior.priors.pipelines.home`
the second. Tables are read off the scheduler itself, which has made them from its config (betas,
rescaling to zero terminal SNR), so nothing about them is assumed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.priors.network import Output
from posterior.schedules import EDM, VE, Discrete, RectifiedFlow, Schedule

_TABLE: dict[str, Output] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_UNIT_RANGE = ("ScoreSdeVeScheduler", "KarrasVeScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_CONSISTENCY = "CMStochasticIterativeScheduler"
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# these visit times between table entries and interpolate sigma / alpha there
_BETWEEN = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)


class LinearDiscrete(Discrete):
    """A table between whose entries sigma / alpha itself is linear in t, not its logarithm.

    The Euler schedulers of diffusers interpolate that way; the entries are those of `Discrete`.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LinearDiscrete) and self.alphas_cumprod == other.alphas_cumprod

    def __hash__(self) -> int:
        return hash(("linear", self.alphas_cumprod))

    def __repr__(self) -> str:
        return f"LinearDiscrete({len(self)} levels)"

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        squared = self._between(t, self._log_ratio.to(t.device).exp()) ** 2
        return 1 / torch.sqrt(1 + squared), 1 / torch.sqrt(1 + 1 / squared)

    def _time(self, ratio: Tensor) -> Tensor:
        return self._place(ratio, self._log_ratio.to(ratio.device).exp())


@dataclass(frozen=True)
class Reading:
    """How to read a network by what its scheduler says.

    Attributes:
        schedule: the noise levels, in the scale of x.
        parametrisation: what the network answers.
        time: t -> what it takes as time; None for the default of `NetworkPrior`.
        sigma_data: standard deviation of the data, for "edm".
        negated: the network answers with the opposite sign.
        unit_range: the network sees and scores images u = (x + 1) / 2 in [0, 1].
        boundary: the sigma at which a consistency model answers with x itself.
    """

    schedule: Schedule
    parametrisation: Output
    time: Callable[[Tensor], Tensor] | None = None
    sigma_data: float = 0.5
    negated: bool = False
    unit_range: bool = False
    boundary: float = 0.0


def read(scheduler: Any) -> Reading:
    """The reading of a diffusers scheduler.

    Raises:
        InputError: a prediction type that this kind of scheduler cannot have.
        CapabilityError: a scheduler whose levels are not those of a known family.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InputTypeError(f"not a diffusers scheduler: {type(scheduler).__name__}")
    name = type(scheduler).__name__
    if name in _UNIT_RANGE:
        return _unit_range(config)
    if name in _EDM:
        return _edm(config)
    if name == _CONSISTENCY:
        return _consistency(config)
    if name in _FLOW:
        return _flow(config)
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise CapabilityError(
            f"{name} is of no known family: replace it by one of the same model, for example"
            " pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    return _table(name, scheduler, config)


def _table(name: str, scheduler: Any, config: Mapping[str, Any]) -> Reading:
    if config.get("timestep_type", "discrete") != "discrete":
        raise CapabilityError(f"{name} with timestep_type={config['timestep_type']!r} is not known")
    kind = _prediction(name, config, _TABLE)
    squared = tuple(scheduler.alphas_cumprod.double().tolist())
    linear = name in _BETWEEN and not any(
        config.get(f"use_{law}_sigmas") for law in ("karras", "exponential", "beta")
    )
    return Reading(LinearDiscrete(squared) if linear else Discrete(squared), kind)


def _edm(config: Mapping[str, Any]) -> Reading:
    kinds: dict[str, Output] = {"epsilon": "edm", "v_prediction": "edm"}
    kind = _prediction("an EDM scheduler", config, kinds)
    return Reading(
        EDM(config["sigma_min"], config["sigma_max"], config["rho"]),
        kind,
        sigma_data=config["sigma_data"],
        negated=config["prediction_type"] == "v_prediction",
    )


def _consistency(config: Mapping[str, Any]) -> Reading:
    """The network of EDM, up to its time and to what it answers at the smallest sigma."""
    schedule = EDM(config["sigma_min"], config["sigma_max"], config["rho"])
    return Reading(
        schedule,
        "edm",
        time=LogSigma(schedule),
        sigma_data=config["sigma_data"],
        boundary=config["sigma_min"],
    )


@dataclass(frozen=True)
class LogSigma:
    """The time of a consistency model, 250 ln sigma."""

    schedule: Schedule

    def __call__(self, t: Tensor) -> Tensor:
        """t (B,) -> 250 ln sigma (B,)."""
        return 250 * torch.log(self.schedule(t)[1])


def _unit_range(config: Mapping[str, Any]) -> Reading:
    """u = (x + 1) / 2 has half the noise of x, and the network takes that of u as time."""
    schedule = VE(2 * config["sigma_min"], 2 * config["sigma_max"])
    return Reading(schedule, "score", time=HalfSigma(schedule), unit_range=True)


@dataclass(frozen=True)
class HalfSigma:
    """The time of a network of images in [0, 1]: their noise level, half that in [-1, 1]."""

    schedule: Schedule

    def __call__(self, t: Tensor) -> Tensor:
        """t (B,) -> sigma / 2 (B,)."""
        return self.schedule(t)[1] / 2


def _flow(config: Mapping[str, Any]) -> Reading:
    """Flow models know every sigma in (0, 1]: shifts only say which of them a run visits.

    So t is sigma itself, and d/dt that of the network's answer, whatever the scheduler's shift.
    """
    if config.get("invert_sigmas"):
        raise CapabilityError("invert_sigmas, with which sigma = 0 is noise, is not known")
    return Reading(RectifiedFlow(), "velocity", time=Steps(int(config["num_train_timesteps"])))


@dataclass(frozen=True)
class Steps:
    """Time counted in training steps, N t."""

    count: int

    def __call__(self, t: Tensor) -> Tensor:
        """t (B,) -> N t (B,)."""
        return self.count * t


def _prediction(name: str, config: Mapping[str, Any], known: Mapping[str, Output]) -> Output:
    kind = config.get("prediction_type", "epsilon")
    if kind not in known:
        raise InputError(
            f"{name} says prediction_type={kind!r}, which is not one of {', '.join(known)}: the"
            " scheduler does not belong to this model"
        )
    return known[kind]


def new_scheduler(cls: type, config: Mapping[str, Any], steps: int, **options: Any) -> Any:
    """A new scheduler of that class and config, set to so many steps (and `options`)."""
    scheduler: Any = cls.from_config(dict(config))  # type: ignore[attr-defined]  # diffusers'
    try:
        scheduler.set_timesteps(steps, **options)
    except ValueError as error:
        raise InputError(f"{cls.__name__} cannot make {steps} steps: {error}") from None
    return scheduler
