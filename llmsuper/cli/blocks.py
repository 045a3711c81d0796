"""BLOCKS: what `llmsuper overlap` prints below a head's line of each further statistic, by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsuper.cli.table import size

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsuper.types import HeadRecord

REMOVALS = {
    "as_it_is": "as it is",
    "mean_row": "mean row subtracted",
    "unit_mean": "mean unit row subtracted, not renormalised",
    "mean_direction": "mean direction projected out",
    "early": "first half of the rows alone",
    "late": "second half of the rows alone",
    "crowd": "the crowd alone (rows of one direction)",
    "without_crowd": "without the crowd",
}
"""What was taken away, in words; rows are normalised again, but where it says otherwise. See `geometry.anisotropy`."""


def block(record: HeadRecord, name: str) -> str:
    """The statistic for people, over the rows that were asked for; nothing for one that is in the head's line."""
    write = BLOCKS.get(name)
    return "\n".join(f"  {line}" for line in write(record.statistic(name), record)) if write else ""


def _anisotropy(found: dict[str, Any], _: HeadRecord) -> list[str]:
    lines = [f"{'what the excess over 1/m goes with':<44}{'rows':>9}{'overlap':>13}{'x m':>9}{'of excess':>11}"]
    for name, removal in found["table"].items():
        k = name.removeprefix("leading_")
        label = REMOVALS.get(name, f"{k} leading component{'s' if k != '1' else ''} projected out")
        share = removal["share_of_excess"]
        lines.append(
            f"  {label:<42}{removal['rows']:>9,}{_number(removal['mean_squared_overlap'], '.4e'):>13}"
            f"{_number(removal['ratio_to_isotropic'], '.2f'):>9}{'–' if share is None else f'{share:.2%}':>11}"
        )
    return lines


def _spectrum(found: dict[str, Any], _: HeadRecord) -> list[str]:
    leading = ", ".join(f"{share:.2%}" for share in found["leading_shares"][:5])
    half, most = found["directions_for_half"], found["directions_for_90_percent"]
    return [
        f"spectrum: participation ratio {found['participation_ratio']:.1f} of {found['columns']:,}; leading shares {leading}",
        f"  half of the rows' squared length in {half:,} directions, 90 % in {most:,}",
    ]


def _groups(found: dict[str, Any], _: HeadRecord) -> list[str]:
    m = found["columns"]
    within = [_times(found[pair], m) for pair in ("strong_with_strong", "strong_with_weak", "weak_with_weak")]
    return [
        f"rows above half the rms norm: {found['strong_rows']:,} strong, {found['weak_rows']:,} weak",
        f"  x m: strong with strong {within[0]}, strong with weak {within[1]}, weak with weak {within[2]}",
        "x m by norm decile, shortest rows first:",
        *("  " + "".join(f"{_times(x, m):>9}" for x in row) for row in found["decile_mean_squared_overlap"]),
    ]


def _controls(found: dict[str, Any], record: HeadRecord) -> list[str]:
    lines = [
        f"{'controls (seed ' + str(found['seed']) + ')':<44}{'rows':>9}{'overlap':>13}{'x m':>9}{'centred x m':>13}"
    ]
    for name, label in (("random", "random rows of the same norms"), ("shuffled", "each column shuffled")):
        one = found[name]
        lines.append(
            f"  {label:<42}{one['rows']:>9,}{one['mean_squared_overlap']:>13.4e}{one['ratio_to_isotropic']:>9.2f}"
            f"{one['centred_ratio_to_isotropic']:>13.2f}"
        )
    return [*lines, f"  {size(found['memory_bytes'])} of {record.dtype} rows were in memory for it"]


def _pairs(found: dict[str, Any], _: HeadRecord) -> list[str]:
    sampled = found["sampled"]
    seen, interval, of_these = "all of them", "", ""
    if sampled:
        low, high = sampled["mean_absolute_overlap_interval"]
        seen = f"a sample of {sampled['pairs']:,} of them: {sampled['tiles']:,} of {sampled['tiles_in_all']:,} tiles"
        interval = f" ({sampled['confidence']:.0%} interval {low:.4e} to {high:.4e})"
        of_these = " in the sample"
    lines = [
        f"{found['pairs']:,} pairs, {seen}",
        f"  mean |overlap| {found['mean_absolute_overlap']:.4e}{interval}, its std {found['std_absolute_overlap']:.4e}",
        f"  largest{of_these} {found['maximum_overlap']:.6f}; Welch: of so many rows it is at least {found['welch_bound']:.4e}",
    ]
    if found["row_maximum_quantiles"]:
        middle = ", ".join(f"{q} {v:.3f}" for q, v in found["row_maximum_quantiles"].items())
        lines.append(f"  each row's largest, quantiles: {middle}")
    crowds, pairs = (
        found.get("largest_crowds", []),
        found["closest_pairs"],
    )  # older records have pairs alone, of all rows
    without = all(one["tokens"] is None for one in (*crowds, *pairs))
    by = f"{of_these}, by token id{' (the checkpoint has no strings of tokens)' if without else ''}:"
    if crowds:
        every = "" if sampled else f", {found['crowded_rows']:,} in {found['crowds']:,}"
        lines.append(f"rows crowded in one direction (|overlap| above 0.95){every}; the largest crowds{by}")
    for crowd in crowds:
        ids = " ".join(map(str, crowd["ids"])) + (" …" if crowd["size"] > len(crowd["ids"]) else "")
        lines.append(f"  {crowd['size']:>9,}  {ids}   {_names(crowd)}".rstrip())
    if pairs:
        lines.append(f"closest pairs{' of other rows' if crowds else ''}{by}")
    return lines + [
        f"  {pair['overlap']:>9.6f}  {pair['ids'][0]:>7} {pair['ids'][1]:>7}   {_names(pair)}".rstrip()
        for pair in pairs
    ]


def _names(one: dict[str, Any]) -> str:
    return "  ".join("?" if token is None else repr(token) for token in one["tokens"] or ())


def _liu2025(found: dict[str, Any], record: HeadRecord) -> list[str]:
    ours = record.statistics[record.row_class]
    plain, pairs = ours["overlap"], ours.get("pairs")
    rows = (
        ("mean |overlap|", found["mean_absolute_overlap"], pairs["mean_absolute_overlap"] if pairs else None),
        ("std |overlap|", found["std_absolute_overlap"], pairs["std_absolute_overlap"] if pairs else None),
        ("mean squared overlap", found["mean_squared_overlap"], plain["mean_squared_overlap"]),
        ("x m", found["ratio_to_isotropic"], plain["ratio_to_isotropic"]),
    )
    lines = [f"{'as arXiv:2505.10465 computes it':<44}{'theirs':>13}{'ours':>13}"]
    lines += [f"  {label:<42}{_number(their, '.6g'):>13}{_number(our, '.6g'):>13}" for label, their, our in rows]
    if found["unusable_rows"]:
        lines.append(
            f"  theirs are not numbers: {found['unusable_rows']:,} stored rows are zero, or leave the range of {found['dtype']}, "
            "and they divide by every row's norm"
        )
    for published in _published(record):
        lines.append(f"  the paper's figure 6a shows {published:.4g} for this model (read from the figure)")
    if plain["rows"] != found["rows"]:
        change = found["ours_same_rows"] / plain["mean_squared_overlap"] - 1
        lines.append(
            f"  rows: theirs are all {found['rows']:,} that are stored, ours the {plain['rows']:,} that are tokens and not zero; "
            f"theirs make ours {change:+.2%}"
        )
    if found["rounding"] is not None:
        lines.append(
            f"  rounding: theirs take norms, quotients, products and squares in {found['dtype']}, ours at least in float32: "
            f"{found['rounding']:+.1e} on the same rows"
        )
    if pairs is None:
        lines.append("  our mean |overlap| and its std need every pair: --stat pairs")
    elif pairs["sampled"]:
        lines.append("  our mean |overlap| and its std are estimates from a sample of pairs")
    return lines


def _published(record: HeadRecord) -> list[float]:
    """The mean squared overlap of this model in the paper, where it is one of theirs."""
    from llmsuper.scaling.losses import load_overlaps

    table = load_overlaps("liu2025")
    values: list[float] = table.loc[table["model_id"] == record.repo, "mean_squared_overlap"].tolist()
    return values


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _times(value: float | None, columns: int) -> str:
    return "–" if value is None else f"{columns * value:.2f}"


BLOCKS: dict[str, Callable[[dict[str, Any], HeadRecord], list[str]]] = {
    "spectrum": _spectrum,
    "groups": _groups,
    "anisotropy": _anisotropy,
    "controls": _controls,
    "pairs": _pairs,
    "liu2025": _liu2025,
}
