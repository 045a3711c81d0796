"""The laws of every shipped table of losses, and what is said of losses that do not fit together."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from llmsuper.errors import CatalogError, FitError, UnknownNameError
from llmsuper.hub.catalog import load_catalog, model_lists_folder
from llmsuper.scaling.lm_eval import read_lm_eval
from llmsuper.scaling.losses import (
    METRICS,
    TABLES,
    TIDY,
    UNITS,
    join_losses,
    join_widths,
    load_losses,
    load_overlaps,
    load_published_fits,
    load_shapes,
    one_unit,
    read_csv,
)

if TYPE_CHECKING:
    from pathlib import Path

CATALOG = load_catalog()
LIU2025 = {entry.repo: entry for entry in CATALOG.lists["liu2025"].entries}

ROWS = {
    "chinchilla": 245,
    "fp16_perplexities": 32,
    "gadre2024": 832,
    "gemstones": 2797,
    "gpt2_gpt3": 44,
    "lambada": 670,
    "liu2025": 108,
    "olmo_ladder": 352,
    "pile_families": 48,
    "porian2024": 1160,
    "pythia_bits_per_byte": 150,
}

TELLING = (
    "family", "model_id", "dataset", "split", "step", "train_tokens", "schedule", "chinchilla_multiple",
    "flop_budget", "hparams", "warmup", "decay", "param_count",
)  # fmt: skip
"""Columns that together tell any two rows of a table apart."""


# ---- the shipped tables


def test_the_tables_are_the_files_of_the_folder_and_its_readme_names_each() -> None:
    told = (model_lists_folder() / "losses" / "README.md").read_text(encoding="utf-8")
    listed = {name: int(rows) for name, rows in re.findall(r"^\| `(\w+)\.csv` \| (\d+) \|", told, flags=re.M)}
    assert dict.fromkeys(TABLES) == dict.fromkeys(ROWS)
    assert listed == ROWS


@pytest.mark.parametrize("name", TABLES)
def test_a_table_keeps_the_laws(name: str) -> None:
    frame = load_losses(name)
    assert len(frame) == ROWS[name]
    assert tuple(frame.columns[: len(TIDY)]) == TIDY
    assert set(frame["metric"]) <= set(METRICS)
    assert set(frame["loss_unit"]) <= set(UNITS)
    for metric, value, nats in zip(frame["metric"], frame["value"], frame["loss_nats"], strict=True):
        assert 0 < nats < math.inf
        assert nats == pytest.approx({"nll": value, "ppl": math.log(value)}.get(metric, value * math.log(2)), rel=1e-6)
    for column in ("model_id", "family", "dataset", "split", "source", "source_detail", "licence"):
        assert (frame[column].str.strip() != "").all(), column
    for column in ("n_params", "d_model", "n_layers", "train_tokens"):
        assert str(frame[column].dtype) == "Int64"
        assert (frame[column].dropna() > 0).all()
    assert frame["d_model"].isna().all() if name == "chinchilla" else frame["d_model"].notna().all()
    assert not frame.duplicated([column for column in TELLING if column in frame]).any()


@pytest.mark.parametrize("name", TABLES)
def test_a_model_of_a_table_that_is_in_the_catalog_has_its_width(name: str) -> None:
    widths = {entry.repo: entry.width for entry in CATALOG.entries}
    frame = load_losses(name)
    known = frame[frame["model_id"].isin(widths)]
    assert (known["d_model"] == known["model_id"].map(widths)).all()
    by_case = {repo.lower(): repo for repo in widths}
    assert {by_case.get(repo.lower(), repo) for repo in frame["model_id"]} == set(frame["model_id"])


@pytest.mark.parametrize("name", TABLES)
def test_a_width_is_one_number_for_a_model(name: str) -> None:
    shapes = load_losses(name).groupby("model_id")[["d_model", "n_layers"]].nunique()
    assert (shapes <= 1).all().all()


def test_liu2025_has_every_model_of_the_list_on_four_data_sets() -> None:
    frame = load_losses("liu2025")
    assert set(frame["model_id"]) == set(LIU2025)
    assert (frame.groupby("model_id")["dataset"].nunique() == 4).all()
    assert len(frame) == 27 * 4
    for row in frame.itertuples():
        entry = LIU2025[row.model_id]
        assert (row.family, row.d_model, row[list(frame).index("columns") + 1]) == (
            entry.family,
            entry.width,
            entry.columns,
        )
    opt_350m = frame[frame["model_id"] == "facebook/opt-350m"].iloc[0]
    assert (opt_350m["d_model"], opt_350m["columns"]) == (1024, 512)


def test_the_printed_offsets_of_liu2025_and_its_losses_give_the_printed_error() -> None:
    frame, printed = load_losses("liu2025"), load_published_fits("liu2025")["printed"]
    offsets = [printed["E"][family][dataset] for family, dataset in zip(frame.family, frame.dataset, strict=True)]
    rest = frame["loss_nats"] - offsets - printed["A"] * frame["d_model"].astype("float64") ** -printed["alpha"]
    assert (rest**2).mean() == pytest.approx(
        printed["mean_squared_error"], abs=4e-7
    )  # the printed A and alpha are rounded


def test_published_overlaps_are_of_the_list_and_at_least_one_over_m() -> None:
    frame = load_overlaps("liu2025")
    assert len(frame) == 25
    assert set(LIU2025) - set(frame["model_id"]) == {"EleutherAI/pythia-70m", "EleutherAI/pythia-160m"}
    assert not frame["model_id"].duplicated().any()
    for repo, columns, width in zip(frame["model_id"], frame["columns"], frame["d_model"], strict=True):
        assert (columns, width) == (LIU2025[repo].columns, LIU2025[repo].width)
    assert (frame["mean_squared_overlap"] * frame["columns"]).between(4.9, 100).all()
    assert (frame["licence"] != "").all()


def test_shapes_of_chinchilla_give_their_own_parameters() -> None:
    frame = load_shapes("chinchilla")
    assert len(frame) == 50
    assert not frame["model_id"].duplicated().any()
    layer = 5 * frame["d_model"] * frame["kv_size"] * frame["n_heads"] + 2 * frame["d_model"] * frame["ffw_size"]
    counted = frame["n_layers"] * layer + 32000 * frame["d_model"]
    assert (counted == frame["n_params_from_shape"]).all()
    assert ((counted / frame["n_params"] - 1).abs() < 0.0081).all()


def test_five_points_of_chinchilla_are_marked() -> None:
    frame = load_losses("chinchilla")
    assert frame["excluded_by_besiroglu2024"].sum() == 5
    compute = 6 * frame["n_params"].astype("float64") * frame["train_tokens"].astype("float64")
    assert (compute / frame["train_flop"]).between(1 - 1e-6, 1 + 1e-6).all()
    published = load_published_fits("chinchilla")
    assert published["besiroglu2024"]["alpha"] == 0.3478
    assert published["hoffmann2022_printed"]["E"] == 1.69


def test_the_catalog_is_the_same_with_the_folders_of_tables_in_it() -> None:
    assert {path.stem for path in model_lists_folder().glob("*.toml")} == {*CATALOG.families, "lists"}
    assert not {"liu2025", "chinchilla"} & set(CATALOG.families)


def test_reading_the_names_of_the_tables_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, llmsuper.scaling.losses, llmsuper.scaling.lm_eval; print({'torch', 'pandas'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def test_an_unknown_table_is_told_which_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"no table of losses is named 'lui2025'.*Did you mean 'liu2025'"):
        load_losses("lui2025")


MALFORMED: dict[str, tuple[str, str]] = {
    "a column less": ("licence,", "licence is missing"),
    "a metric unknown": (",ppl,", "metric holds"),
    "a unit unknown": (",token,", "loss_unit holds"),
    "the wrong nats": ("2.0794415", "line 2: loss_nats"),
    "a loss that is text": (",8.0,", "this is not a table of model_lists"),
    "a width with a fraction": (",768,", "this is not a table of model_lists"),
}
REPLACED = {
    "licence,": "",
    ",ppl,": ",bits,",
    ",token,": ",tokens,",
    "2.0794415": "2.1",
    ",8.0,": ",x,",
    ",768,": ",1.5,",
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_table_is_a_catalog_error(fault: str, tmp_path: Path) -> None:
    good = f"{','.join(TIDY)},note\no/m,f,1,768,1,,d,test,ppl,8.0,2.0794415,token,,s,s,MIT,\n"
    (tmp_path / "losses").mkdir()
    path = tmp_path / "losses" / "mine.csv"
    path.write_text(good, encoding="utf-8")
    assert load_losses("mine", tmp_path)["d_model"].tolist() == [768]
    taken, message = MALFORMED[fault]
    assert taken in good
    path.write_text(good.replace(taken, REPLACED[taken], 1), encoding="utf-8")
    with pytest.raises(CatalogError, match=re.escape(str(path)) + r".*" + message):
        load_losses("mine", tmp_path)


# ---- a user's CSV

GOOD_CSV = "model_id,family,d_model,loss_nats,loss_unit\na,f,512,3.5,token\nb,f,1024,3.1,token\n"


def test_a_csv_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(GOOD_CSV + "007,g,2048,2.9,token\n", encoding="utf-8")
    frame = read_csv(path, group=["family"])
    assert frame["model_id"].tolist() == ["a", "b", "007"]
    assert frame["d_model"].tolist() == [512, 1024, 2048]
    assert one_unit(frame) == "token"
    assert read_csv(path, x="loss_nats", y="d_model")["loss_nats"].tolist() == [3.5, 3.1, 2.9]


BAD_CSV: dict[str, tuple[str, str]] = {
    "no column": (GOOD_CSV.replace("d_model", "width"), r"no column d_model\. It has: model_id, family, width.*--x"),
    "no group": (GOOD_CSV.replace("family", "kin"), r"no column family\..*--group"),
    "no model": (GOOD_CSV.replace("model_id", "model"), r"no column model_id\..*name the model"),
    "semicolons": (GOOD_CSV.replace(",", ";"), r"no column model_id, d_model, loss_nats, family"),
    "no rows": (GOOD_CSV.splitlines()[0], r"a header and no rows"),
    "nothing": ("", r"this is not CSV"),
    "ragged": (GOOD_CSV + "c,f,1,2,token,5,6,7\n", r"this is not CSV"),
    "NaN": (GOOD_CSV.replace("3.5", "nan"), r"loss_nats is not a positive number in line 2 \(nan\)"),
    "a loss that is text": (GOOD_CSV.replace("3.5", "low"), r"loss_nats is not a positive number in line 2 \('low'\)"),
    "infinite": (GOOD_CSV.replace("3.1", "inf"), r"loss_nats is not a positive number in line 3"),
    "negative width": (GOOD_CSV.replace("1024", "-1024"), r"d_model is not a positive number in line 3"),
    "a blank model": (GOOD_CSV.replace("\nb,", "\n,"), r"model_id is blank in line 3"),
    "a blank group": (GOOD_CSV.replace("b,f,", "b,,"), r"family is blank in line 3"),
    "a unit unknown": (GOOD_CSV.replace("token", "tok", 1), r"loss_unit holds \['tok'\]"),
    "duplicates": (GOOD_CSV + "a,f,512,3.6,token\n", r"nothing but the loss tells apart lines 2, 4"),
}


@pytest.mark.parametrize("fault", BAD_CSV)
def test_a_csv_with_a_fault_is_one_error_that_names_it(fault: str, tmp_path: Path) -> None:
    text, message = BAD_CSV[fault]
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FitError, match=re.escape(str(path)) + r".*" + message) as caught:
        read_csv(path, group=["family"])
    assert "\n" not in str(caught.value).strip()


def test_a_csv_that_is_not_there_or_not_text_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="cannot be read"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(FitError, match="cannot be read"):
        read_csv(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"model_id,\xff\xfe\n\x00\x81,3\n")
    with pytest.raises(FitError, match="this is not CSV"):
        read_csv(tmp_path / "bytes.csv")


# ---- units


def test_units_are_never_mixed() -> None:
    with pytest.raises(
        FitError, match=r"5 units: byte \(4 rows, first row .*target word \(12 rows.*Fit one unit at a time"
    ):
        one_unit(load_losses("gpt2_gpt3"))


def test_tokenizers_share_no_group() -> None:
    frame = load_losses("liu2025")
    assert one_unit(frame, ["family", "dataset"]) == "token"
    with pytest.raises(FitError, match=r"wikitext: .*several tokenizers: .*qwen2\.5.*--group family"):
        one_unit(frame[frame["dataset"] == "wikitext"], ["dataset"])
    with pytest.raises(FitError, match=r"all rows: .*several tokenizers"):
        one_unit(frame)
    assert one_unit(load_losses("pythia_bits_per_byte")) == "byte"
    assert one_unit(frame.drop(columns="loss_unit")) is None


# ---- results of the harness


def harness(**metrics: Any) -> dict[str, Any]:
    """A results file as lm_eval 0.4 writes it."""
    return {
        "results": {"wikitext": {"alias": "wikitext", **metrics}, "piqa": {"alias": "piqa", "acc,none": 0.6}},
        "configs": {"wikitext": {"task": "wikitext", "validation_split": "validation", "test_split": "test"}},
        "config": {
            "model": "hf",
            "model_args": "pretrained=facebook/opt-350m,dtype=float16",
            "model_num_parameters": 331196416,
            "model_revision": "main",
            "model_sha": "08ab08cc4b72ff5593870b5d527cf4230323703c",
        },
        "model_name": "facebook/opt-350m",
    }


WIKITEXT = {
    "word_perplexity,none": 30.0,
    "word_perplexity_stderr,none": "N/A",
    "byte_perplexity,none": 1.9,
    "bits_per_byte,none": math.log2(1.9),
}


def write(path: Path, told: object) -> Path:
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("unit", "metric", "nats"),
    [(None, "bpb", math.log(1.9)), ("byte", "bpb", math.log(1.9)), ("word", "ppl", math.log(30))],
)
def test_the_harness_gives_a_loss_in_one_unit(unit: str | None, metric: str, nats: float, tmp_path: Path) -> None:
    frame = read_lm_eval(write(tmp_path / "results_1.json", harness(**WIKITEXT)), unit=unit)
    (row,) = frame.to_dict("records")
    assert (row["model_id"], row["dataset"], row["split"], row["metric"]) == (
        "facebook/opt-350m",
        "wikitext",
        "test",
        metric,
    )
    assert row["loss_nats"] == pytest.approx(nats, rel=1e-12)
    assert row["loss_unit"] == (unit or "byte")
    assert (row["n_params"], row["revision"]) == (331196416, "main")
    assert tuple(frame.columns[: len(TIDY)]) == TIDY
    assert join_widths(frame, CATALOG)["d_model"].tolist() == [1024]


def test_the_harness_before_its_version_0_4_and_lambada(tmp_path: Path) -> None:
    told = {
        "results": {"wikitext": {"byte_perplexity": 2.0}, "lambada_openai": {"perplexity": 8.0, "acc": 0.5}},
        "config": {"model_args": "pretrained=gpt2-xl"},
    }
    frame = read_lm_eval(write(tmp_path / "old.json", told))
    assert dict(zip(frame["loss_unit"], frame["loss_nats"], strict=True)) == pytest.approx(
        {"byte": math.log(2), "target word": math.log(8)}
    )
    with pytest.raises(FitError, match="2 units"):
        one_unit(frame)
    assert join_widths(frame, CATALOG)["d_model"].tolist() == [1600, 1600]


def test_a_folder_of_results_is_one_frame(tmp_path: Path) -> None:
    for size in ("125m", "350m"):
        (tmp_path / size).mkdir()
        write(tmp_path / size / "results_2025.json", harness(**WIKITEXT) | {"model_name": f"facebook/opt-{size}"})
    (tmp_path / "125m" / "samples_wikitext.json").write_text("no results", encoding="utf-8")
    frame = read_lm_eval(tmp_path)
    assert join_widths(frame, CATALOG)["d_model"].tolist() == [768, 1024]
    write(tmp_path / "350m" / "results_2026.json", harness(**WIKITEXT))
    with pytest.raises(FitError, match=r"facebook/opt-350m on wikitext is there twice .*results_2025.*results_2026"):
        read_lm_eval(tmp_path)


BAD_HARNESS: dict[str, tuple[object, str]] = {
    "no loss": (harness(**{"acc,none": 0.5}), r"no task has a loss; the metrics are: acc,none\. Run a task"),
    "NaN": (harness(**{"bits_per_byte,none": math.nan}), r"bits_per_byte,none of wikitext is nan, which is no loss"),
    "text": (harness(**{"bits_per_byte,none": "N/A"}), r"of wikitext is 'N/A', which is no loss"),
    "a perplexity below one": (harness(**{"word_perplexity,none": 0.5}), r"is 0.5, which is no loss"),
    "a perplexity of no word": (harness(**{"perplexity,none": 9.0}), r"no task has a loss"),
    "no results": ({"config": {}}, r"there is no table `results`"),
    "a list": ([1], r"there is no table `results`"),
    "no model": ({"results": {"wikitext": WIKITEXT}}, r"neither `model_name` nor `pretrained=`"),
}


@pytest.mark.parametrize("fault", BAD_HARNESS)
def test_a_results_file_with_a_fault_is_one_error_that_names_it(fault: str, tmp_path: Path) -> None:
    told, message = BAD_HARNESS[fault]
    path = write(tmp_path / "results_1.json", told)
    with pytest.raises(FitError, match=re.escape(str(path)) + r".*" + message):
        read_lm_eval(path)


def test_a_results_file_that_is_none_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"no results\*\.json is in this folder"):
        read_lm_eval(tmp_path)
    with pytest.raises(FitError, match="cannot be read"):
        read_lm_eval(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"results": ', encoding="utf-8")
    with pytest.raises(FitError, match="this is not JSON"):
        read_lm_eval(tmp_path / "broken.json")
    with pytest.raises(FitError, match=r"no task has a loss per token"):
        read_lm_eval(write(tmp_path / "results_1.json", harness(**WIKITEXT)), unit="token")


# ---- joins


def test_a_width_that_no_list_knows_is_asked_for() -> None:
    frame = pd.DataFrame(
        {"model_id": ["FACEBOOK/opt-125M", "me/mine"], "d_model": pd.array([None, 640], dtype="Int64")}
    )
    assert join_widths(frame, CATALOG)["d_model"].tolist() == [768, 640]
    with pytest.raises(FitError, match=r"no width is known of me/mine\. Add a row"):
        join_widths(frame.drop(columns="d_model"), CATALOG)


def records(*repos: str) -> pd.DataFrame:
    told = {"repo": repos, "revision": "main", "family": "measured", "width": 7, "overlap.mean_squared_overlap": 0.01}
    return pd.DataFrame(told)


def test_losses_stand_beside_the_records_of_the_same_repository() -> None:
    losses = load_losses("liu2025")
    joined = join_losses(records("facebook/OPT-125m", "Qwen/Qwen2.5-3B", "me/mine"), losses)
    assert len(joined) == 8
    assert set(joined["model_id"]) == {"facebook/opt-125m", "Qwen/Qwen2.5-3B"}
    assert set(joined["family"]) == {"opt", "qwen2.5"}
    assert (joined["overlap.mean_squared_overlap"] == 0.01).all()
    assert joined.attrs["records_without_loss"] == ["me/mine"]
    assert len(joined.attrs["losses_without_record"]) == 25


def test_a_join_of_nothing_or_of_several_records_is_refused() -> None:
    losses = load_losses("liu2025")
    with pytest.raises(FitError, match=r"records of me/mine; losses of facebook/opt-125m.*llmsuper overlap"):
        join_losses(records("me/mine"), losses)
    twice = records("facebook/opt-125m", "facebook/opt-125m")
    twice.loc[1, "revision"] = "step1"
    with pytest.raises(FitError, match=r"several records of facebook/opt-125m\. Keep one"):
        join_losses(twice, losses)
    joined = join_losses(twice, losses.head(1).assign(revision="step1"))
    assert joined["revision"].tolist() == ["step1"]
