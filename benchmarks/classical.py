"""Classical restorations for the benchmark on photographs, tuned on other photographs.

    python benchmarks/classical.py --tune --photographs 4

    Wiener                   min |A x - y|^2 + balance |grad x|^2: Gaussian noise, spectrum 1 / f^2
    total variation          min 1/2 |A x - y|^2 + weight TV(x), the gradient of all channels as one
    BM3D                     Dabov et al. 2007, the noise level times `strength`
    BM3D deblurring          Dabov et al. 2008, on a border that the kernel can reach
    plug-and-play BM3D       half-quadratic splitting with BM3D as denoiser (Zhang et al. 2021)
    biharmonic, + BM3D       fill the hidden pixels; then denoise
    bicubic, back-projected  add `share` of A^+ (y - A x) (Irani & Peleg 1991, at its fixed point)

Each is told the operator and the noise level, with its exact border. One or two settings of each
are searched on a small grid for the best PSNR, task by task, on photographs of the `tune` split,
and kept in benchmarks/results/classical.json. BM3D is free for benchmarks only and no dependency of
this project; on 128x128 it takes seconds, plug-and-play half a minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from photo_problems import Task, crops, measured, tasks
from torch import Tensor

from posterior import baselines, operators
from posterior.guidance._consistency import consistent
from posterior.guidance._solve import conjugate_gradients
from posterior.metrics import psnr
from posterior.operators import Operator
from posterior.operators.blur import Convolution
from posterior.operators.mask import Masking
from posterior.samples import to_json, write_atomically

RESULTS = Path("benchmarks/results/classical.json")

Settings = dict[str, float]
Denoiser = Callable[[Tensor, float], Tensor]

_NOISELESS = 0.004  # rounding to 8 bits and a little more: the least noise that is assumed
_WIENER = 30.0  # balance of the Wiener filter where it only gives a start
# rows are orthonormal, so white noise stays white; BM3D matches blocks by the first, the luminance
_OPPONENT = (
    torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    / torch.tensor([[3.0], [2.0], [6.0]], dtype=torch.float64).sqrt()
)


# -------------------------------------------------------------------------------- linear and convex


def wiener(y: Tensor, operator: Operator, noise: float, *, balance: float) -> Tensor:
    """min |A x - y|^2 / std^2 + balance |grad x|^2, by conjugate gradients.

    The Wiener filter of a prior whose power spectrum falls with 1 / f^2, as that of photographs
    does, with the operator's own border instead of a periodic one.
    """
    variance = max(noise, _NOISELESS) ** 2

    def product(x: Tensor) -> Tensor:
        return operator.normal(x) + balance * variance * divergence(gradient(x))

    return conjugate_gradients(product, operator.adjoint(y), iterations=200, tolerance=1e-4).x


def total_variation(
    y: Tensor, operator: Operator, noise: float, *, weight: float, steps: int = 400
) -> Tensor:
    """min 1/2 |A x - y|^2 + weight std TV(x), by Condat's primal-dual steps (2013, algorithm 3.1).

    TV sums the length of the gradient in all channels together (Bresson & Chan 2008), which keeps
    edges of the channels in one place.
    """
    weight = weight * max(noise, _NOISELESS)
    norm = baselines._squared_norm(operator, tuple(operator.domain_shape(tuple(y.shape))))
    # 1 / tau - sigma |grad|^2 >= norm / 2 with |grad|^2 <= 8; the dual variable lives on the scale
    # of `weight`, x on that of 1
    sigma = max(weight, 1e-3)
    tau = 1 / (norm / 2 + 8 * sigma)
    x = _filled(y, operator)
    dual = torch.zeros_like(gradient(x))
    for _ in range(steps):
        new = x - tau * (operator.adjoint(operator(x) - y) + divergence(dual))
        dual = dual + sigma * gradient(2 * new - x)
        length = dual.square().sum((1, 2), keepdim=True).sqrt()
        dual = dual * (weight / length.clamp(min=weight))
        x = new
    return x


def gradient(x: Tensor) -> Tensor:
    """Forward differences (B, C, 2, H, W); 0 across the border."""
    down = torch.nn.functional.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    right = torch.nn.functional.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
    return torch.stack((down, right), 2)


def divergence(p: Tensor) -> Tensor:
    """The adjoint of `gradient`: (B, C, 2, H, W) -> (B, C, H, W)."""
    down, right = p[:, :, 0, :-1, :], p[:, :, 1, :, :-1]
    pad = torch.nn.functional.pad
    return (
        pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))
    )


def back_projected(y: Tensor, operator: Operator, noise: float, *, share: float) -> Tensor:
    """Bicubic interpolation, moved towards A x = y by the least change."""
    x = baselines.bicubic(y, operator)
    return x + share * operator.pinv(y - operator(x))


# --------------------------------------------------------------------------------------------- BM3D


def bm3d(x: Tensor, std: float) -> Tensor:
    """Colour BM3D of images (B, 3, H, W) in [-1, 1] with white noise."""
    from bm3d import bm3d_rgb

    unit = ((x.double() + 1) / 2).permute(0, 2, 3, 1).numpy()
    done = np.stack([bm3d_rgb(image, std / 2, profile=_profile()) for image in unit])
    return (2 * torch.from_numpy(done).permute(0, 3, 1, 2) - 1).to(x)


def denoised(y: Tensor, operator: Operator, noise: float, *, strength: float) -> Tensor:
    """BM3D of y."""
    return bm3d(y, strength * noise)


def filled_and_denoised(y: Tensor, operator: Operator, noise: float, *, strength: float) -> Tensor:
    """Biharmonic inpainting, then BM3D: what was seen is noisy, what was filled is smooth."""
    return bm3d(baselines.biharmonic(y, operator), strength * noise)


def deblurred(y: Tensor, operator: Convolution, noise: float, *, strength: float) -> Tensor:
    """BM3D deblurring: regularised inverse and BM3D of its coloured noise, twice.

    It thinks in circles: the blurred image is completed beyond its border by what the Wiener
    filter says of there.
    """
    from bm3d import bm3d_deblurring

    border = 24
    first = wiener(y, operator, noise, balance=_WIENER)
    wide = completed(y, operator, first, border)
    kernel = operator.kernel.numpy()
    # matching thresholds are for luminance in [0, 1]: 1 / sqrt(3) brings it there
    scale = 0.5 / math.sqrt(3)
    mixed = torch.einsum("oc,bchw->bohw", _OPPONENT, wide.double()) * scale
    std = strength * noise * scale
    # plane by plane, with an axis for it: the package's second stage does not take several
    planes = [
        bm3d_deblurring(z[..., None], std, kernel, profile=_profile())
        for z in mixed.flatten(0, 1).numpy()
    ]
    done = torch.from_numpy(np.stack(planes)).reshape(mixed.shape) / scale
    rgb = torch.einsum("oc,bohw->bchw", _OPPONENT, done)
    return rgb[..., border:-border, border:-border].to(y)


def completed(y: Tensor, operator: Convolution, estimate: Tensor, border: int) -> Tensor:
    """y with a border of that width, so that the whole is a circular blur of some image.

    Beyond the border it is the circular blur of the mirrored estimate; `border` is at least twice
    the reach of the kernel.
    """
    pad = torch.nn.functional.pad
    circular = operators.Blur(operator.kernel, boundary="circular")
    wide = circular(pad(estimate, (border,) * 4, mode="reflect"))
    wide[..., border:-border, border:-border] = y
    return wide


def plug_and_play(
    y: Tensor,
    operator: Operator,
    noise: float,
    *,
    weight: float,
    last: float,
    first: float = 0.4,
    steps: int = 10,
    denoise: Denoiser = bm3d,
) -> Tensor:
    """Half-quadratic splitting, with noise levels s that fall geometrically (Zhang et al. 2021).

        x = argmin |y - A x|^2 / (2 std^2) + weight |x - z|^2 / (2 s^2)
        z = denoise(x, s)

    Args:
        weight: of the denoised image against the data.
        last: s at the end, over the noise.
        first: s at the start, in [-1, 1].
        steps: how many levels.
        denoise: (x, s) -> z.
    """
    std = max(noise, _NOISELESS)
    z = _first_estimate(y, operator, std)
    for k in range(steps):
        s = first * (last * std / first) ** (k / max(steps - 1, 1))
        data = (s / std) ** 2 / weight
        x = z + consistent(operator, y - operator(z), data, iterations=100, tolerance=1e-4)
        z = denoise(x, s)
    return z


def _first_estimate(y: Tensor, operator: Operator, std: float) -> Tensor:
    """What plug-and-play starts from."""
    if isinstance(operator, Masking):
        return baselines.biharmonic(y, operator)
    if isinstance(operator, operators.SuperResolution):
        return baselines.bicubic(y, operator)
    return wiener(y, operator, std, balance=_WIENER)


def _filled(y: Tensor, operator: Operator) -> Tensor:
    """A start in the size of x, for methods that end in the same place from anywhere."""
    if isinstance(operator, operators.SuperResolution):
        return baselines.bicubic(y, operator)
    if isinstance(operator, Masking):
        seen = operator.restrict(torch.ones_like(y))
        mean = y.sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
        return torch.where(seen > 0, y, mean)
    return y.clone()


def _profile() -> Any:
    """BM3D's default profile, on as many threads as torch has."""
    from bm3d import BM3DProfile

    if not hasattr(np, "trapz"):  # gone from numpy 2.4; BM3D of coloured noise still calls it
        np.trapz = np.trapezoid  # type: ignore[attr-defined]

    profile = BM3DProfile()
    profile.num_threads = torch.get_num_threads()
    return profile


# ------------------------------------------------------------------------------------- what to tune


class Candidate(NamedTuple):
    """`restore(y, operator, noise, **settings)`, and the values that each setting may take."""

    restore: Callable[..., Tensor]
    grid: dict[str, tuple[float, ...]]

    def choices(self) -> list[Settings]:
        """Every point of the grid."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


_TV = Candidate(total_variation, {"weight": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)})
_BM3D = {"strength": (0.75, 1.0, 1.25, 1.5)}
_PLUG_AND_PLAY = Candidate(plug_and_play, {"weight": (0.2, 0.35, 0.6), "last": (1.0, 2.0)})


def candidates(operator: Operator) -> dict[str, Candidate]:
    """The classical methods that fit an operator, by name."""
    if isinstance(operator, operators.Identity):
        return {
            "non-local means": Candidate(
                lambda y, operator, noise: baselines.non_local_means(y, noise), {}
            ),
            "total variation": _TV,
            "BM3D": Candidate(denoised, _BM3D),
        }
    if isinstance(operator, Masking):
        return {
            "biharmonic": Candidate(
                lambda y, operator, noise: baselines.biharmonic(y, operator), {}
            ),
            "biharmonic + BM3D": Candidate(filled_and_denoised, _BM3D),
            "total variation": _TV,
            "plug-and-play BM3D": _PLUG_AND_PLAY,
        }
    if isinstance(operator, operators.SuperResolution):
        return {
            "bicubic": Candidate(lambda y, operator, noise: baselines.bicubic(y, operator), {}),
            "bicubic, back-projected": Candidate(back_projected, {"share": (0.5, 0.75, 1.0)}),
            "total variation": _TV,
            "plug-and-play BM3D": _PLUG_AND_PLAY,
        }
    return {
        "Wiener": Candidate(wiener, {"balance": (3.0, 10.0, 30.0, 100.0, 300.0)}),
        "total variation": _TV,
        "BM3D deblurring": Candidate(deblurred, {**_BM3D}),
        "plug-and-play BM3D": _PLUG_AND_PLAY,
    }


def restorations(
    operator: Operator, chosen: dict[str, Settings]
) -> dict[str, Callable[..., Tensor]]:
    """The classical methods of an operator with their tuned settings: (y, operator, noise) -> x."""

    def bound(candidate: Candidate, settings: Settings) -> Callable[..., Tensor]:
        return lambda y, operator, noise: candidate.restore(y, operator, noise, **settings)

    return {
        name: bound(candidate, chosen[name]) for name, candidate in candidates(operator).items()
    }


def tuned(path: Path, task: str, operator: Operator) -> dict[str, Settings]:
    """The settings of every classical method for a task; raises where they were not tuned."""
    stored = json.loads(path.read_text()).get(task, {}) if path.exists() else {}
    found = {}
    for name, candidate in candidates(operator).items():
        if not candidate.grid:
            found[name] = {}
        elif name in stored:
            found[name] = stored[name]["settings"]
        else:
            raise SystemExit(f"{name} is not tuned for {task}: run benchmarks/classical.py --tune")
    return found


def tune(task: str, problem: Task, photographs: dict[str, Tensor], path: Path) -> None:
    """Search every grid of a task that the file does not hold yet, for these photographs."""
    for name, candidate in candidates(problem.operator).items():
        if not candidate.grid:
            continue
        results = json.loads(path.read_text()) if path.exists() else {}
        searched = {
            "grid": {key: list(values) for key, values in candidate.grid.items()},
            "photographs": list(photographs),
            "size": next(iter(photographs.values())).shape[-1],
        }
        known = results.get(task, {}).get(name, {})
        if all(known.get(key) == value for key, value in searched.items()):
            continue
        start = time.perf_counter()
        scores = []
        for settings in candidate.choices():
            each = [
                float(psnr(candidate.restore(y, problem.operator, problem.std, **settings), x))
                for k, x in enumerate(photographs.values())
                for y in [measured(problem, x, seed=500 + k)]
            ]
            scores.append({"settings": settings, "psnr": statistics.fmean(each)})
        best = max(scores, key=lambda score: score["psnr"])
        results = json.loads(path.read_text()) if path.exists() else {}
        results.setdefault(task, {})[name] = {
            **searched, **best, "scores": scores, "seconds": time.perf_counter() - start
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(results))
        print(f"{task}: {name} {best['settings']} {best['psnr']:.2f} dB", flush=True)


def table(path: Path) -> str:
    """The tuned settings; a value at the end of its grid is marked."""
    lines = ["| task | method | settings | PSNR, tuning photographs |", "|---|---|---|---|"]
    for task, methods in json.loads(path.read_text()).items():
        for name, found in methods.items():
            shown = []
            for key, value in found["settings"].items():
                grid = found["grid"][key]
                at_end = len(grid) > 1 and value in (grid[0], grid[-1])
                shown.append(f"{key} {value:g}{' (end of the grid)' if at_end else ''}")
            lines.append(f"| {task} | {name} | {', '.join(shown)} | {found['psnr']:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune what is not tuned yet, and print the settings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tune", action="store_true", help="search; else only print")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--photographs", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", metavar="TASK")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.tune:
        for task, problem in tasks(args.size).items():
            if args.tasks and task not in args.tasks:
                continue
            found = crops("tune", args.size // problem.reduce)
            tune(task, problem, dict(itertools.islice(found.items(), args.photographs)), args.out)
    print(table(args.out))


if __name__ == "__main__":
    main()
