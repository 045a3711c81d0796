"""Losses beside what was measured: `llmsuper fit NAME --records`, and results of lm-evaluation-harness, from end to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llmsuper.hub.catalog import load_catalog
from llmsuper.store import ResultStore
from tests.command import llmsuper, succeed
from tests.test_store import record

if TYPE_CHECKING:
    from pathlib import Path


def measured(folder: Path, family: str) -> Path:
    """Records of the family's models of the paper, whose overlap is twice 1/m."""
    store = ResultStore(folder)
    for entry in load_catalog().families[family].entries:
        if "liu2025" in entry.lists:
            assert entry.width is not None
            store.put(record(2 / entry.width, repo=entry.repo, width=entry.width, family=family))
    return folder


def test_only_models_with_a_record_are_fitted(tmp_path: Path) -> None:
    folder = measured(tmp_path / "heads", "pythia")
    joined = succeed("fit", "liu2025", "--records", "--results", folder, "--bootstrap", "0", "--json")
    alone = succeed("fit", "liu2025", "--where", "family=pythia", "--bootstrap", "0", "--json")
    found, expected = (json.loads(done.stdout)["fit"] for done in (joined, alone))
    assert found["n_points"] == expected["n_points"] == 32
    assert found["params"] == expected["params"]
    assert "losses without record: EleutherAI" not in joined.stderr
    assert "facebook/opt-125m" in joined.stderr


def test_a_column_of_the_records_can_be_the_variable(tmp_path: Path) -> None:
    folder = measured(tmp_path / "heads", "pythia")
    arguments = ("fit", "liu2025", "--records", "--results", folder, "--bootstrap", "0", "--json")
    by_own, by_record = (json.loads(succeed(*arguments, "--x", x).stdout)["fit"] for x in ("d_model", "width"))
    assert by_record["params"] == by_own["params"]


def test_no_records_is_one_error(tmp_path: Path) -> None:
    done = llmsuper("fit", "liu2025", "--records", "--results", tmp_path)
    assert done.exit_code == 7
    assert "there is no record in it. Measure models with `llmsuper overlap`" in done.stderr


def test_results_of_the_evaluation_harness(tmp_path: Path) -> None:
    """Bits per byte of Pythia models that obey a law, as the harness writes them."""
    widths = {e.repo: e.width for e in load_catalog().families["pythia"].entries if e.width and 512 <= e.width <= 5120}
    for repo, width in widths.items():
        bits = (1.0 + 60.0 / width) / 0.6931471805599453
        results = {
            "results": {
                "wikitext": {"alias": "wikitext", "bits_per_byte,none": bits, "bits_per_byte_stderr,none": "N/A"}
            },
            "config": {"model": "hf", "model_args": f"pretrained={repo}"},
            "model_name": repo,
        }
        (tmp_path / f"results_{width}_{repo.rpartition('-')[2]}.json").write_text(json.dumps(results))
    done = succeed("fit", "--lm-eval", tmp_path, "--law", "power-floor", "--bootstrap", "0", "--json")
    found = json.loads(done.stdout)["fit"]
    assert found["n_points"] == len(widths)
    assert abs(found["params"]["alpha"] - 1.0) < 1e-3
