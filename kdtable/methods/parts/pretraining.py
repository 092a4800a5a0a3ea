"""Students that are trained without labels, and then measured by a linear classifier on their frozen trunk.

A run has two stages. In ``pretrain``, by the run's recipe, images come in two views and without labels; the trunk is
the student without its classifier, with a head of the method's own. In ``main``, which tables report, the student's
classifier alone is trained on labels, from weights drawn from a normal of deviation 0.01; the trunk is in eval mode, so
that neither weights nor batch statistics move. That is the linear probe of MoCo (``main_lincls.py``).
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, cast

from annotated_types import Ge
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.methods.base import Method, Setting, Stage, Term
from kdtable.methods.objective import PRETRAIN, PROBE_LR, Params
from kdtable.methods.parts.number_lists import numbers
from kdtable.methods.ranges import Range
from kdtable.models.network import Network
from kdtable.recipes.recipe import Recipe

#: Name of the task of the first stage, and of the run.
VIEWS: Final = "two-views"
TASK: Final = "self-supervised"


@dataclass(frozen=True)
class ProbeParams(Params):
    """Hyper-parameters of the linear probe, by default MoCo's.

    Attributes:
        probe_lr: its learning rate.
        probe_steps: where it falls to a tenth, as fractions of the probe's epochs.
        probe_weight_decay: its weight decay.
    """

    probe_lr: PositiveFloat = PROBE_LR
    probe_steps: str = "0.6,0.8"
    probe_weight_decay: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for steps that are no fractions."""
        if not all(0 < step < 1 for step in numbers("probe_steps", self.probe_steps)):
            raise ValueError(f"probe_steps takes fractions of the probe's epochs, like 0.6,0.8, not {self.probe_steps}")

    def probe_recipe(self, recipe: Recipe, epochs: int) -> Recipe:
        """The probe's recipe: SGD with momentum 0.9, in batches of ``recipe``'s size."""
        steps = tuple(round(epochs * step) for step in numbers("probe_steps", self.probe_steps))
        return Recipe(
            epochs=epochs,
            batch_size=recipe.batch_size,
            lr=self.probe_lr,
            milestones=steps,
            weight_decay=self.probe_weight_decay,
            crop_padding=recipe.crop_padding,
            crop_fill=recipe.crop_fill,
        )


class Pretraining(Method):
    """The two stages, and the head of the first: Linear(D, D), ReLU, Linear(D, ``width``)."""

    task = TASK
    combines_with_kd = False
    alone = "trains without labels"
    unmixed = "it trains without labels"
    unaveraged = "its probe is trained on the student itself"
    one_view = ""
    weight_range: ClassVar[Range | None] = None
    of_training_images = True  # its loss is of two views
    recordable = False  # the key encoder moves beside the optimiser

    hyper: ClassVar[type[Params]] = ProbeParams

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.student is None or setting.student_shapes.embedding is None:
            raise ValueError("a student without labels has a trunk and an embedding, and there is none")
        self.student_width = setting.student_shapes.embedding.shape[1]
        classifier = cast(Network, setting.student).linear_classifier()
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)

    def mlp(self, width: int) -> nn.Sequential:
        """A new head (B, D) -> (B, ``width``)."""
        return nn.Sequential(
            nn.Linear(self.student_width, self.student_width), nn.ReLU(), nn.Linear(self.student_width, width)
        )

    def stages(self) -> tuple[Stage, ...]:
        """``pretrain`` by the recipe, unless it has no epochs, and the probe."""
        epochs = self.setting.objective.stage_epochs
        recipe = self.setting.params(ProbeParams).probe_recipe(self.setting.recipe, epochs.get("main", 100))
        probe = Stage("main", recipe, (Term("ce", 1.0),), student_terms=frozenset({"ce"}))
        first = self.main_stage()
        features = first.student_features | {"embedding"}
        return replace(first, name=PRETRAIN, task=VIEWS, student_features=features), probe

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The trunk and the method's own parameters; then the classifier."""
        classifier = list(cast(Network, student).linear_classifier().parameters())
        if stage.name == "main":
            return classifier
        named = {id(parameter) for parameter in classifier}
        trunk = [parameter for parameter in student.parameters() if id(parameter) not in named]
        return [*trunk, *(parameter for parameter in self.parameters() if parameter.requires_grad)]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Train all; then the classifier alone, on a trunk in eval mode."""
        pretrains = stage.name == PRETRAIN
        student.train(pretrains)
        self.train(pretrains)
        student.requires_grad_(pretrains)
        cast(Network, student).linear_classifier().requires_grad_(not pretrains)


class Untrained(Pretraining):
    """The linear probe of a trunk of random weights: what any training without labels has to beat."""

    def stages(self) -> tuple[Stage, ...]:
        """The probe alone."""
        return super().stages()[1:]


def unit(x: Tensor) -> Tensor:
    """Vectors (B, D) of length 1."""
    return F.normalize(x, dim=1)
