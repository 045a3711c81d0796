"""A conversion in a pull request is taken only where the user allows it, the bot made it, and the weights are the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import HfApi

from llmsuper.errors import HubError
from llmsuper.hub.client import Patience
from llmsuper.hub.conversions import BOT, TITLE
from llmsuper.measure import Settings, measure_head, plan_head
from llmsuper.store import ResultStore
from llmsuper.types import ModelEntry
from tests.checkpoints import opt_like, pythia_like, weight_files
from tests.command import json_lines, llmsuper, shell, succeed, the_error, weights_requests
from tests.fake_hub import Thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_hub import FakeHub

OPT = opt_like()
"""A checkpoint in the one format that OPT has on main."""
CONVERTED = weight_files(OPT.tensors)
ENTRY = ModelEntry("facebook/opt-tiny")
REPO = ENTRY.repo
ALLOWED = Settings(allow_pr=True)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Patience, "pause", 0.001)


def discussions(hub: FakeHub) -> list[str]:
    return [request.path for request in hub.log if request.path.endswith("/discussions")]


def test_the_fake_hub_lists_pull_requests_as_the_client_reads_them(hub: FakeHub) -> None:
    main = hub.add(REPO, OPT)
    number, commit = hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    hub.open_pull(REPO, {}, Thread("a question", "reader", pull=False))
    hub.open_pull(REPO, {"README.md": b""}, Thread("a typo", "helper", "closed"))
    refs = HfApi().list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.target_commit for ref in refs.branches] == [main]
    assert {ref.ref: ref.target_commit for ref in refs.pull_requests or []}[f"refs/pr/{number}"] == commit
    api = HfApi()
    assert [thread.num for thread in api.get_repo_discussions(REPO)] == [3, 2, 1]
    assert [thread.num for thread in api.get_repo_discussions(REPO, discussion_type="pull_request")] == [3, 1]
    assert [thread.num for thread in api.get_repo_discussions(REPO, discussion_status="open", author=BOT)] == [1]


# ---- taken


def test_the_conversion_is_pinned_and_said_in_the_record(hub: FakeHub) -> None:
    main = hub.add(REPO, OPT)
    number, commit = hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    (record,) = json_lines("overlap", REPO, "--allow-pr")
    assert record["commit"] == commit != main
    assert record["file"] == "model.safetensors"
    assert record["notes"] == [
        f"the head is from pull request {number} by {BOT} ({TITLE!r}), commit {commit}: main has no safetensors."
    ]
    assert (record["repo"], record["revision"]) == (REPO, "main")
    done = succeed("overlap", REPO, "--allow-pr")
    assert done.stderr == f"warning: {REPO}: {record['notes'][0]}\n"
    (plan,) = json_lines("plan", REPO, "--allow-pr")
    assert (plan["commit"], plan["file"], plan["notes"]) == (commit, "model.safetensors", record["notes"])

    plain = measure_head(ENTRY)
    assert (plain.commit, plain.file, plain.notes) == (main, "pytorch_model.bin", ())
    assert plain.statistics == record["statistics"]


@pytest.mark.parametrize("shards", [1, 3])
def test_sharded_conversions_too(shards: int, hub: FakeHub) -> None:
    hub.add(REPO, opt_like(shards=2))
    _, commit = hub.open_pull(REPO, weight_files(OPT.tensors, shards=shards), Thread(TITLE, BOT))
    found = plan_head(ENTRY, allow_pr=True).location
    assert found.commit == commit
    assert found.file.endswith(".safetensors")
    assert found.checkpoint_bytes == sum(
        len(content)
        for name, content in weight_files(OPT.tensors, shards=shards).items()
        if name.endswith(".safetensors")
    )


def test_what_is_stored_is_not_measured_again_with_the_option_or_without(hub: FakeHub) -> None:
    hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    first = {flag: succeed("overlap", REPO, "--json", *flag).stdout for flag in ((), ("--allow-pr",))}
    assert len({json.loads(line)["commit"] for line in first.values()}) == 2
    assert len(list(ResultStore("reports/data/heads").records())) == 2
    hub.take_log()
    for flag, printed in first.items():
        assert succeed("overlap", REPO, "--json", *flag).stdout == printed
    assert weights_requests(hub) == []


def test_a_record_that_does_not_say_it_is_made_again(hub: FakeHub) -> None:
    """The commit of the pull request, measured by its own name first: that record knows of no pull request."""
    hub.add(REPO, OPT)
    _, commit = hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    (by_name,) = json_lines("overlap", f"{REPO}@{commit}", "--stat", "norms,overlap")
    assert by_name["notes"] == []
    (allowed,) = json_lines("overlap", REPO, "--allow-pr", "--stat", "norms")
    assert "pull request 1 by" in allowed["notes"][0]
    (stored,) = ResultStore("reports/data/heads").records()
    assert set(stored.statistics["tokens"]) == {"norms", "overlap"}  # nothing that was stored is lost


def test_the_newest_that_can_be_trusted_is_taken(hub: FakeHub) -> None:
    hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    number, commit = hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    hub.open_pull(REPO, weight_files(opt_like(seed=5).tensors), Thread(TITLE, "mallory"))
    hub.open_pull(REPO, {"README.md": b"nothing converted"}, Thread(TITLE, BOT))
    for n in range(5):  # more than one page of what is not asked for
        hub.open_pull(REPO, {"README.md": b"%d" % n}, Thread("Fix a typo", "helper"))
    found = plan_head(ENTRY, allow_pr=True).location
    assert (number, found.commit) == (2, commit)
    taken, empty, mallory = found.notes
    assert f"pull request 2 by {BOT}" in taken
    assert empty.startswith(f"pull request 4 by {BOT}")
    assert empty.endswith("is not used: there is no safetensors file in it.")
    assert mallory == f"pull request 3 by mallory ({TITLE!r}) is not used: it is not {BOT}'s."


# ---- not taken


def test_never_without_the_option(hub: FakeHub) -> None:
    main = hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    (record,) = json_lines("overlap", REPO)
    assert (record["commit"], record["file"], record["notes"]) == (main, "pytorch_model.bin", [])
    assert discussions(hub) == []
    assert not any("refs" in request.path for request in hub.log)


def test_a_revision_with_safetensors_is_not_asked_about(hub: FakeHub) -> None:
    main = hub.add(REPO, pythia_like())
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    found = plan_head(ENTRY, allow_pr=True).location
    assert (found.commit, found.notes) == (main, ())
    assert discussions(hub) == []


def test_a_file_that_is_there_needs_no_conversion_and_one_that_is_not_may(hub: FakeHub) -> None:
    main = hub.add(REPO, OPT)
    _, commit = hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    assert plan_head(ENTRY, file="pytorch_model.bin", allow_pr=True).location.commit == main
    assert plan_head(ENTRY, file="model.safetensors", allow_pr=True).location.commit == commit


REFUSED = {
    "another author": (Thread(TITLE, "mallory"), "is not SFconvertbot's"),
    "an author who looks like the bot": (Thread(TITLE, "SFConvertbot"), "is not SFconvertbot's"),
    "a deleted author": (Thread(TITLE, "deleted"), "is not SFconvertbot's"),
    "another title": (Thread("Adding safetensors", BOT), None),
    "closed": (Thread(TITLE, BOT, "closed"), None),
    "merged": (Thread(TITLE, BOT, "merged"), None),
    "a draft": (Thread(TITLE, BOT, "draft"), None),
    "a discussion": (Thread(TITLE, BOT, pull=False), None),
}


@pytest.mark.parametrize(("thread", "note"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_open_conversion_of_the_bot_is_never_read(thread: Thread, note: str | None, hub: FakeHub) -> None:
    """The checkpoint of main is read then, and where somebody tried, the record says so."""
    main = hub.add(REPO, OPT)
    hub.open_pull(REPO, weight_files(opt_like(seed=5).tensors), thread)
    record = measure_head(ENTRY, ALLOWED)
    assert (record.commit, record.file) == (main, "pytorch_model.bin")
    assert len(discussions(hub)) == 1
    assert not any("refs" in request.path for request in hub.log)
    assert len(record.notes) == (note is not None)
    assert all(str(note) in said and "pull request 1" in said for said in record.notes)


def test_a_conversion_of_other_weights_is_refused(hub: FakeHub) -> None:
    """main was trained further since the bot came by."""
    hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    further = hub.add(REPO, {"pytorch_model.bin": opt_like(seed=5)["pytorch_model.bin"]})
    record = measure_head(ENTRY, ALLOWED)
    assert (record.commit, record.file) == (further, "pytorch_model.bin")
    (note,) = record.notes
    assert note.endswith("is not used: main has other weights now than it was made of.")


def test_another_revision_than_the_bot_has_seen_is_not_replaced(hub: FakeHub) -> None:
    hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    step = hub.add(REPO, opt_like(seed=7), branch="step7")
    found = plan_head(ModelEntry(REPO, "step7"), allow_pr=True).location
    assert found.commit == step
    assert "step7 has other weights" in found.notes[0]


def test_a_repository_of_no_weights_at_all_is_not_filled(hub: FakeHub) -> None:
    hub.add(REPO, {"config.json": OPT["config.json"]})
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    done = llmsuper("plan", REPO, "--allow-pr")
    assert done.exit_code == 5
    assert "there is no weight file" in the_error(done)


def test_a_local_folder_has_no_pull_requests(tmp_path: Path, hub: FakeHub) -> None:
    folder = OPT.write(tmp_path / "model")
    assert plan_head(ModelEntry(str(folder), local=True), allow_pr=True).location.file == "pytorch_model.bin"
    assert hub.take_log() == []


# ---- trouble


@pytest.mark.parametrize(
    ("kind", "arg", "then"),
    [
        ("status", (403, {}, b"{}"), "access is forbidden"),
        ("html", None, "the answer is not JSON"),
        ("status", (200, {"Content-Type": "application/json"}, b'{"discussions": [{}]}'), "not that of a Hub"),
        ("status", (200, {"Content-Type": "application/json"}, b"[]"), "not that of a Hub"),
    ],
    ids=["forbidden", "html", "not a Hub", "a list"],
)
def test_an_answer_that_is_none_is_one_error(kind: str, arg: object, then: str, hub: FakeHub) -> None:
    hub.add(REPO, OPT)
    hub.fault(kind, "/discussions", times=99, arg=arg)
    done = llmsuper("overlap", REPO, "--allow-pr")
    assert done.exit_code == 4
    assert then in the_error(done)
    assert weights_requests(hub) == []


def test_trouble_that_passes_is_waited_for(hub: FakeHub) -> None:
    hub.add(REPO, OPT)
    _, commit = hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    hub.fault("status", "/discussions", times=2, arg=(503, {}, b""))
    hub.fault("status", "/paths-info", method="POST", times=2, arg=(503, {}, b""))
    assert plan_head(ENTRY, allow_pr=True).location.commit == commit


def test_offline_the_answer_is_remembered(hub: FakeHub) -> None:
    """Taken or refused; and a model that was never asked about is an error, rather than another checkpoint."""
    hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    hub.add("a/refused", OPT)
    hub.open_pull("a/refused", CONVERTED, Thread(TITLE, "mallory"))
    hub.add("a/never-asked", OPT)
    online = json_lines("overlap", REPO, "a/refused", "--allow-pr")
    succeed("overlap", "a/never-asked")
    hub.take_log()
    script = f"llmsuper overlap {REPO} a/refused a/never-asked --allow-pr --force --json --results offline"
    done = shell(script, HF_HUB_OFFLINE="1")
    assert hub.take_log() == []
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{**record, "made_by": None} for record in records] == [{**record, "made_by": None} for record in online]
    *said, error, summary = done.stderr.splitlines()
    assert [line.split(":")[0] for line in said] == ["warning", "warning"]
    assert error == (
        "error: a/never-asked: the Hub cannot be asked for a safetensors conversion. "
        "Run this again online, or without --allow-pr."
    )
    assert summary == "1 of 3 models failed: a/never-asked"


def test_a_hub_that_goes_away_between_two_questions_is_an_error(hub: FakeHub) -> None:
    hub.add(REPO, OPT)
    hub.open_pull(REPO, CONVERTED, Thread(TITLE, BOT))
    hub.fault("status", r"refs%2Fpr|refs/pr", times=99, arg=(404, {}, b""))
    with pytest.raises(HubError):
        plan_head(ENTRY, allow_pr=True)
