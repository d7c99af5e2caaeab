"""Reading the clips of one micro-batch, in the process that trains or in another."""

import warnings
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from flexvideo.data.alter import centre_crop, mirror, random_crop
from flexvideo.data.augment import Augment
from flexvideo.data.randaugment import rand_augment
from flexvideo.data.room import lacks_memory, too_much
from flexvideo.data.source import ClipSource
from flexvideo.errors import FlexVideoError, MemoryLimitError, VideoWarning
from flexvideo.geometry import ClipSpec


class Cell(NamedTuple):
    """One micro-batch of one rank, for whoever reads it.

    Args:
        spec: sizes of its clips.
        indices: their numbers.
        place: of the first of them in the epoch's order.
        epoch: from 0.
        step: of the epoch, from 0; a draw of sizes, where a step has several.
        number: of the cell in its step.
    """

    spec: ClipSpec
    indices: tuple[int, ...]
    place: int
    epoch: int
    step: int
    number: int


@dataclass(frozen=True, eq=False)
class Read:
    """What came of reading a cell.

    Args:
        cell: what was read.
        frames: black where a clip could not be read.
        errors: what came up, by place in the cell.
        warnings: of all its clips, to be shown by whoever trains.
    """

    cell: Cell
    frames: UInt8[Tensor, "b t h w 3"]
    errors: dict[int, FlexVideoError]
    warnings: list[Warning | str]

    def pin_memory(self) -> "Read":
        """Put the frames into page-locked memory; PyTorch calls this, and takes named tuples apart."""
        return replace(self, frames=self.frames.pin_memory())


class Reader(Dataset[Read]):
    """Reads cells.

    Args:
        source: the clips.
        augment: what is done to them.
        seed: any whole number.
        alters: whether colours and shapes are altered here, or later on another device.
    """

    def __init__(self, source: ClipSource, augment: Augment, seed: int, *, alters: bool):
        self._source, self._augment, self._seed, self._alters = source, augment, seed, alters

    def __getitem__(self, cell: Cell) -> Read:
        try:
            return self._read(cell)
        except (RuntimeError, OSError) as error:
            if not lacks_memory(error):
                raise
        # Handed on, as other errors are: raised in another process, it would be a page of text.
        nothing = torch.empty(0, 1, 1, 1, 3, dtype=torch.uint8)
        return Read(cell, nothing, {0: MemoryLimitError(too_many(cell, self._source.device))}, [])

    def _read(self, cell: Cell) -> Read:
        spec = cell.spec
        shape = (len(cell.indices), spec.frames, spec.height, spec.width, 3)
        frames = torch.empty(shape, dtype=torch.uint8, device=self._source.device)
        errors: dict[int, FlexVideoError] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VideoWarning)
            for place in range(len(cell.indices)):
                try:
                    frames[place] = self._clip(cell, place)
                except FlexVideoError as error:
                    errors[place] = error
                    frames[place] = 0
        return Read(cell, frames, errors, [warning.message for warning in caught])

    def _clip(self, cell: Cell, place: int) -> UInt8[Tensor, "t h w 3"]:
        augment, size = self._augment, (cell.spec.height, cell.spec.width)
        draw = draw_for("crop", self._seed, cell.epoch, cell.place + place)
        seed, mirrored = draw.getrandbits(63), bool(draw.getrandbits(1))
        crop = centre_crop(size)
        if augment.scale is not None:
            crop = random_crop(size, scale=augment.scale, ratio=augment.ratio, draw=draw)
        frames = self._source.read(
            cell.indices[place],
            frames=cell.spec.frames,
            size=size,
            sampling=augment.sampling,
            seed=seed,
            crop=crop,
        )
        frames = mirror(frames) if augment.flip and mirrored else frames
        return altered(frames, augment, self._seed, cell, place) if self._alters else frames


def too_many(cell: Cell, device: torch.device | str) -> str:
    """Say that the clips of a cell do not fit into memory, and what to do about it.

    Args:
        cell: which clips.
        device: whose memory it is.
    """
    spec = cell.spec
    clips = len(cell.indices)
    size = clips * spec.frames * spec.height * spec.width * 12 / 2**30  # three numbers of 4 bytes
    return (
        f"{too_much(clips, spec, device)}, {size:,.1f} GiB of pixels alone: accumulate more batches, make "
        "the budget of tokens smaller, or leave that size out of the policy."
    )


def altered(
    frames: UInt8[Tensor, "t h w 3"], augment: Augment, seed: int, cell: Cell, place: int
) -> UInt8[Tensor, "t h w 3"]:
    """Alter the colours and shapes of a clip, where its frames are.

    Args:
        frames: of the clip.
        augment: how.
        seed: any whole number.
        cell: to which the clip belongs.
        place: of the clip in the cell.
    """
    return rand_augment(
        frames,
        operations=augment.operations,
        magnitude=augment.magnitude,
        magnitude_std=augment.magnitude_std,
        draw=draw_for("look", seed, cell.epoch, cell.place + place),
    )


def draw_for(what: str, *key: int) -> Random:
    """Give the source of random choices of one kind under a key, the same in every process.

    Args:
        what: the kind.
        key: whole numbers.

    Example:
        >>> draw_for("crop", 0, 1).random() == draw_for("crop", 0, 1).random()
        True
    """
    return Random(f"flexvideo {what} {' '.join(map(str, key))}")
