"""Time CRD's negatives at the benchmark's size beside a resnet20 step: batch 64, K = 16,384, N = 50,000.

All parts run on one thread, as in training, and alternate in one process.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial

import torch
from bench_tools import CLASSES, SAMPLES, Excerpt, by_turns, new_member, seconds

from kdtable import papers, seeding
from kdtable.data.stream import Batch
from kdtable.methods import crd
from kdtable.methods.parts import negatives
from kdtable.numerics.layout import fix_threads, keep_freed_memory
from kdtable.numerics.precision import choose
from kdtable.training.member import Member

CPU = torch.device("cpu")
BATCH = 64


def resnet20_step() -> tuple[Member, Batch]:
    """A vanilla member and a batch."""
    task = Excerpt(BATCH, choose("fp32", CPU), samples=2 * BATCH)
    member = new_member("vanilla", "resnet20", task, None)
    member.begin_epoch()
    return member, task.next_batch()


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
    keep_freed_memory()  # as in training
    parts = {name: partial(seconds, part, CPU) for name, part in contestants().items()}
    by_turns(parts, 1)  # warms up
    times = {name: [1000 * value for value in values] for name, values in by_turns(parts, turns).items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    step = medians["resnet20 step"]
    for name, values in times.items():
        print(
            f"{name:48} {medians[name]:7.1f} ms  ({min(values):.1f} to {max(values):.1f})  {medians[name] / step:.2f} x"
        )
    fraction = (medians["draw"] + medians["both scores, forward"]) / step
    print(f"draw and scores together: {fraction:.2f} of a resnet20 step")
    print(json.dumps({"milliseconds": medians, "draw_and_scores_share": fraction, "turns": turns}))


if __name__ == "__main__":
    main()
