"""Train a network with MMA: `python train.py --dataset mnist --norm Linf --hinge_maxeps 0.45`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from flags import answers_help, as_typed, parse_train

answers_help(__name__, parse_train)

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from config import BEST_BY, BY_IMAGES, MANY, PUBLISHED_IMAGES, Config, for_so_many
from errors import UserError, exits_on_user_error, remedy
from hardware.layout import lay_out, layout_for
from hardware.precision import remark
from loading.batches import first_batch
from loading.datasets import Dataset, load_dataset
from networks.build import build_model, try_out
from networks.foreign import our_keys
from networks.names import is_built_in, is_own
from networks.own import code_of
from networks.probes import probe
from presets import CLASSES
from processes.distributed import World, device_of, is_launched, launcher, local_size, main_of_process
from processes.signals import StopSignals
from records import checkpoint, resume
from records.commands import command
from records.progress import Teller, warn
from records.recorder import Silent
from records.run_folder import RunFolder, environment
from trainer import Trainer
from training.guard import NotFinite
from utils import batchnorms, has_batchnorm, seed_global_draws
from validation import Kind

FEW = 100  # images: an accuracy on them is known to ± 10 points


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    config, notes = parse_train(argv)
    folder = RunFolder(Path(config.savepath or Path("trained_models") / config.run_name))
    with device_of(config.device, config.deterministic) as (world, device):
        teller = Teller(world.is_first, config.quiet)
        for note in notes:
            teller.note(note)
        try:
            return run(config, folder, argv, world, device, teller)
        finally:
            folder.unlock()


def run(config: Config, folder: RunFolder, argv: list[str], world: World, device: torch.device, teller: Teller) -> int:
    """Train in the folder; what the flags do not fit is refused before anything in it changes. Gives the exit status."""
    started = time.monotonic()
    code = code_of(config.network) if is_own(config.network) else ""
    config = dataclasses.replace(config, network_code=code or None)
    found = world.from_first(lambda: resume.open_run(folder, config))
    if found.finished:
        teller.say(f"{folder.path}: already finished, {config.max_steps} steps")
        return 0
    config, state = found.config, found.state
    data = load_data(config, world, device, teller)
    config = dataclasses.replace(config, **data.found)
    if state is None:
        config = fitted(config, data, teller)
    trainer = new_trainer(config, data, world, None if state else config.pretrained, teller)
    if state:
        world.together(lambda: resume.restore(trainer, state, folder))
        if state["config"].get("test_files") != config.test_files and world.is_first:
            warn(f"warning: {config.data_root}: its test images have changed: figures from here on are of the new ones")
        if state["config"].get("network_code") != config.network_code and world.is_first:
            warn(
                f"warning: --network {config.network}: its code has changed since the run was saved: it may be another function"
            )
    images = min(len(trainer.data.val), config.check_size or len(trainer.data.val))
    here = environment(device) | {"memory_layout": layout_for(device, config.precision, config.deterministic).name}
    here |= {"launcher": launcher()} if is_launched() else {}
    begins = state is None
    prepare = partial(resume.prepare, folder, config, begins=begins, images=images, environment=here)
    recorder = world.together(lambda: prepare(trainer.state()) if world.is_first else Silent())
    try:
        with StopSignals(world.largest, launched=is_launched()) as stop:
            teller.note(f"{folder.path}: {opening(trainer, begins)}")
            if said := remark(device, config.precision):
                teller.note(said)
            with recorder, trainer.batches:
                finished = trainer.run(recorder, stop)
    except NotFinite as error:
        if world.is_first:
            cure = "lower --lr or mend the data, then start in another --savepath"
            warn(f"error: {error}: nothing of it was saved; {cure}")
        world.wait()  # a launcher ends all when the first one has ended
        return 3
    again = [*argv, *([] if "--resume" in argv else ["--resume"])]
    go_on = command("train.py", *again, processes=local_size() if world.size > 1 else 1)
    if recorder.failed:
        reason = f"the last state could not be written, {remedy(recorder.failed)}"
        warn(f"error: {folder.path}: {reason}, then go on with: {go_on}")
        return 4
    if not finished:
        teller.say(f"stopped after step {trainer.step}, state saved; go on with: {go_on}")
        return 128 + stop.agreed
    if world.is_first:
        teller.say(closing(trainer, folder, time.monotonic() - started))
    return 0


def opening(trainer: Trainer, begins: bool) -> str:
    """What is trained on, where, from which step."""
    config, data, world = trainer.config, trainer.data, trainer.world
    images = f"{len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images"
    device = f"{trainer.device}; " + (f"{world.size} processes; " if world.size > 1 else "")
    start = "starting" if begins else f"going on from step {trainer.step}"
    return f"{images}; {device}{start}, {config.max_steps} steps in all"


GUESSES = "\nwarning: that is no better than one class for all images: lower --hinge_maxeps, or train longer"


def closing(trainer: Trainer, folder: RunFolder, seconds: float) -> str:
    """What came out, where it lies, what to run next."""
    config = trainer.config
    kept = checkpoint.load(folder.best)["metrics"]["val"]
    guesses = "" if kept["clean_acc"] > trainer.by_guessing else GUESSES
    named = [] if is_built_in(config.network) else ["--network", config.network]  # code runs only where it is named
    return (
        f"finished after {trainer.passes / 1e6:.3g} million image passes in training and "
        f"{trainer.check_passes / 1e6:.3g} million in checks, {seconds / 60:.3g} minutes here\n"
        f"kept is the network of step {kept['step']}, of the best {BEST_BY[config.best_by]} on validation images: "
        f"clean {kept['clean_acc']:.2%}, robust {kept['robust_acc']:.2%}, mean margin {kept['mean_margin']:.4f}{guesses}\n"
        f"in {folder.path}: {folder.best.name} (the network), {folder.metrics_file.name} (curves), "
        f"{folder.config_file.name}, {folder.last.name} (to train further)\n"
        f"attack it with: {command('evaluate_on_pgd_attacks.py', '--model', str(folder.path), *named)}"
    )


def load_data(config: Config, world: World, device: torch.device, teller: Teller) -> Dataset:
    """The images that the config names, with a word on what is special of them."""
    names = ("train_size", "val_size", "test_size", "image_size", "streaming", "num_workers")
    wanted = {name: getattr(config, name) for name in names}
    data = world.one_a_machine_first(
        lambda: load_dataset(config.dataset, config.data_root, seed=config.seed, device=device, **wanted)
    )
    if data.about:
        teller.note(f"{config.data_root}: {data.about}")
    if config.keep_directions and data.streamed:
        raise UserError(
            "--keep_directions: not for images that stay on disk, whose table would not fit beside them: add "
            "--no-streaming, or leave it out"
        )
    return data


def fitted(config: Config, data: Dataset, teller: Teller) -> Config:
    """The config of a run that begins on an image folder, with what follows from the number of its images; says what that
    is, and what they are too few for."""
    fit = for_so_many(config, len(data.train))
    changed = [
        f"--{name} {as_typed(getattr(fit, name))}" for name in BY_IMAGES if getattr(fit, name) != getattr(config, name)
    ]
    if changed:
        teller.note(f"{', '.join(changed)}: from the number of training images, {len(data.train)}, as no flag says it")
    if config.dataset == "imagefolder" and len(data.train) < MANY:
        teller.note(
            f"network, radii and passes are those for CIFAR-10's {PUBLISHED_IMAGES} images: docs/your-network.md has a way "
            "to choose d_max"
        )
    if config.dataset == "imagefolder" and config.augment:
        mirrored = "cropped and mirrored" if config.flip else "cropped"
        teller.note(
            f"--augment: training images are {mirrored}; --no-flip or --no-augment where that changes the class"
        )
    if len(data.train) < fit.batch_size:
        teller.note(f"--batch_size {fit.batch_size}: every step sees all {len(data.train)} training images")
    for name, split in (("validation", data.val), ("test", data.test)):
        if config.dataset == "imagefolder" and 0 < len(split) < FEW:
            teller.say(
                f"warning: {len(split)} {name} images: an accuracy on them is known to ± {98 / len(split) ** 0.5:.0f} points"
            )
    return fit


def new_trainer(config: Config, data: Dataset, world: World, pretrained: str | None, teller: Teller) -> Trainer:
    """The trainer at its start; pretrained: the checkpoint whose weights it starts from."""
    device = data.train.labels.device

    def build() -> nn.Module:
        model = new_model(config, data, pretrained, lambda note: teller.note(f"--pretrained: {note}")).to(device)
        lay_out(model, is_built_in(config.network), layout_for(device, config.precision, config.deterministic))
        check_batches(config, model, data, world)
        return model

    return Trainer(config, world.together(build), data, world)


def check_batches(config: Config, model: nn.Module, data: Dataset, world: World) -> None:
    """:raises UserError: if a batch, or a process's slice of it, would hold fewer images than the network works on."""
    size, several, needs = config.batch_size, world.size > 1, probe(model, first_batch(data.train, 1))
    last = len(data.train) % size or size  # of an epoch's batches
    if size < world.size:
        raise UserError(f"--batch_size {size}: is the global batch, and there are {world.size} processes: raise it")
    what, slices, otherwise = "the last batch of an epoch", {last}, ""
    if several and config.local_bn:
        what, otherwise = "a process's slice of a batch", ", or leave --local_bn out"
        slices = {rows for batch in (size, last) for rows in (batch // world.size, -(-batch // world.size))}
    if 1 in slices and not needs.one_row:
        cannot = "would hold one image, on which this network's BatchNorm cannot work"
        raise UserError(f"--batch_size {size}: {what} {cannot}: choose another{otherwise}")
    if several and not config.local_bn and any(norm.running_mean is None for norm in batchnorms(model)):
        raise UserError(
            f"--network {config.network}: a BatchNorm without running statistics cannot cover the batches of several "
            "processes in attacks: give --local_bn"
        )
    shares = several and has_batchnorm(model) and not config.local_bn
    if (shares or last < world.size) and not needs.no_row:
        raise UserError(
            f"--network {config.network}: cannot work on an empty batch, which a process's share may be: mend "
            "it" + (", or give --local_bn" if shares else ", or choose another --batch_size")
        )


def new_model(config: Config, data: Dataset, pretrained: str | None, say: Callable[[str], None]) -> nn.Module:
    """The network at its initialisation by `seed`, or with the weights of `pretrained`; say: what is odd of them."""
    seed_global_draws(config.seed)
    model = build_model(config.network, *data.train.shape, data.num_classes)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"--network {config.network}: has no parameter to train: mend it")
    if odd := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"--network {config.network}: its {odd[0]} is not finite from the start: mend it")
    if config.augment and min(data.train.shape[1:]) <= config.crop_pad:
        raise UserError(
            f"--augment: images must be larger than {config.crop_pad} pixels: give --no-augment, or --crop_pad"
        )
    if is_own(config.network):
        try_out(config.network, model, first_batch(data.train, 2).cpu(), data.num_classes, to_train=True)
    if pretrained:
        source = checkpoint.load_model_file(pretrained)
        found = our_keys(source.weights, model.state_dict())
        checkpoint.load_weights(model, found.weights, source.path)
        before = source.config or {}
        if found.renamed:
            say("weights of another program: here each image is standardised before them, which may be new to them")
        elif found.normalisation:
            say(f"the file's normalisation, {', '.join(found.normalisation)}, is left out: --network lacks it")
        for name in ("dataset", "norm"):
            if before.get(name, here := getattr(config, name)) != here:
                say(f"trained with {name} {before[name]}, going on with {here}")
        kind = Kind(before.get("classes") or CLASSES.get(before.get("dataset", "")), before.get("image_shape"))
        if what := kind.unlike(Kind(data.classes, data.train.shape)):
            say(f"trained on {what}")
    return model


if __name__ == "__main__":
    sys.exit(main_of_process(main))
