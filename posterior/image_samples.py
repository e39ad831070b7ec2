"""Draws that are images, saved as images: what restorations and edits have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from posterior.folders import check_free, replacing_folder
from posterior.images import ImageInfo, displayed, write_image
from posterior.samples import Samples, to_json, write_atomically


@dataclass(frozen=True, eq=False)
class ImageSamples(Samples, ABC):
    """`Samples` that are images, (n, B, C, H, W) in [-1, 1].

    A subclass draws the `sheet`, and writes its images; one of them is scaled, so that its largest
    value is white, and that value is `image` / `white_name` of report.json, as a part of full
    scale.

    Attributes:
        info: what kind of file the image was.
        title: what was done, in a few words.
    """

    info: ImageInfo = field(default_factory=ImageInfo)
    title: str = ""

    white_name: ClassVar[str]

    @abstractmethod
    def sheet(self, path: str | os.PathLike[str], measurement: int = 0) -> Path:
        """Write the contact sheet of one measurement: a PNG for a slide."""

    def summary(self) -> dict[str, Any]:
        """The report as JSON values: that of `Samples`, and `image`."""
        image = {
            "name": self.info.name,
            "bits": self.info.bits,
            "mode": self.info.mode,
            "alpha": self.info.alpha is not None,
            "exif_orientation": self.info.orientation,
        }
        return {**super().summary(), "image": image}

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write images, contact sheet, samples.safetensors and report.json, all or nothing.

        A batch gets one folder per image.

        Args:
            folder: made if missing.
            overwrite: replace a folder that holds nothing but an earlier result.

        Raises:
            FileProblem: the folder is not empty, or cannot be written.
        """
        out = Path(folder)
        check_free(out, overwrite)
        with replacing_folder(out) as new:
            super().save(new)
            whites = self._write_folder(new)
            summary = self.summary()
            if whites:
                summary["image"][self.white_name] = whites[0] if len(whites) == 1 else whites
            write_atomically(new / "report.json", to_json(summary))
        return out

    def _write_folder(self, folder: Path) -> list[float | None]:
        """Images and sheet of each measurement; what white means for each."""
        images = self.draws.shape[1]
        whites = []
        for b in range(images):
            into = folder if images == 1 else folder / str(b)
            into.mkdir(exist_ok=True)
            whites.append(self._write_images(into, b))
            self.sheet(into / "sheet.png", b)
        return whites

    @abstractmethod
    def _write_images(self, folder: Path, b: int) -> float | None:
        """The images of measurement b; what white means in the scaled one, None without it."""

    def _write_image(self, path: Path, image: Tensor) -> None:
        """(C, h, w) with the bits and the alpha of the input, and its profile if it fits."""
        alpha = _alpha_of_size(self.info.alpha, image.shape[-2], image.shape[-1])
        grey = self.info.mode[:1] in ("L", "I")  # a profile of greys does not fit colours
        icc = self.info.icc if grey == (image.shape[0] == 1) else None
        write_image(path, displayed(image), bits=self.info.bits, alpha=alpha, icc=icc)

    def _write_scaled(self, path: Path, values: Tensor) -> float:
        """Values >= 0 of (1, H, W) or (H, W), the largest white; that one."""
        white = float(values.max())
        shown = values / max(white, 1e-12) * 2 - 1
        write_image(path, shown.reshape(1, *values.shape[-2:]), bits=self.info.bits)
        return white


def _alpha_of_size(alpha: Tensor | None, height: int, width: int) -> Tensor | None:
    if alpha is None or tuple(alpha.shape[-2:]) == (height, width):
        return alpha
    resized = torch.nn.functional.interpolate(
        alpha[None], (height, width), mode="bilinear", antialias=True
    )
    return resized[0]
