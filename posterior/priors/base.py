"""The prior: what images look like, as a denoiser at every noise level.

A prior writes `denoise`. The base class adds the estimate in every parametrisation, vector-Jacobian
products, counting, and evaluation in padded blocks of `rows` so that a row's result does not depend
on how many rows come with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posterior.devices import as_device
from posterior.errors import CapabilityError, InputError
from posterior.estimates import Denoised, Estimate, Pull
from posterior.schedules import Schedule


@dataclass
class Counts:
    """Network evaluations and backward passes so far, each counted once per row."""

    nfe: int = 0
    vjp: int = 0


class Codec(Protocol):
    """The autoencoder of a latent model."""

    @property
    def decoder(self) -> object:
        """The decoder as a measurement operator, latent -> image."""

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) -> latents."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latents -> images (B, C, H, W)."""


class Prior(ABC):
    """p(x0), seen through E[x0 | x_t].

    Attributes:
        schedule: the noise levels that the prior knows.
        event_shape: shape of one x0, or None for any.
        default_shape: shape of one draw where neither a measurement nor the caller says it.
        range: the interval that x0 lives in, or None for unbounded.
        rows: the fixed batch of one evaluation of `denoise`; None for a denoiser whose rows do not
            depend on the batch in the first place.
        evaluations: network evaluations in one call of `denoise` (2 for classifier-free guidance),
            at most.
        graph_bytes: memory per element of x that a vector-Jacobian product holds, for chunking.
    """

    schedule: Schedule
    event_shape: tuple[int, ...] | None = None
    default_shape: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    codec: Codec | None = None
    rows: int | None = 1
    evaluations: int = 1
    graph_bytes: int = 2000
    counts: Counts

    @abstractmethod
    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor | Denoised:
        """E[x0 | x_t] for x_t (B, *event) at t, a number or one per row (B,) float64.

        Differentiable in x_t. Called with `rows` rows where that is set.
        """

    def __init__(self) -> None:
        self.counts = Counts()

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The estimate at (x_t, t); without gradients."""
        with torch.no_grad():
            blocks = [part._denoised(x, time) for part, x, time in self._blocks(x_t, t)]
        self.counts.nfe += self.evaluations_at(t) * x_t.shape[0]
        return self._estimate(x_t, t, blocks)

    def vjp(self, x_t: Tensor, t: float | Tensor) -> tuple[Estimate, Pull]:
        """The estimate and pull(u) = u^T dx0/dx_t, which may be called many times.

        The graph of the network lives as long as `pull` does.
        """
        inputs, outputs = [], []
        with torch.enable_grad():
            for part, x, time in self._blocks(x_t.detach(), t):
                leaf = x.detach().requires_grad_()
                inputs.append(leaf)
                outputs.append(part._denoised(leaf, time))
        self.counts.nfe += self.evaluations_at(t) * x_t.shape[0]
        estimate = self._estimate(x_t, t, [_detached(out) for out in outputs])

        def pull(u: Tensor) -> Tensor:
            self.counts.vjp += self.evaluations_at(t) * x_t.shape[0]
            pulled, start = [], 0
            for leaf, out in zip(inputs, outputs, strict=True):
                block = u[start : start + leaf.shape[0]].to(out.x0.dtype)
                start += block.shape[0]
                grad = torch.autograd.grad(
                    out.x0, leaf, _padded(block, leaf.shape[0]), retain_graph=True
                )[0]
                pulled.append(grad[: block.shape[0]])
            return torch.cat(pulled)

        return estimate, pull

    def given(self, condition: object, negative: object = None, scale: float = 1.0) -> Prior:
        """The prior conditioned on a prompt, a label or a component: same weights, cheap."""
        raise CapabilityError(f"{type(self).__name__} cannot be conditioned")

    def to(self, device: str | torch.device) -> Prior:
        """The prior on a device; networks are moved in place, as in torch."""
        target = as_device(device)
        if target.type == self.device.type and target.index in (None, self.device.index):
            return self
        raise CapabilityError(
            f"{type(self).__name__} stays on {self.device}: make it of tensors on {target}"
        )

    def take(self, index: Sequence[int]) -> Prior:
        """The prior with its per-measurement conditions selected; default: nothing to select."""
        return self

    def check_event(self, event: tuple[int, ...]) -> None:
        """Raise `InputError` if the prior cannot make an x of that shape."""
        if self.event_shape is not None and event != self.event_shape:
            raise InputError(f"the prior makes x of shape {self.event_shape}, not {event}")

    def evaluations_at(self, t: float | Tensor) -> int:
        """Network evaluations of a row at time t: `evaluations`, or fewer where less is needed."""
        return self.evaluations

    @property
    def needs_signal(self) -> bool:
        """Whether `denoise` cannot answer where alpha = 0, because it divides by alpha."""
        return False

    @property
    def measurements(self) -> int | None:
        """How many measurements the prior has conditions for; None for any number."""
        return None

    def state(self) -> object:
        """What defines the prior, for content hashes: plain values, tensors, containers."""
        return {k: v for k, v in vars(self).items() if k != "counts"}

    def _denoised(self, x: Tensor, t: float | Tensor) -> Denoised:
        out = self.denoise(x, t)
        return out if isinstance(out, Denoised) else Denoised(out)

    def _blocks(self, x: Tensor, t: float | Tensor) -> list[tuple[Prior, Tensor, float | Tensor]]:
        """The rows in blocks of the network's batch, each with the prior of its conditions."""
        if x.shape[0] == 0 or (self.event_shape is not None and x.shape[1:] != self.event_shape):
            raise InputError(
                f"the prior takes x_t of shape (B, {', '.join(map(str, self.event_shape or '*'))}),"
                f" got {tuple(x.shape)}"
            )
        self.check_event(tuple(x.shape[1:]))
        if self.rows is None:
            return [(self, x, t)]
        if self.measurements not in (None, x.shape[0]):
            raise InputError(
                f"the prior has conditions for {self.measurements} rows, x_t has {x.shape[0]}:"
                " select those of the rows with take"
            )
        size = self.rows
        per_row = isinstance(t, Tensor) and t.ndim > 0
        return [
            (
                self._of_block(k, x.shape[0]),
                _padded(x[k : k + size], size),
                _padded(t[k : k + size], size) if isinstance(t, Tensor) and per_row else t,
            )
            for k in range(0, x.shape[0], size)
        ]

    def _of_block(self, first: int, count: int) -> Prior:
        """The prior with the conditions of the block that begins at row `first` of `count`."""
        if self.measurements is None or self.rows is None:
            return self
        return self.take([min(k, count - 1) for k in range(first, first + self.rows)])

    def _estimate(self, x_t: Tensor, t: float | Tensor, blocks: list[Denoised]) -> Estimate:
        count = x_t.shape[0]
        x0, share, renoise = (
            None if parts[0] is None else torch.cat(parts)[:count].to(x_t.dtype)
            for parts in map(list, zip(*blocks, strict=True))
        )
        assert x0 is not None
        return Estimate(x_t, t, self.schedule, x0, share, renoise)


def _padded(x: Tensor, size: int) -> Tensor:
    """`x` (k, ...) with its last row repeated up to `size` rows."""
    short = size - x.shape[0]
    return torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short > 0 else x


def _detached(out: Denoised) -> Denoised:
    return Denoised(
        out.x0.detach(),
        None if out.variance_share is None else out.variance_share.detach(),
        None if out.eps_renoise is None else out.eps_renoise.detach(),
    )
