"""Losses stay finite, in value and gradient, where features are degenerate; and they need little memory."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.kdsvd import kdsvd_loss
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from tests.asking import aim

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, milestones=())
PARAMS = {"cc": {"dim": 6}, "crd": {"dim": 6, "negatives": 5}}
TERMS = ("kd", "at", "fitnet", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd", "kdsvd")
CLASSES = 5
#: (channels, height) of stem and stages.
TAPS = ((3, 6), (4, 6), (6, 3), (8, 2))
KINDS = ("zero", "constant", "duplicate", "opposite", "large", "mixed", "tiny")


def features(kind: str, shape: Sequence[int], draw: torch.Generator) -> Tensor:
    """Features (B, ...) of a degenerate kind."""
    noise = torch.randn(*shape, generator=draw)
    if kind == "mixed":  # a sample, a channel and a repeated sample among ordinary ones
        noise[:: max(len(noise) // 2, 1)] = 0
        noise[-1] = noise[len(noise) // 2]
        noise[:, 0] = 0
    return {
        "zero": torch.zeros_like(noise),
        "constant": torch.full_like(noise, (0.1, -3.0, 1e4)[int(noise.sum().abs() * 10) % 3]),
        "duplicate": noise[:1].expand_as(noise).clone(),
        "opposite": torch.stack([(-1) ** i * noise[0] for i in range(len(noise))]),
        "large": 1e4 * noise,
        "mixed": noise,
        "tiny": 1e-12 * noise,
    }[kind]


def outputs(kind: str, batch: int, seed: int, dtype: torch.dtype = torch.float32) -> Outputs:
    draw = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> Tensor:
        # As the engine gives them: rounded by the network's precision, handed out as float32.
        return features(kind, (batch, *shape), draw).to(dtype).float().requires_grad_()

    maps = [made(c, h, h) for c, h in TAPS]
    return Outputs(made(CLASSES), maps[0], tuple(maps[1:]), tuple(made(c, h, h) for c, h in TAPS[1:]), made(8))


def tensors(given: Outputs) -> dict[str, Tensor]:
    assert given.stem is not None
    assert given.embedding is not None
    named = {"logits": given.logits, "stem": given.stem, "embedding": given.embedding}
    named |= {f"stage{i}": x for i, x in enumerate(given.stages)}
    return named | {f"preact{i}": x for i, x in enumerate(given.preacts)}


def detached(given: Outputs) -> Outputs:
    assert given.stem is not None
    assert given.embedding is not None
    stages, preacts = (tuple(x.detach() for x in taps) for taps in (given.stages, given.preacts))
    return Outputs(given.logits.detach(), given.stem.detach(), stages, preacts, given.embedding.detach())


def build(term: str, shapes: Outputs) -> Method:
    torch.manual_seed(3)
    labels = torch.arange(40) % CLASSES
    return methods.get(term)(
        Setting(RECIPE, aim(term, {"ce": 1.0, term: 1.0}, PARAMS.get(term)), labels, CLASSES, shapes, shapes)
    )


@pytest.mark.parametrize("precision", ["float32", "bf16", "inside bf16 autocast"])
@pytest.mark.parametrize("term", TERMS)
@settings(max_examples=40, deadline=None)
@given(
    student=st.sampled_from(KINDS),
    teacher=st.sampled_from((*KINDS, "the student's")),
    batch=st.sampled_from((1, 2, 5)),
    seed=st.integers(0, 10),
)
def test_degenerate_features(term: str, precision: str, student: str, teacher: str, batch: int, seed: int) -> None:
    """The engine computes losses in float32, on features that may be rounded; they hold inside autocast as well."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    s = outputs(student, batch, seed, dtype)
    t = detached(s if teacher == "the student's" else outputs(teacher, batch, seed + 100, dtype))
    method = build(term, outputs("mixed", 1, 0))
    given_batch = Batch(torch.zeros(batch), torch.arange(batch), torch.arange(batch), 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "inside bf16 autocast"):
        loss = method.loss(term, s, t, given_batch)
    assert loss.isfinite(), f"{term} is {loss.item()}"
    loss.backward()
    gradients = {**tensors(s), **dict(method.named_parameters())}
    bad = [name for name, x in gradients.items() if x.grad is not None and not x.grad.isfinite().all()]
    assert not bad
    assert any(x.grad is not None for x in tensors(s).values())


@pytest.mark.parametrize("term", ["cc", "rkd"])
def test_a_batch_of_one_sample_has_no_relations(term: str) -> None:
    s, t = outputs("large", 1, 1), detached(outputs("large", 1, 2))
    batch = Batch(torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1)
    assert build(term, s).loss(term, s, t, batch) == 0


def test_a_zero_embedding_has_a_gradient_in_pkt() -> None:
    from kdtable.methods.pkt import pkt_loss

    s = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, -1.0]], requires_grad=True)
    pkt_loss(s, torch.eye(3)).backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_opposite_embeddings_have_no_negative_probability_in_pkt() -> None:
    from kdtable.methods.pkt import pkt_loss

    draw = torch.Generator().manual_seed(0)
    for width in (3, 64, 500):
        half = torch.randn(1, width, generator=draw)
        e = torch.cat([half, -half]).requires_grad_()
        for other in (torch.ones(2, 3), e.detach()):
            assert pkt_loss(e, other).isfinite()


def test_vid_scale_does_not_overflow() -> None:
    from kdtable.methods.vid import gaussian_loss

    scale = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    loss = gaussian_loss(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), scale)
    loss.backward()
    assert loss.isfinite()
    assert scale.grad is not None
    assert scale.grad.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 100))
def test_rkd_angles_and_distances_written_out(batch: int, width: int, seed: int) -> None:
    from kdtable.methods.rkd import _angles, _distances

    e = torch.randn(batch, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(e.unsqueeze(0) - e.unsqueeze(1), dim=2)
    torch.testing.assert_close(_angles(e), torch.einsum("ijd,ikd->ijk", unit, unit))
    gaps = torch.cdist(e, e)
    torch.testing.assert_close(_distances(e), gaps / gaps[gaps > 0].mean(), rtol=1e-6, atol=1e-6)


def peak(work: Callable[[], None]) -> int:
    """Largest number of bytes that were allocated at one time during ``work``, beyond those at its start."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.kineto_results.events()  # type: ignore[union-attr]
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = highest = 0
    for _, size in memory:
        now += size
        highest = max(highest, now)
    return highest


#: The bare loss of each term and what it is called with beyond one tap of each network. KDSVD is left out: what its
#: decomposition allocates is the library's.
LOSSES: dict[str, tuple[str, bool]] = {
    "at": ("attention_loss", True),
    "sp": ("similarity_loss", True),
    "nst": ("nst_loss", True),
    "ab": ("activation_boundary_loss", True),
    "fsp": ("fsp_loss", True),
    "fitnet": ("hint_loss", False),
    "ft": ("factor_loss", False),
    "cc": ("correlation_loss", False),
    "rkd": ("rkd_loss", False),
    "pkt": ("pkt_loss", False),
}
MAPS = [(64, 16, 32, 32), (64, 64, 8, 8), (64, 512, 4, 4)]
SIZES = [
    *((term, shape) for term in ("at", "sp", "nst", "ab", "fitnet", "ft") for shape in MAPS),
    *(("fsp", shape) for shape in MAPS[:2]),  # why not the third: see its docstring
    *((term, (64, 256)) for term in ("cc", "rkd", "pkt")),
]


@pytest.mark.parametrize(("term", "shape"), SIZES, ids=str)
def test_memory_of_a_loss(term: str, shape: tuple[int, ...]) -> None:
    """Forward and backward, the student's gradient included, within four times the features of both networks.

    RKD's directions are the exception that its docstring explains: there they count as features.
    """
    name, on_taps = LOSSES[term]
    loss = getattr(import_module(f"kdtable.methods.{term}"), name)
    s, t = torch.randn(shape, requires_grad=True), torch.randn(shape)
    taps = 2 if term == "fsp" else 1

    def work() -> None:
        (loss([s] * taps, [t] * taps) if on_taps else loss(s, t)).backward()

    inputs = 4 * (s.numel() + t.numel())
    directions = len(s) * inputs if term == "rkd" else 0
    angles = 4 * len(s) ** 3 if term == "rkd" else 0
    assert peak(work) <= 4 * (inputs + directions) + angles


class Calls(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_kdsvd_decomposes_all_images_at_once() -> None:
    """A GPU takes as long for the matrices of one image as for those of all."""
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(6, channels, 4, 4, generator=draw) for channels in (4, 8)]
    with Calls() as calls:
        kdsvd_loss([x.clone().requires_grad_() for x in maps], maps).backward()
    assert calls.names.count("_linalg_eigh") == 2 * len(maps)
