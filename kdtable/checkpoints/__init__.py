"""Checkpoints: write, validate and read the state of a run."""
