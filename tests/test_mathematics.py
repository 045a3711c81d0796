"""docs/mathematics.md: every block of code runs, in order, and what it claims holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "mathematics.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the blocks have defined so far: they lean on each other as a reader's eye does."""
    return {}


@pytest.mark.parametrize("number", range(len(SECTIONS)), ids=[section.partition("\n")[0] for section in SECTIONS])
def test_the_blocks_of_a_section_hold(number: int, names: dict[str, Any]) -> None:
    if number and "rng" not in names:
        pytest.skip("the blocks lean on the first section: run the whole file")
    for block in BLOCK.findall(SECTIONS[number]):
        exec(compile(block, f"mathematics.md, {SECTIONS[number].partition(chr(10))[0]}", "exec"), names)


def test_every_section_but_the_last_is_checked() -> None:
    for section in SECTIONS[:-1]:
        assert "assert" in "".join(BLOCK.findall(section)), section.partition("\n")[0]
    assert PAGE.count("```python") == len(BLOCK.findall(PAGE))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)(#([\w-]+))?\)", page.read_text(encoding="utf-8")):
        linked = page if not target else page.parent / target
        assert linked.is_file(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
