"""How often nominal 95 % intervals of α hold the truth, on losses simulated from the paper's own design.

    python benchmarks/bench_coverage.py [--simulations 400] [--draws 200] [--seed 0]

The truth is the published fit: 27 models × 4 data sets, its A, α = 0.91, 16 floors and residual size. A share of the
variance of the errors is common to the four losses of a model: 0, a half, or all. Printed are the spread of the estimates
and, for each kind of interval, the share of simulations in which it holds the truth, with the error of that share.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from llmsuper.scaling.fit import fit_law
from llmsuper.scaling.intervals import bootstrap_models, jacobian_interval, profile_interval
from llmsuper.scaling.losses import load_losses
from llmsuper.scaling.model_means import fit_model_means
from llmsuper.scaling.sensitivity import authors_slope_error

if TYPE_CHECKING:
    from llmsuper.scaling.fit import ScalingLawFit
    from llmsuper.scaling.intervals import Interval


def holds(interval: Interval, truth: float) -> bool:
    return (interval.low is None or interval.low <= truth) and (interval.high is None or truth <= interval.high)


def intervals_hold(fit: ScalingLawFit, truth: float, draws: int, seed: int) -> dict[str, bool]:
    """Whether each kind of interval holds the truth."""
    means = fit_model_means(fit)
    alpha = fit.params["alpha"]
    kinds = {
        "authors' slope error × 1.96": abs(alpha - truth) <= 1.96 * authors_slope_error(fit),
        "Jacobian": holds(jacobian_interval(fit, "alpha"), truth),
        "profile": holds(profile_interval(fit), truth),
        "Jacobian of model means": holds(jacobian_interval(means, "alpha"), truth),
        "profile of model means": holds(profile_interval(means), truth),
    }
    if draws:
        drawn = bootstrap_models(fit, draws=draws, seed=seed)
        half = float(stats.t.ppf(0.975, 27 - 6)) * drawn.sd("alpha")
        kinds["bootstrap over models, percentiles"] = holds(drawn.interval("alpha"), truth)
        kinds["bootstrap over models, ± t × sd"] = abs(alpha - truth) <= half
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws a simulation; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    published = fit_law("power-floor", load_losses("liu2025"), x="d_model", group=("family", "dataset"))
    truth, expected = published.params["alpha"], published.design.y - published.residuals()
    size = np.sqrt(published.objective_value / published.degrees_of_freedom)
    models = np.unique(published.design.frame["model_id"].to_numpy(dtype=str), return_inverse=True)[1]
    print(
        f"truth alpha = {truth:.4f}, residual size {size:.4f} nats, {options.simulations} simulations a line of errors"
    )
    for shared in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(options.seed)
        start, hits, estimates = time.perf_counter(), [], []
        for k in range(options.simulations):
            own, common = rng.normal(0, size, len(expected)), rng.normal(0, size, models.max() + 1)[models]
            losses = expected + np.sqrt(1 - shared) * own + np.sqrt(shared) * common
            # the frame goes along, for model means are taken from it
            frame = published.design.frame.assign(loss_nats=losses)
            fit = fit_law("power-floor", frame, x="d_model", group=("family", "dataset"))
            hits.append(intervals_hold(fit, truth, options.draws, options.seed + k))
            estimates.append(fit.params["alpha"])
        seconds = time.perf_counter() - start
        spread = np.std(estimates, ddof=1)
        print(f"\n{shared:.0%} of the variance shared by a model's losses: sd(alpha) {spread:.3f}, {seconds:.0f} s")
        for kind in hits[0]:
            share = float(np.mean([hit[kind] for hit in hits]))
            error = np.sqrt(share * (1 - share) / len(hits))
            print(f"  {kind:<36} {100 * share:5.1f} % ± {100 * error:.1f}")


if __name__ == "__main__":
    main()
