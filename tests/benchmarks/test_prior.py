"""The benchmark of priors against their bare networks: that it compares like with like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import prior as benchmark


def test_the_bare_network_is_that_of_the_prior() -> None:
    """It has the prior's calls, and its gradient that of the prior up to the linear part."""
    case = benchmark.CASES["adm"](True)
    bare = benchmark.Bare(case)
    assert [tuple(args[0].shape) for args, _ in bare.calls] == [(1, 3, 16, 16)] * 2
    outputs: Any = bare.denoise()
    alpha, sigma = case.prior.schedule(case.t)
    eps = torch.cat([out[:, :3] for out in outputs])
    x0, gradient = benchmark.gradient(case, case.prior)()
    assert torch.allclose(x0.x0, (case.x - sigma * eps) / alpha, atol=1e-4)
    _, gradients = bare.vjp()
    want = (case.x - sigma * torch.cat(gradients)) / alpha
    assert torch.allclose(gradient, want, atol=1e-4 * float(want.abs().max()))


def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--cases", "adm", "--tiny", "--pairs", "3"])
    lines = capsys.readouterr().out.splitlines()
    ways = "one batch / two passes"
    kinds = ("denoise", "vjp", f"cfg denoise, {ways}", f"cfg vjp, {ways}")
    assert [line.split(": ")[0].split("), ")[1] for line in lines[1:]] == list(kinds)
    assert all(" MiB" in line for line in lines[1:])


def test_peak_memory_is_seen() -> None:
    """191 MiB that are written and freed again; half of it is a wide margin."""
    assert benchmark.peak(lambda: torch.ones(50_000_000).sum()) > 100
    assert benchmark.peak(lambda: None) < 100
