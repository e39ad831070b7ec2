"""Photographs for benchmarks and what is measured of them.

The photographs are crops of the tuning or of the held-out test split of the photo prior, which
`python examples/photo_prior/fetch.py` must have fetched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "photo_prior"))

from fetch import MANIFEST
from train import load_photo

from posterior import operators
from posterior.errors import CapabilityError
from posterior.guidance import Guidance
from posterior.guidance.registry import lacking
from posterior.operators import GaussianBlur, GaussianNoise, Operator
from posterior.operators.blur import Convolution
from posterior.problem import Problem

TASKS: dict[str, tuple[Operator, float]] = {
    # noise as a part of full scale
    "random 70 % missing": (operators.Mask.random(keep_fraction=0.3, seed=0), 0.02),
    "Gaussian blur, sigma 2": (operators.GaussianBlur(sigma=2.0), 0.02),
    "motion blur, length 15": (operators.MotionBlur(length=15, angle=30), 0.02),
    "x4 super-resolution": (operators.SuperResolution(factor=4), 0.0),
}

ROUNDING = 0.5 / 255  # what methods that divide by the noise are told where there is none


class Task(NamedTuple):
    """A measurement of a photograph.

    Attributes:
        operator: A.
        noise: that is added, as a part of full scale.
        reduce: the crop is this many times smaller on a side than those of the other tasks.
    """

    operator: Operator
    noise: float
    reduce: int = 1

    @property
    def std(self) -> float:
        """Standard deviation of the added noise in [-1, 1]."""
        return 2 * self.noise

    @property
    def model(self) -> GaussianNoise:
        """The noise that methods are told; rounding where none is added."""
        return GaussianNoise(2 * (self.noise or ROUNDING))


def tasks(size: int) -> dict[str, Task]:
    """All tasks on crops of that size: the four of `TASKS`, two more, and a small one.

    The hole is a quarter of the side. The small one is for methods that need many particles.
    """
    return {
        **{name: Task(*task) for name, task in TASKS.items()},
        f"box of {size // 4} missing": Task(operators.Mask.box(size=size // 4), 0.02),
        "denoising, noise 0.1": Task(operators.Identity(), 0.1),
        f"random 70 % missing, {size // 2} px": Task(*TASKS["random 70 % missing"], reduce=2),
    }


def applies(method: Guidance, problem: Problem) -> bool:
    """Whether a method can use the operator and the noise.

    MCG takes blurs, but inverts them, noise and all: it is left out there.
    """
    if lacking(method, problem):
        return False
    if "pinv" in method.needs and isinstance(problem.operator, Convolution | GaussianBlur):
        return False
    try:
        method.check(problem)
    except CapabilityError:
        return False
    return True


def measured(task: Task, x: Tensor, seed: int) -> Tensor:
    """y of a photograph."""
    y = task.operator(x)
    return GaussianNoise(task.std).sample(y, seed=seed) if task.noise > 0 else y


def crops(split: str, size: int, reach: int = 2) -> dict[str, Tensor]:
    """One central crop (1, 3, size, size) in [-1, 1] of each photograph of a split.

    A square `reach` times as large is reduced to `size` (or as large as the photograph has), so
    that a small crop shows a piece of a scene and not a piece of a leaf.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for entry in json.loads(MANIFEST.read_text()):
        if entry["split"] == split:
            chosen.setdefault(entry.get("group", entry["id"]), entry)
    found = {}
    for entry in chosen.values():
        photo = load_photo(entry)
        side = min(size * reach, *photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.crop((left, top, left + side, top + side))
        square = square.resize((size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(square).copy())
        found[entry["id"]] = pixels.permute(2, 0, 1)[None] / 127.5 - 1
    return found
