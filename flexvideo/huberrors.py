"""What went wrong between here and the Hugging Face Hub, in one sentence."""

import errno
import re

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

LOG_IN = "log in with `hf auth login`, set HF_TOKEN or pass token="
PASSING = (408, 429, 500, 502, 503, 504)
# httpx's or requests' own base class, whichever this version of the client is built on.
_TRANSPORT = (OSError, *HfHubHTTPError.__bases__)


def is_passing(error: BaseException | None) -> bool:
    """Whether asking again may help: the network or the Hub is out of order, and the question is right.

    Args:
        error: what the client raised.
    """
    error = _inner(error)
    if isinstance(error, HfHubHTTPError):
        return _status(error) in PASSING
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError | SafetensorsParsingError):
        return False
    return isinstance(error, _TRANSPORT) and not _is_local(error)


def timed_out(error: BaseException | None) -> bool:
    """Whether the client has waited long enough for one answer, its own further tries included.

    Args:
        error: what the client raised.
    """
    return any("Timeout" in kind.__name__ for kind in type(_inner(error)).__mro__)


def explain(error: Exception, *, what: str, revision: str | None, endpoint: str) -> str:
    """Say what the client's error means and what to do.

    Args:
        error: what the client raised.
        what: repository, with the file where there is one.
        revision: that was asked for.
        endpoint: address of the Hub.
    """
    inner = _inner(error)
    asked = "" if revision is None else f" at {revision}"
    page = f"{endpoint}/{'/'.join(what.split('/')[:2])}"
    for kind, sentence in (
        (GatedRepoError, f"is gated: accept its terms on {page}, and with a token of that account {LOG_IN}"),
        (RepositoryNotFoundError, f"is not on {endpoint}, or is private: check its name, or {LOG_IN}"),
        (RevisionNotFoundError, f"has no revision {revision!r}"),
        (OfflineModeIsEnabled, "needs the Hub, and HF_HUB_OFFLINE forbids to ask it"),
        (
            LocalEntryNotFoundError,
            f"is not in the cache{asked}, and only the cache was to be asked ({why_offline()})",
        ),
        (EntryNotFoundError, f"does not exist{asked}"),
        (SafetensorsParsingError, "is no safetensors file, or a damaged one"),
        (HFValidationError, f"is no name of a repository (owner/name): {_first_line(inner)}"),
    ):
        if isinstance(inner, kind):
            return f"{what} {sentence}."
    if isinstance(inner, HfHubHTTPError):
        return f"{what}: {endpoint} {_answer(_status(inner))}."
    if isinstance(inner, OSError) and _is_local(inner):
        place = "" if inner.filename is None else f" as {inner.filename}"
        return f"{what} cannot be stored{place}: {inner.strerror or _first_line(inner)}."
    return f"{what} did not arrive from {endpoint}: {type(inner).__name__}: {_first_line(inner)}."


def why_offline() -> str:
    """What forbids to ask the Hub."""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "local_files_only=True"


def _answer(status: int) -> str:
    meanings = {
        401: f"refuses the token, or wants one: {LOG_IN}",
        403: "denies access: the token lacks the right",
        408: "gave up waiting",
        409: "reports a conflict: try again",
        413: "says that this is too large",
        429: "says that there were too many requests: try again later",
    }
    if status >= 500:
        return f"is out of order (status {status}): try again later"
    return f"{meanings.get(status, 'refuses')} (status {status})"


def _inner(error: BaseException | None) -> BaseException | None:
    """The error behind the one that only says that the cache has nothing either."""
    while isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_local(error: BaseException | None) -> bool:
    """Whether it is this machine's disk that is in the way; errors of the network name no file."""
    if not isinstance(error, OSError) or isinstance(error, HfHubHTTPError):
        return False
    return error.filename is not None or error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EEXIST,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
    )


def _status(error: HfHubHTTPError) -> int:
    return 0 if error.response is None else error.response.status_code


def _first_line(error: BaseException | None) -> str:
    """The gist of a message, without what follows a question mark, where addresses are signed, or a token."""
    text = re.sub(r"\?\S+|Bearer.*", "", str(error)).strip()
    return text.splitlines()[0].rstrip(".") if text else "no reason given"
