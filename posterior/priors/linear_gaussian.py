"""Gaussian algebra shared by the analytic priors: covariances in eigenform, and conditioning.

A covariance is C = Q diag(lam) Q^T with Q orthonormal and lam >= 0, so that each noise level costs
only products with Q, and nothing is ever inverted by elimination. One linear measurement
y = A x + n, n ~ N(0, N), of x = m + L z, z ~ N(0, I), C = L L^T, is conditioned in the SVD form

    N^(-1/2) A L = U S V^T,   e = N^(-1/2) (y - A m)
    mean    m + L V (S / (1 + S^2)) U^T e
    factor  L V (1 + S^2)^(-1/2)
    log p(y) = -1/2 (|e|^2 - |U^T e|^2 + sum (U^T e)^2 / (1 + S^2) + sum log(1 + S^2)
                     + log det 2 pi N)

which never forms I / r^2 + A^T A / sigma^2: with a precise or badly scaled A that matrix loses its
positive-definiteness in double precision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator
from posterior.operators.noise import GaussianNoise, NoiseModel
from posterior.schedules import VE

MAX_COLUMNS = 4096

Array: TypeAlias = "float | Sequence[object] | np.ndarray | Tensor"


class Basis(ABC):
    """An orthonormal real basis of flattened events (B, d)."""

    @abstractmethod
    def to(self, x: Tensor) -> Tensor:
        """Coordinates of the rows: x Q."""

    @abstractmethod
    def back(self, z: Tensor) -> Tensor:
        """Rows from coordinates: z Q^T."""


class Standard(Basis):
    """The coordinates themselves."""

    def to(self, x: Tensor) -> Tensor:
        """`x`."""
        return x

    def back(self, z: Tensor) -> Tensor:
        """`z`."""
        return z


class Dense(Basis):
    """The columns of an orthonormal matrix Q (d, d), float64."""

    def __init__(self, q: Tensor) -> None:
        self.q = q
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def _cast(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = like.dtype, like.device
        if key not in self._cache:
            q = self.q.to(like.device, like.dtype)
            self._cache[key] = q.contiguous(), q.T.contiguous()
        return self._cache[key]

    def to(self, x: Tensor) -> Tensor:
        """X Q."""
        return rows.matmul(x, self._cast(x)[0])

    def back(self, z: Tensor) -> Tensor:
        """Z Q^T."""
        return rows.matmul(z, self._cast(z)[1])


class Hartley(Basis):
    """The real Fourier basis cas(u) = cos(u) + sin(u) over the last two axes of the event.

    It is symmetric and its own inverse, and it diagonalises every stationary covariance on the
    torus.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event_shape = event_shape

    def to(self, x: Tensor) -> Tensor:
        """The discrete Hartley transform, Re F x - Im F x with F orthonormal."""
        # a transform per row: batched FFTs choose their plan by the size of the batch
        parts = []
        for row in x:
            spectrum = torch.fft.fft2(row.reshape(self.event_shape), norm="ortho")
            parts.append((spectrum.real - spectrum.imag).reshape(-1))
        return torch.stack(parts)

    def back(self, z: Tensor) -> Tensor:
        """The same transform."""
        return self.to(z)


@dataclass(frozen=True)
class Covariance:
    """Q diag(values) Q^T; `values` is (d,) or (1,), float64, >= 0."""

    basis: Basis
    values: Tensor

    def spread(self, d: int) -> Tensor:
        """The d eigenvalues."""
        return self.values.expand(d)

    def colour(self, z: Tensor) -> Tensor:
        """Rows of covariance C from rows of white noise: (sqrt(lam) z) Q^T."""
        return self.basis.back(z * self.values.sqrt().to(z.device, z.dtype))

    def factor(self, d: int) -> Tensor:
        """L (d, d) with C = L L^T."""
        eye = torch.eye(d, dtype=torch.float64, device=self.values.device)
        return self.colour(eye).T.contiguous()

    def dense(self, d: int) -> Tensor:
        """C itself, (d, d)."""
        factor = self.factor(d)
        return factor @ factor.T


def of_factor(factor: Tensor) -> Covariance:
    """The eigenform of L L^T, with relative accuracy in the small eigenvalues too."""
    q, s, _ = torch.linalg.svd(factor)
    return Covariance(Dense(q.contiguous()), s**2)


def of_matrix(matrix: Tensor, what: str) -> Covariance:
    """The eigenform of a symmetric positive semi-definite matrix (d, d), checked."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{what} must be a square matrix, got shape {tuple(matrix.shape)}")
    exact = torch.float32 if matrix.dtype == torch.float32 else torch.float64
    tolerance = 16 * torch.finfo(exact).eps * matrix.shape[0] ** 0.5
    matrix = matrix.double()
    scale = float(matrix.abs().max())
    if float((matrix - matrix.T).abs().max()) > tolerance * scale:
        raise InputError(f"{what} is not symmetric")
    values, q = torch.linalg.eigh((matrix + matrix.T) / 2)
    if float(values[0]) < -tolerance * max(float(values[-1]), scale):
        raise InputError(
            f"{what} is not positive semi-definite: its smallest eigenvalue is {float(values[0])}"
        )
    return Covariance(Dense(q.contiguous()), values.clamp(min=0))  # rounding below zero is zero


def of_values(values: Tensor, what: str) -> Covariance:
    """A diagonal covariance, (d,) or (1,) variances, checked."""
    values = values.double().reshape(-1)
    if bool((values < 0).any()):
        raise InputError(f"{what} must not be negative: it is a variance")
    return Covariance(Standard(), values)


@dataclass(frozen=True)
class Measurement:
    """One linear measurement, whitened: e = N^(-1/2) (y - A m), matrix = N^(-1/2) A."""

    matrix: Tensor
    y: Tensor
    log_det: float  # log det(2 pi N)

    def svd(self, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, k), S (d,) padded by zeros, V (d, d) of N^(-1/2) A L."""
        u, s, vt = torch.linalg.svd(self.matrix @ factor)
        d, k = factor.shape[1], s.shape[0]
        return u[:, :k], torch.cat([s, s.new_zeros(d - k)]), vt.T

    def condition(
        self, mean: Tensor, factor: Tensor, svd: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, float]:
        """Mean, factor and log-evidence after the measurement of N(mean, factor factor^T)."""
        u, s, v = svd
        k = u.shape[1]
        e = self.y - self.matrix @ mean
        seen = u.T @ e
        gain = s[:k] / (1 + s[:k] ** 2) * seen
        rest = e - u @ seen
        quadratic = float(rest @ rest + (seen**2 / (1 + s[:k] ** 2)).sum())
        evidence = -0.5 * (quadratic + float(torch.log1p(s**2).sum()) + self.log_det)
        return mean + factor @ (v[:, :k] @ gain), factor @ (v / (1 + s**2).sqrt()), evidence


def measurement(
    operator: Operator,
    y: Tensor,
    noise: float | Tensor | NoiseModel,
    event: tuple[int, ...],
    device: torch.device,
) -> Measurement:
    """The whitened matrix and data of ONE linear Gaussian measurement, float64.

    Args:
        operator: linear; materialised column by column, d <= 4096.
        y: (1, *range) or (*range,), real or complex (stacked as real and imaginary parts).
        noise: standard deviation > 0 in the units of y, or `GaussianNoise`.
        event: shape of x.
        device: where to compute.
    """
    if not isinstance(operator, Operator):
        raise InputTypeError(f"operator must be an Operator, not {type(operator).__name__}")
    if not operator.linear:
        raise CapabilityError(f"{operator!r} is not linear: the exact posterior needs a linear one")
    d = math.prod(event)
    if d > MAX_COLUMNS:
        raise InputError(
            f"the exact posterior forms the operator's matrix, at most {MAX_COLUMNS} columns; "
            f"x has {d} elements: use posterior.sample instead"
        )
    if not isinstance(noise, NoiseModel):
        noise = GaussianNoise(noise)
    if not isinstance(noise, GaussianNoise):
        raise CapabilityError(f"the exact posterior needs Gaussian noise, not {noise!r}")
    if not isinstance(y, Tensor):
        raise InputTypeError(f"y must be a tensor, not {type(y).__name__}")
    y = y.to(device)

    eye = torch.eye(d, dtype=torch.float64, device=y.device).reshape(d, *event)
    with torch.no_grad():
        columns = torch.cat([operator(eye[k : k + 256]) for k in range(0, d, 256)])
    shape = tuple(columns.shape[1:])
    if tuple(y.shape) == shape:
        y = y[None]
    if tuple(y.shape) != (1, *shape):
        raise InputError(
            f"y has shape {tuple(y.shape)}; for ONE measurement of x {event} this operator gives "
            f"{(1, *shape)}"
        )
    y = y.to(torch.complex128 if y.is_complex() else torch.float64)
    if not bool(torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).all()):
        raise InputError("y has NaN or infinite elements")
    std = noise.std_like(y)
    std = torch.as_tensor(std, dtype=torch.float64, device=y.device).expand(y.shape)
    if not bool((std > 0).all()):
        raise InputError("noise must be > 0 for the exact posterior: give a small positive std")

    matrix, data, scale = columns.flatten(1).T, y.reshape(-1), std.reshape(-1)
    if matrix.is_complex() or data.is_complex():
        matrix, data = matrix + 0j, data + 0j
        matrix = torch.cat([matrix.real, matrix.imag])
        data, scale = torch.cat([data.real, data.imag]), torch.cat([scale, scale])
    return Measurement(
        matrix.double() / scale[:, None],
        data.double() / scale,
        float((2 * scale.log()).sum()) + scale.numel() * math.log(2 * math.pi),
    )


def default_schedule(mean_norm: float, spread: float, smallest: float) -> VE:
    """Noise levels for a law of known size, so that unconditional sampling is accurate.

    A run starts from sigma_max z instead of x0 + sigma_max eps. sigma_max = 50 (|E x0| + largest
    standard deviation) keeps the two within 2e-4 nats; sigma_min, a hundredth of the smallest
    standard deviation, loses 1e-4 of the smallest variance in the last step.
    """
    largest = 50 * (mean_norm + spread)
    if not largest > 0:
        return VE()
    low = min(0.01 * smallest, 1e-3 * largest) if smallest > 0 else 1e-5 * largest
    return VE(max(low, 1e-9 * largest), largest)


def tensor(value: Array, what: str) -> tuple[Tensor, torch.dtype | None]:
    """A finite real tensor from a number, list, array or tensor; and the dtype it came in."""
    given = value.dtype if isinstance(value, Tensor) else None
    try:
        out = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{what} must be a number or an array: {error}") from None
    if out.is_complex() or out.dtype == torch.bool:
        raise InputError(f"{what} must be real numbers")
    if given is None and isinstance(value, np.ndarray) and out.is_floating_point():
        given = out.dtype
    if given is not None and not given.is_floating_point:
        given = None
    if given not in (None, torch.float32, torch.float64):
        out = out.float()
    elif given is None:
        out = torch.as_tensor(value, dtype=torch.float64)
    if not bool(torch.isfinite(out).all()):
        raise InputError(f"{what} has NaN or infinite elements")
    return out.detach().clone(), given
