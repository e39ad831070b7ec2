"""`posterior.edit` on Stable Diffusion and flow transformers: small random models, real classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_helpers import stable_diffusion
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.errors import CapabilityError, FileProblem, InputError, InputTypeError
from posterior.guidance import REGISTRY
from posterior.images import read_image
from posterior.schedules import VPLinear

SIDE = 16  # pixels; latents are 8x8
KEEP = torch.zeros(SIDE, SIDE)
KEEP[:, :7] = 1  # three whole latents and half of the fourth
PROMPTS = {"source": "a red circle", "target": "a green square"}


@pytest.fixture(scope="module")
def sd() -> priors.Prior:
    """Stable Diffusion with random weights."""
    return posterior.prior_from_pipeline(stable_diffusion())


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Two smooth images."""
    ramp = torch.linspace(-0.8, 0.8, SIDE)
    down, across = torch.meshgrid(ramp, ramp, indexing="ij")
    one = torch.stack([down, across, 0.3 * down])
    return torch.stack([one, one.flip(1, 2)])


def quick(image: Tensor, prior: priors.Prior, **settings: object) -> posterior.editing.Edited:
    """An edit in a few steps."""
    return posterior.edit(image, prior, **{**PROMPTS, "steps": 4, **settings})


EDITORS = sorted(
    name
    for name, cls in REGISTRY.items()
    if "source" in cls.needs or name in ("blended", "flowchef")
)


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_runs_and_no_image_depends_on_another(
    name: str, sd: priors.Prior, image: Tensor
) -> None:
    masked = {"keep": KEEP} if "measurement" in REGISTRY[name].needs else {}
    both = quick(image, sd, method=name, n=2, seed=3, **masked)
    assert both.draws.shape == (2, 2, 3, SIDE, SIDE)
    assert both.latents is not None
    assert torch.isfinite(both.draws).all()
    alone = quick(image[1:], sd, method=name, n=2, seed=4, **masked)
    assert torch.equal(alone.draws[:, 0], both.draws[:, 1])
    one = quick(image[:1], sd, method=name, seed=3, max_batch=1, **masked)
    assert torch.equal(one.draws[0], both.draws[0, :1])


def test_postedit_is_the_default_and_reports_what_it_did(sd: priors.Prior, image: Tensor) -> None:
    out = posterior.edit(image[:1], sd, **PROMPTS, n=2)
    assert out.provenance["method"].startswith("PostEdit")
    assert out.provenance["nfe"] == 10  # 5 steps, guided by 4
    assert out.diagnostics["distance"].shape == (2, 1)
    direct = float((out.draws[1, 0] - image[0]).square().mean().sqrt())
    assert float(out.diagnostics["distance"][1, 0]) == pytest.approx(direct, rel=1e-5)
    assert "distance to the source" in out.report
    assert "a red circle → a green square" in out.title
    torch.testing.assert_close(
        out.difference[0, 0], ((out.draws - image[:1]) / 2).square().mean((0, 2))[0].sqrt()
    )
    codec = sd.codec
    torch.testing.assert_close(out.reconstruction, codec.decode(codec.encode(image[:1])))


@pytest.mark.parametrize("method", ["auto", "postedit", "ddim-inversion", "flowedit", "flowchef"])
def test_a_mask_keeps_latents_and_paste_back_keeps_pixels(
    method: str, sd: priors.Prior, image: Tensor
) -> None:
    out = quick(image[:1], sd, method=method, keep=KEEP)
    z = sd.codec.encode(image[:1])
    assert out.latents is not None
    torch.testing.assert_close(out.latents[0, ..., :3], z[..., :3], rtol=1e-5, atol=1e-5)
    assert float((out.latents[0, ..., 3:] - z[..., 3:]).abs().max()) > 0.1
    codec_alone = out.reconstruction - image[:1]
    assert torch.equal(out.draws[0, ..., :7] - image[:1, ..., :7], codec_alone[..., :7])
    assert (
        float(out.diagnostics["kept_change"].max()) == float(codec_alone[..., :7].abs().max()) > 0
    )
    exact = quick(image[:1], sd, method=method, keep=KEEP, paste_back=True)
    assert torch.equal(exact.draws[0, ..., :7], image[:1, ..., :7])
    assert float(exact.diagnostics["kept_change"].max()) == 0
    inverse = quick(image[:1], sd, method=method, edit=1 - KEEP)
    assert torch.equal(inverse.draws, out.draws)


def test_a_mask_alone_repaints_under_the_prior_as_it_stands(
    sd: priors.Prior, image: Tensor
) -> None:
    out = posterior.edit(image[:1], sd, keep=KEEP, steps=3)
    assert out.provenance["method"].startswith("Blended")
    assert out.provenance["nfe"] == 3


def test_negative_prompt_inversion_reconstructs_at_any_scale(
    sd: priors.Prior, image: Tensor
) -> None:
    """With equal prompts the guided noise is the source's own, whatever the scale."""
    settings = {"method": "negative-prompt-inversion", "target": PROMPTS["source"], "steps": 6}
    weak = quick(image[:1], sd, scale=2.0, **settings).latents
    strong = quick(image[:1], sd, scale=9.0, **settings).latents
    torch.testing.assert_close(strong, weak, rtol=1e-4, atol=1e-4)


def test_the_scales_are_the_published_ones_and_can_be_changed(
    sd: priors.Prior, image: Tensor
) -> None:
    published = quick(image[:1], sd, method="ddcm")
    assert published.provenance["nfe"] == 4 * (2 + 1)  # 2.3 under the target, 1 under the source
    plain = quick(image[:1], sd, method="ddcm", scale=1.0)
    assert plain.provenance["nfe"] == 4 * 2
    same = quick(image[:1], sd, method="ddcm", target=PROMPTS["source"], scale=1.0)
    z = sd.codec.encode(image[:1])
    torch.testing.assert_close(same.latents, z[None], rtol=1e-5, atol=1e-5)


def test_strength_and_seeds(sd: priors.Prior, image: Tensor) -> None:
    weak = quick(image[:1], sd, method="sdedit", strength=0.25)
    strong = quick(image[:1], sd, method="sdedit", strength=1.0)
    assert (weak.provenance["nfe"], strong.provenance["nfe"]) == (2, 8)
    again = quick(image[:1], sd, method="sdedit", strength=1.0)
    other = quick(image[:1], sd, method="sdedit", strength=1.0, seed=1)
    assert torch.equal(again.draws, strong.draws)
    assert not torch.equal(other.draws, strong.draws)


def test_edits_of_one_model_encode_a_prompt_once(image: Tensor) -> None:
    pipe, calls = stable_diffusion(), list[object]()
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    prior = posterior.prior_from_pipeline(pipe)
    for seed, method in enumerate(("ddcm", "postedit", "negative-prompt-inversion")):
        quick(image[:1], prior, method=method, steps=2, seed=seed)
    assert len(calls) == 3, "source, target, and the empty prompt"


# ------------------------------------------------------------------------------ pixel priors


def components() -> priors.GaussianMixture:
    """Grey images of 4x4: a dark and a bright left half on any right half."""
    means = torch.zeros(2, 1, 4, 4)
    means[0, ..., :2], means[1, ..., :2] = -0.7, 0.7
    variance = torch.full((1, 4, 4), 0.1)
    variance[..., :2] = 0.005
    return priors.GaussianMixture(
        torch.tensor([0.5, 0.5]), means, torch.diag(variance.flatten()), VPLinear()
    )


@pytest.mark.parametrize("method", ["postedit", "ddcm", "flowedit", "ddim-inversion", "bdia"])
def test_components_are_prompts(method: str) -> None:
    prior = components()
    x = prior.given(0).sample(3, seed=0).float().clamp(-1, 1)
    out = posterior.edit(x, prior, source=0, target=1, method=method, strength=None)
    assert out.latents is None
    assert torch.equal(out.reconstruction, x)
    assert float(out.draws[0, ..., :2].mean()) == pytest.approx(0.7, abs=0.2)
    drift = float((out.draws[0, ..., 2:] - x[..., 2:]).square().mean().sqrt())
    assert drift < 0.35  # two independent ones are 0.32 sqrt(2) = 0.45 apart


def test_an_edit_is_scored_by_what_the_model_thinks_of_it() -> None:
    prior = components()
    x = prior.given(0).sample(2, seed=0).float().clamp(-1, 1)
    run = {"source": 0, "target": 1, "likelihood": 12, "n": 2}
    out = posterior.edit(x, prior, method="ddcm", **run)
    a, b = prior.given(1), prior.given(0)
    exact = torch.stack([a.log_prob(draw) - b.log_prob(draw) for draw in out.draws])
    # 8 entries at +-0.7 with a variance of 0.005: the ratio is some 1500, its noise some 45
    assert (exact > 500).all()
    ratio = out.diagnostics["log_ratio"]
    torch.testing.assert_close(ratio, exact.float(), rtol=0.2, atol=0)
    assert "nats" in out.report
    alone = posterior.edit(x[1:], prior, method="ddcm", seed=1, **run)
    torch.testing.assert_close(alone.diagnostics["log_ratio"][:, 0], ratio[:, 1])
    hardly = guidance.SDEdit(strength=0.05, spacing="karras")
    still = posterior.edit(x, prior, method=hardly, **run)
    assert (still.diagnostics["log_ratio"] < 0).all(), "nothing was edited"


def test_a_model_with_its_guidance_built_in_has_no_likelihood(image: Tensor) -> None:
    prior = posterior.prior_from_pipeline(stable_diffusion(time_cond_proj_dim=8))
    with pytest.raises(CapabilityError, match="guidance built in"):
        quick(image[:1], prior, likelihood=4)
    assert prior.counts.nfe == 0


def test_a_likelihood_is_that_of_what_is_returned() -> None:
    """Pasting the source back undoes the edit, and the ratio says so."""
    prior = components()
    x = prior.given(0).sample(1, seed=0).float().clamp(-1, 1)
    keep = torch.ones(4, 4)
    keep[3, 3] = 0
    run = {"source": 0, "target": 1, "likelihood": 8, "method": "dps", "steps": 8}
    out = posterior.edit(x, prior, keep=keep, paste_back=True, **run)
    assert float(out.diagnostics["log_ratio"]) < -100


def test_an_operator_says_what_is_kept() -> None:
    """The low frequencies of the source stay, to the noise; what they do not show may change."""
    prior = priors.Gaussian(torch.zeros(1, 8, 8), 0.25, VPLinear())
    x = prior.sample(2, seed=0).float().clamp(-1, 1)
    low = operators.SuperResolution(2, kernel="average")
    out = posterior.edit(x, prior, keep=low, keep_noise=0.05, n=20, steps=200)
    assert out.provenance["method"].startswith("MMPS")
    assert "SuperResolution" in out.provenance["operator"]
    misfit = torch.stack([low(draw) - low(x) for draw in out.draws])
    # N(0, 0.25 / 4) measured with noise 0.05: a posterior of std 0.049 about 0.96 y, and the
    # first-order time steps take 5 % at 200
    assert float(misfit.std()) == pytest.approx(0.049, rel=0.1)
    inside = torch.stack([draw - x for draw in out.draws]).std()
    assert float(inside) > 0.4, "the rest is new: sqrt(2) 0.43"
    closer = posterior.edit(x, prior, keep=low, keep_noise=0.01, n=4, steps=20)
    assert float((low(closer.draws[0]) - low(x)).std()) < 0.02


def test_a_structure_is_kept_on_latents_too(sd: priors.Prior, image: Tensor) -> None:
    """Features of the decoded image; nonlinear, so DPS."""
    features = operators.SteerableFeatures(scales=1)
    structure = operators.FeatureMatch("self-similarity", features, size=16)
    run = {"target": PROMPTS["target"], "steps": 3, "n": 2, "seed": 5}
    both = posterior.edit(image, sd, keep=structure, **run)
    assert both.provenance["method"].startswith("DPS")
    assert both.provenance["vjp"] > 0
    alone = posterior.edit(image[1:], sd, keep=structure, **run | {"seed": 6})
    assert torch.equal(alone.draws[:, 0], both.draws[:, 1])


def test_the_source_prompt_does_not_touch_postedit(sd: priors.Prior, image: Tensor) -> None:
    run = {"target": PROMPTS["target"], "steps": 3}
    draws = [posterior.edit(image, sd, source=s, **run).draws for s in (None, "a cat", "a dog")]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_the_provenance_says_what_was_asked(sd: priors.Prior, image: Tensor) -> None:
    asked = {"scale": 6.0, "negative": "a dog", "paste_back": True, "likelihood": 2, "keep": KEEP}
    facts = quick(image[:1], sd, **asked).provenance
    assert {key: facts[key] for key in ("scale", "negative", "paste_back", "likelihood")} == {
        "scale": 6.0, "negative": "'a dog'", "paste_back": True, "likelihood": 2,
    }  # fmt: skip
    assert facts["keep"] == "43.8% of the pixels"
    assert facts["why"] == "chosen by posterior.edit"
    named = quick(image[:1], sd, method="ddcm", source_scale=1.5).provenance
    assert (named["source_scale"], named["why"]) == (1.5, "given")


def test_variants_that_are_all_equal_are_said_to_be(sd: priors.Prior, image: Tensor) -> None:
    out = quick(image[:1], sd, method="ddim-inversion", n=2)
    assert "nothing in DDIMInversion is random" in out.report
    assert "sigma/alpha from 0 up to" in out.report
    assert "is random" not in quick(image[:1], sd, method="sdedit", n=2).report


def test_a_title_shows_component_0_and_conditions_for_each_image() -> None:
    prior = components()
    x = prior.sample(2, seed=0).float().clamp(-1, 1)
    run = {"method": "sdedit", "steps": 2}
    assert posterior.edit(x, prior, target=0, **run).title == "0"
    assert posterior.edit(x, prior, source=1, target=0, **run).title == "1 → 0"
    assert "0, 1" in posterior.edit(x, prior, target=torch.tensor([0, 1]), **run).title


@pytest.mark.parametrize(
    "given",
    [
        {"negative": 1},
        {"scale": 5.0},
        {"source_scale": 5.0},
        {"method": "negative-prompt-inversion"},
    ],
    ids=str,
)
def test_guidance_is_not_dropped_in_silence(given: dict[str, object]) -> None:
    with pytest.raises(CapabilityError, match="GaussianMixture has no"):
        posterior.edit(torch.zeros(1, 4, 4), components(), source=0, target=1, **given)


# ------------------------------------------------------------------------------ files and faults


def test_files_in_and_a_folder_out(sd: priors.Prior, image: Tensor, tmp_path: Path) -> None:
    from PIL import Image

    pixels = ((image[0] + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    out = quick(tmp_path / "scene.png", sd, keep=KEEP, paste_back=True, n=2)
    out.save(tmp_path / "out")
    names = {"source.png", "reconstruction.png", "difference.png", "draw-0.png", "draw-1.png",
             "sheet.png", "samples.safetensors", "report.json"}  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    back, _ = read_image(tmp_path / "out" / "draw-1.png")
    source, _ = read_image(tmp_path / "scene.png")
    assert torch.equal(back[..., :7], source[..., :7]), "kept pixels survive the file exactly"
    with pytest.raises(FileProblem):
        out.save(tmp_path / "out")
    out.save(tmp_path / "out", overwrite=True)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    white = float(out.difference.max())
    assert report["image"]["difference_white"] == pytest.approx(white)
    assert report["image"]["name"] == "scene"
    grey = quick(image[:1, :1], sd)
    assert grey.draws.shape[2] == 3


BAD: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "both masks": ({"keep": KEEP, "edit": KEEP}, InputError, "not both"),
    "mask size": ({"keep": torch.ones(5, 5)}, InputError, "mask is 5 x 5"),
    "nothing kept": ({"keep": 0 * KEEP}, InputError, "nothing is observed"),
    "a kept line": ({"keep": torch.eye(SIDE)}, InputError, "no latent is kept whole"),
    "paste without mask": ({"paste_back": True}, InputError, "give keep= or edit="),
    "empty prompt": ({"target": "  "}, InputError, "empty prompt"),
    "empty source": ({"source": ""}, InputError, "empty prompt"),
    "strength": ({"method": "sdedit", "strength": 1.5}, InputError, "strength"),
    "no strength": ({"strength": 0.5}, InputError, "has no strength"),
    "method": ({"method": "postedti"}, InputError, "postedit"),
    "method a class": ({"method": guidance.PostEdit}, InputTypeError, "an instance"),
    "one of the prompts": ({"target": ["a dog", " "]}, InputError, "empty prompt"),
    "nothing asked": (
        {"source": None, "target": None, "method": "auto"},
        InputError,
        "nothing says what to change",
    ),
    "one prompt of two": ({"target": None, "method": "ddcm"}, InputError, "source= and target="),
    "negative unused": (
        {"negative": "blur", "method": "mmps", "keep": KEEP},
        InputError,
        "no effect at scale=1",
    ),
    "negative at 1": ({"negative": "blur", "scale": 1.0}, InputError, "no effect at scale=1"),
    "keep noise": ({"keep": KEEP, "keep_noise": -1.0}, InputError, "keep_noise must be"),
    "an operator and a mask": (
        {"keep": operators.SuperResolution(2), "edit": KEEP},
        InputError,
        "says what is kept",
    ),
    "an operator for PostEdit": (
        {"keep": operators.SuperResolution(2), "method": "postedit"},
        InputError,
        "PostEdit keeps the source in its own way",
    ),
    "an operator pasted": (
        {"keep": operators.SuperResolution(2), "paste_back": True},
        InputError,
        "give keep= or edit=",
    ),
    "method a number": ({"method": 3}, InputTypeError, "name or a guidance"),
    "n": ({"n": 0}, InputError, "n must be"),
    "compares two": ({"method": "ddcm", "source": None}, InputError, "compares two prompts"),
    "needs a mask": ({"method": "blended"}, InputError, "give keep= or edit="),
    "size": ({"image": torch.zeros(3, 15, 16)}, InputError, "multiples of 2"),
    "mode": ({"image": torch.zeros(4, 16, 16)}, InputError, "C = 1 or 3"),
    "missing file": ({"image": "nowhere.png"}, FileProblem, "nowhere.png"),
    "negative alone": (
        {"method": "postedit", "target": None, "negative": "blur"},
        InputError,
        "negative=",
    ),
    "likelihood alone": ({"source": None, "likelihood": 4}, InputError, "compares two prompts"),
    "one level": ({"likelihood": 1}, InputError, "likelihood must be at least 2"),
    "scale alone": (
        {"method": "postedit", "target": None, "scale": 3.0},
        InputError,
        "scale= is the guidance",
    ),
    "source scale alone": (
        {"method": "ddim-inversion", "source": None, "source_scale": 3.0},
        InputError,
        "source_scale= is the guidance",
    ),
    "source scale unasked": (
        {"method": "sdedit", "source_scale": 3.0},
        InputError,
        "a method that asks it",
    ),
    "npi": (
        {"method": "negative-prompt-inversion", "source": None},
        InputError,
        "guides away from source",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error_before_any_work(
    name: str, sd: priors.Prior, image: Tensor
) -> None:
    change, error, words = BAD[name]
    given = {"image": image[:1], **change}
    calls = sd.counts.nfe
    with pytest.raises(error, match=words):
        quick(given.pop("image"), sd, **given)  # type: ignore[arg-type]
    assert sd.counts.nfe == calls


def test_prompts_need_a_model_that_reads_them() -> None:
    prior = priors.Gaussian(torch.zeros(3, 8, 8), 1.0)
    with pytest.raises(CapabilityError, match="target='a cat'"):
        posterior.edit(torch.zeros(3, 8, 8), prior, target="a cat")


def test_methods_are_objects_too(sd: priors.Prior, image: Tensor) -> None:
    method = guidance.PostEdit(fusion=1.0, keep_fraction=1.0)
    by_object = quick(image[:1], sd, method=method)
    assert "fusion=1.0" in by_object.provenance["method"]


def test_the_command_line(
    tmp_path: Path,
    image: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    from posterior.cli import main

    def run(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["posterior", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    stable_diffusion().save_pretrained(tmp_path / "model")
    pixels = ((image[0] + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    Image.fromarray((255 * KEEP).numpy().astype(np.uint8)).save(tmp_path / "keep.png")
    told = ["--prior", str(tmp_path / "model"), "--target", "a green square", "--steps", "3"]
    monkeypatch.chdir(tmp_path)
    assert run("edit", "scene.png", *told, "--keep", "keep.png", "--paste-back", "-n", "2") == 0
    printed = capsys.readouterr().out
    assert "largest change of a kept pixel: 0 in [-1, 1]" in printed
    assert (tmp_path / "out" / "scene" / "draw-1.png").is_file()
    assert run("edit", "scene.png", *told) == 2
    assert "--overwrite" in capsys.readouterr().err
    capsys.readouterr()
    faults = [  # told before the model is loaded: there is none
        (["--method", "ddcm"], "DDCM compares two prompts: give --source and --target"),
        (["--edit", "keep.png", "--keep", "keep.png"], "give --keep or --edit, not both"),
        (["--strength", "1.5"], "strength must be in (0, 1], got 1.5"),
        (["--target", " "], "--target is an empty prompt"),
        (["--paste-back"], "--paste-back puts kept pixels back: give --keep or --edit"),
        (["--edit", "nowhere.png"], "nowhere.png"),
    ]
    for words, message in faults:
        assert run("edit", "scene.png", "--prior", "nothing", *words, "--out", "other") == 2
        assert message in capsys.readouterr().err
    model = ["--prior", str(tmp_path / "model")]
    assert run("edit", "scene.png", *model, "--out", "other") == 1
    assert "give --target, a mask by --edit or --keep, or --reference" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_pipeline_is_left_as_it_was_found(image: Tensor) -> None:
    """Also after an exception; and its weights are shared, not copied."""
    pipe = stable_diffusion()
    pipe.unet.train()
    before = {name: dict(vars(part)) for name, part in pipe.components.items() if part is not None}
    weights = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    prior = posterior.prior_from_pipeline(pipe, low_memory=True)
    quick(image[:1], prior)
    with pytest.raises(InputError):
        quick(image[:1], prior, strength=2.0)
    after = {name: dict(vars(part)) for name, part in pipe.components.items() if part is not None}
    assert after == before
    assert pipe.unet.training
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert not pipe.vae.use_tiling
    assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    with torch.no_grad():
        pipe.unet.conv_in.weight.zero_()
    assert not prior.module.conv_in.weight.any()
