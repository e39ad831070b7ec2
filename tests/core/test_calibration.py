"""Calibration: exact draws pass, each wrong sampler is rejected by the gate aimed at it.

The problem is linear and Gaussian, d = 8 seen through 4 numbers, with the posterior in closed form.
Gates are held against 1e-3 with fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from posterior import operators
from posterior.calibration import (
    Calibration,
    RankTest,
    calibrate,
    ks_p_value,
    rank_statistics,
    reference_points,
)
from posterior.errors import CapabilityError, InputError, InputTypeError, SamplingError
from posterior.guidance.base import Guidance
from posterior.operators.noise import GaussianNoise, PoissonNoise
from posterior.priors import Gaussian
from posterior.transitions import Heun

ALPHA = 1e-3
N, L, D, SEEN = 300, 63, 8, 4
STD = 0.5
ALL = ("coordinates", "log-likelihood", "log-posterior", "tarp")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MATRIX = normal(SEEN, D, seed=1) / 2
FACTOR = torch.eye(D, dtype=torch.float64) + 0.3 * normal(D, D, seed=2)
PRIOR = Gaussian(normal(D, seed=3), FACTOR @ FACTOR.T)
OPERATOR = operators.from_matrix(MATRIX)
NOISE = GaussianNoise(STD)


class Exact:
    """The posteriors of N measurements: means (N, d) and one covariance."""

    def __init__(self, seed: int, number: int = N) -> None:
        self.truth = PRIOR.sample(number, seed=seed)
        self.y = NOISE.sample(OPERATOR(self.truth), seed=seed)
        self.seed = seed
        prior = PRIOR.covariance
        noise = STD**2 * torch.eye(SEEN, dtype=torch.float64)
        gain = prior @ MATRIX.T @ torch.linalg.inv(MATRIX @ prior @ MATRIX.T + noise)
        self.mean = PRIOR.mean + (self.y - PRIOR.mean @ MATRIX.T) @ gain.T
        self.covariance = prior - gain @ MATRIX @ prior

    def draws(self, covariance: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
        """(L, N, d) from the posterior, or from a wrong one."""
        factor = torch.linalg.cholesky(self.covariance if covariance is None else covariance)
        z = normal(L, len(self.truth), D, seed=self.seed + 1000)
        return (self.mean if mean is None else mean) + z @ factor.T

    def judge(self, draws: Tensor, references: Tensor | None = None) -> Calibration:
        if references is None:
            references = reference_points(PRIOR, OPERATOR, self.y, NOISE, (D,), seed=self.seed)
        return rank_statistics(
            self.truth,
            draws,
            log_likelihood=lambda x: NOISE.log_prob(self.y, OPERATOR(x)),
            log_prior=PRIOR.log_prob,
            references=references,
            seed=self.seed,
        )


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(seed=0)


def narrow_null_space(problem: Exact) -> Tensor:
    """Half the variance in what the operator does not see."""
    _, _, v = torch.linalg.svd(MATRIX)
    hidden = v[SEEN:].T @ v[SEEN:]
    shrink = torch.eye(D, dtype=torch.float64) - (1 - math.sqrt(0.5)) * hidden
    return problem.draws(shrink @ problem.covariance @ shrink.T)


CONTROLS: dict[str, tuple[Callable[[Exact], Tensor], dict[str, str]]] = {
    # name: the draws, and what each gate that is aimed at it says
    "the prior": (
        lambda e: PRIOR.sample(L * len(e.truth), seed=77).reshape(L, -1, D),
        {"log-likelihood": "under-confident", "log-posterior": "under-confident"},
    ),
    "a point": (
        lambda e: e.mean.expand(L, -1, D),
        {"coordinates": "over-confident", "log-posterior": "over-confident"}
        | {"log-likelihood": "over-confident", "tarp": "over-confident"},
    ),
    "half the variance": (
        lambda e: e.draws(0.5 * e.covariance),
        {"log-posterior": "over-confident", "tarp": "over-confident"}
        | {"log-likelihood": "over-confident"},
    ),
    "twice the variance": (
        lambda e: e.draws(2 * e.covariance),
        {"log-posterior": "under-confident", "tarp": "under-confident"}
        | {"log-likelihood": "under-confident"},
    ),
    "half the variance in the null space": (
        narrow_null_space,
        {"log-posterior": "over-confident", "tarp": "over-confident"},
    ),
    "a shifted mean": (
        lambda e: e.draws(mean=e.mean + 0.3 * e.covariance.diagonal().sqrt()),
        {"coordinates": "biased"},
    ),
}


def test_closed_form_is_the_posterior_of_the_prior(exact: Exact) -> None:
    for b in range(3):
        law = PRIOR.posterior(OPERATOR, exact.y[b], noise=STD)
        torch.testing.assert_close(law.mean, exact.mean[b])
        torch.testing.assert_close(law.covariance, exact.covariance)


def test_exact_draws_are_accepted(exact: Exact) -> None:
    found = exact.judge(exact.draws())
    assert tuple(found.p_values) == ALL
    assert min(found.p_values.values()) > ALPHA
    assert found.calibrated
    assert set(found.kinds.values()) == {"calibrated"}


@pytest.mark.parametrize("name", CONTROLS)
def test_wrong_samplers_are_rejected_with_the_right_sign(exact: Exact, name: str) -> None:
    draws, expected = CONTROLS[name]
    found = exact.judge(draws(exact))
    for gate, kind in expected.items():
        assert found.p_values[gate] < ALPHA, found.report
        assert found.kinds[gate] == kind, found.report
    assert not found.calibrated


def test_coordinates_and_references_without_y_do_not_see_that_the_data_are_ignored(
    exact: Exact,
) -> None:
    """Why the other statistics exist: the joint law of truth and draws is exchangeable here."""
    draws, _ = CONTROLS["the prior"]
    found = exact.judge(draws(exact), references=PRIOR.sample(N, seed=5))
    assert found.p_values["coordinates"] > ALPHA
    assert found.p_values["tarp"] > ALPHA
    assert found.p_values["log-likelihood"] < 1e-12
    assert exact.judge(draws(exact)).p_values["tarp"] < ALPHA


def test_false_alarms_come_at_their_rate() -> None:
    """P-values of exact draws over many repetitions are uniform, statistic by statistic."""
    problems = [Exact(seed=100 + k, number=60) for k in range(80)]
    found = [problem.judge(problem.draws()[:15]) for problem in problems]
    for name in ALL:
        alone = [result.tests[name].column_p_values[0] for result in found]
        assert stats.kstest(alone, "uniform").pvalue > ALPHA, name
    alarms = sum(not result.calibrated for result in found)
    assert stats.binom.sf(alarms - 1, len(found), 0.01) > ALPHA


def test_sizes_of_the_deviations(exact: Exact) -> None:
    """The sentence of a verdict quotes the error that was made, in standard deviations."""
    shifted = exact.judge(CONTROLS["a shifted mean"][0](exact)).tests["coordinates"]
    amount = -math.sqrt(2) * stats.norm.ppf(shifted.share)
    # the worst of 8 coordinates: 0.3 and at most 3 standard errors, each sqrt(2 / N) at most
    assert 0.3 - 3 * math.sqrt(2 / N) < amount < 0.3 + 3 * math.sqrt(2 / N)
    assert f"{amount:.2g} standard deviations too high" in shifted.verdict
    below = exact.draws(mean=exact.mean - 0.3 * exact.covariance.diagonal().sqrt())
    found = exact.judge(below)
    assert "too low" in found.verdict["coordinates"]
    assert "too wide or misplaced" in found.verdict["log-posterior"]


@pytest.mark.parametrize(("factor", "kind"), [(0.2, "over-confident"), (5.0, "under-confident")])
def test_width_by_coordinates_alone(exact: Exact, factor: float, kind: str) -> None:
    """Coordinates see a wrong width too, if it is large, and say how wrong it is."""
    found = exact.judge(exact.draws(factor * exact.covariance)).tests["coordinates"]
    assert found.p_value < ALPHA
    assert found.kind == kind
    # P(|z| < z_75 sqrt factor); 4 standard errors, and the grain of the ranks
    right = 2 * stats.norm.cdf(stats.norm.ppf(0.75) * math.sqrt(factor)) - 1
    assert abs(found.coverage - right) < 4 * math.sqrt(right * (1 - right) / N) + 1 / L
    width = stats.norm.ppf((1 + found.coverage) / 2) / stats.norm.ppf(0.75)
    assert f"hold {100 * found.coverage:.0f} % of the truths" in found.verdict
    assert f"{width:.2g} times the right standard deviation" in found.verdict


def test_ranks_that_crowd_at_one_end_are_shifted_not_spread_out() -> None:
    """A variance about 1/2 would take the ranks of a method that ignores the data for a U."""
    crowded = 1 - torch.rand(200, 1, generator=torch.Generator().manual_seed(0)).double() / 20
    assert RankTest("log-likelihood", crowded, ["log-likelihood"], 0.01).kind == "under-confident"
    assert RankTest("tarp", crowded, ["tarp"], 0.01).kind == "over-confident"
    assert RankTest("coordinates", crowded, ["x[0]"], 0.01).kind == "biased"


def test_kolmogorov_p_values_are_those_of_scipy() -> None:
    for n in (20, 63, 200, 1000):
        for scaled in (0.3, 0.6, 0.9, 1.19, 1.21, 1.6, 2.2):
            distance = scaled / math.sqrt(n)
            right = stats.kstwo.sf(distance, n)
            assert ks_p_value(distance, n) == pytest.approx(right, rel=0.04, abs=2e-4)
    limit = [stats.kstwobign.sf(x) for x in (0.1, 0.5, 1.19, 1.2, 1.21, 3.0)]
    from posterior.calibration import _kolmogorov_tail

    ours = [_kolmogorov_tail(x) for x in (0.1, 0.5, 1.19, 1.2, 1.21, 3.0)]
    assert ours == pytest.approx(limit, rel=1e-9, abs=1e-11)


def test_p_value_of_ranks_is_that_of_scipy(exact: Exact) -> None:
    test = exact.judge(exact.draws()).tests["coordinates"]
    right = [stats.kstest(column.numpy(), "uniform").pvalue for column in test.ranks.T]
    assert test.column_p_values == pytest.approx(right, rel=0.03)
    assert test.p_value == pytest.approx(min(1, D * min(right)), rel=0.03)


def test_a_curve_leaves_its_band_where_the_test_rejects() -> None:
    u = (torch.arange(100).double()[:, None] + 0.5) / 100
    for shrink in torch.linspace(0.7, 0.95, 30).tolist():
        test = RankTest("coordinates", torch.cat([u * shrink, u], 1), ["a", "b"], 0.01)
        assert (max(test.distances) > test.band) == (test.p_value < test.level)


def test_ties_are_ranked_at_random() -> None:
    """Draws and truths from {0, 1, 2}: the ranks are uniform all the same."""
    values = torch.randint(0, 3, (8, 2000, 1), generator=torch.Generator().manual_seed(0)).double()
    found = rank_statistics(values[0], values[1:])
    assert found.p_values["coordinates"] > ALPHA
    assert found.tests["coordinates"].ranks.min() > 0
    assert found.tests["coordinates"].ranks.max() < 1


def test_ranks_by_hand() -> None:
    truth = torch.arange(20.0)[:, None]
    offsets = torch.tensor([-2.0, -1.0, 3.0])[:, None, None]
    u = rank_statistics(truth, truth + offsets).tests["coordinates"].ranks
    assert bool(((u > 2 / 4) & (u < 3 / 4)).all())


# ------------------------------------------------------------------------------------- references


def test_references_are_functions_of_y_and_the_seed_that_know_y() -> None:
    problem = Exact(seed=9, number=50)

    def of(y: Tensor, seed: int = 4) -> Tensor:
        found = reference_points(PRIOR, OPERATOR, y, NOISE, (D,), seed=seed)
        assert found is not None
        return found

    points = of(problem.y)
    assert torch.equal(points, of(problem.y))
    assert torch.equal(points[:7], of(problem.y[:7]))
    assert not torch.equal(points, of(problem.y, seed=5))
    misfit = NOISE.misfit(problem.y, OPERATOR(points)).mean()
    assert misfit < NOISE.misfit(problem.y, OPERATOR(PRIOR.sample(50, seed=8))).mean() / 2


def test_references_of_a_non_linear_operator_fit_y_better_than_the_prior() -> None:
    square = operators.from_callable(lambda x: (x @ MATRIX.T) ** 2)
    y = square(PRIOR.sample(40, seed=1))
    points = reference_points(PRIOR, square, y, 0.1, (D,), seed=0)
    assert points is not None
    fits = GaussianNoise(0.1).log_prob
    assert float((fits(y, square(points)) > fits(y, square(PRIOR.sample(40, seed=2)))).sum()) > 30


# ------------------------------------------------------------------------------------- end to end


SMALL = Gaussian(torch.tensor([1.0, 0.0, -1.0]).double(), torch.tensor([1.0, 0.5, 2.0]).double())
PAIR = operators.from_matrix(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]).double())
UNGUIDED = Guidance(transition=Heun())  # draws of the prior, whatever y says


def run(noise: float = 0.3, seed: int = 0, method: Guidance | str = UNGUIDED) -> Calibration:
    return calibrate(
        SMALL, PAIR, noise, method, simulations=100, draws=15, steps=40, seed=seed, progress=False
    )


def test_sampler_is_judged_end_to_end() -> None:
    """Prior draws are right where the noise drowns the data, and wrong where it does not."""
    right = run(noise=1e3)
    assert right.simulations == 100
    assert min(right.p_values.values()) > ALPHA, right.report
    wrong = run()
    assert wrong.kinds["log-likelihood"] == "under-confident", wrong.report
    assert wrong.kinds["coordinates"] == "calibrated", wrong.report
    assert wrong.provenance["method"] == repr(UNGUIDED)
    again, other = run(), run(seed=1)
    for name in ALL:
        assert torch.equal(again.tests[name].ranks, wrong.tests[name].ranks)
        assert not torch.equal(other.tests[name].ranks, wrong.tests[name].ranks)
    # the truths and measurements do not depend on the method that is judged
    auto = run(method="auto")
    assert auto.provenance["operator"] == wrong.provenance["operator"]
    assert tuple(auto.p_values) == ALL


def test_report_and_plot(tmp_path: Path, exact: Exact) -> None:
    found = exact.judge(CONTROLS["half the variance"][0](exact))
    lines = found.report.splitlines()
    assert lines[0] == f"{N} simulations, {L} draws each"
    assert [line.split(":")[0] for line in lines[1:]] == list(ALL)
    path = found.plot(tmp_path / "ranks.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_given_truths_other_noise_and_what_is_left_out() -> None:
    """A prior without density, Poisson counts, chosen coordinates."""
    singular = Gaussian(torch.tensor([0.3, 0.1]).double(), torch.tensor([0.01, 0.0]).double())
    found = calibrate(
        singular,
        operators.Identity(),
        PoissonNoise(rate=1.0),
        UNGUIDED,
        simulations=25,
        draws=7,
        steps=10,
        coordinates=[0],
        progress=False,
    )
    assert tuple(found.p_values) == ("coordinates", "log-likelihood", "tarp")
    assert found.tests["coordinates"].ranks.shape == (25, 1)
    assert "no log-posterior" in found.report

    class Bare(Gaussian):
        sample = log_prob = None  # type: ignore[assignment]

    bare = Bare(torch.zeros(2).double(), 1.0)
    arguments = {"simulations": 25, "draws": 7, "steps": 10, "progress": False}
    with pytest.raises(CapabilityError, match="give truth="):
        calibrate(bare, operators.Identity(), 0.1, UNGUIDED, **arguments)
    truth = normal(25, 2, seed=0)
    found = calibrate(bare, operators.Identity(), 0.1, UNGUIDED, truth=truth, **arguments)
    assert tuple(found.p_values) == ("coordinates", "log-likelihood", "tarp")
    square = operators.from_callable(lambda x: x * x, differentiable=True)
    found = calibrate(bare, square, 0.1, UNGUIDED, truth=truth, **arguments)
    assert "no tarp" in found.report
    with pytest.raises(SamplingError, match="of 25 simulations"):
        calibrate(bare, operators.Identity(), 0.1, Broken(), truth=truth, **arguments)
    kept = calibrate(bare, operators.Identity(), 0.1, Broken(3), truth=truth, **arguments)
    assert kept.simulations == 22
    assert "FAILED: of 25 simulations 3 had draws" in kept.report


class Broken(Guidance):
    """Turns the rows of the first measurements into NaN."""

    def __init__(self, bad: int = 10) -> None:
        super().__init__(transition=Heun())
        object.__setattr__(self, "bad", bad)

    def advance(self, problem, state, step, noise):  # type: ignore[no-untyped-def]
        new = super().advance(problem, state, step, noise)
        first = sorted(set(noise.seeds))[: self.bad]  # type: ignore[attr-defined]
        lost = torch.tensor([seed in first for seed in noise.seeds])
        return {k: torch.where(lost[:, None], torch.nan, v) for k, v in new.items()}


def test_many_coordinates_are_thinned_and_named() -> None:
    draws = normal(8, 30, 2, 9, 9, seed=0)
    found = rank_statistics(draws[0], draws[1:]).tests["coordinates"]
    assert found.ranks.shape == (30, 64)
    assert len(set(found.labels)) == 64
    named = rank_statistics(draws[0], draws[1:], coordinates=[0, 161]).tests["coordinates"]
    assert named.labels == ["x[0, 0, 0]", "x[1, 8, 8]"]


def test_bad_input() -> None:
    truth, draws = normal(30, 3, seed=0), normal(7, 30, 3, seed=1)
    for wrong, message in [
        ({"truth": truth[:5], "draws": draws[:, :5]}, "N >= 20"),
        ({"draws": draws[..., :2]}, "draws must be"),
        ({"draws": draws[:0]}, "draws must be"),
        ({"draws": draws / 0}, "NaN or infinite"),
        ({"references": truth[:, :2]}, "shape of truth"),
        ({"coordinates": [3]}, "0 to 2"),
        ({"coordinates": []}, "0 to 2"),
        ({"alpha": 2.0}, "alpha"),
        ({"log_likelihood": lambda x: x[:, 0] * math.nan}, "log-likelihood is NaN"),
    ]:
        with pytest.raises(InputError, match=message):
            rank_statistics(**{"truth": truth, "draws": draws, **wrong})
    with pytest.raises(InputTypeError, match="draws"):
        rank_statistics(truth, draws.numpy())  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="operator"):
        calibrate(SMALL, None, 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 20"):
        calibrate(SMALL, PAIR, 0.1, simulations=3)
