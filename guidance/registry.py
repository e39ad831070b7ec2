"""The methods by name, the choice of `method="auto"`, and the check of what a method needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from posterior.errors import CapabilityError, InputTypeError, unknown_name
from posterior.guidance.base import Guidance
from posterior.guidance.blended import Blended
from posterior.guidance.daps import DAPS
from posterior.guidance.ddcm import DDCM
from posterior.guidance.dds import DDS
from posterior.guidance.denoising import Denoising
from posterior.guidance.dps import DPS
from posterior.guidance.enkg import EnKG
from posterior.guidance.exact_inversion import BDIA, EDICT
from posterior.guidance.flowchef import FlowChef
from posterior.guidance.flowedit import FlowEdit
from posterior.guidance.inversion import DDIMInversion, NegativePromptInversion
from posterior.guidance.mcg import MCG
from posterior.guidance.mmps import MMPS
from posterior.guidance.postedit import PostEdit
from posterior.guidance.reddiff import REDdiff
from posterior.guidance.rf_inversion import RFInversion
from posterior.guidance.sdedit import SDEdit
from posterior.guidance.tds import TDS
from posterior.operators.basic import Identity
from posterior.problem import Problem

REGISTRY: dict[str, type[Guidance]] = {
    "dps": DPS,
    "mmps": MMPS,
    "denoising": Denoising,
    "dds": DDS,
    "daps": DAPS,
    "mcg": MCG,
    "reddiff": REDdiff,
    "enkg": EnKG,
    "tds": TDS,
    "postedit": PostEdit,
    "sdedit": SDEdit,
    "blended": Blended,
    "ddcm": DDCM,
    "ddim-inversion": DDIMInversion,
    "negative-prompt-inversion": NegativePromptInversion,
    "edict": EDICT,
    "bdia": BDIA,
    "flowedit": FlowEdit,
    "rf-inversion": RFInversion,
    "flowchef": FlowChef,
}
"""Name on the command line -> class; a method joins by being listed here."""

_FOR_LINEAR = ("denoising", "mmps")
"""What `auto` tries first where y is linear in x: the exact method, and moment matching."""


@dataclass(frozen=True)
class MethodInfo:
    """One row of the table of methods; `nfe` and `vjp` in the number of steps, T."""

    name: str
    needs: str
    nfe: str
    vjp: str
    when: str
    paper: str


def table() -> list[MethodInfo]:
    """The methods: name, needs, network calls and backward passes per draw of T steps, source."""
    rows = []
    for name, cls in REGISTRY.items():
        method = cls()
        nfe, vjp = (_formula(count, method.yields) for count in (method.nfe, method.vjps))
        rows.append(MethodInfo(name, ", ".join(sorted(cls.needs)), nfe, vjp, cls.when, cls.paper))
    return rows


def _formula(count: Callable[[int], int], draws: int) -> str:
    """A count of T steps, per draw of a group of so many: "3 T", or examples if not linear in T."""
    at = {steps: count(steps) / draws for steps in (50, 100, 150)}
    slope = (at[150] - at[50]) / 100
    start = at[100] - 100 * slope
    if at[100] - at[50] != at[150] - at[100]:
        text = f"{at[50]:g} for T = 50, {at[100]:g} for T = 100"
    elif slope == 0:
        text = f"{start:g}"
    else:
        text = "T" if slope == 1 else f"{slope:g} T"
        if start:
            text += f" {'-' if start < 0 else '+'} {abs(start):g}"
    return text + (f", in groups of {draws}" if draws > 1 and any(at.values()) else "")


def by_name(method: Guidance | str) -> Guidance:
    """A method as it is, or the one of that name with its defaults."""
    if isinstance(method, Guidance):
        return method
    if isinstance(method, str):
        key = method.lower().replace("_", "-")
        if key not in REGISTRY:
            raise unknown_name("method", method, [*REGISTRY, "auto"])
        return REGISTRY[key]()
    raise InputTypeError(
        f"method must be a name or a guidance object, not {type(method).__name__}"
        + ("; did you mean an instance, method=...()?" if isinstance(method, type) else "")
    )


def resolve(method: Guidance | str | None, problem: Problem) -> tuple[Guidance, str]:
    """The method to run on a problem, and why; `auto` chooses by what the problem can do."""
    if method is None or method == "auto":
        chosen, why = _auto(problem)
    else:
        chosen, why = by_name(method), "given by name" if isinstance(method, str) else "given"
    missing = lacking(chosen, problem)
    if missing:
        raise CapabilityError(f"{type(chosen).__name__} {'; '.join(missing)}")
    chosen.check(problem)
    return chosen, why


def lacking(method: Guidance, problem: Problem) -> list[str]:
    """What the method needs and the problem cannot do."""
    operator = problem.operator
    if operator is None and "measurement" in method.needs:
        return ["needs a measurement: give operator, y and noise"]
    if operator is not None and method.needs and "measurement" not in method.needs:
        return ["measures the source itself: give no operator and no y"]
    reasons = {
        "source": (problem.source is not None, "needs source="),
        "source prior": (
            problem.source_prior is not None,
            "compares the edit with the source: needs source_prior=, the prior under what the"
            " source shows",
        ),
    }
    if operator is not None:
        reasons |= {
            "operator gradient": (
                operator.differentiable,
                f"needs the gradient of the operator, which {operator!r} does not have",
            ),
            "linear": (operator.linear, f"needs a linear operator; {operator!r} is not"),
            "identity": (
                type(operator) is Identity,  # a subclass may do anything
                f"needs the identity as operator, not {operator!r}",
            ),
            "pinv": (
                operator.has_pinv,
                f"needs a pseudo-inverse, which {operator!r} does not have",
            ),
        }
    return [text for need, (met, text) in reasons.items() if need in method.needs and not met]


def _auto(problem: Problem) -> tuple[Guidance, str]:
    if problem.operator is None:
        return Guidance(), "no measurement: the unconditional sampler"
    refused = []
    first = _FOR_LINEAR if problem.operator.linear else ()
    for name in dict.fromkeys([*first, *REGISTRY]):
        cls = REGISTRY[name]
        method = cls()
        missing = lacking(method, problem)
        if not missing:
            try:
                method.check(problem)
            except CapabilityError as error:
                missing = [str(error)]
            else:
                return method, f"auto: {cls.when}; {problem.operator!r} has what it needs"
        refused.append(f"{name} {', '.join(missing)}")
    raise CapabilityError(
        f"no method of this version can use {problem.operator!r}: " + "; ".join(refused)
    )
