"""Choose the methods' defaults for the photo prior: a small sweep on the tuning photographs.

    python benchmarks/defaults_sweep.py --size 64 --steps 50 --draws 2

The photographs are those of the `tune` split, which no reported table uses. Prints, for each
variant, the PSNR of the mean and of single draws, the residual over the noise and the share of the
true pixels between the smallest and the largest draw ((n - 1) / (n + 1) is right), by task.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from photo_problems import TASKS, applies, crops, measured, tasks
from torch import Tensor

import posterior
from posterior import guidance
from posterior.guidance.base import Guidance
from posterior.metrics import psnr
from posterior.problem import Problem
from posterior.transitions import DDIM, DPMSolver2M, Renoise

VARIANTS: dict[str, Guidance] = {
    "DPS": guidance.DPS(),
    "DPS along r": guidance.DPS(inner_steps=0),
    "DPS log_ratio": guidance.DPS(spacing="log_ratio"),
    "DPS eta 0.5": guidance.DPS(transition=DDIM(0.5)),
    "DPS norm": guidance.DPS(likelihood="norm"),
    **{
        f"DPS norm {zeta:g}": guidance.DPS(likelihood="norm", scale=zeta)
        for zeta in (0.25, 2.5, 5.0, 20.0)
    },
    "MMPS": guidance.MMPS(),
    "MMPS multistep": guidance.MMPS(transition=DPMSolver2M()),
    "MMPS eta 4": guidance.MMPS(transition=DPMSolver2M(4.0)),
    **{f"MMPS {k} iterations": guidance.MMPS(iterations=k) for k in (2, 5, 8)},
    **{
        f"MMPS {k} iterations along r": guidance.MMPS(iterations=k, inner_steps=0)
        for k in (2, 3, 5, 8)
    },
    **{f"DDS spread {s}": guidance.DDS(spread=s) for s in (0.1, 0.2, 0.3, 0.5)},
    **{f"DDS {k} iterations": guidance.DDS(iterations=k) for k in (3, 5, 20)},
    "DDS ancestral": guidance.DDS(transition=DDIM(1.0)),
    **{f"DDS eta {e:g}": guidance.DDS(transition=DPMSolver2M(e)) for e in (1.0, 2.0, 8.0)},
    "DDS renoise 0.85, eps kept": guidance.DDS(transition=Renoise(0.85), keep_eps=True),
    "DAPS": guidance.DAPS(),
    **{f"DAPS spread {s}": guidance.DAPS(spread=s) for s in (0.03, 0.05, 0.1, 0.3)},
    **{
        f"REDdiff spread {s} from {start}": guidance.REDdiff(spread=s, initial=start)
        for s in (0.05, 0.1, 0.3)
        for start in ("zero", "auto", "ridge")
    },
    "DAPS published": guidance.DAPS.preset("code/ffhq/gaussian-blur"),
    "DAPS langevin": guidance.DAPS(kernel="langevin"),
    "DAPS hamiltonian": guidance.DAPS(kernel="hamiltonian"),
    "DDS published": guidance.DDS.preset("code/mri"),
    "REDdiff published": guidance.REDdiff.preset("paper"),
    "MCG": guidance.MCG(),
    **{
        f"MCG {zeta:g}": guidance.MCG(scale=zeta)
        for zeta in (0.0, 0.25, 2.5, 5.0, 10.0, 20.0, 50.0)
    },
}


def among(x: Tensor, draws: Tensor) -> Tensor:
    """Where x (B, *event) lies between the smallest and the largest of draws (n, B, *event)."""
    return (draws.amin(0) <= x) & (x <= draws.amax(0))


def main() -> None:
    """Run what is not yet in the results file with these settings, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--photographs", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/defaults_sweep.json"))
    args = parser.parse_args()
    for task in set(args.tasks) - set(tasks(args.size)):
        parser.error(f"no task {task!r}: {', '.join(map(repr, tasks(args.size)))}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    prior = posterior.load_prior("photo")
    photographs = list(crops("tune", args.size).items())[: args.photographs]
    for variant in args.variants:
        method = VARIANTS[variant]
        for task in args.tasks:
            place = tasks(args.size)[task]
            scores = []
            for k, (name, x) in enumerate(photographs):
                key = f"{variant} | {task} | {name} | {args.size} px {args.steps} steps"
                if args.draws != 2:
                    key += f" {args.draws} draws"
                y = measured(place, x, seed=100 + k)
                if not applies(method, Problem(prior, place.operator, y, place.model)):
                    continue
                if results.get(key, {}).get("settings") != repr(method):
                    start = time.perf_counter()
                    run = posterior.sample(
                        prior, place.operator, y, noise=place.model, method=method,
                        steps=args.steps, n=args.draws, seed=k, shape=x.shape[1:], progress=False,
                    )  # fmt: skip
                    results[key] = {
                        "settings": repr(method),
                        "mean": float(psnr(run.mean, x)),
                        "draw": float(torch.stack([psnr(d, x) for d in run.draws]).mean()),
                        "residual": float(run.diagnostics["residual"].mean()),
                        "inside": float(among(x, run.draws).double().mean()),
                        "seconds": time.perf_counter() - start,
                    }
                    args.out.write_text(json.dumps(results, indent=1))
                scores.append(results[key])
            if not scores:
                continue
            mean, draw, residual, inside = (
                sum(s.get(what, math.nan) for s in scores) / len(scores)
                for what in ("mean", "draw", "residual", "inside")
            )
            print(
                f"{variant:28} {task:24} mean {mean:6.2f} dB   draw {draw:6.2f} dB"
                f"   residual {residual:5.2f}   inside {inside:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
