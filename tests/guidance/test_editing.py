"""Editing methods: what their equations promise, on priors for which the edit is known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import posterior
from posterior import grids, guidance, operators, priors
from posterior.errors import CapabilityError, InputError, InputTypeError
from posterior.evidence import likelihood_ratio
from posterior.guidance import Guidance
from posterior.guidance._editing import ddim, last_part, up_and_down
from posterior.guidance.base import Step
from posterior.problem import Problem
from posterior.schedules import CLEAN, EDM, Discrete, RectifiedFlow, Schedule, VPLinear
from posterior.streams import Noise
from posterior.transitions import DPMSolver2M, Euler, Heun

SHAPE = (6,)
SPREAD = 0.5


def normal(seed: int, *shape: int) -> Tensor:
    """Seeded standard normal test data, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SOURCE = normal(1, 2, *SHAPE)
SHIFT = normal(2, *SHAPE)


def white(mean: Tensor | float, schedule: Schedule | None = None) -> priors.Gaussian:
    """N(mean, SPREAD^2 I)."""
    centre = torch.zeros(SHAPE, dtype=torch.float64) + mean
    return priors.Gaussian(centre, SPREAD**2, schedule or RectifiedFlow())


class Turbulent(nn.Module):
    """A network whose output depends on everything: nothing holds for it but algebra."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("inner", normal(seed, 6, 7))
        self.register_buffer("outer", normal(seed + 50, 6, 6))
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, 6), (B,) -> (B, 6), row by row."""
        told = torch.cat([x, t.double()[:, None].log()], 1)
        return self.weight * torch.stack([(row @ self.inner.T).tanh() @ self.outer for row in told])


def network(seed: int, schedule: Schedule | None = None) -> priors.NetworkPrior:
    """A prior that predicts eps by `Turbulent`."""
    table = schedule or Discrete.scaled_linear()
    return priors.NetworkPrior(Turbulent(seed), "eps", table, event_shape=SHAPE, range=None)


def edited(
    method: Guidance,
    target: priors.Prior,
    source: priors.Prior | None = None,
    x: Tensor = SOURCE,
    **run: object,
) -> Tensor:
    """The first draw of an edit of x, (B, *event)."""
    run = {"steps": 10, "method": method, "source": x, "source_prior": source, **run}
    return posterior.sample(target, **run).draws[0]


# --------------------------------------------------------------------------------- shared pieces


def test_the_grid_rises_and_falls_through_the_same_levels() -> None:
    falling = grids.leading(Discrete.scaled_linear(), 10)
    both = up_and_down(last_part(falling, 0.5))
    assert len(both) == 11
    assert both[0] == both[-1] == CLEAN
    assert both == both[::-1]
    assert both[5] == falling[-6]


@pytest.mark.parametrize(("strength", "steps", "left"), [(0.8, 4, 3), (1.0, 7, 7), (0.25, 4, 1)])
def test_strength_floors_as_in_diffusers(strength: float, steps: int, left: int) -> None:
    method = guidance.SDEdit(strength=strength)
    assert method.nfe(steps) == left
    assert len(method.grid(VPLinear(), steps)) == left + 1
    with pytest.raises(InputError, match="none of"):
        guidance.SDEdit(strength=0.1).grid(VPLinear(), steps=9)
    for wrong in (0, 1.2, True, "all"):
        with pytest.raises((InputError, InputTypeError), match="strength must be"):
            guidance.SDEdit(strength=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [guidance.SDEdit(), guidance.DDCM(strength=0.5)], ids=repr)
def test_a_named_grid_is_cut_at_the_strength_and_levels_are_not(method: Guidance) -> None:
    prior, own = white(0.2), replace(method, spacing="log_ratio")
    by_name = edited(method, prior, prior, grid="log_ratio")
    assert torch.equal(by_name, edited(own, prior, prior))
    levels = grids.log_ratio(prior.schedule, 10)
    run = {"steps": None, "grid": levels, "method": method, "source": SOURCE}
    assert posterior.sample(prior, source_prior=prior, **run).provenance["steps_done"] == 10


def test_a_ddim_move_with_the_same_noise_undoes_itself() -> None:
    table = Discrete.scaled_linear()
    t, s = table.level(0.3), table.level(0.31)
    x, eps = normal(3, 2, 4), normal(4, 2, 4)
    torch.testing.assert_close(ddim(ddim(x, eps, t, s), eps, s, t), x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("method", [guidance.DDCM(), guidance.FlowEdit()])
def test_two_priors_are_asked_for(method: Guidance) -> None:
    prior = white(0.0)
    with pytest.raises(CapabilityError, match="source_prior"):
        posterior.sample(prior, source=SOURCE, method=method)
    with pytest.raises(InputError, match="source="):
        posterior.sample(prior, source_prior=prior, method=method)
    with pytest.raises(InputError, match="one model under two conditions"):
        edited(method, prior, white(0.0, EDM()))
    with pytest.raises(InputTypeError, match="source must be"):
        edited(method, prior, prior, x="cat.png")  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="source_prior"):
        edited(method, prior, "a cat")  # type: ignore[arg-type]


def test_calls_of_both_priors_are_counted() -> None:
    run = posterior.sample(
        white(0.0), source=SOURCE, source_prior=white(1.0), method=guidance.DDCM(), steps=6, n=2
    )
    assert run.provenance["nfe"] == guidance.DDCM().nfe(6) == 12


# ------------------------------------------------------------------------------- no inversion


def test_sdedit_of_a_gaussian_keeps_the_known_part_of_the_source() -> None:
    """The ODE's exact map from t is affine, slope alpha sd / sqrt(alpha^2 sd^2 + sigma^2)."""
    method = guidance.SDEdit(strength=0.5, transition=Euler, spacing="uniform")
    prior, delta = white(0.3), 0.7 * SHIFT
    level = method.grid(prior.schedule, 400)[0]
    slope = level.alpha * SPREAD / math.hypot(level.alpha * SPREAD, level.sigma)
    moved = edited(method, prior, x=SOURCE + delta, steps=400) - edited(method, prior, steps=400)
    # Euler's error is of the order of a step
    torch.testing.assert_close(moved, (slope * delta).expand_as(moved), rtol=0.01, atol=0)


def test_blended_keeps_y_and_paints_the_rest_as_if_it_were_alone() -> None:
    """Of a white prior the painted entries know nothing of the kept ones."""
    keep = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    mask = operators.from_matrix(torch.eye(6, dtype=torch.float64)[keep > 0])
    prior, y = white(0.3), mask(SOURCE)
    run = {"noise": 0.0, "method": guidance.Blended(), "steps": 12, "n": 2}
    out = posterior.sample(prior, mask, y, **run).draws
    assert torch.equal(mask(out.flatten(0, 1)), y.repeat(2, 1))
    plain = posterior.sample(prior, shape=SHAPE, steps=12, grid="uniform", n=2, seed=0).draws
    torch.testing.assert_close(out[:, 0][:, keep == 0], plain[:, 0][:, keep == 0])
    with pytest.raises(CapabilityError, match="source="):
        posterior.sample(prior, mask, y, **(run | {"method": guidance.Blended(strength=0.5)}))


@pytest.mark.parametrize("method", [guidance.DDCM(), guidance.DDCM(eta=0.3), guidance.FlowEdit()])
def test_equal_prompts_give_the_source_back(method: Guidance) -> None:
    prior = network(0)
    torch.testing.assert_close(edited(method, prior, prior), SOURCE, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ddcm_approaches_a_shift_of_means_at_its_rate(eta: float) -> None:
    """d - Dm shrinks by a^2 sd^2 / (a^2 sd^2 + s^2) at each level, where eta = 1."""
    source, target = white(0.0), white(SHIFT)
    method = guidance.DDCM(eta=eta, spacing="uniform")
    out = [edited(method, target, source, seed=seed) - SOURCE for seed in (0, 1)]
    torch.testing.assert_close(out[0], out[1])  # the noise is shared, so it drops out
    if eta == 1:
        left = 1.0
        for level in method.grid(source.schedule, 10)[:-1]:
            signal = (level.alpha * SPREAD) ** 2
            left *= signal / (signal + level.sigma**2)
        torch.testing.assert_close(out[0], ((1 - left) * SHIFT).expand_as(out[0]))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_flowedit_of_a_shift_of_means_is_exact_at_any_number_of_steps(steps: int) -> None:
    method = guidance.FlowEdit(strength=1.0)
    out = edited(method, white(SHIFT), white(0.0), steps=steps)
    torch.testing.assert_close(out, SOURCE + SHIFT)


def test_flowedit_from_a_lower_level_moves_the_continuum_part() -> None:
    """Dm (1 - (1 - t) sd / S), S^2 = (1 - t)^2 sd^2 + t^2."""
    method = guidance.FlowEdit(strength=0.5)
    out = edited(method, white(SHIFT), white(0.0), steps=800)
    t = method.grid(RectifiedFlow(), 800)[0].t
    part = 1 - (1 - t) * SPREAD / math.hypot((1 - t) * SPREAD, t)
    torch.testing.assert_close(out - SOURCE, (part * SHIFT).expand_as(out), rtol=0.01, atol=0)


def test_flowedit_averages_and_ends_plainly() -> None:
    """Fresh noise spreads the result where variances differ; averaging makes it narrower."""
    source = white(0.0)
    target = priors.Gaussian(torch.zeros(SHAPE, dtype=torch.float64), 1.5, RectifiedFlow())

    def spread(**settings: int) -> float:
        method = guidance.FlowEdit(strength=1.0, **settings)
        run = {"source": SOURCE, "source_prior": source, "n": 64, "steps": 8}
        return float(posterior.sample(target, method=method, **run).std.square().mean())

    one, many = spread(), spread(average=16)
    # 12 numbers of 64 draws: a ratio of 16 has a relative standard deviation of 0.06
    assert 16 * 0.7 < one / many < 16 / 0.7
    plain = guidance.FlowEdit(strength=1.0, plain=3)
    run = posterior.sample(target, source=SOURCE, source_prior=source, method=plain, steps=8)
    assert run.provenance["nfe"] == plain.nfe(8) == 2 * 5 + 3
    heun = replace(plain, transition=Heun())
    run = posterior.sample(target, source=SOURCE, source_prior=source, method=heun, steps=8)
    assert run.provenance["nfe"] == heun.nfe(8) == 2 * 5 + 3 + 2
    whole = guidance.FlowEdit(strength=0.5, plain=99, spacing="uniform")
    sdedit = guidance.SDEdit(strength=0.5, transition=Euler, spacing="uniform")
    noise_apart = [  # all moves plain is SDEdit but for the name of the noise: compare the slopes
        edited(method, target, source, x=SOURCE + SHIFT) - edited(method, target, source)
        for method in (whole, sdedit)
    ]
    torch.testing.assert_close(*noise_apart)


@pytest.mark.parametrize("plain", [1, 4, 9])
def test_flowedit_goes_on_plainly_from_a_state_of_the_target(plain: int) -> None:
    """The offset at t is (1 - t) Dm, as that of the states: what follows is a run, moved."""
    method = guidance.FlowEdit(strength=1.0, plain=plain)
    still = edited(method, white(0.0), white(0.0))
    moved = edited(method, white(SHIFT), white(0.0))
    torch.testing.assert_close(moved, still + SHIFT)


def test_flowedit_does_not_look_back_at_what_is_no_estimate() -> None:
    """Two plain moves: the first has no plain one before it, the last one goes to the clean end."""
    first = guidance.FlowEdit(strength=1.0, plain=2)
    second = replace(first, transition=DPMSolver2M(eta=0.0))
    target, source = white(SHIFT), white(0.0)
    torch.testing.assert_close(edited(second, target, source), edited(first, target, source))


SCHEDULES = (VPLinear(), RectifiedFlow(), EDM())


@pytest.mark.parametrize(
    "method",
    [guidance.SDEdit(strength=1.0), guidance.DDCM(), guidance.FlowEdit(strength=1.0)],
)
def test_the_schedule_is_only_a_scale(method: Guidance) -> None:
    """One grid of sigma / alpha and one noise: one edit, under every schedule."""
    outs = []
    for schedule in SCHEDULES:
        levels = [schedule.level_of_ratio(r) for r in (20.0, 5.0, 1.0, 0.2, 0.05)] + [CLEAN]
        outs.append(
            edited(method, white(SHIFT, schedule), white(0.0, schedule), steps=None, grid=levels)
        )
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outs[2], outs[0], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------- inversion


@pytest.mark.parametrize(
    "method",
    [guidance.DDIMInversion(), guidance.EDICT(), guidance.BDIA(), guidance.RFInversion()],
    ids=repr,
)
def test_an_inversion_takes_no_grid_that_only_falls(method: Guidance) -> None:
    prior = white(0.0)
    levels = [*map(prior.schedule.level, (0.9, 0.5)), CLEAN]
    for grid in ("karras", levels):
        with pytest.raises(InputError, match="spacing="):
            edited(method, prior, steps=None, grid=grid)


@pytest.mark.parametrize("label", ["target", "source"])
def test_ddim_inversion_comes_back_to_the_order_of_its_steps(label: str) -> None:
    mixture = priors.GaussianMixture(
        torch.tensor([0.3, 0.7]), normal(5, 2, *SHAPE), 0.1, VPLinear()
    )
    x = mixture.sample(4, seed=0)
    method = guidance.DDIMInversion(label=label, spacing="log_ratio")
    errors = [
        float((edited(method, mixture, x=x, steps=steps) - x).norm()) for steps in (50, 100, 200)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([1.0, 1.0], abs=0.25)


REVERSIBLE = [
    guidance.EDICT(),
    guidance.EDICT(mixing=1.0),
    guidance.EDICT(mixing=0.8),
    guidance.BDIA(),
    guidance.BDIA(gamma=1.0),
    guidance.BDIA(gamma=0.8),
]


@pytest.mark.parametrize("method", REVERSIBLE, ids=repr)
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_round_trips_are_exact_for_any_network(method: Guidance, strength: float) -> None:
    prior, method = network(3), replace(method, strength=strength)
    back = edited(method, prior, steps=20)
    # rounding grows like gamma^-20 = 87 or mixing^-40 = 7500 at the worst, and the network adds
    torch.testing.assert_close(back, SOURCE, rtol=1e-9, atol=1e-9)
    assert float((edited(method, network(4), prior, steps=20) - SOURCE).norm()) > 0.1


def test_bdia_refuses_the_single_move_that_would_change_nothing() -> None:
    with pytest.raises(InputError, match="BDIA makes one move of 3 steps"):
        edited(guidance.BDIA(strength=0.5), network(4), network(3), steps=3)
    two = edited(guidance.BDIA(strength=0.5), network(4), network(3), steps=4)
    assert float((two - SOURCE).norm()) > 0.01


def test_edict_and_bdia_are_ddim_where_they_should_be() -> None:
    """EDICT with a constant eps, BDIA with gamma -> 0 on the way down: one move each."""
    table = Discrete.scaled_linear()

    class Constant(priors.NetworkPrior):
        def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
            alpha, sigma = self.schedule(t)
            return (x_t - sigma * SHIFT) / alpha

    prior = Constant(Turbulent(0), "eps", table, event_shape=SHAPE, range=None)
    problem = Problem(prior, source=SOURCE)
    noise = Noise.single(0, SHAPE, torch.float64, rows=2)
    t, s = table.level(0.5), table.level(0.4)
    expected = ddim(SOURCE, SHIFT, t, s)
    state = {"x": SOURCE, "pair": SOURCE, "x0": SOURCE}
    moved = guidance.EDICT().advance(problem, state, Step(11, 20, t, s), noise)
    torch.testing.assert_close(moved["x"], expected)
    torch.testing.assert_close(moved["pair"], expected)
    scales = torch.tensor([[0.5, 0.8]], dtype=torch.float64).expand(2, 2)
    state = {"x": SOURCE, "neighbour": SHIFT + SOURCE, "level": scales, "x0": SOURCE}
    bdia = guidance.BDIA(gamma=1e-12)
    moved = bdia.advance(problem, state, Step(11, 20, t, s), noise)
    torch.testing.assert_close(moved["x"], expected)


def test_rf_inversion_goes_straight_where_it_is_told() -> None:
    flow = RectifiedFlow()
    prior, other = network(0, flow), network(1, flow)
    straight_back = guidance.RFInversion(eta=1.0, stop=1.0, strength=0.9)
    torch.testing.assert_close(edited(straight_back, prior, other), SOURCE)
    straight_up = guidance.RFInversion(gamma=1.0, eta=0.0)
    target = white(SHIFT)
    forgotten = edited(straight_up, target)  # all of the way, to t = 1: the source is gone
    torch.testing.assert_close(edited(straight_up, target, x=SOURCE + 1), forgotten)
    plain = guidance.RFInversion(gamma=0.0, eta=0.0)
    inversion = guidance.DDIMInversion(label="source", spacing="uniform")
    assert torch.equal(edited(plain, target), edited(inversion, target))


def test_rf_inversion_shrinks_towards_the_source_at_its_rate() -> None:
    """For a network that says v = 0, x - source shrinks by 1 - eta (t - t') / t at each move."""

    class Still(priors.NetworkPrior):
        def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
            return x_t  # v = (x - x0) / t = 0

    prior = Still(Turbulent(0), "x0", RectifiedFlow(), event_shape=SHAPE, range=None)
    method = guidance.RFInversion(gamma=1.0, eta=0.6, stop=0.5)
    outs = [edited(method, prior, x=x) for x in (SOURCE, SOURCE + SHIFT)]
    kept = math.prod(1 - 0.6 * (0.1 / (1 - 0.1 * k)) for k in range(5))
    torch.testing.assert_close(outs[1] - outs[0], ((1 - kept) * SHIFT).expand_as(SOURCE))


# ----------------------------------------------------------------------------------- flowchef


def test_flowchef_puts_y_in_place_and_is_euler_without_a_step() -> None:
    prior, y = white(0.2), SOURCE
    run = {"noise": 0.1, "steps": 9}
    out = posterior.sample(prior, operators.Identity(), y, method=guidance.FlowChef(), **run)
    torch.testing.assert_close(out.draws[0], y)
    keep = torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64)
    half = operators.from_matrix(torch.eye(6, dtype=torch.float64)[keep > 0])
    out = posterior.sample(prior, half, half(y), method=guidance.FlowChef(), **run)
    torch.testing.assert_close(half(out.draws[0]), half(y))
    still = guidance.FlowChef(step=0.0)
    free = posterior.sample(prior, half, half(y), method=still, n=2, **run).draws
    euler = Guidance(transition=Euler, spacing="uniform")
    plain = posterior.sample(prior, shape=SHAPE, method=euler, steps=9, n=2).draws
    torch.testing.assert_close(free[:, 0], plain[:, 0])


def test_flowchef_does_not_start_from_noise_halfway() -> None:
    prior, run = white(0.2), {"operator": operators.Identity(), "y": SOURCE, "noise": 0.1}
    method = guidance.FlowChef(strength=0.5)
    with pytest.raises(CapabilityError, match="source="):
        posterior.sample(prior, method=method, **run)
    assert torch.isfinite(edited(method, prior, **run)).all()


def test_flowchef_descends_on_one_draws_own_loss() -> None:
    """One inner step, by hand."""
    flow, prior = RectifiedFlow(), white(SHIFT)
    matrix = normal(6, 3, 6)
    operator, y = operators.from_matrix(matrix), normal(7, 2, 3)
    problem = Problem(prior, operator, y, posterior.GaussianNoise(0.1))
    x, t, s = normal(8, 2, 6), flow.level(0.7), flow.level(0.5)
    noise = Noise.single(0, SHAPE, torch.float64, rows=2)
    method = guidance.FlowChef(step=0.05, inner_steps=2)
    moved = method.advance(problem, {"x": x, "x0": x}, Step(0, 4, t, s), noise)["x"]
    x0 = prior(x, 0.7).x0
    v = (x - x0) / 0.7
    for _ in range(2):
        x0 = x0 + 0.05 * (y - x0 @ matrix.T) @ matrix
    torch.testing.assert_close(moved, x0 + 0.5 * v)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VPLinear(), Discrete.scaled_linear()])
@pytest.mark.parametrize("method", [guidance.SDEdit(), guidance.Blended(strength=0.6)])
def test_a_strength_is_a_share_of_the_time(method: Guidance, schedule: Schedule) -> None:
    assert method.grid(schedule, 50)[0].t == pytest.approx(0.6, abs=0.01)


def test_the_last_move_up_a_flow_is_eulers() -> None:
    """At alpha = 0 a network gives x back as eps: it is asked about the level below."""
    flow = RectifiedFlow()
    prior = network(1, flow)
    method = guidance.DDIMInversion(spacing="uniform")
    problem, noise = Problem(prior, source=SOURCE), Noise.single(0, SHAPE, torch.float64, rows=2)
    step = Step(3, 8, flow.level(0.75), flow.level(1.0))
    x = method.advance(problem, {"x": SOURCE, "x0": SOURCE}, step, noise)["x"]
    estimate = prior(SOURCE, 0.75)
    torch.testing.assert_close(x, SOURCE + 0.25 * (estimate.eps - estimate.x0))


@pytest.mark.parametrize(
    "method",
    [guidance.PostEdit, guidance.DDCM, guidance.EDICT, guidance.BDIA, guidance.FlowChef,
     guidance.REDdiff, guidance.DAPS, guidance.EnKG],
)  # fmt: skip
def test_a_method_with_its_own_rule_takes_no_transition(method: type[Guidance]) -> None:
    with pytest.raises(InputError, match=f"{method.__name__} moves by its own rule"):
        method(transition=Heun())


# -------------------------------------------------------------------- prompts with a known answer

# the components differ in the first three entries and share the law of the last three
PROMPTS = priors.GaussianMixture(
    torch.tensor([0.5, 0.5]),
    torch.tensor([[-1.0, -1, -1, 0, 0, 0], [1.0, 1, 1, 0, 0, 0]], dtype=torch.float64),
    torch.diag(torch.tensor([0.02, 0.02, 0.02, 0.5, 0.5, 0.5], dtype=torch.float64)),
    VPLinear(),
)
# method -> the largest root mean square drift of the shared entries (their own is 0.71)
EDITS: dict[str, tuple[Guidance, float]] = {
    "SDEdit": (guidance.SDEdit(strength=0.6, transition=Euler), 0.9),
    "PostEdit": (guidance.PostEdit(), 0.5),
    "DDCM": (guidance.DDCM(), 1e-9),
    "DDIMInversion": (guidance.DDIMInversion(), 0.03),
    "EDICT": (guidance.EDICT(strength=1.0), 1e-4),
    "BDIA": (guidance.BDIA(strength=1.0), 1e-4),
    "FlowEdit": (guidance.FlowEdit(strength=1.0), 1e-9),
    "RFInversion": (guidance.RFInversion(gamma=0.0, eta=0.0), 0.15),
    "Blended": (guidance.Blended(), 1e-9),  # told what is shared, as FlowChef
    "FlowChef": (guidance.FlowChef(), 1e-9),
}
SHARED = operators.from_matrix(torch.eye(6, dtype=torch.float64)[3:])


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reaches_the_target_and_keeps_the_rest(name: str) -> None:
    method, drift = EDITS[name]
    source, target = PROMPTS.given(0), PROMPTS.given(1)
    x = source.sample(16, seed=0)
    keep = (
        {"operator": SHARED, "y": SHARED(x), "noise": 0.0} if "measurement" in method.needs else {}
    )
    out = edited(method, target, source, x=x, steps=method.default_steps, **keep)
    assert float((out[:, :3] - 1).abs().mean()) < 0.35, "the target's component is at 1, std 0.14"
    kept = float((out[:, 3:] - x[:, 3:]).square().mean().sqrt())
    assert kept <= drift


class Guided(priors.Prior):
    """Classifier-free guidance of exact denoisers."""

    def __init__(self, positive: priors.Prior, negative: priors.Prior, scale: float) -> None:
        super().__init__()
        self.positive, self.negative, self.scale = positive, negative, scale
        self.schedule, self.event_shape = positive.schedule, positive.event_shape

    def denoise(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """x0 away from the negative one."""
        negative = self.negative(x_t, t).x0
        return negative + self.scale * (self.positive(x_t, t).x0 - negative)

    def state(self) -> object:
        """What defines it."""
        return self.positive, self.negative, self.scale


def test_negative_prompt_inversion_keeps_what_is_shared_and_overshoots_the_target() -> None:
    """Guidance drops out where both prompts agree; one Gaussian a prompt, it extrapolates."""
    source, target = PROMPTS.given(0), PROMPTS.given(1)
    x = source.sample(16, seed=0)
    outs = [
        edited(guidance.NegativePromptInversion(), Guided(target, source, w), source, x=x, steps=50)
        for w in (1.0, 1.5, 7.5)
    ]
    for out in outs:
        assert float((out[:, 3:] - x[:, 3:]).square().mean().sqrt()) < 0.03
    beyond = [float((out[:, :3] - 1).mean()) for out in outs]
    assert abs(beyond[0]) < 0.1 < 0.5 < beyond[1] < 10 < beyond[2]


def test_dps_edits_from_the_noised_source() -> None:
    """With no step it is SDEdit; without a source there is nothing to start from."""
    prior, y = white(0.2), SOURCE
    run = {"operator": operators.Identity(), "y": y, "noise": 0.3}
    still = guidance.DPS(scale=0, strength=0.4)
    sdedit = guidance.SDEdit(strength=0.4, spacing=still.spacing)
    assert torch.equal(edited(still, prior, **run), edited(sdedit, prior))
    method = guidance.DPS(strength=0.4)
    assert (method.nfe(10), method.vjps(10)) == (4, 4)
    with pytest.raises(CapabilityError, match="source="):
        posterior.sample(prior, method=method, **run)
    with pytest.raises(InputError, match="strength"):
        guidance.DPS(strength=0)


def test_the_likelihood_ratio_of_two_gaussians_is_found_by_denoising() -> None:
    """Unbiased over the noise of the levels; the sum over levels is within 1 % of the integral."""
    a, b = white(0.0), white(SHIFT)
    x = SOURCE.expand(300, *SOURCE.shape)
    found = likelihood_ratio(x, a, b, levels=10, seeds=[3, 4])
    exact = a.log_prob(SOURCE) - b.log_prob(SOURCE)
    noise = found.std(0) / math.sqrt(300)
    assert float(noise.max()) < 0.05 * float(SHIFT.square().sum()) / (2 * SPREAD**2)
    assert ((found.mean(0) - exact).abs() < 4 * noise + 0.01 * exact.abs()).all()
    alone = likelihood_ratio(x[7:8, 1:], a, b, levels=10, seeds=[4], first_draw=7)
    torch.testing.assert_close(alone[0, 0], found[7, 1])
