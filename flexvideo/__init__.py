"""Run and train any video state-space model at any frame count, frame size and patch size."""

from flexvideo.geometry import Base as Base
from flexvideo.geometry import ClipSpec as ClipSpec
from flexvideo.geometry import Geometry as Geometry
from flexvideo.models import VideoMamba as VideoMamba
from flexvideo.models import videomamba_base as videomamba_base
from flexvideo.models import videomamba_middle as videomamba_middle
from flexvideo.models import videomamba_small as videomamba_small
from flexvideo.models import videomamba_tiny as videomamba_tiny
from flexvideo.policy import FlexAll as FlexAll
from flexvideo.policy import FlexiViT as FlexiViT
from flexvideo.policy import Policy as Policy
from flexvideo.policy import StaticPatch as StaticPatch
from flexvideo.policy import StaticTokens as StaticTokens
from flexvideo.policy import Temporal as Temporal
from flexvideo.policy import policy_of as policy_of

__version__ = "0.1.0"
