"""Recording and replaying steps, with a recorder that executes on replay what a CUDA graph would."""

from collections.abc import Callable

import pytest
import torch

from kdtable.training.cohort import Cohort
from kdtable.training.cuda_graphs import WARM_UP
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.training.test_promises import assert_same

ROWS = ("vanilla", "kd", "at", "crd+kd", "fitnet-2stage")
#: Six batches and a short one, so that an epoch has steps before, after and beside the recording.
IMAGES = 16 * (WARM_UP + 3) + 8


class Recorder:
    """Keeps the work and does it on replay, on whatever lies in its inputs then."""

    made = 0
    replays = 0

    def __init__(self) -> None:
        type(self).made += 1

    def record(self, work: Callable[[], object], generators: list[torch.Generator]) -> None:
        assert all(isinstance(generator, torch.Generator) for generator in generators)
        self._work = work

    def replay(self) -> None:
        type(self).replays += 1
        self._work()


class Refuser(Recorder):
    def record(self, work: Callable[[], object], generators: list[torch.Generator]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def trained(new_graph: type[Recorder] | None) -> engine.Sink:
    images = engine.image_set(train=IMAGES)
    task, teacher, sink = engine.task(images), engine.teacher(images=images), engine.Sink()
    members = [engine.member(row, task, teacher) for row in ROWS]
    Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=1, new_graph=new_graph).train()
    assert not sink.failures
    return sink


@pytest.fixture(scope="module")
def plain() -> engine.Sink:
    return trained(None)


@pytest.mark.parametrize("graph", [Recorder, Refuser])
def test_replayed_steps_are_the_same_steps(plain: engine.Sink, graph: type[Recorder]) -> None:
    graph.made = graph.replays = 0
    recorded = trained(graph)
    assert recorded.states.keys() == plain.states.keys()
    for key, state in plain.states.items():
        assert_same(state, recorded.states[key], str(key))
    epochs = len(plain.states)
    if graph is Recorder:
        # Of an epoch's seven steps the last is short and runs as it is; so do the warm-ups. The teacher's passes come
        # to it, of which the first fills the inputs.
        assert graph.replays > epochs * 3
        assert graph.made > epochs
    else:
        assert graph.made > 0
        assert graph.replays == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_recorded_steps_agree_with_plain_ones() -> None:
    from kdtable.training.cuda_graphs import CudaGraph

    weight = torch.ones(4, device="cuda")
    graph = CudaGraph()
    graph.record(lambda: weight.mul_(2), [torch.Generator("cuda")])
    assert weight.sum().item() == 4  # recording executes nothing
    graph.replay()
    assert weight.sum().item() == 8
