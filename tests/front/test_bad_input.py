"""Everything a caller can get wrong: a typed exception from Python, and nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from front_helpers import SmoothPrior, listing

from posterior.errors import (
    CapabilityError,
    FileProblem,
    InputError,
    InputTypeError,
    PosteriorError,
    ResumeError,
)
from posterior.guidance import DPS
from posterior.operators import (
    Blur,
    GaussianBlur,
    Mask,
    SuperResolution,
    from_callable,
)
from posterior.restoration import restore

BLUR = "gaussian-blur:sigma=1.0"
IMAGE = np.full((48, 48, 3), 100, np.uint8)

CASES = {
    # the image
    "missing file": ({"image": "nowhere.png"}, FileProblem, "no such file"),
    "a folder": ({"image": "."}, FileProblem, "not a file"),
    "shape": ({"image": torch.zeros(48, 48)}, InputError, "C, H, W"),
    "channels": ({"image": torch.zeros(4, 48, 48)}, InputError, "1 or 3"),
    "channels last": ({"image": torch.zeros(48, 48, 3)}, InputError, "permute"),
    "channels first": ({"image": np.zeros((3, 48, 48))}, InputError, "from_numpy"),
    "dtype": ({"image": torch.zeros(3, 48, 48, dtype=torch.int32)}, InputTypeError, "float"),
    "range": ({"image": torch.full((3, 48, 48), 128.0)}, InputError, "127.5"),
    "NaN": ({"image": torch.full((3, 48, 48), torch.nan)}, InputError, "NaN"),
    "meta device": ({"image": torch.zeros(3, 48, 48, device="meta")}, InputError, "meta"),
    "not an image": ({"image": {"a": 1}}, InputTypeError, "path"),
    "too small": ({"image": IMAGE[:20]}, InputError, "32"),
    "too small once cropped": ({"crop": 16}, InputError, "32"),
    "crop outside": ({"crop": "40x40+20+0"}, InputError, "inside"),
    "crop unreadable": ({"crop": "left half"}, InputError, "crop"),
    # the operator
    "operator unknown": ({"operator": "gausian-blur:sigma=1"}, InputError, "did you mean"),
    "parameter unknown": ({"operator": "gaussian-blur:sgima=1"}, InputError, "did you mean"),
    "parameter missing": ({"operator": "gaussian-blur"}, InputError, "sigma"),
    "parameter no number": ({"operator": "gaussian-blur:sigma=wide"}, InputError, "number"),
    "parameter negative": ({"operator": "gaussian-blur:sigma=-1"}, InputError, "sigma"),
    "parameter NaN": ({"operator": "gaussian-blur:sigma=nan"}, InputError, "sigma"),
    "boundary unknown": (
        {"operator": "gaussian-blur:sigma=1,boundary=relfect"}, InputError, "reflect"
    ),
    "operator of a wrong type": ({"operator": 5}, InputTypeError, "operator"),
    "operator a class": ({"operator": GaussianBlur}, InputTypeError, "operator"),
    "no operator": ({"operator": []}, InputTypeError, "operator"),
    "mask of zeros": (
        {"operator": lambda: Mask(keep=torch.zeros(48, 48))}, InputError, "observed"
    ),
    "mask of another size": (
        {"operator": lambda: Mask(keep=torch.ones(48, 40))}, InputError, "mask"
    ),
    "mask both ways": (
        {"operator": lambda: Mask(keep=torch.ones(4, 4), edit=torch.ones(4, 4))},
        InputError, "exactly one",
    ),
    "mask file missing": ({"operator": "inpaint:edit=nowhere.png"}, FileProblem, "nowhere"),
    "hole larger than the image": ({"operator": "inpaint:box=64"}, InputError, "box|hole|size"),
    "keep_fraction above 1": ({"operator": "inpaint:keep_fraction=2"}, InputError, "keep_frac"),
    "even kernel": ({"operator": lambda: Blur(kernel=torch.ones(4, 4))}, InputError, "even"),
    "kernel with NaN": (
        {"operator": lambda: Blur(kernel=torch.full((3, 3), torch.nan))}, InputError, "NaN"
    ),
    "kernel larger than the image": (
        {"operator": lambda: Blur(kernel=torch.ones(99, 99)), "simulate": True},
        InputError, "larger",
    ),
    "factor 0": ({"operator": lambda: SuperResolution(factor=0)}, InputError, "factor"),
    "factor that does not divide": (
        {"operator": lambda: SuperResolution(factor=5), "simulate": True}, InputError, "factor|divi"
    ),
    "not degraded by this operator": (
        {"operator": from_callable(lambda x: x[..., ::2, ::2])}, InputError, "simulate"
    ),
    "operator without a gradient": (
        {"operator": from_callable(lambda x: x.round(), differentiable=False), "method": "dps"},
        CapabilityError, "gradient",
    ),
    # noise
    "noise below 0": ({"noise": -0.1}, InputError, "noise|std"),
    "noise NaN": ({"noise": float("nan")}, InputError, "noise|std"),
    "noise a text": ({"noise": "low"}, InputTypeError, "noise|std"),
    "noise not to be estimated": (
        {"noise": None, "operator": "inpaint:keep_fraction=0.02"}, InputError, "noise="
    ),
    # the rest
    "method unknown": ({"method": "dsp"}, InputError, "did you mean .*'dps'"),
    "method a class": ({"method": DPS}, InputTypeError, "instance"),
    "prior unknown": ({"prior": "phto"}, InputError, "photo"),
    "prior of a wrong type": ({"prior": 3}, InputTypeError, "prior"),
    "n = 0": ({"n": 0}, InputError, "at least 1"),
    "n a float": ({"n": 2.0}, InputTypeError, "integer"),
    "steps = 0": ({"steps": 0}, InputError, "at least 1"),
    "steps a text": ({"steps": "many"}, InputTypeError, "integer"),
    "seed a float": ({"seed": 0.5}, InputTypeError, "seed"),
    "seed a text": ({"seed": "lucky"}, PosteriorError, "seed"),
    "too many seeds": ({"seed": [1, 2, 3]}, InputError, "seeds"),
    "max_batch = 0": ({"max_batch": 0}, InputError, "max_batch"),
    "nothing to resume": ({"resume": "nowhere"}, (ResumeError, FileProblem), "nowhere|checkpoint"),
}  # fmt: skip


def made_and_restored(settings: dict[str, object]) -> None:
    operator = settings["operator"]
    if getattr(operator, "__name__", "") == "<lambda>":  # building it may be what fails
        settings["operator"] = operator()
    restore(**settings)


@pytest.mark.parametrize("case", CASES)
def test_a_typed_exception_and_nothing_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, error, words = CASES[case]
    monkeypatch.chdir(tmp_path)
    prior = SmoothPrior()
    settings = {"image": IMAGE, "operator": BLUR, "noise": 0.1, "prior": prior, "n": 2, "steps": 2}
    settings |= change
    with pytest.raises(error, match=words) as problem:
        made_and_restored(settings)
    assert isinstance(problem.value, PosteriorError)
    assert "\n" not in str(problem.value)
    assert prior.counts.nfe == 0
    assert listing(tmp_path) == {}


def test_one_step_works() -> None:
    out = restore(IMAGE, BLUR, 0.1, SmoothPrior(), n=2, steps=1)
    assert bool(out.draws.isfinite().all())
