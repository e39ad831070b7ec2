"""Networks of EDM (Karras et al. 2022, arXiv:2206.00364) from a state dict of NVlabs/edm.

Both architectures of `training/networks.py`: SongUNet (DDPM++ and NCSN++ of Song et al. 2021) and
DhariwalUNet (ADM). The parameters keep the names of the format, and the architecture is read from
them, the resolution included. A `config`, in the constructor arguments of the format and `precond`,
says what no tensor shows, and is refused where it contradicts the tensors. With r = sigma / alpha,

    precond "edm"    D = c_skip x + c_out F(c_in x, ln(r) / 4)                     (table 1, "Ours")
            "vp"     D = x - r F(x / sqrt(1 + r^2), (M - 1) t)
            "ve"     D = x + r F(x, ln(r / 2))
            "iddpm"  D = x - r F(x / sqrt(1 + r^2), index), F with a second half for the variance

Images have the values [-1, 1]. What is taken without a config: sigma_data = 0.5 and noise levels
0.002 to 80 for "edm", those of the paper otherwise; no label dropout, so no guidance towards a
label. `precond` itself must be said, unless it can only be "iddpm".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from posterior.errors import FileProblem, InputError, unknown_name
from posterior.priors.checkpoints._files import agree, fill, shape_of
from posterior.priors.checkpoints._layers import attend, held, image_like, pixels_last, sinusoids
from posterior.priors.checkpoints._prior import CheckpointPrior
from posterior.priors.network import Output
from posterior.priors.recomputing import Recomputed
from posterior.schedules import EDM, VE, Discrete, Schedule, VPLinear

ANCHOR = "map_layer0.weight"  # a name that tells the format
_HEAD = 64  # channels of a head of DhariwalUNet
_PRECONDS = {
    "edm": "edm", "EDMPrecond": "edm", "vp": "vp", "VPPrecond": "vp", "ve": "ve", "VEPrecond": "ve",
    "iddpm": "iddpm", "iDDPMPrecond": "iddpm",
}  # fmt: skip
_FREE: dict[str, float] = {  # numbers of the preconditioning, with their defaults
    "sigma_data": 0.5, "beta_d": 19.9, "beta_min": 0.1, "M": 1000, "C_1": 0.001, "C_2": 0.008,
    "label_dropout": 0.0,
}  # fmt: skip
_RANGES = {"edm": (0.002, 80.0), "ve": (0.02, 100.0)}  # sigma_min and sigma_max where not said
_STRUCTURE = (
    "model_type", "img_resolution", "img_channels", "label_dim", "model_channels", "channel_mult",
    "channel_mult_emb", "channel_mult_noise", "num_blocks", "attn_resolutions", "embedding_type",
    "encoder_type", "decoder_type",
)  # fmt: skip
_OTHER = (  # read from the tensors, or of training alone
    "resample_filter", "augment_dim", "dropout", "use_fp16", "epsilon_t",
)  # fmt: skip


@dataclass(frozen=True)
class EDMConfig:
    """The architecture.

    Attributes:
        kind: which of the two.
        resolution: of the images, that the names of the parameters carry.
        channels, outputs: of an image, and of the output.
        model_channels: the width that those of the levels are multiples of.
        embedding, noise: widths of the embedding of the noise level, in the end and at first.
        widths: channels of each level, from full resolution down.
        blocks: of a level on the way down; one more on the way up.
        attention: whether a level attends.
        labels: number of classes, 0 for none.
        fourier: random frequencies instead of fixed ones embed the noise level.
        encoder, decoder: what besides the U-Net carries the image from level to level.
        taps: length of the filter that halves and doubles.
    """

    kind: Literal["SongUNet", "DhariwalUNet"]
    resolution: int
    channels: int
    outputs: int
    model_channels: int
    embedding: int
    noise: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    labels: int
    fourier: bool = False
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    taps: int = 2

    @property
    def eps(self) -> float:
        """Of the normalisation."""
        return 1e-6 if self.kind == "SongUNet" else 1e-5

    @property
    def scale_shift(self) -> bool:
        """Whether the noise level scales and shifts a block, instead of shifting it only."""
        return self.kind == "DhariwalUNet"

    def heads(self, width: int) -> int:
        """Heads of an attention over so many channels; 0 for none."""
        return 1 if self.kind == "SongUNet" else width // _HEAD


class Resampled(nn.Module):
    """A convolution, with halving before it, doubling before it, or halving after it.

    Args:
        width, out: channels.
        kernel: size of the convolution; 0 for the resampling alone.
        resample: "down" or "up" first, "down after", or None.
        taps: length of the filter.
    """

    resample_filter: Tensor

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int,
        resample: Literal["up", "down", "down after"] | None = None,
        taps: int = 2,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.weight = nn.Parameter(torch.empty(out, width, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(out)) if kernel else None
        if resample:
            self.register_buffer("resample_filter", torch.empty(1, 1, taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if self.resample == "up":
            kernel, before = self._filter(x)
            x = nnf.conv_transpose2d(x, 4 * kernel, stride=2, padding=before, groups=x.shape[1])
        elif self.resample == "down":
            kernel, before = self._filter(x)
            x = nnf.conv2d(x, kernel, stride=2, padding=before, groups=x.shape[1])
        if self.weight is None:
            return x
        pad = self.weight.shape[-1] // 2
        if self.resample != "down after":
            return nnf.conv2d(x, self.weight, self.bias, padding=pad)
        x = nnf.conv2d(x, self.weight, padding=pad + (self.resample_filter.shape[-1] - 1) // 2)
        kernel, _ = self._filter(x)
        return nnf.conv2d(x, kernel, self.bias, stride=2, groups=x.shape[1])

    def _filter(self, x: Tensor) -> tuple[Tensor, int]:
        """The filter for every channel of x, and its padding."""
        taps = self.resample_filter.shape[-1]
        return self.resample_filter.expand(x.shape[1], 1, taps, taps), (taps - 1) // 2


class Block(Recomputed):
    """Two convolutions with the noise level in between, around them a skip; perhaps attention."""

    def __init__(
        self,
        config: EDMConfig,
        width: int,
        out: int,
        resample: Literal["up", "down"] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        song = config.kind == "SongUNet"
        self.gain = math.sqrt(0.5) if song else 1.0
        self.scale_shift = config.scale_shift
        self.heads = config.heads(out) if attention else 0
        self.norm0 = _norm(width, config)
        self.conv0 = Resampled(width, out, 3, resample, config.taps)
        self.affine = nn.Linear(config.embedding, out * (2 if self.scale_shift else 1))
        self.norm1 = _norm(out, config)
        self.conv1 = Resampled(out, out, 3)
        self.skip: nn.Module = nn.Identity()
        if width != out or resample:
            kernel = 1 if song or width != out else 0
            self.skip = Resampled(width, out, kernel, resample, config.taps)
        if self.heads:
            self.norm2 = _norm(out, config)
            self.qkv = Resampled(out, 3 * out, 1)
            self.proj = Resampled(out, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H', W')."""
        h = self.conv0(nnf.silu(self.norm0(x)))
        level = self.affine(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = level.chunk(2, 1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + level)
        x = (self.conv1(nnf.silu(h)) + self.skip(x)) * self.gain
        if self.heads:
            qkv = pixels_last(self.qkv(self.norm2(x)))
            out = self.proj(image_like(attend(qkv, self.heads, "channel"), x))
            x = (x + out) * self.gain
        return x


def _norm(width: int, config: EDMConfig) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, width // 4), width, eps=config.eps)


class Frequencies(nn.Module):
    """The random frequencies of an embedding, stored with the weights."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(width // 2))


class EDMNet(nn.Module):
    """Either U-Net."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.config = config
        song = config.kind == "SongUNet"
        if config.fourier:
            self.map_noise = Frequencies(config.noise)
        if config.labels:
            out = config.noise if song else config.embedding
            self.map_label = nn.Linear(config.labels, out, bias=song)
        self.map_layer0 = nn.Linear(config.noise, config.embedding)
        self.map_layer1 = nn.Linear(config.embedding, config.embedding)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self._encoder()
        self._decoder()
        if not song:
            self.out_norm = _norm(config.widths[0], config)
            self.out_conv = Resampled(config.widths[0], config.outputs, 3)

    def _names(self) -> list[str]:
        """The beginnings of the names of each level, from full resolution down."""
        sizes = [self.config.resolution >> level for level in range(len(self.config.widths))]
        return [f"{size}x{size}_" for size in sizes]

    def _encoder(self) -> None:
        config, carried = self.config, self.config.channels
        song = config.kind == "SongUNet"
        width = config.model_channels if song else config.widths[0]
        self.kept = [width]  # the widths that the way up takes in again
        for level, name in enumerate(self._names()):
            if level == 0:
                self.enc[name + "conv"] = Resampled(config.channels, width, 3)
            else:
                self.enc[name + "down"] = Block(config, width, width, "down")
                self.kept.append(width)
                if config.encoder == "skip":
                    self.enc[name + "aux_down"] = Resampled(
                        carried, carried, 0, "down", config.taps
                    )
                    self.enc[name + "aux_skip"] = Resampled(carried, width, 1)
                elif config.encoder == "residual":
                    self.enc[name + "aux_residual"] = Resampled(
                        carried, width, 3, "down after", config.taps
                    )
                    carried = width
            for block in range(config.blocks):
                out = config.widths[level]
                self.enc[f"{name}block{block}"] = Block(
                    config, width, out, attention=config.attention[level]
                )
                width = out
                self.kept.append(width)

    def _decoder(self) -> None:
        config, kept = self.config, list(self.kept)
        song, width, last = config.kind == "SongUNet", kept[-1], len(config.widths) - 1
        for level, name in reversed(list(enumerate(self._names()))):
            if level == last:
                self.dec[name + "in0"] = Block(config, width, width, attention=True)
                self.dec[name + "in1"] = Block(config, width, width)
            else:
                self.dec[name + "up"] = Block(config, width, width, "up")
            for block in range(config.blocks + 1):
                out = config.widths[level]
                attends = config.attention[level] and (not song or block == config.blocks)
                self.dec[f"{name}block{block}"] = Block(
                    config, width + kept.pop(), out, attention=attends
                )
                width = out
            if song and (config.decoder == "skip" or level == 0):
                if config.decoder == "skip" and level < last:
                    self.dec[name + "aux_up"] = Resampled(
                        config.outputs, config.outputs, 0, "up", config.taps
                    )
                self.dec[name + "aux_norm"] = _norm(width, config)
                self.dec[name + "aux_conv"] = Resampled(width, config.outputs, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) int64 with -1 for no class -> (B, C or 2 C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        embedding = self._embedding(noise, labels, x.dtype)
        kept: list[Tensor] = []
        carried = x
        for name, layer in self.enc.items():
            part = name.split("_", 1)[1]
            if part == "aux_down":
                carried = layer(carried)
            elif part == "aux_skip":
                x = kept[-1] = x + layer(carried)
            elif part == "aux_residual":
                x = kept[-1] = carried = (x + layer(carried)) * math.sqrt(0.5)
            else:
                x = layer(x) if part == "conv" else layer(x, embedding)
                kept.append(x)
        image: Tensor | None = None
        for name, layer in self.dec.items():
            part = name.split("_", 1)[1]
            if part == "aux_up":
                image = layer(image)
            elif part == "aux_norm":
                normed = nnf.silu(layer(x))
            elif part == "aux_conv":
                image = layer(normed) if image is None else image + layer(normed)
            else:
                if part.startswith("block"):
                    x = torch.cat([x, kept.pop()], 1)
                x = layer(x, embedding)
        return self.out_conv(nnf.silu(self.out_norm(x))) if image is None else image

    def _embedding(self, noise: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B,), (B,) -> (B, E), after its silu."""
        config = self.config
        classes = None
        if labels is not None:  # one-hot; all zeros for no class
            classes = (labels[:, None] == torch.arange(config.labels, device=labels.device)).to(
                dtype
            )
        if config.kind == "DhariwalUNet":
            waves = sinusoids(noise, config.noise).to(dtype)
            embedding = self.map_layer1(nnf.silu(self.map_layer0(waves)))
            if classes is not None:
                embedding = embedding + self.map_label(classes)
            return nnf.silu(embedding)
        if config.fourier:
            angle = noise[:, None] * (2 * torch.pi * self.map_noise.freqs.to(noise.dtype))
            waves = torch.cat([angle.sin(), angle.cos()], 1).to(dtype)
        else:
            cosines, sines = sinusoids(noise, config.noise, last=True).chunk(2, 1)
            waves = torch.cat([sines, cosines], 1).to(dtype)
        if classes is not None:
            waves = waves + self.map_label(classes * math.sqrt(config.labels))
        return nnf.silu(self.map_layer1(nnf.silu(self.map_layer0(waves))))


class Negated(nn.Module):
    """A network that answers r times the score, as one that answers eps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """As the network, with the other sign."""
        return -self.network(x, time, labels)


def load(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object],
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    rows: int = 1,
    low_memory: bool = False,
) -> CheckpointPrior:
    """The prior of a state dict of EDM.

    Args:
        tensors: by the names of the format, with or without those of the preconditioning.
        config: constructor arguments of the format, and `precond`.
        path: for messages.
        dtype: of the weights.
        rows, low_memory: as for `NetworkPrior`.

    Raises:
        FileProblem: missing or surplus tensors.
        InputError: no `precond`, an unknown argument, or one that contradicts the tensors.
    """
    known = ("precond", "sigma_min", "sigma_max", *_FREE, *_STRUCTURE)
    for key in config:
        if key not in (*known, *_OTHER):
            raise unknown_name("argument of an EDM network", key, known)
    tensors = {k: v for k, v in tensors.items() if k not in ("u", "map_augment.weight")}
    architecture = _architecture(tensors, config, path)
    precond = _precond(config, architecture, path)
    with torch.device("meta"):
        network = EDMNet(architecture)
    fill(network, tensors, path, dtype)
    if architecture.fourier:  # half precision would turn the phases of the embedding
        freqs = tensors["map_noise.freqs"]
        network.map_noise.freqs = freqs.to(torch.promote_types(dtype, torch.float32))
    numbers = _numbers(config)
    reading = _reading(precond, config, numbers)
    return CheckpointPrior(
        Negated(network) if precond == "ve" else network,
        reading.parametrisation,
        reading.schedule,
        time=reading.time,
        learned_variance=precond == "iddpm",
        sigma_data=numbers["sigma_data"],
        classes=architecture.labels or None,
        without_class=numbers["label_dropout"] > 0,
        channels=architecture.channels,
        multiple=1,
        event_shape=(architecture.channels, architecture.resolution, architecture.resolution),
        config=(architecture, precond, sorted(numbers.items())),
        rows=rows,
        graph_bytes=held(architecture, dtype),
        low_memory=low_memory,
    )


@dataclass(frozen=True)
class _Reading:
    """How a network is called: what it answers, at which levels, told in which time."""

    parametrisation: Output
    schedule: Schedule
    time: Callable[[Tensor], Tensor] | None = None


def _reading(precond: str, config: Mapping[str, object], numbers: Mapping[str, float]) -> _Reading:
    if precond in _RANGES:
        low, high = _RANGES[precond]
        low = _number("sigma_min", config) or low  # the constructor's own default is 0,
        high = _number("sigma_max", config) or high
        if precond == "edm":
            return _Reading("edm", EDM(low, high if math.isfinite(high) else _RANGES["edm"][1]))
        schedule = VE(low, high)
        return _Reading("eps", schedule, partial(_half_noise, schedule))
    count = int(numbers["M"])
    if precond == "vp":
        beta_min = numbers["beta_min"]
        return _Reading(
            "eps", VPLinear(beta_min, beta_min + numbers["beta_d"]), partial(_steps, count - 1)
        )
    return _Reading("eps", Discrete.cosine(count, numbers["C_2"], 1 - numbers["C_1"]))


def _half_noise(schedule: VE, t: Tensor) -> Tensor:
    """ln(sigma / 2)."""
    return torch.log(schedule(t)[1] / 2)


def _steps(count: int, t: Tensor) -> Tensor:
    return count * t


def _number(key: str, config: Mapping[str, object]) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise InputError(f"{key} is a number that is not negative, got {value!r}")
    return float(value)


def _numbers(config: Mapping[str, object]) -> dict[str, float]:
    said = {key: _number(key, config) for key in _FREE}
    return {k: default if said[k] is None else float(said[k] or 0) for k, default in _FREE.items()}


def _precond(config: Mapping[str, object], architecture: EDMConfig, path: str) -> str:
    learned = architecture.outputs == 2 * architecture.channels
    name = str(config.get("precond") or ("iddpm" if learned else ""))
    if not name:
        raise InputError(
            f"no tensor of {path} shows how the network is preconditioned: give"
            " config={'precond': 'edm'}, or 'vp' or 've'"
        )
    if name not in _PRECONDS:
        raise unknown_name("precond", name, ("edm", "vp", "ve", "iddpm"))
    precond = _PRECONDS[name]
    if learned != (precond == "iddpm"):
        raise InputError(
            f"the network of {path} turns {architecture.channels} channels into"
            f" {architecture.outputs}, which does not fit precond = {name!r}"
        )
    return precond


def _architecture(
    tensors: Mapping[str, Tensor], config: Mapping[str, object], path: str
) -> EDMConfig:
    """The architecture that the tensors show, compared with what the config says."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(tensors, name, path)

    def any_like(pattern: str) -> list[str]:
        return [name for name in tensors if re.match(pattern, name)]

    sizes = sorted({int(n[4:].split("x")[0]) for n in any_like(r"enc\.\d+x")}, reverse=True)
    if not sizes:
        raise FileProblem(f"{path} has a map_layer0, but no enc.* as the networks of EDM have")
    top = f"{sizes[0]}x{sizes[0]}"
    song = not any_like(r"out_conv\.")
    embedding, noise = shape("map_layer0.weight")
    blocks = [int(n.split("block")[1].split(".")[0]) for n in any_like(rf"enc\.{top}_block\d+\.")]
    filters = any_like(r".*resample_filter$")
    shown = EDMConfig(
        kind="SongUNet" if song else "DhariwalUNet",
        resolution=sizes[0],
        channels=shape(f"enc.{top}_conv.weight")[1],
        outputs=shape(f"dec.{top}_aux_conv.weight" if song else "out_conv.weight")[0],
        model_channels=shape(f"enc.{top}_conv.weight")[0] if song else noise,
        embedding=embedding,
        noise=noise,
        widths=tuple(shape(f"enc.{s}x{s}_block0.conv1.weight")[0] for s in sizes),
        blocks=1 + max(blocks),
        attention=tuple(bool(any_like(rf"enc\.{s}x{s}_block\d+\.qkv\.")) for s in sizes),
        labels=shape("map_label.weight")[1] if any_like(r"map_label\.") else 0,
        fourier=bool(any_like(r"map_noise\.freqs")),
        encoder=(
            "skip" if any_like(r"enc\..*_aux_skip\.")
            else "residual" if any_like(r"enc\..*_aux_residual\.")
            else "standard"
        ),
        decoder="skip" if any_like(rf"dec\.(?!{top}).*_aux_conv\.") else "standard",
        taps=shape(filters[0])[-1] if filters else 2,
    )  # fmt: skip
    said = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config.items()}
    if isinstance(resolutions := said.get("attn_resolutions"), tuple):
        said["attn_resolutions"] = tuple(r for r in sizes if r in resolutions)
    found: dict[str, object] = {
        "model_type": shown.kind,
        "img_resolution": shown.resolution,
        "img_channels": shown.channels,
        "label_dim": shown.labels,
        "model_channels": shown.model_channels,
        "channel_mult": tuple(width / shown.model_channels for width in shown.widths),
        "channel_mult_emb": shown.embedding / shown.model_channels,
        "num_blocks": shown.blocks,
        "attn_resolutions": tuple(
            size for size, attends in zip(sizes, shown.attention, strict=True) if attends
        ),
    }
    if song:
        found |= {
            "channel_mult_noise": shown.noise / shown.model_channels,
            "embedding_type": "fourier" if shown.fourier else "positional",
            "encoder_type": shown.encoder,
            "decoder_type": shown.decoder,
        }
    agree(said, found, path)
    return shown
