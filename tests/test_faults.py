"""Whatever the Hub, the network or the disk does: the same record as without it, or one clear error and nothing kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.conftest import HUB
from tests.faults import BUSY, READERS, SUBJECTS, TROUBLES, UNDISTURBED, down_from, play, run, steps, usual

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [(name, format_) for name, trouble in TROUBLES.items() for format_ in trouble.subjects]


@pytest.mark.parametrize(("name", "format_"), ROWS)
def test_a_fault_is_recovered_or_named(tmp_path: Path, name: str, format_: str) -> None:
    trouble, subject = TROUBLES[name], SUBJECTS[format_]()
    ran = play(trouble, subject, tmp_path)
    expected = usual(subject)
    assert {request.auth for request in ran.log if request.origin == "cdn"} <= {None}, "a token has left the Hub"
    if not trouble.said:
        assert (ran.status, ran.error) == (0, "")
        assert ran.records == expected.records
        assert ran.heads == expected.heads
        assert ran.sent <= expected.sent + trouble.again(subject)
        return
    assert ran.status == trouble.error.exit_code, ran.error
    assert re.search(trouble.said, ran.error), ran.error
    assert (ran.records, ran.heads) == ((), {})
    assert ran.sent <= 2 * expected.sent
    if trouble.passes:
        HUB.faults.clear()
        healed = run(UNDISTURBED, subject, tmp_path / "healed")
        assert (healed.status, healed.records, healed.heads) == (0, expected.records, expected.heads)


@pytest.mark.parametrize("format_", SUBJECTS)
def test_the_undisturbed_run_is_right(tmp_path: Path, format_: str) -> None:
    subject = SUBJECTS[format_]()
    ran = play(UNDISTURBED, subject, tmp_path)
    assert (ran.status, ran.error, len(ran.records)) == (0, "", 1)
    assert list(ran.heads.values()) == [subject.head]
    assert ran == usual(subject) or ran.records == usual(subject).records


@pytest.mark.parametrize(
    ("format_", "kind", "arg"), [*((name, "reset", None) for name in READERS), (READERS[1], "status", BUSY[2])]
)
def test_the_hub_goes_down_at_each_step(tmp_path: Path, format_: str, kind: str, arg: object) -> None:
    """One error wherever it goes down; when it is up again, the same command ends as if nothing had been."""
    subject = SUBJECTS[format_]()
    play(UNDISTURBED, subject, tmp_path)
    expected = usual(subject)
    for step, request in enumerate(steps(subject)):
        trouble = down_from(step, kind, arg)
        ran = play(trouble, subject, tmp_path / str(step))
        assert ran.status == trouble.error.exit_code, (request, ran.error)
        assert re.search(trouble.said, ran.error), (request, ran.error)
        assert (ran.records, ran.heads) == ((), {}), request
        HUB.faults.clear()
        healed = run(UNDISTURBED, subject, tmp_path / "healed" / str(step))
        assert (healed.status, healed.records, healed.heads) == (0, expected.records, expected.heads), request
