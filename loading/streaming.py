"""Images that stay on disk: read when their batch is due, by threads that read ahead.

N images, B batch, C channels, H height, W width; pixels are uint8.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from loading.image_folder import read_image

THREAD = "read_ahead"
AHEAD = 2  # batches that wait for each thread
READ_WHOLE = 100  # files of a folder's digest, at most


@dataclass(frozen=True)
class ImagesOnDisk:
    """Image files of one shape, indexed by rows as an (N, C, H, W) uint8 tensor would be."""

    paths: Sequence[str]  # N of them
    image_shape: tuple[int, int, int]
    num_workers: int = 0  # threads that read ahead; 0: read when asked
    image_size: int | None = None  # to which each is resized and cropped when it is read; None: it has that shape

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.paths), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def content(self) -> str:
        """A digest of the files' names below the folder that holds them all, wherever that lies, of their lengths, and of
        what stands in some of them, spread evenly.

        :raises UserError: naming an image that cannot be read.
        """
        top = os.path.commonpath(self.paths)
        names = "\0".join(os.path.relpath(path, top) for path in self.paths)
        listing = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        found = hashlib.sha256(listing.encode())
        every = -(-len(self.paths) // READ_WHOLE)
        for number, path in enumerate(map(Path, self.paths)):
            try:
                found.update(b"%d " % path.stat().st_size)
                if number % every == 0:
                    found.update(path.read_bytes())
            except OSError as error:
                raise UserError(f"image {path}: cannot be read ({error.strerror}): mend or remove it") from None
        return found.hexdigest()

    def part(self, rows: Iterable[int]) -> ImagesOnDisk:
        """Those of these rows."""
        return replace(self, paths=[self.paths[row] for row in rows])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(B,) -> (B, C, H, W) uint8 on the CPU.

        :raises UserError: naming an image that cannot be read whole.
        """
        images = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            image[:] = read_image(self.paths[row], self.image_shape, self.image_size)
        return torch.from_numpy(images)

    def read_ahead(self, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor]]:
        """Each (B,) rows of `batches` with its images (B, C, H, W), in order; closing it ends the threads.

        Threads will do: PIL decodes outside of Python's lock, and a step of training costs many passes of the network.

        :raises UserError: naming an image that cannot be read whole.
        """
        if not self.num_workers:
            yield from ((rows, self[rows]) for rows in batches)
            return
        todo, waiting = iter(batches), deque[tuple[Tensor, Future[Tensor]]]()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix=THREAD)
        try:
            while True:
                for rows in itertools.islice(todo, AHEAD * self.num_workers - len(waiting)):
                    waiting.append((rows, pool.submit(self.__getitem__, rows)))
                if not waiting:
                    return
                rows, images = waiting.popleft()
                yield rows, images.result()
        finally:
            pool.shutdown(cancel_futures=True)


def free_memory(device: torch.device) -> int:
    """Bytes free on the GPU, or of this machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
