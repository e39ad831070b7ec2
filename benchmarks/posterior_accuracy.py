"""How far the draws of each method are from the exact posterior: the 25-mode mixture benchmark.

    python benchmarks/posterior_accuracy.py --d 8 80 --dy 1 2 4 --problems 20 --draws 2000

The problems are those of `mixture_problems`. The score is the mean-sliced Wasserstein-1 distance
between N draws of the method and N draws of the exact posterior, always beside the floor, which is
the mean distance of other sets of N exact draws to those of the same problem. Most posteriors of
d_y = 4 have a single mode, so problems with several (of weight above 1 %) also stand apart.

The denoiser is the exact one. Without a schedule of its own a variant runs on the mixture's default
one, variance exploding, which reaches 50 times the size of the prior, so that its start is right;
`Discrete.linear()`, the published choice, ends at alpha = 0.006, which these means (up to 450 long
at d = 800) still show through: there the start itself is biased.

Draws that failed are counted, beside the distance of those that did not; a run of which none is
left counts as infinitely far. Results are stored cell by cell in
benchmarks/results/posterior_accuracy.json, so that a run that was stopped goes on. A cell is made
anew where the variant's settings changed, or with --again (the code of the method changed).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mixture_problems import (
    MixtureProblem,
    heaviest_mode,
    problem,
    seed_of,
    sliced_wasserstein,
)
from torch import Tensor

import posterior
from posterior import guidance
from posterior.errors import SamplingError
from posterior.guidance import Guidance
from posterior.samples import to_json, write_atomically
from posterior.schedules import Discrete, Schedule

FLOOR_SETS = 4  # the distance of one pair of sets is itself noisy where there are several modes

Cell = dict[str, Any]
Results = dict[str, dict[str, dict[str, Cell]]]  # case -> variant -> problem


class Variant(NamedTuple):
    """A method with its steps; `schedule` None is the mixture's own, `most` caps the draws."""

    method: Guidance
    steps: int
    schedule: Schedule | None = None
    most: int | None = None


def published_dps(scale: float) -> Variant:
    """DPS as published: the norm form in 1000 steps of linear betas."""
    method = guidance.DPS(likelihood="norm", scale=scale, spacing="trailing")
    return Variant(method, 1000, Discrete.linear())


# name -> variant: a method joins with one line
VARIANTS: dict[str, Variant] = {
    "DPS": Variant(guidance.DPS(), 100),
    "DPS, 1000 steps": Variant(guidance.DPS(), 1000),
    "DPS, VP": Variant(guidance.DPS(spacing="trailing"), 1000, Discrete.linear()),
    "DPS published, zeta 1": published_dps(1.0),
    # MCGDiff's comparison moves by zeta / ||r|| grad ||r||^2 = 2 zeta grad ||r||, with zeta = 0.1
    "DPS published, MCGDiff's zeta": published_dps(0.2),
    "MMPS": Variant(guidance.MMPS(iterations=4), 100),
    # the means lie some ten units apart: that is the spread of x0 while the noise hides them
    "DDS": Variant(guidance.DDS(spread=10.0), 100),
    "DAPS": Variant(guidance.DAPS(spread=10.0), 100),
    "RED-diff": Variant(guidance.REDdiff(spread=10.0), 1000),
    "MCG": Variant(guidance.MCG(), 100),
    "EnKG, ensembles of 128": Variant(guidance.EnKG(), 80, most=1024),
    **{
        f"TDS, {k} particles": Variant(guidance.TDS(particles=k, spread=10.0), 100, most=500)
        for k in (32, 128, 512)
    },
}

# name -> draws of a problem, with a seed: what the scale of the distance means
CONTROLS: dict[str, Callable[[MixtureProblem, int, int], Tensor]] = {
    "exact": lambda p, n, seed: p.exact.sample(n, seed=seed),
    "exact score": lambda p, n, seed: posterior.sample(  # the sampler's own error
        p.exact, n=n, steps=300, seed=seed, progress=False
    ).draws[:, 0],
    "heaviest mode": lambda p, n, seed: heaviest_mode(p.exact).sample(n, seed=seed),
    "prior": lambda p, n, seed: p.prior.sample(n, seed=seed),
}


class Draws(NamedTuple):
    """What a variant gave: all of its draws (n, d), which are good, and what they cost."""

    x: Tensor
    good: Tensor
    nfe: float | None
    vjp: float | None
    seconds: float


def draw(name: str, p: MixtureProblem, n: int, seed: int) -> Draws:
    """Run a variant or control."""
    start = time.perf_counter()
    nfe = vjp = None
    if name in CONTROLS:
        x = CONTROLS[name](p, n, seed)
        good = torch.ones(n, dtype=torch.bool)
    else:
        method, steps, schedule, _ = VARIANTS[name]
        prior = p.prior if schedule is None else p.prior.with_schedule(schedule)
        try:
            run = posterior.sample(
                prior, p.operator, p.y, noise=p.noise_std, method=method, steps=steps, n=n,
                seed=seed, progress=False,
            )  # fmt: skip
        except SamplingError:  # every row turned non-finite
            x = torch.full((n, p.prior.means[0].numel()), torch.nan)
            good = torch.zeros(n, dtype=torch.bool)
        else:
            x, good = run.draws[:, 0], run.good[:, 0]
            nfe, vjp = run.provenance["nfe"], run.provenance["vjp"]
    seconds = time.perf_counter() - start
    good = good & torch.isfinite(x).all(1).cpu()
    return Draws(x.cpu(), good, nfe, vjp, seconds)


def settings(name: str) -> str:
    """What a stored cell must have been made with."""
    if name in CONTROLS:
        return "control"
    method, steps, schedule, most = VARIANTS[name]
    return f"{method!r}, {steps} steps, {schedule or 'default schedule'}, at most {most} draws"


class Bench:
    """One problem: its exact draws, and the distances to them."""

    def __init__(self, d: int, dy: int, index: int, slices: int, dtype: torch.dtype) -> None:
        self.address = (d, dy, index)
        self.slices = slices
        self.problem = problem(d, dy, index, dtype)
        self._exact: dict[int, tuple[Tensor, float]] = {}

    def exact(self, n: int) -> tuple[Tensor, float]:
        """The reference, N exact draws; and the mean distance to it of other such sets."""
        if n not in self._exact:
            reference, *others = (
                self.problem.exact.sample(n, seed=seed_of(*self.address, f"exact {k}"))
                for k in range(1 + FLOOR_SETS)
            )
            floor = statistics.fmean(
                sliced_wasserstein(other, reference, self.slices) for other in others
            )
            self._exact[n] = reference, floor
        return self._exact[n]

    def cell(self, name: str, n: int) -> Cell:
        """The scores of one variant."""
        most = VARIANTS[name].most if name in VARIANTS else None
        n = n if most is None else min(n, most)
        reference, floor = self.exact(n)
        made = draw(name, self.problem, n, seed_of(*self.address, "draws"))
        kept = made.x[made.good]
        return {
            "settings": settings(name),
            # null: no draw is left, infinitely far
            "distance": sliced_wasserstein(kept, reference, self.slices) if len(kept) else None,
            "floor": floor,
            "modes": self.problem.modes,
            "noise_std": self.problem.noise_std,
            "draws": n,
            "failed": n - len(kept),
            "nfe": made.nfe,
            "vjp": made.vjp,
            "seconds": made.seconds,
            "threads": torch.get_num_threads(),
        }


# ------------------------------------------------------------------------------------------ tables


def spread(values: Sequence[float]) -> str:
    """Mean ± 1.96 standard errors (median)."""
    if not values:
        return "-"
    mean, median = statistics.fmean(values), statistics.median(values)
    known = len(values) > 1 and all(math.isfinite(v) for v in values)
    error = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if known else math.nan
    return f"{mean:.3f} ± {error:.3f} ({median:.3f})"


def table(results: Results, cases: dict[str, str], names: Sequence[str], problems: int) -> str:
    """A Markdown table of the cells that are there.

    Args:
        results: the stored cells.
        cases: case -> what the table calls it.
        names: variants and controls.
        problems: cells of the problems 0 to problems - 1 count.
    """
    lines = [
        "Mean ± 1.96 standard errors over problems (median) of the sliced Wasserstein-1 distance;"
        " `floor` is exact draws against exact draws of the same problems, mean (median)."
        " Problems: those of several modes + those of one.",
        "",
        "| d, d_y | method | problems | all | floor | several modes | floor | one mode | floor |"
        " failed draws | NFE, VJP per draw | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, label in cases.items():
        for name in names:
            stored = results.get(case, {}).get(name, {})
            cells = [stored[str(k)] for k in range(problems) if str(k) in stored]
            cells = [c for c in cells if c["settings"] == settings(name)]
            if not cells:
                continue
            groups = [
                cells,
                [c for c in cells if c["modes"] > 1],
                [c for c in cells if c["modes"] == 1],
            ]
            scores = []
            for group in groups:
                far = [math.inf if c["distance"] is None else c["distance"] for c in group]
                floor = [c["floor"] for c in group]
                scores.append(spread(far))
                scores.append(
                    f"{statistics.fmean(floor):.3f} ({statistics.median(floor):.3f})"
                    if floor
                    else "-"
                )
            failed, n = (sum(c[what] for c in cells) for what in ("failed", "draws"))
            lost = sum(c["distance"] is None for c in cells)
            known = [c for c in cells if c["nfe"] is not None]
            cost = ", ".join(
                f"{statistics.fmean(c[w] for c in known):g}" for w in ("nfe", "vjp") if known
            )
            seconds = statistics.fmean(c["seconds"] for c in cells)
            lines.append(
                f"| {label} | {name} | {len(groups[1])} + {len(groups[2])} |"
                f" {' | '.join(scores)} | {failed} of {n}"
                + (f", {lost} problems lost" if lost else "")
                + f" | {cost or '-'} | {seconds:.2f} |"
            )
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- run


def load(path: Path) -> Results:
    """The stored cells."""
    return json.loads(path.read_text()) if path.exists() else {}


def store(path: Path, case: str, name: str, index: int, cell: Cell) -> None:
    """Add one cell to what the file holds by now."""
    results = load(path)
    results.setdefault(case, {}).setdefault(name, {})[str(index)] = cell
    write_atomically(path, to_json(results))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the cells that are missing and print the table."""
    names = [*CONTROLS, *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--d", type=int, nargs="+", default=[8, 80])
    parser.add_argument("--dy", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--again", action="store_true", help="make the cells anew")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/posterior_accuracy.json")
    )
    args = parser.parse_args(arguments)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cases = {}
    for d in args.d:
        for dy in args.dy:
            case = f"d={d} dy={dy} draws={args.draws} slices={args.slices} {args.dtype}"
            cases[case] = f"{d}, {dy}"
            for index in range(args.problems):
                stored = load(args.out).get(case, {})
                missing = [
                    name
                    for name in args.methods
                    if args.again
                    or stored.get(name, {}).get(str(index), {}).get("settings") != settings(name)
                ]
                if not missing:
                    continue
                bench = Bench(d, dy, index, args.slices, getattr(torch, args.dtype))
                for name in missing:
                    cell = bench.cell(name, args.draws)
                    store(args.out, case, name, index, cell)
                    far = math.inf if cell["distance"] is None else cell["distance"]
                    print(
                        f"d={d} dy={dy} problem {index} ({cell['modes']} modes)  {name:30}"
                        f" {far:8.3f}   floor {cell['floor']:.3f}   failed {cell['failed']}"
                        f"   {cell['seconds']:.1f} s",
                        flush=True,
                    )
    print(table(load(args.out), cases, args.methods, args.problems))


if __name__ == "__main__":
    main()
