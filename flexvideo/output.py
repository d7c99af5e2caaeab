"""Files and folders for results: that they cannot be written is said before the work for them is done."""

import os
from pathlib import Path

from flexvideo.errors import ConfigError


def require_file(path: str | os.PathLike[str]) -> Path:
    """Give the path of a file that can be written, new or over an old one.

    Args:
        path: as a user typed it.

    Raises:
        ConfigError: a folder, one in a folder that is not there, or one that the user may not write.

    Example:
        >>> require_file("features.npz")
        PosixPath('features.npz')
    """
    target = Path(path)
    folder = target.absolute().parent
    if target.is_dir():
        raise ConfigError(f"{target} cannot be written: it is a folder, and a file was expected.")
    if not folder.is_dir():
        raise ConfigError(f"{target} cannot be written: there is no folder {folder}.")
    for place in (folder, target):
        if place.exists() and not os.access(place, os.W_OK):
            raise ConfigError(f"{target} cannot be written: {_reason(place)}.")
    return target


def require_folder(path: str | os.PathLike[str]) -> Path:
    """Give a folder in which files can be written; it is made when it is not there.

    Args:
        path: as a user typed it.

    Raises:
        ConfigError: a file, or a folder that the user may not make or write.

    Example:
        >>> import tempfile
        >>> require_folder(tempfile.mkdtemp() + "/a/b").is_dir()
        True
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made a folder: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written: {_reason(folder)}.")
    return folder


def _reason(place: Path) -> str:
    read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
    return "its file system is read-only" if read_only else "permission is denied"
