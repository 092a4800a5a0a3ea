"""The database tables of the store."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from kdtable.store.records import Protocol

SCHEMA_VERSION: Final = 1

tables = sa.MetaData()

#: ``shape`` is `SHAPE`: until the first release, a store with other columns is refused.
meta = sa.Table(
    "meta",
    tables,
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("shape", sa.String(16), nullable=False),
)

#: What the seeds of a run share. ``identity`` is canonical JSON and ``id`` its hash; ``metrics`` is a JSON list of
#: mappings.
protocols = sa.Table(
    "protocols",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
)

#: Where results came from (code, packages, device, numerics): JSON by its hash, shared by a grid's runs. The code is a
#: source hash, which is the id of the JSON of its files' hashes.
origins = sa.Table(
    "origins",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
)

#: Training processes. ``beat`` grows while one lives. ``seen`` (UTC) is only shown; no decision depends on it.
workers = sa.Table(
    "workers",
    tables,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("machine", sa.String, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("beat", sa.Integer, nullable=False, default=0),
    sa.Column("seen", sa.String, nullable=False),
)

#: ``status`` is planned, running (by the worker ``claimed_by``), done, failed, or n/a (``reason`` says why the method
#: cannot be run on the pair). ``attempt`` counts claims. ``code`` is the source hash of the current result. ``kept``
#: says which weights a done run has on disk.
runs = sa.Table(
    "runs",
    tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(16), unique=True, nullable=False),
    sa.Column("protocol_id", sa.String(16), sa.ForeignKey("protocols.id"), index=True, nullable=False),
    sa.Column("status", sa.String(8), index=True, nullable=False),
    sa.Column("reason", sa.Text),
    # Paper and row under which it was first requested. Tables label it by them; they are no part of its identity.
    sa.Column("paper", sa.String, nullable=False),
    sa.Column("row", sa.String, nullable=False),
    sa.Column("student", sa.String, nullable=False),
    sa.Column("teacher", sa.String),
    sa.Column("teacher_sha256", sa.String(64)),
    sa.Column("data", sa.String, nullable=False),
    # Number of images that its metrics are measured on.
    sa.Column("test_images", sa.Integer),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("precision", sa.String, nullable=False),
    sa.Column("epochs", sa.Integer, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("claimed_by", sa.String(32), sa.ForeignKey("workers.id")),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("code", sa.String(16)),
    sa.Column("kept", sa.String(4)),
)

#: The result of a run under the code with the hash ``code``. ``provenance`` lists the ids of its origins. ``chosen``
#: repeats the epochs that tables show, so that a report need not read every epoch of every run: a JSON mapping from the
#: names of `kdtable.recipes.metrics.EPOCHS` to the epoch's number and metrics; ``probes`` is not repeated elsewhere.
#: ``finished`` is null until it is done.
results = sa.Table(
    "results",
    tables,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.key"), primary_key=True),
    sa.Column("code", sa.String(16), primary_key=True),
    sa.Column("provenance", sa.Text, nullable=False),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("finished", sa.String),
    sa.Column("chosen", sa.Text, nullable=False, default="{}"),
    # Number of parameters of the student, and of the method's own networks.
    sa.Column("parameters", sa.Integer),
    sa.Column("method_parameters", sa.Integer),
    # Total time of all epochs, and how much of it training waited for images.
    sa.Column("wall_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("waited_seconds", sa.Float, nullable=False, default=0.0),
    # CPU time for this run alone, where it was measured.
    sa.Column("cpu_seconds", sa.Float),
    sqlite_with_rowid=False,
)

#: All epochs of a result, packed by :func:`kdtable.store.records.packed`.
histories = sa.Table(
    "histories",
    tables,
    sa.Column("run", sa.Integer, primary_key=True),
    sa.Column("code", sa.String(16), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["run", "code"], ["results.run", "results.code"], onupdate="CASCADE", ondelete="CASCADE"),
)

#: Measured teachers by data set. ``metrics`` is a JSON mapping, as measured. ``claimed`` is the published main metric
#: in the unit that tables show.
teachers = sa.Table(
    "teachers",
    tables,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("data", sa.String, primary_key=True),
    sa.Column("network", sa.String, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("claimed", sa.Float),
)

#: Files of runs at URLs (``--checkpoints``). A row is written before its file, and removed after it, so that no file is
#: lost sight of. It names a result from the transaction on that makes the file one of the run's; a file that names none
#: is unfinished, or of no use any more. Not one of `tables`: only a store that has such files has it.
shared_files = sa.Table(
    "shared_files",
    sa.MetaData(),
    sa.Column("url", sa.String, primary_key=True),
    sa.Column("run", sa.String(16), index=True, nullable=False),
    # checkpoint or student.
    sa.Column("kind", sa.String(10), nullable=False),
    # Of the run's claim by which it was written, and the number of epochs in it.
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("epochs", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("result_run", sa.Integer),
    sa.Column("result_code", sa.String(16)),
    sa.ForeignKeyConstraint(
        ["result_run", "result_code"], [results.c.run, results.c.code], onupdate="CASCADE", ondelete="SET NULL"
    ),
)


def content_id(text: str) -> str:
    """The id of a protocol or an origin: the first 16 hex digits of the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


#: Hash of all tables' columns and their types.
SHAPE: Final = content_id(
    "\n".join(f"{table.name}.{column.name} {column.type}" for table in tables.sorted_tables for column in table.c)
)


def create(db: sa.Connection) -> None:
    """Create the tables in an empty database."""
    tables.create_all(db)
    db.execute(meta.insert().values(schema_version=SCHEMA_VERSION, shape=SHAPE))


def origin_row(origin: Mapping[str, Any]) -> dict[str, str]:
    """The columns of an origin: its canonical JSON and its id."""
    content = json.dumps(origin, sort_keys=True)
    return {"id": content_id(content), "content": content}


def protocol_row(protocol: Protocol) -> dict[str, str]:
    """The columns of a protocol, with its identity in the compact JSON that its id is the hash of.

    Raises:
        ValueError: the id is not that hash.
    """
    text = _compact(
        json.loads(protocol.text)
    )  # not sorted again: numeric keys are strings by now and would sort differently
    if content_id(text) != protocol.id:
        raise ValueError(f"protocol {protocol.id} has another identity: {protocol.text}")
    return {"id": protocol.id, "identity": text, "task": protocol.task, "metrics": protocol.metrics_text}


def run_id(identity: Mapping[str, Any], seed: int) -> str:
    """The id of a run: the hash of its protocol's identity with the seed, keys sorted."""
    return content_id(_compact(dict(sorted({**identity, "seed": seed}.items()))))


def _compact(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, separators=(",", ":"))
