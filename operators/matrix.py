"""Matrices, and linear operators of other libraries, as operators.

>>> from_matrix(M)                                        # dense
>>> from_matrix(scipy.sparse.csr_array(...))              # sparse, of scipy or torch
>>> from_matrix(scipy.sparse.linalg.LinearOperator(...))  # matvec and rmatvec; PyLops too

All act on the flattened event, (B, *event) -> (B, m).
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators._projector import Projector
from posterior.operators._rowwise import Memo, by_row
from posterior.operators.base import Operator, Pull, Shape, check_number

_MULTIPLE = 16  # an odd number of columns makes matrix kernels treat rows differently: pad

Self = TypeVar("Self", bound="Flattened")


class Flattened(Operator):
    """Base class: a linear map of the flattened event; a subclass writes `size` and `_times`."""

    event_shape: Shape | None
    complex_domain: bool

    linear = True

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(m, d)."""

    @property
    @abstractmethod
    def has_complex_values(self) -> bool:
        """Whether the entries are complex."""

    @abstractmethod
    def _times(self, what: str, x: Tensor) -> Tensor:
        """Rows (B, .) times "forward", the map, or "adjoint", its conjugate transpose."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        if flat.shape[1] != self.size[1]:
            raise InputError(
                f"{self!r} takes {self.size[1]} numbers for each row, not {flat.shape[1]}"
                f" (x is {tuple(x.shape)})"
            )
        if flat.is_complex() and self._real_domain:
            raise InputError(f"{self!r} of a complex x: give from_matrix(M, complex_domain=True)")
        return self._times("forward", self._precise(flat))

    def vjp(self, x: Tensor) -> tuple[Tensor, Pull]:
        return self(x), lambda u: self._back("adjoint", u).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """M^H y, its real part where x is real; (B, *event_shape), or (B, d) where not given."""
        return self._back("adjoint", y).reshape(self.domain_shape(tuple(y.shape)))

    def normal(self, x: Tensor) -> Tensor:
        return self._back("adjoint", self(x)).reshape(x.shape)

    def domain_shape(self, y_shape: Shape) -> Shape:
        return (y_shape[0], *(self.event_shape or (self.size[1],)))

    def range_shape(self, x_shape: Shape) -> Shape:
        if math.prod(x_shape[1:]) != self.size[1]:
            raise InputError(f"{self!r} takes {self.size[1]} numbers, x is {x_shape}")
        return (x_shape[0], self.size[0])

    def __repr__(self) -> str:
        m, d = self.size
        kind = "".join(f", {word}" for word in self._words)
        return f"from_matrix({m} x {d}{kind}{', complex' if self.has_complex_values else ''})"

    @property
    def _words(self) -> tuple[str, ...]:
        """What `repr` says of it."""
        return ()

    @property
    def _real_domain(self) -> bool:
        return self.has_complex_values and not self.complex_domain

    def _set_event_shape(self) -> None:
        if self.event_shape is not None:
            event = tuple(int(n) for n in self.event_shape)
            if math.prod(event) != self.size[1]:
                raise InputError(f"event_shape {event} does not have {self.size[1]} elements")
            object.__setattr__(self, "event_shape", event)

    def _precise(self, x: Tensor) -> Tensor:
        if x.real.dtype not in (torch.float32, torch.float64):
            raise InputTypeError(f"{self!r} needs single or double precision, not {x.dtype}")
        return x

    def _back(self, what: str, y: Tensor) -> Tensor:
        if y.ndim != 2 or y.shape[1] != self.size[0]:
            raise InputError(f"{self!r} gives (B, {self.size[0]}), y is {tuple(y.shape)}")
        out = self._times(what, self._precise(y))
        return out.real.contiguous() if self._real_domain and out.is_complex() else out


@dataclass(frozen=True, eq=False, repr=False)
class MatrixOperator(Flattened):
    """A dense matrix; see `from_matrix`."""

    matrix: Tensor
    event_shape: Shape | None = None
    complex_domain: bool = False
    rtol: float | None = None
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False)

    has_pinv = True

    def __post_init__(self) -> None:
        try:
            matrix = torch.as_tensor(self.matrix).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputTypeError(f"the matrix must be a tensor: {error}") from None
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise InputError(f"the matrix must be (m, d), not {tuple(matrix.shape)}")
        if matrix.is_meta:
            raise InputError("the matrix is on the meta device: it has no values")
        object.__setattr__(self, "matrix", _checked(matrix))
        if self.rtol is not None:
            object.__setattr__(self, "rtol", check_number("rtol", self.rtol, 0, 1))
        self._set_event_shape()

    @property
    def size(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def has_complex_values(self) -> bool:
        return self.matrix.is_complex()

    def pinv(self, y: Tensor) -> Tensor:
        """Least squares of least norm, over real x unless the domain is complex."""
        return self._back("pinv", y).reshape(self.domain_shape(tuple(y.shape)))

    def bind(self, event_shape: Shape) -> MatrixOperator:
        return MatrixOperator(self.matrix, tuple(event_shape), self.complex_domain, self.rtol)

    def _times(self, what: str, x: Tensor) -> Tensor:
        """The product of x and the transpose of the matrix `what`."""
        real, imag, width = self._memo(
            (what, x.real.dtype, x.device), lambda: self._parts(what, x.real.dtype, x.device)
        )

        def by(part: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: rows.matmul(x.contiguous(), part)[:, :width]

        return _product(x, by(real), None if imag is None else by(imag))

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


@dataclass(frozen=True, eq=False, repr=False)
class SparseOperator(Flattened):
    """A sparse matrix, kept by rows; see `from_matrix`. It and its transpose are stored.

    Args:
        starts: where the entries of each row begin, and the end of the last, (m + 1,).
        columns: of the entries, (entries,).
        values: of the entries, (entries,), real or complex.
        width: d.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int
    event_shape: Shape | None = None
    complex_domain: bool = False
    _memo: Memo = field(default_factory=Memo, init=False)

    def __post_init__(self) -> None:
        if 0 in self.size:
            raise InputError(f"the matrix must be (m, d), not {self.size}")
        object.__setattr__(self, "values", _checked(self.values))
        self._set_event_shape()

    @staticmethod
    def of(matrix: Any, event_shape: Shape | None, complex_domain: bool) -> SparseOperator:
        """From a sparse matrix of scipy or of torch, in any of their formats."""
        if matrix.ndim != 2:
            raise InputError(f"the matrix must be (m, d), not {tuple(matrix.shape)}")
        if isinstance(matrix, Tensor):
            if matrix.is_meta:
                raise InputError("the matrix is on the meta device: it has no values")
            if matrix.layout == torch.sparse_coo and matrix.dense_dim():
                raise InputError("a sparse matrix of dense blocks: give a matrix (m, d) of numbers")
            entries = matrix.detach().to_sparse_coo().coalesce()  # in order, row by row
            row, column = entries.indices()
            counts = row.bincount(minlength=matrix.shape[0])
            parts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)), column, entries.values()
        else:
            lines = matrix.tocsr()
            parts = lines.indptr, lines.indices, lines.data
        try:
            starts, columns, values = (torch.as_tensor(p).to("cpu", copy=True) for p in parts)
        except TypeError as error:  # entries of more than double precision, or objects
            raise InputTypeError(f"the matrix has entries of another kind: {error}") from None
        return SparseOperator(
            starts, columns, values, int(matrix.shape[1]), event_shape, complex_domain
        )

    @property
    def size(self) -> tuple[int, int]:
        return len(self.starts) - 1, self.width

    @property
    def has_complex_values(self) -> bool:
        return self.values.is_complex()

    def bind(self, event_shape: Shape) -> SparseOperator:
        out = replace(self, event_shape=tuple(event_shape))
        object.__setattr__(out, "_memo", self._memo)  # what is built for one serves the other
        return out

    @property
    def _words(self) -> tuple[str, ...]:
        return ("sparse", f"{len(self.values)} entries")

    def _times(self, what: str, x: Tensor) -> Tensor:
        real, imag = self._memo((x.real.dtype, x.device), lambda: self._parts(x))
        if what == "forward":
            return _product(x, real.forward, None if imag is None else imag.forward)
        if imag is None:
            return _product(x, real.adjoint, None)
        minus = imag.adjoint  # (R + i I)^H = R^T - i I^T
        return _product(x, real.adjoint, lambda y: -minus(y))

    def _parts(self, like: Tensor) -> tuple[Projector, Projector | None]:
        """The real and the imaginary part, each with its transpose."""

        def part(values: Tensor) -> Projector:
            return Projector.by_rows(
                self.starts, self.columns, values, self.size, like.real.dtype, like.device
            )

        if not self.values.is_complex():
            return part(self.values), None
        return part(self.values.real), part(self.values.imag)


@dataclass(frozen=True, eq=False, repr=False)
class ForeignOperator(Flattened):
    """A linear operator of scipy, of PyLops or of the same form; see `from_matrix`.

    It is called with one row at a time, a vector on the CPU, in its own precision or that of x if
    that is higher.
    """

    operator: Any
    event_shape: Shape | None = None
    complex_domain: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.operator.shape)
        if len(shape) != 2 or any(n < 1 for n in shape):
            raise InputError(f"the linear operator must be (m, d), not {shape}")
        self._set_event_shape()
        try:
            self._call("adjoint", torch.zeros(1, self.size[0], dtype=torch.float64))
        except (NotImplementedError, AttributeError) as error:
            raise CapabilityError(
                f"{self!r}: {type(self.operator).__name__} has no transpose ({error}): give it an"
                " rmatvec, or take from_callable for methods that need none"
            ) from None

    @property
    def size(self) -> tuple[int, int]:
        m, d = self.operator.shape
        return int(m), int(d)

    @property
    def has_complex_values(self) -> bool:
        return self._dtype.is_complex

    def bind(self, event_shape: Shape) -> ForeignOperator:
        out = object.__new__(ForeignOperator)  # the transpose was tried before
        out.__dict__.update(self.__dict__)
        object.__setattr__(out, "event_shape", tuple(event_shape))
        out._set_event_shape()
        return out

    @property
    def _words(self) -> tuple[str, ...]:
        return (type(self.operator).__name__.lstrip("_"),)

    @property
    def _dtype(self) -> torch.dtype:
        """That of its vectors, float32 to complex128."""
        import numpy as np

        declared = getattr(self.operator, "dtype", None)
        kind = np.dtype(np.float64 if declared is None else declared)
        single = kind in (np.dtype(np.float32), np.dtype(np.complex64))
        if kind.kind == "c":
            return torch.complex64 if single else torch.complex128
        return torch.float32 if single else torch.float64

    def _times(self, what: str, x: Tensor) -> Tensor:
        def apply(x: Tensor) -> Tensor:
            out: Tensor = _Applied.apply(x, self, what)  # type: ignore[no-untyped-call]  # torch's
            return out

        return apply(x) if self.has_complex_values else _product(x, apply, None)

    def _call(self, what: str, x: Tensor) -> Tensor:
        """One row (1, .), on the CPU, through the other library."""
        import numpy as np

        precise = torch.promote_types(x.dtype, self._dtype.to_real())
        vector = x[0].to(precise, copy=True).numpy()  # copied: it may be written to
        call = self.operator.matvec if what == "forward" else self.operator.rmatvec
        out = torch.from_numpy(np.array(call(vector)))
        length = self.size[0] if what == "forward" else self.size[1]
        if out.numel() != length:
            raise InputError(f"{self!r} gives {tuple(out.shape)} instead of {length} numbers")
        if out.is_complex() and not self.has_complex_values:
            raise InputError(f"{self!r} says that it is real, and gives complex numbers")
        kind = x.real.dtype.to_complex() if out.is_complex() else x.real.dtype
        return out.reshape(1, length).to(kind)


class _Applied(torch.autograd.Function):
    """A foreign operator or its adjoint; the gradient of each is the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: ForeignOperator, what: str) -> Tensor:
        ctx.operator, ctx.what, ctx.is_complex = operator, what, x.is_complex()
        return by_row(lambda row, _: operator._call(what, row), x.detach().cpu()).to(x.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        other = "adjoint" if ctx.what == "forward" else "forward"
        back: Tensor = _Applied.apply(grads[0], ctx.operator, other)  # type: ignore[no-untyped-call]
        if back.is_complex() and not ctx.is_complex:
            back = back.real
        return back, None, None


def _product(
    x: Tensor, real: Callable[[Tensor], Tensor], imag: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """(R + i I) x, in real products only."""
    if imag is None:
        return torch.complex(real(x.real), real(x.imag)) if x.is_complex() else real(x)
    if not x.is_complex():
        return torch.complex(real(x), imag(x))
    return torch.complex(real(x.real) - imag(x.imag), imag(x.real) + real(x.imag))


def _checked(values: Tensor) -> Tensor:
    """Finite entries, floating point or complex."""
    if not (values.is_floating_point() or values.is_complex()):
        values = values.double()
    if not bool(torch.isfinite(values).all()):
        raise InputError("the matrix has NaN or infinite values")
    return values


def _pinv(matrix: Tensor, rtol: float) -> Tensor:
    inverse: Tensor = torch.linalg.pinv(matrix, rtol=rtol)
    return inverse


def from_matrix(
    matrix: Any,
    event_shape: Shape | None = None,
    *,
    complex_domain: bool = False,
    rtol: float | None = None,
) -> Flattened:
    """A matrix M as y = M x, acting on the flattened event: (B, *event) -> (B, m).

    Args:
        matrix: (m, d), real or complex. A dense tensor or array; a sparse one of scipy or of torch;
            or a linear operator of scipy, of PyLops, or any object with `shape`, `matvec`,
            `rmatvec` and perhaps `dtype`. Such an operator runs on numpy vectors, row by row, is
            differentiable by its `rmatvec`, and is called with complex vectors only where it says
            that it is complex. Its `rmatvec` is tried once, with zeros.
        event_shape: the shape of one x, with d elements; without it `adjoint` and `pinv` give
            (B, d). The sampler binds it by itself.
        complex_domain: x is complex, as in `from_matrix(M, complex_domain=True) @
            ComplexFromChannels()`. A complex M of a real x has the adjoint Re(M^H y).
        rtol: singular values below rtol times the largest count as zero in `pinv`, which only
            dense matrices have; default max(m, d) eps, with the eps of the matrix's own dtype.

    Raises `CapabilityError` for a linear operator without `rmatvec`.
    """
    event = None if event_shape is None else tuple(event_shape)
    scipy_sparse = sys.modules.get("scipy.sparse")  # not loaded: then it is none of scipy's
    sparse = (isinstance(matrix, Tensor) and matrix.layout != torch.strided) or (
        scipy_sparse is not None and scipy_sparse.issparse(matrix)
    )
    foreign = not sparse and hasattr(matrix, "matvec") and hasattr(matrix, "shape")
    if rtol is not None and (sparse or foreign):
        raise InputError("rtol belongs to the pseudo-inverse, which only dense matrices have")
    if sparse:
        return SparseOperator.of(matrix, event, complex_domain)
    if foreign:
        return ForeignOperator(matrix, event, complex_domain)
    return MatrixOperator(matrix, event, complex_domain, rtol)


__all__ = ["Flattened", "ForeignOperator", "MatrixOperator", "SparseOperator", "from_matrix"]
