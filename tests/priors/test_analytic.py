"""Gaussian and mixture priors against score, brute force and the exact posterior."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator
from posterior.operators.noise import GaussianNoise
from posterior.priors import Gaussian, GaussianMixture
from posterior.schedules import EDM, VE, Discrete, RectifiedFlow, VPCosine, VPLinear


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spd(d: int, seed: int = 0) -> Tensor:
    a = random(d, d, seed=seed)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(), Discrete.linear()]


class Linear(Operator):
    """y = M x, real or complex."""

    linear = True

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.matrix.dtype) @ self.matrix.T


def image_spectrum() -> Tensor:
    k = torch.fft.fftfreq(4)[:, None] ** 2 + torch.fft.fftfreq(6)[None] ** 2
    return (1 / (0.05 + k)).double()


GAUSSIANS = {
    "scalar": lambda: Gaussian(random(4), 0.5),
    "diagonal": lambda: Gaussian(random(2, 2), random(2, 2).abs() + 0.1),
    "full": lambda: Gaussian(random(4), spd(4)),
    "stationary": lambda: Gaussian.stationary(0.2, image_spectrum()),
}
MIXTURES = {
    "scalar": lambda: GaussianMixture([0.2, 0.5, 0.3], 2 * random(3, 2), 0.4),
    "each": lambda: GaussianMixture([0.2, 0.5, 0.3], 2 * random(3, 2), [0.2, 0.5, 1.0]),
    "shared": lambda: GaussianMixture([0.2, 0.5, 0.3], 2 * random(3, 2), spd(2)),
    "full": lambda: GaussianMixture(
        [0.2, 0.5, 0.3], 2 * random(3, 2), torch.stack([spd(2, k) for k in range(3)])
    ),
}


def noised(mixture: GaussianMixture, alpha: float, sigma: float) -> GaussianMixture:
    """The law of x_t, by its definition."""
    eye = torch.eye(2, dtype=torch.float64)
    return GaussianMixture(
        mixture.weights, alpha * mixture.means, alpha**2 * mixture.covariances + sigma**2 * eye
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", MIXTURES)
def test_score_is_the_gradient_of_the_noised_density(kind: str, schedule: object) -> None:
    prior = MIXTURES[kind]().with_schedule(schedule)
    for t in (0.3, 0.7):
        alpha, sigma = schedule(t)
        x = (alpha * prior.sample(6, seed=1) + sigma * random(6, 2)).requires_grad_()
        (score,) = torch.autograd.grad(noised(prior, alpha, sigma).log_prob(x).sum(), x)
        got = prior(x.detach(), t).score
        assert torch.allclose(got, score, rtol=1e-8, atol=1e-8 * float(score.abs().max()))


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_denoiser_is_the_textbook_formula(kind: str) -> None:
    prior = GAUSSIANS[kind]().with_schedule(VPLinear())
    d = prior.mean.numel()
    alpha, sigma = prior.schedule(0.4)
    x = random(3, *prior.event_shape)
    c, m = prior.covariance, prior.mean.flatten()
    total = alpha**2 * c + sigma**2 * torch.eye(d, dtype=torch.float64)
    expected = m + alpha * (x.flatten(1) - alpha * m) @ torch.linalg.solve(total, c)
    assert torch.allclose(prior(x, 0.4).x0.flatten(1), expected, rtol=1e-10, atol=1e-10)
    law = torch.distributions.MultivariateNormal(m, c)
    assert torch.allclose(prior.log_prob(x), law.log_prob(x.flatten(1)), rtol=1e-10)


def test_stationary_covariance_is_what_the_spectrum_says() -> None:
    prior = Gaussian.stationary(0.0, image_spectrum())
    c = prior.covariance.reshape(4, 6, 4, 6)
    # circulant, its first row the inverse DFT of the spectrum
    first = torch.fft.ifft2(image_spectrum()).real
    assert torch.allclose(c[0, 0], first, atol=1e-12)
    assert torch.allclose(c[1, 2], first.roll((1, 2), (0, 1)), atol=1e-12)
    white = Gaussian.stationary(0.0, torch.ones(3, 4, 6))
    assert torch.allclose(white.covariance, torch.eye(72, dtype=torch.float64), atol=1e-12)
    odd = (1 / (0.05 + torch.fft.fftfreq(5)[:, None] ** 2 + torch.fft.fftfreq(7) ** 2)).double()
    Gaussian.stationary(0.0, odd)
    with pytest.raises(InputError, match="ifftshift"):
        Gaussian.stationary(0.0, torch.fft.fftshift(odd))


def grid2d(reach: float, points: int) -> tuple[Tensor, float]:
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("kind", MIXTURES)
def test_denoiser_and_posterior_by_brute_force_integration(kind: str) -> None:
    """Trapezoid sums of smooth, decaying densities converge faster than any power."""
    prior = MIXTURES[kind]().with_schedule(VPLinear())
    points, cell = grid2d(16, 641)
    density = prior.log_prob(points)
    assert float(density.exp().sum() * cell) == pytest.approx(1, abs=1e-9)
    alpha, sigma = prior.schedule(0.4)
    for x in alpha * prior.sample(2, seed=2):
        weight = torch.softmax(density - ((x - alpha * points) ** 2).sum(1) / (2 * sigma**2), 0)
        assert torch.allclose(prior(x[None], 0.4).x0[0], weight @ points, atol=1e-8)

    matrix, y, std = torch.tensor([[1.0, -0.5]]).double(), torch.tensor([0.3]).double(), 0.4
    exact = prior.posterior(Linear(matrix), y, noise=std)
    misfit = -((y - points @ matrix.T) ** 2).sum(1) / (2 * std**2)
    log_evidence = torch.logsumexp(density + misfit, 0)
    expected = density + misfit - log_evidence - math.log(cell)
    near = expected > -20
    assert torch.allclose(exact.log_prob(points[near]), expected[near], atol=1e-7)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full", "stationary"])
@pytest.mark.parametrize("complex_", [False, True])
def test_gaussian_posterior_is_the_textbook_formula(kind: str, complex_: bool) -> None:
    prior = GAUSSIANS[kind]()
    d = prior.mean.numel()
    a = random(3, d, seed=4)
    if complex_:
        a = torch.complex(a, random(3, d, seed=5))
    y = Linear(a)(random(1, d))
    std = torch.tensor([[0.3, 0.5, 0.8]])
    exact = prior.posterior(Linear(a), y, GaussianNoise(std))
    real = torch.cat([a.real, a.imag]) if complex_ else a
    data = torch.cat([y.real, y.imag], 1)[0] if complex_ else y[0]
    n = torch.diag(torch.cat([std[0]] * (2 if complex_ else 1)).double() ** 2)
    c, m = prior.covariance, prior.mean.flatten()
    gain = c @ real.T @ torch.linalg.inv(real @ c @ real.T + n)
    assert torch.allclose(exact.mean.flatten(), m + gain @ (data - real @ m), atol=1e-9)
    assert torch.allclose(exact.covariance, c - gain @ real @ c, atol=1e-9)
    assert isinstance(exact, Gaussian)
    assert exact.event_shape == prior.event_shape


def test_mixture_of_one_and_gaussian_agree() -> None:
    c = spd(3)
    one, gaussian = GaussianMixture([1.0], random(1, 3), c), Gaussian(random(1, 3)[0], c)
    gaussian = gaussian.with_schedule(one.schedule)
    x = random(4, 3, seed=2)
    assert torch.allclose(one(x, 0.5).x0, gaussian(x, 0.5).x0)
    assert torch.allclose(one.log_prob(x), gaussian.log_prob(x))
    a, y = random(2, 3), random(2, seed=8)
    p, q = one.posterior(Linear(a), y, 0.1), gaussian.posterior(Linear(a), y, 0.1)
    assert torch.allclose(p.means[0], q.mean)
    assert torch.allclose(p.covariances[0], q.covariance)


def test_posterior_tends_to_the_prior_and_to_the_constraint() -> None:
    prior = MIXTURES["full"]()
    a, y = random(1, 2), torch.tensor([0.7], dtype=torch.float64)
    loose = prior.posterior(Linear(a), y, noise=1e7)
    x = prior.sample(5)
    assert torch.allclose(loose.log_prob(x), prior.log_prob(x), atol=1e-9)
    tight = prior.posterior(Linear(a), y, noise=1e-6)
    assert torch.allclose(tight.sample(50).double() @ a.T, y.expand(50, 1), atol=1e-5)


@pytest.mark.parametrize("kind", ["scalar", "full"])
def test_precise_and_badly_scaled_measurements(kind: str) -> None:
    """sigma_y = 1e-3 and singular values 1e-3 to 1e3, against 60-digit arithmetic in rationals."""
    import mpmath

    d = 4
    covariance = 1.0 if kind == "scalar" else spd(d)
    prior = GaussianMixture([0.5, 0.5], 3 * random(2, d), covariance)
    u, v = torch.linalg.qr(random(3, 3))[0], torch.linalg.qr(random(d, d, seed=1))[0]
    a = u @ torch.diag(torch.tensor([1e3, 1.0, 1e-3]).double()) @ v[:3]
    y = a @ random(d, seed=3)
    exact = prior.posterior(Linear(a), y, noise=1e-3)
    assert float(torch.linalg.eigvalsh(exact.covariances[0])[0]) > -1e-15
    mpmath.mp.dps = 60

    def matrix(t: Tensor) -> "mpmath.matrix":
        return mpmath.matrix(t.reshape(t.shape[0], -1).tolist())

    A, C = matrix(a), matrix(prior.covariances[0])
    N = mpmath.eye(3) * mpmath.mpf(0.001) ** 2
    gain = C * A.T * mpmath.inverse(A * C * A.T + N)
    after = C - gain * A * C
    for k in range(2):
        m = matrix(prior.means[k][:, None])
        mean = m + gain * (matrix(y[:, None]) - A * m)
        got = exact.means[k]
        assert np.allclose(got.numpy(), [float(v) for v in mean], rtol=1e-8, atol=1e-8)
    got = exact.covariances[0].numpy()
    assert np.allclose(got, np.array(after.tolist(), dtype=float), rtol=1e-7, atol=1e-12)


def test_posterior_refuses_what_it_cannot_do() -> None:
    prior = MIXTURES["scalar"]()
    a, y = Linear(random(1, 2)), torch.zeros(1, dtype=torch.float64)

    class Curved(Linear):
        linear = False

    with pytest.raises(CapabilityError, match="linear"):
        prior.posterior(Curved(random(1, 2)), y, 0.1)
    for noise in (0.0, 0):
        with pytest.raises(InputError, match="noise must be > 0"):
            prior.posterior(a, y, noise)
    with pytest.raises(InputError, match="ONE measurement"):
        prior.posterior(a, torch.zeros(2, 1), 0.1)
    with pytest.raises(InputError, match="NaN"):
        prior.posterior(a, torch.tensor([math.nan]), 0.1)
    with pytest.raises(InputError, match="4096"):
        Gaussian(torch.zeros(4097)).posterior(a, y, 0.1)
    with pytest.raises(InputTypeError):
        prior.posterior("blur", y, 0.1)  # type: ignore[arg-type]


def test_conditioning_on_components() -> None:
    prior = MIXTURES["full"]().with_schedule(VPLinear())
    x = random(3, 2)
    for k in range(3):
        alone = Gaussian(prior.means[k], prior.covariances[k], schedule=VPLinear())
        assert torch.allclose(prior.given(k)(x, 0.4).x0, alone(x, 0.4).x0, atol=1e-12)
        assert torch.allclose(prior.given(k).log_prob(x), alone.log_prob(x), atol=1e-12)
    pair = prior.given({0, 2})
    assert torch.allclose(pair.weights, torch.tensor([0.4, 0.0, 0.6]).double())
    each = prior.given([2, 0, 1])
    rows = each(x, 0.4).x0
    for row, k in enumerate((2, 0, 1)):
        assert torch.equal(rows[row : row + 1], prior.given(k)(x[row : row + 1], 0.4).x0)
    twice = each.take([1, 1, 2])
    assert torch.equal(twice(x, 0.4).x0[2:], prior.given(1)(x[2:], 0.4).x0)
    assert prior.take([0, 0]) is prior
    assert set(pair.log_components(pair.sample(200)).argmax(1).tolist()) <= {0, 2}
    with pytest.raises(InputError, match="conditions for 3 rows"):
        each(x[:2], 0.4)
    with pytest.raises(CapabilityError, match="take"):
        each.sample(2)
    with pytest.raises(InputError, match="no component 3"):
        prior.given(3)
    with pytest.raises(InputTypeError):
        prior.given("cat")
    with pytest.raises(InputError, match="probability zero"):
        pair.given(1)
    with pytest.raises(CapabilityError):
        prior.given(1, scale=2.0)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], 1.0, "sum to 1"),
        ([1.5, -0.5], [[0.0], [1.0]], 1.0, "negative"),
        ([0.5, 0.5], [[0.0]], 1.0, "means"),
        ([0.5, 0.5], [0.0, 1.0], 1.0, "means"),
        ([0.5, 0.5], [[0.0], [math.nan]], 1.0, "NaN"),
        ([0.5, 0.5], [[0.0], [1.0]], -1.0, "negative"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0, 1.0], "covariances has shape"),
        ([1.0], [[0.0, 0.0]], [[1.0, 0.5], [0.4, 1.0]], "symmetric"),
        ([1.0], [[0.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]], "semi-definite"),
        ([], [[0.0]], 1.0, "weights"),
    ],
)
def test_mixture_validation(weights, means, covariances, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (0.0, 1.0, "shape of the event"),
        (torch.zeros(3), torch.ones(4), "covariance has shape"),
        (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), "negative"),
        (torch.zeros(2), torch.tensor([[1.0, 3.0], [3.0, 1.0]]), "semi-definite"),
        (torch.zeros(0), 1.0, "empty"),
        (torch.full((2,), math.inf), 1.0, "infinite"),
    ],
)
def test_gaussian_validation(mean: object, covariance: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gaussian(mean, covariance)


def test_dtype_of_the_prior() -> None:
    assert Gaussian([0.0, 1.0]).dtype == torch.get_default_dtype()
    assert Gaussian(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    assert GaussianMixture([1.0], np.zeros((1, 2))).dtype == torch.float64
    assert GaussianMixture([1.0], torch.zeros(1, 2)).sample(1).dtype == torch.float32


def test_singular_covariances_sample_but_have_no_density() -> None:
    flat = Gaussian(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert float(flat.sample(10)[:, 1].abs().max()) == 0
    with pytest.raises(CapabilityError, match="singular"):
        flat.log_prob(torch.zeros(1, 2))
    points = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.0)
    x = torch.tensor([[0.9]])
    assert float(points(x, points.schedule.time_of_ratio(0.01)).x0) == pytest.approx(1.0)


def test_float32_denoiser_of_a_precise_posterior() -> None:
    """Centring: modes that agree to 1e-3 in the measured direction keep their responsibilities."""
    means = torch.tensor([[8.0 * i, 8.0 * j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    prior = GaussianMixture([1 / 9] * 9, means, 1.0)
    exact = prior.posterior(Linear(torch.tensor([[1.0, 1.0]]).double()), torch.tensor([0.1]), 1e-3)
    x = exact.sample(200).double()
    t = exact.schedule.time_of_ratio(0.01)
    x = x + 0.01 * random(200, 2)
    single, double = exact(x.float(), t).x0.double(), exact(x, t).x0
    assert float((single - double).abs().max()) < 1e-4
