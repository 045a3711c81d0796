"""The laws of every row in model_lists, and what a malformed list is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmsuper.errors import CatalogError
from llmsuper.hub import catalog as module
from llmsuper.hub.catalog import CLAIMS, load_catalog
from llmsuper.hub.locate import TIED
from llmsuper.types import ModelEntry

ROOT = Path(__file__).parents[1]
CATALOG = load_catalog()

LIU2025: tuple[tuple[str, int, int, int, float], ...] = (
    ("facebook/opt-125m", 50272, 768, 2, 77.2),
    ("facebook/opt-350m", 50272, 512, 2, 51.5),
    ("facebook/opt-1.3b", 50272, 2048, 2, 205.9),
    ("facebook/opt-2.7b", 50272, 2560, 2, 257.4),
    ("facebook/opt-6.7b", 50272, 4096, 2, 411.8),
    ("facebook/opt-13b", 50272, 5120, 2, 514.8),
    ("facebook/opt-30b", 50272, 7168, 2, 720.7),
    ("facebook/opt-66b", 50272, 9216, 2, 926.6),
    ("Qwen/Qwen2.5-0.5B", 151936, 896, 2, 272.3),
    ("Qwen/Qwen2.5-1.5B", 151936, 1536, 2, 466.7),
    ("Qwen/Qwen2.5-3B", 151936, 2048, 2, 622.3),
    ("Qwen/Qwen2.5-7B", 152064, 3584, 2, 1090.0),
    ("Qwen/Qwen2.5-14B", 152064, 5120, 2, 1557.1),
    ("Qwen/Qwen2.5-32B", 152064, 5120, 2, 1557.1),
    ("Qwen/Qwen2.5-72B", 152064, 8192, 2, 2491.4),
    ("openai-community/gpt2", 50257, 768, 4, 154.4),
    ("openai-community/gpt2-medium", 50257, 1024, 4, 205.9),
    ("openai-community/gpt2-large", 50257, 1280, 4, 257.3),
    ("openai-community/gpt2-xl", 50257, 1600, 4, 321.6),
    ("EleutherAI/pythia-70m", 50304, 512, 2, 51.5),
    ("EleutherAI/pythia-160m", 50304, 768, 2, 77.3),
    ("EleutherAI/pythia-410m", 50304, 1024, 2, 103.0),
    ("EleutherAI/pythia-1b", 50304, 2048, 2, 206.0),
    ("EleutherAI/pythia-1.4b", 50304, 2048, 2, 206.0),
    ("EleutherAI/pythia-2.8b", 50304, 2560, 2, 257.6),
    ("EleutherAI/pythia-6.9b", 50432, 4096, 2, 413.1),
    ("EleutherAI/pythia-12b", 50688, 5120, 2, 519.0),
)
"""The 27 models of arXiv:2505.10465 with rows, columns, bytes per number, and megabytes (1e6) of the head as stored.

The models are those of github.com/liuyz0/SuperpositionScaling (LLMs/overlap-0.py); shapes and sizes were worked out
from the configurations and checked against the published sizes of the checkpoints' shards, apart from these lists.
"""

NON_EMBEDDING = {
    "70m": 18_915_328, "160m": 85_056_000, "410m": 302_311_424, "1b": 805_736_448, "1.4b": 1_208_602_624,
    "2.8b": 2_517_652_480, "6.9b": 6_444_163_072, "12b": 11_327_027_200,
}  # fmt: skip
"""Non-embedding parameters of Pythia, deduplicated or not, by the model card of EleutherAI/pythia-12b-deduped."""


MIXTURES = ("DeepSeek-V2-Lite", "DeepSeek-V2", "DeepSeek-V3-Base")
"""Mixtures of experts, which have many more parameters than their width and depth say."""

ROOMY = ("deepseek-llm-7b-base", "deepseek-llm-67b-base")
"""Heads with more rows to spare than any rule of padding gives: kept for tokens to come, by arXiv:2401.02954."""


# ---- the laws of every row


@pytest.mark.parametrize("entry", CATALOG.entries, ids=lambda entry: entry.repo)
def test_every_row_is_plausible(entry: ModelEntry) -> None:
    name = entry.repo.rpartition("/")[2]
    assert entry.width and entry.columns and entry.rows
    assert entry.columns <= entry.width
    if entry.vocabulary is not None:
        assert entry.vocabulary <= entry.rows < entry.vocabulary + (2560 if name in ROOMY else 1024)
    assert entry.lm_head and all(name.endswith(".weight") for name in entry.lm_head)
    assert CATALOG.find(entry.repo) == CATALOG.find(entry.repo.upper()) == entry
    if entry.params is not None:
        # A decoder of 6 to 126 blocks, each 12 width² or somewhat more, stands on top of one or two embeddings.
        blocks = (entry.params - entry.rows * entry.columns) / (12 * entry.width**2)
        assert 200 < blocks < 1200 if name in MIXTURES else 4 < blocks < 128


def test_the_exceptions_to_the_laws_are_models_of_the_catalog() -> None:
    for name in (*MIXTURES, *ROOMY):
        assert CATALOG.find(name).family == "deepseek"


@pytest.mark.parametrize("entry", CATALOG.entries, ids=lambda entry: entry.repo)
def test_every_candidate_for_a_head_is_a_name_that_heads_have(entry: ModelEntry) -> None:
    tied = [TIED[name] for name in entry.lm_head]
    assert tied == sorted(tied), "a head of its own comes before an input embedding"


@pytest.mark.parametrize("family", CATALOG.families.values(), ids=lambda family: family.name)
def test_every_family_says_where_its_claims_were_read(family: module.ModelGroup) -> None:
    claimed = {claim for claim in CLAIMS for entry in family.entries if getattr(entry, claim) is not None}
    narrower = any(entry.columns != entry.width for entry in family.entries)
    assert set(family.sources) == {*claimed, "lm_head"} - (set() if narrower else {"columns"})
    assert {entry.family for entry in family.entries} == {family.name}
    sizes = [entry.params or 0 for entry in family.entries]
    assert sizes == sorted(sizes), "rows stand in order of size"


def test_no_model_is_listed_twice() -> None:
    names = [entry.repo.lower() for entry in CATALOG.entries]
    assert len(set(names)) == len(names)


def test_the_list_of_the_paper_is_its_27_models() -> None:
    listed = CATALOG.lists["liu2025"]
    assert len(listed.entries) == len(LIU2025) == 27
    assert {entry.repo for entry in listed.entries} == {row[0] for row in LIU2025}
    assert "2505.10465" in listed.sources["source"]


@pytest.mark.parametrize(("repo", "rows", "columns", "itemsize", "megabytes"), LIU2025, ids=lambda value: str(value))
def test_heads_of_the_paper_have_their_shapes(
    repo: str, rows: int, columns: int, itemsize: int, megabytes: float
) -> None:
    entry = CATALOG.find(repo)
    assert (entry.rows, entry.columns) == (rows, columns)
    assert rows * columns * itemsize == pytest.approx(megabytes * 1e6, abs=0.051e6)


def test_opt_350m_alone_is_narrower_than_its_model() -> None:
    assert [e.repo for e in CATALOG.entries if e.columns != e.width] == ["facebook/opt-350m"]
    assert CATALOG.find("opt-350m").width == 1024


@pytest.mark.parametrize("size", NON_EMBEDDING)
@pytest.mark.parametrize("suffix", ["", "-deduped"])
def test_pythia_is_its_blocks_and_two_embeddings_of_these_rows(size: str, suffix: str) -> None:
    entry = CATALOG.find(f"EleutherAI/pythia-{size}{suffix}")
    assert entry.rows and entry.width and entry.params == NON_EMBEDDING[size] + 2 * entry.rows * entry.width


def test_a_claim_that_nobody_could_verify_is_told() -> None:
    assert CATALOG.find("opt-30b").note == "not verified: rows, params"
    assert CATALOG.find("gpt-j-6b").note == "not verified: vocabulary, lm_head"
    assert CATALOG.find("opt-13b").note is None


# ---- malformed lists, each with its message

GOOD = """
family = "a"
rows = 20
models = [{ repo = "o/n", width = 8 }]
[sources]
width = "a paper"
"""
HOSTILE: dict[str, tuple[str, str, str]] = {
    "not TOML": ("family = ", "", r"a\.toml: this is not TOML: .* Correct the file"),
    "unknown key": ("rows = 20", "row = 20", r"a\.toml: the key 'row' is unknown. Use one of: columns, family"),
    "no family": ('family = "a"', "", r"a\.toml: family is missing. Add it"),
    "another family": ('family = "a"', 'family = "b"', r"a\.toml: family is 'b'. Name the family and the file alike"),
    "no sources": ('[sources]\nwidth = "a paper"', "", r"a\.toml: sources is missing. Add it"),
    "empty source": ('"a paper"', '" "', r"a\.toml, sources: width is ' '. Write some text"),
    "source of nothing": ("width = \"a", "depth = \"a", r"a\.toml, sources: the key 'depth' is unknown"),
    "models no list": ("models = [{", "models = {", r"not TOML"),
    "models of text": ('[{ repo = "o/n", width = 8 }]', '["o/n"]', r"models is \['o/n'\]. Write a list of tables"),
    "unknown key of a row": ("width = 8", "width = 8, colums = 4", r"a\.toml, o/n: the key 'colums' is unknown"),
    "no repo": ('repo = "o/n", ', "", r"a\.toml, model 1: repo is missing. Add it"),
    "no owner": ('"o/n"', '"n"', r"a\.toml, n: repo is 'n'. Write owner/name"),
    "no width": (", width = 8", "", r"a\.toml, o/n: width is missing. Add it"),
    "text for a number": ("width = 8", 'width = "8"', r"o/n: width is '8'. Write a whole number of at least 1"),
    "a truth for a number": ("width = 8", "width = true", r"o/n: width is True. Write a whole number"),
    "a fraction": ("width = 8", "width = 8.0", r"o/n: width is 8\.0. Write a whole number"),
    "zero": ("width = 8", "width = 0", r"o/n: width is 0. Write a whole number of at least 1"),
    "number above the models": ("rows = 20", "rows = -1", r"a\.toml: rows is -1. Write a whole number"),
    "columns": ("width = 8", "width = 8, columns = 9", r"o/n: columns 9 exceeds width 8. Correct the row"),
    "vocabulary": ("width = 8", "width = 8, vocabulary = 21", r"o/n: vocabulary 21 exceeds rows 20. Correct the row"),
    "text for names": ("width = 8", 'width = 8, lm_head = "w"', r"lm_head is 'w'. Write a list of names"),
    "no names": ("width = 8", "width = 8, lm_head = []", r"o/n: lm_head is \[\]. Write a list of names"),
    "names twice": ("width = 8", 'width = 8, lm_head = ["w", "w"]', r"lm_head is .* Write a list of names"),
    "names of numbers": ("width = 8", "width = 8, lm_head = [1]", r"lm_head is \[1\]. Write a list of names"),
    "unverified": ("width = 8", 'width = 8, unverified = ["params"]', r"o/n: `unverified` names \['params'\], which"),
    "unknown list": ("width = 8", 'width = 8, lists = ["l"]', r"o/n: `lists` names \['l'\], which lists\.toml lacks"),
    "twice": ("width = 8 }", 'width = 8 }, { repo = "O/N", width = 8 }', r"O/N: this model is in a\.toml already"),
}  # fmt: skip
"""What is replaced in GOOD by what, and the message that follows."""

LISTS: dict[str, tuple[str, str]] = {
    "no table": ("l = 1", r"lists\.toml, l: l is 1. Write a table"),
    "no source": ('[l]\nabout = "x"', r"lists\.toml, l: source is missing. Add it"),
    "unknown key": ('[l]\nabout = "x"\nsource = "y"\nmodels = []', r"lists\.toml, l: the key 'models' is unknown"),
    "empty": (
        '[l]\nabout = "x"\nsource = "y"',
        r'lists\.toml, l: no model is in this list. Put lists = \["l"\] on a row',
    ),
    "name of a family": ('[a]\nabout = "x"\nsource = "y"', r"lists\.toml, a: this is the name of a family too"),
}


def test_the_good_list_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    catalog = load_catalog(tmp_path)
    assert catalog.entries == (ModelEntry("o/n", family="a", width=8, columns=8, rows=20),)
    assert catalog.lists == {}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_malformed_list_is_told_what_is_wrong(case: str, tmp_path: Path) -> None:
    old, new, message = HOSTILE[case]
    text = old if case == "not TOML" else GOOD.replace(old, new)
    assert text != GOOD
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(CatalogError, match=message) as caught:
        load_catalog(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "a.toml"))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("case", LISTS)
def test_a_malformed_table_of_lists_is_told_what_is_wrong(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "lists.toml").write_text(LISTS[case][0])
    with pytest.raises(CatalogError, match=LISTS[case][1]):
        load_catalog(tmp_path)


def test_one_model_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "b.toml").write_text(GOOD.replace('family = "a"', 'family = "b"'))
    with pytest.raises(CatalogError, match=r"b\.toml, o/n: this model is in a\.toml already. Keep one row"):
        load_catalog(tmp_path)


def test_a_file_that_is_not_text_and_a_folder_without_lists(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"there is no model list in it\. Give a folder"):
        load_catalog(tmp_path)
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogError, match=r"a\.toml: this is not TOML"):
        load_catalog(tmp_path)


# ---- where the lists lie, and what reading them costs


def test_the_lists_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.model_lists_folder() == ROOT / "model_lists"
    package = tmp_path / "llmsuper"
    monkeypatch.setattr(module, "PACKAGE", package)
    with pytest.raises(CatalogError, match=r"there is no such folder\. Install llmsuper again, or give --lists"):
        load_catalog()
    for folder in (tmp_path / "model_lists", package / "model_lists"):  # a checkout, then a wheel, which wins
        folder.mkdir(parents=True)
        (folder / "a.toml").write_text(GOOD)
        assert module.model_lists_folder() == folder
        assert len(load_catalog().entries) == 1


def test_reading_the_catalog_imports_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys; from llmsuper.hub.catalog import load_catalog, resolve_patterns as r\n"
        "assert len(r(['liu2025', 'x/y', 'EleutherAI/pythia-*'], load_catalog()).entries) > 27\n"
        "print(*sorted({'torch', 'huggingface_hub', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
