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
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from posterior import devices, heap, rows
from posterior.arguments import build_problem, choose_levels, count, state_dtype
from posterior.checkpoints import Checkpoint, Saved
from posterior.errors import InputError, InputTypeError, SamplingError
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.registry import resolve
from posterior.operators.base import Operator
from posterior.operators.noise import GaussianNoise, NoiseModel
from posterior.priors.base import Counts, Prior
from posterior.problem import Problem
from posterior.samples import Samples
from posterior.schedules import Level
from posterior.streams import MOST_DRAWS, Noise, seeds_of

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

    def of_draws(self, per_row: Tensor) -> Tensor:
        """Values of all rows (groups * particles, ...) as those of the draws, (n, B, ...).

        Of an ensemble the first `yields` particles count.
        """
        grouped = per_row.reshape(-1, self.particles, *per_row.shape[1:])
        return self.arrange(grouped[:, : self.yields].flatten(0, 1))

    def arrange(self, values: Tensor) -> Tensor:
        """Draws of all groups (groups * yields, ...) as (n, B, ...)."""
        tail = values.shape[1:]
        grid = values.reshape(len(self.numbers), self.measurements, self.yields, *tail)
        numbered = grid.transpose(1, 2).reshape(-1, self.measurements, *tail)
        skip = self.first_draw - self.numbers.start * self.yields
        return numbered[skip : skip + self.n]


@torch.no_grad()
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
    source_prior: Prior | None = None,
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
        source: the image or latent an edit starts from, (B, *event): noised to the first level, or
            as it is where the method's state carries no noise (RED-diff, FlowEdit).
        source_prior: the prior under what the source shows, for methods that compare it with
            `prior`, which is that of the edit: `prior.given(prompt)` twice.
        shape: shape of one x, (C, H, W), where neither prior nor operator tell it.
        grid: name of a time grid, of which a method with a `strength` makes the last part, or
            levels (t, alpha, sigma), as they are; default: the method's.
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
    problem, event = build_problem(prior, operator, y, noise, source, shape, source_prior)
    guidance, why = resolve(method, problem)
    levels = choose_levels(guidance, prior, steps, grid)
    given = problem.y if problem.y is not None else problem.source
    layout = _Layout(
        n=count("n", n, 1),
        measurements=(prior.measurements or 1) if given is None else given.shape[0],
        first_draw=count("first_draw", first_draw, 0),
        particles=guidance.particles,
        yields=guidance.yields,
    )
    if layout.first_draw + layout.n > MOST_DRAWS:
        raise InputError(f"draws are numbered below 2**32: first_draw={first_draw} is too large")
    seeds = seeds_of(seed, layout.measurements)
    if callback is not None and not callable(callback):
        raise InputTypeError(f"callback must be callable, not {type(callback).__name__}")
    dtype = state_dtype(problem)
    if problem.source is not None:
        problem = replace(problem, source=problem.source.to(dtype))
    size = _chunk_size(prior, guidance, event, max_batch)
    identity = {
        "prior": problem.prior,
        "operator": problem.operator,
        "y": problem.y,
        "noise": problem.noise_model,
        "source": problem.source,
        "source prior": problem.source_prior,
        "method": guidance,
        "steps or grid": levels,
        "n and first_draw": (layout.n, layout.first_draw),
        "seed": seeds,
        "shape and dtype": (event, dtype),
    }
    saved = None if resume is None else Checkpoint(resume, identity).load()
    store = (
        None if checkpoint is None else Checkpoint(checkpoint, identity).prepare(resume is not None)
    )

    chunks = _chunks(problem, guidance, levels, layout, seeds, event, dtype, size)
    run = _Run(guidance, chunks, list(pairwise(levels)), layout, prior.counts, started)
    if saved is not None:
        run.restore(saved)
    show = sys.stderr.isatty() if progress is None else progress
    with heap.kept(prior.device):
        stopped = run.go(callback, show, store, strict)

    latents = run.estimates() if stopped else run.draws()
    failed = layout.of_draws(torch.cat([c.failed for c in chunks]))
    draws, residual = _decoded(problem, latents)
    diagnostics = {"failed_step": failed.cpu()}
    if residual is not None:
        diagnostics["residual"] = residual.cpu()
    count_of_draws = layout.n * layout.measurements
    nfe, vjp = run.spent_calls
    stop_note = f"stopped early after {run.done} of {len(run.moves)} steps: draws are estimates"
    provenance: dict[str, Any] = {
        "method": repr(guidance),
        "why": why,
        "prior": repr(prior),
        "source_prior": None if source_prior is None else repr(source_prior),
        "operator": None if operator is None else repr(operator),
        "noise": describe_noise(problem.noise_model, problem.operator, prior.range),
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
        "nfe": nfe / count_of_draws,
        "vjp": vjp / count_of_draws,
        "seconds": run.seconds,
        "steps_done": run.done,
        "notes": [stop_note] if stopped else [],
        "versions": _versions(),
    }
    return Samples(draws, diagnostics, provenance, latents if prior.codec is not None else None)


# ------------------------------------------------------------------------------- before the run


def _chunk_size(
    prior: Prior,
    guidance: Guidance,
    event: tuple[int, ...],
    max_batch: int | None,
) -> int:
    """Rows that move together: whole groups, within `max_batch` or the memory budget."""
    if max_batch is not None:
        limit = count("max_batch", max_batch, 1)
    else:
        budget = devices.CPU_BUDGET
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


# -------------------------------------------------------------------------------- during the run


@dataclass
class _Run:
    """The loop and what it has done so far."""

    guidance: Guidance
    chunks: list[_Chunk]
    moves: list[tuple[Level, Level]]
    layout: _Layout
    counts: Counts
    started: float
    done: int = 0

    def __post_init__(self) -> None:
        self._nfe, self._vjp = self.counts.nfe, self.counts.vjp  # before the run
        self._last_save = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time of the run, that of the resumed part included."""
        return time.perf_counter() - self.started

    @property
    def spent_calls(self) -> tuple[int, int]:
        """Network evaluations and backward passes of all rows."""
        return self.counts.nfe - self._nfe, self.counts.vjp - self._vjp

    def go(
        self, callback: Callback | None, show: bool, store: Checkpoint | None, strict: bool
    ) -> bool:
        """Make the moves that are left; True if the callback stopped the run before its end."""
        total = len(self.moves)
        try:
            with tqdm(total=total, initial=self.done, disable=not show, leave=False) as bar:
                while self.done < total:
                    t, s = self.moves[self.done]
                    before = self.moves[self.done - 1][0] if self.done > 0 else None
                    self._move(Step(self.done, total, t, s, before))
                    bar.update()
                    if strict or self.done % 10 == 0 or self.done == total:
                        _check_rows(self.chunks, strict)
                    if callback is not None and callback(
                        CallbackStep(self.done - 1, total, t.t, s.t, self.estimates)
                    ):
                        break
                    if store and time.perf_counter() - self._last_save > _CHECKPOINT_EVERY:
                        self._save(store)
        finally:  # also when interrupted: what is done is not lost
            if store:
                self._save(store)
        return self.done < total

    def _move(self, step: Step) -> None:
        """All rows from one level to the next, or, if something raises, none."""
        moved = [_advanced(self.guidance, chunk, step) for chunk in self.chunks]
        for chunk, (state, failed) in zip(self.chunks, moved, strict=True):
            chunk.state, chunk.failed = state, failed
        self.done += 1

    def estimates(self) -> Tensor:
        """The current estimates of x0, (n, B, *event)."""
        return self.layout.of_draws(torch.cat([c.state["x0"] for c in self.chunks]))

    def draws(self) -> Tensor:
        """The draws of a finished run, (n, B, *event)."""
        last = len(self.moves) + 1
        parts = [self.guidance.finish(c.problem, c.state, c.noise.at(last)) for c in self.chunks]
        return self.layout.arrange(torch.cat(parts))

    def _save(self, store: Checkpoint) -> None:
        names = self.chunks[0].state.keys()
        state = {k: torch.cat([c.state[k] for c in self.chunks]) for k in names}
        failed = torch.cat([c.failed for c in self.chunks])
        store.save(Saved(state, failed, self.done, *self.spent_calls, self.seconds))
        self._last_save = time.perf_counter()

    def restore(self, saved: Saved) -> None:
        """Continue where a checkpoint stands, whatever chunks the saving run had."""
        first = 0
        for chunk in self.chunks:
            part = slice(first, first + len(chunk.failed))
            first = part.stop
            device = chunk.failed.device
            chunk.state = {k: v[part].to(device) for k, v in saved.state.items()}
            chunk.failed = saved.failed[part].to(device)
        self.done = saved.done
        self.started -= saved.seconds
        self._nfe -= saved.nfe
        self._vjp -= saved.vjp


def _advanced(guidance: Guidance, chunk: _Chunk, step: Step) -> tuple[State, Tensor]:
    """One move; a row that turns non-finite keeps its last state and is flagged."""
    old = chunk.state
    new = guidance.advance(chunk.problem, old, step, chunk.noise.at(step.index + 1))
    fine = rows.finite(new["x"]) & rows.finite(new["x0"])
    alive = chunk.failed < 0
    failed = torch.where(alive & ~fine, step.index, chunk.failed)
    keep = alive & fine
    return {k: rows.where(keep, v, old[k]) if k in old else v for k, v in new.items()}, failed


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


# --------------------------------------------------------------------------------- after the run


def _decoded(problem: Problem, latents: Tensor) -> tuple[Tensor, Tensor | None]:
    """The draws as images, and root mean square of (y - A(x)) / std by draw, (n, B)."""
    n, measurements = latents.shape[:2]
    index = [b for _ in range(n) for b in range(measurements)]
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
            residuals.append(model.misfit(y, row_operator(flat[k : k + 1]), row_operator))
        return draws, torch.cat(residuals).reshape(n, measurements)


def describe_noise(
    model: NoiseModel | None, operator: Operator | None, range: tuple[float, float] | None
) -> str | None:
    """The noise in the units of y and, where y is an image, as a part of full scale.

    Args:
        model: None without a measurement.
        operator: says whether y is an image.
        range: of x, where it is bounded.
    """
    if model is None or operator is None:
        return None
    std = model.std if isinstance(model, GaussianNoise) else None
    if not isinstance(std, float):
        return " ".join(repr(model).split())  # a tensor is shown in several lines
    if operator.units == "image":
        range = (-1.0, 1.0)
    if operator.units == "own" or range is None:
        return f"{std:.4g} in the units of y"
    low, high = range
    return f"{std:.4g} in [{low:g}, {high:g}] = {std / (high - low):.4g} of full scale"


def _describe_grid(levels: Sequence[Level]) -> str:
    first, last = levels[0].ratio, levels[-1].ratio
    there_and_back = f" up to {max(level.ratio for level in levels):.4g}" if first == last else ""
    return f"{len(levels) - 1} steps, sigma/alpha from {first:.4g}{there_and_back} to {last:.4g}"


def _versions() -> dict[str, str]:
    from posterior import __version__

    return {
        "posterior": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
