"""The table of the README: DPS beside classical methods on held-out photographs, 128x128.

    python benchmarks/restoration.py --photographs 8 --draws 4 --steps 100

The photographs are those of the `test` split: the prior was not trained and DPS not tuned on them.
Results are appended cell by cell to benchmarks/results/restoration.json, so that a run that was
stopped goes on. The table gives the mean over photographs; differences carry the standard error of
the paired difference.
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
from posterior.guidance import DPS
from posterior.metrics import psnr, ssim
from posterior.operators import Operator

Scores = dict[str, float]


def classical(operator: Operator, y: Tensor, noise: float) -> dict[str, Tensor]:
    """The classical restorations that fit an operator, by name."""
    first = baselines.baseline_for(operator)
    assert first is not None
    found = {first.name: first.restore(y, noise)}
    if first.name == "total variation":
        found["Wiener"] = baselines.wiener(y, operator, noise)
    return found


def cell(operator: Operator, noise: float, x: Tensor, k: int, draws: int, steps: int) -> Scores:
    """All scores of one photograph under one task; `noise` is a part of full scale."""
    std = 2 * noise
    y = operator(x)
    if std > 0:
        y = posterior.GaussianNoise(std).sample(y, seed=1000 + k)
    scores: Scores = {}
    for name, image in classical(operator, y, std).items():
        scores[f"{name} psnr"] = float(psnr(image, x))
        scores[f"{name} ssim"] = float(ssim(image, x))
    # no noise is rounding to 8 bits for DPS, which divides by the noise level
    model = posterior.GaussianNoise(std or 2 * 0.5 / 255)
    start = time.perf_counter()
    run = posterior.sample(
        posterior.load_prior("photo"), operator, y, noise=model, method=DPS(), steps=steps,
        n=draws, seed=k, shape=x.shape[1:],
    )  # fmt: skip
    scores["seconds"] = time.perf_counter() - start
    scores["DPS mean psnr"] = float(psnr(run.mean, x))
    scores["DPS mean ssim"] = float(ssim(run.mean, x))
    scores["DPS draw psnr"] = float(psnr(run.draws[:, 0], x.expand(draws, -1, -1, -1)).mean())
    scores["DPS draw ssim"] = float(ssim(run.draws[:, 0], x.expand(draws, -1, -1, -1)).mean())
    scores["residual"] = float(run.diagnostics["residual"].mean())
    return scores


def table(results: dict[str, dict[str, Scores]]) -> str:
    """A Markdown table."""
    lines = [
        "| task (n photographs) | classical, PSNR / SSIM | DPS, mean of draws | DPS, one draw |"
        " DPS mean over the best classical |",
        "|---|---|---|---|---|",
    ]
    for task, cells in results.items():
        rows = list(cells.values())

        def mean(what: str, rows: list[Scores] = rows) -> float:
            return statistics.fmean(r[what] for r in rows)

        names = [k[:-5] for k in rows[0] if k.endswith(" psnr") and not k.startswith("DPS")]
        best = max(names, key=lambda name: mean(f"{name} psnr"))
        gains = [r["DPS mean psnr"] - r[f"{best} psnr"] for r in rows]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        shown = "; ".join(f"{n} {mean(f'{n} psnr'):.2f} / {mean(f'{n} ssim'):.3f}" for n in names)
        lines.append(
            f"| {task} ({len(rows)}) | {shown} |"
            f" {mean('DPS mean psnr'):.2f} / {mean('DPS mean ssim'):.3f} |"
            f" {mean('DPS draw psnr'):.2f} / {mean('DPS draw ssim'):.3f} |"
            f" {statistics.fmean(gains):+.2f} ± {error:.2f} dB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Fill the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--photographs", type=int, default=8)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/restoration.json"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Scores]] = (
        json.loads(args.out.read_text()) if args.out.exists() else {}
    )
    photographs = list(crops("test", args.size).items())[: args.photographs]
    for k, (name, x) in enumerate(photographs):
        for task, (operator, noise) in TASKS.items():
            if name in results.setdefault(task, {}):
                continue
            results[task][name] = cell(operator, noise, x, k, args.draws, args.steps)
            args.out.write_text(json.dumps(results, indent=1))
            scores = {what: round(value, 2) for what, value in results[task][name].items()}
            print(name, task, scores, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
