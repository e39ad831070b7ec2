"""Step rules: textbook forms, preserved marginals, invariance of the law, convergence orders."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from posterior import grids
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Estimate
from posterior.schedules import (
    CLEAN,
    EDM,
    VE,
    Discrete,
    Level,
    RectifiedFlow,
    Schedule,
    VPCosine,
    VPLinear,
)
from posterior.transitions import (
    DDIM,
    DDPM,
    Before,
    DPMSolver2M,
    Euler,
    Heun,
    LearnedVariance,
    Renoise,
    Transition,
    fresh_noise,
    move,
    ode_estimate,
)

SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(), Discrete.linear()]
RULES: list[Transition] = [
    DDPM,
    DDIM(0.5),
    Euler,
    Renoise(),
    Heun(),
    DPMSolver2M(),
    DPMSolver2M(4.0),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw(name: str) -> Tensor:
    return normal(4, 3, seed=9)


def standard(schedule: Schedule, variance: float = 1.0) -> Callable[[Tensor, float], Estimate]:
    """The exact prior N(0, variance)."""

    def denoiser(x: Tensor, t: float) -> Estimate:
        alpha, sigma = schedule(t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return Estimate(x, t, schedule, gain * x)

    return denoiser


def two_levels(schedule: Schedule) -> tuple[Level, Level]:
    return schedule.level(0.8), schedule.level(0.6)


def test_eta_one_is_ancestral_ddpm_in_its_textbook_form() -> None:
    """Ho et al. 2020, eq. 6 and 7, over one step of the table and over a stride."""
    table = Discrete.linear(100)
    x_t, x0 = normal(4, 3), normal(4, 3, seed=1)
    for i, j in [(60, 59), (60, 40), (1, 0)]:
        t, s = table.level((i + 1) / 100), table.level((j + 1) / 100)
        abar_t, abar_s = table.alphas_cumprod[i], table.alphas_cumprod[j]
        beta = 1 - abar_t / abar_s
        mean = abar_s**0.5 * beta / (1 - abar_t) * x0
        mean = mean + (1 - beta) ** 0.5 * (1 - abar_s) / (1 - abar_t) * x_t
        variance = beta * (1 - abar_s) / (1 - abar_t)
        got = DDPM(Estimate(x_t, t.t, table, x0), t, s, draw, standard(table))
        assert torch.allclose(got, mean + variance**0.5 * draw("move"), rtol=1e-10, atol=1e-12)
        assert fresh_noise(t, s) ** 2 == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_ddim_as_in_its_paper(schedule: Schedule) -> None:
    """Song et al. 2021a, eq. 12 and 16, with its alpha (ours squared), for VP; eta = 0."""
    t, s = two_levels(schedule)
    x_t, x0 = normal(4, 3), normal(4, 3, seed=1)
    estimate = Estimate(x_t, t.t, schedule, x0)
    euler = s.alpha * (x_t / t.alpha + (s.ratio - t.ratio) * estimate.eps)
    got = Euler(estimate, t, s, draw, standard(schedule))
    assert torch.allclose(got, euler, rtol=1e-10, atol=1e-10)
    if isinstance(schedule, (VPLinear, VPCosine, Discrete)):
        a_t, a_s, eta = t.alpha**2, s.alpha**2, 0.7
        sigma = eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)
        paper = a_s**0.5 * x0 + math.sqrt(1 - a_s - sigma**2) * estimate.eps + sigma * draw("move")
        got = DDIM(eta)(estimate, t, s, draw, standard(schedule))
        assert torch.allclose(got, paper, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("c_of", [0.0, 0.3, 1.0])
def test_true_x0_and_eps_keep_the_marginal(schedule: Schedule, c_of: float) -> None:
    """With x0 and eps the truth, mean alpha_s x0 and variance sigma_s^2, from the coefficients."""
    _, s = two_levels(schedule)
    c = c_of * s.sigma
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    on_x0 = float(move(one, zero, s, c, zero))
    on_eps = float(move(zero, one, s, c, zero))
    on_z = float(move(zero, zero, s, c, one))
    assert on_x0 == s.alpha
    assert on_eps**2 + on_z**2 == pytest.approx(s.sigma**2, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_point_mass_prior_keeps_its_marginal_exactly(schedule: Schedule, eta: float) -> None:
    """For x0 = m the estimate is the truth, and N(alpha m, sigma^2) goes to itself.

    One step is affine in (x_t, z): its coefficients give mean and variance in closed form.
    """
    t, s = two_levels(schedule)
    m = 1.7

    def step(x: float, z: float) -> float:
        x_t = torch.full((1, 1), x, dtype=torch.float64)
        estimate = Estimate(x_t, t.t, schedule, torch.full_like(x_t, m))
        return float(DDIM(eta)(estimate, t, s, lambda _: torch.full_like(x_t, z), None))  # type: ignore[arg-type]

    base = step(t.alpha * m, 0.0)
    on_x = step(t.alpha * m + 1, 0.0) - base
    on_z = step(t.alpha * m, 1.0) - base
    assert base == pytest.approx(s.alpha * m, rel=1e-9)
    assert on_x**2 * t.sigma**2 + on_z**2 == pytest.approx(s.sigma**2, rel=1e-9)


def test_small_steps_keep_the_marginal_of_a_gaussian_to_second_order() -> None:
    """Variance 2 under VP: the error of one step falls as h^2 for every eta (fitted slope)."""
    schedule, variance = VPLinear(), 2.0

    def error(h: float, eta: float) -> float:
        t, s = schedule.level(0.5), schedule.level(0.5 - h)
        denoiser = standard(schedule, variance)
        one = torch.ones(1, 1, dtype=torch.float64)
        on_x = float(DDIM(eta)(denoiser(one, t.t), t, s, lambda _: 0 * one, denoiser))
        on_z = float(DDIM(eta)(denoiser(0 * one, t.t), t, s, lambda _: one, denoiser))
        before = t.alpha**2 * variance + t.sigma**2
        after = s.alpha**2 * variance + s.sigma**2
        return abs(on_x**2 * before + on_z**2 - after)

    steps = np.array([0.04, 0.02, 0.01, 0.005])
    for eta in (0.0, 0.5, 1.0):
        slope = np.polyfit(np.log(steps), np.log([error(h, eta) for h in steps]), 1)[0]
        assert slope == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(("i", "j"), [(59, 58), (59, 49), (1, 0)])
def test_learned_variance_interpolates_between_beta_and_beta_tilde(i: int, j: int) -> None:
    """By the betas of the table, strided from index i to j: beta = 1 - abar_i / abar_j."""
    table = Discrete.linear(100)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64), 0)
    beta = 1 - abar[i] / abar[j]
    small = beta * (1 - abar[j]) / (1 - abar[i])
    t, s = table.level((i + 1) / 100), table.level((j + 1) / 100)
    x_t, x0 = normal(4, 3), normal(4, 3, seed=1)
    mean = DDPM(Estimate(x_t, t.t, table, x0), t, s, draw, standard(table)) - small**0.5 * draw("z")
    for u, variance in [(-1.0, small), (1.0, beta), (0.0, (beta * small) ** 0.5)]:
        estimate = Estimate(x_t, t.t, table, x0, variance_share=torch.full_like(x0, u))
        got = LearnedVariance()(estimate, t, s, draw, standard(table))
        assert torch.allclose(got, mean + variance**0.5 * draw("z"), rtol=1e-9)


def test_learned_variance_that_is_not_there() -> None:
    table = Discrete.linear(100)
    t, s = table.level(0.6), table.level(0.59)
    plain = Estimate(normal(4, 3), t.t, table, normal(4, 3, seed=1))
    with pytest.raises(CapabilityError, match="no learned variance"):
        LearnedVariance()(plain, t, s, draw, standard(table))
    got = LearnedVariance(required=False)(plain, t, s, draw, standard(table))
    assert torch.equal(got, DDPM(plain, t, s, draw, standard(table)))


def test_renoise_forgets_eps() -> None:
    t, s = two_levels(EDM())
    x0 = normal(4, 3)
    for x_t in (normal(4, 3, seed=1), normal(4, 3, seed=2)):
        got = Renoise()(Estimate(x_t, t.t, EDM(), x0), t, s, draw, standard(EDM()))
        assert torch.equal(got, s.alpha * x0 + s.sigma * draw("move"))


@pytest.mark.parametrize("rule", [*RULES, LearnedVariance()], ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_last_step_returns_the_estimate_without_noise(rule: Transition, schedule: Schedule) -> None:
    t = schedule.level(0.1)
    x0 = normal(4, 3)
    estimate = Estimate(normal(4, 3, seed=1), t.t, schedule, x0, variance_share=x0.tanh())

    def refuse(name: str) -> Tensor:
        raise AssertionError("no noise is drawn on the way to the clean level")

    assert torch.equal(rule(estimate, t, CLEAN, refuse, standard(schedule)), x0)


def test_cfg_plus_plus_renoises_with_the_other_eps() -> None:
    t, s = two_levels(EDM())
    x0, other = normal(4, 3), normal(4, 3, seed=3)
    estimate = Estimate(normal(4, 3, seed=1), t.t, EDM(), x0, renoise=other)
    got = Euler(estimate, t, s, draw, standard(EDM()))
    assert torch.allclose(got, s.alpha * x0 + s.sigma * other)


def test_steps_upwards_draw_no_noise() -> None:
    """Inversion: up and down again over the same eps is the identity."""
    schedule = VPLinear()
    s, t = two_levels(schedule)
    assert fresh_noise(t, s, 1.0) == 0.0
    x0, eps = normal(4, 3), normal(4, 3, seed=1)
    x_t = t.alpha * x0 + t.sigma * eps
    up = DDPM(Estimate(x_t, t.t, schedule, x0), t, s, draw, standard(schedule))
    assert torch.allclose(up, s.alpha * x0 + s.sigma * eps)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError):
            DDIM(bad)
    for bad in (-0.1, math.inf, math.nan):
        with pytest.raises(InputError, match="eta must be >= 0 and finite"):
            DPMSolver2M(bad)


@pytest.mark.parametrize("eta", ["1", None, [1.0], True])
@pytest.mark.parametrize("rule", [DDIM, Renoise, DPMSolver2M])
def test_eta_is_a_number(rule: type[DDIM | Renoise | DPMSolver2M], eta: object) -> None:
    with pytest.raises(InputTypeError, match="eta must be a number"):
        rule(eta)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize(
    "schedule", [VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow()], ids=repr
)
@pytest.mark.parametrize(("rule", "order"), [(Euler, 1), (Heun(), 2)])
def test_convergence_order(schedule: Schedule, rule: Transition, order: int) -> None:
    """x~ = x / alpha of N(0, v): dx~/dr = r x~ / (v + r^2), so x~ goes like sqrt(v + r^2).

    The slope of the final error against the number of steps, fitted over 32 to 256.
    """
    variance, top, bottom = 0.7, 20.0, 0.5

    def error(steps: int) -> float:
        ratios = [top * (bottom / top) ** (k / steps) for k in range(steps + 1)]
        levels = [schedule.level_of_ratio(r) for r in ratios]
        x = torch.full((1, 1), levels[0].alpha * 3.0, dtype=torch.float64)
        got = float(ode_estimate(x, levels, standard(schedule, variance), rule)) / levels[-1].alpha
        exact = 3.0 * math.sqrt((variance + bottom**2) / (variance + top**2))
        return abs(got - exact)

    steps = [32, 64, 128, 256]
    slope = np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]
    assert slope == pytest.approx(-order, abs=0.12)


def test_ode_estimate_is_deterministic_only() -> None:
    levels = grids.karras(EDM(), 5)
    x = normal(2, 3)
    assert ode_estimate(x, levels, standard(EDM()), Heun()).shape == x.shape
    with pytest.raises(CapabilityError, match="Euler or Heun"):
        ode_estimate(x, levels, standard(EDM()), DDPM)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_vp_ve_and_flow_agree(rule: Transition) -> None:
    """One diffusion up to scaling: the same ratios and noise give the same clean x, to 1e-12."""
    ratios = [40.0 * 0.7**k for k in range(22)]
    noise = [normal(4, 3, seed=k) for k in range(len(ratios) + 1)]
    results = []
    for schedule in (VE(), EDM(), VPLinear(), VPCosine(), RectifiedFlow(), RectifiedFlow(3.0)):
        levels = [schedule.level_of_ratio(r) for r in ratios] + [CLEAN]
        denoiser = standard(schedule, 0.6)
        x = levels[0].alpha * levels[0].ratio * noise[-1]
        before = None
        for k, (t, s) in enumerate(itertools.pairwise(levels)):
            estimate = denoiser(x, t.t)
            x = rule(estimate, t, s, lambda _, k=k: noise[k], denoiser, before)
            before = Before(estimate.x0, t)
        results.append(x)
    for other in results[1:]:
        assert torch.allclose(other, results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("middle", [0.7, 0.8])
def test_second_order_step_by_its_equations(schedule: Schedule, eta: float, middle: float) -> None:
    """Lu et al. 2022, with lambda = log(alpha / sigma); first order with no move before it."""
    levels = [schedule.level(t) for t in (0.9, middle, 0.6)]
    before, t, s = levels
    lam = [math.log(level.alpha / level.sigma) for level in levels]
    h_before, h = lam[1] - lam[0], lam[2] - lam[1]
    x_t, x0, older = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    estimate = Estimate(x_t, t.t, schedule, x0)
    rule = DPMSolver2M(eta)
    for last, extrapolated in (
        (None, x0),
        (Before(older, before), x0 + min(h / h_before, 1) / 2 * (x0 - older)),
    ):
        expected = (
            s.sigma / t.sigma * math.exp(-eta * h) * x_t
            + s.alpha * (1 - math.exp(-(1 + eta) * h)) * extrapolated
            + s.sigma * math.sqrt(1 - math.exp(-2 * eta * h)) * draw("move")
        )
        got = rule(estimate, t, s, draw, standard(schedule), last)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    if eta in (0.0, 1.0):  # where both are the textbook's
        first = DDIM(eta)(estimate, t, s, draw, standard(schedule))
        torch.testing.assert_close(rule(estimate, t, s, draw, standard(schedule)), first)


def test_second_order_step_from_pure_noise() -> None:
    """alpha = 0 lies infinitely far: there is nothing to extrapolate from."""
    flow = RectifiedFlow()
    t, s = flow.level(0.8), flow.level(0.6)
    x0 = normal(4, 3)
    estimate = Estimate(normal(4, 3, seed=1), t.t, flow, x0)
    rule, far = DPMSolver2M(), Before(normal(4, 3, seed=2), flow.level(1.0))
    alone = rule(estimate, t, s, draw, standard(flow))
    assert torch.equal(rule(estimate, t, s, draw, standard(flow), far), alone)
    for eta in (0.0, 1.0):
        start = Estimate(normal(4, 3, seed=1), 1.0, flow, x0)
        assert DPMSolver2M(eta)(start, flow.level(1.0), t, draw, standard(flow)).isfinite().all()
