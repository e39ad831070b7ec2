"""The prior of a checkpoint: a network of images that may take a class label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.priors.conditioning import ConditionedPrior, Inputs
from posterior.priors.network import Output, check_image_event
from posterior.schedules import Schedule

NO_CLASS = -1  # the label of an image without class, for networks that know it


class CheckpointPrior(ConditionedPrior):
    """A prior around a module(x, time, labels): labels (rows,) int64, or None without classes.

    `prior.given(3)`, or one per measurement, `prior.given([3, 5])`; with `scale=`, guidance away
    from `negative=`, another label, or from no class where the network was trained so too.

    Args:
        module: the network.
        parametrisation: as for `NetworkPrior`.
        schedule: as for `NetworkPrior`.
        classes: number of classes; None for a network that takes no label.
        without_class: the network also knows images without class, as label -1.
        channels: of an image.
        multiple: sides must be multiples of this.
        config: what the weights do not say about the network, for content hashes.
        options: as for `NetworkPrior`.
    """

    def __init__(
        self,
        module: nn.Module,
        parametrisation: Output,
        schedule: Schedule,
        *,
        classes: int | None,
        without_class: bool,
        channels: int,
        multiple: int,
        config: object,
        **options: Any,
    ) -> None:
        super().__init__(module, parametrisation, schedule, **options)
        self.classes = classes
        self.without_class = without_class
        self.channels = channels
        self.multiple = multiple
        self.config = config

    def encode(self, condition: object) -> Inputs:
        """A label; None is an unconditional network's own and, where it knows that, no class."""
        if self.classes is None:
            if condition is not None:
                raise CapabilityError("the network is not class-conditional: it takes no label")
            return {}
        if condition is None:
            if not self.without_class:
                raise CapabilityError(
                    f"the network knows images of its {self.classes} classes only, none without:"
                    " choose one with prior.given(label); guidance needs another, negative="
                )
            return self._label(NO_CLASS)
        if isinstance(condition, Tensor) and condition.ndim == 0:
            condition = condition.item()
        if isinstance(condition, bool) or not isinstance(condition, int):
            raise InputTypeError(f"a label is an integer, not {condition!r}")
        if not 0 <= condition < self.classes:
            raise InputError(f"label {condition} is not one of 0 to {self.classes - 1}")
        return self._label(condition)

    def _label(self, label: int) -> Inputs:
        return {"labels": torch.tensor([label], device=self.device)}

    def check_event(self, event: tuple[int, ...]) -> None:
        """The network's channels, sides that it can halve, and a label if it needs one."""
        super().check_event(event)
        check_image_event(event, self.channels, self.multiple)
        if self._condition is None:
            self.encode(None)

    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        return self.module(x, time, inputs.get("labels"))

    def state(self) -> object:
        """What defines the prior: the weights, how they are read, and the label."""
        told = super().state()
        assert isinstance(told, dict)
        return {**told, "config": repr(self.config)}

    def __repr__(self) -> str:
        given = "" if self._condition is None else f", {self._condition.text}"
        return (
            f"{type(self).__name__}({type(self.module).__name__}, {self.parametrisation!r},"
            f" {self.schedule}{given})"
        )
