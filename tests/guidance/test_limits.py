"""Every variant of every method in every limit: what holds, what is biased and by how much.

`TABLE` is the declaration. A cell is an `Entry`: its words on the page `docs/limits.md`, and a
check that a test runs. A limit that holds is checked against the sampler without data, the exact
posterior or the solution of A x = y; a bias against the recursion of its own chain or the limit of
that (see the module `limits`), and the sizes on the page are those that the checks compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import limit_checks as checks
import pytest
from limit_checks import Check
from limits import (
    DATA,
    IDENTITY,
    INVERTIBLE,
    ORTHONORMAL,
    ROWS,
    S2,
    SPREAD,
    STD,
    UNEVEN,
    ZERO,
    D,
    correlated,
)
from torch import Tensor

from posterior import guidance
from posterior.errors import CapabilityError
from posterior.guidance import REGISTRY
from posterior.guidance.base import Guidance
from posterior.operators import Identity, from_matrix
from posterior.operators.noise import NoiseModel, PoissonNoise

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"

LIMITS = {
    "nothing measured": "A = 0; the draws are those of the prior",
    "vague data": "the noise level given to the method is 10^4 to 10^6; the same",
    "no noise": "A is invertible and the noise level tends to 0; the draws solve A x = y",
    "full mask": "A = I with noise; the posterior is known entry by entry",
    "zero weight": "what scales the data is 0; the sampler without data, bit for bit",
    "no regulariser": "what holds the result to the prior lets go; least squares, or A^+",
    "large ensemble": "rows that move together become many; errors fall like their root",
    "many steps": "the time steps become many; the law tends to the posterior",
}
(NOTHING, VAGUE, NOISELESS, FULL, UNWEIGHTED, FREE, LARGE, MANY) = LIMITS


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        kind: "holds", "bias" or "n/a".
        text: after the kind, on the page; `{}` stand for the sizes.
        check: raises where the cell is wrong; gives the sizes of a bias.
        why: one line for the page, of a bias.
        sizes: as on the page.
        within: how far a computed size may be from the page's; default: its rounding.
    """

    kind: str
    text: str
    check: Check
    why: str = ""
    sizes: tuple[str, ...] = ()
    within: tuple[float, ...] = ()

    @property
    def cell(self) -> str:
        """As on the page."""
        text = self.text.format(*self.sizes)
        return f"{self.kind}: {text}" if text else self.kind

    def run(self, method: Guidance) -> None:
        """Check the cell and its sizes."""
        found = self.check(method) or ()
        assert len(found) == len(self.sizes)
        for k, (value, size) in enumerate(zip(found, self.sizes, strict=True)):
            decimals = len(size.partition(".")[2])
            within = self.within[k] if self.within else 0.501 * 10.0**-decimals
            assert abs(value - float(size)) <= within, f"{value} on the page as {size}"


def holds(check: Check, text: str = "") -> Entry:
    return Entry("holds", text, check)


def bias(text: str, check: Check, why: str, *sizes: str, within: tuple[float, ...] = ()) -> Entry:
    return Entry("bias", text, check, why, sizes, within)


def absent(text: str, check: Check) -> Entry:
    return Entry("n/a", text, check)


NO_ENSEMBLE = absent("one row a draw", checks.one_row)


# ------------------------------------------------------------------------------------- the table

METHODS: dict[str, Guidance] = {
    "DPS()": guidance.DPS(),
    'DPS(likelihood="norm")': replace(guidance.DPS.preset("code/ffhq/motion-blur"), scale=0.3),
    'DPS(likelihood="poisson")': replace(
        guidance.DPS.preset("paper/ffhq/poisson-motion-blur"), scale=0.3
    ),
    'DPS(likelihood="poisson-code")': guidance.DPS(
        likelihood="poisson-code", scale=0.3, spacing="trailing"
    ),
    "MMPS()": guidance.MMPS(iterations=2 * D),
    "Denoising()": guidance.Denoising(),
    "DDS()": guidance.DDS(spread=SPREAD, iterations=2 * D),
    'DDS.preset("code/mri")': guidance.DDS.preset("code/mri"),
    'DDS.preset("code/mri-noiseless")': replace(
        guidance.DDS.preset("code/mri-noiseless"), iterations=2 * D
    ),
    "DAPS()": guidance.DAPS(spread=SPREAD, inner_steps=2 * D),
    'DAPS(kernel="langevin")': guidance.DAPS(spread=SPREAD, kernel="langevin"),
    'DAPS(kernel="hamiltonian")': guidance.DAPS(spread=SPREAD, kernel="hamiltonian"),
    'DAPS(kernel="metropolis")': guidance.DAPS(spread=SPREAD, kernel="metropolis"),
    'DAPS.preset("code/ffhq/inpaint-box")': guidance.DAPS.preset("code/ffhq/inpaint-box"),
    "MCG()": guidance.MCG(),
    'MCG.preset("code/inpainting")': guidance.MCG.preset("code/inpainting"),
    "REDdiff()": guidance.REDdiff(spread=SPREAD),
    'REDdiff.preset("paper")': guidance.REDdiff.preset("paper"),
    "EnKG()": guidance.EnKG(),
    "TDS()": guidance.TDS(spread=SPREAD),
    "PostEdit()": guidance.PostEdit(),
    "PostEdit(closed=False)": guidance.PostEdit(closed=False),
}

NO_REGULARISER = absent(
    "the prior enters by the denoiser alone", checks.no_field("spread", "weight")
)
NO_WEIGHT = absent("no such parameter", checks.no_field("scale", "gamma", "updates", "inner_steps"))
IGNORES = bias(
    "noise ignored", checks.ignores_noise, "the noise level is not used: the same draws bit for bit"
)


def published_dps(y: Tensor, same_step: Check | None, photons: float | None) -> dict[str, Entry]:
    """The rows of DPS's tuned steps."""
    stuck = (
        "a step of length zeta overshoots y by what it has not covered, so |x - y| ends at zeta / 2"
    )

    def at(steps: int, noise: float | NoiseModel) -> Entry:
        measure = checks.sticks_to_y(steps, noise, y)
        check = measure if same_step is None else checks.all_of(same_step, measure)
        # distances spread over 0 to zeta: a standard error of 0.02 for 200 draws
        return bias("distance {} zeta from y", check, stuck, "0.50", within=(0.06,))

    def noise(photon_rate: float, std: float) -> float | NoiseModel:
        return std if photons is None else PoissonNoise(photon_rate * photons)

    return {
        NOISELESS: at(100, noise(1e6, 0.0)),
        FULL: at(100, noise(1.0, STD)),
        UNWEIGHTED: holds(checks.is_the_base(scale=0)),
        FREE: NO_REGULARISER,
        LARGE: NO_ENSEMBLE,
        MANY: at(400, noise(1.0, STD)),
    }


TO_THE_DATA = "a constant weight meets the data at every level, so the draws end at y"
POINT = "a point estimate: its spread is Adam's, and tends to 0 with the rate"
CLAIMS_TAU = "it assumes data of std 0.007 (tau = 0.01 and a factor 2 in the gradient)"
KEEPS_NOISE = "the code noises y to the level it comes from, and the last one is not clean"
COLLAPSED = "the step is tuned, and the ensemble shrinks with every correction"
PULLED = "an editor: start, chain and fusion decide how far it goes, not a posterior"

KEEPS_DATA = "meant for data without noise: what noise there is stays in the result"
PROJECTS = "scale = 0 takes the gradient away, not the projection"
FADES = "the last levels have no regulariser"

NO_NOISE_REFUSED = checks.refuses(CapabilityError, "divides by the noise")
ZERO_CHAIN = holds(checks.is_the_base(inner_steps=0))


def short_chain(
    nothing: tuple[str, ...], full: tuple[str, ...], free: tuple[str, ...], many: tuple[str, ...]
) -> dict[str, Entry]:
    """The rows of DAPS with ten steps of an affine kernel, by their sizes at 50 levels."""
    why = "ten steps from the centre are no draw: the data pull too little, and the width is off"
    both = "mean off by {}, variance {}"
    return {
        NOTHING: bias(
            "variance {} s^2", checks.variance_only(checks.daps_bias(50, ZERO)), why, *nothing
        ),
        VAGUE: holds(checks.vague_law_is_that_without_data, "as with nothing measured"),
        NOISELESS: holds(
            checks.all_of(NO_NOISE_REFUSED, checks.chain_follows_noise(50)), "0 is refused"
        ),
        FULL: bias(both, checks.daps_bias(50), why, *full),
        UNWEIGHTED: ZERO_CHAIN,
        FREE: bias("spread = inf: " + both, checks.daps_bias(50, spread=math.inf), why, *free),
        LARGE: NO_ENSEMBLE,
        MANY: bias(both, checks.many_short_chains, why, *many),
    }


EDIT = {
    NOTHING: bias(
        "mean {} of the way to the source, variance {} s^2",
        checks.edit_bias(keep_fraction=0.0, fusion=0.0),
        "nothing kept: it forgets the source it started from, and the last estimate is a mean,"
        " which is narrower than the prior",
        "0.02",
        "0.39",
    ),
    VAGUE: holds(checks.vague_source, "as with nothing kept"),
    NOISELESS: bias(
        "mean {} of the way, variance {} s^2",
        checks.edit_bias(keep_fraction=1.0, source_noise=0.0),
        PULLED,
        "0.84",
        "0.13",
    ),
    FULL: bias(
        "mean {} of the way, variance {} s^2",
        checks.edit_bias(keep_fraction=1.0),
        PULLED,
        "0.84",
        "0.13",
    ),
    UNWEIGHTED: holds(checks.edits_from_the_source, "re-noising from the source"),
    FREE: absent("no such parameter", checks.no_field("spread", "weight", "gamma")),
    LARGE: NO_ENSEMBLE,
    MANY: bias(
        "mean {} of the way, variance {} s^2",
        checks.edit_bias(80, keep_fraction=1.0),
        "more steps are more fusions: the result tends to the source",
        "0.98",
        "0.02",
    ),
}


TABLE: dict[str, dict[str, Entry]] = {
    "DPS()": {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: holds(checks.vague_is(checks.base_path)),
        NOISELESS: holds(
            checks.all_of(
                checks.without_noise_solves(INVERTIBLE),
                checks.is_the_sampler_of_the_posterior(ORTHONORMAL, 0.01),
            )
        ),
        FULL: holds(checks.is_the_sampler_of_the_posterior(IDENTITY)),
        UNWEIGHTED: holds(checks.is_the_base(scale=0)),
        FREE: NO_REGULARISER,
        LARGE: NO_ENSEMBLE,
        MANY: bias(
            "none where A A' = c I; else variance {}, mean off by {}",
            checks.all_of(
                checks.is_the_sampler_of_the_posterior(ROWS),
                checks.error_falls_with_steps(ROWS, S2),
                # the direction is exact for a prior of that width
                checks.is_the_sampler_of_the_posterior(UNEVEN, STD, 0.2**2),
                checks.weak_directions_are_too_wide,
            ),
            "singular values 3 and 0.3, and spread 0.8 where the direction is that of 0.2: its"
            " length is that of the strong one, and the weak one is corrected too little",
            "1.11",
            "0.11",
            within=(0.02, 0.02),
        ),
    },
    'DPS(likelihood="norm")': {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: IGNORES,
        **published_dps(DATA, None, None),
    },
    'DPS(likelihood="poisson")': {
        NOTHING: holds(checks.photons_nothing_is_the_prior),
        VAGUE: holds(checks.falls_with_photons, "few photons, y > low"),
        **published_dps(0 * checks.GREY, checks.photons_step(0 * checks.GREY), 1.0),
    },
    'DPS(likelihood="poisson-code")': {
        NOTHING: holds(checks.photons_nothing_is_the_prior),
        VAGUE: bias(
            "rate ignored", checks.ignores_photons, "the photon rate is not used: the same draws"
        ),
        **published_dps(checks.GREY, checks.photons_step(checks.GREY), 1.0),
    },
    "MMPS()": {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: holds(checks.vague_is(checks.base_path)),
        NOISELESS: holds(
            checks.all_of(
                checks.without_noise_solves(INVERTIBLE),
                checks.is_the_sampler_of_the_posterior(INVERTIBLE, 0.01, correlated()),
            )
        ),
        FULL: holds(checks.is_the_sampler_of_the_posterior(IDENTITY, STD, correlated())),
        UNWEIGHTED: holds(checks.is_the_base(iterations=0)),
        FREE: NO_REGULARISER,
        LARGE: NO_ENSEMBLE,
        MANY: holds(
            checks.all_of(
                checks.is_the_sampler_of_the_posterior(ROWS, STD, correlated()),
                checks.error_falls_with_steps(UNEVEN, correlated()),
            ),
            "any Gaussian",
        ),
    },
    "Denoising()": {
        NOTHING: absent(
            "A is the identity",
            checks.refuses(CapabilityError, "needs the identity", from_matrix(INVERTIBLE), STD),
        ),
        VAGUE: holds(checks.vague_is(checks.base_path, IDENTITY)),
        NOISELESS: absent(
            "0 is refused", checks.refuses(CapabilityError, "noise above 0", Identity())
        ),
        FULL: holds(checks.is_the_sampler_of_the_posterior(IDENTITY, STD, correlated())),
        UNWEIGHTED: NO_WEIGHT,
        FREE: NO_REGULARISER,
        LARGE: NO_ENSEMBLE,
        MANY: holds(
            checks.error_falls_with_steps(IDENTITY, correlated(), 40, ratio=3.2, most=5.0),
            "any prior",
        ),
    },
    "DDS()": {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: holds(checks.vague_is(checks.base_path)),
        NOISELESS: holds(
            checks.all_of(
                checks.without_noise_solves(INVERTIBLE),
                checks.is_the_sampler_of_the_posterior(INVERTIBLE, 0.01),
            )
        ),
        FULL: holds(checks.is_the_sampler_of_the_posterior(IDENTITY)),
        UNWEIGHTED: holds(checks.is_the_base(gamma=0)),
        FREE: bias(
            "spread = inf: mean off by {}, variance {}",
            checks.dds_bias(1280, spread=math.inf),
            "a flat prior trusts the data too much at the noisy levels, whatever the steps",
            "0.11",
            "0.96",
        ),
        LARGE: NO_ENSEMBLE,
        MANY: bias(
            "none for white priors; correlated: mean off by {}",
            checks.all_of(
                checks.is_the_sampler_of_the_posterior(INVERTIBLE[:2]),
                checks.error_falls_with_steps(INVERTIBLE[:2], S2, 40, ratio=3.2, most=5.0),
                checks.mean_off_when_correlated(40),
            ),
            "the variance of x0 given x_t is taken for white; eigenvalues 0.3 to 2.4, 40 steps",
            "0.04",
        ),
    },
    'DDS.preset("code/mri")': {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: IGNORES,
        NOISELESS: bias(
            "rms {}",
            checks.all_of(checks.ignores_noise, checks.dds_distance(50)),
            "what the last levels add is halved once a level, 50 steps",
            "0.03",
        ),
        FULL: bias(
            "mean off by {}, variance {}", checks.dds_bias(50), TO_THE_DATA, "1.15", "0.004"
        ),
        UNWEIGHTED: holds(checks.is_the_base(gamma=0)),
        FREE: holds(
            lambda method: checks.fits(ROWS)(replace(method, gamma=math.inf, iterations=2 * D)),  # type: ignore[call-arg]
            "gamma = inf: A x = y",
        ),
        LARGE: NO_ENSEMBLE,
        MANY: bias(
            "mean off by {}, variance {}", checks.dds_bias(800), TO_THE_DATA, "1.17", "0.0001"
        ),
    },
    'DDS.preset("code/mri-noiseless")': {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: IGNORES,
        NOISELESS: holds(checks.without_noise_solves(INVERTIBLE)),
        FULL: bias(
            "x = y, no spread",
            checks.all_of(checks.ignores_noise, checks.fits(IDENTITY)),
            KEEPS_DATA,
        ),
        UNWEIGHTED: holds(checks.is_the_base(gamma=0)),
        FREE: holds(checks.fits(ROWS), "A x = y"),
        LARGE: NO_ENSEMBLE,
        MANY: bias(
            "x = y, no spread",
            checks.all_of(checks.ignores_noise, checks.fits(IDENTITY)),
            KEEPS_DATA,
        ),
    },
    "DAPS()": {
        NOTHING: holds(checks.law_is_the_prior),
        VAGUE: holds(lambda method: checks.law_is_the_prior(method, ROWS, 1e4)),
        NOISELESS: holds(
            checks.all_of(checks.without_noise_solves(INVERTIBLE), checks.error_follows_noise)
        ),
        FULL: holds(checks.law_is_the_posterior_at_any_steps(IDENTITY)),
        UNWEIGHTED: holds(
            lambda method: checks.law_is_the_prior(replace(method, inner_steps=0), ROWS)  # type: ignore[call-arg]
        ),
        FREE: holds(checks.daps_forgets_its_spread, "spread = inf, as steps grow"),
        LARGE: NO_ENSEMBLE,
        MANY: holds(checks.law_is_the_posterior_at_any_steps(INVERTIBLE[:2]), "white: any number"),
    },
    'DAPS(kernel="langevin")': short_chain(
        nothing=("0.96",), full=("0.31", "1.24"), free=("0.15", "1.23"), many=("0.39", "1.28")
    ),
    'DAPS(kernel="hamiltonian")': short_chain(
        nothing=("1.02",), full=("0.01", "1.04"), free=("0.13", "1.03"), many=("0.06", "1.06")
    ),
    'DAPS(kernel="metropolis")': {
        NOTHING: holds(checks.gates(4, ZERO, 1e6)),
        VAGUE: holds(checks.vague_path_is_that_without_data, "as with nothing measured"),
        NOISELESS: absent("0 is refused", NO_NOISE_REFUSED),
        FULL: holds(checks.gates(4)),
        UNWEIGHTED: ZERO_CHAIN,
        FREE: holds(checks.gates(5, spread=math.inf), "spread = inf, as DAPS()"),
        LARGE: NO_ENSEMBLE,
        MANY: holds(checks.gates(8), "white: any number"),
    },
    'DAPS.preset("code/ffhq/inpaint-box")': {
        NOTHING: bias(
            "variance {} s^2",
            checks.variance_only(checks.daps_bias(200, ZERO)),
            "five Euler steps of the flow give too little, the width sigma / alpha too much",
            "0.80",
        ),
        VAGUE: IGNORES,
        NOISELESS: bias("rms {}", checks.daps_distance(200), CLAIMS_TAU, "0.016"),
        FULL: bias(
            "mean off by {}, variance {}", checks.daps_bias(200), CLAIMS_TAU, "1.17", "0.0014"
        ),
        UNWEIGHTED: bias(
            "variance {} s^2",
            checks.flow_alone(200),
            "without a chain, five Euler steps of the flow fall short; with ode_steps=1 it is the"
            " sampler without data bit for bit",
            "0.79",
        ),
        FREE: absent("spread is inf already", checks.spread_is_infinite),
        LARGE: NO_ENSEMBLE,
        MANY: bias(
            "mean off by {}, variance {}", checks.daps_bias(800), CLAIMS_TAU, "1.16", "0.0052"
        ),
    },
    "MCG()": {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: IGNORES,
        NOISELESS: holds(checks.without_noise_solves(INVERTIBLE)),
        FULL: bias(
            "x = y, no spread",
            checks.all_of(checks.ignores_noise, checks.fits(IDENTITY)),
            KEEPS_DATA,
        ),
        UNWEIGHTED: bias("the projection remains", checks.projection_remains, PROJECTS),
        FREE: NO_REGULARISER,
        LARGE: NO_ENSEMBLE,
        MANY: bias(
            "none for white priors; correlated: mean off by {} by projection alone, by less than"
            " half of that with the gradient",
            checks.all_of(
                checks.projection_keeps_the_rest,
                checks.fits(ROWS),
                checks.projection_forgets_the_rest(40),
            ),
            "data without noise; the projection alone tells the unseen part too late; eigenvalues"
            " 0.3 to 2.4, 40 steps",
            "0.13",
        ),
    },
    'MCG.preset("code/inpainting")': {
        NOTHING: holds(checks.nothing_is_the_prior),
        VAGUE: IGNORES,
        NOISELESS: bias("noise of std {} stays", checks.late_noise(1000), KEEPS_NOISE, "0.010"),
        FULL: bias("x = y and noise of std {}", checks.late_noise(1000), KEEPS_NOISE, "0.010"),
        UNWEIGHTED: bias("the projection remains", checks.projection_remains, PROJECTS),
        FREE: NO_REGULARISER,
        LARGE: NO_ENSEMBLE,
        MANY: bias("noise of std {} stays", checks.late_noise(4000), KEEPS_NOISE, "0.005"),
    },
    "REDdiff()": {
        NOTHING: bias(
            "the prior's mean, variance {} s^2",
            checks.tends_to_the_mode_of_the_prior,
            POINT,
            "0.03",
            within=(0.01,),
        ),
        VAGUE: holds(checks.vague_is(checks.path_without_data), "as with nothing measured"),
        NOISELESS: absent("0 is refused", checks.refuses(CapabilityError, "divides by the noise")),
        FULL: bias(
            "mode, prior weighed by r^2 / (s^2 + r^2): {} at r = 1",
            checks.mode_at_a_level,
            "the regulariser is exact at the noisy levels and fades with r; no spread",
            "0.61",
        ),
        UNWEIGHTED: absent("no such parameter", checks.no_field("scale", "gamma", "inner_steps")),
        FREE: holds(checks.least_squares, "weight = 0: least squares"),
        LARGE: NO_ENSEMBLE,
        MANY: bias("x = y: off by {}, no spread", checks.regulariser_fades(320), FADES, "1.17"),
    },
    'REDdiff.preset("paper")': {
        NOTHING: bias(
            "the prior's mean, variance {} s^2",
            checks.tends_to_the_mode_of_the_prior,
            POINT,
            "0.03",
            within=(0.01,),
        ),
        VAGUE: IGNORES,
        NOISELESS: bias(
            "rms {}", checks.jitter, "Adam's steps of 0.1, 200 levels", "0.03", within=(0.01,)
        ),
        FULL: bias(
            "mode, prior weighed by r^2 / (s^2 + r^2): {} at r = 1",
            checks.all_of(checks.ignores_noise, checks.mode_at_a_level),
            "the data weigh 1, lambda 0.25, whatever the noise; no spread",
            "0.61",
        ),
        UNWEIGHTED: absent("no such parameter", checks.no_field("scale", "gamma", "inner_steps")),
        FREE: holds(checks.least_squares, "weight = 0: least squares"),
        LARGE: NO_ENSEMBLE,
        MANY: bias("x = y: off by {}, no spread", checks.regulariser_fades(320), FADES, "1.17"),
    },
    "EnKG()": {
        NOTHING: holds(checks.ensemble_without_data),
        VAGUE: IGNORES,
        NOISELESS: bias("rms {}", checks.ensemble_distance, COLLAPSED, "0.40"),
        FULL: bias(
            "mean off by {}, variance {}", checks.ensemble_bias(80), COLLAPSED, "0.34", "0.20"
        ),
        UNWEIGHTED: holds(checks.is_the_base(updates=0)),
        FREE: NO_REGULARISER,
        LARGE: holds(checks.ensemble_mean_converges, "to the biased law, like 1 / sqrt(J)"),
        MANY: bias(
            "mean off by {}, variance {}",
            checks.ensemble_bias(160, run=40),
            COLLAPSED,
            "1.10",
            "0.004",
        ),
    },
    "TDS()": {
        NOTHING: holds(checks.filter_of_the_prior(ZERO, STD)),
        VAGUE: holds(checks.filter_of_the_prior(ROWS, 1e6)),
        NOISELESS: absent("0 is refused", checks.refuses(CapabilityError, "needs a likelihood")),
        FULL: holds(checks.twist_is_exact),
        UNWEIGHTED: NO_WEIGHT,
        FREE: holds(checks.filter_forgets_its_spread, "spread = inf"),
        LARGE: holds(checks.filter_converges, "like 1 / sqrt(K)"),
        MANY: holds(checks.weights_even_out, "weights even out"),
    },
    "PostEdit()": EDIT,
    "PostEdit(closed=False)": EDIT,
}


EDITORS = {
    guidance.SDEdit,
    guidance.Blended,
    guidance.DDCM,
    guidance.DDIMInversion,
    guidance.NegativePromptInversion,
    guidance.EDICT,
    guidance.BDIA,
    guidance.FlowEdit,
    guidance.RFInversion,
    guidance.FlowChef,
}
"""Their limits are of another kind (equal prompts, round trips, full strength): test_editing.py."""


def test_every_method_and_limit_has_one_entry() -> None:
    assert TABLE.keys() == METHODS.keys()
    assert set(map(type, METHODS.values())) == set(REGISTRY.values()) - EDITORS
    for variant, row in TABLE.items():
        assert set(row) == set(LIMITS), variant
    for row in TABLE.values():
        for entry in row.values():
            assert entry.kind in ("holds", "bias", "n/a")
            assert bool(entry.why) == (entry.kind == "bias")


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("variant", METHODS)
def test_limit(variant: str, limit: str) -> None:
    TABLE[variant][limit].run(METHODS[variant])


def page() -> str:
    """The part of the page that the table determines."""
    lines = [f"- **{limit}**: {meaning}." for limit, meaning in LIMITS.items()]
    lines += ["", "| | " + " | ".join(LIMITS) + " |", "|---" * (len(LIMITS) + 1) + "|"]
    for variant, row in TABLE.items():
        cells = " | ".join(row[limit].cell for limit in LIMITS)
        lines.append(f"| `{variant}` | {cells} |")
    lines.append("")
    for variant, row in TABLE.items():
        reasons: dict[str, list[str]] = {}
        for limit in LIMITS:
            entry = row[limit]
            if entry.kind == "bias":
                reasons.setdefault(entry.why, []).append(
                    f"{limit} ({entry.text.format(*entry.sizes)})"
                )
        lines += [f"- `{variant}`, {', '.join(where)}: {why}." for why, where in reasons.items()]
    return "\n".join(lines) + "\n"


def test_the_page_is_the_table() -> None:
    assert page() in PAGE.read_text()
