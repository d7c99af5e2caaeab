"""One feature vector for every video: read, run and collect."""

import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.data.clips import IMAGENET_MEAN, IMAGENET_STD, Sampling, Size, read_clip
from flexvideo.errors import ConfigError, UnsupportedModelError, VideoError, VideoWarning
from flexvideo.models.hub_mixin import HubMixin

OnError = Literal["raise", "skip"]


def extract_features(
    model: nn.Module,
    videos: Sequence[str | Path],
    *,
    frames: int = 16,
    size: Size | list[int] = 224,
    sampling: Sampling = "uniform",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 8,
    workers: int = 1,
    on_error: OnError = "raise",
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[str], Float[Tensor, "n d"]]:
    """Run a model's `forward_features` over video files, in evaluation mode, on the model's device.

    Returns the names of the videos, as they were given, and for each a float32 row on the CPU.

    Args:
        model: gives (b, d) for a clip (b, 3, t, h, w), as VideoMamba does.
        videos: files, one or more.
        frames: frames a clip.
        size: as for `read_clip`; with None, only neighbours of one size share a batch.
        sampling: as for `read_clip`.
        mean: per colour, as for `read_clip`; None is the model's own, of another's model ImageNet's.
        std: likewise.
        batch: clips in a forward pass.
        workers: threads that read videos ahead of the model.
        on_error: `raise` stops at the first video that cannot be read; `skip` warns and leaves it out.
        progress: called with the number of videos done, those left out included, and their total.

    Raises:
        VideoError: a video that cannot be read; with `skip`, not one that can.
        UnsupportedModelError: `forward_features` is missing or gives something else, or no finite numbers.

    Example:
        >>> names, features = extract_features(model, ["a.mp4", "b.mp4"], size=128)  # doctest: +SKIP
        >>> features.shape  # doctest: +SKIP
        torch.Size([2, 192])
    """
    if isinstance(videos, str | Path):
        raise ConfigError(f"`videos` is a list of files: give [{str(videos)!r}] for one.")
    if not videos or batch < 1 or workers < 1:
        raise ConfigError(
            "Features need at least 1 video, 1 clip a batch and 1 worker; "
            f"got {len(videos)}, {batch} and {workers}."
        )
    own = (model.mean, model.std) if isinstance(model, HubMixin) else (IMAGENET_MEAN, IMAGENET_STD)
    read = functools.partial(
        read_clip, frames=frames, size=size, sampling=sampling, mean=mean or own[0], std=std or own[1]
    )
    names: list[str] = []
    rows: list[Tensor] = []
    done = 0
    with evaluating(model), torch.no_grad():
        for group in _batches(_read_ahead(read, videos, workers, on_error), batch):
            names += [clip.name for clip in group]
            features = _features_of(model, torch.cat([clip.values for clip in group]))
            for clip, row in zip(group, features, strict=True):
                require_finite(row, model, at=clip.name)
            rows.append(features)
            done = group[-1].number
            if progress:
                progress(done, len(videos))
    if not rows:
        raise VideoError(f"Not one of the {len(videos)} videos could be read.")
    if progress and done < len(videos):
        progress(len(videos), len(videos))
    return names, torch.cat(rows)


class _Clip(NamedTuple):
    number: int  # of the video, from 1
    name: str
    values: Float[Tensor, "1 3 t h w"]


def _read_ahead(
    read: Callable[[str | Path], Tensor], videos: Sequence[str | Path], workers: int, on_error: OnError
) -> Iterator[_Clip]:
    """Read videos in threads, a few ahead of need; decoding does not hold the interpreter's lock."""
    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            upcoming = iter(videos)
            for number, video in enumerate(videos, 1):
                while len(waiting) < 2 * workers and (following := next(upcoming, None)) is not None:
                    waiting.append(pool.submit(read, following))
                try:
                    yield _Clip(number, str(video), waiting.popleft().result())
                except VideoError as error:
                    if on_error == "raise":
                        raise
                    warnings.warn(f"Left out: {error}", VideoWarning, stacklevel=3)
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(clips: Iterator[_Clip], size: int) -> Iterator[list[_Clip]]:
    """Group neighbours of one shape."""
    group: list[_Clip] = []
    for clip in clips:
        if group and (len(group) == size or clip.values.shape != group[0].values.shape):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def _features_of(model: nn.Module, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b d"]:
    forward = getattr(model, "forward_features", None)
    if forward is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no method `forward_features`, which is to give one vector a clip."
        )
    weight = next(model.parameters())
    features = forward(clips.to(weight.device, weight.dtype))
    if features.ndim != 2 or len(features) != len(clips):
        raise UnsupportedModelError(
            f"`forward_features` of {type(model).__name__} gave {tuple(features.shape)} for {len(clips)} "
            f"clips, not ({len(clips)}, d), one vector a clip."
        )
    return features.float().cpu()


def require_finite(values: Float[Tensor, "*b d"], model: nn.Module, *, at: str) -> None:
    """Refuse outputs that nothing can be told from.

    Args:
        values: that the model gave.
        model: for the message.
        at: which video or geometry they are of.

    Raises:
        UnsupportedModelError: some are infinite or no numbers.
    """
    if not values.isfinite().all():
        raise UnsupportedModelError(
            f"{type(model).__name__} gave values that are no numbers, or infinite, at {at}: its weights have "
            f"diverged, or {next(model.parameters()).dtype} is too narrow for it."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while, and each of its parts back into its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
