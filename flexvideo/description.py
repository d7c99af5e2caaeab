"""What a checkpoint is, in words: read off its shapes and its config without running it."""

from dataclasses import dataclass
from typing import Any

from flexvideo.geometry import Base
from flexvideo.layout import Layout
from flexvideo.modelconfig import ModelConfig
from flexvideo.statedict import Interpretation, some


@dataclass(frozen=True)
class Description:
    """What a checkpoint is: everything that its shapes and its config tell.

    Args:
        source: path, or repository, commit and file.
        variant: "tiny", "small", "middle", "base" or "custom".
        parameters: how many.
        depth: layers.
        width: of a token.
        base: frames, frame size, patch and tubelet that the weights were made for.
        channels: colour channels.
        classes: rows of the head; 0 without one.
        dtype: of the weights.
        policy: configuration of the policy recorded with the weights; None for a plain model.
        rule: configuration of the rule recorded with the weights; None for a plain model.
        labels: class names in the order of the head's rows; None when unknown.
        mean: of the colour channels of training frames in [0, 1].
        std: of the colour channels of training frames.
        license: identifier of the weights' licence; None when unknown.
        flexes: what `flexvideo.make_flexible` resamples.
        notes: what is translated, left out or made up when it is loaded, and known defects.
    """

    source: str
    variant: str
    parameters: int
    depth: int
    width: int
    base: Base
    channels: int
    classes: int
    dtype: str
    policy: dict[str, Any] | None
    rule: dict[str, Any] | None
    labels: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str | None
    flexes: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        base = self.base
        labels = "" if self.labels is None else f": {some(self.labels)}"
        colours = "; ".join(", ".join(map(str, values)) for values in (self.mean, self.std))
        tubelet = f", {base.tubelet} frames deep" if base.tubelet > 1 else ""
        rows = [
            ("model", f"VideoMamba {self.variant}, {self.depth} layers of width {self.width}"),
            ("parameters", f"{self.parameters:,} ({self.dtype})"),
            ("made for", f"{base.frames} frames of {base.height} x {base.width} pixels"),
            ("patch", f"{base.patch[0]} x {base.patch[1]} pixels{tubelet}"),
            ("classes", f"{self.classes}{labels}" if self.classes else "none: returns features"),
            ("mean; std", colours),
            ("can flex", "; ".join(self.flexes)),
            ("policy", _in_words(self.policy, "none recorded: a plain model")),
            ("rule", _in_words(self.rule, "none recorded: auto, once it is made flexible")),
            ("licence", self.license or "none recorded"),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join([self.source, *(f"  {title:<11}{text}" for title, text in rows)])


def description(found: Interpretation, config: ModelConfig, *, name: str, remark: str = "") -> Description:
    """Put together what is known of a checkpoint.

    Args:
        found: its tensors.
        config: what was recorded beside them.
        name: how to call it.
        remark: a known defect; empty for none.
    """
    layout = found.layout
    return Description(
        source=name,
        variant=layout.variant,
        parameters=sum(value.numel() for value in found.state.values()),
        depth=layout.depth,
        width=layout.embed_dim,
        base=layout.base,
        channels=layout.channels,
        classes=layout.num_classes,
        dtype=some(sorted({str(value.dtype).removeprefix("torch.") for value in found.state.values()})),
        policy=config.policy,
        rule=config.rule,
        labels=config.labels,
        mean=config.mean,
        std=config.std,
        license=config.license,
        flexes=_flexes(layout),
        notes=(*found.translated, *found.lost, *((remark,) if remark else ())),
    )


def _flexes(layout: Layout) -> tuple[str, ...]:
    base = layout.base
    return (
        f"patch kernel {base.patch[0]} x {base.patch[1]}",
        f"spatial table {base.grid[0]} x {base.grid[1]}",
        f"temporal table {base.steps}",
    )


def _in_words(config: dict[str, Any] | None, otherwise: str) -> str:
    if config is None:
        return otherwise
    return ", ".join(f"{key} {value}" for key, value in config.items())
