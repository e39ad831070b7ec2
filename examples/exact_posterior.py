"""How far is a method from the truth? A mixture prior, whose posterior is known exactly.

    python examples/exact_posterior.py

Prints mean and standard deviation of x | y by the exact posterior, by DPS with the likelihood's own
scale, and by DPS as published, whose step does not know the noise level.
"""

from __future__ import annotations

import torch

import posterior
from posterior import guidance, operators, priors


def main(n: int = 500, steps: int = 100) -> None:
    """Three Gaussians in the plane; the sum of the coordinates is measured."""
    weights = torch.tensor([0.5, 0.3, 0.2])
    means = torch.tensor([[-2.0, 0.0], [1.0, 2.0], [2.0, -1.0]])
    prior = priors.GaussianMixture(weights, means, 0.2)
    operator = operators.from_matrix(torch.tensor([[1.0, 1.0]]))
    y, noise = torch.tensor([[2.0]]), 0.5

    results = {
        "exact": prior.posterior(operator, y, noise=noise).sample(n, seed=0),
        "DPS": posterior.sample(
            prior, operator, y, noise=noise, method=guidance.DPS(), n=n, steps=steps
        ).draws[:, 0],
        "DPS as published": posterior.sample(
            prior,
            operator,
            y,
            noise=noise,
            method=guidance.DPS(likelihood="norm", scale=0.3),
            n=n,
            steps=steps,
        ).draws[:, 0],
    }
    for name, x in results.items():
        mean, std = x.mean(0).tolist(), x.std(0).tolist()
        print(f"{name:18} mean ({mean[0]:+.2f}, {mean[1]:+.2f})   std ({std[0]:.2f}, {std[1]:.2f})")


if __name__ == "__main__":
    main()
