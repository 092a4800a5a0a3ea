"""The store: a database of runs and their results, and a folder of checkpoints beside it.

One row per run, and one per run and state of the code that made its numbers. Every change is one transaction; files are
written beside their place and renamed into it. A process that trains claims runs, and writes only those that it holds.
"""

from kdtable.store.claims import ClaimLost, Worker
from kdtable.store.damage import Damaged
from kdtable.store.database import FILE_NAME, NoStore
from kdtable.store.files import KEEP
from kdtable.store.records import RunRecord
from kdtable.store.results import Store
from kdtable.store.schema import SCHEMA_VERSION

__all__ = ["FILE_NAME", "KEEP", "SCHEMA_VERSION", "ClaimLost", "Damaged", "NoStore", "RunRecord", "Store", "Worker"]
