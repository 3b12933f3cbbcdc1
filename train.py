"""Train a network with MMA: `python train.py --dataset mnist --norm Linf --hinge_maxeps 0.45`."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
from config import Config, parse_train
from data import Dataset, load_dataset
from errors import UserError, exits_on_user_error
from models import build_model
from runlog import RunFolder, TensorBoard
from trainer import STATE_KEYS, StepResult, Trainer
from utils import use_device

# What may differ between a run and its continuation.
FREE_ON_RESUME = {
    "max_steps",
    "device",
    "data_root",
    "disp_interval",
    "save_interval",
    "tensorboard",
    "resume",
    "savepath",
}


class RunRecorder:
    """Writes what the trainer hands over into the run folder, and shows it."""

    def __init__(self, folder: RunFolder, bar: tqdm, tensorboard: TensorBoard | None, reads_are_free: bool) -> None:
        self.folder, self.bar, self.tensorboard, self.reads_are_free = folder, bar, tensorboard, reads_are_free
        self.shown_at = 0.0

    def step(self, trainer: Trainer, result: StepResult) -> None:
        self.bar.update(1)
        # On a GPU reading a value waits for the device: there the bar follows the train rows only.
        if self.reads_are_free and time.monotonic() - self.shown_at > 0.5:
            self.shown_at = time.monotonic()
            count = len(result.eps)
            self._show(float(result.clean_loss), int(result.correct) / count, float(result.eps.mean()))

    def row(self, row: dict) -> None:
        self.folder.append(row)
        if self.tensorboard:
            self.tensorboard.row(row)
        if row["kind"] == "eval":
            tqdm.write(f"step {row['step']}, {row['split']}: clean {row['clean_acc']:.2%}, robust {row['robust_acc']:.2%}, "
                       f"mean margin {row['mean_margin']:.4f}")  # fmt: skip
        elif not self.reads_are_free:
            self._show(row["clean_loss"], row["clean_acc"], row["mean_eps"] or 0.0)

    def best(self, trainer: Trainer, metrics: dict) -> None:
        checkpoint.save(self.folder.best, {"epoch": trainer.epoch, "model": trainer.model.state_dict(),
                                           "config": trainer.config.to_dict(), "metrics": metrics})  # fmt: skip

    def margins(self, eps: Tensor, step: int) -> None:
        values = eps.cpu().numpy()
        self.folder.append_margins(values)
        if self.tensorboard:
            self.tensorboard.margins(values, step)

    def save(self, trainer: Trainer) -> None:
        checkpoint.save(self.folder.last, trainer.state(), previous=self.folder.previous)

    def _show(self, loss: float, accuracy: float, mean_eps: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.3f}, acc {accuracy:.1%}, mean eps {mean_eps:.4f}")


class StopSignals:
    """Inside, SIGINT and SIGTERM ask the run to stop after the step; a second one ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        tqdm.write("stopping after this step; once more ends at once", file=sys.stderr)

    def __call__(self) -> bool:
        return self.received is not None


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, notes = parse_train(argv)
    device = use_device(config.device, config.deterministic)
    folder = RunFolder(Path(config.savepath or Path("trained_models") / config.run_name))
    state = open_run(folder, config)
    if state == "finished":
        print(f"{folder.path}: already finished, {config.max_steps} steps")
        return 0
    for note in notes:
        print(note)

    data = load_dataset(config.dataset, config.data_root, seed=config.seed, train_size=config.train_size,
                        val_size=config.val_size, test_size=config.test_size, device=device)  # fmt: skip
    trainer = Trainer(config, new_model(config, data).to(device), data)
    if len(data.train) % config.batch_size == 1 and not trainer.search_single_row:
        raise UserError(f"--batch_size {config.batch_size}: the last batch of an epoch would hold one image, on which this "
                        "network's BatchNorm cannot work: choose another")  # fmt: skip
    if state:
        restore(trainer, state, folder)
    folder.prepare()
    tensorboard = TensorBoard(folder.path, trainer.step) if config.tensorboard else None
    folder.cut_back(trainer.step, trainer.checked_step)
    folder.write_config(config.to_dict(), device)
    print(f"{folder.path}: {len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images; "
          f"{device}; " + (f"going on from step {trainer.step}" if state else "starting"))  # fmt: skip

    bar = tqdm(total=config.max_steps, initial=trainer.step, unit="step", dynamic_ncols=True)
    with bar, StopSignals() as stop:
        finished = trainer.run(RunRecorder(folder, bar, tensorboard, device.type == "cpu"), stop)
    if tensorboard:
        tensorboard.close()
    if not finished:
        again = argv if "--resume" in argv else [*argv, "--resume"]
        print(f"stopped after step {trainer.step}, state saved; go on with: python {shlex.join([sys.argv[0], *again])}")
        return 128 + stop.received
    print(f"finished: best mean validation margin {trainer.best_margin:.4f}; attack it with: "
          f"python evaluate_on_pgd_attacks.py --model {shlex.quote(str(folder.path))}")  # fmt: skip
    return 0


def open_run(folder: RunFolder, config: Config) -> dict | str | None:
    """The state to go on from, "finished", or None for a fresh start.

    :raises UserError: if the folder holds a run that may not be touched or continued like this.
    """
    if not folder.holds_a_run():
        return None
    if not config.resume:
        raise UserError(
            f"--savepath {folder.path}: holds a run already: add --resume to go on, or choose another folder"
        )
    stored = folder.read_config()
    if stored is not None:
        refuse_differences(config, Config.from_dict(stored), folder)
    if config.max_steps in folder.checked_steps():
        return "finished"
    state = usable_state(folder)
    if state is not None:
        refuse_differences(config, Config.from_dict(state["config"]), folder)
        return state
    if stored is not None and stored["max_steps"] in folder.checked_steps():
        raise UserError(f"--savepath {folder.path}: finished after {stored['max_steps']} steps, but without its last.pt "
                        "it cannot go on: choose another folder")  # fmt: skip
    return None


def usable_state(folder: RunFolder) -> dict | None:
    """The content of last.pt, or with a warning of last.prev.pt; None if there is neither.

    :raises UserError: if what there is cannot be used.
    """
    damage = None
    for path in (folder.last, folder.previous):
        if not path.exists():
            continue
        try:
            state = checkpoint.load(path, needed=STATE_KEYS)
        except UserError as error:
            damage = damage or error
            print(f"warning: {error}", file=sys.stderr)
            continue
        if path == folder.previous:
            print(f"warning: going on from {path}, at step {state['step']}", file=sys.stderr)
        return state
    if damage:
        raise UserError(
            f"--resume: no whole checkpoint in {folder.path}: remove its last.pt to start again, or choose another folder"
        )
    return None


def refuse_differences(config: Config, stored: Config, folder: RunFolder) -> None:
    """:raises UserError: listing what `config` would change in the run."""
    differences = [
        f"--{f.name} {getattr(config, f.name)} here, {getattr(stored, f.name)} there"
        for f in dataclasses.fields(Config)
        if f.name not in FREE_ON_RESUME and getattr(config, f.name) != getattr(stored, f.name)
    ]
    if config.max_steps < stored.max_steps:
        differences.append(f"--max_steps {config.max_steps} here, {stored.max_steps} there (it may only grow)")
    if differences:
        raise UserError(f"--resume: flags differ from the run in {folder.path}: {'; '.join(differences)}: "
                        "give its flags, or choose another --savepath")  # fmt: skip


def restore(trainer: Trainer, state: dict, folder: RunFolder) -> None:
    """:raises UserError: if network or training set are not those of the state, though the flags are."""
    if state["eps"].shape != trainer.eps.shape:
        raise UserError(f"--resume: {folder.path} was trained on {len(state['eps'])} images, and there are "
                        f"{len(trainer.eps)} now: restore the data, or choose another --savepath")  # fmt: skip
    checkpoint.load_weights(trainer.model, state["model"], folder.last)
    trainer.restore(state)


def new_model(config: Config, data: Dataset) -> nn.Module:
    """The network at its initialisation by `seed`, or with the weights of `--pretrained`."""
    torch.manual_seed(config.seed)
    model = build_model(config.network, *data.train.shape, data.num_classes)
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(data.val.batch(torch.arange(2).clamp(max=len(data.val) - 1)).x.cpu()).shape)
    except RuntimeError as error:
        raise UserError(
            f"--network {config.network}: fails on {config.dataset}'s images ({error}): choose another"
        ) from error
    if shape != (2, data.num_classes):
        raise UserError(
            f"--network {config.network}: gives {shape} for 2 images, not (2, {data.num_classes}) logits: mend it"
        )
    if config.pretrained:
        source = checkpoint.load_model_file(config.pretrained)
        checkpoint.load_weights(model, source.weights, source.path)
        for name in ("dataset", "norm"):
            if source.config and source.config.get(name) != getattr(config, name):
                print(
                    f"--pretrained: trained with {name} {source.config.get(name)}, going on with {getattr(config, name)}"
                )
    return model


if __name__ == "__main__":
    sys.exit(main())
