"""The tables of the store."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

SCHEMA_VERSION: Final = 3

tables = sa.MetaData()

meta = sa.Table("meta", tables, sa.Column("schema_version", sa.Integer, nullable=False))

#: What runs of one protocol mean, kept once for all seeds: canonical JSON by the protocol's id, which is its hash.
protocols = sa.Table(
    "protocols",
    tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("meaning", sa.Text, nullable=False),
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
    sa.Column("seal", sa.String(16), nullable=False, server_default=""),
)

#: status: planned, running (``claimed_by`` says by whom), done, failed, or n/a (with the reason why its method cannot
#: be run on its pair). ``provenance`` lists the ids of its origins, ``kept`` says which weights a done run has on disk.
runs = sa.Table(
    "runs",
    tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(16), unique=True, nullable=False),
    sa.Column("protocol_id", sa.String(16), index=True, nullable=False),
    sa.Column("status", sa.String(8), index=True, nullable=False),
    sa.Column("reason", sa.Text),
    # Under which paper's name and settings it was first asked for; how tables label it, no part of its identity.
    sa.Column("paper", sa.String, nullable=False, server_default="crd"),
    sa.Column("row", sa.String, nullable=False),
    sa.Column("student", sa.String, nullable=False),
    sa.Column("teacher", sa.String),
    sa.Column("teacher_sha256", sa.String(64)),
    sa.Column("data", sa.String, nullable=False),
    # How many its accuracies were measured on.
    sa.Column("test_images", sa.Integer),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("precision", sa.String, nullable=False),
    sa.Column("provenance", sa.Text),
    sa.Column("epochs", sa.Integer, nullable=False),
    # What the tables show, kept here because a report must not read every epoch of every run.
    sa.Column("last_epoch", sa.Integer),
    sa.Column("last_top1", sa.Float),
    sa.Column("last_top5", sa.Float),
    sa.Column("best_epoch", sa.Integer),
    sa.Column("best_top1", sa.Float),
    sa.Column("best_top5", sa.Float),
    # Of the epoch whose loss on the test images is lowest, where that was measured.
    sa.Column("lowest_epoch", sa.Integer),
    sa.Column("lowest_top1", sa.Float),
    sa.Column("lowest_top5", sa.Float),
    sa.Column("wall_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("terms", sa.Text),
    sa.Column("branches", sa.Text),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("started", sa.String),
    sa.Column("finished", sa.String),
    sa.Column("claimed_by", sa.String(32), sa.ForeignKey("workers.id")),
    sa.Column("kept", sa.String(4)),
    # Checksums of the run's epochs, of what tables show of it, and of its row: see kdtable.store.seals.
    sa.Column("epochs_seal", sa.String(16)),
    sa.Column("table_seal", sa.String(16), nullable=False, server_default=""),
    sa.Column("seal", sa.String(16), nullable=False, server_default=""),
)

epochs = sa.Table(
    "epochs",
    tables,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.key"), primary_key=True),
    sa.Column("stage", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("lr", sa.Float, nullable=False),
    sa.Column("train_loss", sa.Float, nullable=False),
    sa.Column("train_top1", sa.Float, nullable=False),
    sa.Column("test_top1", sa.Float, nullable=False),
    sa.Column("test_top5", sa.Float, nullable=False),
    sa.Column("test_loss", sa.Float),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("waited", sa.Float, nullable=False, server_default="0", default=0.0),
    sa.Column("members", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: What teachers reached on the data sets that they taught.
teachers = sa.Table(
    "teachers",
    tables,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("data", sa.String, primary_key=True),
    sa.Column("network", sa.String, nullable=False),
    sa.Column("top1", sa.Float, nullable=False),
    sa.Column("top5", sa.Float, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("claimed_top1", sa.Float),
    sa.Column("seal", sa.String(16), nullable=False, server_default=""),
)


def create(db: sa.Connection) -> None:
    """Make the tables in an empty database."""
    tables.create_all(db)
    db.execute(meta.insert().values(schema_version=SCHEMA_VERSION))


def content_id(text: str) -> str:
    """What a protocol or an origin is known by: the first 16 hex digits of its text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def origin_row(origin: Any) -> dict[str, str]:
    """An origin as a row: its canonical JSON, with its id."""
    content = json.dumps(origin, sort_keys=True)
    return {"id": content_id(content), "content": content}


def protocol_row(key: str, meaning: str) -> dict[str, str]:
    """A protocol as a row: its meaning in the form of JSON that its id is the hash of.

    Raises:
        ValueError: it is not.
    """
    text = _compact(json.loads(meaning))  # not sorted again, as numbers that are keys have become texts
    if content_id(text) != key:
        raise ValueError(f"protocol {key} means something else: {meaning}")
    return {"id": key, "meaning": text}


def run_id(meaning: str, seed: int) -> str:
    """The identity of a run: that of its protocol, with the seed in its place among the others."""
    return content_id(_compact(dict(sorted({**json.loads(meaning), "seed": seed}.items()))))


def _compact(meaning: Mapping[str, Any]) -> str:
    return json.dumps(meaning, separators=(",", ":"))
