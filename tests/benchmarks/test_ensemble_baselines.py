"""ES-MDA and pCN where the posterior is known: a linear model of a Gaussian."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posterior import operators, priors
from posterior.streams import normal

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from ensemble_baselines import es_mda, most_probable, pcn, score, tangent

STD = 0.5
MATRIX = normal(1, "matrix", torch.zeros(3, 4, dtype=torch.float64))
VALUES = torch.tensor([1.0, 0.7, 0.4, 1.5], dtype=torch.float64)
PRIOR = priors.Gaussian(torch.tensor([0.5, -1.0, 0.0, 1.0], dtype=torch.float64), VALUES)
Y = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
EXACT = PRIOR.posterior(operators.from_matrix(MATRIX), Y, STD)


def forward(x: Tensor) -> Tensor:
    return x @ MATRIX.T


def off(x: Tensor) -> tuple[float, float]:
    """Largest error of the mean in posterior std, of the covariance relative to the std's."""
    std = EXACT.covariance.diagonal().sqrt()
    mean = ((x.mean(0) - EXACT.mean) / std).abs().max()
    covariance = ((x.T.cov() - EXACT.covariance) / torch.outer(std, std)).abs().max()
    return float(mean), float(covariance)


@pytest.mark.parametrize("rounds", [1, 4])
def test_es_mda_is_exact_for_many_particles(rounds: int) -> None:
    """5 standard errors of J independent draws, twice: the gains are estimates as well."""
    count = 10_000
    mean, covariance = off(es_mda(PRIOR, forward, Y, STD, count, rounds, seed=0))
    assert mean < 10 / math.sqrt(count)
    assert covariance < 10 * math.sqrt(2 / count)


def test_pcn_reproduces_the_posterior() -> None:
    """400 chains, each of which counts as one independent draw at least: 5 standard errors."""
    chains = pcn(PRIOR, forward, Y, STD, chains=400, steps=400, seed=0)
    mean, covariance = off(chains.draws.flatten(0, 1))
    assert mean < 5 / math.sqrt(400)
    assert covariance < 5 * math.sqrt(2 / 400)
    assert chains.r_hat < 1.2
    assert 0.1 < chains.accepted < 0.5


def curved(x: Tensor) -> Tensor:
    """Two outputs that bend."""
    return torch.stack([x[:, 0].sin() + x[:, 1] ** 2, x[:, 2] * x[:, 3]], 1)


def test_a_tangent_agrees_to_first_order() -> None:
    """What it leaves over is of second order: a quarter at half the distance."""
    point, along = PRIOR.mean, normal(2, "along", PRIOR.mean)
    line = tangent(curved, point, 2)
    errors = []
    for h in (1e-2, 5e-3):
        x = (point + h * along)[None]
        errors.append(float((line(x) - curved(x)).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_pcn_about_a_linear_model_draws_from_the_posterior_at_once() -> None:
    about = most_probable(PRIOR, forward, Y, STD)
    torch.testing.assert_close(about.posterior(PRIOR, Y, STD).mean, EXACT.mean)
    chains = pcn(PRIOR, forward, Y, STD, chains=400, steps=60, seed=0, about=about)
    assert chains.accepted == pytest.approx(1)
    mean, covariance = off(chains.draws[-1])
    assert mean < 5 / math.sqrt(400)
    assert covariance < 5 * math.sqrt(2 / 400)


def test_pcn_has_one_law_about_prior_and_tangent() -> None:
    """400 chains each: the means differ by five standard errors of the difference at most.

    The tangent is at the mean of the prior, not where the posterior is: the law does not see it.
    """
    y = torch.tensor([0.5, 0.3], dtype=torch.float64)
    about = tangent(curved, PRIOR.mean, 2)
    one = pcn(PRIOR, curved, y, 1.0, chains=400, steps=400, seed=0)
    other = pcn(PRIOR, curved, y, 1.0, chains=400, steps=400, seed=1, about=about)
    a, b = one.draws.flatten(0, 1), other.draws.flatten(0, 1)
    std = b.std(0)
    assert float(((a.mean(0) - b.mean(0)) / std).abs().max()) < 5 * math.sqrt(2 / 400)
    assert float((a.std(0) / std - 1).abs().max()) < 5 * math.sqrt(2 / 800)


def test_pcn_without_data_keeps_the_prior() -> None:
    """Everything is accepted, and beta grows to its bound."""
    chains = pcn(PRIOR, forward, Y, 1e6, chains=400, steps=60, seed=0)
    x = chains.draws[-1]
    assert chains.accepted > 0.99
    assert chains.beta == 0.99
    assert float(((x.mean(0) - PRIOR.mean) / VALUES.sqrt()).abs().max()) < 5 / math.sqrt(400)


def test_pcn_that_has_not_mixed_says_so() -> None:
    """Half of 10 steps does not forget the start, where the data are precise."""
    assert pcn(PRIOR, forward, Y, 0.02, chains=20, steps=10, seed=0).r_hat > 1.5


def test_scores_of_exact_draws() -> None:
    """Coverage over 4 elements is a multiple of a quarter; the truth is the posterior mean."""
    draws = EXACT.sample(2000, seed=0)
    found = score(draws, EXACT.mean, forward, Y, STD, evaluated=2000)
    std = float(EXACT.covariance.diagonal().mean().sqrt())
    assert found.std == pytest.approx(std, rel=5 / math.sqrt(2 * 2000))
    assert found.error < 5 * std / math.sqrt(2000)
    assert found.coverage == 1
    misfit = (forward(EXACT.mean[None]) - Y).square().sum()
    expected = float(misfit + (MATRIX @ EXACT.covariance @ MATRIX.T).trace()) / (3 * STD**2)
    assert found.chi2 == pytest.approx(expected, rel=0.1)
