"""Reports: what is read from the store, and from the papers, as tables."""
