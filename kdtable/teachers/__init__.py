"""Published teachers: which there are, how they are fetched, how a checkpoint is read without trusting it."""
