"""The parts of a plan: tables of positions that are resampled, and attributes that follow the geometry."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor

from flexvideo.errors import PlanError, UnsupportedModelError, brief
from flexvideo.geometry import Base, Geometry
from flexvideo.resample import Rule, resample_table

ClassRow = Literal["first", "middle", "last"]
Axes = Literal["space", "time", "joint"]
_Part = TypeVar("_Part")


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
        PlanError: when a value is of the wrong kind, or a spread table is said to have class-token rows,
            which it cannot hold.

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
        _check_name(self)
        one_of(self.axes, get_args(Axes), f"axes` of Table `{self.name}")
        object.__setattr__(self, "class_rows", tuple_of(self.class_rows, str, "class_rows"))
        for row in self.class_rows:
            one_of(row, get_args(ClassRow), f"class_rows` of Table `{self.name}")
        if type(self.dim) is not int or self.dim < 0 or type(self.spread) is not bool:
            raise PlanError(
                f"Table {self.name!r}: `dim` is a dimension counted from 0 and `spread` true or false, got "
                f"{brief(self.dim)} and {brief(self.spread)}."
            )
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
        return self._held(self.size(at))

    def _held(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size if self.spread else (self.rows(math.prod(size)),)

    def class_indices(self, tokens: int) -> tuple[int, ...]:
        """Rows at which the class tokens stand among so many others; a middle one precedes token n // 2."""
        if not self.class_rows:
            return ()
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

        Raises:
            UnsupportedModelError: it has another size than when the model was made flexible.
        """
        old, new = self.size(base), self.size(geometry)
        lengths = self._held(old)
        if value.shape[self.dim : self.dim + len(lengths)] != lengths:
            raise UnsupportedModelError(
                f"`{self.name}` is of shape {tuple(value.shape)}, and was of {' x '.join(map(str, lengths))} "
                f"in dimension {self.dim} when the model was made flexible: restore(model), replace it, and "
                "make that model flexible."
            )
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

    Raises:
        PlanError: when a value is of the wrong kind.

    Example:
        >>> def frames(geometry, base_value):
        ...     return geometry.frames
        >>> State("blocks.0.num_frames", frames).name
        'blocks.0.num_frames'
    """

    name: str
    value: Callable[[Geometry, Any], Any]

    def __post_init__(self) -> None:
        _check_name(self)
        if not callable(self.value):
            raise PlanError(
                f"State {self.name!r}: `value` must be a function of the geometry and of what is stored, got "
                f"{brief(self.value)}."
            )

    def follow(self, value: Any, *, base: Base, geometry: Geometry, rule: Rule) -> Any:
        """Return the attribute at a geometry."""
        return self.value(geometry, value)


def one_of(value: Any, known: tuple[str, ...], what: str) -> None:
    """Refuse a value that is none of those known.

    Args:
        value: what was given.
        known: what there is to choose from.
        what: name of the field in the error.

    Raises:
        PlanError: listing what there is to choose from.

    Example:
        >>> one_of("time", ("space", "time"), "axes")
    """
    if value not in known:
        raise PlanError(f"`{what}` is one of {', '.join(map(repr, known))}; got {brief(value)}.")


def tuple_of(values: Any, kind: type[_Part], what: str) -> tuple[_Part, ...]:
    """Values as a tuple; a list becomes one, a value by itself does not.

    Args:
        values: what was given.
        kind: what each of them must be.
        what: name of the field in the error.

    Raises:
        PlanError: anything but a tuple or list of that kind.

    Example:
        >>> tuple_of(["stem"], str, "patch_embeds")
        ('stem',)
    """
    if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
        several = "names" if kind is str else f"{kind.__name__} entries"
        alone = f": write {what}=(..., ) around the one" if isinstance(values, kind) else ""
        raise PlanError(f"`{what}` must be a tuple of {several}, got {brief(values)}{alone}.")
    return tuple(values)


def _check_name(part: Table | State) -> None:
    if not isinstance(part.name, str) or not part.name:
        raise PlanError(
            f"A {type(part).__name__} needs a dotted path from the model as its `name`, got "
            f"{brief(part.name)}."
        )
