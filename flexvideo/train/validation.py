"""Top-1 accuracy at several sizes of clip, for the course of a training; `evaluate/` has the protocols."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flexvideo.data.clips import normalize
from flexvideo.data.room import lacks_memory
from flexvideo.data.source import ClipSource
from flexvideo.errors import MemoryLimitError, VideoError
from flexvideo.models.hub_mixin import HubMixin
from flexvideo.train.distributed import rank_and_world, summed


@dataclass(frozen=True)
class Validation:
    """Measures a model on a source: one centre crop of uniformly spaced frames of every clip.

    Processes share the clips. Clips that cannot be read, where the source skips such, do not count; that not
    one can is an error.

    Args:
        source: with the classes of the training.
        sizes: (frames, side in pixels) of the clips, as many as there are to be figures.
        batch: clips of a forward pass.
        workers: threads that read.

    Example:
        >>> from flexvideo import VideoMamba, make_flexible
        >>> from flexvideo.data.motion import MotionSet
        >>> from flexvideo.data.source import RenderedSource
        >>> source = RenderedSource(MotionSet("val", per_class=1))
        >>> model = VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=2, num_classes=18)
        >>> list(Validation(source, ((2, 32), (3, 48)))(make_flexible(model)))
        ['top1/2x32', 'top1/3x48']
    """

    source: ClipSource
    sizes: Sequence[tuple[int, int]]
    batch: int = 16
    workers: int = 2

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Accuracy at each size, 0 to 1, under names such as "top1/16x224".

        Args:
            model: in evaluation mode.

        Raises:
            VideoError: a clip cannot be read, and the source is not told to skip it; or not one can.
            MemoryLimitError: clips of some size do not fit into memory.
        """
        return {f"top1/{frames}x{size}": self._fitting(model, frames, size) for frames, size in self.sizes}

    def _fitting(self, model: nn.Module, frames: int, size: int) -> float:
        try:
            return self._accuracy(model, frames, size)
        except (RuntimeError, OSError) as error:
            if not lacks_memory(error):
                raise
            clips, device = min(self.batch, len(self.source)), next(model.parameters()).device
            raise MemoryLimitError(
                f"{clips} clips of {frames} frames of {size} px do not fit into the memory of {device} while "
                "the model is measured: measure at smaller sizes (--evaluate-at), or in smaller batches "
                "(`Validation(batch=...)`)."
            ) from error

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, frames: int, size: int) -> float:
        rank, world = rank_and_world()
        indices = range(rank, len(self.source), world)
        right = total = 0.0
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(indices), self.batch):
                part = indices[start : start + self.batch]
                found = list(pool.map(lambda index: self._read(model, index, frames, size), part))
                clips = [clip for clip in found if clip is not None]
                labels = [
                    self.source.labels[index]
                    for index, clip in zip(part, found, strict=True)
                    if clip is not None
                ]
                if clips:
                    right += (_best(model, torch.cat(clips)) == torch.tensor(labels)).sum().item()
                    total += len(labels)
        right, total = summed(torch.tensor([right, total])).tolist()
        if not total:
            raise VideoError(
                f"Not one of the {len(self.source):,} clips of {self.source.name} can be read, so nothing "
                "can be measured on it: `flexvideo check-videos` says why."
            )
        return right / total

    def _read(self, model: nn.Module, index: int, frames: int, size: int) -> Tensor | None:
        try:
            found = self.source.read(index, frames=frames, size=size)
        except VideoError as error:
            self.source.skip(index, error)
            return None
        return normalize(found, **normalisation(model))


def _best(model: nn.Module, clips: Float[Tensor, "b 3 t h w"]) -> Int[Tensor, " b"]:
    weight = next(model.parameters())
    return model(clips.to(weight.device, weight.dtype)).argmax(dim=1).cpu()


def normalisation(model: nn.Module) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the colours as a model was trained with; ImageNet's for another's.

    Args:
        model: any.
    """
    own = model if isinstance(model, HubMixin) else HubMixin()
    return {"mean": own.mean, "std": own.std}
