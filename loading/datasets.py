"""Data sets: reading them, checking them, and splitting them into training, validation and test images.

N images, C channels. Images are (N, C, H, W) uint8, on the device or as files on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
from utils import SPLIT, mixed_seed


class Dataset(NamedTuple):
    train: Split
    val: Split
    test: Split
    num_classes: int
    listing: str = ""  # of an image folder, a digest of its training files' names; other sets' content is known
    about: str = ""  # of an image folder, how many images it has of which class, and which files are not used

    @property
    def streamed(self) -> bool:
        """Whether the images stay on disk."""
        return isinstance(self.train.images, ImagesOnDisk)

    @property
    def nbytes(self) -> int:
        """What the images of all splits take, or would take, in memory."""
        return sum(split.images.nbytes for split in (self.train, self.val, self.test))


class TestSplit(NamedTuple):
    split: Split
    num_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.split.shape


class Raw(NamedTuple):
    """One part of a data set as it was read: images (N, C, H, W) uint8, labels (N,) int64."""

    images: np.ndarray | ImagesOnDisk
    labels: np.ndarray
    num_classes: int
    about: str = ""  # of an image folder, see `Dataset`

    def split(self, rows: np.ndarray, device: torch.device) -> Split:
        """These rows as tensors on `device`; images on disk stay there."""
        if isinstance(self.images, ImagesOnDisk):
            images: Tensor | ImagesOnDisk = self.images.part(rows)
        else:
            # A copy in plain order: numpy leaves odd strides on an axis of length 1, and torch takes those for channels last.
            images = torch.from_numpy(self.images[rows]).clone(memory_format=torch.contiguous_format).to(device)
        labels = torch.from_numpy(self.labels[rows])
        return Split(images, labels.to(device), torch.from_numpy(rows).to(device))


def load_dataset(
    name: str,
    root: str = ".",
    *,
    seed: int,
    device: torch.device,
    train_size: int | None = None,
    val_size: int | None = None,
    test_size: int | None = None,
    streaming: bool | None = False,
    num_workers: int = 0,
) -> Dataset:
    """Training, validation and test split of the data set `name`, one of `READERS`, in the folder `root`.

    MNIST and CIFAR-10: the first `val_size` training images are the validation set; digits: a fixed stratified split;
    image folders: one that depends on `seed`. Sizes by default: a tenth of the training images for validation, and all
    that there are else. streaming: leave an image folder on disk; None: if it took over half of the device's free memory.
    num_workers: threads that read what is on disk.

    :raises UserError: if a file is missing, damaged or does not fit, or there are too few images.
    """
    raw = _read(name, root, "train")
    val, rest = _parts(name, raw.labels, val_size, seed)
    rest = _first(name, raw.labels, rest, train_size, "train_size", "training images beside validation")
    test, test_rows = _test(name, root, test_size)
    shape, test_shape = raw.images.shape[1:], test.images.shape[1:]
    if test_shape != shape or test.num_classes != raw.num_classes:
        here, there = ("x".join(map(str, sizes)) for sizes in (shape, test_shape))
        raise UserError(
            f"--data_root {root}: training images are {here} in {raw.num_classes} classes, test images {there} in "
            f"{test.num_classes}: they must be alike"
        )
    data = Dataset(
        raw.split(rest, device),
        raw.split(val, device),
        test.split(test_rows, device),
        raw.num_classes,
        listing=raw.images.listing if isinstance(raw.images, ImagesOnDisk) else "",
        about="; ".join(filter(None, (raw.about, test.about))),
    )
    if data.streamed and (data.nbytes > free_memory(device) / 2 if streaming is None else streaming):
        train, val_split, test_split = (split.read_by(num_workers) for split in data[:3])
    else:
        train, val_split, test_split = (split.in_memory() for split in data[:3])
    return data._replace(train=train, val=val_split, test=test_split)


def load_test(name: str, root: str, *, test_size: int | None, device: torch.device) -> TestSplit:
    """The first `test_size` test images; of an image folder, a fixed stratified selection.

    :raises UserError: as `load_dataset`.
    """
    raw, rows = _test(name, root, test_size)
    return TestSplit(raw.split(rows, device).in_memory(), raw.num_classes)


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
) -> TestSplit:
    """The first `size` images of the split "val" or "train" that a run with these sizes and this seed had; of an image
    folder, a fixed stratified selection of them.

    :raises UserError: as `load_dataset`.
    """
    raw = _read(name, root, "train")
    val, rest = _parts(name, raw.labels, val_size, seed)
    if split == "train":
        rest = _first(name, raw.labels, rest, train_size, "train_size", "training images beside validation")
    rows = _first(name, raw.labels, val if split == "val" else rest, size, "test_size", f"images in --split {split}")
    return TestSplit(raw.split(rows, device).in_memory(), raw.num_classes)


def _test(name: str, root: str, test_size: int | None) -> tuple[Raw, np.ndarray]:
    """The test images, those of a folder still on disk, and the rows of them that are asked for."""
    raw = _read(name, root, "test")
    return raw, _first(name, raw.labels, np.arange(len(raw.labels)), test_size, "test_size", "test images")


def _read(name: str, root: str, part: str) -> Raw:
    try:
        folder = Path(root).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"--data_root {root}: {error}: name a folder") from None
    return READERS[name](folder, part)


def _parts(name: str, labels: np.ndarray, val_size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images that are kept for validation, a tenth by default, and the rows left to train on."""
    count = len(labels)
    size = round(count / 10) if val_size is None else val_size
    if size >= count:
        raise UserError(f"--val_size {size}: {name} has {count} training images: leave some to train on")
    if name in ("mnist", "cifar10"):
        val, rest = np.split(np.arange(count), [size])
        return val, rest
    asked = f"--val_size {size}" if val_size else f"--val_size is not given and a tenth of the images is {size}"
    return _stratified(labels, size, asked, 0 if name == "digits" else mixed_seed(seed, SPLIT))


def _first(name: str, labels: np.ndarray, rows: np.ndarray, size: int | None, flag: str, images: str) -> np.ndarray:
    """The first `size` of `rows`; in an image folder, sorted by class, a fixed stratified selection of them. None: all.

    flag, images: who asks for so many, and of what, for an error.
    """
    if size is None:
        return rows
    if size > len(rows):
        raise UserError(f"--{flag} {size}: {name} has {len(rows)} {images}")
    if name != "imagefolder" or size in (0, len(rows)):
        return rows[:size]
    chosen, _ = _stratified(labels[rows], size, f"--{flag} {size}", 0)
    selection: np.ndarray = rows[np.sort(chosen)]
    return selection


def _stratified(labels: np.ndarray, size: int, asked: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a stratified selection of `size` labels, and the rows left. asked: who wants so many, for an error."""
    try:
        chosen, left = train_test_split(
            np.arange(len(labels)), train_size=size, stratify=labels, random_state=seed % 2**32
        )
    except ValueError:
        counts = np.unique(labels, return_counts=True)[1]
        raise UserError(
            f"{asked}: of {len(labels)} images in {len(counts)} classes, {counts.min()} in the smallest, these cannot be drawn "
            "with every class in both parts: choose another size, or add images to the smallest class"
        ) from None
    return chosen, left


# --- reading -------------------------------------------------------------------------------------------------------


def _digits(root: Path, part: str) -> Raw:
    """scikit-learn's 1797 handwritten digits, 8x8 with 17 grey levels: 1400 for training and validation, 397 test."""
    digits = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=397, stratify=digits.target, random_state=0)
    rows = train if part == "train" else test
    images = np.round(digits.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    return Raw(images, digits.target[rows].astype(np.int64), 10)


MNIST_FILES = {  # unpacked, with their md5
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def _mnist(root: Path, part: str) -> Raw:
    files = {root / "MNIST" / "raw" / name: md5 for name, md5 in MNIST_FILES.items()}
    _verify(files, lambda: torchvision.datasets.MNIST(root, download=True))
    data = torchvision.datasets.MNIST(root, train=part == "train")
    return Raw(data.data.numpy()[:, None], data.targets.numpy(), 10)


def _cifar10(root: Path, part: str) -> Raw:
    kind = torchvision.datasets.CIFAR10
    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    files = {root / kind.base_folder / name: md5 for name, md5 in listed}
    _verify(files, lambda: kind(str(root), download=True))
    data = kind(str(root), train=part == "train")
    return Raw(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets, dtype=np.int64), 10)


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


def _imagefolder(root: Path, part: str) -> Raw:
    """`<part>/<class>/*`, still on disk."""
    found = list_folder(root, part)
    return Raw(ImagesOnDisk(found.paths, found.shape), found.labels, found.num_classes, found.about)


READERS = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "imagefolder": _imagefolder}
