"""Where cohorts train."""
