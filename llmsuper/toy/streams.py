"""Random numbers that depend on a seed and a place in a stream alone: on no batch, device, order or state.

A uniform number is the splitmix64 finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
OOPSLA) of a stream's key plus a counter. So a run draws the same samples alone, inside a batch, on a GPU, and after a kill:
there is no generator whose state would have to be kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

STREAMS: tuple[str, ...] = ("training", "test")
PURPOSES: tuple[str, ...] = ("count", "feature", "value")
"""What numbers are for; each stream has one sequence for each purpose."""

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as the signed number with the same 64 bits: torch has int64 arithmetic only
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def keys(seeds: Sequence[int], stream: str, purpose: str, device: str) -> torch.Tensor:
    """(G,) int64: one key a seed, for one purpose of one stream."""
    import torch

    place = STREAMS.index(stream) * len(PURPOSES) + PURPOSES.index(purpose) + 1
    seed = torch.tensor(seeds, dtype=torch.int64, device=device)
    return _mix(_mix(seed * _GOLDEN) + torch.tensor(place, device=device) * _GOLDEN)


def uniform(key: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1), 53 bits each, in the shape that `key` and `counter`, both int64, broadcast to."""
    bits = _mix(key + counter * _GOLDEN)
    return (bits >> 11 & ((1 << 53) - 1)).double() * 2.0**-53


def _mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser, with the shifts of unsigned numbers; products wrap at 64 bits."""
    z = (z ^ (z >> 30 & ((1 << 34) - 1))) * _MULTIPLIERS[0]
    z = (z ^ (z >> 27 & ((1 << 37) - 1))) * _MULTIPLIERS[1]
    return z ^ (z >> 31 & ((1 << 33) - 1))
