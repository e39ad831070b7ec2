"""Warnings: things that are allowed, and seldom what was meant."""

from __future__ import annotations

import sys
import warnings


class PosteriorWarning(UserWarning):
    """Input that is used as it is, and is seldom what was meant."""


def warn(message: str) -> None:
    """A `PosteriorWarning` at the line that called the library: Python shows it there once."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PosteriorWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module == "posterior" or module.startswith("posterior.")
