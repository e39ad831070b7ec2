"""Volumes: a stack of slices as one x, (B, C, D, H, W).

The D slices stand on the axis after the channels, where torch's 3-D layers have it. So the first
axis stays that of the rows, which know nothing of each other, whereas the slices of a volume do
(one measurement, one chain of noise levels, one total variation); and what acts on the channels, or
on the last two axes, reads a volume as it reads an image. `axis` counts the axes of the event:
1 in (C, D, H, W), 0 for volumes kept as (D, C, H, W), 2 or 3 for slices across the others.
"""

from __future__ import annotations

from torch import Tensor

from posterior.errors import InputError, InputTypeError

Shape = tuple[int, ...]


def check_axis(axis: object) -> int:
    """An axis of the event, counted from 0."""
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise InputTypeError(f"axis must be an integer, not {type(axis).__name__}")
    if axis < 0:
        raise InputError(f"axis counts the axes of the event from 0, got {axis}")
    return axis


def slices(x: Tensor, axis: int) -> Tensor:
    """The slices of volumes (B, *event) in front: (B, D, *slice)."""
    return x.movedim(axis + 1, 1).contiguous()


def volume(x: Tensor, axis: int) -> Tensor:
    """Volumes (B, *event) from their slices (B, D, *slice)."""
    return x.movedim(1, axis + 1).contiguous()


def slice_shape(event: Shape, axis: int) -> Shape:
    """The shape of a slice of an event."""
    return (*event[:axis], *event[axis + 1 :])


def volume_shape(shape: Shape, depth: int, axis: int) -> Shape:
    """The shape of the event whose `depth` slices have the given shape."""
    return (*shape[:axis], depth, *shape[axis:])
