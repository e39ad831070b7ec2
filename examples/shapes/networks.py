"""The parts of the text-to-image model of the world, all of them classes of diffusers."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from shapes.world import SIDE, WORDS

FACTOR = 4  # pixels on a side of a latent
LATENT_CHANNELS = 4
LENGTH = 24  # tokens; the longest caption has 21 words, and two marks
_START, _END = "<|startoftext|>", "<|endoftext|>"

logging.set_verbosity_error()


@dataclass(frozen=True)
class Sizes:
    """Widths and depths.

    Attributes:
        codec: channels at 64x64, 32x32 and 16x16.
        text: width of the text encoder, and of what the UNet attends to.
        text_layers: its layers.
        unet: channels at 16x16 (no attention) and 8x8 (attention).
        groups: of the normalisations.
        scale: width of the embedding of the guidance scale, in the few-step model.
        flow: blocks of the flow transformer, its heads and their width.
    """

    codec: tuple[int, int, int] = (24, 48, 64)
    text: int = 128
    text_layers: int = 3
    unet: tuple[int, int] = (80, 128)
    groups: int = 8
    scale: int = 64
    flow: tuple[int, int, int] = (8, 4, 32)


TINY = Sizes(
    codec=(8, 8, 8),
    text=16,
    text_layers=2,
    unet=(8, 16),
    groups=4,
    scale=8,
    flow=(2, 2, 8),
)
"""For tests: it learns nothing, quickly."""


def byte_pairs(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make one token of each word (Sennrich et al. 2016): the most frequent pair first.

    Ties go to the pair that comes first in the alphabet, so that the result is always the same.
    """
    parts = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for part in parts for pair in pairwise(part))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for part in parts:
            for k in range(len(part) - 2, -1, -1):
                if tuple(part[k : k + 2]) == best:
                    part[k : k + 2] = ["".join(best)]


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json and merges.txt, the form that every version of transformers reads."""
    merges = byte_pairs(WORDS)
    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    tokens = [*letters, *("".join(pair) for pair in merges), _START, _END]
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def tokenizer() -> CLIPTokenizer:
    """A token for each word of the world; other words are spelled in letters."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def codec(sizes: Sizes) -> AutoencoderKL:
    """64x64 RGB <-> 16x16 latents; without attention, so that a latent sees its neighbourhood."""
    vae = AutoencoderKL(
        block_out_channels=sizes.codec,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=sizes.groups,
        sample_size=SIDE,
        scaling_factor=1.0,  # the latents are standardised inside
        shift_factor=0.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # a latent begins with little noise
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    return vae


def text_encoder(sizes: Sizes, words: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's architecture, new weights."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=sizes.text,
        intermediate_size=3 * sizes.text,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=sizes.text,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        attn_implementation="eager",  # faster than the fused one on a CPU, backwards
    )
    return CLIPTextModel(config)


def unet(sizes: Sizes, **options: object) -> UNet2DConditionModel:
    """Stable Diffusion's UNet with two resolutions, attention at the lower one."""
    return UNet2DConditionModel(
        sample_size=SIDE // FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=sizes.unet,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=sizes.text,
        norm_num_groups=2 * sizes.groups
        if sizes.unet[0] % (2 * sizes.groups) == 0
        else sizes.groups,
        attention_head_dim=4,  # the number of heads, in spite of its name
        **options,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, v-prediction (Salimans and Ho 2022)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def pipeline(
    vae: AutoencoderKL, text: CLIPTextModel, words: CLIPTokenizer, net: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as one pipeline."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=net,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The few-step model ------------------------------------------------------------------------------


def consistency_pipeline(
    vae: AutoencoderKL, text: CLIPTextModel, words: CLIPTokenizer, net: UNet2DConditionModel
) -> LatentConsistencyModelPipeline:
    """The parts as a latent consistency model."""
    pipe = LatentConsistencyModelPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=net,
        scheduler=consistency_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def consistency_scheduler() -> LCMScheduler:
    """The same noise levels, in few steps with new noise in between."""
    return LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
    )


# The flow ----------------------------------------------------------------------------------------

PADDING = 256  # zero tokens that a Stable Diffusion 3 pipeline without T5 puts behind the prompt


def flow_transformer(sizes: Sizes) -> SD3Transformer2DModel:
    """Stable Diffusion 3's transformer on patches of 2x2 latents."""
    blocks, heads, width = sizes.flow
    return SD3Transformer2DModel(
        sample_size=SIDE // FACTOR,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=blocks,
        attention_head_dim=width,
        num_attention_heads=heads,
        caption_projection_dim=heads * width,
        joint_attention_dim=2 * sizes.text,
        pooled_projection_dim=2 * sizes.text,
        pos_embed_max_size=SIDE // FACTOR // 2,
    )


class OneForMany:
    """Joint attention in which the last text token stands for `PADDING` equal ones.

    Equal tokens without a place stay equal in every block, and n of them weigh like one whose
    logit has log(n) added: training takes 25 text tokens for the same result as 280.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D) of the image and (B, L, D) of the text -> the same."""
        a: Any = attn
        image = [layer(hidden_states) for layer in (a.to_q, a.to_k, a.to_v)]
        text = [
            layer(encoder_hidden_states) for layer in (a.add_q_proj, a.add_k_proj, a.add_v_proj)
        ]
        q, k, v = (
            torch.cat(pair, 1).unflatten(2, (a.heads, -1)).transpose(1, 2)
            for pair in zip(image, text, strict=True)
        )
        logits = q @ k.mT * q.shape[-1] ** -0.5
        count = torch.zeros(k.shape[2])
        count[-1] = math.log(PADDING)
        mixed = torch.softmax(logits + count.to(logits.dtype), -1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        n = hidden_states.shape[1]
        image_out = a.to_out[0](mixed[:, :n])
        if a.context_pre_only:
            return image_out, mixed[:, n:]
        return image_out, a.to_add_out(mixed[:, n:])


def projected(text: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The same encoder with the projection that Stable Diffusion 3 asks for: the identity."""
    encoder = CLIPTextModelWithProjection(text.config).eval().requires_grad_(False)
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(text.config.hidden_size))
    state = text.state_dict()
    target = encoder.state_dict()
    prefix = "" if set(state) <= set(target) else "text_model."
    encoder.load_state_dict({prefix + key: value for key, value in state.items()}, strict=False)
    return encoder


def flow_pipeline(
    vae: AutoencoderKL,
    text: CLIPTextModelWithProjection,
    words: CLIPTokenizer,
    net: SD3Transformer2DModel,
) -> StableDiffusion3Pipeline:
    """The parts as a Stable Diffusion 3 pipeline; one text encoder is both of its CLIP encoders."""
    pipe = StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=text,
        text_encoder_2=text,
        text_encoder_3=None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=None,
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
