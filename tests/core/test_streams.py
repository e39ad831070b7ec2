"""Philox against its published vectors; the noise as a pure function of its address."""

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats

from posterior.errors import InputError, InputTypeError
from posterior.streams import Noise, check_seed, key_of, normal, philox, seeds_of

VECTORS = [  # Random123, kat_vectors, philox4x32 10
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[torch.Tensor]:
    return [torch.tensor([int(w, 16)]) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_published_vectors(counter: str, key: str, expected: str) -> None:
    assert philox(words(counter), words(key)) == words(expected)


def noise(seeds=(0,), draws=(0,), particles=(0,), event=(64,), **more) -> Noise:
    return Noise(seeds, draws, particles, event, torch.float64, **more)


def test_numbers_are_standard_normal() -> None:
    z = Noise.single(3, (50,), torch.float64, rows=1000)("z")
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((z**2).sum(1).numpy(), stats.chi2(50).cdf).pvalue > 1e-3
    u = Noise.single(3, (50,), rows=1000).uniform("u")
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert float(u.min()) > 0
    assert float(u.max()) < 1


def test_every_part_of_the_address_gives_independent_numbers() -> None:
    """Correlations of 4096 numbers: 5 standard errors over 21 pairs."""
    size = 4096
    streams = [
        noise(event=(size,))("z"),
        noise(event=(size,))("y"),
        noise(event=(size,))("z", 1),
        noise(event=(size,)).at(1)("z"),
        noise(draws=(1,), event=(size,))("z"),
        noise(particles=(1,), event=(size,))("z"),
        noise(seeds=(1,), event=(size,))("z"),
    ]
    for a, b in itertools.combinations(streams, 2):
        assert abs(float((a * b).mean())) < 5 / size**0.5
        assert not torch.equal(a, b)


def test_numbers_within_a_row_are_uncorrelated() -> None:
    z = noise(event=(20000,))("z")[0]
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((z[:-lag] * z[lag:]).mean())) < 5 / 20000**0.5


def test_same_numbers_in_both_precisions() -> None:
    single = Noise.single(5, (7,), torch.float32, rows=3)("z")
    double = Noise.single(5, (7,), torch.float64, rows=3)("z")
    assert torch.equal(single, double.float())


def test_quantiles_to_the_ends_of_the_tails() -> None:
    words = torch.tensor([0, 1, 2, 1000, 2**31, 2**32 - 2, 2**32 - 1], dtype=torch.float64)
    u = (words + 0.5) * 2.0**-32

    class Fixed(Noise):
        def _uniform64(self, name: str, j: int, shape: object, low: float) -> torch.Tensor:
            return low + (1 - low) * u[None]

    z = Fixed((0,), (0,), (0,), (7,), torch.float64)("z")[0]
    assert z.numpy() == pytest.approx(special.ndtri(u.numpy()), rel=1e-6)


@pytest.mark.parametrize("event", [(), (1,), (3,), (5, 7), (2, 33), (3, 111, 113)])
def test_row_alone_equals_row_in_a_batch(event: tuple[int, ...]) -> None:
    whole = noise((4, 4, 9, 9), (0, 1, 0, 1), (0, 0, 2, 2), event, step=6)("z", 2)
    for row, (seed, draw, particle) in enumerate([(4, 0, 0), (4, 1, 0), (9, 0, 2), (9, 1, 2)]):
        alone = noise((seed,), (draw,), (particle,), event, step=6)("z", 2)
        assert torch.equal(alone[0], whole[row])
    assert whole.is_contiguous()


@pytest.mark.parametrize("seed", [0, -1, -(2**70), 2**64, 2**64 + 1, 2**200, np.int64(7)])
def test_every_integer_is_a_seed(seed: int) -> None:
    z = Noise.single(seed, (8,))("z")
    assert bool(torch.isfinite(z).all())
    assert not torch.equal(z, Noise.single(int(seed) + 1, (8,))("z"))
    assert key_of(check_seed(seed), "a") != key_of(check_seed(seed), "b")


@pytest.mark.parametrize("seed", [True, 1.0, "0", None, (1,)])
def test_what_is_no_seed(seed: object) -> None:
    with pytest.raises(InputTypeError):
        check_seed(seed)


def test_measurements_have_their_own_streams() -> None:
    assert seeds_of(5, 3) == [5, 6, 7]
    assert seeds_of([5, 1, 5], 3) == [5, 1, 5]
    with pytest.raises(InputError):
        seeds_of([1, 2], 3)


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    Noise.single(0, (8,), rows=4)("z")
    assert torch.equal(before, torch.get_rng_state())


def test_complex_noise_has_two_streams() -> None:
    z = normal(0, "n", torch.zeros(2, 500, dtype=torch.complex64))
    assert abs(float((z.real * z.imag).mean())) < 5 / 1000**0.5
    assert torch.equal(z[1:], normal(0, "n", torch.zeros(2, 500, dtype=torch.complex64))[1:])
