"""Fourier phase retrieval: an object from the moduli of its Fourier coefficients alone.

    python examples/phase_retrieval.py --out out/phase-retrieval

A detector far behind a coherently lit, isolated object sees the moduli of its Fourier transform,

    y = |F pad(u)| + noise,      u = (x + 1) / 2 >= 0,

padded with zeros to twice its size, so that there are four times as many moduli as pixels. They
tell neither where in the frame the object stands nor which of two ways it is turned (by 180
degrees), and the posterior has a mode for each; beside these exact copies there are wrong images
that explain y nearly as well, in which algorithms get stuck. So, as the literature does, several
starts are tried and the residual chooses:

1. hybrid input-output (Fienup, Applied Optics 21, 1982) from `starts` random images; the one with
   the smallest residual is the classical reconstruction; 2. noise is added to it, sigma = 0.5, and
   DAPS anneals from there, n times: draws from the posterior around that mode, in its position and
   orientation. Other modes are not visited, and the uncertainty map knows nothing of them.

The truth is turned and moved to where the mean stands, to a twentieth of a pixel, to be compared.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from _picture import Outcome, run
from scipy import ndimage
from skimage.registration import phase_cross_correlation
from torch import Tensor

import posterior
from posterior import grids, guidance, operators
from posterior.folders import check_free
from posterior.images import read_image
from posterior.metrics import psnr, residual

ASSETS = Path(__file__).parent / "assets"
TOP, BOTTOM = 0.5, 0.01  # sigma of the first and of the last but one level


def hybrid_input_output(
    y: Tensor, size: tuple[int, int], iterations: int, seed: int, beta: float = 0.9
) -> Tensor:
    """u (1, 1, H, W) >= 0 from moduli y (1, 1, 2 H, 2 W), as x in [-1, 1].

    Rounds of 90 steps of hybrid input-output and 10 of error reduction, as is usual, ending in 50
    of the latter. The constraints: u is real, not negative, and 0 outside of size (H, W).
    """
    height, width = size
    shape = tuple(y.shape[-2:])
    moduli = torch.fft.ifftshift(y, dim=(-2, -1))[..., : shape[1] // 2 + 1].clamp(min=0)
    support = torch.zeros(shape, dtype=torch.bool)
    support[:height, :width] = True
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(y.shape, generator=generator) * support
    for k in range(iterations):
        f = torch.fft.rfft2(u, norm="ortho")
        f = f * (moduli / f.abs().clamp(min=1e-9))
        candidate = torch.fft.irfft2(f, s=shape, norm="ortho")
        reduce = k % 100 >= 90 or k >= iterations - 50
        outside = torch.zeros_like(u) if reduce else u - beta * candidate
        u = torch.where(support & (candidate >= 0), candidate, outside)
    return 2 * u.clamp(0, 1)[..., :height, :width] - 1


def moved_onto(x: Tensor, target: Tensor) -> Tensor:
    """x, turned by 180 degrees or not and moved in its frame, as near to `target` as it gets."""
    v = (target[0, 0].double().numpy() + 1) / 2
    found = []
    for turned in (x, x.flip((-2, -1))):
        u = (turned[0, 0].double().numpy() + 1) / 2
        shift, _, _ = phase_cross_correlation(v, u, upsample_factor=20, normalization=None)
        u = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(u), shift)).real
        found.append((2 * torch.from_numpy(u).to(x) - 1).reshape(x.shape))
    return max(found, key=lambda moved: float(psnr(moved, target)))


def reconstruct(
    noise: float = 0.01,
    starts: int = 12,
    iterations: int = 800,
    n: int = 8,
    steps: int = 50,
    seed: int = 0,
) -> Outcome:
    """Simulate the moduli, run HIO from several starts, draw around the best."""
    begin, busy = time.monotonic(), time.process_time()
    x = read_image(ASSETS / "brain-axial.png")[0][None]  # (1, 1, H, W) in [-1, 1]
    camera = operators.PhaseRetrieval(oversample=4.0)
    y = posterior.GaussianNoise(noise).sample(camera(x), seed=seed)

    size = (x.shape[-2], x.shape[-1])
    tries = [hybrid_input_output(y, size, iterations, seed + k) for k in range(starts)]
    residuals = [float(residual(one, camera, y, noise)) for one in tries]
    best = tries[residuals.index(min(residuals))]

    prior = posterior.load_prior(ASSETS / "brain.safetensors", rows=4)
    ratios = [*np.geomspace(TOP, BOTTOM, steps).tolist(), 0.0]
    draws = posterior.sample(
        prior,
        camera,
        y,
        noise=noise,
        method=guidance.DAPS(kernel="langevin", rate=0.5, spread=0.1),
        n=n,
        seed=seed,
        source=best,
        grid=grids.of_ratios(prior.schedule, ratios)[0],
    )
    truth = moved_onto(x, draws.mean)
    chosen = int(draws.diagnostics["residual"][:, 0].argmin())
    found = float(psnr(draws.draws[chosen], truth))
    return Outcome(
        title=f"Phase retrieval, twice oversampled, noise {noise:g}",
        truth=truth,
        data=(y[0, 0].clamp(min=noise).log(), "moduli, logarithmic"),
        classical={f"HIO, best of {starts}": best},
        samples=draws,
        wall=time.monotonic() - begin,
        processor=time.process_time() - busy,
        rows={
            "HIO, residual / noise": f"{min(residuals):.3f} to {max(residuals):.3f}",
            "PSNR, draw of the least residual": f"{found:.2f} dB",
        },
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/phase-retrieval"),
    noise: Annotated[float, typer.Option(help="Standard deviation of the moduli.")] = 0.01,
    starts: Annotated[int, typer.Option(min=1, help="Random starts of HIO.")] = 12,
    n: Annotated[int, typer.Option(min=2, help="Draws.")] = 8,
    steps: Annotated[int, typer.Option(min=2)] = 50,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw brains that explain a diffraction pattern."""
    check_free(out, overwrite)
    outcome = reconstruct(noise, starts, n=n, steps=steps, seed=seed)
    outcome.save(out)
    print(outcome.table)


if __name__ == "__main__":
    run(main)
