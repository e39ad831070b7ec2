"""`priors.check`: print and return what is wrong with a prior.

Whatever the prior, E[x0 | x_t] is the best guess of x0 in mean square. So on data of the prior it
beats both x_t / alpha (error r^2 per element, r = sigma / alpha) and a constant (error Var x0); its
eps has E|eps|^2 = E<eps, true eps> <= 1; and its error grows with r. A wrong schedule, time input,
range or parametrisation breaks one of these by far more than the sampling error.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posterior.errors import InputError, InputTypeError
from posterior.priors.base import Prior
from posterior.streams import Noise

_POINTS = 32


def check(
    prior: Prior,
    data: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> list[str]:
    """Print and return what is wrong with a prior; an empty list if nothing was found.

    Args:
        prior: any prior.
        data: clean x0 (n, *event) like those it was trained on, n >= 8 is better; by default the
            prior's own exact samples where it has them. Without either, the checks of the noise
            level are weaker.
        shape: shape of one event, for a prior that takes any size and where no data are given.
        seed: of the noise.
        verbose: print.
    """
    if not isinstance(prior, Prior):
        raise InputTypeError(f"check takes a Prior, not {type(prior).__name__}")
    problems = _schedule(prior)
    event = _event(prior, data, shape)
    known = data is not None
    if data is None and hasattr(prior, "sample"):
        data, known = prior.sample(_POINTS, seed=seed), True
    if data is None:
        low, high = prior.range or (-1.0, 1.0)
        data = torch.full((8, *event), (low + high) / 2)
    data = data[:_POINTS].to(prior.device, prior.dtype)
    if known:
        problems += _range(prior, data)
    try:
        problems += _levels(prior, data, known, seed)
        problems += _invariance(prior, data, seed)
        problems += _gradient(prior, data, seed)
    except (RuntimeError, ValueError, TypeError) as error:
        problems.append(f"evaluation failed: {type(error).__name__}: {error}")
    if verbose:
        for problem in problems or [f"{prior!r}: nothing wrong found"]:
            print(problem)
    return problems


def _event(prior: Prior, data: Tensor | None, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    event = tuple(data.shape[1:]) if data is not None else shape or prior.event_shape
    if event is None:
        raise InputError("the prior takes any shape: give data= or shape=")
    if data is not None and (data.shape[0] < 2 or not bool(torch.isfinite(data).all())):
        raise InputError("data must be (n, *event), n >= 2, without NaN")
    return event


def _schedule(prior: Prior) -> list[str]:
    alpha, sigma = prior.schedule(torch.linspace(0, 1, 101, dtype=torch.float64))
    if not bool((torch.isfinite(alpha) & torch.isfinite(sigma)).all()):
        return ["schedule: alpha or sigma is not finite"]
    problems = []
    if float(alpha[0]) != 1 or float(sigma[0]) != 0:
        problems.append("schedule: t = 0 must be clean, alpha = 1 and sigma = 0")
    if bool((sigma[1:] * alpha[:-1] < sigma[:-1] * alpha[1:] * (1 - 1e-12)).any()):
        problems.append("schedule: sigma / alpha must grow with t (t = 1 is noise)")
    return problems


def _range(prior: Prior, data: Tensor) -> list[str]:
    if prior.range is None:
        return []
    low, high = prior.range
    least, most, slack = float(data.min()), float(data.max()), 0.01 * (high - low)
    if least < low - slack or most > high + slack:
        return [f"range: data reach [{least:.3g}, {most:.3g}], the prior says [{low}, {high}]"]
    if low < 0 <= least and most <= 1 < high - low:
        return [f"range: data are in [0, 1] and the prior says [{low}, {high}]: scale by 2 x - 1"]
    return []


@dataclass
class _Level:
    ratio: float
    error: float  # E|x0hat - x0|^2 per element


def _levels(prior: Prior, data: Tensor, known: bool, seed: int) -> list[str]:
    problems: list[str] = []
    n = data.shape[0]
    noise = Noise.single(seed, tuple(data.shape[1:]), data.dtype, data.device, rows=n)
    variance = float((data - data.mean(0)).double().square().sum() / ((n - 1) * data[0].numel()))
    seen: list[_Level] = []
    for k, r in enumerate(_ratios(prior)):
        level = prior.schedule.level_of_ratio(r)
        where = f"at t = {level.t:.4g} (sigma / alpha = {r:.4g})"
        eps = noise("check", k)
        x = level.alpha * data + level.sigma * eps
        estimate = prior(x, level.t)
        x0 = estimate.x0
        if x0.shape != x.shape or x0.dtype != x.dtype:
            return [*problems, f"{where}: x0 is {tuple(x0.shape)} {x0.dtype}, x_t is "
                    f"{tuple(x.shape)} {x.dtype}"]  # fmt: skip
        if not bool(torch.isfinite(x0).all()):
            problems.append(f"{where}: x0 has NaN or infinite elements")
            continue
        if not known:
            rough = float((x0 - data).double().square().mean())
            if r < 0.05 and rough > 9 * r**2:
                problems.append(
                    f"{where}: almost clean input is changed by {math.sqrt(rough):.3g}: wrong "
                    "parametrisation, time or schedule"
                )
            continue
        error = float((x0 - data).double().square().mean())
        if error > 1.5 * r**2:
            problems.append(
                f"{where}: error {math.sqrt(error):.3g} is worse than not denoising ({r:.3g}): "
                "wrong parametrisation, time, schedule or range"
            )
        elif error > 2 * variance + 1e-12 and n > 1:
            problems.append(
                f"{where}: error {math.sqrt(error):.3g} is worse than a constant "
                f"({math.sqrt(variance):.3g}): wrong parametrisation, time or schedule"
            )
        guess = ((x - level.alpha * x0) / level.sigma).double()
        gap = (guess * (guess - eps)).flatten(1).mean(1)  # of mean 0 for a posterior mean
        noise_of_gap = 5 * float(gap.std()) / n**0.5 + 100 * torch.finfo(x.dtype).eps / r
        if error <= 1.5 * r**2 and abs(float(gap.mean())) > 0.1 + noise_of_gap:
            problems.append(
                f"{where}: E|eps|^2 and E<eps, true eps> differ by {float(gap.mean()):.3g}, they "
                "must agree: the noise level does not fit the network"
            )
        seen.append(_Level(r, error))
        if r > 20 * math.sqrt(variance) + 1e-12 and n > 1:
            moved = float((x0 - x0.mean(0)).double().square().mean())
            if moved > variance / 2:
                problems.append(f"{where}: x0 still varies with pure noise as input")
    for a, b in itertools.pairwise(seen):
        if b.error < 0.5 * a.error:
            problems.append(
                f"error falls from {math.sqrt(a.error):.3g} to {math.sqrt(b.error):.3g} as "
                f"sigma / alpha grows from {a.ratio:.3g} to {b.ratio:.3g}"
            )
    return problems


def _ratios(prior: Prior) -> list[float]:
    """Eight levels, evenly in log sigma / alpha over the range that the prior knows."""
    low, high = prior.schedule.ratio_range
    high = min(high, 1e3 * max(low, 1.0)) if math.isinf(high) else high
    low = max(low, 1e-3 * min(1.0, high))
    return [low ** (1 - f) * high**f for f in (k / 7 for k in range(8))]


def _probe(prior: Prior, data: Tensor, seed: int) -> tuple[Tensor, float]:
    """Three noisy rows at a middling level."""
    ratios = _ratios(prior)
    scale = float(data.double().std()) or 1.0
    r = min(max(scale, ratios[0]), ratios[-1])
    level = prior.schedule.level_of_ratio(r)
    event = tuple(data.shape[1:])
    x0 = data[:3] if data.shape[0] >= 3 else data[:1].expand(3, *event)
    z = Noise.single(seed, event, data.dtype, data.device, rows=3)("probe")
    return level.alpha * x0 + level.sigma * z, level.t


def _invariance(prior: Prior, data: Tensor, seed: int) -> list[str]:
    x, t = _probe(prior, data, seed)
    try:
        if not torch.equal(prior(x, t).x0[1:2], prior(x[1:2], t).x0):
            return ["a row's estimate depends on the batch it comes in: set rows= (1 is safe)"]
    except InputError as error:  # conditions that belong to rows
        return [f"rows could not be evaluated alone: {error}"]
    return []


def _gradient(prior: Prior, data: Tensor, seed: int) -> list[str]:
    x, t = _probe(prior, data, seed)
    u = Noise.single(seed, tuple(x.shape[1:]), x.dtype, x.device, rows=3)("direction")
    pulled = prior.vjp(x, t)[1](u)
    if not bool(torch.isfinite(pulled).all()):
        return ["vjp: NaN or infinite elements"]
    length = float(pulled.double().norm())
    if length == 0:
        return ["vjp: zero; is the network detached inside?"]
    # along J^T u itself, where <u, J v> = |J^T u| is largest
    v = pulled / length
    exact = x.dtype == torch.float64
    step = (1e-5 if exact else 1e-2) * float(x.double().norm())
    difference = prior(x + step * v, t).x0.double() - prior(x - step * v, t).x0.double()
    slope = float((u.double() * difference).sum() / (2 * step))
    if abs(slope - length) > (1e-3 if exact else 0.1) * length:
        return [f"vjp: {length:.6g} by vjp, {slope:.6g} by finite differences"]
    return []
