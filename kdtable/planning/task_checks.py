"""Checks that a data set, a paper and networks are for the same task."""

from typing import Final

from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.models.names import base_name, of_task, task_of
from kdtable.models.sums import networks_of
from kdtable.papers import Pair, Paper, default_paper

#: Tasks that train on another task's data sets: without labels on images of classes, which the probe tells apart.
_DATA_OF: Final = {"self-supervised": "classification"}


def check_task(paper: Paper, data: DataSpec) -> None:
    """Raise `BadRequest` if a paper's students learn something else than a data set teaches."""
    if data.task == _DATA_OF.get(paper.task, paper.task):
        return
    instead = f"leave --paper out, or use --paper {default_paper(data.kind)}"
    raise BadRequest(f"paper {paper.name} is for {paper.task}, and data set {data.name} for {data.task}: {instead}")


def check_networks(pair: Pair, student: str, data: DataSpec, task: str) -> None:
    """Raise `BadRequest` if a network of a pair is for another task than the data set, or the teacher than ``task``."""
    for network in networks_of(pair.teacher):
        if task_of(network) != task:
            check_network(network, data)
    check_network(base_name(student), data)


def check_network(network: str, data: DataSpec) -> None:
    """Raise `BadRequest` if a network is for another task than the data set."""
    if task_of(network) in _DATA_OF:
        raise BadRequest(
            f"{network} has no classifier: it can only be a teacher, and of students without labels (--paper mgd-unsup)"
        )
    if task_of(network) != data.task:
        raise BadRequest(
            f"{network} is a network for {task_of(network)}, and data set {data.name} for {data.task}: name one "
            f"for that, such as {of_task(data.task)[0]} ('kdtable list models' has all)"
        )
