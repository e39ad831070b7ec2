"""The command line: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from front_helpers import SmoothPrior, listing, photograph
from PIL import Image
from typer.testing import CliRunner

import posterior
from posterior import cli

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--noise", "0.05", "--steps", "2", "--samples", "2")
BLUR = ("--operator", "gaussian-blur:sigma=1")


@pytest.fixture
def run(
    photo_prior: SmoothPrior,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Call the console script in `tmp_path`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["posterior", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call


@pytest.fixture
def here(tmp_path: Path, cat_file: Path) -> Path:
    """A folder with cat.png and dog.jpg."""
    Image.fromarray(photograph("coffee")).save(tmp_path / "dog.jpg", quality=95)
    return tmp_path


def test_restore_writes_a_folder(run: Run, here: Path) -> None:
    code, out, err = run("restore", "cat.png", *BLUR, *QUICK)
    assert (code, err) == (0, "")
    names = {"degraded.png", "mean.png", "std.png", "draw-0.png", "draw-1.png", "sheet.png",
             "samples.safetensors", "report.json"}  # fmt: skip
    assert {p.name for p in (here / "out" / "cat").iterdir()} == names
    assert "4 network calls and 12 backward passes, about" in out
    assert "sheet.png" in out
    report = json.loads((here / "out" / "cat" / "report.json").read_text())
    assert "0.1 in [-1, 1] = 0.05 of full scale" in report["provenance"]["noise"]
    assert not list(here.rglob(".*"))


def test_simulate_scores(run: Run, here: Path) -> None:
    arguments = ("cat.png", *BLUR, "-a", "inpaint:keep_fraction=0.8", "--simulate", *QUICK)
    code, out, _ = run("restore", *arguments)
    assert code == 0
    found = json.loads((here / "out" / "cat" / "report.json").read_text())["metrics"]
    for part in ("mean", "degraded", "baseline"):
        assert found[part]["psnr"] > 5
        assert 0 < found[part]["ssim"] < 1
    assert found["baseline"]["name"] == "total variation"
    assert f"{found['mean']['psnr']:.2f} dB" in out


def test_the_same_seed_gives_the_same_files(run: Run, here: Path) -> None:
    for out, batch in (("a", 1), ("b", 2)):
        assert run("restore", "cat.png", *BLUR, *QUICK, "-o", out, "--max-batch", batch)[0] == 0
    assert run("restore", "cat.png", *BLUR, *QUICK, "-o", "c", "--seed", "1")[0] == 0
    draws = [(here / out / "cat" / "draw-1.png").read_bytes() for out in "abc"]
    assert draws[0] == draws[1] != draws[2]


def test_one_broken_file_does_not_stop_the_others(run: Run, here: Path) -> None:
    (here / "cut.png").write_bytes((here / "cat.png").read_bytes()[:500])
    code, _, err = run("restore", "cut.png", "cat.png", "gone.png", "dog.jpg", *BLUR, *QUICK)
    assert code == 1
    assert (here / "out" / "cat" / "sheet.png").exists()
    assert (here / "out" / "dog" / "sheet.png").exists()
    assert not (here / "out" / "cut").exists()
    lines = err.splitlines()
    assert len(lines) == 3
    assert "cut.png" in lines[0]
    assert "gone.png" in lines[1]
    assert lines[2] == "posterior: 2 of 4 images failed"


def test_nothing_is_overwritten_unasked(run: Run, here: Path, photo_prior: SmoothPrior) -> None:
    assert run("restore", "cat.png", *BLUR, *QUICK)[0] == 0
    before, calls = listing(here), photo_prior.counts.nfe
    code, out, err = run("restore", "dog.jpg", "cat.png", *BLUR, *QUICK)
    assert (code, out) == (2, "")
    assert "--overwrite" in err
    assert (listing(here), photo_prior.counts.nfe) == (before, calls)
    assert run("restore", "cat.png", *BLUR, *QUICK, "--seed", "5", "--overwrite")[0] == 0
    assert listing(here).keys() == before.keys()
    assert listing(here) != before
    (here / "out" / "cat" / "notes.txt").write_text("mine")
    code, _, err = run("restore", "cat.png", *BLUR, *QUICK, "--overwrite")
    assert code == 2
    assert "notes.txt" in err


def test_noise_is_estimated(run: Run, here: Path) -> None:
    code, out, _ = run("restore", "cat.png", *BLUR, "--steps", "1", "-n", "1")
    assert code == 0
    assert "1 step, 1 draw: 1 network call and 3 backward passes" in out
    assert "estimated from" in out


def test_checkpoint_and_resume(run: Run, here: Path) -> None:
    assert run("restore", "cat.png", *BLUR, *QUICK, "--checkpoint", "state")[0] == 0
    code, _, _ = run("restore", "cat.png", *BLUR, *QUICK, "--resume", "state", "-o", "again")
    assert code == 0
    name = Path("cat") / "draw-0.png"
    assert (here / "out" / name).read_bytes() == (here / "again" / name).read_bytes()
    code, _, err = run("restore", "cat.png", *BLUR, *QUICK, "--resume", "state", "-o", "x",
                       "--seed", "9")  # fmt: skip
    assert code == 1
    assert "seed" in err


def test_many_images_resume_where_the_run_stopped(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image was never begun: it starts afresh; and the state goes on being saved."""
    both = ("restore", "cat.png", "dog.jpg", *BLUR, *QUICK)
    assert run("restore", "cat.png", *BLUR, *QUICK, "--checkpoint", "state", "-o", "first")[0] == 0
    code, _, err = run(*both, "--resume", "state")
    assert (code, err) == (0, "")
    assert (here / "state" / "dog" / "checkpoint.safetensors").exists()
    code, _, err = run(*both, "--resume", "nowhere", "-o", "other")
    assert code == 2
    assert "nowhere" in err
    assert not (here / "other").exists()


def test_long_runs_want_a_yes(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch, photo_prior: SmoothPrior
) -> None:
    big = np.tile(photograph("coffee", 64), (3, 3, 1))
    Image.fromarray(big).save(here / "big.png")
    monkeypatch.setattr(posterior.restoration.Plan, "seconds", lambda plan: 1000.0)
    code, _, err = run("restore", "big.png", *BLUR, *QUICK)
    assert code == 2
    assert "about 17 min" in err
    assert "--yes" in err
    assert "--crop 128" in err
    assert not (here / "out").exists()
    assert run("restore", "big.png", *BLUR, *QUICK, "--yes")[0] == 0
    monkeypatch.undo()


def test_quiet(run: Run, here: Path) -> None:
    assert run("restore", here / "cat.png", *BLUR, *QUICK, "-o", here / "o", "-q") == (0, "", "")


def test_interrupted(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(posterior.restoration.Plan, "run", stop)
    code, _, err = run("restore", "cat.png", *BLUR, *QUICK, "--checkpoint", "state")
    assert code == 130
    assert "--resume state" in err
    assert "Traceback" not in err


WRONG = {
    "no image": (("restore", *BLUR), 2, "IMAGE"),
    "no operator": (("restore", "cat.png"), 2, "--operator"),
    "unknown command": (("restroe", "cat.png"), 2, "restroe"),
    "unknown option": (("restore", "cat.png", *BLUR, "--nosie", "0.1"), 2, "--nosie"),
    "unknown operator": (("restore", "cat.png", "-a", "inpait:box=9"), 2, "did you mean 'inpaint'"),
    "unknown parameter": (("restore", "cat.png", "-a", "inpaint:bx=9"), 2, "'box'"),
    "parameter missing": (("restore", "cat.png", "-a", "gaussian-blur"), 2, "sigma"),
    "parameter no number": (("restore", "cat.png", "-a", "gaussian-blur:sigma=x"), 2, "number"),
    "empty parameter": (("restore", "cat.png", "-a", "gaussian-blur:"), 2, "parameters"),
    "mask file missing": (("restore", "cat.png", "-a", "inpaint:edit=no.png"), 2, "no.png"),
    "mask file broken": (("restore", "cat.png", "-a", "inpaint:edit=text.png"), 2, "text.png"),
    "kernel file missing": (("restore", "cat.png", "-a", "blur:kernel=no.png"), 2, "no.png"),
    "kernel file broken": (("restore", "cat.png", "-a", "blur:kernel=text.png"), 2, "text.png"),
    "unknown method": (("restore", "cat.png", *BLUR, "-m", "dpss"), 2, "did you mean 'dps'"),
    "noise below 0": (("restore", "cat.png", *BLUR, "--noise", "-0.1"), 2, "[0, 1]"),
    "noise of 255": (("restore", "cat.png", *BLUR, "--noise", "25"), 2, "25 of 255 is 0.098"),
    "noise no number": (("restore", "cat.png", *BLUR, "--noise", "low"), 2, "--noise"),
    "noise nan": (("restore", "cat.png", *BLUR, "--noise", "nan"), 2, "[0, 1]"),
    "no samples": (("restore", "cat.png", *BLUR, "-n", "0"), 2, "--samples"),
    "no steps": (("restore", "cat.png", *BLUR, "--steps", "0"), 2, "--steps"),
    "seed no integer": (("restore", "cat.png", *BLUR, "--seed", "0.5"), 2, "--seed"),
    "no batch": (("restore", "cat.png", *BLUR, "--max-batch", "0"), 2, "--max-batch"),
    "output is a file": (("restore", "cat.png", *BLUR, "-o", "text.png"), 2, "is a file"),
    "output below a file": (("restore", "cat.png", *BLUR, "-o", "text.png/o"), 2, "is a file"),
    "two of one name": (("restore", "cat.png", "d/cat.png", *BLUR), 2, "both"),
    "missing file": (("restore", "gone.png", *BLUR), 1, "no such file"),
    "truncated file": (("restore", "cut.png", *BLUR), 1, "truncated"),
    "no image file": (("restore", "text.png", *BLUR), 1, "not a PNG"),
    "a folder": (("restore", "d", *BLUR), 1, "not a file"),
    "too small": (("restore", "tiny.png", *BLUR), 1, "32x32"),
    "mask of another size": (("restore", "cat.png", "-a", "inpaint:edit=tiny.png"), 1, "mask"),
    "kernel larger than the image": (
        ("restore", "cat.png", "-a", "gaussian-blur:sigma=90,boundary=valid", "--simulate"), 1, "",
    ),
    "crop outside": (("restore", "cat.png", *BLUR, "--crop", "99"), 1, "inside"),
    "crop unreadable": (("restore", "cat.png", *BLUR, "--crop", "all"), 2, "crop"),
    "nothing to resume": (("restore", "cat.png", *BLUR, *QUICK, "--resume", "no"), 2, "no such"),
    "demo without space": (("demo", "-o", "text.png"), 2, "is a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_line_and_nothing_written(case: str, run: Run, here: Path) -> None:
    arguments, expected, words = WRONG[case]
    (here / "text.png").write_text("no image")
    (here / "cut.png").write_bytes((here / "cat.png").read_bytes()[:500])
    (here / "d").mkdir()
    (here / "d" / "cat.png").write_bytes((here / "cat.png").read_bytes())
    Image.new("RGB", (16, 16)).save(here / "tiny.png")
    before = listing(here)
    code, _, err = run(*arguments)
    assert code == expected
    assert words in err
    assert err.startswith("posterior: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert listing(here) == before


def test_an_unknown_prior(
    tmp_path: Path, cat_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["restore", "cat.png", *BLUR, "--prior", "phto"])
    assert result.exit_code == 2
    assert "photo" in result.output + capsys.readouterr().err


def test_a_bug_is_one_line_too(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(posterior.restoration.Plan, "run", break_down)
    code, _, err = run("restore", "cat.png", *BLUR, *QUICK)
    assert (code, err) == (1, "posterior: cat.png: ZeroDivisionError: division by zero\n")


def test_no_draw_is_lost_when_the_folder_cannot_be_written_after_all(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = posterior.restoration.Plan.run

    def spoil(*args: object, **options: object) -> object:
        (here / "out").write_text("in the way")  # while the run was under way
        return work(*args, **options)

    monkeypatch.setattr(posterior.restoration.Plan, "run", spoil)
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    code, _, err = run("restore", "cat.png", *BLUR, *QUICK)
    assert code == 1
    rescued = Path(err.strip().split("the results are in ")[1])
    assert (rescued / "samples.safetensors").is_file()
    assert (rescued / "draw-1.png").is_file()


def test_kernel_from_a_file(run: Run, here: Path) -> None:
    line = np.zeros((5, 7), dtype=np.uint8)
    line[2] = 255
    Image.fromarray(line).save(here / "psf.png")
    code, _, err = run(
        "restore", "cat.png", "--simulate", "--operator", "blur:kernel=psf.png", *QUICK
    )
    assert (code, err) == (0, "")
    report = json.loads((here / "out" / "cat" / "report.json").read_text())
    assert "Blur(kernel=tensor(5, 7))" in json.dumps(report)


def test_tables_help_and_version(run: Run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    for name in posterior.guidance.REGISTRY:
        assert name in out
    assert "network calls" in out
    code, out, _ = run("operators")
    assert code == 0
    for name, _, _ in posterior.operators.table():
        assert name in out
    assert run("--version") == (0, f"posterior {posterior.__version__}\n", "")
    runner = CliRunner()
    for command in ([], ["restore"], ["methods"], ["operators"], ["demo"]):
        result = runner.invoke(cli.app, [*command, "--help"], env={"COLUMNS": "90"})
        assert result.exit_code == 0
    help_text = runner.invoke(cli.app, ["restore", "--help"], env={"COLUMNS": "100"}).output
    assert "posterior restore photo.jpg --operator gaussian-blur:sigma=2" in help_text


def test_demo(run: Run, here: Path) -> None:
    for folder in ("posterior-demo", "posterior-demo-2"):  # the second one gets a new name
        code, out, err = run("demo", "--steps", "2", "--samples", "2")
        assert (code, err) == (0, "")
        assert "PSNR" in out
        assert "mean of 2 draws" in out
        assert f"{folder}/sheet.png" in out.replace("\\", "/")
        assert (here / folder / "sheet.png").exists()


def test_as_a_program(tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "posterior", *arguments], cwd=tmp_path, text=True,
            capture_output=True, check=False,
        )  # fmt: skip

    assert call("--version").stdout.startswith("posterior ")
    wrong = call("restore", "gone.png", "--operator", "identty")
    assert wrong.returncode == 2
    assert "did you mean 'identity'" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
