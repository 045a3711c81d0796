"""Reports: every figure drawn from records, pages that say what records and tables say, and a check that one digit fails."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from llmsuper.demo import FAMILIES, demo_records
from llmsuper.errors import CatalogError, UnknownNameError
from llmsuper.geometry.controls import MatrixBlocks, random_head
from llmsuper.hub.catalog import load_catalog
from llmsuper.kernels import choose_backend
from llmsuper.measure import measure_rows
from llmsuper.report.build import SPECIAL, build_pages, page_names
from llmsuper.report.figures import FIGURES
from llmsuper.report.palette import OTHER, PALETTE, look
from llmsuper.report.sources import GROUPS_FILE, SINGLE, gather, read_local_families
from llmsuper.scaling.chinchilla import chinchilla_summary
from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.losses import load_published_fits
from llmsuper.scaling.overlap_fits import overlap_summary
from llmsuper.scaling.recipes import RECIPES
from llmsuper.scaling.summary import summarise
from llmsuper.store import ResultStore
from tests.command import llmsuper, succeed, the_error

if TYPE_CHECKING:
    from llmsuper.report.pages import Page
    from llmsuper.report.sources import Sources
    from llmsuper.types import HeadRecord

ROOT = Path(__file__).parent.parent
WIDTHS = (16, 32, 64, 128)
ELSEWHERE = {"one_head"}
"""Rows of FIGURES that no page shows; the demo draws it."""


def random_records(example: HeadRecord) -> list[HeadRecord]:
    """A family of random heads of four widths, whose overlaps fall as 1/m; the two narrow ones are models of the paper."""
    backend, records = choose_backend(), []
    for m, repo in zip(WIDTHS, ("gpt2", "gpt2-medium", "x/wide", "x/wider"), strict=True):
        rows = MatrixBlocks(random_head(600, m, torch.Generator().manual_seed(m)))
        statistics = measure_rows(rows, ("norms", "overlap", "centred_overlap"), backend)
        where = {"family": "gpt2", "repo": repo, "commit": f"{m:040d}", "rows": 600, "columns": m, "row_class": "all"}
        records.append(replace(example, statistics=statistics, notes=("a note",), **where))
    return records


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The demo's heads, random heads under the name of gpt2, and fits with few draws, which is all that makes them quicker."""
    store = ResultStore(tmp_path_factory.mktemp("report") / "heads")
    demo = demo_records()
    for record in (*demo, *random_records(demo[0]), replace(demo[0], repo="nobody/else")):
        store.put(record)
    (store.folder / GROUPS_FILE).write_text(FAMILIES)
    found = gather(store.folder)
    printed = load_published_fits("liu2025")["printed"]
    joint = fit_law("power-floor", found.losses, x="d_model", group=("family", "dataset"))
    vars(found)["joint"] = summarise("few draws", joint, draws=20, moved=RECIPES["liu2025"].moved, published=printed)
    vars(found)["chinchilla"] = chinchilla_summary(bootstrap=3)
    return found


@pytest.fixture(scope="module")
def pages(sources: Sources) -> dict[str, Page]:
    names = ("demo", SINGLE, "gpt2", "chinchilla", "README")
    return {page.name: page for page in build_pages(names, sources)}


@pytest.fixture(scope="module")
def written(pages: dict[str, Page], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one page was written into."""
    folder = tmp_path_factory.mktemp("written")
    list(pages["demo"].write(folder))
    return folder


def rows_of(text: str, *titles: str) -> list[list[str]]:
    """The cells of the first table whose heading has all these titles."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.M):
        lines = [[cell.strip(" *") for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        if set(titles) <= {cell.strip() for cell in lines[0]}:
            return [[cell.strip() for cell in line] for line in lines[2:]]
    raise AssertionError(f"no table with {titles}")


# ---- figures


def test_every_figure_is_drawn_from_records(pages: dict[str, Page]) -> None:
    """Rows of other rooms' figures are drawn by their own tests."""
    drawn = {drawing.figure for page in pages.values() for drawing in page.drawings}
    ours = {
        name for name, draw in FIGURES.items() if ".toy_" not in draw.__module__ and ".token_" not in draw.__module__
    }
    assert drawn | ELSEWHERE == ours
    for page in pages.values():
        for drawing in page.drawings:
            figure = FIGURES[drawing.figure](**drawing.frames)
            axes = [a for a in figure.axes if a.get_visible()]
            assert axes
            assert all(a.get_xlabel() or figure.get_supxlabel() or a.get_shared_x_axes().get_siblings(a) for a in axes)


def test_a_second_run_writes_the_same_bytes(written: Path, sources: Sources, tmp_path: Path) -> None:
    (again,) = build_pages(("demo",), gather(sources.results))
    second = {path.relative_to(tmp_path): path.read_bytes() for path in again.write(tmp_path)}
    assert second == {path.relative_to(written): path.read_bytes() for path in written.rglob("*.*")}
    assert sum(path.suffix == ".svg" for path in second) == len(second) - 1 > 3


def test_figures_may_be_png(sources: Sources, tmp_path: Path) -> None:
    (page,) = build_pages((SINGLE,), sources, "png")
    assert "](figures/single-heads-norms.png)" in page.text
    drawing = page.drawings[0]
    for name in ("one.png", "two.png"):
        drawing.draw(tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "two.png").read_bytes()
    assert drawing.digest.encode() in one


def test_a_figure_has_an_opaque_light_panel_and_no_date(pages: dict[str, Page], tmp_path: Path) -> None:
    drawing = pages["demo"].drawings[0]
    drawing.draw(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert re.search(r'<g id="patch_1">\s*<path d="[^"]*"\s+style="fill: #ffffff"', text)
    assert "<dc:date>" not in text
    assert drawing.digest in text


def test_every_family_has_a_look_of_its_own() -> None:
    assert set(load_catalog().families) <= set(PALETTE)
    assert len(set(PALETTE.values())) == len(PALETTE)
    assert look("a family of a user") == OTHER


# ---- pages say what records and tables say


def test_a_page_prints_the_overlaps_of_its_records(pages: dict[str, Page], sources: Sources) -> None:
    table = {row[0]: row for row in rows_of(pages["demo"].text, "head", "Welch floor")}
    W = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).double().numpy()
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    every = float(np.mean(((unit @ unit.T)[~np.eye(512, dtype=bool)]) ** 2))
    assert float(table["random"][4]) == pytest.approx(every, rel=5e-3)
    assert float(table["random"][5]) == pytest.approx(64 * every, rel=5e-3)
    assert float(table["random"][3]) == pytest.approx((512 - 64) / (64 * 511), rel=5e-3)
    (real,) = (r for r in sources.records["demo"] if r.repo == "stories260K")
    assert float(table["stories260K"][4]) == pytest.approx(real.statistic("overlap")["mean_squared_overlap"], rel=5e-3)


def test_published_overlaps_stand_beside_measured_ones_and_are_marked(pages: dict[str, Page], sources: Sources) -> None:
    text = pages["gpt2"].text
    table = {row[0]: row for row in rows_of(text, "head", "published", "ours ÷ published")}
    published = sources.overlaps[sources.overlaps["family"] == "gpt2"]
    for row in published.itertuples():
        assert float(table[row.model_id.rpartition("/")[2]][8]) == pytest.approx(row.mean_squared_overlap, rel=5e-3)
    assert table["gpt2-xl"][4:8] == ["–"] * 4  # published alone
    assert table["wide"][8:] == ["–"] * 3  # measured alone
    assert float(table["gpt2"][10]) == pytest.approx(float(table["gpt2"][4]) / float(table["gpt2"][8]), rel=2e-2)
    assert "Published, not measured here" in text


def test_a_page_without_records_says_so_first(tmp_path: Path) -> None:
    (page,) = build_pages(("gpt2",), gather(tmp_path / "empty"))
    assert "every number on this page is published, not measured" in page.text
    assert "measured, mean row removed" not in page.text
    heads = page.drawings[0].frames["heads"]
    assert set(heads["kind"]) == {"published, not measured"}


def test_exponents_are_those_of_the_fits(pages: dict[str, Page], sources: Sources) -> None:
    ours = next(row for row in rows_of(pages["gpt2"].text, "line through") if row[:2] == ["this family", "measured"])
    assert float(ours[2]) == pytest.approx(1.0, abs=0.02)  # random directions
    summary = overlap_summary(sources.overlaps)
    pooled = next(row for row in rows_of(pages["README"].text, "line through") if row[1] == "published")
    fit = summary.fits[0]
    assert (
        pooled[:3] == ["all heads", "published", f"{fit.fit.params['alpha']:.2f}"] == ["all heads", "published", "1.26"]
    )
    assert "1.26 ± 0.19" in pages["README"].text


def test_the_index_has_every_family_and_both_numbers_of_every_difference(
    pages: dict[str, Page], sources: Sources
) -> None:
    text = pages["README"].text
    assert {re.sub(r"\[(.+)\]\(.+", r"\1", row[0]) for row in rows_of(text, "family", "columns $m$")} == set(
        sources.families
    )
    for number in ("0.91 ± 0.04", "0.88 ± 0.06", "0.91 ± 0.06", "0.60 ± 0.11", "0.41 ± 0.09", "5.1 to 99", "median 23"):
        assert number in text, number


def test_heads_of_no_family_get_no_line(pages: dict[str, Page]) -> None:
    assert "No line can be drawn" in pages[SINGLE].text
    assert len(pages[SINGLE].drawings[1].frames["lines"]) == 0


@pytest.mark.parametrize("name", ["demo", "gpt2", "chinchilla", "README", SINGLE])
def test_pages_are_markdown_that_github_renders(name: str, pages: dict[str, Page]) -> None:
    text = pages[name].text
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>")
    assert all(line.count("$") % 2 == 0 for line in text.splitlines())
    assert not re.search(r"\$[^$\n]*\\[,;{}|][^$\n]*\$", text), "an escape that markdown takes away from the formula"
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    images = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    assert [path for _, path in images] == [f"figures/{d.stem}.svg" for d in pages[name].drawings]
    assert all(len(alt) > 20 for alt, _ in images)
    assert not re.search(r"(?<![\w.)])/(home|root|tmp|work)/", text)
    assert "nan" not in re.findall(r"[a-z]+", text)
    assert "None" not in text


# ---- stale pages


@pytest.fixture
def demo(pages: dict[str, Page], written: Path, tmp_path: Path) -> Page:
    """A page that is on disk."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    assert list(pages["demo"].stale(tmp_path)) == []
    return pages["demo"]


def test_one_digit_changed_makes_a_page_stale(demo: Page, tmp_path: Path) -> None:
    path = tmp_path / "demo.md"
    text = path.read_text()
    digits = [m.start() for m in re.finditer(r"\d", text)]
    for at in digits[:: len(digits) // 40]:
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        (sentence,) = demo.stale(tmp_path)
        assert sentence.startswith(f"{path}, line {text.count(chr(10), 0, at) + 1}: ")


def test_a_figure_of_other_data_or_none_is_stale(demo: Page, tmp_path: Path) -> None:
    first, second = (tmp_path / "figures" / f"{d.stem}.svg" for d in demo.drawings[:2])
    first.write_text(first.read_text().replace(demo.drawings[0].digest, "0" * 64))
    second.unlink()
    assert [sentence.partition(":")[0] for sentence in demo.stale(tmp_path)] == [str(first), str(second)]


def test_a_new_number_in_a_record_makes_pages_and_figures_stale(sources: Sources, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "heads")
    record = sources.records[SINGLE][0]
    store.put(record)
    (page,) = build_pages((SINGLE,), gather(store.folder))
    list(page.write(tmp_path))
    changed = {**record.statistic("overlap"), "mean_squared_overlap": 0.5}
    store.put(replace(record, statistics={"all": {**record.statistics["all"], "overlap": changed}}))
    (again,) = build_pages((SINGLE,), gather(store.folder))
    stale = list(again.stale(tmp_path))
    assert any("line" in sentence and "single-heads.md" in sentence for sentence in stale)
    assert any("single-heads-overlap.svg" in sentence for sentence in stale)
    assert not any("single-heads-norms.svg" in sentence for sentence in stale)


# ---- which records


def test_the_newest_record_over_tokens_is_shown(sources: Sources, tmp_path: Path) -> None:
    record = sources.records[SINGLE][0]
    store = ResultStore(tmp_path)
    for commit, rule, date in (
        ("b", "tokens", "2026-01-02"),
        ("a", "tokens", "2026-01-01"),
        ("c", "all", "2026-01-03"),
    ):
        store.put(replace(record, commit=commit * 40, row_rule=rule, made_by={**record.made_by, "date": date}))
    found = gather(tmp_path)
    assert [r.commit for r in found.records[SINGLE]] == ["b" * 40]
    assert found.passed_over == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ntitle = 1\n", "heads"),
        ("not toml", "Expected"),
        ('[a]\ntitle="A"\nheads=["x"]\nnote=""\n[b]\ntitle="B"\nheads=["x"]\nnote=""', "x is in two families"),
    ],
)
def test_a_malformed_list_of_local_families_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / GROUPS_FILE
    path.write_text(text)
    with pytest.raises(CatalogError, match=message) as caught:
        read_local_families(path)
    assert str(path) in str(caught.value)


def test_pages_are_all_families_and_the_special_ones(sources: Sources) -> None:
    assert set(SPECIAL) == {"chinchilla", "toy", "README"}
    assert page_names((), sources) == (*sources.families, "chinchilla", "README")  # there are no toy records
    assert page_names(("gpt2",), sources) == ("gpt2", "README")
    with pytest.raises(UnknownNameError, match="gtp2"):
        page_names(("gtp2",), sources)


# ---- the pages of this repository


@pytest.mark.parametrize("name", ["qwen2.5-derived", SINGLE])
def test_committed_pages_of_records_are_what_the_records_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick ones; `llmsuper report --check` does all."""
    monkeypatch.chdir(ROOT)
    reports = ROOT / "reports"
    if not (reports / "README.md").is_file():
        pytest.skip("an installed package has no reports folder")
    (page,) = build_pages((name,), gather(reports / "data" / "heads", reports=reports))
    assert list(page.stale(reports)) == []


def test_committed_pages_lead_nowhere_that_is_not_there() -> None:
    reports = ROOT / "reports"
    for path in sorted(reports.glob("*.md")):
        links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
        missing = [link for link in links if not link.startswith("https://") and not (reports / link).is_file()]
        assert not missing, f"{path.name}: {missing}"


# ---- the command


def test_the_command_names_what_is_stale(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llmsuper.report.build.page_names", lambda names, _: names
    )  # without the index, which takes long
    where = ("--reports", tmp_path, "--results", sources.results)
    assert succeed("report", "demo", *where).stdout.split() == [str(tmp_path / "demo.md")]
    assert succeed("report", "demo", "--check", *where).stdout == ""
    page = tmp_path / "demo.md"
    page.write_text(page.read_text().replace("20.2", "20.3"))
    done = llmsuper("report", "demo", "--check", *where)
    assert done.exit_code == 1
    assert re.search(rf"stale: {re.escape(str(page))}, line \d+: .*20\.3.* is there, .*20\.2", done.stderr)
    assert "20.3" in page.read_text()  # nothing is written


def test_an_unknown_family_and_a_folder_that_cannot_be_written(sources: Sources, tmp_path: Path) -> None:
    done = llmsuper("report", "nothing", "--results", sources.results, "--reports", tmp_path)
    assert done.exit_code == 3
    assert "'nothing': no overlaps of this family are published or stored" in the_error(done)
    (tmp_path / "file").write_text("")
    done = llmsuper("report", "demo", "--results", sources.results, "--reports", tmp_path / "file" / "below")
    assert done.exit_code == 1
    assert "cannot be written" in the_error(done)
