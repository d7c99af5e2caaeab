"""A model to the Hugging Face Hub: one commit with weights, config and card. Imported when first needed."""

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from flexvideo.errors import HubError
from flexvideo.folder import CARD, save_folder
from flexvideo.hubclient import WAITS, Access, ask, get
from flexvideo.modelcard import MARK, Results
from flexvideo.models import VideoMamba

logger = logging.getLogger(__name__)


def push(
    model: VideoMamba,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    results: str | os.PathLike[str] | Results | None = None,
    license: str | None = None,
) -> str:
    """Upload a model in one commit and return its address; a card that somebody else wrote stays.

    Args:
        model: plain or flexible.
        repo_id: "owner/name"; made when it is not there.
        commit_message: of the commit.
        private: whether it is private.
        token: of the Hub.
        branch: made when it is not there.
        create_pr: open a pull request.
        results: measurements for the card.
        license: of the weights, for the card.

    Raises:
        HubError: the Hub refuses or cannot be reached, or the repository is public against `private`.
        ConfigError: a `license` that is no identifier.
    """
    if not isinstance(repo_id, str) or not repo_id:
        raise HubError(f"repo_id must be the name of a repository (owner/name), got {repo_id!r}.")
    access, what = Access(token), f"{repo_id} (upload)"
    access.require_token(what)
    api = access.api
    repo_id = ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True), what=what).repo_id
    if private is not None:
        _require_visibility(repo_id, private, access)
    if branch is not None:
        ask(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), what=what)
    with tempfile.TemporaryDirectory() as folder:
        _fetch_card(repo_id, branch, access, Path(folder))
        save_folder(model, folder, name=repo_id, results=results, license=license)
        is_ours = MARK.encode() in (Path(folder) / CARD).read_bytes()
        commit = ask(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                ignore_patterns=[] if is_ours else [CARD],
            ),
            what=what,
            waits=() if create_pr else WAITS,  # a second try would open a second one
        )
    logger.info("Uploaded %s as %s", repo_id, commit.oid)
    return commit.pr_url or commit.commit_url if create_pr else commit.commit_url


def _require_visibility(repo_id: str, private: bool, access: Access) -> None:
    """Refuse to upload to a repository that others can read, or cannot, against the caller's word."""
    is_private = ask(lambda: access.api.model_info(repo_id), what=repo_id).private
    if is_private != private:
        kind = "private" if is_private else "public"
        raise HubError(
            f"{repo_id} is there already and is {kind}, against private={private}: nothing was uploaded; "
            "change it in its settings on the Hub, or leave private= out."
        )


def _fetch_card(repo_id: str, branch: str | None, access: Access, folder: Path) -> None:
    """Bring the card that is there, of which the licence is kept, or all where it is somebody's own."""
    if ask(lambda: access.api.file_exists(repo_id, CARD, revision=branch), what=repo_id):
        with tempfile.TemporaryDirectory() as cache:
            text = get(repo_id, CARD, branch, replace(access, cache_dir=cache)).read_bytes()
        (folder / CARD).write_bytes(text)
