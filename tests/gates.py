"""Statistical gates for samplers: each returns a p-value, to be held against alpha = 1e-3.

Draws are whitened with the exact law first, so that under the null hypothesis the rows are standard
normal. The three Gaussian gates and the mode counts catch different errors (none catches all), so
a sampler is held against each of them, and each has a negative control in the tests.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

ALPHA = 1e-3


def whiten(draws: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Rows (n, *event) of N(mean, covariance (d, d)) -> standard normal rows (n, d), float64."""
    factor = torch.linalg.cholesky(covariance.double())
    centred = (draws.double() - mean.double()).flatten(1)
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def chi2_mean(white: Tensor) -> float:
    """n |mean|^2 against chi-square with d degrees of freedom: a shifted mean."""
    n, d = white.shape
    return float(stats.chi2.sf(float(n * white.mean(0).square().sum()), d))


def chi2_variance(white: Tensor) -> float:
    """Total sum of squares about the known mean against chi-square n d, two-sided: the width."""
    n, d = white.shape
    total = float(white.square().sum())
    return float(2 * min(stats.chi2.sf(total, n * d), stats.chi2.cdf(total, n * d)))


def radius_ks(white: Tensor) -> float:
    """Squared radii against chi-square d (Kolmogorov-Smirnov): the shape of the radial law."""
    radii = white.square().sum(1).numpy()
    return float(stats.kstest(radii, stats.chi2(white.shape[1]).cdf).pvalue)


def mode_counts(assigned: Tensor, weights: Tensor, least: float = 5.0) -> float:
    """How often each mode was drawn against its weight (chi-square); rare modes are pooled.

    Args:
        assigned: the mode of each draw (n,).
        weights: the true weights (K,).
        least: smallest expected count of a cell.
    """
    n = assigned.numel()
    counts = torch.bincount(assigned, minlength=weights.numel()).double().numpy()
    expected = (n * weights.double() / weights.double().sum()).numpy()
    order = np.argsort(-expected)
    cells: list[tuple[float, float]] = []
    seen = wanted = 0.0
    for k in order:  # from frequent to rare
        seen, wanted = seen + counts[k], wanted + expected[k]
        if wanted >= least:
            cells.append((seen, wanted))
            seen = wanted = 0.0
    if wanted > 0 or seen > 0:
        if cells and wanted < least:
            last = cells.pop()
            cells.append((last[0] + seen, last[1] + wanted))
        else:
            cells.append((seen, wanted))
    if len(cells) == 1:
        return 1.0
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))


def mixture_gates(draws: Tensor, mixture: object) -> dict[str, float]:
    """All gates of draws (n, *event) against a `GaussianMixture`.

    Draws are assigned to the component of largest responsibility, and whitened with it: modes must
    be well separated (6 standard deviations) for the assignment not to bias the gates.
    """
    from posterior.priors import GaussianMixture

    assert isinstance(mixture, GaussianMixture)
    draws = draws.double()
    assigned = mixture.log_components(draws).argmax(1)
    covariances = mixture.covariances
    white = torch.cat(
        [
            whiten(draws[assigned == k], mixture.means[k], covariances[k])
            for k in range(len(mixture))
            if bool((assigned == k).any())
        ]
    )
    return {
        "mean": chi2_mean(white),
        "variance": chi2_variance(white),
        "radius": radius_ks(white),
        "modes": mode_counts(assigned, mixture.weights),
    }


def gaussian_gates(draws: Tensor, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """All gates of draws (n, *event) against N(mean, covariance)."""
    white = whiten(draws, mean, covariance)
    return {
        "mean": chi2_mean(white),
        "variance": chi2_variance(white),
        "radius": radius_ks(white),
    }


def passes(gates: dict[str, float], alpha: float = ALPHA) -> bool:
    """Whether no gate rejects."""
    return min(gates.values()) > alpha
