"""The network under test with the images it is tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import OTHER, PRESETS, SPLITS, Config
from errors import UserError
from evaluations.flags import EvaluationFlags
from evaluations.results import Row, add_rows, checkpoint_rows, function_of, read_file, same_eps, stored_row
from hardware.layout import lay_out, layout_for
from loading.batches import Split, first_images
from loading.datasets import Part, load_own, load_test
from networks.build import build_model, try_out
from networks.foreign import our_keys
from networks.names import is_built_in, is_own
from networks.own import code_of
from networks.standardise import behind_standardisation
from presets import GRIDS
from records.checkpoint import digest, load_model_file, load_weights
from utils import radius_text
from validation import Kind, radius, stored_config


@dataclass(frozen=True)
class Subject:
    """A trained network in eval mode, and what it is tested on: test images, or the validation or training images of its training."""

    model: nn.Module
    path: Path
    sha256: str  # of the checkpoint file
    test: Split
    training: Config  # the checkpoint's config, or the preset of its data set and norm
    dataset: str
    norm: str
    overrides: dict[str, str]  # what the flags changed of the checkpoint's own words
    split: str = "test"
    accuracy: float | None = None  # on clean images, as the checkpoint's own program kept it in the file
    classes: tuple[str, ...] = ()  # names, in the order of the logits
    notes: tuple[str, ...] = ()  # what the user should be told of it
    folder: str | None = None  # digest of the whole folder of pictures that `test` is of

    @property
    def run(self) -> str:
        """The folder's name."""
        return self.path.resolve().parent.name

    def result_file(self, attack: str) -> Path:
        """The JSON beside the checkpoint."""
        return self.path.parent / f"eval_{attack}_{self.norm}.json"

    def radii(self, given: Sequence[float | str] | None) -> tuple[list[float], list[str]]:
        """What `--eps` means for these images, in input units, ascending, and what the user should be told of it.

        :raises UserError: for a radius that no image in [0, 1] can use.
        """
        if given is None:
            eps = self.training.test_eps
            usual = self.training is PRESETS[self.dataset, self.norm]
            of = f"that of {self.dataset} under {self.norm}" if usual else "the test radius of its training"
            return [eps], [f"--eps not given: {radius_text(eps)}, {of}"]
        if given == ("grid",):
            six = [round(self.training.check_maxeps * k / 6, 12) for k in range(1, 7)]
            return list(GRIDS.get((self.dataset, self.norm), six)), []  # the paper's, for other data sets up to d_max
        settled = [radius(float(eps), self.dataset, self.norm, "eps") for eps in given]
        if 1.0 in given and any(notes for _, notes in settled):
            raise UserError("--eps 1: is the whole range of a pixel, and others here are read as 255ths: write 1/255")
        found: list[float] = []
        for eps in sorted(eps for eps, _ in settled):
            if not found or not same_eps(eps, found[-1]):
                found.append(eps)
        return found, [note for _, notes in settled for note in notes]

    def rows(self, attack: str) -> list[Row]:
        """What that JSON says of this very checkpoint file, with the same code of somebody's own as its network, and the
        same standardisation before it.

        :raises UserError: if the file is damaged.
        """
        rows = checkpoint_rows(self.result_file(attack), self.head(attack))
        return [row for row in rows if function_of(row) == function_of({"settings": {"overrides": self.overrides}})]

    def add_rows(self, attack: str, rows: Sequence[Row], settle: Callable[[list[Row]], list[Row]] = list) -> list[Row]:
        """Write rows into that JSON, as `results.add_rows`, and give those of this very evaluation as they stand there."""
        stored = add_rows(self.result_file(attack), self.head(attack), rows, settle)
        return [row for row in (stored_row(stored, like) for like in rows) if row is not None]

    def head(self, attack: str) -> dict[str, str]:
        """What that JSON is about."""
        return {"attack": attack, "model_sha256": self.sha256, "dataset": self.dataset, "norm": self.norm}

    def row(self, seed: int, settings: Mapping[str, Any], eps: float | None = None, **more: Any) -> Row:
        """What any result on these images says before the attack is run; eps: its radius, if it has one."""
        return {
            **({} if eps is None else {"eps": eps}),
            "n": len(self.test),
            "split": self.split,
            "images": self.images,
            **({"folder": self.folder} if self.folder else {}),
            "seed": seed,
            "settings": {**settings, "overrides": self.overrides},
            **more,
        }

    @cached_property
    def images(self) -> str:
        """A digest of the images with their labels."""
        return digest([self.test.images, self.test.labels])[:16]

    @property
    def evaluated(self) -> set[str]:
        """Of the results of this checkpoint on test images of this data set, by any attack, the digests of the folders of
        pictures."""
        found = set()
        for path in self.path.parent.glob("eval_*.json"):
            with suppress(OSError, ValueError):  # whoever needs that file will say it
                for content in read_file(path):
                    if (content["model_sha256"], content["dataset"]) == (self.sha256, self.dataset):
                        tested = (row for row in content["results"] if row["split"] == "test")
                        found |= {row["folder"] for row in tested if "folder" in row}
        return found

    def class_name(self, label: Tensor | int) -> str:
        """Of a label; the number where no names are known."""
        return self.classes[int(label)] if self.classes else str(int(label))

    @property
    def device(self) -> torch.device:
        """Where the network and its images are."""
        return self.test.labels.device

    @property
    def images_named(self) -> str:
        """`60 test images`."""
        return f"{len(self.test)} {SPLITS.get(self.split, 'other test')} images"


def load_subject(flags: EvaluationFlags, device: torch.device, precision: str = "fp32") -> Subject:
    """The network in `--model`, with data set and norm from its config unless the flags say otherwise.

    precision: of the passes that give gradients, for the layout of its weights in memory.

    :raises UserError: if the checkpoint, the data or the network do not fit each other.
    """
    file = load_model_file(flags.model)
    stored = stored_config(file.config, f"checkpoint {file.path}") if file.config else None
    named = {name: getattr(flags, name) or getattr(stored, name, None) for name in ("dataset", "norm")}
    if missing := [f"--{name}" for name, value in named.items() if value is None]:
        needed = f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing"
        raise UserError(f"{needed}: {file.path} does not say it, as a checkpoint of the reference or a bare state dict")
    dataset, norm = str(named["dataset"]), str(named["norm"])
    training = stored if stored and (dataset, norm) == (stored.dataset, stored.norm) else PRESETS[dataset, norm]
    network = flags.network or (stored or training).network
    if is_own(network) and flags.network is None:
        raise UserError(
            f"checkpoint {file.path}: names the network {network}, which is code: "
            f"add --network {network} if you trust it"
        )
    images, split, notes = _images(flags, dataset, stored, device)
    notes = [*file.notes, *notes]
    model = build_model(network, *images.shape, images.num_classes)
    found = our_keys(file.weights, model.state_dict())
    load_weights(model, found.weights, file.path)
    preact = network.startswith("preact_resnet18")
    foreign = file.config is None and (found.renamed or preact)  # a family that ours standardises
    if foreign and preact:
        other = "preact_resnet18" if network.endswith("_v2") else "preact_resnet18_v2"
        notes.append(f"--network {network}: files of {other} have the same keys: compare the clean accuracy")
    try:
        model, how = behind_standardisation(model, flags.standardise, found, foreign, images.shape[0])
    except ValueError as error:
        what = f"checkpoint {file.path}" if flags.standardise is None else f"--standardise {flags.standardise!r}"
        raise UserError(f"{what}: {error}") from None
    if is_own(network):
        try_out(network, model, images.split.everything().x[:2].cpu(), images.num_classes, to_train=False)
    model = model.to(device).eval().requires_grad_(False)
    lay_out(model, is_built_in(network), layout_for(device, precision, flags.deterministic))
    overrides: dict[str, str] = {}
    for name, value in named.items():
        if stored and getattr(stored, name) != value:
            overrides[name] = f"{value} instead of the checkpoint's {getattr(stored, name)}"
    if is_own(network):
        # The code says which it is, and not the folder from which it is named.
        name, before = (of.rpartition("/")[2] for of in (network, stored.network if stored else "none"))
        overrides["network"] = name + (f", sha256 {code}" if (code := code_of(network)) else "")
        if name != before:
            overrides["network"] += f" instead of the checkpoint's {before}"
    if how:
        overrides["standardise"] = how
    folder = images.folder.content if images.folder else None
    about = (training, dataset, norm, overrides, split, file.accuracy, images.classes, tuple(notes), folder)
    subject = Subject(model, file.path, file.sha256, images.split, *about)
    unknown = images.folder is not None and (stored is None or stored.test_files is None)
    if unknown and split == "test" and folder and folder not in (subject.evaluated or {folder}):
        said = "--data_root: not the test images that other results of this network are of; these stand apart"
        return replace(subject, split=OTHER, notes=(*notes, said))
    return subject


def _images(
    flags: EvaluationFlags, dataset: str, stored: Config | None, device: torch.device
) -> tuple[Part, str, list[str]]:
    """The images that the flags name, the split that they are of, and what the user should be told of them.

    :raises UserError: if they cannot be those of the checkpoint's network, or it does not say which they are.
    """
    own = stored if stored and stored.dataset == dataset else None
    root = own.data_root if own else "data"
    if dataset != "imagefolder" and not Path(root).is_dir():  # no other folder stands in for one of pictures
        root = "data"
    root, image_size = flags.data_root or root, flags.image_size or (own.image_size if own else None)
    how: dict[str, Any] = {"device": device, "image_size": image_size}
    if flags.split == "test":
        images = load_test(dataset, root, test_size=flags.test_size, **how)
    elif stored and not own:
        raise UserError(
            f"--split {flags.split}: {flags.model} was trained on {stored.dataset}, so {dataset} has no "
            f"{SPLITS[flags.split]} images of its training: leave --split out"
        )
    elif not own and dataset == "imagefolder":
        raise UserError(
            f"--split {flags.split}: {flags.model} does not say which images were kept for validation: leave it out"
        )
    else:
        training = own or PRESETS[dataset, "Linf"]
        how |= {"val_size": training.val_size, "train_size": training.train_size, "seed": training.seed}
        all_of_them = flags.split == "val"
        images = load_own(dataset, root, flags.split, size=None if all_of_them else flags.test_size, **how)
        if all_of_them and (flags.test_size or 0) > len(images.split):
            raise UserError(f"--test_size {flags.test_size}: there are {len(images.split)} images in --split val")
        if all_of_them:  # in the order in which the check after an epoch takes them, which sees `check_size` of them
            images = images._replace(split=first_images(images.split, flags.test_size or training.check_size))
    names, notes = stored.class_names if stored else None, [f"{root}: {images.about}"] if images.about else []
    what = Kind(names, own.image_shape if own else None).unlike(Kind(images.classes, images.shape))
    if what and own:
        resized = names == images.classes and own.image_shape and own.image_shape[0] == images.shape[0]
        cure = "give --image_size, or name another folder" if resized else "name a folder of such images"
        raise UserError(f"--data_root {root}: {flags.model} was trained on {what}: {cure}")
    if what:
        notes.append(f"--dataset {dataset}: {flags.model} was trained on {what}; classes go by position")
    if names is None:
        also = "" if images.folder is None else f", and the images in {root} are taken for its own"
        notes.append(f"--model: {flags.model} does not name its classes: they go by position{also}")
    kept = own and (own.test_files if flags.split == "test" else own.training_files)
    if own is None or images.folder is None or own.test_files is None or images.folder.content == kept:
        return images, flags.split, notes
    if flags.split == "test":
        notes.append(f"--data_root {root}: not the test images of its training; results on them stand apart")
        return images, OTHER, notes
    raise UserError(
        f"--split {flags.split}: in {root} training images were added, removed or changed after {flags.model} was "
        f"trained, so nobody knows which were its {SPLITS[flags.split]} images: restore them, or leave --split out"
    )
