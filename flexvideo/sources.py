"""Where a checkpoint is: which file of a folder holds the weights, and what was recorded beside it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from flexvideo.errors import CheckpointError
from flexvideo.modelconfig import ModelConfig, parse_config
from flexvideo.official import pretrained
from flexvideo.statedict import Interpretation, interpret, some
from flexvideo.weights import SUFFIXES, read_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEADER_KEY = "flexvideo"
_SHARD = re.compile(r"-\d+-of-\d+\.")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Args:
        weights: the weight file.
        config: config.json beside it; None when there is none.
        name: how to call it in messages: a path, or repository, commit and file.
        remark: what is known to be wrong with it; empty when nothing is.
    """

    weights: Path
    config: Path | None
    name: str
    remark: str = ""


@dataclass(frozen=True)
class Remote:
    """A checkpoint on the Hugging Face Hub.

    Args:
        repo_id: "owner/name".
        filename: the weight file; None where the repository has one that is told by its name.
    """

    repo_id: str
    filename: str | None


def locate(repo_or_path: str | os.PathLike[str], filename: str | None) -> Source | Remote:
    """Tell files, folders, repositories and names of published files apart; what exists here comes first.

    Args:
        repo_or_path: any of them.
        filename: the file wanted in a folder or repository.

    Raises:
        CheckpointError: none of them, or a folder without (one choice of) weights.
    """
    name = os.fspath(repo_or_path)
    try:
        path = Path(name).expanduser()
        names = [found.name for found in sorted(path.iterdir()) if found.is_file()] if path.is_dir() else None
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise CheckpointError(f"{name} cannot be looked up: {reason}.") from error
    if names is not None:
        return _beside_config(path / choose_file(names, filename, where=str(path)))
    if exists:
        if filename is not None:
            raise CheckpointError(f"{path} is a file: filename={filename!r} is for folders and repositories.")
        return _beside_config(path)
    if known := pretrained(name):
        return Remote(known.repo_id, filename or known.filename)
    if _REPOSITORY.fullmatch(name) and not name.endswith(SUFFIXES):
        return Remote(name, filename)
    raise CheckpointError(
        f"{name} is no file or folder here, no repository (owner/name) and no name in list_pretrained()."
    )


def choose_file(names: list[str], filename: str | None, *, where: str) -> str:
    """Say which file of a folder or repository holds the weights.

    Args:
        names: the files that are there.
        filename: the one asked for, if any.
        where: how to call the place in messages.

    Raises:
        CheckpointError: none, several, or a name that leads out of the place.

    Example:
        >>> choose_file(["README.md", "weights.pth"], None, where="a folder")
        'weights.pth'
    """
    if filename is not None:
        if not is_inside(filename):
            raise CheckpointError(f"{where}: filename={filename!r} leads out of it and is refused.")
        return filename
    weights = [name for name in names if name.lower().endswith(SUFFIXES)]
    if WEIGHTS in weights:
        return WEIGHTS
    if len(weights) == 1:
        return weights[0]
    if shards := [name for name in weights if _SHARD.search(name)]:
        raise CheckpointError(
            f"{where} holds its weights in {len(shards)} parts, {some(shards)}, which are not put together "
            "here: save them as one file."
        )
    if weights:
        raise CheckpointError(
            f"{where} holds {len(weights)} weight files, {some(weights, most=9)}: pass filename=."
        )
    raise CheckpointError(
        f"{where} holds no weights: looked for {WEIGHTS} or a file ending in {some(SUFFIXES, most=9)}, "
        f"found {some(names)}."
    )


def is_inside(name: str) -> bool:
    """Whether a name in a folder or repository stays inside it, on any system.

    Example:
        >>> is_inside("a/model.pth"), is_inside("../model.pth"), is_inside("C:\\\\model.pth")
        (True, False, False)
    """
    parts = re.split(r"[/\\]", name)
    on_a_drive = re.match(r"[A-Za-z]:", name) is not None
    return not on_a_drive and "\0" not in name and all(part not in ("", ".", "..") for part in parts)


def read(source: Source, *, shapes_only: bool = False) -> tuple[Interpretation, ModelConfig]:
    """Return the tensors of a checkpoint in the official layout, and what was recorded beside them.

    Args:
        source: the checkpoint.
        shapes_only: give tensors on the "meta" device, without their values.

    Raises:
        CheckpointError: it cannot be read, or is not a VideoMamba.
    """
    raw, header = read_weights(source.weights, shapes_only=shapes_only)
    config = recorded(source.name, header.get(HEADER_KEY), source.config)
    return interpret(raw, where=source.name, img_size=config.img_size), config


def recorded(name: str, header: str | None, config: Path | None) -> ModelConfig:
    """What was recorded with the weights: in config.json beside them or in their own header.

    Beside model.safetensors the file counts, which people edit; any other weight file may be a stranger to
    the config.json in its folder, so that its own header counts first.

    Args:
        name: of the checkpoint; it ends in the name of the weight file.
        header: text in the header of the weight file, if any.
        config: config.json, if any.
    """
    beside = None if config is None else parse_config(_text(config), where=str(config))
    inside = None if header is None else parse_config(header, where=f"the header of {name}")
    is_usual = re.split(r"[/\\]", name)[-1] == WEIGHTS
    first, second = (beside, inside) if is_usual else (inside, beside)
    return first or second or ModelConfig({})


def _beside_config(weights: Path) -> Source:
    config, known = weights.parent / CONFIG, pretrained(weights.name)
    return Source(weights, config if config.is_file() else None, str(weights), known.defect if known else "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
