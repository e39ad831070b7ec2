"""Computed tomography in two dimensions: y = line integrals of x.

>>> ct = ParallelBeamCT(views=60)                               # sparse view
>>> ct = ParallelBeamCT(views=90, arc=90)                       # limited angle
>>> ct = FanBeamCT(views=360, source_distance=500, detector_distance=500)
>>> start = ct.bind((1, 256, 256)).fbp(y)                       # filtered back-projection
>>> transmission = Transmission(ct, attenuation=0.02)           # Beer-Lambert: exp(-integral)

Geometry, one for all (Kak & Slaney, "Principles of computerized tomographic imaging", 1988). The
rotation centre is the middle of the image, ((H - 1) / 2, (W - 1) / 2); from there x points to the
right, along the columns, and y upwards, against the rows. At the angle t the detector runs along
(cos t, sin t), counter-clockwise, and s is measured along it:

    parallel   y[t, s] = integral of x over the line  x cos t + y sin t = s
    fan        the source at  source_distance (sin t, -cos t)  looks along (-sin t, cos t) at the
               middle of the detector; a ray at the angle g from there is the parallel ray at t - g
               with s = source_distance sin g. It meets a flat detector at (S + D) tan g, and a
               curved one, round the source, at (S + D) g

Bin d of `detectors` has its middle at s = (d - (detectors - 1) / 2) spacing, and reads the mean of
the integrals over its width. At 0 degrees y is the sum of the rows, as in scikit-image's `radon`,
which turns the same way; but it turns about the pixel (H // 2, W // 2), which is the middle of an
image with an odd number of pixels only.

Units: lengths are those of `pixel_size`, by default pixels, and y is in the units of x times a
length: an image of ones gives chords up to sqrt(2) N pixel_size. Noise is in these units too. In an
image in [-1, 1] air is -1, not 0. A is linear, so with m = a (x + 1) / 2 for the attenuation,
A m = a (A x + A 1) / 2, and A x = 2 A m / a - A 1 is the measurement of x.

The discretisation, and why A^T is exact: `_projector`. FBP is not the pseudo-inverse of a
discrete A (there is no closed form), so there is no `pinv`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators._projector import (
    Projector,
    Shadow,
    footprints,
    pixel_centres,
)
from posterior.operators._rowwise import Memo, by_row
from posterior.operators._sized import Sized
from posterior.operators.base import (
    Operator,
    Pull,
    Shape,
    check_choice,
    check_count,
    check_image,
    check_number,
)
from posterior.operators.noise import GaussianNoise, PoissonNoise

BACKENDS = ("footprint", "astra")
WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ramp": torch.ones_like,
    "shepp-logan": torch.sinc,
    "cosine": lambda f: torch.cos(math.pi * f),
    "hamming": lambda f: 0.54 + 0.46 * torch.cos(2 * math.pi * f),
    "hann": lambda f: 0.5 + 0.5 * torch.cos(2 * math.pi * f),
}
"""Window of the ramp filter at f cycles per bin, 0 <= f <= 1/2."""

_TAPER = 10.0  # degrees over which the ends of a scan fade where other views have the same rays


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Tomography(Sized):
    """Base class of the scanners: a subclass says where a point casts its shadow."""

    views: int | None = None
    arc: float
    start: float = 0.0
    angles: Tensor | Sequence[float] | None = None
    detectors: int | None = None
    spacing: float | None = None
    pixel_size: float = 1.0
    size: int | tuple[int, int] | None = None
    backend: str = "footprint"
    _memo: Memo = field(default_factory=lambda: Memo(2), init=False)

    linear = True

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("arc", _positive("arc", self.arc, 360))
        put("start", check_number("start", self.start, -math.inf))
        if (self.views is None) == (self.angles is None):
            raise InputError(f"{type(self).__name__} needs exactly one of views= and angles=")
        if self.views is not None:
            put("views", check_count("views", self.views, 1))
        else:
            put("angles", _as_angles(self.angles))
        put("pixel_size", _positive("pixel_size", self.pixel_size))
        if self.detectors is not None:
            put("detectors", check_count("detectors", self.detectors, 1))
        if self.spacing is not None:
            put("spacing", _positive("spacing", self.spacing))
        self._set_size()
        check_choice("backend", self.backend, BACKENDS)

    @property
    def degrees(self) -> Tensor:
        """The angles of the views, float64 (views,)."""
        if isinstance(self.angles, Tensor):
            return self.angles
        assert self.views is not None
        return self.start + torch.arange(self.views, dtype=torch.float64) * (self.arc / self.views)

    @abstractmethod
    def shadow(self, degrees: float) -> Shadow:
        """Where points (x, y) are seen at this angle: (s, direction cosines of their rays)."""

    @abstractmethod
    def detector_of(self, size: tuple[int, int]) -> tuple[int, float]:
        """Number and width of the bins for an image of this size."""

    @abstractmethod
    def backend_geometry(self, detectors: int, spacing: float) -> tuple[object, ...]:
        """The arguments of ASTRA's `create_proj_geom`, lengths in pixels."""

    @abstractmethod
    def _filtering(self, s: Tensor, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
        """For bins at s: their fan angles, the factor of y, and the ramp kernel for -s[-1] 2 .."""

    @abstractmethod
    def _closeness(self, degrees: float, x: Tensor, y: Tensor) -> Tensor:
        """What back-projection weighs the points with."""

    def forward(self, x: Tensor) -> Tensor:
        _check_real(self, x)
        shape = self.range_shape(tuple(x.shape))
        flat = x.reshape(-1, x.shape[2] * x.shape[3])
        return self._projector((x.shape[2], x.shape[3]), x).forward(flat).reshape(shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y; x must be of known `size`."""
        _check_real(self, y)
        shape = self.domain_shape(tuple(y.shape))
        flat = y.reshape(-1, y.shape[2] * y.shape[3])
        return self._projector((shape[2], shape[3]), y).adjoint(flat).reshape(shape)

    def fbp(self, y: Tensor, window: str = "ramp") -> Tensor:
        """Filtered back-projection: an estimate of x from y, (B, C, H, W); x of known `size`.

        Kak & Slaney, sections 3.3 (parallel), 3.4.1 (curved), 3.4.2 (flat). Rays that a scan sees
        twice share their weight, smoothly towards the ends of the arc (Noo et al., Physics in
        Medicine and Biology 47, 2002); so a short scan, 180 degrees and the
        fan's angle, is enough. What an arc never sees stays missing, few views give streaks, and
        noise is amplified. It is a start, such as `sample(..., source=ct.fbp(y), grid=...)` from a
        level of noise that hides its errors, and a baseline; it is not the pseudo-inverse.

        Args:
            y: (B, C, views, detectors).
            window: of the ramp filter: "ramp" (none), "shepp-logan", "cosine", "hamming", "hann",
                from sharp to smooth.
        """
        check_choice("window", window, list(WINDOWS))
        _check_real(self, y)
        return by_row(lambda row, _: self._fbp(row, window), y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        size = self._known_size()
        expected = (len(self.degrees), self.detector_of(size)[0])
        if tuple(y_shape[2:]) != expected:
            raise InputError(f"{self!r} gives (B, C, {expected[0]}, {expected[1]}), not {y_shape}")
        return (*y_shape[:2], *size)

    def range_shape(self, x_shape: Shape) -> Shape:
        size = self._size_of(x_shape)
        return (*x_shape[:2], len(self.degrees), self.detector_of(size)[0])

    def _projector(self, size: tuple[int, int], like: Tensor) -> Projector:
        """Kept for each (size, dtype, device)."""
        return self._memo(
            (size, like.dtype, like.device),
            lambda: Projector.of(self._matrix(size, like.dtype), like.dtype, like.device),
        )

    def _matrix(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        detectors, spacing = self.detector_of(size)
        if self.backend == "astra":
            from posterior.operators._astra import astra_matrix

            geometry = self.backend_geometry(detectors, spacing)
            return astra_matrix(geometry, self.degrees.deg2rad(), size, self.pixel_size)
        shadows = (self.shadow(angle) for angle in self.degrees.tolist())
        return footprints(shadows, size, self.pixel_size, detectors, spacing, dtype)

    def _fbp(self, y: Tensor, window: str) -> Tensor:
        """Of one row, in float64."""
        shape = self.domain_shape(tuple(y.shape))
        detectors, spacing = self.detector_of((shape[2], shape[3]))
        device = y.device
        s = (torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2) * spacing
        fan, factor, kernel = self._filtering(s, spacing)
        step = math.radians(self.arc / len(self.degrees))
        weight = (step * factor * self._share(fan)).to(device)
        filtered = _convolve(y.double() * weight, kernel.to(device), WINDOWS[window])
        filtered = torch.nn.functional.pad(filtered, (1, 1))[0]  # outside the detector: nothing
        out = y.new_zeros(shape[1], shape[2] * shape[3], dtype=torch.float64)
        points = pixel_centres((shape[2], shape[3]), self.pixel_size)
        for view, angle in enumerate(self.degrees.tolist()):
            at = self.shadow(angle)(*points)[0] / spacing + (detectors - 1) / 2 + 1
            at = at.clamp(0, detectors + 1).to(device)
            left = at.floor().clamp(max=detectors).long()
            between = at - left
            row = filtered[:, view]
            value = row[:, left] * (1 - between) + row[:, left + 1] * between
            out = out + value * self._closeness(angle, *points).to(device)
        return out.reshape(1, *shape[1:]).to(y.dtype)

    def _share(self, fan: Tensor) -> Tensor:
        """The part of a ray's weight that each view has, (views, 1 or detectors).

        A ray at (t, g) is that at (t + 180 - 2 g, -g) the other way round.
        """
        step = self.arc / len(self.degrees)
        since = ((self.degrees - self.start).round(decimals=9) % 360)[:, None] + step / 2

        def presence(since: Tensor) -> Tensor:
            if self.arc == 360:
                return torch.ones_like(since)
            width = min(_TAPER, self.arc / 4)
            depth = torch.minimum(since, self.arc - since).clamp(0, width) / width
            return torch.sin(depth * math.pi / 2).square()

        here = presence(since).clamp(min=1e-9)  # a view that was given counts, wherever it lies
        return here / (here + presence((since + 180 - 2 * fan.rad2deg()) % 360))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ParallelBeamCT(Tomography):
    """Parallel beams: (B, C, H, W) -> (B, C, views, detectors).

    Args:
        views: how many, evenly spaced over [start, start + arc).
        arc: degrees, up to 360; 180 sees everything once.
        start: degrees.
        angles: instead of `views`: degrees, (views,). `start` and `arc` then say what they cover,
            for `fbp`.
        detectors: bins of a view; by default ceil(sqrt(2) max(H, W) pixel_size / spacing), which
            sees the whole image from everywhere.
        spacing: width of a bin, by default `pixel_size`.
        pixel_size: side of a pixel: the unit of lengths.
        size: (H, W) of x, or one number; by default any, and `bind` (which the sampler calls) fixes
            it. `adjoint` and `fbp` need it.
        backend: "footprint", or "astra" for the matrix of the ASTRA toolbox, see `_astra`.
    """

    arc: float = 180.0

    def shadow(self, degrees: float) -> Shadow:
        c, s = _direction(degrees)
        along = torch.tensor(-s, dtype=torch.float64), torch.tensor(c, dtype=torch.float64)
        return lambda x, y: (x * c + y * s, *along)

    def detector_of(self, size: tuple[int, int]) -> tuple[int, float]:
        spacing = self.spacing or self.pixel_size
        whole = math.sqrt(2) * max(size) * self.pixel_size
        return self.detectors or _bins(whole, spacing), spacing

    def backend_geometry(self, detectors: int, spacing: float) -> tuple[object, ...]:
        return "parallel", spacing / self.pixel_size, detectors

    def _filtering(self, s: Tensor, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros(1, dtype=s.dtype), torch.ones_like(s), _ramp(len(s)) / spacing

    def _closeness(self, degrees: float, x: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(x)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FanBeamCT(Tomography):
    """A fan of rays from a point: (B, C, H, W) -> (B, C, views, detectors).

    Args:
        source_distance: from the source to the rotation centre, larger than half the diagonal of
            the image.
        detector_distance: from the rotation centre to the middle of the detector, >= 0.
        curved: bins at equal angles on an arc round the source, instead of equal steps on a line.
        views: how many, evenly spaced over [start, start + arc).
        arc: degrees, up to 360, a full scan. A short scan is 180 degrees and the angle of the fan.
        start: degrees.
        angles: instead of `views`: degrees, (views,). `start` and `arc` then say what they cover,
            for `fbp`.
        detectors: bins of a view; by default as many as see the whole image from everywhere.
        spacing: width of a bin on the detector (the arc's length where curved), by default
            `pixel_size` times the magnification: a pixel at the rotation centre.
        pixel_size: side of a pixel: the unit of lengths.
        size: (H, W) of x, or one number; by default any, and `bind` (which the sampler calls) fixes
            it. `adjoint` and `fbp` need it.
        backend: "footprint", or "astra" for the matrix of the ASTRA toolbox, see `_astra`.
    """

    source_distance: float
    detector_distance: float
    curved: bool = False
    arc: float = 360.0

    def __post_init__(self) -> None:
        super().__post_init__()
        source = _positive("source_distance", self.source_distance)
        object.__setattr__(self, "source_distance", source)
        behind = check_number("detector_distance", self.detector_distance, 0)
        object.__setattr__(self, "detector_distance", behind)
        if not isinstance(self.curved, bool):
            raise InputTypeError(f"curved must be True or False, not {self.curved!r}")
        if self.curved and self.backend == "astra":
            raise CapabilityError("ASTRA has no curved detectors: take backend='footprint'")

    @property
    def _reach(self) -> float:
        """From the source to the detector."""
        return self.source_distance + self.detector_distance

    def shadow(self, degrees: float) -> Shadow:
        c, s = _direction(degrees)

        def cast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            ahead, aside = self.source_distance - x * s + y * c, x * c + y * s
            ratio = aside / ahead
            length = (ahead * ahead + aside * aside).sqrt()
            along_x, along_y = (aside * c - ahead * s) / length, (aside * s + ahead * c) / length
            return self._reach * (ratio.atan() if self.curved else ratio), along_x, along_y

        return cast

    def detector_of(self, size: tuple[int, int]) -> tuple[int, float]:
        radius = math.hypot(*size) / 2 * self.pixel_size
        if radius >= self.source_distance:
            raise InputError(
                f"{self!r}: the source turns inside an image of {size[0]} x {size[1]} pixels:"
                f" source_distance must be more than {radius:g}"
            )
        spacing = self.spacing or self.pixel_size * self._reach / self.source_distance
        angle = math.asin(radius / self.source_distance)
        whole = 2 * self._reach * (angle if self.curved else math.tan(angle))
        return self.detectors or _bins(whole, spacing), spacing

    def backend_geometry(self, detectors: int, spacing: float) -> tuple[object, ...]:
        lengths = (self.source_distance / self.pixel_size, self.detector_distance / self.pixel_size)
        return "fanflat", spacing / self.pixel_size, detectors, *lengths

    def _filtering(self, s: Tensor, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
        if not self.curved:
            fan = (s / self._reach).atan()
            # Kak & Slaney's detector stands on the rotation centre
            scaled = spacing * self.source_distance / self._reach
            return fan, fan.cos(), _ramp(len(s)) / scaled
        fan, step = s / self._reach, spacing / self._reach
        apart = step * torch.arange(1 - len(s), len(s), dtype=torch.float64)
        kernel = _ramp(len(s)) / step / torch.sinc(apart / math.pi).square()
        return fan, self.source_distance * fan.cos(), kernel

    def _closeness(self, degrees: float, x: Tensor, y: Tensor) -> Tensor:
        c, s = _direction(degrees)
        ahead = self.source_distance - x * s + y * c
        if not self.curved:
            return (self.source_distance / ahead).square()
        aside = x * c + y * s
        return 1 / (ahead * ahead + aside * aside)


@dataclass(frozen=True, eq=False, repr=False)
class Transmission(Operator):
    """What is left of a beam: y = exp(-A m), m = attenuation (x - low) / (1 - low).

    The law of Beer and Lambert; y = 1 is the open beam. With I0 photons a ray its noise is
    `PoissonNoise(rate=1, low=0, peak=I0)`: counts ~ Poisson(I0 exp(-A m)), y = counts / I0. Not
    linear; `log_domain` makes a linear problem of it.

    Args:
        operator: A, linear: a scanner.
        attenuation: of x = 1, per unit of length: with pixels as unit, 0.02 lets exp(-1) through 50
            of them.
        low: the x that lets everything through: -1 for images in [-1, 1], 0 for [0, 1].
    """

    operator: Operator
    attenuation: float
    low: float = -1.0

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise InputTypeError("Transmission takes an operator, such as ParallelBeamCT")
        if not self.operator.linear:
            raise CapabilityError(f"Transmission needs a linear operator, not {self.operator!r}")
        object.__setattr__(self, "attenuation", _positive("attenuation", self.attenuation))
        low = check_number("low", self.low, -math.inf)
        if low >= 1:
            raise InputError(f"low must be < 1, not {low:g}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "space", self.operator.space)

    @property
    def _slope(self) -> float:
        """Attenuation per unit of x."""
        return self.attenuation / (1 - self.low)

    def forward(self, x: Tensor) -> Tensor:
        return by_row(lambda row, _: (-row).exp(), self.operator(self._slope * (x - self.low)))

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        _, pull = self.operator.vjp(x)
        y = self(x)
        return y, lambda u: -self._slope * pull(u * y)

    def log_domain(self, y: Tensor, noise: PoissonNoise) -> tuple[Tensor, GaussianNoise]:
        """z and its noise, such that z = A x + noise: the linear problem behind counts.

        With k counts of I0, z = A x is log(I0 / (k + 1/2)) in the units of `operator`, and its
        variance that of log k, 1 / (k + 1/2) to first order (the weights of Sauer & Bouman, IEEE
        Transactions on Signal Processing 41, 1993). The half keeps the mean right up to 1 / k^2,
        and rays without a count finite; rays with a few counts are better served by y itself.

        Args:
            y: a measurement of this operator, (B, *range).
            noise: its noise, with low=0.
        """
        if not isinstance(noise, PoissonNoise):
            raise InputTypeError(f"noise must be PoissonNoise, not {type(noise).__name__}")
        if noise.low != 0:
            raise InputError("transmission has PoissonNoise(low=0): no light is y = 0")
        noise.check(y)
        counts = noise.counts(y).clamp(min=0) + 0.5
        air = torch.full(self.domain_shape(tuple(y.shape)), self.low, dtype=y.dtype)
        through = by_row(lambda row, _: (noise.gain / row).log(), counts)
        z = through / self._slope + self.operator(air.to(y.device))
        return z, GaussianNoise(1 / (self._slope * counts.sqrt()))

    def domain_shape(self, y_shape: Shape) -> Shape:
        return self.operator.domain_shape(y_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return self.operator.range_shape(x_shape)

    def take(self, index: Sequence[int]) -> Transmission:
        inner = self.operator.take(index)
        if inner is self.operator:
            return self
        return Transmission(inner, self.attenuation, self.low)

    def bind(self, event_shape: Shape) -> Transmission:
        return Transmission(self.operator.bind(event_shape), self.attenuation, self.low)


def _ramp(n: int) -> Tensor:
    """The ramp filter for lags 1 - n .. n - 1 at a spacing of 1, float64 (Kak & Slaney, eq. 61).

    Taken from its samples in space, so that what it does to a constant is right. Times spacing^-2;
    a convolution integral then multiplies by the spacing.
    """
    lag = torch.arange(1 - n, n, dtype=torch.float64)
    kernel = torch.where(lag % 2 == 0, 0.0, -1 / (math.pi * lag).square())
    kernel[n - 1] = 0.25
    return kernel


def _convolve(y: Tensor, kernel: Tensor, window: Callable[[Tensor], Tensor]) -> Tensor:
    """y (..., n) with a kernel for lags 1 - n .. n - 1, whose spectrum the window multiplies."""
    n = y.shape[-1]
    length = 1 << (2 * n - 1).bit_length()
    wrapped = torch.zeros(length, dtype=y.dtype, device=y.device)
    wrapped[:n], wrapped[length - n + 1 :] = kernel[n - 1 :], kernel[: n - 1]
    f = torch.fft.rfftfreq(length, dtype=y.dtype, device=y.device)
    transfer = torch.fft.rfft(wrapped).real * window(f)
    return torch.fft.irfft(torch.fft.rfft(y, length) * transfer, length)[..., :n]


def _direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine, exact at multiples of 90 degrees."""
    quarter, rest = divmod(degrees, 90)
    c, s = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    return ((c, s), (-s, c), (-c, -s), (s, -c))[int(quarter) % 4]


def _bins(whole: float, spacing: float) -> int:
    return math.ceil(whole / spacing - 1e-9)


def _positive(what: str, value: object, high: float = math.inf) -> float:
    number = check_number(what, value, 0, high)
    if number == 0:
        raise InputError(f"{what} must be > 0, not 0")
    return number


def _as_angles(angles: object) -> Tensor:
    try:
        out = torch.as_tensor(angles, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"angles must be numbers, in degrees: {error}") from None
    if out.ndim != 1 or len(out) == 0:
        raise InputError(f"angles must be (views,), not {tuple(out.shape)}")
    if not bool(torch.isfinite(out).all()):
        raise InputError("angles has NaN or infinite values")
    return out


def _check_real(who: Operator, x: Tensor) -> None:
    check_image(who, x)
    if x.is_complex():
        raise InputTypeError(f"{who!r} takes real tensors, not {x.dtype}")


__all__ = ["FanBeamCT", "ParallelBeamCT", "Tomography", "Transmission"]
