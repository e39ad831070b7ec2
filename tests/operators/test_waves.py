"""Acoustic waves: arrival times, gradients, rows; and what is said without deepwave."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from operator_battery import normal

from posterior import rows
from posterior.errors import CapabilityError, InputError
from posterior.operators import AcousticWaves

needs_deepwave = pytest.mark.skipif(
    importlib.util.find_spec("deepwave") is None,
    reason="deepwave is not installed: extra [waves], a wheel of 100 MB",
)
SURVEY = {"spacing": 20.0, "step": 0.004, "samples": 40, "frequency": 8.0, "shots": 2}


def test_without_deepwave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepwave", None)
    with pytest.raises(CapabilityError, match=r"posterior-sampling\[waves\]"):
        AcousticWaves(**SURVEY)


@needs_deepwave
def test_waves_arrive_in_time() -> None:
    """Uniform speeds: between two receivers the wave takes distance / speed, to half a sample."""
    survey = AcousticWaves(
        20.0, 0.002, 700, 8.0, shots=1, receivers=None, depth=5, low=1500, high=4500
    )
    x = torch.stack([torch.full((1, 11, 81), v) for v in (-2 / 3, 0.0)]).double()  # 2000 and 3000
    y = survey(x)
    assert y.shape == survey.range_shape(tuple(x.shape)) == (2, 1, 81, 700)
    for trace, speed in zip(y[:, 0], (2000.0, 3000.0), strict=True):
        near, far = trace[60], trace[75]  # 400 m and 700 m from the shot in column 40
        spectra = torch.fft.rfft(far, 1400) * torch.fft.rfft(near, 1400).conj()
        lag = int(torch.fft.irfft(spectra, 1400).argmax())
        assert abs(lag - 300 / speed / 0.002) <= 0.5
    # a delayed pulse and nothing else: the sides do not reflect
    assert float(y[1, 0, 75, 450:].abs().max()) < 0.02 * float(y[1, 0, 75].abs().max())


@needs_deepwave
def test_gradient_and_taylor_remainder() -> None:
    survey = AcousticWaves(**SURVEY, receivers=4)  # ends amid the waves
    x, d = 0.3 * normal((1, 1, 9, 12)), normal((1, 1, 9, 12), "d")
    y, pull = survey.vjp(x)
    v = normal(tuple(y.shape), "v")
    slope = rows.dot(d, pull(v))
    rest = [float((rows.dot(survey(x + h * d) - y, v) - h * slope).abs()) for h in (0.02, 0.01)]
    assert 1.9 < torch.tensor(rest[0] / rest[1]).log2() < 2.1
    difference = (survey(x + 1e-5 * d) - survey(x - 1e-5 * d)) / 2e-5
    error = float((rows.dot(difference, v) - slope).abs())
    assert error <= 1e-7 * float(rows.norm(difference) * rows.norm(v))


@needs_deepwave
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_alone_equal_rows_in_a_batch(dtype: torch.dtype) -> None:
    survey = AcousticWaves(**SURVEY)
    x = normal((3, 1, 9, 12), "x", dtype)  # some speeds are cut
    before = x.clone()
    y, pull = survey.vjp(x)
    v = normal(tuple(y.shape), "v", dtype)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    for k in range(3):
        one, pull_one = survey.vjp(x[k : k + 1].clone())
        assert torch.equal(one, y[k : k + 1])
        assert torch.equal(pull_one(v[k : k + 1].clone()), pull(v)[k : k + 1])
    assert torch.equal(x, before)


@needs_deepwave
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": 0}, "spacing must be > 0"),
        ({"step": -1}, "step"),
        ({"samples": 1}, "samples"),
        ({"shots": 0}, "shots"),
        ({"receivers": 0}, "receivers"),
        ({"low": 4500.0}, "low must be < high"),
    ],
)
def test_bad_parameters(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AcousticWaves(**SURVEY | change)


@needs_deepwave
def test_bad_images() -> None:
    survey = AcousticWaves(**SURVEY)
    for shape in ((1, 2, 9, 12), (1, 9, 12), (1, 1, 1, 12)):
        with pytest.raises(InputError):
            survey(torch.zeros(shape))
    with pytest.raises(InputError, match="real"):
        survey(torch.zeros(1, 1, 9, 12) * 1j)
    with pytest.raises(InputError, match="more receivers than the 12 columns"):
        AcousticWaves(**SURVEY, receivers=13)(torch.zeros(1, 1, 9, 12))
