"""How networks are computed: precision, threads, memory layout."""
