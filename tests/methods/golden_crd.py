"""The cases of the CRD benchmark's set: the taps that they give, and the methods that are built for these."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from kdtable.data import Batch
from kdtable.methods.base import Method
from kdtable.models.outputs import Outputs
from tests.golden_arrays import Dotted
from tests.golden_data import Entry, checks
from tests.methods.golden_sets import built, unlabelled

DTYPES = (torch.float64, torch.float32)
#: For networks of which a method reads no logits.
EMPTY = torch.zeros(1, 2)


class Case(Dotted):
    """A case's taps of both networks, and its checks."""

    def __init__(self, entry: Entry, dtype: torch.dtype) -> None:
        super().__init__(entry, dtype)
        self.s = [self.leaf(name) for name in self._numbered("in.s")]
        self.t = [self.array(name) for name in self._numbered("in.t")]
        if "out.loss" in self and "loss" in self.data:
            assert self.data["loss"] == float(self._arrays["out.loss"]), f"{entry}: the manifest has another loss"

    def _numbered(self, start: str) -> list[str]:
        return list(takewhile(self.__contains__, (f"{start}{number}" for number in count())))

    @property
    def has_modules(self) -> bool:
        """Whether the case is given parameters of adaptors."""
        return bool(self.names("param."))

    @property
    def batch(self) -> Batch:
        return unlabelled(len((self.s or self.t)[0]))

    def build(self, student: Outputs, teacher: Outputs, row: str = "", **params: Any) -> Method:
        """The case's method for networks with these outputs."""
        return built(row or self.entry.kind, student, teacher, dtype=self.dtype, **params).train()

    def load(self, method: Method) -> Method:
        """The method with all the golden parameters and statistics, and no others."""
        state = {name.partition(".")[2]: self.array(name) for name in self.names("param.") + self.names("buffer.")}
        counted = {name for name in method.state_dict() if name.endswith(("num_batches_tracked", "_extra_state"))}
        assert method.state_dict().keys() - counted == state.keys()
        method.load_state_dict(state, strict=False)
        return method

    def loss(self, method: Method, student: Outputs, teacher: Outputs) -> Tensor:
        """The method's own term."""
        return method.loss(method.term, student, teacher, self.batch)

    def check_loss(self, loss: Tensor, method: nn.Module | None = None) -> None:
        """The loss, and all gradients of it that the case has."""
        loss.backward()
        self.check("out.loss", loss)
        for number, s in enumerate(self.s):
            if f"grad.s{number}" in self:
                self.check(f"grad.s{number}", s.grad)
        if method is not None:
            self.check_method(method)

    def check_method(self, method: nn.Module) -> None:
        """Every golden gradient of a parameter and every statistic after one pass."""
        parameters, buffers = dict(method.named_parameters()), dict(method.named_buffers())
        for name in self.names("pgrad."):
            self.check(name, parameters[name.removeprefix("pgrad.")].grad)
        for name in self.names("buffer_after."):
            self.check(name, buffers[name.removeprefix("buffer_after.")])

    def check_taps(self, loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> None:
        """The losses of single taps, where the case lists them."""
        if "out.losses" in self:
            self.check("out.losses", torch.stack([loss([s], [t]) for s, t in zip(self.s, self.t, strict=True)]))


crd = partial(checks, "crd", arrays=Case, dtypes=DTYPES)


def with_stages(taps: Sequence[Tensor]) -> Outputs:
    return Outputs(EMPTY, stages=tuple(taps))


def with_embedding(taps: Sequence[Tensor]) -> Outputs:
    return Outputs(EMPTY, embedding=taps[0])
