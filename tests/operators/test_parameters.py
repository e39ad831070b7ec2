"""Parameters of every operator: sizes and lengths that are not positive, and what is no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from posterior import operators
from posterior.errors import InputError, InputTypeError

EHT = operators.m87_2017(scans=1)
LENS = {"sigma_along": 2.0, "sigma_across": 1.0}
SCAN = {"views": 4, "arc": 180.0, "detectors": 5, "spacing": 1.0, "pixel_size": 1.0, "size": 8}
FAN = {**SCAN, "source_distance": 20.0, "detector_distance": 20.0}
RING = {"wavelength": 0.2, "width": 1.0, "transmitters": 3, "receivers": 4, "radius": 1.6}
FLOW = {"time": 1.0, "viscosity": 0.01, "subsample": 2, "scale": 10.0, "speed": 5.0, "step": 0.1}

Make = Callable[..., object]
POSITIVE: list[tuple[Make, dict[str, Any]]] = [
    (operators.GaussianBlur, {"sigma": 1.0}),
    (operators.MotionBlur, {"length": 5.0}),
    (operators.Defocus, {"radius": 2.0}),
    (operators.AnisotropicGaussianBlur, LENS),
    (operators.SpaceVaryingBlur.defocus, {"middle": 1, "corner": 2, "steps": 3}),
    (operators.SuperResolution, {"factor": 2}),
    (operators.ChannelMean, {"channels": 3}),
    (operators.Mask.random, {"keep_fraction": 0.5}),
    (operators.Mask.box, {"size": 3}),
    (operators.Crop, {"size": 4, "image": 8}),
    (operators.SelectChannels, {"channels": [0], "of": 2}),
    (operators.EquispacedLines, {"acceleration": 4.0}),
    (operators.RandomLines, {"acceleration": 4.0}),
    (operators.PoissonDisc, {"acceleration": 4.0}),
    (operators.CoilSensitivities, {"maps": 3}),
    (operators.birdcage_maps, {"coils": 3, "size": (4, 4), "radius": 1.5}),
    (operators.GaussianSensing, {"ratio": 0.5}),
    (operators.StructuredSensing, {"ratio": 0.5}),
    (operators.CodedDiffraction, {"patterns": 3}),
    (operators.radial_trajectory, {"spokes": 3, "samples": 5}),
    (operators.ParallelBeamCT, SCAN),
    (operators.FanBeamCT, FAN),
    (operators.Transmission, {"operator": operators.ParallelBeamCT(views=4), "attenuation": 0.1}),
    (operators.NavierStokes, FLOW),
    (operators.random_vorticity, {"size": 8, "seed": 0}),
    (operators.BornScattering, {**RING, "size": 8}),
    (operators.LippmannSchwinger, {**RING, "iterations": 10}),
    (operators.Visibilities, {"observation": EHT, "field_of_view": 100.0, "size": 8}),
    (operators.ClosurePhases, {"observation": EHT, "field_of_view": 100.0}),
    (operators.TotalFlux, {"peak": 1.0}),
    (operators.HDRClipping, {"factor": 2.0}),
    (operators.Quantisation, {"levels": 8}),
    (operators.Camera, {"exposure": 1.0}),
    (operators.JPEG, {"quality": 50}),
    (operators.Haze, {"depth": [[1.0, 2.0]], "scattering": 1.0}),
]
MAY_BE_ZERO = {"middle", "corner", "viscosity", "detector_distance"}  # the last: at the centre
MAY_BE_NONE = {"detectors", "spacing", "size", "image", "of", "step"}
ANY_FINITE: list[tuple[Make, dict[str, Any], str]] = [
    (operators.MotionBlur, {"length": 5}, "angle"),
    (operators.AnisotropicGaussianBlur, LENS, "angle"),
    (operators.Scale, {}, "factor"),
    (operators.ParallelBeamCT, SCAN, "start"),
    (operators.BornScattering, RING, "contrast"),
    (operators.NavierStokes, FLOW, "forcing"),
    (operators.PhaseRetrieval, {}, "low"),
    (operators.TotalFlux, {}, "low"),
    (operators.Haze, {"depth": [[1.0, 2.0]]}, "airlight"),
]


@pytest.mark.parametrize("number", range(len(POSITIVE)))
def test_positive(number: int) -> None:
    make, good = POSITIVE[number]
    make(**good)
    for name, value in good.items():
        if not isinstance(value, (int, float)):
            continue
        bad: list[object] = [-1, -0.5, math.nan, math.inf, "2", True]
        bad += [] if name in MAY_BE_ZERO or name == "seed" else [0]
        bad += [] if name in MAY_BE_NONE else [None]
        if name == "seed":  # any integer is one
            bad = [0.5, math.nan, "2", True, None]
        for wrong in bad:
            with pytest.raises((InputError, InputTypeError)) as caught:
                make(**{**good, name: wrong})
            assert "\n" not in str(caught.value), (name, wrong)


@pytest.mark.parametrize("number", range(len(ANY_FINITE)))
def test_finite(number: int) -> None:
    make, good, name = ANY_FINITE[number]
    make(**{**good, name: -2.5})
    for wrong in (math.nan, math.inf, "2", True, None):
        with pytest.raises((InputError, InputTypeError)):
            make(**{**good, name: wrong})
