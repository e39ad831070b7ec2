"""The drawn world of the examples: masks, captions, edits whose truth is known, and the checker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from shapes import checker, world

SCENES = st.integers(0, 2**32).map(world.random_scene)
HELD_OUT = 10**9  # scenes that training does not see


def degraded(picture: Tensor, seed: int) -> Tensor:
    """Blurred and noisy, more than by a codec: 0.03 of full scale is 30 dB."""
    rng = np.random.default_rng(seed)
    blurred = ndimage.gaussian_filter(picture.numpy(), (0, 0.6, 0.6))
    return torch.from_numpy(blurred + rng.normal(0, 0.06, blurred.shape).astype(np.float32))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_a_scene_is_a_function_of_its_seed(seed: int) -> None:
    first, second = world.random_scene(seed), world.random_scene(seed)
    assert first == second
    assert torch.equal(world.draw(first), world.draw(second))


def test_pictures_are_in_range_and_differ() -> None:
    pictures = [world.draw(world.random_scene(seed)) for seed in range(8)]
    for picture in pictures:
        assert picture.shape == (3, 64, 64)
        assert picture.min() >= -1
        assert picture.max() <= 1
    assert len({picture.numpy().tobytes() for picture in pictures}) == 8


@pytest.mark.parametrize("shape", world.SHAPES)
def test_masks_have_the_area_of_their_shape(shape: str) -> None:
    """Areas of the outlines in closed form; the drawing rounds corners to 1/8 pixel."""
    heart = np.array(world._OUTLINES["heart"])
    x, y = heart.T
    area = {
        "circle": 64 / 2 * np.sin(2 * np.pi / 64) * 0.92**2,
        "square": 2 * 1.1**2,
        "triangle": 3 * np.sqrt(3) / 4 * 1.1**2,
        "diamond": 2 * 1.08 * 0.72,
        "star": 10 * 0.5 * 1.1 * 0.5 * np.sin(np.pi / 5),
        "cross": 4 * 0.36**2 + 8 * 0.36 * 0.64,
        "ring": 64 / 2 * np.sin(2 * np.pi / 64) * (0.95**2 - 0.5**2),
        "heart": abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2,
    }[shape]
    spot = world.Spot(32.3, 31.6, 19.0, 7.0)
    mask = world.coverage(shape, spot)
    # PIL paints the pixels of the outline too: at most one sub-pixel around the outline
    outline = 2 * np.pi * 1.1 * 19 * 1.6
    assert 0 <= mask.sum() - area * 19**2 < outline / 8
    y, x = np.nonzero(mask)
    reach = np.hypot(x + 0.5 - spot.x, y + 0.5 - spot.y).max()
    assert reach <= world.REACH * 19 + 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_an_object_is_where_its_mask_says(seed: int) -> None:
    """Without its object, a scene is the same but for the mask; fully covered pixels all differ."""
    scene = world.random_scene(seed, count=2)
    edit = world.delete(scene, 1)
    mask = world.mask(scene, 1)
    differ = (world.draw(edit.source) != world.draw(edit.target)).any(0)
    assert not differ[mask == 0].any()
    assert differ[mask == 1].all()
    assert (world.mask(scene, 0) * mask == 0).all()  # objects do not touch


@given(scene=SCENES, phrasing=st.integers(0, world.PHRASINGS - 1), place=st.booleans())
@settings(max_examples=200, deadline=None)
def test_captions_say_what_is_drawn(scene: world.Scene, phrasing: int, place: bool) -> None:
    said = scene.description if place else replace(scene.description, place=None)
    text = world.caption(said, phrasing)
    assert world.parse(text) == said
    assert set(text.split()) <= set(world.WORDS)
    assert len(text.split()) <= 21  # and two marks make 23 of the encoder's 24 tokens


def test_captions_read_well() -> None:
    circle, square = world.Kind("circle", "red"), world.Kind("square", "orange", "small", "striped")
    field = world.Ground("blue")
    assert world.caption(world.Description((circle,), field)) == "a red circle on a blue field"
    two = world.Description((circle, square), world.Ground("grey", "dotted"), "night", "beside")
    assert world.caption(two) == (
        "a night picture of a red circle left of a small striped orange square on a dotted grey"
        " field"
    )
    swapped = "a small striped orange square right of a red circle on a dotted grey field"
    assert world.caption(replace(two, style="flat"), 3) == swapped
    assert world.caption(world.Description((), field), 1) == "a picture of an empty blue field"


@pytest.mark.parametrize("text", ["a red circle", "a big red circle on a blue field", "a circle"])
def test_other_sentences_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        world.parse(text)


def test_training_never_sees_the_held_out_pairs() -> None:
    seen = {
        (kind.shape, kind.colour)
        for seed in range(2000)
        for kind in world.random_scene(seed).description.kinds
    }
    pairs = {(shape, colour) for shape in world.SHAPES for colour in world.COLOURS}
    # 2000 scenes hold about 2600 objects of 56 pairs
    assert seen == pairs - world.HELD_OUT
    assert {shape for shape, _ in world.HELD_OUT} == set(world.SHAPES)
    assert {colour for _, colour in world.HELD_OUT} == set(world.COLOURS)
    for seed in range(50):
        kinds = world.random_scene(seed, new=True, count=2).description.kinds
        assert sum((kind.shape, kind.colour) in world.HELD_OUT for kind in kinds) == 1


@pytest.mark.parametrize("kind", world.EDITS)
def test_edits_change_their_region_only(kind: str) -> None:
    for seed in range(12):
        edit = world.random_edit(kind, seed)
        before, after = world.draw(edit.source), world.draw(edit.target)
        differ = (before != after).any(0)
        assert differ.any()
        assert not differ[~edit.region].any()
        assert edit.source_prompt != edit.target_prompt
        for prompt, scene in ((edit.source_prompt, edit.source), (edit.target_prompt, edit.target)):
            said, drawn = world.parse(prompt), scene.description
            assert replace(said, place=drawn.place) == drawn
        again = world.random_edit(kind, seed)
        assert again.source == edit.source
        assert torch.equal(again.region, edit.region)


def test_an_edit_changes_one_thing_in_the_description() -> None:
    """Of kinds, ground, style and place, only the one that the edit is about."""
    touched = {"background": "ground", "style": "style", "move": "place"}
    for kind in world.EDITS:
        if kind in ("add", "delete"):
            continue
        edit = world.random_edit(kind, 5)
        a, b = edit.source.description, edit.target.description
        names = [n for n in ("kinds", "ground", "style", "place") if getattr(a, n) != getattr(b, n)]
        assert names == [touched.get(kind, "kinds")]
    longer, shorter = (
        (e.target.description.kinds, e.source.description.kinds)
        for e in (world.random_edit("add", 5), world.random_edit("add", 6))
    )
    assert len(longer[0]) == len(longer[1]) + 1 or len(longer) == 2
    assert len(shorter) == 2


def test_impossible_scenes_are_refused() -> None:
    circle = world.Kind("circle", "red", "large")
    field = world.Ground("blue")
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="centre only"):
        world.scene_of(world.Description((circle,), field, place="left"), rng)
    with pytest.raises(ValueError, match="do not fit"):
        world.scene_of(world.Description((circle, circle), field, place="above"), rng)
    with pytest.raises(ValueError, match="one each"):
        world.Scene(world.Description((circle,), field), ())


@pytest.mark.parametrize("worn", [False, True])
def test_the_checker_reads_held_out_scenes(worn: bool) -> None:
    """Right in more than 98 %, what the issue of the gate asks for; measured 100 % of 1000."""
    count, right, exact = 200, 0, 0
    for seed in range(HELD_OUT, HELD_OUT + count):
        scene = world.random_scene(seed, new=seed % 2 == 0)
        picture = world.draw(scene)
        reading = checker.read(degraded(picture, seed) if worn else picture)
        right += reading.shows(scene.description)
        exact += reading.description() == scene.description
    assert right > 0.98 * count
    assert exact > 0.94 * count  # also sizes, textures, places; the widest dots hide in thin rings


def test_the_checker_notices_what_is_wrong() -> None:
    """A picture does not pass for one of another colour, shape or number."""
    for kind in ("colour", "shape", "add", "delete"):
        for seed in range(10):
            edit = world.random_edit(kind, seed)
            reading = checker.read(world.draw(edit.source))
            assert reading.shows(edit.source.description)
            assert not reading.shows(edit.target.description)


def test_the_checker_finds_nothing_in_noise_or_plain_colour() -> None:
    flat = torch.full((3, 64, 64), 0.2)
    assert checker.read(flat).objects == ()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 64, 64, generator=generator)
    assert not checker.read(noise).shows(world.random_scene(0).description)
    wanted = [world.random_scene(seed).description for seed in range(2)]
    shown = torch.stack([world.draw(world.random_scene(0)), flat])
    assert checker.share_shown(shown, wanted) == 0.5
