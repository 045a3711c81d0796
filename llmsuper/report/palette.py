"""PALETTE: the colour and marker of each family, the same in every figure.

The eight colours are those of Okabe and Ito (2008, "Color universal design"), without black and with their yellow
darkened to be seen on white; they stay apart under the common kinds of colour blindness. The shape of the marker tells
apart families that share a colour, and survives a grey print.
"""

from __future__ import annotations

from dataclasses import dataclass

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, OLIVE, GREY = "#CC79A7", "#56B4E9", "#8C7A00", "#5F5F5F"


@dataclass(frozen=True, slots=True)
class Look:
    """A colour, and one of matplotlib's filled markers."""

    colour: str
    marker: str


PALETTE: dict[str, Look] = {
    "opt": Look(BLUE, "o"),
    "gpt2": Look(GREEN, "s"),
    "qwen2.5": Look(VERMILION, "^"),
    "pythia": Look(PURPLE, "D"),
    "qwen2.5-coder": Look(VERMILION, "v"),
    "qwen2.5-derived": Look(VERMILION, "p"),
    "qwen3": Look(VERMILION, "P"),
    "pythia-deduped": Look(PURPLE, "X"),
    "gpt-neo": Look(GREEN, "v"),
    "cerebras-gpt": Look(GREEN, "P"),
    "bloom": Look(ORANGE, "o"),
    "falcon": Look(ORANGE, "s"),
    "gemma2": Look(SKY, "o"),
    "gemma3": Look(SKY, "s"),
    "llama3": Look(OLIVE, "o"),
    "mistral": Look(OLIVE, "s"),
    "deepseek": Look(ORANGE, "^"),
    "mamba": Look(OLIVE, "^"),
    "olmo2": Look(SKY, "^"),
    "phi": Look(ORANGE, "D"),
    "smollm2": Look(SKY, "D"),
    "random": Look(GREY, "X"),
    "single-heads": Look(GREY, "o"),
}

OTHER = Look(GREY, "h")
"""A family that no row is about."""

ACCENT, MUTED = BLUE, GREY
"""A figure's own two colours where no family is meant."""


def look(family: str) -> Look:
    """The row of this family; the grey one for a name that is in no row, such as a user's own family."""
    return PALETTE.get(family, OTHER)
