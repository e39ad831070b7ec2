"""What the examples of this folder share: a run, its table and its picture.

The picture has two rows: truth, data, classical reconstruction, posterior mean, standard deviation
and error, the last two on one scale, in parts of full scale; and the draws. The table says how
good they are, and at what cost.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

import posterior
from posterior.errors import PosteriorError
from posterior.folders import replacing
from posterior.metrics import psnr

SHEET = "sheet.png"
BLACK = -0.98  # pixels of the truth above are inside the object
_MOST_DRAWS = 6


@dataclass(frozen=True)
class Outcome:
    """One measurement and what was made of it; images are (1, C, H, W) in [-1, 1].

    Attributes:
        title: what was measured, one line.
        data: the measurement as a picture (H, W), any scale, and its title.
        classical: reconstructions by name, the first one is in the picture.
        samples: of the posterior, (n, 1, C, H, W).
        wall, processor: seconds, all in all.
    """

    title: str
    truth: Tensor
    data: tuple[Tensor, str]
    classical: Mapping[str, Tensor]
    samples: posterior.Samples
    wall: float
    processor: float
    rows: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """PSNR in dB of the mean, of a draw (on average) and of the classical reconstructions."""
        draws = self.samples.draws[:, 0]
        found = {
            "mean": float(psnr(self.samples.mean, self.truth)),
            "draw": float(psnr(draws, self.truth.expand_as(draws)).mean()),
        }
        return found | {name: float(psnr(x, self.truth)) for name, x in self.classical.items()}

    @property
    def coverage(self) -> tuple[float, float]:
        """Pixels of the object whose truth lies among the draws, and how many that should be.

        Truth and n draws of its posterior are exchangeable, so that the truth lies between the
        smallest and the largest draw with probability (n - 1) / (n + 1).
        """
        draws, n = self.samples.draws[:, 0], len(self.samples.draws)
        inside = (self.truth[0] >= draws.amin(0)) & (self.truth[0] <= draws.amax(0))
        return float(inside[self._object].double().mean()), (n - 1) / (n + 1)

    @property
    def error_over_std(self) -> tuple[float, float]:
        """Root mean square error of the mean over that std, in the object; and what it should be.

        The mean of n draws has (1 + 1 / n) times the variance of the posterior as square error.
        """
        error = (self.samples.mean - self.truth)[0][self._object]
        std = self.samples.std[0][self._object]
        ratio = float(error.square().mean().sqrt() / std.square().mean().sqrt())
        return ratio, math.sqrt(1 + 1 / len(self.samples.draws))

    @property
    def table(self) -> str:
        """All of it in lines."""
        p, n = self.samples.provenance, len(self.samples.draws)
        score = self.scores
        covered, should = self.coverage
        ratio, ideal = self.error_over_std
        residual = self.samples.diagnostics["residual"]
        lines = {
            "method": str(p["method"]).split("(")[0],
            f"PSNR, mean of {n} draws": f"{score['mean']:.2f} dB",
            "PSNR, one draw": f"{score['draw']:.2f} dB",
            **{f"PSNR, {name}": f"{score[name]:.2f} dB" for name in self.classical},
            "truth among the draws": f"{covered:.0%} of the pixels of the object ({should:.0%})",
            "error of the mean / std": f"{ratio:.2f} ({ideal:.2f})",
            "residual / noise": f"{float(residual.mean()):.2f} (1 for the truth)",
            **self.rows,
            "cost of a draw": f"{p['nfe']:g} network calls, {p['vjp']:g} backward passes",
            "time": f"{self.wall:.0f} s, {self.processor:.0f} s of processors",
        }
        wide = max(map(len, lines)) + 2
        return "\n".join([self.title, *(f"  {k:{wide}}{v}" for k, v in lines.items())])

    @property
    def _object(self) -> Tensor:
        """(C, H, W) bool."""
        return self.truth[0] > BLACK

    def save(self, folder: Path) -> None:
        """Draws, report and picture, over those of an earlier run (the caller has asked)."""
        self.samples.save(folder, overwrite=True)
        self.draw(folder / SHEET)

    def draw(self, path: Path) -> None:
        """The picture, a PNG of 1200 pixels width."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 5.1), dpi=100, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(self.title, size=11)
        axes = figure.subplots(2, 6)
        for axis in axes.flat:
            axis.set_axis_off()
        score = self.scores
        name, classical = next(iter(self.classical.items()))
        mean, std = self.samples.mean, _map(self.samples.std)
        error = _map((mean - self.truth).abs())
        n = len(self.samples.draws)
        top = axes[0]
        _show(top[0], _picture(self.truth), "truth")
        _show(top[1], self.data[0].numpy(), self.data[1], aspect="auto")
        top[1].set_box_aspect(1)  # a sinogram has any shape
        _show(top[2], _picture(classical), f"{name}\n{score[name]:.2f} dB")
        _show(top[3], _picture(mean), f"mean of {n} draws\n{score['mean']:.2f} dB")
        # one scale for both, so that they can be compared; a few pixels may be beyond its end
        limit = float(torch.quantile(torch.cat([std, error]), 0.998))
        for axis, found, what in ((top[4], std, "standard deviation"), (top[5], error, "|error|")):
            shown = _show(axis, found.numpy(), what, cmap="magma", vmin=0, vmax=limit)
            bar = figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02, extend="max")
            bar.ax.tick_params(labelsize=7)
        for k, axis in zip(range(min(n, _MOST_DRAWS)), axes[1], strict=False):
            draw = self.samples.draws[k]
            _show(axis, _picture(draw), f"draw {k}\n{float(psnr(draw, self.truth)):.2f} dB")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)


def run(main: Callable[..., object]) -> None:
    """`main` as a command; what it cannot do is one line, not a traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except PosteriorError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def _show(axis: Any, picture: Any, title: str, **style: Any) -> Any:
    grey = {"cmap": "gray"} if picture.ndim == 2 and "cmap" not in style else {}
    axis.set_title(title, size=8.5)
    return axis.imshow(picture, interpolation="nearest", **grey, **style)


def _picture(x: Tensor) -> Any:
    """(1, C, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    rgb = x[0].detach().expand(3, *x.shape[-2:]).permute(1, 2, 0)
    return ((rgb.double() + 1) / 2).clamp(0, 1).numpy()


def _map(x: Tensor) -> Tensor:
    """(1, C, H, W), in units of x, as (H, W) in parts of full scale; rms of the channels."""
    return (x[0].double() / 2).square().mean(0).sqrt()
