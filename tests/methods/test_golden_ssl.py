"""Training without labels, in value and gradient, through the methods and steps of a run."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable import methods, papers
from kdtable.data.views import Views
from kdtable.methods.base import Setting
from kdtable.methods.moco import MoCo
from kdtable.methods.moco_mgd import MoCoMGDParams
from kdtable.methods.objective import Objective
from kdtable.methods.parts.contrast import contrast_logits
from kdtable.methods.parts.pretraining import ProbeParams
from kdtable.models.outputs import Outputs
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.self_supervised import TwoViews
from kdtable.training.step import Learner
from tests import engine
from tests.golden_arrays import Dotted
from tests.golden_data import checks, manifest
from tests.methods.golden_sets import batch
from tests.methods.test_golden_mgd import Teacher


class Case(Dotted):
    """Compared relatively, whatever the size; what is zero up to rounding, by its own bound."""

    def check(self, name: str, value: Any) -> None:
        self._name = name
        super().check(name, value)

    def _tolerance(self, largest: Tensor) -> Tensor:
        rules, double = manifest(self.entry.folder), self.dtype == torch.float64
        if self._name in self.data.get("zero", ()):
            return torch.tensor(float(rules["atol64" if double else "atol32"]))
        if self._name.startswith("out.margin"):
            return 2e-6 * largest
        return (rules["rtol64"] if double else self.data["f32_tol"]) * largest


ssl = partial(checks, "ssl", arrays=Case, dtypes=(torch.float64, torch.float32))


class Given(nn.Module):
    """A trunk that hands its images back as embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)

    def linear_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, images: Tensor, keep: frozenset[str] = frozenset()) -> Outputs:
        return Outputs(torch.zeros(len(images), 2), embedding=images)


class Tiny(Given):
    """A linear layer and a batch norm."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(width)
        self.trunk, self.bn = nn.Linear(inputs, width), nn.BatchNorm1d(width)

    def forward(self, images: Tensor, keep: frozenset[str] = frozenset()) -> Outputs:
        return super().forward(self.bn(self.trunk(images)))


def views(first: Tensor, second: Tensor) -> Views:
    nothing = torch.zeros(len(first), dtype=torch.int64)
    return Views(first, nothing, nothing, 1, other=second)


def built(
    row: str,
    case: Case,
    student: Outputs,
    recipe: Recipe,
    learner: nn.Module,
    teacher: Outputs | None = None,
    network: nn.Module | None = None,
    **params: Any,
) -> Any:
    """The method of a row, with the case's queue; it is trained in the case's type."""
    kind = methods.get(row, "self-supervised")
    objective = Objective.of(kind.hyper, {"infonce" if row == "moco" else row: 1.0}, params)
    setting = Setting(
        recipe, objective, torch.zeros(4), 2, student, teacher, student=learner, teacher=network, base_terms={}
    )
    method: Any = kind(setting).to(case.dtype).train()
    method.queue.vectors.copy_(case.array("in.queue"))
    if "in.queue_ptr" in case:
        method.queue.pointer.copy_(case.array("in.queue_ptr"))
    return method


def without_head(method: Any) -> Any:
    """The vectors of such a case come from behind the head."""
    for name in ("head", "key_head"):
        if hasattr(method, name):
            setattr(method, name, nn.Identity())
    return method


def contrasting(row: str, case: Case, s: tuple[Tensor, ...] = (), **others: Any) -> tuple[Any, Outputs, Views]:
    """A method with InfoNCE on a case's queries and keys: itself, the student's outputs, and the batch."""
    query, key = case.leaf("in.query"), case.array("in.key")
    width, length = case.array("in.queue").shape
    student = Outputs(torch.zeros(len(query), 2), embedding=query, preacts=s)
    recipe = Recipe(1, len(query), 0.1, ())
    settings = {"queue": length, "dim": width, "temperature": case.hyper["T"], "bn_splits": 1}
    method = built(row, case, student, recipe, Given(width), **settings, **others)
    return without_head(method), student, views(query, key)


def check_queue(case: Case, method: Any, prefix: str = "out.") -> None:
    case.check(f"{prefix}queue", method.queue.vectors)
    case.check(f"{prefix}queue_ptr", method.queue.pointer)


@ssl("infonce")
def test_infonce(case: Case) -> None:
    method, student, seen = contrasting("moco", case)
    units = (F.normalize(x, dim=1) for x in (seen.images, seen.other))
    case.check("out.logits", contrast_logits(*units, method.queue.vectors, case.hyper["T"]))
    loss = method.loss("infonce", student, None, seen)
    loss.backward()
    case.check("out.loss", loss)
    case.check("grad.query", seen.images.grad)
    check_queue(case, method)


@ssl("seed")
def test_seed(case: Case) -> None:
    s, t, hyper = case.leaf("in.s0"), case.array("in.t0"), case.hyper
    student, teacher = (Outputs(torch.zeros(len(x), 2), embedding=x) for x in (s, t))
    settings = {"temperature": hyper["tau_s"], "teacher_temperature": hyper["tau_t"]}
    recipe, trunk = Recipe(1, len(s), 0.1, ()), Given(s.shape[1])
    length = case.array("in.queue").shape[1]
    method = without_head(built("seed", case, student, recipe, trunk, teacher, queue=length, **settings))
    us, ut = (F.normalize(x, dim=1) for x in (s, t))
    case.check("out.logits", contrast_logits(us, ut, method.queue.vectors, hyper["tau_s"]))
    case.check("out.teacher_probability", contrast_logits(ut, ut, method.queue.vectors, hyper["tau_t"]).softmax(dim=1))
    loss = method.loss("seed", student, teacher, batch(torch.zeros(len(s))))
    loss.backward()
    case.check("out.loss", loss)
    case.check("grad.s0", s.grad)
    check_queue(case, method)


@ssl("mgd_unsup")
def test_matching_guided_distillation(case: Case) -> None:
    places = range(len(case.hyper["widths_s"]))
    s, t = tuple(case.leaf(f"in.s{i}") for i in places), tuple(case.array(f"in.t{i}") for i in places)
    teacher = Outputs(torch.zeros(len(t[0]), 2), preacts=t)
    norms = [{"weight": case.array(f"in.bn_weight{i}"), "bias": case.array(f"in.bn_bias{i}")} for i in places]
    reading = {"code": "default", "paper": "teacher"}[case.hyper["margins"]]
    settings = {"margins_from": reading, "reducer": case.hyper["reducer"], "loss_factor": case.hyper["divisor"]}
    method, student, seen = contrasting("mgd", case, s, teacher=teacher, network=Teacher(norms), **settings)
    for i in places:
        case.check(f"out.margin{i}", method.get_buffer(f"margin{i}"))
        method.get_buffer(f"margin{i}").copy_(case.array(f"in.margin{i}"))
        width = s[i].shape[1]
        method.get_buffer(f"groups{i}").copy_(case.array(f"in.matching{i}").view(-1, width).T)
        norm = method.adaptors[i]
        norm.eps, norm.momentum = case.hyper["bn_eps"], case.hyper["bn_momentum"]
        for name in ("weight", "bias"):
            getattr(norm, name).data.copy_(case.array(f"param.norms.{i}.{name}"))
        for name in ("running_mean", "running_var"):
            getattr(norm, name).copy_(case.array(f"buffer.norms.{i}.{name}"))
    method.is_matched = True
    infonce = method.loss("infonce", student, None, seen)
    distance = method.loss("mgd", student, teacher, seen)
    (infonce + distance).backward()
    case.check("out.loss", infonce + distance)
    case.check("out.infonce", infonce)
    case.check("out.distill", distance)
    case.check("out.distance", distance * case.hyper["batch"] * case.hyper["divisor"])
    case.check("grad.query", seen.images.grad)
    for i in places:
        case.check(f"grad.s{i}", s[i].grad)
        norm = method.adaptors[i]
        for name in ("weight", "bias"):
            case.check(f"pgrad.norms.{i}.{name}", getattr(norm, name).grad)
        for name in ("running_mean", "running_var"):
            case.check(f"buffer_after.norms.{i}.{name}", getattr(norm, name))
    case.check("out.partial", torch.stack([method._partial(i, s[i], t[i]) for i in places]))


@ssl("moco_trajectory")
def test_steps_of_moco(case: Case) -> None:
    """Through the learner of a run: gradients, both encoders, queue, after each step."""
    hyper = case.hyper
    student = Tiny(case.array("param.encoder.trunk.weight").shape[1], len(case.array("param.encoder.trunk.bias")))
    for name in ("trunk", "bn"):
        part = student.get_submodule(name)
        state = {key: case.array(f"param.encoder.{name}.{key}") for key in ("weight", "bias")}
        part.load_state_dict(state, strict=False)
    student = student.to(case.dtype)
    student.bn.running_mean.copy_(case.array("buffer.encoder.bn.running_mean"))  # type: ignore[union-attr]
    student.bn.running_var.copy_(case.array("buffer.encoder.bn.running_var"))  # type: ignore[union-attr]
    recipe = Recipe(
        1,
        hyper["batch"],
        hyper["lr"],
        (),
        momentum=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        views="moco-v2",
    )
    shapes = Outputs(torch.zeros(1, 2), embedding=torch.zeros(1, student.fc.in_features))
    settings = {"queue": hyper["K"], "dim": hyper["dim"], "key_momentum": hyper["m"], "temperature": hyper["T"]}
    method: MoCo = built("moco", case, shapes, recipe, student, bn_splits=1, **settings)
    for head in (method.head, method.key_head):
        state = {f"{i}.{key}": case.array(f"param.encoder.fc.{i}.{key}") for i in (0, 2) for key in ("weight", "bias")}
        head.load_state_dict(state)
    task = TwoViews(engine.image_set(), recipe, 1, Precision("fp32", engine.CPU))
    learner = Learner(student, method, task, method.stages()[0])
    learner.begin_epoch(1)
    for i in range(hyper["steps"]):
        _check_step(case, learner, method, i)


def _check_step(case: Case, learner: Learner, method: MoCo, i: int) -> None:
    step, student = f"out.step{i}.", learner.student
    seen = views(case.array(f"in.step{i}.view_q"), case.array(f"in.step{i}.view_k"))
    queue, before = method.queue.vectors.clone(), learner.sums[0].item()
    kept: dict[str, Tensor] = {}
    inner = method.contrast

    def contrast(q: Tensor, images: Any) -> Tensor:
        assert method._keys is not None
        kept["logits"] = contrast_logits(q, method._keys, queue, case.hyper["T"])
        return inner(q, images)

    method.contrast = contrast  # type: ignore[method-assign]
    learner.step(seen, None)
    method.contrast = inner  # type: ignore[method-assign]
    case.check(f"{step}logits", kept["logits"])
    case.check(f"{step}loss", (learner.sums[0].item() - before) / len(seen))
    for name, parameter in _encoder(student, method.head).items():
        if f"{step}grad.{name}" in case:
            case.check(f"{step}grad.{name}", parameter.grad)
        case.check(f"{step}query.{name}", parameter)
    for name, tensor in _encoder(method.key_trunk, method.key_head).items():
        case.check(f"{step}key.{name}", tensor)
    check_queue(case, method, step)


def _encoder(trunk: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    """The tensors of an encoder by their golden names."""
    parts = {"trunk": trunk.get_submodule("trunk"), "bn": trunk.get_submodule("bn")}
    found = {f"{name}.{key}": x for name, part in parts.items() for key, x in part.named_parameters()}
    found |= {f"bn.{key}": x for key, x in parts["bn"].named_buffers() if key != "num_batches_tracked"}
    return found | {f"fc.{key}": x for key, x in head.named_parameters()}


@ssl("lr_schedule")
def test_learning_rates(case: Case) -> None:
    """By the recipes of the stage without labels, and of the probe."""
    hyper, epochs = case.hyper, case.array("in.epochs").tolist()
    if "epochs" not in hyper:
        probe = ProbeParams(probe_lr=hyper["lr"], probe_steps=",".join(f"{step / 100}" for step in hyper["schedule"]))
        recipe = probe.probe_recipe(Recipe(1, 4, 0.1, ()), 100)
    else:
        rate = hyper["lr"] * hyper.get("lr_mult", 1)
        warmup = {
            "warmup_epochs": hyper.get("warmup_epochs", 0),
            "warmup_factor": 1 / hyper["lr_mult"] if "lr_mult" in hyper else 1e-3,
        }
        schedule: Any = "whole-cosine" if hyper["cos"] else "steps"
        recipe = Recipe(hyper["epochs"], 4, rate, tuple(hyper["schedule"]), schedule=schedule, **warmup)
    case.check("out.lr", [recipe.lr_at(epoch + 1) for epoch in epochs])


@ssl("mgd_unsup_updates")
def test_epochs_of_matching(case: Case) -> None:
    """By the row of the paper, whose epochs count from 1."""
    params = papers.load("mgd-unsup").rows["mgd"].params
    due = MoCoMGDParams(update_after=params["update_after"]).is_due
    assert due(1)
    found = [epoch - 2 for epoch in range(2, case.hyper["epochs"] + 1) if due(epoch)]
    case.check("out.after_epoch", torch.tensor(found))
