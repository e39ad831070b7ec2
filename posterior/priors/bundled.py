"""The prior of natural photographs that comes with the package, and others of its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from posterior.devices import as_device, default_rows
from posterior.errors import FileProblem, InputError
from posterior.priors.network import NetworkPrior
from posterior.priors.photo import PhotoConfig, PhotoNet, compute_dtype
from posterior.schedules import EDM


class PhotoPrior(NetworkPrior):
    """Images of any size from 32x32 on: the bundled prior of photographs, or one of one's own.

    The number of channels, the range and the noise levels are those of the network's config; the
    bundled one makes RGB photographs in [-1, 1], noise levels 0.002 to 80. The network computes in
    bfloat16 where the processor has it, and everything around it in the dtype of x_t.

    Attributes:
        notes: the header of the file beside the config: how the weights were trained, and for
            those of `posterior train-prior` the scale of the data (`docs/training.md`).
    """

    def __init__(
        self,
        net: PhotoNet,
        notes: Mapping[str, str] | None = None,
        *,
        rows: int = 1,
        low_memory: bool = False,
    ) -> None:
        config = net.config
        super().__init__(
            net,
            "edm",
            EDM(config.sigma_min, config.sigma_max),
            range=config.range,
            rows=rows,
            low_memory=low_memory,
            sigma_data=config.sigma_data,
            compute_dtype=compute_dtype(next(net.parameters()).device),
            graph_bytes=round(2000 * _activations(config) / _activations(PhotoConfig())),
        )
        self.channels = config.image_channels
        self.smallest = net.smallest
        self.notes = dict(notes or {})

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        rows: int | None = None,
        low_memory: bool = False,
    ) -> PhotoPrior:
        """The prior with the weights of a file written by `PhotoNet.save`.

        Args:
            path: of the file.
            device: where the network runs; default: the CPU.
            rows: the fixed batch of one evaluation; default: 1 on a CPU, 4 on a GPU.
            low_memory: see `NetworkPrior`.
        """
        target = as_device(device)
        try:
            net = PhotoNet.from_file(path)
            with safe_open(path, framework="pt") as file:
                notes = {k: v for k, v in file.metadata().items() if k != "config"}
        except Exception as error:
            raise FileProblem(f"{path} does not hold weights of the photo prior: {error}") from None
        block = default_rows(target) if rows is None else rows
        return cls(net, notes, rows=block, low_memory=low_memory).to(target)

    def to(self, device: str | torch.device) -> PhotoPrior:
        """Move the network, in place, and compute in what is fast there."""
        super().to(device)
        self.compute_dtype = compute_dtype(self.device)
        return self

    def check_event(self, event: tuple[int, ...]) -> None:
        """The right number of channels, and not too few pixels on a side."""
        c = self.channels
        name = {1: "grey", 3: "photo"}.get(c, f"{c}-channel")
        if len(event) != 3 or event[0] != c:
            kind = "RGB images" if c == 3 else "images"
            hint = (
                "; for grey images compose the operator with operators.ChannelMean()"
                if c == 3
                else ""
            )
            raise InputError(f"the {name} prior makes {kind} ({c}, H, W), not {event}{hint}")
        if min(event[1:]) < self.smallest:
            raise InputError(
                f"the {name} prior makes images of at least {self.smallest}x{self.smallest} pixels,"
                f" not {event[1]}x{event[2]}"
            )

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.module.parameters())
        channels = {1: "grey, ", 3: ""}.get(self.channels, f"{self.channels} channels, ")
        return f"PhotoPrior({channels}{weights} weights)"


def _activations(config: PhotoConfig) -> float:
    """What a backward pass keeps per element of x, up to a constant: widths times blocks."""
    blocks = map(sum, zip(config.encoder, config.decoder, strict=True))
    levels = enumerate(zip(config.channels, blocks, strict=True))
    return sum(w * n / 4**k for k, (w, n) in levels) / config.image_channels
