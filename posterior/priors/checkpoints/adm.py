"""ADM networks (Dhariwal & Nichol 2021, arXiv:2105.05233) from a guided-diffusion state dict.

The U-Net of FFHQ 256 and ImageNet 64 to 512 behind DPS, MCG, DAPS and RED-diff. Its parameters keep
the names of the format, and nearly all of its architecture is read from the tensors. A `config`,
in the flags of the format (`num_channels`, `attention_resolutions`, ...), says the rest, and is
refused where it contradicts the tensors.

What no tensor shows, and what is taken without a config:

    num_heads, num_head_channels   64 channels a head, where the widths allow it
    use_new_attention_order        False
    noise_schedule                 linear, 1000 steps

but for the two released networks of ImageNet 64 and 128, which are known by their sizes.

    y = h + conv(silu(norm(conv(silu(norm(h)))) (1 + scale) + shift))            a residual block
    eps, u = net(x_t, i)                            i the index in the table; u where it is learned
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from posterior.errors import CapabilityError, FileProblem, InputError, unknown_name
from posterior.priors.checkpoints._files import agree, fill, shape_of
from posterior.priors.checkpoints._layers import attend, held, image_like, pixels_last, sinusoids
from posterior.priors.checkpoints._prior import CheckpointPrior
from posterior.priors.recomputing import Recomputed
from posterior.schedules import Discrete

ANCHOR = "input_blocks.0.0.weight"  # a name that tells the format
_GROUPS = 32
_HEAD = 64  # channels of a head, unless something else is said
_FIRST_BETA, _LAST_BETA = 1e-4, 0.02  # of 1000 steps

# channel_mult of an image_size, where the flag is empty
_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}

# (model channels, multipliers, blocks, classes) of released networks that are not as assumed
_RELEASED: dict[tuple[int, tuple[int, ...], int, int | None], dict[str, object]] = {
    (192, (192, 384, 576, 768), 3, 1000): {
        "num_head_channels": 64,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
    },
    (256, (256, 256, 512, 768, 1024), 2, 1000): {"num_heads": 4},
}

_STRUCTURE = (
    "num_channels", "num_res_blocks", "channel_mult", "attention_resolutions", "learn_sigma",
    "class_cond", "use_scale_shift_norm", "resblock_updown", "image_size",
)  # fmt: skip
_FREE = (
    "num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order",
    "noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps",
)  # fmt: skip
_TRAINING = (  # flags that leave the function of the network alone
    "dropout", "use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas",
    "timestep_respacing", "model_path",
)  # fmt: skip


@dataclass(frozen=True)
class ADMConfig:
    """The architecture.

    Attributes:
        channels: of an image.
        outputs: `channels`, or twice as many with a learned variance.
        model_channels: width that the embedding of time starts from.
        widths: channels of each level, from full resolution down.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: whether a level attends.
        scale_shift: time scales and shifts a block, instead of shifting it only.
        residual_resampling: levels are joined by residual blocks instead of plain convolutions.
        classes: number of classes, or None.
        heads, heads_up: of attention, down and up.
        head_channels: channels of a head; where given, the numbers above do not count.
        new_order: attention stores all q, then all k and v, instead of a head after the other.
    """

    channels: int
    outputs: int
    model_channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    scale_shift: bool
    residual_resampling: bool
    classes: int | None
    heads: int = 1
    heads_up: int = 1
    head_channels: int | None = None
    new_order: bool = False


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width)


class ResBlock(Recomputed):
    """Two convolutions with time in between, around them a skip; may halve or double the size."""

    def __init__(
        self, config: ADMConfig, width: int, out: int, resample: Literal["up", "down"] | None = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = config.scale_shift, resample
        level = nn.Linear(4 * config.model_channels, out * (2 if self.scale_shift else 1))
        self.in_layers = nn.ModuleDict(
            {"0": _norm(width), "2": nn.Conv2d(width, out, 3, padding=1)}
        )
        self.emb_layers = nn.ModuleDict({"1": level})
        self.out_layers = nn.ModuleDict({"0": _norm(out), "3": nn.Conv2d(out, out, 3, padding=1)})
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) after its silu -> (B, C', H', W')."""
        h = nnf.silu(self.in_layers["0"](x))
        if self.resample == "down":
            h, x = nnf.avg_pool2d(h, 2), nnf.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = _doubled(h), _doubled(x)
        h = self.in_layers["2"](h)
        level = self.emb_layers["1"](embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = level.chunk(2, 1)
            h = torch.addcmul(shift, self.out_layers["0"](h), 1 + scale)
        else:
            h = self.out_layers["0"](h + level)
        return self.skip_connection(x) + self.out_layers["3"](nnf.silu(h))


class Attention(Recomputed):
    """Self-attention over the pixels of a level, added to it."""

    def __init__(self, config: ADMConfig, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads if config.head_channels is None else width // config.head_channels
        self.order: Literal["kind", "head"] = "kind" if config.new_order else "head"
        self.norm = _norm(width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = nnf.linear(pixels_last(self.norm(x)), self.qkv.weight[:, :, 0], self.qkv.bias)
        out = attend(qkv, self.heads, self.order)
        return x + image_like(nnf.linear(out, self.proj_out.weight[:, :, 0], self.proj_out.bias), x)


class Halve(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.op(x)


class Double(nn.Module):
    """Every pixel four times, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(_doubled(x))


def _doubled(x: Tensor) -> Tensor:
    return nnf.interpolate(x, scale_factor=2, mode="nearest")


class Stage(nn.ModuleList):
    """Layers in a row, the residual ones with time."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H', W')."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class ADMNet(nn.Module):
    """The U-Net; fully convolutional, for sizes that halve as often as it has levels less one."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        embedding = 4 * config.model_channels
        self.time_embed = nn.ModuleDict(
            {"0": nn.Linear(config.model_channels, embedding), "2": nn.Linear(embedding, embedding)}
        )
        if config.classes is not None:
            self.label_emb = nn.Embedding(config.classes, embedding)

        width = config.widths[0]
        self.input_blocks = nn.ModuleList(
            [Stage([nn.Conv2d(config.channels, width, 3, padding=1)])]
        )
        kept = [width]  # the widths that the way up takes in again
        for level, out in enumerate(config.widths):
            if level:
                self.input_blocks.append(
                    Stage([ResBlock(config, width, width, "down")])
                    if config.residual_resampling
                    else Stage([Halve(width)])
                )
                kept.append(width)
            for _ in range(config.blocks):
                stage = Stage([ResBlock(config, width, out)])
                if config.attention[level]:
                    stage.append(Attention(config, out, config.heads))
                self.input_blocks.append(stage)
                width = out
                kept.append(width)

        self.middle_block = Stage(
            [
                ResBlock(config, width, width),
                Attention(config, width, config.heads),
                ResBlock(config, width, width),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(config.widths))):
            out = config.widths[level]
            for block in range(config.blocks + 1):
                stage = Stage([ResBlock(config, width + kept.pop(), out)])
                width = out
                if config.attention[level]:
                    stage.append(Attention(config, width, config.heads_up))
                if level and block == config.blocks:
                    stage.append(
                        ResBlock(config, width, width, "up")
                        if config.residual_resampling
                        else Double(width)
                    )
                self.output_blocks.append(stage)
        self.out = nn.ModuleDict(
            {"0": _norm(width), "2": nn.Conv2d(width, config.outputs, 3, padding=1)}
        )

    def forward(self, x: Tensor, index: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,), (B,) int64 -> (B, C or 2 C, H, W)."""
        waves = sinusoids(index, self.config.model_channels).to(x.dtype)
        embedding = self.time_embed["2"](nnf.silu(self.time_embed["0"](waves)))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        embedding = nnf.silu(embedding)  # every block begins with it
        h = x.contiguous(memory_format=torch.channels_last)
        kept = []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            kept.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, kept.pop()], 1), embedding)
        return self.out["2"](nnf.silu(self.out["0"](h)))


def load(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object],
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    rows: int = 1,
    low_memory: bool = False,
) -> CheckpointPrior:
    """The prior of an ADM state dict.

    Args:
        tensors: by the names of the format.
        config: flags of guided-diffusion; {} takes what the tensors show and the defaults above.
        path: for messages.
        dtype: of the weights.
        rows, low_memory: as for `NetworkPrior`.

    Raises:
        FileProblem: missing or surplus tensors, or those of a classifier or an upsampler.
        InputError: an unknown flag, or one that contradicts the tensors.
    """
    for key in config:
        if key not in (*_STRUCTURE, *_FREE, *_TRAINING):
            raise unknown_name("flag of an ADM network", key, (*_STRUCTURE, *_FREE))
    shown = _architecture(tensors, path)
    _compare(config, shown, path)
    free = _free(config, shown)
    architecture = _with_heads(shown, free, path)
    with torch.device("meta"):
        network = ADMNet(architecture)
    fill(network, tensors, path, dtype)
    prior = CheckpointPrior(
        network,
        "x0" if free.get("predict_xstart") else "eps",
        _schedule(free),
        classes=architecture.classes,
        without_class=False,
        channels=architecture.channels,
        multiple=2 ** (len(architecture.widths) - 1),
        config=architecture,
        learned_variance=architecture.outputs == 2 * architecture.channels,
        rows=rows,
        graph_bytes=held(architecture, dtype),
        low_memory=low_memory,
    )
    size = config.get("image_size")
    if isinstance(size, int):
        prior.default_shape = (architecture.channels, size, size)
    return prior


def _architecture(tensors: Mapping[str, Tensor], path: str) -> ADMConfig:
    """What the tensors show of the architecture: all but the heads."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(tensors, name, path)

    tails: dict[int, set[str]] = {}  # of an output block, the names behind its number
    for name in tensors:
        if match := re.match(r"output_blocks\.(\d+)\.(.+)", name):
            tails.setdefault(int(match[1]), set()).add(match[2])
    if not tails:
        raise FileProblem(f"{path} has no output_blocks: half a U-Net, as classifiers are")
    stages = [tails.get(k, set()) for k in range(max(tails) + 1)]
    joints = [  # what joins a level to the next: a layer behind the first that is not attention
        {tail for tail in stage if re.match(r"[1-9]\d*\.(?!norm|qkv|proj_out)", tail)}
        for stage in stages
    ]
    ends = [k for k, joint in enumerate(joints) if joint]
    each = ends[0] + 1 if ends else len(stages)
    levels = len(ends) + 1
    if any(b - a != each for a, b in pairwise(ends)) or len(stages) != each * levels:
        raise FileProblem(
            f"{path} has {len(stages)} output blocks, and upsampling in {ends}: levels of one"
            " length are expected"
        )
    if each < 2:
        raise FileProblem(f"{path} has {each} output block a level: at least 2 are expected")
    firsts = [each * k for k in reversed(range(levels))]
    widths = tuple(shape(f"output_blocks.{k}.0.out_layers.3.weight")[0] for k in firsts)
    channels, outputs = shape(ANCHOR)[1], shape("out.2.weight")[0]
    if channels == outputs == 6:
        raise FileProblem(f"{path} is an upsampler: it takes a small image besides x_t")
    if outputs not in (channels, 2 * channels):
        raise FileProblem(f"{path} turns {channels} channels into {outputs}: not a denoiser")
    classes = shape("label_emb.weight")[0] if "label_emb.weight" in tensors else None
    return ADMConfig(
        channels,
        outputs,
        shape("time_embed.0.weight")[1],
        widths,
        each - 1,
        tuple(any(".qkv." in tail for s in stages[k : k + each] for tail in s) for k in firsts),
        shape("middle_block.0.emb_layers.1.weight")[0] == 2 * widths[-1],
        any("in_layers." in tail for joint in joints for tail in joint),
        classes,
    )


def _compare(config: Mapping[str, object], shown: ADMConfig, path: str) -> None:
    """Refuse flags that contradict the tensors."""
    flags = dict(config)
    found: dict[str, object] = {
        "num_channels": shown.model_channels,
        "num_res_blocks": shown.blocks,
        "learn_sigma": shown.outputs != shown.channels,
        "class_cond": shown.classes is not None,
        "use_scale_shift_norm": shown.scale_shift,
        "resblock_updown": shown.residual_resampling,
    }
    size = flags.get("image_size")
    multipliers: object = flags.get("channel_mult", "")
    if multipliers == "" and isinstance(size, int):
        multipliers = _MULTIPLIERS.get(size, "")
    if multipliers != "":
        flags["channel_mult"] = _numbers("channel_mult", multipliers)
        found["channel_mult"] = tuple(w / shown.model_channels for w in shown.widths)
    else:
        flags.pop("channel_mult", None)
    if "attention_resolutions" in flags and isinstance(size, int):
        said = _numbers("attention_resolutions", flags["attention_resolutions"])
        flags["attention_resolutions"] = tuple(sorted({int(r) for r in said}, reverse=True))
        found["attention_resolutions"] = tuple(
            size >> level for level, attends in enumerate(shown.attention) if attends
        )
    agree(flags, found, path)


def _numbers(key: str, value: object) -> tuple[float, ...]:
    """A list of numbers, as the flags have it: "32,16,8", 16 or [32, 16, 8]."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(float(p) for p in (parts if isinstance(parts, (list, tuple)) else [parts]))
    except (TypeError, ValueError):
        raise InputError(f"{key} is a list of numbers, not {value!r}") from None


def _free(config: Mapping[str, object], shown: ADMConfig) -> dict[str, object]:
    """The flags that no tensor shows, from the config or from what was released."""
    known = _RELEASED.get((shown.model_channels, shown.widths, shown.blocks, shown.classes), {})
    said = {k: v for k, v in config.items() if k in _FREE and v is not None and v != -1}
    if "num_heads" in said:  # it would not count beside a number of channels
        known = {k: v for k, v in known.items() if k != "num_head_channels"}
    return {**known, **said}


def _with_heads(shown: ADMConfig, free: Mapping[str, object], path: str) -> ADMConfig:
    """The architecture with its heads, as given or as assumed."""
    widths = {w for w, attends in zip(shown.widths, shown.attention, strict=True) if attends}
    widths.add(shown.widths[-1])
    each = _positive("num_head_channels", free.get("num_head_channels"))
    heads = _positive("num_heads", free.get("num_heads"))
    if each is None and heads is None:
        each = _HEAD
        if any(width % each for width in widths):
            raise InputError(
                f"{path} attends in {sorted(widths)} channels, and no tensor shows in how many"
                " heads: give config={'num_heads': ...} or {'num_head_channels': ...}"
            )
    up = _positive("num_heads_upsample", free.get("num_heads_upsample")) or heads or 1
    by_flag = {"num_heads": heads, "num_heads_upsample": up}
    for flag, divisor in ({"num_head_channels": each} if each else by_flag).items():
        if divisor is not None and any(width % divisor for width in widths):
            raise InputError(f"{flag} = {divisor} does not divide {sorted(widths)} channels")
    return ADMConfig(
        **{
            **vars(shown),
            "heads": heads or 1,
            "heads_up": up,
            "head_channels": each,
            "new_order": bool(free.get("use_new_attention_order", False)),
        }
    )


def _positive(key: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key} is a positive integer, not {value!r}")
    return value


def _schedule(free: Mapping[str, object]) -> Discrete:
    """The table of steps: linear betas, whose sum does not depend on their number, or cosine."""
    steps = _positive("diffusion_steps", free.get("diffusion_steps")) or 1000
    if free.get("rescale_timesteps") and steps != 1000:
        raise CapabilityError("rescale_timesteps with other than 1000 steps is not supported")
    name = free.get("noise_schedule", "linear")
    if name == "linear":
        return Discrete.linear(steps, _FIRST_BETA * 1000 / steps, _LAST_BETA * 1000 / steps)
    if name == "cosine":
        return Discrete.cosine(steps)
    raise unknown_name("noise_schedule", str(name), ("linear", "cosine"))
