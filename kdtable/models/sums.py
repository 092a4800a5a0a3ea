"""Names of several networks that teach together: ``resnet56+resnet110``. Needs no torch."""

import re

from kdtable.errors import BadRequest, unknown
from kdtable.models.names import ALIASES, KINDS, NETWORKS, checked, known


def canonical_teacher(name: str) -> str:
    """The canonical name of a pair's teacher, which is one network or several that ``+`` joins, in any order.

    ``canonical_teacher("res110+res56")`` is ``"resnet56+resnet110"``; ``"resnet56+heads"`` stays one network.

    Raises:
        BadRequest: as of `kdtable.models.canonical`; a name is missing or stands twice; or one of several networks has
            extra classifiers.
    """
    parts = [part.strip() for part in name.split("+")]
    named = [part for part in parts if part and part.lower() not in KINDS]
    if "" in parts and len(parts) > 1:
        raise BadRequest(f"'{name}' lacks a network beside its +: write {'+'.join(named) or 'TEACHER+TEACHER'}")
    if len(parts) == 1 or (len(parts) == 2 and parts[1].lower() in KINDS):
        return checked("+".join(parts))
    if len(named) < len(parts):
        raise BadRequest(
            f"'{name}' has extra classifiers beside several networks, which teach by their own logits alone: write "
            f"{'+'.join(named) or 'TEACHER+TEACHER'}"
        )
    for part in named:
        if not known(part):
            raise unknown("network", part, [*NETWORKS, *ALIASES, *KINDS], "models")
    networks = [checked(part) for part in named]
    if twice := next((network for network in networks if networks.count(network) > 1), None):
        raise BadRequest(f"'{name}' names {twice} twice: several teachers are different networks")
    return "+".join(sorted(networks, key=_natural))


def networks_of(teacher: str) -> tuple[str, ...]:
    """The networks of a pair's teacher, by its canonical name: one for ``resnet56+heads``."""
    parts = teacher.split("+")
    return (teacher,) if parts[-1] in KINDS else tuple(parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key by which resnet56 comes before resnet110."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
