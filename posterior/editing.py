"""The front door for edits: an image and what it should show in, several variants out.

An edit is a `Problem` as a restoration is. What the edit should show conditions the prior; what it
must keep is the source, and the method says how: PostEdit measures random positions of it, blended
diffusion puts a user's mask back, an inversion starts from its noise, FlowEdit and DDCM integrate
the difference of two prompts, a reference's style is measured by features (`posterior.style`). The
operator of a user's mask acts on what the prior models, latents where it is a latent one; any other
operator, of low frequencies or of features, can be measured in the source and kept as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from posterior import guidance, rows
from posterior.arguments import count
from posterior.errors import CapabilityError, InputError
from posterior.evidence import likelihood_ratio
from posterior.guidance import Guidance
from posterior.guidance._editing import check_strength
from posterior.guidance.registry import by_name
from posterior.image_samples import ImageSamples
from posterior.images import as_images, write_image
from posterior.operators import Mask, Operator
from posterior.operators.base import check_number
from posterior.operators.mask import LatentMask
from posterior.priors.base import Prior
from posterior.priors.conditioning import ConditionedPrior
from posterior.restoration import as_prior
from posterior.sampler import Callback, sample
from posterior.sheet import write_edit_sheet
from posterior.streams import seeds_of
from posterior.style import METHOD, STRENGTH, StyleMatch, check_method, style_match

SCALES: dict[type[Guidance], tuple[float, float]] = {
    guidance.PostEdit: (4.0, 4.0),
    guidance.SDEdit: (1.0, 7.5),
    guidance.Blended: (1.0, 7.5),
    guidance.DDCM: (1.0, 2.3),
    guidance.DDIMInversion: (1.0, 7.5),
    guidance.NegativePromptInversion: (1.0, 7.5),
    guidance.EDICT: (3.0, 3.0),
    guidance.BDIA: (3.0, 3.0),
    guidance.FlowEdit: (3.5, 13.5),
    guidance.RFInversion: (1.0, 3.5),
    guidance.FlowChef: (1.0, 4.5),
}
"""Method -> the published guidance scales under the source's and the target's prompt; others: 1."""

KEPT_NOISE = 0.02
"""Noise std of what is kept for methods that divide by it; others are told 0."""


@dataclass(frozen=True)
class Edited(ImageSamples):
    """`ImageSamples` of an edit: n variants of B images.

    Attributes:
        source: the image (B, C, H, W) in [-1, 1].
        reconstruction: the source through the codec, what a perfect edit of nothing gives; the
            source itself where the prior has no codec.
        keep: bool (1 or B, 1, H, W), the pixels that had to stay, or None.
        reference: (1 or B, C, h, w) in [-1, 1], whose style was asked for, or None.
        info: what kind of file the image was.
        title: the edit in a few words.

    `diagnostics` holds for each draw (n, B) `distance`, the root mean square of draw - source over
    all pixels, and with a mask `kept_change`, the largest change of a kept pixel; both in [-1, 1].
    With `likelihood=` also `log_ratio`, in nats: log p(draw | target) - log p(draw | source), as
    far as the model knows (`posterior.evidence`). With `reference=` also `style_left`: the distance
    of a draw's style from the reference's, as a part of the source's.
    """

    source: Tensor = field(default_factory=lambda: torch.empty(0))
    reconstruction: Tensor = field(default_factory=lambda: torch.empty(0))
    keep: Tensor | None = None
    reference: Tensor | None = None

    white_name: ClassVar[str] = "difference_white"

    @property
    def difference(self) -> Tensor:
        """Where the draws differ from the source: root mean square over draws and channels,
        (B, 1, H, W), as a part of full scale.
        """
        squares = ((self.draws - self.source) / 2).square()
        return squares.mean(dim=(0, 2))[:, None].sqrt()

    def _report_lines(self) -> list[str]:
        lines = super()._report_lines()
        codec = float(rows.norm(self.reconstruction - self.source).max())
        size = self.source[0].numel() ** 0.5
        lines.append(
            f"distance to the source: {float(self.diagnostics['distance'].mean()):.3g} in [-1, 1]"
            f" (of the codec alone {codec / size:.3g})"
        )
        if "kept_change" in self.diagnostics:
            change = float(self.diagnostics["kept_change"].max())
            lines.append(f"largest change of a kept pixel: {change:.3g} in [-1, 1]")
        if "style_left" in self.diagnostics:
            left = float(self.diagnostics["style_left"].mean())
            lines.append(f"distance of the style from the reference's: {left:.3g} of the source's")
        if "log_ratio" in self.diagnostics:
            ratio = float(self.diagnostics["log_ratio"].mean())
            lines.append(f"the target's prompt over the source's, by the model: {ratio:+.3g} nats")
        return lines

    def sheet(self, path: str | os.PathLike[str], measurement: int = 0) -> Path:
        """Write the contact sheet of one image: a PNG for a slide."""
        return write_edit_sheet(self, Path(path), measurement)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write images, contact sheet, samples.safetensors and report.json, all or nothing.

        The images are source.png, reconstruction.png, difference.png, draw-0.png ... and, where
        there was one, reference.png; a batch gets one folder per image. White in difference.png
        is `difference_white` of report.json, as a part of full scale.

        Args:
            folder: made if missing.
            overwrite: replace a folder that holds nothing but an earlier result.

        Raises:
            FileProblem: the folder is not empty, or cannot be written.
        """
        return super().save(folder, overwrite)

    def _write_images(self, folder: Path, b: int) -> float:
        self._write_image(folder / "source.png", self.source[b])
        self._write_image(folder / "reconstruction.png", self.reconstruction[b])
        if self.reference is not None:
            reference = self.reference[min(b, len(self.reference) - 1)]
            write_image(folder / "reference.png", reference)
        for k in range(self.draws.shape[0]):
            self._write_image(folder / f"draw-{k}.png", self.draws[k, b])
        return self._write_scaled(folder / "difference.png", self.difference[b])


def edit(
    image: object,
    prior: Prior | str | os.PathLike[str],
    source: object = None,
    target: object = None,
    method: Guidance | str = "auto",
    edit: Tensor | str | os.PathLike[str] | None = None,
    keep: Tensor | str | os.PathLike[str] | Operator | None = None,
    reference: object = None,
    strength: float | None = None,
    n: int = 1,
    seed: int | Sequence[int] = 0,
    paste_back: bool = False,
    *,
    keep_noise: float = KEPT_NOISE,
    negative: object = None,
    scale: float | None = None,
    source_scale: float | None = None,
    likelihood: int | None = None,
    style: Operator | None = None,
    style_noise: float | None = None,
    steps: int | None = None,
    max_batch: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Edited:
    """Edit an image: n variants that show the target and keep the source's rest.

    Args:
        image: as in `posterior.restore`: a path, a numpy array, or a tensor in [-1, 1].
        prior: the model: anything that `posterior.load_prior` takes, or a prior.
        source: what the image shows: a prompt, a label, a component; needed by the methods that
            compare two prompts, used by inversions.
        target: what the edit should show. None takes the prior as it stands, for edits by mask
            or by style.
        method: a guidance object, its name, or "auto": PostEdit, `Blended` with a mask, `MMPS` or
            `DPS` (what is not linear) with an operator, and for a style `DPS` from a strength of
            0.45, 24 steps.
        edit: the mask of what to repaint, 1 = repaint; a tensor (H, W) or (B, 1, H, W) or a file.
        keep: the opposite. With a latent prior a latent is kept where all its pixels are. Or an
            operator: what it measures of the source is kept, such as the low frequencies,
            `SuperResolution(4)`, or the structure, `FeatureMatch("self-similarity")`.
        keep_noise: standard deviation of what is kept, in the units of the measurement, for the
            methods that ask for a noise; less keeps it closer.
        reference: an image of any size, as `image`, whose style the edit takes over; one, or one
            for each image. With a mask the kept part is put back at the end.
        strength: of methods that have one: how far from the source, in (0, 1]; of a style edit
            0.45 unless a guidance object says otherwise.
        n: variants.
        seed: any integer.
        paste_back: put the kept pixels back as they were, exactly.
        negative: what to guide away from, by the guidance under the target; negative-prompt
            inversion takes the source itself.
        scale, source_scale: classifier-free guidance under the target and the source; default: the
            published scales of the method (`SCALES`); 1 where the prior has no such guidance.
        likelihood: also score, by so many noise levels (8, say), how much better the target's
            prompt explains a draw than the source's; two network calls for each draw and level.
        style: the features of a style, differentiable and of a length that does not depend on the
            size; default: Gram matrices of the best extractor that is installed, see
            `posterior.style.style_match`.
        style_noise: noise of each feature, as a part of the distance between the styles of the
            reference and the image, > 0; default 0.003. Less copies more.
        steps: default: the method's.
        max_batch, callback, progress: see `posterior.sample`.

    Methods that take no mask of their own get the kept latents put back into their result. Of a
    latent model, kept pixels are those of the reconstruction, so that they change by no more than
    the codec changes them.

    Raises:
        PosteriorError: the subclass says which argument is at fault; nothing was run or written.
    """
    n = count("n", n, 1)
    keep_noise = check_number("keep_noise", keep_noise, 0)
    if reference is None and style is not None:
        raise InputError("style= belongs to a style: give reference=")
    check_arguments(
        source, target, method, edit, keep, reference, strength, paste_back, style_noise
    )  # fmt: skip
    model = as_prior(prior)
    pixels, info = as_images(image)
    pixels = _fitting(pixels, model).to(model.device)
    measure = keep if isinstance(keep, Operator) else None
    mask = _mask(edit, None if measure is not None else keep, pixels)
    told_already = isinstance(model, ConditionedPrior) and model.conditioned
    asked_for = target, mask, measure, reference
    if method == "auto" and not told_already and all(x is None for x in asked_for):
        raise InputError(
            "nothing says what to change: give target=, a mask by edit= or keep=, or reference="
        )
    chosen = _method(method, mask is not None, reference is not None, measure, model)
    chosen = _with_strength(chosen, strength)
    wanted: StyleMatch | None = None
    if reference is not None:
        wanted = style_match(reference, pixels, style, style_noise)
    elif "measurement" in chosen.needs and mask is None and measure is None:
        raise InputError(f"{type(chosen).__name__} keeps what a mask shows: give keep= or edit=")
    elif measure is not None and "measurement" not in chosen.needs:
        raise InputError(
            f"{type(chosen).__name__} keeps the source in its own way: give no operator as keep=,"
            ' or a method that takes a measurement, "mmps" or "dps"'
        )
    untold = target is None and isinstance(model, ConditionedPrior) and not told_already
    if "source prior" in chosen.needs and untold:
        raise InputError(f"{type(chosen).__name__} compares two prompts: give source= and target=")
    if likelihood is not None:
        likelihood = count("likelihood", likelihood, 2)
        _check_likelihood(model, source, target)
    scales = SCALES.get(type(chosen), (1.0, 1.0))
    if isinstance(chosen, guidance.NegativePromptInversion):
        if source is None or negative is not None:
            raise InputError("NegativePromptInversion guides away from source=: give it alone")
        negative = None if scale == 1 else source
    elif negative is not None and target is None:
        raise InputError("negative= is guided away from under the target's prompt: give target=")
    _check_guided(model, negative, scale, source_scale)
    if scale is not None and target is None:
        raise InputError("scale= is the guidance under the target's prompt: give target=")
    if source_scale is not None and (source is None or not _asks_source(chosen)):
        raise InputError(
            "source_scale= is the guidance under the source's prompt: give source=, and a method"
            " that asks it"
        )
    target_scale = scales[1] if scale is None else scale
    told = _told(model, "target", target, negative, target_scale)
    source_told = scales[0] if source_scale is None else source_scale
    source_prior = None if source is None else _told(model, "source", source, None, source_told)

    codec = model.codec
    z = pixels if codec is None else codec.encode(pixels)
    kept = None if mask is None else (mask if codec is None else _latent_mask(mask, z))
    measured: dict[str, Any] = {}
    if wanted is not None:
        measured = {"operator": wanted.operator, "y": wanted.y, "noise": wanted.noise}
    elif "measurement" in chosen.needs:
        asked = kept if measure is None else measure
        assert asked is not None
        noise = 0.0 if isinstance(chosen, guidance.Blended) else keep_noise
        seen = pixels if codec is not None and asked.space == "image" else z
        with torch.no_grad():
            measured = {"operator": asked, "y": asked(seen), "noise": noise}
    out = sample(
        told, **measured, source=z, source_prior=source_prior, method=chosen, steps=steps, n=n,
        seed=seed, max_batch=max_batch, callback=callback, progress=progress,
    )  # fmt: skip

    latents, draws = out.latents, out.draws
    if kept is not None and (wanted is not None or not measured):
        stay = kept.pattern(z.shape[-2], z.shape[-1]).to(z.device)
        latents = torch.where(stay, z, draws if latents is None else latents)
        draws = latents if codec is None else torch.stack([codec.decode(x) for x in latents])
        latents = None if codec is None else latents
    reconstruction = pixels if codec is None else codec.decode(z)
    still = None if mask is None else mask.pattern(pixels.shape[-2], pixels.shape[-1])
    if still is not None:
        still = still.to(draws.device)
        if paste_back or codec is not None:
            draws = torch.where(still, pixels if paste_back else reconstruction, draws)
    scores: dict[str, Tensor] = {}
    if likelihood is not None:
        a, b = (
            _told(model, name, prompt, None, 1.0)
            for name, prompt in (("target", target), ("source", source))
        )
        x = draws if latents is None else latents
        scores["log_ratio"] = likelihood_ratio(x, a, b, likelihood, seeds_of(seed, len(z)))
    facts = {
        **out.provenance,
        "why": "chosen by posterior.edit" if method == "auto" else out.provenance["why"],
        "source": repr(source),
        "target": repr(target),
        "negative": repr(negative),
        "scale": None if target is None else target_scale,
        "source_scale": None if source is None else source_told,
        "keep": None if still is None else f"{float(still.double().mean()):.1%} of the pixels",
        "paste_back": paste_back,
        "likelihood": likelihood,
    }
    if n > 1 and bool((draws[1:] == draws[:1]).all()):
        alike = f"the {n} variants are equal: nothing in {type(chosen).__name__} is random"
        facts["notes"] = [*facts["notes"], alike]
    if wanted is not None:
        scores["style_left"] = torch.stack([wanted.left(x) for x in draws])
        facts |= wanted.facts()
        facts["notes"] = [*facts["notes"], *wanted.notes]
    return Edited(
        draws,
        {**out.diagnostics, **_scores(draws, pixels, still), **scores},
        facts,
        latents,
        source=pixels,
        reconstruction=reconstruction,
        keep=still,
        reference=None if wanted is None else wanted.reference,
        info=info,
        title=_title(source, target, wanted is not None),
    )


def check_arguments(
    source: object,
    target: object,
    method: Guidance | str,
    edit: object,
    keep: object,
    reference: object,
    strength: object,
    paste_back: bool,
    style_noise: object,
) -> None:
    """Raise for what is wrong with an edit whatever the image and the model, see `edit`.

    The command line asks this before it loads a model.
    """
    if isinstance(keep, Operator):
        if edit is not None or reference is not None:
            raise InputError("an operator as keep= says what is kept: leave edit=, reference= out")
    elif edit is not None and keep is not None:
        raise InputError("give keep= (1 = stays) or edit= (1 = is repainted), not both")
    if paste_back and edit is None and (keep is None or isinstance(keep, Operator)):
        raise InputError("paste_back=True puts kept pixels back: give keep= or edit=")
    if reference is None and style_noise is not None:
        raise InputError("style_noise= belongs to a style: give reference=")
    for what, condition in (("source", source), ("target", target)):
        prompts = condition if isinstance(condition, (list, tuple)) else [condition]
        if any(isinstance(prompt, str) and not prompt.strip() for prompt in prompts):
            raise InputError(
                f"{what}= is an empty prompt: say what the image shows, or leave it out"
            )
    if strength is not None:
        check_strength(strength)
    if method != "auto":
        named = by_name(method)
        if reference is not None:
            check_method(named)
        if strength is not None and not hasattr(named, "strength"):
            raise InputError(f"{type(named).__name__} has no strength: see its own settings")
        if "source prior" in named.needs and source is None:
            raise InputError(
                f"{type(named).__name__} compares two prompts: give source= and target="
            )


def _title(source: object, target: object, styled: bool) -> str:
    shown = " → ".join(str(prompt) for prompt in (source, target) if prompt is not None)
    return " ".join([shown, "in the style of a reference"] if styled else [shown]).strip()


def _method(
    method: Guidance | str, masked: bool, styled: bool, measure: Operator | None, prior: Prior
) -> Guidance:
    if method != "auto":
        named = by_name(method)
    elif styled:
        return METHOD
    elif measure is not None:
        decoded = prior.codec is not None and measure.space == "image"
        return guidance.MMPS() if measure.linear and not decoded else guidance.DPS()
    else:
        return guidance.Blended() if masked else guidance.PostEdit()
    if isinstance(method, Guidance):
        return named
    styled = styled and hasattr(named, "strength")
    return _with_strength(named, STRENGTH if styled else None)


def _with_strength(method: Guidance, strength: float | None) -> Guidance:
    if strength is None:
        return method
    if not hasattr(method, "strength"):
        raise InputError(f"{type(method).__name__} has no strength: see its own settings")
    changed: Guidance = replace(method, strength=strength)  # type: ignore[call-arg]
    return changed


def _asks_source(method: Guidance) -> bool:
    """Whether the method calls the prior under the source's prompt."""
    return method.climbs or "source prior" in method.needs


def _check_guided(prior: Prior, negative: object, *scales: float | None) -> None:
    """Nothing is asked of classifier-free guidance that the prior does not have."""
    guided = isinstance(prior, ConditionedPrior)
    two_branches = isinstance(prior, ConditionedPrior) and not prior.embeds_scale
    if negative is not None and not two_branches:
        raise CapabilityError(
            f"{type(prior).__name__} has no negative branch, which negative= and"
            " NegativePromptInversion need: choose another method, or leave negative= out"
        )
    if not guided and any(scale not in (None, 1) for scale in scales):
        raise CapabilityError(
            f"{type(prior).__name__} has no classifier-free guidance: leave scale= and"
            " source_scale= out"
        )


def _check_likelihood(prior: Prior, source: object, target: object) -> None:
    """There are two conditions to compare, by a network that denoises."""
    if source is None or target is None:
        raise InputError("likelihood= compares two prompts: give source= and target=")
    if isinstance(prior, ConditionedPrior) and prior.embeds_scale:
        raise CapabilityError(
            f"{type(prior).__name__} has its guidance built in, its answers are no expectations:"
            " leave likelihood= out"
        )


def _told(prior: Prior, what: str, condition: object, negative: object, scale: float) -> Prior:
    """The prior under a prompt; as it stands where there is none."""
    if condition is None:
        return prior
    try:
        if not isinstance(prior, ConditionedPrior):
            return prior.given(condition)
        return prior.given(condition, negative, scale)
    except CapabilityError as problem:
        raise CapabilityError(
            f"{what}={condition!r}: {problem}; take a model that reads prompts, or edit by mask"
        ) from None


def _fitting(pixels: Tensor, prior: Prior) -> Tensor:
    """The pixels with the channels of the prior's images, in a size that it takes."""
    channels = getattr(prior.codec, "image_channels", None)
    if channels is None and prior.event_shape is not None and len(prior.event_shape) == 3:
        channels = prior.event_shape[0]
    if pixels.shape[1] == 1 and channels == 3:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    if prior.codec is None:
        prior.check_event(tuple(pixels.shape[1:]))
    else:
        prior.codec.latent_shape(tuple(pixels.shape))  # type: ignore[attr-defined]
    return pixels


def _mask(edit: object, keep: object, pixels: Tensor) -> Mask | None:
    if edit is None and keep is None:
        return None
    mask = Mask(keep=keep, edit=edit)
    pattern = mask.pattern(pixels.shape[-2], pixels.shape[-1])
    if len(pattern) not in (1, len(pixels)):
        raise InputError(f"{len(pattern)} masks for {len(pixels)} images: give one, or one each")
    return mask


def _latent_mask(mask: Mask, z: Tensor) -> LatentMask:
    height, width = mask.keep.shape[-2:]
    return LatentMask.of_pixels(mask.keep, (height // z.shape[-2], width // z.shape[-1]))


def _scores(draws: Tensor, source: Tensor, keep: Tensor | None) -> Mapping[str, Tensor]:
    n, images = draws.shape[:2]
    change = (draws - source).flatten(0, 1)
    size = change[0].numel() ** 0.5
    found = {"distance": (rows.norm(change) / size).reshape(n, images)}
    if keep is not None:
        within = torch.where(keep, (draws - source).abs(), 0.0)
        found["kept_change"] = within.flatten(2).amax(2)
    return found
