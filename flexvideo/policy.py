"""The five policies of the paper's section 4.2: what training draws, and at which geometry a clip runs.

A policy holds no size of any model: the base comes with every call, from the plan of the model at hand.
Sampling sets bind training only; at inference every policy takes any number of frames and any frame size.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias, TypeVar, final

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.geometry import Base, ClipSpec, Geometry, Size, as_pair

FRAMES = (8, 16, 32, 64)
SIZES = (96, 128, 224, 384)
FLEXIVIT_PATCHES = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)

_Pair: TypeAlias = tuple[int, int]
_Option: TypeAlias = tuple[_Pair, list[_Pair]]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """What all five have in common; `Temporal` and the others below are the policies themselves.

    Fields take lists as well as tuples, and keep tuples.

    Args:
        frames: frame counts that training draws from.

    Raises:
        ConfigError: when a field has a value that cannot be drawn from.
    """

    name: ClassVar[str]
    changes_patch: ClassVar[bool] = False
    frames: Sequence[int] = FRAMES

    def __post_init__(self) -> None:
        for field in fields(self):
            values, pairs = _freeze(getattr(self, field.name)), field.name == "sizes"
            if not _drawable(values, pairs=pairs):
                raise ConfigError(
                    f"{type(self).__name__}: `{field.name}` must be a list of positive whole numbers"
                    f"{' or (height, width) pairs' if pairs else ''}, at least one; got {values!r}."
                )
            object.__setattr__(self, field.name, values)

    @final
    def sample(self, base: Base, *, seed: int, epoch: int, step: int) -> ClipSpec:
        """Draw the sizes of one training step, a pure function of its arguments on every machine.

        Frames, size and patch are drawn independently of each other, each uniformly; the random state of
        the process is neither read nor changed, so ranks, workers and restarts agree.

        Args:
            base: sizes that the model was built for.
            seed: any whole number.
            epoch: any whole number.
            step: any whole number.

        Example:
            >>> base = Base(frames=16, height=224, width=224, patch=(16, 16))
            >>> StaticTokens().sample(base, seed=0, epoch=0, step=0)
            ClipSpec(frames=32, height=96, width=96, patch=(7, 7))
        """
        key = f"{seed}/{epoch}/{step}"
        frames = _choose(self.frames, f"{key}/frames")
        (height, width), patches = _choose(self._options(base), f"{key}/size")
        return ClipSpec(frames, height, width, _choose(patches, f"{key}/patch"))

    @final
    def specs(self, base: Base) -> tuple[ClipSpec, ...]:
        """List every spec that `sample` can draw for a model: what there is to budget and to prewarm.

        Args:
            base: sizes that the model was built for.

        Raises:
            GeometryError: when the model cannot run one of them.

        Example:
            >>> len(StaticTokens().specs(Base(frames=16, height=224, width=224, patch=(16, 16))))
            16
        """
        specs = tuple(
            ClipSpec(frames, height, width, patch)
            for frames in self.frames
            for (height, width), patches in self._options(base)
            for patch in patches
        )
        for spec in specs:
            self.geometry(base, spec.frames, spec.height, spec.width, spec.patch)
        return specs

    @final
    def geometry(
        self,
        base: Base,
        frames: int,
        height: int,
        width: int,
        patch: Size | None = None,
    ) -> Geometry:
        """Return the geometry at which the model runs a clip; at the base sizes it is the base itself.

        Args:
            base: sizes that the model was built for.
            frames: frames of the clip.
            height: pixels of the clip.
            width: pixels of the clip.
            patch: pixels, one number or (height, width), for this clip; the policy's own when None.

        Raises:
            GeometryError: when the clip or the patch cannot be run.

        Example:
            >>> base = Base(frames=16, height=224, width=224, patch=(16, 16))
            >>> StaticPatch().geometry(base, 32, 128, 128).grid
            (8, 8)
        """
        if frames < 1 or height < 1 or width < 1:
            raise GeometryError(
                f"A clip needs at least one frame of 1 x 1 px, got {frames} frames of {height} x {width} px."
            )
        rows, columns = (None, None) if patch is None else as_pair(patch)
        height, patch_height = self._fit_axis(height, rows, (base.height, base.patch[0]), base)
        width, patch_width = self._fit_axis(width, columns, (base.width, base.patch[1]), base)
        return Geometry(frames, height, width, (patch_height, patch_width), base.tubelet, base.overlap)

    def _fit_axis(self, side: int, patch: int | None, built: _Pair, base: Base) -> _Pair:
        """Pixels that the model sees along one axis, and the patch along it, in steps of the model's stem."""
        stem = base.stem
        if patch is not None and patch % stem:
            raise GeometryError(
                f"A patch of {patch} px is no multiple of {stem}, by which this model shrinks a frame before "
                f"it cuts patches: use {max(1, patch // stem) * stem} or {-(-patch // stem) * stem} px."
            )
        if stem > 1:
            side, patch = max(1, (2 * side + stem) // (2 * stem)), None if patch is None else patch // stem
        side, patch = self._fit(side, patch, (built[0] // stem, built[1] // stem))
        if base.pads:
            side -= side % patch
        return side * stem, patch * stem

    @final
    def to_config(self) -> dict[str, Any]:
        """Return the policy as JSON data, which `policy_of` turns back into an equal policy.

        Example:
            >>> Temporal(frames=(8, 16)).to_config()
            {'name': 'temporal', 'frames': [8, 16]}
        """
        return {"name": self.name} | {field.name: _thaw(getattr(self, field.name)) for field in fields(self)}

    @abstractmethod
    def _options(self, base: Base) -> list[_Option]:
        """Frame sizes that training draws from, each with the patches to draw from at that size."""

    @abstractmethod
    def _fit(self, side: int, patch: int | None, base: _Pair) -> _Pair:
        """Pixels that the model sees along one axis, and the patch along it; `base` is that pair as built."""


@dataclass(frozen=True, kw_only=True)
class Temporal(Policy):
    """Flex the temporal table only: a clip of another frame size is resized to the base size.

    Args:
        frames: frame counts that training draws from.

    Example:
        >>> Temporal().geometry(Base(16, 224, 224, (16, 16)), 110, 768, 768)
        Geometry(frames=110, height=224, width=224, patch=(16, 16), tubelet=1, overlap=1)

    Source: StretchySnake, section 4.2, item 1.
    """

    name: ClassVar[str] = "temporal"

    def _options(self, base: Base) -> list[_Option]:
        return [((base.height, base.width), [base.patch])]

    def _fit(self, side: int, patch: int | None, base: _Pair) -> _Pair:
        return _nearest_multiple(base[0], patch, base)


@dataclass(frozen=True, kw_only=True)
class StaticPatch(Policy):
    """Flex both tables and keep the patch: a larger frame has more tokens.

    The paper's example resizes a spatial table "from 16"; the base grid of its default model is 14.

    Args:
        frames: frame counts that training draws from.
        sizes: frame sizes in pixels that training draws from; a number is a square, a pair (height, width).

    Example:
        >>> StaticPatch().geometry(Base(16, 224, 224, (16, 16)), 32, 128, 100).grid
        (8, 6)

    Source: StretchySnake, section 4.2, item 2.
    """

    name: ClassVar[str] = "static-patch"
    sizes: Sequence[Size] = SIZES

    def _options(self, base: Base) -> list[_Option]:
        return [(size, [base.patch]) for size in map(as_pair, self.sizes)]

    def _fit(self, side: int, patch: int | None, base: _Pair) -> _Pair:
        return _nearest_multiple(side, patch, base)


@dataclass(frozen=True, kw_only=True)
class StaticTokens(Policy):
    """Flex the temporal table and the patch, so that every frame has the base grid: StretchySnake.

    Along each axis of R pixels and G tokens the patch is R // G, as in the paper (the convolution drops the
    remainder). Where that gives another grid than G (96 px for G = 14: a patch of 6 gives 16, of 7 gives 13)
    the patch is R / G rounded up, and the model resizes the clip to G * patch (98). A patch given for a call
    stands, and the clip is resized to G * patch unless it has that grid already: never another grid.

    Args:
        frames: frame counts that training draws from.
        sizes: frame sizes in pixels that training draws from; a number is a square, a pair (height, width).

    Example:
        >>> StaticTokens().geometry(Base(16, 224, 224, (16, 16)), 32, 128, 96)
        Geometry(frames=32, height=128, width=98, patch=(9, 7), tubelet=1, overlap=1)

    Source: StretchySnake, section 4.2, item 3.
    """

    name: ClassVar[str] = "static-tokens"
    changes_patch: ClassVar[bool] = True
    sizes: Sequence[Size] = SIZES

    def _options(self, base: Base) -> list[_Option]:
        return [(size, [self.geometry(base, base.tubelet, *size).patch]) for size in map(as_pair, self.sizes)]

    def _fit(self, side: int, patch: int | None, base: _Pair) -> _Pair:
        base_side, base_patch = base
        grid = base_side // base_patch
        if side < grid:
            raise GeometryError(
                f"A side of {side} px is smaller than the model's grid of {grid} tokens, which static tokens "
                f"keeps: use at least {grid} px or another policy."
            )
        if patch is None and side == base_side:
            patch = base_patch  # R // G is larger where the model itself drops a remainder
        elif patch is None:
            patch = side // grid if side // (side // grid) == grid else -(-side // grid)
        return (side if side // patch == grid else grid * patch), patch


@dataclass(frozen=True, kw_only=True)
class FlexiViT(Policy):
    """Flex both tables and the patch at one frame size; the patch is the base's at inference unless given.

    The paper's example resizes a spatial table "to 12"; a patch of 12 px at 240 px has a grid of 20.

    Args:
        frames: frame counts that training draws from.
        sizes: frame sizes in pixels that training draws from; a number is a square, a pair (height, width).
        patches: patches that training draws from, in pixels; each divides each size.

    Example:
        >>> FlexiViT().geometry(Base(16, 224, 224, (16, 16)), 32, 240, 240, patch=12).grid
        (20, 20)

    Source: StretchySnake, section 4.2, item 4; FlexiViT (arXiv 2212.08013).
    """

    name: ClassVar[str] = "flexivit"
    changes_patch: ClassVar[bool] = True
    sizes: Sequence[Size] = (240,)
    patches: Sequence[int] = FLEXIVIT_PATCHES

    def __post_init__(self) -> None:
        super().__post_init__()
        for height, width in map(as_pair, self.sizes):
            unfit = [patch for patch in self.patches if height % patch or width % patch]
            if unfit:
                raise ConfigError(
                    f"FlexiViT: patches {unfit} do not divide a frame of {height} x {width} px; every patch "
                    "must divide every size."
                )

    def _options(self, base: Base) -> list[_Option]:
        return [(size, list(map(as_pair, self.patches))) for size in map(as_pair, self.sizes)]

    def _fit(self, side: int, patch: int | None, base: _Pair) -> _Pair:
        return _nearest_multiple(side, patch, base)


@dataclass(frozen=True, kw_only=True)
class FlexAll(Policy):
    """Flex both tables, the frame size and the patch; the patch is the base's at inference unless given.

    The paper's condition "0 = p mod (H * W)" is read as: the patch divides the height and the width.

    Args:
        frames: frame counts that training draws from.
        sizes: frame sizes in pixels that training draws from; a number is a square, a pair (height, width).
        patch_range: smallest and largest patch that training draws, in pixels, both included.

    Example:
        >>> base = Base(16, 224, 224, (16, 16))
        >>> sorted({spec.patch for spec in FlexAll(sizes=(128,)).specs(base)})
        [(16, 16), (32, 32)]

    Source: StretchySnake, section 4.2, item 5.
    """

    name: ClassVar[str] = "flex-all"
    changes_patch: ClassVar[bool] = True
    sizes: Sequence[Size] = SIZES
    patch_range: Sequence[int] = (12, 48)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.patch_range) != 2 or self.patch_range[0] > self.patch_range[1]:
            raise ConfigError(
                f"FlexAll: `patch_range` must be (smallest, largest) in pixels, got {self.patch_range}."
            )
        for height, width in map(as_pair, self.sizes):
            if not self._divisors(height, width):
                raise ConfigError(
                    f"FlexAll: no patch from {self.patch_range[0]} to {self.patch_range[1]} px divides a "
                    f"frame of {height} x {width} px; change `sizes` or `patch_range`."
                )

    def _options(self, base: Base) -> list[_Option]:
        return [(size, list(map(as_pair, self._divisors(*size)))) for size in map(as_pair, self.sizes)]

    def _divisors(self, height: int, width: int) -> list[int]:
        smallest, largest = self.patch_range
        return [patch for patch in range(smallest, largest + 1) if height % patch == 0 and width % patch == 0]

    def _fit(self, side: int, patch: int | None, base: _Pair) -> _Pair:
        return _nearest_multiple(side, patch, base)


POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Temporal, StaticPatch, StaticTokens, FlexiViT, FlexAll)
}


def policy_of(policy: str | Policy | Mapping[str, Any]) -> Policy:
    """Return the policy that a name, a policy or the result of `to_config` stands for.

    Args:
        policy: one of "temporal", "static-patch", "static-tokens", "flexivit", "flex-all"; a policy, returned
            as it is; or a mapping of "name" and the fields that differ from the default.

    Raises:
        ConfigError: when the name or a field is unknown, or a field has a value that cannot be drawn from.

    Example:
        >>> policy_of({"name": "temporal", "frames": [8, 16]})
        Temporal(frames=(8, 16))
    """
    if isinstance(policy, Policy):
        return policy
    config: dict[str, Any] = dict(policy) if isinstance(policy, Mapping) else {"name": policy}
    name = config.pop("name", None)
    if not isinstance(name, str) or name not in POLICIES:
        raise ConfigError(
            f"Unknown policy {policy!r}: the names are {', '.join(map(repr, POLICIES))}; give one, "
            'a policy, or a mapping whose "name" is one of them.'
        )
    known = [field.name for field in fields(POLICIES[name])]
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ConfigError(
            f"Unknown fields {unknown} of policy {name!r}: its fields are {', '.join(map(repr, known))}."
        )
    return POLICIES[name](**config)


def _nearest_multiple(side: int, patch: int | None, base: _Pair) -> _Pair:
    """Round a side to the nearest multiple of the patch, ties up; the base axis stays as it is."""
    patch = base[1] if patch is None else patch
    if (side, patch) == base:
        return base
    return max(1, (2 * side + patch) // (2 * patch)) * patch, patch


def _drawable(values: Any, *, pairs: bool) -> bool:
    """Whether there is something to draw from; `type` and not `isinstance`, for JSON's true is no size."""
    return (
        isinstance(values, tuple)
        and values != ()
        and all(
            (pairs and _drawable(value, pairs=False) and len(value) == 2)
            if isinstance(value, tuple)
            else (type(value) is int and value >= 1)
            for value in values
        )
    )


def _freeze(values: Any) -> Any:
    """JSON has no tuples: turn lists, nested ones too, into tuples."""
    return tuple(map(_freeze, values)) if isinstance(values, list | tuple) else values


def _thaw(values: Any) -> Any:
    return list(map(_thaw, values)) if isinstance(values, tuple) else values


def _choose(options: Sequence[_Item], key: str) -> _Item:
    """Pick by a hash: unlike `random.choice`, the same in every version of Python."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return options[draw * len(options) >> 64]
