"""What is allowed and seldom meant is warned of, once, at the caller's line; presets never are."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from operator_battery import normal
from PIL import Image

import posterior
from posterior import operators, priors
from posterior.notices import PosteriorWarning
from posterior.operators import parse, table

ONES = torch.ones
MEAN = ONES(3, 3) / 9
POINT = torch.zeros(1, 1, 32, 32)
POINT[..., 5, 7] = 1
X = torch.zeros(2, 3, 32, 32)

WARNED: list[tuple[Callable[[], object], str]] = [
    (lambda: operators.Blur(ONES(3, 3)), "sums to 9, not to 1"),
    (lambda: operators.Blur(1.01 * MEAN), "sums to 1.01"),
    (lambda: operators.Blur(torch.stack([MEAN, 2 * MEAN])), "sums to 2"),
    (lambda: operators.SuperResolution(2, ONES(2, 2)), "sums to 4"),
    (lambda: operators.SpaceVaryingBlur(ONES(2, 2, 3, 3)), "sums to 9"),
    (lambda: operators.Mask(keep=POINT), r"observes 0.098 % only"),
    (lambda: operators.Mask(keep=torch.cat([ONES(1, 1, 32, 32), POINT])), "observes 0.098 %"),
    (lambda: operators.Mask(edit=1 - POINT), "observes 0.098 %"),
    (lambda: operators.Mask(edit=0 * POINT), "nothing to repaint"),
    (lambda: operators.Mask.random(keep_fraction=0.009), "observes 0.9 %"),
    (lambda: operators.Mask.box(size=(300, 300), at=(0, 1))(torch.zeros(1, 1, 300, 301)), "0.33 %"),
    (lambda: operators.Mask.outpaint(margin=15)(X), "observes 0.39 %"),
    (lambda: operators.SubsampledFourier(POINT), "observes 0.098 %"),
    (lambda: operators.PoissonDisc(101), "observes 0.99 %"),
    (lambda: operators.GaussianSensing(0.005), "observes 0.5 %"),
    (lambda: operators.StructuredSensing(0.005), "observes 0.5 %"),
]


@pytest.mark.parametrize("number", range(len(WARNED)))
def test_warned(number: int) -> None:
    call, message = WARNED[number]
    with pytest.warns(PosteriorWarning, match=message) as caught:
        call()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)


FINE: list[Callable[[], object]] = [
    lambda: operators.Blur(MEAN.half()),  # rounded
    lambda: operators.SpaceVaryingBlur(normal((2, 3, 3), "k"), normal((2, 8, 8), "maps")),
    lambda: operators.SpaceVaryingBlur.defocus(middle=0, corner=3),
    lambda: operators.SuperResolution(16),
    lambda: operators.Mask.box(size=32, at=(0, 1))(torch.zeros(1, 1, 32, 33)),
    lambda: operators.MotionBlur(15, 30),
    lambda: operators.Mask.random(keep_fraction=0.01)(X),
    lambda: operators.Mask.outpaint(margin=12)(X),
    lambda: operators.MRI(operators.EquispacedLines(12, seed=[0, 1])),
    lambda: operators.GaussianSensing(0.05),
    *(lambda line=line: parse(line.rsplit("e.g. ", 1)[1]) for _, _, line in table()),
]


@pytest.mark.parametrize("number", range(len(FINE)))
def test_not_warned(
    number: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    Image.new("L", (3, 3), 200).save("psf.png")  # of the usage of "blur"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FINE[number]()


def test_a_run_does_not_warn_again() -> None:
    """Rows are taken and shapes bound within a run: parts of what was warned of before."""
    kernels, keep = torch.stack([2 * MEAN, 3 * MEAN]), torch.cat([POINT, POINT.roll(3, -1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [
            operators.Blur(kernels),
            operators.Mask(keep=keep),
            operators.Mask.random(keep_fraction=0.005, seed=[0, 1]),
            operators.GaussianSensing(0.005),
            operators.SubsampledFourier(operators.PoissonDisc(200, 0.0, seed=[0, 1])),
        ]
    prior = priors.Gaussian(torch.zeros(1, 32, 32), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for op in parts:
            y = op(torch.zeros(2, 1, 32, 32))
            run = {"noise": 0.1, "method": "DDS", "steps": 2, "n": 2, "max_batch": 1}
            assert posterior.sample(prior, op, y, **run).draws.shape == (2, 2, 1, 32, 32)


def test_taken_rows_are_those_of_the_whole() -> None:
    kernels = normal((3, 1, 3, 5), "k")
    blur = operators.Blur(kernels, "circular", correlation=True)
    x = normal((3, 2, 8, 8))
    for k in range(3):
        alone = operators.Blur(kernels[k], "circular", correlation=True)
        assert torch.equal(blur.take([k])(x[k : k + 1]), alone(x[k : k + 1]))
