"""Accelerated MRI: what a sixth of k-space says about a slice of a brain, and what it leaves open.

    python examples/mri.py --out out/mri

A scan with eight receive coils measures one in six columns of k-space, those in the middle among
them,

    y_l = M F (S_l exp(i phi) m) + noise,      m >= 0 the magnitude, x = 2 m - 1,

with sensitivities S_l on a ring around the head and a smooth phase phi of the tissue. Both are
taken as known: maps calibrated on the middle of k-space, as ESPIRiT makes them, contain the phase,
and what is left to find is one real image. Then 2 y - A 1 = A x + 2 noise is linear in x.

The prior is a small network trained on warped slices of one head, the ICBM 152 template; the slice
measured here lies in a band that it has not seen, of the same head (examples/assets/README.md).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from _picture import Outcome, run
from scipy.sparse.linalg import lsqr
from torch import Tensor

import posterior
from posterior import guidance, operators
from posterior.folders import check_free
from posterior.images import read_image

ASSETS = Path(__file__).parent / "assets"
NOISE = 0.01  # of y per real component; white matter is about 0.8


def smooth_phase(side: int) -> Tensor:
    """A phase of the tissue (H, W) in radians: a quadratic of about half a turn."""
    v, u = torch.meshgrid(*(2 * [torch.linspace(-1, 1, side, dtype=torch.float64)]), indexing="ij")
    return math.pi * (0.3 * u - 0.4 * v + 0.3 * u * u - 0.2 * v * u)


def reconstruct(
    acceleration: float = 6.0, coils: int = 8, n: int = 8, steps: int = 50, seed: int = 0
) -> Outcome:
    """Simulate the scan, reconstruct it classically, draw from the posterior."""
    begin, busy = time.monotonic(), time.process_time()
    x = read_image(ASSETS / "brain-axial.png")[0][None]  # (1, 1, H, W) in [-1, 1]
    side = x.shape[-1]
    phase = torch.polar(torch.ones(side, side, dtype=torch.float64), smooth_phase(side))
    maps = operators.birdcage_maps(coils, (side, side)) * phase
    mask = operators.EquispacedLines(acceleration=acceleration, seed=seed)
    scan = operators.MRI(keep=mask, coils=maps, complex_domain=False)

    magnitude = (x + 1) / 2
    y = posterior.GaussianNoise(NOISE).sample(scan(magnitude), seed=seed)

    zero_filled = 2 * scan.adjoint(y) - 1
    # CG-SENSE: least squares by a few iterations, damped by twice the ratio of noise to signal; of
    # 0 to 15 times it and 10 or 50 iterations this was the best on this slice at acceleration 4
    damp = 2 * NOISE / float(magnitude.square().mean().sqrt())
    matrix = operators.to_linear_operator(scan, tuple(x.shape[1:]))
    pairs = torch.view_as_real(y).numpy().ravel()
    solved = lsqr(matrix, pairs, damp=damp, iter_lim=10)[0]
    sense = 2 * torch.from_numpy(solved).to(x).reshape(x.shape) - 1

    prior = posterior.load_prior(ASSETS / "brain.safetensors", rows=4)
    z = 2 * y - scan(torch.ones_like(x))
    draws = posterior.sample(
        prior, scan, z, noise=2 * NOISE, method=guidance.MMPS(), n=n, steps=steps, seed=seed
    )
    seen = y[0].abs().square().sum(0).sqrt().clamp(min=1e-3).log()
    return Outcome(
        title=f"MRI, {coils} coils, acceleration {acceleration:g}, noise {NOISE:g}",
        truth=x,
        data=(seen, "k-space, logarithmic"),
        classical={"zero-filled": zero_filled, "CG-SENSE": sense},
        samples=draws,
        wall=time.monotonic() - begin,
        processor=time.process_time() - busy,
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/mri"),
    acceleration: Annotated[float, typer.Option(min=1, help="All columns over sampled ones.")] = 6,
    n: Annotated[int, typer.Option(min=2, help="Draws.")] = 8,
    steps: Annotated[int, typer.Option(min=1)] = 50,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw brains that explain an accelerated scan."""
    check_free(out, overwrite)
    outcome = reconstruct(acceleration, n=n, steps=steps, seed=seed)
    outcome.save(out)
    print(outcome.table)


if __name__ == "__main__":
    run(main)
