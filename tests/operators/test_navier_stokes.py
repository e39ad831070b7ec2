"""Navier-Stokes: exact solutions, budgets, orders, symmetries."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from operator_battery import normal
from torch import Tensor

from posterior.errors import InputError
from posterior.operators import NavierStokes, random_vorticity

NU = 1 / 200


def grid(n: int) -> tuple[Tensor, Tensor]:
    """x (n, 1) and y (1, n) of the points."""
    at = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return at[:, None], at[None]


def smooth(n: int) -> Tensor:
    """A vorticity of a few long waves, the same function on every grid, (1, 1, n, n)."""
    x, y = grid(n)
    w = torch.sin(x) * torch.cos(2 * y) + 0.7 * torch.cos(x + y) - torch.sin(2 * x - y + 0.3)
    return w[None, None]


def flow(time: float, **options: object) -> NavierStokes:
    return NavierStokes(time, **{"subsample": 1, "scale": 1, **options})  # type: ignore[arg-type]


def test_from_rest_the_forcing_drives_its_own_wave() -> None:
    w = flow(1.0)(torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    exact = -50 * (1 - math.exp(-16 * NU)) * torch.cos(4 * grid(16)[1]).expand(16, 16)
    # Crank-Nicolson: relative error (16 viscosity h)^2 / 12 of 0.08, with h = 1 / 76
    torch.testing.assert_close(w[0, 0], exact, rtol=0, atol=3.9 * (0.08 / 75) ** 2 / 12)


def test_a_wave_without_company_decays() -> None:
    x, _ = grid(16)
    w = flow(1.0, forcing=0.0)(torch.cos(3 * x).expand(1, 1, 16, 16))
    exact = math.exp(-9 * NU) * torch.cos(3 * x).expand(16, 16)
    torch.testing.assert_close(w[0, 0], exact, rtol=0, atol=(0.045 / 75) ** 2)


def test_the_stationary_flow_stays() -> None:
    w0 = -50 * torch.cos(4 * grid(16)[1]).expand(1, 1, 16, 16)
    torch.testing.assert_close(flow(1.0, speed=12.5)(w0), w0, rtol=0, atol=1e-9)


def test_the_mean_is_conserved() -> None:
    w0 = 3 * normal((2, 1, 12, 14)) + 1.5  # rough: aliasing and all
    w = flow(0.5)(w0)
    assert float((w - w0).abs().max()) > 1
    torch.testing.assert_close(w.mean((2, 3)), w0.mean((2, 3)), rtol=0, atol=1e-12)


def energy(w: Tensor) -> tuple[float, float, float, float, float]:
    """Energy, enstrophy, palinstrophy, and the work of w's forcing on the first two."""
    n = w.shape[-1]
    k1 = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
    k2 = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[None]
    square = k1**2 + k2**2
    hat = torch.fft.fft2(w[0, 0], norm="forward")
    psi = torch.fft.ifft2(torch.where(square > 0, hat / square, 0), norm="forward").real
    f = -4 * torch.cos(4 * grid(n)[1])
    power = hat.abs() ** 2
    half = 0.5 * torch.where(square > 0, power / square, 0).sum()
    return (
        float(half),
        float(0.5 * power.sum()),
        float(0.5 * (square * power).sum()),
        float((psi * f).mean()),
        float((w[0, 0] * f).mean()),
    )


def test_energy_and_enstrophy_budgets() -> None:
    # dE/dt = -2 nu Z + <psi f>,  dZ/dt = -2 nu P + <w f>, by differences of step d: error O(d^2)
    d, nu = 0.01, 0.02
    at = [energy(flow(t, viscosity=nu, step=0.002)(smooth(32))) for t in (0.5 - d, 0.5, 0.5 + d)]
    (_, z, p, e_work, z_work) = at[1]
    e_rate, z_rate = ((at[2][i] - at[0][i]) / (2 * d) for i in (0, 1))
    assert abs(e_rate - (-2 * nu * z + e_work)) < 1e-4 * abs(e_work)
    assert abs(z_rate - (-2 * nu * p + z_work)) < 1e-3 * abs(z_work)
    assert abs(e_work) > 0.1
    assert abs(z_work) > 0.5


def test_without_viscosity_and_forcing_both_are_conserved() -> None:
    before = energy(smooth(32))
    after = energy(flow(0.5, viscosity=0, forcing=0.0, step=0.005)(smooth(32)))
    for i in (0, 1):
        assert abs(after[i] / before[i] - 1) < 1e-6
    assert abs(after[2] / before[2] - 1) > 0.01  # palinstrophy is not: something has happened


def test_second_order_in_time() -> None:
    w0 = smooth(16)
    runs = [flow(0.8, step=0.8 / count)(w0) for count in (8, 16, 32, 64)]
    changes = [float((a - b).norm()) for a, b in pairwise(runs)]
    orders = [math.log2(a / b) for a, b in pairwise(changes)]
    assert all(1.85 < order < 2.2 for order in orders)


def test_spectral_accuracy_in_space() -> None:
    fine = flow(0.5, viscosity=0.02, step=0.02)(smooth(64))
    errors = []
    for n in (12, 16, 24, 32):
        coarse = flow(0.5, viscosity=0.02, step=0.02)(smooth(n))
        errors.append(
            float((coarse[..., :: n // 4, :: n // 4] - fine[..., ::16, ::16]).abs().max())
        )
    refined = zip(pairwise(errors), (4 / 3, 3 / 2, 4 / 3), strict=True)
    orders = [math.log(a / b) / math.log(ratio) for (a, b), ratio in refined]
    assert errors[-1] < 1e-4
    assert 3 < orders[0] < orders[1] < orders[2]  # faster than any power of the spacing


def test_the_flow_does_not_know_where_the_origin_is() -> None:
    w0 = normal((1, 1, 16, 16))
    w = flow(0.3)(w0)
    shifts = (5, 4)  # any along x; along y, whole waves of the forcing
    moved = flow(0.3)(w0.roll(shifts, (2, 3)))
    torch.testing.assert_close(moved, w.roll(shifts, (2, 3)), rtol=0, atol=1e-11)


def test_observation_and_scale() -> None:
    x = normal((2, 1, 15, 16)) / 10
    full = NavierStokes(0.1, subsample=1)(x)
    assert torch.equal(NavierStokes(0.1, subsample=4)(x), full[:, :, ::4, ::4])
    torch.testing.assert_close(NavierStokes(0.1, subsample=1, scale=1)(10 * x), full)


def test_steps() -> None:
    assert NavierStokes().steps(128, 128) == math.ceil(2 * math.sqrt(2) / 3 * 128 * 5)
    assert NavierStokes(step=0.002).steps(128, 128) == 500
    thin = NavierStokes(viscosity=1e-5).steps(64, 64)  # the viscous bound
    assert thin == math.ceil((64**2 * 2 / 9 * 5**4 / 8e-5) ** (1 / 3))
    with pytest.raises(InputError, match="step="):
        NavierStokes(viscosity=0)


def test_default_step_is_stable_for_turbulence() -> None:
    w0 = 8 * normal((1, 1, 32, 32), dtype=torch.float32)  # rough, |u| about 4
    w = flow(2.0, forcing=0.0)(w0)
    assert float(w.square().mean()) < 0.5 * float(w0.square().mean())
    finer = flow(2.0, forcing=0.0, speed=20.0)(w0)
    assert abs(float(w.square().mean() / finer.square().mean()) - 1) < 0.01


def test_random_vorticity_becomes_the_turbulence_of_the_benchmark() -> None:
    w = flow(5.0)(random_vorticity(64, seed=0).float())
    assert 3.5 < float(w.std()) < 6.5  # about 5: x = w / 10 has the 0.5 of a normalised image


def test_gradient_in_segments_is_that_of_the_whole() -> None:
    x, u = normal((1, 1, 12, 12)), normal((1, 1, 6, 6), "u")
    op = NavierStokes(0.1, step=0.01, scale=2.0)
    step = NavierStokes(0.01, step=0.01, scale=1.0, subsample=1)  # one step, no segments
    leaf = x.clone().requires_grad_()
    w = 2.0 * leaf
    for _ in range(10):
        w = step(w)
    (expected,) = torch.autograd.grad(w[:, :, ::2, ::2], leaf, u)
    pull = op.vjp(x)[1]
    torch.testing.assert_close(pull(u), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pull(u), pull(u))


def test_random_vorticity_has_its_covariance() -> None:
    n, rows = 16, 400
    w = random_vorticity(n, seed=1, rows=rows)
    assert torch.equal(w[3:4], random_vorticity(n, seed=1, rows=4)[3:])
    # in the orthonormal waves of the box, exp(i k . x) / 2 pi: coefficients of this variance
    hat = torch.fft.fft2(w[:, 0], norm="forward") * 2 * math.pi
    for k in ((0, 1), (2, 1), (3, -2)):
        power = hat[:, k[0], k[1]].abs() ** 2 * (k[0] ** 2 + k[1] ** 2 + 9.0) ** 4 / 27**2
        assert abs(float(power.mean()) - 1) < 4 / math.sqrt(rows)  # exponential: std 1
    assert float(w.mean((2, 3)).abs().max()) < 1e-12


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="columns"):
        NavierStokes()(torch.zeros(1, 1, 8, 8))
    for bad in ({"time": 0}, {"viscosity": -1}, {"subsample": 0}, {"step": 0}, {"scale": 0}):
        with pytest.raises(InputError):
            NavierStokes(**bad)
