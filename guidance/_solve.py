"""Linear systems in Krylov spaces, row by row: the solvers of all methods.

Conjugate gradients (Hestenes & Stiefel 1952) where K is symmetric and positive (semi-)definite for
Re<u, v> by construction; a Galerkin solve on an orthonormal basis (Arnoldi 1951, Saad 1981) where
it is so only up to the errors of a network. Rows know nothing of each other: one that has
converged, or where a method breaks down, keeps its iterate, bit for bit, while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import InputError

Matvec = Callable[[Tensor], Tensor]


class Outcome(IntEnum):
    """Why a row stopped."""

    ITERATIONS = 0
    """It made all the iterations that it was given."""
    CONVERGED = 1
    """Its residual fell below the tolerance."""
    BREAKDOWN = 2
    """K is not positive definite along p, or the residual grew a thousandfold, or x so much that
    the rounding of K x is a hundredth of b, as they do when K is singular and b outside its range;
    the iterate before is kept, or x = 0 where the recurrence says that it leaves less."""
    NOT_FINITE = 3
    """K p or b is not finite; the last finite iterate is kept."""


@dataclass(frozen=True)
class Solution:
    """Rows x with K x ~ b.

    Attributes:
        x: (B, *shape).
        companion: sum of the second results of the products, weighted as x is; None without them.
        outcome: (B,) an `Outcome` for each row.
        iterations: (B,) products that went into x.
        residual: (B,) |b - K x| / |b| by the recurrence; 0 where b = 0.
    """

    x: Tensor
    companion: Tensor | None
    outcome: Tensor
    iterations: Tensor
    residual: Tensor

    def flagged(self, values: Tensor) -> Tensor:
        """`values` (B, ...), nan in the rows that met something not finite: the sampler sees it."""
        return rows.where(self.outcome != Outcome.NOT_FINITE, values, torch.nan * values)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]],
    b: Tensor,
    *,
    iterations: int,
    tolerance: float | None = None,
) -> Solution:
    """Solve K x = b from x = 0.

    Args:
        product: p -> K p, or p -> (K p, q) with q linear in p: the same combination of the q that x
            is of the p comes back as `companion`, at no further product.
        b: (B, *shape), real or complex.
        iterations: at most so many products.
        tolerance: a row stops when |b - K x| <= tolerance |b|; >= 0. None: at rounding, ten units
            in the last place of the dtype.

    Raises:
        InputError: the tolerance is negative or nan.

    The iterations stop early when no row goes on. Rows are scaled by their largest element first,
    so that neither tiny nor huge right-hand sides under- or overflow in the squares.
    """
    if tolerance is None:
        tolerance = 10 * torch.finfo(b.dtype).eps
    if not tolerance >= 0:
        raise InputError(f"tolerance must be >= 0 or None, got {tolerance!r}")
    size = rows.largest(b)
    fine = torch.isfinite(size)
    scale = torch.where(fine & (size > 0), size, torch.ones_like(size))
    r = rows.where(fine, b / rows.expand(scale, b), torch.zeros_like(b))
    rho = rows.dot(r, r)
    whole = rho.sqrt()
    x = torch.zeros_like(r)
    companion: Tensor | None = None
    p, p_square = r, rho
    going = fine & (whole > 0)
    outcome = torch.where(going, Outcome.ITERATIONS, Outcome.CONVERGED)
    outcome = torch.where(fine, outcome, Outcome.NOT_FINITE)
    made = torch.zeros_like(outcome)
    left, goal, limit = whole, tolerance * whole, 1e3 * whole
    steepest, reach = torch.zeros_like(whole), torch.zeros_like(whole)  # <= |K| and >= |x|
    most = 0.01 * whole / torch.finfo(whole.dtype).eps
    if not bool(going.any()):
        iterations = 0
    for count in range(1, iterations + 1):
        out = product(p)
        k_p, q = out if isinstance(out, tuple) else (out, None)
        curvature = rows.dot(p, k_p)  # not finite where an element of K p is not
        a = rho / curvature
        r_next = _plus(r, -a, k_p)
        rho_next = rows.dot(r_next, r_next)
        p_size = p_square.sqrt()
        steepest = torch.maximum(steepest, (rho + rho_next).sqrt() / (a * p_size))  # |K p| / |p|
        reach = reach + a * p_size
        left_next = rho_next.sqrt()
        finite = torch.isfinite(curvature)
        if q is not None:
            finite = finite & rows.finite(q)
        sound = (curvature > 0) & (left_next <= limit) & (steepest * reach <= most)
        reached = torch.where(left_next <= goal, Outcome.CONVERGED, Outcome.ITERATIONS)
        reached = torch.where(sound, reached, Outcome.BREAKDOWN)
        reached = torch.where(finite, reached, Outcome.NOT_FINITE)
        step = going & finite & sound  # the rows that move; in the others a may be anything
        outcome = torch.where(going, reached, outcome)
        made = made + step
        left = torch.where(step, left_next, left)
        r = rows.where(step, r_next, r)
        x = rows.where(step, _plus(x, a, p), x)
        if q is not None:
            before = torch.zeros_like(q) if companion is None else companion
            companion = rows.where(step, _plus(before, a, q), before)
        going = outcome == Outcome.ITERATIONS
        if count == iterations or not bool(going.any()):
            break
        beta = torch.where(going & (rho > 0), rho_next / rho, 0)
        p, rho, p_square = _plus(r, beta, p), rho_next, rho_next + beta * beta * p_square
    worse = (outcome == Outcome.BREAKDOWN) & (left > whole)
    scale, made = torch.where(worse, 0, scale), torch.where(worse, 0, made)
    left = torch.where(worse, whole, left)
    return Solution(
        x * rows.expand(scale, x),
        None if companion is None else companion * rows.expand(scale, companion),
        outcome,
        made,
        torch.where(whole > 0, left / torch.where(whole > 0, whole, 1), 0),
    )


def galerkin(
    product: Callable[[Tensor], tuple[Tensor, Tensor]],
    b: Tensor,
    shift: Tensor,
    *,
    iterations: int,
    precondition: Matvec | None = None,
) -> Tensor:
    """Solve (shift I + K) x = b roughly, for a K that is symmetric and positive but for errors.

    On an orthonormal basis V of the Krylov space of b, or of what M makes of it, the product is the
    small matrix H = V' K V, and in its place the mean |H| of its polar factors (H'H)^(1/2) and
    (HH')^(1/2) is solved. With no errors |H| = H and x is the iterate of conjugate gradients. With
    errors these lose their orthogonality and may diverge, while here |x| <= |b| / shift, and a
    direction that K turns or flips gets a step by the size of K's answer.

    Args:
        product: p -> (K p, q), q linear in p.
        b: (B, *shape), real or complex.
        shift: (B,), >= 0; where it is 0, directions in which K vanishes get no solution.
        iterations: products, the dimension of the space; as many tensors like p and q are kept.
        precondition: v -> M v, close to the inverse of shift I + K, of what is left of b. It need
            be neither linear nor symmetric: any directions will do.

    Returns:
        The q of x, (B, ...): the same combination of the q that x is of the p. nan in the rows in
        which something is not finite.
    """
    size = rows.norm(b)
    unit = _unit(b, size)  # squares of tiny or huge numbers would under- or overflow
    basis: list[Tensor] = []
    products: list[Tensor] = []
    companions: list[Tensor] = []
    H = b.new_zeros(b.shape[0], iterations, iterations, dtype=torch.float64)
    right = b.new_zeros(b.shape[0], iterations, dtype=torch.float64)
    left = unit
    for j in range(iterations):
        v = _orthonormal(left if precondition is None else precondition(left), basis)
        k_v, q = product(v)
        basis.append(v)
        products.append(k_v)
        companions.append(q)
        for i in range(j + 1):
            H[:, i, j] = rows.dot(basis[i], k_v)
            H[:, j, i] = rows.dot(v, products[i])
        right[:, j] = rows.dot(v, unit)
        weights = _projected(H[:, : j + 1, : j + 1], right[:, : j + 1], shift.double())
        if j + 1 < iterations:
            left, largest = unit, rows.norm(unit)
            for weight, v, k_v in zip(
                weights.to(size.dtype).unbind(1), basis, products, strict=True
            ):
                part = rows.expand(weight, v) * (k_v + rows.expand(shift.to(size.dtype), v) * v)
                left, largest = left - part, torch.maximum(largest, rows.norm(part))
            left = _unless_rounding(left, largest)
    scaled = (size.double()[:, None] * weights).to(size.dtype)
    each = zip(scaled.unbind(1), companions, strict=True)
    return reduce(torch.add, (rows.expand(weight, q) * q for weight, q in each))


def _projected(H: Tensor, right: Tensor, shift: Tensor) -> Tensor:
    """(shift I + |H|)^-1 right, (B, k), of (B, k, k) and (B, k); nan where H is not finite."""
    fine = torch.isfinite(H).all(-1).all(-1)
    H = torch.where(fine[:, None, None], H, 0)
    U, singular, Wt = torch.linalg.svd(H)
    absolute = (U * singular[:, None]) @ U.mT + (Wt.mT * singular[:, None]) @ Wt
    values, vectors = torch.linalg.eigh(absolute / 2)
    values = values.clamp(min=0)
    total = values + shift[:, None]
    solvable = total > 1e-12 * values[:, -1:]
    inverse = torch.where(solvable, 1 / torch.where(solvable, total, 1), 0)
    coordinates = inverse * (vectors * right[:, :, None]).sum(1)
    weights = (vectors * coordinates[:, None]).sum(-1)
    return torch.where(fine[:, None], weights, torch.nan)


def _orthonormal(v: Tensor, basis: list[Tensor]) -> Tensor:
    """v without its part in the span of the basis, to unit length; 0 where nothing is left."""
    before = rows.norm(v)
    for _ in range(2):  # once leaves rounding errors that a second time removes
        for u in basis:
            v = v - rows.expand(rows.dot(u, v), v) * u
    v = _unless_rounding(v, before)
    return _unit(v, rows.norm(v))


def _unless_rounding(v: Tensor, before: Tensor) -> Tensor:
    """v, and 0 where it is what rounding leaves of norms `before` (B,): that is no direction."""
    left = rows.norm(v)
    rounding = left <= 100 * torch.finfo(left.dtype).eps * before
    return rows.where(~rounding, v, torch.zeros_like(v))


def _unit(v: Tensor, norm: Tensor) -> Tensor:
    """v over its norm (B,); 0 where that is 0."""
    return v * rows.expand(torch.where(norm > 0, 1 / norm, 0), v)


def _plus(x: Tensor, a: Tensor, p: Tensor) -> Tensor:
    """x + a p with a number for each row, (B,), in one new tensor."""
    return (rows.expand(a, p) * p).add_(x)
