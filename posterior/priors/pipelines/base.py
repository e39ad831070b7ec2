"""What every pipeline of diffusers has in common as a prior."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor

from posterior.devices import as_device, default_rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.estimates import Denoised
from posterior.priors.conditioning import ConditionedPrior
from posterior.priors.pipelines.home import Home, home_of
from posterior.priors.pipelines.schedule import Reading, read
from posterior.rows import expand
from posterior.schedules import Level


class PipelinePrior(ConditionedPrior):
    """The network of a pipeline, read as its scheduler says.

    A prompt is encoded again once the weights of a text encoder were written to, as torch counts
    it: after writes through `.data`, which it does not count, make a new prior of the pipeline.

    Args:
        pipe: the pipeline; its modules are used as they stand (adapters, hooks, dtype, device), and
            frozen and put in eval mode.
        module: the network among them.
        rows: the fixed batch of one evaluation; default: 1 on a CPU, 4 on a GPU.
        low_memory: spend time instead of memory where there is a choice: guidance in two passes,
            activations computed again for a gradient, and the autoencoder in tiles.
    """

    reading: Reading

    def __init__(
        self,
        pipe: Any,
        module: Any,
        *,
        rows: int | None = None,
        low_memory: bool = False,
        **options: Any,
    ) -> None:
        reading = read(pipe.scheduler)
        device = torch.device(getattr(pipe, "_execution_device", pipe.device))
        check_precision(module.dtype, device)
        super().__init__(
            module,
            reading.parametrisation,
            reading.schedule,
            rows=default_rows(device) if rows is None else rows,
            time=reading.time,
            low_memory=low_memory,
            sigma_data=reading.sigma_data,
            **options,
        )
        self.device = device  # of the computation, wherever an offloaded module rests
        self.reading = reading
        self.one_batch = False if low_memory else None
        self._pipe = pipe

    def to(self, device: str | torch.device) -> PipelinePrior:
        """Move the pipeline, all of it: network, encoders, autoencoder; and the condition."""
        target = as_device(device)
        check_precision(cast(Any, self.module).dtype, target)
        self._pipe.to(target)
        super().to(target)
        return self

    def _read(self, output: Tensor, x_t: Tensor, t: float | Tensor) -> Denoised:
        """What an output says about x0; of a consistency model (Song et al. 2023, appendix C)

            c_skip x + c_out F
            c_skip = s^2 / ((r - b)^2 + s^2),  c_out = (r - b) s / sqrt(r^2 + s^2)

        with r = sigma, s = `sigma_data` and b the boundary, where alpha = 1.
        """
        b, s = self.reading.boundary, self.sigma_data
        if not b:
            return super()._read(output, x_t, t)
        r = torch.as_tensor(self.schedule(t)[1], dtype=torch.float64)
        skip, out = s**2 / ((r - b) ** 2 + s**2), (r - b) * s / torch.sqrt(r**2 + s**2)
        return Denoised(expand(skip.to(x_t), x_t) * x_t + expand(out.to(x_t), x_t) * output)

    def state(self) -> object:
        """What defines the prior."""
        told = super().state()
        assert isinstance(told, dict)
        return {**told, "boundary": self.reading.boundary} if self.reading.boundary else told

    def _encoders(self) -> tuple[object, ...]:
        """The weights of the text encoders, and how often each was written to."""
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        encoders = [getattr(self._pipe, name, None) for name in names]
        weights = [w for encoder in encoders if encoder is not None for w in encoder.parameters()]
        return tuple((id(w), 0 if w.is_inference() else w._version) for w in weights)

    def home(self, eta: float | None = None) -> Home:
        """The sampler of the pipeline's own scheduler, for `posterior.sample(method=...)`.

        Args:
            eta: of a DDIM scheduler; default 0.
        """
        called = inspect.signature(type(self._pipe).__call__).parameters
        steps = getattr(called.get("num_inference_steps"), "default", None)
        return home_of(self._pipe.scheduler, eta, steps if isinstance(steps, int) else None)

    def home_grid(self, steps: int) -> list[Level]:
        """The levels that the pipeline's own scheduler visits, for `posterior.sample(grid=...)`."""
        return self.home().grid(self.schedule, steps)

    def __repr__(self) -> str:
        given = "" if self._condition is None else f", {self._condition.text}"
        return (
            f"{type(self).__name__}({type(self._pipe).__name__}, {self.parametrisation!r},"
            f" {self.schedule}{given})"
        )


def check_label(condition: object, classes: int) -> int:
    """A class label of so many."""
    if isinstance(condition, Tensor) and condition.ndim == 0:
        condition = condition.item()
    if isinstance(condition, bool) or not isinstance(condition, int):
        raise InputTypeError(f"this model takes class labels (integers), not {condition!r}")
    if not 0 <= condition < classes:
        raise InputError(f"label {condition} is not one of 0 ... {classes - 1}")
    return condition


def check_precision(dtype: object, device: torch.device) -> None:
    """Refuse what weights cannot be, and half precision where it is not computed in earnest."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype is a floating point dtype of torch, not {dtype!r}")
    if dtype == torch.float16 and device.type == "cpu":
        raise CapabilityError(
            "float16 on a CPU is slow and lacks operations: load with dtype=torch.float32 (or"
            " torch.bfloat16), or move the pipeline to a GPU"
        )


def sides(pipe: Any, module: Any) -> tuple[int, int]:
    """The (height, width) that a network was made for."""
    size = module.config["sample_size"]
    if size is None:
        raise InputError(f"{type(pipe).__name__} does not say the size of its network's input")
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
