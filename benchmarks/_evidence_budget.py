"""Arms that draw clips of other sizes see as many a step as vanilla, and learn at the same rate."""

from statistics import fmean

from flexvideo.data.sampler import clip_tokens
from flexvideo.geometry import Base
from flexvideo.policy import Policy

_DRAWS = 2000


def mean_clips(policy: Policy, base: Base, *, tokens: int) -> float:
    """Clips of a step on average, where each holds what a budget of tokens allows."""
    drawn = (policy.sample(base, seed=0, epoch=0, step=step) for step in range(_DRAWS))
    return fmean(tokens // clip_tokens(policy, base, spec) for spec in drawn)


def budget(policy: Policy, base: Base, *, tokens: int, clips: int) -> int:
    """The part of a budget with so many clips a step on average; never less than the largest clip."""
    largest = max(clip_tokens(policy, base, spec) for spec in policy.specs(base))
    return min(tokens, max(largest, round(tokens * clips / mean_clips(policy, base, tokens=tokens))))
