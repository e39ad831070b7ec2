"""The 25-mode mixture benchmark: its problems, its distance, and the script that runs it."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy import stats

from posterior import guidance
from posterior.guidance.base import Guidance, State, Step
from posterior.operators.matrix import MatrixOperator
from posterior.problem import Problem
from posterior.streams import Noise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    """A benchmark script as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mp = benchmark("mixture_problems")


# -------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(("d", "dy"), [(8, 1), (8, 4), (80, 2)])
def test_problems_are_as_published(d: int, dy: int) -> None:
    p = mp.problem(d, dy, 3)
    assert len(p.prior) == len(p.exact) == 25
    assert {tuple(m.tolist()) for m in p.prior.means} == {
        (8.0 * i, 8.0 * j) * (d // 2) for i in range(-2, 3) for j in range(-2, 3)
    }
    assert torch.equal(p.prior.covariances, torch.eye(d, dtype=torch.float64).expand(25, d, d))
    assert float(p.prior.weights.sum()) == pytest.approx(1)
    assert isinstance(p.operator, MatrixOperator)
    assert p.operator.matrix.shape == (dy, d)
    s = torch.linalg.svdvals(p.operator.matrix)
    assert 0 < float(s[-1]) <= float(s[0]) < 1
    assert p.y.shape == (1, dy)
    assert 0 < p.noise_std < float(s[0])


def test_the_matrix_has_the_drawn_singular_values_in_falling_order() -> None:
    """U diag(s) V' with U from the SVD of a Gaussian matrix: A A' has the eigenvectors U."""
    d, dy, index = 8, 4, 5
    noise = Noise.single(mp.seed_of(d, dy, index, "operator"), (), torch.float64)
    u, _, vt = torch.linalg.svd(noise("entries", shape=(dy, d))[0], full_matrices=False)
    s = (u.T @ mp.problem(d, dy, index).operator.matrix @ vt.T).round(decimals=12)
    assert torch.equal(s, torch.diag(s.diag()))
    assert torch.equal(s.diag(), s.diag().sort(descending=True).values)


def test_singular_values_and_noise_levels_are_uniform() -> None:
    problems = [mp.problem(8, 1, k) for k in range(100)]
    s = torch.stack([torch.linalg.svdvals(p.operator.matrix)[0] for p in problems])
    u = torch.tensor([p.noise_std for p in problems]).double() / s
    assert stats.kstest(s.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_weights_are_normalised_chi_squares() -> None:
    """The ratio of two is F(1, 1), whatever the sum."""
    weights = torch.stack([mp.problem(8, 1, k).prior.weights[:24] for k in range(40)])
    ratio = (weights[:, ::2] / weights[:, 1::2]).flatten()
    assert stats.kstest(ratio.numpy(), stats.f(1, 1).cdf).pvalue > 1e-3
    # negative control: uniform weights, normalised or not, are far less unequal
    other = torch.rand(2, 480, generator=torch.Generator().manual_seed(0))
    assert stats.kstest((other[0] / other[1]).numpy(), stats.f(1, 1).cdf).pvalue < 1e-3


def test_problems_are_reproducible_and_distinct() -> None:
    torch.manual_seed(1)
    first = mp.problem(8, 2, 0)
    torch.manual_seed(2)
    again = mp.problem(8, 2, 0)
    assert torch.equal(first.prior.weights, again.prior.weights)
    assert torch.equal(first.operator.matrix, again.operator.matrix)
    assert torch.equal(first.y, again.y)
    assert first.noise_std == again.noise_std
    assert torch.equal(first.exact.means, again.exact.means)
    # no two cells share their randomness
    others = [mp.problem(8, 2, 1), mp.problem(80, 2, 0), mp.problem(8, 1, 0)]
    for other in others:
        assert not torch.equal(first.prior.weights, other.prior.weights)
        assert first.noise_std != other.noise_std


def test_single_precision_is_the_same_problem() -> None:
    double, single = mp.problem(8, 2, 0), mp.problem(8, 2, 0, torch.float32)
    assert single.y.dtype == single.exact.sample(1).dtype == torch.float32
    torch.testing.assert_close(single.y.double(), double.y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.exact.weights, double.exact.weights, rtol=1e-2, atol=1e-6)


def test_the_exact_posterior_is_bayes_rule() -> None:
    """log p(x | y) - log p(x) - log p(y | x) does not depend on x, at the smallest noise too."""
    problems = [mp.problem(8, dy, k) for dy in (1, 2, 4) for k in range(10)]
    smallest = min(problems, key=lambda p: p.noise_std)
    assert smallest.noise_std < 0.02
    for p in [problems[0], problems[-1], smallest]:
        x = torch.cat([p.exact.sample(20, seed=1), p.prior.sample(20, seed=2)])
        # a mode 1e-308 times lighter than the heaviest has weight 0 in double precision
        x = x[p.exact.weights[p.prior.log_components(x).argmax(1)] > 0]
        assert len(x) > 25
        misfit = (p.operator(x) - p.y).square().sum(1) / (2 * p.noise_std**2)
        evidence = p.exact.log_prob(x) - p.prior.log_prob(x) + misfit
        error = (evidence - evidence[0]).abs() / (1 + misfit)
        assert float(error.max()) < 1e-9
        assert bool((torch.linalg.eigvalsh(p.exact.covariances[0]) > 0).all())


def test_bad_sizes_are_refused() -> None:
    for d, dy in [(7, 1), (8, 0), (8, 9), (0, 1)]:
        with pytest.raises(ValueError, match="must be"):
            mp.problem(d, dy, 0)


# -------------------------------------------------------------------------------------- distance


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    """Standard normal rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_distance_of_a_set_to_itself_is_zero() -> None:
    x = normal(0, 100, 8)
    assert mp.sliced_wasserstein(x, x) == 0
    assert mp.sliced_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    # as is that of a law to itself, in unequal numbers
    assert mp.sliced_wasserstein(x, x.repeat(3, 1)) == pytest.approx(0, abs=1e-12)
    assert mp.sliced_wasserstein(x, normal(1, 90, 8)) > 0.01


def test_shifted_gaussians() -> None:
    """In one dimension W1 is the shift, and mean-sliced W1 in d |shift| E|theta_1|."""
    x = normal(0, 500, 1)
    assert mp.sliced_wasserstein(x, x + 2) == pytest.approx(2, rel=1e-12)
    x, y = normal(0, 20000, 1), normal(1, 20000, 1) + 2
    standard_error = (2 / 20000) ** 0.5
    assert mp.sliced_wasserstein(x, y, slices=2) == pytest.approx(2, abs=4 * standard_error)
    for d in (2, 8):
        shift = normal(7, 1, d)
        x = normal(0, 50, d)
        mean = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
        found = mp.sliced_wasserstein(x, x + shift, slices=4000)
        assert found == pytest.approx(float(shift.norm()) * mean, rel=0.04)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 73), (1, 10), (64, 16)])
def test_one_dimension_agrees_with_scipy(n: int, m: int) -> None:
    x, y = normal(0, n, 1), 2 * normal(1, m, 1) + 0.3
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert mp.sliced_wasserstein(x, y, slices=3) == pytest.approx(expected, rel=1e-12)
    assert mp.sliced_wasserstein(y, x, slices=3) == pytest.approx(expected, rel=1e-12)


def test_directions_depend_on_the_seed_alone() -> None:
    x, y = normal(0, 50, 8), 2 * normal(1, 50, 8)
    torch.manual_seed(3)
    first = mp.sliced_wasserstein(x, y, slices=150, seed=5)
    assert mp.sliced_wasserstein(x, y, slices=150, seed=5) == first
    assert mp.sliced_wasserstein(x, y, slices=150, seed=6) != first


def test_draws_that_are_not_finite_are_refused() -> None:
    x = normal(0, 10, 2)
    bad = x.clone()
    bad[3, 1] = torch.nan
    for other in (bad, x[:0]):
        with pytest.raises(ValueError, match="finite"):
            mp.sliced_wasserstein(other, x)
    with pytest.raises(ValueError, match="not comparable"):
        mp.sliced_wasserstein(x, normal(0, 10, 3))


# -------------------------------------------------------------------------------------- controls

PROBLEMS, N = 12, 1000


@functools.cache
def controls(dy: int) -> dict[str, float]:
    """Mean distances to N exact draws over some problems of d = 8."""
    found: dict[str, list[float]] = {}
    for k in range(PROBLEMS):
        p = mp.problem(8, dy, k)
        reference = p.exact.sample(N, seed=mp.seed_of(8, dy, k, "reference"))
        for name, law in {
            "exact": p.exact,
            "floor": p.exact,
            "heaviest mode": mp.heaviest_mode(p.exact),
            "prior": p.prior,
        }.items():
            x = law.sample(N, seed=mp.seed_of(8, dy, k, name))
            found.setdefault(name, []).append(mp.sliced_wasserstein(x, reference, slices=100))
    return {name: statistics.fmean(values) for name, values in found.items()}


# Values of independent problems (20 of them, N = 1000): floor .25, .09, .056; prior 6.9, 11.4, 10.2
# (standard deviation over problems 3); heaviest mode only 3.7, .89, .14 (3, 2, .4)
@pytest.mark.parametrize(
    ("dy", "floor", "prior", "heaviest"),
    [
        (1, (0.12, 0.40), (5.0, 11.0), (1.5, 6.0)),
        (2, (0.06, 0.25), (7.0, 13.0), (0.4, 3.0)),
        (4, (0.045, 0.070), (7.5, 13.0), (0.05, 0.5)),
    ],
)
def test_controls_stand_where_they_should(
    dy: int, floor: tuple[float, float], prior: tuple[float, float], heaviest: tuple[float, float]
) -> None:
    found = controls(dy)
    for name, (low, high) in {
        "floor": floor,
        "exact": floor,
        "prior": prior,
        "heaviest mode": heaviest,
    }.items():
        assert low < found[name] < high, (name, found)
    assert found["prior"] > 20 * found["floor"]
    if dy < 4:  # most posteriors of dy = 4 are one mode
        assert found["heaviest mode"] > 5 * found["floor"]


def test_posteriors_have_several_modes_where_little_is_measured() -> None:
    single = {dy: sum(mp.problem(8, dy, k).modes == 1 for k in range(20)) / 20 for dy in (1, 2, 4)}
    assert single[1] <= 0.2
    assert 0.2 <= single[2] <= 0.8
    assert single[4] >= 0.5


# ---------------------------------------------------------------------------------------- script


@dataclass(frozen=True, kw_only=True)
class Breaks(Guidance):
    """The unconditional sampler, whose rows turn NaN where x starts above a quantile."""

    above: float = 0.0

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """NaN in the first move."""
        state = super().advance(problem, state, step, noise)
        if step.index == 0:
            bad = noise.at(0)("start")[:, :1] > self.above
            state["x"] = torch.where(bad, torch.nan, state["x"])
        return state


def test_a_run_goes_on_where_it_stopped_and_counts_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pa = benchmark("posterior_accuracy")
    variants = {
        "unguided": pa.Variant(Guidance(), 5),
        "some fail": pa.Variant(Breaks(above=0.5), 5, most=40),
        "all fail": pa.Variant(Breaks(above=-10.0), 5),
    }
    monkeypatch.setattr(pa, "VARIANTS", variants)
    out = tmp_path / "results" / "out.json"
    methods = ["exact", *variants]

    def run(problems: int, *more: str) -> dict:
        options = f"--d 8 --dy 2 --problems {problems} --draws 60 --slices 20 --out {out}"
        pa.main([*options.split(), *more, "--methods", *methods])
        (cells,) = json.loads(out.read_text()).values()
        return cells

    first = run(1)
    assert list(first) == methods
    second = run(2)
    for name in methods:
        assert second[name]["0"] == first[name]["0"]  # not made again: seconds too
        assert second[name]["1"]["floor"] != first[name]["0"]["floor"]
    assert run(1) == second  # nothing is lost either
    some, whole = second["some fail"]["0"], second["all fail"]["0"]
    assert (some["draws"], whole["draws"]) == (40, 60)
    assert 0 < some["failed"] < 40
    assert some["distance"] is not None
    assert (whole["failed"], whole["distance"]) == (60, None)
    assert (second["unguided"]["0"]["nfe"], second["unguided"]["0"]["vjp"]) == (5, 0)
    assert second["exact"]["0"]["distance"] < 3 * second["exact"]["0"]["floor"]

    capsys.readouterr()
    run(2)
    cells = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {row[1]: row for row in cells if len(row) > 9}
    total = some["failed"] + second["some fail"]["1"]["failed"]
    assert f"{total} of 80" in rows["some fail"]
    assert "120 of 120, 2 problems lost" in rows["all fail"]
    assert rows["all fail"][3].startswith("inf")

    # a variant that changed is made anew, the others are not
    variants["unguided"] = pa.Variant(Guidance(), 6)
    third = run(2)
    assert third["unguided"]["0"]["nfe"] == 6
    assert third["some fail"] == second["some fail"]
    again = run(1, "--again")
    assert again["exact"]["0"]["distance"] == third["exact"]["0"]["distance"]
    assert again["exact"]["0"]["seconds"] != third["exact"]["0"]["seconds"]


def test_every_variant_of_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pa = benchmark("posterior_accuracy")
    p = mp.problem(8, 2, 0)
    assert not set(pa.VARIANTS) & set(pa.CONTROLS)
    for name, variant in pa.VARIANTS.items():
        monkeypatch.setitem(pa.VARIANTS, name, variant._replace(steps=4))
        made = pa.draw(name, p, 3, seed=0)
        assert made.x.shape == (3, 8), name
        assert made.nfe is not None, name
    for name in pa.CONTROLS:
        assert bool(pa.draw(name, p, 3, seed=0).good.all()), name


def test_particles_reach_the_floor_where_moment_matching_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three posteriors of several modes: the error of TDS falls to that of exact draws.

    Sampling error of 200 draws is in all of them: the floor, 0.8, has it too. MMPS is nearer than
    the prior, and its weights of the modes are wrong.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pa = benchmark("posterior_accuracy")
    variants = {
        "MMPS": pa.Variant(guidance.MMPS(), 50),
        **{f"TDS {k}": pa.Variant(guidance.TDS(particles=k, spread=10.0), 50) for k in (2, 8, 128)},
    }
    monkeypatch.setattr(pa, "VARIANTS", variants)
    cells = []
    for index in range(3):
        bench = pa.Bench(8, 1, index, slices=100, dtype=torch.float64)
        cells.append({name: bench.cell(name, 200) for name in ("exact", "prior", *variants)})
        assert cells[-1]["exact"]["modes"] > 1
    mean = {name: sum(c[name]["distance"] for c in cells) / 3 for name in cells[0]}
    floor = sum(c["exact"]["floor"] for c in cells) / 3
    assert mean["exact"] < 2 * floor
    assert mean["TDS 128"] < 2 * floor
    assert mean["TDS 2"] > 1.5 * mean["TDS 8"] > 1.5 * 1.5 * mean["TDS 128"]
    assert 2 * floor < mean["MMPS"] < mean["prior"]
