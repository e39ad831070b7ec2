"""Feature operators: invariances that define each statistic, gradients, rows, faults."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import posterior
from posterior import guidance, operators, priors
from posterior.errors import InputError, InputTypeError
from posterior.operators import FeatureMatch, SteerableFeatures

STATISTICS = ["maps", "gram", "moments", "self-similarity"]


def normal(seed: int, *shape: int) -> Tensor:
    """Seeded standard normal test data, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(statistic: str, **settings: object) -> FeatureMatch:
    """The statistic of x itself."""
    return FeatureMatch(statistic, lambda x: x, **settings)  # type: ignore[arg-type]


def shuffled(x: Tensor, seed: int = 0) -> Tensor:
    """The positions of x in another order."""
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
    return x.flatten(2)[..., order].reshape(x.shape)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("size", [None, 24])
def test_the_contract_holds(statistic: str, size: int | None) -> None:
    """Gradient, rows, untouched inputs: everything that `operators.check` looks at."""
    operator = FeatureMatch(statistic, SteerableFeatures(scales=3), size=size)  # type: ignore[arg-type]
    assert operators.check(operator, shape=(2, 3, 16, 20)) == []


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_reference_is_a_minimum(statistic: str) -> None:
    operator, x = FeatureMatch(statistic), normal(0, 1, 3, 32, 32)  # type: ignore[arg-type]
    y, pull = operator.vjp(x)
    assert torch.equal(operator(x), y)
    slope = pull(y - operator(x))
    assert torch.equal(slope, torch.zeros_like(x))
    assert bool(torch.isfinite(pull(torch.ones_like(y))).all())
    flat, pull = operator.vjp(torch.zeros_like(x))  # where roots have no slope
    assert bool(torch.isfinite(pull(torch.ones_like(flat))).all())


def test_style_does_not_know_positions() -> None:
    x = normal(1, 2, 5, 6, 7)
    for statistic in ("gram", "moments"):
        operator = bare(statistic)
        torch.testing.assert_close(operator(shuffled(x)), operator(x))
    assert not torch.allclose(bare("maps")(shuffled(x)), bare("maps")(x))


def test_gram_is_that_of_gatys() -> None:
    x, other = normal(2, 1, 4, 5, 6), normal(3, 1, 4, 5, 6)
    gram = bare("gram")
    distance = (gram(x) - gram(other)).square().sum()
    f, g = x.flatten(2)[0], other.flatten(2)[0]
    expected = (f @ f.T - g @ g.T).square().sum() / (4 * 4**2 * 30**2)
    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(gram(3 * x), 9 * gram(x))
    constant = torch.ones(1, 1, 5, 6) * normal(4, 1, 4, 1, 1)
    assert torch.linalg.matrix_rank(gram(constant).reshape(4, 4)) == 1
    # an image of another size with the same texture has the same style
    torch.testing.assert_close(gram(x.repeat(1, 1, 2, 3)), gram(x))


def test_moments_are_mean_and_standard_deviation() -> None:
    x = normal(5, 2, 4, 5, 6)
    expected = torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], 1) / 2
    torch.testing.assert_close(bare("moments")(x), expected)


def test_self_similarity_is_a_table_of_cosines() -> None:
    x = normal(6, 1, 4, 3, 5)
    operator = bare("self-similarity")
    table = 15 * operator(x).reshape(15, 15)
    torch.testing.assert_close(table, table.T)
    torch.testing.assert_close(table.diagonal(), torch.ones(15, dtype=torch.float64))
    assert float(table.abs().max()) <= 1 + 1e-9
    turn = torch.linalg.qr(normal(7, 4, 4)).Q
    louder = 1 + normal(8, 1, 1, 3, 5).abs()
    turned = louder * torch.einsum("dc,bchw->bdhw", turn, x)
    torch.testing.assert_close(operator(turned), operator(x))
    other = normal(9, 1, 4, 3, 5)
    before = (operator(x) - operator(other)).norm()
    torch.testing.assert_close((operator(shuffled(x)) - operator(shuffled(other))).norm(), before)
    assert not torch.allclose((operator(shuffled(x)) - operator(other)).norm(), before)


def test_embedding_is_an_angle() -> None:
    weight = normal(10, 7, 12)
    operator = FeatureMatch("embedding", lambda x: x.flatten(1) @ weight.T)
    x, other = normal(11, 1, 3, 2, 2), normal(12, 1, 3, 2, 2)
    e, f = (weight @ v.flatten() for v in (x, other))
    cosine = (e @ f) / (e.norm() * f.norm())
    torch.testing.assert_close((operator(x) - operator(other)).square().sum(), 2 - 2 * cosine)
    torch.testing.assert_close(operator(5 * x), operator(x))


def test_maps_compare_directions_of_channels() -> None:
    x, other = normal(13, 1, 4, 3, 5), normal(14, 1, 4, 3, 5)
    cosine = torch.nn.functional.cosine_similarity(x, other, dim=1).mean()
    distance = (bare("maps")(x) - bare("maps")(other)).square().sum()
    torch.testing.assert_close(distance, 2 - 2 * cosine)


def test_weights_are_of_squared_distances() -> None:
    x, other = normal(15, 1, 3, 24, 24), normal(16, 1, 3, 24, 24)

    def distance(**settings: object) -> Tensor:
        operator = FeatureMatch("gram", SteerableFeatures(scales=3), **settings)  # type: ignore[arg-type]
        return (operator(x) - operator(other)).square().sum()

    single = [distance(weights=w) for w in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    expected = 2 * single[0] + single[1] / 2 + 3 * single[2]
    torch.testing.assert_close(distance(weights=[2, 0.5, 3]), expected)
    torch.testing.assert_close(distance(), sum(single) / 3)


def test_edges_turn_with_the_image() -> None:
    """A quarter turn exchanges the horizontal and the vertical derivative at every scale."""
    features = SteerableFeatures(scales=3, orientations=2)
    x = normal(17, 1, 1, 33, 33)  # odd sides: every second pixel is the same after a turn
    for layer, turned in zip(features(x), features(x.rot90(1, (2, 3))), strict=True):
        back = turned.rot90(-1, (2, 3))
        torch.testing.assert_close(back[:, [0, 2, 1]], layer)
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 1, 32, 32)
    slope = features(ramp)[0][0, 1, 8:-8, 8:-8]
    torch.testing.assert_close(slope, torch.full_like(slope, ((1 / 31) ** 2 + 1e-4) ** 0.5))


def test_normalisation_is_that_of_the_network() -> None:
    seen: list[Tensor] = []

    def extractor(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = normal(18, 1, 3, 8, 12)
    FeatureMatch("gram", extractor, mean=mean, std=std, size=16)(x)
    assert seen[0].shape == (1, 3, 16, 24)
    white = FeatureMatch("gram", extractor, mean=mean, std=std)
    white(torch.ones(1, 3, 8, 8))
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(seen[1][0, :, 0, 0], expected)


def test_a_network_is_frozen_and_a_style_can_be_sampled() -> None:
    """Guided towards the style of a reference, draws are nearer to it than the prior's own."""
    net = nn.Conv2d(1, 4, 3, padding=1)
    nn.init.orthogonal_(net.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(net.bias)
    operator = FeatureMatch("moments", net)
    assert not any(p.requires_grad for p in net.parameters())
    reference = 0.5 + 0.1 * normal(19, 1, 1, 8, 8).float()
    y = operator(reference)
    prior = priors.Gaussian(torch.zeros(1, 8, 8), 1.0)
    run = {"steps": 30, "n": 8}
    styled = posterior.sample(
        prior, operator, y, noise=0.05, method=guidance.DPS(), shape=(1, 8, 8), **run
    ).draws[:, 0]
    free = posterior.sample(prior, shape=(1, 8, 8), **run).draws[:, 0]
    near, far = ((operator(d) - y).norm(dim=1).mean() for d in (styled, free))
    assert float(near) < 0.6 * float(far)


BAD = {
    "statistic": ({"statistic": "gramm"}, InputError, "gram"),
    "extractor": ({"extractor": 3}, InputTypeError, "callable"),
    "weights": ({"weights": [0, 0]}, InputError, "not all 0"),
    "negative weight": ({"weights": [1, -1]}, InputError, ">= 0"),
    "mean alone": ({"mean": [0.5]}, InputError, "together"),
    "size": ({"size": 0}, InputError, "size"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name: str) -> None:
    change, error, words = BAD[name]
    with pytest.raises(error, match=words):
        FeatureMatch(**{"statistic": "gram", **change})  # type: ignore[arg-type]


def test_bad_images_and_layers_are_refused() -> None:
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(InputError, match="at least 24 pixels"):
        FeatureMatch("gram")(x)
    with pytest.raises(InputError, match="takes layers"):
        FeatureMatch("gram", lambda x: x.flatten(1))(x)
    with pytest.raises(InputError, match="2 weights for 1 layers"):
        FeatureMatch("gram", lambda x: x, weights=[1, 1])(x)
