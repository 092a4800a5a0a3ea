"""One thread per process, as the engine computes: side by side, processes with more would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
