"""Parts of an image, multiples of it, and a different operator for each channel.

>>> Crop(size=64)                            # a window in the middle
>>> Crop(size=64, image=96)                  # the same, telling the size of x: outpainting
>>> SelectChannels([0, 2], of=3)
>>> Scale(0.5)
>>> PerChannel([Defocus(1.0), Identity(), Defocus(2.0)])    # a lens with chromatic aberration
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import (
    Operator,
    Pull,
    Shape,
    check_count,
    check_image,
    check_number,
    common_units,
)


@dataclass(frozen=True, eq=False, repr=False)
class Crop(Operator):
    """A window of x: (B, C, H, W) -> (B, C, h, w). Its adjoint pads with zeros, and so does A^+.

    With `image`, a small photograph is a measurement of a larger one, and to restore it is to
    outpaint it; `Mask.outpaint` does the same on a canvas that is as large as y.

    Args:
        size: of the window in pixels, one side or (height, width).
        at: (row, column) of its upper left pixel; None centres it.
        image: (H, W) of x, or one side; by default any, and `bind` (which the sampler calls) fixes
            it. `adjoint` needs it.
    """

    size: int | tuple[int, int]
    at: tuple[int, int] | None = None
    image: int | tuple[int, int] | None = None

    linear = True
    units = "kept"
    has_pinv = True
    orthonormal_rows = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _pair("size", self.size, 1))
        if self.at is not None:
            object.__setattr__(self, "at", _pair("at", self.at, 0))
        if self.image is not None:
            image = _pair("image", self.image, 1)
            object.__setattr__(self, "image", image)
            self._window(image)

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        self.range_shape(tuple(x.shape))
        rows, columns = self._window((x.shape[2], x.shape[3]))
        return x[:, :, rows, columns].clone()

    def adjoint(self, y: Tensor) -> Tensor:
        check_image(self, y)
        shape = self.domain_shape(tuple(y.shape))
        rows, columns = self._window((shape[2], shape[3]))
        x = y.new_zeros(shape)
        x[:, :, rows, columns] = y
        return x

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        if not isinstance(self.image, tuple):
            raise CapabilityError(
                f"{self!r} cannot tell the size of x from that of y: give image=(H, W), or bind it"
                " to the shape of x, crop.bind((C, H, W))"
            )
        if tuple(y_shape[2:]) != self.size:
            raise InputError(f"{self!r} gives images of {self.size}, not {tuple(y_shape[2:])}")
        return (*y_shape[:2], *self.image)

    def range_shape(self, x_shape: Shape) -> Shape:
        size = (x_shape[2], x_shape[3])
        if self.image not in (None, size):
            raise InputError(f"{self!r} is for another size, x is {size[0]} x {size[1]}")
        self._window(size)
        return (*x_shape[:2], *_pair("size", self.size, 1))

    def bind(self, event_shape: Shape) -> Crop:
        if self.image is not None:
            return self
        return replace(self, image=(event_shape[-2], event_shape[-1]))

    def _window(self, image: tuple[int, int]) -> tuple[slice, slice]:
        h, w = _pair("size", self.size, 1)
        top, left = self.at or ((image[0] - h) // 2, (image[1] - w) // 2)
        if top < 0 or left < 0 or top + h > image[0] or left + w > image[1]:
            raise InputError(f"{self!r}: the window leaves the image of {image[0]} x {image[1]}")
        return slice(top, top + h), slice(left, left + w)


@dataclass(frozen=True, eq=False, repr=False)
class SelectChannels(Operator):
    """Some channels of x: (B, C, ...) -> (B, K, ...).

    Args:
        channels: their numbers from 0, each once, in the order wanted.
        of: C; by default any, and `bind` (which the sampler calls) fixes it. `adjoint` needs it.
    """

    channels: Sequence[int]
    of: int | None = None

    linear = True
    units = "kept"
    has_pinv = True
    orthonormal_rows = True

    def __post_init__(self) -> None:
        if not isinstance(self.channels, (tuple, list)):
            raise InputTypeError(f"channels must be a list of numbers, not {self.channels!r}")
        channels = tuple(check_count("channel", c, 0) for c in self.channels)
        if not channels or len(set(channels)) != len(channels):
            raise InputError(f"channels must be one or more different ones, not {channels}")
        object.__setattr__(self, "channels", channels)
        if self.of is not None:
            object.__setattr__(self, "of", check_count("of", self.of, max(channels) + 1))

    def forward(self, x: Tensor) -> Tensor:
        self.range_shape(tuple(x.shape))
        return torch.cat([x[:, c : c + 1] for c in self.channels], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(self.domain_shape(tuple(y.shape)))
        for k, c in enumerate(self.channels):
            x[:, c] = y[:, k]
        return x

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def domain_shape(self, y_shape: Shape) -> Shape:
        if self.of is None:
            raise CapabilityError(
                f"{self!r} cannot tell the channels of x from those of y: give of=C, or bind it to"
                " the shape of x, select.bind((C, H, W))"
            )
        if len(y_shape) < 2 or y_shape[1] != len(self.channels):
            raise InputError(f"{self!r} gives {len(self.channels)} channels, not {y_shape}")
        return (y_shape[0], self.of, *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        if len(x_shape) < 2 or x_shape[1] <= max(self.channels):
            raise InputError(f"{self!r}: there is no such channel in {x_shape}")
        if self.of not in (None, x_shape[1]):
            raise InputError(f"{self!r} is for {self.of} channels, x has {x_shape[1]}")
        return (x_shape[0], len(self.channels), *x_shape[2:])

    def bind(self, event_shape: Shape) -> SelectChannels:
        return replace(self, of=event_shape[0]) if self.of is None else self


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Operator):
    """y = factor x: other units.

    Args:
        factor: finite, not 0.
    """

    factor: float

    linear = True
    has_pinv = True
    orthonormal_rows = True
    orthonormal_columns = True

    def __post_init__(self) -> None:
        factor = check_number("factor", self.factor, -float("inf"))
        if factor == 0:
            raise InputError("factor must not be 0: nothing would be measured")
        object.__setattr__(self, "factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * y

    def pinv(self, y: Tensor) -> Tensor:
        return y / self.factor

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        return x_shape


class PerChannel(Operator):
    """A different operator for each channel: y_c = A_c(x_c), block-diagonal.

    It can do what all of its parts can. Each makes one channel of one channel, all of one size;
    `Stack` takes measurements of different shapes.

    Args:
        operators: one for each channel of x.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        operators = tuple(operators)
        if not operators or not all(isinstance(op, Operator) for op in operators):
            raise InputTypeError("PerChannel takes a list of operators, one for each channel")
        self.operators = operators
        self.linear = all(op.linear for op in operators)
        self.differentiable = all(op.differentiable for op in operators)
        self.surrogate_gradient = any(op.surrogate_gradient for op in operators)
        self.has_pinv = all(op.has_pinv for op in operators)
        self.units = common_units(operators)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.operators, self._split(x), strict=True)
        return self._joined([op(part) for op, part in parts])

    def simulate(self, x: Tensor) -> Tensor:
        parts = zip(self.operators, self._split(x), strict=True)
        return self._joined([op.simulate(part) for op, part in parts])

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        parts = zip(self.operators, self._split(x), strict=True)
        values, pulls = zip(*(op.vjp(part) for op, part in parts), strict=True)
        return self._joined(values), lambda u: torch.cat(
            [pull(part) for pull, part in zip(pulls, self._split(u), strict=True)], dim=1
        )

    def adjoint(self, y: Tensor) -> Tensor:
        if not self.linear:
            raise CapabilityError(f"{self!r} is not linear: it has no adjoint")
        parts = zip(self.operators, self._split(y), strict=True)
        return torch.cat([op.adjoint(part) for op, part in parts], dim=1)

    def pinv(self, y: Tensor) -> Tensor:
        if not self.has_pinv:
            raise CapabilityError(f"{self!r} has no pseudo-inverse")
        parts = zip(self.operators, self._split(y), strict=True)
        return torch.cat([op.pinv(part) for op, part in parts], dim=1)

    def restrict(self, y: Tensor) -> Tensor:
        parts = zip(self.operators, self._split(y), strict=True)
        return torch.cat([op.restrict(part) for op, part in parts], dim=1)

    def domain_shape(self, y_shape: Shape) -> Shape:
        self._check(y_shape)
        return self._one([op.domain_shape((y_shape[0], 1, *y_shape[2:])) for op in self.operators])

    def range_shape(self, x_shape: Shape) -> Shape:
        self._check(x_shape)
        return self._one([op.range_shape((x_shape[0], 1, *x_shape[2:])) for op in self.operators])

    def take(self, index: Sequence[int]) -> PerChannel:
        return PerChannel([op.take(index) for op in self.operators])

    def bind(self, event_shape: Shape) -> PerChannel:
        return PerChannel([op.bind((1, *event_shape[1:])) for op in self.operators])

    def __repr__(self) -> str:
        return f"PerChannel({list(self.operators)!r})"

    def _check(self, shape: Shape) -> None:
        if len(shape) < 2 or shape[1] != len(self.operators):
            raise InputError(f"{self!r} needs {len(self.operators)} channels, not {shape}")

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        self._check(tuple(x.shape))
        return torch.split(x, 1, dim=1)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        self._one([tuple(part.shape) for part in parts])
        return torch.cat(list(parts), dim=1)

    def _one(self, shapes: Sequence[Shape]) -> Shape:
        if len(set(shapes)) != 1 or len(shapes[0]) < 2 or shapes[0][1] != 1:
            raise InputError(f"{self!r}: each part must keep one channel, all of one size")
        return (shapes[0][0], len(shapes), *shapes[0][2:])


def _pair(what: str, value: object, low: int) -> tuple[int, int]:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise InputError(f"{what} takes one or two numbers, not {len(pair)}")
    return check_count(what, pair[0], low), check_count(what, pair[1], low)


__all__ = ["Crop", "PerChannel", "Scale", "SelectChannels"]
