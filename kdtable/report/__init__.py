"""Reports: tables made from the store and the papers."""
