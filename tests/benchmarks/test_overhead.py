"""The benchmark of the sampler's overhead: that every method runs under its clocks."""

from __future__ import annotations

from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import overhead as benchmark


@pytest.mark.parametrize("name", benchmark.METHODS)
def test_the_bare_calls_are_a_part_of_the_run(name: str) -> None:
    run = benchmark.Run(name, size=32, batch=4)
    first, second = run.timed(2), run.timed(5)
    assert 0 < first[1] < first[0]
    assert first[1] < second[1] < second[0]  # the clock begins anew, and more steps are more calls
