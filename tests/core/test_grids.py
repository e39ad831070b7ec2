"""Time grids: ends, monotone, counts, and the published definitions written out."""

import itertools
import math

import numpy as np
import pytest
import torch

from posterior import grids
from posterior.errors import InputError
from posterior.schedules import CLEAN, EDM, VE, Discrete, Level, RectifiedFlow, VPCosine, VPLinear

SCHEDULES = [
    VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(), RectifiedFlow(3.0), Discrete.linear(),
    Discrete((0.9, 0.8, 0.5, 0.2, 0.1, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", sorted(grids.NAMES))
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_every_grid_falls_from_noise_to_clean(name: str, steps: int, schedule: object) -> None:
    grid = grids.named(name, schedule, steps)
    assert len(grid) == steps + 1
    assert grid[-1] == CLEAN
    ratios = [level.ratio for level in grid]
    assert all(a > b for a, b in itertools.pairwise(ratios))
    assert ratios[-2] > 0, "the last noisy level is noisy"
    if name in ("uniform", "trailing"):
        assert grid[0].t == 1.0
    if name in ("karras", "log_ratio") and steps > 1:
        low, high = schedule.ratio_range
        assert ratios[0] == pytest.approx(high) if math.isfinite(high) else ratios[0] == math.inf
        assert ratios[-2] == pytest.approx(low or grids.SMALL)
    assert grids.check(grid, schedule) == grid


def test_karras_formula() -> None:
    """Karras et al. 2022, eq. 5."""
    n, rho = 18, 7
    expected = [
        (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        for i in range(n)
    ]
    got = [level.sigma for level in grids.karras(EDM(), n)[:-1]]
    assert np.allclose(got, expected, rtol=1e-10)


def test_log_ratio_is_even_in_the_logarithm() -> None:
    logs = [math.log(level.ratio) for level in grids.log_ratio(VE(), 12)[:-1]]
    assert np.allclose(np.diff(logs), math.log(0.01 / 50) / 11)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 33, 50, 999, 1000])
def test_leading_and_trailing_as_diffusers_define_them(steps: int) -> None:
    """Indices arange(steps) * (N // steps) reversed, and round(arange(N, 0, -N / steps)) - 1."""
    n = 1000
    table = Discrete.linear(n)
    leading = (np.arange(steps) * (n // steps)).round()[::-1]
    trailing = np.round(np.arange(n, 0, -n / steps))[:steps] - 1
    for grid, indices in [
        (grids.leading(table, steps), leading),
        (grids.trailing(table, steps), trailing),
    ]:
        t = torch.tensor([level.t for level in grid[:-1]], dtype=torch.float64)
        assert np.allclose(table.index(t).numpy(), indices, atol=1e-9)


def test_uniform_visits_both_ends_of_a_table() -> None:
    grid = grids.uniform(Discrete.linear(1000), 10)
    assert (grid[0].t, grid[-2].t) == (1.0, 1 / 1000)
    assert [level.t for level in grids.uniform(VPLinear(), 4)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_given_ratios_are_clipped_and_reported() -> None:
    grid, note = grids.of_ratios(EDM(), [1000.0, 100.0, 1.0, 1e-4, 0.0])
    assert [level.ratio for level in grid] == pytest.approx([80, 1, 0.002, 0])
    assert note.startswith("3 of 5")
    assert grids.of_ratios(EDM(), [1.0, 2.0, 0.0])[1] == ""


def test_bad_grids_are_refused() -> None:
    with pytest.raises(InputError, match="karras"):
        grids.named("karas", VE(), 5)
    with pytest.raises(InputError, match="at most 20"):
        grids.trailing(Discrete.linear(20), 21)
    with pytest.raises(InputError, match="at most 20"):
        grids.uniform(Discrete.linear(20), 21)
    for bad in (
        [CLEAN],
        [Level(0.5, math.nan, 1.0), CLEAN],
        [Level(2.0, 1.0, 1.0), CLEAN],
        [Level(0.5, -1.0, 1.0), CLEAN],
        [Level(0.5, 0.0, 0.0), CLEAN],
        [Level(0.5, 1.0, 2.0), CLEAN],  # another schedule's level at that time
    ):
        with pytest.raises(InputError):
            grids.check(bad, VE())
