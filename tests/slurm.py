"""A Slurm of the tests' own: a controller and three nodes on this host, in a temporary folder."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")

#: Seconds that a program may take to come up; far above what it needs.
PATIENCE = 60

CONFIGURATION = """
ClusterName=kdtable
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=10
MinJobAge=5
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0,sched_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
NodeName=far NodeHostname=elsewhere NodeAddr=127.0.0.1 Port=1 CPUs=1 State=DOWN
PartitionName=far Nodes=far MaxTime=INFINITE State=UP
PartitionName=all Nodes=n1,n2,n3 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:1
"""


@dataclass
class Slurm:
    """A running Slurm. ``variables`` are those of commands that use it."""

    folder: Path
    variables: dict[str, str]
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *words: str) -> str:
        """What one of Slurm's commands prints; empty if it fails."""
        return subprocess.run(
            words, env=os.environ | self.variables, capture_output=True, text=True, check=False
        ).stdout

    def start(self, name: str, *words: str) -> None:
        """Start one of Slurm's programs, in the foreground as its own process group."""
        log = self.folder / f"{name}.out"
        with log.open("ab") as out:
            self.programs[name] = subprocess.Popen(
                words, env=os.environ | self.variables, stdout=out, stderr=out, process_group=0
            )

    def start_controller(self) -> None:
        self.start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def kill(self, name: str) -> None:
        """Kill one of the programs, not its jobs."""
        program = self.programs.pop(name)
        program.kill()
        program.wait()

    def nodes_up(self) -> int:
        return self.run("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")


class NotUpError(RuntimeError):
    """Slurm's programs end or do not answer: a container may forbid what they need."""


def why_not() -> str | None:
    """Why no Slurm can be started here; ``None`` if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"Slurm is not installed ({missing[0]} is missing)"
    return None if os.geteuid() == 0 else "a Slurm of the test's own needs root"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def serve() -> Iterator[Slurm]:
    """A Slurm that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="kdtable-slurm-", dir="/tmp") as name:  # a socket's path is short
        folder = Path(name)
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(4)
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs=1 State=UNKNOWN"
            for i in (1, 2, 3)
        )
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, ports=ports, folder=folder, nodes=nodes))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        slurm = Slurm(folder, {"SLURM_CONF": str(folder / "slurm.conf")})
        try:
            slurm.start(
                "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock",
                f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
            )  # fmt: skip
            _until((folder / "munge.sock").exists, slurm)
            slurm.start_controller()
            for node in ("n1", "n2", "n3"):
                slurm.start_node(node)
            _until(lambda: slurm.nodes_up() == 3, slurm)
            yield slurm
        finally:
            slurm.run("scancel", "--signal=KILL", "--user=0")
            for program in slurm.programs.values():
                program.send_signal(signal.SIGKILL)
                program.wait()
            _end_steps(folder)


def _end_steps(folder: Path) -> None:
    """End what jobs of this Slurm left: their processes know its configuration."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                own = f"SLURM_CONF={folder}".encode() in (entry / "environ").read_bytes()
                if own or str(folder).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


def _until(ready: Callable[[], bool], slurm: Slurm) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        logs = "\n".join(log.read_text() for log in sorted(slurm.folder.glob("*.out")))
        if time.monotonic() > end or any(program.poll() is not None for program in slurm.programs.values()):
            raise NotUpError(f"Slurm does not come up:\n{logs}")
        time.sleep(0.1)
