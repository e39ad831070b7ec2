"""The law of the noise in y = A(x) + noise, in the units of y."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class NoiseModel(ABC):
    """The law of y given the clean measurement A(x)."""

    @abstractmethod
    def sample(self, y_clean: Tensor, seed: int) -> Tensor:
        """A noisy measurement, a pure function of (y_clean, seed); row b has its own stream."""

    @abstractmethod
    def log_prob(self, y: Tensor, y_clean: Tensor) -> Tensor:
        """Log density of y given y_clean, summed over the event: (B,)."""

    def take(self, index: Sequence[int]) -> NoiseModel:
        """The noise of the measurements `index`."""
        return self
