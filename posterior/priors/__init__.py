"""Priors: what x looks like, as a denoiser at every noise level."""

from posterior.estimates import Denoised
from posterior.priors.autoguidance import Autoguided
from posterior.priors.base import Prior
from posterior.priors.bundled import PhotoPrior
from posterior.priors.check import check
from posterior.priors.gaussian import Gaussian
from posterior.priors.mixture import GaussianMixture
from posterior.priors.network import NetworkPrior
from posterior.priors.slices import Slices

__all__ = [
    "Autoguided",
    "Denoised",
    "Gaussian",
    "GaussianMixture",
    "NetworkPrior",
    "PhotoPrior",
    "Prior",
    "Slices",
    "check",
]
