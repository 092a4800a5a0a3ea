"""ReviewKD, CE+L2 and PAD-L2, in value and gradient, through the methods that a run trains."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.methods.base import Term
from kdtable.methods.cse_l2 import l2_loss
from kdtable.methods.pad_l2 import pad_loss
from kdtable.methods.parts.abf import ABF
from kdtable.methods.reviewkd import MOST_CHANNELS, hcl_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from tests.golden_arrays import Slashed, constants
from tests.methods.golden_sets import batch, built, check_kd, objective, slashed, unlabelled

reviewkd = partial(slashed, "reviewkd")

#: Our names for the golden ones.
PARTS = {"conv1_0": "conv1", "conv1_1": "bn1", "conv2_0": "conv2", "conv2_1": "bn2", "att_conv_0": "attention"}


def load(fusion: ABF, parameters: dict[str, Tensor], hyper: dict[str, Any]) -> None:
    """Give a fusion the golden parameters and statistics, and its batch norms their numbers where the case has any."""
    for norm in (fusion.bn1, fusion.bn2):
        norm.eps, norm.momentum = hyper.get("bn_eps", norm.eps), hyper.get("bn_momentum", norm.momentum)
    counts = {f"{bn}.num_batches_tracked": torch.tensor(0) for bn in ("bn1", "bn2")}
    fusion.load_state_dict(counts | {ours(name): value for name, value in parameters.items()})


def ours(name: str) -> str:
    part = next(part for part in PARTS if name.startswith(f"{part}_"))
    return f"{PARTS[part]}.{name.removeprefix(f'{part}_')}"


def check_parameters(case: Slashed, fusion: ABF, prefix: str = "") -> None:
    """Their gradients, and batch-norm statistics, where the case has them."""
    gradients = {name: parameter.grad for name, parameter in fusion.named_parameters()}
    statistics = dict(fusion.named_buffers())
    for start, found in ((f"grad_{prefix}", gradients), (f"after_{prefix}", statistics)):
        names = [name for name in case.outs(start) if name.removeprefix(start).startswith(tuple(PARTS))]
        for name in names:
            case.check(name, found[ours(name.removeprefix(start))])


@reviewkd("hcl")
def test_hcl(case: Slashed) -> None:
    s, t = ([make(f"{who}{i}") for i in range(case.count(who))] for who, make in (("s", case.leaf), ("t", case.given)))
    with constants(hcl_loss, LEVELS=tuple(case.hyper["pool_sizes"])):
        loss = hcl_loss(s, t)
        case.check("per_level", torch.stack([hcl_loss([a], [b]) for a, b in zip(s, t, strict=True)]))
    loss.backward()
    case.check("loss", loss)
    for i, x in enumerate(s):
        case.check(f"grad_s{i}", x.grad)


def size_of(shape: int | list[int]) -> tuple[int, int]:
    height, width = (shape, shape) if isinstance(shape, int) else shape
    return height, width


@reviewkd("abf")
def test_fusion(case: Slashed) -> None:
    hyper, x = case.hyper, case.leaf("x")
    fusion = ABF(hyper["in"], hyper["mid"], hyper["out"], size_of(hyper["out_shape"]), fuse=hyper["fuse"]).double()
    load(fusion, case.par(""), hyper)
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
    check_parameters(case, fusion)


@reviewkd("reviewkd_chain")
def test_chain(case: Slashed) -> None:
    """The golden taps are counted from 1, the deepest one is the embedding."""
    count = case.count("s", start=1)
    s, t = ([make(f"{who}{i + 1}") for i in range(count)] for who, make in (("s", case.leaf), ("t", case.given)))
    student, teacher = ends_in_embedding(s), ends_in_embedding(t)
    method = chained(case, student, teacher, case.hyper["mid"])
    for i, fused in enumerate(method.eval().fused(s), start=1):
        if f"out{i}_eval" in case.outs():
            case.check(f"out{i}_eval", fused)
    for i, fused in enumerate(method.train().fused(s), start=1):
        case.check(f"out{i}_train", fused)
    method = chained(case, student, teacher, case.hyper["mid"]).train()
    loss = method.loss("reviewkd", student, teacher, unlabelled(len(s[0])))
    loss.backward()
    case.check("loss", loss)
    for i, x in enumerate(s, start=1):
        case.check(f"grad_s{i}", x.grad)
    for j, fusion in enumerate(deepest_first(method)):
        check_parameters(case, fusion, f"abfs_{j}_")
    if case.hyper["mid"] == min(MOST_CHANNELS, s[-1].shape[1]):  # by the rule, too
        by_rule = chained(case, student, teacher, 0).train()
        assert torch.equal(by_rule.loss("reviewkd", student, teacher, unlabelled(len(s[0]))), loss)


def ends_in_embedding(taps: list[Tensor]) -> Outputs:
    """A network with these taps before and after the activation."""
    assert taps[-1].shape[2:] == (1, 1), "the deepest tap is a pooled one"
    maps = tuple(taps[:-1])
    return Outputs(torch.zeros(len(taps[0]), 2), preacts=maps, stages=maps, embedding=taps[-1].flatten(1))


def chained(case: Slashed, student: Outputs, teacher: Outputs, mid: int) -> Any:
    """The method with the golden fusions, which begin at the deepest tap."""
    method = built("reviewkd", student, teacher, mid=mid)
    for j, fusion in enumerate(deepest_first(method)):
        load(fusion, case.par(f"abfs_{j}_"), case.hyper)
    return method


def deepest_first(method: Any) -> list[ABF]:
    return list(method.fusions)[::-1]


@reviewkd("schedule")
def test_warm_up_of_the_weight(case: Slashed) -> None:
    for name in case.outs("w_"):
        weight = min(case.hyper["weights"], key=lambda weight: abs(weight - float(name.removeprefix("w_"))))
        term = Term("reviewkd", weight, Schedule(ramp=case.hyper["warmup_epochs"]))
        case.check(name, [term.weight_at(epoch + 1) for epoch in case.given("epoch").tolist()])


@reviewkd("lr_schedule")
def test_learning_rates(case: Slashed) -> None:
    """On ImageNet the rate goes by the global batch; on CIFAR a drop comes after the epoch that is listed, from 0."""
    hyper, epochs = case.hyper, case.given("epoch").tolist()
    by_batch = "global_batch" in hyper
    milestones = tuple(step if by_batch else step + 1 for step in hyper["steps"])
    for name in case.outs("lr"):
        base = 0.1 * hyper["global_batch"] / 256 if by_batch else float(name.removeprefix("lr_base_"))
        recipe = Recipe(max(epochs) + 1, 128, base, milestones, hyper["gamma"])
        case.check(name, [recipe.lr_at(epoch + 1) for epoch in epochs])


@reviewkd("kd")
def test_kl_option(case: Slashed) -> None:
    check_kd(case)


def embedded(case: Slashed) -> tuple[Outputs, Outputs, Tensor]:
    """Both networks' outputs behind their pooling, and the student's last map."""
    s = case.leaf("s_embed")
    s_embed, t_embed = (x.mean(dim=(2, 3)) for x in (s, case.given("t_embed")))
    logits = F.linear(s_embed, *(case.par("fc_")[name] for name in ("weight", "bias")))
    return Outputs(logits, embedding=s_embed), Outputs(logits.detach(), embedding=t_embed), s


@reviewkd("ce_l2")
def test_l2(case: Slashed) -> None:
    student, teacher, s = embedded(case)
    method = built("cse-l2", student, teacher, {"ce": case.hyper["w_ce"], "l2": case.hyper["w_l2"]})
    images = batch(case.given("labels"))
    loss = objective(method, student, teacher, images)
    loss.backward()
    case.check("loss", loss)
    case.check("grad_s_embed", s.grad)
    case.check("ce", method.loss("ce", student, teacher, images))
    case.check("l2", l2_loss(student.embedding, teacher.embedding))


@reviewkd("pad_l2")
def test_pad(case: Slashed) -> None:
    student, teacher, s = embedded(case)
    terms = {"ce": case.hyper["w_ce"], "pad": case.hyper["w_pad"]}
    method: Any = built("pad-l2", student, teacher, terms, stage_epochs={"l2": 3})
    load_variance(method.variance, case.par("var_"))
    images = batch(case.given("labels"))
    with constants(pad_loss, EPS=case.hyper["eps"]):
        loss = objective(method.train(), student, teacher, images)
        loss.backward()
        log_variance = method.variance(student.embedding)
        case.check("pad", pad_loss(student.embedding, teacher.embedding, log_variance))
    case.check("loss", loss)
    case.check("grad_s_embed", s.grad)
    for name, parameter in method.variance.named_parameters():
        case.check(f"grad_var_{name.replace('.', '_')}", parameter.grad)
    case.check("log_var", log_variance)
    case.check("ce", method.loss("ce", student, teacher, images))


def load_variance(variance: nn.Module, parameters: dict[str, Tensor]) -> None:
    state = {name.replace("_", ".", 1): value for name, value in parameters.items()}
    variance.load_state_dict(state | {"1.num_batches_tracked": torch.tensor(0)})
