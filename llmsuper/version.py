"""The version of llmsuper: what records carry, and what the wheel is built with."""

__version__ = "0.1.0"
