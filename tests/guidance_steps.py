"""Gaussian problems whose steps can be written down by hand, for the tests of guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posterior import operators, priors
from posterior.guidance.base import Guidance, Step
from posterior.operators.noise import GaussianNoise
from posterior.problem import Problem
from posterior.schedules import EDM, Discrete, Level, RectifiedFlow, Schedule, VPLinear
from posterior.streams import Noise

D, M = 5, 3
SCHEDULES = [VPLinear(), Discrete.linear(), EDM(), RectifiedFlow()]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded torch generator for test data."""
    return torch.Generator().manual_seed(seed)


def problem(schedule: Schedule, std: float = 0.3) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """A Gaussian prior N(mu, S) and y = A x + noise for two rows; and mu, S, A."""
    g = generator()
    mu = torch.randn(D, generator=g, dtype=torch.float64)
    root = torch.randn(D, D, generator=g, dtype=torch.float64)
    cov = root @ root.T / D + 0.1 * torch.eye(D, dtype=torch.float64)
    matrix = torch.randn(M, D, generator=g, dtype=torch.float64)
    y = torch.randn(2, M, generator=g, dtype=torch.float64)
    prior = priors.Gaussian(mu, cov, schedule=schedule)
    operator = operators.from_matrix(matrix)
    return Problem(prior, operator, y, GaussianNoise(std)), mu, cov, matrix


def by_hand(mu: Tensor, cov: Tensor, t: Level, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x0 | x_t] and J = alpha S (alpha^2 S + sigma^2 I)^-1 of N(mu, S)."""
    eye = torch.eye(D, dtype=torch.float64)
    jacobian = t.alpha * cov @ torch.linalg.inv(t.alpha**2 * cov + t.sigma**2 * eye)
    return mu + (x_t - t.alpha * mu) @ jacobian.T, jacobian


def ancestral(x0: Tensor, x_t: Tensor, t: Level, s: Level, z: Tensor) -> Tensor:
    """A draw of q(x_s | x_t, x0) from the joint law of x_s and x_t, not from the DDIM formula."""
    step_alpha = t.alpha / s.alpha
    step_variance = t.sigma**2 - step_alpha**2 * s.sigma**2
    mean = step_alpha * s.sigma**2 / t.sigma**2 * x_t + s.alpha * step_variance / t.sigma**2 * x0
    return mean + math.sqrt(step_variance * s.sigma**2) / t.sigma * z


def one_step(
    method: Guidance, problem_: Problem, step: Step, x_t: Tensor, **carried: Tensor
) -> dict[str, Tensor]:
    """`advance`, and the noise that it used as "z"."""
    noise = stream(x_t)
    state = method.advance(problem_, {"x": x_t, "x0": x_t, **carried}, step, noise)
    return {**state, "z": noise("move")}


def stream(x_t: Tensor) -> Noise:
    """The noise of `one_step`."""
    return Noise.single(3, x_t.shape[1:], torch.float64, rows=len(x_t)).at(1)
