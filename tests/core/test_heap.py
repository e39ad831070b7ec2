"""Memory that is freed during a run serves the next step instead of going back to the system."""

import platform
import resource

import pytest
import torch

from posterior import heap

MIB = 2**20
TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def faults_of(times: int) -> int:
    """Pages that the process had to fetch while 128 MiB were allocated and freed repeatedly."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        parts = [torch.ones(4 * MIB, dtype=torch.uint8) for _ in range(32)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


# Outside, about two processes in three fetch all pages each time; the others are lucky in what lies
# at the top of their heap. So only the inside is a promise.
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is set")
def test_pages_are_fetched_once() -> None:
    with heap.kept(torch.device("cpu")):
        faults_of(1)
        assert faults_of(4) < 128 * MIB // resource.getpagesize() / 4


def test_memory_is_given_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda what, value: calls.append((what, value)))
    with pytest.raises(KeyError), heap.kept(torch.device("cpu")):
        raise KeyError("x")
    assert calls == [(MMAP, 32 * MIB), (TRIM, 2**31 - 1), (TRIM, 64 * MIB)]


def test_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_mallopt", lambda: pytest.fail)
    with heap.kept(torch.device("meta")):
        pass


def test_a_c_library_without_mallopt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_mallopt", lambda: None)
    with heap.kept(torch.device("cpu")):
        assert torch.ones(3).sum() == 3
