"""Freed memory that stays with the process while a run is under way.

The graph of the network is built and freed at every step, hundreds of MiB at a time. glibc gives a
free top of its heap back to the system at once, and the next step pays for every page again: up to
8 % of a step with the photo prior. While a run is under way nothing is given back.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_MIB = 2**20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * _MIB  # of a 64-bit system, as in mallopt(3)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The C library's mallopt, where it has one (glibc)."""
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """No memory goes back to the system inside; on a CPU with glibc, else nothing changes.

    Setting the thresholds ends their self-adjustment, which only ever raises them. So afterwards
    they are what it would have arrived at in the end: 32 MiB for a mapping of its own, and twice
    that for giving memory back.
    """
    mallopt = _mallopt() if device.type == "cpu" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
