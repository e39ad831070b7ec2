"""Sampling laws: the analytic samplers, and the unconditional loop by every schedule and rule.

Gates of tests/gates.py at alpha 1e-3 with fixed seeds, n = 1000, and negative controls.
"""

import itertools

import pytest
import torch
from gates import ALPHA, gaussian_gates, mixture_gates, mode_counts, passes
from torch import Tensor

from posterior import grids
from posterior.operators.base import Operator
from posterior.priors import Gaussian, GaussianMixture, Prior
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
from posterior.streams import Noise
from posterior.transitions import DDIM, DDPM, Euler, Heun, Renoise, Transition

N = 1000


class Linear(Operator):
    linear = True

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T


def nine_modes() -> GaussianMixture:
    """3 x 3 modes, 10 standard deviations apart, unequal weights."""
    means = torch.tensor([[i, j] for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)]).double()
    weights = torch.arange(1.0, 10.0)
    return GaussianMixture(weights / weights.sum(), means, 0.01)


def run(prior: Prior, rule: Transition, steps: int, seed: int = 0) -> Tensor:
    """The sampler's loop, in small."""
    noise = Noise.single(seed, prior.event_shape or (), torch.float64, rows=N)
    levels = grids.log_ratio(prior.schedule, steps)
    x = levels[0].sigma * noise("start")
    for k, (t, s) in enumerate(itertools.pairwise(levels)):
        x = rule(prior(x, t.t), t, s, noise.at(k), prior)
    return x


SCHEDULES: list[Schedule | None] = [
    None, VPLinear(), VPScaledLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(),
    RectifiedFlow(3.0), Discrete.linear(), Discrete.scaled_linear(), Discrete.cosine(),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("rule", "steps"), [(DDPM, 150), (DDIM(0.5), 150), (Euler, 150), (Heun(), 40)], ids=repr
)
def test_unconditional_sampling(schedule: Schedule | None, rule: Transition, steps: int) -> None:
    """A table may end at r = 0.03 and loses that much variance: modes of std 0.1 notice."""
    prior = nine_modes()
    if schedule is not None:
        prior = prior.with_schedule(schedule)
    gates = mixture_gates(run(prior, rule, steps), prior)
    low = prior.schedule.ratio_range[0]
    if low > 0.02:  # known bias of the last jump: the variance falls by low^2 / (v + low^2)
        gates = {name: p for name, p in gates.items() if name in ("modes", "mean")}
    assert min(gates.values()) > ALPHA, gates


def test_renoising_the_mean_is_no_sampler() -> None:
    """Negative control: Renoise from the Tweedie mean loses variance."""
    prior = nine_modes().with_schedule(EDM())
    assert not passes(mixture_gates(run(prior, Renoise(), 100), prior))


@pytest.mark.parametrize("dim", [2, 8])
def test_gaussian_samples_and_controls(dim: int) -> None:
    g = torch.Generator().manual_seed(1)
    a = torch.randn(dim, dim, dtype=torch.float64, generator=g)
    mean, covariance = torch.arange(dim).double(), a @ a.T + torch.eye(dim)
    prior = Gaussian(mean, covariance)
    draws = prior.sample(N, seed=2)
    assert passes(gaussian_gates(draws, mean, covariance))
    narrow = mean + (draws - mean) * 0.5**0.5
    gates = gaussian_gates(narrow, mean, covariance)
    assert gates["variance"] < ALPHA
    assert gates["radius"] < ALPHA
    scale = torch.linalg.cholesky(covariance)
    shifted = draws + 0.15 * (8 / dim) ** 0.5 * scale.sum(1)
    assert gaussian_gates(shifted, mean, covariance)["mean"] < ALPHA
    point = mean.expand(N, dim)
    assert gaussian_gates(point, mean, covariance)["variance"] < ALPHA


def test_stationary_samples() -> None:
    k = torch.fft.fftfreq(6)[:, None] ** 2 + torch.fft.fftfreq(5)[None] ** 2
    prior = Gaussian.stationary(0.1, (1 / (0.1 + k)).double())
    assert passes(gaussian_gates(prior.sample(N), prior.mean, prior.covariance))


def test_mixture_samples_and_controls() -> None:
    prior = nine_modes()
    draws = prior.sample(N, seed=1)
    assert passes(mixture_gates(draws, prior))
    k = prior.log_components(draws).argmax(1)
    assert mode_counts(k[k != 4], prior.weights) < ALPHA, "dropped mode"
    swapped = GaussianMixture(prior.weights.flip(0), prior.means, 0.01)
    assert mixture_gates(swapped.sample(N), prior)["modes"] < ALPHA
    means = prior.means[k]
    narrow = mixture_gates(means + (draws - means) * 0.5**0.5, prior)
    assert narrow["variance"] < ALPHA
    assert narrow["radius"] < ALPHA


def test_posterior_samples_and_controls() -> None:
    """The exact posterior passes its own gates; draws of the prior do not."""
    prior = nine_modes()
    operator = Linear(torch.tensor([[1.0, 0.4]]).double())
    exact = prior.posterior(operator, torch.tensor([0.3], dtype=torch.float64), noise=0.5)
    assert int((exact.weights > 0.01).sum()) > 3, "several modes"
    assert passes(mixture_gates(exact.sample(N), exact))
    assert not passes(mixture_gates(prior.sample(N), exact))
    heaviest = exact.given(int(exact.weights.argmax()))
    assert mixture_gates(heaviest.sample(N), exact)["modes"] < ALPHA
