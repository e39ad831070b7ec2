"""The example that edits photographs: small random models of the classes that it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pipeline_helpers import flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

import posterior
from posterior.errors import FileProblem

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import edit_photo

MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "Stable Diffusion": (stable_diffusion, {}, "NegativePromptInversion"),
    "XL": (stable_diffusion_xl, {}, "NegativePromptInversion"),
    "latent consistency": (stable_diffusion, {"time_cond_proj_dim": 8}, "PostEdit"),
    "Stable Diffusion 3": (stable_diffusion_3, {}, "FlowEdit"),
    "FLUX": (flux, {"guidance_embeds": True}, "FlowEdit"),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_class_has_a_method_that_runs(name: str) -> None:
    make, options, method = MODELS[name]
    prior: Any = posterior.prior_from_pipeline(make(**options))
    prior.default_shape = (4, 8, 8)  # that of FLUX is its own, whatever the network
    wide = torch.linspace(-1, 1, 40).expand(3, 20, 40)
    out, order = edit_photo.edited(wide, prior, "a cat", "a dog", variants=2, steps=3)
    assert out.provenance["method"].startswith(method)
    assert out.draws.shape == (2, 1, 3, 16, 16)
    assert torch.isfinite(out.draws).all()
    assert sorted(order) == [0, 1]
    ratio = out.diagnostics.get("log_ratio")
    assert (ratio is None) == prior.embeds_scale
    if ratio is not None:
        assert ratio[order[0], 0] >= ratio[order[1], 0]


def test_the_middle_square_is_scaled_to_the_model() -> None:
    prior: Any = posterior.prior_from_pipeline(stable_diffusion())
    wide = torch.full((1, 32, 64), -1.0)
    wide[..., 16:48] = 1.0
    square = edit_photo.fitting(wide, prior)
    assert square.shape == (1, 3, 16, 16)
    assert (square == 1).all(), "nothing of the sides"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stable_diffusion().save_pretrained(tmp_path / "model")
    Image.new("RGB", (24, 20), "navy").save(tmp_path / "cat.png")
    told = [str(tmp_path / "cat.png"), "a cat", "a dog", "--model", str(tmp_path / "model"),
            "--out", str(tmp_path / "out"), "--steps", "4"]  # fmt: skip
    edit_photo.main([*told, "--variants", "2", "--method", "sdedit"])
    assert "variants by likelihood: draw-" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["provenance"]["method"].startswith("SDEdit")
    with pytest.raises(FileProblem, match="not empty"):
        edit_photo.main(told)
