"""The front door with priors of grey, complex and other data, and with photon noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from front_helpers import SmoothPrior, photograph
from typer.testing import CliRunner

import posterior
from posterior import cli, priors
from posterior.errors import CapabilityError, FileProblem, InputError, PosteriorError
from posterior.images import read_image
from posterior.operators import (
    ComplexFromChannels,
    GaussianNoise,
    Mask,
    PoissonGaussianNoise,
    PoissonNoise,
)
from posterior.priors.photo import PhotoConfig, PhotoNet
from posterior.restoration import Restoration, restore

CAT = photograph("chelsea", 40)
GREY = CAT.mean(2).round().astype(np.uint8)


def trained(folder: Path, channels: int, low: float, high: float, unit: str = "value") -> str:
    """A file such as train-prior writes, of a small network that was not trained."""
    bounded = channels != 2
    config = PhotoConfig(
        (8, 8), (1, 1), (1, 1), frequencies=4, embedding=8, image_channels=channels,
        range=(-1.0, 1.0) if bounded else None,
    )  # fmt: skip
    path = folder / f"{channels}-{low:g}-{high:g}.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PhotoNet(config).save(path, data=json.dumps({"low": low, "high": high, "unit": unit}))
    return str(path)


def run(image: object, operator: object = "gaussian-blur:sigma=1", **change: object) -> Restoration:
    settings = {"noise": 0.1, "prior": SmoothPrior(), "method": "dps", "steps": 2, "n": 2}
    return restore(image, operator, **{**settings, **change})


def test_grey_images_under_a_grey_prior(tmp_path: Path) -> None:
    prior = trained(tmp_path, 1, 0.0, 1.0, "full scale")
    out = run(GREY, prior=prior)
    assert out.draws.shape == (2, 1, 1, 40, 40)
    assert "mean of the channels" not in out.report
    direct = posterior.sample(
        posterior.load_prior(prior), posterior.operators.GaussianBlur(sigma=1.0),
        torch.from_numpy(GREY).float()[None, None] / 127.5 - 1, noise=0.1, method="dps", steps=2,
        n=2,
    )  # fmt: skip
    torch.testing.assert_close(out.draws, direct.draws, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="convert the image to grey"):
        run(CAT, prior=prior)


def test_values_of_the_training_images(tmp_path: Path) -> None:
    """A prior of Hounsfield units reads values in Hounsfield units, and writes them."""
    prior = trained(tmp_path, 1, -1000.0, 1000.0)
    values = GREY.astype(np.float32) * 4 - 500
    np.save(tmp_path / "ct.npy", values)
    out = run(tmp_path / "ct.npy", prior=prior)
    torch.testing.assert_close(out.degraded[0, 0], torch.from_numpy(values) / 1000)
    assert "-1000 to 1000 are black to white (those of the prior's training" in out.report
    folder = out.save(tmp_path / "out")
    np.testing.assert_allclose(
        np.load(folder / "mean.npy"), 1000 * out.mean[0, 0].double(), atol=1e-3
    )
    from PIL import Image

    Image.fromarray(GREY).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match=r"is a picture.*values from -1000 to 1000"):
        run(tmp_path / "grey.png", prior=prior)
    assert run(tmp_path / "grey.png", prior=trained(tmp_path, 1, 0.0, 255.0)).draws.shape[2] == 1


def test_an_unbounded_prior_takes_any_values(tmp_path: Path) -> None:
    prior = priors.Gaussian(torch.zeros(1, 32, 32), 0.1)
    assert prior.range is None
    values = np.linspace(0, 5000, 1024, dtype=np.float32).reshape(32, 32)
    np.save(tmp_path / "a.npy", values)
    out = run(tmp_path / "a.npy", "identity", prior=prior, value_range=(0, 100))
    torch.testing.assert_close(out.degraded[0, 0], torch.from_numpy(values) / 50 - 1)


def test_complex_images(tmp_path: Path) -> None:
    prior = trained(tmp_path, 2, -4.0, 4.0)
    z = (GREY / 100.0) * np.exp(1j * np.linspace(0, 3, 40))
    np.save(tmp_path / "z.npy", z)
    mask = Mask.random(keep_fraction=0.5, seed=0)
    out = run(tmp_path / "z.npy", [ComplexFromChannels(), mask], prior=prior, simulate=True)
    assert out.draws.shape == (2, 1, 2, 40, 40)
    np.testing.assert_allclose(out.original[0, 0] * 4, z.real, atol=1e-6)
    np.testing.assert_allclose(out.original[0, 1] * 4, z.imag, atol=1e-6)
    folder = out.save(tmp_path / "out")
    mean = np.load(folder / "mean.npy")
    assert mean.dtype == np.complex64
    np.testing.assert_allclose(mean.imag, 4 * out.mean[0, 1].double(), atol=1e-5)
    shown, _ = read_image(folder / "mean.png")  # the magnitude
    magnitude = (out.mean[0].norm(dim=0) * 2 - 1).clamp(-1, 1)
    torch.testing.assert_close(shown[0], magnitude, rtol=0, atol=1.01 / 65535)
    blurred = run(z, prior=prior)  # an array; what was measured is itself an image
    torch.testing.assert_close(blurred.degraded, out.original)


def test_complex_images_that_do_not_fit(tmp_path: Path) -> None:
    z = GREY * (1 + 1j)
    prior = trained(tmp_path, 2, -400.0, 400.0)
    with pytest.raises(InputError, match="RGB"):
        run(z)
    with pytest.raises(InputError, match="phase"):
        run(z, prior=prior, value_range=(0, 400))
    with pytest.raises(InputError, match="give complex numbers"):
        run(GREY, prior=prior)
    with pytest.raises(InputError, match="give noise="):
        run(z, prior=prior, noise=None)
    with pytest.raises(PosteriorError, match=r"4-channel|channels"):
        run(GREY, prior=trained(tmp_path, 4, 0.0, 1.0))


# The command line --------------------------------------------------------------------------------


def test_photon_noise_in_words() -> None:
    assert cli._noise("poisson:1000") == PoissonNoise(1.0, low=-1.0, peak=1000.0)
    both = cli._noise("poisson-gaussian:200,0.01")
    assert both == PoissonGaussianNoise(1.0, 0.02, low=-1.0, peak=200.0)
    plain = cli._noise("0.02")
    assert isinstance(plain, GaussianNoise)
    assert plain.std == 0.04


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("poisson", "poisson:PEAK"),
        ("poisson:", "poisson:1000"),
        ("poisson:0", "photons at white"),
        ("poisson:-5", "photons at white"),
        ("poisson:nan", "photons at white"),
        ("poisson:9,1", "takes PEAK alone"),
        ("poisson-gaussian:9", "PEAK,STD"),
        ("poisson-gaussian:9,2", r"\[0, 1\]"),
        ("poisson-gaussian:9,0", "> 0"),
        ("poison:9", "did you mean 'poisson'"),
        ("gaussian:0.1", "--noise"),
    ],
)
def test_noise_that_says_nothing(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        cli._noise(text)


def test_photons_and_science_files_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_prior: SmoothPrior
) -> None:
    monkeypatch.chdir(tmp_path)
    h5py = pytest.importorskip("h5py", reason="the extra [science] is not installed")
    with h5py.File("a.h5", "w") as file:
        file["t1"], file["t2"] = GREY, np.stack([GREY] * 3)
    Path("b.fits").write_text("broken")
    program = ["restore", "a.h5:t1", "b.fits", "a.h5:t2", "-a", "identity", "--noise",
               "poisson:300", "--range", "0,255", "--slices", "0:1", "-n", "2", "--steps", "2",
               "-m", "dps"]  # fmt: skip
    result = CliRunner().invoke(cli.app, program)
    assert result.exit_code == 1
    assert "HDF5 values 0 to 255 are black to white (as given)" in result.output
    assert "1 of 3 images failed" in result.output
    assert {p.name for p in Path("out").iterdir()} == {"a-t1", "a-t2"}
    report = json.loads(Path("out/a-t1/report.json").read_text())
    assert "PoissonNoise" in report["provenance"]["noise"]
    assert "peak=300" in report["provenance"]["noise"]
    with h5py.File("out/a-t2/mean.h5") as file:
        assert file["t2"].shape == (1, 40, 40)
    again = CliRunner().invoke(cli.app, program[:2] + program[4:])
    assert again.exit_code == 2
    assert "--overwrite" in again.output


def test_options_of_values_say_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_prior: SmoothPrior
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(CAT).save("a.png")
    result = CliRunner().invoke(cli.app, ["restore", "a.png", "-a", "identity", "--slices", "3"])
    assert result.exit_code == 1
    assert "a.png: --range and --slices are of science files" in result.output
    result = CliRunner().invoke(cli.app, ["restore", "a.png", "-a", "identity", "--range", "0"])
    assert result.exit_code == 2
    assert "--range is two numbers" in result.output


def test_photon_noise_of_complex_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, CapabilityError, FileProblem)):
        run(
            GREY * (1 + 1j), [ComplexFromChannels()], noise=PoissonNoise(1.0), simulate=True,
            prior=trained(tmp_path, 2, -400.0, 400.0),
        )  # fmt: skip
