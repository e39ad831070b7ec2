"""Stable Diffusion 3 and FLUX: transformers that learned a rectified flow of latents.

Esser et al. 2024 (Stable Diffusion 3); FLUX.1 by Black Forest Labs, 2024. With x_t = (1 - s) x0 +
s eps the network answers dx_t/ds = eps - x0 and is told s; `prior.codec` decodes x. The transformer
sees patches of p x p numbers, so the sides of a latent are multiples of p. Stable Diffusion 3 cuts
them itself; FLUX takes a sequence of patches, each with its row and column, which is made here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.priors.codec import LatentCodec
from posterior.priors.conditioning import Inputs
from posterior.priors.pipelines.base import PipelinePrior
from posterior.priors.pipelines.home import Home, HomeFlow
from posterior.schedules import Level

_ENCODERS = "text_encoder", "text_encoder_2"  # without which there are no prompts


class FlowTransformerPrior(PipelinePrior):
    """A transformer of a flow on latents (c, h, w).

    Conditions are prompts or `{"prompt_embeds": (M, L, D), "pooled_prompt_embeds": (M, P)}`; a list
    of prompts, or M > 1, is one per measurement. Without `given` it is the prior of the empty
    prompt.

    Args:
        pipe, rows, low_memory: see `PipelinePrior`.
        channels: that the network takes, in latent channels.
        patch: the side of a patch.
        blocks: of the network.
        largest: the largest side of a latent, where the network has one.
    """

    even: bool
    """Whether the pipeline asks its scheduler for even levels, before the shift."""

    def __init__(
        self,
        pipe: Any,
        *,
        channels: int,
        patch: int,
        blocks: int,
        largest: int | None = None,
        rows: int | None = None,
        low_memory: bool = False,
    ) -> None:
        network, codec = pipe.transformer, LatentCodec(pipe.vae)
        if channels != codec.channels:
            raise CapabilityError(
                f"the network takes {channels} channels, a latent has {codec.channels}: an"
                " inpainting or image-conditioned model is not a prior of x"
            )
        # a frozen block keeps about 12 vectors of its width for each token; a third of them text
        width, size = network.inner_dim, network.dtype.itemsize
        super().__init__(
            pipe,
            network,
            rows=rows,
            low_memory=low_memory,
            range=None,
            graph_bytes=16 * blocks * width * size // (channels * patch**2),
        )
        if self.parametrisation != "velocity":
            raise InputError(
                f"{type(pipe.scheduler).__name__} is not of flow matching, as this network is:"
                " take FlowMatchEulerDiscreteScheduler"
            )
        self.codec = codec
        if low_memory:
            codec.save_memory()
        self.patch = patch
        self.largest = largest
        side = int(pipe.default_sample_size)
        self.default_shape = (channels, side, side)

    def encode(self, condition: object) -> Inputs:
        """The embeddings of a prompt, of the empty one for None; or embeddings."""
        if isinstance(condition, Mapping):
            return self._embeddings(condition)
        if condition is not None and not isinstance(condition, str):
            raise InputTypeError(
                f"{type(self._pipe).__name__} takes prompts or {{'prompt_embeds': ...,"
                f" 'pooled_prompt_embeds': ...}}, not {type(condition).__name__}"
            )
        missing = [name for name in _ENCODERS if getattr(self._pipe, name) is None]
        if missing:
            raise CapabilityError(
                f"the pipeline has no {' and no '.join(missing)}: give embeddings in place of a"
                " prompt, {'prompt_embeds': ..., 'pooled_prompt_embeds': ...}"
            )
        with torch.no_grad():
            text, pooled = self._encoded(condition or "")
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def check_event(self, event: tuple[int, ...]) -> None:
        """Latents (c, h, w), sides multiples of the patch."""
        codec, p = self.codec, self.patch
        assert isinstance(codec, LatentCodec)
        c, f = codec.channels, codec.factor
        if len(event) != 3 or event[0] != c:
            hint = ""
            if len(event) == 3 and event[0] == codec.image_channels:
                h, w = (max(side // (f * p), 1) * p for side in event[1:])
                hint = f"; for images of {h * f}x{w * f} give shape={(c, h, w)}"
            raise InputError(f"the prior makes latents ({c}, H/{f}, W/{f}), not {event}{hint}")
        if any(side % p for side in event[1:]):
            down, up = (
                tuple(max((side + more) // p, 1) * p for side in event[1:]) for more in (0, p - 1)
            )
            raise InputError(
                f"the sides of a latent are multiples of {p}, not {event[1]}x{event[2]}: take"
                f" {down[0]}x{down[1]} or {up[0]}x{up[1]}, which are images of"
                f" {down[0] * f}x{down[1] * f} and {up[0] * f}x{up[1] * f}"
            )
        if self.largest is not None and max(event[1:]) > self.largest:
            raise InputError(
                f"the network knows positions in latents up to {self.largest}x{self.largest}, not"
                f" {event[1]}x{event[2]}"
            )

    def home(self, eta: float | None = None, shape: Sequence[int] | None = None) -> Home:
        """The sampler of the pipeline's own scheduler, for `posterior.sample(method=...)`.

        Args:
            eta: none here.
            shape: of one latent, (c, h, w), on which a dynamic shift depends; default: the
                pipeline's own size.
        """
        home = super().home(eta)
        event = self.default_shape if shape is None else tuple(shape)
        assert event is not None
        self.check_event(event)
        if not isinstance(home, HomeFlow):
            return home
        return replace(home, size=(event[1], event[2]), patch=self.patch, even=self.even)

    def home_grid(self, steps: int, shape: Sequence[int] | None = None) -> list[Level]:
        """The levels that the pipeline's own scheduler visits, for `posterior.sample(grid=...)`.

        Args:
            steps: moves.
            shape: see `home`.
        """
        return self.home(shape=shape).grid(self.schedule, steps)

    @abstractmethod
    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        """The embeddings of the tokens (1, L, D) and of the whole (1, P)."""

    def _embeddings(self, condition: Mapping[str, object]) -> Inputs:
        names = ("prompt_embeds", "pooled_prompt_embeds")
        if set(condition) != set(names):
            raise InputError(f"embeddings are given as {' and '.join(names)}")
        text, pooled = (condition[name] for name in names)
        if not isinstance(text, Tensor) or not isinstance(pooled, Tensor):
            raise InputTypeError("embeddings must be tensors")
        config: Any = self.module.config
        d, p = config["joint_attention_dim"], config["pooled_projection_dim"]
        text = text[None] if text.ndim == 2 else text
        pooled = pooled[None] if pooled.ndim == 1 else pooled
        if text.ndim != 3 or text.shape[-1] != d or pooled.shape != (text.shape[0], p):
            raise InputError(
                f"prompt_embeds are (M, tokens, {d}) and pooled_prompt_embeds (M, {p}), not"
                f" {tuple(text.shape)} and {tuple(pooled.shape)}"
            )
        inputs = {"encoder_hidden_states": text, "pooled_projections": pooled}
        return {name: value.to(self.device) for name, value in inputs.items()}


class StableDiffusion3Prior(FlowTransformerPrior):
    """The transformer of a Stable Diffusion 3 or 3.5 pipeline.

    `prior.given(prompt, negative=None, scale=7.0)`. Prompts go through two CLIP encoders, and T5
    where the pipeline has one; as at home, zeros stand for a T5 that was left out.
    """

    even = False

    def __init__(self, pipe: Any, *, rows: int | None = None, low_memory: bool = False) -> None:
        config = pipe.transformer.config
        patch = int(config["patch_size"])
        super().__init__(
            pipe,
            channels=int(config["in_channels"]),
            patch=patch,
            blocks=int(config["num_layers"]),
            largest=patch * int(config["pos_embed_max_size"]),
            rows=rows,
            low_memory=low_memory,
        )

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        encoded = self._pipe.encode_prompt(prompt, None, None, self.device, 1, False)
        return encoded[0], encoded[2]

    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        told = {name: value.to(x.dtype) for name, value in inputs.items()}
        return self.module(hidden_states=x, timestep=time, return_dict=False, **told)[0]


class FluxPrior(FlowTransformerPrior):
    """The transformer of a FLUX.1 pipeline.

    FLUX.1 [dev] has learned its guidance: `prior.given(prompt, scale=3.5)` is one evaluation, and
    there is no negative prompt. FLUX.1 [schnell] has no guidance; `scale` other than 1 guides it by
    two evaluations, as `true_cfg_scale` does at home.
    """

    even = True

    def __init__(self, pipe: Any, *, rows: int | None = None, low_memory: bool = False) -> None:
        config = pipe.transformer.config
        super().__init__(
            pipe,
            channels=int(config["in_channels"]) // 4,
            patch=2,
            blocks=int(config["num_layers"]) + int(config["num_single_layers"]),
            rows=rows,
            low_memory=low_memory,
        )
        self.embeds_scale = bool(config["guidance_embeds"])

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        text, pooled, _ = self._pipe.encode_prompt(prompt, None, self.device, 1)
        return text, pooled

    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        told = {name: value.to(x.dtype) for name, value in inputs.items()}
        height, width = (side // 2 for side in x.shape[-2:])
        out = self.module(
            hidden_states=pack(x),
            timestep=time / 1000,  # the network multiplies by 1000 again
            guidance=time.new_full((x.shape[0],), scale) if self.embeds_scale else None,
            txt_ids=x.new_zeros(told["encoder_hidden_states"].shape[1], 3),
            img_ids=places(height, width).to(x),
            return_dict=False,
            **told,
        )[0]
        return unpack(out, height, width)


def pack(x: Tensor) -> Tensor:
    """Latents (B, c, 2 h, 2 w) -> patches (B, h w, 4 c): in a patch, channel by channel."""
    b, c, height, width = x.shape
    patches = x.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, height * width // 4, 4 * c)


def unpack(patches: Tensor, height: int, width: int) -> Tensor:
    """Patches (B, h w, 4 c) -> latents (B, c, 2 h, 2 w)."""
    b, _, size = patches.shape
    grid = patches.reshape(b, height, width, size // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, size // 4, 2 * height, 2 * width)


def places(height: int, width: int) -> Tensor:
    """What FLUX is told about each patch, (h w, 3): zero, its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
