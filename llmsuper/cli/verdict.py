"""Says what the gate found: a table of heads and three sentences, for a terminal or as markdown."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from llmsuper.cli.table import Column, Table, count

if TYPE_CHECKING:
    from llmsuper.check import CheckedHead, CheckResult


def _deviations(head: CheckedHead) -> str:
    z = head.deviations_from_random
    return "–" if z is None else f"{z:+.1f}" if abs(z) < 1000 else f"{z:+.1e}"


def _over_floor(head: CheckedHead) -> str:
    return f"{head.mean_squared_overlap / head.welch_floor:.2f}" if head.welch_floor else "–"


def _columns(width: int) -> list[Column[CheckedHead]]:
    return [
        Column("model", width, lambda h: h.name, left=True),
        Column("rows", 7, lambda h: count(h.rows) or "–"),
        Column("m", 6, lambda h: count(h.columns)),
        Column("overlap", 10, lambda h: f"{h.mean_squared_overlap:.4e}"),
        Column("x m", 8, lambda h: f"{h.ratio_to_isotropic:.3f}"),
        Column("floor", 8, _over_floor),
        Column("off random", 10, _deviations),
    ]


def _sentences(result: CheckResult, passed: bool) -> list[str]:
    """What was found, what random heads would have given, and the verdict, one sentence each."""
    low, high = result.interval
    control, ratios = result.control, [head.ratio_to_isotropic for head in result.heads]
    found = (
        f"{result.form}: exponent {result.exponent:.3f} ± {result.line.fit.stderr['alpha']:.3f}, 95 % interval "
        f"[{low:.3f}, {high:.3f}] ({result.line.name}: {result.line.fit.n_points} heads of {result.widths} widths); "
        f"m × overlap from {min(ratios):.3g} to {max(ratios):.3g}"
    )
    if control.indistinguishable is None:
        random = (
            "random heads of these widths: exponent −1, m × overlap 1; how far they stray is not known without rows"
        )
    else:
        told = (
            "these heads cannot be told from random ones, so this gate has tested arithmetic and no model"
            if control.indistinguishable
            else "these heads are told from random ones"
        )
        random = (
            f"random heads of these shapes: exponent −1 ± {control.exponent_sd:.2g}, m × overlap 1, and they "
            f"{'pass' if control.passes else 'do not pass'}; {told} ({_p(control.p_value)})"
        )
    if control.shuffled_exponent is not None:
        random += f"; with each of their columns shuffled these heads have exponent {control.shuffled_exponent:.3f}"
    counts = "" if result.verdict != "undecided" else f", which counts as {'pass' if passed else 'fail'}"
    return [found, random, f"{result.verdict.upper()}{counts}: {'; '.join(result.reasons)}"]


def _p(value: float | None) -> str:
    """A p-value; below 1e-12 it says nothing that the number of digits could add to."""
    return "p unknown" if value is None else f"p = {value:.2g}" if value >= 1e-12 else "p < 1e-12"


def print_result(result: CheckResult, passed: bool) -> None:
    """The table of heads and the sentences below it, on stdout."""
    table = Table("human", _columns(max(len(head.name) for head in result.heads)), asdict, _deviations)
    for head in result.heads:
        table.row(head)
    for sentence in (*result.notes, *_sentences(result, passed)):
        table.note(sentence)


def as_markdown(result: CheckResult, passed: bool) -> str:
    """The verdict, the sentences and the table as GitHub renders them."""
    from llmsuper.report import markdown

    columns = _columns(0)
    *sentences, verdict = _sentences(result, passed)
    return markdown.join(
        f"### llmsuper check: {result.verdict}",
        f"**{verdict}**",
        markdown.bullets([*sentences, *result.notes]),
        markdown.table(
            [markdown.Column(c.title, c.left) for c in columns],
            [[c.text(head) for c in columns] for head in result.heads],
        ),
    )
