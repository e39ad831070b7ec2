"""Small diffusers pipelines with random weights, and the two ways to compare a run with home."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.utils import logging
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

import posterior
from posterior.streams import Noise

logging.set_verbosity_error()


def pixel_unet(seed: int = 0, **config: Any) -> UNet2DModel:
    """8x8 RGB, two resolutions, one with attention."""
    torch.manual_seed(seed)
    default = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    }
    return UNet2DModel(**{**default, **config})


def tokenizer(length: int = 16) -> CLIPTokenizer:
    """Letters and word endings: every lower-case text has tokens."""
    ends = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    vocabulary = {token: k for k, token in enumerate([*letters, *ends])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def text_encoder(kind: type, length: int = 16, width: int = 32) -> Any:
    """CLIP with two layers."""
    count = 2 * len(string.ascii_lowercase) + 2
    config = CLIPTextConfig(
        vocab_size=count,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=count - 2,
        eos_token_id=count - 1,
        pad_token_id=count - 1,
    )
    encoder = kind(config).eval()
    with torch.no_grad():  # as they come, prompts would hardly differ
        for embedding in encoder.modules():
            if isinstance(embedding, nn.Embedding):
                embedding.weight.mul_(30)
    return encoder


def latent_unet(width: int = 32, **config: Any) -> UNet2DConditionModel:
    """Latents of 4 channels and 8x8, two resolutions, one with cross attention."""
    default = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": width,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**default, **config})


def autoencoder(**config: Any) -> AutoencoderKL:
    """Images twice the size of latents."""
    default = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    return AutoencoderKL(**{**default, **config})


def stable_diffusion(seed: int = 0, scheduler: Any = None, **unet: Any) -> StableDiffusionPipeline:
    """Stable Diffusion with one text encoder."""
    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline(
        unet=latent_unet(**unet),
        vae=autoencoder(),
        text_encoder=text_encoder(CLIPTextModel),
        tokenizer=tokenizer(),
        scheduler=scheduler or sd_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl(seed: int = 0, **unet: Any) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text encoders, the pooled text and the sizes as conditions."""
    torch.manual_seed(seed)
    network = latent_unet(
        width=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        **unet,
    )
    pipe = StableDiffusionXLPipeline(
        unet=network,
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=text_encoder(CLIPTextModel),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=sd_scheduler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5_tokenizer() -> Any:
    """Letters, as `tokenizer` has them, for T5."""
    ends = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(c, -3.0) for c in ("\u2581", *string.ascii_lowercase)]
    return T5TokenizerFast(vocab=[*ends, *letters], extra_ids=0)


def t5_encoder(width: int) -> T5EncoderModel:
    """T5 with two layers."""
    config = T5Config(
        vocab_size=3 + 1 + len(string.ascii_lowercase),
        d_model=width,
        d_ff=37,
        d_kv=8,
        num_layers=2,
        num_heads=4,
    )
    return T5EncoderModel(config).eval()


def stable_diffusion_3(
    seed: int = 0, t5: bool = True, scheduler: Any = None, **transformer: Any
) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with latents of 4 channels: two CLIP encoders, and T5 or none."""
    torch.manual_seed(seed)
    default = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 10,
    }
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**{**default, **transformer}),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        text_encoder=text_encoder(CLIPTextModelWithProjection),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        text_encoder_3=t5_encoder(64) if t5 else None,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=t5_tokenizer() if t5 else None,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(seed: int = 0, scheduler: Any = None, **transformer: Any) -> FluxPipeline:
    """FLUX with latents of 4 channels; [dev], i.e. with guidance as an input, by default."""
    torch.manual_seed(seed)
    default = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(**{**default, **transformer}),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
        text_encoder=text_encoder(CLIPTextModel),
        text_encoder_2=t5_encoder(32),
        tokenizer=tokenizer(),
        tokenizer_2=t5_tokenizer(),
        scheduler=scheduler
        or FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd_scheduler(kind: Any = DDIMScheduler, **config: Any) -> Any:
    """A scheduler with the betas of Stable Diffusion."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    own = {"set_alpha_to_one": False, "clip_sample": False} if kind is DDIMScheduler else {}
    return kind(**{**betas, "steps_offset": 1, **own, **config})


def start(shape: Sequence[int], seed: int = 0) -> Tensor:
    """The noise that a run of ours starts from, as a batch of one."""
    return Noise.single(seed, tuple(shape))("start")


@contextlib.contextmanager
def seen_by(network: nn.Module) -> Iterator[list[tuple[float, Tensor]]]:
    """The times and first inputs of every call of a network, in order."""
    calls: list[tuple[float, Tensor]] = []

    def record(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = args[0] if args else named["hidden_states"]
        time = args[1] if len(args) > 1 else named["timestep"]
        calls.append((float(torch.as_tensor(time).flatten()[0]), x.clone()))

    hook = network.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextlib.contextmanager
def drawing(numbers: Iterator[Tensor], *modules: str) -> Iterator[None]:
    """In these modules of diffusers, random numbers are the given ones, in order."""

    def draw(shape: Sequence[int], *_: Any, **__: Any) -> Tensor:
        z = next(numbers)
        assert tuple(shape) == tuple(z.shape)
        return z.clone()

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch(f"diffusers.{module}.randn_tensor", draw))
        yield


def ours(prior: Any, steps: int, **options: Any) -> posterior.Samples:
    """One draw as the home library makes it."""
    return posterior.sample(prior, method=prior.home(), steps=steps, seed=0, **options)


def same_path(
    home: list[tuple[float, Tensor]], here: list[tuple[float, Tensor]], atol: float = 1e-4
) -> None:
    """The network was asked the same, call by call; differences relative to the largest entry."""
    assert len(home) == len(here)
    for k, ((time, x), (our_time, our_x)) in enumerate(zip(home, here, strict=True)):
        assert abs(time - our_time) < 1e-3, (k, time, our_time)
        scale = max(1.0, float(x.abs().max()))
        assert float((x - our_x).abs().max()) < atol * scale, (k, float((x - our_x).abs().max()))
