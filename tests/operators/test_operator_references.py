"""Operators beside independent code (scipy, Pillow, numpy), and written-down responses."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from operator_battery import normal
from PIL import Image
from torch import Tensor

from posterior import operators
from posterior.errors import CapabilityError
from posterior.fingerprints import fingerprint
from posterior.operators import (
    Blur,
    ChannelMean,
    ComplexFromChannels,
    GaussianBlur,
    Identity,
    Mask,
    MotionBlur,
    Stack,
    SuperResolution,
    from_callable,
    from_matrix,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def impulse(h: int, w: int, at: tuple[int, int]) -> Tensor:
    x = torch.zeros(1, 1, h, w, dtype=torch.float64)
    x[0, 0, at[0], at[1]] = 1
    return x


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("ours", "theirs"), [("reflect", "mirror"), ("circular", "wrap")])
def test_gaussian_blur_is_scipys(sigma: float, ours: str, theirs: str) -> None:
    x = normal((1, 1, 23, 16))
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode=theirs, truncate=4.0)
    torch.testing.assert_close(
        GaussianBlur(sigma, ours)(x)[0, 0], torch.from_numpy(expected), **CLOSE
    )
    other = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode="reflect", truncate=4.0)
    if sigma >= 1:  # scipy's "reflect" is another boundary
        assert np.abs(other - expected).max() > 1e-3


def test_banded_blocks_beyond_one_block() -> None:
    x = normal((1, 1, 301, 140))
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 2.0, mode="wrap", truncate=4.0)
    got = GaussianBlur(2.0, "circular")(x)[0, 0]
    torch.testing.assert_close(got, torch.from_numpy(expected), **CLOSE)


@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [("reflect", "mirror"), ("circular", "wrap")])
def test_blur_is_scipys(ours: str, theirs: str, correlation: bool) -> None:
    x, k = normal((1, 2, 12, 9)), normal((5, 3), "k")
    call = scipy.ndimage.correlate if correlation else scipy.ndimage.convolve
    got = Blur(k, ours, correlation=correlation)(x)
    for c in range(2):
        expected = call(x[0, c].numpy(), k.numpy(), mode=theirs)
        torch.testing.assert_close(got[0, c], torch.from_numpy(expected), **CLOSE)


@pytest.mark.parametrize("size", [(3, 3), (4, 2), (1, 5)])
def test_valid_blur_is_scipys(size: tuple[int, int]) -> None:
    x, k = normal((1, 1, 11, 8)), normal(size, "k")
    expected = scipy.signal.convolve2d(x[0, 0].numpy(), k.numpy(), mode="valid")
    torch.testing.assert_close(Blur(k, "valid")(x)[0, 0], torch.from_numpy(expected), **CLOSE)
    expected = scipy.signal.correlate2d(x[0, 0].numpy(), k.numpy(), mode="valid")
    got = Blur(k, "valid", correlation=True)(x)[0, 0]
    torch.testing.assert_close(got, torch.from_numpy(expected), **CLOSE)


def test_impulse_response_is_the_kernel_at_the_impulse() -> None:
    k = normal((3, 5), "k")
    y = Blur(k)(impulse(9, 11, (4, 5)))
    torch.testing.assert_close(y[0, 0, 3:6, 3:8], k, **CLOSE)
    assert abs(float(y.sum() - k.sum())) < 1e-12
    turned = Blur(k, correlation=True)(impulse(9, 11, (4, 5)))
    torch.testing.assert_close(turned[0, 0, 3:6, 3:8], k.flip(0, 1), **CLOSE)


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
@pytest.mark.parametrize("center", [(0, 0), (1, 3), (2, 1)])
def test_the_centre_stands_on_the_impulse(boundary: str, center: tuple[int, int]) -> None:
    k = normal((4, 4), "k")
    y = Blur(k, boundary, center)(impulse(12, 12, (6, 6)))[0, 0]
    top, left = 6 - center[0], 6 - center[1]
    torch.testing.assert_close(y[top : top + 4, left : left + 4], k, **CLOSE)
    turned = Blur(k, boundary, center, correlation=True)(impulse(12, 12, (6, 6)))[0, 0]
    top, left = 6 - (3 - center[0]), 6 - (3 - center[1])
    torch.testing.assert_close(turned[top : top + 4, left : left + 4], k.flip(0, 1), **CLOSE)


def test_motion_blur_runs_along_its_angle() -> None:
    flat = MotionBlur(15).kernel
    torch.testing.assert_close(flat, torch.full((1, 15), 1 / 15, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(MotionBlur(15, 90).kernel, flat.T, **CLOSE)
    torch.testing.assert_close(MotionBlur(1, 33).kernel, torch.ones(1, 1, dtype=torch.float64))
    k = MotionBlur(21, 30).kernel  # counter-clockwise: rises to the right, the row index falls
    h, w = k.shape
    i, j = torch.meshgrid(torch.arange(h) - h // 2, torch.arange(w) - w // 2, indexing="ij")
    xx, xy, yy = (float((k * v).sum()) for v in (j * j, -i * j, i * i))
    assert math.degrees(0.5 * math.atan2(2 * xy, xx - yy)) == pytest.approx(30, abs=1.0)
    assert float(k.sum()) == pytest.approx(1)
    # a segment of 21 points at distance 1 has the variance (21^2 - 1) / 12 along itself
    assert xx + yy == pytest.approx((21**2 - 1) / 12, rel=0.02)
    torch.testing.assert_close(k, k.flip(0, 1), **CLOSE)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_bicubic_is_pillows(factor: int) -> None:
    h, w = 5 * factor, 7 * factor
    x = normal((2, 1, h, w), "x", torch.float32)
    got = SuperResolution(factor)(x)
    for b in range(2):
        image = Image.fromarray(x[b, 0].numpy(), mode=None)
        assert image.mode == "F"
        expected = np.asarray(image.resize((7, 5), Image.Resampling.BICUBIC))
        torch.testing.assert_close(got[b, 0], torch.from_numpy(expected.copy()), rtol=0, atol=1e-5)


def test_bicubic_matlab_is_the_resize_of_the_mirrored_image() -> None:
    x = normal((1, 1, 12, 16))
    mirrored = torch.from_numpy(np.pad(x[0, 0].numpy(), 8, mode="symmetric"))[None, None]
    expected = SuperResolution(4)(mirrored)[:, :, 2:-2, 2:-2]
    got = SuperResolution(4, "bicubic-matlab")(x)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert float((got - SuperResolution(4)(x)).abs().max()) > 1e-3


def test_average_and_equal_kernels() -> None:
    x = normal((2, 3, 12, 8))
    expected = torch.nn.functional.avg_pool2d(x, 4)
    torch.testing.assert_close(SuperResolution(4, "average")(x), expected, **CLOSE)
    box = torch.full((4, 4), 1 / 16, dtype=torch.float64)
    torch.testing.assert_close(SuperResolution(4, box)(x), expected, **CLOSE)


@pytest.mark.parametrize(("factor", "size"), [(4, 5), (3, 5), (2, 3), (4, 9), (1, 3)])
def test_kernel_is_convolved_and_read_at_the_block_centres(factor: int, size: int) -> None:
    x, k = normal((1, 1, 4 * factor * 3, 4 * factor * 3)), normal((size, size), "k")
    full = scipy.ndimage.convolve(x[0, 0].numpy(), k.numpy(), mode="mirror")
    at = (factor - 1) // 2
    expected = torch.from_numpy(full[at::factor, at::factor].copy())
    torch.testing.assert_close(SuperResolution(factor, k)(x)[0, 0], expected, **CLOSE)


def test_matrix_and_its_transpose() -> None:
    m = normal((5, 12), "m", torch.complex128)
    x, y = normal((3, 3, 2, 2)), normal((3, 5), "y", torch.complex128)
    op = from_matrix(m, (3, 2, 2))
    torch.testing.assert_close(op(x), x.flatten(1).to(m.dtype) @ m.T, **CLOSE)
    torch.testing.assert_close(op.adjoint(y), (y @ m.conj()).real.reshape(x.shape), **CLOSE)
    real_form = torch.cat([m.real, m.imag])
    expected = torch.cat([y.real, y.imag], 1) @ torch.linalg.pinv(real_form).T
    torch.testing.assert_close(op.pinv(y).flatten(1), expected, rtol=1e-9, atol=1e-10)
    assert from_matrix(m).adjoint(y).shape == (3, 12)
    assert from_matrix(m).bind((3, 2, 2)).adjoint(y).shape == x.shape
    _, pull = from_matrix(m).vjp(x)
    assert pull(y).shape == x.shape


def test_rank_deficient_matrix_has_its_pseudo_inverse() -> None:
    m = normal((6, 2), "a") @ normal((2, 8), "b")
    y = normal((3, 6), "y")
    expected = torch.from_numpy(y.numpy() @ np.linalg.pinv(m.numpy(), rcond=1e-10).T)
    torch.testing.assert_close(from_matrix(m).pinv(y), expected, rtol=1e-8, atol=1e-9)


def test_circular_pseudo_inverse_with_zeros_in_the_transfer_function() -> None:
    k = torch.full((1, 4), 0.25, dtype=torch.float64)  # annihilates the fourth of the period
    op = Blur(k, "circular", (0, 0))
    x = normal((2, 1, 6, 8))
    dense = torch.cat(
        [op(e[None, None]).flatten(1) for e in torch.eye(48).double().reshape(48, 6, 8)]
    )
    expected = op(x).flatten(1) @ torch.linalg.pinv(dense, rtol=1e-8)
    torch.testing.assert_close(op.pinv(op(x)).flatten(1), expected, rtol=1e-8, atol=1e-9)


def test_masks() -> None:
    x = normal((2, 3, 8, 10))
    keep = Mask.random(keep_fraction=0.3, seed=7)
    pattern = keep.pattern(8, 10)
    assert int(pattern.sum()) == 24
    assert torch.equal(keep(x), torch.where(pattern, x, 0.0))
    assert not torch.equal(pattern, Mask.random(keep_fraction=0.3, seed=8).pattern(8, 10))
    assert torch.equal(pattern, Mask.random(keep_fraction=0.3, seed=7).pattern(8, 10))
    several = Mask.random(keep_fraction=0.3, seed=[8, 7]).pattern(8, 10)
    assert torch.equal(several[1:], pattern)
    box = Mask.box(size=(2, 4)).pattern(8, 10)[0, 0]
    assert torch.equal((~box).nonzero().amin(0), torch.tensor([3, 3]))
    assert int((~box).sum()) == 8
    assert not bool(Mask.box(size=2, at=(0, 8)).pattern(8, 10)[0, 0, :2, 8:].any())
    frame = Mask.outpaint(margin=(1, 2, 3, 0)).pattern(8, 10)[0, 0]
    assert torch.equal(frame.nonzero().amin(0), torch.tensor([1, 3]))
    assert torch.equal(frame.nonzero().amax(0), torch.tensor([5, 9]))
    nan = x.clone()
    nan[:, :, 3, 3] = torch.nan
    hole = Mask.box(size=(2, 4))
    y, pull = hole.vjp(nan)
    for seen in (hole(nan), y, hole.adjoint(nan), hole.pinv(nan), hole.normal(nan)):
        assert torch.isfinite(seen).all()  # what is hidden does not matter
    recorded = hole(nan.requires_grad_())  # but here: the product is much the quicker
    assert torch.equal(torch.isnan(recorded), torch.isnan(nan))
    (gradient,) = torch.autograd.grad(recorded, nan, torch.ones_like(y))
    assert torch.equal(gradient, pull(torch.ones_like(y)))
    assert torch.equal(keep.restrict(torch.ones_like(x)), pattern.double().expand(2, 3, 8, 10))


def test_random_mask_is_uniform() -> None:
    patterns = Mask.random(keep_fraction=0.25, seed=range(400)).pattern(8, 8)
    counts = patterns.double().sum(0).flatten()  # binomial(400, 1/4): sd 8.66
    statistic = float(((counts - 100) ** 2 / 75).sum())
    assert 25 < statistic < 120  # chi-square with about 63 degrees of freedom: mean 63, sd 11


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "I;16", "P"])
def test_mask_files(mode: str, tmp_path) -> None:
    white = np.zeros((6, 8), dtype=np.uint8)
    white[1:3, 2:7] = 255
    path = tmp_path / "mask.png"
    if mode == "I;16":
        Image.fromarray(white.astype(np.uint16) * 257).save(path)
    elif mode == "RGBA":  # white strokes on nothing; the invisible pixels are white too
        pixels = np.full((6, 8, 4), 255, dtype=np.uint8)
        pixels[..., 3] = white
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(white).convert(mode).save(path)
    keep = torch.from_numpy(white > 0)
    assert torch.equal(Mask(keep=str(path)).pattern(6, 8)[0, 0], keep)
    assert torch.equal(Mask(edit=path).pattern(6, 8)[0, 0], ~keep)
    with Image.open(path) as image:
        assert torch.equal(Mask(keep=image).pattern(6, 8)[0, 0], keep)


def test_fingerprints_see_parameters_and_no_caches() -> None:
    op = Blur(normal((3, 3), "k"))
    before = fingerprint(op)
    op(normal((1, 1, 8, 8)))
    assert fingerprint(op) == before
    assert fingerprint(Blur(normal((3, 3), "k"))) == before
    assert fingerprint(Blur(normal((3, 3), "other"))) != before
    assert fingerprint(Mask.random(keep_fraction=0.5)) != fingerprint(
        Mask.random(keep_fraction=0.5, seed=1)
    )
    again = pickle.loads(pickle.dumps(op))
    assert fingerprint(again) == before
    assert torch.equal(again(normal((1, 1, 8, 8))), op(normal((1, 1, 8, 8))))


def test_complex_from_channels() -> None:
    x = normal((2, 4, 3, 3))
    y = ComplexFromChannels()(x)
    assert torch.equal(y.real, x[:, :2])
    assert torch.equal(y.imag, x[:, 2:])
    assert torch.equal(ComplexFromChannels().adjoint(y), x)


def test_stack_splits_and_mixes() -> None:
    x = normal((2, 2, 4, 6))
    a, b = GaussianBlur(1.0) @ ComplexFromChannels(), ChannelMean(2)
    stack = Stack([a, b])
    with pytest.raises(CapabilityError, match="bind"):
        stack.split(torch.zeros(2, 72))
    y = stack(x)
    assert y.shape == (2, 72)
    assert not y.is_complex()
    first, second = stack.split(y)
    assert torch.equal(first, a(x))
    assert torch.equal(second, b(x))
    assert Stack([a, a])(x).is_complex()
    assert stack.domain_shape((2, 72)) == (2, 2, 4, 6)
    torch.testing.assert_close(y.norm(), (first.norm() ** 2 + second.norm() ** 2).sqrt())
    assert stack.take([1])(x[1:]).equal(y[1:])
    Stack([Identity()])  # one is enough
    other = Stack([Identity()])
    other(x), other(normal((2, 4, 2, 6)))
    with pytest.raises(CapabilityError, match="several shapes"):
        other.split(torch.zeros(2, 48))
    assert other.bind((4, 2, 6)).split(torch.zeros(2, 48))[0].shape == (2, 4, 2, 6)


def test_compose_capabilities() -> None:
    assert (Mask.box(size=2) @ SuperResolution(2, "average")).has_pinv
    assert not (Mask.box(size=2) @ GaussianBlur(1.0)).has_pinv
    assert (ComplexFromChannels() @ Mask.box(size=2)).has_pinv
    black = from_callable(lambda x: x)
    assert not (GaussianBlur(1.0) @ black).differentiable
    assert not (black @ GaussianBlur(1.0)).linear
    x = normal((1, 3, 8, 8))
    assert (GaussianBlur(1.0) @ ChannelMean())(x).equal(GaussianBlur(1.0)(ChannelMean()(x)))
    with pytest.raises(TypeError):
        GaussianBlur(1.0) @ 3


def test_black_box_rows_fail_alone() -> None:
    def f(x: Tensor) -> Tensor:
        if float(x.mean()) > 1:
            raise RuntimeError("diverged")
        return x.sum((2, 3))

    x = torch.zeros(3, 2, 4, 4)
    x[1] += 5
    y = from_callable(f)(x)
    assert y.shape == (3, 2)
    assert torch.isnan(y[1]).all()
    assert torch.equal(y[[0, 2]], torch.zeros(2, 2))
    with pytest.raises(RuntimeError, match="diverged"):
        from_callable(f, on_error="raise")(x)
    op = from_callable(f)
    with pytest.raises(ValueError, match="failed on every row"):
        op(x[1:2])
    assert torch.isnan(from_callable(f, range_shape=(2,))(x[1:2])).all()
    op(x)
    assert op(x[1:2]).shape == (1, 2)  # the shape is known by now


def test_black_box_executor() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = normal((4, 1, 3, 3))
    with ThreadPoolExecutor(2) as pool:
        op = from_callable(lambda v: v.square(), executor=pool)
        assert torch.equal(op(x), x.square())
    assert repr(from_callable(math.sin)) == "from_callable(sin)"


def test_batched_callable_sees_all_rows() -> None:
    seen = []
    op = from_callable(lambda v: seen.append(v.shape[0]) or v, batched=True)
    op(torch.zeros(4, 1, 2, 2))
    assert seen == [4]


class TestCheck:
    """`operators.check` finds what was planted."""

    @staticmethod
    def find(op: operators.Operator, shape: tuple[int, ...] = (1, 1, 6, 6)) -> str:
        return "\n".join(operators.check(op, shape, verbose=False))

    def test_wrong_adjoint(self) -> None:
        found = self.find(from_callable(lambda x: x.roll(1, -1), adjoint=lambda y: y.roll(1, -1)))
        assert "adjoint is not the transpose" in found

    def test_not_linear(self) -> None:
        assert "not linear" in self.find(from_callable(lambda x: x + 1, linear=True))

    def test_in_place(self) -> None:
        found = self.find(from_callable(lambda x: x.mul_(2), batched=True))
        assert "in place" in found

    def test_dtype(self) -> None:
        class Single(Identity):
            def forward(self, x: Tensor) -> Tensor:
                return x.float()

        assert "dtype follows the input" in self.find(Single())

    def test_rows_mixed(self) -> None:
        assert "in a batch" in self.find(from_callable(lambda x: x - x.mean(), batched=True))

    def test_nan_and_noise(self) -> None:
        assert "NaN" in self.find(from_callable(lambda x: x.sqrt()))
        assert "called twice" in self.find(from_callable(lambda x: x + torch.rand(1)))

    def test_wrong_pinv(self) -> None:
        class Doubled(Identity):
            def pinv(self, y: Tensor) -> Tensor:
                return 2 * y

        assert "pseudo-inverse" in self.find(Doubled())

    def test_wrong_vjp(self) -> None:
        class Wrong(Identity):
            linear = False

            def vjp(self, x: Tensor):
                return self(x), lambda u: 2 * u

        assert "vjp disagrees" in self.find(Wrong())

    def test_raises(self) -> None:
        assert "raises InputError" in self.find(SuperResolution(4))
