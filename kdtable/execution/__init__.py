"""Execution: where the cohorts of a plan train."""
