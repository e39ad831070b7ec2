"""Very-long-baseline interferometry: imaging a black hole with telescopes all over the Earth.

    Visibilities            V_m = sum_j F_mj x_j                             (B, 1, H, W) -> (B, m)
    ClosurePhases           psi = arg(V_12 V_23 V_31), or exp(i psi)         (B, 1, H, W) -> (B, n)
    LogClosureAmplitudes    c = ln|V_12| + ln|V_34| - ln|V_14| - ln|V_23|    (B, 1, H, W) -> (B, n)
    TotalFlux               sum_j I_j                                        (B, 1, H, W) -> (B, 1)

    F_mj = sinc^2(p u_m) sinc^2(p v_m) exp(2 pi i (u_m l_j + v_m m_j)),    sinc t = sin(pi t) / pi t

    u = B . east / wavelength,  v = B . north / wavelength,  B = r_1 - r_2

Pixel j is a triangular pulse, of `field_of_view` / W =: p, at the angles (l_j, m_j) from the middle
of the image: l to the east, which is left, and m to the north, up. The sign of the exponent, the
pulse and the order of a baseline's stations are those of the field's `eht-imaging`. The sky turns
over the stations: the source is at the Greenwich hour angle (sidereal time - right ascension), and
a station observes it above `elevation` degrees. Approximations: positions are geocentric,
elevations are above the plane at right angles to a station's radius, the sidereal time is the mean
one with UT1 = UTC, the source is where the catalogue of J2000 has it. That puts u and v off by some
thousandths; it is for simulation, and `Observation` takes those of real data as they are.

Visibilities suffer from gains, V_ab -> g_a conj(g_b) V_ab; closure quantities do not. Nor do they
see the position of the image, or its total flux (`TotalFlux` gives that). A scan has a minimal set
of triangles and of quadrangles, from which all its closures follow: with M stations
(M - 1)(M - 2) / 2 and M (M - 3) / 2.

    sigma = (SEFD_1 SEFD_2)^1/2 / (0.88 (2 bandwidth integration)^1/2)

is the thermal noise of V per real component, in Jy, of one correlation product (Stokes I, the mean
of two, has 1 / sqrt(2) of it); `closure_std` propagates it. Of an image in
[-1, 1] the closures and the flux take I = peak (x + 1) / 2 (`low` = -1). V is linear in x as it is:
V of I belongs to V_x = 2 V / peak - V_1, with noise 2 sigma / peak, V_1 that of an image of ones.

>>> obs = m87_2017()
>>> op = ClosurePhases(obs)                              # y = exp(i psi)
>>> psi_std, c_std = closure_std(obs, vis)               # vis: observed, (B, m)
>>> posterior.sample(prior, op, closure_phasors(obs, vis), noise=psi_std, method="dps")

A phase has no place on a line, 359 degrees is near 1: the phasor exp(i psi) is what a Gaussian
likelihood can take. |exp(i psi) - exp(i psi')|^2 = 2 (1 - cos(psi - psi')), so with noise psi_std
per component it is the field's own chi-squared, `chi2_closure_phases`. Methods: `Visibilities` all;
closures those that take non-linear operators.

Thompson, Moran, Swenson, "Interferometry and synthesis in radio astronomy", 2017. EHT
Collaboration, ApJL 875 (2019) L2, L3, L4 (array, closures, imaging). Blackburn et al., ApJ 894
(2020) 31 (minimal sets).
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import InputError, InputTypeError
from posterior.operators._rowwise import Memo, by_row
from posterior.operators._sized import Sized
from posterior.operators.base import (
    Operator,
    Shape,
    check_count,
    check_image,
    check_number,
)

LIGHT = 299792458.0  # m / s
MICROARCSECOND = math.pi / 180 / 3600e6
M87 = (187.7059308, 12.3911233)
"""Right ascension and declination of M87*, degrees, J2000."""


@dataclass(frozen=True)
class Station:
    """A telescope.

    Attributes:
        name: for people.
        position: geocentric, m: x to Greenwich, y to 90 degrees east, z to the north.
        sefd: system equivalent flux density, Jy: the source that doubles the power it receives.
    """

    name: str
    position: tuple[float, float, float]
    sefd: float


EHT_2017 = (
    Station("ALMA", (2225061.2, -5440057.4, -2481681.2), 74),
    Station("APEX", (2225039.5, -5441197.6, -2479303.4), 4700),
    Station("SMT", (-1828796.2, -5054406.8, 3427865.2), 17100),
    Station("LMT", (-768714.0, -5988541.8, 2063275.9), 4500),
    Station("PV", (5088967.9, -301681.6, 3825015.8), 1900),
    Station("SMA", (-5464523.4, -2493147.1, 2150611.8), 6200),
    Station("JCMT", (-5464584.7, -2493001.2, 2150654.0), 10500),
)
"""The stations that observed M87* in April 2017, approximate (the South Pole cannot see it)."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What an array measures, one entry for each baseline and scan.

    Attributes:
        u, v: baselines in wavelengths, float64 (m,).
        first, second: indices of a baseline's stations, first < second, (m,).
        scan: scan of each visibility, (m,).
        std: thermal noise per real component, Jy, float64 (m,).
        names: of the stations.
        triangles: (n, 3) visibilities V_12, V_23, V_13 of a minimal set; V_31 = conj V_13.
        quadrangles: (n, 4) visibilities V_12, V_34, V_14, V_23, in either order of their stations.
    """

    u: Tensor
    v: Tensor
    first: Tensor
    second: Tensor
    scan: Tensor
    std: Tensor
    names: tuple[str, ...] = ()
    triangles: Tensor = field(init=False)
    quadrangles: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.u)
        for name in ("u", "v", "std", "first", "second", "scan"):
            values = getattr(self, name)
            if not isinstance(values, Tensor):
                raise InputTypeError(f"{name} must be a tensor, not {type(values).__name__}")
            kind = torch.float64 if name in ("u", "v", "std") else torch.long
            if values.shape != (count,) or not count or not bool(torch.isfinite(values).all()):
                raise InputError(f"{name} must be ({count},), finite and not empty")
            object.__setattr__(self, name, values.detach().to("cpu", kind))
        if not bool((self.std > 0).all()):
            raise InputError("std must be positive")
        if not bool((self.first < self.second).all()):
            raise InputError("first must be < second: turn the baseline, V_21 = conj V_12, u and v")
        if len(set(zip(*(t.tolist() for t in self._address), strict=True))) < count:
            raise InputError("a baseline is there twice in a scan")
        triangles, quadrangles = _closures(*(t.tolist() for t in self._address))
        object.__setattr__(self, "triangles", torch.tensor(triangles).long().reshape(-1, 3))
        object.__setattr__(self, "quadrangles", torch.tensor(quadrangles).long().reshape(-1, 4))

    @property
    def _address(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.scan, self.first, self.second

    def __len__(self) -> int:
        return len(self.u)

    def __repr__(self) -> str:
        return (
            f"Observation({len(self)} visibilities, {len(self.triangles)} closure phases,"
            f" {len(self.quadrangles)} closure amplitudes)"
        )


def observe(
    stations: Sequence[Station],
    source: tuple[float, float],
    times: Sequence[float] | Tensor,
    *,
    frequency: float = 229.1e9,
    bandwidth: float = 1.875e9,
    integration: float = 60.0,
    elevation: float = 15.0,
) -> Observation:
    """The uv coverage and the noise of an array that looks at a source.

    Args:
        stations: of the array, two or more.
        source: right ascension and declination, degrees.
        times: of the scans, modified Julian dates (UTC) in days, in double precision.
        frequency, bandwidth: Hz.
        integration: s, the time that a scan's visibilities are averaged over.
        elevation: degrees above the horizon from which on a station observes.
    """
    positions = torch.tensor([s.position for s in stations], dtype=torch.float64)
    sefd = torch.tensor([s.sefd for s in stations], dtype=torch.float64)
    if len(stations) < 2 or not bool((sefd > 0).all()):
        raise InputError("an observation needs two stations or more, with sefd > 0")
    for what, value in (("frequency", frequency), ("bandwidth", bandwidth)):
        if check_number(what, value, 0) == 0:
            raise InputError(f"{what} must be > 0")
    if check_number("integration", integration, 0) == 0:
        raise InputError("integration must be > 0")
    lowest = math.sin(math.radians(check_number("elevation", elevation, -90, 90)))
    ra, dec = (math.radians(check_number("source", value, -360, 360)) for value in source)
    hour = _sidereal(torch.as_tensor(times, dtype=torch.float64).reshape(-1)) - ra
    zero, one = torch.zeros_like(hour), torch.ones_like(hour)
    sin, cos = hour.sin(), hour.cos()
    toward = torch.stack([math.cos(dec) * cos, -math.cos(dec) * sin, math.sin(dec) * one], -1)
    east = torch.stack([sin, cos, zero], -1)
    north = torch.stack([-math.sin(dec) * cos, math.sin(dec) * sin, math.cos(dec) * one], -1)

    up = positions / positions.norm(dim=-1, keepdim=True)
    sees = toward @ up.T >= lowest  # (scans, stations)
    i, j = torch.triu_indices(len(stations), len(stations), 1)
    scan, pair = torch.nonzero(sees[:, i] & sees[:, j], as_tuple=True)
    if not len(scan):
        raise InputError("no two stations see the source at any of the times")
    baseline = (positions[i] - positions[j]) * (frequency / LIGHT)
    noise = (sefd[i] * sefd[j]).sqrt() / (0.88 * math.sqrt(2 * bandwidth * integration))
    return Observation(
        u=(baseline[pair] * east[scan]).sum(-1),
        v=(baseline[pair] * north[scan]).sum(-1),
        first=i[pair],
        second=j[pair],
        scan=scan,
        std=noise[pair],
        names=tuple(s.name for s in stations),
    )


def m87_2017(scans: int = 24) -> Observation:
    """An observation like that of M87* on 11 April 2017, with scans from 0:45 to 8:15 UTC."""
    hours = torch.linspace(0.75, 8.25, check_count("scans", scans, 1), dtype=torch.float64)
    return observe(EHT_2017, M87, 57854 + hours / 24)


def _sidereal(mjd: Tensor) -> Tensor:
    """Greenwich mean sidereal time in radians (Meeus, Astronomical algorithms, 12.4, linear)."""
    return torch.deg2rad((280.46061837 + 360.98564736629 * (mjd - 51544.5)) % 360)


def _closures(
    scan: list[int], first: list[int], second: list[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Visibilities of a minimal set of triangles and of quadrangles, scan by scan."""
    triangles, quadrangles = [], []
    for _, group in itertools.groupby(
        sorted(range(len(scan)), key=scan.__getitem__), scan.__getitem__
    ):
        place = {(first[m], second[m]): m for m in group}
        three, four = _minimal(tuple(sorted(place)))
        triangles += [[place[b] for b in closure] for closure in three]
        quadrangles += [[place[b] for b in closure] for closure in four]
    return triangles, quadrangles


Baseline = tuple[int, int]


@lru_cache(maxsize=256)
def _minimal(
    baselines: tuple[Baseline, ...],
) -> tuple[list[tuple[Baseline, ...]], list[tuple[Baseline, ...]]]:
    """The triangles and quadrangles, in order, that do not follow from those before them."""
    there = {b: n for n, b in enumerate(baselines)}
    stations = sorted({s for b in baselines for s in b})

    def independent(
        candidates: list[tuple[Baseline, ...]], signs: tuple[int, ...]
    ) -> list[tuple[Baseline, ...]]:
        chosen: list[tuple[Baseline, ...]] = []
        basis = torch.zeros(0, len(baselines), dtype=torch.float64)
        for closure in candidates:
            if any(b not in there for b in closure):
                continue
            row = torch.zeros(len(baselines), dtype=torch.float64)
            row[[there[b] for b in closure]] = torch.tensor(signs, dtype=torch.float64)
            row = row - (basis @ row) @ basis
            row = row - (basis @ row) @ basis  # twice is enough
            size = float(row.norm())
            if size > 1e-6:
                basis = torch.cat([basis, row[None] / size])
                chosen.append(closure)
        return chosen

    triangles: list[tuple[Baseline, ...]] = [
        ((a, b), (b, c), (a, c)) for a, b, c in itertools.combinations(stations, 3)
    ]
    quadrangles: list[tuple[Baseline, ...]] = []
    for four in itertools.combinations(stations, 4):
        for a, b, c, d in (four, (four[0], four[1], four[3], four[2])):
            cd, bc, ad = (tuple(sorted(pair)) for pair in ((c, d), (b, c), (a, d)))
            quadrangles.append(((a, b), cd, ad, bc))  # type: ignore[arg-type]  # pairs
    return independent(triangles, (1, 1, -1)), independent(quadrangles, (1, 1, -1, -1))


@dataclass(frozen=True, eq=False, repr=False)
class Visibilities(Sized):
    """V_m = sum_j F_mj x_j: the image's Fourier transform at the baselines of an array.

    Args:
        observation: the baselines, such as `m87_2017()`.
        field_of_view: width of the image, micro-arcseconds; pixels are square.
        size: (H, W) of x, or one number; by default any, and `bind` (which the sampler calls) fixes
            it. `adjoint` needs it.
    """

    observation: Observation
    field_of_view: float = 160.0
    size: int | tuple[int, int] | None = None
    _memo: Memo = field(default_factory=Memo, init=False)

    linear = True

    def __post_init__(self) -> None:
        _check_sky(self.observation, self.field_of_view)
        self._set_size()

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        columns, across = self._factors((x.shape[2], x.shape[3]), x)

        def one(row: Tensor, _: int) -> Tensor:
            real, imag = (
                (row[0, 0] @ torch.view_as_real(columns).flatten(1))
                .unflatten(1, (-1, 2))
                .unbind(-1)
            )
            return (torch.complex(real, imag) * across).sum(0, keepdim=True)

        return by_row(one, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Re F^H y; x must be of known `size`."""
        shape = self.domain_shape(tuple(y.shape))
        columns, across = self._factors((shape[2], shape[3]), y)

        def one(row: Tensor, _: int) -> Tensor:
            spread = (row + 0j) * across.conj()
            return (spread @ columns.mH).real[None, None].contiguous()

        return by_row(one, y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        size = self._known_size()
        if tuple(y_shape[1:]) != (len(self.observation),):
            raise InputError(f"{self!r} gives (B, {len(self.observation)}), not {y_shape}")
        return (y_shape[0], 1, *size)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], len(self.observation))

    def _check(self, x: Tensor) -> None:
        check_image(self, x)
        if x.is_complex() or x.shape[1] != 1:
            raise InputError(f"{self!r} takes real images of one channel, not {tuple(x.shape)}")
        self._size_of(tuple(x.shape))

    def _factors(self, size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """F is separable: exp(2 pi i u l), (W, m), and exp(2 pi i v m) sinc^2 sinc^2, (H, m)."""
        dtype = torch.complex128 if like.real.dtype == torch.float64 else torch.complex64

        def build() -> tuple[Tensor, Tensor]:
            pixel = self.field_of_view * MICROARCSECOND / size[1]
            u, v = self.observation.u * pixel, self.observation.v * pixel
            pulse = (torch.sinc(u) * torch.sinc(v)).square()
            columns = torch.exp(2j * math.pi * torch.outer(_from_middle(size[1]), u))
            across = torch.exp(2j * math.pi * torch.outer(_from_middle(size[0]), v)) * pulse
            return columns.to(like.device, dtype), across.to(like.device, dtype)

        return self._memo((size, dtype, like.device), build)


def _from_middle(count: int) -> Tensor:
    """Positions of pixels, the first one at the positive end."""
    return (count - 1) / 2 - torch.arange(count, dtype=torch.float64)


@dataclass(frozen=True, eq=False, repr=False)
class _Closures(Operator):
    """Of the visibilities of I = (x - low) / (1 - low), row by row."""

    observation: Observation
    field_of_view: float = 160.0
    low: float = -1.0
    _sky: Visibilities = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _check_low(self.low))
        object.__setattr__(self, "_sky", Visibilities(self.observation, self.field_of_view))

    @abstractmethod
    def _of(self, vis: Tensor) -> Tensor:
        """What is measured, from the visibilities."""

    def forward(self, x: Tensor) -> Tensor:
        density = (x - self.low) / (1 - self.low)
        return by_row(lambda row, _: self._of(self._sky(row)), density)


@dataclass(frozen=True, eq=False, repr=False)
class ClosurePhases(_Closures):
    """exp(i psi), psi = arg(V_12 V_23 V_31), on a minimal set of triangles: (B, 1, H, W) -> (B, n).

    Args:
        observation, field_of_view: as in `Visibilities`.
        low: the value of x where the sky is dark; it is brightest at 1.
        phasor: exp(i psi), complex; otherwise psi itself in radians, in (-pi, pi].
    """

    phasor: bool = True

    def _of(self, vis: Tensor) -> Tensor:
        of = closure_phasors if self.phasor else closure_phases
        return of(self.observation, vis)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], len(self.observation.triangles))


@dataclass(frozen=True, eq=False, repr=False)
class LogClosureAmplitudes(_Closures):
    """ln|V_12| + ln|V_34| - ln|V_14| - ln|V_23|, on a minimal set of quadrangles.

    Args:
        observation, field_of_view: as in `Visibilities`.
        low: the value of x where the sky is dark; it is brightest at 1.
    """

    def _of(self, vis: Tensor) -> Tensor:
        return log_closure_amplitudes(self.observation, vis)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], len(self.observation.quadrangles))


@dataclass(frozen=True, eq=False, repr=False)
class TotalFlux(Operator):
    """sum_j I_j, I = peak (x - low) / (1 - low): (B, 1, H, W) -> (B, 1). Linear for low = 0.

    Args:
        peak: flux of a pixel where x is 1, Jy.
        low: the value of x where the sky is dark.
    """

    peak: float = 1.0
    low: float = -1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak", check_number("peak", self.peak, 0))
        if self.peak == 0:
            raise InputError("peak must be > 0: nothing would be measured")
        object.__setattr__(self, "low", _check_low(self.low))
        object.__setattr__(self, "linear", self.low == 0)

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        return rows.total(x - self.low)[:, None] * (self.peak / (1 - self.low))

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], 1)


def closure_phasors(observation: Observation, vis: Tensor) -> Tensor:
    """exp(i psi) of visibilities (B, m): complex (B, n)."""
    one, two, back = _pick(vis, observation, observation.triangles)
    return torch.sgn(one) * torch.sgn(two) * torch.sgn(back).conj()


def closure_phases(observation: Observation, vis: Tensor) -> Tensor:
    """psi of visibilities (B, m), radians in (-pi, pi]: (B, n)."""
    return torch.angle(closure_phasors(observation, vis))


def log_closure_amplitudes(observation: Observation, vis: Tensor) -> Tensor:
    """c of visibilities (B, m): (B, n)."""
    a, b, c, d = (v.abs().log() for v in _pick(vis, observation, observation.quadrangles))
    return a + b - c - d


def closure_std(observation: Observation, vis: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of psi (radians) and c from the thermal noise: (B, n), (B, n').

    (sum sigma_b^2 / |V_b|^2)^1/2 over the baselines of a closure, its first order: for |V| > sigma.
    """
    relative = (observation.std.to(vis.device, vis.real.dtype) / vis.abs()).square()

    def total(closures: Tensor) -> Tensor:
        return torch.stack(_pick(relative, observation, closures)).sum(0).sqrt()

    return total(observation.triangles), total(observation.quadrangles)


def chi2_closure_phases(model: Tensor, data: Tensor, std: Tensor | float) -> Tensor:
    """2 / n sum (1 - cos(model - data)) / std^2, for each row; of phases or of phasors: (B,).

    1 where the model is right and the noise small.
    """
    if model.is_complex() != data.is_complex():
        raise InputError("model and data must both be phases, or both phasors")
    off = model - data
    far = off.abs().square() if off.is_complex() else 2 * (1 - torch.cos(off))
    return _mean(far / _squared(std))


def chi2_log_closure_amplitudes(model: Tensor, data: Tensor, std: Tensor | float) -> Tensor:
    """1 / n sum (model - data)^2 / std^2, for each row: (B,)."""
    return _mean((model - data).square() / _squared(std))


def chi2_visibilities(model: Tensor, data: Tensor, std: Tensor | float) -> Tensor:
    """1 / 2n sum |model - data|^2 / std^2, std per real component, for each row: (B,)."""
    return _mean((model - data).abs().square() / _squared(std)) / 2


def _mean(x: Tensor) -> Tensor:
    return rows.total(x) / x.shape[1]


def _squared(std: Tensor | float) -> Tensor | float:
    return std * std


def _pick(values: Tensor, observation: Observation, closures: Tensor) -> tuple[Tensor, ...]:
    """The values (B, m) of the first, second, ... baselines of the closures, (B, n) each."""
    if values.ndim != 2 or values.shape[1] != len(observation):
        raise InputError(
            f"visibilities must be (B, {len(observation)}), one for each of {observation!r},"
            f" not {tuple(values.shape)}"
        )
    return tuple(values[:, column] for column in closures.to(values.device).unbind(1))


def _check_low(low: float) -> float:
    """The value where the density is 0; it is 1 where x is."""
    low = check_number("low", low, -math.inf)
    if not low < 1:
        raise InputError(f"low must be < 1, not {low:g}")
    return low


def _check_sky(observation: object, field_of_view: float) -> None:
    if not isinstance(observation, Observation):
        raise InputTypeError(
            f"observation must be an Observation, such as m87_2017(), not {observation!r}"
        )
    if check_number("field_of_view", field_of_view, 0) == 0:
        raise InputError("field_of_view must be > 0")
