"""How y steers the sampler: one small module per method."""

from posterior.guidance._volumes import SliceTV
from posterior.guidance.base import Guidance, State, Step
from posterior.guidance.blended import Blended
from posterior.guidance.daps import DAPS
from posterior.guidance.ddcm import DDCM
from posterior.guidance.dds import DDS
from posterior.guidance.denoising import Denoising
from posterior.guidance.dps import DPS
from posterior.guidance.enkg import EnKG
from posterior.guidance.exact_inversion import BDIA, EDICT
from posterior.guidance.flowchef import FlowChef
from posterior.guidance.flowedit import FlowEdit
from posterior.guidance.inversion import DDIMInversion, NegativePromptInversion
from posterior.guidance.mcg import MCG
from posterior.guidance.mmps import MMPS
from posterior.guidance.postedit import PostEdit
from posterior.guidance.reddiff import REDdiff
from posterior.guidance.registry import REGISTRY, MethodInfo, resolve, table
from posterior.guidance.rf_inversion import RFInversion
from posterior.guidance.sdedit import SDEdit
from posterior.guidance.tds import TDS

__all__ = [
    "BDIA",
    "DAPS",
    "DDCM",
    "DDS",
    "DPS",
    "EDICT",
    "MCG",
    "MMPS",
    "REGISTRY",
    "TDS",
    "Blended",
    "DDIMInversion",
    "Denoising",
    "EnKG",
    "FlowChef",
    "FlowEdit",
    "Guidance",
    "MethodInfo",
    "NegativePromptInversion",
    "PostEdit",
    "REDdiff",
    "RFInversion",
    "SDEdit",
    "SliceTV",
    "State",
    "Step",
    "resolve",
    "table",
]
