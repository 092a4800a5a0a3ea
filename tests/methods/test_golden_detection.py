"""Distillation of detectors agrees with the published codes, in value and in gradient."""

from typing import Any

import torch
from torch import Tensor, nn

from kdtable.methods.detection.imitation import imitation_loss, levels_imitation_loss
from kdtable.methods.detection.masks import anchors_above, level_masks, levels_of, place_mask
from kdtable.methods.detection.soft_targets import (
    anchors_kd,
    anchors_softmax_kd,
    proposals_kd,
    split_kd,
    teacher_positives,
)
from kdtable.methods.detection.updates import update_iterations
from kdtable.methods.dkd import dkd_loss, dkd_parts
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.mgd import partial_loss
from kdtable.methods.parts.abf import ABF
from kdtable.methods.parts.reducers import margins, reduced, reduced_margin
from kdtable.methods.reviewkd import hcl_loss
from tests.methods.golden_detection import Case, detection, filled

#: Our names of the parts of a fusion, by golden name.
PARTS = {"conv1.0": "conv1", "conv1.1": "bn1", "conv2.0": "conv2", "conv2.1": "bn2", "att_conv.0": "attention"}


def ours(name: str) -> str:
    part = next(part for part in PARTS if name.startswith(f"{part}."))
    return f"{PARTS[part]}{name.removeprefix(part)}"


def golden(name: str) -> str:
    part = next(part for part in PARTS if name.startswith(f"{PARTS[part]}."))
    return f"{part}{name.removeprefix(PARTS[part])}"


# --- logits


def logits(case: Case) -> tuple[Tensor, Tensor]:
    return case.leaf("in.logit_s"), case.array("in.logit_t")


@detection("kd_proposals")
def test_kd_on_proposals(case: Case) -> None:
    hyper, (s, t) = case.hyper, logits(case)
    if hyper["reduction"] == "split":
        parts = split_kd(s, t, case.array("in.labels") != hyper["background_id"], hyper["T"])
        found = {
            side: hyper[f"weight_{side}"] * part for side, part in zip(("foreground", "background"), parts, strict=True)
        }
        case.check_all({f"out.{side}": part for side, part in found.items()})
        loss = found["foreground"] + found["background"]
    else:
        loss = proposals_kd(s, t, hyper["T"], by_element=hyper["reduction"] == "elementmean")
    loss.backward()
    case.check_all({"out.loss": loss, "grad.logit_s": s.grad})


@detection("retinanet_kd")
def test_kd_on_anchors(case: Case) -> None:
    hyper, (s, t) = case.hyper, logits(case)
    if hyper["form"] == "dsig":
        loss = anchors_softmax_kd(s, t, case.array("in.labels") != hyper["label_ignored"], hyper["T"])
    else:
        loss = anchors_kd(s, t, hyper["T"], hyper["positive_threshold"])
        positives = teacher_positives(t, hyper["positive_threshold"])
        case.check_all({"out.teacher_positive": positives, "out.kl_sum": loss * positives.clamp(min=1)})
    loss.backward()
    case.check_all({"out.loss": loss, "grad.logit_s": s.grad})


@detection("dkd_roi")
def test_dkd_on_proposals(case: Case) -> None:
    hyper, (s, t) = case.hyper, logits(case)
    labels = case.array("in.labels")
    loss = dkd_loss(s, t, labels, hyper["T"], hyper["alpha"], hyper["beta"]).mean()
    loss.backward()
    tckd, nckd = (part.mean() for part in dkd_parts(s.detach(), t, labels, hyper["T"]))
    case.check_all({"out.loss": loss, "out.tckd": tckd, "out.nckd": nckd, "grad.logit_s": s.grad})


# --- FPN levels


@detection("fitnet_fpn")
def test_hint_of_levels(case: Case) -> None:
    s, t, used = case.leaves("in.s"), case.arrays("in.t"), case.hyper["levels_used"]
    losses = torch.stack([hint_loss(s[i], t[i]) for i in used])
    loss = case.hyper["weight"] * losses.sum()
    loss.backward()
    case.check_all({"out.loss": loss, "out.losses": losses})
    for i, x in enumerate(s):
        assert (x.grad is None) == (i not in used)
        if x.grad is not None:
            case.check(f"grad.s{i}", x.grad)


def fusions(case: Case, count: int) -> nn.ModuleList:
    """Ours, the finest first; of the golden ones the coarsest is the first."""
    hyper = case.hyper
    found = nn.ModuleList(ABF(hyper["in"], hyper["mid"], hyper["out"], None, fuse=i < count - 1) for i in range(count))
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (hyper["bn_eps"], hyper["bn_momentum"])
    return found.to(case.dtype).train()


def fused(modules: nn.ModuleList, s: list[Tensor]) -> list[Tensor]:
    maps: list[Tensor] = []
    residual = None
    for module, x in reversed(list(zip(modules, s, strict=True))):
        out, residual = module(x, residual)
        maps.insert(0, out)
    return maps


@detection("reviewkd_fpn")
def test_reviewkd_on_levels(case: Case) -> None:
    s, t = case.leaves("in.s"), case.arrays("in.t")
    modules = fusions(case, len(s))
    for j, module in enumerate(reversed(modules)):
        state = {ours(name): value for name, value in case.given(f"abfs.{j}.").items()}
        module.load_state_dict({**module.state_dict(), **state}, strict=True)
    maps = fused(modules, s)
    loss = hcl_loss(maps, t)
    loss.backward()
    each = torch.stack([hcl_loss([a], [b]) for a, b in zip(maps, t, strict=True)])
    case.check_all({"out.loss": loss, "out.losses": each})
    for i, (x, found) in enumerate(zip(s, maps, strict=True)):
        case.check(f"grad.s{i}", x.grad)
        if f"out.f{i}" in case:
            case.check(f"out.f{i}", found)
    for name, value in gradients_and_statistics(modules).items():
        if name in case:
            case.check(name, value)


def gradients_and_statistics(modules: nn.ModuleList) -> dict[str, Tensor]:
    found = {}
    for j, module in enumerate(reversed(modules)):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            found[f"pgrad.abfs.{j}.{golden(name)}"] = parameter.grad
        for name, buffer in module.named_buffers():
            if not name.endswith("num_batches_tracked"):
                found[f"buffer_after.abfs.{j}.{golden(name)}"] = buffer
    return found


@detection("reviewkd_fpn_wide")
def test_reviewkd_at_the_real_width(case: Case) -> None:
    hyper = case.hyper
    sizes, salt = hyper["sizes"], hyper["salt"]
    assert int(case.array("in.salt")) == salt
    s = [filled(f"s{i}", (hyper["n"], hyper["in"], *size), salt).to(case.dtype) for i, size in enumerate(sizes)]
    t = [filled(f"t{i}", (hyper["n"], hyper["out"], *size), salt).to(case.dtype) for i, size in enumerate(sizes)]
    modules = fusions(case, len(sizes))
    for j, module in enumerate(reversed(modules)):
        state = {
            name: value
            if name.endswith("num_batches_tracked")
            else filled(f"abfs.{j}.{golden(name)}", tuple(value.shape), salt)
            for name, value in module.state_dict().items()
        }
        module.load_state_dict(state)
    maps = fused(modules, [x.requires_grad_() for x in s])
    loss = hcl_loss(maps, t)
    loss.backward()
    each = torch.stack([hcl_loss([a], [b]) for a, b in zip(maps, t, strict=True)])
    case.check_all({"out.loss": loss, "out.losses": each})
    found = {f"grad.s{i}": x.grad for i, x in enumerate(s)} | gradients_and_statistics(modules)
    for name in [name.removeprefix("out.norm.") for name in case.names("out.norm.")]:
        value: Any = found[name]
        index = case.array(f"out.index.{name}")
        case.leave(f"out.index.{name}")
        case.check_all({f"out.norm.{name}": value.norm(), f"out.probe.{name}": value.flatten()[index]})


# --- fine-grained imitation


def adaptors(case: Case, count: int) -> list[nn.Conv2d]:
    found = []
    for i in range(count):
        state = case.given(f"adapter.{i}.0." if count > 1 else "adapter.0.")
        conv = nn.Conv2d(state["weight"].shape[1], state["weight"].shape[0], 3, padding=1).to(case.dtype)
        conv.load_state_dict(state)
        found.append(conv)
    return found


@detection("fgfi_original")
def test_imitation_on_one_map(case: Case) -> None:
    s, t, boxes = case.leaf("in.s0"), case.array("in.t0"), case.arrays("in.boxes")
    anchors, size = case.array("in.anchors").flatten(0, 2), (s.shape[2], s.shape[3])
    mask = torch.stack([place_mask(anchors, each, size, whole_pixels=True) for each in boxes])
    above = torch.stack([anchors_above(anchors, each, size, whole_pixels=True) for each in boxes])
    (conv,) = adaptors(case, 1)
    loss = case.hyper["weight"] * imitation_loss(conv(s).relu(), t, mask)
    loss.backward()
    case.check_all({"out.loss": loss, "out.mask": mask, "out.marked": mask.sum(), "out.anchors_above": above})
    case.check_all(
        {"grad.s0": s.grad, "pgrad.adapter.0.weight": conv.weight.grad, "pgrad.adapter.0.bias": conv.bias.grad}
    )


@detection("fgfi_fpn")
def test_imitation_on_levels(case: Case) -> None:
    s, t, boxes = case.leaves("in.s"), case.arrays("in.t"), case.arrays("in.boxes")
    sizes = [(x.shape[2], x.shape[3]) for x in s]
    masks = level_masks(case.arrays("in.anchors"), boxes, sizes)
    convs = adaptors(case, len(s))
    adapted = [conv(x) for conv, x in zip(convs, s, strict=True)]
    loss = case.hyper["weight"] * levels_imitation_loss(adapted, t, masks)
    loss.backward()
    case.check("out.loss", loss)
    for i, each in enumerate(boxes):
        case.check(f"out.level{i}", levels_of(each, len(s)))
    for i, conv in enumerate(convs):
        case.check_all({f"out.mask{i}": masks[i], f"grad.s{i}": s[i].grad})
        case.check_all({f"pgrad.adapter.{i}.0.{name}": p.grad for name, p in conv.named_parameters()})


# --- MGD


@detection("mgd_det")
def test_mgd(case: Case) -> None:
    hyper, s, t = case.hyper, case.leaves("in.s"), case.arrays("in.t")
    norms = []
    partials = []
    for i, (x, y) in enumerate(zip(s, t, strict=True)):
        norm = nn.GroupNorm(hyper["groups"], x.shape[1], eps=hyper["gn_eps"]).to(case.dtype)
        norm.load_state_dict(case.given(f"norms.{i}."))
        norms.append(norm)
        groups = case.array(f"in.matching{i}").view(-1, x.shape[1]).T
        margin = case.array(f"in.margin{i}")
        case.check(f"out.margin{i}", margins(case.array(f"in.bn_weight{i}"), case.array(f"in.bn_bias{i}")))
        small, bound = reduced(y, groups, hyper["reducer"]), reduced_margin(margin, groups, hyper["reducer"])
        if f"out.reduced_t{i}" in case:
            case.check(f"out.reduced_t{i}", small)
        case.check(f"out.reduced_margin{i}", bound)
        partials.append(partial_loss(norm(x), small, bound))
    loss = torch.stack([part / factor for part, factor in zip(partials, hyper["factors"], strict=True)]).sum()
    loss = loss / hyper["batch"]
    loss.backward()
    case.check_all({"out.loss": loss, "out.partial": torch.stack(partials)})
    for i, (x, norm) in enumerate(zip(s, norms, strict=True)):
        case.check_all({f"grad.s{i}": x.grad})
        case.check_all({f"pgrad.norms.{i}.{name}": p.grad for name, p in norm.named_parameters()})


@detection("mgd_det_updates")
def test_mgd_updates(case: Case) -> None:
    every, slow_every = case.array("in.every").tolist()
    total, slow_from = int(case.array("in.total")), int(case.array("in.slow_from"))
    case.check("out.iterations", torch.tensor(update_iterations(total, every, slow_every, slow_from)))
