"""Row labels: a row's name, and the settings changed from its paper's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdtable.store.records import RunRecord

Identity = Mapping[str, Any]
#: Hyper-parameters that change what is measured, not how the student is trained.
MEASURED = ("test_objective",)
#: Loss weights, hyper-parameters and schedules of a row, and the setting that says whether students start from trained
#: weights.
Overrides = tuple[Mapping[str, float], Mapping[str, Any], Mapping[str, Any], Mapping[str, bool]]
#: Looks up a row's overrides by paper, row, pair, kind of data set and epochs; ``None`` for an unknown row.
Defaults = Callable[[str, str, tuple[str | None, str], str, int], Overrides | None]


def changed_settings(run: RunRecord, identity: Identity, defaults: Defaults) -> list[str]:
    """Settings changed from the row's own, as ``--set`` takes them: ``weight.at=500.0``, ``schedule.ce=ramp:5``."""
    pair = (run.teacher, run.student)
    own = defaults(run.paper, run.row, pair, identity["data"]["kind"], identity["recipe"]["epochs"])
    if own is None:
        return []
    terms, params, schedules, start = own
    changed = [f"weight.{k}={v!r}" for k, v in dict(identity["terms"]).items() if terms.get(k) != v]
    changed += [f"{k}={v!r}" for k, v in identity["params"].items() if params.get(k) != v and k not in MEASURED]
    changed += _started(identity, start)
    changing = identity.get("schedules", {})
    differing = [k for k in {**schedules, **changing} if schedules.get(k) != changing.get(k)]
    changed += [f"{k}={v}" for k, v in identity.get("shares", {}).items() if v != 1]
    return changed + [f"schedule.{k}={schedule_text(changing.get(k, {}))}" for k in differing]


def _started(identity: Identity, usual: Mapping[str, bool]) -> list[str]:
    """``start=`` and eight digits of the weights' checksum or run, if the user chose them; else as ``--set`` has it."""
    ref = identity.get("start")
    if ref and ref.get("given"):
        return [f"start={(ref.get('run') or ref['sha256'])[:8]}"]
    return [f"{name}={ref is not None!r}" for name, own in usual.items() if own != (ref is not None)]


def schedule_text(identity: Identity) -> str:
    """A schedule as ``--set`` takes it; ``ramp:0`` for a constant one."""
    parts = [f"{k}:{'/'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in identity.items()]
    return ",".join(parts or ["ramp:0"])


def row_label(run: RunRecord, identity: Identity, defaults: Defaults) -> str:
    """The row's name, with its changed settings in brackets."""
    return labelled(run.row, changed_settings(run, identity, defaults))


def labelled(row: str, changed: Sequence[str]) -> str:
    """A row's name, with the changed settings in brackets."""
    return f"{row} ({', '.join(changed)})" if changed else row
