"""Noise models: density, law, reproducibility, rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from operator_battery import normal

from posterior.errors import InputError, InputTypeError
from posterior.operators import (
    GaussianNoise,
    Identity,
    Mask,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltAndPepperNoise,
    as_noise_model,
)

MODELS = [
    GaussianNoise(0.3),
    GaussianNoise(torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)),
    GaussianNoise(normal((3, 2, 4, 5), "std").abs() + 0.1),
    GaussianNoise(normal((1, 2, 4, 5), "std").abs() + 0.1),
    PoissonNoise(0.5),
    PoissonNoise(40.0, low=0.0, peak=100.0),
    PoissonGaussianNoise(0.05, 0.04),
    PoissonGaussianNoise(40.0, 0.02, low=0.0, peak=100.0),
    SaltAndPepperNoise(0.3, 0.05),
]


def models(which: list[NoiseModel]):
    return pytest.mark.parametrize("noise", which, ids=lambda noise: type(noise).__name__)


def clean(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return normal((3, 2, 4, 5), "clean", dtype).clamp(-0.9, 0.9).abs()


@models(MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_alone_equal_rows_in_a_batch(noise: NoiseModel, dtype: torch.dtype) -> None:
    a = clean(dtype)
    y = noise.sample(a, 5)
    assert y.dtype == dtype
    log_p = noise.log_prob(y, a)
    assert log_p.shape == (3,)
    for b in range(3):
        row = noise.take([b])
        assert torch.equal(row.sample(a[b : b + 1].clone(), 5 + b), y[b : b + 1])
        assert torch.equal(row.log_prob(y[b : b + 1], a[b : b + 1]), log_p[b : b + 1])
        assert torch.equal(row.misfit(y[b : b + 1], a[b : b + 1]), noise.misfit(y, a)[b : b + 1])
    assert torch.equal(noise.sample(a, [5, 6, 7]), y)
    assert torch.equal(noise.sample(a, 5), y)
    assert not torch.equal(noise.sample(a, 6), y)
    index = [2, 0, 0]
    assert torch.equal(noise.take(index).log_prob(y[index], a[index]), log_p[index])


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    GaussianNoise(0.1).sample(clean(), 0)
    PoissonNoise(1.0).sample(clean(), 0)
    assert torch.equal(torch.get_rng_state(), before)


@models(MODELS[:4])
def test_gaussian_log_prob(noise: GaussianNoise) -> None:
    a, y = clean(), clean() + 0.1 * normal((3, 2, 4, 5), "y")
    std = torch.as_tensor(noise.std_like(y), dtype=torch.float64).expand(y.shape)
    expected = torch.distributions.Normal(a, std).log_prob(y).sum((1, 2, 3))
    torch.testing.assert_close(noise.log_prob(y, a), expected, rtol=1e-12, atol=1e-12)


def test_complex_gaussian_is_per_real_component() -> None:
    a = normal((2, 40_000), "a", torch.complex128)
    noise = GaussianNoise(torch.tensor([0.5, 2.0]))
    y = noise.sample(a, 0)
    r = torch.view_as_real(y - a)
    torch.testing.assert_close(r.std((1, 2)), torch.tensor([0.5, 2.0]).double(), rtol=0.02, atol=0)
    assert abs(float((r[0, :, 0] * r[0, :, 1]).mean())) < 5 * 0.25 / 200
    expected = scipy.stats.norm.logpdf(r.numpy(), scale=np.array([0.5, 2.0])[:, None, None])
    torch.testing.assert_close(noise.log_prob(y, a), torch.from_numpy(expected.sum((1, 2))))


def test_complex_misfit_is_about_one() -> None:
    a = torch.zeros(1, 20_000, dtype=torch.complex128)
    noise = GaussianNoise(0.3)
    assert float(noise.misfit(noise.sample(a, 0), a)) == pytest.approx(1, abs=0.03)


def test_gaussian_law() -> None:
    y = GaussianNoise(0.2).sample(torch.full((1, 100_000), 0.3, dtype=torch.float64), 1)
    z = ((y - 0.3) / 0.2)[0].numpy()
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    misfit = GaussianNoise(0.2).misfit(y, torch.full_like(y, 0.3))
    assert float(misfit) == pytest.approx(1, abs=0.02)


def test_misfit_counts_observed_entries_only() -> None:
    keep = Mask.random(keep_fraction=0.25, seed=0)
    a = torch.zeros(1, 3, 64, 64)
    y = GaussianNoise(0.1).sample(a, 0)
    assert float(GaussianNoise(0.1).misfit(y, a, keep)) == pytest.approx(1, abs=0.05)
    assert float(GaussianNoise(0.1).misfit(keep(y), a, Identity())) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("mean", [0.05, 1.0, 7.3, 60.0, 255.0, 40_000.0])
def test_poisson_law(mean: float) -> None:
    noise = PoissonNoise(rate=mean / 255)  # gain = mean at full light
    count = 20_000
    y = noise.sample(torch.ones(1, count, dtype=torch.float64), 3)
    k = noise.counts(y)[0].numpy()
    assert np.abs(k - np.round(k)).max() < 1e-6 * max(mean, 1)
    k = np.round(k)
    law = scipy.stats.poisson(mean)
    edges = np.unique(law.ppf(np.linspace(0.02, 0.98, 25)))
    cells = np.searchsorted(edges, k)  # cell i: edges[i-1] < k <= edges[i]
    cdf = np.concatenate([[0.0], law.cdf(edges), [1.0]])
    expected = count * np.diff(cdf)
    observed = np.bincount(cells, minlength=len(expected))
    good = expected > 5
    statistic = ((observed - expected)[good] ** 2 / expected[good]).sum()
    assert scipy.stats.chi2.sf(statistic, max(good.sum() - 1, 1)) > 1e-3


def test_poisson_is_the_exact_quantile_of_its_uniform() -> None:
    from posterior.operators.noise import _poisson_quantile

    u = torch.linspace(1e-9, 1 - 1e-9, 501, dtype=torch.float64)
    for mean in (0.0, 1e-4, 0.7, 3.0, 25.0, 255.0, 3e4):
        got = _poisson_quantile(u, torch.full_like(u, mean)).numpy()
        expected = scipy.stats.poisson(mean).ppf(u.numpy()) if mean else np.zeros(501)
        assert (got == expected).mean() > 0.995  # scipy's ppf steps back by a rounding rule
        assert np.abs(got - expected).max() <= 1


def test_poisson_units_and_density() -> None:
    noise = PoissonNoise(rate=2.0)
    assert noise.gain == 510
    assert noise.slope == 255
    a = clean()
    y = noise.sample(a, 0)
    k = np.round(noise.counts(y).numpy())
    expected = scipy.stats.poisson.logpmf(k, 510 * (a.numpy() + 1) / 2).sum((1, 2, 3))
    torch.testing.assert_close(noise.log_prob(y, a), torch.from_numpy(expected), rtol=1e-9, atol=0)
    assert float(noise.sample(torch.full((1, 5), -1.0), 0).max()) == -1  # no light, no counts
    assert float(noise.log_prob(torch.full((1, 1), -1.1), torch.zeros(1, 1))) == -math.inf
    assert float(noise.log_prob(torch.zeros(1, 1), torch.full((1, 1), -1.0))) == -math.inf
    assert float(noise.log_prob(torch.full((1, 1), -1.0), torch.full((1, 1), -1.0))) == 0


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.0, 0.7), (0.3, 0.15), (4.0, 1.0), (3.0, 40.0), (90.0, 2.0), (90.0, 30.0), (4000.0, 0.5)],
)
def test_poisson_gaussian_density_is_the_sum_over_counts(mean: float, std: float) -> None:
    """In counts (slope 1), against the sum over all counts that matter, far tails included."""
    noise = PoissonGaussianNoise(rate=1.0, std=std, low=0.0, peak=1.0)
    deviation = math.sqrt(mean + std**2)
    seen = mean + deviation * np.array([-6.0, -2.5, -1.0, 0.0, 0.37, 1.0, 3.0, 9.0])
    k = np.arange(0, int(mean + 40 * math.sqrt(mean) + 60))
    terms = scipy.stats.poisson.logpmf(k, mean)[None] + scipy.stats.norm.logpdf(
        seen[:, None], k[None], std
    )
    expected = scipy.special.logsumexp(terms, axis=1)
    truth = torch.full((8, 1), mean, dtype=torch.float64)
    got = noise.log_prob(torch.from_numpy(seen)[:, None], truth)
    # the trapezoidal rule leaves out k < 0, exp(-36) for the narrowest case that uses it
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-8)


def test_poisson_gaussian_law() -> None:
    noise = PoissonGaussianNoise(rate=0.1, std=0.05)
    slope, count = noise.photons.slope, 40_000
    assert slope == pytest.approx(12.75)
    a = torch.full((1, count), 0.2, dtype=torch.float64)
    y = noise.sample(a, 4)
    variance = 1.2 / slope + 0.05**2  # counts / slope^2, counts = slope 1.2
    mean_of_y, variance_of_y = float(y.mean()), float(y.var())
    assert abs(mean_of_y - 0.2) < 4 * math.sqrt(variance / count)
    fourth = 1.2 / slope**3 + 3 * variance**2  # central, of a Poisson law and a Gaussian one
    assert abs(variance_of_y - variance) < 4 * math.sqrt((fourth - variance**2) / count)
    assert float(noise.misfit(y, a)) == pytest.approx(1, abs=4 * math.sqrt(0.5 / count) * 1.2)
    # the average of log p at the truth beats that at other means: 4 standard errors and more
    y40, a40 = y.reshape(40, -1), a.reshape(40, -1)
    gain = noise.log_prob(y40, a40) - noise.log_prob(y40, a40 + 0.05)
    assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(40)
    # the counts are those of PoissonNoise, the rest is Gaussian
    rest = (y - noise.photons.sample(a, 4))[0] / 0.05
    assert scipy.stats.kstest(rest.numpy(), "norm").pvalue > 1e-3


def test_salt_and_pepper_law() -> None:
    count, p = 40_000, 0.3
    a = torch.full((1, count), 0.25, dtype=torch.float64)
    y = SaltAndPepperNoise(p).sample(a, 2)
    for value, part in ((-1.0, p / 2), (1.0, p / 2), (0.25, 1 - p)):
        seen = int((y == value).sum())
        assert abs(seen - part * count) < 4 * math.sqrt(count * part * (1 - part))
    std = SaltAndPepperNoise(p, 0.1)
    assert scipy.stats.kstest(((std.sample(a, 2) - y) / 0.1)[0].numpy(), "norm").pvalue > 1e-3


def test_salt_and_pepper_density_and_variance() -> None:
    noise = SaltAndPepperNoise(0.2, 0.1, low=0.0, high=2.0)
    y = torch.linspace(-1, 3, 401, dtype=torch.float64)
    density = noise.log_prob(y[:, None], torch.full_like(y, 0.7)[:, None]).exp()
    assert float(torch.trapezoid(density, y)) == pytest.approx(1, abs=1e-9)
    # the variance is E[(y - y_clean)^2 | y] for y_clean uniform on [0, 2]; where the entry is
    # whole, y_clean is taken for N(y, std^2), so the values compared stay off the ends
    truth = torch.linspace(0, 2, 401, dtype=torch.float64)
    for value in (0.5, 1.0, 1.61):
        seen = torch.full((401, 1), value, dtype=torch.float64)
        weight = noise.log_prob(seen, truth[:, None]).exp()
        square = weight * (value - truth).square()
        expected = torch.trapezoid(square, truth) / torch.trapezoid(weight, truth)
        got = noise.variance(torch.tensor([[value]], dtype=torch.float64))
        assert float(got) == pytest.approx(float(expected), rel=0.02)
    at_ends = noise.lost(torch.tensor([[0.0, 2.0]], dtype=torch.float64))
    # p/2 N(0; 0, std^2) against (1 - p) / 2 at the end of a uniform law on a length of 2
    bump = 0.1 / (0.1 * math.sqrt(2 * math.pi))
    expected_lost = bump / (bump + 0.8 * 0.5 / 2)
    torch.testing.assert_close(at_ends, torch.full_like(at_ends, expected_lost), rtol=1e-9, atol=0)


def test_salt_and_pepper_without_gaussian_noise() -> None:
    noise = SaltAndPepperNoise(0.4)
    a = clean()
    y = noise.sample(a, 0)
    assert torch.equal(noise.lost(y), (y.abs() == 1).double())
    assert torch.equal(noise.variance(y) == 0, y.abs() != 1)
    with pytest.raises(InputError, match="no density"):
        noise.log_prob(y, a)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: PoissonGaussianNoise(1.0, 0.0), InputError),
        (lambda: PoissonGaussianNoise(0.0, 0.1), InputError),
        (lambda: PoissonGaussianNoise(1.0, "0.1"), InputTypeError),
        (lambda: SaltAndPepperNoise(0.0), InputError),
        (lambda: SaltAndPepperNoise(1.0), InputError),
        (lambda: SaltAndPepperNoise(0.1, -1.0), InputError),
        (lambda: SaltAndPepperNoise(0.1, low=1.0), InputError),
        (lambda: SaltAndPepperNoise(0.1).sample(clean() * 1j, 0), InputError),
        (lambda: PoissonGaussianNoise(1.0, 0.1).check(clean() * 1j), InputError),
    ],
)
def test_bad_camera_noise(make, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        make()


def test_float32_and_float64_get_the_same_noise() -> None:
    a = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for noise in (
        GaussianNoise(0.1),
        PoissonNoise(1.0),
        PoissonGaussianNoise(1.0, 0.1),
        SaltAndPepperNoise(0.2, 0.1),
    ):
        double = noise.sample(a.double(), 0)
        torch.testing.assert_close(noise.sample(a, 0), double.float(), rtol=1e-5, atol=1e-6)


def test_bare_numbers_and_tensors_are_gaussian() -> None:
    assert isinstance(as_noise_model(0.1), GaussianNoise)
    assert as_noise_model(np.float32(0.5)).std == 0.5
    assert as_noise_model(torch.tensor(0.25)).std == 0.25
    assert as_noise_model(np.array([0.1, 0.2])).std.shape == (2,)
    poisson = PoissonNoise(1.0)
    assert as_noise_model(poisson) is poisson
    zero = as_noise_model(0)
    a = clean()
    assert torch.equal(zero.sample(a, 0), a)
    with pytest.raises(InputError, match="no density"):
        zero.log_prob(a, a)
