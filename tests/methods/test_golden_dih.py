"""The objectives of the DIH paper's repository, in value and gradient, through the methods that a run trains.

Readings of a method are those of its row of the paper, which are the released code's; numbers are the case's.
"""

import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable import models
from kdtable.methods.base import Method
from kdtable.methods.dih import dih_loss
from kdtable.methods.dml import dml_loss
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.heads import branch_loss
from kdtable.methods.parts.adaptors import unreachable
from kdtable.methods.tofd import deepest_first, feature_loss, orthogonal_loss, soft_cross_entropy
from kdtable.models.outputs import Outputs
from tests.dih_rows import ROWS
from tests.golden_arrays import Shared
from tests.golden_data import checks
from tests.methods.golden_sets import batch, built, objective

dih = partial(checks, "dih", arrays=Shared, dtypes=(torch.float64, torch.float32))

EMPTY = torch.zeros(1)


def built_for(
    case: Shared, row: str, terms: dict[str, float], student: Outputs, teacher: Outputs | None, **params: Any
) -> Method:
    """A row of the paper with other weights and hyper-parameters."""
    readings = ROWS[row].params if row in ROWS else {}
    return built(row, student, teacher, terms, dtype=case.dtype, **{**readings, **params})


def listed(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


def with_branches(logits: Tensor, branches: Sequence[Tensor]) -> Outputs:
    return Outputs(logits, branches=tuple((branch, EMPTY) for branch in branches))


def with_stages(*taps: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(taps[0]), 2), stages=taps)


@dih("kd")
def test_kd(case: Shared) -> None:
    alpha, temperature = case.hyper["alpha"], case.hyper["temperature"]
    student, teacher = Outputs(case.leaf("student_logits")), Outputs(case.given("teacher_logits"))
    method = built_for(case, "kd", {"ce": 1 - alpha, "kd": alpha}, student, teacher, kd_temperature=temperature)
    loss = objective(method, student, teacher, case.batch())
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__ce", method.loss("ce", student, teacher, case.batch()))
    case.check("out__soft_with_T2", method.loss("kd", student, teacher, case.batch()))
    case.check("out__grad_student_logits", student.logits.grad)


@dih("dih")
def test_dih(case: Shared) -> None:
    """A classifier whose alpha is 0 teaches nothing, the teacher's own one included."""
    (final, *alphas), temperature = case.hyper["alpha_per_teacher"], case.hyper["temperature"]
    s, (t, *heads) = case.leaf("student_logits"), case.given("teacher_logits")
    student, teacher = Outputs(s), with_branches(t, heads)
    terms = {**({"ce": 1 - final, "kd": final} if final else {}), "dih": 1.0}
    settings = {"kd_temperature": temperature, "alphas": listed(alphas)}
    loss = objective(built_for(case, "dih", terms, student, teacher, **settings), student, teacher, case.batch())
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__grad_student_logits", s.grad)
    pairs = zip((t, *heads), (final, *alphas), strict=True)
    own = [dih_loss(s, [x], case.given("labels"), [alpha], temperature) for x, alpha in pairs]
    case.check("out__per_teacher", torch.stack(own))
    if teachers := sum(alpha != 0 for alpha in (final, *alphas)):
        mean = built_for(case, "dih", terms, student, teacher, **settings, teachers="mean")
        torch.testing.assert_close(objective(mean, student, teacher, case.batch()) * teachers, loss)


@dih("heads_finetune")
def test_heads(case: Shared) -> None:
    heads = case.leaf("head_logits")
    student = with_branches(heads.detach()[0], heads.unbind())
    loss = objective(built_for(case, "heads", {"heads": 1.0}, student, None), student, None, case.batch())
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__grad_head_logits", heads.grad)
    case.check("out__per_head", torch.stack([branch_loss([head], case.given("labels")) for head in heads]))


@dih("fitnets_hint")
def test_hint(case: Shared) -> None:
    """No setting gives the cases' regressors, a bare convolution; so that takes the place of the method's own."""
    s, t = case.leaf("student_feature"), case.given("teacher_feature")
    regressor = bare_convolution(case, s, t) if "in__regressor_weight" in case else nn.Identity()
    loss = hint_loss(regressor(s), t)
    if not unreachable(s, t):
        student, teacher = with_stages(s, s), with_stages(t, t)
        method: Any = built_for(case, "fitnet-2stage", {"ce": 1.0}, student, teacher, regressor="where-needed")
        if isinstance(regressor, nn.Conv2d):
            method.regress = regressor
        assert torch.equal(method.loss("hint", student, teacher, case.batch()), loss)
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__grad_student_feature", s.grad)
    if isinstance(regressor, nn.Conv2d):
        case.check("out__grad_regressor_weight", regressor.weight.grad)


def bare_convolution(case: Shared, s: Tensor, t: Tensor) -> nn.Conv2d:
    """Without a bias, and padded so that it leads from the student's size to the teacher's."""
    weight = case.given("regressor_weight")
    said = re.search(r"stride (\d+)", str(case.hyper.get("regressor")))
    stride = int(said[1]) if said else 1
    sizes = zip(s.shape[2:], t.shape[2:], weight.shape[2:], strict=True)
    padding = tuple(padding_of(*size, stride) for size in sizes)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), stride, padding, bias=False)
    conv.weight = nn.Parameter(weight)
    return conv


def padding_of(size: int, wanted: int, kernel: int, stride: int) -> int:
    """By which a convolution makes the wanted size of another; half the kernel, if that does."""
    likely = (kernel // 2, *range(kernel))
    return next(padding for padding in likely if (size + 2 * padding - kernel) // stride + 1 == wanted)


@dih("at")
def test_at(case: Shared) -> None:
    assert case.hyper["p"] == 2, "attention is of squares"
    s = case.leaf("student_feature")
    student, teacher = with_stages(s), with_stages(case.given("teacher_feature"))
    loss = built_for(case, "at", {"at": 1.0}, student, teacher).loss("at", student, teacher, case.batch())
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__grad_student_feature", s.grad)


@dih("mhkd")
def test_mhkd(case: Shared) -> None:
    """The repository reads the final pair's weight from the first heads' place; its own place switches it on."""
    params, labels = case.hyper, case.given("labels")
    names = ("student_logits", "student_head_logits", "teacher_head_logits")
    s, s_heads, t_heads = (case.leaf(name) for name in names)
    switch, *alphas = params["alpha"]
    groups = range(1, len(alphas) + 1)
    # The case begins behind the heads, so that their maps are any that a head can be put on.
    shapes = (
        Outputs(s.detach(), stages=tuple(torch.zeros(1, width, 8, 8) for _ in groups))
        for width in (s_heads.shape[0], 2 * t_heads.shape[0])
    )
    terms = {**({"ce": 1 - alphas[0], "kd": alphas[0]} if switch else {}), "mhkd": 1.0}
    settings = {"kd_temperature": params["temperature"], "kd_alpha": listed(alphas), "beta": params["beta"]}
    method = built_for(case, "mhkd", terms, *shapes, **settings, groups=listed(groups))
    method.student_heads, method.teacher_heads = (nn.ModuleList(nn.Identity() for _ in groups) for _ in "st")
    student = Outputs(s, stages=s_heads.unbind())
    teacher = Outputs(case.given("teacher_logits"), stages=t_heads.unbind())
    loss = objective(method, student, teacher, case.batch())
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__teacher_head_ce", torch.stack([branch_loss([head], labels) for head in t_heads]))
    for name, logits in zip(names, (s, s_heads, t_heads), strict=True):
        case.check(f"out__grad_{name}", torch.zeros_like(logits) if logits.grad is None else logits.grad)


def tofd_networks(case: Shared, logits: Tensor, features: Tensor) -> tuple[Outputs, Outputs]:
    """Student and teacher with the classifiers that take part: as many as the student has features.

    The student's next logits, which a run of ours has as well, are left out where the teacher has none beside them.
    """
    teacher = network_outputs(case.given("teacher_logits").unbind(), case.given("teacher_features").unbind())
    student = network_outputs(logits.unbind(), features.unbind())
    if len(teacher.branches) < len(student.branches):
        student = network_outputs(logits[: len(features)].unbind(), features.unbind())
    return student, teacher


def network_outputs(logits: Sequence[Tensor], features: Sequence[Tensor]) -> Outputs:
    """The lists of a TOFD network, deepest first, as ours gives them: a branch on each stage has the deepest twice."""
    logits, features = logits[: len(features) + 1], features[: len(logits)]
    branches = list(zip(logits[1:], features[len(features) - len(logits) + 1 :], strict=True))
    stages = len(branches) + (len(features) == len(logits))
    return Outputs(
        logits[0], embedding=features[0], branches=tuple(branches[::-1]), stages=(torch.zeros(1, 1, 1, 1),) * stages
    )


@dih("tofd")
def test_tofd(case: Shared) -> None:
    params, links = case.hyper, case.given("link_weights")
    logits, features = case.leaf("student_logits"), case.leaf("student_features")
    student, teacher = tofd_networks(case, logits, features)
    settings = {
        "feature_weight": params["alpha"],
        "orthogonal_weight": params["beta"],
        "start_temperature": params["t"],
    }
    method: Any = built_for(case, "tofd", {"ce": 1.0, "tofd": 1.0}, student, teacher, **settings)
    method.load_state_dict({f"link.{i}.weight": links[i] for i in range(len(features))})
    loss = objective(method, student, teacher, batch(case.given("labels"), params["epoch_index_from_0"] + 1))
    loss.backward()
    case.check("out__loss", loss)
    case.check("out__grad_student_logits", logits.grad)
    case.check("out__grad_student_features", features.grad)
    unread = links[len(features) :]  # links that nothing reads are not built
    case.check(
        "out__grad_link_weights",
        torch.stack([*(link.grad for link in method.link.parameters()), *torch.zeros_like(unread)]),
    )
    check_tofd_parts(case, method, student, teacher)


def check_tofd_parts(case: Shared, method: Any, student: Outputs, teacher: Outputs) -> None:
    s, t = (deepest_first(x, len(x.stages), "shifted") for x in (student, teacher))
    weights = list(method.link.parameters())
    triples = list(zip(s.features, t.features, weights, strict=False))
    case.check("out__feature_dist", torch.stack([feature_loss([f], [g], [w]) for f, g, w in triples]))
    pairs = list(zip(s.logits, t.logits, strict=False))[: len(weights)]
    temperature = case.hyper["temperature"]
    case.check("out__logit_soft_ce", torch.stack([soft_cross_entropy([a], [b], temperature) for a, b in pairs]))
    case.check("out__task_ce", torch.stack([F.cross_entropy(a, case.given("labels")) for a, _ in pairs]))
    both = torch.stack([orthogonal_loss(w) for w in weights])
    case.check_sum(("out__orth_rows", "out__orth_cols"), both)


class Saying(nn.Module):
    """A network with given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor, keep: frozenset[str]) -> Outputs:
        return Outputs(self.logits)


@dih("dml")
def test_dml(case: Shared) -> None:
    """Burning in is cross-entropy alone, which is a weight; the repository's runner never does it."""
    params = case.hyper
    s, peers = case.leaf("student_logits"), case.leaf("peer_logits")
    terms = {"ce": 1.0, "dml": 0.0} if params["burn_in"] else {"dml": 1.0}
    settings = {"alpha": params["alpha"], "temperature": params["temperature"], "peers": len(peers)}
    network = models.build("resnet8", s.shape[1])
    method: Any = built_for(case, "dml", terms, Outputs(s), None, learner=network, **settings)
    method.peers = nn.ModuleList(map(Saying, peers.unbind()))
    loss = objective(method, Outputs(s), None, case.batch())
    loss.backward()
    case.check("out__grad_student_logits", s.grad)
    if params["burn_in"]:
        case.check("out__loss", loss)
        case.check("out__grad_peer_logits", peers.grad)
    else:
        check_mutual(case, s, peers, loss)


def check_mutual(case: Shared, s: Tensor, peers: Tensor, whole: Tensor) -> None:
    """The student's part of the method's loss, which has the peers' in it.

    No loss of ours reaches another network, as the repository's does before it drops that gradient.
    """
    labels, settings = case.given("labels"), (case.hyper["alpha"], case.hyper["temperature"])
    s.grad = peers.grad = None
    own = dml_loss(s, peers.unbind(), labels, *settings)
    own.backward()
    case.check("out__loss", own)
    case.check("out__grad_peer_logits", peers.grad)
    everyone = [s, *peers.unbind()]
    others = ([*chain(everyone[:i], everyone[i + 1 :])] for i in range(len(everyone)))
    losses = [dml_loss(one, rest, labels, *settings) for one, rest in zip(everyone, others, strict=True)]
    torch.testing.assert_close(whole, torch.stack(losses).sum())
