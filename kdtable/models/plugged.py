"""Networks of plug-ins, checked as they are registered."""

from collections.abc import Callable
from typing import Any

from kdtable.errors import BadRequest
from kdtable.models import names
from kdtable.models.network import Network
from kdtable.plugins import Declaration


def network(one: Declaration) -> Callable[[], names.Entry]:
    """Check a network's class.

    Raises:
        BadRequest: it is no network, or its name is another's in other letters.
    """
    kind: Any = one.target
    if isinstance(kind, type) and not issubclass(kind, Network):
        raise BadRequest("is no network: its class must extend kdtable.models.network.Network")
    if "." in kind.__qualname__:
        raise BadRequest(f"cannot be found by other processes: move {kind.__name__} to the top of its file")
    if known := names.same_as(one.name):
        raise BadRequest(f"is how {' and '.join(known)} can be written: choose another name")
    entry = names.Entry(kind.__module__, kind.__name__, **one.settings)
    return lambda: entry
