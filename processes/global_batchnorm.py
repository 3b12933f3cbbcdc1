"""BatchNorm whose statistics cover the global batch of several processes on CPUs.

On GPUs `torch.nn.SyncBatchNorm` does this; it refuses to run on CPUs. B batch of this process, may be empty.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils import batchnorms


class SumOverProcesses(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs. (torch's own is deprecated without a successor.)"""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient)


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm of any rank; in train mode every process must call it, in the same order."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...).

        :raises ValueError: in train mode if there is but one value a channel over all processes.
        """
        if not self.training and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        dims = [d for d in range(x.dim()) if d != 1]
        channels, shape = x.shape[1], [1, -1] + [1] * (x.dim() - 2)
        # One sum of everything, in float64: sum of squares minus square of the sum cancels.
        wide = x.double()
        count = wide.new_full((1,), x.numel() // channels)
        sums = torch.cat([count, wide.sum(dims), wide.square().sum(dims)])
        count, total, squares = SumOverProcesses.apply(sums).split([1, channels, channels])
        count = count.detach()
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        if self.running_mean is not None and self.running_var is not None and self.track_running_stats:
            assert self.num_batches_tracked is not None  # is there where they are
            self.num_batches_tracked += 1
            weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach().to(self.running_mean), weight)
            self.running_var.lerp_((variance.detach() * count / (count - 1)).to(self.running_var), weight)
        scale = (variance + self.eps).rsqrt().to(x)
        normalised = (x - mean.to(x).view(shape)) * scale.view(shape)
        return torch.addcmul(self.bias.view(shape), normalised, self.weight.view(shape)) if self.affine else normalised


def with_global_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with each BatchNorm over all processes, SyncBatchNorm on GPUs; the same state-dict keys. Changes `model`."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for batchnorm in batchnorms(model):
        # As torch's lazy layers do: it has the same attributes, and another forward.
        batchnorm.__class__ = GlobalBatchNorm
    return model
