"""DiT: a class-conditional transformer of latents (Peebles & Xie 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.priors.codec import LatentCodec
from posterior.priors.conditioning import Inputs
from posterior.priors.pipelines.base import PipelinePrior, check_label


class DiTPrior(PipelinePrior):
    """The transformer of a DiT pipeline: latents (c, s, s) of the one size that it knows.

    `prior.given(207, scale=4.0)`: a class, or a list of one per measurement. Guidance is away from
    "no class", which the network was trained with too, and without `given` that is the prior.
    """

    def __init__(self, pipe: Any, *, rows: int | None = None, low_memory: bool = False) -> None:
        network, codec = pipe.transformer, LatentCodec(pipe.vae)
        config = network.config
        channels, out = int(config["in_channels"]), int(network.out_channels)
        if channels != codec.channels or out not in (channels, 2 * channels):
            raise CapabilityError(
                f"the network turns {channels} channels into {out}, a latent has"
                f" {codec.channels}: not a denoiser of x"
            )
        size, patch = int(config["sample_size"]), int(config["patch_size"])
        width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
        # a frozen block keeps about 16 vectors of its width for each token, its inner layer is 4
        kept = 16 * int(config["num_layers"]) * width * network.dtype.itemsize
        super().__init__(
            pipe,
            network,
            rows=rows,
            low_memory=low_memory,
            event_shape=(channels, size, size),
            range=None,
            learned_variance=out == 2 * channels,
            graph_bytes=kept // (channels * patch**2),
        )
        self.codec = codec
        if low_memory:
            codec.save_memory()
        self.classes = int(config["num_embeds_ada_norm"])

    def encode(self, condition: object) -> Inputs:
        """A class label; None is the number behind the last, no class."""
        label = self.classes if condition is None else check_label(condition, self.classes)
        return {"class_labels": torch.tensor([label], device=self.device)}

    def check_event(self, event: tuple[int, ...]) -> None:
        """The one latent size."""
        if event == self.event_shape:
            return
        assert isinstance(self.codec, LatentCodec)
        assert self.event_shape is not None
        side = self.event_shape[1]
        raise InputError(
            f"the prior makes latents {self.event_shape} only, images of"
            f" {side * self.codec.factor} pixels on a side, not {event}"
        )

    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        return self.module(x, timestep=time, **inputs, return_dict=False)[0]
