"""A small world of captioned scenes: one or two coloured shapes on a coloured field, 64x64 RGB.

A `Description` is what a caption says: the kinds of the objects (shape, colour, size, texture), the
ground (colour, texture), the style, and where things are. A `Scene` is a description with numbers:
centres, radii, angles. `draw` makes the picture, `coverage` the exact mask of an object, `caption`
and `parse` go from descriptions to English and back, and `edit` changes one thing in a scene and
nothing else, so that the truth of an edit is known:

    "a red circle on a blue field"  ->  "a green circle on a blue field"

Everything is a pure function of its arguments; random scenes come from a numpy generator. Pictures
are (3, 64, 64) in [-1, 1]; positions and radii are in pixels, x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 64
_FINE = 8  # sub-pixels on a side of a pixel, for coverage
_MARGIN, _GAP = 2.0, 3.0  # free pixels at the border, and between two objects

Array = npt.NDArray[np.float32]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.89, 0.15),
    "green": (0.12, 0.66, 0.22),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.14, 0.25, 0.88),
    "purple": (0.55, 0.15, 0.70),
    "white": (0.97, 0.97, 0.97),
}
"""Of objects."""

GROUNDS: dict[str, tuple[float, float, float]] = {
    "red": (0.62, 0.25, 0.25),
    "yellow": (0.85, 0.78, 0.45),
    "green": (0.33, 0.52, 0.35),
    "blue": (0.32, 0.42, 0.70),
    "purple": (0.48, 0.34, 0.56),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.08, 0.08, 0.08),
    "white": (0.95, 0.95, 0.95),
}
"""Of fields: muted, so that an object stands out from any field but that of its own name."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES: dict[str, tuple[float, float]] = {
    "small": (8.5, 9.5),
    "medium": (12.0, 12.6),
    "large": (17.5, 20.0),
}
"""Radii in pixels; no outline reaches farther than 1.1 radii from its centre."""

TEXTURES = ("plain", "striped", "dotted")
GROUND_TEXTURES = ("plain", "shaded", "striped", "dotted")
STYLES: dict[str, tuple[tuple[float, float, float], float]] = {
    "flat": ((1.0, 1.0, 1.0), 0.0),
    "pastel": ((0.5, 0.5, 0.5), 0.5),
    "night": ((0.42, 0.46, 0.60), 0.0),
}
"""(gain by channel, offset) of the whole picture."""

PLACES = ("centre", "left", "right", "top", "bottom")
"""Of a single object."""
RELATIONS = ("beside", "above")
"""Of two objects: the first is left of the second, or above it."""

REACH = 1.1
_OBJECT_SHADE, _GROUND_SHADE = 0.6, 0.82  # of stripes and dots
_OBJECT_PERIOD, _GROUND_PERIOD = 6.0, 10.0  # pixels
_TURN = 10.0  # objects are turned by up to so many degrees

HELD_OUT = frozenset(
    (shape, list(COLOURS)[(3 * k + 1) % len(COLOURS)]) for k, shape in enumerate(SHAPES)
)
"""(shape, colour) pairs that training never sees: one of each shape and one of each colour."""


@dataclass(frozen=True)
class Kind:
    """What a caption says of an object."""

    shape: str
    colour: str
    size: str = "medium"
    texture: str = "plain"


@dataclass(frozen=True)
class Ground:
    """What a caption says of the field."""

    colour: str
    texture: str = "plain"


@dataclass(frozen=True)
class Description:
    """What a caption says.

    Attributes:
        kinds: none, one or two objects; of two, the left or upper one first.
        place: one of `PLACES` for one object, of `RELATIONS` for two; None: not said.
    """

    kinds: tuple[Kind, ...]
    ground: Ground
    style: str = "flat"
    place: str | None = None


@dataclass(frozen=True)
class Spot:
    """Where an object is: centre and radius in pixels, angle in degrees."""

    x: float
    y: float
    radius: float
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A description with numbers.

    Attributes:
        description: its `place` is always said, unless there is no object.
        spots: one for each object.
        direction: of the shading, stripes and dots of the field, in degrees.
    """

    description: Description
    spots: tuple[Spot, ...]
    direction: float = 0.0

    def __post_init__(self) -> None:
        if len(self.spots) != len(self.description.kinds):
            raise ValueError(
                f"{len(self.spots)} spots for {len(self.description.kinds)} objects: give one each"
            )


# Drawing -----------------------------------------------------------------------------------------


def _polygon(count: int, *radii: float, start: float = -90.0) -> list[tuple[float, float]]:
    """Corners at equal angles from `start`, their radii in turn."""
    angles = [math.radians(start + 360 * k / count) for k in range(count)]
    return [
        (radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a))
        for k, a in enumerate(angles)
    ]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a) / 17, -float(b + 2.5) / 17) for a, b in zip(x, y, strict=True)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _polygon(64, 0.92),
    "square": _polygon(4, 1.1, start=45),
    "triangle": _polygon(3, 1.1),
    "diamond": [(0, -1.08), (0.72, 0), (0, 1.08), (-0.72, 0)],
    "star": _polygon(10, 1.1, 0.5),
    "cross": [
        (a * x, b * y)
        for a, b, corner in ((1, -1, 0), (1, 1, 1), (-1, 1, 0), (-1, -1, 1))
        for x, y in ((0.36, 1.0), (0.36, 0.36), (1.0, 0.36))[:: -1 if corner else 1]
    ],
    "ring": _polygon(64, 0.95),
    "heart": _heart(),
}
_HOLES = {"ring": _polygon(64, 0.5)}


def coverage(shape: str, spot: Spot, side: int = SIDE) -> Array:
    """The part of each pixel that an object covers, (side, side) in [0, 1].

    It is 1 exactly where the object hides the field, and 0 where there is nothing of it.
    """
    angle = math.radians(spot.angle)
    c, s = math.cos(angle), math.sin(angle)
    fine = Image.new("L", (side * _FINE, side * _FINE))
    pen = ImageDraw.Draw(fine)
    for outline, ink in ((_OUTLINES[shape], 255), (_HOLES.get(shape), 0)):
        if outline:
            corners = [
                (
                    (spot.x + spot.radius * (c * x - s * y)) * _FINE - 0.5,
                    (spot.y + spot.radius * (s * x + c * y)) * _FINE - 0.5,
                )
                for x, y in outline
            ]
            pen.polygon(corners, fill=ink)
    return np.asarray(fine.reduce(_FINE), np.float32) / np.float32(255)


@lru_cache(maxsize=1)
def _pixels() -> tuple[Array, Array]:
    """x and y of the centres of the pixels, (64, 64) each."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + np.float32(0.5)
    return x, y


def _pattern(texture: str, x: Array, y: Array, period: float) -> Array:
    """How much of each pixel lies in a stripe or a dot, in [0, 1]."""
    if texture == "striped":
        wave = np.sin(2 * np.pi / period * x) * (period / (2 * np.pi))
        return np.clip(0.5 + wave, 0, 1)
    if texture == "dotted":
        u, v = (np.abs((z / period) % 1 - 0.5) * period for z in (x, y))
        return np.clip(0.5 + 0.32 * period - np.hypot(u, v), 0, 1)
    return np.zeros_like(x)


def _turned(x: Array, y: Array, degrees: float) -> tuple[Array, Array]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * x + s * y, -s * x + c * y


def _painted_ground(ground: Ground, direction: float) -> Array:
    x, y = _pixels()
    x, y = _turned(x - SIDE / 2, y - SIDE / 2, direction)
    if ground.texture == "shaded":
        gain = 0.86 + 0.16 * x / (SIDE / 2)
    else:
        gain = 1 - (1 - _GROUND_SHADE) * _pattern(ground.texture, x, y, _GROUND_PERIOD)
    colour = np.array(GROUNDS[ground.colour], np.float32)
    if ground.colour == "black":  # a gain does nothing to black
        return np.clip(colour + np.float32(0.4) * (gain[..., None] - gain.min()), 0, 1)
    return np.clip(gain[..., None] * colour, 0, 1)


def _painted_object(kind: Kind, spot: Spot) -> Array:
    """The colours that an object would have everywhere."""
    x, y = _pixels()
    u, v = _turned(x - np.float32(spot.x), y - np.float32(spot.y), spot.angle + 45)
    gain = 1 - (1 - _OBJECT_SHADE) * _pattern(kind.texture, u, v, _OBJECT_PERIOD)
    return gain[..., None] * np.array(COLOURS[kind.colour], np.float32)


def restyled(picture: Array, style: str) -> Array:
    """A flat picture or colour (..., 3) in [0, 1] in a style."""
    gain, offset = STYLES[style]
    return picture * np.array(gain, np.float32) + np.float32(offset)


def painted(scene: Scene) -> Array:
    """The picture as (64, 64, 3) in [0, 1]."""
    d = scene.description
    picture = _painted_ground(d.ground, scene.direction)
    for kind, spot in zip(d.kinds, scene.spots, strict=True):
        share = coverage(kind.shape, spot)[..., None]
        picture = (1 - share) * picture + share * _painted_object(kind, spot)
    return restyled(picture, d.style).astype(np.float32)


def draw(scene: Scene) -> Tensor:
    """The picture as (3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(2 * painted(scene) - 1).permute(2, 0, 1).contiguous()


def mask(scene: Scene, index: int) -> Tensor:
    """The exact mask of one object, (64, 64) in [0, 1]: the part of each pixel that it covers."""
    return torch.from_numpy(coverage(scene.description.kinds[index].shape, scene.spots[index]))


# Captions ----------------------------------------------------------------------------------------

PHRASINGS = 4
_PLACE_WORDS = {
    "centre": "in the centre",
    "left": "at the left",
    "right": "at the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_RELATION_WORDS = {"beside": ("left of", "right of"), "above": ("above", "below")}
_GRAMMAR = "a an and on with of picture field background empty the in at left right above below"
WORDS = sorted(
    {
        *_GRAMMAR.split(),
        *(word for words in _PLACE_WORDS.values() for word in words.split()),
        *(word for table in (SHAPES, COLOURS, GROUNDS, SIZES, STYLES) for word in table),
        *TEXTURES,
        *GROUND_TEXTURES,
    }
    - {"plain", "medium", "flat"}
)
"""Every word that a caption can have."""


def _noun_phrase(*words: str) -> str:
    text = " ".join(word for word in words if word not in ("plain", "medium", "flat"))
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def caption(description: Description, phrasing: int = 0) -> str:
    """The caption, in one of `PHRASINGS` ways of saying the same.

    What is not said is the default: medium size, plain texture, flat style; a place of None is left
    out. Phrasings: 0 "a red circle on a blue field"; 1 "a picture of ..."; 2 "a blue background
    with a red circle"; 3 for two objects the second first, otherwise the place first.
    """
    d = description
    noun = "background" if phrasing % PHRASINGS == 2 else "field"
    field = _noun_phrase(d.ground.texture, d.ground.colour, noun)
    if not d.kinds:
        text = _noun_phrase("empty", d.ground.texture, d.ground.colour, noun)
        return _with_style(text, d.style, phrasing)
    names = [_noun_phrase(k.size, k.texture, k.colour, k.shape) for k in d.kinds]
    things, place = names[0], None
    if len(names) == 2:
        if d.place is None:
            things = f"{names[0]} and {names[1]}"
        else:
            swap = phrasing % PHRASINGS == 3
            first, second = names[::-1] if swap else names
            things = f"{first} {_RELATION_WORDS[d.place][swap]} {second}"
    elif d.place is not None:
        place = _PLACE_WORDS[d.place]
    if phrasing % PHRASINGS == 2:
        text = f"{field} with {things}" + (f" {place}" if place else "")
    elif place and phrasing % PHRASINGS == 3:
        text = f"{place} {things} on {field}"
    else:
        text = f"{things}" + (f" {place}" if place else "") + f" on {field}"
    return _with_style(text, d.style, phrasing)


def _with_style(text: str, style: str, phrasing: int) -> str:
    if style == "flat" and phrasing % PHRASINGS != 1:
        return text
    return f"{_noun_phrase(style, 'picture')} of {text}"


def parse(text: str) -> Description:
    """The description that a caption gives.

    Raises:
        ValueError: not a sentence of this grammar.
    """
    words = [word for word in text.lower().split() if word not in ("a", "an", "the", "of")]
    style = "flat"
    if "picture" in words:
        before = words[: words.index("picture")]
        words = words[len(before) + 1 :]
        style = before[0] if before else "flat"
    kinds: list[Kind] = []
    ground: Ground | None = None
    relation, place, swapped, said = None, None, False, list[str]()
    for word in words:
        if word in SHAPES:
            colour = _one(said, COLOURS, text)
            size, texture = _one(said, SIZES, text, "medium"), _one(said, TEXTURES, text, "plain")
            kinds.append(Kind(word, colour, size, texture))
        elif word in ("field", "background"):
            texture = _one(said, GROUND_TEXTURES, text, "plain")
            ground = Ground(_one(said, GROUNDS, text), texture)
        elif len(kinds) == 1 and word in ("above", "below"):
            relation, swapped = "above", word == "below"
        elif word in PLACES:
            place = word
        elif word not in ("on", "with", "and", "in", "at", "empty"):
            said.append(word)
    if ground is None or len(kinds) > 2 or said or style not in STYLES:
        raise ValueError(f"not a caption of this world: {text!r}")
    if len(kinds) == 2 and place is not None:
        relation, swapped = "beside", place == "right"
    if len(kinds) == 2:
        place = relation
    return Description(tuple(kinds[::-1] if swapped else kinds), ground, style, place)


def _one(words: list[str], known: object, text: str, default: str | None = None) -> str:
    """Take the one word of `words` that is `known` out of it."""
    found = [word for word in words if word in known]  # type: ignore[operator]
    if len(found) > 1 or (not found and default is None):
        raise ValueError(f"not a caption of this world: {text!r}")
    if not found:
        return str(default)
    words.remove(found[0])
    return found[0]


# Random scenes -----------------------------------------------------------------------------------


def _choice(rng: np.random.Generator, options: object) -> str:
    names = list(options)  # type: ignore[call-overload]
    return str(names[int(rng.integers(len(names)))])


def random_kind(rng: np.random.Generator, sizes: object, avoid: set[str], new: bool) -> Kind:
    """An object; `new`: of a pair of shape and colour that is held out; else of any other pair."""
    while True:
        shape, colour = _choice(rng, SHAPES), _choice(rng, COLOURS)
        if ((shape, colour) in HELD_OUT) == new and colour not in avoid:
            texture = "plain" if rng.random() < 0.6 else _choice(rng, TEXTURES[1:])
            return Kind(shape, colour, _choice(rng, sizes), texture)


def random_description(
    rng: np.random.Generator,
    *,
    new: bool = False,
    count: int | None = None,
    style: str | None = None,
) -> Description:
    """A description, its place said.

    Args:
        rng: source of randomness.
        new: its first object is of a pair (shape, colour) that training does not see.
        count: of the objects; default: one (64 %), two (33 %) or none.
        style: default: flat (70 %), or one of the others.
    """
    if count is None:
        count = int(np.searchsorted((0.03, 0.36), rng.random(), side="right"))
        count = (0, 2, 1)[count]
    if style is None:
        style = "flat" if rng.random() < 0.7 else _choice(rng, list(STYLES)[1:])
    texture = "plain" if rng.random() < 0.4 else _choice(rng, GROUND_TEXTURES[1:])
    ground = Ground(_choice(rng, GROUNDS), texture)
    if count == 0:
        return Description((), ground, style)
    if count == 1:
        kind = random_kind(rng, SIZES, {ground.colour}, new)
        place = "centre" if kind.size == "large" else _choice(rng, PLACES)
        return Description((kind,), ground, style, place)
    first = random_kind(rng, ("small", "medium"), {ground.colour}, new)
    second = random_kind(rng, ("small", "medium"), {ground.colour, first.colour}, False)
    kinds = (first, second) if rng.random() < 0.5 else (second, first)
    return Description(kinds, ground, style, _choice(rng, RELATIONS))


def scene_of(description: Description, rng: np.random.Generator) -> Scene:
    """A scene as described; what is not said is drawn at random."""
    d = description
    if d.kinds and d.place is None:
        places: tuple[str, ...] = RELATIONS if len(d.kinds) == 2 else PLACES
        if d.kinds[0].size == "large" and len(d.kinds) == 1:
            places = PLACES[:1]
        d = replace(d, place=_choice(rng, places))
    radii = [float(rng.uniform(*SIZES[kind.size])) for kind in d.kinds]
    angles = [float(rng.uniform(-_TURN, _TURN)) for _ in d.kinds]
    centres = _centres(d.place, [REACH * r for r in radii], rng)
    spots = tuple(Spot(x, y, r, a) for (x, y), r, a in zip(centres, radii, angles, strict=True))
    return Scene(d, spots, float(rng.uniform(0, 360)))


def _centres(
    place: str | None, reaches: list[float], rng: np.random.Generator
) -> list[tuple[float, float]]:
    if not reaches:
        return []
    if len(reaches) == 2:
        free = SIDE - 2 * sum(reaches) - 2 * _MARGIN - _GAP
        if free < 0:
            raise ValueError("two objects of that size do not fit beside each other")
        before, between = sorted(rng.uniform(0, free, 2))
        along = [
            _MARGIN + before + reaches[0],
            _MARGIN + between + 2 * reaches[0] + _GAP + reaches[1],
        ]
        across = [SIDE / 2 + float(rng.uniform(-6, 6)) for _ in reaches]
        pairs = list(zip(along, across, strict=True))
        return (
            [(float(a), b) for a, b in pairs]
            if place == "beside"
            else [(b, float(a)) for a, b in pairs]
        )
    middle, edge = SIDE / 2, SIDE / 2 - _MARGIN - reaches[0]
    jitter = rng.uniform(-3, 3, 2)
    if place != "centre" and edge < 10:
        raise ValueError("a large object fits in the centre only")
    out = edge - float(rng.uniform(0, 4))
    dx, dy = {
        "centre": (float(jitter[0]), 0.0),
        "left": (-out, 0.0),
        "right": (out, 0.0),
        "top": (0.0, -out),
        "bottom": (0.0, out),
    }[str(place)]
    dx += float(jitter[0]) if place in ("top", "bottom") else 0.0
    dy += float(jitter[1]) if place not in ("top", "bottom") else 0.0
    return [(middle + dx, middle + dy)]


def random_scene(seed: int, *, new: bool = False, count: int | None = None) -> Scene:
    """The scene number `seed`."""
    rng = np.random.default_rng(seed)
    return scene_of(random_description(rng, new=new, count=count), rng)


def random_caption(description: Description, rng: np.random.Generator) -> str:
    """One of the phrasings, the place said in half of them."""
    if rng.random() < 0.5:
        description = replace(description, place=None)
    return caption(description, int(rng.integers(PHRASINGS)))


# Edits -------------------------------------------------------------------------------------------

EDITS = ("colour", "shape", "texture", "background", "add", "delete", "move", "style")


@dataclass(frozen=True)
class Edit:
    """One change, and what it may touch.

    Attributes:
        kind: one of `EDITS`.
        source, target: scenes that differ in that alone.
        source_prompt, target_prompt: their captions.
        region: (64, 64) bool; outside it both pictures are equal, bit for bit.
    """

    kind: str
    source: Scene
    target: Scene
    source_prompt: str
    target_prompt: str
    region: Tensor


def change_object(scene: Scene, index: int, **attributes: str) -> Edit:
    """Another colour, shape or texture of one object: `change_object(scene, 0, colour="red")`."""
    (kind,) = attributes
    if kind not in ("colour", "shape", "texture"):
        raise ValueError(f"of an object, colour, shape or texture can change, not {kind}")
    kinds = list(scene.description.kinds)
    kinds[index] = replace(kinds[index], **attributes)
    target = replace(scene, description=replace(scene.description, kinds=tuple(kinds)))
    return _edit(kind, scene, target, _covered(scene, index) | _covered(target, index))


def change_background(scene: Scene, ground: Ground) -> Edit:
    """Another field behind the same objects: all but the pixels that an object hides."""
    target = replace(scene, description=replace(scene.description, ground=ground))
    hidden = np.zeros((SIDE, SIDE), bool)
    for kind, spot in zip(scene.description.kinds, scene.spots, strict=True):
        hidden |= coverage(kind.shape, spot) == 1
    return _edit("background", scene, target, ~hidden)


def change_style(scene: Scene, style: str) -> Edit:
    """Another style of the whole picture."""
    target = replace(scene, description=replace(scene.description, style=style))
    return _edit("style", scene, target, np.ones((SIDE, SIDE), bool))


def move(scene: Scene, place: str, rng: np.random.Generator) -> Edit:
    """The only object of a scene to another place; the prompts say where."""
    (spot,) = scene.spots
    ((x, y),) = _centres(place, [REACH * spot.radius], rng)
    target = Scene(
        replace(scene.description, place=place), (replace(spot, x=x, y=y),), scene.direction
    )
    return _edit("move", scene, target, _covered(scene, 0) | _covered(target, 0))


def delete(scene: Scene, index: int) -> Edit:
    """One object less; where it was, the field shows."""
    return _edit("delete", scene, _without(scene, index), _covered(scene, index))


def add(scene: Scene, index: int) -> Edit:
    """The object `index` of a scene comes into that scene without it."""
    return _edit("add", _without(scene, index), scene, _covered(scene, index))


def random_edit(kind: str, seed: int) -> Edit:
    """An edit of a kind out of `EDITS`: a pure function of its arguments.

    The scenes are flat, of one object or two, and of any pairs of shape and colour that training
    sees: what is measured is editing.
    """
    rng = np.random.default_rng([EDITS.index(kind), seed])
    count = 1 if kind == "move" or rng.random() < 0.6 else 2
    if kind == "add" and count == 1:
        count = 2  # something is there already
    while True:
        d = random_description(rng, count=count, style="flat")
        if kind != "move" or d.kinds[0].size != "large":
            break
    scene = scene_of(d, rng)
    index = int(rng.integers(count))
    d, old = scene.description, scene.description.kinds[index]
    if kind == "colour":
        taken = {d.ground.colour, *(k.colour for k in d.kinds)}
        seen = [c for c in COLOURS if c not in taken and (old.shape, c) not in HELD_OUT]
        return change_object(scene, index, colour=_choice(rng, seen))
    if kind == "shape":
        seen = [s for s in SHAPES if s != old.shape and (s, old.colour) not in HELD_OUT]
        return change_object(scene, index, shape=_choice(rng, seen))
    if kind == "texture":
        others = [t for t in TEXTURES if t != old.texture]
        return change_object(scene, index, texture=_choice(rng, others))
    if kind == "background":
        taken = {d.ground.colour, *(k.colour for k in d.kinds)}
        colour = _choice(rng, [g for g in GROUNDS if g not in taken])
        return change_background(scene, replace(d.ground, colour=colour))
    if kind == "style":
        return change_style(scene, _choice(rng, [s for s in STYLES if s != d.style]))
    if kind == "move":
        return move(scene, _choice(rng, [p for p in PLACES if p != d.place]), rng)
    return add(scene, index) if kind == "add" else delete(scene, index)


def _covered(scene: Scene, index: int) -> npt.NDArray[np.bool_]:
    return coverage(scene.description.kinds[index].shape, scene.spots[index]) > 0


def _without(scene: Scene, index: int) -> Scene:
    kinds, spots = list(scene.description.kinds), list(scene.spots)
    del kinds[index], spots[index]
    place = place_of(spots[0]) if spots else None
    return Scene(
        replace(scene.description, kinds=tuple(kinds), place=place), tuple(spots), scene.direction
    )


def place_of(spot: Spot) -> str:
    """Which of `PLACES` a single object at this spot is in."""
    dx, dy = spot.x - SIDE / 2, spot.y - SIDE / 2
    if max(abs(dx), abs(dy)) < 7:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _edit(kind: str, source: Scene, target: Scene, region: npt.NDArray[np.bool_]) -> Edit:
    before, after = source.description, target.description
    if kind != "move":
        if len(before.kinds) < 2:
            before = replace(before, place=None)
        if len(after.kinds) < 2:
            after = replace(after, place=None)
    return Edit(kind, source, target, caption(before), caption(after), torch.from_numpy(region))
