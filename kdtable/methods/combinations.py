"""Names of several methods at once, ``at+crd+kd``: which methods they name. Imports no torch."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from kdtable.errors import BadRequest, unknown

#: The KD term, and logit standardisation (``soft_targets``), as the last parts of a name.
KD_SUFFIX: Final = "+kd"
LS_SUFFIX: Final = "+ls"
#: The method without a term of its own.
PLAIN: Final = "vanilla"


@dataclass(frozen=True, slots=True)
class Combination:
    """What the parts of a name with ``+`` mean.

    Attributes:
        methods: registered names, sorted.
        suffixes: "kd", "ls" or both, in this order.
    """

    methods: tuple[str, ...]
    suffixes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name in our order."""
        return "+".join((*self.methods, *self.suffixes))

    @property
    def base(self) -> str:
        """The methods' names alone, as identities have it."""
        return "+".join(self.methods)


def combination(name: str, known: Collection[str]) -> Combination:
    """Divide a name, in any order, into registered methods; those whose own name has a ``+`` come first.

        combination("gkd+crd+kd+cd", METHODS)  # cd+gkd, crd, and the suffix kd

    Raises:
        BadRequest: a part that is no method, or stands there twice, or is the plain student.
    """
    parts = name.split("+")
    if twice := [part for part in dict.fromkeys(parts) if part and parts.count(part) > 1]:
        raise BadRequest(f"unknown method '{name}': {twice[0]} stands in it twice, and a weight changes what it counts")
    left, found = set(parts), []
    for joined in sorted((one for one in known if "+" in one), key=len, reverse=True):
        if set(joined.split("+")) <= left:
            found.append(joined)
            left -= set(joined.split("+"))
    suffixes = tuple(one for one in ("kd", "ls") if one in left)
    found += sorted(left - set(suffixes))
    for method in found:
        if method not in known:
            raise unknown("method", method or name, known, "methods")
    if PLAIN in found and len(found) > 1:
        others = "+".join([*sorted(set(found) - {PLAIN}), *suffixes])
        raise BadRequest(f"method '{name}': {PLAIN} is the student alone, without a term to add; write {others}")
    return Combination(tuple(sorted(found)), suffixes)
