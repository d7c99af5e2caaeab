"""Training at random sizes: recipes, the loop, and checkpoints that a run goes on from."""

from flexvideo.train.config import PRESETS as PRESETS
from flexvideo.train.config import TrainConfig as TrainConfig
from flexvideo.train.distributed import processes as processes
from flexvideo.train.ema import Ema as Ema
from flexvideo.train.groups import param_groups as param_groups
from flexvideo.train.keyed import keyed as keyed
from flexvideo.train.log import read_log as read_log
from flexvideo.train.loop import TrainResult as TrainResult
from flexvideo.train.loop import train as train
from flexvideo.train.pretrain import Pretraining as Pretraining
from flexvideo.train.pretrain import pretrain as pretrain
from flexvideo.train.schedule import learning_rate as learning_rate
from flexvideo.train.start import replace_head as replace_head
from flexvideo.train.step import Criterion as Criterion
from flexvideo.train.step import loss_sum as loss_sum
from flexvideo.train.validation import Validation as Validation
