"""Row by row: the one way in which operators call arithmetic whose result depends on the batch.

FFTs, matrix products, convolutions and vectorised transcendental functions choose their summation
order, or their code path, by the shape and the alignment of the whole tensor. Called on one row at
a time, each in memory of its own, they see the same shape alone and in any batch. Often the batch
has the same bits all the same: `together` looks, once for each shape, and saves the loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from posterior.errors import InputError

T = TypeVar("T")

_NEW = object()


class Memo:
    """The last few values of a pure function, by key; empty again in a copy or a pickle."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, object] = OrderedDict()

    def __call__(self, key: Hashable, build: Callable[[], T]) -> T:
        """The value of this key, built when it is new."""
        value = self._values.get(key, _NEW)
        if value is not _NEW:
            self._values.move_to_end(key)
            return value  # type: ignore[return-value]  # one key, one kind of value
        value = build()
        self._values[key] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)
        return value

    def __getstate__(self) -> dict[str, object]:
        return {"_size": self._size, "_values": OrderedDict()}


def by_row(f: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """The rows f(x[b:b+1], b), concatenated; f gets each row contiguous and aligned."""
    if x.shape[0] == 0:
        return f(x.new_zeros(1, *x.shape[1:]), 0)[:0]
    rows = [f(_own(row), b) for b, row in enumerate(torch.split(x, 1))]
    # one row as it is only where it lies as in a batch: who takes it may round by its strides
    if len(rows) == 1 and _aligned(rows[0]) and not _shares(rows[0], x):
        return rows[0]
    return torch.cat(rows)


def together(
    key: Hashable,
    f: Callable[..., Tensor],
    x: Tensor,
    *values: Tensor | None,
    large: bool = False,
) -> Tensor:
    """The rows f(x[b:b+1], *values[b:b+1]), concatenated: by one call of f where that is the same.

    Whether f(x, *values) has the bits of its rows is found out by a trial with random numbers, for
    each shape, dtype, device and number of threads: the order of a sum hangs on these, not on the
    numbers. It is for FFTs: another code path shows all over a transform. Not for what may differ
    in a few places only, as complex products and `abs` do at the end of a vector, and matrix
    products in the last rows: a trial could miss that. Where gradients are recorded it goes row by
    row.

    Args:
        key: of the arithmetic that f does: one key, one f, but for its numbers.
        f: of rows and the values that belong to them; the first axis of its result is that of x.
        x: (B, ...).
        values: (1, ...), which belong to all rows, or (B, ...); None is handed on.
        large: whether one call is worth it even where the batch does not fit in a cache.
    """
    if (
        x.shape[0] > 1
        and (large or _small(x))
        and not (torch.is_grad_enabled() and x.requires_grad)
    ):
        shapes = tuple(None if v is None else v.shape for v in values)
        trial = (key, x.shape, shapes, x.dtype, x.device, torch.get_num_threads())
        if _trials(trial, lambda: _agree(f, x, values)):
            return f(_own(x), *values)
    return by_row(lambda row, b: f(row, *_of_row(values, b)), x)


_LARGE = 1 << 20  # numbers, from which a batch no longer fits in a cache, as one row still may
_trials = Memo(1024)


def _small(x: Tensor) -> bool:
    return x.numel() <= _LARGE or x.device.type != "cpu"


def _of_row(values: Sequence[Tensor | None], b: int) -> list[Tensor | None]:
    return [v if v is None or len(v) == 1 else v[b : b + 1] for v in values]


def _agree(f: Callable[..., Tensor], x: Tensor, values: Sequence[Tensor | None]) -> bool:
    """Whether a batch of random numbers like x has the bits of its rows."""
    with torch.no_grad():
        source = torch.Generator().manual_seed(0)
        trial = torch.randn(x.shape, dtype=x.dtype, generator=source).to(x.device)
        rows = by_row(lambda row, b: f(row, *_of_row(values, b)), trial)
        return torch.equal(f(trial, *values), rows)


def _shares(y: Tensor, x: Tensor) -> bool:
    """Whether y is in the memory of x."""
    return y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def _aligned(row: Tensor) -> bool:
    return row.is_contiguous() and row.data_ptr() % 64 == 0


def _own(row: Tensor) -> Tensor:
    if _aligned(row):
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
