"""A Gaussian mixture prior with its exact denoiser, in matrix products.

    x0 ~ sum_k w_k N(m_k, C_k),  C_k = Q diag(lam_k) Q^T
    x_t | k ~ N(alpha m_k, Q diag(1 / p_k) Q^T),  p_k = 1 / (alpha^2 lam_k + sigma^2)
    r_k(x_t) = w_k N(x_t; ...) / sum_j ...        responsibilities
    E[x0 | x_t] = sum_k r_k (m_k + Q alpha lam_k p_k Q^T (x_t - alpha m_k))

In the shared basis, z = (x_t - alpha c) Q with c the mean of the mixture and mu_k = (m_k - c) Q,

    log r_k = log w_k - (z^2 . p_k) / 2 + alpha z . (p_k mu_k) - alpha^2 mu_k . (p_k mu_k) / 2
              + sum log p_k / 2 + const
    E[x0 | x_t] = c + Q (sigma^2 sum_k r_k p_k mu_k + alpha z sum_k r_k lam_k p_k)

so that a level costs products of (B, d) with (d, K) and (K, d), and never an array (B, K, d).
Centring keeps the large common part of the means out of the differences that decide r_k.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from posterior import rows
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.operators.base import Operator
from posterior.operators.noise import NoiseModel
from posterior.priors import linear_gaussian as lg
from posterior.priors.base import Prior
from posterior.priors.gaussian import check_count, check_event
from posterior.schedules import Schedule
from posterior.streams import Noise


class GaussianMixture(Prior):
    """sum_k w_k N(m_k, C_k).

    Args:
        weights: (K,), >= 0, summing to 1 (to 1e-4; rounding is removed).
        means: (K, *event).
        covariances: a number; (K,) numbers; (d, d) shared; (K, d, d). d elements in an event.
        schedule: the noise levels of the denoiser; by default a variance-exploding one sized to the
            law, see `linear_gaussian.default_schedule`.

    `dtype` is that of tensor `means`, or torch's default. Parameters are kept in float64;
    computation follows the dtype of x. The object is not to be modified.
    """

    rows = None
    graph_bytes = 256

    def __init__(
        self,
        weights: lg.Array,
        means: lg.Array,
        covariances: lg.Array = 1.0,
        schedule: Schedule | None = None,
    ) -> None:
        w, _ = lg.tensor(weights, "weights")
        m, dtype = lg.tensor(means, "means")
        c, _ = lg.tensor(covariances, "covariances")
        if w.ndim != 1 or not w.numel():
            raise InputError(f"weights must be (K,), got {tuple(w.shape)}")
        count = w.numel()
        if m.ndim < 2 or m.shape[0] != count or not m.numel():
            raise InputError(f"means must be ({count}, *event), got {tuple(m.shape)}")
        w = w.double()
        if bool((w < 0).any()):
            raise InputError("weights must not be negative")
        if abs(float(w.sum()) - 1) > 1e-4:
            raise InputError(f"weights must sum to 1, they sum to {float(w.sum()):.6g}: normalise")
        d = m[0].numel()
        if c.ndim <= 1 and c.numel() in ({1} if c.ndim == 0 else {count}):
            laws = [lg.of_values(v, "covariances") for v in c.reshape(-1)]
        elif tuple(c.shape) == (d, d):
            laws = [lg.of_matrix(c, "covariances")]
        elif tuple(c.shape) == (count, d, d):
            laws = [lg.of_matrix(v, f"covariances[{k}]") for k, v in enumerate(c)]
        else:
            raise InputError(
                f"covariances has shape {tuple(c.shape)}: give a number, ({count},), "
                f"{(d, d)} or {(count, d, d)}"
            )
        self._set((w / w.sum()).log(), m, laws, schedule, dtype)

    def _set(
        self,
        log_weights: Tensor,
        means: Tensor,
        laws: Sequence[lg.Covariance],
        schedule: Schedule | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.means = means.double()
        self.event_shape = tuple(means.shape[1:])
        self.device = means.device
        self.dtype = dtype or torch.get_default_dtype()
        self._log_weights = log_weights.double().to(means.device)[None]  # (1 or rows, K)
        # one covariance for all components, or one each; with one basis for all, or one each
        self._laws = list(laws)
        self._shared = len({id(law.basis) for law in laws}) == 1 or all(
            isinstance(law.basis, lg.Standard) for law in laws
        )
        flat = self.means.flatten(1)
        self._centre = self._log_weights[0].exp() @ flat  # (d,)
        self._offsets = [  # mu_k, in the basis of each component
            law.basis.to((flat if len(laws) == 1 else flat[k : k + 1]) - self._centre)
            for k, law in enumerate(laws)
        ]
        self._given_schedule = schedule
        self.schedule = schedule or self._default_schedule()

    def _default_schedule(self) -> Schedule:
        weights = self._log_weights[0].exp()
        between = (self.means.flatten(1) - self._centre) * weights.sqrt()[:, None]
        within = torch.cat([law.values for law in self._laws])
        positive = within[within > 0]
        spread = float(torch.linalg.matrix_norm(between, 2) ** 2 + within.max()) ** 0.5
        smallest = float(positive.min()) ** 0.5 if positive.numel() else 0.0
        return lg.default_schedule(float(self._centre.norm()), spread, smallest)

    @property
    def weights(self) -> Tensor:
        """(K,), or (rows, K) under conditions that differ by measurement; float64."""
        w = self._log_weights.exp()
        return w[0] if w.shape[0] == 1 else w

    @property
    def covariances(self) -> Tensor:
        """The full matrices (K, d, d), float64."""
        d = self._centre.numel()
        dense = [law.dense(d) for law in self._laws]
        return torch.stack(dense if len(dense) > 1 else dense * self.means.shape[0])

    def __len__(self) -> int:
        return self.means.shape[0]

    def with_schedule(self, schedule: Schedule) -> GaussianMixture:
        """The same law under another schedule."""
        other = self._copy()
        other._given_schedule = other.schedule = schedule
        return other

    def given(
        self,
        condition: object,
        negative: object = None,
        scale: float = 1.0,
    ) -> GaussianMixture:
        """The mixture restricted to some components, weights renormalised.

        Args:
            condition: a component number; a set of them (`{0, 3}`, `range(3)`); or a list, tuple or
                integer tensor with one entry (a number or a set) per measurement, selected by
                `take`.
            negative: not for mixtures.
            scale: not for mixtures.
        """
        if negative is not None or scale != 1.0:
            raise CapabilityError("a mixture is conditioned exactly: no negative=, no scale=")
        if self._log_weights.shape[0] > 1:
            raise CapabilityError("already conditioned per measurement: condition the mixture once")
        per_row = isinstance(condition, (list, tuple, Tensor)) and not (
            isinstance(condition, Tensor) and condition.ndim == 0
        )
        entries = list(cast("Iterable[object]", condition)) if per_row else [condition]
        if not entries:
            raise InputError("no condition: give one component (or set) per measurement")
        logits = torch.full((len(entries), len(self)), -math.inf, dtype=torch.float64)
        for row, entry in enumerate(entries):
            chosen = self._components(entry)
            logits[row, chosen] = self._log_weights[0, chosen].cpu()
        if bool(torch.isinf(logits).all(1).any()):
            raise InputError(f"the condition {condition!r} has probability zero")
        other = self._copy()
        other._log_weights = torch.log_softmax(logits, 1).to(self.device)
        return other

    def _components(self, entry: object) -> list[int]:
        if isinstance(entry, Tensor) and entry.ndim == 0:
            entry = entry.item()
        many = list(entry) if isinstance(entry, (set, frozenset, range)) else [entry]
        for k in many:
            if isinstance(k, bool) or not isinstance(k, int):
                raise InputTypeError(
                    f"a mixture is conditioned on component numbers, not {type(k).__name__}"
                )
            if not 0 <= k < len(self):
                raise InputError(
                    f"no component {k}: the mixture has {len(self)} (0 to {len(self) - 1})"
                )
        return [k for k in many if isinstance(k, int)]

    @property
    def measurements(self) -> int | None:
        """How many measurements have a condition of their own; None where there are none."""
        rows_of_conditions = self._log_weights.shape[0]
        return None if rows_of_conditions == 1 else rows_of_conditions

    def take(self, index: Sequence[int]) -> GaussianMixture:
        """The conditions of the measurements `index`; without such conditions, the prior itself."""
        if self._log_weights.shape[0] == 1:
            return self
        other = self._copy()
        other._log_weights = self._log_weights[torch.as_tensor(index, device=self.device)]
        # the counts are those of the whole run
        other.counts = self.counts
        return other

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """E[x0 | x_t] for x_t (B, *event)."""
        x = x_t.flatten(1)
        log_w = self._row_weights(x)
        if not isinstance(t, Tensor) or t.ndim == 0:
            out = self._at(x, log_w, *self.schedule(float(t)))
        else:  # one product per distinct level
            parts, order = [], []
            for time in sorted(set(t.tolist())):
                where = torch.nonzero(t == time)[:, 0].to(x.device)
                some = log_w if log_w.shape[0] == 1 else log_w[where]
                parts.append(self._at(x[where], some, *self.schedule(time)))
                order.append(where)
            out = torch.cat(parts)[torch.argsort(torch.cat(order))]
        return out.reshape(x_t.shape)

    def _row_weights(self, x: Tensor) -> Tensor:
        log_w = self._log_weights.to(x.device)
        if log_w.shape[0] not in (1, x.shape[0]):
            raise InputError(
                f"the prior has conditions for {log_w.shape[0]} rows, x_t has {x.shape[0]}: use "
                "take() to select them"
            )
        return log_w

    def _at(self, x: Tensor, log_w: Tensor, alpha: float, sigma: float) -> Tensor:
        if sigma == 0:
            return x / alpha
        if not self._shared:
            return self._at_each_basis(x, log_w, alpha, sigma)
        law = self._laws[0]
        lam = torch.stack([v.values for v in self._laws])  # (1 or K, 1 or d)
        mu = torch.cat(self._offsets)  # (K, d)
        p = 1 / (alpha**2 * lam + sigma**2)
        centre = self._centre.to(x)
        z = law.basis.to(x - alpha * centre)
        logits = self._offset(p, mu, alpha, log_w).to(x)
        logits = logits + rows.matmul(z, (alpha * p * mu).T.to(x))
        gain = alpha * lam * p
        several = len(self._laws) > 1
        if several:
            logits = logits + rows.matmul(z * z, (-p / 2).expand_as(mu).T.to(x))
        r = torch.softmax(logits, 1)
        kept = rows.matmul(r, gain.expand_as(mu).to(x)) if several else gain.to(x)
        moved = rows.matmul(r, (sigma**2 * p * mu).to(x)) + z * kept
        return centre + law.basis.back(moved)

    def _at_each_basis(self, x: Tensor, log_w: Tensor, alpha: float, sigma: float) -> Tensor:
        centre = self._centre.to(x)
        moved, logits = [], []
        for law, mu in zip(self._laws, self._offsets, strict=True):
            p = 1 / (alpha**2 * law.values + sigma**2)
            z = law.basis.to(x - alpha * centre) - (alpha * mu).to(x)
            constant = p.log().sum() / 2
            logits.append(constant.to(x) - rows.total(z * z * p.to(x)) / 2)
            moved.append(z * (alpha * law.values * p).to(x) + mu.to(x))
        r = torch.softmax(torch.stack(logits, 1) + log_w.to(x), 1)
        out = centre.expand_as(x)
        for k, law in enumerate(self._laws):
            out = out + law.basis.back(r[:, k : k + 1] * moved[k])
        return out

    @staticmethod
    def _offset(p: Tensor, mu: Tensor, alpha: float, log_w: Tensor) -> Tensor:
        """The part of log r_k that does not depend on x: (1 or B, K)."""
        d = mu.shape[1]
        determinant: Tensor = p.log().expand(-1, d).sum(1) / 2
        distance: Tensor = (alpha**2 * p * mu**2).sum(1) / 2
        return log_w + determinant - distance

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Exact draws (n, *event); draw i is a pure function of (seed, i)."""
        weights = self._single("sample").exp()
        noise = Noise.single(seed, self._event, torch.float64, self.device, check_count(n))
        edges = weights.cumsum(0)
        u = noise.uniform("component", shape=())
        edges[int(torch.nonzero(weights)[-1]) :] = math.inf
        k = torch.searchsorted(edges, u.contiguous(), right=True)
        z = noise("prior").flatten(1)
        if len(self._laws) == 1:
            x = self._laws[0].colour(z)
        else:
            x = torch.empty_like(z)
            for j, law in enumerate(self._laws):
                if bool((k == j).any()):
                    x[k == j] = law.colour(z[k == j])
        return (self.means[k] + x.reshape(n, *self._event)).to(self.dtype)

    def log_components(self, x: Tensor) -> Tensor:
        """Log w_k + log N(x; m_k, C_k) for x (B, *event): (B, K) float64."""
        check_event(x, self._event)
        flat = x.to(self.device).double().flatten(1)
        log_w = self._row_weights(flat)
        d = flat.shape[1]
        out = []
        for k, mean in enumerate(self.means.flatten(1)):
            law = self._laws[k if len(self._laws) > 1 else 0]
            if not bool((law.values > 0).all()):
                raise CapabilityError("a covariance is singular: the law has no density")
            z = law.basis.to(flat - mean)
            log_det = float(law.spread(d).log().sum())
            out.append(-0.5 * (rows.total(z**2 / law.values) + log_det + d * math.log(2 * math.pi)))
        return torch.stack(out, 1) + log_w

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x (B, *event): (B,). Raises where a covariance is singular."""
        return torch.logsumexp(self.log_components(x), 1).to(x.device, x.dtype)

    def posterior(
        self, operator: Operator, y: Tensor, noise: float | Tensor | NoiseModel
    ) -> GaussianMixture:
        """The exact law of x given y = operator(x) + noise, for one linear Gaussian measurement.

        Components are conditioned one by one and weighted by their evidence; all K are kept.

        Args:
            operator: linear, at most 4096 elements in x.
            y: ONE measurement, without batch axis or with B = 1; real or complex.
            noise: standard deviation > 0, or `GaussianNoise`.
        """
        log_w = self._single("posterior")
        seen = lg.measurement(operator, y, noise, self._event, self.device)
        flat, d = self.means.flatten(1), self._centre.numel()
        means, evidence, laws = [], [], []
        if self._isotropic:  # one SVD of A serves every variance
            eye = torch.eye(d, dtype=torch.float64, device=self.device)
            u, s, v = seen.svd(eye)
            basis = lg.Dense(v.contiguous())
            scales = torch.cat([law.values for law in self._laws])
        for k, mean in enumerate(flat):
            j = k if len(self._laws) > 1 else 0
            if self._isotropic:
                root = scales[j].sqrt()
                after, _, log_p = seen.condition(mean, root * eye, (u, root * s, v))
                if j == k:
                    laws.append(lg.Covariance(basis, scales[j] / (1 + scales[j] * s**2)))
            else:
                if j == k:
                    factor = self._laws[j].factor(d)
                    svd = seen.svd(factor)
                after, root_after, log_p = seen.condition(mean, factor, svd)
                if j == k:
                    laws.append(lg.of_factor(root_after))
            means.append(after)
            evidence.append(log_p)
        logits = log_w + torch.tensor(evidence, dtype=torch.float64, device=self.device)
        out = self.__class__.__new__(self.__class__)
        out._set(
            torch.log_softmax(logits, 0),  # weights may be too small for a float
            torch.stack(means).reshape(self.means.shape),
            laws,
            self._given_schedule,
            self.dtype,
        )
        return out

    @property
    def _isotropic(self) -> bool:
        return all(isinstance(law.basis, lg.Standard) for law in self._laws)

    def _single(self, what: str) -> Tensor:
        if self._log_weights.shape[0] > 1:
            raise CapabilityError(
                f"{what}: the conditions differ by measurement; take([b]) selects one"
            )
        return self._log_weights[0]

    @property
    def _event(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.event_shape)

    def _copy(self) -> GaussianMixture:
        other = copy.copy(self)
        other.counts = type(self.counts)()
        return other

    def state(self) -> object:
        """What defines the prior."""
        return {
            "log_weights": self._log_weights,
            "means": self.means,
            "values": [law.values for law in self._laws],
            "bases": [
                law.basis.q if isinstance(law.basis, lg.Dense) else "identity"
                for law in (self._laws[:1] if self._shared else self._laws)
            ],
            "schedule": repr(self.schedule),
            "dtype": str(self.dtype),
        }

    def __repr__(self) -> str:
        return (
            f"GaussianMixture({len(self)} components, event_shape={self.event_shape}, "
            f"schedule={self.schedule})"
        )
