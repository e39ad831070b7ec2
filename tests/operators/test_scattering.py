"""Inverse scattering: dense reference, exact series, reciprocity, symmetry, limits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from operator_battery import normal
from scipy import special
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.operators import BornScattering, LippmannSchwinger
from posterior.operators.scattering import bicgstab

RING: dict[str, Any] = {"wavelength": 1.0, "radius": 1.5, "transmitters": 4, "receivers": 8}


def bump(n: int) -> Tensor:
    """A smooth object, the same function on every grid, (1, 1, n, n)."""
    at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n
    y, x = -at[:, None], at[None]
    return (torch.exp(-((x - 0.08) ** 2 + 2 * (y + 0.05) ** 2) / 0.02))[None, None]


def disc(n: int, radius: float, fine: int = 8) -> Tensor:
    """The part of each pixel of the unit square that is in the disc, (1, 1, n, n)."""
    at = (torch.arange(n * fine, dtype=torch.float64) + 0.5) / (n * fine) - 0.5
    inside = (at[:, None] ** 2 + at[None] ** 2 < radius**2).double()
    return torch.nn.functional.avg_pool2d(inside[None, None], fine)


def cylinder(op: LippmannSchwinger, radius: float) -> Tensor:
    """Scattered field of a homogeneous cylinder, by its series, (transmitters, receivers)."""
    k = op.wavenumber
    inner = k * math.sqrt(1 + op.contrast)
    n = torch.arange(-25, 26)
    orders = n.numpy()
    j, dj = special.jv(orders, k * radius), special.jvp(orders, k * radius)
    h, dh = special.hankel1(orders, k * radius), special.h1vp(orders, k * radius)
    i, di = special.jv(orders, inner * radius), special.jvp(orders, inner * radius)
    a = -(k * dj * i - inner * j * di) / (k * dh * i - inner * h * di)
    outer = special.hankel1(orders, k * op.radius)
    # H_n(k rho_s) e^(-i n theta_s) is paired with H_n(k rho) e^(i n theta)
    term = torch.from_numpy(0.25j * a * outer * outer)
    angle = [2 * math.pi * torch.arange(c).double() / c for c in (op.transmitters, op.receivers)]
    between = angle[1][None] - angle[0][:, None]
    return (term * torch.exp(1j * n * between[..., None])).sum(-1)


def test_cylinder() -> None:
    op = LippmannSchwinger(**RING, contrast=0.6)
    exact = cylinder(op, 0.35)
    errors = [float((op(disc(n, 0.35))[0] - exact).norm() / exact.norm()) for n in (12, 24, 48)]
    assert errors[2] < 5e-3, errors
    assert errors[0] / errors[2] > 4**1.3, errors  # between first order (jump) and second
    born = BornScattering(**RING, contrast=0.6)(disc(48, 0.35))[0]
    assert float((born - exact).norm() / exact.norm()) > 0.3  # the object is not weak


def test_second_order_in_the_pixel() -> None:
    op = LippmannSchwinger(**RING, contrast=0.8)
    runs = [op(bump(n)) for n in (12, 24, 48)]
    changes = [float((a - b).abs().max()) for a, b in pairwise(runs)]
    assert 1.7 < math.log2(changes[0] / changes[1]) < 2.3


def test_dense_solution() -> None:
    """The equation with its full matrix, from the formulas."""
    h, w = 5, 6
    op = LippmannSchwinger(**RING, contrast=0.7)
    x = normal((1, 1, h, w))
    k, side = 2 * math.pi, 1 / 6
    a = side / math.sqrt(math.pi)
    at = torch.tensor(
        [[(c - 2.5) * side, (2 - r) * side] for r in range(h) for c in range(w)],
        dtype=torch.float64,
    )
    ring = [
        torch.tensor([[1.5 * math.cos(t), 1.5 * math.sin(t)] for t in angles], dtype=torch.float64)
        for angles in ([math.pi * t / 2 for t in range(4)], [math.pi * r / 4 for r in range(8)])
    ]

    def green(p: Tensor, q: Tensor) -> Tensor:
        r = (p[:, None] - q[None]).square().sum(-1).sqrt()
        return torch.from_numpy(0.25j * special.hankel1(0, k * r.clamp(min=1e-3).numpy()))

    mean = 2 * special.j1(k * a) / (k * a) * side**2  # of H_0 over the disc, times its area
    within = green(at, at) * mean
    own = 0.5j * math.pi * a / k * special.hankel1(1, k * a) - 1 / k**2
    within.fill_diagonal_(complex(own))
    f = torch.diag(0.7 * x.flatten()) + 0j
    incident = green(at, ring[0])
    u = torch.linalg.solve(torch.eye(h * w) - k**2 * within @ f, incident)
    torch.testing.assert_close(op.total_field(x)[0].flatten(1).T, u, rtol=1e-9, atol=1e-10)
    y = k**2 * mean * green(ring[1], at) @ f @ u
    torch.testing.assert_close(op(x)[0].T, y, rtol=1e-9, atol=1e-10)
    born = k**2 * mean * green(ring[1], at) @ f @ incident
    torch.testing.assert_close(
        BornScattering(**RING, contrast=0.7)(x)[0].T, born, rtol=1e-9, atol=1e-10
    )


def test_weak_objects_scatter_as_born_says() -> None:
    x = normal((1, 1, 8, 8))
    born, full = BornScattering(**RING, contrast=1.0), LippmannSchwinger(**RING, contrast=1.0)
    sizes = (4e-2, 2e-2, 1e-2)
    rest = [float((full(s * x) - born(s * x)).norm()) for s in sizes]
    assert all(1.95 < math.log2(a / b) < 2.05 for a, b in pairwise(rest))
    v = normal((1, 4, 8), "v", torch.complex128)
    pull = full.vjp(torch.zeros_like(x))[1]  # Born is the derivative at no object
    torch.testing.assert_close(pull(v), born.bind((1, 8, 8)).adjoint(v), rtol=1e-9, atol=1e-12)


def test_reciprocity() -> None:
    ring = {**RING, "transmitters": 8}
    y = LippmannSchwinger(**ring, contrast=0.8)(normal((1, 1, 9, 8)))
    torch.testing.assert_close(y, y.transpose(1, 2), rtol=1e-8, atol=1e-10)


def test_turning_the_object_turns_the_field() -> None:
    op = LippmannSchwinger(**RING)
    x = normal((1, 1, 8, 8))
    turned = op(torch.rot90(x, 1, (2, 3)))  # counter-clockwise
    torch.testing.assert_close(turned, op(x).roll((1, 2), (1, 2)), rtol=1e-8, atol=1e-10)


def test_low() -> None:
    g = normal((1, 1, 6, 6)).abs()
    one, two = LippmannSchwinger(**RING), LippmannSchwinger(**RING, low=-1)
    torch.testing.assert_close(two(2 * g - 1), one(g))


def test_a_row_that_does_not_converge_is_nan_by_itself() -> None:
    x = torch.cat([torch.zeros(1, 1, 8, 8), normal((1, 1, 8, 8))]).double()
    y = LippmannSchwinger(**RING, contrast=0.5, iterations=2)(x)
    assert bool(torch.isnan(y[1].real).all())
    assert torch.equal(y[0], torch.zeros_like(y[0]))


def test_bicgstab() -> None:
    d = 12
    matrices = normal((3, d, d)) * 0.2 + 1j * normal((3, d, d), "i") * 0.2 + torch.eye(d)
    b = normal((3, d), "b", torch.complex128)
    b[1] = 0

    def apply(x: Tensor) -> Tensor:
        return (matrices @ x[..., None])[..., 0]

    x = bicgstab(apply, b, 1e-10, 200)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, b), rtol=0, atol=1e-7)
    assert torch.equal(x[1], torch.zeros_like(x[1]))


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="outside"):
        BornScattering(radius=0.7)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="one channel"):
        LippmannSchwinger()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(CapabilityError, match="size="):
        BornScattering().adjoint(torch.zeros(1, 20, 360, dtype=torch.complex64))
    with pytest.raises(InputError, match="low"):
        LippmannSchwinger(low=1)
    with pytest.raises(InputError, match="wavelength"):
        BornScattering(wavelength=0)
