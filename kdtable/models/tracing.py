"""Following the graph of a network while other threads run theirs."""

import threading
from collections.abc import Callable
from typing import Any, Final

from torch import fx, nn

#: torch.fx replaces what every module of the process is called by, and puts it back: never twice at once.
_ALONE: Final = threading.Lock()


class Tracer(fx.Tracer):
    """Traces the calls of its own thread; those of others, which torch.fx shows it too, pass as they are."""

    _thread = 0

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of ``root``."""
        with _ALONE:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See the base class."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
