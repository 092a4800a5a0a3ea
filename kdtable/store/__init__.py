"""The store: a database of runs and their results, and a folder of checkpoints beside it.

Each run has one row, and one result for each version of the code that trained it. Every change is one transaction.
Files are written under a temporary name and renamed. A training process claims runs and writes only to those it holds.

    store = Store(Path("results"), create=False)
    for run in store.runs():
        print(run.id, run.status, run.metrics_of("last"))
"""

from kdtable.store.claims import ClaimLost, Worker
from kdtable.store.database import FILE_NAME, NoStore
from kdtable.store.integrity import Damaged
from kdtable.store.records import RunRecord
from kdtable.store.results import Store
from kdtable.store.schema import SCHEMA_VERSION

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "ClaimLost", "Damaged", "NoStore", "RunRecord", "Store", "Worker"]
