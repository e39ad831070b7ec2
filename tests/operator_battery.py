"""What every operator must satisfy. A new operator writes a factory in `CASES` and gets it all.

A case makes an operator for images of C channels and H x W pixels; `batch` is the number of rows
that its per-measurement parameters are for (1: any).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor

from posterior import streams
from posterior.operators import (
    JPEG,
    MRI,
    AcousticWaves,
    AnisotropicGaussianBlur,
    BayerMosaic,
    Blur,
    BornScattering,
    Camera,
    ChannelMean,
    ClosurePhases,
    CodedDiffraction,
    ComplexFromChannels,
    Crop,
    Defocus,
    Emission,
    EquispacedLines,
    FanBeamCT,
    FeatureMatch,
    GaussianBlur,
    GaussianSensing,
    Haze,
    HDRClipping,
    Identity,
    LinearLight,
    LippmannSchwinger,
    LogClosureAmplitudes,
    Luma,
    Mask,
    MotionBlur,
    NavierStokes,
    NonCartesianMRI,
    NonUniformFourier,
    Operator,
    ParallelBeamCT,
    PerChannel,
    PhaseRetrieval,
    PoissonDisc,
    Quantisation,
    RandomLines,
    Scale,
    SelectChannels,
    Slicewise,
    SpaceVaryingBlur,
    Stack,
    SteerableFeatures,
    StructuredSensing,
    SubsampledFourier,
    SuperResolution,
    TotalFlux,
    Transmission,
    Visibilities,
    birdcage_maps,
    from_callable,
    from_matrix,
    m87_2017,
    radial_trajectory,
)


def normal(shape: tuple[int, ...], name: str = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    """Reproducible standard normal numbers."""
    return streams.normal(0, name, torch.zeros(shape, dtype=dtype))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[int, int, int], Operator]  # (C, H, W) -> operator
    channels: int = 2
    multiple: int = 1  # of height and width
    smallest: int = 1
    batch: int = 3
    power_of_two: bool = False  # height and width


def _matrix(c: int, h: int, w: int, m: int, dtype: torch.dtype) -> Tensor:
    return normal((m, c * h * w), "matrix", dtype)


def _sparse(c: int, h: int, w: int, m: int, dtype: torch.dtype) -> Tensor:
    """A dense matrix with zeros in most places, and in all of its first row."""
    matrix = _matrix(c, h, w, m, dtype)
    full = normal((m, c * h * w), "where") > 0.5
    full[0] = False
    return torch.where(full, matrix, 0)


def _keep(h: int, w: int) -> Tensor:
    keep = (normal((3, 1, h, w), "mask") > 0).double()
    keep[:, :, 0, 0] = 1
    return keep


def _depth(h: int, w: int) -> Tensor:
    return normal((3, 1, h, w), "depth").abs()


def _kspace(h: int, w: int) -> Tensor:
    return (normal((3, 1, h, w), "k-space") > 0).double().index_fill(3, torch.tensor(w // 2), 1)


def _complex(c: int, h: int, w: int) -> Operator:
    return Blur(normal((3, 3), "k"), "circular") @ ComplexFromChannels()


F, C = torch.float64, torch.complex128
LINEAR = [
    Case("identity", lambda c, h, w: Identity()),
    Case("mask", lambda c, h, w: Mask(keep=_keep(h, w)[0])),
    Case("mask per measurement", lambda c, h, w: Mask(edit=1 - _keep(h, w))),
    Case("mask random", lambda c, h, w: Mask.random(keep_fraction=0.4, seed=3)),
    Case("mask random seeds", lambda c, h, w: Mask.random(keep_fraction=0.4, seed=[3, 4, 5])),
    Case("mask box", lambda c, h, w: Mask.box(size=(h - 1, w // 2)), smallest=2),
    Case("outpaint", lambda c, h, w: Mask.outpaint(margin=(1, 0, 1, 1)), smallest=3),
    *(
        Case(f"gaussian {b}", lambda c, h, w, b=b: GaussianBlur(0.7, b), smallest=7)
        for b in ("reflect", "circular", "valid")
    ),
    Case("gaussian wide", lambda c, h, w: GaussianBlur(3.0)),
    *(
        Case(f"motion {b}", lambda c, h, w, b=b: MotionBlur(5, 30, b), smallest=7)
        for b in ("reflect", "circular", "valid")
    ),
    *(
        Case(f"blur {b}", lambda c, h, w, b=b: Blur(normal((3, 5), "k"), b), smallest=5)
        for b in ("reflect", "circular", "valid")
    ),
    *(
        Case(
            f"blur even {b}",
            lambda c, h, w, b=b: Blur(normal((4, 2), "k"), b, (3, 0), correlation=True),
            smallest=4,
        )
        for b in ("reflect", "circular", "valid")
    ),
    Case("blur wraps", lambda c, h, w: Blur(normal((9, 11), "k"), "circular")),
    Case("blur per measurement", lambda c, h, w: Blur(normal((3, 1, 3, 3), "k")), smallest=3),
    Case("blur per measurement circular", lambda c, h, w: Blur(normal((3, 3, 3), "k"), "circular")),
    *(
        Case(f"super {k}", lambda c, h, w, k=k: SuperResolution(3, k), multiple=3)
        for k in ("average", "bicubic", "bicubic-matlab")
    ),
    Case("super kernel", lambda c, h, w: SuperResolution(2, normal((4, 5), "k")), 2, 2, 6),
    Case("channel mean", lambda c, h, w: ChannelMean(c), 3),
    Case("matrix", lambda c, h, w: from_matrix(_matrix(c, h, w, 7, F), (c, h, w))),
    Case("matrix complex", lambda c, h, w: from_matrix(_matrix(c, h, w, 3, C), (c, h, w))),
    Case(
        "matrix complex domain",
        lambda c, h, w: (
            from_matrix(_matrix(c // 2, h, w, 3, C), (c // 2, h, w), complex_domain=True)
            @ ComplexFromChannels()
        ),
    ),
    Case(
        "matrix sparse",
        lambda c, h, w: from_matrix(
            scipy.sparse.coo_array(_sparse(c, h, w, 7, F).numpy()), (c, h, w)
        ),
    ),
    Case(
        "matrix sparse complex",
        lambda c, h, w: from_matrix(_sparse(c, h, w, 5, C).to_sparse_coo(), (c, h, w)),
    ),
    Case(
        "matrix sparse complex domain",
        lambda c, h, w: (
            from_matrix(
                _sparse(c // 2, h, w, 3, C).to_sparse_coo(), (c // 2, h, w), complex_domain=True
            )
            @ ComplexFromChannels()
        ),
    ),
    Case(
        "matrix foreign",
        lambda c, h, w: from_matrix(aslinearoperator(_matrix(c, h, w, 7, F).numpy()), (c, h, w)),
    ),
    Case(
        "matrix foreign complex",
        lambda c, h, w: from_matrix(aslinearoperator(_matrix(c, h, w, 3, C).numpy()), (c, h, w)),
    ),
    Case(
        "matrix foreign of complex x",
        lambda c, h, w: (
            from_matrix(aslinearoperator(_matrix(c // 2, h, w, 3, F).numpy()), (c // 2, h, w))
            @ ComplexFromChannels()
        ),
    ),
    Case(
        "matrix foreign complex domain",
        lambda c, h, w: (
            from_matrix(
                aslinearoperator(_matrix(c // 2, h, w, 3, C).numpy()),
                (c // 2, h, w),
                complex_domain=True,
            )
            @ ComplexFromChannels()
        ),
    ),
    Case("complex channels", lambda c, h, w: ComplexFromChannels()),
    Case("complex blur", _complex, smallest=3),
    Case(
        "mask of average", lambda c, h, w: Mask.box(size=1) @ SuperResolution(2, "average"), 2, 2, 4
    ),
    Case("blur, then grey", lambda c, h, w: ChannelMean(c) @ GaussianBlur(1.0), 3),
    Case("stack", lambda c, h, w: Stack([GaussianBlur(1.0), ChannelMean(c)]).bind((c, h, w))),
    Case(
        "stack mixed",
        lambda c, h, w: Stack([_complex(c, h, w), Identity()]).bind((c, h, w)),
        smallest=3,
    ),
    Case(
        "stack per measurement",
        lambda c, h, w: Stack([Mask(keep=_keep(h, w)), Identity()]).bind((c, h, w)),
    ),
    Case("slices", lambda c, h, w: Slicewise(from_matrix(_matrix(1, h, w, 7, F), (h, w)), axis=0)),
    Case("slices last", lambda c, h, w: Slicewise(from_matrix(_matrix(c, h, 1, 5, C), (c, h)), 2)),
    Case("parallel beam", lambda c, h, w: ParallelBeamCT(views=5, arc=150, start=7, size=(h, w))),
    Case(
        "parallel beam coarse",
        lambda c, h, w: ParallelBeamCT(angles=[0, 45, 90], spacing=1.3, detectors=6, size=(h, w)),
    ),
    *(
        Case(
            f"fan beam {name}",
            lambda c, h, w, curved=curved: FanBeamCT(
                views=4, source_distance=h + w, detector_distance=w, curved=curved, size=(h, w)
            ),
        )
        for name, curved in (("flat", False), ("curved", True))
    ),
    Case(
        "callable linear",
        lambda c, h, w: from_callable(lambda x: x.cumsum(-1), linear=True).bind((c, h, w)),
    ),
    Case(
        "callable pair",
        lambda c, h, w: from_callable(lambda x: 2 * x.flip(-1), adjoint=lambda y: 2 * y.flip(-1)),
    ),
]
FOURIER = [
    Case("fourier", lambda c, h, w: SubsampledFourier()),
    Case("fourier mask", lambda c, h, w: SubsampledFourier(_kspace(h, w)[0])),
    Case("fourier mask per measurement", lambda c, h, w: SubsampledFourier(_kspace(h, w))),
    Case(
        "fourier complex seeds",
        lambda c, h, w: (
            SubsampledFourier(RandomLines(2, seed=[3, 4, 5]), complex_domain=True)
            @ ComplexFromChannels()
        ),
        smallest=4,
    ),
    Case("mri", lambda c, h, w: MRI(EquispacedLines(2)) @ ComplexFromChannels(), 4, smallest=4),
    Case(
        "mri coils",
        lambda c, h, w: MRI(PoissonDisc(2, seed=1), coils=3) @ ComplexFromChannels(),
        smallest=2,
    ),
    Case(
        "mri coils per measurement",
        lambda c, h, w: (
            MRI(_kspace(h, w), birdcage_maps(3, (h, w), seed=[0, 1, 2])) @ ComplexFromChannels()
        ),
    ),
    Case(
        "mri coils full",
        lambda c, h, w: MRI(coils=2 * birdcage_maps(3, (h, w), seed=0)) @ ComplexFromChannels(),
    ),
    Case(
        "mri coils real",
        lambda c, h, w: MRI(RandomLines(2), 3, complex_domain=False),
        channels=1,
        smallest=4,
    ),
]
SENSING = [
    Case("gaussian sensing", lambda c, h, w: GaussianSensing(0.4, seed=1).bind((c, h, w))),
    Case(
        "gaussian sensing complex",
        lambda c, h, w: (GaussianSensing(0.4) @ ComplexFromChannels()).bind((c, h, w)),
    ),
    Case("dct sensing", lambda c, h, w: StructuredSensing(0.4, seed=1).bind((c, h, w))),
    Case(
        "dct sensing complex",
        lambda c, h, w: (StructuredSensing(0.7) @ ComplexFromChannels()).bind((c, h, w)),
    ),
    Case(
        "hadamard sensing",
        lambda c, h, w: StructuredSensing(0.4, "hadamard").bind((c, h, w)),
        power_of_two=True,
    ),
]
NUFFT = [
    Case(
        "nufft",
        lambda c, h, w: NonUniformFourier(radial_trajectory(3, 5)).bind((c, h, w)),
    ),
    Case(
        "nufft coils per measurement",
        lambda c, h, w: (
            NonCartesianMRI(
                torch.stack([radial_trajectory(s, 6 // s) for s in (1, 2, 3)]),
                birdcage_maps(2, (h, w), seed=[0, 1, 2]),
            )
            @ ComplexFromChannels()
        ).bind((c, h, w)),
    ),
]
PHOTOGRAPHY = [
    *(
        Case(f"defocus {b}", lambda c, h, w, b=b: Defocus(1.7, b), smallest=5)
        for b in ("reflect", "circular", "valid")
    ),
    Case("defocus sharp", lambda c, h, w: Defocus(0.5)),
    Case(
        "anisotropic",
        lambda c, h, w: AnisotropicGaussianBlur(1.0, 0.4, 30, boundary="circular"),
    ),
    *(
        Case(
            f"varying grid {b}",
            lambda c, h, w, b=b: SpaceVaryingBlur(normal((2, 3, 3, 5), "k"), boundary=b),
            smallest=5,
        )
        for b in ("reflect", "circular", "valid")
    ),
    Case(
        "varying radial",
        lambda c, h, w: SpaceVaryingBlur.defocus(middle=0, corner=2, steps=3),
        smallest=5,
    ),
    Case(
        "varying maps",
        lambda c, h, w: SpaceVaryingBlur(normal((2, 3, 3), "k"), normal((2, h, w), "maps")),
        smallest=3,
    ),
    Case("luma", lambda c, h, w: Luma(), channels=3),
    Case("luma 709", lambda c, h, w: Luma("rec709") @ Defocus(1.2), channels=3, smallest=3),
    Case("bayer", lambda c, h, w: BayerMosaic("gbrg"), channels=3),
    Case("crop", lambda c, h, w: Crop((h - 1, w - 2), (1, 0), (h, w)), smallest=3),
    Case("crop bound", lambda c, h, w: Crop(2).bind((c, h, w)), smallest=2),
    Case("channels", lambda c, h, w: SelectChannels([2, 0], of=3), channels=3),
    Case("scale", lambda c, h, w: Scale(-0.7)),
    Case(
        "per channel, per measurement",
        lambda c, h, w: PerChannel([GaussianBlur(0.6), Mask(keep=_keep(h, w))]),
        channels=2,
    ),
]
HAZE = [
    Case("haze per measurement", lambda c, h, w: Haze(_depth(h, w), 0.7, [0.3, 0.8]), channels=2),
    Case("haze direct", lambda c, h, w: Haze(_depth(h, w)[0]).direct),
]
LINEAR += (
    HAZE[1:]
    + PHOTOGRAPHY
    + FOURIER
    + SENSING
    + (NUFFT if importlib.util.find_spec("finufft") else [])
)
NONLINEAR = [
    Case("callable", lambda c, h, w: from_callable(lambda x: x.tanh() ** 2, differentiable=True)),
    Case(
        "callable of blur",
        lambda c, h, w: (
            from_callable(lambda x: (x * x).sum(-1), differentiable=True) @ GaussianBlur(0.5)
        ),
    ),
    Case(
        "transmission",
        lambda c, h, w: Transmission(ParallelBeamCT(views=4, size=(h, w)), attenuation=0.2),
    ),
    Case(
        "stack nonlinear",
        lambda c, h, w: Stack(
            [Identity(), from_callable(lambda x: x.sin(), differentiable=True)]
        ).bind((c, h, w)),
    ),
]
NONLINEAR += [
    Case("phase retrieval", lambda c, h, w: PhaseRetrieval()),
    Case("phase retrieval squared", lambda c, h, w: PhaseRetrieval(4.0, squared=True, low=0)),
    Case("phase retrieval complex", lambda c, h, w: PhaseRetrieval(low=0) @ ComplexFromChannels()),
    Case("coded diffraction", lambda c, h, w: CodedDiffraction(3, seed=1)),
]
EHT = m87_2017(scans=2)
RING = {"wavelength": 5.0, "radius": 10.0, "transmitters": 3, "receivers": 5}
LINEAR += [
    Case("visibilities", lambda c, h, w: Visibilities(EHT).bind((c, h, w)), channels=1),
    Case("born", lambda c, h, w: BornScattering(**RING).bind((c, h, w)), channels=1),
    Case("total flux", lambda c, h, w: TotalFlux(peak=0.5, low=0).bind((c, h, w)), channels=1),
]
SCIENCE = [
    Case("lippmann-schwinger", lambda c, h, w: LippmannSchwinger(**RING), channels=1),
    Case("closure phasors", lambda c, h, w: ClosurePhases(EHT), channels=1),
    Case("closure phases", lambda c, h, w: ClosurePhases(EHT, phasor=False), channels=1),
    Case("closure amplitudes", lambda c, h, w: LogClosureAmplitudes(EHT), channels=1),
    Case(
        "navier-stokes",
        lambda c, h, w: NavierStokes(0.05, wavenumber=1, scale=2.0, step=0.01),
        smallest=3,
    ),
]
NONLINEAR += SCIENCE
WAVES = [
    Case(
        "acoustic waves",
        lambda c, h, w: AcousticWaves(20.0, 0.004, 40, 8.0, 2, 3, depth=0) @ Scale(0.2),
        channels=1,
        smallest=3,
    ),
]
NONLINEAR += WAVES if importlib.util.find_spec("deepwave") else []
NONLINEAR += [
    Case(
        "jpeg smooth",
        lambda c, h, w: JPEG(1, rounding="smooth") @ Scale(0.2),
        channels=3,
    ),
    Case("jpeg smooth grey", lambda c, h, w: JPEG(2, "4:4:4", "smooth") @ Scale(0.3), channels=1),
]
KINKED = [  # differentiable almost everywhere, or affine: no remainder of second order
    HAZE[0],
    Case(
        "emission",
        lambda c, h, w: Emission(ParallelBeamCT(views=3, size=(h, w)), 2.0, background=0.5),
    ),
    Case("hdr clipping", lambda c, h, w: HDRClipping(1.3)),
    Case("linear light", lambda c, h, w: LinearLight()),
    Case("camera", lambda c, h, w: Camera(1.5, "rec709")),
    *(
        Case(
            f"features, {statistic}",
            lambda c, h, w, statistic=statistic: FeatureMatch(statistic, SteerableFeatures(2)),
            smallest=6,
        )
        for statistic in ("maps", "gram", "moments", "self-similarity")
    ),
    Case(
        "nonlinear blur",
        lambda c, h, w: Camera(1.2) @ Defocus(1.3) @ LinearLight(),
        smallest=3,
    ),
    Case("per channel clipping", lambda c, h, w: PerChannel([HDRClipping(), Scale(2.0)])),
]
SURROGATE = [  # the gradient is not a derivative
    Case("quantisation", lambda c, h, w: Quantisation(5)),
    *(Case(f"jpeg {s}", lambda c, h, w, s=s: JPEG(20, s), channels=3) for s in ("4:2:0", "4:4:4")),
    Case("jpeg grey", lambda c, h, w: JPEG(60), channels=1),
]
BLACK = [Case("black box", lambda c, h, w: from_callable(lambda x: x.abs().numpy()))]
ALL = LINEAR + NONLINEAR + KINKED + SURROGATE + BLACK
