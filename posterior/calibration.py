"""Simulation-based calibration: does a method draw from p(x | y), or from something else?

    x* ~ p(x),   y ~ p(y | x*),   x_1 ... x_L ~ q(x | y)

If q(x | y) = p(x | y), then x* and the draws are exchangeable given y, and for every f(x, y) the
randomised rank of the truth among the draws,

    u = (#{l : f(x_l, y) < f(x*, y)} + U (1 + #{l : f(x_l, y) = f(x*, y)})) / (L + 1),  U ~ U(0, 1),

is uniform on (0, 1), exactly and for every L. Over many simulations u is held against the uniform
law by a Kolmogorov-Smirnov test. A single f is blind to most errors, so four are used:

    coordinates     f = x_c                        Talts et al. 2018, arXiv 1804.06788
    log-likelihood  f = log p(y | x)               Modrak et al. 2023, arXiv 2211.02383
    log-posterior   f = log p(x) + log p(y | x)    the rank of highest-density regions
    tarp            f = |x - r(y)|                 Lemos et al. 2023, arXiv 2302.03026

Draws of the prior have uniform ranks in every coordinate and about every r that does not know y:
only the log-likelihood, the log-posterior and an r(y) show that a method ignores the data. The
log-posterior is the most powerful against a wrong width, the coordinates against a wrong mean.

>>> result = calibrate(prior, operator, noise=0.1, method="dps", simulations=200, draws=63)
>>> print(result.report)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from posterior import rows
from posterior.arguments import check_tensor, count
from posterior.errors import CapabilityError, InputError, InputTypeError, SamplingError
from posterior.folders import replacing
from posterior.guidance.base import Guidance
from posterior.operators.base import Operator, check_number
from posterior.operators.noise import NoiseModel, as_noise_model
from posterior.priors.base import Prior
from posterior.sampler import sample
from posterior.streams import Noise, check_seed, key_of

Kind = Literal["calibrated", "over-confident", "under-confident", "biased"]
Function = Callable[[Tensor], Tensor]

COORDINATES, LIKELIHOOD, POSTERIOR, TARP = "coordinates", "log-likelihood", "log-posterior", "tarp"

_MOST_COORDINATES = 64  # more would weaken the test of each by the correction for their number
_LEAST = 20  # simulations; with fewer nothing but a catastrophe is seen
_CANDIDATES = 32  # prior draws from which a reference is chosen where the operator is not linear
_DESCENTS = 3  # steps towards y where it is linear
_TITLES: dict[Kind, str] = {
    "calibrated": "calibrated",
    "over-confident": "over-confident (too narrow)",
    "under-confident": "under-confident (too wide)",
    "biased": "biased",
}
# what ranks that are too low, or too high, on the whole say about the draws
_SHIFTED: dict[str, tuple[tuple[Kind, str], tuple[Kind, str]]] = {
    LIKELIHOOD: (
        ("over-confident", "the draws fit y better than the truth does"),
        ("under-confident", "the draws fit y worse than the truth does"),
    ),
    POSTERIOR: (
        ("over-confident", "the draws are more probable than the truth"),
        ("under-confident", "the draws are less probable than the truth"),
    ),
    TARP: (
        ("under-confident", "the draws lie farther from the reference than the truth"),
        ("over-confident", "the draws lie nearer to the reference than the truth"),
    ),
}


# ------------------------------------------------------------------------------------ the verdict


@dataclass(frozen=True, eq=False)
class RankTest:
    """The ranks of one statistic, held against the uniform law.

    Attributes:
        name: of the statistic.
        ranks: randomised ranks in (0, 1), float64, (simulations, k); k > 1 for coordinates only.
        labels: what each of the k columns is.
        level: the false-alarm rate of this test.
    """

    name: str
    ranks: Tensor
    labels: Sequence[str]
    level: float

    @cached_property
    def distances(self) -> list[float]:
        """The Kolmogorov-Smirnov distance of each column."""
        return [_distance(column) for column in self.ranks.T]

    @cached_property
    def column_p_values(self) -> list[float]:
        """The p-value of each column alone."""
        return [ks_p_value(distance, len(self.ranks)) for distance in self.distances]

    @property
    def p_value(self) -> float:
        """The smallest p-value of the columns, times their number (Bonferroni)."""
        return min(1.0, min(self.column_p_values) * len(self.column_p_values))

    @property
    def worst(self) -> int:
        """The column that deviates most."""
        return self.distances.index(max(self.distances))

    @property
    def share(self) -> float:
        """The mean rank in the worst column: the share of draws below the truth; 1/2 is right."""
        return float(self.ranks[:, self.worst].mean())

    @property
    def coverage(self) -> float:
        """Truths within the central 50 % of the draws, in the worst column; 1/2 is right."""
        return float(((self.ranks[:, self.worst] - 0.5).abs() < 0.25).double().mean())

    @cached_property
    def kind(self) -> Kind:
        """What is wrong, if the test rejects at its level."""
        if self.p_value >= self.level:
            return "calibrated"
        shift, spread = self._deviations
        if self._by_width:
            return "over-confident" if spread > 0 else "under-confident"
        return _SHIFTED[self.name][shift > 0][0] if self.name in _SHIFTED else "biased"

    @property
    def _by_width(self) -> bool:
        """Whether the ranks are too spread out or too crowded rather than shifted."""
        shift, spread = self._deviations
        return abs(spread) > abs(shift)

    @property
    def _deviations(self) -> tuple[float, float]:
        """Of the mean and of the variance of the ranks, in standard errors.

        Under the uniform law Var u = 1/12 and Var (u - 1/2)^2 = 1/180. The variance is that about
        the mean found: ranks that crowd at one end are shifted, not spread out.
        """
        u = self.ranks[:, self.worst]
        n = len(u)
        shift = (float(u.mean()) - 0.5) * math.sqrt(12 * n)
        return shift, (float(u.var(correction=0)) - 1 / 12) * math.sqrt(180 * n)

    @property
    def title(self) -> str:
        """The kind of deviation in words."""
        if self.kind == "under-confident" and not self._by_width:
            return f"{self.kind} (too wide or misplaced)"  # both make the draws worse than x*
        return _TITLES[self.kind]

    @property
    def verdict(self) -> str:
        """The kind of deviation, its size, and the p-value."""
        p = f"p = {self.p_value:.2g}"
        if self.kind == "calibrated":
            return f"{self.title}: no deviation seen, {p}"
        what = self._width() if self._by_width else self._shift()
        if len(self.labels) > 1:
            bad = sum(p_c * len(self.labels) < self.level for p_c in self.column_p_values)
            what += f" at {self.labels[self.worst]} (rejected: {bad} of {len(self.labels)})"
        return f"{self.title}: {what}, {p}"

    def _width(self) -> str:
        text = f"the central 50 % of the draws hold {100 * self.coverage:.0f} % of the truths"
        if self.name in _SHIFTED:
            return text
        # Gaussian draws with s times the right standard deviation: P(|z| < s z_75) = coverage
        s = _quantile((1 + self.coverage) / 2) / _quantile(0.75)
        return f"{text}, as with {s:.2g} times the right standard deviation"

    def _shift(self) -> str:
        if self.name in _SHIFTED:
            says = _SHIFTED[self.name][self.share > 0.5][1]
            often = 100 * max(self.share, 1 - self.share)
            return f"{says} in {often:.0f} % of the comparisons (50 % expected)"
        # Gaussian draws of the right width, moved by s standard deviations: E u = Phi(-s / sqrt 2)
        s = -math.sqrt(2) * _quantile(self.share)
        return f"the draws lie {abs(s):.2g} standard deviations too {'high' if s > 0 else 'low'}"

    @property
    def band(self) -> float:
        """Half the width of the band that the rank ECDFs of all columns leave with rate `level`."""
        n = len(self.ranks)
        return _kolmogorov_quantile(self.level / len(self.labels)) / _stephens(n)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How the truths rank among the draws.

    Attributes:
        tests: by name of the statistic.
        draws: per simulation.
        alpha: the false-alarm rate of all verdicts together; each test has its share of it.
        provenance: method, prior, operator, noise, seed, notes: JSON values.
    """

    tests: Mapping[str, RankTest]
    draws: int
    alpha: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def simulations(self) -> int:
        """How many truths were ranked."""
        return len(next(iter(self.tests.values())).ranks)

    @property
    def p_values(self) -> dict[str, float]:
        """By statistic; coordinates are corrected for their number, statistics are not."""
        return {name: test.p_value for name, test in self.tests.items()}

    @property
    def kinds(self) -> dict[str, Kind]:
        """By statistic: "calibrated", "over-confident", "under-confident" or "biased"."""
        return {name: test.kind for name, test in self.tests.items()}

    @property
    def verdict(self) -> dict[str, str]:
        """By statistic: the kind of deviation in a sentence, with its size."""
        return {name: test.verdict for name, test in self.tests.items()}

    @property
    def calibrated(self) -> bool:
        """Whether no statistic is rejected."""
        return all(kind == "calibrated" for kind in self.kinds.values())

    @property
    def report(self) -> str:
        """What was run and what the ranks say, a line each."""
        lines = [f"{self.simulations} simulations, {self.draws} draws each"]
        for key in ("method", "prior", "operator", "noise"):
            if self.provenance.get(key):
                lines.append(f"{key}: {self.provenance[key]}")
        lines.extend(f"{name}: {text}" for name, text in self.verdict.items())
        lines.extend(self.provenance.get("notes", []))
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write a picture (PNG) of the rank distributions less the uniform one.

        A curve leaves its band if and only if its test rejects. Over-confident draws give an
        inverted S (first above, then below), under-confident ones an S, biased ones an arch; the
        statistics that measure the width by themselves (all but the coordinates) give arches.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        path = Path(path)
        ink, quiet, shade, accent = "#1a1a1a", "#6f6f6f", "#e9e9ec", "#3b6ea5"
        figure = Figure(figsize=(3.0 * len(self.tests), 3.0), dpi=160, facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(self.tests), sharey=True, squeeze=False)[0]
        n = self.simulations
        steps = torch.arange(n + 1).double() / n
        for axes, test in zip(panels, self.tests.values(), strict=True):
            axes.axhspan(-test.band, test.band, color=shade, lw=0)
            axes.axhline(0, color=quiet, lw=0.6)
            for c, column in enumerate(test.ranks.T):
                u = torch.cat([column.new_zeros(1), column.sort().values, column.new_ones(1)])
                x = u.repeat_interleave(2)[1:-1]  # both ends of every step
                y = steps.repeat_interleave(2) - x
                on_top = c == test.worst
                axes.plot(
                    x, y, color=accent, lw=1.3, alpha=1.0 if on_top else 0.25, zorder=2 + on_top
                )
            axes.set_title(test.name, size=10, color=ink, loc="left", pad=18)
            note = f"{test.title}, p = {test.p_value:.2g}"
            axes.text(0, 1.03, note, transform=axes.transAxes, size=7.5, color=quiet)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1])
            axes.tick_params(length=2, labelsize=8, labelcolor=quiet, color=quiet)
            for side in axes.spines.values():
                side.set_visible(False)
        panels[0].set_ylabel("ECDF of the rank less uniform", size=8, color=quiet)
        figure.tight_layout()
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", facecolor="white")
        return path


# ------------------------------------------------------------------------------------- front doors


@torch.no_grad()
def calibrate(
    prior: Prior,
    operator: Operator,
    noise: NoiseModel | float | Tensor,
    method: Guidance | str = "auto",
    *,
    simulations: int = 200,
    draws: int = 63,
    steps: int | None = None,
    seed: int = 0,
    coordinates: Sequence[int] | None = None,
    truth: Tensor | None = None,
    references: Tensor | None = None,
    alpha: float = 0.01,
    grid: str | Sequence[tuple[float, float, float]] | None = None,
    max_batch: int | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Simulate measurements, draw from their posteriors, and rank the truths among the draws.

    All measurements go through one call of `posterior.sample`; everything is a pure function of the
    arguments. The test is exact for independent draws; draws of one ensemble (EnKG) are not.

    Args:
        prior: the law of the truths as of the method.
        operator, noise: y = operator(x) + noise, as in `posterior.sample`.
        method, steps, grid, max_batch, progress: as in `posterior.sample`.
        simulations: truths, at least 20; fewer than 200 see large errors only.
        draws: per truth; one less than a power of two gives ranks without a remainder.
        seed: of truths, measurements, draws and randomised ranks.
        coordinates: indices into the flattened x; by default all of them, or 64 chosen at random.
        truth: (N, *event), N >= 20 in the place of `simulations`: draws of the prior's law, where
            the prior cannot make any: a network's own unconditional draws, or images that it was
            not trained on.
        references: r(y) of TARP, like the truths; by default `reference_points`.
        alpha: the false-alarm rate of all verdicts together.

    Raises:
        InputError, InputTypeError, CapabilityError: before the first network call.
        SamplingError: fewer than 20 measurements have draws that are all finite.
    """
    number = count("simulations", simulations, _LEAST)
    per_truth = count("draws", draws, 1)
    model = as_noise_model(noise)
    if not isinstance(prior, Prior):
        raise InputTypeError(f"prior must be a Prior, not {type(prior).__name__}")
    if not isinstance(operator, Operator):
        raise InputTypeError(f"operator must be an Operator, not {type(operator).__name__}")
    truth = _truths(prior, number, seed) if truth is None else truth
    check_tensor("truth", truth, prior)
    event = tuple(truth.shape[1:])
    bound = operator.bind(event)
    y = model.sample(bound(truth), seed=_seed(seed, "measurements"))
    if references is None:
        references = reference_points(prior, bound, y, model, event, seed=seed)
    _check(truth, references, coordinates, alpha)
    densities, notes = _densities(prior, bound, model, y, truth)
    if references is None:
        notes.append("no tarp: a non-linear operator and a prior without sample: give references=")

    result = sample(
        prior,
        operator,
        y,
        noise=model,
        method=method,
        steps=steps,
        n=per_truth,
        seed=[_seed(seed, "draws") + b for b in range(len(truth))],
        shape=event if prior.codec is None else None,
        grid=grid,
        max_batch=max_batch,
        progress=progress,
    )
    found = result.draws
    if operator.space == "latent" and result.latents is not None:
        found = result.latents
    kept = torch.nonzero(result.good.cpu().all(0))[:, 0].tolist()
    if len(kept) < len(truth):
        notes.append(
            f"FAILED: of {len(truth)} simulations {len(truth) - len(kept)} had draws that turned"
            " non-finite and are left out"
        )
        if len(kept) < _LEAST:
            raise SamplingError(f"{notes[-1]}: too few are left to judge, try more steps")
        index = torch.tensor(kept, device=truth.device)
        truth, found, y = truth[index], found[:, index], y[index]
        references = None if references is None else references[index]
        bound, model, prior = bound.take(kept), model.take(kept), prior.take(kept)
        densities, _ = _densities(prior, bound, model, y, truth)
    judged = rank_statistics(
        truth,
        found,
        **densities,
        references=references,
        coordinates=coordinates,
        alpha=alpha,
        seed=seed,
    )
    provenance = {
        **result.provenance,
        "seed": check_seed(seed),
        "notes": [*result.provenance["notes"], *notes],
    }
    return replace(judged, provenance=provenance)


@torch.no_grad()
def rank_statistics(
    truth: Tensor,
    draws: Tensor,
    *,
    log_likelihood: Function | None = None,
    log_prior: Function | None = None,
    references: Tensor | None = None,
    coordinates: Sequence[int] | None = None,
    alpha: float = 0.01,
    seed: int = 0,
) -> Calibration:
    """Rank truths among draws that any sampler made.

    Args:
        truth: (N, *event), one x for each measurement.
        draws: (L, N, *event), draws given the measurements of these.
        log_likelihood: x (N, *event) -> log p(y | x) (N,), row b with measurement b; up to
            constants in x.
        log_prior: x (N, *event) -> log p(x) (N,); with `log_likelihood` it gives the log-posterior.
        references: r(y) (N, *event), functions of y and of independent randomness only.
        coordinates: indices into the flattened x; by default all of them, or 64 chosen at random.
        alpha: the false-alarm rate of all verdicts together.
        seed: of the randomised ranks.
    """
    chosen = _check(truth, references, coordinates, alpha, seed)
    if not isinstance(draws, Tensor):
        raise InputTypeError(f"draws must be a torch tensor, not {type(draws).__name__}")
    if draws.shape[1:] != truth.shape or not len(draws):
        raise InputError(
            f"draws must be (L, N, *event) for truth (N, *event), got {tuple(draws.shape)} and "
            f"{tuple(truth.shape)}"
        )
    if not bool(torch.isfinite(draws).all()):
        raise InputError("draws has NaN or infinite values: leave those measurements out")
    event = tuple(truth.shape[1:])
    columns = torch.tensor(chosen, device=truth.device)

    def statistics(x: Tensor) -> dict[str, Tensor]:
        found = {COORDINATES: x.flatten(1)[:, columns]}
        if log_likelihood is not None:
            fit = log_likelihood(x)
            found[LIKELIHOOD] = fit[:, None]
            if log_prior is not None:
                found[POSTERIOR] = (fit + log_prior(x).to(fit))[:, None]
        if references is not None:
            found[TARP] = rows.norm(x - references.to(x))[:, None]
        return found

    ranks = _ranks(statistics, truth, draws, seed)
    labels = {COORDINATES: [_label(c, event) for c in chosen]}
    tests = {
        name: RankTest(name, u, labels.get(name, [name]), alpha / len(ranks))
        for name, u in ranks.items()
    }
    return Calibration(tests, len(draws), alpha)


def reference_points(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    noise: NoiseModel | float | Tensor,
    event: Sequence[int],
    *,
    seed: int = 0,
) -> Tensor | None:
    """References r(y) for TARP: crude and random reconstructions, (B, *event).

    A linear operator: a fresh draw r of the prior (white noise where the prior cannot be drawn
    from), brought towards y by three steps of steepest descent on |y - A r|^2,

        g = A^T (y - A r),   r <- r + |g|^2 / |A g|^2 g

    which needs no scale and does not blow up small singular values as a pseudo-inverse does.
    Any other operator: of 32 fresh draws of the prior the one of largest likelihood; None where the
    prior cannot be drawn from. Row b is a function of y_b, b and the seed.
    """
    number, event = len(y), tuple(event)
    drawn = getattr(prior, "sample", None)
    if operator.linear:
        if drawn is None:
            r = Noise.single(_seed(seed, "references"), event, y.real.dtype, y.device, number)("r")
        else:
            r = drawn(number, seed=_seed(seed, "references")).to(y.device, y.real.dtype)
        operator = operator.bind(event)
        for _ in range(_DESCENTS):
            g = operator.adjoint(y - operator(r))
            seen = operator(g)
            power = rows.dot(seen, seen)
            step = torch.where(power > 0, rows.dot(g, g) / power, torch.zeros_like(power))
            r = r + rows.expand(step, g) * g
        return r
    if drawn is None:
        return None
    fits = _likelihood(operator, as_noise_model(noise), y)
    best: Tensor | None = None
    highest = torch.full((number,), -math.inf, dtype=torch.float64, device=y.device)
    for k in range(_CANDIDATES):
        r = drawn(number, seed=_seed(seed, f"references {k}")).to(y.device, y.real.dtype)
        fit = fits(r).double()
        better = fit > highest  # never where the operator failed, NaN
        best = r if best is None else rows.where(better, r, best)
        highest = torch.where(better, fit, highest)
    return best


# ------------------------------------------------------------------------------------------- parts


def _seed(seed: int, purpose: str) -> int:
    """An integer of its own for each purpose, so that no two streams of a run coincide."""
    high, low = key_of(check_seed(seed), f"calibration {purpose}")
    return (high << 32) + low


def _truths(prior: Prior, number: int, seed: int) -> Tensor:
    drawn = getattr(prior, "sample", None)
    if drawn is None:
        raise CapabilityError(
            f"{type(prior).__name__} has no sample: give truth=, such as its own unconditional "
            "draws, posterior.sample(prior, n=200, shape=...).draws[:, 0]"
        )
    truth = drawn(number, seed=_seed(seed, "truths"))
    assert isinstance(truth, Tensor)
    return truth


def _likelihood(operator: Operator, noise: NoiseModel, y: Tensor) -> Function:
    def log_likelihood(x: Tensor) -> Tensor:
        # what a mask hides is not measured, whatever the simulation left there
        return noise.log_prob(operator.restrict(y), operator(x))

    return log_likelihood


def _densities(
    prior: Prior, operator: Operator, noise: NoiseModel, y: Tensor, truth: Tensor
) -> tuple[dict[str, Function], list[str]]:
    """The log-likelihood and log-prior as far as they exist, and a note on what does not."""
    found: dict[str, Function] = {}
    log_prob = getattr(prior, "log_prob", None)
    try:
        likelihood = _likelihood(operator, noise, y)
        likelihood(truth)
        found["log_likelihood"] = likelihood
        if log_prob is None:
            return found, [f"no log-posterior: {type(prior).__name__} has no log_prob"]
        log_prob(truth)
        found["log_prior"] = log_prob
    except (CapabilityError, InputError) as error:  # noise without density, singular covariance
        missing = "log-posterior" if found else "log-likelihood and log-posterior"
        return found, [f"no {missing}: {error}"]
    return found, []


def _check(
    truth: Tensor,
    references: Tensor | None,
    coordinates: Sequence[int] | None,
    alpha: float,
    seed: int = 0,
) -> Sequence[int]:
    """The coordinates to rank, if everything that is known before the draws fits."""
    for name, value in (("truth", truth), ("references", references)):
        if value is not None and not isinstance(value, Tensor):
            raise InputTypeError(f"{name} must be a torch tensor, not {type(value).__name__}")
        if value is not None and not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} has NaN or infinite values: leave those measurements out")
    if truth.ndim < 2 or len(truth) < _LEAST:
        raise InputError(
            f"truth must be (N, *event) with N >= {_LEAST} simulations, got {tuple(truth.shape)}"
        )
    if references is not None and references.shape != truth.shape:
        raise InputError(
            f"references must have the shape of truth {tuple(truth.shape)}, got "
            f"{tuple(references.shape)}"
        )
    if not 0 < check_number("alpha", alpha, 0, 1) < 1:
        raise InputError(f"alpha must be between 0 and 1, not {alpha:g}")
    return _coordinates(coordinates, tuple(truth.shape[1:]), seed)


def _coordinates(
    coordinates: Sequence[int] | None, event: tuple[int, ...], seed: int
) -> Sequence[int]:
    size = math.prod(event)
    if coordinates is None:
        if size <= _MOST_COORDINATES:
            return range(size)
        u = Noise.single(seed, (size,)).uniform("calibration coordinates")[0]
        return sorted(u.argsort()[:_MOST_COORDINATES].tolist())
    chosen = [count("a coordinate", c, 0) for c in coordinates]
    if not chosen or max(chosen) >= size:
        raise InputError(f"coordinates are one or more of 0 to {size - 1}, got {coordinates}")
    return chosen


def _label(c: int, event: tuple[int, ...]) -> str:
    """The place of an element of the flattened event."""
    place: list[int] = []
    for size in reversed(event):
        c, k = divmod(c, size)
        place.insert(0, k)
    return f"x[{', '.join(map(str, place))}]"


def _ranks(
    statistics: Callable[[Tensor], dict[str, Tensor]], truth: Tensor, draws: Tensor, seed: int
) -> dict[str, Tensor]:
    """The randomised ranks of each statistic, (N, k) float64, one set of draws at a time."""
    wanted = statistics(truth)
    less = {name: torch.zeros_like(f, dtype=torch.float64) for name, f in wanted.items()}
    same = {name: torch.zeros_like(f, dtype=torch.float64) for name, f in wanted.items()}
    for x in (truth, *draws):
        for name, f in (wanted if x is truth else statistics(x)).items():
            if bool(f.isnan().any()):
                raise InputError(f"the {name} is NaN for some x: it cannot be ranked")
            less[name] += f < wanted[name]
            same[name] += f == wanted[name]  # the truth counts itself: 1 + ties
    out = {}
    for name, below in less.items():
        noise = Noise.single(seed, below.shape[1:], rows=len(below))
        u = noise.uniform(f"calibration rank of {name}").to(below.device)
        out[name] = ((below + u * same[name]) / (len(draws) + 1)).cpu()
    return out


# ---------------------------------------------------------------------- the Kolmogorov distribution


def _distance(u: Tensor) -> float:
    """The largest difference between the distribution function of u (n,) and the uniform one."""
    u = u.double().sort().values
    edges = torch.arange(len(u) + 1, dtype=torch.float64) / len(u)
    return float(torch.maximum(edges[1:] - u, u - edges[:-1]).max())


def ks_p_value(distance: float, n: int) -> float:
    """P(D_n > distance) for n uniform numbers, by the limit law with Stephens' correction (1970).

    P(D_n > d) = Q((sqrt n + 0.12 + 0.11 / sqrt n) d), to about 1 % where it matters, n >= 20.
    """
    return _kolmogorov_tail(_stephens(n) * distance)


def _stephens(n: int) -> float:
    return math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)


def _kolmogorov_tail(x: float) -> float:
    """Q(x) = 2 sum_k (-1)^(k-1) exp(-2 k^2 x^2), or for small x its other form by Jacobi's theta.

    1 - Q(x) = sqrt(2 pi) / x sum_k exp(-(2 k - 1)^2 pi^2 / (8 x^2))
    """
    if x < 0.2:  # 1 - Q < 1e-12
        return 1.0
    if x < 1.2:
        terms = (math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 5))
        return 1 - math.sqrt(2 * math.pi) / x * sum(terms)
    return 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 6))


def _kolmogorov_quantile(tail: float) -> float:
    """The x with Q(x) = tail, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _kolmogorov_tail(middle) > tail else (low, middle)
    return high


def _quantile(p: float) -> float:
    """The standard normal quantile."""
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
