"""Questions to the Hugging Face Hub through its own client: repeated where that helps, errors explained."""

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import build_hf_headers

from flexvideo.errors import HubError
from flexvideo.huberrors import LOG_IN, explain, is_passing, timed_out

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"[!-~]+")
WAITS = (1.0, 4.0)  # seconds before a second and a third try
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Access:
    """How to reach the Hub.

    Args:
        token: True for the stored one.
        cache_dir: where downloads are kept; None for the client's own place.
        offline: take them from there alone.
        force: download what is there already.

    Raises:
        HubError: a token that cannot be sent.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    offline: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        # The client would send it as it is, and its HTTP library would show it in an error.
        if isinstance(self.token, str) and not _TOKEN.fullmatch(self.token):
            raise HubError(
                "The token is empty, or has a space, a line break or another character that no token has: "
                "it was not sent."
            )
        if not self.offline and not re.match(r"https?://", constants.ENDPOINT):
            raise HubError(f"HF_ENDPOINT is {constants.ENDPOINT!r}: it must begin with http:// or https://.")
        if self.token is True:
            self.require_token("token=True")
        if self.force and self.offline:
            raise HubError("force_download asks the Hub, and offline nothing may: leave one of the two out.")

    def require_token(self, what: str) -> None:
        """Refuse, before anything is asked of the Hub, what it never does without a token.

        Args:
            what: needs one, to call it in messages.

        Raises:
            HubError: none was given and none is stored.
        """
        try:
            found = "authorization" in build_hf_headers(token=self.token)
        except LocalTokenNotFoundError:
            found = False
        if not found:
            raise HubError(f"{what} needs a token, and there is none: {LOG_IN}.")

    @property
    def cache(self) -> str | None:
        """The folder of downloads as the client takes it."""
        return None if self.cache_dir is None else os.fspath(self.cache_dir)

    @property
    def api(self) -> HfApi:
        """The Hub's client."""
        return HfApi(token=self.token, library_name="flexvideo")


def get(repo_id: str, filename: str, revision: str | None, access: Access) -> Path:
    """Download a file, unless the cache has it, and return where it lies.

    Args:
        repo_id: "owner/name".
        filename: in the repository.
        revision: branch, tag or commit; "main" when None.
        access: how to reach the Hub.

    Raises:
        HubError: it did not arrive.
    """
    return Path(
        ask(
            lambda: hf_hub_download(
                repo_id,
                filename,
                revision=revision,
                token=access.token,
                cache_dir=access.cache,
                force_download=access.force,
                library_name="flexvideo",
            ),
            what=f"{repo_id}/{filename}",
            revision=revision,
        )
    )


def ask(
    call: Callable[[], Answer],
    *,
    what: str,
    revision: str | None = None,
    waits: tuple[float, ...] = WAITS,
) -> Answer:
    """Call the Hub's client; wait and try again when the trouble may pass, and say in a sentence when not.

    Args:
        call: asks one thing.
        what: what is asked for, to call it in messages.
        revision: of what is asked for.
        waits: seconds before each further try.

    Raises:
        HubError: no answer; the client's own error is its cause.
    """
    for wait in (*waits, None):
        try:
            return call()
        except Exception as error:  # the client raises from a dozen modules, other ones in every version
            sentence = explain(error, what=what, revision=revision, endpoint=constants.ENDPOINT)
            if wait is None or not is_passing(error) or timed_out(error):
                raise HubError(sentence) from error
            logger.warning("%s Trying again in %s s.", sentence, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")
