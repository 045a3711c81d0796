"""Writes checkpoints whose LM heads are random numbers: `random_heads.py FOLDER COLUMNS…` makes one folder a width.

They are what `llmsuper check` has to pass and to call random.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmsuper.geometry.controls import random_head

ROWS = 2000


def main(folder: Path, widths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for columns in widths:
        (folder / str(columns)).mkdir(parents=True)
        save_file({"lm_head.weight": random_head(ROWS, columns, generator)}, folder / f"{columns}/model.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(columns) for columns in sys.argv[2:]])
