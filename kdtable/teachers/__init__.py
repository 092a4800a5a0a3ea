"""Published teachers: the manifest, fetching, and safe reading of weight files."""
