"""MMA training (paper, algorithm 2): the step, the check after each epoch, and the loop around them.

B batch, C classes, N training examples. Images in [0, 1]; eps is a radius in the same unit. The trainer prints nothing
and touches no file: rows and states go to the `Recorder` it is handed.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from anpgd import zero_crossing
from config import Config
from hardware.cuda_graph import Captured
from hardware.fast_pgd import FastPgd
from hardware.guard import ENOUGH, Guard, all_finite
from hardware.memory import BatchSize
from hardware.precision import tf32
from loading.batches import Batch, Split, TrainBatches, steps_per_epoch
from loading.datasets import Dataset
from losses import LOSSES, logit_margin
from objectives import OBJECTIVES, StepResult
from pgd import PgdFn, pgd
from processes.distributed import ALONE, World
from processes.global_batchnorm import GlobalBatchNorm, with_global_statistics
from processes.replica import Replica
from utils import CHECK, GLOBAL, START, eval_mode, generator, has_batchnorm, mixed_seed, row_noise, send


class Check(NamedTuple):
    """A network's figures on one split."""

    clean_acc: float
    robust_acc: float  # against PGD at the fixed test radius
    margins: Tensor  # (N,) radius of the zero crossing along PGD's direction; 0 where misclassified

    @property
    def mean_margin(self) -> float:
        return float(self.margins.double().mean())


def check_split(
    model: nn.Module,
    split: Split,
    config: Config,
    *key: int,
    stop: Callable[[], bool] = lambda: False,
    attack: PgdFn = pgd,
    world: World = ALONE,
) -> Check | None:
    """PGD at `test_eps` from random starts keyed by (seed, `key`, image), then bisection on LM; in eval mode.

    None if `stop()` became true on the way. attack: `pgd`, or what runs it faster. Of several processes each takes whole
    batches, so that what an image gets does not depend on their number.
    """
    found = torch.zeros(len(split), 3, device=split.labels.device)  # right, robust, margin
    rows = torch.arange(len(split)).split(config.eval_batch_size)
    with eval_mode(model), closing(split.batches(rows[world.rank :: world.size])) as batches:
        for first in range(0, len(rows), world.size):
            if stop():
                return None
            if first + world.rank < len(rows):
                _check_batch(model, split, next(batches), config, key, attack, found)
    right, robust, margins = world.total(found).unbind(1)
    return Check(float(right.double().mean()), float(robust.double().mean()), margins.contiguous())


def _check_batch(
    model: nn.Module, split: Split, batch: Batch, config: Config, key: tuple[int, ...], attack: PgdFn, found: Tensor
) -> None:
    """Fill the batch's rows of `found`."""
    x, y, rows = batch
    with torch.no_grad():
        right = logit_margin(model(x), y) < 0
    x, y, rows = x[right], y[right], rows[right]
    if not len(rows):
        return
    noise = row_noise(split.numbers[rows], x.shape[1:], config.seed, CHECK, *key).to(x)
    x_adv = attack(
        model,
        x,
        y,
        loss_fn=LOSSES[config.attack_loss_fn],
        norm=config.norm,
        eps=config.test_eps,
        step_size=config.test_eps_iter,
        steps=config.nb_iter,
        noise=noise,
    )
    with torch.no_grad():
        robust = logit_margin(model(x_adv), y) < 0
    margins = zero_crossing(
        model,
        x,
        y,
        (x_adv - x) / config.test_eps,
        loss_fn=logit_margin,
        start_eps=config.test_eps,
        max_eps=config.search_maxeps,
        steps=config.num_search_steps,
    )
    found[rows] = torch.stack([torch.ones_like(margins), robust.to(margins), margins], dim=1).float()


class Recorder(Protocol):
    """Where the trainer's results go."""

    def step(self, result: StepResult) -> None: ...
    def rows(self, rows: list[dict]) -> None: ...
    def best(self, trainer: Trainer, metrics: dict) -> None: ...
    def margins(self, eps: Tensor, step: int) -> None: ...
    def save(self, trainer: Trainer) -> None: ...


class Sums:
    """Sums over examples since the last train row, on the device in float64, so that nothing waits for them."""

    NAMES = ("examples", "clean_loss", "correct", "adv_loss", "eps")

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, result: StepResult, counts: Tensor) -> None:
        """counts: () bool; a step that was taken back adds nothing."""
        count = len(result.eps)
        step = torch.stack(
            [
                torch.full_like(result.clean_loss, count),
                result.clean_loss * count,
                result.correct.to(result.clean_loss),
                result.adv_loss * count,
                result.eps.sum(),
            ]
        ).double()
        self.values += torch.where(counts, step, 0)

    def means(self) -> dict[str, float]:
        examples, *rest = self.values.tolist()
        return dict(zip(self.NAMES[1:], [value / examples if examples else None for value in rest], strict=True))


STATE_KEYS = {
    "step": int,
    "checked_step": int,
    "epoch": int,
    "model": dict,
    "optimizer": dict,
    "eps": Tensor,
    "best_margin": float,
    "sums": list,
    "config": dict,
}


class NotFinite(ArithmeticError):
    """Several steps in a row gave something that is not finite."""


class Trainer:
    """A run: network, optimizer, per-example radii and step number, and the loop that advances them.

    Of several processes each holds all of it, and ends each step with the same values.
    """

    def __init__(self, config: Config, model: nn.Module, data: Dataset, world: World = ALONE) -> None:
        self.config, self.data, self.world = config, data, world
        self.device = data.train.labels.device
        self.steps_per_epoch = steps_per_epoch(len(data.train), config.batch_size)
        self.batches = TrainBatches(
            data.train,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            rank=world.rank,
            ranks=world.size,
        )
        self.search_single_row = accepts(model, data.train, images=1)
        shares_statistics = world.size > 1 and has_batchnorm(model) and not config.local_bn
        if shares_statistics:
            model = with_global_statistics(model, self.device)
        self.model = model
        # Buffers that each process would move by its own passes: the first one's count.
        shared = (GlobalBatchNorm, nn.SyncBatchNorm)
        self.own_buffers = [
            buffer
            for module in model.modules()
            if not isinstance(module, shared)
            for buffer in module.buffers(recurse=False)
        ]
        self.replica = Replica(model, world, shares_statistics, world.size > 1 and not uses_all(model, data.train))
        self.replica.warm_up(data.train.batch(torch.zeros(1, dtype=torch.long)).x)
        self.optimizer = make_optimizer(config, model)
        self.guard = Guard(model, self.optimizer, config.batch_size, self.device)
        self.parameters = list(model.parameters())
        # On CUDA what has fixed shapes is recorded and replayed: the whole gradient, or with BatchNorm, whose statistics
        # count the right rows alone, each attack.
        on_cuda = self.device.type == "cuda"
        slice_size = -(-config.batch_size // world.size)
        batchnorms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        padded = on_cuda and all(module.running_mean is not None for module in batchnorms)
        recorded = on_cuda and not batchnorms and world.size == 1
        self.attack = FastPgd(model, config.precision, rows=slice_size if padded and not recorded else None)
        self.check_attack = FastPgd(model, config.precision, rows=config.eval_batch_size if padded else None)
        self.gradient = Captured(self._gradient, config.batch_size) if recorded else self._gradient
        self.check_batch = BatchSize(config.eval_batch_size, "--eval_batch_size", warnings.warn)
        self.step = 0  # optimizer steps done
        self.checked_step = 0  # the last step with a check
        self.eps = torch.zeros(len(data.train), device=self.device)
        self.best_margin = float("-inf")
        self.sums = Sums(self.device)

    @property
    def epoch(self) -> int:
        """The epoch of the last step done, counted from 1."""
        return max(self.step - 1, 0) // self.steps_per_epoch + 1

    def state(self) -> dict:
        """Everything a resumed run needs, under `STATE_KEYS`: tensors and plain values."""
        return {
            "step": self.step,
            "checked_step": self.checked_step,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "eps": self.eps,
            "best_margin": self.best_margin,
            "sums": self.sums.values.tolist(),
            "skipped": [int(self.guard.in_a_row), int(self.guard.since_row)],
            "config": self.config.to_dict(),
        }

    def restore(self, state: dict) -> None:
        """Take up a state of a run with the same network and training set."""
        self.step, self.checked_step, self.best_margin = state["step"], state["checked_step"], state["best_margin"]
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.eps.copy_(state["eps"])
        self.sums.values.copy_(torch.tensor(state["sums"], dtype=torch.float64).reshape(len(Sums.NAMES)))
        in_a_row, since_row = state.get("skipped", (0, 0))
        self.guard.in_a_row.fill_(in_a_row)
        self.guard.since_row.fill_(since_row)

    def train_step(self) -> StepResult:
        """One optimizer step; every draw is a function of (seed, step). What comes back is of the global batch.

        If a loss, a gradient or a weight is not finite, nothing but the step number changes.
        """
        config, step, world = self.config, self.step, self.world
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        self.guard.remember()
        own = self._own_gradient(step)
        result = self._merge(own)
        world.share_from(0, *self.own_buffers)
        counts = self.guard.step(result.finite, step)
        if config.enlarges_margins:
            index = send(self.batches.global_rows(step), self.device)
            self.eps[index] = torch.where(counts, result.eps, self.eps[index])
        self.sums.add(result, counts)
        self.step += 1
        return result

    def _own_gradient(self, step: int) -> StepResult:
        """This process's share of the losses; the gradient of the global batch is left in the parameters."""
        config, world = self.config, self.world
        key = (config.seed, GLOBAL, step, *([world.rank] if world.rank else []))
        torch.manual_seed(mixed_seed(*key))  # dropout in people's own networks
        batch = self.batches(step)
        self.total = len(self.batches.global_rows(step))
        noise = None
        if config.attacks:
            noise = torch.rand(self.total, *batch.x.shape[1:], generator=generator(config.seed, START, step))
            noise = send(noise[world.rows(self.total)], self.device)
        if config.enlarges_margins:
            eps = self.eps[batch.index].clamp(min=config.attack_mineps)
        else:
            eps = torch.full_like(batch.y, config.eps_at(step), dtype=batch.x.dtype)
        self.model.train()
        with tf32(config.precision != "fp32"):
            outputs = self.gradient(batch.x, batch.y, eps, *([] if noise is None else [noise]))
        result, gradients = StepResult(*outputs[: len(StepResult._fields)]), outputs[len(StepResult._fields) :]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return result

    def _gradient(self, x: Tensor, y: Tensor, eps: Tensor, noise: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """What the step saw, and each parameter's gradient; no shape depends on data if there is no BatchNorm."""
        self.optimizer.zero_grad(set_to_none=True)
        result = OBJECTIVES[self.config.objective](
            self.model,
            x,
            y,
            eps,
            noise,
            self.config,
            search_single_row=self.search_single_row,
            every_row=isinstance(self.gradient, Captured),
            attack=self.attack,
            replica=self.replica,
            total=self.total,
        )
        return (*result, *(parameter.grad for parameter in self.parameters))

    def _merge(self, own: StepResult) -> StepResult:
        """Each process's share of a step -> the step, by one exchange; float64 holds every value exactly."""
        if self.world.size == 1:
            return own
        shares = torch.stack([own.clean_loss, own.correct.to(own.clean_loss), own.adv_loss]).double()
        rows = torch.zeros(self.total, 2, dtype=torch.float64, device=self.device)
        rows[self.world.rows(self.total)] = torch.stack([own.eps, own.finite.to(own.eps)], dim=1).double()
        merged = self.world.total(torch.cat([shares, rows.flatten()]))
        clean_loss, correct, adv_loss = merged[:3]
        eps, finite = merged[3:].view(-1, 2).unbind(1)
        return StepResult(
            clean_loss.to(own.clean_loss),
            correct.to(own.correct),
            adv_loss.to(own.adv_loss),
            eps.to(own.eps),
            finite > 0,
        )

    def run(self, recorder: Recorder, stop: Callable[[], bool]) -> bool:
        """Train up to `max_steps`, with a check after each epoch and at the end. False if `stop()` ended it early.

        The state is saved every `save_interval` minutes, before and after each check, and when stopped. Of several
        processes the first one's clock counts, and `stop` must say the same on all.

        :raises NotFinite: before a row or a save, if steps in a row were not finite; the last save is whole.
        """
        config = self.config
        saved_at = row_at = time.monotonic()
        row_step = self.step
        while True:
            stopping = stop()
            epoch_ends = self.step % self.steps_per_epoch == 0 or self.step >= config.max_steps
            if epoch_ends and self.step > self.checked_step and not stopping:
                self._save(recorder)  # a check may take long
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
            recorder.step(self.train_step())
            if self.step % config.disp_interval == 0:
                now = time.monotonic()
                recorder.rows([self._train_row((self.step - row_step) / (now - row_at))])
                row_at, row_step = now, self.step
            due = time.monotonic() - saved_at > 60 * config.save_interval
            if self.world.largest(int(due and self.world.is_first)):
                self._save(recorder)
                saved_at = time.monotonic()

    def _save(self, recorder: Recorder) -> None:
        self._look_at_the_guard()
        if not all_finite(self.guard.changing()):
            raise NotFinite(f"a weight is not finite at step {self.step}")
        recorder.save(self)

    def _look_at_the_guard(self) -> None:
        """:raises NotFinite: naming steps and examples."""
        last = int(self.guard.last)
        if last < 0:
            return
        steps = range(last - ENOUGH + 1, last + 1)
        numbers, batches = self.data.train.numbers.cpu(), map(self.batches.global_rows, steps)
        bad = {
            int(numbers[row])
            for rows, marked in zip(batches, self.guard.examples.cpu(), strict=True)
            for row in rows[marked[: len(rows)]]
        }
        who = (
            f"training images {', '.join(map(str, sorted(bad)[:20]))}{', …' if len(bad) > 20 else ''}"
            if bad
            else ("no single image, but the gradient or the new weights")
        )
        raise NotFinite(f"steps {', '.join(str(step + 1) for step in steps)} were not finite: {who}")

    def _train_row(self, steps_per_second: float) -> dict:
        self._look_at_the_guard()
        means, skipped = self.sums.means(), int(self.guard.since_row)
        self.sums = Sums(self.device)
        self.guard.since_row.zero_()
        config, seen = self.config, dict.fromkeys(("clean_loss", "clean_acc", "mma_loss"))
        if config.objective in ("pgd", "pgdls"):
            seen |= {"adv_loss": means["adv_loss"], "adv_acc": means["correct"]}
        else:
            seen |= {"clean_loss": means["clean_loss"], "clean_acc": means["correct"]}
            if config.attacks:
                seen["mma_loss" if config.enlarges_margins else "adv_loss"] = means["adv_loss"]
        return {
            "kind": "train",
            "step": self.step,
            "epoch": self.epoch,
            "lr": config.lr_at(self.step - 1),
            **seen,
            "mean_eps": means["eps"] if config.attacks else None,
            "steps_per_second": round(steps_per_second, 4),
            **({"skipped_steps": skipped} if skipped else {}),
        }

    def _check(self, split: Split, number: int, stop: Callable[[], bool]) -> Check | None:
        def check(size: int, attack: PgdFn) -> Check | None:
            config = replace(self.config, eval_batch_size=size)
            with tf32(config.precision != "fp32"):
                return check_split(
                    self.model, split, config, number, self.step, stop=stop, attack=attack, world=self.world
                )

        if self.world.size > 1:  # every process goes on with the same batches
            return check(self.check_batch.asked, self.check_batch.attack(self.check_attack))
        return self.check_batch.run(lambda size: check(size, self.check_attack.resize(size)))

    def _smaller_batch(self) -> dict[str, int]:
        return {"eval_batch_size": self.check_batch.used} if self.check_batch.used < self.check_batch.asked else {}

    def check(self, recorder: Recorder, stop: Callable[[], bool]) -> bool:
        """Check validation and test set; hand over rows, margins and, if it is the best so far, the model.

        False if stopped on the way: then nothing was handed over.
        """
        splits = {"val": self.data.val, "test": self.data.test}
        rows = []
        for number, (name, split) in enumerate(splits.items()):
            if not len(split):
                continue
            result = self._check(split, number, stop)
            if result is None:
                return False
            rows.append(
                {
                    "kind": "eval",
                    "split": name,
                    "step": self.step,
                    "epoch": self.epoch,
                    "clean_acc": result.clean_acc,
                    "robust_acc": result.robust_acc,
                    "mean_margin": result.mean_margin,
                    **self._smaller_batch(),
                }
            )
        if rows[0]["mean_margin"] > self.best_margin:
            self.best_margin = rows[0]["mean_margin"]
            recorder.best(self, {row["split"]: row for row in rows})
        if self.config.enlarges_margins:
            recorder.margins(self.eps, self.step)
        recorder.rows(rows)
        self.checked_step = self.step
        return True


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum, at the first learning rate; on a GPU all of its state lies there."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr_at(0), weight_decay=config.weight_decay, capturable=parameters[0].is_cuda
        )
    return torch.optim.SGD(parameters, lr=config.lr_at(0), momentum=config.momentum, weight_decay=config.weight_decay)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Take up a state that may have been saved on another kind of device."""
    own = [
        {key: group[key] for key in ("capturable", "foreach", "fused") if key in group}
        for group in optimizer.param_groups
    ]
    groups = [{**group, **kept} for group, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        if "step" in values:
            capturable = optimizer.param_groups[0].get("capturable")
            values["step"] = values["step"].to(parameter.device if capturable else "cpu")


def uses_all(model: nn.Module, split: Split) -> bool:
    """Whether the output depends on every parameter that is trained."""
    probe = copy.deepcopy(model).eval()
    probe(split.batch(torch.zeros(1, dtype=torch.long)).x).sum().backward()
    return all(p.grad is not None for p in probe.parameters() if p.requires_grad)


def accepts(model: nn.Module, split: Split, images: int) -> bool:
    """Whether the network works on so few images, on one in train mode too: BatchNorm on vectors does not."""
    probe = copy.deepcopy(model).train(images > 0)
    try:
        with torch.no_grad():
            probe(split.batch(torch.zeros(images, dtype=torch.long)).x)
    except ValueError:
        return False
    except Exception:  # people's own networks on no image at all
        if images:
            raise
        return False
    return True
