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
_SMOOTH = 6  # counts: a sum over k this wide or wider is an integral, to exp(-2 pi^2 6^2)


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


@dataclass(frozen=True)
class PoissonGaussianNoise(NoiseModel):
    """A sensor: photon counting and read-out noise, y = PoissonNoise(y_clean) + std z.

    Foi, Trimeche, Katkovnik, Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting
    for single-image raw-data" (IEEE Transactions on Image Processing 17, 2008).

    Args:
        rate, low, peak: of the counts, as in `PoissonNoise`.
        std: of the Gaussian part in the units of y, > 0.
    """

    rate: float
    std: float
    low: float = -1.0
    peak: float = 255.0

    def __post_init__(self) -> None:
        PoissonNoise(self.rate, self.low, self.peak)
        for name in ("rate", "std", "low", "peak"):
            value = getattr(self, name)
            object.__setattr__(self, name, _number(f"PoissonGaussianNoise {name}", value))
        if self.std <= 0:
            raise InputError(f"std must be > 0, not {self.std:g}: without it take PoissonNoise")

    @property
    def photons(self) -> PoissonNoise:
        """The law of the counts."""
        return PoissonNoise(self.rate, self.low, self.peak)

    def sample(self, y_clean: Tensor, seed: int | Sequence[int]) -> Tensor:
        """The counts of `PoissonNoise` with the same seed, then std z."""
        counted = self.photons.sample(y_clean, seed)
        return counted + self.std * _streams(y_clean, seed)("measurement", 1)

    def variance(self, y: Tensor) -> Tensor:
        """std^2 and the Poisson variance of a law whose mean is the measured value."""
        photons = self.photons
        return photons.counts(y).clamp(min=0) / photons.slope**2 + self.std**2

    def standardised(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """(y - y_clean) over the standard deviation that belongs to y_clean."""
        _check_pair(y, y_clean)
        return (y - y_clean) / self.variance(y_clean).sqrt()

    def log_prob(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """log sum_k Poisson(k; counts(y_clean)) N(y; k in the units of y, std^2): (B,).

        The sum itself, to about 1e-9: over whole counts around its largest term; where its terms
        change little from one to the next, as an integral over k (the terms continued by the gamma
        function), by the trapezoidal rule.
        """
        _check_pair(y, y_clean)
        _check_real(y)
        _check_real(y_clean)
        photons = self.photons
        seen, rate = photons.counts(y.double()), photons.counts(y_clean.double()).clamp(min=0)
        spread = self.std * photons.slope  # in counts

        def log_density(row: Tensor, b: int) -> Tensor:
            return _log_poisson_gaussian(seen[b : b + 1], row, spread)

        per_unit = rows.total(torch.full_like(rate, math.log(photons.slope)))
        return (rows.total(by_row(log_density, rate)) + per_unit).to(y.dtype)

    def check(self, y: Tensor) -> None:
        super().check(y)
        _check_real(y)


@dataclass(frozen=True)
class SaltAndPepperNoise(NoiseModel):
    """Broken pixels: each entry is lost with `probability`, to black or white alike; then std z.

    Given y_clean an entry has the density

        (1 - p) N(y; y_clean, std^2) + p/2 N(y; low, std^2) + p/2 N(y; high, std^2).

    With std = 0 it is the classical noise, and has no density: y_clean itself has a positive
    probability. It can then be sampled, `log_prob` raises, and methods that divide by the noise
    refuse it; give the std that the other entries are to be matched with.

    The mean of y is not y_clean, so methods that know a noise by its variance get one that says
    what y tells of y_clean, see `variance`; it makes them inpaint what looks broken. Methods that
    call `log_prob` (TDS, Metropolis) use the density as it is.

    Args:
        probability: p, of an entry (a channel of a pixel) to be lost, in (0, 1).
        std: of the Gaussian noise on top, in the units of y, >= 0.
        low, high: the values of pepper and of salt.
    """

    probability: float
    std: float = 0.0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("probability", "std", "low", "high"):
            value = getattr(self, name)
            object.__setattr__(self, name, _number(f"SaltAndPepperNoise {name}", value))
        if not 0 < self.probability < 1:
            raise InputError(f"probability must lie between 0 and 1, not {self.probability:g}")
        if self.std < 0:
            raise InputError(f"noise std must be >= 0, not {self.std:g}")
        if self.low >= self.high:
            raise InputError(f"low must be < high: {self.low:g}, {self.high:g}")

    def sample(self, y_clean: Tensor, seed: int | Sequence[int]) -> Tensor:
        """y_clean, `low` or `high`, then std z."""
        _check_clean(y_clean)
        _check_real(y_clean)
        noise = _streams(y_clean, seed)
        u = noise.uniform("measurement")
        y = torch.where(u < self.probability, self.high, y_clean)
        y = torch.where(u < self.probability / 2, self.low, y)
        return y if self.std == 0 else y + self.std * noise("measurement", 1)

    def lost(self, y: Tensor) -> Tensor:
        """The probability that an entry of y was lost, for y_clean uniform on [low, high]."""
        _check_real(y)
        if self.std == 0:
            return ((y == self.low) | (y == self.high)).to(y.dtype)

        def each(row: Tensor, b: int) -> Tensor:
            below, above = (row - self.low) / self.std, (row - self.high) / self.std
            bump = (-0.5 * below * below).exp() + (-0.5 * above * above).exp()
            broken = 0.5 * self.probability * bump / (self.std * math.sqrt(2 * math.pi))
            inside = torch.special.ndtr(below) - torch.special.ndtr(above)
            whole = (1 - self.probability) * inside / (self.high - self.low)
            total = broken + whole
            return torch.where(total > 0, broken / total, 0.0)

        return by_row(each, y)

    def variance(self, y: Tensor) -> Tensor:
        """The mean square of y - y_clean given y, for y_clean uniform on [low, high].

        std^2, and where y looks lost that of an entry of which nothing is known: (high - low)^2/3
        at both ends.
        """
        lost = self.lost(y)
        off_middle = y - (self.low + self.high) / 2
        unknown = off_middle * off_middle + (self.high - self.low) ** 2 / 12
        return lost * unknown + (1 - lost) * self.std**2

    def standardised(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """(y - y_clean) over the root of `variance`; nan where that is 0."""
        _check_pair(y, y_clean)
        variance = self.variance(y)
        return (y - y_clean) / torch.where(variance > 0, variance, torch.nan).sqrt()

    def log_prob(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """The sum of the logarithms of the density above: (B,)."""
        _check_pair(y, y_clean)
        _check_real(y)
        _check_real(y_clean)
        if self.std == 0:
            raise InputError(
                "salt and pepper without Gaussian noise has no density: give"
                " SaltAndPepperNoise(probability, std=)"
            )
        weights = (1 - self.probability, self.probability / 2, self.probability / 2)

        def log_density(row: Tensor, b: int) -> Tensor:
            means: list[Tensor | float] = [y_clean[b : b + 1], self.low, self.high]
            terms = [
                math.log(w) - 0.5 * ((row - mean) / self.std) ** 2
                for w, mean in zip(weights, means, strict=True)
            ]
            return terms[0].logaddexp(terms[1]).logaddexp(terms[2])

        count = math.prod(y.shape[1:])
        scale = count * (math.log(self.std) + 0.5 * _LOG_2PI)
        return rows.total(by_row(log_density, y)) - scale

    def check(self, y: Tensor) -> None:
        super().check(y)
        _check_real(y)


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


def _log_poisson_gaussian(seen: Tensor, rate: Tensor, spread: float) -> Tensor:
    """log sum_k Poisson(k; rate) N(seen; k, spread^2), elementwise, float64.

    Both factors are log-concave in k, so the largest term lies between their modes, at
    (seen - k) / spread^2 + log(rate / k) = 0, and has the width (1 / spread^2 + 1 / k)^(-1/2).
    """
    least = torch.minimum(seen.clamp(min=0), rate)
    most = torch.maximum(seen.clamp(min=0), rate)
    log_rate = rate.log()
    for _ in range(40):  # bisection
        middle = (least + most) / 2
        rising = (seen - middle) / spread**2 + log_rate - (middle + 0.5).log() > 0
        least, most = torch.where(rising, middle, least), torch.where(rising, most, middle)
    width = (1 / spread**2 + 1 / least.clamp(min=1e-9)).rsqrt()
    smooth = width > _SMOOTH
    step = torch.where(smooth, width / 3, 1.0)
    first = torch.where(smooth, least, least.round())
    total = torch.full_like(rate, -math.inf)
    for j in range(-8 * _SMOOTH, 8 * _SMOOTH + 1):
        if abs(j) > 8 * 3 and bool(smooth.all()):
            continue  # 8 widths in steps of a third
        k = first + j * step
        at = k.clamp(min=0)
        term = torch.xlogy(at, rate) - rate - torch.lgamma(at + 1)
        term = term - 0.5 * ((seen - at) / spread) ** 2
        total = total.logaddexp(term.masked_fill(k < 0, -math.inf))
    return total + step.log() - (math.log(spread) + 0.5 * _LOG_2PI)


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
        raise InputError("this noise needs a real y, not a complex one")


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


__all__ = [
    "GaussianNoise",
    "NoiseModel",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "SaltAndPepperNoise",
    "as_noise_model",
]
