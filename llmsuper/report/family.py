"""Builds the page of one family: its heads, their overlaps, its published losses, and how all of it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.report.causes import causes_section
from llmsuper.report.head_sections import measured_section, norms_section, overlap_section
from llmsuper.report.heads import family_of
from llmsuper.report.loss_sections import losses_section
from llmsuper.report.made import made_section
from llmsuper.report.markdown import bullets, fixed, join, navigation, number, span
from llmsuper.report.pages import Page
from llmsuper.report.scaling_sections import family_lines, family_scaling, overlaps_scaling_section

if TYPE_CHECKING:
    from llmsuper.report.heads import Family
    from llmsuper.report.scaling_sections import FamilyScaling
    from llmsuper.report.sources import Sources


def family_page(name: str, sources: Sources, figure_format: str = "svg") -> Page:
    """The page of one family, with its figures. Raises `UnknownNameError` for a family that has none."""
    family = family_of(name, sources, figure_format)
    scaling = family_scaling(family, sources)
    parts = [
        measured_section(family),
        norms_section(family),
        overlap_section(family, family_lines(family, scaling)),
        causes_section(family),
        overlaps_scaling_section(family, scaling),
        losses_section(family, sources),
    ]
    text = join(
        f"# {family.title}",
        navigation(sources.links),
        _opening(family, scaling),
        *(text for text, _ in parts),
        _limits(family),
        made_section(f"llmsuper report {name}", family.records, sources, fits=bool(len(family.losses))),
    )
    return Page(name, text, tuple(drawing for _, drawings in parts for drawing in drawings), figure_format)


OPENINGS = {
    "measured": "Over the {} measured heads it falls as",
    "measured, mean row removed": "With the mean row removed it falls over these {} as",
    "published": "Over the {} published ones it falls as",
}
"""How the page says an exponent, by the kind of overlap."""


def _opening(family: Family, scaling: FamilyScaling) -> str:
    """The page in a few sentences."""
    said = []
    if family.records:
        ratios = [
            r.statistic("overlap")["ratio_to_isotropic"]
            for r in family.records
            if "overlap" in r.statistics[r.row_class]
        ]
        if ratios:
            said.append(
                f"**Measured here:** {len(ratios)} head{'s' * (len(ratios) > 1)}, whose rows overlap "
                f"{number(min(ratios))} to {number(max(ratios))} times as much as random directions would."
                if len(ratios) > 1
                else f"**Measured here:** one head, whose rows overlap {number(ratios[0])} times as much as random "
                "directions would."
            )
    if len(family.overlaps):
        times = family.overlaps["mean_squared_overlap"] * family.overlaps["columns"].astype(float)
        said.append(
            f"**Published, not measured here:** overlaps of {len(times)} models by Liu, Liu and Gore (2025), "
            f"{number(times.min())} to {number(times.max())} times $1/m$."
        )
    for fit in scaling.of_family:
        exponent, low, high = fixed(fit.fit.params["alpha"]), fit.interval.low, fit.interval.high
        said.append(
            f"{OPENINGS[fit.kind].format(fit.fit.n_points)} $m^{{-{exponent}}}$, 95 % interval {span(low, high)}."
        )
    return " ".join(said)


LIMITS = (
    (
        "**Overlap is geometry, not use.** Two rows that overlap interfere only if the model puts both tokens forward in one "
        "context. The mean over all pairs weighs a token seen once in a billion as much as `the`."
    ),
    (
        "**A level is not a slope.** The claim of the paper is about how the overlap falls with $m$; a head at many times $1/m$ "
        "may still fall as $1/m$, and random numbers fall as $1/m$ exactly."
    ),
    (
        "**Few sizes, unlike in more than width.** Models of one family differ in depth, training and sometimes vocabulary; an "
        "interval from a line through them takes these differences for noise."
    ),
)
"""What holds for every family."""


def _limits(family: Family) -> str:
    """What the page says and does not say."""
    lines = list(LIMITS)
    if len(family.overlaps) and family.records:
        lines.append(
            "**Ours and theirs are not one measurement.** Rows that are tokens here, all stored rows there; float64 sums here, "
            "squares in the checkpoint's dtype there."
        )
    if len(family.losses):
        lines.append(
            "**A fitted exponent is not a mechanism.** The losses fall with width, depth and parameters at once; floor and "
            "exponent trade one for the other, and an interval that holds 1 usually holds much else."
        )
    if family.records and not len(family.losses):
        lines.append("**No losses** of these models are in the published tables, so nothing here ties overlap to loss.")
    return join("## What this says, and what it does not", bullets(lines)).rstrip()
