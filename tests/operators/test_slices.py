"""An operator on every slice of a volume: the same as slice by slice, and no more."""

from __future__ import annotations

import pytest
import torch
from operator_battery import normal
from torch import Tensor

from posterior import operators, rows
from posterior.errors import CapabilityError, InputError, PosteriorError
from posterior.operators import Slicewise

B, C, D, H, W = 2, 3, 4, 6, 5
KEEP = (normal((D, 1, H, W), "keep") > 0).double()
SLICES = {
    "identity": lambda: Slicewise(operators.Identity()),
    "mask": lambda: Slicewise(operators.Mask(keep=KEEP[0])),
    "mask per measurement": lambda: Slicewise(operators.Mask(keep=KEEP[:B])),
    "mask per slice": lambda: Slicewise(operators.Mask(keep=KEEP), per_slice=True),
    "random masks per slice": lambda: Slicewise(
        operators.Mask.random(keep_fraction=0.4, seed=range(D)), per_slice=True
    ),
    "blur": lambda: Slicewise(operators.GaussianBlur(0.8)),
    "average": lambda: Slicewise(operators.ChannelMean(C)),
    "composed": lambda: Slicewise(operators.Mask(keep=KEEP[0]) @ operators.GaussianBlur(0.8)),
    "tomography": lambda: Slicewise(operators.ParallelBeamCT(views=3)),
    "stack": lambda: Slicewise(operators.Stack([operators.Identity(), operators.ChannelMean(C)])),
    "matrix": lambda: Slicewise(operators.from_matrix(normal((7, C * H * W), "matrix"))),
    "across": lambda: Slicewise(operators.from_matrix(normal((7, C * D * W), "matrix")), axis=2),
    "squares": lambda: Slicewise(operators.from_callable(lambda x: x * x, differentiable=True)),
}


def inner(op: Slicewise, b: int, z: int) -> operators.Operator:
    """The operator of one slice."""
    return op.operator.take([z if op.per_slice else b])


def cut(x: Tensor, axis: int, b: int, z: int) -> Tensor:
    """Slice z of row b, with a batch axis of its own."""
    return x[b : b + 1].select(axis + 1, z)


@pytest.mark.parametrize("name", SLICES)
def test_every_slice_is_measured_alone(name: str) -> None:
    op = SLICES[name]().bind((C, D, H, W))
    x = normal((B, C, D, H, W))
    y, pull = op.vjp(x)
    assert torch.equal(y, op(x))
    assert op.range_shape(tuple(x.shape)) == tuple(y.shape)
    v = normal(tuple(y.shape), "v")
    behind = min(op.axis, y.ndim - 2)
    for b in range(B):
        for z in range(x.shape[op.axis + 1]):
            one, part = inner(op, b, z), cut(x, op.axis, b, z)
            value, pull_one = one.vjp(part)
            assert torch.equal(cut(y, behind, b, z), value)
            u = cut(v, behind, b, z)
            assert torch.equal(cut(pull(v), op.axis, b, z), pull_one(u))
            assert torch.equal(cut(op.restrict(v), behind, b, z), one.restrict(u))
            if op.linear:
                assert torch.equal(cut(op.adjoint(v), op.axis, b, z), one.adjoint(u))
                assert torch.equal(cut(op.normal(x), op.axis, b, z), one.normal(part))
            if op.has_pinv:
                assert torch.equal(cut(op.pinv(v), op.axis, b, z), one.pinv(u))
    if op.linear:
        assert op.domain_shape(tuple(y.shape)) == tuple(x.shape)
        error = (rows.dot(y, v) - rows.dot(x, op.adjoint(v))).abs()
        assert (error <= 1e-12 * rows.norm(y) * rows.norm(v)).all()


@pytest.mark.parametrize("name", SLICES)
def test_check_finds_nothing_and_rows_take_their_parameters(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    op = SLICES[name]().bind((C, D, H, W))
    assert operators.check(op, (B, C, D, H, W)) == []
    assert "Slicewise(" in capsys.readouterr().out
    x = normal((B, C, D, H, W))
    index = [1, 0, 1]
    assert torch.equal(op.take(index)(x[index]), op(x)[index])


def test_complex_slices() -> None:
    op = Slicewise(operators.ComplexFromChannels())
    x = normal((B, 2, D, H, W))
    torch.testing.assert_close(op.adjoint(op(x)), x)
    assert torch.equal(op(x), operators.ComplexFromChannels()(x))


def test_what_does_not_fit_is_refused() -> None:
    x = normal((B, C, D, H, W))
    with pytest.raises(PosteriorError, match="3 measurements"):
        Slicewise(operators.Mask(keep=KEEP[:3]))(x)
    with pytest.raises(PosteriorError, match="3 measurements"):
        Slicewise(operators.Mask(keep=KEEP[:3]), per_slice=True)(x)
    with pytest.raises(InputError, match="axis 5"):
        Slicewise(operators.Identity(), axis=5)(x)
    with pytest.raises(InputError, match="images"):
        Slicewise(operators.GaussianBlur(1.0))(x[:, 0])
    for wrong in (-1, True, 1.0):
        with pytest.raises(PosteriorError, match="axis"):
            Slicewise(operators.Identity(), axis=wrong)  # type: ignore[arg-type]
    with pytest.raises(PosteriorError, match="from_callable"):
        Slicewise(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(CapabilityError):
        SLICES["squares"]().adjoint(x)
    with pytest.raises(CapabilityError):
        SLICES["composed"]().pinv(x)
