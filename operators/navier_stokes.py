"""Two-dimensional turbulence: y = vorticity of a forced viscous flow, some time after x.

    w_t + u . grad w = viscosity Lap w + f,    u = (psi_y, -psi_x),    -Lap psi = w,
    f(x, y) = forcing cos(m y)

on [0, 2 pi)^2, periodic, the first coordinate along H, the second along W. The image x is the
vorticity at time 0 divided by `scale`, the measurement y that at `time`, as it is, at every
`subsample`-th point:

    NavierStokes    y = w(time)[::s, ::s],  w(0) = scale x    (B, C, H, W) -> (B, C, H / s, W / s)

The defaults are the problem of EnKG and InverseBench (Zheng et al., arXiv 2409.20175 and
2503.11043; there 128 x 128, and noise of standard deviation 0, 1 or 2 in y).

Space: pseudo-spectral. The advection term, in the form div(u w), is computed on the grid from the
waves with (k_1 / H)^2 + (k_2 / W)^2 <= 2 / 9 without the mean, as in their code. This disc is drawn
round the square of the 2/3 rule, |k| <= n / 3: it removes most of the aliasing, not all of it. In a
flow that the grid resolves (the spectrum falls to rounding within the disc) there is none, and
energy and enstrophy obey their budgets; the mean of w is conserved in any flow. Derivatives of the
Nyquist wave are 0.

Time: with G the symbol of -viscosity Lap and N that of the rest, Heun's step for N and
Crank-Nicolson's for G, second order:

    p  = (w + h (N(w) - G w / 2)) / (1 + h G / 2)
    w' = (w + h ((N(w) + N(p)) / 2 - G w / 2)) / (1 + h G / 2)

The step h is fixed, never chosen from the flow: an adaptive step is one number for a batch, and
would make a row depend on its neighbours. A wave k that a flow of speed U carries turns by h k U a
step, and Heun makes it grow by (h k U)^4 / 8 of itself, viscosity decay by h viscosity k^2. By
default

    h <= min(1 / (2 K U), (8 viscosity / (K^2 U^4))^(1/3)),    K = sqrt(2) / 3 max(H, W), U = speed

so that no resolved wave turns by more than half a radian, and none grows. (Turbulence of this kind
had |u| <= 3.5; an eight times smaller step changed y by 0.1 %.) A field with much faster flow may
turn non-finite, in its own row only.

Methods: those that need a gradient, and EnKG, for which the problem was made. The gradient is that
of the discrete solver, exact; it solves twice, in the memory of about 2 sqrt(steps) steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posterior.errors import InputError
from posterior.operators._rowwise import Memo, by_row
from posterior.operators.base import Operator, Shape, check_count, check_image, check_number
from posterior.streams import check_seed, normal


@dataclass(frozen=True, eq=False, repr=False)
class NavierStokes(Operator):
    """y = w(time)[::subsample, ::subsample] for w(0) = scale x; each channel is a flow by itself.

    Args:
        time: how long the flow goes on, in units where the box is 2 pi long.
        viscosity: 1 / Reynolds number.
        forcing: amplitude of forcing cos(wavenumber y).
        wavenumber: of the forcing, less than W / 2.
        subsample: every subsample-th point is observed, along both axes.
        scale: vorticity where x is 1.
        speed: the largest speed of the flow, which the default step is made for.
        step: the time step, or a little less: `time` is a whole number of steps.
    """

    time: float = 1.0
    viscosity: float = 1 / 200
    forcing: float = -4.0
    wavenumber: int = 4
    subsample: int = 2
    scale: float = 10.0
    speed: float = 5.0
    step: float | None = None
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("time", "scale", "speed"):
            put(name, _positive(name, getattr(self, name)))
        put("viscosity", check_number("viscosity", self.viscosity, 0))
        put("forcing", check_number("forcing", self.forcing, -math.inf))
        put("wavenumber", check_count("wavenumber", self.wavenumber, 1))
        put("subsample", check_count("subsample", self.subsample, 1))
        if self.step is not None:
            put("step", _positive("step", self.step))
        elif self.viscosity == 0:
            raise InputError(f"{self!r}: without viscosity no step is stable for ever: give step=")

    def steps(self, height: int, width: int) -> int:
        """How many steps a solve takes on a grid of this size."""
        step = self.step
        if step is None:
            highest = math.sqrt(2) / 3 * max(height, width)
            damped = (8 * self.viscosity / (highest**2 * self.speed**4)) ** (1 / 3)
            step = min(1 / (2 * highest * self.speed), damped)
        return math.ceil(self.time / step - 1e-9)

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        if x.is_complex():
            raise InputError(f"{self!r} takes real fields")
        height, width = x.shape[2:]
        if width <= 2 * self.wavenumber:
            raise InputError(
                f"{self!r} forces {self.wavenumber} waves along y: x must have more than"
                f" {2 * self.wavenumber} columns, not {width}"
            )
        advance = self._memo(
            (height, width, x.dtype, x.device), lambda: _Stepper(self, height, width, x)
        )
        s = self.subsample
        return by_row(lambda row, _: advance(self.scale * row)[:, :, ::s, ::s], x)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (*x_shape[:2], *(-(-n // self.subsample) for n in x_shape[2:]))


class _Stepper:
    """The solver for one size, precision and device: w(0) -> w(time), (..., H, W)."""

    def __init__(self, flow: NavierStokes, height: int, width: int, like: Tensor) -> None:
        self.size, self.count = (height, width), flow.steps(height, width)
        self.step = flow.time / self.count
        k1, k2 = _wavenumbers(height, width)
        d1, d2 = (torch.where(2 * k.abs() == n, 0, k) for k, n in ((k1, height), (k2, width)))
        laplacian = k1**2 + k2**2
        kept = ((k1 / height) ** 2 + (k2 / width) ** 2 <= 2 / 9) & (laplacian > 0)
        inverse = torch.where(laplacian > 0, 1 / laplacian, 0)
        ones = torch.ones_like(laplacian)

        def put(values: Tensor) -> Tensor:
            kind = like.dtype.to_complex() if values.is_complex() else like.dtype
            return values.to(like.device, kind)

        # u, v and w of the transform of w; then the rate of w of those of u w and v w
        self.fields = put(torch.stack([1j * d2 * inverse, -1j * d1 * inverse, ones + 0j]) * kept)
        self.flux = put(torch.stack([-1j * d1 * ones, -1j * d2 * ones]))
        y = torch.arange(width, dtype=torch.float64) * (2 * math.pi / width)
        wave = (flow.forcing * torch.cos(flow.wavenumber * y)).expand(height, width)
        self.force = put(torch.fft.rfft2(wave) * (laplacian > 0))
        half = 0.5 * self.step * flow.viscosity * laplacian
        self.explicit, self.implicit = put(1 - half), put(1 / (1 + half))

    def __call__(self, w: Tensor) -> Tensor:
        state = torch.fft.rfft2(w)
        if not (torch.is_grad_enabled() and w.requires_grad):
            return torch.fft.irfft2(self.run(self.count)(state), s=self.size)
        stride = math.isqrt(self.count - 1) + 1
        for start in range(0, self.count, stride):
            part = self.run(min(stride, self.count - start))
            state = checkpoint(part, state, use_reentrant=False, preserve_rng_state=False)
        return torch.fft.irfft2(state, s=self.size)

    def run(self, count: int) -> Callable[[Tensor], Tensor]:
        def steps(state: Tensor) -> Tensor:
            for _ in range(count):
                rate = self.rate(state)
                guess = (self.explicit * state + self.step * rate) * self.implicit
                change = self.rate(guess) - rate
                state = guess + (0.5 * self.step) * change * self.implicit
            return state

        return steps

    def rate(self, state: Tensor) -> Tensor:
        """-div(u w) + f, transformed."""
        u, v, w = torch.fft.irfft2(state[..., None, :, :] * self.fields, s=self.size).unbind(-3)
        carried = torch.fft.rfft2(torch.stack([u * w, v * w], -3))
        return (carried * self.flux).sum(-3) + self.force


def random_vorticity(size: int | tuple[int, int], seed: int = 0, rows: int = 1) -> Tensor:
    """Gaussian random vorticity, float64 (rows, 1, H, W): mean 0, covariance 27^2 (-Lap + 9)^-4.

    EnKG's initial vorticities are those after 5 time units, statistically developed turbulence:
    `NavierStokes(time=5, subsample=1, scale=1)(random_vorticity(128, seed))`.
    """
    height, width = (check_count("size", n, 1) for n in _pair(size))
    zeros = torch.zeros(check_count("rows", rows, 1), 1, height, width, dtype=torch.float64)
    white = normal(check_seed(seed), "vorticity", zeros)
    k1, k2 = _wavenumbers(height, width)
    spectrum = 27 / (k1**2 + k2**2 + 9) ** 2
    spectrum[0, 0] = 0
    density = math.sqrt(height * width) / (2 * math.pi)  # white noise of the continuum, on a grid
    out: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * spectrum * density, s=(height, width))
    return out


def _wavenumbers(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The whole numbers k_1 (H, 1) and k_2 (1, W // 2 + 1) of `rfft2`."""
    k1 = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64)
    k2 = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64)
    return k1.round()[:, None], k2.round()[None]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _positive(what: str, value: object) -> float:
    number = check_number(what, value, 0)
    if number == 0:
        raise InputError(f"{what} must be > 0")
    return number
