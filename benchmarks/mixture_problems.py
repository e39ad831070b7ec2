"""The 25-mode Gaussian-mixture inverse problems of MCGDiff, and the distance they are scored with.

G. Cardoso, Y. Janati El Idrissi, S. Le Corff, E. Moulines, "Monte Carlo guided diffusion for
Bayesian linear inverse problems", ICLR 2024, arXiv 2308.07983.

    x ~ sum_k w_k N(m_k, I),   m_(i, j) = (8i, 8j, 8i, 8j, ...),  i, j in {-2, ..., 2}
    w_k ~ z_k^2, normalised,   z_k ~ N(0, 1)
    A = U diag(s) V',          G = U S V' a Gaussian d_y x d matrix, s ~ U(0, 1) in falling order
    y = A x* + sigma n,        sigma = u max(s), u ~ U(0, 1), x* from the prior

The posterior is a mixture again and known exactly. Everything, the weights too, is a pure function
of (d, d_y, index), by the library's own random numbers (the published code draws the weights before
it sets its seed, and skips problems on which its covariance is not positive-definite; here none is
skipped, since the conditioning never forms that matrix).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from posterior.operators import Operator, from_matrix
from posterior.priors import GaussianMixture
from posterior.streams import Noise, key_of

SIDE = (-2, -1, 0, 1, 2)
SPACING = 8.0
HEAVY = 0.01  # a mode counts from this weight on


class MixtureProblem(NamedTuple):
    """One problem with its solution."""

    prior: GaussianMixture
    operator: Operator
    y: Tensor  # (1, d_y)
    noise_std: float
    exact: GaussianMixture

    @property
    def modes(self) -> int:
        """Modes of the posterior that weigh more than 1 %."""
        return int((self.exact.weights > HEAVY).sum())


def seed_of(d: int, dy: int, index: int, what: str) -> int:
    """The seed of one use of randomness in problem `index` of the cell (d, dy)."""
    high, low = key_of(index, f"mixture d={d} dy={dy} {what}")
    return (high << 32) | low


def mode_means(d: int) -> Tensor:
    """The 25 means (25, d)."""
    if d < 2 or d % 2:
        raise ValueError(f"d must be even, got {d}")
    pairs = torch.tensor(list(itertools.product(SIDE, repeat=2)), dtype=torch.float64)
    return SPACING * pairs.repeat(1, d // 2)


def problem(
    d: int, dy: int, index: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> MixtureProblem:
    """Problem number `index` of the cell (d, dy), with its exact posterior.

    Args:
        d: dimension of x, even.
        dy: dimension of y, at most d.
        index: any integer.
        dtype: of y and of the draws; the problem and its posterior are made in float64.
        device: where the methods run.
    """
    if not 1 <= dy <= d:
        raise ValueError(f"dy must be from 1 to d = {d}, got {dy}")

    def stream(what: str) -> Noise:
        return Noise.single(seed_of(d, dy, index, what), (), torch.float64)

    means = mode_means(d)
    squares = stream("weights")("z", shape=(len(means),))[0].square()
    prior = GaussianMixture(squares / squares.sum(), means.to(device, dtype), 1.0)

    gaussian = stream("operator")("entries", shape=(dy, d))[0]
    u, _, vt = torch.linalg.svd(gaussian, full_matrices=False)
    s = stream("singular values").uniform("u", shape=(dy,))[0].sort(descending=True).values
    matrix = (u * s) @ vt
    noise_std = float(stream("noise level").uniform("u", shape=(1,))[0] * s[0])

    truth = prior.sample(1, seed=seed_of(d, dy, index, "truth"))[0].double().cpu()
    error = stream("noise")("n", shape=(dy,))[0]
    y = (matrix @ truth + noise_std * error).to(device, dtype)[None]
    operator = from_matrix(matrix)
    return MixtureProblem(prior, operator, y, noise_std, prior.posterior(operator, y, noise_std))


def heaviest_mode(exact: GaussianMixture) -> GaussianMixture:
    """The law of the heaviest mode alone: what a sampler gives that finds one mode."""
    return exact.given(int(exact.weights.argmax()))


def sliced_wasserstein(x: Tensor, y: Tensor, slices: int = 1000, seed: int = 0) -> float:
    """Mean over random unit directions of the Wasserstein-1 distance of the projections.

    In one dimension it is the integral of the distance of the quantile functions, which are steps:
    with equal numbers of draws, the mean distance of the sorted projections.

    Args:
        x: draws (n, *event), finite.
        y: draws (m, *event), finite.
        slices: number of directions.
        seed: of the directions, which are the same for every pair of one dimension.
    """
    x, y = x.double().flatten(1), y.double().flatten(1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"draws of {x.shape[1]} and of {y.shape[1]} numbers are not comparable")
    if not (len(x) and len(y) and torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("the distance needs finite draws, at least one on each side")
    n, m = len(x), len(y)
    # the quantile functions step at k/n and k/m: in units of 1/(n m), integers
    steps = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    widths = steps.diff().to(x) / (n * m)
    in_x, in_y = (steps[:-1] // m).to(x.device), (steps[:-1] // n).to(x.device)

    noise = Noise.single(seed, (x.shape[1],), torch.float64, x.device, slices)
    directions = noise("directions")
    directions = directions / directions.norm(dim=1, keepdim=True)
    total = 0.0
    for part in directions.split(100):
        quantiles_x = (part @ x.T).sort(dim=1).values[:, in_x]
        quantiles_y = (part @ y.T).sort(dim=1).values[:, in_y]
        total += float(((quantiles_x - quantiles_y).abs() @ widths).sum())
    return total / slices
