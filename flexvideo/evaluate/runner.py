"""Clips of one shape through a model, so many at a time that its memory lasts."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from flexvideo.data.clips import IMAGENET_MEAN, IMAGENET_STD
from flexvideo.data.room import lacks_memory
from flexvideo.errors import ConfigError, GeometryError, UnsupportedModelError
from flexvideo.evaluate.grid import Cell, geometry_of
from flexvideo.evaluate.native import NativeSize
from flexvideo.features import require_finite
from flexvideo.models.hub_mixin import HubMixin

Output = Literal["cls", "mean", "scores"]


class Runner:
    """Run clips of any cell through a model.

    Args:
        model: in evaluation mode.
        grid: cells that will come.
        output: "cls", what `forward_features` gives; "mean", the average of its patch tokens; "scores", class
            probabilities.
        tokens: in one forward pass, where more than one clip is in it.

    Raises:
        ConfigError: an unknown output, or no tokens.
        UnsupportedModelError: a model that has no such output.
        GeometryError: a cell that the policy cannot run.
    """

    def __init__(self, model: nn.Module, grid: Sequence[Cell], *, output: Output, tokens: int) -> None:
        if output not in get_args(Output) or tokens < 1:
            raise ConfigError(
                f"`output` is one of {', '.join(get_args(Output))} and `tokens` at least 1; "
                f"got {output!r} and {tokens}."
            )
        inner = model.model if isinstance(model, NativeSize) else model
        if output != "scores" and not hasattr(inner, "forward_features"):
            raise UnsupportedModelError(
                f"{type(inner).__name__} has no method `forward_features`, which is to give one vector a "
                "clip."
            )
        self._model: Any = model
        self._output = output
        self._tokens = {cell: 1 + geometry_of(model, cell).tokens for cell in grid}
        self.capacity = {cell: max(1, tokens // count) for cell, count in self._tokens.items()}
        own = isinstance(inner, HubMixin)
        self.mean, self.std = (inner.mean, inner.std) if own else (IMAGENET_MEAN, IMAGENET_STD)

    def __call__(self, cell: Cell, clips: Sequence[UInt8[Tensor, "t r r 3"]]) -> Float[Tensor, "b d"]:
        """Outputs for clips of a cell, in float32 on the CPU.

        Raises:
            GeometryError: they do not fit into memory; says what would.
            UnsupportedModelError: the model gives something else than one vector of numbers a clip.
        """
        try:
            return self._outputs(cell, torch.stack(list(clips)))
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
        raise GeometryError(self._what_fits(cell, len(clips)))

    def _outputs(self, cell: Cell, frames: UInt8[Tensor, "b t r r 3"]) -> Float[Tensor, "b d"]:
        weight = next(self._model.parameters())
        clips = self._normalised(frames.to(weight.device)).to(weight.dtype)
        options: dict[str, Any] = {} if cell.patch is None else {"patch": cell.patch}
        if self._output == "cls":
            found = self._model.forward_features(clips, **options)
        elif self._output == "mean":
            found = self._model.forward_features(clips, all_tokens=True, **options)[:, 1:].mean(1)
        else:
            found = self._model(clips, **options)
        if found.ndim != 2 or len(found) != len(clips):
            raise UnsupportedModelError(
                f"{type(self._model).__name__} gave {tuple(found.shape)} for {len(clips)} clips, not "
                f"({len(clips)}, d), one vector a clip."
            )
        found = found.float().cpu()
        require_finite(found, self._model, at=str(cell))
        return found.softmax(1) if self._output == "scores" else found

    def _normalised(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 t h w"]:
        """As `flexvideo.data.clips.normalize`, on any device."""
        shift, scale = (
            255 * torch.tensor(each).view(-1, 1, 1, 1).to(frames.device) for each in (self.mean, self.std)
        )
        values = frames.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        return values.sub_(shift).div_(scale)

    def _what_fits(self, cell: Cell, clips: int) -> str:
        """Say which clips were too many, or too large, and what is not, by trying."""
        device = next(self._model.parameters()).device
        what = f"{cell} ({self._tokens[cell]:,} tokens a clip) does not fit into the memory of {device}"
        if clips > 1 and self._fits(cell):
            return (
                f"{what} with {clips} clips at a time, but does with 1: set `tokens` to {self._tokens[cell]}."
            )
        smaller = [other for other in self._tokens if self._size(other) < self._size(cell)]
        for other in sorted(smaller, key=self._size, reverse=True):
            if self._fits(other):
                return (
                    f"{what}; {other} ({self._tokens[other]:,} tokens) does: leave out what is larger, or "
                    "use static tokens, which keeps the number of tokens of a frame."
                )
        return f"{what}, nor does any smaller cell of this grid: use fewer frames or smaller ones."

    def _size(self, cell: Cell) -> tuple[int, int]:
        """Tokens, and pixels of a frame count: where patches grow with the frames, these alone tell."""
        return self._tokens[cell], cell.frames * cell.size**2

    def _fits(self, cell: Cell) -> bool:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            self._outputs(cell, torch.zeros(1, cell.frames, cell.size, cell.size, 3, dtype=torch.uint8))
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            return False
        return True
