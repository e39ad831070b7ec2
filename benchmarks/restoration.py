"""The table of the README: a method beside classical ones on held-out photographs, 128x128.

    python benchmarks/restoration.py --method mmps --photographs 8 --draws 4

The photographs are those of the `test` split: neither prior nor method has seen them before.
Results are appended cell by cell to benchmarks/results/restoration-METHOD.json, so that a run that
was stopped goes on. The table gives the mean over photographs; differences carry the standard error
of the paired difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from photo_problems import TASKS, crops
from torch import Tensor

import posterior
from posterior import baselines
from posterior.guidance import Guidance
from posterior.guidance.registry import REGISTRY
from posterior.metrics import psnr, ssim
from posterior.operators import Operator

Scores = dict[str, float]
OWN = ("mean psnr", "draw psnr")  # of the method; all others are classical


def classical(operator: Operator, y: Tensor, noise: float) -> dict[str, Tensor]:
    """The classical restorations that fit an operator, by name."""
    first = baselines.baseline_for(operator)
    assert first is not None
    found = {first.name: first.restore(y, noise)}
    if first.name == "total variation":
        found["Wiener"] = baselines.wiener(y, operator, noise)
    return found


def cell(
    method: Guidance, operator: Operator, noise: float, x: Tensor, k: int, draws: int, steps: int
) -> Scores:
    """All scores of one photograph under one task; `noise` is a part of full scale."""
    std = 2 * noise
    y = operator(x)
    if std > 0:
        y = posterior.GaussianNoise(std).sample(y, seed=1000 + k)
    scores: Scores = {}
    for name, image in classical(operator, y, std).items():
        scores[f"{name} psnr"] = float(psnr(image, x))
        scores[f"{name} ssim"] = float(ssim(image, x))
    # no noise is rounding to 8 bits for methods that divide by the noise level
    model = posterior.GaussianNoise(std or 2 * 0.5 / 255)
    start = time.perf_counter()
    run = posterior.sample(
        posterior.load_prior("photo"), operator, y, noise=model, method=method, steps=steps,
        n=draws, seed=k, shape=x.shape[1:],
    )  # fmt: skip
    scores["seconds"] = time.perf_counter() - start
    scores["mean psnr"] = float(psnr(run.mean, x))
    scores["mean ssim"] = float(ssim(run.mean, x))
    scores["draw psnr"] = float(psnr(run.draws[:, 0], x.expand(draws, -1, -1, -1)).mean())
    scores["draw ssim"] = float(ssim(run.draws[:, 0], x.expand(draws, -1, -1, -1)).mean())
    scores["residual"] = float(run.diagnostics["residual"].mean())
    return scores


def table(name: str, results: dict[str, dict[str, Scores]]) -> str:
    """A Markdown table of the method `name`."""
    lines = [
        f"| task (n photographs) | classical, PSNR / SSIM | {name}, mean of draws |"
        f" {name}, one draw | {name} mean over the best classical |",
        "|---|---|---|---|---|",
    ]
    for task, cells in results.items():
        rows = list(cells.values())

        def mean(what: str, rows: list[Scores] = rows) -> float:
            return statistics.fmean(r[what] for r in rows)

        names = [k[:-5] for k in rows[0] if k.endswith(" psnr") and k not in OWN]
        best = max(names, key=lambda name: mean(f"{name} psnr"))
        gains = [r["mean psnr"] - r[f"{best} psnr"] for r in rows]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        shown = "; ".join(f"{n} {mean(f'{n} psnr'):.2f} / {mean(f'{n} ssim'):.3f}" for n in names)
        lines.append(
            f"| {task} ({len(rows)}) | {shown} |"
            f" {mean('mean psnr'):.2f} / {mean('mean ssim'):.3f} |"
            f" {mean('draw psnr'):.2f} / {mean('draw ssim'):.3f} |"
            f" {statistics.fmean(gains):+.2f} ± {error:.2f} dB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Fill the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--photographs", type=int, default=8)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--method", default="mmps", choices=REGISTRY)
    parser.add_argument("--steps", type=int, help="default: the method's")
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/restoration-METHOD.json"
    )
    args = parser.parse_args()
    method = REGISTRY[args.method]()
    steps = args.steps or method.default_steps
    args.out = args.out or Path(f"benchmarks/results/restoration-{args.method}.json")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Scores]] = (
        json.loads(args.out.read_text()) if args.out.exists() else {}
    )
    photographs = list(crops("test", args.size).items())[: args.photographs]
    for k, (name, x) in enumerate(photographs):
        for task, (operator, noise) in TASKS.items():
            if name in results.setdefault(task, {}):
                continue
            results[task][name] = cell(method, operator, noise, x, k, args.draws, steps)
            args.out.write_text(json.dumps(results, indent=1))
            scores = {what: round(value, 2) for what, value in results[task][name].items()}
            print(name, task, scores, flush=True)
    print(table(type(method).__name__, results))


if __name__ == "__main__":
    main()
