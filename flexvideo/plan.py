"""What will be made flexible, as plain data: found or named first, checked whole, applied afterwards."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, get_args

from flexvideo.errors import PlanError, brief
from flexvideo.geometry import Base, Geometry
from flexvideo.listing import alike, columns, shortened, times, together
from flexvideo.parts import Axes, ClassRow, State, Table, one_of, tuple_of
from flexvideo.policy import POLICIES
from flexvideo.resample import RULES, Rule

__all__ = ["Axes", "ClassRow", "Layout", "LinearOrder", "Plan", "State", "Table"]

Layout = Literal["bcthw", "btchw", "bchw"]
LinearOrder = Literal["chw", "hwc"]
_PARTS = {
    "patch_embeds": str,
    "tables": Table,
    "state": State,
    "entries": str,
    "fixed": str,
    "baked": State,
    "rejected": str,
    "unknown": str,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a model keeps what has to flex, and from which sizes; all names are paths from the model.

    Args:
        base: sizes that the parameters were built for.
        patch_embeds: patch embeddings: Conv3d, Conv2d or Linear modules; none where the patch cannot change.
        tables: tensors of positions.
        state: other attributes that must follow the geometry.
        entries: methods that take the clip as their first argument.
        layout: dimensions of that clip: batch, channels, time, height, width.
        channels: channels of a clip; those of the patch embedding when None.
        linear_order: order in which a Linear patch embedding flattens a patch, time before height.
        fixed: attributes that hold a size of the base and rightly keep it at every geometry.
        baked: attributes that say what a model was built for, which a baked one must say anew, and no forward
            reads; their values may change what they are given, of a copy.
        rule: how everything is resampled.
        family: the kind of model that was recognised.
        rejected: tensors and modules that were looked at and left alone, with the reason.
        unknown: attributes that hold a size of the base, and nothing says whether they must follow.

    Fields that hold several things take lists as well as tuples, and keep tuples; `rule` takes a name too.

    Raises:
        PlanError: a value of the wrong kind, or a name that stands in the plan twice.
        ConfigError: an unknown rule.

    Example:
        >>> plan = Plan(
        ...     base=Base(frames=8, height=224, width=224, patch=(16, 16)),
        ...     patch_embeds=("stem",),
        ...     tables=(Table("positions", axes="space", class_rows=("first",)),),
        ... )
        >>> print(plan)
        named by hand: 8 frames of 224 x 224 px, patch 16 x 16, grid 14 x 14, 8 steps; clips are bcthw
        flexible in: forward
        part         from                         resampled by
        stem.weight  16 x 16                      auto (patch kernel)
        positions    14 x 14 + class token first  bicubic-aa
    """

    base: Base
    patch_embeds: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    state: tuple[State, ...] = ()
    entries: tuple[str, ...] = ("forward",)
    layout: Layout = "bcthw"
    channels: int | None = None
    linear_order: LinearOrder = "chw"
    fixed: tuple[str, ...] = ()
    baked: tuple[State, ...] = ()
    rule: Rule = RULES["auto"]
    family: str = "named by hand"
    rejected: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.base, Base):
            raise PlanError(f"`base` of a plan must be a Base, got {brief(self.base)}.")
        for name, kind in _PARTS.items():
            object.__setattr__(self, name, tuple_of(getattr(self, name), kind, name))
        one_of(self.layout, get_args(Layout), "layout")
        one_of(self.linear_order, get_args(LinearOrder), "linear_order")
        if self.channels is not None and (type(self.channels) is not int or self.channels < 1):
            raise PlanError(
                f"`channels` must be a positive whole number or None, got {brief(self.channels)}."
            )
        object.__setattr__(self, "rule", Rule.of(self.rule))
        named = (*self.patch_embeds, *(part.name for part in (*self.tables, *self.state)), *self.fixed)
        twice = [name for name, count in Counter(named).items() if count > 1]
        if twice:
            raise PlanError(
                f"The plan names {', '.join(map(repr, shortened(twice)))} more than once: a name is that of "
                "one patch embedding, Table or State, or `fixed`."
            )

    def kernel(self, at: Base | Geometry) -> tuple[int, int]:
        """Height and width of the kernel of the patch embeddings: a window as the stem leaves it."""
        return at.window[0] // self.base.stem, at.window[1] // self.base.stem

    def stride(self, at: Base | Geometry) -> tuple[int, int]:
        """Height and width of the stride of the patch embeddings: a patch as the stem leaves it."""
        return at.patch[0] // self.base.stem, at.patch[1] // self.base.stem

    def within(self, path: str) -> "Plan":
        """Return the plan for a model that holds this one's at a dotted path."""
        if not path:
            return self
        return replace(
            self,
            patch_embeds=tuple(f"{path}.{name}" for name in self.patch_embeds),
            tables=tuple(replace(table, name=f"{path}.{table.name}") for table in self.tables),
            state=tuple(replace(state, name=f"{path}.{state.name}") for state in self.state),
            entries=tuple(f"{path}.{name}" for name in self.entries),
            fixed=tuple(f"{path}.{name}" for name in self.fixed),
            baked=tuple(replace(state, name=f"{path}.{state.name}") for state in self.baked),
        )

    @property
    def settled(self) -> frozenset[str]:
        """Names of which the plan says what becomes of them."""
        return frozenset((*(part.name for part in (*self.tables, *self.state)), *self.fixed))

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies that find something to change in the model."""
        return tuple(
            name
            for name, policy in POLICIES.items()
            if (self.patch_embeds or not policy.changes_patch) and ("t" in self.layout or name != "temporal")
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that are resampled, which training may want to treat apart."""
        return (*(f"{name}.weight" for name in self.patch_embeds), *(table.name for table in self.tables))

    def __str__(self) -> str:
        base, steps = self.base, "" if self.base.steps is None else f", {self.base.steps} steps"
        frames = "frames" if base.frames is None else f"{base.frames} frames"
        overlapping = "" if base.overlap == 1 else f" in windows of {times(base.window)}"
        lines = [
            f"{self.family}: {frames} of {base.height} x {base.width} px, patch {times(base.patch)}"
            f"{overlapping}, grid {times(base.grid)}{steps}; clips are {self.layout}"
        ]
        lines.append("flexible in: " + ", ".join(shortened(alike(self.entries))))
        lines += columns([("part", "from", "resampled by"), *self._resampled()])
        if self.state:
            lines.append("follows the geometry: " + ", ".join(alike(state.name for state in self.state)))
        if not self.patch_embeds:
            lines.append(f"the patch cannot change: policies that apply are {', '.join(self.policies)}")
        open_ = [line for line in self.unknown if not self._settles(line.partition(" ")[0])]
        lines += [f"left alone: {line}" for line in shortened(together(self.rejected, ": "))]
        lines += [f"to be settled: {line}" for line in together(open_, " ")]
        return "\n".join(lines)

    def _settles(self, name: str) -> bool:
        """Whether the plan says what becomes of an attribute, or of the object that holds it."""
        return not self.settled.isdisjoint((name, name.rpartition(".")[0]))

    def _resampled(self) -> list[tuple[str, str, str]]:
        """One line of the printed table for each tensor that is resampled."""
        kernel, size = f"{self.rule.kernel} (patch kernel)", times(self.kernel(self.base))
        rows = [(f"{name}.weight", size, kernel) for name in self.patch_embeds]
        for table in self.tables:
            at = [(table.class_rows.count(row), row) for row in dict.fromkeys(table.class_rows)]
            extra = (f"{f'{count} class tokens' if count > 1 else 'class token'} {row}" for count, row in at)
            tokens = " + ".join((times(table.size(self.base)), *extra))
            rows.append((table.name, tokens, ", ".join(dict.fromkeys(table.kinds(self.rule)))))
        return rows
