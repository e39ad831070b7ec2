"""DPS against the equations of its paper, evaluated by hand on Gaussian priors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from guidance_steps import SCHEDULES, D, ancestral, by_hand, generator, one_step, problem
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.errors import CapabilityError, InputError, PosteriorError
from posterior.guidance.base import Step
from posterior.guidance.dps import PRESETS, Likelihood
from posterior.operators.noise import GaussianNoise, PoissonNoise
from posterior.problem import Problem
from posterior.schedules import CLEAN, EDM, Discrete, Level, Schedule, VPLinear
from posterior.transitions import LearnedVariance


@pytest.fixture(params=SCHEDULES, ids=repr)
def setting(request: pytest.FixtureRequest) -> tuple[Schedule, Step, Tensor]:
    """A schedule, a step in its middle, and two rows of x_t."""
    schedule = request.param
    t, s = schedule.level_of_ratio(0.9), schedule.level_of_ratio(0.6)
    return schedule, Step(0, 10, t, s), torch.randn(2, D, generator=generator(1)).double()


def test_norm_step_by_hand(setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule)
    out = one_step(guidance.DPS(likelihood="norm", scale=0.7), setup, step, x_t)
    x0, jacobian = by_hand(mu, cov, step.t, x_t)
    for k in range(2):
        r = setup.y[k] - matrix @ x0[k]
        gradient = -jacobian.T @ matrix.T @ r / r.norm()
        expected = ancestral(x0[k], x_t[k], step.t, step.s, out["z"][k]) - 0.7 * gradient
        torch.testing.assert_close(out["x"][k], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(out["x0"][k], x0[k], rtol=0, atol=1e-10)


@pytest.mark.parametrize("inner_steps", [0, 10])
def test_gaussian_step_by_hand(setting: tuple[Schedule, Step, Tensor], inner_steps: int) -> None:
    """Along r, or along (N + v A A')^-1 r with 1 / v = 1 / 0.2^2 + (alpha / sigma)^2."""
    schedule, step, x_t = setting
    setup, mu, cov, matrix = problem(schedule, std=0.3)
    out = one_step(guidance.DPS(inner_steps=inner_steps), setup, step, x_t)
    x0, jacobian = by_hand(mu, cov, step.t, x_t)
    conditional = step.t.sigma**2 / step.t.alpha * jacobian  # C = Cov[x0 | x_t]
    v = 1 / (1 / 0.2**2 + (step.t.alpha / step.t.sigma) ** 2)
    white = 0.3**2 * torch.eye(len(matrix), dtype=torch.float64) + v * matrix @ matrix.T
    for k in range(2):
        r = setup.y[k] - matrix @ x0[k]
        u = torch.linalg.solve(white, r) if inner_steps else r
        inner = 0.3**2 * u + matrix @ conditional @ matrix.T @ u
        guided = x0[k] + conditional @ matrix.T @ u * (u @ r) / (u @ inner)
        expected = ancestral(guided, x_t[k], step.t, step.s, out["z"][k])
        torch.testing.assert_close(out["x"][k], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("likelihood", ["poisson", "poisson-code"])
def test_poisson_steps_by_hand(likelihood: str, setting: tuple[Schedule, Step, Tensor]) -> None:
    schedule, step, x_t = setting
    setup, mu, cov, _ = problem(schedule)
    model = PoissonNoise(1.0)
    clean = torch.rand(2, D, generator=generator(4)).double() - 0.5
    y = model.sample(clean, seed=0)
    identity = operators.from_matrix(torch.eye(D, dtype=torch.float64))
    setup = Problem(setup.prior, identity, y, model)
    out = one_step(guidance.DPS(likelihood=likelihood, scale=0.3), setup, step, x_t)
    x0, jacobian = by_hand(mu, cov, step.t, x_t)
    for k in range(2):
        r = y[k] - x0[k]
        if likelihood == "poisson":  # counts = 255 (y + 1) / 2
            counts, counted = 255 * (y[k] + 1) / 2, 255 / 2 * r
            descent = -jacobian.T @ (255 / 2 * counted / counts) / counted.norm()
        else:
            descent = -jacobian.T @ r / r.norm() * (1 / y[k].abs()).mean()
        expected = ancestral(x0[k], x_t[k], step.t, step.s, out["z"][k]) - 0.3 * descent
        torch.testing.assert_close(out["x"][k], expected, rtol=0, atol=1e-10)


def test_poisson_code_is_finite_where_y_is_zero() -> None:
    """With 254 counts y = 0 is a possible measurement; the code's own 255 never get below a half.

    There 1 / |y| is that of half a count, slope / 0.5 = 254, and the others stay as they are.
    """
    model = PoissonNoise(1.0, peak=254)  # 127 counts for each unit of y
    schedule = EDM()
    prior = priors.Gaussian(torch.zeros(3, dtype=torch.float64), 1.0, schedule=schedule)
    step = Step(0, 10, schedule.level_of_ratio(1.0), schedule.level_of_ratio(0.5))
    y = torch.tensor([[0.0, 0.5, -0.25]], dtype=torch.float64)
    setup = Problem(prior, operators.Identity(), y, model)
    method = guidance.DPS(likelihood="poisson-code", scale=0.3)
    x_t = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    out = one_step(method, setup, step, x_t)
    x0 = x_t / 2  # prior and noise of variance 1
    r = y - x0
    descent = -0.5 * r / r.norm() * (254 + 2 + 4) / 3
    expected = ancestral(x0, x_t, step.t, step.s, out["z"]) - 0.3 * descent
    torch.testing.assert_close(out["x"], expected, rtol=0, atol=1e-12)


def test_clamp_stops_the_gradient_of_saturated_pixels() -> None:
    schedule = EDM()
    prior = priors.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0, schedule=schedule)
    prior.range = (-1.0, 1.0)
    step = Step(0, 10, schedule.level_of_ratio(0.5), schedule.level_of_ratio(0.3))
    x_t = torch.tensor([[3.0, 0.5]], dtype=torch.float64)  # x0 = x_t / 1.25 = (2.4, 0.4)
    y = torch.zeros(1, 2, dtype=torch.float64)
    setup = Problem(prior, operators.Identity(), y, GaussianNoise(0.1))
    out = one_step(guidance.DPS(likelihood="norm", scale=0.5, clamp=True), setup, step, x_t)
    torch.testing.assert_close(out["x0"], torch.tensor([[1.0, 0.4]], dtype=torch.float64))
    z = out["z"]
    moved = ancestral(out["x0"], x_t, step.t, step.s, z)
    r = y - out["x0"]
    pull = (
        torch.tensor([[0.0, 0.8]], dtype=torch.float64) * r / r.norm()
    )  # dx0/dx_t = 1 / 1.25, 0 where saturated
    torch.testing.assert_close(out["x"], moved + 0.5 * pull, rtol=0, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["norm", "gaussian"])
def test_zero_residual_gives_a_finite_step(likelihood: str) -> None:
    prior = priors.Gaussian(torch.zeros(3), 1.0, schedule=EDM())
    step = Step(0, 10, Level(0.5, 1.0, 1.0), Level(0.4, 1.0, 0.5))
    setup = Problem(prior, operators.Identity(), torch.zeros(1, 3), GaussianNoise(0.0))
    out = one_step(guidance.DPS(likelihood=likelihood), setup, step, torch.zeros(1, 3))
    torch.testing.assert_close(out["x0"], torch.zeros(1, 3))
    assert torch.isfinite(out["x"]).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("hidden", [False, True])
def test_gaussian_form_is_exact_for_isotropic_priors(schedule: Schedule, hidden: bool) -> None:
    """There r is an eigenvector of N + A C A', so the guided estimate is that of the posterior:

    the run must equal the unconditional sampler of the exact posterior, with the same noise.
    """
    prior = priors.Gaussian(torch.full((6,), 0.3, dtype=torch.float64), 0.5, schedule=schedule)
    matrix = torch.eye(6, dtype=torch.float64)[::2] if hidden else torch.eye(6).double()
    operator = operators.from_matrix(matrix)
    y = torch.randn(1, len(matrix), generator=generator(3), dtype=torch.float64)
    ratios = torch.logspace(1.5, -1.9, 12).tolist()  # alpha > 0: where it is 0, J says nothing of C
    run = {"n": 5, "grid": [*map(schedule.level_of_ratio, ratios), CLEAN], "seed": 1}
    draws = posterior.sample(prior, operator, y, noise=0.4, method=guidance.DPS(), **run).draws
    exact = prior.posterior(operator, y, noise=0.4)
    expected = posterior.sample(exact, **run).draws
    torch.testing.assert_close(draws, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("zeta", "distance"), [(0.3, 0.145), (1.0, 0.495)])
@pytest.mark.parametrize("std", [0.1, 2.0])
def test_published_form_sticks_to_y_whatever_the_noise(
    zeta: float, distance: float, std: float
) -> None:
    """The known bias of official DPS (N(0, I), A = I, d = 64): it ends about zeta / 2 from y.

    That holds for every sigma_y, with no shrinkage towards y / (1 + sigma_y^2): it is not a
    posterior sampler. The reference distances are a separate implementation's.
    """
    prior = priors.Gaussian(torch.zeros(64), 1.0, schedule=Discrete.linear())
    y = torch.randn(1, 64, generator=generator(5))
    method = guidance.DPS(likelihood="norm", scale=zeta, spacing="trailing")
    run = posterior.sample(prior, operators.from_matrix(torch.eye(64)), y, noise=std, method=method,
                           steps=1000, n=16)  # fmt: skip
    distances = (run.draws[:, 0] - y).norm(dim=1)
    assert abs(float(distances.mean()) - distance) < 0.03


def test_principled_form_samples_the_posterior_where_the_published_one_does_not() -> None:
    """Same setting: mean y / (1 + sigma^2), variance sigma^2 / (1 + sigma^2)."""
    std, d, n = 2.0, 64, 64
    prior = priors.Gaussian(torch.zeros(d, dtype=torch.float64), 1.0, schedule=Discrete.linear())
    y = torch.randn(1, d, generator=generator(5), dtype=torch.float64)
    identity = operators.from_matrix(torch.eye(d, dtype=torch.float64))
    exact_mean, exact_variance = y / (1 + std**2), std**2 / (1 + std**2)

    def scores(likelihood: str) -> tuple[float, float]:
        method = guidance.DPS(likelihood=likelihood, scale=1.0, spacing="trailing")
        draws = posterior.sample(prior, identity, y, noise=std, method=method, steps=200, n=n).draws
        error = (draws - exact_mean) / exact_variance**0.5  # standard normal for the posterior
        return float(error.mean().abs() * (n * d) ** 0.5), float(error.square().mean())

    shift, spread = scores("gaussian")
    assert shift < 3.3  # alpha = 1e-3, two-sided
    assert abs(spread - 1) < 3.3 * (2 / (n * d)) ** 0.5 + 0.01  # and 1 % for 200 steps
    _, spread = scores("norm")
    assert abs(spread - 1) > 0.3  # its variance is set by zeta, not by the noise


def test_no_information_tends_to_the_unconditional_sampler() -> None:
    setup, *_ = problem(VPLinear())
    prior, operator, y = setup.prior, setup.operator, setup.y[:1]
    run = {"steps": 10, "n": 3}
    free = posterior.sample(prior, **run).draws
    guided = posterior.sample(prior, operator, y, noise=1e6, method=guidance.DPS(), **run).draws
    torch.testing.assert_close(guided, free, rtol=0, atol=1e-8)


def test_nonlinear_operator() -> None:
    """The norm step's gradient for y = x^2 against autograd through the closed-form denoiser."""
    schedule = EDM()
    setup, mu, cov, _ = problem(schedule)
    square = operators.from_callable(lambda x: x**2, differentiable=True)
    y = torch.rand(2, D, generator=generator(6), dtype=torch.float64)
    setup = Problem(setup.prior, square, y, GaussianNoise(0.1))
    step = Step(0, 10, schedule.level_of_ratio(0.9), schedule.level_of_ratio(0.6))
    x_t = torch.randn(2, D, generator=generator(1), dtype=torch.float64, requires_grad=True)
    x0, _ = by_hand(mu, cov, step.t, x_t)
    (gradient,) = torch.autograd.grad((y - x0**2).norm(dim=1).sum(), x_t)
    out = one_step(guidance.DPS(likelihood="norm", scale=0.2), setup, step, x_t.detach())
    expected = ancestral(x0, x_t, step.t, step.s, out["z"]) - 0.2 * gradient
    torch.testing.assert_close(out["x"], expected.detach(), rtol=0, atol=1e-10)

    # the gaussian form linearises A at x0: A' = diag(2 x0); its step length is a finite difference
    x0, jacobian = by_hand(mu, cov, step.t, x_t.detach())
    guided = one_step(guidance.DPS(), setup, step, x_t.detach())
    conditional = step.t.sigma**2 / step.t.alpha * jacobian
    for k in range(2):
        r, slope = y[k] - x0[k] ** 2, torch.diag(2 * x0[k])
        direction = conditional @ slope @ r
        length = (r @ r) / (0.1**2 * r @ r + r @ slope @ direction)
        expected = x0[k] + length * direction
        torch.testing.assert_close(guided["x0"][k], expected, rtol=0.02, atol=0.02)


def test_presets_are_the_published_numbers() -> None:
    assert guidance.DPS.preset("paper/ffhq/motion-blur").scale == 1.0
    assert guidance.DPS.preset("code/ffhq/motion-blur").scale == 0.3
    assert guidance.DPS.preset("paper/imagenet/gaussian-blur").scale == 0.4
    assert guidance.DPS.preset("code/ffhq/inpaint-box").scale == 0.5
    assert guidance.DPS.preset("code/ffhq/phase-retrieval").scale == 1.0
    assert guidance.DPS.preset("paper/ffhq/poisson-gaussian-blur").likelihood == "poisson"
    for name in PRESETS:
        method = guidance.DPS.preset(name)
        assert method.clamp
        assert method.default_steps == 1000
        assert method.transition == LearnedVariance(required=False)
    with pytest.raises(InputError, match="did you mean 'paper/ffhq/motion-blur'"):
        guidance.DPS.preset("paper/ffhq/motion_blur")


@pytest.mark.parametrize("method", [guidance.DPS(likelihood="norm"), guidance.MCG()])
def test_default_step_length(method: guidance.DPS | guidance.MCG) -> None:
    """A prior N(0, I), y = x_1 seen: the gradient is zeta dx0/dx_t long, zeta sqrt(d) 1000 / steps.

    x_1 is not moved in MCG, whose projection hides the gradient: x_2, correlated by 0.5, is.
    """
    schedule = EDM()
    t, s = schedule.level_of_ratio(0.9), schedule.level_of_ratio(0.6)

    def length(d: int, steps: int) -> float:
        covariance = torch.eye(d, dtype=torch.float64)
        covariance[0, 1] = covariance[1, 0] = 0.5
        prior = priors.Gaussian(torch.zeros(d, dtype=torch.float64), covariance, schedule=schedule)
        x_t = torch.ones(1, d, dtype=torch.float64)
        first = operators.from_matrix(torch.eye(1, d, dtype=torch.float64))
        setup = Problem(prior, first, 2 * x_t[:, :1], GaussianNoise(0.1))
        step = Step(0, steps, t, s)
        plain = one_step(replace(method, scale=0), setup, step, x_t)
        out = one_step(method, setup, step, x_t)
        return float((out["x"] - plain["x"])[0, 1])

    seen = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    jacobian = seen @ torch.linalg.inv(seen + 0.9**2 * torch.eye(2, dtype=torch.float64))
    one = float(jacobian[0, 1]) * (16 / 196608) ** 0.5  # of zeta = 1 at 256x256x3
    assert length(16, 1000) == pytest.approx(2 * one, rel=1e-9)
    assert length(64, 1000) == pytest.approx(4 * one, rel=1e-9)
    assert length(16, 50) == pytest.approx(40 * one, rel=1e-9)
    assert length(16, 10) == pytest.approx(80 * one, rel=1e-9)  # as in 25 steps
    if isinstance(method, guidance.DPS):  # 50 steps of 100 are spaced like those of 100
        method = replace(method, strength=0.5)
        assert length(16, 50) == pytest.approx(20 * one, rel=1e-9)


def test_default_step_length_does_the_same_in_any_number_of_steps() -> None:
    """What the gradient adds to the hidden part of a correlated vector, in 50 and in 400 steps.

    With one length for both it would be eight times as much in 400.
    """
    place = torch.arange(16, dtype=torch.float64)
    covariance = torch.exp(-(place[:, None] - place).abs() / 8)
    prior = priors.Gaussian(torch.zeros(16, dtype=torch.float64), covariance)
    seen = operators.from_matrix(torch.eye(16, dtype=torch.float64)[:6])
    y = torch.ones(1, 6, dtype=torch.float64)

    def shift(steps: int) -> Tensor:
        with_gradient, without = (
            posterior.sample(
                prior, seen, y, noise=1e-6, method=guidance.MCG(scale=scale), steps=steps, n=1024
            ).draws.mean(0)[0]
            for scale in (None, 0)
        )
        return (with_gradient - without)[6:]

    few, many = shift(50), shift(400)
    assert float(few @ many / many.norm() / few.norm()) > 0.98
    assert float(few.norm() / many.norm()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("form", ["poisson", "poisson-code"])
def test_default_step_length_for_counts(form: Likelihood) -> None:
    """0.3 of that of "norm", as published."""
    prior = priors.Gaussian(torch.zeros(16, dtype=torch.float64), 1.0, schedule=EDM())
    step = Step(0, 50, prior.schedule.level_of_ratio(0.9), prior.schedule.level_of_ratio(0.6))
    x_t = torch.ones(1, 16, dtype=torch.float64)
    identity = operators.from_matrix(torch.eye(16, dtype=torch.float64))
    setup = Problem(prior, identity, x_t / 2, PoissonNoise(1.0, low=-1.0, peak=100))
    states = [
        one_step(guidance.DPS(likelihood=form, scale=scale), setup, step, x_t)["x"]
        for scale in (None, 0.3 * 40 * (16 / 196608) ** 0.5)
    ]
    torch.testing.assert_close(*states)


def test_gaussian_form_weighs_entries_by_their_variance() -> None:
    """With A = I and an isotropic prior: one step along N^-1 r, or along (N + v I)^-1 r."""
    schedule = EDM()
    prior = priors.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0, schedule=schedule)
    step = Step(0, 10, schedule.level_of_ratio(0.5), schedule.level_of_ratio(0.3))
    x_t = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    std = torch.tensor([[0.2, 0.6]], dtype=torch.float64)
    y = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    identity = operators.from_matrix(torch.eye(2, dtype=torch.float64))
    setup = Problem(prior, identity, y, GaussianNoise(std))
    c, v = 0.25 / 1.25, 1 / (1 / 0.2**2 + 1 / 0.5**2)
    r = y - x_t / 1.25
    for inner_steps, w in ((0, r / std**2), (10, r / (std**2 + v))):
        out = one_step(guidance.DPS(inner_steps=inner_steps), setup, step, x_t)
        length = (r * w).sum() / (w * (std**2 + c) * w).sum()
        torch.testing.assert_close(out["x0"], x_t / 1.25 + length * c * w, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "noise", "message"),
    [
        (guidance.DPS(), GaussianNoise(torch.tensor([[[[0.0, 1.0]] * 2]])), "every entry"),
        (guidance.DPS(likelihood="poisson"), GaussianNoise(0.1), "PoissonNoise"),
    ],
)
def test_noise_model_that_the_form_cannot_use(
    method: guidance.DPS, noise: object, message: str
) -> None:
    prior = priors.Gaussian(torch.zeros(1, 2, 2), 1.0)
    with pytest.raises(CapabilityError, match=message):
        posterior.sample(prior, operators.Identity(), torch.zeros(1, 1, 2, 2), noise=noise,
                         method=method)  # fmt: skip
    assert prior.counts.nfe == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": -1.0},
        {"scale": float("nan")},
        {"scale": "1"},
        {"likelihood": "gausian"},
        {"spacing": "karas"},
        {"spacing": 5},
        {"default_steps": "5"},
        {"default_steps": 1.5},
        {"transition": "ddim"},
        {"transition": None},
    ],
    ids=repr,
)
def test_bad_settings_are_refused_at_construction(arguments: dict) -> None:
    with pytest.raises(PosteriorError):
        guidance.DPS(**arguments)
