"""Priors by name or from files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posterior.devices import check_rows
from posterior.errors import FileProblem, InputError, InputTypeError, unknown_name
from posterior.priors.base import Prior
from posterior.priors.pipelines import (
    is_pipeline_name,
    load_pipeline_prior,
    prior_from_pipeline,
)

if TYPE_CHECKING:
    import torch

__all__ = ["load_prior", "prior_from_pipeline"]

BUNDLED = ("photo",)
_WEIGHTS = ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl"  # what names of files end with


def load_prior(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    rows: int | None = None,
    low_memory: bool = False,
    config: Mapping[str, object] | None = None,
) -> Prior:
    """The prior of that name.

    Args:
        name: "photo", the diffusion prior of natural photographs in the package; a folder that a
            diffusers pipeline was saved to; the name of one on the hub, "owner/name"; or a file:
            the weights of an ADM or EDM network, or of a photo prior of one's own.
        device: where it runs, such as "cuda"; default: the CPU. `prior.to(device)` moves it later.
        rows: the fixed batch of one network call; default: 1 on a CPU, 4 on a GPU.
        low_memory: spend time instead of memory: gradients compute activations again, guidance is
            two passes, an autoencoder works in tiles.
        dtype: of the weights of a pipeline, or of an ADM or EDM network; default: float32.
        variant: of the files of a pipeline, such as "fp16".
        config: of a file, what its tensors do not show.

    Raises:
        InputError: an unknown name, or an option that this prior does not have.
        FileProblem: files are missing, broken or pickled; the hub cannot be reached.
        CapabilityError: a pipeline of a family that cannot be a prior.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise InputTypeError(f"a prior is loaded by name, not by {type(name).__name__}")
    check_rows(rows)
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "variant": variant,
        "rows": rows,
        "low_memory": low_memory,
        "config": config,
    }
    if os.fspath(name) == "photo":
        given = [key for key in ("dtype", "variant", "config") if options[key] is not None]
        if given:
            raise InputError(f"{', '.join(given)}: the photo prior has no such option")
        return _photo(device=device, rows=rows, low_memory=low_memory)
    if Path(name).is_file():
        from posterior.priors.checkpoints import load_checkpoint

        if options.pop("variant"):
            raise InputError("variant: the prior of a file has no such option")
        return load_checkpoint(name, **options)
    if Path(name).suffix in _WEIGHTS and not Path(name).is_dir():
        raise FileProblem(f"there is no file {os.fspath(name)}")
    if is_pipeline_name(name):
        if options.pop("config") is not None:
            raise InputError("config= is of a file of weights: a pipeline says all about itself")
        return load_pipeline_prior(name, **options)
    if not isinstance(name, str) or Path(name).name != name:
        raise FileProblem(f"there is no file or folder {os.fspath(name)}")
    raise InputError(
        f"{unknown_name('prior', name, BUNDLED)}; or give the folder of a diffusers pipeline, the"
        " name of one on the hub (owner/name), or a file of weights"
    )


def _photo(**options: Any) -> Prior:
    from posterior.priors.bundled import PhotoPrior

    weights = resources.files("posterior") / "priors" / "weights" / "photo.safetensors"
    with resources.as_file(weights) as path:
        if not Path(path).is_file():
            raise FileProblem(f"the weights of the photo prior are missing: {path}")
        return PhotoPrior.load(path, **options)
