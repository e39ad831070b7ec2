"""One battery for every registered method; a method joins by being registered."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.errors import CapabilityError, InputError, InputTypeError, SamplingError
from posterior.guidance import REGISTRY
from posterior.guidance.base import Guidance
from posterior.operators.base import Operator
from posterior.priors.base import Prior
from posterior.schedules import EDM, RectifiedFlow, Schedule, VPLinear
from posterior.transitions import DPMSolver2M

SHAPE = (3, 4, 4)
SMALL = {"tds": {"particles": 4}, "enkg": {"particles": 6}}  # ensembles of a size for tests
VARIANTS: dict[str, Guidance] = {
    **{name: cls(**SMALL.get(name, {})) for name, cls in REGISTRY.items()},
    "dps-norm": guidance.DPS(likelihood="norm"),
    "dps-2m": guidance.DPS(transition=DPMSolver2M()),
    "dds-published": guidance.DDS.preset("code/mri"),
    "dds-noiseless": guidance.DDS(gamma=float("inf")),
    "daps-langevin": guidance.DAPS(kernel="langevin", inner_steps=3, ode_steps=2),
    "daps-hamiltonian": guidance.DAPS(kernel="hamiltonian", inner_steps=3),
    "daps-published": guidance.DAPS.preset("code/ffhq/super-resolution/hmc"),
    "daps-metropolis": guidance.DAPS(kernel="metropolis", inner_steps=3),
    "mcg-published": guidance.MCG.preset("code/inpainting"),
    "reddiff-published": guidance.REDdiff.preset("code/inpainting"),
    "postedit-chain": guidance.PostEdit(closed=False, inner_steps=3),
}
INVERSIONS = ("ddim-inversion", "negative-prompt-inversion", "edict", "bdia")
"""Nothing is random in them: all draws of a source are equal."""
MEASURED = {n: m for n, m in VARIANTS.items() if "measurement" in m.needs}


def mixture(schedule: Schedule | None = None) -> Prior:
    """Four components in (3, 4, 4)."""
    means = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    return priors.GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4]), means, 0.05, schedule)


def other(schedule: Schedule | None) -> Prior:
    """The prior of a source: the mixture with other weights."""
    prior = mixture(schedule)
    assert isinstance(prior, priors.GaussianMixture)
    return priors.GaussianMixture(prior.weights.flip(0), prior.means, 0.05, prior.schedule)


def setting(
    method: Guidance,
    count: int,
    dtype: torch.dtype = torch.float32,
    schedule: Schedule | None = None,
) -> dict[str, object]:
    """The operator with masks that differ by measurement and its y, or the source of an edit."""
    x = mixture().sample(count, seed=4).to(dtype)
    if "source" in method.needs:
        told = {"source_prior": other(schedule)} if "source prior" in method.needs else {}
        return {"source": x, **told}
    keep = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.7
    alike = "identity" in method.needs
    operator = operators.Identity() if alike else operators.Mask(keep=keep)
    y = posterior.GaussianNoise(0.1).sample(operator(x), seed=5)
    return {"operator": operator, "y": y, "noise": 0.1}


def alone(given: dict[str, object], b: int) -> dict[str, object]:
    """The part of a setting that belongs to measurement b."""
    part: dict[str, object] = {}
    for name, value in given.items():
        if isinstance(value, Operator):
            part[name] = value.take([b])
        else:
            part[name] = value[b : b + 1] if isinstance(value, Tensor) else value
    return part


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_does_not_depend_on_its_neighbours(name: str, dtype: torch.dtype) -> None:
    method, prior = VARIANTS[name], mixture()
    given = setting(method, 2, dtype)
    run = {"method": method, "steps": 5}
    whole = posterior.sample(prior, n=5, seed=3, **given, **run).draws
    assert whole.shape == (5, 2, *SHAPE)
    assert whole.dtype == dtype
    assert torch.isfinite(whole).all()
    for max_batch in (1, 3, 100):
        again = posterior.sample(prior, n=5, seed=3, max_batch=max_batch, **given, **run).draws
        assert torch.equal(again, whole), f"max_batch={max_batch}"
    for j in (0, 4):
        one = posterior.sample(prior, n=1, seed=3, first_draw=j, **given, **run).draws
        assert torch.equal(one[0], whole[j]), f"draw {j}"
    for b in range(2):
        one = posterior.sample(prior, n=5, seed=3 + b, **alone(given, b), **run).draws
        assert torch.equal(one[:, 0], whole[:, b]), f"measurement {b}"
    different = len({float(d.sum()) for d in whole.flatten(0, 1)})
    assert different == (2 if name in INVERSIONS else 10), "draws differ"


def test_levels_of_noise_belong_to_their_measurements() -> None:
    """`Denoising` asks the prior at other levels for other measurements."""
    prior, y, stds = mixture(), torch.randn(2, *SHAPE), torch.tensor([0.1, 0.4])
    run = {"method": "denoising", "steps": 5, "n": 3}
    whole = posterior.sample(prior, operators.Identity(), y, noise=stds, **run).draws
    for b in range(2):
        given = {"noise": stds[b : b + 1], "seed": b}
        one = posterior.sample(prior, operators.Identity(), y[b : b + 1], **given, **run).draws
        assert torch.equal(one[:, 0], whole[:, b])


@pytest.mark.parametrize("std", [0.0, torch.tensor([0.1, 0.0]), torch.full((2, *SHAPE), 0.1)])
def test_denoising_refuses_noise_that_is_no_level(std: float | Tensor) -> None:
    prior, y = mixture(), torch.zeros(2, *SHAPE)
    with pytest.raises(CapabilityError, match="one std"):
        posterior.sample(prior, operators.Identity(), y, noise=std, method="denoising")
    assert prior.counts.nfe == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    method, prior = VARIANTS[name], mixture()
    run = {"method": method, "steps": 5, "n": 3, **setting(method, 2)}
    whole = posterior.sample(prior, **run)
    posterior.sample(prior, checkpoint=tmp_path, callback=lambda s: s.index == 2, **run)
    again = posterior.sample(prior, resume=tmp_path, max_batch=7, **run)
    assert torch.equal(again.draws, whole.draws)
    assert again.provenance["nfe"] == whole.provenance["nfe"]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("steps", [1, 4])
def test_counts_are_the_formulas(name: str, steps: int) -> None:
    method, prior = VARIANTS[name], mixture()
    if getattr(method, "strength", 1) < 1:
        steps = max(steps, 3)  # part of a single step is none, and BDIA makes two
    if isinstance(method, guidance.EnKG):
        steps = max(steps, 2)  # the first level is never corrected
    run = posterior.sample(prior, method=method, steps=steps, n=method.yields, **setting(method, 1))
    assert run.provenance["nfe"] * method.yields == method.nfe(steps)
    assert run.provenance["vjp"] * method.yields == method.vjps(steps)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_graph_and_no_global_generator(name: str) -> None:
    method, prior = VARIANTS[name], mixture()
    before = torch.random.get_rng_state()
    with torch.enable_grad():
        draws = posterior.sample(prior, method=method, steps=3, **setting(method, 1)).draws
    assert not draws.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_row_is_flagged_and_touches_no_other(name: str) -> None:
    """From the third move on the denoiser gives nan for the rows near one source or mask."""

    class Broken(priors.GaussianMixture):
        broken = False

        def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
            out = super().denoise(x_t, t)
            first = torch.arange(len(out)) < len(out) // 2
            return torch.where(first[:, None, None, None], torch.nan, out) if self.broken else out

    fine = mixture()
    prior = Broken(fine.weights, fine.means.float(), 0.05)
    method = VARIANTS[name]
    count = method.particles
    given = setting(method, 2)
    whole = posterior.sample(prior, method=method, steps=5, **given)

    def breaks(step: object) -> bool:
        prior.broken = step.index >= 1  # type: ignore[attr-defined]
        return False

    out = posterior.sample(
        prior, method=method, steps=5, callback=breaks, max_batch=2 * count, **given
    )
    assert out.good.tolist() == [[False, True]]
    assert torch.equal(out.draws[:, 1], whole.draws[:, 1])
    assert torch.isfinite(out.draws).all(), "a frozen row keeps its last state"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_schedule_runs(name: str) -> None:
    method = VARIANTS[name]
    for schedule in (VPLinear(), RectifiedFlow(), EDM()):
        draws = posterior.sample(
            mixture(schedule), method=method, steps=6, n=2, **setting(method, 2, schedule=schedule)
        ).draws
        assert torch.isfinite(draws).all(), schedule


ZERO = {
    "dps": guidance.DPS(scale=0),
    "mmps": guidance.MMPS(iterations=0),
    "dds": guidance.DDS(gamma=0),
}


@pytest.mark.parametrize("name", ZERO)
def test_zero_guidance_is_the_base_class(name: str) -> None:
    prior, method = mixture(), ZERO[name]
    given = alone(setting(method, 1), 0)
    guided = posterior.sample(prior, method=method, steps=5, n=3, seed=2, **given).draws
    base = Guidance(transition=method.transition)
    plain = posterior.sample(prior, shape=SHAPE, method=base, steps=5, n=3, seed=2).draws
    assert torch.equal(guided, plain)


# black boxes lose a particle or a move to nan, and Denoising takes no subclass of the identity
UNBROKEN = {"enkg", "daps-metropolis", "denoising"}


@pytest.mark.parametrize("name", sorted(set(MEASURED) - UNBROKEN))
def test_an_operator_that_gives_nan_is_an_error_and_not_a_draw_of_the_prior(name: str) -> None:
    class Broken(operators.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

        adjoint = pinv = forward

    y = torch.zeros(1, *SHAPE)
    with pytest.raises(SamplingError):
        posterior.sample(mixture(), Broken(), y, noise=0.1, method=MEASURED[name], steps=5)


@pytest.mark.parametrize("name", MEASURED)
def test_a_measurement_is_needed(name: str) -> None:
    with pytest.raises(CapabilityError, match="measurement"):
        posterior.sample(mixture(), shape=SHAPE, method=MEASURED[name])


@pytest.mark.parametrize("name", MEASURED)
def test_what_the_operator_cannot_do_is_said_before_the_first_call(name: str) -> None:
    method, prior = MEASURED[name], mixture()
    black_box = operators.from_callable(lambda x: x.round(), differentiable=False)
    y = torch.zeros(1, *SHAPE)
    if name in ("enkg", "daps-metropolis"):
        draws = posterior.sample(prior, black_box, y, noise=0.5, method=method, steps=3).draws
        assert torch.isfinite(draws).all()
        return
    with pytest.raises(CapabilityError):
        posterior.sample(prior, black_box, y, noise=0.5, method=method)
    assert prior.counts.nfe == 0


def test_auto_chooses_by_capability_and_says_why() -> None:
    prior, y = mixture(), torch.zeros(1, *SHAPE)
    noisy = posterior.sample(prior, operators.Identity(), y, noise=0.1, steps=2)
    clean = posterior.sample(prior, operators.Identity(), y, noise=0.0, steps=2)
    curved = operators.from_callable(lambda x: x + x**3, differentiable=True)
    bent = posterior.sample(prior, curved, y, noise=0.1, steps=2)
    black_box = operators.from_callable(lambda x: x.round(), differentiable=False)
    boxed = posterior.sample(prior, black_box, y, noise=0.1, steps=2)
    free = posterior.sample(prior, shape=SHAPE, steps=2)
    edit = posterior.sample(prior, source=y, steps=2)
    runs = (noisy, clean, bent, boxed, free)
    chosen = [r.provenance["method"].split("(")[0] for r in runs]
    assert chosen == ["Denoising", "MMPS", "DPS", "EnKG", "Guidance"]
    assert edit.provenance["method"].startswith("Guidance")
    assert all(r.provenance["why"] for r in runs)


BAD = {
    "mmps": {"iterations": -1},
    "denoising": {"default_steps": 0},
    "dds": {"gamma": -1.0},
    "daps": {"kernel": "langvin"},
    "mcg": {"scale": float("nan")},
    "reddiff": {"form": "likelyhood"},
    "enkg": {"particles": 1},
    "tds": {"particles": 0},
    "postedit": {"fusion": 1.5},
    "dps": {"likelihood": "gausian"},
    "sdedit": {"strength": 0.0},
    "blended": {"strength": 1.5},
    "ddcm": {"eta": -0.1},
    "ddim-inversion": {"label": "taget"},
    "negative-prompt-inversion": {"strength": "all"},
    "edict": {"mixing": 0.0},
    "bdia": {"gamma": 2.0},
    "flowedit": {"average": 0},
    "rf-inversion": {"eta": 1.1},
    "flowchef": {"inner_steps": 0},
}


@pytest.mark.parametrize("name", REGISTRY)
def test_bad_settings_are_refused(name: str) -> None:
    with pytest.raises((InputError, InputTypeError)):
        REGISTRY[name](**BAD[name])


def test_methods_are_replaceable_values() -> None:
    for method in VARIANTS.values():
        assert replace(method) == method
        assert hash(method) == hash(replace(method))


def peak(name: str, steps: int) -> int:
    """The most bytes that a run's tensors hold at once, by torch's own account."""
    method = VARIANTS[name]
    given = setting(method, 1)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as record:
        posterior.sample(mixture(), n=2, seed=3, method=method, steps=steps, **given)
    events = record.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = list(itertools.accumulate(size for _, size in sorted(changes, key=lambda c: c[0])))
    return max(held)


@pytest.mark.parametrize("name", VARIANTS)
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    """To the byte: nothing of a step, its graph included, outlives the next."""
    assert peak(name, 6) == peak(name, 12) > 0
