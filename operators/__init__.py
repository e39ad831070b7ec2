"""Measurement operators y = A(x), and the laws of their noise.

>>> blur = GaussianBlur(sigma=2.0)
>>> y = GaussianNoise(0.04).sample(blur(x), seed=0)
>>> check(blur)
"""

from posterior.operators.base import Operator
from posterior.operators.basic import ChannelMean, ComplexFromChannels, Identity
from posterior.operators.black_box import BlackBox, from_callable
from posterior.operators.blur import Blur, GaussianBlur, MotionBlur
from posterior.operators.check import check
from posterior.operators.compose import Compose, Stack
from posterior.operators.defocus import AnisotropicGaussianBlur, Defocus
from posterior.operators.efficientnet import EfficientNetFeatures
from posterior.operators.emission import Emission
from posterior.operators.features import FeatureMatch, SteerableFeatures
from posterior.operators.fourier import MRI, CoilSensitivities, SubsampledFourier, birdcage_maps
from posterior.operators.haze import Haze
from posterior.operators.interferometry import (
    ClosurePhases,
    LogClosureAmplitudes,
    Observation,
    Station,
    TotalFlux,
    Visibilities,
    m87_2017,
    observe,
)
from posterior.operators.jpeg import JPEG
from posterior.operators.kernels import camera_shake, load_kernel
from posterior.operators.kspace_masks import EquispacedLines, PoissonDisc, RandomLines
from posterior.operators.linear_operator import to_linear_operator
from posterior.operators.mask import BoxMask, Mask, Masking, OutpaintMask, RandomMask
from posterior.operators.matrix import MatrixOperator, from_matrix
from posterior.operators.mosaic import BayerMosaic
from posterior.operators.navier_stokes import NavierStokes, random_vorticity
from posterior.operators.noise import (
    GaussianNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltAndPepperNoise,
    as_noise_model,
)
from posterior.operators.nufft import NonCartesianMRI, NonUniformFourier, radial_trajectory
from posterior.operators.phase import CodedDiffraction, PhaseRetrieval
from posterior.operators.registry import parse, table
from posterior.operators.resize import SuperResolution
from posterior.operators.scattering import BornScattering, LippmannSchwinger
from posterior.operators.sensing import GaussianSensing, StructuredSensing
from posterior.operators.slices import Slicewise
from posterior.operators.structure import Crop, PerChannel, Scale, SelectChannels
from posterior.operators.tomography import (
    FanBeamCT,
    ParallelBeamCT,
    Tomography,
    Transmission,
)
from posterior.operators.tone import (
    Camera,
    HDRClipping,
    LinearLight,
    Luma,
    Quantisation,
    nonlinear_blur,
)
from posterior.operators.varying_blur import SpaceVaryingBlur
from posterior.operators.waves import AcousticWaves

__all__ = [
    "JPEG",
    "MRI",
    "AcousticWaves",
    "AnisotropicGaussianBlur",
    "BayerMosaic",
    "BlackBox",
    "Blur",
    "BornScattering",
    "BoxMask",
    "Camera",
    "ChannelMean",
    "ClosurePhases",
    "CodedDiffraction",
    "CoilSensitivities",
    "ComplexFromChannels",
    "Compose",
    "Crop",
    "Defocus",
    "EfficientNetFeatures",
    "Emission",
    "EquispacedLines",
    "FanBeamCT",
    "FeatureMatch",
    "GaussianBlur",
    "GaussianNoise",
    "GaussianSensing",
    "HDRClipping",
    "Haze",
    "Identity",
    "LinearLight",
    "LippmannSchwinger",
    "LogClosureAmplitudes",
    "Luma",
    "Mask",
    "Masking",
    "MatrixOperator",
    "MotionBlur",
    "NavierStokes",
    "NoiseModel",
    "NonCartesianMRI",
    "NonUniformFourier",
    "Observation",
    "Operator",
    "OutpaintMask",
    "ParallelBeamCT",
    "PerChannel",
    "PhaseRetrieval",
    "PoissonDisc",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Quantisation",
    "RandomLines",
    "RandomMask",
    "SaltAndPepperNoise",
    "Scale",
    "SelectChannels",
    "Slicewise",
    "SpaceVaryingBlur",
    "Stack",
    "Station",
    "SteerableFeatures",
    "StructuredSensing",
    "SubsampledFourier",
    "SuperResolution",
    "Tomography",
    "TotalFlux",
    "Transmission",
    "Visibilities",
    "as_noise_model",
    "birdcage_maps",
    "camera_shake",
    "check",
    "from_callable",
    "from_matrix",
    "load_kernel",
    "m87_2017",
    "nonlinear_blur",
    "observe",
    "parse",
    "radial_trajectory",
    "random_vorticity",
    "table",
    "to_linear_operator",
]
