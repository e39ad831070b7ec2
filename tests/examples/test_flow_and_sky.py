"""The examples of Navier-Stokes and the black hole, small."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

import posterior
from posterior.errors import FileProblem
from posterior.images import read_image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """Modules of examples/, as if run from there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES.parent / "benchmarks")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_flow(example, tmp_path: Path) -> None:
    """16 particles, 3 corrections: equal costs, and everyone starts from draws of their own."""
    found = example("navier_stokes").compare(particles=16, steps=4, longer=2)
    solves = {name: r.solves for name, r in found.results.items()}
    assert solves == {"EnKG": 48, "ES-MDA": 48, "pCN": 48, "reference": 96}
    for name, r in found.results.items():
        far = (r.draws - found.truth).flatten(1).norm(dim=1) / found.truth.norm()
        assert float(far.min()) > 0.1, f"{name} was given the truth"
        assert all(math.isfinite(v) for v in vars(r.score).values())
        assert name in found.table
    found.draw(tmp_path / "sheet.png")
    assert read_image(tmp_path / "sheet.png")[0].std() > 0.1


def test_particles_as_channels_are_solved_alike(example) -> None:
    """To rounding of float32 over some dozen steps."""
    module = example("navier_stokes")
    flow = module.operators.NavierStokes(viscosity=1 / 50, subsample=4, speed=1.5)
    x = module.vorticity().sample(3)
    assert torch.allclose(module.together(flow)(x), flow(x).flatten(1), atol=1e-4)


def test_vorticity_has_the_spread_it_says(example) -> None:
    """The std over 64 fields, whose power lies in some 20 waves: 5 % is 2.5 standard errors."""
    module = example("navier_stokes")
    assert float(module.vorticity().sample(64).std()) == pytest.approx(module.SPREAD, rel=0.05)


def test_gains_leave_closures_alone(example) -> None:
    """Corrupted visibilities without thermal noise."""
    module = example("black_hole")
    obs, vlbi = module.vlbi.m87_2017(3), module.vlbi
    quiet = vlbi.Observation(
        obs.u, obs.v, obs.first, obs.second, obs.scan, obs.std * 1e-12, obs.names
    )
    sky = module.operators.Visibilities(obs, module.FIELD)
    vis = sky((module.sources().sample(1) + 1).double())
    seen = module.corrupted(quiet, vis, seed=0)
    assert float((seen - vis).abs().max()) > 0.1 * float(vis.abs().max())
    for closure in (vlbi.closure_phasors, vlbi.log_closure_amplitudes):
        assert float((closure(obs, seen) - closure(obs, vis)).abs().max()) < 1e-4


def test_black_hole(example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two short chains: they explain the closures far better than the dirty image does."""
    module, out = example("black_hole"), tmp_path / "sky"
    module.main(out=out, n=2, steps=20)
    lines = capsys.readouterr().out.splitlines()
    phases = {
        line.split(",")[1].split()[0]: float(line.split("phases ")[1].split(",")[0])
        for line in lines
        if "chi-squared" in line
    }
    assert set(phases) == {"draws", "truth", "dirty"}
    assert 0.5 < phases["truth"] < 2, "some tens of phases, noise of some degrees"
    assert phases["draws"] < phases["dirty"]
    assert posterior.Samples.load(out).draws.shape == (2, 1, 1, 32, 32)
    assert read_image(out / "sheet.png")[0].std() > 0.1
    with pytest.raises(FileProblem, match="overwrite"):
        module.main(out=out, n=2, steps=20)
