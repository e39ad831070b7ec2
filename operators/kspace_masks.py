"""Which points of k-space an accelerated Cartesian scan samples.

>>> EquispacedLines(acceleration=4)
>>> RandomLines(acceleration=8, center_fraction=0.04, seed=[0, 1, 2])
>>> PoissonDisc(acceleration=12)

k-space is centred: the zero frequency is at (H // 2, W // 2). Lines run along the height, and it is
columns that are kept or left out, as in fastMRI (Zbontar et al., arXiv 1811.08839, and its code).
With W columns, of which the L = round(W center_fraction) in the middle are always sampled (from
column (W - L + 1) // 2 on), and acceleration R:

    EquispacedLines   also column round(offset + i S), i = 0, 1, ...;  S = R (W - L) / (W - L R)
                      makes W / R columns, to one or two, and is no whole number in general
    RandomLines       also each other column with probability (W / R - L) / (W - L): W / R in the
                      mean
    PoissonDisc       round(H W / R) points, of which no two outside the middle are nearer to each
                      other than r = s rho pixels, rho the distance from the centre where the edges
                      have 1; of the two rho the smaller counts

A Poisson disc mask is a dart throw: points in random order, each kept unless it is too near to one
that was kept before, until there are enough (Cook, "Stochastic sampling in computer graphics", ACM
TOG 1986; Bridson, SIGGRAPH 2007, does about the same without a grid). The slope s is the largest
for which enough points fit, found by bisection to 1/256, so that the number of points is met
exactly; where s rho <= 1 every point is sampled.

All are masks of `operators.mask`: pure functions of (seed, size), one for all measurements or one
for each. `SubsampledFourier` and `MRI` take them as `keep=`.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.operators._rowwise import Memo, take_rows
from posterior.operators.base import check_count, check_number
from posterior.operators.mask import Masking, warn_of_few
from posterior.streams import Noise, check_seed

_CENTER = 0.32  # center_fraction times acceleration in fastMRI: 0.08 at 4, 0.04 at 8
_HALVINGS = 8  # of the interval [s, 2 s] of the slope

Self = TypeVar("Self", bound="AcceleratedMask")


@dataclass(frozen=True, eq=False, repr=False)
class AcceleratedMask(Masking):
    """Base class: acceleration, a fully sampled middle, seeds.

    Args:
        acceleration: R >= 1, all points over sampled points.
        center_fraction: the part of each axis, in [0, 1], whose middle is always sampled; at least
            one line unless it is 0. None is fastMRI's 0.32 / acceleration.
        seed: any integer; or a sequence, one for each measurement.

    Raises `InputError` where the middle alone is more than the acceleration leaves, and where
    nothing would be sampled.
    """

    acceleration: float
    center_fraction: float | None = None
    seed: int | Sequence[int] = 0
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        acceleration = check_number("acceleration", self.acceleration, 1)
        fraction = self.center_fraction
        if fraction is None:
            fraction = _CENTER / acceleration
        object.__setattr__(self, "acceleration", acceleration)
        object.__setattr__(self, "center_fraction", check_number("center_fraction", fraction, 0, 1))
        if isinstance(self.seed, Sequence):
            if not self.seed:
                raise InputError("seed: give at least one")
            object.__setattr__(self, "seed", tuple(check_seed(s) for s in self.seed))
        else:
            object.__setattr__(self, "seed", check_seed(self.seed))
        warn_of_few(self, 1 / acceleration)

    @abstractmethod
    def make(self, seed: int, height: int, width: int) -> Tensor:
        """The sampled points of one seed, bool (H, W)."""

    def pattern(self, height: int, width: int) -> Tensor:
        seeds = self.seed if isinstance(self.seed, tuple) else (self.seed,)

        def build() -> Tensor:
            masks = torch.stack([self.make(seed, height, width) for seed in seeds])[:, None]
            if not bool(masks.flatten(1).any(1).all()):
                raise InputError(f"{self!r} samples nothing of {height} x {width} points")
            return masks

        return self._memo((height, width), build)

    def take(self: Self, index: Sequence[int]) -> Self:
        if not isinstance(self.seed, tuple) or len(self.seed) == 1:
            return self
        which = take_rows(torch.arange(len(self.seed)), index).tolist()
        out = copy.copy(self)
        object.__setattr__(out, "seed", tuple(self.seed[i] for i in which))
        object.__setattr__(out, "_memo", Memo())
        return out

    def _middle(self, size: int) -> tuple[int, int]:
        """First and number of the lines of one axis that are always sampled."""
        assert self.center_fraction is not None
        count = round(size * self.center_fraction)
        if self.center_fraction > 0:
            count = max(count, 1)
        return (size - count + 1) // 2, count

    def _middle_columns(self, width: int) -> tuple[Tensor, int]:
        """The sampled columns of the middle, bool (W,), and their number."""
        first, count = self._middle(width)
        if count * self.acceleration > width:
            raise InputError(
                f"{self!r}: the {count} columns in the middle are already more than"
                f" {width} / {self.acceleration:g}: lower center_fraction"
            )
        columns = torch.zeros(width, dtype=torch.bool)
        columns[first : first + count] = True
        return columns, count


@dataclass(frozen=True, eq=False, repr=False)
class EquispacedLines(AcceleratedMask):
    """Columns at equal distances, and the middle.

    Args:
        acceleration, center_fraction, seed: see `AcceleratedMask`; the seed draws the offset.
        offset: of the first column; None draws one of 0, ..., round(S) - 1.
        exact: the distance is R itself, a whole number (GRAPPA): the middle comes on top, and more
            than W / R columns are sampled. Otherwise S, whose rounding makes distances differ by
            one, as in fastMRI's public data.
    """

    offset: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offset is not None:
            object.__setattr__(self, "offset", check_count("offset", self.offset, 0))
        if self.exact:
            check_count("the acceleration of exact=True", self.acceleration, 1)

    def make(self, seed: int, height: int, width: int) -> Tensor:
        columns, count = self._middle_columns(width)
        spacing = self.acceleration
        if not self.exact and count * self.acceleration == width:
            return columns.expand(height, width)  # the middle is all that R leaves
        if not self.exact:
            spacing *= (width - count) / (width - count * self.acceleration)
        offset = self.offset
        if offset is None:
            offset = int(_uniform(seed, "offset", 1)[0] * round(spacing))
        # the last column is left out by fastMRI's code, unless the spacing is the given one
        end = width if self.exact or self.acceleration == 1 else width - 1
        steps = max(0, math.ceil((end - offset) / spacing))
        for i in range(steps):
            columns[round(offset + i * spacing)] = True
        return columns.expand(height, width)


@dataclass(frozen=True, eq=False, repr=False)
class RandomLines(AcceleratedMask):
    """Columns at random, and the middle.

    Args:
        acceleration, center_fraction, seed: see `AcceleratedMask`.
    """

    def make(self, seed: int, height: int, width: int) -> Tensor:
        columns, count = self._middle_columns(width)
        if count < width:
            chance = (width / self.acceleration - count) / (width - count)
            columns = columns | (_uniform(seed, "lines", width) < chance)
        return columns.expand(height, width)


@dataclass(frozen=True, eq=False, repr=False)
class PoissonDisc(AcceleratedMask):
    """A variable-density Poisson disc in both directions (two phase encodings), and the middle.

    Args:
        acceleration, center_fraction, seed: see `AcceleratedMask`; the middle is a rectangle.

    The first mask of a size takes a moment, a second at 320 x 320; it is remembered.
    """

    def make(self, seed: int, height: int, width: int) -> Tensor:
        (top, h), (left, w) = self._middle(height), self._middle(width)
        count = max(1, round(height * width / self.acceleration))
        if h * w > count:
            raise InputError(
                f"{self!r}: the {h} x {w} points in the middle are already more than"
                f" {height} x {width} / {self.acceleration:g}: lower center_fraction"
            )
        return _poisson_disc(seed, height, width, count, (top, left, h, w))


def _uniform(seed: int, name: str, size: int) -> Tensor:
    """Uniform numbers in (0, 1), float64 (size,)."""
    return Noise.single(seed, (size,)).uniform(f"k-space {name}")[0]


@lru_cache(maxsize=64)
def _poisson_disc(
    seed: int, height: int, width: int, count: int, middle: tuple[int, int, int, int]
) -> Tensor:
    """`count` points: those of the middle (top, left, height, width) and the first of a throw."""
    top, left, h, w = middle
    inside = np.zeros((height, width), dtype=bool)
    inside[top : top + h, left : left + w] = True
    down = (np.arange(height) - height // 2) / max(height / 2, 1)
    across = (np.arange(width) - width // 2) / max(width / 2, 1)
    rho2 = down[:, None] ** 2 + across[None] ** 2
    order = _uniform(seed, "darts", height * width).argsort(stable=True).numpy()
    order = order[~inside.reshape(-1)[order]]
    wanted = count - h * w

    kept, low, high = _throw(order, rho2, 0.0, wanted), 0.0, 1.0
    while high <= 2 * max(height, width):
        darts = _throw(order, rho2, high, wanted)
        if len(darts) < wanted:
            break
        kept, low, high = darts, high, 2 * high
    for _ in range(_HALVINGS):
        middle_slope = (low + high) / 2
        darts = _throw(order, rho2, middle_slope, wanted)
        if len(darts) < wanted:
            high = middle_slope
        else:
            kept, low = darts, middle_slope
    inside.reshape(-1)[kept] = True
    return torch.from_numpy(inside)


def _throw(order: np.ndarray, rho2: np.ndarray, slope: float, wanted: int) -> np.ndarray:
    """The first `wanted` points, or all there are, that keep their distances: flat indices."""
    width = rho2.shape[1]
    r2 = slope * slope * rho2
    dense = (r2 <= 1).reshape(-1)[order]  # nobody keeps these at a distance
    kept = order[dense][:wanted].tolist()
    reach = math.ceil(math.sqrt(r2.max()))
    line = np.arange(-reach, reach + 1)
    d2 = line[:, None] ** 2 + line[None] ** 2
    blocked = np.zeros(rho2.shape, dtype=bool)
    is_blocked = blocked.reshape(-1).view(np.uint8).data  # faster to index than an array
    for point in order[~dense].tolist():
        if len(kept) >= wanted:
            break
        if is_blocked[point]:
            continue
        kept.append(point)
        i, j = divmod(point, width)
        own = r2[i, j]
        r = math.ceil(math.sqrt(own))
        rows, columns = slice(max(i - r, 0), i + r + 1), slice(max(j - r, 0), j + r + 1)
        others = r2[rows, columns]
        a, b = reach + rows.start - i, reach + columns.start - j
        apart = d2[a : a + others.shape[0], b : b + others.shape[1]]
        blocked[rows, columns] |= (apart < own) & (apart < others)
    return np.array(kept, dtype=np.int64)
