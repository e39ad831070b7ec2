"""Where a prior runs: names of devices, moving, memory. Only a CPU and torch's "meta" are here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import posterior
from posterior import cli, operators
from posterior.devices import CPU_BUDGET, as_device, default_rows, share
from posterior.errors import CapabilityError, InputError, InputTypeError, PosteriorError
from posterior.images import write_image
from posterior.priors import Gaussian, NetworkPrior, PhotoPrior, Slices
from posterior.priors.photo import PhotoConfig, PhotoNet
from posterior.schedules import EDM, Discrete

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the errors of absent devices")
BAD: list[tuple[Any, type[PosteriorError], str]] = [
    ("gpu", InputError, "'gpu' is no device; here are: cpu"),
    ("cuda:x", InputError, "no device"),
    ("", InputError, "no device"),
    (0, InputTypeError, 'named as in "cuda:0"'),
    pytest.param("cuda", CapabilityError, "device cuda cannot be used", marks=without_gpu),
    pytest.param("cuda:7", CapabilityError, "device cuda:7 cannot be used", marks=without_gpu),
]  # type: ignore[list-item]  # pytest's


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `PhotoNet.save` writes it."""
    torch.manual_seed(0)
    net = PhotoNet(PhotoConfig((8, 8), (1, 1), (1, 1), frequencies=4, embedding=8))
    with torch.no_grad():
        net.leave.weight.normal_(std=0.1)
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    net.save(path)
    return path


@pytest.mark.parametrize(("name", "error", "message"), BAD)
def test_names_that_are_refused(name: Any, error: type, message: str, own: Path) -> None:
    """By every door, before anything is loaded or moved."""
    prior = posterior.load_prior(own)
    image = torch.zeros(3, 32, 32)
    run = {"noise": 0.1, "prior": prior, "device": name}
    doors = [
        lambda: as_device(name),
        lambda: prior.to(name),
        lambda: posterior.load_prior("photo", device=name),
        lambda: posterior.load_prior(own, device=name),
        lambda: posterior.restore(image, operators.Identity(), **run),
    ]
    for door in doors:
        with pytest.raises(error, match=message):
            door()
    assert prior.device.type == "cpu"


def test_names() -> None:
    assert as_device(None) == as_device("cpu") == as_device(torch.device("cpu"))
    assert (default_rows(torch.device("cpu")), default_rows(torch.device("cuda"))) == (1, 4)
    assert share(torch.device("cpu")) == CPU_BUDGET


def test_everything_moves(own: Path) -> None:
    """Weights, buffers and what the prior says of itself; x stays where it is computed."""
    prior = posterior.load_prior(own, device="meta")
    assert isinstance(prior, PhotoPrior)
    assert prior.device.type == "meta"
    assert prior.rows == 4
    tensors = [*prior.module.parameters(), *prior.module.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    for kind, schedule in (("edm", EDM()), ("eps", Discrete.linear(10))):
        moved = NetworkPrior(Small(), kind, schedule).to("meta")  # type: ignore[arg-type]
        x = torch.empty(3, 2, device="meta")
        estimate, pull = moved.vjp(x, 0.5)
        assert moved(x, 0.5).x0.device.type == estimate.x0.device.type == "meta"
        assert pull(x).shape == (3, 2)
    volumes = Slices(NetworkPrior(Small(), "edm", EDM()))
    assert volumes.to("meta").device.type == volumes.prior.device.type == "meta"


def test_a_tensor_prior_says_where_it_is() -> None:
    gaussian = Gaussian(torch.zeros(3), 1.0)
    assert gaussian.to("cpu") is gaussian
    with pytest.raises(CapabilityError, match="Gaussian stays on cpu: make it of tensors on meta"):
        gaussian.to("meta")


def test_restoration_on_a_device(own: Path) -> None:
    """The CPU by name is the default."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    run: dict[str, Any] = {"noise": 0.1, "prior": own, "n": 1, "steps": 2}
    want = posterior.restore(image, operators.GaussianBlur(sigma=1.0), **run)
    got = posterior.restore(image, operators.GaussianBlur(sigma=1.0), device="cpu", **run)
    assert torch.equal(got.draws, want.draws)
    assert got.provenance["device"] == "cpu"


class Small(nn.Module):
    """A network of vectors that knows no blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.inner(x + time[:, None] / 100)


def test_the_command_line(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--device reaches the prior; a wrong one is one line and exit code 2."""
    write_image(tmp_path / "cat.png", torch.zeros(3, 32, 32))
    monkeypatch.chdir(tmp_path)
    quick = ["--operator", "gaussian-blur:sigma=1", "--noise", "0.1", "-n", "1", "--steps", "2"]
    for device, code in (("gpu", 2), ("cpu", 0)):
        arguments = ["restore", "cat.png", *quick, "--prior", str(own), "--device", device]
        monkeypatch.setattr("sys.argv", ["posterior", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert int(stop.value.code or 0) == code
        assert ("'gpu' is no device; here are: cpu" in capsys.readouterr().err) == (code == 2)
    assert (tmp_path / "out" / "cat" / "mean.png").is_file()
