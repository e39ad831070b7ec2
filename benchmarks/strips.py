"""Strips of pictures for the documents: tiles of one size with captions, as small JPEG files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LARGEST = 150_000  # bytes of a file
SMALLEST = 128  # pixels of a tile's width, for its caption


class Tile(NamedTuple):
    """One image (H, W, 3) in [0, 1] with two lines below it."""

    image: np.ndarray
    title: str
    note: str = ""


def strip(tiles: Sequence[Tile], per_row: int = 6) -> Image.Image:
    """Tiles of one size in rows; small ones are enlarged by a whole factor: pixels stay pixels."""
    factor = math.ceil(SMALLEST / tiles[0].image.shape[1])
    height, width = (factor * side for side in tiles[0].image.shape[:2])
    gap, caption = 6, 34
    columns, lines = min(per_row, len(tiles)), math.ceil(len(tiles) / per_row)
    size = (columns * (width + gap) - gap, lines * (height + caption))
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for k, tile in enumerate(tiles):
        left, top = k % per_row * (width + gap), k // per_row * (height + caption)
        large = tile.image.repeat(factor, 0).repeat(factor, 1)
        pixels = (large.clip(0, 1) * 255).round().astype(np.uint8)
        page.paste(Image.fromarray(pixels), (left, top))
        pen.text((left, top + height + 3), tile.title, fill="#1a1a1a", font=font)
        pen.text((left, top + height + 17), tile.note, fill="#6f6f6f", font=font)
    return page


def save_small(page: Image.Image, path: Path, largest: int = LARGEST) -> None:
    """A JPEG of the best quality that fits."""
    for quality in range(95, 20, -5):
        data = io.BytesIO()
        page.save(data, "JPEG", quality=quality, subsampling=0)
        if data.tell() <= largest:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.getvalue())
            return
    raise SystemExit(f"{path}: no JPEG of that size fits {largest} bytes")


def picture(x: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    array: np.ndarray = ((x[0].double() + 1) / 2).permute(1, 2, 0).numpy()
    return array


def slug(text: str) -> str:
    """A file name."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)
