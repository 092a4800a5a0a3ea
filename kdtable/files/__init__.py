"""Files: atomic writes, weight files of strangers, downloads, archives."""
