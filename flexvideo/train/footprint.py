"""Memory that a step takes at least, known before it is taken."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flexvideo.active import flex_within
from flexvideo.data.sampler import clip_tokens
from flexvideo.geometry import Base, ClipSpec
from flexvideo.policy import Policy
from flexvideo.swap import make_flexible
from flexvideo.train.config import TrainConfig

_CLIPS = 2  # of a forward that is counted
_PIXEL = 3 * 4  # bytes of a pixel of a clip: three colours of 32 bits


def step_memory(
    model: nn.Module, policy: Policy, base: Base, *, config: TrainConfig, clips: int, world: int
) -> tuple[int, int]:
    """Count the tokens of the largest batch that a process may get, and the bytes that it takes at least.

    The bytes are those of the clips and of what the forward keeps for the backward, of which a frame's part
    is counted in forwards of two short clips. What else there is comes on top: weights, the optimizer, what a
    layer needs while it runs, clips that are read ahead.

    Args:
        model: on the CPU.
        policy: what its training draws from.
        base: sizes that it was built for.
        config: the recipe.
        clips: of the source.
        world: processes that share a step.

    Example:
        >>> from flexvideo import StaticTokens, VideoMamba, make_flexible
        >>> model = VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4, num_classes=2)
        >>> policy, config = StaticTokens(frames=(4,), sizes=(32,)), TrainConfig(tokens=1000)
        >>> base = Base(frames=4, height=32, width=32, patch=(8, 8))
        >>> tokens, size = step_memory(
        ...     make_flexible(model, policy=policy), policy, base, config=config, clips=99, world=1
        ... )
        >>> tokens, size > tokens * 4 * 16
        (960, True)
    """
    loads = [
        _load(policy, base, spec, config=config, clips=clips, world=world) for spec in policy.specs(base)
    ]
    if flex_within(model) is None:  # so that it takes short clips
        model = make_flexible(deepcopy(model))
    largest = max(loads, key=lambda load: (load.tokens, load.pixels))
    widest = max(loads, key=lambda load: (load.pixels, load.tokens))
    found = (_bytes(model, load, base, bf16=config.bf16) for load in dict.fromkeys((largest, widest)))
    return largest.tokens, max(found)


class _Load(NamedTuple):
    """The largest batch of a spec."""

    spec: ClipSpec
    clips: int
    tokens: int
    pixels: int


def _load(
    policy: Policy, base: Base, spec: ClipSpec, *, config: TrainConfig, clips: int, world: int
) -> _Load:
    tokens = clip_tokens(policy, base, spec)
    count = _most_clips(tokens, config=config, clips=clips, world=world)
    return _Load(spec, count, count * tokens, count * spec.frames * spec.height * spec.width)


def _bytes(model: nn.Module, load: _Load, base: Base, *, bf16: bool) -> int:
    """By what a third frame adds: of one clip, or one frame, some layers keep less than their part."""
    short = (replace(load.spec, frames=frames * base.tubelet) for frames in (2, 3))
    two, three = (_kept(model, spec, bf16=bf16) for spec in short)
    frames = load.clips * load.spec.frames // base.tubelet
    return frames * (three - two) // _CLIPS + load.pixels * _PIXEL


def _most_clips(each: int, *, config: TrainConfig, clips: int, world: int) -> int:
    """Clips of so many tokens in a batch of one process, as the sampler counts them."""
    limits = [config.tokens // config.specs // each]
    if config.clips is not None:
        limits.append(config.clips // config.specs)
    if config.steps is None:  # no clip comes twice
        limits.append(clips * config.augment.repeats)
    return min(limits) // (world * config.accumulate)


def _kept(model: nn.Module, spec: ClipSpec, *, bf16: bool) -> int:
    """Bytes that a forward keeps for its backward, the clips themselves not counted."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(_CLIPS, 3, spec.frames, spec.height, spec.width)
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with torch.random.fork_rng(devices=[]), autocast:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            scores = model(x, patch=spec.patch)
        storages.pop(x.untyped_storage().data_ptr(), None)
        del scores  # until here it kept all of them alive, so that no two had one address
    return sum(storages.values())
