"""Mean and covariance of whole runs in closed form, against the exact posterior.

On a Gaussian prior with linear data the methods here are affine in their noises, so one run with a
row for every noise element (a one there, zeros elsewhere) gives draws = mean + L z, and with it the
law of the draws without any sampling error (the idea of MGPS, arXiv 2410.09945).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from limits import D, M, UnitNoise, correlated, go, law
from torch import Tensor

import posterior
from posterior import grids, guidance, operators, priors
from posterior.errors import InputError, PosteriorError
from posterior.guidance import _kernels
from posterior.guidance.base import Guidance, Step
from posterior.guidance.daps import PRESETS
from posterior.operators.noise import GaussianNoise
from posterior.problem import Problem
from posterior.schedules import CLEAN, EDM, Discrete, RectifiedFlow, Schedule, VPLinear
from posterior.streams import Noise
from posterior.transitions import DDPM, DPMSolver2M, ode_estimate


def problem(
    covariance: Tensor | float, schedule: Schedule | None = None, std: float = 0.4
) -> tuple[Problem, Tensor, Tensor]:
    """A Gaussian prior, two linear measurements, and the exact posterior's mean and covariance."""
    g = torch.Generator().manual_seed(3)
    mean = torch.randn(D, generator=g, dtype=torch.float64)
    matrix = torch.randn(M, D, generator=g, dtype=torch.float64)
    y = torch.randn(1, M, generator=g, dtype=torch.float64)
    prior = priors.Gaussian(mean, covariance, schedule=schedule)
    c = torch.as_tensor(covariance, dtype=torch.float64)
    c = c * torch.eye(D, dtype=torch.float64) if c.ndim == 0 else c
    gain = (
        c
        @ matrix.T
        @ torch.linalg.inv(matrix @ c @ matrix.T + std**2 * torch.eye(M, dtype=torch.float64))
    )
    exact_mean = mean + gain @ (y[0] - matrix @ mean)
    setup = Problem(prior, operators.from_matrix(matrix), y, GaussianNoise(std))
    return setup, exact_mean, c - gain @ matrix @ c


def errors(
    method: Guidance, setup: tuple[Problem, Tensor, Tensor], steps: int
) -> tuple[float, float]:
    """Whitened error of the mean, and relative error of the covariance."""
    prob, mean, covariance = setup
    m, c = law(method, prob, steps)
    white = torch.linalg.inv(torch.linalg.cholesky(covariance))
    eye = torch.eye(D, dtype=torch.float64)
    return float((white @ (m - mean)).norm()), float((white @ c @ white.T - eye).norm())


EXACT = {
    "MMPS, any prior": (guidance.MMPS(iterations=2 * M), correlated()),
    "DDS, isotropic prior": (guidance.DDS(spread=0.8, iterations=2 * D), 0.64),
}
SECOND_ORDER = {
    "no data": (Guidance(), correlated()),
    **EXACT,
}


@pytest.mark.parametrize("schedule", [EDM(0.01, 80.0), VPLinear(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_multistep_moves_are_of_second_order(name: str, eta: float, schedule: Schedule) -> None:
    """Errors of the covariance fall like 1 / steps^2, under guidance as without."""
    method, covariance = SECOND_ORDER[name]
    prob, _, exact = problem(covariance, schedule)
    if name == "no data":
        exact = torch.as_tensor(covariance, dtype=torch.float64)
    method = replace(method, transition=DPMSolver2M(eta))
    coarse, fine = (float((law(method, prob, steps)[1] - exact).norm()) for steps in (40, 80))
    assert coarse / fine > 3.2  # 2 for the first order; more than 4 where the next one still counts


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow(), Discrete.linear()], ids=repr)
@pytest.mark.parametrize("spacing", ["uniform", "leading"])
def test_multistep_moves_on_uneven_grids(spacing: str, schedule: Schedule) -> None:
    """Even in t the last moves are many times longer, in log r, than those before.

    Nearer all the same than ancestral moves, and never much too wide.
    """
    for variance in (0.05**2, 0.25**2, 1.0):
        prob, *_ = problem(variance, schedule)
        wide, narrow = (
            law(Guidance(spacing=spacing, transition=rule), prob, 25)[1].diagonal().mean()
            / variance
            for rule in (DPMSolver2M(), DDPM)
        )
        assert narrow < wide < 1.15
        assert abs(1 - wide) < abs(1 - narrow)


@pytest.mark.parametrize("schedule", [EDM(0.01, 80.0), VPLinear(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", EXACT)
def test_exact_up_to_time_steps(name: str, schedule: Schedule) -> None:
    """Errors fall like 1 / steps, the order of the ancestral rule, and their limit is zero."""
    method, covariance = EXACT[name]
    method = replace(method, transition=DDPM)
    prob, mean, exact = problem(covariance, schedule)
    (m1, c1), (m2, c2) = (law(method, prob, steps) for steps in (40, 80))
    coarse, fine = float((c1 - exact).norm()), float((c2 - exact).norm())
    assert 1.6 < coarse / fine < 2.4
    # Richardson's extrapolation leaves the second order
    assert float((2 * c2 - c1 - exact).norm()) < 0.2 * fine
    assert float((2 * m2 - m1 - mean).norm()) < 0.02


@pytest.mark.parametrize("schedule", [EDM(0.01, 80.0), VPLinear(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("std", [0.05, 0.5, 5.0])
def test_denoising_is_exact_for_any_prior(std: float, schedule: Schedule) -> None:
    """State by state the sampler without data whose prior is the posterior, two modes and all."""
    means = torch.stack([torch.linspace(-1, 1, D), torch.linspace(1.5, 0, D)]).double()
    prior = priors.GaussianMixture(torch.tensor([0.3, 0.7]), means, 0.05, schedule)
    y = prior.sample(1, seed=1).double()
    prob = Problem(prior, operators.Identity(), y, GaussianNoise(std)).take([0] * 4)
    method = guidance.Denoising()
    levels = method.grid(schedule, 12)
    noise = Noise.single(2, (D,), torch.float64, rows=4)
    own = go(method, prob, levels, noise)
    base = Guidance(transition=method.transition)
    exact = go(base, Problem(prior.posterior(operators.Identity(), y, std)), levels, noise)
    for a, b in zip(own[:-1], exact[:-1], strict=True):
        torch.testing.assert_close(a["x"], b["x"], rtol=0, atol=1e-9)
    # at the last level rho^2 < 1e-4 is told as the schedule's least, 1e-4, which moves x0 by up to
    # the difference, 4e-6 for std 0.05, times |x - m| / 0.05 with |x - m| about 1
    torch.testing.assert_close(own[-1]["x"], exact[-1]["x"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", [EDM(0.01, 800.0), VPLinear(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("steps", [3, 20])
def test_daps_is_exact_for_isotropic_priors_whatever_the_steps(
    schedule: Schedule, steps: int
) -> None:
    """x0y is a draw of p(x0 | x_t, y) itself: each level leaves the posterior as it is.

    What remains is the start, at the schedule's largest sigma / alpha, and the solver's tolerance.
    """
    method = guidance.DAPS(spread=0.8, inner_steps=2 * D)
    mean, covariance = errors(method, problem(0.64, schedule), steps)
    assert mean < 0.01
    assert covariance < 0.01


def test_langevin_has_the_stationary_law_of_a_fixed_step() -> None:
    """For a quadratic of precision P: covariance P^-1 (I - h P / 2)^-1, wider than P^-1."""
    precision = torch.linalg.inv(correlated())
    h = 0.5 / float(torch.linalg.eigvalsh(precision).max())
    start = torch.zeros(1, D, dtype=torch.float64)
    recorder = UnitNoise([])
    run = (lambda x: -x @ precision, h, 120)
    _kernels.langevin(start, *run, recorder)
    unit = UnitNoise(recorder.seen)
    effects = _kernels.langevin(start.expand(1 + len(unit.addresses), -1), *run, unit)[1:]
    eye = torch.eye(D, dtype=torch.float64)
    expected = torch.linalg.inv(precision @ (eye - h * precision / 2))
    torch.testing.assert_close(effects.T @ effects, expected, rtol=0, atol=1e-5)


def test_published_daps_over_disperses() -> None:
    """N(0, 1), no data, a fine ODE, width sigma: a variance of about 2.12 at 200 levels, not 1."""
    prior = priors.Gaussian(torch.zeros(D, dtype=torch.float64), 1.0, schedule=EDM(0.1, 100.0))
    y = torch.zeros(1, D, dtype=torch.float64)
    eye = operators.from_matrix(torch.eye(D, dtype=torch.float64))
    setup = Problem(prior, eye, y, GaussianNoise(1e6))
    # levels down to 0.1 as in the published grid; the ODE as the exact flow map of N(0, 1)
    method = guidance.DAPS(spread=math.inf, ode_steps=60, ode_end=0.1)
    _, covariance = law(method, setup, 40)
    # e' = e s^2 / (s^2 + sigma^2) + sigma^2 along the levels, from the card
    excess = 0.0
    for level in method.grid(prior.schedule, 40)[:-1]:
        excess = excess / (1 + level.sigma**2) + level.sigma**2
    assert float(covariance[0, 0]) == pytest.approx(1 + excess, rel=0.15)
    assert float(covariance[0, 0]) > 1.5


def test_the_published_ode_falls_short() -> None:
    """Five Euler steps from 1 to 0.01 under N(0, 1): a gain of 0.644 for 1 / sqrt(2)."""
    prior = priors.Gaussian(torch.zeros(D, dtype=torch.float64), 1.0, schedule=EDM())
    for moves, gain in ((5, 0.644), (2000, 1 / math.sqrt(2))):
        levels = grids.descent(prior.schedule, prior.schedule.level_of_ratio(1.0), 0.01, moves)
        x = ode_estimate(torch.ones(1, D, dtype=torch.float64), levels, prior)
        assert float(x[0, 0]) == pytest.approx(gain, abs=5e-4)


@pytest.mark.parametrize("schedule", [EDM(0.01, 80.0), VPLinear(), RectifiedFlow()], ids=repr)
def test_the_published_grid(schedule: Schedule) -> None:
    """sigma_i = (100^(1/7) + i / N (0.1^(1/7) - 100^(1/7)))^7, i < N, then 0; no 0.1 itself.

    80 in the place of 100 where the schedule ends there.
    """
    method = guidance.DAPS.preset("code/ffhq/gaussian-blur/hmc")
    assert (method.kernel, method.momentum, method.inner_steps) == ("hamiltonian", 0.1, 82)
    levels = method.grid(schedule, 200)
    assert len(levels) == 201
    assert levels[-1] == CLEAN
    top = min(100.0, schedule.ratio_range[1])
    for i, level in enumerate(levels[:-1]):
        sigma = (top ** (1 / 7) + i / 200 * (0.1 ** (1 / 7) - top ** (1 / 7))) ** 7
        assert level.ratio == pytest.approx(sigma, rel=1e-6)


def test_ends_are_two_numbers() -> None:
    assert hash(guidance.DAPS(ends=[100, 0.1])) == hash(guidance.DAPS(ends=(100.0, 0.1)))  # type: ignore[arg-type]
    for bad in ((0.1, 100.0), (100.0,), (100.0, 0.1, 0.01), {}, 100.0, ("a", "b"), (math.inf, 0.1)):
        with pytest.raises(PosteriorError, match="ends"):
            guidance.DAPS(ends=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a rate"):
        guidance.DAPS(absolute_rate=True)
    for name in PRESETS:
        assert guidance.DAPS.preset(name).absolute_rate


def test_published_dds_under_disperses() -> None:
    """Constant gamma, eps kept, share 0.85 of fresh noise: total variance below the posterior's."""
    setup, _, exact = problem(correlated(), VPLinear())
    method = guidance.DDS.preset("code/mri")
    _, covariance = law(method, setup, 50)
    assert float(torch.trace(covariance)) < 0.9 * float(torch.trace(exact))


@pytest.mark.parametrize("fusion", [0.0, 0.5, 1.0])
def test_postedit_by_its_scalar_recursion(fusion: float) -> None:
    """Target N(m, s^2), source z: mean and variance entry by entry, kept and dropped."""
    s2, target, z = 0.5, 1.0, -1.0
    prior = priors.Gaussian(torch.full((D,), target, dtype=torch.float64), s2, schedule=VPLinear())
    source = torch.full((1, D), z, dtype=torch.float64)
    method = guidance.PostEdit(fusion=fusion, inner_steps=0, keep_fraction=1.0)
    levels = method.grid(prior.schedule, 5)
    mean = levels[0].alpha * z
    variance = levels[0].sigma ** 2
    for t, s in pairwise(levels):
        gain = t.alpha * s2 / (t.alpha**2 * s2 + t.sigma**2)
        mean, variance = target + gain * (mean - t.alpha * target), gain**2 * variance
        if s.sigma > 0:  # no Langevin steps: x = x0hat
            mean = s.alpha * ((1 - fusion) * mean + fusion * z)
            variance = (s.alpha * (1 - fusion)) ** 2 * variance + s.sigma**2

    class Uniforms(UnitNoise):
        def at(self, step: int) -> Uniforms:
            return Uniforms(self.addresses, step, self.seen)

        def uniform(self, name: str, j: int = 0, shape: Sequence[int] | None = None) -> Tensor:
            return torch.rand(1 + len(self.addresses), *(shape or (D,)), dtype=torch.float64)

    setup = Problem(prior, source=source)
    recorder = Uniforms([])

    def run(noise: Uniforms) -> Tensor:
        rows = setup.take([0] * (1 + len(noise.addresses)))
        state = method.start(rows, levels[0], noise)
        for k, (t, s) in enumerate(pairwise(levels)):
            state = method.advance(rows, state, Step(k, 5, t, s), noise.at(k + 1))
        return state["x"]

    run(recorder)
    draws = run(Uniforms(recorder.seen))
    effects = draws[1:] - draws[0]
    torch.testing.assert_close(draws[0], torch.full((D,), mean, dtype=torch.float64))
    expected = variance * torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(effects.T @ effects, expected)


def test_tds_errors_fall_with_the_particles() -> None:
    """The covariance of draws of 2 and of 64 particles against the posterior's."""
    setup, mean, covariance = problem(correlated(), EDM(0.02, 40.0))
    assert isinstance(setup.prior, priors.Gaussian)
    white = torch.linalg.inv(torch.linalg.cholesky(covariance))

    def error(particles: int, n: int = 300) -> float:
        run = posterior.sample(
            setup.prior, setup.operator, setup.y, noise=0.4, n=n, steps=40,
            method=guidance.TDS(particles=particles, spread=1.0),
        )  # fmt: skip
        rows = (run.draws[:, 0] - mean) @ white.T
        return float((rows.T @ rows / n - torch.eye(D)).norm())

    few, many = error(2), error(64)
    # the floor of n = 300 draws is sqrt(d (d + 1) / n) = 0.26, and 40 steps have their own bias
    assert many < 0.6
    assert many < few


@pytest.mark.parametrize(
    ("particles", "spread", "filters", "error"),
    [(64, 2.0, 300, 0.03), (64, 20.0, 300, 0.03), (1, 2.0, 1500, 0.05)],
    ids=["a wide twist", "far too wide", "one particle"],
)
def test_tds_evidence_is_unbiased(
    particles: int, spread: float, filters: int, error: float
) -> None:
    """Mean of Z_hat / Z over the filters within 3 standard errors of 1, for any twist and K.

    Noisy data and a wide twist: with a narrow one the mean rests on few large values.
    """
    std = 1.5
    setup, *_ = problem(correlated(), EDM(0.02, 40.0), std)
    assert isinstance(setup.prior, priors.Gaussian)
    method, steps = guidance.TDS(particles=particles, spread=spread), 60
    rows = setup.take([0] * (filters * method.particles))
    noise = Noise(
        (0,) * (filters * particles),
        tuple(k // particles for k in range(filters * particles)),
        tuple(k % particles for k in range(filters * particles)),
        (D,),
        torch.float64,
    )
    levels = method.grid(setup.prior.schedule, steps)
    state = method.start(rows, levels[0], noise)
    for k, (t, s) in enumerate(pairwise(levels)):
        state = method.advance(rows, state, Step(k, steps, t, s), noise.at(k + 1))
    # the model that the filter is unbiased for is that of the time steps: unconditional draws of
    # the same rule, whose law the run without data gives
    mean, covariance = law(Guidance(), setup, steps)
    operator, y, _ = setup.measured()
    matrix = operator(torch.eye(D, dtype=torch.float64))  # (D, M)
    law_of_y = torch.distributions.MultivariateNormal(
        mean @ matrix,
        matrix.T @ covariance @ matrix + std**2 * torch.eye(M, dtype=torch.float64),
    )
    ratio = (method.evidence(state) - law_of_y.log_prob(y[0])).exp()
    standard_error = float(ratio.std()) / filters**0.5
    assert abs(float(ratio.mean()) - 1) < 3 * standard_error
    assert standard_error < error


@pytest.mark.parametrize("limits", [None, (-1.0, 1.0)])
def test_mmps_stays_in_the_range_of_the_prior(limits: tuple[float, float] | None) -> None:
    """A measurement of 5 pulls the estimate there, and no farther than the prior's range."""
    prior = priors.Gaussian(torch.zeros(4, dtype=torch.float64), 1.0)
    prior.range = limits
    y = torch.full((1, 4), 5.0, dtype=torch.float64)
    out = posterior.sample(
        prior, operators.Identity(), y, noise=0.01, method="mmps", steps=10, progress=False
    )
    assert torch.allclose(out.draws, torch.tensor(1.0 if limits else 5.0).double(), atol=0.1)
