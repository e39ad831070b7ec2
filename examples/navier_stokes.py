"""Where a flow came from: initial vorticity from a few noisy values some time later.

    python examples/navier_stokes.py --out out/navier-stokes

A forced, viscous flow on 32 x 32 points; every fourth value along both axes is seen at time 1,
with noise. The prior is an exact Gaussian random field, and the truth a draw of it. EnKG, which
only needs to run the solver, stands beside the two baselines of benchmarks/ensemble_baselines.py:

    EnKG       128 particles through the sampler
    ES-MDA     128 particles, as many rounds as EnKG corrects
    pCN        16 Markov chains with as many solves as EnKG
    reference  pCN about the flow's tangent at the most probable vorticity, which takes the flow's
               gradient, and ten times as many solves; good if its R-hat is near 1
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from _picture import SHEET, run
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.folders import check_free, replacing
from posterior.operators.base import Operator
from posterior.streams import key_of, normal

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from ensemble_baselines import Score, Tangent, es_mda, most_probable, pcn, score

SIZE, SPREAD, NOISE = 32, 0.15, 0.2  # of x = vorticity / 10; of y, which is vorticity
CHAINS, LONGER = 16, 10


@dataclass(frozen=True)
class Result:
    """One method's draws (n, 1, H, W), how they score, and what they cost."""

    draws: Tensor
    score: Score
    solves: int
    wall: float
    processor: float
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The problem and the methods' results by name; EnKG's `Samples` too."""

    truth: Tensor
    y: Tensor
    results: dict[str, Result]
    samples: posterior.Samples

    @property
    def table(self) -> str:
        """A line for each method."""
        head = (
            f"{'':12}{'solves':>8}{'error':>8}{'std':>8}{'90 %':>7}{'chi2':>9}{'s':>6}{'cpu s':>7}"
        )
        lines = [f"vorticity / 10 at time 0, {self.y.numel()} values at time 1; prior {SPREAD:g}"]
        lines.append(head)
        for name, r in self.results.items():
            s = r.score
            lines.append(
                f"{name:12}{r.solves:8d}{s.error:8.4f}{s.std:8.4f}{s.coverage:7.0%}{s.chi2:9.2f}"
                f"{r.wall:6.0f}{r.processor:7.1f}  {r.note}"
            )
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """A row for each method: mean, standard deviation, error of the mean, three draws."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        count = len(self.results)
        figure = Figure(figsize=(12, 1.75 * count + 0.5), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(count, 7)
        flow = {"cmap": "RdBu_r", "vmin": -3 * SPREAD, "vmax": 3 * SPREAD}
        spread = {"cmap": "magma", "vmin": 0, "vmax": 1.5 * SPREAD}
        for axis in axes.flat:
            axis.set_axis_off()
        axes[0, 0].imshow(self.truth[0, 0], **flow)
        axes[0, 0].set_title("truth", size=8.5)
        axes[1, 0].imshow(self.y[0, 0], cmap="RdBu_r")
        axes[1, 0].set_title("data, time 1", size=8.5)
        for row, (name, r) in zip(axes, self.results.items(), strict=True):
            mean = r.draws.mean(0)[0]
            some = r.draws[torch.linspace(0, len(r.draws) - 1, 3).long(), 0]
            shown = [
                (f"{name}: mean", mean, flow),
                ("standard deviation", r.draws.std(0)[0], spread),
                ("|error|", (mean - self.truth[0, 0]).abs(), spread),
                *((f"draw {k}", x, flow) for k, x in enumerate(some)),
            ]
            for axis, (title, x, style) in zip(row[1:], shown, strict=True):
                image = axis.imshow(x, interpolation="nearest", **style)
                axis.set_title(title, size=8.5)
                if style is spread:
                    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.02, extend="max")
                    bar.ax.tick_params(labelsize=7)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)


def vorticity() -> priors.Gaussian:
    """Covariance proportional to (-Lap + 9)^-4 on the torus, without a mean, of std SPREAD."""
    k = torch.fft.fftfreq(SIZE, 1 / SIZE, dtype=torch.float64)
    power = (k[:, None] ** 2 + k[None, :] ** 2 + 9) ** -4
    power[0, 0] = 0
    power = power * (SPREAD**2 / power.mean())
    return priors.Gaussian.stationary(torch.zeros(1, SIZE, SIZE), power.float())


def together(flow: Operator) -> Callable[[Tensor], Tensor]:
    """(J, 1, H, W) -> (J, m): particles as channels, each a flow by itself, solved at once."""
    return lambda x: flow(x.transpose(0, 1))[0].flatten(1)


def compare(
    particles: int = 128, steps: int = 20, longer: int = LONGER, seed: int = 0
) -> Comparison:
    """Simulate, and run the methods at equal numbers of solves, the reference at `longer` times."""
    prior = vorticity()
    flow = operators.NavierStokes(viscosity=1 / 50, forcing=-1.0, subsample=4, speed=1.5)
    forward = together(flow)
    x = prior.sample(1, seed=key_of(seed, "truth")[0])  # nobody else's draw
    clean = flow(x)
    y = clean + NOISE * normal(seed, "data", clean)
    seen = y.flatten()
    results: dict[str, Result] = {}

    def timed(name: str, method: Callable[[], tuple[Tensor, int, str]]) -> None:
        begin, busy = time.monotonic(), time.process_time()
        draws, solves, note = method()
        cost = time.monotonic() - begin, time.process_time() - busy
        results[name] = Result(draws, score(draws, x, forward, seen, NOISE), solves, *cost, note)

    method = guidance.EnKG(particles=particles)
    corrections = method.updates * sum(
        method.first * steps < i < steps - int(method.last * steps) for i in range(steps)
    )
    solves = particles * corrections
    found: list[posterior.Samples] = []

    def enkg() -> tuple[Tensor, int, str]:
        found.append(
            posterior.sample(
                prior, flow, y, noise=NOISE, method=method, n=particles, steps=steps, seed=seed
            )
        )
        return found[0].draws[:, 0], solves, ""

    def chains(total: int, about: Tangent | None = None) -> tuple[Tensor, int, str]:
        length = total // CHAINS
        run = pcn(prior, forward, seen, NOISE, CHAINS, length, seed, about)
        kept = run.draws[:: max(1, len(run.draws) // 64)].flatten(0, 1)
        note = f"R-hat {run.r_hat:.2f}, beta {run.beta:.3f}, {run.accepted:.0%} accepted"
        return kept, length * CHAINS, note

    timed("EnKG", enkg)
    timed(
        "ES-MDA",
        lambda: (
            es_mda(prior, forward, seen, NOISE, particles, corrections, seed),
            solves,
            "",
        ),
    )
    timed("pCN", lambda: chains(solves))
    timed(
        "reference",
        lambda: chains(longer * solves, most_probable(prior, forward, seen, NOISE)),
    )
    return Comparison(x, y, results, found[0])


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/navier-stokes"),
    steps: Annotated[int, typer.Option(min=3, help="Of EnKG; the others follow.")] = 20,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw initial vorticities by four methods."""
    check_free(out, overwrite)
    found = compare(steps=steps, seed=seed)
    found.samples.save(out, overwrite=True)
    found.draw(out / SHEET)
    print(found.table)


if __name__ == "__main__":
    run(main)
