"""Train a network with MMA: `python train.py --dataset mnist --norm Linf --hinge_maxeps 0.45`."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from config import Config
from errors import UserError, exits_on_user_error
from flags import parse_train
from hardware.layout import Layout, lay_out, layout_for
from loading.batches import AUGMENT_PAD, first_batch
from loading.datasets import Dataset, load_dataset
from networks.build import build_model
from networks.keys import our_keys
from networks.names import is_built_in
from networks.probes import accepts
from processes.deadline import AGAIN, Deadline, since_start
from processes.distributed import (
    World,
    device_of,
    is_launched,
    launcher,
    local_size,
    main_of_process,
    restarted_by_launcher,
)
from processes.signals import StopSignals
from records import checkpoint
from records.recorder import RunRecorder, Silent
from records.runlog import RunFolder
from trainer import STATE_KEYS, NotFinite, Trainer
from utils import has_batchnorm

# What may differ between a run and its continuation.
FREE_ON_RESUME = {
    "max_steps",
    "device",
    "data_root",
    "streaming",
    "num_workers",
    "disp_interval",
    "save_interval",
    "max_minutes",
    "cuda_graphs",  # how launches are made, not what is computed
    "tensorboard",
    "resume",
    "savepath",
}


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training. Returns the exit status."""
    spent = since_start() if argv is None else 0.0
    argv = sys.argv[1:] if argv is None else list(argv)
    config, notes = parse_train(argv)
    folder = RunFolder(Path(config.savepath or Path("trained_models") / config.run_name))
    with device_of(config.device, config.deterministic) as (world, device):
        try:
            deadline = Deadline(config.max_minutes, spent, world.largest, world.is_first)
            return run(config, folder, device, argv, notes, world, deadline)
        except OSError as error:
            raise UserError(
                f"{folder.path}: a file could not be written ({error}): make room, then go on with --resume"
            ) from None
        finally:
            folder.unlock()


def run(
    config: Config,
    folder: RunFolder,
    device: torch.device,
    argv: list[str],
    notes: list[str],
    world: World,
    deadline: Deadline,
) -> int:
    """Train in `folder`; what the flags do not fit is refused before anything in it changes."""
    say = print if world.is_first else lambda line: None
    started = time.monotonic()
    state = world.from_first(lambda: open_run(folder, config, goes_on_by_itself(folder)))
    if state == "finished":
        say(f"{folder.path}: already finished, {config.max_steps} steps")
        return 0
    if config.precision == "tf32" and device.type != "cuda":
        notes = [*notes, "--precision tf32: is CUDA's; on this device the arithmetic is float32"]
    for note in notes:
        say(note)
    trainer = new_trainer(config, device, world, state, folder, say)
    recorder = world.from_first_only(lambda: prepare(folder, trainer, device, state), Silent())
    images = ", ".join(
        f"{len(split)} {name}" for name, split in zip(("training", "validation", "test"), trainer.data[:3], strict=True)
    )
    say(
        f"{folder.path}: {images} images; {device}; "
        + (f"{world.size} processes; " if world.size > 1 else "")
        + (f"going on from step {trainer.step}" if state else "starting")
    )
    try:
        with recorder, StopSignals(world.largest, launched=is_launched()) as stop, trainer.batches:
            finished = trainer.run(recorder, stop, deadline)
    except NotFinite as error:
        if world.is_first:
            print(
                f"error: {error}: nothing of it was saved; lower --lr or mend the data, then start in another --savepath",
                file=sys.stderr,
            )
        world.wait()  # a launcher ends all when the first one has ended
        return 3
    if recorder.failed:
        print(
            f"error: {folder.path}: the last state could not be written ({recorder.failed}): make room, then go on with: "
            f"{continuation(argv, world)}",
            file=sys.stderr,
        )
        return 4
    if not finished:
        why = "" if stop.agreed else f"--max_minutes {config.max_minutes:g}: "
        say(f"{why}stopped after step {trainer.step}, state saved; go on with: {continuation(argv, world)}")
        return 128 + stop.agreed if stop.agreed else AGAIN
    evaluator = os.path.relpath(Path(__file__).with_name("evaluate_on_pgd_attacks.py"))
    say(
        f"finished after {trainer.passes / 1e6:.3g} million image passes in training and "
        f"{trainer.epoch_check.passes / 1e6:.3g} million in checks, {(time.monotonic() - started) / 60:.3g} minutes here; "
        f"best mean validation margin {trainer.best_margin:.4f}; attack it with: "
        f"python {shlex.join([evaluator, '--model', str(folder.path)])}"
    )
    return 0


def continuation(argv: list[str], world: World) -> str:
    """The command that goes on."""
    command = shlex.join([os.path.relpath(__file__), *argv, *([] if "--resume" in argv else ["--resume"])])
    return f"torchrun --nproc_per_node {local_size()} {command}" if world.size > 1 else f"python {command}"


def new_trainer(
    config: Config,
    device: torch.device,
    world: World,
    state: dict | None,
    folder: RunFolder,
    say: Callable[[str], None],
) -> Trainer:
    """The trainer at its start, or as `state` has it."""

    def load() -> Dataset:
        return load_dataset(
            config.dataset,
            config.data_root,
            seed=config.seed,
            train_size=config.train_size,
            val_size=config.val_size,
            test_size=config.test_size,
            device=device,
            streaming=config.streaming,
            num_workers=config.num_workers,
        )

    def build() -> nn.Module:
        model = new_model(config, data, None if state else config.pretrained, say).to(device)
        lay_out(model, is_built_in(config.network), layout_of(config, device))
        check_batches(config, model, data, world)
        return model

    data = world.one_a_machine_first(load)
    if config.streaming is None and data.streamed:
        say(
            f"--streaming: {data.nbytes / 2**30:.3g} GiB of images, more than half of the memory free on {device}: "
            "they stay on disk"
        )
    if config.keep_directions and data.streamed:
        raise UserError(
            "--keep_directions: not for images that stay on disk, whose table would not fit beside them: add "
            "--no-streaming, or leave it out"
        )
    trainer = Trainer(config, world.together(build), data, world)
    if state:
        world.together(lambda: restore(trainer, state, folder))
    return trainer


def layout_of(config: Config, device: torch.device) -> Layout:
    """How the run's images and weights lie in memory."""
    return layout_for(device, config.precision, config.deterministic)


def environment_of(trainer: Trainer) -> dict[str, str]:
    """What config.json says of the machinery, beside versions and device."""
    started = {"launcher": launcher()} if is_launched() else {}
    return {"memory_layout": layout_of(trainer.config, trainer.device).name} | started


def prepare(folder: RunFolder, trainer: Trainer, device: torch.device, state: dict | None) -> RunRecorder:
    """The run folder, ready for `trainer` to go on, with the first state in it.

    :raises UserError: if it cannot be written.
    """
    folder.prepare()
    recorder = RunRecorder(folder, trainer, device)
    if state is None:
        recorder.save(trainer)  # from here on --resume finds a state
    if recorder.failed:
        raise UserError(
            f"--savepath {folder.path}: cannot be written ({recorder.failed}): make room, or choose another"
        )
    try:
        folder.cut_back(trainer.step, trainer.checked_step, len(trainer.eps))
        folder.write_config(trainer.config.to_dict(), device, environment_of(trainer))
    except OSError as error:
        raise UserError(
            f"--savepath {folder.path}: cannot be written ({error}): make room, or choose another"
        ) from None
    return recorder


def goes_on_by_itself(folder: RunFolder) -> bool:
    """Whether torchrun has started this process again after a failure in a run that it began here."""
    stored = folder.read_config() if restarted_by_launcher() else None
    return stored is not None and stored.get("environment", {}).get("launcher") == launcher()


def open_run(folder: RunFolder, config: Config, go_on: bool = False) -> dict | str | None:
    """The state to go on from, "finished", or None for a fresh start. go_on: as with `--resume`.

    :raises UserError: if the folder holds a run that may not be touched or continued like this.
    """
    try:
        if folder.path.is_dir():
            folder.lock()
    except OSError as error:
        raise UserError(
            f"--savepath {folder.path}: cannot be written ({error.strerror}): choose another folder"
        ) from None
    if not folder.holds_a_run():
        return None
    if not (config.resume or go_on):
        raise UserError(
            f"--savepath {folder.path}: holds a run already: add --resume to go on, or choose another folder"
        )
    stored = folder.read_config()
    if stored is not None:
        refuse_differences(config, Config.from_dict(stored), folder)
    finished = config.max_steps in folder.checked_steps()
    if finished and not folder.last.exists():
        return "finished"
    state = usable_state(folder)
    if finished and (state is None or state["checked_step"] >= config.max_steps):
        return "finished"  # else it was killed between the last check's rows and its save: the check is made again
    if state is not None:
        refuse_differences(config, Config.from_dict(state["config"]), folder)
    elif folder.best.exists() or folder.checked_steps():
        raise UserError(
            f"--resume: {folder.path} holds a trained network, but not the last.pt to go on from: choose another "
            "--savepath, or remove that folder to start again"
        )
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
        raise UserError(
            f"--resume: flags differ from the run in {folder.path}: {'; '.join(differences)}: "
            "give its flags, or choose another --savepath"
        )


def restore(trainer: Trainer, state: dict, folder: RunFolder) -> None:
    """:raises UserError: if network or training set are not those of the state, though the flags are."""
    if state["eps"].shape != trainer.eps.shape:
        raise UserError(
            f"--resume: {folder.path} was trained on {len(state['eps'])} images, and there are "
            f"{len(trainer.eps)} now: restore the data, or choose another --savepath"
        )
    state = {**state, "model": checkpoint.plain_keys(state["model"])}
    checkpoint.load_weights(trainer.model, state["model"], folder.last)
    try:
        trainer.restore(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {folder.last}: not the state of such a run ({error!r}): choose another --savepath"
        ) from None


def check_batches(config: Config, model: nn.Module, data: Dataset, world: World) -> None:
    """:raises UserError: if a batch, or a process's slice of it, would hold fewer images than the network works on."""
    size = config.batch_size
    if not accepts(model, first_batch(data.train, 1)) and (len(data.train) - 1) % size == 0:
        raise UserError(
            f"--batch_size {size}: the last batch of an epoch would hold one image, on which this network's "
            "BatchNorm cannot work: choose another"
        )
    if world.size > 1 and config.local_bn:
        slices = {batch // world.size for batch in (size, len(data.train) % size or size)}
        if 1 in slices and not accepts(model, first_batch(data.train, 1)):
            raise UserError(
                f"--batch_size {size}: a process's slice of a batch would hold one image, on which this network's "
                "BatchNorm cannot work: choose another, or leave --local_bn out"
            )
    batchnorms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if world.size > 1 and not config.local_bn and any(module.running_mean is None for module in batchnorms):
        raise UserError(
            f"--network {config.network}: a BatchNorm without running statistics cannot cover the batches of several "
            "processes in attacks: give --local_bn"
        )
    shares = world.size > 1 and has_batchnorm(model) and not config.local_bn
    if (shares or len(data.train) % size % world.size) and not accepts(model, first_batch(data.train, 0)):
        raise UserError(
            f"--network {config.network}: cannot work on an empty batch, which a process's share may be: mend "
            "it" + (", or give --local_bn" if shares else ", or choose another --batch_size")
        )
    if size < world.size:
        raise UserError(f"--batch_size {size}: is the global batch, and there are {world.size} processes: raise it")


def new_model(config: Config, data: Dataset, pretrained: str | None, say: Callable[[str], None] = print) -> nn.Module:
    """The network at its initialisation by `seed`, or with the weights of the checkpoint `pretrained`."""
    torch.manual_seed(config.seed)
    model = build_model(config.network, *data.train.shape, data.num_classes, config.activation)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"--network {config.network}: has no parameter to train: mend it")
    if odd := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"--network {config.network}: its {odd[0]} is not finite from the start: mend it")
    if config.augment and min(data.train.shape[1:]) <= AUGMENT_PAD:
        raise UserError(f"--augment: images must be larger than {AUGMENT_PAD} pixels: give --no-augment")
    if pretrained:
        source = checkpoint.load_model_file(pretrained)
        checkpoint.load_weights(model, our_keys(source.weights, model.state_dict()), source.path)
        for name in ("dataset", "norm"):
            if source.config and source.config.get(name) != getattr(config, name):
                say(
                    f"--pretrained: trained with {name} {source.config.get(name)}, going on with {getattr(config, name)}"
                )
    return model


if __name__ == "__main__":
    sys.exit(main_of_process(main))
