"""Markov kernels on x0 with the network left out: Langevin, damped Hamiltonian, Metropolis.

Targets are densities pi known by their log gradient g(x) or, up to a constant, by log pi(x) itself,
per row. z are standard normal, fresh in every step: `noise(name, j)`.

    langevin     x <- x + h g + sqrt(2 h) z                            unadjusted
    hamiltonian  v <- m v + sqrt(h) g + sqrt(2 (1 - m)) z, x <- x + sqrt(h) v   (SGHMC, Chen et al.
                 2014; m = 0 is langevin)
    metropolis   x' = x + sqrt(h) z, accepted with probability min(1, pi(x') / pi(x))
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from posterior import rows
from posterior.streams import Noise

Gradient = Callable[[Tensor], Tensor]


def langevin(x: Tensor, gradient: Gradient, h: float, steps: int, noise: Noise) -> Tensor:
    """`steps` unadjusted Langevin steps from x (B, *event)."""
    for j in range(steps):
        x = x + h * gradient(x) + math.sqrt(2 * h) * noise("kernel", j)
    return x


def hamiltonian(
    x: Tensor, gradient: Gradient, h: float, steps: int, noise: Noise, momentum: float
) -> Tensor:
    """`steps` damped Hamiltonian steps from x with a fresh velocity; 0 <= momentum < 1."""
    v = noise("velocity")
    for j in range(steps):
        z = noise("kernel", j)
        v = momentum * v + math.sqrt(h) * gradient(x) + math.sqrt(2 * (1 - momentum)) * z
        x = x + math.sqrt(h) * v
    return x


def metropolis(
    x: Tensor, log_density: Callable[[Tensor], Tensor], h: float, steps: int, noise: Noise
) -> Tensor:
    """`steps` random-walk Metropolis steps from x; `log_density` gives (B,).

    A proposal whose density is not a number is refused.
    """
    now = log_density(x)
    for j in range(steps):
        proposal = x + math.sqrt(h) * noise("kernel", j)
        then = log_density(proposal)
        u = noise.uniform("accept", j, shape=())
        accepted = torch.log(u).to(now) < then - now  # False for nan
        x, now = rows.where(accepted, proposal, x), torch.where(accepted, then, now)
    return x
