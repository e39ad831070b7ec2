"""RED-diff: a point estimate by regularisation with the denoiser.

M. Mardani, J. Song, J. Kautz, A. Vahdat, "A variational perspective on solving inverse problems
with diffusion models", ICLR 2024, arXiv 2305.04391. mu, the mean of a narrow variational posterior,
is optimised by Adam; each step visits one level, from noisy to clean, with fresh noise eps:

    x_t = alpha mu + sigma eps,   eps_hat = network(x_t)          no derivative of the network
    "published"   g = A'(A mu - y) / m + lambda h(sigma / alpha) (eps_hat - eps) / d
    "likelihood"  g = A' N^-1 (A mu - y) + lambda h(sigma / alpha) (eps_hat - eps) / spread^2

with m and d the entries of y and x (the published means over entries), and h(u) = u, which makes
u (eps_hat - eps) = mu - x0(x_t). In the second form the data have their own scale: with the prior
N(m, spread^2 I) and lambda = 1 the noisy levels pull to the exact MAP estimate, later ones less.
Either way mu seeks a mode: runs with other noise differ little, and their spread is NOT the
posterior's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posterior.errors import CapabilityError, InputError, unknown_name
from posterior.guidance._consistency import consistent, noise_weight
from posterior.guidance.base import Guidance, State, Step
from posterior.problem import Problem
from posterior.schedules import Level
from posterior.streams import Noise
from posterior.transitions import Euler, Transition

WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "sqrt": math.sqrt,
    "square": lambda u: u * u,
    "log": math.log1p,
    "clip": lambda u: min(u, 1.0),
    "cube-root-square": lambda u: u ** (2 / 3),
    "constant": lambda u: 1.0,
}
"""h by name; u = sigma / alpha."""


@dataclass(frozen=True, kw_only=True)
class REDdiff(Guidance):
    """Regularisation by denoising diffusion, a point estimate.

    Args:
        form: "likelihood" or "published".
        weight: lambda.
        weighting: h, a name of `WEIGHTS`.
        spread: standard deviation of x0 under a white prior, for the likelihood form.
        rate: of Adam, with betas (0.9, 0.99).
        initial: where mu starts if no source= is given. "pinv": A^+ y, as published, which for a
            blur amplifies noise beyond what the steps undo; "auto": A^+ y where it exists; "ridge":
            where A is linear the estimate under N(0, spread^2 I), by conjugate gradients; else, and
            for "zero", 0.
        largest: sigma / alpha of the first level; noisier ones say nothing of mu.
    """

    transition: Transition = Euler
    form: Literal["likelihood", "published"] = "likelihood"
    weight: float = 1.0
    weighting: str = "linear"
    spread: float = 0.1
    rate: float = 0.1
    initial: Literal["auto", "pinv", "ridge", "zero"] = "ridge"
    largest: float = math.inf

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "operator gradient"})
    own_rule: ClassVar[bool] = True
    when: ClassVar[str] = "one good image, not a posterior sample; no gradient of the network"
    paper: ClassVar[str] = "Mardani et al., ICLR 2024, arXiv 2305.04391"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, known in (
            ("form", self.form, ("likelihood", "published")),
            ("weighting", self.weighting, tuple(WEIGHTS)),
            ("initial", self.initial, ("auto", "pinv", "ridge", "zero")),
        ):
            if value not in known:
                raise unknown_name(name, str(value), known)
        if not self.weight >= 0:
            raise InputError(f"weight must be >= 0, got {self.weight!r}")
        for name in ("rate", "spread", "largest"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be > 0, got {getattr(self, name)!r}")

    @staticmethod
    def preset(name: str) -> REDdiff:
        """Published settings, e.g. "paper" or "code/inpainting"; see `PRESETS`.

        lambda h = 0.25 sigma / alpha and 1000 levels; the repository returns the iterate before its
        last step, here it is the one after. It starts HDR at y / 2 and phase retrieval at
        |ifft(y)|, cropped: give these as source=.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        weight, rate = PRESETS[name]
        return REDdiff(
            form="published",
            weight=weight,
            rate=rate,
            initial="auto",
            spacing="trailing",
            default_steps=1000,
        )

    def check(self, problem: Problem) -> None:
        """The likelihood form divides by the noise; A^+ must exist where it is asked for."""
        operator, y, noise_model = problem.measured()
        variance = torch.as_tensor(noise_model.variance(y))
        if self.form == "likelihood" and bool((variance == 0).any()):
            raise CapabilityError(
                'REDdiff(form="likelihood") divides by the noise: give noise > 0, or take'
                ' form="published"'
            )
        if problem.source is not None:
            return
        if self.initial == "ridge" and operator.linear:
            self._ridge_weight(problem)
        if self.initial == "pinv" and not operator.has_pinv:
            raise CapabilityError(f"{operator!r} has no pseudo-inverse: take initial='ridge'")

    def _ridge_weight(self, problem: Problem) -> float | Tensor | None:
        """spread^2 N^-1; None, which gives A^+ y, under a flat prior or without noise."""
        if math.isinf(self.spread):
            return None
        _, y, noise_model = problem.measured()
        return noise_weight(self.spread**2, noise_model.variance(y), "REDdiff")

    def nfe(self, steps: int) -> int:
        """One a step."""
        return steps

    def start(self, problem: Problem, level: Level, noise: Noise) -> State:
        """mu = the source, A^+ y, the ridge estimate or 0, and Adam at rest."""
        operator, y, _ = problem.measured()
        mu = torch.zeros_like(noise("start"))
        if problem.source is not None:
            mu = problem.source
        elif self.initial == "pinv" or (self.initial == "auto" and operator.has_pinv):
            mu = operator.pinv(y).to(mu.dtype)
        elif self.initial == "ridge" and operator.linear:
            mu = consistent(operator, y, self._ridge_weight(problem), iterations=20).to(mu.dtype)
        return {"x": mu, "x0": mu, "first": torch.zeros_like(mu), "second": torch.zeros_like(mu)}

    def advance(self, problem: Problem, state: State, step: Step, noise: Noise) -> State:
        """Visit level t, take one step of Adam."""
        mu, t = state["x"], step.t
        operator, y, noise_model = problem.measured()
        eps = noise("visit")
        prior = torch.zeros_like(mu)
        if t.alpha > 0 and t.ratio <= self.largest:
            estimate = problem.prior(t.alpha * mu + t.sigma * eps, t.t)
            prior = self.weight * WEIGHTS[self.weighting](t.ratio) * (estimate.eps - eps)
        a_mu, pull = operator.vjp(mu)
        r = a_mu - y
        if self.form == "published":
            entries = y[0].numel() * (2 if y.is_complex() else 1)
            gradient = pull(r) / entries + prior / mu[0].numel()
        else:
            gradient = pull(r / noise_model.variance(y)) + prior / self.spread**2
        return self._adam(state, gradient, step.index + 1)

    def _adam(self, state: State, gradient: Tensor, count: int) -> State:
        """Kingma & Ba 2015, algorithm 1."""
        first = 0.9 * state["first"] + 0.1 * gradient
        second = 0.99 * state["second"] + 0.01 * gradient * gradient
        size = (second / (1 - 0.99**count)).sqrt() + 1e-8
        mu = state["x"] - self.rate / (1 - 0.9**count) * first / size
        mu = mu + 0 * second  # nan where it overflowed, which would stand still
        return {"x": mu, "x0": mu, "first": first, "second": second}


PRESETS: dict[str, tuple[float, float]] = {
    "paper": (0.25, 0.1),
    "code/super-resolution": (0.25, 0.1),
    "code/inpainting": (0.25, 0.5),
    "code/hdr": (0.25, 0.5),
    "code/phase-retrieval": (0.25, 0.5),
    "code/gaussian-blur": (0.25, 0.5),
}
"""Name -> lambda and Adam's rate."""
