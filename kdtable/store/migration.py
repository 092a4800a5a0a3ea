"""How an older store becomes one of today's."""

import json

import sqlalchemy as sa

from kdtable.store.schema import SCHEMA_VERSION, meta, origin_row, origins, protocol_row, protocols, runs, workers
from kdtable.store.seals import Damage, seal_all

_SEAL = "VARCHAR(16) NOT NULL DEFAULT ''"


def migrate(db: sa.Connection, found: int) -> None:
    """Bring a store of schema ``found`` to this one, within the caller's transaction.

    Every process that trained with an older kdtable loses its claims, and so writes nothing any more: what it had
    begun becomes planned.

    Raises:
        Damage: it cannot be read as such a store.
    """
    if db.dialect.name == "sqlite" and (text := db.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()) != "ok":
        raise Damage(" ".join(str(text).split()))
    try:
        if found == 1:
            _to_claims(db)
        _to_seals(db)
    except (KeyError, TypeError, ValueError) as error:
        raise Damage(str(error)) from error
    db.execute(meta.update().values(schema_version=SCHEMA_VERSION))


def _to_claims(db: sa.Connection) -> None:
    """From schema 1, of SQLite only: every run's row had its meaning and provenance, and nobody claimed runs."""
    text = sa.text
    for table in (protocols, origins):
        table.create(db)
    # As of schema 2, which goes on from here.
    columns = "id VARCHAR(32) NOT NULL, host VARCHAR NOT NULL, machine VARCHAR NOT NULL, pid INTEGER NOT NULL"
    more = "started VARCHAR NOT NULL, beat INTEGER NOT NULL, seen VARCHAR NOT NULL, PRIMARY KEY (id)"
    db.execute(text(f"CREATE TABLE workers ({columns}, {more})"))
    db.execute(text("ALTER TABLE runs ADD COLUMN claimed_by VARCHAR(32) REFERENCES workers (id)"))
    db.execute(text("ALTER TABLE runs ADD COLUMN kept VARCHAR(4)"))
    db.execute(text("ALTER TABLE runs ADD COLUMN test_images INTEGER"))
    db.execute(text("ALTER TABLE runs ADD COLUMN paper VARCHAR NOT NULL DEFAULT 'crd'"))
    db.execute(text("ALTER TABLE runs ADD COLUMN branches TEXT"))
    db.execute(text("UPDATE runs SET kept = 'last' WHERE status = 'done'"))
    meanings: dict[str, str] = {}
    found: dict[str, str] = {}
    for key, protocol, meaning, history in db.execute(
        text("SELECT key, protocol_id, meaning, provenance FROM runs ORDER BY key")
    ).all():
        if protocol not in meanings:
            shared = {name: value for name, value in json.loads(meaning).items() if name != "seed"}
            meanings[protocol] = json.dumps(shared)
        made = [origin_row(origin) for origin in json.loads(history or "[]")]
        found |= {row["id"]: row["content"] for row in made}
        ids = json.dumps([row["id"] for row in made]) if made else None
        db.execute(text("UPDATE runs SET provenance = :ids WHERE key = :key"), {"ids": ids, "key": key})
    if meanings:
        db.execute(protocols.insert(), [{"id": key, "meaning": value} for key, value in meanings.items()])
    if found:
        db.execute(origins.insert(), [{"id": key, "content": value} for key, value in found.items()])
    db.execute(text("ALTER TABLE runs DROP COLUMN meaning"))


def _to_seals(db: sa.Connection) -> None:
    """From schema 2, which had no checksums."""
    db.execute(sa.text("ALTER TABLE runs ADD COLUMN epochs_seal VARCHAR(16)"))
    db.execute(sa.text(f"ALTER TABLE runs ADD COLUMN table_seal {_SEAL}"))
    db.execute(sa.text("ALTER TABLE epochs ADD COLUMN waited FLOAT NOT NULL DEFAULT 0"))
    db.execute(sa.text("ALTER TABLE epochs ADD COLUMN test_loss FLOAT"))
    for column in ("lowest_epoch INTEGER", "lowest_top1 FLOAT", "lowest_top5 FLOAT"):
        db.execute(sa.text(f"ALTER TABLE runs ADD COLUMN {column}"))
    for table in ("runs", "workers", "teachers"):
        db.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN seal {_SEAL}"))
    db.execute(runs.update().where(runs.c.status == "running").values(status="planned"))
    db.execute(runs.update().values(claimed_by=None))
    db.execute(workers.delete())
    for row in db.execute(sa.select(protocols)).all():
        own = protocol_row(row.id, row.meaning)
        db.execute(protocols.update().where(protocols.c.id == row.id).values(meaning=own["meaning"]))
    seal_all(db)
