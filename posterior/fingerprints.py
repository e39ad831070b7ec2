"""Content hashes of priors, operators, methods and measurements, so that a resume is honest."""

from __future__ import annotations

import functools
import hashlib
import os
import types
from collections.abc import Mapping, Sequence, Set

import numpy as np
import torch
from torch import Tensor


def fingerprint(thing: object) -> str:
    """A hash of what a thing is made of: values, tensors, weights; a callable counts by its name.

    Attributes that begin with an underscore are caches and do not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, thing, frozenset())
    return digest.hexdigest()


def name_of(thing: object) -> str:
    """The importable name of a class or callable."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{getattr(kind, '__qualname__', '?')}"


def _feed(digest: hashlib.blake2b, thing: object, above: frozenset[int]) -> None:
    def put(tag: str, value: object = "") -> None:
        digest.update(f"{tag}:{value};".encode())

    if id(thing) in above:
        put("again")
        return
    inner = above | {id(thing)}
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
        put(type(thing).__name__, repr(thing))
    elif isinstance(thing, Tensor):
        put("tensor", (thing.dtype, tuple(thing.shape)))
        flat = thing.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(thing, np.ndarray):
        put("array", (thing.dtype, thing.shape))
        digest.update(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, (torch.dtype, torch.device, np.generic, os.PathLike)):
        put(type(thing).__name__, str(thing))
    elif isinstance(thing, functools.partial):
        put("partial")
        _feed(digest, [thing.func, thing.args, thing.keywords], inner)
    elif isinstance(thing, torch.nn.Module):
        put("module", name_of(thing))
        _feed(digest, dict(thing.state_dict()), inner)
    elif isinstance(thing, Mapping):
        put("map", len(thing))
        for key in sorted(thing, key=repr):
            put("key", repr(key))
            _feed(digest, thing[key], inner)
    elif isinstance(thing, Set):
        put("set", sorted(map(repr, thing)))
    elif isinstance(thing, Sequence):
        put("list", len(thing))
        for item in thing:
            _feed(digest, item, inner)
    elif isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)):
        put("callable", name_of(thing))
    elif hasattr(thing, "state") and callable(thing.state):
        put("object", name_of(thing))
        _feed(digest, thing.state(), inner)
    else:
        put("object", name_of(thing))
        values = dict(getattr(thing, "__dict__", {}))
        for slot in getattr(type(thing), "__slots__", ()):
            values[slot] = getattr(thing, slot, None)
        _feed(digest, {k: v for k, v in values.items() if k[:1] != "_"}, inner)
