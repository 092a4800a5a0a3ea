"""Plan a request: its runs, their prerequisites, and cohorts."""
