"""Data sets as uint8 tensors on the device, their splits, and batches of (x, y, index).

B batch, N images, C channels. Images are stored as (N, C, H, W) uint8 and given out as float32 in [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from errors import UserError
from utils import AUGMENT, ORDER, SPLIT, generator, mixed_seed, send

AUGMENT_PAD = 4


class Batch(NamedTuple):
    x: Tensor  # (B, C, H, W) float32 in [0, 1]
    y: Tensor  # (B,) int64
    index: Tensor  # (B,) int64: the rows of the split


@dataclass(frozen=True)
class Split:
    """Some images of a data set, on one device."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    numbers: Tensor  # (N,) int64: each image's number in the data set's own order

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def batch(self, index: Tensor) -> Batch:
        """(B,) rows -> the batch of these images as they are."""
        index = send(index, self.labels.device) if index.device.type == "cpu" else index
        return Batch(self.images[index].float() / 255, self.labels[index], index)

    def everything(self) -> Batch:
        return self.batch(torch.arange(len(self)))


class Dataset(NamedTuple):
    train: Split
    val: Split
    test: Split
    num_classes: int


class Raw(NamedTuple):
    """One part of a data set as it was read: images (N, C, H, W) uint8, labels (N,) int64."""

    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def split(self, rows: np.ndarray, device: torch.device) -> Split:
        """These rows as tensors on `device`."""
        # A copy in plain order: numpy leaves odd strides on an axis of length 1, and torch takes those for channels last.
        images = torch.from_numpy(self.images[rows]).clone(memory_format=torch.contiguous_format)
        labels = torch.from_numpy(self.labels[rows])
        return Split(images.to(device), labels.to(device), torch.from_numpy(rows).to(device))


def load_dataset(name: str, root: str, *, seed: int, train_size: int | None, val_size: int | None,
                 test_size: int | None, device: torch.device) -> Dataset:  # fmt: skip
    """Training, validation and test split. None: all training images that are not validation; 10 % for validation;
    all test images. `test_size` 0: none.

    MNIST and CIFAR-10: the first `val_size` training images are the validation set; digits: a fixed stratified split;
    image folders: one that depends on `seed`.

    :raises UserError: if a file is missing, damaged or does not fit, or there are too few images.
    """
    raw = READERS[name](_folder(root), "train")
    count = len(raw.labels)
    val_size = round(count / 10) if val_size is None else val_size
    if val_size >= count:
        raise UserError(f"--val_size {val_size}: {name} has {count} training images: leave some to train on")
    if name in ("mnist", "cifar10"):
        val, rest = np.split(np.arange(count), [val_size])
    else:
        val, rest = _stratified(raw.labels, val_size, "val_size", 0 if name == "digits" else mixed_seed(seed, SPLIT))
    if train_size is not None and train_size > len(rest):
        raise UserError(f"--train_size {train_size}: {name} has {len(rest)} training images beside validation")
    if train_size is not None:
        rest = _first(name, raw.labels, rest, train_size, "train_size")
    test = load_test(name, root, test_size=test_size, device=device)
    if test.shape != raw.images.shape[1:] or test.num_classes != raw.num_classes:
        raise UserError(f"--data_root {root}: training images are {_sizes(raw.images.shape[1:])} in {raw.num_classes} "
                        f"classes, test images {_sizes(test.shape)} in {test.num_classes}: they must be alike")  # fmt: skip
    return Dataset(raw.split(rest, device), raw.split(val, device), test.split, raw.num_classes)


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
    chosen, _ = _stratified(labels[rows], size, flag, 0)
    return rows[np.sort(chosen)]


def _stratified(labels: np.ndarray, size: int, flag: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a stratified selection of `size` labels, and the rows left."""
    try:
        return tuple(train_test_split(np.arange(len(labels)), train_size=size, stratify=labels,
                                      random_state=seed % 2**32))  # fmt: skip
    except ValueError as error:
        raise UserError(
            f"--{flag} {size}: cannot be drawn with every class in it ({error}): choose another size, or add images to the smallest class"
        ) from None


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
        raise UserError(f"data file {missing[0].name}: not in {missing[0].parent.absolute()}, and the download failed "
                        f"({error}): put it there, or name its folder with --data_root") from None  # fmt: skip


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
        raise UserError(f"data file {path.absolute()}: truncated or changed (md5 {found} instead of {expected}{size}): "
                        "delete it and start again to download it, or choose another --data_root")  # fmt: skip


def _imagefolder(root: Path, part: str) -> Raw:
    """`<part>/<class>/*` of equal-sized images; grey if every one is grey, else RGB."""
    folder = root / part
    if not folder.is_dir():
        raise UserError(
            f"image folder {folder.absolute()}: not there: --data_root must hold train/<class>/* and test/<class>/*"
        )
    try:
        listing = torchvision.datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(
            f"image folder {folder.absolute()}: {error}: put images into train/<class> and test/<class>"
        ) from None
    others = {
        p.name for other in ("train", "test") if (root / other).is_dir() for p in (root / other).iterdir() if p.is_dir()
    }
    if len(listing.classes) < 2 or others != set(listing.classes):
        odd = sorted(others ^ set(listing.classes)) or listing.classes
        raise UserError(f"image folder {folder.absolute()}: train and test need the same two or more classes, and "
                        f"{odd[0]!r} is not in both: add or remove that folder")  # fmt: skip
    images = [_read_image(Path(path)) for path, _ in listing.samples]
    if any(image.ndim == 3 for image in images):
        images = [np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image for image in images]
    else:
        images = [image[..., None] for image in images]
    for (path, _), image in zip(listing.samples, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(f"image {Path(path).absolute()}: {image.shape[1]}x{image.shape[0]} pixels where "
                            f"{Path(listing.samples[0][0]).name} has {images[0].shape[1]}x{images[0].shape[0]}: "
                            "all images of a folder must have one size")  # fmt: skip
    labels = np.array([label for _, label in listing.samples], dtype=np.int64)
    return Raw(np.stack(images).transpose(0, 3, 1, 2).copy(), labels, len(listing.classes))


def _read_image(path: Path) -> np.ndarray:
    """(H, W) for a grey image, else (H, W, 3)."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"more than 8 bits a pixel, mode {image.mode}")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path.absolute()}: cannot be read ({error}): mend or remove it") from None


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


READERS = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10, "imagefolder": _imagefolder}


# --- batches -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) the order in which epoch `epoch` visits the training rows: a function of its arguments alone."""
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The last, smaller batch counts."""
    return -(-count // batch_size)


def train_batch(split: Split, step: int, *, batch_size: int, seed: int, augment: bool) -> Batch:
    """The batch of optimizer step `step`, counted from 0: a function of (seed, step) alone."""
    epoch, position = divmod(step, steps_per_epoch(len(split), batch_size))
    index = epoch_order(len(split), seed, epoch)[position * batch_size : (position + 1) * batch_size]
    batch = split.batch(index)
    return batch._replace(x=crop_and_flip(batch.x, generator(seed, AUGMENT, step))) if augment else batch


def crop_and_flip(x: Tensor, draws: torch.Generator) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): reflect-pad 4, random crop of the old size, horizontal flip with probability 1/2."""
    count, _, height, width = x.shape
    shift = torch.randint(-AUGMENT_PAD, AUGMENT_PAD + 1, (2, count), generator=draws)
    flip = torch.rand(count, generator=draws) < 0.5
    rows = _reflect(torch.arange(height) + shift[0, :, None], height)
    columns = _reflect(torch.arange(width) + shift[1, :, None], width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    rows, columns = send(rows, x.device), send(columns, x.device)
    examples = torch.arange(count, device=x.device)
    # Indexed dimensions come first where a slice stands between them: (B, H, W, C).
    cropped = x[examples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return cropped.clone(memory_format=torch.contiguous_format)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions up to size - 1 outside [0, size) mirrored back, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
