"""What differs between the results of two commits, to the bit."""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from compare_readers import Moment, Numbers, Results, Run, read_store, read_tensors, teacher_files
from torch import Tensor

#: Every store has them. A reader that does not find them would leave nothing to compare.
ALWAYS = frozenset({"lr", "train_loss", "train_top1", "test_top1", "test_top5"})


@dataclass
class Tally:
    """What was compared.

    Attributes:
        runs: runs of either side.
        trained: those that are done on both sides.
        epochs: rows of epochs that both sides have.
        numbers: the numbers in these rows that were compared.
        tensors: tensors that both sides have.
        unequal: a sentence for each difference.
        notes: what the reader of the table should know.
    """

    runs: int = 0
    trained: int = 0
    epochs: int = 0
    numbers: int = 0
    tensors: int = 0
    unequal: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_stores(here: Path, there: Path, tally: Tally) -> None:
    """Add the runs of two results folders to a tally.

    Raises:
        Unreadable: a folder cannot be read.
    """
    ours, theirs = read_store(here), read_store(there)
    names = _common_names(ours, theirs, here.name, tally)
    trained = tally.trained
    for key in sorted(ours.keys() | theirs.keys()):
        tally.runs += 1
        where = f"{here.name}: {key}"
        if key not in ours or key not in theirs:
            tally.unequal.append(f"{where}: only {_side(key in ours)}")
        else:
            _compare_runs(ours[key], theirs[key], names, where, tally)
    if tally.trained == trained:
        tally.unequal.append(f"{here.name}: no run is done on both sides, so nothing was compared")


def compare_teachers(here: Path, there: Path, tally: Tally) -> None:
    """Add the trained teachers of two teachers folders to a tally."""
    ours, theirs = teacher_files(here), teacher_files(there)
    for name in sorted(ours.keys() | theirs.keys()):
        _compare_weights(ours.get(name), theirs.get(name), f"teacher {name}", tally)
    if not ours and not theirs:
        tally.unequal.append(f"{here.name}: there is no teacher")


def _common_names(ours: Results, theirs: Results, where: str, tally: Tally) -> set[str]:
    """Names of the numbers that both sides measure; a note tells of the others."""
    here, there = (_names(results.values()) for results in (ours, theirs))
    for name in sorted(here ^ there):
        text = f"{where}: {name} is measured only {_side(name in here)}"
        (tally.unequal if name in ALWAYS else tally.notes).append(text)
    tally.unequal += [f"{where}: {name} is measured on no side" for name in sorted(ALWAYS - here - there)]
    return here & there


def _names(runs: Iterable[Run]) -> set[str]:
    return set(chain.from_iterable(numbers for run in runs for numbers in run.epochs.values()))


def _compare_runs(ours: Run, theirs: Run, names: set[str], where: str, tally: Tally) -> None:
    if ours.status != theirs.status:
        tally.unequal.append(f"{where}: {ours.status} here, {theirs.status} there")
    elif ours.status != "done":
        tally.notes.append(f"{where}: {ours.status} on both sides")
    for moment in sorted(ours.epochs.keys() | theirs.epochs.keys()):
        _compare_epochs(moment, ours.epochs, theirs.epochs, names, where, tally)
    if ours.status == theirs.status == "done":
        tally.trained += 1
        _compare_weights(ours.weights, theirs.weights, where, tally)


def _compare_epochs(
    moment: Moment,
    ours: Mapping[Moment, Numbers],
    theirs: Mapping[Moment, Numbers],
    names: set[str],
    where: str,
    tally: Tally,
) -> None:
    if moment not in ours or moment not in theirs:
        tally.unequal.append(f"{where}: {moment} only {_side(moment in ours)}")
        return
    tally.epochs += 1
    for name in sorted(names & (ours[moment].keys() | theirs[moment].keys())):
        here, there = ours[moment].get(name), theirs[moment].get(name)
        tally.numbers += 1
        if _bits(here) != _bits(there):
            tally.unequal.append(f"{where}, {moment}, {name}: {here!r} here, {there!r} there")


def _bits(number: float | None) -> bytes | None:
    """The number as a double. Other than by ``==``, NaN equals itself, and 0 is not -0."""
    return None if number is None else struct.pack("<d", number)


def _compare_weights(here: Path | None, there: Path | None, where: str, tally: Tally) -> None:
    if here is None or there is None:
        missing = " and ".join(side for side, path in (("here", here), ("there", there)) if path is None)
        tally.unequal.append(f"{where}: no weights {missing}")
        return
    ours, theirs = read_tensors(here), read_tensors(there)
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in ours or key not in theirs:
            tally.unequal.append(f"{where}: tensor {key} only {_side(key in ours)}")
            continue
        tally.tensors += 1
        if difference := _difference(ours[key], theirs[key]):
            tally.unequal.append(f"{where}: tensor {key}: {difference}")


def _difference(here: Tensor, there: Tensor) -> str:
    """How two tensors differ; nothing if they are equal to the bit."""
    if here.dtype != there.dtype or here.shape != there.shape:
        return f"{_form(here)} here, {_form(there)} there"
    if torch.equal(_bytes(here), _bytes(there)):
        return ""
    gap = (here.double() - there.double()).abs()
    return f"{int((gap > 0).sum())} of {gap.numel()} numbers differ, by {gap.max().item():.3g} at most"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _side(here: bool) -> str:
    return "here" if here else "there"
