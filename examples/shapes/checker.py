"""Look at a picture of the world and say what is on it, by rules alone.

    ground     a plane in x and y fitted to the border, robustly: the field and its shading
    objects    what differs from the field: threshold, closing, connected components
    colour     of the brighter half of an object's inner pixels (its texture is a darker shade),
               against the palettes; one style for the whole picture
    shape      the object, moved to its centroid and scaled to a common area, against templates of
               all shapes at several angles: the largest ratio of intersection to union
    texture    how much the inner pixels differ, and whether in one direction or in all

Nothing is learned, so the checker cannot have learned the habits of a generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from shapes.world import (
    COLOURS,
    GROUNDS,
    SHAPES,
    SIDE,
    SIZES,
    STYLES,
    Array,
    Description,
    Ground,
    Kind,
    Spot,
    coverage,
    place_of,
    restyled,
)

Bool = npt.NDArray[np.bool_]

_BORDER = 3  # pixels that no object reaches, as a rule
_SMALLEST = 40  # pixels of an object
_FRAME = 40  # pixels on a side of a template
_SMOOTH = 0.6  # pixels
_ANGLES = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)


@dataclass(frozen=True)
class Found:
    """An object.

    Attributes:
        kind: what it seems to be.
        spot: where; the angle is that of the best template.
        likeness: intersection over union with the best template.
        margin: how much better that is than the best one of another shape.
    """

    kind: Kind
    spot: Spot
    likeness: float
    margin: float


@dataclass(frozen=True)
class Reading:
    """What is on a picture; objects by size, the largest first."""

    objects: tuple[Found, ...]
    ground: Ground
    style: str

    def description(self) -> Description:
        """As a caption would say it, if there are no more than two objects."""
        found = list(self.objects[:2])
        place = None
        if len(found) == 1:
            place = place_of(found[0].spot)
        elif found:
            dx = abs(found[0].spot.x - found[1].spot.x)
            dy = abs(found[0].spot.y - found[1].spot.y)
            place = "beside" if dx > dy else "above"
            found.sort(key=lambda f: f.spot.x if place == "beside" else f.spot.y)
        return Description(tuple(f.kind for f in found), self.ground, self.style, place)

    def shows(self, wanted: Description) -> bool:
        """Whether the objects are as many as wanted, of those colours and shapes."""
        mine = sorted((f.kind.shape, f.kind.colour) for f in self.objects)
        return mine == sorted((k.shape, k.colour) for k in wanted.kinds)


def read(picture: Tensor) -> Reading:
    """Look at one picture (3, 64, 64) in [-1, 1]."""
    image = ((picture.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
    image = ndimage.gaussian_filter(image, (_SMOOTH, _SMOOTH, 0))  # against a codec's noise
    field, spread = _field(image)
    pieces = _pieces(image, field, spread)
    paints = [_colour(image, piece) for piece in pieces]
    style, ground, colours = _names(field[SIDE // 2, SIDE // 2], paints)
    image, field = (_unstyled(z, style) for z in (image, field))
    objects = []
    for piece, colour in zip(pieces, colours, strict=True):
        shape, spot, likeness, margin = _shape(piece)
        middle = {name: sum(radii) / 2 for name, radii in SIZES.items()}
        size = min(middle, key=lambda name: abs(np.log(middle[name] / spot.radius)))
        objects.append(
            Found(Kind(shape, colour, size, _texture(image, piece)), spot, likeness, margin)
        )
    hidden = sum(pieces, np.zeros((SIDE, SIDE), np.float32)) > 0
    outside = ~ndimage.binary_dilation(hidden, iterations=3)
    texture = _ground_texture(image, field, outside)
    objects.sort(key=lambda found: -found.spot.radius)
    return Reading(tuple(objects), Ground(ground, texture), style)


def _field(image: Array) -> tuple[Array, float]:
    """A plane through the border pixels, (64, 64, 3), and the spread of those around it."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE / 2) - 1
    border = np.ones((SIDE, SIDE), bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    basis = np.stack([np.ones_like(x), x, y], -1)
    a, b = basis[border], image[border]
    keep = np.ones(len(a), bool)
    own = max(0.13, 0.22 * float(np.linalg.norm(np.median(b, 0))))  # a field's own stripes and dots
    for _ in range(4):  # an object at the border is left out
        plane = np.linalg.lstsq(a[keep], b[keep], rcond=None)[0]
        distance = np.linalg.norm(b - a @ plane, axis=1)
        keep = distance <= max(own, 2.5 * float(np.median(distance)))
    spread = float(np.quantile(distance[keep], 0.95))
    return (basis @ plane).astype(np.float32), spread


def _pieces(image: Array, field: Array, spread: float) -> list[Array]:
    """The objects, as masks (64, 64) in {0, 1}."""
    distance = np.linalg.norm(image - field, axis=2)
    strong = distance > 0.5 * np.quantile(distance, 0.97)
    rest = distance[~ndimage.binary_dilation(strong, iterations=2)]
    ripple = float(np.quantile(rest, 0.8)) if rest.size else 0.0  # dots that miss the border
    near = distance > max(1.25 * spread, 1.3 * ripple, 0.07)
    pieces = []
    for rough in _components(ndimage.binary_closing(near)):
        # an edge is where half of the object's own contrast is reached: of its darker shade
        contrast = float(np.quantile(distance[_inner(rough)], 0.2))
        sharp = ndimage.binary_closing(rough & (distance > 0.5 * contrast))
        pieces += [_without_gaps(piece) for piece in _components(sharp)]
    return [piece.astype(np.float32) for piece in pieces]


def _components(where: Bool) -> list[Bool]:
    labels, count = ndimage.label(where)
    pieces = [labels == index for index in range(1, count + 1)]
    return [piece for piece in pieces if piece.sum() >= _SMALLEST]


def _without_gaps(piece: Bool) -> Bool:
    """Fill what the texture left open; the hole of a ring is larger."""
    filled = ndimage.binary_fill_holes(piece)
    holes, count = ndimage.label(filled & ~piece)
    for index in range(1, count + 1):
        hole = holes == index
        if hole.sum() < 0.12 * filled.sum():
            piece = piece | hole
    return piece


def _inner(piece: Array | Bool) -> Bool:
    """The pixels of an object that no edge touches; of a thin one the innermost there are."""
    depth = ndimage.distance_transform_edt(piece)
    return depth >= min(2.2, 0.7 * depth.max())


def _colour(image: Array, piece: Array) -> Array:
    """The lighter shade of an object, (3,)."""
    values = image[_inner(piece)]
    light = values.mean(1)
    return np.median(values[light >= np.quantile(light, 0.6)], 0)


def _unstyled(picture: Array, style: str) -> Array:
    gain, offset = STYLES[style]
    flat: Array = (picture - np.float32(offset)) / np.array(gain, np.float32)
    return flat


def _texture(image: Array, piece: Array) -> str:
    """Of an object on a flat picture."""
    inner = _inner(piece)
    values = image[inner]
    light = values.mean(1)
    high = np.median(values[light >= np.quantile(light, 0.75)], 0)
    low = np.median(values[light <= np.quantile(light, 0.25)], 0)
    if np.linalg.norm(high - low) < 0.18 * max(float(np.linalg.norm(high)), 0.5):
        return "plain"
    return _pattern(image.mean(2), inner)


def _pattern(light: Array, where: Bool) -> str:
    """Striped or dotted, from the slopes: stripes have them in one direction only."""
    gy, gx = np.gradient(light)
    xx, yy, xy = (float((a * b)[where].mean()) for a, b in ((gx, gx), (gy, gy), (gx, gy)))
    one_way = np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-9)  # 1 for stripes, 0 for dots
    return "striped" if one_way > 0.55 else "dotted"


def _ground_texture(image: Array, field: Array, where: Bool) -> str:
    """Of the field of a flat picture, where no object is."""
    light = ndimage.gaussian_filter(image.mean(2), 1.0)
    level = max(float(np.median(light[where])), 0.35)  # on black, waves do not shrink with it
    if float((light - field.mean(2))[where].std()) > 0.035 * level:
        return _pattern(light, where)
    slope = float(np.hypot(*(np.ptp(field.mean(2), axis=k).mean() for k in (0, 1))))
    return "shaded" if slope > 0.17 * level else "plain"


def _names(ground: Array, colours: list[Array]) -> tuple[str, str, list[str]]:
    """Style, ground and colours together: the nearest ones of one palette."""
    best = None
    for style in STYLES:
        grounds = {n: restyled(np.array(c, np.float32), style) for n, c in GROUNDS.items()}
        paints = {n: restyled(np.array(c, np.float32), style) for n, c in COLOURS.items()}
        name, total = _nearest(ground, grounds)
        named = []
        for colour in colours:
            which, distance = _nearest(colour, paints)
            named.append(which)
            total += distance
        if best is None or total < best[0]:
            best = total, style, name, named
    assert best is not None
    return best[1], best[2], best[3]


def _nearest(colour: Array, palette: dict[str, Array]) -> tuple[str, float]:
    distances = {name: float(np.linalg.norm(colour - c)) for name, c in palette.items()}
    name = min(distances, key=lambda n: distances[n])
    return name, distances[name]


def _framed(piece: Array) -> tuple[Array, tuple[float, float], float]:
    """An object at the middle of a frame, its area a quarter of it; its centroid and area."""
    area = float(piece.sum())
    cy, cx = ndimage.center_of_mass(piece)
    scale = np.sqrt(area) / (_FRAME / 2)
    offset = np.array([cy, cx]) - scale * (_FRAME - 1) / 2
    frame = ndimage.affine_transform(
        piece, np.full(2, scale), offset=offset, output_shape=(_FRAME, _FRAME), order=1
    )
    return frame.astype(np.float32), (float(cx) + 0.5, float(cy) + 0.5), area


@lru_cache(maxsize=1)
def _templates() -> tuple[Array, list[tuple[str, float]], dict[str, float]]:
    """Frames (K, n, n), what they show, and the area of each shape of radius 1."""
    frames, names, areas = [], [], {}
    for shape in SHAPES:
        for angle in _ANGLES:
            middle, radius = 2.0 * SIDE, 80.0
            large = coverage(shape, Spot(middle, middle, radius, angle), 4 * SIDE)
            frame, _, area = _framed(large)
            frames.append(frame)
            names.append((shape, angle))
            areas[shape] = area / radius**2
    return np.stack(frames), names, areas


def _shape(piece: Array) -> tuple[str, Spot, float, float]:
    """Shape, spot, likeness and margin."""
    frames, names, areas = _templates()
    frame, (x, y), area = _framed(piece)
    axes = (1, 2)
    union = np.maximum(frames, frame).sum(axes)
    likeness = np.minimum(frames, frame).sum(axes) / union
    best = int(likeness.argmax())
    shape, angle = names[best]
    others = [float(v) for v, (name, _) in zip(likeness, names, strict=True) if name != shape]
    spot = Spot(x, y, float(np.sqrt(area / areas[shape])), angle)
    return shape, spot, float(likeness[best]), float(likeness[best]) - max(others)


def share_shown(pictures: Tensor, wanted: list[Description]) -> float:
    """The part of the pictures (B, 3, 64, 64) that show what was wanted, see `Reading.shows`."""
    right = [read(p).shows(d) for p, d in zip(torch.unbind(pictures), wanted, strict=True)]
    return sum(right) / len(right)
