"""The public names, loaded lazily, so that `import llmsuper` imports no torch."""

__version__ = "0.1.0"
