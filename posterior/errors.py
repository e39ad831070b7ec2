"""The exceptions of the library: each says what was wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PosteriorError(Exception):
    """Base class of every exception that the library raises on purpose."""


class InputError(PosteriorError, ValueError):
    """A value, shape, range or dtype that cannot be used."""


class InputTypeError(PosteriorError, TypeError):
    """An argument of the wrong type."""


class CapabilityError(PosteriorError, ValueError):
    """A method was asked for something that the operator, noise model or prior cannot do."""


class FileProblem(PosteriorError, OSError):  # noqa: N818  (reads better in a traceback)
    """A file or folder that is missing, broken, of an unknown format, or in the way."""


class ResumeError(PosteriorError, RuntimeError):
    """A checkpoint that does not belong to the run that wants to continue it."""


class SamplingError(PosteriorError, RuntimeError):
    """Every row of a run turned non-finite."""


class TrainingError(PosteriorError, RuntimeError):
    """A network whose training diverged."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for an unknown name, with the nearest known ones."""
    name, known = str(name), sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "known: " + ", ".join(known)
    return InputError(f"unknown {kind} {name!r}; {hint}")
