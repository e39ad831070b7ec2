"""Which numbers y has, and how a report puts the noise into words."""

from __future__ import annotations

import pytest
import torch

import posterior
from posterior import operators, priors
from posterior.operators import GaussianNoise, Operator, PoissonNoise
from posterior.restoration import prepare
from posterior.sampler import describe_noise

CT = operators.ParallelBeamCT(views=4)
BLUR = operators.GaussianBlur(1.0)
MRI = operators.MRI() @ operators.ComplexFromChannels()
LIGHT = operators.LinearLight()
UNITS: list[tuple[Operator, str]] = [
    (BLUR, "kept"),
    (operators.Mask.box(size=3) @ BLUR, "kept"),
    (operators.Stack([BLUR, operators.Luma()]), "kept"),
    (operators.PerChannel([BLUR, operators.Identity()]), "kept"),
    (operators.Slicewise(BLUR), "kept"),
    (operators.from_callable(lambda x: x, linear=True).bind((3, 4, 4)), "own"),
    (operators.JPEG(10), "image"),
    (BLUR @ operators.JPEG(10), "image"),
    (operators.nonlinear_blur(BLUR), "image"),  # light in between, display values at the end
    (BLUR @ LIGHT, "own"),
    (CT, "own"),
    (operators.Slicewise(CT), "own"),
    (operators.Stack([BLUR, CT]), "own"),
    (MRI, "own"),
    (operators.Scale(2.0) @ BLUR, "own"),
    (operators.from_matrix(torch.eye(4)), "own"),
]


@pytest.mark.parametrize("number", range(len(UNITS)))
def test_units(number: int) -> None:
    op, expected = UNITS[number]
    assert op.units == expected
    assert op.take([0]).units == expected


def test_noise_in_words() -> None:
    noise = GaussianNoise(0.1)
    assert describe_noise(noise, BLUR, (-1, 1)) == "0.1 in [-1, 1] = 0.05 of full scale"
    assert describe_noise(noise, BLUR, (0, 4)) == "0.1 in [0, 4] = 0.025 of full scale"
    assert describe_noise(noise, BLUR, None) == "0.1 in the units of y"
    assert describe_noise(noise, CT, (-1, 1)) == "0.1 in the units of y"
    assert describe_noise(noise, MRI, (-1, 1)) == "0.1 in the units of y"
    jpeg = operators.JPEG(10)
    assert describe_noise(noise, jpeg, None) == "0.1 in [-1, 1] = 0.05 of full scale"
    assert describe_noise(PoissonNoise(1.0), BLUR, (-1, 1)) == repr(PoissonNoise(1.0))
    assert describe_noise(None, None, (-1, 1)) is None


def test_a_sinogram_has_no_full_scale() -> None:
    prior = priors.Gaussian(torch.zeros(1, 8, 8), 1.0)
    prior.range = (-1.0, 1.0)
    for op, words in ((CT, "units of y"), (BLUR, "full scale")):
        y = op(torch.zeros(1, 1, 8, 8))
        samples = posterior.sample(prior, op, y, noise=0.5, method="DDS", steps=2)
        assert words in samples.provenance["noise"]
        assert ("full scale" in samples.report) == (op is BLUR)


def test_a_simulated_sinogram_has_none_either() -> None:
    prior = priors.Gaussian(torch.zeros(1, 16, 16), 0.1)
    image = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    for op, words in ((CT, "0.04 in the units of y"), (BLUR, "0.02 of full scale")):
        plan = prepare(image, op, prior=prior, simulate=True)
        assert words in plan.notes[0]
