"""A prior from any torch module whose output and noise schedule are known.

The module is called as `module(x, time)` with x (B, *event) and time (B,), and answers with x0,
eps, v, the velocity or the score (see `posterior.estimates`), or with the raw network F of EDM
(Karras et al. 2022, eq. 7 and table 1), r = sigma / alpha the noise level of x = x_t / alpha:

    D(x; r) = c_skip x + c_out F(c_in x, ln(r) / 4)
    c_skip = s^2 / (r^2 + s^2),  c_out = r s / sqrt(r^2 + s^2),  c_in = 1 / sqrt(r^2 + s^2)

with s = `sigma_data`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posterior.devices import as_device, check_rows
from posterior.errors import InputError, InputTypeError
from posterior.estimates import Denoised, Parametrisation, to_x0
from posterior.priors.base import Prior
from posterior.priors.recomputing import recompute_blocks
from posterior.rows import expand
from posterior.schedules import Discrete, Schedule

Output = Parametrisation | Literal["edm"]
KINDS = (*get_args(Parametrisation), "edm")
_INPUT_BYTES = 64  # per element of x, where of a row only the input is kept


class NetworkPrior(Prior):
    """A prior around a denoising network.

    Args:
        module: called as module(x, time); its weights are frozen and it is put in eval mode.
        parametrisation: what it answers: "x0", "eps", "v", "velocity", "score" or "edm".
        schedule: the noise levels that it was trained with.
        event_shape: shape of one x0, or None for any.
        range: the interval of x0, or None for unbounded.
        rows: the fixed batch of one evaluation: 1 suits small networks on a CPU, 8-16 a GPU.
        time: t (B,) float64 -> what the network takes as time. By default the table index
            N t - 1 for `Discrete` schedules, ln(sigma / alpha) / 4 for "edm", t otherwise.
        learned_variance: the output has 2 C channels, the second half u in [-1, 1] saying where the
            variance of a step lies (Nichol & Dhariwal 2021, eq. 15; `transitions.LearnedVariance`).
        sigma_data: the standard deviation of the data, for "edm".
        compute_dtype: autocast the module to this dtype (torch.bfloat16, ...).
        graph_bytes: memory per element of x that a vector-Jacobian product holds, for chunking.
        low_memory: keep less for a vector-Jacobian product and compute it again: the inside of each
            block where the network knows its blocks (ours and those of diffusers), or else all but
            the input. Costs one more forward pass in each pull, which is not counted as NFE.

    The module runs in the dtype of its weights; x is cast on the way in and out, and everything
    else happens in the dtype of x_t.
    """

    def __init__(
        self,
        module: nn.Module,
        parametrisation: Output,
        schedule: Schedule,
        *,
        event_shape: tuple[int, ...] | None = None,
        range: tuple[float, float] | None = (-1.0, 1.0),
        rows: int | None = 1,
        time: Callable[[Tensor], Tensor] | None = None,
        learned_variance: bool = False,
        sigma_data: float = 0.5,
        compute_dtype: torch.dtype | None = None,
        graph_bytes: int = 2000,
        low_memory: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputTypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
        if parametrisation not in KINDS:
            raise InputError(f"unknown parametrisation {parametrisation!r}; known: {KINDS}")
        if not isinstance(schedule, Schedule):
            raise InputTypeError(f"schedule must be a Schedule, not {type(schedule).__name__}")
        if range is not None and not range[0] < range[1]:
            raise InputError(f"range must be (low, high), got {range}")
        check_rows(rows)
        if not 0 < sigma_data < math.inf:
            raise InputError(f"sigma_data must be positive, got {sigma_data}")
        self.module = module.eval().requires_grad_(False)
        self.parametrisation = parametrisation
        self.schedule = schedule
        self.event_shape = event_shape
        self.range = range
        self.rows = rows
        self.time = time
        self.learned_variance = learned_variance
        self.sigma_data = float(sigma_data)
        self.compute_dtype = compute_dtype
        self.graph_bytes = graph_bytes
        self._whole = low_memory and not recompute_blocks(module)  # checkpoint the whole network
        if self._whole:
            self.graph_bytes = min(graph_bytes, _INPUT_BYTES)
        weight = next(iter(module.parameters()), None)
        self._weight_dtype = None if weight is None else weight.dtype
        if weight is not None:
            self.dtype, self.device = weight.dtype, weight.device
            if not weight.dtype.is_floating_point or weight.dtype.itemsize < 4:
                self.dtype = torch.float32  # half-precision weights; states stay in float32

    def to(self, device: str | torch.device) -> NetworkPrior:
        """Move the network, in place as torch does, and return the prior.

        Priors that `given` made of it share the weights and have a `to` of their own.
        """
        self.device = as_device(device)
        self.module.to(self.device)
        return self

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Denoised:
        """E[x0 | x_t], and where the variance of a step lies, if the network has learned it."""
        return self._read(self._run(*self._inputs(x_t, t)), x_t, t)

    def _inputs(self, x_t: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """What the network takes: the scaled x_t and its time (B,)."""
        times = _per_row(t, x_t)
        if self.parametrisation != "edm":
            return x_t, self._time(times)
        alpha, sigma = self.schedule(t)
        ratio = torch.as_tensor(sigma / alpha, dtype=torch.float64)
        time = torch.log(ratio) / 4 if self.time is None else self.time(times)
        size = (sigma**2 + (self.sigma_data * alpha) ** 2) ** 0.5  # alpha / c_in
        return x_t * _like(1 / size, x_t), time.expand(x_t.shape[0])

    def _read(self, output: Tensor, x_t: Tensor, t: float | Tensor) -> Denoised:
        """What an output of the network says about x0."""
        share = None
        if self.learned_variance:
            output, share = self._halves(output, x_t)
        if output.shape != x_t.shape:
            raise InputError(
                f"the network turned {tuple(x_t.shape)} into {tuple(output.shape)}; if it has "
                "twice the channels, it learned its variance: learned_variance=True"
            )
        if self.parametrisation != "edm":
            return Denoised(to_x0(output, self.parametrisation, x_t, t, self.schedule), share)
        alpha, sigma = self.schedule(t)
        data = self.sigma_data
        square = sigma**2 + (data * alpha) ** 2
        skip = _like(data**2 * alpha / square, x_t)  # c_skip / alpha
        return Denoised(skip * x_t + _like(sigma * data / square**0.5, x_t) * output, share)

    def _time(self, times: Tensor) -> Tensor:
        if self.time is not None:
            return self.time(times)
        return self.schedule.index(times) if isinstance(self.schedule, Discrete) else times

    def _run(self, x: Tensor, time: Tensor, *told: Any) -> Tensor:
        """The module's output in the dtype of x."""
        inner = self._weight_dtype or x.dtype
        cast = (
            contextlib.nullcontext()
            if self.compute_dtype is None
            else torch.autocast(x.device.type, self.compute_dtype)
        )
        with cast:
            # a half-precision time cannot tell index 998 from 1000
            time = time.to(x.device, torch.promote_types(inner, torch.float32))
            if self._whole and torch.is_grad_enabled():
                output = checkpoint(self._call, x.to(inner), time, *told, use_reentrant=False)
            else:
                output = self._call(x.to(inner), time, *told)
        if not isinstance(output, Tensor):
            raise InputTypeError(
                f"the network must return a tensor, not {type(output).__name__}: wrap it"
            )
        return output.to(x.dtype)

    def _call(self, x: Tensor, time: Tensor, *told: Any) -> Tensor:
        """The module on inputs of its own dtype; `told` is what a subclass adds."""
        return self.module(x, time, *told)

    def _halves(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if output.shape[1] != 2 * x.shape[1]:
            raise InputError(
                f"learned_variance=True needs {2 * x.shape[1]} output channels, the network has "
                f"{output.shape[1]}"
            )
        return output[:, : x.shape[1]], output[:, x.shape[1] :]

    @property
    def needs_signal(self) -> bool:
        """Whether x0 is found by dividing by alpha."""
        return self.parametrisation in ("eps", "score", "edm")

    def state(self) -> object:
        """What defines the prior: the weights and how they are read."""
        return {
            "module": type(self.module).__name__,
            "weights": dict(self.module.state_dict()),
            "parametrisation": self.parametrisation,
            "schedule": repr(self.schedule),
            "table": getattr(self.schedule, "alphas_cumprod", None),
            "range": self.range,
            "rows": self.rows,
            "time": getattr(self.time, "__qualname__", None),
            "learned_variance": self.learned_variance,
            "sigma_data": self.sigma_data,
            "compute_dtype": str(self.compute_dtype),
        }

    def __repr__(self) -> str:
        return (
            f"NetworkPrior({type(self.module).__name__}, {self.parametrisation!r}, {self.schedule})"
        )


def _per_row(t: float | Tensor, x: Tensor) -> Tensor:
    """A time for each row of x, (B,) float64; a number stays on the CPU until it is needed."""
    return torch.as_tensor(t, dtype=torch.float64).expand(x.shape[0])


def _like(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A value, or one per row in float64, in the dtype of x and beside it."""
    return expand(value.to(x.dtype), x) if isinstance(value, Tensor) else value


def check_image_event(event: tuple[int, ...], channels: int, multiple: int) -> None:
    """An image (C, H, W) with that many channels, whose sides a network can halve that often."""
    if len(event) != 3 or event[0] != channels:
        raise InputError(f"the prior makes images ({channels}, H, W), not {event}")
    if any(side % multiple for side in event[1:]):
        down = "x".join(str(max(side // multiple, 1) * multiple) for side in event[1:])
        up = "x".join(str(-(-side // multiple) * multiple) for side in event[1:])
        raise InputError(
            f"the prior makes images whose sides are multiples of {multiple}, not"
            f" {event[1]}x{event[2]}: crop to {down} or pad to {up}"
        )
