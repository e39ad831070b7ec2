"""Peak memory of one call, above what is held before it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch


class Peak:
    """Peak of the process's memory (Linux) or of a CUDA device's, from here on.

    None elsewhere: other systems do not let a process set its peak back.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
            return
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            self.before = _status("VmRSS")
        except OSError:
            self.before = None

    def bytes(self) -> int | None:
        """The peak so far, above what was held at the start."""
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
