"""Acoustic full-waveform inversion: what geophones hear of a shot, from the speed of sound.

    p_tt / v^2 = Lap p + f(t) delta(r - source),   v = low + (high - low) (x + 1) / 2,

    y[s, r, n] = p(receiver r, n step), shot s    (B, 1, H, W) -> (B, shots, receivers, samples)

H is depth, W runs along the surface; f is Ricker's wavelet, which peaks at 1.5 / frequency. No
side reflects. v is cut to [low / 1.25, 1.25 high], without a gradient beyond, so that an estimate
outside [-1, 1] stays a solvable medium and the time step never depends on it.

>>> survey = AcousticWaves(spacing=20, step=0.004, samples=500, frequency=8)

The finite differences, fourth order in space and second in time, and their exact gradient are those
of deepwave (Richardson, doi:10.5281/zenodo.3829886), an optional extra: pip install
"posterior-sampling[waves]". Media are propagated one by one, their shots together. A `step` is as
many steps of the solver as stability asks for; deepwave would resample the traces by FFT instead,
which rings where a trace is cut off and leaves its gradient inexact (2e-4 there, measured).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.operators._rowwise import by_row
from posterior.operators.base import Operator, Shape, check_count, check_image, check_number

_SLACK = 1.25  # speeds that an estimate may have beyond those of images
_COURANT = 0.59  # speed step / spacing, per axis; deepwave resamples from 0.6 on


@dataclass(frozen=True, eq=False, repr=False)
class AcousticWaves(Operator):
    """Seismograms of shots along the surface, of a medium whose speed of sound is the image.

    Args:
        spacing: side of a pixel, metres; at most a sixth of the shortest wave, 0.8 low / frequency.
        step: time between samples, seconds.
        samples: how many, the first at the start of the shot.
        frequency: the peak of the wavelet's spectrum, Hz.
        shots: sources, evenly from side to side.
        receivers: the same; by default one on every pixel of the surface.
        depth: row of sources and receivers.
        low: speed where x is -1, metres per second.
        high: speed where x is 1.

    Raises:
        CapabilityError: deepwave is not installed.
    """

    spacing: float
    step: float
    samples: int
    frequency: float
    shots: int = 5
    receivers: int | None = None
    depth: int = 1
    low: float = 1500.0
    high: float = 4500.0

    def __post_init__(self) -> None:
        for name in ("spacing", "step", "frequency", "low", "high"):
            number = check_number(name, getattr(self, name), 0)
            if number == 0:
                raise InputError(f"{name} must be > 0, not 0")
            object.__setattr__(self, name, number)
        if self.low >= self.high:
            raise InputError(f"low must be < high, not {self.low:g} and {self.high:g}")
        for name, least in (("samples", 2), ("shots", 1), ("depth", 0)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), least))
        if self.receivers is not None:
            object.__setattr__(self, "receivers", check_count("receivers", self.receivers, 1))
        _deepwave()

    def forward(self, x: Tensor) -> Tensor:
        check_image(self, x)
        if x.is_complex() or x.shape[1] != 1:
            raise InputError(f"{self!r} takes real (B, 1, H, W), not {x.dtype} {tuple(x.shape)}")
        height, width = x.shape[2:]
        if height <= self.depth:
            raise InputError(f"{self!r}: the image has {height} rows, none at depth {self.depth}")
        if width < (self.receivers or 1):
            raise InputError(f"{self!r}: more receivers than the {width} columns of the image")
        deepwave = _deepwave()
        sources = self._places(self.shots, width)[:, None]
        receivers = self._places(self.receivers or width, width).expand(self.shots, -1, -1)
        fastest = _SLACK * self.high
        ratio = math.ceil(self.step * fastest * math.sqrt(2) / (_COURANT * self.spacing))
        step, samples = self.step / ratio, (self.samples - 1) * ratio + 1
        wavelet = deepwave.wavelets.ricker(
            self.frequency, samples, step, 1.5 / self.frequency, dtype=x.dtype
        )
        shot = wavelet / self.spacing**2  # a point is 1 / spacing^2 on one pixel
        amplitudes = shot.to(x.device).expand(self.shots, 1, -1)

        def one(row: Tensor, _: int) -> Tensor:
            v = self.low + (self.high - self.low) / 2 * (row[0, 0] + 1)
            out = deepwave.scalar(
                v.clamp(self.low / _SLACK, fastest),
                self.spacing,
                step,
                source_amplitudes=amplitudes.contiguous(),
                source_locations=sources.to(x.device),
                receiver_locations=receivers.to(x.device).contiguous(),
                pml_freq=self.frequency,
                max_vel=fastest,
                check_output_finite=False,  # a broken row is frozen by the sampler, alone
            )
            return out.receiver_amplitudes[None, :, :, ::ratio]

        return by_row(one, x)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], self.shots, self.receivers or x_shape[3], self.samples)

    def _places(self, count: int, width: int) -> Tensor:
        """(count, 2): row and column of points evenly from side to side."""
        columns = ((torch.arange(count) + 0.5) * width / count).long()
        return torch.stack([torch.full_like(columns, self.depth), columns], -1)


def _deepwave() -> Any:
    try:
        return importlib.import_module("deepwave")
    except ImportError:
        raise CapabilityError(
            'acoustic waves need deepwave: pip install "posterior-sampling[waves]"'
        ) from None


__all__ = ["AcousticWaves"]
