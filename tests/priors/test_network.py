"""NetworkPrior: an exact denoiser dressed up as every parametrisation; variance; casting."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import posterior
from posterior import guidance, operators
from posterior.errors import InputError, InputTypeError
from posterior.estimates import Estimate
from posterior.fingerprints import fingerprint
from posterior.priors import Gaussian, NetworkPrior
from posterior.priors.checkpoints.adm import ADMConfig, ADMNet
from posterior.priors.checkpoints.edm import EDMConfig, EDMNet
from posterior.priors.photo import PhotoConfig, PhotoNet
from posterior.schedules import (
    EDM,
    VE,
    Discrete,
    RectifiedFlow,
    Schedule,
    VPCosine,
    VPLinear,
    VPScaledLinear,
)

SCHEDULES = [
    VPLinear(), VPScaledLinear(), VPCosine(), VE(), EDM(), RectifiedFlow(), RectifiedFlow(3.0),
    Discrete.linear(100), Discrete.scaled_linear(100), Discrete.cosine(100),
]  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Dressed(nn.Module):
    """The exact denoiser of a Gaussian, answering as a network of the given kind would."""

    def __init__(self, exact: Gaussian, kind: str) -> None:
        super().__init__()
        self.exact, self.kind = exact, kind

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        schedule = self.exact.schedule
        if self.kind == "edm":  # F, from D = c_skip x + c_out F(c_in x, ln(r) / 4)
            r = (4 * time).exp()
            alpha, _ = schedule(schedule.time_of_ratio(r))
            total = (r**2 + 0.25).view(-1, 1)
            clean = x * total.sqrt()
            t = schedule.time_of_ratio(r)
            x0 = self.exact.denoise(clean * alpha.view(-1, 1), t)
            return (x0 - 0.25 / total * clean) / (r.view(-1, 1) * 0.5 / total.sqrt())
        t = (time + 1) / len(schedule) if isinstance(schedule, Discrete) else time
        x0 = self.exact.denoise(x, t)
        return getattr(Estimate(x, t, schedule, x0), self.kind)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "score", "edm"])
@pytest.mark.parametrize("rows", [1, 3, None])
def test_every_parametrisation_and_schedule(schedule: Schedule, kind: str, rows: int) -> None:
    """To 1e-10 in x0, relative to |x_t| / alpha, which eps and score cancel."""
    exact = Gaussian(0.3 * random(4), random(4).abs() + 0.1, schedule=schedule)
    prior = NetworkPrior(Dressed(exact, kind), kind, schedule, rows=rows)
    x = random(5, 4, seed=1)
    for t in (0.2, 0.6, 0.9):
        t = round(t * 100) / 100
        alpha, sigma = schedule(t)
        want, got = exact(x, t), prior(x, t)
        scale = max(1.0, 1 / alpha, sigma / alpha)
        assert torch.allclose(got.x0, want.x0, rtol=1e-10, atol=1e-10 * scale)
        u = random(5, 4, seed=2)
        a, b = exact.vjp(x, t)[1](u), prior.vjp(x, t)[1](u)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10 * scale)


def test_edm_preconditioning_as_in_table_1() -> None:
    """A zero network leaves D = c_skip x; a constant one adds c_out."""

    class Constant(nn.Module):
        seen: tuple[Tensor, Tensor]

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            self.seen = x, time
            return torch.full_like(x, self.value)

    sigma, data = 1.3, 0.5
    t = EDM().time_of_ratio(sigma)
    x = random(1, 3)
    net = Constant(0.0)
    skip = NetworkPrior(net, "edm", EDM(), sigma_data=data)(x, t).x0
    assert torch.allclose(skip, data**2 / (sigma**2 + data**2) * x)
    assert torch.allclose(net.seen[0], x / (sigma**2 + data**2) ** 0.5)
    assert float(net.seen[1]) == pytest.approx(torch.tensor(sigma).log().item() / 4)
    full = NetworkPrior(Constant(1.0), "edm", EDM(), sigma_data=data)(x, t).x0
    c_out = sigma * data / (sigma**2 + data**2) ** 0.5
    assert torch.allclose(full - skip, torch.full_like(x, c_out))


class TwoHeads(nn.Module):
    """eps = 0 and u given."""

    def __init__(self, u: float) -> None:
        super().__init__()
        self.u = u

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, self.u)], 1)


def test_learned_variance_is_split_off() -> None:
    x = random(2, 3, 4, 4)
    prior = NetworkPrior(TwoHeads(0.3), "eps", Discrete.linear(100), learned_variance=True)
    estimate = prior(x, 0.5)
    alpha, _ = prior.schedule(0.5)
    assert torch.allclose(estimate.x0, x / alpha)
    assert estimate.variance_share is not None
    assert torch.equal(estimate.variance_share, torch.full_like(x, 0.3))


class Recorder(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=dtype))
        self.dropout = nn.Dropout(0.5)
        self.times: list[float] = []
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.times += time.tolist()
        self.dtypes.append(x.dtype)
        return self.dropout(x) + self.weight


@pytest.mark.parametrize(
    ("schedule", "kind", "t", "expected"),
    [
        (Discrete.linear(1000), "eps", 0.5, 499.0),
        (Discrete.linear(1000), "eps", 0.001, 0.0),
        (RectifiedFlow(), "velocity", 0.5, 0.5),
        (VE(), "edm", VE().time_of_ratio(1.0), 0.0),
    ],
)
def test_time_that_the_network_sees(
    schedule: Schedule, kind: str, t: float, expected: float
) -> None:
    net = Recorder()
    NetworkPrior(net, kind, schedule)(torch.zeros(2, 3), t)
    assert net.times == pytest.approx([expected, expected], abs=1e-5)


def test_time_may_be_given() -> None:
    net = Recorder()
    NetworkPrior(net, "velocity", RectifiedFlow(), time=lambda t: 1000 * t)(torch.zeros(1, 3), 0.5)
    assert net.times == [500.0]


def test_weights_are_frozen_and_casting_is_at_the_border() -> None:
    net = Recorder().train()
    prior = NetworkPrior(net, "x0", EDM())
    assert not net.weight.requires_grad
    assert not net.training
    x = random(2, 3)
    estimate, pull = prior.vjp(x, 0.5)
    assert net.dtypes == [torch.float32] * 2
    assert estimate.x0.dtype == pull(x).dtype == torch.float64
    assert torch.equal(estimate.x0, x.float().double())
    half = NetworkPrior(Recorder(torch.bfloat16), "x0", EDM())
    assert half.dtype == torch.float32
    assert half(x.float(), 0.5).x0.dtype == torch.float32


def test_autocast() -> None:
    net = nn.Sequential(nn.Linear(3, 3))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.dtypes: list[torch.dtype] = []

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            out = self.net(x)
            self.dtypes.append(out.dtype)
            return out

    module = Wrapped()
    prior = NetworkPrior(module, "x0", EDM(), compute_dtype=torch.bfloat16)
    assert prior(torch.ones(1, 3), 0.5).x0.dtype == torch.float32
    assert module.dtypes == [torch.bfloat16]


def test_wrong_constructions_and_outputs() -> None:
    net = Recorder()
    for arguments, kind in [
        ((lambda x, t: x, "eps", EDM()), InputTypeError),
        ((net, "noise", EDM()), InputError),
        ((net, "eps", "ddpm"), InputTypeError),
    ]:
        with pytest.raises(kind):
            NetworkPrior(*arguments)
    for more in (
        {"range": (1.0, -1.0)},
        {"rows": 0},
        {"sigma_data": 0.0},
    ):
        with pytest.raises(InputError):
            NetworkPrior(net, "eps", EDM(), **more)
    table = Discrete.linear(10)
    with pytest.raises(InputError, match="learned_variance=True"):
        NetworkPrior(TwoHeads(0.0), "eps", table)(torch.zeros(1, 3, 4, 4), 0.5)
    with pytest.raises(InputError, match="6 output channels"):
        NetworkPrior(Recorder(), "eps", table, learned_variance=True)(torch.zeros(1, 3, 4, 4), 0.5)


class Wide(nn.Module):
    """A network that knows no blocks; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 3), nn.Tanh())
        self.calls = 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def photo_net() -> nn.Module:
    return PhotoNet(PhotoConfig((8, 8), (2, 2), (2, 2), frequencies=4, embedding=8))


def adm_net() -> nn.Module:
    return ADMNet(ADMConfig(3, 3, 32, (32, 32), 1, (False, True), True, True, None))


def edm_net() -> nn.Module:
    return EDMNet(EDMConfig("SongUNet", 16, 3, 3, 32, 32, 32, (32, 32), 1, (False, True), 0))


@pytest.mark.parametrize("make", [Wide, photo_net, adm_net, edm_net])
def test_low_memory_computes_again_what_a_gradient_needs(make: Callable[[], nn.Module]) -> None:
    """The same estimate bit for bit, the same gradient to rounding, a fraction of what is kept."""
    torch.manual_seed(0)
    net, x = make(), random(3, 3).float()
    if make is not Wide:
        x = random(3, 3, 16, 16).float()
        for values in net.state_dict().values():  # some begin at zero, or are only read from files
            values.normal_(std=0.1)
    results, kept = [], []
    for low in (False, True):
        prior = NetworkPrior(net, "x0", EDM(), rows=2, low_memory=low)
        held: list[int] = []

        def keep(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            estimate, pull = prior.vjp(x, 0.5)
        kept.append(sum(held))
        results.append((estimate.x0, pull(x), pull(2 * x)))
        assert (prior.counts.nfe, prior.counts.vjp) == (3, 6)
    (x0, one, two), (x0_low, one_low, two_low) = results
    assert torch.equal(x0, x0_low)
    assert torch.allclose(one, one_low, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    assert torch.allclose(two, two_low, rtol=1e-4, atol=1e-5 * float(two.abs().max()))
    assert float(one.abs().max()) > 0
    assert kept[1] < kept[0] / 2


def test_low_memory_of_a_network_without_blocks_keeps_its_input_only() -> None:
    """So a chunk of a run is as large as without gradients; the price is a call for each pull."""
    net = Wide()
    prior = NetworkPrior(net, "x0", EDM(), rows=None, low_memory=True)
    assert prior.graph_bytes == 64
    _, pull = prior.vjp(torch.ones(2, 3), 0.5)
    pull(torch.ones(2, 3))
    pull(torch.ones(2, 3))
    assert net.calls == 3
    prior(torch.ones(2, 3), 0.5)
    assert net.calls == 4


def test_several_draws_per_network_call() -> None:
    """Blocks of `rows`, the last one filled up: five rows are two calls of four."""
    net = Recorder()
    prior = NetworkPrior(net, "x0", EDM(), rows=4)
    assert prior(random(5, 3), 0.5).x0.shape == (5, 3)
    assert len(net.dtypes) == 2
    assert len(net.times) == 8
    posterior.sample(prior, n=8, shape=(3,), steps=3)
    assert len(net.dtypes) == 2 + 3 * 2


def test_a_compiled_module() -> None:
    """torch.compile in place, before or after: same answers, gradients and content hash.

    Traced but not translated here (backend "eager"), which needs no C++ compiler.
    """
    net = Wide()
    prior = NetworkPrior(net, "eps", Discrete.linear(10))
    x, before = random(2, 3), fingerprint(prior)
    want, pull = prior.vjp(x, 0.5)
    gradient = pull(x)
    net.compile(backend="eager")
    got, pull = prior.vjp(x, 0.5)
    assert torch.allclose(prior(x, 0.5).x0, want.x0, rtol=1e-6)
    assert torch.allclose(got.x0, want.x0, rtol=1e-6)
    assert torch.allclose(pull(x), gradient, rtol=1e-5)
    assert fingerprint(prior) == before


def test_rows_that_move_together_fit_a_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks of the network, counted by `graph_bytes`; the draws are the same."""
    torch.manual_seed(0)
    prior = NetworkPrior(Wide(), "x0", EDM(), rows=2, graph_bytes=1000)
    operator = operators.from_matrix(torch.eye(3))
    run = {"noise": 0.5, "method": guidance.DPS(), "steps": 3, "n": 7}
    whole = posterior.sample(prior, operator, torch.zeros(1, 3), **run)
    monkeypatch.setattr("posterior.devices.CPU_BUDGET", 5 * 3 * 1000)
    parts = posterior.sample(prior, operator, torch.zeros(1, 3), **run)
    assert (whole.provenance["max_batch"] > 7, parts.provenance["max_batch"]) == (True, 4)
    assert torch.equal(parts.draws, whole.draws)
    low = NetworkPrior(Wide(), "x0", EDM(), rows=2, graph_bytes=1000, low_memory=True)
    frugal = posterior.sample(low, operator, torch.zeros(1, 3), **run)
    assert frugal.provenance["max_batch"] == 5 * 1000 // 64 // 2 * 2
