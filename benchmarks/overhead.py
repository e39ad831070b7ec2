"""What the sampler adds to the network: `posterior.sample` with DPS over the bare loop.

    python benchmarks/overhead.py --size 128 --batch 4 --steps 4 --pairs 15

The bare loop makes the same network calls, gradients and operator calls with nothing around them:
no noise, no transitions, no checks. The two run in turn, in one process; the figure is the median
of the ratio pair by pair, with a 95 % interval by order statistics. Peak memory is that of the
process while each runs, by itself, in a process of its own (`--memory`).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import posterior
from posterior import operators
from posterior.guidance import DPS
from posterior.priors import NetworkPrior


def bare(prior: NetworkPrior, operator: operators.Operator, y: Tensor, steps: int) -> None:
    """The network, its gradient and the operator, as often as DPS needs them."""
    x = torch.randn(y.shape)
    for level in DPS().grid(prior.schedule, steps)[:-1]:
        x0, leaves = [], []
        for row in x:
            leaf = row[None].detach().requires_grad_()
            leaves.append(leaf)
            x0.append(prior.denoise(leaf, level.t).x0)
        mean = torch.cat([out.detach() for out in x0])
        u = operator.adjoint(y - operator(mean))
        pulled = [
            torch.autograd.grad(out, leaf, u[k : k + 1])[0]
            for k, (out, leaf) in enumerate(zip(x0, leaves, strict=True))
        ]
        operator(torch.cat(pulled))


def timed(work: Callable[[], object]) -> float:
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
    """Print the ratio, or with --memory the peak memory of one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--memory", choices=["sample", "bare"])
    args = parser.parse_args()
    prior = posterior.load_prior("photo")
    assert isinstance(prior, NetworkPrior)
    operator = operators.GaussianBlur(sigma=2.0)
    y = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
    runs: dict[str, Callable[[], object]] = {
        "sample": lambda: posterior.sample(
            prior, operator, y, noise=0.04, method=DPS(), steps=args.steps, progress=False
        ),
        "bare": lambda: bare(prior, operator, y, args.steps),
    }
    if args.memory:
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs[args.memory]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{args.memory}: peak {peak / 1024:.0f} MiB, {(peak - loaded) / 1024:.0f} above load")
        return
    for work in runs.values():
        work()
    ratios, seconds = [], []
    for k in range(args.pairs):
        order = ["sample", "bare"] if k % 2 else ["bare", "sample"]
        spent = {name: timed(runs[name]) for name in order}
        ratios.append(spent["sample"] / spent["bare"])
        seconds.append(spent["bare"])
    low, high = interval(ratios)
    print(
        f"{args.batch} x {args.size} px, {args.steps} steps: sample / bare = "
        f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] over {args.pairs} pairs;"
        f" bare loop {statistics.median(seconds) / args.steps:.2f} s a step"
    )


if __name__ == "__main__":
    main()
