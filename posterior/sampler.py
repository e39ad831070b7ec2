"""The one sampler loop: every method, restoration and editing, runs through `sample`.

A run has groups: one draw, or one ensemble for methods whose particles interact. A group has its
own random streams and never sees another, so that the same address (seed, measurement, draw) gives
the same draw bit for bit alone, in any batch, in any chunk, resumed or not.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from posterior import grids, rows
from posterior.checkpoints import Checkpoint, Saved
from posterior.errors import InputError, InputTypeError, SamplingError
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.registry import resolve
from posterior.operators.base import Operator
from posterior.operators.noise import GaussianNoise, NoiseModel, as_noise_model
from posterior.priors.base import Counts, Prior
from posterior.problem import Problem
from posterior.samples import Samples
from posterior.schedules import Level
from posterior.streams import Noise, seeds_of

_CPU_BUDGET = 2 << 30  # bytes for the graphs of one chunk on a CPU; half of what is free on a GPU
_CHECKPOINT_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class CallbackStep:
    """What a callback sees after each move.

    Attributes:
        index, steps: this move and how many there are.
        t, s: times before and after it.
    """

    index: int
    steps: int
    t: float
    s: float
    _x0: Callable[[], Tensor]

    @property
    def x0(self) -> Tensor:
        """The current estimates, (n, B, *event)."""
        return self._x0()


Callback = Callable[[CallbackStep], "bool | None"]


@dataclass
class _Chunk:
    """Some groups on their way."""

    problem: Problem
    noise: Noise
    state: State
    failed: Tensor  # (rows,) step of failure, -1 = fine


@dataclass(frozen=True)
class _Layout:
    """Which rows there are: groups (measurement, number), `particles` rows each."""

    n: int
    measurements: int
    first_draw: int
    particles: int
    yields: int

    @property
    def numbers(self) -> range:
        """The group numbers of each measurement."""
        last = self.first_draw + self.n - 1
        return range(self.first_draw // self.yields, last // self.yields + 1)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(measurement, number) of every group."""
        return [(b, g) for g in self.numbers for b in range(self.measurements)]

    def arrange(self, values: Tensor) -> Tensor:
        """Draws of all groups (groups * yields, ...) as (n, B, ...)."""
        tail = values.shape[1:]
        grid = values.reshape(len(self.numbers), self.measurements, self.yields, *tail)
        numbered = grid.transpose(1, 2).reshape(-1, self.measurements, *tail)
        skip = self.first_draw - self.numbers.start * self.yields
        return numbered[skip : skip + self.n]


def sample(
    prior: Prior,
    operator: Operator | None = None,
    y: Tensor | None = None,
    *,
    noise: NoiseModel | float | Tensor | None = None,
    method: Guidance | str = "auto",
    steps: int | None = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    source: Tensor | None = None,
    shape: Sequence[int] | None = None,
    grid: str | Sequence[tuple[float, float, float]] | None = None,
    first_draw: int = 0,
    max_batch: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    strict: bool = False,
) -> Samples:
    """Draw x ~ p(x | y), or x ~ p(x) without a measurement.

    Args:
        prior: what x looks like.
        operator: how it was measured; y = operator(x) + noise.
        y: measurements (B, *range), finite, on the prior's device.
        noise: the law of the noise in the units of y; a number means Gaussian standard deviation.
        method: a guidance object, its name, or "auto".
        steps: moves from noise to clean; default: the method's.
        n: draws per measurement.
        seed: any integer; measurement b uses seed + b. Or one integer per measurement.
        source: the image or latent an edit starts from, (B, *event).
        shape: shape of one x, (C, H, W), where neither prior nor operator tell it.
        grid: name of a time grid or levels (t, alpha, sigma); default: the method's.
        first_draw: number of the first draw, so that a later call continues the numbering.
        max_batch: rows that move together; default: what fits a memory budget.
        callback: called after each move; returning True stops with the current estimates.
        progress: show a progress bar; default: only on a terminal.
        checkpoint: folder in which the run saves its state, regularly and when it is interrupted.
        resume: folder of a checkpoint to continue; the rest of the arguments must be the same.
        strict: raise `SamplingError` as soon as one row is not finite, instead of freezing it.

    Returns:
        `Samples` with draws (n, B, *event).

    Raises:
        InputError, InputTypeError, CapabilityError: before the first network call.
        ResumeError: the checkpoint is of another run.
        SamplingError: every row turned non-finite (or one, with strict=True).
    """
    started = time.perf_counter()
    problem, event = _problem(prior, operator, y, noise, source, shape)
    guidance, why = resolve(method, problem)
    levels, note = _levels(guidance, prior, steps, grid)
    measurements = 1 if problem.y is None else problem.y.shape[0]
    if problem.y is None and source is not None:
        measurements = source.shape[0]
    layout = _Layout(
        _count("n", n, 1), measurements, _count("first_draw", first_draw, 0),
        guidance.particles, guidance.yields,
    )  # fmt: skip
    seeds = seeds_of(seed, measurements)
    dtype = _state_dtype(problem)
    size = _chunk_size(prior, guidance, event, dtype, max_batch)
    identity = {
        "prior": problem.prior,
        "operator": problem.operator,
        "y": problem.y,
        "noise": problem.noise_model,
        "source": problem.source,
        "method": guidance,
        "steps or grid": levels,
        "n and first_draw": (layout.n, layout.first_draw),
        "seed": seeds,
        "shape and dtype": (event, dtype),
    }
    before = Counts(prior.counts.nfe, prior.counts.vjp)
    saved = None if resume is None else Checkpoint(resume, identity).load()
    store = None if checkpoint is None else Checkpoint(checkpoint, identity).prepare()

    chunks = _chunks(problem, guidance, levels, layout, seeds, event, dtype, size)
    done, spent = 0, 0.0
    if saved is not None:
        done, spent = saved.done, saved.seconds
        before = Counts(before.nfe - saved.nfe, before.vjp - saved.vjp)
        _restore(chunks, saved)

    def estimates() -> Tensor:
        # an ensemble shows its first particle's estimate for each of its draws' rows
        per_row = torch.cat([c.state["x0"] for c in chunks])
        return layout.arrange(_of_draws(per_row, layout))

    def save() -> None:
        if store is not None:
            names = chunks[0].state.keys()
            state = {k: torch.cat([c.state[k] for c in chunks]) for k in names}
            failed = torch.cat([c.failed for c in chunks])
            nfe, vjp = prior.counts.nfe - before.nfe, prior.counts.vjp - before.vjp
            seconds = spent + time.perf_counter() - started
            store.save(Saved(state, failed, done, nfe, vjp, seconds))

    moves = list(pairwise(levels))
    show = sys.stderr.isatty() if progress is None else progress
    stopped, last_save = False, time.perf_counter()
    try:
        with tqdm(total=len(moves), initial=done, disable=not show, leave=False) as bar:
            for index in range(done, len(moves)):
                step = Step(index, len(moves), *moves[index])
                for chunk in chunks:
                    _advance(guidance, chunk, step)
                done = index + 1
                bar.update()
                if strict or index % 10 == 9 or done == len(moves):
                    _check_rows(chunks, strict)
                if callback is not None:
                    event_of = CallbackStep(index, len(moves), step.t.t, step.s.t, estimates)
                    stopped = bool(callback(event_of))
                if stopped:
                    break
                if store is not None and time.perf_counter() - last_save > _CHECKPOINT_EVERY:
                    save()
                    last_save = time.perf_counter()
    finally:  # also when interrupted: what is done is not lost
        save()

    early = stopped and done < len(moves)
    finished = [
        c.state["x0"] if early else guidance.finish(c.problem, c.state, c.noise.at(len(moves) + 1))
        for c in chunks
    ]
    if early:
        finished = [_of_draws(x0, layout) for x0 in finished]
    used = Counts(prior.counts.nfe - before.nfe, prior.counts.vjp - before.vjp)
    notes = [note] if note else []
    if early:
        notes.append(f"stopped early after {done} of {len(moves)} steps: draws are estimates")
    latents = layout.arrange(torch.cat(finished))
    failed = layout.arrange(_of_draws(torch.cat([c.failed for c in chunks]), layout))
    draws, residual = _decoded(problem, operator, latents)
    diagnostics = {"failed_step": failed.cpu()}
    if residual is not None:
        diagnostics["residual"] = residual.cpu()
    total_draws = layout.n * layout.measurements
    provenance: dict[str, Any] = {
        "method": repr(guidance),
        "why": why,
        "prior": repr(prior),
        "operator": repr(operator) if operator is not None else None,
        "noise": describe_noise(problem.noise_model, prior),
        "grid": _describe_grid(levels),
        "levels": [list(level) for level in levels],
        "n": layout.n,
        "first_draw": layout.first_draw,
        "seed": seeds,
        "shape": list(event),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(prior.device),
        "rows": prior.rows,
        "max_batch": size,
        "threads": torch.get_num_threads(),
        "nfe": used.nfe / total_draws,
        "vjp": used.vjp / total_draws,
        "seconds": spent + time.perf_counter() - started,
        "steps_done": done,
        "notes": notes,
        "versions": _versions(),
    }
    return Samples(draws, diagnostics, provenance, latents if prior.codec is not None else None)


# ------------------------------------------------------------------------------- before the run


def _problem(
    prior: Prior,
    operator: Operator | None,
    y: Tensor | None,
    noise: NoiseModel | float | Tensor | None,
    source: Tensor | None,
    shape: Sequence[int] | None,
) -> tuple[Problem, tuple[int, ...]]:
    """The problem and the shape of one x, checked as far as no network is needed."""
    if not isinstance(prior, Prior):
        raise InputTypeError(
            f"prior must be a Prior (posterior.load_prior, posterior.priors.*), not"
            f" {type(prior).__name__}"
        )
    for name, value in (("y", y), ("source", source)):
        if value is not None:
            _check_tensor(name, value, prior)
    if (operator is None) != (y is None):
        raise InputError("give operator and y together, or neither for unconditional draws")
    if operator is None or y is None:
        if noise is not None:
            raise InputError("noise= belongs to a measurement: give operator and y with it")
        event = _event(prior, None, None, source, shape)
        return Problem(prior, source=source), event
    if not isinstance(operator, Operator):
        raise InputTypeError(
            f"operator must be an Operator, not {type(operator).__name__}; wrap a function with"
            " posterior.operators.from_callable"
        )
    if noise is None:
        raise InputError("give noise=, the standard deviation of the noise in the units of y")
    model = as_noise_model(noise)
    if prior.codec is not None and operator.space == "image":
        decoder = prior.codec.decoder
        assert isinstance(decoder, Operator)
        operator = operator @ decoder
    event = _event(prior, operator, y, source, shape)
    expected = operator.range_shape((y.shape[0], *event))
    if tuple(expected) != tuple(y.shape):
        raise InputError(
            f"y has shape {tuple(y.shape)}, but {operator!r} gives {tuple(expected)} for x of"
            f" shape {(y.shape[0], *event)}"
        )
    if isinstance(model, GaussianNoise):
        model.std_like(y)  # refuses a std that does not fit y
    operator = operator.bind(event)
    y = operator.restrict(y.detach())
    return Problem(prior, operator, y, model, source), event


def _event(
    prior: Prior,
    operator: Operator | None,
    y: Tensor | None,
    source: Tensor | None,
    shape: Sequence[int] | None,
) -> tuple[int, ...]:
    """The shape of one x, from whoever knows it."""
    if shape is not None:
        event = tuple(_count("shape", s, 1) for s in shape)
    elif source is not None:
        event = tuple(source.shape[1:])
    elif prior.event_shape is not None:
        event = prior.event_shape
    elif operator is not None and y is not None:
        event = tuple(operator.domain_shape(tuple(y.shape)))[1:]
    else:
        raise InputError("give shape=, the shape of one draw, e.g. (3, 64, 64)")
    prior.check_event(event)
    if source is not None and tuple(source.shape[1:]) != event:
        raise InputError(f"source has shape {tuple(source.shape)}, but x is (B, *{event})")
    if source is not None and y is not None and source.shape[0] != y.shape[0]:
        raise InputError(f"{source.shape[0]} sources for {y.shape[0]} measurements")
    return event


def _check_tensor(name: str, value: Tensor, prior: Prior) -> None:
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{name} must be a torch tensor, not {type(value).__name__}")
    if not (value.is_floating_point() or value.is_complex()):
        raise InputError(f"{name} must be floating point or complex, not {value.dtype}")
    if value.ndim < 2 or value.shape[0] == 0:
        raise InputError(f"{name} needs a batch axis and an event, got shape {tuple(value.shape)}")
    if value.device.type != prior.device.type:
        raise InputError(f"{name} is on {value.device}, the prior on {prior.device}: move one")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} has {int((~torch.isfinite(value)).sum())} NaN or inf values")


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    return value


def _levels(
    guidance: Guidance,
    prior: Prior,
    steps: int | None,
    grid: str | Sequence[tuple[float, float, float]] | None,
) -> tuple[list[Level], str]:
    if grid is not None and not isinstance(grid, str):
        levels = grids.check([Level(*level) for level in grid])
        if steps is not None and steps != len(levels) - 1:
            raise InputError(f"steps={steps}, but the grid that was given has {len(levels) - 1}")
        return levels, ""
    count = guidance.default_steps if steps is None else _count("steps", steps, 1)
    if grid is not None:
        return grids.named(grid, prior.schedule, count), ""
    return guidance.grid(prior.schedule, count), ""


def _state_dtype(problem: Problem) -> torch.dtype:
    """Rows are float32, or float64 where the measurement or the prior is."""
    given = problem.y if problem.y is not None else problem.source
    dtype = problem.prior.dtype if given is None else given.real.dtype
    return dtype if dtype == torch.float64 else torch.float32


def _chunk_size(
    prior: Prior,
    guidance: Guidance,
    event: tuple[int, ...],
    dtype: torch.dtype,
    max_batch: int | None,
) -> int:
    """Rows that move together: whole groups, within `max_batch` or the memory budget."""
    if max_batch is not None:
        limit = _count("max_batch", max_batch, 1)
    else:
        budget = _CPU_BUDGET
        if prior.device.type == "cuda":
            budget = torch.cuda.mem_get_info(prior.device)[0] // 2
        per_row = math.prod(event) * prior.graph_bytes
        if "network gradient" not in guidance.needs:
            per_row = math.prod(event) * 64
        limit = max(1, budget // max(per_row, 1))
        if prior.rows is not None:  # whole blocks of the network's batch
            limit = max(limit - limit % prior.rows, 1)
    return max(limit // guidance.particles, 1) * guidance.particles


def _chunks(
    problem: Problem,
    guidance: Guidance,
    levels: Sequence[Level],
    layout: _Layout,
    seeds: Sequence[int],
    event: tuple[int, ...],
    dtype: torch.dtype,
    size: int,
) -> list[_Chunk]:
    chunks = []
    groups = layout.groups
    per_chunk = size // layout.particles
    device = problem.prior.device
    for first in range(0, len(groups), per_chunk):
        members = [
            (b, g, p) for b, g in groups[first : first + per_chunk] for p in range(layout.particles)
        ]
        noise = Noise(
            tuple(seeds[b] for b, _, _ in members),
            tuple(g for _, g, _ in members),
            tuple(p for _, _, p in members),
            event,
            dtype,
            device,
        )
        part = problem.take([b for b, _, _ in members])
        state = guidance.start(part, levels[0], noise)
        failed = torch.full((len(members),), -1, device=device)
        chunks.append(_Chunk(part, noise, state, failed))
    return chunks


def _restore(chunks: Sequence[_Chunk], saved: Saved) -> None:
    """Put the saved rows into the chunks, whatever chunks the saving run had."""
    start = 0
    for chunk in chunks:
        part = slice(start, start + len(chunk.failed))
        start = part.stop
        device = chunk.failed.device
        chunk.state = {k: v[part].to(device) for k, v in saved.state.items()}
        chunk.failed = saved.failed[part].to(device)


# -------------------------------------------------------------------------------- during the run


def _advance(guidance: Guidance, chunk: _Chunk, step: Step) -> None:
    """One move; a row that turns non-finite keeps its last state and is flagged."""
    old = chunk.state
    new = guidance.advance(chunk.problem, old, step, chunk.noise.at(step.index + 1))
    fine = rows.finite(new["x"]) & rows.finite(new["x0"])
    alive = chunk.failed < 0
    chunk.failed = torch.where(alive & ~fine, step.index, chunk.failed)
    keep = alive & fine
    chunk.state = {k: rows.where(keep, v, old[k]) if k in old else v for k, v in new.items()}


def _check_rows(chunks: Sequence[_Chunk], strict: bool) -> None:
    failed = torch.cat([c.failed for c in chunks])
    dead = failed >= 0
    if bool(dead.all()) or (strict and bool(dead.any())):
        first = int(failed[dead].min())
        raise SamplingError(
            f"{int(dead.sum())} of {len(failed)} rows turned non-finite, the first at step {first}:"
            " try more steps, a smaller guidance scale, or check the prior with priors.check and"
            " the operator with operators.check"
        )


def _of_draws(per_row: Tensor, layout: _Layout) -> Tensor:
    """Per-row values (groups * particles, ...) -> (groups * yields, ...)."""
    grouped = per_row.reshape(-1, layout.particles, *per_row.shape[1:])
    return grouped[:, : layout.yields].flatten(0, 1)


# --------------------------------------------------------------------------------- after the run


def _decoded(
    problem: Problem, operator: Operator | None, latents: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The draws as images, and root mean square of (y - A(x)) / std by draw, (n, B)."""
    n, count = latents.shape[:2]
    index = [b for _ in range(n) for b in range(count)]
    with torch.no_grad():
        draws = latents
        if problem.prior.codec is not None:
            decode = problem.prior.codec.decode
            draws = torch.stack([torch.cat([decode(x[None]) for x in row]) for row in latents])
        if problem.operator is None:
            return draws, None
        residuals = []
        flat = latents.flatten(0, 1)
        for k, b in enumerate(index):  # row by row: no more memory than one row's
            part = problem.take([b])
            row_operator, y, model = part.measured()
            residuals.append(_misfit(model, row_operator, y, flat[k : k + 1]))
        return draws, torch.cat(residuals).reshape(n, count)


def _misfit(model: NoiseModel, operator: Operator, y: Tensor, x: Tensor) -> Tensor:
    """Root mean square of (y - A(x)) / std over what A fills; nan without noise: (B,)."""
    residual = model.standardised(y, operator.restrict(operator(x)))
    filled = operator.restrict(torch.ones_like(y))
    return rows.norm(residual) / rows.norm(filled)


def describe_noise(model: NoiseModel | None, prior: Prior) -> str | None:
    """The noise in the library's units and, for a bounded prior, as a part of full scale."""
    if model is None:
        return None
    std = getattr(model, "std", None)
    if isinstance(std, float) and prior.range is not None:
        low, high = prior.range
        return f"{std:g} in [{low:g}, {high:g}] = {std / (high - low):g} of full scale"
    return repr(model)


def _describe_grid(levels: Sequence[Level]) -> str:
    first, last = levels[0].ratio, levels[-1].ratio
    return f"{len(levels) - 1} steps, sigma/alpha from {first:.4g} to {last:.4g}"


def _versions() -> dict[str, str]:
    from posterior import __version__

    return {
        "posterior": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
