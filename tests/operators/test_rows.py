"""Rows of a batch: at once where that has the bits of each alone, otherwise one by one."""

from __future__ import annotations

import pytest
import torch
from operator_battery import normal
from torch import Tensor

from posterior import operators
from posterior.operators import Blur, GaussianBlur, Mask, MotionBlur, Operator, _convolution
from posterior.operators._rowwise import by_row, together

LINE = torch.zeros(9, 9, dtype=torch.float64)
LINE[range(9), range(9)] = torch.arange(1.0, 10.0, dtype=torch.float64) / 45


class Counted:
    """A function that counts its calls."""

    def __init__(self, f) -> None:
        self.f, self.calls = f, 0

    def __call__(self, *arguments: Tensor) -> Tensor:
        self.calls += 1
        return self.f(*arguments)


def test_rows_that_agree_go_together() -> None:
    double = Counted(lambda x: 2 * x)
    x = normal((5, 3, 4))
    together("test, double", double, x)  # makes the trial
    double.calls = 0
    assert torch.equal(together("test, double", double, x), 2 * x)
    assert double.calls == 1


def test_rows_that_do_not_agree_go_one_by_one() -> None:
    f = Counted(lambda x: x - x.mean(0))
    x = normal((5, 3, 4))
    assert torch.equal(together("test, mean", f, x), torch.zeros_like(x))
    f.calls = 0
    together("test, mean", f, x)
    assert f.calls == 5


def test_values_stay_with_their_rows() -> None:
    x, each, all_ = normal((5, 3)), normal((5, 3), "each"), normal((1, 3), "all")

    def f(x: Tensor, each: Tensor, all_: Tensor, none: None) -> Tensor:
        return x * each + all_ + x.mean(0)  # not the same together

    expected = torch.stack([a * b + all_[0] + a for a, b in zip(x, each, strict=True)])
    torch.testing.assert_close(together("test, values", f, x, each, all_, None), expected)


def test_trials_are_made_for_each_shape_and_without_the_global_generator() -> None:
    odd = Counted(lambda x: x - x.mean(0) if len(x) == 3 else x + 0)
    state = torch.random.get_rng_state()
    for count in (2, 3, 4):
        x = normal((count, 2))
        alone = by_row(lambda row, _: odd(row), x)
        assert torch.equal(together("test, odd", odd, x), alone)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_rows() -> None:
    assert together("test, none", lambda x: 2 * x, torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("boundary", ["reflect", "circular", "valid"])
def test_kernels_of_several_kinds_in_one_stack(boundary: str) -> None:
    """A product, a line, and neither: each row has the bits of its kernel alone."""
    product = torch.outer(LINE.sum(0), LINE.sum(1))
    blur = Blur(torch.stack([product, LINE, normal((9, 9), "k").softmax(0) / 9]), boundary)
    x = normal((3, 2, 16, 17), dtype=torch.float32)
    y = blur(x)
    for k in range(3):
        assert torch.equal(blur.take([k])(x[k : k + 1]), y[k : k + 1])
        assert torch.equal(Blur(blur.kernel[k], boundary)(x[k : k + 1]), y[k : k + 1])


@pytest.mark.parametrize("band", [1, 100, 1 << 17])
@pytest.mark.parametrize("boundary", ["reflect", "valid"])
def test_few_entries_and_many_are_the_same_convolution(
    boundary: str, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line adds up shifted images; with a speck in every other entry it goes by FFT.

    Bands of one row, of a few, and of all.
    """
    monkeypatch.setattr(_convolution, "_BAND", band)
    x = normal((2, 2, 24, 19))
    line, specked = Blur(LINE, boundary), Blur(LINE + 1e-14, boundary)
    torch.testing.assert_close(line(x), specked(x), rtol=0, atol=1e-11)
    y = normal(tuple(line(x).shape), "y")
    torch.testing.assert_close(line.adjoint(y), specked.adjoint(y), rtol=0, atol=1e-11)
    z = torch.complex(x, x.flip(-1))
    torch.testing.assert_close(line(z), torch.complex(line(x), line(x.flip(-1))))


@pytest.mark.parametrize("speck", [0.0, 1e-14])
def test_rows_of_large_images_do_not_see_each_other(speck: float) -> None:
    """Together they are too large for the cache, by shifted images and by FFT."""
    blur = Blur(LINE + speck)
    x = normal((3, 1, 300, 310), dtype=torch.float32)
    y = blur(x)
    back = blur.adjoint(y)
    for k in range(3):
        assert torch.equal(blur(x[k : k + 1]), y[k : k + 1])
        assert torch.equal(blur.adjoint(y[k : k + 1]), back[k : k + 1])


@pytest.mark.parametrize("shape", [(4, 3, 21, 30), (9, 1, 40, 23), (3, 3, 300, 310)])
@pytest.mark.parametrize("boundary", ["reflect", "valid"])
def test_many_images_are_summed_as_few(
    boundary: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution of a library has the bits of shifted images, and NaN stays in its image."""
    calls = Counted(_convolution._direct)
    monkeypatch.setattr(_convolution, "_direct", calls)
    blur = MotionBlur(9, 30.0, boundary=boundary)
    x = normal(shape, dtype=torch.float32)
    x[1, 0, 5, 5] = torch.nan
    y = blur(x)
    back = blur.adjoint(y)
    calls.calls = 0
    blur(x), blur.adjoint(y)  # the trial has been made
    assert calls.calls == (2 if _convolution._VECTORS else 0)
    calls.calls = 0
    for k in range(shape[0]):
        assert y[k].isfinite().all() == back[k].isfinite().all() == (k != 1)
        if k != 1:
            assert torch.equal(blur(x[k : k + 1]), y[k : k + 1])
            assert torch.equal(blur.adjoint(y[k : k + 1]), back[k : k + 1])
    assert calls.calls == 0


def test_a_single_row_is_never_the_memory_of_the_input() -> None:
    x = normal((1, 3, 4))
    assert by_row(lambda row, _: row[:, 1:], x).untyped_storage().data_ptr() != (
        x.untyped_storage().data_ptr()
    )


@pytest.mark.parametrize("part", [slice(None, None, 2), slice(1, None), slice(None)])
def test_a_single_row_lies_in_memory_as_in_a_batch(part: slice) -> None:
    """Parts of a larger result: strided, and contiguous but not at the start of its memory."""
    x = normal((2, 5, 7))

    def f(row: Tensor, _: int) -> Tensor:
        return (2 * row)[:, part]

    alone, both = by_row(f, x[:1]), by_row(f, x)
    assert torch.equal(alone, both[:1])
    assert alone.is_contiguous()
    assert alone.data_ptr() % 64 == 0


TWICE = {
    "gaussian": (GaussianBlur(0.6), False),
    "motion": (MotionBlur(3, 30), False),
    "fourier": (operators.SubsampledFourier(Mask.random(keep_fraction=0.5)), False),
    "mask": (Mask.random(keep_fraction=0.5), False),
    "product": (Mask.random(keep_fraction=0.5) @ MotionBlur(3), False),
    "phase": (operators.PhaseRetrieval(low=0), False),
    "phase squared": (operators.PhaseRetrieval(low=0, squared=True), False),
    "coded": (operators.CodedDiffraction(2, low=0), False),
    "adjoint": (MotionBlur(3, 30), True),
}


@pytest.mark.parametrize(("operator", "back"), TWICE.values(), ids=TWICE.keys())
def test_differentiable_twice(operator: Operator, back: bool) -> None:
    """Gradients by the operators' own transposes, held against differences; then theirs."""
    f = operator.adjoint if back else operator
    x = normal((1, 1, 6, 5)).requires_grad_()
    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))


def test_forward_mode() -> None:
    x = normal((1, 1, 6, 5)).requires_grad_()
    assert torch.autograd.gradcheck(MotionBlur(3, 30), (x,), check_forward_ad=True)
