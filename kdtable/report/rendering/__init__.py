"""Formats of reports: one module a format."""
