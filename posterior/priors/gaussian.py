"""A Gaussian prior: everything about it is known in closed form.

x0 ~ N(m, C),  C = Q diag(lam) Q^T
E[x0 | x_t] = m + Q alpha lam / (alpha^2 lam + sigma^2) Q^T (x_t - alpha m)

with Q orthonormal: a matrix, the identity, or the Fourier basis of a stationary law.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators import base
from posterior.operators.base import Operator
from posterior.operators.noise import NoiseModel
from posterior.priors import linear_gaussian as lg
from posterior.priors.base import Prior
from posterior.schedules import Schedule
from posterior.streams import Noise


class Gaussian(Prior):
    """N(mean, covariance).

    Args:
        mean: shape of the event, at least one axis; gives `event_shape`.
        covariance: a number c >= 0 (c times the identity); variances in the shape of the event
            (diagonal); or a matrix (d, d), d the number of elements (full). For an event of one
            axis the number of axes decides. Where an event (H, W) is itself d x d (only d = 1) the
            two agree. A stationary covariance: `Gaussian.stationary`.
        schedule: the noise levels of the denoiser; by default a variance-exploding one sized to the
            law, see `linear_gaussian.default_schedule`.

    `dtype` is that of a tensor `mean`, or of a tensor `covariance`, or torch's default. Parameters
    are kept in float64; computation follows the dtype of x. Raises `InputError` for NaN, shapes
    that do not fit, asymmetry, negative variances.
    """

    rows = None
    graph_bytes = 64

    def __init__(
        self, mean: lg.Array, covariance: lg.Array = 1.0, schedule: Schedule | None = None
    ) -> None:
        centre, mean_dtype = lg.tensor(mean, "mean")
        matrix, covariance_dtype = lg.tensor(covariance, "covariance")
        if centre.ndim == 0:  # a scalar mean takes its shape from the covariance
            if matrix.ndim == 0:
                raise InputError("mean or covariance must have the shape of the event, e.g. (d,)")
            full = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
            centre = centre.expand(matrix.shape[:1] if full else matrix.shape)
        event, d = tuple(centre.shape), centre.numel()
        if d == 0:
            raise InputError("the event is empty")
        if matrix.ndim == 0 or tuple(matrix.shape) == event:
            law = lg.of_values(matrix, "covariance")
        elif tuple(matrix.shape) == (d, d):
            law = lg.of_matrix(matrix, "covariance")
        else:
            raise InputError(
                f"covariance has shape {tuple(matrix.shape)}: for an event {event} give a number, "
                f"variances {event} or a matrix {(d, d)}"
            )
        self._set(centre, law, schedule, mean_dtype or covariance_dtype)

    def _set(
        self,
        mean: Tensor,
        law: lg.Covariance,
        schedule: Schedule | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.mean = mean.double()
        self.event_shape = tuple(mean.shape)
        self.device = mean.device
        self.dtype = dtype or torch.get_default_dtype()
        self._law = law
        self._given_schedule = schedule
        spread = law.values
        positive = spread[spread > 0]
        self.schedule = schedule or lg.default_schedule(
            float(self.mean.norm()),
            float(spread.max().sqrt()),
            float(positive.min().sqrt()) if positive.numel() else 0.0,
        )

    @classmethod
    def _of(
        cls, mean: Tensor, law: lg.Covariance, schedule: Schedule | None, dtype: torch.dtype | None
    ) -> Gaussian:
        self = cls.__new__(cls)
        self._set(mean, law, schedule, dtype)
        return self

    @classmethod
    def stationary(
        cls, mean: lg.Array, spectrum: lg.Array, schedule: Schedule | None = None
    ) -> Gaussian:
        """A stationary (circulant) covariance over the last two axes.

        Args:
            mean: a number, or the shape of the event (H, W) or (C, H, W).
            spectrum: (H, W) or (C, H, W) >= 0: the variance of each coefficient of
                `torch.fft.fft2(x, norm="ortho")`, zero frequency at [0, 0] (NOT centred: apply
                `torch.fft.ifftshift` to a centred one), the same for k and -k. Channels are
                independent. A spectrum of ones is white noise of unit variance.
            schedule: as in the class.
        """
        power, power_dtype = lg.tensor(spectrum, "spectrum")
        centre, mean_dtype = lg.tensor(mean, "mean")
        if power.ndim not in (2, 3):
            raise InputError(f"spectrum must be (H, W) or (C, H, W), got {tuple(power.shape)}")
        try:
            shape = (power + centre).shape
        except RuntimeError:
            shape = torch.Size()
        if len(shape) not in (2, 3) or shape[-2:] != power.shape[-2:]:
            raise InputError(
                f"mean {tuple(centre.shape)} does not fit the spectrum {tuple(power.shape)}"
            )
        mirrored = power.flip(-2, -1).roll((1, 1), (-2, -1))
        if float((power - mirrored).abs().max()) > 1e-6 * float(power.abs().max()):
            raise InputError(
                "spectrum is not symmetric (k and -k must agree, zero frequency at [0, 0]): apply "
                "torch.fft.ifftshift to a centred spectrum"
            )
        power = ((power.double() + mirrored.double()) / 2).expand(shape).reshape(-1)
        values = lg.of_values(power, "spectrum").values
        law = lg.Covariance(lg.Hartley(tuple(shape)), values)
        return cls._of(centre.expand(shape).clone(), law, schedule, mean_dtype or power_dtype)

    @property
    def covariance(self) -> Tensor:
        """The full matrix (d, d), float64."""
        return self._law.dense(self.mean.numel())

    def with_schedule(self, schedule: Schedule) -> Gaussian:
        """The same law under another schedule."""
        other = copy.copy(self)
        other._given_schedule = other.schedule = schedule
        other.counts = type(self.counts)()
        return other

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """E[x0 | x_t] for x_t (B, *event)."""
        alpha, sigma = self.schedule(t)
        x = x_t.flatten(1)
        mean = self.mean.to(x.device, x.dtype).reshape(-1)
        lam = self._law.values.to(x.device)
        if isinstance(alpha, Tensor) and alpha.ndim:
            alpha, sigma = alpha.to(x.device)[:, None], sigma.to(x.device)[:, None]  # type: ignore[union-attr]  # both
        power = alpha**2 * lam + sigma**2
        # sigma = 0 where lam = 0: nothing moves
        gain = torch.where(power > 0, alpha * lam / power, torch.zeros_like(power)).to(x.dtype)
        if isinstance(alpha, Tensor):
            alpha = alpha.to(x.dtype)
        basis = self._law.basis
        return (mean + basis.back(gain * basis.to(x - alpha * mean))).reshape(x_t.shape)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Exact draws (n, *event); draw i is a pure function of (seed, i)."""
        noise = Noise.single(seed, self._event, torch.float64, self.device, check_count(n))
        x = self.mean + self._law.colour(noise("prior").flatten(1)).reshape(n, *self._event)
        return x.to(self.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (B, *event): (B,). Raises where the covariance is singular."""
        check_event(x, self._event)
        d = self.mean.numel()
        lam = self._law.values
        if not bool((lam > 0).all()):
            raise CapabilityError("the covariance is singular: the law has no density")
        z = self._law.basis.to((x.to(self.device).double() - self.mean).flatten(1))
        quadratic = rows.total(z**2 / lam)
        log_det = float(self._law.spread(d).log().sum())
        return (-0.5 * (quadratic + log_det + d * math.log(2 * math.pi))).to(x.device, x.dtype)

    def posterior(
        self, operator: Operator, y: Tensor, noise: float | Tensor | NoiseModel
    ) -> Gaussian:
        """The exact law of x given y = operator(x) + noise, for one linear Gaussian measurement.

        Args:
            operator: linear, at most 4096 elements in x.
            y: ONE measurement, without batch axis or with B = 1; real or complex.
            noise: standard deviation > 0, or `GaussianNoise`.
        """
        seen = lg.measurement(operator, y, noise, self._event, self.device)
        factor = self._law.factor(self.mean.numel())
        mean, after, _ = seen.condition(self.mean.reshape(-1), factor, seen.svd(factor))
        return self._of(
            mean.reshape(self._event), lg.of_factor(after), self._given_schedule, self.dtype
        )

    @property
    def _event(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.event_shape)

    def state(self) -> object:
        """What defines the prior."""
        basis = self._law.basis
        return {
            "mean": self.mean,
            "values": self._law.values,
            "basis": basis.q if isinstance(basis, lg.Dense) else type(basis).__name__,
            "schedule": repr(self.schedule),
            "dtype": str(self.dtype),
        }

    def __repr__(self) -> str:
        return f"Gaussian(event_shape={self.event_shape}, schedule={self.schedule})"


def check_count(n: int) -> int:
    """`n` if it is a positive integer."""
    return base.check_count("n", n, 1)


def check_event(x: Tensor, event: tuple[int, ...]) -> None:
    """Raises unless x is a tensor (B, *event)."""
    if not isinstance(x, Tensor):
        raise InputTypeError(f"x must be a tensor, not {type(x).__name__}")
    if tuple(x.shape[1:]) != event or x.ndim != len(event) + 1:
        wanted = ", ".join(map(str, event))
        raise InputError(f"x must have shape (B, {wanted}), got {tuple(x.shape)}")
