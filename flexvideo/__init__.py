"""Run and train any video state-space model at any frame count, frame size and patch size.

What is at hand here, each with a docstring of its own:

- A model becomes flexible: make_flexible, restore, bake, prewarm, graphed.
- What would flex, and whether it does: plan_for, verify, register_family, Plan, Table, State.
- Policies: StaticTokens, StaticPatch, Temporal, FlexiViT, FlexAll; Policy, policy_of, flex_config.
- Sizes: Base, ClipSpec, Geometry.
- Weights: load, save, describe, convert, list_pretrained, PretrainedFile.
- VideoMamba, and its sizes: videomamba_tiny, videomamba_small, videomamba_middle, videomamba_base.
- Videos: read_clip, write_video.
- Features: extract_features, save_features, load_features, feature_settings.

Data sets, training and measuring are in `flexvideo.data`, `flexvideo.train` and `flexvideo.evaluate`, scan
backends in `flexvideo.scan`, errors in `flexvideo.errors`.
"""

from flexvideo import families_hf as families_hf
from flexvideo import families_hf_images as families_hf_images
from flexvideo import families_ssm as families_ssm
from flexvideo import families_timm as families_timm
from flexvideo import families_torchvision as families_torchvision
from flexvideo import families_transformers as families_transformers
from flexvideo.bake import bake as bake
from flexvideo.checkpoints import describe as describe
from flexvideo.checkpoints import load as load
from flexvideo.data.clips import read_clip as read_clip
from flexvideo.data.encode import write_video as write_video
from flexvideo.discover import plan_for as plan_for
from flexvideo.families import register_family as register_family
from flexvideo.featurefile import feature_settings as feature_settings
from flexvideo.featurefile import load_features as load_features
from flexvideo.featurefile import save_features as save_features
from flexvideo.features import extract_features as extract_features
from flexvideo.folder import convert as convert
from flexvideo.geometry import Base as Base
from flexvideo.geometry import ClipSpec as ClipSpec
from flexvideo.geometry import Geometry as Geometry
from flexvideo.graphed import graphed as graphed
from flexvideo.models import VideoMamba as VideoMamba
from flexvideo.models import videomamba_base as videomamba_base
from flexvideo.models import videomamba_middle as videomamba_middle
from flexvideo.models import videomamba_small as videomamba_small
from flexvideo.models import videomamba_tiny as videomamba_tiny
from flexvideo.official import PretrainedFile as PretrainedFile
from flexvideo.official import list_pretrained as list_pretrained
from flexvideo.plan import Plan as Plan
from flexvideo.plan import State as State
from flexvideo.plan import Table as Table
from flexvideo.policy import FlexAll as FlexAll
from flexvideo.policy import FlexiViT as FlexiViT
from flexvideo.policy import Policy as Policy
from flexvideo.policy import StaticPatch as StaticPatch
from flexvideo.policy import StaticTokens as StaticTokens
from flexvideo.policy import Temporal as Temporal
from flexvideo.policy import policy_of as policy_of
from flexvideo.saving import save as save
from flexvideo.swap import flex_config as flex_config
from flexvideo.swap import make_flexible as make_flexible
from flexvideo.swap import prewarm as prewarm
from flexvideo.swap import restore as restore
from flexvideo.verify import verify as verify

__version__ = "0.1.0"
