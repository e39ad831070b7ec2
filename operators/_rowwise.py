"""Row by row: the one way in which operators call arithmetic whose result depends on the batch.

FFTs, matrix products, convolutions and vectorised transcendental functions choose their summation
order, or their code path, by the shape and the alignment of the whole tensor. Called on one row at
a time, each in memory of its own, they see the same shape alone and in any batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from posterior.errors import InputError

T = TypeVar("T")


def by_row(f: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """The rows f(x[b:b+1], b), concatenated; f gets each row contiguous and aligned."""
    if x.shape[0] == 0:
        return f(x.new_zeros(1, *x.shape[1:]), 0)[:0]
    return torch.cat([f(_own(row), b) for b, row in enumerate(torch.split(x, 1))])


def _own(row: Tensor) -> Tensor:
    if row.is_contiguous() and row.data_ptr() % 64 == 0:
        return row
    return row.clone(memory_format=torch.contiguous_format)


def take_rows(values: Tensor, index: Sequence[int]) -> Tensor:
    """The rows `index` of per-measurement values; one row belongs to every measurement."""
    if values.shape[0] == 1:
        return values
    which = torch.as_tensor(index, dtype=torch.long, device=values.device)
    if which.numel() and not -values.shape[0] <= int(which.min()) <= int(which.max()) < len(values):
        raise InputError(f"take({list(index)}) of an operator for {values.shape[0]} measurements")
    return values[which]


def check_rows(who: object, what: str, count: int, x: Tensor) -> None:
    """Per-measurement parameters are for every measurement (1) or for each of the rows of x."""
    if count not in (1, x.shape[0]):
        raise InputError(f"{who!r}: {what} for {count} measurements, the input has {x.shape[0]}")


class Memo:
    """The last few values of a pure function, by key; empty again in a copy or a pickle."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, object] = OrderedDict()

    def __call__(self, key: Hashable, build: Callable[[], T]) -> T:
        """The value of this key, built when it is new."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]  # type: ignore[return-value]  # one key, one kind of value
        value = build()
        self._values[key] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)
        return value

    def __getstate__(self) -> dict[str, object]:
        return {"_size": self._size, "_values": OrderedDict()}
