"""How much better one condition explains x than another, by denoising alone.

With x_t = alpha x + sigma eps, r = sigma / alpha and exact denoisers under a and b (from the I-MMSE
relation; X. Kong, R. Brekelmans, G. Ver Steeg, "Information-theoretic diffusion", ICLR 2023, arXiv
2302.03792),

    log p(x | a) - log p(x | b) = int E[|eps - eps_b(x_t)|^2 - |eps - eps_a(x_t)|^2] d log r

over all r. Here the integral is a sum over levels, with one eps for each that both share; the error
of a network's denoisers stays in it, and that of a latent model speaks of latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from posterior import grids, rows
from posterior.priors.base import Prior
from posterior.streams import Noise


def likelihood_ratio(
    x: Tensor, a: Prior, b: Prior, levels: int, seeds: Sequence[int], first_draw: int = 0
) -> Tensor:
    """An estimate of log p(x | a) - log p(x | b), in nats, (n, B).

    Args:
        x: draws (n, B, *event).
        a, b: the prior under two conditions, without guidance.
        levels: evenly in log r over the range that the prior knows, 2 or more; each costs a call
            of both priors for each draw.
        seeds: of eps, one for each measurement.
        first_draw: the number of the first draw.
    """
    n, measurements = x.shape[:2]
    owner = [m for _ in range(n) for m in range(measurements)]
    numbers = tuple(first_draw + j for j in range(n) for _ in range(measurements))
    flat, particles = x.flatten(0, 1), (0,) * len(owner)
    seeds_of_rows = tuple(seeds[m] for m in owner)
    noise = Noise(seeds_of_rows, numbers, particles, tuple(x.shape[2:]), x.dtype, x.device)
    a, b = a.take(owner), b.take(owner)
    alone = math.isinf(a.schedule.ratio_range[1])  # then the first level is noise alone
    grid = grids.log_ratio(a.schedule, levels + alone)[alone:-1]
    logs = [math.log(level.ratio) for level in grid]
    total = flat.new_zeros(len(owner))
    for k, level in enumerate(grid):
        eps = noise.at(k)("likelihood ratio")
        x_t = level.alpha * flat + level.sigma * eps
        error_a, error_b = (rows.total((eps - p(x_t, level.t).eps) ** 2) for p in (a, b))
        weight = (logs[max(k - 1, 0)] - logs[min(k + 1, levels - 1)]) / 2  # trapezia
        total = total + weight * (error_b - error_a)
    return total.reshape(n, measurements)
