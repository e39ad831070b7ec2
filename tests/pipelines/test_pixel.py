"""Pixel pipelines: the same samples as at home, over step counts, parametrisations, spacings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    KarrasVePipeline,
    KarrasVeScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from pipeline_helpers import drawing, ours, pixel_unet, same_path, seen_by, start
from torch import Tensor

import posterior
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.guidance.base import Guidance
from posterior.streams import Noise
from posterior.transitions import Euler

EVENT = (3, 8, 8)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return pixel_unet()


def numbers(names: list[str], steps: int) -> Iterator[Tensor]:
    """The noise of our run: the start, then each step's."""
    noise = Noise.single(0, EVENT)
    yield noise("start")
    for k in range(1, steps + 1):
        for name in names:
            yield noise.at(k)(name)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(pipe: Any, steps: int, modules: list[str], names: list[str], atol: float) -> Tensor:
    """Run the pipeline on our random numbers, and ours; returns our draw."""
    prior = posterior.prior_from_pipeline(quiet(pipe))
    with seen_by(pipe.unet) as home, drawing(numbers(names, steps), *modules):
        image = pipe(num_inference_steps=steps, output_type="np").images
    with seen_by(prior.module) as here:
        samples = ours(prior, steps)
    same_path(home, here, atol)
    draw = samples.draws[0]
    assert samples.provenance["nfe"] == len(home)
    unit = (draw / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((unit - torch.as_tensor(image)).abs().max()) < atol
    return draw


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim(unet: UNet2DModel, kind: str, spacing: str) -> None:
    for k, steps in enumerate((1, 3, 7)):  # 7 does not divide 1000: uneven where it can be
        scheduler = DDIMScheduler(
            prediction_type=kind,
            timestep_spacing=spacing,
            clip_sample=k == 1,
            set_alpha_to_one=k != 2,
            beta_schedule=("linear", "scaled_linear", "squaredcos_cap_v2")[k],
            steps_offset=k == 2,
        )
        compare(
            DDIMPipeline(unet, scheduler), steps, ["pipelines.ddim.pipeline_ddim"], [], atol=1e-4
        )


def test_ddim_at_zero_terminal_snr(unet: UNet2DModel) -> None:
    """The first level has no signal at all, sigma / alpha is infinite there."""
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )
    pipe = DDIMPipeline(unet, scheduler)
    first = posterior.prior_from_pipeline(pipe).home_grid(5)[0]
    assert first == (1.0, 0.0, 1.0)
    compare(pipe, 5, ["pipelines.ddim.pipeline_ddim"], [], atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ddpm_path_by_path(unet: UNet2DModel, variance: str, spacing: str) -> None:
    """Ancestral sampling has the law of home: on the same random numbers it has its paths."""
    network = pixel_unet(out_channels=6) if variance == "learned_range" else unet
    for steps, clip in ((2, True), (5, False)):
        scheduler = DDPMScheduler(
            variance_type=variance, timestep_spacing=spacing, clip_sample=clip, steps_offset=0
        )
        pipe = DDPMPipeline(network, scheduler)
        modules = ["pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm"]
        compare(pipe, steps, modules, ["move"], atol=1e-4)


def ncsn(seed: int = 0) -> UNet2DModel:
    """A network of the score-SDE kind: Fourier features of log sigma, a score as its output."""
    return pixel_unet(seed, time_embedding_type="fourier", center_input_sample=True)


def score_sde(correct_steps: int) -> ScoreSdeVePipeline:
    scheduler = ScoreSdeVeScheduler(sigma_max=20.0, correct_steps=correct_steps)
    return quiet(ScoreSdeVePipeline(ncsn(), scheduler))


@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_score_sde_path_by_path(corrections: int) -> None:
    """Home sees images in [0, 1]: u = (x + 1) / 2.

    It also takes its last time to be 1e-5 instead of 0, which moves the sigmas that the network is
    told by up to 1e-5 log(sigma_max / sigma_min) = 1e-4 of their value: hence the tolerance.
    """
    steps, pipe = 4, score_sde(corrections)
    prior = posterior.prior_from_pipeline(pipe)
    noise = Noise.single(0, EVENT)

    def all_numbers() -> Iterator[Tensor]:
        yield noise("start")
        for k in range(1, steps + 1):
            for j in range(corrections):
                yield noise.at(k)("correct", j)
            yield noise.at(k)("move")

    modules = [
        "pipelines.deprecated.score_sde_ve.pipeline_score_sde_ve",
        "schedulers.scheduling_sde_ve",
    ]
    with seen_by(pipe.unet) as home, drawing(all_numbers(), *modules):
        image = pipe(num_inference_steps=steps, output_type="np", return_dict=False)[0]
    with seen_by(prior.module) as here:
        samples = ours(prior, steps)
    same_path(home, here, atol=1e-3)
    assert samples.provenance["nfe"] == len(home) == prior.home().nfe(steps)
    unit = (samples.draws[0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((unit - torch.as_tensor(image)).abs().max()) < 1e-3


def test_karras_ve_is_read_like_its_pipeline_reads_it(tmp_path: Path) -> None:
    """Its x0 is x + sigma^2 / 2 net((x + 1) / 2, sigma / 2); its own sampler is refused."""
    pipe = KarrasVePipeline(ncsn(), KarrasVeScheduler(sigma_min=0.01, sigma_max=50.0))
    prior = posterior.prior_from_pipeline(pipe)
    assert prior.schedule.ratio_range == (0.02, 100.0)
    level = prior.schedule.level_of_ratio(3.0)
    x = 3.0 * start(EVENT)
    with torch.no_grad():
        score = pipe.unet((x + 1) / 2, torch.tensor(1.5)).sample
    assert torch.allclose(prior(x, level.t).x0, x + 4.5 * score, atol=1e-5)
    with pytest.raises(CapabilityError, match="KarrasVeScheduler are not reproduced"):
        prior.home()
    pipe.save_pretrained(tmp_path)
    again = posterior.load_prior(tmp_path)
    assert again.schedule == prior.schedule
    assert torch.allclose(again(x, level.t).x0, prior(x, level.t).x0, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("law", ["karras", "exponential"])
def test_edm_scheduler(unet: UNet2DModel, kind: str, law: str) -> None:
    """Against the scheduler's own loop: scale the input, ask the network, step."""
    scheduler = EDMEulerScheduler(sigma_schedule=law, prediction_type=kind, sigma_data=0.6)
    prior = posterior.prior_from_pipeline(DDPMPipeline(unet, scheduler))
    scheduler.set_timesteps(6)
    x = start(EVENT) * scheduler.init_noise_sigma
    with seen_by(unet) as home, torch.no_grad():
        for t in scheduler.timesteps:
            out = unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(out, t, x).prev_sample
    with seen_by(prior.module) as here:
        draw = ours(prior, 6).draws[0]
    same_path(home, here)
    assert float((draw - x).abs().max()) < 1e-4 * float(x.abs().max())


@pytest.mark.parametrize("config", [{}, {"clip_denoised": False, "s_noise": 1.01}], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_path_by_path(unet: UNet2DModel, config: dict[str, Any], steps: int) -> None:
    pipe = quiet(ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler(**config)))
    prior = posterior.prior_from_pipeline(pipe)
    assert prior.home().default_steps == 1
    modules = [
        "pipelines.consistency_models.pipeline_consistency_models",
        "schedulers.scheduling_consistency_models",
    ]
    with seen_by(pipe.unet) as home, drawing(numbers(["move"], steps), *modules):
        image = pipe(num_inference_steps=steps, output_type="pt").images
    with seen_by(prior.module) as here:
        draw = ours(prior, steps).draws[0]
    same_path(home, here)
    assert float(((draw / 2 + 0.5).clamp(0, 1) - image).abs().max()) < 1e-4
    with pytest.raises(InputError, match="cannot make 41 steps"):
        ours(prior, 41)


def test_a_consistency_model_keeps_x_at_its_smallest_sigma(unet: UNet2DModel) -> None:
    pipe = ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler(sigma_min=0.01))
    prior, x = posterior.prior_from_pipeline(pipe), start(EVENT)
    assert torch.allclose(prior(x, prior.schedule.time_of_ratio(0.01)).x0, x, atol=1e-6)
    assert not torch.allclose(prior(x, prior.schedule.time_of_ratio(0.1)).x0, x, atol=1e-3)


def test_euler_scheduler_of_a_pixel_model(unet: UNet2DModel) -> None:
    """Its levels are those of its sigmas, between table entries too."""
    scheduler = EulerDiscreteScheduler()
    prior = posterior.prior_from_pipeline(DDPMPipeline(unet, scheduler))
    scheduler.set_timesteps(7)
    ratios = [level.ratio for level in prior.home_grid(7)]
    assert ratios == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)


def test_home_levels_serve_other_methods(unet: UNet2DModel) -> None:
    prior = posterior.prior_from_pipeline(DDIMPipeline(unet, DDIMScheduler()))
    method, grid = Guidance(transition=Euler), prior.home_grid(4)
    draws = posterior.sample(prior, method=method, grid=grid, n=2, seed=0).draws
    assert draws.shape == (2, 1, *EVENT)


def test_a_draw_does_not_depend_on_its_neighbours(unet: UNet2DModel) -> None:
    pipe = DDPMPipeline(unet, DDPMScheduler(clip_sample=False))
    prior = posterior.prior_from_pipeline(pipe, rows=2)
    three = posterior.sample(prior, method=prior.home(), steps=3, n=3).draws
    one = posterior.sample(prior, method=prior.home(), steps=3, n=1, first_draw=1).draws
    assert torch.equal(three[1:2], one)


def test_class_labels() -> None:
    unet = pixel_unet(num_class_embeds=4)
    prior = posterior.prior_from_pipeline(DDIMPipeline(unet, DDIMScheduler()))
    x, t = torch.cat([start(EVENT), start(EVENT, 1)]), 0.5
    with torch.no_grad():
        index = torch.tensor(499)
        outputs = {k: unet(x, index, class_labels=torch.tensor([k, k])).sample for k in range(4)}
    for labels, rows in ((2, [2, 2]), ([2, 3], [2, 3]), (torch.tensor([2, 3]), [2, 3])):
        given = prior.given(labels)
        want = torch.stack([outputs[k][row] for row, k in enumerate(rows)])
        assert torch.allclose(given(x, t).eps, want, atol=1e-5)
    guided = prior.given([2, 3], negative=0, scale=3.0)
    want = torch.stack([outputs[2][0], outputs[3][1]])
    assert torch.allclose(guided(x, t).eps, outputs[0] + 3 * (want - outputs[0]), atol=1e-5)
    assert guided.measurements == 2
    for wrong, error in ((4, InputError), ("cat", InputTypeError), (True, InputTypeError)):
        with pytest.raises(error):
            prior.given(wrong)
    with pytest.raises(InputError, match="needs a label"):
        prior(x, t)
    with pytest.raises(InputError, match="conditions for 2 rows"):
        guided(x[:1], t)


def test_bad_input(unet: UNet2DModel) -> None:
    prior = posterior.prior_from_pipeline(DDIMPipeline(unet, DDIMScheduler()))
    with pytest.raises(CapabilityError, match="unconditional"):
        prior.given("a cat")
    with pytest.raises(InputError, match="crop to 8x8 or pad to 10x8"):
        posterior.sample(prior, shape=(3, 9, 8), steps=1)
    with pytest.raises(InputError, match="crop to 8x8 or pad to 10x8"):
        prior(torch.zeros(1, 3, 9, 8), 0.5)
    with pytest.raises(InputError, match=r"images \(3, H, W\)"):
        posterior.sample(prior, shape=(1, 8, 8), steps=1)
    with pytest.raises(InputError, match="cannot make 2000 steps"):
        ours(prior, 2000)
    with pytest.raises(CapabilityError, match="not a denoiser"):
        posterior.prior_from_pipeline(DDPMPipeline(pixel_unet(out_channels=4), DDPMScheduler()))
    with pytest.raises(InputError, match="eta= belongs to a DDIM scheduler"):
        posterior.prior_from_pipeline(DDPMPipeline(unet, DDPMScheduler())).home(eta=0.5)
    with pytest.raises(CapabilityError, match="thresholding"):
        posterior.prior_from_pipeline(DDIMPipeline(unet, DDIMScheduler(thresholding=True))).home()
    for unknown in (torch.nn.Identity(), "photo", None):
        with pytest.raises(InputTypeError, match="expected a diffusers pipeline"):
            posterior.prior_from_pipeline(unknown)


def test_eta_between_ddim_and_ddpm(unet: UNet2DModel) -> None:
    """eta = 0.5 on the same random numbers."""
    pipe = quiet(DDIMPipeline(unet, DDIMScheduler(clip_sample=False)))
    prior = posterior.prior_from_pipeline(pipe)
    modules = ["pipelines.ddim.pipeline_ddim", "schedulers.scheduling_ddim"]
    # home also draws for the last step, and multiplies by zero
    with seen_by(unet) as home, drawing(numbers(["move"], 4), *modules):
        pipe(num_inference_steps=4, eta=0.5, output_type="np")
    with seen_by(prior.module) as here:
        posterior.sample(prior, method=prior.home(eta=0.5), steps=4, seed=0)
    same_path(home, here)
