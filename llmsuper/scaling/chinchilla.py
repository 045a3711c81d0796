"""The Chinchilla cross-check: L(N, D), N(m), and what the two together imply for the exponent in the width m.

Data: the 245 runs of Figure 4 of Hoffmann et al. 2022 (arXiv 2203.15556), digitised by Besiroglu et al. 2024 (arXiv
2404.10102), who leave out the five highest losses; and the 50 shapes of Hoffmann et al.'s Table A9. Figure 4 gives no
shapes: a run's width and depth are those of the row of Table A9 with the same number of parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmsuper.errors import FitError
from llmsuper.scaling.additive import DELTA, AdditiveFit, fit_additive, percentiles

if TYPE_CHECKING:
    import pandas as pd

DEPTH_NAMES = ("E", "alpha_m", "alpha_l", "alpha_D")
HIGHEST_LEFT_OUT = 40
SQUARES = 1.0
"""A δ above every residual: least squares on log loss, the objective of the paper on depth."""
SAME_MODEL = 2e-3
"""Relative difference in parameters up to which a run is taken for a row of Table A9; the figure's worst is 0.0015."""


def fit_chinchilla(points: pd.DataFrame, bootstrap: int = 0, rng: np.random.Generator | None = None) -> AdditiveFit:
    """L = E + A/N^α + B/D^β on the columns n_params, train_tokens and loss_nats; raises as `fit_additive`."""
    names = ("E", "A", "B", "alpha", "beta")
    return fit_additive(points, ("n_params", "train_tokens"), names, bootstrap=bootstrap, rng=rng)


def fit_width_data(points: pd.DataFrame, bootstrap: int = 0, rng: np.random.Generator | None = None) -> AdditiveFit:
    """L = E + C_m/m^α_m + C_D/D^α_D on the columns d_model, train_tokens and loss_nats; raises as `fit_additive`."""
    names = ("E", "C_m", "C_D", "alpha_m", "alpha_D")
    return fit_additive(points, ("d_model", "train_tokens"), names, bootstrap=bootstrap, rng=rng)


def fit_width_depth_data(
    points: pd.DataFrame, bootstrap: int = 0, rng: np.random.Generator | None = None, delta: float = DELTA
) -> AdditiveFit:
    """L = E + C_m/m^α_m + C_ℓ/ℓ^α_ℓ + C_D/D^α_D, with ℓ the column n_layers; raises as `fit_additive`."""
    names = ("E", "C_m", "C_l", "C_D", "alpha_m", "alpha_l", "alpha_D")
    variables = ("d_model", "n_layers", "train_tokens")
    return fit_additive(points, variables, names, bootstrap=bootstrap, rng=rng, delta=delta)


def without_highest(points: pd.DataFrame, count: int) -> pd.DataFrame:
    """The points whose loss is below the `count`-th highest, so that runs of equal loss stay or go together.

    The figure's losses are read off a colour scale and take 99 values: two more runs tie with the 40th highest. Which of the
    three goes moves α_m of L(m, ℓ, D) by 0.03, and keeping all three makes it 0.89 instead of 0.95 (least squares).
    """
    return points[points["loss_nats"] < points["loss_nats"].nlargest(count).min()]


@dataclass(frozen=True, slots=True)
class WidthExponent:
    """N = exp(intercept) · m^k by least squares of ln N on ln m; N total parameters."""

    k: float
    stderr: float
    intercept: float
    residual: float
    """Root of the residual variance in ln N."""
    n_models: int
    widths: tuple[float, float]

    def params(self, width: float) -> float:
        """N of a width."""
        return float(np.exp(self.intercept) * width**self.k)

    def width(self, params: float) -> float:
        """m of a number of parameters: the same line read the other way."""
        return float((params / np.exp(self.intercept)) ** (1 / self.k))


def width_exponent(shapes: pd.DataFrame) -> WidthExponent:
    """N ∝ m^k on the columns n_params and d_model. FitError for fewer than three models or a single width."""
    m, n = (np.log(shapes[c].to_numpy(dtype=float)) for c in ("d_model", "n_params"))
    if len(m) < 3 or len(np.unique(m)) < 2:
        raise FitError(
            f"N ∝ m^k: {len(m)} models of {len(np.unique(m))} widths. Give at least three models of two widths."
        )
    spread = float(((m - m.mean()) ** 2).sum())
    k = float(((m - m.mean()) @ (n - n.mean())) / spread)
    rest = n - n.mean() - k * (m - m.mean())
    variance = float(rest @ rest) / (len(m) - 2)
    ends = float(shapes["d_model"].min()), float(shapes["d_model"].max())
    return WidthExponent(k, (variance / spread) ** 0.5, float(n.mean() - k * m.mean()), variance**0.5, len(m), ends)


def with_shapes(points: pd.DataFrame, shapes: pd.DataFrame) -> pd.DataFrame:
    """The points whose n_params is that of a row of `shapes` within 0.2 %, with that row's d_model and n_layers.

    The figure's counts are the ones that follow from the shapes (column n_params_from_shape), not the rounded ones printed.
    FitError where no point has a shape.
    """
    known = shapes["n_params_from_shape"].to_numpy(dtype=float)
    apart = np.abs(np.log(points["n_params"].to_numpy(dtype=float)[:, None] / known))
    found = apart.min(axis=1) <= SAME_MODEL
    if not found.any():
        raise FitError(
            f"None of {len(points)} points has the parameters of one of {len(known)} shapes. Check n_params."
        )
    rows = shapes.iloc[apart.argmin(axis=1)[found]]
    shape = {name: rows[name].to_numpy(dtype=float) for name in ("d_model", "n_layers")}
    return points.loc[found].assign(**shape)


@dataclass(frozen=True, slots=True)
class ImpliedExponent:
    """α_m = k·α_N, because N ∝ m^k turns A/N^α into a constant over m^(kα)."""

    value: float
    quadrature: float
    """√((k σ_α)² + (α σ_k)²): the errors of k and α_N come from different data, so they are independent."""
    linear: float
    """k σ_α + α σ_k: what two errors add up to if they are always of one sign, and what the paper prints as its error."""
    interval: tuple[float, float] | None = None
    """95 % of the products of bootstrap α_N with normal k."""


def printed_pair(row: dict[str, Any], name: str) -> tuple[float, float]:
    """(value, standard error) of a row of `losses.load_published_fits`."""
    return row[name], row[f"{name}_error"]


def implied_exponent(k: tuple[float, float], alpha: tuple[float, float]) -> ImpliedExponent:
    """The product of two (value, standard error)."""
    parts = k[0] * alpha[1], alpha[0] * k[1]
    return ImpliedExponent(k[0] * alpha[0], float(np.hypot(*parts)), sum(parts))


@dataclass(frozen=True, slots=True)
class ChinchillaSummary:
    """All of the cross-check; `text()` for people, `to_dict()` for JSON."""

    fit: AdditiveFit
    """L(N, D), without the five runs that Besiroglu et al. leave out."""
    fit_all: AdditiveFit
    width: WidthExponent
    implied: ImpliedExponent
    paper: ImpliedExponent
    """The paper's own k and α_N, with both kinds of error of their product."""
    paper_printed: dict[str, Any]
    """k, alpha_N and alpha_m with their errors as Liu, Liu and Gore 2025 (arXiv 2505.10465, section 3.3) print them."""
    direct: AdditiveFit
    """L(m, D) on the same points as `fit`."""
    shape: AdditiveFit
    """L(m, ℓ, D) on the same points as `fit`."""
    shape_low: AdditiveFit
    """L(m, ℓ, D) by least squares without the 40 highest losses, as the paper on depth has it."""
    depth_printed: dict[str, Any]
    """What that paper (Liu, Kangaslahti, Liu and Gore 2026, arXiv 2602.05970) prints for its fit."""
    published: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "fit": self.fit.to_dict(),
            "fit_all": self.fit_all.to_dict(),
            "width_exponent": asdict(self.width),
            "implied_alpha_m": asdict(self.implied),
            "paper_alpha_m": {**asdict(self.paper), "printed": printed_pair(self.paper_printed, "alpha_m")},
            "direct": self.direct.to_dict(),
            "shape": self.shape.to_dict(),
            "shape_without_highest": self.shape_low.to_dict(),
            "shape_published": {name: self.depth_printed[name] for name in DEPTH_NAMES},
            "published": self.published,
        }

    def text(self) -> str:
        """A readable block of lines."""
        i, w = self.implied, self.width
        span = f", 95 % {i.interval[0]:.3f} to {i.interval[1]:.3f}" if i.interval else ""
        product, k, alpha = (
            "{} ± {}".format(*printed_pair(self.paper_printed, name)) for name in ("alpha_m", "k", "alpha_N")
        )
        return "\n".join(
            [
                "Chinchilla: L(N, D) = E + A/N^alpha + B/D^beta, Huber on log loss",
                *(_line(name, _published(row)) for name, row in self.published.items()),
                _line(f"refit, {self.fit.n_points} points", _parameters(self.fit)),
                _line(f"refit, all {self.fit_all.n_points}", _parameters(self.fit_all)),
                "",
                "Width: N ~ m^k over Table A9, L ~ 1/m^alpha_m",
                f"  k = {w.k:.3f} ± {w.stderr:.3f} ({w.n_models} models)",
                f"  implied alpha_m = k alpha_N = {i.value:.3f} ± {i.quadrature:.3f} (independent errors{span})",
                (
                    f"  the paper prints {product}: from its {k} and {alpha}, independent errors make ± "
                    f"{self.paper.quadrature:.3f}; ± {self.paper.linear:.3f} is their linear sum"
                ),
                _line("direct, L(m, D)", _parameters(self.direct)),
                (
                    f"  Huber objective {self.direct.objective:.5f} in m against {self.fit.objective:.5f} in N: "
                    "N explains these losses better than m alone"
                ),
                "",
                "Width and depth: L(m, l, D) = E + C_m/m^alpha_m + C_l/l^alpha_l + C_D/D^alpha_D",
                _line(f"{self.shape.n_points} points", _parameters(self.shape)),
                _line(f"{self.shape_low.n_points}, least squares", _parameters(self.shape_low)),
                _line("arXiv 2602.05970", {name: f"{self.depth_printed[name]}" for name in DEPTH_NAMES}),
                (
                    f"  both of the last without the {HIGHEST_LEFT_OUT} highest losses; ours also without the two that tie with "
                    "them, and with the shapes of Table A9"
                ),
            ]
        )


def _line(title: str, parameters: dict[str, str]) -> str:
    return f"  {title:<22}" + "  ".join(f"{name} {text}" for name, text in parameters.items())


def _with_error(value: float, error: float | None) -> str:
    """The value to the five digits that published fits are compared by, its error to two."""
    if error is None:
        return f"{value:.5g}"
    places = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.5g} ± {error:.{places}f}"


def _parameters(fit: AdditiveFit) -> dict[str, str]:
    errors = fit.stderr() or {}
    return {n: _with_error(v, errors.get(n)) for n, v in zip(fit.names, fit.values, strict=True)}


def _published(row: dict[str, Any]) -> dict[str, str]:
    return {name: _with_error(row[name], row.get(f"{name}_error")) for name in ("E", "A", "B", "alpha", "beta")}


def chinchilla_summary(bootstrap: int = 500, seed: int = 0) -> ChinchillaSummary:
    """The whole cross-check on the tables that come with llmsuper; the same seed gives the same numbers."""
    from llmsuper.scaling.losses import load_losses, load_published_fits, load_shapes

    everything, shapes = load_losses("chinchilla"), load_shapes("chinchilla")
    paper = load_published_fits("liu2025")["paper"]
    kept = everything[everything["excluded_by_besiroglu2024"] == 0]
    low = without_highest(everything, HIGHEST_LEFT_OUT)
    # one stream each, so that no fit's draws depend on which others were made
    rngs = np.random.default_rng(seed).spawn(6)
    fit = fit_chinchilla(kept, bootstrap, rngs[0])
    width = width_exponent(shapes)
    return ChinchillaSummary(
        fit=fit,
        fit_all=fit_chinchilla(everything, bootstrap, rngs[1]),
        width=width,
        implied=_implied(width, fit, rngs[2]),
        paper=implied_exponent(printed_pair(paper, "k"), printed_pair(paper, "alpha_N")),
        paper_printed=paper,
        direct=fit_width_data(with_shapes(kept, shapes), bootstrap, rngs[3]),
        shape=fit_width_depth_data(with_shapes(kept, shapes), bootstrap, rngs[4]),
        shape_low=fit_width_depth_data(with_shapes(low, shapes), bootstrap, rngs[5], SQUARES),
        depth_printed=load_published_fits("liu2026")["printed"],
        published=load_published_fits("chinchilla"),
    )


def _implied(width: WidthExponent, fit: AdditiveFit, rng: np.random.Generator) -> ImpliedExponent:
    """With the bootstrap's error of α_N; without a bootstrap, with Besiroglu et al.'s 0.0154."""
    stderr = fit.stderr()
    found = implied_exponent((width.k, width.stderr), (fit["alpha"], stderr["alpha"] if stderr else 0.0154))
    if not stderr:
        return found
    alphas = fit.draws[:, fit.names.index("alpha")]
    products = alphas * rng.normal(width.k, width.stderr, size=len(alphas))
    return ImpliedExponent(found.value, found.quadrature, found.linear, percentiles(products))
