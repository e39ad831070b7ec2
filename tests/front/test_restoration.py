"""The front door in Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from front_helpers import SmoothPrior, as_tensor, listing, photograph
from PIL import Image

import posterior
from posterior import baselines, operators
from posterior.errors import FileProblem, InputError
from posterior.guidance import DPS
from posterior.images import read_image
from posterior.operators import (
    GaussianBlur,
    GaussianNoise,
    Identity,
    Mask,
    SuperResolution,
    parse,
)
from posterior.priors import Prior
from posterior.restoration import Restoration, parse_crop, prepare, restore

BLUR = GaussianBlur(sigma=1.0)


def run(image: object, operator: object = BLUR, **change: object) -> Restoration:
    settings = {"noise": 0.1, "prior": SmoothPrior(), "method": "dps", "steps": 3, "n": 2}
    return restore(image, operator, **{**settings, **change})


def test_a_degraded_file(tmp_path: Path, cat_file: Path, cat: np.ndarray) -> None:
    out = run(cat_file)
    assert isinstance(out, posterior.Samples)
    assert out.draws.shape == (2, 1, 3, 64, 64)
    assert out.mean.shape == out.std.shape == (1, 3, 64, 64)
    assert torch.allclose(out.degraded, as_tensor(cat), atol=1e-6)
    assert out.original is None
    assert not out.metrics
    assert "0.1 in [-1, 1] = 0.05 of full scale" in out.report
    folder = out.save(tmp_path / "results")
    names = {"degraded.png", "mean.png", "std.png", "draw-0.png", "draw-1.png", "sheet.png",
             "samples.safetensors", "report.json"}  # fmt: skip
    assert {p.name for p in folder.iterdir()} == names
    assert np.array_equal(np.asarray(Image.open(folder / "degraded.png")), cat)
    again = posterior.Samples.load(folder)
    assert torch.equal(again.draws, out.draws)
    assert torch.equal(again.mean, out.mean)
    mean, _ = read_image(folder / "mean.png")
    assert torch.allclose(mean, out.mean[0].clamp(-1, 1), atol=1.01 / 255)
    white = json.loads((folder / "report.json").read_text())["image"]["std_white"]
    std, _ = read_image(folder / "std.png")
    shown = (std[0].double() + 1) / 2 * white
    assert torch.allclose(
        shown, (out.std[0].double() / 2).square().mean(0).sqrt(), atol=white / 255
    )


def test_path_array_and_tensor_agree(cat_file: Path, cat: np.ndarray) -> None:
    draws = [run(image).draws for image in (cat_file, cat, as_tensor(cat), as_tensor(cat)[0])]
    for other in draws[1:]:
        assert torch.allclose(draws[0], other, atol=1e-3)


def test_simulate_scores(cat: np.ndarray) -> None:
    out = run(cat, ["gaussian-blur:sigma=1", "inpaint:box=12"], simulate=True, noise=0.04)
    found = out.metrics
    clean = as_tensor(cat)
    assert torch.allclose(out.original, clean, atol=1e-6)
    assert found["mean"]["psnr"] == pytest.approx(float(posterior.metrics.psnr(out.mean, clean)))
    assert found["degraded"]["psnr"] == pytest.approx(
        float(posterior.metrics.psnr(out.degraded, clean))
    )
    assert found["baseline"]["name"] == "total variation"
    assert found["baseline"]["psnr"] > found["degraded"]["psnr"]
    assert 0 < found["mean"]["ssim"] <= 1
    assert len(found["draws"]["psnr"]) == 2
    operator = Mask.box(size=12) @ BLUR
    y = operator.restrict(GaussianNoise(0.04).sample(operator(clean), 0))
    assert torch.allclose(out.degraded, y, atol=1e-6)
    assert "total variation: PSNR" in out.report


def test_what_a_mask_hides_does_not_matter(cat: np.ndarray) -> None:
    mask = Mask.box(size=20)
    black, white = cat.copy(), cat.copy()
    black[22:42, 22:42], white[22:42, 22:42] = 0, 255
    assert torch.equal(run(black, mask).draws, run(white, mask).draws)
    visible = cat.copy()
    visible[0, 0] = 255 - visible[0, 0]
    assert not torch.equal(run(visible, mask).draws, run(cat, mask).draws)


def test_super_resolution_enlarges(tmp_path: Path) -> None:
    small = photograph("coffee", 24)
    rgba = np.dstack([small, np.arange(24 * 24, dtype=np.uint8).reshape(24, 24)])
    Image.fromarray(rgba).save(tmp_path / "small.png")
    out = run(tmp_path / "small.png", SuperResolution(factor=2))
    assert out.draws.shape == (2, 1, 3, 48, 48)
    out.save(tmp_path / "out")
    assert read_image(tmp_path / "out" / "mean.png")[1].alpha.shape == (1, 48, 48)
    assert read_image(tmp_path / "out" / "degraded.png")[1].alpha.shape == (1, 24, 24)


def test_grey_is_the_channel_mean(tmp_path: Path, cat: np.ndarray) -> None:
    grey = cat.mean(2).round().astype(np.uint8)
    out = run(grey)
    assert out.draws.shape == (2, 1, 1, 64, 64)
    assert "channels" in out.report
    prior = SmoothPrior()
    y = as_tensor(grey[..., None])
    direct = posterior.sample(
        prior, BLUR @ operators.ChannelMean(), y, noise=0.1, method="dps", steps=3, n=2
    )
    assert torch.allclose(out.draws, direct.draws.mean(2, keepdim=True), atol=1e-5)
    out.save(tmp_path / "out")
    with Image.open(tmp_path / "out" / "mean.png") as image:
        assert image.mode == "L"


def test_16_bits_and_alpha_are_kept(tmp_path: Path, cat: np.ndarray) -> None:
    deep = cat.astype(np.uint16) * 257
    alpha = np.full((64, 64), 30000, np.uint16)
    out = run(np.dstack([deep, alpha]))
    out.save(tmp_path / "out")
    for name in ("degraded", "mean", "draw-1"):
        image, info = read_image(tmp_path / "out" / f"{name}.png")
        assert info.bits == 16
        assert torch.equal((info.alpha * 65535).round(), torch.full((1, 64, 64), 30000.0))
        assert len(image.unique()) > (256 if name != "degraded" else 100)


def test_a_batch_gets_a_folder_each(tmp_path: Path) -> None:
    images = torch.cat([as_tensor(photograph(name, 48)) for name in ("coffee", "rocket")])
    out = run(images, simulate=True)
    assert len(out.metrics["mean"]["psnr"]) == 2
    out.save(tmp_path / "out")
    assert (tmp_path / "out" / "1" / "sheet.png").is_file()
    alone = run(images[1:], simulate=True, seed=1)
    assert torch.equal(alone.draws[:, 0], out.draws[:, 1])


def test_noise_is_estimated_and_said(cat: np.ndarray) -> None:
    y = GaussianNoise(0.1).sample(BLUR(as_tensor(cat)), 0)
    out = run(y, noise=None)
    line = next(line for line in out.report.splitlines() if "estimated" in line)
    assert "of full scale" in line
    plan = prepare(y, BLUR, None, SmoothPrior())
    assert plan.noise.std == pytest.approx(0.1, rel=0.15)
    with pytest.raises(InputError, match="give noise="):
        run(y, Mask.random(keep_fraction=0.05), noise=None)


def test_no_noise_named_with_simulate(cat: np.ndarray) -> None:
    plan = prepare(cat, BLUR, prior=SmoothPrior(), simulate=True)
    assert plan.noise.std == 0.04
    assert "added 0.04 in [-1, 1] = 0.02 of full scale" in plan.notes[0]


def test_measurements_that_are_no_images(tmp_path: Path, cat: np.ndarray) -> None:
    nonlinear = operators.from_callable(lambda x: x.flatten(1)[:, ::2] ** 2, differentiable=True)
    out = run(cat, nonlinear, simulate=True, noise=0.1)
    assert out.degraded is None
    assert out.metrics["baseline"] == {"name": None}
    assert "no classical baseline" in out.report
    out.save(tmp_path / "out")
    assert not (tmp_path / "out" / "degraded.png").exists()


def test_one_draw_has_no_std(tmp_path: Path, cat: np.ndarray) -> None:
    run(cat, n=1).save(tmp_path / "out")
    assert not (tmp_path / "out" / "std.png").exists()
    assert (tmp_path / "out" / "sheet.png").exists()


def test_crop(cat: np.ndarray) -> None:
    keep = torch.ones(64, 64)
    keep[20:40, 10:20] = 0
    out = run(cat, Mask(keep=keep), crop="40x36+8+16")
    assert out.draws.shape[-2:] == (36, 40)
    cut = Mask(keep=keep[16:52, 8:48])
    assert torch.equal(out.draws, run(cat[16:52, 8:48], cut).draws)
    assert parse_crop("32", (64, 50)) == (16, 9, 32, 32)
    for wrong in ("0", "1x", "80", "32x32+40+0", "-5", "a", True, "8x8+1"):
        with pytest.raises(InputError, match="crop"):
            parse_crop(wrong, (64, 64))


@pytest.mark.parametrize(
    "text", ["inpaint:keep_fraction=0.5", "inpaint:box=9,at=20x12", "inpaint:outpaint=20"]
)
def test_a_crop_keeps_the_mask_that_hid_the_pixels(cat: np.ndarray, text: str) -> None:
    whole = parse(text)
    y = whole(as_tensor(cat))
    plan = prepare(y[0], whole, 0.1, SmoothPrior(), crop="40x36+8+16")
    pattern = whole.pattern(64, 64)[..., 16:52, 8:48]
    seen = plan.operator.restrict(torch.ones_like(plan.y)) != 0
    assert torch.equal(seen, pattern.expand_as(seen))


def test_a_grey_image_denoised(cat: np.ndarray) -> None:
    out = run(cat.mean(2).astype(np.uint8), Identity(), simulate=True)
    assert out.metrics["baseline"]["name"] == "non-local means"
    assert out.baseline.shape == out.mean.shape


def test_a_baseline_that_fails_does_so_before_the_draws(
    cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = SmoothPrior()
    monkeypatch.setattr(baselines, "biharmonic", lambda y, operator: 1 / 0)
    plan = prepare(cat, Mask.random(keep_fraction=0.5), 0.1, prior, simulate=True, steps=2)
    with pytest.raises(ZeroDivisionError):
        plan.run()
    assert prior.counts.nfe == 0


def test_a_large_image_is_timed_on_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    prior = SmoothPrior()
    denoise = prior.denoise
    monkeypatch.setattr(prior, "denoise", lambda x, t: (seen.append(x.shape), denoise(x, t))[1])
    plan = prepare(torch.zeros(3, 256, 512), BLUR, 0.1, prior, "dps", n=1, steps=10)
    assert plan.seconds() > 0
    assert max(shape[-1] * shape[-2] for shape in seen) <= 192 * 192


def test_the_plan_knows_the_cost(cat: np.ndarray) -> None:
    prior = SmoothPrior()
    plan = prepare(cat, BLUR, 0.1, prior, "dps", n=3, steps=4)
    assert plan.seconds() > 0
    before = (prior.counts.nfe, prior.counts.vjp)
    plan.run()
    assert (prior.counts.nfe - before[0], prior.counts.vjp - before[1]) == (plan.nfe, plan.vjps)


def test_preparing_makes_no_network_call(cat: np.ndarray) -> None:
    prior = SmoothPrior()
    prepare(cat, BLUR, 0.1, prior)
    assert prior.counts.nfe == 0


def test_checkpoint_and_resume(tmp_path: Path, cat: np.ndarray) -> None:
    whole = run(cat, steps=4)
    run(cat, steps=4, checkpoint=tmp_path / "c", callback=lambda step: step.index == 1)
    resumed = run(cat, steps=4, resume=tmp_path / "c")
    assert torch.equal(whole.draws, resumed.draws)


def test_saving_is_all_or_nothing(
    tmp_path: Path, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(cat)
    folder = tmp_path / "out"
    out.save(folder)
    before = listing(tmp_path)
    with pytest.raises(FileProblem, match="exists"):
        out.save(folder)
    assert listing(tmp_path) == before

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Restoration, "sheet", fail)
    with pytest.raises(FileProblem, match="No space"):
        out.save(folder, overwrite=True)
    assert listing(tmp_path) == before
    with pytest.raises(FileProblem, match="No space"):
        out.save(tmp_path / "other")
    assert listing(tmp_path) == before
    monkeypatch.undo()

    run(cat, n=1).save(folder, overwrite=True)  # nothing of the earlier result is left over
    assert not (folder / "draw-1.png").exists()
    (folder / "thesis.txt").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(FileProblem, match=r"thesis\.txt"):
        out.save(folder, overwrite=True)
    with pytest.raises(FileProblem, match="file"):
        out.save(folder / "thesis.txt")
    with pytest.raises(FileProblem, match="file"):
        out.save(folder / "thesis.txt" / "below")
    assert listing(tmp_path) == before


def test_overwriting_spares_numbered_folders_of_other_things(
    tmp_path: Path, cat: np.ndarray
) -> None:
    out = run(cat, n=1)
    photographs = tmp_path / "out" / "2023"
    photographs.mkdir(parents=True)
    (photographs / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileProblem, match="2023"):
        out.save(tmp_path / "out", overwrite=True)
    assert (photographs / "holiday.jpg").read_bytes() == b"mine"


def test_the_sheet(tmp_path: Path, cat: np.ndarray) -> None:
    out = run(cat, simulate=True, n=3)
    for result in (out, run(cat, n=1), run(cat[:, :40], n=9)):
        path = result.sheet(tmp_path / "sheet.png")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] == 12 * 60
        assert 0.3 < pixels.shape[0] / pixels.shape[1] < 1.3
        ink = (pixels != 255).any(2)
        assert 0.5 < ink.mean() < 0.95  # mostly pictures, little empty paper
        assert ink[:, :18].mean() == 0  # and a margin
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500


def test_method_objects_and_priors_by_name(photo_prior: Prior, cat: np.ndarray) -> None:
    by_name = run(cat, prior="photo")
    assert torch.equal(by_name.draws, run(cat, method=DPS()).draws)
    assert "SmoothPrior" in by_name.report
