"""What the sampler adds to the network: `posterior.sample` with each method over the bare loop.

    python benchmarks/overhead.py --methods DPS MMPS --size 128 --batch 4 --steps 4 --pairs 15

The bare loop makes the very calls that the method makes, of the network, its gradient and the
operator, with nothing around them: one run is recorded with all its tensors and then played back.
What is left out is the noise, the transitions, conjugate gradients, norms, checks. The two run in
turn, in one process; the figure is the median of the ratio pair by pair, with a 95 % interval by
order statistics. `--memory` prints the peak memory of one run instead, above that of a run of one
step: a method that kept what a step leaves behind would show it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
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
Call = Callable[[], object]

# few particles and short inner loops where a method has them: the ratio is that of each call
METHODS: dict[str, Guidance] = {
    "DPS": guidance.DPS(),
    "MMPS": guidance.MMPS(),
    "MCG": guidance.MCG(),
    "DDS": guidance.DDS(),
    "DAPS": guidance.DAPS(),
    "REDdiff": guidance.REDdiff(),
    "EnKG": guidance.EnKG(particles=4),
    "TDS": guidance.TDS(particles=4),
}


class RecordedPrior(Prior):
    """A network prior that notes down every call as a function that repeats it, bare."""

    def __init__(self, inner: NetworkPrior, calls: list[Call]) -> None:
        super().__init__()
        self.inner, self.calls = inner, calls
        self.schedule, self.range, self.rows = inner.schedule, inner.range, inner.rows
        self.graph_bytes = inner.graph_bytes

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Any:
        return self.inner.denoise(x_t, t)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        def again() -> None:
            with torch.no_grad():
                for row in x_t.split(1):
                    self.inner.denoise(row, t)

        self.calls.append(again)
        return super().__call__(x_t, t)

    def vjp(self, x_t: Tensor, t: float | Tensor) -> tuple[Estimate, Pull]:
        graph: list[tuple[Tensor, Tensor]] = []

        def again() -> None:
            graph.clear()  # the graph lives until the next one, as `pull` does in a method
            with torch.enable_grad():
                for row in x_t.split(1):
                    leaf = row.detach().requires_grad_()
                    graph.append((leaf, self.inner.denoise(leaf, t).x0))

        self.calls.append(again)
        estimate, inner_pull = super().vjp(x_t, t)

        def pull(u: Tensor) -> Tensor:
            def again() -> None:
                for k, (leaf, out) in enumerate(graph):
                    torch.autograd.grad(out, leaf, u[k : k + 1], retain_graph=True)

            self.calls.append(again)
            return inner_pull(u)

        return estimate, pull


class RecordedOperator(Operator):
    """A linear operator that notes down every call."""

    linear = True

    def __init__(self, inner: Operator, calls: list[Call]) -> None:
        self.inner, self.calls = inner, calls
        self.has_pinv = inner.has_pinv
        self.orthonormal_rows = inner.orthonormal_rows
        self.orthonormal_columns = inner.orthonormal_columns

    def _noted(self, call: Callable[[], Tensor]) -> Tensor:
        self.calls.append(call)
        return call()

    def forward(self, x: Tensor) -> Tensor:
        return self._noted(lambda: self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._noted(lambda: self.inner.adjoint(y))

    def pinv(self, y: Tensor) -> Tensor:
        return self._noted(lambda: self.inner.pinv(y))

    def normal(self, x: Tensor) -> Tensor:
        return self._noted(lambda: self.inner.normal(x))

    def domain_shape(self, y_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.inner.domain_shape(y_shape)

    def range_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.inner.range_shape(x_shape)


class Pair:
    """The two runs of one method."""

    def __init__(self, name: str, size: int, batch: int, steps: int) -> None:
        prior = posterior.load_prior("photo")
        assert isinstance(prior, NetworkPrior)
        operator = operators.GaussianBlur(sigma=2.0)
        if "pinv" in METHODS[name].needs:
            operator = operators.Mask.random(keep_fraction=0.3, seed=0)
        y = operator(torch.rand(batch, 3, size, size) * 2 - 1)
        rows = METHODS[name].particles
        y = y[: max(batch // rows, 1)]

        def run(prior: Prior, operator: Operator, steps: int) -> object:
            return posterior.sample(
                prior, operator, y, noise=0.04, method=METHODS[name], steps=steps, progress=False
            )

        def recorded() -> list[Call]:
            calls: list[Call] = []
            run(RecordedPrior(prior, calls), RecordedOperator(operator, calls), steps)
            return calls

        self.sample = lambda steps=steps: run(prior, operator, steps)
        self.recorded = recorded


def timed(work: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by order statistics (normal approximation of the rank)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = int(n / 2 - reach), int(n / 2 + reach)
    return ordered[max(low, 0)], ordered[min(high, n - 1)]


def main() -> None:
    """Print the ratio of each method, or with --memory the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["DPS"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.memory:
        for name in args.methods:
            pair = Pair(name, args.size, args.batch, args.steps)
            pair.sample(steps=1)
            first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pair.sample()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(
                f"{name}: peak of {args.steps} steps {peak / 1024:.0f} MiB,"
                f" {(peak - first) / 1024:+.0f} MiB against that of one step"
            )
        return
    print(f"{args.batch} x {args.size} px, {args.steps} steps, {args.pairs} pairs")
    for name in args.methods:
        pair = Pair(name, args.size, args.batch, args.steps)
        calls = pair.recorded()
        runs: dict[str, Call] = {
            "sample": pair.sample,
            "bare": lambda calls=calls: [call() for call in calls],
        }
        for work in runs.values():
            work()
        ratios, seconds = [], []
        for k in range(args.pairs):
            order = ["sample", "bare"] if k % 2 else ["bare", "sample"]
            spent = {which: timed(runs[which]) for which in order}
            ratios.append(spent["sample"] / spent["bare"])
            seconds.append(spent["bare"])
        low, high = interval(ratios)
        print(
            f"{name}: sample / bare = {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}],"
            f" bare loop {statistics.median(seconds) / args.steps:.2f} s a step",
            flush=True,
        )


if __name__ == "__main__":
    main()
