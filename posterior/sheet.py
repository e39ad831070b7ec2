"""The contact sheet: what was measured, what it may have been, and where that is uncertain.

Two justified rows, like a spread in a book: above, input, mean and standard deviation (with the
original and the classical baseline when they are known); below, the draws. Every tile keeps its
proportions, every row fills the width, pixels stay pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posterior.folders import replacing
from posterior.images import displayed

if TYPE_CHECKING:
    from posterior.editing import Edited
    from posterior.restoration import Restoration

_DPI = 200
_INCH = 12.0  # width of the sheet
_MARGIN, _GAP = 0.34, 0.14  # inches
_HEADER = 0.62
_BAR = 0.58  # colour bar with its labels
_MOST_DRAWS, _PER_ROW = 16, 6
_TALLEST = 4.6  # inches of one row
_INK, _QUIET = "#1a1a1a", "#6f6f6f"
_FONT = {"family": "sans-serif", "color": _INK}


@dataclass(frozen=True)
class _Tile:
    """One picture: (H, W) for a map, (H, W, 3) for an image in [0, 1]."""

    picture: Any
    title: str
    note: str = ""
    bar: bool = False

    @property
    def aspect(self) -> float:
        return float(self.picture.shape[1] / self.picture.shape[0])


def full_scale_std(std: Tensor) -> Tensor:
    """A standard deviation (C, H, W) in [-1, 1] units as one map (H, W), a part of full scale.

    The root mean square over the channels.
    """
    return (std.double() / 2).square().mean(0).sqrt()


def write_sheet(result: Restoration, path: Path, measurement: int = 0) -> Path:
    """Write the sheet of one measurement of a restoration as a PNG of 2400 pixels width."""
    return _write(_rows(result, measurement), result, path)


def write_edit_sheet(result: Edited, path: Path, measurement: int = 0) -> Path:
    """Write the sheet of one image of an edit as a PNG of 2400 pixels width."""
    return _write(_edit_rows(result, measurement), result, path)


def _write(rows: list[list[_Tile]], result: Restoration | Edited, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inner = _INCH - 2 * _MARGIN
    heights = [_height(row, inner) for row in rows]
    total = _HEADER + sum(heights) + sum(map(_caption, rows)) + _MARGIN / 2
    figure = Figure(figsize=(_INCH, total), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def place(left: float, top: float, width: float, height: float) -> Any:
        return figure.add_axes(
            (left / _INCH, 1 - (top + height) / total, width / _INCH, height / total)
        )

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / _INCH, 1 - top / total, text, **{**_FONT, "va": "baseline", **style})

    write(_MARGIN, 0.40, _shorten(result.info.name, 32), size=15, weight="bold")
    write(_INCH - _MARGIN, 0.40, _subtitle(result), size=9.5, color=_QUIET, ha="right")
    top = _HEADER
    for row, height in zip(rows, heights, strict=True):
        used = sum(tile.aspect * height + _BAR * tile.bar for tile in row) + _GAP * (len(row) - 1)
        left = _MARGIN + (inner - used) / 2
        for tile in row:
            width = tile.aspect * height
            axes = place(left, top, width, height)
            limit = float(tile.picture.max()) if tile.bar else 1.0
            shown = axes.imshow(
                tile.picture, cmap="magma", vmin=0, vmax=max(limit, 1e-6), interpolation="nearest"
            )
            axes.set_axis_off()
            if tile.bar:
                bar = place(left + width + 0.07, top, 0.10, height)
                _colour_bar(figure, shown, bar)
            write(left, top + height + 0.19, tile.title, size=10.5)
            write(left, top + height + 0.36, tile.note, size=8.5, color=_QUIET)
            left += width + _BAR * tile.bar + _GAP
        top += height + _caption(row)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")
    return path


def _rows(result: Restoration, b: int) -> list[list[_Tile]]:
    found = result.metrics

    def score(part: str) -> str:
        value = found.get(part, {}).get("psnr")
        if value is None:
            return ""
        psnr = value[b] if isinstance(value, list) else value
        ssim = found[part].get("ssim")
        ssim = ssim[b] if isinstance(ssim, list) else ssim
        return f"{psnr:.2f} dB" + (f"   SSIM {ssim:.3f}" if ssim is not None else "")

    n = result.draws.shape[0]
    first: list[_Tile] = []
    if result.original is not None:
        first.append(_Tile(_picture(result.original[b]), "Original"))
    if result.degraded is not None:
        size = f"{result.degraded.shape[-1]} × {result.degraded.shape[-2]} pixels"
        shown = _picture(result.degraded[b])
        first.append(_Tile(shown, "Measured", score("degraded") or size))
    if result.baseline is not None:
        name = str(found["baseline"]["name"])
        first.append(_Tile(_picture(result.baseline[b]), name.capitalize(), score("baseline")))
    if n == 1:
        return [[*first, _Tile(_picture(result.draws[0, b]), "One draw", score("mean"))]]
    first.append(_Tile(_picture(result.mean[b]), f"Mean of {n} draws", score("mean")))
    if result.has_spread:
        spread = full_scale_std(result.std[b])
        note = f"per pixel, of full scale; on average {float(spread.mean()):.3f}"
        first.append(_Tile(spread.numpy(), "Standard deviation", note, bar=True))
    draws = [
        _Tile(_picture(result.draws[k, b]), f"Draw {k}", _draw_note(result, k, b))
        for k in range(min(n, _MOST_DRAWS))
    ]
    return _arranged(first, draws)


def _edit_rows(result: Edited, b: int) -> list[list[_Tile]]:
    first = [_Tile(_picture(result.source[b]), "Source")]
    if not torch.equal(result.reconstruction[b], result.source[b]):
        first.append(_Tile(_picture(result.reconstruction[b]), "Source through the codec"))
    if result.keep is not None:
        keep = result.keep[min(b, len(result.keep) - 1)]
        repainted = torch.where(keep, result.source[b], 0.25 * result.source[b] + 0.75)
        first.append(_Tile(_picture(repainted), "Bright = to repaint"))
    if result.reference is not None:
        reference = result.reference[min(b, len(result.reference) - 1)]
        first.append(_Tile(_picture(reference), "Reference"))
    map_ = result.difference[b, 0].double().cpu()
    note = f"of full scale; on average {float(map_.mean()):.3f}"
    first.append(_Tile(map_.numpy(), "Change", note, bar=True))
    draws = [
        _Tile(_picture(result.draws[k, b]), f"Variant {k}", _failure(result, k, b))
        for k in range(min(result.draws.shape[0], _MOST_DRAWS))
    ]
    return _arranged(first, draws)


def _arranged(first: list[_Tile], draws: list[_Tile]) -> list[list[_Tile]]:
    if _height([*first, *draws], _INCH - 2 * _MARGIN) > 0.6 * _TALLEST:
        return [[*first, *draws]]  # tall and narrow images stand side by side
    lines = math.ceil(len(draws) / _PER_ROW)
    per = math.ceil(len(draws) / lines)
    return [first, *(draws[k : k + per] for k in range(0, len(draws), per))]


def _failure(result: Restoration | Edited, k: int, b: int) -> str:
    return "" if bool(result.good[k, b]) else "failed: not finite"


def _draw_note(result: Restoration, k: int, b: int) -> str:
    failure = _failure(result, k, b)
    if failure:
        return failure
    each = result.metrics.get("draws", {}).get("psnr")
    if not each:
        return ""
    value = each[k][b] if isinstance(each[k], list) else each[k]
    return f"{value:.2f} dB"


def _height(row: list[_Tile], inner: float) -> float:
    """The height at which the tiles fill the width, unless that is too tall."""
    free = inner - _GAP * (len(row) - 1) - sum(_BAR for tile in row if tile.bar)
    return min(free / sum(tile.aspect for tile in row), _TALLEST)


def _caption(row: list[_Tile]) -> float:
    """The room below a row for its titles and notes."""
    return 0.52 if any(tile.note for tile in row) else 0.34


def _colour_bar(figure: Any, shown: Any, axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(shown, cax=axes, ticks=MaxNLocator(4))
    bar.outline.set_visible(False)
    axes.tick_params(length=0, pad=3, labelsize=8, labelcolor=_QUIET)


def _subtitle(result: Restoration | Edited) -> str:
    p = result.provenance
    method = str(p.get("method", "")).split("(")[0]
    steps = f"{p['steps_done']} steps" if "steps_done" in p else ""
    n = result.draws.shape[0]
    draws = f"{n} draw{'s' * (n != 1)}"
    parts = [_shorten(result.title, 96), method, steps, draws]
    return "   ·   ".join(part for part in parts if part)


def _picture(image: Tensor) -> Any:
    """(C, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    rgb = displayed(image.detach().cpu()).expand(3, *image.shape[-2:]).permute(1, 2, 0)
    return torch.nan_to_num((rgb.double() + 1) / 2).clamp(0, 1).numpy()


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
