"""Batch norms with statistics of their own for each part of a batch, as on several GPUs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitBatchNorm(nn.BatchNorm2d):
    """A batch norm that normalises ``splits`` equal parts of a training batch each by its own statistics.

    As on that many GPUs, each with the next images of the batch; but the running statistics take the mean of the
    parts'. In eval mode it is a plain batch norm, whose keys it has.
    """

    splits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape; N is a multiple of ``splits`` in training."""
        mean, var, momentum = self.running_mean, self.running_var, self.momentum
        if not self.training or self.splits == 1 or mean is None or var is None or momentum is None:
            return super().forward(x)
        parts, means, variances = [], [], []
        for part in x.chunk(self.splits):
            own_mean, own_var = mean.clone(), var.clone()
            parts.append(F.batch_norm(part, own_mean, own_var, self.weight, self.bias, True, momentum, self.eps))
            means.append(own_mean)
            variances.append(own_var)
        with torch.no_grad():
            mean.copy_(torch.stack(means).mean(dim=0))
            var.copy_(torch.stack(variances).mean(dim=0))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return torch.cat(parts)


def split_batch_norms(network: nn.Module, splits: int) -> None:
    """Turn a network's plain batch norms into split ones, in place; parameters, buffers and keys stay the same."""
    for module in network.modules():
        if type(module) in (nn.BatchNorm2d, SplitBatchNorm):
            module.__class__ = SplitBatchNorm
            module.splits = splits  # type: ignore[assignment]
