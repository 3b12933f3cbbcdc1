"""Images that stay on disk: read when their batch is due, by processes that read ahead.

N images, B batch, C channels, H height, W width; pixels are uint8.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import signal
import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from errors import UserError
from loading.image_folder import read_image

PR_SET_PDEATHSIG = 1  # Linux' prctl: the signal that comes when the parent ends


@dataclass(frozen=True)
class ImagesOnDisk:
    """Equal-sized image files, indexed by rows as an (N, C, H, W) uint8 tensor would be."""

    paths: Sequence[str]  # N of them
    image_shape: tuple[int, int, int]
    num_workers: int = 0  # processes that read ahead; 0: read when asked, in this process
    pin_memory: bool = False  # hand out page-locked memory, from which a GPU copies without waiting

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.paths), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def listing(self) -> str:
        """A digest of the files' names in order, below the folder that holds them all, wherever that lies."""
        top = os.path.commonpath(self.paths)
        names = "\0".join(os.path.relpath(path, top) for path in self.paths)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(B,) -> (B, C, H, W) uint8 on the CPU.

        :raises UserError: naming an image that cannot be read whole.
        """
        images = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            image[:] = read_image(self.paths[row], self.image_shape)
        return torch.from_numpy(images)

    def read_ahead(self, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor]]:
        """Each (B,) rows of `batches` with its images (B, C, H, W), in order; closing it ends the processes.

        :raises UserError: naming an image that cannot be read whole, or if a process was lost.
        """
        if not self.num_workers:
            yield from ((rows, self[rows]) for rows in batches)
            return
        ahead, batches = itertools.tee(batches)
        # Forked: a worker is there in milliseconds and shares the list of paths, where a spawned one would import torch
        # anew for each check. It is safe though CUDA and OpenMP may be running here, for a worker touches neither: it
        # reads with PIL, on one thread. The generator of its own leaves torch's global one as it was.
        loader: Any = iter(
            DataLoader(
                _ErrorsAsText(self),
                batch_size=None,
                sampler=(rows.tolist() for rows in ahead),
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                worker_init_fn=_prepare_worker,
                multiprocessing_context="fork",
                generator=torch.Generator(),
            )
        )
        try:
            for rows, images in zip(batches, loader, strict=True):
                if isinstance(images, str):
                    raise UserError(images)
                yield rows, images
        except (OSError, EOFError, RuntimeError) as error:
            raise worker_failure(error) from None  # the connection to a worker broke, or DataLoader saw it end
        finally:
            loader._shutdown_workers()  # DataLoader offers no other way than waiting for the garbage collector
            for worker in loader._workers:
                worker.kill()  # only one that hangs is still there; it ignores SIGTERM, and would keep us from ending


@dataclass(frozen=True)
class _ErrorsAsText(Dataset[Tensor | str]):
    """What a worker reads from: an error it raised would come back with a traceback in its text."""

    images: ImagesOnDisk

    def __getitem__(self, rows: list[int]) -> Tensor | str:
        try:
            return self.images[torch.tensor(rows, dtype=torch.long)]
        except UserError as error:
            return str(error)


def _prepare_worker(_number: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group, but ending is the main process's affair, after its step.

    And no worker outlives it: it would hold on to the lock of the run folder.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def tells_of_a_worker(error: BaseException) -> bool:
    """Whether it is DataLoader's of a worker that was killed; as a signal's handler raises it, it comes anywhere."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def worker_failure(error: BaseException) -> UserError:
    """What to say of it."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]  # the rest can be a traceback
    return UserError(f"--num_workers: a process that reads images was lost ({reason}): give fewer of them, or 0")


def free_memory(device: torch.device) -> int:
    """Bytes free on the GPU, or of this machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
