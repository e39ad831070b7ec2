"""Guidance: how the measurement steers the sampler.

A method is a frozen dataclass with four hooks (`grid`, `start`, `advance`, `finish`). The base
class IS the unconditional sampler, so a method overrides only what it changes, and a method whose
guidance is zero must reproduce the base class bit for bit.
"""

from __future__ import annotations

import math
import operator
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

from torch import Tensor

from posterior import grids
from posterior.errors import InputError, InputTypeError, unknown_name
from posterior.estimates import Estimate
from posterior.problem import Problem
from posterior.schedules import Level, Schedule
from posterior.streams import Noise
from posterior.transitions import DDPM, Before, Transition

State = dict[str, Tensor]


def _plain(field: Field[Any], value: object) -> object:
    """A setting that is a number or a switch as Python's own; scalars of numpy and torch will do.

    Its range is the method's business, infinity included; nan is no setting.
    """
    kinds = str(field.type).split(" | ")
    if value is None and "None" in kinds:
        return None
    if "bool" in kinds and not isinstance(value, bool):
        raise InputTypeError(f"{field.name} must be True or False, got {value!r}")
    if "int" in kinds:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise InputTypeError(f"{field.name} must be an integer, got {value!r}")
        return operator.index(value)
    if "float" in kinds:
        if isinstance(value, bool) or not isinstance(value, SupportsFloat):
            raise InputTypeError(f"{field.name} must be a number, got {value!r}")
        if math.isnan(float(value)):
            raise InputError(f"{field.name} must be a number, got nan")
        return float(value)
    return value


@dataclass(frozen=True)
class Step:
    """One move of a run: number `index` of `steps`, from level t to level s.

    The move before it, if there is one, came from the level `before`.
    """

    index: int
    steps: int
    t: Level
    s: Level
    before: Level | None = None


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The unconditional sampler, and the base of every method.

    Args:
        transition: the step rule; ancestral by default.
        spacing: name of the time grid, see `posterior.grids`.
        default_steps: moves of a run that does not say how many.

    The state is a dict of tensors with rows first: `x` is what advances, `x0` the best clean
    estimate so far (preview, early stop), and whatever else the method carries.
    """

    transition: Transition = DDPM
    spacing: str = "karras"
    default_steps: int = 100

    needs: ClassVar[frozenset[str]] = frozenset()
    """Out of "measurement", "network gradient", "operator gradient", "linear", "identity", "pinv",
    "source", "source prior"."""
    climbs: ClassVar[bool] = False
    """Whether the grid goes up from the clean source before it falls."""
    own_rule: ClassVar[bool] = False
    """Whether it moves by a rule of its own, so that `transition` cannot be chosen."""
    when: ClassVar[str] = "draws from the prior itself; no measurement"
    paper: ClassVar[str] = "Ho et al. 2020, Song et al. 2021"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(field, getattr(self, field.name)))
        if not isinstance(self.transition, Transition):
            raise InputTypeError(f"transition must be a Transition, got {self.transition!r}")
        if self.own_rule and self.transition != type(self).transition:
            raise InputError(
                f"{type(self).__name__} moves by its own rule: leave transition={self.transition!r}"
                " out"
            )
        if self.transition.evaluations and "measurement" in self.needs:
            raise InputError(
                f"{self.transition!r} asks the prior once more, without the measurement: take"
                f" DDIM(eta=0) for {type(self).__name__}"
            )
        if str(self.spacing) not in grids.NAMES:
            raise unknown_name("grid", str(self.spacing), grids.NAMES)
        if self.default_steps < 1:
            raise InputError(f"default_steps must be an integer >= 1, got {self.default_steps!r}")

    @property
    def particles(self) -> int:
        """Rows that move together as one group."""
        return 1

    @property
    def yields(self) -> int:
        """Draws that a group gives."""
        return 1

    def check(self, problem: Problem) -> None:
        """Raise `CapabilityError` for what `needs` cannot say; before the first network call."""

    def nfe(self, steps: int) -> int:
        """Network evaluations per group of a run of `steps` moves from alpha > 0 to clean."""
        return self.particles * (steps + self.transition.evaluations * (steps - 1))

    def vjps(self, steps: int) -> int:
        """Backward passes through the network per group."""
        return 0

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """The levels to visit; the last one is clean."""
        return self.visits(grids.named(self.spacing, schedule, steps))

    def visits(self, falling: list[Level]) -> list[Level]:
        """What a run visits of a grid from noise to clean, its own or one that was named: all."""
        return falling

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """The state at the first level: the source brought to it, or noise alone."""
        x = level.sigma * noise("start")
        if problem.source is not None:
            x = level.alpha * problem.source + x
        return {"x": x, "x0": x if problem.source is None else problem.source}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, correct, move."""
        estimate = problem.prior(state["x"], step.t.t)
        return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}

    def move(
        self, problem: Problem, estimate: Estimate, step: Step, noise: Noise, state: State
    ) -> Tensor:
        """The next x by the step rule; the state's x0 is the estimate that the last move used."""
        before = None if step.before is None else Before(state["x0"], step.before)
        return self.transition(estimate, step.t, step.s, noise, problem.prior, before)

    def finish(self, problem: Problem, state: State, noise: Noise) -> Tensor:
        """The draws of each group, (groups * yields, *event), from the last state."""
        return state["x"]
