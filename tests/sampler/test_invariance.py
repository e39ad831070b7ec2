"""A draw does not depend on its neighbours: bit for bit, whatever the batch, chunk or numbering."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.guidance.base import Guidance
from posterior.priors.base import Prior
from posterior.schedules import EDM, Discrete, RectifiedFlow, VPCosine, VPLinear
from posterior.transitions import DDIM, DDPM, Heun, Renoise

SHAPE = (3, 8, 8)
METHODS = [
    guidance.DPS(),
    guidance.DPS(likelihood="norm"),
    guidance.DPS(clamp=True, scale=0.5),
    guidance.DPS.preset("code/ffhq/gaussian-blur"),
]


def mixture() -> Prior:
    """Four components in (3, 8, 8)."""
    means = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    return priors.GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4]), means, 0.05)


def measured(
    prior: Prior, operator: operators.Operator, count: int, shape: tuple[int, ...] = SHAPE
) -> Tensor:
    """Noisy measurements of `count` draws."""
    x = posterior.sample(prior, n=count, shape=shape, steps=5, seed=11).draws[:, 0]
    return posterior.GaussianNoise(0.1).sample(operator(x), seed=5)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_do_not_depend_on_n_batch_or_neighbours(method: Guidance, dtype: torch.dtype) -> None:
    prior = mixture()
    blur = operators.GaussianBlur(sigma=1.0)
    y = measured(prior, blur, 2).to(dtype)
    run = {"noise": 0.1, "method": method, "steps": 6}
    whole = posterior.sample(prior, blur, y, n=8, seed=3, **run).draws
    assert whole.shape == (8, 2, *SHAPE)
    assert whole.dtype == dtype
    assert torch.isfinite(whole).all()
    for max_batch in (1, 3, 8, 100):
        again = posterior.sample(prior, blur, y, n=8, seed=3, max_batch=max_batch, **run).draws
        assert torch.equal(again, whole), f"max_batch={max_batch}"
    for j in range(8):
        alone = posterior.sample(prior, blur, y, n=1, seed=3, first_draw=j, **run).draws
        assert torch.equal(alone[0], whole[j]), f"draw {j}"
    for b in range(2):
        alone = posterior.sample(prior, blur, y[b : b + 1], n=8, seed=3 + b, **run).draws
        assert torch.equal(alone[:, 0], whole[:, b]), f"measurement {b}"
    listed = posterior.sample(prior, blur, y, n=8, seed=[3, 4], **run).draws
    assert torch.equal(listed, whole)


def test_different_draws_and_seeds_differ() -> None:
    prior = mixture()
    blur = operators.GaussianBlur(sigma=1.0)
    y = measured(prior, blur, 1)
    draws = posterior.sample(prior, blur, y, noise=0.1, steps=6, n=3, seed=0).draws
    other = posterior.sample(prior, blur, y, noise=0.1, steps=6, n=3, seed=1).draws
    assert len({float(d.sum()) for d in torch.cat([draws, other]).flatten(1)}) == 6


def test_per_measurement_masks_are_paired_with_their_rows() -> None:
    prior = mixture()
    keep = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    masks = operators.Mask(keep=keep)
    y = measured(prior, masks, 2)
    run = {"noise": 0.1, "steps": 6, "n": 3}
    together = posterior.sample(prior, masks, y, seed=7, max_batch=4, **run).draws
    for b in range(2):
        alone = operators.Mask(keep=keep[b : b + 1])
        draws = posterior.sample(prior, alone, y[b : b + 1], seed=7 + b, **run).draws
        assert torch.equal(draws[:, 0], together[:, b])


def test_hidden_pixels_do_not_matter() -> None:
    prior = mixture()
    mask = operators.Mask.random(keep_fraction=0.5, seed=0)
    y = measured(prior, mask, 1)
    hidden = mask(torch.ones_like(y)) == 0
    changed = torch.where(hidden, 5.0, y)
    for method in METHODS:
        run = {"noise": 0.1, "steps": 5, "method": method}
        first = posterior.sample(prior, mask, y, **run)
        second = posterior.sample(prior, mask, changed, **run)
        assert torch.equal(first.draws, second.draws)
        assert torch.equal(first.diagnostics["residual"], second.diagnostics["residual"])


@pytest.mark.parametrize("scale", [0, 0.0])
@pytest.mark.parametrize("likelihood", ["gaussian", "norm"])
def test_zero_guidance_is_the_unconditional_sampler(likelihood: str, scale: float) -> None:
    prior = mixture()
    blur = operators.GaussianBlur(sigma=1.0)
    y = measured(prior, blur, 2)
    plain = posterior.sample(prior, shape=SHAPE, n=4, seed=3, steps=6).draws
    method = guidance.DPS(scale=scale, likelihood=likelihood)
    guided = posterior.sample(prior, blur, y[:1], noise=0.1, method=method, n=4, seed=3, steps=6)
    assert torch.equal(guided.draws, plain)
    assert guided.provenance["vjp"] == 0


@pytest.mark.parametrize(
    "method",
    [
        *(Guidance(transition=rule) for rule in (DDPM, DDIM(0.0), DDIM(0.6), Heun(), Renoise())),
        *(guidance.DPS(transition=rule) for rule in (DDPM, DDIM(0.0), DDIM(0.6), Renoise())),
        guidance.MMPS(),
        guidance.DDS(),
        guidance.DAPS(spread=0.5, ode_steps=2, ode_end=0.1),  # where no range ends
        guidance.DAPS(spread=0.5, kernel="langevin"),
        guidance.REDdiff(),
        guidance.EnKG(particles=8),
        guidance.TDS(particles=4, spread=0.5),
    ],
    ids=repr,
)
def test_schedules_with_one_ratio_grid_agree(method: Guidance) -> None:
    """VP, VE and flow describe one diffusion: same ratios, same noise, same draws to rounding.

    Not of DPS "norm" and MCG, whose step is a length in x_s = alpha x0 + sigma z.
    """
    ratios = torch.logspace(1.5, -2, 12, dtype=torch.float64).tolist()
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    operator = operators.from_matrix(torch.randn(2, 5, generator=generator, dtype=torch.float64))
    y = operator(means[:1]) + 0.1
    draws = []
    for schedule in (VPLinear(), VPCosine(), EDM(), RectifiedFlow(), RectifiedFlow(shift=3.0)):
        prior = priors.GaussianMixture(weights, means, 0.3, schedule=schedule)
        levels = [schedule.level_of_ratio(r) for r in ratios]
        # the ratio of the noise that the run starts from must agree too: x / alpha
        grid = [*levels, (0.0, 1.0, 0.0)]
        if "measurement" in method.needs:
            run = posterior.sample(prior, operator, y, noise=0.2, n=4, grid=grid, method=method)
        else:
            run = posterior.sample(prior, shape=(5,), n=4, grid=grid, method=method)
        draws.append(run.draws)
    for other in draws[1:]:
        torch.testing.assert_close(other, draws[0], rtol=0, atol=1e-12)


def test_discrete_table_agrees_with_its_levels() -> None:
    """A table's own levels as an explicit grid give the named grid's draws."""
    schedule = Discrete.linear()
    prior = priors.Gaussian(torch.zeros(4, dtype=torch.float64), 1.0, schedule=schedule)
    named = posterior.sample(prior, shape=(4,), n=2, steps=10, grid="trailing")
    levels = named.provenance["levels"]
    explicit = posterior.sample(prior, shape=(4,), n=2, grid=[tuple(v) for v in levels])
    assert torch.equal(named.draws, explicit.draws)


def test_global_generator_is_neither_read_nor_touched() -> None:
    prior = mixture()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = posterior.sample(prior, shape=SHAPE, n=2, steps=4).draws
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(posterior.sample(prior, shape=SHAPE, n=2, steps=4).draws, first)


def test_float32_and_float64_get_the_same_noise() -> None:
    prior = mixture()
    blur = operators.GaussianBlur(sigma=1.0)
    y = measured(prior, blur, 1)
    run = {"noise": 0.5, "steps": 6, "n": 2}
    single = posterior.sample(prior, blur, y, **run).draws
    double = posterior.sample(prior, blur, y.double(), **run).draws
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=1e-3)
