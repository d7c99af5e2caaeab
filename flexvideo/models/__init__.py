"""Reference models."""

from flexvideo.models.builders import videomamba_base as videomamba_base
from flexvideo.models.builders import videomamba_middle as videomamba_middle
from flexvideo.models.builders import videomamba_small as videomamba_small
from flexvideo.models.builders import videomamba_tiny as videomamba_tiny
from flexvideo.models.mixer import BiMamba as BiMamba
from flexvideo.models.videomamba import VideoMamba as VideoMamba
