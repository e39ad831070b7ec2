"""A dense matrix as an operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import InputError, InputTypeError
from posterior.operators._rowwise import Memo
from posterior.operators.base import Operator, Pull, Shape, check_number

_MULTIPLE = 16  # an odd number of columns makes matrix kernels treat rows differently: pad


@dataclass(frozen=True, eq=False, repr=False)
class MatrixOperator(Operator):
    """y = M x on the flattened event, (B, *event) -> (B, m); see `from_matrix`."""

    matrix: Tensor
    event_shape: Shape | None = None
    complex_domain: bool = False
    rtol: float | None = None
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False)

    linear = True
    has_pinv = True

    def __post_init__(self) -> None:
        try:
            matrix = torch.as_tensor(self.matrix).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputTypeError(f"the matrix must be a tensor: {error}") from None
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise InputError(f"the matrix must be (m, d), not {tuple(matrix.shape)}")
        if not (matrix.is_floating_point() or matrix.is_complex()):
            matrix = matrix.double()
        if not bool(torch.isfinite(matrix).all()):
            raise InputError("the matrix has NaN or infinite values")
        object.__setattr__(self, "matrix", matrix)
        if self.rtol is not None:
            object.__setattr__(self, "rtol", check_number("rtol", self.rtol, 0, 1))
        if self.event_shape is not None:
            event = tuple(int(n) for n in self.event_shape)
            if math.prod(event) != matrix.shape[1]:
                raise InputError(f"event_shape {event} does not have {matrix.shape[1]} elements")
            object.__setattr__(self, "event_shape", event)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], -1)
        if flat.shape[1] != self.matrix.shape[1]:
            raise InputError(
                f"{self!r} takes {self.matrix.shape[1]} numbers for each row, not {flat.shape[1]}"
                f" (x is {tuple(x.shape)})"
            )
        if flat.is_complex() and self.matrix.is_complex() and not self.complex_domain:
            raise InputError(f"{self!r} of a complex x: give from_matrix(M, complex_domain=True)")
        return self._times("forward", flat)

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        return self(x), lambda u: self._back("adjoint", u).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """M^H y, its real part where x is real; (B, *event_shape), or (B, d) where not given."""
        return self._back("adjoint", y).reshape(self.domain_shape(tuple(y.shape)))

    def pinv(self, y: Tensor) -> Tensor:
        """Least squares of least norm, over real x unless the domain is complex."""
        return self._back("pinv", y).reshape(self.domain_shape(tuple(y.shape)))

    def normal(self, x: Tensor) -> Tensor:
        return self._back("adjoint", self(x)).reshape(x.shape)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], *(self.event_shape or (self.matrix.shape[1],)))

    def range_shape(self, x_shape: Shape) -> Shape:
        if math.prod(x_shape[1:]) != self.matrix.shape[1]:
            raise InputError(f"{self!r} takes {self.matrix.shape[1]} numbers, x is {x_shape}")
        return (x_shape[0], self.matrix.shape[0])

    def bind(self, event_shape: Shape) -> MatrixOperator:
        return MatrixOperator(self.matrix, tuple(event_shape), self.complex_domain, self.rtol)

    def __repr__(self) -> str:
        m, d = self.matrix.shape
        return f"from_matrix({m} x {d}{', complex' if self.matrix.is_complex() else ''})"

    @property
    def _real_domain(self) -> bool:
        return self.matrix.is_complex() and not self.complex_domain

    def _back(self, what: str, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != self.matrix.shape[0]:
            raise InputError(f"{self!r} gives (B, {self.matrix.shape[0]}), y is {tuple(y.shape)}")
        out = self._times(what, y)
        return out.real.contiguous() if self._real_domain and out.is_complex() else out

    def _times(self, what: str, x: Tensor) -> Tensor:
        """The product of x and the transpose of the matrix `what`, in real products only."""
        real, imag, width = self._memo(
            (what, x.real.dtype, x.device), lambda: self._parts(what, x.real.dtype, x.device)
        )

        def times(x: Tensor, part: Tensor) -> Tensor:
            return rows.matmul(x.contiguous(), part)[:, :width]

        if imag is None:
            if not x.is_complex():
                return times(x, real)
            return torch.complex(times(x.real, real), times(x.imag, real))
        if not x.is_complex():
            return torch.complex(times(x, real), times(x, imag))
        return torch.complex(
            times(x.real, real) - times(x.imag, imag), times(x.real, imag) + times(x.imag, real)
        )

    def _parts(
        self, what: str, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor | None, int]:
        matrix = self.matrix
        if what == "adjoint":
            matrix = matrix.mH
        elif what == "pinv":
            matrix = self._pseudo_inverse()
        width = matrix.shape[0]

        def part(values: Tensor) -> Tensor:
            values = torch.nn.functional.pad(values.T, (0, -width % _MULTIPLE))
            return values.to(device, dtype).contiguous()

        if matrix.is_complex():
            return part(matrix.real), part(matrix.imag), width
        return part(matrix), None, width

    def _pseudo_inverse(self) -> Tensor:
        """By SVD in double precision; complex where it acts on a complex y."""
        matrix = self.matrix
        rtol = self.rtol
        if rtol is None:
            rtol = max(matrix.shape) * torch.finfo(matrix.real.dtype).eps
        if not matrix.is_complex():
            return _pinv(matrix.double(), rtol)
        matrix = matrix.to(torch.complex128)
        if self.complex_domain:
            return _pinv(matrix, rtol)
        left, right = _pinv(torch.cat([matrix.real, matrix.imag]), rtol).chunk(2, dim=1)
        return torch.complex(left, -right)  # Re((L - iR) y) = L Re y + R Im y


def _pinv(matrix: Tensor, rtol: float) -> Tensor:
    inverse: Tensor = torch.linalg.pinv(matrix, rtol=rtol)
    return inverse


def from_matrix(
    matrix: Tensor,
    event_shape: Shape | None = None,
    *,
    complex_domain: bool = False,
    rtol: float | None = None,
) -> MatrixOperator:
    """A dense matrix as y = M x, acting on the flattened event: (B, *event) -> (B, m).

    Args:
        matrix: (m, d), real or complex.
        event_shape: the shape of one x, with d elements; without it `adjoint` and `pinv` give
            (B, d). The sampler binds it by itself.
        complex_domain: x is complex, as in `from_matrix(M, complex_domain=True) @
            ComplexFromChannels()`. A complex M of a real x has the adjoint Re(M^H y).
        rtol: singular values below rtol times the largest count as zero in `pinv`; default
            max(m, d) eps, with the eps of the matrix's own dtype.
    """
    return MatrixOperator(
        matrix, None if event_shape is None else tuple(event_shape), complex_domain, rtol
    )


__all__ = ["MatrixOperator", "from_matrix"]
