"""Randomness as a pure function of an address: Philox4x32-10 in torch integer arithmetic.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). There is no
state: a number is a function of a 64-bit key and a 128-bit counter, so that a draw gets the same
noise alone or in any batch, in any chunk, resumed or not, and a checkpoint holds no generator.

The counter is (element // 4, draw, particle, step); the key is a 64-bit hash of (seed, name, j).
"""

from __future__ import annotations

import hashlib
import math
import operator as _operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posterior.errors import InputError, InputTypeError

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of the key
_MASK = 0xFFFFFFFF
_ROUNDS = 10
_WIDENING = 3  # rounds after which words that broadcast have been mixed with all others
MOST_DRAWS = 2**32  # a word of the counter


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10: four counter words and two key words -> four random words.

    Words are int64 tensors that hold values in [0, 2**32); they broadcast. int64 products wrap
    modulo 2**64, which is all that the 32 x 32 -> 64 bit multiplication needs.
    """
    c0, c1, c2, c3 = counter
    rounds = torch.arange(_ROUNDS, device=c0.device)
    k0s, k1s = ((k[..., None] + w * rounds) & _MASK for k, w in zip(key, (_W0, _W1), strict=True))
    keys = list(zip(k0s.unbind(-1), k1s.unbind(-1), strict=True))
    # of c1 and c3 only the low 32 bits count: they are masked where they enter a product
    for k0, k1 in keys[:_WIDENING]:
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32 ^ c1 ^ k0) & _MASK, p1, (p0 >> 32 ^ c3 ^ k1) & _MASK, p0
    # the words have their full shape: from here on in six buffers, since new tensors in each round
    # would leave the processor's cache
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    c0, c1, c2, c3 = (c if c.shape == shape else c.expand(shape).clone() for c in (c0, c1, c2, c3))
    s0, s1 = torch.empty_like(c0), torch.empty_like(c0)
    for k0, k1 in keys[_WIDENING:]:
        p0, p1 = torch.mul(c0, _M0, out=s0), torch.mul(c2, _M1, out=s1)
        torch.bitwise_right_shift(p1, 32, out=c2).bitwise_xor_(c1).bitwise_xor_(k0)
        torch.bitwise_right_shift(p0, 32, out=c0).bitwise_xor_(c3).bitwise_xor_(k1)
        s0, s1, c0, c1, c2, c3 = c1, c3, c2.bitwise_and_(_MASK), p1, c0.bitwise_and_(_MASK), p0
    return [c0, c1 & _MASK, c2, c3 & _MASK]


def check_seed(seed: object) -> int:
    """Any Python or numpy integer as an int; anything else is an `InputTypeError`."""
    if isinstance(seed, bool):
        raise InputTypeError("seed must be an integer, not a bool")
    try:
        return _operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise InputTypeError(f"seed must be an integer, not {type(seed).__name__}") from None


def key_of(seed: int, name: str, j: int = 0) -> tuple[int, int]:
    """The Philox key (two 32-bit words) of a seed, a name and an index."""
    digest = hashlib.blake2b(f"{seed}/{name}/{j}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def seeds_of(seed: object, measurements: int) -> list[int]:
    """One integer per measurement: `seed + b` for measurement b, or the ints that were given."""
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != measurements:
            raise InputError(f"{len(seed)} seeds for {measurements} measurements: give one each")
        return [check_seed(s) for s in seed]
    first = check_seed(seed)
    return [first + b for b in range(measurements)]


@dataclass(frozen=True)
class Noise:
    """The random numbers of some rows: `noise("z")` is (rows, *event), standard normal.

    Args:
        seeds: one integer per row (that of the row's measurement).
        draws: the draw (or ensemble) number of each row.
        particles: the number of each row within its group.
        event: shape of one row's event.
        step: the step of the sampler; `at(step)` moves to another.
    """

    seeds: tuple[int, ...]
    draws: tuple[int, ...]
    particles: tuple[int, ...]
    event: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    _cache: dict[object, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def single(
        seed: int,
        event: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rows: int = 1,
    ) -> Noise:
        """Rows 0..rows-1 of one seed, for everything that is not a sampler run."""
        return Noise(
            (check_seed(seed),) * rows,
            tuple(range(rows)),
            (0,) * rows,
            tuple(event),
            dtype,
            torch.device(device),
        )

    def at(self, step: int) -> Noise:
        """The same rows at another step."""
        return Noise(
            self.seeds,
            self.draws,
            self.particles,
            self.event,
            self.dtype,
            self.device,
            step,
            self._cache,
        )

    def __call__(self, name: str, j: int = 0, shape: Sequence[int] | None = None) -> Tensor:
        """Standard normal numbers (rows, *shape); `shape` defaults to the event's.

        Quantiles sqrt(2) erfinv(2 u - 1) of 32-bit uniforms: one number per word, within +-6.4, the
        same for float32 and float64. What `erfinv` gives does not depend on where in the tensor the
        element stands (measured; vectorised log and cos do, in the last bit).
        """
        z = self._uniform64(name, j, shape, -1.0).erfinv_().mul_(math.sqrt(2))
        return z.to(self.dtype).contiguous()  # rows end in a part of a block

    def uniform(self, name: str, j: int = 0, shape: Sequence[int] | None = None) -> Tensor:
        """Uniform numbers in (0, 1), float64, (rows, *shape)."""
        return self._uniform64(name, j, shape, 0.0)

    def _uniform64(self, name: str, j: int, shape: Sequence[int] | None, low: float) -> Tensor:
        """Uniform numbers in (low, 1), (word + 1/2) / 2**32 for low = 0; for 0 and -1 exact."""
        shape = self.event if shape is None else tuple(shape)
        size = math.prod(shape)
        blocks = -(-size // 4)
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        words = philox(
            (
                torch.arange(blocks, device=self.device)[None],
                self._column("draws", self.draws),
                self._column("particles", self.particles),
                zero + self.step,
            ),
            self._key(name, j),
        )
        count = len(self.seeds)
        bits = torch.empty(count, blocks, 4, dtype=torch.float64, device=self.device)
        for k, word in enumerate(words):
            bits[..., k] = word
        unit = (1 - low) * 2.0**-32
        uniform = bits.mul_(unit).add_(low + unit / 2).flatten(1)
        return uniform[:, :size].reshape(count, *shape)

    def _column(self, what: str, values: Sequence[int]) -> Tensor:
        if what not in self._cache:  # one transfer for the whole run, not one a step
            words = torch.tensor([v & _MASK for v in values], device=self.device)
            self._cache[what] = words[:, None]
        return self._cache[what]

    def _key(self, name: str, j: int) -> tuple[Tensor, Tensor]:
        distinct = tuple(dict.fromkeys(self.seeds))
        words = torch.tensor([key_of(seed, name, j) for seed in distinct], device=self.device)
        if len(distinct) > 1:
            number = {seed: i for i, seed in enumerate(distinct)}
            words = words[self._column("seeds", tuple(number[s] for s in self.seeds))[:, 0]]
        return words[:, :1], words[:, 1:]


def normal(seed: int, name: str, like: Tensor) -> Tensor:
    """Standard normal numbers shaped like `like` (B, *event); complex: per real component."""
    noise = Noise.single(seed, like.shape[1:], like.real.dtype, like.device, rows=like.shape[0])
    if like.is_complex():
        return torch.complex(noise(name, 0), noise(name, 1))
    return noise(name)
