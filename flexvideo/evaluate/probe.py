"""A linear probe: settings chosen on a part of the train split, then a head trained on all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from flexvideo.errors import ConfigError
from flexvideo.evaluate.heads import Head, Scale, hold_out, scale_of, solve_heads, train_heads
from flexvideo.evaluate.metrics import topk_hits

Method = Literal["adamw", "lbfgs"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a probe is trained and chosen.

    Args:
        method: "adamw", all heads of the grid at once; "lbfgs", logistic regression solved to its optimum.
        rates: learning rates of the grid of AdamW.
        decays: weight decays of the grid of AdamW.
        epochs: of AdamW.
        batch: clips a step of AdamW.
        strengths: values of C for L-BFGS, as in scikit-learn.
        batch_norm: scale every feature by itself, as MAE's BatchNorm without weights does.
        held_out: part of the clips of each class on which to choose.
        seed: of the hold-out and the order of the clips.

    Raises:
        ConfigError: an unknown method, an empty grid, or a number that cannot be.
    """

    method: Method = "adamw"
    rates: Sequence[float] = (1e-3, 1e-2, 1e-1)
    decays: Sequence[float] = (1e-4, 1e-2, 1.0)
    epochs: int = 20
    batch: int = 256
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    batch_norm: bool = True
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rates", "decays", "strengths"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        if self.method not in get_args(Method):
            raise ConfigError(f"Unknown method {self.method!r}; known: {', '.join(get_args(Method))}.")
        if not (self.rates and self.decays and self.strengths and min(*self.rates, *self.strengths) > 0):
            raise ConfigError("`rates`, `decays` and `strengths` need at least one number each, above 0.")
        if min(self.decays) < 0:
            raise ConfigError(f"`decays` must not be below 0, got {min(self.decays)}.")
        if min(self.epochs, self.batch) < 1 or not 0 < self.held_out < 1:
            raise ConfigError(
                "`epochs` and `batch` must be at least 1 and `held_out` between 0 and 1; "
                f"got {self.epochs}, {self.batch} and {self.held_out}."
            )

    @property
    def settings(self) -> tuple[dict[str, float], ...]:
        """The grid that is chosen from."""
        if self.method == "lbfgs":
            return tuple({"C": strength} for strength in self.strengths)
        return tuple({"lr": rate, "weight_decay": decay} for rate in self.rates for decay in self.decays)


@dataclass(frozen=True)
class Fitted:
    """A trained probe.

    Args:
        head: of scaled features.
        scale: how features are scaled.
        chosen: the setting, and the accuracy of every setting on what was held out.
    """

    head: Head
    scale: Scale
    chosen: dict[str, Any]

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Score every class of every row of features."""
        return self.head.scores(self.scale(x).to(self.head.weight.dtype))


def fit_probe(
    x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, classes: int, probe: Probe | None = None
) -> Fitted:
    """Choose a setting on held-out rows and train with it on all rows.

    The best accuracy wins, then the lowest cross-entropy.

    Args:
        x: features of the train split; there is no way to pass others.
        labels: their classes.
        classes: how many there are.
        probe: method and settings; the default ones when None.

    Raises:
        ConfigError: nothing can be held out to choose on.

    Example:
        >>> import torch
        >>> x, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> fit_probe(x, labels, classes=4).scores(torch.eye(4)).argmax(1)
        tensor([0, 1, 2, 3])
    """
    probe = probe or Probe()
    settings, accuracies = list(probe.settings), None
    if len(settings) > 1:
        out = hold_out(labels, part=probe.held_out, seed=probe.seed)
        scale = scale_of(x[~out], batch_norm=probe.batch_norm)
        heads = _fit(scale(x[~out]), labels[~out], classes, probe, settings)
        accuracies, best = _judge(heads, scale(x[out]), labels[out])
        settings = [settings[best]]
    scale = scale_of(x, batch_norm=probe.batch_norm)
    (head,) = _fit(scale(x), labels, classes, probe, settings)
    return Fitted(head, scale, {**settings[0], "held_out_top1": accuracies})


def _fit(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    classes: int,
    probe: Probe,
    settings: Sequence[dict[str, float]],
) -> list[Head]:
    if probe.method == "lbfgs":
        return solve_heads(x, labels, classes=classes, strengths=[setting["C"] for setting in settings])
    pairs = [(setting["lr"], setting["weight_decay"]) for setting in settings]
    return train_heads(
        x,
        labels,
        classes=classes,
        settings=pairs,
        epochs=probe.epochs,
        batch=probe.batch,
        seed=probe.seed,
    )


def _judge(
    heads: Sequence[Head], x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
) -> tuple[list[float], int]:
    """Accuracy of every head on rows it has not seen, and the number of the best."""
    scores = [head.scores(x.to(head.weight.dtype)) for head in heads]
    accuracies = [topk_hits(each, labels).double().mean().item() for each in scores]
    losses = [F.cross_entropy(each, labels).item() for each in scores]
    best = min(range(len(heads)), key=lambda number: (-accuracies[number], losses[number]))
    return accuracies, best
