"""Pipelines from folders and hub names; and a Gaussian dressed up as every kind of pipeline."""

from __future__ import annotations

import json
import shutil
import sys
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
    DiffusionPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from pipeline_helpers import ours, pixel_unet, sd_scheduler, stable_diffusion, start
from torch import Tensor, nn

import posterior
from posterior import grids, guidance, operators, priors
from posterior.errors import CapabilityError, FileProblem, InputError, InputTypeError
from posterior.estimates import Estimate
from posterior.guidance.base import Guidance
from posterior.priors.pipelines.schedule import LinearDiscrete, read
from posterior.schedules import CLEAN, Discrete


@pytest.fixture(scope="module")
def pixel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixel")
    DDIMPipeline(pixel_unet(), DDIMScheduler(timestep_spacing="trailing")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    stable_diffusion().save_pretrained(folder)
    return folder


def test_a_saved_pipeline_loads_as_the_same_prior(pixel_folder: Path) -> None:
    prior = posterior.load_prior(pixel_folder)
    same = posterior.prior_from_pipeline(
        DDIMPipeline(pixel_unet(), DDIMScheduler(timestep_spacing="trailing"))
    )
    x = start((3, 8, 8))  # where weights lie in memory moves the last bits
    assert torch.allclose(prior(x, 0.5).x0, same(x, 0.5).x0, atol=1e-5)
    assert prior.home_grid(4) == same.home_grid(4)
    assert prior.default_shape == (3, 8, 8)
    weight = prior.module.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    again = posterior.load_prior(str(pixel_folder), dtype=torch.bfloat16, rows=2)
    assert again.rows == 2
    assert torch.allclose(again(x, 0.5).x0, prior(x, 0.5).x0, atol=0.1)


def test_a_saved_text_pipeline(sd_folder: Path) -> None:
    """The safety checker and its like are not loaded."""
    index = json.loads((sd_folder / "model_index.json").read_text())
    assert "safety_checker" in index
    prior = posterior.load_prior(sd_folder).given("a cat", scale=2.0)
    same = posterior.prior_from_pipeline(stable_diffusion()).given("a cat", scale=2.0)
    assert torch.allclose(ours(prior, 2).draws, ours(same, 2).draws, atol=1e-4)


def test_broken_folders(pixel_folder: Path, sd_folder: Path, tmp_path: Path) -> None:
    def damaged(source: Path) -> Path:
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        return Path(shutil.copytree(source, target))

    with pytest.raises(FileProblem, match="no file or folder"):
        posterior.load_prior(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileProblem, match="holds no model_index"):
        posterior.load_prior(tmp_path / "empty")

    folder = damaged(pixel_folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileProblem, match="the folder unet is missing"):
        posterior.load_prior(folder)

    folder = damaged(pixel_folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileProblem, match="is a pickle"):
        posterior.load_prior(folder)

    folder = damaged(pixel_folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileProblem, match="cannot load the pipeline"):
        posterior.load_prior(folder)

    folder = damaged(pixel_folder)
    next((folder / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(FileProblem, match="cannot load the pipeline"):
        posterior.load_prior(folder)

    folder = damaged(sd_folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(FileProblem, match="not readable JSON"):
        posterior.load_prior(folder)


def test_wrong_families(pixel_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pixel_folder, tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    for name in (
        "StableDiffusionUpscalePipeline",
        "VersatileDiffusionPipeline",
        ["code", "MyPipeline"],
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        with pytest.raises(CapabilityError, match="not a family that can be a prior"):
            posterior.load_prior(folder)


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network a hub name says so; a word without a slash is a name of ours."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileProblem, match=r"google/ddpm-cat-256 is no folder here.*be reached"):
        posterior.load_prior("google/ddpm-cat-256")
    for name in ("ffhq_10m.pt", "models/ffhq_10m.pt", "./models", "../a/b", Path("models")):
        with pytest.raises(FileProblem, match=rf"there is no file.* {name}$"):
            posterior.load_prior(name)
    with pytest.raises(InputError, match="unknown prior ''"):
        posterior.load_prior("")
    with pytest.raises(InputError, match="did you mean 'photo'"):
        posterior.load_prior("foto")
    with pytest.raises(InputError, match="no such option"):
        posterior.load_prior("photo", dtype=torch.float64)


@pytest.mark.parametrize("unreached", [True, False])
def test_the_hub_is_not_blamed_for_the_network(
    monkeypatch: pytest.MonkeyPatch, unreached: bool
) -> None:
    """Diffusers says "no such file" in both cases; the error that it caught tells them apart."""

    def load_config(name: str) -> dict[str, Any]:
        try:
            if unreached:
                raise LocalEntryNotFoundError("not found") from OSError("no route to host")
            raise EntryNotFoundError("404")
        except EntryNotFoundError:
            raise OSError(f"{name} does not appear to have a file") from None

    monkeypatch.setattr(DiffusionPipeline, "load_config", load_config)
    message = "cannot be reached.*no route to host" if unreached else "the hub does not give it"
    with pytest.raises(FileProblem, match=message):
        posterior.load_prior("google/ddpm-cat-256")


def test_wrong_options(pixel_folder: Path) -> None:
    with pytest.raises(CapabilityError, match="float16 on a CPU"):
        posterior.load_prior(pixel_folder, dtype=torch.float16)
    for dtype in ("float16", torch.int8):
        with pytest.raises(InputError, match="floating point dtype of torch"):
            posterior.load_prior(pixel_folder, dtype=dtype)
    for name in ("photo", pixel_folder):
        with pytest.raises(InputError, match="rows must be at least 1"):
            posterior.load_prior(name, rows=0)
        for wrong in ("4", 1.5, True):
            with pytest.raises(InputTypeError, match="rows must be a whole number"):
                posterior.load_prior(name, rows=wrong)


def test_a_pipeline_moves_with_all_its_parts() -> None:
    """Network, encoders, autoencoder and condition, to torch's device without numbers."""
    pipe = stable_diffusion()
    prior = posterior.prior_from_pipeline(pipe).given(["a cat", "dog"], scale=2.0).to("meta")
    assert prior.device.type == "meta"
    for part in (prior.module, prior.codec.vae, prior._pipe.text_encoder):
        assert {weight.device.type for weight in part.parameters()} == {"meta"}
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):  # the user's own stay where they were
        assert {weight.device.type for weight in part.parameters()} == {"cpu"}
    x = torch.empty(2, 4, 8, 8, device="meta")
    estimate, pull = prior.vjp(x, 0.5)
    assert pull(x).device.type == estimate.x0.device.type == "meta"
    assert prior.codec.decode(x).shape == (2, 3, 16, 16)


def test_without_diffusers(pixel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CapabilityError, match=r"posterior-sampling\[diffusers\]"):
        posterior.load_prior(pixel_folder)


# ------------------------------------------------------------------ schedules and parametrisations


def test_tables_are_those_of_the_scheduler() -> None:
    for config in (
        {"beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ):
        scheduler = DDIMScheduler(**config)
        schedule = read(scheduler).schedule
        assert isinstance(schedule, Discrete)
        t = torch.arange(1, len(schedule) + 1, dtype=torch.float64) / len(schedule)
        alpha, sigma = schedule(t)
        want = scheduler.alphas_cumprod.double()
        assert torch.allclose(alpha**2, want, rtol=1e-9, atol=1e-15)
        assert torch.allclose(sigma**2, 1 - want, rtol=1e-9, atol=1e-15)


def test_a_table_that_is_linear_in_sigma() -> None:
    """Entries of the table, midpoints between, round trips; and not the table linear in the log."""
    table = Discrete.linear(10).alphas_cumprod
    linear, logarithmic = LinearDiscrete(table), Discrete(table)
    assert linear != logarithmic
    assert logarithmic != linear
    ratios = [linear.level((k + 1) / 10).ratio for k in range(10)]
    assert ratios == pytest.approx([logarithmic.level((k + 1) / 10).ratio for k in range(10)])
    assert linear.level(0.35).ratio == pytest.approx((ratios[2] + ratios[3]) / 2)
    assert logarithmic.level(0.35).ratio == pytest.approx((ratios[2] * ratios[3]) ** 0.5)
    for t in (0.1, 0.234, 0.87, 1.0):
        assert linear.time_of_ratio(linear.level(t).ratio) == pytest.approx(t)


class Dressed(nn.Module):
    """The exact denoiser of a Gaussian, answering as the network of a pipeline would."""

    def __init__(self, mean: Tensor, variance: Tensor, scheduler: Any) -> None:
        super().__init__()
        self.reading = read(scheduler)
        self.exact = priors.Gaussian(mean, variance, schedule=self.reading.schedule)
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.config = {
            "in_channels": 1,
            "out_channels": 1,
            "sample_size": 4,
            "down_block_types": ("DownBlock2D",),
        }
        self.dtype, self.device = torch.float64, torch.device("cpu")

    def forward(self, x: Tensor, time: Tensor, return_dict: bool) -> tuple[Tensor]:
        schedule, kind = self.reading.schedule, self.reading.parametrisation
        if self.reading.unit_range:  # sees u = (x + 1) / 2 and answers with its score
            x, t = 2 * x - 1, schedule.time_of_ratio(2 * time)
            return (2 * self._estimate(x, t).score,)
        if kind == "edm":
            r = (4 * time if self.reading.time is None else time / 250).exp()
            s, b = self.reading.sigma_data, self.reading.boundary
            total = (r**2 + s**2).view(-1, 1, 1, 1)
            x = x * total.sqrt()
            x0 = self._estimate(x, schedule.time_of_ratio(r)).x0
            r = r.view(-1, 1, 1, 1)
            out = (x0 - s**2 / ((r - b) ** 2 + s**2) * x) / ((r - b) * s / total.sqrt())
            return (-out if self.reading.negated else out,)
        t = (time + 1) / len(schedule)  # type: ignore[arg-type]
        return (getattr(self._estimate(x, t), kind),)

    def _estimate(self, x: Tensor, t: Tensor) -> Estimate:
        x0 = self.exact.denoise(x, t)
        return Estimate(x, t, self.exact.schedule, x0)


DRESSES = {
    "ddpm": (DDPMPipeline, DDPMScheduler()),
    "v": (DDPMPipeline, DDPMScheduler(prediction_type="v_prediction")),
    "x0, cosine": (
        DDPMPipeline,
        DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
    ),
    "zero terminal snr": (
        DDPMPipeline,
        DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    ),
    "euler": (DDPMPipeline, sd_scheduler(EulerDiscreteScheduler)),
    "edm": (DDPMPipeline, EDMEulerScheduler()),
    "edm, v": (DDPMPipeline, EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0)),
    "consistency": (ConsistencyModelPipeline, CMStochasticIterativeScheduler()),
    "score": (ScoreSdeVePipeline, ScoreSdeVeScheduler(sigma_max=100.0)),
}


METHODS = [guidance.DPS(), guidance.DDS(), guidance.DAPS()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_gaussian_in_every_dress_has_the_same_posterior_draws(method: Guidance) -> None:
    """On the same sigma / alpha the draws agree to rounding, and with those of the exact prior.

    The levels do too: a scheduler's table is single precision, its interpolation is not.
    """
    mean = 0.3 * start((1, 4, 4))[0].double()
    variance = torch.linspace(0.05, 0.4, 16, dtype=torch.float64).view(1, 4, 4)
    operator = operators.Mask.random(keep_fraction=0.5, seed=1)
    y = operator(start((1, 4, 4), 1).double())
    ratios = [9.0, 3.0, 1.0, 0.3, 0.1, 0.0]
    run: dict[str, Any] = {"noise": 0.2, "method": method, "n": 2, "seed": 0}

    exact = priors.Gaussian(mean, variance)
    levels, _ = grids.of_ratios(exact.schedule, ratios)
    want = posterior.sample(exact, operator, y, grid=levels, **run).draws
    for name, (pipeline, scheduler) in DRESSES.items():
        prior = posterior.prior_from_pipeline(
            pipeline(Dressed(mean, variance, scheduler), scheduler)
        )
        levels, note = grids.of_ratios(prior.schedule, ratios)
        assert note == ""
        assert levels[-1] == CLEAN
        draws = posterior.sample(prior, operator, y, grid=levels, **run).draws
        assert draws.dtype == torch.float64
        assert torch.allclose(draws, want, atol=1e-9), (name, float((draws - want).abs().max()))
