"""Reading the tensors of a checkpoint without running code, and fitting them to a network.

Three formats are recognised by their first bytes, whatever the name: safetensors, and torch's zip
and older files, which are read with `weights_only=True`. Anything else that is a pickle is refused,
because unpickling runs the code that it holds.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from posterior.errors import FileProblem, InputError

_ZIP = b"PK"
_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # its magic number, pickled
_PICKLE = b"\x80"
_INNER = ("ema", "model_ema", "ema_state_dict", "state_dict", "model", "model_state_dict", "net")
_SHOWN = 5  # names in one message

_CONVERT_PICKLE = """
Convert it once, where you trust it; for a network of EDM, in a checkout of NVlabs/edm:
    import json, pickle
    from safetensors.torch import save_file
    net = pickle.load(open({path!r}, "rb"))["ema"]
    config = {{"precond": type(net).__name__, **net.init_kwargs}}
    tensors = {{name: value.contiguous() for name, value in net.state_dict().items()}}
    save_file(tensors, {target!r}, {{"config": json.dumps(config)}})"""

_CONVERT_TORCH = """
Convert it once, where you trust it:
    import torch
    from safetensors.torch import save_file
    saved = torch.load({path!r}, map_location="cpu", weights_only=False)
    tensors = saved.state_dict()  # or saved["ema"], saved["state_dict"], ...
    save_file({{name: value.contiguous() for name, value in tensors.items()}}, {target!r})"""


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of a file, on the CPU, and the `config` of its header ({} where there is none).

    Raises:
        FileProblem: no such file, empty, truncated, of another format, or a pickle that would run
            code; the message says how to convert it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise FileProblem(f"{path} cannot be read: {error.strerror}") from None
    if not start:
        raise FileProblem(f"{path} is empty")
    if start[8:9] == b"{":
        return _safetensors(path)
    if start.startswith((_ZIP, _TORCH_BEFORE_ZIP)):
        return _state_dict(_torch(path), path), {}
    if start.startswith(_PICKLE):
        raise FileProblem(
            f"{path} is a pickle: reading it would run the code inside, so it is refused."
            + _advice(_CONVERT_PICKLE, path)
        )
    raise FileProblem(
        f"{path} is neither a safetensors file nor one of torch.save: it begins with {start[:8]!r}"
    )


def _advice(text: str, path: Path) -> str:
    return text.format(path=str(path), target=str(path.with_suffix(".safetensors")))


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = (file.metadata() or {}).get("config", "{}")
    except (OSError, SafetensorError) as error:
        raise FileProblem(f"{path} is not a readable safetensors file: {error}") from None
    try:
        config = json.loads(header)
    except ValueError as error:
        raise FileProblem(f"the config in the header of {path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise FileProblem(f"the config in the header of {path} is not an object: {header[:80]}")
    return tensors, config


def _torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({name.group(1)})" if name else "more than tensors"
        raise FileProblem(
            f"{path} holds {what}: reading it would run code, so it is refused."
            + _advice(_CONVERT_TORCH, path)
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileProblem(f"{path} is truncated or broken: {first}") from None


def _state_dict(saved: object, path: Path) -> dict[str, Tensor]:
    """The tensors of what was saved: a state dict, or a dict that holds one."""
    if isinstance(saved, Mapping):
        for candidate in (saved, *(saved.get(name) for name in _INNER)):
            if isinstance(candidate, Mapping) and candidate:
                tensors = {k: v for k, v in candidate.items() if isinstance(v, Tensor)}
                if len(tensors) == len(candidate):
                    return tensors
        held = f"a dict of {few(map(str, saved))}"
    else:
        held = f"a {type(saved).__name__}"
    raise FileProblem(
        f"{path} holds {held}, and no state dict: save the tensors by name, torch.save("
        "model.state_dict(), path)"
    )


def few(names: Collection[str] | map[str]) -> str:
    """A handful of names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def beside(tensors: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor] | None:
    """The tensors under the names of the format, `anchor` among them; None where it is missing.

    A wrapper's prefix (`model.`, `module.`) is taken off; names without it stay as they are.
    """
    found = sorted((n for n in tensors if n == anchor or n.endswith("." + anchor)), key=len)
    if not found:
        return None
    prefix = found[0].removesuffix(anchor)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def shape_of(tensors: Mapping[str, Tensor], name: str, path: str) -> tuple[int, ...]:
    """The shape of a tensor that the format must have."""
    if name not in tensors:
        raise FileProblem(f"{path} lacks {name}, so the architecture cannot be told")
    return tuple(tensors[name].shape)


def agree(config: Mapping[str, object], tensors: Mapping[str, object], path: str) -> None:
    """Refuse a config that contradicts what the tensors show; keys of `tensors` alone count."""
    wrong = [
        f"{key} = {config[key]!r} (the tensors have {value!r})"
        for key, value in tensors.items()
        if key in config and config[key] != value
    ]
    if wrong:
        raise InputError(f"the config does not fit {path}: {', '.join(wrong)}")


def fill(
    network: nn.Module, tensors: Mapping[str, Tensor], path: str, dtype: torch.dtype
) -> nn.Module:
    """The network with these tensors as its weights (channels last), every name accounted for.

    Args:
        network: built under torch.device("meta").
        tensors: by name.
        path: for messages.
        dtype: of the weights.
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    surplus = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    faults = [
        f"{text}: {few(names)}"
        for text, names in (
            (f"{len(missing)} missing", missing),
            (f"{len(surplus)} surplus", surplus),
            (f"{len(shapes)} of another shape", shapes),
        )
        if names
    ]
    if faults:
        raise FileProblem(f"the tensors of {path} do not fit the network; " + "; ".join(faults))
    network.load_state_dict({k: v.to(dtype) for k, v in tensors.items()}, assign=True)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch
