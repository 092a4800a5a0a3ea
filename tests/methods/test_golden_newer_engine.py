"""DOT's optimiser and SimKD agree with their own codes: what a run trains and measures beside the student's loss."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.outputs import Outputs
from kdtable.training.dot import DOT
from tests.methods.golden_newer import Case, newer
from tests.methods.golden_sets import built, objective, unlabelled
from tests.methods.test_golden_newer_features import Given, check_grads, linear, load


@newer("dot")
def test_golden_steps(case: Case) -> None:
    hyper = case.hyper
    named = {name.removeprefix("param."): nn.Parameter(case.array(name)) for name in case.names("param.")}
    settings = {name: hyper[name] for name in ("momentum", "delta", "weight_decay")}
    optimizer = DOT(named.values(), lr=hyper["lr_per_step"][0], **settings)
    for step in range(hyper["steps"]):
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = hyper["lr_per_step"][step]
        logits = F.linear(case.array("in.x")[step], named["student.weight"], named["student.bias"])
        task = hyper["ce_weight"] * F.cross_entropy(logits, case.array("in.labels")[step])
        distillation = hyper["kd_weight"] * distance(case, step, logits, named)
        optimizer.backward(task, distillation)
        optimizer.step()
        case.check_all({f"step{step}.loss_ce": task, f"step{step}.loss_kd": distillation})
        case.check_all({f"step{step}.{name}": p for name, p in named.items()})
    for name, p in named.items():
        slots = {"v_task": "momentum_buffer", "v_kd": "kd_momentum_buffer"}
        found = {f"final.{ours}.{name}": optimizer.state[p].get(slot) for ours, slot in slots.items()}
        case.check_all({key: value for key, value in found.items() if value is not None})


def distance(case: Case, step: int, logits: Tensor, named: dict[str, nn.Parameter]) -> Tensor:
    if case.hyper["base"] == "kd":
        return kd_loss(logits, case.array("in.logit_t")[step], case.hyper["T"])
    return F.mse_loss(F.linear(logits, named["adaptor.weight"]), case.array("in.feat_t")[step])


@newer("simkd")
def test_simkd(case: Case) -> None:
    hyper, s, t = case.hyper, case.leaf("in.s"), case.array("in.t")
    classifier = linear(case)
    assert (hyper["ce_weight"], hyper["kd_weight"]) == (0, 0)
    own = torch.zeros(len(s), len(classifier.weight), dtype=case.dtype)
    student, teacher = Outputs(own, last=s), Outputs(classifier(t.mean(dim=(2, 3))).detach(), last=t)
    terms = {"simkd": hyper["weight"]}
    settings: dict[str, Any] = {"network": Given(classifier=classifier), "factor": hyper["factor"]}
    method = load(case, built("simkd", student, teacher, terms, dtype=case.dtype, **settings))
    loss = objective(method, student, teacher, unlabelled(len(s)))
    loss.backward()
    case.check("out.loss", loss)
    case.check("out.pred", method.predicted(student).logits)
    check_grads(case, {"s": s.grad}, method)
    assert classifier.weight.grad is None
    case.check("out.pred_eval_after", method.eval().predicted(student).logits)
    pooled, target = pool_to_smaller(s, t)
    fresh = load(case, built("simkd", student, teacher, terms, dtype=case.dtype, **settings))
    case.check_all({"projected": fresh.projector(pooled), "target": target})
