"""A prior of volumes from a prior of their slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from posterior import volumes
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Denoised, Estimate, Pull
from posterior.operators.base import check_count
from posterior.priors.base import Prior


class Slices(Prior):
    """Volumes whose slices are independent draws of another prior: p(x0) = prod_z p(slice z).

    >>> Slices(load_prior("photo"))                  # x (B, 3, D, H, W)

    The slices of all volumes are the rows of that prior, in its own blocks: a slice's estimate is
    the one that it has alone, bit for bit. How slices follow each other is not in this prior;
    `guidance.SliceTV` adds it.

    Args:
        prior: of one slice. Latent priors are refused: their codec knows images only.
        depth: how many slices a volume has; None for any number, then the operator or `shape=`
            says it.
        axis: that of the slices in the event, see `posterior.volumes`.

    An evaluation of a volume counts once: NFE is what it is for one slice, as in the literature on
    volumes. The counts of `prior` go on too, and count slices. A condition per measurement is one
    per volume.
    """

    rows = None  # the blocks are those of the prior of slices

    def __init__(self, prior: Prior, depth: int | None = None, axis: int = 1) -> None:
        super().__init__()
        if not isinstance(prior, Prior):
            raise InputTypeError(f"prior must be a Prior, not {type(prior).__name__}")
        if prior.codec is not None:
            raise CapabilityError(f"{prior!r} is a latent prior: its codec has no volumes")
        self.prior = prior
        self.axis = volumes.check_axis(axis)
        self.depth = None if depth is None else check_count("depth", depth, 1)
        shape = prior.event_shape
        if shape is not None and self.axis > len(shape):
            raise InputError(f"axis={axis} for slices of shape {shape}: at most {len(shape)}")
        if shape is not None and self.depth is not None:
            self.event_shape = volumes.volume_shape(shape, self.depth, self.axis)
        if prior.default_shape is not None and self.depth is not None:
            self.default_shape = volumes.volume_shape(prior.default_shape, self.depth, self.axis)
        self.schedule, self.range = prior.schedule, prior.range
        self.device, self.dtype = prior.device, prior.dtype
        self.evaluations, self.graph_bytes = prior.evaluations, prior.graph_bytes

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The estimate at (x_t, t); without gradients."""
        prior, flat, times = self._rows_of(x_t, t)
        estimate = self._volumes_of(prior(flat, times), x_t, t)
        self.counts.nfe += self.evaluations_at(t) * x_t.shape[0]
        return estimate

    def vjp(self, x_t: Tensor, t: float | Tensor) -> tuple[Estimate, Pull]:
        """The estimate and pull(u) = u^T dx0/dx_t, slice by slice."""
        prior, flat, times = self._rows_of(x_t, t)
        estimate, pull_slices = prior.vjp(flat, times)
        self.counts.nfe += self.evaluations_at(t) * x_t.shape[0]

        def pull(u: Tensor) -> Tensor:
            self.counts.vjp += self.evaluations_at(t) * x_t.shape[0]
            return self._stacked(pull_slices(volumes.slices(u, self.axis).flatten(0, 1)), x_t)

        return self._volumes_of(estimate, x_t, t), pull

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Denoised:
        """E[x0 | x_t], all slices in one block; calls and `vjp` keep to the prior's own blocks."""
        prior, flat, times = self._rows_of(x_t, t)
        out = prior.denoise(flat, times)
        parts = out if isinstance(out, Denoised) else Denoised(out)
        x0, *others = (None if part is None else self._stacked(part, x_t) for part in parts)
        assert x0 is not None
        return Denoised(x0, *others)

    def given(self, condition: object, negative: object = None, scale: float = 1.0) -> Slices:
        """Every slice under the condition; one per measurement is one per volume."""
        return Slices(self.prior.given(condition, negative, scale), self.depth, self.axis)

    def to(self, device: str | torch.device) -> Slices:
        """Move the prior of slices."""
        self.prior = self.prior.to(device)
        self.device = self.prior.device
        return self

    def take(self, index: Sequence[int]) -> Slices:
        """The conditions of the measurements `index`; without such conditions, the prior itself."""
        if self.measurements is None:
            return self
        other = Slices(self.prior.take(index), self.depth, self.axis)
        other.counts = self.counts  # those of the whole run
        return other

    def check_event(self, event: tuple[int, ...]) -> None:
        """Volumes with as many slices as `depth` says, each of a shape that the prior makes."""
        if len(event) <= self.axis or self.depth not in (None, event[self.axis]):
            depth = "D" if self.depth is None else self.depth
            raise InputError(
                f"x must have {depth} slices on axis {self.axis}, its shape is {event}"
            )
        self.prior.check_event(volumes.slice_shape(event, self.axis))

    def evaluations_at(self, t: float | Tensor) -> int:
        """As the prior of slices, for each slice."""
        return self.prior.evaluations_at(t)

    @property
    def needs_signal(self) -> bool:
        """As the prior of slices."""
        return self.prior.needs_signal

    @property
    def measurements(self) -> int | None:
        """How many volumes the prior has conditions for; None for any number."""
        return self.prior.measurements

    def state(self) -> object:
        """What defines the prior."""
        return {"prior": self.prior, "depth": self.depth, "axis": self.axis}

    def __repr__(self) -> str:
        depth = "" if self.depth is None else f", depth={self.depth}"
        axis = "" if self.axis == 1 else f", axis={self.axis}"
        return f"Slices({self.prior!r}{depth}{axis})"

    def _rows_of(self, x_t: Tensor, t: float | Tensor) -> tuple[Prior, Tensor, float | Tensor]:
        """The prior, x and times of all slices."""
        if x_t.ndim < 2 or x_t.shape[0] == 0:
            raise InputError(f"x_t needs rows, (B, *event): its shape is {tuple(x_t.shape)}")
        self.check_event(tuple(x_t.shape[1:]))
        count, depth = x_t.shape[0], x_t.shape[self.axis + 1]
        prior = self.prior
        if prior.measurements is not None:
            if prior.measurements != count:
                raise InputError(
                    f"the prior has conditions for {prior.measurements} rows, x_t has {count}: use "
                    "take() to select them"
                )
            prior = prior.take([b for b in range(count) for _ in range(depth)])
        if isinstance(t, Tensor) and t.ndim > 0:
            t = t.repeat_interleave(depth)
        return prior, volumes.slices(x_t, self.axis).flatten(0, 1), t

    def _stacked(self, rows: Tensor, x_t: Tensor) -> Tensor:
        """Volumes shaped as x_t from the values of all their slices."""
        depth = x_t.shape[self.axis + 1]
        return volumes.volume(rows.unflatten(0, (x_t.shape[0], depth)), self.axis)

    def _volumes_of(self, estimate: Estimate, x_t: Tensor, t: float | Tensor) -> Estimate:
        share, renoise = (
            None if part is None else self._stacked(part, x_t)
            for part in (estimate.variance_share, estimate.renoise)
        )
        x0 = self._stacked(estimate.x0, x_t)
        return dataclasses.replace(
            estimate, x_t=x_t, t=t, x0=x0, variance_share=share, renoise=renoise
        )
