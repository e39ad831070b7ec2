"""The error of the photo prior's estimates by noise level, beside laws for it.

    python benchmarks/estimate_error.py --size 64 --photographs 6

Photographs of the `tune` split, which did not train the prior, with noise added: the root mean
square of E[x0 | x_t] - x0 over all of them, and `guidance._consistency.photograph_variance` with
the `detail` that fits it, 0.15, and with the default of DAPS.
"""

from __future__ import annotations

import argparse
import math

import torch
from photo_problems import crops

import posterior
from posterior.guidance._consistency import photograph_variance
from posterior.streams import normal


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--photographs", type=int, default=6)
    parser.add_argument("--levels", type=int, default=16)
    args = parser.parse_args()
    prior = posterior.load_prior("photo")
    x = torch.cat(list(crops("tune", args.size).values())[: args.photographs])
    print(f"{len(x)} photographs\n")
    print("| sigma / alpha | error | law, 0.15 / error | law, 0.2 / error |\n|---|---|---|---|")
    for log_ratio in torch.linspace(math.log(0.005), math.log(60), args.levels).tolist():
        level = prior.schedule.level_of_ratio(math.exp(log_ratio))
        x_t = level.alpha * x + level.sigma * normal(0, f"{log_ratio:.3f}", x)
        error = float((prior(x_t, level.t).x0 - x).square().mean().sqrt())
        fitted, default = (
            math.sqrt(photograph_variance(level, prior.range, detail)) / error
            for detail in (0.15, 0.2)
        )
        print(f"| {level.ratio:.4f} | {error:.4f} | {fitted:.2f} | {default:.2f} |", flush=True)


if __name__ == "__main__":
    main()
