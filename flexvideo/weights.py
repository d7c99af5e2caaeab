"""Weight files: reading without running anything that is in them, writing all or nothing."""

import argparse
import io
import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from flexvideo.errors import CheckpointError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
HEADER_LIMIT = 100_000_000  # bytes; the safetensors format has this limit too
LFS_POINTER = b"version https://git-lfs"
# What training scripts keep beside the weights: their command line, and best scores as numpy has them, which
# old and new versions of it call by different names. Rebuilding any of these calls nothing else.
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilBHILefd"},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_weights(path: Path, *, shapes_only: bool = False) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """Return what a weight file holds and the text that a safetensors header carries beside it.

    The format is told by the first bytes, not by the name. A pickle is read with `weights_only=True`:
    tensors, numbers and texts; one that would call any code is refused.

    Args:
        path: a .safetensors, .pth, .pt or .bin file.
        shapes_only: give tensors on the "meta" device, without their values.

    Raises:
        CheckpointError: the file is missing, empty, truncated, no weight file, or holds code.
    """
    head = _first_bytes(path)
    device = "meta" if shapes_only else "cpu"
    # First of all: the length of a header may begin with the very byte that a pickle begins with.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT:
        return _read_safetensors(path, device)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _read_pickle(path, device), {}
    raise CheckpointError(f"{path} is no weight file: it starts with {head[:16]!r}.")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes).")
    if head.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights themselves: run `git lfs pull` in its repository."
        )
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise CheckpointError(f"{path} is a web page, not a weight file: download the file itself.")
    return head


def _read_pickle(path: Path, device: str) -> Mapping[Any, Any]:
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            content = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # damaged bytes make the reader fail in a dozen ways
            raise CheckpointError(_why_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a state dict.")
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    """One sentence for what torch.load says in twenty lines."""
    text = str(error)
    if "TorchScript" in text:
        return f"{path} is a TorchScript program, not a state dict: save its state_dict() instead."
    if code := re.search(r"GLOBAL (\S+)", text):
        return (
            f"{path} is refused: its pickle calls {code[1]}, and reading it would run that code. If you "
            "trust where it comes from, load it with torch yourself and save its state dict alone."
        )
    if unread := re.search(r"WeightsUnpickler error:\s*(.+)", text):
        text = f"no pickle of tensors as torch.save writes it ({unread[1]})"
    reason = text.splitlines()[0] if text else type(error).__name__
    size = path.stat().st_size
    return f"{path} ({size} bytes) is truncated, damaged or of another kind: {reason.rstrip('.')}."


def _read_safetensors(path: Path, device: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            text = dict(file.metadata() or {})
            if device == "cpu":
                # A copy of its own: the file is mapped, and may change under a model that trains for days.
                return {name: file.get_tensor(name).clone() for name in names}, text
            slices = {name: file.get_slice(name) for name in names}
            return {name: empty_tensor(s.get_dtype(), s.get_shape()) for name, s in slices.items()}, text
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {error}."
        ) from error


def empty_tensor(dtype: str, shape: list[int]) -> Tensor:
    """A tensor without values, of a safetensors header's dtype and shape."""
    return torch.empty(shape, dtype=_DTYPES.get(dtype, torch.int8), device="meta")


def is_plain(value: Tensor) -> bool:
    """Whether a tensor has all its values here: none is on "meta", sparse, sharded or otherwise packed."""
    return type(value.detach()) is Tensor and not value.is_meta and value.layout is torch.strided


def write_safetensors(path: Path, state: Mapping[str, Tensor], *, text: Mapping[str, str]) -> None:
    """Write tensors and text to a .safetensors file: the same bytes for the same content, all or nothing.

    Args:
        path: the file.
        state: names to tensors on any device.
        text: at most one entry: the order of several would be left to chance.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_atomically(path, serialize(_on_cpu(state, path), metadata=dict(text)))


def write_pickle(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a bare state dict as torch.save does: the same bytes for the same content, all or nothing.

    Args:
        path: the file.
        state: names to tensors on any device.

    Raises:
        CheckpointError: it cannot be written.
    """
    # In memory: torch.save puts the name of a file into its archive, and hides why a disk refuses.
    archive = io.BytesIO()
    torch.save(_on_cpu(state, path), archive)
    write_atomically(path, archive.getvalue())


def require_values(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not whole and here.

    Args:
        state: names to tensors.
        path: where they are to be written.

    Raises:
        CheckpointError: one is on "meta", sharded or otherwise packed.
    """
    for name, value in state.items():
        if not is_plain(value):
            raise CheckpointError(
                f"{path} cannot be written: {name} is a {type(value).__name__} on {value.device} without "
                "all of its values here; gather a sharded model, or load its weights, first."
            )


def _on_cpu(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    require_values(state, path)
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside `path`, and put it in place only when all of it is on the disk.

    Raises:
        CheckpointError: no room, no permission or no folder; `path` is what it was before.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            part.unlink()
