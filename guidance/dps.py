"""Diffusion posterior sampling.

H. Chung, J. Kim, M. T. McCann, M. L. Klasky, J. C. Ye, "Diffusion posterior sampling for general
noisy inverse problems", ICLR 2023, arXiv 2209.14687. p(y | x_t) is replaced by p(y | x0(x_t)) with
x0(x_t) = E[x0 | x_t], and its gradient flows through the network.

With r = y - A(x0), J = dx0/dx_t, C = (sigma^2 / alpha) J the covariance of x0 given x_t:

    likelihood      a step from t to s
    "norm"          x_s = move(x0) - zeta grad ||r||                      algorithm 1
    "poisson"       x_s = move(x0) - zeta / ||r|| grad(r' Lambda r),      eq. 19, r and y in counts
                    Lambda = diag(1 / (2 y))
    "poisson-code"  x_s = move(x0) - zeta grad ||r|| mean(1 / |y|)        the published code;
                    |y| >= half a count, its least value at the code's 255 counts
    "gaussian"      x_s = move(x0 + C A' u),  u ~ (N + A C A')^-1 r       the likelihood's own scale

The first three are tuned steps: they do not know the noise level and do not sample the posterior
(with A = I they end at a distance of about zeta / 2 from y, whatever the noise). The last is the
exact guided estimate of a Gaussian posterior when (N + A C A') r is parallel to r, where N is the
covariance of the noise; u = lambda r with lambda = <r, r> / <r, (N + A C A') r>, the first step of
conjugate gradients, costs one product with A beyond what DPS needs anyway. (Where the entries of y
have variances of their own, r is weighted by them first.) For a linear A the direction is not r but
(N + v A A')^-1 r with a number v for C (`_moments`): r where A A' is a multiple of I, and where it
is not, as for a blur, what else would take many steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, unknown_name
from posterior.estimates import Estimate, Pull
from posterior.guidance._editing import PartWay, moves
from posterior.guidance._moments import guided_correction
from posterior.guidance.base import State, Step
from posterior.operators.noise import PoissonNoise
from posterior.priors.base import Prior
from posterior.problem import Problem
from posterior.streams import Noise
from posterior.transitions import LearnedVariance

Likelihood = Literal["norm", "poisson", "poisson-code", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class DPS(PartWay):
    """Diffusion posterior sampling.

    Args:
        likelihood: which step, see the module. "gaussian" knows the noise level.
        scale: zeta, or the factor of the guided correction for "gaussian". None is our default: 1
            for "gaussian", `default_zeta` for "norm", 0.3 of that for the others (published: 0.3
            where "norm" has 1).
        clamp: clamp x0 to the prior's range as the published code does; saturated pixels then get
            no gradient.
        inner_steps: of conjugate gradients with a linear operator alone, two products with A each,
            that turn the direction of "gaussian"; 0 keeps to r, and the other forms do not use it.
        strength: the share of the steps that is made, in (0, 1]; below 1 the run starts from the
            noised source, which must then be given (an edit).

    The gradient is taken with respect to x_t and applied to x_s, per row: norms are over one draw.
    """

    likelihood: Likelihood = "gaussian"
    scale: float | None = None
    clamp: bool = False
    inner_steps: int = 10

    needs: ClassVar[frozenset[str]] = frozenset(
        {"measurement", "network gradient", "operator gradient"}
    )
    when: ClassVar[str] = "any differentiable operator, linear or not"
    paper: ClassVar[str] = "Chung et al., ICLR 2023, arXiv 2209.14687"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.likelihood not in get_args(Likelihood):
            raise unknown_name("likelihood", self.likelihood, get_args(Likelihood))
        scale = self.scale
        if scale is not None and not 0 <= scale < math.inf:
            raise InputError(f"scale must be a number >= 0 or None, got {scale!r}")
        if self.inner_steps < 0:
            raise InputError(f"inner_steps must be an integer >= 0, got {self.inner_steps!r}")

    @staticmethod
    def preset(name: str) -> DPS:
        """Published settings, e.g. "paper/ffhq/motion-blur"; see `PRESETS`.

        "paper/..." are the scales of the paper's appendix, "code/..." those of the repository's
        configuration files, which differ. All have 1000 steps, x0 clamped, the learned variance
        where the prior has one, and measured the noise of 0.05 in [-1, 1].
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        return DPS(
            likelihood="poisson" if "/poisson-" in name else "norm",
            scale=PRESETS[name],
            clamp=True,
            transition=LearnedVariance(required=False),
            spacing="trailing",
            default_steps=1000,
        )

    def check(self, problem: Problem) -> None:
        """The noise model must be one that the likelihood can use."""
        super().check(problem)
        _, _, noise_model = problem.measured()
        if self.likelihood.startswith("poisson") and not isinstance(noise_model, PoissonNoise):
            raise CapabilityError(
                f'DPS(likelihood="{self.likelihood}") needs PoissonNoise; for Gaussian noise take'
                ' likelihood="gaussian" or "norm"'
            )
        check_variance(problem, "DPS")

    def vjps(self, steps: int) -> int:
        """One backward pass for each step that is made; none when scale = 0."""
        return 0 if self.scale == 0 else moves(steps, self.strength)

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Estimate with gradient, residual, correct, move."""
        x = state["x"]
        estimate, pull = estimate_with_gradient(
            problem.prior, x, step.t.t, gradient=self.scale != 0, clamp=self.clamp
        )
        if pull is None:
            return {"x": self.move(problem, estimate, step, noise, state), "x0": estimate.x0}

        if self.likelihood == "gaussian":
            scale = 1.0 if self.scale is None else self.scale
            correction = guided_correction(problem, estimate.x0, step.t, pull, 1, self.inner_steps)
            x0 = estimate.x0 + scale * correction
            guided = estimate.with_x0(x0)
            return {"x": self.move(problem, guided, step, noise, state), "x0": x0}

        operator, y, _ = problem.measured()
        a_x0, pull_operator = operator.vjp(estimate.x0)
        ascent = self._ascent(y - a_x0, y, problem)  # minus the derivative by A(x0)
        zeta = self.scale
        if zeta is None:
            steps = round(step.steps / self.strength)  # of the whole grid
            zeta = default_zeta(x, steps) * (1.0 if self.likelihood == "norm" else 0.3)
        x_s = self.move(problem, estimate, step, noise, state)
        return {"x": x_s + zeta * pull(pull_operator(ascent)), "x0": estimate.x0}

    def _ascent(self, r: Tensor, y: Tensor, problem: Problem) -> Tensor:
        """Minus the derivative of the loss with respect to A(x0); 0 where r = 0."""
        unit = unit_rows(r)
        if self.likelihood == "norm":
            return unit
        _, _, noise_model = problem.measured()
        if self.likelihood == "poisson" and isinstance(noise_model, PoissonNoise):
            # r' Lambda r = sum_j (k_j - k(A x0)_j)^2 / (2 k_j), k = counts; a pixel without a count
            # weighs as one with a single count
            return noise_model.slope * unit / noise_model.counts(y).clamp(min=1.0)
        size = y.abs()  # 0 in the middle of the range: there the published formula is infinite
        if isinstance(noise_model, PoissonNoise):
            size = size.clamp(min=0.5 / noise_model.slope)
        return unit * rows.expand(rows.total(1 / size) / y[0].numel(), r)


def estimate_with_gradient(
    prior: Prior, x: Tensor, t: float, *, gradient: bool, clamp: bool
) -> tuple[Estimate, Pull | None]:
    """The estimate, and pull(v) = (dx0/dx_t)' v unless it is not wanted.

    With `clamp` x0 is cut to the prior's range, inside the graph: saturated pixels do not move with
    x_t.
    """
    pull: Pull | None = None
    if gradient:
        estimate, pull = prior.vjp(x, t)
    else:
        estimate = prior(x, t)
    if not clamp or prior.range is None:
        return estimate, pull
    low, high = prior.range
    inside = (estimate.x0 >= low) & (estimate.x0 <= high)
    clamped = estimate.with_x0(estimate.x0.clamp(low, high))
    if pull is None:
        return clamped, None
    through = pull
    return clamped, lambda v: through(torch.where(inside, v, 0.0))


def unit_rows(r: Tensor) -> Tensor:
    """Each row over its norm, i.e. the gradient of ||r||; 0 where r = 0."""
    norm = rows.norm(r)
    return r * rows.expand(torch.where(norm > 0, 1 / norm, 0.0), r)


def default_zeta(x: Tensor, steps: int) -> float:
    """Length of a tuned step where none is given, for x of order 1: 2 at 256x256x3 in 1000 steps.

    It grows like the root of the dimension d, for the noise in x is a vector of length ~ sqrt(d),
    and like 1 / steps, for it is their sum that counts: the published lengths, 0.3 to 1, belong to
    1000 steps. With less than 25 steps it stays that of 25, since longer ones overshoot. The 2 and
    the 25 are from tuning photographs, see docs/methods.md.
    """
    return 2 * math.sqrt(x[0].numel() / (3 * 256 * 256)) * 1000 / max(steps, 25)


def check_variance(problem: Problem, who: str) -> None:
    """Raise where some entries of y have noise and others none."""
    _, y, noise_model = problem.measured()
    variance = noise_model.variance(y)
    by_entry = isinstance(variance, Tensor) and variance[0].numel() > 1
    if by_entry and bool((torch.as_tensor(variance) == 0).any()):
        raise CapabilityError(
            f"{who} needs a noise std > 0 in every entry of y, or a single number"
        )


def _table() -> dict[str, float]:
    paper_ffhq = {
        "super-resolution": 1.0,
        "inpaint-box": 1.0,
        "inpaint-random": 1.0,
        "gaussian-blur": 1.0,
        "motion-blur": 1.0,
        "phase-retrieval": 0.4,
        "nonlinear-blur": 1.0,
        "poisson-super-resolution": 0.3,
        "poisson-gaussian-blur": 0.3,
        "poisson-motion-blur": 0.3,
    }
    paper_imagenet = {
        "super-resolution": 1.0,
        "inpaint-box": 1.0,
        "inpaint-random": 1.0,
        "gaussian-blur": 0.4,
        "motion-blur": 0.6,
    }
    code_ffhq = {
        "super-resolution": 0.3,
        "inpaint-box": 0.5,
        "inpaint-random": 0.5,
        "gaussian-blur": 0.3,
        "motion-blur": 0.3,
        "phase-retrieval": 1.0,
        "nonlinear-blur": 0.3,
    }
    families = {"paper/ffhq": paper_ffhq, "paper/imagenet": paper_imagenet, "code/ffhq": code_ffhq}
    return {f"{f}/{task}": zeta for f, tasks in families.items() for task, zeta in tasks.items()}


PRESETS: dict[str, float] = _table()
