"""Unconditional and class-conditional pixel models: DDPM, DDIM, score-SDE-VE, EDM, consistency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.priors.conditioning import Inputs
from posterior.priors.network import check_image_event
from posterior.priors.pipelines.base import PipelinePrior, check_label, sides


class PixelPrior(PipelinePrior):
    """The UNet of a pixel pipeline: images in [-1, 1], of any size that it can halve and double.

    A class-conditional one takes labels: `prior.given(3)`, or one per measurement,
    `prior.given([3, 5])`.
    """

    def __init__(self, pipe: Any, *, rows: int | None = None, low_memory: bool = False) -> None:
        unet = pipe.unet
        config = unet.config
        channels, out = int(config["in_channels"]), int(config["out_channels"])
        if out not in (channels, 2 * channels):
            raise CapabilityError(
                f"{type(unet).__name__} turns {channels} channels into {out}: not a denoiser"
            )
        # diffusers keeps activations of about this many bytes per element of an image
        super().__init__(
            pipe,
            unet,
            rows=rows,
            low_memory=low_memory,
            learned_variance=out == 2 * channels,
            graph_bytes=30_000,
        )
        self.default_shape = (channels, *sides(pipe, unet))
        self._multiple = 2 ** (len(config["down_block_types"]) - 1)
        self._classes = None
        if config.get("class_embed_type") is None and config.get("num_class_embeds"):
            self._classes = int(config["num_class_embeds"])

    def encode(self, condition: object) -> Inputs:
        """A class label; None for an unconditional network."""
        if self._classes is None:
            if condition is not None:
                raise CapabilityError(
                    f"{type(self._pipe).__name__} is an unconditional model: it takes no prompt and"
                    " no label"
                )
            return {}
        if condition is None:
            raise InputError(f"this model needs a label: prior.given(k), 0 <= k < {self._classes}")
        label = check_label(condition, self._classes)
        return {"class_labels": torch.tensor([label], device=self.device)}

    def check_event(self, event: tuple[int, ...]) -> None:
        """Images whose sides can be halved as often as the network does."""
        channels = self.default_shape[0] if self.default_shape else 0
        check_image_event(event, channels, self._multiple)

    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        if not self.reading.unit_range:
            out = self.module(x, time, **inputs, return_dict=False)[0]
            return -out if self.reading.negated else out
        # u = (x + 1) / 2, and the gradient of log p with respect to x is half that to u
        return self.module((x + 1) / 2, time, **inputs, return_dict=False)[0] / 2
