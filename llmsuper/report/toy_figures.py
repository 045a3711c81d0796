"""Draws the figures of the toy models: ours filled, the published points as rings of the same colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D

from llmsuper.report.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from llmsuper.report.style import FAINT, INK, new_figure, styled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE: Any = {"marker": "o", "ms": 4.5, "lw": 1.2}
PUBLISHED: Any = {"marker": "o", "ms": 6.5, "mfc": "none", "mew": 1.0, "ls": "none"}
KINDS: Mapping[str, Any] = {"here, range of seeds": {**HERE, "color": GREY}, "published": {**PUBLISHED, "color": GREY}}
DASHED: Any = {"color": INK, "lw": 1.0, "ls": "--"}
DOTTED: Any = {"color": INK, "lw": 1.3, "ls": ":"}
DISTRIBUTIONS = {"exponential": BLUE, "power": VERMILION, "linear": GREEN}
EXPONENT = r"$\alpha_m$, loss $\propto m^{-\alpha_m}$"
FREQUENCIES = "α of the feature frequencies"


def shades(values: Iterable[float], palette: str = "viridis") -> dict[float, Any]:
    """A colour for each value, in their order."""
    ordered = sorted(set(values))
    return dict(zip(ordered, sns.color_palette(palette, len(ordered) + 1), strict=False))


def points(axes: Axes, ours: pd.DataFrame, theirs: pd.DataFrame, x: str, colour: Any, line: str = "-") -> None:
    """Our means (mean, low, high) with the range of their seeds, and the published values (published) as rings."""
    ours = ours.sort_values(x)
    reach = np.clip([ours["mean"] - ours["low"], ours["high"] - ours["mean"]], 0, None)
    axes.errorbar(ours[x], ours["mean"], reach, color=colour, ls=line, capsize=2, elinewidth=1, **HERE)
    axes.plot(theirs[x], theirs["published"], color=colour, **PUBLISHED)


def key(
    axes: Axes,
    colours: Mapping[str, Any],
    lines: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Any] = KINDS,
    across: int = 3,
) -> None:
    """A legend below the panel, where no point can be under it: colours, then kinds and lines."""
    entries: dict[str, Any] = {
        name: {"marker": "o", "ms": 4.5, "ls": "none", "color": c} for name, c in colours.items()
    }
    entries |= {**kinds, **(lines or {})}
    handles = [Line2D([], [], label=name, **look) for name, look in entries.items()]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=across, fontsize=7,
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


def widths(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis of m with the values themselves as ticks."""
    there = sorted(set(values))
    axes.set_xscale("log")
    axes.set_xticks(there, [f"{m:,.0f}" for m in there])
    axes.minorticks_off()
    axes.set_xlabel("m, columns of W")


def label(value: float, digits: int = 2) -> str:
    """−0.56, with a minus sign that is one."""
    return f"{value:.{digits}g}".replace("-", "−")


def toy_large(ours: pd.DataFrame, theirs: pd.DataFrame, theory: pd.DataFrame) -> Figure:
    """Figure 1: loss against m for three laws of feature frequency, in strong and in weak superposition.

    ours: regime, distribution, m and those of `points`. theirs: regime, distribution, m, published. theory: regime, distribution,
    m and `loss`, which is equation 4 at φn = m.
    """
    with styled():
        figure = new_figure(4.0)
        for axes, regime in zip(figure.subplots(1, 2, sharey=True), ("strong", "weak"), strict=True):
            for name, colour in DISTRIBUTIONS.items():
                mine, other, law = (
                    f[(f["regime"] == regime) & (f["distribution"] == name)] for f in (ours, theirs, theory)
                )
                points(axes, mine, other, "m", colour)
                law = law.sort_values("m")
                axes.plot(law["m"], law["loss"], ":", color=colour, lw=1.3)
            lines: dict[str, Any] = {"equation 4, φn = m": {**DOTTED, "color": GREY}}
            if regime == "strong":
                ends = np.array([ours["m"].min(), ours["m"].max()], dtype=float)
                axes.plot(ends, ours[ours["regime"] == "strong"]["mean"].max() * ends[0] / ends, **DASHED)
                lines = {"∝ 1/m": DASHED}
            widths(axes, [*ours["m"], *theirs["m"]])
            axes.set_yscale("log")
            axes.set_title(f"{regime} superposition")
            kinds = KINDS if len(theirs) else {name: look for name, look in KINDS.items() if name != "published"}
            key(axes, DISTRIBUTIONS, lines, kinds, across=2)
        figure.axes[0].set_ylabel("loss")
    return figure


def toy_represented(ours: pd.DataFrame, theirs: pd.DataFrame) -> Figure:
    """Figure 3a: the share of rows with norm above ½ against γ, a colour for each m. Columns gamma, m and those of `points`."""
    colours = shades([*ours["m"], *theirs["m"]])
    with styled():
        figure = new_figure(4.0, 5.6)
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, lw=0.8)
        for m, colour in colours.items():
            points(axes, ours[ours["m"] == m], theirs[theirs["m"] == m], "gamma", colour)
        axes.set(
            xlabel="γ: pull to unit norm (< 0), weight decay (> 0)",
            ylabel=r"$\varphi_{1/2}$, share of rows with norm > ½",
        )
        key(axes, {f"m = {m:.0f}": colour for m, colour in colours.items()}, across=4)
    return figure


def toy_map(cells: pd.DataFrame) -> Figure:
    """Figures 3b and 4b: a quantity by α and γ, ours and the published one on one colour scale; grey: no run.

    cells: source ("here", "published"), alpha, gamma, value, and one `quantity` in all.
    """
    alphas, gammas = (sorted(set(cells[name])) for name in ("alpha", "gamma"))
    with styled():
        figure = new_figure(3.4)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, source in zip(panels, ("here", "published"), strict=True):
            grid = np.full((len(gammas), len(alphas)), np.nan)
            for row in cells[cells["source"] == source].itertuples():
                grid[gammas.index(row.gamma), alphas.index(row.alpha)] = row.value
            mesh = axes.pcolormesh(
                np.arange(len(alphas) + 1), np.arange(len(gammas) + 1), np.ma.masked_invalid(grid),
                cmap="viridis", vmin=0, vmax=float(cells["value"].max()), edgecolors="white", linewidth=0.3,
            )  # fmt: skip
            halves = [i for i, alpha in enumerate(alphas) if float(2 * alpha).is_integer()]
            axes.set_xticks([i + 0.5 for i in halves], [f"{alphas[i]:g}" for i in halves])
            axes.set_yticks([i + 0.5 for i in range(len(gammas))], [label(gamma) for gamma in gammas])
            axes.grid(visible=False)
            axes.set_facecolor("0.93")
            axes.set(title=source, xlabel=FREQUENCIES)
        panels[0].set_ylabel("γ")
        figure.colorbar(mesh, ax=panels, label=str(cells["quantity"].iloc[0]), pad=0.01)
    return figure


def toy_weak(losses: pd.DataFrame, unlearned: pd.DataFrame, ours: pd.DataFrame, theirs: pd.DataFrame) -> Figure:
    """Figure 5: weak superposition against the loss of the features that have no row, and its exponent against α − 1.

    losses: alpha, predicted, loss, one row a run. unlearned: predicted and loss as published at α = 0. ours, theirs: alpha,
    gamma and those of `points`.
    """
    with styled():
        figure = new_figure(4.0)
        left, right = figure.subplots(1, 2)
        colours = shades(losses["alpha"], "flare")
        for alpha, colour in colours.items():
            of = losses[losses["alpha"] == alpha]
            left.plot(of["predicted"], of["loss"], ".", color=colour, ms=5, alpha=0.7, mew=0)
        left.plot(unlearned["predicted"], unlearned["loss"], color=GREY, **PUBLISHED)
        top = max(unlearned["predicted"].max(), losses["predicted"].max())
        left.plot([0, top], [0, top], **DASHED)
        left.set(title="What is left out", xlabel="equation 4: variance of features without a row", ylabel="loss")
        ends = {f"α = {alpha:g}": colours[alpha] for alpha in (min(colours), max(colours))}
        key(left, ends, {"published": {**PUBLISHED, "color": GREY}, "loss = equation 4": DASHED}, across=2)
        by_gamma = _by_gamma(ours, theirs)
        for mine, other, colour in by_gamma.values():
            points(right, mine, other, "alpha", colour, line="none")
        right.plot([1, 2], [0, 1], **DASHED)
        right.set(title="Its exponent", xlabel=FREQUENCIES, ylabel=EXPONENT)
        key(right, {f"γ = {label(g)}": c for g, (_, _, c) in by_gamma.items()}, {"α − 1": DASHED})
    return figure


def toy_strong(
    fraction: pd.DataFrame,
    fraction_published: pd.DataFrame,
    overlap: pd.DataFrame,
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
) -> Figure:
    """Figure 6: strong superposition. The share of rows with norm above 1, how much those overlap, and the exponent.

    fraction, fraction_published: alpha, m and those of `points`. overlap: m, low, high (ours, over α), published_low,
    published_high, isotropic, welch, phi_one. ours, theirs: alpha, gamma and those of `points`.
    """
    with styled():
        figure = new_figure(4.0, 9.6)
        left, middle, right = figure.subplots(1, 3)
        law = overlap.sort_values("m")
        colours = shades([*fraction["alpha"], *fraction_published["alpha"]], "flare")
        for alpha, colour in colours.items():
            mine, other = (f[np.isclose(f["alpha"], alpha)] for f in (fraction, fraction_published))
            points(left, mine, other, "m", colour)
        left.plot(law["m"], law["phi_one"], **DASHED)
        left.set(title="Rows with norm above 1", ylabel=r"$\varphi_1$, their share")
        key(left, {f"α = {alpha:g}": colour for alpha, colour in colours.items()}, {"min(1, m²/2n)": DASHED})

        bars: Any = {"here, range over α": {"color": BLUE, "lw": 4}, "published": {"color": ORANGE, "lw": 4}}
        for name, at, low, high in (
            ("here, range over α", law["m"] / 1.04, law["low"], law["high"]),
            ("published", law["m"] * 1.04, law["published_low"], law["published_high"]),
        ):
            middle.vlines(at, low, high, **bars[name])
            middle.plot(at, high, "o", ms=4, color=bars[name]["color"])  # what is left of a range of one α
        middle.plot(law["m"], law["isotropic"], **DASHED)
        middle.plot(law["m"], law["welch"], **DOTTED)
        middle.set_yscale("log")
        middle.set(title="How much they overlap", ylabel="mean squared overlap")
        key(middle, {}, {"1/m": DASHED, "κ² of min(m²/2, n) rows": DOTTED}, bars, across=2)
        for axes in (left, middle):
            widths(axes, law["m"])

        by_gamma = _by_gamma(ours, theirs)
        for mine, other, colour in by_gamma.values():
            points(right, mine, other, "alpha", colour)
        right.axhline(1, **DASHED)
        right.plot([1.5, 2], [1, 2], **DOTTED)
        right.set(title="The exponent", xlabel=FREQUENCIES, ylabel=EXPONENT)
        right.set_ylim(bottom=0)
        key(right, {f"γ = {label(g)}": c for g, (_, _, c) in by_gamma.items()}, {"1": DASHED, "2(α − 1)": DOTTED})
    return figure


def toy_density(
    by_density: pd.DataFrame,
    by_density_published: pd.DataFrame,
    by_width: pd.DataFrame,
    by_width_published: pd.DataFrame,
) -> Figure:
    """Figure 7: loss against activation density E at one m for each γ, and against m at one γ for each E.

    by_density…: gamma, activation_density and those of `points`. by_width…: activation_density, m and those of `points`.
    """
    with styled():
        figure = new_figure(4.4)
        left, right = figure.subplots(1, 2)
        by_gamma = _by_gamma(by_density, by_density_published, "viridis")
        for mine, other, colour in by_gamma.values():
            points(left, mine, other, "activation_density", colour)
        left.set(title="Loss against density", xlabel="activation density E", ylabel="loss")
        key(left, {f"γ = {label(g)}": c for g, (_, _, c) in by_gamma.items()})
        densities = shades(
            [*by_width["activation_density"].round(2), *by_width_published["activation_density"].round(2)], "flare"
        )
        for density, colour in densities.items():
            mine, other = (
                f[np.isclose(f["activation_density"], density, atol=6e-3)] for f in (by_width, by_width_published)
            )
            points(right, mine, other, "m", colour)
        widths(right, [*by_width["m"], *by_width_published["m"]])
        right.set_yscale("log")
        right.set(title="Loss against width", ylabel="loss")
        key(right, {f"E = {density:.2f}": colour for density, colour in densities.items()})
    return figure


def _by_gamma(
    ours: pd.DataFrame, theirs: pd.DataFrame, palette: str | None = None
) -> dict[float, tuple[pd.DataFrame, pd.DataFrame, Any]]:
    """For each γ its rows in both frames and its colour; γ that agree to three decimals are one, for "
    "published ones are rounded."""
    there = sorted({*ours["gamma"].round(3), *theirs["gamma"].round(3)})
    few: Sequence[Any] = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
    colours = sns.color_palette(palette or "viridis", len(there)) if palette or len(there) > len(few) else few
    return {
        gamma: (ours[ours["gamma"].round(3) == gamma], theirs[theirs["gamma"].round(3) == gamma], colour)
        for gamma, colour in zip(there, colours, strict=False)
    }


TOY_FIGURES: dict[str, Callable[..., Figure]] = {
    "toy_large": toy_large,
    "toy_represented": toy_represented,
    "toy_map": toy_map,
    "toy_weak": toy_weak,
    "toy_strong": toy_strong,
    "toy_density": toy_density,
}
"""The figures of the toy page by name."""
