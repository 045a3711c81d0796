"""What is stored is not measured again: after a kill, on a second run, offline; and what has changed is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import snapshot_download

from llmsuper.store import ResultStore
from tests.checkpoints import gpt2_like, pythia_like, qwen_tied, qwen_untied
from tests.command import PROGRAM, json_lines, llmsuper, shell, succeed, weights_requests
from tests.conftest import HOME, empty_home

if TYPE_CHECKING:
    from llmsuper.types import HeadRecord
    from tests.fake_hub import FakeHub


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SIX = {
    "a/1-pythia": pythia_like(seed=1),
    "a/2-gpt2": gpt2_like(seed=2),
    "a/3-qwen": qwen_tied(seed=3),
    "a/4-qwen-sharded": qwen_untied(seed=4, rows=6400, tokens=6000),
    "a/5-pythia-sharded": pythia_like(seed=5, shards=3),
    "a/6-gpt2": gpt2_like(seed=6),
}
TIMES = ("seconds", "date")
"""What of `made_by` no two runs share."""
COST = ("bytes_moved", "requests")
"""What of `made_by` depends on what was on this machine before."""


def add_six(hub: FakeHub) -> None:
    for repo, checkpoint in SIX.items():
        hub.add(repo, checkpoint)


def records(folder: str = "reports/data/heads", but: tuple[str, ...] = ()) -> dict[str, HeadRecord]:
    """The store by file name, each record whole but for `TIMES` and what `but` names of `made_by`."""
    return {
        path.name: replace(record, made_by={k: v for k, v in record.made_by.items() if k not in (*TIMES, *but)})
        for path, record in zip(sorted(Path(folder).glob("*.json")), ResultStore(folder).records(), strict=True)
    }


def costs(folder: str = "reports/data/heads") -> list[tuple[int, int]]:
    """Bytes moved and requests of each record."""
    made = [record.made_by for record in records(folder).values()]
    return [(by["bytes_moved"], by["requests"]) for by in made]


def written() -> dict[str, int]:
    """When each record of the store was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path("reports/data/heads").glob("*.json")}


def wait_for(condition: object, what: str, seconds: float = 60.0) -> None:
    """Until it holds; a test that waits for what does not come fails with its name."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def test_a_run_that_was_killed_goes_on_where_it_was(hub: FakeHub) -> None:
    """SIGKILL while the fourth of six heads is half read; the second run ends with the store of a run in one go."""
    add_six(hub)
    fourth = hub.repos["a/4-qwen-sharded"].commits[hub.repos["a/4-qwen-sharded"].branches["main"]]
    etag = fourth[SIX["a/4-qwen-sharded"].head_file].etag
    stalled = hub.fault("stall_body", etag, origin="cdn", after=1, arg=(300_000, 600))  # the header passes
    command = [str(PROGRAM), "overlap", "a/*", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: stalled.struck or run.poll() is not None, "the fourth head to be half read")
        os.kill(run.pid, signal.SIGKILL)
        printed, said = run.communicate()
    assert run.returncode == -signal.SIGKILL, said
    measured = [line.split("\t")[0] for line in printed.splitlines()]
    assert measured == list(SIX)[:3]
    before = written()
    assert [record.repo for record in ResultStore("reports/data/heads").records()] == measured

    hub.faults.clear()
    hub.take_log()
    second = succeed("overlap", "a/*", "-q")
    asked = {request.path.rsplit("/")[-1] for request in weights_requests(hub)}
    etags = {
        repo: {file.etag for file in hub.repos[repo].commits[hub.repos[repo].branches["main"]].values()} for repo in SIX
    }
    assert [bool(asked & etags[repo]) for repo in SIX] == [False] * 3 + [True] * 3
    assert second.stdout.startswith(printed)
    assert [line.split("\t")[0] for line in second.stdout.splitlines()] == list(SIX)
    assert before.items() <= written().items()  # not even written again

    empty_home()
    whole = succeed("overlap", "a/*", "-q", "--results", "whole")
    assert whole.stdout == second.stdout
    assert records("whole", but=COST) == records(but=COST)
    in_one_go, resumed = costs("whole"), costs()
    header = in_one_go[3][0] - SIX["a/4-qwen-sharded"].head.nbytes
    assert header == 1 << 16
    in_one_go[3] = (in_one_go[3][0] - header, in_one_go[3][1] - 1)  # where the fourth lies was remembered
    assert in_one_go == resumed
    assert len(resumed) == 6


SMALL_FILES = {"a/4-qwen-sharded": 3, "a/5-pythia-sharded": 3}
"""Of which the index of the shards; the others have config and tokenizer alone."""


def test_a_first_run_moves_the_headers_and_the_heads_alone(hub: FakeHub) -> None:
    """Requests of a head of one block: 1 for the commit and the list of files, 3 for each small file, and for the weight
    file 1 that asks where it lies, 1 for its header, 1 a block of rows."""
    add_six(hub)
    for repo, checkpoint in SIX.items():
        hub.take_log()
        succeed("overlap", repo)
        assert len(hub.log) == 1 + 3 * SMALL_FILES.get(repo, 2) + 3, [(r.method, r.path) for r in hub.log]
        header_read = min(1 << 16, len(checkpoint[checkpoint.head_file]))
        assert hub.bytes_sent("cdn") == header_read + checkpoint.head.nbytes


def test_a_second_run_moves_no_weights_and_prints_the_same(hub: FakeHub) -> None:
    add_six(hub)
    first = {form: succeed("overlap", "a/*", "--format", form).stdout for form in ("human", "json", "quiet")}
    for _ in range(2):
        hub.take_log()
        for form, printed in first.items():
            assert succeed("overlap", "a/*", "--format", form).stdout == printed
        assert weights_requests(hub) == []
    hub.take_log()
    told = succeed("overlap", *SIX, "-v").stderr.splitlines()
    assert all(line.endswith(": in the store already") for line in told)
    assert [(r.method, r.path) for r in hub.take_log()] == [
        ("GET", f"/api/models/{repo}/revision/main") for repo in SIX
    ]


def test_force_measures_again_and_finds_the_same(hub: FakeHub) -> None:
    hub.add("a/b", pythia_like())
    succeed("overlap", "a/b")
    before, same = records(), records(but=COST)
    ((moved, _),) = costs()
    assert moved == (1 << 16) + 81920
    first = written()
    hub.take_log()
    succeed("overlap", "a/b", "--force")
    assert weights_requests(hub) == []  # the head is kept
    assert written() != first
    assert records(but=COST) == same
    assert costs() == [(0, 0)]
    empty_home()
    hub.take_log()
    succeed("overlap", "a/b", "--force")
    assert [request.sent for request in weights_requests(hub)] == [1 << 16, 81920]
    assert records() == before


def test_a_branch_that_has_moved_is_measured_anew_and_both_records_stay(hub: FakeHub) -> None:
    old, new = pythia_like(seed=1), pythia_like(seed=2)
    first = hub.add("a/b", old)
    (before,) = json_lines("overlap", "a/b")
    second = hub.add("a/b", new)
    (after,) = json_lines("overlap", "a/b")
    assert (before["commit"], after["commit"]) == (first, second)
    assert before["statistics"] != after["statistics"]
    assert {record.commit for record in ResultStore("reports/data/heads").records()} == {first, second}
    hub.take_log()
    assert json_lines("overlap", f"a/b@{first}") == [before | {"revision": first}]
    assert weights_requests(hub) == []


def test_rows_rules_and_statistics_are_kept_apart_or_together(hub: FakeHub) -> None:
    """What is not in the store is measured; what measuring moves is the header and the head of a tensor not seen yet."""
    hub.add("a/b", pythia_like())
    header, head = 1 << 16, 81920
    for arguments, files, measured, moved in (
        (["--stat", "norms"], 1, True, [header, head]),
        (["--stat", "norms"], 1, False, []),
        ([], 1, True, []),
        (["--stat", "overlap"], 1, False, []),
        (["--rows", "all"], 2, True, []),
        (["--lm-head", "embed_out.weight"], 3, True, [header]),
        (["--lm-head", "gpt_neox.embed_in.weight"], 4, True, [header, head]),
        ([], 4, False, []),
        (["--lm-head", "embed_out.weight"], 4, False, []),
    ):
        hub.take_log()
        before = written()
        succeed("overlap", "a/b", *arguments)
        assert (written() != before) is measured, arguments
        assert [request.sent for request in weights_requests(hub)] == moved, arguments
        assert len(records()) == files, arguments


def test_a_local_file_that_has_changed_is_measured_anew(tmp_path: Path) -> None:
    folder = pythia_like(seed=1).write(tmp_path / "model")
    (one,) = json_lines("overlap", "./model")
    assert json_lines("overlap", "./model") == [one]
    pythia_like(seed=2).write(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    (two,) = json_lines("overlap", "./model")
    assert one["commit"] != two["commit"]
    assert len(records()) == 2


def test_offline_the_hub_cache_is_enough(hub: FakeHub) -> None:
    """A snapshot that the Hub's client has fetched is measured without a request, and gives what streaming gives."""
    hub.add("a/pythia", pythia_like())
    hub.add("a/sharded", qwen_untied())
    streamed = json_lines("overlap", "a/pythia", "a/sharded", "--results", "streamed")
    for repo in ("a/pythia", "a/sharded"):
        snapshot_download(repo)
    hub.take_log()
    (cached,) = json_lines("overlap", "a/pythia", "--results", "cached")
    assert weights_requests(hub) == []
    assert cached["made_by"]["bytes_moved"] == cached["made_by"]["requests"] == 0
    hub.take_log()
    script = "llmsuper overlap a/pythia a/sharded a/other --json; echo status $?; llmsuper plan a/sharded -q"
    offline = shell(script, HF_HUB_OFFLINE="1")
    *lines, status, plan = offline.stdout.splitlines()
    assert hub.take_log() == []
    assert (status, plan) == ("status 1", "a/sharded\t0")
    error, summary = offline.stderr.splitlines()
    assert "a/other@main: offline mode is on (HF_HUB_OFFLINE=1) and the Hub cache does not hold it" in error
    assert summary == "1 of 3 models failed: a/other"
    found = {record.repo: record for record in ResultStore("reports/data/heads").records()}
    for record in streamed:
        assert found[record["repo"]].statistics == record["statistics"]
        assert found[record["repo"]].commit == record["commit"]
    assert len(lines) == 2


def test_a_hub_that_is_gone_leaves_what_the_cache_holds(hub: FakeHub) -> None:
    hub.add("a/b", pythia_like())
    snapshot_download("a/b")
    hub.fault("status", "/api/models/a/b", times=100, arg=(503, {}, b""))
    done = llmsuper("overlap", "a/b", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(records()) == 1
    assert (HOME / "hub" / "models--a--b").is_dir()
