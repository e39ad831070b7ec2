"""The checks of the table of limits: each takes a method, and raises or gives the sizes of a bias.

Paths are compared with the same noise, laws without sampling error, and laws with the recursions of
the module `limits`; only where a method is not affine in its noises (the tuned step of DPS, Adam,
Metropolis, particle filters) are draws averaged, with gates that are said where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from gates import gaussian_gates, passes
from limits import (
    DATA,
    ENTRIES,
    IDENTITY,
    INVERTIBLE,
    MEAN,
    POSTERIOR,
    ROWS,
    S2,
    SCHEDULE,
    STD,
    UNEVEN,
    ZERO,
    D,
    Kernel,
    UnitNoise,
    correlated,
    daps_chain,
    dds_chain,
    dds_multistep_chain,
    ensemble_chain,
    exact,
    exact_kernel,
    go,
    langevin_kernel,
    law,
    measured,
    path,
    postedit_chain,
    stream,
)
from torch import Tensor

import posterior
from posterior import guidance, operators
from posterior.errors import PosteriorError
from posterior.guidance.base import Guidance
from posterior.operators.base import Operator
from posterior.operators.noise import NoiseModel, PoissonNoise
from posterior.problem import Problem
from posterior.schedules import CLEAN, Level
from posterior.transitions import Anew, DPMSolver2M

IDENTITY_MATRIX = operators.from_matrix(IDENTITY)
Sizes = tuple[float, ...]
Check = Callable[[Guidance], "Sizes | None"]


# ------------------------------------------------------------------------ comparisons of methods


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def base(method: Guidance) -> Guidance:
    """The sampler without data under the method's step rule."""
    return Guidance(transition=method.transition, spacing=method.spacing)


def off(mean: Tensor, variance: float = POSTERIOR, truth: Tensor | None = None) -> float:
    """Root mean square over the entries of mean - truth, in posterior standard deviations."""
    truth = exact(measured()).mean if truth is None else truth
    return float(((mean - truth).square().mean() / variance).sqrt())


def no_field(*names: str) -> Check:
    """The method has none of these parameters."""

    def check(method: Guidance) -> None:
        assert not {f.name for f in fields(method)} & set(names)

    return check


def one_row(method: Guidance) -> None:
    assert method.particles == method.yields == 1


def refuses(
    error: type[PosteriorError],
    words: str,
    operator: Operator = IDENTITY_MATRIX,
    noise: float = 0.0,
) -> Check:
    """Noise of 0, or this operator, is refused before the first network call."""

    def check(method: Guidance) -> None:
        problem = measured()
        with pytest.raises(error, match=words):
            posterior.sample(problem.prior, operator, problem.y, noise=noise, method=method)
        assert problem.prior.counts.nfe == 0

    return check


def all_of(*checks: Check) -> Check:
    """All of them; the sizes are those of the last."""

    def check(method: Guidance) -> Sizes | None:
        found: Sizes | None = None
        for part in checks:
            found = part(method)
        return found

    return check


# ----------------------------------------------------- paths: perturbations of the sampler alone


def nothing_is_the_prior(method: Guidance) -> None:
    """State by state, on a correlated prior; 1e-12 is rounding."""
    problem = measured(ZERO, covariance=correlated())
    close(path(method, problem), path(base(method), problem), 1e-12)


def photons_nothing_is_the_prior(method: Guidance) -> None:
    problem = measured(ZERO, PoissonNoise(1.0), y=GREY[: len(ZERO)])
    close(path(method, problem), path(base(method), problem), 1e-12)


def vague_is(reference: Callable[[Guidance, float], Tensor], matrix: Tensor = ROWS) -> Check:
    """The path tends to a reference (method, std) like 1 / std^2."""

    def check(method: Guidance) -> None:
        def difference(std: float) -> float:
            own = path(method, measured(matrix, std, correlated()))
            return float((own - reference(method, std)).abs().max())

        assert difference(1e3) / difference(1e4) == pytest.approx(100, rel=0.01)
        assert difference(1e6) < 1e-8

    return check


def base_path(method: Guidance, std: float) -> Tensor:
    return path(base(method), measured(ROWS, std, correlated()))


def path_without_data(method: Guidance, std: float) -> Tensor:
    return path(method, measured(ZERO, std, correlated()))


def ignores_noise(method: Guidance) -> None:
    """The same draws bit for bit at any noise level, and not those without data."""
    few = min(method.particles, 16)
    small = replace(method, particles=few) if method.particles > 1 else method  # type: ignore[call-arg]
    many = {"steps": 4, "rows": 2 * few, "particles": few}
    draws = [path(small, measured(ROWS, std), **many) for std in (0.1, 1e6)]
    assert torch.equal(*draws)
    without = path(small, measured(ZERO), **many)
    assert float((draws[0][-1] - without[-1]).abs().max()) > 0.1


def ignores_photons(method: Guidance) -> None:
    problems = [measured(noise=PoissonNoise(rate), y=0.5 * GREY + 0.1) for rate in (0.01, 1.0)]
    assert torch.equal(*(path(method, problem) for problem in problems))


def falls_with_photons(method: Guidance) -> None:
    """Below one photon a pixel the step falls like the rate."""
    y = torch.full((D,), -0.5, dtype=torch.float64)

    def difference(rate: float) -> float:
        problem = measured(noise=PoissonNoise(rate), y=y)
        return float((path(method, problem) - path(base(method), problem)).abs().max())

    assert difference(1e-5) / difference(1e-6) == pytest.approx(10, rel=0.01)
    assert difference(1e-8) < 1e-5


def is_the_base(**settings: object) -> Check:
    """With these settings the run is that of the sampler without data, bit for bit."""

    def check(method: Guidance) -> None:
        noise: float | NoiseModel = STD
        if isinstance(method, guidance.DPS) and method.likelihood.startswith("poisson"):
            noise = PoissonNoise(1.0)
        unweighted = replace(method, **settings)  # type: ignore[arg-type]
        problem = measured(ROWS, noise, y=GREY[: len(ROWS)])
        few = method.particles
        levels = method.grid(SCHEDULE, 8)
        own = path(unweighted, problem, rows=2 * few, particles=few, levels=levels)
        assert torch.equal(own, path(base(method), problem, rows=2 * few, particles=few,
                                     levels=levels))  # fmt: skip

    return check


def is_the_sampler_of_the_posterior(
    matrix: Tensor, std: float = STD, covariance: Tensor | float = S2
) -> Check:
    """State by state the sampler without data whose prior is the exact posterior.

    1e-6 is the tolerance of the conjugate gradients of DDS, and of DAPS.
    """

    def check(method: Guidance) -> None:
        problem = measured(matrix, std, covariance)
        close(path(method, problem), path(base(method), Problem(exact(problem))), 1e-6)

    return check


def without_noise_solves(matrix: Tensor) -> Check:
    """With noise of 0 every draw is the solution."""

    def check(method: Guidance) -> None:
        problem = measured(matrix, 0.0)
        solution = torch.linalg.solve(matrix, DATA)
        draws = path(method, problem)[-1]
        close(draws, solution.expand_as(draws), 1e-7)

    return check


def fits(matrix: Tensor) -> Check:
    """A x = y for every draw, whatever the noise."""

    def check(method: Guidance) -> None:
        draws = path(method, measured(matrix))[-1]
        close(draws @ matrix.T, DATA[: len(matrix)].expand(3, -1), 1e-7)

    return check


# -------------------------------------------------------------------------- laws and recursions


def error_falls_with_steps(
    matrix: Tensor,
    covariance: Tensor | float,
    few: int = 20,
    ratio: float = 1.5,
    most: float = 2.2,
) -> Check:
    """Twice the steps: less error of the covariance by `ratio` to `most`; 2 is the first order."""

    def check(method: Guidance) -> None:
        problem = measured(matrix, covariance=covariance)
        truth = exact(problem)
        errors = []
        for steps in (few, 2 * few):
            mean, spread = law(method, problem, steps)
            close(mean, truth.mean, 1e-3)
            errors.append(float((spread - truth.covariance).norm()))
        assert ratio < errors[0] / errors[1] < most

    return check


def law_is_the_posterior_at_any_steps(matrix: Tensor) -> Check:
    """What remains is the start, whose signal is 0.7 %."""

    def check(method: Guidance) -> None:
        problem = measured(matrix)
        truth = exact(problem)
        for steps in (3, 12):
            mean, covariance = law(method, problem, steps)
            close(mean, truth.mean, 1e-4)
            close(covariance, truth.covariance, 1e-4)

    return check


def law_is_the_prior(method: Guidance, matrix: Tensor = ZERO, std: float = STD) -> None:
    mean, covariance = law(method, measured(matrix, std), 6)
    close(mean, MEAN, 1e-4)
    close(covariance, S2 * IDENTITY, 1e-4)


def follows(
    method: Guidance, problem: Problem, steps: int, expected: tuple[Tensor, float | Tensor]
) -> None:
    """The law of a run is that of the recursion."""
    mean, covariance = law(method, problem, steps)
    close(mean, expected[0], 1e-9)
    close(covariance, expected[1] * IDENTITY, 1e-9)


def kernel_of(method: guidance.DAPS, variance: float) -> Kernel:
    if method.kernel == "exact":
        return exact_kernel(variance)
    inner_steps, rate = method._length(D)
    return langevin_kernel(
        variance if method.tau is None else variance * method.tau**2 / STD**2,
        inner_steps,
        rate,
        decay=method.decay,
        absolute=method.absolute_rate,
        factor=method.data_factor,
        momentum=method.momentum if method.kernel == "hamiltonian" else None,
    )


def daps_law(method: guidance.DAPS, steps: int, variance: float = STD**2) -> tuple[Tensor, float]:
    """By the recursion; variance = inf without data."""
    return daps_chain(
        method.grid(SCHEDULE, steps),
        kernel_of(method, variance),
        spread=method.spread,
        moves=method.ode_steps,
        end=method.ode_end,
    )


def daps_bias(steps: int, matrix: Tensor = IDENTITY, **settings: object) -> Check:
    """The run follows its recursion (6 levels); mean and variance of that at `steps` levels.

    The mean in exact standard deviations, the variance in exact variances.
    """

    def check(method: Guidance) -> Sizes:
        assert isinstance(method, guidance.DAPS)
        varied = replace(method, **settings)  # type: ignore[arg-type]
        data = math.inf if matrix is ZERO else STD**2
        short = replace(varied, inner_steps=min(varied._length(D)[0], 10))
        if varied.kernel == "exact":
            short = varied
        std = 1e6 if matrix is ZERO and method.tau is None else STD
        follows(short, measured(matrix, std), 6, daps_law(short, 6, data))
        mean, variance = daps_law(varied, steps, data)
        if matrix is ZERO:
            return off(mean, S2, MEAN), variance / S2
        return off(mean), variance / POSTERIOR

    return check


def variance_only(check: Check) -> Check:
    """The second of two sizes, where the first, of the mean, is 0."""

    def only(method: Guidance) -> Sizes:
        found = check(method)
        assert found is not None
        assert found[0] < 1e-3
        return found[1:]

    return only


def many_short_chains(method: Guidance) -> Sizes:
    """The recursion at 1000 levels is the limit that follows from the kernel at small v.

    There x0y = centre + k (v / N)(y - centre) with variance f v, and the fixed point of
    V <- (1 - 2 v / s^2 - 2 k v / N) V + (1 + f) v is V = (1 + f) / 2 / (1 / s^2 + k / N).
    """
    assert isinstance(method, guidance.DAPS)
    small = 1e-10
    _, c, w = kernel_of(method, STD**2)(small, 0, 1)
    k, f = c * STD**2 / small, w / small
    width = 1 / (1 / S2 + k / STD**2)
    mean, variance = daps_law(method, 1000)
    assert variance == pytest.approx(width * (1 + f) / 2, rel=0.005)
    limit = width * (MEAN / S2 + k * DATA / STD**2)
    assert off(mean, truth=limit) < 0.02
    return off(limit), width * (1 + f) / 2 / POSTERIOR


def daps_forgets_its_spread(method: Guidance) -> None:
    """With the published width errors fall like 1 / steps: only levels of small r matter.

    By the recursion, which the run follows at 6 levels.
    """
    assert isinstance(method, guidance.DAPS)
    flat = replace(method, spread=math.inf)
    follows(flat, measured(), 6, daps_law(flat, 6))
    errors = [daps_law(flat, steps) for steps in (160, 640)]
    assert 3.3 < off(errors[0][0]) / off(errors[1][0]) < 4.7
    assert abs(errors[1][1] / POSTERIOR - 1) < 0.003
    correlated_ = measured(ROWS, covariance=correlated())
    truth = exact(correlated_).mean
    far, near = (float((law(method, correlated_, n)[0] - truth).norm()) for n in (10, 40))
    assert near < far / 1.8


def daps_distance(steps: int) -> Check:
    """Root mean square distance of an entry to y, by the recursion."""

    def check(method: Guidance) -> Sizes:
        ignores_noise(method)
        assert isinstance(method, guidance.DAPS)
        daps_bias(steps)(method)
        mean, variance = daps_law(method, steps)
        return (math.sqrt(float((mean - DATA).square().mean()) + variance),)

    return check


def flow_alone(steps: int) -> Check:
    """Without a chain, by the recursion; and with one Euler step the sampler that re-noises."""

    def check(method: Guidance) -> Sizes:
        is_the_base(inner_steps=0, ode_steps=1, ode_end=0.0)(method)
        return variance_only(daps_bias(steps, ZERO, inner_steps=0))(method)

    return check


def spread_is_infinite(method: Guidance) -> None:
    assert isinstance(method, guidance.DAPS)
    assert math.isinf(method.spread)


def error_follows_noise(method: Guidance) -> None:
    """Root mean square distance to the solution like the noise."""
    solution = torch.linalg.solve(INVERTIBLE, DATA)

    def distance(std: float) -> float:
        mean, covariance = law(method, measured(INVERTIBLE, std), 8)
        return float(((mean - solution).square().sum() + covariance.trace()).sqrt())

    assert distance(0.02) / distance(0.01) == pytest.approx(2, rel=0.1)


def chain_follows_noise(steps: int) -> Check:
    """Root mean square distance to y like the noise, by the recursion, which the run follows."""

    def check(method: Guidance) -> None:
        assert isinstance(method, guidance.DAPS)

        def distance(std: float) -> float:
            mean, variance = daps_law(method, steps, std**2)
            return math.sqrt(float((mean - DATA).square().mean()) + variance)

        follows(method, measured(noise=0.01), 6, daps_law(method, 6, 1e-4))
        assert distance(0.02) / distance(0.01) == pytest.approx(2, rel=0.1)
        assert distance(0.01) < 0.013

    return check


def vague_law_is_that_without_data(method: Guidance) -> None:
    seen, unseen = (law(method, measured(a, 1e4), 5) for a in (ROWS, ZERO))
    for own, other in zip(seen, unseen, strict=True):
        close(own, other, 1e-5)


# ----------------------------------------------------------------------------- the other methods


GREY = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)


def sticks_to_y(steps: int, noise: float | NoiseModel = STD, y: Tensor = DATA) -> Check:
    """|x - y| in units of zeta, mean of 200 draws."""

    def check(method: Guidance) -> Sizes:
        assert isinstance(method, guidance.DPS)
        assert method.scale is not None
        draws = path(method, measured(noise=noise, y=y), steps, 200)[-1]
        return (float((draws - y).norm(dim=1).mean()) / method.scale,)

    return check


def photons_step(y: Tensor) -> Check:
    """At this y the step is that of "norm": the derivative of the loss by A x0 has length 1."""

    def check(method: Guidance) -> None:
        assert isinstance(method, guidance.DPS)
        plain = path(replace(method, likelihood="norm"), measured(y=y), 8)
        for rate in (0.5, 1e6):
            close(path(method, measured(noise=PoissonNoise(rate), y=y), 8), plain, 1e-12)

    return check


def weak_directions_are_too_wide(method: Guidance) -> Sizes:
    """Variance and mean of the weakly measured direction, against the sampler of the posterior.

    Draw by draw with the same noise, so that time steps and chance cancel.
    """
    problem = measured(UNEVEN)
    truth = Problem(exact(problem))
    own = path(method, problem, 80, 1500)[-1][:, 1]
    other = path(base(method), truth, 80, 1500)[-1][:, 1]
    return float(own.var() / other.var()), float((own.mean() - other.mean()).abs() / other.std())


def dds_law(method: guidance.DDS, steps: int) -> tuple[Tensor, float]:
    def gamma(r: float) -> float:
        if method.gamma is not None:
            return method.gamma
        width = 1 / ((0.0 if math.isinf(method.spread) else 1 / method.spread**2) + 1 / r**2)
        return width / STD**2

    levels = method.grid(SCHEDULE, steps)
    if isinstance(method.transition, DPMSolver2M):
        return dds_multistep_chain(levels, gamma, method.transition.eta)
    assert method.keep_eps
    return dds_chain(levels, gamma, 0.85)


def dds_bias(steps: int, **settings: object) -> Check:
    """The run follows its recursion; mean and variance of that at `steps` levels."""

    def check(method: Guidance) -> Sizes:
        varied = replace(method, **settings)  # type: ignore[arg-type]
        assert isinstance(varied, guidance.DDS)
        follows(varied, measured(), 10, dds_law(varied, 10))
        mean, variance = dds_law(varied, steps)
        return off(mean), variance / POSTERIOR

    return check


def dds_distance(steps: int) -> Check:
    """Root mean square distance of an entry to y, by the recursion."""

    def check(method: Guidance) -> Sizes:
        assert isinstance(method, guidance.DDS)
        follows(method, measured(noise=0.0), 10, dds_law(method, 10))
        mean, variance = dds_law(method, steps)
        return (math.sqrt(float((mean - DATA).square().mean()) + variance),)

    return check


def mean_off_when_correlated(steps: int) -> Check:
    """On a correlated prior, in posterior standard deviations."""

    def check(method: Guidance) -> Sizes:
        problem = measured(ROWS, covariance=correlated())
        truth = exact(problem)
        mean, _ = law(method, problem, steps)
        white = torch.linalg.inv(torch.linalg.cholesky(truth.covariance))
        return (float((white @ (mean - truth.mean)).square().mean().sqrt()),)

    return check


def projection_remains(method: Guidance) -> None:
    """scale = 0: every state is the sampler's, its measured part replaced by y at that level."""
    assert isinstance(method, guidance.MCG)
    problem = measured(ROWS)
    levels = method.grid(SCHEDULE, 6)
    own = path(replace(method, scale=0), problem, levels=levels)
    states = go(replace(method, scale=0), problem.take([0] * 3), levels, stream(3))
    for k, (t, s) in enumerate(pairwise(levels)):
        noise = stream(3).at(k + 1)
        estimate = problem.prior(states[k]["x"], t.t)
        moved = base(method).transition(estimate, t, s, noise, problem.prior)
        known = t if method.late else s
        y = known.alpha * DATA[: len(ROWS)] + known.sigma * noise("known") @ ROWS.T
        close(own[k + 1], moved + (y - moved @ ROWS.T) @ ROWS, 1e-12)


def projection_keeps_the_rest(method: Guidance) -> None:
    """White prior, A A' = I: y where measured, and the draw without data elsewhere."""
    problem = measured(ROWS)
    unseen = IDENTITY - ROWS.T @ ROWS
    draws = path(method, problem)[-1]
    free = path(base(method), problem)[-1]
    close(draws, free @ unseen + DATA[: len(ROWS)] @ ROWS, 1e-12)


def projection_forgets_the_rest(steps: int) -> Check:
    """Mean of the unseen part on a correlated prior, in posterior standard deviations.

    By the law of plain projection, scale = 0, where the run is affine. The gradient of the default
    length mends more than half of it: 4000 draws, whose mean has a standard error of 0.015.
    """

    def check(method: Guidance) -> Sizes:
        problem = measured(ROWS, 1e-6, correlated())
        truth = exact(problem)
        unseen = torch.linalg.svd(ROWS).Vh[len(ROWS) :]
        factor = torch.linalg.cholesky(unseen @ truth.covariance @ unseen.T)
        white = torch.linalg.inv(factor) @ unseen

        def error(mean: Tensor) -> float:
            return float((white @ (mean - truth.mean)).square().mean().sqrt())

        plain = error(law(replace(method, scale=0), problem, steps)[0])  # type: ignore[call-arg]
        assert error(path(method, problem, steps, 4000)[-1].mean(0)) < plain / 2
        return (plain,)

    return check


def late_noise(steps: int) -> Check:
    """The last state is alpha x + sigma z at the last noisy level; its sigma."""

    def check(method: Guidance) -> Sizes:
        levels = method.grid(SCHEDULE, 10)
        draws = path(method, measured(INVERTIBLE), levels=levels)[-1]
        z = stream(3).at(10)("known")
        solution = torch.linalg.solve(INVERTIBLE, DATA)
        close(draws, levels[-2].alpha * solution + levels[-2].sigma * z, 1e-12)
        return (method.grid(SCHEDULE, steps)[-2].sigma,)

    return check


def silent(method: Guidance, problem: Problem, levels: list[Level]) -> Tensor:
    """The last x of a run whose noise is 0: the mean path of RED-diff."""
    return go(method, problem, levels, UnitNoise([]))[-1]["x"][0]


def tends_to_the_mode_of_the_prior(method: Guidance) -> Sizes:
    """Variance of draws about the prior's mean in prior variances, at a slow rate."""

    def spread(rate: float, steps: int) -> float:
        slow, problem = replace(method, rate=rate), measured(ZERO)  # type: ignore[call-arg]
        levels = slow.grid(SCHEDULE, steps)
        if rate < 0.05:
            close(silent(slow, problem, levels), MEAN, 1e-3)
        draws = path(slow, problem, rows=64, levels=levels)[-1]
        return float((draws - MEAN).square().mean()) / S2

    fast, slow = spread(0.08, 50), spread(0.02, 200)
    assert slow < fast / 2
    return (slow,)


def mode_at_a_level(method: Guidance) -> Sizes:
    """Held at one level, mu goes to the mode whose prior precision is scaled by c.

    With noise 0 the regulariser's gradient is c (mu - m), c = r^2 / (s^2 + r^2).
    """
    assert isinstance(method, guidance.REDdiff)
    for r in (1.0, 50.0):
        levels = [SCHEDULE.level_of_ratio(r)] * 300 + [CLEAN]
        c = r * r / (S2 + r * r)
        data, prior = (1 / STD**2, c / S2) if method.form == "likelihood" else (1.0, c / 4)
        mode = (data * DATA + prior * MEAN) / (data + prior)
        close(silent(method, measured(), levels), mode, 1e-6)
    if method.form == "likelihood":
        close(mode, exact(measured()).mean, 1e-3)
    return (1 / (S2 + 1),)


def regulariser_fades(steps: int) -> Check:
    """The last levels have no prior: a long run ends at y. Mean off by so many deviations."""

    def check(method: Guidance) -> Sizes:
        end = silent(method, measured(), method.grid(SCHEDULE, steps))
        close(end, DATA, 0.01)
        return (off(end),)

    return check


def jitter(method: Guidance) -> Sizes:
    """Root mean square error of an entry without noise: Adam's steps."""
    solution = torch.linalg.solve(INVERTIBLE, DATA)
    draws = path(method, measured(INVERTIBLE, 0.0), 200, 64)[-1]
    return (float((draws - solution).square().mean().sqrt()),)


def least_squares(method: Guidance) -> None:
    """weight = 0: A^+ y is a fixed point, and the limit from 0; the noise plays no part."""
    assert isinstance(method, guidance.REDdiff)
    free = replace(method, weight=0.0, rate=0.1)
    masked = measured(ENTRIES)
    seen = DATA[: len(ENTRIES)] @ ENTRIES
    levels = free.grid(SCHEDULE, 250)
    stays = path(replace(free, initial="pinv"), masked, rows=2, levels=levels[-20:])[-1]
    assert torch.equal(stays, seen.expand(2, -1))
    for problem, solution in (
        (masked, seen),
        (measured(INVERTIBLE), torch.linalg.solve(INVERTIBLE, DATA)),
    ):
        draws = path(replace(free, initial="zero"), problem, rows=2, levels=levels)[-1]
        assert torch.equal(draws[0], draws[1])
        close(draws[0], solution, 1e-5)


def ensemble_law(method: guidance.EnKG, steps: int) -> tuple[Tensor, float]:
    """Of infinitely many particles."""
    return ensemble_chain(
        method.grid(SCHEDULE, steps),
        method.gamma,
        lambda k: method._corrects(k, steps),
        lambda k: method._ode_length(k, steps),
    )


def ensembles(method: guidance.EnKG, steps: int, count: int) -> Tensor:
    """(ensembles, particles, D)."""
    rows = count * method.particles
    draws = path(method, measured(), steps, rows, method.particles)[-1]
    return draws.reshape(count, method.particles, D)


def ensemble_bias(steps: int, run: int = 80) -> Check:
    """Mean and variance of infinitely many particles at `steps`; 512 follow them at `run`."""

    def check(method: Guidance) -> Sizes:
        assert isinstance(method, guidance.EnKG)
        mean, variance = ensemble_law(method, run)
        draws = ensembles(replace(method, particles=512), run, 4)
        # 4 ensembles of 512: a standard error of 0.022 of a standard deviation, magnified by the
        # feedback of the step's length
        close(draws.mean((0, 1)), mean, 6 * 0.022 * math.sqrt(variance))
        assert float(draws.var(1).mean()) == pytest.approx(variance, rel=0.1)
        mean, variance = ensemble_law(method, steps)
        return off(mean), variance / POSTERIOR

    return check


def ensemble_distance(method: Guidance) -> Sizes:
    """Root mean square distance of an entry to y at the default number of steps."""
    ignores_noise(method)
    assert isinstance(method, guidance.EnKG)
    mean, variance = ensemble_law(method, method.default_steps)
    return (math.sqrt(float((mean - DATA).square().mean()) + variance),)


def ensemble_mean_converges(method: Guidance) -> None:
    """16 ensembles of 32 and of 512: the error of their means falls by sqrt(16) = 4.

    64 numbers each: the ratio has a relative standard error of 0.13, and the gate is 3 of them.
    """
    assert isinstance(method, guidance.EnKG)
    mean, _ = ensemble_law(method, 20)
    errors = [
        float((ensembles(replace(method, particles=j), 20, 16).mean(1) - mean).square().mean())
        for j in (32, 512)
    ]
    ratio = math.sqrt(errors[0] / errors[1])
    assert 4 * math.exp(-0.39) < ratio < 4 * math.exp(0.39)


def proposals_and_weights(
    method: guidance.TDS, problem: Problem, steps: int, filters: int
) -> tuple[Tensor, Tensor]:
    """All states (steps + 1, filters K, D), and the last log weights (filters, K)."""
    rows = filters * method.particles
    levels = method.grid(SCHEDULE, steps)
    states = go(method, problem.take([0] * rows), levels, stream(rows, method.particles))
    return (
        torch.stack([state["x"] for state in states]),
        states[-1]["log_w"].reshape(filters, method.particles),
    )


def ensemble_without_data(method: Guidance) -> None:
    """Nothing to correlate with: bit for bit the flow."""
    assert isinstance(method, guidance.EnKG)
    small, problem = replace(method, particles=8), measured(ZERO, covariance=correlated())
    assert torch.equal(
        path(small, problem, rows=16, particles=8),
        path(base(method), problem, rows=16, particles=8),
    )


def filter_of_the_prior(matrix: Tensor, std: float) -> Check:
    """Particles are draws of the sampler without data, and their weights are equal."""

    def check(method: Guidance) -> None:
        assert isinstance(method, guidance.TDS)
        small = replace(method, particles=4)
        problem = measured(matrix, std, correlated())
        x, log_w = proposals_and_weights(small, problem, 8, 2)
        close(x, path(base(method), problem, 8, 8, 4), 1e-9)
        close(log_w, log_w[:, :1].expand_as(log_w), 1e-9)

    return check


def twist_is_exact(method: Guidance) -> None:
    """White prior of the same spread: proposals are those of the exact posterior's sampler.

    But for the last move, which is not guided: 1e-4 is what 0.002 leaves.
    """
    assert isinstance(method, guidance.TDS)
    small = replace(method, particles=4, threshold=0.0)
    problem = measured()
    x, _ = proposals_and_weights(small, problem, 12, 2)
    expected = path(base(method), Problem(exact(problem)), 12, 8, 4)
    close(x[:-1], expected[:-1], 1e-12)
    close(x[-1], expected[-1], 1e-4)


def weights_even_out(method: Guidance) -> None:
    """The exact twist leaves to the weights what the time steps did: it falls with the steps."""
    assert isinstance(method, guidance.TDS)
    small = replace(method, particles=32, threshold=0.0)
    uneven = [float(proposals_and_weights(small, measured(), n, 1)[1].std()) for n in (40, 160)]
    assert uneven[0] > 1.8 * uneven[1]


def filter_means(method: guidance.TDS, particles: int, filters: int) -> Tensor:
    """Errors (filters, D) of the weighted means, against the posterior of the time steps' model."""
    std, steps = 1.5, 12
    problem = measured(ROWS, std, correlated())
    mean, covariance = law(Guidance(), problem, steps)
    gain = (
        covariance
        @ ROWS.T
        @ torch.linalg.inv(
            ROWS @ covariance @ ROWS.T + std**2 * torch.eye(len(ROWS), dtype=torch.float64)
        )
    )
    target = mean + gain @ (DATA[: len(ROWS)] - ROWS @ mean)
    sized = replace(method, particles=particles)
    x, log_w = proposals_and_weights(sized, problem, steps, filters)
    weights = torch.softmax(log_w, 1)
    return (weights[..., None] * x[-1].reshape(filters, particles, D)).sum(1) - target


def filter_converges(method: Guidance) -> None:
    """64 filters of 32 and of 256 particles: errors fall by sqrt(8), and their mean is 0.

    With a twist wider than the prior: a narrow one has weights of heavy tails.
    """
    assert isinstance(method, guidance.TDS)
    few, many = (filter_means(replace(method, spread=2.0), k, 64) for k in (32, 256))
    ratio = float((few.square().mean() / many.square().mean()).sqrt())
    assert math.sqrt(8) * 0.7 < ratio < math.sqrt(8) * 1.4  # 256 numbers each, of heavy tails
    assert float((many.mean(0).abs() / (many.std(0) / 8)).max()) < 4


def filter_forgets_its_spread(method: Guidance) -> None:
    """Any width of the twist: mean error 0 within 4 standard errors of 64 filters."""
    flat = replace(method, spread=math.inf)  # type: ignore[call-arg]
    assert isinstance(flat, guidance.TDS)
    errors = filter_means(flat, 128, 64)
    assert float((errors.mean(0).abs() / (errors.std(0) / 8)).max()) < 4


def gates(levels: int, matrix: Tensor = IDENTITY, std: float = STD, **settings: object) -> Check:
    """2000 Metropolis draws against the exact law, or, for other settings, that of exact draws."""

    def check(method: Guidance) -> None:
        assert isinstance(method, guidance.DAPS)
        varied = replace(method, **settings)  # type: ignore[arg-type]
        ideal = replace(varied, kernel="exact")
        mean, variance = daps_law(ideal, levels, math.inf if matrix is ZERO else STD**2)
        draws = path(varied, measured(matrix, std), levels, 2000)[-1]
        assert passes(gaussian_gates(draws, mean, variance * IDENTITY))
        if not settings:
            truth, width = (MEAN, S2) if matrix is ZERO else (exact(measured()).mean, POSTERIOR)
            assert off(mean, width, truth) < 1e-3
            assert variance == pytest.approx(width, rel=1e-3)

    return check


def vague_path_is_that_without_data(method: Guidance) -> None:
    """Metropolis decides alike: bit for bit."""
    short = replace(method, inner_steps=20)  # type: ignore[call-arg]
    same = [path(short, measured(a, 1e6), 4) for a in (IDENTITY, 0 * IDENTITY)]
    assert torch.equal(*same)


# -------------------------------------------------------------------------------------- PostEdit


def edited(**settings: object) -> Callable[[Guidance], tuple[guidance.PostEdit, Problem]]:
    def make(method: Guidance) -> tuple[guidance.PostEdit, Problem]:
        varied = replace(method, **settings)  # type: ignore[arg-type]
        assert isinstance(varied, guidance.PostEdit)
        return varied, Problem(measured().prior, source=DATA[None])

    return make


def edit_law(method: guidance.PostEdit, steps: int) -> tuple[Tensor, Tensor]:
    return postedit_chain(
        method.grid(SCHEDULE, steps),
        DATA,
        kept=method.keep_fraction == 1,
        fusion=method.fusion,
        count=method.inner_steps,
        rate=method.rate,
        decay=method.decay,
        tau=method.tau,
        source_noise=method.source_noise,
    )


def edit_bias(steps: int = 5, **settings: object) -> Check:
    """The run follows its recursion, whose mean and variance after `steps` are given.

    The mean as the share of the way from the prior's mean to the source, the variance in prior
    variances.
    """

    def check(method: Guidance) -> Sizes:
        varied, problem = edited(**settings)(method)
        short = varied if varied.closed else replace(varied, inner_steps=20)
        follows(short, problem, 4, edit_law(short, 4))
        mean, variance = edit_law(varied, steps)
        return float(1 - (mean - DATA).norm() / (MEAN - DATA).norm()), float(variance) / S2

    return check


def edits_from_the_source(method: Guidance) -> None:
    """No Langevin steps, no fusion: the sampler that re-noises, started from the source.

    1e-12: the chain's law is evaluated with 0 steps, and rounds.
    """
    varied, problem = edited(fusion=0.0, inner_steps=0)(method)
    levels = varied.grid(SCHEDULE, 5)
    plain = Guidance(transition=Anew)
    close(path(varied, problem, levels=levels), path(plain, problem, levels=levels), 1e-12)


def vague_source(method: Guidance) -> None:
    """tau large: the chain forgets what it kept, like 1 / tau^2."""
    count = {"inner_steps": 20}
    free = path(*edited(keep_fraction=0.0, **count)(method), 5)

    def difference(tau: float) -> float:
        return float((path(*edited(keep_fraction=1.0, tau=tau, **count)(method), 5) - free)
                     .abs().max())  # fmt: skip

    assert difference(10.0) / difference(100.0) == pytest.approx(100, rel=0.01)
    assert difference(1e6) < 1e-10
