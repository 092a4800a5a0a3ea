"""The objectives of the DIH paper's repository, in value and gradient, through the methods that a run trains."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable import methods, models
from kdtable.methods.base import Method, Setting
from kdtable.methods.dih import dih_loss
from kdtable.methods.dml import dml_loss
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.heads import branch_loss
from kdtable.methods.tofd import deepest_first, feature_loss, orthogonal_loss, soft_cross_entropy
from kdtable.models.outputs import Outputs
from tests.asking import aim
from tests.dih_rows import ROWS
from tests.methods.golden_dih import LOSSES, MANIFEST, RECIPE, Arrays, objective

EMPTY = torch.zeros(1)


def by_method(name: str) -> Any:
    """The cases of a method, in both types."""
    chosen = [
        pytest.param(case, dtype, id=f"{case['id']}-{dtype}".replace("torch.", ""))
        for case in MANIFEST["losses"]
        if case["method"] == name
        for dtype in LOSSES
    ]
    return pytest.mark.parametrize(("case", "dtype"), chosen)


def arrays(case: dict[str, Any], dtype: torch.dtype) -> Arrays:
    return Arrays(case["file"], case["id"], dtype, LOSSES[dtype])


def built(row: str, terms: dict[str, float], student: Outputs, teacher: Outputs | None, **params: Any) -> Method:
    """A row of the paper with other weights and hyper-parameters."""
    params = {**(ROWS[row].params if row in ROWS else {}), **params}
    network = models.build("resnet8", student.logits.shape[1]) if row == "dml" else None
    setting = Setting(
        RECIPE, aim(row, terms, params), torch.zeros(4), student.logits.shape[1], student, teacher, student=network
    )
    return methods.get(row)(setting)


def listed(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


def with_branches(logits: Tensor, branches: Sequence[Tensor]) -> Outputs:
    return Outputs(logits, branches=tuple((branch, EMPTY) for branch in branches))


@by_method("kd")
def test_kd(case: dict[str, Any], dtype: torch.dtype) -> None:
    data, alpha = arrays(case, dtype), case["params"]["alpha"]
    student, teacher = Outputs(data.leaf("student_logits")), Outputs(data.given("teacher_logits"))
    terms = {"ce": 1 - alpha, "kd": alpha}
    method = built("kd", terms, student, teacher, kd_temperature=case["params"]["temperature"])
    loss = objective(method, student, teacher, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__ce", method.loss("ce", student, teacher, data.batch()))
    data.check("out__soft_with_T2", method.loss("kd", student, teacher, data.batch()))
    data.check("out__grad_student_logits", student.logits.grad)


@by_method("dih")
def test_dih(case: dict[str, Any], dtype: torch.dtype) -> None:
    data, params = arrays(case, dtype), case["params"]
    (final, *heads), temperature = params["alpha_per_teacher"], params["temperature"]
    s, (t, *t_heads) = data.leaf("student_logits"), data.given("teacher_logits")
    student, teacher = Outputs(s), with_branches(t, t_heads)
    terms = {"ce": 1 - final, "kd": final, "dih": 1.0}
    method = built("dih", terms, student, teacher, kd_temperature=temperature, alphas=listed(heads))
    loss = objective(method, student, teacher, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__grad_student_logits", s.grad)
    pairs = zip((t, *t_heads), (final, *heads), strict=True)
    own = [dih_loss(s, [x], data.given("labels"), [alpha], temperature) for x, alpha in pairs]
    data.check("out__per_teacher", torch.stack(own))
    mean = built("dih", terms, student, teacher, kd_temperature=temperature, alphas=listed(heads), teachers="mean")
    teachers = 1 + sum(alpha != 0 for alpha in heads)
    torch.testing.assert_close(objective(mean, student, teacher, data.batch()) * teachers, loss)


@by_method("heads_finetune")
def test_heads(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = arrays(case, dtype)
    heads = data.leaf("head_logits")
    student = with_branches(heads.detach()[0], heads.unbind())
    loss = objective(built("heads", {"heads": 1.0}, student, None), student, None, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__grad_head_logits", heads.grad)
    data.check("out__per_head", torch.stack([branch_loss([head], data.given("labels")) for head in heads]))


@by_method("fitnets_hint")
def test_hint(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = arrays(case, dtype)
    s, t = data.leaf("student_feature"), data.given("teacher_feature")
    if case["id"] == "hint0":
        student, teacher = (Outputs(torch.zeros(1, 10), stages=(x, x)) for x in (s, t))
        method = built("fitnet-2stage", {}, student, teacher, hint_group=1, regressor="where-needed")
        loss = method.loss("hint", student, teacher, data.batch())
        loss.backward()
    else:
        # No setting gives these regressors, a bare convolution: the repository's own runs have none, and ours has a
        # batch norm and a ReLU behind it. So it is the formula alone that is compared.
        weight = data.leaf("regressor_weight")
        loss = hint_loss(F.conv2d(s, weight, padding=weight.shape[-1] // 2), t)
        loss.backward()
        data.check("out__grad_regressor_weight", weight.grad)
    data.check("out__loss", loss)
    data.check("out__grad_student_feature", s.grad)


@by_method("at")
def test_at(case: dict[str, Any], dtype: torch.dtype) -> None:
    data = arrays(case, dtype)
    s = data.leaf("student_feature")
    student, teacher = (Outputs(torch.zeros(1, 10), stages=(x,)) for x in (s, data.given("teacher_feature")))
    loss = built("at", {"at": 1.0}, student, teacher).loss("at", student, teacher, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__grad_student_feature", s.grad)


@by_method("mhkd")
def test_mhkd(case: dict[str, Any], dtype: torch.dtype) -> None:
    data, params = arrays(case, dtype), case["params"]
    names = ("student_logits", "student_head_logits", "teacher_head_logits")
    s, s_heads, t_heads = (data.leaf(name) for name in names)
    groups = range(1, params["num_heads"] + 1)
    shapes = Outputs(s.detach(), stages=tuple(torch.zeros(1, 4, 8, 8) for _ in groups))
    # The repository reads the final pair's weight from the first heads' place.
    _, final, *_ = params["alpha"]
    method = built(
        "mhkd",
        {"ce": 1 - final, "kd": final, "mhkd": 1.0},
        shapes,
        shapes,
        kd_temperature=params["temperature"],
        kd_alpha=listed(params["alpha"][1:]),
        beta=params["beta"],
        groups=listed(groups),
    )
    # The case begins behind the heads.
    method.student_heads, method.teacher_heads = (nn.ModuleList(nn.Identity() for _ in groups) for _ in "st")
    student, teacher = (
        Outputs(s, stages=s_heads.unbind()),
        Outputs(data.given("teacher_logits"), stages=t_heads.unbind()),
    )
    loss = objective(method, student, teacher, data.batch())
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__teacher_head_ce", torch.stack([branch_loss([head], data.given("labels")) for head in t_heads]))
    for name, logits in zip(names, (s, s_heads, t_heads), strict=True):
        data.check(f"out__grad_{name}", logits.grad)


def network_outputs(logits: Sequence[Tensor], features: Sequence[Tensor]) -> Outputs:
    """The lists of a TOFD network, deepest first, as ours gives them: a branch on each stage has the deepest twice."""
    branches = list(zip(logits[1:], features[-len(logits) + 1 :], strict=True))
    stages = len(branches) + (len(features) == len(logits))
    return Outputs(
        logits[0], embedding=features[0], branches=tuple(branches[::-1]), stages=(torch.zeros(1, 1, 1, 1),) * stages
    )


@by_method("tofd")
def test_tofd(case: dict[str, Any], dtype: torch.dtype) -> None:
    data, params = arrays(case, dtype), case["params"]
    logits, features = data.leaf("student_logits"), data.leaf("student_features")
    student = network_outputs(logits.unbind(), features.unbind())
    teacher = network_outputs(data.given("teacher_logits").unbind(), data.given("teacher_features").unbind())
    changed = {
        "feature_weight": params["alpha"],
        "orthogonal_weight": params["beta"],
        "start_temperature": params["t"],
    }
    method = built("tofd", {"ce": 1.0, "tofd": 1.0}, student, teacher, **changed).to(dtype)
    links = data.given("link_weights")
    used = params["num_student_features"]
    method.load_state_dict({f"link.{i}.weight": links[i] for i in range(used)})
    batch = replace(data.batch(), epoch=params["epoch_index_from_0"] + 1)
    loss = objective(method, student, teacher, batch)
    loss.backward()
    data.check("out__loss", loss)
    data.check("out__grad_student_logits", logits.grad)
    data.check("out__grad_student_features", features.grad)
    gradient = torch.zeros_like(links)  # links that nothing reads are not built
    for i, link in enumerate(method.link.parameters()):
        gradient[i] = link.grad
    data.check("out__grad_link_weights", gradient)
    check_parts(data, params, method, student, teacher)


def check_parts(data: Arrays, params: dict[str, Any], method: Any, student: Outputs, teacher: Outputs) -> None:
    s, t = (deepest_first(x, len(x.stages), "shifted") for x in (student, teacher))
    weights = list(method.link.parameters())
    triples = list(zip(s.features, t.features, weights, strict=False))
    data.check("out__feature_dist", torch.stack([feature_loss([f], [g], [w]) for f, g, w in triples]))
    pairs = list(zip(s.logits, t.logits, strict=True))[: len(weights)]
    temperature = params["temperature"]
    data.check("out__logit_soft_ce", torch.stack([soft_cross_entropy([a], [b], temperature) for a, b in pairs]))
    data.check("out__task_ce", torch.stack([F.cross_entropy(a, data.given("labels")) for a, _ in pairs]))
    both = torch.stack([orthogonal_loss(w) for w in weights])
    data.check_sum(("out__orth_rows", "out__orth_cols"), both)


class Saying(nn.Module):
    """A network with given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor, keep: frozenset[str]) -> Outputs:
        return Outputs(self.logits)


@by_method("dml")
def test_dml(case: dict[str, Any], dtype: torch.dtype) -> None:
    data, params = arrays(case, dtype), case["params"]
    s, peers, labels = data.leaf("student_logits"), data.leaf("peer_logits"), data.given("labels")
    student = Outputs(s)
    settings = {name: params[name] for name in ("alpha", "temperature")} | {"peers": params["num_peers"]}
    # Burning in is cross-entropy alone, which is a weight; the repository's runner never does it.
    terms = {"ce": 1.0, "dml": 0.0} if params["burn_in"] else {"dml": 1.0}
    method = built("dml", terms, student, None, **settings)
    method.peers = nn.ModuleList(map(Saying, peers.unbind()))
    loss = objective(method, student, None, data.batch())
    loss.backward()
    data.check("out__grad_student_logits", s.grad)
    if params["burn_in"]:
        data.check("out__loss", loss)
        return
    # The method's loss has those of the peers in it, and no loss reaches another network, as the repository's does
    # before it drops that gradient.
    s.grad = peers.grad = None
    own = dml_loss(s, peers.unbind(), labels, params["alpha"], params["temperature"])
    own.backward()
    data.check("out__loss", own)
    data.check("out__grad_peer_logits", peers.grad)
    everyone = [s, *peers.unbind()]
    losses = [
        dml_loss(one, everyone[:i] + everyone[i + 1 :], labels, params["alpha"], params["temperature"])
        for i, one in enumerate(everyone)
    ]
    torch.testing.assert_close(loss, torch.stack(losses).sum())


def test_every_case_is_tested() -> None:
    here = {"kd", "dih", "heads_finetune", "fitnets_hint", "at", "mhkd", "tofd", "dml"}
    assert {case["method"] for case in MANIFEST["losses"]} == here
