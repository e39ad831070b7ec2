"""The benchmark of the operators: our side, the statistics, the table; deepinv is not needed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def load() -> ModuleType:
    """By path: its name is that of a package of ours."""
    path = Path(__file__).parents[2] / "benchmarks" / "operators.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_operators", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


benchmark = load()
SMALLEST = min(benchmark.SIZES)


def row(operation: str, size: int, ratio: float) -> dict[str, Any]:
    """A result."""
    return {
        "case": "blur", "operation": operation, "size": size, "ratio": ratio, "low": ratio - 0.1,
        "high": ratio + 0.1, "date": "2026-01-01", "conditions": "test", "pairs": 5, "threads": 1,
        "torch": "2", "deepinv": "0",
    }  # fmt: skip


@pytest.mark.parametrize("case", benchmark.cases(), ids=lambda case: case.name)
def test_our_side(case: Any) -> None:
    """All that is timed of ours runs, and the gradient is J^T (A(x) - y), by the operator's vjp."""
    side = case.own(SMALLEST)
    assert side.x.shape == (benchmark.BATCH, case.channels, SMALLEST, SMALLEST)
    other = 0.5 * side.y
    gradient = benchmark.misfit_gradient(side.forward, side.x, other)
    y, pull = side.forward.vjp(side.x)
    # float32 through two orders of the same sums
    assert (gradient - pull(y - other)).norm() <= 1e-5 * gradient.norm()
    assert torch.equal(side.call("forward")(), side.y)
    if side.adjoint is not None:
        back = side.call("adjoint")()
        assert back.shape == side.x.shape
        # <A x, y> = <x, A^T y> with y = A x
        energy = torch.view_as_real(side.y) if side.y.is_complex() else side.y
        assert (side.x * back).sum().item() == pytest.approx(energy.square().sum().item(), rel=1e-4)


def test_the_layouts_of_the_peer_are_undone() -> None:
    for case in benchmark.cases():
        y = case.own(SMALLEST).y
        assert torch.equal(case.measured(case.measured_back(y)), y), case.name


def test_another_problem_is_noticed() -> None:
    case = next(case for case in benchmark.cases() if case.name == "inpainting")
    own = case.own(SMALLEST)
    same = benchmark.Side(own.forward, own.adjoint, own.x, own.y)
    assert case.difference(own, same) == 0

    def scaled(x: Tensor) -> Tensor:
        return 1.01 * own.forward(x)

    other = benchmark.Side(scaled, own.adjoint, own.x, own.y)
    assert case.difference(own, other) == pytest.approx(0.01, rel=1e-3)


def test_ratio_of_known_times() -> None:
    """With a clock that a call moves by a known time: ours takes 2, theirs 4."""
    now = itertools.accumulate(itertools.repeat(0.0))
    spent = [0.0]

    def work(seconds: float) -> Any:
        def call() -> None:
            spent[0] += seconds

        return call

    result = benchmark.compare(work(2.0), work(4.0), 7, lambda: spent[0] + next(now))
    assert result["ratio"] == result["low"] == result["high"] == 0.5
    assert result["ours_ms"] == 2000


def test_own_times_need_no_peer(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--own", "--only", "inpainting", "--sizes", str(SMALLEST)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[2].split(":")[0] for line in printed] == list(benchmark.OPERATIONS)


def test_table_shows_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("forward", 64, 9.0), row("forward", 64, 0.5), row("adjoint", 128, 1.0)]
    assert benchmark.table(rows).splitlines() == [
        "| problem | operation | 64 px | 128 px |",
        "|---|---|---|---|",
        "| blur | forward | 0.50 [0.40, 0.60] |  |",
        "| blur | adjoint |  | 1.00 [0.90, 1.10] |",
    ]
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(benchmark.MARKS) + "\nafter\n")
    monkeypatch.setattr(benchmark, "PAGE", page)
    benchmark.write_page(rows)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert benchmark.table(rows) in text
    assert "2026-01-01, test, 5 pairs" in text


def test_kept_results_are_those_of_known_problems() -> None:
    names = {case.name for case in benchmark.cases()}
    for line in benchmark.RESULTS.read_text().splitlines():
        kept = json.loads(line)
        assert kept["case"] in names
        assert kept["low"] <= kept["ratio"] <= kept["high"]
