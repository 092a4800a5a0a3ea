"""What all tests share."""

import os

from hypothesis import settings

# One thread per process, as the engine computes: side by side, processes with more would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are shared and noisy: no test fails for being slow.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
