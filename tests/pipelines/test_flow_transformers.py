"""Stable Diffusion 3 and FLUX: the same samples as at home, and exact draws of a Gaussian."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from pipeline_helpers import (
    autoencoder,
    drawing,
    flux,
    same_path,
    seen_by,
    stable_diffusion_3,
    start,
)
from torch import Tensor, nn

import posterior
from posterior import grids, guidance, operators, priors
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Estimate
from posterior.guidance.base import Guidance
from posterior.priors.pipelines import flow_transformers as flows
from posterior.priors.pipelines.schedule import read
from posterior.schedules import CLEAN, RectifiedFlow
from posterior.streams import Noise

EVENT = (4, 8, 12)
FLUX = {"use_dynamic_shifting": True, "shift": 3.0}


@pytest.fixture(scope="module")
def sd3() -> StableDiffusion3Pipeline:
    return stable_diffusion_3()


@pytest.fixture(scope="module")
def dev() -> FluxPipeline:
    return flux()


@pytest.fixture(scope="module")
def schnell() -> FluxPipeline:
    return flux(scheduler=FlowMatchEulerDiscreteScheduler(), guidance_embeds=False)


def run(prior: Any, steps: int, event: tuple[int, ...] = EVENT) -> posterior.Samples:
    """One draw as the home library makes it, of any size."""
    home = prior.home(shape=event)
    return posterior.sample(prior, method=home, steps=steps, seed=0, shape=event)


def at_home(pipe: Any, steps: int, event: tuple[int, ...], **calls: Any) -> Tensor:
    """The latents of the pipeline itself, from our noise."""
    x = start(event)
    height, width = 2 * event[1], 2 * event[2]  # the autoencoder's factor is 2
    size = {"height": height, "width": width, "num_inference_steps": steps}
    if isinstance(pipe, FluxPipeline):
        x = pipe._pack_latents(x, 1, *event)
    latents = pipe("a cat", latents=x, output_type="latent", **size, **calls).images
    if isinstance(pipe, FluxPipeline):
        latents = pipe._unpack_latents(latents, height, width, 2)
    return latents


def compare(
    pipe: Any,
    steps: int,
    scale: float = 1.0,
    negative: str | None = None,
    event: tuple[int, ...] = EVENT,
) -> None:
    """Latents, decoded images and every call of the network, to 1e-4 of the largest entry."""
    guided = pipe.transformer.config.get("guidance_embeds", True)
    calls = {"guidance_scale" if guided else "true_cfg_scale": scale, "negative_prompt": negative}
    with seen_by(pipe.transformer) as home:
        latents = at_home(pipe, steps, event, **calls)
    prior = posterior.prior_from_pipeline(pipe).given("a cat", negative, scale)
    prior.one_batch = isinstance(pipe, StableDiffusion3Pipeline)  # FLUX asks one by one
    with seen_by(prior.module) as here:
        samples = run(prior, steps, event)
    assert samples.latents is not None
    assert float((samples.latents[0] - latents).abs().max()) < 1e-4 * float(latents.abs().max())
    assert samples.provenance["nfe"] == sum(x.shape[0] for _, x in here)
    assert samples.provenance["nfe"] == steps * prior.evaluations
    if prior.one_batch or prior.evaluations == 1:
        same_path(home, here)
    config = pipe.vae.config
    with torch.no_grad():
        image = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    assert float((samples.draws[0] - image).abs().max()) < 1e-4 * max(float(image.abs().max()), 1)


SCHEDULERS = [
    {"shift": 3.0},
    {"shift": 1.0, "num_train_timesteps": 500},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"shift": 2.0, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True, "max_shift": 1.16},
]


@pytest.mark.parametrize("config", SCHEDULERS, ids=str)
def test_stable_diffusion_3(sd3: StableDiffusion3Pipeline, config: dict[str, Any]) -> None:
    sd3.scheduler = FlowMatchEulerDiscreteScheduler(**config)
    compare(sd3, 4)
    compare(sd3, 2, scale=7.0)
    compare(sd3, 3, scale=4.5, negative="dog", event=(4, 6, 6))


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_step_counts(sd3: StableDiffusion3Pipeline, dev: FluxPipeline, steps: int) -> None:
    sd3.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    compare(sd3, steps, scale=5.0)
    dev.scheduler = FlowMatchEulerDiscreteScheduler(**FLUX)
    compare(dev, steps, scale=3.5)


def test_stable_diffusion_3_without_t5() -> None:
    """Zeros stand for its tokens, as at home."""
    pipe = stable_diffusion_3(t5=False)
    compare(pipe, 3, scale=7.0, negative="dog")


@pytest.mark.parametrize(
    "config",
    [FLUX, {**FLUX, "time_shift_type": "linear"}, {**FLUX, "base_image_seq_len": 4}, {"shift": 3}],
    ids=str,
)
def test_flux_dev(dev: FluxPipeline, config: dict[str, Any]) -> None:
    """The scale is an input: one evaluation a step."""
    dev.scheduler = FlowMatchEulerDiscreteScheduler(**config)
    compare(dev, 3, scale=3.5)
    compare(dev, 2, scale=1.0, event=(4, 10, 6))


def test_flux_schnell(schnell: FluxPipeline) -> None:
    """No guidance; the true one by two evaluations."""
    compare(schnell, 1)
    compare(schnell, 4)
    compare(schnell, 3, scale=2.5, negative="dog")


def test_stochastic_sampling_path_by_path(sd3: StableDiffusion3Pipeline) -> None:
    def moves() -> Iterator[Tensor]:
        yield from (Noise.single(0, EVENT).at(k)("move") for k in itertools.count(1))

    sd3.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    with drawing(moves(), "schedulers.scheduling_flow_match_euler_discrete"):
        compare(sd3, 4, scale=2.0)


# ------------------------------------------------------------------------------- levels and times


def test_prompts_and_scales_matter(sd3: StableDiffusion3Pipeline, dev: FluxPipeline) -> None:
    """The tolerance of the comparisons, 1e-4 of about 3, would see what they are there to see."""
    x = start(EVENT)
    for pipe in (sd3, dev):
        prior = posterior.prior_from_pipeline(pipe)
        cat, dog = prior.given("a cat", scale=3.5)(x, 0.5).x0, prior.given("dog", scale=3.5)(x, 0.5)
        assert float((cat - dog.x0).abs().max()) > 0.01
        assert float((cat - prior.given("a cat", scale=1.0)(x, 0.5).x0).abs().max()) > 0.01


@pytest.mark.parametrize("config", [{"shift": 3.0}, FLUX], ids=str)
def test_levels_and_times_agree_on_every_grid(dev: FluxPipeline, config: dict[str, Any]) -> None:
    """The network is told sigma, however a grid spaces it; and answers with eps - x0."""
    dev.scheduler = FlowMatchEulerDiscreteScheduler(**config)
    prior = posterior.prior_from_pipeline(dev).given("a cat", scale=3.5)
    assert prior.schedule == RectifiedFlow()
    for grid in ("uniform", "karras", prior.home_grid(3, EVENT)):
        with seen_by(prior.module) as calls:
            samples = posterior.sample(prior, grid=grid, shape=EVENT, seed=0, steps=3)
        for (time, _), (_, alpha, sigma) in zip(calls, samples.provenance["levels"], strict=False):
            assert time == pytest.approx(sigma, rel=1e-6)
            assert alpha == pytest.approx(1 - sigma)
    x = start(EVENT)
    told = {k: v.expand(1, *v.shape[1:]) for k, v in prior.encode("a cat").items()}
    with torch.no_grad():
        v = prior._told(x, torch.tensor([300.0]), told, 3.5)
    assert torch.allclose(prior(x, 0.3).x0, x - 0.3 * v, atol=1e-5)


def test_dynamic_shift(dev: FluxPipeline) -> None:
    """Levels S s / (1 + (S - 1) s) of even s: S from 0.5 at 256 patches to 1.15 at 4096."""
    dev.scheduler = FlowMatchEulerDiscreteScheduler(**FLUX)
    prior = posterior.prior_from_pipeline(dev)
    for side, mu in ((32, 0.5), (128, 1.15), (80, 0.5 + 0.65 * (1600 - 256) / 3840)):
        got = prior.home_grid(5, (4, side, side))
        even = [RectifiedFlow(math.exp(mu)).level(1 - k / 5).sigma for k in range(5)]
        assert [level.sigma for level in got[:-1]] == pytest.approx(even, rel=1e-6)
        assert got[-1] == CLEAN
    with pytest.raises(InputError, match=r"for 128x128, not 8x12: take prior.home\(shape=\(4, 8, "):
        posterior.sample(prior, method=prior.home(), shape=EVENT, steps=2)
    assert prior.counts.nfe == 0
    dev.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    still = posterior.prior_from_pipeline(dev)
    posterior.sample(still, method=still.home(), shape=EVENT, steps=1)


class Dressed(nn.Module):
    """The exact velocity of a Gaussian, answering as the transformer of a pipeline would."""

    inner_dim = 4

    def __init__(self, exact: priors.Gaussian, size: tuple[int, int] | None, **config: Any) -> None:
        super().__init__()
        self.exact, self.size, self.config = exact, size, config
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.dtype = torch.float64

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        x, t = hidden_states, timestep / 1000
        if self.size is not None:  # in patches, as FLUX
            height, width = self.size
            x, t = FluxPipeline._unpack_latents(x, 2 * height, 2 * width, 2), timestep
        x0 = self.exact.denoise(x, t)
        out = Estimate(x, t, self.exact.schedule, x0).velocity
        if self.size is not None:
            out = FluxPipeline._pack_latents(out, *out.shape)
        return (out,)


METHODS = [guidance.DPS(), guidance.DDS(), guidance.DAPS()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_gaussian_in_both_dresses_has_the_same_posterior_draws(method: Guidance) -> None:
    """In float64, to rounding: sign, time and the order in a patch are those of a flow."""
    event = (4, 4, 6)
    mean = 0.3 * start(event)[0].double()
    variance = torch.linspace(0.05, 0.4, 96, dtype=torch.float64).view(event)
    exact = priors.Gaussian(mean, variance, schedule=RectifiedFlow())
    operator = operators.Mask.random(keep_fraction=0.5, seed=1)
    object.__setattr__(operator, "space", "latent")  # of x itself, not of its image
    y = operator(start(event, 1).double())
    run: dict[str, Any] = {"noise": 0.2, "method": method, "n": 2, "seed": 0}
    run["grid"] = grids.of_ratios(exact.schedule, [9.0, 3.0, 1.0, 0.3, 0.1, 0.0])[0]
    want = posterior.sample(exact, operator, y, **run).draws

    widths = {"joint_attention_dim": 2, "pooled_projection_dim": 3, "num_layers": 1}
    sd3 = Dressed(exact, None, in_channels=4, patch_size=2, pos_embed_max_size=9, **widths)
    fl = Dressed(
        exact, event[1:], in_channels=16, num_single_layers=0, guidance_embeds=False, **widths
    )
    empty = {"prompt_embeds": torch.zeros(1, 1, 2), "pooled_prompt_embeds": torch.zeros(1, 3)}
    for kind, network in ((flows.StableDiffusion3Prior, sd3), (flows.FluxPrior, fl)):
        pipe = SimpleNamespace(
            transformer=network,
            vae=autoencoder(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            device=torch.device("cpu"),
            default_sample_size=8,
        )
        latents = posterior.sample(kind(pipe).given(empty), operator, y, **run).latents
        assert latents is not None
        assert torch.allclose(latents, want, atol=1e-9), float((latents - want).abs().max())


# ----------------------------------------------------------------------------------- rows and uses


def test_rows_do_not_depend_on_each_other(sd3: StableDiffusion3Pipeline) -> None:
    """Bit for bit, each with its own prompt."""
    prior = posterior.prior_from_pipeline(sd3, rows=1)
    prompts = ["a cat", "dog", "a bird"]
    x = torch.cat([start(EVENT, seed) for seed in range(3)])
    together = prior.given(prompts, "a tree", 3.0)(x, 0.6).x0
    for k, prompt in enumerate(prompts):
        alone = prior.given(prompt, "a tree", 3.0)(x[k : k + 1], 0.6).x0
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize("family", ["sd3", "dev", "schnell"])
@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_by_row(family: str, rows: int, request: pytest.FixtureRequest) -> None:
    """Each with its own embeddings; and what is counted.

    Bit for bit in blocks of one row. In a larger block a row has the same bits wherever the kernels
    treat all places alike; attention in several threads does not, to rounding.
    """
    pipe = request.getfixturevalue(family)
    prior = posterior.prior_from_pipeline(pipe, rows=rows)
    nothing, *told = ({name: v[k : k + 1] for name, v in few(pipe).items()} for k in range(4))
    x = torch.cat([start(EVENT, seed) for seed in range(3)])
    options: dict[str, Any] = {"scale": 3.0, "negative": None if family == "dev" else nothing}
    both = prior.given(told, **options)
    estimate, pull = both.vjp(x, 0.6)
    gradient = pull(x)
    for k, one in enumerate(told):
        alone, pull_alone = prior.given(one, **options).vjp(x[k : k + 1], 0.6)
        pairs = [(alone.x0[0], estimate.x0[k]), (pull_alone(x[k : k + 1])[0], gradient[k])]
        for one_row, in_batch in pairs:
            if rows == 1:
                assert torch.equal(one_row, in_batch)
            else:  # some thirty float32 layers, values of order 1
                torch.testing.assert_close(one_row, in_batch, rtol=1e-5, atol=1e-5)
    assert both.evaluations == (1 if family == "dev" else 2)
    assert (both.counts.nfe, both.counts.vjp) == (3 * both.evaluations, 3 * both.evaluations)
    assert prior.given(told, scale=1.0).evaluations == 1


def few(pipe: Any, tokens: int = 5, count: int = 4) -> dict[str, Tensor]:
    """Embeddings of few tokens."""
    config = pipe.transformer.config
    text = start((count, tokens, config.joint_attention_dim), 7)[0]
    return {
        "prompt_embeds": text,
        "pooled_prompt_embeds": start((count, config.pooled_projection_dim), 8)[0],
    }


def test_gradients() -> None:
    """Against a central difference, in float64 but for the norms, which compute in float32."""
    pipe = flux().to(torch.float64)
    prior = posterior.prior_from_pipeline(pipe).given(few(pipe, count=1), scale=3.5)
    x, u, d = (start((4, 4, 4), seed).double() for seed in range(3))
    _, pull = prior.vjp(x, 0.6)
    h = 1e-3  # curvature h^2, rounding 1e-7 / h
    slope = (prior(x + h * d, 0.6).x0 - prior(x - h * d, 0.6).x0) / (2 * h)
    assert float((pull(u) * d).sum()) == pytest.approx(float((slope * u).sum()), rel=1e-3)


def test_an_image_measured_through_the_decoder(sd3: StableDiffusion3Pipeline) -> None:
    sd3.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    prior = posterior.prior_from_pipeline(sd3).given("a cat", scale=2.0)
    operator = operators.Mask.random(keep_fraction=0.5, seed=0)
    y = operator(torch.zeros(1, 3, 16, 24))
    options: dict[str, Any] = {"noise": 0.1, "method": guidance.DPS()}
    samples = posterior.sample(prior, operator, y, grid=prior.home_grid(3, EVENT), **options)
    assert samples.draws.shape == (1, 1, 3, 16, 24)
    assert bool(torch.isfinite(samples.draws).all())
    assert (samples.provenance["nfe"], samples.provenance["vjp"]) == (6, 6)
    with pytest.raises(InputError, match="8x11: take 8x10 or 8x12, which are images of 16x20 and"):
        posterior.sample(prior, operator, torch.zeros(1, 3, 16, 22), steps=3, **options)


def test_sizes(sd3: StableDiffusion3Pipeline, dev: FluxPipeline) -> None:
    prior = posterior.prior_from_pipeline(sd3)
    assert prior.default_shape == (4, 8, 8)
    with pytest.raises(InputError, match=r"latents \(4, H/2, W/2\).*give shape=\(4, 6, 8\)"):
        posterior.sample(prior, shape=(3, 13, 16), steps=1)
    with pytest.raises(InputError, match="positions in latents up to 20x20, not 8x22"):
        posterior.sample(prior, shape=(4, 8, 22), steps=1)
    with pytest.raises(InputError, match="7x8: take 6x8 or 8x8"):
        prior.home(shape=(4, 7, 8))
    free = posterior.prior_from_pipeline(dev)
    assert free.default_shape == (4, 128, 128)
    free.check_event((4, 8, 222))
    with pytest.raises(InputError, match="7x8: take 6x8 or 8x8"):
        free.vjp(torch.zeros(1, 4, 7, 8), 0.5)
    with pytest.raises(InputError, match="1x8: take 2x8 or 2x8"):
        free.check_event((4, 1, 8))


@pytest.mark.parametrize("family", ["sd3", "dev"])
def test_embeddings(family: str, request: pytest.FixtureRequest) -> None:
    """In place of a prompt, one for all or one per measurement."""
    pipe = request.getfixturevalue(family)
    prior = posterior.prior_from_pipeline(pipe)
    inputs = prior.encode("a cat")
    text, pooled = inputs["encoder_hidden_states"], inputs["pooled_projections"]
    cat = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    x = torch.cat([start(EVENT), start(EVENT, 1)])
    want = prior.given("a cat")(x, 0.5).x0
    assert torch.equal(prior.given(cat)(x, 0.5).x0, want)
    row = {k: v[0] for k, v in cat.items()}
    assert torch.equal(prior.given(row)(x, 0.5).x0, want)
    two = prior.given({k: torch.cat([v, v]) for k, v in cat.items()})
    assert two.measurements == 2
    assert torch.equal(two(x, 0.5).x0, want)
    for wrong, error in (
        (text, InputTypeError),
        (7, InputTypeError),
        ({"prompt_embeds": text}, InputError),
        ({**cat, "prompt_embeds": "a cat"}, InputTypeError),
        ({**cat, "prompt_embeds": text[..., 1:]}, InputError),
        ({**cat, "pooled_prompt_embeds": torch.cat([pooled, pooled])}, InputError),
    ):
        with pytest.raises(error):
            prior.given(wrong)


def test_without_text_encoders(dev: FluxPipeline) -> None:
    """They may be left out for their memory."""
    cat = posterior.prior_from_pipeline(dev).encode("a cat")
    named = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), cat.values(), strict=True))
    bare = FluxPipeline(**{**dev.components, "text_encoder_2": None, "tokenizer_2": None})
    prior = posterior.prior_from_pipeline(bare)
    with pytest.raises(CapabilityError, match="no text_encoder_2: give embeddings"):
        prior.given("a cat")
    x = start(EVENT)
    want = posterior.prior_from_pipeline(dev).given("a cat", scale=2.0)(x, 0.5).x0
    assert torch.equal(prior.given(named, scale=2.0)(x, 0.5).x0, want)


def test_wrong_use(sd3: StableDiffusion3Pipeline, dev: FluxPipeline, schnell: FluxPipeline) -> None:
    learned = posterior.prior_from_pipeline(dev)
    for wrong in ({"negative": "dog"}, {"plus": True}):
        with pytest.raises(CapabilityError, match="guidance built in"):
            learned.given("a cat", scale=0.5, **wrong)
    with pytest.raises(InputError, match="no effect at scale=1"):
        posterior.prior_from_pipeline(schnell).given("a cat", negative="dog")
    sd3.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    prior = posterior.prior_from_pipeline(sd3)
    assert prior(start(EVENT), 0.5).x0.shape == (1, *EVENT)
    with pytest.raises(CapabilityError, match=r"scheduler = FlowMatchEulerDiscreteScheduler\.from"):
        prior.home()
    with pytest.raises(InputError, match="eta= belongs to a DDIM"):
        learned.home(eta=0.5)
    sd3.scheduler = DDIMScheduler()
    with pytest.raises(InputError, match="DDIMScheduler is not of flow matching"):
        posterior.prior_from_pipeline(sd3)
    with pytest.raises(CapabilityError, match="invert_sigmas"):
        read(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(CapabilityError, match="takes 8 channels, a latent has 4"):
        posterior.prior_from_pipeline(flux(in_channels=32))


def test_saved_pipelines(tmp_path: Any, dev: FluxPipeline) -> None:
    """With and without T5; as the pipelines of images, the same priors."""
    sd3, dev.scheduler = stable_diffusion_3(t5=False), FlowMatchEulerDiscreteScheduler(**FLUX)
    image = StableDiffusion3Img2ImgPipeline(**sd3.components)
    for name, pipe in (("sd3", sd3), ("sd3 image", image), ("flux", dev)):
        pipe.save_pretrained(tmp_path / name)
        prior = posterior.load_prior(tmp_path / name).given("a cat", scale=2.0)
        same = posterior.prior_from_pipeline(pipe).given("a cat", scale=2.0)
        draw, want = run(prior, 2).draws, run(same, 2).draws
        assert torch.allclose(draw, want, atol=1e-4)  # where weights lie moves the last bits
        assert posterior.load_prior(tmp_path / name, dtype=torch.bfloat16)(
            start(EVENT), 0.5
        ).x0.dtype == (torch.float32)
    image = FluxImg2ImgPipeline(**dev.components)
    x = start(EVENT)
    want = posterior.prior_from_pipeline(dev).given("a cat", scale=2.0)(x, 0.5).x0
    got = posterior.prior_from_pipeline(image).given("a cat", scale=2.0)
    assert torch.equal(got(x, 0.5).x0, want)


def test_low_memory() -> None:
    """Activations computed again: the same gradient, less kept."""
    x = start((4, 8, 8))
    kept = []
    for low in (False, True):
        pipe = flux()
        prior = posterior.prior_from_pipeline(pipe, low_memory=low).given(few(pipe, count=1))
        with saved() as sizes:
            estimate, pull = prior.vjp(x, 0.5)
        kept.append((sum(sizes.values()), estimate.x0, pull(x)))
    (size, x0, grad), (small, x0_low, grad_low) = kept
    assert small < size / 2
    assert torch.allclose(x0, x0_low, atol=1e-5)
    assert torch.allclose(grad, grad_low, atol=1e-5)


def test_graph_bytes() -> None:
    """The estimate covers what a backward pass keeps, and is not twice as much."""
    for pipe in (stable_diffusion_3(), flux(num_layers=2)):
        prior = posterior.prior_from_pipeline(pipe).given(few(pipe, tokens=33, count=1))
        x = torch.zeros(1, 4, 20, 20)
        weights = {p.untyped_storage().data_ptr() for p in prior.module.parameters()}
        with saved() as sizes:
            prior.vjp(x, 0.5)
        kept = sum(size for place, size in sizes.items() if place not in weights) / x.numel()
        assert kept < 1.2 * prior.graph_bytes, (kept, prior.graph_bytes)
        assert kept > 0.5 * prior.graph_bytes, (kept, prior.graph_bytes)


def saved() -> Any:
    """The sizes of what autograd saves, by place."""
    return _Saved()


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> dict[int, int]:
        super().__enter__()
        return self.sizes
