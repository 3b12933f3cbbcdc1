"""MMA training (paper, algorithm 2): the step and the loop around it.

B batch, C classes, N training examples. Images in [0, 1]; eps is a radius in the same unit. The trainer prints nothing
and touches no file: rows and states go to the `Recorder` it is handed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from check import check_rows
from config import Config
from hardware.cuda_graph import Captured
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from hardware.optimizer import make_optimizer, restore_optimizer
from hardware.precision import tf32
from loading.batches import Batch, TrainBatches, first_batch, first_images, steps_per_epoch
from loading.crops import Augment
from loading.datasets import Dataset
from networks.names import is_built_in
from networks.probes import probe
from objectives import AttackStart, StepResult, objective_of
from pgd import noise_towards
from processes.distributed import ALONE, World
from processes.global_batchnorm import with_global_statistics
from processes.replica import Replica
from training.exchange import merged
from training.guard import Guard, NotFinite, all_finite
from training.warm_start import Stored, WarmStarts
from utils import (
    CHECK,
    GLOBAL,
    ODI,
    START,
    batchnorms,
    generator,
    has_batchnorm,
    mixed_seed,
    per_row,
    seed_global_draws,
    send,
)

BEYOND = 0.99  # times eps_max: a search that ended there met no wrong point; well above d_max = eps_max / 1.05


class Recorder(Protocol):
    """Where the trainer's results go."""

    def step(self) -> None: ...
    def rows(self, rows: list[dict[str, Any]]) -> None: ...
    def best(self, model: nn.Module, metrics: dict[str, dict[str, Any]]) -> None: ...
    def margins(self, eps: Tensor, step: int) -> None: ...
    def save(self, state: dict[str, Any]) -> None: ...


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
        one = first_batch(data.train, 1)
        self.needs = probe(model, one)
        shares_statistics = world.size > 1 and has_batchnorm(model) and not config.local_bn
        self.model = with_global_statistics(model, self.device) if shares_statistics else model
        self.parameters = list(self.model.parameters())
        self.replica = Replica(self.model, world, shares_statistics, leaves_out=not self.needs.uses_all)
        self.replica.warm_up(one)
        self.optimizer = make_optimizer(
            config.optimizer, self.model, lr=config.lr_at(0), weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.guard = Guard(self.model, self.optimizer, config.batch_size, self.device)
        self._make_step(is_built_in(config.network) and config.cuda_graphs)
        self.step = 0  # optimizer steps done
        self.checked_step = 0  # the last step with a check
        self.eps = torch.zeros(len(data.train), device=self.device)
        warm, shape = config.keep_directions, data.train.shape
        self.directions = WarmStarts(len(data.train), shape, config.norm, self.device) if warm else None
        self.best = False, float("-inf")  # on validation images: whether it tells classes apart; `config.best_by`
        # Since the last train row: examples, and over them clean loss, right ones, loss of the attacked, radius.
        self.seen = torch.zeros(5, dtype=torch.float64, device=self.device)
        self.passes = torch.zeros((), dtype=torch.float64, device=self.device)  # of images through the network
        self.check_passes = 0  # the same in the checks

    def _make_step(self, records: bool) -> None:
        """The attack, the objective, its gradient, the check's attack; records: as CUDA graphs where they can be."""
        config, size, records = self.config, self.world.size, records and self.device.type == "cuda"
        # With BatchNorm, whose statistics count the right rows alone, the attack is recorded, not the whole gradient.
        whole = records and size == 1 and not batchnorms(self.model)
        attack_rows = -(-config.batch_size // size) if records and not whole else None
        check_rows = config.eval_batch_size if records else None
        tune = layout_for(self.device, config.precision, config.deterministic).tune
        self.attack = FastPgd(self.model, config.precision, attack_rows, tune)
        # On CPUs one copy of the network in bfloat16 serves both.
        same = check_rows == attack_rows
        self.check_attack = self.attack if same else FastPgd(self.model, config.precision, check_rows, tune)
        single = self.needs.one_row
        self.objective = objective_of(config, self.attack, search_single_row=single, every_row=whole)
        self.gradient: Callable[..., tuple[StepResult, list[Tensor | None]]] = self._gradient
        if whole:
            self.gradient = Captured(self._gradient, config.batch_size, tune)

    @property
    def epoch(self) -> int:
        """The epoch of the last step done, counted from 1."""
        return max(self.step - 1, 0) // self.steps_per_epoch + 1

    @property
    def by_guessing(self) -> float:
        """The clean accuracy on validation images that one class for all of them can have, with two standard errors."""
        labels = first_images(self.data.val, self.config.check_size).labels
        count = max(len(labels), 1)
        share = float(labels.bincount(minlength=1).max()) / count
        return share + 2 * math.sqrt(share * (1 - share) / count)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, `checkpoint.STATE_KEYS` and more: tensors and plain values."""
        return {
            "step": self.step,
            "checked_step": self.checked_step,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "eps": self.eps,
            "best": list(self.best),
            "sums": self.seen.tolist(),
            "passes": [float(self.passes), self.check_passes],
            "skipped": [int(self.guard.in_a_row), int(self.guard.since_row)],
            "skipped_examples": self.guard.examples,
            "config": self.config.to_dict(),
            **({"directions": self.directions.state_dict()} if self.directions else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state of a run with the same network and training set."""
        self.step, self.checked_step, self.best = state["step"], state["checked_step"], tuple(state["best"])
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.eps.copy_(state["eps"])
        self.seen.copy_(torch.tensor(state["sums"], dtype=torch.float64).reshape(len(self.seen)))
        passes, self.check_passes = state["passes"]
        self.passes.fill_(passes)
        in_a_row, since_row = state["skipped"]
        self.guard.in_a_row.fill_(in_a_row)
        self.guard.since_row.fill_(since_row)
        self.guard.examples.copy_(state["skipped_examples"])
        if self.directions is not None:
            self.directions.load_state_dict(state["directions"])

    def train_step(self) -> StepResult:
        """One optimizer step; every draw is a function of (seed, step). What comes back is of the global batch.

        If a loss, a gradient or a weight is not finite, nothing but the step number changes.
        """
        step, index = self.step, send(self.batches.global_rows(self.step), self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step)
        self.guard.remember()
        result, directions = merged(self.world, *self._own_gradient(step), len(index))
        self.world.take_from_first(self.replica.own_buffers)
        counts = self.guard.step(result.finite, step)
        if self.config.enlarges_margins:
            self.eps[index] = torch.where(counts, result.eps, self.eps[index])
        if self.directions is not None and directions is not None:
            self.directions.write(index, directions, counts)
        seen = (result.clean_loss * len(index), result.correct, result.adv_loss * len(index), result.eps.sum())
        row = torch.stack(
            [torch.full_like(result.clean_loss, len(index)), *(one.to(result.clean_loss) for one in seen)]
        )
        self.seen += torch.where(counts, row.double(), 0)
        self.passes += result.passes
        self.step += 1
        return result

    def _own_gradient(self, step: int) -> tuple[StepResult, Stored | None]:
        """This process's share of the losses, and its directions to store; the gradient of the global batch is left in
        the parameters."""
        config, rank = self.config, self.world.rank
        key = (config.seed, GLOBAL, step, *([rank] if rank else []))
        seed_global_draws(mixed_seed(*key))
        batch = self.batches(step)
        self.total = len(self.batches.global_rows(step))
        self.model.train()
        bfloat16 = torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16_all")
        with tf32(config.precision != "fp32"), bfloat16:
            result, gradients = self.gradient(batch.x, batch.y, *self._attack_start(batch, step))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.directions is None or result.direction is None:
            return result, None
        return result, self.directions.to_store(batch.index, result.direction, self.batches.crops(step))

    def _attack_start(self, batch: Batch, step: int) -> AttackStart:
        """Where the attack starts in each row: a function of the seed, the step and what is stored.

        An image of MMA starts along its stored direction, but at every `refresh_interval`-th visit at random: they go
        stale, and a stale one makes eps too large. One whose last search met no wrong point is attacked at every
        `rest_interval`-th visit.
        """
        config, own = self.config, self.world.rows(self.total)
        if not config.attacks:
            return AttackStart(torch.zeros_like(batch.y, dtype=batch.x.dtype))
        noise = torch.rand(self.total, *batch.x.shape[1:], generator=generator(config.seed, START, step))
        noise, odi_weights = send(noise[own], self.device), None
        if config.odi_steps:
            drawn = torch.rand(self.total, self.data.num_classes, generator=generator(config.seed, ODI, step))
            odi_weights = send(2 * drawn[own] - 1, self.device)
        if not config.enlarges_margins:
            eps = torch.full_like(batch.y, config.eps_at(step), dtype=batch.x.dtype)
            return AttackStart(eps, noise, odi_weights=odi_weights)
        stored, visit = self.eps[batch.index], step // self.steps_per_epoch + batch.index
        eps, skipped = stored.clamp(min=config.attack_mineps), None
        if self.directions is not None:
            warm = self.directions.known(batch.index)
            if config.refresh_interval:
                warm = warm & (visit % config.refresh_interval != 0)
            directions = self.directions.read(batch.index, self.batches.crops(step)).to(batch.x)
            noise = torch.where(per_row(warm, noise), noise_towards(config.norm, batch.x, eps, directions), noise)
            odi_weights = None if odi_weights is None else torch.where(warm[:, None], 0, odi_weights)
        if config.rest_interval > 1:
            skipped = (stored >= BEYOND * config.search_maxeps) & (visit % config.rest_interval != 0)
        return AttackStart(eps, noise, skipped, odi_weights)

    def _gradient(self, x: Tensor, y: Tensor, *start: Tensor | None) -> tuple[StepResult, list[Tensor | None]]:
        """What the step saw, and each parameter's gradient; no shape depends on data if there is no BatchNorm."""
        self.optimizer.zero_grad(set_to_none=True)
        result = self.objective(self.replica, x, y, AttackStart(*start), self.total)  # type: ignore[arg-type]
        return result, [parameter.grad for parameter in self.parameters]

    def run(self, recorder: Recorder, stop: Callable[[], bool]) -> bool:
        """Train up to `max_steps`, with a check after each epoch and at the end. False if `stop()` ended it early.

        The state is saved every `save_interval` minutes, before and after each check, and when stopped. Of several
        processes the first one's clock counts, and `stop` must say the same on all.

        :raises NotFinite: before a row or a save, if steps in a row were not finite; the last save is whole.
        """
        config = self.config
        saved_at = row_at = time.monotonic()
        row_step, interval = self.step, self.steps_per_epoch * config.check_interval
        while True:
            stopping, at_check = stop(), self.step >= config.max_steps or self.step % interval == 0
            due = at_check and self.step > self.checked_step
            if due and not stopping:
                self._save(recorder)  # a check may take long, and one that is stopped is made again
                check_at = time.monotonic()
                stopping = not self.check(recorder, stop)
                if not stopping:
                    self._save(recorder)
                    saved_at = time.monotonic()
                row_at += time.monotonic() - check_at  # steps_per_second is of the steps alone
            if stopping:
                self._save(recorder)
                self.world.wait()  # a launcher ends all when the first one has ended
                return False
            if self.step >= config.max_steps:
                return True
            self.train_step()
            recorder.step()
            if self.step % config.disp_interval == 0 or self.step == config.max_steps:
                now = time.monotonic()
                recorder.rows([self._train_row((self.step - row_step) / (now - row_at))])
                row_at, row_step = now, self.step
            due = time.monotonic() - saved_at > 60 * config.save_interval
            if self.world.largest(int(due and self.world.is_first)):
                self._save(recorder)
                saved_at = time.monotonic()

    def _save(self, recorder: Recorder) -> None:
        self.guard.refuse_not_finite(self.batches)
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [*self.model.parameters(), *self.guard.watched(), *(one for one in state if isinstance(one, Tensor))]
        if not all_finite(tensors):
            raise NotFinite(f"a weight is not finite at step {self.step}")
        recorder.save(self.state())

    def _train_row(self, steps_per_second: float) -> dict[str, Any]:
        """Losses and accuracies over the examples since the last row; None for what the method does not see."""
        self.guard.refuse_not_finite(self.batches)
        config, skipped = self.config, int(self.guard.since_row)
        examples, *seen = self.seen.tolist()
        clean_loss, correct, adv_loss, eps = (value / examples if examples else None for value in seen)
        self.seen.zero_()
        self.guard.since_row.zero_()
        columns: dict[str, float | None] = {"clean_loss": clean_loss, "clean_acc": correct, "mma_loss": None}
        if config.method in ("pgd", "pgdls", "ddn"):  # which see no clean image
            columns |= {"clean_loss": None, "clean_acc": None, "adv_loss": adv_loss, "adv_acc": correct}
        elif config.attacks:
            columns["mma_loss" if config.enlarges_margins else "adv_loss"] = adv_loss
        row = {"kind": "train", "step": self.step, "epoch": self.epoch, "lr": config.lr_at(self.step - 1), **columns}
        row |= {"mean_eps": eps if config.attacks else None, "steps_per_second": round(steps_per_second, 4)}
        return row | {"passes": int(self.passes)} | ({"skipped_steps": skipped} if skipped else {})

    def check(self, recorder: Recorder, stop: Callable[[], bool]) -> bool:
        """Check validation and test set; hand over rows, margins and, if it is the best so far, the model.

        False if stopped on the way: then nothing was handed over.
        """
        config, now = self.config, (self.step, self.epoch, self.check_passes)
        seed_global_draws(mixed_seed(config.seed, CHECK, GLOBAL, self.step, self.world.rank))  # of a network that draws
        how: dict[str, Any] = {"attack": self.check_attack, "world": self.world, "stop": stop}
        with tf32(config.precision != "fp32"), torch.no_grad():
            rows = check_rows(config, self.model, self.data, *now, **how)
        if rows is None:
            return False
        self.check_passes = rows[-1]["check_passes"]
        # One class for all images has the largest margins of all where it is right.
        if (found := (rows[0]["clean_acc"] > self.by_guessing, rows[0][config.best_by])) > self.best:
            self.best = found
            recorder.best(self.model, {row["split"]: row for row in rows})
        if config.enlarges_margins:
            recorder.margins(self.eps, self.step)
        recorder.rows(rows)
        self.checked_step = self.step
        return True
