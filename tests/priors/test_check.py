"""`priors.check` finds what is wrong, and finds nothing in what is right."""

import pytest
import torch
from torch import Tensor, nn

from posterior.errors import InputError, InputTypeError
from posterior.priors import Gaussian, GaussianMixture, NetworkPrior, Prior, check
from posterior.schedules import EDM, VE, Discrete, RectifiedFlow, VPCosine, VPLinear

SCHEDULES = [None, VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(), Discrete.linear(100)]


def truth(schedule: object = None) -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(4, 12, dtype=torch.float64, generator=g)
    return GaussianMixture([0.25] * 4, means, 0.04, schedule=schedule)


class Exact(nn.Module):
    """eps of the exact prior, read at a table's index, with a fault to be found."""

    def __init__(self, exact: GaussianMixture, time_scale: float = 1.0, sign: float = 1.0) -> None:
        super().__init__()
        self.exact, self.time_scale, self.sign = exact, time_scale, sign

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        t = ((self.time_scale * index + 1) / len(self.exact.schedule)).clamp(max=1)
        alpha, sigma = (v[:, None] for v in self.exact.schedule(t))
        return self.sign * (x - alpha * self.exact.denoise(x, t)) / sigma


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_right_priors_pass(schedule: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(truth(schedule)) == []
    assert "nothing wrong" in capsys.readouterr().out
    assert check(Gaussian(torch.zeros(3, 4), schedule=schedule), verbose=False) == []


def network(schedule: Discrete, **fault: float) -> NetworkPrior:
    return NetworkPrior(Exact(truth(schedule), **fault), "eps", schedule, range=None)


def test_network_with_data_passes_and_faults_are_found() -> None:
    table = Discrete.linear(1000)
    data = truth().sample(32)
    assert check(network(table), data, verbose=False) == []
    wrong = {
        "index in [0, 100] for a table of 1000": network(table, time_scale=0.1),
        "time frozen": network(table, time_scale=0.0),
        "sign of eps": network(table, sign=-1.0),
        "parametrisation": NetworkPrior(Exact(truth(table)), "v", table, range=None),
        "schedule": NetworkPrior(Exact(truth(table)), "eps", Discrete.cosine(1000), range=None),
    }
    for fault, prior in wrong.items():
        problems = check(prior, data, verbose=False)
        assert problems, fault


def test_faults_are_found_without_data_too() -> None:
    prior = NetworkPrior(
        Exact(truth(Discrete.linear(100)), sign=-1.0), "x0", Discrete.linear(100), range=(-1, 1)
    )
    assert check(prior, shape=(12,), verbose=False)


def test_range() -> None:
    table = Discrete.linear(100)
    prior = NetworkPrior(Exact(truth(table)), "eps", table, range=(-1.0, 1.0))
    data = truth().sample(8)
    assert any("range" in p for p in check(prior, 10 * data, verbose=False))
    assert any("[0, 1]" in p for p in check(prior, data.sigmoid(), verbose=False))


class Broken(Gaussian):
    fault = ""

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        x0 = super().denoise(x_t, t)
        if self.fault == "nan":
            return x0 * float("nan")
        if self.fault == "batch":
            return x0 + 1e-6 * x_t.mean(0)
        if self.fault == "detached":
            return x0 + 3 * (x0 - x0.detach())
        if self.fault == "shape":
            return x0[:, :1]
        if self.fault == "crash":
            raise RuntimeError("no such layer")
        return x0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "NaN"),
        ("batch", "depends on the batch"),
        ("detached", "finite differences"),
        ("shape", "x0 is"),
        ("crash", "no such layer"),
    ],
)
def test_broken_priors(fault: str, message: str) -> None:
    prior: Prior = Broken(torch.zeros(5, dtype=torch.float64))
    prior.fault = fault  # type: ignore[attr-defined]  # of the test's own class
    assert any(message in problem for problem in check(prior, verbose=False))


def test_what_check_needs() -> None:
    table = Discrete.linear(100)
    with pytest.raises(InputError, match="shape="):
        check(NetworkPrior(Exact(truth(table)), "eps", table))
    with pytest.raises(InputError, match="n >= 2"):
        check(truth(), data=torch.zeros(1, 12))
    with pytest.raises(InputTypeError, match="a Prior, not Exact"):
        check(Exact(truth()))
