"""All methods on held-out photographs, beside classical methods tuned on others.

    python benchmarks/classical.py --tune
    python benchmarks/photographs.py --budget-minutes 60
    python benchmarks/photographs.py --budget-minutes 0 --picture

Six photographs of the `test` split (the first of the manifest), 128x128: the prior was not trained
and nothing was tuned on them. A method visits the 50 levels at which its defaults were chosen;
MMPS, whose steps cost twice as much, 25. On 64x64 and one task only: MMPS in moves of second order,
for the width of its draws, and the two that move particles together, EnKG and TDS, which make at
most 100 network evaluations per particle; per draw that is their ensemble's over the n that are
kept.

Cells (photograph, task, method) are appended to benchmarks/results/photographs.jsonl, photograph by
photograph, so that a run that was stopped goes on and is balanced wherever it stops. A cell is made
anew where the weights of the prior, the method's settings, the steps, n or the measurement changed,
or with --redo (the code of the method changed).

The differences are to the classical method with the highest mean PSNR on the very photographs of
the table, chosen after the fact in its favour; the interval is Student's, 95 %, over photographs.
FLIP is the mean error of Andersson et al. 2020 at the default viewing distance: 0 is no visible
difference. If truth and n draws are exchangeable, the truth lies between the k-th smallest and the
k-th largest draw with probability (n + 1 - 2 k) / (n + 1). The share of pixels for which it does
stands beside that: of the pixels that were not observed (the hidden ones of a mask, all of other
operators), and of all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from classical import RESULTS as TUNED
from classical import Settings, restorations, tuned
from photo_problems import Task, applies, crops, measured, tasks
from safetensors.torch import load_file, save_file
from strips import Tile, picture, save_small, slug, strip
from torch import Tensor

import posterior
from posterior import guidance
from posterior.errors import SamplingError
from posterior.fingerprints import fingerprint
from posterior.guidance import Guidance
from posterior.metrics import psnr, residual, ssim
from posterior.operators import Masking, SuperResolution
from posterior.priors import Prior
from posterior.problem import Problem
from posterior.sheet import full_scale_std
from posterior.transitions import DPMSolver2M

WEIGHTS = Path(posterior.__file__).parent / "priors" / "weights" / "photo.safetensors"
CLASSICAL = "classical"

Scores = dict[str, float]
Images = dict[str, Tensor]


class Variant(NamedTuple):
    """A method with its steps; `small` ones take part in the task on smaller crops alone."""

    method: Guidance
    steps: int
    small: bool = False


METHODS: dict[str, Variant] = {
    "DPS": Variant(guidance.DPS(), 50),
    "MMPS": Variant(guidance.MMPS(), 25),
    "MMPS, multistep": Variant(guidance.MMPS(transition=DPMSolver2M()), 25, small=True),
    "Denoising": Variant(guidance.Denoising(), 50),
    "DDS": Variant(guidance.DDS(), 50),
    "DAPS": Variant(guidance.DAPS(), 50),
    "MCG": Variant(guidance.MCG(), 50),
    "RED-diff": Variant(guidance.REDdiff(), 50),
    "EnKG": Variant(guidance.EnKG(particles=64, ode_steps=3), 29, small=True),
    "TDS": Variant(guidance.TDS(particles=8), 25, small=True),
}


class Cell(NamedTuple):
    """One thing to do, and what its stored scores must have been made with."""

    task: str
    photograph: str
    name: str
    classical: bool
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """The address of the stored scores."""
        return fingerprint([self.task, self.photograph, self.name, self.settings])


# ------------------------------------------------------------------------------------------- scores


def flip(image: Tensor, reference: Tensor) -> float:
    """The mean FLIP error of (1, 3, H, W) in [-1, 1], as seen at 67 pixels per degree."""
    from flip_evaluator import evaluate

    pair = [((x.clamp(-1, 1) + 1) / 2)[0].permute(1, 2, 0).float() for x in (reference, image)]
    _, error, _ = evaluate(*(x.contiguous().numpy() for x in pair), "LDR", applyMagma=False)
    return float(error)


def similarity(image: Tensor, truth: Tensor) -> Scores:
    """How near an image is to the truth, three ways."""
    return {
        "psnr": float(psnr(image, truth)),
        "ssim": float(ssim(image, truth)),
        "flip": flip(image, truth),
    }


def inside(draws: Tensor, truth: Tensor, k: int, where: Tensor) -> float:
    """The share of pixels whose truth lies between the k-th smallest and k-th largest draw.

    Args:
        draws: (n, B, *event).
        truth: (B, *event).
        k: 1 for the smallest and the largest.
        where: bool like truth, the pixels that count.
    """
    ordered = draws.sort(0).values
    held = (ordered[k - 1] <= truth) & (truth <= ordered[len(draws) - k])
    return float(held[where].double().mean())


def expected_inside(n: int, k: int) -> float:
    """What `inside` is on average where truth and draws are exchangeable."""
    return max(n + 1 - 2 * k, 0) / (n + 1)


def unobserved(task: Task, x: Tensor) -> Tensor:
    """The pixels that y does not show as they are: the hidden ones of a mask, all of others."""
    if isinstance(task.operator, Masking):
        return task.operator.restrict(torch.ones_like(x)) == 0
    return torch.ones_like(x, dtype=torch.bool)


def classical_cell(
    restore: Callable[..., Tensor], task: Task, x: Tensor, y: Tensor
) -> tuple[Scores, Images]:
    """The scores of one classical restoration, and the image."""
    start = time.perf_counter()
    image = restore(y, task.operator, task.std)
    seconds = time.perf_counter() - start
    misfit = float(residual(image, task.operator, y, task.model))
    scores = {**similarity(image, x), "residual": misfit, "seconds": seconds}
    return scores, {"mean": image}


def posterior_cell(
    prior: Prior, variant: Variant, task: Task, x: Tensor, y: Tensor, n: int, seed: int
) -> tuple[Scores, Images]:
    """The scores of one run, and its mean, first draw and standard deviation.

    PSNR, SSIM and FLIP are of the mean of the draws; `draw ...` are averages over single draws.
    """
    start = time.perf_counter()
    try:
        run = posterior.sample(
            prior, task.operator, y, noise=task.model, method=variant.method, steps=variant.steps,
            n=n, seed=seed, shape=x.shape[1:], progress=False,
        )  # fmt: skip
    except SamplingError:  # every row turned non-finite
        return {"failed": n, "seconds": time.perf_counter() - start}, {}
    draws = run.draws[run.good[:, 0]]
    single = [similarity(draw, x) for draw in draws]
    scores: Scores = {
        **similarity(run.mean, x),
        **{f"draw {what}": statistics.fmean(s[what] for s in single) for what in single[0]},
        "residual": float(run.diagnostics["residual"][run.good].mean()),
        "nfe": run.provenance["nfe"],
        "vjp": run.provenance["vjp"],
        "seconds": run.provenance["seconds"],
        "failed": n - len(draws),
    }
    images = {"mean": run.mean, "draw": draws[0]}
    if len(draws) > 1:
        images["std"] = run.std
        scores["std"] = float(run.std.square().mean().sqrt())
        everywhere = torch.ones_like(x, dtype=torch.bool)
        for where, pixels in (("unobserved", unobserved(task, x)), ("all", everywhere)):
            for k in (1, 2):
                scores[f"inside {k} {where}"] = inside(draws, x, k, pixels)
                scores[f"expected {k}"] = expected_inside(len(draws), k)
    return scores, images


# -------------------------------------------------------------------------------------------- cells


class Bench:
    """What is to be done, and what is stored."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.prior: Prior = load_weights(args.weights)
        self.weights = hashlib.sha256(args.weights.read_bytes()).hexdigest()[:16]
        known = tasks(args.size)
        for name in args.tasks or ():
            if name not in known:
                raise SystemExit(f"no task {name!r}: {', '.join(map(repr, known))}")
        self.tasks = {name: t for name, t in known.items() if name in (args.tasks or known)}
        self.crops = {t.reduce: crops("test", args.size // t.reduce) for t in self.tasks.values()}
        everyone = list(next(iter(self.crops.values())))
        self.numbers = {name: k for k, name in enumerate(everyone)}  # seeds
        self.photographs = chosen(everyone, args.photographs)
        self.tuned: dict[str, dict[str, Settings]] = {}
        if CLASSICAL in args.methods:
            self.tuned = {
                name: tuned(args.classical, name, t.operator) for name, t in self.tasks.items()
            }
        self.stored = load(args.out)

    def problem(self, task: str, photograph: str) -> tuple[Tensor, Tensor]:
        """The truth and its measurement."""
        problem = self.tasks[task]
        x = self.crops[problem.reduce][photograph]
        return x, measured(problem, x, seed=1000 + self.numbers[photograph])

    def variant(self, name: str) -> Variant:
        """A method with the steps that were asked for."""
        variant = METHODS[name]
        return variant._replace(steps=self.args.steps or variant.steps)

    def cells(self, photograph: str, task: str) -> Iterator[Cell]:
        """Every classical method and every method that applies."""
        problem = self.tasks[task]
        x, y = self.problem(task, photograph)
        common = {"size": x.shape[-1], "problem": fingerprint([x, y, problem.model])}
        for name, settings in self.tuned.get(task, {}).items():
            yield Cell(task, photograph, name, True, {**common, "settings": settings})
        for name in METHODS:
            variant = self.variant(name)
            if name not in self.args.methods or (variant.small and problem.reduce == 1):
                continue
            if applies(variant.method, Problem(self.prior, problem.operator, y, problem.model)):
                yield Cell(
                    task, photograph, name, False,
                    {
                        **common, "weights": self.weights, "method": repr(variant.method),
                        "steps": variant.steps, "n": self.args.n,
                    },
                )  # fmt: skip

    def make(self, cell: Cell) -> Scores:
        """Run one cell, store its scores and images."""
        task = self.tasks[cell.task]
        x, y = self.problem(cell.task, cell.photograph)
        if cell.classical:
            restore = restorations(task.operator, self.tuned[cell.task])[cell.name]
            scores, images = classical_cell(restore, task, x, y)
        else:
            seed = self.numbers[cell.photograph]
            variant = self.variant(cell.name)
            scores, images = posterior_cell(self.prior, variant, task, x, y, self.args.n, seed)
        scores["threads"] = torch.get_num_threads()
        store(self.args.out, cell, scores)
        self.stored[cell.key] = scores
        self.args.images.mkdir(parents=True, exist_ok=True)
        kept = {name: image.half().contiguous() for name, image in images.items()}
        save_file(kept, self.image_file(cell))
        return scores

    def image_file(self, cell: Cell) -> Path:
        """Where the images of a cell are kept for the pictures."""
        return Path(self.args.images) / f"{cell.key}.safetensors"

    def fill(self) -> bool:
        """Make the cells that are missing; False when the time was up before the end."""
        start = time.perf_counter()
        for photograph in self.photographs:
            for task in self.tasks:
                for cell in self.cells(photograph, task):
                    pictured = self.args.picture and photograph == self.photographs[0]
                    known = cell.key in self.stored and not self.args.redo
                    if known and (not pictured or self.image_file(cell).exists()):
                        continue
                    if time.perf_counter() - start > 60 * self.args.budget_minutes:
                        return False
                    scores = self.make(cell)
                    shown = {what: round(value, 3) for what, value in scores.items()}
                    print(photograph, task, cell.name, shown, flush=True)
        return True

    def results(self, task: str) -> dict[str, dict[str, Scores]]:
        """Photograph -> name -> scores, for the cells that are there."""
        return {
            photograph: {
                cell.name: self.stored[cell.key]
                for cell in self.cells(photograph, task)
                if cell.key in self.stored
            }
            for photograph in self.photographs
        }


def load_weights(path: Path) -> Prior:
    """The photo prior with the weights of a file."""
    from posterior.priors.bundled import PhotoPrior

    return PhotoPrior.load(path)


def chosen(everyone: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The photographs of those names; of a single number the first so many."""
    if len(wanted) == 1 and wanted[0].isdigit():
        return list(everyone[: int(wanted[0])])
    for name in wanted:
        if name not in everyone:
            raise SystemExit(f"no photograph {name!r} in the test split: {', '.join(everyone)}")
    return list(wanted)


def load(path: Path) -> dict[str, Scores]:
    """Key -> scores; of several lines with one key the last counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.strip()]
    return {Cell(**{f: r[f] for f in Cell._fields}).key: r["scores"] for r in records}


def store(path: Path, cell: Cell, scores: Scores) -> None:
    """Append one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = {what: value if math.isfinite(value) else None for what, value in scores.items()}
    with path.open("a") as file:
        file.write(json.dumps({**cell._asdict(), "scores": finite}) + "\n")


# ------------------------------------------------------------------------------------------- tables


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of Student's 95 % interval of it (nan for less than two)."""
    from scipy import stats

    mean, n = statistics.fmean(differences), len(differences)
    if n < 2 or math.isnan(mean):
        return mean, math.nan
    error = statistics.stdev(differences) / math.sqrt(n)
    return mean, float(stats.t.ppf(0.975, n - 1)) * error


class Comparison(NamedTuple):
    """The photographs of a task that every method has done."""

    names: list[str]  # in the order of the cells
    best: str | None  # the classical method with the highest mean PSNR
    done: dict[str, dict[str, Scores]]  # photograph -> name -> scores

    def values(self, name: str, what: str) -> list[float]:
        """One score of a method by photograph; nan where it failed."""
        found = (scores[name].get(what) for scores in self.done.values())
        return [math.nan if value is None else value for value in found]

    def mean(self, name: str, what: str) -> float:
        """Over photographs."""
        return statistics.fmean(self.values(name, what))

    def gains(self, name: str) -> list[float]:
        """PSNR over that of the best classical method, by photograph."""
        if self.best is None:
            return []
        pairs = zip(self.values(name, "psnr"), self.values(self.best, "psnr"), strict=True)
        return [own - other for own, other in pairs]


def compare(results: Mapping[str, Mapping[str, Scores]]) -> Comparison:
    """The methods with any cell, on the photographs that all of them have."""
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    done = {
        photograph: dict(scores)
        for photograph, scores in results.items()
        if names and len(scores) == len(names)
    }
    comparison = Comparison(names, None, done)
    baselines = [name for name in names if name not in METHODS]
    if not done or not baselines:
        return comparison
    return comparison._replace(best=max(baselines, key=lambda name: comparison.mean(name, "psnr")))


def shown(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Mean ± half the width of the interval."""
    if not values:
        return ""
    mean, half = paired(values)
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


def quality_table(comparisons: Mapping[str, Comparison]) -> str:
    """How near the truth, at what cost."""
    lines = [
        "| task (photographs) | method | PSNR of the mean | of one draw |"
        " over the best classical, dB | SSIM | FLIP | residual | NFE, VJP per draw | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, c in comparisons.items():
        for name in c.names if c.done else ():
            sampled = name in METHODS
            draw = f"{c.mean(name, 'draw psnr'):.2f}" if sampled else ""
            calls = f"{c.mean(name, 'nfe'):g}, {c.mean(name, 'vjp'):g}" if sampled else ""
            gain = "the best" if name == c.best else shown(c.gains(name), sign="+")
            failed = sum(c.values(name, "failed")) if sampled else 0
            lines.append(
                f"| {task} ({len(c.done)}) | {name} | {c.mean(name, 'psnr'):.2f} | {draw} |"
                f" {gain} | {c.mean(name, 'ssim'):.3f} |"
                f" {c.mean(name, 'flip'):.3f} | {c.mean(name, 'residual'):.2f} |"
                f" {calls}{f' ({failed:g} draws failed)' if failed else ''} |"
                f" {c.mean(name, 'seconds'):.1f} |"
            )
    return "\n".join(lines)


def coverage_table(comparisons: Mapping[str, Comparison]) -> str:
    """The share of true pixels among the draws."""
    lines = [
        "| task (photographs) | method | [smallest, largest]: expected | unobserved pixels | all |"
        " [2nd, 2nd]: expected | unobserved pixels | all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, c in comparisons.items():
        for name in c.names:
            if not c.done or name not in METHODS or math.isnan(c.mean(name, "expected 1")):
                continue
            parts = []
            for k in (1, 2):
                parts.append(f"{c.mean(name, f'expected {k}'):.3f}")
                parts += [
                    shown(c.values(name, f"inside {k} {where}"), 3)
                    for where in ("unobserved", "all")
                ]
            row = " | ".join(parts)
            lines.append(f"| {task} ({len(c.done)}) | {name} | {row} |")
    return "\n".join(lines)


def overall_table(comparisons: Sequence[Comparison]) -> str:
    """PSNR over the best classical method, averaged over tasks photograph by photograph.

    Of the methods that take part in every task, on the photographs that are done in all of them.
    """
    lines = [
        "| method | over the best classical, dB, mean of all tasks | photographs |",
        "|---|---|---|",
    ]
    parts = [c for c in comparisons if c.best is not None]
    common = [p for p in (parts[0].done if parts else ()) if all(p in c.done for c in parts)]
    if not common or len(parts) < len(comparisons):
        return "\n".join(lines)
    kept = [c._replace(done={p: c.done[p] for p in common}) for c in parts]
    for name in METHODS:
        if all(name in c.names for c in kept):
            by_photograph = zip(*(c.gains(name) for c in kept), strict=True)
            gains = [statistics.fmean(row) for row in by_photograph]
            lines.append(f"| {name} | {shown(gains, sign='+')} | {len(common)} |")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------- pictures


def tiles(bench: Bench, task: str, photograph: str) -> list[Tile]:
    """Truth, measurement, best classical, every method's mean; draw and std of the best method."""
    from matplotlib import colormaps

    x, y = bench.problem(task, photograph)
    cells = {cell.name: cell for cell in bench.cells(photograph, task)}
    done = {name: bench.stored[c.key] for name, c in cells.items() if c.key in bench.stored}
    done = {name: s for name, s in done.items() if s.get("psnr") is not None}
    images = {name: load_file(bench.image_file(cells[name])) for name in done}

    def note(name: str) -> str:
        return f"{done[name]['psnr']:.2f} dB"

    seen = y
    if isinstance(bench.tasks[task].operator, SuperResolution):
        seen = torch.nn.functional.interpolate(y, x.shape[-2:], mode="nearest-exact")
    found = [Tile(picture(x), "original"), Tile(picture(seen), "measured")]
    classical = [name for name in done if cells[name].classical]
    methods = [name for name in done if not cells[name].classical]
    if classical:
        best = max(classical, key=lambda name: done[name]["psnr"])
        found.append(Tile(picture(images[best]["mean"]), best, note(best)))
    found += [Tile(picture(images[name]["mean"]), f"{name}, mean", note(name)) for name in methods]
    if methods:
        best = max(methods, key=lambda name: done[name]["psnr"])
        draw = f"{done[best]['draw psnr']:.2f} dB on average"
        found.append(Tile(picture(images[best]["draw"]), f"{best}, one draw", draw))
        if "std" in images[best]:
            spread = full_scale_std(images[best]["std"][0].float())
            largest = float(spread.max())
            shades = colormaps["magma"]((spread / max(largest, 1e-6)).numpy())[..., :3]
            found.append(Tile(shades, f"{best}, std", f"up to {largest:.3f} of full scale"))
    return found


def write_pictures(bench: Bench, folder: Path) -> None:
    """One strip per task, of the first photograph."""
    for task in bench.tasks:
        path = folder / f"photographs-{slug(task)}-{bench.args.size}.jpg"
        save_small(strip(tiles(bench, task, bench.photographs[0])), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


# ---------------------------------------------------------------------------------------------- run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    everyone = [CLASSICAL, *METHODS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--n", type=int, default=8, help="draws")
    parser.add_argument("--steps", type=int, help="of every method; default: each its own")
    parser.add_argument("--photographs", nargs="+", default=["6"], help="how many, or names")
    parser.add_argument("--tasks", nargs="+", metavar="TASK")
    parser.add_argument("--methods", nargs="+", default=everyone, choices=everyone)
    parser.add_argument(
        "--budget-minutes", type=float, default=math.inf, help="begin no cell later"
    )
    parser.add_argument("--redo", action="store_true", help="make the cells anew")
    parser.add_argument("--picture", action="store_true", help="write a strip of every task")
    parser.add_argument(
        "--picture-256",
        action="store_true",
        help="a strip of one 256x256 photograph: Gaussian blur, classical, DPS and MMPS",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--classical", type=Path, default=TUNED, help="tuned settings")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/photographs.jsonl"))
    parser.add_argument("--images", type=Path, default=Path("out/photographs"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"))
    args = parser.parse_args(arguments)
    if args.picture_256:
        args.picture, args.size, args.photographs = True, 256, args.photographs[:1]
        args.photographs = ["1"] if args.photographs[0].isdigit() else args.photographs
        args.tasks = args.tasks or ["Gaussian blur, sigma 2"]
        args.methods = args.methods if args.methods != everyone else [CLASSICAL, "DPS", "MMPS"]
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the cells that are missing, print the tables, write the pictures."""
    args = parse(arguments)
    bench = Bench(args)
    if not bench.fill():
        print("time is up: run again to go on")
    comparisons = {task: compare(bench.results(task)) for task in bench.tasks}
    full = [c for task, c in comparisons.items() if bench.tasks[task].reduce == 1]
    for table in (quality_table(comparisons), coverage_table(comparisons), overall_table(full)):
        print(f"\n{table}")
    if args.picture:
        write_pictures(bench, args.pictures)


if __name__ == "__main__":
    main()
