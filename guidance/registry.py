"""The methods by name, the choice of `method="auto"`, and the check of what a method needs."""

from __future__ import annotations

from dataclasses import dataclass

from posterior.errors import CapabilityError, InputTypeError, unknown_name
from posterior.guidance.base import Guidance
from posterior.guidance.dps import DPS
from posterior.problem import Problem

REGISTRY: dict[str, type[Guidance]] = {"dps": DPS}
"""Name on the command line -> class; a method joins by being listed here."""


@dataclass(frozen=True)
class MethodInfo:
    """One row of the table of methods."""

    name: str
    needs: str
    nfe: str
    vjp: str
    when: str
    paper: str


def table(steps: int = 100) -> list[MethodInfo]:
    """The methods: name, needs, network calls and backward passes per draw, when, source."""
    rows = []
    for name, cls in REGISTRY.items():
        method = cls()
        rows.append(
            MethodInfo(
                name,
                ", ".join(sorted(cls.needs)),
                f"{method.nfe(steps)} at {steps} steps",
                f"{method.vjps(steps)} at {steps} steps",
                cls.when,
                cls.paper,
            )
        )
    return rows


def resolve(method: Guidance | str | None, problem: Problem) -> tuple[Guidance, str]:
    """The method to run on a problem, and why; `auto` chooses by what the problem can do."""
    if isinstance(method, Guidance):
        chosen, why = method, "given"
    elif method is None or method == "auto":
        chosen, why = _auto(problem)
    elif isinstance(method, str):
        key = method.lower().replace("_", "-")
        if key not in REGISTRY:
            raise unknown_name("method", method, [*REGISTRY, "auto"])
        chosen, why = REGISTRY[key](), "given by name"
    else:
        raise InputTypeError(
            f"method must be a name or a guidance object, not {type(method).__name__}"
            + ("; did you mean an instance, method=...()?" if isinstance(method, type) else "")
        )
    if problem.operator is None:
        if chosen.needs:
            raise CapabilityError(f"{chosen} needs a measurement: give operator, y and noise")
    else:
        missing = lacking(chosen, problem)
        if missing:
            raise CapabilityError(f"{type(chosen).__name__} {'; '.join(missing)}")
        chosen.check(problem)
    return chosen, why


def lacking(method: Guidance, problem: Problem) -> list[str]:
    """What the method needs and the problem cannot do."""
    operator = problem.operator
    assert operator is not None
    reasons = {
        "operator gradient": (
            operator.differentiable,
            f"needs the gradient of the operator, which {operator!r} does not have",
        ),
        "linear": (operator.linear, f"needs a linear operator; {operator!r} is not"),
        "pinv": (operator.has_pinv, f"needs a pseudo-inverse, which {operator!r} does not have"),
        "source": (problem.source is not None, "needs source="),
    }
    return [text for need, (met, text) in reasons.items() if need in method.needs and not met]


def _auto(problem: Problem) -> tuple[Guidance, str]:
    if problem.operator is None:
        return Guidance(), "no measurement: the unconditional sampler"
    for cls in REGISTRY.values():
        method = cls()
        if not lacking(method, problem):
            return method, f"auto: {cls.when}; {problem.operator!r} has what it needs"
    raise CapabilityError(
        f"no method of this version can use {problem.operator!r}: "
        + "; ".join(
            f"{name} {', '.join(lacking(cls(), problem))}" for name, cls in REGISTRY.items()
        )
    )
