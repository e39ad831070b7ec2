"""A prior for images of any size that costs nothing, and photographs that need no download."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posterior.errors import InputError
from posterior.priors import Prior
from posterior.schedules import VE


class SmoothPrior(Prior):
    """RGB images as a stationary Gaussian field with a 1/f^2 spectrum: the Wiener filter denoises.

    As the photo prior it takes any size from 32x32 on.
    """

    rows = None
    graph_bytes = 64
    range = (-1.0, 1.0)
    schedule = VE(0.002, 80.0)

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """x_t (B, 3, H, W) -> E[x0 | x_t]."""
        _, sigma = self.schedule(t)
        height, width = x_t.shape[-2:]
        fy = torch.fft.fftfreq(height)[:, None]
        fx = torch.fft.rfftfreq(width)[None]
        power = 0.01 / (fx**2 + fy**2 + 0.5 / (height * width))
        noise = sigma**2 if not isinstance(sigma, Tensor) else sigma.view(-1, 1, 1, 1) ** 2
        gain = (power / (power + noise)).to(x_t.dtype)
        return torch.fft.irfft2(torch.fft.rfft2(x_t) * gain, s=(height, width))

    def check_event(self, event: tuple[int, ...]) -> None:
        """RGB, at least 32x32."""
        if len(event) != 3 or event[0] != 3 or min(event[1:]) < 32:
            raise InputError(f"the prior makes RGB images of at least 32x32, not {event}")

    def __repr__(self) -> str:
        return "SmoothPrior()"


def photograph(name: str, size: int = 64) -> np.ndarray:
    """A square of a photograph packaged with scikit-image, (size, size, 3) uint8."""
    from PIL import Image
    from skimage import data

    folder = Path(data.__file__).parent
    path = next(p for p in folder.glob(f"{name}.*") if p.suffix in (".png", ".jpg"))
    with Image.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def as_tensor(array: np.ndarray) -> Tensor:
    """uint8 (H, W, C) as (1, C, H, W) in [-1, 1]."""
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32))[None] / 127.5 - 1


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content: to show that nothing was lost or written."""
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
