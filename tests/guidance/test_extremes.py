"""What methods do at the edges: dead particles, noise by row, overflow, settings that fight."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import posterior
from posterior import guidance, operators, priors
from posterior.errors import (
    CapabilityError,
    InputError,
    InputTypeError,
    PosteriorError,
    SamplingError,
)
from posterior.guidance import REGISTRY, Guidance
from posterior.operators import PoissonNoise
from posterior.schedules import CLEAN, RectifiedFlow, VPLinear
from posterior.transitions import Heun

D = 4
MATRIX = torch.tensor([[1.0, 0.5, 0, 0], [0, 1, -0.5, 0], [0, 0, 1, 0.3]], dtype=torch.float64)
PRIOR = priors.Gaussian(torch.zeros(D, dtype=torch.float64), 1.0, VPLinear())
Y = torch.tensor([[0.8, -0.3, 0.4]], dtype=torch.float64)


class Trap(operators.Operator):
    """A linear map that is not a number where x[0] is below a level."""

    linear = False

    def __init__(self, level: float) -> None:
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4) -> (B, 3)."""
        return torch.where(x[:, :1] > self.level, x @ MATRIX.T, torch.nan)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("particles", [2, 8])
def test_a_dead_particle_is_never_drawn(particles: int, threshold: float) -> None:
    """Draws are what their flag says: good ones have a likelihood, and few filters lose all."""
    method = guidance.TDS(particles=particles, threshold=threshold)
    run = {"noise": 0.5, "method": method, "steps": 20, "n": 20}
    out = posterior.sample(PRIOR, Trap(-0.5), Y, **run)
    good = out.good[:, 0]
    assert bool(torch.isfinite(out.diagnostics["residual"][:, 0][good]).all())
    assert bool((out.draws[:, 0, 0][good] > -0.5).all())
    # about a third of the prior's particles lie beyond, of the posterior's fewer
    assert int(good.sum()) >= (10 if particles == 2 else 18)


def test_a_filter_without_any_particle_fails() -> None:
    with pytest.raises(SamplingError, match="turned non-finite"):
        posterior.sample(
            PRIOR, Trap(100.0), Y, noise=0.5, method=guidance.TDS(particles=3), steps=5
        )


@pytest.mark.parametrize("kernel", ["langevin", "hamiltonian", "metropolis"])
@pytest.mark.parametrize("noise", [torch.tensor([0.01, 0.3]).double(), PoissonNoise(2.0)])
def test_the_steps_of_a_chain_are_those_of_its_measurement(kernel: str, noise: object) -> None:
    method = guidance.DAPS(kernel=kernel, inner_steps=5, spread=1.0)  # type: ignore[arg-type]
    y = torch.cat([Y.abs(), 3 * Y.abs()])
    run = {"method": method, "steps": 4, "seed": 0}
    operator = operators.from_matrix(MATRIX)
    both = posterior.sample(PRIOR, operator, y, noise=noise, **run).draws
    model = noise[1:] if isinstance(noise, Tensor) else noise
    alone = posterior.sample(PRIOR, operator, y[1:], noise=model, **run | {"seed": 1}).draws
    assert torch.equal(alone[:, 0], both[:, 1])
    apart = posterior.sample(PRIOR, operator, y, noise=noise, max_batch=1, **run).draws
    assert torch.equal(apart, both)


@pytest.mark.parametrize("method", [guidance.DPS, guidance.MMPS, guidance.DDS, guidance.MCG])
def test_a_second_estimate_without_the_measurement_is_refused(method: type[Guidance]) -> None:
    with pytest.raises(InputError, match="without the measurement"):
        method(transition=Heun())
    assert guidance.SDEdit(transition=Heun()).transition == Heun()


def test_an_overflow_is_no_result() -> None:
    operator = operators.from_matrix(MATRIX.float())
    prior = priors.Gaussian(torch.zeros(D), 1.0, VPLinear())
    with pytest.raises(SamplingError):
        posterior.sample(
            prior, operator, 1e30 * Y.float(), noise=0.1, method=guidance.REDdiff(), steps=5
        )


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"first": 0.6, "last": 0.6}, 20), ({"first": 0.5, "last": 0.5}, 10), ({}, 1)],
)
def test_enkg_says_when_it_would_not_correct(settings: dict[str, float], steps: int) -> None:
    method = guidance.EnKG(particles=8, **settings)
    with pytest.raises(InputError, match="corrects at none"):
        posterior.sample(
            PRIOR, operators.from_matrix(MATRIX), Y, noise=0.1, method=method, steps=steps, n=8
        )


NUMBERS = [
    (cls, field.name, field.type)
    for cls in dict.fromkeys(REGISTRY.values())
    for field in dataclasses.fields(cls)
    if {"int", "float", "bool"} & set(str(field.type).split(" | "))
]


@pytest.mark.parametrize(
    ("cls", "name", "kind"), NUMBERS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in NUMBERS]
)
def test_a_setting_is_a_number_or_says_so(cls: type[Guidance], name: str, kind: str) -> None:
    default = getattr(cls(), name)
    wrong: list[object] = ["1", [1.0], 1j]
    wrong += [1, "no", math.nan] if kind == "bool" else [True, math.nan]
    for value in wrong:
        with pytest.raises(PosteriorError, match=f"{name} must be"):
            cls(**{name: value})
    if default is None:
        default = 1.0 if "float" in kind else 1
    if kind != "bool":
        scalar = np.int64(default) if isinstance(default, int) else np.float32(default)
        assert getattr(cls(**{name: scalar}), name) == scalar
        assert type(getattr(cls(**{name: scalar}), name)) is type(default)


def test_only_the_last_level_is_clean() -> None:
    high, low = (tuple(PRIOR.schedule.level(t)) for t in (0.9, 0.4))
    for grid in ([high, low, CLEAN, CLEAN], [high, CLEAN, low, CLEAN], [CLEAN, CLEAN]):
        with pytest.raises(InputError, match="only its last level may be clean"):
            posterior.sample(PRIOR, shape=(D,), grid=grid)


def test_arguments_that_would_be_read_otherwise_than_meant() -> None:
    fourier = operators.ComplexFromChannels()
    prior = priors.Gaussian(torch.zeros(2, 2, 2), 1.0, VPLinear())
    with pytest.raises(InputTypeError, match=r"y is real, but .* give y \+ 0j"):
        posterior.sample(prior, fourier, torch.zeros(1, 1, 2, 2), noise=0.1, steps=2)
    with pytest.raises(InputTypeError, match="source must be real"):
        posterior.sample(PRIOR, source=torch.zeros(1, D, dtype=torch.complex128), method="sdedit")
    with pytest.raises(InputError, match="below 2"):
        posterior.sample(PRIOR, shape=(D,), first_draw=2**32)
    y = torch.zeros(1, 3)
    run = {"noise": 0.1, "steps": 2, "method": "dps"}
    out = posterior.sample(
        PRIOR, operators.from_matrix(MATRIX.float()), y, source=torch.zeros(1, D).double(), **run
    )
    assert out.draws.dtype == torch.float32
    assert out.provenance["dtype"] == "float32"


@pytest.mark.parametrize("name", ["code/mro", "", [1], None])
@pytest.mark.parametrize("method", [m for m in REGISTRY.values() if hasattr(m, "preset")])
def test_a_preset_that_is_none_is_told(method: Any, name: object) -> None:
    with pytest.raises(InputError, match="unknown preset"):
        method.preset(name)


@pytest.mark.parametrize("method", [guidance.MMPS(), guidance.DPS()], ids=repr)
def test_a_preconditioner_that_overflows_is_a_failure_and_not_silence(method: Guidance) -> None:
    """(A A')^2 is infinite in float32: the correction must not quietly be 0."""
    prior = priors.Gaussian(torch.zeros(4), 1.0)
    operator = operators.from_matrix(torch.diag(torch.tensor([1e20, 1.0, 1.0, 1.0])))
    with pytest.raises(SamplingError, match="at step 0"):
        posterior.sample(prior, operator, torch.ones(1, 4), noise=0.1, method=method, steps=4)


@pytest.mark.parametrize("std", [0.1, torch.tensor([0.1])], ids=["a number", "per measurement"])
@pytest.mark.parametrize("method", [guidance.DDS, guidance.DAPS])
def test_a_flat_prior_says_nothing_where_there_is_no_signal(
    method: Any, std: float | torch.Tensor
) -> None:
    prior = priors.Gaussian(torch.zeros(1, 4, 4), 1.0, RectifiedFlow())
    y = torch.zeros(1, 1, 4, 4)
    with pytest.raises(CapabilityError, match="finite spread"):
        posterior.sample(
            prior, operators.Identity(), y, noise=std, method=method(spread=math.inf), steps=4
        )
