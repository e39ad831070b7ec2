"""The linear solvers: exact where they should be, and clean stops row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posterior.errors import InputError
from posterior.guidance._solve import Outcome, conjugate_gradients, galerkin


def matrices(rows: int, d: int, seed: int = 0, least: float = 0.1) -> Tensor:
    """Symmetric positive definite matrices (rows, d, d), float64."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(rows, d, d, generator=g, dtype=torch.float64)
    return root @ root.mT / d + least * torch.eye(d, dtype=torch.float64)


def product(k: Tensor):
    """Rows times their own matrix."""
    return lambda p: (k.to(p.dtype) @ p[..., None])[..., 0]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5), d=st.integers(1, 8), seed=st.integers(0, 99), size=st.integers(-90, 90)
)
def test_d_iterations_solve(rows: int, d: int, seed: int, size: int) -> None:
    """At most d products, whatever the scale of b: squares neither under- nor overflow."""
    k = matrices(rows, d, seed)
    g = torch.Generator().manual_seed(seed)
    b = torch.randn(rows, d, generator=g, dtype=torch.float64) * 10.0**size
    out = conjugate_gradients(product(k), b, iterations=2 * d, tolerance=1e-12)
    exact = torch.linalg.solve(k, b)
    assert float(((out.x - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 1e-7
    assert (out.outcome == Outcome.CONVERGED).all()


def test_a_projection_and_the_identity_take_one_iteration() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0, -2.0, 3.0]], dtype=torch.float64)
    out = conjugate_gradients(lambda p: mask * p, b, iterations=5, tolerance=1e-12)
    assert out.iterations.tolist() == [1]
    torch.testing.assert_close(out.x, b)


def by_the_book(k: Tensor, b: Tensor, iterations: int, tolerance: float) -> list[Tensor]:
    """Conjugate gradients on one row (Saad 2003, algorithm 6.18): its iterates."""
    x, r, p = torch.zeros_like(b), b, b
    iterates = [x]
    for _ in range(iterations):
        if float(r.norm()) <= tolerance * float(b.norm()):
            break
        a = r @ r / (p @ k @ p)
        x, r_next = x + a * p, r - a * k @ p
        p = r_next + r_next @ r_next / (r @ r) * p
        r = r_next
        iterates.append(x)
    return iterates


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), iterations=st.integers(0, 6), loose=st.booleans())
def test_rows_stop_where_the_book_stops_each(seed: int, iterations: int, loose: bool) -> None:
    """Rows stop at different products, and so does the companion."""
    g = torch.Generator().manual_seed(seed)
    k, b = matrices(4, 6, seed), torch.randn(4, 6, generator=g).double()
    k[1] = torch.eye(6)
    b[2] = 0

    def twice(p: Tensor) -> tuple[Tensor, Tensor]:
        return product(k)(p), 2 * p

    tolerance = 0.1 if loose else 0.0
    out = conjugate_gradients(twice, b, iterations=iterations, tolerance=tolerance)
    expected = [by_the_book(k[i], b[i], iterations, tolerance) for i in range(4)]
    assert out.iterations.tolist() == [len(iterates) - 1 for iterates in expected]
    for x, iterates in zip(out.x, expected, strict=True):
        torch.testing.assert_close(x, iterates[-1], rtol=1e-7, atol=1e-9)
    if iterations == 0:
        assert out.companion is None
        assert out.residual.tolist() == [1, 1, 0, 1]
    else:
        torch.testing.assert_close(out.companion, 2 * out.x)


def test_what_is_not_finite_in_one_row_stops_that_row_alone() -> None:
    """In K p, or in the companion."""
    k, b = matrices(3, 6), torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).double()
    calm = conjugate_gradients(lambda p: (product(k)(p), p), b, iterations=4)
    first = conjugate_gradients(lambda p: (product(k)(p), p), b, iterations=1)
    for where in ("product", "companion"):
        count = {"product": 0, "companion": 0}

        def bad(v: Tensor, what: str, where: str = where, count: dict[str, int] = count) -> Tensor:
            count[what] += 1
            v = v.clone()
            if what == where and count[what] == 2:
                v[1, 0] = torch.nan
            return v

        out = conjugate_gradients(
            lambda p: (bad(product(k)(p), "product"), bad(p, "companion")),
            b,
            iterations=4,
        )
        assert out.outcome.tolist() == [0, Outcome.NOT_FINITE, 0]
        assert out.iterations.tolist() == [4, 1, 4]
        assert out.companion is not None
        for found in (out.x, out.companion):
            assert torch.equal(found[::2], calm.x[::2])
            assert torch.equal(found[1], first.x[1])


def test_rows_do_not_see_each_other() -> None:
    k, b = matrices(3, 6), torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    k[1] = torch.eye(6)  # converges at once
    b[2] = 0
    whole = conjugate_gradients(product(k), b, iterations=4, tolerance=1e-10)
    assert whole.iterations.tolist() == [4, 1, 0]
    for row in range(3):
        one = conjugate_gradients(
            product(k[row : row + 1]), b[row : row + 1], iterations=4, tolerance=1e-10
        )
        assert torch.equal(one.x[0], whole.x[row])
    assert torch.equal(whole.x[2], torch.zeros(6).double())


@pytest.mark.parametrize(
    ("diagonal", "outcome"),
    [
        ([-1.0, -1.0], Outcome.BREAKDOWN),
        ([0.0, 0.0], Outcome.BREAKDOWN),
        ([1.0, float("nan")], Outcome.NOT_FINITE),
        ([1.0, float("inf")], Outcome.NOT_FINITE),
    ],
)
def test_breakdown_keeps_the_last_finite_iterate(diagonal: list[float], outcome: Outcome) -> None:
    k = torch.tensor([diagonal, [2.0, 4.0]], dtype=torch.float64)
    b = torch.ones(2, 2, dtype=torch.float64)
    out = conjugate_gradients(lambda p: k * p, b, iterations=5, tolerance=1e-12)
    assert out.outcome.tolist() == [outcome, Outcome.CONVERGED]
    assert torch.equal(out.x[0], torch.zeros(2).double())
    torch.testing.assert_close(out.x[1], torch.tensor([0.5, 0.25]).double())


def test_a_right_hand_side_that_is_not_finite() -> None:
    b = torch.tensor([[1.0, float("nan")], [1.0, 1.0]])
    out = conjugate_gradients(lambda p: 2 * p, b, iterations=3)
    assert out.outcome[0] == Outcome.NOT_FINITE
    assert torch.isnan(out.flagged(out.x)[0]).all()
    torch.testing.assert_close(out.flagged(out.x)[1], torch.tensor([0.5, 0.5]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), d=st.integers(2, 10), rank=st.integers(0, 9))
def test_singular_and_inconsistent_systems_end_no_worse_than_they_began(
    seed: int, d: int, rank: int
) -> None:
    """scipy's runs on to a residual of 1e7 here. The recurrence's residual is the true one."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(1, d, min(rank, d - 1), generator=g, dtype=torch.float64)
    k, b = root @ root.mT, torch.randn(1, d, generator=g, dtype=torch.float64)
    out = conjugate_gradients(own_companion(k), b, iterations=300)
    assert out.outcome.item() in (Outcome.BREAKDOWN, Outcome.CONVERGED)
    left = (b - product(k)(out.x)).norm() / b.norm()
    assert left <= 1 + 0.02 * d  # the rounding that is let in, per product
    assert abs(float(out.residual - left)) < 0.02 * d
    torch.testing.assert_close(out.companion, out.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_singular_systems_in_single_precision(dtype: torch.dtype) -> None:
    """To rounding by default where b is in the range, and no further than x = 0 where it is not."""
    g = torch.Generator().manual_seed(3)
    root = torch.randn(6, 8, 3, generator=g, dtype=dtype)
    k = root @ root.mH
    inside = product(k)(torch.randn(6, 8, generator=g, dtype=dtype))
    out = conjugate_gradients(product(k), inside, iterations=300)
    left = (inside - product(k)(out.x)).norm(dim=1) / inside.norm(dim=1)
    assert float(left.max()) < 1e-4
    b = torch.randn(6, 8, generator=g, dtype=dtype)
    out = conjugate_gradients(product(k), b, iterations=300)
    left = (b - product(k)(out.x)).norm(dim=1) / b.norm(dim=1)
    assert float(left.max()) <= 1.1


@pytest.mark.parametrize("weight", [1e2, 1e5, 1e8])
def test_damped_systems_are_not_taken_for_singular(weight: float) -> None:
    """I + w A'A in float32, A from a mask to a blur that leaves a ten thousandth."""
    g = torch.Generator().manual_seed(1)
    for least in (0.0, 1e-4, 0.3):
        squares = torch.logspace(-8, 0, 40).clamp(min=least**2)
        squares[20:] = 1.0
        k = 1 + weight * squares
        b = weight * squares.sqrt() * torch.randn(3, 40, generator=g)
        out = conjugate_gradients(lambda p, k=k: k * p, b, iterations=20)
        assert (out.outcome != Outcome.BREAKDOWN).all()


def systems() -> dict[str, Tensor]:
    """Positive definite matrices (1, d, d), easy and hard, float64 and complex128."""
    second = 2 * torch.eye(12) - torch.eye(12).roll(1, 0).tril() - torch.eye(12).roll(-1, 0).triu()
    line = second.double()
    line[0, -1] = line[-1, 0] = 0
    eye = torch.eye(12, dtype=torch.float64)
    root = torch.randn(12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.complex128)
    return {
        "identity": eye[None],
        "line": line[None],
        "plane": (torch.kron(line, eye) + torch.kron(eye, line))[None],
        "random": matrices(1, 12, seed=5),
        "condition 1e4": torch.diag(torch.logspace(0, 4, 12, dtype=torch.float64))[None],
        "condition 1e8": torch.diag(torch.logspace(0, 8, 12, dtype=torch.float64))[None],
        "hermitian": (root @ root.mH + torch.eye(12))[None],
    }


@pytest.mark.parametrize("name", systems())
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_positive_definite_systems_are_solved_to_the_true_residual(
    name: str, single: bool, scale: float
) -> None:
    """To 1e-8 in float64 and 1e-2 in float32, on any scale of K; the identity in one product."""
    k = scale * systems()[name]
    if single and name == "condition 1e8":  # is singular in float32
        k = k[:, :6, :6]
    if single:
        k = k.to(torch.complex64 if k.is_complex() else torch.float32)
    d = k.shape[-1]
    b = torch.randn(1, d, generator=torch.Generator().manual_seed(6), dtype=k.dtype)
    tolerance = 1e-2 if single else 1e-8
    out = conjugate_gradients(product(k), b, iterations=10 * d, tolerance=tolerance)
    assert out.outcome.item() == Outcome.CONVERGED
    assert name != "identity" or out.iterations.item() == 1
    true = (b - product(k)(out.x)).norm() / b.norm()
    assert float(true) <= tolerance


@pytest.mark.parametrize("tolerance", [-1e-9, float("nan")])
def test_a_tolerance_that_is_none(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance must be >= 0"):
        conjugate_gradients(lambda p: p, torch.ones(1, 2), iterations=1, tolerance=tolerance)


def test_complex_rows_and_a_companion() -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=g, dtype=torch.complex128)
    k = root @ root.mH + torch.eye(4)
    b = torch.randn(2, 4, generator=g, dtype=torch.complex128)
    out = conjugate_gradients(lambda p: (p @ k.T, 3 * p.real), b, iterations=12, tolerance=1e-13)
    torch.testing.assert_close(out.x, torch.linalg.solve(k, b.T).T)
    torch.testing.assert_close(out.companion, 3 * out.x.real)


def own_companion(k: Tensor):
    """The product with p itself as companion: what comes back is x."""
    return lambda p: (product(k)(p), p)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_galerkin_is_conjugate_gradients_where_those_are_right(iterations: int) -> None:
    k, shift = matrices(3, 6), torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    b = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shifted = k + shift[:, None, None] * torch.eye(6)
    expected = conjugate_gradients(product(shifted), b, iterations=iterations).x
    x = galerkin(own_companion(k), b, shift, iterations=iterations)
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(
    d=st.integers(2, 8),
    seed=st.integers(0, 999),
    iterations=st.integers(1, 10),
    preconditioned=st.booleans(),
)
def test_galerkin_is_bounded_whatever_the_matrix(
    d: int, seed: int, iterations: int, preconditioned: bool
) -> None:
    """|x| <= |b| / shift even where K is neither symmetric nor positive; more products than d."""
    g = torch.Generator().manual_seed(seed)
    k, m = 10 * torch.randn(2, 2, d, d, generator=g, dtype=torch.float64)
    b = torch.randn(2, d, generator=g, dtype=torch.float64)
    shift = torch.tensor([0.1, 1.0], dtype=torch.float64)
    precondition = product(m) if preconditioned else None
    x = galerkin(own_companion(k), b, shift, iterations=iterations, precondition=precondition)
    assert (x.norm(dim=1) <= (1 + 1e-9) * b.norm(dim=1) / shift).all()


@pytest.mark.parametrize("k", [[[0.0, -3.0], [3.0, 0.0]], [[-3.0, 0.0], [0.0, -3.0]]])
def test_galerkin_measures_a_product_that_turns_or_flips_by_its_size(k: list[list[float]]) -> None:
    """A quarter turn by 3 and a flip by 3 have <p, K p> = 0 and < 0; both count as 3."""
    b = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    shift = torch.ones(1, dtype=torch.float64)
    x = galerkin(own_companion(torch.tensor([k]).double()), b, shift, iterations=2)
    torch.testing.assert_close(x, b / 4)


def test_galerkin_rows_do_not_see_each_other_and_stop_cleanly() -> None:
    k, b = matrices(5, 6), torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()
    k[1] = torch.eye(6)  # the space is exhausted at once
    b[2] = 0
    k[3, 2, 2] = torch.nan
    b[4, 0] = torch.inf
    shift = torch.full((5,), 0.3, dtype=torch.float64)
    m = matrices(5, 6, seed=3)
    m[1] = torch.eye(6)
    for preconditioned in (True, False):
        whole = galerkin(
            own_companion(k), b, shift, iterations=4,
            precondition=product(m) if preconditioned else None,
        )  # fmt: skip
        for row in range(5):
            part = slice(row, row + 1)
            one = galerkin(
                own_companion(k[part]), b[part], shift[part], iterations=4,
                precondition=product(m[part]) if preconditioned else None,
            )  # fmt: skip
            assert torch.equal(one[0].nan_to_num(7.0), whole[row].nan_to_num(7.0))
    torch.testing.assert_close(whole[1], b[1] / 1.3)
    assert torch.equal(whole[2], torch.zeros(6).double())
    assert whole[3:].isnan().all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_galerkin_with_the_inverse_as_preconditioner_takes_one_product(scale: float) -> None:
    """And with any other as many as the space has dimensions."""
    k, shift = matrices(3, 6), torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    b = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shifted = k + shift[:, None, None] * torch.eye(6)
    exact = torch.linalg.solve(shifted, b)
    perfect = scale * torch.linalg.inv(shifted)
    for m, products in ((perfect, 1), (scale * matrices(3, 6, seed=2), 6)):
        x = galerkin(own_companion(k), b, shift, iterations=products, precondition=product(m))
        torch.testing.assert_close(x, exact, rtol=1e-8, atol=1e-10)


def test_galerkin_keeps_out_of_directions_that_are_not_seen() -> None:
    """No shift and a singular K: the part of b in its range is solved."""
    k = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))[None]
    b = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    x = galerkin(own_companion(k), b, torch.zeros(1).double(), iterations=3)
    torch.testing.assert_close(x, torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_galerkin_stops_where_the_space_is_exhausted(dtype: torch.dtype, iterations: int) -> None:
    """K b = 0.7 b: what rounding leaves of b is no direction, however asymmetric K is elsewhere."""
    g = torch.Generator().manual_seed(0)
    b = torch.randn(1, 64, generator=g, dtype=torch.float64)
    unit = b[0] / b[0].norm()
    aside = torch.eye(64, dtype=torch.float64) - torch.outer(unit, unit)
    k = torch.randn(64, 64, generator=g, dtype=torch.float64) @ aside + 0.7 * torch.outer(
        unit, unit
    )
    shift = torch.full((1,), 0.1, dtype=dtype)
    for precondition in (None, lambda v: 3 * v):
        x = galerkin(
            own_companion(k[None].to(dtype)), b.to(dtype), shift, iterations=iterations,
            precondition=precondition,
        )  # fmt: skip
        torch.testing.assert_close(x.double(), b / 0.8, rtol=2e-5, atol=2e-5)


def test_galerkin_of_complex_rows() -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=g, dtype=torch.complex128)
    k = root @ root.mH
    b = torch.randn(2, 4, generator=g, dtype=torch.complex128)
    one = torch.ones(2, dtype=torch.float64)
    x = galerkin(lambda p: (p @ k.T, p), b, one, iterations=8)
    torch.testing.assert_close(x, torch.linalg.solve(k + torch.eye(4), b.T).T)
