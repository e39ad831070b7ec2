"""Devices by name, and the memory that a run may take on one."""

from __future__ import annotations

import torch

from posterior.errors import CapabilityError, InputError, InputTypeError

CPU_BUDGET = 2 << 30
"""Bytes that a run plans with on a CPU; on a GPU it is half of what is free."""


def as_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, tried out; None is the CPU.

    Raises:
        InputError: no name of a device.
        CapabilityError: a device that is not here, or that this torch cannot use.
    """
    if device is None:
        return torch.device("cpu")
    if not isinstance(device, (str, torch.device)):
        raise InputTypeError(f'a device is named as in "cuda:0", not by {type(device).__name__}')
    try:
        named = torch.device(device)
    except RuntimeError:
        raise InputError(f"{device!r} is no device; here are: {', '.join(here())}") from None
    try:
        torch.empty(0, device=named)
    except Exception as error:  # of whatever kind a backend raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CapabilityError(
            f"device {named} cannot be used ({lines[0]}); here are: {', '.join(here())}"
        ) from None
    return named


def default_rows(device: torch.device) -> int:
    """The fixed batch of a network: 1 on a CPU, 4 elsewhere."""
    return 1 if device.type == "cpu" else 4


def check_rows(rows: object) -> None:
    """Refuse what is not the size of a block; None is."""
    if rows is None:
        return
    if isinstance(rows, bool) or not isinstance(rows, int):
        raise InputTypeError(f"rows must be a whole number, not {rows!r}")
    if rows < 1:
        raise InputError(f"rows must be at least 1, got {rows}")


def here() -> list[str]:
    """The names of the devices that can be used."""
    cuda = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def share(device: torch.device) -> int:
    """Bytes that one network call may take: half of the memory of a GPU, whoever uses the rest.

    A choice that changes the last bits of a draw must not depend on what happens to be free.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 2
    return CPU_BUDGET
