"""ToyRecord: all that was found about one trained toy model, and the store that keeps such records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from llmsuper.store import RecordStore
from llmsuper.toy.run import ToyRun


@dataclass(frozen=True, slots=True)
class ToyRecord:
    """One trained run. Losses are sums over features, means over samples: n times the mean squared error.

    Row norms and overlaps are measured by `geometry` with W (n, m) as one block in float64. `norms` and `overlap` have the
    fields of `NormStatistics` and `OverlapStatistics`.
    """

    run: ToyRun
    test_loss: float
    """On `run.test_samples` fresh samples, after the last step."""
    test_loss_stderr: float
    """Standard error of that mean, from the spread over samples; it holds nothing of the spread over seeds."""
    training_loss: float
    """Mean of the last min(100, steps) training losses: what the authors plot as the loss."""
    training_loss_std: float
    """Standard deviation of the same losses: the authors' error bar."""
    curve: dict[str, list[float]]
    """Training loss against step, thinned: {"step": […], "loss": […]}; each the loss of one step's batch, before the step."""
    norms: dict[str, Any]
    """Of every row. φ_½ is `share_above_half`, φ_1 `share_above_one` where `zero_rows` is 0; see `phi_half`, `phi_one`."""
    norm_profile: dict[str, list[float]]
    """Mean row norm over bands of rank, most frequent feature first: {"rank": last rank of each band, "norm": […]}."""
    phi_half: float
    """φ_½, equation (3): share of all n rows with ‖Wᵢ‖ > ½."""
    phi_one: float
    """φ_1, equation (9): share of all n rows with ‖Wᵢ‖ > 1, the strong rows."""
    overlap: dict[str, Any]
    """Of every row."""
    squared_overlap_variance: float
    """Variance of (ûᵢ·ûⱼ)² over pairs of all rows; random directions have 2(m−1)/(m²(m+2))."""
    strong_overlap: dict[str, Any] | None
    """Of the strong rows; None where fewer than two are."""
    strong_squared_overlap_variance: float | None
    """Variance of (ûᵢ·ûⱼ)² over pairs of strong rows; None where fewer than two are."""
    ambiguity: float
    """2-norm of W Wᵀ − blockdiag(I_m, 0): 0 for the ideal without superposition; the authors pick weak cells by it."""
    theory: dict[str, float | None]
    """What theories say of this run, by name: `weak_loss` (equation 4 with φn the measured number of rows above ½),
    `weak_loss_m` (the same with φn = m), `ceiling` (the same with φn = 0: nothing is represented), `one_active_loss`
    (equation 8 at the trained W and b), `isotropic` (1/m) and `isotropic_variance` (of a squared overlap), `welch_floor` (κ² of
    all n rows), `strong_welch_floor` (κ² of as many rows as are strong; None below two), `phi_one` (min(1, m²/2n))."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """Version, device, date, seconds (this run's share of its batch), and how many runs trained at once."""


class ToyStore(RecordStore[ToyRecord]):
    """A folder of toy records, one file a run, named by its parameters and seed."""

    def file_name(self, record: ToyRecord) -> str:
        return f"{record.run.key}.json"

    def flat(self, record: ToyRecord) -> dict[str, Any]:
        """The run's parameters, `lr_regulariser` filled in, and `gamma`, the plain fields, `name.field` for each number of
        `norms`, `overlap`, `strong_overlap`, `theory` and `made_by`, and `norms.quantiles.0.25` and so on."""
        run = record.run
        found = {**asdict(run), "gamma": run.gamma, "lr_regulariser": run.regulariser_rate}
        for name, value in asdict(record).items():
            if name in ("norms", "overlap", "strong_overlap", "theory", "made_by"):
                nested = value or {}
                nested |= {f"quantiles.{share}": norm for share, norm in nested.get("quantiles", {}).items()}
                found |= {f"{name}.{key}": v for key, v in nested.items() if not isinstance(v, (list, dict))}
            elif not isinstance(value, dict):
                found[name] = value
        return found

    def load(self, loaded: dict[str, Any]) -> ToyRecord:
        return ToyRecord(**{**loaded, "run": ToyRun(**loaded["run"])})

    def get(self, run: ToyRun) -> ToyRecord:
        """The run's record. Raises `LlmsuperError` where it is not there or is no record."""
        return self._read(self.folder / f"{run.key}.json")

    def has(self, run: ToyRun) -> bool:
        """True where the run's record is there; a record that is there is complete."""
        return (self.folder / f"{run.key}.json").exists()
