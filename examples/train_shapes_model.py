"""Train a small text-to-image model in the format of Stable Diffusion, on two CPU cores.

    python examples/train_shapes_model.py codec      # 64x64 pixels <-> 16x16x4 latents
    python examples/train_shapes_model.py latents    # draw the scenes, encode them once
    python examples/train_shapes_model.py model      # text encoder and UNet: stable-diffusion/
    python examples/train_shapes_model.py few-steps  # distilled to a few steps: latent-consistency/
    python examples/train_shapes_model.py flow       # a rectified flow: stable-diffusion-3/
    python examples/train_shapes_model.py evaluate --of stable-diffusion    # 200 new prompts

    ... --minutes 100      stop after so long; the same command again continues
    ... --steps N          steps in all (the rate falls to zero there)

Checkpoints and latents lie in --work (default ~/.cache/posterior/shapes); the codec and the
pipelines in --out (default examples/assets/shapes), in half precision, each pipeline with its model
card. The codec is there already.

What it learns from is `shapes.world`: captioned scenes, drawn. The pairs (shape, colour) of
`world.HELD_OUT` are not among them; `evaluate` asks for just those, and the checker of
`shapes.checker`, which is no network, looks whether the pictures show them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, JointAttnProcessor2_0
from safetensors.torch import load_file, save_file
from shapes import checker, networks, world
from shapes.networks import FACTOR, LATENT_CHANNELS, Sizes
from shapes.runs import Run, autocast
from torch import Tensor, nn

from posterior.errors import FileProblem
from posterior.images import write_image

CODEC_STEPS, CODEC_BATCH = 2500, 16
MODEL_STEPS, MODEL_BATCH = 7000, 64
FEW_STEPS, FLOW_STEPS = 1500, 6000
SCENES = 30_000
KL_WEIGHT = 3e-4
EMPTY = 0.1  # of the captions are left out, for guidance
TEST = 10**9  # scenes of this number and above are for tests only
PROMPTS = 200
FAMILIES: dict[str, tuple[tuple[float, ...], int]] = {
    "stable-diffusion": ((1.0, 4.0), 25),
    "latent-consistency": ((4.0,), 4),
    "stable-diffusion-3": ((1.0, 4.0), 25),
}
"""Folders of the pipelines: guidance scales that are evaluated, and sampler steps."""


# The codec ---------------------------------------------------------------------------------------


def pictures(seeds: Any) -> Tensor:
    """The scenes of these numbers, (B, 3, 64, 64) in [-1, 1]."""
    return torch.stack([world.draw(world.random_scene(int(seed))) for seed in seeds])


def codec_loss(vae: nn.Module, rng: np.random.Generator, batch: int = CODEC_BATCH) -> Tensor:
    """Squared error, a little of the absolute one and of that of the slopes, and a small KL.

    The KL of the latents to a standard normal keeps them smooth: with this weight their noise is
    about 0.02 of their spread.
    """
    x = pictures(rng.integers(0, TEST, batch)).contiguous(memory_format=torch.channels_last)
    noise = torch.from_numpy(_normal(rng, batch))
    with autocast():
        law = vae.encode(x).latent_dist  # type: ignore[operator]
        mean, log_variance = law.mean.float(), law.logvar.float()
        z = mean + torch.exp(0.5 * log_variance) * noise
        error = vae.decode(z).sample.float() - x  # type: ignore[operator]
    slopes = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return error.square().mean() + 0.1 * (error.abs().mean() + slopes) + KL_WEIGHT * kl


def _normal(rng: np.random.Generator, batch: int) -> Any:
    side = world.SIDE // FACTOR
    return rng.standard_normal((batch, LATENT_CHANNELS, side, side), np.float32)


@torch.inference_mode()
def codec_psnr(vae: Any, count: int = 64) -> float:
    """Mean PSNR in dB, on [0, 1], of scenes that are encoded (mean) and decoded again."""
    x = pictures(range(TEST, TEST + count))
    with autocast():
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float().clamp(-1, 1)
    return float((-10 * ((y - x) / 2).square().mean((1, 2, 3)).log10()).mean())


@torch.no_grad()
def standardise(vae: Any, count: int = 512) -> None:
    """Latents of mean 0 and variance 1 in each channel, by the 1x1 convolutions around them."""
    z = encoded(vae, range(count))
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    c = LATENT_CHANNELS
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:c] /= std[:, None, None, None]
    before.bias[:c] = (before.bias[:c] - mean) / std
    before.bias[c:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


@torch.inference_mode()
def encoded(vae: Any, seeds: Any, batch: int = 32) -> Tensor:
    """The latents (means) of the scenes of these numbers, (N, 4, 16, 16)."""
    seeds = list(seeds)
    parts = []
    for k in range(0, len(seeds), batch):
        x = pictures(seeds[k : k + batch]).contiguous(memory_format=torch.channels_last)
        with autocast():
            parts.append(vae.encode(x).latent_dist.mode().float())
    return torch.cat(parts).contiguous()


def train_codec(
    work: Path, out: Path, sizes: Sizes, steps: int, minutes: float | None, seed: int
) -> None:
    """Stage 1; at its end the codec lies in out/codec."""
    torch.manual_seed(seed)
    vae = networks.codec(sizes).to(memory_format=torch.channels_last)
    run = _begun(vae, work / "codec.pt", steps, seed)
    if run.go(codec_loss, work / "codec.pt", minutes, lambda v: f"PSNR {codec_psnr(v):.2f} dB"):
        best: Any = run.averaged()
        standardise(best)
        best.half().save_pretrained(out / "codec")
        print(f"codec: {codec_psnr(_codec(out)):.2f} dB in half precision")


def _codec(out: Path) -> AutoencoderKL:
    if not (out / "codec").is_dir():
        raise FileProblem(f"there is no {out / 'codec'} yet: run the stage 'codec' to its end")
    return AutoencoderKL.from_pretrained(out / "codec").eval().requires_grad_(False)


def _begun(
    net: nn.Module,
    checkpoint: Path,
    steps: int,
    seed: int,
    rate: float = 0.02,
    linear: bool = False,
) -> Run:
    run = Run(net, steps, rate, seed, linear=linear)
    if checkpoint.is_file():
        run.load(checkpoint)
        print(f"continues at step {run.step} of {steps}")
    return run


# Text encoder and UNet ---------------------------------------------------------------------------


def write_latents(work: Path, out: Path, count: int = SCENES, held_out: int = 256) -> None:
    """Stage 2: encode the scenes 0, 1, ..., and some for a held-out loss, once."""
    vae = _codec(out).to(memory_format=torch.channels_last)
    tensors = {
        "training": encoded(vae, range(count)).half(),
        "held_out": encoded(vae, range(TEST, TEST + held_out)).half(),
    }
    save_file(tensors, work / "latents.safetensors")
    spread = tensors["training"].float().std((0, 2, 3)).tolist()
    print(f"{count} scenes, std of the channels {', '.join(f'{s:.2f}' for s in spread)}")


class Captions:
    """Captions of the scenes 0, 1, ... as tokens, (B, L); every time in other words."""

    def __init__(self, count: int) -> None:
        self.tokenizer = networks.tokenizer()
        self.descriptions = [world.random_scene(seed).description for seed in range(count)]

    def __call__(self, which: Any, rng: np.random.Generator, empty: float = EMPTY) -> Tensor:
        texts = [world.random_caption(self.descriptions[k], rng) for k in which]
        return tokens(self.tokenizer, ["" if rng.random() < empty else t for t in texts])


def tokens(words: Any, texts: list[str]) -> Tensor:
    """Padded as the pipeline does it."""
    padded = words(
        texts, padding="max_length", max_length=words.model_max_length, return_tensors="pt"
    )
    return padded.input_ids


class Text2Image(nn.Module):
    """Text encoder and UNet, which are trained together."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.text = networks.text_encoder(sizes, networks.tokenizer())
        self.unet = networks.unet(sizes).to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # backwards faster than the fused one
        self.squared = networks.scheduler().alphas_cumprod.tolist()

    def loss(self, z: Tensor, ids: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of v = alpha eps - sigma z, over the batch.

        Args:
            z: clean latents (B, 4, 16, 16).
            ids: tokens (B, L).
            times: indices of the noise levels (B,).
            noise: standard normal, as z.
        """
        squared = torch.tensor(self.squared)[times].view(-1, 1, 1, 1)
        alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
        noisy = (alpha * z + sigma * noise).contiguous(memory_format=torch.channels_last)
        with autocast():
            told = self.text(ids).last_hidden_state
            v = self.unet(noisy, times, told).sample.float()
        return (v - (alpha * noise - sigma * z)).square().mean()


def batch_of(
    latents: Tensor, captions: Captions, rng: np.random.Generator, count: int, empty: float = EMPTY
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, tokens, levels (stratified) and noise of one batch."""
    which = rng.integers(0, len(latents), count)
    z = latents[torch.from_numpy(which)].float()
    parts = (rng.permutation(count) + rng.random(count)) / count
    times = torch.from_numpy((parts * 1000).astype(np.int64)).clamp(max=999)
    return z, captions(which, rng, empty), times, torch.from_numpy(_normal(rng, count))


def train_model(
    work: Path, out: Path, sizes: Sizes, steps: int, minutes: float | None, seed: int
) -> None:
    """Stage 3; at its end the pipeline lies in out/stable-diffusion."""
    latents, captions = _latents(work)
    held_out = load_file(work / "latents.safetensors")["held_out"].float()
    torch.manual_seed(seed)
    model = Text2Image(sizes)
    run = _begun(model, work / "model.pt", steps, seed)

    def loss(net: Any, rng: np.random.Generator) -> Tensor:
        return net.loss(*batch_of(latents, captions, rng, MODEL_BATCH))

    test = _held_out_batch(held_out)

    @torch.inference_mode()
    def score(net: Any) -> str:
        return f"held-out loss {net.loss(*test).item():.4f}"

    if run.go(loss, work / "model.pt", minutes, score):
        best: Any = run.averaged()
        best.unet.set_default_attn_processor()
        parts = _codec(out), best.text, networks.tokenizer(), best.unet
        write_pipeline(networks.pipeline(*parts), out / "stable-diffusion")


def _held_out_batch(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng, count = np.random.default_rng(TEST), len(z)
    scenes = (world.random_scene(TEST + k) for k in range(count))
    texts = [world.random_caption(scene.description, rng) for scene in scenes]
    times = torch.arange(count) * 1000 // count
    return z, tokens(networks.tokenizer(), texts), times, torch.from_numpy(_normal(rng, count))


def write_pipeline(pipe: Any, out: Path) -> None:
    """The pipeline in half precision, safetensors, and its tokenizer also in the older form."""
    out.mkdir(parents=True, exist_ok=True)
    pipe.to(torch.float16).save_pretrained(out, safe_serialization=True)
    for folder in out.glob("tokenizer*"):
        networks.write_tokenizer(folder)
    for file in out.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a path of this machine
        if "text_encoder" in file.parent.name:
            config["dtype"] = "float32"  # in memory: a CPU has no use for float16
        file.write_text(json.dumps(config, indent=2) + "\n")
    largest = max(file.stat().st_size for file in out.rglob("*.safetensors"))
    print(f"{out}: {sum(_parameters(pipe).values())} parameters, {largest / 2**20:.1f} MiB at most")


def _parameters(pipe: Any) -> dict[str, int]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


# A few steps -------------------------------------------------------------------------------------


class Consistency(nn.Module):
    """A student that jumps to the end of the teacher's guided trajectory from anywhere on it.

    Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378, algorithm 1): the jumps from
    two points of one trajectory, a DDIM step of the teacher apart, are made equal. The guidance
    scale is an input. The target is the student itself without gradient (Song and Dhariwal 2023).
    """

    STRIDE = 20  # noise levels between the two points
    GUIDANCE = (2.0, 6.0)

    def __init__(self, sizes: Sizes, teacher: Any) -> None:
        super().__init__()
        self.width = sizes.scale
        unet: Any = networks.unet(sizes, time_cond_proj_dim=sizes.scale)
        unet.load_state_dict(teacher.state_dict(), strict=False)
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)  # begins as the teacher
        self.unet = unet.to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())
        self.squared = networks.scheduler().alphas_cumprod.tolist()

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of level indices, (B, 1, 1, 1) each."""
        squared = torch.tensor(self.squared)[times].view(-1, 1, 1, 1)
        return squared.sqrt(), (1 - squared).sqrt()

    def jump(self, noisy: Tensor, times: Tensor, told: Tensor, scale: Tensor) -> Tensor:
        """The clean latents at the end, (B, 4, 16, 16); at time 0 what is given."""
        pipe: Any = LatentConsistencyModelPipeline
        embedding = pipe.get_guidance_scale_embedding(None, scale - 1, self.width)
        with autocast():
            v = self.unet(noisy, times, told, timestep_cond=embedding).sample.float()
        alpha, sigma = self.levels(times)
        far = (10.0 * times).view(-1, 1, 1, 1)  # as LCMScheduler scales them
        keep, go = 0.25 / (far**2 + 0.25), far * (far**2 + 0.25).rsqrt()
        return keep * noisy + go * (alpha * noisy - sigma * v)

    def loss(
        self, teacher: Any, z: Tensor, told: Tensor, empty: Tensor, noise: Tensor, draws: Tensor
    ) -> Tensor:
        """Mean pseudo-Huber distance of two jumps.

        Args:
            teacher: UNet.
            z, noise: clean latents and standard normal numbers, (B, 4, 16, 16).
            told, empty: what the teacher attends to, and that of the empty prompt, (B, L, D).
            draws: uniform in [0, 1), (2, B): for the level, and for the guidance scale.
        """
        count = 1000 // self.STRIDE
        times = (1 + (draws[0] * count).long()) * self.STRIDE - 1
        before = (times - self.STRIDE).clamp(min=0)
        low, high = self.GUIDANCE
        scale = low + (high - low) * draws[1].float()
        alpha, sigma = self.levels(times)
        noisy = (alpha * z + sigma * noise).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            with autocast():
                both = teacher(noisy.repeat(2, 1, 1, 1), times.repeat(2), torch.cat([told, empty]))
            with_text, without = both.sample.float().chunk(2)
            v = without + scale.view(-1, 1, 1, 1) * (with_text - without)
            x0, eps = alpha * noisy - sigma * v, sigma * noisy + alpha * v
            alpha, sigma = self.levels(before)
            target = self.jump(alpha * x0 + sigma * eps, before, told, scale)
        gap = self.jump(noisy, times, told, scale) - target
        return ((gap**2 + 1e-6).sqrt() - 1e-3).mean()


def train_few_steps(
    work: Path, out: Path, sizes: Sizes, steps: int, minutes: float | None, seed: int
) -> None:
    """Distil out/stable-diffusion to out/latent-consistency."""
    latents, captions = _latents(work)
    pipe = _trained(out)
    teacher = pipe.unet.to(memory_format=torch.channels_last)
    teacher.set_attn_processor(AttnProcessor())
    torch.manual_seed(seed)
    run = _begun(Consistency(sizes, teacher), work / "few-steps.pt", steps, seed, rate=0.005)
    nothing = tokens(pipe.tokenizer, [""])

    def loss(net: Any, rng: np.random.Generator) -> Tensor:
        z, ids, _, noise = batch_of(latents, captions, rng, MODEL_BATCH, empty=0.0)
        with torch.no_grad(), autocast():
            told = pipe.text_encoder(torch.cat([ids, nothing])).last_hidden_state
        draws = torch.from_numpy(rng.random((2, len(z))))
        empty = told[-1:].expand(len(z), -1, -1)
        return net.loss(teacher, z, told[:-1], empty, noise, draws)

    if run.go(loss, work / "few-steps.pt", minutes):
        best: Any = run.averaged()
        best.unet.set_default_attn_processor()
        parts = pipe.vae, pipe.text_encoder, pipe.tokenizer, best.unet
        write_pipeline(networks.consistency_pipeline(*parts), out / "latent-consistency")


# A rectified flow --------------------------------------------------------------------------------


class Flow(nn.Module):
    """A rectified flow by the transformer of Stable Diffusion 3 (Esser et al. 2024).

    Times are drawn from its logit-normal law: more of them where the picture is decided.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.transformer = networks.flow_transformer(sizes)
        self.transformer.set_attn_processor(networks.OneForMany())

    def loss(self, z: Tensor, told: Tensor, pooled: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the velocity noise - z at (1 - s) z + s noise.

        Args:
            z, noise: clean latents and standard normal numbers, (B, 4, 16, 16).
            told: embeddings of the prompt, (B, L, D).
            pooled: of the whole prompt, (B, D).
            s: (B,), in [0, 1].
        """
        part = s.view(-1, 1, 1, 1)
        with autocast():
            velocity = self.transformer(
                hidden_states=(1 - part) * z + part * noise,
                encoder_hidden_states=nnf.pad(told.repeat(1, 1, 2), (0, 0, 0, 1)),
                pooled_projections=pooled.repeat(1, 2),
                timestep=1000 * s,
                return_dict=False,
            )[0].float()
        return (velocity - (noise - z)).square().mean()


def train_flow(
    work: Path, out: Path, sizes: Sizes, steps: int, minutes: float | None, seed: int
) -> None:
    """Train a flow with the codec and the text encoder of out/stable-diffusion."""
    latents, captions = _latents(work)
    pipe = _trained(out)
    text = networks.projected(pipe.text_encoder)
    torch.manual_seed(seed)
    run = _begun(Flow(sizes), work / "flow.pt", steps, seed, rate=0.03, linear=True)

    def loss(net: Any, rng: np.random.Generator) -> Tensor:
        z, ids, times, noise = batch_of(latents, captions, rng, MODEL_BATCH)
        with torch.no_grad(), autocast():
            told = text(ids, output_hidden_states=True)
        u = (times + torch.from_numpy(rng.random(len(z)))) / 1000  # (B,), uniform in [0, 1)
        s = torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))).float()
        return net.loss(z, told.hidden_states[-2], told.text_embeds, s, noise)

    if run.go(loss, work / "flow.pt", minutes):
        best: Any = run.averaged()
        best.transformer.set_attn_processor(JointAttnProcessor2_0())
        parts = pipe.vae, text, pipe.tokenizer, best.transformer
        write_pipeline(networks.flow_pipeline(*parts), out / "stable-diffusion-3")


def _latents(work: Path) -> tuple[Tensor, Captions]:
    if not (work / "latents.safetensors").is_file():
        raise FileProblem(f"there is no {work / 'latents.safetensors'}: run the stage 'latents'")
    latents = load_file(work / "latents.safetensors")["training"]
    return latents, Captions(len(latents))


def _trained(out: Path) -> StableDiffusionPipeline:
    folder = out / "stable-diffusion"
    if not folder.is_dir():
        raise FileProblem(f"there is no {folder} yet: run the stage 'model' to its end")
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe


# Does it show what was asked for? ----------------------------------------------------------------


def held_out_descriptions(count: int = PROMPTS) -> list[world.Description]:
    """What is asked for: four fifths one object, one fifth two; the first of a held-out pair."""
    numbers = range(TEST, TEST + count)
    return [
        world.random_description(
            np.random.default_rng(number), new=True, count=2 if number % 5 == 0 else 1
        )
        for number in numbers
    ]


@torch.inference_mode()
def generated(pipe: Any, prompts: list[str], scale: float, steps: int, batch: int = 50) -> Tensor:
    """One picture for each prompt, (N, 3, 64, 64) in [-1, 1]; prompt k has the noise of seed k."""
    parts = []
    for k in range(0, len(prompts), batch):
        some = prompts[k : k + batch]
        generators = [torch.Generator().manual_seed(k + j) for j in range(len(some))]
        with autocast():
            images = pipe(
                some,
                num_inference_steps=steps,
                guidance_scale=scale,
                height=world.SIDE,
                width=world.SIDE,
                generator=generators,
                output_type="pt",
            ).images
        parts.append(2 * images.float() - 1)
    return torch.cat(parts)


def evaluate(out: Path, count: int = PROMPTS) -> dict[str, Any]:
    """The gate; writes report.json, sheets and the model card beside the pipeline in `out`."""
    scales, steps = FAMILIES[out.name]
    index = json.loads((out / "model_index.json").read_text())
    absent = {k: None for k in ("text_encoder_3", "tokenizer_3") if k in index}  # optional ones
    pipe = DiffusionPipeline.from_pretrained(out, local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    wanted = held_out_descriptions(count)
    prompts = [world.random_caption(d, np.random.default_rng(k)) for k, d in enumerate(wanted)]
    report: dict[str, Any] = {"prompts": count, "steps": steps, "right": {}}
    begin = time.process_time()
    for scale in scales:
        shown = generated(pipe, prompts, scale, steps)
        readings = [checker.read(picture) for picture in torch.unbind(shown)]
        right = [r.shows(d) for r, d in zip(readings, wanted, strict=True)]
        one = [ok for ok, d in zip(right, wanted, strict=True) if len(d.kinds) == 1]
        two = [ok for ok, d in zip(right, wanted, strict=True) if len(d.kinds) == 2]
        report["right"][f"{scale:g}"] = {
            "all": _share(right),
            "one object": _share(one),
            "two objects": _share(two),
            "whole caption": _share(
                [
                    _without_place(r.description()) == _without_place(d)
                    for r, d in zip(readings, wanted, strict=True)
                ]
            ),
        }
        write_image(out / f"prompts-scale-{scale:g}.png", _sheet(shown[:40]))
        print(f"guidance {scale:g}: {report['right'][f'{scale:g}']}", flush=True)
    report["cpu_seconds"] = round(time.process_time() - begin, 1)
    report["codec_psnr"] = round(codec_psnr(pipe.vae), 2)
    report["parameters"] = _parameters(pipe)
    report["classes"] = {name: type(getattr(pipe, name)).__name__ for name in report["parameters"]}
    report["pipeline"] = type(pipe).__name__
    report["options"] = "".join(f", {name}=None" for name in absent)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "README.md").write_text(card(report))
    return report


def _share(right: list[bool]) -> float:
    return round(sum(right) / max(len(right), 1), 4)


def _without_place(description: world.Description) -> tuple[object, ...]:
    d = asdict(description)
    return tuple(sorted(map(str, d["kinds"]))), str(d["ground"]), d["style"]


def _sheet(tiles: Tensor, columns: int = 10) -> Tensor:
    rows = math.ceil(len(tiles) / columns)
    sheet = tiles.new_ones(rows * columns, *tiles.shape[1:])
    sheet[: len(tiles)] = tiles
    return sheet.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)


def card(report: dict[str, Any]) -> str:
    """The model card, with the numbers of a report."""
    right = report["right"]
    names = next(iter(right.values()))
    head = "".join(f" guidance {scale} |" for scale in right)
    rows = [
        f"| {name} |" + "".join(f" {100 * shares[name]:.1f} % |" for shares in right.values())
        for name in names
    ]
    parts = [
        f"| {name} | `{report['classes'][name]}` | {count} |"
        for name, count in report["parameters"].items()
    ]
    text = (Path(world.__file__).parent / "CARD.md").read_text()
    return text.format(
        table="\n".join([f"| |{head}", "|---" * (len(right) + 1) + "|", *rows]),
        parts="\n".join(parts),
        total=sum(report["parameters"].values()),
        **report,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the text-to-image model of the examples.")
    stages = {
        "codec": CODEC_STEPS,
        "latents": 0,
        "model": MODEL_STEPS,
        "few-steps": FEW_STEPS,
        "flow": FLOW_STEPS,
        "evaluate": 0,
    }
    parser.add_argument("stage", choices=stages)
    home, assets = Path.home() / ".cache/posterior/shapes", Path(__file__).parent / "assets/shapes"
    parser.add_argument("--work", type=Path, default=home, help="checkpoints and latents")
    parser.add_argument("--out", type=Path, default=assets, help="the pipelines")
    parser.add_argument("--steps", type=int, help="in all, over all slices")
    parser.add_argument("--minutes", type=float, help="length of this slice; default: to the end")
    parser.add_argument("--scenes", type=int, default=SCENES, help="to encode")
    parser.add_argument("--of", choices=FAMILIES, default="stable-diffusion", help="to evaluate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sizes, steps = Sizes(), args.steps or stages[args.stage]
    if args.stage == "latents":
        write_latents(args.work, args.out, args.scenes)
    elif args.stage == "evaluate":
        evaluate(args.out / args.of)
    else:
        train = {
            "codec": train_codec,
            "model": train_model,
            "few-steps": train_few_steps,
            "flow": train_flow,
        }
        train[args.stage](args.work, args.out, sizes, steps, args.minutes, args.seed)


if __name__ == "__main__":
    main()
