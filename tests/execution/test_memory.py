"""What fits into memory, and how much there is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from kdtable import models, papers
from kdtable.execution import memory
from kdtable.execution.memory import (
    AHEAD,
    BACKWARD,
    COPIES,
    SHARE,
    TEACHER_COPIES,
    fitting,
    footprint,
    free_memory,
    halves,
    needed,
)
from kdtable.methods import get
from kdtable.methods.objective import Objective
from kdtable.models.outputs import EVERYTHING
from kdtable.numerics.layout import keep_freed_memory, to_device
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run, Sharding
from tests.execution.samples import DATA, RECIPE, TEACHER, cohort, run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
#: Bytes of the padded training images.
IMAGES = 3 * DATA.train_count * (32 + 2 * RECIPE.crop_padding) ** 2
RUNS = tuple(run(row) for row in ("vanilla", "kd", "at", "sp", "crd"))


# --- what a student takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8", "resnet20_a", "resnet8x4", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1"])
def test_the_footprint_is_that_of_a_real_pass(name: str) -> None:
    network = to_device(models.build(name, 10), CPU)
    images = torch.rand(4, 3, 32, 32).to(memory_format=torch.channels_last)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images, EVERYTHING)
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    maps = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    assert footprint(name, 10, 32, 4)[:2] == (sum(p.nbytes for p in network.parameters()), maps)


def test_a_footprint_grows_with_batch_and_image() -> None:
    weights, maps, _ = footprint("resnet8", 10, 32, 16)[:3]
    assert footprint("resnet8", 10, 32, 32)[0] == footprint("resnet8", 10, 64, 16)[0] == weights
    assert 1.9 * maps < footprint("resnet8", 10, 32, 32)[1] < 2.1 * maps
    assert 3.5 * maps < footprint("resnet8", 10, 64, 16)[1] < 4.5 * maps


def test_on_a_cpu_only_as_many_students_compute_as_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_cores", lambda: 2)
    small, large = run("vanilla"), run("vanilla", "resnet8x4")
    (w, m, o), (large_w, large_m, large_o) = (footprint(name, 4, 32, 16)[:3] for name in ("resnet8", "resnet8x4"))
    one, other = BACKWARD * m + o, BACKWARD * large_m + large_o
    assert needed([small], CPU) == COPIES * w + one + IMAGES
    assert needed([small, small, large], CPU) == COPIES * (2 * w + large_w) + other + one + IMAGES
    assert needed([small, small, large], CUDA) == COPIES * (2 * w + large_w) + other + 2 * one + IMAGES


def test_teacher_losses_and_data_set_count() -> None:
    """The largest teacher counts once, in the network that is kept and the one that runs, with two batches' outputs."""
    weights, _, outputs = footprint("resnet14", 4, 32, 16)[:3]
    teacher = TEACHER_COPIES * weights + AHEAD * outputs
    assert needed([run("kd")], CUDA) == needed([run("vanilla")], CUDA) + teacher
    assert needed([run("kd"), run("at")], CUDA) == needed([run("vanilla")] * 2, CUDA) + teacher
    larger = replace(DATA, train_count=DATA.train_count + 10)
    assert needed([run("kd", data=larger)], CPU) - needed([run("kd")], CPU) == 10 * 3 * 40 * 40
    assert footprint("resnet8", 4, 32, 16).outputs > 16 * 3 * 16 * 32 * 32 * 4, "maps are part of them"


def without_labels(row: str, **params: object) -> Run:
    settings = papers.load("moco-cifar").row(row)
    objective = Objective.of(get(row, "self-supervised").hyper, settings.terms, {**settings.params, **params})
    teacher = None if row in ("vanilla", "moco") else TEACHER
    return Run(row, "resnet8", DATA, RECIPE, objective, 1, teacher=teacher, task="self-supervised")


def test_key_encoders_and_queues_count() -> None:
    """Three copies of a queue, two of a key encoder; the teacher's vectors are as wide as its embedding, 64."""
    weights, plain = footprint("resnet8", 4, 32, 16).weights, needed([without_labels("vanilla")], CUDA)
    moco = without_labels("moco", queue=4096, dim=128)
    assert needed([moco], CUDA) - plain == 2 * weights + 3 * 4 * 4096 * 128
    teacher = needed([run("kd")], CUDA) - needed([run("vanilla")], CUDA)
    assert needed([without_labels("seed", queue=8192)], CUDA) - plain - teacher == 3 * 4 * 8192 * 64
    assert needed([without_labels("mgd", queue=4096)], CUDA) - teacher == needed([moco], CUDA)


def test_a_share_of_a_batch_needs_less() -> None:
    whole = run("kd")
    quarter = replace(whole, recipe=replace(RECIPE, batch_size=4))
    assert needed([replace(whole, sharding=Sharding(devices=2, accumulate=2))], CPU) == needed([quarter], CPU)


def test_a_larger_batch_needs_more() -> None:
    assert needed([run("kd", recipe=replace(RECIPE, batch_size=32))], CPU) > 1.5 * needed([run("kd")], CPU)


# --- splitting ---------------------------------------------------------------------------------------------------


def _sizes(parts: list[CohortPlan]) -> list[int]:
    return [len(part.runs) for part in parts]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes free memory so that a number of runs of equal size fits."""
    monkeypatch.setattr(memory, "needed", lambda runs, device: float(len(runs)))

    def make(runs: float) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda device: runs / SHARE)

    return make


@pytest.mark.parametrize(
    ("fits", "sizes"),
    [(5, [5]), (100, [5]), (4.9, [4, 1]), (3, [3, 2]), (2.5, [2, 2, 1]), (1, [1] * 5), (0.9, [1] * 5), (0, [1] * 5)],
)
def test_a_cohort_is_split_where_it_does_not_fit(fits: float, sizes: list[int], room: Callable[[float], None]) -> None:
    room(fits)
    parts = list(fitting(cohort(*RUNS), CPU))
    assert _sizes(parts) == sizes
    assert tuple(run for part in parts for run in part.runs) == RUNS


def test_processes_that_share_a_device_share_its_memory(room: Callable[[float], None]) -> None:
    room(5)
    assert _sizes(list(fitting(cohort(*RUNS), CPU, sharers=2))) == [2, 2, 1]


def test_a_part_has_the_teacher_if_one_of_its_runs_has(room: Callable[[float], None]) -> None:
    room(1)
    assert [part.teacher for part in fitting(cohort(*RUNS), CPU)] == [None, TEACHER, TEACHER, TEACHER, TEACHER]
    room(2)
    assert [part.teacher for part in fitting(cohort(*RUNS), CPU)] == [TEACHER] * 3
    room(5)
    assert list(fitting(cohort(RUNS[0]), CPU)) == [cohort(RUNS[0])]


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1]), (3, [1, 2]), (5, [2, 3])])
def test_halves(count: int, sizes: list[int]) -> None:
    whole = cohort(*RUNS[:count])
    parts = halves(whole)
    assert _sizes(list(parts)) == sizes
    assert parts[0].runs + parts[1].runs == whole.runs
    assert parts[1].teacher == TEACHER
    assert (parts[0].teacher is None) == (count < 4), "the plain student alone asks no teacher"


# --- what is free ------------------------------------------------------------------------------------------------


def _container(folder: Path, limit: str) -> Path:
    stat = "anon 500\nfile 300\ninactive_file 40\nactive_file 60\nslab 7"
    for name, text in {"memory.max": limit, "memory.current": "900", "memory.stat": stat}.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def test_what_is_left_in_a_container(tmp_path: Path) -> None:
    assert memory._left_in_container(tmp_path) == float("inf")
    assert memory._left_in_container(_container(tmp_path, "max")) == float("inf")
    assert memory._left_in_container(_container(tmp_path, "1000")) == 1000 - 900 + 40 + 60


@pytest.mark.parametrize(("left", "free"), [(float("inf"), 700.0), (300.0, 300.0), (800.0, 700.0)])
def test_free_memory_of_a_cpu(left: float, free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=700))
    monkeypatch.setattr(memory, "_left_in_container", lambda: left)
    assert free_memory(CPU) == free


def test_free_memory_of_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("what torch keeps is given back"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: calls.append(str(device)) or (900, 1000))
    assert free_memory(torch.device("cuda:1")) == 900
    assert calls == ["what torch keeps is given back", "cuda:1"]


def test_what_this_process_keeps_of_freed_memory_counts_as_free() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library gives memory back by itself")
    size = 400 * 2**20
    process = psutil.Process()
    block = torch.ones(size // 4)
    del block
    kept = process.memory_info().rss
    free_memory(CPU)
    assert kept - process.memory_info().rss > size / 2
