"""Interferometry: geometry, the transform, and what closure quantities do not see."""

from __future__ import annotations

import cmath
import itertools
import math

import numpy as np
import pytest
import torch
from operator_battery import normal
from torch import Tensor

from posterior.errors import InputError
from posterior.operators import (
    ClosurePhases,
    GaussianNoise,
    LogClosureAmplitudes,
    Stack,
    TotalFlux,
    Visibilities,
    m87_2017,
    observe,
)
from posterior.operators import interferometry as vlbi

OBS = m87_2017(scans=6)


def image(n: int = 16) -> Tensor:
    """A crescent, in [0, 1], well inside the frame."""
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    r = (x**2 + y**2).sqrt() / n
    return (torch.exp(-(((r - 0.15) / 0.05) ** 2)) * (1 + 0.7 * (x - 0.4 * y) / n / 0.2).clamp(0))[
        None, None
    ]


def test_uv_is_the_change_of_delay_over_the_sky() -> None:
    mjd, ra, dec = 57854.2, 187.7, 12.4
    obs = observe(vlbi.EHT_2017, (ra, dec), [mjd], elevation=-90)

    def delay(ra: float, dec: float) -> Tensor:
        """B . s in wavelengths: s turned by the right ascension, the Earth by its sidereal time."""
        turn = math.radians((280.46061837 + 360.98564736629 * (mjd - 51544.5)) % 360)
        a, d = math.radians(ra) - turn, math.radians(dec)
        s = (math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d))
        r = torch.tensor([station.position for station in vlbi.EHT_2017], dtype=torch.float64)
        baseline = r[obs.first] - r[obs.second]
        return baseline @ torch.tensor(s, dtype=torch.float64) * 229.1e9 / vlbi.LIGHT

    step = 1e-3  # degrees
    size = 2 * math.radians(step)
    across = size * math.cos(math.radians(dec))
    u = (delay(ra + step, dec) - delay(ra - step, dec)) / across
    v = (delay(ra, dec + step) - delay(ra, dec - step)) / size
    torch.testing.assert_close(obs.u, u, rtol=1e-9, atol=100)
    torch.testing.assert_close(obs.v, v, rtol=1e-9, atol=100)


def test_coverage_of_the_2017_array() -> None:
    obs = m87_2017()
    assert obs.names == ("ALMA", "APEX", "SMT", "LMT", "PV", "SMA", "JCMT")
    length = torch.hypot(obs.u, obs.v)
    assert 8.0e9 < float(length.max()) < 8.6e9  # 25 micro-arcseconds, as published
    alma_apex = (obs.first == 0) & (obs.second == 1)
    assert 0.5e6 < float(length[alma_apex].max()) < 2.1e6  # 2.6 km
    first, last = obs.scan == 0, obs.scan == obs.scan.max()
    assert 4 in obs.second[first]  # Pico Veleta sees M87 first,
    assert 5 in obs.first[last]  # Hawaii last
    assert 4 not in torch.cat([obs.first[last], obs.second[last]])
    # SEFD 74 and 4700 Jy, 1.875 GHz, 60 s, two-bit sampling
    noise = math.sqrt(74 * 4700) / (0.88 * math.sqrt(2 * 1.875e9 * 60))
    torch.testing.assert_close(obs.std[alma_apex], torch.full_like(obs.std[alma_apex], noise))


def test_visibilities_are_the_sum_over_pixels() -> None:
    x = normal((2, 1, 5, 6))
    pixel = 100 * vlbi.MICROARCSECOND / 6
    expected = torch.zeros(2, len(OBS), dtype=torch.complex128)
    for i, j in itertools.product(range(5), range(6)):
        east, north = pixel * (2.5 - j), pixel * (2 - i)
        phase = 2 * math.pi * (OBS.u * east + OBS.v * north)
        pulse = (torch.sinc(OBS.u * pixel) * torch.sinc(OBS.v * pixel)) ** 2
        expected += x[:, :, i, j] * pulse * torch.polar(torch.ones_like(phase), phase)
    torch.testing.assert_close(Visibilities(OBS, 100)(x), expected, rtol=1e-9, atol=1e-9)


def test_a_gaussian_source_has_a_gaussian_transform() -> None:
    n, fov, sigma = 64, 160.0, 15.0
    at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * fov / n
    g = torch.exp(-(at**2) / (2 * sigma**2))
    source = torch.outer(g, g)[None, None] / g.sum() ** 2
    u, v = OBS.u * vlbi.MICROARCSECOND, OBS.v * vlbi.MICROARCSECOND
    p = fov / n
    exact = torch.exp(-2 * (math.pi * sigma) ** 2 * (u**2 + v**2))
    exact = exact * (torch.sinc(p * u) * torch.sinc(p * v)) ** 2  # the pixels' pulse
    vis = Visibilities(OBS, fov)(source)[0]
    torch.testing.assert_close(vis, exact + 0j, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stations", [2, 3, 4, 5, 7])
def test_minimal_sets_have_the_right_size_and_rank(stations: int) -> None:
    obs = observe(vlbi.EHT_2017[:stations], vlbi.M87, [57854.1, 57854.2], elevation=-90)
    m = stations
    triangles, quadrangles = (m - 1) * (m - 2) // 2, max(m * (m - 3) // 2, 0)
    assert len(obs.triangles) == 2 * triangles
    assert len(obs.quadrangles) == 2 * quadrangles
    for closures, signs in ((obs.triangles, (1, 1, -1)), (obs.quadrangles, (1, 1, -1, -1))):
        if not len(closures):
            continue
        design = torch.zeros(len(closures), len(obs), dtype=torch.float64)
        design.scatter_(1, closures, torch.tensor(signs).double().expand(len(closures), -1))
        assert int(torch.linalg.matrix_rank(design)) == len(closures)
        assert bool((obs.scan[closures] == obs.scan[closures[:, :1]]).all())


def gained(vis: Tensor) -> Tensor:
    """The visibilities behind a random complex gain for each station and scan."""
    gains = torch.complex(normal((6, 7), "re"), normal((6, 7), "im")) + 0.3
    return gains[OBS.scan, OBS.first] * gains[OBS.scan, OBS.second].conj() * vis


def test_gains_do_not_touch_the_closures() -> None:
    vis = Visibilities(OBS)(image())
    assert float((gained(vis) / vis).abs().log().abs().max()) > 1
    for closure in (vlbi.closure_phasors, vlbi.log_closure_amplitudes):
        torch.testing.assert_close(closure(OBS, gained(vis)), closure(OBS, vis), atol=1e-9, rtol=0)


def test_shifts_and_flux_do_not_touch_the_closures() -> None:
    x = image(24)
    for op in (ClosurePhases(OBS, low=0), LogClosureAmplitudes(OBS, low=0)):
        expected = op(x)
        torch.testing.assert_close(op(0.1 * x), expected, rtol=0, atol=1e-9)
        # rolled by less than the dark frame; its edge holds exp(-(0.35 / 0.05)^2) = 1e-21
        torch.testing.assert_close(op(x.roll((2, -1), (2, 3))), expected, rtol=0, atol=1e-9)
        assert float((op(x.flip(3)) - expected).abs().max()) > 0.1


def test_a_point_symmetric_image_has_phases_0_or_pi() -> None:
    x = image() + image().flip((2, 3))
    phasors = ClosurePhases(OBS, low=0)(x)
    assert float(phasors.imag.abs().max()) < 1e-9
    assert float(ClosurePhases(OBS, low=0)(image()).imag.abs().max()) > 0.1


def test_operators_agree_with_the_functions_of_visibilities() -> None:
    x = 2 * image() - 1
    vis = Visibilities(OBS)((x + 1) / 2)
    torch.testing.assert_close(ClosurePhases(OBS)(x), vlbi.closure_phasors(OBS, vis))
    psi = ClosurePhases(OBS, phasor=False)(x)
    torch.testing.assert_close(psi, vlbi.closure_phases(OBS, vis))
    torch.testing.assert_close(torch.exp(1j * psi), ClosurePhases(OBS)(x))
    torch.testing.assert_close(LogClosureAmplitudes(OBS)(x), vlbi.log_closure_amplitudes(OBS, vis))
    flux = TotalFlux(peak=0.3)(x)
    torch.testing.assert_close(flux, 0.3 * image().sum().reshape(1, 1))
    both = Stack([ClosurePhases(OBS, phasor=False), LogClosureAmplitudes(OBS), TotalFlux()])
    assert both.bind((1, 16, 16))(x).shape[1] == len(OBS.triangles) + len(OBS.quadrangles) + 1


def test_closures_in_closed_form() -> None:
    """Visibilities of known phases and sizes, three and four stations."""
    obs = observe(vlbi.EHT_2017[:4], vlbi.M87, [57854.2], elevation=-90)
    index = {
        (int(a), int(b)): m for m, (a, b) in enumerate(zip(obs.first, obs.second, strict=True))
    }
    phase, size = normal((6,), "phase"), normal((6,), "size").exp()
    vis = torch.polar(size, phase)[None]
    psi = vlbi.closure_phases(obs, vis)[0]
    turn = phase[index[0, 1]] + phase[index[1, 2]] - phase[index[0, 2]]
    assert abs(math.remainder(float(psi[0] - turn), 2 * math.pi)) < 1e-12
    c = vlbi.log_closure_amplitudes(obs, vis)[0]
    s = size.log()
    expected = s[index[0, 1]] + s[index[2, 3]] - s[index[0, 3]] - s[index[1, 2]]
    torch.testing.assert_close(c[0], expected)
    psi_std, c_std = vlbi.closure_std(obs, vis)
    parts = [(obs.std[index[b]] / size[index[b]]) ** 2 for b in ((0, 1), (1, 2), (0, 2))]
    torch.testing.assert_close(psi_std[0, 0], torch.stack(parts).sum().sqrt())
    parts = [(obs.std[index[b]] / size[index[b]]) ** 2 for b in ((0, 1), (2, 3), (0, 3), (1, 2))]
    torch.testing.assert_close(c_std[0, 0], torch.stack(parts).sum().sqrt())


def test_thermal_noise_gives_chi_squared_of_one() -> None:
    draws = 200
    x = 5 * image()  # Jy: enough for |V| > 10 sigma on nearly every baseline
    vis = Visibilities(OBS)(x)
    strong = (vis.abs() > 10 * OBS.std)[0]
    noise = OBS.std.expand(draws, -1)
    noisy = GaussianNoise(noise).sample(vis.expand(draws, -1), seed=3)
    assert abs(float(vlbi.chi2_visibilities(noisy, vis, OBS.std).mean()) - 1) < 0.02
    psi_std, c_std = vlbi.closure_std(OBS, vis)
    keep = strong[OBS.triangles].all(1)
    model, data = vlbi.closure_phases(OBS, vis)[:, keep], vlbi.closure_phases(OBS, noisy)[:, keep]
    assert int(keep.sum()) > 20
    chi2 = vlbi.chi2_closure_phases(model, data, psi_std[:, keep])
    # a mean over 200 draws of some ten independent scans' squares: 4 / (200 * 20)^1/2 = 0.06,
    # and the second order of the propagation, below 2 / 10^2
    assert abs(float(chi2.mean()) - 1) < 0.08
    phasors = vlbi.chi2_closure_phases(
        torch.exp(1j * model), torch.exp(1j * data), psi_std[:, keep]
    )
    torch.testing.assert_close(phasors, chi2)
    wrapped = vlbi.chi2_closure_phases(model + 2 * math.pi, data, psi_std[:, keep])
    torch.testing.assert_close(wrapped, chi2)
    keep = strong[OBS.quadrangles].all(1)
    model = vlbi.log_closure_amplitudes(OBS, vis)[:, keep]
    data = vlbi.log_closure_amplitudes(OBS, noisy)[:, keep]
    assert int(keep.sum()) > 10
    chi2 = vlbi.chi2_log_closure_amplitudes(model, data, c_std[:, keep])
    assert abs(float(chi2.mean()) - 1) < 0.1


def test_eht_imaging() -> None:
    """The field's own library: transform, coverage, noise, closure phases and amplitudes."""
    ehtim = pytest.importorskip("ehtim", reason="eht-imaging is not installed: extra [vlbi]")
    from ehtim.observing.obs_helpers import ftmatrix
    from ehtim.observing.pulses import trianglePulse2D

    x = normal((1, 1, 11, 14))
    uv = torch.stack([OBS.u, OBS.v], -1).numpy()
    matrix = torch.from_numpy(
        ftmatrix(160 * vlbi.MICROARCSECOND / 14, 14, 11, uv, pulse=trianglePulse2D)
    )
    ours = Visibilities(OBS, 160.0)(x)[0]
    assert float((matrix @ (x.flatten() + 0j) - ours).abs().max() / ours.abs().max()) < 1e-12

    table = np.array(
        [(s.name, *s.position, s.sefd, s.sefd, *[0] * 5) for s in vlbi.EHT_2017],
        dtype=ehtim.const_def.DTARR,
    )
    ra, dec = vlbi.M87[0] / 15, vlbi.M87[1]  # hours, degrees
    scans = {"tint": 60, "tadv": 5400, "tstart": 0.75, "tstop": 8.26, "mjd": 57854}
    theirs = ehtim.array.Array(table).obsdata(
        ra, dec, 229.1e9, 1.875e9, **scans, timetype="UTC", elevmin=15, elevmax=90
    )
    vis = Visibilities(OBS, 160.0)(image())[0]
    hours = torch.linspace(0.75, 8.25, 6)
    name = OBS.names
    place = {}
    for m in range(len(OBS)):
        when, one, two = (
            round(float(hours[OBS.scan[m]]), 2),
            name[OBS.first[m]],
            name[OBS.second[m]],
        )
        place[when, one, two], place[when, two, one] = (m, 1), (m, -1)
    assert len(theirs.data) == len(OBS)
    for row in theirs.data:
        m, sign = place[round(float(row["time"]), 2), row["t1"], row["t2"]]
        u, v = sign * float(OBS.u[m]), sign * float(OBS.v[m])
        assert math.hypot(row["u"] - u, row["v"] - v) < 1e-3 * math.hypot(u, v)
        # theirs is of Stokes I, the mean of two correlation products
        assert row["sigma"] * math.sqrt(2) == pytest.approx(float(OBS.std[m]), rel=1e-9)
        row["vis"] = complex(vis[m]) if sign > 0 else complex(vis[m]).conjugate()

    phases = {}
    for row in theirs.c_phases(count="max", ang_unit="rad"):
        when, a, b, c = round(float(row["time"]), 2), row["t1"], row["t2"], row["t3"]
        for order, sign in (((a, b, c), 1), ((a, c, b), -1)):
            for turn in range(3):
                phases[(when, *order[turn:], *order[:turn])] = sign * row["cphase"]
    for n, psi in enumerate(vlbi.closure_phases(OBS, vis[None])[0].tolist()):
        first, second, _ = OBS.triangles[n].tolist()
        a, b, c = name[OBS.first[first]], name[OBS.second[first]], name[OBS.second[second]]
        found = phases[round(float(hours[OBS.scan[first]]), 2), a, b, c]
        assert abs(cmath.exp(1j * found) - cmath.exp(1j * psi)) < 1e-9

    def pair(*items: object) -> frozenset[object]:
        return frozenset(items)

    amplitudes = {}
    for row in theirs.c_amplitudes(ctype="logcamp", count="max", debias=False):
        t1, t2, t3, t4 = (row[f"t{k}"] for k in range(1, 5))
        over, under = pair(pair(t1, t2), pair(t3, t4)), pair(pair(t1, t4), pair(t2, t3))
        when = round(float(row["time"]), 2)
        amplitudes[when, over, under] = row["camp"]
        amplitudes[when, under, over] = -row["camp"]
    for n, value in enumerate(vlbi.log_closure_amplitudes(OBS, vis[None])[0].tolist()):
        sides = [pair(name[OBS.first[m]], name[OBS.second[m]]) for m in OBS.quadrangles[n].tolist()]
        when = round(float(hours[OBS.scan[OBS.quadrangles[n][0]]]), 2)
        found = amplitudes[when, pair(*sides[:2]), pair(*sides[2:])]
        assert found == pytest.approx(value, abs=1e-9)


def test_bad_observations() -> None:
    with pytest.raises(InputError, match="no two stations"):
        observe(vlbi.EHT_2017, (187.7, -89.0), [57854.2], elevation=80)
    with pytest.raises(InputError, match="first must be < second"):
        vlbi.Observation(OBS.u, OBS.v, OBS.second, OBS.first, OBS.scan, OBS.std)
    with pytest.raises(InputError, match="twice"):
        vlbi.Observation(
            *(t[[0, 0]] for t in (OBS.u, OBS.v, OBS.first, OBS.second, OBS.scan, OBS.std))
        )
    with pytest.raises(InputError, match="one channel"):
        Visibilities(OBS)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="visibilities must be"):
        vlbi.closure_phases(OBS, torch.zeros(1, 3, dtype=torch.complex128))
