"""Sparse-view CT: a slice of a head from 40 views, photon noise included.

    python examples/ct.py --out out/ct

A parallel beam of I0 photons a ray passes the head from 40 directions over half a turn. What
arrives is counted, by the law of Beer and Lambert:

    counts ~ Poisson(I0 exp(-A m)),      m = attenuation (x + 1) / 2 per pixel,

with line integrals A. White in the image, x = 1, has the attenuation of brain at 70 keV, 0.02 per
mm; the phantom is the anatomy of an MRI slice, not the contrast of a CT. `log_domain` makes of the
counts z = A x + noise with a Gaussian standard deviation for each ray, so that methods for linear
problems apply.

The prior is a small network trained on warped slices of one head, the ICBM 152 template; the slice
measured here lies in a band that it has not seen, of the same head (examples/assets/README.md).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from _picture import Outcome, run

import posterior
from posterior import guidance, operators
from posterior.folders import check_free
from posterior.images import read_image

ASSETS = Path(__file__).parent / "assets"
PIXEL = 1.5  # mm
ATTENUATION = 0.02 * PIXEL  # per pixel


def reconstruct(
    views: int = 40, photons: float = 2e4, n: int = 8, steps: int = 50, seed: int = 0
) -> Outcome:
    """Simulate the counts, reconstruct by FBP, draw from the posterior."""
    begin, busy = time.monotonic(), time.process_time()
    x = read_image(ASSETS / "brain-coronal.png")[0][None]  # (1, 1, H, W) in [-1, 1]
    scan = operators.ParallelBeamCT(views=views).bind(tuple(x.shape[1:]))
    beam = operators.Transmission(scan, attenuation=ATTENUATION)
    counter = posterior.PoissonNoise(rate=1, low=0, peak=photons)
    y = counter.sample(beam(x), seed=seed)
    z, noise = beam.log_domain(y, counter)

    air = scan(-(x * 0 + 1))
    classical = {
        f"FBP, {window}": scan.fbp(z - air, window=window) - 1 for window in ("hann", "ramp")
    }
    prior = posterior.load_prior(ASSETS / "brain.safetensors", rows=4)
    draws = posterior.sample(
        prior, scan, z, noise=noise, method=guidance.DDS(), n=n, steps=steps, seed=seed
    )
    return Outcome(
        title=f"CT, {views} views, {photons:g} photons a ray",
        truth=x,
        data=((z - air)[0, 0], "sinogram"),
        classical=classical,
        samples=draws,
        wall=time.monotonic() - begin,
        processor=time.process_time() - busy,
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/ct"),
    views: Annotated[int, typer.Option(min=1, help="Directions over half a turn.")] = 40,
    photons: Annotated[float, typer.Option(min=1, help="I0, of one ray.")] = 2e4,
    n: Annotated[int, typer.Option(min=2, help="Draws.")] = 8,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw brains that explain a few projections."""
    check_free(out, overwrite)
    outcome = reconstruct(views, photons, n, steps, seed)
    outcome.save(out)
    print(outcome.table)


if __name__ == "__main__":
    run(main)
