"""Plug-ins as a user writes them."""

from pathlib import Path

METHOD = '''
from dataclasses import dataclass
from torch.nn import functional as F
from kdtable import plugins
from kdtable.methods.base import Method
from kdtable.methods.objective import Params


@dataclass(frozen=True)
class NearParams(Params):
    scale: float = 1.0


@plugins.method("near", terms={"ce": 1.0, "near": 2.0}, schedules={"near": {"warmup": 20}})
class Near(Method):
    """Mean squared difference of logits."""

    term = "near"
    hyper = NearParams

    def distillation(self, student, teacher, batch):
        return self.setting.params(NearParams).scale * F.mse_loss(student.logits, teacher.logits)
'''

NETWORK = """
from torch import nn
from kdtable import plugins
from kdtable.models.network import Network


@plugins.network("small", width=8)
@plugins.network("smaller", width=4)
class Small(Network):
    head = ("fc",)

    def __init__(self, num_classes, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4)
        self.fc = nn.Linear(width, num_classes)

    def embed(self, x, hold):
        before = self.conv(x)
        hold.preact(before)
        hold.stage(before.relu())
        return hold.last(before.relu()).mean(dim=(2, 3))
"""

DATA = """
import numpy as np
from kdtable import plugins


@plugins.dataset("stripes", flip=False)
def stripes():
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = random.integers(0, 99, (40, 8, 8, 3)) + 99 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    return {"train_images": images, "train_labels": labels, "test_images": images[:10], "test_labels": labels[:10]}
"""

PAPER = """
title = "Stripes, nowhere"
data = "digits"
recipe = { epochs = 2, batch_size = 16, lr = 0.05, milestones = [1] }

[rows]
vanilla = { terms = { ce = 1.0 } }
kd = { terms = { ce = 0.1, kd = 0.9 } }

[tables.stripes-1]
title = "Stripes"
source = "table 1"
metric = "top1"
epoch = "last"
pairs = ["resnet14:resnet8"]
published = { teacher = [90.0], student = [80.0], kd = [81.5] }
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
