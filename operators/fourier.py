"""Some of the Fourier coefficients of an image: subsampled Fourier, Cartesian MRI.

    F x[k] = (H W)^-1/2 sum_r x[r] exp(-2 pi i (k_1 r_1 / H + k_2 r_2 / W))

with r and k counted from the centre (H // 2, W // 2): centred and orthonormal, F^H F = I. M is 1
where a coefficient is measured, and y has the size of the image, 0 where M is.

    SubsampledFourier    y_c = M F x_c           (B, C, H, W) -> (B, C, H, W) complex
    CoilSensitivities    y_l = S_l x             (B, 1, H, W) -> (B, coils, H, W) complex
    MRI                  y_l = M F (S_l x)       their product; one coil: y = M F x

>>> SubsampledFourier(keep=Mask.random(keep_fraction=0.3))           # of a photograph: real x
>>> MRI(keep=EquispacedLines(acceleration=4)) @ ComplexFromChannels()
>>> MRI(keep=PoissonDisc(acceleration=8), coils=maps) @ ComplexFromChannels()

Complex x. A A^T = M, so A^+ = A^T = F^H M. Real x (`complex_domain=False`): A^T = Re F^H M, and
with E = (M[k] + M[-k]) / 2, 1, 1/2 or 0, A^T A = F^H E F: a coefficient tells its mirror image,
A^+ = Re F^H E^-1 M. With coils A^T A = sum_l S_l^* F^H M F S_l has no inverse in closed form unless
M = 1, where it is sum_l |S_l|^2.

Noise of standard deviation s in y is s per real component, as everywhere. fastMRI's k-space is that
of F up to a factor that it leaves in the data: scale x and y by one number, the phase stays.

Sensitivity encoding: Pruessmann et al., "SENSE", MRM 1999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.errors import InputError, InputTypeError
from posterior.operators._rowwise import Memo, by_row, check_rows, take_rows, together
from posterior.operators.base import Operator, Shape, check_count, check_image, check_number
from posterior.operators.basic import Identity
from posterior.operators.compose import Compose
from posterior.operators.mask import Mask, Masking
from posterior.streams import Noise, check_seed

_AXES = (-2, -1)
_checkerboards = Memo(16)


def dft2(x: Tensor) -> Tensor:
    """The centred orthonormal DFT F over the last two axes."""
    shifted = torch.fft.ifftshift(x, dim=_AXES)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_AXES)


def idft2(y: Tensor) -> Tensor:
    """Its inverse and adjoint F^H."""
    shifted = torch.fft.ifftshift(y, dim=_AXES)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_AXES)


def checkerboard(size: tuple[int, int], like: Tensor) -> Tensor | None:
    """(-1)^(r_1 + r_2) for the pixels of an even size, (H, W), in the real dtype of `like`.

    A factor (-1)^r before the FFT counts k from the middle, and (-1)^k after it counts r from
    there, up to one sign, (-1)^((H + W) / 2). A product costs less than moving the quadrants. None
    for odd sizes, whose factors are not real.
    """
    if size[0] % 2 or size[1] % 2:
        return None
    dtype = like.real.dtype

    def build() -> Tensor:
        h, w = (1 - 2.0 * (torch.arange(n) % 2) for n in size)
        return torch.outer(h, w).to(like.device, dtype)

    return _checkerboards((size, dtype, like.device), build)


@dataclass(frozen=True, eq=False, repr=False)
class SubsampledFourier(Operator):
    """y = M F x, each channel by itself.

    Args:
        keep: the measured coefficients, zero frequency in the middle: a mask of
            `operators.kspace_masks` or `operators.mask`, or a tensor of zeros and ones (H, W),
            (1, H, W) or (B, 1, H, W); None measures them all.
        complex_domain: x is complex; otherwise real.
    """

    keep: Masking | Tensor | None = None
    complex_domain: bool = False
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False)

    linear = True
    has_pinv = True
    adjoint_gradient = True

    def __post_init__(self) -> None:
        if self.keep is None:  # F itself
            object.__setattr__(self, "orthonormal_columns", True)
            object.__setattr__(self, "orthonormal_rows", self.complex_domain)
        elif isinstance(self.keep, Operator):
            if not isinstance(self.keep, Masking):
                raise InputTypeError(f"keep must be a mask, not {self.keep!r}")
        else:
            object.__setattr__(self, "keep", Mask(keep=self.keep))

    def forward(self, x: Tensor) -> Tensor:
        check_domain(self, x, self.complex_domain)
        weight = self._weight("keep", x)
        signs = checkerboard((x.shape[2], x.shape[3]), x)
        if signs is None:
            return together("dft2", lambda rows, w: _times(dft2(rows), w), x, weight)
        plain = together("fft2", lambda rows: torch.fft.fft2(rows, norm="ortho"), x * signs)
        return plain.mul_(self._signed("keep", weight, signs))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._back("keep", y)

    def pinv(self, y: Tensor) -> Tensor:
        return self._back("pinv", y)

    def normal(self, x: Tensor) -> Tensor:
        """By one FFT and its inverse: the shifts of F cancel, all but that of M."""
        check_domain(self, x, self.complex_domain)
        weight = self._weight("normal", x)
        if weight is None:
            return x.clone()
        size = (x.shape[2], x.shape[3])

        def f(rows: Tensor, weight: Tensor) -> Tensor:
            if self.complex_domain:
                return torch.fft.ifft2(torch.fft.fft2(rows) * weight)
            return torch.fft.irfft2(torch.fft.rfft2(rows) * weight, s=size)

        return together("normal", f, x, weight)

    def restrict(self, y: Tensor) -> Tensor:
        weight = self._weight("keep", y)
        return y.clone() if weight is None else y * weight

    def domain_shape(self, y_shape: Shape) -> Shape:
        return y_shape

    def range_shape(self, x_shape: Shape) -> Shape:
        return x_shape

    def take(self, index: Sequence[int]) -> SubsampledFourier:
        taken = None if self.keep is None else self._mask.take(index)
        if taken is self.keep:
            return self
        return SubsampledFourier(taken, self.complex_domain)  # type: ignore[arg-type]  # a Masking

    @property
    def _mask(self) -> Masking:
        assert isinstance(self.keep, Masking)
        return self.keep

    def _back(self, which: str, y: Tensor) -> Tensor:
        check_image(self, y)
        weight = self._weight(which, y)
        signs = checkerboard((y.shape[2], y.shape[3]), y)

        def f(rows: Tensor, weight: Tensor | None = None) -> Tensor:
            if signs is None:
                image = idft2(_times(rows, weight))
            else:
                image = torch.fft.ifft2(rows, norm="ortho")
            return image if self.complex_domain else image.real

        if signs is None:
            return together(("idft2", self.complex_domain), f, y, weight)
        y = y * self._signed(which, weight, signs)
        return together(("ifft2", self.complex_domain), f, y) * signs

    def _signed(self, which: str, weight: Tensor | None, signs: Tensor) -> Tensor:
        """The weight with the signs that centre an FFT of this size."""
        one_sign = (-1) ** (sum(signs.shape) // 2)

        def build() -> Tensor:
            return one_sign * signs if weight is None else one_sign * signs * weight

        return self._memo((which, "signed", signs.shape, signs.dtype, signs.device), build)

    def _weight(self, which: str, like: Tensor) -> Tensor | None:
        """M, or what goes with it, (1 or B, 1, H, W), in the real dtype of `like`; None for 1.

        "keep" M; "pinv" E^-1 M; "normal" E in the order of the FFT, half of it for real images.
        Complex images have M for E.
        """
        if self.keep is None:
            return None
        size, dtype = (like.shape[-2], like.shape[-1]), like.real.dtype

        def build() -> Tensor:
            keep = self._mask.pattern(*size).to(torch.float64)
            if which == "normal" or not (which == "keep" or self.complex_domain):
                keep = self._even(which, keep)
            return keep.to(like.device, dtype)

        weight = self._memo((which, size, dtype, like.device), build)
        check_rows(self, "masks", len(weight), like)
        return weight

    def _even(self, which: str, keep: Tensor) -> Tensor:
        even = torch.fft.ifftshift(keep, dim=_AXES)
        if not self.complex_domain:
            even = (even + even.flip(_AXES).roll((1, 1), _AXES)) / 2
        if which == "normal":
            return even if self.complex_domain else even[..., : even.shape[-1] // 2 + 1]
        even = torch.fft.fftshift(even, dim=_AXES)
        return torch.where(keep > 0, 1 / even, 0)


def _times(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else values * weight


def check_domain(who: object, x: Tensor, complex_domain: bool) -> None:
    """A batch of images, complex or real as the operator was made for."""
    check_image(who, x)
    if complex_domain and not x.is_complex():
        raise InputError(
            f"{who!r} takes complex images: compose it with ComplexFromChannels() for two channels,"
            " or give complex_domain=False for real images"
        )
    if x.is_complex() and not complex_domain:
        raise InputError(f"{who!r} takes real images: give complex_domain=True for complex ones")


@dataclass(frozen=True, eq=False, repr=False)
class CoilSensitivities(Operator):
    """y_l = S_l x: what each receiver coil sees of an image of one channel.

    Args:
        maps: S, complex (coils, H, W), or one set for each measurement (B, coils, H, W); or the
            number of coils of `birdcage_maps`, whatever the size of x.
        complex_domain: x is complex; otherwise real.
    """

    maps: Tensor | int
    complex_domain: bool = True
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False)

    linear = True
    has_pinv = True
    adjoint_gradient = True

    def __post_init__(self) -> None:
        if not isinstance(self.maps, Tensor):
            object.__setattr__(self, "maps", check_count("maps", self.maps, 1))
            object.__setattr__(self, "orthonormal_columns", True)  # sum |S_l|^2 = 1
            return
        maps = self.maps.detach().to(torch.complex128)
        maps = maps[None] if maps.ndim == 3 else maps
        if maps.ndim != 4 or maps.numel() == 0:
            raise InputError(
                f"coil maps must be (coils, H, W) or (B, coils, H, W), not {tuple(maps.shape)}"
            )
        if not bool(torch.isfinite(torch.view_as_real(maps)).all()):
            raise InputError("the coil maps have NaN or infinite values")
        object.__setattr__(self, "maps", maps.clone())

    def forward(self, x: Tensor) -> Tensor:
        check_domain(self, x, self.complex_domain)
        if x.shape[1] != 1:
            raise InputError(f"{self!r} takes images of one channel, not {tuple(x.shape)}")
        maps = self._values("maps", x)
        return by_row(lambda row, b: row * maps[b % len(maps)], x)

    def adjoint(self, y: Tensor) -> Tensor:
        self._check_range(y)
        maps = self._values("maps", y)

        def one(row: Tensor, b: int) -> Tensor:
            image = (maps[b % len(maps)].conj() * row).sum(1, keepdim=True)
            return image if self.complex_domain else image.real

        return by_row(one, y)

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) * self._values("inverse", y)

    def normal(self, x: Tensor) -> Tensor:
        return x * self._values("power", x)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], 1, *y_shape[2:])

    def range_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], self._coils, *x_shape[2:])

    def take(self, index: Sequence[int]) -> CoilSensitivities:
        if not isinstance(self.maps, Tensor) or len(self.maps) == 1:
            return self
        return CoilSensitivities(take_rows(self.maps, index), self.complex_domain)

    @property
    def _coils(self) -> int:
        return self.maps.shape[1] if isinstance(self.maps, Tensor) else self.maps

    def _check_range(self, y: Tensor) -> None:
        check_image(self, y)
        if y.shape[1] != self._coils:
            raise InputError(f"{self!r} gives {self._coils} coils, y is {tuple(y.shape)}")

    def _values(self, which: str, like: Tensor) -> Tensor:
        """By name: "maps" S, "power" sum |S|^2, "inverse" of that, 0 where no coil sees x."""
        size, dtype = (like.shape[-2], like.shape[-1]), like.real.dtype

        def build() -> Tensor:
            maps = self.maps
            if not isinstance(maps, Tensor):
                maps = birdcage_maps(maps, size)[None]
            if maps.shape[-2:] != size:
                have = " x ".join(map(str, maps.shape[-2:]))
                raise InputError(f"the coil maps are {have}, the image {size[0]} x {size[1]}")
            if which == "maps":
                complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
                return maps.to(like.device, complex_dtype)
            power = maps.abs().square().sum(1, keepdim=True)
            if which == "inverse":
                power = torch.where(power > 0, 1 / power, 0)
            return power.to(like.device, dtype)

        values = self._memo((which, size, dtype, like.device), build)
        check_rows(self, "coil maps", len(values), like)
        return values


class MRI(Compose):
    """y_l = M F (S_l x): a Cartesian scan, SubsampledFourier @ CoilSensitivities.

    Args:
        keep: the sampled points of k-space, as in `SubsampledFourier`.
        coils: None for a single coil that sees everything, y = M F x; otherwise sensitivity maps,
            or the number of synthetic ones, as in `CoilSensitivities`.
        complex_domain: x is complex (two real channels through `ComplexFromChannels`); False for a
            real image.

    The pseudo-inverse exists for a single coil, and for several where keep is None.
    """

    def __init__(
        self,
        keep: Masking | Tensor | None = None,
        coils: Tensor | int | None = None,
        *,
        complex_domain: bool = True,
    ) -> None:
        if coils is None:
            super().__init__(SubsampledFourier(keep, complex_domain), Identity())
        else:
            maps = CoilSensitivities(coils, complex_domain)
            super().__init__(SubsampledFourier(keep, complex_domain=True), maps)


def birdcage_maps(
    coils: int,
    size: tuple[int, int],
    *,
    radius: float = 1.5,
    seed: int | Sequence[int] | None = None,
) -> Tensor:
    """Smooth synthetic sensitivities of coils on a ring around the image, complex128.

        S_l(z) = c_l / conj(z - p_l),  p_l = radius exp(i phi_l),  phi_l = phi + 2 pi l / coils

    divided by (sum_l |S_l|^2)^1/2, with z = u + i v the position, u and v in [-1, 1] from one edge
    of the image to the other: the field of a wire falls with the distance, and its direction turns
    around it. c_l = exp(-i phi_l).

    Args:
        coils: how many.
        size: (H, W).
        radius: of the ring, at least 1.45 so that no coil lies in the image.
        seed: draws phi and a phase for each c_l; a sequence gives maps for that many measurements;
            None has phi = 0 and no further phases.

    Returns:
        (coils, H, W), or (B, coils, H, W) for a sequence of seeds; sum_l |S_l|^2 = 1.
    """
    coils, radius = check_count("coils", coils, 1), check_number("radius", radius, 1.45)
    if isinstance(seed, Sequence):
        return torch.stack([birdcage_maps(coils, size, radius=radius, seed=s) for s in seed])
    height, width = (check_count("size", n, 1) for n in size)
    turn = torch.zeros(coils + 1, dtype=torch.float64)
    if seed is not None:
        noise = Noise.single(check_seed(seed), (coils + 1,))
        turn = 2 * math.pi * noise.uniform("coils")[0]
    angle = turn[0] + 2 * math.pi * torch.arange(coils, dtype=torch.float64) / coils
    u = (torch.arange(width, dtype=torch.float64) - width // 2) / (width / 2)
    v = (torch.arange(height, dtype=torch.float64) - height // 2) / (height / 2)
    z = torch.complex(*torch.broadcast_tensors(u[None], v[:, None]))
    ring = torch.polar(torch.full_like(angle, radius), angle)[:, None, None]
    phase = torch.polar(torch.ones_like(angle), turn[1:] - angle)[:, None, None]
    maps = phase / (z - ring).conj()
    return maps / maps.abs().square().sum(0).sqrt()
