"""Operators whose y does not tell the size of x."""

from __future__ import annotations

import copy
from typing import TypeVar

from posterior.errors import CapabilityError, InputError
from posterior.operators.base import Operator, Shape, check_size

Self = TypeVar("Self", bound="Sized")


class Sized(Operator):
    """Base class: the size (H, W) of x stands in a field `size`, or `bind` puts it there.

    Without it the operator takes images of any size, and has no adjoint.
    """

    size: int | tuple[int, int] | None

    def bind(self: Self, event_shape: Shape) -> Self:
        if self.size is not None:
            return self
        out = copy.copy(self)  # with the same memo: what is built for one serves the other
        object.__setattr__(out, "size", check_size(tuple(event_shape[-2:])))
        return out

    def _set_size(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", check_size(self.size))

    def _size_of(self, x_shape: Shape) -> tuple[int, int]:
        """(H, W) of x (B, C, H, W), which must be `size` where that is known."""
        size = (x_shape[2], x_shape[3])
        if self.size not in (None, size):
            raise InputError(f"{self!r} is for another size, x is {size[0]} x {size[1]}")
        return size

    def _known_size(self) -> tuple[int, int]:
        """(H, W) of x, where y does not tell it."""
        if not isinstance(self.size, tuple):
            raise CapabilityError(
                f"{self!r} cannot tell the size of x from that of y: give size=(H, W), or bind it"
                " to the shape of x, op.bind((C, H, W))"
            )
        return self.size


__all__ = ["Sized"]
