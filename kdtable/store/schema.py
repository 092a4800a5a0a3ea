"""The tables of the store."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from kdtable.store.records import Protocol

SCHEMA_VERSION: Final = 1

tables = sa.MetaData()

#: ``shape`` is `SHAPE`: until a release, a store of other columns is another program's.
meta = sa.Table(
    "meta",
    tables,
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("shape", sa.String(16), nullable=False),
)

#: What runs of one protocol share, kept once for all seeds: identity (canonical JSON, of which the id is the hash),
#: task, and the task's metrics as a JSON list of mappings.
protocols = sa.Table(
    "protocols",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
)

#: Where numbers came from (code, packages, device, numerics): JSON by its hash, since a grid's runs share it.
origins = sa.Table(
    "origins",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
)

#: Processes that train. ``beat`` grows while one lives; ``seen`` (UTC) is for people, no decision rests on it.
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

#: status: planned, running (``claimed_by`` says by whom), done, failed, or n/a (with the reason why its method cannot
#: be run on its pair). ``attempt`` grows with each claim, ``code`` is that of the run's current result, and ``kept``
#: says which weights a done run has on disk.
runs = sa.Table(
    "runs",
    tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(16), unique=True, nullable=False),
    sa.Column("protocol_id", sa.String(16), sa.ForeignKey("protocols.id"), index=True, nullable=False),
    sa.Column("status", sa.String(8), index=True, nullable=False),
    sa.Column("reason", sa.Text),
    # Under which paper's name and settings it was first asked for; how tables label it, no part of its identity.
    sa.Column("paper", sa.String, nullable=False),
    sa.Column("row", sa.String, nullable=False),
    sa.Column("student", sa.String, nullable=False),
    sa.Column("teacher", sa.String),
    sa.Column("teacher_sha256", sa.String(64)),
    sa.Column("data", sa.String, nullable=False),
    # How many images its metrics are measured on.
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

#: What a run came to under the code of a hash. ``provenance`` lists the ids of its origins. ``chosen`` repeats the
#: epochs that tables show, since a report must not read every epoch of every run: a JSON mapping from the names of
#: `kdtable.recipes.metrics.EPOCHS` to the epoch's number and metrics. ``finished`` is empty until training has ended.
results = sa.Table(
    "results",
    tables,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.key"), primary_key=True),
    sa.Column("code", sa.String(16), primary_key=True),
    sa.Column("provenance", sa.Text, nullable=False),
    sa.Column("started", sa.String, nullable=False),
    sa.Column("finished", sa.String),
    sa.Column("chosen", sa.Text, nullable=False, default="{}"),
    # Of the student.
    sa.Column("parameters", sa.Integer),
    # Of all epochs: how long they took, and for how much of that training waited for images.
    sa.Column("wall_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("waited_seconds", sa.Float, nullable=False, default=0.0),
    sqlite_with_rowid=False,
)

#: All epochs of a result, as :func:`kdtable.store.records.packed` gives them.
histories = sa.Table(
    "histories",
    tables,
    sa.Column("run", sa.Integer, primary_key=True),
    sa.Column("code", sa.String(16), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["run", "code"], ["results.run", "results.code"], onupdate="CASCADE", ondelete="CASCADE"),
)

#: What teachers reached on the data sets that they taught: ``metrics`` as a JSON mapping, as measured; ``claimed`` as
#: the main metric is shown.
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


def content_id(text: str) -> str:
    """What a protocol or an origin is known by: the first 16 hex digits of its text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


#: Known by all tables' columns and their types.
SHAPE: Final = content_id(
    "\n".join(f"{table.name}.{column.name} {column.type}" for table in tables.sorted_tables for column in table.c)
)


def create(db: sa.Connection) -> None:
    """Make the tables in an empty database."""
    tables.create_all(db)
    db.execute(meta.insert().values(schema_version=SCHEMA_VERSION, shape=SHAPE))


def origin_row(origin: Mapping[str, Any]) -> dict[str, str]:
    """An origin as a row: its canonical JSON, with its id."""
    content = json.dumps(origin, sort_keys=True)
    return {"id": content_id(content), "content": content}


def protocol_row(protocol: Protocol) -> dict[str, str]:
    """A protocol as a row: its identity in the form of JSON that its id is the hash of.

    Raises:
        ValueError: it is not.
    """
    text = _compact(json.loads(protocol.text))  # not sorted again, as numbers that are keys have become texts
    if content_id(text) != protocol.id:
        raise ValueError(f"protocol {protocol.id} has another identity: {protocol.text}")
    return {"id": protocol.id, "identity": text, "task": protocol.task, "metrics": protocol.metrics_text}


def run_id(identity: Mapping[str, Any], seed: int) -> str:
    """The identity of a run: that of its protocol, with the seed in its place among the others."""
    return content_id(_compact(dict(sorted({**identity, "seed": seed}.items()))))


def _compact(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, separators=(",", ":"))
