"""Files: atomic writes, untrusted weight files, downloads, archives."""
