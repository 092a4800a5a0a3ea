"""Two processes that train students without labels together: keys are shuffled among them, and their queues agree."""

from typing import Any

import pytest
import torch
from torch import nn

from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.training.member import Member
from tests.tasks.students import RECIPE, train
from tests.training import processes

pytestmark = pytest.mark.slow  # two processes start

TAUGHT = ("mgd", "seed")


def without_statistics(one: Member) -> None:
    """Batch norms use their running statistics, which do not depend on how a batch is divided."""
    own = one.method.set_modes

    def set_modes(stage: Any, student: nn.Module) -> None:
        own(stage, student)
        for module in (*student.modules(), *one.method.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    one.method.set_modes = set_modes  # type: ignore[method-assign]


def pretrained(ranks: Ranks) -> dict[str, Any]:
    """States after the stage without labels: of ``moco`` with statistics of two parts of a batch, else without any."""
    sink, _ = train(["moco"], ranks=ranks)
    found = {"moco": sink.states["moco", RECIPE.epochs]}
    sink, _ = train(TAUGHT, ranks=ranks, change=without_statistics)
    return found | {row: sink.states[row, RECIPE.epochs] for row in TAUGHT}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return pretrained(SINGLE_PROCESS)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.together([pretrained], tmp_path_factory.mktemp("ranks"))["pretrained"]


@pytest.mark.parametrize("row", ["moco", *TAUGHT])
def test_two_processes_end_where_one_does(row: str, alone: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """But for the running statistics, which are rank 0's."""
    first, second = (found[row] for found in two)
    for part in ("student", "method"):
        for key, expected in alone[row][part].items():
            if isinstance(expected, torch.Tensor) and "running" not in key:
                torch.testing.assert_close(first[part][key], expected, rtol=2e-4, atol=2e-6, msg=f"{row} {key}")
                assert torch.equal(first[part][key], second[part][key]), key
    assert [record["terms"] for record in first["history"]] == [
        pytest.approx(record["terms"], rel=1e-4) for record in alone[row]["history"]
    ]
