"""What the Hub lists: models of an owner, revisions of a model.

The Hub's client is imported when a list is asked for. A list is never kept, so offline there is none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from llmsuper.errors import HubError, UnknownNameError, near_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from huggingface_hub import HfApi

    from llmsuper.types import ModelEntry

T = TypeVar("T")

WILDCARDS = re.compile(r"[*?]|\[[^]]*\]?")
"""The parts of a glob that are not literal."""

PULL_REQUESTS = "refs/pr"
"""What a revision glob begins with that means pull requests: anybody may open one, so no other glob means them."""

VARIANTS: tuple[tuple[str, str], ...] = (
    (r"v0(?!\.\d)", "a release that was replaced"),
    (r"seed\d*", "another random seed"),
    (r"(global_?)?steps?\d*k?|stage\d+|ckpt\d*|checkpoints?|tokens?\d+[mbt]?", "not the end of training"),
    (r"instruct|chat|it|sft|dpo|rlhf|ppo|kto|(fine-?)?tuned?|ft|lora|adapter", "trained on after pretraining"),
    (r"reward|rm|prm|orm", "a reward model, whose head is not an LM head"),
    (r"gptq|awq|gguf|ggml|bnb|exl2|mlx|onnx|nf4|fp8|int[48]|[48]-?bits?|w\d+a\d+|quantized", "quantised or converted"),
    (r"vl|vision|audio|omni|embeddings?", "not a language model of text alone"),
)
"""Parts of a repository's name, between hyphens, dots or underscores, that tell a variant; and what it then is."""


def is_glob(text: str) -> bool:
    """Whether the text has a wildcard: `*`, `?` or `[`."""
    return WILDCARDS.search(text) is not None


def list_models(owner: str, glob: str) -> list[str]:
    """The repositories of `owner` on the Hub whose name matches, in alphabetical order. Raises `HubError`."""
    literal = max(WILDCARDS.split(glob), key=len).strip("-_.")  # a shorter search finds no less
    ids = _ask(
        f"the models of {owner}",
        lambda api: [model.id for model in api.list_models(author=owner, search=literal or None)],
        instead="name each model as owner/name",
    )
    return sorted((repo for repo in ids if fnmatchcase(repo.lower(), f"{owner}/{glob}".lower())), key=str.lower)


def list_revisions(repo: str, *, pull_requests: bool = False) -> list[str]:
    """The branches and tags of a model, or its pull requests instead, in natural order. Raises `HubError`."""
    refs = _ask(
        f"the revisions of {repo}",
        lambda api: api.list_repo_refs(repo, include_pull_requests=pull_requests),
        instead=f"name each revision as {repo}@REVISION",
        repo=repo,
    )
    if pull_requests:
        return sorted((ref.ref for ref in refs.pull_requests or []), key=natural)
    return sorted({ref.name for ref in [*refs.branches, *refs.tags]}, key=natural)


def natural(name: str) -> tuple[list[str | int], str]:
    """The key of natural order, in which numbers count as such: step1, step2, step10, step1000."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())], name


def at_revisions(pattern: str, entries: Sequence[ModelEntry], glob: str) -> tuple[list[ModelEntry], list[str]]:
    """Each model at each of its revisions that match, and a warning that names the models without one.

    A revision's case counts, as it does on the Hub. Two names of one commit are two entries. Raises `HubError`, and
    `UnknownNameError` where nothing matches; `pattern` is what that error is about.
    """
    listed = {entry.repo: list_revisions(entry.repo, pull_requests=glob.startswith(PULL_REQUESTS)) for entry in entries}
    found = [
        replace(entry, revision=revision)
        for entry in entries
        for revision in listed[entry.repo]
        if fnmatchcase(revision, glob)
    ]
    if not found:
        names = list(dict.fromkeys(revision for revisions in listed.values() for revision in revisions))
        near = near_matches(WILDCARDS.sub("", glob), names) or names[:5]
        there = f"Near to it: {', '.join(near)}" if near else "There is none at all"
        listed_for = f" for {len(entries)} models" if len(entries) > 1 else ""
        raise UnknownNameError(
            f"{pattern!r}: no revision matches {glob!r}; the Hub lists {len(names)}{listed_for}. {there}. "
            f"Give a revision that there is, or a wider glob; `llmsuper models '{entries[0].repo}@*'` lists them."
        )
    without = [entry.repo for entry in entries if entry.repo not in {match.repo for match in found}]
    none = f"{pattern}: {len(without)} of {len(entries)} models have no such revision: {', '.join(without)}"
    return found, [none] if without else []


def variant(repo: str) -> tuple[str, str] | None:
    """The part of a repository's name that tells a variant, and what that variant is; see `VARIANTS`."""
    for words, reason in VARIANTS:
        if match := re.search(rf"(?:^|[-_.])({words})(?=$|[-_.])", repo.split("/")[-1], re.IGNORECASE):
            return match[1], reason
    return None


def variant_warning(pattern: str, repos: Sequence[str]) -> list[str]:
    """One warning that says which of these look like variants, what they are, and how to leave them out; or none."""
    found = {repo: told for repo in repos if (told := variant(repo))}
    named = ", ".join(f"{repo} ({reason})" for repo, (_, reason) in found.items())
    globs = " ".join(f"--exclude '*{word}*'" for word in dict.fromkeys(word for word, _ in found.values()))
    count = f"{len(found)} of {len(repos)} models on the Hub look like variants by their names"
    return [f"{pattern}: {count}: {named}. They are kept; leave them out with {globs}"] if found else []


def _ask(thing: str, question: Callable[[HfApi], T], *, instead: str, repo: str | None = None) -> T:
    """What the Hub answers, asked again while it is in trouble; `instead` is what to do offline."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    from llmsuper.hub.client import hub_errors, patiently
    from llmsuper.version import __version__

    api = HfApi(library_name="llmsuper", library_version=__version__)
    with hub_errors(thing, repo):
        try:
            return patiently(lambda: question(api))
        except OfflineModeIsEnabled as error:
            raise HubError(
                f"{thing}: offline mode is on (HF_HUB_OFFLINE=1), and the Hub cache keeps no such list. "
                f"Unset HF_HUB_OFFLINE, or {instead}."
            ) from error
        except (KeyError, TypeError, RecursionError) as error:  # JSON, but not the Hub's
            raise HubError(
                f"{thing}: the answer is not that of a Hub. Check that HF_ENDPOINT is a Hugging Face Hub."
            ) from error
