"""What each method compares, its year, and what it needs: a list to choose from that imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kdtable.methods import METHODS


@dataclass(frozen=True, slots=True)
class About:
    """A method in three words.

    Attributes:
        kind: what it compares: one of :data:`KINDS`.
        year: of publication.
        needs: what it reads beyond both networks' logits, in words; empty for nothing.
    """

    kind: str
    year: int
    needs: str = ""


#: Kinds in the order of the list.
KINDS: Final = ("no teacher", "logits", "embeddings", "feature maps", "extra classifiers")

_STAGES: Final = "feature maps of all stages"
_CLASSIFIERS: Final = "last feature maps and both classifiers"

ABOUT: Final[Mapping[str, About]] = MappingProxyType(
    {
        "vanilla": About("no teacher", 2015),
        "dml": About("no teacher", 2018, "a second network that learns with the student"),
        "heads": About("no teacher", 2021, "NETWORK+heads"),
        "tofd-teacher": About("no teacher", 2020, "NETWORK+tofd"),
        "kd": About("logits", 2015),
        "takd": About("logits", 2020, "an assistant, trained first"),
        "wsld": About("logits", 2021, "labels"),
        "dkd": About("logits", 2022, "labels"),
        "dist": About("logits", 2022, "the whole batch"),
        "mlkd": About("logits", 2023, "two views, the whole batch"),
        "ctkd": About("logits", 2023, "a temperature that is trained"),
        "nkd": About("logits", 2023, "labels"),
        "dot": About("logits", 2023, "an undivided batch, no fp16"),
        "ttm": About("logits", 2024),
        "wttm": About("logits", 2024),
        "ikl": About("logits", 2024, "the whole batch"),
        "rld": About("logits", 2025, "labels"),
        "gkl": About("logits", 2026, "the whole batch"),
        "sdd": About("logits", 2024, _CLASSIFIERS),
        "sdd+dkd": About("logits", 2024, _CLASSIFIERS),
        "pkt": About("embeddings", 2018, "embeddings, the whole batch"),
        "rkd": About("embeddings", 2019, "embeddings, the whole batch"),
        "cc": About("embeddings", 2019, "embeddings, the whole batch"),
        "crd": About("embeddings", 2020, "embeddings, the whole batch"),
        "pad-l2": About("embeddings", 2020, "embeddings, an earlier stage"),
        "cse-l2": About("embeddings", 2020, "embeddings"),
        "srrl": About("embeddings", 2021, "the student's last map, the teacher's embedding and classifier"),
        "nd": About("embeddings", 2023, "embeddings, a sweep over the training images"),
        "fitnet": About("feature maps", 2015, "feature maps of one stage"),
        "fitnet-2stage": About("feature maps", 2015, "feature maps of one stage, an earlier stage"),
        "at": About("feature maps", 2017, _STAGES),
        "fsp": About("feature maps", 2017, f"{_STAGES} of equal channels, an earlier stage"),
        "nst": About("feature maps", 2017, _STAGES),
        "ft": About("feature maps", 2018, "last feature maps, an earlier stage"),
        "kdsvd": About("feature maps", 2018, _STAGES),
        "sp": About("feature maps", 2019, "last feature maps, the whole batch"),
        "vid": About("feature maps", 2019, _STAGES),
        "ab": About("feature maps", 2019, f"{_STAGES} before the activation, an earlier stage"),
        "ofd": About("feature maps", 2019, f"{_STAGES} before the activation, the teacher's batch norms"),
        "mgd": About("feature maps", 2020, f"{_STAGES} before the activation, sweeps over the training images"),
        "cd": About("feature maps", 2020, _STAGES),
        "cd+gkd": About("feature maps", 2020, _STAGES),
        "cd+gkd+edt": About("feature maps", 2020, _STAGES),
        "reviewkd": About("feature maps", 2021, f"{_STAGES}, embeddings"),
        "simkd": About("feature maps", 2022, "last feature maps; keeps a projector and the teacher's classifier"),
        "catkd": About("feature maps", 2023, _CLASSIFIERS),
        "mhkd": About("extra classifiers", 2020, _STAGES),
        "tofd": About("extra classifiers", 2020, "NETWORK+tofd, a teacher trained so first"),
        "dih": About("extra classifiers", 2021, "heads on both networks, the teacher's trained first"),
    }
)


#: Methods on detectors, which most share a name with one on classifiers.
ON_DETECTORS: Final[Mapping[str, About]] = MappingProxyType(
    {
        "vanilla": About("on detectors", 2015),
        "kd": About("on detectors", 2015, "class logits of the student's proposals, or of RetinaNet's anchors"),
        "fitnet": About("on detectors", 2015, "FPN levels of equal channels"),
        "fgfi": About("on detectors", 2019, "FPN levels, anchors, boxes"),
        "mgd": About("on detectors", 2020, "C2 to C5 before the activation, sweeps over the training images"),
        "reviewkd": About("on detectors", 2021, "FPN levels"),
        "dkd": About("on detectors", 2022, "class logits and labels of the student's proposals"),
    }
)


#: Methods for students without labels (``--paper moco-cifar``).
WITHOUT_LABELS: Final[Mapping[str, About]] = MappingProxyType(
    {
        "vanilla": About("without labels", 2020, "no training: the probe of a random trunk"),
        "moco": About("without labels", 2020, "two views"),
        "mgd": About(
            "without labels", 2020, "two views, the teacher's feature maps before the activation and batch norms"
        ),
        "seed": About("without labels", 2021, "embeddings of two views"),
    }
)


def grouped() -> dict[str, list[tuple[str, About]]]:
    """The registered methods by kind, in each the oldest first; those of plug-ins come last, without a word."""
    found: dict[str, list[tuple[str, About]]] = {kind: [] for kind in KINDS}
    for name, about in sorted(ABOUT.items(), key=lambda item: item[1].year):
        found[about.kind].append((name, about))
    others = [(name, About("plug-ins", 0)) for name in METHODS if name not in ABOUT]
    return found | ({"plug-ins": others} if others else {})
