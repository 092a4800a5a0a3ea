"""Channel Distillation, in value and gradient, through the methods that a run trains."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdtable.methods.base import Method
from kdtable.methods.cd import cd_loss, gkd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from tests.golden_arrays import Slashed
from tests.methods.golden_sets import batch, built, check_kd, logits_only, objective, slashed, unlabelled

cd = partial(slashed, "cd")

#: Our terms for the released code's families of losses.
FAMILIES = {"ce_family": "ce", "kd_family": "kd", "kdv2_family": "gkd", "fd_family": "cd"}


def schedule(data: str, decay: str, family: str, factor: float, epochs: int) -> Schedule:
    """How the weight of a family changes over so many epochs: the fact sheet's table. "lrdv2" is EDT."""
    on_cifar = data.startswith("cifar")
    if on_cifar and decay == "lrdv1":
        return Schedule()
    steps = (60, 160) if on_cifar else tuple(range(30, epochs + 1, 30))
    off = 0 if decay == "lrdv1" or family == "fd_family" else steps[0] if on_cifar else 30
    return Schedule(off_until=off, steps=steps, factor=factor)


def with_maps(maps: list[Tensor]) -> Outputs:
    return Outputs(torch.zeros(len(maps[0]), 2), stages=tuple(maps))


def maps(case: Slashed) -> tuple[list[Tensor], list[Tensor]]:
    """The student's, behind their connectors, and the teacher's."""
    return [case.leaf(f"s{i}") for i in range(case.count("s"))], [case.given(f"t{i}") for i in range(case.count("t"))]


def connected(method: Method) -> Method:
    """The method without connectors: the cases begin behind them."""
    method.connectors = nn.ModuleList(nn.Identity() for _ in method.connectors)
    return method


@cd("cd_loss")
def test_cd(case: Slashed) -> None:
    s, t = maps(case)
    student, teacher = with_maps(s), with_maps(t)
    loss = connected(built("cd", student, teacher)).loss("cd", student, teacher, unlabelled(len(s[0])))
    loss.backward()
    case.check("loss", loss)
    case.check("per_stage", torch.stack([cd_loss([a], [b]) for a, b in zip(s, t, strict=True)]))
    for i, x in enumerate(s):
        case.check(f"grad_s{i}", x.grad)


@cd("cd_connector")
def test_connector(case: Slashed) -> None:
    x = case.leaf("x")
    student, teacher = with_maps([x]), with_maps([case.given("t")])
    method: Any = built("cd", student, teacher)
    (connector,) = method.connectors
    connector.bn.eps, connector.bn.momentum = case.hyper["bn_eps"], case.hyper["bn_momentum"]
    state = {name.replace("_", ".", 1): value for name, value in case.par("").items()}
    state |= {"bn.num_batches_tracked": torch.tensor(0)}
    connector.load_state_dict(state)
    case.check("y_eval", connector.eval()(x))
    loss = method.train().loss("cd", student, teacher, unlabelled(len(x)))
    loss.backward()
    case.check("loss_train", loss)
    case.check("grad_x", x.grad)
    for name, parameter in connector.named_parameters():
        case.check(f"grad_{name.replace('.', '_')}", parameter.grad)
    case.check("running_mean_after", connector.bn.running_mean)
    case.check("running_var_after", connector.bn.running_var)
    connector.load_state_dict(state)
    case.check("y_train", connector(x))


@cd("kd")
def test_kd(case: Slashed) -> None:
    check_kd(case)


def guided(case: Slashed) -> tuple[Tensor, Tensor]:
    """The guided term, and its gradient."""
    student, teacher = logits_only(case)
    labels, temperature = case.given("labels"), case.hyper["T"]
    method = built("cd+gkd", student, teacher, {"gkd": 1.0}, gkd_temperature=temperature)
    loss = method.loss("gkd", student, teacher, batch(labels))
    loss.backward()
    assert torch.equal(loss, gkd_loss(student.logits, teacher.logits, labels, temperature))
    assert student.logits.grad is not None
    return loss, student.logits.grad


@cd("gkd")
def test_gkd(case: Slashed) -> None:
    loss, gradient = guided(case)
    right = case.given("t_logits").argmax(dim=1) == case.given("labels")
    case.check("loss", loss)
    case.check("grad_s_logits", gradient)
    case.check("mask", right)
    case.check("count", right.sum())


@cd("gkd_degenerate")
def test_gkd_where_the_reference_is_no_target(case: Slashed) -> None:
    """With no sample that the teacher gets right the loss is 0; a probability of 0 adds nothing."""
    loss, gradient = guided(case)
    assert gradient.isfinite().all()
    if case.hyper.get("reference_is_nan"):
        assert case.out("loss_reference").isnan()
        assert loss == 0
        assert not gradient.any()
    else:
        case.check("loss_clean_kl", loss)
    case.leave("loss_reference")


def weights(case: Slashed, decay: str, terms: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """What ``built`` is told of weights and schedules; terms are given as base weight and factor by family."""
    data, last = case.hyper["dataset"], int(case.given("epoch").max())
    return {
        "terms": {FAMILIES[family]: alpha for family, (alpha, _) in terms.items()},
        "schedules": {
            FAMILIES[family]: schedule(data, decay, family, factor, last) for family, (_, factor) in terms.items()
        },
    }


@cd("edt")
def test_decay_of_weights(case: Slashed) -> None:
    alpha, factor = case.hyper["alpha"], case.hyper["factor"]
    shapes = with_maps([torch.zeros(1, 2, 4, 4)])
    for decay in {name.partition("__")[0] for name in case.outs()}:
        given = weights(case, decay, {family: (alpha[family], factor[family]) for family in alpha})
        method = built("cd+gkd+edt", shapes, shapes, **given)
        for family, term in zip(alpha, method.main_stage().terms, strict=True):
            case.check(f"{decay}__{family}", [term.weight_at(epoch) for epoch in case.given("epoch").tolist()])


def gradient(leaf: Tensor) -> Tensor:
    """Of zeros where no term reads the leaf."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


@cd("cd_total")
def test_objective(case: Slashed) -> None:
    families = {loss["family"]: (loss["alpha"], loss["factor"]) for loss in case.hyper["loss_list"]}
    given = weights(case, case.hyper["decay"], families)
    temperatures = {"kd_temperature": case.hyper["T"], "gkd_temperature": case.hyper["T"]}
    images, found = batch(case.given("labels")), []
    for epoch in case.given("epoch").tolist():
        s, t = maps(case)
        logits = case.leaf("s_logits")
        student, teacher = Outputs(logits, stages=tuple(s)), Outputs(case.given("t_logits"), stages=tuple(t))
        method = connected(built("cd+gkd+edt", student, teacher, **given, **temperatures))
        total = objective(method, student, teacher, images, epoch)
        total.backward()
        leaves = {"s_logits": logits, **{f"s{i}": x for i, x in enumerate(s)}}
        found.append({"total": total, **{f"grad_{name}": gradient(leaf) for name, leaf in leaves.items()}})
    for name in case.outs("total") + case.outs("grad_"):
        case.check(name, torch.stack([one[name] for one in found]))
    for term in set(FAMILIES.values()) & set(case.outs()):
        case.check(term, method.loss(term, student, teacher, images))


@cd("lr_schedule")
def test_learning_rates(case: Slashed) -> None:
    hyper, epochs = case.hyper, case.given("epoch").tolist()
    recipe = Recipe(max(epochs), 128, hyper["base"], tuple(hyper["milestones"]), hyper["gamma"])
    case.check("lr", [recipe.lr_at(epoch) for epoch in epochs])
