"""Sample from the posterior of inverse problems with diffusion and flow models.

>>> import posterior
>>> from posterior import operators, guidance, priors
>>> prior = posterior.load_prior("photo")
>>> blur = operators.GaussianBlur(sigma=2.0)
>>> draws = posterior.sample(prior, blur, y, noise=0.04, n=8, seed=0)
"""

from posterior import guidance, operators, priors
from posterior.editing import edit
from posterior.errors import (
    CapabilityError,
    FileProblem,
    InputError,
    InputTypeError,
    PosteriorError,
    ResumeError,
    SamplingError,
)
from posterior.loading import load_prior, prior_from_pipeline
from posterior.operators.noise import GaussianNoise, PoissonNoise
from posterior.problem import Problem
from posterior.restoration import restore
from posterior.sampler import sample
from posterior.samples import Samples

__version__ = "0.1.0"

__all__ = [
    "CapabilityError",
    "FileProblem",
    "GaussianNoise",
    "InputError",
    "InputTypeError",
    "PoissonNoise",
    "PosteriorError",
    "Problem",
    "ResumeError",
    "Samples",
    "SamplingError",
    "edit",
    "guidance",
    "load_prior",
    "operators",
    "prior_from_pipeline",
    "priors",
    "restore",
    "sample",
]
