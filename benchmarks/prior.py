"""What a prior adds to its network: time and peak memory of an estimate and of a gradient.

    OMP_NUM_THREADS=1 python benchmarks/prior.py --pairs 15
    python benchmarks/prior.py --cases unet --tiny --pairs 3

Against the bare network: the very calls that the prior makes of its module are recorded, inputs and
all, and played back with nothing around them, blocks and autocast included. `denoise` is
prior(x, t), `vjp` is prior.vjp(x, t) and one pull. What is left out is the scaling, the casts, the
conversion to x0, counting and checks. Guidance (`cfg`) is one batch of both branches against two
passes. The two run in turn, in one process; the figure is the median of the ratio pair by pair,
with a 95 % interval by order statistics. Memory is the peak of one call above what is held before
it; Linux only.

    photo   the bundled prior, 4 x 128 px
    unet    UNet2DModel of diffusers, random weights, 4 x 64 px
    text    UNet2DConditionModel of diffusers, random weights, 2 latents of 32 x 32, and guidance
    adm     an ADM network, random weights, 2 x 128 px, and guidance by a label
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from overhead import interval
from peak_memory import Peak
from safetensors.torch import save_file
from torch import Tensor, nn

import posterior
from posterior.priors import NetworkPrior
from posterior.priors.checkpoints.adm import ADMConfig, ADMNet
from posterior.priors.conditioning import ConditionedPrior

Call = Callable[[], object]
SCALE = 3.0


@dataclass
class Case:
    """A prior, an x_t for it, and the same prior under guidance where it can be."""

    prior: NetworkPrior
    x: Tensor
    guided: ConditionedPrior | None = None
    t: float = 0.5


def noise(*shape: int) -> Tensor:
    """The same numbers each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def randomised(net: nn.Module) -> nn.Module:
    """Random weights in every layer, those too that begin at zero."""
    for weight in net.parameters():
        weight.data = weight.data + 0.02 * noise(*weight.shape)
    return net


def photo(tiny: bool) -> Case:
    """The bundled prior."""
    x = noise(2, 3, 32, 32) if tiny else noise(4, 3, 128, 128)
    return Case(cast(NetworkPrior, posterior.load_prior("photo")), x)


def unet(tiny: bool) -> Case:
    """An unconditional pixel model."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    widths, size = ((32, 32), 16) if tiny else ((128, 256, 256), 64)
    net = UNet2DModel(
        sample_size=size,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
    )
    pipe = DDIMPipeline(randomised(net), DDIMScheduler())
    return Case(posterior.prior_from_pipeline(pipe), noise(4, 3, size, size))


def text(tiny: bool) -> Case:
    """A latent model of the kind of Stable Diffusion, given embeddings; nothing is decoded."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    widths, size, width = ((32, 32), 8, 32) if tiny else ((128, 256, 512), 32, 768)
    net = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(widths) - 1),
        cross_attention_dim=width,
    )
    vae = AutoencoderKL(
        latent_channels=4, norm_num_groups=8, block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        unet=randomised(net),
        vae=vae,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        requires_safety_checker=False,
        **parts,
    )
    prior = posterior.prior_from_pipeline(pipe)
    condition, negative = noise(2, 1, 77, width)
    plain = prior.given(condition)
    return Case(plain, noise(2, 4, size, size), prior.given(condition, negative, SCALE))


def adm(tiny: bool) -> Case:
    """A class-conditional ADM network with learned variance, through a file."""
    widths = (32, 32) if tiny else (64, 128, 256, 256)
    size = 16 if tiny else 128
    attention = (False,) * (len(widths) - 2) + (True, True)
    config = ADMConfig(3, 6, widths[0], widths, 1, attention, True, True, 10, head_channels=32)
    net = randomised(ADMNet(config))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adm.safetensors"
        save_file(net.state_dict(), path)
        prior = posterior.load_prior(path, config={"num_head_channels": 32})
    assert isinstance(prior, ConditionedPrior)
    return Case(prior.given(3), noise(2, 3, size, size), prior.given(3, 5, SCALE))


CASES: dict[str, Callable[[bool], Case]] = {"photo": photo, "unet": unet, "text": text, "adm": adm}


def denoise(case: Case, prior: NetworkPrior) -> Call:
    """The estimate at x_t."""
    return lambda: prior(case.x, case.t)


def gradient(case: Case, prior: NetworkPrior) -> Call:
    """The estimate and one pull."""

    def work() -> object:
        estimate, pull = prior.vjp(case.x, case.t)
        return estimate, pull(case.x)

    return work


class Bare:
    """The recorded calls of a network, with nothing around them."""

    def __init__(self, case: Case) -> None:
        prior = case.prior
        self.module, self.dtype, self.u = prior.module, prior.compute_dtype, case.x
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hook = self.module.register_forward_pre_hook(
            lambda _, args, named: self.calls.append((args, named)), with_kwargs=True
        )
        prior(case.x, case.t)
        hook.remove()

    def _run(self, x: Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        cast_to = (
            contextlib.nullcontext()
            if self.dtype is None
            else torch.autocast(x.device.type, self.dtype)
        )
        with cast_to:
            out = self.module(x, *args[1:], **named)
        return out if isinstance(out, Tensor) else out[0]

    def denoise(self) -> object:
        """Every call."""
        with torch.no_grad():
            return [self._run(args[0], args, named) for args, named in self.calls]

    def vjp(self) -> object:
        """Every call with its graph, then a gradient through each."""
        graphs = []
        for args, named in self.calls:
            leaf = args[0].detach().requires_grad_()
            graphs.append((leaf, self._run(leaf, args, named)[:, : leaf.shape[1]]))
        blocks = self.u.split(self.u.shape[0] // len(graphs))
        return graphs, [
            torch.autograd.grad(out, leaf, u.to(out.dtype), retain_graph=True)[0]
            for (leaf, out), u in zip(graphs, blocks, strict=True)
        ]


def peak(work: Call) -> float:
    """MiB that one call needs at most, above what is held before it; NaN where that is not told."""
    memory = Peak(torch.device("cpu"))
    result = work()
    most = memory.bytes()
    del result
    return math.nan if most is None else most / 2**20


def timed(work: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(label: str, first: Call, second: Call, pairs: int) -> None:
    """Print the ratio of the two in time, and both peaks."""
    works = {"first": first, "second": second}
    for work in works.values():
        work()
    ratios, seconds = [], []
    for k in range(pairs):
        order = ("first", "second") if k % 2 else ("second", "first")
        spent = {which: timed(works[which]) for which in order}
        ratios.append(spent["first"] / spent["second"])
        seconds.append(spent["second"])
    low, high = interval(ratios)
    one, other = (statistics.median(peak(work) for _ in range(3)) for work in works.values())
    print(
        f"{label}: time {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
        f" of {1000 * statistics.median(seconds):.1f} ms, peak {one:.1f} against {other:.1f} MiB",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Print one line per case and kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    args = parser.parse_args(arguments)
    print(f"{args.pairs} pairs, {torch.get_num_threads()} threads; prior / bare network")
    for name in args.cases:
        case = CASES[name](args.tiny)
        weights = sum(p.numel() for p in case.prior.module.parameters())
        bare = Bare(case)
        label = f"{name}, {weights / 1e6:.1f} million weights, {tuple(case.x.shape)}"
        compare(f"{label}, denoise", denoise(case, case.prior), bare.denoise, args.pairs)
        compare(f"{label}, vjp", gradient(case, case.prior), bare.vjp, args.pairs)
        if case.guided is None:
            continue
        ways = []
        for together in (True, False):
            prior = case.guided._copy()
            prior.one_batch = together
            ways.append(prior)
        for kind, work in (("denoise", denoise), ("vjp", gradient)):
            compare(
                f"{label}, cfg {kind}, one batch / two passes",
                work(case, ways[0]),
                work(case, ways[1]),
                args.pairs,
            )


if __name__ == "__main__":
    main()
