"""What features are good for: retrieval, neighbours, a linear probe, and the accuracy of a classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import flexvideo
from flexvideo.data.records import Problem
from flexvideo.errors import ConfigError, DatasetError
from flexvideo.evaluate.bootstrap import LEVEL, RESAMPLES, Estimate, estimate
from flexvideo.evaluate.extraction import Features
from flexvideo.evaluate.grid import Cell
from flexvideo.evaluate.metrics import TOP, knn_scores, retrieval_values, topk_hits
from flexvideo.evaluate.probe import Probe, fit_probe
from flexvideo.evaluate.results import CellResult, Result

_FRAMES = "resized once, antialiased bicubic, from the video's own size; drawn clips at the size of the cell"
_AVERAGED = "features as they are, class probabilities after the softmax"


def retrieval(
    queries: Features,
    gallery: Features,
    *,
    name: str = "",
    top: Sequence[int] = TOP,
    at: Cell | None = None,
) -> Result:
    """Retrieve clips of the same class by cosine, at every cell: top-1, R@k and mAP.

    Args:
        queries: of the test split.
        gallery: of the train split, at the same cells.
        name: what tables call the model; the file it was loaded from and its policy when empty.
        top: the k of R@k besides 1; a query counts if any of the first k shares its class.
        at: one cell of the gallery for the queries of every cell; each its own when None.

    Raises:
        ConfigError: the two come from different weights or protocols, or a cell is missing.
        DatasetError: their classes differ, or a class of the queries is not in the gallery.

    Source: StretchySnake, section 5.2; R@k as in VCOP.
    """
    _check_pair(queries, gallery, at)
    found = []
    for cell, features in queries.values.items():
        values = retrieval_values(
            features, queries.labels, gallery.values[at or cell], gallery.labels, top=sorted({1, *top})
        )
        hits = values.pop("R@1") > 0
        values["mAP"] = values.pop("AP")
        found.append(_cell(queries, cell, hits, {metric: estimate(each) for metric, each in values.items()}))
    how = {
        "similarity": "cosine",
        "gallery": _place(at),
        "top": list(top),
    }
    return _result("retrieval", name, queries, gallery, found, how)


def knn(
    queries: Features,
    gallery: Features,
    *,
    name: str = "",
    k: int = 20,
    temperature: float = 0.07,
    at: Cell | None = None,
) -> Result:
    """Classify clips by their k nearest neighbours, at every cell.

    Args:
        queries: of the test split.
        gallery: of the train split, at the same cells.
        name: as for `retrieval`.
        k: neighbours that vote.
        temperature: of their votes, exp(cosine / temperature).
        at: as for `retrieval`.

    Raises:
        ConfigError: as for `retrieval`.
        DatasetError: as for `retrieval`.

    Source: DINO (arXiv 2104.14294), appendix F.1.
    """
    _check_pair(queries, gallery, at)
    found = []
    for cell, features in queries.values.items():
        scores = knn_scores(
            features,
            gallery.values[at or cell],
            gallery.labels,
            classes=len(gallery.classes),
            k=k,
            temperature=temperature,
        )
        found.append(_scored(queries, cell, scores))
    how = {"similarity": "cosine", "gallery": _place(at), "k": k, "temperature": temperature}
    return _result("knn", name, queries, gallery, found, how)


def linear_probe(train: Features, test: Features, *, name: str = "", probe: Probe | None = None) -> Result:
    """Train a linear classifier of frozen features at every cell, and try it on the test split.

    Its settings are chosen on a part of the train split that is held out; then it is trained on all of it.

    Args:
        train: of the train split.
        test: of the test split, at the same cells.
        name: as for `retrieval`.
        probe: method and settings; AdamW over a grid of learning rates and weight decays when None.

    Raises:
        ConfigError: as for `retrieval`.
        DatasetError: as for `retrieval`.

    Source: StretchySnake, section 5.3 (16 frames of 224 px); head grid as in DINOv2 (arXiv 2304.07193).
    """
    _check_pair(test, train, None)
    probe = probe or Probe()
    found = []
    for cell, features in test.values.items():
        fitted = fit_probe(train.values[cell], train.labels, classes=len(train.classes), probe=probe)
        found.append(_scored(test, cell, fitted.scores(features), chosen=fitted.chosen))
    return _result(
        "probe",
        name,
        test,
        train,
        found,
        {"probe": {key: _plain(value) for key, value in asdict(probe).items()}},
    )


def accuracy(
    scores: Features, *, name: str = "", labels: Sequence[str] | None = None, finetuned: bool = False
) -> Result:
    """Measure a classifier by its own head, at every cell.

    Args:
        scores: class probabilities: `extract(..., output="scores")`.
        name: as for `retrieval`.
        labels: what the classifier calls its classes, to bring them into the order of the data set's; None
            where it has that order.
        finetuned: whether the model was fine-tuned on the data set, which is another column of a table.

    Raises:
        ConfigError: these are not class probabilities.
        DatasetError: the classifier has other classes than the data set.
    """
    if scores.output != "scores":
        raise ConfigError(f'A classifier is measured by its "scores"; these are {scores.output!r} features.')
    found = []
    for cell, values in scores.values.items():
        order = require_classes(values.shape[1], scores.source.data, scores.classes, labels=labels)
        found.append(_scored(scores, cell, values[:, order]))
    return _result("finetune" if finetuned else "accuracy", name, scores, None, found, {})


def _place(at: Cell | None) -> str:
    return "the queries' own cell" if at is None else str(at)


def require_classes(
    outputs: int, data: str, classes: Sequence[str], *, labels: Sequence[str] | None = None
) -> list[int]:
    """Refuse a classifier that cannot be of a data set, before the work of finding out.

    Args:
        outputs: of its head; 0 where it has none.
        data: name of the data set.
        classes: of the data set.
        labels: what the classifier calls its classes; None where it does not tell.

    Returns:
        For each class of the data set the number of the classifier's output.

    Raises:
        DatasetError: it has no head, or one for other classes; letters alone count, in either case.

    Example:
        >>> require_classes(2, "toys", ["jump", "take_off"], labels=["Take off", "Jump"])
        [1, 0]
    """
    remedy = f"give one that was trained on {data}, or use `probe` or `retrieve`, which need no head."
    if outputs != len(classes):
        found = f"a head for {outputs} classes" if outputs else "no classification head"
        raise DatasetError(f"The checkpoint has {found}, and {data} has {len(classes)} classes: {remedy}")
    if labels is None:
        return list(range(outputs))
    spelt = str if set(labels) == set(classes) else _letters
    place = {spelt(label): number for number, label in enumerate(labels)}
    strange = [name for name in classes if spelt(name) not in place]
    if strange:
        raise DatasetError(
            f"The checkpoint knows no class {strange[0]!r} of {data}, but {labels[0]!r} and others: {remedy}"
        )
    return [place[spelt(name)] for name in classes]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _check_pair(queries: Features, gallery: Features, at: Cell | None) -> None:
    for what in ("model", "views", "output"):
        one, other = getattr(queries, what), getattr(gallery, what)
        if one != other:
            raise ConfigError(
                f"Queries and gallery differ in their {what}, so their features cannot be compared: {one} "
                f"and {other}. Extract both alike."
            )
    if queries.source.digest == gallery.source.digest:
        raise ConfigError(
            f"Queries and gallery are the same clips, {queries.source.data} {queries.source.split}, so that "
            "each would find itself: take them from two splits."
        )
    missing = [cell for cell in ((at,) if at else queries.values) if cell not in gallery.values]
    if missing:
        raise ConfigError(
            f"The gallery has no features at {missing[0]}; it has {', '.join(map(str, gallery.values))}."
        )
    if queries.classes != gallery.classes:
        raise DatasetError(
            f"{queries.source.data} {queries.source.split} and {gallery.source.split} do not have the same "
            "classes in the same order: open both with the same list of classes."
        )
    unknown = queries.labels[~torch.isin(queries.labels, gallery.labels)]
    if len(unknown):
        raise DatasetError(
            f"Class {queries.classes[int(unknown[0])]!r} of {queries.source.data} {queries.source.split} has "
            f"no readable video in {gallery.source.split}, so it can be neither found nor learnt: add videos "
            "of it, or take it out of both."
        )


def _scored(
    queries: Features, cell: Cell, scores: Float[Tensor, "n c"], chosen: Mapping[str, Any] | None = None
) -> CellResult:
    top5 = topk_hits(scores, queries.labels, k=5).double()
    return _cell(queries, cell, topk_hits(scores, queries.labels), {"top5": estimate(top5)}, chosen)


def _cell(
    queries: Features,
    cell: Cell,
    hits: Bool[Tensor, " n"],
    others: dict[str, Estimate],
    chosen: Mapping[str, Any] | None = None,
) -> CellResult:
    values = hits.double()
    first = {"top1": estimate(values), "balanced": estimate(values, labels=queries.labels)}
    text = "".join("1" if hit else "0" for hit in hits.tolist())
    return CellResult(cell, queries.costs[cell], first | others, text, dict(chosen or {}))


def _result(
    task: str,
    name: str,
    queries: Features,
    gallery: Features | None,
    found: list[CellResult],
    how: Mapping[str, Any],
) -> Result:
    policy = (queries.model.policy or {}).get("name", "plain")
    skipped: list[Problem] = [*queries.skipped, *(gallery.skipped if gallery else ())]
    return Result(
        task=task,
        name=name or f"{_stem(queries.model.source)} {policy}",
        model=queries.model,
        queries=queries.source,
        gallery=gallery.source if gallery else None,
        protocol={
            "output": queries.output,
            "frames": _FRAMES,
            "views": asdict(queries.views) | {"averaged": _AVERAGED},
            "interval": {"bootstrap over": "queries", "resamples": RESAMPLES, "level": LEVEL, "seed": 0},
            **how,
        },
        cells=tuple(found),
        labels=tuple(queries.labels.tolist()),
        skipped=tuple(map(str, skipped)),
        version=flexvideo.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def _stem(source: str) -> str:
    """What tells a checkpoint from others: of `runs/a/model.safetensors`, as every run has one, "a"."""
    path = PurePath(source)
    return (path.stem == "model" and path.parent.name) or path.stem
