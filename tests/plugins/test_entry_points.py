"""Methods, networks, data sets and papers that another package registers, and look-ups by name."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from kdtable.errors import BadRequest
from kdtable.plugins import Registry, registry

PACKAGE = """
from dataclasses import dataclass
from pathlib import Path

from kdtable.data.spec import BUILT_IN
from kdtable.models.names import Entry

NETWORK = Entry("kdtable.models.resnet", "ResNet", {"depth": 8})
PAPER = Path(__file__).with_name("far.toml")


def __getattr__(name):
    if name == "Far":
        from kdtable.methods.base import Method
        from kdtable.methods.objective import Params

        @dataclass(frozen=True)
        class FarParams(Params):
            reach: int = 3

        return type("Far", (Method,), {"hyper": FarParams, "term": "far"})
    if name == "DATA":
        from dataclasses import replace

        return replace(BUILT_IN["digits"], name="far-digits", key="far-digits")
    raise AttributeError(name)
"""
PAPER = """
title = "Far away"
data = "far-digits"

[recipe]
epochs = 2
batch_size = 64
lr = 0.05
milestones = [1]

[rows.kd]
terms = { ce = 0.1, kd = 0.9 }

[rows.far]
terms = { ce = 1.0, far = 2.0 }
params = { reach = 4 }
"""
USED = """
import sys
from pathlib import Path
from kdtable import models, papers
assert models.canonical("FAR-net") == "far_net"
assert papers.load("far").row("far+kd").terms == {"ce": 0.1, "kd": 0.9, "far": 2.0}
assert "torch" not in sys.modules
from kdtable.planning.request import Changes, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teacher_refs import FileTeacher
find = lambda name, data: FileTeacher(name, data.mean, data.std, name, Path(name))
request = Request(["far_net:resnet8"], ["far"], [1], paper="far", changes=Changes(overrides=["reach=5"]))
(cell,) = resolve(request, find)
from hashlib import sha256
source = sha256(Path(sys.modules["far_away"].__file__).read_bytes()).hexdigest()[:16]
protocol = cell.run.protocol
assert protocol["method"] == {"name": "far", "version": 1, "source": source}
assert protocol["teacher"]["source"] == source
assert "source" not in protocol["student"]
assert (cell.run.teacher.network, cell.run.data.name, cell.run.objective.params.reach) == ("far_net", "far-digits", 5)
assert models.build("far_net", 4).name == "far_net"
"""


def installed(folder: Path, groups: dict[str, str]) -> Path:
    """A folder that has a package with entry points, as pip would leave it."""
    (folder / "far_away.py").write_text(PACKAGE)
    (folder / "far.toml").write_text(PAPER)
    about = folder / "far_away-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: far-away\nVersion: 1.0\n")
    lines = [f"[kdtable.{group}]\n{point}\n" for group, point in groups.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run_with(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)


def test_another_package_registers_a_method_a_network_a_data_set_and_a_paper(tmp_path: Path) -> None:
    groups = {"methods": "far = far_away:Far", "models": "far_net = far_away:NETWORK"}
    groups |= {"datasets": "far-digits = far_away:DATA", "papers": "far = far_away:PAPER"}
    done = run_with(installed(tmp_path, groups), USED)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_registered_twice_is_refused(tmp_path: Path) -> None:
    folder = installed(tmp_path, {"methods": "crd = far_away:Far"})
    done = run_with(folder, "from kdtable import methods; methods.get('kd')")
    assert (
        "kdtable.methods has 'crd' twice, as kdtable.methods.crd:CRD and as far_away:Far of far-away: uninstall one"
        in done.stderr
    )


def test_what_cannot_be_imported_is_refused_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("gone", "far_gone:Gone", "kdtable.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    found: Registry[object] = Registry("kdtable.methods", {"path": "pathlib:Path"})
    assert list(found) == ["path", "gone"]
    assert found["path"] is Path
    with pytest.raises(BadRequest, match=r"kdtable\.methods 'gone' cannot be loaded from far_gone:Gone: No module"):
        found["gone"]
    with pytest.raises(KeyError):
        found["unheard-of"]
