"""Builds the pages that were asked for, one after the other: families, Chinchilla, toy models, and the index over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.report import chinchilla, index, toy_page
from llmsuper.report.chinchilla import chinchilla_page
from llmsuper.report.family import family_page
from llmsuper.report.index import index_page
from llmsuper.report.sources import has_toys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmsuper.report.pages import Page
    from llmsuper.report.sources import Sources

SPECIAL: dict[str, Callable[[Sources, str], Page]] = {
    chinchilla.NAME: chinchilla_page,
    toy_page.NAME: toy_page.toy_page,
    index.NAME: index_page,
}
"""Pages that are not of a family, by name."""


def page_names(names: Sequence[str], sources: Sources) -> tuple[str, ...]:
    """The pages to make: those named and the index, or all. Raises `UnknownNameError` for a name that has no page."""
    for name in names:
        if name not in SPECIAL:
            sources.check_name(name)
    special = [name for name in SPECIAL if name != toy_page.NAME or has_toys(sources)]
    asked = names or (*sources.families, *special)
    return tuple(dict.fromkeys((*asked, index.NAME)))


def build_pages(names: Sequence[str], sources: Sources, figure_format: str = "svg") -> Iterator[Page]:
    """Each page as soon as it is made; `names` as `page_names` gives them."""
    for name in names:
        yield SPECIAL[name](sources, figure_format) if name in SPECIAL else family_page(name, sources, figure_format)
