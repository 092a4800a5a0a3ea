"""Whether a class gives what :class:`Method` asks of a subclass, checked before it is used."""

from dataclasses import is_dataclass
from typing import Final

from kdtable.methods.base import Method
from kdtable.methods.base_terms import CLASSIFIERS
from kdtable.methods.objective import Params

#: Hooks any of which makes a formula without ``distillation``: several terms, stages, or what is trained and when.
_FREE: Final = ("own_terms", "loss", "stages", "main_stage", "trained", "begin_step", "end_epoch")


def own_terms(kind: type[Method]) -> frozenset[str] | None:
    """Names of the terms that a method's row may have; ``None`` if only the built method knows them."""
    if any(_overrides(kind, hook) for hook in ("own_terms", "loss")):
        return None
    return frozenset({*CLASSIFIERS, *([kind.term] if kind.term else [])})


def shortcoming(kind: object) -> str | None:
    """Why a class cannot be trained as a method, as the end of a sentence that begins with it; ``None`` if it can."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        return "is no method: its class must extend kdtable.methods.base.Method"
    if kind.term in CLASSIFIERS:
        return f"calls its term '{kind.term}', which is the task's own: choose another name for it"
    if not (issubclass(kind.hyper, Params) and is_dataclass(kind.hyper) and "__dataclass_params__" in vars(kind.hyper)):
        return (
            f"has hyper-parameters that are no frozen dataclass: put @dataclass(frozen=True) on {kind.hyper.__name__}"
        )
    if kind.keeps_gradients_apart or any(_overrides(kind, hook) for hook in _FREE):
        return None
    if not _overrides(kind, "distillation"):
        named = f"has the term '{kind.term}' but" if kind.term else "has"
        return f"{named} no formula: write distillation(self, student, teacher, batch), which returns its loss"
    return None if kind.term else 'has a formula without a name: add term = "NAME" to its class, for its weight'


def _overrides(kind: type[Method], hook: str) -> bool:
    return getattr(kind, hook) is not getattr(Method, hook)
