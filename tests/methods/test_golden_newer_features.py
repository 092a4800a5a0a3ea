"""Methods of 2019 to 2024 on features agree with their own codes, in value and in gradient."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.methods.base import Method
from kdtable.methods.catkd import cat_loss, class_maps
from kdtable.methods.nd import nd_loss
from kdtable.methods.parts.reducers import RARE, margins
from kdtable.models.outputs import Outputs
from kdtable.recipes.schedule import Schedule
from tests.methods.golden_newer import RAMP, Case, newer
from tests.methods.golden_sets import batch, built, objective


class Given(nn.Module):
    """A network of which a method reads the batch norms or the classifier."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d] = (), classifier: nn.Linear | None = None) -> None:
        super().__init__()
        self.norms, self.classifier = nn.ModuleList(norms), classifier

    def tap_norms(self) -> list[nn.BatchNorm2d]:
        return list(cast("list[nn.BatchNorm2d]", self.norms))

    def linear_classifier(self) -> nn.Linear:
        assert self.classifier is not None
        return self.classifier


def linear(case: Case, who: str = "") -> nn.Linear:
    """A classifier of the case; zeros for a bias that it lacks."""
    weight = case.array(f"in.cls_weight{who}")
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(case.dtype)
    bias = f"in.cls_bias{who}"
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(case.array(bias) if bias in case else torch.zeros(len(weight)))
    return layer


def load(case: Case, method: Method) -> Any:
    """The method with the golden parameters and statistics."""
    state = {name.partition(".")[2]: case.array(name) for name in case.names("param.") + case.names("buffer.")}
    assert state.keys() <= method.state_dict().keys()
    assert {name for name, _ in method.named_parameters()} <= state.keys()
    method.load_state_dict(state, strict=False)
    return method.train()


def check_grads(case: Case, leaves: Mapping[str, Tensor | None], method: nn.Module | None = None) -> None:
    for name, gradient in leaves.items():
        case.check(f"grad.{name}", gradient)
    if method is not None:
        case.check_method(method)


# --- ofd ---------------------------------------------------------------------------------------------------------


def norm_of(case: Case, stage: str) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(case.array(f"in.bn_weight{stage}"))).to(case.dtype)
    with torch.no_grad():
        norm.weight.copy_(case.array(f"in.bn_weight{stage}"))
        norm.bias.copy_(case.array(f"in.bn_bias{stage}"))
    return norm


@newer("ofd")
def test_ofd(case: Case) -> None:
    if case.data["kind"] == "values":
        assert case.hyper == {"threshold": RARE, "fallback": -3.0}
        scale, shift = case.array("in.bn_weight"), case.array("in.bn_bias")
        case.check("out.margin", margins(scale, shift, case.dtype))
        return
    numbers = [str(number) for number in range(len(case.s))]
    stages = numbers if "in.bn_weight0" in case else [""]
    logits = case.student_logits if case.student_logits is not None else torch.zeros(len(case.s[0]), 2)
    student, teacher = Outputs(logits, preacts=tuple(case.s)), Outputs(logits.detach(), preacts=tuple(case.t))
    network = Given([norm_of(case, stage) for stage in stages]).to(case.dtype)
    terms = {"ofd": case.hyper["weight"]} | ({"ce": 1.0} if "in.labels" in case else {})
    method: Any = built("ofd", student, teacher, terms, network=network, dtype=case.dtype)
    if case.has_modules:
        load(case, method)
    else:
        method.connector0 = nn.Identity()
    images = case.batch if "in.labels" in case else batch(torch.zeros(len(case.s[0]), dtype=torch.int64))
    loss = objective(method, student, teacher, images)
    loss.backward()
    case.check("out.loss", loss)
    leaves = {f"s{number}": s.grad for number, s in enumerate(case.s)}
    if case.student_logits is not None:
        leaves["logit_s"] = case.student_logits.grad
        case.check("out.ce", method.loss("ce", student, teacher, images))
    case.check_all({f"margin{stage}": method.get_buffer(f"margin{stage or 0}") for stage in stages})
    check_grads(case, leaves, method)
    case.check("out.raw", method.loss("ofd", student, teacher, images) * len(images.labels))


# --- srrl --------------------------------------------------------------------------------------------------------


@newer("srrl")
def test_srrl(case: Case) -> None:
    hyper, s, t = case.hyper, case.leaf("in.s"), case.array("in.t")
    classifier, logits = linear(case), case.student_logits
    assert logits is not None
    is_map = hyper["version"] == "original"
    embedding = t.mean(dim=(2, 3)) if is_map else t
    targets = classifier(embedding).detach() if case.teacher_logits is None else case.teacher_logits
    if is_map:
        case.check("out.logit_t", targets)
    student = Outputs(logits, last=s) if is_map else Outputs(logits, embedding=s)
    teacher, network = Outputs(targets, embedding=embedding), Given(classifier=classifier)
    terms = {"ce": 1.0, "srrl": 1.0} if is_map else {"ce": hyper["cls"], "kd": hyper["div"], "srrl": hyper["beta"]}
    params = {"version": "map", "logit_weight": hyper["weight"]} if is_map else {"version": "embedding"}
    params |= {} if is_map else {"kd_temperature": hyper["T"]}
    method = load(case, built("srrl", student, teacher, terms, network=network, dtype=case.dtype, **params))
    loss = objective(method, student, teacher, case.batch)
    loss.backward()
    case.check("out.loss", loss)
    check_grads(case, {"s": s.grad, "logit_s": logits.grad}, method)
    assert classifier.weight.grad is None, "the teacher's classifier is frozen"
    feature, logit, predicted = method.parts(student, teacher)
    case.check_all({"feature": feature, "logit": logit, "pred": predicted})
    case.check("out.ce", method.loss("ce", student, teacher, case.batch))
    if not is_map:
        case.check("out.kl", method.loss("kd", student, teacher, case.batch))


# --- catkd and sdd -----------------------------------------------------------------------------------------------


@newer("catkd")
def test_catkd(case: Case) -> None:
    hyper, s, t = case.hyper, case.leaf("in.s"), case.array("in.t")
    own, others = linear(case, "_s"), linear(case, "_t")
    logits = class_maps(s, own.weight).mean(dim=(2, 3))
    student, teacher = Outputs(logits, last=s), Outputs(others(t.mean(dim=(2, 3))), last=t)
    params = {"resolution": hyper["resolution"], "normalise": hyper["normalise"]}
    terms = {"ce": hyper["ce_weight"], "catkd": hyper["beta"]}
    networks = {"network": Given(classifier=others), "learner": Given(classifier=own)}
    method = built("catkd", student, teacher, terms, dtype=case.dtype, **networks, **params)
    loss = objective(method, student, teacher, case.batch)
    loss.backward()
    case.check("out.loss", loss)
    check_grads(case, {"s": s.grad, "cls_weight_s": own.weight.grad})
    assert others.weight.grad is None
    maps = class_maps(s, own.weight)
    case.check_all({"cam_s": maps, "logit_s": maps.mean(dim=(2, 3))})
    case.check("out.cat", cat_loss(maps, class_maps(t, others.weight), **params))
    case.check("out.ce", method.loss("ce", student, teacher, case.batch))


@newer("sdd")
def test_sdd(case: Case) -> None:
    hyper, s, t = case.hyper, case.leaf("in.s"), case.array("in.t")
    own, others = linear(case, "_s"), linear(case, "_t")
    logits = own(s.mean(dim=(2, 3)))
    student, teacher = Outputs(logits, last=s), Outputs(others(t.mean(dim=(2, 3))), last=t)
    copy = bool(case.data.get("reference_bug"))
    params = {"base": "nkd-copy" if copy else hyper["base"], "temperature": hyper["T"]}
    params |= {"scales": ",".join(map(str, hyper["scales"]))}
    params |= {name: hyper[name] for name in ("alpha", "beta") if name in hyper} | (
        {"beta": hyper["gamma"]} if copy else {}
    )
    terms = {"ce": hyper["ce_weight"], "sdd": hyper.get("kd_weight", 1.0)}
    schedules = {} if hyper["base"] == "kd" else {"sdd": Schedule(warmup=RAMP)}
    networks = {"network": Given(classifier=others), "learner": Given(classifier=own)}
    method: Any = built("sdd", student, teacher, terms, dtype=case.dtype, schedules=schedules, **networks, **params)
    loss = objective(method, student, teacher, case.batch, hyper["epoch"])
    loss.backward()
    case.check("out.loss", loss)
    check_grads(case, {"s": s.grad, "cls_weight_s": own.weight.grad, "cls_bias_s": own.bias.grad})
    assert others.weight.grad is None
    regions = method.regions(student, teacher)
    case.check_all({"logit_s": logits, "region_logit_s": regions[0], "region_logit_t": regions[1]})
    case.check("out.ce", method.loss("ce", student, teacher, case.batch))
    case.check("out.kd", method.loss("sdd", student, teacher, case.batch))
    case.check_per_image(method.per_image(student, teacher, case.batch.labels))


# --- nd ----------------------------------------------------------------------------------------------------------


@newer("nd")
def test_nd(case: Case) -> None:
    """KD++: its epochs count from 0, and the KD term's ramp from 0 in the first."""
    hyper, s, t = case.hyper, case.leaf("in.s"), case.array("in.t")
    logits, targets = case.student_logits, case.teacher_logits
    assert logits is not None
    assert targets is not None
    student, teacher = Outputs(logits, embedding=s), Outputs(targets, embedding=t)
    terms = {"ce": hyper["cls_weight"], "kd": hyper["kd_weight"], "nd": hyper["nd_weight"]}
    ramp = Schedule(ramp=int(hyper["warmup"]))
    settings = {"schedules": {"kd": ramp}, "kd_temperature": hyper["T"], "dropout": 0.0}
    method: Any = built("nd", student, teacher, terms, dtype=case.dtype, **settings)
    load(case, method)
    method.class_means.copy_(case.array("in.class_means"))
    assert ramp.at(hyper["epoch"] + 1) == hyper["ramp"]
    loss = objective(method, student, teacher, case.batch, hyper["epoch"] + 1)
    loss.backward()
    case.check("out.loss", loss)
    check_grads(case, {"s": s.grad, "logit_s": logits.grad}, method)
    adapted = method.adapted(s)
    if "out.embedding" in case:
        case.check("out.embedding", adapted)
    directions = F.normalize(method.class_means, dim=1)[case.batch.labels]
    losses = nd_loss(adapted, t, directions)
    case.check_per_image(losses)
    case.check("out.nd", losses.mean())
    case.check("out.ce", method.loss("ce", student, teacher, case.batch))
    case.check("out.kl", method.loss("kd", student, teacher, case.batch))
