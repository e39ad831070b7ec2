"""Inversions that are exact in exact arithmetic, whatever the network: EDICT and BDIA.

Both make the sampler reversible by construction: every update changes one state by a function of
another one that is still there when the update is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posterior import grids, rows
from posterior.errors import InputError
from posterior.guidance._editing import (
    Inversion,
    ddim,
    moves,
    rises,
    source_prior,
    told,
)
from posterior.guidance.base import State, Step
from posterior.problem import Problem
from posterior.schedules import Level, Schedule
from posterior.streams import Noise


@dataclass(frozen=True, kw_only=True)
class _Reversible(Inversion):
    """Up and down the last part of a grid whose levels all have signal."""

    strength: float = 0.8

    own_rule: ClassVar[bool] = True

    def grid(self, schedule: Schedule, steps: int) -> list[Level]:
        """Up the last part of the grid of `steps` moves, and down again."""
        falling = grids.named(self.spacing, schedule, steps)
        if falling[0].alpha == 0:
            falling = grids.with_signal(falling, schedule)
        return self.visits(falling)


@dataclass(frozen=True, kw_only=True)
class EDICT(_Reversible):
    """A pair of states that take turns.

    B. Wallace, A. Gokul, N. Naik, "EDICT: exact diffusion inversion via coupled transformations",
    CVPR 2023, arXiv 2211.12446. Down, with the noise eps(.) of the noisier level, A and B the
    factors of DDIM, in even steps (in odd ones with x and y exchanged):

        x <- A x + B eps(y),  y <- A y + B eps(x)
        x <- p x + (1 - p) y, y <- (1 - p) x + p y

    and up the same backwards. The mixing p keeps the pair together on the way down and drives it
    apart by 1 / p^2 a step on the way up: exact is not the same as harmless. In float32 the round
    trip of 50 steps is exact to about 1e-5 for p = 0.93.

    Args:
        mixing: p in (0, 1].
        strength: the share of the levels that is climbed, in (0, 1].
    """

    mixing: float = 0.93

    when: ClassVar[str] = "editing by inversion, exact; twice the network calls"
    paper: ClassVar[str] = "Wallace et al., CVPR 2023, arXiv 2211.12446"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mixing <= 1:
            raise InputError(f"mixing must be in (0, 1], got {self.mixing!r}")

    def nfe(self, steps: int) -> int:
        """Two for each move, up and down."""
        return 4 * moves(steps, self.strength)

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """The source, twice."""
        state = super().start(problem, level, noise)
        return {**state, "pair": state["x"]}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """A move of the pair."""
        up = rises(step)
        high, low = (step.s, step.t) if up else (step.t, step.s)
        prior = source_prior(problem) if up else problem.prior
        # the number of this pair of levels, from the noisy end
        number = step.steps // 2 - 1 - step.index if up else step.index - step.steps // 2
        pair = [state["x"], state["pair"]]
        first = number % 2
        if up:
            pair = self._unmixed(pair)
            for k in (1 - first, first):
                pair[k] = ddim(pair[k], prior(pair[1 - k], high.t).eps, low, high)
            return {"x": pair[0], "pair": pair[1], "x0": state["x0"]}
        x0 = state["x0"]
        for k in (first, 1 - first):
            estimate = prior(pair[1 - k], high.t)
            pair[k], x0 = ddim(pair[k], estimate.eps, high, low), estimate.x0
        pair = self._mixed(pair)
        return {"x": pair[0], "pair": pair[1], "x0": pair[0] if low.sigma == 0 else x0}

    def _mixed(self, pair: list[Tensor]) -> list[Tensor]:
        p, (x, y) = self.mixing, pair
        x = p * x + (1 - p) * y
        return [x, (1 - p) * x + p * y]

    def _unmixed(self, pair: list[Tensor]) -> list[Tensor]:
        p, (x, y) = self.mixing, pair
        y = (y - (1 - p) * x) / p
        return [(x - (1 - p) * y) / p, y]


@dataclass(frozen=True, kw_only=True)
class BDIA(_Reversible):
    """A two-step rule that reads the same in both directions.

    G. Zhang, J. P. Lewis, W. B. Kleijn, "Exact diffusion inversion via bi-directional integration
    approximation", ECCV 2024, arXiv 2307.10829. With one noise eps(x_i) at the level of x_i and
    P_{i -> j} the DDIM move with it,

        down  x_{i-1} = gamma (x_{i+1} - P_{i -> i+1}) + P_{i -> i-1}
        up    x_{i+1} = (x_{i-1} - P_{i -> i-1}) / gamma + P_{i -> i+1}

    Up, errors grow like gamma^-steps: the paper's gamma for generation, 0.5, is of no use here. The
    first move down undoes the last one up, whatever the target: an edit takes two moves at least.

    Args:
        gamma: in (0, 1]; 1 is symmetric in time.
        strength: the share of the levels that is climbed, in (0, 1].
    """

    gamma: float = 0.94

    when: ClassVar[str] = "editing by inversion, exact, at the price of DDIM"
    paper: ClassVar[str] = "Zhang et al., ECCV 2024, arXiv 2307.10829"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma <= 1:
            raise InputError(f"gamma must be in (0, 1], got {self.gamma!r}")

    def nfe(self, steps: int) -> int:
        """One for each move; the first one down is known already."""
        return 2 * moves(steps, self.strength) - 1

    def visits(self, falling: list[Level]) -> list[Level]:
        """Up the last part of the grid, and down again."""
        levels = super().visits(falling)
        if len(levels) < 5:
            raise InputError(
                f"BDIA makes one move of {len(falling) - 1} steps at strength={self.strength}, and"
                " its first move down gives the source back: take more steps or more strength"
            )
        return levels

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """The source; its neighbour is not known yet."""
        state = super().start(problem, level, noise)
        return {**state, **_neighbour(state["x"], level)}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """A move of the two-step rule."""
        t, s, x = step.t, step.s, state["x"]
        if step.index == step.steps // 2:  # the turn: the state below is the neighbour
            return {"x": state["neighbour"], "x0": state["x0"], **_neighbour(x, t)}
        up = rises(step)
        prior = source_prior(problem) if up else problem.prior
        estimate = prior(x, told(step).t)
        there = ddim(x, estimate.eps, t, s)
        if step.index > 0:
            back = state["neighbour"] - _to(x, estimate.eps, t, state["level"])
            there = there + (back / self.gamma if up else self.gamma * back)
        x0 = state["x0"] if up else estimate.x0
        return {"x": there, "x0": there if s.sigma == 0 else x0, **_neighbour(x, t)}


def _neighbour(x: Tensor, level: Level) -> State:
    """A state and its level, a row each, as they are carried to the next move."""
    scales = torch.tensor([level.alpha, level.sigma], dtype=x.dtype, device=x.device)
    return {"neighbour": x, "level": scales.expand(x.shape[0], 2).contiguous()}


def _to(x: Tensor, eps: Tensor, t: Level, scales: Tensor) -> Tensor:
    """The DDIM move from t to the level with these (alpha, sigma) by row."""
    alpha, sigma = (rows.expand(scale, x) for scale in scales.unbind(1))
    return alpha * ((x - t.sigma * eps) / t.alpha) + sigma * eps
