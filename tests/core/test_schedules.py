"""Schedules: inverse, limits, derivative, tables."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posterior.errors import InputError, InputTypeError
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
    VPScaledLinear,
)

CONTINUOUS = [
    VPLinear(), VPLinear(0.5, 0.5), VPScaledLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(),
    RectifiedFlow(3.0),
]  # fmt: skip
TABLES = [Discrete.linear(), Discrete.scaled_linear(), Discrete.cosine(100), Discrete.linear(20)]
EVERY = CONTINUOUS + TABLES


def ends(schedule: Schedule) -> tuple[float, float]:
    low, high = schedule.ratio_range
    return max(low, 1e-4), min(high, 1e4)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(part=st.floats(0, 1))
def test_time_of_ratio_inverts(schedule: Schedule, part: float) -> None:
    """Relative error of the ratio. The cosine's cos(angle) near pi / 2 loses digits like r eps."""
    low, high = ends(schedule)
    ratio = low ** (1 - part) * high**part
    level = schedule.level_of_ratio(ratio)
    slack = 1e-11 + 1e-15 * ratio if ratio > 1e-3 else 1e-9
    if isinstance(schedule, Discrete):
        slack = 1e-8  # times within 1e-9 of an entry are the entry
    assert level.ratio == pytest.approx(ratio, rel=slack)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_ratio_of_time_inverts(schedule: Schedule) -> None:
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    if isinstance(schedule, Discrete):
        t = t[t > 1 / len(schedule)]
    alpha, sigma = schedule(t)
    assert torch.allclose(schedule.time_of_ratio(sigma / alpha), t, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_ends_and_range(schedule: Schedule) -> None:
    assert schedule.level(0.0) == CLEAN
    assert schedule.time_of_ratio(0.0) == 0.0
    assert schedule.level_of_ratio(0.0).ratio == 0.0
    low, high = schedule.ratio_range
    assert schedule.time_of_ratio(high) == pytest.approx(1.0)
    if math.isinf(high):
        assert schedule(1.0)[0] == 0.0
        assert schedule.level(1.0).ratio == math.inf
    else:
        with pytest.raises(InputError, match="covers"):
            schedule.time_of_ratio(high * 1.01)
    if low > 0:
        with pytest.raises(InputError, match="covers"):
            schedule.time_of_ratio(low * 0.99)
    for bad in (-1e-9, 1.0001, math.nan):
        with pytest.raises(InputError):
            schedule(bad)
    with pytest.raises(InputTypeError, match="t must be a number"):
        schedule("late")
    with pytest.raises(InputError):
        schedule.time_of_ratio(-1.0)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_monotone_and_of_its_kind(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert bool((sigma[1:] * alpha[:-1] >= sigma[:-1] * alpha[1:]).all())
    if isinstance(schedule, RectifiedFlow):
        assert torch.allclose(alpha + sigma, torch.ones_like(t), atol=1e-15)
    elif isinstance(schedule, (VE, EDM)):
        assert torch.equal(alpha, torch.ones_like(t))
    else:
        assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), atol=1e-14)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_floats_and_tensors_agree_and_places_do_not_matter(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = schedule(t)
    for k in (0, 1, 17, 50, 99, 100):
        assert schedule(float(t[k])) == (float(alpha[k]), float(sigma[k]))
    some = schedule(t[13:30].clone())
    assert torch.equal(some[0], alpha[13:30])
    assert torch.equal(some[1], sigma[13:30])


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_derivative(schedule: Schedule) -> None:
    """Central differences, error h^2 f''' / 6: inside a cell of a table."""
    h = 1e-5
    n = len(schedule) if isinstance(schedule, Discrete) else 1
    times = [(k + 0.5) / n for k in (n // 5, n // 2, 9 * n // 10)] if n > 1 else [0.1, 0.4, 0.9]
    h = h / n
    for t in times:
        for k in (0, 1):
            exact = float(schedule.derivative(t)[k])
            numeric = (schedule(t + h)[k] - schedule(t - h)[k]) / (2 * h)
            assert numeric == pytest.approx(exact, rel=1e-5, abs=1e-6)


def test_derivative_at_the_entries_of_a_table_and_at_the_ends() -> None:
    table = Discrete.linear(100)
    at, after = table.derivative(0.5), table.derivative(0.5 + 1e-7)
    assert float(at[0]) == pytest.approx(float(after[0]), rel=1e-4)
    assert float(at[0]) < 0 < float(at[1])
    last = table.derivative(1.0)
    assert float(last[0]) < 0
    cosine, h = VPCosine(), 1e-7
    slope = (cosine(1.0)[0] - cosine(1.0 - h)[0]) / h
    assert float(cosine.derivative(1.0)[0]) == pytest.approx(slope, rel=1e-5)


def test_tables_are_their_formulas() -> None:
    """Ho et al. 2020; Rombach et al. 2022; Nichol & Dhariwal 2021, eq. 17."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    i = torch.arange(1000, dtype=torch.float64)
    alpha, sigma = Discrete.linear()((i + 1) / 1000)
    assert torch.allclose(alpha**2, torch.cumprod(1 - betas, 0), rtol=1e-12)
    assert torch.allclose(sigma**2, 1 - torch.cumprod(1 - betas, 0), rtol=1e-11)

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha, _ = Discrete.scaled_linear()((i + 1) / 1000)
    assert torch.allclose(alpha**2, torch.cumprod(1 - betas, 0), rtol=1e-12)

    def f(u: torch.Tensor) -> torch.Tensor:
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = (1 - f((i + 1) / 1000) / f(i / 1000)).clamp(max=0.999)
    alpha, _ = Discrete.cosine()((i + 1) / 1000)
    assert torch.allclose(alpha**2, torch.cumprod(1 - betas, 0), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("table", TABLES, ids=repr)
def test_entries_of_a_table_are_exact(table: Discrete) -> None:
    for i in range(len(table)):
        alpha, sigma = table((i + 1) / len(table))
        assert alpha**2 == pytest.approx(table.alphas_cumprod[i], rel=1e-13)
        assert sigma**2 == pytest.approx(1 - table.alphas_cumprod[i], rel=1e-11)
        assert float(
            table.index(torch.tensor((i + 1) / len(table), dtype=torch.float64))
        ) == pytest.approx(i)


def test_continuous_limits_of_the_tables() -> None:
    """Differ by O(1 / N): beta_max / N at most."""
    for table, limit in [
        (Discrete.linear(), VPLinear()),
        (Discrete.scaled_linear(), VPScaledLinear()),
    ]:
        for t in (0.1, 0.5, 0.9):
            assert table(t)[0] == pytest.approx(limit(t)[0], rel=0.05)


def test_zero_terminal_snr() -> None:
    table = Discrete((0.9, 0.5, 0.1, 0.0))
    assert table(1.0) == (0.0, 1.0)
    assert table.level(1.0).ratio == math.inf
    assert table.time_of_ratio(math.inf) == 1.0
    alpha, _ = table(0.75)
    assert alpha**2 == pytest.approx(0.1)
    assert table(0.9) == table(0.75)  # nothing is known between: the level stays


@pytest.mark.parametrize(
    "make",
    [
        lambda: VPLinear(0.0, 20.0),
        lambda: VPLinear(20.0, 0.1),
        lambda: VPScaledLinear(1.0, 1.0),
        lambda: VPCosine(0.0),
        lambda: VE(0.0, 1.0),
        lambda: EDM(2.0, 1.0),
        lambda: RectifiedFlow(0.0),
        lambda: Discrete((0.5,)),
        lambda: Discrete((0.5, 0.6)),
        lambda: Discrete((1.0, 0.5)),
        lambda: Discrete((0.5, -0.1)),
    ],
)
def test_impossible_schedules_are_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]


def test_published_values() -> None:
    """EDM, eq. 5 with N = 18: sigma_0 = 80, sigma_17 = 0.002; r of the flow is t / (1 - t)."""
    assert EDM()(1.0)[1] == pytest.approx(80)
    assert EDM()(1e-300)[1] == pytest.approx(0.002)
    middle = (80 ** (1 / 7) + 8 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert EDM()(1 - 8 / 17)[1] == pytest.approx(middle, rel=1e-12)
    assert RectifiedFlow().level(0.25) == Level(0.25, 0.75, 0.25)
    shift, t = 3.0, 0.4
    u = shift * t / (1 + (shift - 1) * t)
    assert RectifiedFlow(shift)(t) == pytest.approx((1 - u, u))
