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
from posterior.operators.mask import BoxMask, Mask, Masking, OutpaintMask, RandomMask
from posterior.operators.matrix import MatrixOperator, from_matrix
from posterior.operators.noise import GaussianNoise, NoiseModel, PoissonNoise, as_noise_model
from posterior.operators.registry import parse, table
from posterior.operators.resize import SuperResolution

__all__ = [
    "BlackBox",
    "Blur",
    "BoxMask",
    "ChannelMean",
    "ComplexFromChannels",
    "Compose",
    "GaussianBlur",
    "GaussianNoise",
    "Identity",
    "Mask",
    "Masking",
    "MatrixOperator",
    "MotionBlur",
    "NoiseModel",
    "Operator",
    "OutpaintMask",
    "PoissonNoise",
    "RandomMask",
    "Stack",
    "SuperResolution",
    "as_noise_model",
    "check",
    "from_callable",
    "from_matrix",
    "parse",
    "table",
]
