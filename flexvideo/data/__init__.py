"""Videos in: decoding, clip sampling, data sets, and synthetic motion."""

from flexvideo.data.check import VideoCheck as VideoCheck
from flexvideo.data.check import check_videos as check_videos
from flexvideo.data.clips import read_clip as read_clip
from flexvideo.data.clips import sample_frames as sample_frames
from flexvideo.data.datasets import DATASETS as DATASETS
from flexvideo.data.datasets import from_folder as from_folder
from flexvideo.data.datasets import open_dataset as open_dataset
from flexvideo.data.decode import index_video as index_video
from flexvideo.data.decode import read_frames as read_frames
from flexvideo.data.encode import write_video as write_video
from flexvideo.data.index import VideoIndex as VideoIndex
from flexvideo.data.lists import from_list as from_list
from flexvideo.data.lists import write_list as write_list
from flexvideo.data.records import Problem as Problem
from flexvideo.data.records import VideoRecord as VideoRecord
from flexvideo.data.records import VideoSet as VideoSet
from flexvideo.data.records import require_known_classes as require_known_classes
