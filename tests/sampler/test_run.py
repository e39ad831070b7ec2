"""Checkpoints, callbacks, faults, counts and results of a run."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.errors import (
    CapabilityError,
    FileProblem,
    InputError,
    InputTypeError,
    ResumeError,
    SamplingError,
)
from posterior.fingerprints import fingerprint
from posterior.guidance.base import Guidance
from posterior.priors.base import Prior
from posterior.schedules import EDM, RectifiedFlow, Schedule, VPCosine, VPLinear
from posterior.transitions import DDIM, Heun

SHAPE = (1, 6, 6)
BLUR = operators.GaussianBlur(sigma=1.0)


def gaussian() -> Prior:
    """A correlated Gaussian in (1, 6, 6)."""
    a = torch.randn(36, 36, generator=torch.Generator().manual_seed(0)) / 6
    return priors.Gaussian(torch.zeros(SHAPE), a @ a.T + 0.1 * torch.eye(36))


def measurement(count: int = 1) -> Tensor:
    """Some y of BLUR."""
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(9)) - 0.5


class Fragile(Prior):
    """A Gaussian that answers NaN to one row, recognised by its neighbours' absence of it."""

    event_shape = (2,)

    def __init__(self, breaks_below: float, every: bool = False) -> None:
        super().__init__()
        self.schedule = EDM()
        self.breaks_below = breaks_below
        self.every = every

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Shrink; NaN for rows whose first coordinate is negative once the noise is small."""
        _, sigma = self.schedule(t)
        x0 = x_t / (1 + sigma**2)
        if float(torch.as_tensor(sigma).max()) < self.breaks_below:
            broken = torch.ones_like(x_t[:, :1]) > 0 if self.every else x_t[:, :1] < 0
            return torch.where(broken, torch.nan, x0)
        return x0


@pytest.mark.parametrize("stop_at", [0, 3, 8])
@pytest.mark.parametrize("max_batch", [None, 2])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, stop_at: int, max_batch: int | None
) -> None:
    prior, y = gaussian(), measurement(2)
    run = {"noise": 0.2, "steps": 10, "n": 3, "seed": 4}
    whole = posterior.sample(prior, BLUR, y, **run)
    part = posterior.sample(
        prior, BLUR, y, checkpoint=tmp_path, callback=lambda s: s.index == stop_at, **run
    )
    assert part.provenance["steps_done"] == stop_at + 1
    assert "stopped early" in part.report
    resumed = posterior.sample(
        prior, BLUR, y, resume=tmp_path, checkpoint=tmp_path, max_batch=max_batch, **run
    )
    assert torch.equal(resumed.draws, whole.draws)
    assert resumed.provenance["nfe"] == whole.provenance["nfe"] == 10
    assert resumed.provenance["vjp"] == whole.provenance["vjp"] == 30


def test_an_exception_in_the_callback_leaves_a_checkpoint(tmp_path: Path) -> None:
    prior, y = gaussian(), measurement()
    run = {"noise": 0.2, "steps": 6}

    def interrupt(step: posterior.sampler.CallbackStep) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        posterior.sample(prior, BLUR, y, checkpoint=tmp_path, callback=interrupt, **run)
    resumed = posterior.sample(prior, BLUR, y, resume=tmp_path, **run)
    assert torch.equal(resumed.draws, posterior.sample(prior, BLUR, y, **run).draws)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"n": 4}, "n and first_draw"),
        ({"noise": 0.3}, "noise"),
        ({"steps": 7}, "steps or grid"),
        ({"method": guidance.DPS(scale=0.5)}, "method"),
        ({"y": measurement() + 0.1}, "y"),
        ({"operator": operators.GaussianBlur(sigma=1.1)}, "operator"),
        ({"prior": priors.Gaussian(torch.zeros(SHAPE), 1.0)}, "prior"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_resume_refuses_another_run(tmp_path: Path, change: dict, named: str) -> None:
    run = {
        "prior": gaussian(),
        "operator": BLUR,
        "y": measurement(),
        "noise": 0.2,
        "steps": 6,
        "n": 3,
        "seed": 0,
        "method": guidance.DPS(),
    }
    posterior.sample(checkpoint=tmp_path, callback=lambda s: s.index == 1, **run)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ResumeError, match=named):
        posterior.sample(resume=tmp_path, **(run | change))
    with pytest.raises(FileProblem, match="another"):
        posterior.sample(checkpoint=tmp_path, **(run | change))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_resume_refuses_a_broken_or_missing_file(tmp_path: Path) -> None:
    run = {"noise": 0.2, "steps": 6}
    with pytest.raises(FileProblem, match="no file"):
        posterior.sample(gaussian(), BLUR, measurement(), resume=tmp_path, **run)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(FileProblem, match="not a readable"):
        posterior.sample(gaussian(), BLUR, measurement(), resume=tmp_path, **run)


def test_callback_sees_every_step_and_stops_the_run() -> None:
    seen = []

    def callback(step: posterior.sampler.CallbackStep) -> bool:
        seen.append((step.index, step.t, step.s, tuple(step.x0.shape)))
        return step.index == 3

    draws = posterior.sample(
        gaussian(), BLUR, measurement(2), noise=0.2, steps=8, n=3, callback=callback
    )
    assert [s[0] for s in seen] == [0, 1, 2, 3]
    assert all(t > s for _, t, s, _ in seen)
    assert seen[0][3] == (3, 2, *SHAPE)
    assert draws.draws.shape == (3, 2, *SHAPE)
    assert draws.provenance["steps_done"] == 4


def test_a_broken_row_is_frozen_and_touches_no_other() -> None:
    prior = Fragile(breaks_below=0.5)
    samples = posterior.sample(prior, n=16, steps=12)
    failed = samples.diagnostics["failed_step"][:, 0]
    assert 0 < int((failed >= 0).sum()) < 16
    assert torch.isfinite(samples.draws).all()
    assert "FAILED" in samples.report
    for j in range(16):
        alone = posterior.sample(prior, n=1, steps=12, first_draw=j) if failed[j] < 0 else None
        if alone is not None:
            assert torch.equal(alone.draws[0], samples.draws[j])
    torch.testing.assert_close(samples.mean, samples.draws[failed < 0].mean(0))
    with pytest.raises(SamplingError, match="step"):
        posterior.sample(prior, n=16, steps=12, strict=True)


def test_every_row_broken_is_an_error() -> None:
    with pytest.raises(SamplingError, match="4 of 4 rows"):
        posterior.sample(Fragile(breaks_below=0.5, every=True), n=4, steps=12)


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (Guidance(), 7),
        (Guidance(transition=Heun()), 7),
        (guidance.DPS(), 5),
        (guidance.DPS(likelihood="norm", transition=DDIM(0.5)), 5),
        (guidance.DPS(scale=0.0), 5),
    ],
    ids=repr,
)
def test_counts_equal_their_formulas(method: Guidance, steps: int) -> None:
    prior = gaussian()
    measured = (BLUR, measurement(2), 0.2) if method.needs else (None, None, None)
    operator, y, noise = measured
    samples = posterior.sample(
        prior, operator, y, noise=noise, method=method, steps=steps, n=3, shape=SHAPE
    )
    assert samples.provenance["nfe"] == method.nfe(steps)
    assert samples.provenance["vjp"] == method.vjps(steps)


def test_save_and_load_and_no_silent_overwrite(tmp_path: Path) -> None:
    samples = posterior.sample(gaussian(), BLUR, measurement(), noise=0.2, steps=5, n=3)
    out = samples.save(tmp_path / "out")
    loaded = posterior.Samples.load(out)
    assert torch.equal(loaded.draws, samples.draws)
    assert loaded.provenance == json.loads(json.dumps(samples.provenance))
    assert loaded.report == samples.report
    with pytest.raises(FileProblem, match="exists"):
        samples.save(out)
    samples.save(out, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileProblem, match="is a file"):
        samples.save(tmp_path / "file")
    with pytest.raises(FileProblem, match="no file"):
        posterior.Samples.load(tmp_path / "nowhere")


def test_statistics_of_the_draws() -> None:
    draws = torch.arange(12.0).reshape(4, 1, 3)
    samples = posterior.Samples(draws, {"failed_step": torch.tensor([[-1], [-1], [5], [-1]])})
    kept = draws[[0, 1, 3]]
    torch.testing.assert_close(samples.mean, kept.mean(0))
    torch.testing.assert_close(samples.std, kept.std(0))
    torch.testing.assert_close(samples.quantile(0.25), kept.quantile(0.25, dim=0))
    with pytest.raises(InputError, match="n >= 2"):
        _ = posterior.Samples(draws[:1]).std
    with pytest.raises(InputError, match="between 0 and 1"):
        samples.quantile(1.5)
    with pytest.raises(InputTypeError, match="a quantile must be a number"):
        samples.quantile("half")


def test_steps_one_and_provenance() -> None:
    samples = posterior.sample(gaussian(), BLUR, measurement(), noise=0.2, steps=1, seed=2**70)
    assert torch.isfinite(samples.draws).all()
    assert samples.provenance["seed"] == [2**70]
    json.dumps(samples.provenance)
    for word in ("MMPS", "GaussianBlur", "1 steps", "network evaluations"):
        assert word in samples.report


GOOD = {"prior": gaussian(), "operator": BLUR, "y": measurement(), "noise": 0.2, "steps": 3}
BAD = {
    "n = 0": ({"n": 0}, InputError, "n must be at least 1"),
    "n a float": ({"n": 2.0}, InputTypeError, "n must be an integer"),
    "n a bool": ({"n": True}, InputTypeError, "n must be an integer"),
    "steps = 0": ({"steps": 0}, InputError, "steps"),
    "steps a string": ({"steps": "10"}, InputTypeError, "steps"),
    "seed a float": ({"seed": 1.5}, InputTypeError, "seed"),
    "seed a string": ({"seed": "1"}, InputTypeError, "seed"),
    "too many seeds": ({"seed": [1, 2]}, InputError, "2 seeds for 1"),
    "first_draw < 0": ({"first_draw": -1}, InputError, "first_draw"),
    "max_batch = 0": ({"max_batch": 0}, InputError, "max_batch"),
    "no noise": ({"noise": None}, InputError, "noise"),
    "noise < 0": ({"noise": -0.1}, InputError, "noise|std"),
    "noise NaN": ({"noise": float("nan")}, InputError, "noise|std"),
    "noise of a wrong shape": ({"noise": torch.ones(3)}, InputError, "std"),
    "y with NaN": ({"y": measurement() * torch.nan}, InputError, "NaN"),
    "y an integer": ({"y": measurement().int()}, InputError, "floating"),
    "y an array": ({"y": measurement().numpy()}, InputTypeError, "tensor"),
    "y without batch": ({"y": measurement()[0, 0, 0]}, InputError, "batch"),
    "y of another shape": ({"y": torch.zeros(1, 1, 5, 6)}, InputError, "shape"),
    "y without operator": ({"operator": None}, InputError, "operator and y together"),
    "operator without y": ({"y": None}, InputError, "operator and y together"),
    "operator a function": ({"operator": torch.sin}, InputTypeError, "from_callable"),
    "prior a module": ({"prior": torch.nn.Identity()}, InputTypeError, "Prior"),
    "y complex, A real": ({"y": measurement() + 1j}, InputTypeError, "complex"),
    "checkpoint a number": ({"checkpoint": 3}, InputTypeError, "folders"),
    "resume a number": ({"resume": 3}, InputTypeError, "folders"),
    "callback no function": ({"callback": 3}, InputTypeError, "callable"),
    "y on meta": ({"y": measurement().to("meta")}, InputError, "device|meta"),
    "unknown method": ({"method": "dsp"}, InputError, "did you mean .*'dps'"),
    "method a class": ({"method": guidance.DPS}, InputTypeError, "instance"),
    "unknown grid": ({"grid": "karas"}, InputError, "did you mean 'karras'"),
    "grid of one level": ({"grid": [(1.0, 0.0, 1.0)]}, InputError, "two levels"),
    "grid with NaN": ({"grid": [(1.0, 0.0, float("nan")), (0, 1, 0)]}, InputError, "level"),
    "grid of other numbers": ({"grid": [(1.0, 0.1), (0, 1)]}, InputTypeError, "alpha, sigma"),
    "grid a number": ({"grid": 5}, InputTypeError, "alpha, sigma"),
    "grid of another schedule": ({"grid": [(1.0, 0.1, 1.0), (0, 1, 0)]}, InputError, "not one of"),
    "grid that begins clean": ({"grid": [(0, 1, 0), (0, 1, 0)]}, InputError, "begin with noise"),
    "shape a number": ({"shape": 64}, InputTypeError, "shape"),
    "shape of another prior": ({"shape": (1, 5, 5)}, InputError, "shape"),
    "source of another shape": ({"source": torch.zeros(1, 1, 5, 5)}, InputError, "shape|source"),
    "black box": (
        {"operator": operators.from_callable(lambda x: x), "method": "dps"},
        CapabilityError,
        "gradient",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_network_call(case: str) -> None:
    change, error, message = BAD[case]
    arguments = GOOD | change
    prior = arguments["prior"]
    before = prior.counts.nfe if isinstance(prior, Prior) else 0
    with pytest.raises(error, match=message):
        posterior.sample(**arguments)
    if isinstance(prior, Prior):
        assert prior.counts.nfe == before


def test_steps_that_contradict_the_grid() -> None:
    prior = gaussian()
    levels = [tuple(level) for level in Guidance().grid(prior.schedule, 4)]
    with pytest.raises(InputError, match="steps=3"):
        posterior.sample(prior, steps=3, grid=levels)


def test_no_graph_grows_along_the_run() -> None:
    """An operator with trainable weights, and a source that wants a gradient, stay outside."""
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    operator = operators.from_callable(net, differentiable=True, batched=True)
    run = posterior.sample(gaussian(), operator, measurement(), noise=0.2, steps=3)
    assert not run.draws.requires_grad
    source = measurement().requires_grad_()
    assert not posterior.sample(gaussian(), source=source, steps=3).draws.requires_grad


def test_conditions_that_differ_by_measurement() -> None:
    """One component for each measurement; another number of them is refused."""
    means = torch.tensor([[-5.0], [5.0], [20.0]])
    prior = priors.GaussianMixture(torch.ones(3) / 3, means, 0.01)
    free = posterior.sample(prior.given([0, 1]), n=3, steps=50).draws
    assert free.shape == (3, 2, 1)
    assert (free[:, 0] < -4).all()
    assert (free[:, 1] > 4).all()
    operator = operators.from_matrix(torch.eye(1))
    for conditions in ([0, 1, 2], [0, 1]):
        y = torch.zeros(2 if len(conditions) == 3 else 3, 1)
        with pytest.raises(InputError, match="conditions for"):
            posterior.sample(prior.given(conditions), operator, y, noise=1.0, steps=2)


def test_parameters_for_another_number_of_measurements() -> None:
    kernels = torch.ones(3, 1, 3, 3) / 9
    with pytest.raises(InputError, match="3"):
        posterior.sample(
            gaussian(), operators.Blur(kernel=kernels), measurement(2), noise=0.2, steps=2
        )


@pytest.mark.parametrize("schedule", [RectifiedFlow(), EDM(), VPCosine()], ids=repr)
def test_no_noise_at_all(schedule: Schedule) -> None:
    """Noise 0 leaves the prior's own spread as the scale of the likelihood."""
    prior = priors.Gaussian(torch.zeros(4), 1.0, schedule=schedule)
    y = torch.ones(1, 4)
    run = posterior.sample(prior, operators.from_matrix(torch.eye(4)), y, noise=0.0, steps=50)
    torch.testing.assert_close(run.draws[0], y, atol=0.02, rtol=0)
    assert run.diagnostics["residual"].isnan().all()


@pytest.mark.parametrize("kind", ["eps", "score", "edm", "v", "x0", "velocity"])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), VPCosine()], ids=repr)
def test_every_parametrisation_runs_where_the_schedule_begins_with_noise_alone(
    kind: str, schedule: Schedule
) -> None:
    class Zero(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return torch.zeros_like(x)

    prior = priors.NetworkPrior(Zero(), kind, schedule, event_shape=(3,))
    run = posterior.sample(prior, steps=5)
    first = run.provenance["levels"][0]
    assert (first[1] == 0) is (kind in ("v", "x0", "velocity"))
    assert torch.isfinite(run.draws).all()


def test_a_report_without_residual_is_valid_json(tmp_path: Path) -> None:
    prior = priors.Gaussian(torch.zeros(4), 1.0)
    y = torch.ones(1, 4)
    run = posterior.sample(prior, operators.from_matrix(torch.eye(4)), y, noise=0.0, steps=5)
    report = (run.save(tmp_path / "out") / "report.json").read_text()
    assert json.loads(report, parse_constant=pytest.fail)["diagnostics"]["residual"] == [[None]]


def test_a_finished_or_stopped_run_is_not_replaced_unasked(tmp_path: Path) -> None:
    run = {"noise": 0.2, "steps": 6}
    posterior.sample(
        gaussian(), BLUR, measurement(), checkpoint=tmp_path, callback=lambda s: True, **run
    )
    with pytest.raises(FileProblem, match="resume="):
        posterior.sample(gaussian(), BLUR, measurement(), checkpoint=tmp_path, **run)


def test_fingerprints_tell_values_apart() -> None:
    class Slotted:
        __slots__ = ("a",)

        def __init__(self, a: int) -> None:
            self.a = a

    pairs = [
        (np.int64(1), np.int64(2)),
        (np.float32(1), np.float32(2)),
        (functools.partial(print, 1), functools.partial(print, 2)),
        (Path("a"), Path("b")),
        (Slotted(1), Slotted(2)),
        (torch.ones(2), torch.ones(2).double()),
        (torch.ones(2, 1), torch.ones(1, 2)),
        ([1, [2]], [[1], 2]),
        (torch.tensor([1j]).conj(), torch.tensor([1j])),
    ]
    for one, other in pairs:
        assert fingerprint(one) != fingerprint(other)
        assert fingerprint(one) == fingerprint(one)


def test_grid_outside_the_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="covers"):
        VPLinear().level_of_ratio(1e9)


def test_a_residual_that_does_not_exist_is_not_reported() -> None:
    """Without noise there is nothing to divide by."""
    run = posterior.sample(**GOOD | {"noise": 0.0, "method": guidance.DPS(likelihood="norm")})
    assert "residual" not in run.report
    assert "nan" not in run.report
