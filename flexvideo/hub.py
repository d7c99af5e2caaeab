"""Checkpoints from the Hugging Face Hub, pinned to a commit and checked. Imported when first needed."""

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from flexvideo.description import Description, description
from flexvideo.errors import CheckpointError, CheckpointWarning, HubError
from flexvideo.hubclient import Access, ask, get
from flexvideo.huberrors import is_passing, why_offline
from flexvideo.modelconfig import agree
from flexvideo.official import pretrained
from flexvideo.sources import (
    CONFIG,
    HEADER_KEY,
    Remote,
    Source,
    choose_file,
    config_of,
    is_inside,
    read,
    recorded,
)
from flexvideo.statedict import interpret, some
from flexvideo.weights import SUFFIXES, empty_tensor

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Args:
        commit: forty hexadecimal digits.
        files: names, each with its sha256 where the Hub gives one.
    """

    commit: str
    files: Mapping[str, str | None]


def fetch(
    remote: Remote,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Source:
    """Bring a checkpoint to this machine: all of it from one commit, checked against the Hub's sha256.

    Args:
        remote: repository and file.
        revision: branch, tag or commit.
        token: of the Hub.
        cache_dir: where downloads are kept.
        local_files_only: take them from there alone; HF_HUB_OFFLINE says the same.
        force_download: download what is there already.

    Raises:
        HubError: the Hub refuses, lacks the file or cannot be reached, or the download is damaged.
        CheckpointError: the repository holds no weights, or several.
    """
    access = Access(token, cache_dir, local_files_only or constants.HF_HUB_OFFLINE, force_download)
    found = _find(remote, revision, access)
    return found if isinstance(found, Source) else _download(remote, revision, found, access)


def describe(
    remote: Remote,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Description:
    """Say what a checkpoint on the Hub is: from the header alone of a safetensors file, else by fetching it.

    Args:
        remote: as in `fetch`.
        revision: as in `fetch`.
        token: as in `fetch`.
        cache_dir: as in `fetch`.
        local_files_only: as in `fetch`.

    Raises:
        HubError: as in `fetch`.
        CheckpointError: as in `fetch`, or the file is not a VideoMamba.
    """
    access = Access(token, cache_dir, local_files_only or constants.HF_HUB_OFFLINE)
    place = _find(remote, revision, access)
    if isinstance(place, Listing) and _choose(remote, place).endswith(".safetensors"):
        return _describe_header(remote, place, access)
    source = place if isinstance(place, Source) else _download(remote, revision, place, access)
    found, config = read(source, shapes_only=True)
    agree(config, found.layout, where=source.name)
    return description(found, config, name=source.name, remark=source.remark)


def _describe_header(remote: Remote, listing: Listing, access: Access) -> Description:
    filename = _choose(remote, listing)
    name = f"{remote.repo_id}@{listing.commit}/{filename}"
    header = ask(
        lambda: access.api.parse_safetensors_file_metadata(remote.repo_id, filename, revision=listing.commit),
        what=f"{remote.repo_id}/{filename}",
    )
    try:
        state = {key: empty_tensor(value.dtype, list(value.shape)) for key, value in header.tensors.items()}
        text = (header.metadata or {}).get(HEADER_KEY)
    except (RuntimeError, TypeError, AttributeError) as error:  # the client reads it without looking
        raise CheckpointError(f"{name} has a damaged header: {str(error).splitlines()[0]}.") from error
    text = None if text is None else str(text)
    config = recorded(name, text, _config(remote, filename, listing.commit, listing, access))
    found = interpret(state, where=name, img_size=config.img_size)
    agree(config, found.layout, where=name)
    return description(found, config, name=name, remark=_remark(filename))


def _find(remote: Remote, revision: str | None, access: Access) -> Listing | Source:
    """What the repository holds; or what the cache has of it, where the Hub must not or cannot be asked."""
    if access.offline:
        try:
            return _cached(remote, revision, access)
        except HubError as error:
            if error.__cause__ is None:  # it is in the cache, and its file is not, or is damaged
                raise
            raise _neither(remote, error) from error.__cause__
    try:
        return _list(remote, revision, access)
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise _neither(remote, error) from error.__cause__
        if not is_passing(error.__cause__):
            raise
        try:
            source = _cached(remote, revision, access)
        except HubError:
            raise _neither(remote, error) from error.__cause__
        _warn(f"{error} Taking {source.name} from the cache")
        return source


def _neither(remote: Remote, error: HubError) -> HubError:
    """What is wrong with a name that is nothing here, and that nothing was got for from the Hub."""
    return HubError(
        f"{remote.repo_id} is no file or folder here: check the path, if it was meant as one. As a "
        f"repository it was looked for too: {error}"
    )


def _list(remote: Remote, revision: str | None, access: Access) -> Listing:
    """Ask what the repository holds, and at which commit."""
    repo_id = remote.repo_id
    info = ask(
        lambda: access.api.model_info(
            repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        ),
        what=repo_id,
        revision=revision,
    )
    files = {file.rfilename: file.lfs["sha256"] if file.lfs else None for file in info.siblings or ()}
    wanted = [name for name in files if name.lower().endswith((*SUFFIXES, CONFIG))]
    if tricks := [name for name in wanted if not is_inside(name)]:
        raise HubError(f"{repo_id} lists {some(map(repr, tricks))}, which leads out of it: refused.")
    if not _COMMIT.fullmatch(info.sha or ""):
        raise HubError(f"{repo_id}: the Hub names no commit but {info.sha!r}.")
    return Listing(str(info.sha), files)


def _choose(remote: Remote, listing: Listing) -> str:
    where = f"{remote.repo_id}@{listing.commit}"
    filename = choose_file(list(listing.files), remote.filename, where=where)
    if filename not in listing.files:
        raise HubError(f"{where} has no file {filename}; it has {some(listing.files, most=9)}.")
    return filename


def _download(remote: Remote, revision: str | None, listing: Listing, access: Access) -> Source:
    """Fetch weights and config of one commit; by the name of the revision, which the cache then knows."""
    filename = _choose(remote, listing)
    weights = get(remote.repo_id, filename, revision, access)
    commit = weights.parents[filename.count("/")].name
    if commit != listing.commit:
        _warn(
            f"{remote.repo_id} is at commit {listing.commit}, but the client gave {filename} of {commit}, "
            "from its cache or because the repository has just changed"
        )
        listing = _list(remote, commit, access)
    _check_sum(weights, listing.files.get(filename), where=f"{remote.repo_id}@{commit}/{filename}")
    config = _config(remote, filename, commit, listing, access)
    return Source(weights, config, f"{remote.repo_id}@{commit}/{filename}", _remark(filename))


def _config(remote: Remote, filename: str, commit: str, listing: Listing, access: Access) -> Path | None:
    """Fetch the config.json that belongs to the weights, if there is one."""
    name = config_of(filename, listing.files.keys())
    return None if name is None else get(remote.repo_id, name, commit, access)


def _cached(remote: Remote, revision: str | None, access: Access) -> Source:
    """The checkpoint as it was last downloaded."""
    repo_id = remote.repo_id
    folder = Path(
        ask(
            lambda: snapshot_download(
                repo_id, revision=revision, cache_dir=access.cache, local_files_only=True
            ),
            what=repo_id,
            revision=revision,
        )
    )
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    where = f"{repo_id}@{folder.name}"
    filename = choose_file(names, remote.filename, where=f"{where} in the cache")
    if filename not in names:
        raise HubError(
            f"{where} has no file {filename} in the cache, and the Hub may not be asked ({why_offline()})."
        )
    _check_sum(folder / filename, None, where=f"{where}/{filename}")
    config = config_of(filename, names)
    return Source(
        folder / filename, folder / config if config else None, f"{where}/{filename}", _remark(filename)
    )


def _check_sum(path: Path, expected: str | None, *, where: str) -> None:
    """Refuse a damaged download, which the client itself does not notice, and remove it."""
    blob = path.resolve()
    expected = expected or (blob.name if _SHA256.fullmatch(blob.name) else None)
    if expected is None:
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected:
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise HubError(
        f"{where} is damaged: its sha256 is {found}, the Hub says {expected}. "
        "The download was removed; try again."
    )


def _warn(text: str) -> None:
    warnings.warn(f"{text}.", CheckpointWarning, stacklevel=6)


def _remark(filename: str) -> str:
    known = pretrained(Path(filename).name)
    return known.defect if known else ""
