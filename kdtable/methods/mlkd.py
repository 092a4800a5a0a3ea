"""MLKD: Jin, Wang and Lin, "Multi-level Logit Distillation", CVPR 2023.

Every image is seen twice, w (weak: crop, mirroring) and s (strong: RandAugment after that), by both networks. With
p = softmax(student / T), q = softmax(teacher / T), both (B, C), three levels at each T of 2, 3, 4, 5, 6:

    KD_T    = T^2 / B sum q (ln q - ln p)            the images' predictions
    batch_T = 1 / B  sum (p p' - q q')^2             how alike images are, (B, B)
    class_T = 1 / C  sum (p' p - q' q)^2             how alike classes are, (C, C)

Images count of which the teacher is unsure: whose largest probability on w is at most its median over the batch. So do
classes whose sum of the teacher's probabilities on w is at most its median over the classes.

``reading`` = "code" is what the released code computes (github.com/Jin-Ying/Multi-Level-Logit-Distillation): its masks
multiply means, so that they are factors, m of images and n of classes (the fractions that count, about a half); its
strong view has two temperatures of five on the weak one; and its strong batch and class terms are not added:

    sum over T of  m KD_T(w) + KD_T(s, at the lowest and the highest T of w) + m batch_T(w) + n class_T(w)

"paper" leaves these three out: a mask selects images, or rows of the matrices (whose sums are still divided by all),
and the strong view has all terms at all T, of which only the images of its batch term are selected, as in the code's
sums that are not added. We have read the code, and not the text of the paper: details of this reading are ours.

The term's weight is 0.9, beside 0.1 of the cross-entropies of both views. Strong views and 240 to 480 epochs are the
method's own: rows of one view are not its equals, and tables say so.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Objective, Params
from kdtable.methods.parts.logits import divergence
from kdtable.methods.parts.number_lists import numbers
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import WEAK_STRONG, Recipe


class Counted(NamedTuple):
    """What counts: images (B,) and classes (C,), 1 or 0."""

    images: Tensor
    classes: Tensor


def counted(t: Tensor) -> Counted:
    """The images and classes of which a teacher with weak logits (B, C) is unsure."""
    q = t.softmax(dim=1)
    return Counted(_at_most_the_median(q.amax(dim=1)), _at_most_the_median(q.sum(dim=0)))


def _at_most_the_median(x: Tensor) -> Tensor:
    """(N,) 1 where x is at most its median, the mean of the middle two."""
    ordered, half = x.sort().values, len(x) // 2
    median = (ordered[(len(x) - 1) // 2] + ordered[half]) / 2
    return (x <= median).to(x.dtype)


def gram_rows(a: Tensor, b: Tensor) -> Tensor:
    """(N,) the sums over rows of the squared differences between a a' and b b', of (N, M) and (N, M)."""
    return (a @ a.T - b @ b.T).square().sum(dim=1)


def levels(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """What images (B,), images (B,) and classes (C,) add to KD_T, batch_T and class_T, whose means these have.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        temperature: T > 0.
    """
    p, q = ((x / temperature).softmax(dim=1) for x in (s, t))
    return divergence(s, t, temperature), gram_rows(p, q), gram_rows(p.T, q.T)


def code_loss(weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor], temperatures: tuple[float, ...]) -> Tensor:
    """The scalar of the released code.

    Args:
        weak: (B, C) student and teacher logits of the weak views.
        strong: the same of the strong views.
        temperatures: each T > 0.
    """
    images, classes = (mask.mean() for mask in counted(weak[1]))
    total = weak[0].new_zeros(())
    for temperature in temperatures:
        ends = temperature in (min(temperatures), max(temperatures))
        kd, batch, among = (level.mean() for level in levels(*weak, temperature))
        again = kd if ends else divergence(*strong, temperature).mean()
        total = total + images * (kd + batch) + again + classes * among
    return total


def paper_loss(weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor], temperatures: tuple[float, ...]) -> Tensor:
    """The scalar of the other reading; arguments as of :func:`code_loss`."""
    images, classes = counted(weak[1])
    total = weak[0].new_zeros(())
    for temperature in temperatures:
        kd, batch, among = levels(*weak, temperature)
        kd_of_strong, batch_of_strong, among_strong = levels(*strong, temperature)
        selected = (images * (kd + batch + batch_of_strong)).mean() + (classes * among).mean()
        total = total + selected + kd_of_strong.mean() + among_strong.mean()
    return total


LOSSES = {"code": code_loss, "paper": paper_loss}


@dataclass(frozen=True)
class MLKDParams(Params):
    """Hyper-parameters.

    Attributes:
        reading: as the released ``code`` computes it, or as the ``paper`` is read.
        temperatures: every T, as a list.
    """

    reading: Literal["code", "paper"] = "code"
    temperatures: str = "2,3,4,5,6"

    def __post_init__(self) -> None:
        """Raise `ValueError` for temperatures that are not positive."""
        if not all(temperature > 0 for temperature in numbers("temperatures", self.temperatures)):
            raise ValueError(f"temperatures are above 0, like 2,3,4,5,6, not {self.temperatures}")


class MLKD(Method):
    """Soft targets, likeness of images and likeness of classes, on two views."""

    hyper = MLKDParams
    combines_with_kd = False
    alone = "reads two views of an image"
    one_view = ""
    term = "mlkd"
    relates_samples = True
    of_training_images = True  # test images have one view

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        params = setting.params(MLKDParams)
        self.loss_of = LOSSES[params.reading]
        self.temperatures = numbers("temperatures", params.temperatures)

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse a recipe of one view."""
        if recipe.views != WEAK_STRONG:
            return (
                "it compares two views of an image: use --paper mlkd, or add --set views=weak-strong --set "
                "randaugment=2 --set randaugment_magnitude=10"
            )
        return super().unfit(recipe, objective)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The sum over all temperatures and levels."""
        assert student.strong is not None
        assert teacher.strong is not None
        weak, strong = (student.logits, teacher.logits), (student.strong.logits, teacher.strong.logits)
        return self.loss_of(weak, strong, self.temperatures)
