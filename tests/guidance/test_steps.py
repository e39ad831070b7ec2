"""One step of each method against its card's equations, evaluated by hand on Gaussian priors."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from guidance_steps import SCHEDULES, D, M, ancestral, by_hand, generator, one_step, problem, stream
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.errors import InputError, PosteriorError
from posterior.guidance import _kernels
from posterior.guidance._consistency import consistent, photograph_variance
from posterior.guidance.base import Step
from posterior.guidance.daps import Kernel
from posterior.operators.noise import GaussianNoise, PoissonNoise
from posterior.problem import Problem
from posterior.schedules import CLEAN, EDM, RectifiedFlow, Schedule, VPLinear
from posterior.streams import Noise
from posterior.transitions import DDPM

STD, SPREAD = 0.3, 0.8


@pytest.fixture(params=SCHEDULES, ids=repr)
def setting(request: pytest.FixtureRequest) -> tuple[Schedule, Step, Tensor]:
    """A schedule, a step in its middle, and two rows of x_t."""
    schedule = request.param
    t, s = schedule.level_of_ratio(0.9), schedule.level_of_ratio(0.6)
    return schedule, Step(3, 10, t, s), torch.randn(2, D, generator=generator(1)).double()


def close(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    """Equal to 1e-10."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def white_variance(step: Step) -> float:
    """Variance of x0 given x_t under N(m, SPREAD^2 I)."""
    return 1 / (1 / SPREAD**2 + (step.t.alpha / step.t.sigma) ** 2)


def test_mmps(setting: tuple[Schedule, Step, Tensor]) -> None:
    """With as many iterations as entries of y: the exact posterior mean of x0 given x_t and y."""
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    out = one_step(guidance.MMPS(iterations=M), setup, step, x_t)
    x0, jacobian = by_hand(mu, cov, step.t, x_t)
    conditional = step.t.sigma**2 / step.t.alpha * jacobian
    inner = STD**2 * torch.eye(M, dtype=torch.float64) + matrix @ conditional @ matrix.T
    for k in range(2):
        r = setup.y[k] - matrix @ x0[k]
        guided = x0[k] + conditional @ matrix.T @ torch.linalg.solve(inner, r)
        close(out["x0"][k], guided)
        close(out["x"][k], ancestral(guided, x_t[k], step.t, step.s, out["z"][k]))


def test_mmps_with_one_iteration_is_dps(setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, x_t = setting
    setup, *_ = problem(schedule, STD)
    out = one_step(guidance.MMPS(iterations=1), setup, step, x_t)
    assert torch.equal(out["x"], one_step(guidance.DPS(), setup, step, x_t)["x"])


@pytest.mark.parametrize(
    "std", [STD, torch.tensor([STD, 0.7], dtype=torch.float64)], ids=["one", "each own"]
)
def test_denoising(std: float | Tensor, setting: tuple[Schedule, Step, Tensor]) -> None:
    """The exact mean of x0 given x_t and y = x0 + noise, and for two levels of noise at once."""
    schedule, step, x_t = setting
    prior, mu, cov = problem(schedule)[0].prior, *problem(schedule)[1:3]
    y = torch.randn(2, D, generator=generator(2), dtype=torch.float64)
    setup = Problem(prior, operators.Identity(), y, GaussianNoise(std))
    method = guidance.Denoising(transition=DDPM)
    out = one_step(method, setup, step, x_t)
    precision = torch.linalg.inv(cov)
    of_x = step.t.alpha / step.t.sigma**2
    for k, tau in enumerate(torch.as_tensor(std, dtype=torch.float64).expand(2).tolist()):
        white = of_x * step.t.alpha + 1 / tau**2
        right = precision @ mu + of_x * x_t[k] + y[k] / tau**2
        mean = torch.linalg.solve(precision + white * torch.eye(D, dtype=torch.float64), right)
        close(out["x0"][k], mean)
        close(out["x"][k], ancestral(mean, x_t[k], step.t, step.s, out["z"][k]))


def test_dds_principled(setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    method = guidance.DDS(spread=SPREAD, iterations=2 * D, transition=DDPM)
    out = one_step(method, setup, step, x_t)
    x0, _ = by_hand(mu, cov, step.t, x_t)
    gamma = white_variance(step) / STD**2
    system = torch.eye(D, dtype=torch.float64) + gamma * matrix.T @ matrix
    for k in range(2):
        expected = torch.linalg.solve(system, x0[k] + gamma * matrix.T @ setup.y[k])
        close(out["x0"][k], expected)
        close(out["x"][k], ancestral(expected, x_t[k], step.t, step.s, out["z"][k]))


@pytest.mark.parametrize("gamma", [0.7, math.inf])
def test_dds_published(gamma: float, setting: tuple[Schedule, Step, Tensor]) -> None:
    """x_s = alpha_s x' + sigma_s (eta z + sqrt(1 - eta^2) eps), eps that of the uncorrected x0."""
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    method = guidance.DDS(
        gamma=gamma, iterations=2 * D, keep_eps=True, transition=guidance.DDS.preset(
            "code/mri").transition
    )  # fmt: skip
    out = one_step(method, setup, step, x_t)
    x0, _ = by_hand(mu, cov, step.t, x_t)
    eps = (x_t - step.t.alpha * x0) / step.t.sigma
    for k in range(2):
        r = setup.y[k] - matrix @ x0[k]
        if math.isinf(gamma):
            corrected = x0[k] + torch.linalg.pinv(matrix) @ r
        else:
            system = torch.eye(D, dtype=torch.float64) + gamma * matrix.T @ matrix
            corrected = torch.linalg.solve(system, x0[k] + gamma * matrix.T @ setup.y[k])
        mixed = 0.85 * out["z"][k] + math.sqrt(1 - 0.85**2) * eps[k]
        close(out["x"][k], step.s.alpha * corrected + step.s.sigma * mixed)


def test_dds_needs_one_iteration_for_a_mask(setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, x_t = setting
    _, mu, cov, _ = problem(schedule)
    prior = priors.Gaussian(mu.reshape(1, 1, D), cov, schedule=schedule)
    keep = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    y = torch.randn(2, 1, 1, D, generator=generator(2), dtype=torch.float64)
    setup = Problem(prior, operators.Mask(keep=keep), keep * y, GaussianNoise(STD))
    out = one_step(guidance.DDS(gamma=0.7, iterations=1), setup, step, x_t.reshape(2, 1, 1, D))
    x0, _ = by_hand(mu, cov, step.t, x_t)
    moved = x0 + 0.7 / 1.7 * keep * (y.reshape(2, D) - x0)
    close(out["x0"].reshape(2, D), moved)


def test_daps_exact_draw_has_the_moments_of_the_conditional() -> None:
    """x0y is linear in the noise: mean and covariance by pushing unit vectors through the solve."""
    setup, _, _, matrix = problem(EDM(), STD)
    v = 0.4
    weight = v / STD**2
    a = setup.operator
    assert a is not None
    eye_x = torch.eye(D, dtype=torch.float64)
    eye_y = torch.eye(M, dtype=torch.float64)
    from_x = math.sqrt(v) * eye_x
    from_x = from_x + consistent(a, -a(from_x), weight, iterations=2 * D)
    from_y = consistent(a, STD * eye_y, weight, iterations=2 * D)
    covariance = from_x.T @ from_x + from_y.T @ from_y
    expected = torch.linalg.inv(eye_x / v + matrix.T @ matrix / STD**2)
    close(covariance, expected)


@pytest.mark.parametrize(("spread", "range_"), [(SPREAD, None), (None, None), (None, (0.0, 3.0))])
def test_daps(
    spread: float | None,
    range_: tuple[float, float] | None,
    setting: tuple[Schedule, Step, Tensor],
) -> None:
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    setup.prior.range = range_
    method = guidance.DAPS(spread=spread, inner_steps=2 * D)
    out = one_step(method, setup, step, x_t)
    noise, v = stream(x_t), white_variance(step)
    if spread is None:  # the law of photographs
        scale = 1.0 if range_ is None else 1.5
        u = step.t.sigma / step.t.alpha / scale
        v = scale**2 / (u**-2 + 1 / (0.04 * u) + 1 / 0.36)
    x0, _ = by_hand(mu, cov, step.t, x_t)
    start = x0 + math.sqrt(v) * noise("prior")
    data = setup.y + STD * noise("data", 0, shape=(M,))
    system = torch.eye(D, dtype=torch.float64) / v + matrix.T @ matrix / STD**2
    for k in range(2):
        right = start[k] / v + matrix.T @ data[k] / STD**2
        expected = torch.linalg.solve(system, right)
        close(out["x0"][k], expected)
        close(out["x"][k], step.s.alpha * expected + step.s.sigma * out["z"][k])


def test_the_law_of_photographs_has_the_units_of_x() -> None:
    schedule = EDM()
    for ratio in (0.01, 0.3, 20.0):
        level, twice = (schedule.level_of_ratio(r) for r in (ratio, 2 * ratio))
        symmetric = photograph_variance(twice, (-1.0, 1.0))
        assert photograph_variance(level, (0.0, 1.0)) == pytest.approx(symmetric / 4, rel=1e-9)
        assert photograph_variance(twice, None) == symmetric
    assert photograph_variance(RectifiedFlow().level(1.0), None) == pytest.approx(0.36)  # no signal


def test_daps_published_step_by_hand() -> None:
    """ODE by Euler steps on rho = 7, then Langevin with the code's factor 2 and its decay."""
    schedule = EDM()
    setup, mu, cov, matrix = problem(schedule, STD)
    step = Step(3, 10, schedule.level_of_ratio(0.9), schedule.level_of_ratio(0.6))
    x_t = torch.randn(2, D, generator=generator(1)).double()
    method = guidance.DAPS(
        ode_steps=3, ode_end=0.01, spread=math.inf, kernel="langevin", inner_steps=4, rate=1e-3,
        absolute_rate=True, decay=0.01, tau=0.2, data_factor=2.0,
    )  # fmt: skip
    out = one_step(method, setup, step, x_t)
    low, high = 0.01 ** (1 / 7), 0.9 ** (1 / 7)
    grid = [(high + j / 3 * (low - high)) ** 7 for j in range(4)]
    x = x_t
    for now, after in itertools.pairwise(grid):
        mean, _ = by_hand(mu, cov, schedule.level_of_ratio(now), x)
        x = x + (after - now) * (x - mean) / now
    centre, noise = x, stream(x_t)
    rate = 1e-3 * (1 - 0.99 * 3 / 11)
    for j in range(4):
        data = -2 * (x @ matrix.T - setup.y) @ matrix / 0.2**2
        drift = data + (centre - x) / 0.9**2
        x = x + rate * drift + math.sqrt(2 * rate) * noise("kernel", j)
    close(out["x0"], x)


def test_undamped_hamiltonian_is_langevin() -> None:
    x = torch.randn(2, D, generator=generator(1)).double()
    noise = Noise.single(3, (D,), torch.float64, rows=2)
    run = (x, lambda v: -2 * v, 0.01, 5, noise)
    close(_kernels.hamiltonian(*run, momentum=0.0), _kernels.langevin(*run), 1e-12)


def test_metropolis_keeps_its_target() -> None:
    """Draws of N(0, 1) stay draws of N(0, 1), and proposals of density nan are refused."""
    noise = Noise.single(0, (1,), torch.float64, rows=4000)
    x = noise("start")
    out = _kernels.metropolis(x, lambda v: -0.5 * v[:, 0] ** 2, 1.0, 20, noise)
    assert abs(float(out.mean())) < 4 / 4000**0.5
    assert abs(float(out.var()) - 1) < 4 * (2 / 4000) ** 0.5
    assert float((out != x).double().mean()) > 0.9
    log_density = lambda v: torch.where(v[:, 0] == x[:, 0], 0.0, torch.nan)  # noqa: E731
    assert torch.equal(_kernels.metropolis(x, log_density, 1.0, 3, noise), x)


def test_largest_eigenvalue() -> None:
    """From below, row by row; 0 of the zero matrix."""
    root = torch.randn(3, 5, 5, generator=generator(11)).double()
    k = root @ root.mT
    k[1] = 0
    start = torch.randn(3, 5, generator=generator(12)).double()

    def largest(part: slice) -> Tensor:
        product = lambda v: (k[part] @ v[..., None])[..., 0]  # noqa: E731
        return _kernels.largest_eigenvalue(product, start[part], iterations=100)

    whole = largest(slice(0, 3))
    assert torch.equal(largest(slice(2, 3))[0], whole[2])
    close(whole, torch.linalg.eigvalsh(k)[:, -1], 1e-6)
    assert whole[1] == 0


@pytest.mark.parametrize("kernel", ["langevin", "hamiltonian"])
def test_daps_chains_do_not_run_away_from_a_large_operator(kernel: Kernel) -> None:
    """y = 10 x + n: variances of y in x are a hundredth of those in y."""
    prior = priors.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0)
    operator = operators.from_matrix(10 * torch.eye(2, dtype=torch.float64))
    y = 10 * torch.ones(1, 2, dtype=torch.float64)
    method = guidance.DAPS(kernel=kernel, spread=1.0)
    draws = posterior.sample(prior, operator, y, noise=0.3, method=method, steps=30, n=100).draws
    exact = prior.posterior(operator, y, 0.3)
    assert abs(float(draws.mean() - exact.mean.mean())) < 0.01  # a standard error of 0.003
    assert float(draws.std()) < 2 * 0.03  # 0.3 / 10


@pytest.mark.parametrize("late", [False, True])
def test_mcg(late: bool, setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    out = one_step(guidance.MCG(scale=0.4, late=late), setup, step, x_t)
    x0, jacobian = by_hand(mu, cov, step.t, x_t)
    inverse = torch.linalg.pinv(matrix)
    known, noise = (step.t if late else step.s), stream(x_t)
    for k in range(2):
        r = setup.y[k] - matrix @ x0[k]
        gradient = -jacobian.T @ matrix.T @ r / r.norm()
        moved = ancestral(x0[k], x_t[k], step.t, step.s, out["z"][k]) - 0.4 * gradient
        y_s = known.alpha * setup.y[k] + known.sigma * matrix @ noise("known")[k]
        close(out["x"][k], moved - inverse @ matrix @ moved + inverse @ y_s)


def test_the_gradient_of_mcg_is_tangent_to_the_data() -> None:
    """A prior on a plane: whatever A is, a step along the gradient stays in it."""
    basis = torch.linalg.qr(torch.randn(D, 2, generator=generator(3)).double()).Q
    spread = torch.tensor([2.0, 0.5], dtype=torch.float64)
    prior = priors.Gaussian(torch.zeros(D, dtype=torch.float64), (basis * spread) @ basis.T)
    operator = operators.from_matrix(torch.randn(3, D, generator=generator(4)).double())
    y = torch.ones(2, 3, dtype=torch.float64)
    x_t = torch.randn(2, D, generator=generator(5)).double()
    step = Step(0, 10, prior.schedule.level_of_ratio(0.9), prior.schedule.level_of_ratio(0.6))
    setup = Problem(prior, operator, y, GaussianNoise(0.1))
    # the part of MCG before its projection is DPS's
    ahead, plain = (
        one_step(guidance.DPS(likelihood="norm", scale=scale), setup, step, x_t)["x"]
        for scale in (1.0, 0.0)
    )
    moved = ahead - plain
    assert float(moved.norm()) > 0.1
    close(moved @ basis @ basis.T, moved, 1e-12)


def test_mcg_on_independent_pixels_is_projection_alone() -> None:
    """What is hidden learns nothing from what is seen: the gradient is 0 there, to the bit."""
    variances = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(1, 2, 3)
    prior = priors.Gaussian(torch.zeros_like(variances), variances)
    keep = torch.tensor([[True, False, True], [False, True, False]])
    seen = operators.Mask(keep=keep)
    y = seen(torch.ones(1, 1, 2, 3, dtype=torch.float64))
    with_gradient, without = (
        posterior.sample(
            prior, seen, y, noise=0.1, method=guidance.MCG(scale=scale), steps=5, n=3
        ).draws
        for scale in (None, 0)
    )
    assert torch.equal(with_gradient[..., ~keep], without[..., ~keep])


def test_mcg_ends_on_the_data_and_keeps_their_noise() -> None:
    setup, *_ = problem(EDM(), STD)
    method = guidance.MCG()
    draws = posterior.sample(
        setup.prior, setup.operator, setup.y, noise=STD, method=method, steps=10
    ).draws[0]
    close(setup.operator(draws), setup.y)


@pytest.mark.parametrize("form", ["published", "likelihood"])
def test_reddiff(form: str, setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, mu_now = setting
    setup, mean, cov, matrix = problem(schedule, STD)
    method = guidance.REDdiff(form=form, weight=0.25, rate=0.1, spread=SPREAD)
    first = torch.randn(2, D, generator=generator(7)).double()
    second = torch.rand(2, D, generator=generator(8)).double()
    out = one_step(method, setup, step, mu_now, first=first, second=second)
    eps, t = stream(mu_now)("visit"), step.t
    x_t = t.alpha * mu_now + t.sigma * eps
    x0, _ = by_hand(mean, cov, t, x_t)
    eps_hat = (x_t - t.alpha * x0) / t.sigma
    r = mu_now @ matrix.T - setup.y
    prior = 0.25 * (t.sigma / t.alpha) * (eps_hat - eps)
    if form == "published":
        gradient = r @ matrix / M + prior / D
    else:
        gradient = r @ matrix / STD**2 + prior / SPREAD**2
    first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
    hat, size = first / (1 - 0.9**4), (second / (1 - 0.99**4)).sqrt()  # the fourth step
    close(out["x"], mu_now - 0.1 * hat / (size + 1e-8))


@pytest.mark.parametrize("ratio", [0.05, 0.8, 10.0])
def test_the_regulariser_of_reddiff_is_a_ridge(ratio: float) -> None:
    """Its gradient at one level, under N(m, s^2 I), over fresh noise: mean and spread.

    eps_hat - eps has the mean alpha sigma (mu - m) / v and the standard deviation alpha^2 s^2 / v,
    v = alpha^2 s^2 + sigma^2; times lambda sigma / alpha, the ridge lambda sigma^2 / (2 v).
    """
    count, s2, mean, mu = 40_000, 0.6, 0.3, 1.1
    for schedule in (VPLinear(), EDM()):
        prior = priors.Gaussian(torch.full((1,), mean, dtype=torch.float64), s2, schedule=schedule)
        y = torch.zeros(count, 1, dtype=torch.float64)
        nothing = operators.from_matrix(torch.zeros(1, 1, dtype=torch.float64))
        setup = Problem(prior, nothing, y, GaussianNoise(1.0))
        t = schedule.level_of_ratio(ratio)
        x = torch.full((count, 1), mu, dtype=torch.float64)
        zero = torch.zeros_like(x)
        method = guidance.REDdiff(weight=0.7, spread=1.0)
        out = one_step(method, setup, Step(0, 10, t, CLEAN), x, first=zero, second=zero)
        gradient = 10 * out["first"]
        v = t.alpha**2 * s2 + t.sigma**2
        spread = 0.7 * ratio * t.alpha**2 * s2 / v
        ridge = 0.7 * t.sigma**2 / v * (mu - mean)
        assert float(gradient.mean()) == pytest.approx(ridge, abs=4 * spread / count**0.5)
        assert float(gradient.std()) == pytest.approx(spread, rel=4 / (2 * count) ** 0.5)


def test_reddiff_collapses_to_modes() -> None:
    """Two modes and nothing measured: runs end at one or the other, nowhere near as wide."""
    means = torch.tensor([[-2.0, -2.0], [2.0, 2.0]], dtype=torch.float64)
    prior = priors.GaussianMixture(torch.tensor([0.5, 0.5]), means, 0.25, EDM(0.02, 40.0))
    y = torch.zeros(1, 2, dtype=torch.float64)
    method = guidance.REDdiff(spread=0.5)
    run = {"noise": 100.0, "method": method, "n": 200, "steps": 200}
    draws = posterior.sample(prior, operators.Identity(), y, **run).draws[:, 0]
    nearest = (draws[:, None] - means).norm(dim=2).min(1)
    assert set(nearest.indices.tolist()) == {0, 1}
    # the squared distance of a draw of the posterior from its mode has the median 2 log 2 x 0.25
    assert float(nearest.values.square().median()) < 0.5 * math.log(2) / 4


def test_reddiff_starts_from_the_source() -> None:
    """Adam moves each entry by about its rate at most: with a tiny one mu stays where it was."""
    setup, *_ = problem(EDM(), STD)
    source = torch.randn(2, D, generator=generator(4)).double()
    method = guidance.REDdiff(rate=1e-9, initial="pinv")
    run = {"noise": STD, "method": method, "steps": 3}
    no_pinv = operators.from_callable(lambda x: x.square(), differentiable=True)
    for operator, y in ((setup.operator, setup.y), (no_pinv, source)):
        kept = posterior.sample(setup.prior, operator, y, source=source, **run).draws[0]
        close(kept, source, 1e-7)
    begun = posterior.sample(setup.prior, setup.operator, setup.y, **run).draws[0]
    close(begun, setup.operator.pinv(setup.y), 1e-7)


@pytest.mark.parametrize("uneven", [False, True])
def test_enkg_correction_is_the_ensemble_covariance(
    uneven: bool, setting: tuple[Schedule, Step, Tensor]
) -> None:
    """Linear A: d_j = C_xY N^-1 (Y_j - y), one Frobenius norm; then one Euler step of the flow."""
    schedule, step, _ = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    count = 7
    std = torch.linspace(0.1, 2.0, len(matrix), dtype=torch.float64) if uneven else STD
    if isinstance(std, Tensor):
        setup = replace(setup, noise_model=GaussianNoise(std[None]))
    setup = setup.take([0] * count)
    x = torch.randn(count, D, generator=generator(3)).double()
    method = guidance.EnKG(particles=count, gamma=0.3, ode_steps=1, first=0.0, last=0.0)
    out = one_step(method, setup, step, x)
    x0, _ = by_hand(mu, cov, step.t, x)
    outputs = x0 @ matrix.T
    e = (outputs - setup.y) / std**2
    cross = (x - x.mean(0)).T @ (outputs - outputs.mean(0)) / count  # C_xY
    size = (e @ (outputs - outputs.mean(0)).T / count).norm()
    corrected = x - 0.3 / size * e @ cross.T
    mean, _ = by_hand(mu, cov, step.t, corrected)
    eps = (corrected - step.t.alpha * mean) / step.t.sigma
    close(out["x"], step.s.alpha * mean + step.s.sigma * eps)


def test_enkgs_length_falls_to_rho() -> None:
    """In step 3 of 10 it is 0.7 (1 - rho) gamma + rho."""
    setup, *_ = problem(EDM(), STD)
    setup = setup.take([0] * 7)
    x = torch.randn(7, D, generator=generator(3)).double()
    t, s = (setup.prior.schedule.level_of_ratio(r) for r in (0.9, 0.6))
    step = Step(3, 10, t, s)
    run = {"particles": 7, "ode_steps": 1, "first": 0.0, "last": 0.0}
    falling = one_step(guidance.EnKG(gamma=0.4, rho=0.1, **run), setup, step, x)
    constant = one_step(guidance.EnKG(gamma=0.9 * 0.4 * 0.7 + 0.1, **run), setup, step, x)
    close(falling["x"], constant["x"])
    assert guidance.EnKG.preset("code/black-hole").rho == 1e-3
    with pytest.raises(InputError, match=r"rho must be in \[0, 1\]"):
        guidance.EnKG(rho=1.5)


@pytest.mark.parametrize("std", [STD, torch.linspace(0.1, 2.0, M, dtype=torch.float64)[None]])
def test_reddiff_starts_from_the_ridge_estimate(std: float | Tensor) -> None:
    """(I / spread^2 + A' N^-1 A)^-1 A' N^-1 y where A is linear, and 0 where it is not."""
    setup, *_, matrix = problem(EDM(), STD)
    setup = replace(setup, noise_model=GaussianNoise(std))
    method = guidance.REDdiff(spread=SPREAD)
    noise = stream(torch.zeros(2, D))
    level = setup.prior.schedule.level_of_ratio(1.0)
    std = torch.as_tensor(std, dtype=torch.float64).expand(1, M)[0]
    precision = torch.diag(1 / std**2)
    system = torch.eye(D, dtype=torch.float64) / SPREAD**2 + matrix.T @ precision @ matrix
    ridge = torch.linalg.solve(system, matrix.T @ precision @ setup.y.T).T
    close(method.start(setup, level, noise)["x"], ridge)
    flat = guidance.REDdiff(spread=math.inf).start(setup, level, noise)["x"]
    close(flat, setup.operator.pinv(setup.y))
    square = operators.from_callable(lambda x: x.square(), differentiable=True)
    bent = replace(setup, operator=square, y=torch.ones(2, D, dtype=torch.float64))
    assert not bool(method.start(bent, level, noise)["x"].any())


@pytest.mark.parametrize("kind", ["entries", "measurements", "poisson", "none", "some without"])
def test_enkg_weighs_each_measurement_by_its_own_noise(kind: str) -> None:
    """Alone and beside another measurement, bit for bit; finite whatever the noise."""
    setup, *_, matrix = problem(EDM(), STD)
    y = torch.stack([setup.y[0], setup.y[0].flip(0)]).abs()
    std = {
        "entries": torch.tensor([[0.1, 1.0, 2.0]] * 2),
        "measurements": torch.tensor([[0.1, 1.0, 2.0], [2.0, 0.3, 0.1]]),
        "none": torch.zeros(2, M),
        "some without": torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.3, 0.1]]),
    }.get(kind)
    model = PoissonNoise(50.0) if std is None else GaussianNoise(std.double())
    method = guidance.EnKG(particles=8)
    run = {"method": method, "n": 8, "steps": 6}
    operator = operators.from_matrix(matrix)
    both = posterior.sample(setup.prior, operator, y, noise=model, seed=5, **run).draws
    assert torch.isfinite(both).all()
    for b in range(2):
        own = model if std is None else GaussianNoise(std[b : b + 1].double())
        alone = posterior.sample(
            setup.prior, operator, y[b : b + 1], noise=own, seed=5 + b, **run
        ).draws
        assert torch.equal(alone[:, 0], both[:, b])


def test_enkg_moves_an_ensemble_in_its_span_and_knows_no_order() -> None:
    """Three particles in more dimensions."""
    setup, *_ = problem(EDM(), STD)
    setup = setup.take([0] * 3)
    method = guidance.EnKG(particles=3, gamma=0.4)
    x = torch.randn(3, D, generator=generator(3)).double()
    x0 = torch.randn(3, D, generator=generator(4)).double()
    moved = method._corrected(setup, x, x0, 0.4) - x
    span = x[1:] - x[0]
    inside = torch.linalg.lstsq(span.T, moved.T).solution
    close((span.T @ inside).T, moved)
    assert float(moved.norm(dim=1).min()) > 1e-3
    order = [2, 0, 1]
    close(method._corrected(setup, x[order], x0[order], 0.4) - x[order], moved[order])


def test_enkg_ignores_the_scale_of_the_data_and_failed_particles() -> None:
    setup, *_, matrix = problem(EDM(), STD)
    prior = setup.prior
    method = guidance.EnKG(particles=16)
    run = {"noise": STD, "method": method, "n": 16, "steps": 10}
    plain = posterior.sample(prior, operators.from_matrix(matrix), setup.y[:1], **run).draws
    scaled = operators.from_matrix(3 * matrix)
    close(posterior.sample(prior, scaled, 3 * setup.y[:1], **run).draws, plain, 1e-6)

    def fails(x: Tensor) -> Tensor:
        y = x @ matrix.T.to(x)
        y[5:6] = torch.nan  # none when asked for the shape with a single row
        return y

    operator = operators.from_callable(fails, batched=True)
    out = posterior.sample(prior, operator, setup.y[:1], **run)
    assert torch.isfinite(out.draws).all()
    assert bool(out.good.all())
    # what is left out is only the particle's part in the statistics: it follows the flow alone
    run["method"] = guidance.EnKG(particles=16, updates=0)
    free = posterior.sample(prior, operator, setup.y[:1], **run).draws
    assert not torch.equal(free[4], out.draws[4])
    close(free[5], out.draws[5])


def test_enkg_runs_a_slow_black_box_through_its_executor() -> None:
    """A numpy function that raises for some particles, in two threads: the same draws."""
    setup, *_, matrix = problem(EDM(), STD)
    rows = matrix.numpy()

    def simulator(x: Tensor) -> np.ndarray:
        if float(x[0, 0]) > 1.5:
            raise RuntimeError("the solver diverged")
        return x.numpy() @ rows.T

    run = {"noise": STD, "method": guidance.EnKG(particles=16), "n": 16, "steps": 6}
    plain = operators.from_callable(simulator)
    alone = posterior.sample(setup.prior, plain, setup.y[:1], **run).draws
    with ThreadPoolExecutor(2) as pool:
        pooled = operators.from_callable(simulator, executor=pool)
        together = posterior.sample(setup.prior, pooled, setup.y[:1], **run).draws
    assert torch.equal(alone, together)
    assert torch.isfinite(alone).all()


def test_tds_step_by_hand(setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, _ = setting
    setup, mu, cov, matrix = problem(schedule, STD)
    count = 5
    setup = setup.take([0] * count)
    x_t = torch.randn(count, D, generator=generator(3)).double()
    zero = torch.zeros(count, dtype=torch.float64)
    method = guidance.TDS(particles=count, spread=SPREAD, threshold=0.0)
    out = one_step(method, setup, step, x_t, log_w=zero, log_twist=zero, log_evidence=zero)
    x0, jacobian = by_hand(mu, cov, step.t, x_t)
    width = STD**2 + white_variance(step)
    r = setup.y - x0 @ matrix.T
    log_twist = -0.5 * r.square().sum(1) / width - M / 2 * math.log(2 * math.pi * width)
    guided = x0 + step.t.sigma**2 / step.t.alpha * (r / width) @ matrix @ jacobian
    zeros = torch.zeros(D, dtype=torch.float64)
    mean, proposal = (ancestral(v, x_t, step.t, step.s, zeros) for v in (x0, guided))
    c = float((ancestral(x0, x_t, step.t, step.s, zeros + 1) - mean)[0, 0])
    x_s = proposal + c * out["z"]
    close(out["x"], x_s)
    ratio = ((x_s - proposal) ** 2 - (x_s - mean) ** 2).sum(1) / (2 * c**2)
    close(out["log_w"], log_twist + ratio)
    close(out["log_twist"], log_twist)


def test_postedit_closed_form_is_the_law_of_the_chain() -> None:
    """The state after M Langevin steps, from the recursion of its mean and variance."""
    source = torch.randn(1, 3, 2, 2, generator=generator(0)).double()
    prior = priors.Gaussian(torch.zeros(3, 2, 2, dtype=torch.float64), 1.0, schedule=VPLinear())
    setup = Problem(prior, source=source)
    method = guidance.PostEdit(rate=1e-4, inner_steps=30)
    noise = Noise.single(3, (3, 2, 2), torch.float64)
    levels = method.grid(prior.schedule, 5)
    state = method.start(setup, levels[0], noise)
    assert float(state["mask"].mean()) == 0.5
    assert torch.equal(state["mask"][:, 0], state["mask"][:, 1]), "shared by the channels"
    step = Step(1, 5, levels[1], levels[2])
    x0hat = torch.randn(1, 3, 2, 2, generator=generator(1)).double()
    drawn = method._draw(x0hat, state, step, noise)
    h = 1e-4 * (1 - 0.99 * 1 / 5)
    width = step.t.sigma**2
    mean, variance = x0hat.clone(), torch.zeros_like(x0hat)
    for _ in range(30):
        drift = state["mask"] * (state["y"] - mean) / 0.01**2 + (x0hat - mean) / width
        gain = 1 - h * (state["mask"] / 0.01**2 + 1 / width)
        mean, variance = mean + h * drift, gain**2 * variance + 2 * h
    close(drawn, mean + variance.sqrt() * noise("kernel"))


def test_postedit_measures_the_fraction_it_is_told() -> None:
    source = torch.zeros(2, 1, 10, 10, dtype=torch.float64)
    prior = priors.Gaussian(torch.zeros(1, 10, 10, dtype=torch.float64), 1.0, schedule=VPLinear())
    noise = Noise.single(0, (1, 10, 10), torch.float64, rows=2)
    for fraction in (0.0, 0.2, 0.8, 0.9, 1.0):
        method = guidance.PostEdit(keep_fraction=fraction)
        level = method.grid(prior.schedule, 5)[0]
        mask = method.start(Problem(prior, source=source), level, noise)["mask"]
        assert torch.equal(mask.mean((1, 2, 3)), torch.full((2,), fraction, dtype=torch.float64))


@pytest.mark.parametrize("rate", [1e-8, 1e-12])
def test_postedits_closed_form_bears_steps_that_round_away(rate: float) -> None:
    source = torch.randn(1, 3, 4, 4, generator=generator(0))
    prior = priors.Gaussian(torch.zeros(3, 4, 4), 1.0, schedule=VPLinear())
    closed = guidance.PostEdit(rate=rate, inner_steps=20)
    runs = [
        posterior.sample(prior, source=source, method=method, seed=1).draws
        for method in (closed, guidance.PostEdit(rate=rate, inner_steps=0))
    ]
    # 20 steps of 1e-8 move by 20e-8 / tau^2 = 0.002 of the distance and spread by 6e-4
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": 0.002}, "rate must be below 2 tau"),
        ({"rate": float("inf")}, "rate must be >= 0"),
        ({"tau": 0}, "tau must be > 0"),
        ({"tau": None}, "tau must be a number"),
        ({"rate": "fast"}, "rate must be a number"),
        ({"keep_fraction": 1.5}, "keep_fraction must be between 0 and 1"),
        ({"source_noise": -1}, "source_noise must be >= 0"),
    ],
    ids=str,
)
def test_postedit_refuses_settings_that_cannot_work(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(PosteriorError, match=words):
        guidance.PostEdit(**settings)  # type: ignore[arg-type]


def test_postedit_returns_a_certain_source() -> None:
    """A prior that is sure of the source gives it back, whatever the settings."""
    source = torch.randn(1, 3, 4, 4, generator=generator(0)).double()
    prior = priors.Gaussian(source[0], 1e-12, schedule=VPLinear())
    method = guidance.PostEdit(fusion=0.6, keep_fraction=0.2)
    out = posterior.sample(prior, source=source, method=method, n=2).draws
    close(out[:, 0], source.expand(2, -1, -1, -1), 1e-4)


def test_postedit_edits_under_a_conditioned_mixture() -> None:
    """Classes differ in half of the coordinates: those change, the others stay near the source."""
    means = torch.zeros(2, 2, 8, 8)
    means[0, 0], means[1, 0] = -1.0, 1.0
    prior = priors.GaussianMixture(torch.tensor([0.5, 0.5]), means, 0.05, schedule=VPLinear())
    source = prior.given(0).sample(1, seed=0)
    edited = posterior.sample(
        prior.given(1), source=source, method=guidance.PostEdit(), n=4, seed=1
    ).draws[:, 0]
    assert float(edited[:, 0].mean()) > 0.5
    background = (edited[:, 1] - source[:, 1]).square().mean().sqrt()
    fresh = (prior.sample(4, seed=2)[:, 1] - source[:, 1]).square().mean().sqrt()
    assert float(background) < 0.8 * float(fresh)


def test_clean_levels_end_every_grid() -> None:
    for method in (guidance.PostEdit(), guidance.EnKG(), guidance.DAPS()):
        for schedule in SCHEDULES:
            levels = method.grid(schedule, 5)
            assert levels[-1] == CLEAN
            assert len(levels) == 6
