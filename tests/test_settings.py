"""``kdtable.toml``: where it is read from, and what it may hold."""

from pathlib import Path

import pytest

from kdtable import settings
from kdtable.errors import BadRequest
from kdtable.execution.cluster_settings import ClusterSettings, RaySettings, cluster_settings


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The working folder's file, and the user's."""
    (tmp_path / "here").mkdir()
    (tmp_path / "config" / "kdtable").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "here" / "kdtable.toml", tmp_path / "config" / "kdtable" / "kdtable.toml"


def test_without_a_file_there_are_defaults(folders: tuple[Path, Path]) -> None:
    assert settings.table("cluster") == {}
    assert cluster_settings() == ClusterSettings()


def test_the_working_folder_counts_more_than_the_user_and_options_more_than_both(folders: tuple[Path, Path]) -> None:
    here, own = folders
    own.write_text('[cluster]\nper_gpu = 2\ncpus = 3\n[cluster.ray]\naddress = "one:1"\nlabels = {a = "b"}\n')
    here.write_text('[cluster]\ncpus = 4\nhours = 2\n[cluster.ray]\naddress = "two:2"\n[cluster.slurm]\nqos = "low"\n')
    found = cluster_settings(["hours=3", "slurm.partition=gpu", "slurm.nodes=2", 'slurm.setup=["module load cuda"]'])
    assert (found.per_gpu, found.cpus, found.hours) == (2, 4, 3.0)
    assert found.ray == RaySettings(address="two:2", labels={"a": "b"})
    assert found.slurm == {"qos": "low", "partition": "gpu", "nodes": 2, "setup": ["module load cuda"]}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[clusters]\n", ("kdtable.toml: unknown table 'clusters'; did you mean cluster?",)),
        ("cluster = 1\n", ("cluster is a table: write [cluster]",)),
        ("[cluster]\nper_gpus = 1\n", ("unknown setting 'per_gpus'; did you mean per_gpu",)),
        ("[cluster]\ncpus = 0\n", ("cpus must be at least 1, it is 0",)),
        ("[cluster]\nhours = 'two'\n", ("hours takes a number, not 'two'",)),
        ("[cluster.ray]\nadress = 'a:1'\n", ("[cluster.ray] of", "unknown setting 'adress'; did you mean address?")),
        ("[cluster\n", ("kdtable.toml cannot be read (", "correct it, or move it away")),
        ("\xff", ("kdtable.toml cannot be read",)),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence(
    folders: tuple[Path, Path], content: str, parts: tuple[str, ...]
) -> None:
    folders[0].write_bytes(content.encode("latin-1"))
    with pytest.raises(BadRequest) as refused:
        cluster_settings()
    assert all(part in str(refused.value) for part in parts), refused.value
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["per_gpu", "=4", " =4"])
def test_an_option_that_is_none(folders: tuple[Path, Path], option: str) -> None:
    with pytest.raises(BadRequest, match="--cluster takes KEY=VALUE such as"):
        cluster_settings([option])


def test_a_setting_that_the_option_misspells(folders: tuple[Path, Path]) -> None:
    with pytest.raises(BadRequest, match=r"--cluster: unknown setting 'cpu'; did you mean cpus"):
        cluster_settings(["cpu=4"])
