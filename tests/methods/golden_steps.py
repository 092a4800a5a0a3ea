"""The runs of steps in the DIH paper's golden set, and what is said of them.

A run says in words what it is of and with which settings: its note begins with that, and its name is ``step_`` and the
method. What neither a field nor the words say is as the fact sheet has it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from kdtable import models
from kdtable.data import Batch
from kdtable.models.network import Network
from kdtable.recipes.recipe import Recipe
from kdtable.training.member import Member
from tests import engine
from tests.golden_arrays import Shared, fill
from tests.golden_data import Entry, manifest
from tests.models.golden_dih import renaming

SIZE: Final = 32  # of the images, which the rules of the set draw
#: By how the notes begin; and by names, where no note does.
NOTES: Final = {
    "one epoch of DIH": "dih",
    "one epoch of canonical KD": "kd",
    "one epoch of stage 1": "fitnets_stage1",
    "one epoch of head fine-tuning": "heads",
    "one epoch of MHKD": "mhkd",
    "one epoch of TOFD": "tofd",
}
#: The set's networks that have other names here.
NETWORKS: Final = {"resnet18": "wide_resnet18", "resnet34": "wide_resnet34"}


class Steps(Shared):
    """A run's arrays, its words, and the batches of its epoch."""

    def __init__(self, entry: Entry, dtype: torch.dtype) -> None:
        super().__init__(entry, dtype)
        content = manifest(entry.folder)
        self.salt: int = content["salt"]
        self.config: Mapping[str, Any] = content["steps"]["config"]
        self.note: str = self.data.get("note", "")

    @property
    def kind(self) -> str:
        said = next((kind for start, kind in NOTES.items() if self.note.startswith(start)), None)
        return said or self.entry.name.removeprefix("step_")

    def setting(self, name: str, default: float) -> float:
        """A number that a field or the note gives."""
        given = {**self.data, **self.hyper}
        return float(given[name]) if name in given else _said(name, self.note, default)

    @property
    def recipe(self) -> Recipe:
        """One epoch at the optimiser's settings that the run's own words give, or those of all runs."""
        said = str(self.data.get("optimiser", self.config["optimiser"]))
        return Recipe(
            epochs=1,
            batch_size=self.config["batch"],
            lr=_said("learning rate", self.note, _said("lr", said, 0.1)),
            milestones=(),
            momentum=_said("momentum", said, 0.9),
            nesterov="Nesterov" in said and "no Nesterov" not in said,
            weight_decay=_said("weight decay", said, 5e-4),
        )

    def batches(self) -> list[Batch]:
        return [self._batch(i) for i in range(self.config["num_batches"])]

    def _batch(self, i: int) -> Batch:
        count, epoch = self.config["batch"], 1 + int(self.setting("epoch_index", 0))
        images = np.random.default_rng(self.salt + 41 + i).standard_normal((count, 3, SIZE, SIZE))
        labels = np.random.default_rng(self.salt + 51 + i).integers(0, self.config["classes"], count)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels), torch.arange(count), epoch)

    def student(self, kind: str = "") -> Network:
        return self._network("student", kind)

    def teacher(self, kind: str = "") -> Network:
        """Frozen; linear heads on it have their golden weights, too."""
        network: Any = self._network("teacher", kind).eval().requires_grad_(False)
        if kind == "+heads":
            for head, salt in zip(network.branches, self.config["head_salts"], strict=True):
                fill(head, salt)
        return network

    def _network(self, role: str, kind: str) -> Network:
        name = models.canonical(NETWORKS.get(self.config[role], self.config[role])) + kind
        network = models.build(name, self.config["classes"], image_size=SIZE).double()
        fill(network, self.config[f"{role}_salt"], renaming(name) if kind == "+tofd" else _without_backbone)
        return network

    def check_lengths(self, state: Mapping[str, torch.Tensor], expected: Mapping[str, float]) -> None:
        """The length of every tensor."""
        assert expected.keys() == state.keys()
        for key, length in expected.items():
            gap = abs(state[key].double().norm().item() - length)
            assert gap <= self._tolerance(torch.tensor(abs(length))), f"{self.entry} {key}: off by {gap:.3g}"


def _without_backbone(key: str) -> str:
    return key.removeprefix("backbone.")


def _said(name: str, text: str, default: float) -> float:
    found = re.search(rf"{name} ([\d.]+(e-?\d+)?)", text)
    return float(found[1].rstrip(".")) if found else default


def take_steps(case: Steps, member: Member, lessons: list[tuple[Batch, Any]]) -> list[float]:
    """Train the epoch; the losses before each step."""
    member.begin_epoch()
    return [engine.stepped(member, images, taught) for images, taught in lessons]
