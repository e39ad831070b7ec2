"""Tensors that no operator, or not this one, can take: one clear exception, or the right answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operator_battery import ALL, LINEAR, Case, normal
from torch import Tensor

from posterior.errors import InputError, InputTypeError, PosteriorError
from posterior.operators import Operator


def made(case: Case) -> tuple[Operator, Tensor, Tensor]:
    """The operator, an x and its y."""
    low = max(-(-case.smallest // case.multiple), 1)
    h, w = ((low + extra) * case.multiple for extra in (3, 4))
    if case.power_of_two:
        h, w = 8, 4
    op = case.make(case.channels, h, w)
    x = normal((case.batch, case.channels, h, w))
    return op, x, op(x)


def cases(which: list[Case]):
    return pytest.mark.parametrize("case", which, ids=lambda case: case.name)


def only_clear(call: Callable[[], Tensor]) -> Tensor | None:
    """The result, or None after an exception of ours; any other comes through."""
    try:
        return call()
    except PosteriorError:
        return None


@cases(ALL)
def test_what_is_no_tensor_of_numbers(case: Case) -> None:
    op, x, y = made(case)
    calls: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [(op, x)]
    if op.linear:
        calls.append((op.adjoint, y))
    if op.has_pinv:
        calls.append((op.pinv, y))
    for call, value in calls:
        with pytest.raises(InputError, match="meta"):
            call(value.to("meta"))
        with pytest.raises(InputError, match="batch axis"):
            call(value.flatten()[0])
        with pytest.raises(InputTypeError, match="floating point or complex"):
            call(value.real.to(torch.int64))
        with pytest.raises(InputTypeError, match="torch tensor"):
            call(value.numpy())  # type: ignore[arg-type]  # on purpose


@cases(ALL)
def test_other_shapes_of_x(case: Case) -> None:
    op, x, _ = made(case)
    for wrong in (
        x[0],
        x[None],
        x.flatten(1),
        x.flatten(),
        torch.cat([x, x[:, :1]], 1),
        torch.cat([x, x[..., :1]], -1),
        x[:0],
        x[:, :0],
        x[..., :0],
        torch.cat([x, x[:1]]),
        x.half(),
    ):
        out = only_clear(lambda wrong=wrong: op(wrong))
        assert out is None or out.shape[0] == wrong.shape[0]


@cases(LINEAR)
def test_other_shapes_of_y(case: Case) -> None:
    op, _, y = made(case)
    for wrong in (y[0], y[..., None], y.flatten(), torch.cat([y, y[..., :1]], -1), y[:0]):
        out = only_clear(lambda wrong=wrong: op.adjoint(wrong))
        assert out is None or out.shape[0] == wrong.shape[0]


@cases(LINEAR)
def test_complex_where_real_is_meant_is_never_cut(case: Case) -> None:
    """Refused, or the complex-linear continuation: no imaginary part gets lost on the way."""
    op, x, y = made(case)
    out = only_clear(lambda: op((1 + 2j) * x))
    if out is not None:
        torch.testing.assert_close(out, (1 + 2j) * y)
    if y.is_complex():
        back = only_clear(lambda: op.adjoint(y.real))
        if back is not None:
            torch.testing.assert_close(back, op.adjoint(y.real + 0j))
        return
    back = only_clear(lambda: op.adjoint((1 + 2j) * y))
    if back is not None:
        torch.testing.assert_close(back, (1 + 2j) * op.adjoint(y))
