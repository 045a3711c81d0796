"""Superposition in a model small enough to train; knows nothing of checkpoints or the Hub."""
