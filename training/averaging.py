"""The exponential average of the weights along training, which checks and evaluations may use instead of the last ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from loading.batches import TrainBatches
from processes.distributed import World
from utils import STATISTICS, batchnorms, mixed_seed

BATCHES = 40  # over which BatchNorm's statistics are estimated


class WeightAverage:
    """The average after n steps moves by 1 - min(decay, (1 + n) / (10 + n)); buffers are averaged like weights.

    Averaged statistics of BatchNorm are not those of the averaged weights: `re_estimate` them before the average is used.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.counts = decay, torch.tensor(True)
        self.averaged = AveragedModel(model, avg_fn=self._average, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights, under its own keys."""
        return self.averaged.module

    def _average(self, average: Tensor, value: Tensor, done: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return value
        done = torch.as_tensor(done, dtype=torch.float32)
        decay = torch.clamp((1 + done) / (10 + done), max=self.decay).to(average.device, average.dtype)
        return torch.where(self.counts.to(average.device), value + decay * (average - value), average)

    @torch.no_grad()
    def update(self, model: nn.Module, counts: Tensor) -> None:
        """After a step; counts: () bool, whether the step was not taken back."""
        self.counts = counts
        self.averaged.update_parameters(model)
        self.averaged.n_averaged -= (~counts).to(self.averaged.n_averaged)

    def re_estimate(self, batches: TrainBatches, step: int, world: World) -> int:
        """BatchNorm's running statistics anew, over the last training batches before `step`, as training sees them; gives
        how many images went through the network. A function of the average and (seed, step) alone."""
        norms = batchnorms(self.model)
        if not norms:
            return 0
        steps = range(max(step - BATCHES, 0), step)
        torch.manual_seed(mixed_seed(batches.seed, STATISTICS, step, world.rank))  # dropout in people's own networks
        with torch.no_grad():
            update_bn((batches(each).x for each in steps), self.model)
        world.share_from(0, *(buffer for norm in norms for buffer in norm.buffers()))
        return sum(len(batches.global_rows(each)) for each in steps)

    def state_dict(self) -> dict[str, Tensor]:
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.averaged.load_state_dict(state)
