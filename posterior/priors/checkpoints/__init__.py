"""Research checkpoints as priors: ADM (guided-diffusion) and EDM networks, by what a file holds.

>>> prior = posterior.load_prior("ffhq_10m.pt")
>>> prior = posterior.load_prior("256x256_diffusion.pt").given(207)
>>> prior = posterior.load_prior("edm-ffhq.safetensors", config={"precond": "edm"})

Nothing in a file is executed: safetensors, or state dicts of tensors (`weights_only=True`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields

import torch

from posterior.devices import as_device, default_rows
from posterior.errors import FileProblem, InputError, InputTypeError
from posterior.priors.base import Prior
from posterior.priors.checkpoints import adm, edm
from posterior.priors.checkpoints._files import beside, few, read
from posterior.priors.checkpoints._prior import CheckpointPrior
from posterior.priors.pipelines.base import check_precision

__all__ = ["CheckpointPrior", "load_checkpoint"]


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, object] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    rows: int | None = None,
    low_memory: bool = False,
) -> Prior:
    """The prior of a file: an ADM or EDM network, or a photo prior as `PhotoNet.save` writes it.

    Args:
        path: a safetensors file, or a state dict of torch.save.
        config: what the tensors do not show, in the words of the format (see `adm` and `edm`);
            it goes before that in the header of the file.
        device: where the network runs; default: the CPU.
        dtype: of the weights; default: float32.
        rows: the fixed batch of one evaluation; default: 1 on a CPU, 4 on a GPU.
        low_memory: see `NetworkPrior`; guidance in two passes, too.

    Raises:
        FileProblem: unreadable, unknown, not safe to read, or tensors that are missing or surplus.
        InputError: a config that is unknown or contradicts the tensors.
    """
    if config is not None and not isinstance(config, Mapping):
        raise InputTypeError(f"config is a dict of settings, not {type(config).__name__}")
    kind = torch.float32 if dtype is None else dtype
    target = as_device(device)
    check_precision(kind, target)
    place = os.fspath(path)
    tensors, header = read(place)
    if _is_photo(header):
        from posterior.priors.bundled import PhotoPrior

        options = {"config": config, "dtype": dtype}
        if given := [key for key, value in options.items() if value is not None]:
            raise InputError(f"{', '.join(given)}: a photo prior has no such option")
        return PhotoPrior.load(place, device=target, rows=rows, low_memory=low_memory)
    _refuse_other_models(tensors, place)
    said = {**header, **(config or {})}
    for family in (adm, edm):
        named = beside(tensors, family.ANCHOR)
        if named is not None:
            placed = {name: value.to(target) for name, value in named.items()}
            block = default_rows(target) if rows is None else rows
            prior = family.load(placed, said, place, dtype=kind, rows=block, low_memory=low_memory)
            prior.one_batch = False if low_memory else None
            return prior
    raise FileProblem(
        f"{place} is neither an ADM nor an EDM network (no {adm.ANCHOR}, no {edm.ANCHOR}); it"
        f" holds {len(tensors)} tensors: {few(tensors)}"
    )


_OTHER_MODELS = {  # parts of names -> what has them, and what to do; the first that fits
    ("lora_", ".lora."): "an adapter: load its model as a pipeline, pipe.load_lora_weights(file),"
    " then posterior.prior_from_pipeline(pipe)",
    ("model.diffusion_model.", "first_stage_model.", "double_blocks.", "joint_blocks."): "a whole"
    " Stable Diffusion or FLUX model in one file: read it with diffusers,"
    " pipe = StableDiffusionPipeline.from_single_file(file) or that of its family, then"
    " posterior.prior_from_pipeline(pipe)",
    ("down_blocks.", "transformer_blocks."): "a part of a diffusers pipeline: load the folder that"
    " it is from",
}


def _refuse_other_models(tensors: Collection[str], place: str) -> None:
    """Say what to do with files that people have, but that do not hold a network of ours."""
    for parts, what in _OTHER_MODELS.items():
        if any(part in name for name in tensors for part in parts):
            raise FileProblem(f"{place} holds {what}")


def _is_photo(header: Mapping[str, object]) -> bool:
    from posterior.priors.photo import PhotoConfig

    names = {field.name for field in fields(PhotoConfig)}
    return {"encoder", "decoder"} <= set(header) <= names
