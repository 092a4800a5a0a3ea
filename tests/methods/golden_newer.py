"""The cases of the newer methods' set, run through methods that are built as a run builds them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdtable.data import Batch
from kdtable.methods.base import Method
from kdtable.models.outputs import Outputs
from kdtable.recipes.schedule import Schedule
from tests.golden_data import checks
from tests.methods.golden_crd import DTYPES
from tests.methods.golden_crd import Case as CRDCase
from tests.methods.golden_sets import batch, built, objective

RAMP = 20


class Case(CRDCase):
    """A case's logits and labels, and its checks."""

    def __init__(self, entry: Any, dtype: torch.dtype) -> None:
        super().__init__(entry, dtype)
        self.student_logits = self.leaf("in.logit_s") if "in.logit_s" in self else None
        self.teacher_logits = self.array("in.logit_t") if "in.logit_t" in self else None

    @property
    def batch(self) -> Batch:
        name = "in.labels" if "in.labels" in self else "in.label_scores"
        return batch(self.array(name), int(self.hyper.get("epoch", 1)))

    def logits(self) -> tuple[Outputs, Outputs]:
        assert self.student_logits is not None
        assert self.teacher_logits is not None
        return Outputs(self.student_logits), Outputs(self.teacher_logits)

    def check_method_of_logits(
        self, row: str, weight: float = 1.0, ce: float | None = None, kd: str = "out.kd", **params: Any
    ) -> Method:
        """CE and a row's own term, with the ramp that the case has: value, terms and gradients."""
        student, teacher = self.logits()
        schedules = {row: Schedule(warmup=RAMP)} if self.hyper.get("ramp", 1.0) != 1.0 else {}
        ce = self.hyper["ce_weight"] if ce is None else ce
        method = self.build(student, teacher, row, terms={"ce": ce, row: weight}, schedules=schedules, **params)
        self.start(method)
        loss = objective(method, student, teacher, self.batch, self.batch.epoch)
        loss.backward()
        self.check("out.loss", loss)
        self.check("grad.logit_s", student.logits.grad)
        self.check_method(method)
        self.check("out.ce", method.loss("ce", student, teacher, self.batch))
        self.check(kd, method.loss(row, student, teacher, self.batch))
        assert teacher.logits.grad is None
        return method

    def start(self, method: Method) -> None:
        """Give the method the golden parameters."""
        parameters = {name.partition(".")[2]: self.array(name) for name in self.names("param.")}
        assert {name for name, _ in method.named_parameters()} == parameters.keys()
        method.load_state_dict(parameters, strict=False)

    def check_per_image(self, losses: Tensor) -> None:
        if "out.per_image" in self:
            self.check("out.per_image", losses)

    def check_all(self, found: Mapping[str, Tensor]) -> None:
        for name, value in found.items():
            self.check(f"out.{name}", value)


newer = partial(checks, "newer", arrays=Case, dtypes=DTYPES)

__all__ = ["Case", "built", "newer"]
