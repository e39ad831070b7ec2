"""Conversions between parametrisations round trip for every schedule."""

import pytest
import torch

from posterior.errors import InputError
from posterior.estimates import Estimate, to_x0
from posterior.schedules import (
    EDM,
    VE,
    Discrete,
    RectifiedFlow,
    Schedule,
    VPCosine,
    VPLinear,
    VPScaledLinear,
)

SCHEDULES = [
    VPLinear(), VPScaledLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(), RectifiedFlow(3.0),
    Discrete.linear(100), Discrete.scaled_linear(100), Discrete.cosine(100),
]  # fmt: skip
KINDS = ["x0", "eps", "v", "velocity", "score"]


def made(
    schedule: Schedule, t: float | torch.Tensor
) -> tuple[Estimate, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 2, 5, dtype=torch.float64, generator=g) for _ in range(2))
    alpha, sigma = schedule(t)
    if isinstance(alpha, torch.Tensor):
        alpha, sigma = alpha.view(-1, 1, 1), sigma.view(-1, 1, 1)
    return Estimate(alpha * x0 + sigma * eps, t, schedule, x0), x0, eps


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, torch.tensor([0.2, 0.6, 0.95], dtype=torch.float64)])
def test_every_parametrisation_round_trips(schedule: Schedule, kind: str, t: float) -> None:
    """Cancellation: eps and the rest lose 1 / alpha or alpha / sigma in relative accuracy."""
    estimate, x0, eps = made(schedule, t)
    back = to_x0(getattr(estimate, kind), kind, estimate.x_t, t, schedule)
    assert torch.allclose(back, x0, rtol=1e-9, atol=1e-9)
    assert torch.allclose(estimate.eps, eps, rtol=1e-9, atol=1e-9)
    assert torch.equal(estimate.eps_renoise, estimate.eps)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_velocity_is_the_derivative_of_the_path(schedule: Schedule) -> None:
    t, h = 0.505, 1e-6
    estimate, x0, eps = made(schedule, t)
    (a1, s1), (a0, s0) = schedule(t + h), schedule(t - h)
    numeric = ((a1 - a0) * x0 + (s1 - s0) * eps) / (2 * h)
    assert torch.allclose(estimate.velocity, numeric, rtol=1e-6, atol=1e-6)


def test_flow_velocity_at_pure_noise() -> None:
    """Rectified flow: velocity = eps - x0, also where alpha = 0."""
    estimate, x0, eps = made(RectifiedFlow(), 1.0)
    assert torch.allclose(estimate.velocity, eps - x0)
    assert torch.allclose(to_x0(eps - x0, "velocity", estimate.x_t, 1.0, RectifiedFlow()), x0)
    v = to_x0(estimate.v, "v", estimate.x_t, 1.0, VPCosine())
    assert torch.allclose(v, x0)


def test_score_is_that_of_the_noised_law() -> None:
    """x0 ~ N(0, 1): x_t ~ N(0, alpha^2 + sigma^2), score -x_t / (alpha^2 + sigma^2)."""
    for schedule in SCHEDULES:
        alpha, sigma = schedule(0.5)
        x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
        power = alpha**2 + sigma**2
        estimate = Estimate(x, 0.5, schedule, alpha / power * x)
        assert torch.allclose(estimate.score, -x / power, rtol=1e-9, atol=1e-10)


def test_dtype_follows_x() -> None:
    x = torch.ones(2, 3)
    estimate = Estimate(x, torch.tensor([0.3, 0.4]), VPLinear(), x)
    for kind in KINDS:
        assert getattr(estimate, kind).dtype == torch.float32


def test_unknown_parametrisation() -> None:
    with pytest.raises(InputError, match="eps"):
        to_x0(torch.ones(1, 1), "noise", torch.ones(1, 1), 0.5, VPLinear())  # type: ignore[arg-type]
