"""Matching Guided Distillation, in value and gradient, through the methods that a run trains."""

from dataclasses import replace
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
from kdtable.methods.parts.reducers import (
    REDUCERS,
    margins,
    reduced,
    reduced_margin,
)
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_sets import Case, batch, built, by_kind, entries, kinds, objective


class Teacher(nn.Module):
    """A network of which only the batch norms in front of its taps are asked for."""

    def __init__(self, norms: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(len(norm["weight"])).double() for norm in norms)
        for module, norm in zip(self.norms, norms, strict=True):
            module.load_state_dict(norm, strict=False)

    def tap_norms(self) -> tuple[Any, ...]:
        return tuple(self.norms)


def outputs(case: Case, who: str, count: int, prefix: str = "", rows: slice = slice(None)) -> Outputs:
    taps = tuple(case.given(f"{prefix}{who}{i}")[rows] for i in range(count))
    return Outputs(torch.zeros(len(taps[0]), 3), preacts=taps)


@by_kind("mgd", "margin")
def test_margins(case: Case) -> None:
    norm = case.par("bn_")
    case.check("margin_float32", margins(norm["weight"], norm["bias"]))


@by_kind("mgd", "mgd_assign")
def test_assignment(case: Case) -> None:
    hyper, cost = case.hyper, case.out("cost_int").numpy()
    copies, used = hyper["groups"], hyper["used_teacher_channels"]
    square = np.tile(cost[:, :used], (copies, 1))
    assert square[np.arange(used), optimal_mates(square)].sum() == case.out("optimal_cost_int")
    assert torch.equal(torch.from_numpy(group_channels(cost)), case.out("matched_sets"))
    if "out/cost" not in case.arrays:  # features are float32
        return
    s, t = Outputs(torch.zeros(1, 3), preacts=(case.given("s_feat"),)), Outputs(torch.zeros(1, 3))
    t = replace(t, preacts=(case.given("t_feat"),))
    method = built("mgd", s, t, margins_from="default")
    costs = torch.zeros_like(case.out("cost"))
    method.begin_sweep()
    start = 0
    for size in case.given("batch_sizes").tolist():
        rows = slice(start, start + size)
        costs += channel_cost(s.preacts[0][rows], t.preacts[0][rows])
        show(method, s, t, rows)
        start += size
    method.end_sweep()
    case.check("adj_sum", costs)
    case.check("cost", costs / start)
    assert start == case.out("num_imgs")
    assert np.array_equal(whole((costs / start).numpy()), cost)
    assert torch.equal(method.get_buffer("groups0"), case.out("matched_sets"))


def show(method: Any, student: Outputs, teacher: Outputs, rows: slice) -> None:
    shown = [replace(x, preacts=tuple(tap[rows] for tap in x.preacts)) for x in (student, teacher)]
    method.observe(*shown, batch(torch.zeros(len(shown[0].preacts[0]))))


@by_kind("mgd", "mgd_reduce")
def test_reducers(case: Case) -> None:
    students, copies = case.hyper["sc"], case.hyper["groups"]
    t, margin = case.given("t_feat"), case.par("margin")[""].flatten()
    # The order names, copy by copy, the teacher channel of each student channel.
    groups = case.given("order").view(copies, students).T
    values = case.given("rd_t_draw").view(len(t), students, 1, *t.shape[2:])
    channels = case.given("rd_m_draw").view(students, 1)
    for reducer in REDUCERS:
        s = case.leaf("s_feat")
        student, teacher = Outputs(torch.zeros(1, 3), preacts=(s,)), Outputs(torch.zeros(1, 3), preacts=(t,))
        recipe = Recipe(epochs=1, batch_size=1, lr=0.1, milestones=())
        method: Any = built(
            "mgd", student, teacher, recipe=recipe, reducer=reducer, margins_from="default", loss_factor=1.0
        )
        owned = case.out("sm_index")[:, None] if reducer == "sm" else groups
        method.load_state_dict({"groups0": owned, "margin0": margin}, strict=False)
        method.is_matched = True
        method.adaptors[0] = nn.Identity()  # the cases have none
        method._draws = lambda *_: (values, channels)
        loss = method.loss("mgd", student, teacher, batch(torch.zeros(len(t))))
        loss.backward()
        case.check(f"{reducer}_partial_loss", loss)
        case.check(f"{reducer}_grad", s.grad)
        draws = (values, channels) if reducer == "rd" else (None, None)
        case.check(f"{reducer}_t", reduced(t, owned, reducer, draws[0]))
        case.check(f"{reducer}_m", reduced_margin(margin, owned, reducer, draws[1]))


@by_kind("mgd", "mgd_reduce")
def test_sparse_matching(case: Case) -> None:
    (assign,) = (e for e in entries("mgd") if e["name"] == case.name.replace("reduce", "assign"))
    cost = Case("mgd", assign).out("cost_int").numpy()
    assert torch.equal(torch.from_numpy(match_channels(cost))[:, 0], case.out("sm_index"))


@by_kind("mgd", "mgd_full")
def test_objective(case: Case) -> None:
    hyper = case.hyper
    count = len(hyper["s_channels"])
    s = [case.leaf(f"s{i}") for i in range(count)]
    student = Outputs(case.leaf("s_logits"), preacts=tuple(s))
    teacher = Outputs(case.given("t_logits"), preacts=outputs(case, "t", count).preacts)
    norms = [case.par(f"teacher_bn{i}_") for i in range(count)]
    method: Any = built(
        "mgd",
        student,
        teacher,
        {"ce": 1.0, **({"kd": 1.0} if hyper["with_kd"] else {}), "mgd": 1.0},
        recipe=Recipe(epochs=1, batch_size=hyper["batch"], lr=0.1, milestones=()),
        network=Teacher(norms),
        reducer=hyper["reducer"],
        ignore=",".join(map(str, hyper["ignore"])),
        loss_factor=hyper["loss_factor"],
        kd_temperature=hyper["T"],
    )
    match_as_shown(case, method, count)
    for i, adaptor in enumerate(method.adaptors):
        adaptor.load_state_dict(case.par(f"adapt{i}_") | {"num_batches_tracked": torch.tensor(0)})
    labels = case.given("labels")
    total = objective(method.train(), student, teacher, labels)
    total.backward()
    case.check("total", total)
    case.check("grad_s_logits", student.logits.grad)
    for i in method.used:
        torch.testing.assert_close(
            method.get_buffer(f"margin{i}"), case.par(f"margin{i}")[""].flatten(), rtol=1e-12, atol=0
        )
        case.check(f"grad_s{i}", s[i].grad)
        case.check(f"grad_adapt{i}_weight", method.adaptors[i].weight.grad)
        case.check(f"grad_adapt{i}_bias", method.adaptors[i].bias.grad)
        case.check(f"adapt{i}_running_mean_after", method.adaptors[i].running_mean)
        case.check(f"adapt{i}_running_var_after", method.adaptors[i].running_var)
    check_parts(case, method, student, teacher)


def match_as_shown(case: Case, method: Any, count: int) -> None:
    """Match the channels by the features of the case's sweep."""
    method.begin_sweep()
    start = 0
    for size in case.given("track_batch_sizes").tolist():
        rows = slice(start, start + size)
        shown = [outputs(case, who, count, "track_", rows) for who in ("s", "t")]
        method.observe(*shown, batch(torch.zeros(size)))
        start += size
    method.end_sweep()
    for i in method.used:
        expected = case.out(f"matched_sets{i}")
        assert torch.equal(method.get_buffer(f"groups{i}"), expected.view(len(expected), -1))


def check_parts(case: Case, method: Any, student: Outputs, teacher: Outputs) -> None:
    assert not any(
        parameter.grad is not None for i in case.hyper["ignore"] for parameter in method.adaptors[i].parameters()
    )
    labels = batch(case.given("labels"))
    scale = case.hyper["batch"] * case.hyper["loss_factor"]
    case.check("d_loss", method.loss("mgd", student, teacher, labels) * scale)
    case.check("ce", method.loss("ce", student, teacher, labels))
    if case.hyper["with_kd"]:
        case.check("kd", method.loss("kd", student, teacher, labels))
    for i in method.used:
        part = method._partial(i, student.preacts[i], teacher.preacts[i]).detach()
        torch.testing.assert_close(part, case.out("per_stage_partial_loss")[i], rtol=case.rtol, atol=0)


def sweeping(**params: Any) -> Any:
    shape = Outputs(torch.zeros(1, 3), preacts=(torch.zeros(1, 2, 3, 3),))
    return built("mgd", shape, shape, margins_from="default", **params)


def due(method: Any, epochs: int) -> list[int]:
    """After which epochs, from 0, the channels are matched anew; the one before the first is -1."""
    stage = method.main_stage()
    return [epoch - 2 for epoch in range(1, epochs + 1) if method.sweep_before(stage, epoch) is not None]


@by_kind("mgd", "lr_schedule")
def test_learning_rates_and_updates(case: Case) -> None:
    epochs = case.given("epoch").tolist()
    warmup = case.hyper.get("warmup_epochs", 0)
    milestones = tuple(case.hyper.get("milestones_after_shift") or case.hyper["milestones"])
    lr = 0.1 if warmup else 0.01
    recipe = Recipe(len(epochs), 256, lr, milestones, nesterov=True, weight_decay=1e-4, warmup_epochs=warmup)
    case.check("lr", [recipe.lr_at(epoch + 1) for epoch in epochs])
    updates = case.out("update_after_epoch").tolist()
    # The last update comes after all training; ours would come before an epoch that is never trained.
    assert due(sweeping(update_every=updates[0] + 1), len(epochs) + 1) == [-1, *updates]


@by_kind("mgd", "schedule")
def test_updates_by_a_list(case: Case) -> None:
    after = np.ceil(np.logspace(0, 2.1, 10)).astype(int).tolist()
    updates = [epoch - 1 for epoch in case.out("update_after_epoch_1based").tolist()]
    assert due(sweeping(update_after=",".join(map(str, after))), 200) == [-1, *updates]


def test_every_case_is_tested() -> None:
    assert kinds("mgd") == {"margin", "mgd_assign", "mgd_reduce", "mgd_full", "lr_schedule", "schedule"}
