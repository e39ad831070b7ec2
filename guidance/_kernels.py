"""Markov kernels on x0 with the network left out: Langevin, damped Hamiltonian, Metropolis.

Targets are densities pi known by their log gradient g(x) or, up to a constant, by log pi(x) itself,
per row. z are standard normal, fresh in every step: `noise(name, j)`. The step length h is a number
or one for each row.

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


def langevin(x: Tensor, gradient: Gradient, h: float | Tensor, steps: int, noise: Noise) -> Tensor:
    """`steps` unadjusted Langevin steps from x (B, *event)."""
    h, root = rows.expand(h, x), _root(h, x)
    for j in range(steps):
        x = x + h * gradient(x) + math.sqrt(2) * root * noise("kernel", j)
    return x


def hamiltonian(
    x: Tensor, gradient: Gradient, h: float | Tensor, steps: int, noise: Noise, momentum: float
) -> Tensor:
    """`steps` damped Hamiltonian steps from x with a fresh velocity; 0 <= momentum < 1."""
    v, root = noise("velocity"), _root(h, x)
    for j in range(steps):
        z = noise("kernel", j)
        v = momentum * v + root * gradient(x) + math.sqrt(2 * (1 - momentum)) * z
        x = x + root * v
    return x


def metropolis(
    x: Tensor, log_density: Callable[[Tensor], Tensor], h: float | Tensor, steps: int, noise: Noise
) -> Tensor:
    """`steps` random-walk Metropolis steps from x; `log_density` gives (B,).

    A proposal whose density is not a number is refused.
    """
    now, root = log_density(x), _root(h, x)
    for j in range(steps):
        proposal = x + root * noise("kernel", j)
        then = log_density(proposal)
        u = noise.uniform("accept", j, shape=())
        accepted = torch.log(u).to(now) < then - now  # False for nan
        x, now = rows.where(accepted, proposal, x), torch.where(accepted, then, now)
    return x


def largest_eigenvalue(product: Gradient, start: Tensor, iterations: int = 20) -> Tensor:
    """That of a positive semi-definite K, (B,), from below, by the power method from random rows.

    0 where K sends the row to 0, nan where something is not finite.
    """
    v, size = start, rows.norm(start)
    for _ in range(iterations):
        v = product(v * rows.expand(torch.where(size > 0, 1 / size, 0.0), v))
        size = rows.norm(v)
    return size


def _root(h: float | Tensor, x: Tensor) -> float | Tensor:
    """The square root of h, beside x."""
    h = rows.expand(h, x)
    return h.sqrt() if isinstance(h, Tensor) else math.sqrt(h)
