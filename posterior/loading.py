"""Priors by name or from files."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from posterior.errors import FileProblem, InputTypeError, unknown_name
from posterior.priors.base import Prior

BUNDLED = ("photo",)


def load_prior(name: str | os.PathLike[str]) -> Prior:
    """The prior of that name: "photo", the diffusion prior of natural photographs in the package.

    Raises:
        InputError: an unknown name.
        FileProblem: the weights are missing or broken.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise InputTypeError(f"a prior is loaded by name, not by {type(name).__name__}")
    if os.fspath(name) != "photo":
        raise unknown_name("prior", os.fspath(name), BUNDLED)
    from posterior.priors.bundled import PhotoPrior

    weights = resources.files("posterior") / "priors" / "weights" / "photo.safetensors"
    with resources.as_file(weights) as path:
        if not Path(path).is_file():
            raise FileProblem(f"the weights of the photo prior are missing: {path}")
        return PhotoPrior.load(path)
