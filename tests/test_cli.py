"""The verbs: what they print, what they move over the network, and that their own examples work."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
import torch

import llmsuper
from llmsuper.cli import main
from llmsuper.cli.table import count, size
from llmsuper.store import ResultStore
from tests.checkpoints import Checkpoint, gpt2_like, pythia_like, qwen_tied, qwen_untied, weight_files
from tests.command import json_lines, model_list, shell, succeed, weights_requests
from tests.command import llmsuper as run
from tests.conftest import empty_home

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_hub import FakeHub

HEADER_READ = 1 << 16
"""What is read of a weight file to find its header."""


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


FAMILY: dict[str, Checkpoint] = {
    "EleutherAI/pythia-tiny": pythia_like(seed=1),
    "EleutherAI/pythia-tiny-sharded": pythia_like(seed=2, shards=2),
}
OTHERS: dict[str, Checkpoint] = {
    "openai-community/gpt2": gpt2_like(seed=3),
    "Qwen/Qwen2.5-0.5B": qwen_tied(seed=4),
    "Qwen/Qwen2.5-7B": qwen_untied(seed=5),
}


@pytest.fixture
def lists(hub: FakeHub, tmp_path: Path) -> Path:
    """Model lists that know the tiny checkpoints on the Hub."""
    for repo, checkpoint in {**FAMILY, **OTHERS}.items():
        hub.add(repo, checkpoint)
    model_list(tmp_path / "lists", "pythia", *FAMILY, width=64, rows=640, lm_head=["embed_out.weight"])
    return model_list(tmp_path / "lists", "others", *OTHERS, width=64)


# ---- the main job, through real shells


@pytest.mark.parametrize(
    ("program", "verb", "pattern"),
    [("sh", "overlap", "EleutherAI/pythia-*"), ("bash", "models", '"EleutherAI/pythia-*"')],
    ids=["sh", "bash"],
)
def test_a_glob_works_quoted_and_not(program: str, verb: str, pattern: str, lists: Path) -> None:
    """A verb that measures, and one that starts in no time: both take patterns from the same argument."""
    done = shell(f"llmsuper {verb} {pattern} --lists {lists} -q", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == list(FAMILY)


def test_what_a_shell_expands_is_taken_as_paths(tmp_path: Path) -> None:
    for name, checkpoint in FAMILY.items():
        checkpoint.write(tmp_path / name)
    expanded = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("EleutherAI/pythia-*"))
    done = succeed("overlap", *expanded, "-q")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expanded == list(FAMILY)


# ---- what is printed


def test_a_table_for_people(lists: Path) -> None:
    done = succeed("overlap", "others", "--lists", lists)
    title, *lines = done.stdout.splitlines()
    assert title.split() == ["model", "rows", "padding", "m", "norm", "overlap", "x", "m", "floor", "centred", "x", "m"]
    assert [line.split()[:4] for line in lines] == [[repo, "600", "40", "64"] for repo in OTHERS]
    assert {len(line) for line in lines} == {len(title)}
    records = {record.repo: record for record in ResultStore("reports/data/heads").records()}
    for line in lines:
        repo, *_, overlap, ratio, floor, centred, centred_ratio = line.split()
        found, also = records[repo].statistic("overlap"), records[repo].statistic("centred_overlap")
        assert overlap == f"{found['mean_squared_overlap']:.4e}"
        assert ratio == f"{64 * found['mean_squared_overlap']:.2f}"
        assert floor == f"{found['mean_squared_overlap'] / ((600 - 64) / (64 * 599)):.2f}"
        assert (centred, centred_ratio) == (f"{also['mean_squared_overlap']:.4e}", f"{also['ratio_to_isotropic']:.2f}")
    assert done.stderr == ""


def test_json_is_the_record_and_quiet_the_number(lists: Path) -> None:
    lines = json_lines("overlap", "others", "--lists", lists)
    assert [line["repo"] for line in lines] == list(OTHERS)
    stored = {record.repo: record for record in ResultStore("reports/data/heads").records()}
    quiet = succeed("overlap", "others", "--lists", lists, "--format", "quiet").stdout.splitlines()
    for line, said in zip(lines, quiet, strict=True):
        record = stored[line["repo"]]
        assert line["statistics"] == record.statistics
        assert set(line["statistics"]) == {"tokens", "all"}
        assert said.split("\t")[0] == line["repo"]
        assert float(said.split("\t")[1]) == record.statistic("overlap")["mean_squared_overlap"]


def test_json_while_another_fails(lists: Path) -> None:
    done = run("overlap", "others", "Qwen/gone", "pythia", "--lists", lists, "--json")
    assert done.exit_code == 1
    assert [json.loads(line)["repo"] for line in done.stdout.splitlines()] == [*OTHERS, *FAMILY]
    assert done.stderr.splitlines()[-1] == "1 of 6 models failed: Qwen/gone"


def test_numbers_that_do_not_exist_are_null_and_a_dash(hub: FakeHub) -> None:
    """Fewer rows than columns: the Welch floor is 0, and nothing can be so many times it."""
    hub.add("a/b", pythia_like(rows=40, tokens=30))
    (line,) = json_lines("overlap", "a/b")
    assert line["statistics"]["tokens"]["overlap"]["welch_ratio"] is None
    assert succeed("overlap", "a/b").stdout.splitlines()[1].split()[7] == "–"


def test_only_some_statistics(hub: FakeHub) -> None:
    hub.add("a/b", pythia_like())
    title, line = succeed("overlap", "a/b", "--stat", "norms").stdout.splitlines()
    assert line.split()[:4] == ["a/b", "600", "40", "64"]
    assert len(line.split()) == 5
    assert title.index("norm") + len("norm") == len(line)  # its own column, and nothing after it


def test_verbose_says_what_each_head_cost(hub: FakeHub) -> None:
    hub.add("a/b", pythia_like())
    told = succeed("overlap", "a/b", "-v").stderr
    assert re.fullmatch(
        r"a/b@[0-9a-f]{13} model\.safetensors embed_out\.weight: 147\.5 kB moved in 3 requests, "
        r"\d+\.\d s, torch on (cpu|cuda) in float32\n",
        told,
    )


def test_rows_of_a_checkpoint_without_tokenizer_are_said_to_be_all(hub: FakeHub) -> None:
    checkpoint = pythia_like()
    del checkpoint["tokenizer.json"]
    hub.add("a/b", checkpoint)
    done = succeed("overlap", "a/b")
    assert done.stderr == (
        "warning: a/b: statistics are over every stored row: the checkpoint comes without tokenizer files\n"
    )
    assert done.stdout.splitlines()[1].split()[:4] == ["a/b", "640", "0", "64"]


def test_revisions_have_lines_of_their_own(hub: FakeHub) -> None:
    hub.add("a/b", pythia_like(seed=1))
    hub.add("a/b", pythia_like(seed=2), branch="step1")
    lines = [line.split("\t") for line in succeed("overlap", "a/b", "a/b@step1", "-q").stdout.splitlines()]
    assert [name for name, _ in lines] == ["a/b", "a/b@step1"]
    assert lines[0][1] != lines[1][1]


# ---- which models


def test_models_lists_and_excludes(lists: Path) -> None:
    assert succeed("models", "pythia", "--lists", lists, "-q").stdout.splitlines() == list(FAMILY)
    everything = [*OTHERS, *FAMILY]
    assert succeed("models", "--lists", lists, "-q").stdout.splitlines() == everything
    left = succeed("overlap", "pythia", "others", "--lists", lists, "--exclude", "*sharded*", "--exclude", "*7B", "-q")
    assert [line.split("\t")[0] for line in left.stdout.splitlines()] == [next(iter(FAMILY)), *list(OTHERS)[:2]]
    title, *lines = succeed("models", "pythia", "--lists", lists).stdout.splitlines()
    assert title.split()[:4] == ["model", "family", "width", "columns"]
    assert lines[0].split()[:5] == ["EleutherAI/pythia-tiny", "pythia", "64", "64", "640"]
    assert json_lines("models", "pythia", "--lists", lists)[0]["rows"] == 640


def test_models_of_the_catalog_ask_nothing_of_the_hub(hub: FakeHub) -> None:
    named = succeed("models", "liu2025", "-q").stdout.splitlines()
    assert len(named) == 27
    assert hub.take_log() == []


@pytest.mark.parametrize("form", ["folder", "file", "./folder/"])
def test_a_local_checkpoint(form: str, tmp_path: Path) -> None:
    checkpoint = gpt2_like()
    checkpoint.write(tmp_path / "folder")
    path = {"file": "folder/model.safetensors"}.get(form, form)
    (line,) = json_lines("overlap", path)
    assert (line["tensor"], line["rows"], line["padding_rows"]) == ("wte.weight", 640, 40)
    assert line["commit"].startswith("local-")
    assert line["made_by"]["bytes_moved"] == 0


# ---- what moves over the network


def test_a_head_of_real_size_costs_one_percent_more_at_most(hub: FakeHub) -> None:
    """The smallest head of the paper's families, 50,304 × 128 in float16, with the catalog's own claims."""
    head = torch.randn(50304, 128, generator=torch.Generator().manual_seed(0)).half()
    tensors = {"gpt_neox.embed_in.weight": head, "embed_out.weight": head.clone()}
    tiny = pythia_like(rows=640, tokens=600)
    config = json.loads(tiny["config.json"]) | {"hidden_size": 128, "vocab_size": 50304}
    vocab = {"model": {"vocab": {f"t{i}": i for i in range(50277)}}}
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": json.dumps(vocab).encode()}
    hub.add("EleutherAI/pythia-14m", {**files, **weight_files(tensors)})
    (plan,) = json_lines("plan", "EleutherAI/pythia-14m")
    assert plan["head_bytes"] == head.nbytes == 12_877_824
    empty_home()  # of what the plan has read and remembered
    hub.take_log()
    (record,) = json_lines("overlap", "EleutherAI/pythia-14m")
    assert hub.bytes_sent("cdn") == head.nbytes + HEADER_READ <= 1.01 * head.nbytes
    assert len(weights_requests(hub)) == 1 + 8  # the header, and eight blocks of 6,288 rows
    assert (record["width"], record["padding_rows"], record["family"]) == (128, 27, "pythia")
    assert record["statistics"]["tokens"]["overlap"]["ratio_to_isotropic"] == pytest.approx(1, rel=1e-3)


def test_a_plan_adds_up(lists: Path, hub: FakeHub) -> None:
    """The head and the header to the byte; the small files too, unless the server compresses them on the way."""
    everything = {**FAMILY, **OTHERS}
    title, *lines, total = succeed("plan", "pythia", "others", "--lists", lists).stdout.splitlines()
    assert title.split() == [
        "model",
        "commit",
        "dtype",
        "rows",
        "columns",
        "head",
        "to",
        "move",
        "checkpoint",
        "tensor",
    ]
    moved: dict[str, int] = {}
    for line, (repo, checkpoint) in zip(lines, everything.items(), strict=True):
        name, _, _, rows, columns, head, to_move, whole, tensor = line.split(maxsplit=8)
        assert (name, rows, columns, head) == (repo, "640", "64", count(checkpoint.head.nbytes))
        small = sum(len(content) for file, content in checkpoint.items() if not file.endswith(".safetensors"))
        header_read = min(HEADER_READ, len(checkpoint[checkpoint.head_file]))
        moved[repo] = checkpoint.head.nbytes + header_read + small
        assert to_move == count(moved[repo])
        assert whole == count(
            sum(len(content) for file, content in checkpoint.items() if file.endswith(".safetensors"))
        )
        assert tensor.endswith(f" in {checkpoint.head_file}")
        assert (" (tied)" in tensor) is (repo in list(OTHERS)[:2])
        assert line.index(tensor) == title.index("tensor")
    assert f"to move: {sum(moved.values()):,} bytes" in total
    assert total.startswith("5 heads, ")
    assert sum(len(request.range or "") > 0 for request in weights_requests(hub)) == 5  # headers; not one row


def test_sizes_for_people() -> None:
    sizes = {0: "0 B", 9_999: "9,999 B", 12_345: "12.3 kB", 51_500_000: "51.5 MB", 14_000_000_000: "14.00 GB"}
    assert {n: size(n) for n in sizes} == sizes


# ---- help


SMALLER: dict[str, tuple[str, dict[str, Any]]] = {
    "backends": (
        "llmsuper.cli.backends",
        {"TIMED": (300, 40), "PEAK_SIZE": 64, "COPY_BYTES": 1 << 16, "ROUNDS": 1},
    ),
    "report": ("llmsuper.report.sources", {"DRAWS": 20, "CHINCHILLA_DRAWS": 3}),
}
"""Constants by verb that say how often its example does a thing, or how much of it; nothing here looks at what they set."""


@pytest.mark.parametrize("verb", main.commands)
def test_every_verb_has_help_with_an_example_that_runs(
    verb: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = succeed(verb, "-h").stdout
    assert told == succeed(verb, "--help").stdout
    options = [option for option in main.commands[verb].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []
    example = re.search(r"Example: (llmsuper .+?)(?:\n\n|$)", str(main.commands[verb].epilog), re.DOTALL)
    assert example
    assert re.sub(r"\s+", " ", example[1]) in re.sub(r"\s+", " ", told)
    hub.add("EleutherAI/pythia-70m", pythia_like())
    lists: list[Any] = []
    if verb in ("models", "plan", "overlap"):  # the same words, of models that are small
        lists = ["--lists", model_list(tmp_path / "lists", "pythia", "EleutherAI/pythia-70m", width=64)]
    (tmp_path / "README.md").write_text("a text of words, and words again")  # what `tokens` counts
    module, constants = SMALLER.get(verb, ("llmsuper", {}))
    for name, value in constants.items():
        monkeypatch.setattr(importlib.import_module(module), name, value)
    program, *arguments = shlex.split(example[1])
    done = succeed(*arguments, *lists)
    assert program == "llmsuper"
    assert done.stdout


def test_help_names_every_verb_and_exit_status() -> None:
    told = succeed("--help").stdout
    assert all(re.search(rf"^  {verb} +\w", told, re.MULTILINE) for verb in main.commands)
    assert all(re.search(rf"\b{status} \w", told) for status in range(8))
    assert succeed("--version").stdout == f"llmsuper, version {llmsuper.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models"], ["overlap", "--help"]], ids=" ".join)
def test_a_light_verb_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, llmsuper.cli\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'transformers', 'huggingface_hub'}\n"
        f"try: llmsuper.cli.main({arguments!r})\n"
        "except SystemExit as end: print(sorted(heavy & set(sys.modules)), end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert done.stderr == ""
