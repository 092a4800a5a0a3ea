"""The cases in which the trainings of two commits are compared: commands of kdtable, as data.

They run in a folder of their own, with teachers in ``teachers`` and results in ``results/NAME``. ``{shared}`` stands
for the folder of shared data. All of them compute on the CPU, where training is the same to the bit.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

#: Of the teacher for digits.
TEACHER = "resnet20"
PAIR = f"{TEACHER}:resnet8"

#: All rows of all papers, with the pairs that they are trained on and what else they need there.
PAPERS = {
    "crd": (
        "vanilla,kd,at,fitnet,sp,cc,vid,rkd,pkt,ab,ft,fsp,nst,crd,crd+kd,fitnet-2stage,kdsvd,at+kd",
        f"--pairs {PAIR} --seeds 1",
    ),
    # Seed 30 alone: the first of the paper, of which its rows take their assistant and the heads of the teacher.
    "dih": (
        "vanilla,kd,fitnet-2stage,takd,at,crd,heads,dih,tofd-teacher,tofd,mhkd,dml",
        f"--pairs {PAIR} --seeds 30,",
    ),
    "cd": ("vanilla,kd,cd,cd+gkd,cd+gkd+edt", f"--pairs {PAIR} --seeds 1"),
    "mgd": ("vanilla,kd,mgd,mgd+kd", f"--pairs {PAIR} --seeds 1"),
    "reviewkd": ("vanilla,reviewkd,reviewkd+kd", f"--pairs {PAIR} --seeds 1"),
    # These networks have three stages, not four.
    "torchdistill": (
        "vanilla,kd,at,ft,crd,cse-l2,pad-l2,reviewkd",
        f"--pairs {PAIR} --seeds 1 --set at_stages=1,2",
    ),
    "he2015": ("vanilla", "--pairs resnet20_a:resnet20_a --seeds 1"),
}

#: One network of each family, and of each way to add classifiers.
NETWORKS = (
    "resnet8x4",
    "resnet20_a",
    "resnet8+heads",
    "resnet8+tofd",
    "wrn_16_1",
    "wrn_28_2",
    "wide_resnet18",
    "cifar_resnet50",
    "vgg8",
    "dih_vgg11",
    "MobileNetV2",
    "mobilenetv1",
    "ShuffleV1",
    "ShuffleV2",
    "tv_resnet18",
    "tv_mobilenetv2",
    "tv_shufflenetv2",
    "mgd_mobilenetv2",
)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        words: of the command line, after ``kdtable``.
        results: name of its results folder.
        kills: numbers of finished epochs after which this working tree's command is killed, and called again. The other
            commit's is left alone.
    """

    words: tuple[str, ...]
    results: str
    kills: tuple[int, ...] = ()

    def filled(self, shared: Path) -> list[str]:
        """The command line."""
        return [word.format(shared=shared) for word in (*self.words, "--results", f"results/{self.results}")]


@dataclass(frozen=True)
class Case:
    """Commands whose results are compared.

    Attributes:
        about: what it covers.
        steps: the commands, in their order.
        taught: whether they need the teachers of the case "teachers".
        pictures: whether they need the folder ``pictures``.
        shared: files of the shared folder that they read.
    """

    about: str
    steps: tuple[Step, ...]
    taught: bool = False
    pictures: bool = False
    shared: tuple[str, ...] = ()

    @property
    def trains_teachers(self) -> bool:
        """Whether its teachers are trained by itself."""
        return any(step.words[0] == "train-teachers" for step in self.steps)

    def missing(self, shared: Path) -> list[Path]:
        """Files that it needs and that are not there."""
        return [path for path in (shared / name for name in self.shared) if not path.is_file()]


def _step(text: str, results: str, device: str = "--device cpu", kills: tuple[int, ...] = ()) -> Step:
    return Step((*text.split(), *device.split(), "--teachers-dir", "teachers"), results, kills)


def _grid(rows: str, options: str, results: str, device: str = "--device cpu", kills: tuple[int, ...] = ()) -> Step:
    return _step(f"run --methods {rows} {options}", results, device, kills)


_EXCERPT = "data/cifar10_excerpt.npz"
_PUBLISHED = "teachers/resnet56-4bfd9763.th"
_PICTURES = "--data folder:pictures --batch-size 16 --epochs 1"

CASES: dict[str, Case] = {
    "teachers": Case(
        f"{TEACHER} on digits, which teaches in other cases",
        (_step(f"train-teachers {TEACHER} --epochs 2 --data digits", "teachers"),),
    ),
    "excerpt": Case(
        "a published teacher on images of CIFAR-10",
        (
            _grid(
                "vanilla,kd,at,crd,fitnet,mgd,reviewkd",
                f"--pairs resnet56_a:resnet8 --seeds 2 --epochs 2 --data npz:{{shared}}/{_EXCERPT} "
                f"--teacher resnet56_a={{shared}}/{_PUBLISHED}",
                "excerpt",
            ),
        ),
        shared=(_EXCERPT, _PUBLISHED),
    ),
    "papers": Case(
        "every row of every paper on digits",
        tuple(
            _grid(rows, f"--paper {paper} {options} --epochs 1 --data digits", paper)
            for paper, (rows, options) in PAPERS.items()
        ),
        taught=True,
    ),
    # No teacher is trained, so that this case is the shortest.
    "folder": Case(
        "a folder of pictures",
        (_grid("vanilla,dml", f"--paper dih --pairs resnet14:resnet8 --seeds 1 {_PICTURES}", "folder"),),
        pictures=True,
    ),
    "networks": Case(
        "networks of every family, a teacher trained on pictures, students of another family",
        (
            _grid("vanilla", f"--pairs {','.join(f'{n}:{n}' for n in NETWORKS)} --seeds 1 {_PICTURES}", "networks"),
            _step(f"train-teachers resnet14 {_PICTURES}", "teachers"),
            _grid("kd,at,crd", f"--pairs resnet14:wrn_16_1,resnet14:ShuffleV2 --seeds 1 {_PICTURES}", "taught"),
        ),
        pictures=True,
    ),
    # The second seed reads much of what the first one has filled in.
    "cache": Case(
        "the teacher's outputs kept on disk",
        (
            _grid(
                "vanilla,kd,crd,rkd",
                f"--pairs {PAIR} --seeds 2 --epochs 1 --data digits --teacher-cache fp32",
                "cache",
            ),
        ),
        taught=True,
    ),
    "devices": Case(
        "two processes that train together",
        (
            _grid(
                "vanilla,kd,sp,rkd,crd",
                f"--pairs {PAIR} --seeds 1 --epochs 1 --data digits",
                "devices",
                device="--devices cpu,cpu",
            ),
        ),
        taught=True,
    ),
    "resume": Case(
        "killed in each of its two cohorts, and called again",
        (
            _grid(
                "vanilla,kd,crd,fitnet-2stage",
                f"--pairs {PAIR} --seeds 2 --epochs 2 --data digits",
                "resume",
                kills=(3, 12),
            ),
        ),
        taught=True,
    ),
}


def write_pictures(folder: Path) -> None:
    """A data set of small PNGs of noise in three classes, the same every time."""
    draw = random.Random(0)
    for part, count in (("train", 12), ("test", 8)):
        for label in ("ant", "bee", "cat"):
            place = folder / part / label
            place.mkdir(parents=True)
            for number in range(count):
                picture = Image.frombytes("RGB", (32, 32), draw.randbytes(3 * 32 * 32))
                picture.save(place / f"{number:02}.png")
