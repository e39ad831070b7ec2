"""Are the methods calibrated? Ranks of the truth among draws, on a linear-Gaussian problem.

    python benchmarks/calibration.py --simulations 200 --draws 63 --steps 400

d = 8, four random measurements, a prior with correlated coordinates of unit scale. Prints a
Markdown table with the p-value of each statistic (uniform ranks) and the signed verdict on the
log-posterior ranks, which see the width of the draws. `tests/core/test_calibration.py` has negative
controls.
"""

from __future__ import annotations

import argparse

import torch

from posterior import guidance, operators, priors
from posterior.calibration import calibrate
from posterior.guidance.base import Guidance

D, M = 8, 4
METHODS: dict[str, Guidance] = {
    "MMPS": guidance.MMPS(iterations=M),
    "DPS": guidance.DPS(),
    "DPS as published, zeta 0.1": guidance.DPS(likelihood="norm", scale=0.1),
    "DDS": guidance.DDS(spread=1.0, iterations=D),
    "DDS as published": guidance.DDS.preset("code/mri"),
    "DAPS": guidance.DAPS(spread=1.0, inner_steps=D),
    "DAPS, width sigma": guidance.DAPS(spread=float("inf"), inner_steps=D),
    "MCG": guidance.MCG(),
    "RED-diff": guidance.REDdiff(spread=1.0),
    "EnKG": guidance.EnKG(particles=63),
    "TDS, 16 particles": guidance.TDS(particles=16, spread=1.0),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--draws", type=int, default=63)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    covariance = root @ root.T / D + 0.3 * torch.eye(D, dtype=torch.float64)
    matrix = torch.randn(M, D, generator=generator, dtype=torch.float64)
    prior = priors.Gaussian(torch.zeros(D, dtype=torch.float64), covariance)
    operator = operators.from_matrix(matrix)
    head: list[str] = []
    for name in args.methods:
        steps = 80 if name == "EnKG" else args.steps
        result = calibrate(
            prior, operator, 0.5, METHODS[name], simulations=args.simulations, draws=args.draws,
            steps=steps, progress=False,
        )  # fmt: skip
        if not head:
            head = list(result.p_values)
            print(f"| method | {' | '.join(head)} | log-posterior verdict |")
            print("|---" * (len(head) + 2) + "|")
        shown = " | ".join(f"{p:.2g}" for p in result.p_values.values())
        print(f"| {name} | {shown} | {result.verdict['log-posterior']} |", flush=True)


if __name__ == "__main__":
    main()
