"""The five policies of the paper's section 4.2: what training draws, and at which geometry a clip runs.

A policy holds no size of any model: the base comes with every call, from the plan of the model at hand.
Sampling sets bind training only; at inference every policy takes any number of frames and any frame size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from flexvideo.errors import ConfigError, GeometryError, brief
from flexvideo.geometry import Base, Size, as_pair
from flexvideo.nearest import did_you_mean
from flexvideo.policybase import FRAMES as FRAMES
from flexvideo.policybase import Option, Pair
from flexvideo.policybase import Policy as Policy

SIZES = (96, 128, 224, 384)
FLEXIVIT_PATCHES = (8, 10, 12, 15, 16, 20, 24, 30, 40, 48)


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

    def _options(self, base: Base) -> list[Option]:
        return [((base.height, base.width), [base.patch])]

    def _fit(self, side: int, patch: int | None, base: Pair) -> Pair:
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

    def _options(self, base: Base) -> list[Option]:
        return [(size, [base.patch]) for size in map(as_pair, self.sizes)]

    def _fit(self, side: int, patch: int | None, base: Pair) -> Pair:
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

    def _options(self, base: Base) -> list[Option]:
        return [(size, [self.geometry(base, base.tubelet, *size).patch]) for size in map(as_pair, self.sizes)]

    def _fit(self, side: int, patch: int | None, base: Pair) -> Pair:
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

    def _options(self, base: Base) -> list[Option]:
        return [(size, list(map(as_pair, self.patches))) for size in map(as_pair, self.sizes)]

    def _fit(self, side: int, patch: int | None, base: Pair) -> Pair:
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

    def _options(self, base: Base) -> list[Option]:
        return [(size, list(map(as_pair, self._divisors(*size)))) for size in map(as_pair, self.sizes)]

    def _divisors(self, height: int, width: int) -> list[int]:
        smallest, largest = self.patch_range
        return [patch for patch in range(smallest, largest + 1) if height % patch == 0 and width % patch == 0]

    def _fit(self, side: int, patch: int | None, base: Pair) -> Pair:
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
    if isinstance(policy, type) and issubclass(policy, Policy):
        raise ConfigError(
            f"{policy.__name__} is the class of a policy: give a policy, `{policy.__name__}()`."
        )
    config: dict[str, Any] = dict(policy) if isinstance(policy, Mapping) else {"name": policy}
    if config.keys() == {"policy", "rule"}:
        raise ConfigError(
            "These are policy and rule, as flex_config returns them: "
            "make_flexible(model, **config) takes both."
        )
    name = config.pop("name", None)
    if not isinstance(name, str) or name not in POLICIES:
        raise ConfigError(
            f"Unknown policy {brief(policy)}: the names are {', '.join(map(repr, POLICIES))}; give one, "
            'a policy, or a mapping whose "name" is one of them.'
            f"{did_you_mean(name, POLICIES) if isinstance(name, str) else ''}"
        )
    known = [field.name for field in fields(POLICIES[name])]
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ConfigError(
            f"Unknown fields {unknown} of policy {name!r}: its fields are {', '.join(map(repr, known))}."
        )
    return POLICIES[name](**config)


def _nearest_multiple(side: int, patch: int | None, base: Pair) -> Pair:
    """Round a side to the nearest multiple of the patch, ties up; the base axis stays as it is."""
    patch = base[1] if patch is None else patch
    if (side, patch) == base:
        return base
    return max(1, (2 * side + patch) // (2 * patch)) * patch, patch
