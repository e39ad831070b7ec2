"""The benchmark on photographs: scores, tables, resumption, classical methods; no photographs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from front_helpers import SmoothPrior, photograph
from PIL import Image
from torch import Tensor

from posterior import guidance, operators
from posterior.guidance.base import Guidance, State, Step
from posterior.operators import Operator
from posterior.problem import Problem
from posterior.streams import Noise

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import classical
    import photo_problems
    import photographs
    import strips

Run = Callable[..., list[dict[str, Any]]]

BLUR = "Gaussian blur, sigma 2"
MASKED = "random 70 % missing"


def image(seed: int, *shape: int) -> Tensor:
    """Smooth enough, in [-1, 1]."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    smooth: Tensor = operators.GaussianBlur(1.0, boundary="circular")(noise)
    return smooth / smooth.abs().max()


def dense(f: object, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of images."""
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return torch.stack([f(e[None]).flatten() for e in eye], 1)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------- scores


def test_truth_lies_among_exchangeable_draws_as_often_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 40_000
    values = torch.randn(9, 1, count, generator=generator)
    draws, truth = values[:8], values[8]
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    for k, expected in ((1, 7 / 9), (2, 5 / 9)):
        assert photographs.expected_inside(8, k) == pytest.approx(expected)
        error = math.sqrt(expected * (1 - expected) / count)
        assert abs(photographs.inside(draws, truth, k, everywhere) - expected) < 4 * error
        # draws that are too narrow, the usual fault, show
        assert photographs.inside(draws / 2, truth, k, everywhere) < expected - 20 * error
    assert photographs.expected_inside(2, 2) == 0
    # the order of the draws says nothing, and pixels that do not count do not count
    first = everywhere & (torch.arange(count) < count // 2)
    half = photographs.inside(
        draws[..., : count // 2], truth[..., : count // 2], 1, first[:, : count // 2]
    )
    changed = torch.where(first, truth, 100.0)
    assert photographs.inside(draws.flip(0), changed, 1, first) == half


def test_unobserved_pixels_are_the_hidden_ones_of_a_mask() -> None:
    x = image(0, 1, 3, 20, 20)
    tasks = photo_problems.tasks(20)
    hidden = {
        name: float(photographs.unobserved(t, x).double().mean()) for name, t in tasks.items()
    }
    assert hidden[MASKED] == pytest.approx(0.7)
    assert hidden["box of 5 missing"] == pytest.approx(25 / 400)
    assert hidden[BLUR] == hidden["denoising, noise 0.1"] == 1


def test_measurements_have_the_stated_noise() -> None:
    x = image(1, 1, 3, 64, 64)
    for name, task in photo_problems.tasks(64).items():
        y = photo_problems.measured(task, x, seed=3)
        error = task.operator.restrict(y - task.operator(x))
        if task.noise == 0:
            assert name == "x4 super-resolution"
            assert not bool(error.any())
            assert task.model.std == pytest.approx(1 / 255)
        else:
            seen = error[error != 0]
            # the standard error of a standard deviation of N numbers is std / sqrt(2 N)
            assert float(seen.std()) == pytest.approx(task.std, rel=4 / math.sqrt(2 * len(seen)))
            assert task.model.std == task.std


def test_flip_grows_with_the_difference() -> None:
    pytest.importorskip("flip_evaluator")
    x = image(2, 1, 3, 32, 32)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = [photographs.flip(x + std * noise, x) for std in (0, 0.05, 0.2, 0.6)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[3] < 1
    black = -torch.ones_like(x)
    assert photographs.flip(black, -black) > 0.9
    assert photographs.flip(10 * black, black) == 0  # clipped, as a file would be


def test_intervals_are_students() -> None:
    # t of 0.975 with two degrees of freedom is 4.30265; the standard error 1 / sqrt(3)
    mean, half = photographs.paired([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert math.isnan(photographs.paired([1.0])[1])


# ------------------------------------------------------------------------------------------- tables


def scores(value: float) -> dict[str, float]:
    """Of a method that is fine."""
    names = ("psnr", "ssim", "flip", "residual", "seconds", "draw psnr", "nfe", "vjp", "failed")
    covered = {f"inside {k} {w}": 0.5 for k in (1, 2) for w in ("unobserved", "all")}
    return (
        dict.fromkeys(names, value)
        | {"failed": 0}
        | covered
        | {"expected 1": 0.7, "expected 2": 0.5}
    )


def test_only_complete_photographs_are_compared() -> None:
    results = {
        "a": {"Wiener": scores(20), "BM3D": scores(24), "DPS": scores(25)},
        "b": {"Wiener": scores(26), "BM3D": scores(23), "DPS": scores(28)},
        "c": {"Wiener": scores(90), "BM3D": scores(90)},
    }
    c = photographs.compare(results)
    assert list(c.done) == ["a", "b"]
    assert c.best == "BM3D"  # 23.5 on average against 23
    assert c.gains("DPS") == [1, 5]
    table = photographs.quality_table({"task": c}).splitlines()
    assert len(table) == 2 + 3
    assert "+3.00 ± 25.41" in table[-1]  # 12.7062 * 2
    assert photographs.coverage_table({"task": c}).count("DPS") == 1

    other = photographs.compare({"b": results["b"]})
    overall = photographs.overall_table([c, other]).splitlines()
    # on b alone: 5 over BM3D here, 2 over Wiener there
    assert overall[-1].startswith("| DPS | +3.50 ± nan | 1")
    assert len(photographs.overall_table([c, photographs.compare({})]).splitlines()) == 2


def test_a_failed_run_does_not_pass_for_a_good_one() -> None:
    results = {p: {"Wiener": scores(20), "DPS": {"failed": 8, "seconds": 1}} for p in "ab"}
    table = photographs.quality_table({"task": photographs.compare(results)})
    assert "| DPS | nan |" in table
    assert "16 draws failed" in table


def test_every_method_makes_at_most_a_hundred_evaluations_per_row() -> None:
    for name, (method, steps, _) in photographs.METHODS.items():
        assert method.nfe(steps) <= 100 * method.particles, name


# --------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True, kw_only=True)
class Fails(Guidance):
    """Every row turns NaN."""

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """NaN."""
        return {name: torch.nan * value for name, value in state.items()}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run with options, get the lines of the results file; two photographs, cheap methods."""

    def crops(split: str, size: int) -> dict[str, Tensor]:
        names = ("astronaut", "coffee")
        arrays = {name: torch.from_numpy(photograph(name, size).copy()) for name in names}
        return {k: v.permute(2, 0, 1)[None].float() / 127.5 - 1 for k, v in arrays.items()}

    def candidates(operator: Operator) -> dict[str, classical.Candidate]:
        return {"nothing": classical.Candidate(lambda y, operator, noise: y, {})}

    monkeypatch.setattr(photographs, "crops", crops)
    monkeypatch.setattr(classical, "candidates", candidates)
    monkeypatch.setattr(photographs, "load_weights", lambda path: SmoothPrior())
    monkeypatch.setattr(photographs, "flip", lambda a, b: float((a - b).abs().mean()))
    variants = {
        "DPS": photographs.Variant(guidance.DPS(), 4),
        "MCG": photographs.Variant(guidance.MCG(), 3),
        "EnKG": photographs.Variant(guidance.EnKG(particles=4, ode_steps=1), 3, small=True),
        "fails": photographs.Variant(Fails(), 3),
    }
    monkeypatch.setattr(photographs, "METHODS", variants)
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights"
    weights.write_bytes(b"first")

    def started(*options: str) -> list[dict[str, Any]]:
        common = ["--size", "32", "--n", "4", "--photographs", "2", "--weights", str(weights)]
        everyone = ["classical", "DPS", "MCG", "fails"]
        photographs.main([*common, "--tasks", BLUR, MASKED, "--methods", *everyone, *options])
        out = tmp_path / "benchmarks" / "results" / "photographs.jsonl"
        lines = out.read_text().splitlines() if out.exists() else []
        return [json.loads(line) for line in lines]

    return started


def test_a_run_goes_on_where_it_stopped(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--budget-minutes", "0") == []
    assert "time is up" in capsys.readouterr().out
    one = run("--photographs", "1", "--methods", "classical", "DPS")
    first = run()
    assert first[: len(one)] == one  # kept, not made again
    # balanced wherever it stops: photograph by photograph, then task by task
    places = [(r["photograph"], r["task"], r["name"]) for r in first]
    assert len(set(places)) == len(places) == 2 * (4 + 3)
    assert [p for p, _, _ in places] == ["astronaut"] * 7 + ["coffee"] * 7
    assert {task for _, task, name in places if name == "MCG"} == {MASKED}  # it inverts a blur
    assert run() == first
    assert not any(r["name"] == "EnKG" for r in first)

    dps = next(r for r in first if r["name"] == "DPS")["scores"]
    assert (dps["nfe"], dps["vjp"], dps["failed"]) == (4, 4, 0)
    assert dps["psnr"] > dps["draw psnr"]
    assert 0 <= dps["inside 2 all"] <= dps["inside 1 all"] <= 1
    failed = next(r for r in first if r["name"] == "fails")["scores"]
    assert failed["failed"] == 4
    assert "psnr" not in failed
    hidden = next(r for r in first if r["task"] == MASKED and r["name"] == "DPS")["scores"]
    assert hidden["inside 1 unobserved"] != hidden["inside 1 all"]

    # what changed is made anew and nothing else; what is stale is in no table
    more = run("--n", "3")
    assert [r["name"] for r in more[14:]] == ["DPS", "MCG", "fails", "DPS", "fails"] * 2
    (tmp_path / "weights").write_bytes(b"second")
    capsys.readouterr()
    again = run("--budget-minutes", "0")
    assert again == more
    assert "| DPS |" not in capsys.readouterr().out
    last = run("--redo", "--photographs", "1", "--methods", "classical", "--tasks", BLUR)
    assert len(last) == len(more) + 1


def test_pictures_are_small_and_made_from_the_cells(run: Run, tmp_path: Path) -> None:
    options = ("--methods", "classical", "DPS", "fails", "--tasks", MASKED)
    first = run(*options)
    for kept in (tmp_path / "out" / "photographs").iterdir():
        kept.unlink()
    again = run(*options, "--picture")
    # of the cells whose images are lost, those of the photograph that is shown are made again
    assert again[: len(first)] == first
    assert [r["photograph"] for r in again[len(first) :]] == ["astronaut"] * 3
    (picture,) = (tmp_path / "docs" / "images").iterdir()
    assert picture.name == "photographs-random-70-missing-32.jpg"
    assert picture.stat().st_size <= strips.LARGEST
    with Image.open(picture) as page:  # original, measured, classical, DPS, its draw and std
        assert page.size == (6 * (128 + 6) - 6, 128 + 34)


def test_a_picture_that_does_not_fit_is_compressed(tmp_path: Path) -> None:
    noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).numpy()
    page = strips.strip([strips.Tile(noise, f"tile {k}") for k in range(8)])
    assert page.size == (6 * (128 + 6) - 6, 2 * (128 + 34))
    for largest in (150_000, 80_000):
        strips.save_small(page, tmp_path / "page.jpg", largest)
        assert (tmp_path / "page.jpg").stat().st_size <= largest
    with pytest.raises(SystemExit, match="fits"):
        strips.save_small(page, tmp_path / "page.jpg", 1000)


# ---------------------------------------------------------------------------------------- classical


def test_divergence_is_the_adjoint_of_the_gradient() -> None:
    x = image(3, 2, 3, 7, 6)
    p = torch.randn(2, 3, 2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left = (classical.gradient(x) * p).sum()
    torch.testing.assert_close(left, (x * classical.divergence(p)).sum(), rtol=1e-12, atol=0)
    assert not bool(classical.gradient(torch.ones(1, 1, 5, 5)).any())


def test_wiener_solves_its_normal_equations() -> None:
    operator, shape = operators.MotionBlur(length=5, angle=30), (1, 12, 11)
    y = operator(image(4, 1, *shape))
    a = dense(operator, shape)
    gradient = dense(classical.gradient, shape)
    exact = torch.linalg.solve(a.T @ a + 20 * 0.1**2 * gradient.T @ gradient, a.T @ y.flatten())
    found = classical.wiener(y, operator, 0.1, balance=20.0).flatten()
    # conjugate gradients stop at a relative residual of 1e-4; the smallest eigenvalue is above 0.05
    assert float((found - exact).norm() / exact.norm()) < 2e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_total_variation_lowers_a_step_by_its_closed_form(channels: int) -> None:
    """Two halves of height h apart move by weight / (sqrt(C) W / 2) towards each other."""
    y = torch.full((1, channels, 8, 10), -0.5, dtype=torch.float64)
    y[..., 5:] = 0.5
    found = classical.total_variation(y, operators.Identity(), 0.1, weight=5.0, steps=2000)
    shift = 5.0 * 0.1 / math.sqrt(channels) / 5
    torch.testing.assert_close(found, y * (1 - 2 * shift), rtol=0, atol=1e-3)


def test_total_variation_fills_what_is_hidden() -> None:
    """A plane has no smaller total variation with its boundary than a constant region: filled."""
    x = torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64)
    mask = operators.Mask.box(size=6)
    found = classical.total_variation(mask(x), mask, 0.04, weight=0.3)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-3)


def test_plug_and_play_ends_in_the_fixed_point_of_a_linear_denoiser() -> None:
    operator, shape, std = operators.GaussianBlur(1.0), (3, 9, 8), 0.1
    y = operator(image(5, 1, *shape))
    levels = []

    def denoise(x: Tensor, s: float) -> Tensor:
        levels.append(s)
        return 0.8 * x

    found = classical.plug_and_play(
        y, operator, std, weight=0.5, first=0.2, last=2.0, steps=60, denoise=denoise
    )
    assert levels == pytest.approx([0.2] * 60)
    # z = 0.8 x and (A'A / std^2 + weight / s^2) x = A'y / std^2 + weight / s^2 z
    a = dense(operator, shape)
    pull = 0.5 / 0.2**2
    system = a.T @ a / std**2 + pull * (1 - 0.8) * torch.eye(len(a.T), dtype=torch.float64)
    exact = 0.8 * torch.linalg.solve(system, a.T @ y.flatten() / std**2)
    # sixty steps shrink what is left by 0.8^60 = 1.5e-6 at most; each solve is good to 1e-4
    assert float((found.flatten() - exact).norm() / exact.norm()) < 2e-3

    levels.clear()
    classical.plug_and_play(
        y, operator, std, weight=0.5, first=0.4, last=1.0, steps=3, denoise=denoise
    )
    assert levels == pytest.approx([0.4, 0.2, 0.1])


def test_a_blurred_image_is_completed_to_a_circular_one() -> None:
    x = image(6, 1, 3, 40, 36)
    operator = operators.MotionBlur(length=9, angle=30)
    y = operator(x)
    circular = operators.Blur(operator.kernel, boundary="circular")
    wide = torch.nn.functional.pad(x, (12,) * 4, mode="reflect")
    # with the truth as the estimate the whole is the blur of one image, seam included
    torch.testing.assert_close(classical.completed(y, operator, x, 12), circular(wide))
    # and y itself is untouched, whatever the estimate
    found = classical.completed(y, operator, torch.zeros_like(x), 12)
    assert torch.equal(found[..., 12:-12, 12:-12], y)


def test_the_colour_transform_is_orthonormal() -> None:
    mix = classical._OPPONENT
    torch.testing.assert_close(mix @ mix.T, torch.eye(3, dtype=torch.float64))


def test_tuning_finds_the_best_setting_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def shrunk(y: Tensor, operator: Operator, noise: float, *, gain: float) -> Tensor:
        calls.append(gain)
        return gain * y

    grid = {"gain": (0.5, 0.9, 1.3)}
    names = {"shrunk": classical.Candidate(shrunk, grid), "none": classical.Candidate(shrunk, {})}
    monkeypatch.setattr(classical, "candidates", lambda operator: names)
    task = photo_problems.Task(operators.Identity(), 0.05)
    photos = {str(k): image(k, 1, 3, 16, 16) for k in range(2)}
    out = tmp_path / "results" / "classical.json"
    with pytest.raises(SystemExit, match="not tuned"):
        classical.tuned(out, "t", task.operator)
    classical.tune("t", task, photos, out)
    assert calls == [0.5, 0.5, 0.9, 0.9, 1.3, 1.3]
    assert classical.tuned(out, "t", task.operator) == {"shrunk": {"gain": 0.9}, "none": {}}
    classical.tune("t", task, photos, out)
    assert len(calls) == 6  # known
    names["shrunk"] = classical.Candidate(shrunk, {"gain": (0.2, 0.3)})
    classical.tune("t", task, photos, out)
    assert len(calls) == 10
    assert classical.tuned(out, "t", task.operator)["shrunk"] == {"gain": 0.3}
    assert "gain 0.3 (end of the grid)" in classical.table(out)


def test_every_task_has_classical_methods_that_say_what_to_tune() -> None:
    for name, task in photo_problems.tasks(128).items():
        found = classical.candidates(task.operator)
        assert len(found) >= 3, name
        for candidate in found.values():
            assert all(len(c) == len(candidate.grid) for c in candidate.choices())
