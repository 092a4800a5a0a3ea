"""The state of a run on disk: written, validated, read."""
