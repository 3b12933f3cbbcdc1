"""MMA training (paper, algorithm 2): the step and the loop around it.

B batch, C classes, N training examples. Images in [0, 1]; eps is a radius in the same unit. The trainer prints nothing
and touches no file: rows and states go to the `Recorder` it is handed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from config import Config
from hardware.cuda_graph import Captured
from hardware.fast_pgd import FastPgd
from hardware.guard import Guard, all_finite
from hardware.layout import layout_for
from hardware.optimizer import make_optimizer, restore_optimizer
from hardware.precision import tf32, training_arithmetic
from hardware.recording import NOTHING, Recording, recording_of
from loading.batches import Batch, TrainBatches, first_batch, steps_per_epoch
from loading.crops import Augment
from loading.datasets import Dataset
from networks.probes import probe
from objectives import StepInput, StepResult, objective_of
from processes.deadline import NEVER, Deadline
from processes.distributed import ALONE, World
from processes.global_batchnorm import with_global_statistics
from processes.replica import Replica
from training import starts
from training.averaging import WeightAverage
from training.directions import KeptDirections, Stored
from training.epoch_check import EpochCheck
from training.exchange import merged
from training.not_finite import NotFinite, refuse_not_finite
from training.sums import Sums, train_columns
from utils import GLOBAL, START, generator, has_batchnorm, mixed_seed, send


class Recorder(Protocol):
    """Where the trainer's results go."""

    def step(self, result: StepResult) -> None: ...
    def rows(self, rows: list[dict[str, Any]]) -> None: ...
    def best(self, trainer: Trainer, metrics: dict[str, Any]) -> None: ...
    def margins(self, eps: Tensor, step: int) -> None: ...
    def save(self, trainer: Trainer) -> None: ...


STATE_KEYS: dict[str, type] = {"eps": Tensor, "best_margin": float, "sums": list, "model": dict, "optimizer": dict}
STATE_KEYS |= {"step": int, "checked_step": int, "epoch": int, "config": dict}


class Trainer:
    """A run: network, optimizer, per-example radii and step number, and the loop that advances them.

    Of several processes each holds all of it, and ends each step with the same values.
    """

    def __init__(self, config: Config, model: nn.Module, data: Dataset, world: World = ALONE) -> None:
        self.config, self.data, self.world = config, data, world
        self.device = data.train.labels.device
        self.steps_per_epoch = steps_per_epoch(len(data.train), config.batch_size)
        how = {"batch_size": config.batch_size, "seed": config.seed, "rank": world.rank, "ranks": world.size}
        augment = Augment(config.crop_pad, config.flip) if config.augment else None
        self.batches = TrainBatches(data.train, augment=augment, **how)
        self.needs = probe(model, first_batch(data.train, 1))
        self._place(model)
        rates = {"lr": config.lr_at(0), "weight_decay": config.weight_decay, "momentum": config.momentum}
        self.optimizer = make_optimizer(config.optimizer, self.model, **rates)
        self.guard = Guard(self.model, self.optimizer, config.batch_size, self.device)
        recording = self._record()
        self.step = 0  # optimizer steps done
        self.checked_step = 0  # the last step with a check
        self.eps = torch.zeros(len(data.train), device=self.device)
        keeps = config.keep_directions
        self.directions = KeptDirections(len(data.train), data.train.shape, config.norm, self.device) if keeps else None
        self.average = WeightAverage(self.model, config.average_decay) if config.average_decay else None
        self.epoch_check = EpochCheck(config, self.checked_model, data, world, recording.check_rows)
        self.best = float("-inf")  # of `config.best_by` on validation images
        self.sums = Sums(self.device)
        self.passes = torch.zeros((), dtype=torch.float64, device=self.device)  # of images through the network

    def _place(self, model: nn.Module) -> None:
        """The network as one of several processes trains it."""
        config, world, one = self.config, self.world, first_batch(self.data.train, 1)
        shares_statistics = world.size > 1 and has_batchnorm(model) and not config.local_bn
        self.model = with_global_statistics(model, self.device) if shares_statistics else model
        self.parameters = list(self.model.parameters())
        leaves_out = world.size > 1 and not self.needs.uses_all
        self.replica = Replica(self.model, world, shares_statistics, leaves_out)
        self.replica.warm_up(one)

    def _record(self) -> Recording:
        """The attack, the objective and its gradient, recorded where they can be; how the check's attack is, comes back."""
        config, alone = self.config, self.world.size == 1
        slice_size = -(-config.batch_size // self.world.size)
        recording = recording_of(self.model, self.device, slice_size, config.eval_batch_size, alone)
        recording = recording if config.cuda_graphs else NOTHING
        tune = layout_for(self.device, config.precision, config.deterministic).tune
        self.attack = FastPgd(self.model, config.precision, rows=recording.attack_rows, tune=tune)
        single = self.needs.one_row
        self.objective = objective_of(config, self.attack, search_single_row=single, every_row=recording.gradient)
        self.gradient: Callable[..., tuple[Tensor | None, ...]] = self._gradient
        if recording.gradient:
            self.gradient = Captured(self._gradient, config.batch_size, module=self.model, tune=tune)
        return recording

    @property
    def checked_model(self) -> nn.Module:
        """The network that is checked and kept as the best: the average of the weights, where there is one."""
        return self.average.model if self.average else self.model

    @property
    def epoch(self) -> int:
        """The epoch of the last step done, counted from 1."""
        return max(self.step - 1, 0) // self.steps_per_epoch + 1

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, `STATE_KEYS` and more: tensors and plain values."""
        more = {"directions": self.directions, "average": self.average}
        return {
            "step": self.step,
            "checked_step": self.checked_step,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "eps": self.eps,
            "best_margin": self.best,  # the key's name is older than `best_by`
            "sums": self.sums.values.tolist(),
            "passes": [float(self.passes), self.epoch_check.passes],
            "skipped": [int(self.guard.in_a_row), int(self.guard.since_row)],
            "config": self.config.to_dict(),
            "listing": self.data.listing,
            "check": self.epoch_check.state_dict(),
            **{name: part.state_dict() for name, part in more.items() if part is not None},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state of a run with the same network and training set."""
        self.step, self.checked_step, self.best = state["step"], state["checked_step"], state["best_margin"]
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.eps.copy_(state["eps"])
        self.sums.values.copy_(torch.tensor(state["sums"], dtype=torch.float64).reshape(len(Sums.NAMES)))
        passes, self.epoch_check.passes = state.get("passes", (0.0, 0))
        self.passes.fill_(passes)
        self.epoch_check.load_state_dict(state.get("check", {}))
        in_a_row, since_row = state.get("skipped", (0, 0))
        self.guard.in_a_row.fill_(in_a_row)
        self.guard.since_row.fill_(since_row)
        for part, name in ((self.directions, "directions"), (self.average, "average")):
            if part is not None:
                part.load_state_dict(state[name])

    def train_step(self) -> StepResult:
        """One optimizer step; every draw is a function of (seed, step). What comes back is of the global batch.

        If a loss, a gradient or a weight is not finite, nothing but the step number changes.
        """
        step, index = self.step, send(self.batches.global_rows(self.step), self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step)
        self.guard.remember()
        result, directions = merged(self.world, *self._own_gradient(step), len(index))
        self.world.share_from(0, *self.replica.own_buffers)
        counts = self.guard.step(result.finite, step)
        if self.config.enlarges_margins:
            self.eps[index] = torch.where(counts, result.eps, self.eps[index])
        if self.directions is not None and directions is not None:
            self.directions.write(index, directions, counts)
        if self.average:
            self.average.update(self.model, counts)
        self.sums.add(result, counts)
        self.passes += result.passes
        self.step += 1
        return result

    def _own_gradient(self, step: int) -> tuple[StepResult, Stored | None]:
        """This process's share of the losses, and its directions to keep; the gradient of the global batch is left in
        the parameters."""
        config, rank = self.config, self.world.rank
        key = (config.seed, GLOBAL, step, *([rank] if rank else []))
        torch.manual_seed(mixed_seed(*key))  # dropout in people's own networks
        batch = self.batches(step)
        self.total = len(self.batches.global_rows(step))
        self.model.train()
        with tf32(config.precision != "fp32"), training_arithmetic(self.device.type, config.precision):
            outputs = self.gradient(batch.x, batch.y, *self._starts(batch, step))
        result, gradients = StepResult._make(outputs[: len(StepResult._fields)]), outputs[len(StepResult._fields) :]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.directions is None or result.direction is None:
            return result, None
        return result, self.directions.to_store(batch.index, result.direction, self.batches.crops(step))

    def _starts(self, batch: Batch, step: int) -> tuple[Tensor, ...]:
        """Where the attack starts in each row; see `training.starts`."""
        config = self.config
        if not config.attacks:
            return (torch.zeros_like(batch.y, dtype=batch.x.dtype),)
        noise = torch.rand(self.total, *batch.x.shape[1:], generator=generator(config.seed, START, step))
        noise = send(noise[self.world.rows(self.total)], self.device)
        if not config.enlarges_margins:
            return starts.fixed(config, batch, step, noise)
        epoch = step // self.steps_per_epoch
        stored, crops = self.eps[batch.index], self.batches.crops(step)
        return starts.per_example(config, batch, stored, noise, epoch, self.directions, crops)

    def _gradient(
        self, x: Tensor, y: Tensor, eps: Tensor, noise: Tensor | None = None, spared: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        """What the step saw, and each parameter's gradient; no shape depends on data if there is no BatchNorm."""
        self.optimizer.zero_grad(set_to_none=True)
        result = self.objective(self.replica, StepInput(x, y, eps, noise, self.total, spared))
        return (*result, *(parameter.grad for parameter in self.parameters))

    def run(self, recorder: Recorder, stop: Callable[[], bool], deadline: Deadline = NEVER) -> bool:
        """Train up to `max_steps`, with a check after each epoch and at the end. False if `stop()` or the deadline ended
        it early.

        The state is saved every `save_interval` minutes, before and after each check, and when stopped. Of several
        processes the first one's clock counts, and `stop` must say the same on all.

        :raises NotFinite: before a row or a save, if steps in a row were not finite; the last save is whole.
        """
        config = self.config
        saved_at = row_at = time.monotonic()
        row_step = self.step
        while True:
            stopping, due = stop(), self._check_is_due()
            if due and not stopping:
                self._save(recorder, deadline)  # a check may take long
                check_at = time.monotonic()
                stopping = not self.check(recorder, lambda: stop() or deadline.over("batch of a check"))
                if not stopping:
                    self._save(recorder, deadline)
                    saved_at = time.monotonic()
                row_at += time.monotonic() - check_at  # steps_per_second is of the steps alone
            if stopping or (self.step < config.max_steps and deadline.over("step")):
                self._save(recorder, deadline)
                self.world.wait()  # a launcher ends all when the first one has ended
                return False
            if self.step >= config.max_steps:
                return True
            recorder.step(self.train_step())
            if self.step % config.disp_interval == 0:
                now = time.monotonic()
                recorder.rows([self._train_row((self.step - row_step) / (now - row_at))])
                row_at, row_step = now, self.step
            due = time.monotonic() - saved_at > 60 * config.save_interval
            if self.world.largest(int(due and self.world.is_first)):
                self._save(recorder, deadline)
                saved_at = time.monotonic()

    def _check_is_due(self) -> bool:
        interval = self.steps_per_epoch * self.config.check_interval
        return self.step > self.checked_step and (self.step >= self.config.max_steps or self.step % interval == 0)

    def _save(self, recorder: Recorder, deadline: Deadline = NEVER) -> None:
        refuse_not_finite(self.guard, self.batches)
        if not all_finite(self.guard.changing()):
            raise NotFinite(f"a weight is not finite at step {self.step}")
        with deadline.saving():
            recorder.save(self)

    def _train_row(self, steps_per_second: float) -> dict[str, Any]:
        refuse_not_finite(self.guard, self.batches)
        seen, skipped = train_columns(self.config, self.sums.means()), int(self.guard.since_row)
        self.sums = Sums(self.device)
        self.guard.since_row.zero_()
        row = {"kind": "train", "step": self.step, "epoch": self.epoch, "lr": self.config.lr_at(self.step - 1), **seen}
        row |= {"steps_per_second": round(steps_per_second, 4), "passes": int(self.passes)}
        return row | ({"skipped_steps": skipped} if skipped else {})

    def check(self, recorder: Recorder, stop: Callable[[], bool]) -> bool:
        """Check validation and test set; hand over rows, margins and, if it is the best so far, the model.

        False if stopped on the way: then nothing was handed over.
        """
        with tf32(self.config.precision != "fp32"):
            passes = self.average.re_estimate(self.batches, self.step, self.world) if self.average else 0
        rows = self.epoch_check.rows(self.step, self.epoch, stop, passes)
        if rows is None:
            return False
        if (figure := rows[0][self.config.best_by]) > self.best:
            self.best = figure
            recorder.best(self, {row["split"]: row for row in rows})
        if self.config.enlarges_margins:
            recorder.margins(self.eps, self.step)
        recorder.rows(rows)
        self.checked_step = self.step
        return True
