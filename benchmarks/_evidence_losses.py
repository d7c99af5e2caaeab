"""Losses that trials of flexible training make small, in the place of the plain cross-entropy."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from flexvideo.data import Batch
from flexvideo.evaluate.native import fit_clip
from flexvideo.geometry import Base
from flexvideo.train import loss_sum


@dataclass(frozen=True)
class Distilled:
    """A criterion of `train`: every clip at the drawn size and, resized, at the size the model was built for.

    The mean of both cross-entropies, and the Kullback-Leibler divergence of the classes at the drawn size
    from those at the own size, which learn nothing from it. Where the own size is drawn there is one pass;
    over all, a step costs about twice as much (2.2 times the tokens on the short set, 1.7 on the long one).
    A clip that is drawn small is enlarged: the own size then shows no more of it.

    Args:
        base: size that the model was built for.

    Source: Frame Flexible Network (arXiv 2303.14817), which learns from its longest clip in the same way.
    """

    base: Base

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        scores, clips = model(batch.clips, patch=batch.spec.patch), fit_clip(batch.clips, self.base)
        if clips is batch.clips:
            return loss_sum(scores, batch)
        own = model(clips, patch=self.base.patch)
        learned, taught = (F.log_softmax(each.float(), dim=1) for each in (scores, own.detach()))
        divergence = F.kl_div(learned, taught, reduction="none", log_target=True).sum(1)
        return (loss_sum(scores, batch) + loss_sum(own, batch)) / 2 + (divergence * batch.weights).sum()


@dataclass(frozen=True)
class ClipsAlike:
    """A criterion of `train`: cross-entropy in which every clip of a training counts alike, not every step.

    A step of long clips holds fewer of them, so that by the mean over a step each counts for more.

    Args:
        clips: of a full step, whose loss stays what it is.

    Source: NaFlex of timm, its loss scale "linear".
    """

    clips: int

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return loss_sum(model(batch.clips, patch=batch.spec.patch), batch) * (len(batch) / self.clips)
