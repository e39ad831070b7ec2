"""SDEdit: the source brought to a noise level, and denoised from there.

C. Meng, Y. He, Y. Song, J. Song, J. Wu, J.-Y. Zhu, S. Ermon, "SDEdit: guided image synthesis and
editing with stochastic differential equations", ICLR 2022, arXiv 2108.01073:

    x_t0 = alpha source + sigma z,    then the sampler from t0 to clean

The baseline of all editing: one number trades the source for the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posterior.guidance._editing import PartWay


@dataclass(frozen=True, kw_only=True)
class SDEdit(PartWay):
    """Noise the source to a level and sample from there under the target's prior.

    Args:
        strength: the share of the steps that is made, in (0, 1]: `int(strength steps)` of them, as
            in diffusers. 1 starts from the noisiest level.
    """

    strength: float = 0.6
    spacing: str = "uniform"
    default_steps: int = 50

    needs: ClassVar[frozenset[str]] = frozenset({"source"})
    when: ClassVar[str] = "editing, the baseline: noise the source, denoise under the target"
    paper: ClassVar[str] = "Meng et al., ICLR 2022, arXiv 2108.01073"
