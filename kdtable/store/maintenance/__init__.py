"""Check, copy and prune a store."""
