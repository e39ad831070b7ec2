"""What editing methods share: strength, levels that rise and fall again, and the map between them.

An inversion is the same loop on a grid that rises from the clean source to noise before it falls.
Up there the source's prior tells the noise, on the way down the target's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, SupportsFloat

from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.guidance.base import Guidance, Step
from posterior.priors.base import Prior
from posterior.problem import Problem
from posterior.schedules import CLEAN, Level
from posterior.transitions import Euler, Transition


def check_strength(strength: object) -> None:
    """A number in (0, 1]."""
    number = float(strength) if isinstance(strength, SupportsFloat) else math.nan
    if isinstance(strength, bool) or not 0 < number <= 1:
        raise InputError(f"strength must be in (0, 1], got {strength!r}")


def moves(steps: int, strength: float) -> int:
    """How many of `steps` moves are left at a strength: whole ones, as in diffusers."""
    left = int(steps * strength)
    if left < 1:
        raise InputError(
            f"strength={strength} leaves none of {steps} steps: take more steps or more strength"
        )
    return left


def last_part(levels: Sequence[Level], strength: float) -> list[Level]:
    """The levels of the last moves."""
    return list(levels[-moves(len(levels) - 1, strength) - 1 :])


def up_and_down(falling: Sequence[Level]) -> list[Level]:
    """From clean up to the first level of a falling grid and down again."""
    noisy = list(falling[:-1])
    return [CLEAN, *reversed(noisy), *noisy[1:], falling[-1]]


def rises(step: Step) -> bool:
    """Whether the move goes towards noise."""
    return step.s.ratio > step.t.ratio


def told(step: Step) -> Level:
    """The level that the network is told: that of x, or the next one of a clean x without noise."""
    return step.s if step.t.sigma == 0 else step.t


def source_prior(problem: Problem) -> Prior:
    """The prior under what the source shows; the target's where none was given."""
    return problem.prior if problem.source_prior is None else problem.source_prior


def ddim(x: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
    """x_s with the noise eps in x_t kept (Song et al. 2021, eq. 13), in either direction."""
    return s.alpha * (x - t.sigma * eps) / t.alpha + s.sigma * eps


def between(source: Tensor, z: Tensor, level: Level) -> Tensor:
    """alpha source + sigma z, in the scale of the schedule."""
    return level.alpha * source + level.sigma * z


@dataclass(frozen=True, kw_only=True)
class PartWay(Guidance):
    """The base of the methods that make the last moves of a grid, from the noised source.

    `strength` is the share of the moves that is made, in (0, 1]; at 1 a run that was given no
    source begins with noise.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.strength)

    def check(self, problem: Problem) -> None:
        """A run that does not begin with noise begins with the source."""
        if self.strength < 1 and problem.source is None:
            raise CapabilityError(
                f"{type(self).__name__} with strength < 1 needs source=, where the run starts"
            )

    def nfe(self, steps: int) -> int:
        """One for each move that is made."""
        return super().nfe(moves(steps, self.strength))

    def visits(self, falling: list[Level]) -> list[Level]:
        """The levels of the last moves."""
        return last_part(falling, self.strength)


@dataclass(frozen=True, kw_only=True)
class Inversion(PartWay):
    """The base of the methods that take the source up to noise and down again.

    `steps` are counted one way; `strength` is the share of the levels that is climbed, in (0, 1].
    """

    transition: Transition = Euler
    spacing: str = "leading"
    default_steps: int = 50

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    climbs: ClassVar[bool] = True

    def nfe(self, steps: int) -> int:
        """One for each move, up and down."""
        return moves(steps, self.strength) + super().nfe(steps)

    def visits(self, falling: list[Level]) -> list[Level]:
        """Up the last part of the grid, and down again."""
        return up_and_down(super().visits(falling))
