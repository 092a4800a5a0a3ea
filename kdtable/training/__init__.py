"""Training: networks, batches and methods. It knows no paper, no table, no place of storage, no method by name."""
