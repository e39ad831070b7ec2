"""`posterior train-prior`: what it learns, repeats, writes, and refuses before it begins."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from front_helpers import listing
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import posterior
from posterior import cli, operators, priors, training
from posterior.errors import FileProblem, InputError, ResumeError, TrainingError
from posterior.images import write_image
from posterior.priors.photo import PhotoConfig
from posterior.training import LEVELS, draw_sigmas, orthogonal, prepare
from posterior.training_data import Patches, as_x, centre, read_folder, rescaled

TINY = {"width": 12, "pixels": 4 * 32 * 32}
Array = np.ndarray[Any, Any]


def fields(*shape: int, seed: int = 0) -> Array:
    """Smooth random fields (..., H, W), the largest value of each 1 in size."""
    white = np.random.default_rng(seed).standard_normal(shape)
    fy, fx = np.fft.fftfreq(shape[-2])[:, None], np.fft.fftfreq(shape[-1])[None]
    smooth = np.fft.ifft2(np.fft.fft2(white) * (fy**2 + fx**2 + 1e-3) ** -1).real
    out: Array = smooth / np.abs(smooth).max((-2, -1), keepdims=True)
    return out


def as_bytes(field: Array) -> Array:
    return np.rint((field + 1) * 127.5).astype(np.uint8)


def write_pngs(folder: Path, count: int = 4, height: int = 24, width: int = 30) -> Path:
    """Grey PNG files of smooth fields."""
    folder.mkdir(exist_ok=True)
    for k, field in enumerate(as_bytes(fields(count, height, width))):
        Image.fromarray(field).save(folder / f"{k:02}.png")
    return folder


def write_kind(folder: Path, kind: str) -> Path:
    """A dozen images of one kind."""
    folder.mkdir()
    if kind == "grey":
        return write_pngs(folder, 12)
    if kind == "rgb":
        for k, field in enumerate(as_bytes(fields(12, 3, 32, 40))):
            Image.fromarray(field.transpose(1, 2, 0)).save(folder / f"{k:02}.png")
    else:
        real, imaginary = fields(2, 12, 24, 24)
        np.save(folder / "slices.npy", 7 * (real + 1j * imaginary))
    return folder


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.fixture
def no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sheet of draws, which costs more than a few steps."""
    monkeypatch.setattr(training, "_write_draws", lambda *_: None)


# What it learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "channels"), [("grey", 1), ("rgb", 3), ("complex", 2)])
def test_it_learns_to_denoise(tmp_path: Path, kind: str, channels: int) -> None:
    """Sixty steps beat the best linear denoiser, pixel by pixel, on images that were held out."""
    folder, out = write_kind(tmp_path / "images", kind), tmp_path / "own.safetensors"
    job = prepare(folder, out, steps=60, **TINY)
    job.run(progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {
        "images", "own.safetensors", "own.draws.png", "own.checkpoint.pt"
    }  # fmt: skip

    prior = priors.PhotoPrior.load(out)
    found = read_folder(folder)
    size = job.trainer.recipe.sizes[0]
    assert size == (32 if kind == "rgb" else 24)
    assert prior.channels == channels
    assert prior.range == (None if kind == "complex" else (-1.0, 1.0))
    assert prior.sigma_data == pytest.approx(found.rms)
    x = torch.stack([centre(image, size) for image in found.held_out])
    generator = torch.Generator().manual_seed(1)
    for level, gain in ((0.3, 1.0), (1.0, 1.5)):  # measured: 1.1 to 1.3, 1.9 to 2.5
        sigma = level * prior.sigma_data
        y = x + sigma * torch.randn(x.shape, generator=generator)
        learned = prior(y, prior.schedule.time_of_ratio(sigma)).x0
        linear = y / (1 + level**2)
        assert gain * (learned - x).square().mean() < (linear - x).square().mean()

    notes = prior.notes
    assert notes["training"] == "posterior train-prior"
    assert (notes["steps"], notes["seed"], notes["augment"]) == ("60", "0", "flips")
    scores = json.loads(notes["held_out"])
    assert [s["sigma"] for s in scores] == [pytest.approx(k * found.rms) for k in LEVELS]
    assert scores[2]["psnr"] > scores[2]["linear"] + 10 * math.log10(1.5)
    data = json.loads(notes["data"])
    assert (data["training_images"], data["held_out_images"]) == (11, 1)
    assert data["kind"] == ("complex" if kind == "complex" else "integer")

    mask = operators.Mask.random(keep_fraction=0.5, seed=0)
    draws = posterior.sample(prior, mask, mask(x[:1]), noise=0.1, n=2, steps=2).draws
    assert draws.shape == (2, 1, channels, size, size)
    assert torch.isfinite(draws).all()
    with pytest.raises(InputError, match="prior makes"):
        posterior.sample(prior, shape=(channels + 1, size, size))
    with Image.open(tmp_path / "own.draws.png") as sheet:
        assert sheet.size == (8 * size, 3 * size + 8)


def test_minutes_end_on_time_with_the_rate_at_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_draws: None
) -> None:
    rates: list[float] = []
    step = training.Muon.step
    monkeypatch.setattr(
        training.Muon, "step", lambda self, rate: (rates.append(rate), step(self, rate))
    )
    clock = itertools.count(0.0, 5.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    job = prepare(write_pngs(tmp_path / "in"), tmp_path / "a.safetensors", minutes=0.5, **TINY)
    job.run(progress=False)
    assert job.trainer.step == len(rates) == 6  # of five seconds each
    assert rates[-1] == 0
    assert max(rates) <= 0.02
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert header(tmp_path / "a.safetensors")["minutes"] == "0.5"


@pytest.mark.parametrize(("half", "atol"), [(False, 1e-4), (True, 0.1)])
@pytest.mark.parametrize("shape", [(5, 9), (8, 8)])
def test_orthogonal(shape: tuple[int, int], half: bool, atol: float) -> None:
    """Singular values between 0.6 and 1.3 where the iteration has had time: those above 1 %.

    Half precision moves 2^-9 of a large direction into one of 1 %, which is raised by up to forty
    in the steps that are left: 0.08.
    """
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    s = torch.logspace(0, -2, min(shape))
    matrix = (u[:, : len(s)] * s) @ v[: len(s)]
    found = u.mT @ orthogonal(matrix[None], half=half)[0] @ v.mT
    values = found.diagonal()
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    torch.testing.assert_close(found[:, : len(s)], values.diag(), atol=atol, rtol=0)


@given(count=st.integers(1, 40), seed=st.integers(0, 2**32), scale=st.floats(0.01, 10))
def test_noise_levels_scale_with_the_data(count: int, seed: int, scale: float) -> None:
    one = draw_sigmas(count, PhotoConfig(), np.random.default_rng(seed))
    config = PhotoConfig(sigma_data=0.5 * scale, sigma_min=0.002 * scale, sigma_max=80 * scale)
    other = draw_sigmas(count, config, np.random.default_rng(seed))
    assert one.shape == (count,)
    assert bool((one >= 0.002 * (1 - 1e-6)).all() & (one <= 80).all())
    torch.testing.assert_close(other, scale * one)


# Repeating ---------------------------------------------------------------------------------------


def test_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_draws: None
) -> None:
    folder = write_pngs(tmp_path / "images")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    prepare(folder, tmp_path / "whole.safetensors", steps=6, **TINY).run()
    priors.PhotoPrior.load(tmp_path / "whole.safetensors")
    assert torch.equal(torch.get_rng_state(), before)  # no global generator is touched

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    draw, calls = Patches.draw, [0]

    def interrupted(self: Patches, *arguments: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    monkeypatch.setattr(Patches, "draw", interrupted)
    parts = tmp_path / "parts.safetensors"
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, parts, steps=6, **TINY).run()
    job = prepare(folder, parts, steps=6, resume=True, **TINY)
    assert job.trainer.step == 3
    with pytest.raises(ResumeError, match="differs: seed"):
        prepare(folder, parts, steps=6, resume=True, seed=1, **TINY)
    job.run()

    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(parts)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    states = [
        torch.load(tmp_path / f"{name}.checkpoint.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    for part in ("net", "average", "optimiser", "rng", "uncertainty", "loss", "step"):
        assert training.fingerprint(states[0][part]) == training.fingerprint(states[1][part])
    (folder / "00.png").unlink()
    with pytest.raises(ResumeError, match="differs: images"):
        prepare(folder, parts, steps=9, resume=True, **TINY)


def test_another_seed_is_another_run(tmp_path: Path, no_draws: None) -> None:
    folder = write_pngs(tmp_path / "images")
    for seed in (0, -1):
        prepare(folder, tmp_path / f"{seed}.safetensors", steps=1, seed=seed, **TINY).run()
    one, other = (load_file(tmp_path / f"{seed}.safetensors") for seed in (0, -1))
    assert not torch.equal(one["enter.weight"], other["enter.weight"])


# Reading -----------------------------------------------------------------------------------------


def test_scales(tmp_path: Path) -> None:
    """x = -1 and 1 are full scale for integers, the largest value for others, or what is given."""
    eight, sixteen, floats, phases = (tmp_path / name for name in ("8", "16", "float", "complex"))
    write_pngs(eight)
    found = read_folder(eight)
    stored = np.asarray(Image.open(eight / "00.png"))
    assert (found.low, found.high, found.full_scale, found.bounded) == (0, 1, True, True)
    np.testing.assert_array_equal(as_x(found.training[0])[..., 0], stored / np.float32(127.5) - 1)

    sixteen.mkdir()
    levels = np.random.default_rng(0).integers(0, 4096, (2, 24, 24)).astype(np.uint16)
    write_image(sixteen / "a.png", torch.from_numpy(levels[:1] / 32767.5 - 1), bits=16)
    np.save(sixteen / "b.npy", levels[1])
    found = read_folder(sixteen, (0, 4095))
    assert (found.bounded, found.clipped) == (True, 0)
    for image, stored in zip((found.training[0], found.held_out[0]), levels, strict=True):
        np.testing.assert_allclose(image[..., 0], stored / 2047.5 - 1, atol=1e-6)

    floats.mkdir()
    stack = 40 * fields(20, 24, 24)
    stack[3] -= 10
    np.save(floats / "stack.npy", stack)
    found = read_folder(floats)
    largest = np.abs(stack).max()
    assert (found.low, found.high) == (-np.float32(largest), np.float32(largest))
    assert not found.bounded
    assert len(found.held_out) == 2
    np.testing.assert_allclose(found.held_out[0][..., 0], stack[9] / largest, atol=1e-6)
    assert found.rms == pytest.approx(
        np.sqrt(np.mean((np.delete(stack, [9, 10], 0) / largest) ** 2))
    )
    clipped = read_folder(floats, (-20, 20))
    assert clipped.bounded
    assert clipped.clipped == pytest.approx(np.mean(np.abs(stack) > 20))
    assert max(np.abs(image).max() for image in clipped.training) == 1

    phases.mkdir()
    image = fields(24, 24) + 1j * fields(24, 24, seed=1)
    for name, part in (("a", image), ("b", image / 2)):
        np.save(phases / f"{name}.npy", part)
    found = read_folder(phases)
    x = torch.from_numpy(found.training[0]).permute(2, 0, 1)[None]
    there = operators.ComplexFromChannels()(x)[0, 0].numpy()
    np.testing.assert_allclose(there, image / np.abs(image).max(), atol=1e-6)
    doubled = read_folder(phases, (-2, 2))
    assert not doubled.bounded
    np.testing.assert_allclose(doubled.training[0][..., 0], image.real / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "images", "channels"),
    [((24, 20), 1, 1), ((24, 20, 3), 1, 3), ((3, 24, 20), 3, 1), ((5, 24, 20, 2), 5, 2)],
)
def test_shapes(tmp_path: Path, shape: tuple[int, ...], images: int, channels: int) -> None:
    for k in range(2):
        np.save(tmp_path / f"{k}.npy", np.random.default_rng(k).random(shape))
    found = read_folder(tmp_path)
    assert (len(found.training), len(found.held_out)) == (images, images)  # by file
    assert found.training[0].shape == (24, 20, channels)
    assert found.smallest == 20


def test_every_tenth_file_is_held_out(tmp_path: Path) -> None:
    write_pngs(tmp_path, 23, 16, 16)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    found = read_folder(tmp_path)
    assert (len(found.training), len(found.held_out)) == (21, 2)
    for image, name in zip(found.held_out, ("05.png", "15.png"), strict=True):
        np.testing.assert_array_equal(image[..., 0], np.asarray(Image.open(tmp_path / name)))


@pytest.mark.parametrize(("augment", "most"), [("none", 1), ("flips", 2), ("turns", 8)])
def test_orientations(augment: str, most: int) -> None:
    image = as_bytes(fields(3, 16, 16)).transpose(1, 2, 0)
    drawn = Patches([image], augment).draw(80, 16, np.random.default_rng(0))
    x = torch.from_numpy(as_x(image)).permute(2, 0, 1)
    every = [x, x.flip(2)]
    every += [torch.rot90(y, k, (1, 2)) for y in every for k in (1, 2, 3)]
    seen = {next(k for k, y in enumerate(every) if torch.equal(y, row)) for row in drawn}
    assert seen == set(range(most))


def test_photographs_are_scaled_and_darkened() -> None:
    image = as_bytes(fields(3, 80, 60)).transpose(1, 2, 0)
    scaled = list(rescaled([image], 32))
    assert [s.shape for s in scaled] == [(80, 60, 3), (64, 48, 3), (51, 38, 3)]
    assert {s.dtype for s in scaled} == {np.dtype(np.uint8)}
    assert abs(as_x(scaled[2]).mean() - as_x(image).mean()) < 0.02
    drawn = Patches(scaled, "photo").draw(50, 32, np.random.default_rng(0))
    plain = Patches(scaled, "turns").draw(50, 32, np.random.default_rng(0))
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert drawn.mean() < plain.mean()


# Refusing ----------------------------------------------------------------------------------------


def _save(folder: Path, *arrays: Array) -> None:
    for k, array in enumerate(arrays):
        np.save(folder / f"{k}.npy", array)


def _nan(folder: Path) -> None:
    bad = fields(24, 24)
    bad[3, 3] = np.nan
    _save(folder, fields(24, 24), bad)


def _broken(folder: Path) -> None:
    write_pngs(folder)
    (folder / "02.png").write_bytes((folder / "02.png").read_bytes()[:80])


FIELD = fields(24, 24)
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda f: None, "holds 0 images"),
    "one": (lambda f: write_pngs(f, 1), "holds 1 images"),
    "small": (lambda f: write_pngs(f, 3, 40, 12), "smallest image has 12 pixels.*at least 16"),
    "channels": (lambda f: _save(f, FIELD, np.stack([FIELD] * 3, -1)), "1.npy has 3"),
    "kinds": (lambda f: _save(f, FIELD, FIELD + 1j), "0.npy holds real numbers and 1.npy complex"),
    "depth": (lambda f: _save(f, FIELD, as_bytes(FIELD)), "1.npy 8 or 16-bit integers"),
    "nan": (_nan, "1.npy holds NaN"),
    "constant": (lambda f: _save(f, FIELD, np.ones((3, 24, 24))), "1.npy.0. and 2 more are const"),
    "axes": (lambda f: _save(f, FIELD, np.ones((2, 2, 2, 24, 24))), "1.npy has shape"),
    "flags": (lambda f: _save(f, FIELD > 0, FIELD > 0), "0.npy holds bool"),
    "objects": (lambda f: _save(f, np.array([{}], dtype=object)), "0.npy is not a readable"),
    "broken": (_broken, "02.png is broken"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_images_are_refused_before_training(tmp_path: Path, name: str) -> None:
    make, message = BAD_FOLDERS[name]
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    before = listing(tmp_path)
    with pytest.raises((InputError, FileProblem), match=message):
        prepare(folder, tmp_path / "a.safetensors", steps=1, **TINY)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1, "steps": 1}, "not both"),
        ({"minutes": 0}, "minutes must be positive"),
        ({"rate": -1}, "rate must be positive"),
        ({"width": 20}, "multiple of 12"),
        ({"size": 25}, "size 25 is larger than the smallest image, which has 24"),
        ({"size": 8}, "size must be at least 16"),
        ({"augment": "flip"}, "did you mean 'flips'"),
        ({"value_range": (1, 1)}, "low < high"),
        ({"value_range": (300, 400)}, r"constant within \[300, 400\]"),
        ({"resume": True, "overwrite": True}, "choose one"),
        ({"resume": True}, "nothing to continue"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = write_pngs(tmp_path / "images")
    with pytest.raises((InputError, FileProblem), match=message):
        prepare(folder, tmp_path / "a.safetensors", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def test_ranges_that_do_not_fit_the_images(tmp_path: Path) -> None:
    floats, phases = tmp_path / "floats", tmp_path / "complex"
    for folder, factor in ((floats, 1), (phases, 1j)):
        folder.mkdir()
        _save(folder, factor * FIELD, factor * fields(24, 24, seed=1))
    with pytest.raises(InputError, match="change their phase"):
        prepare(phases, tmp_path / "a.safetensors", value_range=(0, 1))
    with pytest.raises(InputError, match="where black is"):
        prepare(floats, tmp_path / "a.safetensors", augment="photo")
    prepare(floats, tmp_path / "a.safetensors", augment="photo", value_range=(-1, 1), **TINY)


@pytest.mark.parametrize("name", ["a.pt", "images/a.safetensors", "gone/a.safetensors"])
def test_bad_places(tmp_path: Path, name: str) -> None:
    folder = write_pngs(tmp_path / "images")
    with pytest.raises((InputError, FileProblem), match=r"a\.pt|among the images|no folder .*gone"):
        prepare(folder, tmp_path / name, steps=1)


def test_divergence_is_an_error(tmp_path: Path, no_draws: None) -> None:
    job = prepare(
        write_pngs(tmp_path / "in"), tmp_path / "a.safetensors", steps=9, rate=1e20, **TINY
    )
    with pytest.raises(TrainingError, match="lower rate= than 1e\\+20"):
        job.run()
    assert not (tmp_path / "a.safetensors").exists()


# The command -------------------------------------------------------------------------------------


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*options: object) -> tuple[int, str, str]:
        given = ["posterior", "train-prior", "--images", "in", "--out", "a.safetensors"]
        monkeypatch.setattr(sys, "argv", [*given, "--width", "12", *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "maps.npy", 50 * fields(3, 24, 24))
    options = ("--steps", 2, "--batch", 1200, "--range", "-50,50")
    code, out, err = run(*options)
    assert (code, err) == (0, "")
    assert "2 images to learn from, 1 held out, 1 channel" in out
    assert "x = -1 at -50 and x = 1 at 50" in out
    assert re.search(r"step 2, \d+\.\d min: held-out PSNR", out)
    prior = posterior.load_prior("a.safetensors")
    assert isinstance(prior, priors.PhotoPrior)
    assert prior.range == (-1.0, 1.0)
    assert prior.notes["steps"] == "2"

    before = listing(tmp_path)
    for wrong, message in (
        (options, "a.safetensors exists: continue it with --resume, replace it with --overwrite"),
        (("--resume", "--range", "0"), "--range is two numbers"),
        (("--resume", "--steps", 3), "what differs: value range, batch"),
    ):
        code, out, err = run(*wrong)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
    assert listing(tmp_path) == before

    monkeypatch.setattr(training, "_write_draws", lambda *_: None)
    assert run(*options, "--steps", 3, "--resume", "--quiet") == (0, "", "")
    assert header(tmp_path / "a.safetensors")["steps"] == "3"

    def stop(self: object, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "advance", stop)
    code, _, err = run(*options, "--overwrite")
    assert (code, err) == (130, "posterior: interrupted; continue with --resume\n")
