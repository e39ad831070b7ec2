"""Two methods that EnKG is compared with where the prior is a Gaussian: ES-MDA and pCN.

Both only evaluate the forward model, and need draws of the prior N(m, C) instead of its denoiser.
Particles are (J, *event), y is (m,), with noise N(0, std^2 I).

ES-MDA, the ensemble smoother with multiple data assimilation: A. Emerick and A. Reynolds,
Computers and Geosciences 55 (2013). N rounds of the ensemble Kalman update, each with the noise
variance times alpha = N, so that 1 / alpha adds up to 1 and the law is exact for linear A and many
particles:

    x_j <- x_j + C_xY (C_YY + alpha std^2 I)^-1 (y + alpha^1/2 std e_j - A(x_j))

pCN, preconditioned Crank-Nicolson: S. Cotter, G. Roberts, A. Stuart, D. White, Statistical Science
28 (2013). A Markov chain that leaves p(x | y) invariant for any A, whatever the dimension:

    x' = m + (1 - beta^2)^1/2 (x - m) + beta z,   z ~ N(0, C),
    accepted with probability min(1, exp(Phi(x) - Phi(x'))),   Phi = |y - A(x)|^2 / (2 std^2)

The first half of a chain is burn-in, in which beta moves towards accepting a quarter; it is fixed
in the second half, which alone is kept. Chains that have not forgotten their start show it in
`r_hat`.

Precise data make beta small and the chains slow. Where A has a gradient they may go about another
Gaussian than the prior (F. Pinski, G. Simpson, A. Stuart, H. Weber, SIAM J. Sci. Comput. 37
(2015)): the exact posterior of T(x) = A(m) + J (x - m), the model's `Tangent` at the most probable
m, with

    Phi = (|y - A(x)|^2 - |y - T(x)|^2) / (2 std^2)

which leaves the same p(x | y) invariant, and is zero where A is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior import operators
from posterior.priors import Gaussian
from posterior.streams import Noise, key_of

Forward = Callable[[Tensor], Tensor]
"""(J, *event) -> (J, m)."""

ACCEPTED = 0.25


@dataclass(frozen=True)
class Chains:
    """What pCN kept.

    Attributes:
        draws: (steps, chains, *event), of the second half.
        accepted: share of the proposals of that half.
        beta: its step.
    """

    draws: Tensor
    accepted: float
    beta: float

    @property
    def r_hat(self) -> float:
        """Potential scale reduction (Gelman and Rubin 1992), its median over x; 1 is converged."""
        x = self.draws.double().flatten(2)
        n = len(x)
        within = x.var(0).mean(0)
        between = x.mean(0).var(0)
        return float(((n - 1) / n + between / within).sqrt().median())


@dataclass(frozen=True)
class Tangent:
    """The linear model that agrees with A at a point, and so do the first derivatives.

    Attributes:
        point: (*event).
        value: A(point), (m,).
        jacobian: (m, N), over the flat x.
    """

    point: Tensor
    value: Tensor
    jacobian: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(J, *event) -> (J, m)."""
        return self.value + (x - self.point).flatten(1) @ self.jacobian.T

    def posterior(self, prior: Gaussian, y: Tensor, std: float) -> Gaussian:
        """The exact law of x if the model were this one."""
        operator = operators.from_matrix(self.jacobian, tuple(self.point.shape))
        return prior.posterior(operator, y - self(torch.zeros_like(self.point)[None])[0], std)


def tangent(forward: Forward, point: Tensor, outputs: int) -> Tangent:
    """Of a differentiable model with m = `outputs` that treats particles apart: m evaluations."""
    x = point.expand(outputs, *point.shape).clone().requires_grad_()
    values = forward(x)
    (jacobian,) = torch.autograd.grad(values.diagonal().sum(), x)
    return Tangent(point, values[0].detach(), jacobian.flatten(1))


def most_probable(
    prior: Gaussian, forward: Forward, y: Tensor, std: float, rounds: int = 7
) -> Tangent:
    """The tangent where p(x | y) is largest, by Gauss-Newton from the mean of the prior."""
    found = tangent(forward, prior.mean, len(y))
    for _ in range(rounds):
        found = tangent(forward, found.posterior(prior, y, std).mean, len(y))
    return found


def es_mda(
    prior: Gaussian, forward: Forward, y: Tensor, std: float, particles: int, rounds: int, seed: int
) -> Tensor:
    """The ensemble (J, *event) after `rounds` updates: J * rounds evaluations."""
    x = prior.sample(particles, seed=key_of(seed, "ES-MDA start")[0])
    noise = Noise.single(seed, y.shape, y.dtype, y.device, rows=particles)
    eye = torch.eye(len(y), dtype=y.dtype)
    for k in range(rounds):
        outputs = forward(x)
        spread = outputs - outputs.mean(0)
        system = spread.T @ spread / (particles - 1) + rounds * std**2 * eye
        target = y + math.sqrt(rounds) * std * noise("ES-MDA", k)
        gain = torch.linalg.solve(system, (target - outputs).T).T  # (J, m)
        flat = x.flatten(1)
        cross = spread.T @ (flat - flat.mean(0)) / (particles - 1)  # C_Yx
        x = (flat + gain @ cross).reshape(x.shape)
    return x


def pcn(
    prior: Gaussian,
    forward: Forward,
    y: Tensor,
    std: float,
    chains: int,
    steps: int,
    seed: int,
    about: Tangent | None = None,
) -> Chains:
    """Chains from draws of the prior, or of the posterior of the model that they go `about`.

    chains * (steps + 1) evaluations.
    """
    reference = prior if about is None else about.posterior(prior, y, std)

    def misfit(x: Tensor) -> Tensor:
        square = (forward(x) - y).square().sum(1)
        if about is not None:
            square = square - (about(x) - y).square().sum(1)
        return square / (2 * std**2)

    x, beta = reference.sample(chains, seed=key_of(seed, "pCN start")[0]), 0.2
    phi = misfit(x)
    noise = Noise.single(seed, (1,), y.dtype, y.device, rows=chains)
    burn, kept, accepted = steps // 2, [], 0.0
    for k in range(steps):
        z = reference.sample(chains, seed=key_of(seed, "pCN", k)[0]) - reference.mean
        proposal = reference.mean + math.sqrt(1 - beta**2) * (x - reference.mean) + beta * z
        there = misfit(proposal)
        moves = noise.uniform("accept", k)[:, 0].log() < phi - there
        x = torch.where(moves.reshape(-1, *[1] * (x.ndim - 1)), proposal, x)
        phi = torch.where(moves, there, phi)
        share = float(moves.double().mean())
        if k < burn:  # steps of falling size (Robbins and Monro 1951)
            beta = min(0.99, beta * math.exp((share - ACCEPTED) / (k + 1) ** 0.4))
        else:
            kept.append(x)
            accepted += share / (steps - burn)
    return Chains(torch.stack(kept), accepted, beta)


@dataclass(frozen=True)
class Score:
    """Draws against the truth they were made from.

    Attributes:
        error: root mean square of mean - truth.
        std: root mean square of the standard deviation.
        coverage: share of the elements whose truth lies in the central 90 % of the draws.
        chi2: |y - A(x)|^2 / (m std^2), mean over draws; about 1 for draws of the posterior.
    """

    error: float
    std: float
    coverage: float
    chi2: float


def score(
    draws: Tensor, truth: Tensor, forward: Forward, y: Tensor, std: float, evaluated: int = 16
) -> Score:
    """Of draws (n, *event); `evaluated` of them, evenly spaced, are put through the model."""
    x = draws.double().flatten(1)
    t = truth.double().reshape(-1)
    low, high = torch.quantile(x, torch.tensor([0.05, 0.95], dtype=x.dtype), dim=0)
    some = draws[torch.linspace(0, len(draws) - 1, min(evaluated, len(draws))).long()]
    return Score(
        error=float((x.mean(0) - t).square().mean().sqrt()),
        std=float(x.var(0).mean().sqrt()),
        coverage=float(((low <= t) & (t <= high)).double().mean()),
        chi2=float((forward(some) - y).double().square().mean()) / std**2,
    )
