"""Are the methods calibrated? Ranks of the truth among draws, on a linear-Gaussian problem.

    python benchmarks/calibration.py --simulations 200 --draws 63 --steps 400

d = 8, four random measurements (of `Denoising` all eight coordinates), a prior with correlated
coordinates of unit scale. Prints a Markdown table with the p-value of each statistic (uniform
ranks) and the signed verdict on the log-posterior ranks, which see the width of the draws. Results
are stored method by method, so that a run that was stopped goes on.
`tests/core/test_calibration.py` has negative controls.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from posterior import guidance, operators, priors
from posterior.calibration import calibrate
from posterior.guidance.base import Guidance
from posterior.operators import from_matrix
from posterior.samples import to_json, write_atomically
from posterior.transitions import DPMSolver2M

D, M = 8, 4
METHODS: dict[str, Guidance] = {
    "MMPS": guidance.MMPS(iterations=M),
    "MMPS, 25 steps": guidance.MMPS(iterations=M),
    "MMPS, 25 multistep moves": guidance.MMPS(iterations=M, transition=DPMSolver2M()),
    "Denoising, 25 steps": guidance.Denoising(),
    "DPS": guidance.DPS(),
    "DPS along r": guidance.DPS(inner_steps=0),
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
STEPS = {
    "EnKG": 80,
    **dict.fromkeys(("MMPS, 25 steps", "MMPS, 25 multistep moves", "Denoising, 25 steps"), 25),
}  # else --steps


def setting() -> tuple[priors.Gaussian, operators.Operator]:
    """The prior and the measurement."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    covariance = root @ root.T / D + 0.3 * torch.eye(D, dtype=torch.float64)
    matrix = torch.randn(M, D, generator=generator, dtype=torch.float64)
    return priors.Gaussian(torch.zeros(D, dtype=torch.float64), covariance), from_matrix(matrix)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of what is there."""
    head = list(next(iter(results.values()))["p_values"])
    lines = [
        f"| method | {' | '.join(head)} | by the log-posterior, its draws are |",
        "|---" * (len(head) + 2) + "|",
    ]
    for name, result in results.items():
        shown = " | ".join(f"{p:.2g}" for p in result["p_values"].values())
        lines.append(f"| {name} | {shown} | {result['verdict']['log-posterior']} |")
    return "\n".join(lines)


def main() -> None:
    """Run the methods that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--draws", type=int, default=63)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--plots", type=Path, help="folder for a picture of each method")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/calibration.json"))
    args = parser.parse_args()
    prior, operator = setting()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.methods:
        method, steps = METHODS[name], STEPS.get(name, args.steps)
        settings = f"{method!r}, {steps} steps, {args.simulations} x {args.draws}"
        if results.get(name, {}).get("settings") == settings:
            continue
        start = time.perf_counter()
        measured = operators.Identity() if "identity" in method.needs else operator
        result = calibrate(
            prior, measured, 0.5, method, simulations=args.simulations, draws=args.draws,
            steps=steps, progress=False,
        )  # fmt: skip
        results[name] = {
            "settings": settings,
            "p_values": result.p_values,
            "verdict": result.verdict,
            "seconds": time.perf_counter() - start,
        }
        write_atomically(args.out, to_json(results))
        print(f"{name}: {results[name]['seconds']:.0f} s\n{result.report}\n", flush=True)
        if args.plots is not None:
            label = name.lower().replace(",", "").replace(" ", "-")
            result.plot(args.plots / f"calibration-{label}.png")
    print(table({name: results[name] for name in METHODS if name in results}))


if __name__ == "__main__":
    main()
