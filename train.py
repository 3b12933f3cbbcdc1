"""Train a network with MMA: `python train.py --dataset mnist --norm Linf --hinge_maxeps 0.45`."""

from __future__ import annotations

import dataclasses
import os
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
from config import Config
from data import AUGMENT_PAD, Dataset, load_dataset
from errors import UserError, exits_on_user_error
from flags import parse_train
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

    def __init__(self, folder: RunFolder, trainer: Trainer, device: torch.device) -> None:
        self.folder = folder
        self.tensorboard = TensorBoard(folder.path, trainer.step) if trainer.config.tensorboard else None
        self.reads_are_free = device.type == "cpu"
        self.shown_at = 0.0
        self.total, self.done = trainer.config.max_steps, trainer.step

    def __enter__(self) -> None:
        self.bar = tqdm(total=self.total, initial=self.done, unit="step", dynamic_ncols=True)

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.tensorboard:
            self.tensorboard.close()

    def step(self, result: StepResult) -> None:
        self.bar.update(1)
        # On a GPU reading a value waits for the device: there the bar follows the train rows only.
        if self.reads_are_free and time.monotonic() - self.shown_at > 0.5:
            self.shown_at = time.monotonic()
            count = len(result.eps)
            loss = float(result.clean_loss) or float(result.adv_loss)  # adversarial training has no clean one
            self._show(loss, int(result.correct) / count, float(result.eps.mean()))

    def rows(self, rows: list[dict]) -> None:
        self.folder.append(rows)
        for row in rows:
            if self.tensorboard:
                self.tensorboard.row(row)
            if row["kind"] == "eval":
                tqdm.write(
                    f"step {row['step']}, {row['split']}: clean {row['clean_acc']:.2%}, robust {row['robust_acc']:.2%}, "
                    f"mean margin {row['mean_margin']:.4f}"
                )
            elif not self.reads_are_free:
                loss, accuracy = (
                    (row["clean_loss"], row["clean_acc"])
                    if row["clean_loss"] is not None
                    else (row["adv_loss"], row["adv_acc"])
                )
                self._show(loss, accuracy, row["mean_eps"] or 0.0)

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
        os.write(2, b"\nstopping after this step; once more ends at once\n")  # safe within a signal handler

    def __call__(self) -> bool:
        return self.received is not None


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, notes = parse_train(argv)
    device = use_device(config.device, config.deterministic)
    folder = RunFolder(Path(config.savepath or Path("trained_models") / config.run_name))
    try:
        return run(config, folder, device, argv, notes)
    except OSError as error:
        raise UserError(
            f"{folder.path}: a file could not be written ({error}): make room, then go on with --resume"
        ) from None
    finally:
        folder.unlock()


def run(config: Config, folder: RunFolder, device: torch.device, argv: list[str], notes: list[str]) -> int:
    """Train in `folder`; what the flags do not fit is refused before anything in it changes."""
    if folder.path.is_dir():
        folder.lock()
    state = open_run(folder, config)
    if state == "finished":
        print(f"{folder.path}: already finished, {config.max_steps} steps")
        return 0
    if config.precision == "tf32" and device.type != "cuda":
        notes = [*notes, "--precision tf32: is CUDA's; on this device the arithmetic is float32"]
    for note in notes:
        print(note)
    data = load_dataset(config.dataset, config.data_root, seed=config.seed, train_size=config.train_size,
                        val_size=config.val_size, test_size=config.test_size, device=device)  # fmt: skip
    trainer = Trainer(config, new_model(config, data, pretrained=None if state else config.pretrained).to(device), data)
    check_batches(trainer)
    if state:
        restore(trainer, state, folder)
    folder.prepare()
    recorder = RunRecorder(folder, trainer, device)
    if state is None:
        recorder.save(trainer)  # from here on --resume finds a state
    folder.cut_back(trainer.step, trainer.checked_step, len(data.train))
    folder.write_config(config.to_dict(), device)
    print(f"{folder.path}: {len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images; "
          f"{device}; " + (f"going on from step {trainer.step}" if state else "starting"))  # fmt: skip

    try:
        with recorder, StopSignals() as stop:
            finished = trainer.run(recorder, stop)
    except FloatingPointError as error:
        print(f"error: {error}: nothing of it was saved; lower --lr, then start in another --savepath", file=sys.stderr)
        return 3
    if not finished:
        again = [os.path.relpath(__file__), *argv, *([] if "--resume" in argv else ["--resume"])]
        print(f"stopped after step {trainer.step}, state saved; go on with: python {shlex.join(again)}")
        return 128 + stop.received
    evaluator = os.path.relpath(Path(__file__).with_name("evaluate_on_pgd_attacks.py"))
    print(f"finished: best mean validation margin {trainer.best_margin:.4f}; attack it with: "
          f"python {shlex.join([evaluator, '--model', str(folder.path)])}")  # fmt: skip
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
    elif folder.best.exists() or folder.checked_steps():
        raise UserError(f"--resume: {folder.path} holds a trained network, but not the last.pt to go on from: choose another "
                        "--savepath, or remove that folder to start again")  # fmt: skip
    return state


def usable_state(folder: RunFolder) -> dict | None:
    """The content of last.pt, or with a warning of last.prev.pt; None if there is neither.

    A damaged last.pt is set aside, so that it cannot become the previous one.

    :raises UserError: if what there is cannot be used.
    """
    damage = []
    for path in (folder.last, folder.previous):
        if not path.exists():
            continue
        try:
            state = checkpoint.load(path, needed=STATE_KEYS)
        except UserError as error:
            damage.append(error)
            continue
        if path == folder.previous:
            print(
                f"warning: {damage[0] if damage else 'no last.pt'}; going on from {path} at step {state['step']}",
                file=sys.stderr,
            )
            if damage:
                folder.last.replace(folder.path / "last.damaged.pt")
        return state
    if damage:
        raise UserError(f"--resume: {damage[0]}, and there is no earlier one: remove {folder.path} to start again")
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
    state = {**state, "model": checkpoint.plain_keys(state["model"])}
    checkpoint.load_weights(trainer.model, state["model"], folder.last)
    try:
        trainer.restore(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {folder.last}: not the state of such a run ({error!r}): choose another --savepath"
        ) from None


def check_batches(trainer: Trainer) -> None:
    """:raises UserError: if a batch would hold one image, and the network's BatchNorm cannot work on one."""
    size = trainer.config.batch_size
    if not trainer.search_single_row and (len(trainer.data.train) - 1) % size == 0:
        raise UserError(f"--batch_size {size}: the last batch of an epoch would hold one image, on which this network's "
                        "BatchNorm cannot work: choose another")  # fmt: skip


def new_model(config: Config, data: Dataset, pretrained: str | None) -> nn.Module:
    """The network at its initialisation by `seed`, or with the weights of the checkpoint `pretrained`."""
    torch.manual_seed(config.seed)
    model = build_model(config.network, *data.train.shape, data.num_classes)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"--network {config.network}: has no parameter to train: mend it")
    if config.augment and min(data.train.shape[1:]) <= AUGMENT_PAD:
        raise UserError(f"--augment: images must be larger than {AUGMENT_PAD} pixels: give --no-augment")
    if pretrained:
        source = checkpoint.load_model_file(pretrained)
        checkpoint.load_weights(model, source.weights, source.path)
        for name in ("dataset", "norm"):
            if source.config and source.config.get(name) != getattr(config, name):
                print(
                    f"--pretrained: trained with {name} {source.config.get(name)}, going on with {getattr(config, name)}"
                )
    return model


if __name__ == "__main__":
    sys.exit(main())
