"""Computed tomography beside integrals in closed form, scikit-image and ASTRA."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_battery import normal
from skimage.transform import iradon, radon
from torch import Tensor

import posterior
from posterior import guidance, operators, priors, rows
from posterior.errors import CapabilityError, InputError, InputTypeError, PosteriorError
from posterior.fingerprints import fingerprint
from posterior.operators import (
    FanBeamCT,
    GaussianNoise,
    Identity,
    Mask,
    ParallelBeamCT,
    PoissonNoise,
    Slicewise,
    Tomography,
    Transmission,
    from_callable,
)
from posterior.operators._projector import pixel_centres
from posterior.transitions import DDPM

FAN = {"source_distance": 3.0, "detector_distance": 2.0}
SCANS = {
    "parallel": lambda **kw: ParallelBeamCT(**kw),
    "flat fan": lambda **kw: FanBeamCT(**FAN, **kw),
    "curved fan": lambda **kw: FanBeamCT(**FAN, curved=True, **kw),
}
scans = pytest.mark.parametrize("scan", SCANS)


def lines(ct: Tomography) -> tuple[Tensor, Tensor]:
    """(angle in radians, s) of the parallel ray of every bin's middle, from the definitions."""
    assert isinstance(ct.size, tuple)
    detectors, spacing = ct.detector_of(ct.size)
    s = (torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2) * spacing
    t = ct.degrees.deg2rad()[:, None].expand(-1, detectors)
    if not isinstance(ct, FanBeamCT):
        return t, s.expand_as(t)
    reach = ct.source_distance + ct.detector_distance
    g = s / reach if ct.curved else torch.atan(s / reach)
    return t - g, (ct.source_distance * g.sin()).expand_as(t)


def blob(size: tuple[int, int], pixel: float) -> Tensor:
    """A Gaussian off the centre, in the square [-1, 1]^2."""
    x, y = pixel_centres(size, pixel)
    return torch.exp(-((x - 0.13) ** 2 + (y + 0.21) ** 2) / (2 * 0.15**2)).reshape(1, 1, *size)


def blob_integrals(t: Tensor, s: Tensor) -> Tensor:
    """Those of `blob` along x cos t + y sin t = s."""
    off = s - (0.13 * t.cos() - 0.21 * t.sin())
    return 0.15 * math.sqrt(2 * math.pi) * torch.exp(-off * off / (2 * 0.15**2))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@scans
def test_integrals_of_a_gaussian_to_second_order(scan: str) -> None:
    """Pixels and bins of width h make errors of h^2: a quarter at half the width."""
    errors = []
    for n in (24, 48):
        size = (n, n + n // 4)
        ct = SCANS[scan](views=9, start=11, pixel_size=2 / n, size=size)
        errors.append(relative(ct(blob(size, 2 / n))[0, 0], blob_integrals(*lines(ct))))
    assert errors[1] < 0.008
    assert 3.4 < errors[0] / errors[1] < 4.6


@pytest.mark.parametrize("spacing", [0.4, 1.0, 2.7])
def test_disc_at_any_spacing(spacing: float) -> None:
    """The mean chord over a bin, in closed form; pixels at the rim hold the part they cover."""
    n, radius, fine = 40, 15.3, 8
    x, y = pixel_centres((n * fine, n * fine), 1 / fine)
    inside = (x * x + y * y <= radius**2).double().reshape(1, 1, n * fine, n * fine)
    disc = torch.nn.functional.avg_pool2d(inside, fine)
    ct = ParallelBeamCT(views=7, spacing=spacing, size=n)
    detectors = ct.detector_of((n, n))[0]
    edge = (torch.arange(detectors + 1, dtype=torch.float64) - detectors / 2) * spacing
    e = edge.clamp(-radius, radius)
    area = e * (radius**2 - e * e).sqrt() + radius**2 * torch.asin(e / radius)
    expected = ((area[1:] - area[:-1]) / spacing).expand(7, -1)
    # a pixel spread evenly instead of cut by the rim moves mass by less than a pixel
    assert relative(ct(disc)[0, 0], expected) < 0.02


def test_which_way_is_which() -> None:
    x = normal((1, 1, 5, 5))
    y = ParallelBeamCT(angles=[0, 90, 180, 270], detectors=5, size=5)(x)[0, 0]
    columns, lines_ = x[0, 0].sum(0), x[0, 0].sum(1)
    # at 90 degrees s runs upwards, rows run downwards
    for got, expected in zip(y, (columns, lines_.flip(0), columns.flip(0), lines_), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    one = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    one[0, 0, 1, 4] = 1  # (x, y) = (2, 1), seen at 45 degrees at s = 3 / sqrt(2)
    seen = ParallelBeamCT(angles=[45], detectors=101, spacing=0.1, size=5)(one)[0, 0, 0]
    s = (torch.arange(101, dtype=torch.float64) - 50) * 0.1
    assert float((seen * s).sum() / seen.sum()) == pytest.approx(3 / math.sqrt(2), abs=1e-4)
    assert float(seen.max()) == pytest.approx(math.sqrt(2), abs=0.06)  # the diagonal of a pixel
    # a fan sees what is off its axis magnified: (S + D) aside / ahead
    fan = FanBeamCT(angles=[0], source_distance=10, detector_distance=5, detectors=1001,
                    spacing=0.05, size=5)  # fmt: skip
    shadow = fan(one)[0, 0, 0]
    s = (torch.arange(1001, dtype=torch.float64) - 500) * 0.05
    assert float((shadow * s).sum() / shadow.sum()) == pytest.approx(15 * 2 / (10 + 1), rel=5e-3)


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.floats(0.3, 3), st.floats(0.2, 2), st.floats(-400, 400)
)
def test_every_view_holds_the_whole_mass(
    h: int, w: int, spacing: float, pixel: float, angle: float
) -> None:
    ct = ParallelBeamCT(angles=[angle], spacing=spacing, pixel_size=pixel, size=(h, w))
    x = normal((1, 1, h, w)).abs()
    mass = float(x.sum()) * pixel**2
    assert float(ct(x).sum()) * spacing == pytest.approx(mass, rel=1e-7)


def test_a_distant_source_is_a_parallel_beam() -> None:
    x = normal((1, 1, 9, 12))
    far = {"source_distance": 1e7, "detector_distance": 1e7, "spacing": 2.0, "detectors": 17}
    expected = ParallelBeamCT(views=6, detectors=17, size=(9, 12))(x)
    for curved in (False, True):
        got = FanBeamCT(views=6, arc=180, curved=curved, size=(9, 12), **far)(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_units_scale_y() -> None:
    x = normal((1, 1, 8, 8))
    a, b = ParallelBeamCT(views=5)(x), ParallelBeamCT(views=5, pixel_size=0.1)(x)
    torch.testing.assert_close(b, 0.1 * a)
    scaled = FanBeamCT(views=5, pixel_size=0.1, source_distance=2, detector_distance=1)(x)
    plain = FanBeamCT(views=5, source_distance=20, detector_distance=10)(x)
    torch.testing.assert_close(scaled, 0.1 * plain)


def phantom(n: int) -> Tensor:
    """Smooth and rough, zero outside the inscribed circle."""
    x, y = pixel_centres((n, n), 2 / n)
    disc = ((x * x + y * y) < 0.9**2).double()
    return (disc * (1 + ((x - 0.2) ** 2 + y * y < 0.1))).reshape(1, 1, n, n)


def test_scikit_image_radon() -> None:
    """radon interpolates linearly where we hold pixels constant: apart by less than a percent."""
    n = 65
    ct = ParallelBeamCT(views=20, detectors=n, size=n)
    x = phantom(n)
    theirs = torch.from_numpy(radon(x[0, 0].numpy(), ct.degrees.numpy(), circle=True).T.copy())
    assert relative(ct(x)[0, 0], theirs) < 0.01
    # an even image turns about pixel n / 2 there: the middle once a row and a column are added
    even = phantom(64)
    theirs = torch.from_numpy(radon(even[0, 0].numpy(), ct.degrees.numpy(), circle=True).T.copy())
    wide = torch.nn.functional.pad(even, (0, 1, 0, 1))
    assert relative(ct(wide)[0, 0, :, :64], theirs) < 0.01
    assert relative(ParallelBeamCT(views=20, detectors=64)(even)[0, 0], theirs) > 0.02


def test_scikit_image_iradon() -> None:
    """The same filter and interpolation; their other windows are half a sample away from ours."""
    n = 45
    ct = ParallelBeamCT(views=40, detectors=n, size=n)
    y = ct(phantom(n))
    x, up = pixel_centres((n, n), 1.0)
    inside = (x * x + up * up < (n // 2) ** 2).reshape(n, n)  # iradon cuts the corners
    for window, tolerance in (("ramp", 1e-12), ("hann", 2e-3), ("cosine", 1e-4)):
        theirs = iradon(y[0, 0].numpy().T, ct.degrees.numpy(), filter_name=window, circle=True)
        ours = ct.fbp(y, window)[0, 0]
        assert relative(ours[inside], torch.from_numpy(theirs)[inside]) < tolerance


FULL = {
    "parallel": ("parallel", {}),
    "parallel, all round": ("parallel", {"arc": 360}),
    "parallel, more than half": ("parallel", {"arc": 250, "start": 20}),
    "flat": ("flat fan", {}),
    "curved": ("curved fan", {}),
    "flat, short scan": ("flat fan", {"arc": 225, "start": -30}),
    "curved, long scan": ("curved fan", {"arc": 300}),
}


@pytest.mark.parametrize("name", FULL)
def test_filtered_back_projection(name: str) -> None:
    """Of exact integrals: the blob comes back up to the interpolation, of second order.

    The fan of a square seen from 3 half sides is 2 asin(sqrt(2) / 3) = 56 degrees; what a short
    scan needs for the blob is less.
    """
    scan, kwargs = FULL[name]
    errors = []
    for n in (24, 48):
        ct = SCANS[scan](views=4 * n, pixel_size=2 / n, size=n, **kwargs)
        x = blob((n, n), 2 / n)
        back = ct.fbp(blob_integrals(*lines(ct))[None, None])
        assert back.dtype == x.dtype
        errors.append(relative(back, x))
    assert errors[1] < 0.02
    assert errors[0] / errors[1] > 3


ELLIPSES = [  # value, half axes, centre, degrees: Toft's version of Shepp and Logan's head
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
]


def head(n: int) -> Tensor:
    """Every pixel the mean of 16 points of it."""
    x, y = pixel_centres((4 * n, 4 * n), 2 / (4 * n))
    out = torch.zeros_like(x)
    for value, a, b, x0, y0, turn in ELLIPSES:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        u, v = (x - x0) * c + (y - y0) * s, (y - y0) * c - (x - x0) * s
        out += value * ((u / a) ** 2 + (v / b) ** 2 <= 1).double()
    return torch.nn.functional.avg_pool2d(out.reshape(1, 1, 4 * n, 4 * n), 4)


def plain(x: Tensor) -> Tensor:
    """Pixels that look like everything within four of them."""
    high = torch.nn.functional.max_pool2d(x, 9, 1, 4)
    return high == -torch.nn.functional.max_pool2d(-x, 9, 1, 4)


def head_integrals(t: Tensor, s: Tensor) -> Tensor:
    out = torch.zeros_like(s)
    for value, a, b, x0, y0, turn in ELLIPSES:
        g = t - math.radians(turn)
        width = (a * g.cos()) ** 2 + (b * g.sin()) ** 2
        off = s - x0 * t.cos() - y0 * t.sin()
        out += value * 2 * a * b * (width - off * off).clamp(min=0).sqrt() / width
    return out


@scans
def test_shepp_logan(scan: str) -> None:
    n = 80
    ct = SCANS[scan](views=120 if scan == "parallel" else 240, pixel_size=2 / n, size=n)
    y = head_integrals(*lines(ct))[None, None]
    x = head(n)
    # y is the integral at the middle of a bin, A x its mean: apart where rays touch the skull
    assert relative(ct(x), y) < 0.06
    for image in (ct.fbp(y), ct.fbp(ct(x))):
        for value in (0.0, 0.2):  # air and ventricles, brain
            there = plain(x) & ((x - value).abs() < 1e-9)
            off = (image - value)[there]
            assert len(off) > 100
            assert float(off.mean().abs()) < 0.01
            assert float(off.square().mean().sqrt()) < 0.05


def test_windows_trade_noise_for_sharpness() -> None:
    ct = ParallelBeamCT(views=30, size=32)
    noise = normal((1, 1, 30, ct.detector_of((32, 32))[0]))
    spread, flat = [], []
    ones = ct(torch.ones(1, 1, 32, 32, dtype=torch.float64))
    for window in ("ramp", "shepp-logan", "cosine", "hamming", "hann"):
        spread.append(float(ct.fbp(noise, window).std()))
        flat.append(float(ct.fbp(ones, window)[0, 0, 12:20, 12:20].mean()))
    assert spread[:3] == sorted(spread[:3], reverse=True)
    assert spread[4] < spread[3] < spread[2]
    torch.testing.assert_close(torch.tensor(flat), torch.ones(5), rtol=0, atol=0.01)


@scans
@pytest.mark.parametrize("arc", [90.0, 180.0, 230.0, 275.0, 360.0])
def test_views_share_a_ray(scan: str, arc: float) -> None:
    """The shares of all measurements of one ray sum to 1."""
    ct = SCANS[scan](views=int(arc), arc=arc, start=15, size=16, pixel_size=0.1)
    fan = torch.tensor([-20.0, 0.0, 10.0], dtype=torch.float64).deg2rad()
    if scan == "parallel":
        fan = torch.zeros(1, dtype=torch.float64)
    share = ct._share(fan)
    mirrored = ct._share(-fan)
    assert (share > 0).all()
    assert (share <= 1).all()
    for d, g in enumerate(fan.rad2deg().tolist()):
        for view in range(int(arc)):  # a degree apart, so that the opposite view is there
            other = round(view + 180 - 2 * g) % 360
            total = share[view, d] + (mirrored[other, d] if other < arc else 0)
            assert float(total) == pytest.approx(1, abs=1e-9)


def test_limited_angles_miss_what_they_do_not_see() -> None:
    """Edges along the rays of an arc come back, those across them do not."""
    n = 48
    x = torch.zeros(1, 1, n, n, dtype=torch.float64)
    x[..., 16:32, 16:32] = 1
    ct = ParallelBeamCT(views=60, arc=60, start=-30, size=n)  # rays within 30 degrees of upright
    back = ct.fbp(ct(x))[0, 0]
    across = float(back[24, 17:31].mean() - back[24, 4:12].mean())
    along = float(back[17:31, 24].mean() - back[4:12, 24].mean())
    assert across > 2 * along


def test_nothing_is_built_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    make = Tomography._matrix

    def counted(self: Tomography, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        built.append(size)
        return make(self, size, dtype)

    monkeypatch.setattr(Tomography, "_matrix", counted)
    ct = ParallelBeamCT(views=4)
    x = normal((2, 3, 6, 7))
    y = ct(x)
    bound = ct.bind((3, 6, 7))
    assert isinstance(bound, ParallelBeamCT)
    bound.adjoint(bound(x))
    ct.take([1])(x)
    Slicewise(ct).bind((3, 2, 6, 7))(normal((1, 3, 2, 6, 7)))
    assert built == [(6, 7)]
    ct(x.float())
    assert len(built) == 2
    for other in (pickle.loads(pickle.dumps(bound)), copy.deepcopy(bound)):
        assert torch.equal(other(x), y)
    assert fingerprint(ct) == fingerprint(ParallelBeamCT(views=4))
    assert fingerprint(ct) != fingerprint(ParallelBeamCT(views=4, arc=90))


def test_channels_rows_threads_and_inputs() -> None:
    ct = FanBeamCT(views=5, source_distance=20, detector_distance=10, size=(7, 8))
    x = normal((3, 3, 7, 8), dtype=torch.float32)
    before = x.clone()
    y = ct(x)
    back, image = ct.adjoint(y), ct.fbp(y)
    assert torch.equal(x, before)
    assert torch.equal(y, ct(x))
    for b in range(3):
        for c in range(3):
            assert torch.equal(ct(x[b : b + 1, c : c + 1]), y[b : b + 1, c : c + 1])
        assert torch.equal(ct.fbp(y[b : b + 1].clone()), image[b : b + 1])
    assert ct(x[:0]).shape == (0, *y.shape[1:])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(ct(x[1:2]), y[1:2])
        assert torch.equal(ct.adjoint(y[1:2]), back[1:2])
    finally:
        torch.set_num_threads(threads)


@scans
def test_matrices_are_well_formed(scan: str) -> None:
    ct = SCANS[scan](views=6, size=(7, 9), pixel_size=0.2)
    pair = ct._projector((7, 9), torch.zeros(1, dtype=torch.float64))
    for m in (pair.matrix, pair.transpose):
        parts = (m.crow_indices(), m.col_indices(), m.values(), m.shape)
        torch.sparse_csr_tensor(*parts, check_invariants=True)  # columns in order, each once
    assert torch.equal(pair.matrix.to_dense().T, pair.transpose.to_dense())


def test_gradients_of_all_orders() -> None:
    ct = ParallelBeamCT(views=3, size=4)
    x = normal((2, 1, 4, 4)).requires_grad_()
    assert torch.autograd.gradcheck(ct, (x,))
    assert torch.autograd.gradgradcheck(ct, (x,))


@pytest.mark.parametrize("kwargs", [{}, {"spacing": 1.7}, {"pixel_size": 0.5, "spacing": 0.3}])
def test_astra(kwargs: dict[str, float]) -> None:
    pytest.importorskip("astra", reason="the ASTRA toolbox is not installed: extra [ct]")
    x = normal((1, 1, 12, 17))
    ours = ParallelBeamCT(views=7, start=3, size=(12, 17), **kwargs)
    theirs = ParallelBeamCT(views=7, start=3, size=(12, 17), backend="astra", **kwargs)
    assert relative(ours(x), theirs(x)) < 1e-5  # single precision angles and areas
    v = normal(ours.range_shape((1, 1, 12, 17)), "v")
    assert relative(ours.adjoint(v), theirs.adjoint(v)) < 1e-5
    error = rows.dot(theirs(x), v) - rows.dot(x, theirs.adjoint(v))
    assert float(error.abs()) <= 1e-10 * float(rows.norm(theirs(x)) * rows.norm(v))
    errors = []
    for distance in (50.0, 500.0):  # their fan is an approximation of first order too
        fan = {"views": 7, "size": (12, 17), "source_distance": distance, **kwargs}
        fan["detector_distance"] = distance / 2
        errors.append(relative(FanBeamCT(**fan)(x), FanBeamCT(backend="astra", **fan)(x)))
    assert errors[0] < 4e-3
    assert errors[1] < errors[0] / 5


def test_without_astra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "astra", None)
    with pytest.raises(CapabilityError, match=r"posterior-sampling\[ct\]"):
        ParallelBeamCT(views=3, backend="astra")(normal((1, 1, 4, 4)))


def test_beer_lambert() -> None:
    ct = ParallelBeamCT(views=4, size=6)
    x = 2 * torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double() - 1
    beam = Transmission(ct, attenuation=0.2)
    torch.testing.assert_close(beam(x), torch.exp(-ct(0.1 * (x + 1))))
    assert torch.equal(beam(-torch.ones_like(x)), torch.ones_like(ct(x)))  # air
    plain = Transmission(ct, attenuation=0.2, low=0)
    torch.testing.assert_close(plain(x), torch.exp(-0.2 * ct(x)))
    assert not beam.linear
    with pytest.raises(CapabilityError):
        beam.adjoint(beam(x))


@pytest.mark.parametrize("photons", [200.0, 5000.0])
def test_log_counts_have_the_stated_noise(photons: float) -> None:
    """Mean and variance over 4000 rays with the same clean value.

    The mean of n standardised numbers has the error 1 / sqrt(n), their variance sqrt(2 / n); five
    of these are allowed, and the next orders: the delta method's variance is 1 / k + O(1 / k^2).
    """
    n = 4000
    ct = ParallelBeamCT(angles=[0], detectors=n, size=(5, n))
    beam = Transmission(ct, attenuation=0.3, low=-1)
    x = torch.full((1, 1, 5, n), 0.4, dtype=torch.float64)
    noise = PoissonNoise(rate=1, low=0, peak=photons)
    clean = beam(x)
    y = noise.sample(clean, seed=4)
    z, model = beam.log_domain(y, noise)
    standard = model.standardised(z, ct(x))
    k = photons * float(clean[0, 0, 0, 0])
    assert k > 50
    assert float(standard.mean()) == pytest.approx(0, abs=5 / n**0.5 + 1 / k)
    assert float(standard.var()) == pytest.approx(1, abs=5 * (2 / n) ** 0.5 + 1 / k)
    again, _ = beam.log_domain(clean, PoissonNoise(rate=1, low=0, peak=1e9))
    torch.testing.assert_close(again, ct(x), rtol=0, atol=1e-7)


def test_rays_without_a_count_stay_finite() -> None:
    beam = Transmission(ParallelBeamCT(views=2, size=3), attenuation=1.0)
    noise = PoissonNoise(rate=1, low=0, peak=100)
    dark = torch.zeros(beam.range_shape((1, 1, 3, 3)))
    z, model = beam.log_domain(dark, noise)
    assert torch.isfinite(z).all()
    assert isinstance(model.std, Tensor)
    torch.testing.assert_close(model.std, torch.full_like(dark, 2 * 2**0.5))
    for wrong, message in ((PoissonNoise(1), "low=0"), (GaussianNoise(1), "PoissonNoise")):
        with pytest.raises(PosteriorError, match=message):
            beam.log_domain(dark, wrong)  # type: ignore[arg-type]


def smooth_prior(n: int) -> priors.Gaussian:
    i = torch.arange(n, dtype=torch.float64)
    k = torch.exp(-((i[:, None] - i) ** 2) / (2 * 1.5**2))
    covariance = 0.3 * torch.kron(k, k) + 0.05 * torch.eye(n * n, dtype=torch.float64)
    return priors.Gaussian(torch.zeros(1, n, n, dtype=torch.float64), covariance)


@pytest.mark.parametrize("name", ["DDS", "MMPS", "DDS of photon counts"])
def test_sparse_views_draw_from_the_posterior(name: str) -> None:
    """The whitened mean of n draws against the exact mean: chi-squared of as many as pixels.

    DDS is exact for isotropic priors and MMPS for any Gaussian, up to time steps, which make the
    draws too narrow at this length and so chi-squared smaller. The prior's mean, and the posterior
    of the wrong angles, must fail.
    """
    n, draws, d = 12, 16, 144
    ct = ParallelBeamCT(views=6, size=n)
    isotropic = priors.Gaussian(torch.zeros(1, n, n, dtype=torch.float64), 0.64)
    prior = smooth_prior(n) if name == "MMPS" else isotropic
    method = (
        guidance.MMPS(iterations=30) if name == "MMPS" else guidance.DDS(spread=0.8, iterations=30)
    )
    x = prior.sample(1, seed=1).double()
    noise = GaussianNoise(0.5)
    if "counts" in name:
        beam, photons = Transmission(ct, 0.1, low=-1), PoissonNoise(rate=1, low=0, peak=2e3)
        y, noise = beam.log_domain(photons.sample(beam(x), seed=2), photons)
    else:
        y = noise.sample(ct(x), seed=2)
    out = posterior.sample(prior, ct, y, noise=noise, method=method, steps=25, n=draws, seed=3)
    mean = out.draws[:, 0].double().mean(0).flatten()

    def chi_squared(exact: priors.Gaussian) -> float:
        root = torch.linalg.cholesky(exact.covariance)
        off = torch.linalg.solve_triangular(
            root, (mean - exact.mean.flatten())[:, None], upper=False
        )
        return draws * float(off.square().sum())

    limit = d + 5 * (2 * d) ** 0.5
    assert chi_squared(prior.posterior(ct, y, noise=noise)) < limit
    other = ParallelBeamCT(views=6, start=15, size=n)
    assert chi_squared(prior.posterior(other, y, noise=noise)) > 2 * limit


def test_a_stack_of_slices_with_total_variation() -> None:
    """Slice-stacked parallel beams: a constant volume comes out better with DDS's ADMM-TV."""
    n, depth = 8, 6
    prior = priors.Gaussian(torch.zeros(1, n, n, dtype=torch.float64), 0.36)
    one = prior.sample(1, seed=5).double()
    truth = one[:, :, None].expand(1, 1, depth, n, n).contiguous()
    ct = Slicewise(ParallelBeamCT(views=8)).bind((1, depth, n, n))
    assert torch.equal(
        ct(truth), ParallelBeamCT(views=8)(one)[:, :, None].expand(1, 1, depth, 8, 12)
    )
    y = GaussianNoise(1.5).sample(ct(truth), seed=6)
    run = {"noise": 1.5, "steps": 15, "n": 4, "seed": 7}

    def draws(tv: guidance.SliceTV | None) -> Tensor:
        method = guidance.DDS(spread=0.6, iterations=15, tv=tv)
        out = posterior.sample(priors.Slices(prior), ct, y, method=method, **run)
        assert out.draws.shape == (4, 1, 1, depth, n, n)
        return out.draws

    plain, tied = draws(None), draws(guidance.SliceTV(weight=10.0))
    assert float(tied.diff(dim=3).abs().mean()) < 0.4 * float(plain.diff(dim=3).abs().mean())
    assert relative(tied.mean(0), truth) < 0.9 * relative(plain.mean(0), truth)


def test_back_projection_as_a_start() -> None:
    """sample(source=fbp(y)) from a level of noise that hides its errors, in few steps."""
    n = 12
    ct = ParallelBeamCT(views=6, size=n)
    prior = smooth_prior(n)
    y = GaussianNoise(0.2).sample(ct(prior.sample(1, seed=1).double()), seed=2)
    levels, _ = posterior.grids.of_ratios(prior.schedule, [0.3, 0.2, 0.1, 0.05, 0.0])
    grid = [(level.t, level.alpha, level.sigma) for level in levels]
    # DDPM's moves, which remember a start for longer than DDS's own
    method = guidance.DDS(spread=0.6, transition=DDPM)
    run = {"noise": 0.2, "n": 4, "method": method, "grid": grid}
    exact = prior.posterior(ct, y, noise=0.2).mean[None]
    start = ct.fbp(y)
    warm = posterior.sample(prior, ct, y, source=start, **run)
    cold = posterior.sample(prior, ct, y, source=torch.zeros_like(start), **run)
    assert relative(warm.mean, exact) < 0.6 * relative(start, exact)
    assert relative(warm.mean, exact) < 0.95 * relative(cold.mean, exact)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelBeamCT(), "views= and angles="),
        (lambda: ParallelBeamCT(views=3, angles=[1.0]), "views= and angles="),
        (lambda: ParallelBeamCT(views=0), "views"),
        (lambda: ParallelBeamCT(views=3, arc=0), "arc"),
        (lambda: ParallelBeamCT(views=3, arc=361), "arc"),
        (lambda: ParallelBeamCT(angles=[]), "angles"),
        (lambda: ParallelBeamCT(angles=[[1.0]]), "angles"),
        (lambda: ParallelBeamCT(angles=[math.nan]), "NaN"),
        (lambda: ParallelBeamCT(angles="all"), "angles"),
        (lambda: ParallelBeamCT(views=3, spacing=0), "spacing"),
        (lambda: ParallelBeamCT(views=3, pixel_size=-1), "pixel_size"),
        (lambda: ParallelBeamCT(views=3, detectors=2.5), "detectors"),
        (lambda: ParallelBeamCT(views=3, size=(4, 4, 4)), "size"),
        (lambda: ParallelBeamCT(views=3, backend="astro"), "astra"),
        (lambda: FanBeamCT(views=3, source_distance=0, detector_distance=1), "source_distance"),
        (lambda: FanBeamCT(views=3, source_distance=9, detector_distance=-1), "detector_distance"),
        (
            lambda: FanBeamCT(
                views=3, source_distance=9, detector_distance=1, curved=True, backend="astra"
            ),
            "curved",
        ),
        (lambda: Transmission(Identity(), 0), "attenuation"),
        (lambda: Transmission(Identity(), 1, low=1), "low"),
        (lambda: Transmission(lambda x: x, 1), "operator"),  # type: ignore[arg-type]
        (lambda: Transmission(from_callable(lambda x: x), 1), "linear"),
    ],
)
def test_what_cannot_be(make, message: str) -> None:
    with pytest.raises(PosteriorError, match=message):
        make()


def test_inputs_that_do_not_fit() -> None:
    ct = ParallelBeamCT(views=3)
    y = ct(torch.zeros(1, 1, 4, 4))
    for call in (ct.adjoint, ct.fbp):
        with pytest.raises(CapabilityError, match="size="):
            call(y)
    with pytest.raises(CapabilityError, match="pseudo-inverse"):
        ct.pinv(y)
    bound = ct.bind((1, 4, 4))
    assert bound.bind((1, 5, 5)) is bound
    with pytest.raises(InputError, match="5 x 4"):
        bound(torch.zeros(1, 1, 5, 4))
    with pytest.raises(InputError, match=r"\(B, C, 3, 6\)"):
        bound.adjoint(torch.zeros(1, 1, 3, 5))
    with pytest.raises(InputTypeError, match="real"):
        ct(torch.zeros(1, 1, 4, 4, dtype=torch.complex64))
    with pytest.raises(InputTypeError, match="precision"):
        ct(torch.zeros(1, 1, 4, 4, dtype=torch.float16))
    with pytest.raises(InputError, match="did you mean"):
        bound.fbp(y, "han")
    near = FanBeamCT(views=3, source_distance=5, detector_distance=1)
    with pytest.raises(InputError, match="source_distance must be more than"):
        near(torch.zeros(1, 1, 8, 8))


def test_composes_and_parses() -> None:
    x = normal((2, 1, 6, 6))
    keep = (normal((4, 9), "keep") > 0).double()
    masked = Mask(keep=keep) @ ParallelBeamCT(views=4, size=6)
    assert operators.check(masked, (2, 1, 6, 6), verbose=False) == []
    parsed = operators.parse("parallel-beam-ct:views=4,arc=90,pixel_size=0.5")
    assert torch.equal(parsed(x), ParallelBeamCT(views=4, arc=90, pixel_size=0.5)(x))
    with pytest.raises(InputError, match="source_distance"):
        operators.parse("fan-beam-ct:views=4")
    assert repr(ParallelBeamCT(views=4, arc=90)) == "ParallelBeamCT(views=4, arc=90)"
    assert np.allclose(ParallelBeamCT(views=4, arc=90, start=5).degrees, [5, 27.5, 50, 72.5])
