"""Slices of a head to train a prior on, from the brain template that the package nilearn ships.

    pip install nilearn
    python examples/anatomy_prior/prepare.py --out out/slices
    posterior train-prior --images out/slices --out out/brain.safetensors --width 24 --size 96

The template is the ICBM 152 average (nonlinear, symmetric, 2009a): T1-weighted, skull-stripped, 1
mm. It is ONE head, smooth because it is an average, and its left side mirrors its right. Variety
is made: every slice, axial, coronal and sagittal, comes nine times, each time moved, turned,
stretched, smoothly warped and with another contrast.

Held out are the slices of a band in the middle of each orientation; those next to a band, 6 mm on
either side, are not used at all. That is no other head: a coronal training slice still crosses an
axial held-out one, in one warped line of pixels.

Written are 9 stacks to learn from and one of held-out slices, named so that `train-prior`, which
holds out one file in ten, takes that one; and in `truth/` held-out slices for the examples.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from scipy import ndimage

from posterior.errors import FileProblem, PosteriorError
from posterior.images import write_image

Array = npt.NDArray[Any]

SIDE = 128  # pixels of a slice
PIXEL = 1.5  # mm
STACKS = 9
HELD_OUT = 5  # the place of the held-out stack among the ten files
GAP = 6  # mm on either side of a band: neither learned from nor held out
TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
TRUTHS = {"axial": 78, "coronal": 108, "sagittal": 60}  # slices of the bands, mm from the edge


@dataclass(frozen=True)
class Orientation:
    """One way to cut: along `axis`, slices first .. last - 1 (mm), those of `band` held out."""

    axis: int
    first: int
    last: int
    band: tuple[int, int]

    def learned(self) -> list[int]:
        """Slices to learn from."""
        low, high = self.band[0] - GAP, self.band[1] + GAP
        return [k for k in range(self.first, self.last) if not low <= k < high]


# of the sagittal slices those of one side: the other is its mirror image
ORIENTATIONS = {
    "axial": Orientation(2, 20, 140, (70, 86)),
    "coronal": Orientation(1, 45, 195, (100, 116)),
    "sagittal": Orientation(0, 36, 99, (54, 66)),
}


def template(path: Path | None) -> Array:
    """The template as an array (left-right, back-front, bottom-top) in [0, 1], 1 mm."""
    if path is None:
        found = importlib.util.find_spec("nilearn")
        if found is None or found.origin is None:
            raise FileProblem("the template comes with nilearn: pip install nilearn")
        path = Path(found.origin).parent / TEMPLATE
    try:
        import nibabel
    except ImportError:
        raise FileProblem("NIfTI files are read by nibabel: pip install nibabel") from None
    volume: Array = np.asarray(nibabel.load(path).dataobj, np.float32)
    return volume / volume.max()


def plane(volume: Array, orientation: Orientation, k: int) -> Array:
    """One slice, upright: the nose or the crown points up."""
    return np.rot90(np.take(volume, k, axis=orientation.axis))


def contrast(v: Array, low: float, high: float, gamma: float) -> Array:
    """Grey values [0, 1] -> [0, 1], black up to `low`."""
    return np.clip((v - low) / (high - low), 0, 1) ** gamma


def resampled(image: Array, rng: np.random.Generator | None) -> Array:
    """A slice (H, W) of 1 mm on the grid of the prior, (SIDE, SIDE) uint8; varied by `rng`.

    With `rng`: turned by up to 12 degrees, each axis scaled by up to 10 %, moved by up to 6 mm,
    warped by a field of about 2 mm that is smooth over 20 mm; black at 0.2 to 0.4 of the maximum,
    white at 0.9 to 1.05, gamma 0.75 to 1.3. Without: upright, 0.3, 1 and 1.
    """
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"))
    low, high, gamma = 0.3, 1.0, 1.0
    if rng is not None:
        angle = np.deg2rad(rng.uniform(-12, 12))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        grid = np.einsum("ij,jhw->ihw", np.diag(rng.uniform(0.9, 1.1, 2)) @ turn, grid)
        field = rng.standard_normal((2, SIDE, SIDE))
        field = ndimage.gaussian_filter(field, (0, 20 / PIXEL / 2, 20 / PIXEL / 2), mode="wrap")
        grid += rng.uniform(0, 3) * field / field.std() + rng.uniform(-6, 6, (2, 1, 1))
        low, high = rng.uniform(0.2, 0.4), rng.uniform(0.9, 1.05)
        gamma = rng.uniform(0.75, 1.3)
    middle = (np.array(image.shape) - 1).reshape(2, 1, 1) / 2
    smooth = ndimage.gaussian_filter(image, 0.4 * PIXEL)  # against aliasing
    values = ndimage.map_coordinates(smooth, grid + middle, order=1)
    return np.rint(255 * contrast(values, low, high, gamma)).astype(np.uint8)


def stacks(
    volume: Array, seed: int, orientations: Mapping[str, Orientation] = ORIENTATIONS
) -> list[Array]:
    """Ten stacks (N, SIDE, SIDE) uint8; the one at `HELD_OUT` holds the bands, not varied."""
    rng = np.random.default_rng(seed)
    cuts = orientations.values()
    learned = [plane(volume, o, k) for o in cuts for k in o.learned()]
    away = [plane(volume, o, k) for o in cuts for k in range(*o.band)]
    found = [np.stack([resampled(image, rng) for image in learned]) for _ in range(STACKS)]
    found.insert(HELD_OUT, np.stack([resampled(image, None) for image in away]))
    return found


def main(
    out: Annotated[Path, typer.Option(help="A new folder.")] = Path("out/slices"),
    path: Annotated[
        Path | None, typer.Option("--template", help="Another NIfTI file of the same grid.")
    ] = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write the stacks and the true slices of the examples."""
    if out.exists() and not overwrite:
        raise FileProblem(f"{out} exists: choose another folder, or pass --overwrite")
    volume = template(path)
    out.mkdir(parents=True, exist_ok=True)
    for number, stack in enumerate(stacks(volume, seed)):
        what = "held-out" if number == HELD_OUT else "slices"
        np.save(out / f"{number}-{what}.npy", stack)
        print(f"{out}/{number}-{what}.npy: {len(stack)} slices of {SIDE}x{SIDE}")
    truths = out / "truth"  # a folder below, which train-prior does not read
    truths.mkdir(exist_ok=True)
    for name, k in TRUTHS.items():
        image = resampled(plane(volume, ORIENTATIONS[name], k), None)
        write_image(truths / f"{name}.png", torch_image(image))
        print(f"{truths}/{name}.png: {name} slice {k} mm")


def torch_image(image: Array) -> Any:
    """uint8 (H, W) as x (1, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(image)[None] / 127.5 - 1


if __name__ == "__main__":
    try:
        typer.run(main)
    except PosteriorError as problem:
        sys.exit(f"error: {problem}")
