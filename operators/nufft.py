"""Non-Cartesian MRI: Fourier coefficients of an image at any frequencies.

    NonUniformFourier    y_j = (H W)^-1/2 sum_r x[r] exp(-2 pi i k_j . r)
    NonCartesianMRI      y_lj = that of S_l x

    (B, C, H, W) -> (B, C, M) complex, and (B, 1, H, W) -> (B, coils, M) complex

with r counted from the centre (H // 2, W // 2) in pixels and k in cycles per pixel, along the
height and the width: at k = (a / H, b / W) y is the coefficient (a, b) of `operators.fourier`.

>>> scan = NonCartesianMRI(radial_trajectory(spokes=32, samples=256), coils=maps)
>>> scan @ ComplexFromChannels()

The sums are those of FINUFFT (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 2019), to about
1e-12 in double and 1e-6 in single precision; the adjoint uses the same kernel and is exact to
rounding. An optional extra: pip install "posterior-sampling[nufft]". It computes on the CPU, on one
thread so that results are the same bit for bit; tensors on another device travel there and back.
There is no pseudo-inverse in closed form.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError
from posterior.operators._rowwise import Memo, by_row, check_rows, take_rows
from posterior.operators.base import Operator, Pull, Shape, check_count, check_image, check_tensor
from posterior.operators.basic import Identity
from posterior.operators.compose import Compose
from posterior.operators.fourier import CoilSensitivities, check_domain

_EPS = {torch.complex128: 1e-12, torch.complex64: 1e-6}  # relative accuracy of the sums
_GOLDEN = math.pi * (math.sqrt(5) - 1) / 2  # 111.25 degrees, Winkelmann et al., TMI 2007


@dataclass(frozen=True, eq=False, repr=False)
class NonUniformFourier(Operator):
    """Fourier coefficients at M frequencies, each channel by itself.

    Args:
        trajectory: k, (M, 2), or one for each measurement (B, M, 2); cycles per pixel along the
            height and the width, in [-1/2, 1/2].
        complex_domain: x is complex; otherwise real.
        event_shape: (C, H, W), what `adjoint` returns; the sampler binds it by itself.
    """

    trajectory: Tensor
    complex_domain: bool = False
    event_shape: Shape | None = None
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False)

    linear = True

    def __post_init__(self) -> None:
        check_tensor("trajectory", self.trajectory)
        k = self.trajectory.detach().cpu().to(torch.float64)
        k = k[None] if k.ndim == 2 else k
        if k.ndim != 3 or k.shape[2] != 2 or k.numel() == 0:
            raise InputError(f"trajectory must be (M, 2) or (B, M, 2), not {tuple(k.shape)}")
        if not bool((k.abs() <= 0.5).all()):
            raise InputError("trajectory must be in [-1/2, 1/2] cycles per pixel")
        object.__setattr__(self, "trajectory", k.clone())
        if self.event_shape is not None:
            object.__setattr__(self, "event_shape", tuple(self.event_shape))
        _finufft()

    def forward(self, x: Tensor) -> Tensor:
        check_domain(self, x, self.complex_domain)
        check_rows(self, "trajectories", len(self.trajectory), x)
        image = x if x.is_complex() else torch.complex(x, torch.zeros_like(x))
        y: Tensor = _Transform.apply(image, self)  # type: ignore[no-untyped-call]  # torch's
        return y

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        return self(x), lambda u: self._back(u, tuple(x.shape[1:]))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._back(y, self.domain_shape(tuple(y.shape))[1:])

    def domain_shape(self, y_shape: Shape) -> Shape:
        if self.event_shape is None:
            raise CapabilityError(f"{self!r} cannot tell the shape of x: bind((C, H, W)) it first")
        return (y_shape[0], *self.event_shape)

    def range_shape(self, x_shape: Shape) -> Shape:
        return (*x_shape[:2], self.trajectory.shape[1])

    def take(self, index: Sequence[int]) -> NonUniformFourier:
        if len(self.trajectory) == 1:
            return self
        taken = take_rows(self.trajectory, index)
        return NonUniformFourier(taken, self.complex_domain, self.event_shape)

    def bind(self, event_shape: Shape) -> NonUniformFourier:
        bound = NonUniformFourier(self.trajectory, self.complex_domain, event_shape)
        object.__setattr__(bound, "_memo", self._memo)
        return bound

    def _back(self, y: Tensor, event: Shape) -> Tensor:
        expected = self.range_shape((y.shape[0], *event))
        if tuple(y.shape) != expected:
            raise InputError(f"{self!r} gives {expected} for x of {event}, y is {tuple(y.shape)}")
        check_rows(self, "trajectories", len(self.trajectory), y)
        check_image(self, y[..., None])
        image = self.sums(y if y.is_complex() else y + 0j, (event[1], event[2]), back=True)
        return image if self.complex_domain else image.real.contiguous()

    def sums(self, values: Tensor, size: tuple[int, int], back: bool) -> Tensor:
        """The sums over pixels or, `back`, their adjoint over frequencies; complex, no gradient."""
        shape = (values.shape[1], *size) if back else (values.shape[1], self.trajectory.shape[1])

        def one(row: Tensor, b: int) -> Tensor:
            which = b % len(self.trajectory)
            plan = self._memo(
                (back, values.shape[1], size, row.dtype, which),
                lambda: self._plan(which, values.shape[1], size, row.dtype, back),
            )
            out = plan.execute(row[0].detach().cpu().resolve_conj().numpy())
            return torch.from_numpy(out).reshape(1, *shape).to(values.device)

        return by_row(one, values) * (1 / math.sqrt(size[0] * size[1]))

    def _plan(
        self, which: int, channels: int, size: tuple[int, int], dtype: torch.dtype, back: bool
    ) -> Any:
        plan = _finufft().Plan(
            1 if back else 2,
            size,
            channels,
            _EPS[dtype],
            1 if back else -1,
            str(dtype).removeprefix("torch."),
            nthreads=1,
        )
        k = (2 * math.pi * self.trajectory[which]).to(dtype.to_real()).numpy()
        plan.setpts(k[:, 0].copy(), k[:, 1].copy())
        return plan


class _Transform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, operator: NonUniformFourier) -> Tensor:
        ctx.operator, ctx.size = operator, (image.shape[2], image.shape[3])
        return operator.sums(image, ctx.size, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.sums(grads[0], ctx.size, back=True), None


class NonCartesianMRI(Compose):
    """y_lj = (H W)^-1/2 sum_r S_l[r] x[r] exp(-2 pi i k_j . r).

    Args:
        trajectory: the sampled frequencies, as in `NonUniformFourier`.
        coils, complex_domain: as in `MRI`.
    """

    def __init__(
        self,
        trajectory: Tensor,
        coils: Tensor | int | None = None,
        *,
        complex_domain: bool = True,
    ) -> None:
        if coils is None:
            super().__init__(NonUniformFourier(trajectory, complex_domain), Identity())
        else:
            maps = CoilSensitivities(coils, complex_domain)
            super().__init__(NonUniformFourier(trajectory, complex_domain=True), maps)


def radial_trajectory(spokes: int, samples: int, *, golden: bool = True) -> Tensor:
    """Spokes through the centre of k-space, (spokes * samples, 2), float64.

    Spoke s has the angle s pi / spokes from the axis of the width, or s times the golden angle of
    111.25 degrees; its samples are at -1/2 + i / samples, i = 0, ..., samples - 1.
    """
    spokes, samples = check_count("spokes", spokes, 1), check_count("samples", samples, 1)
    angle = torch.arange(spokes, dtype=torch.float64) * (_GOLDEN if golden else math.pi / spokes)
    radius = torch.arange(samples, dtype=torch.float64) / samples - 0.5
    along = torch.stack([angle.sin(), angle.cos()], -1)
    return (radius[None, :, None] * along[:, None]).reshape(-1, 2)


def _finufft() -> Any:
    try:
        return importlib.import_module("finufft")
    except ImportError:
        raise CapabilityError(
            'non-Cartesian MRI needs FINUFFT: pip install "posterior-sampling[nufft]"'
        ) from None
