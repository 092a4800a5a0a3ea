"""From a request to runs, their prerequisites, and cohorts."""
