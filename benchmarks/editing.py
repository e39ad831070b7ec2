"""Editing methods on a world whose truth is known: what they change, and what they keep.

    python examples/train_shapes_model.py model      # once, in stages: the model, see there
    python benchmarks/editing.py                     # every method, as published
    python benchmarks/editing.py --sweep             # and at other settings of its knob
    python benchmarks/editing.py --model examples/assets/shapes/latent-consistency
    python benchmarks/editing.py --model MODEL --pie-bench FOLDER      # PIE-Bench's own layout

The edits are those of `examples/shapes/world.py`: pairs of scenes that differ in just one thing,
their captions, and the region outside of which they are equal. The protocol is that of PIE-Bench
(Ju et al., ICLR 2024, arXiv 2310.01506), with a checker in the place of CLIP:

    shown      the checker reads from the picture what the target's caption changes, and objects of
               the number, shapes and colours that it names
    kept       the share of what source and target have in common that it still reads: number,
               shape, colour, size, texture and place of the objects, field, style
    PSNR, MSE  over the pixels outside of the region in [0, 1], against the source picture
    SSIM       with the source put into the region, so that it grows with the region as theirs does
    structure  squared distance of the self-similarities of edge features, 32x32 pixels
    distance   root mean square of picture - source in [-1, 1], all pixels
    calls      network evaluations and backward passes
    seconds    on the wall, the codec included
    MiB        the peak of memory above what was held before (the median), where it can be told

"No edit" is the source through the codec, "the truth" the drawn target: between them lies what the
scores can say. Methods that keep what a mask shows are told the region, the others are not.

Results are appended to --out cell by cell, under a key of model, method, edit and seed, so that a
run that was stopped goes on and another model does not meet them. --pie-bench reads a folder with
mapping_file.json and annotation_images/; what needs the checker is then left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peak_memory import Peak
from PIL import Image, ImageDraw, ImageFont
from strips import picture as as_array
from strips import save_small
from torch import Tensor
from torch.nn.functional import max_pool2d

import posterior
from posterior import guidance
from posterior.errors import SamplingError
from posterior.fingerprints import fingerprint
from posterior.guidance.base import Guidance
from posterior.images import read_image, write_image
from posterior.metrics import ssim
from posterior.operators import FeatureMatch
from posterior.priors.base import Prior
from posterior.transitions import Anew

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

from shapes import checker, world  # noqa: E402

MODEL = ROOT / "examples/assets/shapes/stable-diffusion"
CACHE = Path.home() / ".cache/posterior/editing"
LARGEST = 400_000  # bytes of the contact sheet

Scores = dict[str, float | None]

METHODS: dict[str, Guidance] = {
    "PostEdit": guidance.PostEdit(),
    "SDEdit": guidance.SDEdit(),
    "DDCM": guidance.DDCM(),
    "DDIM inversion": guidance.DDIMInversion(),
    "negative-prompt inversion": guidance.NegativePromptInversion(),
    "EDICT": guidance.EDICT(),
    "BDIA": guidance.BDIA(),
    "FlowEdit": guidance.FlowEdit(),
    "RF-Inversion": guidance.RFInversion(),
    "Blended, mask given": guidance.Blended(),
    "FlowChef, mask given": guidance.FlowChef(),
}
JUMPS: dict[str, Guidance] = {
    "PostEdit": guidance.PostEdit(),
    "SDEdit": guidance.SDEdit(transition=Anew, spacing="trailing", default_steps=8),
    "DDCM": guidance.DDCM(),
    "Blended, mask given": guidance.Blended(transition=Anew, spacing="trailing", default_steps=8),
}
"""For a latent consistency model, which jumps to the end and starts anew."""
KNOBS: dict[str, list[dict[str, float]]] = {
    "PostEdit": [
        {"fusion": 0.0},
        {"fusion": 0.5},
        {"fusion": 0.0, "keep_fraction": 0.1},
        {"fusion": 0.0, "keep_fraction": 0.1, "default_steps": 25},
    ],
    "SDEdit": [{"strength": 0.4}, {"strength": 0.8}],
    "DDCM": [{"strength": 0.6}, {"strength": 0.8}],
    "DDIM inversion": [{"strength": 0.5}, {"strength": 0.75}],
    "negative-prompt inversion": [{"strength": 0.5}, {"strength": 0.75}],
    "EDICT": [{"strength": 0.5}, {"strength": 0.65}],
    "BDIA": [{"strength": 0.5}, {"strength": 0.65}],
    "FlowEdit": [{"strength": 0.5}, {"strength": 0.85}],
    "RF-Inversion": [{"eta": 0.5}, {"eta": 0.7}],
}
"""What trades the edit for the rest: settings beside the default."""
NO_EDIT, TRUTH = "no edit", "the truth"


class Item(NamedTuple):
    """One edit.

    Attributes:
        picture: the source (1, 3, H, W) in [-1, 1].
        source, target: prompts.
        region: (H, W) bool, what the edit may touch.
        truth: the scenes, where they are known.
        first: of its kind, the one that the contact sheet shows.
    """

    name: str
    kind: str
    picture: Tensor
    source: str
    target: str
    region: Tensor
    truth: world.Edit | None
    first: bool


# ------------------------------------------------------------------------------------------- edits


def drawn(kinds: Sequence[str], count: int) -> list[Item]:
    """So many edits of each kind, one of every kind after the other."""
    return [
        Item(
            f"{kind} {number}", kind, world.draw(edit.source)[None], edit.source_prompt,
            edit.target_prompt, edit.region, edit, number == 0,
        )
        for number in range(count)
        for kind in kinds
        for edit in [world.random_edit(kind, number)]
    ]  # fmt: skip


def pie_bench(folder: Path, count: int) -> list[Item]:
    """The first so many edits of each type in PIE-Bench's layout.

    Masks are pairs of start and length along the rows; as at home, the outermost pixels belong to
    the region, and brackets around the words that change are dropped.
    """
    mapping = json.loads((folder / "mapping_file.json").read_text())
    items: list[Item] = []
    for name, entry in mapping.items():
        kind = str(entry["editing_type_id"])
        before = sum(item.kind == kind for item in items)
        if before == count:
            continue
        picture, _ = read_image(folder / "annotation_images" / entry["image_path"])
        region = torch.zeros(picture.shape[-2:], dtype=torch.bool)
        flat = region.view(-1)
        runs = entry["mask"]
        for start, length in zip(runs[::2], runs[1::2], strict=True):
            flat[start : start + length] = True
        region[[0, -1]] = True
        region[:, [0, -1]] = True
        source, target = (
            entry[key].replace("[", "").replace("]", "")
            for key in ("original_prompt", "editing_prompt")
        )
        items.append(Item(name, kind, picture[None], source, target, region, None, before == 0))
    return items


# ------------------------------------------------------------------------------------------ scores

Placed = tuple[world.Kind, world.Spot]


def facts(
    ground: world.Ground, style: str, objects: Sequence[Placed], places: Sequence[world.Spot]
) -> dict[str, object]:
    """What can be said of a picture; object k is the one that is at `places[k]`, or next to it."""
    said: dict[str, object] = {
        "objects": len(objects),
        "ground": ground.colour,
        "ground texture": ground.texture,
        "style": style,
    }
    pairs = sorted(
        (math.hypot(spot.x - place.x, spot.y - place.y), k, j)
        for k, place in enumerate(places)
        for j, (_, spot) in enumerate(objects)
    )
    taken: dict[int, int] = {}
    for _, k, j in pairs:  # the nearest pair first
        if k not in taken and j not in taken.values():
            taken[k] = j
            kind, spot = objects[j]
            said |= {
                f"shape {k}": kind.shape,
                f"colour {k}": kind.colour,
                f"size {k}": kind.size,
                f"texture {k}": kind.texture,
                f"place {k}": world.place_of(spot),
            }
    return said


def judged(edit: world.Edit, reading: checker.Reading) -> Scores:
    """Whether a picture shows the edit, and the share of the rest that it keeps."""
    places = edit.target.spots

    def of(scene: world.Scene) -> dict[str, object]:
        d = scene.description
        return facts(d.ground, d.style, list(zip(d.kinds, scene.spots, strict=True)), places)

    source, target = of(edit.source), of(edit.target)
    seen = facts(reading.ground, reading.style, [(f.kind, f.spot) for f in reading.objects], places)
    asked = {key for key in target if source.get(key) != target[key]}
    same = [key for key in target if key not in asked]
    if edit.kind == "add":  # of a new object, the number, what it is, and its colour
        asked = {key for key in asked if key.split()[0] in ("objects", "shape", "colour")}
    return {
        "shown": float(
            reading.shows(edit.target.description)
            and all(seen.get(key) == target[key] for key in asked)
        ),
        "kept": statistics.fmean(seen.get(key) == target[key] for key in same),
    }


_STRUCTURE = FeatureMatch("self-similarity", size=32)


def score(item: Item, picture: Tensor) -> Scores:
    """All scores of one picture (1, 3, H, W)."""
    picture = picture.detach().float().cpu().clamp(-1, 1)
    with torch.no_grad():
        structure = (_STRUCTURE(picture) - _STRUCTURE(item.picture)).square().sum()
    found: Scores = {
        "distance": float((picture - item.picture).square().mean().sqrt()),
        "structure": float(structure),
    }
    outside = ~item.region
    if bool(outside.any()):
        error = float(((picture - item.picture) / 2).square()[..., outside].mean())
        found["mse"] = error
        found["psnr"] = -10 * math.log10(error) if error > 0 else None
        found["ssim"] = float(ssim(torch.where(outside, picture, item.picture), item.picture))
    if item.truth is not None:
        found |= judged(item.truth, checker.read(picture[0]))
    return found


# ------------------------------------------------------------------------------------------- cells


class Setting(NamedTuple):
    """A method with all that its runs depend on; None is no method but a reference."""

    method: Guidance | None
    steps: int | None = None
    scale: float | None = None
    source_scale: float | None = None


def settings(prior: Prior, args: argparse.Namespace) -> dict[str, Setting]:
    """What is compared, by its name in the table."""
    known = JUMPS if "LatentConsistency" in repr(prior) else METHODS
    for name in args.methods or ():
        if name not in known:
            raise SystemExit(f"no method {name!r}: {', '.join(map(repr, known))}")
    chosen: dict[str, Setting] = {NO_EDIT: Setting(None), TRUTH: Setting(None)}
    for name in args.methods or known:
        method: Any = known[name]
        variants = {name: method}
        if args.sweep and name in KNOBS:
            for changed in KNOBS[name]:
                what = ", ".join(f"{knob.replace('_', ' ')} {v:g}" for knob, v in changed.items())
                variants[f"{name}, {what}"] = replace(method, **changed)
        for label, variant in variants.items():
            asks = variant.climbs or "source prior" in variant.needs
            setting = Setting(variant, args.steps, args.scale, args.source_scale if asks else None)
            scales = [s for s in (setting.scale, setting.source_scale) if s is not None]
            if scales:
                label += f", scale {' and '.join(f'{s:g}' for s in scales)}"
            chosen[label] = setting
    return chosen


def applies(method: Guidance, item: Item, prior: Prior) -> bool:
    """Whether something is left to keep for a method that keeps what a mask shows."""
    if "measurement" not in method.needs:
        return True
    region, side = item.region[None, None].float(), int(getattr(prior.codec, "factor", 1))
    return not bool(max_pool2d(region, side).all())


def edited(prior: Prior, setting: Setting, item: Item, seed: int) -> tuple[Scores, Tensor | None]:
    """The scores of one edit, and the picture; no picture where the run failed."""
    method = setting.method
    assert method is not None
    mask: dict[str, Any] = {"edit": item.region.float()} if "measurement" in method.needs else {}
    memory, start = Peak(prior.device), time.perf_counter()
    try:
        out = posterior.edit(
            item.picture, prior, item.source, item.target, method, seed=seed,
            steps=setting.steps, scale=setting.scale, source_scale=setting.source_scale,
            progress=False, **mask,
        )  # fmt: skip
    except SamplingError:  # the only row turned non-finite
        shown = {} if item.truth is None else {"shown": 0.0}
        return {**shown, "failed": 1.0, "seconds": time.perf_counter() - start}, None
    spent = {
        "calls": out.provenance["nfe"],
        "gradients": out.provenance["vjp"],
        "seconds": time.perf_counter() - start,
        "memory": memory.bytes(),
    }
    return {**score(item, out.draws[0]), **spent}, out.draws[0]


def reference(prior: Prior, label: str, item: Item) -> tuple[Scores, Tensor]:
    """The scores of the source through the codec, or of the drawn target."""
    if label == TRUTH:
        assert item.truth is not None
        picture = world.draw(item.truth.target)[None]
    else:
        codec, picture = prior.codec, item.picture
        if codec is not None:
            picture = codec.decode(codec.encode(picture.to(prior.device)))
    return score(item, picture), picture


class Bench:
    """What is to be done, and what is stored."""

    def __init__(self, args: argparse.Namespace) -> None:
        if not (args.model / "model_index.json").is_file():
            raise SystemExit(
                f"there is no model in {args.model}: train it with examples/train_shapes_model.py,"
                " or name another with --model"
            )
        self.args = args
        self.prior = posterior.load_prior(args.model)
        self.model = fingerprint([self.prior, self.prior.codec])
        self.items = (
            drawn(args.kinds, args.edits)
            if args.pie_bench is None
            else pie_bench(args.pie_bench, args.edits)
        )
        self.settings = settings(self.prior, args)
        lines = args.out.read_text().splitlines() if args.out.is_file() else []
        self.stored: dict[str, Scores] = {r["key"]: r["scores"] for r in map(json.loads, lines)}

    def key(self, label: str, item: Item) -> str:
        """The address of a cell."""
        setting = self.settings[label]
        what = label if setting.method is None else [repr(setting), self.args.seed]
        edit = [item.picture, item.source, item.target, item.region]
        return fingerprint([self.model, what, edit])

    def cells(self, item: Item) -> list[str]:
        """The settings that have something to do with an edit."""
        return [
            label
            for label, setting in self.settings.items()
            if (item.truth is not None or label != TRUTH)
            and (setting.method is None or applies(setting.method, item, self.prior))
        ]

    def fill(self) -> None:
        """Make the cells that are missing."""
        for item in self.items:
            for label in self.cells(item):
                key = self.key(label, item)
                known = self.stored.get(key)
                if known is not None and (
                    not item.first or self.picture(key).is_file() or "failed" in known
                ):
                    continue
                setting = self.settings[label]
                scores, picture = (
                    reference(self.prior, label, item)
                    if setting.method is None
                    else edited(self.prior, setting, item, self.args.seed)
                )
                if known is None:
                    self.store(key, label, item, scores)
                if item.first and picture is not None:
                    self.picture(key).parent.mkdir(parents=True, exist_ok=True)
                    write_image(self.picture(key), picture[0].float().cpu())
                shown = {k: v if v is None else round(v, 3) for k, v in scores.items()}
                print(item.name, "|", label, "|", shown, flush=True)

    def picture(self, key: str) -> Path:
        """Where a picture is kept for the contact sheet."""
        return Path(self.args.pictures) / f"{key}.png"

    def store(self, key: str, label: str, item: Item, scores: Scores) -> None:
        """Append a cell to the file."""
        record = {
            "key": key, "method": label, "setting": repr(self.settings[label]), "edit": item.name,
            "model": self.args.model.name, "seed": self.args.seed,
            "threads": torch.get_num_threads(), "device": str(self.prior.device),
            "scores": scores,
        }  # fmt: skip
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        with self.args.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.stored[key] = scores

    def results(self, kind: str | None = None) -> dict[str, list[Scores]]:
        """The scores of each setting, of all edits or those of one kind."""
        found: dict[str, list[Scores]] = {label: [] for label in self.settings}
        for item in self.items:
            for label in self.cells(item) if kind in (None, item.kind) else ():
                key = self.key(label, item)
                if key in self.stored:
                    found[label].append(self.stored[key])
        return {label: rows for label, rows in found.items() if rows}


# ------------------------------------------------------------------------------- tables, pictures

COLUMNS: dict[str, Callable[[list[float]], str]] = {
    "shown": lambda v: f"{100 * statistics.fmean(v):.0f} ± {_error(v):.0f}",
    "kept": lambda v: f"{100 * statistics.fmean(v):.0f}",
    "psnr": lambda v: f"{statistics.fmean(v):.1f}",
    "mse": lambda v: f"{1e4 * statistics.fmean(v):.1f}",
    "ssim": lambda v: f"{statistics.fmean(v):.3f}",
    "structure": lambda v: f"{1000 * statistics.fmean(v):.1f}",
    "distance": lambda v: f"{statistics.fmean(v):.3f}",
    "calls": lambda v: f"{statistics.fmean(v):.0f}",
    "gradients": lambda v: f"{statistics.fmean(v):.0f}",
    "seconds": lambda v: f"{statistics.fmean(v):.2f}",
    "memory": lambda v: f"{statistics.median(v) / 2**20:.0f}",
}
HEAD = (
    "| method | n | shown, % | kept, % | PSNR outside, dB | MSE, 1e-4 | SSIM |"
    " structure, 1e-3 | distance | calls | gradients | seconds | MiB |"
)


def _error(shares: list[float]) -> float:
    """The standard error of a share, in percent."""
    p = statistics.fmean(shares)
    return 100 * math.sqrt(p * (1 - p) / len(shares))


def values(rows: Sequence[Scores], column: str) -> list[float]:
    """The scores of a column that are there."""
    return [v for row in rows if (v := row.get(column)) is not None]


def table(results: dict[str, list[Scores]]) -> str:
    """One row for each setting: the means over its n edits."""
    lines = [HEAD, "|---" * (len(COLUMNS) + 2) + "|"]
    for label, rows in results.items():
        cells = [
            write(found) if (found := values(rows, column)) else "–"
            for column, write in COLUMNS.items()
        ]
        failed = sum(values(rows, "failed"))
        name = f"{label} ({failed:.0f} failed)" if failed else label
        lines.append(f"| {' | '.join([name, str(len(rows)), *cells])} |")
    return "\n".join(lines)


def table_by_kind(bench: Bench, kinds: Sequence[str]) -> str:
    """How often each setting shows each kind of edit, in percent."""
    by_kind = {kind: bench.results(kind) for kind in kinds}
    lines = [f"| shown, % | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for label in bench.settings:
        cells = [
            f"{100 * statistics.fmean(found):.0f}"
            if (found := values(by_kind[kind].get(label, []), "shown"))
            else "–"
            for kind in kinds
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sheet(bench: Bench, side: int = 128) -> Image.Image:
    """The first edit of each kind: the source, and a column for each setting; prompts above."""
    font, gap, head, line = ImageFont.load_default(size=11), 6, 34, 20
    labels = list(bench.settings)
    items = [item for item in bench.items if item.first]
    size = ((len(labels) + 1) * (side + gap) - gap, head + len(items) * (line + side + gap))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for column, label in enumerate(["source", *labels]):
        text = "\n".join(textwrap.wrap(label, 20)[:2])
        pen.multiline_text((column * (side + gap), 3), text, fill="#1a1a1a", font=font)
    for row, item in enumerate(items):
        top = head + row * (line + side + gap)
        pen.text((0, top + 3), f"{item.source}  ->  {item.target}", fill="#1a1a1a", font=font)
        tiles: dict[int, Tensor] = {0: item.picture}
        for column, label in enumerate(labels, 1):
            path = bench.picture(bench.key(label, item))
            if path.is_file():
                tiles[column] = read_image(path)[0][None]
        for column, tile in tiles.items():
            pixels = (as_array(tile).clip(0, 1) * 255).round().astype(np.uint8)
            image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
            page.paste(image, (column * (side + gap), top + line))
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the cells that are missing, print the tables and write the contact sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of a pipeline")
    parser.add_argument("--edits", type=int, default=10, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(world.EDITS), choices=world.EDITS)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all that fit")
    parser.add_argument("--sweep", action="store_true", help="other settings of the knobs, too")
    parser.add_argument("--scale", type=float, help="under the target; default: as published")
    parser.add_argument("--source-scale", type=float, help="under the source, where it is asked")
    parser.add_argument("--steps", type=int, help="default: those of each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pie-bench", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/editing.jsonl")
    parser.add_argument("--pictures", type=Path, default=CACHE, help="kept for the sheet")
    parser.add_argument("--sheet", type=Path, help="default: PICTURES/MODEL.jpg")
    bench = Bench(parser.parse_args(arguments))
    bench.fill()
    print(table(bench.results()))
    if bench.args.pie_bench is None:
        print("\n" + table_by_kind(bench, bench.args.kinds))
    path = bench.args.sheet or bench.args.pictures / f"{bench.args.model.name}.jpg"
    save_small(sheet(bench), path, LARGEST)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
