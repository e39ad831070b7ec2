"""ADM checkpoints against a second evaluation, written from the architecture, on its own tensors.

The reference asks for its tensors by name and shape, and so makes the state dict: a name that the
loader does not know, or one more than it needs, fails.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Tensor

import posterior
from posterior import CapabilityError, FileProblem, InputError, InputTypeError, priors
from posterior.fingerprints import fingerprint
from posterior.priors.checkpoints import CheckpointPrior
from posterior.priors.checkpoints.adm import ADMConfig, ADMNet
from posterior.priors.photo import PhotoConfig, PhotoNet
from posterior.schedules import Discrete

BASE = 32  # channels at full resolution


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Weights(dict[str, Tensor]):
    """Tensors made when they are first asked for; gains about 1, outputs of the order of inputs."""

    def of(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            r = random(*shape, seed=len(self))
            gain = len(shape) == 1 and name.endswith(".weight")
            scale = 0.1 if len(shape) == 1 else 0.7 / torch.Size(shape[1:]).numel() ** 0.5
            self[name] = scale * r + gain
        assert self[name].shape == shape
        return self[name]


@dataclass(frozen=True)
class Spec:
    """A small ADM; `attention` by the factor of downsampling."""

    multiples: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    heads: int = 4
    heads_up: int | None = None
    each: int | None = None
    scale_shift: bool = True
    updown: bool = True
    new_order: bool = False
    classes: int | None = None
    learned: bool = True

    @property
    def config(self) -> dict[str, object]:
        """The flags that no tensor shows."""
        heads = {"num_head_channels": self.each} if self.each else {"num_heads": self.heads}
        if self.heads_up:
            heads["num_heads_upsample"] = self.heads_up
        return {**heads, "use_new_attention_order": self.new_order}


class Reference:
    """The network, one formula after the other, in float64."""

    def __init__(self, spec: Spec, weights: Weights) -> None:
        self.spec, self.w = spec, weights

    def affine(self, name: str, x: Tensor, out: int) -> Tensor:
        """x W^T + b along the last axis."""
        return x @ self.w.of(name + ".weight", out, x.shape[-1]).T + self.w.of(name + ".bias", out)

    def conv(self, name: str, x: Tensor, out: int, k: int = 3, stride: int = 1) -> Tensor:
        weight = self.w.of(name + ".weight", out, x.shape[1], k, k)
        return nnf.conv2d(x, weight, self.w.of(name + ".bias", out), stride, k // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Over 32 groups of channels, by mean and variance."""
        g = x.reshape(x.shape[0], 32, -1)
        g = g - g.mean(2, keepdim=True)
        y = (g / (g.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        gain, shift = (self.w.of(f"{name}.{part}", x.shape[1]) for part in ("weight", "bias"))
        return y * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def residual(self, name: str, x: Tensor, out: int, emb: Tensor, resample: str = "") -> Tensor:
        def resized(z: Tensor) -> Tensor:
            if resample == "down":
                b, c, h, w = z.shape
                return z.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
            return z.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else z

        h = resized(silu(self.norm(f"{name}.in_layers.0", x)))
        h = self.conv(f"{name}.in_layers.2", h, out)
        width = 2 * out if self.spec.scale_shift else out
        e = self.affine(f"{name}.emb_layers.1", silu(emb), width)[:, :, None, None]
        if self.spec.scale_shift:
            h = self.norm(f"{name}.out_layers.0", h) * (1 + e[:, :out]) + e[:, out:]
        else:
            h = self.norm(f"{name}.out_layers.0", h + e)
        h = self.conv(f"{name}.out_layers.3", silu(h), out)
        skip = resized(x)
        if x.shape[1] != out:
            skip = self.conv(f"{name}.skip_connection", skip, out, 1)
        return skip + h

    def attention(self, name: str, x: Tensor, heads: int) -> Tensor:
        b, c, height, width = x.shape
        z = self.norm(f"{name}.norm", x).reshape(b, c, -1).transpose(1, 2)
        weight = self.w.of(f"{name}.qkv.weight", 3 * c, c, 1)[:, :, 0]
        qkv = z @ weight.T + self.w.of(f"{name}.qkv.bias", 3 * c)
        heads = c // self.spec.each if self.spec.each else heads
        d = c // heads
        seen = []
        for k in range(heads):
            if self.spec.new_order:
                places = [range(part * c + k * d, part * c + (k + 1) * d) for part in range(3)]
            else:
                places = [range((3 * k + p) * d, (3 * k + p + 1) * d) for p in range(3)]
            query, key, value = (qkv[..., list(place)] for place in places)
            seen.append(torch.softmax(query @ key.transpose(1, 2) / d**0.5, 2) @ value)
        weight = self.w.of(f"{name}.proj_out.weight", c, c, 1)[:, :, 0]
        out = torch.cat(seen, 2) @ weight.T + self.w.of(f"{name}.proj_out.bias", c)
        return x + out.transpose(1, 2).reshape(b, c, height, width)

    def __call__(self, x: Tensor, index: Tensor, labels: Tensor | None = None) -> Tensor:
        s = self.spec
        angle = index[:, None] * 10000.0 ** (-torch.arange(BASE // 2).double() / (BASE // 2))
        emb = self.affine("time_embed.0", torch.cat([angle.cos(), angle.sin()], 1), 4 * BASE)
        emb = self.affine("time_embed.2", silu(emb), 4 * BASE)
        if s.classes:
            assert labels is not None
            emb = emb + self.w.of("label_emb.weight", s.classes, 4 * BASE)[labels]

        widths = [m * BASE for m in s.multiples]
        h = self.conv("input_blocks.0.0", x, widths[0])
        kept, n = [h], 1
        for level, width in enumerate(widths):
            for _ in range(s.blocks):
                h = self.residual(f"input_blocks.{n}.0", h, width, emb)
                if 2**level in s.attention:
                    h = self.attention(f"input_blocks.{n}.1", h, s.heads)
                kept.append(h)
                n += 1
            if width is not widths[-1] or level < len(widths) - 1:
                h = (
                    self.residual(f"input_blocks.{n}.0", h, width, emb, "down")
                    if s.updown
                    else self.conv(f"input_blocks.{n}.0.op", h, width, stride=2)
                )
                kept.append(h)
                n += 1
        h = self.residual("middle_block.0", h, widths[-1], emb)
        h = self.attention("middle_block.1", h, s.heads)
        h = self.residual("middle_block.2", h, widths[-1], emb)
        n = 0
        for level in range(len(widths) - 1, -1, -1):
            for block in range(s.blocks + 1):
                h = torch.cat([h, kept.pop()], 1)
                h = self.residual(f"output_blocks.{n}.0", h, widths[level], emb)
                layer = 1
                if 2**level in s.attention:
                    h = self.attention(f"output_blocks.{n}.1", h, s.heads_up or s.heads)
                    layer = 2
                if level and block == s.blocks:
                    if s.updown:
                        name = f"output_blocks.{n}.{layer}"
                        h = self.residual(name, h, widths[level], emb, "up")
                    else:
                        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                        h = self.conv(f"output_blocks.{n}.{layer}.conv", h, widths[level])
                n += 1
        h = silu(self.norm("out.0", h))
        return self.conv("out.2", h, x.shape[1] * (2 if s.learned else 1))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def network(spec: Spec) -> tuple[Reference, Weights]:
    """A reference with all its tensors made."""
    weights = Weights()
    reference = Reference(spec, weights)
    size = 2 ** (len(spec.multiples) - 1)
    labels = torch.zeros(1, dtype=torch.long) if spec.classes else None
    reference(torch.zeros(1, 3, size, size).double(), torch.zeros(1).double(), labels)
    return reference, weights


def saved(path: Path, weights: dict[str, Tensor], config: dict[str, object] | None = None) -> Path:
    if path.suffix == ".safetensors":
        header = None if config is None else {"config": json.dumps(config)}
        save_file({k: v.contiguous() for k, v in weights.items()}, path, header)
    else:
        torch.save(dict(weights), path)
    return path


SPECS = {
    "shift, plain resampling": Spec(scale_shift=False, updown=False, learned=False),
    "scale-shift, residual resampling": Spec(),
    "shift, residual resampling": Spec(scale_shift=False, heads=1),
    "scale-shift, plain resampling": Spec(updown=False, heads=2, attention=()),
    "new order": Spec(new_order=True, heads=2),
    "head channels": Spec(each=16, new_order=True, attention=(1, 2)),
    "other heads on the way up": Spec(heads=2, heads_up=8),
    "classes": Spec(classes=5, learned=False),
    "three levels, two blocks": Spec((1, 1, 2), blocks=2, attention=(4,), classes=3),
    "one level": Spec((1,), attention=(1,), blocks=2),
    "all three multiples": Spec((1, 2, 3), attention=(2, 4), heads=8, updown=False),
}


@pytest.mark.parametrize("name", SPECS)
def test_forward_is_that_of_the_reference(name: str, tmp_path: Path) -> None:
    """To 1e-11, in float64: rounding of some 1e-16 through about 100 layers."""
    spec = SPECS[name]
    reference, weights = network(spec)
    suffix = "safetensors" if spec.learned else "pt"
    path = saved(tmp_path / f"net.{suffix}", weights, spec.config)
    config = None if spec.learned else spec.config
    prior = posterior.load_prior(path, dtype=torch.float64, config=config)
    assert isinstance(prior, CheckpointPrior)
    m = 2 ** (len(spec.multiples) - 1)
    x, labels = random(2, 3, 2 * m, 3 * m), None
    if spec.classes:
        labels = torch.tensor([spec.classes - 1, 0])
        prior = prior.given(labels)
    t = torch.tensor([0.421, 0.9], dtype=torch.float64)
    out = reference(x, 1000 * t - 1, labels)
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in Discrete.linear(1000)(t))
    estimate, pull = prior.vjp(x, t)
    assert torch.allclose(estimate.eps, out[:, :3], rtol=1e-10, atol=1e-10)
    x0 = (x - sigma * out[:, :3]) / alpha
    assert torch.allclose(estimate.x0, x0, rtol=1e-11, atol=1e-10)
    if spec.learned:
        assert estimate.variance_share is not None
        assert torch.allclose(estimate.variance_share, out[:, 3:], rtol=1e-11, atol=1e-11)
    else:
        assert estimate.variance_share is None
    leaf = x.clone().requires_grad_()
    again = reference(leaf, 1000 * t - 1, labels)
    u = random(*x.shape, seed=7)
    (want,) = torch.autograd.grad(((leaf - sigma * again[:, :3]) / alpha * u).sum(), leaf)
    assert torch.allclose(pull(u), want, rtol=1e-9, atol=1e-9)


def test_what_no_tensor_shows_changes_the_answer(tmp_path: Path) -> None:
    """Heads and their order: the comparison above can tell them apart."""
    _, weights = network(Spec())
    path = saved(tmp_path / "net.pt", weights)
    x = random(1, 3, 4, 4)
    answers = [
        posterior.load_prior(path, dtype=torch.float64, config=config)(x, 0.5).eps
        for config in (
            {"num_heads": 4},
            {"num_heads": 2},
            {"num_heads": 4, "use_new_attention_order": True},
            {"num_heads": 4, "num_heads_upsample": 2},
        )
    ]
    for k, a in enumerate(answers):
        assert all(float((a - b).abs().max()) > 1e-3 for b in answers[:k])


@pytest.mark.parametrize("kind", ["pt", "old pt", "nested", "wrapped", "safetensors", "half"])
def test_formats(kind: str, tmp_path: Path) -> None:
    spec = Spec(each=16)
    _, weights = network(spec)
    plain = saved(tmp_path / "plain.pt", weights)
    x = random(1, 3, 4, 4)
    want = posterior.load_prior(plain, config=spec.config)(x, 0.5).x0
    path = tmp_path / "net.anything"
    if kind == "pt":
        torch.save(dict(weights), path)
    elif kind == "old pt":
        torch.save(dict(weights), path, _use_new_zipfile_serialization=False)
    elif kind == "nested":
        torch.save({"model": {"a": torch.zeros(1)}, "ema": dict(weights), "step": 3}, path)
    elif kind == "wrapped":
        torch.save({f"module.{k}": v for k, v in weights.items()}, path)
    elif kind == "safetensors":
        save_file({k: v.contiguous() for k, v in weights.items()}, path)
    else:
        torch.save({k: v.half() for k, v in weights.items()}, path)
    prior = posterior.load_prior(path, config=spec.config)
    assert prior.dtype == torch.float32
    got = prior(x, 0.5).x0
    if kind == "half":
        assert not torch.equal(got, want)
        assert torch.allclose(got, want, atol=0.1)
    else:
        assert torch.equal(got, want)
    bfloat = posterior.load_prior(path, config=spec.config, dtype=torch.bfloat16)
    assert next(bfloat.module.parameters()).dtype == torch.bfloat16
    assert torch.allclose(bfloat(x, 0.5).x0, want, atol=0.5)


def test_flags_of_the_format_are_taken_and_checked(tmp_path: Path) -> None:
    spec = Spec((1, 2), blocks=2, attention=(2,), each=32)
    _, weights = network(spec)
    path = saved(tmp_path / "net.pt", weights)
    flags: dict[str, object] = {
        "image_size": 64, "num_channels": 32, "num_res_blocks": 2, "channel_mult": "1,2",
        "attention_resolutions": "32", "num_heads": 4, "num_head_channels": 32,
        "num_heads_upsample": -1, "learn_sigma": True, "class_cond": False,
        "use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": False,
        "use_checkpoint": False, "use_fp16": True, "dropout": 0.1, "noise_schedule": "linear",
        "diffusion_steps": 1000, "model_path": "models/ffhq_10m.pt",
    }  # fmt: skip
    prior = posterior.load_prior(path, config=flags)
    assert prior.default_shape == (3, 64, 64)
    assert prior.event_shape is None
    assert prior.schedule == Discrete.linear(1000)
    for key, value in {
        "num_channels": 64, "num_res_blocks": 1, "channel_mult": "1,1", "learn_sigma": False,
        "attention_resolutions": "64", "class_cond": True, "use_scale_shift_norm": False,
        "resblock_updown": False, "image_size": 512,
    }.items():  # fmt: skip
        wrong = {**flags, key: value}
        if key == "image_size":  # of another number of levels
            wrong["channel_mult"] = ""
        with pytest.raises(InputError, match="the tensors have") as error:
            posterior.load_prior(path, config=wrong)
        assert ("channel_mult" if key == "image_size" else key) in str(error.value)
    for wrong, message in [
        ({"num_headz": 4}, "did you mean 'num_heads'"),
        ({"num_head_channels": 48}, "does not divide"),
        ({"num_head_channels": 0}, "positive integer"),
        ({"noise_schedule": "sqrt"}, "known: cosine, linear"),
        ({"channel_mult": "1,x"}, "list of numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            posterior.load_prior(path, config={**flags, **wrong})
    with pytest.raises(CapabilityError, match="rescale_timesteps"):
        posterior.load_prior(
            path, config={**flags, "diffusion_steps": 50, "rescale_timesteps": True}
        )
    with pytest.raises(InputTypeError, match="config is a dict"):
        posterior.load_prior(path, config="num_heads=4")  # type: ignore[arg-type]


def test_schedules(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", network(Spec())[1])
    cosine = posterior.load_prior(path, config={"num_heads": 4, "noise_schedule": "cosine"})
    assert cosine.schedule == Discrete.cosine(1000)
    short = posterior.load_prior(path, config={"num_heads": 4, "diffusion_steps": 500})
    assert short.schedule == Discrete.linear(500, 2e-4, 0.04)
    clean = posterior.load_prior(path, config={"num_heads": 4, "predict_xstart": True})
    assert clean.parametrisation == "x0"


# name: width, multiples, blocks, levels that attend, classes; then the heads at those levels
PUBLISHED: dict[str, tuple[int, list[float], int, list[int], int | None, list[int]]] = {
    "FFHQ 256 of DPS": (128, [1, 1, 2, 2, 4, 4], 1, [4], None, [8]),
    "ImageNet 64": (192, [1, 2, 3, 4], 3, [1, 2, 3], 1000, [6, 9, 12]),
    "ImageNet 128": (256, [1, 1, 2, 3, 4], 2, [2, 3, 4], 1000, [4, 4, 4]),
    "ImageNet 256": (256, [1, 1, 2, 2, 4, 4], 2, [3, 4, 5], 1000, [8, 16, 16]),
    "ImageNet 256 unconditional": (256, [1, 1, 2, 2, 4, 4], 2, [3, 4, 5], None, [8, 16, 16]),
    "ImageNet 512": (256, [0.5, 1, 1, 2, 2, 4, 4], 2, [4, 5, 6], 1000, [8, 16, 16]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_recognised(name: str) -> None:
    """From the shapes of their tensors, which have no data here, without any config."""
    from posterior.priors.checkpoints import adm

    width, multiples, blocks, attends, classes, heads = PUBLISHED[name]
    widths = tuple(int(m * width) for m in multiples)
    levels = tuple(level in attends for level in range(len(widths)))
    made = ADMConfig(3, 6, width, widths, blocks, levels, True, True, classes, head_channels=64)
    with torch.device("meta"):
        tensors = ADMNet(made).state_dict()
    prior = adm.load(tensors, {}, name)
    config = prior.module.config
    shown = replace(config, head_channels=64, heads=1, heads_up=1, new_order=False)
    assert shown == made
    found = [config.heads if config.head_channels is None else w // config.head_channels
             for w, attending in zip(widths, levels, strict=True) if attending]  # fmt: skip
    assert found == heads
    assert config.new_order == (name == "ImageNet 64")
    cosine = name == "ImageNet 64"
    assert prior.schedule == (Discrete.cosine(1000) if cosine else Discrete.linear(1000))
    assert prior.learned_variance
    assert prior.classes == classes


def test_missing_surplus_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    _, weights = network(Spec())

    def refused(change: Callable[[dict[str, Tensor]], object]) -> str:
        changed = dict(weights)
        change(changed)
        path = saved(tmp_path / "net.pt", changed)
        with pytest.raises(FileProblem) as error:
            posterior.load_prior(path, config={"num_heads": 4})
        assert str(path) in str(error.value)
        return str(error.value)

    for gone in (
        "middle_block.1.qkv.weight", "input_blocks.1.0.emb_layers.1.bias", "out.0.bias",
        "output_blocks.1.2.in_layers.2.weight", "input_blocks.3.0.skip_connection.bias",
        "output_blocks.0.1.qkv.weight", "output_blocks.3.0.out_layers.0.bias",
    ):  # fmt: skip
        assert f"1 missing: {gone}" in refused(lambda w, gone=gone: w.pop(gone))
    for gone in ("time_embed.0.weight", "out.2.weight", "middle_block.0.emb_layers.1.weight"):
        assert f"lacks {gone}" in refused(lambda w, gone=gone: w.pop(gone))
    message = refused(lambda w: w.update(extra=torch.zeros(1)))
    assert "1 surplus: extra" in message
    message = refused(lambda w: [w.pop(k) for k in list(w) if k.startswith("input_blocks.2.")])
    assert "10 missing: input_blocks.2.0.in_layers.0.weight" in message
    assert "and 5 more" in message
    message = refused(lambda w: w.update({"out.0.weight": torch.zeros(64)}))
    assert "1 of another shape: out.0.weight is (64,), not (32,)" in message
    message = refused(lambda w: [w.pop(k) for k in list(w) if k.startswith("output_blocks")])
    assert "classifier" in message
    message = refused(lambda w: [w.pop(k) for k in list(w) if k.startswith("output_blocks.3")])
    assert "output blocks" in message
    six = {"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}
    assert "upsampler" in refused(lambda w: w.update(six))


def test_heads_must_be_said_where_nothing_suggests_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", network(Spec(attention=(1, 2)))[1])
    with pytest.raises(InputError, match=r"in how many heads.*num_heads"):
        posterior.load_prior(path)
    assert posterior.load_prior(path, config={"num_head_channels": 32}) is not None


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "executed")


def test_files_that_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    _, weights = network(Spec())
    whole = saved(tmp_path / "whole.pt", weights).read_bytes()
    safe = saved(tmp_path / "safe.safetensors", weights).read_bytes()
    files: dict[str, tuple[bytes, str]] = {
        "pickle.pkl": (pickle.dumps({"ema": Harmful(trace)}), "is a pickle.*refused"),
        "empty.pt": (b"", "is empty"),
        "truncated.pt": (whole[: len(whole) // 2], "truncated or broken"),
        "truncated.safetensors": (safe[: len(safe) // 2], "not a readable safetensors file"),
        "text.pt": (b"not weights at all", "neither a safetensors file nor"),
        "zip.pt": (b"PK\x03\x04" + bytes(100), "truncated or broken"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FileProblem, match=message) as error:
            posterior.load_prior(tmp_path / name)
        assert name in str(error.value)
        if name == "pickle.pkl":
            assert "save_file(" in str(error.value), "how to convert it"
    for old in (True, False):
        torch.save(
            {"model": Harmful(trace)}, tmp_path / "code.pt", _use_new_zipfile_serialization=not old
        )
        with pytest.raises(FileProblem, match="would run code") as error:
            posterior.load_prior(tmp_path / "code.pt")
        assert "save_file(" in str(error.value)
    assert not trace.exists(), "the code of a file was run"
    for thing, message in [
        ({"other.weight": torch.zeros(1)}, "neither an ADM nor an EDM.*other.weight"),
        ({"down_blocks.0.weight": torch.zeros(1)}, "load the folder"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, "from_single_file"),
        ({"unet.down_blocks.0.lora_A.weight": torch.zeros(1)}, "load_lora_weights"),
        ([torch.zeros(1)], "holds a list"),
        ({"step": 3, "optimizer": {}}, "a dict of step, optimizer"),
    ]:
        torch.save(thing, tmp_path / "other.pt")
        with pytest.raises(FileProblem, match=message):
            posterior.load_prior(tmp_path / "other.pt")
    for header, message in [("{", "not JSON"), ("[1]", "not an object")]:
        save_file({"a": torch.zeros(1)}, tmp_path / "header.safetensors", {"config": header})
        with pytest.raises(FileProblem, match=message):
            posterior.load_prior(tmp_path / "header.safetensors")
    with pytest.raises(InputError, match="variant"):
        posterior.load_prior(tmp_path / "whole.pt", variant="fp16")
    with pytest.raises(InputError, match="dtype"):
        posterior.load_prior(tmp_path / "whole.pt", dtype=torch.int32)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> CheckpointPrior:
    """Class-conditional, with learned variance, float64."""
    spec = Spec(classes=5)
    path = saved(tmp_path_factory.mktemp("adm") / "net.safetensors", network(spec)[1], spec.config)
    prior = posterior.load_prior(path, dtype=torch.float64)
    assert isinstance(prior, CheckpointPrior)
    return prior


def test_labels(labelled: CheckpointPrior) -> None:
    x = random(3, 3, 4, 4)
    with pytest.raises(CapabilityError, match=r"5 classes.*prior.given\(label\)"):
        posterior.sample(labelled, n=1, shape=(3, 4, 4), steps=2)
    with pytest.raises(CapabilityError, match="negative="):
        labelled.given(2, scale=2.0)
    each = [labelled.given(k)(x, 0.5) for k in range(5)]
    assert not torch.allclose(each[0].x0, each[1].x0, atol=1e-3)
    rows = labelled.given([4, 0, 3])
    assert rows.measurements == 3
    together, pull = rows.vjp(x, 0.5)
    pulled = pull(x)
    for row, label in enumerate([4, 0, 3]):
        assert torch.equal(together.x0[row], each[label].x0[row])
        alone, pull_alone = rows.take([row]).vjp(x[row : row + 1], 0.5)
        assert torch.equal(alone.x0[0], together.x0[row])
        assert torch.equal(pull_alone(x[row : row + 1])[0], pulled[row])
    assert torch.equal(labelled.given(torch.tensor([4, 0, 3]))(x, 0.5).x0, together.x0)
    for wrong, kind in [(5, InputError), (-1, InputError), (1.5, InputTypeError),
                        (True, InputTypeError), ("dog", InputTypeError), ([], InputError),
                        ([1, 9], InputError)]:  # fmt: skip
        with pytest.raises(kind):
            labelled.given(wrong)
    with pytest.raises(InputError, match="3"):
        rows(x[:2], 0.5)
    assert len({fingerprint(labelled.given(k)) for k in range(3)}) == 3


def test_guidance_by_another_label(labelled: CheckpointPrior) -> None:
    """Eps leads away from the negative label; the variance stays that of the wanted one."""
    x = random(2, 3, 4, 4)
    wanted, unwanted = labelled.given(1)(x, 0.5), labelled.given(4)(x, 0.5)
    guided = labelled.given(1, negative=4, scale=3.0)
    estimate = guided(x, 0.5)
    expected = unwanted.eps + 3 * (wanted.eps - unwanted.eps)
    assert torch.allclose(estimate.eps, expected, rtol=1e-10, atol=1e-10)
    assert estimate.variance_share is not None
    assert wanted.variance_share is not None
    assert torch.allclose(estimate.variance_share, wanted.variance_share, atol=1e-12)
    assert guided.counts.nfe == 4
    assert torch.equal(guided(x[1:], 0.5).x0[0], estimate.x0[1])


def test_unconditional_networks_take_no_label(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", network(Spec())[1])
    prior = posterior.load_prior(path, config={"num_heads": 4})
    with pytest.raises(CapabilityError, match="not class-conditional"):
        prior.given(0)


def test_rows_alone_equal_rows_in_a_batch(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", network(Spec())[1])
    x = random(7, 3, 4, 6).float()
    for rows in (1, 3):
        prior = posterior.load_prior(path, config={"num_heads": 4}, rows=rows)
        whole, pull = prior.vjp(x, 0.4)
        pulled = pull(x)
        for k, count in ((0, 1), (4, 1), (2, 3)):
            part = slice(k, k + count)
            alone, pull_alone = prior.vjp(x[part].clone(), 0.4)
            assert torch.equal(alone.x0, whole.x0[part])
            assert torch.equal(pull_alone(x[part].clone()), pulled[part])


def test_from_file_to_draws(tmp_path: Path) -> None:
    spec = Spec((1, 1, 2), attention=(4,))
    path = saved(tmp_path / "net.safetensors", network(spec)[1], spec.config)
    prior = posterior.load_prior(str(path))
    double = posterior.load_prior(path, dtype=torch.float64)  # the finite differences need it
    assert priors.check(double, shape=(3, 8, 8), verbose=False) == []
    draws = posterior.sample(prior, n=2, shape=(3, 8, 12), steps=3, seed=0).draws
    assert draws.shape == (2, 1, 3, 8, 12)
    assert bool(torch.isfinite(draws).all())
    for shape, message in [
        ((3, 10, 8), "multiples of 4, not 10x8: crop to 8x8 or pad to 12x8"),
        ((3, 2, 8), "crop to 4x8 or pad to 4x8"),
        ((1, 8, 8), r"\(3, H, W\)"),
    ]:
        with pytest.raises(InputError, match=message):
            posterior.sample(prior, n=1, shape=shape, steps=2)
    assert "ADMNet" in repr(prior)


def test_photo_networks_of_ones_own(tmp_path: Path) -> None:
    """As `PhotoNet.save` writes them."""
    torch.manual_seed(0)
    net = PhotoNet(PhotoConfig((8, 8), (1, 1), (1, 1), frequencies=4, embedding=8))
    path = tmp_path / "own.safetensors"
    net.save(path)
    prior = posterior.load_prior(path)
    assert isinstance(prior, priors.PhotoPrior)
    other = posterior.load_prior(path, rows=2, low_memory=True)
    assert other.rows == 2
    assert other.module.encoder[0][0].recompute
    assert not prior.module.encoder[0][0].recompute
    with pytest.raises(InputError, match="config: a photo prior has no such option"):
        posterior.load_prior(path, config={})
