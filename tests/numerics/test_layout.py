"""What is recorded of the numerics of a run."""

import torch

from kdtable.numerics.layout import fingerprint

CPU = torch.device("cpu")


def test_recorded_cuda_graphs_are_part_of_the_fingerprint() -> None:
    plain = fingerprint(CPU)
    assert "cuda_graphs" not in plain, "runs of earlier versions, without graphs, keep their fingerprint"
    assert fingerprint(CPU, cuda_graphs=False) == plain
    assert fingerprint(CPU, cuda_graphs=True) == plain | {"cuda_graphs": True}
