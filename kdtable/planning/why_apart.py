"""Why methods cannot be combined as ``X+Y``."""

from kdtable.methods import get, methods_of
from kdtable.papers import Paper, Row


def why_apart(paper: Paper, name: str) -> str | None:
    """Why a combination cannot be trained, in one clause; ``None`` if it can be, or is none."""
    methods = methods_of(name, paper.task)
    if len(methods) == 1:
        return None
    from kdtable.methods.combined import why_alone

    for method in methods:
        if reason := why_alone(get(method, paper.task)) or _of_row(paper.row(method)):
            return f"{method} cannot be combined: it {reason}"
    return None


def _of_row(row: Row) -> str:
    if row.student != "{student}":
        return "trains another network than the pair's student"
    return "learns from a network that is trained first" if row.taught_by else ""
