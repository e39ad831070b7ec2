"""What every prior must do: one factory per prior, the same tests for all."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from posterior.errors import InputError, PosteriorError
from posterior.priors import (
    Autoguided,
    Gaussian,
    GaussianMixture,
    NetworkPrior,
    Prior,
    Slices,
    check,
)
from posterior.schedules import EDM, VE, Discrete, RectifiedFlow


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spd(d: int, seed: int = 0) -> Tensor:
    a = random(d, d, seed=seed)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


def spectrum(*shape: int) -> Tensor:
    k = torch.fft.fftfreq(shape[-2])[:, None] ** 2 + torch.fft.fftfreq(shape[-1])[None] ** 2
    return (1 / (0.05 + k)).expand(shape).double()


class Small(nn.Module):
    """A network with two inputs, nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)
        self.level = nn.Linear(1, 2)
        with torch.no_grad():
            for k, weight in enumerate(self.parameters()):
                weight.copy_(0.3 * random(*weight.shape, seed=k))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) + self.level(time[:, None] / 100)[:, :, None, None])


PRIORS: dict[str, Callable[[], Prior]] = {
    "gaussian scalar": lambda: Gaussian(random(7), 0.5),
    "gaussian diagonal": lambda: Gaussian(random(3, 5), random(3, 5).abs() + 0.1),
    "gaussian full": lambda: Gaussian(random(2, 3), spd(6)),
    "gaussian stationary": lambda: Gaussian.stationary(0.3, spectrum(2, 5, 8)),
    "gaussian flow": lambda: Gaussian(random(7), spd(7), schedule=RectifiedFlow()),
    "mixture scalar": lambda: GaussianMixture([0.2, 0.5, 0.3], 2 * random(3, 9), 0.4),
    "mixture each scalar": lambda: GaussianMixture([0.2, 0.8], random(2, 5), [0.4, 1.3]),
    "mixture shared": lambda: GaussianMixture([0.2, 0.8], random(2, 2, 3), spd(6)),
    "mixture full": lambda: GaussianMixture(
        [0.2, 0.8], random(2, 5), torch.stack([spd(5), spd(5, 1)])
    ),
    "mixture table": lambda: GaussianMixture(
        [0.2, 0.8], random(2, 5), 0.4, schedule=Discrete.linear(50)
    ),
    "mixture 25": lambda: GaussianMixture([0.04] * 25, 8 * random(25, 33)),
    "network eps": lambda: NetworkPrior(
        Small().double(), "eps", Discrete.linear(50), event_shape=(2, 6, 5)
    ),
    "network edm, rows 4": lambda: NetworkPrior(
        Small().double(), "edm", EDM(), event_shape=(2, 6, 5), rows=4
    ),
    "network eps, low memory": lambda: NetworkPrior(
        Small().double(), "eps", Discrete.linear(50), event_shape=(2, 6, 5), low_memory=True
    ),
    "autoguided mixture": lambda: Autoguided(
        GaussianMixture([0.2, 0.8], random(2, 5), 0.4, schedule=VE()),
        Gaussian(random(5), 0.7, schedule=VE()),
        1.8,
    ),
    "slices of a mixture": lambda: Slices(GaussianMixture([0.2, 0.8], random(2, 2, 3), spd(6)), 3),
    "slices of a network, rows 4": lambda: Slices(
        NetworkPrior(Small().double(), "edm", EDM(), event_shape=(2, 6, 5), rows=4), 3
    ),
}
ANALYTIC = [name for name in PRIORS if name.startswith(("gaussian", "mixture"))]


@pytest.fixture(params=PRIORS)
def prior(request: pytest.FixtureRequest) -> Prior:
    return PRIORS[request.param]()


def noisy(prior: Prior, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    assert prior.event_shape is not None
    return (2 * random(n, *prior.event_shape, seed=5)).to(dtype)


def middle(prior: Prior) -> float:
    low, high = prior.schedule.ratio_range
    return prior.schedule.time_of_ratio(min(max(1.0, low), high))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_alone_equal_rows_in_a_batch(prior: Prior, dtype: torch.dtype) -> None:
    x = noisy(prior, 40, dtype)
    t = middle(prior)
    estimate, pull = prior.vjp(x, t)
    pulled = pull(x)
    assert torch.equal(estimate.x0, prior(x, t).x0)
    for start, count in [(0, 1), (3, 1), (7, 2), (13, 3), (30, 5), (20, 16), (5, 17)]:
        rows = slice(start, start + count)
        assert torch.equal(prior(x[rows].clone(), t).x0, estimate.x0[rows])
        alone, pull = prior.vjp(x[rows].clone(), t)
        assert torch.equal(alone.x0, estimate.x0[rows])
        assert torch.equal(pull(x[rows].clone()), pulled[rows])


def test_a_time_per_row_equals_the_number(prior: Prior) -> None:
    """To rounding: the coefficients are multiplied in another type."""
    x = noisy(prior, 5)
    low, high = prior.schedule.ratio_range
    high = min(high, 50.0)
    low = max(low, 0.05)
    ratios = [low, high, (low * high) ** 0.5, low, high]
    times = torch.tensor([prior.schedule.time_of_ratio(r) for r in ratios], dtype=torch.float64)
    together = prior(x, times).x0
    for k, t in enumerate(times.tolist()):
        assert torch.allclose(
            together[k : k + 1], prior(x[k : k + 1], t).x0, rtol=1e-10, atol=1e-10
        )
        assert torch.equal(together[k : k + 1], prior(x[k : k + 1], times[k : k + 1]).x0)


def test_vjp_against_finite_differences(prior: Prior) -> None:
    """Central differences, step 1e-5: error about 1e-9 of the second-order scale."""
    x, t, h = noisy(prior, 3), middle(prior), 1e-5
    u, v = random(*x.shape, seed=1), random(*x.shape, seed=2)
    slope = ((prior(x + h * v, t).x0 - prior(x - h * v, t).x0) / (2 * h) * u).flatten(1).sum(1)
    _, pull = prior.vjp(x, t)
    assert torch.allclose((pull(u) * v).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-7)
    assert torch.equal(pull(u), pull(u)), "pull may be called many times"


def test_dtype_follows_x(prior: Prior) -> None:
    for dtype in (torch.float32, torch.float64):
        x = noisy(prior, 2, dtype)
        estimate, pull = prior.vjp(x, middle(prior))
        assert estimate.x0.dtype == dtype
        assert pull(x).dtype == dtype
    single = prior(noisy(prior, 2, torch.float32), middle(prior)).x0
    double = prior(noisy(prior, 2).float().double(), middle(prior)).x0
    assert torch.allclose(single.double(), double, rtol=1e-3, atol=1e-3)


def test_counts(prior: Prior) -> None:
    x = noisy(prior, 3)
    prior(x, middle(prior))
    each = 3 * prior.evaluations
    assert (prior.counts.nfe, prior.counts.vjp) == (each, 0)
    _, pull = prior.vjp(x, middle(prior))
    pull(x)
    pull(x)
    assert (prior.counts.nfe, prior.counts.vjp) == (2 * each, 2 * each)


def test_inputs_are_left_alone_and_wrong_ones_refused(prior: Prior) -> None:
    x = noisy(prior, 3)
    before = x.clone()
    prior.vjp(x, middle(prior))[1](x)
    assert torch.equal(x, before)
    assert not prior(x, middle(prior)).x0.requires_grad
    for wrong in (x[..., :-1], x[:0], x[0] if x[0].ndim > 1 else x[None]):
        with pytest.raises(InputError, match="shape"):
            prior(wrong, middle(prior))


@pytest.mark.parametrize("name", ANALYTIC)
def test_samples_and_density_of_analytic_priors(name: str) -> None:
    prior = PRIORS[name]()
    assert isinstance(prior, (Gaussian, GaussianMixture))
    x = prior.sample(5, seed=3)
    assert x.shape == (5, *(prior.event_shape or ()))
    assert x.dtype == prior.dtype
    assert torch.equal(prior.sample(9, seed=3)[:5], x), "draw i does not depend on n"
    assert not torch.equal(prior.sample(5, seed=4), x)
    assert torch.equal(prior.log_prob(x)[1:2], prior.log_prob(x[1:2]))
    assert check(prior, verbose=False) == []
    for n in (0, -1, 1.5, True):
        with pytest.raises(PosteriorError, match="n must be"):
            prior.sample(n)  # type: ignore[arg-type]


def test_clean_input_comes_back() -> None:
    for name in ANALYTIC:
        x = noisy(PRIORS[name](), 3)
        assert torch.equal(PRIORS[name]()(x, 0.0).x0, x) or name.startswith("gaussian")
        assert torch.allclose(PRIORS[name]()(x, 0.0).x0, x)
