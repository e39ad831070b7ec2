"""What the sampler adds to the network: `posterior.sample` with each method over the bare calls.

    python benchmarks/overhead.py --methods DPS MMPS --size 128 --batch 4 --steps 4 --runs 9

The bare calls are those of the network, its gradient and the operator; a clock stands around each
of them, in the very run that is timed. What is left is the noise, the transitions, conjugate
gradients, norms and checks. The figure is the median of the ratio run by run, with a 95 % interval
by order statistics. `--memory` prints the peak memory of one run instead, above that of a run of
two steps: a method that kept what a step leaves behind would show it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import posterior
from posterior import guidance, operators
from posterior.estimates import Estimate
from posterior.guidance import Guidance
from posterior.operators import Operator
from posterior.priors import NetworkPrior, Prior

Pull = Callable[[Tensor], Tensor]

# few particles and short inner loops where a method has them: the ratio is that of each call
METHODS: dict[str, Guidance] = {
    "DPS": guidance.DPS(),
    "MMPS": guidance.MMPS(),
    "Denoising": guidance.Denoising(),
    "MCG": guidance.MCG(),
    "DDS": guidance.DDS(),
    "DAPS": guidance.DAPS(),
    "REDdiff": guidance.REDdiff(),
    "EnKG": guidance.EnKG(particles=4),
    "TDS": guidance.TDS(particles=4),
    "PostEdit": guidance.PostEdit(),
}


class Clock:
    """Seconds inside the bare calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class TimedPrior(Prior):
    """A network prior with a clock around the network and its gradient."""

    def __init__(self, inner: NetworkPrior, clock: Clock) -> None:
        super().__init__()
        self.inner, self.clock = inner, clock
        self.schedule, self.range, self.rows = inner.schedule, inner.range, inner.rows
        self.graph_bytes = inner.graph_bytes

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Any:
        with self.clock.running():
            return self.inner.denoise(x_t, t)

    def vjp(self, x_t: Tensor, t: float | Tensor) -> tuple[Estimate, Pull]:
        estimate, inner_pull = super().vjp(x_t, t)

        def pull(u: Tensor) -> Tensor:
            with self.clock.running():
                return inner_pull(u)

        return estimate, pull


class TimedOperator(Operator):
    """A linear operator with a clock around it."""

    linear = True

    def __init__(self, inner: Operator, clock: Clock) -> None:
        self.inner, self.clock = inner, clock
        self.has_pinv = inner.has_pinv
        self.orthonormal_rows = inner.orthonormal_rows
        self.orthonormal_columns = inner.orthonormal_columns

    def forward(self, x: Tensor) -> Tensor:
        with self.clock.running():
            return self.inner.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        with self.clock.running():
            return self.inner.adjoint(y)

    def pinv(self, y: Tensor) -> Tensor:
        with self.clock.running():
            return self.inner.pinv(y)

    def normal(self, x: Tensor) -> Tensor:
        with self.clock.running():
            return self.inner.normal(x)

    def domain_shape(self, y_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.inner.domain_shape(y_shape)

    def range_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.inner.range_shape(x_shape)


class Run:
    """A run of one method with a clock in it."""

    def __init__(self, name: str, size: int, batch: int) -> None:
        prior = posterior.load_prior("photo")
        assert isinstance(prior, NetworkPrior)
        operator: Operator = operators.GaussianBlur(sigma=2.0)
        if "pinv" in METHODS[name].needs:
            operator = operators.Mask.random(keep_fraction=0.3, seed=0)
        self.method, self.clock = METHODS[name], Clock()
        self.prior = TimedPrior(prior, self.clock)
        x = torch.rand(max(batch // self.method.particles, 1), 3, size, size) * 2 - 1
        timed: Operator = TimedOperator(operator, self.clock)
        if "identity" in self.method.needs:  # it never calls the operator
            timed = operators.Identity()
        self.given: dict[str, Any] = {"operator": timed, "y": operator(x), "noise": 0.04}
        if "source" in self.method.needs:  # and measures that itself
            self.given = {"source": x}

    def __call__(self, steps: int) -> None:
        posterior.sample(self.prior, method=self.method, steps=steps, progress=False, **self.given)

    def timed(self, steps: int) -> tuple[float, float]:
        """Seconds of a run, and of the bare calls in it."""
        self.clock.seconds = 0.0
        start = time.perf_counter()
        self(steps)
        return time.perf_counter() - start, self.clock.seconds


def interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by order statistics (normal approximation of the rank)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = int(n / 2 - reach), int(n / 2 + reach)
    return ordered[max(low, 0)], ordered[min(high, n - 1)]


def main() -> None:
    """Print the ratio of each method, or with --memory the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{args.batch} x {args.size} px, {args.steps} steps, {args.runs} runs, {threads} threads")
    for name in args.methods:
        run = Run(name, args.size, args.batch)
        run(steps=2)  # the fewest that EnKG makes
        if args.memory:
            first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            run(args.steps)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(
                f"{name}: peak of {args.steps} steps {peak / 1024:.0f} MiB,"
                f" {(peak - first) / 1024:+.0f} MiB against that of two"
            )
            continue
        whole, bare = zip(*(run.timed(args.steps) for _ in range(args.runs)), strict=True)
        ratios = [w / b for w, b in zip(whole, bare, strict=True)]
        low, high = interval(ratios)
        print(
            f"{name}: sample / bare calls {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}],"
            f" bare calls {statistics.median(bare) / args.steps:.2f} s a step",
            flush=True,
        )


if __name__ == "__main__":
    main()
