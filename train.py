"""Train a network with MMA: `python train.py --dataset mnist --norm Linf --hinge_maxeps 0.45`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from config import Config
from errors import UserError, exits_on_user_error
from flags import parse_train
from hardware.layout import Layout, lay_out, layout_for
from loading.batches import first_batch
from loading.datasets import Dataset, load_dataset
from networks.build import build_model
from networks.foreign import our_keys
from networks.names import is_built_in
from networks.probes import probe
from processes.deadline import AGAIN, Deadline, since_start
from processes.distributed import World, device_of, is_launched, launcher, local_size, main_of_process
from processes.signals import StopSignals
from records import checkpoint, resume
from records.commands import command
from records.progress import Teller
from records.recorder import RunRecorder, Silent
from records.runlog import RunFolder
from trainer import Trainer
from training.bounds import small_weights
from training.guard import NotFinite
from utils import has_batchnorm


def warn(line: str) -> None:
    """On standard error."""
    print(line, file=sys.stderr)


class Place(NamedTuple):
    """Where a run is made."""

    folder: RunFolder
    world: World
    device: torch.device
    teller: Teller


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training. Returns the exit status."""
    spent = since_start() if argv is None else 0.0
    argv = sys.argv[1:] if argv is None else list(argv)
    config, notes = parse_train(argv)
    if config.savepath == "":
        raise UserError("--savepath: is empty: name a folder, or leave it out")
    folder = RunFolder(Path(config.savepath or Path("trained_models") / config.run_name))
    with device_of(config.device, config.deterministic) as (world, device):
        place = Place(folder, world, device, Teller(world.is_first, config.quiet))
        for note in notes:
            place.teller.note(note)
        try:
            deadline = Deadline(config.max_minutes, spent, world.largest, world.is_first)
            return run(config, place, argv, deadline)
        except OSError as error:
            raise UserError(
                f"{folder.path}: a file could not be written ({error}): make room, then go on with --resume"
            ) from None
        finally:
            folder.unlock()


def run(config: Config, place: Place, argv: list[str], deadline: Deadline) -> int:
    """Train in the folder; what the flags do not fit is refused before anything in it changes. Returns the exit status."""
    folder, world = place.folder, place.world
    started = time.monotonic()
    found = world.from_first(lambda: resume.open_run(folder, config, warn))
    if found.finished:
        place.teller.say(f"{folder.path}: already finished, {config.max_steps} steps")
        return 0
    config = found.config
    trainer = new_trainer(config, place, found.state)
    recorder: RunRecorder | Silent = world.from_first_only(
        lambda: resume.prepare(folder, trainer, found.state, environment_of(trainer)), Silent()
    )
    try:
        with StopSignals(world.largest, launched=is_launched()) as stop:
            place.teller.note(opening(trainer, place, going_on=found.state is not None))
            with recorder, trainer.batches:
                finished = trainer.run(recorder, stop)
    except NotFinite as error:
        if world.is_first:
            remedy = "lower --lr or mend the data, then start in another --savepath"
            warn(f"error: {error}: nothing of it was saved; {remedy}")
        world.wait()  # a launcher ends all when the first one has ended
        return 3
    again = continuation(argv, world)
    if recorder.failed:
        reason = f"the last state could not be written ({recorder.failed})"
        warn(f"error: {folder.path}: {reason}: make room, then go on with: {again}")
        return 4
    if not finished:
        why = "" if stop.agreed else f"--max_minutes {config.max_minutes:g}: "
        place.teller.say(f"{why}stopped after step {trainer.step}, state saved; go on with: {again}")
        return 128 + stop.agreed if stop.agreed else AGAIN
    place.teller.say(closing(trainer, folder, time.monotonic() - started))
    return 0


def opening(trainer: Trainer, place: Place, going_on: bool) -> str:
    """What is trained on, where, from which step."""
    splits = {"training": trainer.data.train, "validation": trainer.data.val, "test": trainer.data.test}
    images = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    processes = f"{place.world.size} processes; " if place.world.size > 1 else ""
    start = f"going on from step {trainer.step}" if going_on else "starting"
    device = f"{place.device}; {processes}"
    if trainer.config.precision == "tf32" and place.device.type != "cuda":
        device += "--precision tf32 is CUDA's, on this device the arithmetic is float32; "
    return f"{place.folder.path}: {images} images; {device}{start}, {trainer.config.max_steps} steps in all"


def closing(trainer: Trainer, folder: RunFolder, seconds: float) -> str:
    """What came out, where it lies, what to run next."""
    config = trainer.config
    by_margin = config.best_by == "mean_margin"
    best = (
        f"mean validation margin {trainer.best:.4f}" if by_margin else f"robust validation accuracy {trainer.best:.2%}"
    )
    named = [] if is_built_in(config.network) else ["--network", config.network]  # code runs only where it is named
    return (
        f"finished after {trainer.passes / 1e6:.3g} million image passes in training and "
        f"{trainer.check_passes / 1e6:.3g} million in checks, {seconds / 60:.3g} minutes here; "
        f"best {best}\n"
        f"in {folder.path}: {folder.best.name} (the network), {folder.metrics_file.name} (curves), "
        f"{folder.config_file.name}, {folder.last.name} (to train further)\n"
        f"attack it with: {command('evaluate_on_pgd_attacks.py', '--model', str(folder.path), *named)}"
    )


def continuation(argv: list[str], world: World) -> str:
    """The command that goes on."""
    again = [*argv, *([] if "--resume" in argv else ["--resume"])]
    return command("train.py", *again, processes=local_size() if world.size > 1 else 1)


def new_trainer(config: Config, place: Place, state: resume.State | None) -> Trainer:
    """The trainer at its start, or as `state` has it."""
    world, device = place.world, place.device

    def load() -> Dataset:
        return load_dataset(
            config.dataset,
            config.data_root,
            seed=config.seed,
            device=device,
            train_size=config.train_size,
            val_size=config.val_size,
            test_size=config.test_size,
            streaming=config.streaming,
            num_workers=config.num_workers,
        )

    def build() -> nn.Module:
        model = new_model(config, data, None if state else config.pretrained, place.teller.note).to(device)
        lay_out(model, is_built_in(config.network), layout_of(config, device))
        check_batches(config, model, data, world)
        return model

    data = world.one_a_machine_first(load)
    if data.about:
        place.teller.note(f"{config.data_root}: {data.about}")
    if config.streaming is None and data.streamed:
        gib = data.nbytes / 2**30
        place.teller.note(
            f"--streaming: {gib:.3g} GiB of images, more than half of the memory free on {device}: they stay on disk"
        )
    if config.keep_directions and data.streamed:
        raise UserError(
            "--keep_directions: not for images that stay on disk, whose table would not fit beside them: add "
            "--no-streaming, or leave it out"
        )
    trainer = Trainer(config, world.together(build), data, world)
    if state:
        world.together(lambda: resume.restore(trainer, state, place.folder))
    return trainer


def layout_of(config: Config, device: torch.device) -> Layout:
    """How the run's images and weights lie in memory."""
    return layout_for(device, config.precision, config.deterministic)


def environment_of(trainer: Trainer) -> dict[str, str]:
    """What config.json says of the machinery, beside versions and device."""
    started = {"launcher": launcher()} if is_launched() else {}
    return {"memory_layout": layout_of(trainer.config, trainer.device).name} | started


def check_batches(config: Config, model: nn.Module, data: Dataset, world: World) -> None:
    """:raises UserError: if a batch, or a process's slice of it, would hold fewer images than the network works on."""
    size, needs = config.batch_size, probe(model, first_batch(data.train, 1))
    if not needs.one_row and (len(data.train) - 1) % size == 0:
        raise UserError(
            f"--batch_size {size}: the last batch of an epoch would hold one image, on which this network's "
            "BatchNorm cannot work: choose another"
        )
    if world.size > 1 and config.local_bn:
        slices = {batch // world.size for batch in (size, len(data.train) % size or size)}
        if 1 in slices and not needs.one_row:
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
    if (shares or len(data.train) % size % world.size) and not needs.no_row:
        raise UserError(
            f"--network {config.network}: cannot work on an empty batch, which a process's share may be: mend "
            "it" + (", or give --local_bn" if shares else ", or choose another --batch_size")
        )
    if size < world.size:
        raise UserError(f"--batch_size {size}: is the global batch, and there are {world.size} processes: raise it")


def new_model(config: Config, data: Dataset, pretrained: str | None, say: Callable[[str], None]) -> nn.Module:
    """The network at its initialisation by `seed`, or with the weights of the checkpoint `pretrained`."""
    torch.manual_seed(config.seed)
    model = build_model(config.network, *data.train.shape, data.num_classes)
    if config.ibp_weight:
        small_weights(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"--network {config.network}: has no parameter to train: mend it")
    if odd := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"--network {config.network}: its {odd[0]} is not finite from the start: mend it")
    if config.augment and min(data.train.shape[1:]) <= config.crop_pad:
        raise UserError(
            f"--augment: images must be larger than {config.crop_pad} pixels: give --no-augment, or --crop_pad"
        )
    if pretrained:
        source = checkpoint.load_model_file(pretrained)
        weights, said = our_keys(source.weights, model.state_dict())
        checkpoint.load_weights(model, weights, source.path)
        if said:
            say(f"--pretrained: {said}")
        for name in ("dataset", "norm"):
            if source.config and source.config.get(name) != getattr(config, name):
                say(
                    f"--pretrained: trained with {name} {source.config.get(name)}, going on with {getattr(config, name)}"
                )
    return model


if __name__ == "__main__":
    sys.exit(main_of_process(main))
