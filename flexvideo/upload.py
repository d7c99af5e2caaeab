"""A model to the Hugging Face Hub: one commit with weights, config and card. Imported when first needed."""

import logging
import os
import tempfile

from flexvideo.folder import CARD, is_ours, save_folder
from flexvideo.hubclient import WAITS, Access, ask, get
from flexvideo.modelcard import Results
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
        private: whether a new repository is private.
        token: of the Hub.
        branch: made when it is not there.
        create_pr: open a pull request.
        results: measurements for the card.
        license: of the weights, for the card.

    Raises:
        HubError: the Hub refuses or cannot be reached.
    """
    api, what = Access(token).api, f"{repo_id} (upload)"
    repo_id = ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True), what=what).repo_id
    if branch is not None:
        ask(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), what=what)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, folder, name=repo_id, results=results, license=license)
        kept = [] if _card_is_ours(repo_id, branch, token) else [CARD]
        commit = ask(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                ignore_patterns=kept,
            ),
            what=what,
            waits=() if create_pr else WAITS,  # a second try would open a second one
        )
    logger.info("Uploaded %s as %s", repo_id, commit.oid)
    return commit.pr_url or commit.commit_url if create_pr else commit.commit_url


def _card_is_ours(repo_id: str, branch: str | None, token: str | bool | None) -> bool:
    if not ask(lambda: Access(token).api.file_exists(repo_id, CARD, revision=branch), what=repo_id):
        return True
    with tempfile.TemporaryDirectory() as cache:
        return is_ours(get(repo_id, CARD, branch, Access(token, cache)))
