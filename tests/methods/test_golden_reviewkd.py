"""ReviewKD, CE+L2 and PAD-L2, in value and gradient, through the methods that a run trains."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtable.methods.base import Term
from kdtable.methods.cse_l2 import l2_loss
from kdtable.methods.pad_l2 import pad_loss
from kdtable.methods.parts.abf import ABF
from kdtable.methods.reviewkd import hcl_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from tests.methods.golden_sets import Case, batch, built, by_kind, check_kd, kinds, objective

#: Our names for the golden ones.
PARTS = {"conv1_0": "conv1", "conv1_1": "bn1", "conv2_0": "conv2", "conv2_1": "bn2", "att_conv_0": "attention"}


def load(fusion: ABF, parameters: dict[str, Tensor]) -> None:
    counts = {f"{bn}.num_batches_tracked": torch.tensor(0) for bn in ("bn1", "bn2")}
    fusion.load_state_dict(counts | {ours(name): value for name, value in parameters.items()})


def ours(name: str) -> str:
    part = next(part for part in PARTS if name.startswith(f"{part}_"))
    return f"{PARTS[part]}.{name.removeprefix(f'{part}_')}"


def check_gradients(case: Case, fusion: ABF, prefix: str = "") -> None:
    gradients = {name: p.grad for name, p in fusion.named_parameters()}
    names = [name for name in case.arrays if name.startswith(f"out/grad_{prefix}") and not name.endswith(("_x", "_y"))]
    assert len(names) == len(gradients)
    for name in names:
        case.check(name.removeprefix("out/"), gradients[ours(name.removeprefix(f"out/grad_{prefix}"))])


@by_kind("reviewkd", "hcl")
def test_hcl(case: Case) -> None:
    places = range(len(case.hyper["heights"]))
    s, t = [case.leaf(f"s{i}") for i in places], [case.given(f"t{i}") for i in places]
    loss = hcl_loss(s, t)
    loss.backward()
    case.check("loss", loss)
    case.check("per_level", torch.stack([hcl_loss([a], [b]) for a, b in zip(s, t, strict=True)]))
    for i, x in enumerate(s):
        case.check(f"grad_s{i}", x.grad)


@by_kind("reviewkd", "abf")
def test_fusion(case: Case) -> None:
    hyper, x = case.hyper, case.leaf("x")
    size = (hyper["out_shape"],) * 2
    fusion = ABF(hyper["in"], hyper["mid"], hyper["out"], size, fuse=hyper["fuse"]).double()
    load(fusion, case.par(""))
    deeper = case.leaf("y") if hyper["fuse"] else None
    out, residual = fusion.eval()(x, deeper)
    case.check("out_eval", out)
    case.check("res_eval", residual)
    out, residual = fusion.train()(x, deeper)
    ((out * case.given("w_out")).sum() + (residual * case.given("w_res")).sum()).backward()
    case.check("out_train", out)
    case.check("res_train", residual)
    case.check("grad_x", x.grad)
    if deeper is not None:
        case.check("grad_y", deeper.grad)
    check_gradients(case, fusion)
    for name, value in fusion.named_buffers():
        if "running" in name:
            bn, statistic = name.split(".")
            case.check(f"after_conv{bn[-1]}_1_{statistic}", value)


@by_kind("reviewkd", "reviewkd_chain")
def test_chain(case: Case) -> None:
    count = len(case.hyper["in_channels"])
    s, t = ([make(f"{who}{i}") for i in range(1, count + 1)] for who, make in (("s", case.leaf), ("t", case.given)))
    student = Outputs(torch.zeros(3, 5), stages=tuple(s[:-1]), embedding=s[-1].flatten(1))
    teacher = Outputs(
        torch.zeros(3, 5), preacts=tuple(t[:-1]), stages=(t[0],) * (count - 1), embedding=t[-1].flatten(1)
    )
    mid = 0 if case.name == "chain_cifar" else case.hyper["mid"]
    method: Any = built("reviewkd", student, teacher, mid=mid)
    assert method.fusions[0].bn1.num_features == case.hyper["mid"]
    fusions = list(method.fusions)[::-1]  # the golden ones begin at the deepest
    for j, fusion in enumerate(fusions):
        load(fusion, case.par(f"abfs_{j}_"))
    if "out/out1_eval" in case.arrays:
        for i, fused in enumerate(method.eval().fused(s), start=1):
            case.check(f"out{i}_eval", fused)
    method.train()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    for i, fused in enumerate(method.fused(s), start=1):
        case.check(f"out{i}_train", fused)
    method.load_state_dict(state)
    loss = method.loss("reviewkd", student, teacher, batch(torch.zeros(3)))
    loss.backward()
    case.check("loss", loss)
    for i, x in enumerate(s, start=1):
        case.check(f"grad_s{i}", x.grad)
    if "out/grad_abfs_0_conv1_0_weight" in case.arrays:
        for j, fusion in enumerate(fusions):
            check_gradients(case, fusion, f"abfs_{j}_")


@by_kind("reviewkd", "schedule")
def test_warm_up_of_the_weight(case: Case) -> None:
    schedule = Schedule(ramp=case.hyper["warmup_epochs"])
    for weight in case.hyper["weights"]:
        term = Term("reviewkd", weight, schedule)
        case.check(f"w_{weight:g}", [term.weight_at(epoch + 1) for epoch in case.given("epoch").tolist()])


@by_kind("reviewkd", "lr_schedule")
def test_learning_rates(case: Case) -> None:
    epochs, steps = case.given("epoch").tolist(), case.hyper["steps"]
    late = 1 if case.name == "lr_cifar" else 0  # the drop listed as 150 comes after that epoch, counted from 0
    milestones = tuple(step + late for step in steps)
    for name in (name for name in case.arrays if name.startswith("out/lr")):
        lr = float(name.split("_")[-1]) if "base" in name else 0.1
        recipe = Recipe(len(epochs), 128, lr, milestones, case.hyper["gamma"])
        case.check(name.removeprefix("out/"), [recipe.lr_at(epoch + 1) for epoch in epochs])


@by_kind("reviewkd", "kd")
def test_kl_option(case: Case) -> None:
    check_kd(case)


def embedded(case: Case) -> tuple[Outputs, Outputs, Tensor]:
    """Both networks' outputs behind their pooling, and the student's pooled map."""
    s = case.leaf("s_embed")
    logits = F.linear(s.flatten(1), *(case.par("fc_")[name] for name in ("weight", "bias")))
    return (
        Outputs(logits, embedding=s.flatten(1)),
        Outputs(logits.detach(), embedding=case.given("t_embed").flatten(1)),
        s,
    )


@by_kind("reviewkd", "ce_l2")
def test_l2(case: Case) -> None:
    student, teacher, s = embedded(case)
    method = built("cse-l2", student, teacher, {"ce": case.hyper["w_ce"], "l2": case.hyper["w_l2"]})
    labels = case.given("labels")
    loss = objective(method, student, teacher, labels)
    loss.backward()
    case.check("loss", loss)
    case.check("grad_s_embed", s.grad)
    case.check("ce", method.loss("ce", student, teacher, batch(labels)))
    case.check("l2", l2_loss(student.embedding, teacher.embedding))


@by_kind("reviewkd", "pad_l2")
def test_pad(case: Case) -> None:
    student, teacher, s = embedded(case)
    terms = {"ce": case.hyper["w_ce"], "pad": case.hyper["w_pad"]}
    method: Any = built("pad-l2", student, teacher, terms, stage_epochs={"l2": 3})
    state = {f"{name[0]}.{name[2:]}": value for name, value in case.par("var_").items()}
    method.variance.load_state_dict(state | {"1.num_batches_tracked": torch.tensor(0)})
    labels = case.given("labels")
    loss = objective(method.train(), student, teacher, labels)
    loss.backward()
    case.check("loss", loss)
    case.check("grad_s_embed", s.grad)
    for name, parameter in method.variance.named_parameters():
        case.check(f"grad_var_{name.replace('.', '_')}", parameter.grad)
    log_variance = method.variance(student.embedding)
    case.check("log_var", log_variance)
    case.check("pad", pad_loss(student.embedding, teacher.embedding, log_variance))
    case.check("ce", method.loss("ce", student, teacher, batch(labels)))


def test_every_case_is_tested() -> None:
    here = {"hcl", "abf", "reviewkd_chain", "schedule", "lr_schedule", "kd", "ce_l2", "pad_l2"}
    assert kinds("reviewkd") == here
