"""Orthonormal real transforms with exact transposes: the DCT-II by FFT, Walsh-Hadamard."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posterior.operators._rowwise import Memo

_phases = Memo(16)


def dct(x: Tensor) -> Tensor:
    """The orthonormal DCT-II along the last axis of real x.

    X[k] = c_k sum_n x[n] cos(pi k (2 n + 1) / (2 N)), c_0 = N^-1/2, otherwise (2 / N)^1/2: the real
    part of one FFT of the even entries followed by the odd ones backwards (Makhoul 1980).
    """
    order = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    return (_phase(x) * torch.fft.fft(order)).real


def idct(X: Tensor) -> Tensor:
    """The inverse and transpose of `dct`: the same steps, transposed, in reverse order."""
    order = torch.fft.fft(_phase(X) * X).real
    half = (X.shape[-1] + 1) // 2
    x = torch.empty_like(order)
    x[..., ::2], x[..., 1::2] = order[..., :half], order[..., half:].flip(-1)
    return x


def _phase(x: Tensor) -> Tensor:
    """c_k exp(-i pi k / (2 N)), of the dtype of x."""
    n, dtype = x.shape[-1], x.dtype

    def build() -> Tensor:
        k = torch.arange(n, dtype=torch.float64)
        size = torch.full_like(k, math.sqrt(2 / n))
        size[0] = math.sqrt(1 / n)
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        return torch.polar(size, -math.pi * k / (2 * n)).to(x.device, kind)

    return _phases((n, dtype, x.device), build)


def hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform along the last axis, of 2^p entries.

    x may be complex. In Sylvester's order, H_1 = 1, H_2n = [[H_n, H_n], [H_n, -H_n]] / 2^1/2; its
    own inverse and transpose. Only sums and differences, element by element: rows do not depend on
    the batch.
    """
    shape, n = x.shape, x.shape[-1]
    half = 1
    while half < n:
        a, b = x.reshape(*shape[:-1], n // (2 * half), 2, half).unbind(-2)
        x = torch.stack([a + b, a - b], -2)
        half *= 2
    return x.reshape(shape) * (1 / math.sqrt(n))
