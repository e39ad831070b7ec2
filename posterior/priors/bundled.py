"""The prior of natural photographs that comes with the package."""

from __future__ import annotations

from pathlib import Path

import torch

from posterior.errors import FileProblem, InputError
from posterior.priors.network import NetworkPrior
from posterior.priors.photo import PhotoNet
from posterior.schedules import EDM

_SMALLEST = 32  # pixels on a side


class PhotoPrior(NetworkPrior):
    """RGB photographs in [-1, 1], any size >= 32x32, noise levels 0.002 to 80.

    The network computes in bfloat16 and everything around it in the dtype of x_t.
    """

    def __init__(self, net: PhotoNet) -> None:
        config = net.config
        super().__init__(
            net,
            "edm",
            EDM(config.sigma_min, config.sigma_max),
            sigma_data=config.sigma_data,
            compute_dtype=torch.bfloat16,
            graph_bytes=2000,
        )

    @classmethod
    def load(cls, path: str | Path) -> PhotoPrior:
        """The prior with the weights of a file written by `PhotoNet.save`."""
        try:
            return cls(PhotoNet.from_file(path))
        except Exception as error:
            raise FileProblem(f"{path} does not hold weights of the photo prior: {error}") from None

    def check_event(self, event: tuple[int, ...]) -> None:
        """Three channels, at least 32 pixels on a side."""
        if len(event) != 3 or event[0] != 3:
            raise InputError(
                f"the photo prior makes RGB images (3, H, W), not {event}; for grey images compose"
                " the operator with operators.ChannelMean()"
            )
        if min(event[1:]) < _SMALLEST:
            raise InputError(
                f"the photo prior makes images of at least {_SMALLEST}x{_SMALLEST} pixels, not"
                f" {event[1]}x{event[2]}"
            )

    def __repr__(self) -> str:
        return f"PhotoPrior({sum(p.numel() for p in self.module.parameters())} weights)"
