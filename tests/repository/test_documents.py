"""The code in the documents and the examples runs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import posterior
from posterior import guidance, operators, priors, schedules
from posterior.guidance.base import Guidance

ROOT = Path(__file__).parents[2]


def blocks(document: str) -> list[str]:
    """The Python code blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_extending() -> None:
    from dataclasses import dataclass

    names = {
        "operators": operators,
        "priors": priors,
        "schedules": schedules,
        "Guidance": Guidance,
        "dataclass": dataclass,
        "__name__": "extending",
    }
    function, own_operator, network, method = blocks("docs/extending.md")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(function, names)
    exec(own_operator, names)
    assert operators.check(names["Flip"](), shape=(1, 3, 8, 9)) == []
    net = torch.nn.Module()
    net.forward = lambda x, time: torch.zeros_like(x)  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()):
        exec(network.replace("priors.check(prior)", ""), names | {"net": net})
    exec(method, names)
    prior = priors.Gaussian(torch.zeros(1, 6, 6), 1.0)
    mask = operators.Mask.random(keep_fraction=0.5, seed=0)
    y = mask(prior.sample(1, seed=0))
    run = {"noise": 0.1, "steps": 20, "n": 2}
    draws = posterior.sample(prior, mask, y, method=names["Project"](), **run).draws
    for x in draws:
        torch.testing.assert_close(mask(x), y)


def test_write_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks run one after the other, with the assertions that stand in them."""
    code = blocks("docs/write_your_own.md")
    names: dict[str, object] = {"__name__": "write_your_own"}
    for block in code:
        exec(compile(block, "docs/write_your_own.md", "exec", dont_inherit=True), names)
    first = code[0].split("class Diagonal")[1].split("\n")
    assert len([line for line in first if line.strip()]) <= 10
    out = capsys.readouterr().out
    assert "Diagonal(): nothing wrong" in out
    assert "Saturation(knee=0.8) @ GaussianBlur(sigma=1): nothing wrong" in out
    result = names["result"]
    assert isinstance(result, posterior.Samples)
    assert result.draws.shape == (2, 1, 1, 16, 16)
    assert torch.isfinite(result.draws).all()
    y, x = names["A"](names["truth"]), torch.tensor(names["least_squares"])  # type: ignore[operator]
    torch.testing.assert_close(names["A"](x[None].float()), y, rtol=0, atol=1e-4)  # type: ignore[operator]


def test_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of the README, on a prior that costs nothing."""
    monkeypatch.chdir(ROOT)
    code = blocks("README.md")
    assert code
    for block in code:
        compile(block, "README.md", "exec")
    cheap = priors.Gaussian(torch.zeros(3, 128, 128), 0.1)
    for block in code:
        if "load_prior" in block:
            names = {"prior_of_the_test": cheap}
            block = block.replace('posterior.load_prior("photo")', "prior_of_the_test")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(block, names)


def test_exact_posterior_example(capsys: pytest.CaptureFixture[str]) -> None:
    example("exact_posterior").main(n=50, steps=20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["exact", "DPS", "DPS as published"]


def test_deblur_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        posterior, "load_prior", lambda name: priors.Gaussian(torch.zeros(3, 128, 128), 0.1)
    )
    example("deblur").main(n=2, steps=3, out=str(tmp_path / "out"))
    assert posterior.Samples.load(tmp_path / "out").draws.shape == (2, 1, 3, 128, 128)


def test_registry_names_every_method() -> None:
    names = {row.name for row in guidance.table()}
    assert names == set(guidance.REGISTRY)
    for row in guidance.table():
        assert row.when
        assert row.paper
