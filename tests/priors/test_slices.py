"""A prior of volumes from one of slices: the block-diagonal law, slice by slice, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import posterior
from posterior import operators
from posterior.errors import CapabilityError, InputError, PosteriorError, ResumeError
from posterior.fingerprints import fingerprint
from posterior.priors import Denoised, Gaussian, GaussianMixture, NetworkPrior, Prior, Slices, check
from posterior.schedules import EDM, Discrete, VPLinear
from posterior.transitions import LearnedVariance

B, C, D, H, W = 3, 2, 5, 3, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    """Seeded standard normal numbers, float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spd(d: int) -> Tensor:
    """A full covariance."""
    a = random(d, d)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


class Net(nn.Module):
    """A convolution and a level, with twice the channels: its second half is a variance share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(C, 2 * C, 3, padding=1).double()
        with torch.no_grad():
            for k, weight in enumerate(self.parameters()):
                weight.copy_(0.3 * random(*weight.shape, seed=k))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(self.layer(x) + time[:, None, None, None].double() / 100)


def network() -> NetworkPrior:
    """Learns its variance, and runs in blocks of 4 that volumes of 5 slices straddle."""
    return NetworkPrior(
        Net(), "eps", Discrete.linear(50), event_shape=(C, H, W), rows=4, learned_variance=True
    )


def mixture() -> GaussianMixture:
    """Three components."""
    return GaussianMixture([0.2, 0.3, 0.5], 2 * random(3, C, H, W), 0.4, schedule=VPLinear())


SLICES = {
    "gaussian": lambda: Gaussian(random(C, H, W), spd(C * H * W), schedule=EDM()),
    "mixture": mixture,
    "network": network,
}


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_the_law_is_block_diagonal(axis: int, t: float) -> None:
    """Against one Gaussian of the whole volume: estimate and vector-Jacobian product."""
    mean, covariance = random(C, H, W), spd(C * H * W)
    prior = Slices(Gaussian(mean, covariance, schedule=VPLinear()), D, axis)
    blocks = torch.block_diag(*[covariance] * D)
    whole = Gaussian(mean.expand(D, C, H, W), blocks, schedule=VPLinear())
    x, u = random(B, D, C, H, W, seed=1), random(B, D, C, H, W, seed=2)

    def turned(v: Tensor) -> Tensor:
        return v.movedim(1, axis + 1)

    assert prior.event_shape == tuple(turned(x).shape[1:])
    estimate, pull = prior.vjp(turned(x), t)
    expected, pull_whole = whole.vjp(x, t)
    for name in ("x0", "eps", "score", "velocity", "v"):
        one, other = getattr(estimate, name), turned(getattr(expected, name))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pull(turned(u)), turned(pull_whole(u)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prior.denoise(turned(x), t).x0, estimate.x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slice_has_the_estimate_that_it_has_alone(name: str, dtype: torch.dtype) -> None:
    inner = SLICES[name]()
    prior = Slices(inner)
    x, u = random(B, C, D, H, W).to(dtype), random(B, C, D, H, W, seed=1).to(dtype)
    times = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for t in (0.5, times):
        estimate, pull = prior.vjp(x, t)
        assert torch.equal(estimate.x0, prior(x, t).x0)
        pulled = pull(u)
        for b in range(B):
            for z in range(D):
                time = t[b : b + 1] if isinstance(t, Tensor) else t
                alone, pull_alone = inner.vjp(x[b : b + 1, :, z], time)
                assert torch.equal(estimate.x0[b : b + 1, :, z], alone.x0)
                assert torch.equal(estimate.eps[b : b + 1, :, z], alone.eps)
                assert torch.equal(pulled[b : b + 1, :, z], pull_alone(u[b : b + 1, :, z]))
                if alone.variance_share is not None:
                    share = estimate.variance_share[b : b + 1, :, z]
                    assert torch.equal(share, alone.variance_share)


def test_the_noise_to_continue_with_comes_along() -> None:
    class Guided(Gaussian):
        def denoise(self, x_t: Tensor, t: float | Tensor) -> Denoised:  # type: ignore[override]
            return Denoised(super().denoise(x_t, t), eps_renoise=2 * x_t)

    x = random(B, C, D, H, W)
    assert torch.equal(Slices(Guided(random(C, H, W)))(x, 0.5).eps_renoise, 2 * x)


def test_an_evaluation_of_a_volume_counts_once() -> None:
    inner = network()
    prior = Slices(inner, D)
    run = posterior.sample(prior, n=3, steps=4, seed=0)
    assert run.provenance["nfe"] == 4
    assert (prior.counts.nfe, inner.counts.nfe) == (12, 12 * D)
    _, pull = prior.vjp(run.draws[:, 0].double(), 0.5)
    pull(run.draws[:, 0].double())
    assert (prior.counts.vjp, inner.counts.vjp) == (3, 3 * D)


def test_a_volume_does_not_depend_on_the_batch() -> None:
    """Learned variances and all, by the sampler: bit for bit, whatever moves together."""
    prior = Slices(network(), D)
    method = posterior.guidance.Guidance(transition=LearnedVariance(), spacing="trailing")
    run = {"method": method, "steps": 5, "seed": 3}
    whole = posterior.sample(prior, n=3, **run).draws
    assert whole.shape == (3, 1, C, D, H, W)
    for max_batch in (1, 2):
        assert torch.equal(posterior.sample(prior, n=3, max_batch=max_batch, **run).draws, whole)
    alone = posterior.sample(prior, n=1, first_draw=2, **run).draws
    assert torch.equal(alone[0], whole[2])


def test_conditions_belong_to_volumes() -> None:
    x = random(B, C, D, H, W)
    inner = mixture()
    prior = Slices(inner).given([2, 0, 1])
    assert (prior.measurements, Slices(inner).measurements) == (3, None)
    x0 = prior(x, 0.5).x0
    for b, component in enumerate([2, 0, 1]):
        alone = Slices(inner.given(component))(x[b : b + 1], 0.5).x0
        assert torch.equal(x0[b : b + 1], alone)
    taken = prior.take([1, 1, 2])
    assert torch.equal(taken(x[[1, 1, 2]], 0.5).x0, x0[[1, 1, 2]])
    assert taken.counts is prior.counts
    with pytest.raises(InputError, match="3 rows"):
        prior(x[:2], 0.5)
    draws = posterior.sample(prior, shape=(C, D, H, W), n=2, steps=4).draws
    assert draws.shape == (2, 3, C, D, H, W)
    with pytest.raises(CapabilityError):
        Slices(network()).given("a cat")


class Labelled(Prior):
    """A network with a label per row, in blocks of two rows."""

    schedule = VPLinear()
    rows = 2

    def __init__(self, labels: list[int] | None = None) -> None:
        super().__init__()
        self.labels = labels

    @property
    def measurements(self) -> int | None:
        return None if self.labels is None else len(self.labels)

    def given(self, condition: object, negative: object = None, scale: float = 1.0) -> Prior:
        return Labelled(condition)  # type: ignore[arg-type]

    def take(self, index: Sequence[int]) -> Prior:
        other = Labelled([self.labels[k] for k in index]) if self.labels else self
        other.counts = self.counts
        return other

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        label = torch.tensor(self.labels or [0] * len(x_t))
        return x_t.tanh() + label.to(x_t)[:, None, None, None]


def test_labels_of_volumes_reach_their_slices_in_every_block() -> None:
    inner = Labelled()
    prior = Slices(inner).given([5, 7, 9])
    x = random(B, C, D, H, W)
    expected = x.tanh() + torch.tensor([5.0, 7.0, 9.0])[:, None, None, None, None]
    torch.testing.assert_close(prior(x, 0.5).x0, expected)
    estimate, pull = prior.vjp(x, 0.5)
    assert torch.equal(estimate.x0, prior(x, 0.5).x0)
    torch.testing.assert_close(pull(x), x * (1 - x.tanh() ** 2))


def test_it_is_what_its_prior_is() -> None:
    inner = network()
    prior = Slices(inner, D)
    for name in ("schedule", "range", "device", "dtype", "graph_bytes", "evaluations"):
        assert getattr(prior, name) is getattr(inner, name)
    assert prior.needs_signal == inner.needs_signal
    assert prior.event_shape == (C, D, H, W)
    assert Slices(inner).event_shape is None
    inner.default_shape = (C, H, W)
    assert Slices(inner, D).default_shape == (C, D, H, W)
    assert Slices(inner).default_shape is None
    assert repr(Slices(inner, D, axis=2)) == f"Slices({inner!r}, depth=5, axis=2)"
    prints = [
        fingerprint(p) for p in (prior, Slices(network(), D), Slices(inner), Slices(inner, D, 2))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_check_finds_nothing() -> None:
    inner = Gaussian(random(C, H, W), 0.5)
    data = torch.stack([inner.sample(32, seed=z) for z in range(D)], 2)
    assert check(Slices(inner), data, verbose=False) == []


def test_shapes_that_do_not_fit_are_refused() -> None:
    prior = Slices(Gaussian(random(C, H, W)), D)
    free = Slices(Gaussian(random(C, H, W)))
    for event in ((C, D + 1, H, W), (C, D, H), (C, H, W), (C,)):
        with pytest.raises(InputError):
            prior.check_event(event)
    free.check_event((C, D + 1, H, W))
    for wrong in (random(B, C, D, H, W + 1), random(0, C, D, H, W), random(B, C, H, W), random(3)):
        for refuses in (prior, free):
            with pytest.raises(InputError, match="shape"):
                refuses(wrong, 0.5)
            with pytest.raises(InputError, match="shape"):
                refuses.vjp(wrong, 0.5)
    with pytest.raises(InputError, match="5 slices on axis 1"):
        posterior.sample(prior, shape=(C, D + 1, H, W))
    # a free depth is that of the measurement, where the operator knows the shape of its x
    seen = posterior.sample(
        free, operators.Identity(), random(1, C, D + 1, H, W), noise=0.1, steps=2, method="dds"
    )
    assert seen.draws.shape == (1, 1, C, D + 1, H, W)


def test_arguments_that_do_not_fit_are_refused() -> None:
    inner = Gaussian(random(C, H, W))
    for depth, axis in ((0, 1), (2.5, 1), (D, -1), (D, 4), (D, True)):
        with pytest.raises(PosteriorError):
            Slices(inner, depth, axis)  # type: ignore[arg-type]
    with pytest.raises(PosteriorError, match="must be a Prior"):
        Slices(lambda x, t: x)  # type: ignore[arg-type]
    latent = Gaussian(random(C, H, W))
    latent.codec = object()  # type: ignore[assignment]
    with pytest.raises(CapabilityError, match="latent"):
        Slices(latent)


def test_a_resume_knows_its_prior(tmp_path) -> None:
    prior: Prior = Slices(Gaussian(random(C, H, W)), D)
    run = {"steps": 4, "n": 2}
    posterior.sample(prior, checkpoint=tmp_path, callback=lambda s: s.index == 1, **run)
    whole = posterior.sample(prior, **run).draws
    assert torch.equal(posterior.sample(prior, resume=tmp_path, **run).draws, whole)
    other = Slices(Gaussian(random(C, H, W, seed=1)), D)
    with pytest.raises(ResumeError, match="prior"):
        posterior.sample(other, resume=tmp_path, **run)
