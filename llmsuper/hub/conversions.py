"""Finds the safetensors conversion of a checkpoint that waits in a pull request, where the user allows that.

The Hub's own bot makes them. Anyone may open a pull request under the same title, and its author may change what is in it
later: so the bot's alone are taken, pinned to their commit, and only while the weights they were made of are those of the
revision that was asked for.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from llmsuper.errors import HubError
from llmsuper.hub.client import hub_errors, patiently
from llmsuper.hub.formats import weight_files
from llmsuper.hub.repository import HubRepository, open_repository

if TYPE_CHECKING:
    from huggingface_hub import Discussion, HfApi

    from llmsuper.hub.repository import Repository
    from llmsuper.hub.rowcache import RowCache

BOT = "SFconvertbot"
TITLE = "Adding `safetensors` variant of this model"
"""Author and title of the conversions that transformers takes too (its safetensors_conversion.py)."""


def with_conversion(repository: Repository, cache: RowCache | None = None, file: str | None = None) -> Repository:
    """The conversion that stands in for `repository`, or `repository` itself where it has safetensors (or that `file`).

    Its `notes` say which pull request, author and commit it is, and which pull requests were refused and why. `entry`
    stays what was asked for. Raises `HubError` where the Hub cannot be asked and `cache` does not know.
    """
    if not isinstance(repository, HubRepository) or _holds(repository, file):
        return repository
    recalled = None
    if cache is not None and repository.origin == "hub-cache":
        recalled = cache.recall_conversion(repository.entry, repository.commit)
    if recalled is not None:
        used, notes = recalled
        found = repository if used == repository.commit else _opened(repository, used, cache)
    elif repository.origin == "hub-cache":
        raise HubError(
            f"{repository.entry.name}: the Hub cannot be asked for a safetensors conversion. "
            "Run this again online, or without --allow-pr."
        )
    else:
        found, notes = _look(repository, cache)
        if cache is not None:
            cache.remember_conversion(repository.entry, repository.commit, found.commit, notes)
    return replace(found, notes=notes)


def _look(repository: HubRepository, cache: RowCache | None) -> tuple[HubRepository, tuple[str, ...]]:
    """The newest conversion that can be trusted, or `repository`, and what there is to note."""
    from huggingface_hub import HfApi

    from llmsuper.version import __version__

    entry, refused = repository.entry, []
    api = HfApi(token=repository.token, library_name="llmsuper", library_version=__version__)
    for pull in _pull_requests(repository, api):
        name = f"pull request {pull.num} by {pull.author} ({TITLE!r})"
        if pull.author != BOT:
            refused.append(f"{name} is not used: it is not {BOT}'s.")
            continue
        found = _opened(repository, f"refs/pr/{pull.num}", cache)
        if not _holds(found, None):
            refused.append(f"{name} is not used: there is no safetensors file in it.")
        elif not _same_weights(repository, found, api):
            refused.append(f"{name} is not used: {entry.revision} has other weights now than it was made of.")
        else:
            note = f"the head is from {name}, commit {found.commit}: {entry.revision} has no safetensors."
            return found, (note, *refused)
    return repository, tuple(refused)


def _pull_requests(repository: HubRepository, api: HfApi) -> list[Discussion]:
    """Open pull requests with the title of a conversion, newest first."""
    repo, name = repository.entry.repo, f"{repository.entry.name}, its pull requests"
    with hub_errors(name, repo):
        try:
            found = patiently(
                lambda: list(api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"))
            )
        except (KeyError, TypeError, RecursionError) as error:  # JSON, but not the Hub's
            raise HubError(
                f"{name}: the answer is not that of a Hub. Check HF_ENDPOINT, or leave out --allow-pr."
            ) from error
    asked_for = [p for p in found if p.is_pull_request and p.status == "open" and p.title == TITLE]
    return sorted(asked_for, key=lambda pull: -pull.num)


def _opened(repository: HubRepository, revision: str, cache: RowCache | None) -> HubRepository:
    """Another revision of the repository, pinned, for the entry that was asked for."""
    entry = repository.entry
    found = open_repository(replace(entry, revision=revision), token=repository.token, cache=cache)
    assert isinstance(found, HubRepository)
    return replace(found, entry=entry)


def _holds(repository: HubRepository, file: str | None) -> bool:
    if file is not None:
        return file in repository.files
    return any(fnmatch(name, "*.safetensors") and "/" not in name for name in weight_files(repository.files))


def _same_weights(repository: HubRepository, conversion: HubRepository, api: HfApi) -> bool:
    """Whether every weight file of the revision is, byte for byte, in the conversion, which lies on top of it."""
    names, repo = weight_files(repository.files), repository.entry.repo

    def contents(commit: str) -> dict[str, str]:
        found = patiently(lambda: api.get_paths_info(repo, names, revision=commit))
        return {info.path: info.blob_id for info in found if hasattr(info, "blob_id")}

    with hub_errors(repository.entry.name, repo):
        return contents(repository.commit) == contents(conversion.commit) != {}
