"""Row arithmetic: a row alone equals the row in a batch, bit for bit."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch

from posterior import rows
from posterior.errors import CapabilityError

DTYPES = [torch.float32, torch.float64, torch.complex128]
PLACES = [(0, 1), (3, 1), (7, 2), (1, 3), (30, 5), (0, 16), (9, 17), (11, 100)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 3


def assert_row_invariant(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    whole = f(x)
    for start, count in PLACES:
        alone = f(x[start : start + count].clone())
        assert torch.equal(alone, whole[start : start + count]), (start, count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "m"), [(1, 1), (2, 3), (5, 7), (8, 25), (9, 5), (31, 33), (80, 25), (257, 16), (801, 9)]
)
@pytest.mark.usefixtures("threads")
def test_product_and_its_gradient_are_row_invariant(d: int, m: int, dtype: torch.dtype) -> None:
    x = random(150, d, dtype=dtype)
    for matrix in (random(d, m, dtype=dtype), random(m, d, dtype=dtype).T):

        def pulled(x: torch.Tensor, matrix: torch.Tensor = matrix) -> torch.Tensor:
            leaf = x.clone().requires_grad_()
            y = rows.matmul(leaf, matrix)
            return torch.autograd.grad(y, leaf, y.detach())[0]

        assert_row_invariant(lambda v, matrix=matrix: rows.matmul(v, matrix), x)
        assert_row_invariant(pulled, x)


def test_bare_product_is_not_row_invariant_here() -> None:
    """Why the helper exists; if this ever fails, the padding may go."""
    x, matrix = random(150, 257, dtype=torch.float64), random(9, 257, dtype=torch.float64).T
    whole = x @ matrix
    different = [
        not torch.equal(x[k : k + 1].clone() @ matrix, whole[k : k + 1]) for k in range(20)
    ]
    if not any(different):
        pytest.skip("this machine's matrix product is row invariant")


def test_product_equals_the_plain_one_and_its_gradient() -> None:
    x, matrix = random(5, 7, dtype=torch.float64), random(7, 3, dtype=torch.float64)
    assert torch.allclose(rows.matmul(x, matrix), x @ matrix, rtol=1e-14, atol=1e-13)
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: rows.matmul(v, matrix), leaf)
    z = random(4, 7, dtype=torch.complex128).requires_grad_()
    complex_matrix = random(7, 3, dtype=torch.complex128)
    assert torch.autograd.gradcheck(lambda v: rows.matmul(v, complex_matrix), z)
    with pytest.raises(CapabilityError):
        rows.matmul(x, matrix.requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (1023,), (1024,), (1025,), (3, 40, 40)])
@pytest.mark.usefixtures("threads")
def test_sums_are_row_invariant(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random(150, *shape, dtype=dtype)
    for f in (rows.total, rows.norm, lambda v: rows.dot(v, v)):
        assert_row_invariant(f, x)
    exact = x.double().flatten(1).sum(1)
    assert torch.allclose(rows.total(x).double(), exact, atol=1e-5 * x.abs().sum(1).max().item())


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.usefixtures("threads")
def test_functions_that_rows_may_use(dtype: torch.dtype) -> None:
    """The module's list of functions whose result does not depend on the place in the tensor."""
    for width in (1, 3, 7, 25, 33):
        x = random(400, width, dtype=dtype).abs() + 0.1
        assert_row_invariant(torch.erfinv, 2 * (x / (x + 1)) - 1)
        for f in (torch.exp, torch.log, torch.log1p, torch.expm1, torch.sin, torch.cos,
                  torch.tanh, torch.erf, torch.sqrt, lambda v: 1 / v, lambda v: v**2,
                  lambda v: torch.softmax(v, 1), lambda v: torch.logsumexp(v, 1)):  # fmt: skip
            assert_row_invariant(f, x)


def test_complex_inner_product_is_the_real_part() -> None:
    u, v = random(3, 4, dtype=torch.complex128), random(3, 4, dtype=torch.complex128, seed=1)
    assert torch.allclose(rows.dot(u, v), (u.conj() * v).sum(1).real)
    assert torch.allclose(rows.norm(u), torch.linalg.vector_norm(u, dim=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, complex(0, math.nan)])
def test_finite_sees_a_single_element(bad: complex) -> None:
    """Also beside numbers whose modulus would overflow."""
    dtype = torch.complex64 if isinstance(bad, complex) else torch.float32
    x = torch.full((3, 2, 5), torch.finfo(torch.float32).max, dtype=dtype)
    x = torch.complex(x.real, x.real) if x.is_complex() else x
    x[1, 1, 3] = bad
    assert rows.finite(x).tolist() == [True, False, True]
    assert rows.largest(x)[::2].tolist() == [torch.finfo(torch.float32).max] * 2
    assert rows.finite(x[:, :0]).tolist() == [True] * 3
    assert rows.finite(x[:0]).tolist() == []
    assert rows.finite(x.conj()).tolist() == [True, False, True]
    assert rows.finite(torch.ones(2, 3, dtype=torch.bool)).tolist() == [True, True]


def test_small_helpers() -> None:
    x = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    assert rows.finite(x).tolist() == [False, True]
    kept = rows.where(rows.finite(x), x, torch.zeros_like(x))
    assert kept.tolist() == [[0, 0], [2, 3]]
    assert rows.expand(0.5, x) == 0.5
    assert tuple(rows.expand(torch.ones(2), torch.zeros(2, 3, 4)).shape) == (2, 1, 1)
    assert rows.total(torch.zeros(3, 0)).tolist() == [0, 0, 0]
    assert rows.total(torch.ones(3)).tolist() == [1, 1, 1]
