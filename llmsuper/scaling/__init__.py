"""Curves through numbers; knows nothing of models."""
