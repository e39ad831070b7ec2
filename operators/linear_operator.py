"""A linear operator of ours as one of scipy, for its Krylov solvers, singular values and the like.

>>> A = to_linear_operator(blur, (3, 64, 64))
>>> x = scipy.sparse.linalg.lsqr(A, y.numpy().ravel())[0].reshape(3, 64, 64)

scipy knows one number field for an operator, ours are linear over the real numbers. What becomes of

    x real, y real        a real operator
    x real, y complex     a real operator with two entries for each complex one, the real and the
                          imaginary part side by side: y.numpy().ravel().view(float). Its transpose
                          is our adjoint, as for Re<u, v>
    x complex, y complex  a complex operator, asked for by a complex dtype; A must be linear over
                          the complex numbers, which the real part, for one, is not
    x complex, y real     none: compose with ComplexFromChannels(), which makes x real
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posterior import rows, streams
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator, check_count

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


def to_linear_operator(
    operator: Operator,
    event_shape: Sequence[int],
    *,
    dtype: Any = "float64",
    device: torch.device | str = "cpu",
) -> LinearOperator:
    """`operator`, of one measurement, as a `scipy.sparse.linalg.LinearOperator` (m, d).

    It has `matvec`, `rmatvec`, `matmat` and `rmatmat`; vectors are x and y flattened. Complex y of
    a real x are two real entries each; see the module.

    Args:
        operator: linear; of several measurements, `operator.take([k])`.
        event_shape: the shape of one x, with d elements.
        dtype: of x, and the precision: "float32", "float64", "complex64" or "complex128", or those
            of numpy.
        device: where the operator computes.

    Raises:
        CapabilityError: the operator is not linear, or not over the complex numbers for a complex
            dtype, or takes complex x only.
        InputError: what the operator says of an x of this shape.
    """
    import numpy as np
    from scipy.sparse.linalg import LinearOperator

    if not isinstance(operator, Operator):
        raise InputTypeError(f"to_linear_operator takes an Operator, not {type(operator).__name__}")
    if not operator.linear:
        raise CapabilityError(f"{operator!r} is not linear: for its derivative at x use vjp(x)")
    event = tuple(check_count("event_shape", n, 1) for n in event_shape)
    try:
        kind = np.dtype(dtype)
        torch_dtype = _DTYPES[kind.name]
    except (TypeError, KeyError):
        raise InputTypeError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}") from None
    bound = operator.bind(event)
    y = _probe(bound, event, torch_dtype, device)
    pairs = y.is_complex() and not torch_dtype.is_complex
    y_event = tuple(y.shape[1:])
    shape = (y[0].numel() * (2 if pairs else 1), math.prod(event))

    def columns(matrix: np.ndarray, out: tuple[int, ...], paired: bool) -> Tensor:
        """Columns as rows (k, *out)."""
        if np.iscomplexobj(matrix) and not torch_dtype.is_complex:
            raise InputError(f"{bound!r} as a real linear operator takes real vectors")
        rows_of = torch.tensor(np.ascontiguousarray(matrix.T), dtype=torch_dtype)
        if paired:
            rows_of = torch.view_as_complex(rows_of.reshape(len(rows_of), -1, 2))
        return rows_of.reshape(-1, *out).to(device)

    def matrix(values: Tensor) -> np.ndarray:
        """Rows (k, ...) as columns."""
        values = values.detach().resolve_conj().cpu()
        flat = torch.view_as_real(values) if pairs and values.is_complex() else values
        array: np.ndarray = flat.reshape(len(values), -1).to(torch_dtype).numpy()
        return array.T

    def forward(x: np.ndarray) -> np.ndarray:
        return matrix(bound(columns(x, event, False)))

    def adjoint(y: np.ndarray) -> np.ndarray:
        return matrix(bound.adjoint(columns(y, y_event, pairs)))

    return LinearOperator(
        shape,
        matvec=lambda x: forward(x.reshape(-1, 1))[:, 0],
        rmatvec=lambda y: adjoint(y.reshape(-1, 1))[:, 0],
        matmat=forward,
        rmatmat=adjoint,
        dtype=kind,
    )


def _probe(
    operator: Operator, event: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """A(x) of a random x, after a look at whether x and y are of the right kind."""
    x = streams.normal(0, "probe", torch.zeros(1, *event, dtype=dtype)).to(device)
    y = operator(x)
    back = operator.adjoint(y)
    if not dtype.is_complex:
        if back.is_complex():
            raise CapabilityError(
                f"{operator!r} takes complex x: compose it with ComplexFromChannels(), or give"
                ' dtype="complex128"'
            )
        return y
    turned = operator(1j * x)
    off = rows.norm(turned - 1j * y)
    if bool(off > 1e-3 * rows.norm(turned)) or not (y.is_complex() and back.is_complex()):
        raise CapabilityError(
            f"{operator!r} is not linear over the complex numbers: give a real dtype, with"
            " ComplexFromChannels() where x is complex"
        )
    return y


__all__ = ["to_linear_operator"]
