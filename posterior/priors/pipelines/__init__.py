"""Pipelines of the diffusers library as priors.

`prior_from_pipeline` takes a pipeline that is in memory, with its adapters and settings;
`load_pipeline_prior` a folder that one was saved to, or its name on the hub. This package imports
diffusers only when one of them is called.
"""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posterior.devices import as_device
from posterior.errors import (
    CapabilityError,
    FileProblem,
    InputTypeError,
    PosteriorError,
    unknown_name,
)

if TYPE_CHECKING:
    import torch

    from posterior.priors.pipelines.base import PipelinePrior

_PIXEL = (
    "DDPMPipeline",
    "DDIMPipeline",
    "ScoreSdeVePipeline",
    "KarrasVePipeline",
    "ConsistencyModelPipeline",
)
_STABLE_DIFFUSION = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
_XL = "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"
_SD3 = "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"
_FLUX = "FluxPipeline", "FluxImg2ImgPipeline"
_DIT = ("DiTPipeline",)
FAMILIES = (*_PIXEL, *_STABLE_DIFFUSION, *_XL, *_SD3, *_FLUX, *_DIT)
_IGNORED = "safety_checker", "feature_extractor", "image_encoder"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def prior_from_pipeline(
    pipe: Any, *, rows: int | None = None, low_memory: bool = False
) -> PipelinePrior:
    """The prior of a diffusers pipeline, its modules as they stand now; the pipeline is left alone.

    The prior works on modules of its own that share the weights: freezing, eval mode, tiles and
    `.to` are not seen by the pipeline. (Modules with hooks of `accelerate`, as after
    `enable_model_cpu_offload`, cannot be copied and are used themselves.)

    Args:
        pipe: a DDPM, DDIM, score-SDE-VE, Stable Diffusion (1.x, 2.x, XL, 3.x), consistency, latent
            consistency, FLUX.1 or DiT pipeline; LoRA and other adapters that are active stay
            active, the schedule and the parametrisation are those of its scheduler.
        rows: the fixed batch of one evaluation; default: 1 on a CPU, 4 on a GPU.
        low_memory: spend time instead of memory where there is a choice: guidance in two passes,
            activations computed again for a gradient, the autoencoder in tiles.

    Raises:
        InputTypeError: not a pipeline.
        CapabilityError: a pipeline of another family, or one whose scheduler is not known.
    """
    if not hasattr(pipe, "components") or not hasattr(pipe, "scheduler"):
        raise InputTypeError(
            f"expected a diffusers pipeline, not {type(pipe).__name__}; for a folder or a hub name"
            " use posterior.load_prior"
        )
    return _prior_of(_apart(pipe), rows, low_memory)


def _apart(pipe: Any) -> Any:
    """The pipeline with modules of its own on the same weights."""
    from torch import nn

    own = copy.copy(pipe)
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module) or any(hasattr(m, "_hf_hook") for m in part.modules()):
            continue
        shared: dict[int, Any] = {id(buffer): buffer for buffer in part.buffers()}
        shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in part.parameters()}
        setattr(own, name, copy.deepcopy(part, shared))
    return own


def _prior_of(pipe: Any, rows: int | None, low_memory: bool) -> PipelinePrior:
    for ancestor in type(pipe).__mro__:
        family = ancestor.__name__
        if family in _PIXEL:
            from posterior.priors.pipelines.pixel import PixelPrior

            return PixelPrior(pipe, rows=rows, low_memory=low_memory)
        if family in _STABLE_DIFFUSION or family in _XL:
            from posterior.priors.pipelines import stable_diffusion as sd

            kind = sd.StableDiffusionPrior if family in _STABLE_DIFFUSION else sd.SDXLPrior
            return kind(pipe, rows=rows, low_memory=low_memory)
        if family in _SD3 or family in _FLUX:
            from posterior.priors.pipelines import flow_transformers as flows

            flow = flows.StableDiffusion3Prior if family in _SD3 else flows.FluxPrior
            return flow(pipe, rows=rows, low_memory=low_memory)
        if family in _DIT:
            from posterior.priors.pipelines.dit import DiTPrior

            return DiTPrior(pipe, rows=rows, low_memory=low_memory)
    raise _unknown_family(type(pipe).__name__)


def load_pipeline_prior(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    rows: int | None = None,
    low_memory: bool = False,
) -> PipelinePrior:
    """The prior of a pipeline saved in a folder, or on the hub under that name.

    Weights are read from safetensors files only, and no code that comes with them is run.

    Args:
        source: a folder that holds model_index.json, or "owner/name".
        device: where to put it; default: the CPU.
        dtype: of the weights; default: float32.
        variant: of the files, such as "fp16".
        rows, low_memory: see `prior_from_pipeline`.

    Raises:
        FileProblem: something is missing, broken or pickled; the hub cannot be reached.
    """
    import torch

    from posterior.priors.pipelines.base import check_precision

    diffusers = _diffusers()
    dtype = torch.float32 if dtype is None else dtype
    target = as_device(device)
    check_precision(dtype, target)
    index = _index(source, diffusers)
    family = index.get("_class_name")
    if family not in FAMILIES:
        raise _unknown_family(str(family))
    path = Path(source)
    if path.is_dir():
        _check_folder(path, index)
    left_out = (k for k, v in index.items() if isinstance(v, list) and v[0] is None)
    skipped: dict[str, Any] = dict.fromkeys([*(k for k in _IGNORED if k in index), *left_out])
    if "requires_safety_checker" in index:
        skipped["requires_safety_checker"] = False
    try:
        with warnings.catch_warnings():  # of the two names of dtype, torch_dtype is in all versions
            warnings.simplefilter("ignore", FutureWarning)
            if index.get("scheduler") == ["deprecated", "KarrasVeScheduler"]:
                # diffusers writes the name of that module, and then does not find it there
                kind = diffusers.KarrasVeScheduler
                config = kind.load_config(os.fspath(source), subfolder="scheduler")
                skipped["scheduler"] = kind.from_config(config)
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                os.fspath(source),
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=path.is_dir(),
                trust_remote_code=False,
                **skipped,
            )
    except Exception as error:
        raise FileProblem(f"cannot load the pipeline {source}: {_first_line(error)}") from error
    pipe = pipe.to(target, dtype)
    for name in ("unet", "vae"):  # the layout that convolutions are fastest in
        if (part := getattr(pipe, name, None)) is not None:
            part.to(memory_format=torch.channels_last)
    return _prior_of(pipe, rows, low_memory)


def is_pipeline_name(name: str | os.PathLike[str]) -> bool:
    """Whether this names a folder, or has the form of a hub name."""
    if os.fspath(name) and Path(name).is_dir():
        return True
    return isinstance(name, str) and _HUB_NAME.fullmatch(name) is not None


def _diffusers() -> Any:
    try:
        import diffusers
        import transformers  # noqa: F401  (most pipelines need it)
    except ImportError as error:
        raise CapabilityError(
            f"pipelines need the extra packages of posterior-sampling[diffusers]: {error}"
        ) from None
    return diffusers


def _index(source: str | os.PathLike[str], diffusers: Any) -> dict[str, Any]:
    """The pipeline's model_index.json."""
    path = Path(source)
    if path.is_dir():
        file = path / "model_index.json"
        if not file.is_file():
            raise FileProblem(f"{path} holds no model_index.json: it is not a saved pipeline")
        try:
            index = json.loads(file.read_text())
        except ValueError as error:
            raise FileProblem(f"{file} is not readable JSON: {error}") from None
        if not isinstance(index, dict):
            raise FileProblem(f"{file} does not describe a pipeline")
        return index
    try:
        return dict(diffusers.DiffusionPipeline.load_config(os.fspath(source)))
    except Exception as error:
        offline = _offline(error)
        why = (
            f"is not in the cache of the hub, which cannot be reached ({offline}): check the"
            if offline
            else f"the hub does not give it ({_first_line(error)}): check the name and the"
        )
        raise FileProblem(
            f"{source} is no folder here, and {why} network, or download the folder elsewhere and"
            " give its path"
        ) from None


def _check_folder(folder: Path, index: dict[str, Any]) -> None:
    """Every part of a saved pipeline is there, and its weights are safetensors."""
    for name, entry in index.items():
        if name.startswith("_") or name in _IGNORED or not isinstance(entry, list):
            continue
        if entry[0] is None:
            continue
        part = folder / name
        if not part.is_dir():
            raise FileProblem(f"{folder} is incomplete: the folder {name} is missing")
        pickled = [f.name for f in part.iterdir() if f.suffix in (".bin", ".ckpt", ".pt", ".pth")]
        if pickled and not any(part.glob("*.safetensors")):
            raise FileProblem(
                f"{part / pickled[0]} is a pickle, which can run code when it is read: convert it"
                " to safetensors (pipe.save_pretrained writes them), or load the pipeline yourself"
                " and use posterior.prior_from_pipeline"
            )


def _unknown_family(name: str) -> PosteriorError:
    return CapabilityError(
        f"{name} is not a family that can be a prior ({unknown_name('pipeline', name, FAMILIES)})"
    )


def _offline(error: BaseException) -> str:
    """Why the hub could not be asked, "" where it was; diffusers reports a missing file instead."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause: BaseException | None = error
    unreached = False
    while cause is not None:
        error = cause
        unreached |= isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled))
        cause = cause.__cause__ or cause.__context__
    return _first_line(error) if unreached else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
