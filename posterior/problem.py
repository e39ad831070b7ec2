"""What is known about x: a prior, and y = operator(x) + noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posterior.errors import CapabilityError
from posterior.operators.base import Operator
from posterior.operators.noise import NoiseModel
from posterior.priors.base import Prior


@dataclass(frozen=True)
class Problem:
    """One row of everything for each row of the state.

    Attributes:
        prior: what x looks like.
        operator: how x was measured; None for unconditional sampling.
        y: the measurements (B, *range).
        noise_model: the law of y given operator(x).
        source: the image or latent that an edit starts from, (B, *event).
        source_prior: what the source looks like, where an edit asks: the same network under the
            source's prompt.
    """

    prior: Prior
    operator: Operator | None = None
    y: Tensor | None = None
    noise_model: NoiseModel | None = None
    source: Tensor | None = None
    source_prior: Prior | None = None

    def take(self, index: Sequence[int]) -> Problem:
        """The problem whose row k is this one's row index[k]."""
        rows = torch.as_tensor(index)
        return replace(
            self,
            prior=self.prior.take(index),
            operator=self.operator and self.operator.take(index),
            y=None if self.y is None else self.y[rows.to(self.y.device)],
            noise_model=self.noise_model and self.noise_model.take(index),
            source=None if self.source is None else self.source[rows.to(self.source.device)],
            source_prior=self.source_prior and self.source_prior.take(index),
        )

    def measured(self) -> tuple[Operator, Tensor, NoiseModel]:
        """The operator, y and noise of a problem that has them."""
        if self.operator is None or self.y is None or self.noise_model is None:
            raise CapabilityError("this method needs a measurement: give operator, y and noise")
        return self.operator, self.y, self.noise_model
