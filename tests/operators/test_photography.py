"""Photography operators against references that were written by others, or by hand."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.ndimage
import skimage.color
import skimage.data
import torch
from operator_battery import normal
from PIL import Image
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators import (
    JPEG,
    AnisotropicGaussianBlur,
    BayerMosaic,
    Blur,
    Camera,
    Crop,
    Defocus,
    GaussianBlur,
    Haze,
    HDRClipping,
    Identity,
    LinearLight,
    Luma,
    Mask,
    MotionBlur,
    PerChannel,
    Quantisation,
    Scale,
    SelectChannels,
    SpaceVaryingBlur,
    Stack,
    check,
    nonlinear_blur,
    parse,
)
from posterior.operators.jpeg import quantisation_tables


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A face, (1, 3, 96, 104) in [-1, 1]."""
    pixels = skimage.data.astronaut()[90:186, 160:264]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1


# Blurs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.9, 1.5, 4.37])
def test_defocus_kernel_is_the_area_of_the_disc(radius: float) -> None:
    kernel = Defocus(radius).kernel
    half = kernel.shape[0] // 2
    fine = 200  # sub-pixels: the area of a pixel on the edge is right to about 1 / fine
    t = (torch.arange(fine * kernel.shape[0], dtype=torch.float64) + 0.5) / fine - half - 0.5
    inside = (t[:, None] ** 2 + t[None] ** 2 <= radius**2).double()
    expected = inside.reshape(len(kernel), fine, len(kernel), fine).mean((1, 3))
    torch.testing.assert_close(kernel * math.pi * radius**2, expected, rtol=0, atol=0.5 / fine)
    torch.testing.assert_close(kernel, kernel.T, rtol=0, atol=1e-15)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-14)
    if radius <= 0.5:
        assert kernel.shape == (1, 1)
    elif radius > 1.5:
        assert float(kernel[half, half]) == pytest.approx(1 / (math.pi * radius**2), rel=1e-12)


def test_defocus_changes_smoothly_with_the_radius() -> None:
    step = 1e-4
    for radius in (1.4999, 1.5, 2.4999, 2.5):
        a, b = (Defocus(r).kernel for r in (radius, radius + step))
        grown = torch.zeros_like(b)
        shift = (len(b) - len(a)) // 2
        grown[shift : shift + len(a), shift : shift + len(a)] = a
        assert float((b - grown).abs().sum()) < 8 * step / radius


def test_anisotropic_gaussian() -> None:
    round_ = AnisotropicGaussianBlur(1.3, 1.3, 77).kernel
    torch.testing.assert_close(round_, GaussianBlur(1.3).kernel, rtol=1e-9, atol=1e-12)
    flat = AnisotropicGaussianBlur(3.0, 0.8).kernel
    assert flat.shape == (7, 25)
    turned = AnisotropicGaussianBlur(3.0, 0.8, 90).kernel
    torch.testing.assert_close(turned, flat.T, rtol=1e-9, atol=1e-15)
    kernel = AnisotropicGaussianBlur(3.0, 1.0, 30).kernel
    rows_, columns = (torch.arange(n).double() - n // 2 for n in kernel.shape)
    up, right = -rows_[:, None], columns[None]
    covariance = [float((kernel * a * b).sum()) for a, b in ((right, right), (right, up), (up, up))]
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    expected = [9 * c * c + s * s, (9 - 1) * c * s, 9 * s * s + c * c]
    assert covariance == pytest.approx(expected, rel=0.01)  # cut at 4 sigma: 0.1 % of the variance


@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "mirror"), ("circular", "wrap")])
def test_lens_blurs_against_scipy(boundary: str, mode: str, photo: Tensor) -> None:
    for op in (Defocus(2.6, boundary), AnisotropicGaussianBlur(2, 0.7, 20, boundary)):
        expected = scipy.ndimage.convolve(photo[0, 0].numpy(), op.kernel.numpy(), mode=mode)
        np.testing.assert_allclose(op(photo)[0, 0].numpy(), expected, atol=1e-12)


def test_space_varying_blur_of_a_point_is_the_blend_of_the_kernels() -> None:
    kernels = normal((2, 3, 3, 5), "kernels")
    op = SpaceVaryingBlur(kernels)
    weights = op.maps(13, 17)
    torch.testing.assert_close(weights.sum(0), torch.ones(13, 17).double())
    assert weights[:, 0, 0].tolist() == pytest.approx(
        [1, 0, 0, 0, 0, 0], abs=1e-15
    )  # kernel (0, 0)
    assert float(weights[4, 12, 8]) == pytest.approx(1)  # kernel (1, 1): last row, middle column
    for i, j in ((6, 8), (3, 5), (9, 12)):
        point = torch.zeros(1, 1, 13, 17, dtype=torch.float64)
        point[0, 0, i, j] = 1
        blend = (weights[:, i, j, None, None] * kernels.flatten(0, 1)).sum(0)
        expected = torch.zeros(13, 17, dtype=torch.float64)
        expected[i - 1 : i + 2, j - 2 : j + 3] = blend
        torch.testing.assert_close(op(point)[0, 0], expected, rtol=0, atol=1e-12)


def test_space_varying_blur_with_one_kernel_is_a_blur(photo: Tensor) -> None:
    kernel = Defocus(2.2).kernel
    for op in (
        SpaceVaryingBlur(kernel[None, None]),
        SpaceVaryingBlur([kernel, kernel, kernel], "radial"),
        SpaceVaryingBlur.defocus(middle=2.2, corner=2.2),
    ):
        torch.testing.assert_close(op(photo), Defocus(2.2)(photo), rtol=0, atol=1e-12)


def test_space_varying_defocus_is_sharp_in_the_middle(photo: Tensor) -> None:
    x = photo[:, :, :95, :95]
    op = SpaceVaryingBlur.defocus(middle=0, corner=4)
    maps = op.maps(95, 95)
    assert float(maps[0, 47, 47]) == 1
    assert float(maps[-1, 0, 0]) == 1
    assert float(maps[-1, 94, 94]) == 1
    edges = (op(x) - x).abs().mean(1)[0]
    assert float(edges[45:50, 45:50].mean()) < 0.1 * float(edges[:5, :5].mean())


# Tone --------------------------------------------------------------------------------------------


def test_luma_against_pillow_and_skimage(photo: Tensor) -> None:
    levels = ((photo[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    grey = np.asarray(Image.fromarray(levels).convert("L")).astype(float)
    got = (Luma()(photo)[0, 0].numpy() + 1) * 127.5
    assert np.abs(got - grey).max() <= 0.5 + 1e-3  # Pillow rounds
    grey = skimage.color.rgb2gray((photo[0].permute(1, 2, 0).numpy() + 1) / 2)
    got = (Luma("rec709")(photo)[0, 0].numpy() + 1) / 2
    assert np.abs(got - grey).max() < 3e-4  # its weights end after four digits, and differ by 2e-4


def test_hdr_clipping() -> None:
    x = torch.tensor([-0.9, -0.5, -0.25, 0.0, 0.375, 0.5, 0.51]).double().reshape(1, 1, 1, 7)
    y, pull = HDRClipping()(x), HDRClipping().vjp(x)[1]
    assert y.flatten().tolist() == [-1, -1, -0.5, 0, 0.75, 1, 1]
    assert pull(torch.ones_like(x)).flatten().tolist() == [0, 2, 2, 2, 2, 2, 0]


def test_quantisation_against_eight_bits(photo: Tensor) -> None:
    assert torch.allclose(Quantisation(256)(photo), photo, rtol=0, atol=1e-15)
    x = normal((1, 2, 9, 9)) / 2
    for levels in (2, 3, 8):
        y = Quantisation(levels)(x)
        step = 2 / (levels - 1)
        number = (y + 1) / step
        torch.testing.assert_close(number, number.round(), rtol=0, atol=1e-12)
        assert float((y - x.clamp(-1, 1)).abs().max()) <= step / 2 + 1e-12
    pulled = Quantisation(8).vjp(x)[1](torch.ones_like(x))
    assert torch.equal(pulled, (x.abs() <= 1).double())  # the straight-through surrogate


def test_transfer_curves() -> None:
    v = torch.linspace(0, 1, 257, dtype=torch.float64)
    x = (2 * v - 1).reshape(1, 1, 1, -1)
    # sRGB from its definition, IEC 61966-2-1
    expected = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(LinearLight()(x).flatten(), expected, rtol=1e-9, atol=1e-8)
    for curve in ("srgb", "rec709", "linear"):
        there_and_back = Camera(1.0, curve)(LinearLight(curve)(x))
        torch.testing.assert_close(there_and_back, x, rtol=0, atol=2e-7)
    # beyond black and white light goes on, the camera saturates
    far = torch.tensor([-1.5, 1.5]).double().reshape(1, 1, 1, 2)
    beyond = [-0.25 / 12.92, (1.305 / 1.055) ** 2.4]
    assert LinearLight()(far).flatten().tolist() == pytest.approx(beyond)
    y, pull = Camera().vjp(LinearLight()(far))
    assert y.flatten().tolist() == [-1, 1]
    assert not pull(torch.ones_like(far)).any()


def test_nonlinear_blur_by_hand() -> None:
    """A bright line, moved by 3 pixels: light adds up, then saturates, then is encoded."""
    x = torch.full((1, 1, 1, 15), -1.0, dtype=torch.float64)
    x[..., 7] = 1.0  # light 1
    y = nonlinear_blur(MotionBlur(3), exposure=1.5)(x)
    encoded = 2 * (1.055 * 0.5 ** (1 / 2.4) - 0.055) - 1
    assert y[0, 0, 0, 5:10].tolist() == pytest.approx([-1, encoded, encoded, encoded, -1], abs=1e-6)
    y = nonlinear_blur(MotionBlur(3), exposure=4)(x)
    assert y[0, 0, 0, 6:9].tolist() == pytest.approx([1, 1, 1])  # 4/3 saturates


def test_nonlinear_blur_has_a_taylor_remainder_of_second_order() -> None:
    """Away from the toe and from saturation."""
    op = nonlinear_blur(Defocus(1.4), exposure=0.8)
    x, d = normal((1, 3, 9, 10)).clamp(-2, 2) / 5, normal((1, 3, 9, 10), "d") / 5
    y, pull = op.vjp(x)
    v = normal(tuple(y.shape), "v")
    slope = rows.dot(d, pull(v))
    rest = [float((rows.dot(op(x + h * d) - y, v) - h * slope).abs()) for h in (0.04, 0.02, 0.01)]
    assert math.log2(rest[0] / rest[1]) == pytest.approx(2, abs=0.15)
    assert math.log2(rest[1] / rest[2]) == pytest.approx(2, abs=0.1)


# JPEG --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 100])
def test_jpeg_tables_are_those_of_pillow(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="JPEG", quality=quality)
    with Image.open(file) as image:
        written = [image.quantization[k] for k in (0, 1)]
    for ours, theirs in zip(quantisation_tables(quality), written, strict=True):
        assert ours.flatten().tolist() == list(theirs)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [5, 10, 30, 75, 95])
def test_jpeg_is_that_of_pillow(quality: int, subsampling: str, photo: Tensor) -> None:
    """Equal to a level or two, save in the blocks where a coefficient rounded the other way."""
    for x in (photo, photo[:, :, :61, :75].float()):  # 61 and 75: blocks that are cut
        op = JPEG(quality, subsampling)
        difference = (op(x) - op.simulate(x)).abs() * 127.5
        assert float(difference.mean()) < 0.5
        assert float((difference > 2.5).double().mean()) < 0.05
        whole = (op(x) + 1) * 127.5
        assert float((whole - whole.round()).abs().max()) < 1e-4  # levels, as a file has


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 4), (5, 6), (16, 17)])
def test_jpeg_of_small_and_flat_images(size: tuple[int, int], photo: Tensor) -> None:
    op = JPEG(50)
    x = photo[:, :, : size[0], : size[1]]
    assert float((op(x) - op.simulate(x)).abs().mean()) * 127.5 < 0.5
    # flat blocks lie on the edges of the rounding, and overflow what Cb and Cr can hold
    for colour in ((255, 0, 0), (0, 0, 255), (129, 127, 135), (3, 7, 250)):
        flat = torch.tensor(colour).double().reshape(1, 3, 1, 1).expand(1, 3, *size) / 127.5 - 1
        assert float((op(flat) - op.simulate(flat)).abs().max()) * 127.5 < 1.5


def test_jpeg_simulation_is_the_file_that_pillow_writes(photo: Tensor) -> None:
    levels = ((photo[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    for image, x in (
        (Image.fromarray(levels), photo),
        (Image.fromarray(levels[:, :, 1]), photo[:, 1:2]),
    ):
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=20)  # Pillow's default subsampling
        expected = np.asarray(Image.open(file)).reshape(*levels.shape[:2], -1)
        got = (JPEG(20).simulate(x)[0].permute(1, 2, 0) + 1) * 127.5
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


def test_jpeg_simulates_inside_a_composition(photo: Tensor) -> None:
    op = JPEG(10) @ Defocus(1.5)
    assert torch.equal(op.simulate(photo), JPEG(10).simulate(Defocus(1.5)(photo)))
    assert op.surrogate_gradient
    assert not (JPEG(10, rounding="smooth") @ Identity()).surrogate_gradient
    parts = Stack([JPEG(10), Identity()]).bind((3, 96, 104))
    assert torch.equal(parts.split(parts.simulate(photo))[0], JPEG(10).simulate(photo))
    assert torch.equal(Defocus(1.5).simulate(photo), Defocus(1.5)(photo))


def test_jpeg_straight_through_gradient(photo: Tensor) -> None:
    """Within the range: the identity on luma, the mean over 2 x 2 pixels and back on chroma."""
    x = photo / 2
    grey = x[:, :1]
    u = normal((1, 1, 96, 104), "u")
    torch.testing.assert_close(JPEG(10).vjp(grey)[1](u), u, rtol=0, atol=1e-11)
    u = normal(tuple(x.shape), "u")
    pulled = JPEG(10, "4:4:4").vjp(x)[1](u)
    # the colour constants have 16 binary digits one way, as many decimals the other
    torch.testing.assert_close(pulled, u, rtol=0, atol=1e-3)
    pulled = JPEG(10).vjp(x)[1](u)
    # what is linearised keeps grey images, so its transpose keeps the sum over the channels
    torch.testing.assert_close(pulled.sum(1), u.sum(1), rtol=0, atol=2e-3)
    assert float((pulled - u).abs().mean()) > 0.1  # but not the colour of single pixels


def test_jpeg_smooth_is_near_the_real_thing(photo: Tensor) -> None:
    op = JPEG(10, rounding="smooth")
    assert check(op, (1, 3, 16, 16), verbose=False, dtypes=(torch.float64,)) == []
    real, flat = op.simulate(photo), photo.mean((2, 3), keepdim=True).expand_as(photo)
    near = float((op(photo) - real).square().mean())
    assert near < 0.5 * float((photo - real).square().mean())
    assert near < 0.1 * float((flat - real).square().mean())


def test_check_knows_surrogates() -> None:
    for op in (JPEG(30), Quantisation(4), BayerMosaic(), Luma()):
        assert check(op, (1, 3, 16, 16), verbose=False) == []
    assert "straight-through" in repr(parse("jpeg:quality=10"))
    assert repr(JPEG(10, "4:4:4", "smooth")).endswith("rounding='smooth')")


# Mosaic and structure ----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "grbg", "gbrg"])
def test_bayer_by_indexing(pattern: str) -> None:
    x = normal((2, 3, 7, 9))
    y = BayerMosaic(pattern)(x)
    assert y.shape == (2, 1, 7, 9)
    for k, colour in enumerate(pattern):
        i, j = divmod(k, 2)
        seen = x[:, "rgb".index(colour), i::2, j::2]
        assert torch.equal(y[:, 0, i::2, j::2], seen)
    torch.testing.assert_close(BayerMosaic(pattern)(BayerMosaic(pattern).adjoint(y)), y)


def test_crop() -> None:
    x = normal((2, 3, 8, 9))
    assert torch.equal(Crop((4, 5))(x), x[:, :, 2:6, 2:7])
    op = Crop((4, 5), (1, 3), (8, 9))
    y = op(x)
    assert torch.equal(y, x[:, :, 1:5, 3:8])
    back = op.adjoint(y)
    assert torch.equal(back[:, :, 1:5, 3:8], y)
    assert float(back.abs().sum()) == pytest.approx(float(y.abs().sum()))
    with pytest.raises(CapabilityError, match="bind"):
        Crop(4).adjoint(y)
    assert Crop(4).bind((3, 8, 9)).domain_shape((2, 3, 4, 4)) == (2, 3, 8, 9)
    y[:] = 0
    assert x[:, :, 1:5, 3:8].any()  # y is a copy


def test_channels_scale_and_blocks() -> None:
    x = normal((2, 3, 8, 9))
    assert torch.equal(SelectChannels([2, 0])(x), x[:, [2, 0]])
    torch.testing.assert_close(Scale(-4.0).pinv(Scale(-4.0)(x)), x)
    parts = [Defocus(1.2), Identity(), Blur(normal((3, 3), "k"), "circular")]
    y = PerChannel(parts)(x)
    for c, part in enumerate(parts):
        assert torch.equal(y[:, c : c + 1], part(x[:, c : c + 1]))
    assert not PerChannel(parts).has_pinv
    mask = Mask.random(keep_fraction=0.5, seed=1)
    whole = PerChannel([mask, Identity(), mask])
    assert whole.has_pinv
    assert torch.equal(whole.restrict(torch.ones_like(x))[:, 1], torch.ones(2, 8, 9).double())


X = torch.zeros(2, 3, 16, 16)
BAD = [
    (lambda: Defocus(0), InputError, "radius must be > 0"),
    (lambda: Defocus(9)(X), InputError, "larger than the image"),
    (lambda: AnisotropicGaussianBlur(1, 0), InputError, "sigma_across"),
    (lambda: SpaceVaryingBlur(torch.ones(2, 3, 3)), InputError, "R, S, kh, kw"),
    (lambda: SpaceVaryingBlur(torch.ones(2, 3, 4), "radial"), InputError, "odd"),
    (lambda: SpaceVaryingBlur(torch.ones(2, 3, 3), torch.ones(3, 4, 4)), InputError, "3 maps"),
    (lambda: SpaceVaryingBlur(torch.ones(1, 3, 3), torch.ones(1, 4, 4))(X), InputError, "4 x 4"),
    (lambda: SpaceVaryingBlur(torch.ones(1, 3, 3), "radail"), InputError, "did you mean 'radial'"),
    (lambda: SpaceVaryingBlur([], "radial"), InputError, "list of kernels"),
    (lambda: SpaceVaryingBlur.defocus(middle=-1, corner=2), InputError, "radius"),
    (lambda: Luma("rec602"), InputError, "did you mean 'rec601'"),
    (lambda: Luma()(X[:, :1]), InputError, "3 channels"),
    (lambda: HDRClipping(0), InputError, "factor"),
    (lambda: HDRClipping()(X * 1j), InputError, "real"),
    (lambda: Quantisation(1), InputError, "levels"),
    (lambda: Camera(-1), InputError, "exposure"),
    (lambda: LinearLight("gamma"), InputError, "curve"),
    (lambda: nonlinear_blur(HDRClipping()), CapabilityError, "linear"),
    (lambda: nonlinear_blur(abs), InputTypeError, "operator"),
    (lambda: JPEG(0), InputError, "quality"),
    (lambda: JPEG(101), InputError, "between 1 and 100"),
    (lambda: JPEG(10, "4:1:1"), InputError, "subsampling"),
    (lambda: JPEG(10)(X[:, :2]), InputError, "grey or RGB"),
    (lambda: JPEG(10).adjoint(X), CapabilityError, "not linear"),
    (lambda: BayerMosaic("rgbg"), InputError, "pattern"),
    (lambda: BayerMosaic()(X[:, :1]), InputError, "3 channels"),
    (lambda: Crop(17)(X), InputError, "leaves the image"),
    (lambda: Crop(5, image=4), InputError, "leaves the image"),
    (lambda: Crop((5, 5, 5)), InputError, "one or two"),
    (lambda: SelectChannels([0, 0]), InputError, "different"),
    (lambda: SelectChannels("01"), InputTypeError, "list"),
    (lambda: SelectChannels([3])(X), InputError, "no such channel"),
    (lambda: Scale(0), InputError, "must not be 0"),
    (lambda: PerChannel([Identity()])(X), InputError, "1 channels"),
    (lambda: PerChannel([]), InputTypeError, "list of operators"),
    (lambda: PerChannel([Crop(3), Identity(), Identity()])(X), InputError, "one size"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(number: int) -> None:
    call, kind, message = BAD[number]
    with pytest.raises(kind, match=message):
        call()


# Haze --------------------------------------------------------------------------------------------


def test_haze_by_hand(photo: Tensor) -> None:
    """Densities in [0, 1] mixed by the law, then brought to [-1, 1]: the same as of x itself."""
    depth = torch.linspace(0, 3, 96 * 104, dtype=torch.float64).reshape(96, 104)
    air = (0.8, 0.85, 0.9)  # of densities
    haze = Haze(depth, scattering=0.7, airlight=[2 * a - 1 for a in air])
    through = torch.exp(-0.7 * depth)
    scene = (photo + 1) / 2
    seen = scene * through + torch.tensor(air, dtype=torch.float64)[:, None, None] * (1 - through)
    torch.testing.assert_close(haze(photo), 2 * seen - 1)
    direct, rest = haze.direct, haze.without_airlight(haze(photo))
    torch.testing.assert_close(direct(photo), rest, rtol=0, atol=1e-14)
    torch.testing.assert_close(direct.pinv(rest), photo)
    assert not haze.linear
    assert direct.linear


def test_haze_far_away_is_airlight() -> None:
    far = Haze(torch.full((2, 2), 1e4), airlight=0.5)
    x = normal((1, 3, 2, 2))
    assert torch.equal(far(x), torch.full_like(x, 0.5))
    assert torch.equal(far.direct.pinv(x), torch.zeros_like(x))


def test_haze_bad_input() -> None:
    flat, x = torch.ones(4, 5), normal((2, 3, 4, 5))
    bad = [
        (lambda: Haze(-flat), InputError, ">= 0"),
        (lambda: Haze(flat / 0), InputError, "finite"),
        (lambda: Haze(flat[None].expand(2, 4, 5)), InputError, r"\(B, 1, H, W\)"),
        (lambda: Haze(flat[:0]), InputError, "empty"),
        (lambda: Haze(flat + 0j), InputTypeError, "real"),
        (lambda: Haze("depth.png"), InputTypeError, "depth must be a tensor"),
        (lambda: Haze(flat, airlight=[]), InputError, "airlight"),
        (lambda: Haze(flat, airlight=[0.5, "1"]), InputTypeError, "airlight"),
        (lambda: Haze(flat, airlight=[0.5, 0.6])(x), InputError, "2 channels, not 3"),
        (lambda: Haze(flat.T)(x), InputError, "depths are 5 x 4, the image 4 x 5"),
        (lambda: Haze(torch.ones(3, 1, 4, 5))(x), InputError, "3 measurements"),
        (lambda: Haze(flat).adjoint(x), CapabilityError, "without_airlight"),
        (lambda: Haze(flat).pinv(x), CapabilityError, "without_airlight"),
    ]
    for call, error, message in bad:
        with pytest.raises(error, match=message):
            call()
