"""The autoencoder of a latent model: images in [-1, 1] <-> latents as the network knows them.

    z = (E(image) - shift) * scale        encode, E the mean of the encoder's Gaussian
    image = D(z / scale + shift)          decode

scale and shift are those of the autoencoder's config: `scaling_factor`, `shift_factor`, or mean and
standard deviation by channel, `latents_mean` and `latents_std` (then scale = scaling_factor / std).
Both maps go image by image, so that an image does not depend on the others of its batch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators._rowwise import by_row
from posterior.operators.base import Operator, Shape
from posterior.streams import normal


class LatentCodec:
    """The codec of a diffusers autoencoder.

    Args:
        vae: with `encode` and `decode`, such as AutoencoderKL or AutoencoderTiny; frozen, and used
            as it stands, so that tiling which was switched on stays on.

    An autoencoder in float16 that asks for it (`force_upcast`) is moved to float32, as its home
    library does: it overflows.
    """

    def __init__(self, vae: nn.Module) -> None:
        if not isinstance(vae, nn.Module) or not hasattr(vae, "decode"):
            raise InputTypeError(f"not an autoencoder: {type(vae).__name__}")
        self.vae = vae.eval().requires_grad_(False)
        config: Any = vae.config
        weight = next(vae.parameters())
        if weight.dtype == torch.float16 and config.get("force_upcast"):
            self.vae.float()
        self.channels = int(config["latent_channels"])
        blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
        self.factor = 2 ** (len(blocks) - 1)
        self.image_channels = int(config.get("in_channels", 3))
        self.scale, self.shift = _affine(config, self.channels)

    def encode(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> latents: the mean, or a draw of the encoder's law.

        Args:
            image: sides are multiples of `factor`.
            seed: draw instead of the mean.
        """
        self.latent_shape(tuple(image.shape))
        noise = None
        if seed is not None:
            noise = normal(seed, "encode", image.new_zeros(self.latent_shape(tuple(image.shape))))
        return by_row(lambda row, b: self._encoded(row, noise, b), image)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B, c, h, w) -> images (B, C, H, W), about [-1, 1]."""
        return by_row(lambda row, _: self._decoded(row), latent)

    @property
    def decoder(self) -> Decoder:
        """The decoder as a measurement operator, latent -> image."""
        return Decoder(self)

    def tile(self, on: bool = True) -> None:
        """Decode and encode large images in overlapping tiles, blended at the seams.

        Memory no longer grows with the image; the result differs a little from that in one piece.
        """
        vae: Any = self.vae
        if not hasattr(vae, "enable_tiling"):
            raise CapabilityError(f"{type(vae).__name__} cannot work in tiles")
        vae.enable_tiling() if on else vae.disable_tiling()

    def save_memory(self) -> None:
        """Tiles, and a decoder that computes its layers again for a gradient."""
        vae: Any = self.vae
        if hasattr(vae, "enable_tiling"):
            self.tile()
        if getattr(vae, "_supports_gradient_checkpointing", False):
            vae.enable_gradient_checkpointing()

    def latent_shape(self, image_shape: Shape) -> Shape:
        """The shape of the latents of images (B, C, H, W)."""
        if len(image_shape) != 4 or image_shape[1] != self.image_channels:
            raise InputError(
                f"the autoencoder takes images (B, {self.image_channels}, H, W), not {image_shape}"
            )
        height, width = image_shape[2:]
        if height % self.factor or width % self.factor or not height or not width:
            down, up = (
                tuple(max(way(s / self.factor), 1) * self.factor for s in (height, width))
                for way in (int, lambda s: -int(-s // 1))
            )
            raise InputError(
                f"the autoencoder takes images whose sides are multiples of {self.factor}, not"
                f" {height}x{width}: crop to {down[0]}x{down[1]} or pad to {up[0]}x{up[1]}"
            )
        return (image_shape[0], self.channels, height // self.factor, width // self.factor)

    def image_shape(self, latent_shape: Shape) -> Shape:
        """The shape of the images of latents (B, c, h, w)."""
        if len(latent_shape) != 4 or latent_shape[1] != self.channels:
            raise InputError(f"latents are (B, {self.channels}, h, w), not {latent_shape}")
        b, _, height, width = latent_shape
        return (b, self.image_channels, height * self.factor, width * self.factor)

    def state(self) -> object:
        """What defines the codec, for content hashes."""
        tiled = bool(getattr(self.vae, "use_tiling", False))
        return {"vae": self.vae, "scale": self.scale, "shift": self.shift, "tiled": tiled}

    def _encoded(self, image: Tensor, noise: Tensor | None, b: int) -> Tensor:
        vae: Any = self.vae
        coded = vae.encode(image.to(vae.dtype))
        if not hasattr(coded, "latent_dist"):
            mean, std = coded.latents, None
        else:
            mean, std = coded.latent_dist.mode(), coded.latent_dist.std
        z = mean.to(image.dtype)
        if noise is not None:
            if std is None:
                raise CapabilityError(f"{type(vae).__name__} has no law to draw from: seed=None")
            z = z + std.to(image.dtype) * noise[b : b + 1]
        return (z - self._beside(self.shift, z)) * self._beside(self.scale, z)

    def _decoded(self, latent: Tensor) -> Tensor:
        vae: Any = self.vae
        z = latent / self._beside(self.scale, latent) + self._beside(self.shift, latent)
        return vae.decode(z.to(vae.dtype), return_dict=False)[0].to(latent.dtype)

    def _beside(self, value: float | Tensor, z: Tensor) -> float | Tensor:
        return value.to(z).view(1, -1, 1, 1) if isinstance(value, Tensor) else value

    def __repr__(self) -> str:
        return f"LatentCodec({type(self.vae).__name__})"


class Decoder(Operator):
    """The decoder as an operator: latents (B, c, h, w) -> images (B, C, H, W).

    Its gradient keeps nothing of the forward pass but the latents, and goes image by image: memory
    is that of one image, at the price of decoding twice.
    """

    space: Literal["image", "latent"] = "latent"
    units = "image"

    def __init__(self, codec: LatentCodec) -> None:
        self.codec = codec

    def forward(self, x: Tensor) -> Tensor:
        self.codec.image_shape(tuple(x.shape))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.codec.decode(x)
        return torch.cat(
            [checkpoint(self.codec.decode, row, use_reentrant=False) for row in torch.split(x, 1)]
        )

    def domain_shape(self, y_shape: Shape) -> Shape:
        return self.codec.latent_shape(y_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return self.codec.image_shape(x_shape)

    def __repr__(self) -> str:
        return f"Decoder({type(self.codec.vae).__name__})"


def _affine(config: Any, channels: int) -> tuple[float | Tensor, float | Tensor]:
    """(scale, shift): numbers, or by channel (c,)."""
    factor = float(config.get("scaling_factor") or 1.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        if len(mean) != channels or len(std) != channels:
            raise InputError(f"latents_mean and latents_std need {channels} numbers each")
        return factor / torch.tensor(std, dtype=torch.float64), torch.tensor(mean).double()
    return factor, float(config.get("shift_factor") or 0.0)
