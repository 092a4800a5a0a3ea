"""What a row is called: its name, and which settings were changed from its paper's."""

from collections.abc import Callable, Mapping
from typing import Any

Meaning = Mapping[str, Any]
#: Loss weights and hyper-parameters of a paper's row for a student; ``None`` for a row that is not known.
Defaults = Callable[[str, str, str], tuple[Mapping[str, float], Mapping[str, Any]] | None]


def changed_settings(run: Mapping[str, Any], meaning: Meaning, defaults: Defaults) -> list[str]:
    """Every weight and hyper-parameter that is not the row's default, as ``weight.at=500.0`` or ``dim=8``."""
    own = defaults(run["paper"], run["row"], run["student"])
    if own is None:
        return []
    terms, params = own
    changed = [f"weight.{k}={v!r}" for k, v in dict(meaning["terms"]).items() if terms.get(k) != v]
    return changed + [f"{k}={v!r}" for k, v in meaning["params"].items() if params.get(k) != v]


def row_label(run: Mapping[str, Any], meaning: Meaning, defaults: Defaults) -> str:
    """The row's name, and in brackets what was changed."""
    changed = changed_settings(run, meaning, defaults)
    return f"{run['row']} ({', '.join(changed)})" if changed else str(run["row"])
