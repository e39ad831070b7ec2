"""The inherited battery: every operator of `operator_battery.py` against every property."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_battery import ALL, BLACK, KINKED, LINEAR, NONLINEAR, Case, normal
from torch import Tensor

from posterior import operators, rows
from posterior.errors import CapabilityError

REAL = [torch.float32, torch.float64]
SIZES = st.tuples(st.integers(0, 8), st.integers(0, 8))


def few(examples: int) -> settings:
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def cases(which: list[Case]):
    return pytest.mark.parametrize("case", which, ids=lambda case: case.name)


def size_of(case: Case, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(B, C, H, W) that the case can take, odd and even."""
    step = case.multiple
    low = -(-case.smallest // step)
    h, w = ((low + extra) * step for extra in size)
    if case.power_of_two:
        h, w = (1 << extra % 4 for extra in size)
    return (case.batch, case.channels, max(h, step), max(w, step))


def bits(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


@cases(LINEAR)
@few(6)
@given(size=SIZES)
def test_adjoint_is_the_transpose(case: Case, size: tuple[int, int]) -> None:
    shape = size_of(case, size)
    op = case.make(*shape[1:])
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        u = normal(shape, "u", dtype)
        y = op(u)
        v = normal(tuple(y.shape), "v", y.dtype)
        back = op.adjoint(v)
        assert back.shape == u.shape
        assert back.dtype == dtype
        error = (rows.dot(y, v) - rows.dot(u, back)).abs()
        assert (error <= tolerance * rows.norm(y) * rows.norm(v) + 1e-30).all()


@cases(LINEAR)
@few(3)
@given(size=SIZES)
def test_linear(case: Case, size: tuple[int, int]) -> None:
    shape = size_of(case, size)
    op = case.make(*shape[1:])
    x, z = normal(shape, "x"), normal(shape, "z")
    torch.testing.assert_close(op(3 * x - z), 3 * op(x) - op(z), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(op.normal(x), op.adjoint(op(x)), rtol=1e-9, atol=1e-10)


@cases(LINEAR)
@few(3)
@given(size=SIZES)
def test_pseudo_inverse(case: Case, size: tuple[int, int]) -> None:
    shape = size_of(case, size)
    op = case.make(*shape[1:])
    x = normal(shape)
    y = op(x)
    if not op.has_pinv:
        with pytest.raises(CapabilityError):
            op.pinv(y)
        return
    back = op.pinv(y)
    assert back.shape == x.shape
    scale = float(y.abs().max()) + 1e-30
    torch.testing.assert_close(op(back) / scale, y / scale, rtol=0, atol=2e-7)
    # A^+ A is an orthogonal projection: A^+ y is no longer than x, and at right angles to the rest
    assert (rows.dot(back, x - back).abs() <= 1e-6 * rows.dot(x, x)).all()
    v = normal(tuple(y.shape), "v", y.dtype)
    again = op.pinv(op(op.pinv(v)))  # A^+ A A^+ = A^+
    size_v = float(again.abs().max()) + 1e-30
    torch.testing.assert_close(again / size_v, op.pinv(v) / size_v, rtol=0, atol=1e-6)


@cases(ALL)
@few(2)
@given(size=SIZES)
def test_rows_alone_equal_rows_in_a_batch(case: Case, size: tuple[int, int]) -> None:
    shape = size_of(case, size)
    op = case.make(*shape[1:])
    for dtype in REAL:
        x = normal(shape, "x", dtype)
        before = x.clone()
        y = op(x)
        v = normal(tuple(y.shape), "v", y.dtype)
        assert torch.equal(x, before)
        for k in (0, 2):
            row = op.take([k])
            assert torch.equal(bits(row(x[k : k + 1].clone())), bits(y[k : k + 1]))
            if op.differentiable:
                value, pull = op.vjp(x)
                one, pull_one = row.vjp(x[k : k + 1].clone())
                assert torch.equal(bits(one), bits(value[k : k + 1]))
                assert torch.equal(pull_one(v[k : k + 1].clone()), pull(v)[k : k + 1])
            if op.linear:
                alone = row.adjoint(v[k : k + 1].clone())
                assert torch.equal(alone, op.adjoint(v)[k : k + 1])
                assert torch.equal(row.normal(x[k : k + 1].clone()), op.normal(x)[k : k + 1])
            if op.has_pinv:
                assert torch.equal(row.pinv(v[k : k + 1].clone()), op.pinv(v)[k : k + 1])


@cases([case for case in ALL if "measurement" not in case.name and "seeds" not in case.name])
@pytest.mark.parametrize("dtype", REAL)
def test_rows_do_not_depend_on_the_batch_size(case: Case, dtype: torch.dtype) -> None:
    shape = size_of(case, (5, 4))
    op = case.make(*shape[1:])
    x = normal((64, *shape[1:]), "x", dtype)
    y = op(x)
    v = normal(tuple(y.shape), "v", y.dtype)
    for count in (1, 3, 59):
        assert torch.equal(bits(op(x[5 : 5 + count])), bits(y[5 : 5 + count]))
        if op.linear:
            assert torch.equal(op.adjoint(v[5 : 5 + count]), op.adjoint(v)[5 : 5 + count])


@cases(ALL)
def test_take_pairs_rows_with_their_parameters(case: Case) -> None:
    shape = size_of(case, (3, 4))
    op = case.make(*shape[1:])
    x = normal(shape)
    index = [2, 0, 2, 1]
    assert torch.equal(bits(op.take(index)(x[index])), bits(op(x)[index]))
    if op.linear:
        v = normal(tuple(op(x).shape), "v", op(x).dtype)
        assert torch.equal(op.take(index).adjoint(v[index]), op.adjoint(v)[index])


@cases(ALL)
def test_shapes_dtypes_and_strides(case: Case) -> None:
    shape = size_of(case, (3, 4))
    op = case.make(*shape[1:])
    x = normal(shape)
    y = op(x)
    assert y.real.dtype == torch.float64
    assert op(x.float()).real.dtype == torch.float32
    single, double = op(x.float()), y.to(op(x.float()).dtype)
    if op.surrogate_gradient:  # a staircase: a value on an edge falls to either side
        assert float((single - double).abs().mean()) < 1 / 127.5
    else:
        torch.testing.assert_close(single, double, rtol=1e-3, atol=1e-4)
    assert op.range_shape(shape) == tuple(y.shape)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(bits(op(strided)), bits(y))
    expanded = x[:1].expand(shape)
    assert torch.equal(bits(op(expanded)), bits(op(expanded.contiguous())))
    if op.linear and not isinstance(op, operators.BlackBox):
        assert op.domain_shape(tuple(y.shape)) == shape
    assert repr(op)


@cases(LINEAR + NONLINEAR + KINKED)
def test_vjp_against_differences(case: Case) -> None:
    shape = size_of(case, (2, 1))
    op = case.make(*shape[1:])
    x, d = normal(shape), normal(shape, "d")
    y, pull = op.vjp(x)
    assert torch.equal(bits(y), bits(op(x)))
    v = normal(tuple(y.shape), "v", y.dtype)
    difference = (op(x + 1e-5 * d) - op(x - 1e-5 * d)) / 2e-5
    left, right = rows.dot(difference, v), rows.dot(d, pull(v))
    assert ((left - right).abs() <= 1e-7 * rows.norm(difference) * rows.norm(v) + 1e-9).all()
    torch.testing.assert_close(pull(2 * v), 2 * pull(v))  # may be called many times


@cases(NONLINEAR)
def test_taylor_remainder_is_of_second_order(case: Case) -> None:
    shape = size_of(case, (3, 4))
    op = case.make(*shape[1:])
    x, d = normal(shape)[:1], normal(shape, "d")[:1]
    y, pull = op.vjp(x)
    v = normal(tuple(y.shape), "v", y.dtype)
    slope = rows.dot(d, pull(v))
    steps = [0.04, 0.02, 0.01]
    rest = [float((rows.dot(op(x + h * d) - y, v) - h * slope).abs()) for h in steps]
    orders = [torch.tensor(a / b).log2().item() for a, b in pairwise(rest)]
    assert all(1.8 < order < 2.2 for order in orders)


@cases([case for case in LINEAR if "callable pair" not in case.name])
def test_gradient_flows_through_forward(case: Case) -> None:
    shape = size_of(case, (2, 1))
    op = case.make(*shape[1:])
    x = normal(shape).requires_grad_()
    y = op(x)
    v = normal(tuple(y.shape), "v", y.dtype)
    (g,) = torch.autograd.grad(y, x, v)
    torch.testing.assert_close(g, op.adjoint(v), rtol=1e-9, atol=1e-10)


@cases(BLACK)
def test_black_box_has_no_gradient(case: Case) -> None:
    op = case.make(2, 4, 4)
    with pytest.raises(CapabilityError, match="differentiable=True"):
        op.vjp(normal((1, 2, 4, 4)))
    with pytest.raises(CapabilityError, match="not linear"):
        op.adjoint(normal((1, 2, 4, 4)))


@cases(LINEAR[:12])
def test_two_threads_keep_rows_invariant(case: Case) -> None:
    shape = size_of(case, (5, 4))
    op = case.make(*shape[1:])
    x = normal(shape)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(bits(op.take([1])(x[1:2].clone())), bits(op(x)[1:2]))
    finally:
        torch.set_num_threads(threads)


@cases([c for c in LINEAR if c.channels == 3 or c.name in ("gaussian wide", "super bicubic")])
def test_check_finds_nothing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    shape = size_of(case, (2, 3))
    assert operators.check(case.make(*shape[1:]), shape) == []
    assert "nothing wrong" in capsys.readouterr().out
