"""What a prior says about x_t, in every parametrisation of the field.

    x_t      = alpha x0 + sigma eps          the forward process
    score    = -eps / sigma                  gradient of log p_t(x_t)
    velocity = alpha' x0 + sigma' eps        dx_t/dt of the probability flow
    v        = alpha eps - sigma x0          v-prediction (Salimans & Ho 2022)

Primes are derivatives in t. This module is the one place that converts between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from posterior import rows
from posterior.errors import InputError
from posterior.schedules import Schedule

Parametrisation = Literal["x0", "eps", "v", "velocity", "score"]
Pull = Callable[[Tensor], Tensor]


class Denoised(NamedTuple):
    """What `Prior.denoise` may return besides the mean.

    Attributes:
        x0: the Tweedie mean E[x0 | x_t], (B, *event).
        variance_share: the learned u in [-1, 1], (B, *event): where the log variance of an
            ancestral step lies between the smallest (-1) and the largest (1) possible one.
        eps_renoise: the noise that the transition re-noises with, where it is not `eps` (CFG++).
    """

    x0: Tensor
    variance_share: Tensor | None = None
    eps_renoise: Tensor | None = None


@dataclass(frozen=True)
class Estimate:
    """The prior's estimate at (x_t, t); `t` is a number or one per row (B,)."""

    x_t: Tensor
    t: float | Tensor
    schedule: Schedule
    x0: Tensor
    variance_share: Tensor | None = None
    renoise: Tensor | None = None

    @property
    def _alpha_sigma(self) -> tuple[float | Tensor, float | Tensor]:
        return coefficients(self.schedule, self.t, self.x_t)

    def with_x0(self, x0: Tensor) -> Estimate:
        """The estimate with another clean image; `eps` and all else follow from it and x_t."""
        return replace(self, x0=x0, renoise=None)

    @property
    def eps(self) -> Tensor:
        """The noise that explains x_t: (x_t - alpha x0) / sigma."""
        alpha, sigma = self._alpha_sigma
        return (self.x_t - alpha * self.x0) / sigma

    @property
    def eps_renoise(self) -> Tensor:
        """The noise to continue with: `eps`, unless the prior guides by CFG++."""
        return self.eps if self.renoise is None else self.renoise

    @property
    def score(self) -> Tensor:
        """Gradient of log p_t at x_t."""
        return -self.eps / self._alpha_sigma[1]

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt along the probability flow."""
        d_alpha, d_sigma = _derivatives(self.schedule, self.t, self.x_t)
        return d_alpha * self.x0 + d_sigma * self.eps

    @property
    def v(self) -> Tensor:
        """The v-prediction, alpha eps - sigma x0."""
        alpha, sigma = self._alpha_sigma
        return alpha * self.eps - sigma * self.x0


def to_x0(
    output: Tensor, kind: Parametrisation, x_t: Tensor, t: float | Tensor, schedule: Schedule
) -> Tensor:
    """The Tweedie mean that a network output of the given parametrisation stands for."""
    alpha, sigma = coefficients(schedule, t, x_t)
    if kind == "x0":
        return output
    if kind == "eps":
        return (x_t - sigma * output) / alpha
    if kind == "score":
        return (x_t + sigma**2 * output) / alpha
    if kind == "v":
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
    if kind == "velocity":
        d_alpha, d_sigma = _derivatives(schedule, t, x_t)
        return (d_sigma * x_t - sigma * output) / (d_sigma * alpha - d_alpha * sigma)
    raise InputError(f"unknown parametrisation {kind!r}; known: {get_args(Parametrisation)}")


def coefficients(
    schedule: Schedule, t: float | Tensor, like: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """alpha and sigma at t, as numbers; for one t per row (B,) as tensors that broadcast."""
    if not isinstance(t, Tensor):
        return schedule(t)
    alpha, sigma = schedule(t.to(like.device))
    return _expanded(alpha, like), _expanded(sigma, like)


def _derivatives(
    schedule: Schedule, t: float | Tensor, like: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    d_alpha, d_sigma = schedule.derivative(t)
    if not isinstance(t, Tensor):
        return float(d_alpha), float(d_sigma)
    return _expanded(d_alpha, like), _expanded(d_sigma, like)


def _expanded(value: Tensor, like: Tensor) -> float | Tensor:
    return rows.expand(value.to(device=like.device, dtype=like.dtype), like)
