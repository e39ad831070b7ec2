"""Unconditional sampling reproduces the law of the prior, by every schedule and transition.

The gates and their level are those of `tests/gates.py`; each negative control must be rejected.
"""

from __future__ import annotations

import pytest
import torch
from gates import ALPHA, mixture_gates, passes

import posterior
from posterior import guidance, operators
from posterior.guidance.base import Guidance
from posterior.priors import GaussianMixture
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
from posterior.transitions import DDIM, DDPM, Heun, Renoise, Transition

N = 1000
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
MEANS = torch.tensor([[-6.0, -6.0], [-6.0, 6.0], [6.0, -6.0], [6.0, 6.0]], dtype=torch.float64)
SCHEDULES = [
    VPLinear(),
    VPScaledLinear(beta_min=0.85, beta_max=20.0),
    VPCosine(),
    VE(sigma_max=300.0),
    EDM(sigma_max=300.0),
    RectifiedFlow(),
    RectifiedFlow(shift=3.0),
    Discrete.linear(),
    Discrete.cosine(),
]


def mixture(schedule: Schedule | None = None) -> GaussianMixture:
    """Four well separated modes in the plane."""
    return GaussianMixture(WEIGHTS, MEANS, 1.0, schedule=schedule or EDM(sigma_max=300.0))


def gates(
    schedule: Schedule, transition: Transition, steps: int, spacing: str = "log_ratio"
) -> dict[str, float]:
    """The p-values of N draws."""
    method = Guidance(transition=transition, spacing=spacing)
    draws = posterior.sample(mixture(schedule), n=N, steps=steps, method=method, seed=1).draws
    return mixture_gates(draws[:, 0], mixture())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("transition", [DDPM, DDIM(0.0), DDIM(0.5), Heun()], ids=repr)
def test_every_schedule_and_transition_gives_the_law(
    schedule: Schedule, transition: Transition
) -> None:
    # the rules but Heun's are of first order: over these ranges their variance is short by about
    # 10 / steps, 2 % here, while the gates see 10 % at n = 1000
    result = gates(schedule, transition, 60 if transition == Heun() else 500)
    assert passes(result), result


@pytest.mark.parametrize("spacing", ["uniform", "trailing", "leading", "karras"])
def test_every_grid_gives_the_law(spacing: str) -> None:
    schedule = Discrete.linear()
    result = gates(schedule, DDPM, 500, spacing)
    assert passes(result), result


def test_draws_of_the_exact_sampler_pass() -> None:
    assert passes(mixture_gates(mixture().sample(N, seed=0), mixture()))


CONTROLS = {
    "half the variance": (GaussianMixture(WEIGHTS, MEANS, 0.5), "variance"),
    "a mean shifted by a quarter": (GaussianMixture(WEIGHTS, MEANS + 0.25, 1.0), "mean"),
    "a dropped mode": (
        GaussianMixture(torch.tensor([0.0, 0.22, 0.33, 0.45]).double(), MEANS, 1.0),
        "modes",
    ),
    "swapped weights": (GaussianMixture(WEIGHTS.flip(0), MEANS, 1.0), "modes"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_negative_controls_are_rejected_by_their_gate(name: str) -> None:
    wrong, gate = CONTROLS[name]
    draws = posterior.sample(wrong, n=N, steps=500, seed=1).draws[:, 0]
    assert mixture_gates(draws, mixture())[gate] < ALPHA


def test_renoise_and_too_few_steps_are_seen() -> None:
    """Re-noising the mean estimate keeps no spread of x0 given x_t: too narrow a law."""
    assert gates(EDM(sigma_max=300.0), Renoise(), 200)["variance"] < ALPHA
    assert gates(EDM(sigma_max=300.0), DDPM, 10)["variance"] < ALPHA


def test_sampling_the_exact_posterior_and_the_prior_instead() -> None:
    """The gates tell p(x | y) from p(x), and DPS from both where it is biased."""
    operator = operators.from_matrix(torch.tensor([[1.0, 0.2]], dtype=torch.float64))
    y = torch.tensor([[5.0]], dtype=torch.float64)
    exact = mixture().posterior(operator, y, noise=2.0)
    draws = posterior.sample(exact, n=N, steps=500, seed=2).draws[:, 0]
    assert passes(mixture_gates(draws, exact))
    assert not passes(mixture_gates(posterior.sample(mixture(), n=N, steps=200).draws[:, 0], exact))


def test_dps_on_a_mixture_keeps_the_modes_that_y_allows() -> None:
    """With one mode compatible with y the posterior is one Gaussian, and DPS finds it."""
    prior = mixture()
    operator = operators.from_matrix(torch.eye(2, dtype=torch.float64))
    y = torch.tensor([[6.5, 5.0]], dtype=torch.float64)
    draws = posterior.sample(
        prior, operator, y, noise=1.0, method=guidance.DPS(), n=N, steps=200, seed=3
    ).draws[:, 0]
    assert float((prior.log_components(draws).argmax(1) == 3).double().mean()) > 0.99
    # the posterior of that mode: mean (6 + 6.5) / 2, (6 + 5) / 2, variance 1/2
    expected = torch.tensor([6.25, 5.5], dtype=torch.float64)
    standard_error = (0.5 / N) ** 0.5
    assert float((draws.mean(0) - expected).abs().max()) < 4 * standard_error + 0.02
