"""DiT: the same samples as at home, labels, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from pipeline_helpers import autoencoder, drawing, ours, same_path, seen_by, start
from torch import nn

import posterior
from posterior.errors import CapabilityError, InputError, InputTypeError

EVENT = (4, 8, 8)


def dit(**config: Any) -> DiTPipeline:
    """Two blocks, five classes and none, learned variance."""
    torch.manual_seed(0)
    default = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "norm_num_groups": 4,
    }
    network = DiTTransformer2DModel(**{**default, **config}).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "embedding_table" in name:  # as they come, classes would hardly differ
                weight.mul_(30)
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = DiTPipeline(network, autoencoder(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> DiTPipeline:
    return dit()


@pytest.mark.parametrize(("steps", "scale"), [(4, 1.0), (3, 4.0)])
def test_the_samples_of_home(pipe: DiTPipeline, steps: int, scale: float) -> None:
    """Path and image, with guidance away from class 1000 and without."""
    prior = posterior.prior_from_pipeline(pipe).given(207, scale=scale)

    def numbers() -> Iterator[torch.Tensor]:
        yield start(EVENT)

    with seen_by(pipe.transformer) as home, drawing(numbers(), "pipelines.dit.pipeline_dit"):
        image = pipe([207], guidance_scale=scale, num_inference_steps=steps, output_type="np")
    with seen_by(prior.module) as here:
        samples = ours(prior, steps)
    # home puts the condition first in a batch of both
    same_path([(t, x[:1]) for t, x in home], [(t, x[-1:]) for t, x in here])
    unit = (samples.draws[0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((unit - torch.as_tensor(image.images)).abs().max()) < 1e-4
    assert samples.provenance["nfe"] == steps * (1 if scale == 1 else 2)


def test_labels_and_sizes(pipe: DiTPipeline) -> None:
    prior = posterior.prior_from_pipeline(pipe)
    x = torch.cat([start(EVENT), start(EVENT, 1)])
    both = prior.given([3, 207], scale=2.0)(x, 0.5)
    one = prior.given(207, scale=2.0)(x[1:], 0.5)
    assert torch.allclose(both.x0[1:], one.x0, atol=1e-4)
    assert both.variance_share is not None
    none, cat = prior(x, 0.5).x0, prior.given(3)(x, 0.5).x0
    assert float((none - cat).abs().max()) > 0.01
    for wrong, error in ((1000, InputError), ("a cat", InputTypeError)):
        with pytest.raises(error):
            prior.given(wrong)
    with pytest.raises(InputError, match=r"latents \(4, 8, 8\) only, images of 16 pixels"):
        posterior.sample(prior, shape=(4, 8, 12), steps=1)
    with pytest.raises(CapabilityError, match="not a denoiser of x"):
        posterior.prior_from_pipeline(dit(in_channels=3, out_channels=6))


def test_from_a_folder(pipe: DiTPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    prior = posterior.load_prior(tmp_path, low_memory=True).given(207)
    x = start(EVENT)
    want, pull = posterior.prior_from_pipeline(pipe).given(207).vjp(x, 0.5)
    got, pull_low = prior.vjp(x, 0.5)
    assert torch.allclose(got.x0, want.x0, atol=1e-4)
    gradient = pull(x)
    assert torch.allclose(pull_low(x), gradient, atol=1e-5 * float(gradient.abs().max()))
    assert isinstance(prior.module, nn.Module)
    assert prior.module.gradient_checkpointing
