"""The style of a reference image as a measurement: what `posterior.edit(reference=)` asks for.

With phi the style features of an image and l its brightness at half the size, the edit x of a
source s after a reference r is measured as

    y = (phi(r), l(s)),  noise  (share |phi(r) - phi(s)|, 0.1)  in each entry,

so that the log-likelihood of the style, -(|phi(x) - phi(r)| / |phi(s) - phi(r)|)^2 / (2 share^2),
is a matter of the part of the distance that is left, whatever the extractor and however many its
features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, InputTypeError, PosteriorError
from posterior.guidance import DAPS, DPS, MMPS, REGISTRY, Guidance
from posterior.images import as_images
from posterior.operators import (
    EfficientNetFeatures,
    FeatureMatch,
    Luma,
    Operator,
    Stack,
    SuperResolution,
)
from posterior.operators.base import check_number

SHARE = 0.003
"""Noise of each style feature, as a part of the distance between the styles of both images."""

LAYOUT_NOISE = 0.1
"""Noise std of the source's brightness, in [-1, 1]."""

STRENGTH = 0.45
"""The share of the moves that a style edit makes by default."""

METHOD = DPS(strength=STRENGTH, default_steps=24)
"""What `method="auto"` means where a style is asked for."""


@dataclass(frozen=True)
class StyleMatch:
    """A style to be met, and the layout of the source that is to stay.

    Attributes:
        style: phi, images (B, C, H, W) -> (B, ...).
        operator: phi and the layout, (B, C, H, W) -> (B, m).
        y: (B, m).
        noise: its standard deviations, (B, m).
        reference: (1 or B, C, h, w) in [-1, 1], with the channels of the source.
        apart: |phi(reference) - phi(source)|, (B,).
        share: noise of a style feature, as a part of `apart`.
        notes: what the report should say.
    """

    style: Operator
    operator: Operator
    y: Tensor
    noise: Tensor
    reference: Tensor
    apart: Tensor
    share: float
    notes: tuple[str, ...]

    def left(self, x: Tensor) -> Tensor:
        """The part of the distance between the styles that is left, (B, C, H, W) -> (B,)."""
        found = _features(self.style, x, len(x))
        return rows.norm(found - self.y[:, : found.shape[1]]) / self.apart

    def facts(self) -> dict[str, Any]:
        """What the provenance should tell."""
        return {
            "reference": list(self.reference.shape),
            "style": repr(self.style),
            "style_noise": self.share,
            "style_distance": self.apart.tolist(),
            "noise": f"{self.share:g} of the distance between the styles in each feature,"
            f" {LAYOUT_NOISE:g} in [-1, 1] of the brightness",
        }


def style_match(
    reference: object, source: Tensor, style: Operator | None = None, share: float | None = None
) -> StyleMatch:
    """The measurement that takes the style of `reference` and the layout of `source`.

    Args:
        reference: an image of any size, as in `posterior.restore`; one, or one for each source. It
            gets the channels of the source.
        source: (B, C, H, W) in [-1, 1].
        style: phi; default: Gram matrices of `EfficientNetFeatures` at 224 pixels where its weights
            are installed and the image is RGB, else of `SteerableFeatures` at the source's size.
        share: see the module, > 0; default: `SHARE`. Less copies more.

    Raises:
        PosteriorError: the subclass says what is wrong with the reference or the style.
    """
    share = SHARE if share is None else check_number("style_noise", share, 0)
    if share == 0:
        raise InputError("style_noise must be > 0: it is the scale of the style's distance")
    image = _reference(reference, source)
    notes: tuple[str, ...] = ()
    if style is None:
        style, notes = _default_style(source)
    elif not isinstance(style, Operator):
        raise InputTypeError(
            f"style must be an Operator, such as operators.FeatureMatch, not {type(style).__name__}"
        )
    elif style.space != "image":
        raise CapabilityError(f"style={style!r} takes a latent, and a style is one of images")

    asked, found = (_features(style, x, len(source)) for x in (image, source))
    if asked.shape != found.shape:
        raise InputError(
            f"{style!r} gives {asked.shape[1]} numbers for the reference and {found.shape[1]} for"
            " the image: a style must not depend on the size of an image"
        )
    apart = rows.norm(asked - found)
    if not bool((torch.isfinite(apart) & (apart > 0)).all()):
        raise InputError(
            "the reference has the style of the image already, or its features are not finite"
        )
    layout = _layout(source)
    kept = layout(source).flatten(1)
    noise = torch.cat(
        [share * apart[:, None].expand_as(asked), torch.full_like(kept, LAYOUT_NOISE)], 1
    )
    y = torch.cat([asked, kept], 1)
    return StyleMatch(style, Stack([style, layout]), y, noise, image, apart, share, notes)


def check_method(method: Guidance) -> None:
    """A style is a nonlinear measurement: not every method takes one."""
    if not _takes_style(method):
        names = ", ".join(name for name, cls in REGISTRY.items() if _takes_style(cls()))
        raise CapabilityError(
            f"{type(method).__name__} takes no nonlinear measurement, which the style of"
            f" reference= is: leave method= out, or take one of {names}"
        )


def _takes_style(method: Guidance) -> bool:
    if isinstance(method, MMPS) or (isinstance(method, DAPS) and method.kernel == "exact"):
        return False  # their linear systems are far from features: MMPS moves away from the style
    return "measurement" in method.needs and not method.needs & {"linear", "identity", "pinv"}


def _reference(reference: object, source: Tensor) -> Tensor:
    """The reference with the channels, dtype and device of the source."""
    try:
        image, _ = as_images(reference)
    except PosteriorError as problem:
        raise type(problem)(f"reference: {problem}") from None
    if len(image) not in (1, len(source)):
        raise InputError(f"{len(image)} references for {len(source)} images: give one, or one each")
    if image.shape[1] == 1:
        image = image.expand(-1, source.shape[1], -1, -1).contiguous()
    elif source.shape[1] == 1:
        image = Luma()(image)
    return image.to(source)


def _default_style(source: Tensor) -> tuple[Operator, tuple[str, ...]]:
    """The style features that are at hand, and what to say about them."""
    why = "the image is grey"
    if source.shape[1] == 3:
        try:
            return FeatureMatch("gram", EfficientNetFeatures().to(source), size=224), ()
        except CapabilityError as problem:
            why = str(problem)
    note = (
        f"the style is that of SteerableFeatures, colours and contrasts rather than strokes: {why}"
    )
    return FeatureMatch("gram", size=min(source.shape[-2:])), (note,)


def _layout(source: Tensor) -> Operator:
    """The brightness, at half the size where the sides are even."""
    even = source.shape[-2] % 2 == 0 and source.shape[-1] % 2 == 0
    if source.shape[1] == 1:
        return SuperResolution(2 if even else 1)
    return Luma() @ SuperResolution(2) if even else Luma()


def _features(style: Operator, x: Tensor, count: int) -> Tensor:
    """Those of each of `count` images, (count, m)."""
    return style(x).flatten(1).expand(count, -1)
