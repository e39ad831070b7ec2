"""What the limits of the methods are held against: paths, laws and recursions on Gaussian problems.

Three ways to know what a run must give, none of them by drawing and averaging:

    path    the states of a run with given noise; a method that is a perturbation of another is
            compared with it state by state
    law     on a Gaussian prior with linear data most methods are affine in their noises, so one run
            with a row for every noise element (a one there, zeros elsewhere) gives
            draws = mean + L z, the law of the draws itself (the idea of MGPS, arXiv 2410.09945)
    chain   the same law by a scalar recursion, written from the equations of the method's paper,
            for a white prior N(m, s^2 I) and A = I. In u = x / alpha, with r = sigma / alpha, every
            schedule is u = x0 + r eps, and a move is u' = a u + b + sqrt(q) z
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from posterior import operators, priors
from posterior.guidance.base import Guidance, State, Step
from posterior.operators.noise import GaussianNoise, NoiseModel
from posterior.problem import Problem
from posterior.schedules import Level, VPLinear
from posterior.streams import Noise

D, M = 4, 2
SCHEDULE = VPLinear()
Address = tuple[int, str, int, int]

SPREAD = 0.8
S2 = SPREAD**2  # variance of the white prior
STD = 0.5  # of the noise, unless a limit says otherwise
POSTERIOR = S2 * STD**2 / (S2 + STD**2)  # variance of the white prior's posterior with A = I


# ------------------------------------------------------------------------------------- problems


def normal(seed: int, *shape: int) -> Tensor:
    """Seeded standard normal test data, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated() -> Tensor:
    """A full covariance with eigenvalues between 0.3 and 2.4."""
    root = normal(5, D, D)
    return root @ root.T / D + 0.3 * torch.eye(D, dtype=torch.float64)


MEAN = normal(3, D)
DATA = normal(4, D)
IDENTITY = torch.eye(D, dtype=torch.float64)
ZERO = torch.zeros(M, D, dtype=torch.float64)
INVERTIBLE = IDENTITY + 0.3 * normal(7, D, D) / D**0.5  # condition number 2
ORTHONORMAL = torch.linalg.qr(normal(8, D, D)).Q
ROWS = ORTHONORMAL[:M]  # A A' = I, two directions unseen
ENTRIES = IDENTITY[::2]  # a mask
UNEVEN = torch.diag(torch.tensor([3.0, 0.3, 0.0, 0.0], dtype=torch.float64))[:M]


def measured(
    matrix: Tensor = IDENTITY,
    noise: float | NoiseModel = STD,
    covariance: Tensor | float = S2,
    y: Tensor | None = None,
) -> Problem:
    """One linear measurement of a Gaussian of mean `MEAN`."""
    prior = priors.Gaussian(MEAN, covariance, schedule=SCHEDULE)
    model = noise if isinstance(noise, NoiseModel) else GaussianNoise(noise)
    data = DATA[: len(matrix)] if y is None else y
    return Problem(prior, operators.from_matrix(matrix), data[None], model)


def exact(problem: Problem) -> priors.Gaussian:
    """The posterior of a problem, under the same schedule."""
    operator, y, model = problem.measured()
    assert isinstance(problem.prior, priors.Gaussian)
    return problem.prior.posterior(operator, y, model)


# ----------------------------------------------------------------------------------------- runs


def go(
    method: Guidance, problem: Problem, levels: Sequence[Level], noise: Noise | UnitNoise
) -> list[State]:
    """The states of a run, the first one included; rows as in the noise."""
    state = method.start(problem, levels[0], noise)  # type: ignore[arg-type]  # UnitNoise: duck
    states = [state]
    for k, (t, s) in enumerate(pairwise(levels)):
        step = Step(k, len(levels) - 1, t, s, levels[k - 1] if k > 0 else None)
        state = method.advance(problem, state, step, noise.at(k + 1))  # type: ignore[arg-type]
        states.append(state)
    return states


def stream(rows: int, particles: int = 1, seed: int = 0) -> Noise:
    """The noise of `rows` rows, in groups of `particles`."""
    return Noise(
        (seed,) * rows,
        tuple(k // particles for k in range(rows)),
        tuple(k % particles for k in range(rows)),
        (D,),
        torch.float64,
    )


def path(
    method: Guidance,
    problem: Problem,
    steps: int = 12,
    rows: int = 3,
    particles: int = 1,
    seed: int = 0,
    levels: Sequence[Level] | None = None,
) -> Tensor:
    """The x of every state, (steps + 1, rows, D)."""
    if levels is None:
        levels = method.grid(problem.prior.schedule, steps)
    states = go(method, problem.take([0] * rows), levels, stream(rows, particles, seed))
    return torch.stack([state["x"] for state in states])


@dataclass
class UnitNoise:
    """Noise whose row k is one at address k - 1 and zero elsewhere; row 0 is zero everywhere.

    Uniform numbers are the same in all rows.
    """

    addresses: list[Address]
    step: int = 0
    seen: list[Address] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._place = {address: 1 + k for k, address in enumerate(self.addresses)}

    def at(self, step: int) -> UnitNoise:
        """The same rows at another step."""
        return UnitNoise(self.addresses, step, self.seen)

    def __call__(self, name: str, j: int = 0, shape: Sequence[int] | None = None) -> Tensor:
        """(rows, *shape), and a record of the call."""
        shape = (D,) if shape is None else tuple(shape)
        size = math.prod(shape)
        out = torch.zeros(1 + len(self.addresses), size, dtype=torch.float64)
        for element in range(size):
            address = (self.step, name, j, element)
            if self.addresses:
                out[self._place[address], element] = 1
            else:
                self.seen.append(address)
        return out.reshape(-1, *shape)

    def uniform(self, name: str, j: int = 0, shape: Sequence[int] | None = None) -> Tensor:
        """(rows, *shape), all rows alike."""
        shape = (D,) if shape is None else tuple(shape)
        row = torch.rand(shape, generator=torch.Generator().manual_seed(j), dtype=torch.float64)
        return row.expand(1 + len(self.addresses), *shape)


def law(method: Guidance, problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the draws."""
    levels = method.grid(problem.prior.schedule, steps)

    def run(noise: UnitNoise) -> Tensor:
        rows = problem.take([0] * (1 + len(noise.addresses)))
        state = go(method, rows, levels, noise)[-1]
        return method.finish(rows, state, noise.at(steps + 2))  # type: ignore[arg-type]

    recorder = UnitNoise([])
    run(recorder)
    draws = run(UnitNoise(recorder.seen))
    effects = draws[1:] - draws[0]
    return draws[0], effects.T @ effects


# --------------------------------------------------------------------------------------- chains

Move = Callable[[float, float], tuple[float, "Tensor | float", float]]
"""(r, r') -> a, b, q of u' = a u + b + sqrt(q) z."""


def chain(levels: Sequence[Level], move: Move, start: Tensor | float = 0.0) -> tuple[Tensor, float]:
    """Mean (D,) and variance of an entry at the last level, from u = start + r z at the first."""
    mean = torch.zeros(D, dtype=torch.float64) + start
    variance = levels[0].ratio ** 2
    for t, s in pairwise(levels):
        a, b, q = move(t.ratio, s.ratio)
        mean, variance = a * mean + b, a * a * variance + q
    return mean, variance


def tweedie(r: float) -> float:
    """g of x0(u) = m + g (u - m)."""
    return S2 / (S2 + r * r)


def flow_gain(r: float, end: float, moves: int, rho: float = 7.0) -> tuple[float, float]:
    """G of u_end = m + G (u - m) by Euler steps of the flow on Karras' grid; and where it ends."""
    if r <= end:
        return tweedie(r), 0.0
    grid = [(r ** (1 / rho) + k / moves * (end ** (1 / rho) - r ** (1 / rho))) ** rho
            for k in range(moves + 1)]  # fmt: skip
    grid[-1] = end
    gain = 1.0
    for now, after in pairwise(grid):
        gain *= 1 + (after - now) / now * (1 - tweedie(now))
    return gain, end


Kernel = Callable[[float, int, int], tuple[float, float, float]]
"""(v, level's number, levels) -> p, c, w of x0y = p centre + c y + sqrt(w) z."""


def exact_kernel(variance: float) -> Kernel:
    """The Gaussian N(centre, v) times N(y, variance)."""

    def kernel(v: float, index: int, steps: int) -> tuple[float, float, float]:
        w = 1 / (1 / v + 1 / variance)
        return w / v, w / variance, w

    return kernel


def langevin_kernel(
    variance: float,
    count: int,
    rate: float,
    *,
    decay: float = 1.0,
    absolute: bool = False,
    factor: float = 1.0,
    momentum: float | None = None,
) -> Kernel:
    """`count` steps from the centre; with a momentum, of the damped Hamiltonian chain."""

    def kernel(v: float, index: int, steps: int) -> tuple[float, float, float]:
        h = rate * (1 - (1 - decay) * index / (steps + 1))
        h = h if absolute else h * min(v, variance)
        precision = 1 / v + factor / variance
        if momentum is None:
            p, c, w = 1.0, 0.0, 0.0
            for _ in range(count):
                a = 1 - h * precision
                p, c, w = a * p + h / v, a * c + h * factor / variance, a * a * w + 2 * h
            return p, c, w
        # (x, velocity): one step is a matrix, and noise enters the velocity
        root = math.sqrt(h)
        turn = torch.tensor(
            [[1 - h * precision, root * momentum], [-root * precision, momentum]],
            dtype=torch.float64,
        )
        into = torch.tensor([root, 1.0], dtype=torch.float64)
        of_centre = torch.tensor([1.0, 0.0], dtype=torch.float64)
        of_y = torch.zeros(2, dtype=torch.float64)
        spread = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        for _ in range(count):
            of_centre = turn @ of_centre + into * (root / v)
            of_y = turn @ of_y + into * (root * factor / variance)
            spread = turn @ spread @ turn.T + 2 * (1 - momentum) * torch.outer(into, into)
        return float(of_centre[0]), float(of_y[0]), float(spread[0, 0])

    return kernel


def daps_chain(
    levels: Sequence[Level],
    kernel: Kernel,
    y: Tensor = DATA,
    *,
    spread: float = SPREAD,
    moves: int = 1,
    end: float = 0.0,
) -> tuple[Tensor, float]:
    """DAPS with an affine kernel; spread = inf is the published width r."""
    number = {t.ratio: k for k, t in enumerate(levels)}

    def move(r: float, s: float) -> tuple[float, Tensor, float]:
        gain, _ = flow_gain(r, end, moves)
        v = 1 / ((0.0 if math.isinf(spread) else 1 / spread**2) + 1 / r**2)
        p, c, w = kernel(v, number[r], len(levels) - 1)
        return p * gain, p * (1 - gain) * MEAN + c * y, w + s * s

    return chain(levels, move)


def dds_chain(
    levels: Sequence[Level],
    gamma: Callable[[float], float],
    share: float,
    y: Tensor = DATA,
) -> tuple[Tensor, float]:
    """DDS as published with weight gamma(r): eps is kept, and the share of noise renewed."""

    def move(r: float, s: float) -> tuple[float, Tensor, float]:
        g, w = tweedie(r), gamma(r)
        gain, fixed = g / (1 + w), ((1 - g) * MEAN + w * y) / (1 + w)  # x' = gain u + fixed
        kept = s * math.sqrt(1 - share**2)
        return gain + kept * (1 - g) / r, fixed - kept * (1 - g) / r * MEAN, (share * s) ** 2

    return chain(levels, move)


def dds_multistep_chain(
    levels: Sequence[Level], gamma: Callable[[float], float], eta: float, y: Tensor = DATA
) -> tuple[Tensor, float]:
    """DDS by moves of second order: the law of (u, x' of the move before), entry by entry."""
    mean = torch.zeros(2, D, dtype=torch.float64)
    spread = torch.tensor([[levels[0].ratio ** 2, 0.0], [0.0, 0.0]], dtype=torch.float64)
    h_before = math.inf
    for t, s in pairwise(levels):
        g, w = tweedie(t.ratio), gamma(t.ratio)
        gain, fixed = g / (1 + w), ((1 - g) * MEAN + w * y) / (1 + w)  # x' = gain u + fixed
        h = math.log(t.ratio / s.ratio) if s.ratio > 0 else math.inf
        slope = min(h / h_before, 1) / 2 if h < math.inf else 0.0  # 0 in the first move too
        kept = math.exp(-(1 + eta) * h)
        on = (1 - kept) * (1 + slope)
        turn = torch.tensor(
            [[kept + on * gain, -(1 - kept) * slope], [gain, 0.0]], dtype=torch.float64
        )
        mean = turn @ mean + torch.stack([on * fixed, fixed])
        spread = turn @ spread @ turn.T
        spread[0, 0] += s.ratio**2 * (1 - math.exp(-2 * eta * h))
        h_before = h
    return mean[0], float(spread[0, 0])


def ensemble_chain(
    levels: Sequence[Level],
    gamma: float,
    corrects: Callable[[int], bool],
    length: Callable[[int], int],
    y: Tensor = DATA,
) -> tuple[Tensor, float]:
    """EnKG with infinitely many particles: N(mean, variance I) under its own covariance.

    |C|_F of the J x J products <e_j, Y_k - mean Y> / J tends to tr((S + e e') S)^(1/2), with e and
    S the mean and covariance of e_j.
    """
    mean, variance = torch.zeros(D, dtype=torch.float64), levels[0].ratio ** 2
    for k, (t, s) in enumerate(pairwise(levels)):
        r = t.ratio
        if corrects(k):
            moves = length(k)
            if moves == 1:
                gain = tweedie(r)
            else:
                gain, stopped = flow_gain(r, 0.002, moves - 1)
                gain *= tweedie(stopped) if stopped > 0 else 1.0
            e = MEAN + gain * (mean - MEAN) - y
            of_y = gain**2 * variance
            size = math.sqrt(of_y * (D * of_y + float(e @ e)))
            pull = gamma * gain * variance / size
            mean, variance = mean - pull * e, (1 - pull * gain) ** 2 * variance
        a = 1 + (s.ratio - r) / r * (1 - tweedie(r))
        mean, variance = MEAN + a * (mean - MEAN), a * a * variance
    return mean, variance


def postedit_chain(
    levels: Sequence[Level],
    source: Tensor,
    *,
    kept: bool,
    fusion: float,
    count: int,
    rate: float,
    decay: float,
    tau: float,
    source_noise: float,
) -> tuple[Tensor, Tensor]:
    """PostEdit, all entries kept or none: mean (D,) and covariance with the source's noise (2, 2).

    The noise of the measured source stays the same in all steps, so it is carried along: the state
    is (x, source noise).
    """
    mean = levels[0].alpha * source
    joint = torch.diag(torch.tensor([levels[0].sigma ** 2, 1.0], dtype=torch.float64))
    for k, (t, s) in enumerate(pairwise(levels)):
        g = t.alpha * S2 / (t.alpha**2 * S2 + t.sigma**2)
        mean = MEAN + g * (mean - t.alpha * MEAN)
        joint = torch.diag(torch.tensor([g, 1.0], dtype=torch.float64)) @ joint
        joint = joint @ torch.diag(torch.tensor([g, 1.0], dtype=torch.float64))
        if s.sigma == 0:
            break
        h = rate * (1 - (1 - decay) * k / (len(levels) - 1))
        width = t.ratio**2 / (1 + t.ratio**2)
        data = 1 / tau**2 if kept else 0.0
        p, c, w = 1.0, 0.0, 0.0
        for _ in range(count):
            a = 1 - h * (1 / width + data)
            p, c, w = a * p + h / width, a * c + h * data, a * a * w + 2 * h
        mean = s.alpha * ((1 - fusion) * (p * mean + c * source) + fusion * source)
        turn = torch.tensor(
            [[s.alpha * (1 - fusion) * p, s.alpha * (1 - fusion) * c * source_noise], [0.0, 1.0]],
            dtype=torch.float64,
        )
        joint = turn @ joint @ turn.T
        joint[0, 0] += (s.alpha * (1 - fusion)) ** 2 * w + s.sigma**2
    return mean, joint[0, 0]
