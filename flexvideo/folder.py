"""The folder of a model, as a repository of the Hub has it: weights, config.json and a card."""

import hashlib
import json
import os
import warnings
from pathlib import Path

from flexvideo.checkpoints import config_text, load, save
from flexvideo.description import description
from flexvideo.errors import CheckpointError, CheckpointWarning
from flexvideo.modelcard import MARK, Results, model_card
from flexvideo.modelconfig import parse_config
from flexvideo.models import VideoMamba
from flexvideo.sources import CONFIG, WEIGHTS
from flexvideo.statedict import interpret
from flexvideo.weights import SUFFIXES, write_atomically

CARD, RESULTS = "README.md", "results.json"


def save_folder(
    model: VideoMamba,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    results: str | os.PathLike[str] | Results | None = None,
    license: str | None = None,
) -> Results | None:
    """Write a model to a folder that `load` and the Hub read; a card that somebody else wrote stays.

    Args:
        model: plain or flexible.
        folder: made when it is not there.
        name: what the card says to load; the folder by default.
        results: measurements, as data or as a JSON file; those of the folder where its weights are the same.
        license: identifier of the weights' licence, for the card.

    Returns:
        The measurements that the card shows.

    Raises:
        CheckpointError: the folder cannot be written, or `results` cannot be read.
    """
    folder = Path(folder)
    measured = _results(results)
    text = config_text(model)
    beside = measured is None and (folder / RESULTS).is_file()
    before = _digest(folder / WEIGHTS) if beside else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without it the header of the weights counts: old config and new weights never meet.
        (folder / CONFIG).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}.") from error
    save(model, folder / WEIGHTS)
    write_atomically(folder / CONFIG, text.encode())
    if measured is not None:
        write_atomically(folder / RESULTS, (json.dumps(measured, indent=2) + "\n").encode())
    elif beside:
        measured = _results_of(folder, before)
    if is_ours(folder / CARD):
        card = _card(model, text, name=name or str(folder), results=measured, license=license)
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

    Returns:
        What was read: a path, or repository, commit and file.

    Raises:
        CheckpointError: the source cannot be read, or the target cannot be written.
        HubError: the Hub refuses, lacks the file, or cannot be reached.
    """
    model = load(
        source,
        filename=filename,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    target = Path(target)
    if target.suffix in SUFFIXES:
        save(model, target)
    else:
        save_folder(model, target)
    return str(model.source)


def is_ours(card: Path) -> bool:
    """Whether a model card may be replaced: there is none yet, or it was written here."""
    try:
        return MARK in card.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def _card(model: VideoMamba, text: str, *, name: str, results: Results | None, license: str | None) -> str:
    config = parse_config(text, where=CONFIG)
    assert config is not None
    tensors = interpret(model.state_dict(), where="the model", img_size=config.img_size)
    found = description(tensors, config, name=name)
    return model_card(found, config, name=name, results=results, license=license)


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
