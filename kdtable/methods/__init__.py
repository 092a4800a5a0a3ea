"""Distillation methods: one file each.

The table below is the registry. A method that is not in it is unknown; ``X+kd`` is method ``X`` with a KD term
beside its own, so it names the class of ``X``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kdtable.errors import unknown

if TYPE_CHECKING:
    from kdtable.methods.base import Method

METHODS: Final[dict[str, str]] = {
    "vanilla": "kdtable.methods.vanilla:Vanilla",
    "kd": "kdtable.methods.kd:KD",
    "at": "kdtable.methods.at:AT",
    "crd": "kdtable.methods.crd:CRD",
}

KD_SUFFIX: Final = "+kd"


def get(name: str) -> "type[Method]":
    """The class of method ``name`` (``crd``, or ``crd+kd`` for its combination with KD).

    Raises:
        BadRequest: no such method; names the nearest ones.
    """
    base = name.removesuffix(KD_SUFFIX)
    combined = base != name
    if base not in METHODS or (combined and base in ("vanilla", "kd")):
        raise unknown("method", name, [*METHODS, *(f"{m}{KD_SUFFIX}" for m in METHODS if m not in ("vanilla", "kd"))])
    module, _, attribute = METHODS[base].partition(":")
    method: type[Method] = getattr(import_module(module), attribute)
    return method


def __getattr__(name: str) -> Any:
    # Method and Setting need torch, which a caller that only wants names should not pay for.
    if name in ("Method", "Setting", "Term", "Stage"):
        return getattr(import_module("kdtable.methods.base"), name)
    raise AttributeError(name)
