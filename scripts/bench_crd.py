"""What CRD's negatives cost at the benchmark's size, beside a resnet20 step: batch 64, K = 16,384, N = 50,000.

All on one thread, as the engine computes; the parts take turns in one process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from kdtable import papers, seeding
from kdtable.data.sets import ImageSet
from kdtable.data.spec import BUILT_IN
from kdtable.data.stream import Batch
from kdtable.methods import crd, negatives
from kdtable.training.build import build_method, build_student
from kdtable.training.member import Member
from kdtable.training.numerics import fix_threads, place
from kdtable.training.precision import choose
from kdtable.training.task import Classification

CPU = torch.device("cpu")
SAMPLES, BATCH, CLASSES = 50_000, 64, 100


def resnet20_step() -> tuple[Member, Batch]:
    """A vanilla member and a batch of random images of CIFAR-100's shape."""
    spec = BUILT_IN["cifar100"]
    images = torch.randint(0, 256, (2 * BATCH, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(2 * BATCH) % CLASSES
    paper = papers.load("crd")
    task = Classification(ImageSet(spec, images, labels, images, labels), paper.recipe, 1, choose("fp32", CPU))
    student = place(build_student("resnet20", spec, 1), CPU)
    row = paper.row("vanilla")
    method = build_method(
        "vanilla",
        recipe=paper.recipe,
        terms=row.terms,
        params=row.params,
        labels=labels,
        student=student,
        teacher=None,
        data=spec,
        seed=1,
        device=CPU,
    )
    member = Member("bench", student, method, task)
    member.begin_epoch()
    return member, next(task.batches("main", 1))


def contestants() -> dict[str, Callable[[], object]]:
    params = papers.load("crd").row("crd").params
    labels = torch.arange(SAMPLES) % CLASSES
    drawer = negatives.ClassNegatives(labels, int(params["negatives"]), seeding.generator("bench"))
    index = torch.randperm(SAMPLES)[:BATCH]
    bank = torch.nn.functional.normalize(torch.randn(SAMPLES, int(params["dim"])))
    anchor = torch.nn.functional.normalize(torch.randn(BATCH, int(params["dim"]))).requires_grad_()
    contrast = torch.cat([index.unsqueeze(1), drawer.draw(index)], dim=1)
    tau, noise = float(params["tau"]), int(params["negatives"]) / SAMPLES

    def both_scores() -> list[torch.Tensor]:
        return [crd.scores(anchor, bank, contrast, tau) for _ in range(2)]

    def whole() -> None:
        loss = sum(crd.contrast_loss(a / SAMPLES, noise) for a in both_scores())
        loss.backward()

    member, batch = resnet20_step()
    return {
        "resnet20 step": lambda: member.step(batch, None),
        "draw": lambda: drawer.draw(index),
        "both scores, forward": both_scores,
        "both halves of the loss, forward and backward": whole,
        "draw by sorting random keys": lambda: negatives._draw_by_keys(
            drawer.small_labels[index].unsqueeze(1) != drawer.small_labels, drawer.count, drawer.generator
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="measurements of each part")
    turns = parser.parse_args().turns
    fix_threads()
    parts = contestants()
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(turns + 1):
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            if turn:  # the first turn warms up
                times[name].append(1000 * (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in times.items()}
    step = medians["resnet20 step"]
    for name, values in times.items():
        print(
            f"{name:48} {medians[name]:7.1f} ms  ({min(values):.1f} to {max(values):.1f})  {medians[name] / step:.2f} x"
        )
    share = (medians["draw"] + medians["both scores, forward"]) / step
    print(f"draw and scores together: {share:.2f} of a resnet20 step")
    print(json.dumps({"milliseconds": medians, "draw_and_scores_share": share, "turns": turns}))


if __name__ == "__main__":
    main()
