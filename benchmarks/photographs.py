"""Photographs for benchmarks: crops of the tuning or the held-out test split of the photo prior.

`python examples/photo_prior/fetch.py` must have fetched them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "photo_prior"))

from fetch import MANIFEST
from train import load_photo

from posterior import operators
from posterior.operators import Operator

TASKS: dict[str, tuple[Operator, float]] = {
    # noise as a part of full scale
    "random 70 % missing": (operators.Mask.random(keep_fraction=0.3, seed=0), 0.02),
    "Gaussian blur, sigma 2": (operators.GaussianBlur(sigma=2.0), 0.02),
    "motion blur, length 15": (operators.MotionBlur(length=15, angle=30), 0.02),
    "x4 super-resolution": (operators.SuperResolution(factor=4), 0.0),
}


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
