"""The sections of the toy page on the knob of superposition, the exponent by α and γ, and activation density."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmsuper.report.markdown import fixed, join, number
from llmsuper.report.pages import Drawing
from llmsuper.report.toy_bench import (
    Bench,
    Section,
    difference_table,
    exponent_table,
    map_cells,
    missing,
    named,
    several,
    there,
)
from llmsuper.report.toy_cells import agreement, beside, cells, exponents
from llmsuper.report.toy_reduction import changed, published_lines
from llmsuper.scaling.losses import load_published_fits

WIDTH_3B = 39
"""m of the published map of φ_½."""
WIDTH_7A, GAMMA_7B = 63.0, -5 / 9
"""m and γ of the published curves of activation density."""


def represented_section(bench: Bench) -> Section:
    """Figure 3: φ_½ against γ for each m at α = 1, and by α and γ at m = 39."""
    title = "Figure 3: the knob of superposition"
    small, knob = bench.small(), bench.small(widest="gamma")
    if small is None or knob is None:
        return missing(title, "weight_decay")
    by = ["alpha", "gamma", "m"]
    at_one = cells(knob.runs[np.isclose(knob.runs["alpha"].astype(float), 1.0)], by, "phi_half")
    at_39 = cells(small.runs[small.runs["m"] == WIDTH_3B], by, "phi_half")
    curves, field = bench.published("represented_fraction"), bench.published("represented_fraction_map")
    by_gamma = beside(at_one, curves, {"gamma": "weight_decay", "m": "m"}, "mean", "represented_fraction")
    in_map = beside(at_39, field, {"alpha": "data_exponent", "gamma": "weight_decay"}, "mean", "represented_fraction")
    drawings = [
        Drawing(
            "toy-3a-represented",
            "toy_represented",
            {"ours": at_one, "theirs": named(curves, weight_decay="gamma", represented_fraction="published")},
            "Share of rows of W with norm above one half against γ, at α = 1, a colour for each m; ours and published.",
        )
    ]
    if len(at_39):
        theirs = named(field, data_exponent="alpha", weight_decay="gamma", represented_fraction="value")
        drawings.append(
            Drawing(
                "toy-3b-represented",
                "toy_map",
                {"cells": map_cells(at_39, "mean", theirs, r"$\varphi_{1/2}$, share of rows with norm > ½")},
                "Share of rows with norm above one half by α and γ at m = 39, ours and published on one colour scale.",
            )
        )
    text = join(
        f"## {title}",
        "$\\varphi_{1/2}$ is the share of rows of $W$ with norm above ½: $m/n$ where $m$ features have a "
        "direction each and the others "
        "none, 1 where all have one. A pull of the norms to 1 (γ < 0) makes superposition strong, weight decay (γ > 0) weak. "
        "At α = 1 the runs here are those with the most γ, "
        f"{'; '.join(changed(knob, widths=False)) or 'trained as in the paper'}.",
        *map(bench.show, drawings),
        _outside(by_gamma, knob.runs),
        difference_table("φ½ at α = 1", by_gamma, "γ m", places=3),
        difference_table("φ½ at m = 39", in_map, "α γ", places=3),
    )
    return Section(
        text.rstrip(),
        tuple(drawings),
        there(
            agreement(by_gamma, "φ½ at α = 1", "3a", relative=False),
            agreement(in_map, "φ½ at m = 39", "3b", relative=False),
        ),
    )


def _outside(both: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Which published φ_½ lie outside the range of our seeds, and where ½ lies among the norms of these runs."""
    known = both[both["seeds"] > 1]
    if known.empty:
        return ""
    apart = known[(known["published"] < known["low"]) | (known["high"] < known["published"])]
    outside = len(apart) or "none"
    first = (
        f"Of {several(len(known), 'cell')} with two seeds or more, the published value lies outside ours in {outside}."
    )
    lines = []
    for cell in apart.to_dict("records"):
        alike = runs[
            (runs["m"] == cell["m"])
            & np.isclose(runs["gamma"], cell["gamma"])
            & np.isclose(runs["alpha"].astype(float), cell["alpha"])
        ]
        low, high = (fixed(alike[f"norms.quantiles.{share}"].astype(float).mean()) for share in ("0.25", "0.75"))
        seeds = f"{fixed(cell['low'], 3)} to {fixed(cell['high'], 3)} in {cell['seeds']} seeds"
        lines.append(
            f"- γ = {fixed(cell['gamma'], 3)}, m = {cell['m']:g}: {fixed(cell['published'], 3)} published, {seeds} here, where "
            f"half of the rows have norms from {low} to {high}."
        )
    return join(first, "\n".join(lines)).rstrip()


def exponent_section(bench: Bench) -> Section:
    """Figure 4b: the exponent of the loss against m, by α and γ."""
    title = "Figure 4: the exponent by α and γ"
    small = bench.small()
    ours = exponents(small.runs, ["alpha", "gamma"]) if small is not None else pd.DataFrame()
    if small is None or ours.empty:
        return missing(title, "weight_decay")
    field = bench.published("exponent_map")
    both = beside(ours, field, {"alpha": "data_exponent", "gamma": "weight_decay"}, "exponent", "model_exponent")
    theirs = named(field, data_exponent="alpha", weight_decay="gamma", model_exponent="value")
    drawing = Drawing(
        "toy-4b-exponents",
        "toy_map",
        {"cells": map_cells(ours.round({"exponent": 3}), "exponent", theirs, "exponent of the loss against m")},
        "Exponent of the loss against m by α and γ, ours and published on one colour scale.",
    )
    same = published_lines(bench, small)
    both_same = beside(ours, same, {"alpha": "alpha", "gamma": "gamma"}, "exponent", "published")
    in_full = bench.in_full()
    full, both_full = ours[:0], both_same[:0]
    if in_full is not None and changed(small, widths=False):
        full = exponents(in_full.runs, ["alpha", "gamma"])
        on = {"alpha": "alpha", "gamma": "gamma"}
        both_full = beside(full, published_lines(bench, in_full), on, "exponent", "published")
    widths = ", ".join(f"{m}" for m in sorted(small.runs["m"].unique()))
    text = join(
        f"## {title}",
        f"$\\alpha_m$ is minus the slope of $\\ln$ loss against $\\ln m$ over m = {widths}, for the mean over "
        "seeds at each $m$. Published exponents are over m = 10 to 100; where the published losses themselves "
        "are known (α = 0, and "
        "α = 1 at γ = −0.556), the second table has their exponent over the same $m$ as ours.",
        bench.show(drawing),
        exponent_table("αₘ beside the published one of all six m", ours, both, "α γ"),
        exponent_table("αₘ over the same m", ours.merge(both_same[["alpha", "gamma"]]), both_same, "α γ"),
        exponent_table("αₘ of runs trained as in the paper, over the same m", full, both_full, "α γ"),
    )
    return Section(
        text.rstrip(),
        (drawing,),
        there(
            agreement(both, "exponent, all α and γ", "4b", relative=False),
            agreement(both_same, "exponent over the same m", "5a, 7b", relative=False),
            agreement(both_full, "the same, trained as in the paper", "5a, 7b", relative=False),
        ),
    )


def density_section(bench: Bench) -> Section:
    """Figure 7: the loss against activation density, and its exponent at each density."""
    title = "Figure 7: activation density"
    found = bench.small("activation_density")
    if found is None:
        return missing(title, "activation_density")
    runs, published = found.runs, bench.published("activation_density")
    ours = cells(runs, ["gamma", "m", "activation_density"], "test_loss")
    on = {"gamma": "weight_decay", "m": "m", "activation_density": "activation_density"}
    both = beside(ours, published, on, "mean", "loss")
    theirs = named(published, weight_decay="gamma", loss="published")
    at_63 = ours[ours["m"] == WIDTH_7A]
    strong, strong_published = (f[np.isclose(f["gamma"], GAMMA_7B, atol=1e-3)] for f in (ours, theirs))
    drawing = Drawing(
        "toy-7-density",
        "toy_density",
        {
            "by_density": at_63,
            "by_density_published": theirs[theirs["m"] == WIDTH_7A],
            "by_width": strong,
            "by_width_published": strong_published,
        },
        "Left: loss against activation density at m = 63 for each γ. Right: loss against m at γ = −0.556 for each density.",
    )
    lines = exponents(runs[np.isclose(runs["gamma"], GAMMA_7B, atol=1e-3)], ["activation_density"])
    as_runs = strong_published.assign(test_loss=strong_published["published"], seed=0)
    their_lines = exponents(as_runs[["activation_density", "m", "test_loss", "seed"]], ["activation_density"])
    both_lines = beside(lines, their_lines, {"activation_density": "activation_density"}, "exponent", "exponent")
    ratio = both["difference"] / both["published"]
    printed = ", ".join(map(str, load_published_fits("liu2025", bench.lists)["paper"]["toy_alpha_m_by_density"]))
    text = join(
        f"## {title}",
        "The paper reads its figure as a loss in proportion to $E$, so that the exponent does not depend on "
        "it. The published exponents "
        f"below are of lines through the published points at all six $m$; those printed in the figure ({printed}) are not. "
        + (
            f"Our losses differ from the published ones by {number(100 * float(ratio.abs().median()), 2)} % in the median."
            if len(both)
            else ""
        ),
        bench.show(drawing),
        exponent_table("αₘ at γ = −0.556 by density", lines, both_lines, "E"),
        difference_table("Loss", both, "γ m E"),
    )
    return Section(
        text.rstrip(),
        (drawing,),
        there(
            agreement(both, "loss by E", "7", relative=True),
            agreement(both_lines, "exponent by E", "7b", relative=False),
        ),
    )
