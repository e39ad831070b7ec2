"""What a network is told besides x_t: conditions by row, and classifier-free guidance.

Ho & Salimans 2022: with the outputs f(x_t, c) under a condition and f(x_t, n) under a negative one
(usually "nothing"), the guided output is

    f = f(x_t, n) + w (f(x_t, c) - f(x_t, n))       w = `scale`, 1 = plain; costs 2 evaluations

CFG++ (Chung et al. 2024) takes x0 from f, with w in [0, 1], but re-noises with the eps of
f(x_t, n): `Estimate.eps_renoise`. Large scales overexpose, against which (Lin et al. 2023, eq. 15
and 16) f is brought to the standard deviation, over one row, of the conditional output, in part:

    f' = phi f std(f(x_t, c)) / std(f) + (1 - phi) f                                phi = `rescale`

and guidance only helps at some noise levels (Kynkaanniemi et al. 2024, eq. 6): for sigma / alpha in
(low, high] = `interval` the output is f, elsewhere f(x_t, c) at one evaluation.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posterior import rows as by_row
from posterior.devices import share
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Denoised, Estimate
from posterior.priors.base import Counts
from posterior.priors.network import NetworkPrior

REMEMBERED = 16
"""How many encoded prompts are kept; 512 tokens of 4096 numbers, the longest, are 8 MB."""

Inputs = Mapping[str, Tensor]
"""Named inputs of a network, rows first."""


@dataclass(frozen=True)
class Branch:
    """What one evaluation of the network is told.

    Attributes:
        inputs: named tensors with rows first: one for all, or one per measurement.
        shared: one row belongs to every measurement.
    """

    inputs: Inputs
    shared: bool

    @property
    def count(self) -> int | None:
        """How many measurements it has rows for; None for any number."""
        return None if self.shared else _rows(self.inputs)

    def take(self, index: Sequence[int]) -> Branch:
        """The rows of the measurements `index`."""
        if self.shared:
            return self
        rows = {k: v[torch.as_tensor(index, device=v.device)] for k, v in self.inputs.items()}
        return Branch(rows, shared=False)

    def to(self, device: torch.device) -> Branch:
        """The same inputs on a device."""
        return replace(self, inputs={k: v.to(device) for k, v in self.inputs.items()})

    def expanded(self, rows: int) -> dict[str, Tensor]:
        """The inputs of so many rows, laid out alike whether they are shared or not."""
        return {k: v.expand(rows, *v.shape[1:]).contiguous() for k, v in self.inputs.items()}


@dataclass(frozen=True)
class Condition:
    """A condition and how strongly it is followed.

    Attributes:
        positive: what x should be.
        negative: what it is guided away from; None where one evaluation is enough.
        scale: the guidance scale w.
        plus: CFG++.
        rescale: part to which the guided output takes the spread of the conditional one.
        interval: of sigma / alpha, (low, high], where guidance is on; None for everywhere.
        text: how the condition reads in a report; "" of the empty one of a prior that was given
            none.
    """

    positive: Branch
    negative: Branch | None = None
    scale: float = 1.0
    plus: bool = False
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    text: str = ""

    @property
    def branches(self) -> list[Branch]:
        """What to evaluate, negative first."""
        return [self.positive] if self.negative is None else [self.negative, self.positive]

    @property
    def count(self) -> int | None:
        """How many measurements there are conditions for; None for any number."""
        counts = [branch.count for branch in self.branches if branch.count is not None]
        return counts[0] if counts else None

    def take(self, index: Sequence[int]) -> Condition:
        """The condition of the measurements `index`."""
        negative = None if self.negative is None else self.negative.take(index)
        return replace(self, positive=self.positive.take(index), negative=negative)

    def to(self, device: torch.device) -> Condition:
        """The same condition on a device."""
        negative = None if self.negative is None else self.negative.to(device)
        return replace(self, positive=self.positive.to(device), negative=negative)

    def guided(self, negative: Tensor, positive: Tensor) -> Tensor:
        """The output that follows from those of both branches, (rows, *event)."""
        output = negative + self.scale * (positive - negative)
        if not self.rescale:
            return output
        ratio = by_row.expand(_spread(positive) / _spread(output), output)
        return (self.rescale * ratio + (1 - self.rescale)) * output

    def applies(self, ratio: float | Tensor) -> bool | Tensor:
        """Whether guidance is on at that sigma / alpha, a number or (rows,)."""
        if self.interval is None:
            return True
        low, high = self.interval
        return (ratio > low) & (ratio <= high)


class ConditionedPrior(NetworkPrior):
    """A network that is told a condition: a prompt, embeddings, a label.

    A subclass writes `encode` (a condition -> named inputs) and `_told` (the network's call).
    Without `given`, the prior is that of `encode(None)`, the empty condition.

    Attributes:
        one_batch: evaluate both branches in one batch of 2 `rows`, or one after the other in half
            the memory. None: in one where it fits what a call may take (`devices.share`) with its
            gradient, by `graph_bytes`. The two differ by rounding, so the choice depends on nothing
            but prior, size and machine.
        embeds_scale: the network takes the scale as an input (distilled guidance): one evaluation,
            and no negative condition.
    """

    one_batch: bool | None = None
    embeds_scale: bool = False
    _condition: Condition | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._memory: dict[object, Inputs] = {}  # shared with the priors that `given` makes

    @abstractmethod
    def encode(self, condition: object) -> Inputs:
        """The inputs (1, ...) of one condition; those of the empty one for None.

        Embeddings may have a row for each measurement, (M, ...).
        """

    @abstractmethod
    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        """The network on x (rows, *event), its time (rows,) and inputs (rows, ...)."""

    def given(
        self,
        condition: object,
        negative: object = None,
        scale: float = 1.0,
        *,
        plus: bool = False,
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
    ) -> ConditionedPrior:
        """The prior under a condition: the same weights; encoders run here, once.

        The last prompts (`REMEMBERED`) are not encoded again by this prior or those made of it.

        Args:
            condition: what the network takes (see the class), or a list of one per measurement.
            negative: what to guide away from, likewise; default: the empty condition.
            scale: classifier-free guidance as in diffusers, 1 = none.
            plus: CFG++: follow the guided x0, re-noise without guidance; scale in [0, 1].
            rescale: in [0, 1], `guidance_rescale` of diffusers: against overexposure.
            interval: guide only where low < sigma / alpha <= high; elsewhere one evaluation.
        """
        scale = self._check_scale(scale, plus)
        if self.embeds_scale and (negative is not None or plus or rescale or interval):
            raise CapabilityError(
                f"{self!r} has its guidance built in: give scale=, no negative= and no plus=,"
                " rescale= or interval="
            )
        guided = plus or (scale != 1 and not self.embeds_scale)
        interval = _check_ways(guided, plus, rescale, interval)
        if negative is not None and not guided:
            raise InputError("negative= has no effect at scale=1: give a larger scale")
        positive = self._branch(condition)
        negatives = self._branch(negative) if guided else None
        if negatives is not None:
            _check_alike(positive, negatives)
        other = self._copy()
        text = repr(condition) if not isinstance(condition, Tensor) else "embeddings"
        other._condition = Condition(
            positive, negatives, scale, plus, float(rescale), interval, text
        )
        other.evaluations = len(other._condition.branches)
        other.graph_bytes = self.graph_bytes // self.evaluations * other.evaluations
        other.counts = Counts()
        return other

    def take(self, index: Sequence[int]) -> ConditionedPrior:
        """The conditions of the measurements `index`; the prior itself where one is for all."""
        if self._condition is None or self._condition.count is None:
            return self
        other = self._copy()
        other._condition = self._condition.take(index)
        return other

    def to(self, device: str | torch.device) -> ConditionedPrior:
        """Move the network, in place, and the condition; return the prior."""
        super().to(device)
        self._memory.clear()
        if self._condition is not None:
            self._condition = self._condition.to(self.device)
        return self

    @property
    def conditioned(self) -> bool:
        """Whether it was given a condition."""
        return self._condition is not None and self._condition.text != ""

    @property
    def measurements(self) -> int | None:
        """How many measurements there are conditions for; None for any number."""
        return None if self._condition is None else self._condition.count

    def evaluations_at(self, t: float | Tensor) -> int:
        """One evaluation at a time without guidance; for times by row the most there can be."""
        return 1 if self._unguided(t) else self.evaluations

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Denoised:
        """E[x0 | x_t] under the condition."""
        condition = self._condition or self._empty()
        if self._unguided(t):
            condition = replace(condition, negative=None)
        x, time = self._inputs(x_t, t)
        outputs = self._outputs(x, time, condition)
        if len(outputs) == 1:
            return self._read(outputs[0], x_t, t)
        negative, positive = outputs
        if self.learned_variance:  # guidance is for the mean; the variance is the condition's own
            mean, variance = self._halves(positive, x_t)
            mean = condition.guided(self._halves(negative, x_t)[0], mean)
            output = torch.cat([mean, variance], 1)
        else:
            output = condition.guided(negative, positive)
        if condition.interval is not None and isinstance(t, Tensor) and t.ndim:
            alpha, sigma = self.schedule(t)
            applies = torch.as_tensor(condition.applies(sigma / alpha), device=output.device)
            output = by_row.where(applies, output, positive)
        guided = self._read(output, x_t, t)
        if not condition.plus:
            return guided
        unguided = Estimate(x_t, t, self.schedule, self._read(negative, x_t, t).x0)
        return guided._replace(eps_renoise=unguided.eps)

    def state(self) -> object:
        """What defines the prior: weights, how they are read, and the condition."""
        network = NetworkPrior.state(self)
        assert isinstance(network, dict)
        condition = self._condition or self._empty()
        return {**network, "condition": condition, "one_batch": self.one_batch}

    def _outputs(self, x: Tensor, time: Tensor, condition: Condition) -> list[Tensor]:
        """The network's output under every branch."""
        told = [branch.expanded(x.shape[0]) for branch in condition.branches]
        if len(told) == 1 or not self._together(x):
            return [self._run(x, time, inputs, condition.scale) for inputs in told]
        both = {k: torch.cat([inputs[k] for inputs in told]) for k in told[0]}
        out = self._run(torch.cat([x, x]), torch.cat([time, time]), both, condition.scale)
        return list(out.chunk(2))

    def _together(self, x: Tensor) -> bool:
        """Whether both branches of a block go through the network in one batch."""
        if self.one_batch is not None:
            return self.one_batch
        return x.numel() * self.graph_bytes <= share(x.device)

    def _unguided(self, t: float | Tensor) -> bool:
        """Whether the time, one for all rows, is outside the interval of guidance."""
        condition = self._condition
        if condition is None or condition.interval is None or (isinstance(t, Tensor) and t.ndim):
            return False
        alpha, sigma = self.schedule(float(t))
        return not condition.applies(sigma / alpha if alpha else math.inf)

    def _call(self, x: Tensor, time: Tensor, *told: Any) -> Tensor:
        return self._told(x, time, *told)

    def _branch(self, condition: object) -> Branch:
        many = _listed(condition)
        if many is None:
            inputs = self._recalled(condition)
            return Branch(inputs, shared=_rows(inputs) == 1)
        if not many:
            raise InputError("no condition: give one per measurement")
        encoded: dict[object, Inputs] = {}  # a prompt by itself, so that none depends on its list
        parts = []
        for entry in many:
            key = entry if isinstance(entry, (str, int)) else id(entry)
            encoded[key] = encoded.get(key) or self._recalled(entry)
            parts.append(encoded[key])
            if _rows(encoded[key]) != 1:
                raise InputError("a list of conditions has one measurement per entry")
        return Branch({k: torch.cat([part[k] for part in parts]) for k in parts[0]}, shared=False)

    def _recalled(self, condition: object) -> Inputs:
        """`encode`, of prompts from memory where the encoders are as they were."""
        if not (condition is None or isinstance(condition, str)):
            return self.encode(condition)
        key = condition, self._encoders()
        inputs = self._memory.pop(key, None)
        if inputs is None:
            with torch.inference_mode(False):  # a graph may need them later
                inputs = self.encode(condition)
        self._memory[key] = inputs  # the latest one last
        for old in list(self._memory)[:-REMEMBERED]:
            del self._memory[old]
        return inputs

    def _encoders(self) -> tuple[object, ...]:
        """A mark of the state of what encodes prompts: another one where it has changed."""
        return ()

    def _empty(self) -> Condition:
        """The condition of a prior that was given none, encoded once."""
        self._condition = Condition(self._branch(None))
        return self._condition

    def _copy(self) -> ConditionedPrior:
        return copy.copy(self)

    def _check_scale(self, scale: object, plus: bool) -> float:
        if isinstance(scale, (bool, str)) or not hasattr(scale, "__float__"):
            raise InputTypeError(f"scale must be a number, not {type(scale).__name__}")
        number = float(scale)
        if not math.isfinite(number) or number < 0:
            raise InputError(f"scale must be >= 0 (1 = no guidance), got {number}")
        if plus and number > 1:
            raise InputError(f"the scale of CFG++ is in [0, 1], got {number}")
        return number


def _check_ways(
    guided: bool, plus: bool, rescale: float, interval: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The interval of guidance, after a check of it and of the other ways to guide."""
    if isinstance(rescale, bool) or not isinstance(rescale, (int, float)):
        raise InputTypeError(f"rescale must be a number, not {type(rescale).__name__}")
    if not 0 <= rescale <= 1:
        raise InputError(f"rescale must be in [0, 1], got {rescale}")
    if interval is not None:
        if not isinstance(interval, (tuple, list)) or len(interval) != 2:
            raise InputTypeError(f"interval must be (low, high) of sigma / alpha, got {interval!r}")
        interval = (float(interval[0]), float(interval[1]))
        if not 0 <= interval[0] < interval[1]:
            raise InputError(f"interval must have 0 <= low < high, got {interval}")
    if (rescale or interval) and (plus or not guided):
        why = "are not for CFG++" if plus else "have no effect at scale=1: give a larger scale"
        raise InputError(f"rescale= and interval= {why}")
    return interval


def _spread(x: Tensor) -> Tensor:
    """The standard deviation over each row times the root of its size, (rows,)."""
    mean = by_row.expand(by_row.total(x) / x[0].numel(), x)
    return by_row.norm(x - mean)


def _rows(inputs: Inputs) -> int:
    """The number of rows; 1 where there are no inputs at all."""
    return next((v.shape[0] for v in inputs.values()), 1)


def _listed(condition: object) -> list[object] | None:
    """The entries of a condition that has one per measurement, else None."""
    if isinstance(condition, Tensor):
        labels = condition.ndim == 1 and not condition.is_floating_point()
        return [int(entry) for entry in condition] if labels else None
    return list(condition) if isinstance(condition, (list, tuple)) else None


def _check_alike(a: Branch, b: Branch) -> None:
    """Both branches go through the network in the same shapes."""
    for name in a.inputs:
        if a.inputs[name].shape[1:] != b.inputs[name].shape[1:]:
            raise InputError(
                f"{name} of the condition is {tuple(a.inputs[name].shape[1:])}, that of the"
                f" negative one {tuple(b.inputs[name].shape[1:])}: they must be alike"
            )
    if None not in (a.count, b.count) and a.count != b.count:
        raise InputError(f"{a.count} conditions and {b.count} negative ones: give as many")
