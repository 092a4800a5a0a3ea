"""Which tests are slow: those of ``slow.txt``, which ``scripts/test`` leaves out unless ``--all`` is given.

A line names a test, and how many of its parameters are quick all the same. The list is made of CPU seconds:

    scripts/test --all --cpu-times times.tsv
    .venv/bin/python -m tests.slow times.tsv

Tests of golden data are never in it: none of their cases is left out. Nor are those that keep a promise which no other
test keeps as a whole; they are told in ``KEPT``.
"""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

LIST: Final = Path(__file__).with_name("slow.txt")
#: CPU seconds from which on a test is slow, and one with parameters; and what its first parameters may take, which stay
#: quick.
ONE, FAMILY, QUICK = 1.2, 2.5, 1.5
#: Quick whatever they take.
KEPT: Final = frozenset(
    {
        "tests/cli/test_demo.py::test_the_demo_prints_a_table_and_commands_that_work",
        "tests/cli/test_help.py::test_reading_the_store_does_not_import_torch",
        "tests/cli/test_interruptions.py::test_a_killed_command_goes_on_to_the_same_numbers",
        "tests/cli/test_log.py::test_tensorboard_has_what_the_store_has",
        "tests/cli/test_plugins.py::test_a_store_is_read_without_the_plug_in",
        "tests/cli/test_retrain.py::test_an_edited_method_is_told_of_and_trained_again",
        "tests/cli/test_s3.py::test_killed_and_called_again",
        "tests/cli/test_self_supervised.py::test_a_grid_trains_and_prints_its_table",
        "tests/cli/test_store.py::test_a_grid_on_a_server",
        "tests/cli/test_sweep.py::test_the_best_mean_on_held_out_images_is_chosen",
        "tests/detection/test_commands.py::test_a_grid_ends_in_a_table_of_six_numbers",
        "tests/detection/test_engine.py::test_alone_or_in_a_cohort",
        "tests/docs/test_blocks.py::test_the_tutorial_leaves_a_teacher_a_store_and_a_page",
        "tests/docs/test_site.py::test_nothing_is_loaded_from_another_site",
        "tests/execution/test_ray.py::test_a_cluster_makes_the_same_grid_as_this_process",
        "tests/execution/test_shared_files.py::test_a_grid_whose_files_are_elsewhere",
        "tests/execution/test_slurm.py::test_slurm_makes_the_same_grid_as_this_process",
        "tests/faults/test_killed.py::test_killed_at_every_chosen_point_in_turn",
        "tests/faults/test_troubles.py::test_a_disk_that_is_full_from_the_start",
        "tests/models/test_resnet_a.py::test_accuracy_of_the_published_checkpoint",
        "tests/planning/test_ids.py::test_ids_of_published_rows",
        "tests/report/test_page_in_chromium.py::test_the_page_is_complete_without_scripts",
        "tests/test_golden_option.py::test_what_is_wrong_or_left_out_fails_by_its_name",
        "tests/test_package.py::test_the_installed_command_works_without_the_repository",
        "tests/training/test_fake_gpu.py::test_a_step_of_every_row",
        "tests/training/test_pins.py::test_numbers_change_only_with_a_version",
        "tests/training/test_promises.py::test_continued_from_a_checkpoint",
        "tests/training/test_ranks.py::test_two_processes_end_where_one_does",
    }
)


def listed() -> dict[str, int]:
    """Name of a slow test to the number of its parameters that are quick."""
    lines = (line.split() for line in LIST.read_text().splitlines() if not line.startswith("#"))
    return {name: int(quick) for name, quick in lines}


def mark(items: Iterable[pytest.Item]) -> None:
    """Mark the tests of the list."""
    slow, seen = listed(), Counter[str]()
    for item in items:
        name = item.nodeid.partition("[")[0]
        seen[name] += 1
        if seen[name] > slow.get(name, sys.maxsize):
            item.add_marker(pytest.mark.slow)


class Times:
    """Writes CPU seconds of each test, those of its processes too, to a file: a line for each."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Time a test with its fixtures."""
        before = _seconds()
        result = yield
        with self._file.open("a") as file:
            file.write(f"{_seconds() - before:.3f}\t{item.nodeid}\n")
        return result


def _seconds() -> float:
    """CPU seconds of this process, of its children that have ended, and of those that go on, such as servers."""
    alive = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            alive += sum(process.cpu_times()[:4])
    return sum(os.times()[:4]) + alive


def choose(lines: Iterable[str]) -> dict[str, int]:
    """The list, of what ``Times`` wrote."""
    families: defaultdict[str, list[float]] = defaultdict(list)
    for line in lines:
        seconds, name = line.rstrip("\n").split("\t")
        families[name.partition("[")[0]].append(float(seconds))
    found = {name: _quick(times) for name, times in families.items()}
    return {name: quick for name, quick in found.items() if quick < len(families[name]) and _may_be_slow(name)}


def _may_be_slow(name: str) -> bool:
    return name not in KEPT and ("/test_golden" not in name or "/test_golden_option" in name)


def _quick(times: list[float]) -> int:
    """How many of a test's parameters stay quick, the first ones."""
    if len(times) == 1:
        return int(times[0] < ONE)
    if sum(times) < FAMILY:
        return len(times)
    quick = next((n for n in range(len(times)) if sum(times[: n + 1]) > QUICK), len(times))
    return max(quick, int(times[0] < ONE))


if __name__ == "__main__":
    chosen = choose(Path(sys.argv[1]).read_text().splitlines())
    head = "# Slow tests, each with the number of its parameters that are quick; see slow.py, which writes this.\n"
    LIST.write_text(head + "".join(f"{name} {chosen[name]}\n" for name in sorted(chosen)))
