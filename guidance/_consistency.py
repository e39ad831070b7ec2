"""Data consistency without the network: the linear system that DDS and DAPS share.

With x0 ~ N(m, v I) and y = A x0 + n, n ~ N(0, N), the posterior mean is m + d(y - A m), where

    (I + v A' N^-1 A) d(r) = v A' N^-1 r

and a draw of the posterior is the same with everything perturbed (perturb and optimise,
Papandreou & Yuille 2010): x = m' + d(y + n' - A m') with m' ~ N(m, v I) and n' ~ N(0, N). Without
noise d(r) tends to A^+ r, which conjugate gradients on A' A find.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from posterior.errors import CapabilityError
from posterior.guidance._solve import conjugate_gradients
from posterior.operators.base import Operator
from posterior.schedules import Level


def estimate_variance(t: Level, spread: float) -> float:
    """Variance v of an entry of x0 given x_t, were x0 white with standard deviation `spread`.

    1 / v = 1 / spread^2 + (alpha / sigma)^2; infinite spread leaves (sigma / alpha)^2.
    """
    precision = (t.alpha / t.sigma) ** 2 + (0.0 if math.isinf(spread) else 1 / spread**2)
    return 1 / precision if precision > 0 else math.inf


def photograph_variance(t: Level, range_: tuple[float, float] | None, detail: float = 0.2) -> float:
    """Squared error of E[x0 | x_t] in an entry, where x0 is a photograph.

    In units of half the range (of 1 where there is none), with u = sigma / alpha,

        1 / v = 1 / u^2 + 1 / (detail^2 u) + 1 / 0.6^2

    The second term is the law of images with edges, whose squared error of denoising falls like the
    noise, not its square (Mallat, "A wavelet tour of signal processing", 2009, ch. 11); the third
    bounds it where there is hardly any signal. With `detail` 0.15 the root is within 8 % of the
    root mean square error of the bundled prior, u from 0.005 to 60
    (`benchmarks/estimate_error.py`). The default is larger, for photographs with more detail than
    most: too small costs more than too large, since detail is then taken for noise.
    """
    scale = 1.0 if range_ is None else (range_[1] - range_[0]) / 2
    signal = scale * t.alpha / t.sigma
    return scale**2 / (signal**2 + signal / detail**2 + 1 / 0.6**2)


def consistent(
    operator: Operator,
    r: Tensor,
    weight: float | Tensor | None,
    *,
    iterations: int,
    tolerance: float | None = None,
) -> Tensor:
    """The correction d(r), (B, *event), by conjugate gradients.

    Args:
        operator: linear.
        r: residual y - A m, (B, *range).
        weight: v N^-1, a number or broadcasting against y; None for the noiseless limit.
        iterations, tolerance: of conjugate gradients.
    """
    product: Callable[[Tensor], Tensor]
    if weight is None:
        product, right = operator.normal, operator.adjoint(r)
    elif isinstance(weight, Tensor):
        product, right = _weighted(operator, weight), operator.adjoint(weight * r)
    else:
        product, right = _damped(operator, weight), operator.adjoint(weight * r)
    solution = conjugate_gradients(product, right, iterations=iterations, tolerance=tolerance)
    return solution.flagged(solution.x)


def _weighted(operator: Operator, weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda d: d + operator.adjoint(weight * operator(d))


def _damped(operator: Operator, weight: float) -> Callable[[Tensor], Tensor]:
    return lambda d: (weight * operator.normal(d)).add_(d)


def noise_weight(v: float, variance: float | Tensor, who: str) -> float | Tensor | None:
    """v N^-1; None where there is no noise anywhere."""
    if isinstance(variance, Tensor):
        if bool((variance == 0).all()):
            return None
        if bool((variance == 0).any()):
            raise CapabilityError(f"{who} needs a noise std > 0 in every entry of y, or 0 in all")
    elif variance == 0:
        return None
    if math.isinf(v):
        raise CapabilityError(
            f"{who} needs a finite spread at a level without signal, where alpha = 0"
        )
    return v / variance


def perturbation(z: Tensor, variance: float | Tensor) -> Tensor:
    """n' ~ N(0, N) from standard normal z shaped like y."""
    return z * (variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance))
