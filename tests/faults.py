"""The table of faults: what is served, to which checkpoints, and what llmsuper says or recovers.

Every row is run end to end: the command `llmsuper overlap`, the real client, the loopback Hub. What must hold of a row
is in `test_faults`. The table as markdown, from running it:

    python -m tests.faults
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from llmsuper.errors import CheckpointError, HubError, LlmsuperError
from llmsuper.hub.client import Patience
from llmsuper.hub.rowcache import RowCache
from llmsuper.store import ResultStore
from tests.checkpoints import opt_like, pythia_like, torch_bytes
from tests.command import llmsuper, shell, the_error
from tests.conftest import HOME, HUB, empty_home
from tests.fake_hub import FakeHub, Fault
from tests.test_gguf import stored_rows
from tests.test_gguf import write as write_gguf

if TYPE_CHECKING:
    from llmsuper.types import HeadRecord

REPO = "org/model"
TOKEN = "hf_reader"
ANY = "GET|HEAD"
EVER = -1
"""`times` of a fault that never ends."""
SIZES = {"rows": 2000, "columns": 32, "tokens": 1900}


# ---- the checkpoints


@dataclass(frozen=True)
class Subject:
    """A checkpoint in one format."""

    files: dict[str, bytes]
    head_file: str
    head: bytes
    """The rows as they are stored."""
    arguments: tuple[str, ...] = ()


def _gguf() -> Subject:
    rows = stored_rows("Q8_0", SIZES["rows"], SIZES["columns"])
    with tempfile.TemporaryDirectory() as folder:
        other = {"token_embd.weight": (rows[::-1].copy(), "Q8_0")}
        path = write_gguf(Path(folder) / "x.gguf", {**other, "output.weight": (rows, "Q8_0")}, tokens=SIZES["rows"])
        return Subject({"x.gguf": path.read_bytes()}, "x.gguf", rows.tobytes(), ("--file", "x.gguf"))


def _built(build: Callable[..., Any], *, legacy: bool = False, **how: Any) -> Subject:
    made = build(**SIZES, **how)
    files = dict(made) | ({made.head_file: torch_bytes(made.tensors, legacy=True)} if legacy else {})
    return Subject(files, made.head_file, made.head.contiguous().numpy().tobytes() if made.head.dtype.itemsize else b"")


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "safetensors": cache(partial(_built, pythia_like)),
    "safetensors, sharded": cache(partial(_built, pythia_like, shards=2)),
    "torch zip": cache(partial(_built, opt_like)),
    "torch zip, sharded": cache(partial(_built, opt_like, shards=2)),
    "torch legacy": cache(partial(_built, opt_like, legacy=True)),
    "GGUF": cache(_gguf),
}
"""The checkpoints by format; `llmsuper` finds the head of each in a file of its own or among others."""

ALL = tuple(SUBJECTS)
READERS = ("safetensors", "torch zip, sharded", "GGUF")
"""One of each reader, for what does not depend on the file."""
ZIPS = ("torch zip", "torch zip, sharded")
ONE = ("safetensors",)


# ---- what is served


Plan = Callable[[FakeHub, Subject], object]


def fault(kind: str, *paths: str, **fields: Any) -> Plan:
    """One fault of `fake_hub.FAULTS`, of the CDN and without end unless `fields` say otherwise."""
    return lambda hub, _: hub.fault(kind, *paths, **{"origin": "cdn", "times": EVER, **fields})


def every_fourth(kind: str, *args: Any, **fields: Any) -> Plan:
    """One request is struck, with one of `args` after the other, and the next three are not, until the run ends."""
    return lambda hub, _: [
        hub.fault(kind, arg=arg, after=3 * i, **fields) for i, arg in enumerate([*(args or [None])] * 30)
    ]


def of_the_rows(kind: str, arg: Callable[[Subject], Any]) -> Plan:
    """A fault of the answer that holds the rows."""
    return lambda hub, subject: hub.fault(kind, origin="cdn", after=ranges(subject) - 1, arg=arg(subject))


def both(*plans: Plan) -> Plan:
    return lambda hub, subject: [plan(hub, subject) for plan in plans]


class Meanwhile(Fault):
    """Something else happens at a request, which is then answered as if it had not."""

    def strikes(self, request: Any, stage: str) -> bool:
        if super().strikes(request, stage):
            self.arg()
        return False


def moving_branch(hub: FakeHub, _: Subject) -> None:
    """Every request but the first finds that `main` has just got another commit."""
    seeds = iter(range(100, 200))
    new_commit = lambda: hub.add(REPO, pythia_like(seed=next(seeds)))  # noqa: E731
    hub.faults.append(Meanwhile("stall", method=ANY, times=EVER, after=1, arg=new_commit))


def expiring(hub: FakeHub, subject: Subject) -> None:
    """The rows' body is cut in the middle, and at the next request the signed URL is past its hour."""
    of_the_rows("cut", middle)(hub, subject)
    hub.fault("expire", origin="cdn", after=ranges(subject))


def about(**fields: Any) -> Plan:
    """What the repository says of itself."""

    def plan(hub: FakeHub, _: Subject) -> None:
        hub.tokens.add(TOKEN)
        for name, value in fields.items():
            setattr(hub.repos[REPO], name, value)

    return plan


def without_its_file(hub: FakeHub, subject: Subject) -> None:
    headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
    hub.fault("status", f"/{re.escape(subject.head_file)}", method=ANY, times=EVER, arg=(404, headers, b""))


def without_sizes(hub: FakeHub, subject: Subject) -> None:
    said = {"id": REPO, "sha": hub.repos[REPO].branches["main"], "siblings": [{"rfilename": f} for f in subject.files]}
    hub.fault("status", f"{REPO}/revision/", times=EVER, arg=(200, {}, json.dumps(said).encode()))


def down_after_a_run(hub: FakeHub, subject: Subject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(UNDISTURBED, subject, Path(folder))
    hub.fault("reset", method=ANY, times=EVER)


def middle(subject: Subject) -> int:
    return len(subject.head) // 2


PLACES: dict[str, Callable[[Subject], int]] = {
    "the first byte": lambda _: 1,
    "half": middle,
    "all but the last byte": lambda subject: len(subject.head) - 1,
}

BUSY = [(code, {}, b"") for code in (500, 502, 503, 504)]


# ---- the table


@dataclass(frozen=True)
class Trouble:
    """One row: what is served, and what must come of it."""

    served: str
    plan: Plan
    said: str = ""
    """A regular expression that the error matches; empty: the run recovers."""
    error: type[LlmsuperError] = HubError
    of: tuple[str, ...] = ()
    """The checkpoints that this is done to; none named: all that recover, and one of each reader that do not."""
    again: Callable[[Subject], int] = field(default=lambda _: 0)
    """How many bytes more than undisturbed may cross the network, at most: those that are fetched again."""
    arguments: tuple[str, ...] = ()
    model: str = REPO
    environment: dict[str, str] = field(default_factory=dict)
    patience: float = 10.0
    """Seconds that the client waits for the next bytes of a body: long, so that a busy machine is no fault of its own."""
    run: Callable[[list[str]], tuple[int, str]] = field(default=lambda arguments: in_this_process(arguments))
    passes: bool = True
    """Whether the same command succeeds once the Hub is well again."""

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.of or (READERS if self.said else ALL)


def in_this_process(arguments: list[str]) -> tuple[int, str]:
    """Exit status and error of `llmsuper overlap …`."""
    done = llmsuper("overlap", *arguments)
    return done.exit_code, the_error(done) if done.exit_code else ""


def with_a_full_disk(arguments: list[str]) -> tuple[int, str]:
    """The same where no file may be larger than 100 kB: the tokenizer fits, the head does not."""
    done = shell(f"ulimit -f 100; exec llmsuper overlap {' '.join(arguments)}")
    return done.returncode, done.stderr.removeprefix("error: ").strip()


def twice_at_once(arguments: list[str]) -> tuple[int, str]:
    """The same by two processes."""
    with ThreadPoolExecutor(2) as pool:
        both_done = list(pool.map(shell, [f"exec llmsuper overlap {' '.join(arguments)}"] * 2))
    return max(done.returncode for done in both_done), both_done[0].stderr + both_done[1].stderr


RECOVERED: dict[str, Trouble] = {
    "an honest 206 of less than was asked": Trouble(
        "every range answered with at most 30,000 bytes", fault("short", arg=30_000)
    ),
    **{
        f"{end} after {place} of the rows": Trouble(
            f"the body of the rows ends by {end} after {place}",
            of_the_rows(kind, count),
            again=count if kind == "rst" else lambda _: 0,  # an RST takes along what is in flight
        )
        for end, kind in (("FIN", "cut"), ("RST", "rst"))
        for place, count in PLACES.items()
    },
    "FIN in every fourth body": Trouble(
        "every fourth answer of the CDN ends after 100 bytes", every_fourth("cut", 100, origin="cdn")
    ),
    "no answer to every fourth request": Trouble(
        "RST in place of an answer to every fourth request, of either origin", every_fourth("reset", method=ANY)
    ),
    "a stalled body": Trouble(
        "the rows' body stops half way for longer than the client waits",
        of_the_rows("stall_body", lambda subject: (middle(subject), 600)),
        patience=0.5,
    ),
    "no Content-Length": Trouble(
        "every body chunked, without Content-Length",
        fault("chunked"),
        again=lambda _: 100,  # of framing
    ),
    "429 with Retry-After": Trouble(
        "every fourth request, of either origin, answered 429, Retry-After: 0",
        every_fourth("status", (429, {"Retry-After": "0"}, b""), method=ANY),
    ),
    "429 with RateLimit": Trouble(
        'the first request to either origin answered 429, RateLimit: "api";r=0;t=0, which asks for a wait of 1 s',
        both(
            *(
                fault("status", origin=origin, times=1, arg=(429, {"RateLimit": '"api";r=0;t=0'}, b""))
                for origin in ("hub", "cdn")
            )
        ),
        of=ONE,
    ),
    "500, 502, 503 and 504 now and then": Trouble(
        "every fourth request, of either origin, answered 500, 502, 503 or 504",
        every_fourth("status", *BUSY, method=ANY),
    ),
    "a burst of 500, 502, 503 and 504": Trouble(
        "a range answered 500, then 502, 503 and 504", both(*(fault("status", arg=busy, times=1) for busy in BUSY))
    ),
    "a signed URL that expires in mid-stream": Trouble(
        "the rows' body is cut half way, and then every URL signed so far is answered 403", expiring
    ),
    "a redirect to another origin": Trouble(
        "a private repository and a token; the CDN refuses any request that carries one",
        about(private=True, allowed_tokens=[TOKEN]),
        environment={"HF_TOKEN": TOKEN},
    ),
    "a branch that moves between requests": Trouble("another commit on `main` before every request", moving_branch),
    "a renamed repository": Trouble(
        "307 to the new name, for every request",
        lambda hub, _: hub.rename(REPO, "org/renamed"),
    ),
    "no sizes": Trouble("what a mirror says of a model that leaves out the sizes of its files", without_sizes),
    "the Hub down, on a second run": Trouble(
        "RST to every request, after a first run", down_after_a_run, arguments=("--force",)
    ),
    "two processes on one head": Trouble(
        "one repository to two processes at once",
        lambda *_: None,
        run=twice_at_once,
        again=lambda subject: usual(subject).sent - len(subject.head),  # but the head crosses once
        of=ONE,
    ),
}
"""What is recovered: the record, the kept head and the bytes moved are those of an undisturbed run."""

REFUSED: dict[str, Trouble] = {
    "Range ignored": Trouble(
        "200 and the whole file", fault("ignore_range"), "ignores byte ranges.*whole file.*`hf download org/model"
    ),
    "a wrong Content-Range": Trouble(
        "206 with the Content-Range of another range",
        lambda hub, subject: hub.fault(
            "content_range", origin="cdn", times=EVER, arg=f"bytes 1-2/{len(subject.files[subject.head_file])}"
        ),
        "asked for bytes .*, the server sent bytes 1 to 2",
    ),
    "no Content-Range": Trouble("206 without Content-Range", fault("no_content_range"), "206 with Content-Range None"),
    "a wrong total size": Trouble(
        "Content-Range with another size of the file", fault("total", arg=17), "changed while being read.*17 bytes now"
    ),
    "a wrong size in the redirect": Trouble(
        "X-Linked-Size: 17",
        fault("total", method="HEAD", origin="hub", arg=17),
        "changed while being read .17 bytes at first|what arrived is not .* should be of size 17",
    ),
    "more bytes than announced": Trouble(
        "bodies of 100 bytes more than their Content-Range", fault("excess", arg=100), "sent more than the .* announced"
    ),
    "gzip where identity was asked": Trouble(
        "Content-Encoding: gzip", fault("gzip"), "sent a gzip-encoded body where none was asked for"
    ),
    "an ETag that changes": Trouble(
        "another ETag from the second range on",
        fault("etag", after=1, arg="ab" * 32),
        "changed while being read .ETag .*abab",
    ),
    "another file behind the renewed URL": Trouble(
        "the signed URL expires before the rows, and the Hub then names another ETag",
        both(
            lambda hub, subject: hub.fault("expire", origin="cdn", after=ranges(subject) - 1),
            fault("etag", origin="hub", method="HEAD", path=r"\.(safetensors|bin|gguf)\?", after=1, arg="cd" * 32),
        ),
        "changed while being read .ETag .*cdcd",
    ),
    "a log-in page for the rows": Trouble("200 and HTML from the CDN", fault("html"), "an HTML page came in place"),
    "a log-in page for the Hub": Trouble("200 and HTML from the Hub", fault("html", origin="hub"), "not JSON"),
    "a flipped byte in a torch zip": Trouble(
        "one byte of the rows is another", of_the_rows("flip", middle), "CRC-32", CheckpointError, of=ZIPS
    ),
    "a rate limit of hours": Trouble(
        "429, Retry-After: 9999", fault("status", arg=(429, {"Retry-After": "9999"}, b"")), "too many requests"
    ),
    "403, whatever the URL": Trouble("403 from the CDN", fault("status", arg=(403, {}, b"")), "access is forbidden"),
    "503 without end": Trouble("503 from the CDN", fault("status", arg=BUSY[2]), "answered 503, several times"),
    "a gated repository": Trouble(
        "GatedRepo", about(gated="manual"), "gated.*Accept the licence at .*/org/model.*hf auth login", passes=False
    ),
    "a private repository": Trouble(
        "401 RepoNotFound", about(private=True), "no such model .*or it is private", passes=False
    ),
    "a token that is refused": Trouble(
        "401 to every request with the token",
        lambda *_: None,
        r"the token was refused \(401\)",
        environment={"HF_TOKEN": "hf_wrong"},
        passes=False,
    ),
    "a missing repository": Trouble(
        "401 RepoNotFound", lambda *_: None, "org/none@main: there is no such model", model="org/none", passes=False
    ),
    "a missing revision": Trouble(
        "404 RevisionNotFound", lambda *_: None, "no such branch, tag or commit", model=f"{REPO}@none", passes=False
    ),
    "a missing file": Trouble("404 EntryNotFound for the weights", without_its_file, "the repository has no such file"),
    "a missing shard": Trouble(
        "an index that names a shard which the repository lacks",
        lambda hub, subject: hub.add(REPO, {subject.head_file: None}),
        "which is not there. Download the shard too",
        CheckpointError,
        of=("safetensors, sharded", "torch zip, sharded"),
        passes=False,
    ),
    "a full disk": Trouble(
        "nothing unusual, to a process that may write files of 100 kB at most",
        lambda *_: None,
        r"head cache \S+: cannot be written .*llmsuper cache --clear",
        LlmsuperError,
        run=with_a_full_disk,
        of=("safetensors", "torch zip"),
    ),
}
"""What is refused: one error, no record, and no head that is kept as whole."""

TROUBLES: dict[str, Trouble] = {**RECOVERED, **REFUSED}


# ---- running a row


@dataclass(frozen=True)
class Ran:
    """What came of one run."""

    status: int
    error: str
    records: tuple[HeadRecord, ...]
    """The store, without `made_by`, which no two runs share."""
    heads: dict[str, bytes]
    """The kept heads that are whole, by name."""
    sent: int
    """Bytes of files, whole or in part; not those of the Hub's other answers and refusals."""
    log: list[Any]


@contextlib.contextmanager
def hurried(patience: float) -> Iterator[None]:
    """Retries wait for milliseconds, ours and those of the Hub's client; a stalled body is given up after `patience`."""
    from huggingface_hub import constants  # read from the environment at import: after `conftest` has set it

    assert HUB.url == constants.ENDPOINT
    sleep = time.sleep
    with (
        patch.object(Patience, "pause", 0.001),
        patch.object(time, "sleep", lambda seconds: sleep(min(seconds, 0.01))),
        patch.object(constants, "HF_HUB_DOWNLOAD_TIMEOUT", patience),
    ):
        yield


def serve(subject: Subject) -> None:
    """A Hub with nothing but this checkpoint, and nothing kept on this side."""
    HUB.reset()
    empty_home()
    HUB.add(REPO, subject.files)


def run(trouble: Trouble, subject: Subject, folder: Path) -> Ran:
    """`llmsuper overlap` on what HUB serves now, with the store in `folder`."""
    HUB.take_log()
    arguments = [trouble.model, *subject.arguments, *trouble.arguments, "-q", "--results", str(folder)]
    with hurried(trouble.patience), patch.dict(os.environ, trouble.environment):
        status, error = trouble.run(arguments)
    return Ran(
        status,
        error,
        tuple(replace(record, made_by={}) for record in ResultStore(folder).records()),
        {kept.path.name: _rows(kept.path) for kept in RowCache().kept() if kept.complete},
        sum(r.sent for r in HUB.log if r.status in (200, 206) and not r.path.startswith("/api/models/")),
        HUB.take_log(),
    )


def _rows(path: Path) -> bytes:
    """What follows the header of a safetensors file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


UNDISTURBED = Trouble("nothing unusual", lambda *_: None)
_USUAL: dict[int, Ran] = {}


def usual(subject: Subject) -> Ran:
    """The undisturbed run."""
    if id(subject) not in _USUAL:
        raise LookupError("measure `usual` before the faults are planned")
    return _USUAL[id(subject)]


def ranges(subject: Subject) -> int:
    """How many ranges the undisturbed run asks for, of which the last is the rows."""
    return sum(request.origin == "cdn" for request in usual(subject).log)


def play(trouble: Trouble, subject: Subject, folder: Path) -> Ran:
    """One row on one checkpoint."""
    if id(subject) not in _USUAL:
        serve(subject)
        _USUAL[id(subject)] = run(UNDISTURBED, subject, folder / "usual")
    serve(subject)
    trouble.plan(HUB, subject)
    return run(trouble, subject, folder / "results")


def steps(subject: Subject) -> list[str]:
    """The requests of an undisturbed run, in words."""
    return [f"{request.method} {_place(request.origin, request.path)}" for request in usual(subject).log]


def down_from(step: int, kind: str = "reset", arg: Any = None) -> Trouble:
    """Both origins go down at a request, for good."""
    said = "the connection failed|answered 503|cannot be reached"
    plan = fault(kind, origin="", method=ANY, after=step, arg=arg)
    return Trouble(f"RST from request {step + 1} on", plan, said)


# ---- as markdown


def _place(origin: str, path: str) -> str:
    path = re.sub(r"[0-9a-f]{40}", "COMMIT", re.sub(r"[0-9a-f]{64}", "ETAG", path))
    return f"{origin}:{path}"


def _told(text: str, folder: Path) -> str:
    """A message without what differs from run to run: ports, folders, and the commit's seven digits."""
    for there, here in ((HUB.url, "http://hub"), (HUB.cdn_url, "http://cdn"), (str(HOME), "~"), (str(folder), "~")):
        text = text.replace(there, here)
    return text.replace("|", "\\|").replace("\n", " ")


def _outcome(trouble: Trouble, subject: Subject) -> str:
    with tempfile.TemporaryDirectory() as folder:
        ran = play(trouble, subject, Path(folder))
        if ran.status:
            return f"{type_of(ran.status)}: {_told(ran.error, Path(folder))}"
    assert ran.records == usual(subject).records
    again = trouble.again(subject)
    return "the same record, " + (f"at most {again:,} bytes more" if again else "no byte more")


def type_of(status: int) -> str:
    """The kinds of error that leave with this status, but for the ones that no row here has."""
    kinds = {kind.exit_code: kind.__name__ for kind in (LlmsuperError, HubError, CheckpointError)}
    return kinds[status]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        print("| fault | what is served | to | what llmsuper says |\n|---|---|---|---|")
        for name, trouble in TROUBLES.items():
            outcome = _outcome(trouble, SUBJECTS[trouble.subjects[0]]())
            to = "all six" if trouble.subjects == ALL else "; ".join(trouble.subjects)
            print(f"| {name} | {trouble.served} | {to} | {outcome} |", flush=True)
        subject = SUBJECTS["torch zip, sharded"]()
        play(UNDISTURBED, subject, Path(folder))
        print("\n| Hub and CDN down from this request on | what llmsuper says |\n|---|---|")
        for step, request in enumerate(steps(subject)):
            print(f"| {step + 1}: {request} | {_outcome(down_from(step), subject)} |", flush=True)


if __name__ == "__main__":
    main()
