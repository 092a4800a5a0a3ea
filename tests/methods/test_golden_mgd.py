"""Matching Guided Distillation, in value and gradient, through the methods that a run trains."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdtable.methods.parts.assignment import (
    channel_cost,
    group_channels,
    match_channels,
    optimal_mates,
    whole,
)
from kdtable.methods.parts.reducers import margins, reduced, reduced_margin
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.golden_arrays import Slashed, constants
from tests.golden_data import Root, entries
from tests.methods.golden_sets import batch, built, objective, slashed, unlabelled

mgd = partial(slashed, "mgd")


class Teacher(nn.Module):
    """A network of which only the batch norms in front of its taps are asked for."""

    def __init__(self, norms: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(len(norm["weight"])).double() for norm in norms)
        for module, norm in zip(self.norms, norms, strict=True):
            module.load_state_dict(norm, strict=False)

    def tap_norms(self) -> tuple[Any, ...]:
        return tuple(self.norms)


def with_preacts(*taps: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(taps[0]), 2), preacts=taps)


def sweep(method: Any, student: list[Tensor], teacher: list[Tensor], sizes: list[int]) -> None:
    """Show the method taps in batches of these sizes, and let it match the channels."""
    method.begin_sweep()
    for rows in slices(sizes):
        shown = [with_preacts(*(tap[rows] for tap in taps)) for taps in (student, teacher)]
        method.observe(*shown, unlabelled(rows.stop - rows.start))
    method.end_sweep()


def slices(sizes: list[int]) -> Iterator[slice]:
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


@mgd("margin")
def test_margins(case: Slashed) -> None:
    norm = case.par("bn_")
    shape = with_preacts(torch.zeros(1, len(norm["weight"]), 2, 2))
    with constants(margins, RARE=case.hyper["cut"]):
        method = built("mgd", shape, shape, network=Teacher([norm]))
    case.check("margin_float32", method.get_buffer("margin0"))


@mgd("mgd_assign")
def test_assignment(case: Slashed) -> None:
    hyper, cost = case.hyper, case.out("cost_int").numpy()
    check_optimum(case, np.tile(cost[:, : hyper["used_teacher_channels"]], (hyper["groups"], 1)))
    if case.out("gap_int") > 0:  # else there are several optima
        case.check("matched_sets", torch.from_numpy(group_channels(cost)))
    else:
        case.leave("matched_sets")
    if "cost" not in case.outs():  # features are of another precision than what was computed of them
        case.leave("cost_int")
        return
    s, t = case.given("s_feat"), case.given("t_feat")
    sizes = case.given("batch_sizes").tolist()
    costs = torch.stack([channel_cost(s[rows], t[rows]) for rows in slices(sizes)]).sum(dim=0)
    case.check("adj_sum", costs)
    case.check("num_imgs", sum(sizes))
    case.check("cost", costs / sum(sizes))
    with constants(whole, SCALE=hyper["cost_scale"]):
        case.check("cost_int", torch.from_numpy(whole((costs / sum(sizes)).numpy())))
        method = built("mgd", with_preacts(s), with_preacts(t), margins_from="default")
        sweep(method, [s], [t], sizes)
    assert case.out("gap_int") == 0 or torch.equal(method.get_buffer("groups0"), case.out("matched_sets"))


def check_optimum(case: Slashed, square: Any) -> None:
    """The least cost, how much more the next best sets cost, and the order of one optimum."""
    mates = optimal_mates(square)
    least = total(square, mates)
    case.check("optimal_cost_int", least)
    students = case.hyper["sc"]
    gaps = []
    for student, mate in {(row % students, mate) for row, mate in enumerate(mates.tolist())}:
        forbidden = square.copy()
        forbidden[student::students, mate] += least + square.max() + 1
        other = optimal_mates(forbidden)
        if total(square, other) == total(forbidden, other):
            gaps.append(total(square, other) - least)
    case.check("gap_int", min(gaps))
    if "one_valid_order" in case.outs():
        order = case.out("one_valid_order").numpy()
        case.check("one_valid_order", torch.from_numpy(order if total(square, order) == least else mates))


def total(square: Any, mates: Any) -> int:
    return int(square[np.arange(len(square)), mates].sum())


@mgd("mgd_reduce")
def test_reducers(case: Slashed) -> None:
    students, copies = case.hyper["sc"], case.hyper["groups"]
    t, margin = case.given("t_feat"), case.par("margin")[""].flatten()
    # The order names, copy by copy, the teacher channel of each student channel.
    groups = case.given("order").view(copies, students).T
    values = case.given("rd_t_draw").view(len(t), students, 1, *t.shape[2:])
    channels = case.given("rd_m_draw").view(students, 1)
    for reducer in (name.removesuffix("_partial_loss") for name in case.outs() if name.endswith("_partial_loss")):
        s = case.leaf("s_feat")
        owned = case.out("sm_index")[:, None] if reducer == "sm" else groups
        method = reducing(reducer, s, t)
        method.load_state_dict({"groups0": owned, "margin0": margin}, strict=False)
        method._draws = lambda *_: (values, channels)
        loss = method.loss("mgd", with_preacts(s), with_preacts(t), unlabelled(len(t)))
        loss.backward()
        case.check(f"{reducer}_partial_loss", loss)
        case.check(f"{reducer}_grad", s.grad)
        draws = (values, channels) if reducer == "rd" else (None, None)
        case.check(f"{reducer}_t", reduced(t, owned, reducer, draws[0]))
        case.check(f"{reducer}_m", reduced_margin(margin, owned, reducer, draws[1]))
    check_sparse_matching(case)


def reducing(reducer: str, s: Tensor, t: Tensor) -> Any:
    """The method with its channels matched and without its batch norm, which the cases have not."""
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, milestones=())
    settings = {"reducer": reducer, "margins_from": "default", "loss_factor": 1.0}
    method: Any = built("mgd", with_preacts(s), with_preacts(t), recipe=recipe, **settings)
    method.is_matched = True
    method.adaptors[0] = nn.Identity()
    return method


def check_sparse_matching(case: Slashed) -> None:
    """Of the costs of the assignment whose order the case has, where the set has it."""
    for entry in entries(Root.path / "mgd"):
        if entry.kind != "mgd_assign":
            continue
        assignment = Slashed(entry)
        order = assignment.out("one_valid_order") if "one_valid_order" in assignment.outs() else torch.empty(0)
        cost = assignment.out("cost_int").numpy()
        if torch.equal(order, case.given("order")) and cost.shape == (case.hyper["sc"], case.hyper["tc"]):
            case.check("sm_index", torch.from_numpy(match_channels(cost)))
    case.leave("sm_index")  # it was given to the reducer


@mgd("mgd_full")
def test_objective(case: Slashed) -> None:
    hyper = case.hyper
    places = range(len(hyper["s_channels"]))
    s = [case.leaf(f"s{i}") for i in places]
    student = Outputs(case.leaf("s_logits"), preacts=tuple(s))
    teacher = Outputs(case.given("t_logits"), preacts=tuple(case.given(f"t{i}") for i in places))
    method = matched(case, student, teacher)
    images = batch(case.given("labels"))
    total = objective(method.train(), student, teacher, images)
    total.backward()
    case.check("total", total)
    case.check("grad_s_logits", student.logits.grad)
    for i in method.used:
        case.check(f"grad_s{i}", s[i].grad)
        case.check(f"grad_adapt{i}_weight", method.adaptors[i].weight.grad)
        case.check(f"grad_adapt{i}_bias", method.adaptors[i].bias.grad)
        case.check(f"adapt{i}_running_mean_after", method.adaptors[i].running_mean)
        case.check(f"adapt{i}_running_var_after", method.adaptors[i].running_var)
    for i in hyper["ignore"]:
        assert all(parameter.grad is None for parameter in method.adaptors[i].parameters())
        assert s[i].grad is None
    case.check("d_loss", method.loss("mgd", student, teacher, images) * hyper["batch"] * hyper["loss_factor"])
    case.check("ce", method.loss("ce", student, teacher, images))
    if hyper["with_kd"]:
        case.check("kd", method.loss("kd", student, teacher, images))
    parts = [method._partial(i, s[i], teacher.preacts[i]) if i in method.used else torch.zeros(()) for i in places]
    case.check("per_stage_partial_loss", torch.stack(parts))
    assert hyper["stage_divisor"] == [2 ** (len(places) - 1 - i) for i in places]


def matched(case: Slashed, student: Outputs, teacher: Outputs) -> Any:
    """The case's method with its channels matched by the features that the case shows it, and the golden adaptors."""
    hyper, places = case.hyper, range(len(student.preacts))
    method: Any = built(
        "mgd",
        student,
        teacher,
        {"ce": 1.0, **({"kd": 1.0} if hyper["with_kd"] else {}), "mgd": 1.0},
        recipe=Recipe(epochs=1, batch_size=hyper["batch"], lr=0.1, milestones=()),
        network=Teacher([case.par(f"teacher_bn{i}_") for i in places]),
        reducer=hyper["reducer"],
        ignore=",".join(map(str, hyper["ignore"])),
        loss_factor=hyper["loss_factor"],
        kd_temperature=hyper["T"],
    )
    shown = ([case.given(f"track_{who}{i}") for i in places] for who in "st")
    sweep(method, *shown, case.given("track_batch_sizes").tolist())
    for i in method.used:
        check_matching(case, method, i)
    for i, adaptor in enumerate(method.adaptors):
        adaptor.load_state_dict(case.par(f"adapt{i}_") | {"num_batches_tracked": torch.tensor(0)})
    return method


def check_matching(case: Slashed, method: Any, stage: int) -> None:
    """Of one stage: the channels that are owned, and the margins, which the reference has in float32."""
    groups, margin = method.get_buffer(f"groups{stage}"), method.get_buffer(f"margin{stage}")
    students, owned = groups.shape
    case.check(f"matched_sets{stage}", groups)
    sets = case.out(f"order{stage}")[: owned * students].view(owned, students).T.sort(dim=1).values
    assert torch.equal(sets, groups), f"{case.entry}: order{stage} is of other sets"
    case.leave(f"order{stage}")  # within a set it is of no meaning
    golden = case.par(f"margin{stage}")[""].flatten()
    torch.testing.assert_close(margin, golden, rtol=2e-6, atol=0)
    margin.copy_(golden)


def sweeping(**params: Any) -> Any:
    shape = with_preacts(torch.zeros(1, 2, 3, 3))
    return built("mgd", shape, shape, margins_from="default", **params)


def due(method: Any, epochs: int) -> list[int]:
    """After which epochs, from 0, the channels are matched anew; the one before the first is -1."""
    stage = method.main_stage()
    return [epoch - 2 for epoch in range(1, epochs + 1) if method.sweep_before(stage, epoch) is not None]


@mgd("lr_schedule")
def test_learning_rates_and_updates(case: Slashed) -> None:
    """The base rate and how often channels are matched are in the series alone."""
    epochs, rates, hyper = case.given("epoch").tolist(), case.out("lr").tolist(), case.hyper
    warmup = hyper.get("warmup_epochs", 0)
    milestones = tuple(hyper.get("milestones_after_shift", hyper.get("milestones")))
    recipe = Recipe(max(epochs) + 1, 256, max(rates), milestones, hyper.get("gamma", 0.1), warmup_epochs=warmup)
    case.check("lr", [recipe.lr_at(epoch + 1) for epoch in epochs])
    updates = case.out("update_after_epoch").tolist()
    every = updates[0] + 1 if updates else recipe.epochs + 1
    # The last update may come after all training; ours would come before an epoch that is never trained.
    assert due(sweeping(update_every=every), recipe.epochs + 1) == [-1, *updates]
    case.leave("update_after_epoch")


@mgd("schedule")
def test_updates_by_a_list(case: Slashed) -> None:
    after = case.out("update_after_epoch_1based").tolist()
    found = due(sweeping(update_after=",".join(map(str, after))), max(after) + 10)
    assert found[0] == -1
    case.check("update_after_epoch_1based", torch.tensor([epoch + 1 for epoch in found[1:]]))
