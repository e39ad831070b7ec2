"""Metrics against scikit-image, classical baselines, and the estimate of the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from front_helpers import as_tensor, photograph
from scipy import ndimage
from torch import Tensor

from posterior import metrics, operators
from posterior.baselines import baseline_for, total_variation, wiener
from posterior.errors import InputError
from posterior.noise_estimation import estimate_noise
from posterior.operators import GaussianNoise, Mask

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def photographs(size: int) -> Tensor:
    return torch.cat([as_tensor(photograph(name, size)) for name in NAMES])


def noisy(x: Tensor, std: float, seed: int = 0) -> Tensor:
    return GaussianNoise(std).sample(x, seed)


# Metrics -----------------------------------------------------------------------------------------


def test_scores_agree_with_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x = photographs(64)[..., :51]
    y = noisy(x, 0.2).clamp(-1, 1)
    ours_psnr, ours_ssim = metrics.psnr(y, x), metrics.ssim(y, x)
    assert ours_psnr.shape == ours_ssim.shape == (len(NAMES),)
    for k in range(len(NAMES)):
        a, b = (((z[k] + 1) / 2).double().permute(1, 2, 0).numpy() for z in (x, y))
        psnr = peak_signal_noise_ratio(a, b, data_range=1)
        ssim = structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, use_sample_covariance=False,
            full=True,
        )[1].mean()  # fmt: skip
        assert math.isclose(ours_psnr[k], psnr, rel_tol=1e-9)
        assert abs(ours_ssim[k] - ssim) < 0.01  # the two differ in how they mirror the border


def test_scores_are_per_image_and_of_clipped_values() -> None:
    x = photographs(32)
    y = noisy(x, 0.2)
    for score in (metrics.psnr, metrics.ssim):
        alone = torch.cat([score(y[k : k + 1], x[k : k + 1]) for k in range(len(x))])
        assert torch.allclose(score(y, x), alone, rtol=1e-9)
        assert torch.equal(score(y, x), score(y.clamp(-1, 1), x))
    assert bool(metrics.psnr(x, x).isinf().all())
    assert torch.allclose(metrics.ssim(x, x), torch.ones(len(x)).double())
    black, white = -torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert float(metrics.psnr(black, white)) == 0


@pytest.mark.parametrize(("a", "b"), [((1, 3, 32, 32), (1, 3, 32, 31)), ((3, 32, 32), (3, 32, 32))])
def test_scores_refuse_what_does_not_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    for score in (metrics.psnr, metrics.ssim):
        with pytest.raises(InputError):
            score(torch.zeros(a), torch.zeros(b))
    with pytest.raises(InputError, match="11x11"):
        metrics.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_residual_of_the_truth_is_one() -> None:
    x = photographs(32)
    operator = Mask.random(keep_fraction=0.5) @ operators.GaussianBlur(sigma=1.0)
    y = operator.restrict(noisy(operator(x), 0.1))
    assert torch.allclose(metrics.residual(x, operator, y, 0.1), torch.ones(len(x)), atol=0.1)


# Baselines ---------------------------------------------------------------------------------------

TASKS = {  # operator, noise std in [-1, 1], least gain in dB over the (enlarged) measurement
    "identity": (operators.Identity(), 0.2, 5.0),
    "mask": (Mask.random(keep_fraction=0.4), 0.04, 8.0),
    "blur": (operators.GaussianBlur(sigma=1.5), 0.04, 1.0),
    "motion": (operators.MotionBlur(length=9, angle=30), 0.04, 2.0),
    "super-resolution": (operators.SuperResolution(factor=2), 0.0, 0.5),
    "blur and mask": (
        Mask.random(keep_fraction=0.5) @ operators.GaussianBlur(sigma=1.0),
        0.04,
        6.0,
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_baselines_improve_on_the_measurement(task: str) -> None:
    operator, std, gain = TASKS[task]
    x = as_tensor(photograph("chelsea", 64))
    y = operator.restrict(noisy(operator(x), std))
    before = y.clone()
    baseline = baseline_for(operator)
    assert baseline is not None
    restored = baseline.restore(y, std)
    assert torch.equal(y, before)
    assert restored.shape == x.shape
    assert restored.dtype == x.dtype
    shown = torch.nn.functional.interpolate(y, x.shape[-2:], mode="nearest-exact")
    assert float(metrics.psnr(restored, x) - metrics.psnr(shown, x)) > gain


def test_wiener_improves_on_a_blur() -> None:
    x, blur = as_tensor(photograph("chelsea", 64)), operators.GaussianBlur(sigma=1.5)
    y = noisy(blur(x), 0.02)
    assert float(metrics.psnr(wiener(y, blur, 0.02), x) - metrics.psnr(y, x)) > 1
    with pytest.raises(InputError, match="size"):
        wiener(y, operators.SuperResolution(factor=2), 0.02)


def test_total_variation_is_the_minimum() -> None:
    """Of 1/2 |x - y|^2 + weight TV(x), among the solutions for other weights and y itself."""
    y = noisy(as_tensor(photograph("coffee", 32)), 0.1)
    weights = (0.01, 0.03, 0.1, 0.2)
    found = [total_variation(y, operators.Identity(), 0.1, weight=w) for w in weights]

    def objective(x: Tensor, weight: float) -> float:
        slopes = torch.zeros(2, *x.shape)
        slopes[0, ..., :-1, :] = x.diff(dim=-2)
        slopes[1, ..., :-1] = x.diff(dim=-1)
        variation = slopes.square().sum(0).sqrt().sum()
        return float((x - y).square().sum() / 2 + weight * variation)

    for k, weight in enumerate(weights):
        values = [objective(x, weight) for x in (*found, y)]
        assert min(values) == values[k]


def test_no_baseline_for_what_is_not_linear() -> None:
    assert baseline_for(operators.from_callable(lambda x: x**2)) is None


# Noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.04, 0.1, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_noise_of_photographs(name: str, std: float) -> None:
    x = as_tensor(photograph(name, 128))
    found = [estimate_noise(noisy(z, std)).std for z in (x, x.mean(1, keepdim=True))]
    assert found == pytest.approx([std, std], rel=0.15)


@pytest.mark.parametrize("std", [0.02, 0.04, 0.2])
def test_noise_of_blurred_photographs(std: float) -> None:
    blurred = np.array(ndimage.gaussian_filter(photographs(96).numpy(), (0, 0, 2, 2)))
    found = [estimate_noise(noisy(torch.from_numpy(b)[None], std)).std for b in blurred]
    assert found == pytest.approx([std] * len(found), rel=0.12)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.3])
def test_noise_beside_holes(keep: float) -> None:
    x, mask = as_tensor(photograph("chelsea", 128)), Mask.random(keep_fraction=keep)
    y = mask.restrict(noisy(mask(x), 0.1))
    assert estimate_noise(y, mask).std == pytest.approx(0.1, rel=0.2)
    if keep > 0.4:  # control: without the mask the holes count as texture
        assert estimate_noise(y).std > 0.13


def test_noise_of_a_small_image_and_of_rounding() -> None:
    x = as_tensor(photograph("rocket", 32))
    assert estimate_noise(noisy(x, 0.1)).std == pytest.approx(0.1, rel=0.2)
    found = estimate_noise(torch.zeros(1, 3, 64, 64), smallest=0.002)
    assert found.std == 0.002
    assert "rounding" in found.how


@pytest.mark.parametrize(
    ("y", "operator", "words"),
    [
        (torch.zeros(1, 3, 64, 64), Mask.random(keep_fraction=0.05), "too few"),
        (torch.zeros(1, 100), None, "images"),
        (torch.zeros(1, 2, 32, 32), None, "images"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.complex64), None, "complex"),
        (torch.zeros(1, 3, 4, 4), None, "8x8"),
    ],
)
def test_noise_that_cannot_be_estimated(y: Tensor, operator: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        estimate_noise(y, operator)
