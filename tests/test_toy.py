"""The toy models: what is drawn, the arithmetic of a step, what is measured of a trained model, and the sweeps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from llmsuper.errors import CatalogError, LlmsuperError, UnknownNameError
from llmsuper.kernels import one_thread_per_block
from llmsuper.toy import measure
from llmsuper.toy.batch import Batch, initial_parameters
from llmsuper.toy.data import Sampler
from llmsuper.toy.exponents import loss_exponents
from llmsuper.toy.features import FREQUENCIES, feature_frequencies
from llmsuper.toy.model import Room, forward, loss_and_gradient
from llmsuper.toy.optim import EPSILON, Optimiser, learning_rate
from llmsuper.toy.run import REGULARISERS, ToyRun, read_gamma
from llmsuper.toy.streams import keys, uniform
from llmsuper.toy.sweep import choose, load_sweep, sweep_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARAMETERS: dict[str, dict[str, float]] = {"power": {"alpha": 1.0}, "exponential": {"scale": 20.0}, "linear": {}}
"""For every row of FREQUENCIES, the parameters that a test gives it."""


def toy_run(**changes: Any) -> ToyRun:
    """A run that trains in a moment."""
    small = {
        "n": 60, "m": 6, "regulariser": "unit-norm", "strength": 0.5, "distribution": "power", "alpha": 1.0,
        "steps": 30, "batch": 64, "test_samples": 150,
    }  # fmt: skip
    return ToyRun(**small | changes)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer over small products than one alone."""
    with one_thread_per_block():
        yield


# ---- features


def test_every_law_of_frequencies_is_tried() -> None:
    assert set(PARAMETERS) == set(FREQUENCIES)


@pytest.mark.parametrize("name", FREQUENCIES)
@pytest.mark.parametrize("density", [0.3, 1.0, 2.5])
def test_frequencies_fall_and_add_up_to_the_activation_density(name: str, density: float) -> None:
    p = feature_frequencies(name, 200, density, **PARAMETERS[name])
    assert p.shape == (200,)
    assert p.sum() == pytest.approx(density, rel=1e-12)
    assert np.all(np.diff(p) <= 0)
    assert p[-1] > 0


def test_frequencies_are_those_of_the_paper() -> None:
    n = 10240
    ranks = np.arange(1, n + 1)
    for name, given, weights in (
        ("power", {"alpha": 1.2}, ranks**-1.2),
        ("exponential", {"scale": 400.0}, np.exp(-ranks / 400)),
        ("linear", {}, n - (ranks - 1.0)),
    ):
        expected = weights / weights.sum()
        np.testing.assert_allclose(feature_frequencies(name, n, 1.0, **given), expected, rtol=1e-9)


def test_the_highest_density_is_where_the_first_feature_is_always_active() -> None:
    # paper.md and liu2025_toy_activation_density.csv: E = 7.4855 for alpha = 1 and n = 1000
    highest = sum(1 / i for i in range(1, 1001))
    assert highest == pytest.approx(7.4855, abs=5e-5)
    assert feature_frequencies("power", 1000, highest, alpha=1.0)[0] == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(LlmsuperError, match=r"E = 7\.5: power frequencies of 1000 features allow E up to 7\.48547"):
        feature_frequencies("power", 1000, 7.5, alpha=1.0)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("zipf", {"alpha": 1.0}, r"no feature distribution is named 'zipf'; there are: exponential, linear, power"),
        ("power", {}, "needs alpha, was given none"),
        ("power", {"scale": 3.0}, "needs alpha, was given scale"),
        ("linear", {"alpha": 1.0}, "needs no parameter, was given alpha"),
        ("power", {"alpha": -1.0}, "alpha = -1 makes no falling frequencies"),
        ("exponential", {"scale": 0.0}, "scale = 0 makes no falling frequencies"),
    ],
)
def test_frequencies_that_do_not_exist_are_refused(name: str, given: dict[str, float], said: str) -> None:
    with pytest.raises(LlmsuperError, match=said):
        feature_frequencies(name, 10, 1.0, **given)


# ---- runs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"m": 61}, "m = 61, n = 60; a toy model needs 1 <= m <= n"),
        ({"m": 0}, "a toy model needs 1 <= m <= n"),
        ({"strength": -0.1}, "is not negative"),
        ({"regulariser": "dropout"}, "no row regulariser is named 'dropout'; there are: unit-norm, weight-decay"),
        ({"initialisation": "ones"}, "no initialisation is named 'ones'"),
        ({"distribution": "zipf"}, "no feature distribution is named 'zipf'"),
        ({"activation_density": 9.0}, "allow E up to"),
        ({"warmup": 1.5}, "it is a share of the steps"),
        ({"lr": 0.0}, "are above 0"),
        ({"steps": 0}, "both are at least 1"),
    ],
)
def test_a_run_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LlmsuperError, match=said):
        toy_run(**changes)


@pytest.mark.parametrize("gamma", [-1.0, -0.5, 0.0, 0.25, 1.0])
def test_the_sign_of_gamma_names_the_regulariser(gamma: float) -> None:
    regulariser, strength = read_gamma(gamma)
    assert regulariser == ("unit-norm" if gamma < 0 else "weight-decay")
    assert strength >= 0
    assert toy_run(regulariser=regulariser, strength=strength).gamma == gamma


def test_any_difference_makes_another_key() -> None:
    runs = [toy_run(), toy_run(seed=1), toy_run(lr_bias=0.02), toy_run(strength=0.500001), toy_run(loss_scale=100.0)]
    assert len({run.key for run in runs}) == len(runs)


# ---- random numbers and samples


def test_the_stream_is_splitmix64() -> None:
    # the first numbers of splitmix64 with seed 1234567, as printed at rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    golden = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = uniform(torch.tensor(1234567), torch.arange(1, 6))
    assert found.tolist() == [(g >> 11) * 2.0**-53 for g in golden]


def test_seeds_streams_and_purposes_have_sequences_of_their_own() -> None:
    every = [keys(range(50), s, p, "cpu") for s in ("training", "test") for p in ("count", "feature", "value")]
    assert len(torch.cat(every).unique()) == 300


def dense(samples: Any, runs: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (runs, rows, n) of the samples, and the number of samples (runs, rows) that each row stands for."""
    x = torch.zeros(runs, samples.rows, n)
    x.view(-1)[samples.row * n + samples.feature % n] = samples.value
    assert torch.equal(samples.place, samples.row * n + samples.feature % n)
    return x, samples.weight.square()


@pytest.mark.parametrize("name", FREQUENCIES)
@pytest.mark.parametrize("density", [1.0, 6.0])
def test_samples_have_the_law_of_the_paper(name: str, density: float) -> None:
    n, batch, steps = 30, 500, 24
    p = feature_frequencies(name, n, density if name != "power" else min(density, 3.9), **PARAMETERS[name])
    total, active, together, values = 0, torch.zeros(n), torch.zeros(n, n), []
    for samples in Sampler(p[None], [7], batch, "training", "cpu").draw(3, steps):
        x, count = dense(samples, 1, n)
        assert count.sum() == pytest.approx(batch, rel=1e-6)
        assert len(samples.value) == int((x > 0).sum())  # no entry is there twice
        on = (x[0] > 0).float()
        active += on.sum(dim=0)
        together += on.T @ on
        total += batch
        values.append(samples.value)
    share, pairs = active.numpy() / total, together.numpy() / total
    assert np.all(np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / total) + 1e-8)
    expected = np.outer(p, p)
    off = ~np.eye(n, dtype=bool)
    assert np.all(np.abs(pairs - expected)[off] <= 5.5 * np.sqrt(expected * (1 - expected) / total)[off] + 1e-8)
    v = torch.cat(values).double()
    assert float(v.min()) >= 0
    assert float(v.max()) < 2
    assert float(v.mean()) == pytest.approx(1, abs=5 * math.sqrt(1 / 3 / len(v)))
    assert float(v.square().mean()) == pytest.approx(4 / 3, abs=5 * math.sqrt(64 / 45 / len(v)))


def test_a_probability_of_one_is_always_active() -> None:
    p = feature_frequencies("power", 20, sum(1 / i for i in range(1, 21)), alpha=1.0)
    for samples in Sampler(p[None], [0], 300, "training", "cpu").draw(0, 3):
        x, count = dense(samples, 1, 20)
        assert torch.all(x[0, :-1, 0] > 0)
        assert count[0, -1] == 0


def test_features_that_are_not_sparse_are_refused() -> None:
    p = np.full((1, 20_000), 0.3)
    with pytest.raises(LlmsuperError, match=r"E = 6000: 7133 hits a sample do not fit"):
        Sampler(p, [0], 4, "training", "cpu")
    (samples,) = Sampler(p[:, :2000], [0], 40, "training", "cpu").draw(0, 1)
    assert len(samples.value) / 40 == pytest.approx(600, abs=5 * math.sqrt(2000 * 0.21 / 40))


def test_samples_do_not_depend_on_what_is_drawn_beside_them() -> None:
    p = np.stack([feature_frequencies("power", 40, 1.0, alpha=a) for a in (0.0, 1.0, 2.0)])
    beside = list(Sampler(p, [4, 5, 6], 50, "training", "cpu").draw(0, 6))
    alone = list(Sampler(p[1:2], [5], 50, "training", "cpu").draw(2, 2))
    for one, many in zip(alone, beside[2:4], strict=True):
        x, _ = dense(one, 1, 40)
        y, _ = dense(many, 3, 40)
        assert torch.equal(x[0], y[1, : one.rows])
        assert not y[1, one.rows :].any()


# ---- a step


def test_loss_and_gradient_are_those_of_the_dense_model() -> None:
    n, m, batch = 50, 7, 64
    p = np.stack([feature_frequencies("power", n, 1.7, alpha=a) for a in (0.0, 1.0, 0.5)])
    theta = torch.randn(3, n, m + 1, generator=torch.Generator().manual_seed(1)) * 0.5
    for samples in Sampler(p, [1, 2, 3], batch, "training", "cpu").draw(0, 3):
        x, count = dense(samples, 3, n)
        exact = theta.double().requires_grad_()
        W, b = exact[:, :, :-1], exact[:, :, -1]
        y = torch.relu(x.double() @ W @ W.transpose(1, 2) + b[:, None])
        expected = ((y - x).square().sum(dim=2) * count).sum(dim=1) / batch
        expected.sum().backward()
        loss, gradient = loss_and_gradient(theta, samples, batch, Room(), with_loss=True)
        assert loss is not None
        assert exact.grad is not None
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=0)
        scale = float(exact.grad.abs().max())
        torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-5, atol=1e-6 * scale)


def test_weight_decay_is_adamw() -> None:
    # Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2, number by number in float64
    run = toy_run(regulariser="weight-decay", strength=0.3, steps=25, lr=0.02, lr_bias=0.05, loss_scale=3.0)
    theta = initial_parameters(run)[None].clone()
    ours, expected = Optimiser([run], theta), theta[0].double()
    peak = torch.tensor([run.lr] * run.m + [run.lr_bias], dtype=torch.float64)
    decay = torch.tensor([run.strength] * run.m + [0.0], dtype=torch.float64)
    mean = square = torch.zeros_like(expected)
    generator = torch.Generator().manual_seed(2)
    for step in range(run.steps):
        gradient = torch.randn(theta.shape, generator=generator) * 1e-5
        g = gradient[0].double() * run.loss_scale / run.n
        rate = peak * learning_rate(step, run.steps, run.warmup, run.final_lr)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        expected = expected - rate * decay * expected - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        ours.step(theta, gradient, step)
    torch.testing.assert_close(theta[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_pull_to_unit_norm_is_equation_2() -> None:
    run = toy_run(strength=0.7)
    theta = initial_parameters(run)[None].clone()
    W, b = theta[0, :, :-1].double(), theta[0, :, -1].clone()
    Optimiser([run], theta).step(theta, torch.zeros_like(theta), 5)
    rate = run.lr * learning_rate(5, run.steps, run.warmup, run.final_lr)
    expected = W + rate * run.strength * W * (1 / (W.norm(dim=1, keepdim=True) + EPSILON) - 1)
    torch.testing.assert_close(theta[0, :, :-1].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(theta[0, :, -1], b)


@pytest.mark.parametrize("gamma", [-0.5, 0.5])
def test_training_is_the_papers_loop_written_densely(gamma: float) -> None:
    """Whole samples, torch's own gradient and torch's own Adam, in float64, on the samples that the run draws."""
    regulariser, strength = read_gamma(gamma)
    run = toy_run(regulariser=regulariser, strength=strength, steps=150)
    theta = initial_parameters(run).double()
    W, b = (part.clone().requires_grad_() for part in (theta[:, :-1], theta[:, -1]))
    adam = torch.optim.Adam([{"params": [W], "lr": run.lr}, {"params": [b], "lr": run.lr_bias}], eps=EPSILON)
    for step, samples in enumerate(
        Sampler(run.frequencies()[None], [run.seed], run.batch, "training", "cpu").draw(0, run.steps)
    ):
        active = dense(samples, 1, run.n)[0][0].double()
        x = torch.cat([active[:-1], torch.zeros(run.batch - len(active) + 1, run.n)])
        loss = torch.nn.functional.mse_loss(torch.relu(x @ W @ W.T + b), x)
        loss.backward()
        share = learning_rate(step, run.steps, run.warmup, run.final_lr)
        with torch.no_grad():
            rate = share * run.lr * strength
            W *= 1 - rate if gamma > 0 else 1 + rate * (1 / W.norm(dim=1, keepdim=True) - 1)
        for group, peak in zip(adam.param_groups, (run.lr, run.lr_bias), strict=True):
            group["lr"] = share * peak
        adam.step()
        adam.zero_grad()
    batch = Batch([[run]], "cpu")
    while batch.step < run.steps:
        batch.advance()
    (trained,) = batch.finish()
    torch.testing.assert_close(trained.W.double(), W.detach(), rtol=0, atol=2e-4)
    torch.testing.assert_close(trained.b.double(), b.detach(), rtol=0, atol=2e-4)


def test_the_schedule_rises_in_a_line_and_falls_in_a_cosine() -> None:
    rates = [learning_rate(step, 1000, 0.1, 0.05) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 100)
    assert rates[49] == pytest.approx(0.5)
    assert max(rates) == rates[99] == 1.0
    assert rates[549] == pytest.approx((1 + 0.05) / 2)  # half-way down
    assert rates[999] == pytest.approx(0.05)
    assert learning_rate(0, 1, 1.0, 0.05) == 1.0


# ---- a whole run, against theory


def test_the_ideal_without_superposition_loses_equation_4() -> None:
    run = toy_run(n=100, m=8, alpha=1.5, batch=1000, test_samples=20_001, regulariser="weight-decay")
    batch = Batch([[run]], "cpu")
    p = run.frequencies()
    batch.theta.zero_()
    batch.theta[0, 0, : run.m, : run.m] = torch.eye(run.m)
    batch.theta[0, 0, run.m :, -1] = torch.from_numpy(p[run.m :]).float()  # the mean of what has no direction
    (found,) = batch.finish()
    expected = measure.theory_values(run, found.W, found.b, run.m / run.n, 0)
    assert abs(found.test_loss - expected["weak_loss_m"]) < 4 * found.test_loss_stderr
    assert expected["weak_loss"] == expected["weak_loss_m"]
    assert measure.measure_rows(found.W)["ambiguity"] == pytest.approx(0, abs=1e-6)

    batch.theta.zero_()  # y = 0 costs <v²> E = 4/3
    (nothing,) = batch.finish()
    assert abs(nothing.test_loss - 4 / 3) < 4 * nothing.test_loss_stderr
    assert 0 < nothing.test_loss_stderr < 0.02


def test_one_active_feature_costs_equation_8() -> None:
    run = toy_run(n=40, m=5)
    theta = initial_parameters(run)
    theta[:, -1] -= 0.4
    p, W, b = run.frequencies(), theta[:, :-1].double(), theta[:, -1].double()
    v = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 2_000  # midpoints of U(0, 2)
    expected = 0.0
    for i in range(run.n):
        y = torch.relu(v[:, None] * (W @ W[i]) + b)
        y[:, i] -= v
        expected += p[i] * float(y.square().sum(dim=1).mean())
    assert measure.one_active_loss(W.numpy(), b.numpy(), p) == pytest.approx(expected, rel=1e-5)


def test_the_overlaps_of_random_rows_are_those_of_a_beta_law() -> None:
    m = 12
    W = np.random.default_rng(0).normal(size=(1000, m))
    expected = 2 * (m - 1) / (m**2 * (m + 2))
    assert measure.squared_overlap_variance(W) == pytest.approx(expected, rel=0.02)
    unit = W[:70] / np.linalg.norm(W[:70], axis=1, keepdims=True)
    pairs = np.square(unit @ unit.T)[np.triu_indices(70, 1)]
    assert measure.squared_overlap_variance(W[:70]) == pytest.approx(pairs.var(), rel=1e-9)


def test_ambiguity_is_the_norm_of_the_whole_difference() -> None:
    W = np.random.default_rng(1).normal(size=(30, 4))
    ideal = np.diag([1.0] * 4 + [0.0] * 26)
    assert measure.ambiguity(W) == pytest.approx(np.linalg.norm(W @ W.T - ideal, 2), rel=1e-10)


def test_what_is_measured_is_what_the_rows_are() -> None:
    W = torch.diag(torch.tensor([2.0, 1.5, 0.75, 0.25, 0.0])).repeat(2, 1)
    found = measure.measure_rows(W)
    assert found["phi_half"] == 0.6
    assert found["phi_one"] == 0.4
    assert found["norms"]["zero_rows"] == 2
    assert found["overlap"]["mean_squared_overlap"] == pytest.approx(8 / (8 * 7))  # each row meets its double
    assert found["strong_overlap"]["mean_squared_overlap"] == pytest.approx(4 / (4 * 3))
    assert found["strong_overlap"]["rows"] == 4
    assert measure.measure_rows(W * 0.3)["strong_overlap"] is None


# ---- exponents


def test_exponents_are_found_for_every_group_with_enough_widths() -> None:
    import pandas as pd

    shared = {"n": 100, "distribution": "power", "alpha": 1.0, "scale": None, "activation_density": 1.0, "steps": 5}
    rows = [
        shared | {"batch": 2, "gamma": gamma, "m": m, "seed": seed, "test_loss": 3.0 * m**-slope}
        for gamma, slope, widths in ((-1.0, 0.9, (4, 8, 16)), (0.5, 0.3, (4, 8, 16, 32)), (1.0, 1.0, (4, 8)))
        for m in widths
        for seed in (0, 1)
    ]
    found = loss_exponents(pd.DataFrame(rows))
    assert found["gamma"].tolist() == [-1.0, 0.5]
    assert found["exponent"].tolist() == pytest.approx([0.9, 0.3])
    assert found["points"].tolist() == [6, 8]
    assert found["r_squared"].tolist() == pytest.approx([1, 1])


# ---- sweeps


@pytest.mark.parametrize("name", sweep_files())
def test_a_sweep_that_comes_with_llmsuper_runs(name: str) -> None:
    sweep = load_sweep(name)
    assert sweep.title
    assert set(sweep.versions) == {"full", "reduced"}
    for runs in sweep.versions.values():
        least = min(runs, key=lambda run: (run.n, run.m))
        (found,) = Batch([[replace(least, n=min(least.n, 500), steps=2, batch=16, test_samples=20)]], "cpu").finish()
        assert math.isfinite(found.test_loss)


def test_the_full_sweeps_are_those_of_the_paper() -> None:
    weight_decay = load_sweep("weight_decay").versions["full"]
    assert len(weight_decay) == 10 * 17 * 6
    assert sorted({run.gamma for run in weight_decay}) == pytest.approx(np.linspace(-1, 1, 10), abs=1e-12)
    assert sorted({run.alpha for run in weight_decay}) == np.linspace(0, 2, 17).tolist()
    widths = [int(w) for w in np.exp(np.linspace(math.log(10), math.log(100), 6)) + 1e-9]
    assert sorted({run.m for run in weight_decay}) == widths == [10, 15, 25, 39, 63, 100]
    assert {(r.n, r.steps, r.batch, r.lr, r.lr_bias, int(r.steps * r.warmup)) for r in weight_decay} == {
        (1000, 20_000, 2048, 0.01, 0.01, 2000)
    }
    density = load_sweep("activation_density").versions["full"]
    highest = sum(1 / i for i in range(1, 1001))
    expected = [1 + s * (highest - 1) for s in np.linspace(0, 1, 9)]
    assert sorted({run.activation_density for run in density}) == pytest.approx(expected, abs=1e-6)
    large = load_sweep("large").versions["full"]
    assert sorted({run.m for run in large}) == [2**k for k in range(3, 11)]
    assert {run.n for run in large} == {10240}
    assert {(run.distribution, run.alpha, run.scale) for run in large} == {
        ("power", 1.2, None), ("exponential", None, 400.0), ("linear", None, None),
    }  # fmt: skip
    assert {run.gamma for run in large} == {-1.0, 0.1}
    for run in large:
        assert run.lr == pytest.approx(0.02 * (8 / run.m) ** 0.25, rel=1e-5)
        assert run.lr_bias == pytest.approx(2 / run.m, rel=1e-5)


GRID = 'title = "t"\n[common]\nn = 50\nalpha = 1.0\n[full]\nm = [2, 3, 5]\n'


def write(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def test_lists_multiply_and_what_varies_together_does_not(tmp_path: Path) -> None:
    together = "[[full.together.a]]\nm = 7\nlr = 0.5\n[[full.together.a]]\nm = [8, 9]\nlr = 0.25\n"
    runs = load_sweep(write(tmp_path, GRID + "gamma = [-1, 0.5]\n" + together)).versions["full"]
    assert {(run.m, run.lr, run.gamma) for run in runs} == {
        (m, lr, g) for m, lr in ((7, 0.5), (8, 0.25), (9, 0.25)) for g in (-1, 0.5)
    }
    assert {run.regulariser for run in runs} == set(REGULARISERS)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ("gama = 1.0", CatalogError, "no parameter of a toy run is named 'gama'.*Did you mean 'gamma'"),
        ("", CatalogError, "no 'regulariser'. Give m, and gamma or both"),
        ("gamma = 1.0\nstrength = 1.0", CatalogError, "two names of one knob"),
        ("gamma = 'x'", CatalogError, "gamma = 'x' is not a finite number"),
        ("gamma = nan", CatalogError, "is not a finite number"),
        ("gamma = 1.0\nsteps = 2.5", CatalogError, "steps = 2.5 is not of type int"),
        ("gamma = 1.0\nseed = true", CatalogError, "seed = True is not of type int"),
        ("gamma = [1.0, 1.0]", CatalogError, "3 runs are there twice"),
        ("gamma = 1.0\nn = 4", LlmsuperError, r"own.toml, \[full\]: toy run: m = 5, n = 4"),
        ("gamma = 1.0\ndistribution = 'zipf'", UnknownNameError, "no feature distribution is named 'zipf'"),
        ("gamma = 1.0\nactivation_density = 99", LlmsuperError, "allow E up to"),
        ("gamma = 1.0\n[ful]", CatalogError, "has a section 'ful'"),
        ("gamma = 1.0\ntogether = 3", CatalogError, "is not made of tables"),
        ("gamma = = 1", CatalogError, "cannot be read"),
    ],
)
def test_a_sweep_that_is_wrong_is_one_error(tmp_path: Path, more: str, kind: type, said: str) -> None:
    with pytest.raises(kind, match=said):
        load_sweep(write(tmp_path, GRID + more + "\n"))


def test_a_sweep_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"no sweep is named 'weight_decai'.*Did you mean 'weight_decay'"):
        load_sweep("weight_decai")
    with pytest.raises(CatalogError, match=r"sweep nowhere\.toml: cannot be read"):
        load_sweep("nowhere.toml")


def test_only_some_runs_are_chosen() -> None:
    runs = load_sweep("weight_decay").versions["full"]
    chosen = choose(runs, ["m=10,15", "gamma=-0.556", "alpha=1"])
    assert [(run.m, run.alpha) for run in chosen] == [(10, 1.0), (15, 1.0)]
    with pytest.raises(UnknownNameError, match="no parameter of a toy run is named 'width'"):
        choose(runs, ["width=10"])
    with pytest.raises(LlmsuperError, match=r"no run has it; m is 10, 100, 15, 25, 39, 63"):
        choose(runs, ["m=11"])
    with pytest.raises(LlmsuperError, match="is not KEY=VALUE"):
        choose(runs, ["m"])


def test_forward_is_the_model() -> None:
    run = toy_run()
    theta = initial_parameters(run)[None]
    (samples,) = Sampler(run.frequencies()[None], [0], run.batch, "test", "cpu").draw(0, 1)
    x, count = dense(samples, 1, run.n)
    _, y = forward(theta, samples, Room())
    W, b = theta[0, :, :-1], theta[0, :, -1]
    expected = torch.relu(x[0] @ W @ W.T + b) * count[0].sqrt()[:, None]
    torch.testing.assert_close(y[0], expected, rtol=1e-5, atol=1e-5)
