"""Gradients in less memory: what is inside a block is computed again instead of kept.

Chen et al. 2016 (arXiv:1604.06174): of each block only the input stays until the gradient is asked
for, at the price of one more forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A block of a network that can be computed again for a gradient.

    Attributes:
        recompute: keep only the inputs.
    """

    recompute = False

    def __call__(self, *args: Any) -> Any:
        """The forward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


def recompute_blocks(module: nn.Module) -> bool:
    """Have a network compute its blocks again; False if it has none that can be told."""
    blocks = [part for part in module.modules() if isinstance(part, Recomputed)]
    for block in blocks:
        block.recompute = True
    if not getattr(module, "_supports_gradient_checkpointing", False):
        return bool(blocks)
    module.enable_gradient_checkpointing()  # type: ignore[operator]  # of a diffusers model
    return True
