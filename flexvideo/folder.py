"""The folder of a model, as a repository of the Hub has it: weights, config.json and a card."""

import hashlib
import json
import os
import re
import warnings
from pathlib import Path

from flexvideo.checkpoints import load
from flexvideo.description import description
from flexvideo.errors import CheckpointError, CheckpointWarning, ConfigError
from flexvideo.modelcard import MARK, Results, licence_in, model_card
from flexvideo.modelconfig import LICENCE, is_flexvideos, is_licence, parse_config
from flexvideo.models import VideoMamba
from flexvideo.output import require_file
from flexvideo.saving import config_text, save
from flexvideo.sources import CONFIG, HEADER_KEY, WEIGHTS, path_text
from flexvideo.statedict import interpret
from flexvideo.weights import SUFFIXES, require_values, write_atomically, write_safetensors

CARD, RESULTS = "README.md", "results.json"


def save_folder(
    model: VideoMamba,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    results: str | os.PathLike[str] | Results | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Results | None:
    """Write a model to a folder that `load` and the Hub read; a card that somebody else wrote stays.

    Args:
        model: plain or flexible.
        folder: made when it is not there.
        name: what the card says to load; the folder by default.
        results: measurements, as data or as a JSON file; those of the folder where its weights are the same.
        license: identifier of the weights' licence; the model's own or that of the card there by default.
        overwrite: also a config.json that is not ours.

    Returns:
        The measurements that the card shows.

    Raises:
        CheckpointError: the folder cannot be written, holds a config.json of something else, or `results`
            cannot be read.
        ConfigError: a `license` that is no identifier.
    """
    folder = _target_folder(folder, overwrite=overwrite)
    name = name or str(folder)
    license = _licence(model, license, folder / CARD, name=name)
    measured = _results(results)
    text, state = config_text(model, license=license), model.state_dict()
    require_values(state, folder / WEIGHTS)
    beside = measured is None and (folder / RESULTS).is_file()
    before = _digest(folder / WEIGHTS) if beside else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without it the header of the weights counts: old config and new weights never meet.
        (folder / CONFIG).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}.") from error
    write_safetensors(folder / WEIGHTS, state, text={HEADER_KEY: text})
    write_atomically(folder / CONFIG, text.encode())
    if measured is not None:
        write_atomically(folder / RESULTS, (json.dumps(measured, indent=2) + "\n").encode())
    elif beside:
        measured = _results_of(folder, before)
    if MARK in (_text(folder / CARD) or MARK):
        card = _card(model, text, name=name, results=measured)
        write_atomically(folder / CARD, card.encode())
    return measured


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    overwrite: bool = False,
) -> str:
    """Rewrite a checkpoint: to a .safetensors file, to a .pth file for the official code, or to a folder.

    Args:
        source: whatever `load` takes.
        target: a file ending in .safetensors, .pth, .pt, .bin or .ckpt, or else a folder.
        filename: as in `load`.
        revision: as in `load`.
        token: as in `load`.
        cache_dir: as in `load`.
        local_files_only: as in `load`.
        overwrite: write over a target that is there already.

    Returns:
        What was read: a path, or repository, commit and file.

    Raises:
        CheckpointError: the source cannot be read, or the target cannot be written.
        ConfigError: the target is there already, or likely a slip.
        HubError: the Hub refuses, lacks the file, or cannot be reached.
    """
    is_file = _names_file(path_text(target, "the target"), overwrite=overwrite)
    model = load(
        source,
        filename=filename,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    if is_file:
        save(model, target)
    else:
        save_folder(model, target, overwrite=overwrite)
    return str(model.source)


def _names_file(target: str, *, overwrite: bool) -> bool:
    """Whether a target is a file or a folder; what is likely a slip is refused."""
    path = Path(target)
    is_file = path.suffix.lower() in SUFFIXES and not target.endswith("/")
    if is_file:
        taken = require_file(path).exists()
    elif re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) and not target.endswith("/") and not path.is_dir():
        raise ConfigError(
            f"{target} ends in none of {', '.join(SUFFIXES)}: for a folder of that name, write {target}/."
        )
    else:
        taken = any((path / part).exists() for part in (WEIGHTS, CONFIG))
    if taken and not overwrite:
        raise ConfigError(f"{target} is there already: give another target, or overwrite=True to replace it.")
    return is_file


def _target_folder(folder: object, *, overwrite: bool) -> Path:
    """The folder to write, in which nothing of somebody else's is lost."""
    path = Path(path_text(folder, "the folder to write"))
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise CheckpointError(
            f"{path} has the name of a file, and this writes a folder: for one file, "
            f"flexvideo.save(model, {str(path)!r})."
        )
    config = path / CONFIG
    if config.is_file() and not overwrite and not _is_our_config(config):
        raise CheckpointError(
            f"{config} is of something else than flexvideo and would be lost: save to another folder, or "
            "move it away."
        )
    return path


def _is_our_config(config: Path) -> bool:
    try:
        return is_flexvideos(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return False


def _licence(model: VideoMamba, license: str | None, card: Path, *, name: str) -> str | None:
    """The licence to write: the one given, the model's own, or that of the card which is there."""
    if license is not None and not is_licence(license):
        raise ConfigError(f"license must be {LICENCE}, got {license!r}.")
    text = _text(card)
    shown = licence_in(text)
    chosen = license or model.license or shown
    if chosen == shown:
        return chosen
    if text is not None and MARK not in text:
        notice = f"stays as somebody wrote it: write `license: {chosen}` there yourself"
    elif shown and license is None:
        notice = f"says license {shown}, the model carries {chosen}, which is written: license= decides"
    else:
        return chosen
    warnings.warn(f"{CARD} of {name} {notice}.", CheckpointWarning, stacklevel=4)
    return chosen


def _text(card: Path) -> str | None:
    """What a card says; None when there is none."""
    return card.read_text(encoding="utf-8", errors="replace") if card.exists() else None


def _card(model: VideoMamba, text: str, *, name: str, results: Results | None) -> str:
    config = parse_config(text, where=CONFIG)
    assert config is not None
    tensors = interpret(model.state_dict(), where="the model", img_size=config.img_size)
    return model_card(description(tensors, config, name=name), config, name=name, results=results)


def _results_of(folder: Path, before: str | None) -> Results | None:
    """What results.json of a folder says, unless it was measured with other weights than are there now."""
    if before not in (None, _digest(folder / WEIGHTS)):
        text = f"{folder / RESULTS} was there before these weights and is left out of the card."
        warnings.warn(text, CheckpointWarning, stacklevel=4)
        return None
    return _results(folder / RESULTS)


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _results(results: str | os.PathLike[str] | Results | None) -> Results | None:
    """Measurements as plain data: one mapping or a list of them."""
    if results is None:
        return None
    is_file = isinstance(results, str | os.PathLike)
    where = f"results {results}" if is_file else "results"
    try:
        measured = json.loads(Path(results).read_text(encoding="utf-8") if is_file else json.dumps(results))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where} cannot be read: {error}.") from error
    rows = measured if isinstance(measured, list) else [measured]
    if not all(isinstance(row, dict) for row in rows):
        raise CheckpointError(f"{where} must hold one JSON object or a list of objects.")
    return measured
