"""Distillation of detectors agrees with the published codes, through the methods that a run trains."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from kdtable.methods.detection.base import given
from kdtable.methods.detection.masks import anchors_above, levels_of
from kdtable.methods.detection.mgd import maps
from kdtable.methods.detection.soft_targets import split_kd, teacher_positives
from kdtable.methods.dkd import dkd_parts
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.parts.reducers import reduced, reduced_margin
from kdtable.methods.reviewkd import hcl_loss
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.recipes.recipe import Recipe
from tests.methods.golden_detection import Case, batch, built, detection, filled

# --- logits


def judged(case: Case, *, dense: bool = False) -> tuple[DetectorOutputs, DetectorOutputs]:
    """Outputs with background as class 0, as ours have it, where the case has it last."""
    s, t = case.leaf("in.logit_s"), case.array("in.logit_t")
    classes = s.shape[-1]
    labels = case.array("in.labels") if "in.labels" in case else torch.zeros(len(s), dtype=torch.int64)
    shift = 0 if dense or case.hyper["background_id"] == 0 else 1
    labels = (labels + shift) % classes if shift else labels
    student = DetectorOutputs(dense, class_logits=s.roll(shift, dims=-1), labels=labels)
    case.check_gradient = lambda: case.check("grad.logit_s", s.grad)  # type: ignore[attr-defined]
    return student, DetectorOutputs(dense, class_logits=t.roll(shift, dims=-1))


def read(student: DetectorOutputs, teacher: DetectorOutputs) -> tuple[Tensor, Tensor, Tensor]:
    return given(student.class_logits), given(teacher.class_logits), given(student.labels)


def check_term(case: Any, method: Any, student: DetectorOutputs, teacher: DetectorOutputs) -> Tensor:
    loss: Tensor = method.loss(method.term, student, teacher, batch())
    loss.backward()
    case.check("out.loss", loss)
    case.check_gradient()
    return loss


@detection("kd_proposals")
def test_kd_on_proposals(case: Case) -> None:
    hyper, (student, teacher) = case.hyper, judged(case)
    weights = {side: hyper[f"weight_{side}"] for side in ("foreground", "background") if f"weight_{side}" in hyper}
    method = built(
        "kd", student, teacher, case.dtype, reduction=hyper["reduction"], kd_temperature=hyper["T"], **weights
    )
    check_term(case, method, student, teacher)
    if weights:
        s, t, labels = read(student, teacher)
        parts = split_kd(s, t, labels > 0, hyper["T"])
        for (side, weight), part in zip(weights.items(), parts, strict=True):
            case.check(f"out.{side}", weight * part)


@detection("retinanet_kd")
def test_kd_on_anchors(case: Case) -> None:
    hyper, (student, teacher) = case.hyper, judged(case, dense=True)
    assert (hyper["label_ignored"], hyper["label_background"]) == (-1, hyper["classes"])
    form = {"dsig": "softmax", "binary": "binary"}[hyper["form"]]
    threshold = {"threshold": hyper["positive_threshold"]} if form == "binary" else {}
    method = built("kd", student, teacher, case.dtype, anchors=form, kd_temperature=hyper["T"], **threshold)
    loss = check_term(case, method, student, teacher)
    if threshold:
        positives = teacher_positives(given(teacher.class_logits), threshold["threshold"])
        case.check_all({"out.teacher_positive": positives, "out.kl_sum": loss * positives.clamp(min=1)})


@detection("dkd_roi")
def test_dkd_on_proposals(case: Case) -> None:
    hyper, (student, teacher) = case.hyper, judged(case)
    params = {"temperature": hyper["T"], "alpha": hyper["alpha"], "beta": hyper["beta"]}
    check_term(case, built("dkd", student, teacher, case.dtype, **params), student, teacher)
    tckd, nckd = dkd_parts(*read(student, teacher), hyper["T"])
    case.check_all({"out.tckd": tckd.mean(), "out.nckd": nckd.mean()})


# --- FPN levels


def levelled(case: Case) -> tuple[DetectorOutputs, DetectorOutputs]:
    return with_levels(case.leaves("in.s")), with_levels(case.arrays("in.t"))


def with_levels(levels: list[Tensor]) -> DetectorOutputs:
    return DetectorOutputs(dense=False, levels=tuple(levels))


@detection("fitnet_fpn")
def test_hint_of_levels(case: Case) -> None:
    (student, teacher), used = levelled(case), case.hyper["levels_used"]
    method = built("fitnet", student, teacher, case.dtype, levels=",".join(map(str, used)))
    loss = case.hyper["weight"] * method.loss("fitnet", student, teacher, batch())
    loss.backward()
    each = torch.stack([hint_loss(student.levels[i], teacher.levels[i]) for i in used])
    case.check_all({"out.loss": loss, "out.losses": each})
    for i, level in enumerate(student.levels):
        assert (level.grad is None) == (i not in used)
        if i in used:
            case.check(f"grad.s{i}", level.grad)


#: Our names of the parts of a fusion, by golden name.
PARTS = {"conv1.0": "conv1", "conv1.1": "bn1", "conv2.0": "conv2", "conv2.1": "bn2", "att_conv.0": "attention"}


def golden(name: str) -> str:
    """The golden name of a part of a fusion."""
    part = next(part for part in PARTS if name.startswith(f"{PARTS[part]}."))
    return f"{part}{name.removeprefix(PARTS[part])}"


def reviewing(case: Case, student: DetectorOutputs, teacher: DetectorOutputs) -> Any:
    """The method, with parameters of the case or of the fill rule. The golden fusions begin with the coarsest level."""
    hyper = case.hyper
    method = built("reviewkd", student, teacher, case.dtype, mid=hyper["mid"])
    for norm in (module for module in method.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.eps, norm.momentum) == (hyper["bn_eps"], hyper["bn_momentum"])
    for j, fusion in enumerate(reversed(method.fusions)):
        given = case.given(f"abfs.{j}.")
        state = {
            name: value
            if name.endswith("num_batches_tracked")
            else given.pop(golden(name))
            if given
            else filled(f"abfs.{j}.{golden(name)}", tuple(value.shape), hyper["salt"])
            for name, value in fusion.state_dict().items()
        }
        assert not given
        fusion.load_state_dict(state)
    return method


def review(case: Case, student: DetectorOutputs, teacher: DetectorOutputs) -> dict[str, Tensor]:
    """Check the loss; return the fused maps, gradients and statistics by golden name."""
    again = reviewing(case, student, teacher).fused(student.levels)
    each = [hcl_loss([a], [b]) for a, b in zip(again, teacher.levels, strict=True)]
    method = reviewing(case, student, teacher)
    loss = method.loss("reviewkd", student, teacher, batch())
    loss.backward()
    case.check_all({"out.loss": loss, "out.losses": torch.stack(each)})
    found = {f"out.f{i}": fused for i, fused in enumerate(again)}
    found |= {f"grad.s{i}": level.grad for i, level in enumerate(student.levels) if level.grad is not None}
    for j, fusion in enumerate(reversed(method.fusions)):
        for name, parameter in fusion.named_parameters():
            found[f"pgrad.abfs.{j}.{golden(name)}"] = parameter.grad
        for name, buffer in fusion.named_buffers():
            if not name.endswith("num_batches_tracked"):
                found[f"buffer_after.abfs.{j}.{golden(name)}"] = buffer
    return found


@detection("reviewkd_fpn")
def test_reviewkd_on_levels(case: Case) -> None:
    case.check_all({name: value for name, value in review(case, *levelled(case)).items() if name in case})


@detection("reviewkd_fpn_wide")
def test_reviewkd_at_the_real_width(case: Case) -> None:
    hyper = case.hyper
    assert int(case.array("in.salt")) == hyper["salt"]

    def maps(who: str, width: int) -> list[Tensor]:
        shapes = [(hyper["n"], width, *size) for size in hyper["sizes"]]
        return [filled(f"{who}{i}", shape, hyper["salt"]).to(case.dtype) for i, shape in enumerate(shapes)]

    student = with_levels([level.requires_grad_() for level in maps("s", hyper["in"])])
    found = review(case, student, with_levels(maps("t", hyper["out"])))
    for name in [name.removeprefix("out.norm.") for name in case.names("out.norm.")]:
        index = case.array(f"out.index.{name}")
        case.leave(f"out.index.{name}")
        case.check_all({f"out.norm.{name}": found[name].norm(), f"out.probe.{name}": found[name].flatten()[index]})


# --- fine-grained imitation


def imitating(case: Case, anchors: list[Tensor], form: str) -> tuple[Any, DetectorOutputs, list[Tensor]]:
    """The method after a step, the student, and the masks."""
    student, teacher = levelled(case)
    teacher = DetectorOutputs(dense=False, levels=teacher.levels, anchors=tuple(anchors))
    method = built("fgfi", student, teacher, case.dtype, form=form)
    for i, adaptor in enumerate(method.adaptors):
        adaptor.load_state_dict(case.given(f"adapter.{i}.0." if form == "fpn" else f"adapter.{i}."))
    boxes = case.arrays("in.boxes")
    loss = case.hyper["weight"] * method.loss("fgfi", student, teacher, batch(boxes))
    loss.backward()
    case.check("out.loss", loss)
    return method, student, method.masks(teacher.anchors, boxes, teacher.levels)


@detection("fgfi_original")
def test_imitation_on_one_map(case: Case) -> None:
    anchors = case.array("in.anchors").flatten(0, 2)
    method, student, (mask,) = imitating(case, [anchors], "original")
    above = [
        anchors_above(anchors, boxes, tuple(mask.shape[1:]), whole_pixels=True)  # type: ignore[arg-type]
        for boxes in case.arrays("in.boxes")
    ]
    case.check_all({"out.mask": mask, "out.marked": mask.sum(), "out.anchors_above": torch.stack(above)})
    case.check("grad.s0", student.levels[0].grad)
    case.check_all({f"pgrad.adapter.0.{name}": p.grad for name, p in method.adaptors[0].named_parameters()})


@detection("fgfi_fpn")
def test_imitation_on_levels(case: Case) -> None:
    method, student, masks = imitating(case, case.arrays("in.anchors"), "fpn")
    for i, boxes in enumerate(case.arrays("in.boxes")):
        case.check(f"out.level{i}", levels_of(boxes, len(masks)))
    for i, adaptor in enumerate(method.adaptors):
        case.check_all({f"out.mask{i}": masks[i], f"grad.s{i}": student.levels[i].grad})
        case.check_all({f"pgrad.adapter.{i}.0.{name}": p.grad for name, p in adaptor.named_parameters()})


# --- MGD


class Teacher(nn.Module):
    """A detector of which only the norms in front of its taps are read."""

    tapped = tuple(f"layer{i}.0.relu" for i in range(1, 5))

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": nn.ModuleDict()})
        for i in range(4):
            weight, bias = case.array(f"in.bn_weight{i}"), case.array(f"in.bn_bias{i}")
            block = BasicBlock(len(weight), len(weight)).to(case.dtype)
            block.bn2.load_state_dict({"weight": weight, "bias": bias}, strict=False)
            self.backbone["body"][f"layer{i + 1}"] = nn.Sequential(block)  # type: ignore[operator]


@detection("mgd_det")
def test_mgd(case: Case) -> None:
    hyper = case.hyper
    student, teacher = (DetectorOutputs(dense=True, taps=tuple(x)) for x in (case.leaves("in.s"), case.arrays("in.t")))
    method = built(
        "mgd",
        student,
        teacher,
        case.dtype,
        reducer=hyper["reducer"],
        factors=",".join(map(str, hyper["factors"])),
        processes=1,
        norm_groups=hyper["groups"],
        network=Teacher(case),
        recipe=Recipe(epochs=1, batch_size=hyper["batch"], lr=0.1, milestones=()),
    )
    for i, tap in enumerate(student.taps):
        assert method.adaptors[i].eps == hyper["gn_eps"]
        method.adaptors[i].load_state_dict(case.given(f"norms.{i}."))
        case.check(f"out.margin{i}", method.get_buffer(f"margin{i}"))
        groups, margin = method.get_buffer(f"groups{i}"), case.array(f"in.margin{i}")
        groups.copy_(case.array(f"in.matching{i}").view(-1, tap.shape[1]).T)
        method.get_buffer(f"margin{i}").copy_(margin)
        case.check(f"out.reduced_margin{i}", reduced_margin(margin, groups, hyper["reducer"]))
        if f"out.reduced_t{i}" in case:
            case.check(f"out.reduced_t{i}", reduced(teacher.taps[i], groups, hyper["reducer"]))
    method.is_matched = True
    loss = method.loss("mgd", student, teacher, batch())
    loss.backward()
    partials = method.partials(*map(maps, (student, teacher)), batch())
    case.check_all({"out.loss": loss, "out.partial": torch.stack(partials)})
    for i, (tap, norm) in enumerate(zip(student.taps, method.adaptors, strict=True)):
        case.check(f"grad.s{i}", tap.grad)
        case.check_all({f"pgrad.norms.{i}.{name}": p.grad for name, p in norm.named_parameters()})


@detection("mgd_det_updates")
def test_mgd_updates(case: Case) -> None:
    """By the epochs before which a run matches, with an epoch for each thousand iterations."""
    every, slow_every = case.array("in.every").tolist()
    total, slow_from = int(case.array("in.total")), int(case.array("in.slow_from"))
    taps = DetectorOutputs(dense=True, taps=(torch.zeros(1, 4, 3, 3),))
    schedule = {"update_every": every, "slow_update_every": slow_every, "slow_from": slow_from, "iterations": total}
    epochs = total // 1000
    recipe = Recipe(epochs=epochs, batch_size=4, lr=0.1, milestones=())
    settings = {"margins_from": "default", "factors": "1", "recipe": recipe, **schedule}
    method = built("mgd", taps, taps, case.dtype, **settings)
    stage = method.main_stage()
    due = [epoch for epoch in range(1, epochs + 1) if method.sweep_before(stage, epoch) is not None]
    case.check("out.iterations", torch.tensor([1000 * (epoch - 1) for epoch in due]))
