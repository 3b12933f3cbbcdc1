"""Going on from a run folder: what is in it, whether these flags fit it, and the trainer as it was."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from config import Config
from errors import UserError
from presets import derived_lengths
from processes.distributed import launcher, restarts
from records import checkpoint
from records.progress import warn
from records.recorder import RunRecorder
from records.run_folder import RunFolder
from utils import write_atomically
from validation import Kind, stored_config

State = dict[str, Any]  # what `trainer.Trainer.state` gives


class OpenedRun(NamedTuple):
    """What a run folder holds."""

    config: Config  # with the lengths that the run fixed when it began
    state: State | None = None  # to go on from; None: nothing yet
    finished: bool = False


def open_run(folder: RunFolder, config: Config) -> OpenedRun:
    """What is in the folder, which is locked from here on if it is there.

    :raises UserError: if the folder holds a run that may not be touched or continued like this.
    """
    if folder.path.is_dir():
        folder.lock()
    if not any(file.exists() for file in folder.files):
        return OpenedRun(config)
    stored = folder.read_config()
    # torchrun has started this process again after a failure in a run that it began here.
    again = restarts() and stored and stored.get("environment", {}).get("launcher") == launcher()
    if not (config.resume or again):
        raise UserError(
            f"--savepath {folder.path}: holds a run already: add --resume to go on, or choose another folder"
        )
    if stored is not None:
        config = continued(config, stored_config(stored, folder.config_file), folder)
    finished = config.max_steps in folder.checked_steps()
    if finished and not folder.last.exists():
        return OpenedRun(config, finished=True)
    state = usable_state(folder)
    if finished and (state is None or state["checked_step"] >= config.max_steps):
        return OpenedRun(config, finished=True)
    # Finished, but not saved: it was killed between the last check's rows and its save, and the check is made again.
    if state is not None:
        config = continued(config, stored_config(state["config"], f"last state in {folder.path}"), folder)
    elif folder.best.exists() or folder.checked_steps():
        raise UserError(
            f"--resume: {folder.path} holds a trained network, but not the last.pt to go on from: choose another "
            "--savepath, or move that folder away"
        )
    if state is not None and state["step"] and not folder.metrics_file.exists():
        warn(f"warning: {folder.metrics_file}: not there: the rows and margins up to step {state['step']} are lost")
    if config.cycle_steps and config.max_steps > config.cycle_steps:
        warn(
            f"warning: --max_steps {config.max_steps}: after its one cycle of {config.cycle_steps} steps the rate is "
            "next to 0"
        )
    return OpenedRun(config, state)


def continued(config: Config, there: Config, folder: RunFolder) -> Config:
    """`config` as it goes on with the run `there`: `max_steps` may have grown, but where the lengths of ramp and cycle
    only follow from it, or something from the number of images, that stays which the run fixed when it began.

    :raises UserError: listing what else differs and matters to the result.
    """
    name, before = (network.rpartition("/")[2] for network in (config.network, there.network))
    if config.network_code and (name, config.network_code) == (before, there.network_code):
        there = dataclasses.replace(there, network=config.network)  # the same file by another path
    derived = derived_lengths(config.max_steps)
    follow = [name for name, value in derived.items() if getattr(config, name) == value] + list(config.by_images)
    fixed = {name: getattr(there, name) for name in follow}
    config = dataclasses.replace(config, **fixed)
    differences = [
        f"--{f.name} {getattr(config, f.name)} here, {getattr(there, f.name)} there"
        for f in dataclasses.fields(Config)
        if not f.metadata["of_run"] and f.name != "max_steps" and getattr(config, f.name) != getattr(there, f.name)
    ]
    if config.max_steps < there.max_steps:
        differences.append(f"--max_steps {config.max_steps} here, {there.max_steps} there (it may only grow)")
    if differences:
        raise UserError(
            f"--resume: flags differ from the run in {folder.path}: {'; '.join(differences)}: "
            "give its flags, or choose another --savepath"
        )
    return config


def usable_state(folder: RunFolder) -> State | None:
    """The content of last.pt, or with a warning of last.prev.pt; None if there is neither.

    A damaged last.pt is set aside, so that it cannot become the previous one.

    :raises UserError: if what there is cannot be used.
    """
    damage = []
    for path in (folder.last, folder.previous):
        if not path.exists():
            continue
        try:
            state = checkpoint.load(path, needed=checkpoint.STATE_KEYS)
        except UserError as error:
            damage.append(str(error).removesuffix(f": {checkpoint.ANOTHER}"))
            continue
        if path == folder.previous:
            warn(f"warning: {damage[0] if damage else 'no last.pt'}; going on from {path} at step {state['step']}")
            if damage:
                folder.last.replace(folder.path / "last.damaged.pt")
        return state
    if damage:
        raise UserError(
            f"--resume: {'; '.join(damage)}: nothing is left to go on from: choose another --savepath, "
            f"or move {folder.path} away; what else is in it is untouched"
        )
    return None


class Resumable(Protocol):
    """What of a `trainer.Trainer` a state must fit."""

    model: nn.Module
    eps: Tensor
    config: Config

    def restore(self, state: State) -> None: ...


def restore(trainer: Resumable, state: State, folder: RunFolder) -> None:
    """:raises UserError: if network or training set are not those of the state, though the flags are."""
    images, there, here = len(trainer.eps), stored_config(state["config"]), trainer.config
    what = Kind(there.classes, there.image_shape).unlike(Kind(here.classes, here.image_shape))
    if not what and len(state["eps"]) != images:
        what = f"{len(state['eps'])} images, and there are {images} now"
    elif not what and there.training_files != here.training_files:
        what = "other images than those in --data_root now"
    if what:
        raise UserError(
            f"--resume: {folder.path} was trained on {what}: restore the data, or choose another --savepath"
        )
    try:
        checkpoint.load_weights(trainer.model, state["model"], folder.last)
        trainer.restore(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {folder.last}: not the state of such a run ({error}): restore the data, or choose another "
            "--savepath"
        ) from None


def prepare(
    folder: RunFolder, config: Config, state: State, *, begins: bool, images: int, environment: dict[str, str]
) -> RunRecorder:
    """The run folder, ready to go on from `state`, with that state in it if the run `begins`. images: of a check.

    environment: what config.json says of the machinery.

    :raises UserError: if another process has begun a run there.
    :raises OSError: if it cannot be written.
    """
    folder.prepare()
    if begins and (folder.last.exists() or folder.previous.exists()):
        raise UserError(
            f"--savepath {folder.path}: another process has begun a run here meanwhile: add --resume to go on, or "
            "choose another folder"
        )
    recorder = RunRecorder(folder, config, state["step"], images)
    if begins:
        recorder.save(state)  # from here on --resume finds a state
    if recorder.failed:
        raise recorder.failed
    folder.cut_back(state["step"], state["checked_step"], len(state["eps"]))
    recorder.alarm.look(folder.rows())  # what it said of them it said before
    content = {**config.to_dict(), "environment": environment}
    write_atomically(folder.config_file, (json.dumps(content, indent=2) + "\n").encode())
    return recorder
