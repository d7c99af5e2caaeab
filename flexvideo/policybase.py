"""What the five policies of `flexvideo.policy` have in common: fields, draws, geometries, configuration."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias, TypeVar, final

from flexvideo.errors import ConfigError, GeometryError
from flexvideo.geometry import Base, ClipSpec, Geometry, Size, as_pair

FRAMES = (8, 16, 32, 64)

Pair: TypeAlias = tuple[int, int]
Option: TypeAlias = tuple[Pair, list[Pair]]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """What all five have in common; `Temporal` and the others are the policies themselves.

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

        Raises:
            GeometryError: when the model cannot run what could be drawn.

        Example:
            >>> from flexvideo import StaticTokens
            >>> base = Base(frames=16, height=224, width=224, patch=(16, 16))
            >>> StaticTokens().sample(base, seed=0, epoch=0, step=0)
            ClipSpec(frames=32, height=96, width=96, patch=(7, 7))
        """
        self.check_frames(base)
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
            >>> from flexvideo import StaticTokens
            >>> len(StaticTokens().specs(Base(frames=16, height=224, width=224, patch=(16, 16))))
            16
        """
        self.check_frames(base)
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
    def check_frames(self, base: Base) -> None:
        """Refuse frame counts that the tubelets of a model do not divide.

        Args:
            base: sizes that the model was built for.

        Raises:
            GeometryError: naming them, and the next ones that would do.
        """
        tubelet = base.tubelet
        if misfits := [str(frames) for frames in self.frames if frames % tubelet]:
            multiples = tuple(dict.fromkeys(-(-frames // tubelet) * tubelet for frames in self.frames))
            raise GeometryError(
                f"The policy {self.name!r} draws clips of {', '.join(misfits)} frames, which cannot be cut "
                f"into this model's tubelets of {tubelet} frames: give it others, such as "
                f"{type(self).__name__}(frames={multiples})."
            )

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
            >>> from flexvideo import StaticPatch
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

    def _fit_axis(self, side: int, patch: int | None, built: Pair, base: Base) -> Pair:
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
            >>> from flexvideo import Temporal
            >>> Temporal(frames=(8, 16)).to_config()
            {'name': 'temporal', 'frames': [8, 16]}
        """
        return {"name": self.name} | {field.name: _thaw(getattr(self, field.name)) for field in fields(self)}

    @abstractmethod
    def _options(self, base: Base) -> list[Option]:
        """Frame sizes that training draws from, each with the patches to draw from at that size."""

    @abstractmethod
    def _fit(self, side: int, patch: int | None, base: Pair) -> Pair:
        """Pixels that the model sees along one axis, and the patch along it; `base` is that pair as built."""


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
