"""`Samples.to_xarray`: named axes, statistics, provenance."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

import posterior
from posterior import operators, priors
from posterior.errors import CapabilityError
from posterior.samples import Samples

EXTRA = "xarray is not installed: extra [xarray]"


@pytest.mark.parametrize(
    ("event", "axes"),
    [
        ((), ()),
        ((7,), ("x",)),
        ((4, 5), ("y", "x")),
        ((3, 4, 5), ("channel", "y", "x")),
        ((1, 2, 4, 5), ("channel", "z", "y", "x")),
        ((2, 1, 2, 3, 2), ("axis0", "axis1", "axis2", "axis3", "axis4")),
    ],
)
def test_axes_have_names(event: tuple[int, ...], axes: tuple[str, ...]) -> None:
    pytest.importorskip("xarray", reason=EXTRA)
    draws = torch.arange(6.0 * torch.Size(event).numel()).reshape(3, 2, *event) ** 2
    samples = Samples(draws)
    data = samples.to_xarray()
    assert data["draws"].dims == ("draw", "measurement", *axes)
    assert data["mean"].dims == data["std"].dims == ("measurement", *axes)
    torch.testing.assert_close(torch.tensor(data["draws"].values), draws)
    torch.testing.assert_close(torch.tensor(data["mean"].values), samples.mean)
    torch.testing.assert_close(torch.tensor(data["std"].values), samples.std)


def test_a_run_goes_to_netcdf_and_back(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason=EXTRA)
    pytest.importorskip("h5netcdf", reason="h5netcdf is not installed: extra [science]")
    prior = priors.Gaussian(torch.zeros(1, 6, 5), 1.0)
    y = torch.ones(2, 1, 6, 5)
    samples = posterior.sample(
        prior, operators.Identity(), y, noise=0.5, method="dps", steps=4, n=2, first_draw=3
    )
    samples.to_xarray().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as data:
        assert data["draw"].values.tolist() == [3, 4]
        assert data["residual"].dims == ("draw", "measurement")
        torch.testing.assert_close(torch.tensor(data["draws"].values), samples.draws)
        assert data.attrs["operator"] == "Identity()"
        assert data.attrs["nfe"] == samples.provenance["nfe"]
        assert json.loads(data.attrs["versions"]) == samples.provenance["versions"]


def test_one_draw_failures_and_latents() -> None:
    pytest.importorskip("xarray", reason=EXTRA)
    draws = torch.stack([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), torch.nan)])
    failed = {"failed_step": torch.tensor([[-1], [4]])}
    data = Samples(draws, failed, latents=torch.zeros(2, 1, 4, 3, 3)).to_xarray()
    assert "std" not in data
    assert data["failed_step"].values.tolist() == [[-1], [4]]
    assert float(data["mean"].max()) == 0
    assert data["latents"].dims[2:] == ("latent_channel", "latent_y", "latent_x")


def test_without_xarray(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(CapabilityError, match=r"\[xarray\]"):
        Samples(torch.zeros(2, 1, 3)).to_xarray()
