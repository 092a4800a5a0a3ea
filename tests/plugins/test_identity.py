"""A plug-in's source in the identity of the runs that use it, and in the assignment of workers."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable import plugins
from kdtable.errors import BadRequest
from kdtable.execution.assignment import Assignment
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.request import Changes, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teacher_refs import FileTeacher
from tests.plugins.written import METHOD, NETWORK, write


def planned(pair: str, *rows: str) -> tuple[PlannedRun, ...]:
    request = Request([pair], rows, [1, 2], changes=Changes(epochs=1))
    return resolve(request, lambda name, data: FileTeacher(name, data.mean, data.std, name, Path(name)))


def test_only_runs_that_use_it_have_its_source(tmp_path: Path) -> None:
    before = [one.run.id for one in planned("resnet14:resnet8", "vanilla", "kd")]
    near, nets = write(tmp_path / "near.py", METHOD), write(tmp_path / "nets.py", NETWORK)
    plugins.load([near, nets])
    vanilla, _, kd, _, with_kd, _ = planned("resnet14:resnet8", "vanilla", "kd", "near+kd")
    assert [one.run.id for one in planned("resnet14:resnet8", "vanilla", "kd")] == before
    assert "source" not in vanilla.run.protocol_text + kd.run.protocol_text
    source = {plugin.path.name: plugin.source for plugin in plugins.loaded()}
    assert with_kd.run.protocol["method"]["source"] == source["near.py"]
    assert "source" not in with_kd.run.protocol["student"]
    as_student, *_ = planned("resnet14:smaller", "kd")
    assert as_student.run.protocol["student"]["source"] == source["nets.py"]
    as_teacher, *_ = planned("small:resnet8", "kd")
    assert as_teacher.run.protocol["teacher"]["source"] == source["nets.py"]
    assert "source" not in as_teacher.run.protocol["student"]


def test_an_edit_gives_other_ids_and_back_gives_the_old_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "near.py", METHOD)
    found = []
    for text in (METHOD, METHOD + "# a comment\n", METHOD):
        plugins.load([write(file, text)])
        found.append([one.run.id for one in planned("resnet14:resnet8", "near")])
    assert found[0] == found[2] != found[1]


#: Unpickles an assignment as a worker does, in a process that has loaded nothing.
WORKER = """
import pickle, sys
from pathlib import Path
from kdtable.errors import BadRequest
try:
    assignment = pickle.loads(Path(sys.argv[1]).read_bytes())
except BadRequest as error:
    sys.exit(f"refused: {error}")
run = assignment.planned_runs[0].run
print(run.id, run.method.__name__, type(run.objective.params).__name__)
"""


def test_a_worker_loads_it_before_the_runs_and_refuses_another(tmp_path: Path) -> None:
    file = write(tmp_path / "near.py", METHOD)
    plugins.load([file])
    runs = planned("resnet14:resnet8", "near")
    assignment = Assignment(runs, tmp_path, tmp_path, None, "last", plugins=plugins.loaded())
    write(tmp_path / "other" / "near.py", METHOD)
    for moved in (assignment, assignment.moved(lambda path: tmp_path / "other" / path.name)):
        sent = tmp_path / "assignment"
        sent.write_bytes(pickle.dumps(moved))
        done = subprocess.run([sys.executable, "-c", WORKER, sent], capture_output=True, text=True, check=False)
        assert done.stdout.split() == [runs[0].run.id, "Near", "NearParams"], done.stderr
    write(file, METHOD + "# edited\n")
    with pytest.raises(
        BadRequest, match=r"near\.py is another file here \(source \w{16}\) than where this command beg"
    ):
        pickle.loads(pickle.dumps(assignment))
    file.unlink()
    with pytest.raises(BadRequest, match="there is no file"):
        pickle.loads(pickle.dumps(assignment))


def test_a_worker_refuses_another_version_of_an_installed_package(tmp_path: Path) -> None:
    plugins.load([write(tmp_path / "near.py", METHOD)])
    one, *_ = planned("resnet14:resnet8", "near")
    other = replace(one.run)
    vars(other)["protocol"] = one.run.protocol | {"method": {"name": "near", "version": 1, "source": "0" * 16}}
    assert other.id != one.run.id
    sent = pickle.dumps(Assignment((replace(one, run=other),), tmp_path, tmp_path, None, "last"))
    with pytest.raises(BadRequest, match="near of resnet8: the source of a package that it needs is another here"):
        pickle.loads(sent)
