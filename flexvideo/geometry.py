"""Sizes as plain data: what a model was built for, what a training step draws, what one forward runs at.

The paper writes L both for the sequence of patches and for sqrt(H * W / p ** 2), which is the side of the
grid; here a grid is always the pair (rows, columns), and a clip of T steps has T * rows * columns tokens.
"""

from dataclasses import dataclass
from typing import TypeAlias

from flexvideo.errors import GeometryError

Size: TypeAlias = int | tuple[int, int] | list[int]
"""Pixels: one number for a square, or (height, width); a list because JSON has no tuples."""


def as_pair(value: Size, *, what: str = "patch") -> tuple[int, int]:
    """Return a (height, width) pair; one number stands for both.

    Args:
        value: pixels, at least 1.
        what: name of the value in the error.

    Raises:
        GeometryError: when the value is neither a positive whole number nor a pair of them.

    Example:
        >>> as_pair(16), as_pair((16, 8))
        ((16, 16), (16, 8))
    """
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, (tuple, list))  # torch 2.9 compiles no union
        or len(pair) != 2
        or not all(type(side) is int and side >= 1 for side in pair)  # JSON's true is no size
    ):
        raise GeometryError(
            f"`{what}` must be a positive whole number of pixels or a (height, width) pair, got {value!r}."
        )
    return pair[0], pair[1]


def _check_frame(height: int, width: int, patch: tuple[int, int]) -> None:
    """Refuse a frame that does not hold one patch: its grid would be empty."""
    if patch[0] < 1 or patch[1] < 1 or height < patch[0] or width < patch[1]:
        raise GeometryError(
            f"A frame of {height} x {width} px holds no patch of {patch[0]} x {patch[1]} px: "
            "both must be positive, and the patch at most as large as the frame."
        )


def _check_frames(frames: int, tubelet: int) -> None:
    """Refuse a frame count that the temporal stride would cut short, and name the nearest ones that fit."""
    if frames < 1 or tubelet < 1:
        raise GeometryError(
            f"`frames` and `tubelet` must be at least 1, got {frames} frames and a tubelet of {tubelet}."
        )
    if frames % tubelet != 0:
        below, above = frames // tubelet * tubelet, (frames // tubelet + 1) * tubelet
        nearest = f"{below} or {above}" if below else f"{above}"
        raise GeometryError(
            f"{frames} frames cannot be cut into tubelets of {tubelet} frames: use {nearest} frames."
        )


@dataclass(frozen=True)
class Base:
    """Sizes that a model's parameters were built for.

    Args:
        frames: frames of a clip; None for a model without a temporal table.
        height: pixels.
        width: pixels.
        patch: (height, width) of a patch in pixels, or one number for both; the stride where patches overlap.
        tubelet: frames under one token.
        overlap: how many patches long and wide the window of one token is; 1 where patches do not overlap.
        stem: factor by which convolutions shrink a frame before the patch embedding sees it.
        pads: whether the model pads or refuses a frame that the patch does not divide, instead of dropping a
            remainder.

    Raises:
        GeometryError: when a size is no positive whole number, or a frame holds no patch, or is not what
            `stem` or `pads` need.

    Example:
        >>> Base(frames=8, height=224, width=224, patch=(16, 16)).grid
        (14, 14)
        >>> Base(frames=None, height=224, width=224, patch=(8, 8), overlap=2).grid
        (27, 27)
    """

    frames: int | None
    height: int
    width: int
    patch: tuple[int, int]
    tubelet: int = 1
    overlap: int = 1
    stem: int = 1
    pads: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.patch, tuple) or len(self.patch) != 2:
            object.__setattr__(self, "patch", as_pair(self.patch))
        sizes = (
            self.frames or 0,
            self.height,
            self.width,
            *self.patch,
            self.tubelet,
            self.overlap,
            self.stem,
        )
        if any(type(size) is not int for size in sizes) or min(self.overlap, self.stem) < 1:
            raise GeometryError(
                "The sizes of a Base are whole numbers, overlap and stem at least 1, frames maybe None; "
                f"got {self}."
            )
        _check_frames(self.tubelet if self.frames is None else self.frames, self.tubelet)
        _check_frame(self.height, self.width, _window(self))
        unit = self.patch if self.pads else (self.stem, self.stem)
        if any(size % by for size, by in zip((self.height, self.width), unit, strict=True)) or any(
            size % self.stem for size in self.patch
        ):
            raise GeometryError(
                f"A model that shrinks or pads a frame by itself must be built for multiples of what it does "
                f"it by, and this one is built for {self.height} x {self.width} px and a patch of "
                f"{self.patch[0]} x {self.patch[1]} px."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens; a remainder at the edge is dropped, as a strided convolution does."""
        return _grid(self)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width in pixels of what one token sees: a patch, or several where patches overlap."""
        return _window(self)

    @property
    def steps(self) -> int | None:
        """Tokens along time; None for a model without a temporal table."""
        return None if self.frames is None else self.frames // self.tubelet


@dataclass(frozen=True)
class ClipSpec:
    """Sizes that training draws for one step: the clip that the loader makes and the patch to run it at.

    Args:
        frames: frames of the clip.
        height: pixels of the clip, before any resize by the model.
        width: pixels of the clip, before any resize by the model.
        patch: (height, width) of a patch in pixels.

    Raises:
        GeometryError: when a size is not positive.

    Example:
        >>> ClipSpec(frames=32, height=128, width=128, patch=(9, 9))
        ClipSpec(frames=32, height=128, width=128, patch=(9, 9))
    """

    frames: int
    height: int
    width: int
    patch: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width, *self.patch) < 1:
            raise GeometryError(f"Every size of a clip must be at least 1, got {self}.")


@dataclass(frozen=True)
class Geometry:
    """Sizes that one forward runs at; built in every forward, so it is plain integer arithmetic.

    Args:
        frames: frames of the clip.
        height: pixels that the model sees, after its own resize of the clip.
        width: pixels that the model sees, after its own resize of the clip.
        patch: (height, width) of a patch in pixels; the stride where patches overlap.
        tubelet: frames under one token.
        overlap: how many patches long and wide the window of one token is.

    Raises:
        GeometryError: when a size is not positive, a frame holds no patch, or the tubelet does not divide
            the frames.

    Example:
        >>> Geometry(frames=32, height=128, width=128, patch=(9, 9)).tokens
        6272
    """

    frames: int
    height: int
    width: int
    patch: tuple[int, int]
    tubelet: int = 1
    overlap: int = 1

    def __post_init__(self) -> None:
        _check_frames(self.frames, self.tubelet)
        _check_frame(self.height, self.width, _window(self))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens; a remainder at the edge is dropped, as a strided convolution does."""
        return _grid(self)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width in pixels of what one token sees: a patch, or several where patches overlap."""
        return _window(self)

    @property
    def steps(self) -> int:
        """Tokens along time."""
        return self.frames // self.tubelet

    @property
    def tokens(self) -> int:
        """Tokens of the clip, class token not counted."""
        rows, columns = self.grid
        return self.steps * rows * columns


def _grid(sizes: Base | Geometry) -> tuple[int, int]:
    lost = sizes.overlap - 1
    return sizes.height // sizes.patch[0] - lost, sizes.width // sizes.patch[1] - lost


def _window(sizes: Base | Geometry) -> tuple[int, int]:
    return sizes.patch[0] * sizes.overlap, sizes.patch[1] * sizes.overlap
