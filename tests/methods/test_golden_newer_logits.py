"""Methods of 2021 to 2026 on logits alone agree with their own codes, in value and in gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kdtable.methods.base import Method
from kdtable.methods.ctkd import reversal
from kdtable.methods.dist import dist_parts
from kdtable.methods.dkd import dkd_loss, dkd_parts
from kdtable.methods.ikl import IKL
from kdtable.methods.nkd import nkd_parts
from kdtable.methods.parts.logits import divergence, soft_cross_entropy
from kdtable.methods.rld import masked, mcd_loss, scd_loss
from kdtable.methods.soft_targets import STD_EPS, standardised
from kdtable.methods.ttm import ttm_loss, wttm_weights
from kdtable.methods.wsld import RATIO_EPS, wsld_weights
from kdtable.models.outputs import Outputs
from kdtable.recipes.schedule import Schedule
from tests.methods.golden_newer import Case, newer
from tests.methods.golden_sets import batch, built, objective


def detached(case: Case) -> tuple[Tensor, Tensor]:
    return tuple(x.logits.detach() for x in case.logits())  # type: ignore[return-value]


@newer("dkd")
def test_dkd(case: Case) -> None:
    hyper = case.hyper
    assert Schedule(warmup=hyper["warmup"]).at(hyper["epoch"]) == hyper["ramp"]
    case.check_method_of_logits("dkd", temperature=hyper["T"], alpha=hyper["alpha"], beta=hyper["beta"])
    check_dkd_parts(case, *detached(case))


def check_dkd_parts(case: Case, s: Tensor, t: Tensor) -> None:
    hyper, labels = case.hyper, case.batch.labels
    tckd, nckd = dkd_parts(s, t, labels, hyper["T"])
    case.check_all({"tckd": tckd.mean(), "nckd": nckd.mean()})
    case.check_per_image(dkd_loss(s, t, labels, hyper["T"], hyper["alpha"], hyper["beta"]))


@newer("dist")
def test_dist(case: Case) -> None:
    hyper = case.hyper
    params = {name: hyper[name] for name in ("beta", "gamma")}
    case.check_method_of_logits("dist", hyper["weight"], temperature=hyper["T"], **params)
    inter, intra = dist_parts(*detached(case), hyper["T"])
    case.check_all({"inter": inter, "intra": intra})


@newer("lskd")
def test_standardised_logits(case: Case) -> None:
    assert case.hyper["std_eps"] == STD_EPS
    {"kd": check_kd, "dkd": check_dkd, "ctkd": check_ctkd}[case.hyper["base"]](case)


def check_kd(case: Case) -> None:
    hyper = case.hyper
    case.check_method_of_logits("kd", hyper["kd_weight"], kd_temperature=hyper["T"], kd_standardise=True)
    z_s, z_t = map(standardised, detached(case))
    case.check_all({"z_s": z_s, "z_t": z_t})
    case.check_per_image(divergence(z_s, z_t, hyper["T"]))


def check_dkd(case: Case) -> None:
    """The golden alpha and beta are multiplied by the weight already; here it is the term's."""
    hyper, weight = case.hyper, case.hyper["kd_weight"]
    params = {name: hyper[name] for name in ("alpha", "beta")}
    case.check_method_of_logits("dkd", temperature=hyper["T"], standardise=True, **params)
    check_dkd_parts(case, *map(standardised, detached(case)))
    student, teacher = case.logits()
    params = {name: value / weight for name, value in params.items()}
    row = case.build(student, teacher, "dkd", temperature=hyper["T"], standardise=True, **params)
    case.check("out.kd", weight * row.loss("dkd", student, teacher, case.batch))


@newer("ctkd")
def test_ctkd(case: Case) -> None:
    if case.data["kind"] == "trajectory":
        check_ctkd_steps(case)
    else:
        check_ctkd(case)


def check_ctkd(case: Case) -> None:
    hyper, is_dkd = case.hyper, case.hyper["base"] == "dkd"
    params = {"base": "dkd" if is_dkd else "kd", "standardise": "std_eps" in hyper}
    params |= {name: hyper[name] for name in ("dkd_alpha", "dkd_beta") if name in hyper}
    params |= {"lowest": hyper["t_start"], "span": hyper["t_end"]}
    if "decay_loops" in hyper:
        params["reversal_epochs"] = hyper["decay_loops"]
    if "epoch" in hyper:
        assert reversal(hyper["epoch"], hyper["decay_loops"]) == pytest.approx(hyper["lambda"], rel=1e-12)
    weight = hyper["beta" if is_dkd else "alpha"]
    method: Any = case.check_method_of_logits("ctkd", weight, hyper["gamma"], **params)
    case.check("out.T", method.temperature(1.0))


def check_ctkd_steps(case: Case) -> None:
    """A linear student, with theta in its optimiser as a training step has it."""
    hyper = case.hyper
    x, labels, w_t = (case.array(f"in.{name}") for name in ("x", "labels", "w_t"))
    weight, bias = case.leaf("in.w0"), case.leaf("in.b0")
    shapes = Outputs(x[0, 0] @ weight.T)
    terms = {"ce": hyper["gamma"], "ctkd": hyper["alpha"]}
    method: Any = built("ctkd", shapes, shapes, terms, dtype=case.dtype, reversal_epochs=hyper["decay_loops"])
    settings = {name: hyper[name] for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD([weight, bias, *method.parameters()], **settings)
    for epoch in range(1, hyper["epochs"] + 1):
        assert reversal(epoch, hyper["decay_loops"]) == pytest.approx(hyper["lambda_per_epoch"][epoch - 1])
        for images, right in zip(x[epoch - 1], labels[epoch - 1], strict=True):
            optimizer.zero_grad()
            student, teacher = Outputs(images @ weight.T + bias), Outputs(images @ w_t.T)
            objective(method, student, teacher, batch(right, epoch), epoch).backward()
            optimizer.step()
        case.check_all(
            {
                f"epoch{epoch}.theta": method.temperature.theta,
                f"epoch{epoch}.weight": weight,
                f"epoch{epoch}.bias": bias,
            }
        )


@newer("ttm")
def test_ttm(case: Case) -> None:
    gamma = case.hyper["gamma"]
    case.check_method_of_logits("ttm", case.hyper["weight"], gamma=gamma)
    case.check_per_image(ttm_loss(*detached(case), gamma))


@newer("wttm")
def test_wttm(case: Case) -> None:
    gamma = case.hyper["gamma"]
    case.check_method_of_logits("wttm", case.hyper["weight"], gamma=gamma)
    s, t = detached(case)
    case.check_per_image(wttm_weights(t, gamma) * ttm_loss(s, t, gamma))


@newer("nkd")
def test_nkd(case: Case) -> None:
    hyper, copy = case.hyper, bool(case.data.get("reference_bug"))
    case.check_method_of_logits("nkd", temperature=hyper["T"], gamma=hyper["gamma"], keeps_label=copy)
    s, t = detached(case)
    labels = case.batch.labels if case.batch.labels.ndim == 1 else case.batch.labels.argmax(dim=1)
    target, rest = nkd_parts(s, t, labels, hyper["T"], keeps_label=copy)
    case.check("out.target", target.mean())
    if "out.non_target" in case:
        case.check("out.non_target", rest.mean())
    case.check_per_image(target + hyper["gamma"] * rest)
    if copy:  # an error of one repository, which must not be what the row does
        student, teacher = case.logits()
        own = case.build(student, teacher, "nkd", temperature=hyper["T"], gamma=hyper["gamma"])
        assert abs(own.loss("nkd", student, teacher, case.batch) - case.array("out.kd")) > 0.01


@newer("rld")
def test_rld(case: Case) -> None:
    hyper, labels = case.hyper, case.batch.labels
    params = {name: hyper[name] for name in ("alpha", "beta", "standardise")}
    case.check_method_of_logits("rld", temperature=hyper["T"], top_temperature=hyper["Ta"], **params)
    s, t = detached(case)
    s, t = (standardised(s), standardised(t)) if hyper["standardise"] else (s, t)
    scd, mcd = scd_loss(s, t, labels, hyper["Ta"]), mcd_loss(s, t, labels, hyper["T"])
    case.check_all({"scd": scd.mean(), "mcd": mcd.mean(), "masked": masked(t, labels).to(s.dtype)})
    case.check_per_image(hyper["alpha"] * scd + hyper["beta"] * mcd)


@newer("wsld")
def test_wsld(case: Case) -> None:
    hyper = case.hyper
    assert hyper["ratio_eps"] == RATIO_EPS
    case.check_method_of_logits("wsld", hyper["alpha"], temperature=hyper["T"])
    s, t = detached(case)
    weights = wsld_weights(s, t, case.batch.labels)
    case.check_per_image(hyper["T"] ** 2 * weights * soft_cross_entropy(s, t, hyper["T"]))


@newer("ikl", "gkl")
def test_ikl_and_gkl(case: Case) -> None:
    if case.data["kind"] == "values":
        check_prior(case)
        return
    hyper, row = case.hyper, case.entry.kind
    names = ("alpha", "beta", "class_prior", *(["gamma"] if row == "gkl" else []))
    params = {"temperature": hyper["T"], "weight_temperature": hyper["T2"]} | {name: hyper[name] for name in names}
    start = case.start

    def start_with_prior(method: Method) -> None:
        start(method)
        if "in.prior" in case:
            method.get_buffer("prior").copy_(case.array("in.prior"))

    case.start = start_with_prior  # type: ignore[method-assign]
    method: Any = case.check_method_of_logits(row, **params)
    s, t = detached(case)
    weights = method.prior[case.batch.labels] if hyper["class_prior"] else method._probabilities(t)
    case.check_all({"wmse": method.squares(s, t, weights), "sce": soft_cross_entropy(s, t, hyper["T"]).mean()})


def check_prior(case: Case) -> None:
    """Counted batch by batch, and used from the next epoch on."""
    count, hyper = case.hyper["num_classes"], case.hyper
    shapes = Outputs(torch.zeros(1, count, dtype=case.dtype))
    params = {"class_prior": True, "weight_temperature": hyper["T2"]}
    method: Any = built("ikl", shapes, shapes, dtype=case.dtype, **params).train()
    assert isinstance(method, IKL)
    assert torch.equal(method.prior, torch.full((count, count), 1 / count).to(case.dtype))  # 1 / C as float32 has it
    method.prior.fill_(1 / count)
    case.check("out.prior_first_epoch", method.prior)
    for number in range(hyper["batches"]):
        teacher = Outputs(case.array(f"in.batch{number}.logit_t"))
        method.loss("ikl", teacher, teacher, batch(case.array(f"in.batch{number}.labels")))
    method.end_epoch()
    case.check("out.prior_next_epoch", method.prior)
    before = method.prior.clone()
    method.end_epoch()  # an epoch without images keeps what is known
    assert torch.equal(method.prior, before)
