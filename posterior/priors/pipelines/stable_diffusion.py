"""Stable Diffusion 1.x, 2.x and XL, and latent consistency models.

Rombach et al. 2022, Podell et al. 2023, Luo et al. 2023. x is a latent; `prior.codec` decodes it.
Prompts are encoded by the pipeline's own `encode_prompt`, once, in `given`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.priors.codec import LatentCodec
from posterior.priors.conditioning import Inputs
from posterior.priors.pipelines.base import PipelinePrior, sides


class StableDiffusionPrior(PipelinePrior):
    """The UNet of a Stable Diffusion or latent consistency pipeline.

    `prior.given(prompt, negative=None, scale=7.5)`: a prompt, or embeddings (1, L, D) of the text
    encoder; a list of prompts, or embeddings (M, L, D), is one per measurement. Without `given` it
    is the prior of the empty prompt. A network that has learned its guidance scale (latent
    consistency) takes `scale` as an input.
    """

    def __init__(self, pipe: Any, *, rows: int | None = None, low_memory: bool = False) -> None:
        unet, codec = pipe.unet, LatentCodec(pipe.vae)
        if int(unet.config["in_channels"]) != codec.channels:
            raise CapabilityError(
                f"the network takes {unet.config['in_channels']} channels, a latent has"
                f" {codec.channels}: an inpainting or image-conditioned model is not a prior of x"
            )
        # a UNet of 860 million weights keeps activations of about this many bytes per element
        super().__init__(
            pipe, unet, rows=rows, low_memory=low_memory, range=None, graph_bytes=400_000
        )
        self.codec = codec
        if low_memory:
            codec.save_memory()
        self.default_shape = (codec.channels, *sides(pipe, unet))
        self.embeds_scale = unet.config["time_cond_proj_dim"] is not None

    def encode(self, condition: object) -> Inputs:
        """The text embeddings of a prompt; of the empty prompt for None; or embeddings."""
        if isinstance(condition, Tensor):
            return {"encoder_hidden_states": self._embeddings(condition)}
        with torch.no_grad():
            embeddings = self._pipe.encode_prompt(self._prompt(condition), self.device, 1, False)[0]
        return {"encoder_hidden_states": embeddings}

    def check_event(self, event: tuple[int, ...]) -> None:
        """Latents (c, h, w)."""
        codec = self.codec
        assert isinstance(codec, LatentCodec)
        c, f = codec.channels, codec.factor
        if len(event) == 3 and event[0] == c:
            return
        hint = ""
        if len(event) == 3 and event[0] == codec.image_channels:
            shape = (c, max(event[1] // f, 1), max(event[2] // f, 1))
            hint = f"; for images of {shape[1] * f}x{shape[2] * f} give shape={shape}"
        raise InputError(f"the prior makes latents ({c}, H/{f}, W/{f}), not {event}{hint}")

    def _prompt(self, condition: object) -> str:
        if condition is None:
            return ""
        if not isinstance(condition, str):
            raise InputTypeError(
                f"{type(self._pipe).__name__} takes prompts or their embeddings, not"
                f" {type(condition).__name__}"
            )
        return condition

    def _embeddings(self, tensor: Tensor) -> Tensor:
        width = int(self.module.config["cross_attention_dim"])  # type: ignore[index]
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        if tensor.ndim != 3 or tensor.shape[-1] != width or not tensor.is_floating_point():
            raise InputError(f"embeddings are (M, tokens, {width}), not {tuple(tensor.shape)}")
        return tensor.to(self.device)

    def _told(self, x: Tensor, time: Tensor, inputs: dict[str, Tensor], scale: float) -> Tensor:
        inputs = {k: v.to(x.dtype) for k, v in inputs.items()}
        text = inputs.pop("encoder_hidden_states")
        added = self._added(inputs, x)
        if self.embeds_scale:
            added["timestep_cond"] = self._scale_embedding(scale, x)
        out = self.module(x, time, encoder_hidden_states=text, return_dict=False, **added)[0]
        return -out if self.reading.negated else out

    def _added(self, inputs: dict[str, Tensor], x: Tensor) -> dict[str, Any]:
        """What the network is told besides the text."""
        return {}

    def _scale_embedding(self, scale: float, x: Tensor) -> Tensor:
        """The embedding of the guidance scale, which the network knows as w - 1."""
        width = self.module.config["time_cond_proj_dim"]  # type: ignore[index]
        w = torch.full((x.shape[0],), scale - 1)
        embedding: Tensor = self._pipe.get_guidance_scale_embedding(w, embedding_dim=width)
        return embedding.to(x)


class SDXLPrior(StableDiffusionPrior):
    """The UNet of a Stable Diffusion XL pipeline: two text encoders, and the size of the image.

    Conditions are prompts or `{"prompt_embeds": (M, L, D), "pooled_prompt_embeds": (M, P)}`. As at
    home, the network is told that the image was neither scaled nor cropped.
    """

    def __init__(self, pipe: Any, *, rows: int | None = None, low_memory: bool = False) -> None:
        if pipe.config.get("requires_aesthetics_score"):
            raise CapabilityError(
                "a refiner is told a score of the image's beauty, which is not supported: take the"
                " base model"
            )
        super().__init__(pipe, rows=rows, low_memory=low_memory)

    def encode(self, condition: object) -> Inputs:
        """The embeddings of a prompt by both encoders, and the pooled one of the second."""
        if isinstance(condition, Mapping):
            return self._given_embeddings(condition)
        if isinstance(condition, Tensor):
            raise InputTypeError(
                "two encoders: give {'prompt_embeds': ..., 'pooled_prompt_embeds': ...}"
            )
        prompt = self._prompt(condition)
        # without a prompt some models take zeros; only asking for guidance shows them
        empty = condition is None
        with torch.no_grad():
            encoded = self._pipe.encode_prompt(prompt, None, self.device, 1, empty)
        text, pooled = (encoded[1], encoded[3]) if empty else (encoded[0], encoded[2])
        return {"encoder_hidden_states": text, "text_embeds": pooled}

    def _given_embeddings(self, condition: Mapping[str, object]) -> Inputs:
        names = ("prompt_embeds", "pooled_prompt_embeds")
        if set(condition) != set(names):
            raise InputError(f"embeddings are given as {' and '.join(names)}")
        text, pooled = (condition[name] for name in names)
        if not isinstance(text, Tensor) or not isinstance(pooled, Tensor):
            raise InputTypeError("embeddings must be tensors")
        text = self._embeddings(text)
        pooled = (pooled[None] if pooled.ndim == 1 else pooled).to(self.device)
        if pooled.ndim != 2 or pooled.shape[0] != text.shape[0]:
            raise InputError(
                f"pooled_prompt_embeds are (M, P) with the M of prompt_embeds, {text.shape[0]}, not"
                f" {tuple(pooled.shape)}"
            )
        return {"encoder_hidden_states": text, "text_embeds": pooled}

    def _added(self, inputs: dict[str, Tensor], x: Tensor) -> dict[str, Any]:
        assert isinstance(self.codec, LatentCodec)
        height, width = (side * self.codec.factor for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        added = {"text_embeds": inputs["text_embeds"], "time_ids": sizes.expand(x.shape[0], 6)}
        return {"added_cond_kwargs": added}
