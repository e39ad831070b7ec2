"""The law of the noise in y = A(x) + noise, in the units of y.

>>> noise = GaussianNoise(0.04)        # standard deviation, per real component
>>> y = noise.sample(A(x), seed=0)     # row b has the stream of seed + b
>>> noise.log_prob(y, A(x))            # (B,)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posterior import rows
from posterior.errors import InputError, InputTypeError
from posterior.operators._rowwise import by_row, take_rows
from posterior.operators.base import Operator
from posterior.streams import Noise, seeds_of

_LOG_2PI = math.log(2 * math.pi)


class NoiseModel(ABC):
    """The law of y given the clean measurement A(x)."""

    @abstractmethod
    def sample(self, y_clean: Tensor, seed: int | Sequence[int]) -> Tensor:
        """A noisy measurement, a pure function of (y_clean, seed), shaped like y_clean.

        Row b has the stream of seed + b, or of seed[b]: a row alone with its own seed equals the
        row in a batch, bit for bit.
        """

    @abstractmethod
    def log_prob(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """Log density of y given y_clean, summed over the event: (B,)."""

    @abstractmethod
    def variance(self, y: Tensor) -> float | Tensor:
        """The variance of y per real component, a number or broadcasting against y."""

    @abstractmethod
    def standardised(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """(y - y_clean) over the standard deviation of y, shaped like y; nan where that is 0."""

    def misfit(self, y: Tensor, y_clean: Tensor, operator: Operator | None = None) -> Tensor:
        """Root mean square of the standardised residual over the observed entries: (B,).

        About 1 where y_clean is the truth. Entries that the operator never fills do not count.
        """
        residual = self.standardised(y, y_clean)
        weight = torch.ones_like(residual)
        if operator is not None:
            weight = operator.restrict(weight)
            residual = operator.restrict(residual)
        components = 2 if residual.is_complex() else 1
        return (rows.dot(residual, residual) / (components * rows.dot(weight, weight))).sqrt()

    def check(self, y: Tensor) -> None:
        """Raises where this noise cannot be that of y: shape, dtype, NaN."""
        if not bool(torch.isfinite(y).all()):
            raise InputError("y has NaN or infinite values")

    def take(self, index: Sequence[int]) -> NoiseModel:
        """The noise of the measurements `index`."""
        return self


@dataclass(frozen=True, eq=False)
class GaussianNoise(NoiseModel):
    """y = A(x) + std z with z standard normal; for complex y, z is so in each real component.

    Args:
        std: standard deviation in the units of y, >= 0: a number, (B,) for one per measurement, or
            the shape of y with its batch axis (which may be 1). Methods that divide by it, and
            `log_prob`, raise where it is 0.
    """

    std: float | Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", _std(self.std))

    def std_like(self, y: Tensor) -> float | Tensor:
        """The standard deviation as a number, or as a tensor that broadcasts against y."""
        std = self.std
        if not isinstance(std, Tensor):
            return std
        std = std.to(y.device, y.real.dtype)
        if std.shape[0] not in (1, y.shape[0]):
            raise InputError(f"noise std for {std.shape[0]} measurements, y has {y.shape[0]}")
        if std.ndim == 1:
            return rows.expand(std, y)
        if std.shape[1:] != y.shape[1:]:
            raise InputError(
                f"noise std has shape {tuple(std.shape)}, y has {tuple(y.shape)}: "
                "give a number, one per measurement (B,), or the shape of y"
            )
        return std

    def sample(self, y_clean: Tensor, seed: int | Sequence[int]) -> Tensor:
        """y_clean + std z."""
        _check_clean(y_clean)
        noise = _streams(y_clean, seed)
        std = self.std_like(y_clean)
        if y_clean.is_complex():
            z = torch.complex(noise("measurement", 0), noise("measurement", 1))
        else:
            z = noise("measurement", 0)
        return y_clean + std * z

    def log_prob(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """Sum of log N(y; y_clean, std^2) over the real components: (B,)."""
        _check_pair(y, y_clean)
        std = self.std_like(y)
        residual = y - y_clean
        components = 2 if residual.is_complex() else 1
        count = components * math.prod(residual.shape[1:])
        if not isinstance(std, Tensor):
            if std == 0:
                raise InputError("noise std is 0: the likelihood has no density")
            log_std: float | Tensor = count * math.log(std)
        else:
            if bool((std == 0).any()):
                raise InputError("noise std is 0 somewhere: the likelihood has no density")
            each = torch.broadcast_to(std, residual.shape)
            log_std = components * rows.total(by_row(lambda row, _: row.log(), each))
        scaled = residual / std
        return -0.5 * rows.dot(scaled, scaled) - log_std - 0.5 * count * _LOG_2PI

    def variance(self, y: Tensor) -> float | Tensor:
        """std^2."""
        std = self.std_like(y)
        return std * std

    def standardised(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """(y - y_clean) / std; nan where std = 0."""
        _check_pair(y, y_clean)
        std = torch.as_tensor(self.std_like(y), dtype=y.real.dtype, device=y.device)
        return (y - y_clean) / torch.where(std > 0, std, torch.nan)

    def check(self, y: Tensor) -> None:
        super().check(y)
        self.std_like(y)

    def take(self, index: Sequence[int]) -> GaussianNoise:
        """The noise of the measurements `index`."""
        if not isinstance(self.std, Tensor) or self.std.shape[0] == 1:
            return self
        return GaussianNoise(take_rows(self.std, index))


@dataclass(frozen=True)
class PoissonNoise(NoiseModel):
    """Photon counting: counts ~ Poisson(gain y01), with y01 = (y_clean - low) / (1 - low).

    The noisy y is counts / gain brought back to the units of y, so that its mean is y_clean. Values
    of y_clean below `low` count as no light.

    Args:
        rate: scale of the counts, > 0; the DPS paper's lambda.
        low: the value of y without light: -1 for images in [-1, 1], 0 for [0, 1].
        peak: the count at y = 1 for rate 1.
    """

    rate: float
    low: float = -1.0
    peak: float = 255.0

    def __post_init__(self) -> None:
        for name in ("rate", "low", "peak"):
            value = getattr(self, name)
            object.__setattr__(self, name, _number(f"PoissonNoise {name}", value))
        if self.rate <= 0 or self.peak <= 0:
            raise InputError(f"PoissonNoise rate and peak must be > 0: {self.rate}, {self.peak}")
        if self.low >= 1:
            raise InputError(f"PoissonNoise low must be < 1, not {self.low}")

    @property
    def gain(self) -> float:
        """Counts at full light, y = 1."""
        return self.peak * self.rate

    def counts(self, y: Tensor) -> Tensor:
        """Counts of y: gain (y - low) / (1 - low); whole numbers where y is a measurement."""
        _check_real(y)
        return (y - self.low) * self.slope

    def sample(self, y_clean: Tensor, seed: int | Sequence[int]) -> Tensor:
        """Poisson counts by inversion of the distribution function, in the units of y."""
        _check_clean(y_clean)
        _check_real(y_clean)
        rate = self.counts(y_clean.double()).clamp(min=0)
        uniform = _streams(y_clean, seed).uniform("measurement")
        counts = by_row(
            lambda row, b: _poisson_quantile(uniform[b : b + 1], row),
            rate,
        )
        return (counts / self.slope + self.low).to(y_clean.dtype)

    @property
    def slope(self) -> float:
        """Counts per unit of y."""
        return self.gain / (1 - self.low)

    def variance(self, y: Tensor) -> Tensor:
        """That of a Poisson law whose mean is the measured count, at least one count."""
        return self.counts(y).clamp(min=1) / self.slope**2

    def standardised(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """(k - rate) / sqrt(rate) in counts; a pixel without light weighs as one with one count."""
        _check_pair(y, y_clean)
        rate = self.counts(y_clean).clamp(min=1)
        return (self.counts(y) - self.counts(y_clean)) / rate.sqrt()

    def log_prob(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """Sum of log Poisson(counts(y); counts(y_clean)): (B,), the log of a probability.

        Between whole counts the formula is continued by the gamma function; y below `low` (by more
        than rounding) is impossible, -inf.
        """
        _check_pair(y, y_clean)
        _check_real(y)
        _check_real(y_clean)
        k, rate = self.counts(y.double()), self.counts(y_clean.double()).clamp(min=0)
        impossible = k < -1e-3
        k = k.clamp(min=0)

        def log_mass(row: Tensor, b: int) -> Tensor:
            n = k[b : b + 1]
            return torch.xlogy(n, row) - row - torch.lgamma(n + 1)

        log_p = by_row(log_mass, rate).masked_fill(impossible, -math.inf)
        return rows.total(log_p).to(y.dtype)

    def check(self, y: Tensor) -> None:
        super().check(y)
        if float(self.counts(y).min()) < -0.5:
            raise InputError(f"y goes below low = {self.low:g}: no photon count does")


def as_noise_model(noise: object) -> NoiseModel:
    """A noise model as it is; a bare number or tensor as the std of Gaussian noise."""
    if isinstance(noise, NoiseModel):
        return noise
    if noise is None:
        raise InputError("noise is missing: give its standard deviation in the units of y")
    return GaussianNoise(noise)  # type: ignore[arg-type]  # validated by the constructor


def _poisson_quantile(u: Tensor, rate: Tensor) -> Tensor:
    """The smallest k with P(X <= k) >= u for X ~ Poisson(rate), exactly; float64, elementwise.

    A Cornish-Fisher guess, then single steps until the distribution function (the regularised
    upper incomplete gamma function at k + 1) brackets u.
    """
    z = torch.special.ndtri(u)
    k = (rate + rate.sqrt() * z + (z * z - 1) / 6).floor().clamp(min=0)

    def cdf(k: Tensor, rate: Tensor) -> Tensor:
        return torch.where(k < 0, 0.0, torch.special.gammaincc(k.clamp(min=0) + 1, rate))

    k = _walk(k, lambda k, rate, u: cdf(k, rate) < u, +1, rate, u)
    return _walk(k, lambda k, rate, u: cdf(k - 1, rate) >= u, -1, rate, u)


def _walk(
    k: Tensor, go: Callable[[Tensor, Tensor, Tensor], Tensor], step: int, rate: Tensor, u: Tensor
) -> Tensor:
    """`k` moved by `step` as long as `go`, element by element."""
    flat, rate, u = k.flatten().clone(), rate.flatten(), u.flatten()
    active = torch.arange(flat.numel(), device=k.device)
    while active.numel():
        active = active[go(flat[active], rate[active], u[active])]
        flat[active] += step
    return flat.reshape(k.shape)


def _streams(y: Tensor, seed: int | Sequence[int]) -> Noise:
    """The streams of measurement noise: row b is draw 0 of its own seed."""
    count = y.shape[0]
    zeros = (0,) * count
    event = tuple(y.shape[1:])
    return Noise(tuple(seeds_of(seed, count)), zeros, zeros, event, y.real.dtype, y.device)


def _check_clean(y_clean: Tensor) -> None:
    if not bool(torch.isfinite(y_clean).all()):
        raise InputError("the clean measurement has NaN or infinite values")


def _check_real(y: Tensor) -> None:
    if y.is_complex():
        raise InputError("PoissonNoise needs a real y, not a complex one")


def _check_pair(y: Tensor, y_clean: Tensor) -> None:
    if y.shape[1:] != y_clean.shape[1:]:
        raise InputError(f"y has shape {tuple(y.shape)}, A(x) has {tuple(y_clean.shape)}")


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputTypeError(f"{what} must be a number, not {type(value).__name__}")
    if not math.isfinite(value):
        raise InputError(f"{what} must be finite, not {value}")
    return float(value)


def _std(value: object) -> float | Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        std: float | Tensor = _number("noise std", value)
    elif value.is_complex() or value.dtype == torch.bool:
        raise InputTypeError(f"noise std must be real, not {value.dtype}")
    elif value.ndim == 0:
        std = _number("noise std", value.item())
    elif value.numel() == 0:
        raise InputError("noise std is an empty tensor")
    else:
        std = value.detach().clone()
        if not bool(torch.isfinite(std).all()):
            raise InputError("noise std must be finite")
    lowest = float(std.min()) if isinstance(std, Tensor) else std
    if lowest < 0:
        raise InputError(f"noise std must be >= 0, not {lowest}")
    return std


__all__ = ["GaussianNoise", "NoiseModel", "PoissonNoise", "as_noise_model"]
