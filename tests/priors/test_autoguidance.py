"""Autoguidance against its equation on Gaussians, where everything is known."""

import math

import pytest
import torch

import posterior
from posterior import guidance, operators
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.priors import Autoguided, Gaussian, GaussianMixture, PhotoPrior, Slices, check
from posterior.priors.photo import PhotoConfig, PhotoNet
from posterior.schedules import VE, RectifiedFlow

SCHEDULE = VE(0.01, 100.0)


def normal(std: float) -> Gaussian:
    return Gaussian(torch.zeros(3, dtype=torch.float64), std**2, schedule=SCHEDULE)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.7, 3.0])
def test_the_equation(scale: float) -> None:
    """D_weak + w (D_strong - D_weak), with D = s^2 / (s^2 + r^2) x of a Gaussian of deviation s."""
    prior, x, r = Autoguided(normal(0.5), normal(1.5), scale), torch.ones(2, 3).double(), 0.8
    t = SCHEDULE.time_of_ratio(r)
    strong, weak = (s**2 / (s**2 + r**2) for s in (0.5, 1.5))
    want = weak + scale * (strong - weak)
    estimate, pull = prior.vjp(x, t)
    assert torch.allclose(estimate.x0, want * x, rtol=1e-10)
    assert torch.allclose(pull(x), want * x, rtol=1e-10)
    assert (prior.counts.nfe, prior.counts.vjp, prior.evaluations) == (4, 4, 2)


def test_guidance_narrows_the_draws_as_its_flow_does() -> None:
    """dx/dr = (x - D(x; r)) / r is linear here, so that draws are Gaussian of a known deviation.

    With D = d(r) x, ln x changes by the integral of (1 - d) / r, which is, of one prior, that of
    r / (s^2 + r^2): x scales as sqrt(s^2 + r^2), and under guidance by w as its w-th power over the
    (w - 1)-th power of the weak one. From r = R to 0: 1 % of steps and start, 6 % of 1200 numbers.
    """
    w, top = 2.0, 100.0
    prior = Autoguided(normal(0.5), normal(0.8), w)
    draws = posterior.sample(prior, n=400, shape=(3,), steps=60, seed=0).draws
    shrink = {s: s / math.hypot(s, top) for s in (0.5, 0.8)}
    want = top * shrink[0.5] ** w * shrink[0.8] ** (1 - w)
    assert want < 0.5
    assert float(draws.std()) == pytest.approx(want, rel=0.07)


def test_conditions_are_those_of_both() -> None:
    """Per measurement too, and the parts follow in `take` and in a posterior run."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    strong, weak = (
        GaussianMixture([0.5, 0.5], means, variance, schedule=SCHEDULE) for variance in (0.1, 0.5)
    )
    prior = Autoguided(strong, weak, 1.5)
    one, x = prior.given(1), torch.zeros(1, 2)
    want = weak.given(1)(x, 0.5).x0
    want = want + 1.5 * (strong.given(1)(x, 0.5).x0 - want)
    assert torch.allclose(one(x, 0.5).x0, want)
    with pytest.raises(InputError, match="no negative= and no scale="):
        prior.given(1, scale=2.0)
    operator = operators.from_matrix(torch.tensor([[1.0, 0.0]]))
    assert check(Autoguided(normal(0.5), normal(0.5)), verbose=False) == []
    y = operator(means[:1])
    draws = posterior.sample(one, operator, y, noise=0.5, method=guidance.DPS(), steps=5, n=2)
    assert draws.draws.shape == (2, 1, 2)
    assert draws.provenance["nfe"] == 10


def test_a_network_and_its_smaller_sister() -> None:
    """Blocks and sizes of the strong one; volumes of it; the weights of both count in a resume."""
    torch.manual_seed(0)
    strong, weak = (
        PhotoPrior(PhotoNet(PhotoConfig((8, width), (1, 1), (1, 1), embedding=8)))
        for width in (16, 8)
    )
    prior = Autoguided(strong, weak)
    assert (prior.rows, prior.graph_bytes) == (1, strong.graph_bytes + weak.graph_bytes)
    x = torch.zeros(2, 3, 8, 8)
    assert torch.equal(prior(x, 0.5).x0[:1], prior(x[:1], 0.5).x0)
    assert Slices(prior).evaluations == 2
    assert prior.to("cpu") is prior
    with pytest.raises(InputError, match="at least"):
        prior.check_event((3, 4, 4))


def test_wrong_parts() -> None:
    flow = Gaussian(torch.zeros(3), 1.0, schedule=RectifiedFlow())
    with pytest.raises(CapabilityError, match="other noise levels"):
        Autoguided(normal(1.0), flow)
    with pytest.raises(InputTypeError, match="expected a Prior"):
        Autoguided(normal(1.0), "photo")  # type: ignore[arg-type]
    for scale in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="scale must be"):
            Autoguided(normal(1.0), normal(2.0), scale)
