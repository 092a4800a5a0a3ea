"""Recipes, schedules, metrics and epoch records, as data."""
