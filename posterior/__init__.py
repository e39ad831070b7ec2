"""Sample from the posterior of inverse problems with diffusion and flow models."""

__version__ = "0.1.0"
