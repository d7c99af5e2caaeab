"""Videos in: decoding, clip sampling, and synthetic motion."""

from flexvideo.data.clips import read_clip as read_clip
from flexvideo.data.clips import sample_frames as sample_frames
from flexvideo.data.decode import index_video as index_video
from flexvideo.data.decode import read_frames as read_frames
from flexvideo.data.encode import write_video as write_video
from flexvideo.data.index import VideoIndex as VideoIndex
