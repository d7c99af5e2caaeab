"""Places for results that cannot be written: one sentence, before the work."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from flexvideo.errors import ConfigError
from flexvideo.output import require_file, require_folder


def test_files_and_folders_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old.npz").touch()
    assert require_file(tmp_path / "old.npz").is_file()
    assert not require_file(tmp_path / "new.npz").exists()
    assert require_folder(tmp_path / "a" / "b").is_dir()
    assert require_folder(tmp_path / "a").is_dir()


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, ""):
        with pytest.raises(ConfigError, match="cannot be written: it is a folder, and a file was expected"):
            require_file(folder)
    with pytest.raises(ConfigError, match=r"f\.npz cannot be written: there is no folder /.*none"):
        require_file(tmp_path / "none" / "f.npz")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"f\.npz cannot be written: permission is denied"):
        require_file(tmp_path / "f.npz")


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be made a folder: File exists"):
        require_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match="file/folder cannot be made a folder: Not a directory"):
        require_folder(tmp_path / "file" / "folder")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="cannot be written: permission is denied"):
        require_folder(tmp_path)


def test_a_file_system_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    for place in (require_file, require_folder):
        with pytest.raises(ConfigError, match="cannot be written: its file system is read-only"):
            place(tmp_path / "f" if place is require_file else tmp_path)
