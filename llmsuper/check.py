"""The gate: whether the mean squared overlap of these heads scales as 1/m, and whether random heads would have passed it too.

A line of log overlap against log m is fitted through the heads (`scaling.overlap_fits`), m the columns of a head. Its
slope has to be −1 within a tolerance, and the 95 % interval of the slope decides:

    pass        the interval lies inside [−1 − tolerance, −1 + tolerance]: shown to scale as 1/m, to that tolerance
    fail        the interval lies outside that band, or a head breaks a bound
    undecided   neither: the heads do not say. It counts as a failure unless the caller asks otherwise

The bounds are on single heads: the Welch floor below, which no matrix can break, and m × overlap ≤ `upper` above. A slope
of −1 alone is cheap, since random rows have it: so the gate also says what random heads of the same shapes would give, and
whether these heads can be told from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llmsuper.errors import FitError, lookup
from llmsuper.geometry.bounds import welch_floor
from llmsuper.geometry.random_rows import random_overlap
from llmsuper.scaling.overlap_fits import OVERLAPS, overlap_summary
from llmsuper.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmsuper.scaling.overlap_fits import OverlapFit
    from llmsuper.types import HeadRecord

Verdict = Literal["pass", "fail", "undecided"]

SCHEMA = 1  # of `CheckResult.to_dict`; it changes when a field is renamed, removed or means something else

FORMS = {"overlap": "raw", "centred_overlap": "centred"}
"""The statistic to judge, by the kind of overlap that `scaling.overlap_fits` fits."""

TOLERANCE = 0.25
"""Half the way from −1 to −1/2 and to −3/2, the nearest slopes that anybody would propose instead."""

FEWEST_WIDTHS = 3
FLOOR_SLACK = 1e-5  # relative: ten times the error that a measured overlap may have against float64
RANDOM_P = 1e-3
"""Heads are told from random ones where random heads stray as far as they do less than once in a thousand times."""


@dataclass(frozen=True, slots=True)
class MeasuredHead:
    """One head as the gate needs it. `rows` n is of the rows that the overlap is over, None where nobody says."""

    name: str
    family: str | None
    rows: int | None
    columns: int
    mean_squared_overlap: float
    shuffled: float | None = field(default=None, kw_only=True)
    """The same with each column shuffled, where the record has the statistic `controls`."""


@dataclass(frozen=True, slots=True)
class CheckedHead(MeasuredHead):
    """A head, the values to compare it with, and the bound it breaks, if it does."""

    ratio_to_isotropic: float
    """m × mean squared overlap; 1 for random rows."""
    welch_floor: float | None
    """None where n is not known, and then the bound is not tested."""
    deviations_from_random: float | None
    """(overlap − what random rows have) ÷ its standard deviation over random heads of this shape; None without n."""
    broken: str | None


@dataclass(frozen=True, slots=True)
class Control:
    """What random heads of the same shapes would give; all but the exponent are None where some head's n is not known."""

    exponent: float
    exponent_sd: float | None
    """Of the same line through random heads."""
    passes: bool | None
    """Whether they would pass this gate, its bounds and tolerance included."""
    p_value: float | None
    """That random heads stray from 1/m as far as these: chi-square of the squared deviations, one a head."""
    indistinguishable: bool | None
    shuffled_exponent: float | None
    """Of these heads with each column shuffled: what their mean rows and scales of columns give by themselves."""


@dataclass(frozen=True, eq=False, slots=True)
class CheckResult:
    """The verdict and all that it rests on."""

    verdict: Verdict
    reasons: tuple[str, ...]
    form: str
    tolerance: float
    upper: float | None
    line: OverlapFit
    others: tuple[OverlapFit, ...]
    heads: tuple[CheckedHead, ...]
    widths: int
    control: Control
    notes: tuple[str, ...]

    @property
    def exponent(self) -> float:
        """The slope of log overlap against log m; −1 is 1/m."""
        return -self.line.fit.params["alpha"]

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval, from Student's t and the scatter of the heads about the line."""
        return _interval(self.line)

    def passed(self, undecided: Verdict = "fail") -> bool:
        """Whether the gate opens; `undecided` says what an undecided check counts as."""
        return (undecided if self.verdict == "undecided" else self.verdict) == "pass"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the schema in docs/check.md, of version `SCHEMA`."""
        return {
            "schema_version": SCHEMA,
            "llmsuper": __version__,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "form": self.form,
            "tolerance": self.tolerance,
            "band": [-1 - self.tolerance, -1 + self.tolerance],
            "upper": self.upper,
            "line": {**_line_dict(self.line), "widths": self.widths},
            "other_lines": [_line_dict(fit) for fit in self.others],
            "control": asdict(self.control),
            "heads": [asdict(head) for head in self.heads],
            "notes": list(self.notes),
        }


def heads_of_records(
    records: Iterable[HeadRecord], form: str = "overlap", row_rule: str = "tokens"
) -> tuple[list[MeasuredHead], list[str]]:
    """The heads that the records hold, and what was left out and why, one sentence each.

    A head with several records, made by several versions of llmsuper, counts once: the newest.
    """
    lookup(FORMS, form, "form of overlap")
    newest: dict[tuple[str, ...], HeadRecord] = {}
    notes, left_out = [], 0
    for record in sorted(records, key=lambda r: str(r.made_by.get("date", ""))):
        if record.row_rule != row_rule:
            notes.append(f"{record.repo}: left out, its record is over the rows {record.row_rule!r}")
        elif form not in record.statistics[record.row_class]:
            notes.append(f"{record.repo}: left out, its record has no {form}")
        else:
            key = (record.repo, record.commit, record.file, record.tensor)
            left_out += key in newest
            newest[key] = record
    if left_out:
        notes.append(f"{left_out} older records of the same heads are left out")
    repos = [record.repo for record in newest.values()]
    heads = []
    for record in newest.values():
        found = record.statistic(form)
        name = record.repo if repos.count(record.repo) == 1 else f"{record.repo}@{record.commit[:12]} {record.tensor}"
        controls = record.statistics[record.row_class].get("controls")
        shuffled = None if controls is None else controls["shuffled"][OVERLAPS[FORMS[form]]]
        overlap = found["mean_squared_overlap"]
        heads.append(MeasuredHead(name, record.family, found["rows"], record.columns, overlap, shuffled=shuffled))
    return sorted(heads, key=lambda head: (head.family or "", head.columns, head.name)), notes


def check_heads(
    heads: Sequence[MeasuredHead],
    *,
    form: str = "overlap",
    tolerance: float = TOLERANCE,
    upper: float | None = None,
    by_family: bool = False,
    notes: Sequence[str] = (),
) -> CheckResult:
    """Judge whether the overlap of these heads scales as 1/m. `form` says which overlap it is, by its name in `FORMS`.

    by_family: judge one slope with a level for each family, instead of one line through all heads.
    upper: the most that m × mean squared overlap of a head may be; None: no such bound.

    Raises `FitError` for heads of fewer than three widths, and for overlaps that have no logarithm.
    """
    import pandas as pd

    kind = lookup(FORMS, form, "form of overlap")
    _check_widths(heads, notes)
    frame = pd.DataFrame([asdict(head) for head in heads])
    summary = overlap_summary(frame.rename(columns={"name": "model_id", "mean_squared_overlap": OVERLAPS[kind]}))
    line = next((fit for fit in summary.fits if by_family and "level a family" in fit.name), summary.fits[0])
    judged = set(line.fit.design.frame["model_id"])
    _check_widths([head for head in heads if head.name in judged], [*notes, *summary.not_done])
    checked = tuple(_checked(head, form, upper) for head in heads)
    broken = [f"{head.name}: {head.broken}" for head in checked if head.broken]
    verdict, sentence = _judge(_interval(line), tolerance)
    return CheckResult(
        verdict="fail" if broken else verdict,
        reasons=(sentence, *broken),
        form=form,
        tolerance=tolerance,
        upper=upper,
        line=line,
        others=tuple(fit for fit in summary.fits if fit is not line),
        heads=checked,
        widths=int(line.fit.design.frame["columns"].nunique()),
        control=_control(checked, form, line, tolerance, upper),
        notes=(*notes, *(f"no line of its own: {text}" for text in summary.not_done if text.startswith(f"{kind}: "))),
    )


def _check_widths(heads: Sequence[MeasuredHead], notes: Sequence[str]) -> None:
    widths = sorted({head.columns for head in heads})
    if len(widths) < FEWEST_WIDTHS:
        found = f"{len(heads)} heads of {len(widths)} were found (m = {', '.join(map(str, widths)) or 'none'})"
        left_out = "".join(f" {note}." for note in notes)
        raise FitError(f"a slope needs heads of {FEWEST_WIDTHS} widths; {found}.{left_out} Add heads of other widths.")
    for head in heads:
        if not head.mean_squared_overlap > 0:
            raise FitError(
                f"{head.name}: its mean squared overlap is {head.mean_squared_overlap:g}, which has no logarithm. "
                "Rows without any overlap are of no trained head: leave it out with --exclude."
            )


def _judge(interval: tuple[float, float], tolerance: float) -> tuple[Verdict, str]:
    low, high = interval
    least, most = -1 - tolerance, -1 + tolerance
    ends = f"the interval [{low:.3f}, {high:.3f}] of the exponent"
    band = f"[{least:.3g}, {most:.3g}]"
    if least <= low and high <= most:
        return "pass", f"{ends} lies inside {band}"
    if high < least or most < low:
        return "fail", f"{ends} lies outside {band}"
    return "undecided", f"{ends} is neither inside nor outside {band}: these heads do not decide it"


def _checked(head: MeasuredHead, form: str, upper: float | None) -> CheckedHead:
    ratio = head.columns * head.mean_squared_overlap
    floor = deviations = broken = None
    if head.rows is not None:
        floor = welch_floor(head.rows, head.columns)
        expected, sd = random_overlap(head.rows, head.columns, form)
        deviations = (head.mean_squared_overlap - expected) / sd
        if head.mean_squared_overlap < floor * (1 - FLOOR_SLACK):
            broken = f"{head.mean_squared_overlap:.6e} is below the Welch floor {floor:.6e}, which no matrix can be"
    if upper is not None and ratio > upper:
        broken = f"m × overlap is {ratio:.2f}, above {upper:g}"
    return CheckedHead(**asdict(head), ratio_to_isotropic=ratio, welch_floor=floor,
                       deviations_from_random=deviations, broken=broken)  # fmt: skip


def _control(
    heads: Sequence[CheckedHead], form: str, line: OverlapFit, tolerance: float, upper: float | None
) -> Control:
    """The same line through random heads, without drawing any: their overlaps scatter by a known amount."""
    import numpy as np
    from scipy import stats

    rows = {head.name: head.rows or 0 for head in heads}
    deviations = [head.deviations_from_random for head in heads if head.deviations_from_random is not None]
    if len(deviations) < len(heads):
        return Control(-1.0, None, None, None, None, None)
    design = line.fit.design
    x = np.log(design.x[:, 0])
    x = x - np.array([x[design.codes == code].mean() for code in design.codes])  # a level a group
    shapes = zip((rows[name] for name in design.frame["model_id"]), design.frame["columns"], strict=True)
    spread = np.array([sd / mean for mean, sd in (random_overlap(n, int(m), form) for n, m in shapes)])
    exponent_sd = float(np.sqrt(np.sum((x * spread) ** 2)) / np.sum(x * x))
    half = float(stats.t.ppf(0.975, line.fit.degrees_of_freedom)) * exponent_sd
    p_value = float(stats.chi2.sf(sum(z * z for z in deviations), len(deviations)))
    passes = half <= tolerance and (upper is None or upper >= 1)
    shuffled = {head.name: head.shuffled for head in heads if head.shuffled is not None}
    y = np.log([shuffled[name] for name in design.frame["model_id"]]) if len(shuffled) == len(heads) else None
    slope = None if y is None else float(x @ y / (x @ x))
    return Control(-1.0, exponent_sd, passes, p_value, p_value > RANDOM_P, slope)


def _interval(line: OverlapFit) -> tuple[float, float]:
    low, high = line.interval.low, line.interval.high
    assert low is not None and high is not None  # the interval of a straight line is never open
    return -high, -low


def _line_dict(line: OverlapFit) -> dict[str, Any]:
    """A fitted line in the gate's own words: the exponent is the slope, so 1/m is −1."""
    low, high = _interval(line)
    return {
        "name": line.name,
        "exponent": -line.fit.params["alpha"],
        "stderr": line.fit.stderr["alpha"],
        "interval": [low, high],
        "level": line.interval.level,
        "amplitude": line.fit.params.get("A"),
        "heads": line.fit.n_points,
        "rms_of_logs": line.fit.rmse,
    }
