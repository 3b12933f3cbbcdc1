"""Data sets: reading them, checking them, and splitting them into training, validation and test images.

N images, C channels. Images are (N, C, H, W) uint8, on the device or as files on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
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

    @property
    def streamed(self) -> bool:
        """Whether the images stay on disk."""
        return isinstance(self.train.images, ImagesOnDisk)

    @property
    def nbytes(self) -> int:
        """What the images of all splits take, or would take, in memory."""
        return sum(split.images.nbytes for split in (self.train, self.val, self.test))

    def each(self, work: Callable[[Split], Split]) -> Dataset:
        """The same with `work(split)` for every split."""
        return self._replace(train=work(self.train), val=work(self.val), test=work(self.test))


class Raw(NamedTuple):
    """One part of a data set as it was read: images (N, C, H, W) uint8, labels (N,) int64."""

    images: np.ndarray | ImagesOnDisk
    labels: np.ndarray
    num_classes: int

    def split(self, rows: np.ndarray, device: torch.device) -> Split:
        """These rows as tensors on `device`; images on disk stay there."""
        if isinstance(self.images, ImagesOnDisk):
            images: Tensor | ImagesOnDisk = replace(self.images, paths=[self.images.paths[row] for row in rows])
        else:
            # A copy in plain order: numpy leaves odd strides on an axis of length 1, and torch takes those for channels last.
            images = torch.from_numpy(self.images[rows]).clone(memory_format=torch.contiguous_format).to(device)
        labels = torch.from_numpy(self.labels[rows])
        return Split(images, labels.to(device), torch.from_numpy(rows).to(device))


class Source(NamedTuple):
    """Where images come from, and where they stay."""

    name: str  # one of `READERS`
    root: str = "."  # the folder it lies in
    streaming: bool | None = (
        False  # leave an image folder on disk; None: if it took over half of the device's free memory
    )
    num_workers: int = 0  # processes that read what is on disk


class Sizes(NamedTuple):
    """How many images of each split."""

    train: int | None = None  # None: all training images that are not validation
    val: int | None = None  # None: 10 %
    test: int | None = None  # None: all; 0: none


def load_dataset(source: Source, sizes: Sizes, *, seed: int, device: torch.device) -> Dataset:
    """Training, validation and test split.

    MNIST and CIFAR-10: the first `sizes.val` training images are the validation set; digits: a fixed stratified split;
    image folders: one that depends on `seed`.

    :raises UserError: if a file is missing, damaged or does not fit, or there are too few images.
    """
    name, root, train_size, val_size = source.name, source.root, sizes.train, sizes.val
    raw = READERS[name](_folder(root), "train")
    val, rest = _parts(name, raw.labels, val_size, seed)
    if train_size is not None and train_size > len(rest):
        raise UserError(f"--train_size {train_size}: {name} has {len(rest)} training images beside validation")
    if train_size is not None:
        rest = _first(name, raw.labels, rest, train_size, "train_size")
    test = _test_part(name, root, sizes.test, device)
    if test.shape != raw.images.shape[1:] or test.num_classes != raw.num_classes:
        raise UserError(
            f"--data_root {root}: training images are {_sizes(raw.images.shape[1:])} in {raw.num_classes} "
            f"classes, test images {_sizes(test.shape)} in {test.num_classes}: they must be alike"
        )
    listing = raw.images.listing if isinstance(raw.images, ImagesOnDisk) else ""
    data = Dataset(raw.split(rest, device), raw.split(val, device), test.split, raw.num_classes, listing)
    if data.streamed and (data.nbytes > free_memory(device) / 2 if source.streaming is None else source.streaming):
        return data.each(lambda split: split.read_by(source.num_workers))
    return data.each(Split.in_memory)


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


class TestSplit(NamedTuple):
    split: Split
    num_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.split.shape


def load_test(name: str, root: str, *, test_size: int | None, device: torch.device) -> TestSplit:
    """The first `test_size` test images; of an image folder, a fixed stratified selection.

    :raises UserError: as `load_dataset`.
    """
    test = _test_part(name, root, test_size, device)
    return test._replace(split=test.split.in_memory())


class Own(NamedTuple):
    """Images that a training run had."""

    split: str  # "val" or "train"
    val_size: int | None
    train_size: int | None
    seed: int


def load_own(name: str, root: str, own: Own, *, size: int | None, device: torch.device) -> TestSplit:
    """The first `size` validation or training images of a run; of an image folder, a fixed stratified selection of them.

    :raises UserError: as `load_dataset`.
    """
    raw = READERS[name](_folder(root), "train")
    val, rest = _parts(name, raw.labels, own.val_size, own.seed)
    if own.split == "train" and own.train_size is not None:
        rest = _first(name, raw.labels, rest, own.train_size, "train_size")
    rows = val if own.split == "val" else rest
    if size is not None and size > len(rows):
        raise UserError(f"--test_size {size}: there are {len(rows)} images in --split {own.split}")
    if size is not None:
        rows = _first(name, raw.labels, rows, size, "test_size")
    return TestSplit(raw.split(rows, device).in_memory(), raw.num_classes)


def _test_part(name: str, root: str, test_size: int | None, device: torch.device) -> TestSplit:
    """The same, with the images of a folder still on disk."""
    raw = READERS[name](_folder(root), "test")
    rows = np.arange(len(raw.labels))
    if test_size is not None and test_size > len(rows):
        raise UserError(f"--test_size {test_size}: {name} has {len(rows)} test images")
    if test_size is not None:
        rows = _first(name, raw.labels, rows, test_size, "test_size")
    return TestSplit(raw.split(rows, device), raw.num_classes)


def _folder(root: str) -> Path:
    try:
        return Path(root).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"--data_root {root}: {error}: name a folder") from None


def _first(name: str, labels: np.ndarray, rows: np.ndarray, size: int, flag: str) -> np.ndarray:
    """The first `size` of `rows`; in an image folder, sorted by class, a fixed stratified selection of them."""
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


# md5 and size of MNIST's files, unpacked.
MNIST_FILES = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", 47_040_016),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", 60_008),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", 7_840_016),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", 10_008),
}


def _mnist(root: Path, part: str) -> Raw:
    folder = root / "MNIST" / "raw"
    _download_missing([folder / name for name in MNIST_FILES], lambda: torchvision.datasets.MNIST(root, download=True))
    for name, (md5, size) in MNIST_FILES.items():
        _check_md5(folder / name, md5, size)
    data = torchvision.datasets.MNIST(root, train=part == "train")
    return Raw(data.data.numpy()[:, None], data.targets.numpy(), 10)


def _cifar10(root: Path, part: str) -> Raw:
    kind = torchvision.datasets.CIFAR10
    listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    files = {root / kind.base_folder / name: md5 for name, md5 in listed}
    _download_missing(list(files), lambda: kind(str(root), download=True))
    for path, md5 in files.items():
        _check_md5(path, md5, None)
    data = kind(str(root), train=part == "train")
    return Raw(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.array(data.targets, dtype=np.int64), 10)


def _download_missing(paths: list[Path], download: Callable[[], object]) -> None:
    missing = [path for path in paths if not path.exists()]
    if not missing:
        return
    try:
        download()
    except Exception as error:  # urllib, ssl, sockets, torchvision's own RuntimeError, the file system
        missing = [path for path in paths if not path.exists()] or missing
        raise UserError(
            f"data file {missing[0].name}: not in {missing[0].parent.absolute()}, and the download failed "
            f"({error}): put it there, or name its folder with --data_root"
        ) from None


def _check_md5(path: Path, expected: str, expected_size: int | None) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"data file {path.absolute()}: cannot be read ({error.strerror}): mend it, or choose another --data_root"
        ) from None
    found = hashlib.md5(content).hexdigest()
    if found != expected:
        size = f", {len(content)} bytes instead of {expected_size}" if expected_size not in (None, len(content)) else ""
        raise UserError(
            f"data file {path.absolute()}: truncated or changed (md5 {found} instead of {expected}{size}): "
            "delete it and start again to download it, or choose another --data_root"
        )


def _imagefolder(root: Path, part: str) -> Raw:
    """`<part>/<class>/*`, still on disk."""
    found = list_folder(root, part)
    return Raw(ImagesOnDisk(found.paths, found.shape), found.labels, found.num_classes)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


READERS = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "imagefolder": _imagefolder}
