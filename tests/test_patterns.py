"""What each kind of pattern means: names of the catalog, paths, what the Hub lists, and what --exclude leaves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmsuper.errors import HubError, UnknownNameError
from llmsuper.hub.catalog import VARIANTS, Catalog, Selection, load_catalog, resolve_patterns, variant
from llmsuper.types import ModelEntry

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
    [("pythia", 10), ("pythia*", 18), ("pythia-*", 18), ("EleutherAI/pythia-1*", 9), ("liu2025", 27), ("*", 43)],
)
def test_how_many_models_a_pattern_means(pattern: str, count: int) -> None:
    assert len(resolve_patterns([pattern], CATALOG).entries) == count


def test_patterns_add_up_in_order_and_no_model_comes_twice() -> None:
    both = resolve_patterns(["facebook/OPT-1.3B", "gpt2", "opt", "gpt2-xl", "x/y", "X/Y"], CATALOG)
    opt = [entry.repo for entry in CATALOG.families["opt"].entries if entry.repo != "facebook/opt-1.3b"]
    gpt2 = [entry.repo for entry in CATALOG.families["gpt2"].entries]
    assert repos(both) == ["facebook/opt-1.3b", *gpt2, *opt, "x/y"]
    assert resolve_patterns([], CATALOG).entries == ()


def test_a_repository_that_no_list_knows_is_left_to_the_hub() -> None:
    (entry,) = resolve_patterns(["HuggingFaceTB/SmolLM2-135M"], CATALOG).entries
    assert entry == ModelEntry("HuggingFaceTB/SmolLM2-135M")


def test_a_revision_goes_with_every_model_of_the_pattern() -> None:
    selection = resolve_patterns(["pythia@step1000", "pythia-70m", "x/y@refs/pr/1"], CATALOG)
    assert [entry.revision for entry in selection.entries] == ["step1000"] * 10 + ["main", "refs/pr/1"]
    assert selection.entries[2].name == "EleutherAI/pythia-70m@step1000"
    assert selection.entries[2].rows == 50304


@pytest.mark.parametrize("revision", ["step*", "step[12]", "step?", "", "main@main"])
def test_revision_globs_are_refused_by_name(revision: str) -> None:
    with pytest.raises(
        UnknownNameError, match=rf"'{re.escape(revision)}' is not one exact revision\. Give the name of"
    ):
        resolve_patterns([f"EleutherAI/pythia-70m@{revision}"], CATALOG)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("gpt2-xll", "gpt2-xl"),
        ("pythai", "pythia"),
        ("liu2026", "liu2025"),
        ("qwen25", "qwen2.5"),
        ("zzz*", "gpt2, opt, pythia"),
        ("facebok/*/opt-13b", "opt-13b"),
        ("*/pythia-70n", "pythia-70m"),
        ("", "gpt2, opt, pythia"),
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
