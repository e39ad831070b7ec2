"""What an installation brings, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("diffusers", "matplotlib", "skimage", "torchmetrics", "scipy", "typer", "PIL", "pandas")


def run(code: str, cwd: Path) -> str:
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_import_is_light(tmp_path: Path) -> None:
    code = f"import sys, posterior; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code, tmp_path).strip() == "[]"


def test_import_costs_little_more_than_torch(tmp_path: Path) -> None:
    """Counted in modules, which does not depend on how busy the machine is."""
    count = (
        "import sys, torch, numpy; n = len(sys.modules);"
        "import posterior; print(len(sys.modules) - n)"
    )
    assert int(run(count, tmp_path)) < 150


def test_import_works_from_the_root_of_the_checkout() -> None:
    code = (
        "import posterior.operators, posterior.guidance; print(posterior.operators.Mask.__module__)"
    )
    assert run(code, ROOT).startswith("posterior.operators")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist of the checkout."""
    out = tmp_path_factory.mktemp("dist")
    code = (
        "import hatchling.build as b, tarfile, os, sys;"
        "name = b.build_sdist(sys.argv[1]);"
        "tarfile.open(os.path.join(sys.argv[1], name)).extractall(sys.argv[1], filter='data');"
        "os.chdir(os.path.join(sys.argv[1], name.removesuffix('.tar.gz')));"
        "print(b.build_wheel(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_one_import_root_and_the_weights(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"posterior", "posterior_sampling-0.1.0.dist-info"}
    for needed in (
        "posterior/py.typed",
        "posterior/operators/__init__.py",
        "posterior/guidance/dps.py",
        "posterior/priors/weights/photo.safetensors",
        "posterior/priors/weights/README.md",
        "posterior/assets/demo.png",
    ):
        assert needed in names
    assert len(names) == len(set(names))
    weights = zipfile.ZipFile(wheel).getinfo("posterior/priors/weights/photo.safetensors")
    assert weights.file_size <= 16 * 2**20


def test_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, '.'); import posterior;"
        "print(posterior.__file__); print(posterior.load_prior('photo'))"
    )
    where, prior = run(code, tmp_path).splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert "photo" in prior.lower()
