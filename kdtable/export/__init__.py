"""Students in files for use elsewhere, each with a model card."""
