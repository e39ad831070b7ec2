"""Emission tomography: expected counts, their Poisson noise, and bad parameters."""

from __future__ import annotations

import pytest
import torch
from operator_battery import normal

import posterior
from posterior import priors
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators import (
    Emission,
    HDRClipping,
    Identity,
    ParallelBeamCT,
    PoissonNoise,
    SubsampledFourier,
)

CT = ParallelBeamCT(views=5, size=6)


def test_expected_counts() -> None:
    x = normal((2, 1, 6, 6)).tanh()
    lines = CT(torch.ones_like(x))[:1]
    survival = (-0.1 * lines[0]).exp()
    pet = Emission(CT, sensitivity=40 * survival, background=0.5)
    torch.testing.assert_close(pet(x), 40 * survival * CT((x + 1) / 2) + 0.5)
    assert float(pet(-torch.ones_like(x)).sub(0.5).abs().max()) == 0  # no activity
    plain = Emission(CT, low=0)
    torch.testing.assert_close(plain(x), CT(x))


def test_a_draw_from_counts() -> None:
    """The reconstruction explains the counts: the residual is of the size of their noise."""
    pet = Emission(CT, sensitivity=200.0, background=2.0)
    noise = PoissonNoise(rate=1, low=0, peak=1)
    prior = priors.Gaussian(torch.zeros(1, 6, 6), 0.1)
    y = noise.sample(pet(prior.sample(1, seed=0)), seed=1)
    assert torch.equal(y, y.round())
    draws = posterior.sample(prior, pet, y, noise=noise, method="MMPS", steps=20, n=2, seed=0)
    before = (pet(torch.zeros(1, 1, 6, 6)) - y).square().sum()
    after = (pet(draws.draws[0].to(y)) - y).square().sum()
    assert float(after) < 3 * float(y.sum()) < float(before)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Emission(abs), InputTypeError, "operator"),  # type: ignore[arg-type]
        (lambda: Emission(HDRClipping()), CapabilityError, "linear"),
        (lambda: Emission(CT, -1.0), InputError, "sensitivity"),
        (lambda: Emission(CT, 0.0), InputError, "nothing would be measured"),
        (lambda: Emission(CT, torch.full((2,), torch.nan)), InputError, "finite"),
        (lambda: Emission(CT, 1j * torch.ones(2)), InputTypeError, "real"),
        (lambda: Emission(CT, background=-0.1), InputError, "background"),
        (lambda: Emission(CT, low=1), InputError, "low"),
        (lambda: Emission(CT, torch.ones(3))(torch.zeros(1, 1, 6, 6)), InputError, "a row of y"),
        (lambda: Emission(SubsampledFourier())(torch.zeros(1, 1, 6, 6)), InputError, "real"),
        (lambda: Emission(Identity())(torch.zeros(1).to("meta")), InputError, "meta"),
    ],
)
def test_bad_input(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
