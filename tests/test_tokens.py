"""llmsuper tokens: reading corpora, tokenizers, counts, and both ways to the exponent."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import tracemalloc
from collections import Counter
from pydoc_data.topics import topics  # Python's own language reference, which every Python ships (PSF licence)
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors, trainers

from llmsuper.errors import BackendError, CheckpointError, FitError, LlmsuperError, UnknownNameError
from llmsuper.tokens import TOKENIZERS, TokenCounts, count_tokens, fit_ranks, open_corpus, open_tokenizer
from llmsuper.tokens.corpora import PIECE
from llmsuper.tokens.counts import GROUPS
from llmsuper.tokens.power_law import METHODS, fit_likelihood, fit_line
from tests.command import json_lines, llmsuper, succeed, the_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fake_hub import FakeHub

REFERENCE = "\n".join(topics.values())


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of 600 tokens trained on the language reference; it asks for truncation, padding and a first token."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([REFERENCE[:100_000]], trainer)
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    library.enable_truncation(16)
    library.enable_padding(length=16)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    library.save(str(path))
    return path


def counted(frequencies: list[int] | np.ndarray) -> TokenCounts:
    """Counts with these frequencies, spread evenly over the groups."""
    by_id = np.asarray(frequencies, dtype=np.int64)
    groups = np.array([by_id // GROUPS + (g < by_id % GROUPS) for g in range(GROUPS)])
    return TokenCounts("made", open_tokenizer("bytes"), groups, GROUPS, complete=True)


def zipf(alpha: float, support: int, tokens: int, seed: int) -> np.ndarray:
    """Counts of ranks 1 … support when tokens are drawn from the law itself."""
    p = np.arange(1, support + 1) ** -alpha
    return np.random.default_rng(seed).multinomial(tokens, p / p.sum())


# ---- reading ----


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_text_file_comes_back_whole_in_pieces_that_end_at_lines(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("reference.txt.gz" if packed else "reference.txt")
    data = REFERENCE.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    pieces = list(open_corpus(str(path)).pieces())
    assert "".join(pieces) == REFERENCE
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= PIECE
    assert all(piece.endswith("\n") for piece in pieces[:-1])


@pytest.mark.parametrize("text", ["", "one", "x" * (3 * PIECE), "word " * PIECE, "é" * PIECE + "\n", "\ufefflate"])
def test_any_text_comes_back_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    assert "".join(open_corpus(str(path)).pieces()) == text.removeprefix("\ufeff")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "A.JSONL"])
def test_json_lines_are_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = b'{"text": "one"}\n\n{"text": "two\\n2", "body": "x"}'
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert list(open_corpus(str(path)).pieces()) == ["one", "two\n2"]


BAD: dict[str, tuple[str, bytes, type[LlmsuperError], str]] = {
    "not UTF-8": ("a.txt", b"one\ntwo\nthr\xe9e\n", FitError, r"a\.txt, line 3: not UTF-8.*iconv"),
    "cut in a character": ("a.txt", "one\né".encode()[:-1], FitError, "line 2: not UTF-8"),
    "JSONL not UTF-8": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', FitError, "line 2: not UTF-8"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', FitError, "line 2: not JSON.*Correct the line"),
    "no field": ("a.jsonl", b'{"text": "a"}\n\n{"body": "b"}\n', FitError, "line 3: no field 'text'.*'body'.*--field"),
    "field not text": ("a.jsonl", b'{"text": 3}\n', FitError, "line 1: 'text' is int, not text"),
    "not an object": ("a.jsonl", b"[1]\n", FitError, "line 1: list, not an object"),
    "not gzip": ("a.txt.gz", b"plain", FitError, "not a whole gzip file"),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-12], FitError, "not a whole gzip file"),
    "empty": ("a.txt", b"", FitError, "no token in 0 texts under bytes.*Give a corpus"),
    "empty fields": ("a.jsonl", b'{"text": ""}\n', FitError, "no token in 1 texts"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_bad_corpus_is_one_clear_error(tmp_path: Path, case: tuple[str, bytes, type[LlmsuperError], str]) -> None:
    name, data, kind, message = case
    path = tmp_path / name
    path.write_bytes(data)
    corpus = open_corpus(str(path))
    with pytest.raises(kind, match=message):
        count_tokens(corpus.name, corpus.pieces(), open_tokenizer("bytes"))
    done = llmsuper("tokens", path, "--tokenizer", "bytes")
    assert (done.exit_code, done.stdout) == (kind.exit_code, "")
    assert re.search(message, the_error(done))


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no\.txt: there is no such file.*hub:owner/name"):
        open_corpus(str(tmp_path / "no.txt"))
    with pytest.raises(UnknownNameError, match="this is a folder"):
        open_corpus(str(tmp_path))


def test_a_data_set_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python itself does for a package that may not be imported
    with pytest.raises(BackendError, match="pip install datasets"):
        open_corpus("hub:allenai/c4")
    done = llmsuper("tokens", "hub:allenai/c4", "--tokenizer", "bytes")
    assert done.exit_code == 2
    assert "--max-tokens" in done.stderr


# ---- tokenizers ----


def test_the_built_in_tokenizers() -> None:
    words, by_byte = open_tokenizer("words"), open_tokenizer("bytes")
    (ids,) = words.encode(["The cat's hat, the CAT's 2 hats"])
    assert [words.token(i) for i in ids.tolist()] == ["the", "cat's", "hat", "the", "cat's", "2", "hats"]
    (ids,) = by_byte.encode(["é\n"])
    assert [by_byte.token(i) for i in ids.tolist()] == ["\\xc3", "\\xa9", "\\n"]
    assert set(TOKENIZERS) == {"words", "bytes"}


def test_a_tokenizer_file_counts_every_token_and_adds_none(bpe: Path) -> None:
    tokenizer = open_tokenizer(str(bpe))
    assert tokenizer.vocabulary == 600
    sample = REFERENCE[:2500]
    assert sample.isascii()
    (ids,) = tokenizer.encode([sample])
    assert 0 not in ids
    assert len(ids) > 16
    text = "".join(tokenizer.token(i) for i in ids.tolist()).replace("Ġ", " ").replace("Ċ", "\n")
    assert text == sample
    (folder,) = open_tokenizer(str(bpe.parent)).encode([sample])
    assert np.array_equal(folder, ids)


def test_a_tokenizer_of_the_hub(hub: FakeHub, bpe: Path) -> None:
    hub.add("someone/model", {"tokenizer.json": bpe.read_bytes(), "config.json": b"{}"})
    (ids,) = open_tokenizer("someone/model").encode(["for x in y"])
    assert np.array_equal(ids, open_tokenizer(str(bpe)).encode(["for x in y"])[0])


def test_a_repository_without_tokenizer_json(hub: FakeHub, bpe: Path) -> None:
    model = json.loads(bpe.read_text(encoding="utf-8"))["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    files = {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": merges.encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
        "config.json": b'{"model_type": "gpt2"}',
    }
    hub.add("someone/older", files)
    (ids,) = open_tokenizer("someone/older").encode(["for x in y"])
    assert np.array_equal(ids, open_tokenizer(str(bpe)).encode(["for x in y"])[0])
    hub.add("someone/none", {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        open_tokenizer("someone/none")


@pytest.mark.parametrize("name", ["wrods", "no/such/tokenizer.json", "./tokenizer.json"])
def test_an_unknown_tokenizer(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"bytes, words, the path of a tokenizer\.json, or owner/name"):
        open_tokenizer(name)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"model": {"type": "WordPiece"}}', b"\xff\xfe", b"[1, 2]"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("name", ["words", "bytes", "bpe"])
def test_a_lone_surrogate_of_a_json_text_is_counted_by_all(name: str, bpe: Path) -> None:
    tokenizer = open_tokenizer(str(bpe) if name == "bpe" else name)
    assert len(tokenizer.encode([json.loads('"a \\ud800 b"')])[0]) >= 2


# ---- counts ----


def test_counts_are_those_of_a_counter(tmp_path: Path) -> None:
    path = tmp_path / "reference.txt"
    path.write_text(REFERENCE, encoding="utf-8")
    corpus, tokenizer = open_corpus(str(path)), open_tokenizer("words")
    counts = count_tokens(corpus.name, corpus.pieces(), tokenizer)
    expected = Counter(word for words in tokenizer.encode([REFERENCE]) for word in words.tolist())
    assert {row["id"]: row["count"] for row in counts.rows()} == expected
    assert counts.tokens == expected.total()
    assert counts.types == len(expected)
    assert counts.frequencies.tolist() == sorted(expected.values(), reverse=True)
    assert counts.complete
    assert np.count_nonzero(counts.groups.any(axis=1)) >= GROUPS // 2


@pytest.mark.parametrize("texts", [1, 2, 19, 20, 21, 40, 41, 333, 1000])
def test_groups_are_stretches_of_the_corpus_of_about_one_size(texts: int) -> None:
    """Text t is the one word t, so the groups show which texts they hold."""
    counts = count_tokens("made", map(str, range(texts)), open_tokenizer("words"))
    held = [np.flatnonzero(group) for group in counts.groups if group.any()]
    assert np.array_equal(np.concatenate(held), np.arange(texts)), "every text in one group, in the order of the corpus"
    assert min(texts, GROUPS // 2) <= len(held) <= GROUPS
    assert len({len(group) for group in held[:-1]}) <= 2
    assert max(map(len, held)) <= 2 * max(1, texts // GROUPS + 1)


def test_leaving_a_group_out_leaves_its_texts_out() -> None:
    counts = count_tokens("made", [f"all text {t}" for t in range(GROUPS)], open_tokenizer("words"))
    without = counts.without_each_group()
    assert len(without) == GROUPS
    for frequencies in without:
        assert frequencies.tolist() == [GROUPS - 1] * 2 + [1] * (GROUPS - 1)


def test_counting_stops_at_the_limit() -> None:
    read = []

    def pieces() -> Iterator[str]:
        while True:  # a corpus without an end
            read.append(1)
            yield "a b c"

    counts = count_tokens("endless", pieces(), open_tokenizer("words"), max_tokens=1000)
    assert (counts.tokens, counts.complete) == (1000, False)
    assert counts.by_id[:3].tolist() == [334, 333, 333]
    exact = count_tokens("short", ["a b", "c"], open_tokenizer("words"), max_tokens=3)
    assert (exact.tokens, exact.complete) == (3, True)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """A limit: what counting 32 MiB of one line may hold beyond what 8 MiB does is a fraction of a piece of text."""
    peaks = []
    for mebibytes in (8, 32):
        path = tmp_path / "line.txt"
        with path.open("wb") as file:
            for _ in range(mebibytes * 8):
                file.write(b"abcdefg " * (1 << 14))
        corpus = open_corpus(str(path))
        tracemalloc.start()
        counts = count_tokens(corpus.name, corpus.pieces(), open_tokenizer("bytes"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts.tokens == mebibytes << 20
    assert peaks[1] < peaks[0] + (1 << 20)


# ---- the exponent ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 1.8])
@pytest.mark.parametrize("first", [1, 7])
def test_both_methods_recover_an_exact_power_law(method: str, alpha: float, first: int) -> None:
    frequencies = 1e9 * np.arange(first, 5000) ** -alpha  # as exact as float64: no rounding to whole tokens
    fit = METHODS[method](frequencies, first)
    assert fit.exponent == pytest.approx(alpha, abs=1e-6)
    assert fit.scale == pytest.approx(1e9, rel=1e-5)
    assert (fit.first, fit.last) == (first, 4999)
    assert fit.misfit == pytest.approx(0, abs=1e-6)


def test_the_line_weighs_each_decade_of_ranks_the_same() -> None:
    """Two power laws joined at rank 100 of 10,000: two decades of each, so the line lies half way. Likelihood sees the head."""
    ranks = np.arange(1, 10_001)
    frequencies = 1e9 * np.where(ranks <= 100, ranks**-1.0, 100.0 * ranks**-2.0)
    line, likely = fit_line(frequencies), fit_likelihood(frequencies)
    assert line.exponent == pytest.approx(1.5, abs=0.01)
    assert 1.0 < likely.exponent < 1.3
    assert likely.misfit > 0.02


def test_the_likelihood_is_at_its_maximum_and_its_interval_at_the_drop() -> None:
    frequencies = np.sort(zipf(1.1, 500, 20_000, seed=1))[::-1].astype(float)
    fit = fit_likelihood(frequencies)
    ranks = np.arange(1, 501)

    def minus_log_likelihood(alpha: float) -> float:
        p = ranks**-alpha
        return -float(frequencies @ np.log(p / p.sum()))

    best = minimize_scalar(minus_log_likelihood, bounds=(0.1, 3), method="bounded", options={"xatol": 1e-10})
    assert fit.exponent == pytest.approx(best.x, abs=1e-6)
    assert fit.interval is not None
    for end in fit.interval:  # 3.841 is the 95 % point of χ² with one degree of freedom in any table
        assert 2 * (minus_log_likelihood(end) - best.fun) == pytest.approx(3.841, abs=0.01)
    assert fit.stderr == pytest.approx((fit.interval[1] - fit.interval[0]) / (2 * 1.96), rel=0.01)


def test_the_likelihood_interval_covers_and_its_error_is_the_bootstrap_s() -> None:
    """Tokens drawn from the law: the interval holds the truth in 95 of 100 draws, and the error is that of the draws."""
    alpha, fits = 1.05, []
    for seed in range(200):
        drawn = zipf(
            alpha, 50, 40_000, seed
        )  # so many tokens of so few ranks that the counts keep the order of the law
        fits.append(fit_likelihood(drawn.astype(float)))
    covered = sum(fit.interval[0] < alpha < fit.interval[1] for fit in fits if fit.interval is not None)
    assert 180 <= covered <= 198  # 190 ± 3.1 expected
    assert np.std([fit.exponent for fit in fits]) == pytest.approx(fits[0].stderr, rel=0.2)
    p = zipf(alpha, 50, 40_000, seed=7) / 40_000
    rng = np.random.default_rng(0)
    again = [fit_likelihood(rng.multinomial(40_000, p).astype(float)).exponent for _ in range(200)]
    assert np.std(again) == pytest.approx(fits[7].stderr, rel=0.2)


def test_the_jackknife_is_the_error_of_independent_tokens_and_more_where_texts_differ() -> None:
    words = np.array([f"w{r}" for r in range(200)])
    p = np.arange(1, 201) ** -1.0
    rng = np.random.default_rng(3)
    alike = [" ".join(rng.choice(words, 400, p=p / p.sum())) for _ in range(200)]
    apart = []
    for _ in range(200):
        alpha = rng.uniform(0.6, 1.4)  # every text has a law of its own
        q = np.arange(1, 201) ** -alpha
        apart.append(" ".join(rng.choice(words, 400, p=q / q.sum())))
    fits = {}
    for name, texts in (("alike", alike), ("apart", apart)):
        fits[name] = fit_ranks(count_tokens(name, texts, open_tokenizer("words")), "maximum-likelihood")
    assert fits["alike"].jackknife == pytest.approx(
        fits["alike"].stderr, rel=0.6
    )  # 9 to 19 differences tell it to ± 24 %
    assert fits["apart"].jackknife is not None
    assert fits["apart"].jackknife > 3 * (fits["apart"].stderr or 0)


def test_one_text_has_no_error_over_texts() -> None:
    fit = fit_ranks(count_tokens("one", ["a a a a b b c"], open_tokenizer("words")), "least-squares")
    assert fit.jackknife is None


def test_a_window_of_ranks() -> None:
    ranks = np.arange(1, 2001)
    counts = counted((1e7 * np.where(ranks < 50, 50.0**-1.3, ranks**-1.3)).astype(int))
    for method in METHODS:
        assert fit_ranks(counts, method, first=50, last=1000).exponent == pytest.approx(1.3, abs=0.005)
        assert fit_ranks(counts, method).exponent < 1.25


@pytest.mark.parametrize("window", [(1, 5), (4, None), (3, 4)])
def test_too_few_ranks(window: tuple[int, int | None]) -> None:
    with pytest.raises(FitError, match=r"at least 3 ranks.*of the 4 different tokens.*--ranks"):
        fit_ranks(counted([9, 5, 3, 2]), "least-squares", first=window[0], last=window[1])


def test_an_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match="least-squares, maximum-likelihood"):
        fit_ranks(counted([9, 5, 3, 2]), "moments")


def test_real_text_is_near_zipf() -> None:
    """Python's language reference, 65,000 words: α near 1, as the paper finds for the tokens of large corpora (C.3)."""
    counts = count_tokens("reference", topics.values(), open_tokenizer("words"))
    for method in METHODS:
        fit = fit_ranks(counts, method)
        assert 0.85 < fit.exponent < 1.15
        assert fit.jackknife is not None
        assert 0 < fit.jackknife < 0.1


# ---- the command ----


def test_the_command_in_its_three_formats(tmp_path: Path, bpe: Path) -> None:
    path = tmp_path / "reference.txt"
    path.write_text(REFERENCE, encoding="utf-8")
    given = ("tokens", str(path), "--tokenizer", "words", "--tokenizer", str(bpe))
    human = succeed(*given)
    assert human.stdout.splitlines()[0].split()[:5] == ["corpus", "tokenizer", "tokens", "types", "ranks"]
    rows: list[dict[str, Any]] = json_lines(*given)
    assert [row["tokenizer"] for row in rows] == ["words", str(bpe)]
    for row, line, quiet in zip(
        rows, human.stdout.splitlines()[1:], succeed(*given, "-q").stdout.splitlines(), strict=True
    ):
        line_fit, likely = row["fits"]
        assert (line_fit["method"], likely["method"]) == ("least-squares", "maximum-likelihood")
        assert likely["interval"][0] < likely["exponent"] < likely["interval"][1]
        assert f"{row['tokens']:,}" in line
        assert f"{line_fit['exponent']:.3f}" in line
        assert f"{likely['exponent']:.3f}" in line
        assert [float(x) for x in quiet.split("\t")[2:]] == [line_fit["exponent"], likely["exponent"]]
    assert rows[0]["vocabulary"] is None
    assert rows[1]["vocabulary"] == 600


def test_together_counts_and_figure(tmp_path: Path) -> None:
    names = ["a.txt", "b.jsonl"]
    (tmp_path / "a.txt").write_text("one two two three three three " * 9, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "three four"}\n' * 4, encoding="utf-8")
    files = [str(tmp_path / name) for name in names]
    table, figure = tmp_path / "counts.csv", tmp_path / "figure.svg"
    given = ("tokens", *files, "--field", "body", "--tokenizer", "words", "--together", "--counts", str(table))
    (row,) = json_lines(*given, "--figure", figure)
    assert (row["tokens"], row["types"], row["texts"]) == (62, 4, 5)
    with table.open(encoding="utf-8", newline="") as file:
        found = {r["token"]: (int(r["rank"]), int(r["count"])) for r in csv.DictReader(file)}
    assert found == {"three": (1, 31), "two": (2, 18), "one": (3, 9), "four": (4, 4)}
    first = figure.read_bytes()
    assert b"rank of the token" in first
    succeed(*given, "--figure", figure)
    assert figure.read_bytes() == first, "the same figure gives the same file"


@pytest.mark.parametrize("ranks", ["5", "0:9", "9:3", "a:b", "4:4"])
def test_a_window_that_is_none_is_a_usage_error(tmp_path: Path, ranks: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b c", encoding="utf-8")
    done = llmsuper("tokens", str(path), "--tokenizer", "words", "--ranks", ranks)
    assert done.exit_code == 2
    assert "FIRST:LAST" in done.stderr


@pytest.mark.parametrize("option", ["--counts", "--figure"])
def test_a_file_that_cannot_be_written(tmp_path: Path, option: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a a a b b c", encoding="utf-8")
    done = llmsuper("tokens", str(path), "--tokenizer", "words", option, str(tmp_path / "no" / "such.svg"))
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr


def test_the_limit_and_the_missing_error_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a a a b b c d", encoding="utf-8")
    done = llmsuper("tokens", str(path), "--tokenizer", "words", "--max-tokens", "6")
    assert "stopped at 6 tokens" in done.stderr
    assert "one text only" in done.stderr


def test_an_order_of_documents_does_not_change_the_exponent() -> None:
    documents = [text for text in topics.values() if text]
    random.Random(0).shuffle(documents)
    one = fit_ranks(count_tokens("a", topics.values(), open_tokenizer("words")), "maximum-likelihood")
    other = fit_ranks(count_tokens("b", documents, open_tokenizer("words")), "maximum-likelihood")
    assert one.exponent == other.exponent
