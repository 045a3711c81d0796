"""The tests; a package, so that `from tests.checkpoints import …` is the one way to reach a helper."""
