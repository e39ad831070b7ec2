"""Time grids: the levels that a run visits, from noisy to clean.

Every grid has `steps` noisy levels and ends at the clean one, so a run makes `steps` moves.
uniform, leading and trailing are spacings in t (Lin et al. 2024, table 2, for the discrete ones);
karras and log_ratio are spacings in r = sigma / alpha (Karras et al. 2022, eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from posterior.errors import InputError, InputTypeError, unknown_name
from posterior.schedules import CLEAN, Discrete, Level, Schedule

Grid = list[Level]

# Noise below 0.002 is invisible in [-1, 1]; above 80 nothing of the image is left.
SMALL, LARGE = 0.002, 80.0


def uniform(schedule: Schedule, steps: int) -> Grid:
    """Evenly spaced t: 1, ..., 1/steps; for a table, evenly from its last index to its first."""
    if isinstance(schedule, Discrete):
        n = _length(schedule, steps)
        gap = (n - 1) / max(steps - 1, 1)
        return _of_times(schedule, [(n - round(k * gap)) / n for k in range(steps)])
    return _of_times(schedule, [1 - k / steps for k in range(steps)])


def trailing(schedule: Schedule, steps: int) -> Grid:
    """From t = 1 down in strides of N / steps, so that the noisiest level is always visited."""
    n = _length(schedule, steps)
    return _of_times(schedule, [round(n - k * n / steps) / n for k in range(steps)])


def leading(schedule: Schedule, steps: int) -> Grid:
    """Indices 0, N//steps, 2 N//steps, ...: never visits the noisiest level."""
    n = _length(schedule, steps)
    return _of_times(schedule, [(k * (n // steps) + 1) / n for k in reversed(range(steps))])


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> Grid:
    """r^(1/rho) evenly spaced between the ends of the schedule's range."""
    low, high = (r ** (1 / rho) for r in _ends(schedule))
    return _of_ratios(schedule, [(high + f * (low - high)) ** rho for f in _fractions(steps)])


def log_ratio(schedule: Schedule, steps: int) -> Grid:
    """Log r evenly spaced between the ends of the schedule's range."""
    low, high = (math.log(r) for r in _ends(schedule))
    return _of_ratios(schedule, [math.exp(high + f * (low - high)) for f in _fractions(steps)])


NAMES: dict[str, Callable[[Schedule, int], Grid]] = {
    "uniform": uniform,
    "leading": leading,
    "trailing": trailing,
    "karras": karras,
    "log_ratio": log_ratio,
}


def named(name: str, schedule: Schedule, steps: int) -> Grid:
    """The grid of that name."""
    if name not in NAMES:
        raise unknown_name("grid", name, NAMES)
    return NAMES[name](schedule, steps)


def descent(schedule: Schedule, t: Level, end: float, moves: int, rho: float = 7.0) -> Grid:
    """From t down to sigma / alpha = end in `moves` moves, even in r^(1/rho), for an inner ODE.

    end = 0 is the clean level; a t that is not noisier than `end` goes there at once.
    """
    low, high = schedule.ratio_range
    end = max(end, low) if end > 0 else 0.0
    if t.ratio <= end:
        return [t, CLEAN]
    # a ratio that is infinite at t, alpha = 0, leaves the spacing of the rest to a large one
    a, b = min(t.ratio, high if math.isfinite(high) else 1e4) ** (1 / rho), end ** (1 / rho)
    ratios = [(a + k / moves * (b - a)) ** rho for k in range(1, moves)]
    last = schedule.level_of_ratio(end) if end > 0 else CLEAN
    return [t, *(schedule.level_of_ratio(max(r, low)) for r in ratios), last]


def of_ratios(schedule: Schedule, ratios: Sequence[float]) -> tuple[Grid, str]:
    """Levels at the given sigma / alpha, clipped to the schedule's range; and what was clipped."""
    low, high = schedule.ratio_range
    clipped = [r if r == 0 else min(max(r, low), high) for r in ratios]
    moved = sum(a != b for a, b in zip(ratios, clipped, strict=True))
    kept = [r for k, r in enumerate(clipped) if k == 0 or r != clipped[k - 1]]
    note = f"{moved} of {len(ratios)} levels clipped to [{low:.4g}, {high:.4g}]" if moved else ""
    return [schedule.level_of_ratio(r) for r in kept], note


def check(levels: object, schedule: Schedule) -> Grid:
    """A grid given by the caller: levels (t, alpha, sigma) of the schedule, noise first."""
    try:
        grid = [Level(*map(float, level)) for level in levels]  # type: ignore[attr-defined]  # in try
    except (TypeError, ValueError):
        raise InputTypeError("a grid is a name or a list of (t, alpha, sigma)") from None
    if len(grid) < 2:
        raise InputError("a grid needs at least two levels (noisy and clean)")
    for level in grid:
        if not 0 <= level.t <= 1:
            raise InputError(f"not a noise level (t, alpha, sigma): {tuple(level)}")
        known = schedule.level(level.t)
        if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(level, known, strict=True)):
            raise InputError(
                f"level {tuple(level)} is not one of {schedule}, which has {tuple(known)} at that t"
            )
    if any(level.sigma == 0 for level in grid[:-1]):
        raise InputError("a grid must begin with noise: only its last level may be clean")
    return grid


def with_signal(levels: Sequence[Level], schedule: Schedule) -> Grid:
    """The grid with its first level, of noise alone, moved to where alpha > 0."""
    ratio = max(LARGE, 2 * levels[1].ratio)
    return [schedule.level_of_ratio(ratio), *levels[1:]]


def _length(schedule: Schedule, steps: int) -> int:
    """N of a table; a continuous schedule has as fine a table as the strides need."""
    n = len(schedule) if isinstance(schedule, Discrete) else 1000 * steps
    if steps > n:
        raise InputError(f"{steps} steps on a schedule of {n} levels: ask for at most {n}")
    return n


def _ends(schedule: Schedule) -> tuple[float, float]:
    low, high = schedule.ratio_range
    low = low if low > 0 else min(SMALL, high / 2)
    if math.isinf(high) and isinstance(schedule, Discrete):  # nothing between the last two entries
        return low, schedule.level((len(schedule) - 1) / len(schedule)).ratio
    return low, (high if math.isfinite(high) else max(LARGE, 2 * low))


def _fractions(steps: int) -> list[float]:
    return [k / max(steps - 1, 1) for k in range(steps)]


def _of_times(schedule: Schedule, times: Sequence[float]) -> Grid:
    return [schedule.level(t) for t in times] + [CLEAN]


def _of_ratios(schedule: Schedule, ratios: Sequence[float]) -> Grid:
    low, high = schedule.ratio_range
    grid = [schedule.level_of_ratio(min(max(r, low), high)) for r in ratios]
    if math.isinf(high):  # begin where there is nothing but noise
        grid[0] = schedule.level(1.0)
    return [*grid, CLEAN]
