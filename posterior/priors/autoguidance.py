"""Autoguidance: a prior led away from a weaker one of the same images (Karras et al. 2024).

Both are asked about the same x_t at the same level, under the same condition if there is one:

    D = D_weak + w (D_strong - D_weak)                                (eq. 3; w = 1: strong)

The weak one is smaller or less trained; what it gets wrong, the strong one gets wrong less, and
guidance goes on in that direction. Unlike guidance by "no condition" it works without conditions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Denoised
from posterior.priors.base import Prior


class Autoguided(Prior):
    """The guided prior.

    Args:
        strong: the prior to follow; codec, range and sizes are its own.
        weak: of the same x and noise levels.
        scale: w >= 0, 1 = the strong one alone.
    """

    def __init__(self, strong: Prior, weak: Prior, scale: float = 2.0) -> None:
        super().__init__()
        for prior in (strong, weak):
            if not isinstance(prior, Prior):
                raise InputTypeError(f"expected a Prior, not {type(prior).__name__}")
        if strong.schedule != weak.schedule:
            raise CapabilityError(
                f"the priors have other noise levels: {strong.schedule} and {weak.schedule}"
            )
        if not 0 <= scale < math.inf:
            raise InputError(f"scale must be >= 0 (1 = no guidance), got {scale}")
        counts = {p.measurements for p in (strong, weak)} - {None}
        if len(counts) > 1:
            raise InputError(f"the priors have conditions for {sorted(map(str, counts))} rows")
        self.strong, self.weak, self.scale = strong, weak, float(scale)
        self.schedule, self.range, self.codec = strong.schedule, strong.range, strong.codec
        self.event_shape, self.default_shape = strong.event_shape, strong.default_shape
        self.device, self.dtype = strong.device, strong.dtype
        self.rows = weak.rows if strong.rows is None else strong.rows
        self.evaluations = strong.evaluations + weak.evaluations
        self.graph_bytes = strong.graph_bytes + weak.graph_bytes

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Denoised:
        """D_weak + w (D_strong - D_weak); a learned variance is that of the strong prior."""
        strong, weak = self.strong._denoised(x_t, t), self.weak._denoised(x_t, t)
        x0 = weak.x0 + self.scale * (strong.x0 - weak.x0)
        return Denoised(x0, strong.variance_share)

    def given(self, condition: object, negative: object = None, scale: float = 1.0) -> Autoguided:
        """Both priors under the condition."""
        if negative is not None or scale != 1:
            raise InputError("the prior is guided by its weak one: no negative= and no scale=")
        return Autoguided(self.strong.given(condition), self.weak.given(condition), self.scale)

    def take(self, index: Sequence[int]) -> Autoguided:
        """The conditions of the measurements `index`."""
        if self.measurements is None:
            return self
        other = Autoguided(self.strong.take(index), self.weak.take(index), self.scale)
        other.counts = self.counts
        return other

    def to(self, device: str | torch.device) -> Autoguided:
        """Move both."""
        self.strong, self.weak = self.strong.to(device), self.weak.to(device)
        self.device = self.strong.device
        return self

    def check_event(self, event: tuple[int, ...]) -> None:
        """A shape that both make."""
        self.strong.check_event(event)
        self.weak.check_event(event)

    def evaluations_at(self, t: float | Tensor) -> int:
        """Those of both."""
        return self.strong.evaluations_at(t) + self.weak.evaluations_at(t)

    @property
    def needs_signal(self) -> bool:
        """Whether one of them divides by alpha."""
        return self.strong.needs_signal or self.weak.needs_signal

    @property
    def measurements(self) -> int | None:
        """How many measurements there are conditions for; None for any number."""
        return self.strong.measurements or self.weak.measurements

    def state(self) -> object:
        """What defines the prior."""
        return {"strong": self.strong, "weak": self.weak, "scale": self.scale}

    def __repr__(self) -> str:
        return f"Autoguided({self.strong!r}, {self.weak!r}, {self.scale:g})"
