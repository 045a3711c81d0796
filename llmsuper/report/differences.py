"""The plain list of where our numbers and the paper's part, each with both numbers and the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsuper.report.chinchilla import as_printed
from llmsuper.report.markdown import count, fixed, number, span, with_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmsuper.report.sources import Sources
    from llmsuper.scaling.overlap_fits import OverlapSummary
    from llmsuper.scaling.sensitivity import Variant
    from llmsuper.scaling.summary import FitSummary


def differences(sources: Sources, joint: FitSummary, published: OverlapSummary | None) -> Iterator[str]:
    """One sentence or two each; every number of ours is computed here, every number of theirs is in `model_lists`."""
    alpha, slope = joint.fit.params["alpha"], joint.slope_error
    drawn = None if joint.bootstrap is None else joint.bootstrap
    yield (
        f"**The error of α.** They print {printed_alpha(sources)}, we find {with_error(alpha, joint.fit.stderr.get('alpha'))} "
        "with every parameter free"
        + (
            f", and ± {fixed(drawn.sd('alpha'))} {span(drawn.interval('alpha').low, drawn.interval('alpha').high)} "
            "when models are drawn instead of losses"
            if drawn
            else ""
        )
        + f". Their formula holds $A$ and all {len(joint.fit.groups)} floors fixed, and counts the one loss below its floor as "
        "1 nat above it"
        + (f"; without that point it gives ± {fixed(slope.without_points_below_floor, 3)}" if slope else "")
        + ". The estimate itself we reproduce."
    )
    shared = next((t for t in joint.tests if t.restriction.startswith("one law")), None)
    if shared is not None:
        alone = ", ".join(
            f"{v.name} {fixed(v.fit.params['alpha'])}"
            for v in joint.variants
            if v.kind == "one family" and v.fit is not None
        )
        verdict = "is rejected" if shared.p_value < 0.05 else "is not rejected"
        yield (
            f"**One law for four families** {verdict} on their own losses (p = {shared.p_value:.2g}): alone the "
            f"families give α = {alone}."
        )
    for start, words in (
        ("opt-350m", _two_widths(sources, "facebook/opt-350m")),
        ("d_model ≥", "**The range of widths.** On widths of 1,024 and more the same fit gives α = {}."),
    ):  # fmt: skip
        variant = next((v for v in joint.variants if v.name.startswith(start) and v.fit is not None), None)
        if variant is not None:
            yield words.format(_estimate(variant))
    yield from _overlap_differences(sources, published)
    paper = sources.chinchilla.paper
    yield (
        f"**The Chinchilla route.** They print {as_printed(sources.chinchilla, 'alpha_m')}; their own "
        f"{as_printed(sources.chinchilla, 'k')} and {as_printed(sources.chinchilla, 'alpha_N')}, taken as "
        f"independent, make ± {fixed(paper.quadrature, 3)}, "
        f"and ± {fixed(paper.linear, 3)} only if both errors always have one sign."
    )
    yield (
        "**The rows.** They count every stored row; we count rows that the tokenizer can emit, and keep both "
        "numbers. They square overlaps in the "
        "checkpoint's 16-bit dtype and then sum; we use float32 products and float64 sums."
    )


def _two_widths(sources: Sources, model: str) -> str:
    """That the published losses of a model are listed by another width than its overlap."""
    losses, overlaps = (t[t["model_id"] == model].iloc[0] for t in (sources.losses, sources.overlaps))
    width, columns = count(int(losses["d_model"])), count(int(overlaps["columns"]))
    return (
        f"**The width of {model.rpartition('/')[2]}.** They take {width} for its losses and {columns}, the columns of its "
        f"head, for its overlap. With {columns} in both, α is {{}}."
    )


def printed_alpha(sources: Sources) -> str:
    """α of the joint fit as the paper prints it."""
    from llmsuper.scaling.chinchilla import printed_pair
    from llmsuper.scaling.losses import load_published_fits

    return with_error(*printed_pair(load_published_fits("liu2025", sources.lists)["paper"], "alpha"))


def _estimate(variant: Variant) -> str:
    fit = variant.fit
    assert fit is not None
    interval = f" {span(variant.interval.low, variant.interval.high)}" if variant.interval else ""
    return with_error(fit.params["alpha"], fit.stderr.get("alpha")) + interval


def _overlap_differences(sources: Sources, published: OverlapSummary | None) -> Iterator[str]:
    times = sources.overlaps["mean_squared_overlap"] * sources.overlaps["columns"].astype(float)
    missing = sorted(
        entry.repo.rpartition("/")[2]
        for entry in sources.catalog.lists["liu2025"].entries
        if entry.repo.lower() not in set(sources.overlaps["model_id"].str.lower())
    )
    yield (
        "**Roughly $1/m$** is about the slope. "
        f"Their overlaps are {number(times.min(), 2)} to {number(times.max(), 2)} times $1/m$, median "
        f"{number(times.median(), 2)}, "
        "and the dashed line in their figure is not $1/m$ but many times that: heads are far from isotropic."
    )
    if published is not None:
        fit = next(f for f in published.fits if f.name == "all heads")
        yield (
            f"**The slope.** They fit no line to the overlaps. Ours through all {fit.fit.n_points} is α = "
            f"{with_error(fit.fit.params['alpha'], fit.fit.stderr['alpha'])} "
            f"{span(fit.interval.low, fit.interval.high)}: 1 is inside, and nothing sharper can be said."
        )
    if missing:
        yield (
            f"**Missing points.** {' and '.join(missing)} are among the "
            f"{len(sources.catalog.lists['liu2025'].entries)} models and not in their figure; the text does not say why."
        )
    for name, records in sources.records.items():
        ratios = [r.statistics[r.row_class] for r in records]
        both = [
            (s["overlap"]["ratio_to_isotropic"], s["centred_overlap"]["ratio_to_isotropic"])
            for s in ratios
            if "overlap" in s and "centred_overlap" in s
        ]
        if len(both) > 2:
            raw, centred = zip(*both, strict=True)
            yield (
                f"**One shared direction.** They do not subtract the mean row. In the heads of [{name}]({name}.md) "
                "that takes the overlap from "
                f"{number(min(raw))} to {number(max(raw))} times $1/m$ down to {number(min(centred))} to {number(max(centred))}."
            )
