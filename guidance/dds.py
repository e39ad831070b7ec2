"""Decomposed diffusion sampling: conjugate-gradient data consistency, no gradient of the network.

H. Chung, S. Lee, J. C. Ye, "Decomposed diffusion sampler for accelerating large-scale inverse
problems", ICLR 2024, arXiv 2303.05754. The estimate x0 is moved towards the data,

    x' = argmin_x  gamma / 2 |y - A x|^2 + 1 / 2 |x - x0|^2       (noise-free: the x nearest x0
                                                                  with A' A x = A' y)
by a few conjugate gradients, and the transition goes on from x'.

    published    gamma is tuned, eps stays that of the uncorrected estimate, and the new noise has
                 the share eta of the level: x_s = alpha x' + sigma (eta z + sqrt(1 - eta^2) eps)
    ours         gamma A' A becomes v A' N^-1 A, v = 1 / (1 / spread^2 + (alpha / sigma)^2) the
                 variance of x0 given x_t under a white prior of that spread, N that of the noise;
                 eps follows from x'. With N(m, spread^2 I) as prior x' is E[x0 | x_t, y], any A.
                 The moves are of second order and renew the noise four times as fast as DDPM: of a
                 mask x' corrects the seen pixels alone, and what surrounds them learns of it by
                 being made anew.

Volumes, with a prior of their slices, get total variation across the slices by `tv`: `_volumes` has
the equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError, unknown_name
from posterior.guidance._consistency import consistent, estimate_variance, noise_weight
from posterior.guidance._volumes import SliceTV
from posterior.guidance.base import Guidance, State, Step
from posterior.problem import Problem
from posterior.schedules import Level
from posterior.streams import Noise
from posterior.transitions import DPMSolver2M, Renoise, Transition

_MOVES = DPMSolver2M(eta=4.0)  # the noise is renewed four times as fast as by DDPM


@dataclass(frozen=True, kw_only=True)
class DDS(Guidance):
    """Decomposed diffusion sampling (DDS-CG).

    Args:
        gamma: weight of the data as published; None takes it from the noise and `spread`; inf is
            the noise-free form. 0 ignores the measurement.
        spread: standard deviation of x0 under a white prior, in its units; inf for a flat one.
        iterations: of conjugate gradients; published 5.
        keep_eps: the transition continues with the eps of the uncorrected estimate (published)
            instead of the one that follows from x'.
        tv: total variation across the slices of a volume, one ADMM round a step. `gamma` says what
            else the volume is held by: None, the noise and `spread` (ours); inf, the data alone
            (published); a number, as without `tv`.
    """

    transition: Transition = _MOVES
    gamma: float | None = None
    spread: float = 0.3
    iterations: int = 10
    keep_eps: bool = False
    tv: SliceTV | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "linear"})
    when: ClassVar[str] = "linear operators, fast: no gradient of the network, half the cost of DPS"
    paper: ClassVar[str] = "Chung et al., ICLR 2024, arXiv 2303.05754"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None and not self.gamma >= 0:
            raise InputError(f"gamma must be >= 0 or None, got {self.gamma!r}")
        if not self.spread > 0:
            raise InputError(f"spread must be > 0, got {self.spread!r}")
        if self.iterations < 1:
            raise InputError(f"iterations must be an integer >= 1, got {self.iterations!r}")
        if not isinstance(self.tv, SliceTV | None):
            raise InputTypeError(f"tv must be a SliceTV or None, not {type(self.tv).__name__}")

    @staticmethod
    def preset(name: str) -> DDS:
        """Published settings, from the repository's scripts.

        "code/mri", "code/mri-noiseless"; and for volumes "code/sparse-view-ct" (8 views) and
        "code/limited-angle-ct" (120 views). 50 steps of the leading grid, eta = 0.85, five
        iterations, eps kept. The repository skips the noise of the step to its last level; here
        every step adds it.

        The repository's A' for tomography is a back-projection of about c = pi / (2 views) times
        the adjoint, so its rho and weight belong to c A'A: with an exact adjoint, divide both by c
        (8 views: 51 and 0.20 in place of 10 and 0.04; 120 views: 764 and 31 for 10 and 0.4).
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        gamma, tv = PRESETS[name]
        return DDS(
            gamma=gamma,
            tv=tv,
            iterations=5,
            keep_eps=True,
            transition=Renoise(0.85),
            spacing="leading",
            default_steps=50,
        )

    def check(self, problem: Problem) -> None:
        """The noise must have a variance in every entry of y, or none anywhere."""
        operator, y, noise_model = problem.measured()
        weight = noise_weight(1.0, noise_model.variance(y), "DDS")
        if self.tv is not None:
            self.tv.check(operator.domain_shape(tuple(y.shape))[1:])
            if weight is None and self.gamma is None:
                raise CapabilityError(
                    "DDS(tv=...) weighs the total variation against the noise: give a noise std "
                    "> 0, or gamma=inf for the published form without noise"
                )

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """As the base class, with the split of the total variation."""
        state = super().start(problem, level, noise)
        return state if self.tv is None else state | self.tv.start(state["x"])

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate, make it consistent with the data, move."""
        estimate = problem.prior(state["x"], step.t.t)
        if self.gamma == 0 and self.tv is None:
            return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}
        split: State = {}
        if self.tv is None:
            x0 = estimate.x0 + self._correction(problem, estimate.x0, step.t)
        else:
            x0, split = self._round(self.tv, problem, estimate.x0, step.t, state)
        corrected = estimate.with_x0(x0)
        if self.keep_eps:
            corrected = replace(corrected, renoise=estimate.eps_renoise)
        return {"x": self.move(problem, corrected, step, noise, state), "x0": x0, **split}

    def _correction(self, problem: Problem, x0: Tensor, t: Level) -> Tensor:
        """x' - x0."""
        operator, y, noise_model = problem.measured()
        weight: float | Tensor | None = self.gamma
        if weight is None:
            weight = noise_weight(estimate_variance(t, self.spread), noise_model.variance(y), "DDS")
        elif math.isinf(weight):
            weight = None
        return consistent(operator, y - operator(x0), weight, iterations=self.iterations)

    def _round(
        self, tv: SliceTV, problem: Problem, x0: Tensor, t: Level, state: State
    ) -> tuple[Tensor, State]:
        """x', and the next state of the split."""
        operator, y, noise_model = problem.measured()
        anchor = 1.0
        weight: float | Tensor | None = self.gamma
        if self.gamma is None:
            anchor = 1 / estimate_variance(t, self.spread)
            weight = noise_weight(1.0, noise_model.variance(y), "DDS")
        elif math.isinf(self.gamma):
            anchor, weight = 0.0, 1.0
        assert weight is not None  # `check` has seen to it
        return tv.round(
            operator, y, x0, state, weight=weight, anchor=anchor, iterations=self.iterations
        )


PRESETS: dict[str, tuple[float, SliceTV | None]] = {
    "code/mri": (1.0, None),
    "code/mri-noiseless": (math.inf, None),
    "code/sparse-view-ct": (math.inf, SliceTV(weight=0.04, rho=10.0, circular=True)),
    "code/limited-angle-ct": (math.inf, SliceTV(weight=0.4, rho=10.0, circular=True)),
}
"""Name -> gamma, total variation."""
