"""Bad input of operators and noise: one clear exception of the right type each. And the parser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from posterior.errors import CapabilityError, FileProblem, InputError, InputTypeError
from posterior.operators import (
    Blur,
    BoxMask,
    ChannelMean,
    ComplexFromChannels,
    GaussianBlur,
    GaussianNoise,
    Identity,
    Mask,
    MotionBlur,
    OutpaintMask,
    PoissonNoise,
    RandomMask,
    Stack,
    SuperResolution,
    as_noise_model,
    check,
    from_callable,
    from_matrix,
    parse,
    table,
)

X = torch.zeros(2, 3, 16, 16)
ONES = torch.ones
NAN = float("nan")

BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: GaussianBlur(-1.0), InputError, "sigma"),
    (lambda: GaussianBlur(0.0), InputError, "sigma must be > 0"),
    (lambda: GaussianBlur(NAN), InputError, "sigma"),
    (lambda: GaussianBlur("2"), InputTypeError, "sigma must be a number"),
    (lambda: GaussianBlur(True), InputTypeError, "sigma must be a number"),
    (lambda: GaussianBlur(2.0, "reflekt"), InputError, "did you mean 'reflect'"),
    (lambda: GaussianBlur(sgima=2.0), TypeError, "sgima"),
    (lambda: GaussianBlur(4.0, "valid")(X), InputError, "taps"),
    (lambda: GaussianBlur(1.0)(X[0]), InputError, r"\(B, C, H, W\)"),
    (lambda: GaussianBlur(1.0)(X.half()), InputTypeError, "precision"),
    (lambda: GaussianBlur(1.0)(X.int()), InputTypeError, "floating point"),
    (lambda: GaussianBlur(1.0)(X.numpy()), InputTypeError, "torch tensor"),
    (lambda: GaussianBlur(1.0)(X.to("meta")), InputError, "meta"),
    (lambda: GaussianBlur(1.0)(torch.zeros(1, 3, 0, 4)), InputError, "images"),
    (lambda: MotionBlur(0.5), InputError, "length"),
    (lambda: MotionBlur(5, NAN), InputError, "angle must be finite, not nan"),
    (lambda: MotionBlur(33)(X), InputError, "larger than the image"),
    (lambda: Blur(ONES(4, 4)), InputError, "center="),
    (lambda: Blur(ONES(3, 3), center=(3, 0)), InputError, "outside"),
    (lambda: Blur(ONES(3, 3), center=1), InputTypeError, "center"),
    (lambda: Blur(ONES(17, 17))(X), InputError, "larger than the image"),
    (lambda: Blur(ONES(17, 1), "valid")(X), InputError, "larger than the image"),
    (lambda: Blur(ONES(3)), InputError, "kernel"),
    (lambda: Blur(ONES(3, 3) * NAN), InputError, "NaN"),
    (lambda: Blur(ONES(3, 3) * 1j), InputTypeError, "real"),
    (lambda: Blur("box"), InputTypeError, "kernel"),
    (lambda: Blur(ONES(2, 3, 3, 3)), InputError, "channels"),
    (lambda: Blur(ONES(3, 1, 3, 3))(X), InputError, "3 measurements"),
    (lambda: Blur(ONES(3, 1, 3, 3)).take([3]), InputError, "take"),
    (lambda: Blur(ONES(3, 3)).pinv(X), CapabilityError, "circular"),
    (lambda: SuperResolution(0), InputError, "factor"),
    (lambda: SuperResolution(2.5), InputError, "whole"),
    (lambda: SuperResolution(3)(X), InputError, "crop to 15"),
    (lambda: SuperResolution(2, "bicubik"), InputError, "did you mean 'bicubic'"),
    (lambda: SuperResolution(2, ONES(2, 3, 3)), InputError, "kernel"),
    (lambda: SuperResolution(2, ONES(19, 19))(X), InputError, "larger than the image"),
    (lambda: SuperResolution(2, ONES(3, 3)).pinv(X), CapabilityError, "pseudo-inverse"),
    (lambda: Mask(), InputError, "exactly one"),
    (lambda: Mask(keep=ONES(4, 4), edit=ONES(4, 4)), InputError, "exactly one"),
    (lambda: Mask(keep=torch.zeros(4, 4)), InputError, "nothing is observed"),
    (lambda: Mask(edit=ONES(2, 1, 4, 4)), InputError, "nothing is observed"),
    (lambda: Mask(keep=0.5 * ONES(4, 4)), InputError, "zeros and ones"),
    (lambda: Mask(keep=NAN * ONES(4, 4)), InputError, "zeros and ones"),
    (lambda: Mask(keep=ONES(3, 4, 4)), InputError, r"\(B, 1, H, W\)"),
    (lambda: Mask(keep=ONES(1, 3, 4, 4)), InputError, r"\(B, 1, H, W\)"),
    (lambda: Mask(keep=ONES(0, 4)), InputError, "empty"),
    (lambda: Mask(keep=object()), InputTypeError, "tensor or the path"),
    (lambda: Mask(keep=ONES(4, 4))(X), InputError, "the mask is 4 x 4, the image 16 x 16"),
    (lambda: Mask(keep=ONES(3, 1, 16, 16))(X), InputError, "3 measurements"),
    (lambda: Mask(keep="/nowhere/mask.png"), FileProblem, "does not exist"),
    (lambda: Mask.random(keep_fraction=0.0), InputError, "keep_fraction"),
    (lambda: Mask.random(keep_fraction=1.5), InputError, "keep_fraction"),
    (lambda: Mask.random(keep_fraction=0.5, seed=1.5), InputTypeError, "seed"),
    (lambda: RandomMask(0.5, "1"), InputTypeError, "seed"),
    (lambda: Mask.box(size=0), InputError, "size"),
    (lambda: Mask.box(size=17)(X), InputError, "leaves the image"),
    (lambda: Mask.box(size=16)(X), InputError, "whole image"),
    (lambda: BoxMask((4, 4), (13, 0))(X), InputError, "leaves the image"),
    (lambda: BoxMask((4, 4, 4)), InputError, "one or two"),
    (lambda: OutpaintMask(8)(X), InputError, "nothing of 16 x 16"),
    (lambda: OutpaintMask(-1), InputError, "margin"),
    (lambda: ChannelMean()(X[:, :2]), InputError, "3 channels"),
    (lambda: ComplexFromChannels()(X), InputError, "even number"),
    (lambda: from_matrix(ONES(4)), InputError, r"\(m, d\)"),
    (lambda: from_matrix(ONES(4, 4) * NAN), InputError, "NaN"),
    (lambda: from_matrix(ONES(4, 5))(X), InputError, "takes 5 numbers"),
    (lambda: from_matrix(ONES(4, 5), (2, 2)), InputError, "5 elements"),
    (lambda: from_matrix(ONES(4, 5)).adjoint(ONES(2, 5)), InputError, "gives"),
    (lambda: from_matrix(ONES(4, 5) * 1j)(ONES(2, 5) * 1j), InputError, "complex_domain"),
    (lambda: from_callable(3), InputTypeError, "function"),
    (lambda: from_callable(abs, on_error="ignore"), InputError, "on_error"),
    (lambda: from_callable(lambda x: "no")(X), InputTypeError, "return a tensor"),
    (lambda: from_callable(lambda x: x[0])(X), InputError, "must return one row"),
    (
        lambda: from_callable(lambda x: x.detach(), differentiable=True).vjp(X),
        CapabilityError,
        "torch",
    ),
    (lambda: Stack([]), InputError, "at least one"),
    (lambda: Stack([Identity(), abs]), InputTypeError, "list of operators"),
    (lambda: check(abs), InputTypeError, "Operator"),
    (lambda: check(Identity(), "large"), InputTypeError, "shape"),
    (lambda: check(Identity(), (1, 0, 4)), InputError, "shape must be >= 1"),
    (lambda: GaussianNoise(-0.1), InputError, ">= 0"),
    (lambda: GaussianNoise(NAN), InputError, "finite"),
    (lambda: GaussianNoise(float("inf")), InputError, "finite"),
    (lambda: GaussianNoise(torch.tensor([0.1, -0.1])), InputError, ">= 0"),
    (lambda: GaussianNoise(torch.tensor([0.1, NAN])), InputError, "finite"),
    (lambda: GaussianNoise("0.1"), InputTypeError, "number"),
    (lambda: GaussianNoise(True), InputTypeError, "number"),
    (lambda: GaussianNoise(ONES(3)).check(X), InputError, "3 measurements"),
    (lambda: GaussianNoise(ONES(2, 3)).check(X), InputError, "shape"),
    (lambda: GaussianNoise(0.1).check(X * NAN), InputError, "NaN"),
    (lambda: GaussianNoise(0.1).sample(X * NAN, 0), InputError, "NaN"),
    (lambda: GaussianNoise(0.1).sample(X, 0.5), InputTypeError, "seed"),
    (lambda: GaussianNoise(0.1).sample(X, [1]), InputError, "seeds"),
    (lambda: GaussianNoise(0.1).log_prob(X, X[:, :1]), InputError, "shape"),
    (lambda: PoissonNoise(0.0), InputError, "> 0"),
    (lambda: PoissonNoise(1.0, low=1.0), InputError, "low"),
    (lambda: PoissonNoise(1.0, peak=NAN), InputError, "finite"),
    (lambda: PoissonNoise(1.0).sample(X * 1j, 0), InputError, "complex"),
    (lambda: PoissonNoise(1.0).check(X - 2), InputError, "below low"),
    (lambda: as_noise_model(None), InputError, "missing"),
    (lambda: as_noise_model([0.1]), InputTypeError, "number"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(number: int) -> None:
    call, kind, message = BAD[number]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", ["text", "truncated", "folder"])
def test_broken_mask_files(broken: str, tmp_path) -> None:
    path = tmp_path / "mask.png"
    if broken == "folder":
        path.mkdir()
    elif broken == "text":
        path.write_text("not an image")
    else:
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileProblem, match=r"mask\.png"):
        Mask(keep=path)


GOOD = {
    "identity": "Identity()",
    "gaussian-blur:sigma=2.0": "GaussianBlur(sigma=2)",
    "gaussian-blur:sigma=2,boundary=circular": "GaussianBlur(sigma=2, boundary='circular')",
    "motion-blur:length=15,angle=30": "MotionBlur(length=15, angle=30)",
    "super-resolution:factor=4,kernel=average": "SuperResolution(factor=4, kernel='average')",
    " super-resolution : factor = 4 ": "",
    "inpaint:keep_fraction=0.3,seed=2": "RandomMask(keep_fraction=0.3, seed=2)",
    "inpaint:keep-fraction=0.3": "RandomMask(keep_fraction=0.3)",
    "inpaint:box=32": "BoxMask(size=(32, 32))",
    "inpaint:box=32x48,at=1x2": "BoxMask(size=(32, 48), at=(1, 2))",
    "mask:outpaint=8": "OutpaintMask(margin=(8, 8, 8, 8))",
    "channel-mean": "ChannelMean()",
}


@pytest.mark.parametrize("text", [text for text, shown in GOOD.items() if shown])
def test_parse(text: str) -> None:
    assert repr(parse(text)) == GOOD[text]


def test_parse_a_kernel_file(tmp_path) -> None:
    trace = np.zeros((5, 7), dtype=np.uint8)
    trace[2, 1:6] = 200
    Image.fromarray(trace).save(tmp_path / "psf.png")
    np.savez(tmp_path / "psf.npz", f=trace / 100, g=trace[:4])
    read = parse(f"blur:kernel={tmp_path / 'psf.png'},boundary=circular")
    assert isinstance(read, Blur)
    assert read.boundary == "circular"
    torch.testing.assert_close(read.kernel, torch.from_numpy(trace / 1000.0))  # of sum 1
    plain = parse(f"blur:kernel={tmp_path / 'psf.npz'},key=f,normalise=no,correlation=yes")
    assert isinstance(plain, Blur)
    assert plain.correlation
    torch.testing.assert_close(plain.kernel, torch.from_numpy(trace / 100.0))
    even = parse(f"blur:kernel={tmp_path / 'psf.npz'},key=g,center=2x3")
    assert isinstance(even, Blur)
    assert even.center == (2, 3)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ("no.png", FileProblem, "no.png does not exist"),
        ("text.png", FileProblem, "text.png is neither .npy, .npz or .mat nor an image"),
        ("text.npy", FileProblem, "text.npy cannot be read"),
        ("stack.npy", InputError, r"one kernel \(height, width\), not \(2, 3, 3\)"),
        ("line.npy", InputError, r"kernel must be \(kh, kw\)"),
        ("zero.npy", InputError, "a sum of 0"),
        ("nan.npy", InputError, "NaN"),
        ("even.npy", InputError, "center="),
        ("even.npy,center=5x5", InputError, "outside"),
        ("even.npy,normalise=maybe", InputError, "normalise must be yes or no, not 'maybe'"),
        ("even.npy,krenel=1", InputError, "did you mean 'kernel'"),
        ("even.npy,key=f", InputError, "leave key= out"),
    ],
)
def test_parse_bad_kernel_files(
    parameters: str, error: type[Exception], message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.png", "text.npy"):
        (tmp_path / name).write_text("not an image")
    arrays = {
        "stack": np.ones((2, 3, 3)),
        "line": np.ones(3),
        "zero": np.zeros((3, 3)),
        "nan": np.full((3, 3), np.nan),
        "even": np.ones((4, 4)),
    }
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    with pytest.raises(error, match=message) as caught:
        parse(f"blur:kernel={parameters}")
    assert "\n" not in str(caught.value)


def test_parse_paths_with_commas(tmp_path) -> None:
    path = tmp_path / "a, b.png"
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(path)
    op = parse(f"inpaint:edit={path}")
    assert isinstance(op, Mask)
    assert int(op.keep.sum()) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian-blur:sigma=2", "did you mean 'gaussian-blur'"),
        ("gaussian-blur:sgima=2", "did you mean 'sigma'"),
        ("gaussian-blur", "needs sigma="),
        ("blur", "needs kernel="),
        ("gaussian-blur:", "missing after the colon"),
        ("gaussian-blur:sigma", "key=value"),
        ("gaussian-blur:sigma=", "key=value"),
        ("gaussian-blur:sigma=two", "sigma must be a number, not 'two'"),
        ("gaussian-blur:sigma=-1", "sigma"),
        ("gaussian-blur:sigma=1,sigma=2", "twice"),
        ("super-resolution:factor=2.5", "whole number"),
        ("super-resolution:factor=4,kernel=lanczos", "kernel"),
        ("inpaint", "exactly one of"),
        ("inpaint:box=3,keep_fraction=0.5", "exactly one of"),
        ("inpaint:box=3,seed=1", "belongs to"),
        ("inpaint:box=3xb", "32x48"),
        ("", "unknown operator"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_table_shows_every_operator_and_its_usage_works(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((3, 3), 200, dtype=np.uint8)).save("psf.png")
    names = [name for name, _, _ in table()]
    assert {"identity", "inpaint", "gaussian-blur", "motion-blur", "super-resolution"} <= set(names)
    for name, _, line in table():
        usage = line.rsplit("e.g. ", 1)[1]
        assert usage.startswith(name)
        parse(usage)
