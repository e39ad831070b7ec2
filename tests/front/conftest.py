"""Fixtures of the front doors' tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from front_helpers import SmoothPrior, photograph

import posterior
from posterior import sheet


@pytest.fixture(scope="session")
def smooth() -> SmoothPrior:
    return SmoothPrior()


@pytest.fixture
def photo_prior(monkeypatch: pytest.MonkeyPatch, smooth: SmoothPrior) -> SmoothPrior:
    """The smooth prior under the name "photo", for the command line."""
    monkeypatch.setattr(posterior, "load_prior", lambda name, **_: smooth, raising=False)
    return smooth


@pytest.fixture(scope="session")
def cat() -> np.ndarray:
    return photograph("chelsea")


@pytest.fixture
def cat_file(tmp_path: Path, cat: np.ndarray) -> Path:
    """The cat as cat.png, 64x64."""
    from PIL import Image

    path = tmp_path / "cat.png"
    Image.fromarray(cat).save(path)
    return path


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contact sheets of 720 pixels instead of 2400: most of a test's time would go there."""
    monkeypatch.setattr(sheet, "_DPI", 60)
