"""`python -m llmsuper`: the same as `llmsuper`, for launchers that start modules."""

from __future__ import annotations

from llmsuper.cli import main

if __name__ == "__main__":
    main(prog_name="llmsuper")
