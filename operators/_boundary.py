"""What lies beyond the border of an image.

"circular"  the image repeats:                    ... c d | a b c d | a b ...
"reflect"   mirrored at the centre of the border pixel: c b | a b c d | c b  (torch's and numpy's
            "reflect"; scipy's "mirror", not scipy's "reflect")
"symmetric" mirrored at the outer edge: b a | a b c d | d c  (MATLAB; used by resize only)
"valid"     nothing: only outputs whose whole neighbourhood lies inside the image exist
"""

from __future__ import annotations

import torch
from torch import Tensor

BOUNDARIES = ("circular", "reflect", "valid")


def padded_index(n: int, before: int, after: int, boundary: str) -> Tensor:
    """The pixel (0..n-1) that stands at each of the positions -before .. n-1+after: int64."""
    position = torch.arange(-before, n + after)
    if boundary == "circular":
        return position % n
    if boundary == "reflect":
        period = max(2 * (n - 1), 1)
        position = position % period
        return torch.where(position < n, position, period - position)
    if boundary == "symmetric":
        position = position % (2 * n)
        return torch.where(position < n, position, 2 * n - 1 - position)
    assert boundary == "valid"
    assert before == after == 0
    return position


def gather_matrix(index: Tensor, n: int) -> Tensor:
    """The 0/1 matrix (len(index), n) of x -> x[index], float64."""
    return torch.nn.functional.one_hot(index, n).double()


def convolution_matrix(taps: Tensor, n: int, boundary: str) -> Tensor:
    """The matrix (m, n) of the convolution of n pixels with an odd number of taps, float64."""
    size = len(taps)
    radius = size // 2
    pad = 0 if boundary == "valid" else radius
    index = padded_index(n, pad, pad, boundary)
    m = len(index) - size + 1
    columns = index.unfold(0, size, 1)  # (m, size): the pixels under the taps
    return torch.zeros(m, n, dtype=torch.float64).scatter_add_(
        1, columns, taps.double().flip(0).expand(m, size).contiguous()
    )
