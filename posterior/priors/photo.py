"""The network of the bundled photo prior: a small fully convolutional denoiser of RGB images.

`PhotoNet` is the raw network F of Karras et al. 2022 (EDM, arXiv:2206.00364), eq. 7:

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)                            (table 1, "Ours")

It is free of normalisation layers: every convolution has rows of unit length and every sum is
weighted so that activations keep unit variance (the magnitude-preserving design of Karras et al.
2024, EDM2, arXiv:2312.02696, sections 2.3-2.4). Unit rows are kept by the optimiser
(`examples/photo_prior/train.py`), so inference is plain convolutions. No output depends on a
statistic of the batch or of the whole image.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise, repeat
from pathlib import Path

import torch
import torch.nn.functional as nnf
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class PhotoConfig:
    """Sizes of the network and constants of its preconditioning, stored beside the weights."""

    channels: tuple[int, ...] = (96, 128, 192, 256)  # at 1/2, 1/4, 1/8, 1/16 of the resolution
    encoder: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks on the way down
    decoder: tuple[int, ...] = (2, 2, 2, 0)  # residual blocks on the way up
    frequencies: int = 16  # Fourier features of c_noise
    embedding: int = 128
    balance: float = 0.3  # share of the branch in a residual sum (EDM2, eq. 88)
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0


SILU = 0.596  # root mean square of SiLU of a standard normal (EDM2, eq. 81)


def pixel_norm(x: Tensor) -> Tensor:
    """Scale the channel vector of each pixel to unit mean square (EDM2, eq. 30)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-4).rsqrt()


def conv(inputs: int, outputs: int, size: int, length: float = 1.0) -> nn.Conv2d:
    """A convolution without bias whose rows all have one length, kept by the optimiser.

    Independent inputs of unit variance come out with standard deviation `length`, so the factors
    of magnitude-preserving SiLU and sum are part of the weights and cost no work on activations.
    """
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    with torch.no_grad():
        nn.init.normal_(layer.weight)
        layer.weight *= length / layer.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return layer


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, modulated in between by the noise level.

    Trunk and branch add as (1 - b) x + b y over sqrt((1 - b)^2 + b^2) (EDM2, eq. 88).
    """

    def __init__(self, channels: int, config: PhotoConfig) -> None:
        super().__init__()
        branch = config.balance
        trunk = 1 - branch
        total = (trunk**2 + branch**2) ** 0.5
        self.trunk = trunk / total
        self.first = conv(channels, channels, 3, 1 / SILU)
        self.second = conv(channels, channels, 3, branch / total / SILU)
        self.level = conv(config.embedding, channels, 1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E, 1, 1) -> (B, C, H, W)."""
        y = self.first(nnf.silu(x)) * (1 + self.gain * self.level(embedding))
        return torch.add(self.second(nnf.silu(y)), x, alpha=self.trunk)


class Stage(nn.ModuleList):
    """The residual blocks of one resolution, in a row."""

    def __init__(self, channels: int, count: int, config: PhotoConfig) -> None:
        super().__init__(Block(channels, config) for _ in range(count))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E, 1, 1) -> (B, C, H, W)."""
        for block in self:
            x = block(x, embedding)
        return x


class PhotoNet(nn.Module):
    """Raw network F(c_in x, c_noise) for RGB images of any size >= 32x32; rows are independent.

    A U-Net on 2x2 pixel blocks: no layer works at full resolution, more blocks work at depth.
    """

    frequencies: Tensor

    def __init__(self, config: PhotoConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PhotoConfig()
        widths = config.channels
        frequencies = torch.pi / 4 * torch.arange(1.0, config.frequencies + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.ModuleList(
            [
                conv(2 * config.frequencies, config.embedding, 1),
                conv(config.embedding, config.embedding, 1, 1 / SILU),
            ]
        )
        self.enter = conv(12 + 1, widths[0], 3)  # 2x2 RGB pixels and a constant
        self.down = nn.ModuleList(conv(4 * a, b, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(conv(b, 4 * a, 1, 0.5**0.5) for a, b in pairwise(widths))
        self.encoder = nn.ModuleList(map(Stage, widths, config.encoder, repeat(config)))
        self.decoder = nn.ModuleList(map(Stage, widths, config.decoder, repeat(config)))
        self.leave = conv(widths[0], 12, 3, 1 / SILU)
        self.gain = nn.Parameter(torch.zeros(()))

    @property
    def multiple(self) -> int:
        """Sizes are padded inside to a multiple of this."""
        return int(2 ** len(self.config.channels))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """(B, 3, H, W) scaled by c_in, (B,) = ln(sigma)/4 -> (B, 3, H, W)."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = nnf.pad(x, (0, right, 0, bottom), mode="reflect")

        angle = c_noise.view(-1, 1, 1, 1) * self.frequencies.view(1, -1, 1, 1)
        emb = 2**0.5 * torch.cat((angle.cos(), angle.sin()), 1)  # (B, 2 F, 1, 1)
        emb = nnf.silu(self.embed[1](nnf.silu(self.embed[0](emb)))) / SILU

        h = nnf.pixel_unshuffle(x, 2)  # (B, 12, H/2, W/2)
        h = torch.cat((h, torch.ones_like(h[:, :1])), 1)
        h = self.enter(h.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, stage in enumerate(self.encoder):
            if level:
                h = self.down[level - 1](nnf.pixel_unshuffle(h, 2))
            h = stage(pixel_norm(h), emb)
            skips.append(h)
        for level in reversed(range(len(skips))):
            if level < len(skips) - 1:
                h = nnf.pixel_shuffle(self.up[level](h), 2)
                h = torch.add(h, skips[level], alpha=0.5**0.5)
            h = self.decoder[level](h, emb)
        out = nnf.pixel_shuffle(self.leave(nnf.silu(h)) * self.gain, 2)
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
        for name in ("channels", "encoder", "decoder"):
            config[name] = tuple(config[name])
        net = cls(PhotoConfig(**config))
        net.load_state_dict(tensors)
        return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]  # of torch
