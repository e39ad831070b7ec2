"""Sparse and foreign matrices against dense ones, and ours in the hands of scipy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import torch
from operator_battery import normal
from scipy.sparse.linalg import LinearOperator, lsqr, svds
from torch import Tensor

import posterior
from posterior import operators, priors
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.fingerprints import fingerprint
from posterior.operators import from_matrix, to_linear_operator

F, C = torch.float64, torch.complex128


def matrix(m: int, d: int, dtype: torch.dtype = F) -> Tensor:
    """Half of its entries are zero."""
    return torch.where(normal((m, d), "where") > 0, normal((m, d), "values", dtype), 0)


def linear_operator(dense: Tensor) -> LinearOperator:
    array = dense.numpy()
    return LinearOperator(
        array.shape,
        matvec=lambda x: array @ x,
        rmatvec=lambda y: array.conj().T @ y,
        dtype=array.dtype,
    )


class PyLopsLike:
    """What PyLops has of scipy's interface, without being one of scipy's."""

    def __init__(self, dense: Tensor) -> None:
        self.array = dense.numpy()
        self.shape, self.dtype, self.clinear = dense.shape, self.array.dtype, True

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self.array @ x

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self.array.conj().T @ y


FORMS: dict[str, Callable[[Tensor], object]] = {
    **{
        f"scipy {form}": lambda dense, form=form: scipy.sparse.csr_array(dense.numpy()).asformat(
            form
        )
        for form in ("csr", "csc", "coo", "bsr", "dok", "lil")
    },
    "scipy matrix": lambda dense: scipy.sparse.csr_matrix(dense.numpy()),
    "torch coo": lambda dense: dense.to_sparse_coo(),
    "torch csr": lambda dense: dense.to_sparse_csr(),
    "torch csc": lambda dense: dense.to_sparse_csc(),
    "linear operator": linear_operator,
    "pylops": PyLopsLike,
}


@pytest.mark.parametrize("dtype", [torch.float32, F, C], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_do_what_the_dense_matrix_does(form: str, dtype: torch.dtype) -> None:
    dense = matrix(5, 12, dtype)
    given = FORMS[form](dense)
    kept = copy.deepcopy(given) if scipy.sparse.issparse(given) else None
    for complex_domain in (False, True):
        op = from_matrix(given, (3, 4), complex_domain=complex_domain)
        like = from_matrix(dense, (3, 4), complex_domain=complex_domain)
        assert op.linear
        assert op.differentiable
        assert not op.has_pinv
        kinds = [F, C] if complex_domain or not dtype.is_complex else [F]
        for kind in kinds:
            x = normal((3, 3, 4), "x", kind).requires_grad_()
            y = op(x)
            torch.testing.assert_close(y, like(x.detach()))
            v = normal(tuple(y.shape), "v", y.dtype)
            (g,) = torch.autograd.grad(y, x, v)
            assert g.dtype == x.dtype
            back = like.adjoint(v)
            torch.testing.assert_close(g, back if x.is_complex() else back.real.contiguous())
            torch.testing.assert_close(op.adjoint(v), back)
            torch.testing.assert_close(op.normal(x.detach()), like.adjoint(like(x.detach())))
        with pytest.raises(CapabilityError, match="pseudo-inverse"):
            op.pinv(op(normal((1, 3, 4))))
    if kept is not None:
        assert (given != kept).nnz == 0  # the caller's own is as it was


def test_gradient_of_a_gradient_through_a_foreign_operator() -> None:
    op = from_matrix(linear_operator(matrix(4, 6, C)), complex_domain=True)
    x = normal((2, 6), "x", C).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: op(x).abs().square().sum(), x)
    assert torch.autograd.gradcheck(op, x)


def test_precision_is_that_of_the_input_and_memory_is_not_shared() -> None:
    def spoil(x: np.ndarray) -> np.ndarray:
        out = 2 * x
        x[:] = np.nan  # a careless operator
        return out

    op = from_matrix(LinearOperator((4, 4), matvec=spoil, rmatvec=spoil, dtype=np.float64))
    for dtype in (torch.float32, F):
        x = normal((2, 4), "x", dtype)
        before = x.clone()
        assert torch.equal(op(x), 2 * before)
        assert torch.equal(x, before)
        assert op.adjoint(x).dtype == dtype
    dense = matrix(3, 4)
    sparse = dense.to_sparse_csr()
    op = from_matrix(sparse)
    sparse.values().zero_()
    torch.testing.assert_close(op(torch.eye(4, dtype=F)), dense.T)


def test_real_linear_foreign_operators() -> None:
    """PyLops' real FFT: complex numbers of real ones, whose transpose is real."""

    def forward(x: np.ndarray) -> np.ndarray:
        assert not np.iscomplexobj(x)
        return np.fft.rfft(x, norm="ortho")

    def transpose(y: np.ndarray) -> np.ndarray:
        middle = np.r_[y[:1].real * 2, y[1:-1], y[-1:].real * 2]  # of an even length
        return np.fft.irfft(middle, norm="ortho") / 2 * 1.0

    op = from_matrix(LinearOperator((5, 8), matvec=forward, rmatvec=transpose, dtype=np.complex128))
    assert operators.check(op, (2, 8), verbose=False) == []


def test_sampling_with_a_sparse_matrix_is_sampling_with_the_dense_one() -> None:
    dense = matrix(6, 9)
    prior = priors.Gaussian(torch.zeros(1, 3, 3, dtype=F), 1.0)
    y = dense.new_ones(1, 6)
    draws = {}
    for name in ("scipy csr", "torch coo", "pylops"):
        op = from_matrix(FORMS[name](dense))
        draws[name] = posterior.sample(prior, op, y, noise=0.3, method="DDS", steps=8, n=2).draws
    expected = posterior.sample(
        prior, from_matrix(dense), y, noise=0.3, method="DDS", steps=8, n=2
    ).draws
    for name, got in draws.items():
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, msg=name)


def test_names_and_hashes_tell_matrices_apart() -> None:
    one, two = (from_matrix(m.to_sparse_csr()) for m in (matrix(3, 4), 2 * matrix(3, 4)))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(from_matrix(matrix(3, 4).to_sparse_coo()))
    assert "sparse" in repr(one)
    assert "PyLopsLike" in repr(from_matrix(PyLopsLike(matrix(3, 4))))


def no_transpose() -> LinearOperator:
    return LinearOperator((3, 4), matvec=lambda x: x[:3], dtype=float)


def liar() -> LinearOperator:
    return LinearOperator((4, 4), matvec=lambda x: 1j * x, rmatvec=lambda y: y, dtype=np.float64)


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: from_matrix(no_transpose()), CapabilityError, "rmatvec"),
    (lambda: from_matrix(liar())(normal((1, 4))), InputError, "says that it is real"),
    (lambda: from_matrix(linear_operator(matrix(3, 4)), (2, 3)), InputError, "4 elements"),
    (lambda: from_matrix(linear_operator(matrix(3, 4)))(normal((1, 5))), InputError, "takes 4"),
    (lambda: from_matrix(linear_operator(matrix(3, 4))).adjoint(normal((1, 4))), InputError, "B"),
    (lambda: from_matrix(linear_operator(matrix(3, 4)), rtol=0.1), InputError, "rtol"),
    (lambda: from_matrix(linear_operator(matrix(3, 4))).bind((5,)), InputError, "4 elements"),
    (lambda: from_matrix(matrix(3, 4).to_sparse_coo(), (2, 3)), InputError, "4 elements"),
    (lambda: from_matrix(matrix(3, 4).to_sparse_csr())(normal((1, 5))), InputError, "takes 4"),
    (lambda: from_matrix(matrix(3, 4).to_sparse_csr(), rtol=0.1), InputError, "rtol"),
    (lambda: from_matrix((matrix(3, 4) / 0).to_sparse_csr()), InputError, "NaN"),
    (lambda: from_matrix(matrix(3, 4).to_sparse_coo().to("meta")), InputError, "meta"),
    (lambda: from_matrix(matrix(3, 4).to("meta")), InputError, "meta"),
    (lambda: from_matrix(normal((2, 3, 4)).to_sparse_coo()), InputError, r"\(m, d\)"),
    (lambda: from_matrix(normal((3, 4)).to_sparse(1)), InputError, "dense blocks"),
    (lambda: from_matrix(scipy.sparse.csr_array((0, 4))), InputError, r"\(m, d\)"),
    (
        lambda: from_matrix(matrix(3, 4, C).to_sparse_csr())(normal((1, 4), "x", C)),
        InputError,
        "complex_domain",
    ),
    (lambda: to_linear_operator(abs, (4,)), InputTypeError, "Operator"),
    (lambda: to_linear_operator(operators.HDRClipping(), (1, 4, 4)), CapabilityError, "linear"),
    (lambda: to_linear_operator(operators.Identity(), (1, 0)), InputError, "event_shape"),
    (
        lambda: to_linear_operator(operators.Identity(), (4,), dtype="int64"),
        InputTypeError,
        "dtype",
    ),
    (lambda: to_linear_operator(operators.Identity(), (4,), dtype="no"), InputTypeError, "dtype"),
    (lambda: to_linear_operator(operators.MRI(), (1, 4, 4)), InputError, "ComplexFromChannels"),
    (
        lambda: to_linear_operator(from_matrix(matrix(3, 4, C), complex_domain=True), (4,)),
        CapabilityError,
        "takes complex x",
    ),
    (
        lambda: to_linear_operator(
            operators.from_callable(lambda x: x.real + 0j, linear=True), (4,), dtype=complex
        ),
        CapabilityError,
        "complex numbers",
    ),
    (
        lambda: to_linear_operator(operators.Identity(), (4,)).matvec(np.ones(4) * 1j),
        InputError,
        "real vectors",
    ),
    (
        lambda: to_linear_operator(operators.Mask(keep=torch.ones(3, 1, 4, 4)), (1, 4, 4)),
        InputError,
        "3 measurements",
    ),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(number: int) -> None:
    call, kind, message = BAD[number]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


OURS: list[tuple[operators.Operator, tuple[int, ...]]] = [
    (operators.GaussianBlur(0.7), (2, 5, 6)),
    (operators.SuperResolution(2), (1, 6, 4)),
    (from_matrix(matrix(5, 12)), (3, 4)),
    (operators.SubsampledFourier(operators.RandomLines(2)), (1, 5, 6)),  # real x, complex y
    (operators.MRI(coils=2) @ operators.ComplexFromChannels(), (2, 4, 5)),
    (operators.GaussianSensing(0.5), (1, 4, 4)),  # binds
]


@pytest.mark.parametrize("number", range(len(OURS)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scipy_sees_the_operator_and_its_transpose(number: int, dtype: str) -> None:
    op, event = OURS[number]
    there = to_linear_operator(op, event, dtype=dtype)
    x = normal((1, *event), "x", getattr(torch, dtype))
    y = op(x)
    flat = torch.view_as_real(y) if y.is_complex() else y
    assert there.dtype == np.dtype(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-10}
    np.testing.assert_allclose(there @ x.numpy().ravel(), flat.numpy().ravel(), **tolerance)
    d = there.shape[1]
    dense = there @ np.eye(d, dtype=dtype)
    assert dense.shape == there.shape
    back = there.H @ np.eye(there.shape[0], dtype=dtype)
    np.testing.assert_allclose(back, dense.T, atol=1e-5 if dtype == "float32" else 1e-12)


def test_complex_operators_of_complex_x() -> None:
    dense = matrix(3, 4, C)
    there = to_linear_operator(from_matrix(dense, complex_domain=True), (4,), dtype=complex)
    np.testing.assert_allclose(there @ np.eye(4), dense.numpy(), atol=1e-12)
    np.testing.assert_allclose(there.H @ np.eye(3), dense.numpy().conj().T, atol=1e-12)


def test_least_squares_and_singular_values_by_scipy() -> None:
    op = operators.SuperResolution(2, "average")
    x = normal((1, 1, 6, 4))
    y = op(x)
    there = to_linear_operator(op, (1, 6, 4))
    found = lsqr(there, y.numpy().ravel(), atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(found, op.pinv(y).numpy().ravel(), atol=1e-9)
    s = svds(there, k=2, return_singular_vectors=False, random_state=0)
    np.testing.assert_allclose(s, 0.5, atol=1e-9)  # A A' = 1 / 4


def test_there_and_back_again() -> None:
    op = operators.GaussianBlur(0.7)
    again = from_matrix(to_linear_operator(op, (1, 5, 6)), (1, 5, 6))
    x = normal((2, 1, 5, 6))
    torch.testing.assert_close(again(x), op(x).flatten(1))
    assert operators.check(again, (2, 1, 5, 6), verbose=False) == []
