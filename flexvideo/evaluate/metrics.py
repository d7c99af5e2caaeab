"""What is measured, one number a query; averages and their uncertainty are the business of `bootstrap`.

Everything is in float64, and every query counts. Ties go to the lower number, of a class or of a row of the
gallery; cosines that are equal to 12 digits tie, for the last ones depend on the machine. Similarities are
worked out for a chunk of queries at a time, so that 20,000 queries by 20,000 rows fit into a gigabyte.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flexvideo.errors import ConfigError

TOP = (1, 5, 10, 20)
_CHUNK = 1 << 24  # similarities worked out at a time
_DIGITS = 12  # of a cosine: what follows depends on how the product of matrices is split up


def topk_hits(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, k: int = 1) -> Bool[Tensor, " n"]:
    """Tell of each row whether its class is among the k with the highest scores.

    Args:
        scores: of every class.
        labels: numbers of the classes.
        k: at least 1.

    Example:
        >>> topk_hits(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]), torch.tensor([2, 0]), k=2)
        tensor([True, True])
    """
    _require_k(k)
    own = scores.gather(1, labels[:, None])
    above = ~(scores <= own)  # a score that is no number is never a hit, nor does it make one of another
    tied_before = (scores == own) & (torch.arange(scores.shape[1], device=scores.device) < labels[:, None])
    return (above | tied_before).sum(1) < k


def balanced_accuracy(hits: Bool[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """Average over the classes that occur the part of each that was hit.

    Args:
        hits: whether each query was right.
        labels: their classes.

    Example:
        >>> balanced_accuracy(torch.tensor([True, True, True, False]), torch.tensor([0, 0, 0, 1]))
        0.5
    """
    _, group, counts = labels.unique(return_inverse=True, return_counts=True)
    right = torch.zeros(len(counts), dtype=torch.float64, device=hits.device)
    return float((right.index_add_(0, group, hits.double()) / counts).mean())


def retrieval_values(
    queries: Float[Tensor, "q d"],
    query_labels: Int[Tensor, " q"],
    gallery: Float[Tensor, "g d"],
    gallery_labels: Int[Tensor, " g"],
    *,
    top: Sequence[int] = TOP,
) -> dict[str, Float[Tensor, " q"]]:
    """Rank a gallery by cosine for every query: hits among the first k, and average precision.

    `R@k` is 1 where any of the first k rows has the query's class, and `AP` the average over all rows of that
    class of the precision at their ranks; both are 0 where the gallery has no such row.

    Args:
        queries: features.
        query_labels: their classes.
        gallery: features to be ranked.
        gallery_labels: their classes.
        top: the k of `R@k`.

    Returns:
        `R@k` for every k, and `AP`; a number from 0 to 1 for each query.

    Example:
        >>> gallery, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 1, 0])
        >>> query = torch.tensor([[0.0, 2.0]])
        >>> values = retrieval_values(query, torch.tensor([1]), gallery, labels, top=(1, 2))
        >>> {name: value.item() for name, value in values.items()}
        {'R@1': 0.0, 'R@2': 1.0, 'AP': 0.5}
    """
    for k in top:
        _require_k(k)
    parts = []
    for rows, similarity in _similarities(queries, gallery):
        order = similarity.sort(dim=1, descending=True, stable=True).indices
        parts.append(_ranked(gallery_labels[order] == query_labels[rows, None], top))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def knn_scores(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "g d"],
    gallery_labels: Int[Tensor, " g"],
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "q c"]:
    """Score classes by the votes of the k rows nearest to a query by cosine.

    A vote is exp((cosine - cosine of the nearest) / temperature).

    Args:
        queries: features.
        gallery: features of the rows that vote; all of them where they are fewer than k.
        gallery_labels: their classes.
        classes: how many there are.
        k: voters.
        temperature: above 0; the lower, the more the nearest count.

    Example:
        >>> gallery, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 1, 0])
        >>> knn_scores(torch.tensor([[0.5, 0.5]]), gallery, labels, classes=2, k=1).argmax().item()
        1

    Raises:
        ConfigError: `k` below 1, or a temperature that is not above 0.

    Source: DINO (arXiv 2104.14294), appendix F.1.
    """
    _require_k(k)
    if temperature <= 0:
        raise ConfigError(f"The temperature of votes must be above 0, got {temperature}.")
    scores = queries.new_zeros(len(queries), classes, dtype=torch.float64)
    for rows, similarity in _similarities(queries, gallery):
        near, order = similarity.sort(dim=1, descending=True, stable=True)
        # By the nearest one's vote, which changes no rank: low temperatures would go beyond all numbers.
        votes = ((near[:, :k] - near[:, :1]) / temperature).exp()
        scores[rows] = scores[rows].scatter_add(1, gallery_labels[order[:, :k]], votes)
    return scores


def _ranked(relevant: Bool[Tensor, "q g"], top: Sequence[int]) -> dict[str, Float[Tensor, " q"]]:
    """Values of queries from which rows, best first, share their class."""
    values = {f"R@{k}": relevant[:, :k].any(1).double() for k in top}
    found = relevant.cumsum(1, dtype=torch.float64)
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = (found / ranks * relevant).sum(1)
    return values | {"AP": precision / found[:, -1].clamp(min=1)}


def _similarities(
    queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"]
) -> Iterator[tuple[slice, Float[Tensor, "r g"]]]:
    queries, gallery = F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=1)
    step = max(1, _CHUNK // len(gallery))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        yield rows, (queries[rows] @ gallery.T).round(decimals=_DIGITS)


def _require_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"There is no top {k}: k must be at least 1.")
