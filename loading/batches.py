"""Splits of a data set and the batches (x, y, index) drawn from them, each a function of (seed, step) alone.

B batch, N images, C channels. Images are stored as (N, C, H, W) uint8 and given out as float32 in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from loading.crops import Augment, Crops, draw_crops
from loading.streaming import ImagesOnDisk
from utils import AUGMENT, ORDER, generator, send


class Batch(NamedTuple):
    x: Tensor  # (B, C, H, W) float32 in [0, 1]
    y: Tensor  # (B,) int64
    index: Tensor  # type: ignore[assignment]  # (B,) int64: the rows of the split; tuple.index is hidden


@dataclass(frozen=True)
class Split:
    """Some images of a data set, on one device; the pixels there too, or on disk."""

    images: Tensor | ImagesOnDisk  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64
    numbers: Tensor  # (N,) int64: each image's number in the data set's own order

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, index: Tensor) -> Batch:
        """(B,) rows -> the batch of these images as they are.

        :raises UserError: naming an image on disk that cannot be read.
        """
        index = send(index, self.labels.device) if index.device.type == "cpu" else index
        return self._batch(index, self.images[index])

    def batches(self, rows: Iterable[Tensor]) -> Generator[Batch]:
        """The batch of each (B,) of `rows`; from disk they are read ahead, until the iterator is closed.

        :raises UserError: naming an image on disk that cannot be read.
        """
        if not isinstance(self.images, ImagesOnDisk):
            yield from map(self.batch, rows)
            return
        with closing(self.images.read_ahead(rows)) as read:
            for index, images in read:
                yield self._batch(send(index, self.labels.device), images)

    def _batch(self, index: Tensor, images: Tensor) -> Batch:
        images = send(images, self.labels.device) if images.device.type == "cpu" else images  # still uint8
        return Batch(images.float() / 255, self.labels[index], index)

    def part(self, rows: Tensor, device: torch.device) -> Split:
        """Those of these (n,) rows, on `device`; images on disk stay there."""
        if isinstance(self.images, ImagesOnDisk):
            images: Tensor | ImagesOnDisk = self.images.part(rows.tolist())
        else:
            # A copy in plain order: numpy leaves odd strides on an axis of length 1, and torch takes those for channels last.
            images = self.images[rows].clone(memory_format=torch.contiguous_format).to(device)
        return Split(images, self.labels[rows].to(device), self.numbers[rows].to(device))

    def everything(self) -> Batch:
        return self.batch(torch.arange(len(self)))

    def in_memory(self) -> Split:
        """The same with the pixels on the device.

        :raises UserError: naming an image on disk that cannot be read.
        """
        if not isinstance(self.images, ImagesOnDisk):
            return self
        return replace(self, images=self.images[torch.arange(len(self))].to(self.labels.device))


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) the order in which epoch `epoch` visits the training rows: a function of its arguments alone."""
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The last, smaller batch counts."""
    return -(-count // batch_size)


class TrainBatches(AbstractContextManager["TrainBatches"]):
    """`batches(step)` is the batch of optimizer step `step`, counted from 0: a function of (seed, step) alone.

    Of several processes each gets its part of it, with its part of the draws. Steps that follow each other are read
    ahead if the images are on disk; leaving the context ends that.

    :raises UserError: if an image on disk cannot be read, or is not what it was.
    """

    def __init__(
        self, split: Split, *, batch_size: int, seed: int, augment: Augment | None, rank: int = 0, ranks: int = 1
    ) -> None:
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment
        self.rank, self.ranks = rank, ranks
        self.next_step = -1
        self.ahead: Generator[Batch] | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, step: int) -> Batch:
        if self.ahead is None or step != self.next_step:
            self.close()
            self.ahead = self.split.batches(map(self.rows, itertools.count(step)))
        batch = next(self.ahead)
        self.next_step = step + 1
        crops = self.crops(step)
        return batch if crops is None else batch._replace(x=crops.of(batch.x))

    def global_rows(self, step: int) -> Tensor:
        """(B,) the rows of all processes together."""
        count = len(self.split)
        epoch, position = divmod(step, steps_per_epoch(count, self.batch_size))
        return epoch_order(count, self.seed, epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def rows(self, step: int) -> Tensor:
        """This process's part of them; it can be empty."""
        return self.global_rows(step).tensor_split(self.ranks)[self.rank]

    def crops(self, step: int) -> Crops | None:
        """How this process's images are cropped in `step`; None: not at all."""
        if self.augment is None:
            return None
        drawn = draw_crops(len(self.global_rows(step)), generator(self.seed, AUGMENT, step), self.augment)
        return Crops(*(part.tensor_split(self.ranks)[self.rank] for part in drawn))

    def close(self) -> None:
        """End what reads ahead; the next call starts it again."""
        if self.ahead is not None:
            self.ahead.close()
        self.next_step, self.ahead = -1, None


def first_batch(split: Split, count: int) -> Tensor:
    """(count, C, H, W): the first image so often, to try a network on."""
    return split.batch(torch.zeros(count, dtype=torch.long)).x


def first_images(split: Split, count: int | None) -> Split:
    """The split's first `count` images; None: all."""
    if count is None or count >= len(split):
        return split
    return split.part(torch.arange(count, device=split.labels.device), split.labels.device)
