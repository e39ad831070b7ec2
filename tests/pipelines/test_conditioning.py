"""Conditions by row and classifier-free guidance; the codec and its operator."""

from __future__ import annotations

import copy
import string
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from pipeline_helpers import autoencoder, ours, stable_diffusion, start
from torch import Tensor, nn

import posterior
from posterior import guidance, operators
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.guidance.base import Guidance
from posterior.priors.codec import LatentCodec
from posterior.priors.conditioning import REMEMBERED
from posterior.transitions import Euler

EVENT = (4, 8, 8)
T = 0.6


@pytest.fixture(scope="module")
def sd() -> StableDiffusionPipeline:
    return stable_diffusion()


@pytest.fixture(scope="module")
def prior(sd: StableDiffusionPipeline) -> Any:
    return posterior.prior_from_pipeline(sd)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.cat([start(EVENT, seed) for seed in range(3)])


def test_guidance_is_the_formula(prior: Any, x: Tensor) -> None:
    """f = n + w (c - n), at every scale; the negative condition is the empty prompt by default."""
    cat, dog, empty = (prior.given(p)(x, T).eps for p in ("a cat", "dog", ""))
    for w in (0.0, 0.5, 3.0):
        assert torch.allclose(
            prior.given("a cat", scale=w)(x, T).eps, empty + w * (cat - empty), atol=1e-5
        )
        guided = prior.given("a cat", "dog", w)(x, T)
        assert torch.allclose(guided.eps, dog + w * (cat - dog), atol=1e-5)
        assert guided.renoise is None
    assert torch.equal(prior(x, T).x0, prior.given("")(x, T).x0)
    assert float((cat - dog).abs().max()) > 0.01


def test_a_prompt_is_encoded_once_until_the_encoder_changes(x: Tensor) -> None:
    pipe, calls = stable_diffusion(), list[object]()
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    prior = posterior.prior_from_pipeline(pipe)
    with torch.inference_mode():
        first = prior.given("a cat", scale=2.0)
    assert len(calls) == 2, "the prompt and the empty one"
    prior.given("a dog", "a cat", 3.0)
    prior.given(["a cat", "a dog", "a dog"], scale=1.5)
    again = prior.given("a dog").given("a cat", scale=2.0)
    assert len(calls) == 3
    _, pull = again.vjp(x, T)
    assert torch.isfinite(pull(x)).all(), "what was encoded without gradients may be in a graph"
    before = again(x, T).x0
    assert torch.equal(before, first(x, T).x0)
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).mul_(1.5)
    changed = prior.given("a cat", scale=2.0)
    assert len(calls) == 5
    assert not torch.equal(changed(x, T).x0, before)
    for letter in string.ascii_lowercase[:REMEMBERED]:  # as many others push it out
        prior.given(letter)
    calls.clear()
    prior.given("a cat")
    assert len(calls) == 1


def test_one_evaluation_at_scale_one(prior: Any, x: Tensor) -> None:
    assert prior.given("a cat").evaluations == 1
    guided = prior.given("a cat", scale=2.0)
    assert guided.evaluations == 2
    guided(x, T)
    _, pull = guided.vjp(x, T)
    pull(x)
    assert (guided.counts.nfe, guided.counts.vjp) == (12, 6)
    with pytest.raises(InputError, match="no effect at scale=1"):
        prior.given("a cat", negative="dog")


def test_cfg_plus_plus(prior: Any, x: Tensor) -> None:
    """x0 of the guided output, noise of the unguided one; at w = 0 no trace of the prompt."""
    cat, empty = prior.given("a cat")(x, T), prior.given("")(x, T)
    plus = prior.given("a cat", scale=0.6, plus=True)(x, T)
    assert torch.allclose(plus.x0, empty.x0 + 0.6 * (cat.x0 - empty.x0), atol=1e-4)
    assert torch.allclose(plus.eps_renoise, empty.eps, atol=1e-5)
    assert not torch.allclose(plus.eps_renoise, plus.eps, atol=1e-3)
    method = Guidance(transition=Euler)
    none = prior.given("a cat", scale=0.0, plus=True)
    run = {"method": method, "steps": 3, "grid": "trailing", "seed": 0}
    plain = posterior.sample(prior.given(""), **run).draws
    assert torch.allclose(posterior.sample(none, **run).draws, plain, atol=1e-3)
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        prior.given("a cat", scale=7.5, plus=True)


def test_rescaled_guidance_is_the_formula(prior: Any, x: Tensor) -> None:
    """Lin et al. 2023, eq. 15 and 16: the spread over a row, whoever is beside it."""
    cat, empty = prior.given("a cat")(x, T).eps, prior.given("")(x, T).eps
    guided = empty + 3 * (cat - empty)
    std = [out.flatten(1).std(1).view(-1, 1, 1, 1) for out in (cat, guided)]
    want = 0.7 * guided * std[0] / std[1] + 0.3 * guided
    rescaled = prior.given("a cat", scale=3.0, rescale=0.7)
    assert torch.allclose(rescaled(x, T).eps, want, atol=1e-4)
    assert torch.equal(rescaled(x[1:2], T).x0, rescaled(x, T).x0[1:2])
    assert torch.equal(
        prior.given("a cat", scale=3.0, rescale=0)(x, T).x0,
        prior.given("a cat", scale=3.0)(x, T).x0,
    )


def test_guidance_in_an_interval(prior: Any, x: Tensor) -> None:
    """Kynkaanniemi et al. 2024, eq. 6: outside the conditional network alone, at half price."""
    levels = {t: prior.schedule.level(t).ratio for t in (0.2, 0.6, 0.9)}
    given = prior.given("a cat", scale=3.0, interval=(levels[0.2], levels[0.6]))
    full, plain = prior.given("a cat", scale=3.0), prior.given("a cat")
    for t, same in ((0.2, plain), (0.6, full), (0.9, plain)):  # open below, closed above
        before = given.counts.nfe, given.counts.vjp
        estimate, pull = given.vjp(x, t)
        pull(x)
        assert torch.equal(estimate.x0, same(x, t).x0)
        calls = 3 * (2 if same is full else 1)
        assert (given.counts.nfe - before[0], given.counts.vjp - before[1]) == (calls, calls)
    mixed = given(x, torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)).x0
    for k, (t, same) in enumerate(((0.2, plain), (0.6, full), (0.9, plain))):
        assert torch.allclose(mixed[k : k + 1], same(x[k : k + 1], t).x0, atol=1e-4)


def test_wrong_ways_to_guide(prior: Any) -> None:
    for ways, error, message in (
        ({"rescale": 1.5}, InputError, r"in \[0, 1\]"),
        ({"rescale": "a"}, InputTypeError, "rescale must be a number"),
        ({"interval": (3.0, 1.0)}, InputError, "0 <= low < high"),
        ({"interval": 3.0}, InputTypeError, "interval must be"),
        ({"rescale": 0.5, "scale": 1.0}, InputError, "no effect at scale=1"),
        ({"rescale": 0.5, "scale": 0.5, "plus": True}, InputError, "not for CFG"),
    ):
        with pytest.raises(error, match=message):
            prior.given("a cat", **{"scale": 3.0, **ways})


def test_one_batch_or_two_passes_by_memory(
    sd: StableDiffusionPipeline, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both branches together where the graph of both fits a call."""
    prior = posterior.prior_from_pipeline(sd, rows=2)
    given = prior.given("a cat", scale=4.0)
    assert given.graph_bytes == 2 * prior.graph_bytes
    assert given.given("dog").graph_bytes == prior.graph_bytes
    block = 2 * x[0].numel() * given.graph_bytes
    sizes: list[int] = []
    hook = prior.module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    for budget in (block, block - 1):
        monkeypatch.setattr("posterior.priors.conditioning.share", lambda _, b=budget: b)
        given(x[:2], T)
    hook.remove()
    assert sizes == [4, 2, 2]


def test_two_passes_are_one_batch_up_to_rounding(sd: StableDiffusionPipeline, x: Tensor) -> None:
    one = posterior.prior_from_pipeline(sd).given("a cat", scale=4.0)
    two = copy.copy(one)
    two.one_batch = False
    sizes: list[int] = []
    hook = one.module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    assert torch.allclose(one(x[:1], T).x0, two(x[:1], T).x0, atol=1e-4)
    hook.remove()
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("rows", [1, 2])
def test_conditions_by_row(sd: StableDiffusionPipeline, x: Tensor, rows: int) -> None:
    """Each row under its own prompt, in padded blocks, forwards and backwards."""
    prior = posterior.prior_from_pipeline(sd, rows=rows)
    prompts = ["a cat", "dog", "a cat"]
    given = prior.given(prompts, negative=["", "", "dog"], scale=2.0)
    assert given.measurements == 3
    estimate, pull = given.vjp(x, T)
    u = x.flip(0)
    for k, (prompt, negative) in enumerate(zip(prompts, ["", "", "dog"], strict=True)):
        one, pull_one = prior.given(prompt, negative, 2.0).vjp(x[k : k + 1], T)
        assert torch.allclose(one.x0, estimate.x0[k : k + 1], atol=1e-4)
        assert torch.allclose(pull_one(u[k : k + 1]), pull(u)[k : k + 1], atol=1e-4)
    swapped = given.take([1, 0])
    assert torch.allclose(swapped(x[[1, 0]], T).x0, estimate.x0[[1, 0]], atol=1e-4)
    assert swapped.counts is given.counts
    with pytest.raises(InputError, match="conditions for 3 rows"):
        given(x[:2], T)
    with pytest.raises(InputError, match="3 conditions and 2 negative"):
        prior.given(prompts, negative=["", ""], scale=2.0)


def test_draws_do_not_depend_on_other_prompts(prior: Any) -> None:
    """Bit for bit: measurement b of a list is the run of its prompt with seed + b."""
    both = ours(prior.given(["a cat", "dog"], scale=3.0), 2)
    alone = posterior.sample(prior.given("dog", scale=3.0), method=prior.home(), steps=2, seed=1)
    assert torch.equal(both.draws[:, 1:], alone.draws)


def test_given_is_cheap_and_immutable(sd: StableDiffusionPipeline, prior: Any, x: Tensor) -> None:
    """Text is encoded in `given`, once for each prompt, and never in a run; weights are shared."""
    calls: list[int] = []
    hook = prior._pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    before = prior(x, T).x0
    calls.clear()
    given = prior.given(["a bird", "a bird", "a tram"], scale=2.0)
    assert len(calls) == 2, "a bird and a tram; the empty prompt is known"
    given(x, T)
    assert len(calls) == 2
    hook.remove()
    assert torch.equal(prior(x, T).x0, before)
    assert given.module is prior.module
    assert "a tram" in repr(given)


def test_embeddings_instead_of_a_prompt(prior: Any, x: Tensor) -> None:
    embeddings = prior.encode("a cat")["encoder_hidden_states"]
    want = prior.given("a cat")(x, T).x0
    assert torch.equal(prior.given(embeddings)(x, T).x0, want)
    assert torch.equal(prior.given(embeddings[0])(x, T).x0, want)
    by_row = prior.given(embeddings.expand(3, -1, -1))
    assert by_row.measurements == 3
    assert torch.equal(by_row(x, T).x0, want)
    with pytest.raises(InputError, match="must be alike"):
        prior.given(embeddings[:, :5], "dog", 2.0)


def test_wrong_scales(prior: Any) -> None:
    for scale, error in ((-1.0, InputError), (float("nan"), InputError), ("7", InputTypeError)):
        with pytest.raises(error):
            prior.given("a cat", scale=scale)
    with pytest.raises(InputError, match="no condition"):
        prior.given([])


# ------------------------------------------------------------------------------------- the codec


def image(seed: int = 0, side: int = 16) -> Tensor:
    return torch.tanh(start((3, side, side), seed))


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.18215},
        {"scaling_factor": 1.5, "shift_factor": 0.06},
        {"scaling_factor": 0.5, "latents_mean": [0.1] * 4, "latents_std": [2.0, 1.0, 3.0, 1.5]},
    ],
)
def test_scale_and_shift(config: dict[str, Any]) -> None:
    """z = (mean - shift) * scale and back, as the config has them."""
    torch.manual_seed(0)
    vae = autoencoder(**config).eval()
    codec = LatentCodec(vae)
    with torch.no_grad():
        law = vae.encode(image()).latent_dist
        scale = torch.tensor(config["scaling_factor"])
        shift = torch.tensor(config.get("shift_factor", 0.0))
        if "latents_std" in config:
            scale = (scale / torch.tensor(config["latents_std"])).view(1, 4, 1, 1)
            shift = torch.tensor(config["latents_mean"]).view(1, 4, 1, 1)
        z = codec.encode(image())
        assert torch.allclose(z, (law.mean - shift) * scale, atol=1e-6)
        assert torch.allclose(codec.decode(z), vae.decode(law.mean).sample, atol=1e-5)
        drawn = (codec.encode(image(), seed=1) - z) / (law.std * scale)
    assert float(drawn.square().mean()) == pytest.approx(1, abs=0.36)  # 256 numbers: 4 sigma


def test_codec_rows_and_sizes() -> None:
    codec = LatentCodec(autoencoder())
    images = torch.cat([image(0), image(1)])
    z = codec.encode(images)
    assert torch.equal(codec.encode(images[1:]), z[1:])
    assert torch.equal(codec.decode(z[1:]), codec.decode(z)[1:])
    assert codec.decoder.domain_shape((2, 3, 16, 20)) == (2, 4, 8, 10)
    assert codec.decoder.range_shape((2, 4, 8, 10)) == (2, 3, 16, 20)
    with pytest.raises(InputError, match="crop to 16x16 or pad to 16x18"):
        codec.encode(torch.zeros(1, 3, 16, 17))
    with pytest.raises(InputError, match="takes images"):
        codec.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError, match="latents are"):
        codec.decoder(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputTypeError):
        LatentCodec(nn.Identity())


def test_decoder_operator() -> None:
    """It is what `decode` does, on latents, and its gradient is that of the decoder."""
    torch.manual_seed(0)
    codec = LatentCodec(autoencoder().double())
    decoder = codec.decoder
    assert operators.check(decoder, shape=(1, 4, 8, 8), verbose=False) == []
    assert (operators.Identity() @ decoder).space == "latent"
    with pytest.raises(CapabilityError, match="takes a latent"):
        decoder @ operators.Identity()
    z = torch.cat([start(EVENT), start(EVENT, 1)]).double()
    y, pull = decoder.vjp(z)
    u = torch.cat([image(0), image(1)]).double()
    leaf = z.clone().requires_grad_()
    scale = codec.vae.config["scaling_factor"]
    (want,) = torch.autograd.grad(codec.vae.decode(leaf / scale).sample, leaf, u)
    assert torch.equal(y, codec.decode(z))
    for _ in range(2):  # the graph is made again for each
        assert torch.allclose(pull(u), want, atol=1e-10)


def test_decoding_for_a_gradient_keeps_only_the_latents() -> None:
    """What the graph holds after the forward pass is no larger for a wider decoder."""
    codec = LatentCodec(autoencoder())
    held = []
    z = start(EVENT).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: held.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        codec.decoder(z)
    assert sum(held) <= z.numel()


def test_tiles() -> None:
    """Tiles change a large image a little, a small one not at all; gradients still flow."""
    torch.manual_seed(0)
    codec = LatentCodec(autoencoder())
    large, small = start((4, 24, 24)), start(EVENT)
    whole = codec.decode(large), codec.decode(small)
    codec.tile()
    tiled = codec.decode(large)
    assert tiled.shape == whole[0].shape
    assert not torch.equal(tiled, whole[0])
    assert torch.equal(codec.decode(small), whole[1])
    _, pull = codec.decoder.vjp(large)
    assert float(pull(tiled).abs().min()) > 0
    codec.tile(False)
    assert torch.equal(codec.decode(large), whole[0])


def test_tiny_autoencoder() -> None:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    codec = LatentCodec(vae)
    assert (codec.channels, codec.factor) == (4, 2)
    z = codec.encode(image())
    assert z.shape == (1, *EVENT)
    assert codec.decode(z).shape == (1, 3, 16, 16)
    with pytest.raises(CapabilityError, match="no law"):
        codec.encode(image(), seed=0)


def test_low_memory_gives_the_same_posterior_draws(sd: StableDiffusionPipeline) -> None:
    """Two passes and recomputed activations: the same draws up to rounding, gradients included."""
    operator = operators.Mask.random(keep_fraction=0.5, seed=0)
    y = operator(image())
    run = {"noise": 0.5, "method": guidance.DPS(), "steps": 2, "seed": 0}
    plain = posterior.prior_from_pipeline(sd).given("a cat", scale=2.0)
    want = posterior.sample(plain, operator, y, **run).draws
    pipe = stable_diffusion()
    frugal = posterior.prior_from_pipeline(pipe, low_memory=True).given("a cat", scale=2.0)
    assert not frugal.one_batch
    assert frugal.codec.vae.use_tiling
    got = posterior.sample(frugal, operator, y, **run).draws
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
