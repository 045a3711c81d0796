"""What is known of the overlaps of pairs after some of their tiles: added to, merged, kept in a file, gone on with."""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmsuper.errors import LlmsuperError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmsuper.kernels.tiles import RowSums, TileSums

    Tile = tuple[int, int]

BINS = 512
"""Of the histogram of overlaps on [−1, 1]."""


@dataclass(slots=True)
class PairSums:
    """Sums over some tiles of the pairs of n rows in blocks of `block_rows`.

    They do not depend on the order in which tiles were added, nor on who added them: what is kept of each tile is summed
    at the end, counts are integers, and of partners that are equally close the one with the smallest index is kept.
    """

    label: str
    """Whose rows these are; sums of other rows are neither merged nor gone on with."""
    block_rows: int
    histogram: NDArray[np.int64]
    """(BINS,)"""
    met: NDArray[np.int64]
    """(n,) how many partners each row has met: where it is 0, the next three say nothing."""
    largest: NDArray[np.float64]
    """(n,) the overlap that is largest in absolute value, with its sign."""
    partner: NDArray[np.int64]
    """(n,) the row it is with."""
    row_squares: NDArray[np.float64]
    """(n,) Σ c² over the partners met."""
    tiles: dict[Tile, tuple[int, float, float, float]] = field(default_factory=dict)
    """By tile (i, j), i ≤ j: how many pairs, Σ c, Σ |c|, Σ c²."""

    @classmethod
    def none(cls, rows: int, block_rows: int, label: str = "") -> PairSums:
        """Before any tile."""
        counts, n = np.int64, rows
        return cls(
            label,
            block_rows,
            np.zeros(BINS, counts),
            np.zeros(n, counts),
            np.zeros(n),
            np.zeros(n, counts),
            np.zeros(n),
        )

    def add(self, tile: Tile, sums: TileSums) -> None:
        """One tile that is not in yet."""
        i, j = tile
        assert tile not in self.tiles, tile
        self.tiles[tile] = (sums.pairs, sums.total, sums.absolute, sums.squares)
        self.histogram += sums.histogram
        left, right = len(sums.left.overlap), len(sums.right.overlap)
        if i == j:
            self._add_rows(i, sums.left, left - 1, j)
        else:
            self._add_rows(i, sums.left, right, j)
            self._add_rows(j, sums.right, left, i)

    def merge(self, other: PairSums) -> None:
        """Take in other tiles of the same rows. Raises `ValueError` for sums of other rows, or of tiles that are in already."""
        if self.identity != other.identity:
            raise ValueError(f"sums over {other.identity} do not belong to sums over {self.identity}")
        if common := self.tiles.keys() & other.tiles.keys():
            raise ValueError(f"tile {min(common)} is in both sums")
        self.tiles |= other.tiles
        self.histogram += other.histogram
        some = np.flatnonzero(other.met)
        self._take(some, other.largest[some], other.partner[some], other.row_squares[some], other.met[some])

    @property
    def identity(self) -> tuple[str, int, int]:
        """Label, rows of a block, rows: what sums must share to be merged."""
        return self.label, self.block_rows, len(self.met)

    def per_tile(self) -> NDArray[np.float64]:
        """(4, t) pairs, Σ c, Σ |c| and Σ c² of each tile, tiles in order."""
        return np.array([self.tiles[tile] for tile in sorted(self.tiles)], np.float64).reshape(-1, 4).T

    def save(self, path: Path) -> None:
        """Write to a temporary file and rename. Raises `LlmsuperError` when the folder cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    np.savez(
                        file,
                        label=np.array(self.label),
                        block_rows=np.array(self.block_rows),
                        histogram=self.histogram,
                        met=self.met,
                        largest=self.largest,
                        partner=self.partner,
                        row_squares=self.row_squares,
                        tiles=np.array(sorted(self.tiles), np.int64).reshape(-1, 2),
                        per_tile=self.per_tile(),
                    )
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise LlmsuperError(
                f"{path}: sums of pairs cannot be written ({error}). Make room, or name another file."
            ) from error

    @classmethod
    def load(cls, path: Path) -> PairSums:
        """What `save` wrote. Raises `LlmsuperError` for anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                names = ("histogram", "met", "largest", "partner", "row_squares")
                found = cls(str(held["label"]), int(held["block_rows"]), *(held[name] for name in names))
                for (i, j), (pairs, *sums) in zip(held["tiles"].tolist(), held["per_tile"].T.tolist(), strict=True):
                    found.tiles[i, j] = (int(pairs), *sums)
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise LlmsuperError(f"{path}: no sums of pairs are in it ({error}). Delete it to begin again.") from error
        return found

    def _add_rows(self, block: int, sums: RowSums, partners: int, other: int) -> None:
        start = block * self.block_rows
        rows = np.arange(start, start + len(sums.overlap))
        self._take(
            rows, sums.overlap, sums.partner + other * self.block_rows, sums.squares, np.full(len(rows), partners)
        )

    def _take(
        self,
        rows: NDArray[np.int64],
        overlap: NDArray[np.float64],
        partner: NDArray[np.int64],
        squares: NDArray[np.float64],
        met: NDArray[np.int64],
    ) -> None:
        new, old = np.abs(overlap), np.abs(self.largest[rows])
        better = (self.met[rows] == 0) | (new > old) | ((new == old) & (partner < self.partner[rows]))
        self.largest[rows[better]] = overlap[better]
        self.partner[rows[better]] = partner[better]
        self.row_squares[rows] += squares
        self.met[rows] += met
