"""Data sets: reading them, checking them, and splitting them into training, validation and test images.

N images, C channels. Images are (N, C, H, W) uint8, on the device or as files on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from errors import UserError
from loading.batches import Split
from loading.image_folder import list_folder
from loading.streaming import ImagesOnDisk, free_memory
from presets import CLASSES
from utils import SPLIT, mixed_seed


class Dataset(NamedTuple):
    train: Split
    val: Split
    test: Split
    num_classes: int
    found: Mapping[str, Any] = {}  # of an image folder, fields of `config.Config`; what others hold is known
    about: str = ""  # of an image folder: images by class, files that are not used, where the images are held
    classes: tuple[str, ...] = ()  # names, in the order of the labels

    @property
    def streamed(self) -> bool:
        """Whether the images stay on disk."""
        return isinstance(self.train.images, ImagesOnDisk)


class Part(NamedTuple):
    """Training or test images, or some of them, and how many classes there are."""

    split: Split
    num_classes: int
    about: str = ""  # of an image folder, see `Dataset`
    classes: tuple[str, ...] = ()  # names, in the order of the labels
    folder: ImagesOnDisk | None = None  # all training or test images of an image folder, whichever are in `split`

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.split.shape


def load_dataset(
    name: str,
    root: str = ".",
    *,
    seed: int,
    device: torch.device,
    train_size: int | None = None,
    val_size: int | None = None,
    test_size: int | None = None,
    image_size: int | None = None,
    streaming: bool | None = False,
    num_workers: int = 0,
) -> Dataset:
    """Training, validation and test split of the data set `name`, one of `config.DATASETS`, in the folder `root`.

    MNIST and CIFAR-10: the first `val_size` training images are the validation set; digits: a fixed stratified split;
    image folders: one that depends on `seed`. Sizes by default: a tenth of the training images for validation, and all
    that there are else. image_size: see `image_folder.read_image`. streaming: leave an image folder on disk; None: if it
    took over half of the device's free memory. num_workers: threads that read what is on disk.

    :raises UserError: if a file is missing, damaged or does not fit, or there are too few images.
    """
    read = _read(name, root, "train", image_size, num_workers)
    val_rows, train_rows = _training_rows(name, read, seed, val_size, train_size)
    test = _read(name, root, "test", image_size, num_workers)
    test_rows = _first(name, test, test.split.numbers, test_size, "test_size", "test images")
    if (test.shape, test.num_classes) != (read.shape, read.num_classes):
        here, there = ("x".join(map(str, part.shape)) for part in (read, test))
        raise UserError(
            f"--data_root {root}: training images are {here} in {read.num_classes} classes, test images {there} in "
            f"{test.num_classes}: they must be alike"
        )
    about = [read.about, test.about]
    if image_size:
        about.append(f"the shorter side resized to {image_size} pixels, then the middle cut out")
    splits = [part.split.part(rows, device) for part, rows in ((read, train_rows), (read, val_rows), (test, test_rows))]
    size, stays = sum(split.images.nbytes for split in splits), read.folder is not None and streaming
    if read.folder is not None and streaming is None and size > free_memory(device) / 2:
        about.append(f"{size / 2**30:.3g} GiB, more than half of the memory free on {device}: they stay on disk")
        stays = True
    train, val, test_split = (split if stays else split.in_memory() for split in splits)
    found = _found(root, read, test)
    if found and found["training_files"] == found["test_files"]:
        about.append("warning: the test images are the training images: an accuracy on them says nothing of others")
    words = "; ".join(filter(None, about))
    return Dataset(train, val, test_split, read.num_classes, found, words, read.classes)


def _found(root: str, train: Part, test: Part) -> dict[str, Any]:
    """What config.json keeps of an image folder: its place, so that no other folder is taken for it from elsewhere, and what
    its images are."""
    if train.folder is None or test.folder is None:
        return {}
    return {
        "data_root": str(Path(root).expanduser().absolute()),
        "classes": train.classes,
        "image_shape": train.shape,
        "training_files": train.folder.content,
        "test_files": test.folder.content,
    }


def load_test(
    name: str, root: str, *, test_size: int | None, device: torch.device, image_size: int | None = None
) -> Part:
    """The first `test_size` test images; of an image folder, a fixed stratified selection.

    :raises UserError: as `load_dataset`.
    """
    read = _read(name, root, "test", image_size)
    rows = _first(name, read, read.split.numbers, test_size, "test_size", "test images")
    return read._replace(split=read.split.part(rows, device).in_memory())


def load_own(
    name: str,
    root: str,
    split: str,
    *,
    val_size: int | None,
    train_size: int | None,
    seed: int,
    size: int | None,
    device: torch.device,
    image_size: int | None = None,
) -> Part:
    """The first `size` images of the split "val" or "train" that a run with these sizes and this seed had; of an image
    folder, a fixed stratified selection of them.

    :raises UserError: as `load_dataset`.
    """
    read = _read(name, root, "train", image_size)
    val, train = _training_rows(name, read, seed, val_size, train_size)
    rows = _first(name, read, val if split == "val" else train, size, "test_size", f"images in --split {split}")
    return read._replace(split=read.split.part(rows, device).in_memory())


def _read(name: str, root: str, part: str, image_size: int | None, num_workers: int = 0) -> Part:
    """All training or test images; those of a folder are still on disk."""
    try:
        folder = Path(root).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"--data_root {root}: {error}: name a folder") from None
    if name == "imagefolder":
        paths, shape, counts, about = list_folder(folder, part, image_size)
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
        images = ImagesOnDisk(paths, shape, num_workers, image_size)
        split = Split(images, labels, torch.arange(len(labels)))
        return Part(split, len(counts), about, tuple(counts), images)
    if image_size:
        raise UserError(f"--image_size {image_size}: the images of {name} are of one size already: leave it out")
    return READERS[name](folder, part)


def _training_rows(
    name: str, read: Part, seed: int, val_size: int | None, train_size: int | None
) -> tuple[Tensor, Tensor]:
    """The rows that are kept for validation, a tenth by default, and the rows to train on."""
    count = len(read.split)
    size = round(count / 10) if val_size is None else val_size
    if size >= count:
        raise UserError(f"--val_size {size}: {name} has {count} training images: leave some to train on")
    if name in ("mnist", "cifar10"):
        val, rest = torch.arange(count).split([size, count - size])
    else:
        asked = f"--val_size {size}" if val_size else f"--val_size is not given and a tenth of the images is {size}"
        val, rest = _stratified(read.split.labels, size, asked, 0 if name == "digits" else mixed_seed(seed, SPLIT))
    return val, _first(name, read, rest, train_size, "train_size", "training images beside validation")


def _first(name: str, read: Part, rows: Tensor, size: int | None, flag: str, images: str) -> Tensor:
    """The first `size` of `rows`; in an image folder, sorted by class, a fixed stratified selection of them. None: all.

    flag, images: who asks for so many, and of what, for an error.
    """
    if size is None:
        return rows
    if size > len(rows):
        raise UserError(f"--{flag} {size}: {name} has {len(rows)} {images}")
    if name != "imagefolder" or size in (0, len(rows)):
        return rows[:size]
    chosen, _ = _stratified(read.split.labels[rows], size, f"--{flag} {size}", 0)
    return rows[chosen.sort().values]


def _stratified(labels: Tensor, size: int, asked: str, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of a stratified selection of `size` labels, and the rows left. asked: who wants so many, for an error."""
    try:
        rows = np.arange(len(labels))
        chosen, left = train_test_split(rows, train_size=size, stratify=labels.numpy(), random_state=seed % 2**32)
    except ValueError:
        counts = labels.unique(return_counts=True)[1]
        raise UserError(
            f"{asked}: of {len(labels)} images in {len(counts)} classes, {counts.min()} in the smallest, these cannot be drawn "
            "with every class in both parts: choose another size, or add images to the smallest class"
        ) from None
    return torch.from_numpy(chosen), torch.from_numpy(left)


# --- reading -------------------------------------------------------------------------------------------------------


def _in_memory(images: np.ndarray, labels: np.ndarray, name: str) -> Part:
    """Images (N, C, H, W) uint8 and labels (N,) int64 of the data set `name` as they were read."""
    split = Split(torch.from_numpy(images), torch.from_numpy(labels), torch.arange(len(labels)))
    return Part(split, len(CLASSES[name]), classes=CLASSES[name])


def _digits(root: Path, part: str) -> Part:
    """scikit-learn's 1797 handwritten digits, 8x8 with 17 grey levels: 1400 for training and validation, 397 test."""
    digits = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=397, stratify=digits.target, random_state=0)
    rows = train if part == "train" else test
    images = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    return _in_memory(images, digits.target[rows].astype(np.int64), "digits")


MNIST_FILES = {  # unpacked, with their md5
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def _mnist(root: Path, part: str) -> Part:
    files = {root / "MNIST" / "raw" / name: md5 for name, md5 in MNIST_FILES.items()}
    _verify(files, lambda: torchvision.datasets.MNIST(root, download=True))
    data = torchvision.datasets.MNIST(root, train=part == "train")
    return _in_memory(data.data.numpy()[:, None], data.targets.numpy(), "mnist")


def _cifar10(root: Path, part: str) -> Part:
    kind = torchvision.datasets.CIFAR10
    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    files = {root / kind.base_folder / name: md5 for name, md5 in listed}
    _verify(files, lambda: kind(str(root), download=True))
    data = kind(str(root), train=part == "train")
    images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
    return _in_memory(images, np.array(data.targets, dtype=np.int64), "cifar10")


def _verify(files: dict[Path, str], download: Callable[[], object]) -> None:
    """Download what is missing; then the md5 of each file must be the one beside it.

    :raises UserError: naming the first file that is missing or another.
    """
    missing = [path for path in files if not path.exists()]
    try:
        if missing:
            download()
    except Exception as error:  # urllib, ssl, sockets, torchvision's own RuntimeError, the file system
        lacking = next((path for path in missing if not path.exists()), missing[0])
        raise UserError(
            f"data file {lacking.name}: not in {lacking.parent.absolute()}, and the download failed "
            f"({error}): put it there, or name its folder with --data_root"
        ) from None
    for path, expected in files.items():
        try:
            found = hashlib.md5(path.read_bytes()).hexdigest()
        except OSError as error:
            reason = f"cannot be read ({error.strerror}): mend it"
            raise UserError(f"data file {path.absolute()}: {reason}, or choose another --data_root") from None
        if found != expected:
            raise UserError(
                f"data file {path.absolute()}: truncated or changed (md5 {found} instead of {expected}): "
                "delete it and start again to download it, or choose another --data_root"
            )


READERS = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}
