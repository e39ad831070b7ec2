"""Operators beside those of deepinv for the same problem: forward, adjoint, gradient.

    python -m venv peer
    peer/bin/pip install torch==2.14.1 torchvision==0.29.1 deepinv==0.5.0
    peer/bin/pip install -e .
    OMP_NUM_THREADS=1 peer/bin/python benchmarks/operators.py --conditions "idle machine" --docs

An environment of its own: deepinv needs torchvision, and that the torch it was built for. `--own`
needs no deepinv and prints our times alone.

First each pair of operators must be the same problem: their outputs, and those of their adjoints,
differ by rounding. Tomography is discretised differently by the two (bilinear rotation there, means
over the width of a detector here), so there a smooth image must agree to one percent; where an odd
number of pixels is padded, the peer's image stands half a pixel off the rotation axis, and ours
gets the image moved by as much.

Then they run in turn, in one process: the figure is the median of the ratio pair by pair, with a
95 % interval by order statistics. On one thread the clock is the process's CPU time, which other
work on the machine stretches less than time on the wall. What is kept between calls (transfer
functions, matrices, sampling grids) is built before, and freed memory stays with the process, as in
a run of the sampler, on both sides. The gradient is that of
||A(x) - y||^2 / 2 by torch's autograd on both sides.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posterior import heap, operators
from posterior.operators import Operator

RESULTS = Path(__file__).parent / "results" / "operators.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "operator_speed.md"
MARKS = ("<!-- table -->", "<!-- end of table -->")
OPERATIONS = ("forward", "adjoint", "gradient")
SIZES = (64, 128, 256, 512)
BATCH = 4

ROUNDING = 1e-5  # of float32, relative, in L2: some units of 6e-8 for each stage of an FFT
DISCRETISATION = 1e-2  # of a smooth image's line integrals
AT_LEAST = 0.004  # seconds in one timing, by repeated calls

Map = Callable[[Tensor], Tensor]
Call = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """One library's operator, as functions of tensors, and an image and a measurement for it."""

    forward: Map
    adjoint: Map | None
    x: Tensor
    y: Tensor

    def call(self, operation: str) -> Call | None:
        """What is timed."""
        if operation == "gradient":
            return lambda: misfit_gradient(self.forward, self.x, self.y)
        f, argument = {"forward": (self.forward, self.x), "adjoint": (self.adjoint, self.y)}[
            operation
        ]
        return None if f is None else without_graph(f, argument)


def without_graph(f: Map, argument: Tensor) -> Call:
    """f(argument), nothing recorded."""

    def call() -> Tensor:
        with torch.no_grad():
            return f(argument)

    return call


def misfit_gradient(forward: Map, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of ||A(x) - y||^2 / 2 by autograd."""
    leaf = x.detach().requires_grad_()
    rest = forward(leaf) - y
    rest = torch.view_as_real(rest) if rest.is_complex() else rest
    (gradient,) = torch.autograd.grad(rest.square().sum() / 2, leaf)
    return gradient


def as_it_is(y: Tensor) -> Tensor:
    """y."""
    return y


def not_at_all(n: int) -> float:
    """0."""
    return 0.0


@dataclass(frozen=True)
class Case:
    """A problem, our operator for it, and the peer's.

    Attributes:
        name: of the problem, and which of the peer's operators.
        ours: for images of any size.
        channels: of x.
        peer: makes the peer's operator for x (B, C, n, n).
        measured: the peer's y in our layout; `measured_back` is the inverse.
        tolerance: of the relative difference of the two.
        moved: how far off the middle the peer's image stands.
    """

    name: str
    ours: Callable[[int], Operator]
    channels: int
    peer: Callable[[int], Any]
    measured: Map = as_it_is
    measured_back: Map = as_it_is
    tolerance: float = ROUNDING
    moved: Callable[[int], float] = not_at_all

    def own(self, n: int) -> Side:
        """Our side."""
        x = image(n, self.channels, self.moved(n))
        operator = self.ours(n).bind(tuple(x.shape[1:]))
        y = operator(x)
        return Side(operator, operator.adjoint if operator.linear else None, x, y)

    def theirs(self, n: int, own: Side) -> Side:
        """The peer's side; its y is ours."""
        physics = self.peer(n)
        adjoint = None if own.adjoint is None else physics.A_adjoint
        return Side(
            physics.A, adjoint, image(n, self.channels), self.measured_back(own.y).contiguous()
        )

    def difference(self, own: Side, theirs: Side) -> float:
        """The relative difference of the two operators, the larger of forward and adjoint.

        Of the forward ones alone where the discretisations differ.
        """
        with torch.no_grad():
            pairs = [(own.y, self.measured(theirs.forward(theirs.x)))]
            exact = self.tolerance == ROUNDING
            if exact and own.adjoint is not None and theirs.adjoint is not None:
                pairs.append((own.adjoint(own.y), theirs.adjoint(theirs.y)))
        return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def image(n: int, channels: int, moved: float = 0.0) -> Tensor:
    """A smooth image (BATCH, channels, n, n), moved by some pixels towards the top left."""
    at = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 + moved) / n
    places = torch.linspace(-0.25, 0.25, BATCH * channels, dtype=torch.float64)
    blobs = [
        torch.exp(-((at[:, None] - s) ** 2 + (at[None] + s / 2) ** 2) / (2 * 0.07**2))
        - 0.7 * torch.exp(-((at[:, None] + s) ** 2 + (at[None] - s) ** 2) / (2 * 0.05**2))
        for s in places
    ]
    return torch.stack(blobs).reshape(BATCH, channels, n, n).float()


def as_filter(kernel: Tensor) -> Tensor:
    """A kernel as the peer takes it."""
    return kernel.float()[None, None]


def blurs(name: str, make: Callable[[str], Any]) -> list[Case]:
    """A blur whose border is mirrored, and one that wraps around."""
    kernel = as_filter(make("reflect").kernel)

    def blur(fft: bool, n: int) -> Any:
        from deepinv.physics import Blur

        return Blur(filter=kernel, padding="reflect", use_fft=fft)

    def circular(n: int) -> Any:
        from deepinv.physics import BlurFFT

        return BlurFFT(img_size=(3, n, n), filter=kernel)

    return [
        Case(f"{name}, mirrored: Blur", lambda n: make("reflect"), 3, partial(blur, False)),
        Case(f"{name}, mirrored: Blur, FFT", lambda n: make("reflect"), 3, partial(blur, True)),
        Case(f"{name}, circular: BlurFFT", lambda n: make("circular"), 3, circular),
    ]


def inpainting(n: int) -> Any:
    from deepinv.physics import Inpainting

    keep = operators.Mask.random(keep_fraction=0.3).pattern(n, n).float()
    return Inpainting(img_size=(3, n, n), mask=keep[0])


def downsampling(n: int) -> Any:
    from deepinv.physics import Downsampling

    return Downsampling(
        img_size=(3, n, n), filter=as_filter(cubic_kernel()), factor=4, padding="reflect"
    )


def downsampling_matlab(n: int) -> Any:
    from deepinv.physics import DownsamplingMatlab

    return DownsamplingMatlab(factor=4)


def cubic_kernel() -> Tensor:
    """Keys' cubic kernel widened four times, (16, 16), float64: a = -0.5."""
    t = ((torch.arange(16, dtype=torch.float64) - 7.5) / 4).abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    taps = torch.where(t < 1, near, far)
    return torch.outer(taps, taps) / taps.sum() ** 2


def centred_cubic(n: int) -> Operator:
    """Read as the peer does, from the pixel before the middle of a kernel of even size."""
    # ours of 18 taps starts 7 pixels before a block, as the peer's of 16: two are 0
    padded = torch.nn.functional.pad(cubic_kernel(), (2, 0, 2, 0))
    return operators.SuperResolution(factor=4, kernel=padded)


LINES = partial(operators.EquispacedLines, acceleration=4)


def mri(n: int) -> Any:
    from deepinv.physics import MRI

    return MRI(mask=LINES().pattern(n, n)[0, 0].float())


def coils(n: int) -> Any:
    from deepinv.physics import MultiCoilMRI

    maps = operators.birdcage_maps(8, (n, n)).to(torch.complex64)
    return MultiCoilMRI(mask=LINES().pattern(n, n)[0, 0].float(), coil_maps=maps)


def tomography(n: int) -> Any:
    from deepinv.physics import Tomography

    return Tomography(angles=60, img_width=n, circle=False, normalize=False)


def fourier_modulus(n: int) -> Any:
    from deepinv.physics import PhaseRetrieval
    from deepinv.physics.structured_random import StructuredRandom

    padded = operators.PhaseRetrieval(low=0).range_shape((1, 1, n, n))[2]
    # half a layer is the transform without a random diagonal
    transform = StructuredRandom(
        (1, n, n),
        (1, padded, padded),
        n_layers=0.5,
        transform_func=partial(torch.fft.fft2, norm="ortho"),
        transform_func_inv=partial(torch.fft.ifft2, norm="ortho"),
        diagonals=torch.ones(1),
    )
    return PhaseRetrieval(transform)


def coded(n: int) -> Any:
    from deepinv.physics import StructuredRandomPhaseRetrieval

    physics = StructuredRandomPhaseRetrieval((1, n, n), (1, n, n), n_layers=1)
    codes = operators.CodedDiffraction(patterns=1).codes(n, n).to(torch.complex64)
    physics.B.diagonals = codes[None]
    return physics


def half_pixel(n: int) -> float:
    """How far the peer's image stands off the rotation axis."""
    return (math.ceil(math.sqrt(2) * n) - n) % 2 / 2


def swap(y: Tensor) -> Tensor:
    """Detector bins and views change places."""
    return y.transpose(2, 3)


def shifted(y: Tensor) -> Tensor:
    """Zero frequency to the middle."""
    return torch.fft.fftshift(y, dim=(-2, -1))


def unshifted(y: Tensor) -> Tensor:
    """Zero frequency to the corner."""
    return torch.fft.ifftshift(y, dim=(-2, -1))


def to_complex(y: Tensor) -> Tensor:
    """Real and imaginary parts (B, 2, ...) to complex (B, ...), coils or one channel."""
    y = torch.complex(y[:, 0], y[:, 1])
    return y if y.ndim == 4 else y[:, None]


def to_parts(y: Tensor) -> Tensor:
    """Complex coils (B, N, H, W) to (B, 2, N, H, W); one channel to (B, 2, H, W)."""
    parts = torch.stack([y.real, y.imag], 1)
    return parts if y.shape[1] > 1 else parts[:, :, 0]


def cases() -> list[Case]:
    """All problems."""
    channels = operators.ComplexFromChannels()
    return [
        Case("inpainting", lambda n: operators.Mask.random(keep_fraction=0.3), 3, inpainting),
        *blurs("Gaussian blur", lambda b: operators.GaussianBlur(2.0, boundary=b)),
        *blurs("motion blur", lambda b: operators.MotionBlur(15, angle=30, boundary=b)),
        Case("downsampling x4: Downsampling", centred_cubic, 3, downsampling),
        Case(
            "downsampling x4: DownsamplingMatlab",
            lambda n: operators.SuperResolution(4, "bicubic-matlab"),
            3,
            downsampling_matlab,
        ),
        Case(
            "MRI, one coil",
            lambda n: operators.MRI(keep=LINES()) @ channels,
            2,
            mri,
            to_complex,
            to_parts,
        ),
        Case(
            "MRI, 8 coils",
            lambda n: operators.MRI(keep=LINES(), coils=8) @ channels,
            2,
            coils,
            to_complex,
            to_parts,
        ),
        Case(
            "CT, parallel, 60 views",
            lambda n: operators.ParallelBeamCT(views=60),
            1,
            tomography,
            swap,
            swap,
            DISCRETISATION,
            half_pixel,
        ),
        Case(
            "phase retrieval",
            lambda n: operators.PhaseRetrieval(low=0, squared=True),
            1,
            fourier_modulus,
            shifted,
            unshifted,
        ),
        Case(
            "coded diffraction",
            lambda n: operators.CodedDiffraction(patterns=1, low=0, squared=True),
            1,
            coded,
            shifted,
            unshifted,
        ),
    ]


def timed(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one call, the mean of some."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by order statistics (normal approximation of the rank)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = int(n / 2 - reach), int(n / 2 + reach)
    return ordered[max(low, 0)], ordered[min(high, n - 1)]


def compare(ours: Call, theirs: Call, pairs: int, clock: Callable[[], float]) -> dict[str, float]:
    """The ratio of the two, interleaved: the first of a pair changes from pair to pair."""
    calls = {"ours": ours, "theirs": theirs}
    for call in calls.values():
        call()
    quick = min(timed(call, 1, clock) for call in calls.values())
    repeats = max(1, math.ceil(AT_LEAST / max(quick, 1e-6)))
    ratios, spent = [], []
    for k in range(pairs):
        order = ["ours", "theirs"] if k % 2 else ["theirs", "ours"]
        seconds = {which: timed(calls[which], repeats, clock) for which in order}
        ratios.append(seconds["ours"] / seconds["theirs"])
        spent.append(seconds["ours"])
    low, high = interval(ratios)
    return {
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "ours_ms": 1000 * statistics.median(spent),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The newest result of each cell: a line for each problem and operation, a column a size."""
    newest = {(r["case"], r["operation"], r["size"]): r for r in rows}
    sizes = sorted({size for _, _, size in newest})
    lines = [
        "| problem | operation | " + " | ".join(f"{n} px" for n in sizes) + " |",
        "|---|---|" + "---|" * len(sizes),
    ]
    for case, operation in dict.fromkeys((case, op) for case, op, _ in newest):
        found = [newest.get((case, operation, n)) for n in sizes]
        cells = [f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" if r else "" for r in found]
        lines.append(f"| {case} | {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions(rows: list[dict[str, Any]]) -> str:
    """Under which conditions the newest results were measured."""
    newest = {(r["case"], r["operation"], r["size"]): r for r in rows}
    found = dict.fromkeys(
        f"{r['date']}, {r['conditions']}, {r['pairs']} pairs, threads {r['threads']},"
        f" torch {r['torch']}, deepinv {r['deepinv']}"
        for r in newest.values()
    )
    return "Measured: " + "; ".join(found) + "."


def write_page(rows: list[dict[str, Any]]) -> None:
    """Put the table in the page of the documentation."""
    before, rest = PAGE.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    middle = f"{MARKS[0]}\n{conditions(rows)}\n\n{table(rows)}\n{MARKS[1]}"
    PAGE.write_text(before + middle + after)


def own_times(
    chosen: list[Case], sizes: list[int], operations: list[str], clock: Callable[[], float]
) -> None:
    """Print our own times; no peer is needed."""
    for case in chosen:
        for n in sizes:
            side = case.own(n)
            for operation in operations:
                call = side.call(operation)
                if call is None:
                    continue
                call()
                spent = statistics.median(timed(call, 1, clock) for _ in range(3))
                print(f"{case.name}, {n} px, {operation}: {1000 * spent:.2f} ms", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Time the chosen cells, append them to the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of the problems")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--conditions", default="", help="what else the machine was doing")
    parser.add_argument("--own", action="store_true", help="our times alone, without deepinv")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="write the table to the documentation")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    chosen = [case for case in cases() if args.only in case.name]
    if args.own:
        own_times(chosen, args.sizes, args.operations, clock)
        return
    with heap.kept(torch.device("cpu")):
        measure(chosen, args, clock)
    rows = [json.loads(line) for line in args.results.read_text().splitlines()]
    print(table(rows))
    if args.docs:
        write_page(rows)


def measure(chosen: list[Case], args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Time the chosen cells, append them to the results and print them."""
    import deepinv

    for case in chosen:
        for n in args.sizes:
            own = case.own(n)
            theirs = case.theirs(n, own)
            difference = case.difference(own, theirs)
            if not difference <= case.tolerance:
                raise SystemExit(f"{case.name}, {n} px: not the same problem, {difference:.1e}")
            for operation in args.operations:
                calls = own.call(operation), theirs.call(operation)
                if calls[0] is None or calls[1] is None:
                    continue
                row = {
                    "case": case.name,
                    "operation": operation,
                    "size": n,
                    "batch": BATCH,
                    **compare(calls[0], calls[1], args.pairs, clock),
                    "difference": difference,
                    "pairs": args.pairs,
                    "threads": args.threads,
                    "torch": torch.__version__,
                    "deepinv": deepinv.__version__,
                    "conditions": args.conditions,
                    "date": str(datetime.date.today()),
                }
                with args.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{case.name}, {n} px, {operation}: {row['ratio']:.2f}"
                    f" [{row['low']:.2f}, {row['high']:.2f}], ours {row['ours_ms']:.2f} ms,"
                    f" difference {difference:.0e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
