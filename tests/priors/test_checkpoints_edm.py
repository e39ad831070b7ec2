"""EDM checkpoints against a second evaluation, written from the architecture, on its own tensors.

The reference asks for its tensors by name and shape, and so makes the state dict: a name that the
loader does not know, or one more than it needs, fails.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Tensor

import posterior
from posterior import CapabilityError, FileProblem, InputError, priors
from posterior.fingerprints import fingerprint
from posterior.priors.checkpoints import CheckpointPrior
from posterior.schedules import EDM, VE, Discrete, VPLinear

SIZE = 8  # pixels on a side


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
    """A small network of one of the two kinds; `attention` by resolution."""

    song: bool = True
    multiples: tuple[int, ...] = (1, 2)
    base: int = 16
    blocks: int = 1
    attention: tuple[int, ...] = (4,)
    fourier: bool = False
    encoder: str = "standard"
    decoder: str = "standard"
    taps: tuple[int, ...] = (1, 1)
    labels: int = 0
    learned: bool = False

    @property
    def config(self) -> dict[str, object]:
        """As the constructors of the format have it."""
        shared = {
            "img_resolution": SIZE, "img_channels": 3, "label_dim": self.labels, "augment_dim": 9,
            "model_channels": self.base, "channel_mult": list(self.multiples),
            "channel_mult_emb": 4, "num_blocks": self.blocks, "dropout": 0.1, "use_fp16": False,
            "attn_resolutions": list(self.attention),
        }  # fmt: skip
        if not self.song:
            return {"model_type": "DhariwalUNet", **shared}
        return {
            "model_type": "SongUNet", **shared, "channel_mult_noise": 2 if self.fourier else 1,
            "embedding_type": "fourier" if self.fourier else "positional",
            "encoder_type": self.encoder, "decoder_type": self.decoder,
            "resample_filter": list(self.taps),
        }  # fmt: skip


class Reference:
    """The network F, one formula after the other, in float64."""

    def __init__(self, spec: Spec, weights: Weights) -> None:
        self.spec, self.w = spec, weights
        self.gain = 0.5**0.5 if spec.song else 1.0

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        y = x @ self.w.of(f"{name}.weight", out, x.shape[1]).T
        return y + self.w.of(f"{name}.bias", out) if bias else y

    def conv(self, name: str, x: Tensor, out: int, k: int, pad: int | None = None) -> Tensor:
        weight, bias = self.w.of(f"{name}.weight", out, x.shape[1], k, k), f"{name}.bias"
        return nnf.conv2d(x, weight, self.w.of(bias, out), padding=k // 2 if pad is None else pad)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Over groups of at least 4 channels, at most 32 of them, by mean and variance."""
        c = x.shape[1]
        g = x.reshape(x.shape[0], min(32, c // 4), -1)
        g = g - g.mean(2, keepdim=True)
        eps = 1e-6 if self.spec.song else 1e-5
        y = (g / (g.square().mean(2, keepdim=True) + eps).sqrt()).reshape(x.shape)
        gain, shift = (self.w.of(f"{name}.{part}", c) for part in ("weight", "bias"))
        return y * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def filter(self, name: str) -> Tensor:
        """The outer product of the taps, of sum 1; also stored beside the weights."""
        taps = torch.tensor(self.spec.taps).double()
        self.w[f"{name}.resample_filter"] = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        return taps / taps.sum()

    def half(self, name: str, x: Tensor, margin: int | None = None) -> Tensor:
        """Filtered and every second pixel, by sums of shifted images."""
        f, n = self.filter(name), len(self.spec.taps)
        p = nnf.pad(x, [(n - 1) // 2 if margin is None else margin] * 4)
        h, w = p.shape[2] - n + 1, p.shape[3] - n + 1
        out = torch.zeros_like(p[:, :, :h:2, :w:2])
        for i in range(n):
            for j in range(n):
                out += f[i] * f[j] * p[:, :, i : i + h : 2, j : j + w : 2]
        return out

    def twice(self, name: str, x: Tensor) -> Tensor:
        """Zeros in between, and filtered with 4 times the filter: the transpose of `half` by 4."""
        f, n = 2 * self.filter(name), len(self.spec.taps)
        b, c, h, w = x.shape
        margin = (n - 1) // 2
        out = torch.zeros(b, c, 2 * h + 2 * margin, 2 * w + 2 * margin, dtype=x.dtype)
        for i in range(n):
            for j in range(n):
                out[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += f[i] * f[j] * x
        return out[:, :, margin : margin + 2 * h, margin : margin + 2 * w]

    def block(
        self, name: str, x: Tensor, out: int, emb: Tensor, resample: str = "", attend: bool = False
    ) -> Tensor:
        song, c = self.spec.song, x.shape[1]

        def resized(part: str, z: Tensor) -> Tensor:
            if not resample:
                return z
            return (self.half if resample == "down" else self.twice)(f"{name}.{part}", z)

        h = resized("conv0", silu(self.norm(f"{name}.norm0", x)))
        h = self.conv(f"{name}.conv0", h, out, 3)
        level = self.linear(f"{name}.affine", emb, out if song else 2 * out)[:, :, None, None]
        if song:
            h = self.norm(f"{name}.norm1", h + level)
        else:
            h = self.norm(f"{name}.norm1", h) * (1 + level[:, :out]) + level[:, out:]
        h = self.conv(f"{name}.conv1", silu(h), out, 3)
        skip = resized("skip", x)
        if c != out or (resample and song):
            skip = self.conv(f"{name}.skip", skip, out, 1)
        x = (skip + h) * self.gain
        if not attend:
            return x
        heads = 1 if song else out // 64
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x), 3 * out, 1).flatten(2)
        seen, d = [], out // heads
        for k in range(heads):  # q, k and v of a channel lie side by side
            q, key, v = (qkv[:, 3 * k * d + part : 3 * (k + 1) * d : 3] for part in range(3))
            weights = torch.softmax(q.transpose(1, 2) @ key / d**0.5, 2)
            seen.append(v @ weights.transpose(1, 2))
        return (x + self.conv(f"{name}.proj", torch.cat(seen, 1).view(x.shape), out, 1)) * self.gain

    def embedding(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        s = self.spec
        width = s.base * (2 if s.fourier else 1)
        one_hot = None if labels is None else torch.eye(s.labels).double()[labels]
        if s.fourier:
            angle = noise[:, None] * 2 * math.pi * self.w.of("map_noise.freqs", width // 2)
        else:
            last = width // 2 - 1 if s.song else width // 2
            angle = noise[:, None] * 10000.0 ** (-torch.arange(width // 2).double() / last)
        waves = [angle.sin(), angle.cos()] if s.song else [angle.cos(), angle.sin()]
        emb = torch.cat(waves, 1)
        self.w.of("map_augment.weight", width, 9)  # its input is zero, but for training
        if s.song:
            if one_hot is not None:
                emb = emb + self.linear("map_label", one_hot * s.labels**0.5, width)
            emb = silu(self.linear("map_layer0", emb, 4 * s.base))
            return silu(self.linear("map_layer1", emb, 4 * s.base))
        emb = self.linear(
            "map_layer1", silu(self.linear("map_layer0", emb, 4 * s.base)), 4 * s.base
        )
        if one_hot is not None:
            emb = emb + self.linear("map_label", one_hot, 4 * s.base, bias=False)
        return silu(emb)

    def __call__(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        s = self.spec
        emb = self.embedding(noise, labels)
        widths, outputs = [m * s.base for m in s.multiples], 6 if s.learned else 3
        sizes = [SIZE >> level for level in range(len(widths))]
        kept, image = [], x
        for level, (width, r) in enumerate(zip(widths, sizes, strict=True)):
            name = f"enc.{r}x{r}_"
            if level == 0:
                kept = [self.conv(name + "conv", x, s.base if s.song else width, 3)]
            else:
                h = self.block(name + "down", kept[-1], kept[-1].shape[1], emb, "down")
                if s.encoder == "skip":
                    image = self.half(name + "aux_down", image)
                    h = h + self.conv(name + "aux_skip", image, h.shape[1], 1)
                elif s.encoder == "residual":  # a convolution, and only then halved
                    taps = (len(s.taps) - 1) // 2
                    weight = self.w.of(
                        f"{name}aux_residual.weight", h.shape[1], image.shape[1], 3, 3
                    )
                    wide = nnf.conv2d(image, weight, padding=1 + taps)
                    cut = self.half(name + "aux_residual", wide, margin=0)
                    bias = self.w.of(f"{name}aux_residual.bias", h.shape[1])
                    image = h = (h + cut + bias.view(-1, 1, 1)) / 2**0.5
                kept.append(h)
            for block in range(s.blocks):
                attend = r in s.attention
                kept.append(self.block(f"{name}block{block}", kept[-1], width, emb, attend=attend))
        h, answer = kept[-1], None
        for level in range(len(widths) - 1, -1, -1):
            width, r = widths[level], sizes[level]
            name = f"dec.{r}x{r}_"
            if level == len(widths) - 1:
                h = self.block(name + "in0", h, width, emb, attend=True)
                h = self.block(name + "in1", h, width, emb)
            else:
                h = self.block(name + "up", h, h.shape[1], emb, "up")
            for block in range(s.blocks + 1):
                attend = r in s.attention and (not s.song or block == s.blocks)
                h = torch.cat([h, kept.pop()], 1)
                h = self.block(f"{name}block{block}", h, width, emb, attend=attend)
            if s.song and (s.decoder == "skip" or level == 0):
                if answer is not None:
                    answer = self.twice(name + "aux_up", answer)
                seen = silu(self.norm(name + "aux_norm", h))
                part = self.conv(name + "aux_conv", seen, outputs, 3)
                answer = part if answer is None else answer + part
        if answer is None:
            answer = self.conv("out_conv", silu(self.norm("out_norm", h)), outputs, 3)
        return answer


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def network(spec: Spec) -> tuple[Reference, Weights]:
    """A reference with all its tensors made."""
    weights = Weights()
    reference = Reference(spec, weights)
    labels = torch.zeros(1, dtype=torch.long) if spec.labels else None
    reference(torch.zeros(1, 3, SIZE, SIZE).double(), torch.zeros(1).double(), labels)
    return reference, weights


def saved(path: Path, weights: dict[str, Tensor], **config: object) -> Path:
    header = {"config": json.dumps(config)} if config else None
    save_file({k: v.contiguous() for k, v in weights.items()}, path, header)
    return path


SPECS = {
    "DDPM++": Spec(),
    "DDPM++, two blocks, labels": Spec(blocks=2, attention=(8, 4), labels=4),
    "NCSN++": Spec(fourier=True, encoder="residual", taps=(1, 3, 3, 1)),
    "NCSN++, labels": Spec(fourier=True, encoder="residual", taps=(1, 3, 3, 1), labels=3),
    "skips": Spec(fourier=True, encoder="skip", decoder="skip", taps=(1, 3, 3, 1)),
    "skips, three levels": Spec(
        multiples=(1, 2, 2), encoder="skip", decoder="skip", attention=(2,)
    ),
    "ADM": Spec(song=False, multiples=(1, 2), base=64, attention=(4,)),
    "ADM, labels": Spec(song=False, multiples=(1, 1), base=64, attention=(8, 4), labels=4),
}


@pytest.mark.parametrize("name", SPECS)
def test_forward_is_that_of_the_reference(name: str, tmp_path: Path) -> None:
    """D of eq. 7 with the coefficients of table 1, to rounding in float64."""
    spec = SPECS[name]
    reference, weights = network(spec)
    path = saved(tmp_path / "net.safetensors", weights, precond="EDMPrecond", **spec.config)
    prior = posterior.load_prior(path, dtype=torch.float64)
    assert isinstance(prior, CheckpointPrior)
    assert prior.event_shape == (3, SIZE, SIZE)
    assert prior.schedule == EDM(0.002, 80.0)
    labels = None
    if spec.labels:
        labels = torch.tensor([spec.labels - 1, 0])
        prior = prior.given(labels)
    r = torch.tensor([0.3, 7.0], dtype=torch.float64)
    x = random(2, 3, SIZE, SIZE) * (1 + r.view(-1, 1, 1, 1))
    out = reference(x / (r**2 + 0.25).sqrt().view(-1, 1, 1, 1), r.log() / 4, labels)
    total = (r**2 + 0.25).view(-1, 1, 1, 1)
    want = 0.25 / total * x + 0.5 * r.view(-1, 1, 1, 1) / total.sqrt() * out
    got = prior(x, EDM().time_of_ratio(r)).x0
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("precond", ["vp", "ve", "iddpm"])
def test_other_preconditionings(precond: str, tmp_path: Path) -> None:
    """D = x -+ sigma F, F told the noise level in its own way."""
    spec = Spec(learned=precond == "iddpm")
    reference, weights = network(spec)
    named = {f"model.{k}": v for k, v in weights.items()}
    if precond == "iddpm":
        named["u"] = torch.zeros(1001)
    path = saved(tmp_path / "net.safetensors", named, precond=precond, sigma_max=50.0)
    prior = posterior.load_prior(path, dtype=torch.float64)
    x, sign = random(1, 3, SIZE, SIZE), -1.0
    if precond == "vp":
        assert prior.schedule == VPLinear(0.1, 20.0)
        t = 0.4
        told = 999 * t
    elif precond == "ve":
        assert prior.schedule == VE(0.02, 50.0)
        t, sign = 0.7, 1.0
        told = math.log(prior.schedule(t)[1] / 2)
    else:
        assert prior.schedule == Discrete.cosine(1000, 0.008, 0.999)
        t = 0.4
        told = 399.0
    alpha, sigma = prior.schedule(t)
    out = reference(x, torch.tensor([told], dtype=torch.float64))
    estimate = prior(x, t)
    want = x / alpha + sign * sigma / alpha * out[:, :3]
    assert torch.allclose(estimate.x0, want, rtol=1e-10, atol=1e-9)
    assert (estimate.variance_share is None) == (precond != "iddpm")
    if estimate.variance_share is not None:
        assert torch.allclose(estimate.variance_share, out[:, 3:], rtol=1e-10, atol=1e-10)


def test_what_the_config_says_is_taken_and_checked(tmp_path: Path) -> None:
    spec = Spec(labels=3)
    _, weights = network(spec)
    path = saved(tmp_path / "net.safetensors", weights)
    with pytest.raises(InputError, match=r"preconditioned: give config=\{'precond'"):
        posterior.load_prior(path)
    config: dict[str, object] = {"precond": "edm", **spec.config}
    numbers = {"sigma_min": 0.01, "sigma_max": 30, "sigma_data": 0.7}
    prior = posterior.load_prior(path, config={**config, **numbers})
    assert prior.schedule == EDM(0.01, 30.0)
    assert prior.sigma_data == 0.7
    open_ended = posterior.load_prior(
        path, config={**config, "sigma_min": 0, "sigma_max": math.inf}
    )
    assert open_ended.schedule == EDM(0.002, 80.0)
    for key, value in {
        "model_type": "DhariwalUNet", "img_resolution": 16, "img_channels": 1, "label_dim": 0,
        "model_channels": 32, "channel_mult": [1, 1], "channel_mult_emb": 2, "num_blocks": 2,
        "attn_resolutions": [8], "channel_mult_noise": 2, "embedding_type": "fourier",
        "encoder_type": "skip", "decoder_type": "skip",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"{key} = .*the tensors have"):
            posterior.load_prior(path, config={**config, key: value})
    for wrong, message in [
        ({"precond": "ddpm"}, "unknown precond"),
        ({"precond": "iddpm"}, "does not fit precond"),
        ({"img_resolutions": 8}, "did you mean 'img_resolution'"),
        ({"sigma_data": "half"}, "sigma_data is a number"),
    ]:
        with pytest.raises(InputError, match=message):
            posterior.load_prior(path, config={**config, **wrong})


def test_missing_surplus_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    _, weights = network(Spec())

    def refused(change: Callable[[dict[str, Tensor]], object]) -> str:
        changed = dict(weights)
        change(changed)
        path = saved(tmp_path / "net.safetensors", changed, precond="edm")
        with pytest.raises(FileProblem) as error:
            posterior.load_prior(path)
        return str(error.value)

    for gone in (
        "enc.4x4_block0.qkv.weight", "enc.4x4_down.conv0.resample_filter", "map_layer1.bias",
        "dec.4x4_in0.proj.bias", "dec.8x8_up.skip.weight", "dec.8x8_aux_norm.weight",
    ):  # fmt: skip
        assert f"1 missing: {gone}" in refused(lambda w, gone=gone: w.pop(gone))
    assert "lacks enc.8x8_conv.weight" in refused(lambda w: w.pop("enc.8x8_conv.weight"))
    assert "lacks dec.8x8_aux_conv.weight" in refused(lambda w: w.pop("dec.8x8_aux_conv.weight"))
    assert "1 surplus: logvar" in refused(lambda w: w.update(logvar=torch.zeros(1)))
    message = refused(lambda w: w.update({"map_layer1.bias": torch.zeros(3)}))
    assert "1 of another shape: map_layer1.bias is (3,), not (64,)" in message
    message = refused(lambda w: [w.pop(k) for k in list(w) if k.startswith("enc.")])
    assert "no enc." in message


def test_labels_and_guidance(tmp_path: Path) -> None:
    _, weights = network(Spec(labels=3))
    path = saved(tmp_path / "net.safetensors", weights, precond="edm")
    x, t = random(2, 3, SIZE, SIZE), EDM().time_of_ratio(1.0)
    strict = posterior.load_prior(path, dtype=torch.float64)
    with pytest.raises(CapabilityError, match="3 classes"):
        strict(x, t)
    with pytest.raises(CapabilityError, match="negative="):
        strict.given(0, scale=2.0)
    config = {"label_dropout": 0.1}
    prior = posterior.load_prior(path, dtype=torch.float64, config=config)
    nothing = prior(x, t).x0
    with pytest.raises(InputError, match="label -1"):
        prior.given(-1)
    wanted = prior.given([2, 1])(x, t).x0
    guided = prior.given([2, 1], scale=2.5)
    assert torch.allclose(guided(x, t).x0, nothing + 2.5 * (wanted - nothing), atol=1e-10)
    assert guided.counts.nfe == 4
    assert torch.equal(guided.take([1])(x[1:], t).x0[0], guided(x, t).x0[1])
    assert fingerprint(guided) != fingerprint(prior.given([2, 1], scale=2.0))
    other = posterior.load_prior(path, dtype=torch.float64, config={"sigma_data": 1.0})
    assert fingerprint(other.given(0)) != fingerprint(strict.given(0))


def test_half_precision_keeps_the_frequencies(tmp_path: Path) -> None:
    _, weights = network(SPECS["NCSN++"])
    weights["map_noise.freqs"] *= 16
    path = saved(tmp_path / "net.safetensors", weights, precond="edm")
    prior = posterior.load_prior(path, dtype=torch.bfloat16)
    assert torch.equal(prior.module.map_noise.freqs, weights["map_noise.freqs"].float())


@pytest.mark.parametrize("name", ["NCSN++", "ADM"])
def test_from_file_to_draws(name: str, tmp_path: Path) -> None:
    _, weights = network(SPECS[name])
    path = saved(tmp_path / "net.safetensors", weights, precond="edm")
    double = posterior.load_prior(path, dtype=torch.float64)
    assert priors.check(double, verbose=False) == []
    prior = posterior.load_prior(str(path))
    draws = posterior.sample(prior, n=2, steps=3, seed=0).draws
    assert draws.shape == (2, 1, 3, SIZE, SIZE)
    assert bool(torch.isfinite(draws).all())
    x = random(5, 3, SIZE, SIZE).float()
    whole, pull = prior.vjp(x, 0.4)
    alone, pull_alone = prior.vjp(x[2:4].clone(), 0.4)
    assert torch.equal(alone.x0, whole.x0[2:4])
    assert torch.equal(pull_alone(x[2:4].clone()), pull(x)[2:4])
    with pytest.raises(InputError, match="8"):
        posterior.sample(prior, n=1, shape=(3, 16, 16), steps=2)
