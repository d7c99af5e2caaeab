"""Linear classifiers of frozen features: many at once by AdamW, or to the optimum by L-BFGS; pure maths."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flexvideo.errors import ConfigError

_EPSILON = 1e-6  # of MAE's BatchNorm


class Head(NamedTuple):
    """A linear classifier."""

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Score every class of every row."""
        return F.linear(x, self.weight, self.bias)


class Scale(NamedTuple):
    """Each feature minus a mean and by a spread: BatchNorm without weights, over all of the training set."""

    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Scale features."""
        return (x - self.mean) / self.spread


def scale_of(x: Float[Tensor, "n d"], *, batch_norm: bool) -> Scale:
    """Learn how to scale features.

    Args:
        x: those that are learnt from.
        batch_norm: each feature by itself; otherwise all alike, to an average length of sqrt(d), for learning
            rates mean nothing where lengths are arbitrary.

    Source: BatchNorm as in MAE (arXiv 2111.06377), appendix A.
    """
    if batch_norm:
        return Scale(x.mean(0), (x.var(0, correction=0) + _EPSILON).sqrt())
    length = x.square().mean().sqrt().clamp(min=_EPSILON)
    return Scale(torch.zeros_like(x[0]), length.expand(x.shape[1]))


def hold_out(labels: Int[Tensor, " n"], *, part: float, seed: int) -> Bool[Tensor, " n"]:
    """Pick the rows on which to choose: of each class so many, and never the last one.

    Args:
        labels: classes of the rows.
        part: of every class, between 0 and 1.
        seed: of the draw.

    Raises:
        ConfigError: no class has two rows.

    Example:
        >>> hold_out(torch.tensor([0, 0, 0, 0, 1]), part=0.25, seed=0).sum()
        tensor(1)
    """
    picked = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(len(rows) * part)), len(rows) - 1)
        picked[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    if not picked.any():
        raise ConfigError(
            "Nothing can be held out to choose on: every class has a single clip. Give more clips, or a "
            "single setting."
        )
    return picked


def train_heads(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    classes: int,
    settings: Sequence[tuple[float, float]],
    epochs: int,
    batch: int,
    seed: int,
) -> list[Head]:
    """Train a head for each setting on the same batches, by AdamW and cosine decay, from zero.

    Args:
        x: scaled features.
        labels: their classes.
        classes: how many there are.
        settings: learning rate and weight decay of each head.
        epochs: passes over the rows.
        batch: rows a step; the last of an epoch has what is left.
        seed: of the order of the rows.
    """
    heads = [(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)) for _ in settings]
    for tensors in heads:
        for tensor in tensors:
            tensor.requires_grad_()
    groups = [
        group
        for (weight, bias), (rate, decay) in zip(heads, settings, strict=True)
        for group in (
            {"params": [weight], "lr": rate, "weight_decay": decay},
            {"params": [bias], "lr": rate, "weight_decay": 0.0},
        )
    ]
    optimizer = torch.optim.AdamW(groups, foreach=True)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            weight, bias = (torch.cat(tensors) for tensors in zip(*heads, strict=True))
            scores = F.linear(x[rows], weight, bias).unflatten(1, (len(heads), classes))
            loss = F.cross_entropy(
                scores.transpose(1, 2), labels[rows, None].expand(-1, len(heads)), reduction="sum"
            )
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            optimizer.step()
            schedule.step()
    return [Head(weight.detach(), bias.detach()) for weight, bias in heads]


def solve_heads(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    classes: int,
    strengths: Sequence[float],
    iterations: int = 300,
) -> list[Head]:
    """Solve multinomial logistic regression for several strengths C by L-BFGS, each from the one before.

    Minimises the mean cross-entropy plus |W|^2 / (2 C n), as scikit-learn's `LogisticRegression(C=C)` does.

    Args:
        x: scaled features.
        labels: their classes.
        classes: how many there are.
        strengths: values of C, above 0; the smaller, the smaller the weights.
        iterations: at most, for each.
    """
    found: dict[float, Head] = {}
    x = x.double()
    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    for strength in sorted(strengths):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=iterations,
            tolerance_grad=1e-7,
            tolerance_change=1e-11,
            line_search_fn="strong_wolfe",
        )

        def loss(weight: Tensor = weight, bias: Tensor = bias, strength: float = strength) -> float:
            weight.grad = bias.grad = None
            fit = F.cross_entropy(F.linear(x, weight, bias), labels)
            value = fit + weight.square().sum() / (2 * strength * len(x))
            value.backward()
            return value.item()

        optimizer.step(loss)
        weight, bias = weight.detach(), bias.detach()
        found[strength] = Head(weight, bias)
    return [found[strength] for strength in strengths]
