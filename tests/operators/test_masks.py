"""What a mask remembers of its last call does not reach the next."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from posterior.operators import Mask
from posterior.operators.mask import Masking


@pytest.mark.parametrize("take", [False, True])
def test_calls_in_any_order_give_what_the_product_gives(take: bool) -> None:
    """Two masks, two dtypes, two batch sizes and two numbers of channels, each after each."""
    g = torch.Generator().manual_seed(0)
    patterns = [(torch.rand(2, 1, 6, 5, generator=g) > 0.5).float() for _ in range(2)]
    masks = [Mask(keep=p) for p in patterns]
    if take:  # copies of the one in memory
        masks, patterns = [masks[0].take([1, 0]), masks[0]], [patterns[0].flip(0), patterns[0]]
    images = [
        torch.randn(2, channels, 6, 5, generator=g, dtype=dtype)
        for dtype in (torch.float32, torch.float64, torch.complex64)
        for channels in (1, 3)
    ]
    calls = list(itertools.product(range(2), images))

    def agrees(which: int, x: Tensor) -> bool:
        return torch.equal(masks[which](x), x * patterns[which].to(x.dtype))

    assert all(agrees(*first) and agrees(*second) for first in calls for second in calls)


def test_a_mask_that_compares_by_value_has_no_hash() -> None:
    @dataclass
    class Left(Masking):
        columns: int

        def pattern(self, height: int, width: int) -> Tensor:
            return (torch.arange(width) < self.columns).expand(1, 1, height, width)

    x = torch.ones(1, 1, 2, 4)
    assert [int(Left(k)(x).sum()) for k in (1, 3, 1)] == [2, 6, 2]


def test_a_forward_of_ones_own_is_called() -> None:
    class Doubled(Mask):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x = torch.ones(1, 1, 2, 2)
    assert torch.equal(Doubled(keep=torch.eye(2))(x), 2 * torch.eye(2)[None, None])
