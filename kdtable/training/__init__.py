"""Train cohorts of students. This package knows no paper, no table, no store, and no method or task by name."""
