"""Inverse scattering in two dimensions: waves that an object throws back to a ring of receivers.

    Lap u + k^2 (1 + f) u = -delta_t,    k = 2 pi / wavelength,    f = contrast x

u is the field of a line source at transmitter t, outgoing (time dependence exp(-i omega t)), in a
medium of index 1 with an object of permittivity 1 + f. G(r) = (i / 4) H_0^(1)(k |r|) is Green's
function, G(. - t) the field without the object. The scattered field at receiver r is

    BornScattering      y_tr = k^2 int G(r - z) f(z) G(z - t) dz               linear: u = G(. - t)
    LippmannSchwinger   y_tr = k^2 int G(r - z) f(z) u_t(z) dz
                        u_t(z) = G(z - t) + k^2 int G(z - z') f(z') u_t(z') dz'

(B, 1, H, W) real -> (B, transmitters, receivers) complex. Born is the derivative of the other at
x = 0; it holds where the phase that the object adds, k f / 2 times its width, is well below 1.

Discretisation: f u is constant on a pixel, and a pixel is the disc of its area, of radius a, whose
integrals are in closed form (Richmond, IEEE Trans. Antennas Propag. 13, 1965):

    int G = (i pi a / 2 k) J_1(k a) H_0(k r)       at the distance r >= a from its middle
    int G = (i pi a / 2 k) H_1(k a) - 1 / k^2      in its middle

Of second order in the pixel for smooth f. The convolution is done by FFT on the doubled grid. The
equations of a row, one for each transmitter, are solved together by BiCGStab (van der Vorst, SIAM
J. Sci. Stat. Comput. 13, 1992), each with its own coefficients and stopped by itself. The stronger
the object, the more iterations; a row that has not converged after `iterations` is NaN, which the
sampler reports.

The gradient is that of the equation's solution (adjoint state). For Re<v, y>, as G is symmetric,

    grad(z) = contrast Re sum_t u_t(z) p_t(z)
    p_t(z) = k^2 sum_r conj(v_tr) G(r - z) + k^2 int G(z - z') f(z') p_t(z') dz'

one more solve of the same equation, whatever the number of iterations.

Geometry: the middle of x is the origin, columns go to the right, rows downwards; angles are
counter-clockwise from the right. Lengths are in any unit, one for all. For images in [-1, 1]
`LippmannSchwinger(low=-1)` has f = contrast (x + 1) / 2. Born is linear as it is: A x = 2 y - A 1
for the y of such an f, with twice its noise, A 1 the measurement of an image of ones.

Methods: Born all; Lippmann-Schwinger those that take non-linear operators. InverseBench (Zheng et
al., arXiv 2503.11043) has Born with 360, 180 and 60 receivers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators._rowwise import Memo, by_row
from posterior.operators._sized import Sized
from posterior.operators.base import (
    Operator,
    Shape,
    check_count,
    check_image,
    check_number,
)

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Scattering(Operator):
    """The rings, and the Green functions between them and the pixels."""

    wavelength: float = 0.2
    width: float = 1.0
    contrast: float = 0.1
    transmitters: int = 20
    receivers: int = 360
    radius: float = 1.6
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("wavelength", "width", "radius"):
            put(name, check_number(name, getattr(self, name), 0))
            if getattr(self, name) == 0:
                raise InputError(f"{name} must be > 0")
        put("contrast", check_number("contrast", self.contrast, -math.inf))
        if self.contrast == 0:
            raise InputError("contrast must not be 0: nothing would scatter")
        put("transmitters", check_count("transmitters", self.transmitters, 1))
        put("receivers", check_count("receivers", self.receivers, 1))

    @property
    def wavenumber(self) -> float:
        """k = 2 pi / wavelength."""
        return 2 * math.pi / self.wavelength

    def ring(self, count: int) -> Tensor:
        """Positions of so many transmitters or receivers, the first to the right, (count, 2)."""
        angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        return self.radius * torch.stack([angle.cos(), angle.sin()], -1)

    def pixels(self, height: int, width: int) -> Tensor:
        """Positions of the pixels' middles, (H, W, 2)."""
        h = self.width / width
        across = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * h
        down = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64)) * h
        return torch.stack(torch.broadcast_tensors(across[None], down[:, None]), -1)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], self.transmitters, self.receivers)

    def _check(self, x: Tensor) -> None:
        check_image(self, x)
        if x.is_complex() or x.shape[1] != 1:
            raise InputError(f"{self!r} takes real images of one channel, not {tuple(x.shape)}")

    def _green(self, size: tuple[int, int], like: Tensor) -> _Green:
        """Kept for each (size, dtype, device)."""
        return self._memo((size, like.real.dtype, like.device), lambda: _Green(self, size, like))


class _Green:
    """The matrices for one size, precision and device.

    Attributes:
        incident: u without the object, (transmitters, H W).
        outgoing: k^2 times the integrals of G from pixels to receivers, (H W, receivers).
        within: k^2 times those between pixels, transformed on the doubled grid (2 H, 2 W).
    """

    def __init__(self, problem: _Scattering, size: tuple[int, int], like: Tensor) -> None:
        from scipy import special  # a dependency of scikit-image; slow to import

        k, h = problem.wavenumber, problem.width / size[1]
        a = h / math.sqrt(math.pi)
        self.size = size
        if 2 * problem.radius <= math.hypot(size[0] * h, size[1] * h):
            raise InputError(f"{problem!r}: the ring must be outside of the image")
        at = problem.pixels(*size).reshape(-1, 2)
        disc = 0.5j * math.pi * a * k * float(special.j1(k * a))  # k^2 int G / H_0

        def hankel(distance: Tensor) -> Tensor:
            return torch.from_numpy(special.hankel1(0, (k * distance).numpy()))

        def put(values: Tensor) -> Tensor:
            return values.to(like.device, like.real.dtype.to_complex())

        self.incident = put(0.25j * hankel(_distance(problem.ring(problem.transmitters), at)))
        self.outgoing = put(disc * hankel(_distance(at, problem.ring(problem.receivers))))
        lags = [torch.fft.fftfreq(2 * n, 1 / (2 * n), dtype=torch.float64) * h for n in size]
        distance = torch.hypot(lags[0][:, None], lags[1][None])
        distance[0, 0] = h  # any
        kernel = disc * hankel(distance)
        own = 0.5j * math.pi * a * k * complex(special.hankel1(1, k * a)) - 1
        kernel[0, 0] = torch.tensor(own, dtype=kernel.dtype)
        self.within = put(torch.fft.fft2(kernel))

    def convolve(self, source: Tensor) -> Tensor:
        """k^2 int G source at the pixels, (n, H W) -> (n, H W)."""
        height, width = self.size
        waves = torch.fft.fft2(source.unflatten(1, self.size), s=(2 * height, 2 * width))
        return torch.fft.ifft2(waves * self.within)[:, :height, :width].flatten(1)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BornScattering(_Scattering, Sized):
    """y_tr = k^2 int G(r - z) contrast x(z) G(z - t) dz: single scattering, linear.

    Args:
        wavelength: of the background medium.
        width: of the image; pixels are square.
        contrast: f where x is 1, permittivity of object over background less 1.
        transmitters, receivers: how many, evenly on the ring.
        radius: of the ring, which must be outside of the image.
        size: (H, W) of x, or one number; by default any, and `bind` (which the sampler calls) fixes
            it. `adjoint` needs it.
    """

    size: int | tuple[int, int] | None = None

    linear = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_size()

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        green = self._green(self._size_of(tuple(x.shape)), x)

        def one(row: Tensor, _: int) -> Tensor:
            f = self.contrast * row.reshape(1, -1)
            return ((f * green.incident) @ green.outgoing)[None]

        return by_row(one, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Re A^H y; x must be of known `size`."""
        shape = self.domain_shape(tuple(y.shape))
        green = self._green((shape[2], shape[3]), y)

        def one(row: Tensor, _: int) -> Tensor:
            back = (row[0] + 0j) @ green.outgoing.mH
            return self.contrast * (back * green.incident.conj()).real.sum(0).reshape(1, *shape[1:])

        return by_row(one, y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        size = self._known_size()
        if tuple(y_shape[1:]) != (self.transmitters, self.receivers):
            raise InputError(
                f"{self!r} gives (B, {self.transmitters}, {self.receivers}), not {y_shape}"
            )
        return (y_shape[0], 1, *size)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LippmannSchwinger(_Scattering):
    """y_tr = k^2 int G(r - z) f(z) u_t(z) dz with the total field u_t: multiple scattering.

    Args:
        wavelength, width, contrast, transmitters, receivers, radius: as in `BornScattering`.
        low: the value of x where there is only background: f = contrast (x - low) / (1 - low).
        tolerance: of the residual of a solve relative to the incident field; by default 1e-12 in
            double precision, 1e-5 in single.
        iterations: at most, two products with G each.
    """

    low: float = 0.0
    tolerance: float | None = None
    iterations: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        low = check_number("low", self.low, -math.inf)
        if not low < 1:
            raise InputError(f"low must be < 1, not {low:g}")
        object.__setattr__(self, "low", low)
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", check_number("tolerance", self.tolerance, 0, 1))
        object.__setattr__(self, "iterations", check_count("iterations", self.iterations, 1))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        f = (x - self.low) * (self.contrast / (1 - self.low))
        solve = self._solver(f)
        return by_row(lambda row, _: _Scattered.apply(row, solve), f)  # type: ignore[no-untyped-call]  # torch's

    def total_field(self, x: Tensor) -> Tensor:
        """u_t at the pixels: (B, 1, H, W) -> complex (B, transmitters, H, W)."""
        self._check(x)
        f = (x - self.low) * (self.contrast / (1 - self.low))
        solve = self._solver(f)
        return by_row(lambda row, _: solve.fields(row).unflatten(1, x.shape[2:])[None], f)

    def _solver(self, f: Tensor) -> _Solver:
        tolerance = _TOLERANCE[f.dtype] if self.tolerance is None else self.tolerance
        return _Solver(self._green((f.shape[2], f.shape[3]), f), tolerance, self.iterations)


@dataclass(frozen=True)
class _Solver:
    """The equation u - k^2 G (f u) = b of one row f (1, 1, H, W), for several b (n, H W)."""

    green: _Green
    tolerance: float
    iterations: int

    def fields(self, f: Tensor) -> Tensor:
        return self(f, self.green.incident)

    def __call__(self, f: Tensor, b: Tensor) -> Tensor:
        flat = f.reshape(1, -1)
        return bicgstab(
            lambda u: u - self.green.convolve(flat * u), b, self.tolerance, self.iterations
        )


class _Scattered(torch.autograd.Function):
    """f of one row (1, 1, H, W) -> y (1, transmitters, receivers), with the adjoint state."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, solve: _Solver) -> Tensor:
        u = solve.fields(f)
        ctx.solve = solve
        ctx.save_for_backward(f, u)
        return ((f.reshape(1, -1) * u) @ solve.green.outgoing)[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        f, u = ctx.saved_tensors
        source = grads[0][0].conj().resolve_conj() @ ctx.solve.green.outgoing.T
        p = ctx.solve(f, source)
        return (u * p).real.sum(0).reshape(f.shape), None


def bicgstab(
    apply: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, iterations: int
) -> Tensor:
    """Solves apply(x) = b for each of the rows of complex b (n, d); NaN where it does not converge.

    A row stops when its residual is below `tolerance` times |b|, and stays as it is.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).sum(1, keepdim=True)

    def over(a: Tensor, c: Tensor) -> Tensor:
        return torch.where(open_ & (c != 0), a / c, 0)  # a closed row does not move

    x, r = torch.zeros_like(b), b.clone()
    shadow, p = r, r
    goal = tolerance * b.norm(dim=1, keepdim=True)
    rho = dot(shadow, r)
    open_ = r.norm(dim=1, keepdim=True) > goal
    for _ in range(iterations):
        if not bool(open_.any()):
            break
        v = apply(p)
        alpha = over(rho, dot(shadow, v))
        s = r - alpha * v
        t = apply(s)
        omega = over(dot(t, s), dot(t, t))
        x = x + alpha * p + omega * s
        r = torch.where(open_, s - omega * t, r)
        new = dot(shadow, r)
        beta = over(new, rho) * over(alpha, omega)
        p = torch.where(open_, r + beta * (p - omega * v), p)
        rho = torch.where(open_, new, rho)
        open_ = open_ & (r.norm(dim=1, keepdim=True) > goal)
    return torch.where(open_, torch.full_like(x, math.nan), x)


def _distance(p: Tensor, q: Tensor) -> Tensor:
    """(n, 2), (m, 2) -> (n, m)."""
    away = p[:, None] - q[None]
    return torch.hypot(away[..., 0], away[..., 1])
