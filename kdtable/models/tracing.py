"""Trace the graph of a network while other threads run theirs."""

import threading
from collections.abc import Callable
from typing import Any, Final

from torch import fx, nn

#: torch.fx patches the call of every module in the process while it traces, so only one thread may trace at a time.
_ALONE: Final = threading.Lock()


class Tracer(fx.Tracer):
    """Traces the calls of its own thread and passes on those of other threads, which torch.fx intercepts too."""

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
