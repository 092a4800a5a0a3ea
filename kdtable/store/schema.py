"""The tables of the store, and how an older file becomes one of today's."""

import hashlib
import json
from typing import Any, Final

import sqlalchemy as sa

SCHEMA_VERSION: Final = 2

tables = sa.MetaData()

meta = sa.Table("meta", tables, sa.Column("schema_version", sa.Integer, nullable=False))

#: What runs of one protocol mean, kept once for all seeds: canonical JSON by the protocol's id.
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
    sa.Column("wall_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("terms", sa.Text),
    sa.Column("branches", sa.Text),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("started", sa.String),
    sa.Column("finished", sa.String),
    sa.Column("claimed_by", sa.String(32), sa.ForeignKey("workers.id")),
    sa.Column("kept", sa.String(4)),
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
    sa.Column("seconds", sa.Float, nullable=False),
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
)


def create(db: sa.Connection) -> None:
    """Make the tables in an empty database."""
    tables.create_all(db)
    db.execute(meta.insert().values(schema_version=SCHEMA_VERSION))


def origin_row(origin: Any) -> dict[str, str]:
    """An origin as a row: its canonical JSON, and the first 16 hex digits of its SHA-256 as the id."""
    content = json.dumps(origin, sort_keys=True)
    return {"id": hashlib.sha256(content.encode()).hexdigest()[:16], "content": content}


def migrate(db: sa.Connection) -> None:
    """Bring a SQLite store of schema 1 to this one, within the caller's transaction.

    Schema 1 kept every run's meaning and provenance in its own row, and knew no claims: what a process had left as
    running becomes planned.
    """
    for table in (protocols, origins, workers):
        table.create(db)
    text = sa.text
    db.execute(text("ALTER TABLE runs ADD COLUMN claimed_by VARCHAR(32) REFERENCES workers (id)"))
    db.execute(text("ALTER TABLE runs ADD COLUMN kept VARCHAR(4)"))
    db.execute(text("ALTER TABLE runs ADD COLUMN test_images INTEGER"))
    db.execute(text("ALTER TABLE runs ADD COLUMN paper VARCHAR NOT NULL DEFAULT 'crd'"))
    db.execute(text("ALTER TABLE runs ADD COLUMN branches TEXT"))
    db.execute(text("UPDATE runs SET status = 'planned' WHERE status = 'running'"))
    db.execute(text("UPDATE runs SET kept = 'last' WHERE status = 'done'"))
    meanings: dict[str, str] = {}
    found: dict[str, str] = {}
    for key, protocol, meaning, history in db.execute(
        text("SELECT key, protocol_id, meaning, provenance FROM runs ORDER BY key")
    ).all():
        if protocol not in meanings:
            shared = {name: value for name, value in json.loads(meaning).items() if name != "seed"}
            meanings[protocol] = json.dumps(shared, sort_keys=True)
        made = [origin_row(origin) for origin in json.loads(history or "[]")]
        found |= {row["id"]: row["content"] for row in made}
        ids = json.dumps([row["id"] for row in made]) if made else None
        db.execute(text("UPDATE runs SET provenance = :ids WHERE key = :key"), {"ids": ids, "key": key})
    if meanings:
        db.execute(protocols.insert(), [{"id": key, "meaning": value} for key, value in meanings.items()])
    if found:
        db.execute(origins.insert(), [{"id": key, "content": value} for key, value in found.items()])
    db.execute(text("ALTER TABLE runs DROP COLUMN meaning"))
    db.execute(meta.update().values(schema_version=SCHEMA_VERSION))
