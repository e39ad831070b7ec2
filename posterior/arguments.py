"""The arguments of a run, checked before any network is called."""

from __future__ import annotations

import copy
import operator as operator_
from collections.abc import Sequence

import torch
from torch import Tensor

from posterior import grids
from posterior.errors import InputError, InputTypeError, PosteriorError
from posterior.guidance.base import Guidance
from posterior.operators.base import Operator
from posterior.operators.noise import NoiseModel, as_noise_model
from posterior.priors.base import Prior
from posterior.problem import Problem
from posterior.schedules import Level


def build_problem(
    prior: Prior,
    operator: Operator | None,
    y: Tensor | None,
    noise: NoiseModel | float | Tensor | None,
    source: Tensor | None,
    shape: Sequence[int] | None,
    source_prior: Prior | None = None,
) -> tuple[Problem, tuple[int, ...]]:
    """The problem and the shape of one x, checked as far as no network is needed."""
    for what, given in (("prior", prior), ("source_prior", source_prior)):
        if not isinstance(given, Prior) and not (what == "source_prior" and given is None):
            raise InputTypeError(
                f"{what} must be a Prior (posterior.load_prior, posterior.priors.*), not"
                f" {type(given).__name__}"
            )
    for name, value in (("y", y), ("source", source)):
        if value is not None:
            check_tensor(name, value, prior)
    if source_prior is not None:
        source_prior = _beside(prior, source_prior, source)
    if source is not None and source.is_complex():
        raise InputTypeError("source must be real: x is (operators.ComplexFromChannels)")
    source = None if source is None else source.detach()
    if (operator is None) != (y is None):
        raise InputError("give operator and y together, or neither for unconditional draws")
    if operator is None or y is None:
        if noise is not None:
            raise InputError("noise= belongs to a measurement: give operator and y with it")
        event = _event(prior, None, None, source, shape)
        if source is not None:
            _check_conditions(prior, source.shape[0])
        return Problem(prior, source=source, source_prior=source_prior), event
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
    _check_conditions(prior, y.shape[0])
    expected, is_complex = _range(operator, y, event)
    if y.is_complex() and not is_complex:
        raise InputTypeError(f"y is complex, but {operator!r} gives real numbers")
    if is_complex and operator.differentiable and not y.is_complex():
        raise InputTypeError(f"y is real, but {operator!r} gives complex numbers: give y + 0j")
    if expected != tuple(y.shape):
        raise InputError(
            f"y has shape {tuple(y.shape)}, but {operator!r} gives {tuple(expected)} for x of"
            f" shape {(y.shape[0], *event)}"
        )
    model.check(y)
    operator = operator.bind(event)
    y = operator.restrict(y.detach())
    return Problem(prior, operator, y, model, source, source_prior), event


def _beside(prior: Prior, source_prior: Prior, source: Tensor | None) -> Prior:
    """The prior of the source, checked against that of the target; its calls count as theirs."""
    if source is None:
        raise InputError("source_prior= says what the source shows: give source= with it")
    if repr(source_prior.schedule) != repr(prior.schedule):
        raise InputError(
            f"prior has the schedule {prior.schedule}, source_prior {source_prior.schedule}: they"
            " must be one model under two conditions, prior.given(...)"
        )
    _check_conditions(source_prior, source.shape[0])
    counted = copy.copy(source_prior)
    counted.counts = prior.counts
    return counted


def _check_conditions(prior: Prior, measurements: int) -> None:
    if prior.measurements not in (None, measurements):
        raise InputError(
            f"the prior has conditions for {prior.measurements} measurements, there are"
            f" {measurements}"
        )


def _range(operator: Operator, y: Tensor, event: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    """The shape of A(x) for as many x as there are measurements, and whether it is complex.

    A is tried where the run will use it: that shows parameters for another number of measurements
    or on another device. A black box may be slow, and says its shape by itself.
    """
    shape = (y.shape[0], *event)
    if not operator.differentiable:
        return tuple(operator.range_shape(shape)), True
    try:
        with torch.no_grad():
            out = operator(torch.zeros(shape, dtype=y.real.dtype, device=y.device))
            return tuple(out.shape), out.is_complex()
    except PosteriorError:
        raise
    except Exception as error:
        raise InputError(f"{operator!r} fails on x of shape {shape}: {error}") from error


def _event(
    prior: Prior,
    operator: Operator | None,
    y: Tensor | None,
    source: Tensor | None,
    shape: Sequence[int] | None,
) -> tuple[int, ...]:
    """The shape of one x, from whoever knows it."""
    if shape is not None:
        if not isinstance(shape, Sequence):
            raise InputTypeError(f"shape is that of one draw, e.g. (3, 64, 64), not {shape!r}")
        event = tuple(count("shape", s, 1) for s in shape)
    elif source is not None:
        event = tuple(source.shape[1:])
    elif prior.event_shape is not None:
        event = prior.event_shape
    elif operator is not None and y is not None:
        event = tuple(operator.domain_shape(tuple(y.shape)))[1:]
    elif prior.default_shape is not None:
        event = prior.default_shape
    else:
        raise InputError("give shape=, the shape of one draw, e.g. (3, 64, 64)")
    prior.check_event(event)
    if source is not None and tuple(source.shape[1:]) != event:
        raise InputError(f"source has shape {tuple(source.shape)}, but x is (B, *{event})")
    if source is not None and y is not None and source.shape[0] != y.shape[0]:
        raise InputError(f"{source.shape[0]} sources for {y.shape[0]} measurements")
    return event


def check_tensor(name: str, value: Tensor, prior: Prior) -> None:
    """A finite floating point or complex tensor (B, *event) on the prior's device."""
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


def count(name: str, value: object, least: int) -> int:
    """An integer of at least `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator_.index(value)  # type: ignore[arg-type]  # in try
    except TypeError:
        raise InputTypeError(f"{name} must be an integer, not {value!r}") from None
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {number}")
    return number


def choose_levels(
    guidance: Guidance,
    prior: Prior,
    steps: int | None,
    grid: str | Sequence[tuple[float, float, float]] | None,
) -> list[Level]:
    """The levels that were given, or those of the named or the method's own grid."""
    if grid is not None and guidance.climbs:
        raise InputError(
            f"{type(guidance).__name__} goes up to noise and down again, grid= only down: choose"
            " the levels by its own spacing= and strength="
        )
    if grid is not None and not isinstance(grid, str):
        levels = grids.check(grid, prior.schedule)
        if steps is not None and steps != len(levels) - 1:
            raise InputError(f"steps={steps}, but the grid that was given has {len(levels) - 1}")
        return levels
    moves = guidance.default_steps if steps is None else count("steps", steps, 1)
    if grid is not None:
        levels = guidance.visits(grids.named(grid, prior.schedule, moves))
    else:
        levels = guidance.grid(prior.schedule, moves)
    if levels[0].alpha == 0 and prior.needs_signal:
        levels = grids.with_signal(levels, prior.schedule)
    return levels


def state_dtype(problem: Problem) -> torch.dtype:
    """Float64 where the measurement (or else the source, or the prior) is, float32 otherwise."""
    given = problem.y if problem.y is not None else problem.source
    dtype = problem.prior.dtype if given is None else given.real.dtype
    return dtype if dtype == torch.float64 else torch.float32
