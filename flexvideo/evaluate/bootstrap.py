"""An average over queries and how far it may be off: the bootstrap over queries."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from flexvideo.errors import ConfigError

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 1 << 22  # draws held at a time


@dataclass(frozen=True)
class Estimate:
    """A measured value with its confidence interval.

    Args:
        value: over the queries as they are.
        low: lower end of the interval.
        high: upper end.

    Example:
        >>> print(Estimate(0.917, 0.908, 0.926))
        91.7 % [90.8, 92.6]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def estimate(
    values: Float[Tensor, " n"],
    *,
    labels: Int[Tensor, " n"] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Average values over queries, with the percentile interval of the bootstrap over queries.

    The same number of queries and seed draw the same resamples, so the interval of a paired difference is
    that of the differences: `estimate(values - others)`. With labels the average is that of the averages of
    the classes: of hits, the balanced accuracy.

    Args:
        values: one for each query.
        labels: classes of the queries.
        resamples: how often to draw n queries out of the n, with replacement.
        level: how often the interval is to hold, between 0 and 1.
        seed: of the draws.

    Raises:
        ConfigError: no values, no resamples, or a level outside 0 to 1.

    Example:
        >>> estimate(torch.tensor([1.0, 1.0, 1.0, 0.0])).value
        0.75
        >>> estimate(torch.tensor([1.0, 1.0, 1.0, 0.0]), labels=torch.tensor([0, 0, 0, 1])).value
        0.5

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if not len(values) or resamples < 1 or not 0 < level < 1:
        raise ConfigError(
            "An interval needs at least 1 value, 1 resample and a level between 0 and 1; "
            f"got {len(values)}, {resamples} and {level}."
        )
    values = values.double().cpu()
    groups = torch.zeros(len(values), dtype=torch.long) if labels is None else labels.cpu()
    member = F.one_hot(groups.unique(return_inverse=True)[1]).double()
    once = _averages(torch.ones(1, len(values), dtype=torch.float64), values, member)
    drawn = torch.cat([_averages(counts, values, member) for counts in _draws(len(values), resamples, seed)])
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.quantile(tails).tolist()
    return Estimate(once.item(), low, high)


def _draws(n: int, resamples: int, seed: int) -> Iterator[Float[Tensor, "r n"]]:
    """How often each query is in each resample, some resamples at a time."""
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        drawn = torch.randint(n, (min(step, resamples - start), n), generator=generator)
        ones = torch.ones((), dtype=torch.float64).expand(drawn.shape)
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _averages(
    counts: Float[Tensor, "r n"], values: Float[Tensor, " n"], member: Float[Tensor, "n c"]
) -> Float[Tensor, " r"]:
    """Average of the averages of those classes that a resample holds."""
    held = counts @ member
    sums = counts @ (member * values[:, None])
    return (sums / held.clamp(min=1)).sum(1) / (held > 0).sum(1)
