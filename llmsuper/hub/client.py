"""Asks the Hub through its own client: tries again with patience, and says each refusal as one `HubError`.

Nothing imports httpx by name: huggingface_hub moved from httpx to httpx2 in its 2.0, and hands on the one it uses.
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, ClassVar, TypeVar

from llmsuper.errors import HubError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
"""Answers that may be another one a little later."""

LONGEST_WAIT = 330.0
"""Seconds; the Hub counts its requests in windows of 300 seconds, so a longer wait is not its rate limit."""

REFUSALS: dict[str, tuple[str, str]] = {
    "OfflineModeIsEnabled": (
        "offline mode is on (HF_HUB_OFFLINE=1) and the Hub cache does not hold it",
        "Unset HF_HUB_OFFLINE, or fetch it once while online",
    ),
    "GatedRepoError": (
        "the model is gated and you have not been let in",
        "Accept the licence at {page}, then log in with `hf auth login` or set HF_TOKEN",
    ),
    "DisabledRepoError": ("the Hub has disabled this repository", "See {page} for the reason, or use another model"),
    "RepositoryNotFoundError": (
        "there is no such model at {endpoint}, or it is private",
        "Check the spelling at {page}; for a private model run `hf auth login` or set HF_TOKEN",
    ),
    "RevisionNotFoundError": (
        "the repository has no such branch, tag or commit",
        "See {page}/tree/main for the revisions there are",
    ),
    "RemoteEntryNotFoundError": ("the repository has no such file", "See {page}/tree/main for the files there are"),
    "LocalEntryNotFoundError": (
        "the Hub cannot be reached and the Hub cache does not hold it",
        "Check the connection and {endpoint}, then run the same command again",
    ),
    "FileMetadataError": (
        "the answer has no commit, size or ETag",
        "Check that HF_ENDPOINT ({endpoint}) is a Hugging Face Hub",
    ),
    "HFValidationError": ("this is not a repository id", "Give `owner/name`, `owner/name@revision` or a local path"),
    "TimeoutException": (
        "the Hub did not answer in time ({error})",
        "Check the connection, or raise HF_HUB_DOWNLOAD_TIMEOUT, then run the same command again",
    ),
    "ConnectionError": (
        "the connection failed ({error})",
        "Check the connection and {endpoint}, then run the same command again",
    ),
    "TransportError": (
        "the connection failed ({error})",
        "Check the connection and {endpoint}, then run the same command again",
    ),
    "HTTPError": ("the request failed ({error})", "Check the connection and {endpoint}, then try again"),
    "JSONDecodeError": (
        "the answer is not JSON",
        "Check that HF_ENDPOINT ({endpoint}) is a Hugging Face Hub and no log-in page of the network lies in between",
    ),
    "OSError": ("the Hub cache could not be written ({error})", "Free some space, or set HF_HOME to another folder"),
}
"""What was found and what to do, by the name of an exception class; the most derived class with a row speaks."""

STATUSES: dict[int, tuple[str, str]] = {
    401: ("the token was refused (401)", "Log in again with `hf auth login`, or correct HF_TOKEN"),
    403: ("access is forbidden (403)", "Ask for access at {page}, and check what the token may read"),
    429: (
        "too many requests (429)",
        "Wait a few minutes, or log in with `hf auth login`: a user has a larger quota than an anonymous address",
    ),
}
"""The same, by the status of an answer for which the Hub's client has no class of its own."""

NOT_WHOLE = (
    "what arrived is not of the size that was announced ({error})",
    "A proxy in between is broken, or the file has just changed; run the same command again, or try another network",
)
SERVER_TROUBLE = ("the server answered {status}, several times", "Run the same command again later")
OTHER_STATUS = ("the server answered {status}", "See {page}; if it opens in a browser, report this")


def explain(error: Exception) -> tuple[str, str]:
    """(what was found, what to do) for an exception of the Hub's client, with {page}, {endpoint} … still to fill in."""
    from huggingface_hub.errors import HfHubHTTPError

    for cls in type(error).__mro__:
        if cls is HfHubHTTPError:
            status = status_of(error)
            return STATUSES.get(status or 0) or (SERVER_TROUBLE if (status or 0) >= 500 else OTHER_STATUS)
        if (
            cls is OSError and getattr(error, "errno", None) is None
        ):  # not from the system: the Hub's client has counted the bytes
            return NOT_WHOLE
        if cls.__name__ in REFUSALS:
            return REFUSALS[cls.__name__]
    raise error


def reason_of(error: Exception) -> Exception:
    """The exception itself, or the one that the Hub's client hides behind "not in the cache"."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    hidden = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
    return reason_of(hidden) if isinstance(hidden, Exception) else error


@contextmanager
def hub_errors(thing: str, repo: str | None = None) -> Iterator[None]:
    """Turns every exception of the Hub's client into a `HubError` about `thing`.

    `repo` is `owner/name` where the page of the model helps. Exceptions of our own pass unchanged.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError
    from huggingface_hub.utils import httpx

    try:
        yield
    except (httpx.HTTPError, EntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and not any(cls.__name__ in REFUSALS for cls in type(error).__mro__):
            raise  # a bug of ours, not a JSON or repository-id error
        cause = reason_of(error)
        found, then = explain(cause)
        reason = str(cause).strip().splitlines()
        known = {
            "endpoint": constants.ENDPOINT,
            "page": f"{constants.ENDPOINT}/{repo}" if repo else constants.ENDPOINT,
            "status": status_of(cause),
            "error": f"{type(cause).__name__}: {reason[0].rstrip('.')}" if reason else type(cause).__name__,
        }
        raise HubError(f"{thing}: {found.format(**known)}. {then.format(**known)}.") from error


class Patience:
    """How long to go on asking: `failures` in a row without progress, with a pause that doubles each time.

    A server that names a wait (Retry-After, RateLimit) is obeyed. The wait ends early, by `CancelledError`, when
    `stop` is set; that is why the back-off of the Hub's client, which sleeps, is not used.
    """

    pause: ClassVar[float] = 0.25
    """Seconds before the second attempt."""

    def __init__(self, stop: threading.Event | None = None, failures: int = 5) -> None:
        self.stop = stop
        self.allowed = failures
        self.failures = 0

    def progress(self) -> None:
        """Something arrived: the budget is whole again."""
        self.failures = 0

    def after(self, error: Exception) -> None:
        """Waits until the next attempt is due, or raises `error` where another attempt is of no use."""
        self.failures += 1
        wait = _wait_asked_for(error)
        if not is_transient(error) or self.failures > self.allowed or (wait or 0) > LONGEST_WAIT:
            raise error
        seconds = min(8.0, self.pause * 2 ** (self.failures - 1)) if wait is None else wait
        if self.stop is None:
            time.sleep(seconds)
        elif self.stop.wait(seconds):
            raise CancelledError


def patiently(call: Callable[[], T], failures: int = 3) -> T:
    """`call()`, again while it fails in a way that may pass."""
    from huggingface_hub.utils import httpx

    patience = Patience(failures=failures)
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            patience.after(error)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from huggingface_hub.utils import httpx

    if isinstance(error, httpx.UnsupportedProtocol):
        return False
    return isinstance(error, httpx.TransportError) or status_of(error) in TRANSIENT_STATUSES


def status_of(error: Exception) -> int | None:
    """The status of the answer that the error is about, where there was an answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _wait_asked_for(error: Exception) -> float | None:
    """Seconds that the server asks to wait: RateLimit with none remaining, or Retry-After in seconds or as a date."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    limit = parse_ratelimit_headers(headers)
    if status_of(error) == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = (headers.get("Retry-After") or "").strip()
    if after.isdigit():
        return float(after)
    try:
        when = parsedate_to_datetime(after)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None
