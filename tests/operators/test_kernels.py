"""Kernels and masks from files, and random kernels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from operator_battery import normal
from PIL import Image

from posterior import operators
from posterior.errors import FileProblem, InputError, InputTypeError
from posterior.operators import Blur, Mask, camera_shake, load_kernel

KERNEL = np.arange(1.0, 16.0).reshape(3, 5)


def write(folder: Path, name: str, values: np.ndarray) -> Path:
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, values)
    elif name.endswith(".npz"):
        np.savez(path, f=values)
    elif name.endswith(".mat"):
        scipy.io.savemat(path, {"f": values})
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", ["k.npy", "k.npz", "k.mat", "K.NPY"])
def test_kernels_from_arrays(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name.lower(), KERNEL).rename(tmp_path / name)
    kernel = load_kernel(path)
    assert kernel.dtype == torch.float64
    np.testing.assert_array_equal(kernel, KERNEL)
    np.testing.assert_allclose(load_kernel(str(path), normalise=True), KERNEL / 120, rtol=1e-15)
    if name.endswith(("npz", "mat")):
        np.testing.assert_array_equal(load_kernel(path, key="f"), KERNEL)
        with pytest.raises(InputError, match="holds f, not g"):
            load_kernel(path, key="g")
    else:
        with pytest.raises(InputError, match="key="):
            load_kernel(path, key="f")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_kernels_from_images(dtype: type, tmp_path: Path) -> None:
    path = write(tmp_path, "k.png", (KERNEL * 10).astype(dtype))
    full = np.iinfo(dtype).max
    np.testing.assert_allclose(load_kernel(path), KERNEL * 10 / full, rtol=1e-12)
    kernel = load_kernel(path, normalise=True)
    np.testing.assert_allclose(kernel, KERNEL / 120, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Blur(kernel)


def test_byte_orders_of_other_machines(tmp_path: Path) -> None:
    for order in "<>":
        path = write(tmp_path, "k.npy", KERNEL.astype(f"{order}f4"))
        np.testing.assert_array_equal(load_kernel(path), KERNEL)


def test_stacks_are_normalised_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path, "k.npy", np.stack([KERNEL, 2 * KERNEL]))
    torch.testing.assert_close(
        load_kernel(path, normalise=True).sum((1, 2)), torch.ones(2).double()
    )


def test_kernels_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=KERNEL, b=KERNEL)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.mat").write_text("text")
    (tmp_path / "folder.npy").mkdir()
    write(tmp_path, "minus.npy", KERNEL - 8)
    write(tmp_path, "line.npy", KERNEL[0])
    write(tmp_path, "image.png", KERNEL.astype(np.uint8))
    for name, kind, message in (
        ("two.npz", InputError, "a, b: give key="),
        ("object.npy", FileProblem, "cannot be read"),
        ("text.png", FileProblem, "neither"),
        ("text.npy", FileProblem, "cannot be read"),
        ("text.mat", FileProblem, "cannot be read"),
        ("folder.npy", FileProblem, "cannot be read"),
        ("missing.npy", FileProblem, "does not exist"),
        ("missing.png", FileProblem, "does not exist"),
        ("missing.mat", FileProblem, "does not exist"),
        ("minus.npy", InputError, "sum"),
        ("line.npy", InputError, "kernel must be"),
    ):
        with pytest.raises(kind, match=message) as caught:
            load_kernel(tmp_path / name, normalise=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="key="):
        load_kernel(tmp_path / "image.png", key="f")


@pytest.mark.parametrize("name", ["m.npy", "m.npz", "m.mat"])
def test_masks_from_arrays(name: str, tmp_path: Path) -> None:
    keep = (normal((6, 5), "mask") > 0).numpy()
    path = write(tmp_path, name, keep)
    x = normal((1, 1, 6, 5))
    assert torch.equal(Mask(keep=path)(x), Mask(keep=torch.from_numpy(keep))(x))
    assert torch.equal(Mask(edit=str(path)).keep, ~Mask(keep=path).keep)
    with pytest.raises(InputError, match="zeros and ones"):
        Mask(keep=write(tmp_path, name, KERNEL))


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_camera_shake(seed: int) -> None:
    kernel = camera_shake(31, seed=seed)
    assert kernel.shape == (31, 31)
    assert float(kernel.min()) == 0
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    middle = torch.arange(31, dtype=torch.float64) - 15
    assert float((kernel.sum(0) * middle).sum()) == pytest.approx(0, abs=1e-6)  # the centroid
    assert float((kernel.sum(1) * middle).sum()) == pytest.approx(0, abs=1e-6)
    assert torch.equal(kernel, camera_shake(31, seed=seed))
    assert not torch.equal(kernel, camera_shake(31, seed=seed + 1))
    both = camera_shake(31, seed=[seed, 7])
    assert torch.equal(both[0], kernel)
    assert Blur(both).take([1])(normal((1, 1, 40, 40))).shape == (1, 1, 40, 40)


def test_camera_shake_without_anxiety_is_a_line() -> None:
    """Uniform along a segment of that length: its variance is length^2 / 12, the bilinear spread's
    share at most a quarter of a pixel^2 along each axis; across it there is the spread alone.
    """
    kernel = camera_shake(41, length=30, anxiety=0, seed=3)
    middle = torch.arange(41, dtype=torch.float64) - 20
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    moments = torch.stack([(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))])
    xx, xy, yy = moments.tolist()
    spectrum = torch.linalg.eigvalsh(torch.tensor([[xx, xy], [xy, yy]]))
    assert 0 <= float(spectrum[0]) <= 0.26
    assert 75 <= float(spectrum[1]) <= 75.26


def test_camera_shake_turns() -> None:
    """The more anxious, the shorter the way from end to end: the trace fills a smaller disc."""
    middle = torch.arange(41, dtype=torch.float64) - 20
    squared = middle[:, None] ** 2 + middle[None] ** 2
    spreads = [
        float((camera_shake(41, anxiety=a, seed=list(range(8))) * squared).sum((1, 2)).mean())
        for a in (0.0, 0.005, 0.1)
    ]
    assert spreads[0] > 1.2 * spreads[1] > 1.2 * 1.2 * spreads[2]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"size": 10}, InputError, "odd"),
        ({"size": 1}, InputError, "size"),
        ({"size": 11, "length": 11}, InputError, "length"),
        ({"size": 11, "length": -1}, InputError, "length"),
        ({"anxiety": -1}, InputError, "anxiety"),
        ({"seed": 0.5}, InputTypeError, "seed"),
        ({"seed": []}, InputError, "at least one"),
        ({"seed": "1"}, InputTypeError, "seed"),
    ],
)
def test_camera_shake_bad_input(arguments: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        camera_shake(**arguments)


def test_from_file_to_blur(tmp_path: Path) -> None:
    kernel = camera_shake(15, seed=2)
    path = write(tmp_path, "k.npy", kernel.numpy())
    x = normal((1, 2, 20, 20))
    assert torch.equal(operators.Blur(load_kernel(path))(x), operators.Blur(kernel)(x))
