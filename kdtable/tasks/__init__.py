"""Tasks: what a batch is, how a network runs on it, and what is measured."""
