"""What will be made flexible, as plain data: found or named first, checked whole, applied afterwards."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from flexvideo.errors import PlanError
from flexvideo.geometry import Base, Geometry
from flexvideo.policy import POLICIES
from flexvideo.resample import RULES, Rule, resample_table

ClassRow = Literal["first", "middle", "last"]
Axes = Literal["space", "time", "joint"]
Layout = Literal["bcthw", "btchw", "bchw"]


@dataclass(frozen=True)
class Table:
    """A tensor of positions, which follows the geometry by being resampled along its tokens.

    Args:
        name: dotted path of the tensor: a parameter, a buffer or a plain attribute.
        axes: what the tokens run over: "space" (rows, columns), "time", or "joint" (time, rows, columns).
        dim: dimension that holds the tokens; the first of them when `spread`.
        class_rows: where rows of class tokens stand among the others, one entry a row; never resampled.
        spread: whether the axes are dimensions of their own, as in (1, channels, rows, columns).

    Raises:
        PlanError: when a spread table is said to have class-token rows, which it cannot hold.

    Example:
        >>> Table("pos_embed", axes="space", class_rows=("first",)).rows(196)
        197
    """

    name: str
    axes: Axes
    dim: int = 1
    class_rows: tuple[ClassRow, ...] = ()
    spread: bool = False

    def __post_init__(self) -> None:
        if self.spread and self.class_rows:
            raise PlanError(f"Table {self.name!r}: a table with axes of its own holds no class-token rows.")

    def size(self, at: Base | Geometry) -> tuple[int, ...]:
        """Tokens along each axis of the table."""
        steps = () if self.axes == "space" else (at.steps or 0,)
        return steps if self.axes == "time" else (*steps, *at.grid)

    def rows(self, tokens: int) -> int:
        """Rows of the table that holds so many tokens."""
        return tokens + len(self.class_rows)

    def lengths(self, at: Base | Geometry) -> tuple[int, ...]:
        """Lengths of the dimensions of the table from `dim` on that hold its tokens."""
        size = self.size(at)
        return size if self.spread else (self.rows(math.prod(size)),)

    def class_indices(self, tokens: int) -> tuple[int, ...]:
        """Rows at which the class tokens stand among so many others; a middle one precedes token n // 2."""
        first, middle, last = (self.class_rows.count(row) for row in ("first", "middle", "last"))
        before_middle, before_last = first + tokens // 2, first + tokens + middle
        return (
            *range(first),
            *range(before_middle, before_middle + middle),
            *range(before_last, before_last + last),
        )

    def kinds(self, rule: Rule) -> tuple[str, ...]:
        """Names of the 1-D matrices, one an axis: linear in time, bicubic in space."""
        time, space = (rule.temporal_kind,), (rule.spatial_kind,) * 2
        return {"space": space, "time": time, "joint": time + space}[self.axes]

    def follow(self, value: Tensor, *, base: Base, geometry: Geometry, rule: Rule) -> Tensor:
        """Return the table at a geometry: the very same object where its size does not change.

        Args:
            value: the table at the base geometry, of any shape that fits the plan.
            base: sizes that the table was built for.
            geometry: sizes to resample it to.
            rule: decides on antialiasing.
        """
        old, new = self.size(base), self.size(geometry)
        if old == new:
            return value
        axes = len(old)
        tokens = value.flatten(self.dim, self.dim + axes - 1) if self.spread else value
        resampled = resample_table(
            tokens,
            dim=self.dim,
            old=old,
            new=new,
            kinds=self.kinds(rule),
            extra_old=self.class_indices(math.prod(old)),
            extra_new=self.class_indices(math.prod(new)),
        )
        return resampled.unflatten(self.dim, new) if self.spread else resampled


@dataclass(frozen=True)
class State:
    """An attribute of the host that depends on the geometry: a cached size, or what an assert compares with.

    A method may depend on it too: one that computes positions by itself, say, and must not.

    Args:
        name: dotted path of the attribute or method.
        value: what it is at a geometry, from the geometry and what it is at the base (a method is bound); a
            function of a module, so that a flexible model can be pickled.

    Example:
        >>> def frames(geometry, base_value):
        ...     return geometry.frames
        >>> State("blocks.0.num_frames", frames).name
        'blocks.0.num_frames'
    """

    name: str
    value: Callable[[Geometry, Any], Any]

    def follow(self, value: Any, *, base: Base, geometry: Geometry, rule: Rule) -> Any:
        """Return the attribute at a geometry."""
        return self.value(geometry, value)


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

    Example:
        >>> plan = Plan(
        ...     base=Base(frames=8, height=224, width=224, patch=(16, 16)),
        ...     patch_embeds=("stem",),
        ...     tables=(Table("positions", axes="space", class_rows=("first",)),),
        ... )
        >>> print(plan)
        named by hand: 8 frames of 224 x 224 px, patch 16 x 16, grid 14 x 14, 8 steps; clips are bcthw
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
    linear_order: Literal["chw", "hwc"] = "chw"
    fixed: tuple[str, ...] = ()
    baked: tuple[State, ...] = ()
    rule: Rule = RULES["auto"]
    family: str = "named by hand"
    rejected: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

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
        overlapping = "" if base.overlap == 1 else f" in windows of {_times(base.window)}"
        lines = [
            f"{self.family}: {frames} of {base.height} x {base.width} px, patch {_times(base.patch)}"
            f"{overlapping}, grid {_times(base.grid)}{steps}; clips are {self.layout}"
        ]
        lines += _columns([("part", "from", "resampled by"), *self._resampled()])
        if self.state:
            lines.append("follows the geometry: " + ", ".join(alike(state.name for state in self.state)))
        if not self.patch_embeds:
            lines.append(f"the patch cannot change: policies that apply are {', '.join(self.policies)}")
        lines += [f"left alone: {reason}" for reason in self.rejected]
        lines += [f"to be settled: {reason}" for reason in self.unknown]
        return "\n".join(lines)

    def _resampled(self) -> list[tuple[str, str, str]]:
        """One line of the printed table for each tensor that is resampled."""
        kernel, size = f"{self.rule.kernel} (patch kernel)", _times(self.kernel(self.base))
        rows = [(f"{name}.weight", size, kernel) for name in self.patch_embeds]
        for table in self.tables:
            at = [(table.class_rows.count(row), row) for row in dict.fromkeys(table.class_rows)]
            extra = (f"{f'{count} class tokens' if count > 1 else 'class token'} {row}" for count, row in at)
            tokens = " + ".join((_times(table.size(self.base)), *extra))
            rows.append((table.name, tokens, ", ".join(dict.fromkeys(table.kinds(self.rule)))))
        return rows


def alike(names: Iterable[str]) -> list[str]:
    """Names with those together that differ in the numbers of their layers only, for people to read.

    Args:
        names: dotted paths.

    Example:
        >>> alike(["size", "layers.0.size", "layers.1.size", "layers.7.size"])
        ['size', 'layers.{0,1,7}.size']
    """
    found: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        found.setdefault(key, []).append("" if number is None else number.group())
    return [
        key.replace("{}", numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}")
        for key, numbers in found.items()
    ]


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return list(padded)
