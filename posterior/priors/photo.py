"""The network of the bundled photo prior: a small fully convolutional denoiser of images.

The bundled one makes RGB photographs; `posterior train-prior` trains the same network on images
with any number of channels.

`PhotoNet` is the raw network F of Karras et al. 2022 (EDM, arXiv:2206.00364), eq. 7:

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)                            (table 1, "Ours")

No layer normalises over space or batch, so no output depends on a statistic of the whole image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from posterior.priors.recomputing import Recomputed


@dataclass(frozen=True)
class PhotoConfig:
    """Sizes of the network and constants of its preconditioning, stored beside the weights."""

    channels: tuple[int, ...] = (96, 128, 192, 256)  # at 1/2, 1/4, 1/8, 1/16 of the resolution
    encoder: tuple[int, ...] = (2, 2, 2, 1)  # residual blocks on the way down
    decoder: tuple[int, ...] = (3, 3, 2, 0)  # residual blocks on the way up
    frequencies: int = 16  # Fourier features of c_noise
    embedding: int = 128
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    image_channels: int = 3
    range: tuple[float, float] | None = (-1.0, 1.0)  # the interval of x0; None for unbounded


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """What the network computes in: bfloat16, or None for float32 where that is the faster one.

    A CPU is faster with bfloat16 where it has AMX, and an AMD one where it has AVX512-BF16. Intel's
    AVX512-BF16 without AMX (some virtual machines hide it) takes 1.6 times as long as float32.
    """
    if device.type != "cpu":
        return torch.bfloat16
    # absent before torch 2.10: float32 is safe
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    intel = capabilities.get("cpu_name", "Intel").startswith("Intel")
    fast = capabilities.get("amx_bf16" if intel else "avx512_bf16", False)
    return torch.bfloat16 if fast else None


class Block(Recomputed):
    """Residual block: two 3x3 convolutions, scaled and shifted in between by the noise level."""

    def __init__(self, channels: int, config: PhotoConfig) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.level = nn.Linear(config.embedding, 2 * channels)
        with torch.no_grad():
            for quiet in (self.first.bias, self.second.bias, self.level.weight, self.level.bias):
                if quiet is not None:
                    quiet.zero_()
            self.second.weight *= 0.1  # begin near the identity

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C, H, W)."""
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, 1)
        y = self.first(nnf.silu(x)) * (1 + scale) + shift
        return x + self.second(nnf.silu(y))


class Stage(nn.ModuleList):
    """The residual blocks of one resolution, in a row."""

    def __init__(self, channels: int, count: int, config: PhotoConfig) -> None:
        super().__init__(Block(channels, config) for _ in range(count))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C, H, W)."""
        for block in self:
            x = block(x, embedding)
        return x


class PhotoNet(nn.Module):
    """Raw network F(c_in x, c_noise) for images of any size >= `smallest`; rows are independent.

    A U-Net on 2x2 pixel blocks: no layer works at full resolution, more blocks work at depth.
    """

    frequencies: Tensor

    def __init__(self, config: PhotoConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PhotoConfig()
        widths = config.channels
        frequencies = torch.pi / 4 * torch.arange(1.0, config.frequencies + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * config.frequencies, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
        )
        block = 4 * config.image_channels  # 2x2 pixels
        self.enter = nn.Conv2d(block, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.encoder = nn.ModuleList(map(Stage, widths, config.encoder, repeat(config)))
        self.decoder = nn.ModuleList(map(Stage, widths, config.decoder, repeat(config)))
        self.leave = nn.Conv2d(widths[0], block, 3, padding=1)
        with torch.no_grad():
            self.leave.weight.zero_()

    @property
    def multiple(self) -> int:
        """Sizes are padded inside to a multiple of this."""
        return int(2 ** len(self.config.channels))

    @property
    def smallest(self) -> int:
        """Pixels on a side that an image must have: two of the coarsest resolution."""
        return 2 * self.multiple

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """(B, C, H, W) scaled by c_in, (B,) = ln(sigma)/4 -> (B, C, H, W)."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = nnf.pad(x, (0, right, 0, bottom), mode="reflect")

        angle = c_noise[:, None] * self.frequencies
        embedding = self.embed(torch.cat((angle.cos(), angle.sin()), 1))  # (B, E)

        h = nnf.pixel_unshuffle(x, 2)  # (B, 4C, H/2, W/2)
        h = self.enter(h.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, stage in enumerate(self.encoder):
            if level:
                h = self.down[level - 1](nnf.pixel_unshuffle(h, 2))
            h = stage(h, embedding)
            skips.append(h)
        for level in reversed(range(len(skips))):
            if level < len(skips) - 1:
                h = nnf.pixel_shuffle(self.up[level](h), 2) + skips[level]
            h = self.decoder[level](h, embedding)
        out = nnf.pixel_shuffle(self.leave(nnf.silu(h)), 2)
        return out[..., :height, :width]

    def save(self, path: str | Path, **notes: str) -> None:
        """Write half-precision weights; the header holds the config and `notes`."""
        tensors = {
            name: value.detach().to(torch.float16).contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(tensors, path, {"config": json.dumps(asdict(self.config)), **notes})

    @classmethod
    def from_file(cls, path: str | Path) -> PhotoNet:
        """Rebuild the network (float32, channels-last, eval mode) from a file of `save` alone."""
        with safe_open(path, framework="pt") as file:
            config = json.loads(file.metadata()["config"])
            names = file.keys()
            tensors = {name: file.get_tensor(name).float() for name in names}
        for name, value in config.items():
            if isinstance(value, list):
                config[name] = tuple(value)
        with torch.random.fork_rng(devices=[]):  # initial weights would move the global generator
            net = cls(PhotoConfig(**config))
        net.load_state_dict(tensors)
        return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]  # of torch
