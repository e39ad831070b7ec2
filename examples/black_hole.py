"""A black hole, from closure quantities alone: seven telescopes, gains unknown.

    python examples/black_hole.py --out out/black-hole

The array of April 2017 looks at M87*. Its visibilities carry an unknown complex gain for each
station and scan (phases anywhere, amplitudes of 10 %), which leave closure phases and log closure
amplitudes as they are. Those, and the total flux to 2 %, are what the posterior is told; the dirty
image takes the visibilities for what they seem. Visibilities below 3 sigma are flagged, since the
closures of noise are not Gaussian.

The prior is an exact mixture of Gaussians: rings, crescents and discs of several sizes, brighter
on one of eight sides, each with smooth variations that grow with brightness. The truth is drawn
from it, so that coverage means what it says; a real source has no such prior. Brightness may be
negative under a Gaussian, and the prior, not the data, says where the image stands.

Closures have many local optima, and some draws end in one that the prior allows and the data do
not. Their residual tells: the table counts the draws that explain the data.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from _picture import Outcome, run
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.folders import check_free
from posterior.metrics import psnr
from posterior.operators import interferometry as vlbi
from posterior.streams import Noise, key_of, normal

SIZE, FIELD = 32, 128.0  # pixels, micro-arcseconds
FLUX = 0.6  # Jy, of an average source
AMPLITUDES, FLUX_ERROR, FLAGGED = 0.1, 0.02, 3.0


def sources() -> priors.GaussianMixture:
    """Rings, crescents and discs, with x = 1 for a bright pixel and -1 for the dark sky."""
    at = (torch.arange(SIZE) - (SIZE - 1) / 2) * (FIELD / SIZE)
    down, right = at[:, None], at[None, :]
    r, angle = (down**2 + right**2).sqrt(), torch.atan2(-down, right)
    shapes = [torch.exp(-0.5 * (r / width) ** 2) for width in (10.0, 14.0, 18.0)]
    for radius in (14.0, 18.0, 22.0, 26.0):
        ring = torch.exp(-0.5 * ((r - radius) / 6.0) ** 2)
        shapes.append(ring)
        shapes += [ring * (1 + 0.7 * torch.cos(angle - k * math.pi / 4)) / 1.7 for k in range(8)]
    images = torch.stack(shapes)
    images = images / images.sum((1, 2), keepdim=True)
    images = images / images.amax() * 1.5  # all of one flux; the brightest pixel at x = 2
    envelope = images.mean(0).flatten() + 0.01
    place = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2).double()
    smooth = torch.exp(-0.5 * (torch.cdist(place, place) / 10.0) ** 2)
    covariance = 0.6**2 * envelope[:, None] * smooth * envelope + 1e-5 * torch.eye(SIZE**2)
    weights = torch.full((len(images),), 1 / len(images))
    return priors.GaussianMixture(weights, (2 * images - 1)[:, None], covariance.float())


def corrupted(obs: vlbi.Observation, vis: Tensor, seed: int) -> Tensor:
    """The visibilities (1, m) with gains of stations and thermal noise."""
    scans, stations = int(obs.scan.max()) + 1, len(obs.names)
    noise = Noise.single(seed, (scans, stations))
    size = torch.exp(AMPLITUDES * noise("gain")[0])
    gain = torch.polar(size, 2 * math.pi * noise.uniform("phase")[0].float())
    seen = vis * gain[obs.scan, obs.first] * gain[obs.scan, obs.second].conj()
    return seen + obs.std.float() * normal(seed, "thermal", seen)


def flagged(obs: vlbi.Observation, kept: Tensor) -> vlbi.Observation:
    """The observation without the visibilities that are not kept, (m,)."""
    columns = (obs.u, obs.v, obs.first, obs.second, obs.scan, obs.std)
    return vlbi.Observation(*(c[kept] for c in columns), names=obs.names)


def reconstruct(scans: int = 12, n: int = 8, steps: int = 400, seed: int = 0) -> Outcome:
    """Simulate the observation, make the dirty image, draw from the posterior."""
    begin, busy = time.monotonic(), time.process_time()
    prior = sources()
    x = prior.sample(1, seed=key_of(seed, "truth")[0])  # nobody else's draw
    peak = FLUX / float((prior.means[0] + 1).sum() / 2)  # Jy of a pixel where x = 1

    obs = vlbi.m87_2017(scans)
    vis = corrupted(obs, operators.Visibilities(obs, FIELD)(peak * (x + 1) / 2), seed)
    kept = vis[0].abs() > FLAGGED * obs.std
    obs, vis = flagged(obs, kept), vis[:, kept]

    phase_std, amplitude_std = vlbi.closure_std(obs, vis)
    flux_std = torch.full((1, 1), FLUX_ERROR * FLUX)
    operator = operators.Stack(
        [
            operators.ClosurePhases(obs, FIELD),
            operators.LogClosureAmplitudes(obs, FIELD),
            operators.TotalFlux(peak),
        ]
    )
    flux = operator.operators[2](x)
    y = torch.cat(
        [
            torch.view_as_real(vlbi.closure_phasors(obs, vis)).flatten(1),
            vlbi.log_closure_amplitudes(obs, vis),
            flux + flux_std * normal(seed, "flux", flux),
        ],
        1,
    )
    std = torch.cat([phase_std.repeat_interleave(2, 1), amplitude_std, flux_std], 1)
    draws = posterior.sample(
        prior, operator, y, noise=std, method=guidance.DPS(), n=n, steps=steps, seed=seed
    )

    def chi2(images: Tensor) -> str:
        phases, amplitudes, total = operator.split(operator(images))
        data = operator.split(y)
        found = {
            "phases": vlbi.chi2_closure_phases(phases, data[0], phase_std),
            "amplitudes": vlbi.chi2_log_closure_amplitudes(amplitudes, data[1], amplitude_std),
            "flux": ((total - data[2]) / flux_std).square(),
        }
        return ", ".join(f"{what} {float(values.mean()):.2f}" for what, values in found.items())

    # chi-squared per value has the standard deviation sqrt(2 / m): five of them are allowed
    chi_squared = draws.diagnostics["residual"].reshape(-1).square()
    explain = draws.draws[chi_squared < 1 + 5 * math.sqrt(2 / y.shape[1]), 0]
    score = f", PSNR of their mean {float(psnr(explain.mean(0, keepdim=True), x)):.2f} dB"

    sky = operators.Visibilities(obs, FIELD, SIZE)
    dirty = sky.adjoint(vis)
    dirty = (x + 1).sum() * dirty.clamp(min=0) / dirty.clamp(min=0).sum() - 1  # of the true flux
    return Outcome(
        title=f"black hole, {len(obs)} visibilities of 7 stations, only closures used",
        truth=x,
        data=(coverage(obs, vis), "|V| in the uv plane"),
        classical={"dirty image": dirty},
        samples=draws,
        wall=time.monotonic() - begin,
        processor=time.process_time() - busy,
        rows={
            "explain the data": f"{len(explain)} of {n} draws{score if len(explain) else ''}",
            "chi-squared, draws": chi2(draws.draws[:, 0]),
            "chi-squared, truth": chi2(x),
            "chi-squared, dirty image": chi2(dirty),
        },
    )


def coverage(obs: vlbi.Observation, vis: Tensor, cells: int = 48) -> Tensor:
    """Where in the plane of u (to the left) and v there are data, and how large: (cells, cells)."""
    far = float(torch.maximum(obs.u.abs(), obs.v.abs()).max()) * 1.05
    plane = torch.zeros(cells, cells)
    for sign in (1, -1):
        column, row = (
            ((1 - sign * c / far) / 2 * cells).long().clamp(0, cells - 1) for c in (obs.u, obs.v)
        )
        plane[row, column] = vis[0].abs().float()
    return plane


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/black-hole"),
    n: Annotated[int, typer.Option(min=2, help="Draws.")] = 8,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw black holes that explain closure phases and amplitudes."""
    check_free(out, overwrite)
    outcome = reconstruct(n=n, steps=steps, seed=seed)
    outcome.save(out)
    print(outcome.table)


if __name__ == "__main__":
    run(main)
