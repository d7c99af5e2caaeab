"""Where a checkpoint is: which file of a folder holds the weights, and what was recorded beside it."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flexvideo.errors import CheckpointError
from flexvideo.modelconfig import ModelConfig, parse_config
from flexvideo.nearest import did_you_mean
from flexvideo.official import REPOSITORY, list_pretrained, pretrained
from flexvideo.statedict import Interpretation, interpret, some
from flexvideo.weights import SUFFIXES, read_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEADER_KEY = "flexvideo"
_SHARD = re.compile(r"-\d+-of-\d+\.")
_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
_REPOSITORY = re.compile(_NAME)
# An address of the Hub, or what `model.source` says.
_PASTED = re.compile(
    rf"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)?(?P<name>{_NAME})(?:@(?P<commit>[^/]+))?"
    r"(?:/(?:resolve|blob|tree)/(?P<branch>[^/]+))?(?:/+(?P<filename>[^?]+?))?/*(?:\?.*)?"
)


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Args:
        weights: the weight file.
        config: the config.json that belongs to it; None when none does.
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


def locate(
    repo_or_path: str | os.PathLike[str], filename: str | None, revision: str | None = None
) -> Source | Remote:
    """Tell files, folders, repositories and names of published files apart; what exists here comes first.

    Args:
        repo_or_path: any of them.
        filename: the file wanted in a folder or repository.
        revision: that was asked for, which only a repository has.

    Raises:
        CheckpointError: none of them, or a folder without (one choice of) weights.
    """
    name = path_text(repo_or_path, "a checkpoint")
    for title, text in (("filename", filename), ("revision", revision)):
        if text is not None and (not isinstance(text, str) or not text):
            raise CheckpointError(f"{title}= must be a text that is not empty, or left out; got {text!r}.")
    try:
        path = Path(name).expanduser()
        names = [found.name for found in sorted(path.iterdir()) if found.is_file()] if path.is_dir() else None
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise CheckpointError(f"{name} cannot be looked up: {reason}.") from error
    if exists:
        return _local(path, names, filename, revision)
    if known := pretrained(name):
        return Remote(known.repo_id, filename or known.filename)
    if _REPOSITORY.fullmatch(name) and not name.endswith(SUFFIXES):
        known = pretrained(filename) if filename and name == REPOSITORY else None
        return Remote(name, known.filename if known else filename)
    raise CheckpointError(
        f"{name} is no file or folder here, no repository (owner/name) and no name in list_pretrained()."
        f"{_hint(name)}"
    )


def path_text(path: object, what: str) -> str:
    """The text of a path; an empty one would stand for the current folder.

    Args:
        path: what the caller gave.
        what: that it is the path of, to call it in messages.

    Raises:
        CheckpointError: empty, or no path.

    Example:
        >>> path_text(Path("runs/m.pth"), "a checkpoint")
        'runs/m.pth'
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        name = getattr(path, "name", None)
        instead = "" if name is None else f"; give its name, {name!r}"
        raise CheckpointError(f"The name of {what} must be a text or a path, got {path!r}{instead}.")
    if not text.strip():
        raise CheckpointError(f"The name of {what} is empty: write '.' for the current folder.")
    return text


def _local(path: Path, names: list[str] | None, filename: str | None, revision: str | None) -> Source:
    """A file that is here, or the one wanted of a folder."""
    if revision is not None:
        raise CheckpointError(
            f"{path} is here, and revision={revision!r} is for repositories of the Hub: leave it out, or run "
            "this where no file or folder has the repository's name."
        )
    if names is None:
        if filename is not None:
            raise CheckpointError(f"{path} is a file: filename={filename!r} is for folders and repositories.")
        weights = path
    else:
        weights = path / choose_file(names, filename, where=f"the local folder {path}")
        if not weights.exists():
            raise CheckpointError(f"{path} has no file {filename}; it has {some(names, most=9)}.")
    beside = [
        found.name for found in (weights.with_name(CONFIG), weights.with_name(WEIGHTS)) if found.is_file()
    ]
    config, known = config_of(weights.name, beside), pretrained(weights.name)
    remark = known.defect if known else ""
    return Source(weights, weights.with_name(config) if config else None, str(weights), remark)


def _hint(name: str) -> str:
    """What the caller may have meant, as a sentence of its own; empty where nothing is near."""
    if (pasted := _PASTED.fullmatch(name.strip())) and pasted["name"] != name:
        revision = pasted["commit"] or pasted["branch"]
        parts = [
            *([f"filename={pasted['filename']!r}"] if pasted["filename"] else []),
            *([f"revision={revision!r}"] if revision not in (None, "main") else []),
        ]
        options = f" with {' and '.join(parts)}" if parts else ""
        return f" Did you mean {pasted['name']!r}{options}?"
    return did_you_mean(name, [known.name for known in list_pretrained()])


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


def config_of(weights: str, names: Collection[str]) -> str | None:
    """Name of the config.json that belongs to a weight file; None when there is none.

    It lies in the same folder. Where model.safetensors is there too, it belongs to that file and to no other.

    Args:
        weights: name of the file in its folder or repository.
        names: of the files there.

    Example:
        >>> config_of("v2/a.pth", {"v2/a.pth", "v2/config.json"})
        'v2/config.json'
        >>> config_of("a.pth", {"a.pth", "config.json", "model.safetensors"}) is None
        True
    """
    folder = PurePosixPath(weights).parent
    config, usual = (folder / CONFIG).as_posix(), (folder / WEIGHTS).as_posix()
    return config if config in names and (weights == usual or usual not in names) else None


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
    try:
        raw, header = read_weights(source.weights, shapes_only=shapes_only)
    except CheckpointError as error:
        if source.name == str(source.weights):
            raise
        raise CheckpointError(f"{source.name}: {error}") from error
    config = recorded(source.name, header.get(HEADER_KEY), source.config)
    return interpret(raw, where=source.name, img_size=config.img_size), config


def recorded(name: str, header: str | None, config: Path | None) -> ModelConfig:
    """What was recorded with the weights: in config.json beside them or in their own header.

    Beside model.safetensors the file counts, which people edit; any other weight file may be a stranger to
    the config.json in its folder, so that its own header counts first.

    Args:
        name: of the checkpoint; it ends in the name of the weight file.
        header: text in the header of the weight file, if any.
        config: the config.json that belongs to it, if any.
    """
    last = re.split(r"[/\\]", name)[-1]
    beside = None if config is None else parse_config(_text(config), where=name.removesuffix(last) + CONFIG)
    inside = None if header is None else parse_config(header, where=f"the header of {name}")
    is_usual = last == WEIGHTS
    first, second = (beside, inside) if is_usual else (inside, beside)
    return first or second or ModelConfig({})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
