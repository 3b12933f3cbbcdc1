"""MMA training (paper, algorithm 2): the step, the check after each epoch, and the loop around them.

B batch, C classes, N training examples. Images in [0, 1]; eps is a radius in the same unit. The trainer prints nothing
and touches no file: rows and states go to the `Recorder` it is handed.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from anpgd import zero_crossing
from config import Config
from cuda_graph import Captured
from data import Dataset, Split, steps_per_epoch, train_batch
from fast_pgd import FastPgd
from losses import LOSSES, logit_margin
from memory import BatchSize
from objectives import OBJECTIVES, StepResult
from pgd import PgdFn, pgd
from precision import tf32
from utils import CHECK, GLOBAL, START, eval_mode, generator, mixed_seed, row_noise, send


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
) -> Check | None:
    """PGD at `test_eps` from random starts keyed by (seed, `key`, image), then bisection on LM; in eval mode.

    None if `stop()` became true on the way. attack: `pgd`, or what runs it faster.
    """
    device = split.labels.device
    robust = torch.zeros(len(split), dtype=torch.bool, device=device)
    margins = torch.zeros(len(split), device=device)
    correct = 0
    with eval_mode(model):
        for rows in torch.arange(len(split)).split(config.eval_batch_size):
            if stop():
                return None
            x, y, rows = split.batch(rows)
            with torch.no_grad():
                right = logit_margin(model(x), y) < 0
            correct += int(right.sum())
            x, y, rows = x[right], y[right], rows[right]
            if not len(rows):
                continue
            noise = row_noise(split.numbers[rows], x.shape[1:], config.seed, CHECK, *key).to(x)
            x_adv = attack(model, x, y, loss_fn=LOSSES[config.attack_loss_fn], norm=config.norm, eps=config.test_eps,
                           step_size=config.test_eps_iter, steps=config.nb_iter, noise=noise)  # fmt: skip
            with torch.no_grad():
                robust[rows] = logit_margin(model(x_adv), y) < 0
            direction = (x_adv - x) / config.test_eps
            margins[rows] = zero_crossing(
                model, x, y, direction, loss_fn=logit_margin, start_eps=config.test_eps, max_eps=config.search_maxeps,
                steps=config.num_search_steps,
            ).float()  # fmt: skip
    return Check(correct / len(split), float(robust.double().mean()), margins)


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

    def add(self, result: StepResult) -> None:
        count = len(result.eps)
        self.values += torch.stack([
            torch.full_like(result.clean_loss, count), result.clean_loss * count, result.correct.to(result.clean_loss),
            result.adv_loss * count, result.eps.sum(),
        ]).double()  # fmt: skip

    def means(self) -> dict[str, float]:
        examples, *rest = self.values.tolist()
        return dict(zip(self.NAMES[1:], [value / examples for value in rest], strict=True)) if examples else {}


STATE_KEYS = {"step": int, "checked_step": int, "epoch": int, "model": dict, "optimizer": dict, "eps": Tensor,
              "best_margin": float, "sums": list, "config": dict}  # fmt: skip


class Trainer:
    """A run: network, optimizer, per-example radii and step number, and the loop that advances them."""

    def __init__(self, config: Config, model: nn.Module, data: Dataset) -> None:
        self.config, self.model, self.data = config, model, data
        self.device = data.train.labels.device
        self.optimizer = make_optimizer(config, model)
        self.steps_per_epoch = steps_per_epoch(len(data.train), config.batch_size)
        self.search_single_row = works_on_a_single_row(model, data.train)
        self.parameters = list(model.parameters())
        # On CUDA what has fixed shapes is recorded and replayed: the whole gradient, or with BatchNorm, whose statistics
        # count the right rows alone, each attack.
        on_cuda = self.device.type == "cuda"
        batchnorms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        padded = on_cuda and all(module.running_mean is not None for module in batchnorms)
        self.attack = FastPgd(model, config.precision, rows=config.batch_size if padded and batchnorms else None)
        self.check_attack = FastPgd(model, config.precision, rows=config.eval_batch_size if padded else None)
        self.check_batch = BatchSize(config.eval_batch_size, "--eval_batch_size", warnings.warn)
        self.gradient = Captured(self._gradient, config.batch_size) if on_cuda and not batchnorms else self._gradient
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
            "config": self.config.to_dict(),
        }

    def restore(self, state: dict) -> None:
        """Take up a state of a run with the same network and training set."""
        self.step, self.checked_step, self.best_margin = state["step"], state["checked_step"], state["best_margin"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.eps.copy_(state["eps"])
        self.sums.values.copy_(torch.tensor(state["sums"], dtype=torch.float64).reshape(len(Sums.NAMES)))

    def train_step(self) -> StepResult:
        """One optimizer step; every draw is a function of (seed, step)."""
        config, step = self.config, self.step
        torch.manual_seed(mixed_seed(config.seed, GLOBAL, step))  # dropout in people's own networks
        batch = train_batch(
            self.data.train, step, batch_size=config.batch_size, seed=config.seed, augment=config.augment
        )
        noise = None
        if config.attacks:
            noise = send(torch.rand(batch.x.shape, generator=generator(config.seed, START, step)), self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step)

        self.model.train()
        if config.enlarges_margins:
            eps = self.eps[batch.index].clamp(min=config.attack_mineps)
        else:
            eps = torch.full_like(batch.y, config.eps_at(step), dtype=batch.x.dtype)
        with tf32(config.precision != "fp32"):
            outputs = self.gradient(batch.x, batch.y, eps, *([] if noise is None else [noise]))
        result, gradients = StepResult(*outputs[: len(StepResult._fields)]), outputs[len(StepResult._fields) :]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        if config.enlarges_margins:
            self.eps[batch.index] = result.eps
        self.sums.add(result)
        self.step += 1
        return result

    def _gradient(self, x: Tensor, y: Tensor, eps: Tensor, noise: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """What the step saw, and each parameter's gradient; no shape depends on data if there is no BatchNorm."""
        self.optimizer.zero_grad(set_to_none=True)
        result = OBJECTIVES[self.config.objective](
            self.model, x, y, eps, noise, self.config, search_single_row=self.search_single_row,
            every_row=isinstance(self.gradient, Captured), attack=self.attack,
        )  # fmt: skip
        return (*result, *(parameter.grad for parameter in self.parameters))

    def run(self, recorder: Recorder, stop: Callable[[], bool]) -> bool:
        """Train up to `max_steps`, with a check after each epoch and at the end. False if `stop()` ended it early.

        The state is saved every `save_interval` minutes, before and after each check, and when stopped.

        :raises FloatingPointError: before a row or a save, if a loss or a weight is not finite; the last save is whole.
        """
        config = self.config
        saved_at = row_at = time.monotonic()
        row_step = self.step
        while True:
            epoch_ends = self.step % self.steps_per_epoch == 0 or self.step >= config.max_steps
            if epoch_ends and self.step > self.checked_step and not stop():
                self._save(recorder)  # a check may take long
                check_at = time.monotonic()
                if self.check(recorder, stop):
                    self._save(recorder)
                    saved_at = time.monotonic()
                row_at += time.monotonic() - check_at  # steps_per_second is of the steps alone
            if stop():
                self._save(recorder)
                return False
            if self.step >= config.max_steps:
                return True
            recorder.step(self.train_step())
            if self.step % config.disp_interval == 0:
                now = time.monotonic()
                recorder.rows([self._train_row((self.step - row_step) / (now - row_at))])
                row_at, row_step = now, self.step
            if time.monotonic() - saved_at > 60 * config.save_interval:
                self._save(recorder)
                saved_at = time.monotonic()

    def _save(self, recorder: Recorder) -> None:
        weights = [p for p in self.model.state_dict().values() if p.is_floating_point()]
        if not all(bool(torch.isfinite(w).all()) for w in weights):
            raise FloatingPointError(f"a weight is not finite at step {self.step}")
        recorder.save(self)

    def _train_row(self, steps_per_second: float) -> dict:
        means = self.sums.means()
        if not all(math.isfinite(value) for value in means.values()):
            raise FloatingPointError(f"a loss is not finite at step {self.step} or before")
        self.sums = Sums(self.device)
        config, seen = self.config, dict.fromkeys(("clean_loss", "clean_acc", "mma_loss"))
        if config.objective in ("pgd", "pgdls"):
            seen |= {"adv_loss": means["adv_loss"], "adv_acc": means["correct"]}
        else:
            seen |= {"clean_loss": means["clean_loss"], "clean_acc": means["correct"]}
            if config.attacks:
                seen["mma_loss" if config.enlarges_margins else "adv_loss"] = means["adv_loss"]
        return {"kind": "train", "step": self.step, "epoch": self.epoch, "lr": config.lr_at(self.step - 1), **seen,
                "mean_eps": means["eps"] if config.attacks else None,
                "steps_per_second": round(steps_per_second, 4)}  # fmt: skip

    def _check(self, split: Split, number: int, stop: Callable[[], bool], batch_size: int) -> Check | None:
        config = replace(self.config, eval_batch_size=batch_size)
        with tf32(config.precision != "fp32"):
            attack = self.check_attack.resize(batch_size)
            return check_split(self.model, split, config, number, self.step, stop=stop, attack=attack)

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
            result = self.check_batch.run(
                lambda size, split=split, number=number: self._check(split, number, stop, size)
            )
            if result is None:
                return False
            rows.append({"kind": "eval", "split": name, "step": self.step, "epoch": self.epoch,
                         "clean_acc": result.clean_acc, "robust_acc": result.robust_acc,
                         "mean_margin": result.mean_margin, **self._smaller_batch()})  # fmt: skip
        if rows[0]["mean_margin"] > self.best_margin:
            self.best_margin = rows[0]["mean_margin"]
            recorder.best(self, {row["split"]: row for row in rows})
        if self.config.enlarges_margins:
            recorder.margins(self.eps, self.step)
        recorder.rows(rows)
        self.checked_step = self.step
        return True


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum, at the first learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr_at(0), weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr_at(0), momentum=config.momentum, weight_decay=config.weight_decay)


def works_on_a_single_row(model: nn.Module, split: Split) -> bool:
    """Whether a forward pass in train mode accepts one image; BatchNorm on vectors does not."""
    probe = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            probe(split.batch(torch.zeros(1, dtype=torch.long)).x)
    except ValueError:
        return False
    return True
