"""Stable Diffusion, XL and latent consistency models: the same samples as at home."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from pipeline_helpers import (
    drawing,
    ours,
    same_path,
    sd_scheduler,
    seen_by,
    stable_diffusion,
    stable_diffusion_xl,
    start,
)
from torch import Tensor

import posterior
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.streams import Noise

EVENT = (4, 8, 8)


@pytest.fixture(scope="module")
def sd() -> StableDiffusionPipeline:
    return stable_diffusion()


@pytest.fixture(scope="module")
def xl() -> Any:
    return stable_diffusion_xl()


def moves(steps: int) -> Iterator[Tensor]:
    """The noise of our steps."""
    for k in range(1, steps + 1):
        yield Noise.single(0, EVENT).at(k)("move")


def compare(
    pipe: Any, steps: int, scale: float = 1.0, negative: str | None = None, rescale: float = 0.0
) -> None:
    """Latents, decoded images and every call of the network, to 1e-4 of the largest entry."""
    prior = posterior.prior_from_pipeline(pipe).given("a cat", negative, scale, rescale=rescale)
    calls = {"num_inference_steps": steps, "guidance_scale": scale, "negative_prompt": negative}
    if rescale:
        calls["guidance_rescale"] = rescale
    with seen_by(pipe.unet) as home:
        latents = pipe("a cat", latents=start(EVENT), output_type="latent", **calls).images
    with seen_by(prior.module) as here:
        samples = ours(prior, steps)
    if isinstance(pipe.scheduler, (DDIMScheduler, EulerDiscreteScheduler)):
        same_path(home, here)
    size = float(latents.abs().max())
    assert samples.latents is not None
    assert float((samples.latents[0] - latents).abs().max()) < 1e-4 * max(size, 1)
    assert samples.provenance["nfe"] == sum(x.shape[0] for _, x in here)
    with torch.no_grad():
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert float((samples.draws[0] - image).abs().max()) < 1e-4 * max(float(image.abs().max()), 1)


DDIM = [
    {},
    {"prediction_type": "v_prediction", "set_alpha_to_one": True},
    {"timestep_spacing": "trailing", "prediction_type": "sample"},
    {
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    },
    {"timestep_spacing": "linspace"},
]
EULER = [
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    {"timestep_spacing": "leading", "use_exponential_sigmas": True},
    {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
    {
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    },
]


@pytest.mark.parametrize("config", DDIM, ids=str)
def test_ddim(sd: StableDiffusionPipeline, config: dict[str, Any]) -> None:
    sd.scheduler = sd_scheduler(DDIMScheduler, **config)
    compare(sd, 5, scale=1.0)
    compare(sd, 3, scale=7.5, negative="dog")


@pytest.mark.parametrize("config", EULER, ids=str)
def test_euler(sd: StableDiffusionPipeline, config: dict[str, Any]) -> None:
    sd.scheduler = sd_scheduler(EulerDiscreteScheduler, **config)
    compare(sd, 3, scale=1.0)
    compare(sd, 6, scale=7.5)


def test_rescaled_guidance(sd: StableDiffusionPipeline, xl: Any) -> None:
    """At zero terminal SNR, as Lin et al. 2023 use it."""
    sd.scheduler = sd_scheduler(DDIMScheduler, **DDIM[3])
    compare(sd, 4, scale=7.5, rescale=0.7)
    xl.scheduler = sd_scheduler(DDIMScheduler, **DDIM[3])
    compare(xl, 3, scale=5.0, negative="dog", rescale=0.4)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo(sd: StableDiffusionPipeline, xl: Any, steps: int) -> None:
    """SD-Turbo and SDXL-Turbo are these networks with these schedulers, without guidance."""
    sd.scheduler = sd_scheduler(EulerDiscreteScheduler, timestep_spacing="trailing")
    compare(sd, steps)
    xl.scheduler = sd_scheduler(EulerAncestralDiscreteScheduler, timestep_spacing="trailing")
    numbers = [*itertools.islice(moves(steps), steps - 1), torch.zeros(1, *EVENT)]
    with drawing(iter(numbers), "schedulers.scheduling_euler_ancestral_discrete"):
        compare(xl, steps)


def test_heun(sd: StableDiffusionPipeline) -> None:
    """Second order: two evaluations a step but for the last."""
    sd.scheduler = sd_scheduler(HeunDiscreteScheduler)
    compare(sd, 4, scale=3.0)


def test_euler_ancestral_path_by_path(sd: StableDiffusionPipeline) -> None:
    sd.scheduler = sd_scheduler(EulerAncestralDiscreteScheduler)
    with drawing(
        iter([*moves(4), torch.zeros(1, *EVENT)]),
        "schedulers.scheduling_euler_ancestral_discrete",
    ):
        compare(sd, 5, scale=2.0)


@pytest.mark.parametrize("config", [DDIM[0], DDIM[3]], ids=str)
def test_xl(xl: Any, config: dict[str, Any]) -> None:
    """Both encoders, the pooled text and the sizes; without a negative prompt, zeros."""
    xl.scheduler = sd_scheduler(DDIMScheduler, **config)
    compare(xl, 4, scale=1.0)
    compare(xl, 3, scale=5.0)
    compare(xl, 2, scale=5.0, negative="dog")


def test_xl_with_edm_and_with_euler(xl: Any) -> None:
    """The network as F of EDM in latents (its time is ln(sigma) / 4)."""
    xl.scheduler = EDMEulerScheduler()
    compare(xl, 4, scale=3.0)
    xl.scheduler = sd_scheduler(EulerDiscreteScheduler, timestep_spacing="leading")
    compare(xl, 4, scale=3.0)


def test_xl_embeddings(xl: Any) -> None:
    """Embeddings in place of a prompt, one for all or one per measurement."""
    prior = posterior.prior_from_pipeline(xl)
    text, _, pooled, _ = xl.encode_prompt("a cat", None, "cpu", 1, False)
    cat = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    x = torch.cat([start(EVENT), start(EVENT, 1)])
    want = prior.given("a cat")(x, 0.5).x0
    assert torch.equal(prior.given(cat)(x, 0.5).x0, want)
    both = {k: torch.cat([v, v]) for k, v in cat.items()}
    given = prior.given(both, "dog", 2.0)
    assert given.measurements == 2
    assert torch.equal(given(x, 0.5).x0, prior.given("a cat", "dog", 2.0)(x, 0.5).x0)
    for wrong, error in (
        (text, InputTypeError),
        ({"prompt_embeds": text}, InputError),
        ({**cat, "pooled_prompt_embeds": pooled[:, :, None]}, InputError),
        (7, InputTypeError),
    ):
        with pytest.raises(error):
            prior.given(wrong)


def lcm() -> LatentConsistencyModelPipeline:
    pipe = stable_diffusion(time_cond_proj_dim=16)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    parts["scheduler"] = sd_scheduler(LCMScheduler, steps_offset=0)
    out = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    out.set_progress_bar_config(disable=True)
    return out


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_latent_consistency_path_by_path(steps: int) -> None:
    """The guidance scale is an input of the network: one evaluation a step."""
    pipe = lcm()
    prior = posterior.prior_from_pipeline(pipe).given("a cat", scale=8.5)
    with seen_by(pipe.unet) as home, drawing(moves(steps), "schedulers.scheduling_lcm"):
        calls = {"num_inference_steps": steps, "guidance_scale": 8.5, "output_type": "latent"}
        latents = pipe("a cat", latents=start(EVENT), **calls).images
    with seen_by(prior.module) as here:
        samples = ours(prior, steps)
    same_path(home, here)
    assert samples.latents is not None
    assert float((samples.latents[0] - latents).abs().max()) < 1e-4 * float(latents.abs().max())
    assert samples.provenance["nfe"] == steps
    weak = posterior.prior_from_pipeline(pipe).given("a cat", scale=1.0)
    assert not torch.allclose(ours(weak, steps).latents, samples.latents)  # type: ignore[arg-type]
    with pytest.raises(CapabilityError, match="guidance built in"):
        prior.given("a cat", negative="dog", scale=8.5)


def test_lora(tmp_path: Any) -> None:
    """Adapters that are active in the pipeline are active in the prior, fused or not."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = stable_diffusion()
    x = start(EVENT)
    plain = posterior.prior_from_pipeline(pipe).given("a cat")(x, 0.5).x0
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(1)
    pipe.unet.add_adapter(config)
    weights = get_peft_model_state_dict(pipe.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)

    pipe = stable_diffusion()
    pipe.load_lora_weights(tmp_path)
    prior = posterior.prior_from_pipeline(pipe).given("a cat", scale=3.0)
    assert not torch.allclose(posterior.prior_from_pipeline(pipe).given("a cat")(x, 0.5).x0, plain)
    compare(pipe, 3, scale=3.0)
    adapted = ours(prior, 2).latents
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = posterior.prior_from_pipeline(pipe).given("a cat", scale=3.0)
    assert torch.allclose(ours(fused, 2).latents, adapted, atol=1e-4)  # type: ignore[arg-type]


def test_an_image_measured_through_the_decoder(sd: StableDiffusionPipeline) -> None:
    """The whole way: an operator on images, composed with the decoder, and a posterior method."""
    from posterior import guidance, operators

    sd.scheduler = sd_scheduler()
    prior = posterior.prior_from_pipeline(sd).given("a cat", scale=2.0)
    operator = operators.Mask.random(keep_fraction=0.5, seed=0)
    y = operator(torch.zeros(1, 3, 16, 24))
    samples = posterior.sample(prior, operator, y, noise=0.1, method=guidance.DPS(), steps=3)
    assert samples.draws.shape == (1, 1, 3, 16, 24)
    assert samples.latents is not None
    assert samples.latents.shape == (1, 1, 4, 8, 12)
    assert bool(torch.isfinite(samples.draws).all())
    assert (samples.provenance["nfe"], samples.provenance["vjp"]) == (6, 6)
    with pytest.raises(InputError, match="crop to 16x24 or pad to 18x24"):
        posterior.sample(prior, operator, torch.zeros(1, 3, 17, 24), noise=0.1, steps=3)


def test_the_front_door_takes_a_latent_prior(sd: StableDiffusionPipeline) -> None:
    from posterior import operators

    sd.scheduler = sd_scheduler()
    prior = posterior.prior_from_pipeline(sd).given(["a cat"], scale=2.0)
    operator = operators.Mask.random(keep_fraction=0.5, seed=0)
    picture = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))
    run = {"noise": 0.1, "prior": prior, "steps": 2, "simulate": True, "n": 1}
    out = posterior.restore(picture, operator, **run)
    assert out.draws.shape == (1, 1, 3, 16, 24)
    assert out.latents is not None
    with pytest.raises(InputError, match="crop to 16x22 or pad to 16x24"):
        posterior.restore(picture[..., :23], operator, **run)


@pytest.mark.parametrize(
    "kind", [PNDMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_schedulers_of_higher_order(sd: StableDiffusionPipeline, kind: Any) -> None:
    """The model is read off them; only their own steps are refused, and the way out works."""
    sd.scheduler = sd_scheduler(DDIMScheduler)
    x = start(EVENT)
    want = posterior.prior_from_pipeline(sd).given("a cat")(x, 0.5).x0
    sd.scheduler = kind.from_config(sd.scheduler.config)
    prior = posterior.prior_from_pipeline(sd)
    assert torch.equal(prior.given("a cat")(x, 0.5).x0, want)
    with pytest.raises(CapabilityError, match=f"{kind.__name__} are not reproduced.*DDIMScheduler"):
        prior.home()
    sd.scheduler = DDIMScheduler.from_config(sd.scheduler.config)
    assert len(posterior.prior_from_pipeline(sd).home_grid(4)) == 5


def test_bad_input(sd: StableDiffusionPipeline) -> None:
    sd.scheduler = sd_scheduler(PNDMScheduler, skip_prk_steps=True)
    prior = posterior.prior_from_pipeline(sd)
    assert prior.given("a cat")(start(EVENT), 0.5).x0.shape == (1, *EVENT)
    with pytest.raises(CapabilityError, match=r"PNDMScheduler are not reproduced.*DDIMScheduler"):
        prior.home()
    with pytest.raises(InputTypeError, match="prompts or their embeddings"):
        prior.given(3)
    with pytest.raises(InputError, match=r"\(M, tokens, 32\)"):
        prior.given(torch.zeros(1, 5, 7))
    with pytest.raises(InputError, match=r"give shape=\(4, 32, 32\)"):
        posterior.sample(prior, shape=(3, 64, 64), steps=1)
    for config, error in (
        ({"interpolation_type": "log_linear"}, "not reproduced"),
        ({"timestep_type": "continuous"}, "timestep_type"),
    ):
        sd.scheduler = sd_scheduler(EulerDiscreteScheduler, **config)
        with pytest.raises(CapabilityError, match=error):
            posterior.prior_from_pipeline(sd).home_grid(5)
    sd.scheduler = sd_scheduler(DDIMScheduler, prediction_type="flow_prediction")
    with pytest.raises(InputError, match=r"prediction_type='flow_prediction'.*does not belong"):
        posterior.prior_from_pipeline(sd)
    with pytest.raises(CapabilityError, match="inpainting"):
        posterior.prior_from_pipeline(stable_diffusion(in_channels=9))
    parts = stable_diffusion_xl().components
    refiner = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    with pytest.raises(CapabilityError, match="refiner"):
        posterior.prior_from_pipeline(refiner)
    half = stable_diffusion().to(torch.float16)
    with pytest.raises(CapabilityError, match="float16 on a CPU"):
        posterior.prior_from_pipeline(half)
