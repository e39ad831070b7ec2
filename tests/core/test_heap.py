"""Memory that is freed during a run serves the next step instead of going back to the system."""

import platform
import resource

import pytest
import torch

from posterior import heap

MIB = 2**20


def faults_of(times: int) -> int:
    """Pages that the process had to fetch while 128 MiB were allocated and freed repeatedly."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        parts = [torch.ones(4 * MIB, dtype=torch.uint8) for _ in range(32)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is set")
def test_pages_are_fetched_once_inside_and_given_back_afterwards() -> None:
    pages = 128 * MIB // resource.getpagesize()
    with heap.kept(torch.device("cpu")):
        faults_of(1)
        inside = faults_of(4)
    faults_of(1)
    outside = faults_of(4)
    assert inside < pages / 4
    assert outside > 2 * pages


def test_other_devices_are_left_alone() -> None:
    with heap.kept(torch.device("meta")):
        assert torch.ones(3).sum() == 3


def test_what_is_raised_inside_comes_out() -> None:
    with pytest.raises(KeyError), heap.kept(torch.device("cpu")):
        raise KeyError("x")
