"""What each kind of pattern means: names of the catalog, paths, what the Hub lists, and what --exclude leaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest

from llmsuper.errors import HubError, UnknownNameError
from llmsuper.hub.catalog import Catalog, Selection, load_catalog, resolve_patterns
from llmsuper.hub.listing import VARIANTS, natural, variant
from llmsuper.types import ModelEntry
from tests.command import json_lines, succeed

if TYPE_CHECKING:
    from tests.fake_hub import FakeHub

CATALOG = load_catalog()


def repos(selection: Selection) -> list[str]:
    return [entry.repo for entry in selection.entries]


# ---- names of the catalog


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("gpt2", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]),
        ("GPT2", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]),
        ("gpt2-xl", ["gpt2-xl"]),
        ("GPT2-XL", ["gpt2-xl"]),
        ("openai-community/gpt2-xl", ["gpt2-xl"]),
        ("OpenAI-Community/GPT2-XL", ["gpt2-xl"]),
        ("openai-community/gpt2-*", ["gpt2-medium", "gpt2-large", "gpt2-xl"]),
        ("openai-community/GPT2-?[lL]", ["gpt2-xl"]),
        ("gpt2-?l", ["gpt2-xl"]),
    ],
)
def test_names_of_the_catalog(pattern: str, expected: list[str]) -> None:
    selection = resolve_patterns([pattern], CATALOG)
    assert repos(selection) == [f"openai-community/{name}" for name in expected]
    assert selection.entries == tuple(CATALOG.find(repo) for repo in repos(selection))
    assert not selection.warnings


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("pythia", 10), ("pythia*", 18), ("pythia-*", 18), ("EleutherAI/pythia-1*", 9), ("liu2025", 27), ("Qwen*", 18)],
)
def test_how_many_models_a_pattern_means(pattern: str, count: int) -> None:
    assert len(resolve_patterns([pattern], CATALOG).entries) == count


def test_the_whole_catalog() -> None:
    assert resolve_patterns(["*"], CATALOG).entries == resolve_patterns(list(CATALOG.families), CATALOG).entries
    assert set(resolve_patterns(["*"], CATALOG).entries) == set(CATALOG.entries)


def test_patterns_add_up_in_order_and_no_model_comes_twice() -> None:
    both = resolve_patterns(["facebook/OPT-1.3B", "gpt2", "opt", "gpt2-xl", "x/y", "X/Y"], CATALOG)
    opt = [entry.repo for entry in CATALOG.families["opt"].entries if entry.repo != "facebook/opt-1.3b"]
    gpt2 = [entry.repo for entry in CATALOG.families["gpt2"].entries]
    assert repos(both) == ["facebook/opt-1.3b", *gpt2, *opt, "x/y"]
    assert resolve_patterns([], CATALOG).entries == ()


def test_a_repository_that_no_list_knows_is_left_to_the_hub() -> None:
    (entry,) = resolve_patterns(["Lab/pico-70m"], CATALOG).entries
    assert entry == ModelEntry("Lab/pico-70m")


def test_a_revision_goes_with_every_model_of_the_pattern() -> None:
    selection = resolve_patterns(["pythia@step1000", "pythia-70m", "x/y@refs/pr/1"], CATALOG)
    assert [entry.revision for entry in selection.entries] == ["step1000"] * 10 + ["main", "refs/pr/1"]
    assert selection.entries[2].name == "EleutherAI/pythia-70m@step1000"
    assert selection.entries[2].rows == 50304


@pytest.mark.parametrize("revision", ["", "main@main", "step*@main"])
def test_what_is_no_revision_is_refused_by_name(revision: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"'{re.escape(revision)}' is not a revision\. Give a branch, a tag"):
        resolve_patterns([f"EleutherAI/pythia-70m@{revision}"], CATALOG)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("gpt2-xll", "gpt2-xl"),
        ("pythai", "pythia"),
        ("liu2026", "liu2025"),
        ("qwen25", "qwen2.5"),
        ("zzz*", ", ".join(CATALOG.groups)),
        ("facebok/*/opt-13b", "opt-13b"),
        ("*/pythia-70n", "pythia-70m"),
        ("", ", ".join(CATALOG.groups)),
    ],
)
def test_what_matches_nothing_is_told_what_is_near(pattern: str, near: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_patterns([pattern], CATALOG)
    thing, found = str(caught.value).split(": ", 1)
    assert thing == repr(pattern)
    assert near in found
    assert "Give one of these" in found


def test_find_names_what_is_near() -> None:
    with pytest.raises(UnknownNameError, match=r"'opt-350': no model matches.*opt-350m"):
        CATALOG.find("opt-350")
    with pytest.raises(UnknownNameError, match="no model matches"):
        CATALOG.find("opt-*")


# ---- paths


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "owner" / "model.safetensors"
    file.parent.mkdir()
    file.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for pattern in ("owner", "owner/", "owner/model.safetensors", str(file), "~/owner", "."):
        (entry,) = resolve_patterns([pattern], CATALOG).entries
        assert entry.local
        assert Path(entry.repo).exists()
        assert entry.name == entry.repo
    assert not resolve_patterns(["owner/other"], CATALOG).entries[0].local


@pytest.mark.parametrize("pattern", ["./x", "../x", "/x/y", "~/x", "~nobody-here/x", "model.safetensors", "a/b.gguf"])
def test_a_path_that_is_not_there_is_never_taken_for_a_repository(pattern: str) -> None:
    with pytest.raises(
        UnknownNameError, match=f"^{re.escape(pattern)}: there is no such file or folder. Check the path"
    ):
        resolve_patterns([pattern], CATALOG)


def test_a_family_wins_over_a_folder_of_its_name_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    selection = resolve_patterns(["gpt2"], CATALOG)
    assert selection.entries == CATALOG.families["gpt2"].entries
    assert selection.warnings == ("gpt2 is taken from the catalog; the path of that name is ./gpt2",)
    (entry,) = resolve_patterns(["./gpt2"], CATALOG).entries
    assert entry.local


# ---- --exclude


@pytest.mark.parametrize("glob", ["*-xl", "GPT2-XL", "openai-community/gpt2-xl", "*/*-xl", "openai*xl"])
def test_exclude_matches_the_id_or_the_name(glob: str) -> None:
    selection = resolve_patterns(["gpt2"], CATALOG, exclude=[glob])
    assert [repo.rpartition("/")[2] for repo in repos(selection)] == ["gpt2", "gpt2-medium", "gpt2-large"]
    assert not selection.warnings


def test_an_exclude_that_matches_nothing_is_told() -> None:
    selection = resolve_patterns(["gpt2"], CATALOG, exclude=["*-xs"])
    assert len(selection.entries) == 4
    assert selection.warnings == ("--exclude '*-xs' matches none of the 4 models. Check its spelling.",)


def test_excluding_everything_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match=r"gpt2 opt: --exclude leaves none of 12 models\. Exclude less\."):
        resolve_patterns(["gpt2", "opt"], CATALOG, exclude=["gpt*", "opt*"])


# ---- what the Hub lists


@pytest.fixture
def pico(hub: FakeHub) -> FakeHub:
    """Six repositories of one owner, more than one page of the fake Hub."""
    for name in ("pico-1b", "pico-70m", "pico-70m-v0", "Pico-70M-seed3", "nano-70m", "pico-1b-chat-GPTQ"):
        hub.add(f"Lab/{name}", {"config.json": b"{}"})
    hub.add("Other/pico-70m", {"config.json": b"{}"})
    return hub


def test_a_glob_that_the_catalog_lacks_asks_the_hub(pico: FakeHub) -> None:
    selection = resolve_patterns(["lab/pico-70m*@step5"], CATALOG)
    assert repos(selection) == ["Lab/pico-70m", "Lab/Pico-70M-seed3", "Lab/pico-70m-v0"]
    assert {entry.revision for entry in selection.entries} == {"step5"}
    (warning,) = selection.warnings
    assert warning == (
        "lab/pico-70m*@step5: 2 of 3 models on the Hub look like variants by their names: "
        "Lab/Pico-70M-seed3 (another random seed), Lab/pico-70m-v0 (a release that was replaced). "
        "They are kept; leave them out with --exclude '*seed3*' --exclude '*v0*'"
    )
    assert all("author=lab" in request.query and "search=pico-70m" in request.query for request in pico.take_log())


def test_what_is_excluded_is_not_warned_of(pico: FakeHub) -> None:
    selection = resolve_patterns(["Lab/*"], CATALOG, exclude=["*-seed*", "*-v0", "*gptq"])
    assert repos(selection) == ["Lab/nano-70m", "Lab/pico-1b", "Lab/pico-70m"]
    assert not selection.warnings
    assert all("search" not in request.query for request in pico.take_log())


def test_the_catalog_is_asked_before_the_hub(pico: FakeHub) -> None:
    resolve_patterns(["*", "EleutherAI/pythia-*", "Lab/pico-1b", "gpt2*"], CATALOG)
    assert pico.take_log() == []


def test_a_glob_that_the_hub_lacks_too_is_unknown(pico: FakeHub) -> None:
    with pytest.raises(UnknownNameError, match=r"'Lab/pythia-71\*': no model matches. Near to it: .*pythia-.*Give one"):
        resolve_patterns(["Lab/pythia-71*"], CATALOG)
    assert [request.path for request in pico.take_log()] == ["/api/models"]


def test_a_hub_that_refuses_is_a_hub_error(pico: FakeHub) -> None:
    pico.fault("status", "/api/models", arg=(403, {}, b""))
    with pytest.raises(HubError, match=r"^the models of Lab: access is forbidden"):
        resolve_patterns(["Lab/pico-*"], CATALOG)


# ---- the revisions that the Hub lists


@pytest.fixture
def trained(hub: FakeHub) -> FakeHub:
    """A model of the catalog and one that is not, each with revisions; two branches of the latter are one commit."""
    for repo in ("EleutherAI/pythia-70m", "Lab/pico-70m"):
        for step in (1000, 2, 10, 1, 0):
            hub.add(repo, {"config.json": b"{}", "step": str(step).encode()}, branch=f"step{step}")
        hub.add(repo, {"config.json": b"{}"})
    pico = hub.repos["Lab/pico-70m"]
    pico.branches["step3"] = pico.branches["step2"]
    pico.git_tags |= {"v1.0": pico.branches["main"], "step20": pico.branches["step10"], "Step4": pico.branches["step1"]}
    hub.add("Lab/pico-1b", {"config.json": b"{}"})
    return hub


def revisions(selection: Selection) -> list[str]:
    return [entry.revision for entry in selection.entries]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("step*", ["step0", "step1", "step2", "step3", "step10", "step20", "step1000"]),
        ("step?", ["step0", "step1", "step2", "step3"]),
        ("step[12]0", ["step10", "step20"]),
        ("step[!0-3]*", None),
        ("*", ["main", "step0", "step1", "step2", "step3", "Step4", "step10", "step20", "step1000", "v1.0"]),
        ("S*", ["Step4"]),
        ("v*", ["v1.0"]),
        ("m*n", ["main"]),
    ],
)
def test_a_revision_glob_is_each_matching_branch_and_tag(
    trained: FakeHub, glob: str, expected: list[str] | None
) -> None:
    if expected is None:
        with pytest.raises(UnknownNameError, match=r"the Hub lists 10\."):
            resolve_patterns([f"Lab/pico-70m@{glob}"], CATALOG)
        return
    selection = resolve_patterns([f"Lab/pico-70m@{glob}"], CATALOG)
    assert selection.entries == tuple(ModelEntry("Lab/pico-70m", revision=revision) for revision in expected)
    assert not selection.warnings
    (request,) = trained.take_log()
    assert (request.path, request.query) == ("/api/models/Lab/pico-70m/refs", "")


def test_a_model_of_the_catalog_keeps_its_claims_at_every_revision(trained: FakeHub) -> None:
    selection = resolve_patterns(["pythia-70m@step*0"], CATALOG)
    assert revisions(selection) == ["step0", "step10", "step1000"]
    plain = CATALOG.find("pythia-70m")
    assert selection.entries == tuple(replace(plain, revision=revision) for revision in revisions(selection))
    assert selection.entries[0].rows == 50304
    assert len(trained.take_log()) == 1


def test_a_glob_of_models_and_a_glob_of_revisions(trained: FakeHub) -> None:
    assert trained.repos
    selection = resolve_patterns(["Lab/pico-*@step1*", "Lab/pico-70m@step10", "Lab/pico-70m@step2"], CATALOG)
    assert revisions(selection) == ["step1", "step10", "step1000", "step2"]
    assert {entry.repo for entry in selection.entries} == {"Lab/pico-70m"}
    assert selection.warnings == ("Lab/pico-*@step1*: 1 of 2 models have no such revision: Lab/pico-1b",)
    assert [entry.repo for entry in resolve_patterns(["Lab/*@ma*"], CATALOG).entries] == ["Lab/pico-1b", "Lab/pico-70m"]


def test_each_model_is_asked_for_its_revisions_once_and_none_that_is_excluded(trained: FakeHub) -> None:
    selection = resolve_patterns(["pythia*@step0"], CATALOG)  # the family, and each model of it by its name
    assert trained.take_log() == []
    assert len(selection.entries) == 18
    only = ["*-deduped", "*-[1-6]*"]
    assert [entry.name for entry in resolve_patterns(["pythia*@step?"], CATALOG, exclude=only).entries] == [
        f"EleutherAI/pythia-70m@step{step}" for step in (0, 1, 2)
    ]
    assert [request.path for request in trained.take_log()] == ["/api/models/EleutherAI/pythia-70m/refs"]
    with pytest.raises(UnknownNameError, match=r"--exclude leaves none of 1 models"):
        resolve_patterns(["Lab/pico-70m@step*"], CATALOG, exclude=["pico*"])


def test_pull_requests_are_listed_only_where_the_glob_asks_for_them(trained: FakeHub) -> None:
    about = [{"name": "refs/pr/9", "ref": "refs/pr/9", "targetCommit": "0" * 40}]
    about.append({"name": "refs/pr/10", "ref": "refs/pr/10", "targetCommit": "1" * 40})
    body = json.dumps({"branches": [], "converts": [], "tags": [], "pullRequests": about[::-1]}).encode()
    trained.fault("status", "/refs", arg=(200, {"Content-Type": "application/json"}, body))
    assert revisions(resolve_patterns(["Lab/pico-70m@refs/pr/*"], CATALOG)) == ["refs/pr/9", "refs/pr/10"]
    assert [request.query for request in trained.take_log()] == ["include_prs=1"]
    with pytest.raises(UnknownNameError, match=r"matches 'refs/pr/\*'; the Hub lists 0\. There is none at all\."):
        resolve_patterns(["Lab/pico-70m@refs/pr/*"], CATALOG)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "Lab/pico-70m@stepp1000*",
            "'Lab/pico-70m@stepp1000*': no revision matches 'stepp1000*'; the Hub lists 10. Near to it: step1000, step10",
        ),
        (
            "Lab/pico-1b@step*",
            (
                "'step*'; the Hub lists 1. Near to it: main. Give a revision that there is, or a "
                "wider glob; `llmsuper models 'Lab/pico-1b@*'` lists them."
            ),
        ),
        ("Lab/pico*@x*", "the Hub lists 10 for 2 models. Near to it: main, step0, step1, step2, "),
    ],
)
def test_a_revision_glob_that_matches_nothing_is_told_what_is_near(
    trained: FakeHub, pattern: str, message: str
) -> None:
    assert trained.repos
    with pytest.raises(UnknownNameError, match=re.escape(message)):
        resolve_patterns([pattern], CATALOG)


def test_a_hub_that_cannot_list_is_a_hub_error(trained: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"^the revisions of Lab/nano: there is no such model at .*Check the spelling"):
        resolve_patterns(["Lab/nano@step*"], CATALOG)
    for body, found in ((b"<html>", "the answer is not JSON"), (b"{}", "the answer is not that of a Hub")):
        trained.fault("status", "/refs", arg=(200, {"Content-Type": "application/json"}, body))
        with pytest.raises(HubError, match=f"^the revisions of Lab/pico-70m: {found}"):
            resolve_patterns(["Lab/pico-70m@step*"], CATALOG)
    trained.fault("status", "/refs", arg=(503, {"Retry-After": "0"}, b""), times=2)
    assert len(resolve_patterns(["Lab/pico-70m@step*"], CATALOG).entries) == 7
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline = (
        r"offline mode is on \(HF_HUB_OFFLINE=1\), and the Hub cache keeps no such list\. Unset HF_HUB_OFFLINE, or "
    )
    with pytest.raises(
        HubError, match=rf"^the revisions of Lab/pico-70m: {offline}name each revision as Lab/pico-70m@R"
    ):
        resolve_patterns(["Lab/pico-70m@step*"], CATALOG)
    with pytest.raises(HubError, match=rf"^the models of Lab: {offline}name each model as owner/name\."):
        resolve_patterns(["Lab/pico-*"], CATALOG)


def test_the_command_line_prints_revisions_in_their_order(trained: FakeHub) -> None:
    assert trained.repos
    done = succeed("models", "--quiet", "Lab/pico-70m@step*")
    assert done.stdout.split() == [f"Lab/pico-70m@step{step}" for step in (0, 1, 2, 3, 10, 20, 1000)]
    assert [row["width"] for row in json_lines("models", "EleutherAI/pythia-70m@step?")] == [512, 512, 512]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("step9", "step10"),
        ("stage1-step900-tokens4B", "stage1-step1000-tokens5B"),
        ("stage1-step1000-tokens5B", "stage2-ingredient1-step1000-tokens3B"),
        ("1", "a"),
        ("a", "a1"),
        ("v1.9", "v1.10"),
        ("main", "Step1"),
        ("step01", "step1"),
    ],
)
def test_natural_order(first: str, then: str) -> None:
    assert natural(first) < natural(then)


@pytest.mark.parametrize(
    ("row", "names"),
    list(
        enumerate(
            (
                ("a/pythia-70m-v0", "a/pythia-70m-deduped-v0"),
                ("a/pythia-70m-seed3", "a/x-seed-4"),
                ("a/x-step1431k-3T", "a/olmo-stage2-ingredient1", "a/x-global_step100", "a/x-tokens50B"),
                ("a/Qwen2.5-7B-Instruct", "a/llama-2-7b-chat-hf", "a/gemma-2b-it", "a/x-fine-tuned", "a/pythia-1b-sft"),
                ("a/x-reward-model", "a/Qwen2.5-Math-RM-72B"),
                ("a/x-GPTQ", "a/x-AWQ", "a/x-4bit", "a/Qwen2-7B-GGUF", "a/x-bnb-8bit", "a/x-w4a16"),
                ("a/Qwen2.5-VL-7B", "a/x-embedding"),
            )
        )
    ),
)
def test_variants_are_told_by_parts_of_their_names(row: int, names: tuple[str, ...]) -> None:
    for name in names:
        found = variant(name)
        assert found is not None
        assert found[1] == VARIANTS[row][1]


def test_base_models_are_not_taken_for_variants() -> None:
    plain = [entry.repo for entry in CATALOG.entries]
    plain += [
        "mistralai/Mistral-7B-v0.1",
        "a/pythia-70m-deduped",
        "allenai/OLMo-2-1124-7B",
        "a/whitfield",
        "a/seedling",
    ]
    assert [name for name in plain if variant(name)] == []


def test_an_empty_catalog_still_takes_repositories_and_paths(tmp_path: Path) -> None:
    catalog = Catalog({}, {})
    selection = resolve_patterns(["x/y", str(tmp_path)], catalog)
    assert selection.entries == (ModelEntry("x/y"), ModelEntry(str(tmp_path), local=True))
