"""The official VideoMamba layout: from the names and shapes of tensors to the model that they belong to.

Pure functions of a mapping: no file is read and no model is built here, and tensors on the "meta" device
serve as well as real ones, so that a header alone is enough to say what a checkpoint is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexvideo.errors import CheckpointError
from flexvideo.geometry import Base
from flexvideo.layout import ANCHOR, Layout

WRAPPERS = ("model", "module", "state_dict")
DEEPEST = 4  # wrappers in wrappers; a pickle can hold itself
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # no 8-bit: those come with scales
IMAGE_FRAMES = 8  # what the official constructor gives a model that starts from image weights

PRETRAINING_ONLY = {
    "clip_decoder.": "the decoder of masked pretraining",
    "clip_pos_embed": "a position table of masked pretraining",
    "clip_img_pos_embed": "a position table of multimodal pretraining",
    "pool_norm.": "the pooling norm of multimodal pretraining",
}


@dataclass(frozen=True)
class Interpretation:
    """What a state dict turned out to be.

    Args:
        layout: the model that it belongs to.
        state: the tensors under the names of the official video model.
        translated: what was renamed or reshaped without loss, a clause each.
        lost: what was left out or made up, a clause each: a user wants to know.
    """

    layout: Layout
    state: dict[str, Tensor]
    translated: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class _Notes:
    def __init__(self) -> None:
        self.translated: list[str] = []
        self.lost: list[str] = []


def interpret(
    raw: Mapping[Any, Any], *, where: str = "the state dict", img_size: tuple[int, int] | None = None
) -> Interpretation:
    """Say which VideoMamba a state dict belongs to, and bring its tensors into the layout of that model.

    Wrappers ("model", "state_dict", any other), prefixes ("backbone.", "_orig_mod.", any other), names of
    masked pretraining and 2-D patch embeddings of image models are understood. Depth, width, frames,
    frame size, patch, tubelet and classes come from the shapes alone. Vim and VideoMambaPro files carry the
    very same names and shapes with other mathematics behind them: no reader can tell them apart.

    Args:
        raw: what the file holds.
        where: how to call it in messages.
        img_size: frame height and width in pixels, needed only where the grid of patches is not square.

    Raises:
        CheckpointError: not a VideoMamba, or tensors that contradict each other: all of them are named.

    Example:
        >>> import flexvideo
        >>> state = flexvideo.VideoMamba(img_size=32, depth=1, embed_dim=16, num_classes=5).state_dict()
        >>> interpret({"model": state}).layout.num_classes
        5
    """
    notes = _Notes()
    state = _strip(_tensors(raw, where, notes), where, notes)
    state = _inflate(_drop_pretraining(state, notes), notes)
    layout = _infer(state, where, img_size)
    if layout.num_classes == 0:
        notes.lost.append("there is no head, so num_classes is 0 and model(clip) returns features")
    _check(state, layout.shapes(), where)
    return Interpretation(layout, state, tuple(notes.translated), tuple(notes.lost))


def some(items: Iterable[object], *, most: int = 4) -> str:
    """The first few of a list, and how many more there are.

    Example:
        >>> some("abcdef", most=2)
        'a, b and 4 more'
    """
    shown = [str(item) for item in items]
    rest = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "nothing") + rest


def _tensors(raw: Mapping[Any, Any], where: str, notes: _Notes) -> dict[str, Tensor]:
    """The innermost mapping of names to tensors."""
    for _ in range(DEEPEST):
        if (wrapper := _wrapper(raw, where)) is None:
            break
        notes.translated.append(f"the weights are under {wrapper!r}")
        if beside := [key for key in raw if key != wrapper]:
            notes.translated.append(f"left aside what is not under {wrapper!r}: {some(beside)}")
        raw = raw[wrapper]
    tensors = {str(key): value for key, value in raw.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{where} holds no tensors: a state dict is expected, bare or under one of "
            f"{', '.join(map(repr, WRAPPERS))}; its keys are {some(raw)}."
        )
    if others := [key for key in raw if str(key) not in tensors]:
        notes.lost.append(f"left out what is no tensor: {some(others)}")
    return tensors


def _wrapper(raw: Mapping[Any, Any], where: str) -> Any:
    """Key of the mapping inside that is the state dict; None when there is none inside."""
    inside = {key: value for key, value in raw.items() if isinstance(value, Mapping)}
    if usual := [key for key in WRAPPERS if key in inside]:
        return usual[0]
    holding = [key for key in inside if any(str(name).endswith(ANCHOR) for name in inside[key])]
    if len(holding) > 1:
        raise CheckpointError(
            f"{where} holds {len(holding)} state dicts, under {', '.join(map(repr, holding))}: "
            "save the one that you want to a file of its own."
        )
    return holding[0] if holding else None


def _strip(state: dict[str, Tensor], where: str, notes: _Notes) -> dict[str, Tensor]:
    """The tensors of the one model inside, without the prefix that wrappers have put before them."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    prefixes = [key.removesuffix(ANCHOR) for key in state if f".{key}".endswith(f".{ANCHOR}")]
    if not prefixes:
        raise CheckpointError(
            f"{where} is no VideoMamba: looked for {ANCHOR} under any prefix, found {some(_named(state))}."
        )
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{where} holds {len(prefixes)} models, under the prefixes {', '.join(map(repr, prefixes))}: "
            "save the one that you want to a file of its own."
        )
    prefix = prefixes[0]
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # The official fine-tuning script, too, takes a head that stands beside a prefixed backbone.
    heads = {key: state[key] for key in ("head.weight", "head.bias") if key in state and key not in inside}
    if prefix:
        notes.translated.append(f"removed the prefix {prefix!r}")
    if outside := [key for key in state if not key.startswith(prefix) and key not in heads]:
        notes.lost.append(f"left out {len(outside)} tensors outside {prefix!r}: {some(outside)}")
    return inside | heads


def _drop_pretraining(state: dict[str, Tensor], notes: _Notes) -> dict[str, Tensor]:
    """The tensors without those that only pretraining uses, the final norm under its usual name."""
    for start, meaning in PRETRAINING_ONLY.items():
        if gone := [key for key in state if key.startswith(start)]:
            notes.lost.append(f"left out {meaning} ({some(gone)})")
            state = {key: value for key, value in state.items() if not key.startswith(start)}
    if "norm.weight" in state and "norm_f.weight" not in state:
        notes.translated.append("took norm.weight, as masked pretraining calls it, for norm_f.weight")
        state = {"norm_f.weight" if key == "norm.weight" else key: value for key, value in state.items()}
    return state


def _inflate(state: dict[str, Tensor], notes: _Notes) -> dict[str, Tensor]:
    """An image model as a video model with tubelets of one frame and an empty temporal table."""
    kernel = state[ANCHOR]
    if kernel.ndim != 4:
        return state
    notes.translated.append(f"made the 2-D {ANCHOR} {tuple(kernel.shape)} 3-D, one frame a tubelet")
    state = state | {ANCHOR: kernel.unsqueeze(2)}
    if "temporal_pos_embedding" not in state:
        notes.lost.append(f"these are image weights, so the temporal table is {IMAGE_FRAMES} rows of zeros")
        state["temporal_pos_embedding"] = kernel.new_zeros(1, IMAGE_FRAMES, kernel.shape[0])
    return state


def _infer(state: Mapping[str, Tensor], where: str, img_size: tuple[int, int] | None) -> Layout:
    width, channels, tubelet, *patch = _shape(
        state, ANCHOR, "width, channels, tubelet, patch height, patch width", where
    )
    _, tokens, _ = _shape(state, "pos_embed", "1, tokens, width", where)
    _, steps, _ = _shape(state, "temporal_pos_embedding", "1, steps, width", where)
    height, breadth = _frame_size(tokens - 1, (patch[0], patch[1]), where, img_size)
    base = Base(steps * tubelet, height, breadth, (patch[0], patch[1]), tubelet)
    head = state.get("head.weight", state.get("head.bias", torch.empty(0)))
    return Layout(base, _depth(state, where), width, channels, head.shape[0] if head.ndim else 0)


def _frame_size(
    tokens: int, patch: tuple[int, int], where: str, img_size: tuple[int, int] | None
) -> tuple[int, int]:
    """Height and width in pixels of the frames that give so many patches."""
    if img_size is not None:
        rows, columns = img_size[0] // patch[0], img_size[1] // patch[1]
        if rows * columns != tokens:
            raise CheckpointError(
                f"{where}: frames of {img_size[0]} x {img_size[1]} pixels give {rows} x {columns} patches of "
                f"{patch[0]} x {patch[1]}, but pos_embed has {tokens} rows beside the class token."
            )
        return img_size
    side = math.isqrt(tokens)
    if side * side != tokens or side == 0:
        raise CheckpointError(
            f"{where}: pos_embed has {tokens} rows beside the class token, which is no square grid, and its "
            'sides cannot be told: write {"library": "flexvideo", "model": {"img_size": [height, width]}} to '
            "config.json in the same folder."
        )
    return side * patch[0], side * patch[1]


def _depth(state: Mapping[str, Tensor], where: str) -> int:
    indices = {key.split(".")[1] for key in state if key.startswith("layers.")}
    if gaps := [f"layers.{index}" for index in range(len(indices)) if str(index) not in indices]:
        raise CheckpointError(
            f"{where}: {some(gaps)} is missing among {len(indices)} layers, {some(sorted(indices))}."
        )
    return len(indices)


def _shape(state: Mapping[str, Tensor], key: str, meaning: str, where: str) -> tuple[int, ...]:
    """Shape of a tensor that tells a size."""
    if key not in state:
        raise CheckpointError(f"{where} is no VideoMamba: {key} is missing, found {some(_named(state))}.")
    shape = tuple(state[key].shape)
    if len(shape) != meaning.count(",") + 1 or 0 in shape:
        raise CheckpointError(f"{where}: {key} is {shape}, expected ({meaning}).")
    return shape


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse a state dict that is not exactly the tensors of one model."""
    both = [(key, tuple(state[key].shape), shape) for key, shape in shapes.items() if key in state]
    found = {
        "wrong shape": [f"{key} {got}, expected {shape}" for key, got, shape in both if got != shape],
        "missing": [f"{key} {shape}" for key, shape in shapes.items() if key not in state],
        "unknown": _named({key: value for key, value in state.items() if key not in shapes}),
        "not floating point": [f"{k} ({v.dtype})" for k, v in state.items() if v.dtype not in FLOATS],
    }
    if any(found.values()):
        listed = "; ".join(f"{title}: {some(items)}" for title, items in found.items() if items)
        raise CheckpointError(f"{where} does not fit a VideoMamba. {listed}.")


def _named(state: Mapping[str, Tensor]) -> list[str]:
    return [f"{key} {tuple(value.shape)}" for key, value in state.items()]
