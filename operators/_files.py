"""Arrays in files: numpy's, MATLAB's and images."""

from __future__ import annotations

import os
from typing import Any

from posterior.errors import FileProblem, InputError

ARRAYS = (".npy", ".npz", ".mat")


def is_array_file(path: str) -> bool:
    """Whether the name ends as that of a file of arrays."""
    return os.path.splitext(path)[1].lower() in ARRAYS


def read_array(what: str, path: str, key: str | None = None) -> Any:
    """The array in a .npy, .npz or .mat file; `key` names one of several."""
    import numpy as np

    try:
        if path.lower().endswith(".mat"):
            from scipy.io import loadmat

            found: Any = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
        else:
            found = np.load(path, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                with found:
                    found = dict(found)
    except FileNotFoundError:
        raise FileProblem(f"{what} file {path} does not exist") from None
    except NotImplementedError:
        raise FileProblem(f"{what} file {path} is of MATLAB 7.3: save it with -v7") from None
    except Exception as error:  # broken files make numpy and scipy raise errors of all kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileProblem(f"{what} file {path} cannot be read: {reason}") from None
    if not isinstance(found, dict):
        if key is not None:
            raise InputError(f"{what} file {path} holds one array without a name: leave key= out")
        return _native(found)
    if key is None and len(found) != 1:
        raise InputError(f"{what} file {path} holds {', '.join(found) or 'nothing'}: give key=")
    name = next(iter(found)) if key is None else key
    if name not in found:
        raise InputError(f"{what} file {path} holds {', '.join(found) or 'nothing'}, not {name}")
    return _native(found[name])


def _native(array: Any) -> Any:
    """In the byte order of the machine, which torch wants."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


__all__ = ["is_array_file", "read_array"]
