"""Channel Distillation, in value and gradient, through the methods that a run trains."""

import torch
from torch import Tensor, nn

from kdtable.methods.base import Method
from kdtable.methods.cd import cd_loss, gkd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import CONSTANT, Schedule
from tests.methods.golden_sets import Case, batch, built, by_kind, check_kd, kinds, logits_only, objective

#: The released weights' schedules by data set and decay; "lrdv2" is EDT.
SCHEDULES = {
    ("imagenet", "lrdv1"): {"cd": Schedule(steps=(30, 60, 90), factor=0.9)},
    ("imagenet", "lrdv2"): {
        "ce": Schedule(off_until=30),
        "gkd": Schedule(off_until=30),
        "cd": Schedule(steps=(30, 60, 90), factor=0.9),
    },
    ("cifar", "lrdv1"): {},
    ("cifar", "lrdv2"): {
        "ce": Schedule(off_until=60),
        "gkd": Schedule(off_until=60),
        "cd": Schedule(steps=(60, 160), factor=0.9),
    },
}
FAMILIES = {"ce": "ce_family", "gkd": "kdv2_family", "cd": "fd_family"}


def with_maps(logits: Tensor, maps: list[Tensor]) -> Outputs:
    return Outputs(logits, stages=tuple(maps))


def maps(case: Case, *, leaves: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """The student's, behind their connectors, and the teacher's."""
    places = range(4)
    student = [case.leaf(f"s{i}") if leaves else case.given(f"s{i}") for i in places]
    return student, [case.given(f"t{i}") for i in places]


def connected(method: Method) -> Method:
    """The method without connectors: the cases begin behind them."""
    method.connectors = nn.ModuleList(nn.Identity() for _ in range(4))
    return method


@by_kind("cd", "cd_loss")
def test_cd(case: Case) -> None:
    s, t = maps(case, leaves=True)
    student, teacher = (with_maps(torch.zeros(4, 3), taps) for taps in (s, t))
    loss = connected(built("cd", student, teacher)).loss("cd", student, teacher, batch(torch.zeros(4)))
    loss.backward()
    case.check("loss", loss)
    case.check("per_stage", torch.stack([cd_loss([a], [b]) for a, b in zip(s, t, strict=True)]))
    for i, x in enumerate(s):
        case.check(f"grad_s{i}", x.grad)


@by_kind("cd", "cd_connector")
def test_connector(case: Case) -> None:
    x = case.leaf("x")
    student, teacher = with_maps(torch.zeros(4, 3), [x]), with_maps(torch.zeros(4, 3), [case.given("t")])
    method = built("cd", student, teacher)
    (connector,) = method.connectors
    state = {name.replace("conv_", "conv.").replace("bn_", "bn."): value for name, value in case.par("").items()}
    connector.load_state_dict(state | {"bn.num_batches_tracked": torch.tensor(0)})
    case.check("y_eval", connector.eval()(x))
    method.train()
    loss = method.loss("cd", student, teacher, batch(torch.zeros(4)))
    loss.backward()
    case.check("loss_train", loss)
    case.check("grad_x", x.grad)
    for name, parameter in connector.named_parameters():
        case.check(f"grad_{name.replace('.', '_')}", parameter.grad)
    case.check("running_mean_after", connector.bn.running_mean)
    case.check("running_var_after", connector.bn.running_var)
    connector.load_state_dict(state | {"bn.num_batches_tracked": torch.tensor(0)})
    case.check("y_train", connector(x))


@by_kind("cd", "kd")
def test_kd(case: Case) -> None:
    check_kd(case)


@by_kind("cd", "gkd", "gkd_degenerate")
def test_gkd(case: Case) -> None:
    student, teacher = logits_only(case)
    labels, temperature = case.given("labels"), case.hyper["T"]
    method = built("cd+gkd", student, teacher, {"gkd": 1.0}, gkd_temperature=temperature)
    loss = method.loss("gkd", student, teacher, batch(labels))
    loss.backward()
    assert torch.equal(loss, gkd_loss(student.logits, teacher.logits, labels, temperature))
    if case.name == "gkd_none_correct":
        assert case.out("loss_reference").isnan()
        assert loss == 0
        assert not student.logits.grad.any()
    elif case.name == "gkd_underflow":
        case.check("loss_clean_kl", loss)
    else:
        case.check("loss", loss)
        case.check("grad_s_logits", student.logits.grad)
        assert torch.equal((teacher.logits.argmax(dim=1) == labels).long(), case.out("mask"))


@by_kind("cd", "edt")
def test_decay_of_weights(case: Case) -> None:
    for decay in ("lrdv1", "lrdv2"):
        schedules = SCHEDULES[case.hyper["dataset"], decay]
        for term, family in FAMILIES.items():
            alpha, schedule = case.hyper["alpha"][family], schedules.get(term, CONSTANT)
            case.check(f"{decay}__{family}", [alpha * schedule.at(epoch) for epoch in case.given("epoch").tolist()])


@by_kind("cd", "cd_total")
def test_objective(case: Case) -> None:
    terms = {
        name: loss["alpha"]
        for loss in case.hyper["loss_list"]
        for name, family in FAMILIES.items()
        if family == loss["family"]
    }
    schedules = SCHEDULES[case.hyper["dataset"], case.hyper["decay"]]
    labels = case.given("labels")
    for i, epoch in enumerate(case.given("epoch").tolist()):
        s, t = maps(case, leaves=True)
        logits = case.leaf("s_logits")
        student, teacher = with_maps(logits, s), with_maps(case.given("t_logits"), t)
        row = built("cd+gkd+edt", student, teacher, terms, schedules=schedules, gkd_temperature=case.hyper["T"])
        method = connected(row)
        total = objective(method, student, teacher, labels, epoch)
        total.backward()
        check_at(case, i, {"total": total, "grad_s_logits": logits.grad, "grad_s0": s[0].grad})
        for term in ("ce", "gkd", "cd"):
            case.check(term, method.loss(term, student, teacher, batch(labels)))


def check_at(case: Case, place: int, found: dict[str, Tensor | None]) -> None:
    for name, value in found.items():
        assert value is not None
        torch.testing.assert_close(value.detach(), case.out(name)[place], rtol=case.rtol, atol=case.rtol)


@by_kind("cd", "lr_schedule")
def test_learning_rates(case: Case) -> None:
    hyper = case.hyper
    recipe = Recipe(len(case.given("epoch")), 128, hyper["base"], tuple(hyper["milestones"]), hyper["gamma"])
    case.check("lr", [recipe.lr_at(epoch) for epoch in case.given("epoch").tolist()])


def test_every_case_is_tested() -> None:
    here = {"cd_loss", "cd_connector", "kd", "gkd", "gkd_degenerate", "edt", "cd_total", "lr_schedule"}
    assert kinds("cd") == here
