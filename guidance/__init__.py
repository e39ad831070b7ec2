"""How y steers the sampler: one small module per method."""

from posterior.guidance._volumes import SliceTV
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.daps import DAPS
from posterior.guidance.dds import DDS
from posterior.guidance.dps import DPS
from posterior.guidance.enkg import EnKG
from posterior.guidance.mcg import MCG
from posterior.guidance.mmps import MMPS
from posterior.guidance.postedit import PostEdit
from posterior.guidance.reddiff import REDdiff
from posterior.guidance.registry import REGISTRY, MethodInfo, resolve, table
from posterior.guidance.tds import TDS

__all__ = [
    "DAPS",
    "DDS",
    "DPS",
    "MCG",
    "MMPS",
    "REGISTRY",
    "TDS",
    "EnKG",
    "Guidance",
    "MethodInfo",
    "PostEdit",
    "REDdiff",
    "SliceTV",
    "State",
    "Step",
    "resolve",
    "table",
]
