"""Kernels for `Blur`, from files and from seeds.

>>> Blur(load_kernel("psf.npy"))
>>> Blur(load_kernel("levin.mat", key="f", normalise=True), correlation=True)
>>> Blur(camera_shake(size=31, seed=0))                   # or one for each measurement: seed=[0, 1]
"""

from __future__ import annotations

import cmath
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from posterior.errors import FileProblem, InputError
from posterior.operators._files import is_array_file, read_array
from posterior.operators.base import check_count, check_number
from posterior.operators.blur import as_kernel
from posterior.streams import Noise, check_seed

_STEPS = 2000


def load_kernel(
    path: str | os.PathLike[str], *, key: str | None = None, normalise: bool = False
) -> Tensor:
    """A kernel from a .npy, .npz or .mat file, or from an image, float64 (kh, kw).

    Images give grey levels from 0 to 1. Stacks (K, kh, kw) of arrays stay stacks.

    Args:
        path: of the file.
        key: name of the array in a .npz or .mat file, where there are several.
        normalise: divide each kernel by its sum; images need it.

    Raises `FileProblem` for a file that cannot be read, `InputError` for what is no kernel.
    """
    path = os.fspath(path)
    if is_array_file(path):
        kernel = as_kernel(read_array("kernel", path, key))
    elif key is not None:
        raise InputError(f"kernel file {path} holds no arrays with names: leave key= out")
    else:
        kernel = _image(path)
    if not normalise:
        return kernel
    sums = kernel.sum((-2, -1), keepdim=True)
    if bool((sums <= 0).any()):
        raise InputError(f"kernel file {path}: a kernel with a sum of {float(sums.min()):.3g}")
    return kernel / sums


def _image(path: str) -> Tensor:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            deep = file.mode.startswith("I")
            values = np.array(file if deep or file.mode == "F" else file.convert("L"))
            scale = 65535 if deep else 1 if file.mode == "F" else 255
    except FileNotFoundError:
        raise FileProblem(f"kernel file {path} does not exist") from None
    except UnidentifiedImageError:
        raise FileProblem(
            f"kernel file {path} is neither .npy, .npz or .mat nor an image that Pillow can read"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise FileProblem(f"kernel file {path} cannot be read: {error}") from None
    return as_kernel(values.astype(np.float64) / scale)


def camera_shake(
    size: int = 61,
    *,
    length: float | None = None,
    anxiety: float = 0.005,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """The trace of a shaking camera, a random kernel of sum 1: float64 (size, size).

    A point moves through the complex plane at constant speed, n = 2000 steps of length h = length
    / (n - 1). Before each step its velocity v becomes v + d, brought back to |v| = h, with

        d = anxiety h (g z - c p) + s

    z complex normal, p the position, and s = 2 v exp(i (pi + u)), u uniform on (-1/2, 1/2), a turn
    back, with probability anxiety q, else 0. The tremor g, the pull c to the start and q are drawn
    for each kernel, uniform on (0, 10), (0, 0.7) and (0, 0.2), as is the first direction. Each
    position is spread over its four nearest pixels, the centroid in the middle.

    G. Boracchi, A. Foi, "Modeling the performance of image restoration from motion blur", IEEE TIP
    21, 2012.

    Args:
        size: odd.
        length: of the trace in pixels, at most size - 1, which is the default: then it fits.
        anxiety: 0 is a straight line; up to about 0.1.
        seed: any integer; a sequence gives kernels (B, size, size) for that many measurements.
    """
    size = check_count("size", size, 3)
    if size % 2 == 0:
        raise InputError(f"size must be odd, not {size}")
    length = check_number("length", size - 1 if length is None else length, 0, size - 1)
    anxiety = check_number("anxiety", anxiety, 0, 1)
    if isinstance(seed, Sequence):
        if not seed:
            raise InputError("seed: give at least one")
        return torch.stack([_shake(size, length, anxiety, check_seed(s)) for s in seed])
    return _shake(size, length, anxiety, check_seed(seed))


def _shake(size: int, length: float, anxiety: float, seed: int) -> Tensor:
    noise = Noise.single(seed, (_STEPS,), torch.float64)
    chosen = noise.uniform("shake")[0, :4].tolist()
    tremor, pull, turns = 10 * chosen[0], 0.7 * chosen[1], 0.2 * chosen[2]
    when, angle = (noise.uniform(name)[0].tolist() for name in ("when", "angle"))
    z = torch.complex(noise("tremor", 0), noise("tremor", 1))[0].tolist()
    h = length / (_STEPS - 1)
    velocity = cmath.rect(h, 2 * math.pi * chosen[3])
    position = [0j]
    for t in range(_STEPS - 1):
        change = anxiety * h * (tremor * z[t] - pull * position[-1])
        if when[t] < anxiety * turns:
            change += 2 * velocity * cmath.exp(1j * (math.pi + angle[t] - 0.5))
        velocity += change
        velocity = cmath.rect(h, cmath.phase(velocity))
        position.append(position[-1] + velocity)
    return _spread(torch.tensor(position, dtype=torch.complex128), size)


def _spread(position: Tensor, size: int) -> Tensor:
    """Points around their centroid, bilinearly on the pixels."""
    position = position - position.mean()
    kernel = torch.zeros(size * size, dtype=torch.float64)
    # rounded: a straight line along an axis would else spread by 1e-16 beyond the last pixel
    down, right = (
        torch.round(v + (size - 1) / 2, decimals=9) for v in (-position.imag, position.real)
    )
    i, j = down.floor(), right.floor()
    for di, wi in ((0, 1 - (down - i)), (1, down - i)):
        for dj, wj in ((0, 1 - (right - j)), (1, right - j)):
            weight = wi * wj
            there = weight > 0
            place = ((i + di) * size + j + dj)[there].long()
            kernel.index_add_(0, place, weight[there])
    return kernel.reshape(size, size) / len(position)


__all__ = ["camera_shake", "load_kernel"]
