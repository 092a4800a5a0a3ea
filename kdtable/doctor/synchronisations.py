"""Whether a step makes the host wait for the GPU."""

from pathlib import Path

import torch

from kdtable.doctor.check import Failure, need_cuda
from kdtable.doctor.rows import Built, built, rows


def synchronisations(device: torch.device, folder: Path) -> str:
    """Take a step of every row where torch raises at each synchronisation; methods that say so may synchronise."""
    need_cuda(device, "the host waits")
    waiting: list[str] = []
    expected: list[str] = []
    for name, run in rows().items():
        made = built(run, device)
        if reason := _waits(made):
            (waiting if made.member.method.recordable else expected).append(f"{name} ({reason})")
    if waiting:
        raise Failure(f"the host waits in {'; '.join(waiting)}")
    known = f"; known to wait: {', '.join(expected)}" if expected else ""
    return f"no step of {len(rows()) - len(expected)} rows waits for the GPU{known}"


def _waits(made: Built) -> str:
    """Why the second step of a row synchronises; empty if it does not. The first one may, to set things up."""
    made.sweep()
    made.member.begin_epoch()
    stage, teacher = made.member.stage, made.stage_teacher()
    first, second = made.batches(stage.name, 2)
    made.member.step(first, made.outputs(teacher, first))
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.member.step(second, made.outputs(teacher, second))
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""
