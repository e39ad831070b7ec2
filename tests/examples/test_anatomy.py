"""The examples of MRI, CT and phase retrieval, small; how their training slices are made."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import posterior
from posterior.errors import FileProblem
from posterior.images import read_image
from posterior.metrics import psnr
from posterior.training_data import read_folder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """Modules of examples/, as if run from there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES / "anatomy_prior")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize(("name", "n", "steps"), [("mri", 2, 25), ("ct", 4, 20)])
def test_the_mean_beats_the_classical_reconstructions(
    example, name: str, n: int, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out = example(name), tmp_path / name
    module.main(out=out, n=n, steps=steps)
    table = capsys.readouterr().out
    scores = {
        line.split(",", 1)[1].rsplit(None, 2)[0].strip(): float(line.split()[-2])
        for line in table.splitlines()
        if line.strip().startswith("PSNR")
    }
    mean = scores.pop(f"mean of {n} draws")
    assert mean > scores.pop("one draw"), "a mean has less of what differs between draws"
    assert len(scores) == 2
    assert all(mean > other + 0.5 for other in scores.values()), scores
    assert posterior.Samples.load(out).draws.shape == (n, 1, 1, 128, 128)
    picture, _ = read_image(out / "sheet.png")
    assert picture.shape[0] == 3
    assert picture.std() > 0.1
    with pytest.raises(FileProblem, match="overwrite"):
        module.main(out=out, n=n, steps=steps)


def test_phase_retrieval(example, tmp_path: Path) -> None:
    """Four starts and short chains: draws explain the moduli and improve on their start.

    The start is chaotic, and another processor rounds to another one: over five seeds the gain is
    1.5 to 2.7 dB.
    """
    module = example("phase_retrieval")
    outcome = module.reconstruct(starts=4, iterations=300, n=2, steps=20)
    ((_, hio),) = outcome.classical.items()
    scores = outcome.scores
    assert scores["mean"] > float(psnr(hio, outcome.truth)) + 0.5
    assert outcome.samples.diagnostics["residual"].max() < 1.5
    outcome.save(tmp_path)
    assert (tmp_path / "sheet.png").is_file()


def test_a_turned_and_moved_image_is_found_again(example) -> None:
    module = example("phase_retrieval")
    x = read_image(EXAMPLES / "assets" / "brain-axial.png")[0][None]
    moved = torch.roll(x.flip((-2, -1)), (3, -5), (-2, -1))
    assert psnr(module.moved_onto(x, moved), moved) > 60


def test_hio_finds_an_easy_solution(example) -> None:
    """Without noise a small image in a wide frame comes back from its moduli, to 35 dB."""
    module = example("phase_retrieval")
    u = torch.zeros(1, 1, 16, 16)
    u[..., 3:9, 4:12] = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    x = 2 * u - 1
    y = posterior.operators.PhaseRetrieval(oversample=4.0)(x)
    tries = [module.hybrid_input_output(y, (16, 16), 800, seed) for seed in range(4)]
    assert max(float(psnr(module.moved_onto(x, one), one)) for one in tries) > 35


def test_coverage_and_ratio_of_exact_draws(example) -> None:
    """Truth and draws of one law: the truth is as often among the draws as it should be."""
    picture = example("_picture")
    n, shape = 6, (1, 1, 40, 40)
    generator = torch.Generator().manual_seed(0)
    level = 0.1 * torch.randn(n + 1, *shape, generator=generator)
    outcome = picture.Outcome(
        "exact", level[0], (level[0, 0, 0], "y"), {}, posterior.Samples(level[1:]), 0.0, 0.0
    )
    pixels = math.prod(shape)
    covered, should = outcome.coverage
    assert should == pytest.approx(5 / 7)
    assert abs(covered - should) < 4 * math.sqrt(should * (1 - should) / pixels)
    ratio, ideal = outcome.error_over_std
    assert ideal == pytest.approx(math.sqrt(7 / 6))
    # relative standard errors: of the mean square of 1600 normals sqrt(2 / 1600) = 3.5 %, of the
    # variances less; halved by the root
    assert ratio == pytest.approx(ideal, rel=4 * 0.02)


def test_slices_of_a_volume(example, tmp_path: Path) -> None:
    """Bands are held out with their gaps, and the trainer takes the stack that it should."""
    prepare = example("prepare")
    volume = np.zeros((197, 233, 189), np.float32)
    k = np.arange(189)
    volume[40:157, 40:193, 20:140] = (0.35 + 0.5 * k / 189)[20:140]  # a box, brighter upwards
    for o in prepare.ORIENTATIONS.values():
        learned = o.learned()
        assert not [k for k in learned if o.band[0] - 6 <= k < o.band[1] + 6]
        assert len(learned) == o.last - o.first - (o.band[1] - o.band[0]) - 12
    few = {"axial": prepare.Orientation(2, 61, 94, (70, 86))}
    stacks = prepare.stacks(volume, 0, few)
    assert [len(s) for s in stacks] == [5, 5, 5, 5, 5, 16, 5, 5, 5, 5]
    axial = stacks[5][:, 64, 64].astype(float)  # held out: upright, not varied, grey as it is
    expected = 255 * ((0.35 + 0.5 * np.arange(70, 86) / 189) - 0.3) / 0.7
    assert axial == pytest.approx(expected, abs=0.51)
    assert not np.array_equal(stacks[0], stacks[1]), "every stack is varied by itself"

    for number, stack in enumerate(stacks):
        np.save(tmp_path / f"{number}-{'held-out' if number == 5 else 'slices'}.npy", stack)
    found = read_folder(tmp_path)
    assert all(np.array_equal(a[..., 0], b) for a, b in zip(found.held_out, stacks[5], strict=True))
