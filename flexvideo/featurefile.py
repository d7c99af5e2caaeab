"""Files of features: one row a video, the names of the rows, and how they came about."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from flexvideo.errors import ConfigError, MissingExtraError
from flexvideo.output import require_file
from flexvideo.weights import write_atomically


def save_features(
    path: str | Path,
    names: Sequence[str],
    features: Float[Tensor, "n d"],
    *,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Write features and the names of their rows to one file, whole or not at all.

    Args:
        path: ends in `.safetensors` (names and settings: JSON in the metadata) or `.npz` (arrays `names`,
            `features` and `settings`, which holds JSON).
        names: one for each row.
        features: any number of rows.
        settings: what to record of how they came about, such as checkpoint, frames and size: JSON data.

    Raises:
        ConfigError: another ending, a place that cannot be written, or not one name for each row.
        CheckpointError: the disk refuses.

    Example:
        >>> save_features("f.npz", ["a.mp4", "b.mp4"], torch.zeros(2, 192))  # doctest: +SKIP
    """
    if len(names) != len(features):
        raise ConfigError(f"{len(names)} names were given for {len(features)} rows of features.")
    require_features_file(path)
    texts = {"names": json.dumps(list(names)), "settings": json.dumps(dict(settings or {}))}
    if _ending(path) == ".npz":
        numpy, archive = _numpy(), io.BytesIO()
        rows = numpy.array(names, dtype=numpy.str_)
        numpy.savez(archive, names=rows, features=features.numpy(), settings=numpy.array(texts["settings"]))
        content = archive.getvalue()
    else:
        content = serialize({"features": features.contiguous()}, metadata=texts)
    write_atomically(Path(path), content)


def require_features_file(path: str | Path) -> None:
    """Say that features cannot be kept at a path before the work for them is done.

    Args:
        path: as for `save_features`.

    Raises:
        ConfigError: another ending, or a place that cannot be written.
        MissingExtraError: `.npz` without NumPy.
    """
    if _ending(path) == ".npz":
        _numpy()
    require_file(path)


def load_features(path: str | Path) -> tuple[list[str], Float[Tensor, "n d"]]:
    """Read what `save_features` wrote.

    Args:
        path: ends in `.safetensors` or `.npz`.

    Raises:
        ConfigError: another ending, or a file that holds no features.

    Example:
        >>> names, features = load_features("f.npz")  # doctest: +SKIP
    """
    names, features, _ = _contents(path)
    return names, features


def feature_settings(path: str | Path) -> dict[str, Any]:
    """Read what `save_features` recorded of how the features came about; empty where nothing was.

    Args:
        path: ends in `.safetensors` or `.npz`.

    Raises:
        ConfigError: another ending, or a file that holds no features.

    Example:
        >>> feature_settings("f.npz")["size"]  # doctest: +SKIP
        128
    """
    return _contents(path)[2]


def holds_features(path: str | Path) -> bool:
    """Whether a path is a file of features rather than of a model's weights, by its ending or its header.

    Args:
        path: anything; what is not there holds none.
    """
    if Path(path).suffix != ".safetensors":
        return Path(path).suffix == ".npz"
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys()) == ["features"]
    except (SafetensorError, OSError):
        return False


def _contents(path: str | Path) -> tuple[list[str], Tensor, dict[str, Any]]:
    ending = _ending(path)
    try:
        if ending == ".npz":
            with _numpy().load(path, allow_pickle=False) as file:
                settings = file["settings"].item() if "settings" in file else "{}"
                return file["names"].tolist(), torch.from_numpy(file["features"]), json.loads(settings)
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            names, settings = json.loads(texts["names"]), json.loads(texts.get("settings", "{}"))
            return names, file.get_tensor("features"), settings
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no features of videos: {error}.") from error


def _ending(path: str | Path) -> str:
    ending = Path(path).suffix
    if ending not in (".safetensors", ".npz"):
        raise ConfigError(f"Features are kept in .safetensors or .npz files; {path} ends in neither.")
    return ending


def _numpy():
    try:
        import numpy
    except ImportError as error:
        raise MissingExtraError(".npz files need NumPy: pip install numpy, or use .safetensors.") from error
    return numpy
