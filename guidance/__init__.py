"""How y steers the sampler: one small module per method."""

from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.dps import DPS
from posterior.guidance.registry import REGISTRY, MethodInfo, resolve, table

__all__ = ["DPS", "REGISTRY", "Guidance", "MethodInfo", "State", "Step", "resolve", "table"]
