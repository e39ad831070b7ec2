"""Edit a photograph by two prompts, with a text-to-image model in the format of diffusers.

    python examples/edit_photo.py cat.png "a cat on a sofa" "a dog on a sofa" --model MODEL
    python examples/edit_photo.py cat.png "a cat" "a dog" --model MODEL --device cuda --variants 4

MODEL is a folder or the name of one on the hub. What fits it is chosen by its class:

    latent consistency (SimianLuo/LCM_Dreamshaper_v7)       PostEdit, 5 steps
    Stable Diffusion 1.5, 2.1, XL                           negative-prompt inversion, 50 steps
    Stable Diffusion 3 and 3.5                              FlowEdit, 33 of 50 steps
    FLUX.1 [dev]                                            FlowEdit, 24 of 28 steps

with the published settings, or any other by --method. The middle square of the photograph is
brought to the size that the model was trained for. With --variants they are in the order of the
model's own likelihood ratio of the two prompts, where it has one.

All of this was run with small random models of the same classes (tests/examples/test_edit_photo.py)
and never with the pretrained ones: how good their edits are is not known here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import posterior
from posterior import guidance
from posterior.editing import Edited
from posterior.folders import check_free
from posterior.images import read_image
from posterior.priors.base import Prior

LEVELS = 8  # of the likelihood ratio


def settings(prior: Prior) -> dict[str, Any]:
    """The method for a model, and its guidance scales where they are not the default ones."""
    name = type(prior).__name__
    if name == "FluxPrior":
        method = guidance.FlowEdit(strength=0.86, default_steps=28)
        return {"method": method, "scale": 5.5, "source_scale": 1.5}
    if name == "StableDiffusion3Prior":
        return {"method": guidance.FlowEdit()}
    if getattr(prior, "embeds_scale", False):
        return {"method": guidance.PostEdit()}
    return {"method": guidance.NegativePromptInversion()}


def fitting(photograph: Tensor, prior: Prior) -> Tensor:
    """The middle square (1, 3, S, S) of (C, H, W), S the pixels of the model's own latents."""
    codec: Any = prior.codec
    if codec is None or prior.default_shape is None:
        raise SystemExit("this example is for latent models of diffusers")
    side = codec.image_shape((1, *prior.default_shape))[-1]
    height, width = photograph.shape[-2:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    middle = photograph[None, :, top : top + square, left : left + square]
    scaled = torch.nn.functional.interpolate(middle, side, mode="bicubic", antialias=True)
    return scaled.clamp(-1, 1).expand(-1, 3, -1, -1)


def edited(
    photograph: Tensor, prior: Prior, source: str, target: str, variants: int = 1, **told: Any
) -> tuple[Edited, list[int]]:
    """The variants of an edit, and their numbers, the most likely one first."""
    built_in = getattr(prior, "embeds_scale", False)
    out = posterior.edit(
        fitting(photograph, prior), prior, source, target, n=variants,
        likelihood=None if built_in or variants == 1 else LEVELS, **{**settings(prior), **told},
    )  # fmt: skip
    ratio = out.diagnostics.get("log_ratio", torch.zeros(variants, 1))
    return out, ratio[:, 0].argsort(descending=True, stable=True).tolist()


def main(arguments: Sequence[str] | None = None) -> None:
    """Edit, report, save."""
    parser = argparse.ArgumentParser(description="Edit a photograph by two prompts.")
    parser.add_argument("photograph", type=Path)
    parser.add_argument("source", help="what it shows")
    parser.add_argument("target", help="what it should show")
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub")
    parser.add_argument("--method", choices=posterior.guidance.REGISTRY)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/edit"))
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    args = parser.parse_args(arguments)
    check_free(args.out, args.overwrite)
    prior = posterior.load_prior(args.model, device=args.device)
    told: dict[str, Any] = {"steps": args.steps, "seed": args.seed}
    if args.method is not None:
        told |= {"method": args.method, "scale": None, "source_scale": None}
    photograph, _ = read_image(args.photograph)
    out, order = edited(photograph, prior, args.source, args.target, args.variants, **told)
    print(out.report)
    if args.variants > 1:
        print("variants by likelihood:", ", ".join(f"draw-{k}.png" for k in order))
    out.save(args.out, args.overwrite)


if __name__ == "__main__":
    main()
