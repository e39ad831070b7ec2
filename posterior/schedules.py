"""Noise schedules: x_t = alpha_t x0 + sigma_t eps, with t from 1 (noise) to 0 (clean).

A `Schedule` is one law t -> (alpha, sigma). Two schedules with the same ratio r = sigma / alpha
describe the same diffusion up to a scaling of x_t, so grids, transitions and guidance are written
in r wherever the scaling does not matter.

    variance preserving   alpha = 1 / sqrt(1 + r^2)    alpha^2 + sigma^2 = 1
    variance exploding    alpha = 1                    sigma = r
    rectified flow        alpha = 1 / (1 + r)          alpha + sigma = 1

Sources: Ho et al. 2020 and Song et al. 2021 (VP, VE), Nichol & Dhariwal 2021 (cosine), Rombach et
al. 2022 (scaled linear), Karras et al. 2022 (EDM), Liu et al. 2023 and Esser et al. 2024 (rectified
flow and its shift).
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
from torch import Tensor

from posterior.errors import InputError, InputTypeError


class Level(NamedTuple):
    """A noise level: x = alpha x0 + sigma eps at time t. The clean one is (0, 1, 0)."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """Sigma / alpha, the noise-to-signal ratio; inf where alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


CLEAN = Level(0.0, 1.0, 0.0)


class Schedule(ABC):
    """The law t -> (alpha, sigma).

    A family writes `_alpha_sigma` and `_time` on float64 tensors; floats and tensors, and hence
    the sampler and the networks, share that one formula. `_alpha_sigma` uses functions whose result
    does not depend on the place in the tensor (see `posterior.rows`), so powers are exp and log.
    """

    @property
    @abstractmethod
    def ratio_range(self) -> tuple[float, float]:
        """Smallest and largest sigma / alpha for t in (0, 1]; 0 and inf allowed."""

    @abstractmethod
    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) for float64 t in (0, 1]."""

    @abstractmethod
    def _time(self, ratio: Tensor) -> Tensor:
        """The t of a float64 ratio inside `ratio_range`."""

    @overload
    def __call__(self, t: float) -> tuple[float, float]: ...
    @overload
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def __call__(self, t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """(alpha, sigma) at t in [0, 1]: floats for a float, float64 (B,) for a tensor (B,)."""
        if not isinstance(t, Tensor):
            try:
                number = float(t)
            except (TypeError, ValueError):
                raise InputTypeError(f"t must be a number or a tensor, not {t!r}") from None
            return _at(self, number)
        return self._checked(t)

    def _checked(self, t: Tensor) -> tuple[Tensor, Tensor]:
        times = t.to(torch.float64)
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise InputError(f"t must be in [0, 1] (1 = noise, 0 = clean), got {t}")
        clean = times == 0
        alpha, sigma = self._alpha_sigma(torch.where(clean, torch.ones_like(times), times))
        alpha = torch.where(clean, torch.ones_like(alpha), alpha)
        sigma = torch.where(clean, torch.zeros_like(sigma), sigma)
        return alpha, sigma

    def level(self, t: float) -> Level:
        """The noise level at time t."""
        return Level(float(t), *self(float(t)))

    @overload
    def time_of_ratio(self, ratio: float) -> float: ...
    @overload
    def time_of_ratio(self, ratio: Tensor) -> Tensor: ...
    def time_of_ratio(self, ratio: float | Tensor) -> float | Tensor:
        """The t with sigma / alpha = ratio. 0 is clean; outside `ratio_range` it raises."""
        r = torch.as_tensor(ratio, dtype=torch.float64)
        low, high = self.ratio_range
        inside = (r >= low * (1 - 1e-9)) & (r <= high * (1 + 1e-9))
        if not bool((inside | (r == 0)).all()):
            raise InputError(
                f"no time has sigma / alpha = {ratio}: {self} covers [{low:.6g}, {high:.6g}] and 0"
            )
        clean = r == 0
        inner = torch.where(clean, torch.full_like(r, min(1.0, high)), r).clamp(low, high)
        # t = 0 itself is clean, so the smallest noise of a range that ends above 0 sits just beside
        t = torch.where(clean, torch.zeros_like(r), self._time(inner).clamp(1e-30, 1))
        return t if isinstance(ratio, Tensor) else float(t)

    def level_of_ratio(self, ratio: float) -> Level:
        """The noise level with sigma / alpha = ratio."""
        return self.level(self.time_of_ratio(float(ratio)))

    def derivative(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), float64, by differentiating the law itself."""
        times = torch.as_tensor(t, dtype=torch.float64).detach().clone()
        with torch.enable_grad():
            times.requires_grad_()
            alpha, sigma = self._alpha_sigma(times)
            grads = [
                torch.autograd.grad(v.sum(), times, retain_graph=True, allow_unused=True)[0]
                if v.requires_grad
                else None
                for v in (alpha, sigma)
            ]
        d_alpha, d_sigma = (torch.zeros_like(times) if g is None else g for g in grads)
        return d_alpha.detach(), d_sigma.detach()


@functools.lru_cache(maxsize=8192)
def _at(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma) at a number t: a run asks for the same few levels again and again."""
    alpha, sigma = schedule._checked(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


class _VariancePreserving(Schedule):
    """Schedules given by log(alpha^2) as a function of t."""

    @abstractmethod
    def _log_alpha_squared(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of_log_alpha_squared(self, value: Tensor) -> Tensor: ...

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha_squared = self._log_alpha_squared(t)
        return torch.exp(log_alpha_squared / 2), torch.sqrt(-torch.expm1(log_alpha_squared))

    def _time(self, ratio: Tensor) -> Tensor:
        return self._time_of_log_alpha_squared(-torch.log1p(ratio**2))

    @property
    def ratio_range(self) -> tuple[float, float]:
        one = torch.ones((), dtype=torch.float64)
        alpha, sigma = self._alpha_sigma(one)
        return 0.0, float(sigma / alpha)


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """beta(t) = beta_min + t (beta_max - beta_min): the continuous limit of DDPM's linear betas."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)

    def _log_alpha_squared(self, t: Tensor) -> Tensor:
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2)

    def _time_of_log_alpha_squared(self, value: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        # the stable root of slope t^2 / 2 + beta_min t + value = 0
        return -2 * value / (self.beta_min + torch.sqrt(self.beta_min**2 - 2 * slope * value))


@dataclass(frozen=True)
class VPScaledLinear(_VariancePreserving):
    """Linear in sqrt(beta), the continuous limit of Stable Diffusion's betas."""

    beta_min: float = 0.85
    beta_max: float = 12.0

    def __post_init__(self) -> None:
        _check_betas(self.beta_min, self.beta_max)
        if self.beta_min == self.beta_max:
            raise InputError("beta_min = beta_max: use VPLinear")

    def _log_alpha_squared(self, t: Tensor) -> Tensor:
        low, slope = self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5
        mean: Tensor = low**2 + low * slope * t + slope**2 * t**2 / 3
        return -t * mean

    def _time_of_log_alpha_squared(self, value: Tensor) -> Tensor:
        low, slope = self.beta_min**0.5, self.beta_max**0.5 - self.beta_min**0.5
        t: Tensor = (torch.exp(torch.log(low**3 - 3 * slope * value) / 3) - low) / slope
        for _ in range(2):  # the closed form cancels near t = 0; Newton restores the digits
            residual = self._log_alpha_squared(t) - value
            t = t + residual / (low + slope * t) ** 2
        return t


@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
    """alpha^2 = cos^2((t + s) / (1 + s) pi / 2), normalised to 1 at t = 0 (Nichol & Dhariwal)."""

    s: float = 0.008

    def __post_init__(self) -> None:
        if not self.s > 0:
            raise InputError(f"the offset s must be positive, got {self.s}")

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        clean = self._angle(torch.zeros_like(t))
        angle = self._angle(t)
        cosine = torch.cos(angle)
        # exactly 0 at t = 1, with its slope
        alpha = torch.where(t < 1, cosine, cosine - cosine.detach()) / torch.cos(clean)
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a): no cancellation near t = 0
        sigma_squared = torch.sin(angle - clean) * torch.sin(angle + clean) / torch.cos(clean) ** 2
        return alpha, torch.sqrt(sigma_squared)

    def _log_alpha_squared(self, t: Tensor) -> Tensor:
        return 2 * torch.log(self._alpha_sigma(t)[0])

    def _time_of_log_alpha_squared(self, value: Tensor) -> Tensor:
        clean = self._angle(torch.zeros_like(value))
        # sin^2 of the angle, from 1 - cos^2 a cos^2 clean, without cancellation
        sine = torch.sqrt(torch.sin(clean) ** 2 - torch.cos(clean) ** 2 * torch.expm1(value))
        cosine = torch.exp(value / 2) * torch.cos(clean)
        return torch.atan2(sine, cosine) * (2 / math.pi) * (1 + self.s) - self.s


class _VarianceExploding(Schedule):
    """Schedules with alpha = 1, given by sigma as a function of t."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                f"need 0 < sigma_min < sigma_max < inf, got {self.sigma_min}, {self.sigma_max}"
            )

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self._sigma(t)

    @property
    def ratio_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@dataclass(frozen=True)
class VE(_VarianceExploding):
    """sigma = sigma_min^(1 - t) sigma_max^t (Song et al. 2021); t = 0 is clean, a jump."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def _time(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(_VarianceExploding):
    """sigma^(1/rho) linear in t from sigma_min to sigma_max (Karras et al. 2022, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def _sigma(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.exp(self.rho * torch.log(low + t * (high - low)))

    def _time(self, ratio: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        t: Tensor = (torch.exp(torch.log(ratio) / self.rho) - low) / (high - low)
        return t


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """alpha = 1 - u, sigma = u with u = shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23).

    shift = 1 is the plain straight-line flow.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise InputError(f"shift must be positive, got {self.shift}")

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 + (self.shift - 1) * t
        return (1 - t) / scale, self.shift * t / scale

    def _time(self, ratio: Tensor) -> Tensor:
        # r = shift t / (1 - t)
        return torch.where(torch.isinf(ratio), 1.0, ratio / (ratio + self.shift))

    @property
    def ratio_range(self) -> tuple[float, float]:
        return 0.0, math.inf


@dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """A table of N noise levels: index i stands at t = (i + 1) / N, t = 0 is exactly clean.

    Between table entries log(sigma / alpha) is linear in t. The last entry may have alpha = 0
    (zero terminal SNR). Networks trained on the table read their index off t by `index`.
    """

    alphas_cumprod: tuple[float, ...]  # alpha^2 by index, decreasing

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if len(table) < 2:
            raise InputError("a discrete schedule needs at least two levels")
        falling = all(a > b for a, b in itertools.pairwise(table))
        if not (falling and table[0] < 1 and table[-1] >= 0):
            raise InputError("alphas_cumprod must fall strictly, from below 1 to 0 or above")
        abar = torch.tensor(table, dtype=torch.float64)
        object.__setattr__(self, "_log_ratio", (torch.log1p(-abar) - torch.log(abar)) / 2)

    _log_ratio = torch.empty(0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Discrete) and self.alphas_cumprod == other.alphas_cumprod

    def __hash__(self) -> int:
        return hash(self.alphas_cumprod)

    def __repr__(self) -> str:
        return f"Discrete({len(self)} levels)"

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @staticmethod
    def from_betas(betas: Tensor) -> Discrete:
        """The table of variance-preserving betas (N,)."""
        alphas = torch.cumprod(1 - betas.double(), 0)
        return Discrete(tuple(alphas.tolist()))

    @staticmethod
    def linear(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Discrete:
        """Linear betas (Ho et al. 2020; the ADM models of DPS and its descendants)."""
        return Discrete.from_betas(torch.linspace(first, last, n, dtype=torch.float64))

    @staticmethod
    def scaled_linear(n: int = 1000, first: float = 0.00085, last: float = 0.012) -> Discrete:
        """Betas linear in their square root (Stable Diffusion)."""
        return Discrete.from_betas(
            torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2
        )

    @staticmethod
    def cosine(n: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Discrete:
        """Cosine betas, capped at max_beta (Nichol & Dhariwal 2021)."""
        alpha, _ = VPCosine(s)(torch.linspace(0, 1, n + 1, dtype=torch.float64))
        abar = alpha**2
        return Discrete.from_betas((1 - abar[1:] / abar[:-1]).clamp(max=max_beta))

    def index(self, t: Tensor) -> Tensor:
        """The (fractional) table index of t, as networks take it: N t - 1, at least 0."""
        return (t * len(self) - 1).clamp(min=0)

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        squared = torch.exp(2 * self._between(t, self._log_ratio.to(t.device)))
        return 1 / torch.sqrt(1 + squared), 1 / torch.sqrt(1 + 1 / squared)

    def _time(self, ratio: Tensor) -> Tensor:
        return self._place(torch.log(ratio), self._log_ratio.to(ratio.device))

    def _between(self, t: Tensor, table: Tensor) -> Tensor:
        """The value at t of a rising table whose last entry may be infinite, linear in t."""
        # a time below the first entry belongs to it: the table knows nothing between it and clean
        place = (t * len(self) - 1).clamp(0, len(self) - 1)
        near = place.detach().round()
        place = torch.where((place - near).abs() < 1e-9, near + (place - place.detach()), place)
        below = place.detach().floor().long().clamp(max=len(self) - 2)
        part = place - below
        low, high = table[below], table[below + 1]
        # from the nearer end, so that the entries are exact and the slope is that of the line;
        # towards an infinite last entry there is no line: the level stays, and then jumps
        end = torch.where(torch.isinf(high), low, high)
        rise = end - low
        value = torch.where(part < 0.5, low + part * rise, end + (part - 1) * rise)
        return torch.where(torch.isinf(high) & (part == 1), high, value)

    def _place(self, value: Tensor, table: Tensor) -> Tensor:
        """The t at which `_between` gives the value."""
        below = (torch.searchsorted(table, value, right=True) - 1).clamp(0, len(self) - 2)
        low, high = table[below], table[below + 1]
        line = (value - low) / (high - low)
        part = torch.where(torch.isinf(high), torch.isinf(value), line)
        return (below + part + 1) / len(self)

    @property
    def ratio_range(self) -> tuple[float, float]:
        return float(self._log_ratio[0].exp()), float(self._log_ratio[-1].exp())


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min <= beta_max < math.inf:
        raise InputError(f"need 0 < beta_min <= beta_max, got {beta_min}, {beta_max}")
