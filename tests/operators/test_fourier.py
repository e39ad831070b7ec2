"""Fourier and compressed-sensing operators beside numpy, scipy, dense matrices and definitions."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import pickle

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from operator_battery import normal
from torch import Tensor

import posterior
from posterior import guidance, priors, rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.fingerprints import fingerprint
from posterior.operators import (
    MRI,
    CodedDiffraction,
    CoilSensitivities,
    ComplexFromChannels,
    EquispacedLines,
    GaussianNoise,
    GaussianSensing,
    Mask,
    NonCartesianMRI,
    NonUniformFourier,
    Operator,
    PhaseRetrieval,
    PoissonDisc,
    RandomLines,
    StructuredSensing,
    SubsampledFourier,
    birdcage_maps,
    parse,
    radial_trajectory,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SIZES = [(6, 8), (7, 9), (6, 5), (1, 4)]


def numpy_dft(x: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


def complex_normal(shape: tuple[int, ...], name: str = "x") -> Tensor:
    return normal(shape, name, torch.complex128)


def matrix_of(operator: Operator, event: tuple[int, ...]) -> Tensor:
    """Its real matrix, real parts of y above imaginary ones."""
    d = math.prod(event)
    columns = operator(torch.eye(d, dtype=torch.float64).reshape(d, *event)).flatten(1).T
    return torch.cat([columns.real, columns.imag]) if columns.is_complex() else columns


def stacked(y: Tensor) -> Tensor:
    y = y.flatten(1)
    return torch.cat([y.real, y.imag], 1) if y.is_complex() else y


# Fourier and MRI


@pytest.mark.parametrize("size", SIZES)
def test_subsampled_fourier_is_numpys(size: tuple[int, int]) -> None:
    x, z = normal((2, 3, *size)), complex_normal((2, 3, *size))
    keep = (normal((2, 1, *size), "keep") > -0.5).double()
    keep[..., 0] = 1
    for image, op in (
        (x, SubsampledFourier(keep)),
        (z, SubsampledFourier(keep, complex_domain=True)),
    ):
        expected = keep * torch.from_numpy(numpy_dft(image.numpy()))
        torch.testing.assert_close(op(image), expected, **CLOSE)
    y = complex_normal((2, 3, *size), "y")
    op = SubsampledFourier(keep, complex_domain=True)
    torch.testing.assert_close(op(op.adjoint(y)), op.restrict(y), **CLOSE)  # A A^T = M
    torch.testing.assert_close(op.restrict(y), y * keep, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(4, 3), (3, 4), (5, 5), (2, 6)])
def test_pseudo_inverse_of_real_images_is_the_dense_one(size: tuple[int, int]) -> None:
    keep = (normal(size, "keep") > 0).double()
    keep[0, 0] = 1
    op = SubsampledFourier(keep)
    dense = torch.linalg.pinv(matrix_of(op, (1, *size)), rtol=1e-9)
    y = complex_normal((2, 1, *size), "y")
    torch.testing.assert_close(op.pinv(y).flatten(1), stacked(y) @ dense.T, rtol=0, atol=1e-12)


def test_multi_coil_mri_is_the_sum_over_coils() -> None:
    size, coils = (6, 7), 4
    maps = complex_normal((coils, *size), "maps")
    keep = RandomLines(2, seed=1)
    mask = keep.pattern(*size)[0, 0].numpy()
    x = complex_normal((2, 1, *size))
    scan = MRI(keep, maps)
    for b in range(2):
        for c in range(coils):
            expected = mask * numpy_dft((maps[c] * x[b, 0]).numpy())
            torch.testing.assert_close(scan(x)[b, c], torch.from_numpy(expected), **CLOSE)
    y = complex_normal((2, coils, *size), "y")
    expected = (maps.conj() * SubsampledFourier(keep, True).adjoint(y)).sum(1, keepdim=True)
    torch.testing.assert_close(scan.adjoint(y), expected, **CLOSE)
    assert not scan.has_pinv
    with pytest.raises(CapabilityError, match="pseudo-inverse"):
        scan.pinv(y)


def test_fully_sampled_multi_coil_mri_has_the_dense_pseudo_inverse() -> None:
    maps = complex_normal((3, 3, 4), "maps")
    maps[:, 1, 2] = 0  # a pixel that no coil sees
    scan = MRI(coils=maps) @ ComplexFromChannels()
    assert scan.has_pinv
    dense = torch.linalg.pinv(matrix_of(scan, (2, 3, 4)), rtol=1e-9)
    y = complex_normal((2, 3, 3, 4), "y")
    torch.testing.assert_close(scan.pinv(y).flatten(1), stacked(y) @ dense.T, rtol=0, atol=1e-11)


def test_the_claims_of_orthonormality_hold() -> None:
    event = (2, 3, 4)
    for op in (
        SubsampledFourier(),
        MRI() @ ComplexFromChannels(),
        MRI(coils=3) @ ComplexFromChannels(),
        StructuredSensing(0.3).bind(event),
    ):
        a = matrix_of(op, event)
        rows_scale, columns_scale = float((a @ a.T)[0, 0]), float((a.T @ a)[0, 0])
        rows_unit = (a @ a.T - rows_scale * torch.eye(len(a))).abs().max() < 1e-12
        columns_unit = (a.T @ a - columns_scale * torch.eye(a.shape[1])).abs().max() < 1e-12
        assert (rows_unit, columns_unit) == (op.orthonormal_rows, op.orthonormal_columns), op


@pytest.mark.parametrize("size", [(16, 16), (9, 12)])
def test_birdcage_maps(size: tuple[int, int]) -> None:
    maps = birdcage_maps(5, size, radius=2.0)
    h, w = size
    raw = np.empty((5, h, w), dtype=complex)
    for k in range(5):
        for i in range(h):
            for j in range(w):
                phi = 2 * math.pi * k / 5
                z = (j - w // 2) / (w / 2) + 1j * (i - h // 2) / (h / 2)
                away = z - 2.0 * np.exp(1j * phi)
                raw[k, i, j] = np.exp(1j * (np.angle(away) - phi)) / abs(away)
    expected = raw / np.sqrt((abs(raw) ** 2).sum(0))
    torch.testing.assert_close(maps, torch.from_numpy(expected), **CLOSE)
    turned = birdcage_maps(5, size, seed=[1, 2])
    assert turned.shape == (2, 5, *size)
    power = turned.abs().square().sum(1)
    torch.testing.assert_close(power, torch.ones_like(power), **CLOSE)
    assert torch.equal(turned[1], birdcage_maps(5, size, seed=2))
    assert float((turned[0] - turned[1]).abs().max()) > 0.1
    # smooth: |d ln S / dz| <= 1 / (radius - sqrt 2), twice that with the norm; 2 / size a pixel
    step = (maps[:, 1:] - maps[:, :-1]).abs().max()
    assert float(step) < 2 * (2 / h) / (2.0 - math.sqrt(2))


def test_take_goes_through_masks_and_maps() -> None:
    scan = MRI(RandomLines(2, seed=[1, 2, 3]), birdcage_maps(2, (8, 8), seed=[4, 5, 6]))
    x = complex_normal((3, 1, 8, 8))
    assert torch.equal(scan.take([2, 0])(x[[2, 0]]), scan(x)[[2, 0]])
    with pytest.raises(InputError, match="3 measurements"):
        scan(x[:2])
    assert fingerprint(scan) != fingerprint(MRI(RandomLines(2, seed=[1, 2, 3]), 2))
    for other in (copy.deepcopy(scan), pickle.loads(pickle.dumps(scan))):
        assert torch.equal(other(x), scan(x))


def test_two_threads_keep_rows_invariant() -> None:
    scan = MRI(PoissonDisc(3), coils=4) @ ComplexFromChannels()
    x = normal((3, 2, 48, 40), dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(scan.normal(x[1:2].clone()), scan.normal(x)[1:2])
    finally:
        torch.set_num_threads(threads)


def test_wrong_inputs_say_what_to_do() -> None:
    x, z = normal((1, 1, 8, 8)), complex_normal((1, 1, 8, 8))
    with pytest.raises(InputError, match="ComplexFromChannels"):
        MRI()(x)
    with pytest.raises(InputError, match="complex_domain=True"):
        SubsampledFourier()(z)
    with pytest.raises(InputError, match="one channel"):
        MRI(coils=2)(complex_normal((1, 2, 8, 8)))
    with pytest.raises(InputError, match="8 x 8"):
        MRI(coils=birdcage_maps(2, (6, 8)))(z)
    with pytest.raises(InputError, match="gives 2 coils"):
        CoilSensitivities(2).adjoint(complex_normal((1, 3, 8, 8)))
    with pytest.raises(InputTypeError, match="must be a mask"):
        SubsampledFourier(ComplexFromChannels())  # type: ignore[arg-type]  # on purpose
    with pytest.raises(InputError, match="low=0"):
        PhaseRetrieval()(z)
    with pytest.raises(InputError, match="low must be < 1"):
        PhaseRetrieval(low=1)
    with pytest.raises(CapabilityError, match="bind"):
        StructuredSensing(0.5).adjoint(normal((1, 1, 32)))
    with pytest.raises(InputError, match="power of 2"):
        StructuredSensing(0.5, "hadamard")(normal((1, 1, 6, 8)))
    with pytest.raises(InputError, match="did you mean"):
        StructuredSensing(0.5, "hadamar")
    with pytest.raises(InputError, match="StructuredSensing"):
        GaussianSensing(0.5)(normal((1, 1, 256, 256)))
    with pytest.raises(InputError, match="nothing would be measured"):
        GaussianSensing(0)


# sampling masks


def lines(mask: Tensor) -> np.ndarray:
    """The sampled columns (number of masks, W), the same in every row."""
    assert mask.dtype == torch.bool
    assert bool((mask == mask[:, :, :1]).all())
    return mask[:, 0, 0].numpy()


@pytest.mark.parametrize(("width", "acceleration", "fraction"), [(368, 4, 0.08), (320, 8, 0.04)])
@pytest.mark.parametrize("offset", [0, 3])
def test_equispaced_lines_are_fastmris(
    width: int, acceleration: int, fraction: float, offset: int
) -> None:
    low = round(width * fraction)
    expected = np.zeros(width, dtype=bool)
    start = (width - low + 1) // 2
    expected[start : start + low] = True
    adjusted = acceleration * (low - width) / (low * acceleration - width)
    expected[np.around(np.arange(offset, width - 1, adjusted)).astype(int)] = True
    mask = EquispacedLines(acceleration, fraction, offset=offset)
    assert np.array_equal(lines(mask.pattern(5, width))[0], expected)
    # the middle replaces low / adjusted of the equispaced columns: W / R are left, to one or two
    assert abs(expected.sum() - width / acceleration) <= 2
    regular = EquispacedLines(acceleration, fraction, offset=offset, exact=True)
    expected[:] = False
    expected[start : start + low] = True
    expected[offset::acceleration] = True
    assert np.array_equal(lines(regular.pattern(2, width))[0], expected)


def test_default_centre_fraction_is_fastmris() -> None:
    assert EquispacedLines(4).center_fraction == pytest.approx(0.08)
    assert RandomLines(8).center_fraction == pytest.approx(0.04)


def test_offsets_of_equispaced_lines_are_uniform() -> None:
    mask = EquispacedLines(4, center_fraction=0, seed=list(range(100)))
    offset = lines(mask.pattern(1, 64)).argmax(1)
    counts = np.bincount(offset, minlength=4)
    assert len(counts) == 4
    # chi-square of 3 degrees of freedom, 16.3 at 1e-3
    assert ((counts - 25) ** 2 / 25).sum() < 16.3


@pytest.mark.parametrize("acceleration", [2, 5, 12])
def test_random_lines_have_the_acceleration_in_the_mean(acceleration: float) -> None:
    width, count = 200, 100
    mask = RandomLines(acceleration, seed=range(count))
    drawn = lines(mask.pattern(1, width))
    low = round(width * 0.32 / acceleration)
    start = (width - low + 1) // 2
    assert drawn[:, start : start + low].all()
    chance = (width / acceleration - low) / (width - low)
    deviation = math.sqrt((width - low) * chance * (1 - chance) / count)
    assert abs(drawn.sum(1).mean() - width / acceleration) < 4 * deviation
    outside = np.delete(drawn, range(start, start + low), axis=1).mean(0)
    assert abs(outside - chance).max() < 5 * math.sqrt(chance * (1 - chance) / count)


def slope_of(mask: np.ndarray, middle: tuple[int, int]) -> tuple[float, np.ndarray, np.ndarray]:
    """The least d / min(rho, rho') over pairs of points outside the middle; points; rho."""
    h, w = mask.shape
    i, j = np.mgrid[:h, :w]
    rho = np.hypot((i - h // 2) / (h / 2), (j - w // 2) / (w / 2))
    free = mask.copy()
    top, left = ((n - m + 1) // 2 for n, m in zip((h, w), middle, strict=True))
    free[top : top + middle[0], left : left + middle[1]] = False
    points = np.argwhere(free)
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    own = rho[free]
    return float((distance / np.minimum(own[:, None], own[None])).min()), points, rho


@pytest.mark.parametrize(
    ("size", "acceleration"), [((64, 64), 2), ((64, 64), 12), ((48, 75), 5), ((40, 40), 8)]
)
def test_poisson_disc(size: tuple[int, int], acceleration: float) -> None:
    h, w = size
    disc = PoissonDisc(acceleration, center_fraction=0.1, seed=3)
    mask = disc.pattern(h, w)[0, 0].numpy()
    middle = (round(0.1 * h), round(0.1 * w))
    top, left = (h - middle[0] + 1) // 2, (w - middle[1] + 1) // 2
    assert mask.sum() == round(h * w / acceleration)
    assert mask[top : top + middle[0], left : left + middle[1]].all()
    slope, points, rho = slope_of(mask, middle)
    # the discs: every point that s rho <= 1 is there, and where there is none, one is too near;
    # the last darts of the throw, to which the bisection is exact, may be missing
    assert mask[slope * rho <= 1].all()
    empty = np.argwhere(~mask)
    apart = np.hypot(*(empty[:, None] - points[None]).transpose(2, 0, 1))
    near = np.minimum(rho[~mask][:, None], rho[tuple(points.T)][None])
    free = ~(apart < slope * near).any(1)
    assert free.sum() <= max(3, 0.02 * mask.sum())
    # uniformly random points of the same number are much nearer to each other
    scattered = Mask.random(keep_fraction=1 / acceleration, seed=1).pattern(h, w)[0, 0].numpy()
    assert slope_of(scattered, middle)[0] < 0.9 * slope


def test_poisson_discs_thin_out_and_depend_on_the_seed() -> None:
    disc = PoissonDisc(8, seed=[0, 1])
    masks = disc.pattern(64, 64)[:, 0].numpy()
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(disc.take([1]).pattern(64, 64)[0, 0].numpy(), masks[1])
    i, j = np.mgrid[:64, :64]
    ring = (np.hypot(i - 32, j - 32) // 8).astype(int)
    density = [masks[0][ring == k].mean() for k in range(4)]
    assert density == sorted(density, reverse=True)
    assert density[0] > 0.9


def test_masks_that_cannot_be() -> None:
    with pytest.raises(InputError, match="lower center_fraction"):
        EquispacedLines(12, center_fraction=0.2).pattern(4, 64)
    with pytest.raises(InputError, match="lower center_fraction"):
        PoissonDisc(12, center_fraction=0.5).pattern(16, 16)
    with pytest.raises(InputError, match="samples nothing"):
        EquispacedLines(8, center_fraction=0, offset=7).pattern(4, 6)
    with pytest.raises(InputError, match="acceleration"):
        RandomLines(0.5)
    with pytest.raises(InputError, match="whole number"):
        EquispacedLines(2.5, exact=True)
    for full in (EquispacedLines(1), RandomLines(1), PoissonDisc(1)):
        assert bool(full.pattern(5, 6).all())


# phase retrieval


def test_phase_retrieval_is_that_of_dps_and_of_daps() -> None:
    x = normal((2, 3, 16, 24)).clamp(-1, 1)
    for low, u in ((0, x), (-1, 0.5 * x + 0.5)):
        pads = [int(2.0 / 8 * n) for n in (16, 24)]
        padded = np.pad(u.numpy(), [(0, 0), (0, 0), *((p, p) for p in pads)])
        expected = torch.from_numpy(abs(numpy_dft(padded)))
        y = PhaseRetrieval(2.0, low=low)(x)
        torch.testing.assert_close(y, expected, **CLOSE)
        squared = PhaseRetrieval(2.0, low=low, squared=True)(x)
        torch.testing.assert_close(squared, expected.square(), **CLOSE)
    assert PhaseRetrieval(2.0).range_shape((1, 3, 256, 256)) == (1, 3, 384, 384)


@pytest.mark.parametrize("oversample", [0, 0.7, 1, 2, 4, 5.5, 8])
def test_the_size_of_x_follows_from_that_of_y(oversample: float) -> None:
    op = PhaseRetrieval(oversample)
    for n in range(1, 300):
        assert op.domain_shape(op.range_shape((1, 1, n, 300 - n))) == (1, 1, n, 300 - n)
    with pytest.raises(InputError, match="does not give"):
        PhaseRetrieval(8).domain_shape((1, 1, 4, 4))


def test_ambiguities_of_phase_retrieval() -> None:
    x = normal((1, 1, 8, 6)).clamp(-1, 1)
    op, signed = PhaseRetrieval(), PhaseRetrieval(low=0)
    torch.testing.assert_close(op(x.flip(-2, -1)), op(x), **CLOSE)
    torch.testing.assert_close(signed(-x), signed(x), **CLOSE)
    assert float((op(-x) - op(x)).abs().max()) > 0.1  # densities have a sign
    assert float((op(x.flip(-1)) - op(x)).abs().max()) > 0.1
    unpadded = PhaseRetrieval(0)
    torch.testing.assert_close(unpadded(x.roll((2, 3), (-2, -1))), unpadded(x), **CLOSE)
    z = complex_normal((1, 1, 8, 6))
    torch.testing.assert_close(signed(1j * z), signed(z), **CLOSE)
    coded = CodedDiffraction(4, low=0)
    torch.testing.assert_close(coded(1j * z), coded(z), **CLOSE)
    assert float((coded(z.flip(-2, -1).conj()) - coded(z)).abs().max()) > 0.1


@pytest.mark.parametrize("squared", [False, True])
def test_gradient_where_the_modulus_is_zero(squared: bool) -> None:
    op = PhaseRetrieval(2.0, low=0, squared=squared)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    _, pull = op.vjp(x)
    assert torch.equal(pull(torch.ones(1, 1, 6, 6, dtype=torch.float64)), x)
    x[..., 1::2] = 1  # one pattern: most coefficients are 0 to rounding
    y, pull = PhaseRetrieval(0, low=0, squared=squared).vjp(x)
    assert bool((y < 1e-12).any())
    assert bool(torch.isfinite(pull(torch.ones_like(y))).all())


def test_coded_diffraction_is_numpys() -> None:
    x = normal((2, 2, 5, 6)).clamp(-1, 1)
    op = CodedDiffraction(3, seed=7)
    codes = op.codes(5, 6)
    assert set(codes.flatten().tolist()) == {1, 1j, -1, -1j}
    y = op(x).reshape(2, 2, 3, 5, 6)
    expected = abs(numpy_dft((codes * (0.5 * x + 0.5)[:, :, None]).numpy()))
    torch.testing.assert_close(y, torch.from_numpy(expected), **CLOSE)
    # D has modulus 1 and F is orthonormal: every pattern has the energy of u
    energy = y.square().sum((-2, -1))
    expected_energy = (0.5 * x + 0.5).square().sum((-2, -1))[..., None].expand_as(energy)
    torch.testing.assert_close(energy, expected_energy, **CLOSE)
    assert op.domain_shape((2, 6, 5, 6)) == (2, 2, 5, 6)
    with pytest.raises(InputError, match="multiple of 3"):
        op.domain_shape((2, 4, 5, 6))


# compressed sensing


def test_the_gaussian_matrix() -> None:
    op = GaussianSensing(0.5, seed=1).bind((1, 20, 20))
    matrix = matrix_of(op, (1, 20, 20))
    m, n = matrix.shape
    assert (m, n) == (200, 400)
    scaled = matrix * math.sqrt(m)
    assert abs(float(scaled.mean())) < 4 / math.sqrt(m * n)
    assert abs(float(scaled.var()) - 1) < 4 * math.sqrt(2 / (m * n))
    assert abs(float(scaled.pow(4).mean()) - 3) < 4 * math.sqrt(96 / (m * n))  # Var z^4 = 96
    assert torch.equal(matrix, matrix_of(GaussianSensing(0.5, seed=1), (1, 20, 20)))
    assert not torch.equal(matrix, matrix_of(GaussianSensing(0.5, seed=2), (1, 20, 20)))
    x = normal((2, 3, 20, 20))
    torch.testing.assert_close(op(x), x.flatten(2) @ matrix.T, **CLOSE)
    z = complex_normal((2, 1, 20, 20))
    torch.testing.assert_close(op(z), z.flatten(2) @ matrix.T.to(z.dtype), **CLOSE)
    y = normal((2, 1, 200), "y")
    dense = torch.linalg.pinv(matrix)
    torch.testing.assert_close(op.pinv(y).flatten(2), y @ dense.T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("transform", ["dct", "hadamard"])
@pytest.mark.parametrize("size", [(4, 8), (8, 2), (1, 4), (1, 1)])
def test_structured_sensing_is_the_dense_one(transform: str, size: tuple[int, int]) -> None:
    op = StructuredSensing(0.6, transform, seed=5).bind((2, *size))
    x = normal((2, 2, *size))
    index, signs = op._parts(x, size)
    n, m = size[0] * size[1], len(index)
    assert m == max(1, round(0.6 * n))
    flipped = (x * signs).numpy()
    if transform == "dct":
        full = scipy.fft.dctn(flipped, type=2, axes=(-2, -1), norm="ortho").reshape(2, 2, n)
    else:
        full = flipped.reshape(2, 2, n) @ scipy.linalg.hadamard(n) / math.sqrt(n)
    expected = torch.from_numpy(full)[..., index] * math.sqrt(n / m)
    torch.testing.assert_close(op(x), expected, **CLOSE)
    y = normal((2, 2, m), "y")
    torch.testing.assert_close(op(op.adjoint(y)), n / m * y, **CLOSE)  # A A^T
    torch.testing.assert_close(op.pinv(y), m / n * op.adjoint(y), **CLOSE)


@pytest.mark.parametrize("size", [(9, 7), (5, 6)])
def test_dct_sensing_of_odd_sizes_is_scipys(size: tuple[int, int]) -> None:
    op = StructuredSensing(1.0).bind((1, *size))
    x = normal((1, 1, *size))
    _, signs = op._parts(x, size)
    expected = scipy.fft.dctn((x * signs).numpy(), type=2, axes=(-2, -1), norm="ortho")
    torch.testing.assert_close(op(x), torch.from_numpy(expected).flatten(2), **CLOSE)
    single = op(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), op(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "op", [GaussianSensing(0.25), StructuredSensing(0.25), StructuredSensing(0.25, "hadamard")]
)
def test_sensing_keeps_norms_in_the_mean(op: Operator) -> None:
    x = normal((64, 1, 16, 16))
    ratio = rows.dot(op(x), op(x)) / rows.dot(x, x)
    # |y|^2 / |x|^2 is chi-square_m / m for the Gaussian matrix, narrower for the others
    assert abs(float(ratio.mean()) - 1) < 4 * math.sqrt(2 / 64)
    impulse = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    impulse[..., 3, 5] = 1
    assert float(rows.dot(op(impulse), op(impulse))) == pytest.approx(1, abs=4 * math.sqrt(2 / 64))


# non-Cartesian MRI

needs_finufft = pytest.mark.skipif(
    importlib.util.find_spec("finufft") is None,
    reason='FINUFFT is not installed: pip install "posterior-sampling[nufft]"',
)


def direct_sum(x: Tensor, k: Tensor) -> Tensor:
    """The non-uniform DFT by its definition, (B, C, H, W), (M, 2) -> (B, C, M)."""
    h, w = x.shape[2:]
    down = torch.outer(k[:, 0], torch.arange(h, dtype=torch.float64) - h // 2)
    across = torch.outer(k[:, 1], torch.arange(w, dtype=torch.float64) - w // 2)
    waves = torch.exp(-2j * math.pi * (down[:, :, None] + across[:, None]))
    return torch.einsum("bchw,mhw->bcm", x + 0j, waves) / math.sqrt(h * w)


@needs_finufft
@pytest.mark.parametrize("size", SIZES)
def test_nufft_is_the_direct_sum(size: tuple[int, int]) -> None:
    k = normal((40, 2), "k").remainder(1.0) - 0.5
    x = normal((2, 3, *size))
    scale = float(x.abs().sum())
    y = NonUniformFourier(k)(x)
    assert float((y - direct_sum(x, k)).abs().max()) < 1e-11 * scale
    single = NonUniformFourier(k)(x.float())
    assert single.dtype == torch.complex64
    assert float((single - direct_sum(x, k)).abs().max()) < 1e-5 * scale
    maps = birdcage_maps(4, size)
    z = complex_normal((2, 1, *size))
    scan = NonCartesianMRI(k, maps)
    assert float((scan(z) - direct_sum(z * maps, k)).abs().max()) < 1e-11 * scale


@needs_finufft
def test_nufft_on_the_grid_is_the_dft() -> None:
    h, w = 6, 5
    i, j = torch.meshgrid(torch.arange(h) - h // 2, torch.arange(w) - w // 2, indexing="ij")
    k = torch.stack([i.double() / h, j.double() / w], -1).reshape(-1, 2)
    z = complex_normal((1, 1, h, w))
    expected = SubsampledFourier(complex_domain=True)(z).flatten(2)
    op = NonUniformFourier(k, complex_domain=True)
    torch.testing.assert_close(op(z), expected, rtol=0, atol=1e-11)
    bound = op.bind((1, h, w))
    v = complex_normal((1, 1, h * w), "v")
    left, right = rows.dot(op(z), v), rows.dot(z, bound.adjoint(v))
    assert abs(float(left - right)) < 1e-12 * float(rows.norm(z) * rows.norm(v))
    with pytest.raises(CapabilityError, match="bind"):
        op.adjoint(v)
    with pytest.raises(InputError, match="cycles per pixel"):
        NonUniformFourier(2 * k)


@needs_finufft
def test_non_cartesian_mri_through_a_sampler() -> None:
    scan = NonCartesianMRI(radial_trajectory(4, 8), 3) @ ComplexFromChannels()
    prior = priors.Gaussian(torch.zeros(2, 6, 6, dtype=torch.float64), 1.0)
    y = scan(prior.sample(1, seed=0))
    exact = prior.posterior(scan, y, noise=0.1)
    draws = posterior.sample(
        prior, scan, y, noise=0.1, method=guidance.DDS(spread=1.0, iterations=15), steps=8, n=4
    ).draws[:, 0]
    error = float((draws.mean(0) - exact.mean).norm())
    assert error < 4 * math.sqrt(float(exact.covariance.trace()) / 4)
    assert error < 0.5 * float(exact.mean.norm())


def test_without_finufft(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name == "finufft":
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(CapabilityError, match=r"posterior-sampling\[nufft\]"):
        NonCartesianMRI(radial_trajectory(2, 4))


def test_radial_trajectory() -> None:
    k = radial_trajectory(3, 8, golden=False).reshape(3, 8, 2)
    assert float(k.norm(dim=-1).max()) == pytest.approx(0.5)
    assert torch.equal(k[:, 4], torch.zeros(3, 2, dtype=torch.float64))  # through the centre
    torch.testing.assert_close(k[0, :, 1], torch.arange(8, dtype=torch.float64) / 8 - 0.5)
    angles = torch.atan2(k[:, -1, 0], k[:, -1, 1]).rad2deg()
    torch.testing.assert_close(angles, torch.tensor([0.0, 60.0, 120.0], dtype=torch.float64))
    golden = radial_trajectory(2, 8).reshape(2, 8, 2)
    angle = math.degrees(math.atan2(golden[1, -1, 0], golden[1, -1, 1]))
    assert angle == pytest.approx(111.246, abs=1e-3)


# samplers against the exact posterior

SIZE = (6, 5)
SPREAD = 0.3
PRIOR = priors.Gaussian(normal((1, 2, *SIZE), "mean")[0], SPREAD**2)
SINGLE = MRI(EquispacedLines(2)) @ ComplexFromChannels()
MULTI = MRI(PoissonDisc(2), birdcage_maps(4, SIZE, seed=1)) @ ComplexFromChannels()


def distance(scan: Operator, method: guidance.Guidance, noise: float) -> tuple[float, float]:
    """|mean of 4 draws - exact mean| over the way of the exact mean; its standard error, likewise.

    The image lies 1000 times as far from the prior's mean as one of its draws. All is linear and
    Gaussian, so this changes nothing but how small the spread of the draws is beside that way.
    """
    x = PRIOR.mean + 1000 * (PRIOR.sample(1, seed=5) - PRIOR.mean)
    y = GaussianNoise(noise).sample(scan(x), seed=3)
    exact = PRIOR.posterior(scan, y, noise=noise)
    draws = posterior.sample(PRIOR, scan, y, noise=noise, method=method, n=4, steps=20, seed=1)
    way = float((PRIOR.mean - exact.mean).norm())
    error = float((draws.draws[:, 0].mean(0) - exact.mean).norm())
    return error / way, math.sqrt(float(exact.covariance.trace()) / 4) / way


@pytest.mark.parametrize("scan", [SINGLE, MULTI], ids=["single coil", "multi-coil"])
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_dds_of_mri_has_the_exact_mean(scan: Operator, noise: float) -> None:
    """Under a white prior DDS solves for E[x0 | x_t, y]; ten iterations do, to 1e-4."""
    error, deviation = distance(scan, guidance.DDS(spread=SPREAD, iterations=10), noise)
    assert error < 4 * deviation + 1e-4
    assert deviation < 0.002


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_dps_of_single_coil_mri_has_the_exact_mean(noise: float) -> None:
    """A A^T = M: (N + A C A^T) r is parallel to r, where DPS's estimate is exact."""
    error, deviation = distance(SINGLE, guidance.DPS(), noise)
    assert error < 4 * deviation


def test_dps_of_multi_coil_mri_comes_near_it() -> None:
    """One step of conjugate gradients for (N + A C A^T) u = r, of condition number k, leaves an
    error of at most (k - 1) / (k + 1): 1/3 with A A^T <= 1, C <= 0.09 and N = 0.09.

    Preconditioned by (N + v A A^T)^-1, with v = 0.04 for C = 0.09 at worst, k is that of
    (1 + a) / (1 + 0.44 a), a = A C A^T / N in [0, 1]: 1.39, and the bound is 0.16.
    """
    along, deviation = distance(MULTI, guidance.DPS(inner_steps=0), SPREAD)
    assert 10 * deviation < along < 1 / 3
    turned, deviation = distance(MULTI, guidance.DPS(), SPREAD)
    assert 10 * deviation < turned < 0.16
    assert turned < along / 2


def test_restore_through_subsampled_fourier() -> None:
    operator = parse("subsampled-fourier:acceleration=2,mask=random,seed=4")
    prior = priors.Gaussian(torch.zeros(3, 8, 8), 0.3)
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = posterior.restore(image, operator, noise=0.02, prior=prior, n=2, steps=10, simulate=True)
    assert out.draws.shape[-3:] == (3, 8, 8)
    y = operator(image[None])
    assert float((operator(out.mean.reshape(1, 3, 8, 8)) - y).abs().mean()) < 0.1
